package node

import (
	"errors"
	"sync"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/store"
)

// keptSpecs is how many of the newest builds are kept: that which runs, and that of the newest change on its way into the
// log. Another is built again from the nearest of these where it is asked for. Each holds a list of all objects.
const keptSpecs = 2

// specs builds the specs of states, each from the newest one that is built: the cost is that of what differs. What the
// leader built to judge a change is what it runs afterwards.
type specs struct {
	// open opens a sealed secret of a resource's field.
	open func(ref spec.Ref, field, sealed string) ([]byte, error)

	mu   sync.Mutex
	kept []build // the newest last
}

// build is one spec, and the objects it was made of.
type build struct {
	table *store.Table
	spec  *spec.Spec
}

func (b build) of(t *store.Table) bool {
	return b.table == t || b.table.Revision == t.Revision && b.table.Sum() == t.Sum()
}

// stored are the options for what is agreed: what a newer release wrote is passed over.
func (k *specs) stored() spec.Options { return spec.Options{Open: k.open, Stored: true} }

// strict are those for what is asked for.
func (k *specs) strict() spec.Options { return spec.Options{Open: k.open} }

// at is the spec of a state. Its error is spec.Faults.
func (k *specs) at(t *store.Table) (*spec.Spec, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, b := range k.kept {
		if b.of(t) {
			return b.spec, nil
		}
	}
	built, err := k.build(t)
	if err != nil {
		return nil, err
	}
	k.add(build{t, built})
	return built, nil
}

func (k *specs) build(t *store.Table) (*spec.Spec, error) {
	if len(k.kept) == 0 {
		return spec.Build(t.Revision, documents(t.Objects), k.stored())
	}
	from := k.kept[len(k.kept)-1]
	edits := store.Changed(from.table, t)
	var gone []spec.Ref
	for _, r := range edits.Delete {
		gone = append(gone, spec.Ref{Kind: r.Kind, Name: r.Name})
	}
	put := documents(edits.Put)
	for i := range put {
		o, _ := from.table.Get(put[i].Kind, put[i].Name)
		put[i].Before = o.Bytes
	}
	built, err := from.spec.With(t.Revision, put, gone, k.stored())
	if errors.As(err, new(spec.Faults)) {
		// What a release before this one agreed to may stand with faults that this one sees: they are told of the whole.
		return spec.Build(t.Revision, documents(t.Objects), k.stored())
	}
	return built, err
}

// keep remembers a spec that was built elsewhere for a state.
func (k *specs) keep(t *store.Table, s *spec.Spec) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, b := range k.kept {
		if b.of(t) {
			return
		}
	}
	k.add(build{t, s})
}

func (k *specs) add(b build) {
	if len(k.kept) == keptSpecs {
		k.kept = append(k.kept[:0], k.kept[1:]...)
	}
	k.kept = append(k.kept, b)
}

// documents are the objects as the spec reads them. Their lines are those of the object, which begins at 1.
func documents(objects []store.Object) []spec.Document {
	docs := make([]spec.Document, len(objects))
	for i, o := range objects {
		docs[i] = spec.Document{Kind: o.Kind, Name: o.Name, Line: 1, Bytes: o.Bytes}
	}
	return docs
}
