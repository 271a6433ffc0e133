package page

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"time"
)

const (
	leastWidth = 40 // columns of a table
	mostWidth  = 200
	maxTold    = 60 // rows of one table on a terminal
)

// Table writes the run as text of at most width columns, between 40 and 200; 0 is 80. Nothing in it moves a
// terminal's cursor, whatever the texts of the run hold. Its errors are those of w.
func (r Run) Table(w io.Writer, width int) error {
	if width == 0 {
		width = 80
	}
	width = max(leastWidth, min(width, mostWidth))
	r, left := r.bounded()
	list := changes(r)
	all := phases(r, list)
	p := printer{w: bufio.NewWriter(w), width: width}

	verdict := "PASSED"
	if !r.Passed {
		verdict = "FAILED"
	}
	p.line(verdict + "  " + strings.TrimSpace(r.Title))
	if !r.Passed && r.Fault != "" {
		p.wrapped("        ", r.Fault)
	}
	p.line("took " + show(r.Took, "") + prefixed(", on ", r.Testbed) + prefixed(", links by ", r.WAN))

	if len(r.Figures) > 0 {
		rows := [][]string{{"figure", "", "measured", "aim"}}
		for _, f := range r.Figures[:min(len(r.Figures), maxTold)] {
			sign := "✓"
			if f.Aim == "" {
				sign = ""
			} else if !f.OK {
				sign = "✗"
			}
			rows = append(rows, []string{f.Name, sign, strings.TrimSpace(digits(f.Value) + " " + f.Unit), f.Aim})
		}
		p.table("Figures", "l rl", rows, len(r.Figures)-maxTold)
	}
	if len(all) > 1 {
		p.line("")
		p.line("Changes")
		for _, c := range list[:min(len(list), maxTold)] {
			kind := "fault"
			if c.Mend {
				kind = "mend"
			}
			p.line(fmt.Sprintf("  %-3s %8s  %-5s  %s", c.Letter, clock(c.At), kind, c.Text))
		}
	}
	rows := [][]string{{"after", "series", "served by", "moved in", "failed", "dark"}}
	more := -maxTold
	for _, e := range effects(r, all) {
		if e.After == 0 && e.Failed == 0 {
			continue
		}
		if more++; more > 0 {
			continue
		}
		moved, by, dark := "", e.From, ""
		if e.After > 0 {
			moved = show(e.After, "")
		}
		if e.To != "" && e.To != e.From {
			by = strings.TrimSpace(e.From + " → " + e.To)
		}
		if e.Failed > 0 {
			dark = show(e.Dark, "")
			if e.Open {
				dark += "+"
			}
		}
		rows = append(rows, []string{e.Letters, e.Series, by, moved, fmt.Sprintf("%d/%d", e.Failed, e.Asked), dark})
	}
	if len(rows) > 1 {
		p.table("What they did", "lllrrr", rows, more)
	}
	if len(r.Series) > 0 {
		rows := [][]string{{"series", "asked", "failed", "p50", "p90", "p99", "slowest"}}
		names := pops(r)
		told := 0
		for _, s := range r.Series {
			for i, sum := range summaries(s, names) {
				if told++; told > maxTold {
					continue
				}
				name := s.Name
				if i > 0 {
					name = "  by " + sum.By
				}
				rows = append(rows, []string{name, fmt.Sprint(sum.N), fmt.Sprint(sum.Failed), show(sum.P50, s.Unit), show(sum.P90, s.Unit), show(sum.P99, s.Unit), show(sum.Max, s.Unit)})
			}
		}
		p.table("Time to answer", "lrrrrrr", rows, told-maxTold)
	}
	failed := [][]string{{"line", "at", "step", "what came of it"}}
	for _, s := range r.Steps {
		if s.Failed && len(failed) <= maxTold {
			failed = append(failed, []string{fmt.Sprint(s.Line), clock(s.At), s.Text, s.Result})
		}
	}
	if len(failed) > 1 {
		p.table("Steps that did not come true", "rrll", failed, 0)
	}
	if took := slowest(r); len(took) > 1 {
		p.table("Slowest steps", "rrl", took, 0)
	}
	for _, l := range left {
		p.line("left out: " + l)
	}
	if err := p.w.Flush(); err != nil {
		return fmt.Errorf("write the table: %w", err)
	}
	return nil
}

// slowest are the steps that were awaited the longest; those that only let time pass, or were to take it, are none.
func slowest(r Run) [][]string {
	const shown = 5
	rows := [][]string{{"line", "took", "step"}}
	var last time.Duration = 1 << 62
	for len(rows) <= shown {
		best := -1
		for i, s := range r.Steps {
			first := words(s.Text)[0]
			if s.Verb == "after" || s.Verb == "end" || first == "for" || first == "begin" || s.Took < 100*time.Millisecond || s.Took >= last {
				continue
			}
			if best < 0 || s.Took > r.Steps[best].Took {
				best = i
			}
		}
		if best < 0 {
			break
		}
		s := r.Steps[best]
		last = s.Took
		rows = append(rows, []string{fmt.Sprint(s.Line), show(s.Took, ""), wish(s.Text)})
	}
	return rows
}

func prefixed(before, s string) string {
	if s == "" {
		return ""
	}
	return before + s
}

// printer writes lines of at most so many columns.
type printer struct {
	w     *bufio.Writer
	width int
}

func (p printer) line(s string) {
	p.w.WriteString(strings.TrimRight(cell(s, p.width), " "))
	p.w.WriteByte('\n')
}

// maxWrapped bounds the lines of a text that is wrapped.
const maxWrapped = 12

func (p printer) wrapped(indent, s string) {
	line, lines := indent, 0
	for _, word := range strings.Fields(clip(s, maxText)) {
		if line != indent && columns(line)+1+columns(word) > p.width {
			p.line(line)
			line = indent
			if lines++; lines == maxWrapped {
				p.line(indent + "…")
				return
			}
		}
		if line != indent {
			line += " "
		}
		line += word
	}
	p.line(line)
}

// table writes rows under a heading, the first of them the names of the columns. how is l or r for each column. Where
// they are wider than the page, the widest columns give way.
func (p printer) table(heading, how string, rows [][]string, more int) {
	const between = 2
	p.w.WriteByte('\n')
	p.line(heading)
	wide := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, s := range row {
			wide[i] = max(wide[i], min(columns(clip(s, mostWidth)), mostWidth))
		}
	}
	for {
		sum, widest := between*len(wide), 0
		for i, w := range wide {
			sum += w
			if w > wide[widest] {
				widest = i
			}
		}
		if sum <= p.width || wide[widest] <= 3 {
			break
		}
		wide[widest]--
	}
	for _, row := range rows {
		var b strings.Builder
		for i, s := range row {
			s = cell(s, wide[i])
			pad := strings.Repeat(" ", max(0, wide[i]-columns(s)))
			b.WriteString("  ")
			if how[i] == 'r' {
				b.WriteString(pad + s)
			} else {
				b.WriteString(s + pad)
			}
		}
		p.line(b.String())
	}
	if more > 0 {
		p.line(fmt.Sprintf("  … and %d more", more))
	}
}

// cell is a text of at most so many columns, without anything that moves a cursor or turns the direction of writing.
func cell(s string, most int) string {
	s = clip(s, maxText)
	s = strings.Map(func(r rune) rune {
		if r >= 0x200b && r <= 0x200f || r >= 0x202a && r <= 0x202e || r >= 0x2060 && r <= 0x206f || r == 0xfeff {
			return -1
		}
		return r
	}, s)
	if columns(s) <= most {
		return s
	}
	var b strings.Builder
	used := 0
	for _, r := range s {
		if used += columns(string(r)); used > most-1 {
			break
		}
		b.WriteRune(r)
	}
	return b.String() + "…"
}

// columns is how many columns of a terminal a text takes: two for the wide letters of East Asia, none for marks that
// combine.
func columns(s string) int {
	sum := 0
	for _, r := range s {
		switch {
		case r >= 0x300 && r <= 0x36f:
		case r >= 0x1100 && r <= 0x115f, r >= 0x2e80 && r <= 0xa4cf, r >= 0xac00 && r <= 0xd7a3, r >= 0xf900 && r <= 0xfaff,
			r >= 0xfe30 && r <= 0xfe6f, r >= 0xff00 && r <= 0xff60, r >= 0xffe0 && r <= 0xffe6, r >= 0x1f300 && r <= 0x1faff, r >= 0x20000 && r <= 0x3fffd:
			sum += 2
		default:
			sum++
		}
	}
	return sum
}
