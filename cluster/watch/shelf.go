package watch

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/perigee-net/perigee/cluster/store"
)

const (
	// maxHeld bounds the bytes of the messages that are being sent; a stream that needs one more is ended, and its follower
	// comes again or takes another source. One message more may be held, so that any can be sent.
	maxHeld = 256 << 20

	// maxIdle is how many deltas are kept that nobody is being sent, for those who come to the same place a moment later.
	maxIdle = 8

	// maxIdleBytes bounds a delta that is kept so.
	maxIdleBytes = 256 << 10
)

var errBusy = errors.New("too much is being sent")

// shelf holds the messages that are being sent, so that each is encoded once for all who get it.
type shelf struct {
	mu       sync.Mutex
	messages []*message // oldest first
	encoded  uint64

	work     sync.WaitGroup
	encoding sync.Mutex // one snapshot is encoded at a time: they are large
}

// message is encoded by who asks for it first; the others wait. What is set before ready is closed stays.
type message struct {
	delta  bool
	edits  bool           // of a delta: its large objects may be edits
	from   store.Position // of a delta
	to     *store.State
	ready  chan struct{}
	framed []byte // nil: there is no such message
	err    error

	users int // of the shelf, under its lock
}

// delta returns the message from a position to a state; nil where there is none, because the history does not go back so far
// or it would be too long. It is to be given back. Who waits for it beats.
func (s *shelf) delta(ctx context.Context, from store.Position, to *store.State, edits bool, beat func() error) (*message, error) {
	return s.take(ctx, &message{delta: true, edits: edits, from: from, to: to}, beat, func(m *message) bool {
		return m.delta && m.edits == edits && m.from == from && m.to == to
	})
}

// snapshot returns a message with a whole state: this one, or one that is being sent already if there is a delta from there.
func (s *shelf) snapshot(ctx context.Context, to *store.State, beat func() error) (*message, error) {
	return s.take(ctx, &message{to: to}, beat, func(m *message) bool {
		if m.delta {
			return false
		}
		_, near := to.Since(m.to.Position())
		return m.to == to || near
	})
}

// take finds a message that fits, or has a new one encoded.
func (s *shelf) take(ctx context.Context, wanted *message, beat func() error, fits func(*message) bool) (*message, error) {
	s.mu.Lock()
	m := wanted
	if i := slices.IndexFunc(s.messages, fits); i >= 0 {
		m = s.messages[i]
	} else if s.held() > maxHeld {
		s.mu.Unlock()
		return nil, errBusy
	} else {
		m.ready = make(chan struct{})
		s.messages = append(s.messages, m)
		s.encoded++
		s.work.Go(func() {
			m.framed, m.err = s.encode(m)
			close(m.ready)
		})
	}
	m.users++
	s.mu.Unlock()
	err := m.wait(ctx, beat)
	if err == nil {
		err = m.err
	}
	if err != nil || m.framed == nil {
		s.back(m)
		return nil, err
	}
	return m, nil
}

// wait waits until the message is there.
func (m *message) wait(ctx context.Context, beat func() error) error {
	for {
		select {
		case <-m.ready:
			return nil
		case <-time.After(beatEvery):
			if err := beat(); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// encode returns nil, and no error, for a delta that there is not.
func (s *shelf) encode(m *message) ([]byte, error) {
	if !m.delta {
		s.encoding.Lock()
		defer s.encoding.Unlock()
		f := newFramer(kindSnapshot, headOf(m.to))
		if err := store.WriteState(f, m.to); err != nil {
			return nil, err
		}
		return f.end(), nil
	}
	d, ok := m.to.Since(m.from)
	if !ok {
		return nil, nil
	}
	if m.edits {
		d = m.to.Edited(d)
	}
	body, err := store.EncodeDelta(d)
	if err != nil || len(body) > maxDelta {
		return nil, err
	}
	f := newFramer(kindDelta, headOf(m.to))
	f.Write(body)
	return f.end(), nil
}

// back gives a message back. The last few deltas stay, as followers that are not yet there will ask for them.
func (s *shelf) back(m *message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m.users--
	idle := 0
	for i := len(s.messages) - 1; i >= 0; i-- {
		m := s.messages[i]
		if m.users > 0 {
			continue
		}
		select {
		case <-m.ready:
		default:
			continue // it is being made, though who asked for it has gone: its size is not known yet
		}
		if m.delta && len(m.framed) <= maxIdleBytes && idle < maxIdle {
			idle++
			continue
		}
		s.messages = slices.Delete(s.messages, i, i+1)
	}
}

// held is how many bytes the messages have. Under the lock.
func (s *shelf) held() int {
	sum := 0
	for _, m := range s.messages {
		select {
		case <-m.ready:
			sum += len(m.framed)
		default:
		}
	}
	return sum
}

func (s *shelf) counts() (encoded, held uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.encoded, uint64(s.held())
}
