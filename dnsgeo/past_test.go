package dnsgeo

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/spec"
)

// versions has a server run one version after another of a zone that may be transferred.
type versions struct {
	t      *testing.T
	s      *Server
	d      *door
	w      *wire
	now    *spec.Spec
	random *rand.Rand
}

func (v *versions) become(revision uint64, change func(z *spec.HostedZone)) {
	next := *v.now
	next.Revision = revision
	if change != nil {
		z := *v.now.HostedZones["example.com"]
		change(&z)
		next.HostedZones = maps.Clone(v.now.HostedZones)
		next.HostedZones["example.com"] = &z
	}
	if err := v.s.Apply(&next); err != nil {
		v.t.Fatal(err)
	}
	v.now = &next
}

func inVersions(t *testing.T, records string, f func(v *versions)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		v := &versions{t: t, s: New(Config{}), d: newDoor(), w: newWire(), random: rand.New(rand.NewPCG(5, 6))}
		v.now = allowing(t, records, spec.TransferAllow{Key: "k"})
		v.now.HostedZones["example.com"].NameServers = []string{"ns1.example.net.", "ns2.example.net."}
		go v.s.ServeStream(v.d)
		go v.s.ServePacket(v.w)
		defer v.s.Close()
		v.become(v.now.Revision, nil)
		f(v)
	})
}

// ask is what a query for a transfer is answered with by TCP.
func (v *versions) ask(q *dns.Msg) []dns.RR {
	v.t.Helper()
	conn := v.d.dialFrom(netip.MustParseAddr("10.1.0.53"))
	defer conn.Close()
	records, _, err := transferred(conn, q, "k.")
	if err != nil {
		v.t.Fatal(err)
	}
	return records
}

func (v *versions) whole() []string {
	records := v.ask(axfr("example.com."))
	return sorted(records[1:])
}

func ixfr(serial uint64) *dns.Msg {
	return new(dns.Msg).SetIxfr("example.com.", uint32(serial), "ns1.example.net.", "hostmaster.example.com.")
}

// incremental says whether an answer to an IXFR is what has changed, and not the zone.
func incremental(answer []dns.RR) bool {
	return len(answer) > 2 && answer[1].Header().Rrtype == dns.TypeSOA
}

// patched is a zone after the differences of an answer (RFC 1995 §4), or why they are none: what goes must be there, and what comes
// must not.
func patched(zone []string, answer []dns.RR) ([]string, error) {
	have := map[string]bool{}
	for _, line := range zone {
		have[line] = true
	}
	first := answer[0].String()
	answer = answer[1:]
	if answer[len(answer)-1].String() != first {
		return nil, fmt.Errorf("it begins with %s and ends with %s", first, answer[len(answer)-1])
	}
	for len(answer) > 1 {
		for _, comes := range []bool{false, true} {
			for i, rr := range answer {
				if i > 0 && rr.Header().Rrtype == dns.TypeSOA {
					answer = answer[i:]
					break
				}
				line := strings.ReplaceAll(rr.String(), "\t", " ")
				if have[line] == comes {
					return nil, fmt.Errorf("comes %t: %s", comes, line)
				}
				have[line] = comes
			}
		}
	}
	var lines []string
	for line, there := range have {
		if there {
			lines = append(lines, line)
		}
	}
	slices.Sort(lines)
	return lines, nil
}

// Whatever changes, and however old the version that a client has, within what is held: the differences make of it the zone, by TCP and
// by UDP.
func TestDifferencesMakeOfAnyVersionTheNewest(t *testing.T) {
	var records strings.Builder
	for i := range 60 {
		fmt.Fprintf(&records, "host%d 60 A 192.0.2.%d\n", i, i+1)
	}
	inVersions(t, records.String(), func(v *versions) {
		had := map[uint64][]string{v.now.Revision: v.whole()}
		changes, wholes, datagrams := 0, 0, 0
		for range 120 {
			revision := v.now.Revision + 1 + uint64(v.random.IntN(3)/2) // some are never seen here
			v.become(revision, map[bool]func(*spec.HostedZone){false: nil, true: func(z *spec.HostedZone) {
				for range 1 + v.random.IntN(3) {
					v.edit(z)
				}
			}}[v.random.IntN(5) > 0])
			now := v.whole()
			had[revision] = now
			held := slices.Sorted(maps.Keys(had))
			from := held[max(0, len(held)-1-v.random.IntN(12))]
			answer := v.ask(ixfr(from))
			switch {
			case from == revision:
				if len(answer) != 1 {
					t.Fatalf("who has the newest gets %v", answer)
				}
				continue
			case !incremental(answer):
				wholes++
				if got := sorted(answer[1:]); !slices.Equal(got, now) {
					t.Fatalf("the whole zone is %v", got)
				}
			default:
				changes++
				got, err := patched(had[from], answer)
				if err != nil || !slices.Equal(got, now) {
					t.Fatalf("from %d to %d: %v\n%v\ngot  %v\nwant %v", from, revision, err, answer, got, now)
				}
			}
			q := ixfr(from)
			q.SetEdns0(1232, false)
			q.SetTsig("k.", dns.HmacSHA256, 300, time.Now().Unix())
			m, mac, err := dns.TsigGenerate(q, tsigSecret, "", false)
			if err != nil {
				t.Fatal(err)
			}
			v.w.in <- m
			response := <-v.w.out
			if err := dns.TsigVerify(response, tsigSecret, mac, false); err != nil || len(response) > payloadSize {
				t.Fatalf("%d bytes: %v", len(response), err)
			}
			one := unpacked(t, response).Answer
			if len(one) == 1 && one[0].(*dns.SOA).Serial == uint32(revision) {
				continue // it is to come by TCP
			}
			datagrams++
			if got, err := patched(had[from], one); err != nil || !slices.Equal(got, now) {
				t.Fatalf("by UDP, from %d to %d: %v\n%v", from, revision, err, one)
			}
		}
		if changes < 60 || datagrams < 30 {
			t.Errorf("of 120, %d were changes, %d whole zones, %d by UDP", changes, wholes, datagrams)
		}
		if c := v.s.Counters(); c["dns_transfers_out_changes_total"] != uint64(changes+datagrams) {
			t.Errorf("counted %v, want %d", c["dns_transfers_out_changes_total"], changes+datagrams)
		}
		for _, serial := range slices.Sorted(maps.Keys(had)) { // a revision between two that were not seen is not known
			if _, seen := had[serial+1]; !seen && serial < v.now.Revision && incremental(v.ask(ixfr(serial+1))) {
				t.Errorf("it tells what has changed since %d, which it never saw", serial+1)
			}
		}
	})
}

// Nodes that have run other revisions, each some of all, lead a client that asks now the one and now the other along one line.
func TestAClientGoesFromNodeToNode(t *testing.T) {
	inVersions(t, "a A 192.0.2.1\nb A 192.0.2.2\nc A 192.0.2.3\nd A 192.0.2.4\ne A 192.0.2.5\nf A 192.0.2.6\ng A 192.0.2.7\nh A 192.0.2.8", func(v *versions) {
		other, d := New(Config{}), newDoor()
		go other.ServeStream(d)
		defer other.Close()
		if err := other.Apply(v.now); err != nil {
			t.Fatal(err)
		}
		nodes := []*versions{v, {t: t, s: other, d: d}}
		had, at, changes := v.whole(), v.now.Revision, 0
		for range 200 {
			next := *v.now
			next.Revision++
			z := *v.now.HostedZones["example.com"]
			setRecord(&z, v.random.IntN(z.Records.Len()), func(r *spec.Record) { r.Values = []string{fmt.Sprintf("203.0.113.%d", v.random.IntN(4))} })
			next.HostedZones = map[string]*spec.HostedZone{"example.com": &z}
			v.now = &next
			for _, n := range nodes {
				if v.random.IntN(4) > 0 {
					if err := n.s.Apply(&next); err != nil {
						t.Fatal(err)
					}
				}
			}
			node := nodes[v.random.IntN(2)]
			answer := node.ask(ixfr(at))
			serial := answer[0].(*dns.SOA).Serial
			switch {
			case len(answer) == 1:
				if uint64(serial) > at {
					t.Fatalf("from %d: only %v", at, answer)
				}
				continue
			case incremental(answer):
				changes++
				var err error
				if had, err = patched(had, answer); err != nil {
					t.Fatalf("from %d to %d: %v", at, serial, err)
				}
			default:
				had = sorted(answer[1:])
			}
			if at = uint64(serial); !slices.Equal(had, node.whole()) {
				t.Fatalf("at %d it has %v, and the node %v", at, had, node.whole())
			}
		}
		if changes < 50 {
			t.Errorf("only %d were changes", changes)
		}
	})
}

// edit changes something in a zone.
func (v *versions) edit(z *spec.HostedZone) {
	i := v.random.IntN(z.Records.Len())
	address := func() []string { return []string{fmt.Sprintf("203.0.113.%d", v.random.IntN(200))} }
	ttl := spec.Duration(time.Duration(30+v.random.IntN(3)) * time.Second)
	r := z.Records.At(i)
	switch v.random.IntN(6) {
	case 0:
		z.Records = z.Records.Splice(i, i+1, spec.Records{})
	case 1:
		r.Values = append(slices.Clone(r.Values), address()...)
		slices.Sort(r.Values)
		r.Values = slices.Compact(r.Values)
		setRecord(z, i, func(was *spec.Record) { *was = r })
	case 2:
		r.TTL = &ttl
		setRecord(z, i, func(was *spec.Record) { *was = r })
	case 3:
		r.Values = address()
		setRecord(z, i, func(was *spec.Record) { *was = r })
	case 4:
		z.NameServers = [][]string{{"ns1.example.net.", "ns2.example.net."}, {"ns2.example.net."}, {"ns3.example.net.", "ns1.example.net."}}[v.random.IntN(3)]
	default:
		name := fmt.Sprintf("host%d", v.random.IntN(200))
		if !slices.ContainsFunc(z.Records.List(), func(r spec.Record) bool { return r.Name == name }) {
			z.Records = z.Records.Splice(z.Records.Len(), z.Records.Len(), spec.RecordsOf(spec.Record{Name: name, Type: "A", TTL: &ttl, Values: address()}))
		}
	}
}

func TestWhatIsNotHeldIsTransferredWhole(t *testing.T) {
	records := "a A 192.0.2.1\nb A 192.0.2.2\nc A 192.0.2.3\nd A 192.0.2.4"
	change := func(v *versions, revision uint64, value string) {
		v.become(revision, func(z *spec.HostedZone) { setRecord(z, 0, func(r *spec.Record) { r.Values = []string{value} }) })
	}
	for name, c := range map[string]struct {
		after       func(v *versions, began uint64) (serial uint64)
		incremental bool
	}{
		"one change":                            {func(v *versions, began uint64) uint64 { change(v, began+1, "192.0.2.9"); return began }, true},
		"a revision that changes nothing in it": {func(v *versions, began uint64) uint64 { v.become(began+1, nil); return began }, true},
		"a revision of before it began":         {func(v *versions, began uint64) uint64 { change(v, began+1, "192.0.2.9"); return began - 1 }, false},
		"one that it never saw":                 {func(v *versions, began uint64) uint64 { change(v, began+2, "192.0.2.9"); return began + 1 }, false},
		"more changes than records": {func(v *versions, began uint64) uint64 {
			for i := range uint64(3) {
				change(v, began+1+i, fmt.Sprintf("192.0.2.%d", 9+i))
			}
			return began
		}, false},
		"the spec went back": {func(v *versions, began uint64) uint64 {
			change(v, began+1, "192.0.2.9")
			change(v, began, "192.0.2.1")
			v.become(began+1, nil)
			v.become(began+2, nil)
			return began + 1
		}, true},
		"to before that": {func(v *versions, began uint64) uint64 {
			change(v, began+3, "192.0.2.9")
			change(v, began+1, "192.0.2.1")
			v.become(began+4, nil)
			return began + 3
		}, false},
		"a record is alive or not": {func(v *versions, began uint64) uint64 {
			v.become(began+1, func(z *spec.HostedZone) {
				setRecord(z, 0, func(r *spec.Record) { r.SetIdentifier, r.MultiValueAnswer = "x", true })
			})
			return began
		}, false},
		"it was, and is no more": {func(v *versions, began uint64) uint64 {
			v.become(began+1, func(z *spec.HostedZone) {
				setRecord(z, 0, func(r *spec.Record) { r.SetIdentifier, r.MultiValueAnswer = "x", true })
			})
			v.become(began+2, func(z *spec.HostedZone) {
				setRecord(z, 0, func(r *spec.Record) { r.SetIdentifier, r.MultiValueAnswer = "", false })
			})
			return began + 1
		}, false},
		"its name servers are drawn": {func(v *versions, began uint64) uint64 {
			v.become(began+1, func(z *spec.HostedZone) { z.NameServers = nil })
			v.become(began+2, nil)
			return began + 1
		}, false},
		"it went, and came again": {func(v *versions, began uint64) uint64 {
			zone := v.now.HostedZones["example.com"]
			next := *v.now
			next.Revision, next.HostedZones = began+1, map[string]*spec.HostedZone{}
			if err := v.s.Apply(&next); err != nil {
				v.t.Fatal(err)
			}
			v.now = &next
			last := next
			last.Revision, last.HostedZones = began+2, map[string]*spec.HostedZone{"example.com": zone}
			v.now = &last
			v.become(began+2, nil)
			return began
		}, false},
		"places changed": {func(v *versions, began uint64) uint64 {
			change(v, began+1, "192.0.2.9")
			if err := v.s.SetPlaces(places(v.t)); err != nil {
				v.t.Fatal(err)
			}
			return began
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			inVersions(t, records, func(v *versions) {
				v.t = t
				if answer := v.ask(ixfr(c.after(v, v.now.Revision))); incremental(answer) != c.incremental {
					t.Errorf("got %v", answer)
				}
			})
		})
	}
}

func TestThePastIsBounded(t *testing.T) {
	size := func(p *past) (steps, bytes int) {
		for _, h := range p.zones.All() {
			steps, bytes = steps+len(h.steps), bytes+h.bytes
		}
		return steps, bytes
	}
	inVersions(t, "a A 192.0.2.1\nbig TXT \"x\"", func(v *versions) {
		for i := range maxSteps + 50 {
			v.become(v.now.Revision+1, func(z *spec.HostedZone) {
				setRecord(z, 0, func(r *spec.Record) { r.Values = []string{fmt.Sprintf("10.0.%d.%d", i>>8, i&255)} })
			})
		}
		p := v.s.table.Load().past
		steps, bytes := size(p)
		if steps != maxSteps || bytes != p.bytes || len(p.spans) != 1 {
			t.Errorf("%d steps of %d bytes (%d), %d runs", steps, bytes, p.bytes, len(p.spans))
		}
		if h := p.zones.Get("example.com"); h.since != v.now.Revision-maxSteps {
			t.Errorf("at revision %d it is known since %d", v.now.Revision, h.since)
		}
		for i := range 2 * maxSpans {
			v.become(v.now.Revision+2, func(z *spec.HostedZone) {
				var values []string
				for j := range 40 {
					values = append(values, fmt.Sprintf(`"%s %d %d"`, strings.Repeat("x", 200), i, j))
				}
				setRecord(z, 1, func(r *spec.Record) { r.Values = values })
			})
		}
		p = v.s.table.Load().past
		if steps, bytes = size(p); bytes > maxStepBytes || bytes < maxStepBytes/2 || bytes != p.bytes || len(p.spans) != maxSpans {
			t.Errorf("%d steps of %d bytes (%d), %d runs", steps, bytes, p.bytes, len(p.spans))
		}
	})
	// Of many zones the one that has most forgets.
	p := &past{}
	zones := p.zones.Edit()
	for i, n := range []int{3, 9, 5} {
		h := &history{}
		for j := range n {
			h.steps, h.bytes = append(h.steps, step{to: uint64(j + 1), bytes: 10}), h.bytes+10
		}
		zones.Set(fmt.Sprint(i), h)
		p.bytes += h.bytes
	}
	p.zones = zones.Map()
	before := p.zones.Get("1")
	p.forget()
	if h := p.zones.Get("1"); len(h.steps) != 4 || h.since != 5 || h.bytes != 40 || p.bytes != 120 || len(before.steps) != 9 {
		t.Errorf("%+v of %d bytes", h, p.bytes)
	}
}

// BIND as a secondary: it takes the zone, is told of a change, takes what has changed, and has the zone.
func TestNamedTakesWhatHasChanged(t *testing.T) {
	named, err := exec.LookPath("named")
	if err != nil {
		if os.Getenv("PERIGEE_REAL_CLIENTS") == "required" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	streams, packets := pairOf(t)
	theirs, theirPackets := pairOf(t)
	secondary := theirs.Addr().(*net.TCPAddr).AddrPort()
	_, _ = theirs.Close(), theirPackets.Close()
	s := New(Config{Dial: new(net.Dialer).DialContext})
	var records strings.Builder
	for i := range 50 {
		fmt.Fprintf(&records, "host%d A 192.0.2.%d\n", i, i+1)
	}
	now := allowing(t, records.String(), spec.TransferAllow{Key: "k"})
	z := now.HostedZones["example.com"]
	z.NameServers = []string{"ns1.example.net."}
	z.Transfer.Notify = []spec.ZonePeer{{Address: secondary.Addr(), Port: secondary.Port(), Key: "k"}}
	if err := s.Apply(now); err != nil {
		t.Fatal(err)
	}
	go s.ServeStream(streams)
	go s.ServePacket(packets)
	defer s.Close()

	dir := t.TempDir()
	conf := filepath.Join(dir, "named.conf")
	key := fmt.Sprintf("key k { algorithm hmac-sha256; secret %q; };\n", tsigSecret)
	if err := os.WriteFile(conf, []byte(key+fmt.Sprintf(`
options { directory %q; listen-on port %d { 127.0.0.1; }; listen-on-v6 { none; }; pid-file none; session-keyfile none; recursion no; notify no; dnssec-validation no; };
controls { };
zone "example.com" { type secondary; file "zone"; primaries { 127.0.0.1 port %d key k; }; allow-notify { key k; }; allow-transfer { any; }; };
`, dir, secondary.Port(), streams.Addr().(*net.TCPAddr).Port)), 0o600); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(t.Context(), named, "-g", "-n", "1", "-c", conf)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var log string
	defer func() {
		if t.Failed() {
			t.Log(log)
		}
	}()
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait(); log = said.String() }()
	has := func(serial uint64) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
			r, err := dns.Exchange(new(dns.Msg).SetQuestion("example.com.", dns.TypeSOA), secondary.String())
			if err == nil && len(r.Answer) == 1 && r.Answer[0].(*dns.SOA).Serial == uint32(serial) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("it has not come to %d: %v, %v", serial, r, err)
			}
		}
	}
	has(now.Revision)
	for range 2 {
		next, edited := *now, *z
		next.Revision += 3
		records := z.Records.List()[1:]
		records[3].Values = []string{fmt.Sprintf("203.0.113.%d", next.Revision)}
		ttl := spec.Duration(30 * time.Second)
		edited.Records = spec.RecordsOf(append(records, spec.Record{Name: fmt.Sprintf("new%d", next.Revision), Type: "TXT", TTL: &ttl, Values: []string{`"a b"`}})...)
		next.HostedZones = map[string]*spec.HostedZone{"example.com": &edited}
		if err := s.Apply(&next); err != nil {
			t.Fatal(err)
		}
		now, z = &next, &edited
		has(now.Revision)
	}
	zoneFrom := func(at, key string) []string {
		conn, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		records, _, err := transferred(conn, axfr("example.com."), key)
		if err != nil {
			t.Fatal(err)
		}
		return sorted(records[1:])
	}
	ours, itsOwn := zoneFrom(streams.Addr().String(), "k."), zoneFrom(secondary.String(), "")
	if !slices.Equal(ours, itsOwn) {
		t.Errorf("it has %v\nwant %v", itsOwn, ours)
	}
	if c := s.Counters(); c["dns_transfers_out_changes_total"] != 2 || c["dns_transfers_out_total"] != 4 { // whole for it at first, and for this test at last
		t.Errorf("counted %v", c)
	}
}

// pairOf is a port of this machine, by TCP and UDP.
func pairOf(t *testing.T) (net.Listener, net.PacketConn) {
	t.Helper()
	for range 20 {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if p, err := net.ListenPacket("udp4", l.Addr().String()); err == nil {
			return l, p
		}
		_ = l.Close()
	}
	t.Fatal("no port is free by TCP and UDP")
	return nil, nil
}
