package metrics

import (
	"strings"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// gauge, or a counter, asks for its series at each scrape.
type gauge struct {
	desc    *prometheus.Desc
	kind    prometheus.ValueType
	labels  int
	each    func(emit func(value float64, labels ...string))
	dropped *atomic.Uint64
}

func (g *gauge) Describe(to chan<- *prometheus.Desc) { to <- g.desc }

func (g *gauge) Collect(to chan<- prometheus.Metric) {
	seen := map[string]bool{}
	g.each(func(value float64, labels ...string) {
		values, key := settle(labels)
		if len(labels) != g.labels || seen[key] || len(seen) >= MaxSeries {
			g.dropped.Add(1)
			return
		}
		seen[key] = true
		to <- prometheus.MustNewConstMetric(g.desc, g.kind, value, values...)
	})
}

// settle bounds the values of labels, and makes one text of them.
func settle(labels []string) (values []string, key string) {
	values = make([]string, len(labels))
	for i, l := range labels {
		values[i] = bounded(l)
	}
	return values, strings.Join(values, "\xff") // which no UTF-8 contains
}

// Histogram counts observations by size. A series that has come stays until the process ends.
type Histogram struct {
	vec     *prometheus.HistogramVec
	labels  int
	most    int
	dropped *atomic.Uint64

	series sync.Map // labels as they were given → prometheus.Observer; at most `most` of them
	mu     sync.Mutex
	known  int
}

// Observe counts a value under the values of the labels, in their order. An observation of a series beyond the bound, or
// with another number of labels, is dropped and counted.
func (h *Histogram) Observe(value float64, labels ...string) {
	if len(labels) != h.labels {
		h.dropped.Add(1)
		return
	}
	key := ""
	switch len(labels) {
	case 0:
	case 1:
		key = bounded(labels[0])
	default:
		_, key = settle(labels)
	}
	o, ok := h.series.Load(key)
	if !ok {
		if o, ok = h.begin(key, labels); !ok {
			h.dropped.Add(1)
			return
		}
	}
	o.(prometheus.Observer).Observe(value)
}

// begin makes a series, if there is room.
func (h *Histogram) begin(key string, labels []string) (any, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if o, ok := h.series.Load(key); ok {
		return o, true
	}
	if h.known >= h.most {
		return nil, false
	}
	h.known++
	values, _ := settle(labels)
	o := h.vec.WithLabelValues(values...)
	h.series.Store(key, o)
	return o, true
}
