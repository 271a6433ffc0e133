//go:build linux

package procs

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/perigee-net/perigee/node/api"
)

var (
	linearFor  = flag.Duration("linear.for", 10*time.Second, "how long five processes are tormented")
	linearSeed = flag.Uint64("linear.seed", 0, "what is done to them when; 0: chosen, and printed")
)

const (
	registers  = 6 // each a target group; its label is its value
	writers    = 8
	giveUp     = 3 * time.Second  // on one request
	insist     = 20 * time.Second // on one change, by those who ask again
	recoverIn  = 90 * time.Second // after the torment, until all is one again
	searchTime = 2 * time.Minute  // of porcupine
)

// values are those of all registers; 0: it is not there.
type values [registers]int

// asked is what a client asked for, told what it was told.
type asked struct {
	id      string
	verb    string // put, delete, read
	put     values // those that are put; 0: left alone
	which   int    // that is deleted
	expect  uint64 // the change must follow this revision; 0: any
	insists bool   // where nobody tells the outcome it asks again, by the same ID
}

type told struct {
	refused  int // 404, 412, 429; 0: it was done
	revision uint64
	read     values
	open     bool // nobody said whether it was done
	tries    int
	text     string
}

// agreed is what one node alone would hold.
type agreed struct {
	revision uint64
	now      values
}

// model is one node that does one thing after the other. Each change is one revision, so one order is asked of all registers
// together.
func model(first agreed) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return first },
		Step: func(state, in, out any) (bool, any) {
			s, op, a := state.(agreed), in.(asked), out.(told)
			if op.verb == "read" {
				return a.revision == s.revision && a.read == s.now, s
			}
			if a.refused == http.StatusTooManyRequests {
				return true, s
			}
			if op.expect != 0 && op.expect != s.revision {
				return a.refused == http.StatusPreconditionFailed, s
			}
			next := s
			if op.verb == "delete" {
				if s.now[op.which] == 0 {
					return a.refused == http.StatusNotFound, s
				}
				next.now[op.which] = 0
			}
			for i, v := range op.put {
				if v != 0 {
					next.now[i] = v
				}
			}
			next.revision++
			return a.refused == 0 && a.revision == next.revision, next
		},
		DescribeOperation: func(in, out any) string { return fmt.Sprintf("%+v → %+v", in, out) },
	}
}

// torment is one run.
type torment struct {
	c     *Cluster
	began time.Time

	mu      sync.Mutex
	history []porcupine.Operation
	seen    uint64
	last    int
	records map[uint64]api.Record // the cluster's history, as far as it was read
	faults  []string
	done    map[string]int // what was done to the processes
}

func (x *torment) fault(format string, args ...any) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.faults = append(x.faults, fmt.Sprintf(format, args...))
}

func (x *torment) since() int64 { return int64(time.Since(x.began)) }

func register(i int) string { return fmt.Sprintf("r%d", i) }

var labelled = regexp.MustCompile(`(?m)^labels: \{v: "(\d+)"\}$`)

func readRegisters(list []api.Resource) (v values, err error) {
	for _, r := range list {
		found := labelled.FindStringSubmatch(r.YAML)
		i, notNumbered := strconv.Atoi(strings.TrimPrefix(r.Name, "r"))
		if found == nil || notNumbered != nil || i >= registers {
			return v, fmt.Errorf("%s %s: %q", r.Kind, r.Name, r.YAML)
		}
		v[i], _ = strconv.Atoi(found[1])
	}
	return v, nil
}

// next chooses what to do.
func (x *torment) next(chance *rand.Rand) asked {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.last++
	op := asked{id: fmt.Sprint("op-", x.last)}
	switch n := chance.IntN(20); {
	case n < 8:
		op.verb = "read"
		return op
	case n < 9:
		op.verb, op.which = "delete", chance.IntN(registers)
	default:
		op.verb = "put"
		op.put[chance.IntN(registers)] = x.last
		if n < 12 {
			op.put[chance.IntN(registers)] = x.last
		}
	}
	if chance.IntN(5) == 0 {
		op.expect = x.seen
	}
	op.insists = chance.IntN(2) == 0
	return op
}

// do does it once, at some node.
func (x *torment) do(ctx context.Context, op asked, n *Node) told {
	ctx, cancel := context.WithTimeout(ctx, giveUp)
	defer cancel()
	client := n.Client()
	if op.verb == "read" {
		list, err := client.Resources(ctx, api.ResourcesQuery{Kind: "TargetGroup", Fresh: true})
		if err != nil {
			return told{open: true, text: err.Error()}
		}
		read, err := readRegisters(list.Resources)
		if err != nil {
			x.fault("read: %v", err)
		}
		return told{revision: list.Revision, read: read}
	}
	req := api.ApplyRequest{ID: op.id, Note: op.id}
	if op.expect != 0 {
		req.Expect = &op.expect
	}
	for i, v := range op.put {
		if v != 0 {
			req.Files = append(req.Files, api.File{Name: register(i) + ".yaml", Data: fmt.Sprintf(
				"kind: TargetGroup\nname: %s\nlabels: {v: \"%d\"}\nregion: eu-central-1\nprotocol: HTTP\nport: 80\n", register(i), v)})
		}
	}
	if op.verb == "delete" {
		req.Delete = []api.Ref{{Kind: "TargetGroup", Name: register(op.which)}}
	}
	res, err := client.Apply(ctx, req)
	var e *api.Error
	switch {
	case err == nil:
		return told{revision: res.Revision}
	case errors.As(err, &e) && slices.Contains([]int{http.StatusNotFound, http.StatusPreconditionFailed, http.StatusTooManyRequests}, e.Status):
		return told{refused: e.Status, text: err.Error()}
	case errors.As(err, &e) && e.Status < 500:
		x.fault("%+v at %s: %v", op, n.Name, err)
	}
	return told{open: true, text: err.Error()}
}

// ask does things until the context ends, and writes down what came of them.
func (x *torment) ask(ctx context.Context, client int, chance *rand.Rand) {
	for ctx.Err() == nil {
		op := x.next(chance)
		call := x.since()
		var a told
		for deadline := time.Now().Add(insist); ; time.Sleep(again) {
			answer := x.do(ctx, op, x.c.Nodes[chance.IntN(len(x.c.Nodes))])
			answer.tries = a.tries + 1
			a = answer
			if !a.open || !op.insists || ctx.Err() != nil || time.Now().After(deadline) {
				break
			}
		}
		x.mu.Lock()
		x.history = append(x.history, porcupine.Operation{ClientId: client, Input: op, Call: call, Output: a, Return: x.since()})
		x.seen = max(x.seen, a.revision)
		x.mu.Unlock()
		time.Sleep(time.Duration(chance.Int64N(int64(30 * time.Millisecond))))
	}
}

// remember reads the cluster's own history, of which a node keeps but the last thousand changes.
func (x *torment) remember(ctx context.Context, n *Node) error {
	ctx, cancel := context.WithTimeout(ctx, giveUp)
	defer cancel()
	h, err := n.Client().History(ctx, api.HistoryQuery{Limit: api.MaxHistory})
	if err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, r := range h.Records {
		if other, known := x.records[r.Revision]; known && (other.Note != r.Note || !other.Time.Equal(r.Time)) {
			x.faults = append(x.faults, fmt.Sprintf("revision %d is %+v, and at %s %+v", r.Revision, other, n.Name, r))
		}
		x.records[r.Revision] = r
	}
	return nil
}

func (x *torment) count(what string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.done[what]++
}

// disturb does to a node whatever chance has in store, and brings it back.
func (x *torment) disturb(ctx context.Context, n *Node, chance *rand.Rand) {
	span := func(most time.Duration) {
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(chance.Int64N(int64(most)))):
		}
	}
	switch p := chance.IntN(10); {
	case p < 4:
		x.count("pauses")
		n.Pause()
		span(4 * time.Second)
		n.Resume()
		return
	case p < 8:
		x.count("kills")
		n.Kill()
		span(3 * time.Second)
	case p < 9:
		x.count("kills")
		x.count("kills in a pause")
		n.Pause()
		span(2 * time.Second)
		n.Kill()
	default:
		x.count("stops in order")
		if err := n.Stop(); err != nil {
			x.fault("%v", err)
		}
		span(2 * time.Second)
	}
	if err := n.Start(); err != nil {
		x.fault("%v", err)
	}
}

// mishaps disturbs one to three nodes at a time, the leader more often than the others.
func (x *torment) mishaps(ctx context.Context, chance *rand.Rand) {
	busy := make([]sync.Mutex, len(x.c.Nodes))
	var all sync.WaitGroup
	defer all.Wait()
	for ctx.Err() == nil {
		of := 1
		if p := chance.IntN(10); p == 0 {
			of = 3
		} else if p < 3 {
			of = 2
		}
		chosen := chance.Perm(len(x.c.Nodes))[:of]
		if leader := x.c.Leader(ctx); leader != nil && chance.IntN(2) == 0 {
			chosen[0] = slices.Index(x.c.Nodes, leader)
			if of > 1 && slices.Contains(chosen[1:], chosen[0]) {
				chosen = chosen[:1]
			}
		}
		if of == 3 {
			x.count("losses of the majority")
		}
		for _, i := range chosen {
			own := rand.New(rand.NewPCG(chance.Uint64(), 1))
			if busy[i].TryLock() {
				all.Go(func() { defer busy[i].Unlock(); x.disturb(ctx, x.c.Nodes[i], own) })
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second + time.Duration(chance.Int64N(int64(3*time.Second)))):
		}
	}
}

// settle finds out, by the history of the cluster, what became of the changes whose outcome nobody told: those that are in it
// were done at some time after they were asked for, the others never. It says what is wrong between that history and what
// clients were told.
func settle(history []porcupine.Operation, records map[uint64]api.Record, end int64) (settled []porcupine.Operation, open int, faults []string) {
	at := map[string]uint64{}
	for _, r := range records {
		if other, twice := at[r.Note]; twice {
			faults = append(faults, fmt.Sprintf("%s was done twice, at revisions %d and %d", r.Note, other, r.Revision))
		}
		at[r.Note] = r.Revision
	}
	for _, one := range history {
		op, a := one.Input.(asked), one.Output.(told)
		revision, is := at[op.id]
		switch {
		case op.verb == "read" && a.open:
			continue
		case op.verb == "read":
		case a.open:
			open++
			if !is {
				continue
			}
			a.revision, one.Return = revision, end
		case a.refused != 0 && is:
			faults = append(faults, fmt.Sprintf("%+v was refused (%s), and was done at revision %d", op, a.text, revision))
		case a.refused == 0 && !is:
			faults = append(faults, fmt.Sprintf("%+v was acknowledged as revision %d, and is lost", op, a.revision))
		case a.refused == 0 && a.revision != revision:
			faults = append(faults, fmt.Sprintf("%+v was acknowledged as revision %d, and is %d", op, a.revision, revision))
		}
		one.Output = a
		settled = append(settled, one)
	}
	return settled, open, faults
}

// TestNoAcknowledgedChangeIsLostAndNoReadIsStale has clients change and read what is agreed, at any of five processes, while
// these are killed, stopped in their tracks and restarted. For minutes of it: make verify.
func TestNoAcknowledgedChangeIsLostAndNoReadIsStale(t *testing.T) {
	t.Parallel()
	seed := *linearSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("-linear.seed %d -linear.for %v", seed, *linearFor)
	c := open(t)
	ctx := within(t, comeUp+*linearFor+recoverIn)
	if err := c.Found(ctx, 5, 5); err != nil {
		t.Fatal(err)
	}
	began, err := c.Nodes[0].Client().Apply(ctx, api.ApplyRequest{ID: "begin", Note: "begin", Files: []api.File{{Name: "begin.yaml",
		Data: "kind: Region\nname: eu-central-1\n---\nkind: Cluster\nname: default\nreplaceVoterAfter: 5s\n"}}})
	if err != nil {
		t.Fatal(err)
	}
	x := &torment{c: c, began: time.Now(), seen: began.Revision, records: map[uint64]api.Record{}, done: map[string]int{}}
	trouble, over := context.WithTimeout(ctx, *linearFor)
	defer over()
	var all sync.WaitGroup
	for i := range writers {
		all.Go(func() { x.ask(trouble, i, rand.New(rand.NewPCG(seed, uint64(i)))) })
	}
	all.Go(func() { x.mishaps(trouble, rand.New(rand.NewPCG(seed, 1000))) })
	all.Go(func() {
		for i := 0; trouble.Err() == nil; i++ {
			x.remember(trouble, c.Nodes[i%len(c.Nodes)])
			time.Sleep(300 * time.Millisecond)
		}
	})
	all.Wait()
	calm := time.Now()
	for _, n := range c.Nodes {
		n.Resume()
		if !n.Alive() {
			x.fault("%s ended by itself", n.Name)
		}
	}
	if err := c.Whole(ctx, 5); err != nil {
		t.Fatalf("seed %d: it does not become one again: %v", seed, err)
	}
	whole := time.Since(calm)
	var last told
	for i, n := range c.Nodes {
		if err := x.remember(ctx, n); err != nil {
			t.Fatal(err)
		}
		read := x.do(ctx, asked{verb: "read"}, n)
		if read.open || i > 0 && (read.read != last.read || read.revision != last.revision) {
			x.fault("at the end %s has %+v, the one before %+v", n.Name, read, last)
		}
		last = read
	}
	end := x.since()
	history, unknown, faults := settle(x.history, x.records, end)
	faults = slices.Concat(x.faults, faults)
	history = append(history, porcupine.Operation{ClientId: writers, Input: asked{id: "end", verb: "read"}, Call: end + 1, Output: last, Return: end + 2})
	for revision := began.Revision; revision <= last.revision; revision++ {
		if _, known := x.records[revision]; !known {
			faults = append(faults, fmt.Sprintf("revision %d is in no node's history", revision))
		}
	}
	t.Logf("%d operations, %d changes, %d of them with an outcome that nobody told; %v; one again after %v", len(x.history), last.revision-began.Revision, unknown, told2(x), whole.Round(time.Millisecond))
	if verdict, _ := porcupine.CheckOperationsVerbose(model(agreed{began.Revision, values{}}), history, searchTime); verdict != porcupine.Ok {
		faults = append(faults, fmt.Sprintf("porcupine: %s", verdict))
	}
	for _, f := range faults[:min(len(faults), 20)] {
		t.Errorf("seed %d: %s", seed, f)
	}
	if len(faults) > 0 {
		slices.SortFunc(history, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
		for _, one := range history[:min(len(history), 5000)] {
			t.Logf("%d %12v–%12v %+v → %+v", one.ClientId, time.Duration(one.Call), time.Duration(one.Return), one.Input, one.Output)
		}
	}
}

// told2 is what was done to the processes, and what clients were told, in words.
func told2(x *torment) string {
	outcomes := maps.Clone(x.done)
	for _, one := range x.history {
		op, a := one.Input.(asked), one.Output.(told)
		switch {
		case op.verb == "read" && a.open:
			outcomes["reads without an answer"]++
		case op.verb == "read":
			outcomes["fresh reads"]++
		case a.refused != 0:
			outcomes[fmt.Sprintf("changes refused with %d", a.refused)]++
		case !a.open && a.tries > 1:
			outcomes["changes acknowledged at a second try"]++
		}
	}
	var words []string
	for _, what := range slices.Sorted(maps.Keys(outcomes)) {
		words = append(words, fmt.Sprintf("%d %s", outcomes[what], what))
	}
	return strings.Join(words, ", ")
}
