// Package memnet is an in-memory internet for tests in virtual time (testing/synctest): machines at places of
// the earth, streams and datagrams between them with delay, jitter, loss and rate, anycast, and the ways in
// which it all breaks. Listen, ListenPacket and Dial have the signatures of the seams that everything here
// takes, so raft, memberlist, QUIC, HTTP and DNS run over it unchanged, and a day of it takes no longer than
// the work that is done in that day.
//
//	synctest.Test(t, func(t *testing.T) {
//		in := memnet.New(1)
//		t.Cleanup(in.Close) // last of all: cleanups run backwards
//		origin := in.Host("origin", tokyo, netip.MustParseAddr("192.0.2.1"))
//		client := in.Host("client", seoul, netip.MustParseAddr("192.0.2.2"))
//		l, err := origin.Listen("tcp", ":80")
//		…
//		c, err := client.Dial(t.Context(), "tcp", "192.0.2.1:80") // one round trip later
//		in.Cut("origin", "client")                               // silence
//	})
//
// # The model
//
// A packet takes half the round trip that spec.Location.RoundTrip estimates between the places of two hosts,
// at least Floor, and Loopback within a host; Link and Slow change it. Whether it passes is judged when it is
// sent and again when it would arrive: nothing arrives after a cut.
//
// A stream (tcp) is reliable and in order. Dial takes one round trip, and Accept returns half a round trip
// later, when the three-way handshake ends. A SYN that is not answered is repeated as Linux does it; a dial
// whose context does not end before ends with ETIMEDOUT after 127 s. At most Window bytes of each direction
// are on their way or unread, then Write waits. Loss costs no bytes: it delays what was lost, and so what is
// behind it, by Retransmit or a round trip, whichever is more. A stream across a cut stands still, and goes
// on that much after the cut has healed. Close sends a FIN behind the data, or a reset if received data is
// unread, as Linux does. Data that reaches a closed end is answered with a reset; after a reset, reads give
// what had arrived and then fail with ECONNRESET, as writes do at once. Beside what net.Conn asks for a
// stream has CloseWrite, and SetLinger, which with 0 makes Close a reset.
//
// A datagram (udp) may be lost, arrive twice, or be overtaken by another if there is jitter. It is dropped in silence if it
// makes a packet larger than its way's MTU, if its way is cut, if the queue of a link with a rate or of the socket is
// full, and if nobody listens; Counters tells them apart.
//
// Addresses are those of package net. A socket on a dual-stack wildcard sees IPv4 in 16 bytes, as it does
// with the kernel, and every host has the loopback addresses to itself.
//
// # What it is not
//
// There is no congestion control and no packet-level TCP: no slow start, no acknowledgements that are lost,
// no flow that makes way for another. So delay and order are true, and throughput is only a Window per round
// trip, or the Rate of a link, whose queue streams fill as far as their windows go. There is no ICMP: a
// datagram to a closed port gets no answer. There is no keep-alive: a stream outlasts any silence, and who
// must notice a silent peer needs a time-out of its own. Routes follow Announce, Withdraw, Kill and Crash at
// once, and nothing else: a cut does not move them.
//
// # Promises
//
// Whatever waits here waits on a sync.Cond, a channel or a timer, and holds no lock, so a bubble becomes
// idle. What is due at one instant happens in the order in which it was sent. Chance is drawn for each flow
// (protocol, source, destination) by itself from the seed, so that one seed, and one order of sending in each
// flow, give one run, however goroutines interleave. There is no goroutine between packets; but what waits
// here for something that never comes keeps its bubble from ending, so every world ends with Internet.Close,
// which wakes it.
package memnet

import (
	"container/heap"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
)

// Internet is all hosts and what is between them. Its methods may be called from any goroutine of the
// bubble in which it was made.
type Internet struct {
	seed  uint64
	start time.Time

	mu      sync.Mutex // guards everything below and all hosts, links and sockets; never held while waiting
	hosts   []*Host
	named   map[string]*Host
	owners  map[netip.Addr]*Host
	anycast map[netip.Addr][]*Host // who announces an address
	names   map[string][]netip.Addr
	events  events
	timer   *time.Timer // runs deliver when the first event is due
	order   uint64      // of sends
	counts  [counters]uint64
	closed  bool
}

// New makes an internet without hosts. Under testing/synctest it must be made inside the bubble.
func New(seed uint64) *Internet {
	in := &Internet{
		seed:    seed,
		start:   time.Now(),
		named:   map[string]*Host{},
		owners:  map[netip.Addr]*Host{},
		anycast: map[netip.Addr][]*Host{},
		names:   map[string][]netip.Addr{},
	}
	in.timer = time.AfterFunc(time.Hour, in.deliver)
	in.timer.Stop()
	return in
}

// Close ends the internet: everything that waits in it, and everything called afterwards, fails with
// net.ErrClosed. It leaves no goroutine and no timer behind.
func (in *Internet) Close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.closed = true
	in.events = nil
	in.timer.Stop()
	for _, h := range in.hosts {
		h.closeSockets((*stream).end)
	}
}

// Host adds a machine with addresses of its own. A name or an address given twice is a mistake in the
// test and panics.
func (in *Internet) Host(name string, place spec.Location, addrs ...netip.Addr) *Host {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.named[name] != nil {
		panic(fmt.Sprintf("memnet: there is a host %q already", name))
	}
	h := &Host{
		in: in, name: name, place: place, rank: len(in.hosts), addrs: addrs,
		links:   map[*Host]*link{},
		tcp:     ports[*listener]{},
		udp:     ports[*packetConn]{},
		streams: map[*stream]bool{},
		dialled: map[uint16]bool{},
	}
	for _, a := range addrs {
		if owner := in.owners[a]; owner != nil || len(in.anycast[a]) > 0 {
			panic(fmt.Sprintf("memnet: address %v of host %q is taken", a, name))
		}
		in.owners[a] = h
	}
	in.hosts = append(in.hosts, h)
	in.named[name] = h
	return h
}

// Name lets every host dial a name; a lookup takes no time and gives the first address of the family asked
// for. Names that are not given do not exist, but for localhost.
func (in *Internet) Name(name string, addrs ...netip.Addr) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.names[canonical(name)] = addrs
}

func canonical(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// Counters counts what was sent and what became of it, since New.
func (in *Internet) Counters() map[string]uint64 {
	in.mu.Lock()
	defer in.mu.Unlock()
	all := make(map[string]uint64, counters)
	for i, n := range in.counts {
		all[counterNames[i]] = n
	}
	return all
}

type counter int

const (
	dials counter = iota
	dialsRefused
	dialsDropped
	streamBytes
	streamRetransmits
	datagrams
	datagramsDelivered
	datagramsLost
	datagramsDuplicated
	datagramsCut
	datagramsTooLarge
	datagramsQueueFull
	datagramsSocketFull
	datagramsUnroutable
	datagramsUnheard
	counters
)

var counterNames = [counters]string{
	dials:               "dials_total",
	dialsRefused:        "dials_refused_total",
	dialsDropped:        "dials_backlog_full_total",
	streamBytes:         "stream_bytes_total",
	streamRetransmits:   "stream_retransmits_total",
	datagrams:           "datagrams_total",
	datagramsDelivered:  "datagrams_delivered_total",
	datagramsLost:       "datagrams_lost_total",
	datagramsDuplicated: "datagrams_duplicated_total",
	datagramsCut:        "datagrams_cut_total",
	datagramsTooLarge:   "datagrams_too_large_total",
	datagramsQueueFull:  "datagrams_link_queue_full_total",
	datagramsSocketFull: "datagrams_socket_queue_full_total",
	datagramsUnroutable: "datagrams_unroutable_total",
	datagramsUnheard:    "datagrams_nobody_listens_total",
}

// route is the host that a packet from a host to an address goes to; nil: there is none. Of the hosts that
// announce an anycast address the nearest by delay takes it, of equals the one that was added first; neither
// cuts nor Slow move a route.
func (in *Internet) route(from *Host, to netip.Addr) *Host {
	if to.IsLoopback() {
		return from
	}
	if owner := in.owners[to]; owner != nil {
		return owner
	}
	var nearest *Host
	for _, h := range in.anycast[to] {
		if nearest == nil || from.link(h).delay() < from.link(nearest).delay() ||
			from.link(h).delay() == from.link(nearest).delay() && h.rank < nearest.rank {
			nearest = h
		}
	}
	return nearest
}

// chance is the source of chance of one flow.
func (in *Internet) chance(protocol string, from, to netip.AddrPort) *rand.Rand {
	h := fnv.New64a()
	fmt.Fprint(h, protocol, from, to)
	return rand.New(rand.NewPCG(in.seed, h.Sum64()))
}

// An event is something due. Of events due at the same time the one with the lower order comes first.
type event struct {
	due   time.Duration // since start
	order uint64
	do    func() // called with mu held
}

func (in *Internet) now() time.Duration { return time.Since(in.start) }

func (in *Internet) nextOrder() uint64 {
	in.order++
	return in.order
}

// at does something at a time, behind what was sent before and is due then.
func (in *Internet) at(due time.Duration, do func()) {
	in.schedule(&event{due: due, order: in.nextOrder(), do: do})
}

func (in *Internet) schedule(e *event) {
	if in.closed {
		return
	}
	heap.Push(&in.events, e)
	if in.events[0] != e {
		return
	}
	if left := e.due - in.now(); left > 0 {
		in.timer.Reset(left)
	} else {
		// A timer of a bubble that is due already would run within Reset, on this goroutine, which the race
		// detector of go1.26 does not always survive.
		go in.deliver()
	}
}

// deliver does what is due. The timer calls it.
func (in *Internet) deliver() {
	in.mu.Lock()
	defer in.mu.Unlock()
	for len(in.events) > 0 && in.events[0].due <= in.now() {
		heap.Pop(&in.events).(*event).do()
	}
	if len(in.events) > 0 {
		in.timer.Reset(in.events[0].due - in.now())
	}
}

type events []*event

func (q events) Len() int { return len(q) }
func (q events) Less(i, j int) bool {
	return q[i].due < q[j].due || q[i].due == q[j].due && q[i].order < q[j].order
}
func (q events) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *events) Push(e any)   { *q = append(*q, e.(*event)) }
func (q *events) Pop() any {
	old := *q
	last := len(old) - 1
	e := old[last]
	old[last] = nil
	*q = old[:last]
	return e
}
