package testbed

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing/fstest"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/node"
	"github.com/perigee-net/perigee/node/api"
	"github.com/perigee-net/perigee/testbed/demo"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// World is the demo's network on an in-memory internet, in virtual time. It must be made, used and closed inside
// one testing/synctest bubble. Steps may be taken at once, but not two that start or end the same machine.
type World struct {
	dir   string // of the nodes' data
	files fs.FS  // where apply finds its files
	log   *slog.Logger

	in      *memnet.Internet
	nodes   map[string]*worldNode
	targets map[string]*worldTarget
	clients map[string]*memnet.Host
	site    *changing // of all targets
	layout  demo.Layout
	token   string // by which nodes join
	access  string // to the API
	more    []string
	byTCP   string        // when flows go by TCP
	drain   time.Duration // how long nodes that end serve on
}

type worldNode struct {
	cfg  node.Config
	host *memnet.Host
	api  string
	gone sync.WaitGroup // what is left of processes that died

	mu   sync.Mutex
	node *node.Node // nil while it is dead, or ends
}

type worldTarget struct {
	demo.Target
	host   *memnet.Host
	region string
	stop   context.CancelFunc // nil while it is dead
	done   chan struct{}
}

// WorldConfig is what a World is made of.
type WorldConfig struct {
	Dir   string // an empty folder for the nodes' data
	Files fs.FS  // where the scenario's files are
	Log   *slog.Logger
	Seed  uint64
	// More are the names of further nodes in the first POP, icn1, which share its cache.
	More []string
	// FlowsByTCP is node.Config's.
	FlowsByTCP string
	// Drain is node.Config's.
	Drain time.Duration
}

// Clients of every World: places whose addresses the country table knows.
var clients = []struct {
	name string
	at   spec.Location
	addr string
}{
	{"seoul", spec.Location{Latitude: 37.57, Longitude: 126.98}, "1.208.0.1"},
	{"tokyo", spec.Location{Latitude: 35.68, Longitude: 139.69}, "133.11.0.1"},
	{"frankfurt", spec.Location{Latitude: 50.11, Longitude: 8.68}, "84.128.0.1"},
	{"london", spec.Location{Latitude: 51.51, Longitude: -0.13}, "81.2.69.1"},
	{"newyork", spec.Location{Latitude: 40.71, Longitude: -74.01}, "12.0.0.1"},
	{"saopaulo", spec.Location{Latitude: -23.55, Longitude: -46.63}, "200.147.3.1"},
}

// Ports of a World.
const (
	httpPort    = 80
	dnsPort     = 53
	lbPort      = 8081
	gossipPort  = 7946
	controlPort = 7947
	apiPort     = 7948
	webPort     = 9001
	tcpPort     = 9101
)

// jitter is the most by which chance delays each packet between two hosts.
const jitter = 2 * time.Millisecond

// film is the path of a page that the demo's site has not, of filmBytes: long enough for a download to be in flight.
const (
	film      = "film"
	filmBytes = 2 << 20
)

// accelerated is the anycast address and port of the demo's accelerator.
var accelerated = netip.MustParseAddrPort("198.51.100.1:7777")

// NewWorld starts three regions with two targets each, applies the demo, and returns when every node runs it and
// holds all targets healthy.
func NewWorld(ctx context.Context, cfg WorldConfig) (*World, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	w := &World{
		dir: cfg.Dir, files: cfg.Files, log: cfg.Log, in: memnet.New(cfg.Seed), more: cfg.More, byTCP: cfg.FlowsByTCP, drain: cfg.Drain,
		nodes: map[string]*worldNode{}, targets: map[string]*worldTarget{}, clients: map[string]*memnet.Host{},
	}
	if err := w.build(ctx); err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

func (w *World) build(ctx context.Context) error {
	for _, c := range clients {
		w.clients[c.name] = w.in.Host(c.name, c.at, netip.MustParseAddr(c.addr))
	}
	var err error
	if w.site, err = siteWithFilm(); err != nil {
		return err
	}
	w.layout = demo.Layout{Port: lbPort, Accelerator: accelerated}
	for i, r := range demo.Regions() {
		place, err := placeOf(r.Name)
		if err != nil {
			return err
		}
		for j, letter := range []string{"a", "b"} {
			ip := netip.AddrFrom4([4]byte{10, byte(i), 0, byte(j + 1)})
			e := demo.Endpoint{Name: r.Short + "-" + letter, HTTP: netip.AddrPortFrom(ip, webPort), TCP: netip.AddrPortFrom(ip, tcpPort)}
			r.Targets = append(r.Targets, e)
			t := &worldTarget{host: w.in.Host(e.Name, place, ip), region: r.Name}
			t.Name, t.Region, t.Site = e.Name, r.Name, w.site
			w.targets[e.Name] = t
			if err := w.startTarget(t); err != nil {
				return err
			}
		}
		w.layout.Regions = append(w.layout.Regions, r)
		ip := netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})
		n := w.machine(r.POP, r.Name, r.POP, place, ip)
		if i == 0 {
			n.cfg.Bootstrap = true
		}
		if err := w.startNode(ctx, n); err != nil {
			return err
		}
		if i > 0 {
			continue
		}
		if err := w.openCluster(ctx, n.node.Client()); err != nil {
			return err
		}
		for j, name := range w.more {
			if err := w.startNode(ctx, w.machine(name, r.Name, r.POP, place, netip.AddrFrom4([4]byte{192, 0, 2, byte(101 + j)}))); err != nil {
				return err
			}
		}
	}
	w.tremble()
	return w.settle(ctx)
}

// machine makes a node's machine, which joins the first.
func (w *World) machine(name, region, pop string, place spec.Location, ip netip.Addr) *worldNode {
	host := w.in.Host(name, place, ip)
	at := func(port int) string { return netip.AddrPortFrom(ip, uint16(port)).String() }
	n := &worldNode{host: host, api: at(apiPort), cfg: node.Config{
		Name: name, Region: region, POP: pop, Data: filepath.Join(w.dir, name),
		Advertise: ip, Gossip: at(gossipPort), Control: at(controlPort), API: at(apiPort), HTTP: at(httpPort), DNS: at(dnsPort),
		CacheBytes: 16 << 20, NoSocket: true, Log: w.log, FlowsByTCP: w.byTCP, Drain: w.drain,
		Listen: host.Listen, ListenPacket: host.ListenPacket, Dial: host.Dial, RoundTrip: memnet.RoundTrip,
		ListenAnycast: func(network, address string) (net.Listener, error) {
			ap, err := netip.ParseAddrPort(address)
			if err != nil {
				return nil, err
			}
			l, err := host.Listen(network, address)
			if err != nil {
				return nil, err
			}
			host.Announce(ap.Addr())
			return &announced{Listener: l, host: host, addr: ap.Addr()}, nil
		},
	}}
	if len(w.nodes) > 0 {
		n.cfg.Join, n.cfg.Token = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), controlPort).String(), w.token
	}
	w.nodes[name] = n
	return n
}

// openCluster makes the tokens by which the others join, and by which the scenario's steps use the API.
func (w *World) openCluster(ctx context.Context, first *api.Client) error {
	for deadline := time.Now().Add(settled); ; time.Sleep(again) {
		join, err := first.CreateToken(ctx, api.TokenRequest{Uses: 100, TTL: api.Duration(720 * time.Hour)})
		if err == nil {
			w.token = join.Token
			access, err := first.CreateAccess(ctx, api.AccessRequest{Name: "world", Roles: []string{"admin"}})
			w.access = access.Token
			return err
		}
		if time.Now().After(deadline) {
			return err
		}
	}
}

// tremble gives every path between two hosts its jitter.
func (w *World) tremble() {
	names := slices.Concat(slices.Collect(maps.Keys(w.clients)), slices.Collect(maps.Keys(w.nodes)), slices.Collect(maps.Keys(w.targets)))
	for i, a := range names {
		for _, b := range names[:i] {
			w.in.Link(a, b, memnet.Path{Jitter: jitter})
		}
	}
}

// announced is a listener whose address is announced for as long as it is open, as a routing daemon does that watches it.
type announced struct {
	net.Listener
	host *memnet.Host
	addr netip.Addr
}

func (a *announced) Close() error {
	a.host.Withdraw(a.addr)
	return a.Listener.Close()
}

// changing is a site whose pages may change while it is served.
type changing struct {
	mu    sync.Mutex
	pages fstest.MapFS
}

// Open opens a page as it is now.
func (c *changing) Open(name string) (fs.File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pages.Open(name)
}

// publish makes a page of the site, at all targets.
func (w *World) publish(args []string) error {
	if len(args) != 2 {
		return errors.New("publish wants a page and its text")
	}
	w.site.mu.Lock()
	defer w.site.mu.Unlock()
	w.site.pages[strings.TrimPrefix(args[0], "/")] = &fstest.MapFile{Data: []byte(args[1] + "\n")}
	return nil
}

// siteWithFilm is the demo's site, and the film.
func siteWithFilm() (*changing, error) {
	site := fstest.MapFS{film: {Data: bytes.Repeat([]byte("frame\n"), filmBytes/6)}}
	err := fs.WalkDir(demo.Site(), ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			var data []byte
			data, err = fs.ReadFile(demo.Site(), path)
			site[path] = &fstest.MapFile{Data: data}
		}
		return err
	})
	return &changing{pages: site}, err
}

// placeOf is where the spec takes a region of AWS's name to be.
func placeOf(region string) (spec.Location, error) {
	docs, err := spec.Split("", []byte("kind: Region\nname: "+region+"\n"))
	if err != nil {
		return spec.Location{}, err
	}
	s, err := spec.Build(0, docs, spec.Options{})
	if err != nil {
		return spec.Location{}, err
	}
	return *s.Regions[region].Location, nil
}

// settled bounds, in virtual time, how long a World may take to come up.
const settled = 60 * time.Second

// settle applies the demo and waits until all nodes run it and see all of it.
func (w *World) settle(ctx context.Context) error {
	yaml, err := w.layout.Spec()
	if err != nil {
		return err
	}
	applied := false
	for deadline := time.Now().Add(settled); ; time.Sleep(again) {
		if !applied {
			_, err = w.apiOf(w.nodes["icn1"]).Apply(ctx, api.ApplyRequest{ID: rand.Text(), Files: []api.File{{Name: "demo.yaml", Data: string(yaml)}}})
			applied = err == nil
		}
		if applied {
			if err = w.unsettled(ctx); err == nil {
				return nil
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the world does not settle: %w", err)
		}
	}
}

func (w *World) unsettled(ctx context.Context) error {
	for _, n := range w.nodes {
		st, err := w.apiOf(n).Status(ctx)
		if err != nil {
			return err
		}
		for _, m := range st.Members {
			if m.Running == 0 || !m.Up || !m.Vote && len(w.more) == 0 {
				return fmt.Errorf("%s sees %s at revision %d, up %v, voting %v", st.Node, m.Name, m.Running, m.Up, m.Vote)
			}
		}
		entries, err := w.apiOf(n).Health(ctx, api.HealthQuery{})
		if err != nil {
			return err
		}
		healthy := 0
		for _, e := range entries {
			if e.Healthy {
				healthy++
			}
		}
		if len(st.Members) != len(w.nodes) || healthy != 2*len(w.targets) {
			return fmt.Errorf("%s sees %d members and %d healthy of %d", st.Node, len(st.Members), healthy, len(entries))
		}
	}
	return nil
}

// apiOf is a client of a node's API, as somebody on that machine has it.
func (w *World) apiOf(n *worldNode) *api.Client {
	c, err := api.NewClient(n.api, api.Options{Token: w.access, Dial: n.host.Dial})
	if err != nil {
		panic(err) // the address is ours
	}
	return c
}

// startNode brings a machine back, once nothing is left of the process before, and starts its node.
func (w *World) startNode(ctx context.Context, n *worldNode) error {
	n.gone.Wait()
	n.host.Restart()
	started, err := node.Start(ctx, n.cfg)
	if err != nil {
		return fmt.Errorf("start %s: %w", n.cfg.Name, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.node = started
	return nil
}

func (n *worldNode) lives() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.node != nil
}

// take takes the node of the machine, whose end is now the caller's; nil: it has none.
func (n *worldNode) take() *node.Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	taken := n.node
	n.node = nil
	return taken
}

func (w *World) startTarget(t *worldTarget) error {
	web, err := t.host.Listen("tcp", fmt.Sprintf(":%d", webPort))
	if err != nil {
		return err
	}
	tcp, err := t.host.Listen("tcp", fmt.Sprintf(":%d", tcpPort))
	if err != nil {
		return err
	}
	udp, err := t.host.ListenPacket("udp", fmt.Sprintf(":%d", tcpPort))
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	t.stop, t.done = stop, done
	go func() {
		defer close(done)
		t.Serve(ctx, web, tcp, udp)
	}()
	return nil
}

// Close ends all of it.
func (w *World) Close() {
	for _, n := range w.nodes {
		if live := n.take(); live != nil {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			live.Close(ctx)
			cancel()
		}
		n.gone.Wait()
	}
	for _, t := range w.targets {
		t.end()
	}
	w.in.Close()
}

// end ends what is left of a node whose network is gone, in a goroutine of its own: a process that dies takes no time.
func (n *worldNode) end() {
	if dead := n.take(); dead != nil {
		n.gone.Go(func() {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			dead.Close(ctx)
		})
	}
}

// drainTime is what stop gives a node for what is in flight.
const drainTime = 60 * time.Second

// stopNode ends a node in order.
func (w *World) stopNode(args []string) (string, error) {
	if len(args) != 1 || w.nodes[args[0]] == nil {
		return "", errors.New("stop wants the name of a node")
	}
	live := w.nodes[args[0]].take()
	if live == nil {
		return "", fmt.Errorf("%s does not live", args[0])
	}
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	began := time.Now()
	err := live.Close(ctx)
	took := time.Since(began).Round(time.Second)
	if err != nil {
		return fmt.Sprintf("after %v: %v", took, err), nil
	}
	return fmt.Sprintf("stopped after %v", took), nil
}

func (t *worldTarget) end() {
	if t.stop != nil {
		t.stop()
		<-t.done
		t.stop = nil
	}
}

// Sleep lets virtual time pass.
func (w *World) Sleep(d time.Duration) { time.Sleep(d) }

// Do takes one step of a scenario. The verbs:
//
//	get [COUNT] CLIENT[@NODE] URL     200 Miss icn1 age=0; COUNT at once are counted: 99x 200 Hit icn1
//	download CLIENT[@NODE] URL TIME   reads the body as slowly as that: 200 whole
//	dig CLIENT[@NODE] NAME [TYPE] [tcp]    NOERROR aa www… 30 A 192.0.2.1(icn1)
//	ask CLIENT ADDRESS:PORT [BYTES]   sends a datagram: eu-central-1 fra-a echoed
//	dial CLIENT ADDRESS:PORT [TIME]   opens a flow, reads its greeting, sends now and then for TIME, half-closes: eu-central-1 fra-a echoed closed
//	flows CLIENT ADDRESS:PORT COUNT TIME   holds so many flows that send and are echoed: opened=20 … lost=0 … silence=101ms
//	explain CLIENT@NODE dns|tcp|http TARGET [TYPE]   what the node says would become of it, and why
//	requests PATH              how often the targets were asked: requests=1
//	kill | crash | start NAME  a process dies (its machine refuses), a machine dies (silence), it comes back
//	kill targets REGION        all of a region's targets
//	stop NODE                  it ends in order, with a minute for what is in flight: stopped after 2s
//	cut A B | cut A | heal A B | heal A | slow A B DELAY    what is between two hosts, or a host and all others
//	cut FROM TO oneway, lossy FROM TO PERCENT oneway    the same in one direction only
//	lossy A B PERCENT          how many packets are lost there
//	apply FILE [NODE]          revision=2, or why not
//	publish PAGE TEXT          a page of the targets' site is another from now on
//	browse CLIENT[@NODE] URL TIME    asks now and then over connections that it keeps: connections=1, 20x 200 icn1
//	purge DISTRIBUTION[@NODE] PATH…  has all caches forget, as icn1 is told or that node: done=3/3 epoch=12
//	drain | undrain SCOPE/NAME[@NODE] [TIME]    sends nothing new to a node, pop or region; SCOPE says which it is
//	block | unblock CLIENT|CIDR[@NODE] [TIME]   refuses a client at every door
//	orders NODE                what it holds to be ordered: epoch=12 purges=1 drains=[pop/icn1] blocks=[]
//	health NODE NAME           what it holds of that: check/a healthy 3/3 of 1 needed
//	events NODE WORD           what it tells with that word in it
//	status NODE|all            members, leader, revision, and who is behind; of all: whether they agree
func (w *World) Do(ctx context.Context, verb string, args []string) (string, error) {
	switch verb {
	case "requests":
		return w.requests(args)
	case "kill", "crash", "start":
		return "", w.process(ctx, verb, args)
	case "stop":
		return w.stopNode(args)
	case "cut", "heal", "slow", "lossy":
		return "", w.path(verb, args)
	case "publish":
		return "", w.publish(args)
	}
	result, known, err := w.verbs().do(ctx, verb, args)
	if known {
		return result, err
	}
	return "", fmt.Errorf("no verb %q", verb)
}

// verbs are those of any network.
func (w *World) verbs() *verbs {
	return &verbs{
		files: w.files, entry: "icn1",
		client: func(_ context.Context, name string) (visitor, error) {
			h, ok := w.clients[name]
			if !ok {
				return visitor{}, fmt.Errorf("no client %q (%s)", name, strings.Join(slices.Sorted(maps.Keys(w.clients)), ", "))
			}
			return visitor{name, h.Addr(), h.Dial}, nil
		},
		nodes: func() (all []*seat) {
			for _, name := range slices.Sorted(maps.Keys(w.nodes)) {
				n := w.nodes[name]
				all = append(all, &seat{name, n.cfg.Advertise, n.lives, w.apiOf(n)})
			}
			return all
		},
		servers: w.servers, resolve: w.resolve,
	}
}

// patience bounds how long a client waits for anything that it does not itself make longer.
const patience = 20 * time.Second

// pieces is in how many a slow client reads or sends.
const pieces = 20

// servers are the name servers that a resolver at a host would ask, nearest first: it has learned that from their delays.
func (w *World) servers(from visitor) []netip.AddrPort {
	type server struct {
		at    netip.AddrPort
		delay time.Duration
	}
	var all []server
	for _, n := range w.nodes {
		all = append(all, server{netip.AddrPortFrom(n.cfg.Advertise, dnsPort), w.in.RoundTrip(from.name, n.host.Name())})
	}
	slices.SortFunc(all, func(a, b server) int { return int(a.delay - b.delay) })
	var list []netip.AddrPort
	for _, s := range all {
		list = append(list, s.at)
	}
	return list
}

// resolve is what a resolver does: ask the name servers one after the other until one answers.
func (w *World) resolve(ctx context.Context, from visitor, name string) (string, error) {
	res, err := ask(ctx, from, w.servers(from), name, dns.TypeA, "udp")
	if err != nil {
		return "", err
	}
	return addressIn(res, name)
}

func (w *World) requests(args []string) (string, error) {
	if len(args) != 1 {
		return "", errors.New("requests wants a path")
	}
	sum := 0
	for _, t := range w.targets {
		sum += t.Requests(args[0])
	}
	return fmt.Sprintf("requests=%d", sum), nil
}

func (w *World) process(ctx context.Context, verb string, args []string) error {
	if verb == "kill" && len(args) == 2 && args[0] == "targets" {
		some := false
		for _, t := range w.targets {
			if t.region == args[1] {
				t.host.Kill()
				t.end()
				some = true
			}
		}
		if !some {
			return fmt.Errorf("no targets in %q", args[1])
		}
		return nil
	}
	if len(args) != 1 {
		return fmt.Errorf("%s wants one name", verb)
	}
	n, isNode := w.nodes[args[0]]
	t, isTarget := w.targets[args[0]]
	if !isNode && !isTarget {
		return fmt.Errorf("no node or target %q", args[0])
	}
	host := n.hostOr(t)
	switch verb {
	case "start":
		if isNode {
			if n.lives() {
				return fmt.Errorf("%s lives", args[0])
			}
			return w.startNode(ctx, n)
		}
		if t.stop != nil {
			return fmt.Errorf("%s lives", args[0])
		}
		host.Restart()
		return w.startTarget(t)
	case "kill":
		host.Kill()
	case "crash":
		host.Crash()
	}
	// What is left of the process ends without reaching anyone: its network is gone.
	if isNode {
		n.end()
	} else {
		t.end()
	}
	return nil
}

func (n *worldNode) hostOr(t *worldTarget) *memnet.Host {
	if n != nil {
		return n.host
	}
	return t.host
}

func (w *World) path(verb string, args []string) error {
	for _, name := range args[:min(len(args), 2)] {
		_, node := w.nodes[name]
		_, target := w.targets[name]
		_, client := w.clients[name]
		if !node && !target && !client {
			return fmt.Errorf("no host %q", name)
		}
	}
	oneWay := len(args) > 0 && args[len(args)-1] == "oneway"
	if oneWay {
		args = args[:len(args)-1]
	}
	switch {
	case oneWay && verb == "cut" && len(args) == 2:
		w.in.CutOneWay(args[0], args[1])
	case oneWay && (verb != "lossy" || len(args) != 3):
		return fmt.Errorf("%s: only cut and lossy go one way, from one host to another", verb)
	case verb == "slow" && len(args) == 3:
		d, err := time.ParseDuration(args[2])
		if err != nil {
			return err
		}
		w.in.Slow(args[0], args[1], d)
	case verb == "lossy" && len(args) == 3:
		lost, err := share(args[2])
		if err != nil {
			return err
		}
		w.in.LinkOneWay(args[0], args[1], memnet.Path{Jitter: jitter, Loss: lost})
		if !oneWay {
			w.in.LinkOneWay(args[1], args[0], memnet.Path{Jitter: jitter, Loss: lost})
		}
	case verb == "cut" && len(args) == 2:
		w.in.Cut(args[0], args[1])
	case verb == "cut" && len(args) == 1:
		w.in.CutOff(args[0])
	case verb == "heal" && len(args) == 2:
		w.in.Heal(args[0], args[1])
	case verb == "heal" && len(args) == 1:
		w.in.Rejoin(args[0])
		for other := range w.nodes {
			w.in.Heal(args[0], other)
		}
	default:
		return fmt.Errorf("%s: wrong number of arguments", verb)
	}
	return nil
}
