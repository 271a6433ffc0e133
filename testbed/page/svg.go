package page

import (
	"fmt"
	"html/template"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Every drawing that holds text is made twice, for a wide page and for a narrow one, since text that shrinks with
// its drawing cannot be read on a telephone. The style sheet shows one of the two.
const (
	wide   = 1080.0
	narrow = 360.0
)

// drawing is an SVG in the making. Everything that is a text goes through escape.
type drawing struct {
	b      strings.Builder
	w, h   float64
	class  string
	title  string // what it shows, for those who cannot see it
	extra  string // attributes
	labels []box  // where texts and marks are, for labels that come later
	lines  []spot // points of lines, which labels had better not cover
}

func newDrawing(w, h float64, class, title string) *drawing {
	return &drawing{w: w, h: h, class: class, title: title}
}

func escape(s string) string { return template.HTMLEscapeString(s) }

// n is a number of a drawing: a tenth is as fine as anyone sees.
func n(v float64) string {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		v = 0
	}
	return strconv.FormatFloat(math.Round(v*10)/10, 'f', -1, 64)
}

func (d *drawing) add(format string, a ...any) { fmt.Fprintf(&d.b, format, a...) }

func (d *drawing) line(class string, x1, y1, x2, y2 float64) {
	d.add(`<path class="%s" d="M%s %sL%s %s"/>`, class, n(x1), n(y1), n(x2), n(y2))
}

func (d *drawing) rect(class string, x, y, w, h float64, title string) {
	d.add(`<rect class="%s" x="%s" y="%s" width="%s" height="%s"`, class, n(x), n(y), n(max(0, w)), n(max(0, h)))
	if title == "" {
		d.add(`/>`)
		return
	}
	d.add(`><title>%s</title></rect>`, escape(title))
}

// text writes s with its baseline at y; anchor is start, middle or end.
func (d *drawing) text(class, anchor string, x, y float64, s string) {
	d.add(`<text class="%s"`, class)
	if anchor != "start" {
		d.add(` text-anchor="%s"`, anchor)
	}
	d.add(` x="%s" y="%s">%s</text>`, n(x), n(y), escape(s))
}

// flag is the letter of a change in a disc, or a ring where the change mended.
func (d *drawing) flag(x, y float64, c change) {
	kind := "fault"
	if c.Mend {
		kind = "mend"
	}
	d.add(`<g class="flag %s"><title>%s</title><circle cx="%s" cy="%s" r="8.5"/>`,
		kind, escape(c.Letter+": "+clip(c.Text, 200)+", "+clock(c.At)), n(x), n(y))
	d.text("", "middle", x, y+3.7, c.Letter)
	d.add(`</g>`)
}

func (d *drawing) String() template.HTML {
	return template.HTML(fmt.Sprintf(`<svg class="%s" viewBox="0 0 %s %s" role="img" %s><title>%s</title>%s</svg>`,
		d.class, n(d.w), n(d.h), d.extra, escape(d.title), d.b.String()))
}

// both draws for the wide page and for the narrow one.
func both(draw func(w float64) *drawing) template.HTML {
	w, s := draw(wide), draw(narrow)
	w.class += " wide"
	s.class += " narrow"
	return w.String() + s.String()
}

// glyph is the mark of the i-th POP around a point, as a path: it differs by shape as well as by colour. Circles are a
// line of no length with a round cap, which is short.
func glyph(i int, x, y, r float64) string {
	switch i % 6 {
	case 0:
		return "M" + n(x) + " " + n(y) + "h0"
	case 1:
		return fmt.Sprintf("M%s %sh%sv%sh%sz", n(x-0.9*r), n(y-0.9*r), n(1.8*r), n(1.8*r), n(-1.8*r))
	case 2:
		return fmt.Sprintf("M%s %sl%s %sh%sz", n(x), n(y-1.2*r), n(1.2*r), n(2.1*r), n(-2.4*r))
	case 3:
		return fmt.Sprintf("M%s %sl%s %s %s %s %s %sz", n(x), n(y-1.3*r), n(1.3*r), n(1.3*r), n(-1.3*r), n(1.3*r), n(-1.3*r), n(-1.3*r))
	case 4:
		return fmt.Sprintf("M%s %sl%s %sh%sz", n(x), n(y+1.2*r), n(-1.2*r), n(-2.1*r), n(2.4*r))
	}
	a, b := 0.5*r, 1.3*r // a cross
	return fmt.Sprintf("M%s %sh%sv%sh%sv%sh%sv%sh%sv%sh%sv%sh%sv%sz", n(x-a), n(y-b), n(2*a), n(b-a), n(b-a), n(2*a), n(a-b), n(b-a),
		n(-2*a), n(a-b), n(a-b), n(-2*a), n(b-a), n(a-b))
}

// glyphClass is how the i-th POP's mark is drawn: its colour, and as a cap or filled.
func glyphClass(i int) string {
	if i%6 == 0 {
		return "dot " + hue(i)
	}
	return "fil " + hue(i)
}

// hue is the class with the i-th POP's colour; −1: those who are not told apart.
func hue(i int) string {
	if i < 0 || i >= maxPOPs {
		return "px"
	}
	return "p" + strconv.Itoa(i%8)
}

// dash is the pattern of the i-th POP's lines.
func dash(i int) string {
	return [...]string{"", "7 3", "2 3", "9 3 2 3", "4 2", "12 4", "1 2", "6 2 1 2 1 2"}[max(0, i)%8]
}

// box is a place that is taken.
type box struct{ x, y, w, h float64 }

func (a box) overlap(b box) float64 {
	w := min(a.x+a.w, b.x+b.w) - max(a.x, b.x)
	h := min(a.y+a.h, b.y+b.h) - max(a.y, b.y)
	if w <= 0 || h <= 0 {
		return 0
	}
	return w * h
}

// width is about how wide a text is at a size, on the large side: no font is known here.
func width(s string, size float64) float64 {
	em := 0.0
	for _, r := range s {
		switch {
		case strings.ContainsRune("iljtfrI.,:;'|!()[] ", r):
			em += 0.36
		case strings.ContainsRune("mwMW@%", r):
			em += 0.95
		case r >= 'A' && r <= 'Z':
			em += 0.72
		case r < 0x2e80:
			em += 0.6
		default:
			em += 1.05
		}
	}
	return em * size
}

// fit is the text, cut to a width; nothing if not even three letters fit.
func fit(s string, size, most float64) string {
	if width(s, size) <= most {
		return s
	}
	for k := utf8.RuneCountInString(s) - 1; k >= 3; k-- {
		if short := clip(s, k); width(short, size) <= most {
			return short
		}
	}
	return ""
}

// axis is the time axis of a drawing: from x0 on, so wide, until end.
type axis struct {
	x0, w float64
	end   time.Duration
}

func (a axis) x(t time.Duration) float64 {
	return a.x0 + a.w*float64(max(0, min(t, a.end)))/float64(a.end)
}

// ticks draws the axis with its grid between two heights; the numbers stand under the lower.
func (a axis) ticks(d *drawing, top, bottom float64) {
	step := tickStep(a.end, a.w/70)
	for t := time.Duration(0); t <= a.end; t += step {
		d.line("grid", a.x(t), top, a.x(t), bottom)
		anchor, s := "middle", tick(t)
		switch half := width(s, 11) / 2; {
		case a.x(t)+half > d.w:
			anchor = "end"
		case a.x(t)-half < 0:
			anchor = "start"
		}
		d.text("tick", anchor, a.x(t), bottom+15, s)
	}
	d.line("axis", a.x0, bottom, a.x0+a.w, bottom)
}

// tickStep is the round step that makes at most so many ticks.
func tickStep(end time.Duration, most float64) time.Duration {
	most = max(most, 2)
	for unit := time.Millisecond; unit < time.Second; unit *= 10 {
		for _, k := range []time.Duration{1, 2, 5} {
			if float64(end/(k*unit)) <= most {
				return k * unit
			}
		}
	}
	for _, s := range []time.Duration{1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 4 * 3600, 12 * 3600, 24 * 3600} {
		if float64(end/(s*time.Second)) <= most {
			return s * time.Second
		}
	}
	return max(end/2, 1)
}

func tick(t time.Duration) string {
	switch {
	case t == 0:
		return "0"
	case t < time.Second:
		return strconv.FormatFloat(float64(t)/1e6, 'f', -1, 64) + " ms"
	case t%time.Minute != 0 && t < time.Minute || t < time.Minute:
		return strconv.FormatFloat(t.Seconds(), 'f', -1, 64) + " s"
	case t < time.Hour:
		return fmt.Sprintf("%d:%02d", t/time.Minute, t%time.Minute/time.Second)
	}
	return fmt.Sprintf("%dh%02d", t/time.Hour, t%time.Hour/time.Minute)
}

// marks draws the changes: a line each from top to bottom, and their letters above it, on so many levels as they need.
// It returns how high the letters stand.
func (a axis) marks(d *drawing, list []change, top, bottom float64) {
	for _, c := range list {
		class := "cut"
		if c.Mend {
			class = "mended"
		}
		d.line("under", a.x(c.At), top, a.x(c.At), bottom)
		d.line(class, a.x(c.At), top, a.x(c.At), bottom)
	}
	var taken [3]float64
	for i := range taken {
		taken[i] = -100
	}
	for _, c := range list {
		x := max(9, min(a.x(c.At), d.w-9))
		for level := range taken {
			if x-taken[level] >= 19 {
				taken[level] = x
				d.flag(x, top-10-19*float64(level), c)
				break
			}
		}
	}
}

// levels is how many levels the letters of changes need on an axis, 1 to 3.
func (a axis) levels(list []change, w float64) int {
	taken := [3]float64{-100, -100, -100}
	most := 1
	for _, c := range list {
		x := max(9, min(a.x(c.At), w-9))
		for level := range taken {
			if x-taken[level] >= 19 {
				taken[level] = x
				most = max(most, level+1)
				break
			}
		}
	}
	return most
}

// logScale puts durations on a logarithmic scale between two round ones.
type logScale struct {
	low, high float64 // in ms
	a, b      float64 // where they lie
}

func newLogScale(samples []Sample, a, b float64) logScale {
	low, high := math.Inf(1), math.Inf(-1)
	for _, s := range samples {
		if s.OK {
			ms := max(float64(s.Took)/1e6, 0.001)
			low, high = min(low, ms), max(high, ms)
		}
	}
	if math.IsInf(low, 1) {
		low, high = 1, 100
	}
	low, high = roundDown(low*0.97), roundUp(high*1.03)
	return logScale{low: low, high: high, a: a, b: b}
}

func (l logScale) at(d time.Duration) float64 { return l.ms(max(float64(d)/1e6, 0.001)) }

func (l logScale) ms(v float64) float64 {
	v = max(l.low, min(v, l.high))
	return l.a + (l.b-l.a)*math.Log(v/l.low)/math.Log(l.high/l.low)
}

// ticks are the round values from low to high, the fewer the longer the scale is.
func (l logScale) ticks() []float64 {
	var list []float64
	round := []float64{1}
	switch ratio := l.high / l.low; {
	case ratio <= 3.1:
		round = []float64{1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9}
	case ratio <= 12:
		round = []float64{1, 1.5, 2, 3, 5, 7}
	case ratio <= 300:
		round = []float64{1, 2, 5}
	}
	for p := -3; p <= 8; p++ {
		for _, k := range round {
			if v := k * math.Pow(10, float64(p)); v >= l.low*0.999 && v <= l.high*1.001 {
				list = append(list, v)
			}
		}
	}
	return list
}

func roundDown(v float64) float64 {
	p := math.Pow(10, math.Floor(math.Log10(v)))
	for _, k := range []float64{7, 5, 3, 2, 1.5, 1} {
		if k*p <= v*1.0001 {
			return k * p
		}
	}
	return p
}

func roundUp(v float64) float64 {
	p := math.Pow(10, math.Floor(math.Log10(v)))
	for _, k := range []float64{1, 1.5, 2, 3, 5, 7, 10} {
		if k*p >= v*0.9999 {
			return k * p
		}
	}
	return 10 * p
}
