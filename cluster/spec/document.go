package spec

import (
	"bytes"
	"cmp"
	"fmt"
	"iter"
	"strings"
)

// Bounds of one file. What is beyond is a fault.
const (
	MaxFileBytes = 16 << 20
	MaxDocuments = 200_000
	maxName      = 253 // of a kind or name: the longest is a domain
)

// Ref names one resource.
type Ref struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
}

// String is the text form, LoadBalancer/web-icn.
func (r Ref) String() string { return r.Kind + "/" + r.Name }

// ParseRef reads the text form.
func ParseRef(text string) (Ref, error) {
	kind, name, _ := strings.Cut(text, "/")
	if kind == "" || name == "" {
		return Ref{}, fmt.Errorf("parse reference %q: want kind/name", text)
	}
	return Ref{kind, name}, nil
}

// Compare orders references as Kinds does, what is referred to first, then by name.
func (r Ref) Compare(other Ref) int {
	return cmp.Or(cmp.Compare(rank(r.Kind), rank(other.Kind)), cmp.Compare(r.Kind, other.Kind), cmp.Compare(r.Name, other.Name))
}

// Document is one YAML document as it was written: one resource. It is what is replicated and kept, so that
// comments live, and so that releases that read fields differently agree about what was written.
type Document struct {
	Kind, Name string
	File       string // where it was read, for people
	Line       int    // of File on which Bytes begin, from 1
	Bytes      []byte
	// Before is the document that stands in its place, if that is at hand: what is alike may then not be read again. It must be that of which
	// the spec was made that this one is put over.
	Before     []byte
	difference *difference // from that, if it was found out
}

// Ref names the document's resource.
func (d Document) Ref() Ref { return Ref{d.Kind, d.Name} }

// Split reads a file of YAML documents separated by lines of three dashes; JSON is YAML. Documents of nothing but
// comments are passed over. It judges each document as text and as one of a kind and name; whether the fields are
// right is for Build. The error is Faults. The documents share data's memory.
func Split(file string, data []byte) ([]Document, error) { return split(file, data, nil) }

// split splits; known says of which kind and name a document is, and on which line its name stands, if it needs not be read for that.
func split(file string, data []byte, known func(*Document) (name int, ok bool)) ([]Document, error) {
	var found gathered
	if len(data) > MaxFileBytes {
		found.add(0, Fault{File: file, Message: fmt.Sprintf("%d bytes: at most %d in a file", len(data), MaxFileBytes)})
		return nil, found.err()
	}
	var documents []Document
	seen := firsts{}
	for part := range parts(data) {
		if len(documents) == MaxDocuments {
			found.add(len(documents), Fault{File: file, Line: part.line, Message: fmt.Sprintf("more than %d documents in a file", MaxDocuments)})
			break
		}
		d := Document{File: file, Line: part.line, Bytes: part.bytes}
		if fault := d.identify(part, seen, known); fault != nil {
			fault.File = file
			found.add(len(documents), *fault)
		}
		documents = append(documents, d)
	}
	if err := found.err(); err != nil {
		return nil, err
	}
	return documents, nil
}

// identify reads the document's kind and name.
func (d *Document) identify(p part, seen firsts, known func(*Document) (name int, ok bool)) *Fault {
	if p.stray != 0 {
		return &Fault{Line: p.stray, Message: "a document begins on the line below its separator"}
	}
	if known != nil {
		if line, ok := known(d); ok {
			return seen.note(d.Ref(), d.File, line)
		}
	}
	root, u := read(d.Bytes, d.Line)
	if u != nil {
		return &Fault{Line: u.line, Message: u.problem}
	}
	if root.form != mapping {
		return &Fault{Line: root.line, Message: "not a resource: it must have the fields kind and name"}
	}
	for _, identity := range []struct {
		field string
		to    *string
	}{{"kind", &d.Kind}, {"name", &d.Name}} {
		n := root.field(identity.field)
		if n == nil || n.form == null {
			return &Fault{Line: root.line, Kind: d.Kind, Field: identity.field, Message: "is required"}
		}
		if !n.isText() || n.text == "" || len(n.text) > maxName {
			return &Fault{Line: n.line, Kind: d.Kind, Field: identity.field, Message: fmt.Sprintf("must be text of 1–%d bytes", maxName)}
		}
		*identity.to = strings.Clone(n.text) // not with the whole document
	}
	return seen.note(d.Ref(), d.File, root.lineOf("name"))
}

// firsts is where each resource was declared first.
type firsts map[Ref]written

type written struct {
	file string
	line int
}

// note remembers the declaration, or finds that there was one before.
func (s firsts) note(r Ref, file string, line int) *Fault {
	first, again := s[r]
	if !again {
		s[r] = written{file, line}
		return nil
	}
	where := fmt.Sprintf("on line %d", first.line)
	if first.file != file {
		where = fmt.Sprintf("at %s:%d", first.file, first.line)
	}
	return &Fault{File: file, Line: line, Kind: r.Kind, Name: r.Name, Message: "is declared twice, first " + where}
}

// part is the text between two separators.
type part struct {
	line  int
	bytes []byte
	stray int // the line of the separator, if text stands on it
}

// parts yields what stands between separators, without the blank lines before it; what is blank or comment only
// is passed over. Nothing hides a separator: quoted and indented text may not hold one at the beginning of a line.
func parts(data []byte) iter.Seq[part] {
	return func(yield func(part) bool) {
		byteOrderMark := []byte("\uFEFF")
		p, start, some := part{line: 1}, 0, false
		separators := beginnings{text: data}
		emit := func(end int) bool {
			p.bytes = data[start:end:end]
			return !some || yield(p)
		}
		for at, line := 0, 1; at < len(data); line++ {
			if start == at && bytes.HasPrefix(data[at:], byteOrderMark) {
				at += len(byteOrderMark)
				start = at
			}
			if some && at > start { // the lines up to the next that may be a separator are the part's
				next := separators.from(at)
				line += bytes.Count(data[at:next], []byte("\n"))
				if at = next; at == len(data) {
					break
				}
			}
			end := len(data)
			if i := bytes.IndexByte(data[at:], '\n'); i >= 0 {
				end = at + i + 1
			}
			text := bytes.TrimSpace(data[at:end])
			rest, separates := separator(data[at:end])
			switch {
			case separates:
				if !emit(at) {
					return
				}
				p, start, some = part{line: line + 1}, end, false
				if len(rest) > 0 && rest[0] != '#' {
					p.stray, some = line, true
				}
			case len(text) == 0 && start == at:
				start, p.line = end, line+1
			case len(text) > 0 && text[0] != '#':
				some = true
			}
			at = end
		}
		emit(len(data))
	}
}

// beginnings finds the lines of a text that begin as separators do. Each byte is looked at once for each kind of them, however many there are of the other.
type beginnings struct {
	text []byte
	next [2]int // of each kind, the first from where was asked last
}

// from is where the first line begins, from one that begins there, that begins so; len(text): nowhere.
func (b *beginnings) from(at int) int {
	first := len(b.text)
	for i, mark := range []string{"\n---", "\n..."} {
		if b.next[i] < at {
			b.next[i] = len(b.text)
			if n := bytes.Index(b.text[at-1:], []byte(mark)); n >= 0 {
				b.next[i] = at + n
			}
		}
		first = min(first, b.next[i])
	}
	return first
}

// separator says whether a line begins with --- or ..., and what follows.
func separator(line []byte) (rest []byte, ok bool) {
	if len(line) < 3 || string(line[:3]) != "---" && string(line[:3]) != "..." {
		return nil, false
	}
	if len(line) > 3 && bytes.IndexByte([]byte(" \t\r\n"), line[3]) < 0 {
		return nil, false
	}
	return bytes.TrimSpace(line[3:]), true
}
