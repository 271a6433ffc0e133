package dnsgeo

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/kept"
	"github.com/perigee-net/perigee/cluster/rendezvous"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/dnsgeo/tsig"
	"github.com/perigee-net/perigee/dnsgeo/zone"
)

const (
	// notifyDelay is how long after a change others are told of it: by then other nodes, which they may ask, run it too, and several
	// changes in a row are told once.
	notifyDelay = 2 * time.Second

	// notifyTimeout is how long a response is waited for. Where none comes the next attempt is after notifyPause, then after twice as
	// long, notifyTries in all (RFC 1996 §3.6): some five minutes, and then the secondary's own refresh is left.
	notifyTimeout = 3 * time.Second
	notifyPause   = 5 * time.Second
	notifyTries   = 7

	// maxNotifies is how many zones are told of at once. Others wait.
	maxNotifies = 64
)

// notices are the changes of zones that others are being told of.
type notices struct {
	mu      sync.Mutex
	pending map[string]*notice // by zone: the newest
	places  chan struct{}
}

// notice is one change of a zone. Closing it ends the telling.
type notice struct{ cancel context.CancelFunc }

// Close implements io.Closer.
func (n *notice) Close() error { n.cancel(); return nil }

// tellChanges has others told of the zones that differ in what they hold. A node that has just started knows of no change.
func (s *Server) tellChanges(before, now *Table) {
	if before == nil || s.config.Dial == nil {
		return
	}
	for _, c := range kept.Changes(before.spec.HostedZones, now.spec.HostedZones) {
		if c.New == nil || len(c.New.Transfer.Notify) == 0 || c.Old != nil && sameRecords(c.Old, c.New) {
			continue
		}
		s.tellChange(c.Name)
	}
}

// tellChange has others told that a zone has changed.
func (s *Server) tellChange(name string) {
	ctx, cancel := context.WithCancel(context.Background())
	n := &notice{cancel}
	if old := s.notices.replace(name, n); old != nil {
		old.cancel()
	}
	s.start(n, 1, func() {
		defer s.release(n)
		defer s.notices.end(name, n)
		s.tell(ctx, name)
	})
}

func sameRecords(a, b *spec.HostedZone) bool {
	return a.Records.Equal(b.Records) && slices.Equal(a.NameServers, b.NameServers)
}

func (n *notices) replace(name string, by *notice) (old *notice) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pending == nil {
		n.pending = map[string]*notice{}
	}
	old = n.pending[name]
	n.pending[name] = by
	return old
}

func (n *notices) end(name string, one *notice) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pending[name] == one {
		delete(n.pending, name)
	}
}

// tell tells all secondaries of a zone that it has changed, until each has answered or the tries are over. It is done by one node of
// those alive, and all would: where that one dies, another takes its place at its own next try.
func (s *Server) tell(ctx context.Context, name string) {
	told := map[netip.AddrPort]bool{}
	left := 0
	for try, pause := 0, notifyDelay; try < notifyTries; try++ {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		if pause = notifyPause << try; !chosen(s.config.View(), name, 1) {
			left = 0
			continue
		}
		table := s.table.Load()
		z := table.spec.HostedZones[name]
		if z == nil {
			return
		}
		if left = s.tellOnce(ctx, table, z, told); left == 0 || ctx.Err() != nil {
			return
		}
	}
	s.counts.notifiesUnanswered.Add(uint64(left))
}

// tellOnce tells those that have not answered yet, and returns how many are left.
func (s *Server) tellOnce(ctx context.Context, table *Table, z *spec.HostedZone, told map[netip.AddrPort]bool) (left int) {
	select {
	case s.notices.places <- struct{}{}:
		defer func() { <-s.notices.places }()
	case <-ctx.Done():
		return 0
	}
	peers := z.Transfer.Notify
	errs := make([]error, len(peers))
	var asked sync.WaitGroup
	for i := range peers {
		if !told[peers[i].AddrPort()] {
			asked.Go(func() { errs[i] = s.notify(ctx, table, z.Name, &peers[i]) })
		}
	}
	asked.Wait()
	for i, err := range errs {
		if err == nil {
			told[peers[i].AddrPort()] = true
			continue
		}
		left++
		if ctx.Err() == nil {
			s.config.Log.Warn("a secondary does not answer that a zone has changed", "zone", z.Name, "secondary", peers[i].AddrPort(), "error", err)
		}
	}
	return left
}

// chosen says whether this node is among so many of those that answer names that are chosen to do something for a zone.
func chosen(v *view.View, zone string, n int) bool {
	if v == nil {
		return true
	}
	var nodes []string
	for _, m := range v.Members {
		if m.Has(view.DNS) && !m.Leaving {
			nodes = append(nodes, m.Name)
		}
	}
	best := rendezvous.Highest(zone, nodes, n)
	return len(best) == 0 || slices.Contains(best, v.Self)
}

// notify sends one NOTIFY (RFC 1996 §3) and waits for the response to it. A response that says no is one: it is counted and told.
func (s *Server) notify(ctx context.Context, table *Table, name string, to *spec.ZonePeer) error {
	ctx, cancel := context.WithTimeout(ctx, notifyTimeout)
	defer cancel()
	var n zone.Name
	if err := n.Parse(name); err != nil {
		return err
	}
	z := table.zoneOf(&n)
	if z == nil {
		return fmt.Errorf("no zone %s", name)
	}
	soa := table.zones.Apex(z, table.sceneOf(s.config.View()).nameServers).SOA
	m := notification(uint16(rand.Uint32()), z.Wire(), soa)
	var key *tsig.Key
	var mac tsig.MAC
	if to.Key != "" {
		if key = table.keyOf(to.Key); key == nil {
			return fmt.Errorf("no key %s", to.Key)
		}
		m, mac = key.Sign(m, tsig.MAC{}, time.Now())
	}
	conn, err := s.config.Dial(ctx, "udp", to.AddrPort().String())
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	s.counts.notifies.Add(1)
	if _, err := conn.Write(m); err != nil {
		return err
	}
	response := make([]byte, maxQuerySize)
	for {
		size, err := conn.Read(response)
		if err != nil {
			return err
		}
		rcode, err := acknowledged(response[:size], m, key, mac)
		switch {
		case err != nil: // somebody else's, or made up: the right one may be to come
			s.counts.notifiesForged.Add(1)
		case rcode != dns.RcodeSuccess:
			s.counts.notifiesRefused.Add(1)
			s.config.Log.Warn("a secondary does not want to hear that a zone has changed", "zone", name, "secondary", to.AddrPort(), "answer", dns.RcodeToString[rcode])
			return nil
		default:
			s.counts.notifiesAcknowledged.Add(1)
			return nil
		}
	}
}

// notification is a NOTIFY message: the zone's name as the question, and its SOA as a hint.
func notification(id uint16, name []byte, soa zone.Set) []byte {
	m := binary.BigEndian.AppendUint16(nil, id)
	m = append(m, dns.OpcodeNotify<<3|0x04, 0, 0, 1, 0, 1, 0, 0, 0, 0)
	m = append(append(m, name...), 0, byte(dns.TypeSOA), 0, dns.ClassINET)
	data, _ := soa.Next()
	m = append(m, 0xc0, headerSize, 0, byte(dns.TypeSOA), 0, dns.ClassINET)
	m = binary.BigEndian.AppendUint32(m, soa.TTL)
	m = binary.BigEndian.AppendUint16(m, uint16(len(data)))
	return append(m, data...)
}

// acknowledged is what a response to a NOTIFY says, or why it is none.
func acknowledged(response, m []byte, key *tsig.Key, mac tsig.MAC) (rcode int, err error) {
	if len(response) < headerSize || !bytes.Equal(response[:2], m[:2]) || response[2]&0xf8 != 0x80|dns.OpcodeNotify<<3 {
		return 0, errors.New("it answers something else")
	}
	if key != nil {
		signature := tsig.Find(response)
		if signature == nil {
			return 0, errors.New("it is not signed")
		}
		if _, wrong := key.Verify(response, signature, mac, time.Now()); wrong != 0 {
			return 0, fmt.Errorf("its signature is wrong (%d)", wrong)
		}
	}
	return int(response[3] & 0xf), nil
}
