package lane

// Fence says whether a node has missed orders that others have. Until it has caught up, it does nothing that such an order may
// have forbidden: it serves nothing stored before without asking. The zero Fence is down. It is pure: whoever has it, orders who
// speaks to it.
type Fence struct{ heard, have uint64 }

// Heard takes note that another node has the orders up to an epoch.
func (f *Fence) Heard(epoch uint64) { f.heard = max(f.heard, epoch) }

// Have takes note that this node has the orders up to an epoch.
func (f *Fence) Have(epoch uint64) { f.have = epoch }

// Forget takes back all that was heard. Whoever goes by what the nodes that live now say, forgets and hears them anew: what one
// said that is gone, or was wrong, holds nobody up for ever.
func (f *Fence) Forget() { f.heard = 0 }

// Fenced says whether this node is behind.
func (f *Fence) Fenced() bool { return f.heard > f.have }
