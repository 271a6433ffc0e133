package node

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/dnsgeo"
	"github.com/perigee-net/perigee/dnsgeo/tsig"
	"github.com/perigee-net/perigee/node/api"
)

const updateSecret = "c2VjcmV0IG9mIHRoaXMgcGFnZSwga25vd24gdG8gYWxsIQ=="

const updatedZone = `# A zone that clients change.
kind: HostedZone
name: example.com
records:
  # The site.
  - {name: www, type: A, ttl: 60, values: [192.0.2.1]}
update: {allow: [{key: k}]}
`

const updateKey = "kind: TsigKey\nname: k\nsecret: " + updateSecret + "\n"

// wireUpdate is a signed update that adds texts at a name of example.com, if the name has no records of type prereq yet ("": whatever it has).
func wireUpdate(t testing.TB, now time.Time, name string, unless uint16, texts ...string) []byte {
	t.Helper()
	wire := func(name string) (b []byte) {
		for label := range strings.SplitSeq(name, ".") {
			b = append(append(b, byte(len(label))), label...)
		}
		return append(b, 0)
	}
	id := make([]byte, 2)
	rand.Read(id)
	owner := wire(name + ".example.com")
	m := append(id, 5<<3, 0, 0, 1, 0, 0, 0, byte(len(texts)), 0, 0)
	m = append(append(m, wire("example.com")...), 0, 6, 0, 1)
	if unless != 0 {
		m[7] = 1
		m = append(append(m, owner...), byte(unless>>8), byte(unless), 0, 254, 0, 0, 0, 0, 0, 0)
	}
	for _, text := range texts {
		m = append(append(m, owner...), 0, 16, 0, 1, 0, 0, 0, 60, 0, byte(1+len(text)), byte(len(text)))
		m = append(m, text...)
	}
	secret, err := base64.StdEncoding.DecodeString(updateSecret)
	if err != nil {
		t.Fatal(err)
	}
	m, _ = tsig.NewKey("k", []byte{1, 'k', 0}, "hmac-sha256", secret).Sign(m, tsig.MAC{}, now)
	return m
}

func updateBy(m []byte) api.NodeUpdate { return api.NodeUpdate{Message: m, Client: "198.51.100.7"} }

func TestAnUpdateIsAChangeOfTheZonesDocument(t *testing.T) {
	over := stateOf(t, updateKey, updatedZone)
	p, err := testPlanner().update(over, "a", updateBy(wireUpdate(t, time.Now(), "new", 0, "it's")))
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Replace(updatedZone, "update:", "  - {name: new, type: TXT, ttl: 60, values: ['\"it''s\"']}\nupdate:", 1)
	if got := string(p.change.Put[0].Bytes); got != want {
		t.Errorf("the document is\n%s", got)
	}
	if p.change.Author != "key k" || p.change.Note != "update of the zone from 198.51.100.7, at a" || !strings.HasPrefix(p.change.ID, "update ") {
		t.Errorf("the history has %q, %q, ID %q", p.change.Author, p.change.Note, p.change.ID)
	}
	if len(p.response.Changes) != 1 || p.response.Revision != over.state.Revision+1 {
		t.Errorf("it is answered with %+v", p.response)
	}
	// Again over what it led to, it has no effect.
	p, err = testPlanner().update(after(t, over, p), "a", updateBy(wireUpdate(t, time.Now(), "new", 0, "it's")))
	if err != nil || !p.empty() {
		t.Errorf("the same again changes %d, %v", len(p.change.Put), err)
	}
}

// What a release before took and this one would not is in the document, and nobody asks to change it.
func TestAnUpdateIsTakenBesideAnOldNotify(t *testing.T) {
	old := updatedZone + "transfer: {notify: [{address: 255.255.255.255}, {address: 'fe80::1'}]}\n"
	for name, zone := range map[string]string{
		"by lines":    old,
		"not by them": "{kind: HostedZone, name: example.com, update: {allow: [{key: k}]}, transfer: {notify: [{address: 'fe80::1'}]}}\n",
	} {
		before := testPlanner()
		before.options.Stored = true
		stood, err := before.apply(stateOf(t, updateKey), operator, api.ApplyRequest{Files: []api.File{fileOf("x.yaml", zone)}})
		if err != nil {
			t.Fatal(err)
		}
		p, err := testPlanner().update(after(t, stateOf(t, updateKey), stood), "a", updateBy(wireUpdate(t, time.Now(), "new", 0, "x")))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if z := p.spec.HostedZones["example.com"]; len(z.Transfer.Notify) == 0 {
			t.Errorf("%s: its peers are lost", name)
		}
	}
}

// Of a zone so large that it is kept where its records stand in the document, that does not make two zones differ.
func TestTheDocumentOfALargeZoneStaysAsItIsWritten(t *testing.T) {
	var many strings.Builder
	for i := range 200 {
		fmt.Fprintf(&many, "  - {name: host%d, type: A, ttl: 60, values: [192.0.2.1]}\n", i)
	}
	zone := strings.Replace(updatedZone, "update:", many.String()+"update:", 1)
	zone = strings.Replace(zone, "  # The site.\n", "", 1) // it is read by hand only without comments
	over := stateOf(t, updateKey, zone)
	for _, name := range []string{"new", "newer"} {
		p, err := testPlanner().update(over, "a", updateBy(wireUpdate(t, time.Now(), name, 0, "x")))
		if err != nil {
			t.Fatal(err)
		}
		zone = strings.Replace(zone, "update:", "  - {name: "+name+", type: TXT, ttl: 60, values: ['\"x\"']}\nupdate:", 1)
		if got := string(p.change.Put[0].Bytes); got != zone {
			t.Fatalf("the document is\n%s", got)
		}
		over = after(t, over, p)
	}
}

func TestADocumentThatIsNotByLinesIsWrittenAnew(t *testing.T) {
	over := stateOf(t, updateKey, "{kind: HostedZone, name: example.com, labels: {a: b}, update: {allow: [{key: k}]}}\n")
	p, err := testPlanner().update(over, "a", updateBy(wireUpdate(t, time.Now(), "new", 0, "x")))
	if err != nil {
		t.Fatal(err)
	}
	z := p.spec.HostedZones["example.com"]
	if z.Records.Len() != 1 || z.Labels["a"] != "b" || z.Update.Allow[0].Key != "k" {
		t.Errorf("it means %+v:\n%s", z, p.change.Put[0].Bytes)
	}
}

func TestWhatTheSpecRefusesIsNoUpdate(t *testing.T) {
	over := stateOf(t, updateKey, strings.Replace(updatedZone, "records:\n", "records:\n  - {name: moved, type: DNAME, values: [example.net]}\n", 1))
	for name, m := range map[string][]byte{
		"below a DNAME": wireUpdate(t, time.Now(), "x.moved", 0, "x"),
		"unmet":         wireUpdate(t, time.Now(), "www", 1, "x"),
		"of another key": func() []byte {
			m := wireUpdate(t, time.Now(), "new", 0, "x")
			m[len(m)-20] ^= 1
			return m
		}(),
		"not signed": wireUpdate(t, time.Now(), "new", 0, "x")[:40],
	} {
		_, err := testPlanner().update(over, "a", updateBy(m))
		no, ok := err.(*refusedUpdate)
		want := map[string]int{"below a DNAME": rcodeRefused, "unmet": 7, "of another key": 9, "not signed": 1}[name]
		if !ok || no.rcode != want {
			t.Errorf("%s: %v, want rcode %d", name, err, want)
		}
	}
	// The time was judged where it came.
	if _, err := testPlanner().update(over, "a", updateBy(wireUpdate(t, time.Now().Add(-time.Hour), "new", 0, "x"))); err != nil {
		t.Error(err)
	}
}

func TestUpdatesAtOnceAreAllTakenAndEachOnce(t *testing.T) {
	alone(t, func(t *testing.T, n *Node) {
		applied(t, n, updateKey+"---\n"+updatedZone)
		const many = 60
		var all sync.WaitGroup
		from := netip.MustParseAddr("198.51.100.7")
		for i := range many {
			m := wireUpdate(t, time.Now(), fmt.Sprintf("h%d", i%20), 0, fmt.Sprintf("v%d", i))
			for range 2 { // its client sends it again before it has heard
				all.Go(func() {
					if a := n.agreeOnUpdate(t.Context(), dnsgeo.Update{Message: m, Client: from}); a.Rcode != 0 {
						t.Errorf("%d: rcode %d: %s", i, a.Rcode, a.Why)
					}
				})
			}
		}
		// Of those that want to be the first at a name, one is.
		firsts := make([]int, 20)
		for i := range firsts {
			m := wireUpdate(t, time.Now(), "first", 16, fmt.Sprintf("v%d", i))
			all.Go(func() { firsts[i] = n.agreeOnUpdate(t.Context(), dnsgeo.Update{Message: m, Client: from}).Rcode })
		}
		all.Wait()
		z := n.running.Get().spec.HostedZones["example.com"]
		values := map[string]int{}
		for _, r := range z.Records.All() {
			values[r.Name] = len(r.Values)
		}
		for i := range 20 {
			if values[fmt.Sprintf("h%d", i)] != many/20 {
				t.Errorf("h%d has %d values", i, values[fmt.Sprintf("h%d", i)])
			}
		}
		won := 0
		for _, rcode := range firsts {
			switch rcode {
			case 0:
				won++
			case 7: // YXRRSET
			default:
				t.Errorf("rcode %d", rcode)
			}
		}
		if won != 1 || values["first"] != 1 {
			t.Errorf("%d were the first, and %d values are there", won, values["first"])
		}
		history, err := n.history(api.HistoryQuery{Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		byKey := 0
		for _, r := range history.Records {
			if r.Author == "key k" {
				byKey++
			}
		}
		if byKey != many+1 {
			t.Errorf("the history has %d changes by the key, want %d", byKey, many+1)
		}
	})
}

// One that was recorded and is sent again is answered as it was, and undoes nothing that came after it.
func TestARecordedUpdateIsNotDoneAgain(t *testing.T) {
	alone(t, func(t *testing.T, n *Node) {
		applied(t, n, updateKey+"---\n"+updatedZone)
		m := wireUpdate(t, time.Now(), "a", 0, "x")
		update := dnsgeo.Update{Message: m, Client: netip.MustParseAddr("198.51.100.7")}
		if a := n.agreeOnUpdate(t.Context(), update); a.Rcode != 0 {
			t.Fatal(a)
		}
		applied(t, n, updatedZone) // without it
		synctest.Wait()
		revision := n.running.Get().spec.Revision
		update.Message[0]++ // of the header, which is not signed (RFC 8945 §4.2: the original ID is)
		if a := n.agreeOnUpdate(t.Context(), update); a.Rcode != 0 {
			t.Fatal(a)
		}
		synctest.Wait()
		if now := n.running.Get().spec; now.Revision != revision || now.HostedZones["example.com"].Records.Len() != 1 {
			t.Errorf("revision %d became %d, with %d records", revision, now.Revision, now.HostedZones["example.com"].Records.Len())
		}
	})
}
