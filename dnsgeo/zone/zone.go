// Package zone is hosted zones made ready to be looked up: which zone a name belongs to, what stands at the
// name, whether a wildcard or a delegation holds for it (RFC 1034, RFC 4592). It chooses nothing: where several
// record sets stand at one name and type, and where an alias leads, is decided by dnsgeo with a view. A
// Table is immutable. A spec with a record that cannot be served makes no Table but an error with all faults.
package zone

import (
	"iter"
	"maps"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/kept"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/dnsgeo/policy"
)

// Names are lower-case and fully qualified in this package, escaped as dns.UnpackDomainName does it.

// Table is all hosted zones of a spec. It shares the zones that did not change with the table of the spec before; what all
// zones have of the spec alike (the serial of their SOA, their name servers at the POPs) it adds when they are asked.
type Table struct {
	spec    *spec.Spec
	zones   *kept.Map[string, *Zone]
	servers *servers
}

// NewTable makes a table of zones of plain records.
func NewTable(zones ...*Zone) *Table {
	edit := (*kept.Map[string, *Zone])(nil).Edit()
	for _, z := range zones {
		edit.Set(z.Name, z)
	}
	return &Table{spec: new(spec.Spec), zones: edit.Map(), servers: new(servers)}
}

// Find returns the zone that the name belongs to, the deepest if several enclose it; nil if none does.
func (t *Table) Find(name string) *Zone {
	for at, end := 0, false; !end; at, end = dns.NextLabel(name, at) {
		if z := t.zones.Get(name[at:]); z != nil {
			return z
		}
	}
	return t.zones.Get(".")
}

// Above returns the zone that encloses the zone; nil if there is none.
func (t *Table) Above(z *Zone) *Zone {
	if z.Name == "." {
		return nil
	}
	at, end := dns.NextLabel(z.Name, 0)
	if end {
		return t.zones.Get(".")
	}
	return t.Find(z.Name[at:])
}

// Zone is one hosted zone.
type Zone struct {
	Name string

	few   []*Node          // all its names, while they are few: most zones are small, and a map is not
	nodes map[string]*Node // or else all its names
	apex  *Node

	soa    *dns.SOA            // of a zone of plain records
	hosted *spec.HostedZone    // of others
	told   atomic.Pointer[soa] // the SOA that was told last
	places bool                // records are chosen among by where regions are
}

// maxFew is how many names are looked through one by one, which is as quick as a map.
const maxFew = 8

func (z *Zone) node(name string) *Node {
	if z.nodes != nil {
		return z.nodes[name]
	}
	for _, n := range z.few {
		if n.Name == name {
			return n
		}
	}
	return nil
}

func (z *Zone) add(n *Node) {
	if z.nodes == nil && len(z.few) < maxFew {
		z.few = append(z.few, n)
		return
	}
	if z.nodes == nil {
		z.nodes = map[string]*Node{}
		for _, n := range z.few {
			z.nodes[n.Name] = n
		}
		z.few = nil
	}
	z.nodes[n.Name] = n
}

func (z *Zone) all() iter.Seq[*Node] {
	if z.nodes != nil {
		return maps.Values(z.nodes)
	}
	return slices.Values(z.few)
}

// soa is the SOA of a hosted zone while its name servers are these.
type soa struct {
	servers *servers
	record  *dns.SOA
}

// Node is one name of a zone. A name that has only names below it is a Node without choices (an empty non-terminal).
type Node struct {
	Name    string
	Choices []Choice // one a type

	cut  bool  // there is a delegation here
	wild *Node // the wildcard right below, if any
}

// Choice is what stands at one name and type: one record set, or several among which a policy chooses.
type Choice struct {
	Type       uint16
	Policy     policy.Policy
	Candidates []policy.Candidate // as the policy sees the records; none if it is simple
	Records    []Record
}

// Record is one record set: records, or an alias.
type Record struct {
	RRs         []dns.RR
	Alias       *Alias // nil if it has records
	HealthCheck string // "" if it has none
}

// Alias is a record set that answers with the addresses of something, or with another choice of its zone.
type Alias struct {
	To     Target
	Name   string  // of the distribution, load balancer, accelerator, record or POP
	Region string  // of the POP
	Choice *Choice // of the record

	EvaluateTargetHealth bool
}

// Target is what kind of thing an alias leads to.
type Target uint8

// The targets of aliases.
const (
	ToDistribution Target = iota // the POP nearest to the client
	ToLoadBalancer               // the nodes of its region
	ToAccelerator                // its addresses
	ToRecord                     // another Choice
	ToNameServer                 // the name servers of a POP
)

func (t Target) String() string {
	return [...]string{"distribution", "load balancer", "accelerator", "record", "name servers of POP"}[t]
}

// Choice returns what stands at the node for a type; nil if nothing does.
func (n *Node) Choice(t uint16) *Choice {
	for i := range n.Choices {
		if n.Choices[i].Type == t {
			return &n.Choices[i]
		}
	}
	return nil
}

// Node returns the node of a zone of exactly this name, be it below a delegation; nil if there is none.
func (t *Table) Node(z *Zone, name string) *Node { return t.servers.node(z, name, z.node(name)) }

// Choice returns what stands at a node of a zone for a type, its SOA and name servers included; nil if nothing does.
func (t *Table) Choice(z *Zone, n *Node, typ uint16) *Choice {
	if n != z.apex || z.hosted == nil {
		return n.Choice(typ)
	}
	var rrs []dns.RR
	switch typ {
	case dns.TypeSOA:
		rrs = []dns.RR{t.SOA(z)}
	case dns.TypeNS:
		for _, server := range t.servers.of(z) {
			rrs = append(rrs, &dns.NS{Hdr: header(z.Name, dns.TypeNS, nsTTL), Ns: server})
		}
	}
	if len(rrs) == 0 {
		return n.Choice(typ)
	}
	return &Choice{Type: typ, Records: []Record{{RRs: rrs}}}
}

// Empty says whether nothing stands at a node of a zone.
func (t *Table) Empty(z *Zone, n *Node) bool { return len(n.Choices) == 0 && n != z.apex }

// SOA is that of a zone. It is shared, and must not be changed.
func (t *Table) SOA(z *Zone) *dns.SOA {
	if z.hosted == nil {
		return z.soa
	}
	// Route 53's serial is 1 for ever. The revision tells people which spec a name server runs; it wraps (RFC 1982).
	serial := uint32(t.spec.Revision)
	if told := z.told.Load(); told != nil && told.servers == t.servers && told.record.Serial == serial {
		return told.record
	}
	record := &dns.SOA{
		Hdr: header(z.Name, dns.TypeSOA, soaTTL),
		Ns:  t.servers.first(z), Mbox: z.hosted.Owner("hostmaster"),
		Serial: serial, Refresh: soaRefresh, Retry: soaRetry, Expire: soaExpire, Minttl: soaMinimum,
	}
	z.told.Store(&soa{t.servers, record})
	return record
}

// Has says whether the name is the zone's or below it.
func (z *Zone) Has(name string) bool {
	above, ok := strings.CutSuffix(name, z.Name)
	return ok && (above == "" || z.Name == "." || endsInDot(above))
}

// endsInDot says whether the text ends in a dot that separates labels: one that is not escaped.
func endsInDot(text string) bool {
	slashes := len(text) - 1 - len(strings.TrimRight(text[:len(text)-1], `\`))
	return text[len(text)-1] == '.' && slashes%2 == 0
}

// Match is where a name of a zone leads.
type Match struct {
	// Cut is the highest delegation at or above the name; the zone does not answer for what is below it.
	Cut *Node
	// Node is what holds for the name: its own node or else a wildcard. Nil: there is no such name, or a Cut.
	Node *Node
	// Wildcard says that Node is a wildcard, whose records stand at the name that was asked.
	Wildcard bool
}

// Match finds what holds for a name that the zone has (RFC 1034 §4.3.2, RFC 4592 §3.3).
func (t *Table) Match(z *Zone, name string) Match {
	var room [maxLabels]int
	starts := room[:0] // of the labels below the apex, leftmost first
	for at, end := 0, false; !end && len(name)-at > len(z.Name) && len(starts) < maxLabels; at, end = dns.NextLabel(name, at) {
		starts = append(starts, at)
	}
	encloser := z.apex
	for i := len(starts) - 1; i >= 0; i-- {
		n := z.node(name[starts[i]:])
		if i == len(starts)-1 {
			n = t.servers.node(z, name[starts[i]:], n)
		}
		switch {
		case n == nil:
			return Match{Node: encloser.wild, Wildcard: encloser.wild != nil}
		case n.cut:
			return Match{Cut: n, Node: n}
		}
		encloser = n
	}
	return Match{Node: encloser}
}

// maxLabels is how many labels a name can have: 255 octets, at least two a label and one for the root.
const maxLabels = 127
