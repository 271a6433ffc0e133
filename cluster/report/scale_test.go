package report

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fleet is how many nodes the large tests have: PERIGEE_FLEET, else 200.
func fleet() int {
	if n, err := strconv.Atoi(os.Getenv("PERIGEE_FLEET")); err == nil {
		return n
	}
	return 200
}

// reach measures how long values that nodes publish, one each 100 ms, take until the last node has them.
func (w *world) reach(values int) []time.Duration {
	const key = "verdict/target/web/10.0.0.1:80"
	said := make([]time.Time, values)
	left, took := make([]int, values), make([]time.Duration, values)
	var mu sync.Mutex
	var watching sync.WaitGroup
	for _, n := range w.nodes {
		watching.Go(func() {
			seen := make([]bool, values)
			var version uint64
			for known := 0; known < values; {
				e, v, err := n.Entries().Next(w.t.Context(), version)
				if err != nil {
					return
				}
				version = v
				for i := range values {
					if seen[i] || e[w.nodes[i*7%len(w.nodes)].Name][fmt.Sprint(key, i)] == nil {
						continue
					}
					seen[i] = true
					known++
					mu.Lock()
					took[i] = max(took[i], time.Since(said[i]))
					left[i]++
					mu.Unlock()
				}
			}
		})
	}
	for i := range values {
		mu.Lock()
		said[i] = time.Now()
		mu.Unlock()
		w.nodes[i*7%len(w.nodes)].say(fmt.Sprint(key, i), "healthy since then, for this and that reason")
		time.Sleep(100 * time.Millisecond)
	}
	watching.Wait()
	slices.Sort(took)
	return took
}

func (w *world) longest() (longest time.Duration) {
	for i := range w.regions {
		for j := range i {
			longest = max(longest, w.in.RoundTrip(w.nodes[i].Name, w.nodes[j].Name))
		}
	}
	return longest
}

func TestAValueIsEverywhereWithinASecond(t *testing.T) {
	for _, loss := range []float64{0, 0.01} {
		synctest.Test(t, func(t *testing.T) {
			inWorld(t, 100, 20, loss, func(w *world) {
				w.settle()
				values := 100
				if os.Getenv("PERIGEE_LONG") != "" {
					values = 1000
				}
				before := w.total("report_values_received_total")
				took := w.reach(values)
				median, p99 := took[values/2], took[values*99/100]
				copies := float64(w.total("report_values_received_total")-before) / float64(values)
				t.Logf("loss %v, longest round trip %v: everywhere in the median after %v, p99 %v, worst %v; %.0f copies a value", loss, w.longest(), median, p99, took[values-1], copies)
				if median > w.longest()/2+150*time.Millisecond || p99 > time.Second {
					t.Errorf("too slow")
				}
				if copies > 4*float64(len(w.nodes)) {
					t.Errorf("%.0f copies of a value", copies)
				}
			})
		})
	}
}

func TestALargeFleet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		size := fleet()
		inWorld(t, size, 20, 0, func(w *world) {
			start := time.Now()
			for _, n := range w.nodes {
				n.say("member", "revision 1, not leaving, at 10.0.0.1")
				n.say("coordinate", "a coordinate of some fifty bytes, which is the usual")
			}
			w.within(30*time.Second, "all know all", func() bool {
				return !slices.ContainsFunc(w.nodes, func(n *node) bool { return len(n.Entries().Get()) != size })
			})
			t.Logf("%d nodes begin at once: all know all after %v; %d MB sent, a node %d kB", size, time.Since(start), w.total("report_sent_bytes_total")>>20, w.total("report_sent_bytes_total")/uint64(size)>>10)
			time.Sleep(10 * time.Second)
			var m runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m)
			t.Logf("memory %d MB, a node %d kB, with the streams' buffers and the net", m.HeapAlloc>>20, m.HeapAlloc/uint64(size)>>10)

			before, bytes := w.total("report_values_received_total"), w.total("report_sent_bytes_total")
			time.Sleep(10 * time.Second)
			t.Logf("at rest %d bytes a node and second", (w.total("report_sent_bytes_total")-bytes)/uint64(size)/10)
			values := 40
			bytes = w.total("report_sent_bytes_total")
			took := w.reach(values)
			t.Logf("longest round trip %v: a value is everywhere in the median after %v, worst %v", w.longest(), took[values/2], took[values-1])
			copies := float64(w.total("report_values_received_total")-before) / float64(values)
			t.Logf("%.2f copies of a value per node, %.0f bytes", copies/float64(size), float64(w.total("report_sent_bytes_total")-bytes)/float64(size)/float64(values))
			if copies > 4*float64(size) || took[values/2] > w.longest()/2+150*time.Millisecond || took[values-1] > time.Second {
				t.Errorf("too many or too slow")
			}
		})
	})
}
