package backbone

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/perigee-net/perigee/cluster/fec"
	"github.com/perigee-net/perigee/testbed/memnet"
)

const ms = time.Millisecond

func TestProtection(t *testing.T) {
	for _, c := range []struct {
		name string
		rtt  time.Duration
		loss float64
		on   bool
		want float64
		wait time.Duration
	}{
		{"far and lossy", 80 * ms, 0.01, false, 0.01, 10 * ms},
		{"so far that the wait has its bound", 300 * ms, 0.01, false, 0.01, 20 * ms},
		{"just far", 8 * ms, 0.01, false, 0.01, 2 * ms},
		{"near", 7 * ms, 0.01, true, 0, 0},
		{"clean", 80 * ms, 1e-5, true, 0, 0},
		{"too little to begin", 80 * ms, 1.5e-4, false, 0, 0},
		{"enough to go on", 80 * ms, 1.5e-4, true, 1.5e-4, 10 * ms},
		{"not measured", 0, 0.01, true, 0, 0},
	} {
		if got, wait := protection(c.rtt, c.loss, c.on); got != c.want || wait != c.wait {
			t.Errorf("%s: %v, %v", c.name, got, wait)
		}
	}
}

func TestAFullQueueIsToldFromALossyPath(t *testing.T) {
	if queued(100*ms, 80*ms) || queued(0, 0) || queued(25*ms, 20*ms) || !queued(131*ms, 80*ms) || !queued(41*ms, 20*ms) {
		t.Error("a little jitter is no queue, half as much again is one")
	}
	for _, c := range []struct {
		sent, lost uint64
		loss       float64
		want       bool
	}{
		{1000, 10, 0.01, false}, {1000, 24, 0.01, false}, {1000, 25, 0.01, true}, {1000, 4, 0, false}, {1000, 5, 0, true}, {0, 0, 0.01, false},
	} {
		var m counted
		m.add(c.sent, c.lost, 0, lossMemory)
		if got := congested(m, c.loss); got != c.want {
			t.Errorf("%d of %d at %v: %v", c.lost, c.sent, c.loss, got)
		}
	}
}

func TestLossIsLearnedAndForgotten(t *testing.T) {
	var m lossMeter
	near := func(when string, want float64) {
		t.Helper()
		if got := m.supposed(); got < want*0.7 || got > want*1.4 {
			t.Errorf("%s: %v, want about %v", when, got, want)
		}
	}
	near("nothing is known", firstDoubt)
	m.add(20, 0, time.Second)
	near("a handshake and an hour of silence tell little", firstDoubt)
	m.add(6000, 0, time.Second)
	near("six thousand that came do not show that one in a thousand is lost", lossFloor)
	m.add(doubtful, 0, time.Second)
	if m.supposed() > lossFloor/2 {
		t.Errorf("clean: %v", m.supposed())
	}
	m.add(10000, 100, time.Second)
	near("one in a hundred", 0.01)
	m.add(6000, 0, time.Second)
	if m.share() > 0.005 || m.supposed() < 0.002 {
		t.Errorf("a while without loss is not for ever: %v, %v", m.share(), m.supposed())
	}
	m.add(5, 0, 24*time.Hour)
	if m.supposed() > lossFloor/2 {
		t.Errorf("a day later: %v", m.supposed())
	}
	m.add(10, 20, time.Second)
	if m.supposed() > 1 {
		t.Errorf("a liar's report: %v", m.supposed())
	}
}

func TestParityThatDoesNotArriveIsGivenUpForATime(t *testing.T) {
	var tr trial
	now := time.Now()
	for _, c := range []struct {
		after         time.Duration
		sent, arrived uint64
		want          bool
	}{
		{0, 0, 0, false},
		{time.Hour, 0, 0, false},
		{time.Second, 900, 0, false}, // the report is under way
		{time.Second, 1900, 900, false},
		{time.Hour, 1900, 1900, false},
		{time.Second, 1900 + vainParity, 1900, false},
		{reportTime, 1900 + vainParity, 1900, false},
		{time.Second, 1901 + vainParity, 1900, true},
		{vainTime - time.Second, 1901 + vainParity, 1900, true},
		{2 * time.Second, 1901 + vainParity, 1900, false}, // tried again
		{time.Second, 3000, 1900, false},
		{reportTime, 3000, 1900, true},
		{vainTime, 3000, 1900, false},
		{time.Second, 4000, 1901, false},
		{reportTime, 4000, 1901, false},
	} {
		now = now.Add(c.after)
		if got := tr.vain(now, c.sent, c.arrived); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

// overOcean runs f with a link of icn to iad, a second old, that nobody has used.
func overOcean(t *testing.T, seed uint64, p memnet.Path, plain bool, f func(w *world, icn, iad *Backbone)) {
	t.Helper()
	overOceanOf(t, seed, p, plain, func(...*Backbone) {}, f)
}

// overOceanOf has both nodes prepared before there is a link.
func overOceanOf(t *testing.T, seed uint64, p memnet.Path, plain bool, prepare func(...*Backbone), f func(w *world, icn, iad *Backbone)) {
	t.Helper()
	inWorldSeeded(t, seed, func(w *world) {
		w.in.Link("icn", "iad", p)
		near, far := w.config("icn", w.authority), w.config("iad", w.authority)
		near.NoParity, far.NoParity = plain, plain
		icn, iad := w.openWith(near), w.openWith(far)
		defer icn.Close()
		defer iad.Close()
		serveBlobs(iad)
		prepare(icn, iad)
		icn.Keep(peers("iad"))
		w.until(icn, "iad", true)
		time.Sleep(time.Second)
		f(w, icn, iad)
	})
}

// TestALossyOceanIsAsFastAsACleanOne holds what parity is for, at 150 ms: by a link that is not warmed, as 1 MB takes two or three round trips by one that is, and a
// whole one more is a tenth more many times over.
func TestALossyOceanIsAsFastAsACleanOne(t *testing.T) {
	fetch := func(loss float64, plain bool) (took time.Duration) {
		overOceanOf(t, 1, memnet.Path{Delay: 75 * ms, Loss: loss}, plain, unwarmed, func(w *world, icn, iad *Backbone) {
			_, took = w.fetch(icn, "iad", 1_000_000)
			if repaired := icn.Counters()["backbone_packets_repaired_total"]; (repaired > 0) != (loss > 0 && !plain) {
				w.Errorf("loss %v: %d packets were repaired", loss, repaired)
			}
		})
		return took
	}
	clean, bare, repaired := fetch(0, true), fetch(0.01, true), fetch(0.01, false)
	if repaired > bare*4/10 || repaired > clean*11/10 {
		t.Errorf("1 MB at 1 %% takes %v, without parity %v, without loss %v", repaired, bare, clean)
	}
}

// TestManyBytesTakeAboutAsLongWherePacketsAreLost holds that few packets are lost to QUIC, small ones among those of a large flow included. Of connections one in eleven loses one before both ends may
// send parity, and its window stays narrow: so most of the flows are held to it, not all.
func TestManyBytesTakeAboutAsLongWherePacketsAreLost(t *testing.T) {
	fetch := func(seed uint64, loss float64) (took time.Duration) {
		overOcean(t, seed, memnet.Path{Delay: 40 * ms, Loss: loss, Rate: 300e6}, false, func(w *world, icn, iad *Backbone) {
			w.fetch(icn, "iad", 1_000_000)
			time.Sleep(500 * ms)
			_, took = w.fetch(icn, "iad", 3_000_000)
		})
		return took
	}
	clean, slow := fetch(1, 0), 0
	for seed := range uint64(7) {
		if took := fetch(seed, 0.01); took > 2*clean {
			t.Logf("seed %d: 3 MB take %v at 1 %%, and %v without loss", seed, took, clean)
			slow++
		}
	}
	if slow > 4 {
		t.Errorf("%d of 7 flows take more than twice as long at 1 %%", slow)
	}
}

// TestLossIsNoticedBeforeTheSecondIsOver has a path begin to lose packets in the midst of a flow, which has had no parity for long.
func TestLossIsNoticedBeforeTheSecondIsOver(t *testing.T) {
	clean := memnet.Path{Delay: 40 * ms, Rate: 300e6}
	overOcean(t, 1, clean, false, func(w *world, icn, iad *Backbone) {
		known := func(b *Backbone) (lost uint64) {
			b.pathing.Lock()
			defer b.pathing.Unlock()
			for _, p := range b.paths {
				p.mu.Lock()
				p.loss.all = max(p.loss.all, doubtful)
				p.mu.Unlock()
				for one := range p.watches {
					lost += one.conn.ConnectionStats().PacketsLost
				}
			}
			return lost
		}
		known(icn)
		known(iad)
		w.fetch(icn, "iad", 8_000_000)
		time.Sleep(time.Until(time.Now().Truncate(measureInterval).Add(1750 * ms))) // packets are lost right after it was looked at all
		time.AfterFunc(300*ms, func() {
			lossy := clean
			lossy.Loss = 0.002
			w.in.LinkOneWay("iad", "icn", lossy)
		})
		before := known(iad)
		w.fetch(icn, "iad", 20_000_000)
		synctest.Wait()
		if n := known(iad) - before; n == 0 || n > 20 { // of some 50
			t.Errorf("%d packets were lost to QUIC", n)
		}
	})
}

func TestParityEndsWhereNothingIsLost(t *testing.T) {
	overOcean(t, 1, memnet.Path{Delay: 40 * ms, Rate: 300e6}, false, func(w *world, icn, iad *Backbone) {
		sent := func() uint64 { return iad.Counters()["backbone_parity_sent_total"] }
		w.fetch(icn, "iad", 100_000)
		if sent() == 0 {
			t.Error("an unknown path has no parity")
		}
		w.fetch(icn, "iad", 25_000_000)
		time.Sleep(2 * time.Second)
		before := sent()
		w.fetch(icn, "iad", 1_000_000)
		if got := sent() - before; got != 0 {
			t.Errorf("%d datagrams of parity on a path that has lost nothing", got)
		}
	})
}

// TestNodesWithoutParityAreUnderstood has each end talk to one of a release that knows nothing of parity.
func TestNodesWithoutParityAreUnderstood(t *testing.T) {
	inWorld(t, func(w *world) {
		iad := w.open("iad")
		defer iad.Close()
		c := w.config("icn", w.authority)
		transport := &quic.Transport{Conn: c.PacketConn}
		defer c.PacketConn.Close()
		defer transport.Close()
		config := defaultWindows.quicConfig()
		config.KeepAlivePeriod = keepAlive
		conn, err := transport.Dial(w.Context(), net.UDPAddrFromAddrPort(addresses["iad"]), withALPN(c.ClientTLS("iad")), config)
		if err != nil {
			t.Fatal(err)
		}
		hello, err := conn.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		header, _ := AppendHeader(nil, Header{Service: helloService})
		hello.Write(header)
		if err := readAnswer(hello); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		iad.Renew()
		said := make([]byte, 10)
		if n, err := hello.Read(said); n != 1 || said[0] != dialAnew || err != nil {
			t.Errorf("it is told % x, %v", said[:n], err)
		}
		conn.CloseWithError(0, "")
	})
	inWorld(t, func(w *world) {
		c := w.config("iad", w.authority)
		transport := &quic.Transport{Conn: c.PacketConn}
		defer c.PacketConn.Close()
		defer transport.Close()
		listener, err := transport.Listen(withALPN(c.ServerTLS()), defaultWindows.quicConfig())
		if err != nil {
			t.Fatal(err)
		}
		heard := make(chan []byte, 1)
		go func() {
			conn, err := listener.Accept(w.Context())
			if err != nil {
				return
			}
			hello, err := conn.AcceptStream(w.Context())
			if err != nil {
				return
			}
			if _, err := ReadHeader(hello); err != nil {
				return
			}
			hello.Write(appendAnswer(nil, true, ""))
			rest, _ := io.ReadAll(hello)
			heard <- rest
		}()
		icn := w.open("icn")
		icn.Keep(peers("iad"))
		w.until(icn, "iad", true)
		time.Sleep(5 * time.Second)
		icn.Close()
		if rest := <-heard; len(rest) > 0 {
			t.Errorf("it is told % x", rest)
		}
		if n := icn.Counters()["backbone_parity_sent_total"]; n > 0 {
			t.Errorf("%d datagrams of parity", n)
		}
	})
}

// warmedWith is how much each end has sent of nothing.
func warmedWith(near, far *Backbone) [2]uint64 {
	return [2]uint64{near.Counters()["backbone_warm_bytes_total"], far.Counters()["backbone_warm_bytes_total"]}
}

// 300 kB are there after a round trip, in either direction, though nobody has used the link before.
func TestAFirstFlowFindsTheWindowWide(t *testing.T) {
	overOcean(t, 1, memnet.Path{Delay: 75 * ms, Rate: 300e6}, false, func(w *world, icn, iad *Backbone) {
		time.Sleep(5 * time.Second)
		before := warmedWith(icn, iad)
		if before[0] == 0 || before[0] > warmBytes+(16<<10) || before[1] == 0 || before[1] > warmBytes+(16<<10) {
			t.Errorf("warmed with %v", before)
		}
		if _, took := w.fetch(icn, "iad", 300_000); took > 250*ms { // a round trip, and QUIC's pacing
			t.Errorf("it took %v", took)
		}
		there := make(chan time.Time, 1)
		iad.Handle("sink", func(in *Incoming) {
			io.Copy(io.Discard, in.Accept())
			there <- time.Now()
		})
		begun := time.Now()
		c, err := icn.DialEarly(w.Context(), "iad", Header{Service: "sink"})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.Write(make([]byte, 300_000))
		c.(duplexConn).CloseWrite()
		if took := (<-there).Sub(begun); took > 175*ms {
			t.Errorf("the other way it took %v", took)
		}
		time.Sleep(5 * time.Second)
		if now := warmedWith(icn, iad); now != before {
			t.Errorf("warmed again: %v, then %v", before, now)
		}
	})
}

// What is asked while a link is being warmed goes first, and finds the window the wider the later it comes.
func TestAFlowDoesNotWaitForWhatWarmsItsLink(t *testing.T) {
	took := func(age time.Duration, warm bool) (took time.Duration) {
		inWorld(t, func(w *world) {
			w.in.Link("icn", "iad", memnet.Path{Delay: 75 * ms, Rate: 300e6})
			icn, iad := w.open("icn"), w.open("iad")
			defer icn.Close()
			defer iad.Close()
			serveBlobs(iad)
			if !warm {
				unwarmed(icn, iad)
			}
			icn.Keep(peers("iad"))
			w.until(icn, "iad", true)
			time.Sleep(age)
			_, took = w.fetch(icn, "iad", 1_000_000)
		})
		return took
	}
	cold := took(0, false)
	if first := took(0, true); first > cold+5*ms {
		t.Errorf("a flow that comes at once takes %v, and %v where nothing is warmed", first, cold)
	}
	if later := took(2*150*ms, true); later > cold*3/4 {
		t.Errorf("one that comes two round trips later takes %v, at once %v", later, cold)
	}
}

func TestOnlyAFewLinksAreWarmedAtATime(t *testing.T) {
	overOcean(t, 1, memnet.Path{Delay: 75 * ms, Rate: 300e6}, false, func(w *world, icn, iad *Backbone) {
		icn.Keep(nil)
		time.Sleep(time.Second)
		before := warmedWith(icn, iad)
		unwarmed(iad) // as if it were warming others
		icn.Keep(peers("iad"))
		w.until(icn, "iad", true)
		time.Sleep(2 * time.Second)
		if now := warmedWith(icn, iad); now[0] == before[0] || now[1] != before[1] {
			t.Errorf("warmed with %v, before with %v", now, before)
		}
		<-iad.warming
		time.Sleep(2 * time.Second)
		if now := warmedWith(icn, iad); now[1] == before[1] {
			t.Errorf("the far end has not had its turn: %v, before %v", now, before)
		}
	})
}

// Who has very many links sends nothing by those that nobody uses.
func TestOfVeryManyLinksThoseAreWarmedThatAreUsed(t *testing.T) {
	overOcean(t, 1, memnet.Path{Delay: 75 * ms, Rate: 300e6}, false, func(w *world, icn, iad *Backbone) {
		icn.Keep(nil)
		time.Sleep(time.Second)
		before := warmedWith(icn, iad)
		many := peers("iad")
		for i := range warmLinks {
			many[fmt.Sprint("n", i)] = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), 7947) // nobody is there
		}
		icn.Keep(many)
		w.until(icn, "iad", true)
		time.Sleep(5 * time.Second)
		if now := warmedWith(icn, iad); now != before {
			t.Errorf("warmed with %v, before with %v", now, before)
		}
		c, err := icn.Dial(w.Context(), "iad", Header{Service: "blob", Resource: "1"})
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		time.Sleep(5 * time.Second)
		if now := warmedWith(icn, iad); now[0] == before[0] || now[1] == before[1] {
			t.Errorf("a link that was used is not warmed: %v, before %v", now, before)
		}
	})
}

func TestLinksSayWhatIsMeasured(t *testing.T) {
	overOcean(t, 1, memnet.Path{Delay: 40 * ms, Loss: 0.02}, false, func(w *world, icn, iad *Backbone) {
		iad.Keep(peers("icn"))
		w.until(iad, "icn", true)
		time.Sleep(3 * time.Second) // what links are warmed with is not asked for
		var most Link
		for range 5 {
			w.fetch(icn, "iad", 1_000_000)
			time.Sleep(time.Second)
			l := iad.Links().Get()["icn"]
			most.Sent, most.Received = max(most.Sent, l.Sent), max(most.Received, l.Received)
		}
		l := iad.Links().Get()["icn"]
		if !l.Up || !l.Parity || l.Loss < 0.01 || l.Loss > 0.04 || most.Sent < 6e6 || most.Received < 1e4 || most.Received > 1e6 {
			t.Errorf("%+v, at most %+v", l, most)
		}
	})
}

func TestReportsTravel(t *testing.T) {
	overOcean(t, 1, memnet.Path{Delay: 40 * ms, Loss: 0.02}, false, func(w *world, icn, iad *Backbone) {
		w.fetch(icn, "iad", 1_000_000)
		time.Sleep(3 * time.Second)
		for _, p := range iad.paths {
			p.mu.Lock()
			if p.heard.Parity == 0 || p.heard.Repaired == 0 || p.heard != (fec.Report{Parity: p.heard.Parity, Repaired: icn.Counters()["backbone_packets_repaired_total"]}) {
				t.Errorf("heard %+v, with %v", p.heard, icn.Counters())
			}
			if share := p.loss.share(); share < 0.01 || share > 0.04 {
				t.Errorf("loss %v", share)
			}
			p.mu.Unlock()
		}
	})
}

// An end that has nothing to add, for its own window is wide already, does not keep the other from widening its.
func TestOneEndIsWarmedWhereTheOtherIsWide(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pair()
		defer icn.Close()
		defer iad.Close()
		wide := make([]byte, 4*warmBytes)
		iad.Handle("wide", func(in *Incoming) {
			c := in.Accept().(duplexConn)
			defer c.Close()
			c.Write(wide)
			c.CloseWrite()
		})
		c := w.mustDial(icn, "iad", "wide")
		defer c.Close()
		if _, err := io.ReadFull(c, wide); err != nil {
			t.Fatal(err)
		}
		time.Sleep(warmTime)
		warmed := [2]uint64{icn.Counters()["backbone_warm_bytes_total"], iad.Counters()["backbone_warm_bytes_total"]}
		if warmed[0] < warmBytes/2 || warmed[1] > warmBytes/10 { // what it had begun with before its window was wide
			t.Errorf("warmed with %v", warmed)
		}
	})
}
