//go:build linux

package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Report is what a run found. Its JSON form is what is kept of a run.
type Report struct {
	Began    time.Time   `json:"began"`
	Took     string      `json:"took"`
	Ours     string      `json:"ours"` // the version of the program that is measured
	Seed     uint64      `json:"seed"`
	Rounds   int         `json:"rounds"`
	Seconds  int         `json:"seconds"` // of one sample
	Machine  Machine     `json:"machine"`
	Warnings []string    `json:"warnings,omitempty"` // what disturbed the run, or keeps its figures from meaning what they seem to
	Install  []string    `json:"install,omitempty"`  // commands that bring what is missing
	Goals    string      `json:"goals,omitempty"`    // how many are met, short, not measured
	Rows     []RowResult `json:"rows"`
	Micro    []Micro     `json:"micro,omitempty"`
}

// Machine is where it was run.
type Machine struct {
	CPU        string  `json:"cpu"`
	Cores      int     `json:"cores"`
	Kernel     string  `json:"kernel"`
	Go         string  `json:"go"`
	Servers    []int   `json:"servers"` // cores
	Loads      []int   `json:"loads"`
	LoadBefore float64 `json:"loadBefore"` // load average of one minute
	LoadAfter  float64 `json:"loadAfter"`
}

// RowResult is one row's.
type RowResult struct {
	Name    string       `json:"name"`
	Work    string       `json:"work"`
	Unit    string       `json:"unit"`
	Command string       `json:"command"`
	Hits    bool         `json:"hits,omitempty"`
	Less    bool         `json:"less,omitempty"`    // less is better
	Pace    float64      `json:"pace,omitempty"`    // at which all were asked, each second
	Skipped string       `json:"skipped,omitempty"` // why it was not measured
	Absent  []string     `json:"absent,omitempty"`  // peers that are not installed
	Peers   []PeerResult `json:"peers,omitempty"`
	Goals   []GoalResult `json:"goals,omitempty"`
	// Parts are what a sample finds instead of one value. The row's own values say how long all flows of a sample took together.
	Parts []RowResult `json:"parts,omitempty"`
}

// GoalResult is what became of a goal.
type GoalResult struct {
	Goal
	Figure  Figure `json:"figure"`          // ours to the peer's, in the same round; without a peer, ours
	ByCPU   bool   `json:"byCPU,omitempty"` // Figure is of what each does in a second of CPU, since the load was the limit
	Verdict string `json:"verdict"`         // met, short, not measured; by the median
}

// PeerResult is one server's in one row.
type PeerResult struct {
	Name    string   `json:"name"`
	Ours    bool     `json:"isOurs,omitempty"`
	Version string   `json:"version,omitempty"`
	Note    string   `json:"note,omitempty"`
	Fault   string   `json:"fault,omitempty"` // why it was not measured, or not to the end
	Void    int      `json:"void,omitempty"`  // samples that count for nothing
	Over    int      `json:"over,omitempty"`  // samples that were broken off, having taken longer than they say
	Value   Figure   `json:"value"`           // each second, or what the row's unit says
	Ratio   Figure   `json:"ratio"`           // to ours, in the same round
	CPU     Figure   `json:"cpu"`             // of the server for each, µs
	Yield   Figure   `json:"yield"`           // ratio to ours, in the same round, of what is done in a second of CPU
	Mean    Figure   `json:"mean"`            // latency, µs; without samples: the tool does not say
	P50     Figure   `json:"p50"`
	P99     Figure   `json:"p99"`
	Busy    Figure   `json:"busy"` // share of the servers' cores that it used
	Samples []Sample `json:"samples,omitempty"`
}

// Sample is one time that a server was under load.
type Sample struct {
	Round       int     `json:"round"`
	Count       int64   `json:"count"`
	Value       float64 `json:"value"`
	CPU         float64 `json:"cpu"`           // of the server for each, µs
	Mean        float64 `json:"mean"`          // latency, µs; 0: unknown
	P50         float64 `json:"p50,omitempty"` // the same
	P99         float64 `json:"p99,omitempty"`
	Busy        float64 `json:"busy"`        // share of the servers' cores that it used
	Load        float64 `json:"load"`        // share of the load's cores that the load used, less what it found nothing to do in
	Others      float64 `json:"others"`      // share of the servers' cores that others used
	OthersLoads float64 `json:"othersLoads"` // share of the load's cores that neither the load nor the origin used
	Steal       float64 `json:"steal"`       // share that the machine under this one took
	Void        string  `json:"void,omitempty"`
	Over        bool    `json:"over,omitempty"` // it took longer than Value, and was broken off
	Parts       []Took  `json:"parts,omitempty"`
}

// compute sums up the samples of a row.
func (r *RowResult) compute() {
	ours := map[int]Sample{}
	for _, p := range r.Peers {
		for _, s := range p.Samples {
			if p.Ours && s.Void == "" {
				ours[s.Round] = s
			}
		}
	}
	for i := range r.Peers {
		p := &r.Peers[i]
		var rate, ratio, yield, cpu, mean, p50, p99, busy []float64
		p.Void, p.Over = 0, 0
		for _, s := range p.Samples {
			if s.Void != "" {
				p.Void++
				continue
			}
			if s.Over {
				p.Over++
			}
			rate, cpu, busy = append(rate, s.Value), append(cpu, s.CPU), append(busy, s.Busy)
			if o := ours[s.Round]; o.Value > 0 && !(o.Over && s.Over) {
				ratio = append(ratio, s.Value/o.Value)
				if s.CPU > 0 && o.CPU > 0 {
					yield = append(yield, o.CPU/s.CPU)
				}
			}
			for _, l := range []struct {
				value float64
				into  *[]float64
			}{{s.Mean, &mean}, {s.P50, &p50}, {s.P99, &p99}} {
				if l.value > 0 {
					*l.into = append(*l.into, l.value)
				}
			}
		}
		p.Yield, p.Value, p.Ratio, p.CPU, p.Mean, p.P50, p.P99, p.Busy = figureOf(yield), figureOf(rate), figureOf(ratio), figureOf(cpu), figureOf(mean), figureOf(p50), figureOf(p99), figureOf(busy)
	}
	r.decide()
}

// part is what was found of one of a row's parts.
func (r RowResult) part(i int, p Part) RowResult {
	of := RowResult{Name: p.Name, Unit: r.Unit, Less: r.Less}
	for _, g := range p.Goals {
		of.Goals = append(of.Goals, GoalResult{Goal: g, Verdict: notMeasured})
	}
	for _, peer := range r.Peers {
		one := PeerResult{Name: peer.Name, Ours: peer.Ours}
		for _, s := range peer.Samples {
			if s.Void == "" {
				one.Samples = append(one.Samples, Sample{Round: s.Round, Value: s.Parts[i].Seconds, Over: s.Parts[i].Over})
			}
		}
		of.Peers = append(of.Peers, one)
	}
	of.compute()
	return of
}

// whole is a row's parts, or itself, where it has none.
func (r RowResult) whole() []RowResult {
	if r.Parts != nil {
		return r.Parts
	}
	return []RowResult{r}
}

// seconds is how long a part of a row took somebody, in the median, with least and most.
func (p PeerResult) seconds() string {
	if p.Value.N == 0 {
		return "–"
	}
	over := func(v float64) string {
		if p.Over > 0 && v == p.Value.Max {
			return "> "
		}
		return ""
	}
	text := over(p.Value.Median) + brief(p.Value.Median)
	if p.Value.Min < p.Value.Max {
		text += " (" + brief(p.Value.Min) + "–" + over(p.Value.Max) + brief(p.Value.Max) + ")"
	}
	return text
}

// brief is a time in seconds, to a hundredth where that is some percent of it.
func brief(v float64) string {
	if v >= 10 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// verdict is what a part's goals beside a peer came to, in a word or two.
func (r RowResult) verdict(peer string) string {
	var short []string
	n := 0
	for _, g := range r.Goals {
		if g.Peer == peer && g.Verdict != notMeasured {
			if n++; g.Verdict == tooLittle {
				short = append(short, fmt.Sprintf("%.2f", g.Want))
			}
		}
	}
	switch {
	case n == 0:
		return ""
	case len(short) > 0:
		return tooLittle + " of " + strings.Join(short, ", ")
	}
	return met
}

// beside is ours to a peer's, in the same round, of one of a row's parts.
func (r RowResult) beside(peer PeerResult) Figure {
	probe := RowResult{Less: true, Peers: r.Peers, Goals: []GoalResult{{Goal: Goal{peer.Name, 1}}}}
	probe.decide()
	return probe.Goals[0].Figure
}

// Verdicts.
const (
	met         = "met"
	tooLittle   = "short"
	notMeasured = "not measured"
)

// decide says of each goal whether it is met.
func (r *RowResult) decide() {
	of := func(name string) *PeerResult {
		for i := range r.Peers {
			if p := &r.Peers[i]; p.Name == name && !p.Ours || name == "" && p.Ours {
				return p
			}
		}
		return &PeerResult{}
	}
	ours := of("")
	for i := range r.Goals {
		g := &r.Goals[i]
		g.Figure, g.ByCPU = ours.Value, false
		if g.Peer != "" {
			peer := of(g.Peer)
			// Where the load was the limit of either, rates are the load's, and what each computed for an answer is theirs.
			g.ByCPU = !r.Less && peer.Yield.N > 0 && min(ours.Busy.Median, peer.Busy.Median) < full
			var figures []float64
			for _, s := range peer.Samples {
				for _, o := range ours.Samples {
					switch {
					case s.Round != o.Round || s.Void != "" || o.Void != "" || s.Over && o.Over:
					case g.ByCPU && o.CPU > 0:
						figures = append(figures, s.CPU/o.CPU)
					case !g.ByCPU && s.Value > 0:
						figures = append(figures, o.Value/s.Value)
					}
				}
			}
			g.Figure = figureOf(figures)
		}
		switch {
		case g.Figure.N == 0:
			g.Verdict = notMeasured
		case r.Less && g.Figure.Median <= g.Want, !r.Less && g.Figure.Median >= g.Want:
			g.Verdict = met
		default:
			g.Verdict = tooLittle
		}
	}
}

// line is a goal as text, in the row's unit.
func (r RowResult) line(g GoalResult) string {
	most, beside, format := "at least", "", "%.2f"
	if r.Less {
		most = "at most"
	}
	if g.Peer == "" {
		beside, format = " "+r.Unit, "%.0f"
	} else {
		beside = " × " + g.Peer
	}
	text := most + " " + fmt.Sprintf(format, g.Want) + beside + ": " + g.Verdict
	if g.Figure.N > 0 {
		text += fmt.Sprintf(", "+format+" ("+format+"–"+format+")", g.Figure.Median, g.Figure.Low, g.Figure.High)
	}
	if g.ByCPU {
		text += " by CPU, as not both filled their core"
	}
	return text
}

// judge says what keeps the figures from meaning what they seem to.
func (r *Report) judge() {
	verdicts := map[string]int{}
	for _, row := range r.Rows {
		for _, part := range row.whole() {
			for _, g := range part.Goals {
				verdicts[g.Verdict]++
			}
		}
	}
	if len(verdicts) > 0 {
		r.Goals = fmt.Sprintf("goals: %d met, %d short, %d not measured", verdicts[met], verdicts[tooLittle], verdicts[notMeasured])
	}
	warn := func(format string, args ...any) { r.Warnings = append(r.Warnings, fmt.Sprintf(format, args...)) }
	var others, loads, steal []float64
	void, samples, alone := 0, 0, true
	for _, row := range r.Rows {
		for _, p := range row.Peers {
			alone = alone && p.Ours
			for _, s := range p.Samples {
				samples++
				if s.Void != "" {
					void++
				}
				others, loads, steal = append(others, s.Others), append(loads, s.OthersLoads), append(steal, s.Steal)
			}
		}
	}
	if slices.Equal(r.Machine.Servers, r.Machine.Loads) {
		warn("servers and load share the same cores: rates say little, CPU each says more")
	}
	for _, of := range []struct {
		what   string
		shares []float64
	}{{"others used %.0f %% of the servers' cores in the median sample, %.0f %% at most", others},
		{"others used %.0f %% of the load's cores in the median sample, %.0f %% at most", loads},
		{"the machine under this one took %.0f %% of the time in the median sample, %.0f %% at most", steal}} {
		if f := figureOf(of.shares); f.Median > calm || f.Max > 4*calm {
			warn("the machine was busy: "+of.what, 100*f.Median, 100*f.Max)
		}
	}
	if f := figureOf(make([]float64, r.Rounds)); f.Confidence < wanted {
		warn("%d rounds: intervals hold with %.0f %% confidence, not 95 (6 rounds are enough)", r.Rounds, 100*f.Confidence)
	}
	if void > 0 {
		warn("%d of %d samples are void, because something failed in them", void, samples)
	}
	if alone && samples > 0 {
		warn("nobody was measured beside ours, so there are no ratios")
	}
}

// fault is what is wrong with ours: the error of a run.
func (r *Report) fault() error {
	var faults []error
	for _, row := range r.Rows {
		for _, p := range row.Peers {
			if p.Ours && p.Fault != "" {
				faults = append(faults, fmt.Errorf("row %s: %s: %s", row.Name, p.Name, p.Fault))
			}
		}
	}
	return errors.Join(faults...)
}

// JSON writes the report for machines.
func (r *Report) JSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// sorted is the peers of a row, the best first, those without a figure last.
func (r RowResult) sorted() []PeerResult {
	peers := slices.Clone(r.Peers)
	slices.SortStableFunc(peers, func(a, b PeerResult) int {
		if r.Less && a.Value.N > 0 && b.Value.N > 0 {
			a, b = b, a
		}
		switch {
		case a.Value.Median > b.Value.Median:
			return -1
		case a.Value.Median < b.Value.Median:
			return 1
		}
		return 0
	})
	return peers
}

// Table is the report for people, as text.
func (r *Report) Table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %s, %d cores, %s; servers on %v, load on %v; %d rounds of %d s; load average %.2f before, %.2f after; %s\n",
		r.Began.Format("2006-01-02 15:04"), r.Machine.CPU, r.Machine.Cores, r.Machine.Kernel, r.Machine.Servers, r.Machine.Loads, r.Rounds, r.Seconds, r.Machine.LoadBefore, r.Machine.LoadAfter, r.Took)
	if r.Goals != "" {
		fmt.Fprintf(&b, "%s\n", r.Goals)
	}
	for _, w := range r.Warnings {
		fmt.Fprintf(&b, "! %s\n", w)
	}
	for _, row := range r.Rows {
		fmt.Fprintf(&b, "\n%s: %s%s\n", row.Name, row.Work, row.paced())
		if row.Skipped != "" {
			fmt.Fprintf(&b, "  not measured: %s\n", row.Skipped)
			continue
		}
		if row.Parts != nil {
			row.tabulate(&b)
			continue
		}
		w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		fmt.Fprintf(w, "  \t%s\tmin–max\tratio to ours\tinterval\tCPU each\tratio by CPU\tlatency mean\tp99\t\n", row.Unit)
		for _, p := range row.sorted() {
			name := strings.TrimSpace(p.Name + " " + p.Version)
			if p.Ours {
				name = "▸ " + name
			}
			if p.Value.N == 0 {
				fmt.Fprintf(w, "  %s\t–\t\t\t\t\t\t\t\t%s\n", name, firstLine(p.Fault, p.firstVoid()))
				continue
			}
			ratio, yield, interval := "1", "1", ""
			if !p.Ours {
				ratio, yield, interval = p.Ratio.ratio(), p.Yield.ratio(), p.Ratio.interval()
			}
			fmt.Fprintf(w, "  %s\t%s\t%s–%s\t%s\t%s\t%.2f µs\t%s\t%s\t%s\t%s\n", name, thousands(p.Value.Median), thousands(p.Value.Min), thousands(p.Value.Max), ratio, interval,
				p.CPU.Median, yield, latency(p.Mean), latency(p.P99), strings.Join(p.remarks(row.Less), "; "))
		}
		w.Flush()
		for _, g := range row.Goals {
			fmt.Fprintf(&b, "  goal: %s\n", row.line(g))
		}
		if len(row.Absent) > 0 {
			fmt.Fprintf(&b, "  not installed: %s\n", strings.Join(row.Absent, ", "))
		}
	}
	if len(r.Micro) > 0 {
		b.WriteString("\nGo benchmarks, median (min–max)\n")
		w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		for _, m := range r.Micro {
			fmt.Fprintf(w, "  %s\t%s\t", m.Package, m.Name)
			for _, unit := range m.units() {
				f := m.Values[unit]
				fmt.Fprintf(w, "%s %s (%s–%s)\t", short(f.Median), unit, short(f.Min), short(f.Max))
			}
			fmt.Fprintln(w)
		}
		w.Flush()
	}
	if len(r.Install) > 0 {
		b.WriteString("\nTo measure what is missing too:\n")
		for _, line := range r.Install {
			fmt.Fprintf(&b, "  %s\n", line)
		}
	}
	return regexp.MustCompile(`(?m) +$`).ReplaceAllString(b.String(), "")
}

// tabulate writes a row of parts: those as lines, who was measured as columns.
func (r RowResult) tabulate(b *strings.Builder) {
	w := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "  %s\t", r.Unit)
	for _, p := range r.Peers {
		if p.Ours {
			fmt.Fprintf(w, "▸ %s\t", p.Name)
		} else {
			fmt.Fprintf(w, "%s\tours to it\tgoals\t", p.Name)
		}
	}
	fmt.Fprintln(w)
	for _, part := range r.Parts {
		fmt.Fprintf(w, "  %s\t", part.Name)
		for _, p := range part.Peers {
			fmt.Fprintf(w, "%s\t", p.seconds())
			if !p.Ours {
				beside := part.beside(p)
				fmt.Fprintf(w, "%s %s\t%s\t", beside.ratio(), beside.interval(), part.verdict(p.Name))
			}
		}
		fmt.Fprintln(w)
	}
	w.Flush()
	for _, p := range r.Peers {
		if remarks := p.remarks(r.Less); len(remarks) > 0 {
			fmt.Fprintf(b, "  %s: %s\n", p.Name, strings.Join(remarks, "; "))
		}
	}
}

// paced says at which pace a row was measured; "": none.
func (r RowResult) paced() string {
	if r.Pace == 0 {
		return ""
	}
	return fmt.Sprintf(", which is %s each second here", thousands(r.Pace))
}

// short is a number with four digits that count, or all of those before the point.
func short(v float64) string {
	if v >= 1000 || v <= -1000 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.4g", v)
}

// remarks are what is to be known beside a server's figures.
func (p PeerResult) remarks(less bool) (remarks []string) {
	if !less && p.Busy.N > 0 && p.Busy.Median < full {
		var others []float64
		for _, s := range p.Samples {
			others = append(others, s.Others)
		}
		if f := figureOf(others); p.Busy.Median+f.Median >= full {
			remarks = append(remarks, fmt.Sprintf("used %.0f %% of its core, others %.0f %%", 100*p.Busy.Median, 100*f.Median))
		} else {
			remarks = append(remarks, fmt.Sprintf("used %.0f %% of its core: the rate is the load's limit, not its own", 100*p.Busy.Median))
		}
	}
	if p.Void > 0 {
		remarks = append(remarks, fmt.Sprintf("%d void: %s", p.Void, firstLine(p.firstVoid())))
	}
	if p.Fault != "" {
		remarks = append(remarks, firstLine(p.Fault))
	}
	return remarks
}

// firstVoid is why the first void sample is void.
func (p PeerResult) firstVoid() string {
	for _, s := range p.Samples {
		if s.Void != "" {
			return s.Void
		}
	}
	return ""
}

// ratio is the median of a ratio as text; –: there is none, because a sample of either is void in each round.
func (f Figure) ratio() string {
	if f.N == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f", f.Median)
}

// interval is the interval of a ratio as text.
func (f Figure) interval() string {
	if f.N == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f–%.2f", f.Low, f.High)
}

// units are the units of a benchmark in the order that Go prints them in, those of its own last.
func (m Micro) units() []string {
	var units []string
	for u := range m.Values {
		units = append(units, u)
	}
	rank := func(u string) int {
		if i := slices.Index([]string{"ns/op", "MB/s", "B/op", "allocs/op"}, u); i >= 0 {
			return i
		}
		return 9
	}
	slices.SortFunc(units, func(a, b string) int {
		if d := rank(a) - rank(b); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	return units
}

// firstLine is the first line of the first text that is not empty.
func firstLine(texts ...string) string {
	for _, t := range texts {
		if line, _, _ := strings.Cut(strings.TrimSpace(t), "\n"); line != "" {
			return line
		}
	}
	return ""
}

// latency is a figure in microseconds; –: unknown.
func latency(f Figure) string {
	switch {
	case f.N == 0:
		return "–"
	case f.Median >= 1000:
		return fmt.Sprintf("%.2f ms", f.Median/1000)
	}
	return fmt.Sprintf("%.0f µs", f.Median)
}

// thousands is a whole number with commas.
func thousands(v float64) string {
	s := fmt.Sprintf("%.0f", v)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// writeFile writes a file whole, or leaves what was there.
func writeFile(name string, write func(io.Writer) error) error {
	f, err := os.Create(name + ".new")
	if err != nil {
		return err
	}
	if err = errors.Join(write(f), f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}
