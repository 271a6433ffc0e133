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
// until it comes true, at most for that long; "for D" takes it again and again for that long, and each time it must
// come true. "watch D" takes it so too, and lets pass what does not come true: its result says how often it did, and how long it
// did not at the longest, "true=37/40 longest=2.1s". "begin NAME" before a step lets the next ones be taken meanwhile, until "end NAME", whose result is that
// of the step:
//
//	begin pages for 20s get london http://www.demo.perigee.test/ => 200
//	kill icn1
//	end pages                                    => fra1
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
	For    time.Duration
	Watch  time.Duration
	Begin  string // its name, if the next ones do not wait for it
	Begun  *Step  // of an end that was taken: the step that it ends
}

// Ground is what a scenario runs on: a World, or a laboratory on a real kernel. Steps that were begun are taken at once
// with others.
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
	if len(words) > 0 && words[0] == "begin" {
		if len(words) < 3 {
			return Step{}, fmt.Errorf("begin wants a name and a step")
		}
		step.Begin, words = words[1], words[2:]
	}
	if len(words) > 0 && (words[0] == "within" || words[0] == "for" || words[0] == "watch") {
		how := words[0]
		if len(words) < 3 || len(step.Want) == 0 {
			return Step{}, fmt.Errorf("%s wants a duration, a step, and what must come true after =>", how)
		}
		d, err := time.ParseDuration(words[1])
		if err != nil || d <= 0 {
			return Step{}, fmt.Errorf("%s %s: not a duration above zero", how, words[1])
		}
		switch how {
		case "within":
			step.Within = d
		case "for":
			step.For = d
		case "watch":
			step.Watch = d
		}
		words = words[2:]
	}
	if len(words) == 0 {
		return Step{}, fmt.Errorf("a step begins with a verb")
	}
	step.Verb, step.Args = words[0], words[1:]
	if step.Verb == "end" && (len(step.Args) != 1 || step.Begin != "" || step.Within+step.For+step.Watch != 0) {
		return Step{}, fmt.Errorf("end wants the name of a step that was begun, and nothing before it")
	}
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

// again is how often a step under "within" or "for" is taken.
const again = 100 * time.Millisecond

// Outcome is what came of one step.
type Outcome struct {
	Step   Step
	At     time.Time     // it began
	Result string        // the last, of a step that was taken often
	Took   time.Duration // until it came true, for a step under "within"; all of it, for one under "for" or one that was begun
	Times  int           // it was taken
	Fault  string        // why it did not come true; "": it did
	Tries  []Try         // each time it was taken, up to maxTries
}

// Try is one of the times that a step was taken.
type Try struct {
	At     time.Time
	Took   time.Duration
	Result string
	True   bool // it came out as wanted
}

// maxTries bounds what is kept of a step that is taken again and again. Later ones are counted only.
const maxTries = 20_000

// begun is a step that is taken while others are.
type begun struct {
	outcome Outcome
	err     error
	done    chan struct{}
}

// Run takes the steps in order and stops at the first that does not come true. It tells after each step what came of it,
// the last one that was taken included, and returns when every step that was begun has ended.
func (s Scenario) Run(ctx context.Context, g Ground, tell func(Outcome)) error {
	ctx, cancel := context.WithCancel(ctx)
	open := map[string]*begun{}
	defer func() {
		cancel()
		for _, b := range open {
			<-b.done
		}
	}()
	for _, step := range s.Steps {
		o, err := step.run(ctx, g, open)
		if err != nil {
			o.Fault = err.Error()
		}
		if tell != nil {
			tell(o)
		}
		if err != nil {
			return fmt.Errorf("%s:%d: %s\n\t%w", s.Name, step.Line, step.Text, err)
		}
	}
	for name := range open {
		return fmt.Errorf("%s: %q was begun and never ended", s.Name, name)
	}
	return nil
}

// run takes a step, or begins it, or ends one that was begun.
func (s Step) run(ctx context.Context, g Ground, open map[string]*begun) (Outcome, error) {
	o := Outcome{Step: s, At: time.Now()}
	switch {
	case s.Begin != "":
		if open[s.Begin] != nil {
			return o, fmt.Errorf("%q has not ended", s.Begin)
		}
		b := &begun{done: make(chan struct{})}
		open[s.Begin] = b
		go func() {
			defer close(b.done)
			b.outcome, b.err = s.take(ctx, g)
		}()
		return o, nil
	case s.Verb == "end":
		b := open[s.Args[0]]
		if b == nil {
			return o, fmt.Errorf("nothing was begun as %q", s.Args[0])
		}
		<-b.done
		delete(open, s.Args[0])
		o, began := b.outcome, b.outcome.Step
		o.Step = s
		o.Step.Begun = &began
		if b.err != nil {
			return o, fmt.Errorf("of line %d: %w", began.Line, b.err)
		}
		if miss := missing(o.Result, s.Want); miss != "" {
			return o, fmt.Errorf("got: %s\n\tbut %s", o.Result, miss)
		}
		return o, nil
	}
	return s.take(ctx, g)
}

func (s Step) take(ctx context.Context, g Ground) (Outcome, error) {
	o := Outcome{Step: s, At: time.Now()}
	if s.Verb == "after" {
		if len(s.Args) != 1 {
			return o, fmt.Errorf("after wants one duration")
		}
		d, err := time.ParseDuration(s.Args[0])
		if err != nil || d <= 0 {
			return o, fmt.Errorf("after %s: not a duration above zero", s.Args[0])
		}
		g.Sleep(d)
		o.Took = d
		return o, nil
	}
	if s.Watch > 0 {
		return s.watch(ctx, g)
	}
	for {
		began := time.Now()
		var err error
		if o.Result, err = g.Do(ctx, s.Verb, s.Args); err != nil {
			return o, err
		}
		o.Times++
		o.Took = time.Since(o.At)
		miss := missing(o.Result, s.Want)
		if len(o.Tries) < maxTries {
			o.Tries = append(o.Tries, Try{began, time.Since(began), o.Result, miss == ""})
		}
		switch {
		case miss == "" && o.Took >= s.For:
			return o, nil
		case miss != "" && o.Took >= s.Within:
			return o, fmt.Errorf("got: %s\n\tbut %s%s", o.Result, miss, s.when(o))
		case ctx.Err() != nil:
			return o, ctx.Err()
		}
		g.Sleep(again)
	}
}

// watch takes a step for a while and counts how often it comes true.
func (s Step) watch(ctx context.Context, g Ground) (Outcome, error) {
	o := Outcome{Step: s, At: time.Now()}
	count, longest, good := 0, time.Duration(0), o.At // since when it has not come true
	for {
		began := time.Now()
		result, err := g.Do(ctx, s.Verb, s.Args)
		if err != nil {
			return o, err
		}
		o.Times++
		came := missing(result, s.Want) == ""
		if len(o.Tries) < maxTries {
			o.Tries = append(o.Tries, Try{began, time.Since(began), result, came})
		}
		if came {
			if count > 0 || began != o.At {
				longest = max(longest, began.Sub(good)-again)
			}
			count, good = count+1, time.Now()
		}
		if o.Took = time.Since(o.At); o.Took >= s.Watch {
			if !came {
				longest = max(longest, time.Since(good))
			}
			break
		}
		if ctx.Err() != nil {
			return o, ctx.Err()
		}
		g.Sleep(again)
	}
	o.Result = fmt.Sprintf("true=%d/%d longest=%v", count, o.Times, max(longest, 0).Round(time.Millisecond))
	return o, nil
}

// when says at which time of many a step did not come true.
func (s Step) when(o Outcome) string {
	if s.For == 0 {
		return ""
	}
	return fmt.Sprintf(", at time %d, after %v", o.Times, o.Took.Round(time.Millisecond))
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
