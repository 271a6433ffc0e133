package spec

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Build makes the spec of all documents: strictly decoded, completed with defaults, validated each by itself and
// against the others. The error is Faults: all that is wrong, not the first. The managed cache policies are in
// every spec. After Build every optional pointer field has its default.
func Build(revision uint64, docs []Document) (*Spec, error) {
	b := &builder{docs: docs, spec: empty(revision), declared: firsts{}, decodeFaults: map[int][]string{}}
	b.decode()
	b.validate()
	b.locate()
	if err := b.found.err(); err != nil {
		return nil, err
	}
	return b.spec, nil
}

func empty(revision uint64) *Spec {
	s := &Spec{
		Revision:      revision,
		Regions:       map[string]*Region{},
		TargetGroups:  map[string]*TargetGroup{},
		LoadBalancers: map[string]*LoadBalancer{},
		HealthChecks:  map[string]*HealthCheck{},
		Distributions: map[string]*Distribution{},
		CachePolicies: map[string]*CachePolicy{},
		Accelerators:  map[string]*Accelerator{},
		HostedZones:   map[string]*HostedZone{},
	}
	for _, p := range managedCachePolicies() {
		s.CachePolicies[p.Name] = p
	}
	return s
}

// builder is one Build on its way.
type builder struct {
	docs      []Document
	spec      *Spec
	resources []any // of each document; nil where it could not be read
	declared  firsts
	found     gathered
	// decodeFaults are the fields of a document that were not decoded: nothing more is told of them.
	decodeFaults map[int][]string
}

// decode reads every document into its type. The trees are not kept: they are far larger than what they say.
func (b *builder) decode() {
	shapes := map[string]*shape{}
	for _, k := range kindTable {
		shapes[k.Name] = shapeOf(k.resource)
	}
	b.resources = make([]any, len(b.docs))
	for i, doc := range b.docs {
		root, u := read(doc.Bytes, doc.Line)
		if u != nil {
			b.fault(i, u.line, "", u.problem)
			b.declared.note(doc.Ref(), doc.File, u.line)
			continue
		}
		if again := b.declared.note(doc.Ref(), doc.File, root.lineOf("name")); again != nil {
			b.found.add(i, *again)
			continue
		}
		kind, ok := exactKind(doc.Kind)
		if !ok {
			b.fault(i, root.lineOf("kind"), "", "no such kind"+near(doc.Kind, slices.Collect(maps.Keys(shapes))))
			continue
		}
		for _, filed := range []struct{ field, as string }{{"kind", doc.Kind}, {"name", doc.Name}} {
			if n := root.field(filed.field); n != nil && n.text != filed.as {
				b.fault(i, n.line, filed.field, fmt.Sprintf("is %.40q in a document filed as %s", n.text, doc.Ref()))
			}
		}
		d := decoder{fault: func(line int, field, message string) {
			if !b.found.full() {
				b.decodeFaults[i] = append(b.decodeFaults[i], field)
			}
			b.fault(i, line, field, message)
		}}
		resource := kind.make()
		d.resource(&root, shapes[kind.Name], resource)
		complete(resource)
		b.resources[i] = resource
		if kind.Name == "CachePolicy" && strings.HasPrefix(doc.Name, managedPrefix) {
			b.fault(i, root.lineOf("name"), "name", "is reserved: the managed policies are in every spec")
			continue
		}
		kind.put(b.spec, doc.Name, resource)
	}
}

// fault records a fault of a document; line 0 leaves it to locate to find the line of the field.
func (b *builder) fault(document, line int, field, message string) {
	d := b.docs[document]
	b.found.add(document, Fault{File: d.File, Line: line, Kind: d.Kind, Name: d.Name, Field: field, Message: message})
}

// locate gives the faults found by validation their lines, reading again only the documents that have one.
func (b *builder) locate() {
	trees := map[int]*node{}
	for i := range b.found.faults {
		f := &b.found.faults[i]
		if f.Line != 0 {
			continue
		}
		if trees[f.document] == nil {
			root, _ := read(b.docs[f.document].Bytes, b.docs[f.document].Line)
			trees[f.document] = &root
		}
		f.Line = trees[f.document].lineOf(f.Field)
	}
}
