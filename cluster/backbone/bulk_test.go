package backbone

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/control"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// port is a node's control port.
func (w *world) port(name string) *control.Port {
	w.Helper()
	l, err := w.hosts[name].Listen("tcp", addresses[name].String())
	if err != nil {
		w.Fatal(err)
	}
	return control.Open(control.Config{Listener: l, Guard: w.guards[name], Dial: w.hosts[name].Dial})
}

// withPort is a node with a control port, by which its flows of many bytes are carried.
func (w *world) withPort(name string) (*Backbone, *control.Port) {
	w.Helper()
	c := w.config(name, w.authority)
	port := w.port(name)
	c.Bulk = bulkOver(port)
	b := w.openWith(c)
	serveBlobs(b)
	return b, port
}

// pairByTCP is pair with control ports. All close when the world ends.
func (w *world) pairByTCP() (icn, iad *Backbone) {
	w.Helper()
	icn, icnPort := w.withPort("icn")
	iad, iadPort := w.withPort("iad")
	w.ends(icn, iad, icnPort, iadPort)
	icn.Keep(peers("iad"))
	w.until(icn, "iad", true)
	return icn, iad
}

// ends has all be closed at the end of the world.
func (w *world) ends(all ...io.Closer) { w.closers = append(w.closers, all...) }

// by says which way a flow goes.
func by(c net.Conn) string {
	if _, ok := c.(*bulkConn); ok {
		return "TCP"
	}
	return "QUIC"
}

// prefer has flows for one resource go by TCP, as if those before had been large, and faster so. There are no kernels here, so there is no BBR.
func prefer(b *Backbone, node string, a asked) *link {
	l := (*b.links.Load())[node]
	for range fewFlows {
		b.bulk.sizes.add(a, bulkBytes)
	}
	l.pool.mu.Lock()
	defer l.pool.mu.Unlock()
	l.pool.bbr, l.pool.known = true, true
	l.pool.turn = 0
	quicker(&l.pool)
	return l
}

// quicker has been what went by TCP, for all that is known. mu is held.
func quicker(p *pool) {
	for range fewRates {
		p.quic.add(1e6, time.Now())
		p.tcp.add(1e9, time.Now())
	}
}

// warmed has a link's connections be dialled, and waits for them.
func (w *world) warmed(l *link) {
	w.Helper()
	l.pool.expect()
	time.Sleep(5 * roundTrip)
	l.pool.mu.Lock()
	defer l.pool.mu.Unlock()
	if len(l.pool.warm) != maxWarm {
		w.Fatalf("%d connections are warm", len(l.pool.warm))
	}
	l.pool.bbr = true
}

func TestFlowsOfManyBytesMoveToTCP(t *testing.T) {
	inWorld(t, func(w *world) {
		w.in.Link("icn", "iad", memnet.Path{Delay: roundTrip / 2, Loss: 0.005, Rate: 300e6})
		icn, iad := w.pairByTCP()
		fetch := func(size int) string {
			c, err := icn.Dial(w.Context(), "iad", Header{Service: "blob", Resource: strconv.Itoa(size)})
			if err != nil {
				w.Fatal(err)
			}
			defer c.Close()
			if n, err := io.Copy(io.Discard, c); n != int64(size) || err != nil {
				w.Fatalf("%d bytes of %d: %v", n, size, err)
			}
			return by(c)
		}
		const size = bulkBytes + 1
		l := (*icn.links.Load())["iad"]
		for i := range fewFlows {
			if got := fetch(size); got != "QUIC" {
				w.Errorf("flow %d of many bytes goes by %s", i, got)
			}
		}
		l.pool.mu.Lock()
		quicker(&l.pool)
		l.pool.mu.Unlock()
		// The next dials, and does not wait for it. Nothing here sends with BBR, which is known once a connection is up; so it is claimed.
		if got := fetch(size); got != "QUIC" {
			w.Errorf("the flow for which the first is dialled goes by %s", got)
		}
		if n := icn.Counters()["backbone_tcp_dialled_total"]; n == 0 {
			w.Error("nobody was dialled")
		}
		time.Sleep(5 * roundTrip)
		if l := icn.Links().Get()["iad"]; l.TCP != WithoutBBR {
			w.Errorf("the link offers %q", l.TCP)
		}
		w.warmed(l)
		begun := time.Now()
		c, err := icn.Dial(w.Context(), "iad", Header{Service: "blob", Resource: strconv.Itoa(size)})
		if took := time.Since(begun); err != nil || took > roundTrip+roundTrip/2 && by(c) == "TCP" {
			w.Errorf("the dial took %v, %v", took, err)
		}
		if by(c) != "TCP" || c.RemoteAddr().String() != "iad" || c.LocalAddr().String() != "icn" {
			w.Errorf("it goes by %s from %v to %v", by(c), c.LocalAddr(), c.RemoteAddr())
		}
		c.Close()
		if got := fetch(1000); got != "QUIC" {
			w.Errorf("a flow of few bytes goes by %s", got)
		}
		synctest.Wait()
		if a, b := icn.Counters()["backbone_tcp_flows_total"], iad.Counters()["backbone_tcp_flows_taken_total"]; a != 1 || b != 1 {
			w.Errorf("%d flows were given and %d taken", a, b)
		}
	})
}

func TestAFlowByTCPHasTheMannersOfAStream(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pairByTCP()
		l := prefer(icn, "iad", asked{"echo", ""})
		w.warmed(l)
		accepted := make(chan net.Conn, 1)
		viewer := netip.MustParseAddrPort("203.0.113.9:51000")
		answer := func(in *Incoming) {
			if in.From != "icn" || in.Client != viewer {
				w.Errorf("it comes from %s for %v", in.From, in.Client)
			}
			accepted <- in.Accept()
		}
		iad.Handle("echo", answer)
		open := func() (near, far duplexConn) {
			w.Helper()
			time.Sleep(5 * roundTrip)
			prefer(icn, "iad", asked{"echo", ""})
			c, err := icn.Dial(w.Context(), "iad", Header{Service: "echo", Client: viewer})
			if err != nil || by(c) != "TCP" {
				w.Fatalf("by %s, %v", by(c), err)
			}
			return c.(duplexConn), (<-accepted).(duplexConn)
		}
		read := func(c net.Conn, want string, end error) {
			w.Helper()
			got, err := io.ReadAll(c)
			if err == nil {
				err = io.EOF
			}
			if string(got) != want || !errors.Is(err, end) {
				w.Errorf("read %q, %v; want %q, %v", got, err, want, end)
			}
		}

		near, far := open() // each direction ends by itself
		if far.RemoteAddr().String() != viewer.String() {
			w.Errorf("the far end has %v", far.RemoteAddr())
		}
		io.WriteString(near, "there")
		near.CloseWrite()
		near.CloseWrite()
		read(far, "there", io.EOF)
		if far.Gone().Err() != nil {
			w.Error("who has ended its writing has gone")
		}
		io.WriteString(far, "and back")
		far.CloseWrite()
		far.Close()
		read(near, "and back", io.EOF)
		near.Close()
		near.Close()
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			w.Errorf("closed, it reads %v", err)
		}
		if err := near.CloseWrite(); !errors.Is(err, net.ErrClosed) {
			w.Errorf("closed, it ends %v", err)
		}

		near, far = open() // what is closed without an end is cut, and what was written arrives
		big := bytes.Repeat([]byte("x"), memnet.Window/2)
		far.Write(big)
		io.WriteString(near, "nobody reads this")
		time.Sleep(roundTrip)
		far.Close()
		read(near, string(big), ErrReset)
		near.Close()

		near, far = open() // … so is what is aborted
		far.Abort()
		read(near, "", ErrReset)
		if near.Gone().Err() == nil {
			w.Error("who has aborted has not gone")
		}
		near.Abort()

		near, far = open() // a deadline passes, and the flow goes on
		near.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := near.Read(make([]byte, 1)); err == nil || errors.Is(err, ErrDown) || !isTimeout(err) {
			w.Errorf("behind its deadline it reads %v", err)
		}
		near.SetReadDeadline(time.Time{})
		io.WriteString(far, "late")
		far.CloseWrite()
		read(near, "late", io.EOF)
		near.Close()
		far.Close()

		near, far = open() // an end waits for a slow reader
		go func() {
			near.Write(bytes.Repeat([]byte("y"), 3*memnet.Window))
			near.CloseWrite()
			near.Close()
		}()
		time.Sleep(30 * time.Second)
		if n, err := io.Copy(io.Discard, far); n != 3*memnet.Window || err != nil {
			w.Errorf("%d bytes, %v", n, err)
		}
		far.Close()
		time.Sleep(2 * lingerTime)
		for _, b := range []*Backbone{icn, iad} {
			if n := b.Counters()["backbone_tcp_connections"]; n > maxWarm {
				w.Errorf("%d connections are left", n)
			}
		}
	})
}

func isTimeout(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}

func TestADialByTCPIsRefusedOrGivenUpAsOneByQUIC(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pairByTCP()
		l := prefer(icn, "iad", asked{"echo", ""})
		w.warmed(l)
		iad.Handle("echo", func(in *Incoming) { in.Refuse("not today") })
		_, err := icn.Dial(w.Context(), "iad", Header{Service: "echo"})
		if no, ok := errors.AsType[*RefusedError](err); !ok || no.Reason != "not today" {
			w.Errorf("got %v", err)
		}
		if n := icn.Counters()["backbone_tcp_fallbacks_total"]; n != 0 {
			w.Errorf("a no counts as a fallback: %d", n)
		}
		w.warmed(l)
		var told atomic.Int32
		iad.Handle("echo", func(in *Incoming) {
			<-in.Context().Done()
			told.Add(1)
		})
		ctx, cancel := context.WithTimeout(w.Context(), 4*time.Second)
		defer cancel()
		if _, err := icn.Dial(ctx, "iad", Header{Service: "echo"}); !errors.Is(err, context.DeadlineExceeded) {
			w.Errorf("got %v", err)
		}
		time.Sleep(roundTrip)
		synctest.Wait()
		if told.Load() != 1 { // by TCP, and not by QUIC once more
			w.Errorf("%d handlers were told, want 1", told.Load())
		}
		if n := icn.Counters()["backbone_tcp_fallbacks_total"]; n != 0 {
			w.Errorf("%d fallbacks", n)
		}
		for a, r := range icn.bulk.sizes.of {
			if r.count > fewFlows {
				w.Errorf("%d dials for %v that were refused or given up count as flows", r.count-fewFlows, a)
			}
		}
	})
}

// An answer may take longer than half of the time that there is: the target is dialled meanwhile.
func TestASlowAnswerIsNotTCPsFault(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pairByTCP()
		l := prefer(icn, "iad", asked{"echo", ""})
		w.warmed(l)
		var told atomic.Int32
		iad.Handle("echo", func(in *Incoming) {
			told.Add(1)
			time.Sleep(700 * time.Millisecond)
			echo(in)
		})
		ctx, cancel := context.WithTimeout(w.Context(), time.Second)
		defer cancel()
		c, err := icn.Dial(ctx, "iad", Header{Service: "echo"})
		if err != nil || by(c) != "TCP" {
			w.Fatalf("by %s, %v", by(c), err)
		}
		defer c.Close()
		if err := says(c.(duplexConn), "hello"); err != nil {
			w.Error(err)
		}
		if n := told.Load(); n != 1 {
			w.Errorf("%d handlers were told, want 1", n)
		}
		if n := icn.Counters()["backbone_tcp_fallbacks_total"]; n != 0 || l.pool.offers() == "" {
			w.Errorf("%d fallbacks, and the peer offers %q", n, l.pool.offers())
		}
	})
}

// beside is a node, icn, that has a link to another, iad, which answers as it is told to what is dialled by TCP.
func (w *world) beside(answer func(c net.Conn)) (icn *Backbone) {
	w.Helper()
	icn, icnPort := w.withPort("icn")
	iad := w.open("iad")
	iadPort := w.port("iad")
	w.ends(icn, iad, icnPort, iadPort)
	flows := iadPort.Service(control.Flow)
	go func() {
		for {
			c, err := flows.Accept()
			if err != nil {
				return
			}
			go answer(c)
		}
	}()
	icn.Keep(peers("iad"))
	w.until(icn, "iad", true)
	return icn
}

// Who does not say that it has heard, or says something else, is asked by QUIC in the same dial, and not by TCP again for a while.
func TestAFlowThatIsNotHeardOfByTCPGoesByQUIC(t *testing.T) {
	for name, says := range map[string]string{"nothing": "", "an answer": "\x00", "no": "\x01\x02no"} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				icn := w.beside(func(c net.Conn) {
					c.Write(appendGreeting(nil, greeting{bbr: true}))
					if _, err := ReadHeader(c); err == nil {
						io.WriteString(c, says)
					}
				})
				l := prefer(icn, "iad", asked{"echo", ""})
				w.warmed(l)
				ctx, cancel := context.WithTimeout(w.Context(), time.Second)
				defer cancel()
				c, err := icn.Dial(ctx, "iad", Header{Service: "echo"})
				if err != nil || by(c) != "QUIC" {
					w.Fatalf("by %s, %v", by(c), err)
				}
				c.Close()
				if n := icn.Counters()["backbone_tcp_fallbacks_total"]; n != 1 || l.pool.offers() != "" {
					w.Errorf("%d fallbacks, and the peer offers %q", n, l.pool.offers())
				}
			})
		})
	}
}

// A release before is sent no flow by TCP that would outlive its connection: it does not say that it takes any.
func TestAReleaseBeforeTakesFlowsByTCPThatEndWithIt(t *testing.T) {
	inWorld(t, func(w *world) {
		heard := make(chan Header, 1)
		icn := w.beside(func(c net.Conn) {
			c.Write(appendGreeting(nil, greeting{bbr: true}))
			if h, err := ReadHeader(c); err == nil {
				c.Write([]byte{bulkHeard, accepted})
				io.WriteString(c, "hello")
				heard <- h
			}
		})
		l := prefer(icn, "iad", asked{"echo", ""})
		w.warmed(l)
		c, err := icn.DialLasting(w.Context(), Way{Node: "iad", Header: Header{Service: "echo"}}, nil)
		if err != nil {
			w.Fatal(err)
		}
		if _, plain := c.(*bulkConn); !plain {
			w.Errorf("it is a %T", c)
		}
		if h := <-heard; h.Passage.lasts() {
			w.Errorf("it was asked for %+v", h)
		}
		if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
			w.Error(err)
		}
		c.Close()
		// What both ends know to outlive its streams goes to it by QUIC.
		prefer(icn, "iad", asked{"blob", ""})
		w.warmed(l)
		dialled := icn.Counters()["backbone_tcp_dialled_total"]
		_, err = icn.Dial(w.Context(), "iad", Header{Service: "blob", Passage: Passage{ID: [16]byte{1}, Opener: "fra"}})
		if _, refused := errors.AsType[*RefusedError](err); !refused { // there is no such service by QUIC
			w.Errorf("got %v", err)
		}
		time.Sleep(time.Second)
		if n := icn.Counters()["backbone_tcp_dialled_total"]; n != dialled {
			w.Errorf("a connection was spent")
		}
	})
}

// A flow whose other end is refused from now on is over at once, though it would outlive the connection.
func TestALastingFlowOfARevokedPeerIsOver(t *testing.T) {
	newFlowWorld(t, 1, true, func(w *flowWorld) {
		near, far := w.flow("iad", "iad", "fra")
		w.guards["iad"].SetTrust(w.trust("icn"))
		w.nodes["iad"].Check()
		w.ports["iad"].Check()
		for name, c := range map[string]net.Conn{"icn": near, "iad": far} {
			begun := time.Now()
			if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF || time.Since(begun) > 2*roundTrip {
				w.Errorf("%s read %v after %v", name, err, time.Since(begun))
			}
			c.Close()
		}
	})
}

// Who watches a connection may begin to after it was taken.
func TestAConnectionIsTakenBeforeItIsWatched(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, _ := w.pairByTCP()
		l := prefer(icn, "iad", asked{"echo", ""})
		add := func() *waiting {
			c, _, err := l.dialBulk()
			if err != nil {
				w.Fatal(err)
			}
			one := &waiting{bulkConn: c, over: make(chan struct{})}
			l.pool.warm = append(l.pool.warm, one)
			return one
		}
		one := add()
		begun := time.Now()
		taken := make(chan *bulkConn)
		go func() { taken <- l.pool.take(w.Context()) }()
		synctest.Wait()
		go l.pool.watch(one)
		if c := <-taken; c != one.bulkConn || time.Since(begun) > 0 {
			w.Errorf("%v was taken after %v", c, time.Since(begun))
		}
		one.Abort()

		l.pool.drop()
		one = add() // nobody ever watches this one
		ctx, cancel := context.WithTimeout(w.Context(), time.Second)
		defer cancel()
		begun = time.Now()
		if c := l.pool.take(ctx); c != nil || time.Since(begun) != time.Second {
			w.Errorf("%v was taken after %v", c, time.Since(begun))
		}
		if one.Gone().Err() == nil {
			w.Error("it is left open")
		}
	})
}

// What a stream carried that was refused, given up, or goes on with a flow, says nothing of what the next flow will carry.
func TestOnlyFlowsCountForWhatFlowsCarry(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pairByTCP()
		counted := func() int {
			icn.bulk.sizes.mu.Lock()
			defer icn.bulk.sizes.mu.Unlock()
			if r := icn.bulk.sizes.of[asked{"echo", ""}]; r != nil {
				return r.count
			}
			return 0
		}
		dial := func(h Header) {
			ctx, cancel := context.WithTimeout(w.Context(), time.Second)
			defer cancel()
			if c, err := icn.Dial(ctx, "iad", h); err == nil {
				c.Close()
			}
			synctest.Wait()
		}
		iad.Handle("echo", func(in *Incoming) { in.Refuse("not today") })
		dial(Header{Service: "echo"})
		iad.Handle("echo", func(in *Incoming) { <-in.Context().Done() })
		dial(Header{Service: "echo"})
		iad.HandleThrough("echo", echo)
		dial(Header{Service: "echo", Passage: Passage{ID: [16]byte{1}, Epoch: 1, Opener: "fra"}})
		if n := counted(); n != 0 {
			w.Errorf("%d dials count as flows", n)
		}
		dial(Header{Service: "echo", Passage: Passage{ID: [16]byte{2}, Opener: "fra"}})
		dial(Header{Service: "echo"})
		if n := counted(); n != 2 {
			w.Errorf("%d of 2 flows count", n)
		}
	})
}

func TestAPeerWithoutTCPIsNotAskedTwiceInARow(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, icnPort := w.withPort("icn")
		iad := w.open("iad") // of a version before, or behind a firewall
		w.ends(icn, iad, icnPort)
		icn.Keep(peers("iad"))
		w.until(icn, "iad", true)
		begun := time.Now()
		for range 60 {
			prefer(icn, "iad", asked{"echo", ""})
			c, err := icn.Dial(w.Context(), "iad", Header{Service: "echo"})
			if err != nil || by(c) != "QUIC" {
				w.Fatalf("by %s, %v", by(c), err)
			}
			if err := says(c.(duplexConn), "hello"); err != nil {
				w.Error(err)
			}
			c.Close()
			time.Sleep(time.Second)
		}
		// At once, and after 10 s, 20 s and 40 s more.
		if n := icn.Counters()["backbone_tcp_dials_failed_total"]; n != 4 {
			w.Errorf("it was asked %d times in %v", n, time.Since(begun))
		}
	})
}

func TestWarmConnectionsAreFewAndForATime(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pairByTCP()
		l := prefer(icn, "iad", asked{"echo", ""})
		w.warmed(l)
		open := func() uint64 { synctest.Wait(); return iad.Counters()["backbone_tcp_connections"] }
		for range 5 {
			l.pool.expect()
		}
		if n := open(); n != maxWarm {
			w.Errorf("%d are warm", n)
		}
		time.Sleep(bulkLife/2 + time.Second)
		l.pool.expect()
		time.Sleep(bulkLife / 2)
		if n := open(); n != maxWarm { // others, since flows are expected still
			w.Errorf("after their life %d are warm", n)
		}
		if n := icn.Counters()["backbone_tcp_dialled_total"]; n != 2*maxWarm {
			w.Errorf("%d were dialled", n)
		}
		time.Sleep(bulkMemory + bulkLife)
		if n := open(); n != 0 {
			w.Errorf("%d are warm though nothing is expected", n)
		}
		// Of a renewed node they are replaced.
		w.warmed(l)
		icn.Renew()
		if n := open(); n > maxWarm {
			w.Errorf("%d are there", n)
		}
		w.warmed(l)
		// And those of a link that is kept no more are closed.
		icn.Keep(nil)
		time.Sleep(roundTrip)
		if n := open(); n != 0 {
			w.Errorf("%d are left of a link that is kept no more", n)
		}
	})
}

func TestAWarmConnectionThatIsLostIsNotTaken(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, icnPort := w.withPort("icn")
		iad, iadPort := w.withPort("iad")
		w.ends(icn, icnPort)
		icn.Keep(peers("iad"))
		w.until(icn, "iad", true)
		l := prefer(icn, "iad", asked{"echo", ""})
		w.warmed(l)
		iad.Close()
		iadPort.Close()
		iad, iadPort = w.withPort("iad")
		w.ends(iad, iadPort)
		w.until(icn, "iad", false)
		w.until(icn, "iad", true)
		if c := l.pool.take(w.Context()); c != nil {
			w.Error("a connection of before is taken")
		}
		prefer(icn, "iad", asked{"echo", ""})
		c := w.mustDial(icn, "iad", "echo")
		if err := says(c, "hello"); err != nil {
			w.Error(err)
		}
		c.Close()
	})
}

func TestFlowsByTCPAreCutWithTheirPeer(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pairByTCP()
		l := prefer(icn, "iad", asked{"echo", ""})
		w.warmed(l)
		c := w.mustDial(icn, "iad", "echo")
		if by(c) != "TCP" {
			w.Fatal("it goes by QUIC")
		}
		begun := time.Now()
		w.in.Cut("icn", "iad")
		if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
			w.Errorf("read %v", err)
		}
		if took := time.Since(begun); took < bulkGrace || took > bulkGrace+5*time.Second {
			w.Errorf("it was cut after %v", took)
		}
		if n := icn.Counters()["backbone_tcp_cut_total"]; n == 0 {
			w.Error("that is not counted")
		}
		w.in.Heal("icn", "iad")
		w.until(icn, "iad", true)
		_ = iad
	})
}

// Gossip finds a node dead before its flows are cut, and its link is kept no longer.
func TestFlowsByTCPOfADeadPeerAreCutWhereTheyWereTaken(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pairByTCP()
		iad.Keep(peers("icn"))
		w.until(iad, "icn", true)
		w.warmed(prefer(icn, "iad", asked{"echo", ""}))
		c := w.mustDial(icn, "iad", "echo")
		if by(c) != "TCP" {
			w.Fatal("it goes by QUIC")
		}
		time.Sleep(5 * roundTrip)
		w.in.Cut("icn", "iad")
		time.Sleep(4 * time.Second)
		iad.Keep(nil)
		time.Sleep(bulkGrace / 2)
		left := func() uint64 { synctest.Wait(); return iad.Counters()["backbone_tcp_connections"] }
		if n := left(); n == 0 {
			w.Error("they are cut at once")
		}
		time.Sleep(bulkGrace/2 + silenceTimeout)
		if n := left(); n != 0 {
			w.Errorf("%d connections are left", n)
		}
		if n := iad.Counters()["backbone_tcp_cut_total"]; n != 1+maxWarm {
			w.Errorf("%d are counted, want %d", n, 1+maxWarm)
		}
		c.Abort()
	})
}

// Who is dialled may be unable to dial back, and need not for the flows that it took.
func TestFlowsByTCPOutliveTheLinkOfTheOtherDirection(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pairByTCP()
		iad.Keep(map[string]netip.AddrPort{"icn": addresses["nrt"]}) // where nobody answers
		l := prefer(icn, "iad", asked{"echo", ""})
		w.until(iad, "icn", false)
		w.warmed(l)
		c := w.mustDial(icn, "iad", "echo")
		if by(c) != "TCP" {
			w.Fatal("it goes by QUIC")
		}
		time.Sleep(4 * bulkGrace)
		if err := says(c, "hello"); err != nil {
			w.Error(err)
		}
		if n := iad.Counters()["backbone_tcp_cut_total"]; n != 0 {
			w.Errorf("%d are counted as cut", n)
		}
		c.Close()
	})
}

func TestFlowsByTCPOfARevokedPeerAreCut(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, icnPort := w.withPort("icn")
		iad, iadPort := w.withPort("iad")
		w.ends(icn, iad, icnPort, iadPort)
		icn.Keep(peers("iad"))
		w.until(icn, "iad", true)
		l := prefer(icn, "iad", asked{"echo", ""})
		w.warmed(l)
		c := w.mustDial(icn, "iad", "echo")
		defer c.Close()
		w.guards["iad"].SetTrust(w.trust("icn"))
		iad.Check()
		iadPort.Check()
		if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
			w.Errorf("read %v", err)
		}
	})
}

// A peer that is a node of the cluster and behaves badly.
func TestStrangeConnectionsAreBoundedAndCounted(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pairByTCP()
		_ = icn
		w.config("stranger", w.authority) // it has a guard
		port := w.port("stranger")
		w.ends(port)
		dial := func() net.Conn {
			w.Helper()
			c, err := port.Dial(w.Context(), addresses["iad"].String(), "iad", control.Flow)
			if err != nil {
				w.Fatal(err)
			}
			var greeting [2]byte
			if _, err := io.ReadFull(c, greeting[:]); err == nil && greeting[0] != bulkVersion {
				w.Errorf("greeted with %v", greeting)
			}
			return c
		}
		var all []net.Conn
		for range maxBulkIdle + 3 {
			all = append(all, dial())
		}
		synctest.Wait()
		if n := iad.Counters()["backbone_tcp_connections"]; n != maxBulkIdle {
			w.Errorf("%d connections of one peer wait, want %d", n, maxBulkIdle)
		}
		if n := iad.Counters()["backbone_tcp_overflow_total"]; n != 3 {
			w.Errorf("%d are counted as too many, want 3", n)
		}
		time.Sleep(bulkWait + time.Second)
		synctest.Wait()
		if n := iad.Counters()["backbone_tcp_connections"]; n != 0 {
			w.Errorf("%d wait for ever", n)
		}
		c := dial()
		c.Write([]byte("GET / HTTP/1.1\r\n"))
		all = append(all, c)
		c = dial()
		c.Write([]byte{version})
		all = append(all, c)
		time.Sleep(headerTimeout + time.Second)
		synctest.Wait()
		if n := iad.Counters()["backbone_headers_malformed_total"]; n != 2 {
			w.Errorf("%d malformed headers, want 2", n)
		}
		c = dial()
		header, _ := AppendHeader(nil, Header{Service: "nosuch"})
		c.Write(header)
		var heard [1]byte
		if _, err := io.ReadFull(c, heard[:]); err != nil || heard[0] != bulkHeard {
			w.Errorf("heard: %v, %v", heard, err)
		}
		if err := readAnswer(c); err == nil {
			w.Error("a service that is not there answers")
		}
		for _, c := range append(all, c) {
			c.Close()
		}
	})
}

// A peer that is dialled and does not speak as it should.
func TestAStrangeGreetingIsAFailedDial(t *testing.T) {
	for name, greeting := range map[string]string{"none": "", "half": "\x01", "another version": "\x02\x01", "text": "HTTP/1.1"} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				icn := w.beside(func(c net.Conn) { io.WriteString(c, greeting) })
				l := (*icn.links.Load())["iad"]
				l.pool.expect()
				time.Sleep(bulkAnswer + time.Second)
				if n := icn.Counters()["backbone_tcp_dials_failed_total"]; n != 1 {
					w.Errorf("%d dials have failed, want 1", n)
				}
				if c := l.pool.take(w.Context()); c != nil {
					w.Error("it is taken")
				}
			})
		})
	}
}

func TestABackboneThatClosesEndsItsFlowsByTCP(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pairByTCP()
		l := prefer(icn, "iad", asked{"echo", ""})
		w.warmed(l)
		c := w.mustDial(icn, "iad", "echo")
		iad.Close()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, ErrReset) {
			w.Errorf("read %v", err)
		}
		if n := iad.Counters()["backbone_tcp_connections"]; n != 0 {
			w.Errorf("%d connections are left", n)
		}
		c.Close()
	})
}

// Who publishes looks at every link, and its pool, with the backbone's lock held: neither may want that one with its own held.
func TestLinksAndPoolsWaitForNobodyWhoLooksAtThem(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, _ := w.pairByTCP()
		l := prefer(icn, "iad", asked{"echo", ""})
		icn.mu.Lock() // were it wanted, this test would stay where it is
		l.pool.expect()
		l.mu.Lock()
		for _, c := range l.carriers {
			c.warmed, c.since = false, c.since.Add(-2*warmAge)
		}
		l.mu.Unlock()
		l.measure() // has the carrier warmed
		icn.mu.Unlock()
		time.Sleep(5 * roundTrip)
		if n := icn.Counters()["backbone_tcp_dialled_total"]; n != maxWarm {
			w.Errorf("%d were dialled", n)
		}
		if icn.Counters()["backbone_warm_bytes_total"] == 0 {
			w.Error("no carrier was warmed")
		}
	})
}

func FuzzGreeting(f *testing.F) {
	for _, seed := range [][]byte{
		nil, {bulkVersion}, appendGreeting(nil, greeting{bbr: true, lasts: true}), appendGreeting(nil, greeting{}), {bulkVersion, 0xff, 1}, {0, bulkBBR},
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		r := bytes.NewReader(said)
		g, err := readGreeting(r)
		switch {
		case errors.Is(err, io.EOF):
			t.Fatal("an end that looks clean")
		case err != nil && g != greeting{}:
			t.Fatalf("%+v by what cannot be read", g)
		case err == nil && (r.Len() != len(said)-2 || said[0] != bulkVersion):
			t.Fatalf("%v was read, and %d bytes are left", said, r.Len())
		case err == nil && said[1] < 4 && !bytes.Equal(appendGreeting(nil, g), said[:2]):
			t.Fatalf("%v was read as %+v", said, g)
		}
	})
}
