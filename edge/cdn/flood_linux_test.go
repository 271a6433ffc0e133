package cdn

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/perigee-net/perigee/cluster/spec"
)

// Whoever asks for ever new URLs fills memory and disk up to what they may take, and no further, and takes what is asked for meanwhile
// from nobody.
func TestAFloodOfNewURLsTakesNoMoreThanThereIs(t *testing.T) {
	const (
		urls, people = 10_000, 16
		size         = 8 << 10
		memory       = 16 << 20 // as diskWorld has them, and so the disk
		onDisk       = 64 << 20
		pending      = 8 << 20  // to be written
		slack        = 32 << 20 // of the heap, for all else
		fills        = 1024     // what one origin may have of them: each ends a moment after who had asked has its answer
	)
	dir := filepath.Join(t.TempDir(), "cache")
	inWorld(t, site(""), func(t *testing.T, world *world) {
		host := world.in.Host("origin", spec.Location{}, netip.MustParseAddr("198.51.100.1"))
		body := strings.Repeat("x", size)
		var asked atomic.Int64
		world.serve(host, ":80", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			says(0, body, "Cache-Control: max-age=3600")(w, r)
		}))
		w := &diskWorld{world: world, dir: dir, text: site(""), pends: pending}
		w.start()
		defer func() { w.stop() }()
		get := func(path string) *httptest.ResponseRecorder {
			rw := httptest.NewRecorder()
			w.plane.ServeHTTP(rw, httptest.NewRequest("GET", "http://www.test"+path, nil))
			return rw
		}
		before := heapInUse()
		var next, wrong atomic.Int64
		var all sync.WaitGroup
		for range people {
			all.Go(func() {
				for {
					n := next.Add(1)
					if n > urls {
						return
					}
					if a := get(fmt.Sprint("/", n)); a.Code != http.StatusOK || a.Body.Len() != size {
						wrong.Add(1)
					}
					if n%1000 > 0 {
						continue
					}
					if c := w.plane.Counters(); c["cache_bytes"] > memory || c["cache_fills"] > fills || c["disk_bytes"] > onDisk {
						t.Errorf("after %d: %d bytes in memory, %d on disk, %d fills", n, c["cache_bytes"], c["disk_bytes"], c["cache_fills"])
					}
				}
			})
		}
		all.Wait()
		written := func() {
			synctest.Wait()
			if err := w.store.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		written() // what waits for that is not what is kept
		if wrong.Load() > 0 || asked.Load() != urls {
			t.Errorf("%d answers are wrong; the origin was asked %d times, want %d", wrong.Load(), asked.Load(), urls)
		}
		c := w.plane.Counters()
		if n := c["cache_objects"]; n == 0 || n > memory/size {
			t.Errorf("%d objects are in memory, of which there is room for fewer than %d", n, memory/size)
		}
		if n := c["disk_objects"]; n == 0 || n > onDisk/size {
			t.Errorf("%d objects are on disk, of which there is room for fewer than %d", n, onDisk/size)
		}
		if more := heapInUse() - before; more > memory+slack {
			t.Errorf("the heap has grown by %d bytes, want %d at most", more, memory+slack)
		}
		get("/again")
		written() // for memory may let it go at once in favour of what was there
		if got := get("/again").Header().Get("X-Cache"); got != "Hit from perigee" {
			t.Errorf("afterwards: %s", got)
		}
	})
}

func heapInUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
