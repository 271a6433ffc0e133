package store

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// image is a file in memory (io.ReaderAt).
type image []byte

func (m image) ReadAt(p []byte, at int64) (int, error) { return bytes.NewReader(m).ReadAt(p, at) }

// unread is a file of which some must not be read.
type unread struct {
	image
	see func(from, to int)
}

func (u unread) ReadAt(p []byte, at int64) (int, error) {
	u.see(int(at), int(at)+len(p))
	return u.image.ReadAt(p, at)
}

// pageWrite is a write of one page, or of several that belong together.
type pageWrite struct {
	at   int
	data []byte
}

// writesOf derives what bbolt wrote in one transaction from the file before and after: first the file is made longer, then
// the pages are written in order and flushed, then the header. A page that was written as it was before is not seen,
// and makes no difference.
func writesOf(before, after []byte, pageSize int) (grown []byte, pages []pageWrite, header pageWrite) {
	grown = append(bytes.Clone(before), make([]byte, len(after)-len(before))...)
	for at := 0; at < len(after); at += pageSize {
		if page := after[at : at+pageSize]; !bytes.Equal(page, grown[at:at+pageSize]) {
			if at < 2*pageSize {
				header = pageWrite{at, page}
			} else {
				pages = append(pages, pageWrite{at, page})
			}
		}
	}
	slices.SortFunc(pages, func(a, b pageWrite) int { return cmp.Compare(a.at, b.at) })
	return grown, pages, header
}

// openImage opens a file with this in it, and says what it holds.
func openImage(t *testing.T, path string, data []byte) (string, error) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := openDisk(path, true)
	if err != nil {
		return "", err
	}
	defer d.close()
	return content(t, d), nil
}

// TestTheLogSurvivesACrashAtAnyByte runs a workload and takes the file apart into what bbolt wrote: pages that the state before
// has no use for, and when they are flushed a header, which is cut off at each byte. Each time the file opens with what was
// there before or with all that was being written, and with that once it was acknowledged.
func TestTheLogSurvivesACrashAtAnyByte(t *testing.T) {
	dir := t.TempDir()
	path, crashed := filepath.Join(dir, raftFile), filepath.Join(dir, "crashed")
	d := newDisk(t, path)
	pageSize := d.db.Info().PageSize
	read := func() []byte {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	workload := []func() error{
		func() error { return d.StoreLog(entry(1, "first")) },
		func() error { fill(t, d, 2, 30); return nil },
		func() error { return d.StoreLog(entry(31, strings.Repeat("long", 4000))) },
		func() error { return errors.Join(d.DeleteRange(20, 31), d.StoreLog(entry(20, "other"))) },
		func() error { return d.DeleteRange(1, 15) },
		func() error { fill(t, d, 21, 60); return nil },
		func() error { return d.DeleteRange(16, 60) },
		func() error { return d.StoreLog(entry(99, "behind a snapshot")) },
	}
	for i := uint64(100); i < 104; i++ {
		workload = append(workload, func() error { return d.StoreLog(entry(i, "more")) })
	}
	states, opened, mended := 0, 0, 0
	for step, do := range workload {
		old, before := content(t, d), read()
		if err := do(); err != nil {
			t.Fatal(err)
		}
		now, after := content(t, d), read()
		grown, pages, header := writesOf(before, after, pageSize)
		if header.data == nil || len(pages) == 0 {
			t.Fatalf("step %d wrote %d pages", step, len(pages))
		}
		check := func(what string, data image, open bool, allowed ...string) {
			t.Helper()
			states++
			mend, err := checkBolt(data, int64(len(data)))
			if err != nil {
				t.Fatalf("step %d, %s: it is refused: %v", step, what, err)
			}
			if mend != nil {
				mended++
			}
			if !open {
				return
			}
			opened++
			got, err := openImage(t, crashed, data)
			if err != nil || !slices.Contains(allowed, got) {
				t.Fatalf("step %d, %s: it opens with %.60q, %v", step, what, got, err)
			}
		}
		check("not begun", before, true, old)
		check("made longer", grown, true, old)
		// Whatever is there of these pages, at whatever byte they were cut off and in whatever order they came to the disk,
		// makes no difference: none of them is read for the state before.
		reads := unread{grown, func(from, to int) {
			for _, w := range pages {
				if from < w.at+pageSize && to > w.at {
					t.Fatalf("step %d: page %d is written to, and belongs to the state before", step, w.at/pageSize)
				}
			}
		}}
		if _, err := checkBolt(reads, int64(len(grown))); err != nil {
			t.Fatal(err)
		}
		state := bytes.Clone(grown)
		for i, w := range pages {
			for n := 0; n <= len(w.data); n += 64 {
				copy(state[w.at:], w.data[:n])
				check(fmt.Sprintf("page %d of %d cut off at %d", i, len(pages), n), state, n == len(w.data)/2, old)
			}
			// Nothing was flushed: any of the pages may be there without the others.
			alone := bytes.Clone(grown)
			copy(alone[w.at:], w.data)
			check(fmt.Sprintf("only page %d of %d", i, len(pages)), alone, true, old)
		}
		for i, w := range pages {
			missing := bytes.Clone(state)
			copy(missing[w.at:], grown[w.at:w.at+pageSize])
			check(fmt.Sprintf("without page %d of %d", i, len(pages)), missing, true, old)
		}
		// All pages are flushed: the header follows.
		for n := range len(header.data) + 1 {
			copy(state[header.at:], header.data[:n])
			near := n <= pageHeader+metaSize+1 || n == len(header.data)
			allowed := []string{old, now}
			if n == len(header.data) {
				allowed = []string{now}
			}
			check(fmt.Sprintf("header cut off at %d", n), state, near, allowed...)
		}
		if !bytes.Equal(state, after) {
			t.Fatalf("step %d: the writes do not make the file", step)
		}
	}
	if mended == 0 {
		t.Error("no header was mended: the test does not reach it")
	}
	t.Logf("%d states, %d opened, %d mended", states, opened, mended)
}

// TestADamagedHeaderIsNoCrash turns each bit of the last header: it is refused, or all that was acknowledged is there.
func TestADamagedHeaderIsNoCrash(t *testing.T) {
	whole := usedDisk(t)
	path := filepath.Join(t.TempDir(), raftFile)
	want, err := openImage(t, path, whole)
	if err != nil {
		t.Fatal(err)
	}
	m, err := readMetas(image(whole))
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for page := range 2 {
		for at := range pageHeader + metaSize {
			for bit := range 8 {
				data := bytes.Clone(whole)
				data[page*int(m.pageSize)+at] ^= 1 << bit
				_, err := checkBolt(image(data), int64(len(data)))
				got := want
				if err == nil {
					got, err = openImage(t, path, data)
				}
				if err == nil && got != want {
					t.Fatalf("page %d, byte %d, bit %d: it opens with %.60q", page, at, bit, got)
				}
				if err != nil {
					refused++
				}
			}
		}
	}
	t.Logf("%d refused", refused)
	// And where one is put in place of the other, or both are of one transaction.
	for page := range 2 {
		data := bytes.Clone(whole)
		from, to := page*int(m.pageSize), (1-page)*int(m.pageSize)
		copy(data[to:to+int(m.pageSize)], whole[from:from+int(m.pageSize)])
		if got, err := openImage(t, path, data); err == nil {
			t.Errorf("page %d in place of the other: it opens with %.60q", page, got)
		}
	}
}
