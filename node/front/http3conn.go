package front

import (
	"context"
	"io"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// quicGuest is one QUIC connection. It ends when it carries nothing for too long, which is judged by whether a handler runs: a
// client that opens streams and sends no whole header on any carries nothing.
type quicGuest struct {
	door   *quicDoor
	anyone bool       // whoever it is may be here
	came   netip.Addr // where it came from
	// settled: the handshake has ended, one way or the other. The door's mu holds it, and conn until it is set.
	settled bool
	counted bool          // among those of its client; the door's mu holds it
	conn    *quic.Conn    // nil: it is not served yet
	judged  atomic.Bool   // settle has found room for it
	server  *http3.Server // its own: so it can be told to go alone, and who waits for it waits for its handlers

	mu        sync.Mutex
	idle      *time.Timer
	running   int  // handlers
	asked     bool // one has run
	abandoned int  // requests that were reset, less those that were not
	retired   bool
	over      bool
}

// serve is the life of a connection, from when the server could answer: the client's side of the handshake may be still to come.
func (g *quicGuest) serve(conn *quic.Conn) {
	d, f := g.door, g.door.front
	f.counters.connections.Add(1)
	f.counters.http3.connections.Add(1)
	g.server = &http3.Server{Handler: g, MaxHeaderBytes: headerBytes}
	d.mu.Lock()
	g.conn = conn
	g.idle = time.AfterFunc(headerTimeout, g.expire)
	closing := d.closing
	d.mu.Unlock()
	defer g.leave()
	defer context.AfterFunc(f.ctx, func() { g.end(http3.ErrCodeNoError) })()
	var watch sync.WaitGroup
	defer watch.Wait()
	watch.Go(func() {
		select {
		case <-conn.HandshakeComplete():
			g.settle()
		case <-conn.Context().Done():
		}
	})
	g.check()
	if closing {
		g.retire()
	}
	g.server.ServeQUICConn(conn)
	if f.mayLook() {
		f.see(addressOf(conn.RemoteAddr()), conn.ConnectionStats().MinRTT)
	}
	g.end(http3.ErrCodeNoError)
}

// settle takes note that the handshake is complete; false: the client has as many connections as it may, and this one ends.
func (g *quicGuest) settle() bool {
	d := g.door
	d.mu.Lock()
	crowded := false
	if !g.settled {
		g.settled = true
		d.handshakes--
		crowded = !g.proven()
	}
	counted := g.counted
	d.mu.Unlock()
	if crowded {
		d.front.counters.crowded.Add(1)
	}
	if g.judged.Store(counted); !counted {
		g.end(http3.ErrCodeExcessiveLoad) // whoever comes here first
	}
	return counted
}

// leave is the end of serve: nothing is begun any more.
func (g *quicGuest) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.over = true
	g.idle.Stop()
}

// blocked says whether nobody from an address is served, whoever is behind it.
func (g *quicGuest) blocked(from netip.Addr) bool {
	blocked := g.door.front.config.Blocked
	return !g.anyone && blocked != nil && blocked(from)
}

// check ends the connection if the client is blocked where it is now: QUIC's clients may move.
func (g *quicGuest) check() bool {
	if g.blocked(addressOf(g.conn.RemoteAddr())) {
		g.door.front.counters.blocked.Add(1)
		g.end(http3.ErrCodeNoError)
		return false
	}
	return true
}

func (g *quicGuest) end(code http3.ErrCode) {
	g.conn.CloseWithError(quic.ApplicationErrorCode(code), "")
}

// retire tells the client to begin nothing more here (GOAWAY), and ends the connection when it carries nothing.
func (g *quicGuest) retire() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.retired || g.over {
		return
	}
	g.retired = true
	g.door.front.wg.Go(func() { g.server.Shutdown(g.conn.Context()) })
	if g.running == 0 {
		g.idle.Reset(partingTime)
	}
}

// expire ends the connection: it has carried nothing for too long.
func (g *quicGuest) expire() {
	g.mu.Lock()
	over := g.running == 0
	silent := over && !g.over && !g.asked && !g.retired
	g.over = g.over || over
	g.mu.Unlock()
	if silent {
		g.door.front.counters.silent.Add(1)
	}
	if over {
		g.end(http3.ErrCodeNoError)
	}
}

// begin is called before a handler runs; false: it must not.
func (g *quicGuest) begin() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.over {
		return false
	}
	if g.running == maxHandlers {
		g.excess()
		return false
	}
	g.running++
	g.asked = true
	g.idle.Stop()
	return true
}

// done is called after a handler ran.
func (g *quicGuest) done(abandoned bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running--
	switch {
	case abandoned:
		if g.abandoned++; g.abandoned > maxAbandoned && !g.over {
			g.excess()
		}
	case g.abandoned > 0:
		g.abandoned--
	}
	if g.running > 0 || g.over {
		return
	}
	if g.retired {
		g.idle.Reset(partingTime)
	} else {
		g.idle.Reset(idleTimeout)
	}
}

// excess ends the connection of a client that asks for more than any that means well. g.mu is held.
func (g *quicGuest) excess() {
	g.over = true
	g.door.front.counters.http3.overloads.Add(1)
	g.end(http3.ErrCodeExcessiveLoad)
}

// ServeHTTP gives a request to whoever is behind the door.
func (g *quicGuest) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f := g.door.front
	if !g.judged.Load() {
		select {
		case <-g.conn.HandshakeComplete(): // who watches for that may not have come to it
			if !g.settle() {
				panic(http.ErrAbortHandler)
			}
		default:
		}
	}
	if addressOf(g.conn.RemoteAddr()) != g.came && !g.check() || !g.begin() {
		panic(http.ErrAbortHandler)
	}
	defer func() { g.done(r.Context().Err() != nil) }()
	f.counters.requests.Add(1)
	f.counters.http3.requests.Add(1)
	defer func() {
		if v := recover(); v != nil {
			if v != http.ErrAbortHandler {
				f.panicked(v)
			}
			panic(http.ErrAbortHandler)
		}
	}()
	answer := &quicAnswer{ResponseWriter: w, control: http.NewResponseController(w), counters: &f.counters}
	defer answer.allow() // what is written after the handler
	answer.allow()
	if g.isEarly() && !f.early(answer, r) {
		return
	}
	r.Body = &quicBody{ReadCloser: r.Body, control: answer.control, counters: &f.counters}
	settleBody(r)
	g.door.behind.Load().Handler.ServeHTTP(answer, r)
	if !f.leads.Load() {
		g.retire()
	}
}

// isEarly says whether a request may be one that somebody recorded and sends again: who has ended the handshake is the client
// itself (RFC 8470, 3).
func (g *quicGuest) isEarly() bool {
	select {
	case <-g.conn.HandshakeComplete():
		return false
	default:
		return true
	}
}

// early marks a request for those that it is passed on to (RFC 8470, 5.1), or refuses it: only what changes nothing may come twice.
func (f *Front) early(w http.ResponseWriter, r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		f.counters.http3.early.Add(1)
		r.Header["Early-Data"] = []string{"1"}
		return true
	}
	f.counters.http3.tooEarly.Add(1)
	http.Error(w, "too early: ask again", http.StatusTooEarly)
	return false
}

// quicAnswer is an answer, each piece of which the client may take writeTimeout to make room for.
type quicAnswer struct {
	http.ResponseWriter
	control  *http.ResponseController
	counters *counters
	slow     bool // it was counted as that
}

func (a *quicAnswer) allow() { a.control.SetWriteDeadline(time.Now().Add(writeTimeout)) }

func (a *quicAnswer) Write(p []byte) (n int, err error) {
	for {
		piece := p[n:min(n+writePiece, len(p))]
		a.allow()
		m, err := a.ResponseWriter.Write(piece)
		n += m
		a.judge(err)
		if err != nil || n == len(p) {
			return n, err
		}
	}
}

// FlushError is for http.ResponseController.
func (a *quicAnswer) FlushError() error {
	a.allow()
	err := a.control.Flush()
	a.judge(err)
	return err
}

// judge counts a client who takes nothing.
func (a *quicAnswer) judge(err error) {
	if timedOut(err) && !a.slow {
		a.slow = true
		a.counters.slowReaders.Add(1)
	}
}

// Flush is for those that do without.
func (a *quicAnswer) Flush() { a.FlushError() }

// Unwrap is for http.ResponseController.
func (a *quicAnswer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// quicBody is a request's body, each piece of which may take bodyTimeout.
type quicBody struct {
	io.ReadCloser
	control  *http.ResponseController
	counters *counters
	slow     bool   // it was counted as that
	seen     []byte // what settleBody has read
}

func (b *quicBody) Read(p []byte) (int, error) {
	if len(b.seen) > 0 {
		n := copy(p, b.seen)
		b.seen = b.seen[n:]
		return n, nil
	}
	b.control.SetReadDeadline(time.Now().Add(bodyTimeout))
	n, err := b.ReadCloser.Read(p)
	if timedOut(err) && !b.slow {
		b.slow = true
		b.counters.slowRequests.Add(1)
	}
	return n, err
}

// settleBody finds out whether a request that says no length has a body: HTTP/3 tells the end of a request by the end of its
// stream, which comes with the header where nothing follows. Only those that seldom have one are waited for.
func settleBody(r *http.Request) {
	if r.ContentLength >= 0 {
		return
	}
	switch r.Method {
	case http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodConnect:
		return
	}
	b := r.Body.(*quicBody)
	first := make([]byte, 1)
	n, err := io.ReadFull(b, first)
	switch {
	case err == io.EOF:
		r.Body, r.ContentLength = http.NoBody, 0
	case err != nil:
		panic(http.ErrAbortHandler) // it was reset, or took too long
	default:
		b.seen = first[:n]
	}
}

// alternative is the Alt-Svc (RFC 7838) of a door's answers: that there is HTTP/3 at its address; nil: nothing is told, for there is
// none, or clients are to go. Where something stands in between that may lead elsewhere, it is not to be told either.
func (d *door) alternative() []string {
	if field := d.altSvc.Load(); field != nil && d.front.leads.Load() {
		return *field
	}
	return nil
}

// alternative is what of it a client is told, who came over the connection.
func (c *client) alternative() []string {
	if _, between := c.Conn.(*proxied); between {
		return nil
	}
	return c.door.alternative()
}

// advertise adds it to an answer.
func (c *client) advertise(w http.ResponseWriter) {
	if field := c.alternative(); field != nil {
		w.Header()["Alt-Svc"] = field
	}
}
