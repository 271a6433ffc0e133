//go:build linux

package procs

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/perigee-net/perigee/node/api"
)

const (
	cachedPages = 400      // of them, two thirds are small
	cacheMemory = 16 << 20 // what the pages take is more
	cacheDisk   = 10 * cacheMemory
	cacheKills  = 5
)

// pages is an origin of pages that say which version of the origin they are of.
type pages struct {
	version atomic.Int64
	asked   atomic.Int64
}

// page is what a page of a version is: its version, a space, and something that is like no other.
func page(version int64, path string) string {
	size := 1 << 10
	if n, _ := strconv.Atoi(path[strings.LastIndexByte(path, '/')+1:]); n%3 == 0 {
		size = 150 << 10
	}
	b := make([]byte, size)
	for i, x := 0, uint32(version)*31+uint32(len(path))+uint32(path[len(path)-1]); i < size; i++ {
		x = x*1664525 + 1013904223
		b[i] = 'a' + byte(x>>28)
	}
	return fmt.Sprintf("%d %s %s", version, path, b)
}

func (p *pages) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.asked.Add(1)
	w.Header().Set("Cache-Control", "max-age=86400")
	io.WriteString(w, page(p.version.Load(), r.URL.Path))
}

// A node that is killed under load, right after a purge is acknowledged, has its cache when it is back, whole, and nothing of what was
// purged. Its memory is bounded, whatever its disk holds.
func TestAKilledNodeHasItsCacheAndNothingThatWasPurged(t *testing.T) {
	t.Parallel()
	c := open(t)
	n := c.Add()
	n.Args = []string{"--cache-bytes", fmt.Sprint(cacheMemory), "--cache-disk-bytes", fmt.Sprint(cacheDisk)}
	ctx := within(t, comeUp+2*time.Minute)
	if err := c.Found(ctx, 1, 1); err != nil {
		t.Fatal(err)
	}
	from := &pages{}
	from.version.Store(1)
	l, err := net.Listen("tcp", netip.AddrPortFrom(c.Spare(0), 9000).String())
	if err != nil {
		t.Fatal(err)
	}
	origin := &http.Server{Handler: from}
	ended := make(chan struct{})
	go func() { defer close(ended); origin.Serve(l) }()
	t.Cleanup(func() { origin.Close(); <-ended })
	if err := n.Await(ctx, "takes the site", func(ctx context.Context, client *api.Client) error {
		_, err := client.Apply(ctx, api.ApplyRequest{ID: "site", Files: []api.File{{Name: "site.yaml", Data: fmt.Sprintf(site, "http://"+l.Addr().String())}}})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Timeout: patience, Transport: &http.Transport{MaxIdleConnsPerHost: 8}}
	defer client.CloseIdleConnections()
	get := func(path string) (version int64, hit bool, err error) {
		q, err := http.NewRequest(http.MethodGet, "http://"+n.HTTP()+path, nil)
		if err != nil {
			return 0, false, err
		}
		q.Host = "www.procs.test"
		res, err := client.Do(q)
		if err != nil {
			return 0, false, err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != http.StatusOK {
			return 0, false, fmt.Errorf("%s: %s, %w", path, res.Status, err)
		}
		if _, err := fmt.Sscan(string(body), &version); err != nil || string(body) != page(version, path) {
			t.Errorf("%s is not as the origin sent it: %d bytes, %.40q", path, len(body), body)
		}
		return version, strings.Contains(res.Header.Get("Cache-Status"), "; hit"), nil
	}
	path := func(i int) string { return fmt.Sprintf("/%s/%d", []string{"stay", "go"}[i%2], i) }
	all := func() (oldest int64, hits int) {
		oldest = from.version.Load()
		for i := range cachedPages {
			version, hit, err := get(path(i))
			if err != nil {
				t.Fatal(err)
			}
			if i%2 == 1 {
				oldest = min(oldest, version)
			}
			if hit {
				hits++
			}
		}
		return oldest, hits
	}
	if err := n.Await(ctx, "serves the site", func(context.Context, *api.Client) error { _, _, err := get(path(0)); return err }); err != nil {
		t.Fatal(err)
	}
	all()
	for kill := range cacheKills {
		stop, load, answers := make(chan struct{}), sync.WaitGroup{}, make(chan struct{})
		for range 3 {
			load.Go(func() {
				for {
					get(path(mrand.IntN(cachedPages))) // fails when it is killed
					select {
					case <-stop:
						return
					case answers <- struct{}{}:
					}
				}
			})
		}
		answered := func(n int) {
			for range n {
				<-answers
			}
		}
		answered(200)
		version := from.version.Add(1)
		res, err := n.Client().Purge(ctx, api.PurgeRequest{ID: rand.Text(), Distribution: "site", Paths: []string{"/go/*"}})
		if err != nil || res.Acks[0].Error != "" {
			t.Fatalf("%+v, %v", res, err)
		}
		answered(kill % 3 * 1000) // at once, or in the midst of the sweep, or after it
		n.Kill()
		close(stop)
		load.Wait()
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
		if err := n.Await(ctx, "serves again", func(context.Context, *api.Client) error { _, _, err := get("/other"); return err }); err != nil {
			t.Fatal(err)
		}
		oldest, hits := all()
		if oldest < version {
			t.Errorf("after kill %d a page of version %d is served, and version %d was purged", kill, oldest, version-1)
		}
		if hits < cachedPages/2*8/10 {
			t.Errorf("after kill %d %d of %d pages were kept, of which a half was purged", kill, hits, cachedPages)
		}
		_, peak, err := n.Memory()
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("after kill %d, %d pages of %d are hits; %d MiB of memory at most", kill, hits, cachedPages, peak>>20)
		if peak > cacheDisk {
			t.Errorf("it took %d MiB of memory", peak>>20)
		}
	}
}
