// Package anycast attracts traffic to this node's anycast addresses, or stops attracting it, by announcing them to the
// routers beside it with BGP-4. It is a speaker that only announces, and Wanted, the pure decision what to announce.
//
// It implements RFC 4271 as far as a speaker goes that dials and has one path for each prefix, IPv6 by RFC 4760, AS
// numbers of four octets (RFC 6793), the capabilities of RFC 5492, route refresh (RFC 2918), graceful shutdown (RFC
// 8326) and the reason of a shutdown as text (RFC 9003). It is no router: it listens nowhere, takes no route from a
// neighbour and looks at none, has no best path, and changes no route and no address of this machine. It announces no
// graceful restart (RFC 4724), since a process that is gone forwards nothing. It signs no segments (RFC 2385, RFC 5925):
// whoever needs that sets it on the socket, in Config.Dial.
//
// When things break: a neighbour that is lost is dialled again, the first time at once, then after 1 s … 30 s, and told
// all that is announced then; the neighbours know nothing of each other. A process that dies takes its sessions, and so
// its routes, with it; a machine that vanishes does so after the hold time. A route that a neighbour cannot be told (a
// family that it does not take, no next hop of the family) is counted and left out, and hinders no other.
package anycast

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/cluster/latest"
)

const (
	// MaxNeighbors bounds Config.Neighbors; with more Open fails.
	MaxNeighbors = 16
	// MaxPrefixes bounds what is announced. Of more the first by address are announced, so that all nodes leave out the
	// same, and the rest is counted.
	MaxPrefixes = 1000
	// MaxCommunities bounds Route.Communities; a route with more is not announced, and counted.
	MaxCommunities = 32

	// DefaultPort is BGP's (RFC 4271, section 8).
	DefaultPort = 179
	// DefaultHoldTime is how long a neighbour may be silent if nothing else is said. RFC 4271 suggests 90 s; a node's
	// traffic goes nowhere for as long as that if its machine vanishes.
	DefaultHoldTime = 9 * time.Second
	// MinHoldTime is the least that RFC 4271, section 4.2, allows, 0 apart.
	MinHoldTime = 3 * time.Second
)

// transAS stands for an AS number that needs four octets where there are two (RFC 6793, section 9).
const transAS = 23456

// Neighbor is a router that is told what is announced.
type Neighbor struct {
	Address  netip.Addr
	Port     uint16        // 0: DefaultPort
	AS       uint32        // the speaker's own: the session is internal (iBGP)
	HoldTime time.Duration // whole seconds, MinHoldTime … 65,535 s; 0: DefaultHoldTime. The less of ours and the neighbour's counts
}

func (n Neighbor) endpoint() string {
	return net.JoinHostPort(n.Address.String(), strconv.Itoa(int(n.Port)))
}

// Config is what a Speaker is given.
type Config struct {
	AS        uint32     // this node's autonomous system: 1 … 4294967294, not 23456 (RFC 6793) or 65535 (RFC 7300)
	RouterID  netip.Addr // IPv4, not 0.0.0.0; unique in the AS (RFC 6286). It need not be an address of this node
	NextHop4  netip.Addr // where neighbours send what is for IPv4 prefixes, for sessions over IPv6; zero: such sessions have none
	NextHop6  netip.Addr // the same for IPv6 prefixes, for sessions over IPv4
	Neighbors []Neighbor
	// Dial connects to a neighbour, network "tcp". The address it connects from is the next hop of the session's family.
	// nil: net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	Log  *slog.Logger // nil: none
}

// State is how far a session has come (RFC 4271, section 8.2.2; active is left out, for this side always dials).
type State string

// The states of a session.
const (
	Idle        State = "idle"        // waits to dial again, or the speaker is closed
	Connect     State = "connect"     // dials
	OpenSent    State = "opensent"    // waits for the neighbour's OPEN
	OpenConfirm State = "openconfirm" // waits for its agreement
	Established State = "established" // the neighbour knows what is announced
)

// Session is what there is between this node and one neighbour at one moment.
type Session struct {
	Neighbor  Neighbor
	State     State
	Since     time.Time // when it came into that state
	Sent      int       // prefixes the neighbour was told of; 0 unless established
	Unsent    int       // prefixes that are announced, but that this neighbour cannot be told: a family it does not take, no next hop
	LastError string    // why the last session or attempt ended; empty: none has. It stays when the next one is established
}

// Uptime is how long the session has been established; 0 if it is not.
func (s Session) Uptime(now time.Time) time.Duration {
	if s.State != Established {
		return 0
	}
	return now.Sub(s.Since)
}

// Speaker keeps a session with each neighbour and tells them what is announced. All its methods may be called at once.
type Speaker struct {
	config   Config
	wanted   atomic.Pointer[table]
	peers    []*peer
	sessions latest.Value[[]Session] // in the order of Config.Neighbors
	count    counters

	end    context.CancelCauseFunc
	ended  sync.WaitGroup
	closed sync.Once
	mu     sync.Mutex // orders Announce, so that the last one stays
}

// Open makes a speaker that announces nothing yet, and begins to dial its neighbours. The error names all that is wrong
// with the config.
func Open(c Config) (*Speaker, error) {
	c, err := complete(c)
	if err != nil {
		return nil, err
	}
	ctx, end := context.WithCancelCause(context.Background())
	s := &Speaker{config: c, end: end}
	s.wanted.Store(&table{})
	now := time.Now()
	sessions := make([]Session, len(c.Neighbors))
	for i, n := range c.Neighbors {
		sessions[i] = Session{Neighbor: n, State: Idle, Since: now}
		s.peers = append(s.peers, &peer{Speaker: s, index: i, neighbor: n, changed: make(chan struct{}, 1), log: c.Log.With("neighbor", n.Address, "as", n.AS)})
	}
	s.sessions.Set(sessions)
	for _, p := range s.peers {
		s.ended.Go(func() { p.run(ctx) })
	}
	return s, nil
}

// complete fills in the defaults, and says all that is wrong.
func complete(c Config) (Config, error) {
	var faults []error
	wrong := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if why := unusable(c.AS); why != "" {
		wrong("as %d: %s", c.AS, why)
	}
	c.RouterID = c.RouterID.Unmap()
	if !c.RouterID.Is4() || c.RouterID.IsUnspecified() {
		wrong("router id %v: not an IPv4 address, or zero", c.RouterID)
	}
	c.NextHop4, c.NextHop6 = c.NextHop4.Unmap(), c.NextHop6.Unmap()
	if c.NextHop4.IsValid() && !c.NextHop4.Is4() {
		wrong("next hop %v: not an IPv4 address", c.NextHop4)
	}
	if c.NextHop6.IsValid() && !c.NextHop6.Is6() {
		wrong("next hop %v: not an IPv6 address", c.NextHop6)
	}
	if len(c.Neighbors) > MaxNeighbors {
		wrong("%d neighbours: at most %d", len(c.Neighbors), MaxNeighbors)
	}
	seen := map[string]bool{}
	c.Neighbors = slices.Clone(c.Neighbors)
	for i := range c.Neighbors {
		n := &c.Neighbors[i]
		n.Address, n.Port, n.HoldTime = n.Address.Unmap(), cmp.Or(n.Port, DefaultPort), cmp.Or(n.HoldTime, DefaultHoldTime)
		if !n.Address.IsValid() || n.Address.IsUnspecified() || n.Address.IsMulticast() {
			wrong("neighbour %d: %v is not the address of a router", i+1, n.Address)
			continue
		}
		if seen[n.endpoint()] {
			wrong("neighbour %v: given twice", n.endpoint())
		}
		seen[n.endpoint()] = true
		if why := unusable(n.AS); why != "" {
			wrong("neighbour %v: as %d: %s", n.Address, n.AS, why)
		}
		if n.HoldTime < MinHoldTime || n.HoldTime > math.MaxUint16*time.Second || n.HoldTime%time.Second != 0 {
			wrong("neighbour %v: hold time %v: not whole seconds between %v and %d s", n.Address, n.HoldTime, MinHoldTime, math.MaxUint16)
		}
	}
	if c.Dial == nil {
		c.Dial = new(net.Dialer).DialContext
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if err := errors.Join(faults...); err != nil {
		return c, fmt.Errorf("anycast: %w", err)
	}
	return c, nil
}

// unusable is why an AS number is nobody's; empty: it may be somebody's.
func unusable(as uint32) string {
	switch as {
	case 0:
		return "it must be given"
	case transAS, math.MaxUint16, math.MaxUint32:
		return "it is reserved"
	}
	return ""
}

// Announce replaces what is announced; what it was before does not matter. Neighbours are told the differences at once:
// what is gone, what is new, and what has other attributes. Of a prefix given twice the first counts. A route that cannot
// be announced (not valid, of mixed families, too many communities, one more than MaxPrefixes) is left out and counted.
func (s *Speaker) Announce(routes []Route) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := compile(routes)
	if next.equal(s.wanted.Load()) {
		return
	}
	if n := len(next.refused); n > 0 {
		s.count.refused.Add(uint64(n))
		s.config.Log.Warn("routes are not announced", "routes", n, "first", next.refused[0])
	}
	s.wanted.Store(next)
	for _, p := range s.peers {
		p.wake()
	}
}

// Sessions is the state of the sessions, in the order of Config.Neighbors, published anew whenever one changes.
func (s *Speaker) Sessions() *latest.Value[[]Session] { return &s.sessions }

// Close ends all sessions, which withdraws all that was announced, and tells the neighbours the reason, of which they get
// at most 255 bytes (RFC 9003). It waits until they have hung up, or some seconds if they do not. Closing twice is fine.
func (s *Speaker) Close(reason string) error {
	s.closed.Do(func() { s.end(shutdown(reason)) })
	s.ended.Wait()
	return nil
}

type counters struct {
	dials, dialsFailed, established, lost atomic.Uint64
	messagesIn, messagesOut               atomic.Uint64
	announced, withdrawn, refused         atomic.Uint64
	ignored, refreshes                    atomic.Uint64
	malformed, refusedOpens, holdExpired  atomic.Uint64
	notifiedIn, notifiedOut               atomic.Uint64
}

// Counters are the speaker's counts since it was opened, and how many sessions and routes it has now.
func (s *Speaker) Counters() map[string]uint64 {
	established := uint64(0)
	for _, session := range s.sessions.Get() {
		if session.State == Established {
			established++
		}
	}
	return map[string]uint64{
		"anycast_routes":                       uint64(len(s.wanted.Load().paths)), // that are announced
		"anycast_routes_refused_total":         s.count.refused.Load(),             // that cannot be announced
		"anycast_sessions":                     established,
		"anycast_sessions_established_total":   s.count.established.Load(),
		"anycast_sessions_lost_total":          s.count.lost.Load(), // that were established
		"anycast_dials_total":                  s.count.dials.Load(),
		"anycast_dials_failed_total":           s.count.dialsFailed.Load(),
		"anycast_messages_received_total":      s.count.messagesIn.Load(),
		"anycast_messages_sent_total":          s.count.messagesOut.Load(),
		"anycast_prefixes_announced_total":     s.count.announced.Load(), // to any neighbour
		"anycast_prefixes_withdrawn_total":     s.count.withdrawn.Load(),
		"anycast_updates_ignored_total":        s.count.ignored.Load(), // what neighbours announced
		"anycast_refreshes_total":              s.count.refreshes.Load(),
		"anycast_malformed_total":              s.count.malformed.Load(),    // messages that broke the protocol, and their session
		"anycast_opens_refused_total":          s.count.refusedOpens.Load(), // another AS, a bad identifier, too short a hold time …
		"anycast_hold_expired_total":           s.count.holdExpired.Load(),
		"anycast_notifications_received_total": s.count.notifiedIn.Load(),
		"anycast_notifications_sent_total":     s.count.notifiedOut.Load(),
	}
}
