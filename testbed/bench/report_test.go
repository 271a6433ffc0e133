//go:build linux

package bench

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// made is a report with what a report can have: a busy machine, a void sample, a peer that failed, one that is absent, hostile names.
func made() *Report {
	r := &Report{Began: time.Date(2026, 11, 24, 4, 0, 0, 0, time.UTC), Took: "1m0s", Ours: "devel 0123456789ab of 2026-11-24", Rounds: 5, Seconds: 5, Seed: 7,
		Machine: Machine{CPU: "AMD EPYC", Cores: 2, Kernel: "Linux 6.18", Go: "go1.26.8", Servers: []int{0}, Loads: []int{1}, LoadBefore: 3.5, LoadAfter: 3.7},
		Install: []string{"apt-get install -y --no-install-recommends knot nginx-light", "make peers"}, Micro: parseMicro(goBench)}
	series := func(rates ...float64) (samples []Sample) {
		for i, rate := range rates {
			samples = append(samples, Sample{Round: i, Count: int64(5 * rate), Value: rate, CPU: 960000 / rate, Mean: 1300, P50: 1000, P99: 4000, Busy: 0.96, Others: 0.12, OthersLoads: 0.01})
		}
		return samples
	}
	fast := series(60000, 63000, 62000, 61000, 59000)
	fast[2].Void, fast[2].Value = "Socket errors: connect 0, read 3, write 0, timeout 0", 900000
	slow := series(30000, 30000, 30000, 30000, 30000)
	for i := range slow {
		slow[i].Busy, slow[i].CPU = 0.5, 16
	}
	r.Rows = []RowResult{
		{Name: "hit-1k", Work: "a cached object of 1 KiB", Unit: "requests/s", Command: "wrk -t1 -c64 http://{host}:{port}/1024", Hits: true, Absent: []string{"varnish"}, Peers: []PeerResult{
			{Name: "perigee", Ours: true, Samples: series(30000, 31500, 31000, 30500, 29500)},
			{Name: "nginx", Version: "1.22.1", Note: "keeps objects in files", Samples: fast},
			{Name: "caddy", Version: "2.11.9", Samples: slow},
			{Name: "bad</script><script>alert(1)</script>", Fault: "it has ended: exit status 1\nno \u202Esuch file & more"},
		}, Goals: []GoalResult{{Goal: Goal{"nginx", 0.5}}, {Goal: Goal{"caddy", 3}}, {Goal: Goal{"varnish", 2.5}}}},
		{Name: "memory-1k", Work: "what an object of 1 KiB takes", Unit: "bytes of memory each", Command: "own fill", Less: true, Peers: []PeerResult{
			{Name: "perigee", Ours: true, Samples: []Sample{{Count: 1000000, Value: 2800, CPU: 70, Busy: 0.7}}},
			{Name: "varnish", Version: "7.1.1", Samples: []Sample{{Count: 1000000, Value: 2000, CPU: 90, Busy: 0.6}}},
			{Name: "nginx", Version: "1.22.1", Samples: []Sample{{Count: 1000000, Value: 144, CPU: 90, Busy: 0.6}}},
		}, Goals: []GoalResult{{Goal: Goal{"varnish", 1}}, {Goal: Goal{"", 12 << 10}}}},
		{Name: "p99-1k", Work: "the same at 70 % of what ours does", Unit: "µs of p99", Command: "own paced", Less: true, Pace: 42000.4, Peers: []PeerResult{{Name: "perigee", Ours: true, Fault: "it has ended"}}},
		{Name: "ocean-80-bad", Work: "flows over an ocean", Unit: "seconds", Command: "own cross", Less: true, Peers: []PeerResult{
			{Name: "perigee", Ours: true, Samples: []Sample{{Round: 0, Parts: []Took{{0.1, false}, {3.1, false}}}, {Round: 1, Parts: []Took{{0.12, false}, {15, true}}}}},
			{Name: "go-direct-cubic", Note: "no <node>", Samples: []Sample{{Round: 0, Parts: []Took{{0.4, false}, {15, true}}}, {Round: 1, Parts: []Took{{0.5, false}, {15, true}}}, {Round: 2, Void: "it broke"}}},
			{Name: "go-direct-bbr", Fault: "it has ended"},
		}},
		{Name: "hit-1k-h2", Work: "the same by HTTP/2", Unit: "requests/s", Command: "h2load", Skipped: "h2load is not installed, which makes the load"},
	}
	for i := range r.Rows {
		r.Rows[i].compute()
	}
	for i, p := range []Part{{"100 KB", []Goal{{"go-direct-cubic", 0.4}}}, {"50 MB", []Goal{{"go-direct-cubic", 0.05}, {"go-direct-bbr", 1.05}}}} {
		r.Rows[3].Parts = append(r.Rows[3].Parts, r.Rows[3].part(i, p))
	}
	r.judge()
	return r
}

func TestRatiosAreOfOneRound(t *testing.T) {
	r := RowResult{Peers: []PeerResult{
		// The machine grew twice as fast in the second round: no ratio shows it.
		{Name: "perigee", Ours: true, Samples: []Sample{{Round: 0, Value: 100, CPU: 8}, {Round: 1, Value: 200, CPU: 4}, {Round: 2, Value: 100, Void: "an error"}}},
		{Name: "other", Samples: []Sample{{Round: 0, Value: 150, CPU: 4}, {Round: 1, Value: 300, CPU: 2}, {Round: 2, Value: 900, CPU: 1}}},
	}}
	r.compute()
	other := r.Peers[1]
	if want := (Figure{N: 2, Median: 1.5, Min: 1.5, Max: 1.5, Low: 1.5, High: 1.5, Confidence: 0.5}); other.Ratio != want {
		t.Errorf("ratio: got %+v, want %+v", other.Ratio, want)
	}
	if other.Yield.Median != 2 || other.Yield.N != 2 {
		t.Errorf("ratio by CPU: got %+v", other.Yield)
	}
	if r.Peers[0].Void != 1 || r.Peers[0].Value.N != 2 {
		t.Errorf("ours: got %+v", r.Peers[0])
	}
}

func TestTheTableSaysItAll(t *testing.T) {
	got := made().Table()
	file := filepath.Join("testdata", "table.golden")
	want, err := os.ReadFile(file)
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("UPDATE=1 writes it anew: %s", d)
	}
}

func TestGoalsAreMetOrShort(t *testing.T) {
	sample := func(round int, value, cpu, busy float64) Sample {
		return Sample{Round: round, Value: value, CPU: cpu, Busy: busy}
	}
	three := func(value, cpu, busy float64) []Sample {
		return []Sample{sample(0, value, cpu, busy), sample(1, 2*value, cpu, busy), sample(2, value, cpu, busy)}
	}
	for _, test := range []struct {
		what        string
		less        bool
		ours, other []Sample
		goal        Goal
		want        string
		figure      float64
		byCPU       bool
	}{
		{"twice as fast", false, three(200, 5, 1), three(100, 10, 1), Goal{"other", 2}, met, 2, false},
		{"not fast enough", false, three(200, 5, 1), three(100, 10, 1), Goal{"other", 2.01}, tooLittle, 2, false},
		{"the load was the limit of ours: by what an answer costs", false, three(100, 5, 0.5), three(100, 15, 1), Goal{"other", 2.5}, met, 3, true},
		{"the load was the limit of the other", false, three(100, 5, 1), three(100, 6, 0.5), Goal{"other", 1.5}, tooLittle, 1.2, true},
		{"half as long", true, three(50, 5, 0.1), three(100, 1, 0.1), Goal{"other", 1}, met, 0.5, false},
		{"longer", true, three(101, 5, 0.1), three(100, 1, 0.1), Goal{"other", 1}, tooLittle, 1.01, false},
		{"small enough by itself", true, three(100, 5, 0.1), nil, Goal{"", 100}, met, 100, false},
		{"too large by itself", true, three(100, 5, 0.1), nil, Goal{"", 99}, tooLittle, 100, false},
		{"the other is not there", false, three(100, 5, 1), nil, Goal{"other", 1}, notMeasured, 0, false},
		{"ours is not there", false, nil, three(100, 5, 1), Goal{"other", 1}, notMeasured, 0, false},
		{"nobody is", true, nil, nil, Goal{"", 1}, notMeasured, 0, false},
	} {
		r := RowResult{Less: test.less, Peers: []PeerResult{{Name: "perigee", Ours: true, Samples: test.ours}, {Name: "other", Samples: test.other}}, Goals: []GoalResult{{Goal: test.goal}}}
		r.compute()
		if g := r.Goals[0]; g.Verdict != test.want || math.Abs(g.Figure.Median-test.figure) > 1e-9 || g.ByCPU != test.byCPU {
			t.Errorf("%s: got %+v, want %s, %v", test.what, g, test.want, test.figure)
		}
	}
}

func TestABusyMachineAndFewRoundsAreSaid(t *testing.T) {
	said := strings.Join(made().Warnings, "\n")
	for _, want := range []string{"others used 12 % of the servers' cores", "94 % confidence", "2 of 23 samples are void"} {
		if !strings.Contains(said, want) {
			t.Errorf("no word of %q in\n%s", want, said)
		}
	}
	if strings.Contains(said, "load's cores") || strings.Contains(said, "took") {
		t.Errorf("what was calm is said to be busy:\n%s", said)
	}
	alone := &Report{Rounds: 7, Machine: Machine{Servers: []int{0}, Loads: []int{0}}, Rows: []RowResult{{Peers: []PeerResult{{Ours: true, Samples: []Sample{{Value: 1}}}}}}}
	alone.judge()
	if said := strings.Join(alone.Warnings, "\n"); !strings.Contains(said, "share the same cores") || !strings.Contains(said, "nobody was measured beside ours") || len(alone.Warnings) != 2 {
		t.Errorf("got\n%s", said)
	}
}

func TestThePageIsWholeAndHarmless(t *testing.T) {
	r := made()
	var page bytes.Buffer
	if err := r.HTML(&page); err != nil {
		t.Fatal(err)
	}
	text := page.String()
	if n := strings.Count(text, "<script"); n != 1 {
		t.Errorf("%d scripts, want one: the data", n)
	}
	if found := regexp.MustCompile(`(src|href|url)\s*[=(]`).FindString(text); found != "" {
		t.Errorf("the page asks for something else: %s", found)
	}
	for _, want := range []string{"nginx", "1.22.1", "2.00×", "What these figures cannot say", "make peers", "h2load is not installed", "Not installed: varnish", "used 50 % of its core", "HitThroughASocket/64KB", "goals: 3 met, 3 short, 2 not measured", `class="missed"`, "42,000 each second here"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q on the page", want)
		}
	}
	_, data, _ := strings.Cut(text, `id="data">`)
	data, _, _ = strings.Cut(data, "</script>")
	var back Report
	if err := json.Unmarshal([]byte(data), &back); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(r, &back); d != "" {
		t.Errorf("the data on the page is not the report: %s", d)
	}
	for _, svg := range regexp.MustCompile(`(?s)<svg.*?</svg>`).FindAllString(text, -1) {
		d := xml.NewDecoder(strings.NewReader(svg))
		for {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%v in %s", err, svg)
			}
		}
	}
}

func TestTheFileIsReplacedWhole(t *testing.T) {
	file := filepath.Join(t.TempDir(), "bench.json")
	if err := writeFile(file, made().JSON); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(file)
	if err != nil || !json.Valid(before) {
		t.Fatal(err)
	}
	if err := writeFile(file, func(w io.Writer) error { w.Write([]byte("half")); return errors.New("full") }); err == nil {
		t.Error("no error")
	}
	after, _ := os.ReadFile(file)
	if left, _ := filepath.Glob(file + "*"); !bytes.Equal(before, after) || len(left) != 1 {
		t.Errorf("%s, %v", after, left)
	}
}
