package watch

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/latest"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/store"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// Five regions on four continents. The first three have a voter each.
var places = []spec.Location{
	{Latitude: 37.57, Longitude: 126.98}, // Seoul
	{Latitude: 50.11, Longitude: 8.68},   // Frankfurt
	{Latitude: 38.95, Longitude: -77.45}, // Virginia
	{Latitude: -23.5, Longitude: -46.6},  // São Paulo
	{Latitude: 35.68, Longitude: 139.77}, // Tokyo
}

const port = 7947

// world is a cluster on an in-memory internet. What the voters agree on is written by the test: Raft is not in it.
type world struct {
	t     *testing.T
	in    *memnet.Internet
	nodes []*node
	state *store.State // agreed

	mu      sync.Mutex
	headed  bool            // there is a leader
	dead    map[string]bool // as all see it
	newest  uint64
	gossips bool // all know the newest revision
}

// node is a voter, or one that follows.
type node struct {
	w      *world
	host   *memnet.Host
	region string
	voter  bool
	state  *latest.Value[*store.State]
	*Server
	follower *Follower
	end      func()

	mu    sync.Mutex
	taken []time.Time
}

// inWorld runs a test in virtual time and ends what it left open.
func inWorld(t *testing.T, voters, followers int, test func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, in: memnet.New(1), headed: true, dead: map[string]bool{}}
		defer w.in.Close()
		w.state = begin(t)
		defer func() {
			for _, n := range w.nodes {
				n.stop()
			}
		}()
		for i := range voters + followers {
			w.add(i, i < voters)
		}
		for _, n := range w.nodes {
			n.start()
		}
		test(t, w)
	})
}

// begin is the state of a new cluster.
func begin(t testing.TB) *store.State {
	return with(t, &store.State{}, store.Change{Space: store.Own, Put: []store.Object{object("Node", "first", "x")}})
}

func with(t testing.TB, s *store.State, c store.Change) *store.State {
	t.Helper()
	next, _, err := s.With(c)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

func object(kind, name, content string) store.Object {
	return store.Object{Kind: kind, Name: name, Bytes: []byte(content)}
}

func (w *world) add(i int, voter bool) *node {
	r := i % len(places)
	host := w.in.Host(fmt.Sprintf("n%02d", i), places[r], netip.AddrFrom4([4]byte{10, byte(r), byte(i / 250), byte(1 + i%250)}))
	n := &node{w: w, host: host, region: fmt.Sprintf("r%d", r), voter: voter, state: &latest.Value[*store.State]{}}
	if voter {
		n.state.Set(w.state)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nodes = append(w.nodes, n)
	return n
}

func (n *node) start() {
	n.w.t.Helper()
	listener, err := n.host.Listen("tcp", fmt.Sprint(":", port))
	if err != nil {
		n.w.t.Fatal(err)
	}
	depth := func() int {
		n.w.mu.Lock()
		defer n.w.mu.Unlock()
		if n.w.headed {
			return 0
		}
		return MaxDepth
	}
	n.follower = NewFollower(n.config())
	if !n.voter {
		depth = n.follower.Depth
	}
	n.Server = Serve(ServerConfig{Listener: listener, State: n.state, Depth: depth})
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	if !n.voter {
		work.Go(func() { n.follower.Run(ctx) })
	}
	n.end = func() {
		cancel()
		work.Wait()
		n.Server.Close()
	}
	n.w.mark(n, false)
}

func (n *node) config() FollowerConfig {
	return FollowerConfig{
		Self: n.host.Name(),
		Dial: func(ctx context.Context, _, address string) (net.Conn, error) {
			return n.host.Dial(ctx, "tcp", address)
		},
		Sources: func() []Source { return Order(n.member(n), n.w.members(n)) },
		State:   n.state.Get,
		Take: func(s *store.State) {
			if had := n.state.Get(); had != nil && had.Position() != s.Position() && had.Position().AtLeast(s.Position()) {
				n.w.t.Errorf("%s had %v and takes %v", n.host.Name(), had.Position(), s.Position())
			}
			n.state.Set(s)
			n.mu.Lock()
			n.taken = append(n.taken, time.Now())
			n.mu.Unlock()
		},
		Newest: func() uint64 {
			n.w.mu.Lock()
			defer n.w.mu.Unlock()
			return n.w.newest
		},
	}
}

func (n *node) stop() {
	if n.end != nil {
		n.end()
		n.end = nil
	}
}

// kill ends the process of a node.
func (n *node) kill() {
	n.host.Kill()
	n.stop()
	n.w.mark(n, true)
}

// restart starts it again, with what it had.
func (n *node) restart() {
	n.host.Restart()
	n.start()
}

func (w *world) mark(n *node, dead bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dead[n.host.Name()] = dead
}

// member is a node as another sees it.
func (n *node) member(from *node) Member {
	m := Member{
		Name: n.host.Name(), Region: n.region, Voter: n.voter,
		Address: netip.AddrPortFrom(n.host.Addr(), port).String(),
	}
	if n != from {
		m.RTT = n.w.in.RoundTrip(from.host.Name(), n.host.Name())
	}
	return m
}

func (w *world) members(from *node) []Member {
	w.mu.Lock()
	defer w.mu.Unlock()
	var members []Member
	for _, n := range w.nodes {
		if !w.dead[n.host.Name()] {
			members = append(members, n.member(from))
		}
	}
	return members
}

func (w *world) lead(yes bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.headed = yes
}

// write agrees on a change; all voters that live have it at once.
func (w *world) write(c store.Change) {
	w.t.Helper()
	w.agree(with(w.t, w.state, c))
}

func (w *world) put(name, content string) {
	w.t.Helper()
	w.write(store.Change{Put: []store.Object{object("k", name, content)}})
}

func (w *world) agree(s *store.State) {
	w.state = s
	for _, n := range w.nodes {
		if n.voter && n.end != nil {
			n.state.Set(s)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gossips {
		w.newest = s.Revision
	}
}

// followers are the nodes that run and are no voters.
func (w *world) followers(in ...string) []*node {
	return slices.DeleteFunc(slices.Clone(w.nodes), func(n *node) bool {
		return n.voter || n.end == nil || len(in) > 0 && !slices.Contains(in, n.region)
	})
}

// has says whether a node has what is agreed, to the last byte.
func (n *node) has(s *store.State) bool {
	got := n.state.Get()
	return got != nil && got.Position() == s.Position() && got.Sum() == s.Sum() && got.Own.Sum() == s.Own.Sum()
}

// within waits until something is so, and returns how long it took.
func (w *world) within(limit time.Duration, what string, so func() bool) time.Duration {
	w.t.Helper()
	start := time.Now()
	for !so() {
		if time.Since(start) > limit {
			w.t.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return time.Since(start)
}

// agreed waits until some nodes have what is agreed.
func (w *world) agreed(limit time.Duration, nodes []*node) time.Duration {
	w.t.Helper()
	return w.within(limit, "all have what is agreed", func() bool {
		return !slices.ContainsFunc(nodes, func(n *node) bool { return !n.has(w.state) })
	})
}

// settled waits until all that follow are fed.
func (w *world) settled() {
	w.t.Helper()
	w.agreed(time.Minute, w.followers())
	w.within(time.Minute, "all are fed", func() bool {
		return !slices.ContainsFunc(w.followers(), func(n *node) bool {
			source := w.named(n.follower.Source())
			return source == nil || !source.voter && source.follower.Depth() >= MaxDepth
		})
	})
}

func (w *world) named(name string) *node {
	i := slices.IndexFunc(w.nodes, func(n *node) bool { return n.host.Name() == name })
	if i < 0 {
		return nil
	}
	return w.nodes[i]
}

// sent is what some nodes sent to followers, in bytes.
func sent(nodes []*node) (sum uint64) {
	for _, n := range nodes {
		sum += n.Server.Counters()["watch_sent_bytes_total"]
	}
	return sum
}
