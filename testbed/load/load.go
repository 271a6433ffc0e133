// Package load makes load that can be judged: flows that hold for long and tell what became of each message, and packets
// that are numbered. It is for what wrk, h2load and dnsperf do not say: which flows broke and how, for how long nothing
// came back, what was lost, and how long answers took.
//
// It is no benchmark by itself: it dials by a function it is given, from wherever that dials, and judges nothing. It
// never asks twice within a message, and hides nothing: a flow that breaks is counted and followed by a new one.
//
// What the generator itself is late (a full machine, a window that is full) is not added to latencies but told as Behind.
package load

import (
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
	"net"
	"sync"
	"syscall"
	"time"
)

// Bounds of one run.
const (
	MaxFlows = 50_000
	MaxBytes = 1 << 20   // of a message; of a packet 65,000
	MaxRate  = 1_000_000 // messages a second of one flow
	MaxFor   = 24 * time.Hour
)

// Histogram counts lengths of time. Each is known to 1 part in 32; beyond 100 s all are one. The zero Histogram is empty.
type Histogram struct {
	counts   [buckets]uint64
	n        uint64
	sum      time.Duration
	min, max time.Duration
}

// Lengths up to 2 × fine µs have buckets of 1 µs; each doubling after that has fine buckets.
const (
	fine    = 32
	buckets = 23 * fine
	longest = 100 * time.Second
)

func bucketOf(d time.Duration) int {
	us := uint64(min(max(d, 0), longest) / time.Microsecond)
	if us < 2*fine {
		return int(us)
	}
	shift := bits.Len64(us) - 6 // us>>shift is fine…2×fine-1
	return shift*fine + int(us>>shift)
}

// upper is the greatest length that a bucket counts, to the µs.
func upper(bucket int) time.Duration {
	if bucket < 2*fine {
		return time.Duration(bucket) * time.Microsecond
	}
	shift := bucket/fine - 1
	return time.Duration(uint64(bucket-shift*fine+1)<<shift-1) * time.Microsecond
}

// Add counts one length.
func (h *Histogram) Add(d time.Duration) {
	d = max(d, 0)
	if h.n == 0 || d < h.min {
		h.min = d
	}
	h.max = max(h.max, d)
	h.counts[bucketOf(d)]++
	h.n++
	h.sum += d
}

// Merge counts all that another has counted.
func (h *Histogram) Merge(o *Histogram) {
	if o.n == 0 {
		return
	}
	if h.n == 0 || o.min < h.min {
		h.min = o.min
	}
	h.max = max(h.max, o.max)
	for i, c := range o.counts {
		h.counts[i] += c
	}
	h.n += o.n
	h.sum += o.sum
}

// Count is how many were counted.
func (h *Histogram) Count() uint64 { return h.n }

// Min and Max are exact; of none 0.
func (h *Histogram) Min() time.Duration { return h.min }

// Max is the longest.
func (h *Histogram) Max() time.Duration { return h.max }

// Mean is exact; of none 0.
func (h *Histogram) Mean() time.Duration {
	if h.n == 0 {
		return 0
	}
	return h.sum / time.Duration(h.n)
}

// Quantile is the least length that a share q of all, 0…1, do not exceed, at most 1/32 too long; of none 0.
func (h *Histogram) Quantile(q float64) time.Duration {
	if h.n == 0 {
		return 0
	}
	want := uint64(math.Ceil(min(max(q, 0), 1) * float64(h.n)))
	seen := uint64(0)
	for i, c := range h.counts {
		if seen += c; seen >= max(want, 1) {
			if i == bucketOf(longest) {
				return h.max
			}
			return min(max(upper(i), h.min), h.max)
		}
	}
	return h.max
}

// String is the histogram in few words.
func (h *Histogram) String() string {
	if h.n == 0 {
		return "none"
	}
	return fmt.Sprintf("n=%d p50=%v p90=%v p99=%v max=%v", h.n, h.Quantile(.5), h.Quantile(.9), h.Quantile(.99), h.max)
}

// MarshalJSON writes what people read of it, in milliseconds.
func (h *Histogram) MarshalJSON() ([]byte, error) {
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	return fmt.Appendf(nil, `{"count":%d,"min":%g,"mean":%g,"p50":%g,"p90":%g,"p99":%g,"p999":%g,"max":%g}`,
		h.n, ms(h.min), ms(h.Mean()), ms(h.Quantile(.5)), ms(h.Quantile(.9)), ms(h.Quantile(.99)), ms(h.Quantile(.999)), ms(h.max)), nil
}

// shards is on how many tallies the flows of a run count, so that they do not wait for one lock.
const shards = 16

// sharded is a tally in parts.
type sharded[T any] [shards]struct {
	sync.Mutex
	tally T
}

// on changes the part of a flow's tally.
func (s *sharded[T]) on(flow int, change func(*T)) {
	part := &s[flow%shards]
	part.Lock()
	defer part.Unlock()
	change(&part.tally)
}

// maxTexts bounds the texts that are counted one by one; beyond them all are "other".
const maxTexts = 100

// count counts a text, which may be a stranger's.
func count(m map[string]int, text string, n int) map[string]int {
	if m == nil {
		m = map[string]int{}
	}
	if _, known := m[text]; !known && len(m) >= maxTexts {
		text = "other"
	}
	m[text] += n
	return m
}

// plain is an error in few words.
func plain(err error) string {
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "reset"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "closed"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	}
	return fmt.Sprintf("%.80s", err)
}

// fill writes what message number n of a flow is made of, so that one that is not its own, or is torn, is noticed.
func fill(b []byte, flow, n int) {
	x := uint64(flow)<<32 ^ uint64(n)*0x9e3779b97f4a7c15
	for i := range b {
		if i%8 == 0 { // xorshift64*
			x |= 1
			x ^= x >> 12
			x ^= x << 25
			x ^= x >> 27
		}
		b[i] = byte(x * 0x2545f4914f6cdd1d >> (8 * (i % 8)))
	}
}

// pace is when things are due: one each interval, the first after a part of it, so that flows do not beat in time.
type pace struct {
	start    time.Time
	interval time.Duration // 0: always
}

func newPace(start time.Time, rate float64, flow, flows int) pace {
	if rate == 0 {
		return pace{start: start}
	}
	interval := time.Duration(float64(time.Second) / rate)
	return pace{start.Add(time.Duration(float64(interval) * float64(flow) / float64(flows))), interval}
}

// due is when thing n is due.
func (p pace) due(n int) time.Time { return p.start.Add(time.Duration(n) * p.interval) }
