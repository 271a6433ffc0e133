package event

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// ids64 are those of the events.
func ids64(events []Event) []uint64 {
	all := []uint64{}
	for _, e := range events {
		all = append(all, e.ID)
	}
	return all
}

func TestALogTellsWhatCameSinceAndWhatIsLost(t *testing.T) {
	l := New("fra1", 4)
	for range 10 {
		l.Add(Health, "target/web/10.0.0.1:80", "turned")
	}
	for _, c := range []struct {
		since uint64
		limit int
		want  []uint64
		lost  uint64
	}{
		{0, 0, []uint64{7, 8, 9, 10}, 6},
		{3, 0, []uint64{7, 8, 9, 10}, 3},
		{6, 0, []uint64{7, 8, 9, 10}, 0},
		{7, 0, []uint64{8, 9, 10}, 0},
		{7, 2, []uint64{8, 9}, 0},
		{0, 1, []uint64{7}, 6},
		{10, 0, []uint64{}, 0},
		{11, 0, []uint64{7, 8, 9, 10}, 6}, // of another life
		{7, 100, []uint64{8, 9, 10}, 0},
		{7, -1, []uint64{8, 9, 10}, 0},
	} {
		events, lost := l.Since(c.since, c.limit)
		if diff := cmp.Diff(c.want, ids64(events)); diff != "" || lost != c.lost {
			t.Errorf("since %d, at most %d: lost %d, want %d, %s", c.since, c.limit, lost, c.lost, diff)
		}
	}
	if events, lost := New("fra1", 0).Since(5, 0); len(events) != 0 || lost != 0 {
		t.Errorf("an empty log tells %v, lost %d", events, lost)
	}
}

func TestAnEventSaysWhereWhenAndWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New("fra1", 0)
		time.Sleep(1234567 * time.Microsecond)
		l.Add(Drain, "region/eu", "drained")
		l.Add(Route, "pop/fra1", "answers no more", 1, 1, 0, 2, 99) // itself and what is to come are no causes
		events, _ := l.Since(1, 0)
		text, err := json.Marshal(events)
		want := `[{"id":2,"node":"fra1","time":"2000-01-01T00:00:01.234Z","kind":"route","subject":"pop/fra1","text":"answers no more","causes":[1]}]`
		if err != nil || string(text) != want {
			t.Errorf("got %s, %v", text, err)
		}
	})
}

func TestWhatIsTooLongIsCut(t *testing.T) {
	l := New("fra1", 0)
	var causes []uint64
	for range 50 {
		causes = append(causes, l.Add(Health, "", ""))
	}
	l.Add(Health, strings.Repeat("s", 1000), strings.Repeat("é", 1000)+"\xff", causes...)
	e := l.Last(strings.Repeat("s", 1000), 1)[0]
	if len(e.Subject) != maxSubject || len(e.Text) != maxText || !utf8.ValidString(e.Text) || len(e.Causes) != maxCauses {
		t.Errorf("subject %d, text %d, causes %d", len(e.Subject), len(e.Text), len(e.Causes))
	}
	l.Add(Health, "x", "bad \xff \x1b[31mred\r\n\u009b2J")
	if e := l.Last("x", 1)[0]; e.Text != "bad \uFFFD  [31mred   2J" {
		t.Errorf("got %q", e.Text)
	}
}

func TestTheTurnsOfAQuietThingOutliveTheNoiseOfAnother(t *testing.T) {
	l := New("fra1", 8)
	l.Add(Health, "quiet", "first")
	l.Add(Health, "quiet", "second")
	for i := range 1000 {
		l.Add(Health, "noisy", fmt.Sprint(i))
	}
	if last := ids64(l.Last("quiet", 10)); !cmp.Equal(last, []uint64{2, 1}) {
		t.Errorf("of the quiet one: %v", last)
	}
	if last := ids64(l.Last("quiet", 1)); !cmp.Equal(last, []uint64{2}) {
		t.Errorf("the last of the quiet one: %v", last)
	}
	if last := l.Last("noisy", 100); len(last) != maxTurns || last[0].Text != "999" {
		t.Errorf("of the noisy one: %v", last)
	}
	if last := l.Last("unknown", 10); last != nil {
		t.Errorf("of the unknown one: %v", last)
	}
	for i := range 1000 { // and those quiet longest are forgotten
		l.Add(Health, fmt.Sprint("other ", i), "")
	}
	if l.Last("quiet", 1) != nil || len(l.Last("other 999", 1)) != 1 {
		t.Error("the quiet one is still there, or the last is not")
	}
	if n := l.Counters()["events_subjects"]; n != 8*indexShare {
		t.Errorf("%d subjects", n)
	}
}

func TestTheEventsOfAThingAreItsOwnAndThoseBelowIt(t *testing.T) {
	l := New("fra1", 8)
	l.Add(Route, "accelerator/game", "disabled")
	l.Add(Route, "accelerator/game/443/eu", "out")
	l.Add(Route, "accelerator/games", "another")
	for range 20 {
		l.Add(Route, "record/x", "noise")
	}
	l.Add(Route, "accelerator/game", "enabled")
	texts := func(events []Event) (all []string) {
		for i, e := range events {
			all = append(all, e.Text)
			if i > 0 && e.ID <= events[i-1].ID {
				t.Errorf("#%d comes after #%d", e.ID, events[i-1].ID)
			}
		}
		return all
	}
	for _, c := range []struct {
		subject string
		after   uint64
		want    []string
	}{
		{"accelerator/game", 0, []string{"disabled", "out", "enabled"}},
		{"accelerator/game", 1, []string{"out", "enabled"}},
		{"accelerator/game/443", 0, []string{"out"}},
		{"accelerator/gam", 0, nil},
		{"accelerator/game", 24, nil},
		{"accelerator/game", 1000, []string{"disabled", "out", "enabled"}},
	} {
		if got := texts(l.Of(c.subject, c.after)); !slices.Equal(got, c.want) {
			t.Errorf("%s after %d: got %q", c.subject, c.after, got)
		}
	}
	if l.Newest() != 24 {
		t.Errorf("the newest is %d", l.Newest())
	}
}

func TestNextWaitsForWhatSinceWillTell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New("fra1", 4)
		var told []uint64
		ctx, cancel := context.WithCancel(t.Context())
		var reader sync.WaitGroup
		reader.Go(func() {
			at := uint64(7) // of another life
			for {
				if err := l.Next(ctx, at); err != nil {
					if !errors.Is(err, context.Canceled) {
						t.Error(err)
					}
					return
				}
				events, _ := l.Since(at, 0)
				if len(events) == 0 {
					t.Error("woken for nothing")
				}
				told = append(told, ids64(events)...)
				at = events[len(events)-1].ID
			}
		})
		for range 3 {
			synctest.Wait()
			l.Add(Health, "a", "")
			l.Add(Health, "a", "")
		}
		synctest.Wait()
		if err := l.Next(ctx, 0); err != nil {
			t.Error(err)
		}
		cancel()
		reader.Wait()
		if !cmp.Equal(told, []uint64{1, 2, 3, 4, 5, 6}) {
			t.Errorf("told %v", told)
		}
	})
}

func TestEffectsAreRecordedWithTheirCauses(t *testing.T) {
	l := New("fra1", 0)
	order := l.Add(Order, "region/eu", "drain")
	ids := l.Record([]Effect{
		{Kind: Drain, Subject: "node/a", Text: "drained", Because: []uint64{order}},
		{Kind: Route, Subject: "pop/a", Text: "answers no more", Causes: []int{0}},
		{Kind: Route, Subject: "record/x", Text: "out", Causes: []int{0, 1, 2, -1, 7}}, // neither itself, nor what is not there
	})
	events, _ := l.Since(1, 0)
	if !cmp.Equal(ids, []uint64{2, 3, 4}) || !cmp.Equal(ids64(events), ids) {
		t.Fatalf("got %v, %v", ids, events)
	}
	for i, want := range [][]uint64{{1}, {2}, {2, 3}} {
		if !cmp.Equal(events[i].Causes, want) {
			t.Errorf("%d: caused by %v", i, events[i].Causes)
		}
	}
}

func TestALogIsWhatAListOfAllWouldTell(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(1, 6).Draw(t, "size")
		l := New("n", size)
		var all []Event
		kept := map[string][]Event{}
		for range rapid.IntRange(0, 60).Draw(t, "events") {
			subject := rapid.SampledFrom([]string{"", "a", "b", "c", "d", "e", "f", "g", "h", "i"}).Draw(t, "subject")
			l.Add(Health, subject, "")
			e := Event{ID: uint64(len(all) + 1), Subject: subject}
			all = append(all, e)
			kept[subject] = append(kept[subject], e)
			if l.indexed > max(indexShare*size, maxTurns) {
				t.Fatalf("%d are indexed", l.indexed)
			}
			sum := 0
			for s, at := range l.turns {
				h := at.Value.(*history)
				sum += len(h.events)
				of := kept[s]
				if got := l.Last(s, 1); len(got) != 1 || got[0].ID != of[len(of)-1].ID || len(h.events) > min(len(of), maxTurns) {
					t.Fatalf("%s: %v of %v", s, got, of)
				}
			}
			if sum != l.indexed || l.spoke.Len() != len(l.turns) || subject != "" && l.turns[subject] == nil {
				t.Fatalf("indexed %d, counted %d", sum, l.indexed)
			}
		}
		since := rapid.IntRange(0, len(all)).Draw(t, "since")
		events, lost := l.Since(uint64(since), 0)
		if len(events)+int(lost) != len(all)-since || len(events) > size || lost > 0 && len(events) != size {
			t.Fatalf("%d events and %d lost of %d", len(events), lost, len(all)-since)
		}
		for i, e := range events {
			if e.ID != uint64(since)+lost+uint64(i)+1 || e.Subject != all[e.ID-1].Subject {
				t.Fatalf("event %d is %v", i, e)
			}
		}
	})
}

func TestManyMayAddAndReadAtOnce(t *testing.T) {
	l := New("fra1", 64)
	ctx, cancel := context.WithCancel(t.Context())
	var writers, readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			at := uint64(0)
			for l.Next(ctx, at) == nil {
				events, lost := l.Since(at, 10)
				if events[0].ID != at+lost+1 {
					t.Errorf("after %d came %d, with %d lost", at, events[0].ID, lost)
				}
				at = events[len(events)-1].ID
				l.Last("a", 3)
				if at == 2000 {
					return
				}
			}
		})
	}
	for range 4 {
		writers.Go(func() {
			for range 250 {
				l.Add(Health, "a", "")
				l.Record([]Effect{{Kind: Route, Subject: "b"}})
			}
		})
	}
	writers.Wait()
	readers.Wait()
	cancel()
}

func FuzzATextIsOneLineOfUTF8WithinItsBound(f *testing.F) {
	f.Add("connect: refused", 8)
	f.Add("\x1b[2J\xff é", 5)
	f.Fuzz(func(t *testing.T, text string, most int) {
		most = max(0, min(most, 1000))
		if got := cut(text, most); len(got) > most || !utf8.ValidString(got) || strings.ContainsFunc(got, unicode.IsControl) {
			t.Errorf("%q at %d became %q", text, most, got)
		}
	})
}
