package testbed

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/perigee-net/perigee/node/api"
	"github.com/perigee-net/perigee/testbed/page"
	"github.com/perigee-net/perigee/testbed/wan"
)

// experiment gathers what becomes of a scenario, for its page.
type experiment struct {
	*Laboratory
	run   page.Run
	names map[string]bool // of nodes and targets: who may have answered
	at    map[string]int  // series by what is asked
}

// Run takes the steps of a scenario, tells what came of each, and returns all of it, also where a step did not come true, which
// the error then says. text is the scenario as it was written.
func (l *Laboratory) Run(ctx context.Context, s Scenario, text string, tell func(Outcome)) (page.Run, error) {
	info := l.bed.Info()
	e := &experiment{Laboratory: l, names: map[string]bool{}, at: map[string]int{}, run: page.Run{
		Title: s.Name, Scenario: text, Testbed: info.Name, WAN: l.bed.WAN(), Machine: machine(), Began: time.Now(),
	}}
	for _, h := range l.bed.World().Hosts {
		if h.Kind == wan.Node || h.Kind == wan.Target {
			e.names[h.Name] = true
		}
	}
	err := s.Run(ctx, l, func(o Outcome) {
		e.add(o)
		if tell != nil {
			tell(o)
		}
	})
	e.run.Took, e.run.Passed = time.Since(e.run.Began), err == nil
	if err != nil {
		e.run.Fault = err.Error()
	}
	e.draw()
	e.gatherEvents(context.WithoutCancel(ctx))
	return e.run, err
}

func (e *experiment) since(t time.Time) time.Duration { return t.Sub(e.run.Began) }

// add notes one step, what was asked in it, and how long it took to come true.
func (e *experiment) add(o Outcome) {
	asked, step := o.Step, page.Step{Line: o.Step.Line, Text: o.Step.Text, Verb: o.Step.Verb, At: e.since(o.At), Took: o.Took, Times: o.Times, Result: o.Result}
	if o.Step.Begun != nil {
		asked = *o.Step.Begun
		step.At, step.Took = e.since(time.Now()), 0
		step.Note = fmt.Sprintf("of line %d, which took %v", asked.Line, o.Took.Round(time.Millisecond))
	}
	step.Failed, step.Fault = o.Fault != "", breaks(o.Step.Verb)
	if o.Fault != "" {
		step.Note = o.Fault
	}
	e.run.Steps = append(e.run.Steps, step)
	if len(o.Tries) > 0 && asks(asked.Verb) {
		e.sample(asked, o.Tries)
	}
	if asked.Within > 0 && o.Step.Begin == "" {
		e.run.Figures = append(e.run.Figures, page.Figure{
			Name: plainly(asked), Value: o.Took.Seconds(), Unit: "s", Aim: fmt.Sprintf("≤ %v", asked.Within), OK: o.Fault == "",
		})
	}
}

// plainly is a step without what stands before it: what it is that came true.
func plainly(s Step) string {
	return strings.Join(slices.Concat([]string{s.Verb}, s.Args, []string{"→"}, s.Want), " ")
}

// breaks says whether a verb breaks something.
func breaks(verb string) bool {
	return slices.Contains([]string{"kill", "crash", "stop", "pause", "cut", "slow", "lossy", "drain", "block"}, verb)
}

// asks says whether a verb is something that a client asks for.
func asks(verb string) bool {
	return slices.Contains([]string{"get", "download", "browse", "dig", "lookup", "dial"}, verb)
}

// sample adds the times that a step was taken to what is known of that question.
func (e *experiment) sample(s Step, tries []Try) {
	args := slices.DeleteFunc(slices.Clone(s.Args), func(arg string) bool { _, err := strconv.Atoi(arg); return err == nil })
	if len(args) == 0 {
		return
	}
	name := strings.Join(slices.Concat([]string{s.Verb}, args[1:], args[:1]), " ")
	at, known := e.at[name]
	if !known {
		at = len(e.run.Series)
		e.at[name] = at
		client, _, _ := strings.Cut(args[0], "@")
		e.run.Series = append(e.run.Series, page.Series{Name: name, Client: client})
	}
	for _, t := range tries {
		one := page.Sample{At: e.since(t.At), Took: t.Took, OK: t.True, By: e.by(t.Result)}
		if !t.True {
			one.Note = t.Result
		}
		e.run.Series[at].Samples = append(e.run.Series[at].Samples, one)
	}
}

// by is who answered: the first node or target that a result names.
func (e *experiment) by(result string) string {
	for word := range strings.FieldsFuncSeq(result, func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) && r != '-' }) {
		if e.names[word] {
			return word
		}
	}
	return ""
}

// draw puts the world on the map.
func (e *experiment) draw() {
	w := e.bed.World()
	for _, s := range w.Sites {
		site := page.Site{Name: s.Name, City: s.City, Lat: s.At.Latitude, Lon: s.At.Longitude}
		for _, h := range w.Hosts {
			if h.Site == s.Name && h.Kind != wan.Client {
				site.Hosts = append(site.Hosts, h.Name)
			}
		}
		e.run.Sites = append(e.run.Sites, site)
	}
	for _, l := range w.Links {
		e.run.Links = append(e.run.Links, page.Link{A: l.A, B: l.B, RTT: l.RTT()})
	}
	for _, h := range w.Hosts {
		if h.Kind == wan.Client {
			e.run.Clients = append(e.run.Clients, page.Client{Name: h.Name, Lat: h.At.Latitude, Lon: h.At.Longitude, Site: h.Site})
		}
	}
}

// gatherEvents asks every node that runs what it tells of since the beginning.
func (e *experiment) gatherEvents(ctx context.Context) {
	for _, n := range e.nodes() {
		if !n.lives() {
			continue
		}
		asking, cancel := context.WithTimeout(ctx, askTime)
		list, err := n.api.Events(asking, api.EventQuery{Limit: api.MaxEvents})
		cancel()
		if err != nil {
			continue
		}
		for _, event := range list.Events {
			at := e.since(event.Time)
			if at < 0 {
				continue
			}
			one := page.Event{At: at, Node: n.name, Kind: event.Kind, Text: event.Text, ID: fmt.Sprintf("%s#%d", n.name, event.ID)}
			for _, cause := range event.Causes {
				one.Causes = append(one.Causes, fmt.Sprintf("%s#%d", n.name, cause))
			}
			e.run.Events = append(e.run.Events, one)
		}
	}
	slices.SortStableFunc(e.run.Events, func(a, b page.Event) int { return int(a.At - b.At) })
}

// machine says on what a laboratory stands.
func machine() string {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	text := fmt.Sprintf("%d processors, Linux %s", runtime.NumCPU(), strings.TrimSpace(string(kernel)))
	memory, _ := os.ReadFile("/proc/meminfo")
	for line := range strings.Lines(string(memory)) {
		if rest, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			if kib, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB")); err == nil {
				text += fmt.Sprintf(", %d GB", (kib+1<<19)>>20)
			}
		}
	}
	return text
}
