package spec

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
)

// largeZone is a zone as people and programs write one, in one of several ways.
func largeZone(random *rand.Rand) string {
	var b strings.Builder
	b.WriteString([]string{"kind: HostedZone\nname: example.com\n", "# of the shop\nname: example.com\n\nkind: HostedZone\n", "kind: HostedZone\n"}[random.IntN(3)])
	if random.IntN(3) == 0 {
		b.WriteString("labels: {team: a}\n")
	}
	b.WriteString("records:\n")
	indent := []string{"", "  ", "    "}[random.IntN(3)]
	for i := range leastLayout + random.IntN(20) {
		b.WriteString(recordLine(random, indent, fmt.Sprintf("h%d", i)))
	}
	if !strings.Contains(b.String(), "name: example.com") {
		b.WriteString("name: example.com\n")
	}
	if random.IntN(3) == 0 {
		b.WriteString("nameServers:\n- ns1.example.net\n")
	}
	return b.String()
}

func recordLine(random *rand.Rand, indent, name string) string {
	address := fmt.Sprintf("192.0.2.%d", random.IntN(250))
	switch random.IntN(8) {
	case 0:
		return fmt.Sprintf("%s- name: %s\n%s  type: A\n%s  values: [%s]\n", indent, name, indent, indent, address)
	case 1:
		return fmt.Sprintf("%s- name: %s\n\n%s  type: A\n%s  # here\n%s  values:\n%s  - %s\n", indent, name, indent, indent, indent, indent, address)
	case 2:
		return fmt.Sprintf("%s# a note\n%s- {name: %s, type: TXT, values: ['\"a, {b}\"']}\n", indent, indent, name)
	case 3:
		return fmt.Sprintf("%s- {name: %s, type: A,\n%s  values: [%s]}\n", indent, name, indent, address)
	case 4:
		if random.IntN(100) == 0 { // not plain
			return fmt.Sprintf("%s- {name: %s, type: A, values: [%s]} # here\n", indent, name, address)
		}
	}
	return fmt.Sprintf("%s- {name: %s, type: A, ttl: %d, values: [%s]}\n", indent, name, random.IntN(4)*60, address)
}

// edited is a text that somebody has edited: seldom with care.
func edited(random *rand.Rand, text string) string {
	lines := strings.SplitAfter(text, "\n")
	for range 1 + random.IntN(2) {
		at := random.IntN(len(lines))
		to := min(len(lines), at+random.IntN(4))
		var put []string
		switch random.IntN(8) {
		case 0: // taken away
		case 1: // some bytes of it are others
			put = lines[at:to]
			if len(put) > 0 && len(put[0]) > 1 {
				i := random.IntN(len(put[0]))
				put = append([]string{put[0][:i] + string("19a-#:{}[], \n\""[random.IntN(13)]) + put[0][i+random.IntN(2):]}, put[1:]...)
			}
		case 2:
			put = []string{[]string{"\n", "# a note\n", "ttl: 5\n", "  \n", "  - \n", "name: example.org\n", "records:\n", "  - {nmae: x, type: A, values: [192.0.2.1]}\n"}[random.IntN(8)]}
		case 3: // again
			put = append(append(put, lines[at:to]...), lines[at:to]...)
		default:
			indent := lines[len(lines)/2][:len(lines[len(lines)/2])-len(strings.TrimLeft(lines[len(lines)/2], " "))]
			if indent = indent[:len(indent)/2*2]; random.IntN(2) == 0 {
				to = at // new ones
			}
			for range random.IntN(3) {
				put = append(put, recordLine(random, indent, fmt.Sprintf("n%d", random.IntN(1000))))
			}
		}
		lines = append(append(append([]string{}, lines[:at]...), put...), lines[to:]...)
	}
	return strings.Join(lines, "")
}

// What is read of what differs is what is read of the whole, faults and all, one change after the other.
func TestAZoneThatChangedIsReadAsIfItWereNew(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	const rounds, changes = 150, 20
	few, right := 0, 0
	for range rounds {
		text := largeZone(random)
		docs := mustSplit(t, text)
		s, err := Build(1, docs, Options{})
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		for range changes {
			stored := Options{Stored: random.IntN(2) == 0}
			next := edited(random, text)
			before := func(Ref) []byte { return docs[0].Bytes }
			if random.IntN(3) == 0 { // the same, elsewhere in memory
				before = func(Ref) []byte { return bytes.Clone(docs[0].Bytes) }
			}
			data := []byte(next)
			want, wantErr := Split("x", data)
			got, gotErr := s.Split("x", data, before)
			if fmt.Sprint(gotErr) != fmt.Sprint(wantErr) || len(got) != len(want) {
				t.Fatalf("split: %v and %d documents, want %v and %d of\n%s\nafter\n%s", gotErr, len(got), wantErr, len(want), next, text)
			}
			if wantErr != nil || len(want) != 1 || want[0].Ref() != docs[0].Ref() {
				continue
			}
			if got[0].Ref() != want[0].Ref() || !bytes.Equal(got[0].Bytes, want[0].Bytes) || got[0].Line != want[0].Line {
				t.Fatalf("split: %v, want %v", got[0], want[0])
			}
			if d := got[0].difference; d != nil {
				if marks, u := inspect(got[0].Bytes); u != nil || marks != d.layout.marks {
					t.Fatalf("%d marks, and it is %v; counted are %d in\n%s", marks, u, d.layout.marks, next)
				}
				few++
			}
			if got[0].Before == nil || random.IntN(3) == 0 { // as of a log
				got[0] = want[0]
				got[0].Before = docs[0].Bytes
			}
			whole, wantErr := Build(2, want, stored)
			part, gotErr := s.With(2, got, nil, stored)
			if fmt.Sprint(gotErr) != fmt.Sprint(wantErr) {
				t.Fatalf("faults:\n%v\nwant\n%v\nof\n%s\nafter\n%s", gotErr, wantErr, next, text)
			}
			var a, b Faults
			if errors.As(wantErr, &a) && errors.As(gotErr, &b) && !reflect.DeepEqual(a, b) {
				t.Fatalf("faults %+v, want %+v", b, a)
			}
			if wantErr != nil {
				continue
			}
			if !reflect.DeepEqual(part, whole) {
				t.Fatalf("got %+v\nwant %+v\nof\n%s\nafter\n%s", part.HostedZones["example.com"], whole.HostedZones["example.com"], next, text)
			}
			right++
			s, text, docs = part, next, want
			if s.HostedZones["example.com"].layout == nil || s.HostedZones["example.com"].Records.Len() < leastLayout {
				break
			}
		}
	}
	t.Logf("of %d changes %d were right, and of %d only a part was read", rounds*changes, right, few)
	if few < rounds || right < 2*rounds {
		t.Error("that is too few to show anything")
	}
}

// Who hands over another document than that of which the spec was made has the new one read whole.
func TestADocumentBeforeMustBeThatOfTheSpec(t *testing.T) {
	text := "kind: HostedZone\nname: example.com\nrecords:\n"
	for i := range leastLayout {
		text += fmt.Sprintf("- {name: h%d, type: A, values: [192.0.2.1]}\n", i)
	}
	s, err := Build(1, mustSplit(t, text), Options{})
	if err != nil {
		t.Fatal(err)
	}
	other := strings.Replace(text, "h3,", "x3,", 1)
	put := mustSplit(t, strings.Replace(other, "h7,", "y7,", 1))
	put[0].Before = []byte(other)
	next, err := s.With(2, put, nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if r := next.HostedZones["example.com"].Records; r.At(3).Name != "x3" || r.At(7).Name != "y7" {
		t.Errorf("got %s and %s", r.At(3).Name, r.At(7).Name)
	}
}

// BenchmarkOneRecordOf10000 is what it takes to split and read a zone of 10,000 records in which one changed.
func BenchmarkOneRecordOf10000(b *testing.B) {
	text := zoneOf(10_000)
	docs := mustSplit(b, text)
	s, err := Build(1, docs, Options{})
	if err != nil {
		b.Fatal(err)
	}
	next := []byte(strings.Replace(text, "name: www5000\n", "name: www5000x\n", 1))
	b.ReportAllocs()
	for b.Loop() {
		put, err := s.Split("x", next, func(Ref) []byte { return docs[0].Bytes })
		if err != nil {
			b.Fatal(err)
		}
		if _, err := s.With(2, put, nil, Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
