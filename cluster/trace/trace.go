// Package trace records why a decision came out as it did. A pure decision takes a *Trace: the data path
// passes nil, which records nothing; explain passes one and prints its lines. So what is explained is
// what is served. It is not logging, and nothing decides by it.
package trace

import (
	"fmt"
	"strings"
)

// Trace is the reasons of one decision, in the order in which they were weighed. All methods do nothing on nil;
// a hot path asks On first, so that nothing is formatted in vain.
type Trace struct {
	lines []Line
	depth int
}

// Line is one reason; Depth is how far it is nested below the question it answers.
type Line struct {
	Depth int    `json:"depth"`
	Text  string `json:"text"`
}

// On says whether anyone listens.
func (t *Trace) On() bool { return t != nil }

// Add records a reason.
func (t *Trace) Add(format string, args ...any) {
	if t == nil {
		return
	}
	t.lines = append(t.lines, Line{Depth: t.depth, Text: fmt.Sprintf(format, args...)})
}

// In records a question and nests what follows below it, until the function it returns is called.
func (t *Trace) In(format string, args ...any) (out func()) {
	if t == nil {
		return func() {}
	}
	t.Add(format, args...)
	t.depth++
	return func() { t.depth-- }
}

// Take adds the reasons of a decision that was recorded elsewhere, below the question at hand.
func (t *Trace) Take(lines []Line) {
	if t == nil {
		return
	}
	for _, l := range lines {
		t.lines = append(t.lines, Line{Depth: t.depth + l.Depth, Text: l.Text})
	}
}

// Lines returns the reasons recorded so far.
func (t *Trace) Lines() []Line {
	if t == nil {
		return nil
	}
	return t.lines
}

// String is the reasons as text, two spaces a level.
func (t *Trace) String() string {
	var b strings.Builder
	for _, l := range t.Lines() {
		fmt.Fprintf(&b, "%s%s\n", strings.Repeat("  ", l.Depth), l.Text)
	}
	return b.String()
}
