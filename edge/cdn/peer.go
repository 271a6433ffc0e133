package cdn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/cluster/backbone"
	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/edge/cache"
	"github.com/perigee-net/perigee/origin/wire"
)

// The nodes of a POP share what they keep: each key has an owner (Owners), which the others ask instead of the origin, and
// which fills it once. Where the origin has a shield, the owner asks that of its region. Peers only ever spare the origin
// requests: one that does not answer gives way to the next, at last to the origin itself, so no viewer gets an error that it
// would not have got without them.

// PeerService is the service of the backbone by which peers are asked; its resource says as what (Peers).
const PeerService = "peer"

const (
	// peerSign is how often a peer that is at it says so, and peerPatience for how long it may say nothing before the next is
	// asked. The backbone knows a dead link after about as long.
	peerSign     = 500 * time.Millisecond
	peerPatience = 2 * time.Second
	// peerGrace is how much longer a peer may make a pause in a body than its origin may: it gives up first.
	peerGrace = 5 * time.Second
	// peerDial bounds a dial of a peer. A link that is known to be down fails at once.
	peerDial = time.Second
	// peerIdle is how long a stream to a peer is kept for the next request: shorter than peers keep theirs.
	peerIdle = 30 * time.Second
	// maxPeerIdle is how many such streams one peer has; a further one is closed after its request.
	maxPeerIdle = 256
	// maxPeerHeader bounds a peer's header: an origin's and what is added.
	maxPeerHeader = maxResponseHeader + 12<<10
	// forgetTime bounds how long a peer is told to forget a key. Until it has heard, or can have, it is not asked for it.
	forgetTime = 5 * time.Second
	// maxForgets bounds how many keys peers are being told to forget; of one more they are not told, and not asked for pendingTime.
	maxForgets = 256
)

// peers is how a Plane asks others.
type peers struct {
	transport *http.Transport
	heat      *heat
	recent    recent
	fenced    atomic.Bool
	forgets   atomic.Int64
	telling   sync.WaitGroup
	ctx       context.Context
	cancel    context.CancelFunc

	mu   sync.Mutex
	open map[string]int // how many requests each peer has not answered to the end

	counts struct {
		requests, hits, fallbacks, resumed, refused, refusedEpoch, skipped, served, refusals, refusalsEpoch, hot, forgot atomic.Uint64
	}
}

func (p *Plane) openPeers() {
	p.peers = &peers{heat: newHeat(), open: map[string]int{}}
	p.peers.ctx, p.peers.cancel = context.WithCancel(context.Background())
	p.peers.transport = &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return dialWithin(ctx, peerDial, p.dialPeer, network, address)
		},
		IdleConnTimeout: peerIdle, MaxIdleConnsPerHost: maxPeerIdle, MaxResponseHeaderBytes: maxPeerHeader, DisableCompression: true,
		Protocols: new(http.Protocols),
	}
	p.peers.transport.Protocols.SetHTTP1(true)
}

func (p *Plane) closePeers() {
	p.peers.cancel()
	p.peers.telling.Wait()
	p.peers.transport.CloseIdleConnections()
}

// dialPeer reaches a peer at "<node>/<tier>:0".
func (p *Plane) dialPeer(ctx context.Context, _, address string) (net.Conn, error) {
	at, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	node, as, _ := strings.Cut(at, "/")
	return p.cfg.Backbone(ctx, node, backbone.Header{Service: PeerService, Resource: as})
}

// errand is what a fill asks for, of peers or of the origin.
type errand struct {
	Decision
	key    cache.Key
	host   string // as the viewer wrote it
	path   *url.URL
	header http.Header   // for the origin
	at     tier          // as what this node is asked
	hops   []hop         // who is asked before the origin
	early  *interim      // to whom the origin's interim responses go, also by way of peers; nil: to nobody
	asking *wire.Asking  // the origin, already; nil: it is not asked yet
	turn   *atomic.Int32 // whose turn it is of them: those before have failed
}

// errandOf is the errand of a request.
func (p *Plane) errandOf(r *http.Request, d Decision, key cache.Key, header http.Header, at tier) errand {
	u := &url.URL{Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: d.Behavior.Policy.Query(r.URL.RawQuery)}
	return errand{d, key, r.Host, u, header, at, p.hops(d, key, at, nil), nil, nil, new(atomic.Int32)}
}

// wanted is what a fill is to bring for the errand. Viewer is the header that the key was made of.
func (p *Plane) wanted(e *errand, viewer http.Header) cache.Want {
	w := cache.Want{Key: e.key, Policy: e.Behavior.Policy, Header: viewer, Rank: e.rank, Origin: &e.Behavior.upstream.filling.Origin}
	p.fetchingHere(e, &w)
	if e.at == byViewers {
		w.Keep = p.keep(*e, e.key)
	}
	return w
}

// rank is how near the origin those are that are asked. Two nodes whose views differ may each hold the other for the owner: so
// what a peer asks for never waits for what may be asked of that peer.
func (e *errand) rank() int {
	switch left := e.hops[e.turn.Load():]; {
	case len(left) == 0:
		return ofOrigin()
	case left[0].Tier == inShield:
		return 1
	}
	return 0
}

// hops are the peers to be asked for a key, in order; none: the origin is asked at once.
func (p *Plane) hops(d Decision, key cache.Key, at tier, tr *trace.Trace) []hop {
	all := p.allHops(d, key, at, tr)
	if len(all) > 0 && p.doubts(key, tr) {
		return nil
	}
	return all
}

func (p *Plane) allHops(d Decision, key cache.Key, at tier, tr *trace.Trace) []hop {
	if p.cfg.Backbone == nil || p.cfg.View == nil {
		return nil
	}
	return hops(p.cfg.View(), d, key.URI, at, p.peers.load, tr)
}

// doubts says whether no peer is to be asked for a key, because of a purge of which no epoch tells.
func (p *Plane) doubts(key cache.Key, tr *trace.Trace) bool {
	switch {
	case p.peers.fenced.Load():
		tr.Add("this node has missed purges: no peer is asked, as it may have missed them, too")
	case p.peers.recent.matches(key, time.Now()):
		tr.Add("what this node has just forgotten a peer may still keep: none is asked")
	default:
		return false
	}
	if !tr.On() {
		p.peers.counts.skipped.Add(1)
	}
	return true
}

// askPeers asks the peers for a response; nil: it is the origin's turn, and stays so for the errand.
func (p *Plane) askPeers(ctx context.Context, e errand, conditions http.Header) (*http.Response, error) {
	for int(e.turn.Load()) < len(e.hops) {
		if p.doubts(e.key, nil) { // there was a purge after the hops were chosen and before the fill was there to hear of it
			e.turn.Store(int32(len(e.hops)))
			return nil, nil
		}
		h := e.hops[e.turn.Load()]
		p.peers.counts.requests.Add(1)
		response, err := p.askPeer(ctx, e, h, conditions)
		var no refusal
		switch {
		case err == nil:
			if conditions.Get("Range") == "" {
				p.resuming(ctx, e, response)
			}
			return response, nil
		case ctx.Err() != nil:
			return nil, err
		case errors.As(err, &no):
			p.peers.counts.refused.Add(1)
			if no == refusedEpoch {
				p.peers.counts.refusedEpoch.Add(1)
			}
			if no == refusedSilent {
				return nil, err
			}
			e.turn.Store(int32(len(e.hops))) // the origin's, and no other peer's: they would say the same
			return nil, nil
		}
		p.peers.counts.fallbacks.Add(1)
		e.turn.Add(1)
	}
	return nil, nil
}

var errNoSign = errors.New("the peer gives no sign of life")

// askPeer asks one peer.
func (p *Plane) askPeer(ctx context.Context, e errand, h hop, conditions http.Header) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	sign := time.AfterFunc(peerPatience, func() { cancel(errNoSign) })
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		Got1xxResponse: func(status int, header textproto.MIMEHeader) error { // as often as the peer likes: Got1xxResponse lifts the bound on their bytes
			sign.Reset(peerPatience)
			if e.early != nil && header.Get(answerField) == interimAnswer {
				return e.early.Interim(status, http.Header(header))
			}
			return nil
		},
	})
	q := p.peerRequest(e, h, http.MethodGet)
	for name, lines := range conditions {
		q.Header[ifPrefix+name] = lines
	}
	p.peers.enter(h.Node)
	asked := time.Now()
	response, err := p.peers.transport.RoundTrip(q.WithContext(traced))
	if !sign.Stop() && err == nil {
		response.Body.Close()
		err = errNoSign
	}
	var terms cache.Terms
	if err == nil {
		terms, err = p.termsOf(response, e.key, h, asked)
	}
	if err != nil {
		p.peers.leave(h.Node)
		cancel(nil)
		return nil, fmt.Errorf("ask peer %s: %w", h.Node, err)
	}
	patience := e.Behavior.upstream.key.response + peerGrace
	body := &attentive{ReadCloser: response.Body, patience: patience, ctx: ctx, cancel: cancel}
	response.Body = &cache.Lent{ReadCloser: &leaving{ReadCloser: body, leave: func() { p.peers.leave(h.Node) }}, Terms: terms}
	return response, nil
}

// peerRequest is a request to a peer.
func (p *Plane) peerRequest(e errand, h hop, method string) *http.Request {
	at := *e.path
	at.Scheme, at.Host = "http", h.Node+"/"+string(h.Tier)+":0"
	header := make(http.Header, len(e.header)+3)
	maps.Copy(header, e.header)
	for _, name := range conditional {
		delete(header, ifPrefix+name)
	}
	ask := asking{TLS: e.Request.TLS, URI: sumOf(e.key.URI), Variant: e.key.Variant}
	if p.cfg.Epoch != nil {
		ask.Epoch = p.cfg.Epoch()
	}
	header[askField] = []string{ask.String()}
	return &http.Request{Method: method, URL: &at, Host: e.host, Header: header}
}

// termsOf reads the terms of an answer to what was asked then, and takes off its header what is between peers. An error is a refusal or the peer's fault;
// then the body is closed.
func (p *Plane) termsOf(response *http.Response, key cache.Key, h hop, asked time.Time) (cache.Terms, error) {
	answer, err := parseAnswering(response.Header.Get(answerField))
	terms := answer.terms(asked)
	if err == nil && !p.cache.Lends(key, response.Header, &terms, time.Now()) {
		err = refusedStale
	}
	if err != nil {
		io.CopyN(io.Discard, response.Body, 1) // a refusal has none: the stream is good for the next request
		response.Body.Close()
		return terms, err
	}
	from, _, _ := strings.Cut(response.Header.Get("X-Cache"), " ")
	if h.Near {
		terms.From = from
	}
	if from == "Hit" {
		p.peers.counts.hits.Add(1)
	}
	// It was so fresh when it was sent. Where the way is not measured, that is as good as no time.
	if v := p.cfg.View(); terms.Kept && v != nil {
		away, _ := v.Away(h.Node)
		terms.Fresh -= away
	}
	for _, name := range []string{answerField, "X-Cache", "X-Perigee-Pop", "X-Perigee-Id"} {
		delete(response.Header, name)
	}
	return terms, nil
}

// leaving is a body whose end is counted once.
type leaving struct {
	io.ReadCloser
	once  sync.Once
	leave func()
}

func (l *leaving) Close() error {
	l.once.Do(l.leave)
	return l.ReadCloser.Close()
}

// load is how many requests a peer has not answered to the end.
func (s *peers) load(node string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open[node]
}

func (s *peers) enter(node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[node]++
}

func (s *peers) leave(node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[node]--; s.open[node] == 0 {
		delete(s.open, node)
	}
}

// keep says of a viewer's request whether what its fill brings is to be kept here under a key, as cache.Want has it: always of
// errands whose key this node owns, else if it is hot. It counts the request.
func (p *Plane) keep(e errand, key cache.Key) func() bool {
	if len(e.hops) == 0 || !e.hops[0].Own {
		return nil
	}
	if p.peers.heat.count(key.URI, time.Now()) {
		p.peers.counts.hot.Add(1)
	}
	uri := key.URI // and not the whole of the errand
	return func() bool { return p.peers.heat.hot(uri, time.Now()) }
}

// Settle says that all purges that were told are agreed now, so that the epoch tells of them.
func (p *Plane) Settle() { p.peers.recent.settle() }

// forgetAtPeers has the owners of a key forget it that was changed by way of this node, which does not ask them until they have:
// else a viewer might get what was before its own change. It does not wait. It is to be called before this node itself forgets.
func (p *Plane) forgetAtPeers(e errand) {
	if e.Behavior.Policy.Disabled() {
		return // nothing is kept
	}
	var first []hop
	for _, h := range p.allHops(e.Decision, e.key, byViewers, nil) {
		if len(first) == 0 || first[len(first)-1].Tier != h.Tier {
			first = append(first, h)
		}
	}
	if len(first) == 0 {
		return
	}
	heard := p.peers.recent.add(func(k cache.Key) bool { return k.URI == e.key.URI }, time.Now(), false)
	if p.peers.forgets.Add(1) > maxForgets {
		p.peers.forgets.Add(-1)
		return
	}
	p.peers.telling.Go(func() {
		defer p.peers.forgets.Add(-1)
		ctx, cancel := context.WithTimeout(p.peers.ctx, forgetTime)
		defer cancel()
		for _, h := range first {
			q := p.peerRequest(e, h, http.MethodPost)
			q.Header["Idempotency-Key"] = nil // is not sent; the transport may repeat it where the stream it chose has just ended
			response, err := p.peers.transport.RoundTrip(q.WithContext(ctx))
			if err != nil {
				return // it is not asked for a while
			}
			response.Body.Close()
			if response.StatusCode != http.StatusNoContent {
				return
			}
		}
		heard()
	})
}

const (
	// pendingTime is how long a key that was forgotten here is not asked of peers, unless they are known to have forgotten it as well.
	// An order is pending as long, at most.
	pendingTime = 30 * time.Second
	// maxRecent bounds what is remembered of that. At it, all keys count as just forgotten.
	maxRecent = 256
)

// recent is what this node has just forgotten, and of which peers may not have heard.
type recent struct {
	some atomic.Bool
	mu   sync.Mutex
	list []*forgotten
	all  time.Time // until then each key is
}

type forgotten struct {
	match func(cache.Key) bool
	until time.Time
	purge bool
}

// add remembers what was forgotten, by a purge or an unsafe request. To call heard ends that.
func (r *recent) add(match func(cache.Key) bool, now time.Time, purge bool) (heard func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.some.Store(true)
	r.drop(func(f *forgotten) bool { return !now.Before(f.until) })
	if len(r.list) >= maxRecent {
		r.all = now.Add(pendingTime)
		return func() {}
	}
	f := &forgotten{match, now.Add(pendingTime), purge}
	r.list = append(r.list, f)
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.drop(func(other *forgotten) bool { return other == f })
	}
}

// settle forgets of the purges.
func (r *recent) settle() {
	if !r.some.Load() {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drop(func(f *forgotten) bool { return f.purge })
}

// matches says whether a key was just forgotten.
func (r *recent) matches(k cache.Key, now time.Time) bool {
	if !r.some.Load() {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drop(func(f *forgotten) bool { return !now.Before(f.until) })
	if now.Before(r.all) {
		return true
	}
	r.some.Store(len(r.list) > 0)
	for _, f := range r.list {
		if f.match(k) {
			return true
		}
	}
	return false
}

func (r *recent) drop(which func(*forgotten) bool) {
	kept := r.list[:0]
	for _, f := range r.list {
		if !which(f) {
			kept = append(kept, f)
		}
	}
	clear(r.list[len(kept):])
	r.list = kept
}

// counters count what was asked of peers and by them.
func (s *peers) counters() map[string]uint64 {
	return map[string]uint64{
		"cdn_peer_requests_total":      s.counts.requests.Load(),
		"cdn_peer_hits_total":          s.counts.hits.Load(),
		"cdn_peer_fallbacks_total":     s.counts.fallbacks.Load(),
		"cdn_peer_resumed_total":       s.counts.resumed.Load(),
		"cdn_peer_refused_total":       s.counts.refused.Load(),
		"cdn_peer_refused_epoch_total": s.counts.refusedEpoch.Load(),
		"cdn_peer_skipped_total":       s.counts.skipped.Load(),
		"cdn_peer_served_total":        s.counts.served.Load(),
		"cdn_peer_refusals_total":      s.counts.refusals.Load(),
		"cdn_peer_forgotten_total":     s.counts.forgot.Load(),
		"cdn_hot_keys_total":           s.counts.hot.Load(),
	}
}

// filledFrom counts what a fill has brought, and says where from: what a peer of the POP kept is the POP's hit.
func (p *Plane) filledFrom(o *cache.Object) []string {
	switch o.From() {
	case "Hit":
		p.counts.hits.Add(1)
		return p.fields.hit
	case "RefreshHit":
		p.counts.refreshes.Add(1)
		return p.fields.refreshHit
	}
	p.counts.misses.Add(1)
	return p.fields.miss
}
