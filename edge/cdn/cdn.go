// Package cdn is the distributions at an edge node (CloudFront): it finds the distribution by host and the
// behaviour by path, answers from the cache, and asks origins anywhere by URL or this network's load balancers over the
// backbone. It opens no listener, ends no TLS and knows no caching rule: node/front and edge/cache do.
//
// It promises that a request is answered as Explain says, by the same functions. When things break: a load balancer
// or peer that cannot be reached gives way to the next at once; an origin that fails is the viewer's 502 or 504, or a stale
// response where the origin allows that; a response that ends early ends the viewer's connection, never as if it were
// whole.
//
// What is too large to be kept whole is kept in slices, where its origin offers ranges and a strong validator (slicer). No answer has
// bytes of two versions.
//
// What the origin is sent is what is in the cache key, and little besides (Forward). Not yet: compression, functions,
// WebSocket (answered 501).
package cdn

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/cluster/backbone"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/edge/cache"
	"github.com/perigee-net/perigee/edge/cache/disk"
)

// Config is what a Plane is given.
type Config struct {
	// View is the newest view of the network.
	View func() *view.View
	// POP is this node's, for X-Perigee-Pop.
	POP string
	// Dial reaches the origins that are URLs.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Backbone reaches the nodes that run load balancers, and peers.
	Backbone func(ctx context.Context, node string, h backbone.Header) (net.Conn, error)
	// Epoch is up to which all purges are made here, for peers; nil: always 0.
	Epoch func() uint64
	// RootCAs verify origins with https URLs; nil is the system's.
	RootCAs *x509.CertPool
	// HTTPSPort is where this node serves HTTPS, for redirects; 0 is 443.
	HTTPSPort uint16
	// CacheBytes bounds the cache's memory: all that is kept in it and all that is on its way into it.
	CacheBytes int64
	// Disk is the cache's, too; nil: there is none. Who opened it closes it, after the Plane.
	Disk *disk.Store
	// Log is for the operator; nil discards.
	Log *slog.Logger
}

// Plane serves the distributions of the newest spec. It is an http.Handler, for the front's doors.
type Plane struct {
	cfg   Config
	cache *cache.Cache
	table atomic.Pointer[Table]
	apply sync.Mutex // held by Apply and Close
	// upstreams are those of the table's behaviours; apply guards them.
	upstreams map[upstreamKey]*upstream
	fillings  map[string]*filling // of these, and those in idle, by upstream.at; apply guards both
	idle      map[string]*filling // that no upstream has any more, but fills may run of
	fields    fields
	pieces    sync.Pool // *[]byte, for bodies that are passed on
	blocks    sync.Pool // *[cache.BodyPiece]byte, for those that are read from disk
	peers     *peers

	ahead    atomic.Int64 // slices that are held ready ahead of viewers
	maxAhead int64

	counts struct {
		requests, hits, misses, refreshes, covered, passes, bytes atomic.Uint64
		originErrors, originFaults, failovers                     atomic.Uint64
		own                                                       [owns]atomic.Uint64
	}
}

// New makes a Plane that serves nothing until a spec is applied.
func New(cfg Config) *Plane {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	p := &Plane{cfg: cfg, cache: cache.New(cache.Config{Bytes: cfg.CacheBytes, Disk: cfg.Disk, Log: cfg.Log}), fields: newFields(cfg.POP), upstreams: map[upstreamKey]*upstream{}, fillings: map[string]*filling{}, idle: map[string]*filling{}}
	p.maxAhead = cfg.CacheBytes / aheadShare / cache.SliceSize
	p.openPeers()
	p.pieces.New = func() any { b := make([]byte, pieceSize); return &b }
	p.blocks.New = func() any { return new([cache.BodyPiece]byte) }
	empty := &Table{spec: new(spec.Spec)}
	if port := cfg.HTTPSPort; port != 0 && port != 443 {
		empty.httpsPort = fmt.Sprintf(":%d", port)
	}
	p.table.Store(empty)
	return p
}

// Close ends what is being asked of origins, and waits. Requests must have ended before.
func (p *Plane) Close() error {
	p.cache.Close()
	p.closePeers()
	p.apply.Lock()
	defer p.apply.Unlock()
	for _, u := range p.upstreams {
		u.closeIdle()
	}
	return nil
}

// Apply serves the distributions of a spec from now on. What is kept stays: it is kept by the distribution's name. An
// origin that has not changed keeps its connections.
func (p *Plane) Apply(s *spec.Spec) error {
	p.apply.Lock()
	defer p.apply.Unlock()
	made := map[upstreamKey]*upstream{} // of origins that were not there before
	t, came, went, err := compile(s, p.table.Load(), func(o *spec.Origin) (u *upstream, err error) {
		k := keyOf(o)
		if u = p.upstreams[k]; u != nil {
			return u, nil
		}
		if u = made[k]; u == nil {
			u, err = p.upstream(o)
			made[k] = u
		}
		return u, err
	})
	if err != nil {
		return fmt.Errorf("apply revision %d: %w", s.Revision, err)
	}
	for _, d := range came {
		for _, b := range d.behaviors {
			if b.upstream.users++; b.upstream.users == 1 {
				p.upstreams[b.upstream.key] = b.upstream
				p.joins(b.upstream)
			}
		}
	}
	p.table.Store(t)
	for _, d := range went {
		for _, b := range d.behaviors {
			if b.upstream.users--; b.upstream.users == 0 {
				delete(p.upstreams, b.upstream.key)
				b.upstream.closeIdle()
				p.parts(b.upstream)
			}
		}
	}
	for at, f := range p.idle { // one for each fill at most, and those that went just now
		if !p.cache.Fills(&f.Origin) {
			delete(p.idle, at)
			delete(p.fillings, at)
		}
	}
	p.cfg.Log.Debug("distributions are served", "revision", s.Revision, "distributions", t.all.Len())
	return nil
}

// Purge sees to it that nothing is used from now on that this node keeps, or is being sent, of what the purges name; or, of
// soft ones, only as stale (CloudFront: an invalidation). They are done when Purge returns, and take no longer for what is
// kept; cache_purged_total counts what is met of it. Two names stand for more than cache.Purge says: the path / also for the
// default root object; a host also for what the distribution that answers for it keeps for all its hosts. The name of a
// distribution that is not served is fine. The error is cache.ErrUnnoted.
func (p *Plane) Purge(purges ...cache.Purge) error {
	t := p.table.Load()
	var all []cache.Purge
	add := func(what cache.Purge) {
		if d := t.all.Get(what.Distribution); d != nil && d.root != "" && slices.Contains(what.Items, "/") {
			what.Items = append(slices.Clone(what.Items), d.root)
		}
		p.peers.recent.add(what.Match(), time.Now(), true)
		all = append(all, what)
	}
	for _, what := range purges {
		add(what)
		if d := t.distribution(hostname(what.Host)); what.Host != "" && what.Distribution == "" && d != nil {
			what.Distribution = d.Name
			add(what)
		}
	}
	return p.cache.Purge(all...)
}

// Epoch is up to which of the network's epochs all purges were made of what is kept on disk; not known: nothing is. SetEpoch has the
// disk remember that.
func (p *Plane) Epoch() (epoch uint64, known bool) { return p.cache.Epoch() }

// SetEpoch is told up to which epoch all purges were made.
func (p *Plane) SetEpoch(epoch uint64) { p.cache.SetEpoch(epoch) }

// SetFence has the origin asked before anything is served that was kept before, as long as this node knows that it has
// missed purges. To be told so again begins it anew: it is to be told of each purge that it misses. It must have made
// them all before it ends.
func (p *Plane) SetFence(fenced bool) {
	p.peers.fenced.Store(fenced)
	p.cache.SetFence(fenced)
}

// Hosts says whether an enabled distribution answers for a host.
func (p *Plane) Hosts(host string) bool {
	return p.table.Load().distribution(hostname(host)) != nil
}

// SecurityPolicy is that of the enabled distribution that answers for a host; empty: none does.
func (p *Plane) SecurityPolicy(host string) string {
	if d := p.table.Load().distribution(hostname(host)); d != nil {
		return d.security
	}
	return ""
}

// Counters are the plane's and its cache's.
func (p *Plane) Counters() map[string]uint64 {
	all := p.cache.Counters()
	all["cdn_requests_total"] = p.counts.requests.Load()
	all["cdn_hits_total"] = p.counts.hits.Load()
	all["cdn_misses_total"] = p.counts.misses.Load()
	all["cdn_refresh_hits_total"] = p.counts.refreshes.Load()
	all["cdn_stale_if_error_total"] = p.counts.covered.Load()
	all["cdn_passes_total"] = p.counts.passes.Load()
	own := &p.counts.own
	all["cdn_redirects_total"] = own[redirected].Load()
	all["cdn_refused_forbidden_total"] = own[forbidden].Load()
	all["cdn_refused_too_long_total"] = own[tooLong].Load()
	all["cdn_refused_loop_total"] = own[looped].Load()
	all["cdn_refused_unserved_total"] = own[unserved].Load()
	all["cdn_refused_only_if_cached_total"] = own[onlyIfCached].Load()
	all["cdn_refused_busy_total"] = own[busy].Load()
	all["cdn_refused_unreached_total"] = own[unreached].Load()
	all["cdn_refused_timeout_total"] = own[late].Load()
	refused := uint64(0)
	for i := forbidden; i < owns; i++ {
		refused += own[i].Load()
	}
	all["cdn_refused_total"] = refused
	all["cdn_bytes_total"] = p.counts.bytes.Load()
	all["cdn_origin_errors_total"] = p.counts.originErrors.Load()
	all["cdn_origin_malformed_total"] = p.counts.originFaults.Load()
	all["cdn_origin_failovers_total"] = p.counts.failovers.Load()
	maps.Copy(all, p.peers.counters())
	return all
}

// ServeHTTP answers a viewer.
func (p *Plane) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.counts.requests.Add(1)
	d := p.table.Load().Route(requestOf(r), nil)
	r = endToEnd(r)
	switch {
	case d.Status != 0:
		p.refuse(w, r, d.Status, d.own(), "", d.Reason, d.Location)
	case d.cacheable(r.Method):
		p.serveCached(w, r, d)
	case d.Behavior.Policy.Disabled():
		p.pass(w, r, d, cache.Status{Forward: cache.ByPolicy})
	default:
		p.pass(w, r, d, cache.Status{Forward: cache.ByMethod})
	}
}

// cacheable says whether the cache is asked: for GET and HEAD, unless nothing may be kept under the policy.
func (d Decision) cacheable(method string) bool {
	return (method == http.MethodGet || method == http.MethodHead) && !d.Behavior.Policy.Disabled()
}

var errUnknown = errors.New("not found")
