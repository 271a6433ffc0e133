package lane

import (
	"context"
	"crypto/sha256"
	"errors"
	"net"
	"sync"
	"time"
)

const (
	// readTimeout is how long an order may take to arrive on its stream, and an acknowledgement to be taken.
	readTimeout  = 5 * time.Second
	writeTimeout = 5 * time.Second

	// maxServing is how many streams are served at one time, and maxServingOf how many of one node. One beyond them is closed
	// at once; who opened it comes again.
	maxServing   = 1024
	maxServingOf = 64

	// maxDone is how many orders are known by their IDs, so that they are not done again.
	maxDone = 4096
)

// Serve reads one order from a stream that node from has opened, does it, acknowledges it and closes the stream.
func (l *Lane) Serve(conn net.Conn, from string) {
	if !l.enter(from) {
		conn.Close()
		return
	}
	defer l.leave(from)
	defer conn.Close()
	defer context.AfterFunc(l.ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	conn.SetReadDeadline(time.Now().Add(readTimeout))
	id, order, err := readMessage(conn)
	if err != nil {
		l.count.malformed.Add(1)
		return
	}
	l.count.served.Add(1)
	err = l.do(from, id, order)
	if errors.Is(err, errClosed) {
		return // no answer is the better one: it is told again, and then nobody is here
	}
	conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := conn.Write(appendAck(nil, err)); err == nil {
		endWriting(conn)
	}
}

// enter lets a stream in if there is room for it.
func (l *Lane) enter(from string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.streams >= maxServing || l.serving[from] >= maxServingOf {
		l.count.busy.Add(1)
		return false
	}
	l.streams++
	l.serving[from]++
	l.wg.Add(1)
	return true
}

func (l *Lane) leave(from string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.streams--
	if l.serving[from]--; l.serving[from] == 0 {
		delete(l.serving, from)
	}
	l.wg.Done()
}

// do does an order, once for each ID: of several that come at one time the others wait for the first and answer as it does.
func (l *Lane) do(from, id string, order []byte) error {
	if l.ctx.Err() != nil {
		return errClosed
	}
	d, first, err := l.done.take(id, sha256.Sum256(order))
	switch {
	case err != nil:
	case first:
		err = l.config.Do(id, order)
		l.done.settle(id, d, err)
		if err == nil {
			l.count.done.Add(1)
		}
	default:
		select {
		case <-d.settled:
		case <-l.ctx.Done():
			return errClosed
		}
		l.count.repeated.Add(1)
		return d.err
	}
	if err != nil {
		l.count.doFailed.Add(1)
		l.log.Warn("an order is not in effect", "order", id, "from", from, "err", err)
	}
	return err
}

// errOther is for an order that comes under the ID of another.
var errOther = errors.New("another order has this ID")

// ledger knows the orders that are done or being done. The zero ledger is empty.
type ledger struct {
	mu   sync.Mutex
	by   map[string]*deed
	ring []string // IDs of what is done, in a ring once there are maxDone of them
	next int
}

// deed is one order that is done or being done.
type deed struct {
	sum     [sha256.Size]byte
	settled chan struct{}
	err     error // once it is settled; one that failed is not in the ledger any more
}

// take finds the deed of an ID, or begins it: then first is true, and settle is due.
func (g *ledger) take(id string, sum [sha256.Size]byte) (d *deed, first bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if d := g.by[id]; d != nil {
		if d.sum != sum {
			return nil, false, errOther
		}
		return d, false, nil
	}
	if g.by == nil {
		g.by = map[string]*deed{}
	}
	d = &deed{sum: sum, settled: make(chan struct{})}
	g.by[id] = d
	return d, true, nil
}

// settle ends a deed. One that failed is forgotten, so that it can be done after all; of those done, the oldest over maxDone is.
func (g *ledger) settle(id string, d *deed, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	d.err = err
	close(d.settled)
	switch {
	case err != nil:
		delete(g.by, id)
	case len(g.ring) < maxDone:
		g.ring = append(g.ring, id)
	default:
		delete(g.by, g.ring[g.next])
		g.ring[g.next] = id
		g.next = (g.next + 1) % maxDone
	}
}
