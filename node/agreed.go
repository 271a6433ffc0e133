package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/store"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/node/api"
	"github.com/perigee-net/perigee/node/front"
)

// running is which revision the data plane runs, and why not a newer one.
type running struct {
	spec    *spec.Spec
	objects []store.Object
	refused string
}

// plane is a part that runs a spec: it takes all of it, or returns why not and goes on with what it had.
type plane interface{ Apply(*spec.Spec) error }

// doorTime is how often doors that stay closed are tried again.
const doorTime = 5 * time.Second

// followAgreed runs every revision that is agreed, until the context ends.
func (n *Node) followAgreed(ctx context.Context) {
	for version := uint64(0); ; {
		wait, cancel := context.WithCancel(ctx)
		if n.closed != "" {
			wait, cancel = context.WithTimeout(ctx, doorTime)
		}
		state, v, err := n.store.State().Next(wait, version)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			n.setDoors(n.running.Get().spec)
			continue
		}
		version = v
		if state == nil || state.Revision <= n.running.Get().spec.Revision {
			continue
		}
		n.runState(state)
		if err := store.SaveLast(n.cfg.Data, state); err != nil {
			n.cfg.Log.Error("the last spec is not on disk: a restart without the cluster would serve an older one", "error", err)
		}
	}
}

// runState runs a revision, or keeps the one before and says so to all.
func (n *Node) runState(state *store.State) {
	before := n.running.Get()
	now := running{objects: state.Objects}
	built, err := spec.Build(state.Revision, documents(state.Objects))
	if err == nil {
		err = n.applyAll(before.spec, built)
	}
	if err != nil {
		now.spec, now.refused = before.spec, fmt.Sprintf("revision %d: %v", state.Revision, err)
		n.cfg.Log.Error("the revision is refused, the one before goes on", "revision", state.Revision, "runs", before.spec.Revision, "error", err)
	} else {
		now.spec = built
		n.cfg.Log.Info("runs", "revision", state.Revision)
	}
	n.running.Set(now)
	n.publishRunning()
}

// applyAll gives the spec to every plane; where one refuses it, those before it get the old one back.
func (n *Node) applyAll(old, next *spec.Spec) error {
	for i, p := range n.planes {
		err := applyOne(p, next)
		if err == nil {
			continue
		}
		for _, back := range n.planes[:i] {
			if again := applyOne(back, old); again != nil {
				err = errors.Join(err, fmt.Errorf("go back to revision %d: %w", old.Revision, again))
			}
		}
		return err
	}
	n.setDoors(next)
	return nil
}

// applyOne is Apply; a part that panics on a spec has refused it.
func applyOne(p plane, s *spec.Spec) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic in %T: %v\n%s", p, r, debug.Stack())
		}
	}()
	return p.Apply(s)
}

// documents are the objects as the spec reads them. Their lines are those of the object, which begins at 1.
func documents(objects []store.Object) []spec.Document {
	docs := make([]spec.Document, len(objects))
	for i, o := range objects {
		docs[i] = spec.Document{Kind: o.Kind, Name: o.Name, Line: 1, Bytes: o.Bytes}
	}
	return docs
}

// setDoors opens what the spec wants open on this node. A door that cannot be opened is said aloud
// and tried again later; the others serve.
func (n *Node) setDoors(s *spec.Spec) {
	doors := slices.Clone(n.ownDoors)
	var closed []string
	own := map[netip.AddrPort]bool{}
	for _, d := range doors {
		own[d.Address] = true
	}
	add := func(whose string, d front.Door) {
		if own[d.Address] {
			closed = append(closed, fmt.Sprintf("%s: %s is another door of this node", whose, d.Address))
			return
		}
		own[d.Address] = true
		doors = append(doors, d)
	}
	if n.has(view.Origin) {
		for _, l := range n.origin.Listeners() {
			door := front.Door{Network: "tcp", Address: netip.AddrPortFrom(n.doorHost, l.Port)}
			if l.Protocol == spec.HTTP {
				door.Handler = n.origin.Handler(l.LoadBalancer, l.Port)
			} else {
				door.Conn = func(c net.Conn) { n.origin.ServeConn(l.LoadBalancer, l.Port, c) }
			}
			add("LoadBalancer "+l.LoadBalancer, door)
		}
	}
	if n.has(view.Edge) {
		for _, l := range n.accelerator.Listeners() {
			add("Accelerator "+l.Accelerator, front.Door{Network: "tcp", Address: l.Address, Anycast: true, Conn: n.accelerator.ConnHandler(l)})
			if n.cfg.OwnDoors {
				add("Accelerator "+l.Accelerator, front.Door{Network: "tcp", Address: netip.AddrPortFrom(n.doorHost, l.Address.Port()), Conn: n.accelerator.ConnHandler(l)})
			}
		}
	}
	if err := n.front.Set(doors); err != nil && !errors.Is(err, net.ErrClosed) { // closed: this node ends
		closed = append(closed, strings.Split(err.Error(), "\n")...)
	}
	text := strings.Join(closed, "; ")
	if text != "" && text != n.closed {
		n.cfg.Log.Error("doors stay closed", "why", text)
	}
	n.closed = text
	n.publish(doorsKey, []byte(text[:min(len(text), maxRefused)]))
}

// applyTimeout bounds how long a change waits for a leader.
const applyTimeout = 10 * time.Second

// maxConflicts is how often a change is validated anew because another came first.
const maxConflicts = 8

// apply makes one change on the leader: validated whole against what is agreed, before the log.
func (n *Node) apply(ctx context.Context, req api.ApplyRequest) (api.ApplyResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	for conflicts := 0; ; conflicts++ {
		plan, err := n.plan(ctx, req)
		if err != nil {
			return api.ApplyResponse{}, err
		}
		if req.DryRun || len(plan.response.Changes) == 0 {
			return plan.response, nil
		}
		revision, err := n.store.Apply(ctx, plan.change)
		var conflict *store.ConflictError
		var elsewhere *store.NotLeaderError
		switch {
		case err == nil:
			plan.response.Revision = revision
			return plan.response, nil
		case errors.As(err, &elsewhere):
			return api.ApplyResponse{}, api.ErrNotLeader
		case errors.As(err, &conflict) && req.Expect == nil && conflicts < maxConflicts:
			continue // another change came between; this one may still stand after it
		case errors.As(err, &conflict):
			return api.ApplyResponse{}, &api.Error{Status: http.StatusConflict, Message: err.Error()}
		default:
			return api.ApplyResponse{}, &api.Error{Status: http.StatusServiceUnavailable, Message: "apply: " + err.Error()}
		}
	}
}

// plan is a change that has been validated.
type plan struct {
	change   store.Change
	response api.ApplyResponse
}

// plan validates a change on the leader, against all that is agreed so far.
func (n *Node) plan(ctx context.Context, req api.ApplyRequest) (plan, error) {
	if leader := n.store.Leader().Get(); leader.Name != n.cfg.Name {
		return plan{}, api.ErrNotLeader
	}
	if err := n.store.Verify(ctx); err != nil {
		return plan{}, api.ErrNotLeader
	}
	return planOver(n.store.State().Get(), req)
}

// planOver validates a change against a state: pure.
func planOver(state *store.State, req api.ApplyRequest) (plan, error) {
	if state == nil {
		state = &store.State{}
	}
	if req.Expect != nil && *req.Expect != state.Revision {
		return plan{}, &api.Error{Status: http.StatusConflict,
			Message: fmt.Sprintf("the change expects revision %d, the network is at %d", *req.Expect, state.Revision)}
	}
	before := documents(state.Objects)
	after := map[spec.Ref]spec.Document{}
	for _, d := range before {
		after[d.Ref()] = d
	}
	var faults spec.Faults
	var put []spec.Document
	for _, f := range req.Files {
		docs, err := spec.Split(f.Name, []byte(f.Data))
		var some spec.Faults
		if errors.As(err, &some) {
			faults = append(faults, some...)
		} else if err != nil {
			return plan{}, &api.Error{Status: http.StatusUnprocessableEntity, Message: err.Error()}
		}
		put = append(put, docs...)
	}
	if len(faults) > 0 {
		return plan{}, refusal(faults)
	}
	first := map[spec.Ref]spec.Document{}
	for _, d := range put {
		if other, twice := first[d.Ref()]; twice {
			faults = append(faults, spec.Fault{File: d.File, Line: d.Line, Kind: d.Kind, Name: d.Name, Field: "name",
				Message: fmt.Sprintf("also at %s:%d", other.File, other.Line)})
		}
		first[d.Ref()] = d
		after[d.Ref()] = d
	}
	change := store.Change{ID: req.ID, Expect: &state.Revision, Author: req.Author, Time: time.Now().UTC()}
	for _, r := range req.Delete {
		kind, ok := spec.LookupKind(r.Kind)
		ref := spec.Ref{Kind: kind.Name, Name: r.Name}
		if _, there := after[ref]; !ok || !there {
			return plan{}, &api.Error{Status: http.StatusNotFound, Message: fmt.Sprintf("no %s %q", r.Kind, r.Name)}
		}
		delete(after, ref)
		change.Delete = append(change.Delete, store.Ref{Kind: kind.Name, Name: r.Name})
	}
	// What is asked for comes last: where it and what stands exclude each other, the fault is its own.
	all := slices.SortedFunc(maps.Values(after), func(a, b spec.Document) int {
		_, aNew := first[a.Ref()]
		_, bNew := first[b.Ref()]
		if aNew != bNew {
			if aNew {
				return 1
			}
			return -1
		}
		return a.Ref().Compare(b.Ref())
	})
	if _, err := spec.Build(state.Revision+1, all); err != nil {
		var some spec.Faults
		if !errors.As(err, &some) {
			return plan{}, &api.Error{Status: http.StatusUnprocessableEntity, Message: err.Error()}
		}
		faults = append(faults, some...)
	}
	bytesInAll := 0
	for _, d := range put {
		if bytesInAll += len(d.Bytes); len(d.Bytes) > store.MaxObject {
			faults = append(faults, spec.Fault{File: d.File, Line: d.Line, Kind: d.Kind, Name: d.Name,
				Message: fmt.Sprintf("has %d bytes as it is written: at most %d are kept", len(d.Bytes), store.MaxObject)})
		}
	}
	if len(faults) > 0 {
		return plan{}, refusal(faults)
	}
	if bytesInAll > store.MaxChange {
		return plan{}, &api.Error{Status: http.StatusUnprocessableEntity,
			Message: fmt.Sprintf("the change has %d bytes: at most %d at once, so apply it in parts", bytesInAll, store.MaxChange)}
	}
	res := api.ApplyResponse{Revision: state.Revision}
	for _, c := range spec.Diff(before, all) {
		res.Changes = append(res.Changes, api.Change{Op: string(c.Op), Kind: c.Kind, Name: c.Name, Fields: c.Fields})
		if d, ok := first[c.Ref]; ok {
			change.Put = append(change.Put, store.Object{Kind: d.Kind, Name: d.Name, Bytes: d.Bytes})
			delete(first, c.Ref)
		}
	}
	for _, d := range before { // what is left may still be written otherwise
		if now, ok := first[d.Ref()]; ok && !bytes.Equal(d.Bytes, now.Bytes) {
			res.Changes = append(res.Changes, api.Change{Op: string(spec.Updated), Kind: d.Kind, Name: d.Name, Fields: []string{"how it is written, not what it means"}})
			change.Put = append(change.Put, store.Object{Kind: d.Kind, Name: d.Name, Bytes: now.Bytes})
		}
	}
	if len(res.Changes) > 0 {
		res.Revision++
	}
	return plan{change: change, response: res}, nil
}

func refusal(faults spec.Faults) *api.Error {
	e := &api.Error{Status: http.StatusUnprocessableEntity, Message: "the spec is refused, nothing has changed:"}
	for _, f := range faults {
		if f.File == "" { // it stands already, and what is asked for would break it: its lines are in nobody's hands
			f.Line = 0
			f.Message, _, _ = strings.Cut(f.Message, " (did you mean")
		}
		e.Faults = append(e.Faults, f.String())
	}
	return e
}

// diff says what a change would do, on any node.
func (n *Node) diff(_ context.Context, req api.ApplyRequest) (api.ApplyResponse, error) {
	state := n.store.State().Get()
	if run := n.running.Get(); run.spec.Revision > state.Revision { // Raft has not told yet what the disk knows
		state = &store.State{Revision: run.spec.Revision, Objects: run.objects}
	}
	p, err := planOver(state, req)
	return p.response, err
}

// resources lists what is agreed.
func (n *Node) resources(kind, name string) (api.ResourceList, error) {
	if kind != "" {
		known, ok := spec.LookupKind(kind)
		if !ok {
			return api.ResourceList{}, &api.Error{Status: http.StatusNotFound, Message: fmt.Sprintf("no kind %q", kind)}
		}
		kind = known.Name
	}
	run := n.running.Get()
	list := api.ResourceList{Revision: run.spec.Revision, Resources: []api.Resource{}}
	for _, o := range run.objects {
		if kind != "" && o.Kind != kind || name != "" && o.Name != name {
			continue
		}
		r := api.Resource{Kind: o.Kind, Name: o.Name, Revision: o.Revision, YAML: string(o.Bytes)}
		if understood, ok := run.spec.Resource(o.Kind, o.Name); ok {
			r.Spec = understood
		}
		list.Resources = append(list.Resources, r)
	}
	if name != "" && len(list.Resources) == 0 {
		return list, &api.Error{Status: http.StatusNotFound, Message: fmt.Sprintf("no %s %q", kind, name)}
	}
	return list, nil
}

// Keys of what a node publishes by gossip, besides its verdicts.
const (
	runningKey = "running"
	refusedKey = "refused"
	doorsKey   = "doors"   // which stay closed, and why
	leavingKey = "leaving" // it ends: nothing new is sent there
	verdictKey = "h/"      // and the health key
)

// maxRefused bounds the reason that travels, in bytes.
const maxRefused = 400

// publishRunning tells the others which revision runs here.
func (n *Node) publishRunning() {
	run := n.running.Get()
	n.publish(runningKey, []byte(strconv.FormatUint(run.spec.Revision, 10)))
	var refused []byte
	if run.refused != "" {
		refused = []byte(run.refused[:min(len(run.refused), maxRefused)])
	}
	n.publish(refusedKey, refused)
}

func (n *Node) publish(key string, value []byte) {
	if err := n.gossip.Publish(key, value); err != nil {
		n.cfg.Log.Error("publish", "key", key, "error", err)
	}
}
