package report

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// Twenty regions of six continents.
var places = []spec.Location{
	{Latitude: 37.57, Longitude: 126.98}, {Latitude: 50.11, Longitude: 8.68}, {Latitude: 38.95, Longitude: -77.45},
	{Latitude: -23.5, Longitude: -46.6}, {Latitude: 35.68, Longitude: 139.77}, {Latitude: 1.35, Longitude: 103.8},
	{Latitude: 45.5, Longitude: -122.7}, {Latitude: -33.87, Longitude: 151.2}, {Latitude: 19.08, Longitude: 72.88},
	{Latitude: 53.35, Longitude: -6.26}, {Latitude: 51.5, Longitude: -0.13}, {Latitude: 48.86, Longitude: 2.35},
	{Latitude: 59.33, Longitude: 18.07}, {Latitude: 26.07, Longitude: 50.55}, {Latitude: -33.92, Longitude: 18.42},
	{Latitude: 22.32, Longitude: 114.17}, {Latitude: 45.5, Longitude: -73.57}, {Latitude: 39.96, Longitude: -83},
	{Latitude: 37.35, Longitude: -121.96}, {Latitude: -6.2, Longitude: 106.8},
}

const port = 7947

// world is nodes n0000, n0001, … of some regions, each on a host of its own. Who lives is told by the test.
type world struct {
	t       *testing.T
	in      *memnet.Internet
	regions int
	loss    float64
	nodes   []*node

	mu     sync.Mutex
	at     map[netip.Addr]*node
	named  map[string]*node
	linked map[[2]string]bool
}

type node struct {
	*Reports // nil: not running
	w        *world
	Peer
	host     *memnet.Host
	listener net.Listener
	serving  sync.WaitGroup
	refuse   func(string) bool
	asLife   uint64 // the life that it begins; 0: by the clock
}

// inWorld runs a test in a world of a size, which all know, and ends what it left open.
func inWorld(t *testing.T, size, regions int, loss float64, test func(w *world)) {
	w := &world{
		t: t, in: memnet.New(1), regions: regions, loss: loss, at: map[netip.Addr]*node{}, named: map[string]*node{}, linked: map[[2]string]bool{},
	}
	defer w.in.Close()
	defer func() {
		var ends sync.WaitGroup
		for _, n := range w.nodes {
			ends.Go(n.stop)
		}
		ends.Wait()
	}()
	for range size {
		w.add()
	}
	for _, n := range w.nodes {
		n.start()
	}
	w.tell()
	test(w)
}

func (w *world) add() *node {
	i := len(w.nodes)
	addr := netip.AddrFrom4([4]byte{10, 0, byte(i / 250), byte(1 + i%250)})
	n := &node{w: w, Peer: Peer{fmt.Sprintf("n%04d", i), fmt.Sprintf("r%02d", i%w.regions)}}
	n.host = w.in.Host(n.Name, places[i%w.regions], addr)
	w.nodes = append(w.nodes, n)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.at[addr], w.named[n.Name] = n, n
	return n
}

// link gives a pair of hosts the loss of the world, when they first have to do with each other.
func (w *world) link(a, b string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if pair := [2]string{min(a, b), max(a, b)}; w.loss > 0 && !w.linked[pair] {
		w.linked[pair] = true
		w.in.Link(a, b, memnet.Path{Loss: w.loss})
	}
}

func (n *node) start() {
	n.w.t.Helper()
	listener, err := n.host.Listen("tcp", fmt.Sprint(":", port))
	if err != nil {
		n.w.t.Fatal(err)
	}
	r, err := Open(Config{
		Self: n.Name, Region: n.Region, Refuse: n.refuse,
		Dial: func(ctx context.Context, name string) (net.Conn, error) {
			n.w.link(n.Name, name)
			n.w.mu.Lock()
			to := n.w.named[name].host.Addr()
			n.w.mu.Unlock()
			return n.host.Dial(ctx, "tcp", netip.AddrPortFrom(to, port).String())
		},
	})
	if err != nil {
		n.w.t.Fatal(err)
	}
	if n.asLife != 0 {
		r.mu.Lock()
		r.self.life = n.asLife
		r.mu.Unlock()
	}
	n.Reports, n.listener = r, listener
	n.serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			n.w.mu.Lock()
			from := n.w.at[conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()]
			n.w.mu.Unlock()
			n.serving.Go(func() { r.Serve(conn, from.Name) })
		}
	})
}

// stop ends a node in order, as far as others are concerned without a word.
func (n *node) stop() {
	if n.Reports == nil {
		return
	}
	n.listener.Close()
	if err := n.Reports.Close(); err != nil {
		n.w.t.Errorf("close %s: %v", n.Name, err)
	}
	n.serving.Wait()
	n.Reports = nil
}

// crash ends a node so that the others hear nothing of it, not even a reset.
func (n *node) crash() {
	n.host.Crash()
	n.stop()
}

// live are the nodes that run.
func (w *world) live() []*node {
	return slices.DeleteFunc(slices.Clone(w.nodes), func(n *node) bool { return n.Reports == nil })
}

func (w *world) peers() []Peer {
	var peers []Peer
	for _, n := range w.live() {
		peers = append(peers, n.Peer)
	}
	return peers
}

// tell tells all who lives.
func (w *world) tell() {
	peers := w.peers()
	for _, n := range w.live() {
		n.SetMembers(peers)
	}
}

func (w *world) settle() { time.Sleep(3 * time.Second) }

func (n *node) say(key, value string) {
	n.w.t.Helper()
	if err := n.Publish(key, []byte(value)); err != nil {
		n.w.t.Fatal(err)
	}
}

// within waits until something is so, and returns how long it took.
func (w *world) within(limit time.Duration, what string, so func() bool) time.Duration {
	w.t.Helper()
	start := time.Now()
	for !so() {
		if time.Since(start) > limit {
			w.t.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(start)
}

// know says whether all of some nodes hold a value; "": none at all.
func know(nodes []*node, from, key, value string) bool {
	return !slices.ContainsFunc(nodes, func(n *node) bool {
		got, has := n.Entries().Get()[from][key]
		return has != (value != "") || !bytes.Equal(got, []byte(value))
	})
}

// heads are the nodes that speak for a region, as all see it.
func (w *world) heads(region string) (heads, others []*node) {
	for _, n := range w.live() {
		if n.Region != region {
			continue
		}
		w := topology(n.Peer, w.peers())
		member := true
		for _, wish := range w {
			member = member && wish == everything
		}
		if member {
			others = append(others, n)
		} else {
			heads = append(heads, n)
		}
	}
	return heads, others
}

// total sums a counter of all nodes.
func (w *world) total(name string) (sum uint64) {
	for _, n := range w.live() {
		sum += n.Counters()[name]
	}
	return sum
}
