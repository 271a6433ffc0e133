package dnsgeo

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/spec"
)

// A cut whose name server is the cut, is below it, or is below another cut whose server is below this one, has no end but in itself.
func TestADelegationToItselfIsAnsweredOnce(t *testing.T) {
	table := compile(t, worldSpec(t, `
		self  NS self.example.com.
		below NS ns.below.example.com.
		one   NS ns.two.example.com.
		two   NS ns.one.example.com.
		glued NS glued.example.com.
		glued A  192.0.2.1
	`))
	for question, want := range map[string]string{
		"x.self.example.com. A":   "NOERROR\nauthority self.example.com. 60 NS self.example.com.\n",
		"self.example.com. NS":    "NOERROR\nauthority self.example.com. 60 NS self.example.com.\n",
		"x.below.example.com. A":  "NOERROR\nauthority below.example.com. 60 NS ns.below.example.com.\n",
		"x.one.example.com. A":    "NOERROR\nauthority one.example.com. 60 NS ns.two.example.com.\n",
		"x.glued.example.com. A":  "NOERROR\nauthority glued.example.com. 60 NS glued.example.com.\nadditional glued.example.com. 60 A 192.0.2.1\n",
		"ns.below.example.com. A": "NOERROR\nauthority below.example.com. 60 NS ns.below.example.com.\n",
	} {
		if got := shown(table.Answer(worldView(), from(t, question, ""), nil)); got != want {
			t.Errorf("%s: got\n%swant\n%s", question, got, want)
		}
	}
}

func TestAliasesInACircleAreRefused(t *testing.T) {
	for what, records := range map[string]string{
		"to itself": "name: a, setIdentifier: x, weight: 1, alias: {record: a}",
		"of two":    "name: a, alias: {record: b}\nname: b, alias: {record: a}",
		"of three, in a tree": "name: a, setIdentifier: x, weight: 1, alias: {record: b}\nname: a, setIdentifier: y, weight: 1, values: [192.0.2.1]\n" +
			"name: b, alias: {record: c}\nname: c, alias: {record: a}",
	} {
		var b strings.Builder
		b.WriteString("kind: HostedZone\nname: example.com\nrecords:\n")
		for line := range strings.Lines(records) {
			b.WriteString("  - {type: A, " + strings.TrimSpace(line) + "}\n")
		}
		docs, err := spec.Split("test.yaml", []byte(b.String()))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := spec.Build(1, docs, spec.Options{}); err == nil || !strings.Contains(err.Error(), "alias") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Who says that he is another can have no more sent there than this: 512 bytes to a query without EDNS, what the query says with it, and
// never more than payloadSize. To ask for everything is worth no more than to ask for something.
func TestADatagramIsNeverAnsweredByMoreThanTheBound(t *testing.T) {
	var addresses, texts []string
	for i := range 60 {
		addresses = append(addresses, fmt.Sprintf("192.0.2.%d", i+1))
		texts = append(texts, fmt.Sprintf(`"%d %s"`, i, strings.Repeat("x", 200)))
	}
	s := serverOf(t, site+hot+"many A "+strings.Join(addresses, " ")+"\nmany TXT "+strings.Join(texts, " - ")+"\n")
	for _, name := range []string{"many.example.com.", "example.com.", "none.example.com.", "www.sub.example.com.", "tree.example.com.", "elsewhere.org."} {
		for _, typ := range []uint16{dns.TypeA, dns.TypeTXT, dns.TypeANY, dns.TypeNS, dns.TypeAXFR, dns.TypeDNSKEY} {
			for _, size := range []uint16{0, 1, 512, 900, 1232, 4096, 65535} {
				q := new(dns.Msg).SetQuestion(name, typ)
				if size > 0 {
					q.SetEdns0(size, true)
				}
				m, err := q.Pack()
				if err != nil {
					t.Fatal(err)
				}
				response := s.respond(make([]byte, roomSize), m, netip.MustParseAddr("192.0.2.53"), UDP)
				if most := min(max(512, int(size)), payloadSize); len(response) > most {
					t.Errorf("%s %s, size %d: %d bytes", name, dns.Type(typ), size, len(response))
				}
				if typ == dns.TypeANY && len(response) > len(m)+120 {
					t.Errorf("%s ANY: %d bytes to %d", name, len(response), len(m))
				}
			}
		}
	}
}
