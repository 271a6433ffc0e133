package spec

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml/scanner"
	"github.com/goccy/go-yaml/token"
)

// Bounds of one document. What is beyond is a fault.
const (
	MaxDocumentBytes = 1 << 20 // what is kept of one resource; a zone of 10,000 records takes about 600 kB
	// maxIndicators bounds the bytes that may begin a token, and so the tokens and their memory: about 200 MB at the worst.
	maxIndicators = 400_000
	// maxRow bounds blank lines and < in a row: the scanner's time grows with the square of either.
	maxRow     = 100
	maxNesting = 32  // the deepest kind has 8
	maxFields  = 256 // of one mapping; the largest kind has a dozen
)

// node is a piece of a YAML document: what its text says, and on which line of the file.
type node struct {
	line   int
	form   form
	text   string  // of a scalar
	fields []entry // of a mapping
	items  []node  // of a sequence
}

// entry is one field of a mapping; its line is that of the field's name.
type entry struct {
	name  string
	line  int
	value node
}

type form int

const (
	null form = iota
	plain
	quoted
	number
	boolean
	sequence
	mapping
)

// unreadable says why a text is not YAML, or not the part of it that is read here.
type unreadable struct {
	line    int
	problem string
}

// read makes a tree of one YAML document that begins at a line of its file. The scanner is the library's; the tree is
// made here: the library's parser takes time that grows with the square of a mapping's length, and memory with its
// nesting, and its decoder stops at the first fault and follows aliases without bound. Not read are anchors, aliases,
// merge keys, tags, directives, keys that are not one scalar, and unquoted text of several lines, which most often is
// a field or item indented wrongly. Time and memory grow with the length of data only.
func read(data []byte, line int) (node, *unreadable) { return readInto(data, line, nil, nil) }

// readInto is read that keeps where the items of the field records stand, and packs them in place of having them in the tree, if the document
// is written plainly.
func readInto(data []byte, line int, at *layout, to *packing) (node, *unreadable) {
	if bytes.IndexByte(data, '\r') >= 0 {
		data = bytes.ReplaceAll(data, []byte("\r\n"), []byte("\n")) // the scanner miscounts the lines after comments otherwise
	}
	marks, u := inspect(data)
	if u != nil {
		u.line += line - 1
		return node{}, u
	}
	if at != nil {
		at.marks = marks
	}
	text := string(data)
	if !strings.HasSuffix(text, "\n") {
		text += "\n" // the scanner passes over a mark that nothing follows
	}
	if root, ok := readLaid(text, line, at, to); ok {
		return root, nil
	}
	if at != nil {
		*at, *to = layout{}, packing{}
	}
	return readAny(text, data, line)
}

// readAny is read of any text, by the scanner.
func readAny(text string, data []byte, line int) (node, *unreadable) {
	r := reader{before: line - 1, quiet: mayHoldSecret(data)}
	if u := r.scan(text); u != nil {
		return node{}, u
	}
	if len(r.tokens) == 0 {
		return node{line: line}, nil
	}
	root, u := r.block(1)
	if u == nil {
		if t := r.peek(); t != nil {
			u = r.unexpected(t)
		}
	}
	if u != nil {
		return node{}, u
	}
	return root, nil
}

// What inspect takes bytes for. An indicator counts, by half of its class.
const (
	blanks = iota
	letters
	indicates
	ends
	lesser
	returns
	controls
)

var classes = func() (classes [256]uint8) {
	for c := range classes {
		switch {
		case c == ' ', c == '\t':
			classes[c] = blanks
		case c == '\n':
			classes[c] = ends
		case c == '\r':
			classes[c] = returns
		case c == '<':
			classes[c] = lesser
		case c < ' ', c == 0x7f:
			classes[c] = controls
		case strings.IndexByte("[]{},:-?&*!|>'\"#%@`", byte(c)) >= 0:
			classes[c] = indicates
		default:
			classes[c] = letters
		}
	}
	return classes
}()

// inspect refuses what the scanner should not be given, and counts the bytes that may begin a token.
func inspect(data []byte) (indicators int, u *unreadable) {
	if len(data) > MaxDocumentBytes {
		return 0, &unreadable{1, fmt.Sprintf("a document of %d bytes: at most %d", len(data), MaxDocumentBytes)}
	}
	line, blank, less, text := 1, 0, 0, false
	for _, c := range data {
		class := classes[c]
		if class <= indicates { // most are
			text = text || class > blanks
			indicators += int(class >> 1)
			less = 0
			continue
		}
		switch class {
		case ends:
			if text {
				blank = 0
			} else if blank++; blank > maxRow {
				return 0, &unreadable{line, fmt.Sprintf("more than %d blank lines in a row", maxRow)}
			}
			text, less = false, 0
			line++
			indicators++
		case lesser:
			text = true
			if less++; less > maxRow {
				return 0, &unreadable{line, fmt.Sprintf("more than %d < in a row", maxRow)}
			}
		case returns:
			return 0, &unreadable{line, "a carriage return without a line feed"}
		default:
			return 0, &unreadable{line, fmt.Sprintf("the control character %#02x", c)}
		}
	}
	if indicators > maxIndicators {
		return 0, &unreadable{1, fmt.Sprintf("a document of more than %d lines and marks", maxIndicators)}
	}
	if !utf8.Valid(data) {
		good := 0
		for r, size := utf8.DecodeRune(data); r != utf8.RuneError || size > 1; r, size = utf8.DecodeRune(data[good:]) {
			good += size
		}
		return 0, &unreadable{1 + bytes.Count(data[:good], []byte("\n")), "not UTF-8"}
	}
	return indicators, nil
}

// reader walks the tokens of one document.
type reader struct {
	tokens []*token.Token
	before int // lines of the file before the document
	quiet  bool
}

// mayHoldSecret says whether what is wrong with a document must be told without quoting it: a key that is indented
// wrongly, or stands under a name that is mistyped, is text like any other.
func mayHoldSecret(data []byte) bool {
	for _, sign := range []string{"PRIVATE KEY", "privateKey", "kind: Certificate", "TsigKey"} {
		if bytes.Contains(data, []byte(sign)) {
			return true
		}
	}
	return false
}

// quote is text as a message quotes it.
func (r *reader) quote(text string) string {
	if r.quiet {
		return "this text"
	}
	return fmt.Sprintf("%.40q", text)
}

func (r *reader) scan(text string) *unreadable {
	var s scanner.Scanner
	s.Init(text)
	for {
		tokens, err := s.Scan()
		for _, t := range tokens {
			if t.Type == token.CommentType {
				continue
			}
			if problem := refused(t); problem != "" {
				return r.fault(t, problem)
			}
			r.tokens = append(r.tokens, t)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return &unreadable{r.before + 1, err.Error()}
		}
	}
}

// refused is why a token may not stand in a document, or "".
func refused(t *token.Token) string {
	switch t.Type {
	case token.AliasType:
		return `a text that begins with * must be in quotes: "*.example.com" (there are no aliases)`
	case token.AnchorType:
		return "a text that begins with & must be in quotes (there are no anchors)"
	case token.MergeKeyType:
		return "there are no merge keys"
	case token.TagType:
		return "a text that begins with ! must be in quotes (there are no tags)"
	case token.DirectiveType:
		return "there are no directives"
	case token.MappingKeyType:
		return "a text that begins with ? must be in quotes (there are no complex keys)"
	case token.DocumentHeaderType, token.DocumentEndType:
		return t.Value + " in the middle of a document"
	case token.InvalidType:
		if strings.Contains(t.Error, "reserved character") {
			return t.Error + `: put it in quotes, "@"`
		}
		return strings.ReplaceAll(t.Error, "\t", `\t`)
	}
	return ""
}

func (r *reader) fault(t *token.Token, problem string) *unreadable {
	return &unreadable{r.line(t), problem}
}

func (r *reader) unexpected(t *token.Token) *unreadable {
	switch t.Type {
	case token.MappingValueType:
		return r.fault(t, "a colon that belongs to no field: put text with a colon in quotes")
	case token.SequenceEntryType:
		return r.fault(t, "a list item where none belongs: look at the indentation")
	case token.SequenceEndType, token.MappingEndType:
		return r.fault(t, fmt.Sprintf("%q without its beginning", t.Value))
	}
	return r.fault(t, r.quote(t.Value)+" is neither a field nor a value here: look at the indentation")
}

func (r *reader) line(t *token.Token) int { return r.before + t.Position.Line }

func (r *reader) peek() *token.Token {
	if len(r.tokens) == 0 {
		return nil
	}
	return r.tokens[0]
}

func (r *reader) take() *token.Token {
	t := r.tokens[0]
	r.tokens = r.tokens[1:]
	return t
}

// is says whether the next token is of that type.
func (r *reader) is(t token.Type) bool { return len(r.tokens) > 0 && r.tokens[0].Type == t }

// atKey says whether the next token is the name of a field: a scalar with its colon.
func (r *reader) atKey() bool {
	return len(r.tokens) > 1 && scalar(r.tokens[0]) && r.tokens[1].Type == token.MappingValueType
}

// block reads the value that begins at the next token, outside of brackets.
func (r *reader) block(depth int) (node, *unreadable) {
	t := r.peek()
	switch {
	case depth > maxNesting:
		return node{}, r.tooDeep(t)
	case t.Type == token.SequenceEntryType:
		return r.blockSequence(depth)
	case t.Type == token.LiteralType, t.Type == token.FoldedType:
		return r.blockText(), nil
	case r.atKey():
		return r.blockMapping(depth)
	}
	return r.flow(depth)
}

func (r *reader) tooDeep(t *token.Token) *unreadable {
	return r.fault(t, fmt.Sprintf("nested deeper than %d", maxNesting))
}

// blockMapping reads fields that begin in one column, each on a line of its own.
func (r *reader) blockMapping(depth int) (node, *unreadable) {
	column := r.peek().Position.Column
	m := node{line: r.line(r.peek()), form: mapping}
	for r.atKey() && r.peek().Position.Column == column {
		key, colon, u := r.key()
		var value node
		if u == nil {
			value, u = r.fieldValue(key, colon, depth)
		}
		if u == nil {
			u = m.set(entry{key.Value, r.line(key), value})
		}
		if u != nil {
			return node{}, u
		}
	}
	if t := r.peek(); t != nil && t.Position.Column >= column {
		return node{}, r.unexpected(t)
	}
	return m, nil
}

// key takes a field's name and its colon.
func (r *reader) key() (key, colon *token.Token, u *unreadable) {
	key, colon = r.take(), r.take()
	if key.Position.Line != colon.Position.Line {
		u = r.fault(key, "a field's name must stand on one line, with its colon")
	}
	return key, colon, u
}

// fieldValue reads what stands behind a colon: on its line, or below it and further in; a list may also stand in the
// column of the field's name.
func (r *reader) fieldValue(key, colon *token.Token, depth int) (node, *unreadable) {
	absent := node{line: r.line(colon)}
	t := r.peek()
	switch {
	case t == nil:
		return absent, nil
	case t.Position.Line == colon.Position.Line:
		if r.atKey() && r.tokens[1].Position.Line != t.Position.Line {
			return node{}, r.fault(r.tokens[1], "a field that is indented further than the field before it")
		}
		if t.Type == token.SequenceEntryType || r.atKey() {
			return node{}, r.fault(t, "a list or mapping cannot begin on the line of its field: put text with a colon in quotes")
		}
		return r.block(depth + 1)
	case t.Position.Column > key.Position.Column,
		t.Position.Column == key.Position.Column && t.Type == token.SequenceEntryType:
		return r.block(depth + 1)
	}
	return absent, nil
}

// blockSequence reads items whose dashes stand in one column.
func (r *reader) blockSequence(depth int) (node, *unreadable) {
	column := r.peek().Position.Column
	s := node{line: r.line(r.peek()), form: sequence}
	for r.is(token.SequenceEntryType) && r.peek().Position.Column == column {
		dash := r.take()
		item := node{line: r.line(dash)}
		if t := r.peek(); t != nil && (t.Position.Line == dash.Position.Line || t.Position.Column > column) {
			var u *unreadable
			if item, u = r.block(depth + 1); u != nil {
				return node{}, u
			}
		}
		s.items = append(s.items, item)
	}
	if t := r.peek(); t != nil && t.Position.Column > column {
		return node{}, r.unexpected(t)
	}
	return s, nil
}

// blockText reads the text below | or >. The scanner gives none where it is empty and ends the document.
func (r *reader) blockText() node {
	header := r.take()
	n := node{line: r.line(header), form: quoted}
	if r.is(token.StringType) {
		n.text = r.take().Value
	}
	return n
}

// flow reads a value that may stand in brackets: a list, a mapping or a scalar.
func (r *reader) flow(depth int) (node, *unreadable) {
	t := r.take()
	switch {
	case depth > maxNesting:
		return node{}, r.tooDeep(t)
	case t.Type == token.SequenceStartType:
		return r.flowSequence(t, depth)
	case t.Type == token.MappingStartType:
		return r.flowMapping(t, depth)
	case scalar(t):
		n := node{line: r.line(t), form: formOf(t), text: t.Value}
		if n.form != quoted && strings.Contains(strings.TrimSpace(t.Origin), "\n") {
			return node{}, r.fault(t, "text of several lines must be in quotes, or below | or >: look at the indentation")
		}
		return n, nil
	}
	return node{}, r.unexpected(t)
}

func (r *reader) flowSequence(start *token.Token, depth int) (node, *unreadable) {
	s := node{line: r.line(start), form: sequence}
	for !r.is(token.SequenceEndType) && r.peek() != nil {
		item, u := r.flow(depth + 1)
		if u == nil {
			u = r.between(token.SequenceEndType)
		}
		if u != nil {
			return node{}, u
		}
		s.items = append(s.items, item)
	}
	return s, r.end(start)
}

func (r *reader) flowMapping(start *token.Token, depth int) (node, *unreadable) {
	m := node{line: r.line(start), form: mapping}
	for !r.is(token.MappingEndType) && r.peek() != nil {
		if !r.atKey() {
			return node{}, r.fault(r.peek(), "between { and } there are only fields, name: value")
		}
		key, colon, u := r.key()
		value := node{line: r.line(colon)}
		if t := r.peek(); u == nil && t != nil && t.Type != token.CollectEntryType && t.Type != token.MappingEndType {
			value, u = r.flow(depth + 1)
		}
		if u == nil {
			u = r.between(token.MappingEndType)
		}
		if u == nil {
			u = m.set(entry{key.Value, r.line(key), value})
		}
		if u != nil {
			return node{}, u
		}
	}
	return m, r.end(start)
}

// between takes the comma after an item in brackets, which the last may lack.
func (r *reader) between(end token.Type) *unreadable {
	switch {
	case r.is(token.CollectEntryType):
		r.take()
	case r.is(token.MappingValueType):
		return r.fault(r.peek(), "text with a colon must be in quotes here")
	case r.peek() != nil && !r.is(end):
		return r.fault(r.peek(), "a comma is missing before "+r.quote(r.peek().Value))
	}
	return nil
}

// end takes the bracket that closes start.
func (r *reader) end(start *token.Token) *unreadable {
	if r.peek() == nil {
		return r.fault(start, fmt.Sprintf("%q is never closed", start.Value))
	}
	r.take()
	return nil
}

func (n *node) set(e entry) *unreadable {
	for _, other := range n.fields {
		if other.name == e.name {
			return &unreadable{e.line, fmt.Sprintf("%.40q is already set on line %d", e.name, other.line)}
		}
	}
	if len(n.fields) == maxFields {
		return &unreadable{e.line, fmt.Sprintf("more than %d fields", maxFields)}
	}
	if n.fields == nil {
		n.fields = make([]entry, 0, 4)
	}
	n.fields = append(n.fields, e)
	return nil
}

func scalar(t *token.Token) bool { return t.Type == token.StringType || formOf(t) != plain }

// formOf is the form of a scalar token; plain also for tokens that are none.
func formOf(t *token.Token) form {
	switch t.Type {
	case token.NullType:
		return null
	case token.BoolType:
		return boolean
	case token.IntegerType, token.BinaryIntegerType, token.OctetIntegerType, token.HexIntegerType, token.FloatType,
		token.InfinityType, token.NanType:
		return number
	case token.SingleQuoteType, token.DoubleQuoteType:
		return quoted
	}
	return plain
}

// isText says whether the node can be read as text. A number can, as it is written.
func (n *node) isText() bool { return n.form == plain || n.form == quoted || n.form == number }

// field is the value of a mapping's field, or nil. A nil mapping has none.
func (n *node) field(name string) *node {
	if n == nil {
		return nil
	}
	for i := range n.fields {
		if n.fields[i].name == name {
			return &n.fields[i].value
		}
	}
	return nil
}

// lineOf is the line of a field by its path (listeners[0].default.forward), or of the nearest thing around it
// that is written.
func (n *node) lineOf(path string) int {
	line := n.line
	for path != "" {
		var name string
		if rest, isIndex := strings.CutPrefix(path, "["); isIndex {
			name, path, _ = strings.Cut(rest, "]")
			i, err := strconv.Atoi(name)
			if err != nil || i >= len(n.items) {
				return line
			}
			n = &n.items[i]
			line = n.line
			continue
		}
		path = strings.TrimPrefix(path, ".")
		end := strings.IndexAny(path, ".[")
		if end < 0 {
			end = len(path)
		}
		name, path = path[:end], path[end:]
		at := -1
		for i, e := range n.fields {
			if e.name == name {
				at = i
			}
		}
		if at < 0 {
			return line
		}
		line, n = n.fields[at].line, &n.fields[at].value
	}
	return line
}
