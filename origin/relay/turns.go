package relay

// turnBytes is how many bytes a flow has the kernel move until others have their turn: some 0.3 ms of a core, in which its bytes are in the
// processor's cache.
const turnBytes = 1 << 20

// Turns bound how many directions of flows have the kernel move their bytes at once. A thousand that could would all stand in the scheduler's queue, each until its sockets
// have no bytes or no room, and whoever is to accept a flow or to answer a request would stand behind them. Those that wait for a turn have it in
// order; one of which a socket is waited for has none.
type Turns struct{ taken chan struct{} }

// NewTurns makes so many, one at least.
func NewTurns(at int) *Turns { return &Turns{make(chan struct{}, max(at, 1))} }

// turn is one flow's, one direction of it.
type turn struct {
	of    *Turns
	has   bool
	began int64 // bytes that it had moved by then
}

// begin waits until it has one.
func (t *turn) begin(moved int64) {
	if !t.has {
		t.of.taken <- struct{}{}
		t.has, t.began = true, moved
	}
}

// used ends it if it has lasted long enough.
func (t *turn) used(moved int64) {
	if t.has && moved-t.began >= turnBytes {
		t.end()
	}
}

// end lets another have it.
func (t *turn) end() {
	if t.has {
		t.has = false
		<-t.of.taken
	}
}
