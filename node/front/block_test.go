package front

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"
)

// blocklist is who is blocked; tests change it.
type blocklist struct{ atomic.Pointer[[]netip.Prefix] }

func (b *blocklist) set(prefixes ...string) {
	var all []netip.Prefix
	for _, p := range prefixes {
		all = append(all, netip.MustParsePrefix(p))
	}
	b.Store(&all)
}

func (b *blocklist) blocked(a netip.Addr) bool {
	for _, p := range *b.Load() {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

const (
	person = "192.0.2.1/32"
	behind = "198.51.100.0/24" // whom the PROXY headers of the tests name
)

func TestABlockedClientIsClosedAtTheDoor(t *testing.T) {
	const request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
	for _, c := range []struct {
		name           string
		blocked        string
		trusted, proxy bool
		served         bool
	}{
		{"nobody", "10.0.0.0/8", false, false, true},
		{"the client", person, false, false, false},
		{"its network", "192.0.2.0/24", false, false, false},
		{"whom a PROXY header names", behind, true, true, false},
		{"the balancer before one who is not", person, true, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var list blocklist
			list.set(c.blocked)
			config := Config{Blocked: list.blocked}
			if c.trusted {
				config.ProxyHeadersFrom = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
			}
			inWorld(t, config, func(w *world) {
				w.set(Door{Network: "tcp", Address: at(80), Handler: says("served")}, Door{Network: "tcp", Address: at(9000), Conn: echo})
				before := ""
				if c.proxy {
					b, err := header(2).Format()
					if err != nil {
						t.Fatal(err)
					}
					before = string(b)
				}
				page, flow := w.dial(80), w.dial(9000)
				defer page.Close()
				defer flow.Close()
				io.WriteString(page, before+request)
				if got := answer(page); (got == "200 served") != c.served {
					t.Errorf("the page: %s", got)
				}
				io.WriteString(flow, before+"x")
				if got := full(flow, make([]byte, 1)); got != c.served {
					t.Errorf("the flow: %v", got)
				}
				want := uint64(2)
				if c.served {
					want = 0
				}
				w.counted("front_blocked_total", want)
				w.counted("front_connections", 2-want)
				w.counted("front_proxy_header_errors_total", 0)
			})
		})
	}
}

func TestABlockedClientMayUndoItAtADoorForAnyone(t *testing.T) {
	var list blocklist
	list.set(person)
	inWorld(t, Config{Blocked: list.blocked}, func(w *world) {
		w.set(Door{Network: "tcp", Address: at(7948), Anyone: true, Conn: echo})
		c := w.dial(7948)
		for range 2 { // the second time after a Recheck
			if _, err := io.WriteString(c, "unblock"); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, make([]byte, 7)); err != nil {
				t.Fatal(err)
			}
			w.front.Recheck()
		}
	})
}

func TestABlockCutsWhatIsOpen(t *testing.T) {
	for _, proxied := range []bool{false, true} {
		t.Run(fmt.Sprintf("proxied=%v", proxied), func(t *testing.T) {
			var list blocklist
			list.set()
			config, whom, before := Config{Blocked: list.blocked}, person, ""
			if proxied {
				config.ProxyHeadersFrom, whom = []netip.Prefix{netip.MustParsePrefix(person)}, behind
				b, _ := header(1).Format()
				before = string(b)
			}
			inWorld(t, config, func(w *world) {
				cut := make(chan error, 1)
				w.set(
					Door{Network: "tcp", Address: at(80), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						if r.URL.Path == "/slow" {
							<-r.Context().Done()
							cut <- context.Cause(r.Context())
						}
						io.WriteString(w, "done")
					})},
					Door{Network: "tcp", Address: at(9000), Conn: echo},
				)
				busy, idle, silent, flow := w.dial(80), w.dial(80), w.dial(80), w.dial(9000)
				fmt.Fprint(busy, before+"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
				fmt.Fprint(idle, before)
				ask(idle, "/")
				io.WriteString(flow, before+"x")
				full(flow, make([]byte, 1))
				time.Sleep(time.Second)

				list.set("10.0.0.0/8")
				w.front.Recheck() // blocks somebody else
				io.WriteString(flow, "y")
				if !full(flow, make([]byte, 1)) {
					t.Error("the flow ended")
				}

				list.set(whom)
				w.front.Recheck()
				for what, took := range map[string]time.Duration{"a request": ended(busy), "an idle connection": ended(idle), "a flow": ended(flow)} {
					if took > time.Second {
						t.Errorf("%s went on for %v", what, took)
					}
				}
				if <-cut == nil {
					t.Error("the handler was not told")
				}
				if proxied { // nobody knew yet from whom it is
					fmt.Fprint(silent, before+"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
				}
				if got := answer(silent); got == "200 done" {
					t.Errorf("one that had said nothing: %s", got)
				}
				w.counted("front_blocked_total", 4)
				w.counted("front_connections", 0)

				list.set()
				w.front.Recheck()
				again := w.dial(80)
				defer again.Close()
				fmt.Fprint(again, before)
				if got := ask(again, "/"); got != "200 done" {
					t.Errorf("after the block: %s", got)
				}
			})
		})
	}
}

func TestAFrontThatResumesKeepsConnections(t *testing.T) {
	inWorld(t, Config{}, func(w *world) {
		page := Door{Network: "tcp", Address: at(80), Handler: says("done")}
		w.set(page)
		w.front.Retire()
		w.set(page, Door{Network: "tcp", Address: at(8080), Handler: says("done")}) // opened meanwhile, it is retired too
		for _, port := range []int{80, 8080} {
			c := w.dial(port)
			if ask(c, "/"); ended(c) > time.Second {
				t.Errorf("port %d keeps a connection though the front is retired", port)
			}
			c.Close()
		}
		w.front.Resume()
		for _, port := range []int{80, 8080} {
			c := w.dial(port)
			for range 3 {
				if got := ask(c, "/"); got != "200 done" {
					t.Errorf("port %d: %s", port, got)
				}
				time.Sleep(10 * time.Second)
			}
			c.Close()
		}
	})
}
