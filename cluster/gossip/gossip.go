// Package gossip is who is there and what each says: the members of the cluster, found and watched by
// SWIM, and small values that every node publishes and every other node soon has (health verdicts, mostly).
// It is the one importer of hashicorp/memberlist.
//
// It is not agreement and it is not delivery: values are observed, the newest wins, those in between may
// never be seen. A node that dies without a word is declared dead in about 4 to 5 seconds in a cluster of
// tens of nodes, a node that leaves is known to have left at once, and what either said goes with it. What a
// lost packet took is repaired when two nodes compare all they know, about each 30 seconds. Cut off from
// all others, a node goes on with itself as the only member; joining again is the caller's to try. Only
// holders of a key are heard at all, and they are trusted: bounds hold against them, lies do not. A node that
// is refused by name is a member no more, and packets from its address are dropped; but it reads what goes
// to others, and may speak in another's name from another address, until the key that it holds is retired.
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
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/perigee-net/perigee/cluster/latest"
)

// How the failure detector is set. A node is probed by each other node in turn, one each probeInterval. One that
// answers neither directly in that time, nor by way of indirectChecks others, nor by TCP, is suspected. It
// is declared dead when it has not contradicted after suspicionMult × max(1, log10(nodes)) × probeInterval and a
// second node suspects it too; if none does, after suspicionMax times as long. So a packet lost here and
// there kills nobody, and a silent node is dead to all after about six intervals.
const (
	probeInterval = 650 * time.Millisecond
	// probeTimeout is when a probe asks others for help. It is above most round trips on earth, and twice
	// itself is below probeInterval, so that helpers can still say that they tried. A late answer counts.
	probeTimeout   = 300 * time.Millisecond
	indirectChecks = 3
	suspicionMult  = 3
	suspicionMax   = 3
	// awarenessMax is how many times slower a node may make its probes that finds itself slow.
	awarenessMax = 4

	gossipInterval = 100 * time.Millisecond
	gossipNodes    = 3 // told each interval, while there is anything to spread
	// retransmitMult times log10(nodes+1), rounded up, is how often each node sends a message. The library's 4
	// leaves one in some hundred refuted suspicions unheard by one of 5 to 9 nodes, which then holds a live one dead.
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

// Bounds of what Open and Publish take, in bytes. They are such that one value with all its names fits a
// packet.
const (
	MaxName  = 64
	MaxLabel = 64
	MaxMeta  = memberlist.MetaMaxSize
	MaxKey   = 150
	MaxValue = 1000
)

// KeySize is the length of a key in bytes (AES-256), and MaxKeyring how many are held at once.
const (
	KeySize    = 32
	MaxKeyring = 8
)

const (
	// coalesce is how long the first change waits for more before Entries is published anew.
	coalesce = 50 * time.Millisecond
	// maxQueued bounds the messages that wait to be spread. Beyond it those that were sent most often
	// are dropped; the exchange of full state repairs it.
	maxQueued = 8192
	// maxRespread is how many values learnt in an exchange of state are spread further at once. More
	// than that is what a newcomer learns, and others know it.
	maxRespread = 64
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

	Log *slog.Logger // nil: discard
}

// Member is a live node.
type Member struct {
	Name string
	Meta []byte         // must not be changed
	Addr netip.AddrPort // where it gossips
}

// Entries is the newest value by node and key, of the live nodes that publish any. It must not be changed.
type Entries = map[string]map[string][]byte

// Gossip is this node's part in the cluster's gossip.
type Gossip struct {
	name      string
	meta      []byte
	log       *slog.Logger
	refuse    func(name string) bool
	transport *transport
	keys      keyring
	list      *memberlist.Memberlist
	queue     queue
	members   latest.Value[[]Member]
	entries   latest.Value[Entries]
	nodes     atomic.Int64 // members, for the queue
	joins     sync.WaitGroup

	ending sync.Mutex // serialises Leave and Close
	ended  bool

	mu        sync.Mutex                // guards what follows; nothing of memberlist is called with it held
	live      map[string]Member         // by memberlist; those refused are held dead by it only seconds later
	shunned   map[string]netip.AddrPort // where those refused were
	table     *table
	timer     *time.Timer // runs publishEntries when values changed
	waiting   bool        // the timer is set
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
		name: c.Name, meta: bytes.Clone(c.Meta), log: c.Log,
		live:      map[string]Member{},
		shunned:   map[string]netip.AddrPort{},
		table:     newTable(c.Name, uint64(time.Now().UnixNano())),
		conflicts: map[string]bool{},
	}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	g.timer = time.AfterFunc(time.Hour, g.publishEntries)
	g.timer.Stop()

	g.refuse = func(name string) bool { return c.Refuse != nil && name != c.Name && c.Refuse(name) }
	err := g.keys.set(c.Key, c.OtherKeys)
	if err != nil {
		return nil, fmt.Errorf("open gossip: %w", err)
	}
	if g.transport, err = openTransport(c, g.refuse, &g.counters); err != nil {
		return nil, fmt.Errorf("open gossip: %w", err)
	}
	mc := memberlist.DefaultWANConfig()
	mc.Name, mc.Label, mc.Keyring, mc.Transport = c.Name, c.Label, &g.keys.ring, g.transport
	mc.ProbeInterval, mc.ProbeTimeout, mc.IndirectChecks = probeInterval, probeTimeout, indirectChecks
	mc.SuspicionMult, mc.SuspicionMaxTimeoutMult, mc.AwarenessMaxMultiplier = suspicionMult, suspicionMax, awarenessMax
	mc.GossipInterval, mc.GossipNodes, mc.RetransmitMult = gossipInterval, gossipNodes, retransmitMult
	mc.PushPullInterval, mc.TCPTimeout = pushPullInterval, streamTimeout
	mc.GossipToTheDeadTime, mc.DeadNodeReclaimTime = gossipToTheDead, reclaimAfter
	mc.UDPBufferSize, mc.EnableCompression = packetSize, false
	mc.Delegate, mc.Events, mc.Conflict, mc.Alive = delegate{g}, delegate{g}, delegate{g}, delegate{g}
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

// SetKeys makes primary the key by which this node encrypts, and reads by it and others. It takes effect with
// the next packet. So that no packet is lost, a key is given to all nodes as one of others before any uses it,
// and stays one until all have another. An error leaves the keys as they were.
func (g *Gossip) SetKeys(primary []byte, others [][]byte) error {
	if err := g.keys.set(primary, others); err != nil {
		return fmt.Errorf("set gossip keys: %w", err)
	}
	return nil
}

// Check asks Config.Refuse about all that is known: members that are refused now, and what they said, are gone when it
// returns; those that are refused no more are members again if they still answer.
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
	if g.table.drop(g.refuse) {
		g.entries.Set(g.table.snapshot(g.isLive))
	}
	if g.publishMembers() {
		g.changed() // those that are members again
	}
}

// Addr is where the others reach this node.
func (g *Gossip) Addr() netip.AddrPort { return g.transport.advertise }

// Members is the live nodes, this one included, ordered by name.
func (g *Gossip) Members() *latest.Value[[]Member] { return &g.members }

// Entries is what the live nodes publish, this one included. It is published anew soon after a change, once
// for many.
func (g *Gossip) Entries() *latest.Value[Entries] { return &g.entries }

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

// Publish makes value this node's newest for key, nil removes it. The value is copied. What is the same as
// before is not sent again.
func (g *Gossip) Publish(key string, value []byte) error {
	switch {
	case key == "" || len(key) > MaxKey:
		return fmt.Errorf("publish %q: key has %d bytes, want 1 to %d", key, len(key), MaxKey)
	case len(value) > MaxValue:
		return fmt.Errorf("publish %q: value has %d bytes, want at most %d", key, len(value), MaxValue)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return ErrClosed
	}
	r, changed, err := g.table.publish(key, value, time.Now())
	if err != nil {
		return fmt.Errorf("publish %q: %w", key, err)
	}
	if changed {
		g.spread(r)
		g.changed()
	}
	return nil
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

// spread queues a record for the others. g.mu is held.
func (g *Gossip) spread(r record) {
	g.queue.put(r.node+"\x00"+r.key, encodeMessage(r))
}

// changed sees to it that Entries is published soon. g.mu is held.
func (g *Gossip) changed() {
	if !g.waiting && !g.closed {
		g.waiting = true
		g.timer.Reset(coalesce)
	}
}

func (g *Gossip) publishEntries() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return
	}
	g.waiting = false
	g.entries.Set(g.table.snapshot(g.isLive))
}

// publishMembers publishes who is there, if that has changed. g.mu is held.
func (g *Gossip) publishMembers() (changed bool) {
	g.nodes.Store(int64(len(g.live)))
	g.transport.shun(g.shunnedAddrs())
	members := make([]Member, 0, len(g.live))
	for name, m := range g.live {
		if !g.refuse(name) {
			members = append(members, m)
		}
	}
	slices.SortFunc(members, func(a, b Member) int { return cmp.Compare(a.Name, b.Name) })
	if slices.EqualFunc(members, g.members.Get(), Member.equal) {
		return false
	}
	g.members.Set(members)
	return true
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
