package roster

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/perigee-net/perigee/cluster/store"
)

// order has an order agreed.
func (w *world) order(o Order) {
	w.t.Helper()
	c, err := w.roster().Order(o, w.now)
	w.do(c, err)
}

// blocked has n blocks agreed: 10.0.0.0/24, 10.0.1.0/24 and so on.
func (w *world) blocked(n int, block func(i int) Block) {
	w.t.Helper()
	c := store.Change{Space: store.Own, Expect: &w.state.Own.Revision, Time: w.now, Note: "test"}
	for i := range n {
		b, err := written(block(i), nil)
		if err != nil {
			w.t.Fatal(err)
		}
		c.Put = append(c.Put, store.Object{Kind: kindBlock, Name: fmt.Sprintf("10.%d.%d.0/24", i/256, i%256), Bytes: b})
	}
	w.do(c, nil)
}

func keys[V any](m map[string]V) string { return fmt.Sprint(slices.Sorted(maps.Keys(m))) }

func TestWhatIsOrderedIsRecordedAtItsEpoch(t *testing.T) {
	w := found(t)
	w.order(drainOf("d1", ScopePOP, "icn1"))
	w.now = w.now.Add(time.Minute)
	w.order(lasting(but(blockOf("b1", "192.0.2.0/24", "2001:db8::/32"), func(o *Order) { o.Reason = "flood" }), time.Hour))
	w.order(but(purgeOf("p1", "/a/*", "#t"), func(o *Order) { o.Host, o.Soft = "a.example", true }))
	r := w.roster()
	mustHave(t, "revision", r.Revision, 4)
	mustHave(t, "epoch", r.Epoch, 4)
	mustHave(t, "drains", keys(r.Drains), "[pop/icn1]")
	mustHave(t, "blocks", keys(r.Blocks), "[192.0.2.0/24 2001:db8::/32]")
	d, b, p := r.Drains["pop/icn1"], r.Blocks["2001:db8::/32"], r.Purges[0]
	if d.Scope != ScopePOP || d.Name != "icn1" || d.Epoch != 2 || d.Order != "d1" || !d.Since.Equal(noon) || !d.Until.IsZero() || d.Author != "ci@access" {
		t.Errorf("%+v", d)
	}
	if b.Prefix != netip.MustParsePrefix("2001:db8::/32") || b.Epoch != 3 || b.Reason != "flood" || !b.Until.Equal(w.now.Add(time.Hour)) {
		t.Errorf("%+v", b)
	}
	if p.ID != "p1" || p.Epoch != 4 || p.Distribution != "web" || !slices.Equal(p.Paths, []string{"/a/*", "#t"}) || p.Host != "a.example" || !p.Soft || !p.Time.Equal(w.now) {
		t.Errorf("%+v", p)
	}
	last := w.state.Own.History[len(w.state.Own.History)-1]
	mustHave(t, "note", last.Note, "soft purge of web: /a/*, #t at a.example")
	mustHave(t, "author", last.Author, "ci@access")
	if revision, ok := w.state.Answered(store.Own, "b1"); !ok || revision != 3 {
		t.Errorf("the block is known at revision %d, %v", revision, ok)
	}

	if o, ok := r.Ordered("b1"); !ok || o.Epoch != 3 || o.Kind != OrderBlock || o.Author != "ci@access" || !o.Time.Equal(w.now) {
		t.Errorf("the block is known as %+v, %v", o, ok)
	}

	w.order(unblockOf("b2", "192.0.2.0/24"))
	w.order(undrainOf("d2", ScopePOP, "icn1"))
	r = w.roster()
	mustHave(t, "epoch", r.Epoch, 6)
	mustHave(t, "drains", keys(r.Drains), "[]")
	mustHave(t, "blocks", keys(r.Blocks), "[2001:db8::/32]")
	w.join("fra1-a")
	mustHave(t, "epoch after another change", w.roster().Epoch, 6)
}

func TestAnOrderThatComesAgainIsNotMadeAgain(t *testing.T) {
	w := found(t)
	c, err := w.roster().Order(purgeOf("p1", "/"), w.now)
	w.do(c, err)
	w.do(c, nil) // the store knows it by its ID
	mustHave(t, "revision", w.roster().Revision, 2)
	for _, o := range []Order{purgeOf("p1", "/"), drainOf("p1", ScopePOP, "icn1"), undrainOf("d", ScopePOP, "icn1"), unblockOf("u", "192.0.2.0/24")} {
		_, err := w.roster().Order(o, w.now)
		if !errors.As(err, new(*MootError)) {
			t.Errorf("%s: %v", o, err)
		}
	}
}

func TestHowLongAnOrderLastsIsReckonedByTheLeadersClock(t *testing.T) {
	w := found(t)
	ahead := lasting(blockOf("a", "192.0.2.0/24"), 10*time.Minute)
	ahead.Time, ahead.Until = ahead.Time.Add(5*time.Hour), ahead.Until.Add(5*time.Hour)
	behind := lasting(drainOf("b", ScopePOP, "icn1"), 10*time.Minute)
	behind.Time, behind.Until = behind.Time.Add(-5*time.Hour), behind.Until.Add(-5*time.Hour)
	w.order(ahead)
	w.order(behind)
	r := w.roster()
	if want := w.now.Add(10 * time.Minute); !r.Blocks["192.0.2.0/24"].Until.Equal(want) || !r.Drains["pop/icn1"].Until.Equal(want) {
		t.Errorf("they end at %v and %v, want %v", r.Blocks["192.0.2.0/24"].Until, r.Drains["pop/icn1"].Until, want)
	}
}

func TestARecordFromTheFutureMakesNoOrderLastLonger(t *testing.T) {
	w := found(t)
	w.now = w.now.Add(5 * time.Hour)
	w.join("fra1-a")
	w.now = w.now.Add(-5 * time.Hour)
	w.order(lasting(drainOf("d", ScopePOP, "icn1"), 10*time.Minute))
	if until := w.roster().Drains["pop/icn1"].Until; !until.Equal(w.now.Add(10 * time.Minute)) {
		t.Errorf("it lasts until %v", until)
	}
	if _, due := w.roster().Sweep(w.now.Add(5 * time.Minute)); due {
		t.Error("it is swept while it lasts")
	}
	if _, due := w.roster().Sweep(w.now.Add(15 * time.Minute)); !due {
		t.Error("it is not swept")
	}
}

func TestWhatHasEndedIsNotInForceAndIsSwept(t *testing.T) {
	w := found(t)
	w.order(lasting(drainOf("d", ScopePOP, "icn1"), 10*time.Minute))
	w.order(lasting(blockOf("b", "192.0.2.0/24"), 20*time.Minute))
	w.order(blockOf("c", "198.51.100.0/24"))
	start := w.now
	for _, c := range []struct {
		after          time.Duration
		drains, blocks string
		next           time.Duration // 0: none
	}{
		{0, "[pop/icn1]", "[192.0.2.0/24 198.51.100.0/24]", 10 * time.Minute},
		{10*time.Minute - 1, "[pop/icn1]", "[192.0.2.0/24 198.51.100.0/24]", 10 * time.Minute},
		{10 * time.Minute, "[]", "[192.0.2.0/24 198.51.100.0/24]", 20 * time.Minute},
		{20 * time.Minute, "[]", "[198.51.100.0/24]", 0},
	} {
		e := w.roster().Effects(nil, nil, start.Add(c.after))
		next := time.Duration(0)
		if !e.Next.IsZero() {
			next = e.Next.Sub(start)
		}
		if keys(e.Drains) != c.drains || keys(e.Blocks) != c.blocks || next != c.next {
			t.Errorf("after %v: %s, %s, next %v", c.after, keys(e.Drains), keys(e.Blocks), next)
		}
	}
	if _, due := w.roster().Sweep(start.Add(time.Minute)); due {
		t.Error("something is swept that is in force")
	}
	w.now = start.Add(30 * time.Minute)
	epoch := w.roster().Epoch
	c, due := w.roster().Sweep(w.now)
	if !due {
		t.Fatal("nothing is swept")
	}
	w.do(c, nil)
	r := w.roster()
	mustHave(t, "note", c.Note, "0 tokens, 0 revocations and 2 orders have ended")
	mustHave(t, "drains", keys(r.Drains), "[]")
	mustHave(t, "blocks", keys(r.Blocks), "[198.51.100.0/24]")
	mustHave(t, "epoch", r.Epoch, epoch)
}

func TestWhatIsToldAndNotAgreedYetIsInForceInOneOrderEverywhere(t *testing.T) {
	w := found(t)
	w.order(drainOf("d", ScopePOP, "icn1"))
	w.order(blockOf("b", "192.0.2.0/24"))
	r := w.roster()
	at := func(o Order, seconds int) Order { o.Time = noon.Add(time.Duration(seconds) * time.Second); return o }
	pending := []Order{
		at(undrainOf("1", ScopePOP, "icn1"), 1),
		at(drainOf("2", ScopeNode, "icn1-a"), 1),
		at(unblockOf("3", "192.0.2.0/24"), 2),
		lasting(at(blockOf("4", "192.0.2.0/24", "198.51.100.0/24"), 3), time.Minute),
		at(unblockOf("5", "198.51.100.0/24"), 4),
		at(purgeOf("6", "/*"), 5),
		lasting(at(drainOf("7", ScopeRegion, "ap-northeast-2"), 5), time.Second),
	}
	before := flat(r)
	for range 20 {
		e := r.Effects(pending, nil, noon.Add(10*time.Second))
		if keys(e.Drains) != "[node/icn1-a]" || keys(e.Blocks) != "[192.0.2.0/24]" || !e.Next.Equal(noon.Add(63*time.Second)) {
			t.Fatalf("%s, %s, next %v", keys(e.Drains), keys(e.Blocks), e.Next)
		}
		if d := e.Drains["node/icn1-a"]; d.Epoch != 0 || d.Order != "2" || d.Scope != ScopeNode || d.Name != "icn1-a" {
			t.Fatalf("%+v", d)
		}
		if b := e.Blocks["192.0.2.0/24"]; b.Order != "4" || b.Prefix != netip.MustParsePrefix("192.0.2.0/24") {
			t.Fatalf("%+v", b)
		}
		pending = append(pending[1:], pending[0])
	}
	if flat(r) != before {
		t.Error("the roster is another")
	}
}

// TestWhatIsAgreedAndUndoneIsNotInForceBecauseItWasToldOnce: the order to drain may come to a node, or come again, after the one
// that undid it.
func TestWhatIsAgreedAndUndoneIsNotInForceBecauseItWasToldOnce(t *testing.T) {
	w := found(t)
	drain, undrain := drainOf("d", ScopePOP, "icn1"), undrainOf("u", ScopePOP, "icn1")
	w.order(drain)
	w.order(undrain)
	if e := w.roster().Effects([]Order{undrain, drain}, nil, w.now); len(e.Drains) != 0 {
		t.Errorf("%s", keys(e.Drains))
	}
	w.order(drainOf("d2", ScopePOP, "icn1"))
	if e := w.roster().Effects([]Order{undrain}, nil, w.now); len(e.Drains) != 1 {
		t.Errorf("%s", keys(e.Drains))
	}
}

func TestTheLastThousandOrdersAreKnown(t *testing.T) {
	w := found(t)
	w.order(purgeOf("p", "/"))
	for i := range MaxOrders + 3 {
		w.order(drainOf(fmt.Sprintf("d%d", i), ScopePOP, "icn1"))
	}
	r := w.roster()
	_, third := r.Ordered("d2")
	_, fourth := r.Ordered("d3")
	if len(r.orders) != MaxOrders || third || !fourth || r.Epoch != r.Revision {
		t.Errorf("%d are known, the third %v, the fourth %v, epoch %d", len(r.orders), third, fourth, r.Epoch)
	}
	if _, err := r.Order(purgeOf("p", "/else"), w.now); !errors.As(err, new(*MootError)) {
		t.Errorf("a purge under the ID of another: %v", err)
	}
}

func TestAThousandPurgesAreKeptAndWhoMissedMoreDropsAll(t *testing.T) {
	w := found(t)
	for i := range MaxPurges + 5 {
		w.order(purgeOf(fmt.Sprintf("p%d", i), fmt.Sprintf("/%d", i)))
	}
	r := w.roster()
	first, last := r.Purges[0], r.Purges[len(r.Purges)-1]
	if len(r.Purges) != MaxPurges || first.ID != "p5" || last.ID != fmt.Sprintf("p%d", MaxPurges+4) || last.Epoch != r.Epoch {
		t.Fatalf("%d are kept, from %s to %s", len(r.Purges), first.ID, last.ID)
	}
	mustHave(t, "purged before", r.PurgedBefore, first.Epoch-1)
	for _, c := range []struct {
		epoch uint64
		known bool
		n     int
	}{
		{0, false, 0}, {r.PurgedBefore - 1, false, 0}, {r.PurgedBefore, true, MaxPurges}, {first.Epoch, true, MaxPurges - 1},
		{r.Epoch - 1, true, 1}, {r.Epoch, true, 0}, {r.Epoch + 1, false, 0},
	} {
		missed, known := r.PurgesAfter(c.epoch)
		if known != c.known || len(missed) != c.n || c.n > 0 && missed[0].Epoch <= c.epoch {
			t.Errorf("after %d: %d, %v", c.epoch, len(missed), known)
		}
	}
	w.now = w.now.Add(purgesKept)
	for range MaxPurges / maxDropped {
		c, due := w.roster().Sweep(w.now)
		if !due {
			t.Fatal("nothing is swept")
		}
		w.do(c, nil)
	}
	r = w.roster()
	if missed, known := r.PurgesAfter(last.Epoch); len(r.Purges) != 0 || r.PurgedBefore != last.Epoch || r.Epoch != last.Epoch || !known || len(missed) != 0 {
		t.Errorf("%d are kept, purged before %d, epoch %d", len(r.Purges), r.PurgedBefore, r.Epoch)
	}
}

func TestLargePurgesMakeRoomForEachOther(t *testing.T) {
	w := found(t)
	var paths []string
	for range 15 {
		paths = append(paths, "/"+strings.Repeat("x", maxPath-1))
	}
	n := maxPurged/(15*maxPath) + 1
	for i := range n {
		w.order(purgeOf(fmt.Sprintf("p%d", i), paths...))
	}
	r := w.roster()
	if len(r.Purges) != n-1 || r.PurgedBefore != 2 {
		t.Errorf("%d of %d are kept, purged before %d", len(r.Purges), n, r.PurgedBefore)
	}
}

func TestWhatIsTooManyIsRefusedUnlessSomeHaveEnded(t *testing.T) {
	w := found(t)
	w.blocked(MaxBlocks, func(i int) (b Block) {
		if i < 3 {
			b.Until = w.now.Add(time.Minute)
		}
		return b
	})
	if _, err := w.roster().Order(blockOf("a", "192.0.2.0/24"), w.now); err == nil || !strings.Contains(err.Error(), "10000 are blocked already") {
		t.Errorf("one more: %v", err)
	}
	w.order(blockOf("b", "10.0.7.0/24")) // one that is blocked already
	w.now = w.now.Add(time.Minute)
	if _, err := w.roster().Order(blockOf("c", "192.0.2.0/24", "192.0.3.0/24", "10.0.0.0/24", "192.0.4.0/24"), w.now); err == nil {
		t.Error("three more where two have ended")
	}
	w.order(blockOf("d", "192.0.2.0/24", "192.0.3.0/24", "10.0.0.0/24", "192.0.3.0/24"))
	r := w.roster()
	if _, again := r.Blocks["10.0.0.0/24"]; len(r.Blocks) != MaxBlocks || !again {
		t.Errorf("%d are blocked, the one that was blocked anew: %v", len(r.Blocks), again)
	}

	for i := range MaxDrains {
		o := drainOf(fmt.Sprintf("d%d", i), ScopeNode, fmt.Sprintf("n%d", i))
		if i == 7 {
			o = lasting(o, time.Minute)
		}
		w.order(o)
	}
	if _, err := w.roster().Order(drainOf("one-more", ScopePOP, "icn1"), w.now); err == nil {
		t.Error("there are more drains than there may be")
	}
	w.order(drainOf("again", ScopeNode, "n8"))
	w.now = w.now.Add(time.Minute)
	w.order(drainOf("one-more", ScopePOP, "icn1"))
	if r := w.roster(); len(r.Drains) != MaxDrains || r.Drains["node/n7"].Name != "" {
		t.Errorf("%d drains", len(r.Drains))
	}
}

func TestOfTwoOrdersMadeAtOnceTheLaterIsMadeAgain(t *testing.T) {
	w := found(t)
	r := w.roster()
	first, err := r.Order(drainOf("a", ScopePOP, "icn1"), w.now)
	w.do(first, err)
	second, err := r.Order(drainOf("b", ScopePOP, "icn1"), w.now)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.apply(second); err == nil {
		t.Fatal("its epoch would be another than it says")
	}
	w.order(drainOf("b", ScopePOP, "icn1"))
	if d := w.roster().Drains["pop/icn1"]; d.Order != "b" || d.Epoch != 3 {
		t.Errorf("%+v", d)
	}
}

// TestACacheThatFollowsMissesNoPurge: whatever is ordered and swept, a cache that goes by PurgesAfter at any of the epochs has
// made every purge, or has dropped everything.
func TestACacheThatFollowsMissesNoPurge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := found(t)
		made, have := map[string]bool{}, uint64(0) // by the cache
		all := []string{}
		for i := range rapid.IntRange(1, 40).Draw(t, "steps") {
			switch rapid.IntRange(0, 4).Draw(t, "step") {
			case 0, 1:
				id := fmt.Sprintf("p%d", i)
				w.order(purgeOf(id, "/"))
				all = append(all, id)
			case 2:
				w.order(drainOf(fmt.Sprintf("d%d", i), ScopePOP, "icn1"))
			case 3:
				w.now = w.now.Add(purgesKept / 2)
				if c, due := w.roster().Sweep(w.now); due {
					w.do(c, nil)
				}
			case 4:
				r := w.roster()
				missed, known := r.PurgesAfter(have)
				for _, p := range missed {
					if made[p.ID] {
						t.Fatalf("%s is to be made again", p.ID)
					}
					made[p.ID] = true
				}
				for _, id := range all {
					if known && !made[id] {
						t.Fatalf("%s was missed", id)
					}
					made[id] = true
				}
				have = r.Epoch
			}
		}
	})
}

func TestADrainSaysWhatItIs(t *testing.T) {
	d := lasting(but(drainOf("d", ScopeRegion, "eu-central-1"), func(o *Order) { o.Reason = "maintenance" }), 10*time.Minute).drains(noon, 2)
	mustHave(t, "text", d.Text(), "region eu-central-1 until 2026-11-23T12:10:00Z: maintenance")
	mustHave(t, "text", drainOf("d", ScopePOP, "icn1").drains(noon, 2).Text(), "pop icn1")
}

func BenchmarkEffectsOf10000Blocks(b *testing.B) {
	w := found(b)
	w.blocked(MaxBlocks, func(int) Block { return Block{Until: w.now.Add(time.Hour)} })
	r := w.roster()
	for b.Loop() {
		r.Effects(nil, nil, w.now)
	}
}

func BenchmarkReadOneBlockOf10000(b *testing.B) {
	w := found(b)
	w.blocked(MaxBlocks-1, func(int) Block { return Block{Until: w.now.Add(time.Hour)} })
	before := w.roster()
	w.order(blockOf("b", "192.0.2.0/24"))
	for b.Loop() {
		if _, err := Read(&w.state.Own, before); err != nil {
			b.Fatal(err)
		}
	}
}

// An undrain that the leader refused, for nothing was drained then, must not undo what was drained since.
func TestAnOrderThatCameBeforeWhatItWouldChangeDoesNotCount(t *testing.T) {
	w := found(t)
	w.join("fra1-a")
	refused := Order{ID: "moot", Kind: OrderUndrain, Time: w.now, Scope: ScopeNode, Name: "fra1-a"}
	w.now = w.now.Add(time.Second)
	w.do(w.roster().Order(Order{ID: "drain", Kind: OrderDrain, Time: w.now, Scope: ScopeNode, Name: "fra1-a"}, w.now))
	if e := w.roster().Effects([]Order{refused}, nil, w.now); len(e.Drains) != 1 {
		t.Errorf("in force: %v", e.Drains)
	}
	later := refused
	later.ID, later.Time = "later", w.now.Add(time.Second)
	if e := w.roster().Effects([]Order{refused, later}, nil, later.Time); len(e.Drains) != 0 {
		t.Errorf("after one that came later: %v", e.Drains)
	}
	prefix := netip.MustParsePrefix("192.0.2.0/24")
	w.do(w.roster().Order(Order{ID: "block", Kind: OrderBlock, Time: w.now, CIDRs: []netip.Prefix{prefix}}, w.now))
	refused = Order{ID: "moot2", Kind: OrderUnblock, Time: w.now.Add(-time.Second), CIDRs: []netip.Prefix{prefix}}
	if e := w.roster().Effects([]Order{refused}, nil, w.now); len(e.Blocks) != 1 {
		t.Errorf("blocked: %v", e.Blocks)
	}
}

// A node whose clock is hours ahead holds a drain as long as the others do.
func TestAnOrderLastsAsLongAsItWasMeantToByAnyClock(t *testing.T) {
	w := found(t)
	w.join("fra1-a")
	w.do(w.roster().Order(Order{ID: "drain", Kind: OrderDrain, Time: w.now, Until: w.now.Add(time.Minute), Scope: ScopeNode, Name: "fra1-a"}, w.now))
	here := w.now.Add(5 * time.Hour)
	seen := func(string) time.Time { return here }
	if e := w.roster().Effects(nil, seen, here.Add(59*time.Second)); len(e.Drains) != 1 || !e.Next.Equal(here.Add(time.Minute)) {
		t.Errorf("in force: %v, until %v", e.Drains, e.Next)
	}
	if e := w.roster().Effects(nil, seen, here.Add(time.Minute)); len(e.Drains) != 0 {
		t.Errorf("in force after its end: %v", e.Drains)
	}
}
