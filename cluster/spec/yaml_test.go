package spec

import (
	"fmt"
	"strings"
	"testing"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/google/go-cmp/cmp"
)

// outline is a tree as text: a line for each field, item and scalar, with the line it stands on.
func outline(n *node, indent string, b *strings.Builder) {
	switch n.form {
	case mapping:
		b.WriteString(indent + "{\n")
		for _, e := range n.fields {
			fmt.Fprintf(b, "%s%q (%d)\n", indent, e.name, e.line)
			outline(&e.value, indent+"  ", b)
		}
	case sequence:
		b.WriteString(indent + "[\n")
		for i := range n.items {
			b.WriteString(indent + "-\n")
			outline(&n.items[i], indent+"  ", b)
		}
	case null:
		b.WriteString(indent + "null\n")
	default:
		fmt.Fprintf(b, "%s%q\n", indent, n.text)
	}
}

// outlineOf is the same of the library's tree. Not ok: it has what is not read here.
func outlineOf(n ast.Node, indent string, b *strings.Builder) (ok bool) {
	switch n := n.(type) {
	case *ast.MappingNode:
		b.WriteString(indent + "{\n")
		for _, e := range n.Values {
			key := e.Key.GetToken()
			fmt.Fprintf(b, "%s%q (%d)\n", indent, key.Value, key.Position.Line)
			if !outlineOf(e.Value, indent+"  ", b) {
				return false
			}
		}
	case *ast.SequenceNode:
		b.WriteString(indent + "[\n")
		for _, item := range n.Values {
			b.WriteString(indent + "-\n")
			if !outlineOf(item, indent+"  ", b) {
				return false
			}
		}
	case *ast.NullNode:
		b.WriteString(indent + "null\n")
	case *ast.LiteralNode:
		fmt.Fprintf(b, "%s%q\n", indent, n.Value.Value)
	case *ast.StringNode, *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		fmt.Fprintf(b, "%s%q\n", indent, n.GetToken().Value)
	default:
		return false
	}
	return true
}

var readable = []string{
	"a: b\n",
	"a: b\nc:\n  d: 1\n  e: [f, g, {h: i}]\n",
	"a:\n- b\n- c: d\n  e: f\n-\n- - g\n  - h\ni: ~\nj:\n",
	"a: one\n  two\n  three\nb: \"x\n  y\"\nc: 'it''s'\n",
	"a: |\n  one\n   two\n\nb: >-\n  three\n  four\nc: |+\n  x\n\nd: |2\n    y\ne: |\n",
	"{\"a\": [1, 2.5, true, null], \"b\": {\"c\": \"\\u0041\\n\"}}",
	"a: {b: c, d: , e: []}\nf: {\n  g: h,\n}\n",
	"# x\na: b # c\n# d\ne: f#g\n",
	"a: http://b:80\nc: 2001:db8::1\nd: {e: 2001:db8::1}\n",
	"\"a b\": c\n1: d\ntrue: e\n'f': g\n",
	"- a\n- b:\n  - c\n  d: e\n",
	"a: -\n", "a: b: c\n", "a: [b\n", "a: *b\n", "&a b: c\n", "? a\n", "a: @\n", "a:\n\tb: c\n", "a: !b c\n", "<<: a\n", "a: %b\n", "a: ]\n", "- a\nb: c\n",
	"a: |\n  b\r\n\r\n  c\r\nd: e # f\r\n# g\r\nh: i\r\n",
	"a: {b: [c:d]}\n", "[a, b: c]\n", "a:\n  b\n", "a:\n\n\n   b: c\n", "a: b\n\n\n  c\n", "\"\": \"\"\n", "a: '\n\n b'\n", "a: b\n!", "a: |+\n  b",
}

func hasEmptyItem(n *node) bool {
	for i := range n.items {
		if n.items[i].form == null || hasEmptyItem(&n.items[i]) {
			return true
		}
	}
	for i := range n.fields {
		if hasEmptyItem(&n.fields[i].value) {
			return true
		}
	}
	return false
}

// What is read here is read as the library's own parser reads it, on the same lines.
func FuzzRead(f *testing.F) {
	for _, text := range readable {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		root, u := read(data, 1)
		if u != nil {
			if u.line < 1 || u.problem == "" {
				t.Fatalf("line %d: %q", u.line, u.problem)
			}
			return
		}
		if hasEmptyItem(&root) {
			return // the library's parser takes the next line for the item's value, wherever it stands
		}
		text := strings.TrimSuffix(strings.ReplaceAll(string(data), "\r\n", "\n"), "\n") + "\n"
		file, err := parser.ParseBytes([]byte(text), 0)
		if err != nil {
			t.Fatalf("read here, but not by the library: %v", err)
		}
		var ours, theirs strings.Builder
		outline(&root, "", &ours)
		for _, doc := range file.Docs {
			if doc.Body != nil && !outlineOf(doc.Body, "", &theirs) {
				t.Fatalf("read here what it should not:\n%s", ours.String())
			}
		}
		if theirs.Len() == 0 {
			theirs.WriteString("null\n")
		}
		if diff := cmp.Diff(theirs.String(), ours.String()); diff != "" {
			t.Fatalf("-library +here\n%s", diff)
		}
	})
}
