package scale

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Figures are what was found of one fleet.
type Figures struct {
	Nodes int
	Rows  []Figure
}

// Figure is one thing that was found: one value, or a usual and a worst one, of which Of says what they are.
type Figure struct {
	What         string
	Of           string // empty: there is one value
	Unit         unit
	Usual, Worst float64
}

func one(what string, u unit, value float64) Figure { return Figure{what, "", u, value, value} }

// unit is in what a figure is given.
type unit string

const (
	seconds        unit = "s"
	cpuSeconds     unit = "CPU s"
	bytes          unit = "B"
	kilobytes      unit = "kB"
	bytesPerSecond unit = "B/s"
	perSecond      unit = "/s"
	percent        unit = "% of a core"
	count          unit = ""
)

func (f Figure) title() string {
	in := strings.Trim(string(f.Unit)+"; "+f.Of, "; ")
	if in == "" {
		return f.What
	}
	return fmt.Sprintf("%s (%s)", f.What, in)
}

func (f Figure) text() string {
	if f.Of == "" {
		return figure(f.Worst)
	}
	return figure(f.Usual) + ", " + figure(f.Worst)
}

// figure gives as many digits as say something.
func figure(v float64) string {
	switch {
	case math.IsNaN(v):
		return "–" // not tried
	case v == 0:
		return "0"
	case math.Abs(v) < 1:
		return fmt.Sprintf("%.2f", v)
	case math.Abs(v) < 10:
		return fmt.Sprintf("%.1f", v)
	}
	whole := fmt.Sprintf("%.0f", v)
	if len(whole) <= 3 {
		return whole
	}
	var b strings.Builder
	for i, digit := range whole {
		if i > 0 && (len(whole)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteRune(digit)
	}
	return b.String()
}

// Markdown is a table of fleets, smallest first: a row for each figure, a column for each fleet, and how the figure grows between
// the largest two fleets that it was found of, as a power of the number of nodes.
func Markdown(fleets []Figures) string {
	var b strings.Builder
	b.WriteString("| nodes |")
	rule := "|---|"
	for _, f := range fleets {
		fmt.Fprintf(&b, " %s |", figure(float64(f.Nodes)))
		rule += "---|"
	}
	b.WriteString(" grows |\n" + rule + "---|\n")
	for i, row := range fleets[0].Rows {
		fmt.Fprintf(&b, "| %s |", row.title())
		for _, f := range fleets {
			if i < len(f.Rows) {
				fmt.Fprintf(&b, " %s |", f.Rows[i].text())
			} else {
				b.WriteString(" – |")
			}
		}
		fmt.Fprintf(&b, " %s |\n", growth(fleets, i))
	}
	return b.String()
}

func growth(fleets []Figures, row int) string {
	fleets = slices.DeleteFunc(slices.Clone(fleets), func(f Figures) bool { return row >= len(f.Rows) || !(f.Rows[row].Worst > 0) })
	if len(fleets) < 2 {
		return "–"
	}
	a, b := fleets[len(fleets)-2], fleets[len(fleets)-1]
	power := math.Log(b.Rows[row].Worst/a.Rows[row].Worst) / math.Log(float64(b.Nodes)/float64(a.Nodes))
	return fmt.Sprintf("n^%.1f", power)
}
