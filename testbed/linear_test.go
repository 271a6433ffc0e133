package testbed

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/perigee-net/perigee/cluster/store"
	"github.com/perigee-net/perigee/node/api"
)

// What is tried against the fleet: so many registers (zones whose label is the value), which are put, several in one change,
// put under the condition of a revision, deleted, rolled back and read, all of them at once.
const registers = 4

// values are those of all registers; 0: it is not there.
type values [registers]int

// linearOp is what a client asked for.
type linearOp struct {
	id     string
	verb   string // put, delete, rollback, read
	put    values // the registers that are put; 0: left alone
	which  int    // that is deleted
	expect uint64 // 0: none
	to     uint64 // of a rollback
	node   string

	dropped bool // by a cluster that lies: it is tried only, and acknowledged
}

// linearAnswer is what it was told.
type linearAnswer struct {
	refused  int    // an HTTP status below 500; 0: it was done
	revision uint64 // of the change, or of what was read
	read     values
	open     bool // it may have been done or not
	text     string
}

// linearState is what is agreed, by the model: the values at every revision since the first.
type linearState struct {
	from uint64 // the revision of past[0]
	past []values
}

func (s linearState) revision() uint64 { return s.from + uint64(len(s.past)) - 1 }
func (s linearState) now() values      { return s.past[len(s.past)-1] }

func (s linearState) then(next values) linearState {
	return linearState{s.from, append(slices.Clip(s.past), next)}
}

// linearModel says what one node alone, which does one thing after the other, would answer. Revisions count the changes,
// so one order is asked of all registers together.
func linearModel(from uint64, first values) porcupine.Model {
	step := func(s linearState, op linearOp, a linearAnswer) (bool, linearState) {
		next, effect := s.now(), true
		if op.expect != 0 && op.expect != s.revision() {
			return a.refused == http.StatusPreconditionFailed, s
		}
		switch op.verb {
		case "read":
			return a.revision == s.revision() && a.read == s.now(), s
		case "put":
			for i, v := range op.put {
				if v != 0 {
					next[i] = v
				}
			}
		case "delete":
			if effect = next[op.which] != 0; !effect {
				return a.refused == http.StatusNotFound, s
			}
			next[op.which] = 0
		case "rollback":
			if a.refused == http.StatusNotFound {
				return true, s // what was is no more known: it promises nothing
			}
			if op.to < s.from || op.to > s.revision() {
				return false, s
			}
			next = s.past[op.to-s.from]
			effect = next != s.now()
		}
		if a.refused != 0 {
			return false, s
		}
		if !effect {
			return a.revision == s.revision(), s
		}
		return a.revision == s.revision()+1, s.then(next)
	}
	return porcupine.Model{
		Init: func() any { return linearState{from, []values{first}} },
		Step: func(s, in, out any) (bool, any) {
			ok, next := step(s.(linearState), in.(linearOp), out.(linearAnswer))
			return ok, next
		},
		Equal: func(a, b any) bool {
			return slices.Equal(a.(linearState).past, b.(linearState).past)
		},
		Hash: func(s any) uint64 {
			h := fnv.New64a()
			fmt.Fprint(h, s.(linearState).past)
			return h.Sum64()
		},
		DescribeOperation: func(in, out any) string {
			op, a := in.(linearOp), out.(linearAnswer)
			return fmt.Sprintf("%s → %s", op, a)
		},
		DescribeState: func(s any) string {
			return fmt.Sprintf("%d: %v", s.(linearState).revision(), s.(linearState).now())
		},
	}
}

func (op linearOp) String() string {
	text := op.id + " " + op.verb
	switch op.verb {
	case "put":
		text += fmt.Sprint(op.put)
	case "delete":
		text += fmt.Sprint(" ", op.which)
	case "rollback":
		text += fmt.Sprint(" to ", op.to)
	}
	if op.expect != 0 {
		text += fmt.Sprint(" over ", op.expect)
	}
	return text + " @" + op.node
}

func (a linearAnswer) String() string {
	switch {
	case a.open:
		return fmt.Sprintf("open (%s): in the history %d", a.text, a.revision)
	case a.refused != 0:
		return fmt.Sprintf("%d %s", a.refused, a.text)
	}
	return fmt.Sprint(a.revision, a.read)
}

// linearClients do something again and again, at some node, and write down what came of it.
type linearClients struct {
	f     *Fleet
	began time.Time
	lie   string // what a broken cluster would do: "stale" reads, "drop" changes that are acknowledged

	mu      sync.Mutex
	history []porcupine.Operation
	seen    uint64 // the highest revision that anybody was told
	value   int
	faults  []string
}

func register(i int) string { return fmt.Sprintf("r%d.test", i) }

func registerYAML(i, v int) string {
	return fmt.Sprintf("kind: HostedZone\nname: %s\nlabels: {v: \"%d\"}\n", register(i), v)
}

// readRegisters reads the values of a list of zones.
func readRegisters(list []api.Resource) (v values, err error) {
	for _, r := range list {
		var i, value int
		if _, err := fmt.Sscanf(r.YAML, "kind: HostedZone\nname: r%d.test\nlabels: {v: \"%d\"}", &i, &value); err != nil {
			return v, fmt.Errorf("%q: %w", r.YAML, err)
		}
		v[i] = value
	}
	return v, nil
}

// next chooses what to do.
func (l *linearClients) next(chance *rand.Rand) linearOp {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.value++
	op := linearOp{id: fmt.Sprint("op-", l.value), node: l.f.Names[chance.IntN(len(l.f.Names))]}
	switch n := chance.IntN(20); {
	case n < 8:
		op.verb = "read"
	case n < 10:
		op.verb, op.which = "delete", chance.IntN(registers)
	case n < 11:
		op.verb, op.to = "rollback", l.seen-min(l.seen-1, chance.Uint64N(5))
	default:
		op.verb = "put"
		op.put[chance.IntN(registers)] = l.value
		if n < 13 {
			op.put[chance.IntN(registers)] = l.value
		}
	}
	if op.verb != "read" && chance.IntN(4) == 0 {
		op.expect = l.seen
	}
	op.dropped = l.lie == "drop" && len(l.history)%10 == 9
	return op
}

// do does it.
func (l *linearClients) do(ctx context.Context, op linearOp) (a linearAnswer) {
	c := l.f.API(op.node)
	note := func(revision uint64, err error) linearAnswer {
		var e *api.Error
		switch {
		case err == nil:
			return linearAnswer{revision: revision}
		case errors.As(err, &e) && e.Status < 500:
			return linearAnswer{refused: e.Status, text: err.Error()}
		}
		return linearAnswer{open: true, text: err.Error()}
	}
	var expect *uint64
	if op.expect != 0 {
		expect = &op.expect
	}
	switch op.verb {
	case "read":
		list, err := c.Resources(ctx, api.ResourcesQuery{Kind: "HostedZone", Fresh: l.lie != "stale"})
		a = note(list.Revision, err)
		if err == nil {
			if a.read, err = readRegisters(list.Resources); err != nil {
				a.text = err.Error()
			}
		}
		return a
	case "rollback":
		res, err := c.Rollback(ctx, api.RollbackRequest{ID: op.id, Revision: op.to, Note: op.id, Expect: expect})
		return note(res.Revision, err)
	}
	req := api.ApplyRequest{ID: op.id, Note: op.id, Expect: expect}
	for i, v := range op.put {
		if v != 0 {
			req.Files = append(req.Files, api.File{Name: op.id + register(i), Data: registerYAML(i, v)})
		}
	}
	if op.verb == "delete" {
		req.Delete = []api.Ref{{Kind: "HostedZone", Name: register(op.which)}}
	}
	req.DryRun = op.dropped
	res, err := c.Apply(ctx, req)
	return note(res.Revision, err)
}

// opTime bounds how long a client waits: less than the cluster does itself, at times.
const opTime = 12 * time.Second

// run does things until the context ends.
func (l *linearClients) run(ctx context.Context, client int, chance *rand.Rand) {
	for ctx.Err() == nil {
		op := l.next(chance)
		limited, cancel := context.WithTimeout(ctx, time.Second+time.Duration(chance.Int64N(int64(opTime))))
		call := time.Since(l.began)
		a := l.do(limited, op)
		cancel()
		one := porcupine.Operation{ClientId: client, Input: op, Call: int64(call), Output: a, Return: int64(time.Since(l.began))}
		l.mu.Lock()
		l.history = append(l.history, one)
		l.seen = max(l.seen, a.revision)
		if a.refused == http.StatusUnprocessableEntity || a.refused == http.StatusUnauthorized || a.refused == http.StatusForbidden || a.refused == 0 && !a.open && a.text != "" {
			l.faults = append(l.faults, fmt.Sprintf("%v: %v", op, a))
		}
		l.mu.Unlock()
		time.Sleep(time.Duration(chance.Int64N(int64(400 * time.Millisecond))))
	}
}

// settleOpen settles what became of the requests whose outcome is open, by the history of the cluster: those that are in it
// were done, at some time after they were asked for, and the others never. And it says what is wrong between that history
// and what was acknowledged.
func settleOpen(history []porcupine.Operation, records []api.Record, end int64) (settled []porcupine.Operation, faults []string) {
	done := map[string]uint64{}
	for _, r := range records {
		id := r.Note[strings.LastIndexByte(r.Note, ' ')+1:]
		if before, twice := done[id]; twice {
			faults = append(faults, fmt.Sprintf("%s was done twice: revisions %d and %d", id, before, r.Revision))
		}
		done[id] = r.Revision
	}
	for _, one := range history {
		op, a := one.Input.(linearOp), one.Output.(linearAnswer)
		at, is := done[op.id]
		switch {
		case a.open && !is:
			continue
		case a.open:
			a.revision = at
			one.Output, one.Return = a, end
		case a.refused != 0 && is:
			faults = append(faults, fmt.Sprintf("%v was refused (%v), and was done at revision %d", op, a, at))
		case a.refused == 0 && op.verb != "read" && is && at != a.revision:
			faults = append(faults, fmt.Sprintf("%v was acknowledged as revision %d, and is %d", op, a.revision, at))
		case a.refused == 0 && op.verb != "read" && op.verb != "rollback" && !is:
			faults = append(faults, fmt.Sprintf("%v was acknowledged as revision %d, and is lost", op, a.revision))
		}
		settled = append(settled, one)
	}
	return settled, faults
}

// linearMishaps does to the fleet whatever chance has in store, until the context ends.
func linearMishaps(ctx context.Context, f *Fleet, chance *rand.Rand, story func(string, ...any)) {
	pick := func(of []string) string { return of[chance.IntN(len(of))] }
	for ctx.Err() == nil {
		name, other := pick(f.Names), pick(f.Names)
		if chance.IntN(3) == 0 {
			if leader := f.Leader(ctx); leader != "" {
				name = leader
			}
		}
		switch n := chance.IntN(20); {
		case n < 3 && f.Lives(name):
			story("kill %s", name)
			f.Kill(name)
		case n < 4 && f.Lives(name):
			story("crash %s", name)
			f.Crash(name)
		case n < 5 && f.Lives(name):
			story("stop %s", name)
			f.Stop(name)
		case n < 9:
			for _, dead := range f.Names {
				if !f.Lives(dead) && chance.IntN(2) == 0 {
					story("start %s", dead)
					if err := f.Start(ctx, dead); err != nil && ctx.Err() == nil {
						story("!%v", err)
					}
				}
			}
		case n < 11:
			story("pause %s", name)
			f.Pause(name)
		case n < 13:
			story("resume %s", name)
			f.Resume(name)
		case n < 14 && name != other:
			story("cut %s %s", name, other)
			f.Cut(name, other)
		case n < 15 && name != other:
			story("cut one way %s %s", name, other)
			f.CutOneWay(name, other)
		case n < 16 && name != other:
			story("lossy %s %s", name, other)
			f.Lossy(name, other, 0.2)
		case n < 18:
			story("heal")
			f.HealAll()
		default:
			by := time.Duration(chance.Int64N(int64(6*24*time.Hour))) - 3*24*time.Hour
			story("clock of %s %v", name, by)
			f.Jump(name, by)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(chance.Int64N(int64(3 * time.Second)))):
		}
	}
}

const (
	linearTime = 30 * time.Second // of mishaps, in each seed
	linearRest = 2 * time.Minute  // at most, until all is one again
)

// linearRun is one seed: it returns what is wrong.
func linearRun(ctx context.Context, dir string, seed uint64, lie string, story func(string, ...any)) (history []porcupine.Operation, model porcupine.Model, faults []string) {
	chance := rand.New(rand.NewPCG(seed, 7))
	f, err := NewFleet(ctx, FleetConfig{Dir: dir, Seed: seed, Nodes: 5 + chance.IntN(2), Regions: 1 + chance.IntN(3), Voters: 4 + chance.IntN(2)})
	if err != nil {
		return nil, model, []string{err.Error()}
	}
	defer f.Close()
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	setting := fmt.Sprintf("kind: Cluster\nname: default\nvoters: %d\nreplaceVoterAfter: 5s\n", 3+2*chance.IntN(2))
	var began api.ApplyResponse
	for deadline := time.Now().Add(settled); ; time.Sleep(again) {
		if began, err = f.API(f.Names[0]).Apply(ctx, api.ApplyRequest{ID: "cluster", Note: "cluster", Files: []api.File{{Name: "cluster", Data: setting}}}); err == nil {
			break
		}
		if time.Now().After(deadline) {
			return nil, model, []string{"begin: " + err.Error()}
		}
	}
	if err := f.Agree(ctx, settled); err != nil {
		return nil, model, []string{"begin: " + err.Error()}
	}
	l := &linearClients{f: f, began: time.Now(), lie: lie, seen: began.Revision}
	trouble, over := context.WithTimeout(ctx, linearTime)
	defer over()
	var all sync.WaitGroup
	for i := range 4 {
		own := rand.New(rand.NewPCG(seed, uint64(100+i)))
		all.Go(func() { l.run(trouble, i, own) })
	}
	all.Go(func() {
		linearMishaps(trouble, f, chance, func(format string, args ...any) {
			story("%8v %s", time.Since(l.began).Round(time.Millisecond), fmt.Sprintf(format, args...))
		})
	})
	all.Wait()
	f.HealAll()
	for _, name := range f.Names {
		f.Jump(name, 0)
		if !f.Lives(name) {
			if err := f.Start(ctx, name); err != nil {
				fault("%v", err)
			}
		}
	}
	if err := f.Agree(ctx, linearRest); err != nil {
		fault("it does not become one again: %v", err)
	}
	// One history, and one state, on all nodes.
	var records []api.Record
	var last values
	for i, name := range f.Names {
		h, err := f.API(name).History(ctx, api.HistoryQuery{Limit: api.MaxHistory})
		if err != nil {
			fault("history of %s: %v", name, err)
			continue
		}
		list, err := f.API(name).Resources(ctx, api.ResourcesQuery{Kind: "HostedZone"})
		if err != nil {
			fault("resources of %s: %v", name, err)
			continue
		}
		now, err := readRegisters(list.Resources)
		if err != nil {
			fault("%s: %v", name, err)
		}
		if i == 0 {
			records, last = h.Records, now
		}
		if fmt.Sprint(h.Records) != fmt.Sprint(records) {
			fault("the history of %s differs from that of %s:\n%v\n%v", name, f.Names[0], h.Records, records)
		}
		if now != last {
			fault("%s has %v, %s %v", name, now, f.Names[0], last)
		}
	}
	for i, r := range records {
		if want := uint64(len(records) - i); r.Revision != want {
			fault("record %d of the history is of revision %d", want, r.Revision)
		}
	}
	model = linearModel(began.Revision, values{})
	end := int64(time.Since(l.began))
	history, wrong := settleOpen(l.history, records, end)
	faults = slices.Concat(faults, l.faults, wrong)
	history = append(history, porcupine.Operation{ClientId: 4, Input: linearOp{id: "end", verb: "read"}, Call: end + 1,
		Output: linearAnswer{revision: records[0].Revision, read: last}, Return: end + 2})
	f.Close()
	return history, model, append(faults, sumsOnDisk(f)...)
}

// sumsOnDisk says which nodes, all ended, have kept another state than the first.
func sumsOnDisk(f *Fleet) (faults []string) {
	first := ""
	for _, name := range f.Names {
		j, state, err := store.OpenJournal(f.nodes[name].cfg.Data)
		if err != nil || state == nil {
			faults = append(faults, fmt.Sprintf("the journal of %s: %v", name, err))
			continue
		}
		j.Close()
		now := fmt.Sprintf("%v %x %x", state.Position(), state.Sum(), state.Own.Sum())
		if first == "" {
			first = now
		}
		if now != first {
			faults = append(faults, fmt.Sprintf("on the disk of %s is %s, on that of %s %s", name, now, f.Names[0], first))
		}
	}
	return faults
}

// seeds are which ones a test tries: PERIGEE_SEED is the only one, PERIGEE_SEEDS is how many.
func seeds(t *testing.T, usual int) []uint64 {
	t.Helper()
	number := func(name string) (uint64, bool) {
		text := os.Getenv(name)
		if text == "" {
			return 0, false
		}
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return n, true
	}
	if one, is := number("PERIGEE_SEED"); is {
		return []uint64{one}
	}
	count := uint64(usual)
	if n, is := number("PERIGEE_SEEDS"); is {
		count = n
	}
	var all []uint64
	for n := range count {
		all = append(all, n+1)
	}
	return all
}

// checkLinear says whether a history is linearizable, and draws it if not, where that is wanted.
func checkLinear(t *testing.T, model porcupine.Model, history []porcupine.Operation, seed uint64, draw bool) porcupine.CheckResult {
	t.Helper()
	result, info := porcupine.CheckOperationsVerbose(model, history, time.Minute)
	if result != porcupine.Ok && draw {
		dir := os.TempDir() // what is to be looked at outlives the test
		if kept := flag.Lookup("test.artifacts"); kept != nil && kept.Value.String() == "true" {
			dir = t.ArtifactDir()
		}
		path := filepath.Join(dir, fmt.Sprintf("perigee-history-%d.html", seed))
		if err := porcupine.VisualizePath(model, info, path); err != nil {
			t.Log(err)
		}
		t.Logf("the history is drawn in %s", path)
	}
	return result
}

// Whatever happens to nodes, links and clocks: changes and reads that want the newest are as if one node did them one after
// the other, and what was acknowledged stays.
func TestAppliesAreLinearizable(t *testing.T) {
	t.Parallel()
	tally := map[string]int{}
	for _, seed := range seeds(t, 3) {
		dir := t.TempDir()
		var history []porcupine.Operation
		var model porcupine.Model
		var faults, told []string
		synctest.Test(t, func(t *testing.T) {
			history, model, faults = linearRun(t.Context(), dir, seed, "", func(format string, args ...any) {
				told = append(told, fmt.Sprintf(format, args...))
			})
		})
		os.RemoveAll(dir)
		for _, one := range history {
			op, a := one.Input.(linearOp), one.Output.(linearAnswer)
			what := op.verb + " done"
			switch {
			case a.open:
				what = op.verb + " open, done"
			case a.refused != 0:
				what = fmt.Sprint(op.verb, " ", a.refused)
			}
			tally[what]++
		}
		if len(faults) == 0 && checkLinear(t, model, history, seed, true) != porcupine.Ok {
			faults = append(faults, "the history is not linearizable")
		}
		if len(faults) > 0 {
			t.Errorf("PERIGEE_SEED=%d\n%s\n%s\n%s", seed, strings.Join(faults, "\n"), strings.Join(told, "\n"), describe(history))
		}
	}
	for _, what := range slices.Sorted(maps.Keys(tally)) {
		t.Logf("%6d %s", tally[what], what)
	}
}

// A cluster that lies is found out: the checker is of use.
func TestALyingClusterIsCaught(t *testing.T) {
	t.Parallel()
	for _, lie := range []string{"stale", "drop"} {
		caught := uint64(0)
		for seed := uint64(1); seed <= 8 && caught == 0; seed++ {
			var history []porcupine.Operation
			var model porcupine.Model
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				history, model, _ = linearRun(t.Context(), dir, seed, lie, func(string, ...any) {})
			})
			if len(history) > 0 && checkLinear(t, model, history, seed, false) == porcupine.Illegal {
				caught = seed
			}
		}
		if caught == 0 {
			t.Errorf("%s: not caught", lie)
		}
		t.Logf("%s: caught by seed %d", lie, caught)
	}
}

func describe(history []porcupine.Operation) string {
	var text strings.Builder
	for _, one := range history {
		fmt.Fprintf(&text, "%d %8v–%8v %v → %v\n", one.ClientId, time.Duration(one.Call).Round(time.Millisecond), time.Duration(one.Return).Round(time.Millisecond),
			one.Input, one.Output)
	}
	return text.String()
}
