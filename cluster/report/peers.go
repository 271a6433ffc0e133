package report

import (
	"context"
	"maps"
	"net"
	"time"
)

const (
	// maxStreams bounds the streams of a node, beyond which none is accepted.
	maxStreams = 4096
	// dialTimeout is how long a dial may take.
	dialTimeout = 5 * time.Second
	// firstPause is how long after a stream has ended, or could not be opened, it is tried again; the pause doubles up to lastPause.
	firstPause = 100 * time.Millisecond
	lastPause  = 5 * time.Second
	// steady is how long a stream has to hold so that the next pause is a short one again.
	steady = 5 * time.Second
	// patience is how long the one of two peers whose name is greater waits for the other's dial before it dials itself.
	patience = 2 * time.Second
	// linger is how long a stream is kept that is not wanted any more, so that those that take its place can begin.
	linger = 3 * time.Second
	// strangerFor is how long a stream may last whose peer is not known to live.
	strangerFor = 10 * time.Second
	// lonelyFor is how long a member without a stream to any head of its region waits until it asks others.
	lonelyFor = 1500 * time.Millisecond
)

// peer is a node with which this one has a stream, or wants one.
type peer struct {
	name     string
	wanted   bool
	wish     wish
	since    time.Time // it is not wanted
	dialled  *stream
	accepted *stream
	dialling bool
	at       time.Time // of the next dial
	pause    time.Duration
}

func (r *Reports) wakeTend() {
	select {
	case r.stir <- struct{}{}:
	default:
	}
}

// want sets with whom there shall be streams, by who lives.
func (r *Reports) want(now time.Time) {
	self := Peer{r.cfg.Self, r.cfg.Region}
	r.wishes = topology(self, r.members)
	wishes := maps.Clone(r.wishes)
	if r.reserve {
		for _, name := range reserves(self, r.members) {
			wishes[name] = everything
		}
	}
	for name, w := range wishes {
		p := r.peer(name)
		if !p.wanted {
			p.wanted, p.pause, p.at = true, firstPause, now
			if r.cfg.Self > name {
				p.at = now.Add(jitter(patience))
			}
		}
		p.wish = w
		for _, s := range []*stream{p.dialled, p.accepted} {
			if s != nil && s.wished != w {
				s.wished, s.mute = w, true
				s.rouse()
			}
		}
	}
	for name, p := range r.peers {
		if _, wanted := wishes[name]; !wanted && p.wanted {
			p.wanted, p.since = false, now
		}
	}
	r.wakeTend()
}

func (r *Reports) peer(name string) *peer {
	p := r.peers[name]
	if p == nil {
		p = &peer{name: name, pause: firstPause}
		r.peers[name] = p
	}
	return p
}

// Serve serves one stream that a node has dialled and returns when it has ended; it closes it.
func (r *Reports) Serve(conn net.Conn, from string) {
	r.mu.Lock()
	if r.closed || from == "" || len(from) > MaxName || from == r.cfg.Self || len(r.streams) >= maxStreams || r.refuses(from) {
		r.mu.Unlock()
		r.counts.streamsRefused.Add(1)
		conn.Close()
		return
	}
	r.work.Add(1)
	defer r.work.Done()
	p := r.peer(from)
	if p.accepted != nil { // the node has started again, or given it up
		r.cut(p.accepted)
		r.counts.superseded.Add(1)
	}
	s := r.newStream(conn, from, false, time.Now())
	p.accepted = s
	r.wakeTend()
	r.mu.Unlock()
	s.run()
	r.leave(s)
}

// dial opens a stream to a peer and serves it.
func (r *Reports) dial(p *peer) {
	ctx, cancel := context.WithTimeout(r.ctx, dialTimeout)
	conn, err := r.cfg.Dial(ctx, p.name)
	cancel()
	r.counts.dials.Add(1)
	r.mu.Lock()
	p.dialling = false
	if useless := r.closed || !p.wanted || r.refuses(p.name); err != nil || useless {
		r.rest(p, 0)
		r.wakeTend()
		r.mu.Unlock()
		if err == nil {
			conn.Close()
		} else {
			r.counts.dialsFailed.Add(1)
		}
		return
	}
	s := r.newStream(conn, p.name, true, time.Now())
	p.dialled = s
	r.mu.Unlock()
	s.run()
	r.leave(s)
}

// leave is what follows when a stream has ended.
func (r *Reports) leave(s *stream) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.streams, s)
	p := r.peers[s.name]
	switch {
	case p == nil:
		return
	case s == p.dialled:
		p.dialled = nil
	case s == p.accepted:
		p.accepted = nil
	default:
		return // another has its place
	}
	r.rest(p, time.Since(s.born))
	r.wakeTend()
}

// rest sets when a peer is dialled again, after a stream that held so long.
func (r *Reports) rest(p *peer, held time.Duration) {
	if held >= steady {
		p.pause = firstPause
	}
	p.at = time.Now().Add(jitter(p.pause))
	if r.cfg.Self > p.name && held > 0 {
		p.at = p.at.Add(jitter(patience))
	}
	p.pause = min(2*p.pause, lastPause)
}

// tend opens the streams that are wanted, ends those that are not, and forgets what is old.
func (r *Reports) tend() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		r.mu.Lock()
		if r.closed {
			r.mu.Unlock()
			return
		}
		now := time.Now()
		next := r.step(now)
		r.flush(now)
		r.mu.Unlock()
		timer.Reset(max(next.Sub(now), time.Millisecond))
		select {
		case <-r.stir:
		case <-timer.C:
		case <-r.ctx.Done():
			return
		}
	}
}

// step does what is to be done now, and returns when there is more.
func (r *Reports) step(now time.Time) (next time.Time) {
	if now.Sub(r.swept) >= sweepEvery {
		r.sweep(now)
	}
	next = r.swept.Add(sweepEvery)
	later := func(t time.Time) {
		if t.Before(next) {
			next = t
		}
	}
	if r.foretold >= r.self.life {
		if now.Sub(r.reborn) >= rebirthEvery {
			r.supersede(r.foretold, now)
		} else {
			later(r.reborn.Add(rebirthEvery))
		}
	}
	if t, lonely := r.keepCompany(now); lonely {
		later(t)
	}
	for name, p := range r.peers {
		switch {
		case p.wanted && p.dialled == nil && p.accepted == nil && !p.dialling:
			if now.Before(p.at) {
				later(p.at)
				continue
			}
			p.dialling = true
			r.work.Go(func() { r.dial(p) })
		case p.dialled != nil && p.accepted != nil && p.accepted.heard && r.cfg.Self > name:
			r.cut(p.dialled) // one is enough, and both ends mean the same
		case !p.wanted && p.dialled != nil:
			if end := p.since.Add(linger); now.Before(end) {
				later(end)
			} else {
				r.cut(p.dialled)
			}
		}
		if s := p.accepted; s != nil && !r.lives(name) {
			if end := s.born.Add(strangerFor); now.Before(end) {
				later(end)
			} else {
				r.cut(s)
			}
		}
		if !p.wanted && p.dialled == nil && p.accepted == nil && !p.dialling {
			delete(r.peers, name)
		}
	}
	return next
}

func (r *Reports) lives(name string) bool {
	o := r.origins[name]
	return o != nil && o.live
}

// keepCompany has a member that reaches no head of its region ask others, until it does. It returns when to look again.
func (r *Reports) keepCompany(now time.Time) (time.Time, bool) {
	reached := len(r.wishes) == 0
	for name, w := range r.wishes {
		p := r.peers[name]
		reached = reached || w != everything // it is a head, or all are peers: it has many
		reached = reached || p != nil && (p.dialled != nil && p.dialled.heard || p.accepted != nil && p.accepted.heard)
	}
	switch {
	case reached:
		r.lonely = time.Time{}
		if r.reserve {
			r.reserve = false
			r.want(now)
		}
	case r.reserve:
	case r.lonely.IsZero():
		r.lonely = now
		return now.Add(lonelyFor), true
	case now.Sub(r.lonely) >= lonelyFor:
		r.reserve = true
		r.want(now)
	default:
		return r.lonely.Add(lonelyFor), true
	}
	return time.Time{}, false
}
