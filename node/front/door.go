package front

import (
	"context"
	"crypto/tls"
	"log"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
)

// door is an open Door.
type door struct {
	key      doorKey
	front    *Front
	listener net.Listener
	behind   atomic.Pointer[Door]     // who serves it now
	server   *http.Server             // nil: a Conn door
	holds    atomic.Int64             // connections
	altSvc   atomic.Pointer[[]string] // the field that tells of HTTP/3, of doors that have it
	closing  chan struct{}
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
	d := &door{key: key, front: f, listener: listener, closing: make(chan struct{})}
	d.behind.Store(wanted)
	switch {
	case !key.http:
		f.wg.Go(d.serveConns)
	case key.tls:
		d.server = d.newServer()
		f.wg.Go(func() { d.server.ServeTLS(acceptor{d}, "", "") })
	default:
		d.server = d.newServer()
		f.wg.Go(func() { d.server.Serve(acceptor{d}) })
	}
	return d, nil
}

// close accepts nothing more. Connections that carry nothing end; others when they are done.
func (d *door) close() {
	close(d.closing)
	d.listener.Close()
	if d.server != nil {
		d.front.wg.Go(func() { d.server.Shutdown(d.front.ctx) })
	}
}

// How long to wait after a failed accept (too many open files, mostly), doubling.
const (
	acceptPause    = 5 * time.Millisecond
	maxAcceptPause = time.Second
)

// accept returns the next connection that the door has room for, or net.ErrClosed.
func (d *door) accept() (net.Conn, error) {
	pause := acceptPause
	for {
		c, err := d.listener.Accept()
		if err != nil {
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
		if d.holds.Add(1) > int64(d.front.config.Connections) {
			d.holds.Add(-1)
			d.front.counters.refused.Add(1)
			c.Close()
			continue
		}
		if g := d.front.enter(c, d.behind.Load()); !d.front.admit(c, g) {
			d.leave(c)
			continue
		}
		return c, nil
	}
}

// leave gives back the room that a connection took.
func (d *door) leave(c net.Conn) {
	d.holds.Add(-1)
	d.front.leave(c)
}

// serveConns is the life of a Conn door.
func (d *door) serveConns() {
	for {
		c, err := d.accept()
		if err != nil {
			return
		}
		d.front.wg.Go(func() { d.serveConn(c) })
	}
}

// serveConn passes the connection on as it is where it can, for the kernel moves bytes only between sockets.
func (d *door) serveConn(c net.Conn) {
	defer d.leave(c)
	defer c.Close()
	defer func() {
		if v := recover(); v != nil {
			d.front.panicked(v)
		}
	}()
	if !d.front.believes(c) {
		d.behind.Load().Conn(c)
	} else if p := d.front.proxied(c); p.wait() {
		d.behind.Load().Conn(p)
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
		HTTP2:                        &http.HTTP2Config{MaxConcurrentStreams: streams, WriteByteTimeout: writeTimeout},
		Protocols:                    new(http.Protocols),
		BaseContext:                  func(net.Listener) context.Context { return d.front.ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, clientOf(c))
		},
		ConnState: stateChanged,
		ErrorLog:  log.New(serverLog{&d.front.counters}, "", 0),
	}
	s.Protocols.SetHTTP1(true)
	if d.key.tls {
		s.Protocols.SetHTTP2(true)
		s.TLSConfig = d.tlsConfig()
	}
	return s
}

// acceptor is a door as its server sees it.
type acceptor struct{ *door }

func (a acceptor) Accept() (net.Conn, error) {
	c, err := a.accept()
	if err != nil {
		return nil, err
	}
	return a.client(c), nil
}

func (a acceptor) Close() error   { return a.listener.Close() }
func (a acceptor) Addr() net.Addr { return a.listener.Addr() }

// ServeHTTP gives a request to whoever is behind the door.
func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := r.Context().Value(connKey{}).(*client)
	if !c.hold() {
		panic(http.ErrAbortHandler)
	}
	defer c.release()
	c.unheard.Store(false)
	d.front.counters.requests.Add(1)
	d.advertise(w, c)
	defer func() {
		if v := recover(); v != nil {
			if v != http.ErrAbortHandler {
				d.front.panicked(v)
			}
			panic(http.ErrAbortHandler)
		}
	}()
	if r.ContentLength != 0 {
		b := &body{ReadCloser: r.Body, control: http.NewResponseController(w)}
		r.Body = b
		defer b.leave()
	}
	d.behind.Load().Handler.ServeHTTP(w, r)
}

// stateChanged notes when no handler answers on a connection: what is written then are net/http's own answers to requests
// that it did not understand. In HTTP/2 a bad request ends its stream, and is not seen.
func stateChanged(c net.Conn, s http.ConnState) {
	if s != http.StateActive && s != http.StateIdle {
		return
	}
	if t, ok := c.(*tls.Conn); ok && t.ConnectionState().NegotiatedProtocol == "h2" {
		return
	}
	clientOf(c).unheard.Store(true)
}

// serverLog counts what net/http would log: all of it is about what strangers sent.
type serverLog struct{ c *counters }

func (l serverLog) Write(line []byte) (int, error) {
	if strings.HasPrefix(string(line), "http: TLS handshake error") {
		l.c.handshakeErrors.Add(1)
	} else {
		l.c.serverErrors.Add(1)
	}
	return len(line), nil
}
