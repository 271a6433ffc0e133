package cache

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/edge/cache/disk"
	"github.com/perigee-net/perigee/testbed/tmpfs"
)

// lead has a lead take a response, as who relays one does. The error is its body's, as who has joined it would read it.
func (w *shelved) lead(path string, response *http.Response) (Result, error) {
	w.t.Helper()
	lead := w.Lead(w.want(path).Key, w.policy, nil, nil, time.Now(), nil)
	if lead == nil {
		w.t.Fatalf("%s is kept, or being filled", path)
	}
	defer lead.Close()
	result, err := lead.Take(response)
	for err == nil {
		_, err = lead.ask.Next()
	}
	if err == io.EOF {
		err = nil
	}
	return result, err
}

// come is a response that has come as a whole.
func come(body string) *http.Response {
	return response(200, int64(len(body)), strings.NewReader(body), "Cache-Control: max-age=86400")
}

// on is how many of so many paths are kept, each of which is to have its own body, or be found lost and then be a miss.
func (w *shelved) on(paths int, body func(i int) string) (kept int) {
	w.t.Helper()
	for i := range paths {
		want := w.want(fmt.Sprint("/", i))
		o := w.find(want).Object
		if o == nil {
			continue
		}
		got, err := read(o)
		if err == ErrLost {
			if _, err = read(o); err == ErrLost && w.find(want).Object == nil { // who was the first to read it found the damage
				continue
			}
		}
		if err != nil || got != body(i) {
			w.t.Errorf("of path %d there are %d bytes, %v, and it had %d", i, len(got), err, len(body(i)))
		}
		kept++
	}
	return kept
}

// ledBody is the body of a path: small, of medium size, and what is not brought back to memory.
func ledBody(i int) string { return sized([]int{900, 5000, 40 << 10, 130 << 10}[i%4]+i, byte(i)) }

func TestWhatALeadTookIsOnDisk(t *testing.T) {
	inShelvedWorld(t, func(t *testing.T, w *shelved) {
		const paths = 24
		for i := range paths {
			if r, err := w.lead(fmt.Sprint("/", i), come(ledBody(i))); err != nil || r.How != Filled || !r.Stored {
				t.Fatalf("path %d: %+v, %v", i, r, err)
			}
		}
		w.settle()
		w.empty()
		if n := w.on(paths, ledBody); n != paths {
			t.Errorf("of %d there are %d", paths, n)
		}
		w.crash()
		if n := w.on(paths, ledBody); n != paths {
			t.Errorf("after a kill there are %d of %d", n, paths)
		}
		if w.Lead(w.want("/3").Key, w.policy, nil, nil, time.Now(), nil) != nil {
			t.Error("what is on disk is led once more")
		}
	})
}

// Wherever in the midst of its writing a process is killed, what a lead took is there as a whole or not at all.
func TestAKillWhileALeadIsWritten(t *testing.T) {
	const paths, cuts = 24, 24
	inShelvedWorld(t, func(t *testing.T, w *shelved) {
		begun := w.Lead(w.want("/begun").Key, w.policy, nil, nil, time.Now(), nil)
		for i := range paths {
			if _, err := w.lead(fmt.Sprint("/", i), come(ledBody(i))); err != nil {
				t.Fatal(err)
			}
		}
		early := w.dir + ".early" // whatever is written by now
		copyFolder(t, w.dir, early)
		w.settle()
		late := w.dir + ".late"
		copyFolder(t, w.dir, late)
		begun.Drop()
		segments, err := filepath.Glob(filepath.Join(late, "*.segment"))
		if err != nil || len(segments) == 0 {
			t.Fatal(segments, err)
		}
		last := slices.Max(segments)
		whole, err := os.ReadFile(last)
		if err != nil {
			t.Fatal(err)
		}
		used := len(strings.TrimRight(string(whole), "\x00"))
		r := rand.New(rand.NewPCG(3, 4))
		seen := map[int]bool{}
		was := w.dir
		w.stop()
		for cut := range cuts {
			from := late
			if cut == 0 {
				from = early
			}
			to := fmt.Sprintf("%s.%d", was, cut)
			copyFolder(t, from, to)
			if cut > 0 {
				torn := slices.Clone(whole)
				at := r.IntN(used)
				if clear(torn[at:]); cut%2 == 0 {
					torn = torn[:at]
				}
				if err := os.WriteFile(filepath.Join(to, filepath.Base(last)), torn, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			w.start(to)
			seen[w.on(paths, ledBody)] = true
			if w.find(w.want("/begun")).Object != nil {
				t.Error("what was only begun is kept")
			}
			if w.stop(); t.Failed() {
				t.Logf("cut %d", cut)
				break
			}
			os.RemoveAll(to)
		}
		w.start(was)
		if len(seen) < 5 {
			t.Errorf("all cuts left one of %v", seen)
		}
	})
}

func TestALeadKeepsNothingOfABodyThatIsNotWhole(t *testing.T) {
	reset := errors.New("reset")
	inShelvedWorld(t, func(t *testing.T, w *shelved) {
		n := 0
		for _, size := range []int{1000, 40 << 10, 200 << 10} {
			body := sized(size, 7)
			for _, c := range []struct {
				what string
				said int
				err  error
			}{{"cut short", size + 1, io.EOF}, {"cut in half", 2 * size, io.EOF}, {"longer than it says", size - 1, io.EOF}, {"reset", size + 100, reset}, {"reset, of no length", -1, reset}} {
				n++
				path := fmt.Sprint("/", n)
				r := response(200, int64(c.said), nil, "Cache-Control: max-age=86400")
				r.Body = sent{io.NopCloser(io.MultiReader(strings.NewReader(body), iotest.ErrReader(c.err))), true}
				if _, err := w.lead(path, r); err == nil || c.err == reset && err != reset {
					t.Errorf("%s, %d bytes: who reads it hears %v", c.what, size, err)
				}
				if w.find(w.want(path)).Object != nil {
					t.Errorf("%s, %d bytes: it is kept", c.what, size)
				}
			}
		}
		if got := w.Counters()["cache_truncated_total"]; got != uint64(n) {
			t.Errorf("of %d bodies %d are counted", n, got)
		}
		w.settle()
		if got := w.Counters()["disk_objects"]; got != 0 {
			t.Errorf("%d are on disk", got)
		}
		w.crash()
		for i := range n {
			if w.find(w.want(fmt.Sprint("/", i+1))).Object != nil {
				t.Errorf("%d is kept after a kill", i+1)
			}
		}
		if _, err := w.lead("/1", come("whole")); err != nil { // and it is asked for again
			t.Error(err)
		}
	})
}

// A disk that is full costs what finds no room on it, and no answer.
func TestALeadBesideAFullDisk(t *testing.T) {
	dir := t.TempDir()
	tmpfs.Mount(t, dir, 12<<20)
	synctest.Test(t, func(t *testing.T) {
		const paths = 300 // of 44 KiB in the mean: as much as there is room for
		w := &shelved{world: &world{origin: &origin{}, policy: policy(), t: t}, bytes: shelvedMemory}
		w.start(filepath.Join(dir, "cache"))
		defer func() { w.stop() }()
		for i := range paths {
			if r, err := w.lead(fmt.Sprint("/", i), come(ledBody(i))); err != nil || r.How != Filled {
				t.Fatalf("path %d: %+v, %v", i, r, err)
			}
			if i%20 == 0 {
				time.Sleep(2 * time.Second) // what has failed pauses
				if err := w.store.Flush(); err != nil && !errors.Is(err, disk.ErrFailing) {
					t.Fatal(err)
				}
			}
		}
		if w.Counters()["disk_failures_total"] == 0 {
			t.Error("the disk was not full")
		}
		w.empty()
		n := w.on(paths, ledBody)
		time.Sleep(2 * time.Second)
		w.restart()
		if again := w.on(paths, ledBody); n < 50 || again < 50 {
			t.Errorf("of %d paths %d are on disk, and after a restart %d", paths, n, again)
		}
	})
}
