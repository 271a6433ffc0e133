package probe

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/health"
)

// clients are addresses of n networks.
func clients(n int) []netip.Addr {
	all := make([]netip.Addr, n)
	for i := range all {
		all[i] = netip.AddrFrom4([4]byte{198, 51, byte(i), 7})
	}
	return all
}

// watched is a Prober of targetTerms that has found it healthy, and the server of it.
func watched(t *testing.T, l *lan, r *reports) (*Prober, net.Listener) {
	server := l.serve(answer("HTTP/1.1 200 OK\r\n\r\n"))
	p := New(Config{Node: "a", Dial: l.prober.Dial, Report: r.add})
	p.Set([]Check{targetTerms})
	time.Sleep(5 * time.Second)
	if got := r.take(); got != "target/web/10.0.0.1:80 true" {
		t.Fatalf("at first: %q", got)
	}
	return p, server
}

func TestWhatManyClientsSawFailIsProbedAtOnceAndTurnsSooner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t)
		var r reports
		p, server := watched(t, l, &r)
		defer p.Close()
		server.Close()
		start := time.Now()
		for range 2 {
			for _, c := range clients(3) {
				p.Evidence(targetTerms.Key, c, true, "connect: connection refused")
			}
		}
		time.Sleep(100 * time.Millisecond)
		if got := r.take(); got != "target/web/10.0.0.1:80 false connect: connection refused" {
			t.Errorf("%v after the failures: %q", time.Since(start), got)
		}
		if c := p.Counters(); c["probe_evidence_total"] != 1 || c["probe_prompted_total"] != 1 {
			t.Errorf("counted %v", c)
		}
	})
}

func TestOneClientCannotCondemnATarget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t)
		var r reports
		p, server := watched(t, l, &r)
		defer p.Close()
		defer server.Close()
		asked := l.asked.Load()
		one := clients(1)[0]
		for range 10_000 {
			p.Evidence(targetTerms.Key, one, true, "status 500")
		}
		time.Sleep(100 * time.Millisecond)
		if got := r.take(); got != "" || l.asked.Load() != asked || p.Counters()["probe_evidence_total"] != 0 {
			t.Errorf("got %q, %d probes, %v", got, l.asked.Load()-asked, p.Counters())
		}
	})
}

func TestNotEvenManyClientsCondemnWhatAProbeFindsWell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t)
		var r reports
		p, server := watched(t, l, &r)
		defer p.Close()
		defer server.Close()
		asked := l.asked.Load()
		for range 600 { // a minute
			for _, c := range clients(20) {
				p.Evidence(targetTerms.Key, c, true, "status 500")
			}
			time.Sleep(100 * time.Millisecond)
		}
		if got := r.take(); got != "" {
			t.Errorf("got %q", got)
		}
		if n := l.asked.Load() - asked; n < 30 || n > 62 {
			t.Errorf("%d probes in a minute, want one a second at most", n)
		}
	})
}

func TestASuccessBetweenClearsWhatTheDataPathSaw(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t)
		var r reports
		p, server := watched(t, l, &r)
		defer p.Close()
		defer server.Close()
		for range 100 {
			for _, c := range clients(4) {
				p.Evidence(targetTerms.Key, c, true, "status 500")
			}
			p.Evidence(targetTerms.Key, clients(1)[0], false, "")
		}
		synctest.Wait()
		if c := p.Counters(); c["probe_evidence_total"] != 0 {
			t.Errorf("counted %v", c)
		}
	})
}

func TestEvidenceOfWhatIsNotCheckedHereIsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(Config{Report: func(health.Key, *health.Verdict) { t.Error("reported") }})
		for _, c := range clients(100) {
			p.Evidence("target/other/10.0.0.9:80", c, true, "status 500")
			p.Evidence("target/other/10.0.0.9:80", c, false, "")
		}
		p.Close()
		p.Evidence("target/other/10.0.0.9:80", clients(1)[0], true, "")
		if c := p.Counters(); c["probe_evidence_total"] != 0 {
			t.Errorf("counted %v", c)
		}
	})
}

func TestTheDataPathNeverWaitsForTheProber(t *testing.T) {
	dial := func(context.Context, string, string) (net.Conn, error) { return nil, net.ErrClosed }
	p := New(Config{Dial: dial, Report: func(health.Key, *health.Verdict) {}})
	defer p.Close()
	checks := many(2*maxEvidence, time.Hour)
	p.Set(checks)
	p.mu.Lock() // as if whoever is told of a verdict took his time
	for range 2 {
		for _, c := range checks {
			for _, by := range clients(5) {
				p.Evidence(c.Key, by, true, "status 500")
			}
		}
	}
	if p.dropped.Load() == 0 {
		t.Error("nothing was dropped")
	}
	p.mu.Unlock()
}

func TestWhatIsWellCostsNoMemory(t *testing.T) {
	p := New(Config{Report: func(health.Key, *health.Verdict) {}, Dial: func(context.Context, string, string) (net.Conn, error) { return nil, net.ErrClosed }})
	defer p.Close()
	p.Set([]Check{targetTerms})
	client := clients(1)[0]
	if n := testing.AllocsPerRun(100, func() { p.Evidence(targetTerms.Key, client, false, "") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkEvidenceOfWhatIsWell(b *testing.B) {
	p := New(Config{Report: func(health.Key, *health.Verdict) {}, Dial: func(context.Context, string, string) (net.Conn, error) { return nil, net.ErrClosed }})
	defer p.Close()
	p.Set(many(10_000, time.Hour))
	client := clients(1)[0]
	key := many(10_000, time.Hour)[5000].Key
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			p.Evidence(key, client, false, "")
		}
	})
}
