package accelerator

import (
	"errors"
	"slices"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
)

// A flow of datagrams begins with its first one, and nothing is waited for. So it shows later whether its node is there: it says that it knows the flow, or passes on
// an answer of the target. A node that says nothing is asked again, and where it says nothing to all of that in about the time that an attempt for a connection is waited for
// alone, the flow goes to the next candidate with the first of what it has sent (relay.Keeper), if there is one; else it stays. Whoever is heard of first then has it: as long as the next one is silent, too,
// a late word of who was left has the flow go back there. The others are told then that the flow is theirs no more, and nothing that
// they send goes to the client. They may have had the datagrams all the same, and only their word was lost: then two endpoints have had them, which UDP allows.
const (
	// maxAsks is how often a node is asked again. At a loss of 1 % each way, four times in all are in vain for one flow in 6 million, at 10 % for one in 770.
	maxAsks = 3
	// lateness is by how much an answer may come later than an eighth more than its round trip, and leastApart how long after each other a node is asked at least.
	lateness   = 10 * time.Millisecond
	leastApart = 12500 * time.Microsecond
	// longest is how long a node is waited for at most, but where its round trip alone is about as long: a quarter more than that then, and slack.
	longest = 375 * time.Millisecond
	slack   = 50 * time.Millisecond
	// maxAside bounds how many ways of a flow are aside at once: where others cannot be reached, the same candidate may be left as often as it is begun anew.
	maxAside = maxCandidates
)

var errSilent = errors.New("nothing is heard of it")

// schedule is for how long it is waited that a node says that it knows a flow.
type schedule struct {
	all   time.Duration
	first time.Duration // after which it is asked again for the first time
	each  time.Duration // and then, until that was done maxAsks times
}

// scheduleOf is that for a node of a round trip: it is asked again once its answer is late, and so that another would still come in time. Where that takes too long, as
// to the other side of the world, nobody waits for the first.
func scheduleOf(rtt time.Duration) (s schedule) {
	due := rtt + rtt/8
	s.first = due + lateness
	if s.all = max(soonest, s.first+(maxAsks-1)*leastApart+due); s.all <= longest {
		s.each = max((s.all-due-lateness-s.first)/(maxAsks-1), leastApart)
		return s
	}
	s.all = min(max(longest, rtt+rtt/4+slack), attemptTimeout)
	s.each = max(s.all-due, 0) / maxAsks
	s.first = s.each
	return s
}

// vouched says that on a detour it is heard of the candidate's node whether it knows a flow: that of the one between, which carries it on, says nothing of that.
func vouched(v *view.View, c Candidate) bool {
	by, is := v.Member(c.By)
	to, has := v.Member(c.Node)
	return c.By != "" && is && by.Asks && has && to.Tells
}

// awaiting is what a flow that has begun to go a way knows of whether anybody is there. The flow's mu guards it.
type awaiting struct {
	known  bool // somebody is, or nobody is waited for
	timer  *time.Timer
	asked  int
	chosen seen // by what the way was found, as long as nobody is known to be there
	schedule
}

// await has the flow leave a way by which nothing comes. f.mu is held.
func (f *datagramFlow) await(s *spec.Spec, v *view.View, c Candidate, way *course) {
	w := &way.awaiting
	if w.known = w.known || v == nil || c.first() == v.Self; w.known {
		return
	}
	w.schedule, w.chosen = scheduleOf(roundTrip(v, c.Node, c.By)), see(s, v)
	w.timer = time.AfterFunc(w.first, func() { f.unanswered(way) })
}

// next is how long it is waited from now on, as it was asked, until it is asked again or given up.
func (w *awaiting) next() time.Duration {
	if w.asked < maxAsks {
		return w.each
	}
	return w.all - w.first - (maxAsks-1)*w.each
}

// heard takes note that somebody is at a way's end. f.mu is held.
func (w *awaiting) heard() {
	w.known, w.chosen = true, seen{}
	w.stop()
}

func (w *awaiting) stop() {
	if w.timer != nil {
		w.timer.Stop()
	}
}

// known hears that the node at a way's end knows the flow.
func (f *datagramFlow) known(way *course) {
	if f.hears(way) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	way.awaiting.heard() // it may be about to go that way
}

// aside is a way that was left because nothing came by it. Its end has not been told.
type aside struct {
	way *course
	far Datagrams
	by  Candidate
}

func closeAll(silent []aside) {
	for _, one := range silent {
		one.far.Close()
	}
}

// putAside leaves the way that the flow goes, by which its first datagrams went that were kept, n of them; the flow may return to it. It is counted and written down as one that has ended, and anew if it does return: by
// what is returned, which is to be called once f.mu, which is held, is not any more.
func (f *datagramFlow) putAside(way *course, n int) (done func()) {
	var oldest []aside
	if len(f.aside) >= maxAside {
		oldest = f.aside[:1:1]
	}
	f.aside = append(slices.Clone(f.aside[len(oldest):]), aside{way, f.far, f.by})
	way.had = n
	way.isLeft.Store(true)
	way.awaiting.stop()
	end := way.end
	f.far, f.course, way.end = nil, nil, nil
	return func() {
		closeAll(oldest)
		way.finish(end, broken)
	}
}

// forget takes a way that has ended out of those that are aside, if it is one.
func (f *datagramFlow) forget(way *course) (was bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := len(f.aside)
	f.aside = slices.DeleteFunc(f.aside, func(one aside) bool { return one.way == way })
	return len(f.aside) < before
}

// hears takes note that something has come by a way, and says whether the flow goes it: it may return to one that is aside for that.
func (f *datagramFlow) hears(way *course) bool {
	f.mu.Lock()
	if f.course != way {
		i := slices.IndexFunc(f.aside, func(one aside) bool { return one.way == way })
		if i < 0 || f.closed.Load() {
			f.mu.Unlock()
			return false
		}
		f.goBack(i)
		return true
	}
	var silent []aside
	if !way.awaiting.known {
		way.awaiting.heard()
		silent, f.aside = f.aside, nil
	}
	f.mu.Unlock()
	closeAll(silent)
	return true
}

// goBack has the flow go a way again that is aside, from which something has come before anything has from where it went then. f.mu is held, and let go.
func (f *datagramFlow) goBack(i int) {
	p := f.door.plane
	one, others := f.aside[i], slices.Delete(slices.Clone(f.aside), i, i+1)
	far, left := f.far, f.course
	var end func(string)
	if left != nil {
		end = left.end
		left.over = true
		left.isLeft.Store(true)
		left.awaiting.stop()
		f.waiting = slices.Concat(f.waiting, p.udp.keeper.Drop(&left.kept))
	}
	way := one.way
	f.far, f.by, f.course, f.aside = one.far, one.by, way, nil
	f.refused = slices.DeleteFunc(slices.Clone(f.refused), func(d declined) bool { return d.candidate == one.by.String() })
	way.over = false
	way.isLeft.Store(false)
	chosen := way.awaiting.chosen
	way.awaiting.heard()
	waits := len(way.lacks(f.waiting)) > 0
	if !waits {
		f.waiting = nil
	}
	before := gone{way.in.Load(), way.bytesIn.Load()}
	way.tally.flows.Add(1)
	way.tally.live.Add(1)
	f.mu.Unlock()
	if left != nil {
		far.Close()
		left.finish(end, broken)
	}
	closeAll(others)
	p.count.udpLate.Add(1)
	f.went(one.by, chosen, way, before) // its endpoint may have turned meanwhile
	if waits {
		go f.again() // what the client has sent since; who is heard of must not be made to wait
	}
}

// lacks are those of a flow's first datagrams, as they were kept last, that have not gone by a way.
func (c *course) lacks(first [][]byte) [][]byte { return first[min(c.had, len(first)):] }

// unanswered asks again whether a way's end knows the flow, or has it go elsewhere. It is called on a goroutine of its own.
func (f *datagramFlow) unanswered(way *course) {
	f.mu.Lock()
	w := &way.awaiting
	if f.course != way || w.known {
		f.mu.Unlock()
		return
	}
	if w.asked < maxAsks {
		w.asked++
		far := f.far
		w.timer.Reset(w.next())
		f.mu.Unlock()
		far.Ask()
		return
	}
	by, refused := f.by, f.refused
	f.mu.Unlock()
	if !f.elsewhere(by, refused) {
		return // it stays, and who was silent may yet answer; that his link is down is heard of where the next is sent
	}
	waits, mine := f.declined(way, errSilent)
	if !mine {
		return
	}
	f.door.plane.count.udpSilent.Add(1)
	if waits {
		f.again()
	}
}

// elsewhere says whether the flow has another way to go than one, that has not refused it.
func (f *datagramFlow) elsewhere(by Candidate, refused []declined) bool {
	p := f.door.plane
	t := p.table.Load()
	e, ok := t.entry(spec.UDP, f.door.at)
	if !ok {
		return false // its door is about to be closed
	}
	for _, c := range Choose(t.spec, p.config.View(), e.accelerator, e.listener, Flow{Client: f.key.client, Local: f.door.at}, nil) {
		ways, n := c.ways()
		for _, c := range ways[:n] {
			if c.String() != by.String() && !declines(refused, c) {
				return true
			}
		}
	}
	return false
}

// bySilence has candidates come last whose region has said nothing, or, of the first region, has twice: as race.pick has it.
func bySilence(all []Candidate, refused []declined) []Candidate {
	if len(all) == 0 || !slices.ContainsFunc(refused, func(d declined) bool { return d.silent }) {
		return all
	}
	var first, last []Candidate
	for _, c := range all {
		n := 0
		for _, d := range refused {
			if d.silent && d.region == c.Region && time.Since(d.since) < declinedTime {
				n++
			}
		}
		if n == 0 || n < inFirstRegion && c.Region == all[0].Region {
			first = append(first, c)
		} else {
			last = append(last, c)
		}
	}
	return append(first, last...)
}
