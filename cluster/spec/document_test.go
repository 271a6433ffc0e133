package spec

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestSplitKeepsTheBytesAndTheLineOfEachDocument(t *testing.T) {
	region := func(name string) string { return "kind: Region\nname: " + name + "\n" }
	for _, c := range []struct {
		name, file string
		want       []Document
	}{
		{"nothing", "", nil},
		{"comments alone", "# one\n---\n\n# two\n---\n...\n", nil},
		{"one document", region("a"), []Document{{Line: 1, Name: "a", Bytes: []byte(region("a"))}}},
		{"no line feed at the end", "kind: Region\nname: a", []Document{{Line: 1, Name: "a", Bytes: []byte("kind: Region\nname: a")}}},
		{"separators before, between and behind", "---\n" + region("a") + "--- # then\n" + region("b") + "...\n---\n", []Document{
			{Line: 2, Name: "a", Bytes: []byte(region("a"))},
			{Line: 5, Name: "b", Bytes: []byte(region("b"))},
		}},
		{"comments stay with the document below them, blank lines do not", "\n  \n# a\n\n" + region("a"), []Document{
			{Line: 3, Name: "a", Bytes: []byte("# a\n\n" + region("a"))},
		}},
		{"carriage returns", "\r\n# a\r\nkind: Region\r\nname: a\r\n---\r\n\r\nkind: Region\r\nname: b\r\n", []Document{
			{Line: 2, Name: "a", Bytes: []byte("# a\r\nkind: Region\r\nname: a\r\n")},
			{Line: 7, Name: "b", Bytes: []byte("kind: Region\r\nname: b\r\n")},
		}},
		{"a byte order mark", "\uFEFF" + region("a"), []Document{{Line: 1, Name: "a", Bytes: []byte(region("a"))}}},
		{"a separator that is none", "kind: Region\nname: a\nx: |\n  ---\n  ...\ny: ---x\n", []Document{
			{Line: 1, Name: "a", Bytes: []byte("kind: Region\nname: a\nx: |\n  ---\n  ...\ny: ---x\n")},
		}},
		{"JSON", `{"kind":"Region","name":"a","pops":[{"name":"b"}]}`, []Document{
			{Line: 1, Name: "a", Bytes: []byte(`{"kind":"Region","name":"a","pops":[{"name":"b"}]}`)},
		}},
		{"a number for a name", "kind: Region\nname: 1.10\n", []Document{{Line: 1, Name: "1.10", Bytes: []byte("kind: Region\nname: 1.10\n")}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Split("a.yaml", []byte(c.file))
			if err != nil {
				t.Fatal(err)
			}
			for i := range c.want {
				c.want[i].File, c.want[i].Kind = "a.yaml", "Region"
			}
			if diff := cmp.Diff(c.want, got, cmpopts.IgnoreUnexported(Document{})); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}

// lineByLine is parts as it is said: one line after the other.
func lineByLine(data []byte) (all []part) {
	p, start, some := part{line: 1}, 0, false
	emit := func(end int) {
		if p.bytes = data[start:end:end]; some {
			all = append(all, p)
		}
	}
	for at, line := 0, 1; at < len(data); line++ {
		if start == at && bytes.HasPrefix(data[at:], []byte("\uFEFF")) {
			at += len("\uFEFF")
			start = at
		}
		end := len(data)
		if i := bytes.IndexByte(data[at:], '\n'); i >= 0 {
			end = at + i + 1
		}
		text := bytes.TrimSpace(data[at:end])
		rest, separates := separator(data[at:end])
		switch {
		case separates:
			emit(at)
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
	return all
}

func TestPartsAreFoundAsLineByLine(t *testing.T) {
	dice := rand.New(rand.NewPCG(1, 2))
	pieces := []string{"a: b", "---", "...", "--- # c", "--- x", "----", "-- -", "\n", "\n", "\n", "\r\n", " ", "#c", "\uFEFF", "---\r\n", "...x", "....", "-", "."}
	for range 20_000 {
		var text []byte
		for range dice.IntN(20) {
			text = append(text, pieces[dice.IntN(len(pieces))]...)
		}
		if got, want := slices.Collect(parts(text)), lineByLine(text); !reflect.DeepEqual(got, want) {
			t.Fatalf("%q: got %+v, want %+v", text, got, want)
		}
	}
}

func TestDocumentsDoNotShareRoomToGrow(t *testing.T) {
	docs := mustSplit(t, "kind: Region\nname: a\n---\nkind: Region\nname: b\n")
	_ = append(docs[0].Bytes, "city: nowhere\n"...)
	if string(docs[1].Bytes) != "kind: Region\nname: b\n" {
		t.Fatalf("the second document became %q", docs[1].Bytes)
	}
}

// What would cost a reader without bounds hours or gigabytes is refused, and at once.
func TestHostileFilesAreRefused(t *testing.T) {
	bomb := "a: &a [x, x, x, x]\n"
	for c := 'b'; c <= 'z'; c++ {
		bomb += fmt.Sprintf("%c: &%c [*%c, *%c, *%c, *%c]\n", c, c, c-1, c-1, c-1, c-1)
	}
	var wide strings.Builder
	for i := range 20_000 {
		fmt.Fprintf(&wide, "f%d:\n", i)
	}
	for _, c := range []struct{ name, file, want string }{
		{"an alias bomb", bomb, "a.yaml:1: a text that begins with & must be in quotes (there are no anchors)"},
		{"nested lists in brackets", strings.Repeat("[", 20_000), "a.yaml:1: nested deeper than 32"},
		{"nested lists in a column", "kind: A\nname: b\nx: \n  " + strings.Repeat("- ", 20_000), "a.yaml:4: nested deeper than 32"},
		{"nested mappings", "a" + strings.Repeat(": {a", 20_000), "a.yaml:1: nested deeper than 32"},
		{"nested keys", strings.Repeat("? ", 20_000), "a.yaml:1: a text that begins with ? must be in quotes (there are no complex keys)"},
		{"fields without end", wide.String(), "a.yaml:257: more than 256 fields"},
		{"blank lines without end", "a: |\n  b\n" + strings.Repeat("\n", 1<<19), "a.yaml:103: more than 100 blank lines in a row"},
		{"merge keys without end", strings.Repeat("<", 1<<20), "a.yaml:1: more than 100 < in a row"},
		{"items without end", "a: [" + strings.Repeat("a,", 1<<19-10), "a.yaml:1: a document of more than 400000 lines and marks"},
		{"a document too long", "kind: A\nname: b\n---\na: " + strings.Repeat("b", 1<<20), "a.yaml:4: a document of 1048579 bytes: at most 1048576"},
		{"a file of 100 MB", strings.Repeat("b\n", 50<<20), "a.yaml: 104857600 bytes: at most 16777216 in a file"},
		{"an alias bomb by merge keys", "a: &a {b: c}\nd:\n  <<: *a\n", "a.yaml:1: a text that begins with & must be in quotes (there are no anchors)"},
		{"aliases without anchors", "a: [" + strings.Repeat("*b, ", 10_000) + "]", "a.yaml:1: a text that begins with * must be in quotes: \"*.example.com\" (there are no aliases)"},
		{"a file too long", strings.Repeat("b", 16<<20+1), "a.yaml: 16777217 bytes: at most 16777216 in a file"},
		{"documents without end", strings.Repeat("--- x\n", 210_000), "and 199901 more"},
		{"a long name", "kind: A\nname: " + strings.Repeat("b", 300), "a.yaml:2: A: name: must be text of 1–253 bytes"},
		{"a control character", "kind: A\nname: b\x00\n", "a.yaml:2: the control character 0x00"},
		{"a carriage return alone", "kind: A\rname: b\n", "a.yaml:1: a carriage return without a line feed"},
		{"what is not UTF-8", "kind: A\nname: \xff\n", "a.yaml:2: not UTF-8"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Split("a.yaml", []byte(c.file))
			var faults Faults
			if !errors.As(err, &faults) {
				t.Fatalf("got %v, want faults", err)
			}
			if got := faults[len(faults)-1].String(); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestRefsHaveATextForm(t *testing.T) {
	r, err := ParseRef("HostedZone/example.com")
	if err != nil || r != (Ref{"HostedZone", "example.com"}) || r.String() != "HostedZone/example.com" {
		t.Fatalf("got %v, %v", r, err)
	}
	for _, text := range []string{"", "HostedZone", "HostedZone/", "/example.com"} {
		if r, err := ParseRef(text); err == nil {
			t.Errorf("%q was read as %v", text, r)
		}
	}
}

func TestRefsAreOrderedByWhatRefersToWhat(t *testing.T) {
	ordered := []Ref{{"Region", "z"}, {"TargetGroup", "a"}, {"TargetGroup", "b"}, {"LoadBalancer", "a"}, {"HostedZone", "a"}, {"Alien", "a"}, {"Zebra", "a"}}
	for i, a := range ordered {
		for j, b := range ordered {
			if got, want := a.Compare(b), i-j; got < 0 != (want < 0) || got > 0 != (want > 0) {
				t.Errorf("%v against %v: %d", a, b, got)
			}
		}
	}
}

// What Split accepts it accepts again, each document by itself and all together, with the same bytes.
func FuzzSplit(f *testing.F) {
	for _, text := range readable {
		f.Add([]byte("kind: A\nname: b\n" + text))
	}
	f.Add([]byte(readFile(f, "testdata/valid/network.yaml")))
	f.Add([]byte("\uFEFF---\r\nkind: A\r\nname: b\r\n...\r\n# c\r\n--- # d\r\n{kind: A, name: c}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		docs, err := Split("a.yaml", data)
		if err != nil {
			var faults Faults
			if !errors.As(err, &faults) || strings.Count(err.Error(), "\n") != len(faults)-1 {
				t.Fatalf("not one fault a line: %q", err)
			}
			return
		}
		var all []byte
		for _, d := range docs {
			if !bytes.Contains(data, d.Bytes) {
				t.Fatalf("not as written: %q", d.Bytes)
			}
			again, err := Split("a.yaml", d.Bytes)
			if err != nil || len(again) != 1 || again[0].Ref() != d.Ref() || !bytes.Equal(again[0].Bytes, d.Bytes) {
				t.Fatalf("%q split again: %v, %v", d.Bytes, again, err)
			}
			all = append(all, d.Bytes...)
			if all[len(all)-1] != '\n' {
				all = append(all, '\n')
			}
			all = append(all, "---\n"...)
		}
		again, err := Split("a.yaml", all)
		if err != nil || len(again) != len(docs) {
			t.Fatalf("%d documents joined: %d, %v", len(docs), len(again), err)
		}
		for i, d := range docs {
			if again[i].Ref() != d.Ref() || strings.TrimSuffix(string(again[i].Bytes), "\n") != strings.TrimSuffix(string(d.Bytes), "\n") {
				t.Fatalf("joined: %q, want %q", again[i].Bytes, d.Bytes)
			}
		}
	})
}
