package dnsgeo

import (
	"unsafe"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/dnsgeo/policy"
	"github.com/perigee-net/perigee/dnsgeo/zone"
)

// recentBits is of how many choices at places what comes first in them is remembered by a goroutine that answers datagrams: of 1 << recentBits,
// 32 KiB together.
const recentBits = 10

// recents are what came first of late in choices that go by the client's place alone. One goroutine's: there are no locks, and what it
// remembers is nearly always what it needs next, for most clients are in few places.
type recents struct {
	table *Table // of which they are
	all   [1 << recentBits]recent
}

// recent is what is first in the order of a choice for a client at a spot.
type recent struct {
	choice *zone.Choice
	spot   *spot
	here   *spec.Site // where clients without a place are held to be
	first  int32
	scope  int32
}

// of is where it is remembered: there, or nowhere.
func (r *recents) of(c *zone.Choice, s *spot) *recent {
	// Where a choice is in memory only spreads them.
	return &r.all[(uint32(uintptr(unsafe.Pointer(c))>>5)^s.number)*0x9e3779b1>>(32-recentBits)]
}

// first is which record set is first in the order of a choice, whatever its health, where that goes by the client's place alone, and how many bits of
// the client's network that depends on. It is what Choose finds where all are healthy.
func (a *asker) first(c *zone.Choice) (first, scope int, ok bool) {
	r := a.recents
	if r == nil || a.trace.On() {
		return 0, 0, false
	}
	seenBits := 0
	switch c.Policy {
	case policy.Geolocation, policy.Geoproximity:
	case policy.Latency:
		if a.scene.clients == nil {
			break
		}
		seen := a.lookUp()
		if seen.Known() {
			return 0, 0, false // its network's own round trips count
		}
		if len(c.Candidates) > 1 {
			seenBits = seen.Bits
		}
	default:
		return 0, 0, false
	}
	at := a.locate()
	known := r.of(c, at)
	if known.choice != c || known.spot != at || known.here != a.scene.here {
		client := a.client(c.Policy)
		client.RoundTrip = nil // nobody has seen the network
		if first, scope, ok = c.First(&client); !ok {
			return 0, 0, false
		}
		*known = recent{c, at, a.scene.here, int32(first), int32(scope)}
	}
	return int(known.first), max(int(known.scope), seenBits), true
}
