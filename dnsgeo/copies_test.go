package dnsgeo

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/dnsgeo/secondary"
	"github.com/perigee-net/perigee/dnsgeo/zone"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// primary is a name server of miekg/dns with one zone, which keeps its versions.
type primary struct {
	t    *testing.T
	at   netip.AddrPort
	host *memnet.Host

	mu       sync.Mutex
	versions [][]dns.RR // the SOA first
	brisk    bool       // its zone is refreshed each 300 s, and after 60 s again
	key      string     // "": it takes what is not signed, too
	asked    []string   // what it was asked: SOA, AXFR, IXFR
	// lie answers a transfer in its own way; nil: as is right.
	lie func(w dns.ResponseWriter, q *dns.Msg)
}

// parsed are records of lines in zone-file form, in the zone and with TTLs of a minute.
func parsed(t testing.TB, lines string) (all []dns.RR) {
	t.Helper()
	z := dns.NewZoneParser(strings.NewReader("$ORIGIN example.com.\n$TTL 60\n"+strings.ReplaceAll(lines, "\t", "")), "", "")
	for rr, ok := z.Next(); ok; rr, ok = z.Next() {
		all = append(all, rr)
	}
	if err := z.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

func soaLine(serial uint32) string {
	return fmt.Sprintf("@ SOA ns.example.com. me.example.com. %d 3600 600 86400 30\n", serial)
}

// set makes the primary's zone one with a serial and records, and NS.
func (p *primary) set(serial uint32, lines string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	soa := soaLine(serial)
	if p.brisk {
		soa = strings.Replace(soa, "3600 600", "300 60", 1)
	}
	p.versions = append(p.versions, parsed(p.t, soa+"@ NS ns.example.com.\n"+lines))
}

func (p *primary) took() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	asked := p.asked
	p.asked = nil
	return asked
}

func (p *primary) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	p.mu.Lock()
	defer p.mu.Unlock()
	typ := q.Question[0].Qtype
	p.asked = append(p.asked, dns.TypeToString[typ])
	r := new(dns.Msg).SetReply(q)
	r.Authoritative = true
	signature := q.IsTsig()
	if signature != nil && w.TsigStatus() == nil {
		r.SetTsig(signature.Hdr.Name, signature.Algorithm, 300, time.Now().Unix())
	}
	if len(p.versions) == 0 || (p.key != "" && (signature == nil || w.TsigStatus() != nil || signature.Hdr.Name != p.key)) {
		r.Rcode = dns.RcodeRefused
		_ = w.WriteMsg(r)
		return
	}
	now := p.versions[len(p.versions)-1]
	if typ == dns.TypeSOA {
		r.Answer = now[:1]
		_ = w.WriteMsg(r)
		return
	}
	if p.lie != nil {
		p.lie(w, q)
		return
	}
	records := append(slices.Clone(now), now[0])
	if typ == dns.TypeIXFR {
		serial := q.Ns[0].(*dns.SOA).Serial
		if from := slices.IndexFunc(p.versions, func(v []dns.RR) bool { return v[0].(*dns.SOA).Serial == serial }); from >= 0 {
			records = differences(p.versions[from:])
		}
	}
	p.send(w, q, records)
}

// differences are what leads from the first version to the last (RFC 1995 §4).
func differences(versions [][]dns.RR) (all []dns.RR) {
	last := versions[len(versions)-1][0]
	all = []dns.RR{last}
	without := func(a, b []dns.RR) (rest []dns.RR) {
		for _, rr := range a[1:] {
			if !slices.ContainsFunc(b[1:], func(o dns.RR) bool { return rr.String() == o.String() }) {
				rest = append(rest, rr)
			}
		}
		return rest
	}
	for i := range versions[1:] {
		a, b := versions[i], versions[i+1]
		all = append(append(all, a[0]), without(a, b)...)
		all = append(append(all, b[0]), without(b, a)...)
	}
	if len(versions) == 1 {
		return all
	}
	return append(all, last)
}

// send sends records, three a message, each message signed if the query is.
func (p *primary) send(w dns.ResponseWriter, q *dns.Msg, records []dns.RR) {
	out := make(chan *dns.Envelope)
	var sent sync.WaitGroup
	sent.Go(func() { _ = new(dns.Transfer).Out(w, q, out) })
	for part := range slices.Chunk(records, 3) {
		out <- &dns.Envelope{RR: part}
	}
	close(out)
	sent.Wait()
}

// network is an internet with a primary at 192.0.2.1, perhaps others, and one node or some.
type network struct {
	t     *testing.T
	in    *memnet.Internet
	close []func()
	nodes map[string]*Server
	said  map[string]map[string][]byte // by node and ID
	mu    sync.Mutex
}

// copying runs f in a bubble with a network in it, which ends with it.
func copying(t *testing.T, f func(t *testing.T, n *network)) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{t: t, in: memnet.New(1), nodes: map[string]*Server{}, said: map[string]map[string][]byte{}}
		f(t, n)
		for _, s := range n.nodes {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
		for _, end := range n.close {
			end()
		}
		n.in.Close()
	})
}

func (n *network) primary(address string) *primary {
	n.t.Helper()
	p := &primary{t: n.t, at: netip.AddrPortFrom(netip.MustParseAddr(address), 53)}
	p.host = n.in.Host(address, spec.Location{}, p.at.Addr())
	p.serve(n)
	return p
}

// serve has it answer until the network ends.
func (p *primary) serve(n *network) {
	l, err := p.host.Listen("tcp", p.at.String())
	if err != nil {
		n.t.Fatal(err)
	}
	server := &dns.Server{Listener: l, Handler: p, TsigSecret: map[string]string{"k.": tsigSecret, "other.": tsigSecret, "wrong.": "YW5vdGhlciBzZWNyZXQgb2YgdGhlc2UgdGVzdHM="}}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.ActivateAndServe()
	}()
	synctest.Wait()
	n.close = append(n.close, func() {
		_ = server.Shutdown()
		_ = l.Close()
		<-ended
	})
}

// node is a server of a view, whose copies are in a folder if one is named.
func (n *network) node(name, dir string, v *view.View) *Server {
	n.t.Helper()
	host := n.in.Host(name, spec.Location{}, netip.AddrFrom4([4]byte{10, 0, 0, byte(len(n.nodes) + 1)}))
	n.said[name] = map[string][]byte{}
	s := New(Config{Name: name, View: func() *view.View { return v }, Dial: host.Dial, Copies: Copies{
		Dir: dir,
		Say: func(id string, what []byte) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.said[name][id] = what
		},
	}})
	n.nodes[name] = s
	return s
}

// copied is a spec with a secondary zone of primaries.
func copied(t *testing.T, revision uint64, primaries ...spec.ZonePeer) *spec.Spec {
	s := allowing(t, "")
	s.Revision = revision
	s.HostedZones = map[string]*spec.HostedZone{"example.com": {Name: "example.com", Primaries: primaries}}
	return s
}

// answered is what a server answers to a question, as text, from an address.
func answered(t *testing.T, s *Server, question string) string {
	t.Helper()
	name, typ, _ := strings.Cut(question, " ")
	number, known := dns.StringToType[typ]
	if !known {
		_, _ = fmt.Sscanf(typ, "TYPE%d", &number)
	}
	q := new(dns.Msg).SetQuestion(name, number)
	q.SetEdns0(1232, false)
	m := unpacked(t, s.respond(make([]byte, roomSize), must(q.Pack()), netip.MustParseAddr("10.9.0.1"), TCP))
	a := Answer{Rcode: m.Rcode, Authoritative: m.Authoritative, Answer: m.Answer, Authority: m.Ns}
	text := shown(a)
	for _, option := range m.IsEdns0().Option {
		if ede, ok := option.(*dns.EDNS0_EDE); ok {
			text += fmt.Sprintf("EDE %d\n", ede.InfoCode)
		}
	}
	return text
}

// says is what a server answers to a question, which has to be it.
func says(t *testing.T, s *Server, question, want string) {
	t.Helper()
	if got, want := answered(t, s, question), trim(want); got != want {
		t.Errorf("%s: got\n%swant\n%s", question, got, want)
	}
}

// notify tells a server that a zone has changed, and returns the rcode of its answer.
func notify(t *testing.T, s *Server, from, zone, key string) int {
	t.Helper()
	q := new(dns.Msg).SetNotify(zone)
	m := must(q.Pack())
	if key != "" {
		q.SetTsig(key, dns.HmacSHA256, 300, time.Now().Unix())
		var err error
		if m, _, err = dns.TsigGenerate(q, tsigSecret, "", false); err != nil {
			t.Fatal(err)
		}
	}
	r := unpacked(t, s.respond(make([]byte, roomSize), m, netip.MustParseAddr(from), UDP))
	if !r.Response || r.Opcode != dns.OpcodeNotify || r.Id != q.Id || r.Authoritative != (r.Rcode == dns.RcodeSuccess) {
		t.Errorf("got %v", r)
	}
	return r.Rcode
}

func (n *network) apply(s *Server, to *spec.Spec) {
	n.t.Helper()
	if err := s.Apply(to); err != nil {
		n.t.Fatal(err)
	}
}

const webPage = "www A 192.0.2.80\n*.wild TXT \"any\"\nsub NS ns.sub\nns.sub A 192.0.2.9\nodd TYPE65280 \\# 2 abcd\nalias CNAME www\n"

func TestASecondaryZoneIsAnsweredAsItsPrimaryHasIt(t *testing.T) {
	copying(t, func(t *testing.T, n *network) {
		p, s := n.primary("192.0.2.1"), n.node("a", "", nil)
		p.set(17, webPage)
		n.apply(s, copied(t, 1, peer("192.0.2.1", "")))
		says(t, s, "www.example.com. A", "SERVFAIL\nEDE 14")
		time.Sleep(time.Second)
		soa := "authority example.com. 30 SOA ns.example.com. me.example.com. 17 3600 600 86400 30"
		says(t, s, "www.example.com. A", "NOERROR aa\nwww.example.com. 60 A 192.0.2.80")
		says(t, s, "alias.example.com. A", "NOERROR aa\nalias.example.com. 60 CNAME www.example.com.\nwww.example.com. 60 A 192.0.2.80")
		says(t, s, "a.wild.example.com. TXT", "NOERROR aa\na.wild.example.com. 60 TXT \"any\"")
		says(t, s, "odd.example.com. TYPE65280", "NOERROR aa\nodd.example.com. 60 CLASS1 TYPE65280 \\# 2 abcd")
		says(t, s, "none.example.com. A", "NXDOMAIN aa\n"+soa)
		says(t, s, "www.example.com. AAAA", "NOERROR aa\n"+soa)
		says(t, s, "example.com. NS", "NOERROR aa\nexample.com. 60 NS ns.example.com.")
		says(t, s, "example.com. SOA", "NOERROR aa\nexample.com. 60 SOA ns.example.com. me.example.com. 17 3600 600 86400 30")
		says(t, s, "x.sub.example.com. A", "NOERROR\nauthority sub.example.com. 60 NS ns.sub.example.com.")
		says(t, s, "ns-icn1.example.com. A", "NXDOMAIN aa\n"+soa) // ours are not in it
		if got := p.took(); !slices.Equal(got, []string{"SOA", "AXFR"}) {
			t.Errorf("it was asked for %q", got)
		}
		e, err := s.Explain("www.example.com", "A", netip.MustParseAddr("10.9.0.1"), netip.Prefix{})
		if err != nil || !strings.Contains(fmt.Sprint(e.Lines), "copy of its primary's, serial 17") {
			t.Errorf("explained as %v, %v", e.Lines, err)
		}
	})
}

func TestAChangeIsTakenWhenItIsToldOrFound(t *testing.T) {
	copying(t, func(t *testing.T, n *network) {
		p, s := n.primary("192.0.2.1"), n.node("a", "", nil)
		p.set(17, webPage)
		n.apply(s, copied(t, 1, peer("192.0.2.1", "")))
		time.Sleep(time.Minute)
		p.took()
		p.set(18, strings.Replace(webPage, "192.0.2.80", "192.0.2.81", 1))
		if rcode := notify(t, s, "192.0.2.1", "example.com.", ""); rcode != dns.RcodeSuccess {
			t.Errorf("the answer is %s", dns.RcodeToString[rcode])
		}
		time.Sleep(time.Second)
		says(t, s, "www.example.com. A", "NOERROR aa\nwww.example.com. 60 A 192.0.2.81")
		if got := p.took(); !slices.Equal(got, []string{"SOA", "IXFR"}) {
			t.Errorf("told, it asked for %q", got)
		}
		p.set(19, webPage)
		p.set(20, webPage+"more A 192.0.2.7\n")
		time.Sleep(3600 * time.Second)
		says(t, s, "more.example.com. A", "NOERROR aa\nmore.example.com. 60 A 192.0.2.7")
		says(t, s, "www.example.com. A", "NOERROR aa\nwww.example.com. 60 A 192.0.2.80")
		if got := p.took(); !slices.Equal(got, []string{"SOA", "IXFR"}) {
			t.Errorf("after an hour, it had asked for %q", got)
		}
		// Differences that do not fit: those of another zone's history.
		p.mu.Lock()
		p.versions[len(p.versions)-1] = append(p.versions[len(p.versions)-1], parsed(t, "stray A 192.0.2.66")...)
		p.mu.Unlock()
		p.set(21, webPage)
		notify(t, s, "192.0.2.1", "example.com.", "")
		time.Sleep(time.Second)
		says(t, s, "example.com. SOA", "NOERROR aa\nexample.com. 60 SOA ns.example.com. me.example.com. 21 3600 600 86400 30")
		if got := p.took(); !slices.Equal(got, []string{"SOA", "IXFR", "AXFR"}) {
			t.Errorf("of no use, it asked for %q", got)
		}
		c := s.Counters()
		for name, want := range map[string]uint64{"dns_secondary_taken_total": 4, "dns_secondary_taken_changes_total": 2, "dns_secondary_fallbacks_total": 1, "dns_notifies_in_total": 2} {
			if c[name] != want {
				t.Errorf("%s is %d, want %d", name, c[name], want)
			}
		}
	})
}

func TestNotifyIsTakenFromPrimariesOnlyAndNotOftenObeyed(t *testing.T) {
	copying(t, func(t *testing.T, n *network) {
		p, s := n.primary("192.0.2.1"), n.node("a", "", nil)
		p.set(17, webPage)
		to := copied(t, 1, peer("192.0.2.1", ""), peer("192.0.2.2", "k"))
		to.HostedZones["own.example"] = &spec.HostedZone{Name: "own.example"}
		n.apply(s, to)
		time.Sleep(time.Minute)
		p.took()
		for _, test := range []struct {
			from, zone, key string
			want            int
		}{
			{"192.0.2.1", "example.com.", "", dns.RcodeSuccess},
			{"192.0.2.3", "example.com.", "", dns.RcodeRefused},
			{"192.0.2.2", "example.com.", "", dns.RcodeRefused},       // whose messages are to be signed
			{"192.0.2.9", "example.com.", "k.", dns.RcodeSuccess},     // wherever it is
			{"192.0.2.2", "example.com.", "other.", dns.RcodeRefused}, // by another key; of SHA-512, besides
			{"192.0.2.1", "www.example.com.", "", dns.RcodeNotAuth},
			{"192.0.2.1", "own.example.", "", dns.RcodeNotAuth},
			{"192.0.2.1", "example.net.", "", dns.RcodeNotAuth},
		} {
			if test.key == "other." {
				test.want = dns.RcodeNotAuth // BADKEY
				q := new(dns.Msg).SetNotify(test.zone)
				q.SetTsig(test.key, dns.HmacSHA256, 300, time.Now().Unix())
				m, _, err := dns.TsigGenerate(q, tsigSecret, "", false)
				if err != nil {
					t.Fatal(err)
				}
				if r := unpacked(t, s.respond(make([]byte, roomSize), m, netip.MustParseAddr(test.from), UDP)); r.Rcode != test.want {
					t.Errorf("%+v: got %v", test, r)
				}
				continue
			}
			if got := notify(t, s, test.from, test.zone, test.key); got != test.want {
				t.Errorf("%+v: the answer is %s", test, dns.RcodeToString[got])
			}
		}
		c := s.Counters()
		if c["dns_notifies_in_total"] != 2 || c["dns_notifies_in_refused_total"] != 2 || c["dns_notifies_in_stray_total"] != 3 {
			t.Errorf("counted %v", c)
		}
		time.Sleep(time.Minute)
		p.took()
		for range 1000 { // in 100 s
			notify(t, s, "192.0.2.1", "example.com.", "")
			time.Sleep(100 * time.Millisecond)
		}
		if got := p.took(); len(got) < 19 || len(got) > 21 {
			t.Errorf("told a thousand times, it was asked %d times", len(got))
		}
	})
}

func TestSignaturesAreHeldToWhatTheSpecSays(t *testing.T) {
	for _, test := range []struct {
		name, theirs, ours, problem string
	}{
		{"by the key", "k.", "k", ""},
		{"by no key, where it wants one", "k.", "", "192.0.2.1:53: ask for the SOA: the answer is REFUSED"},
		{"by another key", "k.", "other", "192.0.2.1:53: ask for the SOA: the answer is REFUSED"},
		{"by another secret", "k.", "wrong", "192.0.2.1:53: ask for the SOA: a message is not signed, and says REFUSED"},
		{"by a key that is not in the spec any more", "k.", "gone", "192.0.2.1:53: no key gone"},
	} {
		t.Run(test.name, func(t *testing.T) {
			copying(t, func(t *testing.T, n *network) {
				p, s := n.primary("192.0.2.1"), n.node("a", "", nil)
				p.key = test.theirs
				p.set(17, webPage)
				to := copied(t, 1, peer("192.0.2.1", test.ours))
				if test.ours == "wrong" {
					wrong := *to.TsigKeys["other"]
					wrong.Name = "wrong"
					to.TsigKeys["wrong"] = &wrong
				}
				n.apply(s, to)
				time.Sleep(time.Second)
				state := s.CopyStates()[0]
				if state.Problem != test.problem || state.Has != (test.problem == "") {
					t.Errorf("%+v", state)
				}
			})
		})
	}
}

// raw has the answers to transfers be messages made by f, of records in zone-file form, one after the other.
func raw(f func(q *dns.Msg, send func(records string))) func(w dns.ResponseWriter, q *dns.Msg) {
	return func(w dns.ResponseWriter, q *dns.Msg) {
		f(q, func(records string) {
			r := new(dns.Msg).SetReply(q)
			r.Authoritative = true
			z := dns.NewZoneParser(strings.NewReader("$ORIGIN example.com.\n$TTL 60\n"+records), "", "")
			for rr, ok := z.Next(); ok; rr, ok = z.Next() {
				r.Answer = append(r.Answer, rr)
			}
			_ = w.WriteMsg(r)
		})
	}
}

func TestWhatALyingPrimarySendsChangesNothing(t *testing.T) {
	for _, test := range []struct {
		name string
		lie  func(q *dns.Msg, send func(records string))
		want string // in the problem
		wait time.Duration
	}{
		{"no last SOA, and silence", func(_ *dns.Msg, send func(string)) { send(soaLine(18) + "@ NS ns\nwww A 203.0.113.1\n") }, "EOF", 25 * time.Second},
		{"a stream without an end", func(_ *dns.Msg, send func(string)) {
			send(soaLine(18) + "@ NS ns\n")
			for i := range 1000 {
				send(fmt.Sprintf("a%d A 203.0.113.1\n", i))
				time.Sleep(5 * time.Second)
			}
		}, "", 11 * time.Minute},
		{"an outside record", func(_ *dns.Msg, send func(string)) {
			send(soaLine(18) + "@ NS ns\nwww.example.net. A 203.0.113.1\n" + soaLine(18))
		}, "outside of the zone", time.Second},
		{"another zone", func(_ *dns.Msg, send func(string)) { send("example.net. SOA a. b. 18 1 1 1 1\n") }, "outside of the zone", time.Second},
		{"an older version", func(_ *dns.Msg, send func(string)) { send(soaLine(16) + "@ NS ns\nwww A 203.0.113.1\n" + soaLine(16)) }, "older serial", time.Second},
		{"the version before again", func(_ *dns.Msg, send func(string)) { send(soaLine(17)) }, "nothing newer than 17", 25 * time.Second},
		{"a refusal", func(q *dns.Msg, send func(string)) { send("") }, "no answer", time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			copying(t, func(t *testing.T, n *network) {
				p, s := n.primary("192.0.2.1"), n.node("a", "", nil)
				p.set(17, webPage)
				n.apply(s, copied(t, 1, peer("192.0.2.1", "")))
				time.Sleep(time.Minute)
				p.mu.Lock()
				p.lie = raw(test.lie)
				p.mu.Unlock()
				p.set(18, webPage)
				notify(t, s, "192.0.2.1", "example.com.", "")
				time.Sleep(test.wait)
				state := s.CopyStates()[0]
				if !strings.Contains(state.Problem, test.want) || state.Problem == "" || state.Serial != 17 {
					t.Errorf("%+v", state)
				}
				says(t, s, "www.example.com. A", "NOERROR aa\nwww.example.com. 60 A 192.0.2.80")
				if c := s.Counters(); c["dns_secondary_failed_total"] == 0 || c["dns_secondary_taken_total"] != 1 {
					t.Errorf("counted %d failures, %d versions", c["dns_secondary_failed_total"], c["dns_secondary_taken_total"])
				}
			})
		})
	}
}

func TestAZoneThatNobodyConfirmsExpiresAndComesBack(t *testing.T) {
	copying(t, func(t *testing.T, n *network) {
		var turned []string
		p, s := n.primary("192.0.2.1"), n.node("a", t.TempDir(), nil)
		s.config.Copies.Turned = func(zone, what string) { turned = append(turned, zone+": "+what) }
		p.set(17, webPage)
		n.apply(s, copied(t, 1, peer("192.0.2.1", "")))
		time.Sleep(time.Second)
		p.host.Kill()
		time.Sleep(86400*time.Second - 2*time.Second)
		says(t, s, "www.example.com. A", "NOERROR aa\nwww.example.com. 60 A 192.0.2.80")
		time.Sleep(2 * time.Second)
		says(t, s, "www.example.com. A", "SERVFAIL\nEDE 24")
		says(t, s, "example.com. AXFR", "SERVFAIL\nEDE 24")
		if z, _, err := s.disk().Load("example.com"); z != nil || err != nil {
			t.Errorf("the disk has %v, %v", z, err)
		}
		p.host.Restart()
		p.serve(n)
		time.Sleep(lastRetryOfCopies)
		synctest.Wait()
		says(t, s, "www.example.com. A", "NOERROR aa\nwww.example.com. 60 A 192.0.2.80")
		want := []string{
			"example.com: serial 17, from 192.0.2.1:53 (whole)", "example.com: expired: no primary has confirmed it",
			"example.com: serial 17, from 192.0.2.1:53 (whole)",
		}
		if !slices.Equal(turned, want) {
			t.Errorf("told %q", turned)
		}
	})
}

// lastRetryOfCopies is the longest pause of secondary where there is nothing yet.
const lastRetryOfCopies = 10*time.Minute + time.Second

func TestTheNextPrimaryIsAskedWhereOneIsOfNoUse(t *testing.T) {
	copying(t, func(t *testing.T, n *network) {
		first, second, s := n.primary("192.0.2.1"), n.primary("192.0.2.2"), n.node("a", "", nil)
		first.set(17, webPage)
		second.set(17, webPage)
		n.apply(s, copied(t, 1, peer("192.0.2.1", ""), peer("192.0.2.2", "")))
		time.Sleep(time.Minute)
		if got := second.took(); len(got) != 0 {
			t.Errorf("while the first answers, the second was asked for %q", got)
		}
		// Told by the second, of what the first does not have yet.
		second.set(18, webPage)
		notify(t, s, "192.0.2.2", "example.com.", "")
		time.Sleep(time.Second)
		if state := s.CopyStates()[0]; state.Serial != 18 {
			t.Errorf("%+v", state)
		}
		// The first has an older version now, which is of no use; its refresh goes to the second.
		time.Sleep(3601 * time.Second)
		if state := s.CopyStates()[0]; state.Problem != "" || time.Since(state.Confirmed) > time.Hour {
			t.Errorf("%+v", state)
		}
		if c := s.Counters(); c["dns_secondary_older_total"] == 0 {
			t.Errorf("counted %v", c)
		}
		first.host.Kill()
		second.set(19, webPage)
		time.Sleep(3700 * time.Second)
		if state := s.CopyStates()[0]; state.Serial != 19 {
			t.Errorf("%+v", state)
		}
	})
}

func TestARestartedNodeAnswersAtOnceWhatStillStands(t *testing.T) {
	dir := t.TempDir()
	copying(t, func(t *testing.T, n *network) {
		p, s := n.primary("192.0.2.1"), n.node("a", dir, nil)
		p.set(17, webPage)
		n.apply(s, copied(t, 1, peer("192.0.2.1", "")))
		time.Sleep(10 * time.Hour)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		p.set(18, webPage+"more A 192.0.2.7\n")
		time.Sleep(13 * time.Hour)
		again := n.node("a2", dir, nil)
		n.apply(again, copied(t, 1, peer("192.0.2.1", "")))
		says(t, again, "www.example.com. A", "NOERROR aa\nwww.example.com. 60 A 192.0.2.80")
		says(t, again, "more.example.com. A", "NXDOMAIN aa\nauthority example.com. 30 SOA ns.example.com. me.example.com. 17 3600 600 86400 30")
		time.Sleep(10 * time.Second) // what was told meanwhile was missed
		says(t, again, "more.example.com. A", "NOERROR aa\nmore.example.com. 60 A 192.0.2.7")
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
		p.host.Kill()
		time.Sleep(25 * time.Hour)
		late := n.node("a3", dir, nil)
		n.apply(late, copied(t, 1, peer("192.0.2.1", "")))
		says(t, late, "www.example.com. A", "SERVFAIL\nEDE 14")
	})
}

func TestADamagedFileIsTakenAnew(t *testing.T) {
	dir := t.TempDir()
	copying(t, func(t *testing.T, n *network) {
		p, s := n.primary("192.0.2.1"), n.node("a", dir, nil)
		p.set(17, webPage)
		if err := s.disk().Save("example.com", mustZone(t, soaLine(17)+"@ NS ns\nwww A 203.0.113.1\n"), time.Now()); err != nil {
			t.Fatal(err)
		}
		damage(t, dir)
		n.apply(s, copied(t, 1, peer("192.0.2.1", "")))
		says(t, s, "www.example.com. A", "SERVFAIL\nEDE 14")
		time.Sleep(time.Second)
		says(t, s, "www.example.com. A", "NOERROR aa\nwww.example.com. 60 A 192.0.2.80")
		if c := s.Counters(); c["dns_secondary_damaged_total"] != 1 {
			t.Errorf("counted %v", c)
		}
	})
}

func TestAZoneGoesAndComesWithTheSpec(t *testing.T) {
	dir := t.TempDir()
	copying(t, func(t *testing.T, n *network) {
		p, s := n.primary("192.0.2.1"), n.node("a", dir, nil)
		p.set(17, webPage)
		n.apply(s, copied(t, 1, peer("192.0.2.1", "")))
		time.Sleep(time.Second)
		// What else changes leaves it as it is.
		next := copied(t, 2, peer("192.0.2.1", ""))
		next.HostedZones["example.com"].Transfer.Allow = []spec.TransferAllow{{CIDRs: cidrs("10.9.0.0/16")}}
		n.apply(s, next)
		says(t, s, "www.example.com. A", "NOERROR aa\nwww.example.com. 60 A 192.0.2.80")
		// A zone of one's own has nothing of it.
		own := copied(t, 3)
		own.HostedZones["example.com"] = &spec.HostedZone{Name: "example.com", Records: recordsOf(t, "own A 192.0.2.5")}
		n.apply(s, own)
		says(t, s, "own.example.com. A", "NOERROR aa\nown.example.com. 60 A 192.0.2.5")
		if got := answered(t, s, "www.example.com. A"); !strings.HasPrefix(got, "NXDOMAIN") {
			t.Errorf("got %s", got)
		}
		if len(s.CopyStates()) != 0 || n.said["a"][secondary.ID("example.com")] != nil {
			t.Errorf("it is kept: %v", s.CopyStates())
		}
		if z, _, err := s.disk().Load("example.com"); z != nil || err != nil {
			t.Errorf("the disk has %v, %v", z, err)
		}
		n.apply(s, copied(t, 4, peer("192.0.2.1", "")))
		says(t, s, "own.example.com. A", "SERVFAIL\nEDE 14")
		time.Sleep(time.Second)
		says(t, s, "www.example.com. A", "NOERROR aa\nwww.example.com. 60 A 192.0.2.80")
		gone := copied(t, 5)
		delete(gone.HostedZones, "example.com")
		n.apply(s, gone)
		says(t, s, "www.example.com. A", "REFUSED\nEDE 20")
	})
}

func TestASecondaryZoneIsTransferredOnAndItsOwnSecondariesAreTold(t *testing.T) {
	copying(t, func(t *testing.T, n *network) {
		p, s := n.primary("192.0.2.1"), n.node("a", "", nil)
		others := &secondaries{t: t, began: time.Now()}
		others.answer = func(m *dns.Msg, mac string) []byte { return responseTo(m, mac, dns.RcodeSuccess) }
		dial := s.config.Dial
		s.config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			if network == "udp" {
				return others.dial(ctx, network, address)
			}
			return dial(ctx, network, address)
		}
		p.set(17, webPage)
		to := copied(t, 1, peer("192.0.2.1", ""))
		to.HostedZones["example.com"].Transfer = spec.ZoneTransfer{Allow: []spec.TransferAllow{{CIDRs: cidrs("10.1.0.53/32")}}, Notify: []spec.ZonePeer{peer("192.0.2.77", "")}}
		n.apply(s, to)
		time.Sleep(time.Minute)
		d := newDoor()
		go s.ServeStream(d)
		synctest.Wait()
		conn := d.dialFrom(netip.MustParseAddr("10.1.0.53"))
		defer conn.Close()
		got, _, err := transferred(conn, axfr("example.com."), "")
		if err != nil {
			t.Fatal(err)
		}
		p.mu.Lock()
		want := sorted(append(slices.Clone(p.versions[0]), p.versions[0][0]))
		p.mu.Unlock()
		if lines := sorted(got); !slices.Equal(lines, want) {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
		}
		if len(others.told) != 1 || !strings.HasSuffix(others.told[0], "192.0.2.77:53 example.com.") {
			t.Errorf("told %q", others.told)
		}
	})
}

// What has changed in a secondary zone is sent on alone, to other name servers and between the nodes; by the serials of its primary.
func TestWhatHasChangedInASecondaryZoneIsTransferredOn(t *testing.T) {
	copying(t, func(t *testing.T, n *network) {
		p, s := n.primary("192.0.2.1"), n.node("a", "", nil)
		var lines []string
		for i := range 40 {
			lines = append(lines, fmt.Sprintf("host%d A 192.0.2.%d\n", i, i))
		}
		set := func(serial uint32) {
			p.set(serial, strings.Join(lines, ""))
			notify(t, s, "192.0.2.1", "example.com.", "")
			time.Sleep(10 * time.Second)
		}
		to := copied(t, 1, peer("192.0.2.1", ""))
		to.HostedZones["example.com"].Transfer = spec.ZoneTransfer{Allow: []spec.TransferAllow{{CIDRs: cidrs("10.1.0.53/32")}}}
		p.set(4_294_967_290, strings.Join(lines, ""))
		n.apply(s, to)
		time.Sleep(time.Minute)
		d := newDoor()
		go s.ServeStream(d)
		synctest.Wait()
		ask := func(q *dns.Msg) []dns.RR {
			conn := d.dialFrom(netip.MustParseAddr("10.1.0.53"))
			defer conn.Close()
			got, _, err := transferred(conn, q, "")
			if err != nil {
				t.Fatal(err)
			}
			return got
		}
		whole := func() []string { return sorted(ask(axfr("example.com."))[1:]) }
		had := map[uint32][]string{4_294_967_290: whole()}
		is := func(from uint32, want bool) {
			t.Helper()
			answer := ask(ixfr(uint64(from)))
			if incremental(answer) != want {
				t.Errorf("who has %d gets %v", from, answer)
				return
			}
			if !want {
				return
			}
			if got, err := patched(had[from], answer); err != nil || !slices.Equal(got, whole()) {
				t.Errorf("from %d: %v\n%v", from, err, answer)
			}
		}
		serials := []uint32{4_294_967_290, 4_294_967_295, 3, 4, 5} // past the end
		for i, serial := range serials[1:] {
			switch i {
			case 0:
				lines[3] = "host3 A 192.0.2.103\n"
			case 1:
				lines = append(lines[:7], append(lines[8:], "@ NS ns2.example.com.\n", "new TXT \"a\"\n")...)
			case 3:
				lines[3] = "host3 A 192.0.2.3\n"
			} // and once the serial alone
			set(serial)
			had[serial] = whole()
		}
		for _, from := range serials[:4] {
			is(from, true)
		}
		is(2, false)
		is(4_294_967_294, false)
		// Another revision of the spec is nothing to the zone.
		next := copied(t, 2, peer("192.0.2.1", ""))
		next.HostedZones["example.com"].Transfer = to.HostedZones["example.com"].Transfer
		next.HostedZones["other.example"] = &spec.HostedZone{Name: "other.example"}
		n.apply(s, next)
		is(4, true)
		// Taken whole, it has no past.
		p.mu.Lock()
		p.versions = nil
		p.mu.Unlock()
		set(9)
		is(5, false)
		lines[1] = "host1 A 192.0.2.201\n"
		had[9] = whole()
		set(10)
		is(9, true)
		is(5, false)
	})
}

// fleet is nodes that see each other: what one says the others hear within half a second, and they reach each other.
func (n *network) fleet(t *testing.T, names ...string) {
	var members []view.Member
	for i, name := range names {
		members = append(members, view.Member{Name: name, Roles: everything, Public: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})}})
	}
	for _, name := range names {
		s := n.node(name, "", &view.View{Self: name, Members: members})
		host := n.in.Host("backbone of "+name, spec.Location{}, netip.AddrFrom4([4]byte{10, 1, 0, byte(len(n.nodes))}))
		l, err := host.Listen("tcp", ":1")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go s.GiveCopy(c)
			}
		}()
		s.config.Copies.DialNode = func(ctx context.Context, node string) (net.Conn, error) {
			return host.Dial(ctx, "tcp", fmt.Sprintf("10.1.0.%d:1", 1+slices.Index(names, node)))
		}
	}
	stop := make(chan struct{})
	go func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(500 * time.Millisecond):
			}
			n.mu.Lock()
			said := map[string]map[string][]byte{}
			for node, of := range n.said {
				said[node] = maps.Clone(of)
			}
			n.mu.Unlock()
			for _, s := range n.nodes {
				s.Hear(func(node, id string) []byte { return said[node][id] })
			}
		}
	}()
	n.close = append(n.close, func() { close(stop) })
}

func TestSomeNodesAskAndTheOthersTakeItFromThem(t *testing.T) {
	copying(t, func(t *testing.T, n *network) {
		p := n.primary("192.0.2.1")
		p.brisk = true
		p.set(17, webPage)
		names := []string{"a", "b", "c", "d", "e", "f", "g"}
		n.fleet(t, names...)
		for _, name := range names {
			n.apply(n.nodes[name], copied(t, 1, peer("192.0.2.1", "")))
		}
		have := func(serial uint32, but ...string) {
			t.Helper()
			for _, name := range names {
				if state := n.nodes[name].CopyStates()[0]; !slices.Contains(but, name) && state.Serial != serial {
					t.Errorf("%s has serial %d, want %d", name, state.Serial, serial)
				}
			}
		}
		time.Sleep(3 * time.Second)
		have(17)
		if got := p.took(); len(got) != 2*askers {
			t.Errorf("the primary was asked for %q", got)
		}
		var ask, others []string
		for _, name := range names {
			if n.nodes[name].CopyStates()[0].Asks {
				ask = append(ask, name)
			} else {
				others = append(others, name)
			}
		}
		if len(ask) != askers {
			t.Fatalf("%q ask", ask)
		}
		// A NOTIFY that reaches a node which does not ask reaches those that do.
		time.Sleep(time.Minute)
		p.set(18, webPage)
		notify(t, n.nodes[others[0]], "192.0.2.1", "example.com.", "")
		time.Sleep(3 * time.Second)
		have(18)
		if got := p.took(); len(got) != 2*askers {
			t.Errorf("told, the primary was asked for %q", got)
		}
		// All hold the same confirmed, so that it expires for all at once; and equal serials make their answers comparable.
		time.Sleep(10 * time.Minute)
		for _, name := range names {
			if state := n.nodes[name].CopyStates()[0]; time.Since(state.Confirmed) > 5*time.Minute+3*time.Second {
				t.Errorf("%s: %+v", name, state)
			}
		}
		if got := p.took(); len(got) > 3*askers {
			t.Errorf("in ten minutes the primary was asked for %q", got)
		}
		one, _ := n.nodes[others[0]].Sample()
		two, _ := n.nodes[ask[0]].Sample()
		if !one.Comparable(two) || one != two {
			t.Errorf("samples: %+v, %+v", one, two)
		}
		// Without those that ask the others go on, though nobody has taken note that they are gone.
		for _, name := range ask {
			n.nodes[name].Close()
			n.mu.Lock()
			n.said[name] = nil
			n.mu.Unlock()
		}
		p.set(19, webPage)
		time.Sleep(300*time.Second + 60*time.Second + 30*time.Second)
		have(19, ask...)
		if one, _ := n.nodes[others[0]].Sample(); one.Comparable(two) {
			t.Error("samples of two serials are compared")
		}
	})
}

func mustZone(t *testing.T, lines string) *zone.Zone {
	t.Helper()
	z, err := zone.New("example.com", parsed(t, lines))
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// damage turns a bit of each file of a folder.
func damage(t *testing.T, dir string) {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, f := range files {
		path := filepath.Join(dir, f.Name())
		data, err := os.ReadFile(path)
		if err == nil {
			data[len(data)/2] ^= 1
			err = os.WriteFile(path, data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
