package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/edge/cache/disk"
)

// shelved is a world whose cache has a disk, and can be started again.
type shelved struct {
	*world
	store *disk.Store
	dir   string
	bytes int64
}

const (
	shelvedMemory = 8 << 20
	shelvedDisk   = 64 << 20
)

func inShelvedWorld(t *testing.T, test func(t *testing.T, w *shelved)) {
	dir := filepath.Join(t.TempDir(), "cache")
	synctest.Test(t, func(t *testing.T) {
		w := &shelved{world: &world{origin: &origin{}, policy: policy(), t: t}, dir: dir, bytes: shelvedMemory}
		w.start(dir)
		defer func() { w.stop() }()
		test(t, w)
	})
}

func (w *shelved) start(dir string) {
	w.t.Helper()
	store, err := disk.Open(disk.Config{Dir: dir, Bytes: shelvedDisk})
	if err != nil {
		w.t.Fatal(err)
	}
	w.dir, w.store = dir, store
	w.Cache = New(Config{Bytes: w.bytes, Disk: store})
}

func (w *shelved) stop() {
	w.t.Helper()
	w.Cache.Close()
	if n := len(w.shelf.writing) + len(w.shelf.loads); n > 0 || w.shelf.returnBytes.Load() != 0 && len(w.shelf.returns) == 0 {
		w.t.Errorf("left behind: %v %v, %d bytes to be returned", w.shelf.writing, w.shelf.loads, w.shelf.returnBytes.Load())
	}
	w.store.Close()
}

// restart ends the cache in order and starts it again.
func (w *shelved) restart() {
	w.t.Helper()
	w.stop()
	w.start(w.dir)
}

// crash starts it again from what the folder holds now, as after a kill; what is not written yet is lost.
func (w *shelved) crash() {
	w.t.Helper()
	to := w.dir + "+"
	copyFolder(w.t, w.dir, to)
	w.stop()
	w.start(to)
}

func copyFolder(t testing.TB, from, to string) {
	t.Helper()
	if err := os.MkdirAll(to, 0o700); err != nil {
		t.Fatal(err)
	}
	names, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		b, err := os.ReadFile(filepath.Join(from, n.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(to, n.Name()), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// empty makes room in memory by what is asked for once.
func (w *shelved) empty() {
	w.t.Helper()
	w.stored.InvalidateAll()
}

// settle waits until all is written.
func (w *shelved) settle() {
	w.t.Helper()
	synctest.Wait()
	if err := w.store.Flush(); err != nil {
		w.t.Fatal(err)
	}
}

func sized(size int, seed byte) string {
	const period = 257 // a prime, so that no two places of a body's blocks are alike
	b := make([]byte, period)
	for i, x := 0, uint32(seed); i < period; i++ {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return strings.Repeat(string(b), size/period+1)[:size]
}

// read is the body of what is kept, wherever it is.
func read(o *Object) (string, error) {
	body, err := o.Open()
	if err != nil {
		return "", err
	}
	defer body.Close()
	if err := body.Check(); err != nil {
		return "", err
	}
	var all strings.Builder
	for start := int64(0); start < o.Size(); {
		piece, err := body.Piece(start, o.Size()-start, func() []byte { return make([]byte, BodyPiece) })
		if err != nil {
			return "", err
		}
		all.Write(piece)
		start += int64(len(piece))
	}
	return all.String(), nil
}

func TestARestartedCacheAnswersFromItsDisk(t *testing.T) {
	inShelvedWorld(t, func(t *testing.T, w *shelved) {
		small, large := sized(1000, 1), sized(promoted+1, 2)
		w.answer = soon(small, `Etag: "1"`)
		w.mustGet("/small", "filled", small)
		w.answer = soon(large, `Etag: "2"`)
		w.mustGet("/large", "filled", large)
		w.answer = soon("", `Etag: "3"`)
		w.mustGet("/empty", "filled", "")
		for _, coding := range []string{"gzip", "br"} {
			w.answer = soon("in "+coding, "Vary: Accept-Encoding")
			w.mustGet("/vary", "filled", "in "+coding, "Accept-Encoding: "+coding)
		}
		for range 2 {
			w.restart()
			w.answer = nil // it is not asked
			time.Sleep(time.Minute)
			w.mustGet("/small", "hit", small)
			w.mustGet("/large", "hit", large)
			w.mustGet("/empty", "hit", "")
			w.mustGet("/vary", "hit", "in gzip", "Accept-Encoding: gzip")
			w.mustGet("/vary", "hit", "in br", "Accept-Encoding: br")
			if o := w.find(w.want("/large")).Object; !o.OnDisk() || o.Body != nil || o.Age(time.Now()) < time.Minute || o.Header.Get("Etag") != `"2"` {
				t.Errorf("of the large is kept %+v", o)
			}
			if o := w.find(w.want("/small")).Object; o.OnDisk() {
				t.Error("the small is not in memory")
			}
		}
	})
}

func TestWhatWasPurgedStaysPurgedOverRestarts(t *testing.T) {
	for name, item := range map[string]string{"path": "/dir/a", "prefix": "/dir/*", "tag": "#t", "all": "/*"} {
		for how, again := range map[string]func(w *shelved){
			"in order":                 (*shelved).restart,
			"killed at once":           (*shelved).crash,
			"killed before the sweep":  func(w *shelved) { w.settle(); w.crash() },
			"killed after the sweep":   func(w *shelved) { time.Sleep(time.Minute); w.settle(); w.crash() },
			"not restarted, but empty": (*shelved).empty,
		} {
			t.Run(name+", "+how, func(t *testing.T) {
				inShelvedWorld(t, func(t *testing.T, w *shelved) {
					w.policy.TagHeader = "Cache-Tag"
					w.answer = soon("old", "Cache-Tag: t, u")
					w.mustGet("/dir/a", "filled", "old")
					w.answer = soon(sized(promoted+1, 1), "Cache-Tag: t")
					w.mustGet("/dir/ab", "filled", sized(promoted+1, 1))
					w.answer = soon("other")
					w.mustGet("/other", "filled", "other")
					w.settle()
					w.empty() // memory knows nothing of them
					if err := w.Purge(Purge{Distribution: "shop", Items: []string{item}}); err != nil {
						t.Fatal(err)
					}
					for range 2 {
						again(w)
						w.settle()
						if w.find(w.want("/dir/a")).Object != nil {
							t.Fatal("it is there")
						}
						if is := w.find(w.want("/dir/ab")).Object != nil; is != (item == "/dir/a") {
							t.Errorf("the other is there: %v", is)
						}
						if is := w.find(w.want("/other")).Object != nil; is != (item != "/*") {
							t.Errorf("what was not named is there: %v", is)
						}
						time.Sleep(time.Minute)
					}
					if n := w.Counters()["cache_purge_rules"]; n != 0 {
						t.Errorf("%d rules are left", n)
					}
					w.answer = soon("new", "Cache-Tag: t")
					w.mustGet("/dir/a", "filled", "new")
					w.settle()
					again(w)
					if how != "killed at once" {
						w.mustGet("/dir/a", "hit", "new")
					}
				})
			})
		}
	}
}

func TestASoftPurgeOutlivesARestart(t *testing.T) {
	for name, again := range map[string]func(w *shelved){
		"before the sweep": (*shelved).crash,
		"after the sweep":  func(w *shelved) { time.Sleep(10 * time.Second); w.settle(); w.restart() },
	} {
		t.Run(name, func(t *testing.T) {
			inShelvedWorld(t, func(t *testing.T, w *shelved) {
				body := sized(promoted+1, 1)
				w.answer = soon("old", `Etag: "1"`)
				w.mustGet("/a", "filled", "old")
				w.answer = soon(body, `Etag: "2"`, "Cache-Control: max-age=3600, stale-if-error=3600")
				w.mustGet("/b", "filled", body)
				w.settle()
				w.empty()
				if err := w.Purge(Purge{Items: []string{"/*"}, Soft: true}); err != nil {
					t.Fatal(err)
				}
				again(w)
				w.answer = func(_ context.Context, c http.Header) (*http.Response, error) {
					return response(304, 0, http.NoBody, "Etag: "+c.Get("If-None-Match")), nil
				}
				w.mustGet("/a", "validated", "old")
				w.mustGet("/a", "hit", "old")
				w.answer = func(context.Context, http.Header) (*http.Response, error) { return nil, io.ErrUnexpectedEOF }
				w.mustGet("/b", "covered", body)
			})
		})
	}
}

// A purge that is made again, as after a restart where it is not sure whether it was made, is none that begins anew: what was kept before the
// first is stale since then. Nothing has been looked at between the two.
func TestASoftPurgeThatIsMadeAgainIsStaleSinceTheFirst(t *testing.T) {
	for name, again := range map[string]func(w *shelved, between time.Duration){
		"killed": func(w *shelved, between time.Duration) {
			to := w.dir + "+"
			copyFolder(w.t, w.dir, to)
			w.stop()
			time.Sleep(between)
			w.start(to)
		},
		"ended": func(w *shelved, between time.Duration) {
			w.stop()
			time.Sleep(between)
			w.start(w.dir)
		},
		"in one process": func(w *shelved, between time.Duration) {
			w.sweeping = true // no sweep
			time.Sleep(between)
			w.sweeping = false
		},
	} {
		t.Run(name, func(t *testing.T) {
			inShelvedWorld(t, func(t *testing.T, w *shelved) {
				w.answer = soon("old", `Etag: "1"`, "Cache-Control: max-age=3600, stale-if-error=60")
				w.mustGet("/a", "filled", "old")
				w.settle()
				w.empty()
				w.sweeping = name == "in one process"
				soft := Purge{Items: []string{"/*"}, Soft: true}
				if err := w.Purge(soft); err != nil {
					t.Fatal(err)
				}
				again(w, 50*time.Second)
				if err := w.Purge(soft); err != nil {
					t.Fatal(err)
				}
				w.answer = func(context.Context, http.Header) (*http.Response, error) { return nil, io.ErrUnexpectedEOF }
				w.mustGet("/a", "covered", "old")
				time.Sleep(11 * time.Second) // 11 s after the second one, 61 s after the first
				if how, _, err := w.get(t.Context(), w.want("/a")); err == nil {
					t.Errorf("it is used still: %s", how)
				}
			})
		})
	}
}

func TestAFenceHoldsForWhatComesFromDisk(t *testing.T) {
	inShelvedWorld(t, func(t *testing.T, w *shelved) {
		w.answer = soon("old", `Etag: "1"`)
		w.mustGet("/a", "filled", "old")
		w.mustGet("/b", "filled", "old")
		w.settle()
		w.restart()
		w.SetFence(true)
		w.answer = func(context.Context, http.Header) (*http.Response, error) {
			return response(304, 0, http.NoBody, `Etag: "1"`), nil
		}
		w.mustGet("/a", "validated", "old")
		w.mustGet("/a", "hit", "old")
		w.empty()
		w.answer = soon("new")
		w.mustGet("/b", "filled", "new")
		w.SetFence(false)
		w.mustGet("/a", "hit", "old")
		w.mustGet("/b", "hit", "new")
	})
}

func TestWhatMemoryEvictsIsFoundOnDisk(t *testing.T) {
	inShelvedWorld(t, func(t *testing.T, w *shelved) {
		const n, size = 200, 100 << 10 // two and a half times the memory
		for i := range n {
			w.answer = soon(sized(size, byte(i)))
			w.mustGet(fmt.Sprint("/", i), "filled", sized(size, byte(i)))
			if i%20 == 0 {
				w.settle()
			}
			if held := w.bytes; w.Cache.bytes.Load() > held {
				t.Fatalf("%d bytes are held", w.Cache.bytes.Load())
			}
		}
		w.settle()
		w.answer = func(context.Context, http.Header) (*http.Response, error) { return nil, io.ErrUnexpectedEOF }
		onDisk := 0
		for range 2 {
			for i := range n {
				w.mustGet(fmt.Sprint("/", i), "hit", sized(size, byte(i)))
				if w.find(w.want(fmt.Sprint("/", i))).Object.OnDisk() {
					onDisk++
				}
			}
		}
		if onDisk < n {
			t.Errorf("%d of %d were on disk only", onDisk, 2*n)
		}
	})
}

func TestAValidationIsKnownAfterARestart(t *testing.T) {
	for _, size := range []int{100, promoted + 1} {
		inShelvedWorld(t, func(t *testing.T, w *shelved) {
			body := sized(size, 1)
			w.answer = soon(body, `Etag: "1"`, "Cache-Control: max-age=10", "X-A: old")
			w.mustGet("/", "filled", body)
			w.settle()
			for range 2 {
				w.empty()
				time.Sleep(time.Minute)
				w.answer = func(context.Context, http.Header) (*http.Response, error) {
					return response(304, 0, http.NoBody, `Etag: "1"`, "Cache-Control: max-age=3600", "X-A: new"), nil
				}
				w.mustGet("/", "validated", body)
				w.settle()
				w.restart()
				w.mustGet("/", "hit", body)
				if o := w.find(w.want("/")).Object; o.Header.Get("X-A") != "new" {
					t.Errorf("it is %q", o.Header)
				}
				time.Sleep(time.Hour)
			}
			if c := w.Counters(); c["disk_renewed_total"] != 0 { // in the process that has just begun
				t.Errorf("counted %v", c)
			}
		})
	}
}

func TestWhatCannotBeSharedAnyMoreIsNotFoundOnDisk(t *testing.T) {
	inShelvedWorld(t, func(t *testing.T, w *shelved) {
		w.answer = soon("old", "Cache-Control: max-age=10")
		w.mustGet("/", "filled", "old")
		w.settle()
		time.Sleep(time.Minute)
		w.answer = soon("mine", "Cache-Control: private")
		w.mustGet("/", "filled", "mine")
		w.settle()
		w.restart()
		if o := w.find(w.want("/")).Object; o != nil {
			t.Errorf("%+v is kept", o)
		}
	})
}

func TestWhatIsInvalidatedIsNotFoundOnDisk(t *testing.T) {
	inShelvedWorld(t, func(t *testing.T, w *shelved) {
		w.answer = soon("old", "Vary: Accept-Encoding")
		w.mustGet("/", "filled", "old", "Accept-Encoding: br")
		w.settle()
		w.empty()
		w.Invalidate(w.want("/").Key)
		if w.find(w.want("/", "Accept-Encoding: br")).Object != nil {
			t.Error("it is kept")
		}
		w.settle()
		w.restart()
		w.answer = soon("new", "Vary: Accept-Encoding")
		w.mustGet("/", "filled", "new")
		w.mustGet("/", "filled", "new", "Accept-Encoding: br")
	})
}

// spoil changes a byte of what is written of a body.
func (w *shelved) spoil(body string) {
	w.t.Helper()
	names, err := filepath.Glob(filepath.Join(w.dir, "*.segment"))
	if err != nil || len(names) == 0 {
		w.t.Fatal(names, err)
	}
	for _, name := range names {
		all, err := os.ReadFile(name)
		if err != nil {
			w.t.Fatal(err)
		}
		if i := bytes.Index(all, []byte(body)); i >= 0 {
			f, err := os.OpenFile(name, os.O_WRONLY, 0)
			if err != nil {
				w.t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt([]byte{all[i] ^ 1}, int64(i)); err != nil {
				w.t.Fatal(err)
			}
			return
		}
	}
	w.t.Fatal("it is not written")
}

func TestADamagedBodyIsAMiss(t *testing.T) {
	for _, size := range []int{100, promoted + 1, 500 << 10} {
		inShelvedWorld(t, func(t *testing.T, w *shelved) {
			body := sized(size, 1)
			w.answer = soon(body)
			w.mustGet("/", "filled", body)
			w.settle()
			w.spoil(body)
			w.empty()
			w.answer = soon("new")
			if found := w.find(w.want("/")); found.Object != nil {
				if _, err := read(found.Object); !errors.Is(err, ErrLost) {
					t.Fatalf("it is read: %v", err)
				}
				if _, err := found.Object.Open(); !errors.Is(err, ErrLost) {
					t.Fatalf("it is there: %v", err)
				}
			}
			w.mustGet("/", "filled", "new")
			w.mustGet("/", "hit", "new")
		})
	}
}

func TestABodyIsNotTakenForThatOfANewerResponse(t *testing.T) {
	inShelvedWorld(t, func(t *testing.T, w *shelved) {
		one, two := sized(promoted+1, 1), sized(promoted+1, 2)
		w.answer = soon(one)
		w.mustGet("/", "filled", one)
		w.settle()
		w.empty()
		old := w.find(w.want("/")).Object
		opened, err := old.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer opened.Close()
		w.Purge(Purge{Items: []string{"/"}})
		w.answer = soon(two)
		w.mustGet("/", "filled", two)
		w.settle()
		if _, err := old.Open(); !errors.Is(err, ErrLost) {
			t.Errorf("opened: %v", err)
		}
		piece, err := opened.Piece(0, 10, func() []byte { return make([]byte, BodyPiece) })
		if err != nil || string(piece) != one[:10] {
			t.Errorf("what was opened is read as %q, %v", piece, err)
		}
		w.mustGet("/", "hit", two)
	})
}

// What is on disk is of no use where the state is lost that tells what was purged.
func TestWithoutItsStateNothingOnDiskIsUsed(t *testing.T) {
	inShelvedWorld(t, func(t *testing.T, w *shelved) {
		w.answer = soon("old")
		w.mustGet("/", "filled", "old")
		w.SetEpoch(7)
		w.settle()
		w.restart()
		if epoch, known := w.Epoch(); epoch != 7 || !known {
			t.Errorf("the epoch is %d, %v", epoch, known)
		}
		w.Cache.Close()
		w.store.Close()
		if err := os.Remove(filepath.Join(w.dir, "state")); err != nil {
			t.Fatal(err)
		}
		w.start(w.dir)
		if _, known := w.Epoch(); known || w.find(w.want("/")).Object != nil {
			t.Error("it is kept")
		}
		time.Sleep(time.Minute)
		w.settle()
		if c := w.Counters(); c["disk_objects"] != 0 || c["cache_purge_rules"] != 0 {
			t.Errorf("counted %v", c)
		}
		w.answer = soon("new")
		w.mustGet("/", "filled", "new")
		w.settle()
		w.restart()
		w.mustGet("/", "hit", "new")
		if epoch, known := w.Epoch(); epoch != 0 || !known {
			t.Errorf("the epoch is %d, %v", epoch, known)
		}
	})
}

func TestMorePurgesThanTheDiskNotesPurgeMore(t *testing.T) {
	inShelvedWorld(t, func(t *testing.T, w *shelved) {
		w.answer = soon("v")
		w.mustGet("/x1", "filled", "v")
		w.mustGet("/x2999", "filled", "v")
		w.settle()
		w.empty()
		var all []Purge
		for i := range 3000 { // 300 KiB of them, in 256 KiB
			all = append(all, Purge{Distribution: "shop", Items: []string{fmt.Sprint("/x", i), fmt.Sprint("/other/", i, strings.Repeat("y", 80))}})
		}
		if err := w.Purge(all...); err != nil {
			t.Fatal(err)
		}
		w.crash()
		if w.find(w.want("/x1")).Object != nil || w.find(w.want("/x2999")).Object != nil {
			t.Error("it is kept")
		}
	})
}

// The disk does not take the state: its folder is gone.
func TestAPurgeThatTheDiskDoesNotNoteSaysSoAndIsNotedLater(t *testing.T) {
	inShelvedWorld(t, func(t *testing.T, w *shelved) {
		w.answer = soon("old")
		w.mustGet("/", "filled", "old")
		w.settle()
		w.empty()
		if err := os.Rename(w.dir, w.dir+".away"); err != nil {
			t.Fatal(err)
		}
		if err := w.Purge(Purge{Items: []string{"/"}}); !errors.Is(err, ErrUnnoted) {
			t.Errorf("the purge says %v", err)
		}
		if w.find(w.want("/")).Object != nil {
			t.Error("it is kept")
		}
		w.mustGet("/", "filled", "old")
		w.mustGet("/", "hit", "old")
		if w.Counters()["cache_unnoted_total"] == 0 {
			t.Error("nothing is counted")
		}
		if err := os.Rename(w.dir+".away", w.dir); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if err := w.Purge(Purge{Items: []string{"/none"}}); err != nil {
			t.Error(err)
		}
		w.answer = soon("new")
		w.Purge(Purge{Items: []string{"/"}})
		w.crash()
		if w.find(w.want("/")).Object != nil {
			t.Error("it is kept after a restart")
		}
	})
}

func TestManyAskForWhatIsOnDisk(t *testing.T) {
	inShelvedWorld(t, func(t *testing.T, w *shelved) {
		for i := range 20 {
			w.answer = soon(sized(10000*i, byte(i)))
			w.mustGet(fmt.Sprint("/", i), "filled", sized(10000*i, byte(i)))
		}
		w.settle()
		w.answer = soon("-")
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(1, uint64(g)))
				for range 150 {
					i := r.IntN(20)
					if r.IntN(20) == 0 {
						w.empty()
					}
					w.mustGet(fmt.Sprint("/", i), "hit", sized(10000*i, byte(i)))
				}
			})
		}
		wg.Wait()
	})
}

// TestNothingOlderThanAPurgeIsEverServed: whatever is asked, purged, evicted, and however often the cache ends or is killed.
func TestNothingOlderThanAPurgeIsEverServed(t *testing.T) {
	hits, restarts := 0, 0
	for seed := range uint64(12) {
		inShelvedWorld(t, func(t *testing.T, w *shelved) {
			w.policy.TagHeader = "Cache-Tag"
			r := rand.New(rand.NewPCG(seed, 5))
			const paths = 12
			var version, least [paths]int
			name := func(i int) string { return fmt.Sprintf("/%c/%d", 'a'+i%3, i) }
			get := func(i, v int) Want {
				want := w.want(name(i), fmt.Sprint("Accept-Encoding: ", []string{"br", "gzip"}[v]))
				size := 10
				if i%4 == 0 {
					size = promoted
				}
				want.Fetch = func(_ context.Context, c http.Header) (*http.Response, error) {
					n := version[i]
					time.Sleep(time.Duration(r.IntN(3)) * time.Second)
					tag := fmt.Sprintf("%q", fmt.Sprint(n))
					lines := []string{"Cache-Tag: t" + fmt.Sprint(i%5), "Etag: " + tag, "Cache-Control: max-age=1000, stale-if-error=1000"}
					if i%2 == 0 {
						lines = append(lines, "Vary: Accept-Encoding")
					}
					if c.Get("If-None-Match") == tag {
						return response(304, 0, http.NoBody, lines...), nil
					}
					body := fmt.Sprintf("%d %s", n, strings.Repeat("x", size))
					return response(200, int64(len(body)), strings.NewReader(body), lines...), nil
				}
				return want
			}
			for range 400 {
				switch i := r.IntN(paths); r.IntN(16) {
				default:
					before := least[i]
					want := get(i, r.IntN(2))
					how, body, err := w.get(t.Context(), want)
					for errors.Is(err, ErrOther) { // a sweep came in between: look again
						how, body, err = w.get(t.Context(), want)
					}
					var got int
					fmt.Sscan(body, &got)
					if err != nil || got < before {
						t.Fatalf("seed %d: %s is version %d, want %d at least: %s, %v", seed, name(i), got, before, how, err)
					}
					if how == "hit" {
						hits++
					}
				case 0, 1:
					what := []string{name(i), name(i)[:3] + "*", fmt.Sprint("#t", i%5), "/*"}[r.IntN(4)]
					for j := range paths {
						if what == name(j) || strings.HasSuffix(what, "*") && strings.HasPrefix(name(j), what[:len(what)-1]) || what == fmt.Sprint("#t", j%5) {
							version[j]++
							least[j] = version[j]
						}
					}
					if err := w.Purge(Purge{Items: []string{what}, Soft: r.IntN(3) == 0}); err != nil {
						t.Fatal(err)
					}
				case 2:
					w.empty()
				case 3:
					w.restart()
					restarts++
				case 4:
					w.crash()
					restarts++
				case 5:
					time.Sleep(time.Duration(r.IntN(100)) * time.Second)
				}
			}
		})
	}
	if hits < 300 || restarts < 100 {
		t.Errorf("%d hits, %d restarts", hits, restarts)
	}
}

// FuzzMeta: what is read is written again the same, and nothing is read that would not be sent as it is.
func FuzzMeta(f *testing.F) {
	o := &Object{Status: 200, Header: "Etag: x\r\n", body: 5, ttl: time.Hour, rare: &rare{tags: "a,b", vary: []string{"A", "B"}}, received: time.Unix(1, 2)}
	f.Add((&entry{object: o}).meta(77))
	f.Add((&entry{crossroads: &crossroads{generation: 9, vary: []string{"A"}}}).meta(1))
	f.Add([]byte{metaVersion, metaObject})
	f.Fuzz(func(t *testing.T, b []byte) {
		e, seen, err := parseMeta(b)
		if err != nil {
			return
		}
		if e.object != nil && NewHeader(e.object.Header.HTTP()).HTTP() == nil {
			t.Fatal("no header")
		}
		again := e.meta(seen)
		if back, was, err := parseMeta(again); err != nil || was != seen || !bytes.Equal(back.meta(was), again) {
			t.Fatalf("%q is written as %q, and read as %v, %v", b, again, back, err)
		}
		if e.object != nil && bodyOf(again) != e.object.body {
			t.Fatal("another body")
		}
	})
}

// FuzzState: what is read is written again the same.
func FuzzState(f *testing.F) {
	n := noted{run: 3, since: 1, swept: 4, epoch: 5, rules: []Rule{{Seq: 9, At: time.Unix(4, 4), Kind: RuleTag, Text: "x", Soft: true, Host: "h"}}}
	f.Add(n.bytes())
	f.Add([]byte{stateVersion})
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := parseState(b)
		if err != nil {
			return
		}
		again, err := parseState(n.bytes())
		if err != nil || !slices.EqualFunc(n.rules, again.rules, func(a, b Rule) bool { return a == b }) || !bytes.Equal(again.bytes(), n.bytes()) {
			t.Fatalf("%+v is read as %+v, %v", n, again, err)
		}
	})
}

// A sweep that ends while a slot is being read has deleted what is read there: it is not among what was found good.
func TestWhatIsReadWhileASweepDeletesItIsPurged(t *testing.T) {
	inShelvedWorld(t, func(t *testing.T, w *shelved) {
		w.answer = soon("old")
		w.mustGet("/", "filled", "old")
		w.settle()
		slot, swept := w.want("/").Key.URI, w.shelf.swept.Load()
		kept, ok := w.store.Get([]byte(slot))
		if !ok {
			t.Fatal("it is not there")
		}
		defer kept.Close()
		if err := w.Purge(Purge{Items: []string{"/"}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		w.settle()
		if w.shelf.swept.Load() == swept {
			t.Fatal("nothing was swept")
		}
		if e, ok := w.shelf.entry(slot, kept.Meta, kept.Size(), swept); ok && w.alive(slot, e) {
			t.Error("it is used")
		}
	})
}
