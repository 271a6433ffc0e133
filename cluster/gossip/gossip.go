// Package gossip is who is there: the members of the cluster, found and watched by SWIM. It is the one importer of
// hashicorp/memberlist.
//
// It is not agreement, and it carries nothing but names, addresses and a few hundred bytes by which a node describes
// itself; what nodes say is cluster/report's. With each answered probe a payload travels, for network coordinates. At 100
// nodes over a wide area with 1 % loss, a node that dies without a word is held dead by all others after 3.3 s in the
// median, and hardly ever more than 5 s; one that leaves has left within 1 s; one that stops for a second is held dead by nobody.
// Cut off from all others, a node goes on with itself as the only member; joining again is the caller's to try. Only holders of a
// key are heard at all, and they are trusted: bounds hold against them, lies do not. A node that is refused by name is a member no
// more, and packets from its address are dropped; but it reads what goes to others, and may speak in another's name from another
// address, until the key that it holds is retired.
package gossip

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/perigee-net/perigee/cluster/latest"
)

// How the failure detector is set. A node is probed by each other node in turn, one each probeInterval. One that
// answers neither directly in that time, nor by way of indirectChecks others, nor by TCP, is suspected, and all are told. It is
// declared dead if it has not contradicted after some 2 to 3 s (see suspicionMult): longer than a process may stand still, plus
// what it takes until a rumour has gone round the earth and back.
const (
	probeInterval = 530 * time.Millisecond
	// probeTimeout is when a probe asks others for help. It is above most round trips on earth; only what is below it
	// is told to Ping.Done. A late answer counts for the one who is probed.
	probeTimeout = 300 * time.Millisecond
	// indirectChecks is how many are asked. Where round trips are long, few of them can answer in what is left of the
	// interval; at an interval of 450 ms there were 41 % fewer wrong suspicions with 6 than with 3.
	indirectChecks = 10
	// suspicionMax is how many times longer the suspicion of one node lasts that no other shares.
	suspicionMax = 3
	// awarenessMax is how many times slower a node may make its probes that finds itself slow. The library has 8. Who has just
	// seen a packet lost is slow to see a death, too: with 4 the worst of 45 took 9.5 s.
	awarenessMax = 2

	gossipInterval = 100 * time.Millisecond
	gossipNodes    = 3 // told each interval, while there is anything to spread
	// retransmitMult times log10(nodes+1), rounded up, is how often each node sends a message. The library's 4
	// leaves one in some hundred refuted suspicions unheard by one of 5 to 9 nodes, which then holds a live one dead. Its
	// queue loses some messages that have been sent once already, when more wait than fit a packet (v0.7.0: numbers start
	// again when it is empty, and what has the same number and length is taken for the same); others repeat them. To
	// have a node that was suspected say twice that it lives (UpdateNode) was tried and made it worse: at three nodes of which
	// one loses 30 % of what it is sent, members changed 20 to 36 times an hour instead of 4 times in 7 hours.
	retransmitMult   = 12
	pushPullInterval = 30 * time.Second
	streamTimeout    = 10 * time.Second // of a full exchange of state, and of the dial for it
	// gossipToTheDead is how long a dead node is still told so, that it may contradict.
	gossipToTheDead = 30 * time.Second
	// leaveFor is how long a node that leaves says so. The first others know after one gossipInterval, and pass it on.
	leaveFor = 5 * gossipInterval
	// reclaimAfter is how long after a node's death its name may come back from another address.
	reclaimAfter = time.Second
	// packetSize bounds what is sent in one packet: it fits the MTU of any path in use.
	packetSize = 1400
)

// Bounds of what Open and Ping take, in bytes.
const (
	MaxName  = 64
	MaxLabel = 64
	MaxMeta  = memberlist.MetaMaxSize
	// MaxPayload is what a probe's answer carries beside.
	MaxPayload = 256
)

// KeySize is the length of a key in bytes (AES-256), and MaxKeyring how many are held at once.
const (
	KeySize    = 32
	MaxKeyring = 8
)

const (
	// maxNodes bounds the members that are known; of those beyond it nothing is heard.
	maxNodes = 10_000
	// maxShunned is from how many refused nodes' addresses packets are dropped; those of others are heard until
	// the key that they hold is retired.
	maxShunned = 1024
)

// ErrClosed is returned by what is called after Close.
var ErrClosed = errors.New("gossip: closed")

// Config is what Open needs.
type Config struct {
	// Name is this node's, unique in the cluster: 1–64 bytes.
	Name string
	// Meta describes this node to the others, at most 512 bytes; it stays the same until Close.
	Meta []byte
	// Bind is the host and port to listen on, TCP and UDP.
	Bind string
	// Advertise is where the others reach it. If the address is invalid or the port 0, that of the listener.
	Advertise netip.AddrPort
	// Key encrypts all that is sent; what others sent is read by this key or one of OtherKeys. All are of KeySize
	// bytes, at most MaxKeyring together. SetKeys changes them.
	Key       []byte
	OtherKeys [][]byte
	// Refuse says of a node's name that nothing is to be had with it; nil refuses nobody. It is asked for
	// each packet, from any goroutine and with locks held: it must be quick and not call Gossip. When its
	// answers have changed, call Check. This node's own name is never asked.
	Refuse func(name string) bool
	// Label is the cluster's, so that packets of another cluster are not even decrypted: 1–64 bytes.
	Label string

	// The network. Nil is that of package net.
	Listen       func(network, address string) (net.Listener, error)
	ListenPacket func(network, address string) (net.PacketConn, error)
	Dial         func(ctx context.Context, network, address string) (net.Conn, error)

	// Ping is what travels with probes, and what they measure.
	Ping Ping

	Log *slog.Logger // nil: discard
}

// Ping is what a node says to each that probes it, and what it hears when it probes: each other node about once in
// as many probe intervals as there are nodes. Both may be nil. They are called with nothing of Gossip held, must be
// quick, and not call Gossip.
type Ping struct {
	// Payload is sent with the answer to each probe, at most MaxPayload bytes; more is not sent.
	Payload func() []byte
	// Done hears of each answered probe: whom this node asked, the round trip, and the other's payload, nil if it
	// sent none. Only direct answers within probeTimeout are told. The payload must not be kept or changed.
	Done func(node string, rtt time.Duration, payload []byte)
}

// Member is a live node.
type Member struct {
	Name string
	Meta []byte         // must not be changed
	Addr netip.AddrPort // where it gossips
}

// Gossip is this node's part in the cluster's gossip.
type Gossip struct {
	name      string
	meta      []byte
	log       *slog.Logger
	refuse    func(name string) bool
	ping      Ping
	transport *transport
	keys      keyring
	list      *memberlist.Memberlist
	config    *memberlist.Config // list's, see suspicionMult
	members   latest.Value[[]Member]
	joins     sync.WaitGroup

	ending sync.Mutex // serialises Leave and Close
	ended  bool

	mu        sync.Mutex                // guards what follows; nothing of memberlist is called with it held
	live      map[string]Member         // by memberlist; those refused are held dead by it only seconds later
	shunned   map[string]netip.AddrPort // where those refused were
	published time.Time                 // when the members last were
	waits     bool                      // they are to be, by the timer
	timer     *time.Timer
	closed    bool
	conflicts map[string]bool // names whose conflict was logged

	counters counters
}

// Open starts to gossip, alone until Join or until another joins.
func Open(c Config) (*Gossip, error) {
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("open gossip: %w", err)
	}
	g := &Gossip{
		name: c.Name, meta: bytes.Clone(c.Meta), log: c.Log, ping: c.Ping,
		live:      map[string]Member{},
		shunned:   map[string]netip.AddrPort{},
		conflicts: map[string]bool{},
	}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	g.refuse = func(name string) bool { return c.Refuse != nil && name != c.Name && c.Refuse(name) }
	err := g.keys.set(c.Key, c.OtherKeys)
	if err != nil {
		return nil, fmt.Errorf("open gossip: %w", err)
	}
	if g.transport, err = openTransport(c, g.refuse, &g.counters); err != nil {
		return nil, fmt.Errorf("open gossip: %w", err)
	}
	g.timer = time.AfterFunc(time.Hour, g.publishLate)
	g.timer.Stop()
	mc := memberlist.DefaultWANConfig()
	mc.Name, mc.Label, mc.Keyring, mc.Transport = c.Name, c.Label, &g.keys.ring, g.transport
	mc.ProbeInterval, mc.ProbeTimeout, mc.IndirectChecks = probeInterval, probeTimeout, indirectChecks
	mc.SuspicionMult, mc.SuspicionMaxTimeoutMult, mc.AwarenessMaxMultiplier = suspicionMult(1), suspicionMax, awarenessMax
	mc.GossipInterval, mc.GossipNodes, mc.RetransmitMult = gossipInterval, gossipNodes, retransmitMult
	mc.PushPullInterval, mc.TCPTimeout = pushPullInterval, streamTimeout
	mc.GossipToTheDeadTime, mc.DeadNodeReclaimTime = gossipToTheDead, reclaimAfter
	mc.UDPBufferSize, mc.EnableCompression = packetSize, false
	mc.Delegate, mc.Events, mc.Conflict, mc.Alive, mc.Ping = delegate{g}, delegate{g}, delegate{g}, delegate{g}, delegate{g}
	g.config = mc
	mc.Logger = log.New(libraryLog{g}, "", 0)
	if g.list, err = memberlist.Create(mc); err != nil {
		g.transport.Shutdown()
		return nil, fmt.Errorf("open gossip: %w", err)
	}
	return g, nil
}

func (c Config) check() error {
	switch {
	case c.Name == "" || len(c.Name) > MaxName:
		return fmt.Errorf("name %q: has %d bytes, want 1 to %d", c.Name, len(c.Name), MaxName)
	case c.Label == "" || len(c.Label) > MaxLabel:
		return fmt.Errorf("label %q: has %d bytes, want 1 to %d", c.Label, len(c.Label), MaxLabel)
	case len(c.Meta) > MaxMeta:
		return fmt.Errorf("meta has %d bytes, want at most %d", len(c.Meta), MaxMeta)
	}
	return nil
}

// suspicionMult is such that a suspicion lasts about as long with any number of nodes: the library waits this times
// max(1, log10(nodes)) × probeInterval, which is 2.1 to 2.4 s up to 14 nodes, 1.8 to 2.7 s up to 100, 3.2 s at 1,000. Up to it less 2
// others must suspect a node too, or it takes longer, up to suspicionMax times. From 50 nodes on that is none: where many watch,
// who falsely suspects is contradicted by the one who lives, of which all hear in a second.
//
// The library reads its setting of it only with a lock held that it also holds when it calls NotifyJoin and NotifyLeave, so
// these set it.
func suspicionMult(nodes int) int {
	switch {
	case nodes < 15:
		return 4
	case nodes < 50:
		return 3
	}
	return 2
}

// SetKeys makes primary the key by which this node encrypts, and reads by it and others. It takes effect with
// the next packet. So that no packet is lost, a key is given to all nodes as one of others before any uses it,
// and stays one until all have another. An error leaves the keys as they were.
func (g *Gossip) SetKeys(primary []byte, others [][]byte) error {
	if err := g.keys.set(primary, others); err != nil {
		return fmt.Errorf("set gossip keys: %w", err)
	}
	return nil
}

// Check asks Config.Refuse about all that is known: members that are refused now are gone when it returns; those that are refused no more are members again if they still answer.
func (g *Gossip) Check() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return
	}
	for name := range g.shunned {
		if !g.refuse(name) {
			delete(g.shunned, name)
		}
	}
	for name, m := range g.live {
		if _, known := g.shunned[name]; g.refuse(name) && !known && len(g.shunned) < maxShunned {
			g.log.Info("member refused", "name", name, "addr", m.Addr)
			g.shunned[name] = m.Addr
		}
	}
	g.publishMembers()
}

// Addr is where the others reach this node.
func (g *Gossip) Addr() netip.AddrPort { return g.transport.advertise }

// Members is the live nodes, this one included, ordered by name.
func (g *Gossip) Members() *latest.Value[[]Member] { return &g.members }

// Join contacts nodes by host:port, all at once, and returns nil as soon as one has exchanged its state with
// this one. Trying again is up to the caller.
func (g *Gossip) Join(ctx context.Context, seeds []string) error {
	addrs, errs := lookup(ctx, seeds)
	results := make(chan error, len(addrs))
	tried := 0
	for _, addr := range addrs {
		if addr == g.Addr() {
			errs = append(errs, fmt.Errorf("%v is this node", addr))
			continue
		}
		if !g.join(addr.String(), results) {
			return ErrClosed
		}
		tried++
	}
	for range tried {
		select {
		case err := <-results:
			if err == nil {
				return nil
			}
			errs = append(errs, err)
		case <-ctx.Done():
			return fmt.Errorf("join: %w", ctx.Err())
		}
	}
	return fmt.Errorf("join: %w", cmp.Or(errors.Join(errs...), errors.New("no seeds")))
}

// join contacts one node. The library can't be told to stop; it ends by streamTimeout or with the transport.
func (g *Gossip) join(addr string, result chan<- error) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.joins.Go(func() {
		_, err := g.list.Join([]string{addr})
		result <- err
	})
	return true
}

// lookup resolves seeds here, as the library would ask name servers in ways of its own.
func lookup(ctx context.Context, seeds []string) (addrs []netip.AddrPort, errs []error) {
	for _, seed := range seeds {
		if addr, err := netip.ParseAddrPort(seed); err == nil {
			addrs = append(addrs, addr)
			continue
		}
		host, service, err := net.SplitHostPort(seed)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		port, err := net.DefaultResolver.LookupPort(ctx, "tcp", service)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, ip := range ips {
			addrs = append(addrs, netip.AddrPortFrom(ip.Unmap(), uint16(port)))
		}
	}
	return addrs, errs
}

// Leave tells the others that this node goes. It takes at most the timeout, and never more than half a second. The
// node still has to be closed.
func (g *Gossip) Leave(timeout time.Duration) error {
	g.ending.Lock()
	defer g.ending.Unlock()
	if g.ended {
		return ErrClosed
	}
	// Its error says that not all of the repetitions were sent in that time: those that were do.
	_ = g.list.Leave(max(1, min(timeout, leaveFor))) // 0 would wait for ever
	return nil
}

// Close ends the part in the gossip; without Leave before it the others see a death. The sockets close at
// once. Then it waits for a probe under way, which can't be called off: one probe interval, up to four if the
// network is in trouble.
func (g *Gossip) Close() error {
	g.ending.Lock()
	defer g.ending.Unlock()
	if g.ended {
		return nil
	}
	g.ended = true

	g.mu.Lock()
	g.closed = true
	g.timer.Stop()
	g.mu.Unlock()

	err := g.list.Shutdown()
	g.joins.Wait()
	g.transport.wait()
	// A probe was given its time by the score of when it began, and until it ends the score does not fall.
	time.Sleep(probeInterval * time.Duration(g.list.GetHealthScore()+1))
	if err != nil {
		return fmt.Errorf("close gossip: %w", err)
	}
	return nil
}

// membersPause is the least time between two publications of the members, but for those that Check makes: where a thousand
// come at once, each would else be a list of all of them on every node.
const membersPause = 20 * time.Millisecond

// membersChanged publishes who is there: at once, or when the pause after the last time is over. g.mu is held.
func (g *Gossip) membersChanged() {
	switch rest := membersPause - time.Since(g.published); {
	case g.waits:
	case rest <= 0:
		g.publishMembers()
	default:
		g.waits = true
		g.timer.Reset(rest)
	}
}

// publishLate publishes what changed in the pause.
func (g *Gossip) publishLate() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return
	}
	g.waits = false
	g.publishMembers()
}

// publishMembers publishes who is there, if that has changed. g.mu is held.
func (g *Gossip) publishMembers() {
	g.published = time.Now()
	g.transport.shun(g.shunnedAddrs())
	members := make([]Member, 0, len(g.live))
	for name, m := range g.live {
		if !g.refuse(name) {
			members = append(members, m)
		}
	}
	slices.SortFunc(members, func(a, b Member) int { return cmp.Compare(a.Name, b.Name) })
	if slices.EqualFunc(members, g.members.Get(), Member.equal) {
		return
	}
	g.members.Set(members)
}

func (m Member) equal(o Member) bool {
	return m.Name == o.Name && m.Addr == o.Addr && bytes.Equal(m.Meta, o.Meta)
}

// shunnedAddrs is where packets are not taken from: the addresses of refused nodes, unless another node is there
// now. g.mu is held.
func (g *Gossip) shunnedAddrs() map[netip.AddrPort]bool {
	if len(g.shunned) == 0 {
		return nil
	}
	addrs := map[netip.AddrPort]bool{}
	for _, addr := range g.shunned {
		addrs[addr] = true
	}
	for name, m := range g.live {
		if !g.refuse(name) {
			delete(addrs, m.Addr)
		}
	}
	return addrs
}
