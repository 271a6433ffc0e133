// Package zone is hosted zones made ready to be looked up: which zone a name belongs to, what stands at the
// name, whether a wildcard, a delegation or a DNAME holds for it (RFC 1034, RFC 4592, RFC 6672). It chooses nothing:
// where several record sets stand at one name and type, and where an alias leads, is decided by dnsgeo with a view.
// Names are looked up, and records held, as the bytes of messages. A Table is immutable. A spec with a record that
// cannot be served makes no Table but an error with all faults.
package zone

import (
	"sync/atomic"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/dnsgeo/policy"
)

// Table is all hosted zones of a spec. It shares the zones that did not change with the table of the spec before; what all
// zones have of the spec alike (the serial of their SOA, their name servers at the POPs) it adds when they are asked.
type Table struct {
	spec    *spec.Spec
	zones   *index
	servers *Servers
	blocks  map[string]*policy.Blocks // of each CIDR collection
}

// NewTable makes a table of zones of plain records.
func NewTable(zones ...*Zone) *Table {
	return &Table{spec: new(spec.Spec), zones: new(index).with(nil, zones), servers: new(Servers)}
}

// Find returns the zone that the name belongs to, its first labels left out; the deepest if several enclose it, nil if none does.
func (t *Table) Find(n *Name, label int) *Zone {
	for ; label <= n.labels; label++ {
		if t.zones.depths[n.labels-label] == 0 {
			continue
		}
		if z := t.zones.get(n.hashes[label], n.From(label)); z != nil {
			return z
		}
	}
	return nil
}

// Zone is one hosted zone.
type Zone struct {
	Name string // in zone-file form

	wire   []byte // its name
	labels int
	hash   uint64
	shards []*shard // a power of two
	names  int
	cuts   int // names below the apex with a delegation, and all with a DNAME
	apex   Node

	soa    Set              // of a zone of plain records
	hosted *spec.HostedZone // of a zone of a spec, that may have plain records: a secondary zone
	silent Silence
	told   atomic.Pointer[Apex] // what was told last
	seat   atomic.Uint32        // whoever answers for it counts by it; 0: not yet
	places bool                 // records are chosen among by where regions are
	blocks []string             // and by these CIDR collections
}

// Wire is the zone's name in wire form.
func (z *Zone) Wire() []byte { return z.wire }

// Hosted is what a spec says of the zone; nil if it is of none.
func (z *Zone) Hosted() *spec.HostedZone { return z.hosted }

// Labels is how many labels the zone's name has.
func (z *Zone) Labels() int { return z.labels }

// Seat is a number that whoever answers for the zone may give it; 0 until then. It is lost when the zone changes.
func (z *Zone) Seat() *atomic.Uint32 { return &z.seat }

// LogRate is the share of the zone's queries that is to be written down.
func (z *Zone) LogRate() float64 {
	if z.hosted == nil {
		return 0
	}
	return z.hosted.QueryLogging.Rate()
}

// Names is how many names the zone has, those included that have only names below them.
func (z *Zone) Names() int { return z.names }

// shardBits is how much of a hash finds the place within a shard; what is above finds the shard.
const shardBits = 16

func (z *Zone) shard(hash uint64) int { return int(hash>>shardBits) & (len(z.shards) - 1) }

func (z *Zone) find(hash uint64, labels []byte) Node {
	return z.shards[z.shard(hash)].find(hash, labels)
}

// Choice is what stands at one name and type and is more than records: several record sets among which a policy chooses, an
// alias, or records that have a health check.
type Choice struct {
	Type       uint16
	policy.Set // as the policy sees the records; no candidates if it is simple
	Records    []Record
}

// Record is one record set: records, or an alias.
type Record struct {
	Set         Set
	Alias       *Alias // nil if it has records
	HealthCheck string // "" if it has none
}

// Alias is a record set that answers with the addresses of something, or with what stands at another name of its zone.
type Alias struct {
	To     Target
	Name   string // of the distribution, load balancer, accelerator, record or POP
	Region string // of the POP

	hash   uint64 // of the record's name
	labels []byte // of it, in the zone

	EvaluateTargetHealth bool
}

// Target is what kind of thing an alias leads to.
type Target uint8

// The targets of aliases.
const (
	ToDistribution Target = iota // the POP nearest to the client
	ToLoadBalancer               // the nodes of its region
	ToAccelerator                // its addresses
	ToRecord                     // what stands at another name for the same type
	ToNameServer                 // the name servers of a POP
)

func (t Target) String() string {
	return [...]string{"distribution", "load balancer", "accelerator", "record", "name servers of POP"}[t]
}

// Follow returns what an alias of a record leads to; nothing where it leads nowhere.
func (z *Zone) Follow(a *Alias, t uint16) (Set, *Choice, bool) {
	return z.find(a.hash, a.labels).Find(t)
}

// Node returns the node of a name of the zone, be it below a delegation; none if there is none.
func (t *Table) Node(z *Zone, n *Name) Node { return t.node(z, n, 0, n.labels-z.labels) }

// node is that of the name from a label on, where the zone's own labels begin at apex.
func (t *Table) node(z *Zone, n *Name, label, apex int) Node {
	if label == apex {
		return z.apex
	}
	node := z.find(n.hashes[label], n.wire[n.starts[label]:n.starts[apex]])
	if label == apex-1 && z.made() {
		return t.servers.node(z, n.wire[n.starts[label]+1:n.starts[apex]], node)
	}
	return node
}

// Has says whether the name is the zone's or below it.
func (z *Zone) Has(n *Name) bool {
	apex := n.labels - z.labels
	return apex >= 0 && n.hashes[apex] == z.hash && string(n.From(apex)) == string(z.wire)
}

// Match is what holds for a name of a zone.
type Match struct {
	Kind Kind
	Node Node // none if there is no such name
	// Label is where in the name that of the node begins; of a wildcard, the one below which it stands.
	Label int
}

// Kind is how a node holds for a name.
type Kind uint8

// The kinds of matches.
const (
	Nowhere  Kind = iota // there is no such name
	Exact                // it is the name's own
	Wildcard             // its records stand at the name that was asked
	Cut                  // the highest delegation at or above the name, for what is below which the zone does not answer
	Renamed              // a DNAME above the name
)

// Match finds what holds for a name that the zone has (RFC 1034 §4.3.2, RFC 4592 §3.3, RFC 6672 §3.2).
func (t *Table) Match(z *Zone, n *Name) Match {
	apex := n.labels - z.labels
	if z.cuts == 0 {
		if node := t.node(z, n, 0, apex); node.OK() {
			return Match{Exact, node, 0}
		}
	}
	encloser := z.apex
	if encloser.flags&isDNAME != 0 && apex > 0 {
		return Match{Renamed, encloser, apex}
	}
	for label := apex - 1; label >= 0; label-- {
		node := t.node(z, n, label, apex)
		switch {
		case !node.OK():
			return z.wildcard(n, encloser, label+1, apex)
		case node.flags&isCut != 0:
			return Match{Cut, node, label}
		case node.flags&isDNAME != 0 && label > 0:
			return Match{Renamed, node, label}
		}
		encloser = node
	}
	return Match{Exact, encloser, 0}
}

// wildcard is the match of a name that is not there but for its encloser, which begins at a label.
func (z *Zone) wildcard(n *Name, encloser Node, label, apex int) Match {
	if encloser.flags&hasWild == 0 {
		return Match{Nowhere, Node{}, label}
	}
	var room [maxName + 2]byte
	labels := append(append(room[:0], 1, '*'), n.wire[n.starts[label]:n.starts[apex]]...)
	return Match{Wildcard, z.find(hash(n.hashes[label], labels[:2]), labels), label}
}
