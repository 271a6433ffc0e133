package cdn

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/cluster/backbone"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/edge/cache"
	"github.com/perigee-net/perigee/edge/http1"
	"github.com/perigee-net/perigee/origin"
	"github.com/perigee-net/perigee/origin/wire"
)

const (
	// keepAlive is how long a connection to an origin is kept for the next request: CloudFront's default, and shorter
	// than origins keep theirs, so that a request rarely meets one that is just being closed.
	keepAlive = 5 * time.Second
	// maxIdle is how many such connections one origin has; a further one is closed after its request.
	maxIdle = 256
	// maxResponseHeader bounds what an origin sends before the body (CloudFront); beyond it the viewer gets 502.
	maxResponseHeader = 20480
)

// upstreamKey is what an origin's connections depend on: an origin that changes in nothing of it keeps them.
type upstreamKey struct {
	url               string // or the load balancers
	attempts          int
	connect, response time.Duration
}

func keyOf(o *spec.Origin) upstreamKey {
	return upstreamKey{cmp.Or(o.URL, strings.Join(o.LoadBalancers, " ")), o.ConnectionAttempts, o.ConnectionTimeout.Std(), o.ResponseTimeout.Std()}
}

// filling is how the cache knows an origin, whatever its URL's path and the settings by which it is asked: else who writes it in several ways has
// several shares of what may be asked of origins. It stays as long as an upstream has it, or a fill of it runs: then one that comes back with
// a later spec goes on with its share.
type filling struct {
	cache.Origin
	users int // upstreams; the plane's apply guards it
}

// joins has an upstream share what others of the same origin have. p.apply is held.
func (p *Plane) joins(u *upstream) {
	at := u.at()
	f := p.fillings[at]
	if f == nil {
		f = new(filling)
		p.fillings[at] = f
	}
	delete(p.idle, at)
	f.users++
	u.filling = f
}

// parts ends that an upstream is among those that share. p.apply is held.
func (p *Plane) parts(u *upstream) {
	if u.filling.users--; u.filling.users == 0 {
		p.idle[u.at()] = u.filling
	}
}

// at is where an upstream asks: a scheme and authority, or load balancers in order.
func (u *upstream) at() string {
	if u.authority == "" {
		return strings.Join(slices.Compact(slices.Sorted(strings.FieldsSeq(u.key.url))), " ")
	}
	at := &url.URL{Scheme: u.scheme, Host: strings.ToLower(u.authority)}
	if port := at.Port(); port == "80" && u.scheme == "http" || port == "443" && u.scheme == "https" || port == "" {
		at.Host = strings.TrimSuffix(at.Host, ":"+port)
	}
	return at.String()
}

// upstream is how origins of one key are reached.
type upstream struct {
	key       upstreamKey
	scheme    string
	authority string   // of the URL
	address   string   // of a http URL: where package wire asks; empty: it does not
	users     int      // how many behaviours of the table have it; the plane's apply guards it
	filling   *filling // what it shares with upstreams of other keys
	plane     *Plane
	made      atomic.Pointer[wire.Client]
}

func (p *Plane) upstream(o *spec.Origin) (*upstream, error) {
	u := &upstream{key: keyOf(o), scheme: "http", plane: p}
	if o.URL != "" {
		at, err := url.Parse(o.URL)
		if err != nil {
			return nil, fmt.Errorf("origin %s: %w", o.Name, err)
		}
		if at.Scheme != "http" && at.Scheme != "https" || at.Host == "" {
			return nil, fmt.Errorf("origin %s: %q is no http or https URL", o.Name, o.URL)
		}
		u.scheme, u.authority = at.Scheme, at.Host
		if u.scheme == "http" && http1.IsHost(at.Host) {
			u.address = wire.Address(at)
		}
	}
	return u, nil
}

// transport keeps the connections between requests. It is made for the first: of very many origins, few are asked at
// one POP. What has a body or goes over TLS or the backbone is net/http's, with connections of its own.
func (u *upstream) transport() *wire.Client {
	if made := u.made.Load(); made != nil {
		return made
	}
	dial, attempts := u.plane.dialNode, 1 // of a node: the next one is tried instead
	if u.authority != "" {
		dial, attempts = u.plane.cfg.Dial, max(1, u.key.attempts)
	}
	connect := func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		for range attempts {
			if conn, err = dialWithin(ctx, u.key.connect, dial, network, address); err == nil || ctx.Err() != nil {
				break
			}
		}
		if err != nil {
			return nil, &dialError{err}
		}
		return conn, nil
	}
	rest := &http.Transport{
		DialContext:            connect,
		TLSClientConfig:        &tls.Config{RootCAs: u.plane.cfg.RootCAs},
		TLSHandshakeTimeout:    u.key.connect,
		ResponseHeaderTimeout:  u.key.response,
		IdleConnTimeout:        keepAlive,
		MaxIdleConnsPerHost:    maxIdle,
		MaxResponseHeaderBytes: maxResponseHeader,
		DisableCompression:     true, // bodies are kept as they came
		Protocols:              new(http.Protocols),
	}
	rest.Protocols.SetHTTP1(true)
	u.made.CompareAndSwap(nil, wire.New(wire.Config{
		Dial: connect, Rest: rest, HeadTimeout: u.key.response, Patience: u.key.response,
		MaxHead: maxResponseHeader, MaxIdle: maxIdle, IdleTimeout: keepAlive, Faults: &u.plane.counts.originFaults,
	}))
	return u.made.Load()
}

func (u *upstream) closeIdle() {
	if made := u.made.Load(); made != nil {
		made.CloseIdleConnections()
	}
}

func dialWithin(ctx context.Context, d time.Duration, dial func(context.Context, string, string) (net.Conn, error), network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return dial(ctx, network, address)
}

// dialNode reaches a load balancer at a node: the address is "<node>/<load balancer>:<port>", which nodeAddress writes. The
// connection is used for one viewer after another, so it names no client: X-Forwarded-For does.
func (p *Plane) dialNode(ctx context.Context, _, address string) (net.Conn, error) {
	at, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	node, loadBalancer, _ := strings.Cut(at, "/")
	return p.cfg.Backbone(ctx, node, backbone.Header{Service: "http", Resource: loadBalancer + "/" + port})
}

func nodeAddress(c Candidate) string {
	return fmt.Sprintf("%s/%s:%d", c.Node, c.LoadBalancer, c.Port)
}

// dialError is a failure before anything was sent.
type dialError struct{ error }

func (e *dialError) Unwrap() error { return e.error }

var (
	errNowhere     = errors.New("no live node runs a load balancer of the origin")
	errProtocol    = errors.New("the origin switched protocols unasked")
	errNotModified = errors.New("the origin said that nothing was modified unasked")
	errPartial     = errors.New("the origin sent a part unasked")
	errUnproven    = errors.New("the origin failed, and the viewer takes no response that it did not prove")
	errSilent      = errors.New("the origin stopped sending")
)

// send asks the behaviour's origin: the URL, or its load balancers in Order. The next is tried at once where a
// dial fails, ours or the load balancer's own; where a connection fails later, only if the request is safe and has no body. One that does not answer in
// time is the end: the viewer has waited long enough, and its health will tell. The request's URL and Host are filled in.
// Its interim responses go to early; nil: to nobody.
func (p *Plane) send(ctx context.Context, d Decision, q *http.Request, early *interim) (*http.Response, error) {
	u := d.Behavior.upstream
	d.addressed(q)
	if u.authority != "" && wire.Speaks(q) { // its bodies are attentive by themselves
		response, err := u.transport().Send(ctx, q, early.watcher())
		return p.answeredBy(ctx, d, q, response, err)
	}
	ctx, cancel := context.WithCancelCause(early.watch(ctx))
	response, err := p.try(ctx, d, q)
	if response, err = p.heard(ctx, d, q, response, err); err != nil {
		cancel(nil)
		return nil, err
	}
	response.Body = &attentive{ReadCloser: response.Body, patience: u.key.response, ctx: ctx, cancel: cancel}
	return response, nil
}

// goOn is send of a request that was begun.
func (p *Plane) goOn(ctx context.Context, d Decision, q *http.Request, asking *wire.Asking, early *interim) (*http.Response, error) {
	d.addressed(q)
	call := asking.Call(q, early.watcher())
	response, err := call.Soon()
	if err == wire.ErrLater {
		response, err = call.Wait(ctx)
	}
	return p.answeredBy(ctx, d, q, response, err)
}

// addressed fills in where a request goes.
func (d Decision) addressed(q *http.Request) {
	u := d.Behavior.upstream
	q.URL.Scheme, q.URL.Host = u.scheme, u.authority
	q.Host = d.Behavior.host(q.Host)
}

// answeredBy is heard for what an origin that is a URL has answered.
func (p *Plane) answeredBy(ctx context.Context, d Decision, q *http.Request, response *http.Response, err error) (*http.Response, error) {
	if err != nil && ctx.Err() == nil {
		p.counts.originErrors.Add(1)
	}
	return p.heard(ctx, d, q, response, err)
}

// heard judges what an origin answered.
func (p *Plane) heard(ctx context.Context, d Decision, q *http.Request, response *http.Response, err error) (*http.Response, error) {
	if err == nil {
		if err = unasked(q, response); err != nil {
			response.Body.Close()
			p.counts.originErrors.Add(1)
		}
	}
	if ctx.Err() == nil {
		d.Behavior.down.note(response, err, time.Now())
	}
	if err != nil {
		return nil, err
	}
	returned(response.Header, d.Behavior.Policy)
	return response, nil
}

// unasked says what is wrong with a response that answers another request than ours, if it does: to pass it on, or to keep it,
// would be to believe it.
func unasked(q *http.Request, response *http.Response) error {
	has := func(names ...string) bool {
		return slices.ContainsFunc(names, func(name string) bool { return q.Header.Get(name) != "" })
	}
	switch response.StatusCode {
	case http.StatusNotModified:
		if !has("If-None-Match", "If-Modified-Since") {
			return errNotModified
		}
	case http.StatusPartialContent:
		if !has("Range") {
			return errPartial
		}
	}
	if response.StatusCode < 200 { // 101: nobody asked for another protocol
		return errProtocol
	}
	return nil
}

func (p *Plane) try(ctx context.Context, d Decision, q *http.Request) (response *http.Response, err error) {
	b, u := d.Behavior, d.Behavior.upstream
	if u.authority != "" {
		if response, err = u.transport().RoundTrip(q.WithContext(ctx)); err != nil && ctx.Err() == nil {
			p.counts.originErrors.Add(1)
		}
		return response, err
	}
	repeatable := safe(q.Method) && q.Body == nil
	err = errNowhere
	for i, c := range Order(d.table.spec, p.cfg.View(), b.Origin, nil) {
		if i > 0 {
			p.counts.failovers.Add(1)
		}
		q.URL.Host = nodeAddress(c)
		try := q.WithContext(ctx)
		if q.Body != nil {
			try.Body = io.NopCloser(q.Body) // a dial that fails closes it
		}
		if response, err = u.transport().RoundTrip(try); err == nil {
			if response.Header.Get(origin.Unreached) == "" || q.Body != nil {
				return response, nil
			}
			response.Body.Close()
			err = &dialError{fmt.Errorf("%s at %s reaches none of its targets", c.LoadBalancer, c.Node)}
		}
		if ctx.Err() != nil {
			return nil, err
		}
		p.counts.originErrors.Add(1)
		var unsent *dialError
		if !errors.As(err, &unsent) && (!repeatable || timedOut(err)) {
			return nil, err
		}
	}
	return nil, err
}

func timedOut(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// failure is what a viewer is answered when the origin gives no answer.
func failure(err error) (status int, why own, reason string) {
	if timedOut(err) {
		return http.StatusGatewayTimeout, late, "the origin does not answer in time"
	}
	return http.StatusBadGateway, unreached, "the origin cannot be reached"
}

// attentive is a body whose origin must not stop sending for longer than its response timeout (CloudFront: between
// packets also). Only the time of reading counts: a viewer may be slow.
type attentive struct {
	io.ReadCloser
	patience time.Duration
	timer    *time.Timer
	ctx      context.Context
	cancel   context.CancelCauseFunc
}

func (a *attentive) Read(b []byte) (int, error) {
	if a.timer == nil {
		a.timer = time.AfterFunc(a.patience, func() { a.cancel(errSilent) })
	} else {
		a.timer.Reset(a.patience)
	}
	n, err := a.ReadCloser.Read(b)
	a.timer.Stop()
	if err != nil && err != io.EOF && context.Cause(a.ctx) == errSilent {
		err = errSilent
	}
	return n, err
}

func (a *attentive) Close() error {
	defer a.cancel(nil)
	return a.ReadCloser.Close()
}
