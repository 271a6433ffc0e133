package spec

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// maxFaults bounds how many faults are told at once; beyond it they are only counted.
const maxFaults = 100

// Fault is one thing that is wrong with what an operator wrote, and where.
type Fault struct {
	File    string `json:"file,omitempty"`
	Line    int    `json:"line,omitempty"` // from 1; 0: the file as a whole
	Kind    string `json:"kind,omitempty"`
	Name    string `json:"name,omitempty"`
	Field   string `json:"field,omitempty"` // listeners[0].default.forward
	Message string `json:"message"`
}

// String is the fault on one line: network.yaml:14: LoadBalancer web: listeners[0].port: must be 1–65535, not 0.
func (f Fault) String() string {
	var b strings.Builder
	if f.File != "" {
		b.WriteString(f.File)
		if f.Line > 0 {
			b.WriteString(":" + strconv.Itoa(f.Line))
		}
		b.WriteString(": ")
	} else if f.Line > 0 {
		fmt.Fprintf(&b, "line %d: ", f.Line)
	}
	if f.Kind != "" {
		b.WriteString(strings.TrimSpace(f.Kind+" "+f.Name) + ": ")
	}
	if f.Field != "" {
		b.WriteString(f.Field + ": ")
	}
	b.WriteString(f.Message)
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return unicode.ReplacementChar // names may hold anything, and the fault is one line
		}
		return r
	}, b.String())
}

// Faults is all that is wrong, in the order of the documents and their lines. It is never empty as an error.
// Where there are very many, the last one only says how many more there are.
type Faults []Fault

// Error is one fault a line.
func (f Faults) Error() string {
	lines := make([]string, len(f))
	for i, fault := range f {
		lines[i] = fault.String()
	}
	return strings.Join(lines, "\n")
}

// gathered is the faults found so far. The document's index orders them.
type gathered struct {
	faults []located
	more   int
}

type located struct {
	document int
	Fault
}

func (g *gathered) add(document int, f Fault) {
	if g.full() {
		g.more++
		return
	}
	g.faults = append(g.faults, located{document, f})
}

// full says that a further fault will only be counted, so that nothing need be done to word it well.
func (g *gathered) full() bool { return len(g.faults) == maxFaults }

// err is nil or Faults.
func (g *gathered) err() error {
	if len(g.faults) == 0 {
		return nil
	}
	slices.SortStableFunc(g.faults, func(a, b located) int {
		if a.document != b.document {
			return a.document - b.document
		}
		return a.Line - b.Line
	})
	faults := make(Faults, 0, len(g.faults)+1)
	for _, f := range g.faults {
		faults = append(faults, f.Fault)
	}
	if g.more > 0 {
		faults = append(faults, Fault{Message: fmt.Sprintf("and %d more", g.more)})
	}
	return faults
}

// near is the candidate that a mistyped word most likely means, worded for the end of a message, or "".
func near(word string, candidates []string) string {
	if guess, ok := nearest(word, candidates); ok {
		return fmt.Sprintf(" (did you mean %q?)", guess)
	}
	return ""
}

// nearest is the candidate at the least distance from the word, of several the first in the alphabet. One that differs
// by more than a third of the word is not near; one that differs in case alone always is.
func nearest(word string, candidates []string) (guess string, ok bool) {
	limit := (len(word) + 2) / 3
	least := limit + 1
	for _, c := range candidates {
		if max(len(word), len(c)) > maxCompared || len(c)-len(word) > limit || len(word)-len(c) > limit {
			continue
		}
		d := distance(word, c)
		if strings.EqualFold(word, c) {
			d = 0
		}
		if d < least || d == least && ok && c < guess {
			guess, least, ok = c, d, true
		}
	}
	return guess, ok
}

// maxCompared is how long words can be that are compared for nearness; longer ones are near nothing.
const maxCompared = 64

// distance counts the letters to insert, delete, replace or swap with their neighbour to turn a into b.
func distance(a, b string) int {
	var rows [3][maxCompared + 1]int
	before, last, now := rows[0][:], rows[1][:], rows[2][:]
	for j := range len(b) + 1 {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		now[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			now[j] = min(last[j]+1, now[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				now[j] = min(now[j], before[j-2]+1)
			}
		}
		before, last, now = last, now, before
	}
	return last[len(b)]
}
