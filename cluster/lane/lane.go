// Package lane tells every live node something at once, and collects who has done it.
//
// An order goes from the node that was asked straight to all others, each on a stream of its own over links that stand already,
// takes effect there, and is acknowledged. So all have it after half a round trip, and the asker knows after one. Who misses
// it learns of it by other ways: the lane is quick and not sure. It is no agreement either: two orders that are told at once
// may arrive in either order, and a node that joins meanwhile is told nothing. What an order says is opaque bytes to it.
//
// When things break: a node that cannot be reached is tried again until the teller's time is over, and then stands in the
// acknowledgements with the reason. A stream that breaks between the effect and its acknowledgement leads to the order being
// told again; a node knows orders by their IDs, does each once, and answers again. Orders are lost with the process that
// tells them. Whoever speaks to it was authenticated by what gives it the streams; of members it holds to bounds, and to no more:
// one that lies about an order is believed.
package lane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// retryAfter is how long a node is left alone after it could not be told.
	retryAfter = 250 * time.Millisecond
	// attemptTimeout bounds one attempt: the stream, the order, its effect and the acknowledgement. It is longer than a
	// backbone's link takes to notice silence, so that a dead link is never what it waits for.
	attemptTimeout = 5 * time.Second
	// maxTelling bounds a telling whose context does not end.
	maxTelling = time.Minute

	// maxAsking is how many nodes are being told something at one time, over all tellings. What is beyond it is not told.
	maxAsking = 32768

	keptLatencies = 1024
)

// Config is what a Lane is made of.
type Config struct {
	Self string // this node's name
	// Dial opens a stream to the lane of a node. It should not wait for the far end: every round trip that it takes is one more
	// until the order is in effect.
	Dial func(ctx context.Context, node string) (net.Conn, error)
	// Do takes an order of another node or of this one; it is in effect before Do returns. It is called once for each ID, or again
	// after it failed; for several IDs at once; and it should take milliseconds, for the teller waits. An error is told to
	// whoever told the order, and is this node's answer.
	Do  func(id string, order []byte) error
	Log *slog.Logger // nil discards
}

// Lane is one node's end.
type Lane struct {
	config Config
	log    *slog.Logger
	count  counters
	done   ledger

	ctx    context.Context
	cancel context.CancelFunc
	mu     sync.Mutex // guards what follows
	closed bool
	wg     sync.WaitGroup

	serving   map[string]int // streams by the node that opened them
	streams   int            // all of them
	latencies []time.Duration
	nextPlace int // in latencies, once it is full
}

type counters struct {
	asking                                                   atomic.Int64
	tellings, acknowledged, refused, failed, unheard, turned atomic.Uint64
	served, done, repeated, doFailed, malformed, busy        atomic.Uint64
}

// Open makes a lane. It does nothing until it is told to.
func Open(c Config) *Lane {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	l := &Lane{config: c, log: c.Log, serving: map[string]int{}}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// Ack is what became of an order at one node.
type Ack struct {
	Node     string
	Answered bool          // by the node itself, whatever it said
	After    time.Duration // from Tell to the answer; 0 where there is none
	Err      string        // empty: it is in effect there; or why it is not, or why that is not known
}

// unanswered begins what Ack.Err says of a node that has not answered; behind it stands the reason, if there is one.
const unanswered = "no answer yet"

// Telling is one order on its way.
type Telling struct {
	start time.Time
	done  chan struct{}

	mu   sync.Mutex
	acks []Ack // by node
}

// Done is closed once all have answered or the time to wait for them is over. The acknowledgements stay as they are then.
func (t *Telling) Done() <-chan struct{} { return t.done }

// Acks is what became of the order so far, by node. Those that have not answered have Err "no answer yet", and behind it what
// the last attempt failed by.
func (t *Telling) Acks() []Ack {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.acks)
}

func (t *Telling) set(i int, answered bool, reason string) (after time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	a := &t.acks[i]
	a.Answered, a.Err = answered, reason
	if answered {
		a.After = time.Since(t.start)
	}
	return a.After
}

// Tell tells an order to nodes, all at once, and returns at once. Nodes that cannot be told are tried again until the context
// ends, at most for a minute: it should not be one that ends with who asked. The node itself may be among them. An ID is 1–64
// bytes and stands for one order; an order is at most 64 KiB.
func (l *Lane) Tell(ctx context.Context, id string, order []byte, to []string) *Telling {
	to = slices.Compact(slices.Sorted(slices.Values(to)))
	t := &Telling{start: time.Now(), done: make(chan struct{}), acks: make([]Ack, len(to))}
	for i, node := range to {
		t.acks[i] = Ack{Node: node, Err: unanswered}
	}
	turnedAway := func(reason string) *Telling {
		for i := range t.acks {
			t.acks[i].Err = reason
		}
		l.count.turned.Add(1)
		close(t.done)
		return t
	}
	message, err := appendMessage(nil, id, order)
	if err != nil {
		return turnedAway(err.Error())
	}
	if l.count.asking.Add(int64(len(to))) > maxAsking {
		l.count.asking.Add(-int64(len(to)))
		return turnedAway("too many orders are on their way")
	}
	l.count.tellings.Add(1)
	told := l.start(func() {
		defer close(t.done)
		ctx, cancel := context.WithTimeout(ctx, maxTelling)
		defer cancel()
		defer context.AfterFunc(l.ctx, cancel)()
		var all sync.WaitGroup
		for i, node := range to {
			all.Go(func() {
				defer l.count.asking.Add(-1)
				l.tellOne(ctx, t, i, node, id, order, message)
			})
		}
		all.Wait()
		l.sayUnheard(t, id)
	})
	if !told {
		l.count.asking.Add(-int64(len(to)))
		return turnedAway("the lane is closed")
	}
	return t
}

// sayUnheard logs who has not answered, once for all.
func (l *Lane) sayUnheard(t *Telling, id string) {
	var nodes []string
	for _, a := range t.Acks() {
		if !a.Answered {
			nodes = append(nodes, a.Node)
		}
	}
	if len(nodes) == 0 {
		return
	}
	l.count.unheard.Add(uint64(len(nodes)))
	const shown = 5
	l.log.Warn("nodes have not acknowledged an order", "order", id, "nodes", len(nodes), "first", strings.Join(nodes[:min(len(nodes), shown)], ", "))
}

// tellOne tells one node until it has answered or the time is over.
func (l *Lane) tellOne(ctx context.Context, t *Telling, i int, node, id string, order, message []byte) {
	for {
		refusal, err := l.attempt(ctx, node, id, order, message)
		if err == nil {
			after := t.set(i, true, refusal)
			if refusal == "" {
				l.count.acknowledged.Add(1)
				l.keep(after)
			} else {
				l.count.refused.Add(1)
			}
			return
		}
		l.count.failed.Add(1)
		if ctx.Err() == nil { // or the reason is only that the time is over
			t.set(i, false, unanswered+": "+err.Error())
		}
		select {
		case <-time.After(retryAfter):
		case <-ctx.Done():
			return
		}
	}
}

// attempt tells a node once, and returns its answer: empty, or why it has not done it.
func (l *Lane) attempt(ctx context.Context, node, id string, order, message []byte) (refusal string, err error) {
	if node == l.config.Self {
		if err := l.do(node, id, order); err != nil {
			return cmp.Or(err.Error(), "failed"), nil
		}
		return "", nil
	}
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	conn, err := l.config.Dial(ctx, node)
	if err != nil {
		return "", fmt.Errorf("dial: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := conn.Write(message); err != nil {
		return "", fmt.Errorf("send order: %w", err)
	}
	endWriting(conn)
	refusal, err = readAck(conn)
	if err != nil {
		return "", fmt.Errorf("read acknowledgement: %w", err)
	}
	return refusal, nil
}

// endWriting lets the far end see that this is all, where the stream can do that.
func endWriting(conn net.Conn) {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
}

// keep keeps how long an acknowledgement took.
func (l *Lane) keep(after time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.latencies) < keptLatencies {
		l.latencies = append(l.latencies, after)
		return
	}
	l.latencies[l.nextPlace] = after
	l.nextPlace = (l.nextPlace + 1) % keptLatencies
}

// Latencies are how long the last 1,024 acknowledgements took, from Tell to the answer, in no order.
func (l *Lane) Latencies() []time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.latencies)
}

// start runs f in a goroutine that Close waits for; false: the lane is closed.
func (l *Lane) start(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.wg.Go(f)
	return true
}

// errClosed is why nothing is done after Close.
var errClosed = errors.New("the lane is closed")

// Close ends what is told and what is served, and waits for it.
func (l *Lane) Close() error {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.cancel()
	l.wg.Wait()
	return nil
}

// Counters says what the lane did since it was opened, and what it is doing.
func (l *Lane) Counters() map[string]uint64 {
	l.mu.Lock()
	streams := l.streams
	l.mu.Unlock()
	return map[string]uint64{
		"lane_asking":                uint64(l.count.asking.Load()),
		"lane_tellings_total":        l.count.tellings.Load(),
		"lane_tellings_turned_total": l.count.turned.Load(),
		"lane_acknowledged_total":    l.count.acknowledged.Load(),
		"lane_refused_total":         l.count.refused.Load(),
		"lane_attempts_failed_total": l.count.failed.Load(),
		"lane_unheard_total":         l.count.unheard.Load(),
		"lane_serving":               uint64(streams),
		"lane_orders_total":          l.count.served.Load(),
		"lane_done_total":            l.count.done.Load(),
		"lane_repeated_total":        l.count.repeated.Load(),
		"lane_failed_total":          l.count.doFailed.Load(),
		"lane_malformed_total":       l.count.malformed.Load(),
		"lane_busy_total":            l.count.busy.Load(),
	}
}
