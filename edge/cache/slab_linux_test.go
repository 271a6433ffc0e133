package cache

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// slabbed is a cache with slabs, which are small, so that there are many and bodies move often.
func slabbed() *Cache {
	c := New(Config{Bytes: 2 * slabShare * slabBytes})
	c.slabs.size, c.slabs.most = 1<<20, 2<<20
	return c
}

// asFile is the body of an object as who is sent a file sees it, after what meanwhile does.
func asFile(c *Cache, o *Object, meanwhile func()) (file, memory []byte, err error) {
	b, err := c.OpenFile(o)
	if err != nil {
		return nil, nil, err
	}
	defer b.Close()
	meanwhile()
	f, offset, _, ok := b.Pages()
	memory = b.memory
	if !ok {
		return memory, memory, nil
	}
	file = make([]byte, len(memory))
	_, err = f.ReadAt(file, offset)
	return file, bytes.Clone(memory), err
}

// countsRight waits until nobody is at work, in a bubble, and says what is wrong with what is counted then.
func (c *Cache) countsRight(t *testing.T) {
	t.Helper()
	synctest.Wait()
	var weights, waste int64
	for _, e := range c.stored.All() {
		weights += int64(e.weight)
	}
	for p := range c.slabs.all {
		waste += c.slabs.size - p.slab.kept.Load()
	}
	if waste != c.slabs.waste.Load() || weights+waste != c.bytes.Load() {
		t.Errorf("waste of %d bytes is counted as %d, with %d of entries as %d", waste, c.slabs.waste.Load(), weights, c.bytes.Load())
	}
}

func TestMediumBodiesShareASlab(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const bodies, size = 50, 100_000
		p, c := policy(), New(Config{Bytes: 2 * slabShare * slabBytes})
		defer c.Close()
		for i := range bodies {
			body := patterned(i, size)
			c.keep(p, fmt.Sprint("/", i), bytes.Clone(body))
			file, memory, err := asFile(c, c.object(p, fmt.Sprint("/", i)), func() {})
			if err != nil || !bytes.Equal(file, body) || !bytes.Equal(memory, body) {
				t.Fatalf("body %d is another: %v", i, err)
			}
		}
		now := c.Counters()
		if now["cache_slabs"] != 2 || now["cache_paged"] != 2 || now["cache_unpaged_total"] != 0 {
			t.Errorf("%d slabs, %d files, %d on the heap", now["cache_slabs"], now["cache_paged"], now["cache_unpaged_total"])
		}
		c.countsRight(t)
		for i := range bodies { // also those that were there when others came
			file, memory, err := asFile(c, c.object(p, fmt.Sprint("/", i)), func() {})
			if body := patterned(i, size); err != nil || !bytes.Equal(file, body) || !bytes.Equal(memory, body) {
				t.Fatalf("body %d is another: %v", i, err)
			}
		}
		full, err := c.OpenFile(c.object(p, "/0"))
		if err != nil {
			t.Fatal(err)
		}
		f, _, done, _ := full.Pages()
		if n, err := f.WriteAt([]byte("other"), 0); n > 0 || err == nil {
			t.Error("a slab that is full can be written")
		}
		if err := f.Truncate(0); err == nil {
			t.Error("it can be cut")
		}
		done()
		c.mu.Lock()
		c.stored.InvalidateAll()
		c.mu.Unlock()
		synctest.Wait()
		if now := c.Counters(); now["cache_slabs"]+now["cache_paged"]+now["cache_slab_waste_bytes"]+now["cache_bytes"] != 0 {
			t.Errorf("with nothing kept there are %v", now)
		}
	})
}

// What is in a slab of which little is left moves, also while it is read; what nobody keeps does not, and stays for who reads it.
func TestBodiesMoveOutOfSlabsThatAreMostlyHoles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const bodies, size, every = 100, 100_000, 10
		p, c := policy(), slabbed()
		defer c.Close()
		var readers []Body
		for i := range bodies {
			path := fmt.Sprint("/", i)
			c.keep(p, path, patterned(i, size))
			b, err := c.OpenFile(c.object(p, path))
			if err != nil {
				t.Fatal(err)
			}
			readers = append(readers, b)
		}
		if c.slabs.count() < 9 {
			t.Fatalf("there are %d slabs", c.slabs.count())
		}
		for i := range bodies {
			if i%every > 0 {
				c.Invalidate(p.Key(Target{Distribution: "shop", Path: fmt.Sprint("/", i), Host: "www.example.com"}, nil))
			}
		}
		synctest.Wait()
		if c.slabs.moved.Load() == 0 {
			t.Error("nothing has moved")
		}
		c.countsRight(t)
		for i, b := range readers {
			_, _, done, ok := b.Pages()
			if !ok || !bytes.Equal(b.memory, patterned(i, size)) {
				t.Errorf("who reads body %d sees another", i)
			}
			done()
		}
		synctest.Wait()
		if waste := c.slabs.waste.Load(); waste > c.slabs.most/2+c.slabs.size || c.slabs.count() > 3 {
			t.Errorf("%d bytes of waste, %d slabs", waste, c.slabs.count())
		}
		for i := 0; i < bodies; i += every {
			file, memory, err := asFile(c, c.object(p, fmt.Sprint("/", i)), func() {})
			if body := patterned(i, size); err != nil || !bytes.Equal(file, body) || !bytes.Equal(memory, body) {
				t.Errorf("body %d is another: %v", i, err)
			}
		}
		c.countsRight(t)
	})
}

// Who moves bodies together has a slab to move them to when all else is full.
func TestHolesAreFilledWhereThereIsNoRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, c := policy(), slabbed()
		defer c.Close()
		for i := range 100 {
			c.keep(p, fmt.Sprint("/", i), patterned(i, 100_000))
			asFile(c, c.object(p, fmt.Sprint("/", i)), func() {})
		}
		all := c.limit - c.slabs.size - c.bytes.Load()
		if !c.reserve(all) || c.reserve(1) {
			t.Fatal("it is not full")
		}
		for i := range 100 {
			if i%4 > 0 {
				c.Invalidate(p.Key(Target{Distribution: "shop", Path: fmt.Sprint("/", i), Host: "www.example.com"}, nil))
			}
		}
		synctest.Wait()
		if waste := c.slabs.waste.Load(); waste > c.slabs.most/2+c.slabs.size || c.bytes.Load() > c.limit || c.slabs.moved.Load() == 0 {
			t.Errorf("%d bytes of waste, %d of %d in all", waste, c.bytes.Load(), c.limit)
		}
		c.reserve(-all)
		c.countsRight(t)
	})
}

// Many read and send what others replace, evict, purge and have moved meanwhile: each sees what the object that it found has, to the end. A
// place that was given back is not mapped any more, so who looks there too late ends the test, or sees what came to stand there instead.
func TestNobodySeesWhatIsAnothersInASlab(t *testing.T) {
	const readers, rounds, paths, versions = 6, 300, 300, 50
	p, c := policy(), slabbed()
	defer c.Close()
	var most atomic.Int64
	var reading sync.WaitGroup
	for g := range readers {
		reading.Go(func() {
			r := rand.New(rand.NewPCG(11, uint64(g)))
			for range rounds {
				i := r.IntN(paths)
				path := fmt.Sprint("/", i)
				o := c.object(p, path)
				switch chance := r.IntN(20); {
				case o == nil || chance < 4:
					version := r.IntN(versions) // and in its first bytes the body says whose it is
					body := patterned(i*versions+version, largeBytes+(i*997+version*4111)%(slabPiece-largeBytes))
					copy(body, fmt.Sprintf("%08d.%08d", i, version))
					c.keep(p, path, body)
					continue
				case chance < 6:
					c.Invalidate(p.Key(Target{Distribution: "shop", Path: path, Host: "www.example.com"}, nil))
				case chance < 7 && r.IntN(20) == 0:
					c.Purge(Purge{Distribution: "shop", Items: []string{fmt.Sprintf("/%d*", r.IntN(30))}})
				}
				file, memory, err := asFile(c, o, runtime.Gosched)
				if err == ErrLost {
					continue
				}
				var at, version int
				if n, _ := fmt.Sscanf(string(memory[:17]), "%08d.%08d", &at, &version); n != 2 || at != i || err != nil {
					t.Errorf("body %d begins with %q: %v", i, memory[:17], err)
					continue
				}
				body := patterned(i*versions+version, len(memory))
				copy(body, memory[:17])
				if !bytes.Equal(memory, body) || !bytes.Equal(file, body) || int64(len(body)) != o.Size() {
					t.Errorf("body %d is another", i)
				}
				for now := c.bytes.Load(); ; {
					if was := most.Load(); now <= was || most.CompareAndSwap(was, now) {
						break
					}
				}
			}
		})
	}
	reading.Wait()
	if most.Load() > c.limit {
		t.Errorf("%d bytes are counted at most, of %d", most.Load(), c.limit)
	}
	t.Logf("%d moved, %d slabs, %d bytes of %d at most", c.slabs.moved.Load(), c.slabs.count(), most.Load(), c.limit)
	c.mu.Lock()
	c.stored.InvalidateAll()
	c.mu.Unlock()
	c.Close() // and with it who moves and gives back
	c.slabs.filling.Lock()
	if c.slabs.open != nil {
		c.slabs.shut()
	}
	c.slabs.filling.Unlock()
	for {
		select {
		case p := <-c.unneeded:
			p.giveBack()
			continue
		default:
		}
		break
	}
	if c.paged.Load() != 0 || c.slabs.count() != 0 || c.slabs.waste.Load() != 0 || c.bytes.Load() != 0 {
		t.Errorf("%d files, %d slabs, %d bytes of waste, %d in all", c.paged.Load(), c.slabs.count(), c.slabs.waste.Load(), c.bytes.Load())
	}
}

func TestSmallCachesHaveNoSlabs(t *testing.T) {
	c := New(Config{Bytes: 2*slabShare*slabBytes - slabShare})
	defer c.Close()
	p := policy()
	c.keep(p, "/", patterned(1, 100_000))
	if _, err := c.OpenFile(c.object(p, "/")); err != nil || c.slabs.count() != 0 || c.paged.Load() != 1 {
		t.Errorf("%d slabs, %d files: %v", c.slabs.count(), c.paged.Load(), err)
	}
}

func BenchmarkMoveToASlab(b *testing.B) {
	p, c := policy(), New(Config{Bytes: 2 * slabShare * slabBytes})
	defer c.Close()
	body := patterned(1, 100<<10)
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		c.keep(p, "/", body)
		if opened, err := c.OpenFile(c.object(p, "/")); err == nil {
			opened.Close()
		}
	}
}

// churn keeps bodies of 100 KiB and has each sent, until the cache has evicted much.
func (c *Cache) churn(t *testing.T, p *Policy, sent func(i int, b Body)) {
	t.Helper()
	body := patterned(1, 100<<10)
	for i := 0; i < int(c.limit+c.limit/2)/len(body); i++ {
		path := fmt.Sprint("/", i)
		c.keep(p, path, bytes.Clone(body))
		if o := c.object(p, path); o != nil {
			b, err := c.OpenFile(o)
			switch {
			case err == nil:
				sent(i, b)
			case err != ErrLost: // it may be evicted right now
				t.Fatal(err)
			}
		}
		synctest.Wait()
	}
	if c.counts.evicted.Load() == 0 {
		t.Fatal("nothing was evicted")
	}
}

// Who fills a cache that is full has an eighth of it for that, whatever slabs waste.
func TestAFullCacheWithSlabsKeepsTheLargestObject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, c := policy(), New(Config{Bytes: 2 * slabShare * slabBytes})
		defer c.Close()
		c.churn(t, p, func(_ int, b Body) { b.Close() })
		size := c.objectLimit()
		want := Want{Key: p.Key(Target{Distribution: "shop", Path: "/largest", Host: "www.example.com"}, nil), Policy: p, Header: http.Header{},
			Fetch: func(context.Context, http.Header) (*http.Response, error) {
				return response(200, size, bytes.NewReader(make([]byte, size)), "Cache-Control: max-age=60"), nil
			}}
		for i := range 4 { // it is kept the fourth time, and there is room for it each time
			ask, r := c.ask(t, want)
			if last := i == 3; r.Stored != last || !last && r.WhyNot != unadmitted {
				t.Errorf("the largest object is kept: %v, %q; %d of %d bytes, %d of waste", r.Stored, r.WhyNot, c.bytes.Load(), c.limit, c.slabs.waste.Load())
			}
			synctest.Wait()
			ask.Close()
		}
		if c.Close(); c.counts.refused.Load() > 0 {
			t.Errorf("%d were refused", c.counts.refused.Load())
		}
	})
}

// Who reads a body slowly keeps a slab from being given back. However many do, what is new is kept: what is old has to go for it.
func TestSlowReadersDoNotFreezeTheCache(t *testing.T) {
	for _, readers := range []int{7, 20} {
		synctest.Test(t, func(t *testing.T) {
			p, c := policy(), New(Config{Bytes: 2 * slabShare * slabBytes})
			defer c.Close()
			var slow []Body
			last := (*pages)(nil)
			c.churn(t, p, func(_ int, b Body) {
				if b.at != nil && b.at.pages.slab != nil && b.at.pages != last && len(slow) < readers { // one each
					last, slow = b.at.pages, append(slow, b)
					return
				}
				b.Close()
			})
			synctest.Wait()
			if len(slow) != readers {
				t.Fatalf("%d slabs are read", len(slow))
			}
			refused := c.counts.refused.Load()
			c.churn(t, p, func(_ int, b Body) { b.Close() })
			if n := c.counts.refused.Load() - refused; n > 0 {
				t.Errorf("with %d readers %d were refused: of %d bytes %d are counted, %d of waste", readers, n, c.limit, c.bytes.Load(), c.slabs.waste.Load())
			}
			kept := int64(c.stored.WeightedSize())
			if least := c.mostKept() - int64(readers+2)*c.slabs.size; kept < least {
				t.Errorf("with %d readers %d bytes are kept, want %d at least", readers, kept, least)
			}
			t.Logf("with %d readers %d bytes of %d are kept, %d are waste, in %d slabs", readers, kept, c.mostKept(), c.slabs.waste.Load(), c.slabs.count())
			c.countsRight(t)
			for _, b := range slow {
				if !bytes.Equal(b.memory, patterned(1, 100<<10)) {
					t.Error("a slow reader sees another body")
				}
				b.Close()
			}
			synctest.Wait()
			if most := c.stored.GetMaximum(); most != uint64(c.mostKept()) || c.slabs.less.Load() != 0 {
				t.Errorf("when they have left %d bytes may be kept, want %d", most, c.mostKept())
			}
			c.countsRight(t)
		})
	}
}
