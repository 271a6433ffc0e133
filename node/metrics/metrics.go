// Package metrics writes what the parts of a node count as Prometheus reads it, its text format 0.0.4. It is the only
// importer of Prometheus's client library. It stores nothing but histograms: counters and gauges are asked of their
// owners at each scrape. It opens no port; node/api has the door.
//
// What strangers can make grow is bounded: a metric has at most 1,000 series, a label value at most 128 bytes, and what
// is beyond is left out and counted. A part that tells nonsense costs its own lines, never the scrape.
package metrics

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/expfmt"
)

// ContentType is the media type of what Write writes.
const ContentType = "text/plain; version=0.0.4"

// Bounds. What is beyond is counted in perigee_metrics_dropped_series_total.
const (
	MaxSeries = 1000 // of one metric; of a histogram, with each bucket, the sum and the count as one
	MaxValue  = 128  // bytes of a label's value; a longer one is cut
)

// prefix begins every name of this program.
const prefix = "perigee_"

// dropped is the name of the counter of what the bounds left out.
const dropped = "metrics_dropped_series_total"

// Set is the metrics of one process. It is safe for use by many.
type Set struct {
	registry *prometheus.Registry
	dropped  atomic.Uint64

	mu      sync.Mutex
	sources []func() map[string]uint64
	helps   map[string]string
	taken   map[string]bool // names of gauges and histograms, without prefix
}

// New makes a set without metrics.
func New() *Set {
	return &Set{registry: prometheus.NewRegistry(), helps: map[string]string{}, taken: map[string]bool{dropped: true}}
}

// Counters adds what a part counts: names without prefix, of letters, digits and underscores. Those that end in _total
// are counters, the others gauges. What two sources tell by one name is added up. The source is asked at each scrape, and
// may be asked by several at once.
func (s *Set) Counters(source func() map[string]uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sources = append(s.sources, source)
}

// Help says what a name of Counters means. Without it there is no HELP line.
func (s *Set) Help(name, help string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.helps[name] = help
}

// Runtime adds what Go's runtime and the system tell of the process: go_… and process_….
func (s *Set) Runtime() {
	s.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
}

// Gauge adds a gauge with labels. At each scrape f emits its series: a value and the values of the labels, in their
// order. What comes after the first MaxSeries, repeats a series, or has another number of labels is left out and counted;
// so f is to emit in the same order each time. Names are without prefix. It panics if the name is taken or is none.
func (s *Set) Gauge(name, help string, labels []string, f func(emit func(value float64, labels ...string))) {
	s.asked(name, help, prometheus.GaugeValue, labels, f)
}

// Counter adds a counter with labels, as Gauge does: what f emits must only grow. The name ends in _total.
func (s *Set) Counter(name, help string, labels []string, f func(emit func(value float64, labels ...string))) {
	s.asked(name, help, prometheus.CounterValue, labels, f)
}

func (s *Set) asked(name, help string, kind prometheus.ValueType, labels []string, f func(emit func(value float64, labels ...string))) {
	s.take(name)
	s.registry.MustRegister(&gauge{
		desc: prometheus.NewDesc(prefix+name, help, labels, nil), kind: kind, labels: len(labels), each: f, dropped: &s.dropped,
	})
}

// Histogram adds a histogram with labels. Buckets are upper bounds, rising; the one of infinity is there anyway. It panics
// if the name is taken or is none.
func (s *Set) Histogram(name, help string, buckets []float64, labels ...string) *Histogram {
	s.take(name, name+"_bucket", name+"_sum", name+"_count")
	h := &Histogram{
		vec:     prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: prefix + name, Help: help, Buckets: buckets}, labels),
		labels:  len(labels),
		most:    max(1, MaxSeries/(len(buckets)+3)), // and infinity, sum, count
		dropped: &s.dropped,
	}
	s.registry.MustRegister(h.vec)
	return h
}

func (s *Set) take(names ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range names {
		if s.taken[name] || !isName(name) {
			panic(fmt.Sprintf("metric %q: the name is taken, or is none", name))
		}
		s.taken[name] = true
	}
}

// Write writes all metrics in the order of their names, and their series in the order of their labels.
func (s *Set) Write(w io.Writer) error {
	families, err := s.registry.Gather()
	if err != nil { // what could be gathered is there all the same
		s.dropped.Add(1)
	}
	counters := s.count()
	names := make([]string, 0, len(counters))
	for name := range counters {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Compare(prefix+a, prefix+b) })

	out := bufio.NewWriter(w)
	for len(names) > 0 || len(families) > 0 {
		if len(families) == 0 || len(names) > 0 && prefix+names[0] < families[0].GetName() {
			s.writeCounter(out, names[0], counters[names[0]])
			names = names[1:]
			continue
		}
		if families[0].GetHelp() == "" {
			families[0].Help = nil // an empty HELP line says nothing
		}
		if _, err := expfmt.MetricFamilyToText(out, families[0]); err != nil {
			return fmt.Errorf("write metric %s: %w", families[0].GetName(), err)
		}
		families = families[1:]
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write metrics: %w", err)
	}
	return nil
}

// count asks all sources.
func (s *Set) count() map[string]uint64 {
	s.mu.Lock()
	sources := slices.Clone(s.sources)
	s.mu.Unlock()
	all := map[string]uint64{}
	for _, source := range sources {
		for name, n := range source() {
			all[name] += n
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range all {
		if s.taken[name] || !isName(name) {
			delete(all, name)
			s.dropped.Add(1)
		}
	}
	all[dropped] = s.dropped.Load()
	return all
}

// writeCounter is not the library's work, for its numbers are floats: 1e+06 instead of 1000000, and inexact above 2⁵³.
func (s *Set) writeCounter(w *bufio.Writer, name string, n uint64) {
	kind := "gauge"
	if strings.HasSuffix(name, "_total") {
		kind = "counter"
	}
	s.mu.Lock()
	help := s.helps[name]
	s.mu.Unlock()
	if help != "" {
		help = strings.NewReplacer(`\`, `\\`, "\n", `\n`).Replace(help)
		fmt.Fprintf(w, "# HELP %s%s %s\n", prefix, name, help)
	}
	fmt.Fprintf(w, "# TYPE %s%s %s\n%s%s %d\n", prefix, name, kind, prefix, name, n)
}

// isName says whether a name can stand after the prefix.
func isName(name string) bool {
	for _, c := range []byte(name) {
		if c != '_' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') {
			return false
		}
	}
	return name != ""
}

// bounded makes a value of whatever a stranger sent that can stand in a label: UTF-8, at most MaxValue bytes, no
// character cut in two. Escaping is the library's.
func bounded(value string) string {
	if len(value) > MaxValue {
		end := MaxValue
		for end > MaxValue-utf8.UTFMax && !utf8.RuneStart(value[end]) {
			end--
		}
		value = value[:end]
	}
	return strings.ToValidUTF8(value, "?") // never longer than what it replaces
}
