package spec

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
)

// SealedPrefix begins the texts of secrets that are sealed. What follows is for those that seal and open.
const SealedPrefix = "sealed:v1:"

// secretShown is what stands for a secret wherever it would be shown.
const secretShown = "(secret)"

// Secret is a text that nothing prints: fmt, encoding/json and log/slog show (secret).
type Secret struct{ text string }

// Reveal is a copy of the text itself.
func (s Secret) Reveal() []byte { return []byte(s.text) }

// Format shows (secret), whatever is asked for.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(secretShown)) }

// String is (secret).
func (s Secret) String() string { return secretShown }

// LogValue is (secret).
func (s Secret) LogValue() slog.Value { return slog.StringValue(secretShown) }

// MarshalText is (secret), for JSON and all that uses texts.
func (s Secret) MarshalText() ([]byte, error) { return []byte(secretShown), nil }

func isSealed(text string) bool { return strings.HasPrefix(text, SealedPrefix) }

// Seal replaces the secrets in the documents by what seal makes of them, a text that begins with SealedPrefix; the
// other bytes stay, comments too. What is sealed already stays, and so do documents that cannot be read and secrets
// that are no text: Build tells what is wrong with those, and they must not be kept unless it takes them. The error is
// Faults: secrets that are written in a way that cannot be replaced. The given documents are not changed.
func Seal(docs []Document, seal func(ref Ref, field string, plain []byte) string) ([]Document, error) {
	var found gathered
	sealed := slices.Clone(docs)
	for i := range sealed {
		d := &sealed[i]
		kind, known := exactKind(d.Kind)
		if !known || !kind.shape.secret {
			continue
		}
		for range maxSecrets {
			root, u := read(d.Bytes, d.Line)
			if u != nil {
				break
			}
			s := firstSecret(&root, kind.shape, &path{})
			if s == nil {
				break
			}
			text := seal(d.Ref(), s.path, []byte(s.value.text))
			if !isSealed(text) {
				return nil, fmt.Errorf("seal %s of %s: the sealed text does not begin with %s", s.path, d.Ref(), SealedPrefix)
			}
			replaced, err := s.replace(d, &root, text)
			if err != nil {
				found.add(i, Fault{File: d.File, Line: s.entry.line, Kind: d.Kind, Name: d.Name, Field: s.path, Message: err.Error()})
				break
			}
			d.Bytes = replaced
		}
	}
	if err := found.err(); err != nil {
		return nil, err
	}
	return sealed, nil
}

// maxSecrets bounds the secrets of one document that are sealed; the kinds have fewer.
const maxSecrets = 1000

// writtenSecret is a secret that stands in a document as it is.
type writtenSecret struct {
	path  string
	entry *entry
	value *node
}

// firstSecret finds the first secret of a tree that is not sealed and not empty, or nil.
func firstSecret(n *node, s *shape, at *path) *writtenSecret {
	switch {
	case s.form == formList:
		for i := range n.items {
			here := at.item(i)
			if found := firstSecret(&n.items[i], s.item, &here); found != nil {
				return found
			}
		}
	case s.form == formStructure:
		for i := range n.fields {
			e := &n.fields[i]
			j := slices.IndexFunc(s.fields, func(f field) bool { return f.name == e.name })
			if j < 0 {
				continue
			}
			below, here := s.fields[j].shape, at.field(e.name)
			if below.form == formSecret {
				if e.value.isText() && e.value.text != "" && !isSealed(e.value.text) {
					return &writtenSecret{here.String(), e, &e.value}
				}
				continue
			}
			if found := firstSecret(&e.value, below, &here); found != nil {
				return found
			}
		}
	}
	return nil
}

var errNotReplaced = errors.New(`cannot be sealed as it is written: write it below its field, as a block ("field: |")`)

// replace puts text in the place of the secret's value. Where the value stands is found by its field's name on the line
// that the scanner says; since a name may stand on a line several times, and since a mistake would destroy a document or
// leave a secret in it, what comes out is read again: it must say the same as before but for the one value.
func (s *writtenSecret) replace(d *Document, root *node, text string) ([]byte, error) {
	const mostTries = 16 // places in one line with the name of the field
	start := lineStart(d.Bytes, s.entry.line-d.Line)
	end := start + lineLength(d.Bytes[start:])
	was := *s.value
	defer func() { *s.value = was }()
	*s.value = node{form: quoted, text: text} // what the tree is to be
	from := start
	for range mostTries {
		i := bytes.Index(d.Bytes[from:end], []byte(s.entry.name))
		if i < 0 {
			break
		}
		name := from + i
		from = name + len(s.entry.name)
		valueStart, valueEnd, ok := valueAfter(d.Bytes, start, name, from, was.text)
		if !ok {
			continue
		}
		after := slices.Concat(d.Bytes[:valueStart], []byte(`"`+text+`"`), d.Bytes[valueEnd:])
		if valueStart < valueEnd && (d.Bytes[valueStart] == '|' || d.Bytes[valueStart] == '>') {
			after = withoutBlock(d.Bytes, start, name, valueStart, text)
		}
		if again, u := read(after, d.Line); u == nil && sameTree(root, &again) {
			return after, nil
		}
	}
	return nil, errNotReplaced
}

// lineStart is where a line begins, the first being 0.
func lineStart(data []byte, line int) (at int) {
	for ; line > 0 && at < len(data); line-- {
		at += lineLength(data[at:])
	}
	return at
}

// lineLength is the length of the first line, with its end.
func lineLength(data []byte) int {
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return i + 1
	}
	return len(data)
}

// valueAfter finds the value of a field whose name ends at nameEnd: behind the colon, or on a line below it. Of a block
// it is the header.
func valueAfter(data []byte, line, name, nameEnd int, plain string) (start, end int, ok bool) {
	at := nameEnd
	if name > line && at < len(data) && (data[name-1] == '"' || data[name-1] == '\'') && data[at] == data[name-1] {
		at++
	}
	at += len(data[at:]) - len(bytes.TrimLeft(data[at:], " \t"))
	if at >= len(data) || data[at] != ':' {
		return 0, 0, false
	}
	at++
	for at < len(data) {
		switch data[at] {
		case ' ', '\t', '\r', '\n':
			at++
			continue
		case '#':
			at += lineLength(data[at:])
			continue
		}
		break
	}
	rest := data[at:]
	if len(rest) == 0 {
		return 0, 0, false
	}
	switch quote := rest[0]; quote {
	case '|', '>':
		size := 1
		for size < len(rest) && strings.IndexByte("+-0123456789", rest[size]) >= 0 {
			size++
		}
		return at, at + size, true
	case '"', '\'':
		for i := 1; i < len(rest); i++ {
			switch {
			case rest[i] == '\\' && quote == '"':
				i++
			case rest[i] != quote:
			case quote == '\'' && i+1 < len(rest) && rest[i+1] == quote:
				i++
			default:
				return at, at + i + 1, true
			}
		}
		return 0, 0, false
	}
	return at, at + len(plain), bytes.HasPrefix(rest, []byte(plain))
}

// withoutBlock puts text in the place of a block: its header, and the lines below that stand further in than the
// field's name. Blank lines at its end stay.
func withoutBlock(data []byte, line, name, header int, text string) []byte {
	indent := name - line
	if name > line && (data[name-1] == '"' || data[name-1] == '\'') {
		indent--
	}
	headerEnd := header + 1
	for headerEnd < len(data) && strings.IndexByte("+-0123456789", data[headerEnd]) >= 0 {
		headerEnd++
	}
	body := headerEnd + lineLength(data[headerEnd:])
	end := body
	for at := body; at < len(data); {
		next := at + lineLength(data[at:])
		content := bytes.TrimLeft(data[at:next], " ")
		switch {
		case len(bytes.TrimSpace(content)) == 0:
		case next-at-len(content) > indent:
			end = next
		default:
			next = len(data) + 1
		}
		at = next
	}
	return slices.Concat(data[:header], []byte(`"`+text+`"`), data[headerEnd:body], data[end:])
}

// sameTree says whether two trees say the same, wherever it stands.
func sameTree(a, b *node) bool {
	return a.form == b.form && a.text == b.text &&
		slices.EqualFunc(a.items, b.items, func(x, y node) bool { return sameTree(&x, &y) }) &&
		slices.EqualFunc(a.fields, b.fields, func(x, y entry) bool { return x.name == y.name && sameTree(&x.value, &y.value) })
}
