package page

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// This file reads a run: what was changed and what came of it. It draws nothing.

const (
	maxPOPs   = 24 // that are told apart; the others are drawn as one, "others"
	recent    = 4  // good answers that say who serves a client now
	mixed     = 10 // and in which another that also served is no move, but a mixture
	enoughFor = 10 // samples beyond a percentile, below which it is not told: p90 needs 10×10, p99 100
)

// bounded is the run cut to its bounds and put in order of time, and what was left out, in words.
func (r Run) bounded() (Run, []string) {
	var left []string
	cut := func(what string, have, most int) int {
		if have > most {
			left = append(left, fmt.Sprintf("%d of %d %s", have-most, have, what))
		}
		return min(have, most)
	}
	r.Sites = slices.Clone(r.Sites[:cut("sites", len(r.Sites), maxSites)])
	r.Links = slices.Clone(r.Links[:cut("links", len(r.Links), maxSites*(maxSites-1)/2)])
	r.Clients = slices.Clone(r.Clients[:cut("clients", len(r.Clients), maxClients)])
	r.Figures = slices.Clone(r.Figures[:cut("figures", len(r.Figures), maxFigures)])
	r.Steps = slices.Clone(r.Steps[:cut("steps", len(r.Steps), maxSteps)])
	r.Series = slices.Clone(r.Series[:cut("series", len(r.Series), maxSeries)])
	r.Events = slices.Clone(r.Events)
	slices.SortStableFunc(r.Events, func(a, b Event) int { return cmp.Compare(a.At, b.At) })
	r.Events = r.Events[:cut("events, the last ones", len(r.Events), maxEvents)]
	if len(r.Scenario) > maxScenario {
		left = append(left, fmt.Sprintf("%d of %d bytes of the scenario's text", len(r.Scenario)-maxScenario, len(r.Scenario)))
		r.Scenario = strings.ToValidUTF8(r.Scenario[:maxScenario], "")
	}
	r.Took = max(r.Took, 0)
	texts := 0
	shorten := func(s *string) {
		if n := utf8.RuneCountInString(*s); n > maxText {
			*s = clip(*s, maxText)
			texts++
		}
	}
	shorten(&r.Title)
	shorten(&r.Fault)
	for i := range r.Sites {
		r.Sites[i].Lat, r.Sites[i].Lon = degrees(r.Sites[i].Lat, 90), degrees(r.Sites[i].Lon, 180)
	}
	for i := range r.Clients {
		r.Clients[i].Lat, r.Clients[i].Lon = degrees(r.Clients[i].Lat, 90), degrees(r.Clients[i].Lon, 180)
	}
	for i := range r.Steps {
		s := &r.Steps[i]
		s.At, s.Took = max(s.At, 0), max(s.Took, 0)
		shorten(&s.Text)
		shorten(&s.Result)
		shorten(&s.Note)
	}
	for i := range r.Events {
		r.Events[i].At = max(r.Events[i].At, 0)
		shorten(&r.Events[i].Text)
	}
	for i := range r.Figures {
		if f := &r.Figures[i]; math.IsNaN(f.Value) || math.IsInf(f.Value, 0) {
			f.Value, f.Unit, f.OK = 0, "not a number", false
		}
	}
	if texts > 0 {
		left = append(left, fmt.Sprintf("the ends of %d texts that are longer than %d characters", texts, maxText))
	}
	for i := range r.Series {
		r.Series[i].Samples = inTime(r.Series[i].Samples)
	}
	return r, left
}

// thinned is a bounded run with at most about maxSamples samples, and how many were left out.
func (r Run) thinned() (Run, int) {
	total := r.asked()
	if total <= maxSamples {
		return r, 0
	}
	r.Series = slices.Clone(r.Series)
	kept := 0
	for i, s := range r.Series {
		share := int(int64(maxSamples) * int64(len(s.Samples)) / int64(total))
		r.Series[i].Samples = thin(s.Samples, share)
		kept += len(r.Series[i].Samples)
	}
	return r, total - kept
}

// asked is how many samples a run has.
func (r Run) asked() int {
	total := 0
	for _, s := range r.Series {
		total += len(s.Samples)
	}
	return total
}

// thin keeps about most of the samples, which are in order of time: of so many after each other the fastest, the
// slowest and the first that failed. So the range and the failures stay; the density between is lost.
func thin(samples []Sample, most int) []Sample {
	if len(samples) <= most {
		return samples
	}
	most = max(most, 3)
	size := (3*len(samples) + most - 1) / most
	var kept []Sample
	for begin := 0; begin < len(samples); begin += size {
		part := samples[begin:min(begin+size, len(samples))]
		fast, slow, failed := -1, -1, -1
		for i, s := range part {
			switch {
			case !s.OK:
				if failed < 0 {
					failed = i
				}
			case fast < 0:
				fast, slow = i, i
			case s.Took < part[fast].Took:
				fast = i
			case s.Took > part[slow].Took:
				slow = i
			}
		}
		picks := []int{fast, slow, failed}
		slices.Sort(picks)
		for _, i := range slices.Compact(picks) {
			if i >= 0 {
				kept = append(kept, part[i])
			}
		}
	}
	return kept
}

func inTime(samples []Sample) []Sample {
	samples = slices.Clone(samples)
	for i := range samples {
		samples[i].At, samples[i].Took = max(samples[i].At, 0), max(samples[i].Took, 0)
	}
	slices.SortStableFunc(samples, func(a, b Sample) int { return cmp.Compare(a.At, b.At) })
	return samples
}

func degrees(v, most float64) float64 {
	if math.IsNaN(v) {
		return 0
	}
	return max(-most, min(most, v))
}

// end is when the last thing of a run happened: the right end of every time axis.
func (r Run) end() time.Duration {
	end := max(r.Took, time.Millisecond)
	for _, s := range r.Steps {
		end = max(end, s.At+s.Took)
	}
	for _, e := range r.Events {
		end = max(end, e.At)
	}
	for _, s := range r.Series {
		if n := len(s.Samples); n > 0 {
			end = max(end, s.Samples[n-1].At)
		}
	}
	return end
}

// change is a step that broke something, or took that back. It has a letter by which all plots name it.
type change struct {
	Letter string
	At     time.Duration
	Step   int // its index
	Text   string
	Mend   bool
}

// maxChanges bounds the letters; later ones are steps like others.
const maxChanges = 78

func changes(r Run) []change {
	var list []change
	for i, s := range r.Steps {
		if len(list) == maxChanges {
			break
		}
		if mend := mends(s.Verb); s.Fault || mend {
			list = append(list, change{At: s.At, Step: i, Text: wish(s.Text), Mend: mend && !s.Fault})
		}
	}
	slices.SortStableFunc(list, func(a, b change) int { return cmp.Compare(a.At, b.At) })
	for i := range list {
		list[i].Letter = letter(i)
	}
	return list
}

// mends says whether a verb takes back what another broke.
func mends(verb string) bool {
	switch verb {
	case "heal", "start", "resume", "rejoin", "undrain", "unblock", "unslow", "restore":
		return true
	}
	return false
}

// letter is A … Z, A2 … Z2, A3 …
func letter(i int) string {
	if i < 26 {
		return string(rune('A' + i))
	}
	return fmt.Sprintf("%c%d", 'A'+i%26, i/26+1)
}

// wish is a step's text without what was to come true.
func wish(text string) string {
	before, _, _ := strings.Cut(text, "=>")
	return strings.TrimSpace(before)
}

// phase is the time between changes, or before the first or after the last. Changes that come right after each other
// begin one phase together.
type phase struct {
	From, To time.Duration
	Changes  []change // that began it; none: the beginning
	Standing []change // faults that are not taken back in it, as far as the words of the steps say
}

func (p phase) letters() string {
	var list []string
	for _, c := range p.Changes {
		list = append(list, c.Letter)
	}
	return strings.Join(list, " ")
}

func phases(r Run, list []change) []phase {
	end := r.end()
	near := max(100*time.Millisecond, end/200)
	all := []phase{{}}
	var standing []change
	for i, c := range list {
		standing = stand(standing, c)
		last := &all[len(all)-1]
		if i > 0 && c.At-list[i-1].At < near {
			last.Changes = append(last.Changes, c)
			last.Standing = slices.Clone(standing)
			continue
		}
		last.To = c.At
		all = append(all, phase{From: c.At, Changes: []change{c}, Standing: slices.Clone(standing)})
	}
	all[len(all)-1].To = end
	return all
}

// stand is which faults stand after a change: one that mends takes back those that name what it names, or all if it
// names nothing.
func stand(before []change, c change) []change {
	if !c.Mend {
		return append(slices.Clone(before), c)
	}
	named := words(c.Text)[1:]
	return slices.DeleteFunc(slices.Clone(before), func(b change) bool {
		return len(named) == 0 || slices.ContainsFunc(words(b.Text)[1:], func(w string) bool { return slices.Contains(named, w) })
	})
}

// words are the words of a step, never none.
func words(text string) []string {
	list := strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(" \t@,\"", r) })
	if len(list) == 0 {
		return []string{""}
	}
	return list
}

// names are the sites that a step's text names, by themselves or by a host of theirs.
func names(r Run, text string) []int {
	var list []int
	for _, w := range words(text)[1:] {
		if i := siteOf(r, w, false); i >= 0 && !slices.Contains(list, i) {
			list = append(list, i)
		}
	}
	return list
}

// siteOf is the index of the site of that name or with a host of that name; loosely, also of a POP that is called as
// the site with a number after it. −1: none.
func siteOf(r Run, name string, loosely bool) int {
	if name == "" {
		return -1
	}
	for i, s := range r.Sites {
		if s.Name == name || slices.Contains(s.Hosts, name) {
			return i
		}
	}
	if loosely {
		bare := strings.TrimRight(name, "0123456789")
		return slices.IndexFunc(r.Sites, func(s Site) bool { return s.Name == bare })
	}
	return -1
}

// clientOf is the index of the client that a series is of. −1: none is known.
func clientOf(r Run, s Series) int {
	named := []string{s.Client}
	if s.Client == "" {
		named = strings.FieldsFunc(s.Name, func(r rune) bool { return strings.ContainsRune(" \t@,/:", r) })
	}
	for _, w := range slices.Backward(named) {
		if i := slices.IndexFunc(r.Clients, func(c Client) bool { return c.Name == w }); i >= 0 {
			return i
		}
	}
	return -1
}

// pops are the names of all who served, in the order of the sites and then by name, so that a POP has its colour in
// every plot.
func pops(r Run) []string {
	seen := map[string]bool{}
	for _, s := range r.Series {
		for _, p := range s.Samples {
			if p.By != "" {
				seen[p.By] = true
			}
		}
	}
	var list []string
	for name := range seen {
		list = append(list, name)
	}
	slices.SortFunc(list, func(a, b string) int {
		i, j := siteOf(r, a, true), siteOf(r, b, true)
		if (i < 0) != (j < 0) {
			return cmp.Compare(j, i) // those of no site come last
		}
		return cmp.Or(cmp.Compare(i, j), cmp.Compare(a, b))
	})
	return list
}

// between are the samples that were asked from one time until before another.
func between(samples []Sample, from, to time.Duration) []Sample {
	at := func(t time.Duration) int {
		i, _ := slices.BinarySearchFunc(samples, t, func(s Sample, t time.Duration) int { return cmp.Compare(s.At, t) })
		return i
	}
	return samples[at(from):max(at(from), at(to))]
}

// serving is who gave most of the last good answers, of two alike the later, and whether the very last sample failed.
func serving(samples []Sample) (by string, failing bool) {
	given := map[string]int{}
	for _, s := range lastGood(samples, recent) {
		if given[s.By]++; given[s.By] > given[by] {
			by = s.By
		}
	}
	return by, len(samples) > 0 && !samples[len(samples)-1].OK
}

// lastGood are the last so many good answers, the last first.
func lastGood(samples []Sample, most int) []Sample {
	var good []Sample
	for _, s := range slices.Backward(samples) {
		if s.OK && len(good) < most {
			good = append(good, s)
		}
	}
	return good
}

// effect is what one phase did to one series.
type effect struct {
	Phase   int           `json:"-"`
	Letters string        `json:"changes"`
	Series  string        `json:"series"`
	From    string        `json:"from,omitempty"`  // who served before
	To      string        `json:"to,omitempty"`    // who served at its end
	After   time.Duration `json:"after,omitempty"` // until the first answer by To after which none came from From; 0: it did not move
	Asked   int           `json:"asked"`
	Failed  int           `json:"failed"`
	Dark    time.Duration `json:"dark"`             // the longest time without a good answer, from the first asking that failed
	Open    bool          `json:"open,omitempty"`   // it was still dark at the end
	Before  time.Duration `json:"before,omitempty"` // median of the good answers before the phase, by From
	Since   time.Duration `json:"since,omitempty"`  // and in it, by To
}

// effects are what each phase did to each series that was asked in it.
func effects(r Run, all []phase) []effect {
	var list []effect
	for i, p := range all {
		if i == 0 {
			continue
		}
		for _, s := range r.Series {
			before := between(s.Samples, all[i-1].From, p.From)
			during := between(s.Samples, p.From, p.To+1)
			if len(during) == 0 {
				continue
			}
			e := judge(before, during, p.From, p.To)
			e.Phase, e.Letters, e.Series = i, p.letters(), s.Name
			if e.From == "" {
				e.From, _ = serving(between(s.Samples, 0, p.From))
			}
			list = append(list, e)
		}
	}
	return list
}

// judge compares the samples before a time with those from it to another.
func judge(before, during []Sample, from, to time.Duration) effect {
	e := effect{Asked: len(during)}
	e.From, _ = serving(before)
	e.To, _ = serving(during)
	byTo := func(s Sample) bool { return s.By == e.To }
	switch {
	case e.From == e.To || e.From == "" || e.To == "":
	case slices.ContainsFunc(lastGood(before, mixed), byTo):
		e.To = e.From // both serve it, before and after
	default:
		for _, s := range slices.Backward(during) {
			if s.OK && s.By == e.From {
				break
			}
			if s.OK && s.By == e.To {
				e.After = s.At + s.Took - from
			}
		}
	}
	dark := time.Duration(-1)
	for _, s := range during {
		switch {
		case !s.OK:
			e.Failed++
			if dark < 0 {
				dark = s.At
			}
		case dark >= 0:
			e.Dark = max(e.Dark, s.At+s.Took-dark)
			dark = -1
		}
	}
	if dark >= 0 {
		e.Open = true
		e.Dark = max(e.Dark, to-dark)
	}
	e.Before = max(0, summary(before, e.From).P50)
	e.Since = max(0, summary(during, e.To).P50)
	return e
}

// summed is a series, or a POP's part of it, in numbers. A percentile is −1 where there are too few samples for it.
type summed struct {
	By                 string // "" for all
	N, Failed          int
	P50, P90, P99, Max time.Duration
}

// summaries are the whole series and then each POP's part of it, if there is more than one.
func summaries(s Series, pops []string) []summed {
	list := []summed{summary(s.Samples, "")}
	for _, p := range pops {
		if one := summary(s.Samples, p); one.N > 0 {
			list = append(list, one)
		}
	}
	if len(list) == 2 && list[1].N == list[0].N {
		return list[:1]
	}
	return list
}

func summary(samples []Sample, by string) summed {
	sum := summed{By: by, P50: -1, P90: -1, P99: -1, Max: -1}
	var took []time.Duration
	for _, s := range samples {
		if by != "" && s.By != by {
			continue
		}
		sum.N++
		if !s.OK {
			sum.Failed++
			continue
		}
		took = append(took, s.Took)
	}
	if len(took) == 0 {
		return sum
	}
	slices.Sort(took)
	sum.P50, sum.Max = percentile(took, 50), took[len(took)-1]
	if len(took) >= enoughFor {
		sum.P90 = percentile(took, 90)
	}
	if len(took) >= 10*enoughFor {
		sum.P99 = percentile(took, 99)
	}
	return sum
}

// percentile is the nearest rank of what is sorted.
func percentile(sorted []time.Duration, p int) time.Duration {
	return sorted[max(0, (p*len(sorted)+99)/100-1)]
}

// clip is a text of at most so many runes, the last an ellipsis where it was cut, with what does not print made a space.
func clip(s string, most int) string {
	var b strings.Builder
	n := 0
	for _, r := range s {
		if n++; n > most {
			break
		}
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == utf8.RuneError || r == '\u2028' || r == '\u2029' {
			r = ' '
		}
		b.WriteRune(r)
	}
	if n > most {
		short := []rune(b.String())
		return string(short[:most-1]) + "…"
	}
	return b.String()
}

// show is a duration as a person reads it, in the unit or, without one, in what fits.
func show(d time.Duration, unit string) string {
	ms := float64(d) / float64(time.Millisecond)
	switch {
	case d < 0:
		return "–"
	case unit == "µs":
		return digits(ms*1000) + " µs"
	case unit == "ms":
		return digits(ms) + " ms"
	case unit == "s":
		return digits(ms/1000) + " s"
	case d == 0:
		return "0 ms"
	case d < time.Millisecond/10:
		return digits(ms*1000) + " µs"
	case d < time.Second:
		return digits(ms) + " ms"
	case d < 100*time.Second:
		return digits(ms/1000) + " s"
	case d < time.Hour:
		return fmt.Sprintf("%dm %02ds", d/time.Minute, d%time.Minute/time.Second)
	}
	return fmt.Sprintf("%dh %02dm", d/time.Hour, d%time.Hour/time.Minute)
}

// digits is a number with about three digits that count.
func digits(v float64) string {
	switch a := math.Abs(v); {
	case a >= 100 || v == math.Trunc(v):
		return grouped(math.Round(v))
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	case a >= 0.095:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

// grouped is a whole number with commas between thousands.
func grouped(v float64) string {
	if math.Abs(v) >= 1e15 {
		return fmt.Sprintf("%.3g", v)
	}
	s := fmt.Sprintf("%.0f", math.Abs(v))
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	if v < 0 {
		s = "−" + s
	}
	return s
}

// clock is a moment of a run: 12.34 s, 3:07.5 or 1:02:33.
func clock(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%.2f s", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%d:%04.1f", d/time.Minute, (d % time.Minute).Seconds())
	}
	return fmt.Sprintf("%d:%02d:%02d", d/time.Hour, d%time.Hour/time.Minute, d%time.Minute/time.Second)
}

func sorted(list []time.Duration) []time.Duration {
	list = slices.Clone(list)
	slices.Sort(list)
	return list
}

func percentileOf(list []time.Duration, p int) time.Duration { return percentile(sorted(list), p) }
