package lane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestAHundredNodesKnowInASecond holds what is promised of the lane, and prints what it does: with streams that cost nothing to
// open, and with streams that are answered first.
func TestAHundredNodesKnowInASecond(t *testing.T) {
	const nodes, orders = 100, 6
	for name, asks := range map[string]bool{"streams open at once": false, "streams are answered first": true} {
		for seed := range uint64(2) {
			t.Run(fmt.Sprintf("%s, seed %d", name, seed), func(t *testing.T) {
				inWorld(t, nodes, seed+1, func(t *testing.T, w *world) {
					w.asks = asks
					w.lose(0.01)
					longest := w.longest()
					var effect, acknowledged, all []time.Duration
					for k := range orders {
						teller, id := (k*17+int(seed))%nodes, fmt.Sprintf("order-%d", k)
						w.ready(teller)
						start := time.Now()
						acks := w.tell(30*time.Second, teller, id, bytes.Repeat([]byte("purge "), 100))
						w.mustAll(acks)
						last := time.Duration(0)
						for _, a := range acks {
							took := w.did[id][a.Node].Sub(start)
							effect, acknowledged, last = append(effect, took), append(acknowledged, a.After), max(last, took)
						}
						all = append(all, last)
					}
					t.Logf("longest round trip %v; in effect at a node: %s; acknowledged: %s; in effect at all: %s",
						longest.Round(time.Millisecond), spread(effect), spread(acknowledged), spread(all))
					if p50 := at(effect, 50); p50 > 150*time.Millisecond+longest/2 {
						t.Errorf("the median of the effects takes %v", p50)
					}
					if p99 := at(effect, 99); p99 > time.Second {
						t.Errorf("the 99th of a hundred effects takes %v", p99)
					}
					if worst := at(all, 100); worst > time.Second {
						t.Errorf("until all have it takes %v", worst)
					}
					if p99 := at(acknowledged, 99); p99 > time.Second {
						t.Errorf("the 99th of a hundred acknowledgements takes %v", p99)
					}
				})
			})
		}
	}
}

func at(all []time.Duration, percent int) time.Duration {
	all = slices.Sorted(slices.Values(all))
	return all[min(len(all)*percent/100, len(all)-1)]
}

func spread(all []time.Duration) string {
	ms := func(d time.Duration) time.Duration { return d.Round(time.Millisecond) }
	return fmt.Sprintf("p50 %v, p90 %v, p99 %v, worst %v", ms(at(all, 50)), ms(at(all, 90)), ms(at(all, 99)), ms(at(all, 100)))
}

func TestANodeThatIsCutHoldsNobodyUpAndIsToldWhenItIsBack(t *testing.T) {
	inWorld(t, 10, 1, func(t *testing.T, w *world) {
		w.net.CutOff(name(3))
		start := time.Now()
		telling := w.nodes[0].Tell(t.Context(), "a", []byte("drain"), w.names())
		time.Sleep(2 * time.Second)
		for _, a := range telling.Acks() {
			if want := a.Node != name(3); a.Answered != want {
				t.Errorf("%+v", a)
			}
			if a.Node != name(3) && a.After > 800*time.Millisecond {
				t.Errorf("it took %v at %s", a.After, a.Node)
			}
			if a.Node == name(3) && !strings.HasPrefix(a.Err, "no answer yet") {
				t.Errorf("of the node that is cut: %q", a.Err)
			}
		}
		select {
		case <-telling.Done():
			t.Fatal("it is over while one has not answered")
		default:
		}
		time.Sleep(8 * time.Second)
		w.net.Rejoin(name(3))
		<-telling.Done()
		w.mustAll(telling.Acks())
		if took := time.Since(start); took > 15*time.Second {
			t.Errorf("it was told after %v", took)
		}
	})
}

func TestADeadNodeStandsInTheAcknowledgementsWithTheReason(t *testing.T) {
	inWorld(t, 3, 1, func(t *testing.T, w *world) {
		w.hosts[2].Kill()
		start := time.Now()
		acks := w.tell(5*time.Second, 0, "a", []byte("block"))
		if took := time.Since(start); took != 5*time.Second {
			t.Errorf("it was over after %v", took)
		}
		if a := acks[2]; a.Answered || !strings.HasPrefix(a.Err, "no answer yet: dial:") || a.After != 0 {
			t.Errorf("%+v", a)
		}
		if a := acks[1]; !a.Answered || a.Err != "" {
			t.Errorf("%+v", a)
		}
		if n := w.nodes[0].Counters()["lane_unheard_total"]; n != 1 {
			t.Errorf("%d are unheard", n)
		}
	})
}

func TestANodeThatWasDownIsToldWithinAQuarterOfASecondOfItsReturn(t *testing.T) {
	inWorld(t, 2, 1, func(t *testing.T, w *world) {
		var up atomic.Bool
		dial := w.nodes[0].config.Dial
		w.nodes[0].config.Dial = func(ctx context.Context, node string) (net.Conn, error) {
			if !up.Load() {
				return nil, errors.New("the link is down")
			}
			return dial(ctx, node)
		}
		telling := w.nodes[0].Tell(t.Context(), "a", nil, []string{name(1)})
		time.Sleep(10 * time.Second)
		if a := telling.Acks()[0]; a.Err != "no answer yet: dial: the link is down" {
			t.Errorf("%+v", a)
		}
		up.Store(true)
		start := time.Now()
		<-telling.Done()
		if took := time.Since(start); took > retryAfter+2*w.longest() {
			t.Errorf("it took %v", took)
		}
		if a := telling.Acks()[0]; !a.Answered || a.Err != "" {
			t.Errorf("%+v", a)
		}
	})
}

func TestAnOrderIsDoneOnceHoweverOftenItIsTold(t *testing.T) {
	inWorld(t, 4, 1, func(t *testing.T, w *world) {
		var all sync.WaitGroup
		for i := range w.nodes { // all tell it at once, and then once more
			all.Go(func() { w.mustAll(w.tell(5*time.Second, i, "a", []byte("purge"))) })
		}
		all.Wait()
		w.mustAll(w.tell(5*time.Second, 2, "a", []byte("purge")))
		for i := range w.nodes {
			if n := w.count(name(i), "a"); n != 1 {
				t.Errorf("%s did it %d times", name(i), n)
			}
			if n := w.nodes[i].Counters()["lane_repeated_total"]; n != 4 {
				t.Errorf("%s answered again %d times", name(i), n)
			}
		}
	})
}

func TestAnAcknowledgementThatIsLostDoesNotRepeatTheOrder(t *testing.T) {
	inWorld(t, 2, 1, func(t *testing.T, w *world) {
		dial := w.nodes[0].config.Dial
		lost := 0
		w.nodes[0].config.Dial = func(ctx context.Context, node string) (net.Conn, error) {
			conn, err := dial(ctx, node)
			if lost++; lost < 4 && err == nil {
				conn = deaf{conn}
			}
			return conn, err
		}
		w.mustAll(w.tell(10*time.Second, 0, "a", []byte("drain")))
		if n := w.count(name(1), "a"); n != 1 || lost != 4 {
			t.Errorf("done %d times in %d attempts", n, lost)
		}
	})
}

// deaf is a stream that breaks when the answer arrives.
type deaf struct{ net.Conn }

func (d deaf) Read(b []byte) (int, error) {
	if _, err := d.Conn.Read(b); err != nil {
		return 0, err
	}
	return 0, errors.New("reset")
}

func TestWhatIsBeingDoneIsAwaitedByWhoTellsItToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		times := 0
		l := Open(Config{Self: "n", Do: func(string, []byte) error { times++; time.Sleep(time.Second); return nil }})
		defer l.Close()
		start := time.Now()
		var tellings []*Telling
		for range 3 {
			tellings = append(tellings, l.Tell(t.Context(), "a", nil, []string{"n"}))
		}
		for _, told := range tellings {
			<-told.Done()
			if a := told.Acks()[0]; a.Err != "" || a.After != time.Second {
				t.Errorf("%+v", a)
			}
		}
		if took := time.Since(start); took != time.Second || times != 1 {
			t.Errorf("done %d times in %v", times, took)
		}
	})
}

func TestAnOrderThatFailsIsAnsweredWithTheReasonAndMayBeToldAgain(t *testing.T) {
	inWorld(t, 3, 1, func(t *testing.T, w *world) {
		w.refuse = func(node, id string) error {
			if node == name(1) {
				return errors.New("the cache is on fire")
			}
			return nil
		}
		acks := w.tell(5*time.Second, 0, "a", []byte("purge"))
		if a := acks[1]; !a.Answered || a.Err != "the cache is on fire" || a.After == 0 {
			t.Errorf("%+v", a)
		}
		if n := w.nodes[0].Counters()["lane_refused_total"]; n != 1 {
			t.Errorf("%d refusals", n)
		}
		w.refuse = nil
		w.mustAll(w.tell(5*time.Second, 0, "a", []byte("purge")))
		if w.count(name(1), "a") != 1 || w.count(name(2), "a") != 1 {
			t.Error("it was not done once")
		}
	})
}

func TestAnotherOrderUnderTheSameIDIsRefused(t *testing.T) {
	inWorld(t, 2, 1, func(t *testing.T, w *world) {
		w.mustAll(w.tell(5*time.Second, 0, "a", []byte("drain fra1")))
		acks := w.tell(5*time.Second, 1, "a", []byte("drain icn1"))
		for _, a := range acks {
			if !a.Answered || a.Err != "another order has this ID" {
				t.Errorf("%+v", a)
			}
		}
	})
}

func TestOrdersAreKnownUpToABound(t *testing.T) {
	var g ledger
	for i := range 3 * maxDone {
		id := fmt.Sprint(i)
		d, first, err := g.take(id, [32]byte{})
		if !first || err != nil {
			t.Fatalf("%s: %v, %v", id, first, err)
		}
		g.settle(id, d, nil)
	}
	if len(g.by) != maxDone || len(g.ring) != maxDone {
		t.Fatalf("%d and %d are known", len(g.by), len(g.ring))
	}
	if _, first, _ := g.take(fmt.Sprint(2*maxDone), [32]byte{}); first {
		t.Error("the oldest that is to be known is not")
	}
	if _, first, _ := g.take(fmt.Sprint(2*maxDone-1), [32]byte{}); !first {
		t.Error("one more is known")
	}
}

// TestWhatStrangersSendEndsInItsTimeAndItsBytes: forged, cut short, oversized, endless and silent streams are closed, nothing is
// done, and the lane goes on.
func TestWhatStrangersSendEndsInItsTimeAndItsBytes(t *testing.T) {
	good, err := appendMessage(nil, "b", []byte("purge"))
	if err != nil {
		t.Fatal(err)
	}
	for name, sent := range map[string][]byte{
		"nothing":             nil,
		"another version":     append([]byte{2}, good[1:]...),
		"no ID":               {1, 0, 0, 0, 0, 0},
		"an ID too long":      append([]byte{1, 65}, make([]byte, 100)...),
		"an order too large":  {1, 1, 'b', 0, 1, 0, 1},
		"4 GiB":               {1, 1, 'b', 255, 255, 255, 255},
		"half an order":       good[:len(good)-1],
		"the beginning of it": good[:1],
		"text":                []byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
	} {
		for _, ends := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, ends %v", name, ends), func(t *testing.T) {
				inWorld(t, 2, 1, func(t *testing.T, w *world) {
					conn, err := w.connect(t.Context(), 0, "n001")
					if err != nil {
						t.Fatal(err)
					}
					defer conn.Close()
					start := time.Now()
					conn.Write([]byte{0})
					conn.Write(sent)
					if ends {
						endWriting(conn)
					}
					b, _ := io.ReadAll(conn)
					if len(b) != 0 || time.Since(start) > readTimeout+2*time.Second {
						t.Errorf("answered % x after %v", b, time.Since(start))
					}
					synctest.Wait()
					c := w.nodes[1].Counters()
					if c["lane_malformed_total"] != 1 || c["lane_serving"] != 0 || len(w.did) != 0 {
						t.Errorf("%v, did %v", c, w.did)
					}
					w.mustAll(w.tell(5*time.Second, 0, "b", []byte("purge")))
				})
			})
		}
	}
}

func TestGarbageForAnAnswerIsNoAnswer(t *testing.T) {
	for name, answer := range map[string][]byte{
		"nothing": nil, "another byte": {7}, "half a reason": {failed, 9, 'n', 'o'}, "text": []byte("HTTP/1.1 200 OK\r\n"),
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 1, 1, func(t *testing.T, w *world) {
				liar := w.net.Host("liar", places[1], w.hosts[0].Addr().Next())
				w.hosts = append(w.hosts, liar)
				w.listen(1, func(conn net.Conn) {
					defer conn.Close()
					readMessage(conn)
					conn.Write(answer)
				})
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancel()
				told := w.nodes[0].Tell(ctx, "a", nil, []string{"n001"})
				<-told.Done()
				if a := told.Acks()[0]; a.Answered || !strings.HasPrefix(a.Err, "no answer yet: read acknowledgement: ") {
					t.Errorf("%+v", a)
				}
			})
		})
	}
}

// TestOneNodeTakesNotAllThereIs: who opens streams and says nothing has its share of them and no more, and only for a while.
func TestOneNodeTakesNotAllThereIs(t *testing.T) {
	inWorld(t, 3, 1, func(t *testing.T, w *world) {
		var held []net.Conn
		var mu sync.Mutex
		var all sync.WaitGroup
		for range 3 * maxServingOf {
			all.Go(func() {
				conn, err := w.connect(t.Context(), 0, name(2))
				if err != nil {
					t.Error(err)
					return
				}
				conn.Write([]byte{0})
				mu.Lock()
				defer mu.Unlock()
				held = append(held, conn)
			})
		}
		all.Wait()
		time.Sleep(time.Second)
		if c := w.nodes[2].Counters(); c["lane_serving"] != maxServingOf || c["lane_busy_total"] != 2*maxServingOf {
			t.Errorf("%v", c)
		}
		w.mustAll(w.tell(2*time.Second, 1, "a", []byte("purge")))
		time.Sleep(readTimeout)
		w.mustAll(w.tell(2*time.Second, 0, "b", []byte("purge")))
		if n := w.nodes[2].Counters()["lane_serving"]; n != 0 {
			t.Errorf("%d streams are served still", n)
		}
		for _, conn := range held {
			conn.Close()
		}
	})
}

func TestANodeThatAnswersSlowlyIsWaitedFor(t *testing.T) {
	inWorld(t, 4, 1, func(t *testing.T, w *world) {
		w.net.Slow(name(0), name(2), 700*time.Millisecond)
		acks := w.tell(10*time.Second, 0, "a", bytes.Repeat([]byte("x"), MaxOrder))
		w.mustAll(acks)
		if acks[2].After < 1400*time.Millisecond || acks[1].After > 800*time.Millisecond {
			t.Errorf("%+v", acks)
		}
		if n := w.count(name(2), "a"); n != 1 {
			t.Errorf("it was done %d times", n)
		}
	})
}

func TestWhatCannotBeSentIsSaidAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := Open(Config{Self: "n", Dial: func(ctx context.Context, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}})
		want := func(told *Telling, reason string) {
			t.Helper()
			<-told.Done()
			for _, a := range told.Acks() {
				if a.Answered || a.Err != reason {
					t.Errorf("%+v, want %q", a, reason)
				}
			}
		}
		start := time.Now()
		want(l.Tell(t.Context(), "", nil, []string{"a"}), "id of 0 bytes: want 1–64")
		want(l.Tell(t.Context(), strings.Repeat("i", 65), nil, []string{"a"}), "id of 65 bytes: want 1–64")
		want(l.Tell(t.Context(), "a", make([]byte, MaxOrder+1), []string{"a"}), "order of 65537 bytes: want at most 65536")
		want(l.Tell(t.Context(), "a", nil, nil), "")

		var many []string
		for i := range 10_000 {
			many = append(many, name(i))
		}
		var on []*Telling
		for i := range maxAsking / len(many) {
			on = append(on, l.Tell(t.Context(), fmt.Sprint("many-", i), nil, many))
		}
		want(l.Tell(t.Context(), "b", nil, many), "too many orders are on their way")
		if n := l.Counters()["lane_asking"]; n != 30_000 {
			t.Errorf("%d are asked", n)
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("it took %v", took)
		}
		l.Close()
		for _, told := range on {
			<-told.Done()
		}
		want(l.Tell(t.Context(), "c", nil, []string{"a"}), "the lane is closed")
		if n := l.Counters()["lane_asking"]; n != 0 {
			t.Errorf("%d are asked after the end", n)
		}
		near, far := net.Pipe()
		l.Serve(far, "a")
		if _, err := near.Read(make([]byte, 1)); err == nil {
			t.Error("a stream is open after the end")
		}
	})
}

func TestATellingWithoutAnEndEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := Open(Config{Dial: func(context.Context, string) (net.Conn, error) { return nil, errors.New("down") }})
		defer l.Close()
		start := time.Now()
		<-l.Tell(context.Background(), "a", nil, []string{"n"}).Done()
		if took := time.Since(start); took != maxTelling {
			t.Errorf("it ended after %v", took)
		}
	})
}

func TestTheLastLatenciesAreKept(t *testing.T) {
	l := Open(Config{})
	defer l.Close()
	for i := range 3*keptLatencies + 1 {
		l.keep(time.Duration(i))
	}
	all := slices.Sorted(slices.Values(l.Latencies()))
	if len(all) != keptLatencies || all[0] != 2*keptLatencies+1 || all[keptLatencies-1] != 3*keptLatencies {
		t.Errorf("%d, from %d to %d", len(all), all[0], all[len(all)-1])
	}
}

func TestTheFenceIsUpWhileOthersHaveMore(t *testing.T) {
	var f Fence
	var now time.Time
	step := func(what string, want bool) {
		t.Helper()
		if f.Fenced() != want {
			t.Errorf("%s: fenced %v", what, f.Fenced())
		}
		now = now.Add(time.Second)
	}
	step("at the start", false)
	f.Have(7, now)
	f.Heard(7, now)
	step("as far as others", false)
	f.Heard(9, now)
	step("behind", true)
	f.Have(8, now)
	step("nearer", true)
	f.Have(9, now)
	step("there", false)
	f.Heard(1<<63, now)
	step("after a lie", true)
	f.Heard(9, now)
	step("when who lied is gone", false)
	f.Have(3, now) // recovered from an older state
	step("after a recovery", true)
}

// Each epoch is missing since it was heard of: of a stream of them none holds up the fence for those before, nor does one that came in time
// count for those after it.
func TestTheFenceKnowsSinceWhenEachOrderIsMissing(t *testing.T) {
	var f Fence
	start := time.Unix(1_000_000, 0)
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	missed := func(by int, epoch uint64, next time.Time) {
		t.Helper()
		if e, n := f.Missed(at(by)); e != epoch || !n.Equal(next) {
			t.Errorf("by %d it has missed %d, and hears next at %v: want %d, %v", by, e, n, epoch, next)
		}
	}
	f.Have(4, at(0))
	for s := range 5 {
		f.Heard(uint64(5+s), at(s))
		f.Heard(uint64(5+s), at(s).Add(time.Millisecond)) // again and again
	}
	missed(-1, 0, at(0))
	missed(0, 5, at(1))
	missed(2, 7, at(3))
	missed(9, 9, time.Time{})
	f.Have(7, at(9))
	if !f.Since().Equal(at(3)) {
		t.Errorf("the oldest that is missing was heard of at %v", f.Since())
	}
	missed(2, 0, at(3))
	f.Heard(8, at(10)) // who had 9 is gone
	missed(9, 8, time.Time{})
	f.Heard(10, at(11))
	f.Heard(9, at(12)) // a lie, or not: what is missing is so since then
	missed(11, 9, time.Time{})
	f.Have(9, at(13))
	if f.Fenced() || !f.Since().IsZero() {
		t.Error("it is fenced, and has all")
	}
	for e := range uint64(1000) {
		f.Heard(10+e, at(20+int(e)))
	}
	missed(20+maxMissing-1, 1009, time.Time{})
	missed(20+maxMissing-2, 10+maxMissing-2, at(20+maxMissing-1))
	if len(f.missing) > maxMissing {
		t.Errorf("%d are remembered", len(f.missing))
	}
}
