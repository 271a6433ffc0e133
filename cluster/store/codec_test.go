package store

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
)

func TestAChangeIsReadAsItWasWritten(t *testing.T) {
	expect := uint64(7)
	for name, c := range map[string]Change{
		"empty": {Time: then},
		"full": {
			ID: "id", Expect: &expect, Author: "ada", Note: "why\nand <why> not", Time: then,
			Put: []Object{put("k", "a", "\x00\xff"), put("k", "b", "")}, Delete: []Ref{{"k", "c"}},
		},
		"compressed": {Time: then, Put: []Object{put("k", "a", strings.Repeat("perigee ", 4096))}},
	} {
		data, err := encodeChange(c)
		if err != nil {
			t.Fatal(err)
		}
		read, err := decodeChange(data)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := gocmp.Diff(c, read, same); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
		if name == "compressed" && len(data) > 1024 {
			t.Errorf("it takes %d bytes", len(data))
		}
		for i := 0; i < len(data); i += 1 + len(data)/50 {
			if _, err := decodeChange(data[:i]); err == nil {
				t.Errorf("%s, cut at %d of %d: read", name, i, len(data))
			}
		}
		if _, err := decodeChange(append(data, 0)); err == nil {
			t.Errorf("%s, with a byte too many: read", name)
		}
	}
}

// TestWhatIsOnPeoplesDisksIsRead holds on to the formats: what was written once must be read for ever, or refused by number.
func TestWhatIsOnPeoplesDisksIsRead(t *testing.T) {
	expect := uint64(7)
	want := Change{
		Space: Own, ID: "id", Expect: &expect, Author: "ada", Note: "why", Time: then,
		Put: []Object{put("k", "a", "\x01\x02\x03")}, Delete: []Ref{{"k", "b"}},
	}
	got, err := decodeChange([]byte("\x03\x85\x01" +
		`{"space":1,"id":"id","expect":7,"author":"ada","note":"why","time":"2026-11-23T12:00:00Z",` +
		`"put":1,"delete":[{"kind":"k","name":"b"}]}` + "\x00\x01k\x01a\x03\x01\x02\x03"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff(want, got, same); diff != "" {
		t.Error(diff)
	}

	wantState := must(t, &State{}, Change{ID: "id", Time: then, Author: "ada", Note: "why", Put: []Object{put("k", "a", "\x01")}})
	wantState = must(t, wantState, Change{Time: then, Put: []Object{put("k", "a", "\x02")}})
	wantState = must(t, wantState, Change{Space: Own, Time: then, Put: []Object{put("Node", "icn1", "\x03")}})
	state, err := hex.DecodeString("04848fd14af3301886c9fe5dc97b9c41beb4dbd2ef22fe23415026646d6471ac1949ea9091ebf2f6a445b00abad3e4e3799ef75d5c91ceae055f11ddab4f3ef4" +
		"602d11f62faecd094c12d1b52176697a4fc3094cb4a9d4ba225519631ad36caa7a5b24c2a5ffcea15f38243f39466d1b53afb7a6596b5255ada82e12b64f1717" +
		"13f8f10adf81e13bc8591e955d5988a3b0627198679344f6270786567ab3225ae9ea8e342bc54a3d40c20ef9102218b6b390e8431e8f2f8737489c873c098fbe" +
		"1f95c7f1df4e308bb22bf77391be25fa1b26b177cf213a301531ed1062f93f746ee9db9ec4bfa7b9ebe6a81fae91f3d53e025176127b1b1d38c7c1958f000000" +
		"ffff")
	if err != nil {
		t.Fatal(err)
	}
	gotState, err := ReadState(bytes.NewReader(state))
	if err != nil {
		var b bytes.Buffer
		WriteState(&b, wantState)
		t.Fatalf("%v; now it is written as %x", err, b.Bytes())
	}
	if diff := gocmp.Diff(wantState, gotState, same); diff != "" {
		t.Error(diff)
	}
	for _, former := range []byte{1, 2} {
		var format *FormatError
		if _, err := decodeChange([]byte{former, 0}); !errors.As(err, &format) || !strings.Contains(err.Error(), "before this one") {
			t.Errorf("got %v", err)
		}
	}
}

func TestWhatALaterReleaseAddsIsPassedOver(t *testing.T) {
	var b bytes.Buffer
	header := map[string]any{
		"id": "x", "time": then, "mood": "good",
		"put": 1,
	}
	if err := encode(&b, false, header, func(e *encoder) { e.objects([]Object{put("k", "a", "1")}) }); err != nil {
		t.Fatal(err)
	}
	c, err := decodeChange(b.Bytes())
	if err != nil || c.ID != "x" || len(c.Put) != 1 || string(c.Put[0].Bytes) != "1" {
		t.Fatalf("got %+v, %v", c, err)
	}
	data := b.Bytes()
	data[0] = 99
	var format *FormatError
	if _, err := decodeChange(data); !errors.As(err, &format) || format.Format != 99 {
		t.Fatalf("another format: %v", err)
	}
}

func FuzzDecodeChange(f *testing.F) {
	for _, c := range []Change{
		{Time: then, ID: "x", Put: []Object{put("k", "a", "1")}, Delete: []Ref{{"k", "b"}}},
		{Time: then, Put: []Object{put("k", "a", strings.Repeat("x", deflateFrom))}},
	} {
		data, err := encodeChange(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte{formatPlain, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Add([]byte("\x03\x0a{\"put\":-1}"))
	f.Add([]byte("\x03\x0f{\"put\":1000000}\x00\x01k\x01a\xff\xff\xff\x07"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := decodeChange(data)
		if err != nil {
			return
		}
		(&State{}).With(c)
	})
}

func FuzzReadState(f *testing.F) {
	s := &State{}
	for i := range 3 {
		s, _, _ = s.With(Change{ID: fmt.Sprint(i), Space: Space(i % 2), Time: then, Put: []Object{put("k", "a", fmt.Sprint(i))}})
	}
	var b bytes.Buffer
	if err := WriteState(&b, s); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	var plain bytes.Buffer
	head := stateHeader{Spec: tableHeader{Revision: s.Revision, Objects: len(s.Objects), Sum: s.sum}}
	if err := encode(&plain, false, head, func(e *encoder) { e.objects(s.Objects) }); err != nil {
		f.Fatal(err)
	}
	f.Add(plain.Bytes())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := ReadState(bytes.NewReader(data))
		if err != nil {
			return
		}
		// What is read can be worked with and written again.
		for _, r := range s.History {
			s.At(r.Revision)
		}
		next, _, err := s.With(Change{Put: []Object{put("k", "new", "1")}})
		if err != nil {
			t.Fatal(err)
		}
		next.Since(s.Position())
		if err := WriteState(io.Discard, next); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzDecodeDelta(f *testing.F) {
	s := &State{}
	base := must(f, s, Change{Time: then, Put: []Object{put("k", "a", "1"), put("k", "b", "1")}})
	next := must(f, base, Change{Time: then, Put: []Object{put("k", "a", "2")}, Delete: []Ref{{"k", "b"}}})
	next = must(f, next, Change{Space: Own, Time: then, Author: "ada", Put: []Object{put("Node", "icn1", strings.Repeat("x", deflateFrom))}})
	for _, to := range []*State{base, next} {
		d, _ := to.Since(base.Position())
		data, err := EncodeDelta(d)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	d, _ := must(f, base, Change{Delete: []Ref{{"k", "b"}}}).Since(base.Position())
	data, err := EncodeDelta(d)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := DecodeDelta(data)
		if err != nil {
			return
		}
		next, err := base.WithDelta(d)
		if err != nil {
			return
		}
		// Who believes it can go on, keep it and tell others.
		for _, r := range next.History {
			next.At(r.Revision)
		}
		again, ok := next.Since(base.Position())
		if ok {
			if _, err := EncodeDelta(again); err != nil {
				t.Fatal(err)
			}
		}
		var b bytes.Buffer
		if err := WriteState(&b, next); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadState(&b); err != nil {
			t.Fatal(err)
		}
	})
}

func TestAStateThatIsNotWhatItSaysIsRefused(t *testing.T) {
	s := must(t, &State{}, Change{Time: then, Put: []Object{put("k", "a", "1"), put("k", "b", "1")}})
	write := func(h stateHeader, objects []Object) []byte {
		var b bytes.Buffer
		if err := encode(&b, false, h, func(e *encoder) { e.objects(objects) }); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	head := tableHeader{Revision: 1, Objects: 2, Sum: s.sum}
	bombs := bytes.Repeat([]byte{0}, 1<<20)
	for name, test := range map[string]struct {
		data []byte
		says string
	}{
		"nothing":       {nil, "EOF"},
		"as it is":      {write(stateHeader{Spec: head}, s.Objects), ""},
		"another sum":   {write(stateHeader{Spec: tableHeader{Revision: 1, Objects: 2, Sum: s.sum + 1}}, s.Objects), "sum"},
		"out of order":  {write(stateHeader{Spec: head}, []Object{s.Objects[1], s.Objects[0]}), "order"},
		"one too few":   {write(stateHeader{Spec: head}, s.Objects[:1]), "EOF"},
		"one too many":  {write(stateHeader{Spec: head}, append(s.Objects[:2:2], s.Objects[0])), "more than it says"},
		"many claimed":  {write(stateHeader{Spec: tableHeader{Objects: 1 << 24}}, bytesAsObjects(bombs)), "EOF"},
		"too many":      {write(stateHeader{Spec: tableHeader{Objects: 1<<24 + 1}}, nil), "at most"},
		"fewer than 0":  {write(stateHeader{Spec: tableHeader{Records: -1}}, nil), "at most"},
		"a long header": {[]byte("\x03\xff\xff\xff\xff\x7f"), "at most"},
	} {
		_, err := ReadState(bytes.NewReader(test.data))
		if (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: got %v, want %q", name, err, test.says)
		}
	}
}

func bytesAsObjects(b []byte) []Object { return []Object{{Kind: "k", Name: "a", Bytes: b}} }

func TestWhatInflatesTooFarIsRefused(t *testing.T) {
	c := Change{Put: []Object{{Kind: "k", Name: "a", Bytes: make([]byte, MaxObject)}}}
	data, err := encodeChange(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := decode(bytes.NewReader(data), MaxObject, func(d *decoder) { d.header(&changeHeader{}); d.objects(1) }); err == nil ||
		!strings.Contains(err.Error(), "larger than any release writes") {
		t.Errorf("got %v", err)
	}
}
