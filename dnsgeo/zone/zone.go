// Package zone is hosted zones made ready to be looked up: which zone a name belongs to, what stands at the
// name, whether a wildcard or a delegation holds for it (RFC 1034, RFC 4592). It chooses nothing: where several
// record sets stand at one name and type, and where an alias leads, is decided by dnsgeo with a view. A
// Table is immutable. A spec with a record that cannot be served makes no Table but an error with all faults.
package zone

import (
	"net/netip"
	"strings"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/dnsgeo/policy"
)

// Names are lower-case and fully qualified in this package, escaped as dns.UnpackDomainName does it.

// Table is all hosted zones of a spec.
type Table struct {
	zones map[string]*Zone
	// HealthChecks and LoadBalancers are those whose health decides between records.
	HealthChecks, LoadBalancers []string
}

// NewTable makes a table of zones.
func NewTable(zones ...*Zone) *Table {
	t := &Table{zones: map[string]*Zone{}}
	for _, z := range zones {
		t.zones[z.Name] = z
	}
	return t
}

// Find returns the zone that the name belongs to, the deepest if several enclose it; nil if none does.
func (t *Table) Find(name string) *Zone {
	for at, end := 0, false; !end; at, end = dns.NextLabel(name, at) {
		if z := t.zones[name[at:]]; z != nil {
			return z
		}
	}
	return t.zones["."]
}

// Above returns the zone that encloses the zone; nil if there is none.
func (t *Table) Above(z *Zone) *Zone {
	if z.Name == "." {
		return nil
	}
	at, end := dns.NextLabel(z.Name, 0)
	if end {
		return t.zones["."]
	}
	return t.Find(z.Name[at:])
}

// Zone is one hosted zone.
type Zone struct {
	Name string
	SOA  *dns.SOA

	nodes map[string]*Node
	apex  *Node
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
	Candidates []policy.Candidate // as the policy sees the records
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
	To        Target
	Name      string // of the distribution, load balancer, accelerator, record or POP
	Region    string // of the load balancer or POP
	Addresses []netip.Addr
	Choice    *Choice // of the record

	EvaluateTargetHealth bool
}

// Target is what kind of thing an alias leads to.
type Target uint8

// The targets of aliases.
const (
	ToDistribution Target = iota // the POP nearest to the client
	ToLoadBalancer               // the nodes of its region
	ToAccelerator                // its Addresses
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

// Node returns the node of exactly this name, be it below a delegation; nil if there is none.
func (z *Zone) Node(name string) *Node { return z.nodes[name] }

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
func (z *Zone) Match(name string) Match {
	var room [maxLabels]int
	starts := room[:0] // of the labels below the apex, leftmost first
	for at, end := 0, false; !end && len(name)-at > len(z.Name) && len(starts) < maxLabels; at, end = dns.NextLabel(name, at) {
		starts = append(starts, at)
	}
	encloser := z.apex
	for i := len(starts) - 1; i >= 0; i-- {
		n := z.nodes[name[starts[i]:]]
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
