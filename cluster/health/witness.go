package health

import (
	"net/netip"
	"time"
)

// Bounds of a witness.
const (
	maxWitnessed = 4096 // keys
	maxAccusers  = 16   // clients remembered of one key: the last to fail

	// What is enough: so many failures in a row, of so many clients, within so long.
	enoughFailures = 5
	enoughClients  = 3
	enoughWithin   = 10 * time.Second

	// A client is a network of this size: what one can have addresses of by itself.
	clientBits4, clientBits6 = 24, 56
)

// Witness is what the data path saw fail, of each key since it last succeeded. It says when that is enough to be held
// against the key, and so that one client alone can never bring that about. What it remembers is bounded: where too much
// fails at once, new keys are passed over, and the probes find them. It is not safe for concurrent use.
type Witness struct {
	keys  map[Key]*accused
	swept time.Time
}

// accused is what is held against a key.
type accused struct {
	failures [enoughFailures]time.Time // the last ones, oldest at next
	next     int
	accusers []accuser // none twice
}

type accuser struct {
	network netip.Prefix
	last    time.Time
}

// NewWitness makes a witness that has seen nothing.
func NewWitness() *Witness { return &Witness{keys: map[Key]*accused{}} }

// Failed takes in that something the client wanted of the key failed. It says whether that makes five in a row, of three
// clients at least, within 10 s: and then begins anew. Clients of one network (/24, /56) are one; all that are unknown are one.
func (w *Witness) Failed(key Key, client netip.Addr, now time.Time) (enough bool) {
	a := w.keys[key]
	if a == nil {
		if len(w.keys) >= maxWitnessed && !w.sweep(now) {
			return false
		}
		a = new(accused)
		w.keys[key] = a
	}
	a.failures[a.next] = now
	a.next = (a.next + 1) % enoughFailures
	a.accuse(networkOf(client), now)
	if oldest := a.failures[a.next]; oldest.IsZero() || now.Sub(oldest) > enoughWithin {
		return false
	}
	clients := 0
	for _, by := range a.accusers {
		if now.Sub(by.last) <= enoughWithin {
			clients++
		}
	}
	if clients < enoughClients {
		return false
	}
	delete(w.keys, key)
	return true
}

// Passed takes in that something of the key went well: what was held against it is forgotten.
func (w *Witness) Passed(key Key, now time.Time) { delete(w.keys, key) }

// sweep forgets what is too old to count, at most once a second, and says whether there is room.
func (w *Witness) sweep(now time.Time) bool {
	if now.Sub(w.swept) < time.Second {
		return len(w.keys) < maxWitnessed
	}
	w.swept = now
	for key, a := range w.keys {
		if last := a.failures[(a.next+enoughFailures-1)%enoughFailures]; now.Sub(last) > enoughWithin {
			delete(w.keys, key)
		}
	}
	return len(w.keys) < maxWitnessed
}

// accuse notes that a client failed; where there are too many it takes the place of the one that failed longest ago.
func (a *accused) accuse(network netip.Prefix, now time.Time) {
	oldest := 0
	for i := range a.accusers {
		if a.accusers[i].network == network {
			a.accusers[i].last = now
			return
		}
		if a.accusers[i].last.Before(a.accusers[oldest].last) {
			oldest = i
		}
	}
	if len(a.accusers) < maxAccusers {
		a.accusers = append(a.accusers, accuser{network, now})
		return
	}
	a.accusers[oldest] = accuser{network, now}
}

// networkOf is the network that counts as one client; the zero Prefix for an address that is not known.
func networkOf(client netip.Addr) netip.Prefix {
	client = client.Unmap().WithZone("")
	bits := clientBits6
	if client.Is4() {
		bits = clientBits4
	}
	network, _ := client.Prefix(bits) // of the invalid address, the zero Prefix
	return network
}
