package cdn

import (
	"hash/maphash"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// A key is hot that is asked for at this node more than hotRequests times in a window of hotWindow. What another node owns is kept
// here, too, if it is hot: then it costs no hop.
const (
	hotRequests = 20
	hotWindow   = 10 * time.Second
)

// heat counts requests by key: a count-min sketch for the window that runs, and the one before. It never counts too few, and
// too many only where very many keys are asked for at once. So what is hot is known at once, in bounded memory.
type heat struct {
	seed maphash.Seed
	now  atomic.Pointer[window]
	turn sync.Mutex
}

// Rows of counters, of which each key has one a row: 256 KiB a window. With 100,000 requests for as many keys in one window, a
// counter has 6 in the mean.
const (
	heatRows    = 4
	heatColumns = 1 << 14
)

type counters [heatRows][heatColumns]atomic.Uint32

type window struct {
	began       time.Time
	now, before *counters // before may be nil
}

func newHeat() *heat { return &heat{seed: maphash.MakeSeed()} }

// count counts a request for a key, and says whether that has made it hot (or not, where it was another key's request that did).
func (h *heat) count(key string, now time.Time) (turned bool) {
	w, sum := h.window(now), maphash.String(h.seed, key)
	was := w.before != nil && w.before.least(sum) > hotRequests
	return w.now.add(sum) == hotRequests+1 && !was
}

// hot says whether a key is.
func (h *heat) hot(key string, now time.Time) bool {
	return h.window(now).hot(maphash.String(h.seed, key))
}

// window is the one that runs.
func (h *heat) window(now time.Time) *window {
	w := h.now.Load()
	if w != nil && now.Sub(w.began) < hotWindow {
		return w
	}
	h.turn.Lock()
	defer h.turn.Unlock()
	if w = h.now.Load(); w != nil && now.Sub(w.began) < hotWindow {
		return w
	}
	next := &window{began: now, now: new(counters)}
	if w != nil && now.Sub(w.began) < 2*hotWindow {
		next.before = w.now
	}
	h.now.Store(next)
	return next
}

func (w *window) hot(sum uint64) bool {
	return w.now.least(sum) > hotRequests || w.before != nil && w.before.least(sum) > hotRequests
}

func (c *counters) add(sum uint64) (least uint32) {
	least = math.MaxUint32
	for i := range c {
		least = min(least, c[i][column(sum, i)].Add(1))
	}
	return least
}

func (c *counters) least(sum uint64) uint32 {
	least := c[0][column(sum, 0)].Load()
	for i := 1; i < heatRows; i++ {
		least = min(least, c[i][column(sum, i)].Load())
	}
	return least
}

// column is a key's counter in a row: four independent parts of its sum.
func column(sum uint64, row int) uint64 { return sum >> (16 * row) % heatColumns }
