package spec

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
)

func TestWhoMayUpdateWhat(t *testing.T) {
	z := mustBuild(t, `
{kind: TsigKey, name: a, secret: c2VjcmV0IG9mIHRoaXMgcGFnZSwga25vd24gdG8gYWxsIQ==}
---
{kind: TsigKey, name: b, secret: c2VjcmV0IG9mIHRoaXMgcGFnZSwga25vd24gdG8gYWxsIQ==}
---
kind: HostedZone
name: example.com
update:
  allow:
    - {key: a}
    - {key: b, names: ["@", www, "*.dyn", "*.abs.example.com."], types: [A, TXT]}
    - {key: b, names: [lab], types: [NS, DS]}
`).HostedZones["example.com"]
	for _, c := range []struct {
		key, owner, typ string
		may             bool
	}{
		{"a", "example.com.", "TXT", true},
		{"a", `x\032y.any.example.com.`, "MX", true},
		{"a", "lab.example.com.", "NS", false}, // what gives a part of the zone away is to be named
		{"a", "lab.example.com.", "DS", false},
		{"a", "old.example.com.", "DNAME", false},
		{"b", "example.com.", "A", true},
		{"b", "www.example.com.", "TXT", true},
		{"b", "www.example.com.", "AAAA", false},
		{"b", "a.www.example.com.", "A", false},
		{"b", "a.dyn.example.com.", "A", true},
		{"b", "b.a.dyn.example.com.", "A", true},
		{"b", "*.dyn.example.com.", "A", true},
		{"b", "dyn.example.com.", "A", false},
		{"b", "xdyn.example.com.", "A", false},
		{"b", `x\.dyn.example.com.`, "A", false}, // one label
		{"b", "a.abs.example.com.", "A", true},
		{"b", "lab.example.com.", "NS", true},
		{"b", "lab.example.com.", "A", false},
		{"", "www.example.com.", "A", false},
		{"c", "www.example.com.", "A", false},
	} {
		if may := z.MayUpdate(c.key, c.owner, c.typ); may != c.may {
			t.Errorf("%s may change %s %s: %t", c.key, c.owner, c.typ, may)
		}
	}
	for _, c := range []struct {
		key, owner string
		may        bool
	}{{"a", "", true}, {"b", "", true}, {"", "", false}, {"c", "", false}, {"b", "lab.example.com.", true}, {"b", "no.example.com.", false}} {
		if may := z.MayUpdateSome(c.key, c.owner); may != c.may {
			t.Errorf("%s may change something at %q: %t", c.key, c.owner, may)
		}
	}
}

const rewrittenZone = `# The zone of the office.
kind: HostedZone
name: example.com

records:
  # Where the name servers are.
  - {name: ns1, type: A, values: [198.51.100.53]} # the old one
  - name: www
    type: A
    # two of them
    values:
      - 192.0.2.1
      - 192.0.2.2

  # Mail.
  - {name: "@", type: MX, ttl: 1h,
     values: ["10 mail.example.net"]}
  - {name: txt, type: TXT, values: ['"a"']}
# The end.
labels: {team: net}
`

func TestRewritingAZoneKeepsWhatStandsAround(t *testing.T) {
	old := mustZone(t, rewrittenZone)
	next := *old
	www := old.Records.At(1)
	www.Values = []string{"192.0.2.9"}
	next.Records = RecordsOf(old.Records.At(0), www, old.Records.At(3), Record{Name: "new", Type: "TXT", TTL: seconds(60), Values: []string{`"it's"`}})
	got, ok := Rewritten(Document{Kind: "HostedZone", Name: "example.com", Bytes: []byte(rewrittenZone)}, old, &next, []int{0, 1, 3, -1})
	want := `# The zone of the office.
kind: HostedZone
name: example.com

records:
  # Where the name servers are.
  - {name: ns1, type: A, values: [198.51.100.53]} # the old one
  - {name: www, type: A, ttl: 300, values: [192.0.2.9]}

  # Mail.
  - {name: txt, type: TXT, values: ['"a"']}
  - {name: new, type: TXT, ttl: 60, values: ['"it''s"']}
# The end.
labels: {team: net}
`
	if !ok || string(got) != want {
		t.Errorf("%t\n%s", ok, got)
	}
	if z := mustZone(t, string(got)); !reflect.DeepEqual(z, &next) {
		t.Errorf("it means %+v, not %+v", z, &next)
	}
}

func TestWhatIsNotByLinesIsNotRewritten(t *testing.T) {
	for _, text := range []string{
		"{kind: HostedZone, name: example.com, records: [{name: a, type: A, values: [192.0.2.1]}, {name: b, type: A, values: [192.0.2.1]}]}\n",
		"kind: HostedZone\nname: example.com\nrecords: [{name: a, type: A, values: [192.0.2.1]},\n{name: b, type: A, values: [192.0.2.1]}]\n",
		"kind: HostedZone\r\nname: example.com\r\nrecords:\r\n- {name: a, type: A, values: [192.0.2.1]}\r\n- {name: b, type: A, values: [192.0.2.1]}\r\n",
	} {
		old := mustZone(t, text)
		next := *old
		next.Records = RecordsOf(old.Records.At(0))
		if got, ok := Rewritten(Document{Bytes: []byte(text)}, old, &next, []int{0}); ok {
			t.Errorf("%q became %q", text, got)
		}
	}
}

// Whatever is written in whichever way: what comes out means what was asked for.
func TestARewrittenZoneMeansWhatWasAskedFor(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	all := []string{
		"- {name: n%d, type: A, ttl: 60, values: [192.0.2.%d]}\n",
		"- name: n%d\n  type: A\n  ttl: 60\n  values: [192.0.2.%d]\n",
		"# over it\n- {name: n%d, type: A,\n   ttl: 60, values: [192.0.2.%d]}\n\n",
		"- {name: n%d, type: A, ttl: 60, values: [192.0.2.%d]} # beside\n",
	}
	laid := 0
	for round := range 300 {
		var b strings.Builder
		b.WriteString("kind: HostedZone\nname: example.com\nrecords:\n")
		count, forms := 1+random.IntN(6), all
		if round%8 == 0 {
			count, forms = count+leastLayout, all[:3] // which are read plainly
		}
		for i := range count {
			fmt.Fprintf(&b, forms[random.IntN(len(forms))], i, i)
		}
		if random.IntN(2) == 0 {
			b.WriteString("# last\nlabels: {a: b}\n")
		}
		changes := max(3, random.IntN(2)*count) // about one in so many
		text := b.String()
		if random.IntN(4) == 0 {
			text = strings.TrimSuffix(text, "\n")
		}
		old := mustZone(t, text)
		next := *old
		var records []Record
		var from []int
		for i, r := range old.Records.All() {
			switch random.IntN(changes) {
			case 0:
				r.Values = []string{"203.0.113.1"}
			case 1:
				continue
			}
			records, from = append(records, r), append(from, i)
		}
		for i := range random.IntN(3) {
			records = append(records, Record{Name: fmt.Sprintf("z%d", i), Type: "A", TTL: seconds(60), Values: []string{"203.0.113.2"}})
			from = append(from, -1)
		}
		next.Records = RecordsOf(records...)
		got, ok := Rewritten(Document{Bytes: []byte(text)}, old, &next, from)
		if !ok {
			t.Fatalf("not rewritten:\n%s", text)
		}
		if z := mustZone(t, string(got)); !z.Equal(&next) {
			t.Fatalf("%s became\n%s", text, got)
		}
		if old.layout == nil {
			continue
		}
		laid++
		bare := *old
		bare.layout = nil
		if other, ok := Rewritten(Document{Bytes: []byte(text)}, &bare, &next, from); !ok || string(got) != string(other) {
			t.Fatalf("%s became\n%sand, all of it looked at,\n%s", text, got, other)
		}
	}
	if laid < 20 {
		t.Errorf("only %d documents had a layout", laid)
	}
}

// mustZone is the zone that a document means.
func mustZone(t *testing.T, text string) *HostedZone {
	t.Helper()
	return mustBuild(t, text).HostedZones["example.com"]
}
