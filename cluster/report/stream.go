package report

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/perigee-net/perigee/cluster/wire"
)

const (
	// pace is the least time between two frames on a stream, full ones apart: of a flood of changes there are fewer and larger ones.
	// A change after a while of rest goes at once.
	pace = 20 * time.Millisecond
	// beatEvery is the longest time between two frames; a peer that is silent for silence is cut off.
	beatEvery = time.Second
	silence   = 3500 * time.Millisecond
	// writeTimeout is how long a peer may take for one frame.
	writeTimeout = 10 * time.Second
	// tellAfter is about how long after a change a peer, to which it is not sent anyway, is told that it is known here.
	tellAfter = 750 * time.Millisecond
	// grace is how long what a peer has more is waited for before it is asked for; it may come from another.
	grace = 500 * time.Millisecond
	// askAgain is how long after a node's words were asked for they are asked for again, of this peer or another.
	askAgain = time.Second
	// keptBuffer is how large a buffer of a stream may stay when it is not needed.
	keptBuffer = 8 << 10
)

var errSilent = errors.New("peer is silent")

// stream is a stream with a peer: this end says on it what the peer lacks.
type stream struct {
	r       *Reports
	conn    net.Conn
	name    string // of the peer
	dialled bool
	born    time.Time
	wake    chan struct{} // the writer
	done    chan struct{} // closed when the reader has ended

	// Guarded by Reports.mu.
	far    []far      // by slot
	names  []incoming // what the peer's numbers mean
	wished wish       // by this end
	asked  wish       // by the peer
	mute   bool       // wished was not said yet
	next   int        // the slot of which the peer is to be told first, at the beginning
	ready  bool       // the peer has said all that it has, and the other way round
	heard  bool
	ended  bool      // it was cut
	dirty  []*origin // to be said
	untold []*origin // to be told of, from tellAt on
	behind []*origin // of which the peer has more; to be asked for from askAt on
	wants  []*origin // to be asked for now
	forgot []string
	tellAt time.Time
	askAt  time.Time
	sent   time.Time
}

// far is what the peer of a stream has of a node.
type far struct {
	has    uint64 // what it is known to have, in the life that is known here
	told   uint64 // what it knows that this node has
	under  uint64 // the floor that it knows of
	newer  bool   // it knows of a later life
	named  bool   // it knows what number the node has
	wanted bool   // it asked
	queued bool   // in dirty
	untold bool
	behind bool
	asking bool // in wants
}

// incoming is what a number of the peer means.
type incoming struct {
	name string
	life uint64
	o    *origin // may be forgotten since
}

func (r *Reports) newStream(conn net.Conn, name string, dialled bool, now time.Time) *stream {
	s := &stream{
		r: r, conn: conn, name: strings.Clone(name), dialled: dialled, born: now, sent: now, mute: true,
		wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	s.wished = r.peers[name].wish
	r.streams[s] = true
	r.counts.streams.Add(1)
	return s
}

// run serves a stream until it ends.
func (s *stream) run() {
	var writer sync.WaitGroup
	writer.Go(func() {
		if err := s.write(); err != nil {
			s.conn.Close() // wakes the reader
		}
	})
	err := s.read()
	s.conn.Close()
	close(s.done)
	writer.Wait()
	switch {
	case errors.Is(err, errSilent):
		s.r.counts.silent.Add(1)
	case errors.Is(err, errMalformed):
		s.r.counts.malformed.Add(1)
		s.r.log.Debug("a peer sent what makes no sense", "node", s.name, "error", err)
	}
}

// of returns what is known of what the peer has of a node.
func (s *stream) of(o *origin) *far {
	if o.slot >= len(s.far) {
		s.far = append(s.far, make([]far, max(len(s.r.slots), o.slot+1)-len(s.far))...)
	}
	return &s.far[o.slot]
}

func (s *stream) rouse() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// pushes says whether the peer is to be told what a node says without asking.
func (s *stream) pushes(o *origin) bool {
	switch {
	case o == s.r.self:
		return true
	case !o.live || o.name == s.name:
		return false
	case s.asked == region:
		return o.region == s.r.cfg.Region
	}
	return s.asked == everything
}

// note has the peer told of what is new of a node, or asked for it if it has more.
func (s *stream) note(o *origin, now time.Time) {
	f := s.of(o)
	switch {
	case !o.live && o.name != s.name:
	case f.newer || f.has > o.have:
		if !f.behind {
			f.behind = true
			s.behind = append(s.behind, o)
		}
		if s.askAt.IsZero() {
			s.askAt = now.Add(grace)
			s.rouse()
		}
	case f.has == o.have:
	case s.pushes(o) || f.wanted:
		if !f.queued {
			f.queued = true
			s.dirty = append(s.dirty, o)
			s.rouse()
		}
	case f.told < o.have:
		if !f.untold {
			f.untold = true
			s.untold = append(s.untold, o)
		}
		if s.tellAt.IsZero() {
			s.tellAt = now.Add(jitter(tellAfter))
			s.rouse()
		}
	}
}

// write sends what there is to say until the stream ends.
func (s *stream) write() error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var b []byte
	for {
		s.r.mu.Lock()
		now := time.Now()
		b = s.compose(append(b[:0], 0, 0, 0, 0), now)
		wait := s.wait(now)
		s.r.mu.Unlock()
		if len(b) > 4 || wait <= 0 {
			binary.BigEndian.PutUint32(b, uint32(len(b)-4))
			s.conn.SetWriteDeadline(now.Add(writeTimeout))
			if _, err := s.conn.Write(b); err != nil {
				if errors.Is(err, os.ErrDeadlineExceeded) {
					s.r.counts.stalled.Add(1)
				}
				return err
			}
			s.r.counts.frames.Add(1)
			s.r.counts.sentBytes.Add(uint64(len(b)))
			full := len(b) > frameSize/2
			if cap(b) > keptBuffer {
				b = nil
			}
			s.r.mu.Lock()
			s.sent = time.Now()
			s.r.mu.Unlock()
			if full {
				continue
			}
			timer.Reset(pace)
			select {
			case <-timer.C:
			case <-s.done:
				return nil
			}
			continue
		}
		timer.Reset(wait)
		select {
		case <-s.wake:
		case <-timer.C:
		case <-s.done:
			return nil
		}
	}
}

// wait is how long there is nothing to say, if nothing happens.
func (s *stream) wait(now time.Time) time.Duration {
	until := s.sent.Add(beatEvery)
	if !s.askAt.IsZero() && s.askAt.Before(until) {
		until = s.askAt
	}
	if !s.tellAt.IsZero() && s.tellAt.Before(until) && s.ready && s.heard {
		until = s.tellAt
	}
	return until.Sub(now)
}

// compose makes a frame of what is to be said now, in the order of how short it is.
func (s *stream) compose(b []byte, now time.Time) []byte {
	if s.mute {
		s.mute = false
		b = append(b, itemWish, byte(s.wished))
	}
	if !s.ready {
		b = s.greet(b)
	}
	for len(s.forgot) > 0 && len(b) < frameSize {
		b = wire.Append(append(b, itemForgot), s.forgot[0])
		s.forgot = s.forgot[1:]
	}
	b = s.ask(b, now)
	if s.ready && s.heard {
		b = s.say(b)
		b = s.tell(b, now)
	}
	return b
}

// greet says of all nodes what is known here. Of the peer itself too, even if it is not known to live: it may have a life to
// supersede.
func (s *stream) greet(b []byte) []byte {
	var has []mark
	for ; s.next < len(s.r.slots) && len(b) < frameSize-8*len(has); s.next++ {
		if o := s.r.slots[s.next]; o != nil && o.have > 0 && (o.live || o.name == s.name) {
			b = s.number(b, o)
			has = append(has, mark{o.slot, o.have})
			s.far[o.slot].told = o.have
		}
	}
	if len(has) > 0 {
		b = appendHas(b, has)
	}
	if s.next >= len(s.r.slots) {
		s.ready = true
		b = append(b, itemReady)
	}
	return b
}

// number makes a node's number known to the peer.
func (s *stream) number(b []byte, o *origin) []byte {
	f := s.of(o)
	if f.named {
		return b
	}
	f.named = true
	return appendNode(b, o.slot, o.name, o.life)
}

// ask asks for what the peer has more, if nobody was asked just now.
func (s *stream) ask(b []byte, now time.Time) []byte {
	want := func(o *origin) {
		o.asked = now
		b = s.number(b, o)
		b = appendWant(b, o.slot, o.have)
		s.r.counts.wants.Add(1)
	}
	for len(s.wants) > 0 && len(b) < frameSize {
		if o := s.wants[0]; !o.forgotten && s.of(o).asking {
			s.of(o).asking = false
			want(o)
		}
		s.wants = s.wants[1:]
	}
	if s.askAt.IsZero() || now.Before(s.askAt) {
		return b
	}
	var left []*origin
	for _, o := range s.behind {
		if o.forgotten {
			continue
		}
		f := s.of(o)
		if !o.live || !f.newer && f.has <= o.have {
			f.behind = false
			continue
		}
		left = append(left, o)
		if now.Sub(o.asked) >= askAgain && len(b) < frameSize {
			want(o)
		}
	}
	s.behind, s.askAt = left, time.Time{}
	if len(left) > 0 {
		s.askAt = now.Add(jitter(grace))
	}
	return b
}

// say says what nodes said that the peer lacks.
func (s *stream) say(b []byte) []byte {
	for len(s.dirty) > 0 && len(b) < frameSize {
		o := s.dirty[0]
		s.dirty = s.dirty[1:]
		if o.forgotten || !s.of(o).queued {
			continue
		}
		f := s.of(o)
		f.queued = false
		if !o.live || f.has >= o.have || !f.wanted && !s.pushes(o) {
			f.wanted = false
			continue
		}
		b = s.number(b, o)
		from := f.has
		if from < o.floor && f.under != o.floor {
			from = 0
		}
		var to uint64
		before := len(b)
		b, to = appendSaid(b, o.slot, o, from, max(frameSize-before, 1))
		f.has, f.told, f.under = to, max(f.told, to), o.floor
		s.r.counts.statements.Add(1)
		if to < o.have {
			f.queued = true
			s.dirty = append(s.dirty, o)
		} else {
			f.wanted = false
		}
	}
	if len(s.dirty) == 0 {
		s.dirty = nil
	}
	return b
}

// tell tells what is known here and not sent to the peer.
func (s *stream) tell(b []byte, now time.Time) []byte {
	if s.tellAt.IsZero() || now.Before(s.tellAt) {
		return b
	}
	var has []mark
	i := 0
	for ; i < len(s.untold) && len(b) < frameSize-8*len(has); i++ {
		o := s.untold[i]
		if o.forgotten || !s.of(o).untold {
			continue
		}
		f := s.of(o)
		f.untold = false
		if (o.live || o.name == s.name) && f.told < o.have && f.has < o.have {
			b = s.number(b, o)
			has = append(has, mark{o.slot, o.have})
			f.told = o.have
		}
	}
	if len(has) > 0 {
		b = appendHas(b, has)
	}
	s.untold = s.untold[i:]
	if len(s.untold) == 0 {
		s.untold, s.tellAt = nil, time.Time{}
	}
	return b
}

// read takes what the peer says until the stream ends.
func (s *stream) read() error {
	var buffer []byte
	var head [4]byte
	for {
		s.conn.SetReadDeadline(time.Now().Add(silence))
		if _, err := io.ReadFull(s.conn, head[:]); err != nil {
			return ended(err)
		}
		size := int(binary.BigEndian.Uint32(head[:]))
		s.r.counts.receivedBytes.Add(uint64(4 + size))
		if size == 0 {
			continue
		}
		if size > maxFrame {
			return fmt.Errorf("frame of %d bytes: %w", size, errMalformed)
		}
		// No more memory than what has come twice over, whatever the length says.
		buffer = buffer[:0]
		for len(buffer) < size {
			had := len(buffer)
			more := min(size-had, max(had, keptBuffer))
			buffer = append(buffer, make([]byte, more)...)
			s.conn.SetReadDeadline(time.Now().Add(silence))
			if _, err := io.ReadFull(s.conn, buffer[had:]); err != nil {
				return ended(err)
			}
		}
		items, err := decodeFrame(buffer)
		if err != nil {
			return err
		}
		if err := s.r.hear(s, items); err != nil {
			return err
		}
		if cap(buffer) > keptBuffer {
			buffer = nil
		}
	}
}

func ended(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errSilent
	}
	return err
}

// hear takes what a peer said in one frame.
func (r *Reports) hear(s *stream, items []item) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || s.ended {
		return net.ErrClosed
	}
	now := time.Now()
	asked, heard := s.asked, s.heard
	for _, i := range items {
		if err := r.hearItem(s, i, now); err != nil {
			return err
		}
	}
	if s.heard && (!heard || asked != s.asked) {
		for _, o := range r.slots {
			if o != nil {
				s.note(o, now)
			}
		}
	}
	r.flush(now)
	return nil
}

func (r *Reports) hearItem(s *stream, i item, now time.Time) error {
	switch i.kind {
	case itemNode:
		if i.number >= len(s.names) {
			s.names = append(s.names, make([]incoming, i.number+1-len(s.names))...)
		}
		in := incoming{name: i.name, life: i.life, o: r.origins[i.name]}
		if in.o != nil {
			in.name = in.o.name // one string for all streams
		}
		s.names[i.number] = in
	case itemReady:
		s.heard = true
		r.wakeTend() // the stream is of use now
	case itemWish:
		s.asked = i.wish
	case itemForgot:
		if o := r.origins[i.name]; o != nil {
			f := s.of(o)
			f.has, f.told, f.under, f.newer = 0, 0, 0, false
			s.note(o, now)
		}
	case itemSaid:
		return r.hearSaid(s, i, now)
	case itemWant:
		o, life, err := r.meant(s, i.number, now)
		if o == nil {
			return err
		}
		f := s.of(o)
		f.has, f.under, f.newer, f.wanted = 0, 0, life > o.life, life <= o.life
		if life == o.life {
			f.has = i.seq
		}
		s.note(o, now)
	case itemHas:
		for _, m := range i.has {
			o, life, err := r.meant(s, m.number, now)
			if err != nil {
				return err
			}
			if o != nil {
				r.hearHas(s, o, life, m.seq, now)
			}
		}
	}
	return nil
}

// meant returns which node is meant by a number of the peer, and which life of it. It may be none that is to be known.
func (r *Reports) meant(s *stream, number int, now time.Time) (*origin, uint64, error) {
	if number >= len(s.names) || s.names[number].name == "" {
		return nil, 0, fmt.Errorf("a number that no node was given: %w", errMalformed)
	}
	in := &s.names[number]
	if in.o == nil || in.o.forgotten {
		if in.o = r.open(in.name, 0, now); in.o != nil {
			in.name = in.o.name
		}
	}
	return in.o, in.life, nil
}

func (r *Reports) hearHas(s *stream, o *origin, life, seq uint64, now time.Time) {
	f := s.of(o)
	switch {
	case o == r.self && (life > o.life || life == o.life && seq > o.have):
		r.supersede(life, now)
		return
	case o.life == 0: // nothing is known of it
		o.life = life
		f.has = seq
	case life > o.life:
		f.newer = true
	case life == o.life:
		f.has = max(f.has, seq)
	}
	if s.heard {
		s.note(o, now)
	}
}

func (r *Reports) hearSaid(s *stream, i item, now time.Time) error {
	o, life, err := r.meant(s, i.number, now)
	if o == nil {
		return err
	}
	i.said.life = life
	if o == r.self {
		if life > o.life || life == o.life && i.said.to > o.have {
			r.supersede(life, now)
		}
		return nil
	}
	r.counts.heard.Add(uint64(len(i.said.records)))
	if life < o.life {
		s.note(o, now)
		return nil
	}
	if !o.live && r.strangers > maxStrangers {
		f := s.of(o)
		f.newer = f.newer || life > o.life
		if life == o.life {
			f.has = max(f.has, i.said.to)
		}
		r.counts.dropped.Add(uint64(len(i.said.records)))
		return nil
	}
	if o.life == 0 {
		o.life = life
	}
	if life > o.life {
		r.another(o)
	}
	before := o.bytes
	what, dropped := o.take(i.said, now)
	if !o.live {
		r.strangers += o.bytes - before
	}
	r.counts.dropped.Add(uint64(dropped))
	f := s.of(o)
	f.newer = false
	f.has, f.told = max(f.has, i.said.to), max(f.told, i.said.to)
	switch what {
	case taken:
		r.counts.taken.Add(uint64(len(i.said.records) - dropped))
		r.changed(o, now)
	case lacking:
		r.counts.gaps.Add(1)
		f.told = o.have
		if !f.asking {
			f.asking = true
			s.wants = append(s.wants, o)
			s.rouse()
		}
	case known:
		r.counts.known.Add(uint64(len(i.said.records)))
	}
	return nil
}
