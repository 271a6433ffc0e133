package store

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
	"pgregory.net/rapid"
)

func newDisk(t testing.TB, path string) *disk {
	t.Helper()
	d, err := openDisk(path, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.close() })
	return d
}

func entry(index uint64, data string) *raft.Log {
	return &raft.Log{Index: index, Term: 1 + index/10, Type: raft.LogCommand, Data: []byte(data), AppendedAt: then}
}

func fill(t testing.TB, d *disk, first, last uint64) {
	t.Helper()
	var entries []*raft.Log
	for i := first; i <= last; i++ {
		entries = append(entries, entry(i, strings.Repeat(fmt.Sprint("entry ", i), int(i%50)+1)))
	}
	if err := d.StoreLogs(entries); err != nil {
		t.Fatal(err)
	}
}

func TestTheLogIsReadAsItWasStored(t *testing.T) {
	path := filepath.Join(t.TempDir(), raftFile)
	d := newDisk(t, path)
	entries := []*raft.Log{
		{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: []byte("who"), AppendedAt: then},
		{Index: 2, Term: 2, Type: raft.LogNoop, Data: []byte{}},
		{Index: 3, Term: 1 << 40, Type: raft.LogCommand, Data: bytes.Repeat([]byte{0xff}, 10_000), Extensions: []byte("more"), AppendedAt: then},
	}
	if err := d.StoreLogs(entries); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for _, want := range entries {
			var got raft.Log
			if err := d.GetLog(want.Index, &got); err != nil {
				t.Fatal(err)
			}
			if diff := gocmp.Diff(*want, got); diff != "" {
				t.Error(diff)
			}
		}
		for _, index := range []uint64{0, 4} {
			if err := d.GetLog(index, new(raft.Log)); !errors.Is(err, raft.ErrLogNotFound) {
				t.Errorf("entry %d: %v", index, err)
			}
		}
		d.close()
		d = newDisk(t, path) // and again after a restart
	}
}

// TestTheLogFollowsAModel compares with the log that Raft itself keeps in memory for its tests.
func TestTheLogFollowsAModel(t *testing.T) {
	dir := t.TempDir()
	runs := 0
	rapid.Check(t, func(t *rapid.T) {
		runs++
		path := filepath.Join(dir, strconv.Itoa(runs))
		d, err := openDisk(path, true)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { d.close() }()
		model := raft.NewInmemStore()
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			first, _ := model.FirstIndex()
			last, _ := model.LastIndex()
			switch rapid.SampledFrom([]string{"append", "append", "compact", "truncate", "reopen"}).Draw(t, "step") {
			case "append":
				next := last + 1
				if last == 0 {
					next = rapid.Uint64Range(1, 1000).Draw(t, "start")
				}
				var entries []*raft.Log
				for i := range rapid.Uint64Range(1, 20).Draw(t, "count") {
					entries = append(entries, entry(next+i, rapid.StringN(0, 300, -1).Draw(t, "data")))
				}
				if err := errors.Join(d.StoreLogs(entries), model.StoreLogs(entries)); err != nil {
					t.Fatal(err)
				}
			case "compact":
				if last > 0 {
					to := rapid.Uint64Range(first, last).Draw(t, "to")
					if err := errors.Join(d.DeleteRange(first, to), model.DeleteRange(first, to)); err != nil {
						t.Fatal(err)
					}
				}
			case "truncate": // Raft does so only to put others in their place
				if last > 0 {
					from := rapid.Uint64Range(first, last).Draw(t, "from")
					other := entry(from, "other")
					if err := errors.Join(d.DeleteRange(from, last), model.DeleteRange(from, last), d.StoreLog(other), model.StoreLog(other)); err != nil {
						t.Fatal(err)
					}
				}
			case "reopen":
				if err := d.close(); err != nil {
					t.Fatal(err)
				}
				if d, err = openDisk(path, true); err != nil {
					t.Fatal(err)
				}
			}
			first, _ = model.FirstIndex()
			last, _ = model.LastIndex()
			// The model keeps the first index of a log that it has emptied; ours is 0.
			if first > last {
				first, last = 0, 0
				model = raft.NewInmemStore()
			}
			if f, err := d.FirstIndex(); f != first || err != nil {
				t.Fatalf("first is %d, %v; want %d", f, err, first)
			}
			if l, err := d.LastIndex(); l != last || err != nil {
				t.Fatalf("last is %d, %v; want %d", l, err, last)
			}
			for i := first; i <= last && last > 0; i++ {
				var got, want raft.Log
				if err := errors.Join(d.GetLog(i, &got), model.GetLog(i, &want)); err != nil {
					t.Fatal(err)
				}
				if diff := gocmp.Diff(want, got); diff != "" {
					t.Fatal(diff)
				}
			}
		}
	})
}

func TestAGapInTheLogIsRefused(t *testing.T) {
	d := newDisk(t, filepath.Join(t.TempDir(), raftFile))
	fill(t, d, 5, 7)
	for _, index := range []uint64{1, 6, 7, 9} {
		if err := d.StoreLog(entry(index, "")); err == nil {
			t.Errorf("entry %d is stored behind 7", index)
		}
	}
	if err := d.StoreLogs([]*raft.Log{entry(8, ""), entry(10, "")}); err == nil {
		t.Error("a gap within a batch is stored")
	}
	if last, _ := d.LastIndex(); last != 7 {
		t.Errorf("of the refused batch %d stayed", last)
	}
}

func TestOneFolderIsOpenedByOneProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), raftFile)
		d := newDisk(t, path)
		begin := time.Now()
		if _, err := openDisk(path, false); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), path) {
			t.Errorf("got %v", err)
		}
		if waited := time.Since(begin); waited != 0 {
			t.Errorf("it waited %v", waited)
		}
		d.close()
		newDisk(t, path)
	})
}

// usedDisk is the bytes of a file that has seen some use: appended to, cut at both ends, with pages that are free.
func usedDisk(t *testing.T) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), raftFile)
	d := newDisk(t, path)
	for first := uint64(1); first <= 200; first += 40 {
		fill(t, d, first, first+39)
	}
	if err := errors.Join(
		d.StoreLog(entry(201, strings.Repeat("long", 5000))), d.DeleteRange(1, 60), d.DeleteRange(195, 201),
	); err != nil {
		t.Fatal(err)
	}
	fill(t, d, 195, 220)
	if err := d.close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// content is all that a file holds, as text.
func content(t *testing.T, d *disk) string {
	t.Helper()
	var b strings.Builder
	first, err1 := d.FirstIndex()
	last, err2 := d.LastIndex()
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(&b, first, last)
	for i := first; i <= last && last > 0; i++ {
		var e raft.Log
		if err := d.GetLog(i, &e); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&b, e.Index, e.Term, string(e.Data))
	}
	return b.String()
}

// TestADamagedFileIsRefusedOrWhole damages a file at many places: each time it is refused by its name, or
// opens with everything that was in it, where the damage is to what nobody reads. It never opens with less, and it never crashes.
func TestADamagedFileIsRefusedOrWhole(t *testing.T) {
	whole := usedDisk(t)
	path := filepath.Join(t.TempDir(), raftFile)
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	d := newDisk(t, path)
	want := content(t, d)
	d.close()

	pageSize := os.Getpagesize()
	refused, opened := 0, 0
	try := func(what string, data []byte, mustRefuse bool) {
		t.Helper()
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		d, err := openDisk(path, true)
		if err != nil {
			refused++
			if !strings.Contains(err.Error(), path) || errors.Is(err, ErrInUse) {
				t.Fatalf("%s: got %v, want a refusal that names the file", what, err)
			}
			return
		}
		opened++
		got := content(t, d)
		d.close()
		if mustRefuse || got != want {
			t.Fatalf("%s: it opens", what)
		}
	}

	try("empty", nil, true)
	try("zeros", make([]byte, len(whole)), true)
	try("text", bytes.Repeat([]byte("perigee\n"), len(whole)/8), true)
	for at := 1; at < len(whole); at += len(whole)/40 + 1 {
		try(fmt.Sprintf("cut at %d of %d", at, len(whole)), whole[:at], at < 2*pageSize)
	}
	chance := rand.New(rand.NewPCG(1, 2))
	pages := len(whole) / pageSize
	for range 160 {
		at := chance.IntN(pages * pageSize)
		if chance.IntN(2) == 0 { // the headers of the pages are where it hurts most
			at = at/pageSize*pageSize + chance.IntN(96)
		}
		data := bytes.Clone(whole)
		data[at] ^= byte(1 << chance.IntN(8))
		meta := at/pageSize < 2 && at%pageSize >= pageHeader && at%pageSize < pageHeader+64
		try(fmt.Sprintf("a bit of byte %d", at), data, meta)
	}
	for range 40 {
		from, to := chance.IntN(pages)*pageSize, chance.IntN(pages)*pageSize
		data := bytes.Clone(whole)
		copy(data[to:to+pageSize], whole[from:from+pageSize])
		try(fmt.Sprintf("page %d in place of %d", from/pageSize, to/pageSize), data, false)
		clear(data[to : to+pageSize])
		try(fmt.Sprintf("page %d cleared", to/pageSize), data, to < 2*pageSize)
	}
	if refused < 80 || opened < 10 {
		t.Errorf("%d were refused and %d opened: the damage was not well placed", refused, opened)
	}
}

// FuzzCheckDisk: whatever is in a file, the check ends, and what passes it bbolt opens.
func FuzzCheckDisk(f *testing.F) {
	dir := f.TempDir()
	path := filepath.Join(dir, raftFile)
	d, err := openDisk(path, true)
	if err != nil {
		f.Fatal(err)
	}
	fill(f, d, 1, 90)
	if err := d.close(); err != nil {
		f.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint32(0), []byte{})
	f.Add(uint32(16), []byte{0xed, 0xda, 0x0c, 0xed})
	for page := 2; page < 16; page++ {
		f.Add(uint32(page*os.Getpagesize()+8), []byte{1, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	}
	f.Fuzz(func(t *testing.T, at uint32, patch []byte) {
		data := bytes.Clone(whole)
		copy(data[int(at)%len(data):], patch)
		damaged := filepath.Join(t.TempDir(), raftFile)
		if err := os.WriteFile(damaged, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if d, err := openDisk(damaged, true); err == nil {
			content := d.StoreLog(entry(91, "goes on"))
			if err := errors.Join(content, d.close()); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestAKilledProcessKeepsWhatItPromised kills a process in the midst of writing; everything that it said was stored is there.
func TestAKilledProcessKeepsWhatItPromised(t *testing.T) {
	if path := os.Getenv("PERIGEE_TEST_WRITE"); path != "" {
		writeForever(path)
	}
	for round := range 3 {
		path := filepath.Join(t.TempDir(), raftFile)
		child := exec.Command(os.Args[0], "-test.run=^TestAKilledProcessKeepsWhatItPromised$")
		child.Env = append(os.Environ(), "PERIGEE_TEST_WRITE="+path)
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		var promised uint64
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if promised, err = strconv.ParseUint(lines.Text(), 10, 64); err != nil {
				t.Fatal(err)
			}
			if promised > uint64(20+round*37) {
				child.Process.Kill()
			}
		}
		child.Wait()
		d := newDisk(t, path)
		last, err := d.LastIndex()
		if err != nil || last < promised || promised == 0 {
			t.Fatalf("it promised %d, %d are there, %v", promised, last, err)
		}
		v, err := openVotes(path+".vote", true)
		if err != nil {
			t.Fatal(err)
		}
		defer v.close()
		if term, _ := v.GetUint64(keyTerm); term < promised {
			t.Fatalf("it promised term %d, %d is there", promised, term)
		}
	}
}

func writeForever(path string) {
	d, err := openDisk(path, false)
	if err == nil {
		err = makeVotes(path + ".vote")
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	v, err := openVotes(path+".vote", false)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for i := uint64(1); ; i++ {
		err := errors.Join(d.StoreLog(entry(i, strings.Repeat("x", int(i*331%5000)))), v.SetUint64(keyTerm, i))
		if i%16 == 0 {
			first, unread := d.FirstIndex()
			err = errors.Join(err, unread, d.DeleteRange(first, i-8))
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(i)
	}
}

func TestAFileThatIsNotOursIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), raftFile)
	d := newDisk(t, path)
	fill(t, d, 1, 3)
	tx, err := d.db.Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.CreateBucket([]byte("other")); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	d.close()
	if _, err := openDisk(path, true); err == nil || !strings.Contains(err.Error(), "other") {
		t.Errorf("got %v", err)
	}
}

func TestAnUnfinishedFileIsMadeAnew(t *testing.T) {
	path := filepath.Join(t.TempDir(), raftFile)
	if err := os.WriteFile(path+".new", []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := newDisk(t, path)
	if last, err := d.LastIndex(); last != 0 || err != nil {
		t.Errorf("got %d, %v", last, err)
	}
}

func BenchmarkStoreLog(b *testing.B) {
	d := newDisk(b, filepath.Join(b.TempDir(), raftFile))
	data := bytes.Repeat([]byte("perigee "), 64)
	for i := uint64(1); b.Loop(); i++ {
		if err := d.StoreLog(&raft.Log{Index: i, Term: 1, Data: data}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncodeEntry(b *testing.B) {
	key := binary.BigEndian.AppendUint64(nil, 1)
	e := entry(1, strings.Repeat("perigee ", 64))
	b.ReportAllocs()
	for b.Loop() {
		encodeEntry(key, e)
	}
}
