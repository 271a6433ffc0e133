package pump

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/perigee-net/perigee/testbed/wan"
)

const ms = time.Millisecond

// times sends packets of one size, one every gap, and returns what became of each.
func times(w *Wire, n int, gap time.Duration, size int) (sent, at []time.Duration, drops map[Why]int) {
	drops = map[Why]int{}
	for i := range n {
		now := time.Duration(i) * gap
		arrives, why := w.Send(now, size)
		drops[why]++
		if why == Carried {
			sent, at = append(sent, now), append(at, arrives)
		}
	}
	return sent, at, drops
}

func TestAPacketTakesTheDelay(t *testing.T) {
	sent, at, _ := times(NewWire(wan.Path{Delay: 40 * ms}, 1), 100, ms, 1500)
	for i := range at {
		if at[i]-sent[i] != 40*ms {
			t.Fatalf("packet %d took %v", i, at[i]-sent[i])
		}
	}
}

func TestJitterIsEvenAroundTheDelay(t *testing.T) {
	const n = 100_000
	sent, at, _ := times(NewWire(wan.Path{Delay: 40 * ms, Jitter: 10 * ms}, 1), n, 20*ms, 100)
	var sum, squares float64
	low, high := time.Hour, time.Duration(0)
	for i := range at {
		d := at[i] - sent[i]
		low, high = min(low, d), max(high, d)
		sum += d.Seconds()
		squares += d.Seconds() * d.Seconds()
	}
	mean := sum / n
	deviation := math.Sqrt(squares/n - mean*mean)
	if math.Abs(mean-0.040) > 0.0001 || math.Abs(deviation-0.010/math.Sqrt(3)) > 0.0001 || low < 30*ms || high > 50*ms {
		t.Errorf("mean %.5f s, deviation %.5f s, %v to %v", mean, deviation, low, high)
	}
}

func TestJitterDoesNotReorder(t *testing.T) {
	_, at, _ := times(NewWire(wan.Path{Delay: 40 * ms, Jitter: 40 * ms}, 1), 1000, ms/10, 100)
	for i := 1; i < len(at); i++ {
		if at[i] < at[i-1] {
			t.Fatalf("packet %d arrives %v before the one sent before it", i, at[i-1]-at[i])
		}
	}
}

func TestLossIsTheShareAsked(t *testing.T) {
	const n = 200_000
	for _, p := range []float64{0, 0.001, 0.2, 0.5, 1} {
		_, _, drops := times(NewWire(wan.Path{Loss: p}, 1), n, 1, 100)
		want, sigma := p*n, math.Sqrt(n*p*(1-p))
		if math.Abs(float64(drops[Lost])-want) > 5*sigma {
			t.Errorf("loss %v: %d of %d were lost", p, drops[Lost], n)
		}
	}
}

func TestReorderIsTheShareAskedAndTheRestKeepsOrder(t *testing.T) {
	const n = 100_000
	sent, at, _ := times(NewWire(wan.Path{Delay: 40 * ms, Jitter: 5 * ms, Reorder: 0.25}, 1), n, ms, 100)
	quick, last := 0, time.Duration(0)
	for i := range at {
		if at[i] == sent[i] {
			quick++
			continue
		}
		if at[i] < last || at[i]-sent[i] < 35*ms {
			t.Fatalf("packet %d overtook", i)
		}
		last = at[i]
	}
	if math.Abs(float64(quick)-n/4) > 5*math.Sqrt(n*0.25*0.75) {
		t.Errorf("%d of %d were not delayed", quick, n)
	}
}

func TestPacketsAreSentAtTheRate(t *testing.T) {
	// 1,250 bytes at 10 Mbit/s are 1 ms; they come twice as fast.
	w := NewWire(wan.Path{Delay: 5 * ms, Rate: 10_000_000}, 1)
	_, at, _ := times(w, 500, ms/2, 1250)
	for i := range at {
		if want := time.Duration(i+1)*ms + 5*ms; at[i] != want {
			t.Fatalf("packet %d arrived at %v, not %v", i, at[i], want)
		}
	}
	// An idle link saves nothing up.
	if at, _ := w.Send(time.Minute, 1250); at != time.Minute+6*ms {
		t.Errorf("after a pause a packet took %v", at-time.Minute)
	}
}

func TestAFullQueueDropsWhatComesLast(t *testing.T) {
	w := NewWire(wan.Path{Rate: 10_000_000, Queue: 20}, 1)
	_, at, drops := times(w, 30, 0, 1250)
	if len(at) != 21 || drops[Queue] != 9 { // 20 wait and one is being sent
		t.Errorf("%d passed, %d were dropped", len(at), drops[Queue])
	}
	if _, why := w.Send(ms, 1250); why != Carried {
		t.Error("there is room once the first has been sent, and the packet was dropped")
	}
	if _, why := w.Send(ms, 1250); why != Queue {
		t.Error("there is room for one only")
	}
	// Packets under way do not count: without a rate there is no queue.
	if _, at, _ := times(NewWire(wan.Path{Delay: time.Second, Queue: 20}, 1), 5000, 0, 1250); len(at) != 5000 {
		t.Errorf("%d passed", len(at))
	}
}

func TestAChangedPathLeavesWhatIsUnderWay(t *testing.T) {
	w := NewWire(wan.Path{Delay: 100 * ms}, 1)
	first, _ := w.Send(0, 100)
	w.Set(wan.Path{Delay: 10 * ms})
	second, _ := w.Send(ms, 100)
	third, _ := w.Send(200*ms, 100)
	if first != 100*ms || second != 100*ms || third != 210*ms {
		t.Errorf("arrived at %v %v %v", first, second, third)
	}
}

func TestTheSameSeedLosesTheSamePackets(t *testing.T) {
	p := wan.Path{Delay: 10 * ms, Jitter: 5 * ms, Loss: 0.2, Reorder: 0.1, Rate: 1_000_000, Queue: 50}
	_, a, _ := times(NewWire(p, 7), 1000, 5*ms, 900)
	_, b, _ := times(NewWire(p, 7), 1000, 5*ms, 900)
	_, c, _ := times(NewWire(p, 8), 1000, 5*ms, 900)
	same := func(x, y []time.Duration) bool {
		if len(x) != len(y) {
			return false
		}
		for i := range x {
			if x[i] != y[i] {
				return false
			}
		}
		return true
	}
	if !same(a, b) || same(a, c) {
		t.Errorf("same seed: %v, another seed: %v", same(a, b), same(a, c))
	}
}

// Whatever a link is told and however packets come, none arrives before it was sent and could have been, only those
// that Reorder picks overtake, and no more wait than the queue holds.
func TestAWireKeepsItsWord(t *testing.T) {
	path := rapid.Custom(func(t *rapid.T) wan.Path {
		delay := time.Duration(rapid.Int64Range(0, int64(100*ms)).Draw(t, "delay"))
		return wan.Path{
			Delay:   delay,
			Jitter:  time.Duration(rapid.Int64Range(0, int64(delay)).Draw(t, "jitter")),
			Loss:    rapid.SampledFrom([]float64{0, 0.1, 1}).Draw(t, "loss"),
			Reorder: rapid.SampledFrom([]float64{0, 0, 0.3, 1}).Draw(t, "reorder"),
			Rate:    rapid.SampledFrom([]int64{0, 8_000, 1_000_000, 10_000_000_000}).Draw(t, "rate"),
			Queue:   rapid.IntRange(0, 20).Draw(t, "queue"),
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		p := path.Draw(t, "path")
		w := NewWire(p, rapid.Uint64().Draw(t, "seed"))
		now, last, reordered := time.Duration(0), time.Duration(0), p.Reorder > 0
		for range rapid.IntRange(1, 200).Draw(t, "packets") {
			if rapid.IntRange(0, 20).Draw(t, "change") == 0 {
				p = path.Draw(t, "path")
				w.Set(p)
				reordered = reordered || p.Reorder > 0
			}
			now += time.Duration(rapid.Int64Range(0, int64(5*ms)).Draw(t, "gap"))
			size := rapid.IntRange(20, PacketSize).Draw(t, "size")
			at, why := w.Send(now, size)
			if why != Carried {
				if why == Lost && p.Loss == 0 || why == Queue && p.Rate == 0 {
					t.Fatalf("dropped for nothing: %v", why)
				}
				continue
			}
			least := now
			if p.Rate > 0 {
				least += time.Duration(int64(size) * 8 * int64(time.Second) / p.Rate)
			}
			if p.Reorder == 0 {
				least += p.Delay - p.Jitter
			}
			if at < least {
				t.Fatalf("arrived %v before it could", least-at)
			}
			if !reordered && at < last {
				t.Fatalf("overtook by %v", last-at)
			}
			last = at
		}
	})
}

func TestLatenessIsCountedWithinAnEighth(t *testing.T) {
	for late := time.Duration(1); late < 4*time.Second; late = late*9/8 + 1 {
		b := bucket(late)
		if c := ceiling(b); late >= c || late >= 256 && float64(c) > float64(late)*1.126+1 {
			t.Errorf("%v is in bucket %d, below %v", late, b, c)
		}
	}
	var l lateness
	if l.p99() != 0 {
		t.Error("no packets, and a p99")
	}
	for range 99 {
		l.add(time.Microsecond)
	}
	l.add(time.Second)
	if got := l.p99(); got < time.Microsecond || got > 1200 {
		t.Errorf("p99 is %v", got)
	}
	l.add(time.Second)
	if got := l.p99(); got < time.Second {
		t.Errorf("p99 is %v", got)
	}
	l.add(time.Hour)
}
