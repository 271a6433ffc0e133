package testbed

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/perigee-net/perigee/node"
	"github.com/perigee-net/perigee/node/api"
)

// serveAt has something serve HTTP or what it likes at an address of a fleet's network, in the region of that number. It
// returns how to end it.
func (f *Fleet) serveAt(t *testing.T, name string, region int, addr string, serve func(net.Listener)) (stop func()) {
	t.Helper()
	h := f.in.Host(name, f.places[region].at, netip.MustParseAddr(addr))
	l, err := h.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); serve(l) }()
	return func() { l.Close(); h.Kill(); <-done }
}

// serveHTTP is for serveAt.
func serveHTTP(handler http.HandlerFunc) func(net.Listener) {
	return func(l net.Listener) {
		s := &http.Server{Handler: handler}
		s.Serve(l)
		s.Close()
	}
}

// serveEach is for serveAt: it does something with each connection, until the other end goes.
func serveEach(do func(net.Conn)) func(net.Listener) {
	return func(l net.Listener) {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer conn.Close(); do(conn) }()
		}
	}
}

// healthOf is what a node holds of one key.
func (f *Fleet) healthOf(t *testing.T, name, key string) api.HealthEntry {
	t.Helper()
	entries, err := f.Inside(name).Health(t.Context(), api.HealthQuery{Name: key})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Key == key {
			return e
		}
	}
	return api.HealthEntry{Key: key}
}

// turns are how often a node saw a key turn.
func (f *Fleet) turns(t *testing.T, name, key string) (n int) {
	t.Helper()
	list, err := f.Inside(name).Events(t.Context(), api.EventQuery{Limit: api.MaxEvents})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list.Events {
		if e.Kind == "health" && e.Subject == key {
			n++
		}
	}
	return n
}

// An observer that says the opposite of what is: of targets its region's majority decides, of health checks more than 18 % must
// say healthy. It lies by what it dials, so that all of it is as with a true one.
func TestAnObserverThatLiesTurnsNothing(t *testing.T) {
	const alive, dead = "10.9.0.1:80", "10.9.0.2:80"
	tune := func(c *node.Config) {
		if c.Name != "fra2" {
			return
		}
		dial := c.Dial
		c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			switch address {
			case alive:
				address = dead
			case dead:
				address = alive
			}
			return dial(ctx, network, address)
		}
	}
	inFleet(t, FleetConfig{Nodes: 9, Regions: 3, Voters: 3, Tune: tune}, func(t *testing.T, f *Fleet) {
		stop := f.serveAt(t, "alive", 1, "10.9.0.1", serveHTTP(func(w http.ResponseWriter, _ *http.Request) {}))
		defer stop()
		f.in.Host("dead", f.places[1].at, netip.MustParseAddr("10.9.0.2"))
		f.mustApply(t, "icn1", `kind: Region
name: eu-central-1
---
kind: TargetGroup
name: web
region: eu-central-1
protocol: HTTP
targets: [{address: 10.9.0.1, port: 80}, {address: 10.9.0.2, port: 80}]
healthCheck: {interval: 2, timeout: 1, healthyThreshold: 2, unhealthyThreshold: 2}
---
kind: HealthCheck
name: alive
type: HTTP
ipAddress: 10.9.0.1
requestInterval: 2
failureThreshold: 2
---
kind: HealthCheck
name: dead
type: HTTP
ipAddress: 10.9.0.2
requestInterval: 2
failureThreshold: 2
`)
		time.Sleep(15 * time.Second) // until all have a voice: the first that speaks is alone
		targets, turned := []string{"target/web/" + alive, "target/web/" + dead}, map[string]int{}
		for _, key := range targets {
			turned[key] = f.turns(t, "icn1", key)
		}
		seen := map[string]int{}
		for range 20 {
			for _, name := range f.Names[:6] {
				for _, c := range []struct {
					key     string
					healthy bool
				}{{"target/web/" + alive, true}, {"target/web/" + dead, false}, {"check/alive", true}, {"check/dead", false}} {
					e := f.healthOf(t, name, c.key)
					if e.Healthy != c.healthy {
						t.Errorf("%s: %s", name, healthText(e))
					}
					lies := slices.ContainsFunc(e.Views, func(v api.HealthView) bool { return v.Node == "fra2" && v.Healthy != c.healthy })
					if lies {
						seen[c.key]++
					}
				}
			}
			time.Sleep(time.Second)
		}
		if len(seen) != 4 {
			t.Errorf("it lied only of %v: this test shows less than it says", seen)
		}
		t.Log(healthText(f.healthOf(t, "icn1", "target/web/"+alive)), ";", healthText(f.healthOf(t, "icn1", "check/dead")))
		for _, key := range targets {
			if n := f.turns(t, "icn1", key); n != turned[key] {
				t.Errorf("%s turned %d times", key, n-turned[key])
			}
		}
	})
}

// A target that is up and down in turn, a second each, and one that answers every other request: thresholds hold, so it turns
// seldom or never, and what is asked is answered all the time.
func TestAFlappingTargetTurnsNoOftenerThanItsThresholdsAllow(t *testing.T) {
	inFleet(t, FleetConfig{Nodes: 6, Regions: 2, Voters: 3}, func(t *testing.T, f *Fleet) {
		var asked atomic.Int64
		for i, serve := range []http.HandlerFunc{
			func(http.ResponseWriter, *http.Request) {},
			func(w http.ResponseWriter, _ *http.Request) {
				if time.Now().Second()%2 == 1 {
					w.WriteHeader(http.StatusServiceUnavailable)
				}
			},
			func(w http.ResponseWriter, _ *http.Request) {
				if asked.Add(1)%2 == 1 {
					w.WriteHeader(http.StatusServiceUnavailable)
				}
			},
		} {
			stop := f.serveAt(t, fmt.Sprintf("target-%d", i), 1, fmt.Sprintf("10.9.0.%d", i+1), serveHTTP(serve))
			defer stop()
		}
		f.mustApply(t, "icn1", `kind: Region
name: eu-central-1
---
kind: TargetGroup
name: web
region: eu-central-1
protocol: HTTP
targets: [{address: 10.9.0.1, port: 80}, {address: 10.9.0.2, port: 80}, {address: 10.9.0.3, port: 80}]
healthCheck: {interval: 5, timeout: 1, healthyThreshold: 3, unhealthyThreshold: 3}
`)
		time.Sleep(30 * time.Second)
		const minutes = 1
		var before [3]int
		key := func(i int) string { return fmt.Sprintf("target/web/10.9.0.%d:80", i+1) }
		for i := range before {
			before[i] = f.turns(t, "icn1", key(i))
		}
		time.Sleep(minutes * time.Minute)
		for i, most := range []int{0, minutes * 60 / 15, minutes * 60 / 15} {
			n := f.turns(t, "icn1", key(i)) - before[i]
			t.Logf("%s turned %d times in %d minutes: %s", key(i), n, minutes, healthText(f.healthOf(t, "icn1", key(i))))
			if n > most {
				t.Errorf("%s turned %d times, want %d at most", key(i), n, most)
			}
		}
	})
}

// Targets that never come to an end: each is found unhealthy with a reason, in its time, and those who ask are none the worse.
func TestTargetsThatNeverEndAreUnhealthyAndHarmNobody(t *testing.T) {
	inFleet(t, FleetConfig{Nodes: 3, Regions: 3}, func(t *testing.T, f *Fleet) {
		forever := func(text string, pause time.Duration) func(net.Conn) {
			return func(conn net.Conn) {
				for {
					if _, err := conn.Write([]byte(text)); err != nil {
						return
					}
					time.Sleep(pause)
				}
			}
		}
		begun := func(head string, then func(net.Conn)) func(net.Conn) {
			return func(conn net.Conn) {
				if _, err := conn.Write([]byte(head)); err == nil {
					then(conn)
				}
			}
		}
		// What is checked is the status: a body without end after it is no fault of a target.
		evils := []struct {
			what    string
			do      func(net.Conn)
			healthy bool
		}{
			{"silence", func(conn net.Conn) { io.Copy(io.Discard, conn) }, false},
			{"an endless header", begun("HTTP/1.1 200 OK\r\n", forever("X-Endless: "+strings.Repeat("x", 1000)+"\r\n", time.Millisecond)), false},
			{"an endless line", begun("HTTP/1.1 200 OK\r\nX-Endless: ", forever(strings.Repeat("x", 1000), time.Millisecond)), false},
			{"a byte a second", forever("H", time.Second), false},
			{"continue for ever", forever("HTTP/1.1 100 Continue\r\n\r\n", time.Millisecond), false},
			{"nonsense", forever("\x16\x03\x01\x00\x00", time.Millisecond), false},
			{"an endless body", begun("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", forever("400\r\n"+strings.Repeat("x", 1024)+"\r\n", time.Millisecond)), true},
		}
		yaml := "kind: Region\nname: eu-central-1\n---\nkind: TargetGroup\nname: web\nregion: eu-central-1\nprotocol: HTTP\n" +
			"healthCheck: {interval: 5, timeout: 2, healthyThreshold: 2, unhealthyThreshold: 2}\ntargets:\n- {address: 10.9.0.1, port: 80}\n"
		stop := f.serveAt(t, "good", 1, "10.9.0.1", serveHTTP(func(http.ResponseWriter, *http.Request) {}))
		defer stop()
		for i, e := range evils {
			addr := fmt.Sprintf("10.9.0.%d", i+2)
			yaml += fmt.Sprintf("- {address: %s, port: 80}\n", addr)
			stop := f.serveAt(t, fmt.Sprintf("evil-%d", i), 1, addr, serveEach(e.do))
			defer stop()
		}
		f.mustApply(t, "icn1", yaml)
		time.Sleep(time.Minute)
		for i, e := range evils {
			said := f.healthOf(t, "iad1", fmt.Sprintf("target/web/10.9.0.%d:80", i+2))
			if said.Healthy != e.healthy || said.Observers == 0 || !e.healthy && said.Reason == "" {
				t.Errorf("%s: %s", e.what, healthText(said))
			}
			t.Logf("%s: %s", e.what, healthText(said))
		}
		if said := f.healthOf(t, "iad1", "target/web/10.9.0.1:80"); !said.Healthy {
			t.Errorf("the good one among them: %s", healthText(said))
		}
		if err := f.Disagreement(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
