package gossip

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// Places on four continents, so that packets take as long as they do.
var places = []spec.Location{
	{Latitude: 37.57, Longitude: 126.98}, // Seoul
	{Latitude: 50.11, Longitude: 8.68},   // Frankfurt
	{Latitude: 38.95, Longitude: -77.45}, // Virginia
	{Latitude: -23.5, Longitude: -46.6},  // São Paulo
	{Latitude: 35.68, Longitude: 139.77}, // Tokyo
	{Latitude: 1.35, Longitude: 103.8},   // Singapore
	{Latitude: 45.5, Longitude: -122.7},  // Oregon
}

var key = bytes.Repeat([]byte{7}, 32)

const port = 7946

// world is nodes n00, n01, … of one cluster, each on a host of its own.
type world struct {
	t         *testing.T
	net       *memnet.Internet
	hosts     []*memnet.Host
	nodes     []*Gossip // nil: closed
	gates     []*gate   // of newFleet
	suspected mentions
}

func newWorld(t *testing.T, size int) *world {
	w := &world{t: t, net: memnet.New(1)}
	for i := range size {
		addr := netip.AddrFrom4([4]byte{10, 0, byte(i / 250), byte(1 + i%250)})
		w.hosts = append(w.hosts, w.net.Host(name(i), places[i%len(places)], addr))
	}
	w.nodes = make([]*Gossip, size)
	t.Cleanup(w.end)
	return w
}

// joined is a world in which all know each other.
func joined(t *testing.T, size int) *world {
	w := newWorld(t, size)
	for i := range size {
		w.open(i)
		if i > 0 {
			w.join(i, 0)
		}
	}
	w.within(2*pushPullInterval, "all know each other", func() bool {
		return !slices.ContainsFunc(w.nodes, func(g *Gossip) bool { return len(g.Members().Get()) != size })
	})
	return w
}

func name(i int) string { return fmt.Sprintf("n%02d", i) }

func (w *world) config(i int) Config {
	h := w.hosts[i]
	return Config{
		Name: name(i), Meta: []byte("meta of " + name(i)), Key: key, Label: "cluster",
		Bind:   netip.AddrPortFrom(h.Addr(), port).String(),
		Listen: h.Listen, ListenPacket: h.ListenPacket, Dial: h.Dial,
	}
}

func (w *world) open(i int) *Gossip {
	w.t.Helper()
	g, err := Open(w.config(i))
	if err != nil {
		w.t.Fatal(err)
	}
	w.nodes[i] = g
	return g
}

func (w *world) join(i, seed int) {
	w.t.Helper()
	if err := w.nodes[i].Join(w.t.Context(), []string{w.addr(seed)}); err != nil {
		w.t.Fatalf("%s joins %s: %v", name(i), name(seed), err)
	}
}

func (w *world) addr(i int) string { return netip.AddrPortFrom(w.hosts[i].Addr(), port).String() }

// close ends one node.
func (w *world) close(i int) {
	w.t.Helper()
	if err := w.nodes[i].Close(); err != nil {
		w.t.Errorf("close %s: %v", name(i), err)
	}
	w.nodes[i] = nil
}

// end ends the world. The bubble fails the test if anything of it is left.
func (w *world) end() {
	for i, g := range w.nodes {
		if g != nil {
			w.close(i)
		}
	}
	w.net.Close()
}

// others are the nodes that are open, without some.
func (w *world) others(without ...int) []*Gossip {
	var others []*Gossip
	for i, g := range w.nodes {
		if g != nil && !slices.Contains(without, i) {
			others = append(others, g)
		}
	}
	return others
}

// within waits until something is so, and returns how long it took.
func (w *world) within(limit time.Duration, what string, so func() bool) time.Duration {
	w.t.Helper()
	start := time.Now()
	for !so() {
		if time.Since(start) > limit {
			w.t.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(50 * time.Millisecond)
	}
	return time.Since(start)
}

func names(g *Gossip) []string {
	var names []string
	for _, m := range g.Members().Get() {
		names = append(names, m.Name)
	}
	return names
}

func (w *world) versions() []uint64 {
	versions := make([]uint64, len(w.nodes))
	for i, g := range w.nodes {
		versions[i] = g.Members().Version()
	}
	return versions
}

// turns counts how often the members of each node changed since before.
func (w *world) turns(before []uint64) (total uint64) {
	for i, v := range w.versions() {
		total += v - before[i]
	}
	return total
}
