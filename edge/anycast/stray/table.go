package stray

import (
	"bytes"
	"maps"
	"slices"
	"time"
)

const (
	// maxAsking bounds the flows whose nodes are asked for at a time: what is within the budget is asked for in askFor. Of one more the segments are dropped while flows may
	// have moved, else the kernel answers them, with a reset.
	maxAsking = 8192
	// maxResting bounds the flows that were asked for in vain, three times as many as are within the budget in nobodyFor; of one more each segment asks anew.
	maxResting = 32768
	// maxHeld bounds the segments of one flow that wait until its node has answered, and maxHeldBytes those of all; what comes beyond is dropped, and sent again by the client.
	maxHeld      = 128
	maxHeldBytes = 16 << 20
	// maxKnown bounds the flows whose node is known; of one more each segment asks anew.
	maxKnown = 65536
	// maxAsked bounds the nodes that are asked for a flow, the likely ones first.
	maxAsked = 32
	// maxAsks bounds the segments of flows that are not known yet that are taken in 1.07 s (2^30 ns).
	maxAsks = 5000

	// askAgain is when who has not answered is asked once more, for a datagram may be lost; askFor, when nobody is waited for any more: the longest round trip between two
	// places is some 300 ms.
	askAgain = 400 * time.Millisecond
	askFor   = time.Second
	// unsureFor is for how long what comes for a flow is dropped, for clients send it again, because a node that may have it does not answer: from the first question on.
	// What comes later is answered here if that one is silent still. unsureKept is how long it is kept in mind that such a flow was asked for: longer than TCP waits, by
	// then, before it sends again.
	unsureFor  = 5 * time.Second
	unsureKept = 15 * time.Second
	// A node that has answered nothing for silentFor, to maxUnanswered questions or more, is waited for no more: it is only asked, every probeEvery, until it says something.
	silentFor     = 10 * time.Second
	maxUnanswered = 3
	probeEvery    = time.Second
	// nobodyFor is for how long a flow that nobody has is not asked for again.
	nobodyFor = 2 * time.Second
	// idleFor is how long the node of a flow is remembered that says nothing: longer than TCP's keep-alives are apart. It is asked for anew then.
	idleFor = 5 * time.Minute
	// sweepEvery is how often what is due is looked for.
	sweepEvery = 200 * time.Millisecond
	// sweepKnown is how often who is idle is.
	sweepKnown = 10 * time.Second
)

// What is known of a flow that is asked for.
type standing int

const (
	waited standing = iota // not all who were asked have answered
	nobody                 // nobody has it
	unsure                 // those of silent may have it, and are asked again with the next segment
)

// asking is a flow whose node is asked for, or was in vain.
type asking struct {
	standing standing
	since    time.Time // it stands so
	first    time.Time // when it was asked for at first
	held     [][]byte  // as they came
	bytes    int
	asked    []string // who has not answered
	silent   []string // who could not be asked, or has not answered in time, and may have it
	again    bool     // they were asked once more
}

// quiet is a node that says nothing.
type quiet struct {
	since  time.Time // the first question to which it had not answered in time
	times  int       // such questions
	probed time.Time // when it was asked although nobody waits for it
}

// deaf says whether it is not waited for.
func (q *quiet) deaf(now time.Time) bool {
	return q != nil && q.times >= maxUnanswered && now.Sub(q.since) >= silentFor
}

type owner struct {
	node string
	used time.Time
}

// table is what a node knows of flows that are other nodes'. It knows no clock, no network and no kernel; it is not for use at once.
type table struct {
	asking map[Flow]*asking
	known  map[Flow]*owner
	quiet  map[string]*quiet
	bytes  int // that wait
	// resting is how many of asking nobody is waited for.
	resting int
	drop    bool // flows may have moved: what is too much is dropped
	swept   time.Time
}

func newTable() *table {
	return &table{asking: map[Flow]*asking{}, known: map[Flow]*owner{}, quiet: map[string]*quiet{}}
}

// What is to be done with segments.
type deed int

const (
	wait  deed = iota // nothing, now
	ask               // to are asked
	carry             // the one of to gets them
	local             // the kernel of this machine gets them, and answers with a reset
	drop              // they are too many
)

// verdict is what is to be done with segments of a flow.
type verdict struct {
	do   deed
	flow Flow
	all  [][]byte
	to   []string
	// probe are asked too, and nobody waits for their answers.
	probe []string
	// learnt says that the flow's node has become known, and forgot that it is not any more.
	learnt, forgot bool
}

// segments says what is to be done with segments of a flow that have come, at most one of the network's. Peers are whom to ask, if its node is not known.
func (t *table) segments(now time.Time, f Flow, all [][]byte, peers []string) verdict {
	v := verdict{flow: f, all: all}
	if o := t.known[f]; o != nil {
		o.used = now
		v.do, v.to = carry, []string{o.node}
		return v
	}
	a := t.asking[f]
	switch {
	case a == nil:
		a = &asking{first: now}
	case a.standing == nobody:
		v.do = local
		return v
	case a.standing == waited:
		if !t.hold(a, all) {
			v.do = drop
		}
		return v
	default: // the others have said that they do not have it
		peers = a.silent
	}
	to, probe := t.whom(now, peers)
	v.probe = probe
	if len(to) == 0 {
		v.do = local
		return v
	}
	if len(t.asking)-t.resting >= maxAsking {
		if v.do = local; t.drop {
			v.do = drop
		}
		return v
	}
	if !t.hold(a, all) {
		v.do = drop
		return v
	}
	if a.standing == unsure {
		t.resting--
	}
	a.standing, a.since, a.again, a.asked, a.silent = waited, now, false, to, nil
	t.asking[f] = a
	v.do, v.to = ask, slices.Clone(to)
	return v
}

// whom says which of the peers are asked for a flow and waited for, and which are only asked, to hear whether they say anything again.
func (t *table) whom(now time.Time, peers []string) (to, probe []string) {
	for _, node := range peers {
		q := t.quiet[node]
		switch {
		case !q.deaf(now):
			if to = append(to, node); len(to) == maxAsked {
				return to, probe
			}
		case now.Sub(q.probed) >= probeEvery:
			q.probed = now
			probe = append(probe, node)
		}
	}
	return to, probe
}

// hold has segments wait, all or none of them.
func (t *table) hold(a *asking, all [][]byte) bool {
	n := 0
	for _, b := range all {
		n += len(b)
	}
	// What is one of the network's may be more than maxHeld: what asks is held, however much it is.
	if len(a.held) > 0 && len(a.held)+len(all) > maxHeld || t.bytes+n > maxHeldBytes {
		return false
	}
	for _, b := range all {
		a.held = append(a.held, bytes.Clone(b))
	}
	a.bytes += n
	t.bytes += n
	return true
}

// release gives what was held.
func (t *table) release(a *asking) (all [][]byte) {
	t.bytes -= a.bytes
	all, a.held, a.bytes, a.asked = a.held, nil, 0, nil
	return all
}

// answered takes a node's word on a flow, and says what is to be done with what has waited for it.
func (t *table) answered(now time.Time, from string, f Flow, has bool) verdict {
	delete(t.quiet, from)
	v := verdict{flow: f}
	if o := t.known[f]; o != nil && o.node == from && !has {
		delete(t.known, f) // the next segment asks again
		v.forgot = true
		return v
	}
	a := t.asking[f]
	if a == nil || !slices.Contains(a.asked, from) && !slices.Contains(a.silent, from) {
		return v // nobody asked, or it is too late
	}
	if !has {
		a.silent = slices.DeleteFunc(a.silent, func(n string) bool { return n == from })
		return t.without(now, f, a, from)
	}
	t.forget(f, a)
	v.do, v.to, v.all = carry, []string{from}, t.release(a)
	if len(t.known) < maxKnown {
		t.known[f] = &owner{from, now}
		v.learnt = true
	}
	return v
}

// unanswered takes it that a node could not be asked for a flow, or has not answered.
func (t *table) unanswered(now time.Time, node string, f Flow) verdict {
	a := t.asking[f]
	if a == nil || !slices.Contains(a.asked, node) {
		return verdict{flow: f}
	}
	q := t.quiet[node]
	if q == nil {
		q = &quiet{since: now}
		t.quiet[node] = q
	}
	q.times++
	if !q.deaf(now) {
		a.silent = append(a.silent, node)
	}
	return t.without(now, f, a, node)
}

// unreached takes it that what a node was asked for has not reached it.
func (t *table) unreached(now time.Time, node string) (all []verdict) {
	for f, a := range t.asking {
		if slices.Contains(a.asked, node) {
			if v := t.unanswered(now, node, f); v.do != wait {
				all = append(all, v)
			}
		}
	}
	return all
}

// without waits for a node's answer no more.
func (t *table) without(now time.Time, f Flow, a *asking, node string) verdict {
	a.asked = slices.DeleteFunc(a.asked, func(n string) bool { return n == node })
	switch {
	case len(a.asked) > 0 || a.standing == nobody:
		return verdict{flow: f}
	case a.standing == unsure: // and nothing is held
		if len(a.silent) == 0 {
			a.standing, a.since = nobody, now
		}
		return verdict{flow: f}
	}
	v := verdict{do: local, flow: f, all: t.release(a)}
	stands := nobody
	if len(a.silent) > 0 && now.Sub(a.first) < unsureFor {
		v.do, stands = drop, unsure
	}
	if t.resting >= maxResting {
		delete(t.asking, f)
		return v
	}
	t.resting++
	a.standing, a.since = stands, now
	return v
}

// forget forgets that a flow was asked for.
func (t *table) forget(f Flow, a *asking) {
	if delete(t.asking, f); a.standing != waited {
		t.resting--
	}
}

// gone takes it that a node is no more one that has flows, and forgets what it had.
func (t *table) gone(now time.Time, node string) (all []verdict) {
	for f, o := range t.known {
		if o.node == node {
			delete(t.known, f)
			all = append(all, verdict{flow: f, forgot: true})
		}
	}
	for f := range t.asking {
		if v := t.answered(now, node, f, false); v.do != wait {
			all = append(all, v)
		}
	}
	delete(t.quiet, node)
	return all
}

// sweep says what is due.
func (t *table) sweep(now time.Time) (all []verdict) {
	for f, a := range t.asking {
		switch past := now.Sub(a.since); {
		case a.standing == nobody && past >= nobodyFor, a.standing == unsure && past >= unsureKept:
			t.forget(f, a)
		case a.standing != waited:
		case past >= askFor:
			for _, node := range slices.Clone(a.asked) {
				if v := t.unanswered(now, node, f); v.do != wait {
					all = append(all, v)
				}
			}
		case past >= askAgain && !a.again:
			a.again = true
			all = append(all, verdict{do: ask, flow: f, to: slices.Clone(a.asked)})
		}
	}
	if now.Sub(t.swept) < sweepKnown {
		return all
	}
	t.swept = now
	for f, o := range t.known {
		if now.Sub(o.used) >= idleFor {
			delete(t.known, f)
			all = append(all, verdict{flow: f, forgot: true})
		}
	}
	return all
}

// own is the flows of this node of which others hand over segments: those are not looked for among the sockets each time. So the kernel answers what comes
// for one that has ended, as ever.
type own struct {
	used  map[Flow]time.Time
	swept time.Time
}

// has says whether a flow is known as this node's.
func (o *own) has(now time.Time, f Flow) bool {
	if _, is := o.used[f]; !is {
		return false
	}
	o.used[f] = now
	return true
}

// add takes note of one. Beyond the bound each of its segments is looked up.
func (o *own) add(now time.Time, f Flow) {
	if o.used == nil {
		o.used = map[Flow]time.Time{}
	}
	if len(o.used) < maxKnown {
		o.used[f] = now
	}
}

// remove forgets one that this node has no more.
func (o *own) remove(f Flow) { delete(o.used, f) }

func (o *own) sweep(now time.Time) {
	if now.Sub(o.swept) < sweepKnown {
		return
	}
	o.swept = now
	maps.DeleteFunc(o.used, func(_ Flow, used time.Time) bool { return now.Sub(used) >= idleFor })
}
