package cache

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/perigee-net/perigee/edge/cache/disk"
)

// typical is the header of a usual response.
func typical() http.Header {
	return header("Cache-Control: public, max-age=86400", "Content-Type: text/css; charset=utf-8", `Etag: "5f3e7-1a2b3c4d"`, "Server: nginx/1.22.1",
		"Last-Modified: Mon, 02 Nov 2026 00:00:00 GMT", "Date: Mon, 02 Nov 2026 00:00:00 GMT", "Vary: Accept-Encoding", "Via: 1.1 perigee")
}

var typicalHead = sync.OnceValue(func() *Object {
	now, h := time.Now(), typical()
	h.Del("Vary")
	return policy().head(200, ParseControl(h), h, now, now)
})

// keep keeps a body as a fill would, and says whether there was room.
func (c *Cache) keep(p *Policy, path string, body []byte) bool {
	o := typicalHead().whole(body)
	k := p.Key(Target{Distribution: "shop", Path: path, Host: "www.example.com"}, nil)
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.put(k.URI, &entry{object: o}, 0)
}

// has says whether a path is kept, and counts as a request for it.
func (c *Cache) has(p *Policy, path string) bool {
	_, ok := c.get(p.Key(Target{Distribution: "shop", Path: path, Host: "www.example.com"}, nil).URI)
	return ok
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestWhatIsCountedIsWhatIsHeld(t *testing.T) {
	for _, size := range []int{0, 100, 1 << 10, 5000, 33000, 1 << 20} {
		n := min(8000, 24<<20/(size+1000))
		p := policy()
		before := heap()
		c := New(Config{Bytes: 1 << 30})
		for i := range n {
			if !c.keep(p, fmt.Sprintf("/assets/%016x/style.css", i), make([]byte, size)) {
				t.Fatal("no room")
			}
		}
		held, counted := int64(heap()-before), c.bytes.Load()
		t.Logf("bodies of %7d bytes: %4d more are held for each, %4d are counted", size, held/int64(n)-int64(size), counted/int64(n)-int64(size))
		if held > counted+counted/50 || held < counted*3/4-1<<20 { // classes of size are not quite an eighth apart
			t.Errorf("bodies of %d bytes: %d bytes are held, %d are counted", size, held, counted)
		}
		c.Close()
		runtime.KeepAlive(c)
	}
}

// TestAFloodOfKeysHoldsTheMemoryOfTheCache: many goroutines bring distinct keys by fills, with and without their lengths.
func TestAFloodOfKeysHoldsTheMemoryOfTheCache(t *testing.T) {
	const limit, goroutines, keys = 16 << 20, 16, 500 // four times what it holds; an eighth is for what all of them bring at once
	// The collector lets garbage grow as large as what lives (GOGC=100); the rest is buffers of fills that have ended.
	const factor = 3
	p := policy()
	before := heap()
	c := New(Config{Bytes: limit})
	defer c.Close()
	stop := make(chan struct{})
	var watching, asking sync.WaitGroup
	var mostCounted int64
	var mostHeld uint64
	watching.Go(func() {
		for tick := time.NewTicker(5 * time.Millisecond); ; { // to read the counts stops all others
			select {
			case <-stop:
				tick.Stop()
				return
			case <-tick.C:
			}
			mostCounted = max(mostCounted, c.bytes.Load())
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			mostHeld = max(mostHeld, m.HeapAlloc)
		}
	})
	var refused atomic.Int64
	body := make([]byte, 128<<10)
	for g := range goroutines {
		asking.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(g)))
			for i := range keys {
				size := 1 << r.IntN(17)
				length := int64(size)
				if i%4 == 0 {
					length = -1
				}
				want := Want{Key: p.Key(Target{Distribution: "shop", Path: fmt.Sprintf("/%d/%d", g, i)}, nil), Policy: p, Header: http.Header{},
					Fetch: func(context.Context, http.Header) (*http.Response, error) {
						return response(200, length, bytes.NewReader(body[:size]), "Cache-Control: max-age=60"), nil
					}}
				ask, err := c.Ask(context.Background(), want, c.Find(want.Key, p, want.Header, time.Now(), nil))
				if err != nil {
					t.Error(err)
					return
				}
				res, err := ask.Wait()
				n := 0
				for err == nil {
					var piece []byte
					piece, err = ask.Next()
					n += len(piece)
				}
				ask.Close()
				if err != io.EOF || n != size {
					t.Errorf("%d bytes of %d: %v", n, size, err)
					return
				}
				if !res.Stored {
					refused.Add(1)
				}
			}
		})
	}
	asking.Wait()
	close(stop)
	watching.Wait()
	t.Logf("limit %d: %d counted at most, %d on the heap at most, %d at the end; %d of %d found no room",
		limit, mostCounted, mostHeld-before, heap()-before, refused.Load(), goroutines*keys)
	if mostCounted > limit || c.bytes.Load() > limit {
		t.Errorf("%d bytes were counted", mostCounted)
	}
	if mostHeld-before > factor*limit {
		t.Errorf("%d bytes were on the heap", mostHeld-before)
	}
	if now := int64(heap()-before) - 1<<20; now > c.bytes.Load() {
		t.Errorf("%d bytes are held, %d counted", now, c.bytes.Load())
	}
	if refused.Load() > goroutines*keys/50 {
		t.Errorf("%d found no room", refused.Load())
	}
}

// TestADiskTenTimesAsLargeTakesNoMemoryButItsIndex: a hundred bytes an object, besides what the cache may hold.
func TestADiskTenTimesAsLargeTakesNoMemoryButItsIndex(t *testing.T) {
	const limit, size, objects, each = 2 << 20, 2500, 10_000, 100
	const buffers = 1 << 20 // of what is being written
	store, err := disk.Open(disk.Config{Dir: filepath.Join(t.TempDir(), "cache"), Bytes: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	c := New(Config{Bytes: limit, Disk: store})
	defer c.Close()
	p := policy()
	put := func(i int) {
		path := fmt.Sprint("/", i)
		if !c.keep(p, path, make([]byte, size)) {
			t.Fatal("no room")
		}
		c.shelf.writeOut(p.Key(Target{Distribution: "shop", Path: path, Host: "www.example.com"}, nil).URI)
		if i%100 == 0 {
			if err := store.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	put(0)
	before := heap()
	for i := range objects {
		put(i + 1)
	}
	if err := store.Flush(); err != nil {
		t.Fatal(err)
	}
	held, there := int64(heap()-before), int64(store.Counters()["disk_objects"])
	t.Logf("%d objects on disk, %d bytes in memory are counted, %d held: %d an object beyond what is counted",
		there, c.bytes.Load(), held, (held-c.bytes.Load())/there)
	if there*size < 10*limit || held > limit+each*there+buffers {
		t.Errorf("%d bytes are held of %d objects on disk", held, there)
	}
}

// TestKeysWithoutEndAreNoMoreThanTheCacheHolds: without fills between, as fast as they can be kept.
func TestKeysWithoutEndAreNoMoreThanTheCacheHolds(t *testing.T) {
	const limit, goroutines, keys = 8 << 20, 8, 40_000 // seven times what it holds
	c := New(Config{Bytes: limit})
	defer c.Close()
	before := heap()
	object := policy().head(200, Control{}, typical(), time.Now(), time.Now()).whole(nil)
	var keeping sync.WaitGroup
	var most atomic.Int64
	for g := range goroutines {
		keeping.Go(func() {
			for i := range keys / goroutines {
				o := *object
				o.Body = make([]byte, 64+i%1024)
				c.mu.Lock()
				c.put(fmt.Sprintf("4:shop%d:%d", g, i), &entry{object: &o}, 0)
				c.mu.Unlock()
				now := c.bytes.Load()
				for old := most.Load(); now > old && !most.CompareAndSwap(old, now); old = most.Load() {
				}
			}
		})
	}
	keeping.Wait()
	held := int64(heap() - before)
	t.Logf("limit %d: %d counted at most, %d held in the end for %d entries", limit, most.Load(), held, c.stored.EstimatedSize())
	if most.Load() > limit || held > limit {
		t.Errorf("%d were counted, %d are held", most.Load(), held)
	}
}

// TestAScanDoesNotEmptyTheCache: a cache that holds a quarter of what is asked for keeps the hot ones, while ten times as many are
// asked for once each, and while large bodies come by.
func TestAScanDoesNotEmptyTheCache(t *testing.T) {
	const small, objects = 1 << 10, 2000
	p := policy()
	rate := func(each func(c *Cache, i int)) (hits int) {
		c := New(Config{Bytes: 5 << 18}) // a quarter of the objects
		defer c.Close()
		r := rand.New(rand.NewPCG(5, 6))
		zipf := rand.NewZipf(r, 1.1, 8, objects-1)
		body := make([]byte, small)
		const warm, counted = 8000, 8000
		for i := range warm + counted {
			path := fmt.Sprint("/", zipf.Uint64())
			switch {
			case !c.has(p, path):
				c.keep(p, path, body)
			case i >= warm:
				hits++
			}
			if i >= warm/2 {
				each(c, i)
			}
		}
		return hits * 1000 / counted
	}
	once := func(name string, every, size int) func(c *Cache, i int) {
		body := make([]byte, size)
		return func(c *Cache, i int) {
			if i%every == 0 {
				if path := fmt.Sprint("/", name, i); !c.has(p, path) {
					c.keep(p, path, body)
				}
			}
		}
	}
	alone := rate(func(*Cache, int) {})
	scanned := rate(once("scan", 1, small))
	large := rate(once("large", 200, 100<<10))
	twice := rate(func(c *Cache, i int) { // each large one is asked for twice, which many small ones are not
		if i%200 == 0 {
			path := fmt.Sprint("/twice", i/400)
			if !c.has(p, path) {
				c.keep(p, path, make([]byte, 100<<10))
			}
		}
	})
	t.Logf("of 1000 are hits: %d alone, %d in a scan, %d with large bodies once, %d with large bodies twice", alone, scanned, large, twice)
	if scanned < alone*9/10 || large < alone*9/10 || twice < alone*9/10 {
		t.Errorf("of 1000 are hits: %d alone, %d in a scan, %d with large bodies, %d with those twice", alone, scanned, large, twice)
	}
}

func BenchmarkKeptObjects(b *testing.B) {
	p := policy()
	before := heap()
	c := New(Config{Bytes: 8 << 30})
	defer c.Close()
	i := 0
	for b.Loop() {
		c.keep(p, fmt.Sprintf("/assets/%016x/style.css", i), make([]byte, 1<<10))
		i++
	}
	b.ReportMetric(float64(heap()-before)/float64(i), "B/object")
	runtime.KeepAlive(c)
}
