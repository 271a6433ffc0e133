package cdn

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/edge/cache"
	"github.com/perigee-net/perigee/edge/cache/disk"
	"github.com/perigee-net/perigee/edge/http1"
)

// diskWorld is a plane with a disk, which can be started again.
type diskWorld struct {
	*world
	dir   string
	text  string
	pends int64 // as disk.Config.Pending
	parts bool  // the origin answers ranges; set before anything is asked
	store *disk.Store
	plane *Plane
}

// inDiskWorld has an origin that answers with so many bytes as the path says.
func inDiskWorld(t *testing.T, test func(t *testing.T, w *diskWorld)) {
	dir := filepath.Join(t.TempDir(), "cache")
	inWorld(t, site(""), func(t *testing.T, world *world) {
		w := &diskWorld{world: world, dir: dir, text: site("")}
		w.origin(func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Cache-Control", "max-age=3600")
			rw.Header().Set("Etag", `"`+r.URL.Path+`"`)
			rw.Header().Set("Content-Type", "text/plain")
			n, _ := strconv.Atoi(r.URL.Path[1:])
			if w.parts {
				http.ServeContent(rw, r, "", time.Time{}, strings.NewReader(bodyOf(n)))
				return
			}
			rw.Header().Set("Content-Length", fmt.Sprint(n))
			io.WriteString(rw, bodyOf(n))
		})
		w.start()
		defer func() { w.stop() }()
		test(t, w)
	})
}

func bodyOf(n int) string {
	b := make([]byte, n)
	for i, x := 0, uint32(n); i < n; i++ {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return string(b)
}

func (w *diskWorld) start() {
	w.t.Helper()
	var err error
	if w.store, err = disk.Open(disk.Config{Dir: w.dir, Bytes: 64 << 20, Pending: w.pends}); err != nil {
		w.t.Fatal(err)
	}
	w.plane = New(Config{View: func() *view.View { return w.view }, POP: "icn1", Dial: w.edge.Dial, CacheBytes: 16 << 20, Disk: w.store})
	if err := w.plane.Apply(build(w.t, w.text)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *diskWorld) stop() {
	w.plane.Close()
	if err := w.store.Close(); err != nil {
		w.t.Error(err)
	}
}

func (w *diskWorld) restart() {
	w.t.Helper()
	synctest.Wait()
	w.stop()
	w.start()
}

func get(size int, fields ...string) string {
	return fmt.Sprintf("GET /%d HTTP/1.1\r\nHost: www.test\r\n%s\r\n", size, strings.Join(append(fields, ""), "\r\n"))
}

// fileQuickly has Quick answer a request, from a file if it does so.
func fileQuickly(t *testing.T, p *Plane, text string) (r *http.Response, byFile, ok bool) {
	t.Helper()
	a := &http1.Response{Head: make([]byte, 0, 4096)}
	q := parsed(text)
	if !p.Quick(q, a) {
		return nil, false, false
	}
	body := a.Body
	if a.File != nil {
		body = make([]byte, a.Length)
		if _, err := a.File.ReadAt(body, a.Offset); err != nil {
			t.Fatal(err)
		}
		a.Done()
	}
	method := http.MethodGet
	if q.Head {
		method = http.MethodHead
	}
	r, err := http.ReadResponse(bufio.NewReader(io.MultiReader(bytes.NewReader(a.Head), bytes.NewReader(body))), &http.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	return r, a.File != nil, true
}

func TestQuickAnswersFromDiskAsServeHTTPDoes(t *testing.T) {
	inDiskWorld(t, func(t *testing.T, w *diskWorld) {
		sizes := []int{0, 10, 64 << 10, 64<<10 + 1, 100 << 10, 1 << 20}
		for _, size := range sizes {
			if r := slowly(t, w.plane, get(size)); r.StatusCode != 200 {
				t.Fatal(r.StatusCode)
			}
		}
		w.restart()
		for range 2 {
			for _, size := range sizes {
				for _, text := range []string{get(size), strings.Replace(get(size), "GET", "HEAD", 1)} {
					want := written(t, slowly(t, w.plane, text)) // and brings it into memory
					r, byFile, ok := fileQuickly(t, w.plane, text)
					if !ok {
						t.Fatalf("%d is not answered quickly", size)
					}
					if got := written(t, r); got != want {
						t.Errorf("%d is answered quickly\n%.300s\nand slowly\n%.300s", size, got, want)
					}
					if byFile != (size >= 64<<10 && text[0] == 'G') { // from the disk, or of 64 KiB from pages in memory
						t.Errorf("%d is sent by its file: %v", size, byFile)
					}
					if text[0] == 'G' && !strings.HasSuffix(want, bodyOf(size)) {
						t.Errorf("%d is another body", size)
					}
				}
			}
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.asked) != len(sizes) {
			t.Errorf("the origin was asked %d times", len(w.asked))
		}
	})
}

func TestWhatWasSoughtInIsOneBodyOnDiskToo(t *testing.T) {
	inDiskWorld(t, func(t *testing.T, w *diskWorld) {
		const size = 1<<20 + 500<<10
		w.parts = true
		if r := slowly(t, w.plane, get(size, "Range: bytes=1048577-1048580")); r.StatusCode != 206 || !strings.HasSuffix(written(t, r), bodyOf(size)[1048577:1048581]) {
			t.Fatal(r.StatusCode)
		}
		time.Sleep(time.Second) // till the slice is there whole
		for i := range 3 {
			w.restart()
			joined := w.plane.Counters()["cache_slices_joined_total"]
			for n := range 2 {
				if _, _, quick := fileQuickly(t, w.plane, get(size)); quick && i+n == 0 {
					t.Error("what is in slices is answered quickly")
				}
				r := slowly(t, w.plane, get(size))
				if r.StatusCode != 200 || !strings.HasSuffix(written(t, r), bodyOf(size)) {
					t.Error(r.StatusCode, r.Header)
				}
				time.Sleep(time.Second) // till the slices are there whole, or are one body
			}
			if joined = w.plane.Counters()["cache_slices_joined_total"] - joined; (joined == 1) != (i == 0) {
				t.Errorf("after %d restarts %d objects were joined", i+1, joined)
			}
			if _, byFile, quick := fileQuickly(t, w.plane, get(size)); !quick || !byFile {
				t.Errorf("after %d restarts it is answered quickly: %v, by a file: %v", i+1, quick, byFile)
			}
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.asked) != 2 {
			t.Errorf("the origin was asked %d times", len(w.asked))
		}
	})
}

func TestPartsAndConditionsAreAnsweredFromDisk(t *testing.T) {
	inDiskWorld(t, func(t *testing.T, w *diskWorld) {
		const size = 300 << 10
		body := bodyOf(size)
		slowly(t, w.plane, get(size))
		w.restart()
		for _, c := range []struct {
			field  string
			status int
			body   string
		}{
			{"Range: bytes=0-0", 206, body[:1]},
			{"Range: bytes=65535-65536", 206, body[65535:65537]},
			{"Range: bytes=100-200000", 206, body[100:200001]},
			{"Range: bytes=-1", 206, body[size-1:]},
			{"Range: bytes=400000-", 416, ""},
			{`If-None-Match: "/307200"`, 304, ""},
			{`If-Match: "x"`, 412, ""},
			{`If-None-Match: "x"`, 200, body},
		} {
			r := slowly(t, w.plane, get(size, c.field))
			if got, err := io.ReadAll(r.Body); err != nil || r.StatusCode != c.status || string(got) != c.body {
				t.Errorf("%s: %d with %d bytes, %v", c.field, r.StatusCode, len(got), err)
			}
			if !strings.Contains(r.Header.Get("Cache-Status"), "; hit") {
				t.Errorf("%s: %v", c.field, r.Header)
			}
		}
		r := slowly(t, w.plane, get(size, "Range: bytes=0-9, 65530-131080, -5"))
		_, is, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
		if err != nil {
			t.Fatal(err)
		}
		parts := multipart.NewReader(r.Body, is["boundary"])
		for _, want := range []string{body[:10], body[65530:131081], body[size-5:]} {
			p, err := parts.NextRawPart()
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(p); err != nil || string(got) != want {
				t.Errorf("a part of %d bytes, want %d, %v", len(got), len(want), err)
			}
		}
	})
}

// spoil changes the bytes of bodies from a place on.
func (w *diskWorld) spoil(piece string) {
	w.t.Helper()
	names, _ := filepath.Glob(filepath.Join(w.dir, "*.segment"))
	for _, name := range names {
		all, err := os.ReadFile(name)
		if err != nil {
			w.t.Fatal(err)
		}
		if i := bytes.Index(all, []byte(piece)); i >= 0 {
			f, err := os.OpenFile(name, os.O_WRONLY, 0)
			if err != nil {
				w.t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt([]byte("spoilt"), int64(i)); err != nil {
				w.t.Fatal(err)
			}
			return
		}
	}
	w.t.Fatal("it is not written")
}

func TestADamagedBodyIsAMissOrEndsTheConnection(t *testing.T) {
	const size = 300 << 10
	for _, seen := range []bool{false, true} { // whether it was read before it is damaged
		inDiskWorld(t, func(t *testing.T, w *diskWorld) {
			slowly(t, w.plane, get(size))
			w.restart()
			if seen {
				slowly(t, w.plane, get(size))
			} else if r := slowly(t, w.plane, strings.Replace(get(size), "GET", "HEAD", 1)); !strings.Contains(r.Header.Get("Cache-Status"), "; hit") {
				t.Fatal(r.Header)
			}
			w.spoil(bodyOf(size)[200<<10 : 201<<10])
			if seen { // its head is sent, and so is what is whole
				rec := httptest.NewRecorder()
				aborted := func() (aborted bool) {
					defer func() { aborted = recover() == http.ErrAbortHandler }()
					q, _ := http.ReadRequest(bufio.NewReader(strings.NewReader(get(size))))
					w.plane.ServeHTTP(rec, q)
					return false
				}()
				if !aborted || rec.Body.String() != bodyOf(size)[:192<<10] {
					t.Errorf("it was ended: %v, after %d bytes", aborted, rec.Body.Len())
				}
			} else if _, _, ok := fileQuickly(t, w.plane, get(size)); ok {
				t.Error("it is answered quickly")
			}
			r := slowly(t, w.plane, get(size))
			if got, err := io.ReadAll(r.Body); err != nil || string(got) != bodyOf(size) || !strings.Contains(r.Header.Get("Cache-Status"), "fwd=uri-miss") {
				t.Errorf("%d bytes, %v, %v", len(got), err, r.Header)
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			if len(w.asked) != 2 {
				t.Errorf("the origin was asked %d times", len(w.asked))
			}
		})
	}
}

func TestWhatIsBeingSentFromDiskIsLetGo(t *testing.T) {
	inDiskWorld(t, func(t *testing.T, w *diskWorld) {
		slowly(t, w.plane, get(100<<10))
		w.restart()
		for range 3 {
			slowly(t, w.plane, get(100<<10))
			slowly(t, w.plane, get(100<<10, "Range: bytes=0-1"))
			slowly(t, w.plane, get(100<<10, "If-None-Match: *"))
			fileQuickly(t, w.plane, get(100<<10))
		}
		w.plane.Purge(cache.Purge{Items: []string{"/*"}})
		if _, err := os.Stat(w.dir); err != nil {
			t.Fatal(err)
		}
		w.stop() // a segment that is held stays open
		if n := openSegments(t, w.dir); n != 0 {
			t.Errorf("%d files are still open", n)
		}
		w.start()
	})
}

// openSegments is how many files of a folder this process has open.
func openSegments(t *testing.T, dir string) (n int) {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if to, err := os.Readlink("/proc/self/fd/" + f.Name()); err == nil && strings.HasPrefix(to, dir) {
			n++
		}
	}
	return n
}

func TestSlicesAreOnDiskTooAndFoundThereAfterARestart(t *testing.T) {
	const size = 5*mega + 5
	dir := filepath.Join(t.TempDir(), "cache")
	inWorld(t, site(""), func(t *testing.T, world *world) {
		w := &diskWorld{world: world, dir: dir, text: site("")}
		c := &cinema{film: film{size: size, version: 1}}
		w.origin(c.ServeHTTP)
		w.start()
		defer func() { w.stop() }()
		read := func(field string) string {
			return read(t, record(w.plane, "GET", "http://www.test/film", http.Header{"Range": {field}}))
		}
		if got := read("bytes=0-"); got != string(reel(1, 0, size)) {
			t.Fatalf("%d bytes", len(got))
		}
		c.asked()
		w.restart()
		if got := read("bytes=5-"); got != string(reel(1, 5, size-5)) {
			t.Errorf("after a restart: %d bytes", len(got))
		}
		if asked := c.asked(); len(asked) > 0 {
			t.Errorf("after a restart the origin was asked for %q", asked)
		}
		c.shows(2, size)
		w.plane.Purge(cache.Purge{Distribution: "site", Items: []string{"/film"}})
		w.restart()
		if got := read("bytes=5-1048580"); got != string(reel(2, 5, 1048576)) {
			t.Error("after a purge and a restart there are bytes of the version before")
		}
	})
}

// read is the body of a response.
func read(t *testing.T, r *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != 206 {
		t.Fatal(err, r.StatusCode, r.Header)
	}
	return string(b)
}

// What Relay brings is on disk as a whole, and found there after a restart; of what the origin cut short nothing is.
func TestWhatARelayBringsIsOnDiskOnlyAsAWhole(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	inWorld(t, site(""), func(t *testing.T, world *world) {
		w := &diskWorld{world: world, dir: dir, text: site("")}
		w.origin(func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Cache-Control", "max-age=3600")
			rw.Header().Set("Content-Type", "text/plain")
			size, _ := strconv.Atoi(r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:])
			if !strings.Contains(r.URL.Path, "unsaid") {
				rw.Header().Set("Content-Length", fmt.Sprint(size))
			}
			if !strings.Contains(r.URL.Path, "cut") {
				io.WriteString(rw, bodyOf(size))
				return
			}
			io.WriteString(rw, bodyOf(size)[:size/2])
			rw.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		})
		w.start()
		defer func() { w.stop() }()
		relays, whole := 0, []string{}
		var cut []string
		ask := func(path string) (body string, err error) {
			text := "GET " + path + " HTTP/1.1\r\nHost: www.test\r\n\r\n"
			defer func() {
				if p := recover(); p != nil {
					err = io.ErrUnexpectedEOF
				}
			}()
			r, begun := relayed(t, w.plane, text)
			switch {
			case begun != nil:
				r = goesOn(t, w.plane, text, begun)
			case r == nil:
				r = slowly(t, w.plane, text)
			default:
				relays++
			}
			b, err := io.ReadAll(r.Body)
			return string(b), err
		}
		for _, size := range []int{100, 3000, 20_000, 50_000, 200_000} {
			for _, kind := range []string{"/", "/again/", "/more/", "/unsaid/", "/cut/", "/cut/unsaid/"} {
				path := kind + fmt.Sprint(size)
				body, err := ask(path)
				if strings.Contains(kind, "cut") {
					if cut = append(cut, path); err == nil && len(body) >= size {
						t.Errorf("%s is answered as a whole", path)
					}
				} else if whole = append(whole, path); err != nil || body != bodyOf(size) {
					t.Errorf("%s is answered with %d bytes: %v", path, len(body), err)
				}
			}
		}
		if relays < 5 {
			t.Errorf("%d were relayed", relays)
		}
		for range 2 {
			for _, path := range whole {
				before := len(w.requests())
				size, _ := strconv.Atoi(path[strings.LastIndexByte(path, '/')+1:])
				if body, err := ask(path); err != nil || body != bodyOf(size) || len(w.requests()) > before {
					t.Errorf("%s is answered with %d bytes, by the origin %v: %v", path, len(body), len(w.requests()) > before, err)
				}
			}
			w.restart()
		}
		for _, path := range cut {
			before := len(w.requests())
			if ask(path); len(w.requests()) == before {
				t.Errorf("something is kept of %s", path)
			}
		}
	})
}
