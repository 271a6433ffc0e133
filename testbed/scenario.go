// Package testbed runs whole networks. A World is one in virtual time: nodes, targets and clients on an
// in-memory internet, inside a testing/synctest bubble. A Scenario is a file a user can read that drives a
// network and says what must be seen. It is for tests and laboratories; nothing of the product depends on it.
package testbed

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Scenario is a list of steps to be taken in order. As text, a line a step; # begins a comment:
//
//	get seoul http://www.demo.perigee.test/     => 200 Miss icn1
//	kill icn1
//	within 10s dig seoul www.demo.perigee.test A => fra1
//	after 1m
//
// A step is a verb, its arguments, and after => what its result must contain: each word on its own, or, after
// an exclamation mark, must not. Double quotes keep words together. "within D" takes the step again and again
// until it comes true, at most for that long.
type Scenario struct {
	Name  string
	Steps []Step
}

// Step is one line of a scenario.
type Step struct {
	Line   int
	Text   string // as written
	Verb   string
	Args   []string
	Want   []string // "!word" must not be there
	Within time.Duration
}

// Ground is what a scenario runs on: a World, or a laboratory on a real kernel.
type Ground interface {
	// Do takes one step and says in words what came of it: "200 Hit icn1 age=3". An error is a step that
	// could not be taken at all, such as an unknown verb; a refused connection is a result.
	Do(ctx context.Context, verb string, args []string) (result string, err error)
	// Sleep lets time pass.
	Sleep(d time.Duration)
}

// maxSteps bounds a scenario.
const maxSteps = 10_000

// ParseScenario reads a scenario; faults are named by file and line.
func ParseScenario(name, text string) (Scenario, error) {
	s := Scenario{Name: name}
	for i, line := range strings.Split(text, "\n") {
		step, err := parseStep(line)
		if err != nil {
			return Scenario{}, fmt.Errorf("%s:%d: %w", name, i+1, err)
		}
		if step.Verb == "" {
			continue
		}
		if len(s.Steps) == maxSteps {
			return Scenario{}, fmt.Errorf("%s:%d: more than %d steps", name, i+1, maxSteps)
		}
		step.Line = i + 1
		s.Steps = append(s.Steps, step)
	}
	return s, nil
}

func parseStep(line string) (Step, error) {
	words, err := split(line)
	if err != nil || len(words) == 0 {
		return Step{}, err
	}
	step := Step{Text: strings.TrimSpace(line)}
	if at := slices.Index(words, "=>"); at >= 0 {
		step.Want = words[at+1:]
		words = words[:at]
		if len(step.Want) == 0 {
			return Step{}, fmt.Errorf("nothing is wanted after =>")
		}
	}
	if len(words) > 0 && words[0] == "within" {
		if len(words) < 3 || len(step.Want) == 0 {
			return Step{}, fmt.Errorf("within wants a duration, a step, and what must come true after =>")
		}
		if step.Within, err = time.ParseDuration(words[1]); err != nil || step.Within <= 0 {
			return Step{}, fmt.Errorf("within %s: not a duration above zero", words[1])
		}
		words = words[2:]
	}
	if len(words) == 0 {
		return Step{}, fmt.Errorf("a step begins with a verb")
	}
	step.Verb, step.Args = words[0], words[1:]
	return step, nil
}

// split cuts a line into words; double quotes keep spaces, # outside quotes ends the line.
func split(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	inWord, quoted := false, false
	end := func() {
		if inWord {
			words = append(words, word.String())
			word.Reset()
			inWord = false
		}
	}
	for _, r := range line {
		switch {
		case r == '"':
			quoted, inWord = !quoted, true
		case quoted:
			word.WriteRune(r)
		case r == '#' && !inWord:
			end()
			return words, nil
		case r == ' ' || r == '\t' || r == '\r':
			end()
		default:
			word.WriteRune(r)
			inWord = true
		}
	}
	if quoted {
		return nil, fmt.Errorf("a quote is not closed")
	}
	end()
	return words, nil
}

// again is how often a step under "within" is taken.
const again = 100 * time.Millisecond

// Outcome is what came of one step.
type Outcome struct {
	Step   Step
	Result string
	Took   time.Duration // until it came true, for a step under "within"
}

// Run takes the steps in order and stops at the first that does not come true. It tells after each step what came of it.
func (s Scenario) Run(ctx context.Context, g Ground, tell func(Outcome)) error {
	for _, step := range s.Steps {
		result, took, err := step.take(ctx, g)
		if err != nil {
			return fmt.Errorf("%s:%d: %s\n\t%w", s.Name, step.Line, step.Text, err)
		}
		if tell != nil {
			tell(Outcome{Step: step, Result: result, Took: took})
		}
	}
	return nil
}

func (s Step) take(ctx context.Context, g Ground) (result string, took time.Duration, err error) {
	if s.Verb == "after" {
		if len(s.Args) != 1 {
			return "", 0, fmt.Errorf("after wants one duration")
		}
		d, err := time.ParseDuration(s.Args[0])
		if err != nil || d <= 0 {
			return "", 0, fmt.Errorf("after %s: not a duration above zero", s.Args[0])
		}
		g.Sleep(d)
		return "", d, nil
	}
	began := time.Now()
	for {
		if result, err = g.Do(ctx, s.Verb, s.Args); err != nil {
			return "", 0, err
		}
		took = time.Since(began)
		miss := missing(result, s.Want)
		switch {
		case miss == "":
			return result, took, nil
		case took >= s.Within:
			return "", 0, fmt.Errorf("got: %s\n\tbut %s", result, miss)
		}
		g.Sleep(again)
	}
}

// missing says which wanted word the result lacks, or has though it must not; "" if it is as wanted.
func missing(result string, want []string) string {
	for _, w := range want {
		if no, must := strings.CutPrefix(w, "!"); must {
			if strings.Contains(result, no) {
				return fmt.Sprintf("%q must not be there", no)
			}
		} else if !strings.Contains(result, w) {
			return fmt.Sprintf("%q is not there", w)
		}
	}
	return ""
}
