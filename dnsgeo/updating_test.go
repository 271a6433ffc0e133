package dnsgeo

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/spec"
)

// updatable is a spec with a zone that key k may change.
func updatable(t testing.TB, records string) *spec.Spec {
	t.Helper()
	s := allowing(t, records, spec.TransferAllow{Key: "k"})
	s.HostedZones["example.com"].Update.Allow = []spec.UpdateAllow{{Key: "k"}}
	return s
}

// signedUpdate is an update that adds a record, signed by a key.
func signedUpdate(t testing.TB, key, record string) (m []byte, mac string) {
	t.Helper()
	rr, err := dns.NewRR(record)
	if err != nil {
		t.Fatal(err)
	}
	u := new(dns.Msg).SetUpdate("example.com.")
	u.Insert([]dns.RR{rr})
	u.SetEdns0(1232, false)
	if key == "" {
		return must(u.Pack()), ""
	}
	u.SetTsig(key, dns.HmacSHA256, 300, time.Now().Unix())
	m, mac, err = dns.TsigGenerate(u, tsigSecret, "", false)
	if err != nil {
		t.Fatal(err)
	}
	return m, mac
}

func TestAnUpdateWaitsBesideQueriesAndIsAnsweredSigned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		agreed := make(chan UpdateAnswer)
		var got Update
		s := New(Config{Update: func(_ context.Context, u Update) UpdateAnswer { got = u; return <-agreed }})
		if err := s.Apply(updatable(t, "www A 192.0.2.1")); err != nil {
			t.Fatal(err)
		}
		w := newWire()
		go s.ServePacket(w)
		defer s.Close()
		for i, answer := range []UpdateAnswer{{}, {Rcode: dns.RcodeYXRrset, Why: "prerequisite: www.example.com. A"}, {Rcode: dns.RcodeServerFailure, Why: "no leader"}} {
			m, mac := signedUpdate(t, "k.", fmt.Sprintf("new%d.example.com. 60 IN A 192.0.2.9", i))
			w.in <- m
			w.in <- packed(t, "www.example.com.", dns.TypeA)
			if r := unpacked(t, <-w.out); r.Opcode != dns.OpcodeQuery || len(r.Answer) != 1 {
				t.Fatalf("the query behind it got %v", r)
			}
			synctest.Wait()
			if string(got.Message) != string(m) || got.Client != netip.MustParseAddr("10.1.0.53") || UpdateID(m) == "" {
				t.Errorf("it was given as %+v", got)
			}
			agreed <- answer
			response := <-w.out
			r := unpacked(t, response)
			if r.Opcode != dns.OpcodeUpdate || !r.Response || r.Rcode != answer.Rcode || len(r.Question) != 1 || len(r.Answer)+len(r.Ns) != 0 {
				t.Errorf("got %v", r)
			}
			if err := dns.TsigVerify(response, tsigSecret, mac, false); err != nil {
				t.Error(err)
			}
			why := ""
			for _, o := range r.IsEdns0().Option {
				if e, ok := o.(*dns.EDNS0_EDE); ok {
					why = e.ExtraText
				}
			}
			if why != answer.Why {
				t.Errorf("it is said why: %q", why)
			}
		}
		if c := s.Counters(); c["dns_updates_total"] != 1 || c["dns_updates_unmet_total"] != 1 || c["dns_updates_failed_total"] != 1 || c["dns_tsig_verified_total"] != 3 {
			t.Errorf("counted %v", c)
		}
	})
}

func TestUpdatesAreRefusedWhereTheyCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{Update: func(context.Context, Update) UpdateAnswer { t.Error("it came through"); return UpdateAnswer{} }})
		w := newWire()
		go s.ServePacket(w)
		defer s.Close()
		refused := func(name string, m []byte, rcode int) {
			t.Helper()
			w.in <- m
			if r := unpacked(t, <-w.out); r.Rcode != rcode {
				t.Errorf("%s: %s, want %s", name, dns.RcodeToString[r.Rcode], dns.RcodeToString[rcode])
			}
		}
		unsigned, _ := signedUpdate(t, "", "new.example.com. 60 IN A 192.0.2.9")
		refused("before the first spec", unsigned, dns.RcodeRefused)
		if err := s.Apply(updatable(t, "www A 192.0.2.1")); err != nil {
			t.Fatal(err)
		}
		refused("not signed", unsigned, dns.RcodeRefused)
		other := new(dns.Msg).SetUpdate("example.com.")
		other.SetTsig("other.", dns.HmacSHA512, 300, time.Now().Unix())
		m, _, err := dns.TsigGenerate(other, tsigSecret, "", false)
		if err != nil {
			t.Fatal(err)
		}
		refused("by a key that may nothing", m, dns.RcodeRefused)
		m, _ = signedUpdate(t, "k.", "new.example.com. 60 IN A 192.0.2.9")
		m[15] ^= 1 // the zone's name
		refused("changed on the way", m, dns.RcodeNotAuth)
		late := new(dns.Msg).SetUpdate("example.com.")
		late.SetTsig("k.", dns.HmacSHA256, 300, time.Now().Unix()-400)
		if m, _, err = dns.TsigGenerate(late, tsigSecret, "", false); err != nil {
			t.Fatal(err)
		}
		refused("of another time", m, dns.RcodeNotAuth)
		elsewhere := new(dns.Msg).SetUpdate("example.org.")
		elsewhere.SetTsig("k.", dns.HmacSHA256, 300, time.Now().Unix())
		if m, _, err = dns.TsigGenerate(elsewhere, tsigSecret, "", false); err != nil {
			t.Fatal(err)
		}
		refused("of no zone here", m, dns.RcodeNotAuth)
		if c := s.Counters(); c["dns_updates_refused_total"] != 4 || c["dns_tsig_badtime_total"] != 1 || c["dns_tsig_badsig_total"] != 1 {
			t.Errorf("counted %v", c)
		}
		m, _ = signedUpdate(t, "k.", "new.example.com. 60 IN A 192.0.2.9")
		for _, by := range []Transport{HTTPS, QUIC} {
			if r := unpacked(t, s.respond(make([]byte, roomSize), m, cidrs("192.0.2.1/32")[0].Addr(), by)); r.Rcode != dns.RcodeNotImplemented {
				t.Errorf("by %s: %s", by, dns.RcodeToString[r.Rcode])
			}
		}
	})
}

func TestUpdatesAtOnceAreBoundedAndEndWithTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{Update: func(ctx context.Context, _ Update) UpdateAnswer {
			<-ctx.Done()
			return UpdateAnswer{Rcode: dns.RcodeServerFailure, Why: context.Cause(ctx).Error()}
		}})
		if err := s.Apply(updatable(t, "www A 192.0.2.1")); err != nil {
			t.Fatal(err)
		}
		w := newWire()
		go s.ServePacket(w)
		began := time.Now()
		for i := range maxUpdatesPerClient + 1 {
			m, _ := signedUpdate(t, "k.", fmt.Sprintf("new%d.example.com. 60 IN A 192.0.2.9", i))
			w.in <- m
		}
		if r := unpacked(t, <-w.out); r.Rcode != dns.RcodeServerFailure || time.Since(began) != 0 {
			t.Errorf("one beyond the bound: %v after %v", r, time.Since(began))
		}
		for range maxUpdatesPerClient {
			if r := unpacked(t, <-w.out); r.Rcode != dns.RcodeServerFailure || time.Since(began) != updateTime {
				t.Errorf("nobody agrees: %v after %v", r, time.Since(began))
			}
		}
		if c := s.Counters(); c["dns_updates_over_bounds_total"] != 1 || c["dns_updates_failed_total"] != maxUpdatesPerClient {
			t.Errorf("counted %v", c)
		}
		m, _ := signedUpdate(t, "k.", "new.example.com. 60 IN A 192.0.2.9")
		w.in <- m
		synctest.Wait()
		began = time.Now()
		if err := s.Close(); err != nil || time.Since(began) != 0 {
			t.Errorf("closed after %v: %v", time.Since(began), err)
		}
		if s.updates.all != 0 {
			t.Errorf("%d places are taken", s.updates.all)
		}
	})
}

func TestALongUpdateComesByAStreamAndALongQueryDoesNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, d := New(Config{Update: func(_ context.Context, u Update) UpdateAnswer {
			time.Sleep(idleTimeout - time.Second)
			v, _ := JudgeUpdate(updatable(t, "www A 192.0.2.1"), u.Message)
			return UpdateAnswer{Rcode: v.Rcode, Why: fmt.Sprint(v.Zone.Records.Len())}
		}}), newDoor()
		if err := s.Apply(updatable(t, "www A 192.0.2.1")); err != nil {
			t.Fatal(err)
		}
		go s.ServeStream(d)
		defer s.Close()
		u := new(dns.Msg).SetUpdate("example.com.")
		for i := range 250 {
			rr, err := dns.NewRR(fmt.Sprintf("host%d.rack.example.com. 60 IN A 192.0.2.9", i))
			if err != nil {
				t.Fatal(err)
			}
			u.Insert([]dns.RR{rr})
		}
		u.SetTsig("k.", dns.HmacSHA256, 300, time.Now().Unix())
		m, _, err := dns.TsigGenerate(u, tsigSecret, "", false)
		if err != nil || len(m) < 2*maxQuerySize || len(m) > maxUpdateSize {
			t.Fatal(err, len(m))
		}
		conn := d.dial()
		defer conn.Close()
		// The query before it does not wait, and the connection lives on behind it.
		go func() {
			_, _ = conn.Write(append(framed(packed(t, "www.example.com.", dns.TypeA)), framed(m)[:100]...))
			_, _ = conn.Write(framed(m)[100:])
		}()
		began := time.Now()
		if r := receive(t, conn); len(r.Answer) != 1 || time.Since(began) != 0 {
			t.Errorf("the query before got %v after %v", r, time.Since(began))
		}
		if r := receive(t, conn); r.Rcode != dns.RcodeSuccess || r.Opcode != dns.OpcodeUpdate {
			t.Errorf("got %v", r)
		}
		time.Sleep(idleTimeout - time.Second)
		send(t, conn, framed(packed(t, "www.example.com.", dns.TypeA)))
		if r := receive(t, conn); len(r.Answer) != 1 {
			t.Errorf("got %v", r)
		}
		long := append(packed(t, "www.example.com.", dns.TypeA), make([]byte, maxQuerySize)...)
		send(t, conn, framed(long)[:100])
		closes(t, conn)
	})
}

// nsupdate, of BIND, against real sockets: what it is told, and what is then there.
func TestNsupdateUpdates(t *testing.T) {
	nsupdate, err := exec.LookPath("nsupdate")
	if err != nil {
		if os.Getenv("PERIGEE_REAL_CLIENTS") == "required" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	var mu sync.Mutex
	now := updatable(t, "@ MX 10 mail.example.net.\nwww A 192.0.2.1\nweb CNAME www.example.com.")
	var s *Server
	s = New(Config{Update: func(_ context.Context, u Update) UpdateAnswer {
		mu.Lock()
		defer mu.Unlock()
		v, _ := JudgeUpdate(now, u.Message)
		if v.Zone != nil {
			next := *now
			next.Revision++
			next.HostedZones = map[string]*spec.HostedZone{"example.com": v.Zone}
			now = &next
			if err := s.Apply(now); err != nil {
				t.Error(err)
			}
		}
		return UpdateAnswer{Rcode: v.Rcode, Why: v.Why}
	}})
	if err := s.Apply(now); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	streams, packets := pairOf(t)
	port := streams.Addr().(*net.TCPAddr).Port
	go s.ServeStream(streams)
	go s.ServePacket(packets)
	for _, c := range []struct {
		name, flag, script string
		said               string // "": it is done
		there              []string
	}{
		{"by UDP, finding the zone itself", "", "update add new.example.com. 60 TXT \"a b\"\nupdate add new.example.com. 60 TXT c", "", []string{`new.example.com. 60 IN TXT "a b"`, `new.example.com. 60 IN TXT "c"`}},
		{"by TCP", "-v", "zone example.com.\nupdate delete new.example.com. TXT c\nupdate add new.example.com. 60 AAAA 2001:db8::1", "", []string{`new.example.com. 60 IN TXT "a b"`, "new.example.com. 60 IN AAAA 2001:db8::1"}},
		{"a prerequisite holds", "", "zone example.com.\nprereq yxrrset new.example.com. AAAA\nupdate delete new.example.com.", "", []string{}},
		{"it does not", "", "zone example.com.\nprereq nxdomain www.example.com.\nupdate add www.example.com. 60 A 192.0.2.7", "YXDOMAIN", nil},
		{"a set of other data", "", "zone example.com.\nprereq yxrrset www.example.com. A 192.0.2.2\nupdate add www.example.com. 60 A 192.0.2.7", "NXRRSET", nil},
		{"the SOA", "", "zone example.com.\nupdate add example.com. 60 SOA a. b. 99999 1 1 1 1", "REFUSED", nil},
		{"outside", "", "zone example.com.\nupdate add www.example.net. 60 A 192.0.2.7", "NOTZONE", nil},
		{"no zone of ours", "", "zone example.org.\nupdate add www.example.org. 60 A 192.0.2.7", "NOTAUTH", nil},
		{"a wrong secret", "wrong", "zone example.com.\nupdate add www.example.com. 60 A 192.0.2.7", "NOTAUTH(BADSIG)", nil},
		{"not signed", "unsigned", "zone example.com.\nupdate add www.example.com. 60 A 192.0.2.7", "REFUSED", nil},
	} {
		args := []string{"-t", "20"}
		script := fmt.Sprintf("server 127.0.0.1 %d\n", port)
		switch c.flag {
		case "wrong":
			script += "key hmac-sha256:k. " + strings.ToLower(tsigSecret) + "\n"
		case "":
			script += "key hmac-sha256:k. " + tsigSecret + "\n"
		case "-v":
			args = append(args, c.flag)
			script += "key hmac-sha256:k. " + tsigSecret + "\n"
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		cmd := exec.CommandContext(ctx, nsupdate, args...)
		cmd.Stdin = strings.NewReader(script + c.script + "\nsend\n")
		out, err := cmd.CombinedOutput()
		cancel()
		if (err == nil) != (c.said == "") || c.said != "" && !strings.Contains(string(out), c.said) {
			t.Errorf("%s: %v, said %s", c.name, err, out)
		}
		if c.there == nil {
			continue
		}
		mu.Lock()
		table := s.table.Load()
		got := []string{}
		for r := range table.zones.Records(table.zones.Find(nameOf(t, "example.com."), 0)) {
			rr := record{typ: r.Type, ttl: r.TTL, data: r.Data}
			if line := strings.ReplaceAll(rr.shown(r.Owner).String(), "\t", " "); strings.HasPrefix(line, "new.") {
				got = append(got, line)
			}
		}
		mu.Unlock()
		slices.Sort(got)
		slices.Sort(c.there)
		if !slices.Equal(got, c.there) {
			t.Errorf("%s: there are %v, want %v", c.name, got, c.there)
		}
	}
}
