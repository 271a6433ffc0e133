package node

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/perigee-net/perigee/cluster/roster"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/store"
	"github.com/perigee-net/perigee/node/api"
)

// base is what a change is judged against: a state, and the spec that it means.
type base struct {
	state *store.State
	spec  *spec.Spec
}

// plan is a change that has been judged: it may go into the log.
type plan struct {
	change   store.Change
	spec     *spec.Spec // what it leads to
	response api.ApplyResponse
}

// empty says that the change has no effect.
func (p plan) empty() bool { return len(p.change.Put)+len(p.change.Delete) == 0 }

// planner judges what is asked for. It is pure: the same question over the same base has the same answer.
type planner struct {
	options spec.Options
	// seal seals a secret field before it is kept anywhere.
	seal func(ref spec.Ref, field string, plain []byte) string
	now  func() time.Time
	// whole: the change does not go through the log, and may be of any size.
	whole bool
}

// apply judges the documents of some files, and deletions.
func (p planner) apply(over base, who roster.Principal, req api.ApplyRequest) (plan, error) {
	files, err := inFull(over, who, req.Files)
	if err != nil {
		return plan{}, err
	}
	put, err := p.documents(over, files)
	if err != nil {
		return plan{}, err
	}
	named := map[spec.Ref]bool{}
	for _, d := range put {
		named[d.Ref()] = true
	}
	gone, err := toDelete(over.spec, req, named)
	if err != nil {
		return plan{}, err
	}
	put = slices.DeleteFunc(put, func(d spec.Document) bool {
		now, there := over.state.Get(d.Kind, d.Name)
		return there && bytes.Equal(now.Bytes, d.Bytes)
	})
	size := 0
	for _, f := range files {
		size += len(f.Data)
	}
	for i, d := range put {
		if len(d.Bytes) < size-size/8 { // the leader keeps it: it must not be a part of a file that is much larger
			put[i].Bytes = bytes.Clone(d.Bytes)
		}
	}
	return p.judge(over, who, put, gone, p.options, store.Change{ID: req.ID, Note: req.Note})
}

// inFull puts files together that come in parts, from what stands and whoever asks may touch.
func inFull(over base, who roster.Principal, files []api.File) ([]api.File, error) {
	files = slices.Clone(files)
	most := api.MaxBody // of all together, as if they had come whole
	for i, f := range files {
		if most -= max(f.Length, 0); most < 0 {
			return nil, &api.Error{Status: http.StatusRequestEntityTooLarge, Message: fmt.Sprintf("the files have more than %d bytes", api.MaxBody)}
		}
		var err error
		if files[i], err = f.Whole(func(p api.Part) ([]byte, bool) {
			stands, there := over.state.Get(p.Kind, p.Name)
			return stands.Bytes, there && stands.Revision == p.Revision && who.MayTouch(p.Kind, p.Name)
		}); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// rollback judges the way back to how all was at an earlier revision.
func (p planner) rollback(over base, who roster.Principal, req api.RollbackRequest) (plan, error) {
	then, err := over.state.At(req.Revision)
	if err != nil {
		return plan{}, &api.Error{Status: http.StatusNotFound, Message: err.Error()}
	}
	note := fmt.Sprintf("rollback to revision %d", req.Revision)
	if req.Note != "" {
		note += ": " + req.Note
	}
	return p.become(over, who, &then.Table, store.Change{ID: req.ID, Note: note})
}

// become judges the change that makes the spec what a table holds, all of it.
func (p planner) become(over base, who roster.Principal, want *store.Table, change store.Change) (plan, error) {
	edits := store.Changed(&over.state.Table, want)
	var gone []spec.Ref
	for _, r := range edits.Delete {
		gone = append(gone, spec.Ref{Kind: r.Kind, Name: r.Name})
	}
	put := slices.DeleteFunc(documents(edits.Put), func(d spec.Document) bool {
		now, there := over.state.Get(d.Kind, d.Name)
		return there && bytes.Equal(now.Bytes, d.Bytes) // only its revision is another
	})
	stored := p.options
	stored.Stored = true // it was agreed before, by whatever release
	return p.judge(over, who, put, gone, stored, change)
}

// documents reads the files. Secrets are sealed from here on.
func (p planner) documents(over base, files []api.File) ([]spec.Document, error) {
	var faults spec.Faults
	var all []spec.Document
	for _, f := range files {
		docs, err := over.spec.Split(f.Name, []byte(f.Data), func(r spec.Ref) []byte {
			o, _ := over.state.Get(r.Kind, r.Name)
			return o.Bytes
		})
		var some spec.Faults
		if errors.As(err, &some) {
			faults = append(faults, some...)
		} else if err != nil {
			return nil, &api.Error{Status: http.StatusUnprocessableEntity, Message: err.Error()}
		}
		all = append(all, docs...)
	}
	if len(faults) > 0 {
		return nil, refusal(faults)
	}
	first := map[spec.Ref]spec.Document{}
	for _, d := range all {
		if other, twice := first[d.Ref()]; twice {
			faults = append(faults, spec.Fault{File: d.File, Line: d.Line, Kind: d.Kind, Name: d.Name, Field: "name",
				Message: fmt.Sprintf("also at %s:%d", other.File, other.Line)})
			continue
		}
		first[d.Ref()] = d
	}
	if len(faults) > 0 {
		return nil, refusal(faults)
	}
	sealed, err := spec.Seal(all, p.seal)
	if err != nil {
		return nil, refused(err)
	}
	return sealed, nil
}

// toDelete are the resources that are to go: those named, and with a selector those that have its labels and are in none
// of the files.
func toDelete(now *spec.Spec, req api.ApplyRequest, put map[spec.Ref]bool) ([]spec.Ref, error) {
	var gone []spec.Ref
	for _, r := range req.Delete {
		kind, ok := spec.LookupKind(r.Kind)
		if !ok {
			return nil, &api.Error{Status: http.StatusNotFound, Message: fmt.Sprintf("no kind %q", r.Kind)}
		}
		ref := spec.Ref{Kind: kind.Name, Name: r.Name}
		if _, there := now.Resource(kind.Name, r.Name); !there {
			return nil, &api.Error{Status: http.StatusNotFound, Message: fmt.Sprintf("no %s %q", kind.Name, r.Name)}
		}
		if !put[ref] && !slices.Contains(gone, ref) {
			gone = append(gone, ref)
		}
	}
	if req.Prune == nil {
		return gone, nil
	}
	if len(req.Prune.Labels) == 0 {
		return nil, &api.Error{Status: http.StatusBadRequest, Message: "prune needs at least one label: without one it would delete all that the files do not name"}
	}
	for r := range now.Each("") {
		if has(r.Labels(), req.Prune.Labels) && !put[r.Ref] && !slices.Contains(gone, r.Ref) {
			gone = append(gone, r.Ref)
		}
	}
	return gone, nil
}

// has says whether all wanted labels are there.
func has(labels, want map[string]string) bool {
	for k, v := range want {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// judge judges a change whose documents all differ from what stands, or are new. The leader keeps their bytes.
func (p planner) judge(over base, who roster.Principal, put []spec.Document, gone []spec.Ref, o spec.Options, change store.Change) (plan, error) {
	revision := over.state.Revision
	change.Space, change.Expect, change.Author, change.Time = store.Spec, &revision, who.Name, p.now().UTC()
	if len(put)+len(gone) == 0 {
		return plan{change: change, spec: over.spec, response: api.ApplyResponse{Revision: revision, Changes: []api.Change{}}}, nil
	}
	size := 0
	for _, d := range put {
		if !who.MayTouch(d.Kind, d.Name) {
			return plan{}, forbidden(who, d.Ref())
		}
		change.Put = append(change.Put, store.Object{Kind: d.Kind, Name: d.Name, Bytes: d.Bytes})
		size += len(d.Bytes)
	}
	for _, r := range gone {
		if !who.MayTouch(r.Kind, r.Name) {
			return plan{}, forbidden(who, r)
		}
		change.Delete = append(change.Delete, store.Ref{Kind: r.Kind, Name: r.Name})
	}
	if size > store.MaxChange && !p.whole {
		return plan{}, &api.Error{Status: http.StatusUnprocessableEntity,
			Message: fmt.Sprintf("the change has %d bytes: at most %d at once, so apply it in parts", size, store.MaxChange)}
	}
	next, err := over.spec.With(revision+1, put, gone, o)
	if err != nil {
		return plan{}, refused(err)
	}
	return plan{change: change, spec: next, response: api.ApplyResponse{Revision: revision + 1, Changes: differences(over.state, put, gone, over.spec, next)}}, nil
}

// appliedBefore is the answer to a change that was applied before, at a revision: what it changed, as far as that is remembered.
func appliedBefore(state *store.State, revision uint64) api.ApplyResponse {
	res := api.ApplyResponse{Revision: revision, Changes: []api.Change{}}
	before, err := state.At(revision - 1)
	if err != nil {
		return res
	}
	after, err := state.At(revision)
	if err != nil {
		return res
	}
	edits := store.Changed(&before.Table, &after.Table)
	var gone []spec.Ref
	for _, r := range edits.Delete {
		gone = append(gone, spec.Ref{Kind: r.Kind, Name: r.Name})
	}
	res.Changes = differences(before, documents(edits.Put), gone, nil, nil)
	return res
}

// differences says what a change does to each resource; the specs are those before and after it, if they are at hand.
func differences(state *store.State, put []spec.Document, gone []spec.Ref, had, has *spec.Spec) []api.Change {
	var before []spec.Document
	was := func(r spec.Ref) {
		if o, there := state.Get(r.Kind, r.Name); there {
			before = append(before, documents([]store.Object{o})...)
		}
	}
	for _, d := range put {
		was(d.Ref())
	}
	for _, r := range gone {
		was(r)
	}
	told := map[spec.Ref]bool{}
	changes := []api.Change{}
	for _, c := range spec.DiffOf(before, put, had, has) {
		told[c.Ref] = true
		changes = append(changes, api.Change{Op: string(c.Op), Kind: c.Kind, Name: c.Name, Fields: c.Fields})
	}
	for _, d := range put { // the bytes differ all the same
		if !told[d.Ref()] {
			changes = append(changes, api.Change{Op: string(spec.Updated), Kind: d.Kind, Name: d.Name, Fields: []string{"how it is written, not what it means"}})
		}
	}
	return changes
}

func forbidden(who roster.Principal, r spec.Ref) *api.Error {
	return &api.Error{Status: http.StatusForbidden, Message: fmt.Sprintf("%s may not change %s: it is limited to %s", who.Name, r, strings.Join(who.Resources, ", "))}
}

// refused is the API's error for what the spec says.
func refused(err error) *api.Error {
	var faults spec.Faults
	if errors.As(err, &faults) {
		return refusal(faults)
	}
	return &api.Error{Status: http.StatusUnprocessableEntity, Message: err.Error()}
}

func refusal(faults spec.Faults) *api.Error {
	e := &api.Error{Status: http.StatusUnprocessableEntity, Message: "the spec is refused, nothing has changed:"}
	unknown := false
	for _, f := range faults {
		unknown = unknown || strings.HasPrefix(f.Message, "no such ")
		if f.File == "" { // it stands already, and what is asked for would break it: its lines are in nobody's hands
			f.Line = 0
			f.Message, _, _ = strings.Cut(f.Message, " (did you mean")
		}
		e.Faults = append(e.Faults, f.String())
	}
	if unknown {
		e.Faults = append(e.Faults, "(the leader judges by its own release: what a newer release has can be applied when all nodes are upgraded)")
	}
	return e
}
