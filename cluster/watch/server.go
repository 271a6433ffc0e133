// Package watch lets a node follow what is agreed without being in Raft: a Server shows the states of a node to others, a
// Follower takes them from one that it chooses, and may show them on by a Server of its own.
//
// It agrees on nothing and keeps nothing on disk. It works on connections that are authenticated already, and
// believes what a node of the cluster sends only as far as the sums of the state come out. A follower sees
// the newest state soon, not each one: a source keeps no queue, and sends who is ready what has come since.
// When a source is lost, silent, cut off from the leader or behind the others, the follower goes on with
// what it has and looks for another; it resumes there by its position. With no source at all it keeps what it
// has for ever. No state that is taken is older than the one before it.
package watch

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/cluster/latest"
	"github.com/perigee-net/perigee/cluster/store"
)

// Protocol names the service at the control port (RFC 7301).
const Protocol = "perigee-watch/1"

// MaxDepth is the depth of a node that is not fed by a leader, over however many others. It is what a source may not
// have: so what follows a source of depth 2 feeds nobody, and followers that follow each other in a circle find out.
const MaxDepth = 3

const (
	// maxStreams bounds the streams of a server; beyond it they are closed at once, and the follower takes another source.
	maxStreams = 512

	// maxStreamsOfOne bounds the streams of one node; beyond it the oldest is ended, for it is likely to be dead.
	maxStreamsOfOne = 4

	// pace is the least time between two messages to one follower: of a flood of changes it gets fewer and larger ones, as each
	// costs it a walk over all objects. A change after a while of rest goes at once.
	pace = 20 * time.Millisecond

	// maxUnacked bounds the messages that a follower has not acknowledged; beyond it nothing is sent but beats. So what it is
	// too slow to take does not fill the buffers between, and it comes back with one step when it can.
	maxUnacked = 8

	// depthEvery is how often a server asks for its own depth.
	depthEvery = 500 * time.Millisecond

	// acceptPause is how long a server waits after the system could not give it a connection (too many open files).
	acceptPause = 100 * time.Millisecond
)

// ServerConfig is what a Server is made of.
type ServerConfig struct {
	// Listener gives connections of nodes of the cluster; Server.Close closes it. A connection that has a method
	// Peer() string is known by that name, any other by the name it says.
	Listener net.Listener
	State    *latest.Value[*store.State] // nil in it: none yet
	// Depth is how far this node is from a leader: 0 for a voter that hears one, n+1 for a follower of a source of depth n,
	// MaxDepth for a node that is not fed. It is asked every half a second, and must not block.
	Depth func() int
	Log   *slog.Logger // nil: none
}

// Server shows the states of this node to followers.
type Server struct {
	cfg    ServerConfig
	offers latest.Value[offer]
	shelf  shelf
	work   sync.WaitGroup
	ctx    context.Context // ends with the server
	cancel context.CancelFunc

	mu      sync.Mutex
	streams map[*outflow]bool
	born    uint64 // counts streams

	accepted, refused, superseded, stalled, silent, nonsense, snapshots, deltas, sent atomic.Uint64
}

// offer is what a server has to give.
type offer struct {
	state *store.State // nil: nothing
	depth int
}

// beat is what followers are told of it.
func (o offer) beat() beat {
	if o.state == nil {
		return beat{Depth: MaxDepth}
	}
	return beat{Depth: o.depth, Position: o.state.Position()}
}

// Serve begins to serve.
func Serve(cfg ServerConfig) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, streams: map[*outflow]bool{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	version := s.offer(0)
	s.work.Go(func() { s.look(version) })
	s.work.Go(s.accept)
	return s
}

// Close ends the listener and all streams, and waits until they have ended.
func (s *Server) Close() error {
	s.cancel()
	err := s.cfg.Listener.Close()
	s.work.Wait()
	s.shelf.work.Wait()
	return err
}

// Counters counts what happened at the server.
func (s *Server) Counters() map[string]uint64 {
	s.mu.Lock()
	streams := len(s.streams)
	s.mu.Unlock()
	encoded, held := s.shelf.counts()
	return map[string]uint64{
		"watch_streams":                  uint64(streams),
		"watch_streams_total":            s.accepted.Load(),
		"watch_streams_refused_total":    s.refused.Load(),
		"watch_streams_superseded_total": s.superseded.Load(),
		"watch_streams_stalled_total":    s.stalled.Load(),
		"watch_streams_silent_total":     s.silent.Load(),
		"watch_nonsense_total":           s.nonsense.Load(),
		"watch_snapshots_sent_total":     s.snapshots.Load(),
		"watch_deltas_sent_total":        s.deltas.Load(),
		"watch_encoded_total":            encoded,
		"watch_held_bytes":               held,
		"watch_sent_bytes_total":         s.sent.Load(),
	}
}

// look keeps the offer up to date.
func (s *Server) look(version uint64) {
	for s.ctx.Err() == nil {
		wait, cancel := context.WithTimeout(s.ctx, depthEvery)
		s.cfg.State.Next(wait, version)
		cancel()
		version = s.offer(version)
	}
}

// offer offers what there is now, if it is not offered yet, and returns the version of the state.
func (s *Server) offer(version uint64) uint64 {
	now := s.cfg.State.Version() // before Get: what comes between is seen again, not missed
	o := offer{state: s.cfg.State.Get(), depth: s.cfg.Depth()}
	if s.offers.Version() == 0 || s.offers.Get() != o {
		s.offers.Set(o)
	}
	return max(version, now)
}

func (s *Server) accept() {
	for {
		conn, err := s.cfg.Listener.Accept()
		switch {
		case err == nil:
		case s.ctx.Err() != nil:
			return
		case errors.Is(err, net.ErrClosed):
			s.cfg.Log.Error("accept followers", "error", err)
			return
		default:
			select {
			case <-time.After(acceptPause):
			case <-s.ctx.Done():
			}
			continue
		}
		st := &outflow{conn: conn}
		if !s.enter(st) {
			s.refused.Add(1)
			conn.Close()
			continue
		}
		s.work.Go(func() {
			defer s.leave(st)
			s.count(st, s.serve(st))
		})
	}
}

// outflow is one stream to a follower.
type outflow struct {
	conn net.Conn
	name string // known from the hello on
	said bool   // hello, and it was not superseded
	born uint64
}

func (s *Server) enter(st *outflow) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.streams) >= maxStreams {
		return false
	}
	s.born++
	st.born = s.born
	s.streams[st] = true
	return true
}

func (s *Server) leave(st *outflow) {
	st.conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, st)
}

// rename says whose stream it is, and ends the oldest of the same node where there are too many.
func (s *Server) rename(st *outflow, name string) {
	if peer, ok := st.conn.(interface{ Peer() string }); ok {
		name = peer.Peer()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.name, st.said = name, true
	same, oldest := 0, st
	for other := range s.streams {
		if other.said && other.name == name {
			if same++; other.born < oldest.born {
				oldest = other
			}
		}
	}
	if same > maxStreamsOfOne && oldest != st {
		oldest.said = false
		oldest.conn.Close()
		s.superseded.Add(1)
	}
}

// count counts how a stream ended.
func (s *Server) count(st *outflow, err error) {
	switch {
	case s.ctx.Err() != nil:
	case errors.Is(err, errNonsense):
		s.nonsense.Add(1)
		s.cfg.Log.Debug("a follower does not speak the protocol", "node", st.name, "error", err)
	case errors.Is(err, errBusy):
		s.refused.Add(1)
	case errors.Is(err, errSilent):
		s.silent.Add(1)
	case errors.Is(err, os.ErrDeadlineExceeded):
		s.stalled.Add(1)
	}
}

var errSilent = errors.New("follower is silent")

// serve serves one follower until it goes.
func (s *Server) serve(st *outflow) error {
	stop := context.AfterFunc(s.ctx, func() { st.conn.Close() })
	defer stop()
	fr := newFrames(st.conn, helloTimeout, func(_, written int) { s.sent.Add(uint64(written)) })
	told := s.offers.Get().beat()
	if err := fr.write(kindBeat, told.append(nil)); err != nil {
		return err
	}
	slow := time.AfterFunc(helloTimeout, func() { st.conn.Close() })
	kind, payload, err := fr.read()
	slow.Stop()
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errSilent
	case err != nil:
		return err // most often it only wanted to hear the beat
	}
	if kind != kindHello {
		return nonsense("frame of kind %d for a hello", kind)
	}
	h, err := readHello(payload)
	if err != nil {
		return err
	}
	s.rename(st, h.Name)
	s.accepted.Add(1)

	ctx, end := context.WithCancelCause(s.ctx)
	feed := &feed{server: s, frames: fr, told: told, next: time.Now().Add(beatEvery), acked: make(chan store.Position, 1)}
	feed.edits = h.Reads >= store.Format
	feed.has = has{fresh: h.Fresh, head: head{Position: h.Position, SpecSum: h.SpecSum, OwnSum: h.OwnSum}}
	var acks sync.WaitGroup
	acks.Go(func() {
		fr.silence = ackSilence
		end(feed.listen())
		st.conn.Close() // wakes a write
	})
	err = feed.run(ctx)
	st.conn.Close()
	acks.Wait()
	if cause := context.Cause(ctx); cause != nil && s.ctx.Err() == nil && !errors.Is(cause, net.ErrClosed) {
		return cause
	}
	return err
}

// feed is what goes to one follower.
type feed struct {
	server  *Server
	frames  *frames
	has     has
	edits   bool             // the follower reads them
	told    beat             // the last
	next    time.Time        // when the next beat is due
	sent    time.Time        // when the last message was
	unacked []store.Position // where the messages lead to that were not acknowledged; at most maxUnacked
	acked   chan store.Position
}

// listen hears the acks of a follower until it falls silent or ends.
func (f *feed) listen() error {
	for {
		kind, payload, err := f.frames.read()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return errSilent
		case err != nil:
			return err
		case kind != kindAck || len(payload) < 16:
			return nonsense("frame of kind %d and %d bytes for an ack", kind, len(payload))
		}
		select {
		case <-f.acked: // only the last counts
		default:
		}
		f.acked <- readPosition(payload)
	}
}

// run sends the follower what it does not have, and beats.
func (f *feed) run(ctx context.Context) error {
	var version uint64
	for {
		fresh, err := f.wait(ctx, &version)
		if err == nil && fresh {
			err = f.bring(ctx, f.server.offers.Get().state)
		}
		if err == nil {
			err = f.beat()
		}
		if err != nil {
			return err
		}
	}
}

// wait waits until there is something to do: something new, if the follower may have it now, or a beat.
func (f *feed) wait(ctx context.Context, version *uint64) (fresh bool, err error) {
	until := f.next
	full := len(f.unacked) >= maxUnacked
	if rest := f.sent.Add(pace); !full && !time.Now().Before(rest) {
		wait, cancel := context.WithDeadline(ctx, until)
		defer cancel()
		_, v, err := f.server.offers.Next(wait, *version)
		*version = v
		f.hear()
		return err == nil, ctx.Err()
	} else if !full && rest.Before(until) {
		until = rest
	}
	select {
	case p := <-f.acked:
		f.heard(p)
	case <-time.After(time.Until(until)):
	case <-ctx.Done():
	}
	return false, ctx.Err()
}

// hear takes an ack if one has come.
func (f *feed) hear() {
	select {
	case p := <-f.acked:
		f.heard(p)
	default:
	}
}

func (f *feed) heard(p store.Position) {
	f.unacked = slices.DeleteFunc(f.unacked, func(sent store.Position) bool { return p.AtLeast(sent) })
}

// beat says how this node is, if that is due or its depth is another.
func (f *feed) beat() error {
	now := f.server.offers.Get().beat()
	if now.Depth == f.told.Depth && time.Now().Before(f.next) {
		return nil
	}
	f.told, f.next = now, time.Now().Add(beatEvery)
	return f.frames.write(kindBeat, now.append(nil))
}

// has is what a follower has.
type has struct {
	fresh bool // nothing
	head
}

// bring brings the follower to a state, or leaves it where it is if it is there already or ahead. While a message is being
// made, which may take long, it beats.
func (f *feed) bring(ctx context.Context, state *store.State) error {
	for state != nil {
		position := state.Position()
		same := position == f.has.Position && headOf(state) == f.has.head
		ahead := position != f.has.Position && f.has.Position.AtLeast(position)
		if !f.has.fresh && (same || ahead) {
			return nil
		}
		shelf := &f.server.shelf
		var m *message
		var err error
		if !f.has.fresh && position != f.has.Position {
			m, err = shelf.delta(ctx, f.has.Position, state, f.edits, f.beat)
		}
		if m == nil && err == nil {
			m, err = shelf.snapshot(ctx, state, f.beat)
		}
		if err != nil {
			return err
		}
		err = f.frames.send(m.framed)
		shelf.back(m)
		if err != nil {
			return err
		}
		if m.delta {
			f.server.deltas.Add(1)
		} else {
			f.server.snapshots.Add(1)
		}
		// A snapshot that is shared may lead to a state that is not the newest: the rest follows.
		f.has = has{head: headOf(m.to)}
		f.unacked = append(f.unacked, f.has.Position)
		f.sent = time.Now()
	}
	return nil
}
