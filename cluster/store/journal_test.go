package store

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/perigee-net/perigee/cluster/file"
)

// lives is a history of n states, each a change further than the one before, of both spaces.
func lives(t testing.TB, n int) []*State {
	states := make([]*State, n)
	s := &State{}
	for i := range states {
		c := Change{ID: fmt.Sprint(i), Author: "ada", Time: then, Put: []Object{put("k", fmt.Sprint(i%4), fmt.Sprint("content ", i))}}
		if i%3 == 2 {
			c.Space = Own
		}
		if i%5 == 4 {
			c.Delete = []Ref{{"k", fmt.Sprint((i + 1) % 4)}}
		}
		s = must(t, s, c)
		states[i] = s
	}
	return states
}

// open opens a journal, and closes it when the test ends.
func open(t testing.TB, dir string, system file.System, least limits) (*Journal, *State) {
	t.Helper()
	j, s, err := openJournal(dir, system, least)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	j.Edits = func() bool { return true }
	return j, s
}

func TestWhatWasSavedLastIsThereAfterARestart(t *testing.T) {
	for name, least := range map[string]limits{
		"one by one":          {journalLeast, journalDeltas},
		"written anew always": {0, 0},
		"now and then":        {1000, 3},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			j, s := open(t, dir, file.OS(), least)
			if s != nil {
				t.Errorf("an empty folder holds %+v", s)
			}
			for i, want := range lives(t, 20) {
				if err := os.WriteFile(j.aside(), []byte("left over"), 0o600); err != nil {
					t.Fatal(err)
				}
				for range 1 + i%2 { // the second time nothing is new
					if err := j.Save(want); err != nil {
						t.Fatal(err)
					}
				}
				if i%3 == 0 { // others are saved without being read between
					j.Close()
					j, s = open(t, dir, file.OS(), least)
					if diff := gocmp.Diff(bare(want), bare(s), same); diff != "" {
						t.Fatal(diff)
					}
				}
			}
			if names, _ := os.ReadDir(dir); len(names) > 2 {
				t.Errorf("the folder holds %v", names)
			}
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
			if err := j.Save(s); !errors.Is(err, os.ErrClosed) {
				t.Errorf("after its end: %v", err)
			}
		})
	}
}

func TestTheJournalStaysNearTheSizeOfTheState(t *testing.T) {
	dir := t.TempDir()
	j, _ := open(t, dir, file.OS(), limits{4096, journalDeltas})
	s := &State{}
	for i := range 500 {
		s = must(t, s, Change{Put: []Object{put("k", "a", fmt.Sprint(i))}})
		if err := j.Save(s); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(filepath.Join(dir, journalFile))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := WriteState(&b, s); err != nil {
		t.Fatal(err)
	}
	if most := int64(2*b.Len() + 4096 + 1024); info.Size() > most {
		t.Errorf("%d bytes for a state of %d", info.Size(), b.Len())
	}
	c := j.Counters()
	if c["journal_rewrites_total"] > 50 || c["journal_saves_total"] != 500 || c["journal_bytes"] != uint64(info.Size()) {
		t.Errorf("got %v", c)
	}
	// As many deltas as these are read as one.
	many, _ := open(t, t.TempDir(), quick(), limits{journalLeast, journalDeltas})
	for i := range 3 * maxHistory {
		s = must(t, s, Change{Put: []Object{put("k", fmt.Sprint(i%7), fmt.Sprint(i))}})
		if err := many.Save(s); err != nil {
			t.Fatal(err)
		}
	}
	_, read, err := OpenJournal(filepath.Dir(many.path))
	if err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff(bare(s), bare(read), same); diff != "" {
		t.Error(diff)
	}
}

func TestAnotherClustersStateTakesTheJournalOver(t *testing.T) {
	ours := must(t, must(t, &State{}, Change{Put: []Object{put("k", "a", "ours")}}), Change{Put: []Object{put("k", "b", "ours")}})
	theirs := must(t, must(t, &State{}, Change{Put: []Object{put("k", "a", "theirs")}}), Change{Put: []Object{put("k", "b", "ours")}})
	further := must(t, theirs, Change{Put: []Object{put("k", "b", "theirs")}})
	older := must(t, &State{}, Change{Put: []Object{put("k", "a", "older")}})
	for _, next := range []*State{theirs, further, older} {
		dir := t.TempDir()
		j, _ := open(t, dir, file.OS(), limits{journalLeast, journalDeltas})
		for _, s := range []*State{ours, next} {
			if err := j.Save(s); err != nil {
				t.Fatal(err)
			}
		}
		_, s := open(t, dir, file.OS(), limits{})
		if diff := gocmp.Diff(bare(next), bare(s), same); diff != "" {
			t.Error(diff)
		}
	}
}

func TestADamagedJournalIsRefusedByName(t *testing.T) {
	dir := t.TempDir()
	states := lives(t, 4)
	j, _ := open(t, dir, file.OS(), limits{journalLeast, journalDeltas})
	var starts []int64
	for _, s := range states {
		starts = append(starts, j.size)
		if err := j.Save(s); err != nil {
			t.Fatal(err)
		}
	}
	whole, err := os.ReadFile(j.path)
	if err != nil {
		t.Fatal(err)
	}
	last := int(starts[3]) // where the last frame begins
	reopen := func(data []byte) (*State, error) {
		if err := os.WriteFile(j.path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		again, s, err := openJournal(dir, quick(), limits{})
		if err == nil {
			again.Close()
		}
		return s, err
	}
	cut := func(what string, data []byte, want Position) {
		t.Helper()
		if s, err := reopen(data); err != nil || s.Position() != want {
			t.Fatalf("%s: got %+v, %v", what, s, err)
		}
	}
	refused := func(what string, data []byte) {
		t.Helper()
		if _, err := reopen(data); err == nil || !strings.Contains(err.Error(), j.path) {
			t.Fatalf("%s: got %v", what, err)
		}
	}
	for i := range whole {
		flipped := append([]byte{}, whole...)
		flipped[i] ^= 1
		if what := fmt.Sprintf("a bit of byte %d", i); i < last {
			refused(what, flipped)
		} else {
			cut(what, flipped, states[2].Position())
		}
		switch what := fmt.Sprintf("cut at %d", i); {
		case i < int(starts[1]): // the snapshot was whole before the file had its name
			refused(what, whole[:i])
		case i < int(starts[2]):
			cut(what, whole[:i], states[0].Position())
		case i < last:
			cut(what, whole[:i], states[1].Position())
		default:
			cut(what, whole[:i], states[2].Position())
		}
	}
	cut("with something behind it", append(whole[:len(whole):len(whole)], strings.Repeat("x", 100)...), states[3].Position())
	without := append(append([]byte{}, whole[:starts[1]]...), whole[starts[2]:]...)
	refused("without its first change", without)
}

// quick is the operating system without waiting for the disk.
func quick() file.System {
	s := file.OS()
	s.Sync = func(*os.File) error { return nil }
	s.SyncDir = func(string) error { return nil }
	return s
}

func TestAFullDiskLosesNothingAndWorksAgainWhenThereIsRoom(t *testing.T) {
	states := lives(t, 12)
	for _, least := range []limits{{journalLeast, journalDeltas}, {0, 2}} {
		for room := 0; room < 4000; room += 37 {
			dir := t.TempDir()
			left, full := room, false
			system := quick()
			system.WriteAt = func(f *os.File, data []byte, at int64) (int, error) {
				n := min(len(data), left)
				left -= n
				if n, err := f.WriteAt(data[:n], at); err != nil || n == len(data) {
					return n, err
				}
				full = true
				return n, syscall.ENOSPC
			}
			j, _ := open(t, dir, system, least)
			var saved *State
			for i, s := range states {
				err := j.Save(s)
				if err != nil && (!full || !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), j.path)) {
					t.Fatalf("with room for %d: %v", room, err)
				}
				if err == nil {
					saved = s
				}
				if err != nil || i == len(states)-1 {
					image := t.TempDir()
					copyFile(t, j.path, filepath.Join(image, journalFile))
					_, read := open(t, image, quick(), limits{})
					if diff := gocmp.Diff(saved != nil, read != nil); diff != "" || saved != nil && saved.Position() != read.Position() {
						t.Fatalf("with room for %d: %v was saved, and read %v", room, saved, read)
					}
				}
				if err != nil {
					left = 1 << 20
				}
			}
			if err := j.Save(states[len(states)-1]); err != nil {
				t.Fatalf("with room for %d: it does not work again: %v", room, err)
			}
		}
	}
}

func copyFile(t *testing.T, from, to string) {
	data, err := os.ReadFile(from)
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	if err == nil {
		err = os.WriteFile(to, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestADiskThatCannotSyncIsNotBelievedAgain(t *testing.T) {
	broken := errors.New("broken")
	system := quick()
	j, _ := open(t, t.TempDir(), system, limits{journalLeast, journalDeltas})
	states := lives(t, 4)
	if err := j.Save(states[0]); err != nil {
		t.Fatal(err)
	}
	j.system.Sync = func(*os.File) error { return broken }
	if err := j.Save(states[1]); !errors.Is(err, broken) {
		t.Fatalf("got %v", err)
	}
	if err := j.Save(states[1]); !errors.Is(err, broken) {
		t.Fatalf("the second time: %v", err)
	}
	j.system.Sync = system.Sync
	before := j.Counters()["journal_rewrites_total"]
	for _, s := range states[1:] {
		if err := j.Save(s); err != nil {
			t.Fatal(err)
		}
	}
	if n := j.Counters()["journal_rewrites_total"] - before; n != 1 {
		t.Errorf("written anew %d times", n)
	}
}

func BenchmarkSaveAmong100000(b *testing.B) {
	s := large(b, 100_000)
	j, _ := open(b, b.TempDir(), file.OS(), limits{journalLeast, journalDeltas})
	if err := j.Save(s); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		s = must(b, s, Change{Put: []Object{put("TargetGroup", "group-000042", fmt.Sprint(i))}})
		b.StartTimer()
		if err := j.Save(s); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSaveAnew100000(b *testing.B) {
	s := large(b, 100_000)
	j, _ := open(b, b.TempDir(), file.OS(), limits{journalLeast, journalDeltas})
	b.ReportAllocs()
	for b.Loop() {
		if err := j.rewrite(s); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(j.size), "bytes")
}

func BenchmarkOpenJournal100000(b *testing.B) {
	s := large(b, 100_000)
	dir := b.TempDir()
	j, _ := open(b, dir, quick(), limits{journalLeast, journalDeltas})
	j.Save(s)
	for i := range 10_000 {
		s = must(b, s, Change{Put: []Object{put("TargetGroup", "group-000042", fmt.Sprint(i))}})
		if i%100 == 0 {
			j.Save(s)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		again, read, err := OpenJournal(dir)
		if err != nil || read.Position() != j.last.Position() {
			b.Fatal(err)
		}
		again.Close()
	}
}

// TestOfALargeDocumentTheJournalHasWhatDiffers: for changes made by chance, some of them saved, the file has what was saved, and of a line that changed little more than that line.
func TestOfALargeDocumentTheJournalHasWhatDiffers(t *testing.T) {
	dice := rand.New(rand.NewPCG(1, 2))
	dir := t.TempDir()
	least := limits{1 << 16, journalDeltas}
	j, _ := open(t, dir, quick(), least)
	s, lines := &State{}, zone(2000)
	var saved *State
	for i := range 300 {
		c := Change{Time: then}
		switch dice.IntN(8) {
		case 0:
			c.Delete = []Ref{{"HostedZone", "example.com"}}
		case 1:
			lines = zone(1500 + dice.IntN(1000))
			c.Put = []Object{put("HostedZone", "example.com", strings.Join(lines, ""))}
		case 2:
			c.Space, c.Put = Own, []Object{put("k", "a", fmt.Sprint(i))}
		default:
			lines[dice.IntN(len(lines))] = fmt.Sprintf("  values: [203.0.113.%d]\n", dice.IntN(256))
			c.Put = []Object{put("HostedZone", "example.com", strings.Join(lines, "")), put("HostedZone", fmt.Sprint(dice.IntN(3)), "small")}
		}
		s = must(t, s, c)
		if dice.IntN(3) == 0 {
			continue // it is saved with the next
		}
		if saved = s; j.Save(s) != nil {
			t.Fatal(i)
		}
		if dice.IntN(10) == 0 {
			was := j.room
			j.Close()
			var read *State
			if j, read = open(t, dir, quick(), least); j.room != was {
				t.Fatalf("after change %d there is room for %v, and before it was opened for %v", i, j.room, was)
			}
			if diff := gocmp.Diff(bare(saved), bare(read), same); diff != "" {
				t.Fatalf("after change %d: %s", i, diff)
			}
		}
	}

	one, _ := open(t, t.TempDir(), quick(), limits{journalLeast, journalDeltas})
	s = must(t, &State{}, Change{Time: then, Put: []Object{put("HostedZone", "example.com", strings.Join(lines, ""))}})
	if one.Save(s) != nil {
		t.Fatal("it is not saved")
	}
	before := one.Counters()
	for i := range 10 {
		lines[400*i%len(lines)] = fmt.Sprintf("  values: [203.0.113.%d]\n", i)
		s = must(t, s, Change{Time: then, Put: []Object{put("HostedZone", "example.com", strings.Join(lines, ""))}})
		if one.Save(s) != nil {
			t.Fatal("it is not saved")
		}
	}
	after := one.Counters()
	if grown := after["journal_bytes"] - before["journal_bytes"]; grown > 10*600 || after["journal_rewrites_total"] != 1 {
		t.Errorf("it has grown by %d bytes for ten lines, and was written anew %d times", grown, after["journal_rewrites_total"])
	}
	for i := range 2000 { // what has to be read before it is known has a bound, too
		lines[3] = fmt.Sprintf("  values: [203.0.113.%d]\n", i%250)
		s = must(t, s, Change{Time: then, Put: []Object{put("HostedZone", "example.com", strings.Join(lines, ""))}})
		if one.Save(s) != nil {
			t.Fatal("it is not saved")
		}
	}
	if reads := int64(one.deltas * len(strings.Join(lines, "")) / editShare); reads > max(journalLeast, one.size) || one.Counters()["journal_rewrites_total"] < 3 {
		t.Errorf("there are %d edits in %d bytes", one.deltas, one.size)
	}
}

func TestTheJournalHasNoEditsWhereTheyMayNotBe(t *testing.T) {
	lines := zone(2000)
	text := func(i int) Object {
		lines[3] = fmt.Sprintf("  values: [203.0.113.%d]\n", i)
		return put("HostedZone", "example.com", strings.Join(lines, ""))
	}
	j, _ := open(t, t.TempDir(), quick(), limits{journalLeast, journalDeltas})
	may := false
	j.Edits = func() bool { return may }
	s := must(t, &State{}, Change{Time: then, Put: []Object{text(0)}})
	sizes := []uint64{}
	for i := range 3 {
		if j.Save(s) != nil {
			t.Fatal("it is not saved")
		}
		sizes = append(sizes, j.Counters()["journal_bytes"])
		s, may = must(t, s, Change{Time: then, Put: []Object{text(1 + i)}}), i == 1
	}
	if whole, edit := sizes[1]-sizes[0], sizes[2]-sizes[1]; whole < 2000 || edit > 600 {
		t.Errorf("it has grown by %d bytes, and where edits may be by %d", whole, edit)
	}
}

// BenchmarkSaveOneLine is what the journal takes of a change of one record in a zone of 10,000.
func BenchmarkSaveOneLine(b *testing.B) {
	lines := zone(10_000)
	var states []*State
	s := &State{}
	for i := range 20 {
		lines[4003] = fmt.Sprintf("  values: [203.0.113.%d]\n", i)
		s = must(b, s, Change{Time: then, Put: []Object{put("HostedZone", "example.com", strings.Join(lines, ""))}})
		states = append(states, s)
	}
	j, _ := open(b, b.TempDir(), quick(), limits{journalLeast, journalDeltas})
	for i := 0; b.Loop(); i++ {
		if err := j.Save(states[i%len(states)]); err != nil {
			b.Fatal(err)
		}
	}
}
