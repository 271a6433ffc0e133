package pump

import (
	"math"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/perigee-net/perigee/testbed/wan"
)

// tolerance is how far what is measured may be from what was asked. Other processes of the machine only add to a time,
// so of times only the quieter quarter is judged: a link that is itself late by more is late always. Counts have the
// five standard deviations of their distribution: chance alone fails such a test once in 3.5 million.
type tolerance struct {
	early time.Duration // nothing arrives earlier than this before its time: clocks, and netem's ticks of 64 ns
	late  time.Duration // the quickest quarter arrives at most this late
	rate  float64       // share of the rate: netem counts Ethernet headers too, a hundredth of these packets
	fast  int64         // bits a second that the sender outruns by far, busy as the machine may be
}

func tolerated() tolerance {
	if os.Getenv("PERIGEE_UML") != "" {
		// Its one processor is away for tens of milliseconds where the machine is busy. Measured: 0.2 ms at the quarter,
		// 2 % of the rate; on a slow machine it sent two packets a millisecond.
		return tolerance{early: 20 * time.Microsecond, late: 2 * time.Millisecond, rate: 0.1, fast: 8_000_000}
	}
	return tolerance{early: 20 * time.Microsecond, late: 500 * time.Microsecond, rate: 0.03, fast: 40_000_000}
}

// What a link does is what it was asked to do, whoever carries it.
func TestLinksAreAsAsked(t *testing.T) {
	for _, kind := range []struct {
		name string
		lab  func(testing.TB) *lab
	}{{"userspace", userspace}, {"netem", netem}} {
		t.Run(kind.name, func(t *testing.T) {
			l := kind.lab(t)
			for _, c := range []struct {
				name string
				test func(*testing.T, *lab, tolerance)
			}{
				{"round trip", roundTrip}, {"one way", oneWay}, {"jitter", jitter}, {"order", order}, {"loss", loss}, {"rate", rate}, {"queue", queue}, {"reorder", reorder},
			} {
				t.Run(c.name, func(t *testing.T) {
					c.test(t, l, tolerated())
					if t.Failed() && l.stats != nil {
						t.Logf("the pump's own stats: %+v", l.stats())
					}
				})
			}
		})
	}
}

func (l *lab) ask(t testing.TB, ab, ba wan.Path) {
	t.Helper()
	if err := l.set(ab, ba); err != nil {
		t.Fatal(err)
	}
}

// judge holds sorted times against the one asked for.
func judge(t *testing.T, what string, times []time.Duration, asked time.Duration, tol tolerance) {
	t.Helper()
	t.Logf("%s: asked %v, measured %v at least, %v quarter, %v half, %v at p99", what, asked, quantile(times, 0), quantile(times, 0.25), quantile(times, 0.5), quantile(times, 0.99))
	if len(times) == 0 || times[0] < asked-tol.early || quantile(times, 0.25) > asked+tol.late {
		t.Errorf("%s is not %v", what, asked)
	}
}

func roundTrip(t *testing.T, l *lab, tol tolerance) {
	for _, way := range []struct{ ab, ba time.Duration }{{0, 0}, {ms, ms}, {5 * ms, 30 * ms}, {75 * ms, 75 * ms}} {
		l.ask(t, wan.Path{Delay: way.ab}, wan.Path{Delay: way.ba})
		judge(t, "round trip", l.ping(t, 100, 4*ms, time.Second), way.ab+way.ba, tol)
	}
}

func oneWay(t *testing.T, l *lab, tol tolerance) {
	l.ask(t, wan.Path{Delay: 10 * ms}, wan.Path{Delay: 40 * ms})
	for _, back := range []bool{false, true} {
		asked := 10 * ms
		if back {
			asked = 40 * ms
		}
		got := l.fly(t, flight{back: back, n: 100, gap: 3 * ms, settle: time.Second})
		judge(t, "one way", took(got), asked, tol)
	}
}

func took(all []arrival) []time.Duration {
	var times []time.Duration
	for _, a := range all {
		times = append(times, a.took)
	}
	slices.Sort(times)
	return times
}

// The packets are so far apart that none has to wait for the one before: their delays are evenly spread.
func jitter(t *testing.T, l *lab, tol tolerance) {
	const delay, j, n = 20 * ms, 4 * ms, 300
	l.ask(t, wan.Path{Delay: delay, Jitter: j}, wan.Path{})
	times := took(l.fly(t, flight{n: n, gap: 2 * j, settle: time.Second}))
	t.Logf("measured %v to %v, quarters %v %v %v", quantile(times, 0), quantile(times, 1), quantile(times, 0.25), quantile(times, 0.5), quantile(times, 0.75))
	if len(times) != n || times[0] < delay-j-tol.early {
		t.Fatalf("%d of %d arrived, the first after %v", len(times), n, quantile(times, 0))
	}
	for _, q := range []float64{0.1, 0.25, 0.5} {
		want := delay - j + time.Duration(q*2*float64(j))
		chance := time.Duration(5 * math.Sqrt(q*(1-q)/n) * 2 * float64(j)) // five deviations of a quantile of n even draws
		if got := quantile(times, q); got < want-chance || got > want+chance+tol.late {
			t.Errorf("quantile %v is %v, not %v ± %v", q, got, want, chance)
		}
	}
}

func order(t *testing.T, l *lab, _ tolerance) {
	l.ask(t, wan.Path{Delay: 10 * ms, Jitter: 10 * ms}, wan.Path{})
	got := l.fly(t, flight{n: 500, burst: 5, gap: ms, settle: time.Second})
	if len(got) != 500 {
		t.Errorf("%d arrived", len(got))
	}
	for i := range got {
		if got[i].number != i {
			t.Fatalf("packet %d arrived as number %d", got[i].number, i)
		}
	}
}

func loss(t *testing.T, l *lab, _ tolerance) {
	for _, p := range []float64{0, 0.02, 0.2, 1} {
		const n = 4000
		l.ask(t, wan.Path{Delay: ms, Loss: p}, wan.Path{Delay: ms})
		got := len(l.fly(t, flight{n: n, burst: 10, gap: ms, settle: 300 * ms}))
		t.Logf("asked %v, %d of %d were lost", p, n-got, n)
		if math.Abs(float64(n-got)-n*p) > 5*math.Sqrt(n*p*(1-p)) {
			t.Errorf("loss is not %v", p)
		}
	}
}

// The queue is filled faster than it empties, so that the rate alone tells when the last has left it. A sender that is
// away for a moment, and lets it run empty, is allowed for; one that never outruns it shows nothing.
func rate(t *testing.T, l *lab, tol tolerance) {
	const size = 1400
	for _, asked := range []int64{2_000_000, tol.fast} {
		n := int(asked * 6 / 10 / (size * 8)) // what takes 0.6 s
		each := time.Duration(size * 8 * int64(time.Second) / asked)
		l.ask(t, wan.Path{Delay: 5 * ms, Rate: asked, Queue: 2 * n}, wan.Path{})
		got := l.fly(t, flight{n: n, size: size, burst: 50, gap: ms, settle: 3 * time.Second})
		if len(got) != n {
			t.Errorf("%d of %d arrived", len(got), n)
			continue
		}
		// The first may wait for nobody; from the tenth on there is a queue.
		const begun = 9
		left, empty := got[begun].at, time.Duration(0)
		for _, a := range got[begun+1:] {
			if idle := a.at - a.took + 5*ms - left; idle > 0 {
				left, empty = left+idle, empty+idle
			}
			left += each
		}
		took, should := got[n-1].at-got[begun].at, left-got[begun].at
		measured := float64((n-begun-1)*size*8) / (took - empty).Seconds()
		t.Logf("asked %d bit/s, measured %.0f over %v, in which the queue was empty for %v", asked, measured, took, empty)
		if empty > should/2 {
			t.Errorf("the sender was slower than %d bit/s", asked)
		} else if math.Abs(float64(took)/float64(should)-1) > tol.rate {
			t.Errorf("the rate is not %d bit/s", asked)
		}
	}
}

func queue(t *testing.T, l *lab, _ tolerance) {
	const asked, n, size, each = 50, 200, 1000, 20 * ms // each: to send one packet
	l.ask(t, wan.Path{Rate: 400_000, Queue: asked}, wan.Path{})
	got := l.fly(t, flight{n: n, size: size, settle: 2500 * ms})
	var last time.Duration // when the last was sent that passed
	for _, a := range got {
		last = max(last, a.at-a.took)
	}
	// One more is being sent, and places become free meanwhile.
	t.Logf("asked %d, %d passed", asked, len(got))
	if len(got) < asked || len(got) > asked+2+int(last/each) {
		t.Errorf("%d of %d packets passed a queue of %d", len(got), n, asked)
	}
}

func reorder(t *testing.T, l *lab, tol tolerance) {
	const n, delay, p = 1000, 20 * ms, 0.25
	l.ask(t, wan.Path{Delay: delay, Reorder: p}, wan.Path{})
	got := l.fly(t, flight{n: n, gap: ms, settle: time.Second})
	early, last := 0, -1
	for _, a := range got {
		if a.took < delay-tol.early {
			early++
			continue
		}
		if a.number < last {
			t.Errorf("packet %d was delayed, and overtaken by %d that was too", a.number, last)
		}
		last = a.number
	}
	t.Logf("asked %v, %d of %d overtook", p, early, n)
	if len(got) != n || math.Abs(float64(early)-n*p) > 5*math.Sqrt(n*p*(1-p)) {
		t.Errorf("%d of %d arrived, %d early", len(got), n, early)
	}
}
