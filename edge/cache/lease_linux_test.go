package cache

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/edge/http1"
)

// sipped reads the rest of a lease, in pieces, and says how much came. An error is that it was cut short.
func sipped(x http1.Lease, from int64, body []byte) (int64, error) {
	b := make([]byte, 10_000)
	for at := from; ; {
		n, err := x.ReadAt(b, at)
		if !bytes.Equal(b[:n], body[at:at+int64(n)]) {
			return at, fmt.Errorf("what comes from %d on is another's", at)
		}
		switch at += int64(n); err {
		case nil:
		case io.EOF:
			if at != int64(len(body)) {
				return at, fmt.Errorf("of %d bytes it ends after %d", len(body), at)
			}
			return at, nil
		default:
			return at, err
		}
	}
}

// A hundred viewers who read a byte a minute, each of what is in another slab, take nothing from the cache: it keeps as much as without them, nobody
// is refused, and what they read is theirs.
func TestWhoReadsSlowlyTakesNothingFromTheCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const viewers, sipping = 100, time.Minute
		copies := func(i int) bool { return i%2 == 0 } // the others are sent a file
		p, c := policy(), New(Config{Bytes: 2 * slabShare * slabBytes})
		defer c.Close()
		body := patterned(1, 100<<10)
		var slow []http1.Lease
		last := (*pages)(nil)
		for len(slow) < viewers {
			c.churn(t, p, func(_ int, b Body) {
				if b.at == nil || b.at.pages.slab == nil || b.at.pages == last || len(slow) == viewers {
					b.Close()
					return
				}
				last = b.at.pages
				x := b.Lent().Lease(0, netip.Addr{})
				slow = append(slow, x)
				if copies(len(slow)) {
					if n, err := x.ReadAt(make([]byte, 1), 0); n != 1 || err != nil {
						t.Error(err)
					}
				} else if _, file, ok := x.Hold(0); !file || !ok {
					t.Error("it is no file")
				} else {
					x.Release(1)
				}
				time.Sleep(patience) // the next comes
			})
		}
		for i := range int64(2) {
			time.Sleep(sipping)
			for viewer, x := range slow {
				if copies(viewer + 1) {
					x.ReadAt(make([]byte, 1), i+1)
				} else if rest, file, ok := x.Hold(i + 1); file || !ok || !bytes.Equal(rest, body[i+1:]) {
					t.Fatal("what is left is not there")
				} else {
					x.Release(i + 2)
				}
			}
			c.churn(t, p, func(_ int, b Body) { b.Close() })
			synctest.Wait()
			if kept := int64(c.stored.WeightedSize()); kept < c.mostKept()-c.slabs.size || c.slabs.less.Load() != 0 || c.counts.refused.Load() != 0 {
				t.Fatalf("%d bytes of %d are kept, %d less than may be, %d were refused", kept, c.mostKept(), c.slabs.less.Load(), c.counts.refused.Load())
			}
			if now := c.Counters(); now["cache_slow_readers"] != viewers || now["cache_slow_reader_bytes"] > viewers*100<<10 || now["cache_slow_readers_ended_total"] != 0 {
				t.Fatalf("%d are slow, for %d bytes, %d were ended", now["cache_slow_readers"], now["cache_slow_reader_bytes"], now["cache_slow_readers_ended_total"])
			}
			c.countsRight(t)
		}
		for _, x := range slow {
			if _, err := sipped(x, 3, body); err != nil {
				t.Error(err)
			}
			x.Close()
		}
		if n, held := c.readers.counted(); n != 0 || held != 0 {
			t.Errorf("with none left there are %d, for %d bytes", n, held)
		}
	})
}

// What only slow readers need is bounded, wherever it is: who began first loses it, and sees that he does. What the cache keeps anyway they may read for
// as long as they like.
func TestWhatOnlySlowReadersNeedIsBounded(t *testing.T) {
	for _, c := range []struct {
		name   string
		size   int
		open   func(*Cache, *Object) (Body, error)
		copied bool // once slow
	}{
		{"in slabs", 100 << 10, (*Cache).OpenFile, true},
		{"in pages of their own", 200 << 10, (*Cache).OpenFile, false},
		{"on the heap", 100 << 10, func(_ *Cache, o *Object) (Body, error) { return o.Open() }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, cache := policy(), New(Config{Bytes: 2 * slabShare * slabBytes})
				defer cache.Close()
				most := int(cache.readers.most) / c.size
				viewers := most + 10
				var slow []http1.Lease
				var bodies [][]byte
				for i := range viewers {
					path, body := fmt.Sprint("/", i), patterned(i, c.size)
					cache.keep(p, path, bytes.Clone(body))
					b, err := c.open(cache, cache.object(p, path))
					if err != nil {
						t.Fatal(err)
					}
					slow, bodies = append(slow, b.Lent().Lease(0, netip.Addr{})), append(bodies, body)
					time.Sleep(time.Millisecond)
				}
				time.Sleep(2 * patience)
				ended := uint64(0)
				if c.copied {
					ended = uint64(viewers - most)
				}
				if now := cache.Counters(); now["cache_slow_readers_ended_total"] != ended || now["cache_slow_readers"] != uint64(viewers)-ended {
					t.Errorf("while they are kept %d were ended, %d are left", now["cache_slow_readers_ended_total"], now["cache_slow_readers"])
				}
				cache.mu.Lock()
				cache.stored.InvalidateAll()
				cache.mu.Unlock()
				synctest.Wait()
				if now := cache.Counters(); now["cache_slow_readers_ended_total"] != uint64(viewers-most) || now["cache_slow_reader_bytes"] != uint64(most*c.size) {
					t.Errorf("%d were ended, want %d; %d bytes are held", now["cache_slow_readers_ended_total"], viewers-most, now["cache_slow_reader_bytes"])
				}
				for i, x := range slow {
					_, err := sipped(x, 0, bodies[i])
					if lost := i < viewers-most; lost != (err == ErrLost) || !lost && err != nil {
						t.Errorf("viewer %d of %d: %v", i, viewers, err)
					}
					if _, _, ok := x.Hold(int64(c.size)); ok {
						x.Release(int64(c.size))
					} else if i >= viewers-most {
						t.Errorf("viewer %d has lost his end", i)
					}
					x.Close()
				}
				synctest.Wait()
				n, held := cache.readers.counted()
				if paged := cache.paged.Load(); n != 0 || held != 0 || paged > 1 { // a slab is open
					t.Errorf("with none left there are %d, for %d bytes, and %d files", n, held, paged)
				}
			})
		})
	}
}

// Who has much read slowly at a time loses of that before anybody else does, however long others have read.
func TestASlowReaderLosesNothingForWhatAnotherClientReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 100 << 10
		p, c := policy(), New(Config{Bytes: 2 * slabShare * slabBytes})
		defer c.Close()
		lease := func(path string, client netip.Addr) http1.Lease {
			c.keep(p, path, patterned(1, size))
			b, err := c.OpenFile(c.object(p, path))
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
			return b.Lent().Lease(0, client)
		}
		one, other := clientOf("192.0.2.1:1000"), clientOf("[2001:db8::1]:1000")
		if other != clientOf("[2001:db8::2]:2000") || other == clientOf("[2001:db8:0:1::1]:1") || clientOf("127.0.0.1:1").IsValid() || clientOf("").IsValid() {
			t.Error("clients are not told apart by their networks")
		}
		early := []http1.Lease{lease("/a", one), lease("/b", netip.Addr{})}
		read := lease("/read", one)
		if _, err := read.ReadAt(make([]byte, size), 0); err != nil { // and is not closed yet, for who reads it waits
			t.Fatal(err)
		}
		many := int(c.readers.most) / size
		var late []http1.Lease
		for i := range many + 5 {
			late = append(late, lease(fmt.Sprint("/", i), other))
		}
		time.Sleep(2 * patience)
		for _, x := range early {
			if _, err := sipped(x, 0, patterned(1, size)); err != nil {
				t.Error(err)
			}
			x.Close()
		}
		read.Close()
		ended := int(c.readers.ended.Load())
		if ended != len(late)+len(early)-many {
			t.Errorf("%d were ended", ended)
		}
		for i, x := range late {
			if _, err := sipped(x, 0, patterned(1, size)); (err == ErrLost) != (i < ended) {
				t.Errorf("of %d that were ended viewer %d sees %v", ended, i, err)
			}
			x.Close()
		}
		if n, held := c.readers.counted(); n != 0 || held != 0 || len(c.readers.each) != 0 || c.readers.over != 0 {
			t.Errorf("with none left there are %d, for %d bytes: %v, %d above their share", n, held, c.readers.each, c.readers.over)
		}
	})
}

func TestClientsAboveTheirShareAreCounted(t *testing.T) {
	r := slowReaders{most: 80, each: map[netip.Addr]int64{}}
	random, reads := rand.New(rand.NewPCG(1, 2)), [4]int64{}
	for range 2000 {
		i := random.IntN(len(reads))
		more := random.Int64N(reads[i]+8) - reads[i]
		reads[i] += more
		r.count(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), more)
		over := 0
		for _, n := range reads {
			if n > 10 {
				over++
			}
		}
		if r.over != over {
			t.Fatalf("%d are above their share in %v, not %d", over, reads, r.over)
		}
	}
}

// Many read at all speeds what others replace and purge meanwhile, by all ways: each has what the object that he found has, or sees that he does not.
func TestSlowReadersSeeTheirOwnToTheEnd(t *testing.T) {
	const readers, rounds, paths = 24, 30, 50
	synctest.Test(t, func(t *testing.T) {
		p, c := policy(), slabbed()
		defer c.Close()
		c.readers.most = 1 << 20
		var reading sync.WaitGroup
		for g := range readers {
			reading.Go(func() {
				r := rand.New(rand.NewPCG(5, uint64(g)))
				for range rounds {
					i := r.IntN(paths)
					path, body := fmt.Sprint("/", i), patterned(i, largeBytes+i*9_001)
					o := c.object(p, path)
					if o == nil || r.IntN(3) == 0 {
						c.keep(p, path, bytes.Clone(body))
						continue
					}
					var b Body
					var err error
					if r.IntN(3) == 0 {
						b, err = o.Open()
					} else {
						b, err = c.OpenFile(o)
					}
					if err != nil {
						continue
					}
					pause := time.Duration(r.IntN(int(patience)))
					if r.IntN(2) == 0 { // as a handler reads
						for at := int64(0); at < int64(len(body)); time.Sleep(pause) {
							piece, err := b.Piece(at, int64(len(body))-at, func() []byte { return make([]byte, BodyPiece) })
							if err == ErrLost {
								break
							}
							if err != nil || !bytes.Equal(piece, body[at:at+int64(len(piece))]) {
								t.Errorf("from %d on it is another body: %v", at, err)
								break
							}
							at += int64(len(piece))
						}
						b.Close()
						continue
					}
					f, offset, _, _ := b.Pages()
					x := b.Lent().Lease(0, netip.Addr{})
					for at := int64(0); at < int64(len(body)); time.Sleep(pause) {
						rest, inFile, ok := x.Hold(at)
						if !ok {
							break
						}
						piece := make([]byte, min(20_000, len(body)-int(at)))
						if inFile && f == nil { // it was on the heap when it was opened, and has moved: it is read as it was
							x.Release(at)
							if n, err := x.ReadAt(piece, at); n != len(piece) || err != nil && err != io.EOF {
								break
							}
						} else if inFile {
							_, err = f.ReadAt(piece, offset+at)
							x.Release(at + int64(len(piece)))
						} else {
							copy(piece, rest)
							x.Release(at + int64(len(piece)))
						}
						if err != nil || !bytes.Equal(piece, body[at:at+int64(len(piece))]) {
							t.Errorf("from %d on it is another body: %v", at, err)
						}
						at += int64(len(piece))
					}
					x.Close()
				}
			})
		}
		reading.Wait()
		time.Sleep(2 * patience)
		if n, held := c.readers.counted(); n != 0 || held != 0 {
			t.Errorf("with none left there are %d, for %d bytes", n, held)
		}
		if c.readers.ended.Load() == 0 {
			t.Error("nobody was ended")
		}
		c.countsRight(t)
	})
}
