package roster

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"time"

	"github.com/perigee-net/perigee/cluster/store"
)

// read reads an object's bytes, JSON. Fields that are not known here are passed over: they stand in the bytes, from where
// a rewrite takes them.
func read[V any](o store.Object, finish func(v *V, name string) error) (*V, error) {
	v := new(V)
	if err := json.Unmarshal(o.Bytes, v); err != nil {
		return nil, err
	}
	return v, finish(v, o.Name)
}

func readInto[V any](e *edited[V], o store.Object, finish func(v *V, name string) error) error {
	v, err := read(o, finish)
	if err == nil {
		e.set(o.Name, *v)
	}
	return err
}

// written is v as JSON, with those fields of the bytes that it replaces, if any, that its type does not know.
func written(v any, replaced []byte) ([]byte, error) {
	fresh, err := json.Marshal(v)
	if err != nil || replaced == nil {
		return fresh, err
	}
	var all, known map[string]json.RawMessage
	if err := json.Unmarshal(replaced, &all); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(fresh, &known); err != nil {
		return nil, err
	}
	for _, field := range reflect.VisibleFields(reflect.TypeOf(v)) {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		maps.DeleteFunc(all, func(key string, _ json.RawMessage) bool { return strings.EqualFold(key, name) }) // as Unmarshal reads it
	}
	if all == nil {
		all = known
	}
	maps.Copy(all, known)
	return json.Marshal(all)
}

// change begins a change of the table that the roster was read from.
func (r *Roster) change(author string, now time.Time, note string, args ...any) store.Change {
	revision := r.Revision
	return store.Change{Space: store.Own, Expect: &revision, Author: author, Note: fmt.Sprintf(note, args...), Time: now}
}

// put has the change write an object, over the one that has its name.
func (r *Roster) put(c *store.Change, kind, name string, v any) error {
	var replaced []byte
	if o, found := r.table.Get(kind, name); found {
		replaced = o.Bytes
	}
	b, err := written(v, replaced)
	if err != nil {
		return fmt.Errorf("write %s %s: %w", kind, name, err)
	}
	c.Put = append(c.Put, store.Object{Kind: kind, Name: name, Bytes: b})
	return nil
}

func drop(c *store.Change, kind, name string) {
	c.Delete = append(c.Delete, store.Ref{Kind: kind, Name: name})
}
