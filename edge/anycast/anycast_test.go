package anycast

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"go.uber.org/goleak"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/testbed/memnet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	node4, router4, other4 = netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.3")
	node6, router6         = netip.MustParseAddr("fd00::2"), netip.MustParseAddr("fd00::1")
)

const routerAS, nodeAS = 64500, 64512

// site is a node and two routers, side by side.
type site struct {
	*testing.T
	in                  *memnet.Internet
	node, router, other *memnet.Host
	speaker             *Speaker
}

// world runs a test in virtual time.
func world(t *testing.T, test func(t *testing.T, s site)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		in := memnet.New(1)
		t.Cleanup(in.Close)
		at := spec.Location{Latitude: 37.5, Longitude: 127}
		test(t, site{T: t, in: in, node: in.Host("node", at, node4, node6), router: in.Host("router", at, router4, router6), other: in.Host("other", at, other4)})
	})
}

// speak opens the node's speaker, with the first router as its neighbour unless the change says otherwise.
func (s site) speak(change func(*Config)) *Speaker {
	s.Helper()
	c := Config{AS: nodeAS, RouterID: node4, Dial: s.node.Dial, NextHop6: node6, Neighbors: []Neighbor{{Address: router4, AS: routerAS}}}
	if change != nil {
		change(&c)
	}
	speaker, err := Open(c)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { speaker.Close("test ends") })
	return speaker
}

func (s site) listen(h *memnet.Host, network string) net.Listener {
	s.Helper()
	l, err := h.Listen(network, ":179")
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { l.Close() })
	return l
}

// router is the far end of one connection, as the test plays it.
type router struct {
	site
	conn   net.Conn
	reader reader
	open   *bgp.BGPOpen // what the node said

	mu         sync.Mutex
	rib        rib
	updates    int
	keepalives []time.Time
	notified   *bgp.BGPNotification
	ended      error
	wrong      error
}

func (s site) accept(l net.Listener) *router {
	s.Helper()
	conn, err := l.Accept()
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { conn.Close() })
	return &router{site: s, conn: conn, reader: reader{from: conn}, rib: rib{}}
}

func (r *router) write(messages ...[]byte) {
	r.Helper()
	if _, err := r.conn.Write(slices.Concat(messages...)); err != nil {
		r.Fatal(err)
	}
}

// next is the next message of the node, which must come.
func (r *router) next() bgp.BGPBody {
	r.Helper()
	kind, body, err := r.reader.next()
	if err != nil {
		r.Fatal(err)
	}
	parsed, err := bgp.ParseBGPMessage(append(header(len(body)+headerLen, kind), body...))
	if err != nil {
		r.Fatal(err)
	}
	return parsed.Body
}

// greet takes the node's OPEN, and answers it.
func (r *router) greet(answer said) {
	r.Helper()
	open, ok := r.next().(*bgp.BGPOpen)
	if !ok {
		r.Fatal("the node's first message is no OPEN")
	}
	r.open = open
	r.write(answer.message())
}

func usual() said {
	return said{as: routerAS, hold: 90, id: "10.0.0.1", caps: families(bgp.RF_IPv4_UC, bgp.RF_IPv6_UC)}
}

// establish comes to an agreement with the node, and learns from then on what it announces.
func (r *router) establish(answer said) *router {
	r.Helper()
	r.greet(answer)
	if _, ok := r.next().(*bgp.BGPKeepAlive); !ok {
		r.Fatal("the node does not agree")
	}
	r.write(keepalive())
	go r.learn()
	r.live()
	return r
}

// live waits until the node has nothing more to say at this time.
func (r *router) live() {
	time.Sleep(50 * time.Millisecond)
	synctest.Wait()
}

func (r *router) learn() {
	for {
		kind, body, err := r.reader.next()
		r.mu.Lock()
		if err != nil {
			r.ended = err
			r.mu.Unlock()
			return
		}
		parsed, err := bgp.ParseBGPMessage(append(header(len(body)+headerLen, kind), body...))
		switch m := parsed.Body.(type) {
		case *bgp.BGPUpdate:
			r.updates++
			err = errors.Join(err, r.rib.apply(m))
		case *bgp.BGPKeepAlive:
			r.keepalives = append(r.keepalives, time.Now())
		case *bgp.BGPNotification:
			r.notified = m
		}
		r.wrong = errors.Join(r.wrong, err)
		r.mu.Unlock()
	}
}

// beat keeps the session alive from the router's side.
func (r *router) beat(ctx context.Context) {
	go func() {
		for ctx.Err() == nil {
			if _, err := r.conn.Write(keepalive()); err != nil {
				return
			}
			select {
			case <-time.After(2 * time.Second):
			case <-ctx.Done():
			}
		}
	}()
}

// knows says what the router knows, as text: prefix, next hop and whether others are to be preferred.
func (r *router) knows() string {
	r.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.wrong != nil {
		r.Fatal(r.wrong)
	}
	var lines []string
	for prefix, h := range r.rib {
		line := fmt.Sprintf("%v via %v", prefix, h.NextHop)
		if slices.Contains(h.Communities, GracefulShutdown) {
			line += " graceful"
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return strings.Join(lines, ", ")
}

func (r *router) want(knows string) {
	r.Helper()
	if got := r.knows(); got != knows {
		r.Fatalf("the router knows %q, want %q", got, knows)
	}
}

// refused takes the NOTIFICATION that the node ends the session with, and waits for its end.
func (r *router) refused() *bgp.BGPNotification {
	r.Helper()
	for {
		if n, ok := r.next().(*bgp.BGPNotification); ok {
			if _, _, err := r.reader.next(); err != io.EOF {
				r.Fatalf("after its NOTIFICATION the node sends %v", err)
			}
			r.conn.Close()
			return n
		}
	}
}

func only(t *testing.T, s *Speaker) Session {
	t.Helper()
	all := s.Sessions().Get()
	if len(all) != 1 {
		t.Fatalf("%d sessions", len(all))
	}
	return all[0]
}

// until waits for a session to be as asked.
func until(t *testing.T, s *Speaker, index int, is func(Session) bool) Session {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	for version := uint64(0); ; {
		all, v, err := s.Sessions().Next(ctx, version)
		if err != nil {
			t.Fatalf("it never came: the session is %+v", s.Sessions().Get()[index])
		}
		if version = v; is(all[index]) {
			return all[index]
		}
	}
}

func in(state State) func(Session) bool { return func(s Session) bool { return s.State == state } }

func TestRoutesComeChangeAndGo(t *testing.T) {
	world(t, func(t *testing.T, s site) {
		l := s.listen(s.router, "tcp4")
		speaker := s.speak(nil)
		speaker.Announce([]Route{route("198.51.100.7/32"), route("2001:db8::7/128")})
		r := s.accept(l).establish(usual())
		r.want("198.51.100.7/32 via 10.0.0.2, 2001:db8::7/128 via fd00::2")
		if got := only(t, speaker); got.State != Established || got.Sent != 2 || got.Unsent != 0 || got.LastError != "" {
			t.Fatalf("the session is %+v", got)
		}

		began := time.Now()
		speaker.Announce([]Route{{Prefix: netip.MustParsePrefix("198.51.100.7/32"), GracefulShutdown: true}, route("198.51.100.8/32")})
		r.live()
		r.want("198.51.100.7/32 via 10.0.0.2 graceful, 198.51.100.8/32 via 10.0.0.2")
		if r.updates != 5 { // two at first, then a withdrawal, a change and a new one
			t.Errorf("%d updates", r.updates)
		}
		for range 3 {
			speaker.Announce([]Route{route("198.51.100.8/32"), {Prefix: netip.MustParsePrefix("198.51.100.7/32"), GracefulShutdown: true}})
		}
		r.live()
		if r.updates != 5 {
			t.Errorf("%d updates after what changes nothing", r.updates)
		}
		speaker.Announce(nil)
		r.live()
		r.want("")
		if took := time.Since(began); took > time.Second {
			t.Errorf("three changes took %v: they wait for something", took)
		}
		counts := speaker.Counters()
		for name, want := range map[string]uint64{"anycast_prefixes_announced_total": 4, "anycast_prefixes_withdrawn_total": 3, "anycast_sessions": 1, "anycast_routes": 0, "anycast_malformed_total": 0} {
			if counts[name] != want {
				t.Errorf("%s is %d, want %d", name, counts[name], want)
			}
		}
	})
}

func TestTheNodeSaysWhatItCanDo(t *testing.T) {
	world(t, func(t *testing.T, s site) {
		l := s.listen(s.router, "tcp4")
		s.speak(func(c *Config) { c.AS = 4_200_000_000; c.Neighbors[0].HoldTime = 30 * time.Second })
		r := s.accept(l)
		r.greet(usual())
		said := readOpen(r.open)
		if said.as != 4_200_000_000 || r.open.MyAS != transAS || r.open.HoldTime != 30 || r.open.ID != node4 || !said.v4 || !said.v6 || !said.fourOctets {
			t.Errorf("the node's OPEN is %+v, %+v", r.open, said)
		}
		for _, c := range r.open.OptParams[0].(*bgp.OptionParameterCapability).Capability {
			if c.Code() == bgp.BGP_CAP_GRACEFUL_RESTART || c.Code() == bgp.BGP_CAP_LONG_LIVED_GRACEFUL_RESTART {
				t.Error("it claims to go on forwarding while it restarts")
			}
		}
	})
}

func TestASessionOverIPv6TellsIPv6AndIPv4WhereItHasANextHop(t *testing.T) {
	for name, next4 := range map[string]netip.Addr{"with": node4, "without": {}} {
		t.Run(name, func(t *testing.T) {
			world(t, func(t *testing.T, s site) {
				l := s.listen(s.router, "tcp6")
				speaker := s.speak(func(c *Config) {
					c.Neighbors[0].Address, c.NextHop4, c.NextHop6 = router6, next4, netip.Addr{}
				})
				speaker.Announce([]Route{route("198.51.100.7/32"), route("2001:db8::7/128")})
				r := s.accept(l).establish(usual())
				want, unsent := "198.51.100.7/32 via 10.0.0.2, 2001:db8::7/128 via fd00::2", 0
				if !next4.IsValid() {
					want, unsent = "2001:db8::7/128 via fd00::2", 1
				}
				r.want(want)
				if got := only(t, speaker); got.Unsent != unsent {
					t.Errorf("%d unsent, want %d", got.Unsent, unsent)
				}
			})
		})
	}
}

func TestNeighboursKnowNothingOfEachOther(t *testing.T) {
	world(t, func(t *testing.T, s site) {
		first, second := s.listen(s.router, "tcp4"), s.listen(s.other, "tcp4")
		speaker := s.speak(func(c *Config) { c.Neighbors = append(c.Neighbors, Neighbor{Address: other4, AS: nodeAS}) })
		speaker.Announce([]Route{route("198.51.100.7/32"), route("2001:db8::7/128")})
		a := s.accept(first).establish(usual())
		b := s.accept(second).establish(said{as: nodeAS, hold: 90, id: "10.0.0.3"})
		a.beat(t.Context())
		b.beat(t.Context())
		a.want("198.51.100.7/32 via 10.0.0.2, 2001:db8::7/128 via fd00::2")
		b.want("198.51.100.7/32 via 10.0.0.2") // it named no family
		b.conn.Close()
		until(t, speaker, 1, func(s Session) bool { return s.State != Established })
		speaker.Announce([]Route{route("198.51.100.9/32")})
		a.live()
		a.want("198.51.100.9/32 via 10.0.0.2")
		b = s.accept(second).establish(said{as: nodeAS, hold: 90, id: "10.0.0.3"})
		b.want("198.51.100.9/32 via 10.0.0.2")
		if h := b.rib[netip.MustParsePrefix("198.51.100.9/32")]; h.LocalPref != 100 || len(h.ASPath) != 0 {
			t.Errorf("a router of the own AS is told %+v", h)
		}
	})
}

func TestBothSidesKeepASessionAlive(t *testing.T) {
	world(t, func(t *testing.T, s site) {
		l := s.listen(s.router, "tcp4")
		speaker := s.speak(nil)
		r := s.accept(l).establish(said{as: routerAS, hold: 6, id: "10.0.0.1"})
		r.beat(t.Context())
		time.Sleep(10 * time.Minute)
		if got := only(t, speaker); got.State != Established || got.Uptime(time.Now()) < 10*time.Minute {
			t.Fatalf("the session is %+v", got)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		for i := 1; i < len(r.keepalives); i++ {
			if gap := r.keepalives[i].Sub(r.keepalives[i-1]); gap < 1900*time.Millisecond || gap > 2100*time.Millisecond {
				t.Fatalf("keepalives are %v apart, want a third of the hold time", gap)
			}
		}
		if len(r.keepalives) < 290 {
			t.Errorf("%d keepalives in 10 minutes", len(r.keepalives))
		}
	})
}

func TestASilentNeighbourIsGivenUpAfterTheHoldTime(t *testing.T) {
	world(t, func(t *testing.T, s site) {
		l := s.listen(s.router, "tcp4")
		speaker := s.speak(nil)
		r := s.accept(l).establish(usual())
		began := time.Now()
		session := until(t, speaker, 0, func(s Session) bool { return s.State != Established })
		if took := time.Since(began); took < 8*time.Second || took > 11*time.Second {
			t.Errorf("it took %v, want the hold time, and a second for the farewell", took)
		}
		if r.live(); r.notified == nil || r.notified.ErrorCode != bgp.BGP_ERROR_HOLD_TIMER_EXPIRED {
			t.Errorf("the neighbour was told %+v", r.notified)
		}
		if !strings.Contains(session.LastError, "silent for 9s") || speaker.Counters()["anycast_hold_expired_total"] != 1 {
			t.Errorf("the session is %+v", session)
		}
	})
}

func TestHalfAMessageIsSilence(t *testing.T) {
	world(t, func(t *testing.T, s site) {
		l := s.listen(s.router, "tcp4")
		speaker := s.speak(nil)
		r := s.accept(l).establish(usual())
		began := time.Now()
		drip := append(header(4000, bgp.BGP_MSG_UPDATE), make([]byte, 3981)...)
		go func() {
			for i := range drip {
				if _, err := r.conn.Write(drip[i : i+1]); err != nil {
					return
				}
				select {
				case <-time.After(time.Second):
				case <-t.Context().Done():
				}
			}
		}()
		until(t, speaker, 0, func(s Session) bool { return s.State != Established })
		if took := time.Since(began); took > 12*time.Second {
			t.Errorf("a neighbour that sends a byte a second was given up after %v", took)
		}
	})
}

// fill announces so much that the speaker waits for the neighbour to take it.
func fill(speaker *Speaker) {
	var one, two []Route // each with a message of its own, so that a window is soon full
	for i := range MaxPrefixes {
		prefix := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), 32)
		one = append(one, Route{Prefix: prefix, Communities: []uint32{uint32(i)}})
		two = append(two, Route{Prefix: prefix, Communities: []uint32{uint32(i), 1 << 31}})
	}
	for last := uint64(0); ; {
		speaker.Announce(one)
		time.Sleep(50 * time.Millisecond)
		speaker.Announce(two)
		time.Sleep(50 * time.Millisecond)
		sent := speaker.Counters()["anycast_prefixes_announced_total"]
		if sent > 0 && sent == last {
			return
		}
		last = sent
	}
}

func TestANeighbourThatTakesNothingIsGivenUp(t *testing.T) {
	world(t, func(t *testing.T, s site) {
		l := s.listen(s.router, "tcp4")
		speaker := s.speak(nil)
		r := s.accept(l)
		r.greet(usual())
		r.next()
		r.write(keepalive())
		r.beat(t.Context()) // it speaks, but reads nothing
		until(t, speaker, 0, in(Established))
		fill(speaker)
		session := until(t, speaker, 0, func(s Session) bool { return s.State == Idle })
		if session.LastError != "neighbour took nothing for 9s" {
			t.Errorf("the session is %+v", session)
		}
	})
}

func TestBothMayWriteAtOnce(t *testing.T) {
	world(t, func(t *testing.T, s site) {
		l := s.listen(s.router, "tcp4")
		speaker := s.speak(nil)
		r := s.accept(l).establish(usual())
		table := compile([]Route{route("203.0.113.0/24")})
		want, _ := terms{as: routerAS, fourOctets: true, v4: true, next4: router4}.takes(table.paths)
		theirs := external().updates(diff(nil, want))[0]
		for range 20 {
			r.write(bytes.Repeat(theirs, 1000)) // as a router with a full table does
		}
		speaker.Announce([]Route{route("198.51.100.7/32")})
		r.live()
		r.want("198.51.100.7/32 via 10.0.0.2")
		if n := speaker.Counters()["anycast_updates_ignored_total"]; n != 20_000 {
			t.Errorf("%d updates ignored", n)
		}
	})
}

func TestANeighbourThatAsksIsToldAllOfTheFamilyAnew(t *testing.T) {
	world(t, func(t *testing.T, s site) {
		l := s.listen(s.router, "tcp4")
		speaker := s.speak(nil)
		speaker.Announce([]Route{route("198.51.100.7/32"), route("2001:db8::7/128")})
		r := s.accept(l).establish(usual())
		delete(r.rib, netip.MustParsePrefix("2001:db8::7/128"))
		r.write(serialized(bgp.NewBGPRouteRefreshMessage(bgp.AFI_IP6, 0, bgp.SAFI_UNICAST)))
		r.live()
		r.want("198.51.100.7/32 via 10.0.0.2, 2001:db8::7/128 via fd00::2")
		r.write(serialized(bgp.NewBGPRouteRefreshMessage(bgp.AFI_IP, 0, bgp.SAFI_UNICAST)),
			serialized(bgp.NewBGPRouteRefreshMessage(bgp.AFI_IP, 1, bgp.SAFI_UNICAST)),   // RFC 7313: not agreed to
			serialized(bgp.NewBGPRouteRefreshMessage(bgp.AFI_IP, 0, bgp.SAFI_MULTICAST))) // nor that
		speaker.Announce([]Route{route("2001:db8::7/128")}) // gone while it is asked for
		r.live()
		r.want("2001:db8::7/128 via fd00::2")
		if r.updates > 5 { // two at first, one anew, perhaps one more anew, one withdrawal
			t.Errorf("%d updates", r.updates)
		}
	})
}

func TestWhatBreaksTheProtocolIsAnsweredWithItsError(t *testing.T) {
	badUpdate := append(header(headerLen+4, bgp.BGP_MSG_UPDATE), 0, 9, 0, 0)
	for name, c := range map[string]struct {
		send      []byte
		code, sub uint8
	}{
		"no marker":           {make([]byte, 19), bgp.BGP_ERROR_MESSAGE_HEADER_ERROR, bgp.BGP_ERROR_SUB_CONNECTION_NOT_SYNCHRONIZED},
		"too long a message":  {header(5000, bgp.BGP_MSG_UPDATE), bgp.BGP_ERROR_MESSAGE_HEADER_ERROR, bgp.BGP_ERROR_SUB_BAD_MESSAGE_LENGTH},
		"an unknown type":     {header(19, 77), bgp.BGP_ERROR_MESSAGE_HEADER_ERROR, bgp.BGP_ERROR_SUB_BAD_MESSAGE_TYPE},
		"an UPDATE that lies": {badUpdate, bgp.BGP_ERROR_UPDATE_MESSAGE_ERROR, bgp.BGP_ERROR_SUB_MALFORMED_ATTRIBUTE_LIST},
		"another OPEN":        {usual().message(), bgp.BGP_ERROR_FSM_ERROR, bgp.BGP_ERROR_SUB_RECEIVE_UNEXPECTED_MESSAGE_IN_ESTABLISHED_STATE},
	} {
		t.Run(name, func(t *testing.T) {
			world(t, func(t *testing.T, s site) {
				l := s.listen(s.router, "tcp4")
				speaker := s.speak(nil)
				r := s.accept(l).establish(usual())
				r.write(c.send)
				session := until(t, speaker, 0, func(s Session) bool { return s.State == Connect })
				if r.live(); r.notified == nil || r.notified.ErrorCode != c.code || r.notified.ErrorSubcode != c.sub {
					t.Errorf("the neighbour was told %+v, want %d/%d", r.notified, c.code, c.sub)
				}
				if speaker.Counters()["anycast_malformed_total"] != 1 || !strings.Contains(session.LastError, fmt.Sprintf("(%d/%d)", c.code, c.sub)) {
					t.Errorf("it is counted %d times; the session is %+v", speaker.Counters()["anycast_malformed_total"], session)
				}
				s.accept(l).establish(usual()) // and it comes again
			})
		})
	}
}

func TestANeighbourThatIsNotAsToldIsRefused(t *testing.T) {
	other, nobody, hasty := usual(), usual(), usual()
	other.as, nobody.id, hasty.hold = 64999, "0.0.0.0", 2
	for name, c := range map[string]struct {
		send      []byte
		code, sub uint8
		says      string
	}{
		"another AS":         {other.message(), bgp.BGP_ERROR_OPEN_MESSAGE_ERROR, bgp.BGP_ERROR_SUB_BAD_PEER_AS, "neighbour is AS 64999, not 64500"},
		"no router id":       {nobody.message(), bgp.BGP_ERROR_OPEN_MESSAGE_ERROR, bgp.BGP_ERROR_SUB_BAD_BGP_IDENTIFIER, "router id is 0.0.0.0"},
		"too short a time":   {hasty.message(), bgp.BGP_ERROR_OPEN_MESSAGE_ERROR, bgp.BGP_ERROR_SUB_UNACCEPTABLE_HOLD_TIME, "hold time is 2 s"},
		"no OPEN":            {keepalive(), bgp.BGP_ERROR_FSM_ERROR, bgp.BGP_ERROR_SUB_RECEIVE_UNEXPECTED_MESSAGE_IN_OPENSENT_STATE, "out of turn"},
		"no KEEPALIVE":       {append(usual().message(), usual().message()...), bgp.BGP_ERROR_FSM_ERROR, bgp.BGP_ERROR_SUB_RECEIVE_UNEXPECTED_MESSAGE_IN_OPENCONFIRM_STATE, "out of turn"},
		"a web server":       {[]byte("HTTP/1.1 400 Bad Request\r\n\r\n"), bgp.BGP_ERROR_MESSAGE_HEADER_ERROR, bgp.BGP_ERROR_SUB_CONNECTION_NOT_SYNCHRONIZED, "without its marker"},
		"nothing":            {nil, bgp.BGP_ERROR_HOLD_TIMER_EXPIRED, 0, "neighbour was silent for 10s"},
		"nothing after OPEN": {usual().message(), bgp.BGP_ERROR_HOLD_TIMER_EXPIRED, 0, "neighbour was silent for 9s"},
	} {
		t.Run(name, func(t *testing.T) {
			world(t, func(t *testing.T, s site) {
				l := s.listen(s.router, "tcp4")
				speaker := s.speak(nil)
				speaker.Announce([]Route{route("198.51.100.7/32")})
				r := s.accept(l)
				r.next()
				r.write(c.send)
				if n := r.refused(); n.ErrorCode != c.code || n.ErrorSubcode != c.sub {
					t.Errorf("the neighbour was told %+v, want %d/%d", n, c.code, c.sub)
				}
				session := until(t, speaker, 0, in(Connect))
				if !strings.Contains(session.LastError, c.says) || session.Sent != 0 {
					t.Errorf("the session is %+v, want the error %q", session, c.says)
				}
			})
		})
	}
}

func TestANeighbourWithoutCapabilitiesIsAskedWithoutThem(t *testing.T) {
	world(t, func(t *testing.T, s site) {
		l := s.listen(s.router, "tcp4")
		speaker := s.speak(nil)
		speaker.Announce([]Route{route("198.51.100.7/32"), route("2001:db8::7/128")})
		r := s.accept(l)
		r.next()
		r.write(serialized(bgp.NewBGPNotificationMessage(bgp.BGP_ERROR_OPEN_MESSAGE_ERROR, bgp.BGP_ERROR_SUB_UNSUPPORTED_OPTIONAL_PARAMETER, nil)))
		r.conn.Close()
		r = s.accept(l)
		r.greet(said{as: routerAS, hold: 9, id: "10.0.0.1", plain: true})
		if len(r.open.OptParams) != 0 {
			t.Errorf("it says %+v again", r.open.OptParams)
		}
		r.next()
		r.write(keepalive())
		until(t, speaker, 0, func(s Session) bool { return s.Sent == 1 && s.Unsent == 1 })
		r.conn.Close()
		r = s.accept(l)
		if r.greet(usual()); len(r.open.OptParams) == 0 {
			t.Error("the next session is asked without capabilities, too")
		}
	})
}

func TestANeighbourIsDialledAgainMoreAndMoreSlowly(t *testing.T) {
	world(t, func(t *testing.T, s site) {
		var mu sync.Mutex
		var dials []time.Time
		var lines bytes.Buffer
		speaker := s.speak(func(c *Config) {
			c.Log = slog.New(slog.NewTextHandler(&lines, nil))
			c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
				mu.Lock()
				dials = append(dials, time.Now())
				mu.Unlock()
				return s.node.Dial(ctx, network, address)
			}
		})
		time.Sleep(3 * time.Minute)
		mu.Lock()
		for i, want := range []time.Duration{firstRetry, secondRetry, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, maxRetry, maxRetry} {
			if gap := dials[i+1].Sub(dials[i]); gap < want*3/4 || gap > want+100*time.Millisecond {
				t.Errorf("retry %d after %v, want %v or up to a quarter less", i+1, gap, want)
			}
		}
		mu.Unlock()
		if got := only(t, speaker); got.State != Idle || !strings.Contains(got.LastError, "dial: ") || strings.Contains(got.LastError, "10.0.0.2:") {
			t.Errorf("the session is %+v", got)
		}
		l := s.listen(s.router, "tcp4")
		r := s.accept(l).establish(usual())
		r.beat(t.Context())
		time.Sleep(stable)
		gone := time.Now()
		r.conn.Close()
		r = s.accept(l)
		if took := time.Since(gone); took > 200*time.Millisecond {
			t.Errorf("a session that was stable is dialled again after %v, want at once", took)
		}
		r.establish(usual()).conn.Close()
		s.accept(l)
		speaker.Close("")
		if n := strings.Count(lines.String(), "no BGP session"); n != 3 {
			t.Errorf("%d lines of a neighbour that was gone three times:\n%s", n, lines.String())
		}
	})
}

func TestADialIntoSilenceEnds(t *testing.T) {
	world(t, func(t *testing.T, s site) {
		s.in.Cut("node", "router")
		speaker := s.speak(nil)
		began := time.Now()
		session := until(t, speaker, 0, func(s Session) bool { return s.LastError != "" })
		if took := time.Since(began); took > dialTimeout+time.Second || session.State != Idle {
			t.Errorf("after %v the session is %+v", took, session)
		}
	})
}

func TestACutSessionComesBackWithWhatIsAnnouncedThen(t *testing.T) {
	world(t, func(t *testing.T, s site) {
		l := s.listen(s.router, "tcp4")
		speaker := s.speak(nil)
		speaker.Announce([]Route{route("198.51.100.7/32")})
		r := s.accept(l).establish(usual())
		r.beat(t.Context())
		s.in.Cut("node", "router")
		until(t, speaker, 0, func(s Session) bool { return s.State != Established })
		speaker.Announce([]Route{route("198.51.100.8/32")})
		time.Sleep(time.Minute)
		s.in.Heal("node", "router")
		s.accept(l).establish(usual()).want("198.51.100.8/32 via 10.0.0.2")
	})
}

func TestAReasonIsHeardAndSaid(t *testing.T) {
	world(t, func(t *testing.T, s site) {
		l := s.listen(s.router, "tcp4")
		speaker := s.speak(nil)
		speaker.Announce([]Route{route("198.51.100.7/32")})
		r := s.accept(l).establish(usual())
		r.write(shutdown("maintenance, ticket 5").message())
		r.conn.Close()
		session := until(t, speaker, 0, in(Connect))
		if !strings.Contains(session.LastError, `administrative shutdown): "maintenance, ticket 5"`) {
			t.Errorf("the session is %+v", session)
		}
		r = s.accept(l).establish(usual())
		var reset atomic.Bool
		go func() { // what is on its way to a closed end makes a reset, which takes the reason with it
			for {
				if _, err := r.conn.Write(keepalive()); err != nil {
					reset.Store(errors.Is(err, syscall.ECONNRESET))
					return
				}
				time.Sleep(100 * time.Microsecond)
			}
		}()
		began := time.Now()
		closed := make(chan struct{})
		go func() { speaker.Close("rolling restart"); close(closed) }()
		r.live()
		if r.notified == nil || r.notified.ErrorCode != bgp.BGP_ERROR_CEASE || r.notified.ErrorSubcode != bgp.BGP_ERROR_SUB_ADMINISTRATIVE_SHUTDOWN || string(r.notified.Data) != "\x0frolling restart" {
			t.Errorf("the neighbour was told %+v", r.notified)
		}
		if r.ended != io.EOF || reset.Load() {
			t.Errorf("the connection ended with %v, and a reset: %v; that may overtake the reason", r.ended, reset.Load())
		}
		r.conn.Close()
		<-closed
		if took := time.Since(began); took > lingerTime/2 {
			t.Errorf("closing took %v", took)
		}
		if got := only(t, speaker); got.State != Idle || got.Sent != 0 || !strings.Contains(got.LastError, "shut down: rolling restart") {
			t.Errorf("the session is %+v", got)
		}
		speaker.Close("twice")
		speaker.Announce([]Route{route("198.51.100.9/32")}) // nobody hears it
	})
}

// mute is a connection on which nothing can be sent any more.
type mute struct {
	net.Conn
	now atomic.Bool
}

func (m *mute) Write(b []byte) (int, error) {
	if m.now.Load() {
		return 0, errors.New("broken pipe")
	}
	return m.Conn.Write(b)
}

func TestWhatTheNeighbourSaidExplainsAWriteThatFails(t *testing.T) {
	world(t, func(t *testing.T, s site) {
		l := s.listen(s.router, "tcp4")
		var last *mute
		speaker := s.speak(func(c *Config) {
			c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
				conn, err := s.node.Dial(ctx, network, address)
				last = &mute{Conn: conn}
				return last, err
			}
		})
		r := s.accept(l).establish(usual())
		last.now.Store(true)
		speaker.Announce([]Route{route("198.51.100.7/32")})
		synctest.Wait()
		r.write(shutdown("too many of you").message())
		session := until(t, speaker, 0, in(Idle))
		if !strings.Contains(session.LastError, "too many of you") {
			t.Errorf("the session is %+v", session)
		}
	})
}

func TestWhatCannotBeAnnouncedIsCountedOnce(t *testing.T) {
	speaker, err := Open(Config{AS: nodeAS, RouterID: node4})
	if err != nil {
		t.Fatal(err)
	}
	defer speaker.Close("")
	for _, want := range []uint64{1, 1, 1} {
		speaker.Announce([]Route{{}})
		if got := speaker.Counters()["anycast_routes_refused_total"]; got != want {
			t.Errorf("%d refused, want %d", got, want)
		}
	}
	speaker.Announce([]Route{{}, {}})
	if got := speaker.Counters()["anycast_routes_refused_total"]; got != 3 {
		t.Errorf("%d refused, want 3", got)
	}
}

func TestClosingNeverHangs(t *testing.T) {
	for name, to := range map[string]func(s site, l net.Listener){
		"while it waits to dial":           func(s site, l net.Listener) { l.Close(); time.Sleep(20 * time.Second) },
		"while it dials":                   func(s site, l net.Listener) { s.in.Cut("node", "router"); time.Sleep(time.Second) },
		"while it waits for an OPEN":       func(s site, l net.Listener) { s.accept(l).next() },
		"while it waits for agreement":     func(s site, l net.Listener) { r := s.accept(l); r.greet(usual()); r.next() },
		"with a neighbour that lingers":    func(s site, l net.Listener) { s.accept(l).establish(usual()) },
		"with a neighbour that is cut off": func(s site, l net.Listener) { s.accept(l).establish(usual()); s.in.CutOff("router") },
		"with a neighbour that takes nothing": func(s site, l net.Listener) {
			r := s.accept(l)
			r.greet(usual())
			r.next()
			r.write(keepalive())
			r.beat(s.Context())
			fill(s.speaker)
		},
		"before it has begun": func(s site, l net.Listener) {},
	} {
		t.Run(name, func(t *testing.T) {
			world(t, func(t *testing.T, s site) {
				l := s.listen(s.router, "tcp4")
				speaker := s.speak(nil)
				s.speaker = speaker
				to(s, l)
				began := time.Now()
				speaker.Close("test")
				if took := time.Since(began); took > lingerTime+100*time.Millisecond {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

func TestAnnouncementsFromManySidesEndWithTheLast(t *testing.T) {
	world(t, func(t *testing.T, s site) {
		l := s.listen(s.router, "tcp4")
		speaker := s.speak(nil)
		r := s.accept(l).establish(usual())
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				for j := range 50 {
					speaker.Announce([]Route{route(fmt.Sprintf("198.51.%d.%d/32", i, j))})
				}
			})
		}
		all.Wait()
		speaker.Announce([]Route{route("198.51.100.7/32")})
		r.live()
		r.want("198.51.100.7/32 via 10.0.0.2")
	})
}

func TestAllThatIsWrongWithAConfigIsSaidAtOnce(t *testing.T) {
	good := Config{AS: nodeAS, RouterID: node4, Neighbors: []Neighbor{{Address: router4, AS: routerAS}}}
	for name, c := range map[string]struct {
		change func(*Config)
		want   []string
	}{
		"nothing":       {func(c *Config) {}, nil},
		"no neighbours": {func(c *Config) { c.Neighbors = nil }, nil},
		"all of it":     {func(c *Config) { *c = Config{Neighbors: []Neighbor{{}, {Address: router4}}} }, []string{"as 0: it must be given", "router id", "neighbour 1", "neighbour 10.0.0.1: as 0"}},
		"a reserved AS": {func(c *Config) { c.AS = transAS }, []string{"as 23456: it is reserved"}},
		"an IPv6 id":    {func(c *Config) { c.RouterID = node6 }, []string{"router id fd00::2: not an IPv4 address"}},
		"next hops":     {func(c *Config) { c.NextHop4, c.NextHop6 = node6, node4 }, []string{"next hop fd00::2: not an IPv4", "next hop 10.0.0.2: not an IPv6"}},
		"a neighbour twice": {func(c *Config) {
			c.Neighbors = append(c.Neighbors, Neighbor{Address: netip.MustParseAddr("::ffff:10.0.0.1"), Port: 179, AS: 1})
		}, []string{"neighbour 10.0.0.1:179: given twice"}},
		"too many":      {func(c *Config) { c.Neighbors = make([]Neighbor, 17) }, []string{"17 neighbours: at most 16"}},
		"a short hold":  {func(c *Config) { c.Neighbors[0].HoldTime = 2 * time.Second }, []string{"hold time 2s"}},
		"a broken hold": {func(c *Config) { c.Neighbors[0].HoldTime = 9500 * time.Millisecond }, []string{"hold time 9.5s"}},
		"a long hold":   {func(c *Config) { c.Neighbors[0].HoldTime = 70000 * time.Second }, []string{"65535 s"}},
	} {
		t.Run(name, func(t *testing.T) {
			config := good
			config.Neighbors = slices.Clone(good.Neighbors)
			c.change(&config)
			_, err := complete(config)
			if (err != nil) != (len(c.want) > 0) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, without %q", err, want)
				}
			}
		})
	}
}

func TestCountersKeepTheirNames(t *testing.T) {
	speaker, err := Open(Config{AS: nodeAS, RouterID: node4})
	if err != nil {
		t.Fatal(err)
	}
	defer speaker.Close("")
	for name := range maps.Keys(speaker.Counters()) {
		if !strings.HasPrefix(name, "anycast_") {
			t.Errorf("counter %s", name)
		}
	}
}
