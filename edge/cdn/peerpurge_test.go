package cdn

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/perigee-net/perigee/edge/cache"
)

// ordering is how purges come to a node: told, or not, and agreed later, as node has it.
type ordering struct {
	*peerNode
	mu      sync.Mutex
	pending map[int]bool // told and not agreed
	made    map[int]bool
	need    int // the version that the newest purge that was made here asks for at least
}

func (o *ordering) purge(id int) {
	o.Purge(cache.Purge{Distribution: "site", Items: []string{"/a*"}})
	o.need = max(o.need, id)
	o.made[id] = true
}

func (o *ordering) told(id int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.made[id] {
		o.pending[id] = true
		o.purge(id)
	}
}

func (o *ordering) agreed(id int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.made[id] {
		o.purge(id)
	}
	o.epoch.Store(uint64(id))
	if delete(o.pending, id); len(o.pending) == 0 {
		o.Settle()
	}
}

// Whatever a node gets from peers, by whatever way and whenever purges come to whom: from when it has made a purge it answers nothing
// that is older than that. It fails at once where peers that are behind do not refuse, or where peers are asked for what was purged
// and is not agreed yet.
func TestNoNodeAnswersAnythingOlderThanThePurgesThatItHasMade(t *testing.T) {
	schedules := uint64(20)
	if text := os.Getenv("PERIGEE_SEEDS"); text != "" { // as make verify has it
		n, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			t.Fatalf("PERIGEE_SEEDS: %v", err)
		}
		schedules = n
	}
	for seed := range schedules {
		chance := rand.New(rand.NewPCG(seed, 1))
		ms := func(most int) time.Duration { return time.Duration(chance.IntN(most)) * time.Millisecond }
		text, members := site(""), three()
		if seed%2 == 1 {
			text, members = shielded, places()
		}
		var version atomic.Int32
		slow := ms(300)
		origin := func(w http.ResponseWriter, r *http.Request) {
			body := strconv.Itoa(int(version.Load()))
			time.Sleep(slow)
			w.Header().Set("Content-Length", strconv.Itoa(len(body)))
			w.Header().Set("Cache-Control", "max-age=3600, stale-while-revalidate=3600")
			fmt.Fprint(w, body)
		}
		inFleet(t, text, members, origin, func(t *testing.T, f *fleet) {
			var nodes []*ordering
			for _, m := range members {
				nodes = append(nodes, &ordering{peerNode: f.nodes[m.Name], pending: map[int]bool{}, made: map[int]bool{}})
			}
			began := time.Now()
			at := func(d time.Duration) { time.Sleep(time.Until(began.Add(d))) }
			var all sync.WaitGroup
			var answered atomic.Int32
			for range 60 {
				n, path, asks := nodes[chance.IntN(len(nodes))], fmt.Sprint("/a", chance.IntN(3)), ms(5000)
				all.Go(func() {
					at(asks)
					n.mu.Lock()
					need := n.need
					n.mu.Unlock()
					a, err := f.ask(n.name, "GET", path, nil)
					got, wrong := strconv.Atoi(a.body)
					switch {
					case err != nil || wrong != nil:
						t.Errorf("schedule %d: %s: %v, %d %q", seed, n.name, err, a.StatusCode, a.body)
					case got < need:
						t.Errorf("schedule %d: %s answered version %d of %s, and has made the purge of all before %d: %q", seed, n.name, got, path, need, a.Header["Cache-Status"])
					}
					answered.Add(1)
				})
			}
			// A purge is of all that was before the version of its number. It is told to most, and agreed at each node in order.
			given, agrees := time.Duration(0), make([]time.Duration, len(nodes))
			for id := 1; id <= 6; id++ {
				given += time.Millisecond + ms(1000)
				publish := given
				all.Go(func() {
					at(publish)
					version.Store(int32(id))
				})
				for i, n := range nodes {
					hears, tell := chance.IntN(4) > 0, given+time.Millisecond+ms(100)
					agrees[i] = max(agrees[i], given+100*time.Millisecond+ms(600)) + time.Millisecond
					agree := agrees[i]
					all.Go(func() {
						if hears {
							at(tell)
							n.told(id)
						}
						at(agree)
						n.agreed(id)
					})
				}
			}
			all.Wait()
			if answered.Load() != 60 {
				t.Errorf("schedule %d: %d were answered", seed, answered.Load())
			}
		})
	}
}

// What was purged softly is stale since the node that is asked made the purge, also where a peer that made it later has it.
func TestWhatAPeerPurgedLaterIsStaleSinceItWasPurgedHere(t *testing.T) {
	for _, c := range []struct {
		late, asks time.Duration // after this node made the purge: when the peer makes it, when it is asked
		cache      string
		body       string
	}{
		{time.Second, 3 * time.Second, "Hit", "0"},
		{3 * time.Second, 3500 * time.Millisecond, "Hit", "0"},
		{3 * time.Second, 5 * time.Second, "Miss", "1"}, // there it could be used for another two seconds
	} {
		var version atomic.Int32
		origin := func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "max-age=3600, stale-while-revalidate=4")
			fmt.Fprint(w, version.Load())
		}
		inFleet(t, site(""), three(), origin, func(t *testing.T, f *fleet) {
			owners := f.owners("/a", inSeoul)
			peer, here := f.nodes[owners[0]], f.nodes[owners[1]]
			time.Sleep(time.Second)
			f.must(here.name, "/a", 200, "Miss", "0")
			time.Sleep(time.Second)
			version.Store(1)
			purge := func(n *peerNode) {
				n.Purge(cache.Purge{Distribution: "site", Items: []string{"/a"}, Soft: true})
				n.epoch.Store(1)
				n.Settle()
			}
			purge(here)
			time.Sleep(c.late)
			purge(peer)
			time.Sleep(c.asks - c.late)
			f.must(here.name, "/a", 200, c.cache, c.body)
		})
	}
}
