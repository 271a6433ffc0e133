package stray

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/view"
)

// machine is a kernel of a test: strays are given to it, and it has the flows that it is told.
type machine struct {
	strays chan []byte

	mu       sync.Mutex
	flows    map[Flow]bool
	known    map[Flow]bool
	injected [][]byte
	watched  []netip.Addr
	doors    []netip.AddrPort
	drop     bool
	fails    error // of watch, limit and attach
	closed   bool
}

func newMachine() *machine {
	return &machine{strays: make(chan []byte), flows: map[Flow]bool{}, known: map[Flow]bool{}}
}

func (m *machine) with(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

func (m *machine) watch(all []netip.Addr, doors []netip.AddrPort) (err error) {
	m.with(func() {
		if err = m.fails; err == nil {
			m.watched, m.doors = all, doors
		}
	})
	return err
}
func (m *machine) limit(drop bool) (err error) {
	m.with(func() {
		if err = m.fails; err == nil {
			m.drop = drop
		}
	})
	return err
}
func (m *machine) attach() (err error)     { m.with(func() { err = m.fails }); return err }
func (m *machine) know(f Flow, known bool) { m.with(func() { m.known[f] = known }) }
func (m *machine) taken() (uint64, uint64) { return 0, 0 }
func (m *machine) has(f Flow) (is bool)    { m.with(func() { is = m.flows[f] }); return is }
func (m *machine) inject(s segment) error {
	m.with(func() { m.injected = append(m.injected, bytes.Clone(s.raw[s.data:])) })
	return nil
}

func (m *machine) read(b []byte) (int, error) {
	p, is := <-m.strays
	if !is {
		return 0, net.ErrClosed
	}
	return copy(b, p), nil
}

func (m *machine) close() {
	m.with(func() {
		if !m.closed {
			m.closed = true
			close(m.strays)
		}
	})
}

func (m *machine) open(f Flow) { m.with(func() { m.flows[f] = true }) }
func (m *machine) end(f Flow)  { m.with(func() { delete(m.flows, f) }) }

// knows says whether a flow is known as another's.
func (m *machine) knows(f Flow) (is bool) { m.with(func() { is = m.known[f] }); return is }

// got takes what was injected.
func (m *machine) got() (text string) {
	synctest.Wait()
	m.with(func() {
		text = fmt.Sprintf("%s", m.injected)
		m.injected = nil
	})
	return text
}

// hands are nodes that share addresses, with ways of 10 ms between them.
type hands struct {
	*testing.T
	machines map[string]*machine
	all      map[string]*Hand

	mu    sync.Mutex
	lost  int             // of what is sent next
	down  map[string]bool // nodes that cannot be reached
	old   map[string]bool // those that know nothing of it
	busy  map[string]bool // those that take no flow of datagrams more
	asked []string        // nodes to which something was sent
}

type handWay struct {
	h        *hands
	from, to string
	receive  func([][]byte)
	end      func(error)
}

func (w handWay) Send(all [][]byte) error {
	w.h.mu.Lock()
	defer w.h.mu.Unlock()
	w.h.asked = append(w.h.asked, w.to)
	copied := make([][]byte, len(all))
	for i, b := range all {
		copied[i] = bytes.Clone(b)
	}
	switch {
	case w.h.down[w.to]:
		return errors.New("link is down")
	case w.h.lost > 0:
		w.h.lost--
		return nil
	case w.h.old[w.to]:
		time.AfterFunc(20*time.Millisecond, func() { w.end(fmt.Errorf("refused: %w", ErrNoService)) })
		return nil
	case w.h.busy[w.to]:
		time.AfterFunc(20*time.Millisecond, func() { w.end(errors.New("refused: too many flows")) })
		return nil
	}
	time.AfterFunc(10*time.Millisecond, func() {
		w.h.mu.Lock()
		to := w.h.all[w.to]
		w.h.mu.Unlock()
		to.Receive(copied, func(answers [][]byte) error {
			time.AfterFunc(10*time.Millisecond, func() { w.receive(answers) })
			return nil
		})
	})
	return nil
}

func (w handWay) Close() {}

var announced = []netip.Addr{flow4.Server.Addr(), flow6.Server.Addr()}

func newHands(t *testing.T, names ...string) *hands {
	h := &hands{T: t, machines: map[string]*machine{}, all: map[string]*Hand{}, down: map[string]bool{}, old: map[string]bool{}, busy: map[string]bool{}}
	for _, name := range names {
		h.machines[name] = newMachine()
		hand, err := Open(Config{kernel: h.machines[name], Open: func(node string, receive func([][]byte), end func(error)) (Way, error) {
			return handWay{h, name, node, receive, end}, nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		h.all[name] = hand
	}
	for name, hand := range h.all {
		hand.Set(announced, others(names, name), false)
	}
	return h
}

// is changes the test's network.
func (h *hands) is(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}

// sent says to whom something was sent since it was last asked.
func (h *hands) sent() (to []string) {
	synctest.Wait()
	h.is(func() { to, h.asked = h.asked, nil })
	return to
}

func others(names []string, name string) (owners []Owner) {
	for _, n := range names {
		if n != name {
			owners = append(owners, Owner{Node: n})
		}
	}
	return owners
}

func (h *hands) close() {
	for _, hand := range h.all {
		hand.Close()
	}
	time.Sleep(time.Second) // what is under way in the test's network
}

func (h *hands) want(node, injected string) {
	h.Helper()
	if got := h.machines[node].got(); got != injected {
		h.Errorf("%s took %s, want %s", node, got, injected)
	}
}

func (h *hands) counter(node, name string, n uint64) {
	h.Helper()
	if got := h.all[node].Counters()[name]; got != n {
		h.Errorf("%s: %s is %d, want %d", node, name, got, n)
	}
}

func (h *hands) stray(node string, f Flow, texts ...string) {
	for i, s := range texts {
		h.machines[node].strays <- packet(f, flagACK, uint32(i), []byte(s), 0, 0)
	}
	synctest.Wait()
}

func TestSegmentsGoToTheNodeThatHasTheirFlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHands(t, "a", "b", "c")
		defer h.close()
		for _, f := range []Flow{flow4, flow6} {
			h.machines["b"].open(f)
			h.stray("a", f, "1", "2")
			time.Sleep(50 * time.Millisecond)
			h.want("b", "[1 2]")
			h.sent()
			h.stray("a", f, "3")
			time.Sleep(50 * time.Millisecond)
			h.want("b", "[3]")
			if asked := h.sent(); !slices.Equal(asked, []string{"b"}) || !h.machines["a"].knows(f) {
				t.Error(asked)
			}
		}
		h.want("a", "[]")
		h.want("c", "[]")
		h.counter("a", "stray_segments_handed_total", 6)
		h.counter("a", "stray_flows_found_total", 2)
		h.counter("a", "stray_flows", 2)
		h.counter("b", "stray_segments_injected_total", 6)
		h.counter("c", "stray_segments_refused_total", 2)
	})
}

// So does what says that one was too big, whether the flow's segments come here or not.
func TestThatAPacketWasTooBigGoesToTheNodeThatHasItsFlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHands(t, "a", "b")
		defer h.close()
		for i, f := range []Flow{flow4, flow6} {
			h.machines["b"].open(f)
			b := tooBig(f, 1300, 1280)
			for range 2 {
				h.machines["a"].strays <- b
				time.Sleep(50 * time.Millisecond)
				s, err := parse(b)
				if err != nil {
					t.Fatal(err)
				}
				h.want("b", fmt.Sprintf("%s", [][]byte{s.raw[s.data:maxSegment]}))
			}
			h.want("a", "[]")
			h.counter("a", "stray_segments_too_big_total", uint64(2*i+2))
			h.counter("a", "stray_segments_handed_total", uint64(2*i+2))
			h.counter("a", "stray_flows_found_total", uint64(i+1))
		}
		nobodys := of(1)
		h.machines["a"].strays <- tooBig(nobodys, 1300, 576)
		time.Sleep(50 * time.Millisecond)
		if h.machines["a"].got() == "[]" {
			t.Error("what is of nobody's flow is not the kernel's again")
		}
	})
}

// One whose flow has ended there goes to its kernel, which says so to the client; and when it is asked it says so to the node.
func TestWhatHasEndedIsAnsweredWhereItWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHands(t, "a", "b")
		defer h.close()
		h.machines["b"].open(flow4)
		h.stray("a", flow4, "1")
		time.Sleep(50 * time.Millisecond)
		h.machines["b"].end(flow4)
		h.stray("a", flow4, "2")
		time.Sleep(50 * time.Millisecond)
		h.want("b", "[1 2]")
		time.Sleep(idleFor + sweepKnown)
		h.counter("a", "stray_flows", 0)
		h.stray("a", flow4, "3")
		time.Sleep(50 * time.Millisecond)
		h.want("b", "[]")
		h.want("a", "[3]")
		h.counter("a", "stray_flows_nobody_total", 1)
	})
}

// A node that has forgotten that a flow is its own, as one that began anew, looks among its sockets.
func TestANodeThatBeganAnewSaysThatItHasNoFlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHands(t, "a", "b")
		defer h.close()
		h.machines["b"].open(flow4)
		h.stray("a", flow4, "1")
		time.Sleep(50 * time.Millisecond)
		h.want("b", "[1]")
		h.all["b"].Close()
		h.machines["b"] = newMachine()
		anew, err := Open(Config{kernel: h.machines["b"]})
		if err != nil {
			t.Fatal(err)
		}
		anew.Set(announced, others([]string{"a"}, "b"), false)
		h.is(func() { h.all["b"] = anew })
		h.stray("a", flow4, "2")
		time.Sleep(50 * time.Millisecond)
		h.want("b", "[]")
		h.stray("a", flow4, "3")
		time.Sleep(50 * time.Millisecond)
		h.want("a", "[3]")
		if h.machines["a"].knows(flow4) {
			t.Error("the kernel still takes it for the other's")
		}
	})
}

func TestALostQuestionIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHands(t, "a", "b")
		defer h.close()
		h.machines["b"].open(flow4)
		h.is(func() { h.lost = 1 })
		h.stray("a", flow4, "1", "2")
		time.Sleep(askAgain + sweepEvery + 50*time.Millisecond)
		h.want("b", "[1 2]")
	})
}

// One that cannot be reached may have the flow: the client is not told that it is over, before that node is gone.
func TestANodeThatCannotBeReachedMayHaveTheFlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHands(t, "a", "b", "c")
		defer h.close()
		h.is(func() { h.down["b"] = true })
		h.stray("a", flow4, "1")
		time.Sleep(2 * time.Second)
		h.want("a", "[]")
		h.counter("a", "stray_segments_dropped_total", 1)
		h.all["a"].Set(announced, []Owner{{Node: "c"}}, false)
		h.stray("a", flow4, "2")
		time.Sleep(50 * time.Millisecond)
		h.want("a", "[2]")
	})
}

// One that is alive and cannot be reached costs every flow a moment, and after a while only new questions now and then.
func TestASilentNodeCostsLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHands(t, "a", "b", "c")
		defer h.close()
		h.is(func() { h.down["b"] = true })
		began := time.Now()
		for h.machines["a"].got() == "[]" {
			if time.Since(began) > 2*unsureFor {
				t.Fatal("it is dropped again and again")
			}
			h.stray("a", flow4, "1")
			time.Sleep(time.Second)
		}
		if past := time.Since(began); past < unsureFor {
			t.Error("its client was told so after", past)
		}
		time.Sleep(silentFor)
		h.stray("a", flow6, "2")
		time.Sleep(50 * time.Millisecond)
		h.want("a", "[2]")
		h.sent()
		h.is(func() { h.down["b"] = false })
		time.Sleep(nobodyFor + probeEvery)
		h.stray("a", flow6, "3") // with it b is asked too
		time.Sleep(50 * time.Millisecond)
		h.want("a", "[3]")
		h.machines["b"].open(flow4)
		h.stray("a", flow4, "4")
		time.Sleep(50 * time.Millisecond)
		h.want("b", "[4]")
	})
}

// An earlier release knows nothing of it: it is not asked for a while.
func TestANodeThatRefusesIsNotAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHands(t, "a", "b")
		defer h.close()
		h.is(func() { h.old["b"] = true })
		h.stray("a", flow4, "1")
		time.Sleep(50 * time.Millisecond)
		h.want("a", "[1]")
		h.sent()
		h.stray("a", flow6, "2")
		h.want("a", "[2]")
		if asked := h.sent(); len(asked) != 0 {
			t.Error(asked)
		}
		// It is asked more and more seldom, up to once a minute: after 2, 4, 8, 16, 32 and 60 s, and 60.
		asked := 0
		for range 200 {
			time.Sleep(time.Second)
			h.stray("a", of(asked), "x")
			asked += len(h.sent())
		}
		if asked != 7 {
			t.Error("it was asked", asked, "times")
		}
		// Once it takes them it is asked at once, when it says no more.
		h.is(func() { h.old["b"] = false })
		h.machines["b"].open(flow6)
		h.machines["a"].got()
		time.Sleep(lastDeaf)
		h.stray("a", flow6, "3")
		time.Sleep(50 * time.Millisecond)
		h.want("b", "[3]")
		h.is(func() { h.old["b"] = true })
		h.stray("a", of(1000), "4")
		time.Sleep(firstDeaf + 50*time.Millisecond)
		h.is(func() { h.old["b"] = false })
		h.stray("a", of(1001), "5")
		time.Sleep(50 * time.Millisecond)
		h.want("a", "[4 5]")
		h.counter("b", "stray_segments_refused_total", 1)
	})
}

// Who does what the table has learnt and forgotten is not in order: the kernel is told what is so in the end.
func TestTheKernelKnowsWhatTheTableKnows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHands(t, "a", "b")
		defer h.close()
		a, at := h.all["a"], time.Now()
		change := func(f func() verdict) verdict {
			a.mu.Lock()
			defer a.mu.Unlock()
			return f()
		}
		change(func() verdict { return a.table.segments(at, flow4, parts("1"), []string{"b"}) })
		learnt := change(func() verdict { return a.table.answered(at, "b", flow4, true) })
		learnt.do = wait
		forgot := change(func() verdict { return a.table.answered(at, "b", flow4, false) })
		a.do(forgot)
		a.do(learnt)
		if h.machines["a"].knows(flow4) {
			t.Error("the kernel knows a flow that the table has forgotten")
		}
	})
}

// oneWay is a way of which a test says when it is over.
type oneWay struct {
	sent         [][]byte
	over, closed bool
	end          func(error)
}

func (w *oneWay) Send(all [][]byte) error {
	if w.over {
		return net.ErrClosed
	}
	for _, b := range all {
		w.sent = append(w.sent, bytes.Clone(b))
	}
	return nil
}

func (w *oneWay) Close() { w.closed = true }

// That a way has ended is heard after the next was opened: the next stays, with what is known of its node, and is closed when that one leaves. One whose end is heard before
// it was opened is none.
func TestTheEndOfAWayIsNotThatOfTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ways []*oneWay
		refuses := false
		m := newMachine()
		h, err := Open(Config{kernel: m, Open: func(_ string, _ func([][]byte), end func(error)) (Way, error) {
			w := &oneWay{end: end}
			ways = append(ways, w)
			if refuses {
				end(errors.New("refused: too many flows"))
			}
			return w, nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		h.Set(announced, []Owner{{Node: "b"}}, false)
		give := func(text string) {
			m.strays <- packet(flow4, flagACK, 1, []byte(text), 0, 0)
			synctest.Wait()
		}
		give("1")
		h.hear("b", [][]byte{appendAnswer(nil, flow4, true)})
		ways[0].over = true // the backbone says so before it calls end
		give("2")
		give("3")
		ways[0].end(fmt.Errorf("refused: %w", ErrNoService))
		give("4")
		if len(ways) != 2 || len(ways[1].sent) != 2 || h.Counters()["stray_flows"] != 1 {
			t.Fatalf("%d ways, %d flows", len(ways), h.Counters()["stray_flows"])
		}
		ways[1].end(errors.New("refused: too many flows"))
		refuses = true
		give("5")
		refuses = false
		give("6")
		if len(ways) != 4 || !ways[2].closed || len(ways[2].sent) != 0 || len(ways[3].sent) != 1 {
			t.Errorf("%d ways", len(ways))
		}
		h.Set(announced, nil, false)
		if !ways[3].closed {
			t.Error("the way to a node that has left is open")
		}
	})
}

// One that has too many flows of datagrams for a moment may have the flow.
func TestANodeThatRefusesForAMomentIsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHands(t, "a", "b")
		defer h.close()
		h.machines["b"].open(flow4)
		h.is(func() { h.busy["b"] = true })
		h.stray("a", flow4, "1")
		time.Sleep(50 * time.Millisecond)
		h.want("a", "[]")
		h.counter("a", "stray_segments_dropped_total", 1)
		h.is(func() { h.busy["b"] = false })
		h.stray("a", flow4, "2")
		time.Sleep(50 * time.Millisecond)
		h.want("b", "[2]")
		h.want("a", "[]")
		// And what is known to be its flow stays that.
		h.is(func() { h.busy["b"] = true })
		h.stray("a", flow4, "3")
		time.Sleep(50 * time.Millisecond)
		h.is(func() { h.busy["b"] = false })
		h.stray("a", flow4, "4")
		time.Sleep(50 * time.Millisecond)
		h.want("b", "[4]")
		h.want("a", "[]")
	})
}

func TestOnlySegmentsOfOnesOwnFlowsAndAddressesAreTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHands(t, "a", "b")
		defer h.close()
		h.machines["b"].open(flow4)
		var answers [][]byte
		tell := func(kind byte, packet []byte) {
			h.all["b"].Receive([][]byte{append([]byte{kind}, packet...)}, func(all [][]byte) error { answers = append(answers, all...); return nil })
		}
		data := func(f Flow) []byte { return packet(f, flagACK, 1, []byte("x"), 0, 0) }
		tell(kindCarry, data(flow6))                          // no such flow
		tell(kindCarry, packet(flow4, flagSYN, 1, nil, 0, 0)) // a new one
		tell(9, data(flow4))                                  // no such kind
		tell(kindAsk, data(flow4))                            // too long a question
		h.all["b"].Receive([][]byte{nil}, nil)                // nothing
		foreign := Flow{flow4.Client, netip.MustParseAddrPort("10.0.0.1:22")}
		h.machines["b"].open(foreign)
		tell(kindCarry, data(foreign))
		h.all["b"].Receive([][]byte{appendFlow(nil, kindAsk, foreign)}, func(all [][]byte) error { answers = append(answers, all...); return nil })
		h.want("b", "[]")
		if len(answers) != 3 || !bytes.Equal(answers[0], appendAnswer(nil, flow6, false)) || !bytes.Equal(answers[2], appendAnswer(nil, foreign, false)) {
			t.Error(answers)
		}
		h.counter("b", "stray_segments_foreign_total", 2)
		h.counter("b", "stray_segments_refused_total", 3)
		h.counter("b", "stray_messages_malformed_total", 4)
		tell(kindCarry, data(flow4))
		h.want("b", "[x]")
		// And answers are those of whom was asked, or none.
		h.all["a"].hear("b", [][]byte{{1}, appendAnswer(nil, flow4, true)})
		h.counter("a", "stray_messages_malformed_total", 1)
		h.counter("a", "stray_flows", 0)
	})
}

// Doors are told as they change, though the addresses stay.
func TestDoorsAreToldWithTheirAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHands(t, "a", "b")
		defer h.close()
		one, two := netip.MustParseAddrPort("198.51.100.1:80"), netip.MustParseAddrPort("198.51.100.1:443")
		for _, want := range [][]netip.AddrPort{{one}, {one, two}, nil} {
			given := slices.Concat(want, want)
			slices.Reverse(given)
			for i := range given[len(given)/2:] {
				given[i] = netip.AddrPortFrom(netip.AddrFrom16(given[i].Addr().As16()), given[i].Port())
			}
			h.all["a"].Narrow(given)
			h.all["a"].Set(announced, []Owner{{Node: "b"}}, false)
			if m := h.machines["a"]; !slices.Equal(m.doors, want) || !slices.Equal(m.watched, announced) {
				t.Errorf("doors %v of %v, want %v", m.doors, m.watched, want)
			}
		}
	})
}

func TestWhereNobodyElseIsNothingIsLookedAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHands(t, "a", "b")
		defer h.close()
		m := h.machines["a"]
		if !slices.Equal(m.watched, announced) || !m.drop {
			t.Error(m.watched, m.drop)
		}
		time.Sleep(settleFor + time.Second)
		set := func(owners []Owner, away, drop bool) {
			t.Helper()
			h.all["a"].Set(announced, owners, away)
			if m.drop != drop {
				t.Errorf("what is beyond the budget is dropped: %t", m.drop)
			}
		}
		set([]Owner{{Node: "b"}}, false, false)
		set([]Owner{{Node: "b", Away: true}}, false, true)
		time.Sleep(time.Hour)
		set([]Owner{{Node: "b", Away: true}}, false, true) // as long as it is
		set([]Owner{{Node: "b"}}, false, true)             // its flows come back
		time.Sleep(settleFor + time.Second)
		set([]Owner{{Node: "b"}}, false, false)
		set([]Owner{{Node: "b"}}, true, true)
		set(nil, false, true)
		if len(m.watched) != 0 {
			t.Error(m.watched)
		}
		mapped := netip.AddrFrom16(announced[0].As16())
		h.all["a"].Set([]netip.Addr{announced[1], mapped, announced[0]}, []Owner{{Node: "b"}}, false)
		if !slices.Equal(m.watched, announced) {
			t.Error(m.watched)
		}
		m.strays <- []byte("no packet")
		h.want("a", "[]")
		h.counter("a", "stray_segments_malformed_total", 1)
	})
}

func TestWhatTheKernelDoesNotDoIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHands(t, "a", "b")
		defer h.close()
		m := h.machines["a"]
		time.Sleep(settleFor)
		m.with(func() { m.fails = errors.New("no memory") })
		set := func() { h.all["a"].Set(announced[:1], []Owner{{Node: "b"}}, false) }
		set()
		m.with(func() {
			if len(m.watched) != 2 || !m.drop {
				t.Error(m.watched, m.drop)
			}
			m.fails = nil
		})
		set()
		m.with(func() {
			if !slices.Equal(m.watched, announced[:1]) || m.drop {
				t.Error(m.watched, m.drop)
			}
		})
	})
}

// logged counts the lines of a log.
type logged struct{ atomic.Int64 }

func (l *logged) Write(line []byte) (int, error) {
	l.Add(1)
	return len(line), nil
}

// What fails without end is one line, and what was well in between another.
func TestAFailureThatComesBackIsLoggedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log logged
		m := newMachine()
		h, err := Open(Config{kernel: m, Log: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		fails := func(err error) { m.with(func() { m.fails = err }) }
		lines := func(what string, want int64) {
			t.Helper()
			synctest.Wait()
			if n := log.Swap(0); n != want {
				t.Errorf("%s: %d lines, want %d", what, n, want)
			}
		}
		set := func(addresses []netip.Addr, away bool) { h.Set(addresses, []Owner{{Node: "b"}}, away) }
		set(announced, false)
		time.Sleep(settleFor)
		for _, round := range []string{"first", "again"} {
			set(announced, false)
			lines(round+", all well", 0)
			fails(errors.New("no memory"))
			for range 3 {
				set(announced[:1], true)
			}
			lines(round+", watch and limit", 2)
			time.Sleep(3*sweepKnown + time.Second)
			lines(round+", attach", 1)
			fails(nil)
			set(announced[:1], true)
			set(announced, false)
			time.Sleep(settleFor + sweepKnown)
		}
	})
}

func TestOwnersAreAskedInOrder(t *testing.T) {
	member := func(name, pop string, edit func(*view.Member)) view.Member {
		m := view.Member{Name: name, POP: pop, Roles: []view.Role{view.Edge}}
		if edit != nil {
			edit(&m)
		}
		return m
	}
	v := &view.View{Self: "me", RTT: map[string]time.Duration{"far": 9, "near": 1, "drained": 20}, Members: []view.Member{
		member("beside", "fra", nil), member("drained", "sin", func(m *view.Member) { m.Drained = "region" }), member("far", "gru", nil),
		member("leaving", "icn", func(m *view.Member) { m.Leaving = true }), member("me", "fra", nil),
		member("names", "iad", func(m *view.Member) { m.Roles = []view.Role{view.DNS} }), member("near", "cdg", nil), member("unmeasured", "nrt", nil),
	}}
	want := []Owner{{"beside", false}, {"drained", true}, {"leaving", true}, {"near", false}, {"far", false}, {"unmeasured", false}}
	if got := Owners(v); !slices.Equal(got, want) {
		t.Error(got)
	}
	if got := Owners(&view.View{Self: "me"}); got != nil {
		t.Error(got)
	}
	for i := range 100 {
		v.Members = append(v.Members, member(fmt.Sprint(i), "sin", nil))
	}
	if got := Owners(v); len(got) != len(want)+100 || !slices.Equal(got[:5], want[:5]) {
		t.Error(got)
	}
	if turned(want, slices.Concat(want[3:], want[:3])) || !turned(want, want[1:]) || !turned(want, append(slices.Clone(want[1:]), Owner{"beside", true})) ||
		!turned(want, append(slices.Clone(want[1:]), Owner{"other", false})) {
		t.Error("turned")
	}
}

// Where there are more nodes than are asked, that others are the nearest at each look forgets no flow, and is no sign that flows may have moved.
func TestMoreNodesThanAreAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHands(t, "a", "n39")
		defer h.close()
		v := &view.View{Self: "a", RTT: map[string]time.Duration{}, Members: []view.Member{{Name: "a", POP: "a", Roles: []view.Role{view.Edge}}}}
		names := []string{}
		for i := range 40 {
			names = append(names, fmt.Sprint("n", i))
			v.Members = append(v.Members, view.Member{Name: names[i], POP: names[i], Roles: []view.Role{view.Edge}})
		}
		measure := func(nearest int) {
			for i, name := range names {
				v.RTT[name] = time.Duration((i-nearest+40)%40) * time.Millisecond
			}
			h.all["a"].Set(announced, Owners(v), false)
		}
		h.is(func() {
			for _, name := range names[:39] {
				h.down[name] = true
			}
		})
		measure(30)
		h.machines["n39"].open(flow4)
		h.stray("a", flow4, "1")
		time.Sleep(50 * time.Millisecond)
		h.want("n39", "[1]")
		asked := h.sent()
		slices.Sort(asked)
		for i := range 20 {
			measure(i)
			h.stray("a", flow4, "2")
			time.Sleep(50 * time.Millisecond)
			h.want("n39", "[2]")
		}
		h.counter("a", "stray_flows_asked_total", 1)
		h.sent()
		h.stray("a", flow6, "3") // the same are asked
		again := h.sent()
		slices.Sort(again)
		if asked = slices.Compact(asked); len(again) != maxAsked || !slices.Equal(again, asked) {
			t.Error(again, asked)
		}
		time.Sleep(settleFor)
		measure(20)
		h.machines["a"].with(func() {
			if h.machines["a"].drop {
				t.Error("flows are taken to have moved, because of distances")
			}
		})
		time.Sleep(orderEvery)
		measure(0)
		h.sent()
		h.stray("a", flow6, "4")
		if again = h.sent(); !slices.Contains(again, "n25") {
			t.Error("a new order is never taken:", again)
		}
	})
}
