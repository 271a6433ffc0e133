package dnsgeo

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/cluster/view"
)

// Explanation is an answer and why it is so, for people.
type Explanation struct {
	Rcode     string       `json:"rcode"`               // NOERROR, NXDOMAIN …
	Answer    []string     `json:"answer,omitempty"`    // records in zone-file form
	Authority []string     `json:"authority,omitempty"` // of them, the SOA or the delegation
	Scope     int          `json:"scope"`               // bits of the client's address that the answer depends on
	Lines     []trace.Line `json:"lines"`               // the reasons
}

// String is the answer alone, a record a line; the rcode and the authority if it has none.
func (e Explanation) String() string {
	if len(e.Answer) > 0 {
		return strings.Join(e.Answer, "\n")
	}
	return strings.Join(append([]string{e.Rcode}, e.Authority...), "\n")
}

// Explain answers as Answer does and says why. Type is "A", "AAAA" …; from is where the client is, itself and not its
// resolver, or with a subnet who asks for a client there (RFC 7871, EDNS client subnet); random stands for chance.
func (t *Table) Explain(v *view.View, name, typ string, from netip.Addr, subnet netip.Prefix, random uint64) (Explanation, error) {
	qtype, ok := dns.StringToType[strings.ToUpper(typ)]
	if !ok {
		return Explanation{}, fmt.Errorf("explain %s: there is no type %q", name, typ)
	}
	if _, ok := dns.IsDomainName(name); !ok {
		return Explanation{}, fmt.Errorf("explain %q: no domain name", name)
	}
	q := Query{Name: dns.Fqdn(name), Type: qtype, Class: dns.ClassINET, Client: from, Random: random}
	if from = from.Unmap().WithZone(""); subnet.IsValid() {
		q.Client, q.ECS = from, subnet.Masked()
	} else if from.IsValid() {
		q.ECS = netip.PrefixFrom(from, from.BitLen())
	}
	tr := new(trace.Trace)
	a := t.Answer(v, q, tr)
	return Explanation{
		Rcode: dns.RcodeToString[a.Rcode], Answer: text(a.Answer), Authority: text(a.Authority),
		Scope: a.Scope, Lines: tr.Lines(),
	}, nil
}

// Explain is Explain of the table and view that the server answers by now.
func (s *Server) Explain(name, typ string, from netip.Addr, subnet netip.Prefix) (Explanation, error) {
	return s.table.Load().Explain(s.config.View(), name, typ, from, subnet, rand.Uint64())
}

func text(rrs []dns.RR) []string {
	var lines []string
	for _, rr := range rrs {
		lines = append(lines, strings.ReplaceAll(rr.String(), "\t", " "))
	}
	return lines
}
