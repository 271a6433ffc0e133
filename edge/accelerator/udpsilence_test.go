package accelerator

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/backbone"
	"github.com/perigee-net/perigee/cluster/datagram"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/origin/relay"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// A new flow whose candidates have died without a word goes to the next with what it has sent, each region in its turn, and is there within a second.
func TestANewFlowOfDatagramsLeavesWhoIsSilent(t *testing.T) {
	const ms = time.Millisecond
	for silent, regions := range map[int][]string{1: {"icn", "icn"}, 2: {"icn", "icn", "nrt"}, 3: {"icn", "icn", "nrt", "iad"}} {
		t.Run(fmt.Sprint(silent), func(t *testing.T) {
			onUDPBench(t, threeRegions(), func(b *udpBench) {
				b.silent = silent
				conn := b.dial()
				began := time.Now()
				b.send(conn, "1", "2")
				time.Sleep(time.Second)
				b.settle()
				all := b.fars(silent + 1)
				b.mu.Lock()
				for i, f := range all {
					if f.node[:3] != regions[i] || i == 1 && f.node == all[0].node || !slices.Equal(f.came, []string{"1", "2"}) || f.closed != (i < silent) {
						b.Errorf("flow %d went to %s, where came %q; closed: %t", i, f.node, f.came, f.closed)
					}
					if i < silent && (len(f.asked) != maxAsks || f.asked[maxAsks-1] > soonest-15*ms || f.asked[0] < 15*ms) {
						b.Errorf("%s was asked after %v", f.node, f.asked)
					}
				}
				last := all[len(all)-1]
				if took := last.opened.Sub(began); took > time.Duration(silent)*soonest+10*ms {
					b.Errorf("it took %v", took)
				}
				b.mu.Unlock()
				b.counted(map[string]uint64{
					"datagram_flows_silent_total": uint64(silent), "attempts_failed_total": uint64(silent), "datagrams_in_total": 2,
					"datagrams_resent_total": uint64(2 * silent), "datagram_flows_total": 1, "datagrams_dropped_total": 0,
				})
				// What is silent no more is not heard, and the flow stays.
				all[0].to.Known()
				all[0].to.Receive([][]byte{[]byte("late")})
				last.to.Receive([][]byte{[]byte("yes")})
				b.send(conn, "3")
				time.Sleep(time.Second)
				b.fars(silent + 1)
				buf := make([]byte, 9)
				if n, err := conn.Read(buf); string(buf[:n]) != "yes" || err != nil {
					b.Errorf("got %q, %v", buf[:n], err)
				}
				if !slices.Equal(last.came, []string{"1", "2", "3"}) {
					b.Errorf("came %q", last.came)
				}
				b.counted(map[string]uint64{"datagrams_unsent_total": 1, "datagrams_out_total": 1})
			})
		})
	}
}

// Whatever is heard of a flow's way keeps it there, and nobody is asked any more.
func TestAWordKeepsAFlowOfDatagramsWhereItIs(t *testing.T) {
	for name, word := range map[string]func(f *fakeFar){
		"it is known":    func(f *fakeFar) { f.to.Known() },
		"it is answered": func(f *fakeFar) { f.to.Receive([][]byte{[]byte("yes")}) },
		"it is told":     func(f *fakeFar) { f.to.Told("10.0.0.1:80") },
	} {
		t.Run(name, func(t *testing.T) {
			onUDPBench(t, threeRegions(), func(b *udpBench) {
				b.silent = 1
				b.send(b.dial(), "1")
				f := b.fars(1)[0]
				time.Sleep(soonest / 4)
				word(f)
				time.Sleep(time.Minute / 4)
				b.fars(1)
				if len(f.asked) != 1 || f.closed { // after 16 ms, and the next were after 105
					b.Errorf("asked after %v, closed: %t", f.asked, f.closed)
				}
				b.counted(map[string]uint64{"datagram_flows_silent_total": 0})
			})
		})
	}
	// Nobody waits for a flow that has ended.
	onUDPBench(t, threeRegions(), func(b *udpBench) {
		b.silent = 1
		b.send(b.dial(), "1")
		b.fars(1)[0].to.End(nil)
		time.Sleep(time.Second)
		b.fars(1)
	})
}

// A flow that can go nowhere else stays, whether there is one candidate or all others were silent, and a late answer comes through, as what follows does.
func TestAFlowOfDatagramsWithNowhereElseToGoStays(t *testing.T) {
	for name, c := range map[string]struct {
		network network
		silent  int
	}{
		"the only one": {only(testEndpoint{"a", 128, false}), 1},
		"the last":     {only(testEndpoint{"a", 128, false}, testEndpoint{"b", 128, false}), 2},
	} {
		t.Run(name, func(t *testing.T) {
			onUDPBench(t, c.network, func(b *udpBench) {
				b.silent = c.silent
				conn := b.dial()
				b.send(conn, "1")
				time.Sleep(time.Second)
				f := b.fars(c.silent)[c.silent-1]
				b.send(conn, "2")
				f.to.Receive([][]byte{[]byte("late")})
				b.settle()
				buf := make([]byte, 9)
				conn.SetReadDeadline(time.Now().Add(time.Second))
				if n, err := conn.Read(buf); string(buf[:n]) != "late" || err != nil {
					b.Errorf("got %q, %v", buf[:n], err)
				}
				b.fars(c.silent)
				if f.isClosed() || !slices.Equal(f.came, []string{"1", "2"}) {
					b.Errorf("closed: %t, came %q", f.isClosed(), f.came)
				}
				b.counted(map[string]uint64{
					"datagram_flows_silent_total": uint64(c.silent - 1), "datagrams_dropped_total": 0, "datagrams_unsent_total": 0, "flows_dropped_no_endpoint_found_total": 0,
				})
			})
		})
	}
}

// As long as nobody else is heard of, a late word of one that was left has the flow go back there, with what the client has sent since: whatever the word is, and whichever of them says it.
func TestAFlowGoesBackToWhoAnswersLate(t *testing.T) {
	for name, c := range map[string]struct {
		silent, late int // of as many, this one is heard of after all
		known        bool
	}{
		"the first of two":   {2, 0, false},
		"it only says so":    {2, 0, true},
		"the second of four": {4, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			onUDPBench(t, threeRegions(), func(b *udpBench) {
				b.silent = c.silent
				conn := b.dial()
				b.send(conn, "1")
				time.Sleep(soonest*time.Duration(c.silent-1) + soonest/4)
				b.send(conn, "2")
				all := b.fars(c.silent)
				one := all[c.late]
				if one.isClosed() {
					b.Error("it was told that the flow is over")
				}
				if c.known {
					one.to.Known()
				}
				one.to.Receive([][]byte{[]byte("late")})
				b.settle()
				b.send(conn, "3")
				all[len(all)-1].to.Known()
				all[len(all)-1].to.Receive([][]byte{[]byte("later")})
				b.settle()
				time.Sleep(time.Second)
				b.fars(c.silent)
				for i, f := range all {
					if f.isClosed() != (i != c.late) {
						b.Errorf("flow %d was ended: %t", i, f.isClosed())
					}
				}
				if !slices.Equal(one.came, []string{"1", "2", "3"}) {
					b.Errorf("came %q", one.came)
				}
				buf := make([]byte, 9)
				if n, err := conn.Read(buf); string(buf[:n]) != "late" || err != nil {
					b.Errorf("got %q, %v", buf[:n], err)
				}
				conn.SetReadDeadline(time.Now().Add(time.Second))
				if n, err := conn.Read(buf); err == nil {
					b.Errorf("got %q from another", buf[:n])
				}
				live := b.plane.live.of("game")
				if len(live) != 1 || live[0].node != one.node {
					b.Errorf("live flows: %+v", live)
				}
				b.counted(map[string]uint64{
					"datagram_flows_late_total": 1, "datagram_flows_total": 1, "datagrams_in_total": 3, "datagrams_resent_total": uint64(c.silent), "datagrams_out_total": 1, "datagrams_unsent_total": 1,
				})
			})
		})
	}
}

// Who was silent is told that the flow is over once another is heard of, or it has ended.
func TestWhoWasSilentIsToldOnceTheFlowHasSettled(t *testing.T) {
	for name, settle := range map[string]func(b *udpBench, all []*fakeFar){
		"another is heard of": func(b *udpBench, all []*fakeFar) { all[1].to.Known() },
		"the flow has ended":  func(b *udpBench, _ []*fakeFar) { time.Sleep(31 * time.Second) },
		"its door is closed":  func(b *udpBench, _ []*fakeFar) { b.shut() },
	} {
		t.Run(name, func(t *testing.T) {
			onUDPBench(t, only(testEndpoint{"a", 128, false}, testEndpoint{"b", 128, false}), func(b *udpBench) {
				b.silent = 2
				b.send(b.dial(), "1")
				time.Sleep(time.Second)
				all := b.fars(2)
				if all[0].isClosed() {
					b.Error("it was told too soon")
				}
				settle(b, all)
				if !all[0].isClosed() {
					b.Error("it was not told")
				}
			})
		})
	}
	// One that has ended the flow itself, or refuses it, is not gone back to.
	for _, why := range []error{nil, &backbone.RefusedError{Reason: "no"}} {
		onUDPBench(t, only(testEndpoint{"a", 128, false}, testEndpoint{"b", 128, false}), func(b *udpBench) {
			b.silent = 2
			b.send(b.dial(), "1")
			time.Sleep(time.Second)
			all := b.fars(2)
			all[0].to.End(why)
			all[0].to.Receive([][]byte{[]byte("late")})
			b.settle()
			b.fars(2)
			b.counted(map[string]uint64{"datagram_flows_late_total": 0, "datagrams_unsent_total": 1})
		})
	}
}

// One that has stayed goes on with what it has sent when the link to who was silent is down.
func TestAFlowThatHasStayedGoesOnWhenItsLinkIsDown(t *testing.T) {
	onUDPBench(t, only(testEndpoint{"a", 128, false}), func(b *udpBench) {
		b.silent = 1
		conn := b.dial()
		b.send(conn, "1")
		time.Sleep(time.Second)
		b.mu.Lock()
		b.opened[0].broken = backbone.ErrDown
		b.mu.Unlock()
		b.send(conn, "2")
		if f := b.fars(2)[1]; !slices.Equal(f.came, []string{"1", "2"}) {
			b.Errorf("came %q", f.came)
		}
	})
}

// Where the link is known to be down before it was waited long enough, what was sent by it goes along with the next datagram.
func TestWhatNobodyHasHeardGoesAlongWhenTheLinkIsDown(t *testing.T) {
	onUDPBench(t, threeRegions(), func(b *udpBench) {
		b.silent = 1
		conn := b.dial()
		b.send(conn, "1", "2")
		b.mu.Lock()
		one := b.opened[0]
		one.broken = backbone.ErrDown
		b.down[one.node] = true
		b.mu.Unlock()
		b.send(conn, "3")
		if f := b.fars(2)[1]; f.node == one.node || !slices.Equal(f.came, []string{"1", "2", "3"}) {
			b.Errorf("at %s came %q", f.node, f.came)
		}
		b.counted(map[string]uint64{"datagrams_resent_total": 2, "datagrams_in_total": 3})
	})
}

func TestANodeIsWaitedForByItsRoundTrip(t *testing.T) {
	const us = time.Microsecond
	for _, c := range []struct {
		rtt  time.Duration
		want schedule
		late bool // it is asked again only if it is late
	}{
		{0, schedule{200_000 * us, 10_000 * us, 90_000 * us}, true},
		{20_000 * us, schedule{200_000 * us, 32_500 * us, 67_500 * us}, true},
		{100_000 * us, schedule{260_000 * us, 122_500 * us, 12_500 * us}, true},
		{150_000 * us, schedule{372_500 * us, 178_750 * us, 12_500 * us}, true},
		{200_000 * us, schedule{375_000 * us, 50_000 * us, 50_000 * us}, false},
		{300_000 * us, schedule{425_000 * us, 29_166_666, 29_166_666}, false},
		{2_000_000 * us, schedule{1_000_000 * us, 0, 0}, false},
	} {
		got := scheduleOf(c.rtt)
		if got != c.want {
			t.Errorf("%v: %v, want %v", c.rtt, got, c.want)
		}
		if last := got.first + (maxAsks-1)*got.each + c.rtt; c.rtt < time.Second && last > got.all {
			t.Errorf("%v: the answer to the last comes after %v", c.rtt, last)
		}
		if late := got.first > c.rtt; late != c.late {
			t.Errorf("%v: it is asked again after %v", c.rtt, got.first)
		}
	}
}

// On a detour the node in between answers for itself; where all know of that it is heard of the node behind it, and else that has to do.
func TestTheNodeBehindADetourIsHeardItself(t *testing.T) {
	for _, knows := range []bool{true, false} {
		t.Run(fmt.Sprint(knows), func(t *testing.T) {
			onUDPBench(t, network{groups: []testGroup{up("iad", 90, 100)}}, func(b *udpBench) {
				v := b.plane.config.View()
				v.Members = append(v.Members, view.Member{Name: "sfo1", Asks: knows})
				v.Members[slices.IndexFunc(v.Members, func(m view.Member) bool { return m.Name == "iad1" })].Tells = true
				v.Detour = by(map[string]view.Detour{"iad1": {By: "sfo1", RTT: 60 * time.Millisecond, Direct: 90 * time.Millisecond}})
				slices.SortFunc(v.Members, func(a, b view.Member) int { return strings.Compare(a.Name, b.Name) })
				b.send(b.dial(), "1")
				time.Sleep(time.Second)
				if !knows {
					b.fars(1)
					return
				}
				all := b.fars(2)
				if !strings.HasSuffix(all[0].header.Resource, "/told") || all[0].node != "sfo1" || all[1].node != "iad1" || !slices.Equal(all[1].came, []string{"1"}) {
					b.Errorf("went by %s for %s, then to %s, where came %q", all[0].node, all[0].header.Resource, all[1].node, all[1].came)
				}
				b.counted(map[string]uint64{"datagram_flows_silent_total": 1, "detours_failed_total": 1})
			})
		})
	}
}

// So it is over the backbone: what the node behind tells comes by the one in between, and where that node has died the other's word does not do.
func TestANodeBehindADetourThatHasDiedIsFoundOut(t *testing.T) {
	for _, dead := range []bool{false, true} {
		t.Run(fmt.Sprintf("dead %t", dead), func(t *testing.T) {
			n := only(testEndpoint{"a", 128, false}, testEndpoint{"b", 128, false}) // who has nowhere else to go stays
			n.tells = true
			overUDPBy(t, n, true, "sfo1", func(t *testing.T, c net.Conn, planes map[string]interface{ Counters() map[string]uint64 }) {
				edge := planes["edge"].(*Plane)
				v := edge.config.View()
				v.Members = append(v.Members, view.Member{Name: "sfo1", Asks: true})
				if dead {
					planes["network"].(*memnet.Internet).CutOff("icn1")
				}
				got, _ := asks(t, c, "x")
				if silent := edge.Counters()["accelerator_datagram_flows_silent_total"]; (got != "x") != dead || (silent > 0) != dead {
					t.Errorf("got %q, silent %d", got, silent)
				}
			})
		})
	}
}

// Who carries a flow on asks on, until the other end has told something.
func TestWhoCarriesAFlowOnAsksOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeFar{b: &udpBench{}, silent: true}
		p := New(Config{Open: func(_ string, _ backbone.Header, _ bool, to backbone.Receiver) (Datagrams, error) {
			f.to = to
			return f, nil
		}})
		r, err := p.carryOn(backbone.Header{Resource: "icn1/30/targetGroup/a/told"}, true, new(backHome))
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			r.Asked()
			time.Sleep(askPause / 2)
		}
		f.to.Told("10.0.0.1:80")
		time.Sleep(askPause)
		r.Asked()
		if len(f.asked) != 5 {
			t.Errorf("asked %d times", len(f.asked))
		}
		r.End(nil)
	})
}

// lossyFar is a flow toward a node that lives, by a path that loses some of what goes there and comes back.
type lossyFar struct {
	to    backbone.Receiver
	rtt   time.Duration
	loss  float64
	asked *atomic.Int64

	mu     sync.Mutex
	chance *rand.Rand
}

func (f *lossyFar) Send([][]byte) error { f.opening(); return nil }
func (f *lossyFar) Ask()                { f.asked.Add(1); f.opening() }
func (f *lossyFar) Close()              {}

func (f *lossyFar) opening() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if there, back := f.chance.Float64() >= f.loss, f.chance.Float64() >= f.loss; there && back {
		time.AfterFunc(f.rtt, f.to.Known)
	}
}

// Loss alone moves hardly a flow: that takes four openings in a row that are lost, or whose answers are. Each flow has its own luck, the same in each run.
func TestLossHardlyMovesAFlowOfDatagrams(t *testing.T) {
	const flows = 10_000
	for _, c := range []struct {
		loss        float64
		rtt         time.Duration
		least, most uint64
		asked       float64 // of each flow, on average
	}{
		{0.01, 5 * time.Millisecond, 0, 0, 0.02},  // 0.002 are to be expected
		{0.1, 5 * time.Millisecond, 3, 25, 0.24},  // 13
		{0.1, 100 * time.Millisecond, 3, 25, 0.6}, // who is late is asked three times before the answer to the first
	} {
		t.Run(fmt.Sprintf("%v %v", c.loss, c.rtt), func(t *testing.T) {
			onUDPBench(t, only(testEndpoint{"a", 128, false}, testEndpoint{"b", 128, false}), func(b *udpBench) {
				b.plane.config.View().RTT["icn1"] = c.rtt
				var opened, asked atomic.Int64
				b.plane.config.Open = func(_ string, _ backbone.Header, _ bool, to backbone.Receiver) (Datagrams, error) {
					chance := rand.New(rand.NewPCG(1, uint64(opened.Add(1))))
					return &lossyFar{to: to, rtt: c.rtt, loss: c.loss, asked: &asked, chance: chance}, nil
				}
				d := &datagramDoor{plane: b.plane, at: local}
				for second := range flows / 5000 {
					for i := range 5000 {
						d.take([]datagram.Datagram{{From: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(second), byte(i >> 8), byte(i)}), 7), Data: []byte("x")}})
					}
					time.Sleep(time.Second)
				}
				moved := b.plane.Counters()["accelerator_datagram_flows_silent_total"]
				if n := opened.Load(); n != flows+int64(moved) {
					b.Errorf("%d ways, %d moved", n, moved)
				}
				b.Logf("of %d flows %d were moved, %d times it was asked again", flows, moved, asked.Load())
				if moved < c.least || moved > c.most {
					b.Errorf("%d were moved", moved)
				}
				if most := c.asked * flows * 1.1; float64(asked.Load()) > most {
					b.Errorf("it was asked again %d times", asked.Load())
				}
			})
		})
	}
}

// Two regions die without a word: who comes then is answered by the third within a second.
func TestANewFlowOfDatagramsIsAnsweredWithinASecondThoughTwoRegionsHaveDied(t *testing.T) {
	n := network{groups: []testGroup{up("icn", 95, 100), up("nrt", 97, 100), up("iad", 99, 100)}}
	overUDP(t, n, true, func(t *testing.T, c net.Conn, planes map[string]interface{ Counters() map[string]uint64 }) {
		in := planes["network"].(*memnet.Internet)
		in.CutOff("icn1")
		in.CutOff("nrt1")
		got, took := asks(t, c, "new")
		if got != "new" || took > time.Second {
			t.Errorf("got %q after %v", got, took)
		}
		t.Logf("it took %v", took)
		edge := planes["edge"].Counters()
		if edge["accelerator_datagram_flows_silent_total"] != 2 || planes["iad1 origin"].Counters()["origin_datagrams_in_total"] != 1 {
			t.Errorf("counted %v", edge)
		}
		if got, took := asks(t, c, "again"); got != "again" || took > 150*time.Millisecond {
			t.Errorf("got %q after %v", got, took)
		}
	})
}

// By a path that loses one packet in ten flows stay with a node that lives, but for the few that meet with nothing but loss.
func TestFlowsOfDatagramsStayOnALossyPath(t *testing.T) {
	n := network{groups: []testGroup{up("icn", 100, 100), up("nrt", 140, 100)}}
	overUDP(t, n, true, func(t *testing.T, c net.Conn, planes map[string]interface{ Counters() map[string]uint64 }) {
		const flows = 500
		in := planes["network"].(*memnet.Internet)
		in.Link("self", "icn1", memnet.Path{Delay: 50 * time.Millisecond, Loss: 0.1})
		for range flows {
			conn, err := planes["client"].(clients).Dial(t.Context(), "udp", local.String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			io.WriteString(conn, "x")
			time.Sleep(5 * time.Millisecond)
		}
		time.Sleep(time.Second)
		moved := planes["edge"].Counters()["accelerator_datagram_flows_silent_total"]
		t.Logf("of %d flows %d were moved", flows, moved)
		if moved > flows/50 {
			t.Errorf("%d were moved", moved)
		}
	})
}

// What a flow lacks where it goes back to is told by what was kept, not by what went there: some may have been too many or too large to be kept.
func TestAFlowGoesBackWithAllThatWasKeptSince(t *testing.T) {
	for name, more := range map[string][][]byte{
		"a batch":   slices.Repeat([][]byte{[]byte("more")}, relay.MaxKept),
		"large one": {make([]byte, relay.MaxKeptBytes)},
	} {
		t.Run(name, func(t *testing.T) {
			onUDPBench(t, only(testEndpoint{"a", 128, false}, testEndpoint{"b", 128, false}), func(b *udpBench) {
				b.silent = 2
				conn := b.dial()
				b.send(conn, "1")
				f := b.theFlow()
				f.forward(more)
				time.Sleep(soonest + soonest/4)
				f.forward([][]byte{[]byte("2"), []byte("3")})
				b.fars(2)[0].to.Known()
				b.settle()
				b.send(conn, "4")
				one := b.fars(2)[0]
				if n := 1 + len(more); one.came[0] != "1" || !slices.Equal(one.came[n:], []string{"2", "3", "4"}) {
					b.Errorf("then came %q", one.came[n:])
				}
				b.counted(map[string]uint64{"datagrams_in_total": uint64(4 + len(more)), "datagrams_resent_total": 3})
			})
		})
	}
}

// A word that comes just as a flow gives its way up has it go there on, and nothing twice.
func TestAWordThatComesAsAFlowLeavesHasItStay(t *testing.T) {
	for name, during := range map[string]func(b *udpBench, word func()){
		"before another is looked for": func(b *udpBench, word func()) {
			b.plane.config.Log = slog.New(hearing{word})
		},
		"while another is opened": func(b *udpBench, word func()) {
			b.beforeOpen(func(n int) error {
				if n == 1 {
					word()
				}
				return nil
			})
		},
		"while no other can be reached": func(b *udpBench, word func()) {
			b.beforeOpen(func(n int) error {
				if n == 0 {
					return nil
				}
				word()
				return backbone.ErrDown
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			onUDPBench(t, only(testEndpoint{"a", 128, false}, testEndpoint{"b", 128, false}), func(b *udpBench) {
				b.silent = 2
				during(b, func() { b.opened[0].to.Known() })
				conn := b.dial()
				b.send(conn, "1")
				time.Sleep(soonest)
				b.send(conn, "2")
				time.Sleep(time.Second)
				b.mu.Lock()
				for i, f := range b.opened {
					if f.closed != (i > 0) || i == 0 && !slices.Equal(f.came, []string{"1", "2"}) || i > 0 && len(f.came) > 0 {
						b.Errorf("at flow %d came %q, closed: %t", i, f.came, f.closed)
					}
				}
				b.mu.Unlock()
				if live := b.plane.live.of("game"); len(live) != 1 {
					b.Errorf("live flows: %+v", live)
				}
				b.counted(map[string]uint64{
					"datagram_flows_late_total": 1, "datagrams_in_total": 2, "datagrams_resent_total": 0, "datagrams_dropped_total": 0, "flows_dropped_no_endpoint_found_total": 0,
					"failovers_total": 0,
				})
			})
		})
	}
}

// What a client sends just as its flow leaves a way goes to the next behind what was sent before, and is not lost where the flow goes back.
func TestWhatComesAsAFlowLeavesComesBehindWhatWasFirst(t *testing.T) {
	for _, back := range []bool{false, true} {
		t.Run(fmt.Sprintf("back %t", back), func(t *testing.T) {
			onUDPBench(t, only(testEndpoint{"a", 128, false}, testEndpoint{"b", 128, false}), func(b *udpBench) {
				b.silent = 2
				b.plane.config.Log = slog.New(hearing{func() { b.theFlow().forward([][]byte{[]byte("3")}) }})
				b.send(b.dial(), "1", "2")
				time.Sleep(soonest + soonest/4)
				all := b.fars(2)
				if back {
					all[0].to.Known()
					b.settle()
				}
				for i := range all {
					want := []string{"1", "2", "3"}
					if !back && i == 0 {
						want = want[:2]
					}
					if !slices.Equal(all[i].came, want) {
						b.Errorf("at flow %d came %q", i, all[i].came)
					}
				}
				resent := uint64(2)
				if back {
					resent = 3
				}
				b.counted(map[string]uint64{"datagrams_in_total": 3, "datagrams_resent_total": resent, "datagrams_dropped_total": 0})
			})
		})
	}
}

// hearing is a log that calls somebody when a flow is not taken.
type hearing struct{ call func() }

func (h hearing) Enabled(context.Context, slog.Level) bool { return true }
func (h hearing) WithAttrs([]slog.Attr) slog.Handler       { return h }
func (h hearing) WithGroup(string) slog.Handler            { return h }
func (h hearing) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "flow of datagrams is not taken" {
		h.call()
	}
	return nil
}

// An endpoint that turned unhealthy while its way was aside is not stayed with: the flow is reset, as one that had stayed there.
func TestAFlowDoesNotGoBackToAnEndpointThatTurnedMeanwhile(t *testing.T) {
	n := terminating()
	n.protocol, n.idle = spec.UDP, 5*time.Minute
	onUDPBench(t, n, func(b *udpBench) {
		b.silent = 2
		var now atomic.Pointer[view.View]
		now.Store(b.plane.config.View())
		b.plane.config.View = now.Load
		conn := b.dial()
		b.send(conn, "1")
		time.Sleep(soonest + soonest/4)
		first := b.fars(2)[0]
		n.groups[0].endpoints[0].sick = true
		s, v, _ := n.build()
		now.Store(v)
		if err := b.plane.Apply(s); err != nil {
			b.Fatal(err)
		}
		b.plane.Review()
		first.to.Known()
		b.settle()
		if !first.isClosed() {
			b.Error("the flow is with an endpoint that is unhealthy")
		}
		b.send(conn, "2")
		if f := b.fars(3)[2]; f.node != "nrt1" || !slices.Equal(f.came, []string{"2"}) {
			b.Errorf("at %s came %q", f.node, f.came)
		}
		b.counted(map[string]uint64{"datagram_flows_late_total": 1})
	})
}

// A flow that finds the same candidate again and again, and nobody else, holds only the last of the ways that it left.
func TestAFlowHasOnlySoManyWaysAside(t *testing.T) {
	onUDPBench(t, up2(), func(b *udpBench) {
		b.silent = 100
		b.down["nrt1"] = true
		conn := b.dial()
		b.send(conn, "0")
		for i := 1; i < maxAside+3; i++ {
			time.Sleep(soonest + lookPause)
			b.send(conn, fmt.Sprint(i))
		}
		all := b.fars(maxAside + 3)
		for i, f := range all {
			if f.isClosed() != (i < 2) { // the last is not aside
				b.Errorf("flow %d was closed: %t", i, f.isClosed())
			}
		}
		all[2].to.Known()
		b.settle()
		for i, f := range all {
			if f.isClosed() != (i != 2) {
				b.Errorf("then flow %d was closed: %t", i, f.isClosed())
			}
		}
	})
}

// What is sent to who was left meanwhile, and is not kept, is sent by the next, whether all of it went or some was too large.
func TestWhatIsSentWhileAFlowLeavesIsNotLost(t *testing.T) {
	for name, err := range map[string]error{"all went": nil, "one is too large": &backbone.TooLargeError{Which: []int{0}}} {
		t.Run(name, func(t *testing.T) {
			onUDPBench(t, only(testEndpoint{"a", 128, false}, testEndpoint{"b", 128, false}), func(b *udpBench) {
				b.silent = 1
				open := b.plane.config.Open
				b.plane.config.Open = func(node string, h backbone.Header, large bool, to backbone.Receiver) (Datagrams, error) {
					far, isErr := open(node, h, large, to)
					if f := far.(*fakeFar); f.silent {
						return &leftFar{f, err}, isErr
					}
					return far, isErr
				}
				b.send(b.dial(), "1")
				batch := slices.Repeat([][]byte{[]byte("more")}, relay.MaxKept+1)
				b.theFlow().forward(batch)
				b.settle()
				if f := b.fars(2)[1]; len(f.came) != 1+len(batch) || f.came[0] != "1" {
					b.Errorf("came %q", f.came)
				}
				b.counted(map[string]uint64{"datagrams_dropped_total": 0, "datagrams_too_large_total": 0})
			})
		})
	}
}

// A datagram that is larger than a path takes is given up there: it is counted once, and not tried by the next, whatever that takes.
func TestADatagramThatIsTooLargeIsCountedOnce(t *testing.T) {
	for _, c := range []struct {
		name     string
		most     []int // that each way takes
		decline  func(b *udpBench, f *fakeFar)
		back     bool // the flow goes back to the first
		came     []string
		in, sent uint64 // and sent again
	}{
		{"by each way", []int{9, 9, 9}, nil, false, []string{"1", "2", "3"}, 3, 2 + 3},
		{"by the first", []int{9, 0, 0}, nil, false, []string{"1", "2", "3"}, 3, 2 + 3},
		{"by the second", []int{0, 9, 0}, nil, false, []string{"1", "2", "3"}, 4, 2 + 3},
		{"by the third", []int{0, 0, 9}, nil, false, []string{"1", "2", "3"}, 4, 3 + 3},
		{"by one that refuses", []int{9, 0, 0}, func(_ *udpBench, f *fakeFar) { f.to.End(&backbone.RefusedError{Reason: "no"}) }, false, []string{"1", "2", "3"}, 3, 2 + 3},
		{"by one whose link is down", []int{9, 0, 0}, func(b *udpBench, f *fakeFar) {
			b.mu.Lock()
			defer b.mu.Unlock()
			f.broken = backbone.ErrDown
		}, false, []string{"1", "2", "3"}, 3, 2 + 3},
		{"by the second, and the first takes what is left", []int{0, 9, 0}, nil, true, []string{"1", strings.Repeat("l", 10), "2", "3"}, 4, 2 + 1},
		{"by both, and the first takes what is left", []int{9, 9, 0}, nil, true, []string{"1", "2", "3"}, 3, 2 + 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			onUDPBench(t, threeRegions(), func(b *udpBench) {
				b.silent = 3
				open, opened := b.plane.config.Open, 0
				b.plane.config.Open = func(node string, h backbone.Header, large bool, to backbone.Receiver) (Datagrams, error) {
					far, err := open(node, h, large, to)
					far.(*fakeFar).most = c.most[opened]
					opened++
					return far, err
				}
				b.dial().Write([]byte("1"))
				b.settle()
				f := b.theFlow()
				f.forward([][]byte{bytes.Repeat([]byte("l"), 10), []byte("2")})
				first := b.fars(1)[0]
				if c.decline != nil {
					c.decline(b, first)
					b.settle()
				} else {
					time.Sleep(soonest + soonest/4)
				}
				f.forward([][]byte{[]byte("3")})
				last := first
				if c.back {
					first.to.Known()
					b.settle()
				} else {
					time.Sleep(soonest + soonest/4)
					last = b.fars(3)[2]
				}
				b.mu.Lock()
				if !slices.Equal(last.came, c.came) {
					b.Errorf("came %q", last.came)
				}
				b.mu.Unlock()
				b.counted(map[string]uint64{"datagrams_in_total": c.in, "datagrams_dropped_total": 1, "datagrams_too_large_total": 1, "datagrams_resent_total": c.sent})
			})
		})
	}
}

// leftFar is left while more than one datagram is sent.
type leftFar struct {
	*fakeFar
	err error
}

func (f *leftFar) Send(all [][]byte) error {
	err := f.fakeFar.Send(all)
	if len(all) > 1 {
		flow := f.b.theFlow()
		_, way, _ := flow.goes()
		flow.declined(way, errSilent)
		err = f.err
	}
	return err
}

// By which entry of the table a flow looks may change as it goes back.
func TestAFlowGoesBackAsItLooksAnew(t *testing.T) {
	onUDPBench(t, only(testEndpoint{"a", 128, false}, testEndpoint{"b", 128, false}), func(b *udpBench) {
		b.silent = 2
		conn := b.dial()
		b.send(conn, "1")
		time.Sleep(soonest + soonest/4)
		all := b.fars(2)
		look, waits := b.plane.config.View, true
		b.plane.config.View = func() *view.View {
			if waits {
				waits = false
				go func() {
					all[0].to.End(nil)
					b.theFlow().forward([][]byte{[]byte("2")})
				}()
				time.Sleep(time.Second)
			}
			return look()
		}
		all[0].to.Known()
		b.settle()
		if f := b.fars(3)[2]; !slices.Equal(f.came, []string{"2"}) {
			b.Errorf("came %q", f.came)
		}
	})
}

// theFlow is the only one that there is.
func (b *udpBench) theFlow() *datagramFlow {
	b.Helper()
	all := b.plane.datagramFlows(func(*datagramFlow) bool { return true })
	if len(all) != 1 {
		b.Fatalf("there are %d flows", len(all))
	}
	return all[0]
}

// beforeOpen has something be done before a flow is opened, after n others; it is not opened where there is an error.
func (b *udpBench) beforeOpen(do func(n int) error) {
	open, n := b.plane.config.Open, 0
	b.plane.config.Open = func(node string, h backbone.Header, large bool, to backbone.Receiver) (Datagrams, error) {
		if err := do(n); err != nil {
			return nil, err
		}
		n++
		return open(node, h, large, to)
	}
}
