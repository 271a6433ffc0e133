package gossip

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// newFleet is a joined world over a wide area: nodes stand in regions, 1 ms apart within one; between two regions a round trip
// takes 20 to 300 ms, drawn for each pair. Each packet takes up to 10 ms more, and 1 % are lost.
func newFleet(t *testing.T, size int, seed uint64) *world {
	const regions = 20
	random := rand.New(rand.NewPCG(seed, 1))
	w := &world{t: t, net: memnet.New(seed), nodes: make([]*Gossip, size)}
	w.suspected.text = "no acks received"
	for i := range size {
		addr := netip.AddrFrom4([4]byte{10, byte(i / 62500), byte(i / 250 % 250), byte(1 + i%250)})
		w.hosts = append(w.hosts, w.net.Host(name(i), spec.Location{}, addr))
	}
	t.Cleanup(w.end)
	var far [regions][regions]time.Duration
	for a := range regions {
		for b := range a {
			far[a][b] = 20*time.Millisecond + time.Duration(random.Int64N(int64(280*time.Millisecond)))
			far[b][a] = far[a][b]
		}
		far[a][a] = time.Millisecond
	}
	for i := range size {
		for j := range i {
			w.net.Link(name(i), name(j), memnet.Path{Delay: far[i%regions][j%regions] / 2, Jitter: 10 * time.Millisecond, Loss: 0.01})
		}
	}
	for i := range size {
		w.gates = append(w.gates, newGate())
		c := w.gates[i].on(w.config(i))
		c.Log = w.suspected.log()
		g, err := Open(c)
		if err != nil {
			t.Fatal(err)
		}
		w.nodes[i] = g
		if i > 0 {
			w.join(i, random.IntN(i))
		}
	}
	w.within(5*time.Minute, "all know each other", func() bool {
		return !slices.ContainsFunc(w.nodes, func(g *Gossip) bool { return len(g.Members().Get()) != size })
	})
	return w
}

// deaths crashes nodes one after the other, and returns how long each took to be known to all others, in ascending order.
func (w *world) deaths(times int, random *rand.Rand) []time.Duration {
	var took []time.Duration
	for range times {
		time.Sleep(10 * time.Second)
		i := 1 + random.IntN(len(w.nodes)-1)
		w.hosts[i].Crash()
		took = append(took, w.within(time.Minute, name(i)+" is dead to all", func() bool { return lost(w.others(i), name(i)) }))
		w.close(i)
		w.hosts[i].Restart()
		w.open(i)
		w.join(i, 0)
		w.within(time.Minute, "it is back", func() bool {
			return !slices.ContainsFunc(w.nodes, func(g *Gossip) bool { return len(g.Members().Get()) != len(w.nodes) })
		})
	}
	slices.Sort(took)
	return took
}

// Who probes the dead one first is drawn; suspicion and rumour take about as long each time. Without PERIGEE_LONG it is 3 deaths
// among 30 nodes.
func TestADeathIsKnownToTheFleetInFiveSecondsAndALeaveInOne(t *testing.T) {
	size, seeds, each := 30, uint64(1), 3
	if long() {
		size, seeds, each = 100, 8, 20
	}
	var took []time.Duration
	for seed := range seeds {
		synctest.Test(t, func(t *testing.T) {
			w := newFleet(t, size, seed)
			took = append(took, w.deaths(each, rand.New(rand.NewPCG(seed, 2)))...)
			w.leaves(3)
		})
	}
	slices.Sort(took)
	n := len(took)
	t.Logf("%d deaths: median %v, 90 %% within %v, 99 %% within %v, worst %v", n, took[n/2], took[n*90/100], took[n*99/100], took[n-1])
	if took[n/2] > 4500*time.Millisecond || n >= 20 && took[n*90/100] > 5*time.Second || took[n-1] > 8*time.Second {
		t.Errorf("they took %v", took)
	}
}

func TestTheDeathOfARegionIsKnownToTheOthersInTime(t *testing.T) {
	if !long() {
		t.Skip("PERIGEE_LONG is not set")
	}
	synctest.Test(t, func(t *testing.T) {
		w := newFleet(t, 100, 1)
		before := w.versions()
		for i := 3; i < 100; i += 20 {
			w.hosts[i].Crash()
		}
		took := w.within(time.Minute, "all five are dead to all", func() bool {
			return !slices.ContainsFunc(w.others(3, 23, 43, 63, 83), func(g *Gossip) bool { return len(names(g)) != 95 })
		})
		t.Logf("it took %v", took)
		for i := 3; i < 100; i += 20 {
			before[i] = w.nodes[i].Members().Version()
		}
		if n := w.turns(before); n != 95*5 {
			t.Errorf("members changed %d times, want %d", n, 95*5)
		}
	})
}

// leaves has nodes leave one after the other; each has a second until all know.
func (w *world) leaves(times int) {
	for i := 1; i <= times; i++ {
		start := time.Now()
		left := make(chan error)
		go func() { left <- w.nodes[i].Leave(time.Second) }()
		w.within(time.Second, name(i)+" has left", func() bool { return lost(w.others(i), name(i)) })
		w.t.Logf("a leave is known to all after %v", time.Since(start))
		if err := <-left; err != nil {
			w.t.Error(err)
		}
		w.close(i)
	}
}

// long says whether tests may take as long as they take.
func long() bool { return os.Getenv("PERIGEE_LONG") != "" }

// trouble is what goes wrong with nodes that live.
type trouble struct {
	name string
	run  func(w *world, random *rand.Rand, until time.Time)
}

var troubles = []trouble{
	{"nothing but loss", func(*world, *rand.Rand, time.Time) {}},
	{"one node stops for a second each half a minute", func(w *world, random *rand.Rand, until time.Time) {
		for time.Now().Before(until) {
			time.Sleep(29 * time.Second)
			w.pause(1, time.Second)
		}
	}},
	{"any node stops for up to 300 ms, one each second", func(w *world, random *rand.Rand, until time.Time) {
		for time.Now().Before(until) {
			w.pause(random.IntN(len(w.nodes)), time.Duration(random.Int64N(int64(300*time.Millisecond))))
			time.Sleep(time.Second)
		}
	}},
	{"30 % of what one node sends is lost", func(w *world, _ *rand.Rand, _ time.Time) {
		for i := range w.nodes {
			w.lossy(name(2), name(i))
		}
	}},
	{"30 % of what one node is sent is lost", func(w *world, _ *rand.Rand, _ time.Time) {
		for i := range w.nodes {
			w.lossy(name(i), name(2))
		}
	}},
}

func (w *world) lossy(from, to string) {
	if from != to {
		p := w.net.Path(from, to)
		p.Loss = 0.3
		w.net.LinkOneWay(from, to, p)
	}
}

func (w *world) pause(i int, d time.Duration) {
	w.gates[i].stop()
	time.Sleep(d)
	w.gates[i].goOn()
}

// The hour of each trouble at 100 nodes takes minutes; without PERIGEE_LONG it is a minute of two of them at 30.
func TestTroubleKillsNobody(t *testing.T) {
	sizes, lasts, some := []int{30}, time.Minute, troubles[1:3]
	if long() {
		sizes, lasts, some = []int{3, 5, 10, 20, 50, 100}, time.Hour, troubles
	}
	for _, size := range sizes {
		for _, trouble := range some {
			t.Run(fmt.Sprintf("%d nodes, %s", size, trouble.name), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newFleet(t, size, 7)
					time.Sleep(10 * time.Second)
					before, suspected, packets := w.versions(), w.suspected.n.Load(), w.net.Counters()["datagrams_total"]
					until := time.Now().Add(lasts)
					trouble.run(w, rand.New(rand.NewPCG(8, 9)), until)
					time.Sleep(time.Until(until))
					if n := w.turns(before); n != 0 {
						t.Errorf("members changed %d times", n)
					}
					packets = w.net.Counters()["datagrams_total"] - packets
					t.Logf("%d wrong suspicions, all contradicted in time; each node sent %.1f packets a second",
						w.suspected.n.Load()-suspected, float64(packets)/lasts.Seconds()/float64(size))
				})
			})
		}
	}
}
