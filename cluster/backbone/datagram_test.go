package backbone

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// inbox is what came to one end of a flow.
type inbox struct {
	mu    sync.Mutex
	came  []string
	ended []error
}

func (i *inbox) receiver() Receiver {
	return Receiver{
		Receive: func(all [][]byte) {
			i.mu.Lock()
			defer i.mu.Unlock()
			for _, p := range all {
				i.came = append(i.came, string(p))
			}
		},
		End: func(err error) {
			i.mu.Lock()
			defer i.mu.Unlock()
			i.ended = append(i.ended, err)
		},
	}
}

// take is what came since it was asked last.
func (i *inbox) take() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	came := i.came
	i.came = nil
	return came
}

func (i *inbox) ends() []error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.ended)
}

// far is a service that keeps what comes, and its ways back.
type far struct {
	inbox
	arrivals []Arrival
	refuse   string
}

func (f *far) serve(b *Backbone) *far {
	b.HandleDatagrams("flow", func(a Arrival) (Receiver, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.refuse != "" {
			return Receiver{}, errors.New(f.refuse)
		}
		f.arrivals = append(f.arrivals, a)
		return f.receiver(), nil
	})
	return f
}

func (f *far) last() Arrival {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.arrivals[len(f.arrivals)-1]
}

// both opens icn and iad with links in both directions, and a flow between them that large datagrams may or may not take.
func (w *world) both(large bool) (icn, iad *Backbone, there *far, flow *Datagrams, here *inbox) {
	w.Helper()
	icn, iad = w.pair()
	iad.Keep(peers("icn"))
	w.until(iad, "icn", true)
	there, here = new(far).serve(iad), new(inbox)
	flow, err := icn.OpenDatagrams("iad", Header{Service: "flow", Resource: "endpoint/x", Client: netip.MustParseAddrPort("203.0.113.9:5000")}, large, here.receiver())
	if err != nil {
		w.Fatal(err)
	}
	return icn, iad, there, flow, here
}

func (w *world) send(f *Datagrams, all ...string) {
	w.Helper()
	var ps [][]byte
	for _, p := range all {
		ps = append(ps, []byte(p))
	}
	if err := f.Send(ps); err != nil {
		w.Error(err)
	}
	time.Sleep(roundTrip)
	synctest.Wait()
}

// tooLarge sends datagrams of which some are too large.
func (w *world) tooLarge(f *Datagrams, all []string, which ...int) {
	w.Helper()
	var ps [][]byte
	for _, p := range all {
		ps = append(ps, []byte(p))
	}
	err := f.Send(ps)
	if e, is := errors.AsType[*TooLargeError](err); !is || !slices.Equal(e.Which, which) {
		w.Errorf("got %v, want %v", err, which)
	}
	time.Sleep(roundTrip)
	synctest.Wait()
}

func (w *world) wants(what string, got []string, want ...string) {
	w.Helper()
	if !slices.Equal(got, want) {
		w.Errorf("%s: got %.60q, want %.60q", what, got, want)
	}
}

// What a connection has lost is known whichever flows go by it: where one carrier dies its flows go by another, and that is no loss.
func TestFramesThatAreMissingAreOfTheirConnection(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.config("icn", w.authority)
		c.Carriers = 2
		icn, iad := w.openWith(c), w.open("iad")
		defer iad.Close()
		defer icn.Close()
		icn.Keep(peers("iad"))
		w.until(icn, "iad", true)
		time.Sleep(2 * roundTrip) // the other carrier
		there := new(far).serve(iad)
		var flows []*Datagrams
		for range 4 {
			f, err := icn.OpenDatagrams("iad", Header{Service: "flow", Resource: "endpoint/x"}, true, new(inbox).receiver())
			if err != nil {
				w.Fatal(err)
			}
			flows = append(flows, f)
		}
		sends := func(least int) {
			w.Helper()
			for range 20 {
				for _, f := range flows {
					f.Send([][]byte{[]byte(strings.Repeat("x", 700))})
				}
				time.Sleep(time.Millisecond)
			}
			time.Sleep(2 * roundTrip)
			synctest.Wait()
			all := iad.Counters()
			if got := len(there.take()); got < least || all["backbone_datagram_frames_skipped_total"] != 0 || all["backbone_datagram_frames_late_total"] != 0 {
				w.Errorf("%d came, %d frames skipped, %d late", got, all["backbone_datagram_frames_skipped_total"], all["backbone_datagram_frames_late_total"])
			}
		}
		sends(80)
		l := (*icn.links.Load())["iad"]
		l.mu.Lock()
		if len(l.carriers) != 2 {
			w.Fatalf("%d carriers", len(l.carriers))
		}
		dies := l.carriers[0]
		l.mu.Unlock()
		dies.conn.CloseWithError(0, "")
		sends(70) // the link has to find out
		time.Sleep(time.Second)
		sends(80)
	})
}

// What an opener has asked to be told comes with the answer, and again until the opener knows that the flow was taken.
func TestAnOpenerIsToldWhatItHasAsked(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pair()
		defer iad.Close()
		defer icn.Close()
		iad.Keep(peers("icn"))
		w.until(iad, "icn", true)
		for _, b := range []*Backbone{icn, iad} {
			b.HandleDatagrams("flow", func(a Arrival) (Receiver, error) {
				a.Back.Tell("at " + a.Resource)
				return Receiver{}, nil
			})
		}
		for _, node := range []string{"iad", "icn"} {
			var told []string
			box := new(inbox)
			to := box.receiver()
			to.Told = func(text string) {
				box.mu.Lock()
				defer box.mu.Unlock()
				told = append(told, text)
			}
			f, err := icn.OpenDatagrams(node, Header{Service: "flow", Resource: "x"}, true, to)
			if err != nil {
				w.Fatal(err)
			}
			w.send(f, "one")
			w.send(f, "two")
			f.known.Store(false) // as if no answer had come
			w.send(f, "three")
			want := 1
			if node == "iad" {
				want = 2
			}
			box.mu.Lock()
			if len(told) != want || told[0] != "at x" {
				w.Errorf("%s tells %q", node, told)
			}
			box.mu.Unlock()
		}
		if n := iad.Counters()["backbone_datagrams_malformed_total"] + icn.Counters()["backbone_datagrams_malformed_total"]; n != 0 {
			w.Errorf("%d malformed", n)
		}
	})
}

// Who refuses a flow after all says why, at another node and at the same.
// The opener hears that its flow is known, as often as it asks, and its datagrams go without what opens it from then on; the other end hears that it was asked.
func TestAnOpenerHearsThatItsFlowIsKnown(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pair()
		defer iad.Close()
		defer icn.Close()
		iad.Keep(peers("icn"))
		w.until(iad, "icn", true)
		var known, asked atomic.Int32
		there, here := new(inbox), new(inbox)
		iad.HandleDatagrams("flow", func(Arrival) (Receiver, error) {
			to := there.receiver()
			to.Asked = func() { asked.Add(1) }
			return to, nil
		})
		to := here.receiver()
		to.Known = func() { known.Add(1) }
		f, err := icn.OpenDatagrams("iad", Header{Service: "flow", Resource: "endpoint/x"}, true, to)
		if err != nil {
			w.Fatal(err)
		}
		for i, c := range []struct {
			does         func()
			known, asked int32
		}{
			{f.Ask, 1, 0}, // it opens, too
			{f.Ask, 2, 1},
			{func() { w.send(f, "1") }, 2, 1},
			{f.Ask, 3, 2},
			{f.Close, 3, 2},
			{f.Ask, 3, 2},
		} {
			c.does()
			time.Sleep(roundTrip)
			synctest.Wait()
			if k, a := known.Load(), asked.Load(); k != c.known || a != c.asked {
				w.Errorf("step %d: known %d times, asked %d times", i, k, a)
			}
		}
		w.wants("there", there.take(), "1")
		if n := iad.Counters()["backbone_datagram_flows"]; n != 0 {
			w.Errorf("%d flows are left", n)
		}
	})
}

func TestAFlowOfDatagramsMayBeRefusedLater(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad, there, flow, here := w.both(true)
		defer iad.Close()
		defer icn.Close()
		w.send(flow, "one")
		if a := there.last(); !a.Large {
			w.Error("it is not known that large ones go")
		}
		there.last().Back.Refuse("this node ends")
		time.Sleep(roundTrip)
		if err, is := errors.AsType[*RefusedError](errors.Join(here.ends()...)); !is || err.Reason != "this node ends" {
			w.Errorf("the opener hears %v", here.ends())
		}
		if err := flow.Send([][]byte{[]byte("two")}); !errors.Is(err, net.ErrClosed) {
			w.Errorf("sent: %v", err)
		}
		if n := iad.Counters()["backbone_datagram_flows"]; n != 0 {
			w.Errorf("%d flows are left", n)
		}
		own, box := new(far).serve(icn), new(inbox)
		if _, err := icn.OpenDatagrams("icn", Header{Service: "flow"}, false, box.receiver()); err != nil {
			w.Fatal(err)
		}
		own.last().Back.Refuse("not here either")
		if err, is := errors.AsType[*RefusedError](errors.Join(box.ends()...)); !is || err.Reason != "not here either" {
			w.Errorf("the opener hears %v", box.ends())
		}
	})
}

func TestAFlowOfDatagramsBeginsWithItsFirst(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad, there, flow, here := w.both(true)
		defer iad.Close()
		defer icn.Close()
		begun := time.Now()
		if err := flow.Send([][]byte{[]byte("a"), []byte(""), []byte("c")}); err != nil {
			w.Fatal(err)
		}
		time.Sleep(roundTrip/2 + time.Millisecond)
		w.wants("half a round trip later", there.take(), "a", "", "c")
		if took := time.Since(begun); took > roundTrip*6/10 {
			w.Errorf("it took %v", took)
		}
		a := there.last()
		if a.From != "icn" || a.Resource != "endpoint/x" || a.Client != netip.MustParseAddrPort("203.0.113.9:5000") {
			w.Errorf("opened as %+v", a)
		}
		w.send(a.Back, "1", "2")
		w.wants("back", here.take(), "1", "2")
		if !flow.known.Load() {
			w.Error("the flow is not known to be known")
		}
		w.send(flow, "d")
		w.wants("then", there.take(), "d")
		flow.Close()
		flow.Close()
		time.Sleep(roundTrip)
		if ends := there.ends(); len(ends) != 1 || ends[0] != nil || iad.Counters()["backbone_datagram_flows"] != 0 {
			w.Errorf("ended %v, %d flows", ends, iad.Counters()["backbone_datagram_flows"])
		}
		if len(here.ends()) != 0 {
			w.Error("who closes it is told that it ended")
		}
		if flow.Send([][]byte{[]byte("x")}) == nil {
			w.Error("a flow that is closed sends")
		}
	})
}

func TestSmallDatagramsShareAFrame(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad, there, flow, _ := w.both(true)
		defer iad.Close()
		defer icn.Close()
		w.send(flow, "x")
		before := icn.Counters()["backbone_datagram_frames_sent_total"]
		var all []string
		for i := range 200 {
			all = append(all, fmt.Sprintf("%064d", i))
		}
		there.take()
		w.send(flow, all...)
		w.wants("all", there.take(), all...)
		if frames := icn.Counters()["backbone_datagram_frames_sent_total"] - before; frames > 200/15 {
			w.Errorf("%d frames for 200 datagrams of 64 bytes", frames)
		}
	})
}

func TestALargeDatagramGoesByAStreamOrIsCounted(t *testing.T) {
	for _, large := range []bool{true, false} {
		t.Run(fmt.Sprint(large), func(t *testing.T) {
			inWorld(t, func(w *world) {
				icn, iad, there, flow, here := w.both(large)
				defer iad.Close()
				defer icn.Close()
				all := []string{"small", strings.Repeat("l", 1400), strings.Repeat("m", 9000), strings.Repeat("n", 65_507), "also small"}
				if large {
					w.send(flow, all...)
				} else {
					w.tooLarge(flow, all, 1, 2, 3)
				}
				time.Sleep(5 * roundTrip)
				got := there.take()
				slices.SortFunc(got, func(a, b string) int { return slices.Index(all, a) - slices.Index(all, b) }) // a stream has its own order
				back := there.last().Back
				if large {
					w.send(back, strings.Repeat("b", 9000))
				} else {
					w.tooLarge(back, []string{strings.Repeat("b", 9000)}, 0)
				}
				time.Sleep(5 * roundTrip)
				refused, counted := icn.Counters()["backbone_datagrams_too_large_total"], iad.Counters()["backbone_datagrams_too_large_total"]
				if !large {
					w.wants("without those", got, "small", "also small")
					w.wants("back", here.take())
					if refused != 3 || counted != 1 {
						w.Errorf("counted %d, %d", refused, counted)
					}
					return
				}
				w.wants("all", got, all...)
				if b := here.take(); len(b) != 1 || len(b[0]) != 9000 {
					w.Errorf("back: %d", len(b))
				}
				if refused != 0 || counted != 0 || icn.Counters()["backbone_datagrams_by_stream_total"] != 3 {
					w.Errorf("counted %v", icn.Counters())
				}
			})
		})
	}
}

// What Send takes goes, to the byte that the path takes, and what it refuses would not.
func TestWhatIsRefusedAsTooLargeIsWhatNoFrameTakes(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad, there, flow, _ := w.both(false)
		defer iad.Close()
		defer icn.Close()
		w.send(flow, "x") // the other end knows the flow from now on
		there.take()
		takes := func(size int) bool { return flow.Send([][]byte{make([]byte, size)}) == nil }
		largest := sort.Search(largestFrame, func(size int) bool { return !takes(size) }) - 1
		time.Sleep(roundTrip)
		synctest.Wait()
		there.take()
		for size := largest - 3; size <= largest; size++ {
			data := strings.Repeat("s", size)
			w.send(flow, data)
			w.wants("what is taken", there.take(), data)
		}
		w.tooLarge(flow, []string{strings.Repeat("s", largest+1), "small"}, 0)
		w.wants("the other", there.take(), "small")
		if largest < surePayload-frameHead-10 || largest > largestFrame-frameHead {
			w.Errorf("%d bytes are the most that go", largest)
		}
	})
}

func TestAFlowThatWasForgottenIsOpenedAnew(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad, there, flow, here := w.both(true)
		defer iad.Close()
		defer icn.Close()
		w.send(flow, "a")
		old := there.last().Back
		old.Close() // as by its idle time
		time.Sleep(roundTrip)
		w.send(flow, "b")
		w.wants("all", there.take(), "a", "b")
		if len(there.arrivals) != 2 || len(here.ends()) != 0 {
			w.Errorf("opened %d times, ended %v", len(there.arrivals), here.ends())
		}
		// What crosses with the forgetting is lost, counted, and has the next one open it.
		there.last().Back.Close()
		if err := flow.Send([][]byte{[]byte("lost")}); err != nil {
			w.Error(err)
		}
		time.Sleep(roundTrip)
		if n := iad.Counters()["backbone_datagrams_unknown_total"]; n != 1 {
			w.Errorf("%d unknown", n)
		}
		w.send(flow, "c")
		w.wants("then", there.take(), "c")
	})
}

func TestAnAnswerToNoFlowEndsIt(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad, there, flow, _ := w.both(true)
		defer iad.Close()
		defer icn.Close()
		w.send(flow, "a")
		icn.datagrams.mu.Lock()
		delete(icn.datagrams.opened, flow.flow) // as after a new beginning
		icn.datagrams.mu.Unlock()
		w.send(there.last().Back, "stray")
		time.Sleep(roundTrip)
		if n := icn.Counters()["backbone_datagrams_stray_total"]; n != 1 || len(there.ends()) != 1 {
			w.Errorf("%d strays, ended %v", n, there.ends())
		}
	})
}

func TestAFlowThatIsRefusedIsToldWhy(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad, there, flow, here := w.both(true)
		defer iad.Close()
		defer icn.Close()
		there.mu.Lock()
		there.refuse = "no targets"
		there.mu.Unlock()
		w.send(flow, "a")
		ends := here.ends()
		if len(ends) != 1 {
			w.Fatalf("ended %v", ends)
		}
		if said, ok := errors.AsType[*RefusedError](ends[0]); !ok || said.Reason != "no targets" {
			w.Errorf("ended by %v", ends[0])
		}
		if said, ok := errors.AsType[*RefusedError](flow.Send([][]byte{[]byte("b")})); !ok || said.Reason != "no targets" {
			w.Errorf("who sends on it hears %v", said)
		}
		if iad.Counters()["backbone_datagram_flows_refused_total"] != 1 {
			w.Error("it is not counted")
		}
		other, err := icn.OpenDatagrams("iad", Header{Service: "none"}, true, here.receiver())
		if err != nil {
			w.Fatal(err)
		}
		w.send(other, "a")
		if len(here.ends()) != 2 {
			w.Error("a service that nobody has")
		}
	})
}

func TestWithoutALinkItIsSaidAtOnce(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad, _, flow, _ := w.both(true)
		defer icn.Close()
		w.send(flow, "a")
		iad.Close()
		w.until(icn, "iad", false)
		if err := flow.Send([][]byte{[]byte("b"), []byte("c")}); !errors.Is(err, ErrDown) {
			w.Errorf("sent: %v", err)
		}
		if _, err := icn.OpenDatagrams("iad", Header{Service: "flow"}, true, Receiver{}); !errors.Is(err, ErrDown) {
			w.Errorf("opened: %v", err)
		}
		if n := icn.Counters()["backbone_datagrams_unsent_total"]; n != 2 {
			w.Errorf("%d unsent", n)
		}
		iad = w.open("iad") // and begins anew by itself
		defer iad.Close()
		iad.Keep(peers("icn"))
		there := new(far).serve(iad)
		w.until(icn, "iad", true)
		w.send(flow, "lost, for the flow is not known there")
		w.send(flow, "d")
		w.wants("after a new beginning", there.take(), "d")
	})
}

// One that is renewed loses none.
func TestDatagramsGoOnWhileACarrierIsReplaced(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad, there, flow, _ := w.both(true)
		defer iad.Close()
		defer icn.Close()
		var want []string
		for i := range 100 {
			if i == 30 {
				icn.Renew()
				iad.Renew()
			}
			want = append(want, fmt.Sprint(i))
			if err := flow.Send([][]byte{[]byte(want[i])}); err != nil {
				w.Error(err)
			}
			time.Sleep(50 * time.Millisecond)
		}
		time.Sleep(roundTrip)
		w.wants("all", there.take(), want...)
		if icn.Counters()["backbone_carriers_replaced_total"] == 0 {
			w.Error("nothing was replaced")
		}
	})
}

func TestTooMuchThatWaitsIsDroppedAndCounted(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad, there, flow, _ := w.both(true)
		defer iad.Close()
		defer icn.Close()
		w.send(flow, "a")
		there.take()
		p := bytes.Repeat([]byte("x"), 1000)
		var busy uint64
		const all = 5000
		for range all {
			if err := flow.Send([][]byte{p}); errors.Is(err, ErrBusy) {
				busy++
			} else if err != nil {
				w.Fatal(err)
			}
		}
		time.Sleep(time.Minute)
		count := icn.Counters()
		if busy == 0 || count["backbone_datagrams_dropped_total"] != busy {
			w.Errorf("%d busy, counted %v", busy, count["backbone_datagrams_dropped_total"])
		}
		if came := uint64(len(there.take())); came+iad.Counters()["backbone_datagram_frames_skipped_total"]+busy != all {
			w.Errorf("%d came, %d busy, %d skipped", came, busy, iad.Counters()["backbone_datagram_frames_skipped_total"])
		}
	})
}

func TestAFlowOfDatagramsToOneselfIsWithinTheProcess(t *testing.T) {
	inWorld(t, func(w *world) {
		icn := w.open("icn")
		defer icn.Close()
		there, here := new(far).serve(icn), new(inbox)
		flow, err := icn.OpenDatagrams("icn", Header{Service: "flow"}, false, here.receiver())
		if err != nil {
			w.Fatal(err)
		}
		w.send(flow, "a", strings.Repeat("l", 60_000))
		if got := there.take(); len(got) != 2 || len(got[1]) != 60_000 {
			w.Errorf("%d came", len(got))
		}
		w.send(there.last().Back, "b")
		w.wants("back", here.take(), "b")
		flow.Close()
		if len(there.ends()) != 1 {
			w.Error("the other end does not hear of the end")
		}
		there.refuse = "no"
		if _, err := icn.OpenDatagrams("icn", Header{Service: "flow"}, false, here.receiver()); err == nil || err.Error() != "refused: no" {
			w.Errorf("refused by %v", err)
		}
	})
}

// A peer may send what it likes.
func FuzzMessages(f *testing.F) {
	header, _ := AppendHeader(nil, Header{Service: "flow", Resource: "r", Client: netip.MustParseAddrPort("192.0.2.1:1")})
	var all []byte
	for kind := range byte(kinds) {
		m := appendMessage(nil, kind, 7, map[bool][]byte{true: header}[kind == kindOpen], []byte("data"))
		f.Add(m)
		all = append(all, m...)
	}
	f.Add(all)
	f.Add(appendMessage(nil, kindOpen|withLarge, 1<<31, header, make([]byte, 300)))
	f.Fuzz(func(t *testing.T, b []byte) {
		for len(b) > 0 {
			m, _, rest, err := readMessage(b)
			if err != nil {
				return
			}
			if len(rest) >= len(b) {
				t.Fatal("nothing was read")
			}
			kind := m.kind
			if m.large {
				kind |= withLarge
			}
			again := appendMessage(nil, kind, m.flow, m.header, m.data)
			if back, _, left, err := readMessage(again); err != nil || len(left) > 0 || back.kind != m.kind || back.flow != m.flow ||
				!bytes.Equal(back.header, m.header) || !bytes.Equal(back.data, m.data) {
				t.Fatalf("%+v is read as %+v, %v", m, back, err)
			}
			b = rest
		}
	})
}

// What opens a flow may come by two carriers at once: one is kept, the other is told that it has ended, and it is counted once.
func TestAFlowThatIsOpenedTwiceAtOnceIsOne(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pair()
		defer icn.Close()
		defer iad.Close()
		var first, second inbox
		receive := func() *receiving { return &receiving{b: iad, peer: iad.peer("icn")} }
		header, err := AppendHeader(nil, Header{Service: "flow"})
		if err != nil {
			t.Fatal(err)
		}
		open := appendMessage(nil, kindOpen, 7, header, nil)
		arrived := 0
		iad.HandleDatagrams("flow", func(Arrival) (Receiver, error) {
			if arrived++; arrived == 1 {
				receive().take(open, false) // by the other one
				return second.receiver(), nil
			}
			return first.receiver(), nil
		})
		receive().take(open, false)
		if n := iad.Counters()["backbone_datagram_flows"]; arrived != 2 || n != 1 || len(first.ends()) != 1 || len(second.ends()) != 0 {
			t.Errorf("%d arrived, %d are counted, the first ended %v, the second %v", arrived, n, first.ends(), second.ends())
		}
		receive().take(appendMessage(nil, kindClosed, 7, nil, nil), false)
		if n := iad.Counters()["backbone_datagram_flows"]; n != 0 || len(first.ends()) != 1 || len(second.ends()) != 1 {
			t.Errorf("%d are counted, the first ended %v, the second %v", n, first.ends(), second.ends())
		}
	})
}
