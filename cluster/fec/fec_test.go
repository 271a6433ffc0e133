package fec

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/testbed/memnet"
)

var nearAddr, farAddr = netip.MustParseAddrPort("192.0.2.1:7947"), netip.MustParseAddrPort("192.0.2.2:7947")

// end is one of two, and what it reads.
type end struct {
	*Conn
	net.PacketConn
	peer *Peer
	got  chan []byte
}

// inWorld runs a test with two ends that know each other, and a path between them.
func inWorld(t *testing.T, p memnet.Path, f func(t *testing.T, near, far *end)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		in := memnet.New(1)
		t.Cleanup(in.Close)
		open := func(name string, own, other netip.AddrPort) *end {
			pc, err := in.Host(name, spec.Location{}, own.Addr()).ListenPacket("udp", own.String())
			if err != nil {
				t.Fatal(err)
			}
			e := &end{got: make(chan []byte, 20000)}
			e.Conn, e.PacketConn = New(pc)
			e.peer = e.Join(other)
			go func() {
				defer close(e.got)
				for {
					b := make([]byte, 1500)
					n, _, err := e.ReadFrom(b)
					if err != nil {
						return
					}
					e.got <- b[:n]
				}
			}()
			return e
		}
		near, far := open("near", nearAddr, farAddr), open("far", farAddr, nearAddr)
		in.Link("near", "far", p)
		near.peer.Use(far.peer.Token())
		far.peer.Expect(true)
		f(t, near, far)
	})
}

// someDatagram is one of random bytes; QUIC's are as good as that.
func someDatagram(r *rand.Rand, length int) []byte {
	b := make([]byte, length)
	for at := 0; at < length; at += 8 {
		var eight [8]byte
		binary.BigEndian.PutUint64(eight[:], r.Uint64())
		copy(b[at:], eight[:])
	}
	b[0] |= 0x40
	return b
}

func (e *end) send(t *testing.T, b []byte) {
	t.Helper()
	if n, err := e.WriteTo(b, net.UDPAddrFromAddrPort(farAddr)); n != len(b) || err != nil {
		t.Fatalf("sent %d of %d bytes: %v", n, len(b), err)
	}
}

// read is what comes within the next second.
func (e *end) read() [][]byte {
	time.Sleep(time.Second)
	var all [][]byte
	for {
		synctest.Wait()
		select {
		case b := <-e.got:
			all = append(all, b)
		default:
			return all
		}
	}
}

func (p *Peer) remembers() int {
	p.in.mu.Lock()
	defer p.in.mu.Unlock()
	return len(p.in.log) + len(p.in.pending)
}

func TestWhatIsLostIsMadeGood(t *testing.T) {
	for _, loss := range []float64{0.01, 0.03} {
		inWorld(t, memnet.Path{Delay: 10 * time.Millisecond, Jitter: time.Millisecond, Loss: loss}, func(t *testing.T, near, far *end) {
			near.peer.Protect(loss, 5*time.Millisecond)
			r := rand.New(rand.NewPCG(1, 2))
			missing, sent := map[string]bool{}, 2000
			for i := range sent {
				b := someDatagram(r, minSize+r.IntN(MaxSize-minSize+1))
				missing[string(b)] = true
				near.send(t, b)
				if i%4 == 0 {
					time.Sleep(time.Duration(r.IntN(3)) * time.Millisecond)
				}
			}
			for _, b := range far.read() {
				delete(missing, string(b))
			}
			report, count := far.peer.Report(), far.Counters()
			if lost := float64(len(missing)) / float64(sent); lost > loss/100 {
				t.Errorf("loss %v: %d of %d are missing (%+v, %v)", loss, len(missing), sent, report, count)
			}
			if want := loss * float64(sent); float64(report.Repaired) < want/2 || float64(report.Repaired) > want*2 {
				t.Errorf("loss %v: %+v, want about %v repaired", loss, report, want)
			}
			if parity := count["backbone_parity_received_total"]; parity > uint64(float64(sent)*0.7) {
				t.Errorf("loss %v: %d datagrams of parity for %d", loss, parity, sent)
			}
		})
	}
}

func TestTheLastOfThemIsMadeGoodAtOnce(t *testing.T) {
	inWorld(t, memnet.Path{Delay: 50 * time.Millisecond}, func(t *testing.T, near, far *end) {
		near.peer.Protect(0.01, 5*time.Millisecond)
		r := rand.New(rand.NewPCG(1, 2))
		sent := [][]byte{someDatagram(r, 1200), someDatagram(r, 70), someDatagram(r, 900)}
		near.send(t, sent[0])
		near.send(t, sent[1])
		near.peer.sent(sent[2], 0, nil) // given to the network, which loses it
		begun := time.Now()
		<-far.got
		<-far.got
		if got := <-far.got; !bytes.Equal(got, sent[2]) {
			t.Errorf("made %d bytes that were not sent", len(got))
		}
		if took := time.Since(begun); took != 55*time.Millisecond {
			t.Errorf("the last came after %v, want 55ms", took)
		}
	})
}

// A few small ones by themselves are what an idle connection says; among others, or many of them, they are made good like any.
func TestSmallDatagramsAreCovered(t *testing.T) {
	for name, c := range map[string]struct {
		sent []int // bytes of each; the last but one is lost
		made bool
	}{
		"some by themselves": {[]int{30, 50, 40}, false},
		"many":               {[]int{30, 50, 40, minSize}, true},
		"beside a large one": {[]int{30, 40, 1200}, true},
		"of the least size":  {[]int{1200, minSize, 40}, true},
		"smaller":            {[]int{1200, minSize - 1, 40}, false},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, memnet.Path{Delay: 50 * time.Millisecond}, func(t *testing.T, near, far *end) {
				near.peer.Protect(0.01, 5*time.Millisecond)
				r := rand.New(rand.NewPCG(1, 2))
				for i, size := range c.sent {
					if b := someDatagram(r, size); i == len(c.sent)-2 {
						near.peer.sent(b, 0, nil) // given to the network, which loses it
					} else {
						near.send(t, b)
					}
				}
				want := len(c.sent)
				if !c.made {
					want--
				}
				if got := len(far.read()); got != want {
					t.Errorf("%d came, want %d", got, want)
				}
				if n := near.count.paritySent.Load(); !c.made && name == "some by themselves" && n != 0 {
					t.Errorf("%d of parity", n)
				}
			})
		})
	}
}

func TestNothingIsAddedWithoutLoss(t *testing.T) {
	inWorld(t, memnet.Path{Delay: time.Millisecond}, func(t *testing.T, near, far *end) {
		r := rand.New(rand.NewPCG(1, 2))
		if near.peer.Protect(0, 0) {
			t.Error("parity against no loss")
		}
		for range 100 {
			near.send(t, someDatagram(r, 500))
		}
		if got := len(far.read()); got != 100 || near.count.paritySent.Load() != 0 {
			t.Errorf("%d datagrams, %d of parity", got, near.count.paritySent.Load())
		}
	})
}

func TestProbesOfTheMTUEndAtWhatCanBeCovered(t *testing.T) {
	inWorld(t, memnet.Path{Delay: time.Millisecond}, func(t *testing.T, near, far *end) {
		r := rand.New(rand.NewPCG(1, 2))
		near.send(t, someDatagram(r, MaxSize+1))
		near.peer.Limit()
		near.send(t, someDatagram(r, MaxSize+1))
		near.send(t, someDatagram(r, MaxSize))
		if got := far.read(); len(got) != 2 || len(got[0]) != MaxSize+1 || len(got[1]) != MaxSize {
			t.Errorf("%d datagrams came", len(got))
		}
	})
}

func TestAProbeSaysWhetherThePathCarriesIt(t *testing.T) {
	inWorld(t, memnet.Path{Delay: 10 * time.Millisecond, MTU: 1400}, func(t *testing.T, near, far *end) {
		if far.peer.Probe(1, MinProbe) {
			t.Error("a probe without the peer's token")
		}
		far.peer.Use(near.peer.Token())
		for number, size := range []int{1: MinProbe, 2: 1372, 3: 1373, 4: 0} {
			if number > 0 && !near.peer.Probe(uint32(number), size) {
				t.Errorf("%d bytes are not sent", size)
			}
		}
		time.Sleep(15 * time.Millisecond)
		if near.peer.Answered(1) {
			t.Error("answered before the round trip is over")
		}
		if got := append(near.read(), far.read()...); len(got) > 0 {
			t.Errorf("%d of them came out", len(got))
		}
		for number, want := range []bool{1: true, 2: true, 3: false, 4: true, 5: false, 17: false} {
			if number > 0 && near.peer.Answered(uint32(number)) != want {
				t.Errorf("probe %d: answered: %v", number, !want)
			}
		}
		if near.peer.Probe(17, 1400); near.peer.Answered(1) || near.peer.Answered(17) {
			t.Error("the answer of one 16 before it counts")
		}
	})
}

func TestAProbeWithoutTheTokenIsNotAnswered(t *testing.T) {
	inWorld(t, memnet.Path{Delay: time.Millisecond}, func(t *testing.T, near, far *end) {
		far.peer.Use(near.peer.Token())
		for _, token := range []uint32{0, far.peer.Token() + 1} {
			b := make([]byte, 100)
			putProbe(b, kindProbe, token, 1)
			near.send(t, b)
		}
		b := make([]byte, probeHead)
		putProbe(b, kindProbe, far.peer.Token(), 1)
		near.send(t, b[:probeHead-1])
		far.read()
		if far.count.strange.Load() != 3 || near.peer.Answered(1) {
			t.Errorf("%v, answered: %v", far.Counters(), near.peer.Answered(1))
		}
	})
}

// parityOf is what is sent behind some datagrams.
func parityOf(t *testing.T, token uint32, loss float64, all ...[]byte) [][]byte {
	t.Helper()
	var parity [][]byte
	c, _ := New(nil)
	c.write = func(b, _ []byte, _ *net.UDPAddr) error {
		parity = append(parity, bytes.Clone(b))
		return nil
	}
	p := c.Join(farAddr)
	p.Use(token)
	p.Protect(loss, time.Hour)
	for _, b := range all {
		p.sent(b, 0, nil)
	}
	p.closeInTime()
	return parity
}

func TestForgedParityTakesNothingAway(t *testing.T) {
	inWorld(t, memnet.Path{Delay: time.Millisecond}, func(t *testing.T, near, far *end) {
		r := rand.New(rand.NewPCG(1, 2))
		var sent [][]byte
		for range 100 {
			b := someDatagram(r, minSize+r.IntN(1000))
			sent = append(sent, b)
			near.send(t, b)
			// Someone who sees all forges the parity of what was just sent, of one that was not, and garbage.
			forged := parityOf(t, far.peer.Token(), 0.01, b, someDatagram(r, 900))[0]
			near.send(t, forged)
			near.send(t, append(forged[:headLength+2*idLength:headLength+2*idLength], someDatagram(r, 500)...))
			garbage := someDatagram(r, headLength+r.IntN(1000))
			garbage[0] = kindParity
			binary.BigEndian.PutUint32(garbage[1:], far.peer.Token())
			near.send(t, garbage)
		}
		got := map[string]bool{}
		for _, b := range far.read() {
			got[string(b)] = true
		}
		for _, b := range sent {
			if !got[string(b)] {
				t.Fatal("a datagram that arrived was not read")
			}
		}
	})
}

func TestWithoutTheTokenNothingIsKept(t *testing.T) {
	inWorld(t, memnet.Path{Delay: time.Millisecond}, func(t *testing.T, near, far *end) {
		r := rand.New(rand.NewPCG(1, 2))
		for _, b := range parityOf(t, far.peer.Token()+1, 0.01, someDatagram(r, 100)) {
			near.send(t, b)
		}
		near.send(t, []byte{kindParity})
		if got := far.read(); len(got) != 0 || far.peer.remembers() != 0 || far.peer.Report() != (Report{}) {
			t.Errorf("%d datagrams, %+v", len(got), far.peer.Report())
		}
		if far.count.strange.Load() < 3 || far.count.paritySent.Load() != 0 {
			t.Errorf("%v", far.Counters())
		}
	})
}

func TestWhatIsRememberedIsLetGo(t *testing.T) {
	inWorld(t, memnet.Path{Delay: time.Millisecond}, func(t *testing.T, near, far *end) {
		near.peer.Protect(0.01, 5*time.Millisecond)
		holds := func() int {
			near.peer.out.mu.Lock()
			defer near.peer.out.mu.Unlock()
			return len(near.peer.out.parity)
		}
		r := rand.New(rand.NewPCG(1, 2))
		for range 3 * remembered {
			near.send(t, someDatagram(r, 500))
		}
		far.read()
		if got := far.peer.remembers(); got != remembered {
			t.Errorf("%d are remembered", got)
		}
		if near.peer.Report(); holds() == 0 {
			t.Error("nothing is held for the next group")
		}
		time.Sleep(idleTime + time.Second)
		far.peer.Report()
		if near.peer.Report(); holds() != 0 {
			t.Error("it is held for a group that does not come")
		}
		near.send(t, someDatagram(r, 500)) // and goes on
		near.send(t, someDatagram(r, 500))
		if len(far.read()) != 2 || holds() == 0 {
			t.Error("nothing is covered after a rest")
		}
		time.Sleep(idleTime + time.Second)
		far.peer.Report()
		if far.peer.remembers() != 0 {
			t.Error("a silent peer is remembered")
		}
	})
}

// A connection is never silent: what it says to keep itself up must not keep what a flow has filled long ago.
func TestOfAnIdlePeerLittleIsRemembered(t *testing.T) {
	inWorld(t, memnet.Path{Delay: time.Millisecond}, func(t *testing.T, near, far *end) {
		near.peer.Protect(0.01, 5*time.Millisecond)
		room := func() (n int) {
			far.peer.in.mu.Lock()
			defer far.peer.in.mu.Unlock()
			for _, l := range far.peer.in.log {
				n += cap(l.data)
			}
			return n
		}
		r := rand.New(rand.NewPCG(1, 2))
		for range 3 * remembered {
			near.send(t, someDatagram(r, 1200))
		}
		far.read()
		if room() < remembered*1200 {
			t.Errorf("room for %d bytes", room())
		}
		for range 2 * idleTime / time.Second {
			near.send(t, someDatagram(r, 30))
			far.read()
			far.peer.Report()
		}
		if n := room(); n > remembered*smallSize {
			t.Errorf("%d bytes are held for an idle peer", n)
		}
		near.peer.sent(someDatagram(r, 500), 0, nil) // which the network loses
		near.send(t, someDatagram(r, 500))
		if len(far.read()) != 2 {
			t.Error("nothing is made good after a rest")
		}
	})
}

func TestWhatCameLateWasNotLost(t *testing.T) {
	inWorld(t, memnet.Path{Delay: time.Millisecond}, func(t *testing.T, near, far *end) {
		r := rand.New(rand.NewPCG(1, 2))
		b := someDatagram(r, 500)
		for _, parity := range parityOf(t, far.peer.Token(), 0.001, b) {
			near.send(t, parity)
		}
		far.read()
		if got := far.peer.Report(); got.Repaired != 1 {
			t.Errorf("%+v", got)
		}
		near.send(t, b)
		if far.read(); far.peer.Report().Repaired != 0 {
			t.Errorf("%+v", far.peer.Report())
		}
	})
}

func TestWhatIsBeyondRepairIsCounted(t *testing.T) {
	inWorld(t, memnet.Path{Delay: time.Millisecond}, func(t *testing.T, near, far *end) {
		r := rand.New(rand.NewPCG(1, 2))
		near.peer.Protect(1e-4, 5*time.Millisecond) // one of parity
		near.send(t, someDatagram(r, 500))
		near.peer.sent(someDatagram(r, 500), 0, nil) // lost, as the next
		near.peer.sent(someDatagram(r, 500), 0, nil)
		time.Sleep(lateTime / 2)
		if got := far.peer.Report(); got != (Report{Parity: 1}) {
			t.Errorf("at first: %+v", got)
		}
		time.Sleep(lateTime)
		if got := far.peer.Report(); got != (Report{Parity: 1, Lost: 2}) || far.count.lost.Load() != 2 {
			t.Errorf("then: %+v", got)
		}
	})
}

func TestPeersAreShared(t *testing.T) {
	c, _ := New(nil)
	one, two := c.Join(farAddr), c.Join(netip.AddrPortFrom(netip.AddrFrom16(farAddr.Addr().As16()), farAddr.Port()))
	if one != two {
		t.Error("two for one address")
	}
	one.Leave()
	if c.find(net.UDPAddrFromAddrPort(farAddr)) != two {
		t.Error("gone with the first who left")
	}
	two.Leave()
	if c.find(net.UDPAddrFromAddrPort(farAddr)) != nil {
		t.Error("still there")
	}
}

func TestParityOfTheLargestFitsWhatIsRead(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var all [][]byte
	for range MaxGroup {
		all = append(all, someDatagram(r, MaxSize))
	}
	for _, b := range parityOf(t, 1, 0.01, all...) {
		if len(b) > maxParitySize {
			t.Errorf("%d bytes", len(b))
		}
	}
}

func TestParityOfAGroup(t *testing.T) {
	for _, c := range []struct {
		n    int
		loss float64
		want int
	}{
		{0, 0.01, 0}, {20, 0, 0}, {20, 1e-4, 1}, {20, 0.001, 2}, {20, 0.01, 4}, {5, 0.01, 3}, {1, 0.01, 2}, {1, 1e-4, 1}, {20, 0.03, 6}, {20, 0.5, 6},
	} {
		if got := Parity(c.n, c.loss); got != c.want {
			t.Errorf("%d at %v: %d, want %d", c.n, c.loss, got, c.want)
		}
	}
}

// FuzzParity gives a receiver that remembers some datagrams whatever may come with the right token.
func FuzzParity(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	known := [][]byte{someDatagram(r, 64), someDatagram(r, 900), someDatagram(r, MaxSize)}
	f.Add([]byte{})
	for _, b := range append(parityOf(&testing.T{}, 0, 0.01, append(known, someDatagram(r, 300))...), parityOf(&testing.T{}, 0, 0.001, known...)...) {
		f.Add(b)
	}
	c, _ := New(nil)
	f.Fuzz(func(t *testing.T, b []byte) {
		c.ready = nil
		p := c.Join(farAddr)
		defer p.Leave()
		p.Expect(true)
		from := net.UDPAddrFromAddrPort(farAddr)
		for _, k := range known {
			c.received(p, k, nil, from)
		}
		if len(b) >= headLength {
			b[0] = kindParity + b[0]%3
			binary.BigEndian.PutUint32(b[1:], p.token)
		}
		for range 2 {
			if c.received(p, b, nil, from); len(c.ready) > MaxParity {
				t.Fatalf("%d made of one", len(c.ready))
			}
		}
		for _, a := range c.ready {
			if len(a.data) < minSize || len(a.data) > MaxSize {
				t.Fatalf("made %d bytes", len(a.data))
			}
		}
	})
}

func BenchmarkCover(b *testing.B) {
	made, _ := New(nil)
	made.write = func(_, _ []byte, _ *net.UDPAddr) error { return nil }
	p := made.Join(farAddr)
	p.Use(1)
	p.Protect(0.01, time.Hour)
	packet := someDatagram(rand.New(rand.NewPCG(1, 2)), MaxSize)
	b.SetBytes(MaxSize)
	for b.Loop() {
		p.sent(packet, 0, nil)
	}
}

func BenchmarkRemember(b *testing.B) {
	made, _ := New(nil)
	p := made.Join(farAddr)
	p.Expect(true)
	packet := someDatagram(rand.New(rand.NewPCG(1, 2)), MaxSize)
	from := net.UDPAddrFromAddrPort(farAddr)
	b.SetBytes(MaxSize)
	for b.Loop() {
		made.received(made.find(from), packet, nil, from)
	}
}
