package cache

import (
	"container/list"
	"context"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"sort"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// traced is a request of a trace.
type traced struct {
	key  string
	size int
}

// zipf draws numbers below n, of which number i comes as often as its rank to the power of s says.
func zipf(r *rand.Rand, s float64, n int) func() int {
	sums, all := make([]float64, n), 0.0
	for i := range sums {
		all += math.Pow(float64(i+1), -s)
		sums[i] = all
	}
	return func() int { return sort.SearchFloat64s(sums, r.Float64()*all) }
}

const tracedBytes = 5 << 20

// leastRecent is how many of 1000 requests are hits, in the second half of a trace, where who was asked for least recently goes.
func leastRecent(trace []traced) int {
	room, order, at, hits := int64(tracedBytes-tracedBytes/8), list.New(), map[string]*list.Element{}, 0
	for i, q := range trace {
		if e := at[q.key]; e != nil {
			order.MoveToFront(e)
			if i >= len(trace)/2 {
				hits++
			}
			continue
		}
		at[q.key] = order.PushFront(q)
		for room -= int64(q.size) + 2*entryOverhead; room < 0; {
			gone := order.Remove(order.Back()).(traced)
			delete(at, gone.key)
			room += int64(gone.size) + 2*entryOverhead
		}
	}
	return hits * 1000 / (len(trace) - len(trace)/2)
}

// ours is the same of a cache that keeps all that it may, or what it admits.
func ours(trace []traced, bySize bool) (hits int) {
	p, c, body := policy(), New(Config{Bytes: tracedBytes}), make([]byte, tracedBytes)
	defer c.Close()
	for i, q := range trace {
		path := "/" + q.key
		if c.has(p, path) {
			if i >= len(trace)/2 {
				hits++
			}
			continue
		}
		c.mu.Lock()
		keep := !bySize || c.admits(path, int64(q.size))
		c.mu.Unlock()
		if keep {
			c.keep(p, path, body[:q.size:q.size])
		}
	}
	return hits * 1000 / (len(trace) - len(trace)/2)
}

// A cache is asked for small bodies by Zipf's law, among them others: never less is a hit than where who was asked for least recently goes, nor much less
// than where size is no matter, and more where large ones are asked for a few times each.
func TestLargeBodiesAreAdmittedByTheirSize(t *testing.T) {
	const requests, small, large = 40_000, 1 << 10, 300 << 10
	for _, c := range []struct {
		name    string
		besides func(i int) (q traced, ok bool) // after request i
		better  bool
	}{
		{"alone", func(int) (q traced, ok bool) { return q, false }, false},
		{"small ones once", func(i int) (traced, bool) { return traced{fmt.Sprint("once", i), small}, true }, false},
		{"large ones once", func(i int) (traced, bool) { return traced{fmt.Sprint("large", i), large}, i%100 == 0 }, false},
		{"large ones thrice", func(i int) (traced, bool) {
			n := i / 50
			return traced{fmt.Sprint("large", n/30*10+n%10), large}, i%50 == 0
		}, true},
	} {
		r := rand.New(rand.NewPCG(1, 2))
		next := zipf(r, 0.9, 20_000)
		var trace []traced
		for i := range requests {
			trace = append(trace, traced{fmt.Sprint(next()), small})
			if q, ok := c.besides(i); ok {
				trace = append(trace, q)
			}
		}
		recent, unaware, aware := leastRecent(trace), ours(trace, false), ours(trace, true)
		t.Logf("%s: of 1000 are hits: %d where the least recent goes, %d where size is no matter, %d", c.name, recent, unaware, aware)
		if aware < recent || aware < unaware*9/10 || c.better && aware < unaware*21/20 {
			t.Errorf("%s: of 1000 are hits: %d where the least recent goes, %d where size is no matter, %d", c.name, recent, unaware, aware)
		}
	}
}

// Where there is room all is kept the first time. In a full cache a large body is kept once it was asked for often enough, and at once if several want
// it, or if it takes the place of another.
func TestALargeBodyIsKeptOnceItWasAskedForOftenEnough(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		unit := int(w.limit / admitShare)
		size := 0
		w.answer = func(context.Context, http.Header) (*http.Response, error) {
			time.Sleep(time.Millisecond)
			return response(200, int64(size), strings.NewReader(strings.Repeat("x", size)), "Cache-Control: max-age=60"), nil
		}
		get := func(path string) {
			want := w.want(path)
			ask, err := w.Ask(t.Context(), want, w.Find(want.Key, w.policy, want.Header, time.Now(), nil))
			if err != nil {
				t.Error(err)
				return
			}
			defer ask.Close()
			if _, err := ask.Wait(); err != nil {
				t.Error(err)
			}
			for err == nil {
				_, err = ask.Next()
			}
		}
		passed := func(path string, units, times int) uint64 {
			before := w.admission.passed.Load()
			size = units * unit
			for range times {
				get(path)
				synctest.Wait()
			}
			return w.admission.passed.Load() - before
		}
		if n := passed("/first", 8, 1); n != 0 {
			t.Error("it is not kept where there is room")
		}
		for i := range 2 * admitShare {
			passed(fmt.Sprint("/fill", i), 1, 1)
		}
		if n := w.admission.passed.Load(); n != 0 {
			t.Errorf("%d small ones were passed over", n)
		}
		for _, c := range []struct{ units, more int }{{2, 1}, {4, 2}, {8, 3}} {
			if n := passed(fmt.Sprint("/large", c.units), c.units, c.more+1); n != uint64(c.more) {
				t.Errorf("a body of %d units was passed over %d times, want %d", c.units, n, c.more)
			}
		}
		before := w.admission.passed.Load()
		size = 8 * unit
		var both sync.WaitGroup
		for range 2 {
			both.Go(func() { get("/wanted") })
		}
		if both.Wait(); w.admission.passed.Load() != before {
			t.Error("what two want at a time was passed over")
		}
		// What is said of it is so: who asks alone is told, with the head, whether it will be kept, and who joins that it will.
		told := func(path string, r Result, stored bool) {
			if why := map[bool]string{false: unadmitted}[stored]; r.Stored != stored || r.WhyNot != why {
				t.Errorf("%s: stored: %v, %q, want %v", path, r.Stored, r.WhyNot, stored)
			}
		}
		begin := func(path string) (*Ask, Result) {
			ask, err := w.Ask(t.Context(), w.want(path), w.find(w.want(path)))
			if err != nil {
				t.Fatal(err)
			}
			r, err := ask.Wait()
			if err != nil {
				t.Fatal(err)
			}
			return ask, r
		}
		readers := []*io.PipeWriter{}
		w.answer = func(context.Context, http.Header) (*http.Response, error) {
			r, pipe := io.Pipe()
			readers = append(readers, pipe)
			return response(200, int64(size), r, "Cache-Control: max-age=60"), nil
		}
		size = 4 * unit
		come := func() {
			io.WriteString(readers[len(readers)-1], strings.Repeat("x", size))
			readers[len(readers)-1].Close()
			synctest.Wait()
		}
		for i := range 3 {
			before := w.counts.stored.Load()
			ask, r := begin("/told")
			told("/told", r, i == 2)
			come()
			ask.Close()
			if kept := w.counts.stored.Load() != before; kept != (i == 2) {
				t.Errorf("/told, asked for the %d. time, is put: %v", i+1, kept)
			}
		}
		stored := w.counts.stored.Load()
		first, one := begin("/joined")
		second, two := begin("/joined")
		told("/joined", one, false)
		told("/joined", two, true)
		come()
		first.Close()
		second.Close()
		if w.counts.stored.Load() != stored+1 {
			t.Error("/joined is not put")
		}
	})
}
