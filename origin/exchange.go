package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/textproto"
	"sync"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/edge/http1"
	"github.com/perigee-net/perigee/origin/wire"
)

// exchange is one request on its way to a target, and its response on the way back. It is written here and not left to
// httputil.ReverseProxy because it may have to try several targets, and must know what of a request was sent.
type exchange struct {
	plane    *Plane
	listener *listener
	group    *group
	inside   bool // the request came over the backbone
	w        http.ResponseWriter
	in       *http.Request

	began  time.Time
	peer   netip.Addr      // who connected; invalid: not known
	ctx    context.Context // nil: it is not attended yet
	cancel context.CancelCauseFunc
	timer  *time.Timer // runs expire
	stop   func() bool // that the context ends the response's body; nil: it does not, or by itself
	last   atomic.Pointer[attempt]
	begun  *begun // what Relay has begun; nil: nothing, or it is gone on with
	again  bool   // the one retry of a request that may have been carried out is spent

	mu     sync.Mutex
	headed bool // no informational response may be passed on any more
	over   bool // w is not to be touched any more
}

// attempt is one try at one target. It is what is told of it (wire.Watch).
type attempt struct {
	exchange *exchange
	answered atomic.Bool // a byte of a response has come
	reused   atomic.Bool // the connection had carried requests before
	upload   *upload     // nil: the request has no body
}

var (
	errNoTargets = errors.New("the target group has no targets")
	errIdle      = errors.New("no byte moved within the idle timeout")
)

// forward carries a request to a target of the group, and its response back.
func (p *Plane) forward(w http.ResponseWriter, r *http.Request, l *listener, g *group, inside bool) {
	x := &exchange{plane: p, listener: l, group: g, inside: inside, w: w, in: r, began: time.Now()}
	if peer, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		x.peer = peer.Addr().Unmap().WithZone("")
	}
	defer x.end()
	if r.ContentLength != 0 {
		http.NewResponseController(w).EnableFullDuplex() // or else the server eats what the target has not read when it answers
	}

	res, err := x.send(x.outgoing())
	x.head()
	if err != nil {
		if inside && x.unreached(err) {
			w.Header().Set(Unreached, "1")
		}
		x.fail(err)
		return
	}
	defer res.Body.Close()
	x.plane.counters.fromTarget[class(res.StatusCode)].Add(1)
	if res.StatusCode == http.StatusSwitchingProtocols {
		x.upgrade(res)
		return
	}
	x.respond(res)
}

// attend has the exchange end when its client leaves, or nothing moves. Most are over before there is anything to attend to: what the
// target answers at once, whole.
func (x *exchange) attend() {
	if x.ctx == nil {
		x.ctx, x.cancel = context.WithCancelCause(x.in.Context())
		x.timer = time.AfterFunc(max(x.listener.idle-time.Since(x.began), 0), x.expire)
	}
}

// touch notes that bytes move.
func (x *exchange) touch() {
	if x.timer != nil {
		x.timer.Reset(x.listener.idle)
	}
}

// ended says whether the exchange was ended from outside.
func (x *exchange) ended() bool { return x.cause() != nil }

// cause is by what it was ended.
func (x *exchange) cause() error {
	if x.ctx == nil {
		return context.Cause(x.in.Context())
	}
	return context.Cause(x.ctx)
}

// expire ends an exchange in which nothing moves. A transport that waits for more of the client's body does not look up,
// so that wait is ended too.
func (x *exchange) expire() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.over {
		return
	}
	x.cancel(errIdle)
	if a := x.last.Load(); a != nil && a.upload != nil && a.upload.waiting.Load() {
		http.NewResponseController(x.w).SetReadDeadline(time.Now())
	}
}

// end lets go of the client's request and response, and takes its body from the transport, which may still wait for more
// of it.
func (x *exchange) end() {
	if x.ctx != nil {
		x.timer.Stop()
		defer x.cancel(nil)
	}
	if x.stop != nil {
		x.stop()
	}
	x.mu.Lock()
	x.over = true
	x.mu.Unlock()
	if a := x.last.Load(); a != nil && a.upload != nil && a.upload.state.Swap(abandoned) != ended && a.upload.waiting.Load() &&
		http.NewResponseController(x.w).SetReadDeadline(time.Now()) == nil {
		a.upload.reading <- struct{}{} // the reader has let go
	}
}

// send tries the candidates until one answers.
func (x *exchange) send(r *http.Request) (*http.Response, error) {
	err := error(errNoTargets)
	for addr := range x.group.pool(x.plane.config.View()).Candidates(x.turn()) {
		if x.last.Load() != nil {
			x.plane.counters.retries.Add(1)
		}
		var res *http.Response
		if res, err = x.try(r, addr); err == nil {
			x.touch()
			return res, nil
		}
		if x.ended() || !x.mayTryAgain(err) {
			break
		}
	}
	return nil, err
}

// turn is whose turn it is: the one that was taken for what was begun, or else the next.
func (x *exchange) turn() uint64 {
	b, is := http1.BegunFor(x.in.Context()).(*begun)
	if !is || b.over || b.traffic != x.group.traffic {
		return x.group.turn()
	}
	x.begun, x.began = b, b.since
	return b.turn
}

// call is the call to a target: the one that was begun, if that is it, or a new one.
func (x *exchange) call(client *wire.Client, r *http.Request, addr netip.AddrPort, a *attempt) (*wire.Call, error) {
	if b := x.begun; b != nil {
		x.begun = nil
		if b.addr == addr {
			b.over = true
			return b.asking.Call(r, a), nil
		}
		b.Drop()
	}
	return client.Call(r, a)
}

// Unreached is a header of a load balancer's own error, told to edge nodes only: no target was reached, so nobody
// has seen the request, and another load balancer may be asked.
const Unreached = "Perigee-Unreached"

func (x *exchange) unreached(err error) bool {
	_, unsent := errors.AsType[*dialError](err)
	return (unsent || errors.Is(err, errNoTargets)) && !x.again && !x.ended()
}

func (x *exchange) try(r *http.Request, addr netip.AddrPort) (*http.Response, error) {
	a := &attempt{exchange: x}
	x.last.Store(a)
	client := x.group.traffic.transport()
	r.URL.Host = addr.String()
	if wire.Speaks(r) { // and is done with the request when it returns, where net/http may not be
		res, err := x.ask(client, r, addr, a)
		x.witness(addr, a, res, err)
		return res, err
	}
	x.attend()
	out := r.WithContext(httptrace.WithClientTrace(x.ctx, &httptrace.ClientTrace{
		GotConn:              func(c httptrace.GotConnInfo) { a.Sending(c.Reused) },
		GotFirstResponseByte: a.Answered,
		Got1xxResponse:       func(status int, h textproto.MIMEHeader) error { return a.Interim(status, http.Header(h)) },
	}))
	url := *r.URL
	out.URL = &url
	if r.Body != nil {
		a.upload = &upload{from: r.Body, touch: x.touch, reading: make(chan struct{}, 1)}
		out.Body = a.upload
	}
	res, err := client.RoundTrip(out)
	x.witness(addr, a, res, err)
	return res, err
}

// ask asks by package wire: for a moment without being attended, and longer with.
func (x *exchange) ask(client *wire.Client, r *http.Request, addr netip.AddrPort, a *attempt) (*http.Response, error) {
	call, err := x.call(client, r, addr, a)
	if err != nil {
		return nil, err
	}
	res, err := call.Soon()
	if err == wire.ErrLater {
		x.attend()
		return call.Wait(x.ctx)
	}
	if err != nil {
		return nil, err
	}
	if here, is := res.Body.(interface{ Here() bool }); is && !here.Here() {
		x.attend()
		x.stop = context.AfterFunc(x.ctx, func() { res.Body.Close() })
	}
	return res, nil
}

// mayTryAgain says whether the last attempt, which ended in err, may be followed by one at the next target. That is so
// if nothing was sent; or once if the target left without a byte of a response and it does no harm if the request was
// carried out already (RFC 9110, 9.2.2).
func (x *exchange) mayTryAgain(err error) bool {
	last := x.last.Load()
	if last.upload != nil && !last.upload.abandon() {
		return false
	}
	if _, unsent := errors.AsType[*dialError](err); unsent {
		return true
	}
	if x.again || last.answered.Load() || !idempotent(x.in.Method) {
		return false
	}
	x.again = true
	return true
}

func idempotent(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPut, http.MethodDelete:
		return true
	}
	return false
}

func (a *attempt) Sending(reused bool) { a.reused.Store(reused) }
func (a *attempt) Answered()           { a.answered.Store(true) }

// Interim passes an informational response on (RFC 9110, 15.2). 100 is not: it was asked for by this side, to hold the
// body back, and reading the client's body sends the client one of its own.
func (a *attempt) Interim(status int, header http.Header) error {
	x := a.exchange
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.headed || status == http.StatusContinue {
		return nil
	}
	h := x.w.Header()
	for name, values := range header {
		h[name] = values
	}
	x.w.WriteHeader(status)
	clear(h)
	return nil
}

// head ends what Interim may do: from here on the response is this goroutine's alone.
func (x *exchange) head() {
	x.mu.Lock()
	x.headed = true
	x.mu.Unlock()
}

// respond passes a target's response on, each piece as it comes.
func (x *exchange) respond(res *http.Response) {
	removeHopByHop(res.Header)
	x.closeIfUnread()
	h := x.w.Header()
	for name, values := range res.Header {
		h[name] = values
	}
	for name := range res.Trailer {
		h.Add("Trailer", name)
	}
	h.Del(Unreached) // not a target's to say
	x.w.WriteHeader(res.StatusCode)

	flush := http.NewResponseController(x.w).Flush
	if res.ContentLength < 0 {
		flush() // the body may be long in coming
	}
	if err := x.download(res, flush); err != nil {
		if errors.Is(x.cause(), context.Canceled) {
			x.plane.counters.clientGone.Add(1)
		}
		panic(http.ErrAbortHandler) // what is cut short must not look complete
	}
	for name, values := range res.Trailer {
		h[http.TrailerPrefix+name] = values
	}
}

// download copies a response's body. What waits for more is flushed; the last piece goes with the end.
func (x *exchange) download(res *http.Response, flush func() error) error {
	buf := x.plane.buffers.get()
	defer x.plane.buffers.put(buf)
	left := res.ContentLength
	for {
		n, err := res.Body.Read(buf[:])
		if n > 0 {
			x.touch()
			if _, err := x.w.Write(buf[:n]); err != nil {
				return err
			}
			if left -= int64(n); left != 0 {
				if err := flush(); err != nil {
					return err
				}
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// upgrade joins the two connections of an exchange that has left HTTP (RFC 9110, 7.8), until both directions have
// ended, one breaks, or nothing moves for the idle timeout.
func (x *exchange) upgrade(res *http.Response) {
	target, ok := res.Body.(io.ReadWriteCloser)
	if !ok || !upgrades(res.Header) || !upgrades(x.in.Header) {
		x.fail(errors.New("the target switched to a protocol that nobody asked for"))
		return
	}
	client, buffered, err := http.NewResponseController(x.w).Hijack()
	if err != nil {
		x.fail(fmt.Errorf("switch protocols: %w", err))
		return
	}
	defer client.Close()
	defer context.AfterFunc(x.ctx, func() { client.Close(); target.Close() })()

	res.Body = nil // leaves Write the head alone
	if res.Write(buffered) != nil || buffered.Flush() != nil {
		return
	}
	var halves sync.WaitGroup
	half := func(to io.Writer, from io.Reader) {
		buf := x.plane.buffers.get()
		defer x.plane.buffers.put(buf)
		_, err := io.CopyBuffer(to, touching{from, x.touch}, buf[:])
		if err != nil || closeWrite(to) != nil {
			x.cancel(err)
		}
	}
	halves.Go(func() { half(target, buffered.Reader) })
	halves.Go(func() { half(client, target) })
	halves.Wait()
}

// touching reads, and notes that bytes move.
type touching struct {
	from  io.Reader
	touch func()
}

func (t touching) Read(p []byte) (int, error) {
	n, err := t.from.Read(p)
	if n > 0 {
		t.touch()
	}
	return n, err
}

// closeIfUnread ends an HTTP/1 connection with this response if the request's body is not read to its end, so that no
// rest of it is ever taken for the next request.
func (x *exchange) closeIfUnread() {
	a := x.last.Load()
	if x.in.ContentLength != 0 && x.in.ProtoMajor == 1 && (a == nil || a.upload.state.Load() != ended) {
		x.w.Header().Set("Connection", "close")
	}
}

// fail answers where no target did. The status codes are ALB's.
func (x *exchange) fail(err error) {
	x.closeIfUnread()
	var uploading error
	if a := x.last.Load(); a != nil && a.upload != nil {
		uploading = a.upload.failed()
	}
	cause := x.cause()
	switch {
	case errors.Is(err, errNoTargets):
		x.plane.answer(x.w, http.StatusServiceUnavailable)
	case timedOut(uploading):
		x.plane.answer(x.w, http.StatusRequestTimeout)
	case cause == errIdle:
		x.plane.answer(x.w, http.StatusGatewayTimeout)
	case cause != nil:
		x.plane.counters.clientGone.Add(1)
		panic(http.ErrAbortHandler) // nobody is there to be answered
	case uploading != nil:
		x.plane.answer(x.w, http.StatusBadRequest)
	case timedOut(err):
		x.plane.answer(x.w, http.StatusGatewayTimeout)
	default:
		x.plane.answer(x.w, http.StatusBadGateway)
	}
}

func timedOut(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout()
}

// upload is the request's body as one attempt reads it. Once abandoned it gives nothing more, so that a transport which
// still holds it takes no byte from the attempt that follows.
type upload struct {
	from    io.Reader
	touch   func()
	state   atomic.Int32
	reading chan struct{} // full while a Read is under way
	waiting atomic.Bool   // for the client
	err     atomic.Pointer[error]
}

const (
	untouched int32 = iota
	taken
	ended
	abandoned
)

func (u *upload) Read(p []byte) (int, error) {
	u.reading <- struct{}{}
	defer func() { <-u.reading }()
	u.waiting.Store(true)
	defer u.waiting.Store(false)
	if !u.state.CompareAndSwap(untouched, taken) && u.state.Load() == abandoned {
		return 0, io.ErrClosedPipe
	}
	n, err := u.from.Read(p)
	if n > 0 {
		u.touch()
	}
	if err == io.EOF {
		u.state.CompareAndSwap(taken, ended)
	} else if err != nil {
		u.err.Store(&err)
	}
	return n, err
}

// Close leaves the body open for the next attempt; the server that read the request closes it.
func (u *upload) Close() error { return nil }

// abandon takes the body from its attempt, unless some of it was already read.
func (u *upload) abandon() bool { return u.state.CompareAndSwap(untouched, abandoned) }

// failed is why the client's body could not be read.
func (u *upload) failed() error {
	if err := u.err.Load(); err != nil {
		return *err
	}
	return nil
}

// buffers are those that bodies are copied through.
type buffers struct{ pool sync.Pool }

type buffer [32 << 10]byte

func (b *buffers) get() *buffer {
	if buf, ok := b.pool.Get().(*buffer); ok {
		return buf
	}
	return new(buffer)
}

func (b *buffers) put(buf *buffer) { b.pool.Put(buf) }
