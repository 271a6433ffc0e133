package roster

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/perigee-net/perigee/cluster/store"
)

// Bounds of what orders leave behind. A drain or a block too many is refused; of purges the oldest are forgotten, and a node
// that has not made one of those drops all that it has.
const (
	MaxDrains = 1_000
	MaxBlocks = 10_000 // as an IP set has ("AWS WAF quotas")
	MaxPurges = 1_000
	MaxOrders = 1_000 // that were agreed

	maxPurged  = 8 << 20            // bytes of the paths of all purges
	purgesKept = 7 * 24 * time.Hour // how long a node can be away and need not drop all that it has
)

// Drain takes a node, or all nodes of a POP or a region, out of everything that routes.
type Drain struct {
	Scope  string    `json:"-"` // node, pop or region; others are a later release's
	Name   string    `json:"-"`
	Until  time.Time `json:"until,omitzero"` // zero: until it is undone
	Since  time.Time `json:"since"`
	Author string    `json:"author,omitempty"`
	Reason string    `json:"reason,omitempty"`
	Order  string    `json:"order"` // the id of the order
	Epoch  uint64    `json:"epoch"` // the revision at which it was agreed; 0: not yet
}

// Text says what drains, until when and why, in a line.
func (d Drain) Text() string {
	s := d.Scope + " " + d.Name
	if !d.Until.IsZero() {
		s += " until " + d.Until.UTC().Format(time.RFC3339)
	}
	if d.Reason != "" {
		s += ": " + d.Reason
	}
	return s
}

// Block shuts clients out of every front door.
type Block struct {
	Prefix netip.Prefix `json:"-"`
	Until  time.Time    `json:"until,omitzero"` // zero: until it is undone
	Since  time.Time    `json:"since"`
	Author string       `json:"author,omitempty"`
	Reason string       `json:"reason,omitempty"`
	Order  string       `json:"order"` // the id of the order
	Epoch  uint64       `json:"epoch"` // the revision at which it was agreed; 0: not yet
}

// Purge had every cache drop objects of a distribution.
type Purge struct {
	ID           string    `json:"-"` // of the order
	Distribution string    `json:"distribution"`
	Paths        []string  `json:"paths"`
	Host         string    `json:"host,omitempty"`
	Soft         bool      `json:"soft,omitempty"`
	Author       string    `json:"author,omitempty"`
	Reason       string    `json:"reason,omitempty"`
	Time         time.Time `json:"time"`
	Epoch        uint64    `json:"epoch"` // the revision at which it was agreed
}

// Ordered is an order that was agreed. By it there is an epoch where an order leaves nothing else behind, and every node knows
// which of the orders it was told it need not go by any more.
type Ordered struct {
	ID     string    `json:"-"`
	Kind   string    `json:"kind"`
	Epoch  uint64    `json:"epoch"` // the revision at which it was agreed
	Time   time.Time `json:"time"`
	Author string    `json:"author,omitempty"`
	// PurgedBefore is Roster.PurgedBefore, where this is the newest.
	PurgedBefore uint64 `json:"purgedBefore,omitempty"`
}

const (
	kindDrain = "Drain" // its name is scope/name
	kindBlock = "Block" // its name is the CIDR
	kindPurge = "Purge" // its name is the order's id
	kindOrder = "Order" // likewise
)

// MootError says that an order has nothing to change: what it is to undo is not there, or it was given before.
type MootError struct{ Reason string }

func (e *MootError) Error() string { return e.Reason }

// Order makes the change by which an order is agreed: its ID is the order's. The order's epoch is the revision at which
// the change is in effect. When a drain or a block ends is reckoned from now, by the clock of the leader: that of the node
// which was asked says only how long it lasts.
func (r *Roster) Order(o Order, now time.Time) (store.Change, error) {
	failed := func(err error) (store.Change, error) {
		return store.Change{}, fmt.Errorf("%s: %w", cmp.Or(o.Kind, "order"), err)
	}
	if err := o.check(); err != nil {
		return failed(err)
	}
	_, ordered := r.orders[o.ID]
	_, purged := r.purges[o.ID] // of which some may be older than all orders that are known
	if ordered || purged {
		return failed(&MootError{"an order with the id " + o.ID + " was given before"})
	}
	c := r.change(o.Author, r.judged(now), "%s", o)
	now = now.UTC().Round(0) // not as judged: one record from the future must not make what lasts minutes last hours
	c.ID = o.ID
	made := Ordered{Kind: o.Kind, Epoch: r.Revision + 1, Time: now, Author: o.Author, PurgedBefore: r.PurgedBefore}
	var err error
	switch o.Kind {
	case OrderPurge:
		err = r.purge(&c, &made, o, now)
	case OrderBlock:
		err = r.block(&c, o, now)
	case OrderUnblock:
		err = r.unblock(&c, o)
	case OrderDrain:
		err = r.drain(&c, o, now)
	case OrderUndrain:
		if _, drained := r.Drains[o.scoped()]; !drained {
			err = &MootError{fmt.Sprintf("%s %s is not drained", o.Scope, o.Name)}
		}
		drop(&c, kindDrain, o.scoped())
	}
	if err == nil {
		err = r.put(&c, kindOrder, o.ID, made)
	}
	if err != nil {
		return failed(err)
	}
	if len(r.orders) >= MaxOrders {
		for _, old := range slices.SortedFunc(maps.Values(r.orders), earlier)[:len(r.orders)-MaxOrders+1] {
			drop(&c, kindOrder, old.ID)
		}
	}
	return c, nil
}

func earlier(a, b Ordered) int {
	return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), strings.Compare(a.ID, b.ID))
}

// Ordered finds an order by its ID, if it is among the last 1,000 that were agreed.
func (r *Roster) Ordered(id string) (Ordered, bool) {
	o, found := r.orders[id]
	return o, found
}

func (o Order) scoped() string { return o.Scope + "/" + o.Name }

// ends is when an order that takes effect now ends.
func (o Order) ends(now time.Time) time.Time {
	if o.Until.IsZero() {
		return time.Time{}
	}
	return now.Add(o.Until.Sub(o.Time))
}

func (r *Roster) purge(c *store.Change, made *Ordered, o Order, now time.Time) error {
	size := bytesOf(o.Paths)
	for _, p := range r.Purges {
		size += bytesOf(p.Paths)
	}
	for i, p := range r.Purges { // the oldest first
		if len(r.Purges)-i < MaxPurges && size <= maxPurged {
			break
		}
		size -= bytesOf(p.Paths)
		drop(c, kindPurge, p.ID)
		made.PurgedBefore = max(made.PurgedBefore, p.Epoch)
	}
	return r.put(c, kindPurge, o.ID, Purge{
		Distribution: o.Distribution, Paths: o.Paths, Host: o.Host, Soft: o.Soft, Author: o.Author, Reason: o.Reason, Time: now, Epoch: r.Revision + 1,
	})
}

func bytesOf(texts []string) int {
	n := 0
	for _, s := range texts {
		n += len(s)
	}
	return n
}

func (r *Roster) block(c *store.Change, o Order, now time.Time) error {
	named, fresh := map[string]bool{}, 0
	for _, p := range o.CIDRs {
		name := p.String()
		if _, again := r.Blocks[name]; !again && !named[name] {
			fresh++
		}
		named[name] = true
		if err := r.put(c, kindBlock, name, o.blocks(p, now, r.Revision+1)); err != nil {
			return err
		}
	}
	if len(r.Blocks)+fresh <= MaxBlocks {
		return nil
	}
	// What has ended makes room.
	ended := 0
	for name, b := range r.Blocks {
		if over(b.Until, now) && !named[name] {
			drop(c, kindBlock, name)
			ended++
		}
	}
	if len(r.Blocks)+fresh-ended > MaxBlocks {
		return fmt.Errorf("%d are blocked already, and there may be %d: unblock some, or block larger prefixes", len(r.Blocks)-ended, MaxBlocks)
	}
	return nil
}

func (r *Roster) unblock(c *store.Change, o Order) error {
	found := false
	for _, p := range o.CIDRs {
		_, blocked := r.Blocks[p.String()]
		found = found || blocked
		drop(c, kindBlock, p.String())
	}
	if !found {
		return &MootError{"none of it is blocked, as it is written"}
	}
	return nil
}

func (r *Roster) drain(c *store.Change, o Order, now time.Time) error {
	if _, again := r.Drains[o.scoped()]; !again && len(r.Drains) >= MaxDrains {
		room := false
		for name, d := range r.Drains {
			if over(d.Until, now) {
				drop(c, kindDrain, name)
				room = true
			}
		}
		if !room {
			return fmt.Errorf("%d are drained already: undo some", len(r.Drains))
		}
	}
	return r.put(c, kindDrain, o.scoped(), o.drains(now, r.Revision+1))
}

func (o Order) drains(now time.Time, epoch uint64) Drain {
	return Drain{Scope: o.Scope, Name: o.Name, Until: o.ends(now), Since: now, Author: o.Author, Reason: o.Reason, Order: o.ID, Epoch: epoch}
}

func (o Order) blocks(p netip.Prefix, now time.Time, epoch uint64) Block {
	return Block{Prefix: p, Until: o.ends(now), Since: now, Author: o.Author, Reason: o.Reason, Order: o.ID, Epoch: epoch}
}

// over says whether what lasts until a time has ended.
func over(until, now time.Time) bool { return !until.IsZero() && !now.Before(until) }

// PurgesAfter are the purges that a cache which made all up to an epoch has to make, the oldest first; false: some of them
// are no longer known, and it has to drop everything. That goes for an epoch of the future too: the cluster was recovered from
// an older state since, and counts anew.
func (r *Roster) PurgesAfter(epoch uint64) ([]Purge, bool) {
	if epoch < r.PurgedBefore || epoch > r.Epoch {
		return nil, false
	}
	first, _ := slices.BinarySearchFunc(r.Purges, epoch, func(p Purge, epoch uint64) int {
		if p.Epoch <= epoch {
			return -1
		}
		return 1
	})
	return r.Purges[first:], true
}

// Effects is what is in force at one moment. Its maps must not be changed.
type Effects struct {
	Drains map[string]Drain // by scope/name
	Blocks map[string]Block // by CIDR
	Next   time.Time        // when the next of them ends; zero: none does by itself
}

// Effects is what is in force at a time: what is recorded, with orders over it that are told and not agreed yet (purges
// are no such thing: they are done once). Pending orders count by their time and then their ID, in whatever order they are
// given, so that nodes that were told the same do the same; those that are agreed by now do not count, nor does one given before
// what it would change was agreed: the leader may have refused it.
//
// What has ended is left out, also while nobody leads who would sweep it. Clocks differ: seen says when, by the clock of now, this
// node first heard of an order, and what is ordered lasts from then on as long as it was meant to. Nil goes by the records' own times.
func (r *Roster) Effects(pending []Order, seen func(order string) time.Time, now time.Time) Effects {
	drains, blocks := edited[Drain]{m: r.Drains}, edited[Block]{m: r.Blocks}
	ends := func(order string, since, until time.Time) time.Time {
		if seen == nil || until.IsZero() {
			return until
		}
		return seen(order).Add(until.Sub(since))
	}
	for _, o := range inTime(pending) {
		if _, agreed := r.orders[o.ID]; agreed {
			continue // and what undid it may be agreed as well
		}
		switch o.Kind {
		case OrderDrain, OrderUndrain:
			switch d, drained := drains.m[o.scoped()]; {
			case drained && d.Epoch > 0 && !o.Time.After(d.Since):
			case o.Kind == OrderDrain:
				drains.set(o.scoped(), o.drains(o.Time, 0))
			default:
				drains.delete(o.scoped())
			}
		case OrderBlock, OrderUnblock:
			for _, p := range o.CIDRs {
				switch b, blocked := blocks.m[p.String()]; {
				case blocked && b.Epoch > 0 && !o.Time.After(b.Since):
				case o.Kind == OrderBlock:
					blocks.set(p.String(), o.blocks(p, o.Time, 0))
				default:
					blocks.delete(p.String())
				}
			}
		}
	}
	e := Effects{}
	for name, d := range drains.m {
		if end := ends(d.Order, d.Since, d.Until); over(end, now) {
			drains.delete(name)
		} else {
			e.ends(end)
		}
	}
	for name, b := range blocks.m {
		if end := ends(b.Order, b.Since, b.Until); over(end, now) {
			blocks.delete(name)
		} else {
			e.ends(end)
		}
	}
	e.Drains, e.Blocks = drains.m, blocks.m
	return e
}

func (e *Effects) ends(until time.Time) {
	if !until.IsZero() && (e.Next.IsZero() || until.Before(e.Next)) {
		e.Next = until
	}
}

func inTime(orders []Order) []Order {
	return slices.SortedFunc(slices.Values(orders), func(a, b Order) int {
		return cmp.Or(a.Time.Compare(b.Time), strings.Compare(a.ID, b.ID))
	})
}

// dropEnded drops drains and blocks that have ended and purges that are old, at most maxDropped of each, and says how many.
func (r *Roster) dropEnded(c *store.Change, now time.Time) (int, error) {
	before := len(c.Delete)
	var drains, blocks []string
	for name, d := range r.Drains {
		if over(d.Until, now) {
			drains = append(drains, name)
		}
	}
	for name, b := range r.Blocks {
		if over(b.Until, now) {
			blocks = append(blocks, name)
		}
	}
	slices.Sort(drains)
	slices.Sort(blocks)
	for _, name := range drains[:min(len(drains), maxDropped)] {
		drop(c, kindDrain, name)
	}
	for _, name := range blocks[:min(len(blocks), maxDropped)] {
		drop(c, kindBlock, name)
	}
	made := r.newest
	for i, p := range r.Purges { // from the oldest on, without a gap
		if i == maxDropped || now.Sub(p.Time) < purgesKept {
			break
		}
		drop(c, kindPurge, p.ID)
		made.PurgedBefore = max(made.PurgedBefore, p.Epoch)
	}
	n := len(c.Delete) - before
	if made.PurgedBefore == r.PurgedBefore || made.ID == "" {
		return n, nil
	}
	return n, r.put(c, kindOrder, made.ID, made)
}

// finish of what orders leave behind.

func (d *Drain) finish(name string) error {
	var ok bool
	if d.Scope, d.Name, ok = strings.Cut(name, "/"); !ok {
		return errors.New("want the name scope/name")
	}
	return nil
}

func (b *Block) finish(name string) error {
	p, err := netip.ParsePrefix(name)
	if err == nil {
		err = checkCIDR(p)
	}
	b.Prefix = p
	return err
}

func (p *Purge) finish(name string) error {
	p.ID = name
	return nil
}

func (o *Ordered) finish(name string) error {
	o.ID = name
	return nil
}

// inEpochs are purges, the oldest first.
func inEpochs(m map[string]Purge) []Purge {
	return slices.SortedFunc(maps.Values(m), func(a, b Purge) int {
		return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), strings.Compare(a.ID, b.ID))
	})
}
