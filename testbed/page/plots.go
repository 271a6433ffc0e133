package page

import (
	"fmt"
	"html/template"
	"strings"
	"time"
)

const (
	maxRows   = 48 // of the glance: nodes and series
	maxNodes  = 20 // of them nodes
	marksWide = 1500
	marksNear = 700 // on a narrow drawing
)

// glance is the whole run over time: what was changed, what the nodes said, and who served each series.
func glance(r Run, list []change, pop map[string]int) template.HTML {
	return both(func(drawn float64) *drawing {
		small := drawn == narrow
		a := axis{x0: 150, w: drawn - 150 - 14, end: r.end()}
		row, high := 30.0, 20.0
		if small {
			a.x0, a.w = 4, drawn-8
			row, high = 40, 18
		}
		nodes := nodesOf(r)
		rows := len(nodes) + len(rowsOf(r))
		top := 8 + 19*float64(a.levels(list, drawn)) + 2
		d := newDrawing(drawn, top+row*float64(rows)+26, "plot", "Over time: the changes, what the nodes said, and who served whom")
		a.ticks(d, top, top+row*float64(rows))
		y := top
		name := func(s, class string) (barY float64) {
			barY = y + (row-high)/2
			if small {
				barY = y + row - high - 4
				d.text("row halo "+class, "start", a.x0, barY-4, fit(s, 11.5, drawn-16))
			} else {
				d.text("row "+class, "end", a.x0-10, y+row/2+4, fit(s, 12.5, 136))
			}
			y += row
			return barY
		}
		for _, node := range nodes {
			at := name(node+" said", "soft")
			d.line("rail", a.x0, at+high/2, a.x0+a.w, at+high/2)
			shown := map[int]bool{} // by place: two events that fall on one are one mark
			for _, e := range r.Events {
				x := a.x(e.At)
				if e.Node != node || shown[int(x*2)] {
					continue
				}
				shown[int(x*2)] = true
				d.add(`<path class="said" d="M%s %sl4 5-4 5-4-5z"><title>%s</title></path>`, n(x), n(at+high/2-5), escape(clock(e.At)+" "+node+": "+clip(e.Text, 160)))
			}
		}
		for _, s := range rowsOf(r) {
			d.ribbon(a, s, name(s.Name, ""), high, pop)
		}
		a.marks(d, list, top, top+row*float64(rows))
		return d
	})
}

// nodesOf are the nodes that said something, those that spoke first before.
func nodesOf(r Run) []string {
	var list []string
	seen := map[string]bool{}
	for _, e := range r.Events {
		if !seen[e.Node] && len(list) < maxNodes {
			seen[e.Node] = true
			list = append(list, e.Node)
		}
	}
	return list
}

// rowsOf are the series that the glance has rows for.
func rowsOf(r Run) []Series {
	var list []Series
	for _, s := range r.Series {
		if len(s.Samples) > 0 && len(list) < maxRows-len(nodesOf(r)) {
			list = append(list, s)
		}
	}
	return list
}

// ribbon draws who served a series: the colour and the name of the POP, hatched red where there was no good answer. It
// is made of columns two units wide; in one with good and bad answers the lower part is hatched.
func (d *drawing) ribbon(a axis, s Series, y, high float64, pop map[string]int) {
	const column = 2.0
	type cell struct {
		by        string
		good, bad int
		until     int // the column in which its last answer came
	}
	cells := make([]cell, int(a.w/column)+1)
	count := make([]map[string]int, len(cells))
	for _, p := range s.Samples {
		i := min(int((a.x(p.At)-a.x0)/column), len(cells)-1)
		cells[i].until = max(cells[i].until, int((a.x(p.At+p.Took)-a.x0)/column))
		if !p.OK {
			cells[i].bad++
			continue
		}
		cells[i].good++
		if count[i] == nil {
			count[i] = map[string]int{}
		}
		count[i][p.By]++
		if c := count[i]; cells[i].by == "" || c[p.By] > c[cells[i].by] {
			cells[i].by = p.By
		}
	}
	gap := silence(s, a, column)
	// What a column shows holds until the next that has samples, but not over a silence.
	type run struct {
		from, to  int
		by        string
		good, bad bool
	}
	var runs []run
	last := -1
	for i, c := range cells {
		if c.good+c.bad == 0 {
			continue
		}
		if k := len(runs) - 1; k >= 0 {
			runs[k].to = min(i, max(last+1+gap, cells[last].until))
		}
		next := run{i, i + 1, c.by, c.good > 0, c.bad > 0}
		if k := len(runs) - 1; k >= 0 && runs[k].to == i && runs[k].by == next.by && runs[k].good == next.good && runs[k].bad == next.bad {
			runs[k].to = i + 1
		} else {
			runs = append(runs, next)
		}
		last = i
	}
	if k := len(runs) - 1; k >= 0 {
		runs[k].to = max(runs[k].to, min(len(cells), cells[last].until))
	}
	d.rect("rest", a.x0, y, a.w, high, "")
	for _, u := range runs {
		x, w := a.x0+column*float64(u.from), column*float64(u.to-u.from)
		w = min(w, a.x0+a.w-x)
		if u.good {
			d.rect("fill "+hue(index(pop, u.by)), x, y, w, high, s.Name+": "+told(u.by, false, true))
		}
		switch {
		case !u.good:
			d.rect("hatch", x, y, w, high, s.Name+": no good answer")
		case u.bad:
			d.rect("hatch", x, y+high*0.6, w, high*0.4, s.Name+": some of the answers failed")
		}
	}
	// Names go over stretches of one POP, whatever failed within them.
	for i := 0; i < len(runs); {
		k := i
		for k+1 < len(runs) && runs[k+1].good && runs[k+1].by == runs[i].by && runs[k+1].from == runs[k].to && !runs[k+1].bad {
			k++
		}
		w := column * float64(runs[k].to-runs[i].from)
		if by := fit(runs[i].by, 11.5, w-8); by != "" && runs[i].good && !runs[i].bad {
			d.text("on", "start", a.x0+column*float64(runs[i].from)+5, y+high/2+4, by)
		}
		i = k + 1
	}
}

// silence is after how many columns without a sample a ribbon ends: three times the usual distance.
func silence(s Series, a axis, column float64) int {
	if len(s.Samples) < 2 {
		return 1
	}
	var gaps []time.Duration
	for i := 1; i < len(s.Samples); i++ {
		gaps = append(gaps, s.Samples[i].At-s.Samples[i-1].At)
	}
	usual := percentileOf(gaps, 90)
	return max(1, int(3*float64(usual)/float64(a.end)*a.w/column))
}

// latency draws a series over time, by POP, and the failures above it.
func latency(r Run, s Series, list []change, pop map[string]int) template.HTML {
	return both(func(drawn float64) *drawing {
		high, left, budget := 250.0, 58.0, marksWide
		if drawn == wide {
			drawn = 700
		} else {
			high, left, budget = 230, 46, marksNear
		}
		a := axis{x0: left, w: drawn - left - 10, end: r.end()}
		top := 8 + 19*float64(a.levels(list, drawn)) + 2
		d := newDrawing(drawn, top+22+high+26, "plot live", s.Name+": time to answer over the run")
		plot := top + 22
		scale := newLogScale(s.Samples, plot+high-4, plot+4)
		d.extra = fmt.Sprintf(`data-x0="%s" data-w="%s" data-end="%d"`, n(a.x0), n(a.w), a.end)
		d.rect("lane", a.x0, top, a.w, 18, "")
		d.text("tick", "end", left-6, top+13, "failed")
		for _, v := range scale.ticks() {
			y := scale.ms(v)
			d.line("grid", a.x0, y, a.x0+a.w, y)
			d.text("tick", "end", left-6, y+4, show(time.Duration(v*1e6+0.5), s.Unit))
		}
		a.ticks(d, plot, plot+high)
		a.marks(d, list, top, plot+high)
		paths := map[int]*strings.Builder{}
		var failed strings.Builder
		for _, p := range thin(s.Samples, budget) {
			x := a.x(p.At)
			if !p.OK {
				fmt.Fprintf(&failed, "M%s %sl6 6m0-6l-6 6", n(x-3), n(top+6))
				continue
			}
			k := index(pop, p.By)
			if paths[k] == nil {
				paths[k] = &strings.Builder{}
			}
			paths[k].WriteString(glyph(max(k, 0), x, scale.at(p.Took), 2.1))
		}
		for k := -1; k < len(pop); k++ {
			if paths[k] != nil {
				class := glyphClass(k)
				if k < 0 {
					class = "dot px"
				}
				d.add(`<path class="%s" d="%s"/>`, class, paths[k])
			}
		}
		if failed.Len() > 0 {
			d.add(`<path class="lost" d="%s"/>`, failed.String())
		}
		return d
	})
}

// distribution draws which share was answered in how much time: all that was asked, and each POP's part of it.
func distribution(s Series, pop map[string]int, order []string) template.HTML {
	const drawn, high, left = narrow, 250.0, 40.0
	d := newDrawing(drawn, high+30+26, "plot", s.Name+": which share was answered in how much time")
	top := 30.0
	scale := newLogScale(s.Samples, left+2, drawn-12)
	y := func(share float64) float64 { return top + high*(1-share) }
	for _, share := range []float64{0, 0.25, 0.5, 0.75, 0.9, 0.99} {
		d.line("grid", left, y(share), drawn-10, y(share))
		if share != 0.99 {
			d.text("tick", "end", left-5, y(share)+4, fmt.Sprintf("%g %%", share*100))
		}
	}
	d.text("tick", "end", left-5, y(0.99)+1, "99 %")
	free := -1.0
	for _, v := range scale.ticks() {
		x := scale.ms(v)
		d.line("grid", x, top, x, top+high)
		text := show(time.Duration(v*1e6+0.5), s.Unit)
		if half := width(text, 11) / 2; x-half > free && x+half < drawn {
			d.text("tick", "middle", x, top+high+15, text)
			free = x + half + 4
		}
	}
	d.line("axis", left, top+high, drawn-10, top+high)
	one := func(by, class string, of int, dashes string) {
		var took []time.Duration
		for _, p := range s.Samples {
			if p.OK && (by == "" || p.By == by) {
				took = append(took, p.Took)
			}
		}
		if len(took) == 0 {
			return
		}
		d.add(`<path class="%s"`, class)
		if dashes != "" {
			d.add(` stroke-dasharray="%s"`, dashes)
		}
		d.add(` d="%s"/>`, steps(sorted(took), of, scale, y))
	}
	shown := 0
	for _, by := range order {
		if shown == 8 {
			break
		}
		if sum := summary(s.Samples, by); sum.N > sum.Failed && sum.N < len(s.Samples) {
			one(by, "curve "+hue(index(pop, by)), sum.N, dash(index(pop, by)))
			shown++
		}
	}
	one("", "curve whole", len(s.Samples), "")
	return d.String()
}

// steps is the path of an empirical distribution: at each height the time within which that share of all was answered.
func steps(sorted []time.Duration, of int, scale logScale, y func(float64) float64) string {
	var b strings.Builder
	lastX := scale.at(sorted[0])
	fmt.Fprintf(&b, "M%s %s", n(lastX), n(y(0)))
	for i, t := range sorted {
		x := scale.at(t)
		if x-lastX < 1 && i < len(sorted)-1 {
			continue // finer than a drawing shows
		}
		fmt.Fprintf(&b, "H%sV%s", n(x), n(y(float64(i+1)/float64(of))))
		lastX = x
	}
	return b.String()
}
