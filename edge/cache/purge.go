package cache

import (
	"cmp"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Purge names responses that are not to be used any more, whether they are fresh or not (CloudFront: an invalidation).
type Purge struct {
	// Distribution is whose responses; empty: everyone's.
	Distribution string
	// Host narrows that to what is kept for one host, and what the distribution keeps for all its hosts alike. Without
	// items it is all of that. It compares without case and port; empty: all hosts.
	Host string
	// Items are paths and tags.
	//
	// Paths are as viewers write them, and compare with case: /a/b is that path, and with /a/b?x=1 also that query, as
	// far as it is in the key, in that order. A path without a query is the response without one. An asterisk at the
	// very end stands for anything: /a/* is all below /a/, /a/b* also every query of /a/b, /* everything. Elsewhere it
	// is an asterisk. All variants go, whatever header fields, cookies, scheme and host select them. How a path is
	// escaped makes no difference.
	//
	// #tag is all that the origin gave that tag, by the TagHeader of the policy it came by. Tags compare without case.
	Items []string
	// Soft purges make responses stale from now on. They may be validated, and used stale where their origin allows it. Others
	// are never used again.
	Soft bool
}

// String is the purge for people, without its distribution.
func (p Purge) String() string {
	what := strings.Join(p.Items[:min(len(p.Items), toldItems)], ", ")
	switch more := len(p.Items) - toldItems; {
	case more > 0:
		what = fmt.Sprintf("%s and %d more", what, more)
	case what == "":
		what = "everything"
	}
	if p.Host != "" {
		what += " at " + p.Host
	}
	return what
}

// toldItems is how many items of a purge people are told; of others they are told how many.
const toldItems = 5

// What of a distribution and host a rule is about.
const (
	RuleWhole  = "whole"  // everything
	RulePath   = "path"   // the path and query that are its text
	RulePrefix = "prefix" // those that begin with its text
	RuleTag    = "tag"    // what has the tag
)

// Rule is one thing that was purged. Purges is made of rules, and made again of those it says.
type Rule struct {
	Seq          uint64 // in the order of purges, from 1
	At           time.Time
	Distribution string // empty: all
	Host         string // empty: all; noHost: what is kept for no host in particular
	Kind         string
	Text         string // of a path: without escapes; of a tag: in lower case
	Soft         bool
}

// noHost is the host of what is kept for all hosts of a distribution.
const noHost = "-"

// rules are those of the purge, each once and not numbered yet.
func (p Purge) rules() []Rule {
	var all []Rule
	add := func(kind, text string) {
		r := Rule{Distribution: p.Distribution, Host: plainHost(p.Host), Kind: kind, Text: text, Soft: p.Soft}
		all = append(all, r)
		if p.Host != "" && p.Distribution != "" {
			r.Host = noHost
			all = append(all, r)
		}
	}
	if len(p.Items) == 0 && p.Host != "" {
		add(RuleWhole, "")
	}
	for _, item := range p.Items {
		if tag, is := strings.CutPrefix(item, "#"); is {
			if validTag(tag) {
				add(RuleTag, lower(tag))
			}
			continue
		}
		path, wild := strings.CutSuffix(item, "*")
		before, query, has := strings.Cut(path, "?")
		if path = plain(before); has && (wild || query != "") {
			path += "?" + query
		}
		switch {
		case wild && (path == "" || path == "/"):
			add(RuleWhole, "")
		case wild:
			add(RulePrefix, path)
		default:
			add(RulePath, path)
		}
	}
	return all
}

// untagged are rules that name what the rules do, with whatever tags.
func untagged(rules []Rule) []Rule {
	all := slices.Clone(rules)
	for i := range all {
		if all[i].Kind == RuleTag {
			all[i].Kind, all[i].Text = RuleWhole, ""
		}
	}
	return all
}

const (
	// maxMarks is how many rules of different things Purges holds, and maxMarkBytes of how many bytes in all. At either
	// bound the older half becomes rules about whole distributions, which purge more: what was kept before them is asked for
	// again.
	maxMarks     = 8192
	maxMarkBytes = 2 << 20
)

// Purges is what was purged: for each thing, when that was last. So it answers in a time that does not depend on how many
// purges there were. It is a value without locks: one goroutine changes it, or many read it.
type Purges struct {
	newest uint64
	floor  uint64 // rules up to here are forgotten
	scopes map[scope]*marks
	count  int
	bytes  int
}

// scope is a distribution and host as in Rule.
type scope struct{ distribution, host string }

// marks are the rules of one scope.
type marks struct {
	whole   *mark
	paths   map[string]*mark
	prefix  map[string]*mark
	lengths map[int]int // of the prefixes: how many have that length
	tags    map[string]*mark
}

// mark is when a thing was last purged, by sequence numbers; 0: never. Of soft purges since the last hard one the oldest is known, too: what
// was kept before it is stale since then, however often it was purged again. For what was kept between the two the newest counts.
type mark struct {
	hard, first, soft       uint64
	hardAt, firstAt, softAt time.Time
}

// since is when what was looked at last at a sequence number became stale, if it did.
func (m *mark) since(seen uint64) (at time.Time, stale bool) {
	if m.first > seen {
		return m.firstAt, true
	}
	return m.softAt, m.soft > seen
}

// Newest is the sequence number of the newest rule, 0 before the first.
func (p *Purges) Newest() uint64 { return p.newest }

// Len is how many rules there are.
func (p *Purges) Len() int { return p.count }

// Purge adds the rules of one purge, at one new sequence number, which it returns.
func (p *Purges) Purge(what Purge, at time.Time) uint64 { return p.add(what.rules(), at) }

func (p *Purges) add(rules []Rule, at time.Time) uint64 {
	seq := p.newest + 1
	p.newest = seq
	for _, r := range rules {
		r.Seq, r.At = seq, at
		p.Add(r)
	}
	return seq
}

// Add adds a rule that was numbered before. Kinds that are not known purge the whole: they are of a newer release.
func (p *Purges) Add(r Rule) {
	if p.put(r); p.count > maxMarks || p.bytes > maxMarkBytes {
		p.fold(func(p *Purges) bool { return p.count <= maxMarks*3/4 && p.bytes <= maxMarkBytes*3/4 })
	}
}

func (p *Purges) put(r Rule) {
	p.newest = max(p.newest, r.Seq)
	if r.Seq <= p.floor {
		return
	}
	at := scope{r.Distribution, r.Host}
	in := p.scopes[at]
	if in == nil {
		if p.scopes == nil {
			p.scopes = map[scope]*marks{}
		}
		in = &marks{}
		p.scopes[at] = in
	}
	var m *mark
	switch r.Kind {
	case RulePath:
		m = p.in(&in.paths, r.Text)
	case RulePrefix:
		before := len(in.prefix)
		m = p.in(&in.prefix, r.Text)
		if in.lengths == nil {
			in.lengths = map[int]int{}
		}
		in.lengths[len(r.Text)] += len(in.prefix) - before
	case RuleTag:
		m = p.in(&in.tags, r.Text)
	default:
		if in.whole == nil {
			in.whole = &mark{}
			p.count++
		}
		m = in.whole
	}
	switch {
	case r.Soft && r.Seq > max(m.soft, m.hard):
		if m.soft == 0 {
			m.first, m.firstAt = r.Seq, r.At
		}
		m.soft, m.softAt = r.Seq, r.At
	case !r.Soft && r.Seq > m.hard:
		*m = mark{hard: r.Seq, hardAt: r.At}
	}
}

// in is the mark of a text in a map, made if need be.
func (p *Purges) in(all *map[string]*mark, text string) *mark {
	m := (*all)[text]
	if m == nil {
		if *all == nil {
			*all = map[string]*mark{}
		}
		m = &mark{}
		(*all)[text] = m
		p.count++
		p.bytes += len(text)
	}
	return m
}

// fold makes the older half of the rules rules about whole distributions, and if they do not fit then, about everything; and if that
// does not help either, all of them.
func (p *Purges) fold(fit func(*Purges) bool) {
	all := p.Rules()
	for _, whole := range []func(r Rule) Rule{
		func(r Rule) Rule {
			return Rule{Seq: r.Seq, At: r.At, Distribution: r.Distribution, Kind: RuleWhole, Soft: r.Soft}
		},
		func(r Rule) Rule { return Rule{Seq: r.Seq, At: r.At, Kind: RuleWhole, Soft: r.Soft} },
	} {
		folded := Purges{newest: p.newest, floor: p.floor}
		for i, r := range all {
			if i < len(all)/2 {
				r = whole(r)
			}
			folded.put(r)
		}
		if fit(&folded) {
			*p = folded
			return
		}
	}
	everything := Purges{newest: p.newest, floor: p.floor}
	for _, r := range all {
		everything.put(Rule{Seq: r.Seq, At: r.At, Kind: RuleWhole, Soft: r.Soft})
	}
	*p = everything
}

// Rules are all rules, the oldest first. A thing that was purged softly after it was purged has two, and three if it was so more than once.
func (p *Purges) Rules() []Rule {
	var all []Rule
	for at, in := range p.scopes {
		add := func(kind, text string, m *mark) {
			r := Rule{Distribution: at.distribution, Host: at.host, Kind: kind, Text: text}
			if m.hard > 0 {
				r.Seq, r.At = m.hard, m.hardAt
				all = append(all, r)
			}
			r.Soft = true
			if m.first > 0 && m.first < m.soft {
				r.Seq, r.At = m.first, m.firstAt
				all = append(all, r)
			}
			if m.soft > 0 {
				r.Seq, r.At = m.soft, m.softAt
				all = append(all, r)
			}
		}
		if in.whole != nil {
			add(RuleWhole, "", in.whole)
		}
		for text, m := range in.paths {
			add(RulePath, text, m)
		}
		for text, m := range in.prefix {
			add(RulePrefix, text, m)
		}
		for text, m := range in.tags {
			add(RuleTag, text, m)
		}
	}
	slices.SortFunc(all, func(a, b Rule) int {
		return cmp.Or(cmp.Compare(a.Seq, b.Seq), strings.Compare(a.Distribution, b.Distribution), strings.Compare(a.Host, b.Host),
			strings.Compare(a.Kind, b.Kind), strings.Compare(a.Text, b.Text))
	})
	return all
}

// Forget forgets the rules up to a sequence number: nothing is kept any more that was not looked at since. What
// nevertheless says that it is older is purged.
func (p *Purges) Forget(upTo uint64) {
	upTo = min(upTo, p.newest)
	if upTo <= p.floor {
		return
	}
	left := Purges{newest: p.newest, floor: upTo}
	if upTo < p.newest {
		for _, r := range p.Rules() {
			left.put(r)
		}
	}
	*p = left
}

// Verdict is what purges mean for one response.
type Verdict struct {
	Hard bool      // it is not to be used
	Soft bool      // it is stale
	At   time.Time // since when it is stale
}

// Judge says whether a response is purged: that of the Key's URI (or of a slot of the store, which begins with it), which has
// the tags as an Object holds them, and was asked for, or looked at last, when the newest rule was that of the sequence number.
// A URI that is none is purged.
func (p *Purges) Judge(uri, tags string, seen uint64) (v Verdict) {
	if seen < p.floor {
		return Verdict{Hard: true}
	}
	if seen >= p.newest {
		return Verdict{}
	}
	if !p.about(uri, tags, func(m *mark) {
		v.Hard = v.Hard || m.hard > seen
		if at, stale := m.since(seen); stale {
			v.soften(at)
		}
	}) {
		return Verdict{Hard: true}
	}
	return v
}

// softenedSince is Judge of soft purges, of a response of which is known when it was asked for, by the clock: it may have been kept
// elsewhere.
func (p *Purges) softenedSince(uri string, asked time.Time) (v Verdict) {
	p.about(uri, "", func(m *mark) {
		switch {
		case m.soft == 0 || m.softAt.Before(asked):
		case m.firstAt.Before(asked):
			v.soften(asked) // of those between the first and the newest it is not known which was the first after it
		default:
			v.soften(m.firstAt)
		}
	})
	return v
}

// soften has the verdict be of one more that made it stale.
func (v *Verdict) soften(at time.Time) {
	if !v.Soft || at.Before(v.At) {
		v.Soft, v.At = true, at
	}
}

// about goes through the marks that a response is under, if the URI is one.
func (p *Purges) about(uri, tags string, each func(*mark)) (ok bool) {
	distribution, rest, _ := cutPart(uri)
	path, rest, _ := cutPart(rest)
	query, rest, _ := cutPart(rest)
	_, rest, _ = cutPart(rest)
	host, _, ok := cutPart(rest)
	if !ok {
		return false
	}
	if path = plain(path); query != "" {
		path += "?" + query
	}
	if host = plainHost(host); host == "" {
		host = noHost
	}
	is := func(m *mark) {
		if m != nil {
			each(m)
		}
	}
	for _, at := range [...]scope{{}, {distribution, ""}, {"", host}, {distribution, host}} {
		in := p.scopes[at]
		if in == nil {
			continue
		}
		is(in.whole)
		is(in.paths[path])
		for length, n := range in.lengths {
			if n > 0 && length <= len(path) {
				is(in.prefix[path[:length]])
			}
		}
		if len(in.tags) == 0 {
			continue
		}
		for left := tags; left != ""; {
			var tag string
			tag, left, _ = strings.Cut(left, ",")
			is(in.tags[tag])
		}
	}
	return true
}

// plain is a path without escapes.
func plain(path string) string {
	if strings.IndexByte(path, '%') >= 0 {
		if p, err := url.PathUnescape(path); err == nil {
			return p
		}
	}
	return path
}

// plainHost is a host in lower case, without port and final dot.
func plainHost(host string) string {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && i > strings.LastIndexByte(host, ']') {
		host = host[:i]
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// Bounds of tags (CloudFront). What is beyond them, or no tag, is counted and does not tag.
const (
	maxTags = 50  // of one response
	maxTag  = 256 // bytes
)

// tagged are the tags of a response: in lower case, each once, with commas between them; and how many were refused.
func (p *Policy) tagged(h http.Header) (tags string, refused int) {
	if p.TagHeader == "" {
		return "", 0
	}
	return parseTags(h[p.TagHeader])
}

func parseTags(lines []string) (tags string, refused int) {
	var all []string
	for _, line := range lines {
		for tag := range strings.SplitSeq(line, ",") {
			switch tag = lower(trim(tag)); {
			case tag == "", slices.Contains(all, tag):
			case !validTag(tag), len(all) == maxTags:
				refused++
			default:
				all = append(all, tag)
			}
		}
	}
	return strings.Join(all, ","), refused
}

// validTag says whether a tag is one: 1 to 256 visible ASCII characters, and no comma.
func validTag(tag string) bool {
	for i := range len(tag) {
		if c := tag[i]; c < '!' || c > '~' || c == ',' {
			return false
		}
	}
	return tag != "" && len(tag) <= maxTag
}

// lower is ASCII text in lower case; other bytes stay as they are.
func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, s)
}

// Purge sees to it that what the purges name is not used from now on, or only as stale, and that nothing of it that is on its
// way is kept, or given to anyone who asks from now on. It takes as long as the purges have items, however much is kept: each
// response is compared with the purges since it was last looked at, when it is found or when the sweep comes by. Where there is a
// disk, it has taken note then, so that no restart undoes a purge. If it could not, the error is ErrUnnoted: the purges are made, and
// the disk is told again until it can.
func (c *Cache) Purge(all ...Purge) error {
	seq := uint64(0)
	for _, p := range all {
		if rules := p.rules(); len(rules) > 0 {
			seq = c.purge(rules)
		}
	}
	if c.shelf == nil || seq == 0 {
		return nil
	}
	return c.shelf.note(seq)
}

// purge makes the rules of one purge.
func (c *Cache) purge(rules []Rule) (seq uint64) {
	now := time.Now()
	var one, unseen Purges // for what is on its way: where its tags are not known yet, they may be any
	one.add(rules, now)
	anyTag := untagged(rules)
	unseen.add(anyTag, now)
	c.counts.purges.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.log.Lock()
	seq = c.purges.add(rules, now)
	if rules[0].Soft {
		c.softs.add(anyTag, now)
	}
	c.log.Unlock()
	c.newest.Store(seq)
	c.outdate(func(f *fill) bool {
		by := &one
		if !f.headed && f.want.Policy.TagHeader != "" {
			by = &unseen
		}
		return by.Judge(f.want.Key.URI, f.tags, 0) != Verdict{}
	})
	if !c.sweeping && c.ctx.Err() == nil { // Close waits, and for no more than runs already
		c.sweeping = true
		c.running.Go(c.sweep)
	}
	return seq
}

// alive says whether an entry may still be used, as far as purges go. It notes what it finds out, so that until the next purge
// it compares two numbers.
func (c *Cache) alive(slot string, e *entry) bool {
	for {
		seen := e.seen.Load()
		if seen == dead {
			return false
		}
		if seen >= c.newest.Load() {
			return true
		}
		tags := ""
		if e.object != nil {
			tags = e.object.more().tags
		}
		c.log.RLock()
		v, newest := c.purges.Judge(slot, tags, seen), c.purges.Newest()
		c.log.RUnlock()
		if v.Soft && e.object != nil && !v.Hard && e.soft.CompareAndSwap(nil, e.object.softened(v.At)) {
			c.counts.softened.Add(1)
		}
		if v.Hard {
			newest = dead
		}
		if !e.seen.CompareAndSwap(seen, newest) {
			continue
		}
		if v.Hard && e.object != nil {
			c.counts.purged.Add(1)
		}
		return !v.Hard
	}
}

const (
	// sweepDelay is how long the sweep waits for further purges before it begins.
	sweepDelay = time.Second
	// sweepPiece is after how many entries it pauses, for sweepPause: it takes at most about a tenth of one processor.
	sweepPiece = 512
	sweepPause = time.Millisecond
)

// sweep looks at all that is kept, gives back the memory and disk of what was purged, and then forgets the purges. It ends when
// there is none left.
func (c *Cache) sweep() {
	for c.pause(sweepDelay) {
		upTo, n := c.settled(), 0
		for slot, e := range c.stored.All() {
			if !c.alive(slot, e) {
				c.drop(slot, e)
			}
			if n++; n%sweepPiece == 0 && !c.pause(sweepPause) {
				return
			}
		}
		if c.shelf != nil && !c.shelf.sweep(upTo) {
			if !c.pause(shelfRetry) {
				return
			}
			continue
		}
		if c.swept(upTo) {
			return
		}
	}
}

// settled is the newest purge that all entries were compared with which are kept from now on.
func (c *Cache) settled() uint64 {
	if c.shelf != nil {
		c.shelf.gate.Lock() // what was compared before has been given to the disk
		defer c.shelf.gate.Unlock()
	}
	return c.newest.Load()
}

// swept forgets what all that is kept was compared with, and says whether that is all.
func (c *Cache) swept(upTo uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.log.Lock()
	c.purges.Forget(upTo)
	c.log.Unlock()
	c.sweeping = c.newest.Load() != upTo
	return !c.sweeping
}

// pause waits so long, unless the cache is closed.
func (c *Cache) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-c.ctx.Done():
		return false
	}
}

// drop takes an entry away, if it is still that in its slot.
func (c *Cache) drop(slot string, e *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now, ok := c.stored.GetEntryQuietly(slot); ok && now.Value == e {
		c.stored.Invalidate(slot)
	}
}

// SetFence begins a fence or ends it. A node that has missed a purge, and knows it, is fenced until it has made up for it: what
// was kept before the fence began is not used before the origin has said that it is still good, and does not cover up for an
// origin that fails. What comes while it stands is used as always. To set it again where it stands begins it anew: do so
// when another purge is known to be missing. To end it frees what is still kept, so the missed purges must have been made.
func (c *Cache) SetFence(fenced bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !fenced {
		c.fence.Store(0)
		return
	}
	c.era++
	c.fence.Store(c.era)
	c.outdate(func(*fill) bool { return true }) // what is on its way was asked for before
}
