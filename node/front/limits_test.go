package front

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/perigee-net/perigee/cluster/spec"
)

func TestWhoIsSlowIsEndedAndCounted(t *testing.T) {
	large := make([]byte, 64<<20)
	for _, c := range []struct {
		name, sends string
		drip        string        // sent again and again, each after every
		every       time.Duration // 0: nothing is
		reads       bool
		after       time.Duration
		counter     string
	}{
		{"says nothing", "", "", 0, true, headerTimeout, "front_silent_total"},
		{"stops in its first head", "GET /", "", 0, true, headerTimeout, "front_slow_requests_total"},
		{"stops in its second head", "GET /hit HTTP/1.1\r\nHost: x\r\n\r\nGET /", "", 0, true, headerTimeout, "front_slow_requests_total"},
		{"drips fields", "GET / HTTP/1.1\r\n", "X: y\r\n", time.Second, true, headerTimeout, "front_slow_requests_total"},
		{"drips fields of its second", "GET /hit HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\n", "X: y\r\n", time.Second, true, headerTimeout, "front_slow_requests_total"},
		{"stops in its body", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhello", "", 0, true, bodyTimeout, "front_slow_requests_total"},
		{"stops in a chunk", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhello", "", 0, true, bodyTimeout, "front_slow_requests_total"},
		{"reads nothing of a hit", "GET /large HTTP/1.1\r\nHost: x\r\n\r\n", "", 0, false, writeTimeout, "front_slow_readers_total"},
		{"reads nothing of a miss", "GET /miss HTTP/1.1\r\nHost: x\r\n\r\n", "", 0, false, writeTimeout, "front_slow_readers_total"},
		{"reads nothing of many hits", strings.Repeat("GET /hit HTTP/1.1\r\nHost: x\r\n\r\n", 100_000), "", 0, false, writeTimeout, "front_slow_readers_total"},
		{"asks for no more", "GET /hit HTTP/1.1\r\nHost: x\r\n\r\n", "", 0, true, idleTimeout, ""},
		{"sends empty lines", "GET /hit HTTP/1.1\r\nHost: x\r\n\r\n", "\r\n", time.Second, true, 2 * time.Second, "front_bad_requests_total"},
	} {
		inWorld(t, Config{}, func(w *world) {
			d, quick := new(diary), ready(large)
			w.set(Door{Network: "tcp", Address: at(80), Quick: d.quick, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				if _, err := io.Copy(io.Discard, r.Body); err != nil {
					panic(http.ErrAbortHandler)
				}
				rw.Write(large)
			})})
			if strings.HasPrefix(c.sends, "GET /large") {
				w.set(Door{Network: "tcp", Address: at(80), Quick: quick, Handler: d})
			}
			conn := w.dial(80)
			var others sync.WaitGroup
			start := time.Now()
			others.Go(func() {
				io.WriteString(conn, c.sends)
				for c.every > 0 {
					time.Sleep(c.every)
					if _, err := io.WriteString(conn, c.drip); err != nil {
						return
					}
				}
			})
			if c.reads {
				io.Copy(io.Discard, conn)
			} else {
				for time.Sleep(100 * time.Millisecond); w.front.Counters()["front_connections"] > 0; {
					time.Sleep(10 * time.Millisecond)
				}
			}
			if took := time.Since(start); took < c.after || took > c.after+1200*time.Millisecond {
				t.Errorf("%s: ended after %v, want %v", c.name, took, c.after)
			}
			conn.Close()
			others.Wait()
			for _, counter := range []string{"front_silent_total", "front_slow_requests_total", "front_slow_readers_total", "front_bad_requests_total"} {
				want := uint64(0)
				if counter == c.counter {
					want = 1
				}
				if got := w.front.Counters()[counter]; got != want {
					t.Errorf("%s: %s: got %d, want %d", c.name, counter, got, want)
				}
			}
		})
	}
}

func TestASlowButSteadyReaderIsNotCutOff(t *testing.T) {
	inWorld(t, Config{}, func(w *world) {
		body := make([]byte, 8<<20)
		w.set(Door{Network: "tcp", Address: at(80), Quick: ready(body), Handler: http.NotFoundHandler()})
		c := w.dial(80)
		defer c.Close()
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		b := make([]byte, 256<<10)
		for left := len(body); left > 0; time.Sleep(50 * time.Second) {
			n, err := io.ReadFull(c, b[:min(left, len(b))])
			if err != nil {
				t.Fatalf("it was cut off, with %d bytes to come: %v", left, err)
			}
			left -= n
		}
	})
}

// The time in which a client is to ask again begins when its answer is written, however long that took.
func TestASlowReaderHasTimeToAskAgain(t *testing.T) {
	inWorld(t, Config{}, func(w *world) {
		w.set(Door{Network: "tcp", Address: at(80), Quick: ready(make([]byte, 8<<20)), Handler: http.NotFoundHandler()})
		c := w.dial(80)
		defer c.Close()
		in := bufio.NewReader(c)
		for range 2 {
			io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			res, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatal(err)
			}
			io.CopyN(io.Discard, res.Body, 1<<20)
			time.Sleep(writeTimeout / 2)
			io.CopyN(io.Discard, res.Body, 1<<20)
			time.Sleep(writeTimeout - time.Second)
			if n, err := io.Copy(io.Discard, res.Body); n != 6<<20 {
				t.Fatalf("%d of the rest came: %v", n, err)
			}
			time.Sleep(time.Second)
		}
	})
}

// remembered is how many clients the doors know of.
func (w *world) remembered() (n int) {
	w.front.mu.Lock()
	defer w.front.mu.Unlock()
	for _, d := range w.front.doors {
		n += d.crowd.clients()
	}
	return n
}

func TestOneClientDoesNotCrowdADoor(t *testing.T) {
	for _, c := range []struct {
		name    string
		clients []string // of the PROXY headers, or none: the person's own address
		served  int      // of 10 connections
	}{
		{"one address", nil, 4},
		{"one address behind a balancer", []string{"198.51.100.7"}, 4},
		{"two addresses behind a balancer", []string{"198.51.100.7", "198.51.100.8"}, 8},
		{"one network of IPv6", []string{"2001:db8::1", "2001:db8::2", "2001:db8::3:4"}, 4},
		{"two networks of IPv6", []string{"2001:db8::1", "2001:db8:0:1::1"}, 8},
		{"this machine", []string{"127.0.0.1"}, 10},
	} {
		config := Config{ConnectionsPerClient: 4}
		if c.clients != nil {
			config.ProxyHeadersFrom = []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}
		}
		inWorld(t, config, func(w *world) {
			d := new(diary)
			w.set(Door{Network: "tcp", Address: at(80), Handler: d, Quick: d.quick}, Door{Network: "tcp", Address: at(9000), Conn: echo})
			for _, port := range []int{80, 9000} {
				var held []net.Conn
				served := 0
				for i := range 10 {
					conn := w.dial(port)
					held = append(held, conn)
					if c.clients != nil {
						from := c.clients[i%len(c.clients)]
						family, to := "TCP4", "203.0.113.1"
						if strings.Contains(from, ":") {
							family, to = "TCP6", "2001:db8::99"
						}
						fmt.Fprintf(conn, "PROXY %s %s %s 1 2\r\n", family, from, to)
					}
					io.WriteString(conn, "GET /hit HTTP/1.1\r\nHost: x\r\n\r\n")
					if full(conn, make([]byte, 1)) {
						served++
					}
				}
				if served != c.served {
					t.Errorf("%s, port %d: %d of 10 were served, want %d", c.name, port, served, c.served)
				}
				for _, conn := range held {
					conn.Close()
				}
				time.Sleep(time.Second)
				if n := w.remembered(); n != 0 {
					t.Errorf("%s, port %d: %d clients are remembered", c.name, port, n)
				}
			}
			w.counted("front_crowded_total", uint64(2*(10-c.served)))
			w.counted("front_connections", 0)
		})
	}
}

// A flow for which there is no room is reset, not ended as one that was whole and empty, and is told of.
func TestAFlowForWhichThereIsNoRoomIsReset(t *testing.T) {
	header := "PROXY TCP4 198.51.100.7 203.0.113.1 4000 2\r\n"
	for _, of := range []struct {
		name    string
		config  Config
		says    string
		counter string
		from    string
	}{
		{"of the door", Config{Connections: 2}, "", "front_connections_refused_total", "192.0.2.1"},
		{"of the client", Config{ConnectionsPerClient: 2}, "", "front_crowded_total", "192.0.2.1"},
		{"of a client behind a balancer", Config{ConnectionsPerClient: 2, ProxyHeadersFrom: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}}, header, "front_crowded_total", "198.51.100.7"},
		{"of the client, held by a loop", Config{ConnectionsPerClient: 2, Loop: &memLoop{}}, "", "front_crowded_total", "192.0.2.1"},
	} {
		t.Run(of.name, func(t *testing.T) {
			inWorld(t, of.config, func(w *world) {
				var told []string
				door := Door{Network: "tcp", Address: at(9000), Flow: flowing, TurnedAway: func(from netip.AddrPort) { told = append(told, from.Addr().String()) }}
				if of.config.Loop != nil {
					door.Soon = soonEcho
				}
				w.set(door)
				for range 2 {
					c := w.dial(9000)
					defer c.Close()
					io.WriteString(c, of.says+"x")
					if !full(c, make([]byte, 1)) {
						t.Error("one for which there is room is not served")
					}
				}
				c := w.dial(9000)
				io.WriteString(c, of.says)
				wantReset(t, c)
				synctest.Wait()
				w.counted(of.counter, 1)
				if !slices.Equal(told, []string{of.from}) {
					t.Errorf("told of %v", told)
				}
			})
		})
	}
}

func TestManyClientsAreNotRemembered(t *testing.T) {
	inWorld(t, Config{Connections: 100}, func(w *world) {
		w.set(Door{Network: "tcp", Address: at(80), Handler: says("x")})
		most := 0
		for i := range 3000 {
			person := w.net.Host(fmt.Sprint("p", i), spec.Location{}, netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}))
			c, err := person.Dial(w.Context(), "tcp", "203.0.113.1:80")
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Millisecond)
			defer c.Close()
			most = max(most, w.remembered())
		}
		if most > 100 {
			t.Errorf("%d clients were remembered, of a door for 100 connections", most)
		}
		if w.front.Counters()["front_connections_refused_total"] == 0 {
			t.Error("none was refused")
		}
	})
}

func TestUnfinishedHeadsHaveABoundTogether(t *testing.T) {
	inWorld(t, Config{HeaderBytes: 64 << 10}, func(w *world) {
		d := new(diary)
		w.set(Door{Network: "tcp", Address: at(80), Handler: d, Quick: d.quick})
		long := "GET /hit HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 20<<10)
		var held []net.Conn
		for range 3 { // each needs 32 KiB
			c := w.dial(80)
			defer c.Close()
			io.WriteString(c, long)
			time.Sleep(time.Second)
			held = append(held, c)
		}
		if got := answer(held[2]); !strings.HasPrefix(got, "503 ") {
			t.Errorf("one too many: %s", got)
		}
		w.counted("front_heads_bytes", 64<<10)
		w.counted("front_heads_refused_total", 1)
		for _, c := range held[:2] {
			io.WriteString(c, "\r\n\r\n")
			if got := answer(c); got != "200 hit" {
				t.Errorf("one that was held: %s", got)
			}
		}
		w.counted("front_heads_bytes", 0)
	})
}

func TestOneClientsUnfinishedHeadsDenyNobodyElses(t *testing.T) {
	c := certified
	c.HeaderBytes = headsShare * 64 << 10
	inWorld(t, c, func(w *world) {
		d := new(diary)
		w.set(Door{Network: "tcp", Address: at(80), Handler: d, Quick: d.quick}, Door{Network: "tcp", Address: at(443), TLS: true, Handler: says("ok")})
		var held []net.Conn
		defer func() {
			for _, c := range held {
				c.Close()
			}
		}()
		long := "GET /hit HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 20<<10)
		refused := 0
		for range 20 { // each needs 32 KiB
			c := w.dial(80)
			io.WriteString(c, long)
			time.Sleep(100 * time.Millisecond)
			c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			if got := answer(c); strings.HasPrefix(got, "503 ") {
				refused++
				c.Close()
				continue
			}
			held = append(held, c)
		}
		if len(held) != 2 || refused != 18 {
			t.Errorf("one client holds %d long heads, and %d were refused; want 2 and 18", len(held), refused)
		}
		w.counted("front_heads_bytes", 64<<10)
		w.counted("front_heads_refused_total", 18)

		piece := frame(headersFrame, endOfStream, 1, append(get, literal("x", strings.Repeat("x", 100))...))
		two := raw2(w)
		two.Write(piece)
		if said, open := hear(two); open || !slices.Contains(said, "go ENHANCE_YOUR_CALM") {
			t.Errorf("its HTTP/2: heard %q, open: %v", said, open)
		}
		two.Close()
		w.counted("front_heads_refused_total", 19)

		w.person = w.net.Host("another", spec.Location{}, netip.MustParseAddr("192.0.2.2"))
		other := w.dial(80)
		defer other.Close()
		io.WriteString(other, long)
		time.Sleep(time.Second)
		io.WriteString(other, "\r\n\r\n")
		if got := answer(other); got != "200 hit" {
			t.Errorf("another client: %s", got)
		}
		two = raw2(w)
		defer two.Close()
		two.Write(piece)
		time.Sleep(time.Second)
		two.Write(frame(continuationFrame, endOfHeaders, 1, nil))
		if said, _ := hear(two); !slices.Contains(said, "1:200") {
			t.Errorf("another client's HTTP/2: heard %q", said)
		}
	})
	f := New(Config{})
	client := netip.MustParseAddr("192.0.2.1")
	if f.heads.take(client, f.heads.each+1) || !f.heads.take(client, f.heads.each) || !f.heads.take(netip.Addr{}, f.heads.most-f.heads.each) || f.heads.take(netip.Addr{}, 1) {
		t.Error("a client has more or less than its share, or what stands for many has not all")
	}
	f.heads.give(client, f.heads.each)
	f.heads.give(netip.Addr{}, f.heads.most-f.heads.each)
	if f.heads.bytes() != 0 || len(f.heads.held) != 0 {
		t.Errorf("%d bytes are counted when nothing is held, of %d clients", f.heads.bytes(), len(f.heads.held))
	}
}

func TestAClientsConnectionsOfTCPAndQUICAreCountedTogether(t *testing.T) {
	threefold(t, Config{ConnectionsPerClient: 4}, says("x"), func(w *world) {
		var held []net.Conn
		for range 3 {
			held = append(held, w.dial(443))
		}
		time.Sleep(time.Second)
		v := w.visitor(nil, nil)
		defer v.leave()
		if got := v.ask("GET", site, nil); got != "200 x" {
			t.Errorf("the fourth: %s", got)
		}
		other := w.visitor(nil, nil)
		defer other.leave()
		var refused *quic.ApplicationError
		if _, err := other.RoundTrip(w.request("GET", site)); !errors.As(err, &refused) || refused.ErrorCode != quic.ApplicationErrorCode(http3.ErrCodeExcessiveLoad) {
			t.Errorf("one of QUIC more: %v", err)
		}
		crowded := w.front.Counters()["front_crowded_total"]
		if crowded == 0 {
			t.Error("it is not counted")
		}
		more := w.dial(443)
		ended(more)
		more.Close()
		w.counted("front_crowded_total", crowded+1)
		for _, c := range held {
			c.Close()
		}
		time.Sleep(time.Second)
		if got := other.ask("GET", site, nil); got != "200 x" {
			t.Errorf("when there is room again: %s", got)
		}
	})
	front := New(Config{ConnectionsPerClient: 4})
	d := &quicDoor{front: front, guests: map[*quicGuest]struct{}{}, crowd: newCrowd(), comers: newCrowd()}
	d.behind.Store(&Door{})
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	for range 10 {
		if _, err := d.arrives(ctx, &quic.ClientInfo{RemoteAddr: &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}}); err != nil {
			t.Errorf("this machine: %v", err)
		}
	}
}

// Whoever forges the first packets of a handshake keeps nobody from TCP whose address they name.
func TestForgedHandshakesTakeNoRoomOfTheirVictim(t *testing.T) {
	d := &quicDoor{front: New(Config{ConnectionsPerClient: 4}), guests: map[*quicGuest]struct{}{}, crowd: newCrowd(), comers: newCrowd()}
	d.behind.Store(&Door{})
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	comes := func(verified bool) error {
		_, err := d.arrives(ctx, &quic.ClientInfo{RemoteAddr: &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1}, AddrVerified: verified})
		return err
	}
	for range 4 {
		if err := comes(false); err != nil {
			t.Error(err)
		}
	}
	if n := d.crowd.clients(); n != 0 {
		t.Errorf("%d clients have room taken", n)
	}
	if comes(false) == nil || comes(true) == nil {
		t.Error("one more of QUIC than there may be")
	}
	for g := range maps.Clone(d.guests) {
		d.leaves(g)
	}
	victim := netip.MustParseAddr("192.0.2.1")
	for range 3 {
		d.crowd.add(victim, 4)
	}
	if err := comes(true); err != nil {
		t.Error(err)
	}
	if comes(true) == nil {
		t.Error("one more than there may be of TCP and QUIC together")
	}
	for g := range maps.Clone(d.guests) {
		d.leaves(g)
	}
	if n := d.crowd.held[victim]; n != 3 || d.comers.clients() != 0 {
		t.Errorf("%d are counted of TCP, and of QUIC %d clients", n, d.comers.clients())
	}
}

// A head of no bytes is held by nobody.
func TestAnEmptyHeadIsNotRemembered(t *testing.T) {
	h := newHeads(1 << 20)
	if !h.take(netip.MustParseAddr("192.0.2.1"), 0) || len(h.held) != 0 {
		t.Error("a client is remembered")
	}
}

func TestASlowBodyOfHTTP2IsCounted(t *testing.T) {
	inWorld(t, certified, func(w *world) {
		errs := make(chan error, 1)
		w.set(Door{Network: "tcp", Address: at(443), TLS: true, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			_, err := io.ReadAll(r.Body)
			errs <- err
		})})
		c := raw2(w)
		defer c.Close()
		start := time.Now()
		c.Write(frame(headersFrame, endOfHeaders, 1, post))
		if err := <-errs; !timedOut(err) || time.Since(start) < bodyTimeout {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		w.counted("front_slow_requests_total", 1)
	})
}
