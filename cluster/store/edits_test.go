package store

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
	"pgregory.net/rapid"
)

// zone is a text as those that are edited: of many lines, some of which come again and again.
func zone(n int) []string {
	var lines []string
	for i := range n {
		lines = append(lines, fmt.Sprintf("- name: host-%06d\n", i), "  type: A\n", "  ttl: 300\n", fmt.Sprintf("  values: [198.51.%d.%d]\n", i/256%256, i%256))
	}
	return lines
}

// TestPiecesAreWhatDiffers looks at how long they are; TestPiecesLeadFromOneTextToAnother at what comes of them.
func TestPiecesAreWhatDiffers(t *testing.T) {
	base := zone(1000)
	text := func(lines []string) []byte { return []byte(strings.Join(lines, "")) }
	changed := func(edit func(lines []string) []string) []byte { return text(edit(append([]string{}, base...))) }
	block := zone(1200)[4*1000:]
	for name, test := range map[string]struct {
		after []byte
		most  int
	}{
		"nothing":             {text(base), 10},
		"a value":             {changed(func(l []string) []string { l[403] = "  values: [203.0.113.7]\n"; return l }), 40},
		"first, middle, last": {changed(func(l []string) []string { l[3], l[2003], l[3999] = "  x: 1\n", "  x: 2\n", "  x: 3\n"; return l }), 120},
		"a hundred values":    {changed(func(l []string) []string { return every(l, 40, "  values: [203.0.113.7]\n") }), 5000},
		"a block put in":      {changed(func(l []string) []string { return append(l[:400:400], append(block, l[400:]...)...) }), len(text(block)) + 20},
		"a block put in twice": {changed(func(l []string) []string {
			l = append(l[:400:400], append(block, l[400:]...)...)
			l[3] = "x\n"
			return l
		}), len(text(block)) + 60},
		"blocks deleted": {changed(func(l []string) []string { return append(append(l[:40:40], l[80:2000]...), l[2400:]...) }), 40},
		"two changed places": {changed(func(l []string) []string {
			return append(append(l[:400:400], l[404:2000]...), append(l[400:404], l[2000:]...)...)
		}), 160},
		"a block moved far": {changed(func(l []string) []string { return append(append(append([]string{}, l[2000:]...), "\n"), l[:2000]...) }), len(text(base))/2 + 100},
	} {
		pieces, ok := piecesOf(text(base), test.after, len(test.after))
		if !ok || len(pieces) > test.most {
			t.Errorf("%s: %v, %d bytes of %d: at most %d", name, ok, len(pieces), len(test.after), test.most)
		}
		if got, err := joined(text(base), pieces); err != nil || !bytes.Equal(got, test.after) {
			t.Errorf("%s: %v", name, err)
		}
		if _, ok := piecesOf(text(base), test.after, len(pieces)-1); ok {
			t.Errorf("%s: the bound is not heeded", name)
		}
	}
}

func every(lines []string, n int, s string) []string {
	for i := 3; i < len(lines); i += n {
		lines[i] = s
	}
	return lines
}

func TestPiecesLeadFromOneTextToAnother(t *testing.T) {
	line := rapid.SampledFrom([]string{"", "a", "\n", "- name: one line\n", "- name: another line\n", "  type: A or AAAA or so\n", "  type: A\n", "no end of a line that is long"})
	rapid.Check(t, func(t *rapid.T) {
		var before, after []byte
		for range rapid.IntRange(0, 30).Draw(t, "lines") {
			s := line.Draw(t, "line")
			before = append(before, s...)
			switch rapid.IntRange(0, 3).Draw(t, "edit") {
			case 0:
				after = append(after, line.Draw(t, "other")...)
			case 1: // it is not there any more
			default:
				after = append(after, s...)
			}
		}
		pieces, ok := piecesOf(before, after, 1<<20)
		if !ok {
			t.Fatal("too long")
		}
		if got, err := joined(before, pieces); err != nil || !bytes.Equal(got, after) {
			t.Fatalf("%q to %q: %q, %v", before, after, got, err)
		}
		if !lead(before, pieces, after) || lead(before, pieces, append(after, 'x')) || lead(append(before, 'x'), pieces, after) {
			t.Fatalf("%q to %q: whether it leads there is not known", before, after)
		}
		if got, err := joined(append(before, 'x'), pieces); err == nil {
			t.Fatalf("of another text there came %q", got)
		}
	})
}

func FuzzPieces(f *testing.F) {
	f.Add([]byte("a\nb\nc\n"), []byte("a\nc\n"))
	f.Add([]byte("- name: one line\n- name: another line\n"), []byte("- name: another line\n- name: one line\n"))
	f.Fuzz(func(t *testing.T, before, after []byte) {
		pieces, ok := piecesOf(before, after, len(after)+len(before)+64)
		if !ok {
			t.Fatal("too long")
		}
		if got, err := joined(before, pieces); err != nil || !bytes.Equal(got, after) {
			t.Fatalf("%q, %v", got, err)
		}
		if got, err := joined(before, after); err == nil && !lead(before, after, got) { // whatever it is
			t.Fatalf("it leads to %q, and does not", got)
		}
	})
}

// TestEditsAreWhatTheWholeWouldBe has three machines apply a log, one of whole objects, one of edits, and one that was started from a snapshot
// somewhere between.
func TestEditsAreWhatTheWholeWouldBe(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		whole, short, late := &machine{now: &State{}}, &machine{now: &State{}}, &machine{now: &State{}}
		doc := map[string][]string{"a": zone(20), "b": zone(30)}
		edits := 0
		for i := range rapid.IntRange(1, 12).Draw(t, "changes") {
			expect := whole.now.Revision
			c := Change{Expect: &expect, Time: then, ID: rapid.SampledFrom([]string{"", "x"}).Draw(t, "id")}
			for name := range doc {
				if rapid.Bool().Draw(t, "changes "+name) {
					lines := append([]string{}, doc[name]...)
					for range rapid.IntRange(1, 3).Draw(t, "edits") {
						at := rapid.IntRange(0, len(lines)-1).Draw(t, "at")
						lines[at] = fmt.Sprintf("  value: %d\n", i)
					}
					doc[name] = lines
					c.Put = append(c.Put, put("k", name, strings.Join(lines, "")))
				}
			}
			if rapid.IntRange(0, 9).Draw(t, "deletes") == 0 {
				c.Put, c.Delete = nil, []Ref{{"k", "a"}}
			}
			if rapid.IntRange(0, 5).Draw(t, "conflict") == 0 {
				expect += 7
			}
			if rapid.IntRange(0, 5).Draw(t, "snapshot") == 0 {
				var b bytes.Buffer
				if err := WriteState(&b, short.now); err != nil {
					t.Fatal(err)
				}
				now, err := ReadState(&b)
				if err != nil {
					t.Fatal(err)
				}
				late.now = now
			}
			edited, is := whole.now.edited(c)
			if is {
				edits++
			}
			said := ""
			for _, on := range []struct {
				m *machine
				c Change
			}{{whole, c}, {short, edited}, {late, edited}} {
				data, err := encodeChange(on.c)
				if err != nil {
					t.Fatal(err)
				}
				if is && on.m != whole && data[0] != formatEdited {
					t.Fatalf("it is in format %d", data[0])
				}
				out := on.m.Apply(&raft.Log{Type: raft.LogCommand, Data: data}).(outcome)
				said += fmt.Sprintf("%d, %v\n", out.revision, out.err)
			}
			if one, rest, _ := strings.Cut(said, "\n"); rest != one+"\n"+one+"\n" {
				t.Fatalf("they answer\n%s", said)
			}
			for _, m := range []*machine{short, late} {
				if diff := gocmp.Diff(whole.now, m.now, same); diff != "" {
					t.Fatal(diff)
				}
			}
		}
	})
}

// TestAnEditThatDoesNotFit is of what a leader must not write: all nodes that have the same find the same.
func TestAnEditThatDoesNotFit(t *testing.T) {
	before := must(t, &State{}, Change{Put: []Object{put("k", "a", long("1"))}})
	before = must(t, before, Change{Put: []Object{put("k", "b", "2")}})
	expect := before.Revision
	c, ok := before.edited(Change{Expect: &expect, Time: then, Put: []Object{put("k", "a", long("2")), put("k", "c", long("3"))}})
	if !ok || c.Put[0].Revision != 1 || c.Put[1].Revision != 0 {
		t.Fatalf("%+v", c)
	}
	apply := func(state *State, c Change) outcome {
		data, err := encodeChange(c)
		if err != nil {
			t.Fatal(err)
		}
		m := &machine{now: state}
		out := m.Apply(&raft.Log{Index: 9, Type: raft.LogCommand, Data: data}).(outcome)
		if m.now.Revision > state.Revision != (out.err == nil) {
			t.Errorf("%v, and the revision is %d", out.err, m.now.Revision)
		}
		return out
	}
	if out := apply(before, c); out.err != nil || out.revision != 3 {
		t.Errorf("where it fits: %+v", out)
	}
	other := must(t, must(t, &State{}, Change{Put: []Object{put("k", "b", "2")}}), Change{Put: []Object{put("k", "a", long("1"))}})
	if out := apply(other, c); !errors.As(out.err, new(*ConflictError)) {
		t.Errorf("of another revision: %+v", out)
	}
	none := must(t, must(t, &State{}, Change{Put: []Object{put("k", "b", "2")}}), Change{Delete: []Ref{{"k", "b"}}})
	if out := apply(none, c); !errors.As(out.err, new(*ConflictError)) {
		t.Errorf("of what is not there: %+v", out)
	}
	wrong := must(t, must(t, &State{}, Change{Put: []Object{put("k", "a", "x"+long("1"))}}), Change{Put: []Object{put("k", "b", "2")}})
	if out := apply(wrong, c); !errors.As(out.err, new(*FaultError)) || !strings.Contains(out.err.Error(), "entry 9") {
		t.Errorf("of other bytes: %+v", out)
	}
	c.Expect = nil
	if out := apply(before, c); !errors.As(out.err, new(*FaultError)) {
		t.Errorf("of no revision: %+v", out)
	}
}

// TestWhatAMemberDoesNotReadIsNotWritten goes the way of an upgrade: the log has edits from when all members say that they read them, and
// whole objects again while one is not heard of.
func TestWhatAMemberDoesNotReadIsNotWritten(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		reads := map[string]int{"a": Format, "b": Format, "d": formatDeflated}
		w.tune = func(c *Config) { c.Reads = func(node string) int { return reads[node] } }
		all := w.cluster("a", "b", "c")
		lines := zone(1000)
		text := func() string { return strings.Join(lines, "") }
		// change changes one line, and returns the format and the length of the entry that it is in.
		change := func(i int) (format byte, size int) {
			t.Helper()
			lines[4*i+3] = fmt.Sprintf("  values: [203.0.113.%d]\n", i)
			expect := all[0].State().Get().Revision
			w.apply(all[0], Change{Expect: &expect, Put: []Object{put("HostedZone", "example.com", text())}})
			for _, m := range all {
				w.at(m, expect+1)
			}
			var e raft.Log
			if err := all[1].files.disk.GetLog(all[0].Applied(), &e); err != nil {
				t.Fatal(err)
			}
			return e.Data[0], len(e.Data)
		}
		for i, test := range []struct {
			c      int
			format byte
			most   int
		}{{0, formatDeflated, 20_000}, {formatDeflated, formatDeflated, 20_000}, {Format, formatEdited, 300}, {0, formatDeflated, 20_000}, {Format + 1, formatEdited, 300}} {
			reads["c"] = test.c
			if format, size := change(i); format != test.format || size > test.most {
				t.Errorf("where one reads format %d it is in format %d, and has %d bytes: at most %d", test.c, format, size, test.most)
			}
			// That one is not heard of does not say that the log has only what an old release reads.
			if may := all[0].MayFollow("d"); may != (test.c == formatDeflated) {
				t.Errorf("where one reads format %d, one of the release before may follow: %v", test.c, may)
			}
		}
		// One that starts again reads it from its log, and one that comes late from the others'.
		all[2].close()
		lines[0] = "- name: renamed\n"
		expect := all[0].State().Get().Revision
		w.apply(all[0], Change{Expect: &expect, Put: []Object{put("HostedZone", "example.com", text())}})
		w.start(all[2])
		reads["d"] = Format
		late := w.start(w.add("d"))
		if err := all[0].AddNonvoter(t.Context(), "d", late.cfg.Advertise); err != nil {
			t.Fatal(err)
		}
		for _, m := range append(all, late) {
			if o, _ := w.at(m, expect+1).Get("HostedZone", "example.com"); string(o.Bytes) != text() {
				t.Errorf("%s has it otherwise", m.name)
			}
			if err := m.Fault(); err != nil {
				t.Error(err)
			}
		}
		w.same(append(all, late)...)
		if got := all[0].Counters()["store_changes_edited_total"]; got != 3 {
			t.Errorf("%d were written as edits", got)
		}
	})
}

// TestADeltaOfOneLineIsShort also has a follower that is not where it says.
func TestADeltaOfOneLineIsShort(t *testing.T) {
	lines := zone(1000)
	text := func() string { return strings.Join(lines, "") }
	from := must(t, &State{}, Change{Time: then, Put: []Object{put("HostedZone", "example.com", text()), put("HostedZone", "gone", text())}})
	to := from
	for i := range 3 {
		lines[400*i+3] = fmt.Sprintf("  values: [203.0.113.%d]\n", i)
		to = must(t, to, Change{Time: then, Put: []Object{put("HostedZone", "example.com", text())}})
	}
	to = must(t, to, Change{Time: then, Put: []Object{put("HostedZone", "new", text())}, Delete: []Ref{{"HostedZone", "gone"}}})
	d, ok := to.Since(from.Position())
	if !ok {
		t.Fatal("there is none")
	}
	short := to.Edited(d)
	if got := short.Spec.edited; len(got) != 1 || got[0] != (deltaEdit{0, 1}) || len(short.Spec.Put[0].Bytes) > 300 || len(d.Spec.Put[0].Bytes) != len(text()) {
		t.Errorf("its edits are %+v", got)
	}
	next, err := from.WithDelta(short)
	if err != nil || next.Sum() != to.Sum() {
		t.Fatalf("%v", err)
	}
	if o, _ := next.Get("HostedZone", "example.com"); string(o.Bytes) != text() {
		t.Error("it leads elsewhere")
	}
	other := must(t, &State{}, Change{Time: then, Put: []Object{put("HostedZone", "example.com", "x\n"+text()), put("HostedZone", "gone", text())}})
	if _, err := other.WithDelta(short); err == nil {
		t.Error("who has something else takes it")
	}
	none := must(t, &State{}, Change{Time: then, Put: []Object{put("HostedZone", "gone", text())}})
	if _, err := none.WithDelta(short); err == nil {
		t.Error("who has nothing takes it")
	}
	// Where the history does not have what was, the whole goes.
	bare := *to
	bare.History = nil
	for _, r := range to.History {
		bare.History = append(bare.History, r.withoutFormer())
	}
	if got := bare.Edited(d).Spec.edited; len(got) != 0 {
		t.Errorf("of what is not kept there are edits: %+v", got)
	}
}
