// Package kept is how the parts that serve a spec keep what they made of the one before: what changed between two
// tables of resources, and maps and lists of which the unchanged part is shared. A change of one resource of very
// many then costs what it touches, and one quick look along the table it stands in.
//
// It goes by pointers: resources are immutable, and one that is the same pointer in two specs has not changed
// (spec.Spec.With). Where all pointers differ all is told as changed, which is slower and as right.
package kept

import (
	"hash/maphash"
	"iter"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Change is one resource that is not what it was. Old is nil where there was none, New where there is none any more.
type Change[T any] struct {
	Name     string
	Old, New *T
}

// Changes are those between two tables of resources, by name. A resource must stand under one name, its own.
//
// Looking up every name of one table in the other would read all names, which lie all over the memory. So first the
// pointers are added up, in buckets: that reads both tables from one end to the other and nothing else, and takes half the
// time at 100,000 where they are not in the processor's cache. Only what is in a bucket whose sums differ is looked up. A
// change is missed if the sums of two sets of hashes of 64 bits are the same by chance.
func Changes[T any](old, new map[string]*T) []Change[T] {
	if same(old, new) {
		return nil
	}
	if len(old) == 0 {
		changes := make([]Change[T], 0, len(new))
		for name, now := range new {
			changes = append(changes, Change[T]{Name: name, New: now})
		}
		return sorted(changes)
	}
	var sums [buckets]uint64
	for _, r := range old {
		h := hash(r)
		sums[h%buckets] -= h
	}
	for _, r := range new {
		h := hash(r)
		sums[h%buckets] += h
	}
	var changes []Change[T]
	gone := len(old) - len(new) // and as many more as came
	for name, now := range new {
		if sums[hash(now)%buckets] == 0 {
			continue
		}
		if was := old[name]; was != now {
			changes = append(changes, Change[T]{name, was, now})
			if was == nil {
				gone++
			}
		}
	}
	for name, was := range old {
		if gone == 0 {
			break
		}
		if sums[hash(was)%buckets] == 0 {
			continue
		}
		if _, has := new[name]; !has {
			changes = append(changes, Change[T]{Name: name, Old: was})
			gone--
		}
	}
	return sorted(changes)
}

func sorted[T any](changes []Change[T]) []Change[T] {
	slices.SortFunc(changes, func(a, b Change[T]) int { return strings.Compare(a.Name, b.Name) })
	return changes
}

const buckets = 4096

// hash spreads a pointer (the finalizer of MurmurHash3), so that sums of hashes tell sets of pointers apart.
func hash[T any](r *T) uint64 {
	h := uint64(reflect.ValueOf(r).Pointer())
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// same says whether two tables are one and the same, as those of kinds are in which nothing changed.
func same[T any](a, b map[string]*T) bool {
	return reflect.ValueOf(a).UnsafePointer() == reflect.ValueOf(b).UnsafePointer()
}

// parts is in how many a Map is divided; an edit copies those that it touches. Of 100,000 entries, one has 400.
const parts = 256

// Map is an immutable map, made of another by Edit at the cost of what differs. Nil is empty.
type Map[K comparable, V any] struct {
	seed  maphash.Seed
	parts [parts]map[K]V
	size  int
}

// Len is how many entries there are.
func (m *Map[K, V]) Len() int {
	if m == nil {
		return 0
	}
	return m.size
}

// Lookup returns the value of a key, if there is one.
func (m *Map[K, V]) Lookup(k K) (V, bool) {
	if m == nil {
		var none V
		return none, false
	}
	v, ok := m.parts[m.part(k)][k]
	return v, ok
}

// Get returns the value of a key, zero if there is none.
func (m *Map[K, V]) Get(k K) V {
	v, _ := m.Lookup(k)
	return v
}

// All yields the entries, in no order.
func (m *Map[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		if m == nil {
			return
		}
		for _, part := range m.parts {
			for k, v := range part {
				if !yield(k, v) {
					return
				}
			}
		}
	}
}

func (m *Map[K, V]) part(k K) int { return int(maphash.Comparable(m.seed, k) % parts) }

// Edit begins a map that differs from this one, which stays as it is.
func (m *Map[K, V]) Edit() *Edit[K, V] {
	if m == nil {
		return &Edit[K, V]{next: Map[K, V]{seed: maphash.MakeSeed()}}
	}
	return &Edit[K, V]{from: m, next: *m}
}

// Edit is a map in the making. It is for one goroutine.
type Edit[K comparable, V any] struct {
	from   *Map[K, V]
	next   Map[K, V]
	copied [parts]bool
	edited bool
}

// Lookup returns the value of a key as it is now, if there is one.
func (e *Edit[K, V]) Lookup(k K) (V, bool) { return e.next.Lookup(k) }

// Set gives a key a value.
func (e *Edit[K, V]) Set(k K, v V) {
	part := e.own(k)
	before := len(part)
	part[k] = v
	e.next.size += len(part) - before
}

// Delete takes a key away, if it is there.
func (e *Edit[K, V]) Delete(k K) {
	if _, has := e.next.Lookup(k); has {
		delete(e.own(k), k)
		e.next.size--
	}
}

// own returns the part that a key belongs to, which may be changed.
func (e *Edit[K, V]) own(k K) map[K]V {
	i := e.next.part(k)
	if !e.copied[i] {
		e.copied[i], e.edited = true, true
		if e.next.parts[i] = maps.Clone(e.next.parts[i]); e.next.parts[i] == nil {
			e.next.parts[i] = map[K]V{}
		}
	}
	return e.next.parts[i]
}

// Map ends the edit. Where nothing was edited it is the one that the edit began with.
func (e *Edit[K, V]) Map() *Map[K, V] {
	if !e.edited && e.from != nil {
		return e.from
	}
	return &e.next
}

// List is a sorted list without the elements that are gone and with those that come. It sorts gone and come in place, and does
// not change the list; where none goes or comes it is returned as it is.
func List[T any](list, gone, come []T, compare func(a, b T) int) []T {
	if len(gone)+len(come) == 0 {
		return list
	}
	slices.SortFunc(gone, compare)
	slices.SortFunc(come, compare)
	next := make([]T, 0, max(0, len(list)-len(gone)+len(come)))
	for len(gone)+len(come) > 0 {
		if len(gone) > 0 && (len(come) == 0 || compare(gone[0], come[0]) <= 0) {
			i, there := slices.BinarySearchFunc(list, gone[0], compare)
			next, list, gone = append(next, list[:i]...), list[i:], gone[1:]
			if there {
				list = list[1:]
			}
			continue
		}
		i, _ := slices.BinarySearchFunc(list, come[0], compare)
		next, list, come = append(append(next, list[:i]...), come[0]), list[i:], come[1:]
	}
	return append(next, list...)
}
