package accelerator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/cluster/backbone"
	"github.com/perigee-net/perigee/origin/relay"
)

// What a client says travels to a candidate behind the opening of its flow, and not a round trip of the backbone later, where nobody minds that another candidate is given the same: there is no other, or
// what is said does nothing where nobody answers it (hello.go), or the listener says that it may be done twice. What was read is kept until one of them has the flow, who is then given what he has not been.
const (
	// maxEarly bounds what is read of a client before an endpoint has its flow. It is the initial window of most (RFC 6928: ten segments), and a ClientHello.
	maxEarly = 16 << 10
	// firstEarly is the room that is made for it at first: one ClientHello with keys of today.
	firstEarly = 2 << 10
	// maxEarlyByAll bounds the room that is made for all flows at once; beyond it no more is read until they are taken.
	maxEarlyByAll = 64 << 20
)

// earliness is what may travel before an endpoint has a flow.
type earliness int

const (
	onlyHello earliness = iota // a ClientHello that promises no early data
	anything                   // all that the client says
)

// opening is what a client says before an endpoint has its flow. The methods of a nil one have nothing said.
type opening struct {
	from     backbone.EarlyReader
	fastOpen bool // as the listener has it
	may      earliness
	held     *atomic.Int64 // by all

	mu      sync.Mutex
	begun   bool
	stopped bool
	over    chan struct{} // closed when nobody reads any more
	kept    []byte        // all that was read
	free    int           // so many of them may be given to candidates
	given   []*given
	err     error  // what the client said behind them; nil: nothing
	fault   string // a panic of who read, with its stack; "": none
}

// says is what a client is about to say.
func (p *Plane) says(from backbone.EarlyReader, fastOpen bool) *opening {
	return &opening{from: from, fastOpen: fastOpen, held: &p.early}
}

// given is what one candidate has been given.
type given struct {
	of *opening

	mu   sync.Mutex
	to   io.Writer // nil: none yet, or it takes no more
	n    int
	busy bool // somebody gives: he gives all that there is
}

// toward is a context for an attempt that has the client's first bytes go to its candidate.
func (o *opening) toward(ctx context.Context, g *given) context.Context {
	if o == nil {
		return ctx
	}
	return backbone.WithEarly(ctx, func(w io.Writer) {
		g.mu.Lock()
		g.of, g.to, g.n = o, w, 0
		g.mu.Unlock()
		o.begin(g)
		g.give()
	})
}

// begin has the client be read, if he is not yet, and a candidate be given what he says.
func (o *opening) begin(g *given) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, one := range o.given {
		if one == g { // its stream is another one
			return
		}
	}
	o.given = append(o.given, g)
	if !o.begun && !o.stopped && o.grow(firstEarly) {
		o.begun, o.over = true, make(chan struct{})
		go o.read()
	}
}

// grow makes room for so many bytes in all, if there is any. o.mu is held.
func (o *opening) grow(to int) bool {
	more := int64(to - cap(o.kept))
	if o.held.Add(more) > maxEarlyByAll {
		o.held.Add(-more)
		return false
	}
	o.kept = append(make([]byte, 0, to), o.kept...)
	return true
}

// give gives a candidate what it has not been given. It does not wait for who does already: he gives that, too.
func (g *given) give() {
	to, next := g.next()
	for len(next) > 0 {
		n, err := to.Write(next)
		to, next = g.gave(to, n, err)
	}
}

// next is what is to be given to whom; nothing where that is somebody else's to do.
func (g *given) next() (to io.Writer, next []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.busy {
		return nil, nil
	}
	return g.left()
}

// gave takes note of what was given, and says what is to be next.
func (g *given) gave(to io.Writer, n int, err error) (_ io.Writer, next []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.to == to { // else there is another stream
		if g.n += n; err != nil {
			g.to = nil // it has answered, or failed: who asked hears of it
		}
	}
	return g.left()
}

// left is what is left to give. g.mu is held.
func (g *given) left() (to io.Writer, next []byte) {
	if g.to != nil {
		next = g.of.after(g.n)
	}
	g.busy = len(next) > 0
	return g.to, next
}

// after is what may be given behind the first n bytes.
func (o *opening) after(n int) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.stopped {
		return nil
	}
	return o.kept[n:max(n, o.free)]
}

// read reads the client, and gives what he says to all that are asked.
func (o *opening) read() {
	defer close(o.over)
	defer func() {
		if v := recover(); v != nil {
			o.mu.Lock()
			defer o.mu.Unlock()
			o.fault = fmt.Sprintf("%v, as a client's first bytes were read\n%s", v, debug.Stack())
		}
	}()
	for {
		room := o.room()
		if len(room) == 0 {
			return
		}
		n, err := o.from.Read(room)
		all, more := o.came(n, err)
		for _, g := range all {
			g.give()
		}
		if !more {
			return
		}
	}
}

// room is where to read to; empty: enough was read.
func (o *opening) room() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.stopped || len(o.kept) == cap(o.kept) && !o.grow(min(2*cap(o.kept), maxEarly)) {
		return nil
	}
	return o.kept[len(o.kept):cap(o.kept)]
}

// came takes note of n bytes that were read, and says who is to be given some and whether more are to be read.
func (o *opening) came(n int, err error) (all []*given, more bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.kept = o.kept[:len(o.kept)+n]
	if err != nil && !(o.stopped && errors.Is(err, os.ErrDeadlineExceeded)) {
		o.err = err
	}
	more = err == nil && len(o.kept) < maxEarly
	if o.may == anything {
		o.free = len(o.kept)
	} else if v := judge(o.kept); v == harmless {
		o.free, more = len(o.kept), false
	} else if v == significant {
		more = false
	}
	if o.free > 0 {
		all = append(all, o.given...)
	}
	return all, more
}

// stop has the client be read no more, and returns once nobody does.
func (o *opening) stop() {
	if o == nil {
		return
	}
	o.mu.Lock()
	begun := o.begun && !o.stopped
	o.stopped = true
	o.mu.Unlock()
	if !begun {
		return
	}
	defer o.forget()
	select {
	case <-o.over:
		return
	default:
	}
	o.from.SetReadDeadline(time.Unix(1, 0))
	<-o.over
	o.from.SetReadDeadline(time.Time{})
}

// forget has what was read count no more: it is about to be written, or dropped.
func (o *opening) forget() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.held.Add(-int64(cap(o.kept)))
}

// so is how far the flow of a candidate that has taken it was carried, once it is stopped. What panicked does so here.
func (o *opening) so(g *given) (so relay.Carried) {
	if o == nil {
		return so
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.fault != "" {
		panic(o.fault)
	}
	return relay.Carried{AToB: int64(g.n), Unwritten: o.kept[g.n:], AErr: o.err}
}

// ways takes note of how many ways could be asked for the flow.
func (o *opening) ways(n int) {
	if o != nil {
		o.may, _ = early(o.fastOpen, n)
	}
}

// early is what may travel before an endpoint has a flow that so many ways lead to, and why, in words.
func early(fastOpen bool, ways int) (earliness, string) {
	switch {
	case fastOpen:
		return anything, "what the client says travels with the opening of the flow: the listener has fastOpen"
	case ways == 1:
		return anything, "what the client says travels with the opening of the flow: nobody else could be given it, too"
	}
	return onlyHello, "a ClientHello of TLS without early data travels with the opening of the flow, and all else once it is taken: another may be asked beside the first"
}
