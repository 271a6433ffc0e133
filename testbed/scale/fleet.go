// Package scale lets fleets of 10, 100 and 1,000 nodes live in virtual time, and says how long they take to agree, what that costs, and
// how it grows. What is in it of each node is real: its membership (cluster/gossip), what it says (cluster/report), its fast lane
// (cluster/lane) and its place in the network (cluster/distance), tied together as package node does it. The network between them is
// testbed/memnet's: round trips of 20 to 300 ms between regions, 1 % of all packets lost.
//
// It is not a fleet of whole nodes: there is no Raft and no traffic in it, streams are without TLS, and the links of the backbone are there for a
// while only, and only in fleets of up to 100. So its bytes lack what encryption and headers add. Times are of the network alone: in virtual
// time work takes none. They hold as long as a node keeps up, which the CPU time says.
package scale

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/perigee-net/perigee/cluster/distance"
	"github.com/perigee-net/perigee/cluster/gossip"
	"github.com/perigee-net/perigee/cluster/lane"
	"github.com/perigee-net/perigee/cluster/report"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/testbed/memnet"
)

const (
	maxRegions = 20
	// Between two regions a round trip takes this long, drawn for each pair; within one it takes inRegion.
	nearest, farthest = 20 * time.Millisecond, 300 * time.Millisecond
	inRegion          = time.Millisecond
	jitter            = 10 * time.Millisecond // more, for each packet
	loss              = 0.01

	gossipPort, reportPort, lanePort = 7946, 7947, 7948

	// A node says where it is in the network, and how far some others are, within sayFirst, and at last each sayEvery: of its own region
	// all, of each other measuredOf. Package node does so where paths stay as they are; those here are all a little other each time.
	sayFirst   = 5 * time.Second
	sayEvery   = time.Minute
	measuredOf = 3
	// tryAgain is when a node tries again that found no way in: its service is started again.
	tryAgain = time.Second
	// settleTime is how long members may change until they are told to the reports again, as a node is busy with it that long.
	settleTime = 50 * time.Millisecond
	// standing is how long a stream for an order may stand ready.
	standing = time.Minute
)

// Keys of what nodes say.
const (
	runningKey    = "running"
	coordinateKey = "coordinate"
	measuredKey   = "measured"
	orderKey      = "order/"
)

// fleet is nodes n0000, n0001, …, each on a host of its own, dealt out to regions in turn.
type fleet struct {
	in      *memnet.Internet
	regions int
	random  *rand.Rand
	nodes   []*node
	named   map[string]*node
	at      map[netip.Addr]*node
	streams sync.WaitGroup // that wait for what they carry; they end with the network
	ends    sync.WaitGroup // of nodes that died
}

type node struct {
	f       *fleet
	name    string
	region  string
	host    *memnet.Host
	traffic [services]meter

	running bool
	gossip  *gossip.Gossip
	report  *report.Reports
	lane    *lane.Lane
	place   *distance.Client
	life    context.Context
	cancel  context.CancelFunc
	work    sync.WaitGroup
	ports   []net.Listener

	mu    sync.Mutex
	did   map[string]bool     // orders, by ID
	ready map[string]net.Conn // streams for an order, by node
}

func newFleet(size int, seed uint64) *fleet {
	f := &fleet{
		in: memnet.New(seed), regions: min(max(size/2, 2), maxRegions), random: rand.New(rand.NewPCG(seed, 1)),
		named: map[string]*node{}, at: map[netip.Addr]*node{},
	}
	for i := range size {
		n := &node{f: f, name: fmt.Sprintf("n%04d", i), region: fmt.Sprintf("region-%02d", i%f.regions)}
		addr := netip.AddrFrom4([4]byte{10, byte(i / 62500), byte(i / 250 % 250), byte(1 + i%250)})
		n.host = f.in.Host(n.name, spec.Location{}, addr)
		f.nodes = append(f.nodes, n)
		f.named[n.name], f.at[addr] = n, n
	}
	var far [maxRegions][maxRegions]time.Duration
	for a := range maxRegions {
		for b := range a {
			far[a][b] = nearest + time.Duration(f.random.Int64N(int64(farthest-nearest)))
			far[b][a] = far[a][b]
		}
		far[a][a] = inRegion
	}
	for i, a := range f.nodes {
		for j, b := range f.nodes[:i] {
			f.in.Link(a.name, b.name, memnet.Path{Delay: far[i%f.regions][j%f.regions] / 2, Jitter: jitter, Loss: loss})
		}
	}
	return f
}

// close ends all nodes and the network.
func (f *fleet) close() {
	for _, n := range f.live() {
		f.end(n)
	}
	f.ends.Wait()
	f.in.Close()
	f.streams.Wait()
}

// live are the nodes that run.
func (f *fleet) live() []*node {
	return slices.DeleteFunc(slices.Clone(f.nodes), func(n *node) bool { return !n.running })
}

// start starts a node that knows nobody.
func (n *node) start() error {
	n.life, n.cancel = context.WithCancel(context.Background())
	n.did, n.ready = map[string]bool{}, map[string]net.Conn{}
	n.place = distance.New(n.name)
	g, err := gossip.Open(gossip.Config{
		Name: n.name, Meta: n.meta(), Key: make([]byte, gossip.KeySize), Label: "b7a1c0de4d2f4a53", Bind: netip.AddrPortFrom(n.host.Addr(), gossipPort).String(),
		Listen: n.traffic[byGossip].listen(n.host.Listen), ListenPacket: n.traffic[byGossip].listenPacket(n.host.ListenPacket), Dial: n.traffic[byGossip].dial(n.host.Dial),
		Ping: gossip.Ping{
			Payload: func() []byte { return n.place.Coordinate().Append(nil) },
			Done: func(node string, rtt time.Duration, payload []byte) {
				if theirs, err := distance.Decode(payload); err == nil {
					n.place.Observe(node, theirs, rtt)
				}
			},
		},
	})
	if err != nil {
		return err
	}
	n.gossip = g
	n.report, err = report.Open(report.Config{
		Self: n.name, Region: n.region,
		Dial: func(ctx context.Context, to string) (net.Conn, error) {
			return n.connect(ctx, byReport, to, reportPort)
		},
	})
	if err != nil {
		return err
	}
	n.lane = lane.Open(lane.Config{Self: n.name, Dial: n.dialLane, Do: n.do})
	if err := n.serve(byReport, reportPort, func(conn net.Conn, from string) { n.report.Serve(conn, from) }); err != nil {
		return err
	}
	if err := n.serve(byLane, lanePort, n.serveLane); err != nil {
		return err
	}
	n.work.Go(n.followMembers)
	n.work.Go(n.sayPlace)
	n.running = true
	return n.report.Publish(runningKey, []byte("1 1"))
}

// meta is as long as what a node says of itself.
func (n *node) meta() []byte {
	at := n.host.Addr()
	return fmt.Appendf(nil, `{"r":%q,"p":"%s-a","o":["edge","origin","dns"],"a":["%v"],"c":"%v:7443","i":"%v:7080"}`, n.region, n.region, at, at, at)
}

// meet finds the others by way of some who are there.
func (n *node) meet(at []string) {
	for n.gossip.Join(n.life, at) != nil && n.rest(tryAgain) {
	}
}

func (n *node) gossips() string { return netip.AddrPortFrom(n.host.Addr(), gossipPort).String() }

// followMembers tells the reports who lives.
func (n *node) followMembers() {
	for version := uint64(0); ; {
		members, v, err := n.gossip.Members().Next(n.life, version)
		if err != nil {
			return
		}
		version = v
		peers := make([]report.Peer, len(members))
		for i, m := range members {
			peers[i] = report.Peer{Name: m.Name, Region: n.f.named[m.Name].region}
		}
		n.report.SetMembers(peers)
		if !n.rest(settleTime) {
			return
		}
	}
}

// sayPlace says where the node is in the network, and how far others are.
func (n *node) sayPlace() {
	n.rest(time.Duration(rand.Int64N(int64(sayFirst)))) // not all at once
	for wait := time.Duration(rand.Int64N(int64(sayEvery))); n.life.Err() == nil; wait = sayEvery {
		n.report.Publish(coordinateKey, n.place.Coordinate().Append(nil))
		n.report.Publish(measuredKey, distance.EncodeMeasured(n.measured()))
		n.rest(wait)
	}
}

// measured are round trips as the links of the backbone measure them.
func (n *node) measured() map[string]time.Duration {
	all, of := map[string]time.Duration{}, map[string]int{}
	for _, m := range n.gossip.Members().Get() {
		o := n.f.named[m.Name]
		if o == n || o.region != n.region && of[o.region] >= measuredOf {
			continue
		}
		of[o.region]++
		all[o.name] = n.f.in.RoundTrip(n.name, o.name) + time.Duration(rand.Int64N(int64(jitter)))
	}
	return all
}

// rest waits, and says whether the node goes on.
func (n *node) rest(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-n.life.Done():
		return false
	}
}

func (n *node) connect(ctx context.Context, s service, to string, port uint16) (net.Conn, error) {
	return n.traffic[s].dial(n.host.Dial)(ctx, "tcp", netip.AddrPortFrom(n.f.named[to].host.Addr(), port).String())
}

// serve answers streams of a service until the node stops.
func (n *node) serve(s service, port uint16, each func(conn net.Conn, from string)) error {
	l, err := n.traffic[s].listen(n.host.Listen)("tcp", netip.AddrPortFrom(n.host.Addr(), port).String())
	if err != nil {
		return err
	}
	n.ports = append(n.ports, l)
	n.work.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			from := n.f.at[conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()]
			n.f.streams.Go(func() { each(conn, from.name) })
		}
	})
	return nil
}

// getReady has a stream to each other node stand ready for one order, as the links of the backbone do, over which an order needs no round
// trip before it is sent.
func (n *node) getReady(ctx context.Context) {
	var all sync.WaitGroup
	for _, to := range n.f.live() {
		if to == n {
			continue
		}
		all.Go(func() {
			if conn, err := n.connect(ctx, byLane, to.name, lanePort); err == nil {
				n.mu.Lock()
				defer n.mu.Unlock()
				n.ready[to.name] = conn
			}
		})
	}
	all.Wait()
}

// dialLane takes the stream that stands ready, or opens one. A byte tells the far end that it is in use now.
func (n *node) dialLane(ctx context.Context, to string) (net.Conn, error) {
	n.mu.Lock()
	conn := n.ready[to]
	delete(n.ready, to)
	n.mu.Unlock()
	if conn == nil {
		var err error
		if conn, err = n.connect(ctx, byLane, to, lanePort); err != nil {
			return nil, err
		}
	}
	if _, err := conn.Write([]byte{1}); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func (n *node) serveLane(conn net.Conn, from string) {
	conn.SetReadDeadline(time.Now().Add(standing))
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		conn.Close()
		return
	}
	n.lane.Serve(conn, from)
}

func (n *node) do(id string, _ []byte) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.did[id] = true
	return nil
}

// hasDone says whether an order has reached the node, by either way.
func (n *node) hasDone(id, asker string) bool {
	n.mu.Lock()
	did := n.did[id]
	n.mu.Unlock()
	return did || n.report.Entries().Get()[asker][orderKey+id] != nil
}

// knows says whether these nodes are the ones that it holds to live.
func (n *node) knows(live []*node) bool {
	return slices.EqualFunc(n.gossip.Members().Get(), live, func(m gossip.Member, l *node) bool { return m.Name == l.name })
}

// end ends a node without a word to the others; what is left of it ends beside.
func (f *fleet) end(n *node) {
	n.running = false
	f.ends.Go(n.stop)
}

func (n *node) stop() {
	n.cancel()
	for _, l := range n.ports {
		l.Close()
	}
	n.mu.Lock()
	for _, conn := range n.ready {
		conn.Close()
	}
	n.mu.Unlock()
	n.lane.Close()
	n.report.Close()
	n.gossip.Close()
	n.work.Wait()
}
