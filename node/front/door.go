package front

import (
	"context"
	"crypto/tls"
	"log"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/edge/http1"
)

// door is an open Door.
type door struct {
	key      doorKey
	front    *Front
	listener net.Listener
	behind   atomic.Pointer[Door] // who serves it now
	holds    atomic.Int64         // connections
	crowd    *crowd
	altSvc   atomic.Pointer[[]string] // the field that tells of HTTP/3, of doors that have it
	closing  chan struct{}

	// Of a Conn or a Flow door, by whom connections are accepted: one of the two. The front's mu guards them.
	acceptor *acceptor
	loop     func(done func()) // ends that

	// Of an HTTP door:
	tls     *tls.Config
	server  *http.Server // of what is lent to net/http by HTTP/1 connections
	loans   *lobby
	paced   string      // the congestion control of connections over long paths; empty: as they are
	retired atomic.Bool // answers are the last on their connections
	closed  atomic.Bool // so they are, and no more are accepted

	mu     sync.Mutex
	visits map[*visit]struct{}
}

func (f *Front) open(wanted *Door) (*door, error) {
	listen := f.config.Listen
	if wanted.Anycast {
		listen = f.config.ListenAnycast
	}
	key := wanted.key()
	listener, err := listen(key.network, key.at())
	if err != nil {
		return nil, err
	}
	d := &door{key: key, front: f, listener: listener, crowd: newCrowd(), closing: make(chan struct{})}
	d.behind.Store(wanted)
	if !key.http {
		d.serve()
		return d, nil
	}
	d.paced = unpace(listener, pacedControl)
	d.visits = map[*visit]struct{}{}
	d.loans = newLobby(listener.Addr())
	d.server = d.newServer()
	f.wg.Go(func() { d.server.Serve(d.loans) })
	if key.tls {
		d.tls = d.tlsConfig()
		if d.tls.NextProtos == nil {
			d.tls.NextProtos = []string{"h2", "http/1.1"}
		}
	}
	f.wg.Go(d.serveVisits)
	return d, nil
}

// close accepts nothing more. Connections that carry nothing end; others when they are done.
func (d *door) close() {
	d.closed.Store(true)
	close(d.closing)
	if d.loop != nil {
		d.loop(d.front.wg.Done)
		d.loop = nil
	}
	d.listener.Close()
	if d.server == nil {
		return
	}
	d.server.SetKeepAlivesEnabled(false)
	d.dismiss()
}

// retire has HTTP connections end after the answer that they wait for, or undoes that.
func (d *door) retire(now bool) {
	if d.server == nil {
		return
	}
	d.retired.Store(now)
	d.server.SetKeepAlivesEnabled(!now)
	if now {
		d.dismiss()
	}
}

// mitigation is what becomes of requests by their grade.
func (d *door) mitigation() http1.Mitigation {
	if own := d.behind.Load().Desync; own != http1.Unset {
		return own
	}
	return d.front.config.Desync
}

// serveVisits is the life of an HTTP door. What requests of its connections are lent to is there as long as they are.
func (d *door) serveVisits() {
	var visits sync.WaitGroup
	for {
		c, err := d.accept(nil)
		if err != nil {
			break
		}
		visits.Go(func() { d.visit(d.client(c)) })
	}
	visits.Wait()
	d.server.Shutdown(d.front.ctx)
}

// How long to wait after a failed accept (too many open files, mostly), doubling.
const (
	acceptPause    = 5 * time.Millisecond
	maxAcceptPause = time.Second
)

// accept returns the next connection that the door has room for, or net.ErrClosed, if it is closed or somebody else accepts now.
func (d *door) accept(by *acceptor) (net.Conn, error) {
	pause := acceptPause
	for {
		c, err := d.listener.Accept()
		if err != nil {
			if by != nil && by.over.Load() {
				return nil, net.ErrClosed
			}
			select {
			case <-d.closing:
				return nil, net.ErrClosed
			case <-time.After(pause):
			}
			d.front.counters.unaccept.Add(1)
			pause = min(2*pause, maxAcceptPause)
			continue
		}
		pause = acceptPause
		if d.admits(c) {
			return c, nil
		}
	}
}

// admits takes a connection that was accepted in, or turns it away.
func (d *door) admits(c net.Conn) bool {
	if d.holds.Add(1) > int64(d.front.config.Connections) {
		d.holds.Add(-1)
		d.front.counters.refused.Add(1)
		d.turnAway(c, c.RemoteAddr())
		return false
	}
	g := d.front.enter(c, d.behind.Load())
	if !d.front.admit(c, g) {
		d.leave(c)
		return false
	}
	if !d.crowd.enter(g, d.front.config.ConnectionsPerClient) {
		d.front.counters.crowded.Add(1)
		d.turnAway(c, c.RemoteAddr())
		d.leave(c)
		return false
	}
	return true
}

// turnAway ends a connection for which there is no room. One that was to be a flow is reset: an end would say that the flow was whole, and empty.
func (d *door) turnAway(c net.Conn, from net.Addr) {
	behind := d.behind.Load()
	if behind.Flow == nil {
		c.Close()
		return
	}
	if client, is := from.(*net.TCPAddr); is && behind.TurnedAway != nil {
		at := client.AddrPort()
		behind.TurnedAway(netip.AddrPortFrom(at.Addr().Unmap(), at.Port()))
	}
	reset(c)
}

// leave gives back the room that a connection took.
func (d *door) leave(c net.Conn) {
	d.holds.Add(-1)
	d.crowd.leave(d.front.leave(c))
	d.front.wg.Done()
}

// acceptor is a goroutine that accepts.
type acceptor struct{ over atomic.Bool }

// serve has connections of a Conn or a Flow door be accepted as who is behind it now takes them: by the loop, or by a goroutine. The front's mu is held.
func (d *door) serve() {
	if d.key.http {
		return
	}
	f := d.front
	soon := f.config.Loop != nil && d.behind.Load().Soon != nil
	if soon && d.loop == nil {
		f.wg.Add(1) // until it accepts nothing more; by who opens doors, which is before Close waits
		if end, ok := f.config.Loop.Listen(d.listener, d.arrives, func(error) { f.counters.unaccept.Add(1) }); ok {
			d.loop = end
		} else {
			f.wg.Done()
		}
	}
	if !soon && d.loop != nil {
		d.loop(f.wg.Done)
		d.loop = nil
	}
	switch later, _ := d.listener.(interface{ SetDeadline(time.Time) error }); {
	case d.loop == nil && d.acceptor == nil:
		if later != nil {
			later.SetDeadline(time.Time{})
		}
		by := &acceptor{}
		d.acceptor = by
		f.wg.Go(func() { d.serveConns(by) })
	case d.loop != nil && d.acceptor != nil:
		d.acceptor.over.Store(true)
		d.acceptor = nil
		if later != nil { // else it ends with the next that it accepts
			later.SetDeadline(time.Unix(1, 0))
		}
	}
}

// serveConns accepts for a Conn or a Flow door.
func (d *door) serveConns(by *acceptor) {
	for !by.over.Load() {
		c, err := d.accept(by)
		if err != nil {
			return
		}
		d.begin(c)
	}
}

// begin has a connection be served that was admitted.
func (d *door) begin(c net.Conn) {
	if behind := d.behind.Load(); behind.Flow != nil {
		d.front.start(begun{&held{door: d, conn: c}, c, behind.Flow})
	} else {
		d.front.wg.Go(func() { d.serveConn(c, behind.Conn) })
	}
}

// serveConn passes the connection on as it is where it can, for the kernel moves bytes only between sockets.
func (d *door) serveConn(c net.Conn, serve func(net.Conn)) {
	defer d.leave(c)
	defer c.Close()
	defer d.front.seeConn(c)
	defer func() {
		if v := recover(); v != nil {
			d.front.panicked(v)
		}
	}()
	if !d.front.believes(c) {
		serve(c)
	} else if p := d.proxied(c); p.wait() {
		serve(p)
	}
}

// Bounds of what a client may do to an HTTP door. AWS's are those of ALB.
const (
	// headerTimeout is how long a TLS handshake, and a request's headers, may take; then the connection is closed.
	headerTimeout = 10 * time.Second
	// idleTimeout is how long a connection is kept between requests. It is longer than that of most clients
	// and proxies, which then close it, at a time when they send nothing.
	idleTimeout = 75 * time.Second
	// headerBytes is what a request's line and headers may have (ALB: 64 K); more is answered 431.
	headerBytes = 64 << 10
	// streams is how many requests one HTTP/2 connection may have in flight (ALB: 128); more are refused.
	streams = 128
	// bodyTimeout is how long the next piece of a request's body may take; then reading it fails.
	bodyTimeout = 60 * time.Second
	// restTimeout is how long the rest of a body that its handler left unread may take to arrive; then the
	// connection is closed.
	restTimeout = 5 * time.Second
)

func (d *door) newServer() *http.Server {
	s := &http.Server{
		Handler:                      d,
		ReadHeaderTimeout:            headerTimeout,
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               headerBytes,
		DisableGeneralOptionsHandler: true,
		Protocols:                    new(http.Protocols),
		BaseContext:                  func(net.Listener) context.Context { return d.front.ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, visitorKey{}, visitorOf(c))
		},
		ConnState: loanChanged,
		ErrorLog:  log.New(serverLog{&d.front.counters}, "", 0),
	}
	s.Protocols.SetHTTP1(true)
	return s
}

// ServeHTTP gives a request to whoever is behind the door.
func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v := r.Context().Value(visitorKey{}).(visitor)
	if !v.hold() {
		panic(http.ErrAbortHandler)
	}
	defer v.release()
	if v.loan != nil {
		if v.loan.heard.Swap(true) { // one was lent, whatever net/http found behind it
			panic(http.ErrAbortHandler)
		}
		if v.loan.alone {
			r = r.WithContext(http1.Alone(r.Context()))
		}
	}
	d.front.counters.requests.Add(1)
	v.advertise(w)
	defer func() {
		if v := recover(); v != nil {
			if v != http.ErrAbortHandler {
				d.front.panicked(v)
			}
			panic(http.ErrAbortHandler)
		}
	}()
	if r.ProtoMajor > 1 && unsayable(r) {
		d.front.counters.badRequests.Add(1)
		http.Error(w, "400 Bad Request", http.StatusBadRequest)
		return
	}
	if r.ContentLength != 0 {
		b := &body{ReadCloser: r.Body, control: http.NewResponseController(w)}
		if r.ProtoMajor == 2 { // of HTTP/1 the loan sees it
			b.slow = &d.front.counters.slowRequests
		}
		r.Body = b
		defer b.leave()
	}
	d.behind.Load().Handler.ServeHTTP(w, r)
}

// serverLog counts what net/http would log: all of it is about what strangers sent.
type serverLog struct{ c *counters }

func (l serverLog) Write(line []byte) (int, error) {
	l.c.serverErrors.Add(1)
	return len(line), nil
}
