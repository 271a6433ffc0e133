package metrics

import (
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// scrape writes the set and reads it with Prometheus's own parser: values by series.
func scrape(t *testing.T, s *Set) (text string, series map[string]float64) {
	t.Helper()
	var out strings.Builder
	if err := s.Write(&out); err != nil {
		t.Fatal(err)
	}
	text = out.String()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	series = map[string]float64{}
	for name, family := range families {
		for _, m := range family.Metric {
			key := name
			for _, l := range m.Label {
				key += fmt.Sprintf(" %s=%q", l.GetName(), l.GetValue())
			}
			switch {
			case m.Gauge != nil:
				series[key] = m.Gauge.GetValue()
			case m.Counter != nil:
				series[key] = m.Counter.GetValue()
			case m.Histogram != nil:
				series[key] = float64(m.Histogram.GetSampleCount())
			}
		}
	}
	return text, series
}

func TestCountersAreWrittenAsTheyAlwaysWere(t *testing.T) {
	s := New()
	s.Counters(func() map[string]uint64 { return map[string]uint64{"dns_queries_total": 1000000, "cache_bytes": 9} })
	s.Counters(func() map[string]uint64 {
		return map[string]uint64{"cache_bytes": 1<<53 + 1 - 9, "dns_answers_total": 0}
	})
	text, _ := scrape(t, s)
	want := `# TYPE perigee_cache_bytes gauge
perigee_cache_bytes 9007199254740993
# TYPE perigee_dns_answers_total counter
perigee_dns_answers_total 0
# TYPE perigee_dns_queries_total counter
perigee_dns_queries_total 1000000
# TYPE perigee_metrics_dropped_series_total counter
perigee_metrics_dropped_series_total 0
`
	if diff := cmp.Diff(want, text); diff != "" {
		t.Error(diff)
	}
}

func TestAllKindsStandInOneOrderAndAreReadByPrometheus(t *testing.T) {
	s := New()
	s.Counters(func() map[string]uint64 { return map[string]uint64{"b_total": 2, "z": 3} })
	s.Help("b_total", "what b\ncounts with \\")
	s.Gauge("c_seconds", "round trips", []string{"node"}, func(emit func(float64, ...string)) {
		emit(0.25, "fra1")
		emit(0.125, "icn1")
	})
	s.Gauge("a", "", nil, func(emit func(float64, ...string)) { emit(math.Inf(1)) })
	h := s.Histogram("lane_seconds", "of an order", []float64{0.1, 1}, "kind")
	h.Observe(0.05, "purge")
	h.Observe(2, "purge")
	h.Observe(0.5, "drain")
	text, series := scrape(t, s)
	want := map[string]float64{
		"perigee_a": math.Inf(1), "perigee_b_total": 2, "perigee_z": 3, "perigee_metrics_dropped_series_total": 0,
		`perigee_c_seconds node="fra1"`: 0.25, `perigee_c_seconds node="icn1"`: 0.125,
		`perigee_lane_seconds kind="purge"`: 2, `perigee_lane_seconds kind="drain"`: 1,
	}
	if diff := cmp.Diff(want, series); diff != "" {
		t.Error(diff)
	}
	var order []string
	for line := range strings.Lines(text) {
		if name, ok := strings.CutPrefix(line, "# TYPE "); ok {
			order = append(order, name)
		}
	}
	if !slices.IsSorted(order) || len(order) != 6 {
		t.Errorf("not in order: %v", order)
	}
	for _, line := range []string{
		`# HELP perigee_b_total what b\ncounts with \\` + "\n", "# HELP perigee_c_seconds round trips\n",
		`perigee_lane_seconds_bucket{kind="purge",le="+Inf"} 2` + "\n",
	} {
		if !strings.Contains(text, line) {
			t.Errorf("%q is not in\n%s", line, text)
		}
	}
	if strings.Contains(text, "HELP perigee_a ") || strings.Contains(text, "HELP perigee_z ") {
		t.Errorf("a HELP line without help in\n%s", text)
	}
	if again, _ := scrape(t, s); again != text {
		t.Errorf("the second scrape differs:\n%s", again)
	}
}

func TestAMetricNeverHasMoreThanItsSeries(t *testing.T) {
	s := New()
	s.Gauge("many", "", []string{"client"}, func(emit func(float64, ...string)) {
		for i := range MaxSeries + 50 {
			emit(1, fmt.Sprintf("client %04d", i))
		}
	})
	h := s.Histogram("sizes", "", []float64{1, 2, 3, 4, 5, 6, 7}, "path", "method") // 10 series for each
	for i := range 101 {
		h.Observe(1, fmt.Sprint("/", i), "GET")
		h.Observe(1, fmt.Sprint("/", i), "GET")
	}
	text, series := scrape(t, s)
	if n := strings.Count(text, "perigee_many{"); n != MaxSeries {
		t.Errorf("the gauge has %d series", n)
	}
	if n := strings.Count(text, "\nperigee_sizes_"); n != MaxSeries {
		t.Errorf("the histogram has %d series", n)
	}
	if n := series["perigee_metrics_dropped_series_total"]; n != 50+2 {
		t.Errorf("%v were counted as dropped", n)
	}
	if !strings.Contains(text, `perigee_many{client="client 0999"}`) || strings.Contains(text, `client 1000`) {
		t.Error("not the first that were emitted were kept")
	}
}

func TestWhatStrangersSayStaysInItsLabel(t *testing.T) {
	for _, c := range []struct{ said, label string }{
		{`a"} 1` + "\nperigee_evil 1\n# TYPE x", `a"} 1` + "\nperigee_evil 1\n# TYPE x"},
		{`back\slash`, `back\slash`},
		{"bad \xff\xfe utf8", "bad ? utf8"},
		{"", ""},
		{strings.Repeat("x", 500), strings.Repeat("x", MaxValue)},
		{strings.Repeat("x", MaxValue-1) + "é", strings.Repeat("x", MaxValue-1)},
		{strings.Repeat("é", 100), strings.Repeat("é", MaxValue/2)},
		{strings.Repeat("\x80", 500), "?"},
	} {
		s := New()
		s.Gauge("said", "", []string{"what"}, func(emit func(float64, ...string)) { emit(1, c.said) })
		h := s.Histogram("heard", "", []float64{1}, "what", "more")
		h.Observe(1, c.said, c.said)
		text, series := scrape(t, s)
		want := map[string]float64{
			"perigee_metrics_dropped_series_total":                         0,
			fmt.Sprintf("perigee_said what=%q", c.label):                   1,
			fmt.Sprintf("perigee_heard more=%q what=%q", c.label, c.label): 1,
		}
		if diff := cmp.Diff(want, series); diff != "" {
			t.Errorf("%q: %s\n%s", c.said, diff, text)
		}
	}
}

func TestNonsenseOfOnePartCostsItsOwnLinesOnly(t *testing.T) {
	s := New()
	s.Counters(func() map[string]uint64 {
		return map[string]uint64{"good_total": 1, "bad name": 1, "": 1, "said": 1, "heard_count": 1, "metrics_dropped_series_total": 99}
	})
	s.Gauge("said", "", []string{"what"}, func(emit func(float64, ...string)) {
		emit(1, "once")
		emit(2, "once")
		emit(3, "too", "many")
		emit(4)
	})
	h := s.Histogram("heard", "", []float64{1})
	h.Observe(1, "too many")
	h.Observe(1)
	_, series := scrape(t, s)
	want := map[string]float64{
		"perigee_good_total": 1, `perigee_said what="once"`: 1, "perigee_heard": 1,
		"perigee_metrics_dropped_series_total": 5 + 3 + 1,
	}
	if diff := cmp.Diff(want, series); diff != "" {
		t.Error(diff)
	}
}

func TestANameIsGivenOnce(t *testing.T) {
	nothing := func(func(float64, ...string)) {}
	for _, c := range []struct {
		name string
		take func(*Set)
	}{
		{"a gauge's", func(s *Set) { s.Gauge("gauge", "", nil, nothing) }},
		{"a histogram's", func(s *Set) { s.Histogram("histogram", "", nil) }},
		{"a histogram's count's", func(s *Set) { s.Gauge("histogram_count", "", nil, nothing) }},
		{"the set's own", func(s *Set) { s.Gauge("metrics_dropped_series_total", "", nil, nothing) }},
		{"none", func(s *Set) { s.Gauge("a name", "", nil, nothing) }},
	} {
		s := New()
		s.Gauge("gauge", "", nil, nothing)
		s.Histogram("histogram", "", nil)
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: taken twice", c.name)
				}
			}()
			c.take(s)
		}()
	}
}

func TestTheRuntimeIsToldIfAsked(t *testing.T) {
	s := New()
	s.Runtime()
	if _, series := scrape(t, s); series["go_goroutines"] < 1 {
		t.Errorf("got %v", series)
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestAScrapeThatBreaksOffIsAnError(t *testing.T) {
	if err := New().Write(broken{}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("got %v", err)
	}
}

func TestManyMayObserveAndScrapeAtOnce(t *testing.T) {
	s := New()
	h := s.Histogram("sizes", "", []float64{1}, "path")
	s.Gauge("g", "", []string{"l"}, func(emit func(float64, ...string)) { emit(1, "x") })
	s.Counters(func() map[string]uint64 { return map[string]uint64{"n_total": 1} })
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for i := range 500 {
				h.Observe(1, fmt.Sprint(i))
			}
		})
		all.Go(func() {
			for range 5 {
				if err := s.Write(io.Discard); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if text, _ := scrape(t, s); strings.Count(text, "\nperigee_sizes_") != MaxSeries {
		t.Errorf("not %d series in\n%s", MaxSeries, text)
	}
}

func FuzzALabelIsValidAndBounded(f *testing.F) {
	f.Add("a\"b\\c\n")
	f.Add(strings.Repeat("é", 90))
	f.Add("\xff\xc3")
	f.Fuzz(func(t *testing.T, said string) {
		if b := bounded(said); len(b) > MaxValue || !utf8.ValidString(b) {
			t.Errorf("%q became %q", said, b)
		}
		s := New()
		s.Gauge("said", "", []string{"what"}, func(emit func(float64, ...string)) { emit(1, said) })
		if _, series := scrape(t, s); len(series) != 2 {
			t.Errorf("%q became %v", said, series)
		}
	})
}

func BenchmarkObserve(b *testing.B) {
	h := New().Histogram("sizes", "", []float64{0.001, 0.01, 0.1, 1}, "kind")
	b.ReportAllocs()
	for b.Loop() {
		h.Observe(0.02, "purge")
	}
}
