package page

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"slices"
	"strings"
	"time"
)

var (
	//go:embed page.html.tmpl
	pageText string
	//go:embed page.css
	pageStyle string
	//go:embed page.js
	pageScript string
)

const (
	maxEntries = 400   // of the timeline that are shown at once
	maxUnfold  = 3_000 // and that unfold below them; the rest is in the JSON only
	maxLines   = 5_000 // of the scenario's text
	maxCauses  = 8     // of an event
	maxListed  = 40    // series under one change
)

// The parts of the page, as the template takes them: words and drawings, nothing to decide.
type (
	sheet struct {
		Policy, Title string
		Style         template.CSS
		Script, JSON  template.JS
		Shared        template.HTML
		Run           Run
		Left          []string
		Facts         []fact
		Figures       []figureCard
		POPs          []popKey
		Map           template.HTML
		Phases        []phaseCard
		ServedHeads   [][]template.HTML
		Served        []servedRow
		Trips         []tripRow
		Glance        template.HTML
		Changes       []change
		Effects       []effectCard
		Timeline      []entry
		More          []entry
		MoreLeft      string
		PhasesLeft    string
		GlanceLeft    string
		SeriesLeft    string
		Series        []seriesCard
		Lines         []scenarioLine
		LinesLeft     string
	}
	fact       struct{ Name, Text string }
	figureCard struct{ Name, Value, Unit, Aim, Class, Sign string }
	popKey     struct {
		Name string
		Mark template.HTML
	}
	phaseCard struct {
		Flags      []template.HTML
		Text, Span string
		Map        template.HTML
	}
	servedRow struct {
		Name, City string
		Cells      []servedCell
	}
	servedCell struct {
		Text, Class string
		Mark        template.HTML
	}
	tripRow struct {
		Name  string
		Cells []string
	}
	flagged struct {
		Flag template.HTML
		Text string
	}
	effectCard struct {
		Changes []flagged
		Span    string
		Rows    []effectRow
		Rest    string
	}
	effectRow struct {
		Series, From, To, After, Failed, Dark, Median string
		FromMark, ToMark                              template.HTML
		Bad                                           bool
	}
	entry struct {
		At                                                  time.Duration
		Class, Anchor, Clock, Node, Verb, Text, Took, Since string
		Result, Note                                        string
		Badge, After                                        template.HTML
		Failed                                              bool
		Causes                                              []cause
	}
	cause      struct{ Href, Text, Lag string }
	seriesCard struct {
		Name, Count, Thin string
		Index             int
		Plot, Curve       template.HTML
		Key               []popKey
		Rows              []statRow
	}
	statRow struct {
		Name, N, Failed, P50, P90, P99, Max string
		Mark                                template.HTML
		Bad                                 bool
	}
	scenarioLine struct {
		Number, Text, Class string
		Mark                template.HTML
	}
)

// changed and numbers are what JSON holds beside the run.
type (
	changed struct {
		Letter string        `json:"letter"`
		At     time.Duration `json:"at"`
		Text   string        `json:"text"`
		Mend   bool          `json:"mend,omitempty"` // it took a fault back
	}
	numbers struct {
		Series string        `json:"series"`
		By     string        `json:"by,omitempty"` // none: all
		N      int           `json:"n"`
		Failed int           `json:"failed"`
		P50    time.Duration `json:"p50,omitempty"`
		P90    time.Duration `json:"p90,omitempty"`
		P99    time.Duration `json:"p99,omitempty"`
		Max    time.Duration `json:"max,omitempty"`
	}
)

// HTML writes the run as one self-contained page. Its errors are those of w.
func (r Run) HTML(w io.Writer) error {
	page, err := template.New("page").Parse(pageText)
	if err != nil {
		return fmt.Errorf("parse the page's template: %w", err)
	}
	s, err := newSheet(r)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := page.Execute(&b, s); err != nil {
		return fmt.Errorf("make the page: %w", err)
	}
	if _, err := b.WriteTo(w); err != nil {
		return fmt.Errorf("write the page: %w", err)
	}
	return nil
}

func newSheet(whole Run) (sheet, error) {
	r, left := whole.bounded()
	land, err := landPath()
	if err != nil {
		return sheet{}, err
	}
	data, left, err := r.data(left)
	if err != nil {
		return sheet{}, err
	}
	list := changes(r)
	all := phases(r, list)
	names := pops(r)
	pop := map[string]int{}
	for i, name := range names {
		if i < maxPOPs {
			pop[name] = i
		}
	}
	s := sheet{
		Policy:  policy(),
		Style:   template.CSS(pageStyle),
		Script:  template.JS(pageScript),
		JSON:    template.JS(data),
		Shared:  shared(land),
		Run:     r,
		Title:   clip(r.Title, 300),
		Facts:   facts(r),
		Figures: figureCards(r),
		Changes: list,
	}
	if s.Title == "" {
		s.Title = "A run without a title"
	}
	for _, l := range left {
		s.Left = append(s.Left, "Left out, because it is too much for a page: "+l+".")
	}
	for i, name := range names {
		if i == maxPOPs {
			s.POPs = append(s.POPs, popKey{"others", mark(-1)})
			break
		}
		s.POPs = append(s.POPs, popKey{clip(name, 40), mark(i)})
	}
	if len(r.Sites)+len(r.Clients) > 0 {
		s.Map = theMap(r, all, pop)
		s.Trips = trips(r)
	}
	if len(r.Clients) > 0 && slices.ContainsFunc(r.Series, func(one Series) bool { return clientOf(r, one) >= 0 }) {
		s.Phases, s.ServedHeads, s.Served = who(r, all, pop)
		if more := len(all) - maxPhases; more > 0 {
			s.PhasesLeft = "After " + count(more, "later change there is no map, and no column below.", "later changes there is no map, and no column below.")
		}
	}
	if len(list) > 0 || len(rowsOf(r)) > 0 || len(r.Events) > 0 {
		s.Glance = glance(r, list, pop)
		if more := len(r.Series) - len(rowsOf(r)); more > 0 {
			s.GlanceLeft = count(more, "series is", "series are") + " not drawn here: without samples, or too many."
		}
	}
	s.Effects = effectCards(r, all, pop)
	s.Timeline = timeline(r, list)
	if len(s.Timeline) > maxEntries {
		s.Timeline, s.More = s.Timeline[:maxEntries], s.Timeline[maxEntries:]
	}
	if len(s.More) > maxUnfold {
		s.MoreLeft = count(len(s.More)-maxUnfold, "later entry is", "later entries are") + " in the data of this page only."
		s.More = s.More[:maxUnfold]
	}
	s.Series = seriesCards(r, list, pop, names)
	if more := len(r.Series) - maxPlots; more > 0 {
		s.SeriesLeft = "The last " + count(more, "series has", "series have") + " no plot, only numbers."
	}
	s.Lines, s.LinesLeft = scenarioLines(r, list)
	return s, nil
}

// policy lets the page fetch nothing and run nothing but its own style and script, whatever a text in it may hold.
func policy() string {
	hash := func(s string) string {
		sum := sha256.Sum256([]byte(s))
		return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
	}
	return "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; style-src " + hash(pageStyle) + "; script-src " + hash(pageScript)
}

// shared is what all drawings refer to.
func shared(land string) template.HTML {
	return template.HTML(`<svg class="shared" viewBox="0 0 1 1" aria-hidden="true"><defs><path id="land" d="` + land + `"/>` +
		`<pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect class="hatchbg" width="5" height="5"/><path class="hatchline" d="M0 0v5"/></pattern></defs></svg>`)
}

// data is the run as JSON for the page and for WriteJSON, with what was left out, and what the page reads from it.
func (r Run) data(left []string) ([]byte, []string, error) {
	thin, dropped := r.thinned()
	if dropped > 0 {
		left = append(slices.Clone(left), fmt.Sprintf("%s of %s samples; of so many after each other the fastest, the slowest and one that failed are kept (figures and plots are of all)",
			grouped(float64(dropped)), grouped(float64(r.asked()))))
	}
	out := struct {
		Run
		Durations string    `json:"durations"`
		LeftOut   []string  `json:"leftOut,omitempty"`
		Changes   []changed `json:"changes,omitempty"`
		Effects   []effect  `json:"effects,omitempty"`
		Summaries []numbers `json:"summaries,omitempty"`
	}{Run: thin, Durations: "nanoseconds", LeftOut: left}
	list := changes(r)
	for _, c := range list {
		out.Changes = append(out.Changes, changed{c.Letter, c.At, c.Text, c.Mend})
	}
	out.Effects = effects(r, phases(r, list))
	names := pops(r)
	for _, s := range r.Series {
		for _, sum := range summaries(s, names) {
			out.Summaries = append(out.Summaries, numbers{s.Name, sum.By, sum.N, sum.Failed, max(0, sum.P50), max(0, sum.P90), max(0, sum.P99), max(0, sum.Max)})
		}
	}
	data, err := json.Marshal(out)
	if err != nil {
		return nil, nil, fmt.Errorf("write the run as JSON: %w", err)
	}
	return data, left, nil
}

func facts(r Run) []fact {
	samples, failed := 0, 0
	for _, s := range r.Series {
		sum := summary(s.Samples, "")
		samples, failed = samples+sum.N, failed+sum.Failed
	}
	taken, faults := 0, 0
	for _, s := range r.Steps {
		if !s.Failed {
			taken++
		}
		if s.Fault {
			faults++
		}
	}
	began := ""
	if !r.Began.IsZero() {
		began = r.Began.UTC().Format("2 January 2006, 15:04:05 MST")
	}
	var list []fact
	for _, f := range []fact{
		{"began", began},
		{"took", show(r.Took, "")},
		{"testbed", clip(r.Testbed, 200)},
		{"links made by", clip(r.WAN, 200)},
		{"machine", clip(r.Machine, 300)},
		{"steps that came true", fmt.Sprintf("%d of %d", taken, len(r.Steps))},
		{"faults made", fmt.Sprint(faults)},
		{"asked", fmt.Sprintf("%s times, %s failed", grouped(float64(samples)), grouped(float64(failed)))},
	} {
		if f.Text != "" {
			list = append(list, f)
		}
	}
	return list
}

func figureCards(r Run) []figureCard {
	var list []figureCard
	for _, f := range r.Figures {
		c := figureCard{Name: clip(f.Name, 200), Value: digits(f.Value), Unit: clip(f.Unit, 40), Aim: clip(f.Aim, 80), Sign: "✓"}
		switch {
		case f.Aim == "":
		case f.OK:
			c.Class = "met"
		default:
			c.Class, c.Sign = "missed", "✗ missed:"
		}
		list = append(list, c)
	}
	return list
}

// mark is a POP's mark for a list.
func mark(i int) template.HTML {
	class := "dot big px"
	if i >= 0 {
		class = glyphClass(i) + " big"
	}
	return template.HTML(`<svg class="icon" viewBox="0 0 14 14" aria-hidden="true"><path class="` + class + `" d="` + glyph(max(i, 0), 7, 7, 5) + `"/></svg>`)
}

// curveMark is a POP's line for a list, with its mark on it.
func curveMark(i int) template.HTML {
	class := "dot big px"
	if i >= 0 {
		class = glyphClass(i) + " big"
	}
	return template.HTML(`<svg class="icon long" viewBox="0 0 30 14" aria-hidden="true"><path class="curve ` + hue(i) + `" stroke-dasharray="` + dash(i) +
		`" d="M1 7h28"/><path class="` + class + `" d="` + glyph(max(i, 0), 15, 7, 4) + `"/></svg>`)
}

func flagOf(c change) template.HTML {
	kind := "fault"
	if c.Mend {
		kind = "mend"
	}
	return template.HTML(`<span class="flag ` + kind + `" title="` + escape(clip(c.Text, 200)) + `">` + c.Letter + `</span>`)
}

// who is who served whom in each phase: as maps and as a table.
func who(r Run, all []phase, pop map[string]int) (cards []phaseCard, heads [][]template.HTML, rows []servedRow) {
	shown := all[:min(len(all), maxPhases)]
	rows = make([]servedRow, len(r.Clients))
	for i, c := range r.Clients {
		rows[i] = servedRow{Name: clip(c.Name, 40), City: clip(c.City, 40)}
	}
	for k, p := range shown {
		if k == 0 && p.To == 0 && len(all) > 1 {
			continue // the run began with a change
		}
		card := phaseCard{Text: "before any change", Map: phaseMap(r, all, k, pop), Span: clock(p.From) + " – " + clock(p.To)}
		var texts []string
		for _, c := range p.Changes {
			card.Flags = append(card.Flags, flagOf(c))
			texts = append(texts, c.Text)
		}
		if k > 0 {
			card.Text = clip(strings.Join(texts, ", "), 160)
			heads = append(heads, card.Flags)
		} else {
			heads = append(heads, []template.HTML{"at first"})
		}
		if len(all) > 1 {
			cards = append(cards, card)
		}
		for i := range r.Clients {
			by, failing, asked := servedIn(r, p, i)
			cell := servedCell{Text: clip(told(by, failing, asked), 40)}
			was := ""
			if k > 0 {
				was, _, _ = servedIn(r, all[k-1], i)
			}
			switch {
			case failing:
				cell.Class, cell.Text = "lostcell", "✗ "+cell.Text
			case by == "":
				cell.Class = "none"
			case was != "" && was != by:
				cell.Class, cell.Mark = "movedcell", mark(index(pop, by))
			default:
				cell.Mark = mark(index(pop, by))
			}
			rows[i].Cells = append(rows[i].Cells, cell)
		}
	}
	return cards, heads, rows
}

// maxTrips bounds the sites of the table of round trips.
const maxTrips = 30

func trips(r Run) []tripRow {
	if len(r.Links) == 0 || len(r.Sites) > maxTrips {
		return nil
	}
	known := map[[2]string]time.Duration{}
	for _, l := range r.Links {
		known[[2]string{l.A, l.B}], known[[2]string{l.B, l.A}] = l.RTT, l.RTT
	}
	var rows []tripRow
	for _, a := range r.Sites {
		row := tripRow{Name: clip(a.Name, 40)}
		for _, b := range r.Sites {
			text := ""
			if d, ok := known[[2]string{a.Name, b.Name}]; ok {
				text = show(d, "")
			}
			row.Cells = append(row.Cells, text)
		}
		rows = append(rows, row)
	}
	return rows
}

func effectCards(r Run, all []phase, pop map[string]int) []effectCard {
	found := effects(r, all)
	var cards []effectCard
	for k, p := range all {
		if k == 0 {
			continue
		}
		card := effectCard{Span: "looked at for " + show(p.To-p.From, "")}
		for _, c := range p.Changes {
			card.Changes = append(card.Changes, flagged{flagOf(c), clip(c.Text, 200)})
		}
		still, more := 0, 0
		for _, e := range found {
			switch {
			case e.Phase != k:
				continue
			case e.After == 0 && e.Failed == 0:
				still++
				continue
			case len(card.Rows) == maxListed:
				more++
				continue
			}
			card.Rows = append(card.Rows, effectRowOf(e, pop))
		}
		switch {
		case still+more+len(card.Rows) == 0:
			card.Rest = "Nothing was asked meanwhile."
		case len(card.Rows) == 0:
			card.Rest = "Nothing moved and nothing failed: the same POPs served all " + count(still, "series", "series") + "."
		case still > 0:
			card.Rest = count(still, "other series was", "other series were") + " served as before."
		}
		if more > 0 {
			card.Rest += " " + count(more, "more is", "more are") + " not listed."
		}
		cards = append(cards, card)
	}
	return cards
}

func effectRowOf(e effect, pop map[string]int) effectRow {
	row := effectRow{Series: clip(e.Series, 60), From: clip(e.From, 40), After: "–", Failed: fmt.Sprintf("%s of %s", grouped(float64(e.Failed)), grouped(float64(e.Asked))), Dark: "–", Median: "–", Bad: e.Failed > 0}
	if e.From != "" {
		row.FromMark = mark(index(pop, e.From))
	} else {
		row.From = "–"
	}
	if e.To != "" && e.To != e.From {
		row.To, row.ToMark = clip(e.To, 40), mark(index(pop, e.To))
	}
	if e.After > 0 {
		row.After = show(e.After, "")
	}
	if e.Failed > 0 {
		row.Dark = show(e.Dark, "")
		if e.Open {
			row.Dark += ", to the end"
		}
	}
	if e.Before > 0 && e.Since > 0 {
		row.Median = show(e.Before, "") + " → " + show(e.Since, "")
	}
	return row
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return grouped(float64(n)) + " " + many
}

// timeline is the steps and the events in order of time.
func timeline(r Run, list []change) []entry {
	byStep := map[int]change{}
	for _, c := range list {
		byStep[c.Step] = c
	}
	var all []entry
	for i, s := range r.Steps {
		e := entry{At: s.At, Class: "step", Clock: clock(s.At), Failed: s.Failed, Result: s.Result, Note: s.Note, Badge: "<i></i>"}
		text := wish(s.Text)
		before, after, found := strings.Cut(" "+text+" ", " "+s.Verb+" ")
		if found && s.Verb != "" {
			e.Verb, e.Text = strings.TrimSpace(before+" "+s.Verb), strings.TrimSpace(after)
		} else {
			e.Text = text
		}
		if s.Took >= time.Millisecond {
			e.Took = "took " + show(s.Took, "")
		}
		if s.Times > 1 {
			e.Took = strings.TrimPrefix(e.Took+", "+grouped(float64(s.Times))+" times", ", ")
		}
		if s.Failed {
			e.Class = "step failed"
		}
		if c, ok := byStep[i]; ok {
			e.Badge = flagOf(c)
			if !c.Mend {
				e.Class += " fault"
			} else {
				e.Class += " mend"
			}
		}
		all = append(all, e)
	}
	where := map[string]int{} // an event by its node and ID, by its ID alone, and by NODE/ID
	for i, e := range r.Events {
		if e.ID == "" {
			continue
		}
		for _, key := range []string{e.Node + "\x00" + e.ID, "\x00\x00" + e.ID, "\x00\x00" + e.Node + "/" + e.ID} {
			if _, known := where[key]; !known {
				where[key] = i
			}
		}
	}
	for i, e := range r.Events {
		one := entry{At: e.At, Class: "event", Anchor: fmt.Sprintf("e%d", i+1), Clock: clock(e.At), Node: clip(e.Node, 60), Text: e.Text, Badge: "<i></i>"}
		if one.Text == "" {
			one.Text = clip(e.Kind, 200)
		}
		for n, id := range e.Causes {
			if n == maxCauses {
				one.Causes = append(one.Causes, cause{Text: fmt.Sprintf("%d more", len(e.Causes)-n)})
				break
			}
			at, ok := where[e.Node+"\x00"+id]
			if !ok {
				at, ok = where["\x00\x00"+id]
			}
			if !ok || at == i {
				one.Causes = append(one.Causes, cause{Text: "an event that is not here (" + clip(id, 40) + ")"})
				continue
			}
			of := r.Events[at]
			href := fmt.Sprintf("#e%d", at+1)
			if at >= maxEntries+maxUnfold-len(r.Steps) {
				href = "" // perhaps not on the page
			}
			text := clip(of.Text, 90)
			if of.Node != e.Node {
				text = clip(of.Node, 30) + ": " + text
			}
			one.Causes = append(one.Causes, cause{Href: href, Text: text, Lag: show(max(0, e.At-of.At), "") + " before"})
		}
		all = append(all, one)
	}
	slices.SortStableFunc(all, func(a, b entry) int { return int(max(-1, min(1, a.At-b.At))) })
	for i := range all {
		if all[i].Class != "event" {
			continue
		}
		var last *change
		for k := range list {
			if list[k].At <= all[i].At {
				last = &list[k]
			}
		}
		if last != nil {
			all[i].Since, all[i].After = "+"+show(all[i].At-last.At, ""), flagOf(*last)
		}
	}
	return all
}

func seriesCards(r Run, list []change, pop map[string]int, names []string) []seriesCard {
	var cards []seriesCard
	for i, s := range r.Series {
		card := seriesCard{Name: clip(s.Name, 120), Index: i, Count: "asked " + count(len(s.Samples), "time", "times")}
		sums := summaries(s, names)
		for _, sum := range sums[:min(len(sums), maxPOPs)] {
			row := statRow{Name: clip(sum.By, 40), N: grouped(float64(sum.N)), Failed: grouped(float64(sum.Failed)), Bad: sum.Failed > 0,
				P50: show(sum.P50, s.Unit), P90: show(sum.P90, s.Unit), P99: show(sum.P99, s.Unit), Max: show(sum.Max, s.Unit)}
			if sum.By == "" {
				row.Name = "all"
			} else {
				row.Mark = mark(index(pop, sum.By))
			}
			card.Rows = append(card.Rows, row)
		}
		if len(s.Samples) > 0 && i < maxPlots {
			card.Plot = latency(r, s, list, pop)
			card.Curve = distribution(s, pop, names)
			seen := map[string]bool{}
			for _, p := range s.Samples {
				seen[p.By] = true
			}
			for _, name := range names {
				if seen[name] && len(card.Key) < maxPOPs {
					card.Key = append(card.Key, popKey{clip(name, 40), curveMark(index(pop, name))})
				}
			}
			if len(s.Samples) > marksWide {
				card.Thin = fmt.Sprintf("Over time, of so many samples after each other the fastest, the slowest and one that failed are drawn: %s of %s (%s on a narrow page). The distribution and the table are of all.",
					grouped(float64(len(thin(s.Samples, marksWide)))), grouped(float64(len(s.Samples))), grouped(float64(len(thin(s.Samples, marksNear)))))
			} else if len(s.Samples) > marksNear {
				card.Thin = fmt.Sprintf("On a narrow page, over time, of so many samples after each other the fastest, the slowest and one that failed are drawn: %s of %s. The distribution and the table are of all.",
					grouped(float64(len(thin(s.Samples, marksNear)))), grouped(float64(len(s.Samples))))
			}
		}
		cards = append(cards, card)
	}
	return cards
}

// scenarioLines are the lines of the scenario's text with what came of each.
func scenarioLines(r Run, list []change) ([]scenarioLine, string) {
	text := strings.TrimRight(r.Scenario, "\n \t")
	if text == "" {
		return nil, ""
	}
	came := map[int]template.HTML{}
	for _, s := range r.Steps {
		if s.Failed {
			came[s.Line] = "✗"
		} else if came[s.Line] == "" {
			came[s.Line] = "✓"
		}
	}
	for _, c := range list {
		if line := r.Steps[c.Step].Line; came[line] == "✓" {
			came[line] = flagOf(c)
		}
	}
	var lines []scenarioLine
	for i, line := range strings.Split(text, "\n") {
		if i == maxLines {
			return lines, fmt.Sprintf("The text goes on for %d more lines.", strings.Count(text, "\n")+1-maxLines)
		}
		one := scenarioLine{Number: fmt.Sprint(i + 1), Mark: came[i+1], Text: clip(strings.TrimRight(line, "\r"), maxText)}
		switch bare := strings.TrimSpace(line); {
		case bare == "" || bare[0] == '#':
			one.Class, one.Mark = "comment", ""
		case one.Mark == "✗":
			one.Class = "failed"
		case one.Mark == "":
			one.Class, one.Mark = "waiting", "·"
		}
		lines = append(lines, one)
	}
	return lines, ""
}
