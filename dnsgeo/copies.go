package dnsgeo

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/kept"
	"github.com/perigee-net/perigee/cluster/rendezvous"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/dnsgeo/secondary"
	"github.com/perigee-net/perigee/dnsgeo/zone"
)

const (
	// askers is how many of the nodes that answer names ask the primaries of a zone. The others take it from those, and ask
	// themselves where that does not go on.
	askers = 2

	// maxAsked is of how many zones primaries are asked at once, and maxTaken how many are being transferred, each of which takes
	// memory. Others wait.
	maxAsked = 256
	maxTaken = 8

	// peerPause is how long a node is not asked again that did not give what it said that it has.
	peerPause = 2 * time.Second

	// sayPause is how often at most a node says to the others that a primary told it of a change.
	sayPause = 5 * time.Second

	// maxGiven is how many zones are given to other nodes at once. Who comes beyond asks another, or again.
	maxGiven = 64
)

// Copies is what secondary zones are kept by. The zero Copies keeps them on no disk, and shares them with nobody.
type Copies struct {
	// Dir is the folder where they are on disk, so that a restarted node has them at once; "": nowhere.
	Dir string
	// DialNode reaches GiveCopy of another node; nil: every node asks the primaries itself.
	DialNode func(ctx context.Context, node string) (net.Conn, error)
	// Say tells other nodes what this one has of a zone, by the zone's ID; nil: nothing any more.
	Say func(id string, what []byte)
	// Turned is told what became of a zone: a new version, or that there is none any more.
	Turned func(zone, what string)
}

// copies are the secondary zones of a server.
type copies struct {
	mu    sync.Mutex
	of    map[string]*keeper // by the zone's name
	asked chan struct{}
	taken chan struct{}
	given chan struct{}
}

func (c *copies) init() {
	c.of = map[string]*keeper{}
	c.asked, c.taken, c.given = make(chan struct{}, maxAsked), make(chan struct{}, maxTaken), make(chan struct{}, maxGiven)
}

func (c *copies) get(name string) *keeper {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.of[name]
}

func (c *copies) all() []*keeper {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Values(c.of))
}

// keeper keeps one secondary zone. Closing it ends that.
type keeper struct {
	server   *Server
	name, id string
	cancel   context.CancelFunc
	wake     chan struct{}

	mu       sync.Mutex
	copy     secondary.Copy
	notified uint32 // how often it was said that a primary told this node that the zone has changed
	owed     bool   // it is to be said once more
	saidAt   time.Time
	others   map[string]other
	asks     bool // it is chosen to ask the primaries
}

// other is what another node said of its copy.
type other struct {
	secondary.Saying
	after time.Time // until then it is not asked
}

// Close implements io.Closer.
func (k *keeper) Close() error { k.cancel(); return nil }

func (k *keeper) stir() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// keepCopies begins, ends and changes the keeping of secondary zones as a table says that is to be taken now, and returns it with what
// is on disk of those that are new. Begin is to be called once that table stands.
func (s *Server) keepCopies(before, now *Table) (_ *Table, begin func()) {
	var come []*keeper
	var had map[string]*spec.HostedZone
	rekeyed := false
	if before != nil {
		had = before.spec.HostedZones
		rekeyed = len(kept.Changes(before.spec.TsigKeys, now.spec.TsigKeys)) > 0
	}
	for _, c := range kept.Changes(had, now.spec.HostedZones) {
		was, is := c.Old != nil && c.Old.Secondary(), c.New != nil && c.New.Secondary()
		switch {
		case is && !was:
			var k *keeper
			k, now = s.keep(now, c.New)
			come = append(come, k)
		case was && !is:
			s.forget(c.Name)
		case is && !slices.Equal(c.Old.Primaries, c.New.Primaries):
			s.copies.get(c.Name).told()
		}
	}
	if rekeyed {
		for _, k := range s.copies.all() {
			k.retry()
		}
	}
	if before == nil && s.config.Copies.Dir != "" {
		ids := map[string]bool{}
		for _, k := range s.copies.all() {
			ids[k.id] = true
		}
		if err := s.disk().Keep(ids); err != nil {
			s.config.Log.Warn("forget copies of zones that are none any more", "error", err)
		}
	}
	return now, func() {
		for _, k := range come {
			k.begin()
		}
	}
}

func (s *Server) disk() secondary.Disk { return secondary.Disk{Dir: s.config.Copies.Dir} }

// keep makes the keeper of a zone, and takes what is on disk into a table.
func (s *Server) keep(t *Table, hosted *spec.HostedZone) (*keeper, *Table) {
	k := &keeper{server: s, name: hosted.Name, id: secondary.ID(hosted.Name), wake: make(chan struct{}, 1)}
	k.copy.Begin(time.Now())
	k.asks = chosen(s.config.View(), k.name, askers)
	s.copies.mu.Lock()
	s.copies.of[k.name] = k
	s.copies.mu.Unlock()
	if z := k.load(); z != nil {
		t = t.with(z.Of(hosted), false)
	}
	return k, t
}

// begin has primaries and other nodes asked from now on.
func (k *keeper) begin() {
	ctx, cancel := context.WithCancel(context.Background())
	k.cancel = cancel
	k.say()
	if k.server.config.Dial == nil {
		return
	}
	k.server.start(k, 1, func() {
		defer k.server.release(k)
		k.run(ctx)
	})
}

// forget ends the keeping of a zone.
func (s *Server) forget(name string) {
	s.copies.mu.Lock()
	k := s.copies.of[name]
	delete(s.copies.of, name)
	s.copies.mu.Unlock()
	k.cancel()
	k.unload()
	if say := s.config.Copies.Say; say != nil {
		say(k.id, nil)
	}
}

// load is what is on disk, if it still stands.
func (k *keeper) load() *zone.Zone {
	if k.server.config.Copies.Dir == "" {
		return nil
	}
	z, confirmed, err := k.server.disk().Load(k.name)
	if err != nil {
		k.server.counts.copiesDamaged.Add(1)
		k.server.config.Log.Error("a copy of a zone on disk is refused, and taken anew", "zone", k.name, "error", err)
		k.unload()
		return nil
	}
	now := time.Now()
	if z == nil {
		return nil
	}
	if confirmed.After(now) {
		confirmed = now // a clock was set back
	}
	soa := z.SOA()
	data, _ := soa.Next()
	k.copy.Restore(data, confirmed, now, rand.Float64())
	if !now.Before(k.copy.Expires()) {
		k.copy.Expire()
		k.unload()
		return nil
	}
	k.server.counts.copiesRestored.Add(1)
	return z
}

func (k *keeper) unload() {
	if k.server.config.Copies.Dir == "" {
		return
	}
	if err := k.server.disk().Remove(k.name); err != nil {
		k.server.config.Log.Warn("forget a copy of a zone", "zone", k.name, "error", err)
	}
}

// with is the table with another version of a secondary zone that it has; differs, as past.copied has it.
func (t *Table) with(z *zone.Zone, differs bool) *Table {
	n := &Table{spec: t.spec, zones: t.zones.With(z), base: t.base, atlas: t.atlas, keys: t.keys}
	n.past = t.past.copied(t, n, z.Hosted().Name, differs)
	return n
}

// run asks, takes and forgets when it is time to, until the context ends.
func (k *keeper) run(ctx context.Context) {
	var asking chan struct{} // closed when it is over; nil: nobody is asked
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			if asking != nil {
				<-asking
			}
			return
		case <-asking:
			asking = nil
		case <-k.wake:
		case <-timer.C:
		}
		if k.expired() {
			k.expire()
		}
		k.pass()
		act, at := k.plan()
		if act != nil && asking == nil {
			asking = make(chan struct{})
			go func() {
				defer close(asking)
				act(ctx)
			}()
		}
		timer.Reset(time.Until(at))
	}
}

// pass says to the other nodes that a primary told this one that the zone has changed: at most each sayPause, whatever came meanwhile.
func (k *keeper) pass() {
	k.mu.Lock()
	due := k.owed && !time.Now().Before(k.saidAt.Add(sayPause))
	if due {
		k.owed, k.saidAt = false, time.Now()
		k.notified++
	}
	k.mu.Unlock()
	if due {
		k.say()
	}
}

func (k *keeper) expired() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.copy.Has && !time.Now().Before(k.copy.Expires())
}

// plan is what is to be done now, if anything, and when to look again.
func (k *keeper) plan() (act func(context.Context), at time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	at = now.Add(time.Hour)
	if k.copy.Has {
		at = k.copy.Expires()
	}
	if k.owed {
		at = earlier(at, k.saidAt.Add(sayPause))
	}
	if node, wait := k.best(now); node != "" {
		return func(ctx context.Context) { k.takeFrom(ctx, node) }, at
	} else if !wait.IsZero() {
		at = earlier(at, wait)
	}
	next := k.copy.Next(k.asks)
	if !now.Before(next) {
		return k.ask, at
	}
	return nil, earlier(at, next)
}

// best is the node that is asked for its newer version, of those that have the newest one that draws this node and it together; "" if
// there is none, and then when there may be, for one that is not asked at the moment.
func (k *keeper) best(now time.Time) (node string, wait time.Time) {
	if k.server.config.Copies.DialNode == nil {
		return "", wait
	}
	self := k.server.config.Name
	for name, o := range k.others {
		switch {
		case !o.Has || !k.copy.Wants(o.Serial):
		case now.Before(o.after):
			if wait.IsZero() || o.after.Before(wait) {
				wait = o.after
			}
		case node == "" || zone.Newer(o.Serial, k.others[node].Serial) ||
			o.Serial == k.others[node].Serial && rendezvous.Score(name, self) > rendezvous.Score(node, self):
			node = name
		}
	}
	return node, wait
}

// now is the zone as the server answers by it, and what the spec says of it; nil if it has nothing to answer with, or is none any more.
func (k *keeper) now() (had *zone.Zone, hosted *spec.HostedZone, t *Table) {
	t = k.server.table.Load()
	if t == nil {
		return nil, nil, nil
	}
	if hosted = t.spec.HostedZones[k.name]; hosted == nil || !hosted.Secondary() {
		return nil, nil, nil
	}
	var name zone.Name
	if name.Parse(k.name) == nil {
		had = t.zoneOf(&name)
	}
	return had, hosted, t
}

// ask asks the primaries, one after the other: until one has something newer or confirms that there is nothing; where the zone has been
// said to have changed, all of them until one has something newer.
func (k *keeper) ask(ctx context.Context) {
	leave, err := secondary.Enter(ctx, k.server.copies.asked)
	if err != nil {
		return
	}
	defer leave()
	had, hosted, t := k.now()
	if hosted == nil {
		return
	}
	c := &k.server.counts
	began := time.Now()
	k.mu.Lock()
	told := k.copy.Told()
	k.copy.Ask(began)
	k.mu.Unlock()
	confirmed := false
	var problems []string
	for i := range hosted.Primaries {
		p := &hosted.Primaries[i]
		source := secondary.Source{Places: k.server.copies.taken, Dial: func(ctx context.Context) (net.Conn, error) {
			return k.server.config.Dial(ctx, "tcp", p.AddrPort().String())
		}}
		err := error(nil)
		if p.Key != "" {
			if source.Key = t.keyOf(p.Key); source.Key == nil {
				err = fmt.Errorf("no key %s", p.Key)
			}
		}
		var taken secondary.Taken
		if err == nil {
			c.primariesAsked.Add(1)
			taken, err = secondary.Refresh(ctx, k.name, had, source)
		}
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if c.primariesFailed.Add(1); errors.Is(err, secondary.ErrOlder) {
				c.primariesOlder.Add(1)
			}
			problems = append(problems, fmt.Sprintf("%s: %v", p.AddrPort(), err))
			continue
		case taken.Zone != nil:
			k.took(taken, began, p.AddrPort().String())
			return
		}
		if confirmed = true; !told {
			break
		}
	}
	if confirmed {
		k.confirmed(began)
		return
	}
	k.failed(strings.Join(problems, "; "))
}

// takeFrom takes the version of another node.
func (k *keeper) takeFrom(ctx context.Context, node string) {
	k.mu.Lock()
	said := k.others[node]
	k.mu.Unlock()
	had, hosted, _ := k.now()
	if hosted == nil {
		return
	}
	taken, err := secondary.Take(ctx, k.name, had, secondary.Source{Places: k.server.copies.taken, Dial: func(ctx context.Context) (net.Conn, error) {
		return k.server.config.Copies.DialNode(ctx, node)
	}})
	if ctx.Err() != nil {
		return
	}
	if err == nil && taken.Zone != nil {
		k.took(taken, earlier(said.Confirmed, time.Now()), "node "+node)
		return
	}
	k.server.counts.copiesUnshared.Add(1)
	k.mu.Lock()
	defer k.mu.Unlock()
	if o, still := k.others[node]; still {
		o.after = time.Now().Add(peerPause)
		k.others[node] = o
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// took has a new version answered by, that a primary had at a time.
func (k *keeper) took(taken secondary.Taken, at time.Time, from string) {
	s := k.server
	soa := taken.Zone.SOA()
	data, _ := soa.Next()
	if !s.replace(k, taken.Zone, taken.Differences, func() bool {
		k.copy.Take(data, at, rand.Float64())
		return true
	}) {
		return
	}
	how := "whole"
	s.counts.copiesTaken.Add(1)
	if taken.Differences {
		s.counts.copiesChanged.Add(1)
		how = "what had changed"
	}
	if taken.Fallback != nil {
		s.counts.copiesFallback.Add(1)
		s.config.Log.Warn("what had changed of a zone was of no use, it was taken whole", "zone", k.name, "from", from, "error", taken.Fallback)
	}
	if s.config.Copies.Dir != "" {
		if err := s.disk().Save(k.name, taken.Zone, at); err != nil {
			s.config.Log.Error("keep a copy of a zone on disk", "zone", k.name, "error", err)
		}
		if s.copies.get(k.name) != k {
			k.unload() // it was forgotten meanwhile
		}
	}
	k.say()
	if _, hosted, _ := k.now(); hosted != nil && len(hosted.Transfer.Notify) > 0 {
		s.tellChange(k.name)
	}
	s.config.Log.Info("a zone has a new version", "zone", k.name, "serial", taken.Serial, "from", from, "records", taken.Records, "bytes", taken.Bytes, "taken", how)
	if isSigned(taken.Zone) {
		s.config.Log.Warn("the zone is signed, and this node serves no proofs: who validates takes its answers for forged", "zone", k.name)
	}
	k.turned(fmt.Sprintf("serial %d, from %s (%s)", taken.Serial, from, how))
}

// isSigned says whether a zone has a key of DNSSEC.
func isSigned(z *zone.Zone) bool {
	var name zone.Name
	name.Set(z.Wire())
	_, _, has := zone.NewTable(z).Node(z, &name).Find(dns.TypeDNSKEY)
	return has
}

func (k *keeper) turned(what string) {
	if turned := k.server.config.Copies.Turned; turned != nil {
		turned(k.name, what)
	}
}

// replace has a zone answered by in the place of the keeper's, if that takes note of it and is to be kept yet; differs, as past.copied has it.
func (s *Server) replace(k *keeper, z *zone.Zone, differs bool, note func() bool) bool {
	s.apply.Lock()
	defer s.apply.Unlock()
	_, hosted, t := k.now()
	if hosted == nil || s.copies.get(k.name) != k {
		return false
	}
	next := t.with(z.Of(hosted), differs) // before it is said that it is there: what has changed takes a while to find
	k.mu.Lock()
	noted := note()
	k.mu.Unlock()
	if noted {
		s.table.Store(next)
	}
	return noted
}

// confirmed takes note that a primary had nothing newer at a time.
func (k *keeper) confirmed(at time.Time) {
	k.mu.Lock()
	k.copy.Confirm(at, rand.Float64())
	k.mu.Unlock()
	k.keepTime(at)
	k.say()
}

// keepTime has the disk know when the copy was confirmed.
func (k *keeper) keepTime(at time.Time) {
	if k.server.config.Copies.Dir == "" {
		return
	}
	if err := k.server.disk().Confirm(k.name, at); err != nil && !errors.Is(err, fs.ErrNotExist) {
		k.server.config.Log.Warn("keep on disk when a copy of a zone was confirmed", "zone", k.name, "error", err)
	}
}

// failed takes note that no primary was of use, and why. It is logged once.
func (k *keeper) failed(why string) {
	k.mu.Lock()
	again := k.copy.Problem == why
	k.copy.Fail(time.Now(), why, rand.Float64())
	k.mu.Unlock()
	if !again {
		k.server.config.Log.Warn("no primary of a zone is of use", "zone", k.name, "problem", why)
	}
	k.say()
}

// expire has the zone answered with SERVFAIL: what nobody confirms is not answered for ever.
func (k *keeper) expire() {
	s := k.server
	_, hosted, _ := k.now()
	if hosted == nil {
		return
	}
	z, err := zone.Silent(hosted, zone.Expired)
	if err != nil || !s.replace(k, z, false, func() bool {
		if time.Now().Before(k.copy.Expires()) {
			return false // another node has just heard of a primary
		}
		k.copy.Expire()
		for name, o := range k.others { // whose clocks may be behind
			o.after = time.Now().Add(peerPause)
			k.others[name] = o
		}
		return true
	}) {
		return
	}
	s.counts.copiesExpired.Add(1)
	s.config.Log.Error("a zone has expired: no primary has confirmed it", "zone", k.name)
	k.unload()
	k.say()
	k.turned("expired: no primary has confirmed it")
}

// say tells the other nodes what this one has.
func (k *keeper) say() {
	say := k.server.config.Copies.Say
	if say == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock() // what is said last is so last
	say(k.id, k.saying().Encode())
}

// saying is what this node has of the zone. k.mu is held.
func (k *keeper) saying() secondary.Saying {
	return secondary.Saying{
		Has: k.copy.Has, Serial: k.copy.Serial, Confirmed: k.copy.Confirmed, Notified: k.notified, Problem: k.copy.Problem,
	}
}

// told takes note that the zone has changed.
func (k *keeper) told() {
	k.mu.Lock()
	k.copy.Notify(time.Now())
	k.mu.Unlock()
	k.stir()
}

// retry has primaries asked soon that were of no use.
func (k *keeper) retry() {
	k.mu.Lock()
	failing := k.copy.Problem != ""
	k.mu.Unlock()
	if failing {
		k.told()
	}
}

// notified is the answer to a NOTIFY for a zone (RFC 1996 §3.11): from whom its primaries are, by what they sign or else their addresses.
// The node asks them itself if it is chosen to; else those hear of it that are.
func (s *Server) notified(name *zone.Name, r *request, from netip.Addr) (rcode int) {
	t := s.table.Load()
	if t == nil || r.class != dns.ClassINET {
		s.counts.notifiesStray.Add(1)
		return dns.RcodeNotAuth
	}
	z := t.zoneAt(name)
	if z == nil || z.Hosted() == nil || !z.Hosted().Secondary() {
		s.counts.notifiesStray.Add(1)
		return dns.RcodeNotAuth
	}
	hosted := z.Hosted()
	if !slices.ContainsFunc(hosted.Primaries, func(p spec.ZonePeer) bool {
		if p.Key != "" {
			return r.key != nil && r.key.Name == p.Key
		}
		return p.Address.Unmap() == from
	}) {
		s.counts.notifiesStrange.Add(1)
		return dns.RcodeRefused
	}
	s.counts.notifiesIn.Add(1)
	if k := s.copies.get(hosted.Name); k != nil {
		k.mu.Lock()
		k.owed = true
		k.mu.Unlock()
		k.told()
	}
	return dns.RcodeSuccess
}

// Hear takes in what other nodes said of their copies, by node and zone's ID; nil where one said nothing. It returns how many sayings
// were none.
func (s *Server) Hear(said func(node, id string) []byte) (bad uint64) {
	v := s.config.View()
	if v == nil {
		return 0
	}
	for _, k := range s.copies.all() {
		bad += k.hear(v, said)
	}
	return bad
}

func (k *keeper) hear(v *view.View, said func(node, id string) []byte) (bad uint64) {
	asks := chosen(v, k.name, askers)
	k.mu.Lock()
	now, before := time.Now(), k.copy.Confirmed
	others := make(map[string]other, len(k.others))
	stir := asks != k.asks
	k.asks = asks
	for i := range v.Members {
		m := &v.Members[i]
		value := said(m.Name, k.id)
		if m.Name == v.Self || value == nil {
			continue
		}
		what, err := secondary.DecodeSaying(value)
		if err != nil {
			bad++
			continue
		}
		had := k.others[m.Name]
		if what.Notified != had.Notified {
			k.copy.Notify(now)
			stir = true
		}
		if what.Has && k.copy.Has && what.Serial == k.copy.Serial {
			k.copy.Confirm(earlier(what.Confirmed, now), rand.Float64())
		}
		stir = stir || what.Has && k.copy.Wants(what.Serial)
		others[m.Name] = other{what, had.after}
	}
	k.others = others
	confirmed := k.copy.Confirmed
	k.mu.Unlock()
	if confirmed.After(before) {
		k.keepTime(confirmed)
	}
	if stir {
		k.stir()
	}
	return bad
}

// GiveCopy gives a secondary zone to another node, on a connection by which nobody else can come. It closes it.
func (s *Server) GiveCopy(socket net.Conn) {
	given := make(chan struct{})
	if s.start(socket, 1, func() {
		defer close(given)
		defer s.release(socket)
		s.give(&conn{Conn: socket, socket: socket})
	}) {
		<-given
	}
}

// give sends the zone that is asked for on a connection.
func (s *Server) give(c *conn) {
	select {
	case s.copies.given <- struct{}{}:
		defer func() { <-s.copies.given }()
	default:
		s.counts.copiesOver.Add(1)
		return
	}
	_ = c.SetDeadline(time.Now().Add(idleTimeout))
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return
	}
	m := make([]byte, min(int(binary.BigEndian.Uint16(size[:])), maxQuerySize))
	if _, err := io.ReadFull(c, m); err != nil {
		return
	}
	if t := s.transferOf(m, netip.Addr{}, true); t != nil {
		s.counts.copiesGiven.Add(1)
		_ = t.run(c, nil) // it is counted there, and asked for again
	}
}

// CopyState is how a secondary zone is doing on this node.
type CopyState struct {
	Zone      string
	ID        string
	Asks      bool // this node is chosen to ask the primaries
	Primaries []netip.AddrPort
	secondary.Saying
	Expires, Next time.Time // Expires is zero if there is no copy
}

// CopyStates are those of all secondary zones, by name.
func (s *Server) CopyStates() []CopyState {
	var all []CopyState
	for _, k := range s.copies.all() {
		_, hosted, _ := k.now()
		if hosted == nil {
			continue
		}
		k.mu.Lock()
		state := CopyState{Zone: k.name, ID: k.id, Asks: k.asks, Next: k.copy.Next(k.asks), Saying: k.saying()}
		if k.copy.Has {
			state.Expires = k.copy.Expires()
		}
		k.mu.Unlock()
		for i := range hosted.Primaries {
			state.Primaries = append(state.Primaries, hosted.Primaries[i].AddrPort())
		}
		all = append(all, state)
	}
	slices.SortFunc(all, func(a, b CopyState) int { return strings.Compare(a.Zone, b.Zone) })
	return all
}
