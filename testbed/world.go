package testbed

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
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
		dir: cfg.Dir, files: cfg.Files, log: cfg.Log, in: memnet.New(cfg.Seed),
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
		host := w.in.Host(r.POP, place, ip)
		at := func(port int) string { return netip.AddrPortFrom(ip, uint16(port)).String() }
		n := &worldNode{host: host, api: at(apiPort), cfg: node.Config{
			Name: r.POP, Region: r.Name, POP: r.POP, Data: filepath.Join(w.dir, r.POP),
			Advertise: ip, Gossip: at(gossipPort), Control: at(controlPort), API: at(apiPort), HTTP: at(httpPort), DNS: at(dnsPort),
			CacheBytes: 16 << 20, NoSocket: true, Log: w.log,
			Listen: host.Listen, ListenPacket: host.ListenPacket, Dial: host.Dial,
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
		if i == 0 {
			n.cfg.Bootstrap = true
		} else {
			n.cfg.Join, n.cfg.Token = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), controlPort).String(), w.token
		}
		w.nodes[r.POP] = n
		if err := w.startNode(ctx, n); err != nil {
			return err
		}
		if i == 0 {
			if err := w.openCluster(ctx, n.node.Client()); err != nil {
				return err
			}
		}
	}
	w.tremble()
	return w.settle(ctx)
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
			if m.Running == 0 || !m.Up || !m.Vote {
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
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	t.stop, t.done = stop, done
	go func() {
		defer close(done)
		t.Serve(ctx, web, tcp)
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
//	dial CLIENT ADDRESS:PORT [TIME]   opens a flow, reads its greeting, sends now and then for TIME, half-closes: eu-central-1 fra-a echoed closed
//	explain CLIENT@NODE dns|tcp|http TARGET [TYPE]   what the node says would become of it, and why
//	requests PATH              how often the targets were asked: requests=1
//	kill | crash | start NAME  a process dies (its machine refuses), a machine dies (silence), it comes back
//	kill targets REGION        all of a region's targets
//	stop NODE                  it ends in order, with a minute for what is in flight: stopped after 2s
//	cut A B | cut A | heal A B | heal A | slow A B DELAY    what is between two hosts, or a host and all others
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
	case "get":
		return w.get(ctx, args)
	case "download":
		return w.download(ctx, args)
	case "dig":
		return w.dig(ctx, args)
	case "dial":
		return w.dial(ctx, args)
	case "explain":
		return w.explain(ctx, args)
	case "requests":
		return w.requests(args)
	case "kill", "crash", "start":
		return "", w.process(ctx, verb, args)
	case "stop":
		return w.stopNode(args)
	case "cut", "heal", "slow", "lossy":
		return "", w.path(verb, args)
	case "apply":
		return w.apply(ctx, args)
	case "status":
		return w.status(ctx, args)
	case "publish":
		return "", w.publish(args)
	case "browse":
		return w.browse(ctx, args)
	case "purge", "drain", "undrain", "block", "unblock":
		return w.order(ctx, verb, args)
	case "orders":
		return w.orders(ctx, args)
	case "health":
		return w.health(ctx, args)
	case "events":
		return w.events(ctx, args)
	}
	return "", fmt.Errorf("no verb %q", verb)
}

// patience bounds how long a client waits for anything that it does not itself make longer.
const patience = 20 * time.Second

func (w *World) client(name string) (*memnet.Host, error) {
	if h, ok := w.clients[name]; ok {
		return h, nil
	}
	return nil, fmt.Errorf("no client %q (%s)", name, strings.Join(slices.Sorted(maps.Keys(w.clients)), ", "))
}

// clientAt reads CLIENT[@NODE]; the node is nil where none is named.
func (w *World) clientAt(text string) (from *memnet.Host, at *worldNode, err error) {
	name, node, chosen := strings.Cut(text, "@")
	if from, err = w.client(name); err != nil || !chosen {
		return from, nil, err
	}
	if at = w.nodes[node]; at == nil {
		return nil, nil, fmt.Errorf("no node %q", node)
	}
	return from, at, nil
}

func (w *World) get(ctx context.Context, args []string) (string, error) {
	count := 1
	if len(args) == 3 {
		var err error
		if count, err = strconv.Atoi(args[0]); err != nil || count < 1 {
			return "", fmt.Errorf("get: %q is no count", args[0])
		}
		args = args[1:]
	}
	if len(args) != 2 {
		return "", errors.New("get wants a client and a URL")
	}
	from, at, err := w.clientAt(args[0])
	if err != nil {
		return "", err
	}
	u, err := url.Parse(args[1])
	if err != nil {
		return "", err
	}
	results := make([]string, count)
	var all sync.WaitGroup
	for i := range results {
		all.Go(func() { results[i] = w.getOne(ctx, from, at, u) })
	}
	all.Wait()
	if count == 1 {
		return results[0], nil
	}
	tally := map[string]int{}
	for _, r := range results {
		tally[r]++
	}
	var text []string
	for _, r := range slices.Sorted(maps.Keys(tally)) {
		text = append(text, fmt.Sprintf("%dx %s", tally[r], r))
	}
	return strings.Join(text, ", "), nil
}

// request asks for a URL, at the POP of a node or where its name leads. The response's body is to be closed.
func (w *World) request(ctx context.Context, from *memnet.Host, pop *worldNode, u *url.URL) (*http.Response, error) {
	transport := w.transport(from, pop)
	transport.DisableKeepAlives = true
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	return transport.RoundTrip(req)
}

func (w *World) getOne(ctx context.Context, from *memnet.Host, pop *worldNode, u *url.URL) string {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	res, err := w.request(ctx, from, pop, u)
	if err != nil {
		return "error: " + plain(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return fmt.Sprintf("%d cut off: %s", res.StatusCode, plain(err))
	}
	text := said(res)
	if target := res.Header.Get("X-Target"); target != "" {
		text += " target=" + target
	}
	line, _, _ := bytes.Cut(body, []byte("\n"))
	return fmt.Sprintf("%s %q", text, line)
}

// said is a response's head in few words: 200 Hit icn1 age=3.
func said(res *http.Response) string {
	cache, _, _ := strings.Cut(res.Header.Get("X-Cache"), " ")
	text := fmt.Sprintf("%d %s %s", res.StatusCode, cache, res.Header.Get("X-Perigee-Pop"))
	if age := res.Header.Get("Age"); age != "" {
		text += " age=" + age
	}
	return text
}

// pieces is in how many a slow client reads or sends.
const pieces = 20

// visit reads the words of a verb: a client, a URL, and how long it takes.
func (w *World) visit(verb string, args []string) (from *memnet.Host, at *worldNode, u *url.URL, d time.Duration, err error) {
	if len(args) != 3 {
		return nil, nil, nil, 0, fmt.Errorf("%s wants a client, a URL and a duration", verb)
	}
	if from, at, err = w.clientAt(args[0]); err == nil {
		u, err = url.Parse(args[1])
	}
	if err == nil {
		d, err = time.ParseDuration(args[2])
	}
	return from, at, u, d, err
}

// download reads a body evenly over a time.
func (w *World) download(ctx context.Context, args []string) (string, error) {
	from, at, u, d, err := w.visit("download", args)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, d+patience)
	defer cancel()
	res, err := w.request(ctx, from, at, u)
	if err != nil {
		return "error: " + plain(err), nil
	}
	defer res.Body.Close()
	want := max(1, res.ContentLength)
	got := int64(0)
	for err == nil {
		var n int64
		n, err = io.CopyN(io.Discard, res.Body, (want+pieces-1)/pieces)
		got += n
		time.Sleep(d / pieces)
	}
	if err != io.EOF {
		return fmt.Sprintf("%s cut off after %d of %d bytes: %s", said(res), got, want, plain(err)), nil
	}
	return fmt.Sprintf("%s whole, %d bytes", said(res), got), nil
}

// servers are the name servers that a resolver at a host would ask, nearest first: it has learned that from their delays.
func (w *World) servers(from *memnet.Host) []netip.AddrPort {
	type server struct {
		at    netip.AddrPort
		delay time.Duration
	}
	var all []server
	for _, n := range w.nodes {
		all = append(all, server{netip.AddrPortFrom(n.cfg.Advertise, dnsPort), w.in.RoundTrip(from.Name(), n.host.Name())})
	}
	slices.SortFunc(all, func(a, b server) int { return int(a.delay - b.delay) })
	var list []netip.AddrPort
	for _, s := range all {
		list = append(list, s.at)
	}
	return list
}

// resolve is what a resolver does: ask the name servers one after the other until one answers.
func (w *World) resolve(ctx context.Context, from *memnet.Host, name string) (string, error) {
	if _, err := netip.ParseAddr(name); err == nil {
		return name, nil
	}
	res, err := w.ask(ctx, from, w.servers(from), name, dns.TypeA, "udp")
	if err != nil {
		return "", err
	}
	for _, rr := range res.Answer {
		if a, ok := rr.(*dns.A); ok {
			return a.A.String(), nil
		}
	}
	return "", fmt.Errorf("%s has no address: %s", name, dns.RcodeToString[res.Rcode])
}

// askTime is how long a resolver waits for one name server before it asks the next.
const askTime = time.Second

func (w *World) ask(ctx context.Context, from *memnet.Host, servers []netip.AddrPort, name string, kind uint16, network string) (*dns.Msg, error) {
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), kind)
	err := errors.New("no name server")
	for _, s := range servers {
		var res *dns.Msg
		if res, err = exchange(ctx, from, s, q, network); err == nil {
			return res, nil
		}
	}
	return nil, err
}

func exchange(ctx context.Context, from *memnet.Host, server netip.AddrPort, q *dns.Msg, network string) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	conn, err := from.Dial(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	c := &dns.Conn{Conn: conn}
	if err := c.WriteMsg(q); err != nil {
		return nil, err
	}
	return c.ReadMsg()
}

func (w *World) dig(ctx context.Context, args []string) (string, error) {
	network := "udp"
	if len(args) > 0 && args[len(args)-1] == "tcp" {
		network, args = "tcp", args[:len(args)-1]
	}
	if len(args) < 2 || len(args) > 3 {
		return "", errors.New("dig wants a client, a name, and perhaps a type")
	}
	from, at, err := w.clientAt(args[0])
	if err != nil {
		return "", err
	}
	servers := w.servers(from)
	if at != nil {
		servers = []netip.AddrPort{netip.AddrPortFrom(at.cfg.Advertise, dnsPort)}
	}
	kind := dns.TypeA
	if len(args) == 3 {
		var ok bool
		if kind, ok = dns.StringToType[strings.ToUpper(args[2])]; !ok {
			return "", fmt.Errorf("no type %q", args[2])
		}
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	res, err := w.ask(ctx, from, servers, args[1], kind, network)
	if err != nil {
		return "error: " + plain(err), nil
	}
	text := dns.RcodeToString[res.Rcode]
	if res.Authoritative {
		text += " aa"
	}
	for _, section := range []struct {
		name string
		rrs  []dns.RR
	}{{"answer", res.Answer}, {"authority", res.Ns}} {
		for _, rr := range section.rrs {
			text += fmt.Sprintf(" %s: %s", section.name, strings.Join(strings.Fields(rr.String()), " "))
			if a, ok := rr.(*dns.A); ok {
				text += w.nameOf(a.A.String())
			}
		}
	}
	return text, nil
}

// nameOf is the node at an address, in brackets.
func (w *World) nameOf(address string) string {
	for name, n := range w.nodes {
		if n.cfg.Advertise.String() == address {
			return "(" + name + ")"
		}
	}
	return ""
}

func (w *World) dial(ctx context.Context, args []string) (string, error) {
	if len(args) < 2 || len(args) > 3 {
		return "", errors.New("dial wants a client, an address with a port, and perhaps a duration")
	}
	from, err := w.client(args[0])
	if err != nil {
		return "", err
	}
	host, port, err := net.SplitHostPort(args[1])
	if err != nil {
		return "", err
	}
	var long time.Duration
	if len(args) == 3 {
		if long, err = time.ParseDuration(args[2]); err != nil {
			return "", err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, long+patience)
	defer cancel()
	ip, err := w.resolve(ctx, from, host)
	if err != nil {
		return "error: " + plain(err), nil
	}
	conn, err := from.Dial(ctx, "tcp", net.JoinHostPort(ip, port))
	if err != nil {
		return "error: " + plain(err), nil
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	const line = "echo this\n"
	sent := line
	_, err = io.WriteString(conn, line)
	for i := 0; i < pieces && long > 0 && err == nil; i++ {
		time.Sleep(long / pieces)
		sent += line
		_, err = io.WriteString(conn, line)
	}
	if err == nil {
		err = conn.(interface{ CloseWrite() error }).CloseWrite()
	}
	if err != nil {
		return "error: " + plain(err), nil
	}
	all, err := io.ReadAll(conn)
	greeting, echo, _ := strings.Cut(string(all), "\n")
	switch {
	case err != nil:
		return fmt.Sprintf("%s error: %s", greeting, plain(err)), nil
	case echo != sent:
		return fmt.Sprintf("%s echoed %q, closed", greeting, echo), nil
	}
	return greeting + " echoed, closed", nil
}

func (w *World) explain(ctx context.Context, args []string) (string, error) {
	if len(args) < 3 || len(args) > 4 {
		return "", errors.New("explain wants a client at a node, dns, tcp or http, a target, and perhaps a type")
	}
	from, at, err := w.clientAt(args[0])
	if err != nil {
		return "", err
	}
	if at == nil {
		return "", fmt.Errorf("explain %s: which node is asked?", args[0])
	}
	req := api.ExplainRequest{What: args[1], Target: args[2], From: from.Addr().String()}
	if len(args) == 4 {
		req.Type = args[3]
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	res, err := w.apiOf(at).Explain(ctx, req)
	if err != nil {
		return "error: " + plain(err), nil
	}
	text := res.Answer
	for _, l := range res.Lines {
		text += "\n\t" + strings.Repeat("  ", l.Depth) + l.Text
	}
	return text, nil
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
	switch {
	case verb == "slow" && len(args) == 3:
		d, err := time.ParseDuration(args[2])
		if err != nil {
			return err
		}
		w.in.Slow(args[0], args[1], d)
	case verb == "lossy" && len(args) == 3:
		percent, err := strconv.ParseFloat(strings.TrimSuffix(args[2], "%"), 64)
		if err != nil || percent < 0 || percent >= 100 {
			return fmt.Errorf("lossy: %q is no share below 100%%", args[2])
		}
		w.in.Link(args[0], args[1], memnet.Path{Jitter: jitter, Loss: percent / 100})
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

func (w *World) apply(ctx context.Context, args []string) (string, error) {
	if len(args) < 1 || len(args) > 2 {
		return "", errors.New("apply wants a file, and perhaps a node")
	}
	n := w.nodes["icn1"]
	if len(args) == 2 {
		var ok bool
		if n, ok = w.nodes[args[1]]; !ok {
			return "", fmt.Errorf("no node %q", args[1])
		}
	}
	data, err := fs.ReadFile(w.files, args[0])
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	res, err := w.apiOf(n).Apply(ctx, api.ApplyRequest{ID: rand.Text(), Files: []api.File{{Name: args[0], Data: string(data)}}})
	if err != nil {
		return "refused: " + err.Error(), nil
	}
	text := fmt.Sprintf("revision=%d", res.Revision)
	for _, c := range res.Changes {
		text += fmt.Sprintf(" %s:%s/%s", c.Op, c.Kind, c.Name)
	}
	return text, nil
}

func (w *World) status(ctx context.Context, args []string) (string, error) {
	if len(args) != 1 {
		return "", errors.New("status wants a node, or all")
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if args[0] != "all" {
		n, ok := w.nodes[args[0]]
		if !ok {
			return "", fmt.Errorf("no node %q", args[0])
		}
		return w.statusOf(ctx, n), nil
	}
	said := map[string][]string{}
	for name, n := range w.nodes {
		if n.lives() {
			st := w.statusOf(ctx, n)
			said[st] = append(said[st], name)
		}
	}
	if len(said) == 1 {
		for st := range said {
			return "agree " + st, nil
		}
	}
	return fmt.Sprintf("differ %v", said), nil
}

func (w *World) statusOf(ctx context.Context, n *worldNode) string {
	st, err := w.apiOf(n).Status(ctx)
	if err != nil {
		return "error: " + plain(err)
	}
	text := fmt.Sprintf("leader=%s revision=%d", st.Leader, st.Revision)
	for _, m := range st.Members {
		text += fmt.Sprintf(" %s/%s/%v@%d", m.Name, m.Region, m.Roles, m.Running)
		if m.Running != st.Revision {
			text += "(behind)"
		}
	}
	return text
}

// plain is an error in few words, the same wherever it comes from.
func plain(err error) string {
	var timeout interface{ Timeout() bool }
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.ECONNRESET):
		return "reset"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	}
	return err.Error()
}
