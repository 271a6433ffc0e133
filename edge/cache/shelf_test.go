package cache

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
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
	b := make([]byte, size)
	for i := range b {
		b[i] = seed + byte(i%251) + byte(i>>16)
	}
	return string(b)
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
