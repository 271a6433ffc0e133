// Package cache is a shared HTTP cache (RFC 9111) with CloudFront's TTLs: the key, what may be kept and for how
// long, how a kept response answers a request, the memory and the disk it is kept in, and the fill that brings it from the
// origin. It knows no distributions, opens no sockets and writes no responses: edge/cdn does.
//
// The rules are pure functions over headers and times; Cache acts by them. When things break: a body that ends early
// is an error to all who read it and is never kept; an origin that fails is covered up with a stale response only
// where the origin itself allowed that; a full cache refuses to keep, and goes on serving.
package cache

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"

	"github.com/perigee-net/perigee/edge/cache/disk"
)

const (
	// leastBytes is the smallest cache: with less, nothing of use could be kept.
	leastBytes = 1 << 20
	// maxObject is the largest body that is kept whole, and none is that is over an eighth of the cache. A larger one is kept in
	// slices, or streams from the origin to whom asked for it.
	maxObject = 32 << 20
	// maxFills is how many fills run at a time: one more is refused (ErrBusy). Of one origin as many run as are left for others, so one that
	// is silent takes half of them, and two a third each.
	maxFills = 2048
	// maxAskers is how many requests wait for, or read from, fills at a time: one more is refused (ErrBusy).
	maxAskers = 16384
)

// Config is what a Cache is told.
type Config struct {
	// Bytes bounds all that is kept in memory and all that is being filled, in bytes; at least 1 MiB. Besides, at most an eighth as much is held for who
	// reads slowly what is not kept any more.
	Bytes int64
	// Disk is where all that is kept is kept, too, and found by the next cache that is given the same folder; nil: nowhere. Who opened
	// it closes it, after the cache.
	Disk *disk.Store
	// Log is for the operator; nil discards.
	Log *slog.Logger
}

// Cache keeps responses in memory, and on disk if it is given one, and fills itself from origins. All methods may be called at the same time.
type Cache struct {
	limit  int64
	stored *otter.Cache[string, *entry]
	bytes  atomic.Int64 // what is stored, what is reserved for fills, and the waste of slabs: never above limit

	paged    atomic.Int64 // how many files there are in memory: never above
	maxPages int64
	slabs    slabs
	readers  slowReaders

	admission admission

	mu         sync.Mutex       // orders writes of stored, and guards:
	fills      map[string]*fill // by slot: those that may be joined
	active     map[*fill]struct{}
	generation uint64
	era        uint32 // how many fences there were

	sweeping  bool // what was purged is being looked for
	unmapping bool // somebody gives pages back

	unneeded chan *pages

	fence atomic.Uint32 // the era of the one that stands; 0: none

	shelf *shelf // nil: there is no disk

	newest atomic.Uint64 // purge, which each entry must have seen
	log    sync.RWMutex  // guards, and is taken after mu:
	purges Purges
	softs  Purges    // those that were soft, for what peers hand on: see Lends
	opened time.Time // before it, nothing is known of purges that were made

	askers  atomic.Int64
	running sync.WaitGroup // the fills
	next    chan *fill     // to a goroutine that has ended its own
	spare   atomic.Int64   // how many of these there are
	pieces  pieces
	ctx     context.Context
	cancel  context.CancelFunc

	counts struct {
		fills, collapsed, stored, refused, busy, truncated, invalidated, evicted, unpaged atomic.Uint64
		crowded, abandoned                                                                atomic.Uint64
		purges, purged, softened, fenced, badTags                                         atomic.Uint64
	}
	slicing slicing
}

// New makes an empty cache.
func New(cfg Config) *Cache {
	c := &Cache{opened: time.Now(), limit: max(cfg.Bytes, leastBytes), fills: map[string]*fill{}, active: map[*fill]struct{}{}, next: make(chan *fill), unneeded: make(chan *pages, maxUnmapping), maxPages: pagesLimit()}
	c.useSlabs()
	c.readers.cache, c.readers.most, c.readers.many, c.readers.each = c, c.limit/slowShare, make(chan struct{}, 1), map[netip.Addr]int64{}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.stored = otter.Must(&otter.Options[string, *entry]{
		// The last eighth is for fills, whatever slabs waste. The library evicts behind its writes, by its own count, so the bytes
		// are counted here as well and what does not fit is refused (reserve).
		MaximumWeight: uint64(c.mostKept()),
		Weigher:       func(_ string, e *entry) uint32 { return e.weight },
		OnAtomicDeletion: func(d otter.DeletionEvent[string, *entry]) {
			if d.WasEvicted() {
				c.counts.evicted.Add(1)
				c.shelf.evicted(d.Key, d.Value)
			}
			c.bytes.Add(c.dropped(d.Value) - int64(d.Value.weight))
		},
		Executor: func(f func()) { f() }, // who writes evicts: no goroutine without an owner
	})
	if cfg.Disk != nil {
		c.openShelf(cfg.Disk, cmp.Or(cfg.Log, slog.New(slog.DiscardHandler)))
	}
	return c
}

// Close ends the fills, and with them what is being read from them, and waits. What is asked afterwards is refused as if there were too
// many fills.
func (c *Cache) Close() {
	c.mu.Lock() // no fill starts while it waits
	c.cancel()
	c.mu.Unlock()
	c.running.Wait()
}

// Counters are the cache's counters and gauges.
func (c *Cache) Counters() map[string]uint64 {
	c.mu.Lock()
	active := len(c.active)
	c.mu.Unlock()
	c.log.RLock()
	rules := c.purges.Len()
	c.log.RUnlock()
	slow, held := c.readers.counted()
	all := map[string]uint64{
		"cache_bytes":             uint64(c.bytes.Load()),
		"cache_objects":           uint64(c.stored.EstimatedSize()),
		"cache_paged":             uint64(c.paged.Load()),
		"cache_unpaged_total":     c.counts.unpaged.Load(),
		"cache_slabs":             c.slabs.count(),
		"cache_slab_waste_bytes":  uint64(c.slabs.waste.Load()),
		"cache_slab_moved_total":  c.slabs.moved.Load(),
		"cache_slow_readers":      slow,
		"cache_slow_reader_bytes": held,
		"cache_fills":             uint64(active),
		"cache_fills_total":       c.counts.fills.Load(),
		"cache_collapsed_total":   c.counts.collapsed.Load(),
		"cache_stored_total":      c.counts.stored.Load(),
		"cache_refused_total":     c.counts.refused.Load(),
		"cache_unadmitted_total":  c.admission.passed.Load(),
		"cache_busy_total":        c.counts.busy.Load(),
		"cache_crowded_total":     c.counts.crowded.Load(),
		"cache_abandoned_total":   c.counts.abandoned.Load(),
		"cache_truncated_total":   c.counts.truncated.Load(),
		"cache_invalidated_total": c.counts.invalidated.Load(),
		"cache_evicted_total":     c.counts.evicted.Load(),
		"cache_purges_total":      c.counts.purges.Load(),
		"cache_purged_total":      c.counts.purged.Load(),
		"cache_softened_total":    c.counts.softened.Load(),
		"cache_purge_rules":       uint64(rules),
		"cache_bad_tags_total":    c.counts.badTags.Load(),
		"cache_fenced_total":      c.counts.fenced.Load(),

		"cache_slow_readers_ended_total": c.readers.ended.Load(),

		"cache_sliced_total":         c.slicing.objects.Load(),
		"cache_slices_sought_total":  c.slicing.sought.Load(),
		"cache_slices_joined_total":  c.slicing.joined.Load(),
		"cache_slice_streams":        uint64(c.slicing.streams.Load()),
		"cache_slices_cut_total":     c.slicing.cut.Load(),
		"cache_slices_ranged_total":  c.slicing.ranged.Load(),
		"cache_slices_changed_total": c.slicing.changed.Load(),
		"cache_slices_refused_total": c.slicing.refused.Load(),
	}
	maps.Copy(all, c.shelf.counters())
	return all
}

// mostKept is how much of what the cache may hold is for what is kept. The rest is for fills, the slab that is spared and the waste of slabs.
func (c *Cache) mostKept() int64 { return c.limit - c.limit/8 - c.slabs.size - c.slabs.most }

func (c *Cache) objectLimit() int64 { return min(maxObject, c.limit/8) }
