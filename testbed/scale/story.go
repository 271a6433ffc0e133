package scale

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Config is one fleet's.
type Config struct {
	Nodes int // 10 to 9,999
	Seed  uint64
	// Rest is how long the fleet is watched when nothing happens; 0: a minute.
	Rest time.Duration
	// Times is how often is tried what can be tried more than once: values and orders; 0: 20.
	Times int
	// Say is told what was found, as it is found; nil is nobody.
	Say func(string)
}

const (
	// pollEvery is how exactly times are known.
	pollEvery = 10 * time.Millisecond
	// patience is how long anything is waited for. What has not come by then never comes, for this matter.
	patience = 5 * time.Minute
	// sayAfter is how often is said what is waited for.
	sayAfter = time.Second
	// changeTakes is in how long a change of the spec has reached all nodes, which then each say that they run it.
	changeTakes = 300 * time.Millisecond

	leaves, deaths = 2, 3
	// cutOff is how many nodes at most an order can't be told directly.
	cutOff = 5
)

// story is what happens to one fleet, and what was found.
type story struct {
	*fleet
	Config
	ctx   context.Context
	found Figures

	saying float64 // bytes that all reports send in a second at rest
}

// Run lets a fleet live through all that it is tried with. It must be called in a bubble of testing/synctest. The error says what did
// not come to an end; the figures up to there are returned with it.
func Run(ctx context.Context, c Config) (Figures, error) {
	if c.Nodes < 10 || c.Nodes > 9999 {
		return Figures{}, fmt.Errorf("a fleet of %d nodes: want 10 to 9,999", c.Nodes)
	}
	c.Rest, c.Times = cmp.Or(c.Rest, time.Minute), cmp.Or(c.Times, 20)
	if c.Say == nil {
		c.Say = func(string) {}
	}
	s := &story{fleet: newFleet(c.Nodes+1, c.Seed), Config: c, ctx: ctx, found: Figures{Nodes: c.Nodes}}
	defer s.close()
	for _, chapter := range []func() error{s.storm, s.atRest, s.links, s.values, s.change, s.orders, s.repair, s.newcomer, s.leave, s.die, s.loseRegion} {
		if err := chapter(); err != nil {
			return s.found, err
		}
	}
	return s.found, nil
}

func (s *story) note(f Figure) {
	s.found.Rows = append(s.found.Rows, f)
	s.Say(fmt.Sprintf("%d nodes, %v of CPU: %s: %s", s.Nodes, cpu().Round(100*time.Millisecond), f.What, f.text()))
}

// reach is how long something took to come to nodes, in ascending order.
type reach []time.Duration

func (r reach) median() time.Duration { return r[(len(r)-1)/2] }
func (r reach) worst() time.Duration  { return r[len(r)-1] }

// until waits until something is so at all of some nodes, and returns when it was at each.
func (s *story) until(what string, nodes []*node, so func(n *node) bool) (reach, error) {
	start := time.Now()
	var took reach
	left := slices.Clone(nodes)
	for {
		left = slices.DeleteFunc(left, func(n *node) bool {
			if !so(n) {
				return false
			}
			took = append(took, time.Since(start))
			return true
		})
		if len(left) == 0 {
			return took, nil
		}
		if waited := time.Since(start); waited%sayAfter == 0 && waited > 0 {
			s.Say(fmt.Sprintf("%d nodes, %v of CPU: %s: after %v not so at %d", s.Nodes, cpu().Round(100*time.Millisecond), what, waited, len(left)))
		}
		if time.Since(start) > patience {
			return took, fmt.Errorf("%s: not so at %d of %d nodes after %v, of which %s is one", what, len(left), len(nodes), patience, left[0].name)
		}
		if err := s.ctx.Err(); err != nil {
			return took, err
		}
		time.Sleep(pollEvery)
	}
}

// say has a node say something of itself; what can't be said is a mistake of this package.
func (n *node) say(key, value string) {
	if err := n.report.Publish(key, []byte(value)); err != nil {
		panic(err)
	}
}

// storm begins with one node; all others come at once and know only that one.
func (s *story) storm() error {
	before := s.moment()
	nodes := s.nodes[:s.Nodes] // the last is the newcomer
	for _, n := range nodes {
		if err := n.start(); err != nil {
			return err
		}
	}
	for _, n := range nodes[1:] {
		n.work.Go(func() { n.meet([]string{nodes[0].gossips()}) })
	}
	members, err := s.until("all know all", nodes, func(n *node) bool { return n.knows(nodes) })
	if err != nil {
		return err
	}
	// Only now, as it can't be before.
	said, err := s.until("all have heard all", nodes, func(n *node) bool { return len(n.report.Entries().Get()) == s.Nodes })
	if err != nil {
		return err
	}
	spent := s.since(before)
	s.note(Figure{"all come at once, one seed: a node knows all members", "median node, last", seconds, members.median().Seconds(), members.worst().Seconds()})
	s.note(one("… and has heard all of them", seconds, (members.worst() + said.worst()).Seconds()))
	s.note(one("… a node has sent by then", kilobytes, float64(spent.all.sent)/float64(s.Nodes)/1e3))
	s.note(one("… the busiest sent and received", kilobytes, float64(spent.busiest)/1e3))
	s.note(one("… CPU of a node, network included", cpuSeconds, spent.cpu.Seconds()/float64(s.Nodes)))
	return nil
}

// atRest watches the fleet while nothing happens.
func (s *story) atRest() error {
	nodes := s.live()
	time.Sleep(s.Rest) // what members say of those who came is still going round
	before, versions := s.moment(), s.versions(nodes)
	time.Sleep(s.Rest)
	spent := s.since(before)
	turns := s.versions(nodes) - versions
	s.saying = float64(spent.each[byReport].sent) / s.Rest.Seconds()
	each := func(v uint64) float64 { return float64(v) / float64(s.Nodes) / s.Rest.Seconds() }
	s.note(one("at rest: a node sends for who lives", bytesPerSecond, each(spent.each[byGossip].sent)))
	s.note(one("… for what they say (a place in the network each minute, and beats)", bytesPerSecond, each(spent.each[byReport].sent)))
	s.note(one("… packets", perSecond, each(spent.all.packets)))
	s.note(one("… the busiest sends and receives", bytesPerSecond, float64(spent.busiest)/s.Rest.Seconds()))
	s.note(one("… CPU of a node, network included", percent, 100*spent.cpu.Seconds()/s.Rest.Seconds()/float64(s.Nodes)))
	s.note(one("… changes of who lives, as all nodes saw them (nobody came or went)", count, float64(turns)))
	m := remembered()
	s.note(one("memory of a node: who lives", kilobytes, m.gossip/float64(s.Nodes)/1e3))
	s.note(one("… what they say", kilobytes, m.report/float64(s.Nodes)/1e3))
	s.note(one("… stacks", kilobytes, m.stacks/float64(s.Nodes)/1e3))
	var streams, most uint64
	for _, n := range nodes {
		has := n.report.Counters()["report_streams"]
		streams, most = streams+has, max(most, has)
	}
	s.note(Figure{"streams of a node for what they say", "mean, most", count, float64(streams) / float64(s.Nodes), float64(most)})
	return nil
}

// versions counts the changes of who lives, as all of some nodes see it.
func (s *story) versions(nodes []*node) (total uint64) {
	for _, n := range nodes {
		total += n.gossip.Members().Version()
	}
	return total
}

// values has one node after the other say one thing.
func (s *story) values() error {
	nodes := s.live()
	var took reach
	for i := range s.Times {
		from, key := nodes[s.random.IntN(len(nodes))], fmt.Sprint("h/target/web/10.0.0.1:80/", i)
		from.say(key, "a verdict of this length, which says since when, and for what reason")
		each, err := s.until("all have heard one value", nodes, func(n *node) bool { return n.report.Entries().Get()[from.name][key] != nil })
		if err != nil {
			return err
		}
		took = append(took, each.worst())
		time.Sleep(time.Second)
	}
	slices.Sort(took)
	s.note(Figure{"one node says one thing: all have heard it", "median, worst", seconds, took.median().Seconds(), took.worst().Seconds()})
	return nil
}

// change has all nodes say that they run something else, as they do when the spec changes.
func (s *story) change() error {
	nodes := s.live()
	before := s.moment()
	start := time.Now()
	for _, n := range nodes {
		time.AfterFunc(time.Duration(s.random.Int64N(int64(changeTakes))), func() { n.say(runningKey, "2 2") })
	}
	next := map[*node]int{} // up to which of them a node has heard all
	took, err := s.until("all have heard that all run it", nodes, func(n *node) bool {
		said := n.report.Entries().Get()
		for next[n] < len(nodes) && string(said[nodes[next[n]].name][runningKey]) == "2 2" {
			next[n]++
		}
		return next[n] == len(nodes)
	})
	if err != nil {
		return err
	}
	if rest := 5*time.Second - time.Since(start); rest > 0 {
		time.Sleep(rest)
	}
	spent := s.since(before)
	more := float64(spent.each[byReport].sent) - s.saying*spent.took.Seconds()
	s.note(Figure{"all say something else within 0.3 s: a node has heard all", "median node, last", seconds, took.median().Seconds(), took.worst().Seconds()})
	s.note(one("… a node sends more than at rest", kilobytes, more/float64(s.Nodes)/1e3))
	return nil
}

// orders has nodes tell all others an order, one after the other.
func (s *story) orders() error {
	nodes := s.live()
	var effects, acks reach
	before := s.moment()
	for i := range s.Times {
		asker, id := nodes[s.random.IntN(len(nodes))], fmt.Sprint("order-", i)
		effect, answered, err := s.order(asker, id, nodes)
		if err != nil {
			return err
		}
		effects, acks = append(effects, effect.worst()), append(acks, answered)
	}
	spent := s.since(before)
	slices.Sort(effects)
	slices.Sort(acks)
	s.note(Figure{"one order to all: in effect at the last", "median, worst", seconds, effects.median().Seconds(), effects.worst().Seconds()})
	s.note(Figure{"… and acknowledged by the last", "median, worst", seconds, acks.median().Seconds(), acks.worst().Seconds()})
	s.note(one("… bytes that it takes, for each node", bytes, float64(spent.each[byLane].sent)/float64(s.Times)/float64(s.Nodes)))
	return nil
}

// order has one node tell all an order, and say it, too. It returns when each had it, and when all who can be reached had said so.
func (s *story) order(asker *node, id string, nodes []*node) (effect reach, answered time.Duration, err error) {
	ready, cancel := context.WithTimeout(s.ctx, standing/2)
	asker.getReady(ready)
	cancel()
	time.Sleep(time.Second)

	ctx, cancel := context.WithTimeout(s.ctx, 10*time.Second) // as long as package node tells an order
	defer cancel()
	var to []string
	for _, n := range nodes {
		to = append(to, n.name)
	}
	order := make([]byte, 300) // a purge of some paths
	telling := asker.lane.Tell(ctx, id, order, to)
	asker.say(orderKey+id, string(order))
	if effect, err = s.until("an order is in effect everywhere", nodes, func(n *node) bool { return n.hasDone(id, asker.name) }); err != nil {
		return effect, 0, err
	}
	<-telling.Done()
	for _, a := range telling.Acks() {
		answered = max(answered, a.After)
	}
	return effect, answered, asker.report.Publish(orderKey+id, nil)
}

// repair has a node tell an order while its way to some others is cut: they hear of it from third ones.
func (s *story) repair() error {
	nodes := s.live()
	asker := nodes[0]
	var cut []*node
	for _, i := range s.random.Perm(len(nodes) - 1)[:min(cutOff, len(nodes)/5)] {
		cut = append(cut, nodes[1+i])
	}
	for _, n := range cut {
		s.in.Cut(asker.name, n.name)
	}
	took, _, err := s.order(asker, "order-cut", nodes)
	for _, n := range cut {
		s.in.Heal(asker.name, n.name)
	}
	if err != nil {
		return err
	}
	s.note(one(fmt.Sprintf("one order to all, up to %d cut off from who was asked: in effect at the last", cutOff), seconds, took.worst().Seconds()))
	time.Sleep(10 * time.Second)
	return nil
}

// newcomer has one more node come: it is told who is there by the node that admits it.
func (s *story) newcomer() error {
	nodes := s.live()
	n := s.nodes[s.Nodes]
	before := s.moment()
	if err := n.start(); err != nil {
		return err
	}
	at := seeds(nodes)
	n.work.Go(func() { n.meet(at) })
	nodes = append(nodes, n)
	took, err := s.until("a newcomer is known", nodes, func(o *node) bool {
		return len(o.gossip.Members().Get()) == len(nodes) && (o == n || o.report.Entries().Get()[n.name] != nil)
	})
	if err != nil {
		return err
	}
	time.Sleep(10 * time.Second)
	spent := s.since(before)
	now := s.moment().nodes[n]
	var moved uint64
	for _, u := range now {
		moved += u.sent + u.received
	}
	s.note(Figure{"one more comes: known and heard by a node", "median node, last", seconds, took.median().Seconds(), took.worst().Seconds()})
	s.note(one("… the newcomer sends and receives in 10 s", kilobytes, float64(moved)/1e3))
	s.note(one("… CPU of all, network included", cpuSeconds, spent.cpu.Seconds()))
	return nil
}

// greeted is how many of those who are there a newcomer exchanges its state with.
const greeted = 3

// seeds are some of those who are there.
func seeds(nodes []*node) (at []string) {
	for _, i := range rand.Perm(len(nodes))[:min(greeted, len(nodes))] {
		at = append(at, nodes[i].gossips())
	}
	return at
}

// victim is a live node that is not the first and not of the region that is lost at the end.
func (s *story) victim() *node {
	live := slices.DeleteFunc(s.live(), func(n *node) bool { return n == s.nodes[0] || n.region == s.doomed() })
	return live[s.random.IntN(len(live))]
}

// doomed is the region that is lost at the end.
func (s *story) doomed() string { return s.nodes[s.regions-1].region }

// leave has nodes leave, one after the other.
func (s *story) leave() error {
	var took reach
	for range leaves {
		n := s.victim()
		left := make(chan error, 1)
		go func() { left <- n.gossip.Leave(time.Second) }()
		others := slices.DeleteFunc(s.live(), func(o *node) bool { return o == n })
		each, err := s.until(n.name+" has left", others, func(o *node) bool { return o.knows(others) })
		if err := errors.Join(err, <-left); err != nil {
			return err
		}
		s.end(n)
		took = append(took, each.worst())
		time.Sleep(10 * time.Second)
	}
	slices.Sort(took)
	s.note(Figure{"one leaves: all know", "best, worst", seconds, took[0].Seconds(), took.worst().Seconds()})
	return nil
}

// die has nodes fall silent, one after the other.
func (s *story) die() error {
	var took reach
	for range deaths {
		n := s.victim()
		others := slices.DeleteFunc(s.live(), func(o *node) bool { return o == n })
		s.goSilent(n)
		each, err := s.until(n.name+" is dead", others, func(o *node) bool { return o.knows(others) })
		if err != nil {
			return err
		}
		took = append(took, each.worst())
		time.Sleep(10 * time.Second)
	}
	slices.Sort(took)
	s.note(Figure{"one falls silent: all hold it dead", "median, worst", seconds, took.median().Seconds(), took.worst().Seconds()})
	return nil
}

// goSilent has machines vanish. What is left of their processes ends beside.
func (s *story) goSilent(dead ...*node) {
	for _, n := range dead {
		n.host.Crash()
	}
	for _, n := range dead {
		s.end(n)
	}
}

// loseRegion has all nodes of a region fall silent at once.
func (s *story) loseRegion() error {
	var dead, others []*node
	for _, n := range s.live() {
		if n.region == s.doomed() {
			dead = append(dead, n)
		} else {
			others = append(others, n)
		}
	}
	before := s.moment()
	s.goSilent(dead...)
	took, err := s.until("a region is dead", others, func(o *node) bool { return o.knows(others) })
	if err != nil {
		return err
	}
	spent := s.since(before)
	s.note(Figure{"a region falls silent: all others hold all of it dead", "median node, last", seconds, took.median().Seconds(), took.worst().Seconds()})
	s.note(one("… a node sends meanwhile", bytesPerSecond, float64(spent.all.sent)/float64(len(others))/max(spent.took.Seconds(), 1)))
	from := others[0]
	from.say("after", "a word")
	heard, err := s.until("all have heard one value after the loss of a region", others, func(n *node) bool { return n.report.Entries().Get()[from.name]["after"] != nil })
	if err != nil {
		return err
	}
	s.note(one("… then one node says one thing: all have heard it", seconds, heard.worst().Seconds()))
	return nil
}
