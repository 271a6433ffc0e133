package cache

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
)

// patterned is a body that no other seed has.
func patterned(seed, size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte((i + seed) * 7 >> 2)
	}
	return b
}

func (c *Cache) object(p *Policy, path string) *Object {
	e, ok := c.get(p.Key(Target{Distribution: "shop", Path: path, Host: "www.example.com"}, nil).URI)
	if !ok {
		return nil
	}
	return e.object
}

func TestALargeBodyIsAFileOnceItIsSent(t *testing.T) {
	p := policy()
	c := New(Config{Bytes: 64 << 20})
	defer c.Close()
	for seed, size := range []int{largeBytes, 100_000, hugePage, 2*hugePage + 5000} {
		path, body := fmt.Sprint("/", size), patterned(seed, size)
		if !c.keep(p, path, bytes.Clone(body)) {
			t.Fatal("no room")
		}
		o := c.object(p, path)
		before, err := o.Open()
		if err != nil {
			t.Fatal(err)
		}
		if _, _, _, ok := before.Pages(); ok || !o.Large() {
			t.Errorf("%d bytes are a file before anybody was sent one", size)
		}
		opened, err := c.OpenFile(o)
		if err != nil {
			t.Fatal(err)
		}
		f, _, done, ok := opened.Pages()
		memory := opened.memory
		if !ok {
			t.Fatalf("%d bytes are no file", size)
		}
		sent, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<30))
		if err != nil || !bytes.Equal(sent, body) || !bytes.Equal(memory, body) || !bytes.Equal(before.memory, body) || o.Size() != int64(size) {
			t.Errorf("of %d bytes there are %d, mapped %d: %v", size, len(sent), len(memory), err)
		}
		if n, err := f.WriteAt([]byte("other"), 0); n > 0 || err == nil {
			t.Error("it can be written")
		}
		done()
		piece, err := before.Piece(100, 1000, func() []byte { return make([]byte, BodyPiece) })
		if err != nil || !bytes.Equal(piece, body[100:1100]) {
			t.Errorf("who has read since before reads something else: %v", err)
		}
		before.Close()
	}
	if now := c.Counters(); now["cache_paged"] != 4 || now["cache_unpaged_total"] != 0 {
		t.Errorf("%d are paged", now["cache_paged"])
	}
}

func TestPagesStayForWhoReadsThemAndNoLonger(t *testing.T) {
	p, body := policy(), patterned(1, 100_000)
	c := New(Config{Bytes: 16 << 20})
	defer c.Close()
	c.keep(p, "/", bytes.Clone(body))
	o := c.object(p, "/")
	opened, err := c.OpenFile(o)
	if err != nil {
		t.Fatal(err)
	}
	f, _, done, _ := opened.Pages()
	memory := opened.memory
	c.mu.Lock()
	c.stored.InvalidateAll()
	c.mu.Unlock()
	if !bytes.Equal(memory, body) || c.paged.Load() != 1 {
		t.Error("who reads it has lost it")
	}
	done()
	if _, err := f.Stat(); err == nil || c.paged.Load() != 0 {
		t.Errorf("it is open still; %d are paged", c.paged.Load())
	}
	if _, err := o.Open(); err != ErrLost {
		t.Errorf("it is opened once more: %v", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.put("slot", &entry{object: o}, 0) || c.bytes.Load() != 0 {
		t.Errorf("it is kept once more; %d bytes are counted", c.bytes.Load())
	}
}

func TestNoMoreBodiesAreFilesThanMayBe(t *testing.T) {
	p := policy()
	c := New(Config{Bytes: 16 << 20})
	defer c.Close()
	c.maxPages = 3
	for i := range 5 {
		path, body := fmt.Sprint("/", i), patterned(i, largeBytes)
		c.keep(p, path, body)
		for range 2 {
			opened, err := c.OpenFile(c.object(p, path))
			if err != nil {
				t.Fatal(err)
			}
			if _, _, _, ok := opened.Pages(); ok != (i < 3) || !bytes.Equal(opened.memory, body) {
				t.Errorf("body %d: a file is %v", i, ok)
			}
			opened.Close()
		}
	}
	if now := c.Counters(); now["cache_paged"] != 3 || now["cache_unpaged_total"] != 2 {
		t.Errorf("%d are paged, %d are not", now["cache_paged"], now["cache_unpaged_total"])
	}
}

// TestAReaderNeverSeesAnotherBody: many read and send what is replaced and evicted all the while, and in the end no file is left open.
func TestAReaderNeverSeesAnotherBody(t *testing.T) {
	const paths, readers, rounds = 24, 8, 300
	p := policy()
	c := New(Config{Bytes: 4 << 20})
	defer c.Close()
	bodies := make([][]byte, paths)
	for i := range bodies {
		bodies[i] = patterned(i*31, largeBytes+i*8192)
	}
	files := func() int {
		open, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(open)
	}
	before := files()
	var reading sync.WaitGroup
	for g := range readers {
		reading.Go(func() {
			r := rand.New(rand.NewPCG(7, uint64(g)))
			for range rounds {
				i := r.IntN(paths)
				path := fmt.Sprint("/", i)
				o := c.object(p, path)
				if o == nil || r.IntN(8) == 0 {
					c.keep(p, path, bytes.Clone(bodies[i]))
					continue
				}
				opened, err := c.OpenFile(o)
				if err == ErrLost {
					continue
				}
				seen := opened.memory
				if f, _, done, ok := opened.Pages(); ok {
					sent := make([]byte, len(seen))
					if _, err := f.ReadAt(sent, 0); err != nil || !bytes.Equal(sent, bodies[i]) {
						t.Errorf("body %d is sent as another: %v", i, err)
					}
					defer done()
				} else {
					defer opened.Close()
				}
				if !bytes.Equal(seen, bodies[i]) {
					t.Errorf("body %d is another", i)
				}
			}
		})
	}
	reading.Wait()
	if c.bytes.Load() > 4<<20 || c.paged.Load() > c.bytes.Load()/largeBytes+maxUnmapping+1 {
		t.Errorf("%d bytes, %d files", c.bytes.Load(), c.paged.Load())
	}
	c.mu.Lock()
	c.stored.InvalidateAll()
	c.mu.Unlock()
	c.Close() // and with it who gives them back
	if now := c.paged.Load(); now != 0 || files() > before {
		t.Errorf("%d are paged, %d files are open, %d were", now, files(), before)
	}
}

func BenchmarkMove(b *testing.B) {
	body := patterned(1, 100<<10)
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		p, err := newPages(body)
		if err != nil {
			b.Fatal(err)
		}
		p.free()
	}
}
