package testbed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/node"
	"github.com/perigee-net/perigee/node/api"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// Fleet is many nodes in virtual time and nothing else: no targets, no demo, so that what the cluster itself does can be
// tried often and with many. It must be made, used and closed inside one testing/synctest bubble. Two verbs of the same
// node must not run at once.
type Fleet struct {
	Names []string // of the nodes, in the order in which they joined

	dir     string
	log     *slog.Logger
	in      *memnet.Internet
	warm    bool
	nodes   map[string]*fleetNode
	clients map[string]*memnet.Host // by region
	places  []fleetPlace
	guests  int          // machines beside it that have tried to join
	token   string       // by which nodes join
	access  string       // to the API
	clock   atomic.Int64 // how far the clients' clocks are ahead, in nanoseconds
}

// FleetConfig is what a Fleet is made of.
type FleetConfig struct {
	Dir     string // an empty folder for the nodes' data
	Log     *slog.Logger
	Seed    uint64
	Nodes   int
	Regions int    // 1 to 5; the nodes are dealt out to them in turn
	Voters  int    // how many of the nodes, the first ones, may vote; 0: all
	Prefix  string // of the nodes' names
	Warm    bool   // links are warmed, as those of a World, which is about half of what a small fleet takes
	// Tune changes what one node is told.
	Tune func(*node.Config)
}

type fleetPlace struct {
	short, region string
	at            spec.Location
}

var fleetPlaces = []fleetPlace{
	{"icn", "ap-northeast-2", spec.Location{Latitude: 37.57, Longitude: 126.98}},
	{"fra", "eu-central-1", spec.Location{Latitude: 50.11, Longitude: 8.68}},
	{"iad", "us-east-1", spec.Location{Latitude: 38.95, Longitude: -77.45}},
	{"gru", "sa-east-1", spec.Location{Latitude: -23.55, Longitude: -46.63}},
	{"syd", "ap-southeast-2", spec.Location{Latitude: -33.87, Longitude: 151.21}},
}

// fleetNode is one machine and its node.
type fleetNode struct {
	cfg   node.Config
	host  *memnet.Host
	disk  *fleetDisk
	api   string
	clock atomic.Int64   // how far its clock is ahead, in nanoseconds
	gone  sync.WaitGroup // what is left of processes that died

	mu   sync.Mutex
	node *node.Node // nil while it is dead, or ends
}

// newFleetNode is a machine with a disk of its own, whose node is started by start.
func newFleetNode(host *memnet.Host, cfg node.Config) *fleetNode {
	n := &fleetNode{cfg: cfg, host: host, disk: &fleetDisk{dir: filepath.Join(cfg.Data, "cache")}}
	n.cfg.CacheFiles = n.disk.system()
	return n
}

// NewFleet starts the nodes, one after the other, and returns when the last has joined.
func NewFleet(ctx context.Context, cfg FleetConfig) (*Fleet, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	f := &Fleet{
		dir: cfg.Dir, log: cfg.Log, in: memnet.New(cfg.Seed), warm: cfg.Warm, places: fleetPlaces[:cfg.Regions],
		nodes: map[string]*fleetNode{}, clients: map[string]*memnet.Host{},
	}
	for i, p := range f.places {
		f.clients[p.region] = f.in.Host("client-"+p.short, p.at, netip.AddrFrom4([4]byte{10, 200, byte(i), 1}))
	}
	for i := range cfg.Nodes {
		place := f.places[i%cfg.Regions]
		name := fmt.Sprintf("%s%s%d", cfg.Prefix, place.short, i/cfg.Regions+1)
		roles := []view.Role{view.Edge, view.DNS, view.Origin}
		if cfg.Voters == 0 || i < cfg.Voters {
			roles = append(roles, view.Voter)
		}
		if err := f.Add(ctx, name, i%cfg.Regions, roles, cfg.Tune); err != nil {
			f.Close()
			return nil, err
		}
	}
	return f, nil
}

// Add makes one more machine, in the region of that number, and has its node join the cluster, which the first one founds.
func (f *Fleet) Add(ctx context.Context, name string, region int, roles []view.Role, tune func(*node.Config)) error {
	place, i := f.places[region], len(f.Names)
	ip := netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})
	at := func(port int) string { return netip.AddrPortFrom(ip, uint16(port)).String() }
	data := filepath.Join(f.dir, name)
	host := f.in.Host(name, place.at, ip)
	n := newFleetNode(host, node.Config{
		Name: name, Region: place.region, POP: name, Roles: roles, Data: data,
		Advertise: ip, Gossip: at(gossipPort), Control: at(controlPort), API: at(apiPort),
		CacheBytes: 1 << 20, NoSocket: true, NoSync: true, NoWarming: !f.warm, Log: f.log,
		Listen: host.Listen, ListenPacket: host.ListenPacket, Dial: host.Dial, ListenAnycast: host.Listen,
	})
	n.api = at(apiPort)
	n.cfg.Now = func() time.Time { return time.Now().Add(time.Duration(n.clock.Load())) }
	if i == 0 {
		n.cfg.Bootstrap = true
	} else {
		n.cfg.Join, n.cfg.Token = f.nodes[f.Names[0]].cfg.Control, f.token
	}
	f.nodes[name] = n
	if tune != nil {
		tune(&n.cfg)
	}
	f.Names = append(f.Names, name)
	if err := f.Start(ctx, name); err != nil {
		return err
	}
	if i > 0 {
		return nil
	}
	return f.openCluster(ctx, n.node.Client())
}

// openCluster makes the tokens by which the others join, and by which the API is used.
func (f *Fleet) openCluster(ctx context.Context, first *api.Client) error {
	for deadline := time.Now().Add(settled); ; time.Sleep(again) {
		join, err := first.CreateToken(ctx, api.TokenRequest{Uses: 1000, TTL: api.Duration(720 * time.Hour)})
		if err == nil {
			f.token = join.Token
			access, err := first.CreateAccess(ctx, api.AccessRequest{Name: "fleet", Roles: []string{"admin"}})
			f.access = access.Token
			return err
		}
		if time.Now().After(deadline) {
			return err
		}
	}
}

// Close ends all of it.
func (f *Fleet) Close() {
	f.in.Close()
	for _, n := range f.nodes {
		n.end()
	}
	for _, n := range f.nodes {
		n.ended()
	}
}

// endTime is how long, at the very most, a node may take to end.
const endTime = 10 * time.Minute

// ended waits until nothing is left of the processes that died. One that never ends is a fault that a bubble cannot outlive:
// the panic shows what it waits for.
func (n *fleetNode) ended() {
	stuck := time.AfterFunc(endTime, func() {
		debug.SetTraceback("all")
		panic(fmt.Sprintf("%s has not ended after %v", n.cfg.Name, endTime))
	})
	defer stuck.Stop()
	n.gone.Wait()
}

// Start brings a machine back, once nothing is left of the process before, and starts its node.
func (f *Fleet) Start(ctx context.Context, name string) error {
	if err := f.nodes[name].start(ctx); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	return nil
}

func (n *fleetNode) start(ctx context.Context) error {
	n.ended()
	n.host.Restart()
	n.disk.dead.Store(false)
	started, err := node.Start(ctx, n.cfg)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.node = started
	return nil
}

// Lives says whether a node's process runs.
func (f *Fleet) Lives(name string) bool {
	n := f.nodes[name]
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.node != nil
}

func (n *fleetNode) take() *node.Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	taken := n.node
	n.node = nil
	return taken
}

// end ends what is left of a node whose network is gone.
func (n *fleetNode) end() {
	if dead := n.take(); dead != nil {
		n.gone.Go(func() {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			dead.Close(ctx)
		})
	}
}

// Kill ends a process as kill -9 does: its machine refuses whoever calls, and its cache writes nothing more. What else it has of its own ends
// unheard.
func (f *Fleet) Kill(name string) {
	f.nodes[name].host.Kill()
	f.nodes[name].disk.dead.Store(true)
	f.nodes[name].end()
}

// Crash ends a machine: there is silence.
func (f *Fleet) Crash(name string) {
	f.nodes[name].host.Crash()
	f.nodes[name].disk.dead.Store(true)
	f.nodes[name].end()
}

// Stop ends a node in order.
func (f *Fleet) Stop(name string) error {
	live := f.nodes[name].take()
	if live == nil {
		return errors.New(name + " does not live")
	}
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	return live.Close(ctx)
}

// Wipe makes the machine of a dead node a new one, which must join anew, by a token.
func (f *Fleet) Wipe(name, token string) error {
	n := f.nodes[name]
	n.ended()
	n.cfg.Bootstrap, n.cfg.Token = false, token
	for _, other := range f.Names {
		if other != name && f.Lives(other) {
			n.cfg.Join = f.nodes[other].cfg.Control
			break
		}
	}
	return os.RemoveAll(n.cfg.Data)
}

// Pause makes silence around a node, as if its process were stopped: nothing comes or goes. (Its own clocks go on: that
// cannot be had in a bubble.)
func (f *Fleet) Pause(name string) { f.in.CutOff(name) }

// Resume takes back Pause.
func (f *Fleet) Resume(name string) { f.in.Rejoin(name) }

// Cut makes silence between two nodes, CutOneWay from one to the other, Heal takes both back.
func (f *Fleet) Cut(a, b string)           { f.in.Cut(a, b) }
func (f *Fleet) CutOneWay(from, to string) { f.in.CutOneWay(from, to) }
func (f *Fleet) Heal(a, b string)          { f.in.Heal(a, b) }

// Split cuts every one of some nodes off from every other node.
func (f *Fleet) Split(some ...string) {
	for _, a := range some {
		for _, b := range f.Names {
			if !slices.Contains(some, b) {
				f.in.Cut(a, b)
			}
		}
	}
}

// HealAll takes back every cut and pause, and whatever was lossy.
func (f *Fleet) HealAll() {
	for i, a := range f.Names {
		f.in.Rejoin(a)
		for _, b := range f.Names[:i] {
			f.in.Heal(a, b)
			f.in.Link(a, b, memnet.Path{})
		}
	}
}

// Lossy has a share of the packets between two nodes lost, and each delayed a little.
func (f *Fleet) Lossy(a, b string, share float64) {
	f.in.Link(a, b, memnet.Path{Jitter: jitter, Loss: share})
}

// Jump sets the wall clock of a node so far ahead (behind, if below zero) of the true time.
func (f *Fleet) Jump(name string, by time.Duration) { f.nodes[name].clock.Store(int64(by)) }

// JumpAll sets the wall clocks of all nodes and of the clients.
func (f *Fleet) JumpAll(by time.Duration) {
	f.clock.Store(int64(by))
	for _, name := range f.Names {
		f.Jump(name, by)
	}
}

// API is a client of a node's API on another machine of its region.
func (f *Fleet) API(name string) *api.Client { return f.APIWith(name, f.access) }

// APIWith is API with another access token.
func (f *Fleet) APIWith(name, token string) *api.Client {
	n := f.nodes[name]
	c, err := api.NewClient(n.api, api.Options{Token: token, Dial: f.clients[n.cfg.Region].Dial,
		Now: func() time.Time { return time.Now().Add(time.Duration(f.clock.Load())) }})
	if err != nil {
		panic(err) // the address is ours
	}
	return c
}

// Inside is a client within a node's process, with all rights; nil if it does not live.
func (f *Fleet) Inside(name string) *api.Client {
	n := f.nodes[name]
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.node == nil {
		return nil
	}
	return n.node.Client()
}

// Live are the names of the nodes whose processes run.
func (f *Fleet) Live() (live []string) {
	for _, name := range f.Names {
		if f.Lives(name) {
			live = append(live, name)
		}
	}
	return live
}

// Leader is who leads, as most live nodes see it; "" if nobody does.
func (f *Fleet) Leader(ctx context.Context) string {
	votes, best := map[string]int{}, ""
	for _, name := range f.Live() {
		if c := f.Inside(name); c != nil {
			if st, err := c.Status(ctx); err == nil {
				if votes[st.Leader]++; votes[st.Leader] > votes[best] || best == "" {
					best = st.Leader
				}
			}
		}
	}
	return best
}

// Disagreement says in what the live nodes do not agree, or which of them is not whole yet: each must see all live ones and
// nobody else, the same leader, and run the same revision. nil: they are one.
func (f *Fleet) Disagreement(ctx context.Context) error {
	live := f.Live()
	var first api.Status
	for i, name := range live {
		c := f.Inside(name)
		if c == nil {
			return fmt.Errorf("%s does not live", name)
		}
		st, err := c.Status(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if i == 0 {
			first = st
		}
		var members []string
		for _, m := range st.Members {
			members = append(members, m.Name)
			if m.Running != st.Revision || !m.Up {
				return fmt.Errorf("%s sees %s at revision %d of %d, up %v", name, m.Name, m.Running, st.Revision, m.Up)
			}
		}
		slices.Sort(members)
		if want := slices.Sorted(slices.Values(live)); !slices.Equal(members, want) {
			return fmt.Errorf("%s sees %v, live are %v", name, members, want)
		}
		switch {
		case st.Leader == "":
			return fmt.Errorf("%s knows no leader", name)
		case st.Leader != first.Leader || st.Revision != first.Revision || st.Own != first.Own || st.Voters != first.Voters:
			return fmt.Errorf("%s: leader %s of %d, revision %d own %d; %s: leader %s of %d, revision %d own %d", first.Node, first.Leader, first.Voters,
				first.Revision, first.Own, name, st.Leader, st.Voters, st.Revision, st.Own)
		case st.Refused != "":
			return fmt.Errorf("%s: %s", name, st.Refused)
		}
	}
	return nil
}

// Agree waits, at most so long, until the live nodes are one.
func (f *Fleet) Agree(ctx context.Context, within time.Duration) error {
	for deadline := time.Now().Add(within); ; time.Sleep(again) {
		err := f.Disagreement(ctx)
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}
