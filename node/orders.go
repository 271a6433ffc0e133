package node

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gaissmai/bart"

	"github.com/perigee-net/perigee/cluster/backbone"
	"github.com/perigee-net/perigee/cluster/event"
	"github.com/perigee-net/perigee/cluster/lane"
	"github.com/perigee-net/perigee/cluster/report"
	"github.com/perigee-net/perigee/cluster/roster"
	"github.com/perigee-net/perigee/cluster/store"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/edge/cache"
	"github.com/perigee-net/perigee/node/api"
)

// laneService is the service of the backbone by which orders are told.
const laneService = "lane"

const (
	// pendingTime is how long an order is in effect here that was told and is not agreed.
	pendingTime = 30 * time.Second
	// maxPending bounds the orders that were told and are not agreed yet; one more is refused by this node, which hears of it
	// when it is agreed.
	maxPending = 1024
	// tellTime is how long a node is told an order directly. Who does not hear it by then gets it when it is agreed.
	tellTime = 10 * time.Second
	// receiptTime is how long the answer to an order waits for the last nodes after it is agreed.
	receiptTime = time.Second
	// repairTime is how long an order stands among what the node says that was asked.
	repairTime = 10 * time.Second
	// fenceGrace is how long after it heard of a newer epoch a node is not fenced yet. What was told directly is done by then, and
	// what was agreed has come, to those who vote too, which Raft tells last (a round trip and a half, and 100 ms); else every purge would have every cache ask its origins for everything.
	fenceGrace = 1500 * time.Millisecond
	// doubtTime is how long a node believes another that says it has orders which this one has not, and which do not come.
	// From then on more than half of all must say so: one that is wrong does not take the caches of all away for ever.
	doubtTime = time.Minute
)

// orders is what this node knows of orders: those that are agreed, by the roster, and those that it was told.
type orders struct {
	mu                       sync.Mutex
	pending                  map[string]pending
	seen                     map[string]time.Time // when an order that ends by itself was first heard of
	purged                   uint64               // the epoch up to which all purges are made
	making                   sync.RWMutex         // held for reading while a purge is made that was told: it is among the pending before
	drainEvent, unblockEvent uint64               // that tell of the newest drain or its end, and of the newest end of a block
	wake                     *time.Timer

	fence   lane.Fence
	heard   uint64      // the newest epoch that others have
	fenced  uint64      // the newest missed epoch of which the cache knows; 0: it is not fenced
	doubted uint64      // an epoch that did not come in doubtTime
	later   *time.Timer // looks at the fence again

	effects atomic.Pointer[roster.Effects]
	blocked atomic.Pointer[bart.Lite]
}

type pending struct {
	order roster.Order
	until time.Time // by the process's clock
}

// openLane opens the fast lane.
func (n *Node) openLane() {
	o := &n.orders
	o.pending = map[string]pending{}
	o.wake = time.AfterFunc(time.Hour, n.layOrders)
	o.wake.Stop()
	o.later = time.AfterFunc(time.Hour, n.looksAtFence)
	o.later.Stop()
	n.lane = lane.Open(lane.Config{
		Self: n.cfg.Name, Do: n.do, Log: n.cfg.Log,
		Dial: func(ctx context.Context, node string) (net.Conn, error) {
			return n.backbone.DialEarly(ctx, node, backbone.Header{Service: laneService})
		},
	})
	n.counted = append(n.counted, n.lane)
	n.backbone.Handle(laneService, func(in *backbone.Incoming) { n.lane.Serve(in.Accept(), in.From) })
	// What is agreed is in force before any door opens. If the cache is empty no purge is left to be made; what it has kept on disk
	// may not know of the last ones. The spec says what they mean.
	r := n.roster.Get()
	done := r.Epoch
	if epoch, kept := n.cdn.Epoch(); kept {
		done = epoch
		built, err := n.specs.at(&n.agreed.Get().Table)
		if err == nil {
			err = n.cdn.Apply(built)
		}
		if err != nil && epoch != r.Epoch {
			n.purge(everything(), 0)
			done = r.Epoch
		}
	}
	o.mu.Lock()
	o.purged = done
	o.mu.Unlock()
	n.takeOrders(r)
	n.onClose("lane", func(context.Context) error {
		o.mu.Lock()
		o.wake.Stop()
		o.later.Stop()
		o.mu.Unlock()
		return n.lane.Close()
	})
}

// do has an order take effect here, before it is agreed.
func (n *Node) do(id string, encoded []byte) error {
	order, err := roster.DecodeOrder(encoded)
	if err != nil {
		return err
	}
	if order.ID != id {
		return fmt.Errorf("the order's ID is %s, not %s", order.ID, id)
	}
	o := &n.orders
	o.making.RLock()
	defer o.making.RUnlock()
	o.mu.Lock()
	_, known := o.pending[id]
	_, agreed := n.roster.Get().Ordered(id)
	switch {
	case known || agreed:
		o.mu.Unlock()
		return nil
	case len(o.pending) >= maxPending:
		o.mu.Unlock()
		return errors.New("too many orders wait to be agreed on")
	}
	told := n.orderEvent(id, order.String(), order.Author)
	o.pending[id] = pending{order, time.Now().Add(pendingTime)}
	switch order.Kind {
	case roster.OrderDrain, roster.OrderUndrain:
		o.drainEvent = told
	case roster.OrderUnblock:
		o.unblockEvent = told
	}
	o.mu.Unlock()
	if order.Kind == roster.OrderPurge {
		return n.purge(cache.Purge{Distribution: order.Distribution, Host: order.Host, Items: order.Paths, Soft: order.Soft}, told)
	}
	n.layOrders()
	return nil
}

// epoch is up to which this node has made all purges.
func (o *orders) epoch() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.purged
}

// orderEvent is the event that tells of an order.
func (n *Node) orderEvent(id, text, author string) uint64 {
	if told := n.events.Last("order/"+id, 1); len(told) > 0 {
		return told[0].ID
	}
	return n.events.Add(event.Order, "order/"+id, fmt.Sprintf("%s, by %s", text, cmp.Or(author, "nobody")))
}

// everything is what is purged where it is not known what is to be.
func everything() cache.Purge { return cache.Purge{Items: []string{"/*"}} }

// purge has the cache use nothing any more of what an order names. The error is cache.ErrUnnoted: it is done, and may not be any more
// after a restart.
func (n *Node) purge(p cache.Purge, cause uint64) error {
	err := n.cdn.Purge(p)
	n.tellPurge(p, cause)
	return err
}

// tellPurge adds a purge to the events.
func (n *Node) tellPurge(p cache.Purge, cause uint64) {
	done := "purged"
	if p.Soft {
		done = "stale"
	}
	text := fmt.Sprintf("%s of %s is %s", p, cmp.Or(p.Distribution, "all distributions"), done)
	if cause == 0 {
		n.events.Add(event.Purge, "distribution/"+p.Distribution, text+": purges were missed that are kept no more")
		return
	}
	n.events.Add(event.Purge, "distribution/"+p.Distribution, text, cause)
}

// takeOrders makes the orders so that have become agreed.
func (n *Node) takeOrders(r *roster.Roster) {
	o := &n.orders
	o.mu.Lock()
	missed, whole := r.PurgesAfter(o.purged)
	told := maps.Clone(o.pending)
	o.mu.Unlock()
	var due []cache.Purge
	var causes []uint64
	add := func(p cache.Purge, cause uint64) { due, causes = append(due, p), append(causes, cause) }
	if !whole {
		add(everything(), 0)
	}
	for _, p := range missed {
		if _, done := told[p.ID]; !done {
			add(cache.Purge{Distribution: p.Distribution, Host: p.Host, Items: p.Paths, Soft: p.Soft}, n.orderEvent(p.ID, "purge of "+p.Distribution, p.Author))
		}
	}
	n.cdn.Purge(due...) // what the disk does not note of them now is made again after a restart, by the epoch
	for i, p := range due {
		n.tellPurge(p, causes[i])
	}
	o.mu.Lock()
	o.purged = r.Epoch
	o.fence.Have(r.Epoch, time.Now())
	o.mu.Unlock()
	n.noteEpoch()
	n.setFence()
	n.layOrders()
}

// noteEpoch has the cache's disk know up to which epoch all purges are made, once the journal knows that epoch: after a restart an
// epoch that is not known is of a cluster that was recovered from an older state, and nothing that was kept is used.
func (n *Node) noteEpoch() {
	o := &n.orders
	o.making.Lock() // those that were told are made
	defer o.making.Unlock()
	if r := n.roster.Get(); r.Revision <= n.saved.Load() && o.epoch() >= r.Epoch {
		n.cdn.SetEpoch(r.Epoch)
	}
}

// layOrders makes what is ordered so: it is to be called when orders came, were agreed or have ended.
func (n *Node) layOrders() {
	o := &n.orders
	o.mu.Lock()
	r, now := n.roster.Get(), time.Now()
	next := time.Duration(-1)
	soonest := func(d time.Duration) {
		if d = max(d, time.Millisecond); next < 0 || d < next {
			next = d
		}
	}
	var told []roster.Order
	for id, p := range o.pending {
		if _, agreed := r.Ordered(id); agreed || !now.Before(p.until) {
			delete(o.pending, id)
			continue
		}
		soonest(p.until.Sub(now))
		told = append(told, p.order)
	}
	settled := o.purged >= r.Epoch && !slices.ContainsFunc(told, func(o roster.Order) bool { return o.Kind == roster.OrderPurge })
	if settled {
		n.cdn.Settle()
	}
	before := o.effects.Load()
	effects := r.Effects(told, o.firstSeen(now), now)
	if !effects.Next.IsZero() {
		soonest(effects.Next.Sub(now))
	}
	if next >= 0 {
		o.wake.Reset(next)
	}
	o.effects.Store(&effects)
	if before == nil {
		before = new(roster.Effects)
	}
	n.tellEffects(before, &effects)
	again := o.blocked.Load() == nil || !maps.EqualFunc(before.Blocks, effects.Blocks, func(a, b roster.Block) bool { return a.Prefix == b.Prefix })
	if again {
		blocked := new(bart.Lite)
		for _, b := range effects.Blocks {
			blocked.Insert(b.Prefix)
		}
		o.blocked.Store(blocked)
	}
	o.mu.Unlock()
	if again {
		n.front.Recheck()
		n.accelerator.EndFlows()
	}
	n.look()
}

// firstSeen says when this node first heard of an order, by the process's clock. o.mu is held.
func (o *orders) firstSeen(now time.Time) func(order string) time.Time {
	before := o.seen
	o.seen = map[string]time.Time{} // what nobody asks for any more is forgotten
	return func(order string) time.Time {
		at, known := before[order]
		if !known {
			at = now
		}
		o.seen[order] = at
		return at
	}
}

// maxBlocksTold is of how many ranges there is an event each, of those that are blocked or taken again at once.
const maxBlocksTold = 16

// tellEffects adds to the events what is blocked, what not any more, and of drains what was not told directly. o.mu is held.
func (n *Node) tellEffects(before, now *roster.Effects) {
	o, told := &n.orders, 0
	block := func(name, text string, cause uint64) {
		if told++; told <= maxBlocksTold {
			causes := []uint64{cause}
			if cause == 0 {
				causes = nil
			}
			n.events.Add(event.Block, "block/"+name, name+text, causes...)
		}
	}
	for name, d := range now.Drains {
		if was, drained := before.Drains[name]; !drained || was.Order != d.Order {
			o.drainEvent = n.orderEvent(d.Order, "drain "+d.Text(), d.Author)
		}
	}
	for name, b := range now.Blocks {
		if was, blocked := before.Blocks[name]; !blocked || was.Order != b.Order {
			block(name, " is blocked", n.orderEvent(b.Order, "block "+name, b.Author))
		}
	}
	for name := range before.Blocks {
		if _, still := now.Blocks[name]; !still {
			block(name, " is blocked no more", o.unblockEvent)
		}
	}
	if told > maxBlocksTold {
		n.events.Add(event.Block, "block", fmt.Sprintf("and %d more ranges are blocked, or no more", told-maxBlocksTold))
	}
}

// look has this node look again at what is observed; soon, and on its own goroutine.
func (n *Node) look() {
	select {
	case n.looks <- struct{}{}:
	default:
	}
}

// isBlocked says whether nobody from an address is served.
func (n *Node) isBlocked(a netip.Addr) bool {
	b := n.orders.blocked.Load()
	return b != nil && b.Contains(a.Unmap())
}

// drainRules are what is drained, as the view lays it over the members.
func (n *Node) drainRules() (rules []view.DrainRule) {
	e := n.orders.effects.Load()
	if e == nil {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(e.Drains)) {
		d := e.Drains[name]
		rules = append(rules, view.DrainRule{Scope: d.Scope, Name: d.Name, Text: d.Text()})
	}
	return rules
}

// hear takes the orders that others say, for which they had no link to this node, and the epochs that they have.
func (n *Node) hear(said report.Entries, members []view.Member) {
	o := &n.orders
	epochs := make([]uint64, 0, len(members))
	for _, m := range members {
		for key, value := range said[m.Name] {
			if id, is := strings.CutPrefix(key, orderKey); is && m.Name != n.cfg.Name {
				if err := n.do(id, value); err != nil && !errors.Is(err, cache.ErrUnnoted) {
					n.malformed.Add(1)
				}
			}
		}
		epochs = append(epochs, readTaken(said[m.Name][takenKey]).epoch)
	}
	slices.Sort(epochs)
	o.mu.Lock()
	o.heard = 0
	if len(epochs) > 0 {
		if o.heard = epochs[len(epochs)-1]; o.heard <= o.doubted {
			o.heard = epochs[(len(epochs)-1)/2]
		}
	}
	o.fence.Heard(o.heard, time.Now())
	o.mu.Unlock()
	n.setFence()
}

// setFence has the cache ask the origin before it serves what it kept, as long as this node has missed orders. What it fetches meanwhile it
// serves, until it is known to have missed another one.
func (n *Node) setFence() {
	o := &n.orders
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.fence.Fenced() {
		if o.fenced > 0 {
			o.fenced = 0
			n.cdn.SetFence(false)
			n.publish(fencedKey, nil)
		}
		return
	}
	now, since := time.Now(), o.fence.Since()
	next := since.Add(doubtTime)
	if !now.Before(next) {
		next = now.Add(doubtTime)
		if o.heard > o.doubted {
			o.doubted = o.heard
			n.cfg.Log.Error("others say that they have orders which do not come: they are believed no more unless most say so", "epoch", o.heard)
		}
	}
	missed, later := o.fence.Missed(now.Add(-fenceGrace))
	if missed > o.fenced {
		if o.fenced == 0 {
			n.publish(fencedKey, []byte{1})
		}
		o.fenced = missed
		n.cdn.SetFence(true)
	}
	if later = later.Add(fenceGrace); later.After(now) && later.Before(next) {
		next = later
	}
	o.later.Reset(next.Sub(now))
}

// looksAtFence is setFence some time later.
func (n *Node) looksAtFence() {
	n.setFence()
	n.look()
}

func (n *Node) isFenced() bool {
	n.orders.mu.Lock()
	defer n.orders.mu.Unlock()
	return n.orders.fenced > 0
}

// order gives an order: at once to all live nodes, and to the leader to be agreed on.
func (n *Node) order(ctx context.Context, by roster.Principal, o roster.Order, lasts api.Duration) (api.OrderResponse, error) {
	start := time.Now()
	o.ID, o.Time, o.Author = cmp.Or(o.ID, rand.Text()), n.cfg.Now().UTC().Round(0), by.Name
	if lasts > 0 {
		o.Until = o.Time.Add(time.Duration(lasts))
	}
	r, s, v := n.roster.Get(), n.running.Get().spec, n.view.Get()
	if known, done := r.Ordered(o.ID); done {
		return api.OrderResponse{ID: o.ID, Epoch: known.Epoch, Acks: []api.OrderAck{}}, nil
	}
	lives := func(is func(view.Member) bool) bool { return slices.ContainsFunc(v.Members, is) }
	err := o.Validate(r, roster.Names{
		Distribution: func(name string) bool { return s.Distributions[name] != nil },
		Node:         func(name string) bool { return lives(func(m view.Member) bool { return m.Name == name }) },
		POP:          func(name string) bool { return lives(func(m view.Member) bool { return m.POP == name }) },
		Region:       func(name string) bool { return lives(func(m view.Member) bool { return m.Region == name }) },
	})
	if err == nil {
		_, err = r.Order(o, n.cfg.Now())
	}
	encoded := roster.EncodeOrder(o)
	moot := errors.As(err, new(*roster.MootError))
	if err != nil && !moot {
		return api.OrderResponse{}, refusedOrder(err)
	}
	var epoch uint64
	if moot { // unless what it undoes is agreed and not known here yet: then it is told when it is agreed
		if epoch, err = n.agreeOn(ctx, o, encoded); err != nil {
			return api.OrderResponse{}, err
		}
	}
	acks := []api.OrderAck{{Node: n.cfg.Name}}
	switch err := n.do(o.ID, encoded); {
	case errors.Is(err, cache.ErrUnnoted):
		acks[0].Error = err.Error()
	case err != nil:
		return api.OrderResponse{}, &api.Error{Status: http.StatusServiceUnavailable, Message: err.Error()}
	}
	acks[0].After = time.Since(start)
	var others []string
	for _, m := range v.Members {
		if m.Name != n.cfg.Name {
			others = append(others, m.Name)
		}
	}
	telling, told := context.WithTimeout(context.WithoutCancel(ctx), tellTime)
	t := n.lane.Tell(telling, o.ID, encoded, others)
	n.goes(func() { <-t.Done(); told() }) // it outlives who asked
	if len(encoded) <= report.MaxValue {
		n.publish(orderKey+o.ID, encoded)
		time.AfterFunc(repairTime, func() { n.publish(orderKey+o.ID, nil) })
	}
	if epoch == 0 {
		if epoch, err = n.agreeOn(ctx, o, encoded); err != nil {
			return api.OrderResponse{}, n.notAgreed(o, err)
		}
	}
	agreed := time.Since(start)
	n.holdOwn(ctx, epoch) // the next order may be about this one
	select {
	case <-t.Done():
	case <-time.After(receiptTime):
	case <-ctx.Done():
	}
	for _, a := range t.Acks() {
		if a.Answered && a.Err == "" {
			n.acked.Observe(a.After.Seconds())
		}
		acks = append(acks, api.OrderAck{Node: a.Node, After: a.After, Error: a.Err})
	}
	slices.SortFunc(acks, func(a, b api.OrderAck) int { return strings.Compare(a.Node, b.Node) })
	return api.OrderResponse{ID: o.ID, Epoch: epoch, Agreed: agreed, Acks: acks, Warning: n.warning(o)}, nil
}

// notAgreed is what whoever ordered is to know where the cluster did not agree. What was told ends by itself, but a purge.
func (n *Node) notAgreed(o roster.Order, err error) error {
	if o.Kind != roster.OrderPurge {
		n.orders.mu.Lock()
		delete(n.orders.pending, o.ID)
		n.orders.mu.Unlock()
		n.layOrders()
	}
	n.publish(orderKey+o.ID, nil)
	what := fmt.Sprintf("it is not agreed; where it was told it is in effect for %s at most", pendingTime)
	if o.Kind == roster.OrderPurge {
		what = "it is not agreed; nodes that could be told have purged, others will not be told again"
	}
	var refusal *api.Error
	status := http.StatusServiceUnavailable
	if errors.As(err, &refusal) {
		status = refusal.Status
	}
	return &api.Error{Status: status, Message: fmt.Sprintf("%v (%s)", err, what)}
}

func refusedOrder(err error) error {
	var moot *roster.MootError
	if errors.As(err, &moot) {
		return &api.Error{Status: http.StatusConflict, Message: err.Error()}
	}
	return &api.Error{Status: http.StatusUnprocessableEntity, Message: err.Error()}
}

// warning says where a drain does not do what whoever asked for it may think.
func (n *Node) warning(o roster.Order) string {
	if o.Kind != roster.OrderDrain {
		return ""
	}
	needed := map[view.Role]bool{}
	for _, m := range view.Drain(n.view.Get().Members, n.drainRules()) {
		for _, r := range m.Needed {
			if r != view.Voter { // a vote is nothing that is drained
				needed[r] = true
			}
		}
	}
	if len(needed) == 0 {
		return ""
	}
	return fmt.Sprintf("nobody else is left with the role %v: who is drained goes on with it", slices.Sorted(maps.Keys(needed)))
}

// agreeOn has the cluster agree on an order, and returns its epoch.
func (n *Node) agreeOn(ctx context.Context, o roster.Order, encoded []byte) (uint64, error) {
	return atLeader(ctx, n, func(ctx context.Context) (uint64, error) { return n.recordOrder(ctx, o) },
		func(ctx context.Context, leader *api.Client) (uint64, error) {
			res, err := leader.Order(ctx, api.NodeOrder{Order: encoded})
			return res.Own, err
		})
}

// recordOrder agrees on an order, on the leader.
func (n *Node) recordOrder(ctx context.Context, o roster.Order) (epoch uint64, err error) {
	err = n.decide(ctx, func(r *roster.Roster) (store.Change, error) {
		if known, done := r.Ordered(o.ID); done {
			epoch = known.Epoch
			return store.Change{}, errNothingToDo
		}
		epoch = r.Revision + 1
		change, err := r.Order(o, n.cfg.Now())
		if err != nil {
			return store.Change{}, refusedOrder(err)
		}
		return change, nil
	})
	if errors.Is(err, errNothingToDo) {
		err = nil
	}
	return epoch, err
}

// orderOf answers another node that has an order agreed on.
func (n *Node) orderOf(ctx context.Context, _ string, req api.NodeOrder) (api.Recorded, error) {
	o, err := roster.DecodeOrder(req.Order)
	if err != nil {
		return api.Recorded{}, &api.Error{Status: http.StatusBadRequest, Message: err.Error()}
	}
	epoch, err := n.recordOrder(ctx, o)
	return api.Recorded{Own: epoch}, err
}

// ordered are the orders in force, and the purges after an epoch, for the API.
func (n *Node) ordered(after uint64) api.OrderList {
	r := n.roster.Get()
	v := n.view.Get()
	list := api.OrderList{Epoch: r.Epoch, Fenced: v.Fenced, Behind: n.behind(r.Epoch, v.Members), Drains: []api.DrainInfo{}, Blocks: []api.BlockInfo{}, Purges: []api.PurgeInfo{}}
	if e := n.orders.effects.Load(); e != nil {
		for _, name := range slices.Sorted(maps.Keys(e.Drains)) {
			d := e.Drains[name]
			list.Drains = append(list.Drains, api.DrainInfo{Scope: d.Scope, Name: d.Name, Since: d.Since, Until: d.Until, Author: d.Author, Reason: d.Reason})
		}
		for _, name := range slices.Sorted(maps.Keys(e.Blocks)) {
			b := e.Blocks[name]
			list.Blocks = append(list.Blocks, api.BlockInfo{CIDR: b.Prefix, Since: b.Since, Until: b.Until, Author: b.Author, Reason: b.Reason})
		}
	}
	for _, p := range slices.Backward(r.Purges) {
		if len(list.Purges) == api.MaxHistory || p.Epoch <= after {
			break
		}
		list.Purges = append(list.Purges, api.PurgeInfo{ID: p.ID, Epoch: p.Epoch, Distribution: p.Distribution, Paths: p.Paths, Host: p.Host, Soft: p.Soft, Time: p.Time, Author: p.Author})
	}
	return list
}

// behind are the members that have not said that they have all orders up to an epoch.
func (n *Node) behind(epoch uint64, members []view.Member) []api.NodeBehind {
	said := n.sayings()
	list := []api.NodeBehind{}
	for _, m := range members {
		if has := readTaken(said[m.Name][takenKey]).epoch; has < epoch && m.Name != n.cfg.Name {
			list = append(list, api.NodeBehind{Node: m.Name, Epoch: has})
		}
	}
	slices.SortFunc(list, func(a, b api.NodeBehind) int { return strings.Compare(a.Node, b.Node) })
	return list
}

func (n *Node) purgeOrder(ctx context.Context, by roster.Principal, req api.PurgeRequest) (api.OrderResponse, error) {
	return n.order(ctx, by, roster.Order{ID: req.ID, Kind: roster.OrderPurge, Distribution: req.Distribution, Paths: req.Paths, Host: req.Host, Soft: req.Soft}, 0)
}

func (n *Node) blockOrder(kind string) func(context.Context, roster.Principal, api.BlockRequest) (api.OrderResponse, error) {
	return func(ctx context.Context, by roster.Principal, req api.BlockRequest) (api.OrderResponse, error) {
		return n.order(ctx, by, roster.Order{ID: req.ID, Kind: kind, CIDRs: req.CIDRs, Force: req.Force, Reason: req.Reason}, req.For)
	}
}

func (n *Node) drainOrder(kind string) func(context.Context, roster.Principal, api.DrainRequest) (api.OrderResponse, error) {
	return func(ctx context.Context, by roster.Principal, req api.DrainRequest) (api.OrderResponse, error) {
		return n.order(ctx, by, roster.Order{ID: req.ID, Kind: kind, Scope: req.Scope, Name: req.Name, Reason: req.Reason}, req.For)
	}
}
