package spec

import (
	"slices"
	"strings"

	"github.com/goccy/go-yaml/token"
)

// plainReader makes the tree of a document that is written as most are: fields and lists by indentation or in brackets, and
// scalars of one line that are bare or in quotes without escapes. It makes exactly what read makes of the scanner's tokens, or
// nothing, ok false: of whatever is written in another way, and of all that is wrong.
type plainReader struct {
	text     string
	at       int
	line     int // of the file
	begin    int // of that line in text
	brackets int // that are open
	fields   []entry
	items    []node
	// rooms are what trees are made of, many nodes at once.
	fieldRoom []entry
	itemRoom  []node

	layout  *layout  // where the items of the field records are written down; nil: nowhere
	packing *packing // to which they go in place of the tree; nil: they are part of it
	laying  bool     // those come next
}

// plainNesting is how deep such a document may be nested: deeper than any kind.
const plainNesting = 12

func readPlain(text string, line int) (n node, ok bool) { return readLaid(text, line, nil, nil) }

func readLaid(text string, line int, at *layout, to *packing) (n node, ok bool) {
	p := plainReader{text: text, line: line, layout: at, packing: to}
	column, ok := p.next()
	if !ok || p.at == len(text) {
		return node{}, false
	}
	if text[p.at] == '{' {
		if n, ok = p.flow(1); !ok || !p.ends() {
			return node{}, false
		}
		_, ok = p.next()
	} else {
		n, ok = p.block(column, 1)
	}
	return n, ok && p.at == len(text)
}

// next goes to the next line that says something, from the end of one, and returns its column.
func (p *plainReader) next() (column int, ok bool) {
	for p.at < len(p.text) {
		switch p.text[p.at] {
		case ' ':
			p.at++
		case '\n':
			p.newline()
		case '#':
			i := strings.IndexByte(p.text[p.at:], '\n')
			if i < 0 {
				return 0, false
			}
			p.at += i
		case '\t':
			return 0, false
		default:
			return p.at - p.begin, true
		}
	}
	return -1, true
}

func (p *plainReader) newline() {
	p.at++
	p.line, p.begin = p.line+1, p.at
}

// ends says whether the line ends here.
func (p *plainReader) ends() bool { return p.at == len(p.text) || p.text[p.at] == '\n' }

// dash says whether an item begins here.
func (p *plainReader) dash() bool {
	return p.at+1 < len(p.text) && p.text[p.at] == '-' && p.text[p.at+1] == ' '
}

// key is the name of a field that begins here with its colon behind it, or "".
func (p *plainReader) key() string {
	i := p.at
	for i < len(p.text) && (isLetter(p.text[i]) || i > p.at && isDigit(p.text[i])) {
		i++
	}
	if i+1 >= len(p.text) || p.text[i] != ':' || p.text[i+1] != ' ' && p.text[i+1] != '\n' {
		return ""
	}
	return p.text[p.at:i]
}

// block reads fields or items that begin in a column.
func (p *plainReader) block(column, depth int) (node, bool) {
	switch {
	case depth > plainNesting:
		return node{}, false
	case p.dash():
		return p.sequence(column, depth)
	}
	return p.mapping(column, depth)
}

func (p *plainReader) mapping(column, depth int) (node, bool) {
	m, from := node{line: p.line, form: mapping}, len(p.fields)
	for {
		e := entry{name: p.key(), line: p.line}
		if e.name == "" {
			return node{}, false
		}
		p.at += len(e.name) + 1
		p.spaces()
		var ok bool
		here := column
		if !p.ends() {
			if e.value, ok = p.flow(depth + 1); !ok || !p.ends() {
				return node{}, false
			}
			here, ok = p.next()
		} else if here, ok = p.next(); ok && (here > column || here == column && p.dash()) {
			p.laying = p.layout != nil && depth == 1 && e.name == "records" && p.dash()
			e.value, ok = p.block(here, depth+1)
			here = p.at - p.begin
		} else {
			e.value.line = e.line
		}
		if !ok || !p.add(from, e) {
			return node{}, false
		}
		if p.at == len(p.text) || here < column {
			m.fields = p.keepFields(from)
			return m, true
		}
		if here > column {
			return node{}, false // goes on with the line before
		}
	}
}

func (p *plainReader) sequence(column, depth int) (node, bool) {
	s, from := node{line: p.line, form: sequence}, len(p.items)
	laying := p.laying
	p.laying = false
	packing := laying && p.packing != nil
	for {
		if packing {
			p.makeRoom()
		}
		fields, items := p.fieldRoom, p.itemRoom
		if laying {
			p.layout.starts = append(p.layout.starts, uint32(p.at))
		}
		p.at++
		p.spaces()
		var item node
		ok := !p.ends()
		here := 0
		switch {
		case !ok:
		case p.key() != "":
			item, ok = p.mapping(p.at-p.begin, depth+1)
			here = p.at - p.begin
		default:
			if item, ok = p.flow(depth + 1); ok && p.ends() {
				here, ok = p.next()
			} else {
				ok = false
			}
		}
		if !ok {
			return node{}, false
		}
		if !packing {
			p.items = append(p.items, item)
		} else if p.packing.item(&item) {
			p.fieldRoom, p.itemRoom = fields, items // nobody has the tree
		}
		switch {
		case p.at < len(p.text) && here > column:
			return node{}, false
		case p.at < len(p.text) && here == column && p.dash():
		default:
			if laying {
				p.layout.column, p.layout.end = column, uint32(p.begin)
			}
			s.items = p.keepItems(from)
			return s, true
		}
	}
}

func (p *plainReader) spaces() {
	for p.at < len(p.text) && p.text[p.at] == ' ' {
		p.at++
	}
}

// inside goes to what comes next between brackets, on whatever line.
func (p *plainReader) inside() (c byte) {
	for p.at < len(p.text) {
		switch c := p.text[p.at]; c {
		case ' ':
			p.at++
		case '\n':
			p.newline()
		default:
			return c
		}
	}
	return 0
}

// flow reads a value on its line, or one in brackets.
func (p *plainReader) flow(depth int) (node, bool) {
	if depth > plainNesting {
		return node{}, false
	}
	switch p.text[p.at] {
	case '{':
		return p.flowMapping(depth)
	case '[':
		return p.flowSequence(depth)
	case '"', '\'':
		text, ok := p.quoted()
		return node{line: p.line, form: quoted, text: text}, ok
	}
	return p.bare()
}

func (p *plainReader) flowMapping(depth int) (node, bool) {
	m, from := node{line: p.line, form: mapping}, len(p.fields)
	p.at, p.brackets = p.at+1, p.brackets+1
	for c := p.inside(); c != '}'; c = p.inside() {
		if len(p.fields) > from {
			if c != ',' {
				return node{}, false
			}
			p.at++
			c = p.inside()
		}
		e := entry{line: p.line}
		if c == '"' {
			var ok bool
			if e.name, ok = p.quoted(); !ok || p.at == len(p.text) || p.text[p.at] != ':' {
				return node{}, false
			}
		} else if e.name = p.key(); e.name == "" {
			return node{}, false
		} else {
			p.at += len(e.name)
		}
		p.at++
		var ok bool
		p.spaces()
		if p.ends() {
			return node{}, false
		}
		if e.value, ok = p.flow(depth + 1); !ok || !p.add(from, e) {
			return node{}, false
		}
	}
	p.at, p.brackets = p.at+1, p.brackets-1
	m.fields = p.keepFields(from)
	return m, true
}

func (p *plainReader) flowSequence(depth int) (node, bool) {
	s, from := node{line: p.line, form: sequence}, len(p.items)
	p.at, p.brackets = p.at+1, p.brackets+1
	for c := p.inside(); c != ']'; c = p.inside() {
		if len(p.items) > from {
			if c != ',' {
				return node{}, false
			}
			p.at++
			c = p.inside()
		}
		if c == 0 {
			return node{}, false
		}
		item, ok := p.flow(depth + 1)
		if !ok {
			return node{}, false
		}
		p.items = append(p.items, item)
	}
	p.at, p.brackets = p.at+1, p.brackets-1
	s.items = p.keepItems(from)
	return s, true
}

// quoted reads text in quotes, if it is as it is written.
func (p *plainReader) quoted() (string, bool) {
	quote, from := p.text[p.at], p.at+1
	i := strings.IndexByte(p.text[from:], quote)
	if i < 0 {
		return "", false
	}
	text := p.text[from : from+i]
	if strings.IndexByte(text, '\n') >= 0 || quote == '"' && strings.IndexByte(text, '\\') >= 0 {
		return "", false
	}
	p.at = from + i + 1
	return text, quote == '"' || p.at == len(p.text) || p.text[p.at] != '\''
}

// bare reads text without quotes: up to the end of the line, or in brackets to what may stand behind it.
func (p *plainReader) bare() (node, bool) {
	from := p.at
	for p.at+1 < len(p.text) {
		c, after := p.text[p.at], p.text[p.at+1]
		if !isBare(c) && (c != ' ' || !isLetter(after) && !isDigit(after)) && (c != ':' || p.brackets > 0 || after != ':' && !isBare(after)) {
			break
		}
		p.at++
	}
	text := p.text[from:p.at]
	if text == "" || !isLetter(text[0]) && !isDigit(text[0]) || p.at == len(p.text) || strings.IndexByte("\n ,]}", p.text[p.at]) < 0 {
		return node{}, false
	}
	return node{line: p.line, form: formOfBare(text), text: text}, true
}

func isLetter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }
func isDigit(c byte) bool  { return c >= '0' && c <= '9' }
func isBare(c byte) bool {
	return isLetter(c) || isDigit(c) || c == '.' || c == '-' || c == '/' || c == '_'
}

// formOfBare is what the scanner takes a text for.
func formOfBare(text string) form {
	if isLetter(text[0]) {
		switch text {
		case "null", "Null", "NULL":
			return null
		case "true", "True", "TRUE", "false", "False", "FALSE":
			return boolean
		}
		return plain
	}
	if strings.IndexFunc(text, func(r rune) bool { return r < '0' || r > '9' }) < 0 && text[0] != '0' && len(text) < 19 {
		return number
	}
	if strings.Count(text, ".") < 2 && token.ToNumber(text) != nil {
		return number
	}
	return plain
}

// add adds a field to those of its mapping, which begin at from.
func (p *plainReader) add(from int, e entry) bool {
	if len(p.fields)-from == maxFields {
		return false
	}
	for i := from; i < len(p.fields); i++ {
		if p.fields[i].name == e.name {
			return false
		}
	}
	p.fields = append(p.fields, e)
	return true
}

// makeRoom has room for all nodes of most items.
func (p *plainReader) makeRoom() {
	const some = 16
	if len(p.fieldRoom) < some {
		p.fieldRoom = make([]entry, 4*some)
	}
	if len(p.itemRoom) < some {
		p.itemRoom = make([]node, 4*some)
	}
}

func (p *plainReader) keepFields(from int) []entry {
	return keep(&p.fields, &p.fieldRoom, from)
}

func (p *plainReader) keepItems(from int) []node {
	return keep(&p.items, &p.itemRoom, from)
}

// keep moves what stands on a stack from an index into a room of many.
func keep[T any](stack, room *[]T, from int) []T {
	const many = 256
	n := len(*stack) - from
	if n == 0 {
		return nil
	}
	if n > len(*room) {
		*room = make([]T, max(n, min(many, 4+2*from)))
	}
	kept := (*room)[:n:n]
	*room = (*room)[n:]
	copy(kept, (*stack)[from:])
	clear((*stack)[from:])
	*stack = slices.Delete(*stack, from, len(*stack))
	return kept
}
