package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/perigee-net/perigee/cluster/backbone"
	"github.com/perigee-net/perigee/cluster/clients"
	"github.com/perigee-net/perigee/cluster/control"
	"github.com/perigee-net/perigee/cluster/distance"
	"github.com/perigee-net/perigee/cluster/event"
	"github.com/perigee-net/perigee/cluster/gossip"
	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/identity"
	"github.com/perigee-net/perigee/cluster/lane"
	"github.com/perigee-net/perigee/cluster/latest"
	"github.com/perigee-net/perigee/cluster/probe"
	"github.com/perigee-net/perigee/cluster/report"
	"github.com/perigee-net/perigee/cluster/roster"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/store"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/cluster/watch"
	"github.com/perigee-net/perigee/dnsgeo"
	"github.com/perigee-net/perigee/dnsgeo/geo"
	"github.com/perigee-net/perigee/edge/accelerator"
	"github.com/perigee-net/perigee/edge/anycast"
	"github.com/perigee-net/perigee/edge/anycast/stray"
	"github.com/perigee-net/perigee/edge/cache/disk"
	"github.com/perigee-net/perigee/edge/cdn"
	"github.com/perigee-net/perigee/node/api"
	"github.com/perigee-net/perigee/node/front"
	"github.com/perigee-net/perigee/node/metrics"
	"github.com/perigee-net/perigee/origin"
	"github.com/perigee-net/perigee/origin/relay"
	"github.com/perigee-net/perigee/origin/relay/loop"
	"github.com/perigee-net/perigee/origin/transparent"
)

// Services of the backbone.
const (
	httpService   = "http"
	flowService   = "flow"
	detourService = "detour"
	udpService    = "udp"
	zoneService   = "zone"
	strayService  = "stray"
)

// Node is one running node.
type Node struct {
	cfg     Config
	control netip.AddrPort // where others reach its control port and backbone

	guard *identity.Guard
	new   bool // it had no identity before
	peers *peers

	port       *control.Port
	backbone   *backbone.Backbone
	flows      flows
	store      *store.Store
	raftIsOpen atomic.Bool // store is there: those who follow this node may ask before
	watched    *watch.Server
	follower   *watch.Follower
	gossip     *gossip.Gossip
	gossips    atomic.Bool // gossip is there: who leads may ask before
	reports    *report.Reports
	controls   peersAt // to which reports go
	lane       *lane.Lane
	prober     *probe.Prober

	// What is agreed, as far as this node knows: by Raft, by a watch stream, or by its disk.
	learning sync.Mutex
	agreed   latest.Value[*store.State]
	journal  *store.Journal
	saved    atomic.Uint64 // of the cluster's own records, the revision that the journal has
	roster   latest.Value[*roster.Roster]
	rosters  rosters
	specs    specs
	tried    *store.Table  // followAgreed's: the newest that was run, or tried
	changes  changes       // those that the leader judges
	deciding chan struct{} // holds one while a decision over the roster is made; not a mutex, for it is waited for no longer than a context
	taking   sync.Mutex    // what is said of the roster that was taken is said in the order in which it is so
	full     atomic.Bool   // this leader had no room on its disk for a change
	said     string        // keepHouse's: what it has said of the lead

	front       *front.Front
	ownDoors    []front.Door     // those that it was told to open
	nameDoors   []netip.AddrPort // of the name service's own, those of TCP
	doorHost    netip.Addr       // where it opens those that the spec asks for; invalid: on all addresses
	closed      string           // which of them stay closed, and why
	returning   atomic.Pointer[returning]
	others      others
	shut        atomic.Pointer[closedDoors]
	doorCounts  doorCounts
	locals      locals
	ticketKeys  [][32]byte // takeRoster's: those that the doors have
	guards      guards     // of those that are guarded; followAgreed's
	apis        struct{ public, between, socket, within *api.Server }
	inside      *streams // the API's callers within the process
	origin      *origin.Plane
	cdn         *cdn.Plane
	accelerator *accelerator.Plane
	names       *dnsgeo.Server
	compared    compared
	speaker     *anycast.Speaker // nil: nothing is announced
	strays      *stray.Hand      // nil: no segment is handed over
	strayless   string           // why not
	geoFile     os.FileInfo      // nil: there is none
	places      places
	planes      []plane

	looks     chan struct{} // wakes observe
	observed  observed      // observe's own
	orders    orders
	distance  *distance.Client
	distances atomic.Pointer[distance.Map]
	clients   *clients.Seen
	clientMap atomic.Pointer[clients.Map]
	events    *event.Log
	metrics   *metrics.Set
	acked     *metrics.Histogram

	running   latest.Value[running]
	view      latest.Value[*view.View]
	malformed atomic.Uint64

	lastLeader atomic.Pointer[store.Leader]
	counted    []interface{ Counters() map[string]uint64 }

	stop    context.CancelFunc // ends the loops
	loops   sync.WaitGroup
	drains  []closer // ended at once, before all others
	closers []closer // ended last first
	done    chan struct{}
}

type closer struct {
	name  string
	close func(context.Context) error
}

// Start starts a node and returns when it serves what it knows: its doors are open and it is a member of
// its cluster, or, when it restarts and nobody answers, it serves alone. The context bounds the start only.
func Start(ctx context.Context, cfg Config) (*Node, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, done: make(chan struct{}), deciding: make(chan struct{}, 1), looks: make(chan struct{}, 1)}
	n.events, n.distance, n.clients = event.New(cfg.Name, 0), distance.New(cfg.Name), clients.New(time.Now())
	n.observed.merger = health.NewMerger()
	n.counted = append(n.counted, n.events, n.distance, n.clients)
	n.running.Set(running{spec: n.empty()})
	n.view.Set(&view.View{Self: cfg.Name})
	if err := n.open(ctx); err != nil {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		return nil, errors.Join(err, n.Close(stop))
	}
	return n, nil
}

func (n *Node) empty() *spec.Spec {
	s, err := spec.Build(0, nil, spec.Options{})
	if err != nil {
		panic(err) // the empty spec has no faults
	}
	return s
}

func (n *Node) has(r view.Role) bool { return slices.Contains(n.cfg.Roles, r) }

// onClose has a part ended when the node ends, after those opened later.
func (n *Node) onClose(name string, f func(context.Context) error) {
	n.closers = append(n.closers, closer{name, f})
}

// onDrain has something that others may be using end in its own time, before any part that it rests on.
func (n *Node) onDrain(name string, f func(context.Context) error) {
	n.drains = append(n.drains, closer{name, f})
}

// goes runs a loop that the node waits for at its end.
func (n *Node) goes(f func()) { n.loops.Go(f) }

// open makes the parts in the order in which they need each other.
func (n *Node) open(ctx context.Context) error {
	loops, stop := context.WithCancel(context.WithoutCancel(ctx))
	n.stop = stop
	var err error
	if n.control, err = n.cfg.at(n.cfg.Control); err != nil {
		return fmt.Errorf("--control: %w", err)
	}
	if err := openFolder(n.cfg.Data); err != nil {
		return err
	}
	journal, last, err := store.OpenJournal(n.cfg.Data)
	if err != nil {
		return err
	}
	n.journal = journal
	n.journal.Edits = n.allReadEdits
	n.counted = append(n.counted, journal)
	n.learn(last)
	if err := n.identify(ctx); err != nil {
		return err
	}
	if n.peers, err = loadPeers(n.cfg.Data, n.cfg.Name, time.Now()); err != nil {
		return err
	}
	if err := n.openControl(); err != nil {
		return err
	}
	n.catchUp(ctx)
	state := n.agreed.Get()
	if state == nil || state.Own.Revision == 0 {
		return errors.New("nobody tells the records of the cluster, without which a new node cannot take part")
	}
	n.takeRoster(state)
	if err := n.openNodeToNode(); err != nil {
		return err
	}
	if err := n.openPlanes(); err != nil {
		return err
	}
	n.take(n.agreed.Get()) // static stability: what is known is served before anyone answers
	if err := n.openAPI(); err != nil {
		return err
	}
	n.goes(func() { n.followRaft(loops) })
	n.goes(func() { n.followOthers(loops) })
	n.goes(func() { n.tellSource(loops) })
	n.goes(func() { n.followAgreed(loops) })
	n.goes(func() { n.keepOnDisk(loops) })
	n.goes(func() { n.followLeader(loops) })
	n.goes(func() { n.followObserved(loops) })
	n.goes(func() { n.tellDistances(loops) })
	if n.has(view.DNS) {
		n.goes(func() { n.compareAnswers(loops) })
		n.goes(func() { n.hearCopies(loops) })
	}
	n.goes(func() { n.tellClients(loops) })
	if n.geoFile != nil {
		n.goes(func() { n.followPlaces(loops, n.geoFile) })
	}
	n.publishRunning()
	n.publishTaken()
	return n.meet(ctx, loops)
}

// openFolder makes the data folder, and finds out now whether it can be written.
func openFolder(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("open the data folder: %w", err)
	}
	probe := filepath.Join(dir, ".writable")
	if err := os.WriteFile(probe, nil, 0o600); errors.Is(err, syscall.ENOSPC) {
		return nil // a full disk does not keep a node from serving what it knows
	} else if err != nil {
		return fmt.Errorf("open the data folder: %w", err)
	}
	return os.Remove(probe)
}

// identify loads the identity, or makes a cluster, or joins one.
func (n *Node) identify(ctx context.Context) error {
	me, err := identity.LoadNode(n.cfg.Data)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		n.new = true
		if me, err = n.identifyNew(ctx); err != nil {
			return err
		}
		if err := me.Save(n.cfg.Data); err != nil {
			return err
		}
	case err != nil:
		return err
	case me.Name() != n.cfg.Name:
		return fmt.Errorf("%s is the data folder of node %s, not of %s", n.cfg.Data, me.Name(), n.cfg.Name)
	}
	if err := me.Valid(n.cfg.Now()); err != nil {
		n.cfg.Log.Error("no other node takes this one's certificate", "error", err)
	}
	n.guard = identity.NewGuard(me, identity.Trust{}, n.cfg.Now)
	n.specs.open = n.openSecret
	return nil
}

// identifyNew makes the identity of a node that has none.
func (n *Node) identifyNew(ctx context.Context) (*identity.Node, error) {
	switch {
	case n.cfg.Bootstrap:
		return n.found()
	case n.cfg.Join != "" && n.cfg.Token == "":
		return nil, errors.New("--token is missing: perigee token create prints one, on any node")
	case n.cfg.Join != "":
		return n.join(ctx)
	}
	return nil, fmt.Errorf("%s holds no identity: say --bootstrap, to make a new cluster, or --join and --token", n.cfg.Data)
}

// joinTime bounds how long a node tries to join where the one it asks takes nobody at the moment, or cannot decide.
const joinTime = 30 * time.Second

// join joins a cluster. A node that many join at once closes the connections beyond a bound: then it is asked again a little
// later. A refusal is final, and so is an address where nobody is.
func (n *Node) join(ctx context.Context) (*identity.Node, error) {
	for deadline := time.Now().Add(joinTime); ; {
		me, err := identity.Join(ctx, n.cfg.Dial, n.cfg.Join, n.cfg.Token, n.claim(), n.cfg.Now)
		busy := errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, identity.ErrUndecided)
		if !busy || time.Now().After(deadline) {
			return me, err
		}
		n.cfg.Log.Debug("it is asked again", "error", err)
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(retryTime + rand.N(retryTime)):
		}
	}
}

// found makes a new cluster: its authority, its keys, and the records in which this node is the first. They are on disk
// before the identity is: a node that is stopped in between founds anew.
func (n *Node) found() (*identity.Node, error) {
	if !n.has(view.Voter) {
		return nil, errors.New("--bootstrap: the first node must have the role voter")
	}
	now, cluster := n.cfg.Now(), identity.NewClusterID()
	authority, err := identity.NewAuthority(cluster, now)
	if err != nil {
		return nil, err
	}
	authorityKey := identity.NewKey()
	keys := identity.Keys{Cluster: identity.NewKey(), Authority: &authorityKey}
	claim := n.claim()
	first := roster.Node{Name: claim.Name, Region: claim.Region, POP: claim.POP, Roles: claim.Roles, Joined: now}
	founding, err := roster.Found(cluster, authority, keys, first, now)
	if err != nil {
		return nil, err
	}
	state, revision, err := new(store.State).With(founding)
	if err != nil {
		return nil, err
	}
	if err := n.journal.Save(state); err != nil {
		return nil, err
	}
	n.learn(state)
	request, err := identity.NewRequest()
	if err != nil {
		return nil, err
	}
	certificate, err := authority.Issue(request.CSR(), claim, revision, now)
	if err != nil {
		return nil, err
	}
	return request.Accept(certificate, [][]byte{authority.Certificate()}, keys)
}

// openSecret opens a sealed secret of the spec.
func (n *Node) openSecret(ref spec.Ref, field, sealed string) ([]byte, error) {
	return openSealed(n.guard.Node().Keys().Cluster, ref, field, sealed)
}

// maxAddresses bounds the addresses in this node's certificate; a client at another one needs the access token's pin.
const maxAddresses = 6

// addresses are those by which clients may call this node's API, as its certificate names them.
func (n *Node) addresses() []netip.Addr {
	var all []netip.Addr
	add := func(a netip.Addr) {
		if always := a == netip.AddrFrom4([4]byte{127, 0, 0, 1}) || a == netip.IPv6Loopback(); a.IsValid() && !a.IsUnspecified() && !always && !slices.Contains(all, a) && len(all) < maxAddresses {
			all = append(all, a)
		}
	}
	add(n.cfg.Advertise)
	if at, err := doorAddress(n.cfg.API); err == nil {
		add(at.Addr())
	}
	for _, a := range n.cfg.Public {
		add(a)
	}
	return all
}

// openControl opens the control port, with the services that a node needs before it can take part: others join by it,
// and follow it.
func (n *Node) openControl() error {
	listener, err := n.cfg.Listen("tcp", n.cfg.Control)
	if err != nil {
		return fmt.Errorf("open the control port: %w", err)
	}
	n.port = control.Open(control.Config{Listener: listener, Guard: n.guard, Dial: n.cfg.Dial, Log: n.cfg.Log})
	n.counted = append(n.counted, n.port)
	n.onClose("control port", func(context.Context) error { return n.port.Close() })
	n.openWatch()
	return nil
}

// openNodeToNode opens the backbone, Raft and gossip, and lets others join by this node.
func (n *Node) openNodeToNode() error {
	log := n.cfg.Log
	packets, err := n.cfg.ListenPacket("udp", n.cfg.Control)
	if err != nil {
		return fmt.Errorf("open the backbone: %w", err)
	}
	n.backbone, err = backbone.Open(backbone.Config{
		Self: n.cfg.Name, PacketConn: packets, ServerTLS: func() *tls.Config { return n.guard.ServerTLS(backbone.ALPN) },
		ClientTLS: func(node string) *tls.Config { return n.guard.ClientTLS(node, backbone.ALPN) },
		PeerName:  identity.PeerName, Refused: n.refused, Bulk: n.bulk(), NoWarming: n.cfg.NoWarming, Log: log,
	})
	if err != nil {
		return fmt.Errorf("open the backbone: %w", err)
	}
	n.counted = append(n.counted, n.backbone)
	n.onClose("backbone", func(context.Context) error { return n.backbone.Close() })

	n.store, err = store.Open(store.Config{
		Name: n.cfg.Name, Dir: n.cfg.Data, Advertise: n.control.String(), Bootstrap: n.cfg.Bootstrap,
		Listener: n.port.Service(control.Raft),
		Dial: func(ctx context.Context, name, address string) (net.Conn, error) {
			return n.port.Dial(ctx, address, name, control.Raft)
		},
		Log: log, NoSync: n.cfg.NoSync, Known: n.agreed.Get(), Reads: n.reads,
	})
	if err != nil {
		return err
	}
	n.raftIsOpen.Store(true)
	n.counted = append(n.counted, n.store)
	n.onDrain("lead", n.handOver)
	n.onClose("store", func(context.Context) error { return n.store.Close() })

	self := view.Member{
		Name: n.cfg.Name, Region: n.cfg.Region, POP: n.cfg.POP, Roles: n.cfg.Roles, Public: n.cfg.Public, Control: n.control, Tells: true, Lasting: true, Timed: true, Asks: true,
	}
	if n.cfg.API != "" {
		if self.API, err = netip.ParseAddrPort(n.cfg.API); err != nil {
			return fmt.Errorf("--api: %w", err)
		}
	}
	meta, long, err := encodeMember(self)
	if err != nil {
		return err
	}
	if err := n.openReports(); err != nil {
		return err
	}
	n.publish(publicKey, long)
	at, err := n.cfg.at(n.cfg.Gossip)
	if err != nil {
		return fmt.Errorf("--gossip: %w", err)
	}
	me := n.guard.Node()
	primary, others, err := n.roster.Get().Gossip(me.Keys().Cluster)
	if err != nil {
		return fmt.Errorf("open the gossip keys: %w", err)
	}
	n.gossip, err = gossip.Open(gossip.Config{
		Name: n.cfg.Name, Meta: meta, Bind: n.cfg.Gossip, Advertise: at, Key: primary, OtherKeys: others, Label: me.ClusterID(),
		Refuse: n.isRevoked, Ping: n.ping(), Listen: n.cfg.Listen, ListenPacket: n.cfg.ListenPacket, Dial: n.cfg.Dial, Log: log,
	})
	if err != nil {
		return err
	}
	n.gossips.Store(true)
	n.counted = append(n.counted, n.gossip)
	n.onClose("gossip", func(ctx context.Context) error {
		left := time.Second
		if deadline, ok := ctx.Deadline(); ok {
			left = min(left, max(time.Until(deadline), time.Millisecond))
		}
		return errors.Join(n.gossip.Leave(left), n.gossip.Close())
	})

	gate := identity.NewGate(n.judgeJoin)
	n.counted = append(n.counted, gate)
	joins := n.port.Service(control.Join)
	n.onClose("joins", func(context.Context) error { return joins.Close() })
	n.goes(func() { n.admitAll(joins, gate) })
	return nil
}

// refused is what there is against the peer of an open connection of the backbone. Where only its authority is retired, the
// flows on it go on.
func (n *Node) refused(state tls.ConnectionState) error {
	err := n.guard.Refused(state)
	if errors.Is(err, identity.ErrRetired) {
		return fmt.Errorf("%w: %w", backbone.ErrOutdated, err)
	}
	return err
}

// bulk has flows carried by connections of TCP, too, where they have many bytes and are faster so.
func (n *Node) bulk() backbone.Bulk {
	b := backbone.Bulk{
		Listener: n.port.Service(control.Flow), Services: []string{flowService, detourService}, Always: n.cfg.FlowsByTCP == TCPAlways,
		Dial: func(ctx context.Context, node string, at netip.AddrPort) (backbone.BulkConn, error) {
			c, err := n.port.Dial(ctx, at.String(), node, control.Flow)
			if err != nil {
				return nil, err
			}
			return c.(*control.Conn), nil
		},
	}
	if n.cfg.FlowsByTCP == TCPNever {
		b.Dial = nil
	}
	return b
}

// handOverTime bounds how long a leader that ends looks for a successor.
const handOverTime = 2 * time.Second

// handOver gives the lead to another node, so that changes need not wait for an election.
func (n *Node) handOver(ctx context.Context) error {
	if len(n.store.Servers()) < 2 || n.store.Leader().Get().Name != n.cfg.Name {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, handOverTime)
	defer cancel()
	if err := n.store.TransferLeadership(ctx); err != nil {
		n.cfg.Log.Info("the lead is not handed over, the others will elect", "error", err)
	}
	return nil
}

// admitAll serves those who ask to join. The port bounds how many they are.
func (n *Node) admitAll(joins net.Listener, gate *identity.Gate) {
	ctx, cancel := context.WithCancel(context.Background())
	var guests sync.WaitGroup
	defer guests.Wait()
	defer cancel()
	for {
		conn, err := joins.Accept()
		if err != nil {
			return
		}
		guests.Go(func() { gate.Admit(ctx, conn) })
	}
}

// openPlanes makes the planes and opens the world's doors.
func (n *Node) openPlanes() error {
	log, now := n.cfg.Log, n.view.Get
	// Until the planes have ended they go by what is observed: that this node leaves, too.
	n.onClose("loops", func(context.Context) error { n.stop(); return nil })
	n.prober = probe.New(probe.Config{Node: n.cfg.Name, Dial: n.cfg.Dial, Report: n.report, Log: log})
	n.counted = append(n.counted, n.prober)
	n.onClose("prober", func(context.Context) error { n.prober.Close(); return nil })

	where := geo.Default() // held by who answers names alone: a file is mapped for as long as somebody holds it
	if n.cfg.GeoDB != "" {
		var err error
		if n.geoFile, err = os.Stat(n.cfg.GeoDB); err == nil {
			where, err = geo.Open(n.cfg.GeoDB)
		}
		if err != nil {
			return err
		}
	}

	panics := &front.Panics{}
	panicked := func(v any) { panics.Tell(log, v) }
	turns := relay.NewTurns(runtime.GOMAXPROCS(0))
	n.origin = origin.New(origin.Config{
		Region: n.cfg.Region, View: now, Dial: n.cfg.Dial, DialFlow: n.cfg.dialFlow, DialAs: transparent.Dialer{Mark: n.cfg.TransparentMark}.Dial,
		Evidence: n.prober.Evidence, Returns: n.returns, Turns: turns, Panicked: panicked, Log: log,
	})
	n.onClose("origin", func(context.Context) error { n.origin.Close(); return nil })
	store, err := n.openCacheDisk()
	if err != nil {
		return err
	}
	n.cdn = cdn.New(cdn.Config{
		View: now, POP: n.cfg.POP, Dial: n.cfg.Dial, Backbone: n.backbone.Dial, HTTPSPort: httpsPort(n.cfg.HTTPS),
		CacheBytes: n.cfg.CacheBytes, Disk: store, Epoch: n.orders.epoch, Log: log,
	})
	n.onClose("cdn", func(context.Context) error { return n.cdn.Close() })
	written, err := n.openFlowLog()
	if err != nil {
		return err
	}
	n.accelerator = accelerator.New(accelerator.Config{
		View: now, Dial: n.backbone.Dial, DialLasting: n.backbone.DialLasting, Take: n.takeFlow, Prospect: n.prospect, Open: n.openDatagrams, Blocked: n.isBlocked, FlowLog: written,
		Turns: turns, Panicked: panicked, Log: log,
	})
	queries, err := n.openQueryLog()
	if err != nil {
		return err
	}
	names := dnsgeo.Config{View: now, Geo: where, Log: log, Name: n.cfg.Name, Rate: n.cfg.DNSRate, QueryLog: queries, Update: n.agreeOnUpdate}
	if n.has(view.DNS) {
		names.Dial, names.Copies = n.cfg.Dial, n.copies()
	}
	n.names = dnsgeo.New(names)
	n.onClose("names", func(context.Context) error { return n.names.Close() })
	n.planes = []plane{n.origin, n.cdn, n.accelerator, n.names}

	n.openHTTPStreams()
	n.openFlowStreams()
	n.openDatagramFlows()
	n.backbone.Handle(zoneService, func(in *backbone.Incoming) { n.names.GiveCopy(in.Accept()) })

	certificates := front.NewCertificates(n.cfg.Name, func(host string) bool {
		return n.cdn.Hosts(host) || slices.Contains(n.cfg.DNSHTTPS, host)
	})
	n.planes = append(n.planes, &certified{to: certificates})
	held := loop.New(loop.Config{Turns: turns, Panicked: panicked})
	n.onClose("event loops", func(context.Context) error { held.Close(); return nil })
	n.front = front.New(front.Config{
		Listen: n.cfg.Listen, ListenAnycast: n.cfg.ListenAnycast, ListenPacket: n.cfg.ListenPacket, ListenPacketAnycast: n.cfg.ListenPacketAnycast,
		Certificate: certificates.Get, Policy: n.cdn.SecurityPolicy,
		TokenKey: n.guard.Node().Keys().Cluster.Derive("quic tokens"), ResetKey: n.guard.Node().Keys().Cluster.Derive("quic resets of " + n.cfg.Name),
		ProxyHeadersFrom: n.cfg.ProxyHeadersFrom, Blocked: n.isBlocked, Seen: n.see, RoundTrip: n.cfg.RoundTrip,
		FinishPackets: n.accelerator.FinishDatagrams, Panics: panics, Log: log, Loop: eventLoops{held},
		Connections: n.cfg.Connections, ConnectionsPerClient: n.cfg.ConnectionsPerClient,
	})
	n.onDrain("doors", n.front.Close)
	n.takeTicketKeys(n.roster.Get())
	n.counted = append(n.counted, n.origin, n.cdn, n.accelerator, written, n.names, queries, &n.compared, n.front, n.guard, &n.places, &n.doorCounts)
	n.makeMetrics()
	n.makeAPIs()
	n.openLane()
	if err := n.openDoors(); err != nil {
		return err
	}
	return n.openSpeaker()
}

// openCacheDisk opens the folder where the cache keeps what it need not lose; nil: it keeps nothing.
func (n *Node) openCacheDisk() (*disk.Store, error) {
	if n.cfg.CacheDiskBytes == 0 {
		return nil, nil
	}
	// What waits to be written is in memory, some of it beside the cache's.
	store, err := disk.Open(disk.Config{Dir: n.cfg.CacheDir, Bytes: n.cfg.CacheDiskBytes, Pending: min(n.cfg.CacheBytes/2, maxCachePending), System: n.cfg.CacheFiles})
	if err != nil {
		return nil, fmt.Errorf("--cache-dir: %w", err)
	}
	n.onClose("cache's disk", func(context.Context) error { return store.Close() })
	return store, nil
}

// maxCachePending bounds what waits in memory to be written to the cache's disk, and so does half of the cache's memory. What
// does not fit is kept in memory only.
const maxCachePending = 64 << 20

// openDoors opens what this node was told to open: one that cannot be opened is an error of the start.
func (n *Node) openDoors() error {
	n.doorHost = n.cfg.Advertise
	if n.cfg.HTTP != "" {
		at, err := doorAddress(n.cfg.HTTP)
		if err != nil {
			return fmt.Errorf("--http: %w", err)
		}
		n.doorHost = at.Addr()
	}
	sites, names := n.has(view.Edge), n.has(view.DNS) && len(n.cfg.DNSHTTPS) > 0
	for _, d := range []struct {
		flag, address string
		tls           bool
	}{{"http", n.cfg.HTTP, false}, {"https", n.cfg.HTTPS, true}} {
		if d.address == "" || !sites && !(names && d.tls) {
			continue
		}
		at, err := doorAddress(d.address)
		if err != nil {
			return fmt.Errorf("--%s: %w", d.flag, err)
		}
		opens := front.Door{Network: "tcp", Address: at, TLS: d.tls, HTTP3: d.tls, Handler: http.HandlerFunc(noSite)}
		if sites {
			opens.Handler, opens.Quick, opens.Relay = n.cdn, n.cdn.Quick, n.cdn.Relay
		}
		if names && d.tls {
			n.withNames(&opens)
		}
		n.ownDoors = append(n.ownDoors, opens)
	}
	if n.cfg.API != "" {
		at, err := doorAddress(n.cfg.API)
		if err != nil {
			return fmt.Errorf("--api: %w", err)
		}
		n.ownDoors = append(n.ownDoors, front.Door{Network: "tcp", Address: at, TLS: true, TLSConfig: n.guard.PublicTLS(), Anyone: true, Handler: n.apis.public})
	}
	if err := n.front.Set(n.ownDoors); err != nil {
		return err
	}
	return n.openNames()
}

// httpsPort is the port of the door for HTTPS; 0 if there is none, or one that openDoors will refuse.
func httpsPort(address string) uint16 {
	at, err := doorAddress(address)
	if err != nil {
		return 0
	}
	return at.Port()
}

// doorAddress is a host:port whose host may be empty, for all addresses.
func doorAddress(address string) (netip.AddrPort, error) {
	if port, all := strings.CutPrefix(address, ":"); all {
		n, err := strconv.ParseUint(port, 10, 16)
		return netip.AddrPortFrom(netip.Addr{}, uint16(n)), err
	}
	return netip.ParseAddrPort(address)
}

// maxSocketPath bounds the path of a unix socket, in bytes: Linux takes 107, others 103.
const maxSocketPath = 103

// makeAPIs makes the servers of the API, one for each kind of caller.
func (n *Node) makeAPIs() {
	b := n.backend()
	n.apis.public = api.NewServer(b, api.ByToken(b))
	n.apis.socket = api.NewServer(b, api.BySocket(n.localRole()))
	n.apis.between = api.NewNodeServer(b, func(r *http.Request) string {
		if conn, ok := api.ConnOf(r).(*control.Conn); ok {
			return conn.Peer()
		}
		return ""
	})
	n.apis.within = api.NewServer(b, func(*http.Request) (roster.Principal, error) {
		return roster.Principal{Name: n.cfg.Name, Roles: []roster.Role{roster.RoleAdmin}}, nil
	})
}

// openAPI serves the API to other nodes, at the control port, and to whoever may open the socket in the data folder.
func (n *Node) openAPI() error {
	n.serveAPI(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.apis.between.ServeHTTP(&telling{ResponseWriter: w, node: n}, r)
	}), n.port.Service(control.API))
	n.inside = newStreams()
	n.serveAPI(n.apis.within, n.inside)
	if n.cfg.NoSocket {
		return nil
	}
	path := filepath.Join(n.cfg.Data, api.Socket)
	if len(path) > maxSocketPath {
		n.cfg.Log.Warn("the path is too long for a unix socket: the API is at its address only", "path", path, "most", maxSocketPath)
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("open the API's socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("open the API's socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return fmt.Errorf("open the API's socket: %w", err)
	}
	n.serveAPI(n.apis.socket, l)
	return nil
}

// Timeouts of the API: a slow client is ended.
const (
	apiHeaderTime = 10 * time.Second
	apiReadTime   = time.Minute
	apiIdleTime   = 2 * time.Minute
)

func (n *Node) serveAPI(handler http.Handler, l net.Listener) {
	server := &http.Server{
		Handler: handler, ReadHeaderTimeout: apiHeaderTime, ReadTimeout: apiReadTime, IdleTimeout: apiIdleTime,
		ConnContext: api.ConnContext, ErrorLog: n.quiet(),
	}
	n.goes(func() { server.Serve(l) })
	n.onDrain("API", func(ctx context.Context) error {
		if server.Shutdown(ctx) != nil {
			return server.Close()
		}
		return nil
	})
}

// meet finds the others and waits, if this node is new, until it has met one; being made a member of Raft may
// take longer and goes on meanwhile.
func (n *Node) meet(ctx, loops context.Context) error {
	if n.new && !n.cfg.Bootstrap {
		if err := n.firstMeeting(ctx); err != nil {
			return err
		}
	}
	n.goes(func() { n.keepJoined(loops) })
	n.goes(func() { n.keepLevel(loops) })
	n.goes(func() { n.keepHouse(loops) })
	n.goes(func() { n.keepRenewed(loops) })
	if n.cfg.Bootstrap {
		n.goes(func() { n.agreeOnFounding(loops) })
	}
	return nil
}

// Done is closed when the node has ended.
func (n *Node) Done() <-chan struct{} { return n.done }

// LeaveTime is how long a node that ends serves on after it has said so: until all others have heard it, and what
// they had sent has come.
const LeaveTime = time.Second

// leave tells the others to choose this node no more, and serves on for those who were sent here before.
func (n *Node) leave(ctx context.Context) {
	if n.reports == nil {
		return
	}
	n.publish(leavingKey, []byte{1})
	if len(n.view.Get().Members) < 2 {
		return // nobody hears it
	}
	sleep(ctx, LeaveTime)
	if n.front == nil || n.cfg.Drain == 0 {
		return
	}
	n.front.Retire()
	sleep(ctx, n.cfg.Drain)
}

// Close ends the node in order: it tells the others to choose it no more, its doors close and what is in flight
// finishes, it leaves gossip, Raft and the links close. The context bounds the wait for what is in flight. It returns
// when nothing of the node runs any more.
func (n *Node) Close(ctx context.Context) error {
	n.leave(ctx)
	n.withdraw()
	errs := make([]error, len(n.drains))
	end := func(c closer) error {
		if err := c.close(ctx); err != nil {
			return fmt.Errorf("close the %s: %w", c.name, err)
		}
		return nil
	}
	var drained sync.WaitGroup
	for i, d := range n.drains {
		drained.Go(func() { errs[i] = end(d) })
	}
	drained.Wait()
	for _, c := range slices.Backward(n.closers) {
		errs = append(errs, end(c))
	}
	n.stop()
	n.loops.Wait()
	if n.journal != nil {
		if state := n.agreed.Get(); state != nil {
			errs = append(errs, n.journal.Save(state))
		}
		errs = append(errs, n.journal.Close())
	}
	close(n.done)
	return errors.Join(errs...)
}

// Client is a client of this node's API within the process, with all rights: for programs that hold a node.
func (n *Node) Client() *api.Client {
	return api.NewNodeClient(func(ctx context.Context) (net.Conn, error) {
		near, far := net.Pipe()
		if !n.inside.push(far) {
			return nil, net.ErrClosed
		}
		return near, nil
	})
}
