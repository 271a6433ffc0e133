package spec

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Options say how documents are read.
type Options struct {
	// Open opens the sealed text of a secret field; nil: there is no key here, and a sealed text is a fault.
	Open func(ref Ref, field, sealed string) ([]byte, error)
	// Stored says that the documents are agreed already: kinds and fields that this release does not know are passed
	// over, and listed in Spec.Unknown. Documents that are being put are judged strictly.
	Stored bool
	// Partial says that the documents are a part of a spec: what they refer to may be in another part. Such a spec is for
	// tools, not for planes.
	Partial bool
}

// Build makes the spec of all documents: strictly decoded, completed with defaults, validated each by itself and
// against the others. The error is Faults: all that is wrong, not the first. The managed cache policies are in
// every spec. After Build every optional pointer field has its default.
func Build(revision uint64, docs []Document, o Options) (*Spec, error) {
	s := &Spec{}
	for i := range kindTable {
		kindTable[i].own(s)
	}
	for _, p := range managedCachePolicies() {
		s.CachePolicies[p.Name] = p
	}
	return s.With(revision, docs, nil, o)
}

// builder makes one spec of another.
type builder struct {
	o    Options
	base *Spec // not changed
	spec *Spec
	owns [maxKinds]bool // the tables of spec that are not shared with base
	// docs are those that are put, and after them the resources of base that are judged again: those have neither file nor bytes.
	docs      []Document
	resources []any // of each document; nil where it could not be read
	declared  firsts
	gone      map[Ref]bool // deleted, and not put again
	unknown   []Unknown
	names     map[string]string // texts that may repeat
	found     gathered
	// decodeFaults are the fields of a document that were not decoded: nothing more is told of them.
	decodeFaults map[int][]string
	stands       map[int]map[lateFault]int // of the documents that were asked for: see stood
	noted        map[lateFault]int         // not nil: late faults are counted here, and not told
}

// maxKinds is no less than the number of kinds.
const maxKinds = 16

// table gives the spec a table of its own for a kind, once.
func (b *builder) table(k *Kind) {
	if i := rank(k.Name); !b.owns[i] {
		b.owns[i] = true
		k.own(b.spec)
	}
}

// decode reads every document into its type. The trees are not kept: they are far larger than what they say.
func (b *builder) decode() {
	b.resources = make([]any, len(b.docs))
	for i, doc := range b.docs {
		if d := b.difference(&doc); d != nil {
			if z := b.changed(d); z != nil {
				b.put(i, doc.Line+d.zone.layout.name, z)
				continue
			}
		}
		var at *layout
		var packed *packing
		if doc.Kind == "HostedZone" {
			at, packed = new(layout), new(packing)
		}
		root, u := readInto(doc.Bytes, doc.Line, at, packed)
		if u != nil {
			b.fault(i, u.line, "", u.problem)
			if b.declared.note(doc.Ref(), doc.File, u.line) == nil {
				b.drop(doc.Ref())
			}
			continue
		}
		if again := b.declared.note(doc.Ref(), doc.File, root.lineOf("name")); again != nil {
			b.found.add(i, *again)
			continue
		}
		b.drop(doc.Ref())
		kind, ok := exactKind(doc.Kind)
		if !ok && b.o.Stored {
			b.unknown = append(b.unknown, Unknown{Ref: doc.Ref()})
			continue
		}
		if !ok {
			b.fault(i, root.lineOf("kind"), "", "no such kind"+near(doc.Kind, kindNames()))
			continue
		}
		for _, filed := range []struct{ field, as string }{{"kind", doc.Kind}, {"name", doc.Name}} {
			if n := root.field(filed.field); n != nil && n.text != filed.as {
				b.fault(i, n.line, filed.field, fmt.Sprintf("is %.40q in a document filed as %s", n.text, doc.Ref()))
			}
		}
		resource := kind.make()
		b.resource(i, &root, packed, kind, resource)
		b.resources[i] = resource
		if isManaged(doc.Ref()) {
			b.fault(i, root.lineOf("name"), "name", "is reserved: the managed policies are in every spec")
			continue
		}
		if z, ok := resource.(*HostedZone); ok && len(at.starts) > 0 {
			z.lay(at, doc.Bytes, root.lineOf("name")-doc.Line)
		}
		b.table(&kind)
		kind.put(b.spec, b.share(doc.Name), resource)
	}
}

// put puts a zone that was made of the one that stands; its name is on a line.
func (b *builder) put(document, line int, z *HostedZone) {
	doc := &b.docs[document]
	if again := b.declared.note(doc.Ref(), doc.File, line); again != nil {
		b.found.add(document, *again)
		return
	}
	b.drop(doc.Ref())
	kind, _ := exactKind(doc.Kind)
	b.resources[document] = z
	b.table(&kind)
	kind.put(b.spec, z.Name, z)
}

// resource decodes one document's tree, and what was packed in place of a part of it.
func (b *builder) resource(document int, root *node, packed *packing, kind Kind, into any) {
	ref := b.docs[document].Ref()
	d := decoder{
		fault: func(line int, field, message string) {
			if !b.found.full() {
				b.decodeFaults[document] = append(b.decodeFaults[document], field)
			}
			b.fault(document, line, field, message)
		},
		open: func(field, sealed string) (string, error) {
			if b.o.Open == nil {
				return "", errors.New("there is no key for it here")
			}
			plain, err := b.o.Open(ref, field, sealed)
			return string(plain), err
		},
		share: b.share,
	}
	if packed != nil && packed.count > 0 {
		d.packing = packed
	}
	var unknown []string
	if b.o.Stored {
		const most = 100
		d.pass = func(field string) {
			if len(unknown) < most {
				unknown = append(unknown, field)
			}
		}
	}
	d.resource(root, kind.shape, into)
	complete(into)
	if slices.Sort(unknown); len(unknown) > 0 {
		b.unknown = append(b.unknown, Unknown{ref, unknown})
	}
}

// share gives names that are in memory already the same memory.
func (b *builder) share(text string) string {
	const longest = 64 // longer texts seldom repeat
	if len(text) > longest {
		return strings.Clone(text) // it may be a part of the whole document
	}
	if known, ok := b.names[text]; ok {
		return known
	}
	if r := b.base.Regions[text]; r != nil {
		text = r.Name
	} else if g := b.base.TargetGroups[text]; g != nil {
		text = g.Name
	} else if lb := b.base.LoadBalancers[text]; lb != nil {
		text = lb.Name
	} else {
		text = strings.Clone(text) // a text of its own, and not the part of a longer one
	}
	b.names[text] = text
	return text
}

func isManaged(r Ref) bool {
	return r.Kind == "CachePolicy" && strings.HasPrefix(r.Name, managedPrefix)
}

// drop takes a resource out of the spec, if it is there.
func (b *builder) drop(r Ref) {
	kind, ok := exactKind(r.Kind)
	if !ok || isManaged(r) {
		return
	}
	if _, there := kind.get(b.spec, r.Name); there {
		b.table(&kind)
		kind.drop(b.spec, r.Name)
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
		d := &b.docs[f.document]
		if f.Line != 0 || d.Bytes == nil {
			continue
		}
		if trees[f.document] == nil {
			root, _ := read(d.Bytes, d.Line)
			trees[f.document] = &root
		}
		f.Line = trees[f.document].lineOf(f.Field)
	}
}

// listUnknown lists what is passed over: of base what was not touched, and what is new.
func (b *builder) listUnknown() {
	for _, u := range b.base.Unknown {
		if _, put := b.declared[u.Ref]; !put && !b.gone[u.Ref] {
			b.unknown = append(b.unknown, u)
		}
	}
	slices.SortFunc(b.unknown, func(x, y Unknown) int { return x.Ref.Compare(y.Ref) })
	b.spec.Unknown = b.unknown
}
