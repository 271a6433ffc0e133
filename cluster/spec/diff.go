package spec

import (
	"bytes"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Op is what becomes of a resource.
type Op string

// The operations.
const (
	Created Op = "created"
	Updated Op = "updated"
	Deleted Op = "deleted"
)

// Change is one resource that differs between two sets of documents.
type Change struct {
	Op Op `json:"op"`
	Ref
	// Fields say what differs in an updated resource, a line each, for people: listeners[0].port: 80 → 8080. What is only
	// in the new is marked +, what is only in the old −. Empty where one of the two cannot be read.
	Fields []string `json:"fields,omitempty"`
}

// Diff compares documents by kind and name, in the order of Ref.Compare. Resources are compared by what they mean,
// defaults included: neither comments nor layout matter, nor whether a default is written out.
func Diff(old, new []Document) []Change { return DiffOf(old, new, nil, nil) }

// DiffOf is Diff of documents that two specs were made of, which are not read again where those have what they mean. Either may
// be nil.
func DiffOf(old, new []Document, had, has *Spec) []Change {
	before, after := byRef(old), byRef(new)
	var changes []Change
	for ref, b := range before {
		if _, stays := after[ref]; !stays {
			changes = append(changes, Change{Op: Deleted, Ref: b.Ref()})
		}
	}
	for ref, a := range after {
		b, was := before[ref]
		if !was {
			changes = append(changes, Change{Op: Created, Ref: ref})
			continue
		}
		if bytes.Equal(a.Bytes, b.Bytes) {
			continue
		}
		if fields, differ := compare(b, a, had, has); differ {
			changes = append(changes, Change{Op: Updated, Ref: ref, Fields: fields})
		}
	}
	slices.SortFunc(changes, func(a, b Change) int { return a.Ref.Compare(b.Ref) })
	return changes
}

func byRef(docs []Document) map[Ref]Document {
	m := make(map[Ref]Document, len(docs))
	for _, d := range docs {
		m[d.Ref()] = d
	}
	return m
}

func compare(old, new Document, had, has *Spec) (fields []string, differ bool) {
	kind, known := exactKind(old.Kind)
	if !known {
		return nil, true
	}
	a, okA := meaning(old, kind, had)
	b, okB := meaning(new, kind, has)
	if !okA || !okB {
		return nil, true
	}
	var c comparison
	c.value("", kind.shape, a, b)
	return c.lines, len(c.lines) > 0
}

// meaning is a document's resource with its defaults, if it can be read. Its secrets stay sealed.
// A spec that was made of it has that, but where it has opened secrets or passed over fields.
func meaning(doc Document, kind Kind, of *Spec) (v reflect.Value, ok bool) {
	if of != nil && !kind.shape.secret && !slices.ContainsFunc(of.Unknown, func(u Unknown) bool { return u.Ref == doc.Ref() }) {
		if made, ok := kind.get(of, doc.Name); ok {
			return reflect.ValueOf(made).Elem(), true
		}
	}
	root, u := read(doc.Bytes, doc.Line)
	if u != nil {
		return reflect.Value{}, false
	}
	ok = true
	d := decoder{fault: func(int, string, string) { ok = false }}
	resource := kind.make()
	d.resource(&root, kind.shape, resource)
	complete(resource)
	return reflect.ValueOf(resource).Elem(), ok
}

// comparison gathers the differences of one resource.
type comparison struct {
	lines []string
}

func (c *comparison) add(path, format string, args ...any) {
	c.lines = append(c.lines, path+": "+fmt.Sprintf(format, args...))
}

func (c *comparison) value(path string, s *shape, a, b reflect.Value) {
	if absent(s, a) || absent(s, b) {
		switch {
		case !absent(s, b):
			c.add(path, "+ %s", show(s, b))
		case !absent(s, a):
			c.add(path, "− %s", show(s, a))
		}
		return
	}
	if s.pointer {
		a, b = a.Elem(), b.Elem()
	}
	switch {
	case s.form == formStructure:
		for _, f := range s.fields {
			below := f.name
			if path != "" {
				below = path + "." + f.name
			}
			c.value(below, f.shape, a.Field(f.index), b.Field(f.index))
		}
	case s.packed:
		c.records(path, s.item, a.Interface().(Records), b.Interface().(Records))
	case s.form == formList:
		c.list(path, s.item, a, b, 0)
	case s.form == formLabels:
		c.labels(path, a.Interface().(map[string]string), b.Interface().(map[string]string))
	case s.form == formSecret && !a.Equal(b):
		c.add(path, "%s, another than before", Secret{})
	case !a.Equal(b):
		c.add(path, "%s → %s", show(s, a), show(s, b))
	}
}

// absent says whether a value says nothing: it was not given and has no default.
func absent(s *shape, v reflect.Value) bool {
	switch {
	case s.pointer:
		return v.IsNil()
	case s.packed:
		return v.Interface().(Records).IsZero()
	case s.form == formList, s.form == formLabels:
		return v.Len() == 0
	case s.form == formSwitch, s.form == formFraction, s.form == formStructure:
		return false
	}
	return v.IsZero()
}

func (c *comparison) labels(path string, a, b map[string]string) {
	both := maps.Clone(a)
	maps.Copy(both, b)
	for _, key := range slices.Sorted(maps.Keys(both)) {
		was, had := a[key]
		is, has := b[key]
		switch below := path + "." + key; {
		case !has:
			c.add(below, "− %s", quoteText(was))
		case !had:
			c.add(below, "+ %s", quoteText(is))
		case was != is:
			c.add(below, "%s → %s", quoteText(was), quoteText(is))
		}
	}
}

// records compares records as list does; those at the beginning and at the end that are the same take no names to be paired.
func (c *comparison) records(path string, item *shape, a, b Records) {
	head, tail := a.Alike(b)
	middle := func(r Records) reflect.Value {
		var list []Record
		for i := head; i < r.Len()-tail; i++ {
			list = append(list, r.At(i))
		}
		return reflect.ValueOf(list)
	}
	c.list(path, item, middle(a), middle(b), head)
}

// list compares the items that are the same thing with each other. Items that stand alone between those
// are compared too if there are as many in the old as in the new. There are some before the lists that are not compared.
func (c *comparison) list(path string, item *shape, a, b reflect.Value, before int) {
	pairs := align(identities(item, a), identities(item, b))
	i, j := 0, 0
	for _, pair := range append(pairs, [2]int{a.Len(), b.Len()}) {
		if item.form == formStructure && pair[0]-i == pair[1]-j {
			for ; i < pair[0]; i, j = i+1, j+1 {
				c.value(at(path, before+j), item, a.Index(i), b.Index(j))
			}
		}
		for ; i < pair[0]; i++ {
			c.add(at(path, before+i), "− %s", show(item, a.Index(i)))
		}
		for ; j < pair[1]; j++ {
			c.add(at(path, before+j), "+ %s", show(item, b.Index(j)))
		}
		if i < a.Len() && j < b.Len() {
			c.value(at(path, before+j), item, a.Index(i), b.Index(j))
			i, j = i+1, j+1
		}
	}
}

// identities are what tells the items of a list apart: the fields that name them, or all they say.
func identities(item *shape, list reflect.Value) []string {
	naming := []string{"name", "type", "setIdentifier", "priority", "address", "protocol", "port", "pathPattern", "region", "fromPort",
		"targetGroup", "loadBalancer"}
	keys := make([]string, list.Len())
	for i := range keys {
		v := list.Index(i)
		for _, f := range item.fields {
			if slices.Contains(naming, f.name) {
				keys[i] += show(f.shape, v.Field(f.index)) + " "
			}
		}
		if keys[i] == "" {
			keys[i] = show(item, v)
		}
	}
	return keys
}

// align pairs equal keys of two lists without crossing, as many as there can be.
func align(a, b []string) (pairs [][2]int) {
	// most bounds the table of lengths, as the square; what stands between is compared by position beyond it.
	const most = 1000
	i := 0
	for i < min(len(a), len(b)) && a[i] == b[i] {
		pairs = append(pairs, [2]int{i, i})
		i++
	}
	tail := 0
	for tail < min(len(a), len(b))-i && a[len(a)-1-tail] == b[len(b)-1-tail] {
		tail++
	}
	x, y := a[i:len(a)-tail], b[i:len(b)-tail]
	if len(x) <= most && len(y) <= most {
		for _, p := range longestCommon(x, y) {
			pairs = append(pairs, [2]int{i + p[0], i + p[1]})
		}
	}
	for ; tail > 0; tail-- {
		pairs = append(pairs, [2]int{len(a) - tail, len(b) - tail})
	}
	return pairs
}

// longestCommon pairs the longest common subsequence of two lists.
func longestCommon(a, b []string) (pairs [][2]int) {
	lengths := make([][]int, len(a)+1) // of the rests from i and j
	for i := range lengths {
		lengths[i] = make([]int, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			lengths[i][j] = max(lengths[i+1][j], lengths[i][j+1])
			if a[i] == b[j] {
				lengths[i][j] = lengths[i+1][j+1] + 1
			}
		}
	}
	for i, j := 0, 0; i < len(a) && j < len(b); {
		switch {
		case a[i] == b[j]:
			pairs = append(pairs, [2]int{i, j})
			i, j = i+1, j+1
		case lengths[i+1][j] >= lengths[i][j+1]:
			i++
		default:
			j++
		}
	}
	return pairs
}

// show is a value on one line, as YAML would write it in brackets.
func show(s *shape, v reflect.Value) string {
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return "null"
		}
		v = v.Elem()
	}
	var parts []string
	switch s.form {
	case formStructure:
		for _, f := range s.fields {
			if value := v.Field(f.index); !absent(f.shape, value) && !(f.shape.form == formSwitch && value.IsZero()) {
				parts = append(parts, f.name+": "+show(f.shape, value))
			}
		}
		return "{" + strings.Join(parts, ", ") + "}"
	case formList:
		if s.packed {
			v = reflect.ValueOf(v.Interface().(Records).List())
		}
		for i := range v.Len() {
			parts = append(parts, show(s.item, v.Index(i)))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case formLabels:
		labels := v.Interface().(map[string]string)
		for _, key := range slices.Sorted(maps.Keys(labels)) {
			parts = append(parts, key+": "+quoteText(labels[key]))
		}
		return "{" + strings.Join(parts, ", ") + "}"
	case formText:
		return quoteText(v.String())
	}
	return fmt.Sprint(v.Interface())
}

// quoteText is text as it is, or in quotes where it would be mistaken.
func quoteText(text string) string {
	if text == "" || strings.ContainsAny(text, " \t\n\"',:[]{}#") {
		return fmt.Sprintf("%q", text)
	}
	return text
}
