//go:build linux

package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// maxBody bounds what the origin is asked for.
const maxBody = 16 << 20

// body is what an origin has under /N: N bytes that look like text and are the same in each run.
func body(n int) []byte {
	const line = "The nearest place that can serve it is the one that should. "
	return []byte(strings.Repeat(line, n/len(line)+1)[:n])
}

// origin is where caches get from what they keep. It counts how often it is asked.
type origin struct {
	listener net.Listener
	server   *http.Server
	served   sync.WaitGroup
	count    atomic.Int64
	small    []byte // a body of 1 KiB: rows that fill caches ask for a million
}

func openOrigin() (*origin, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("open the origin: %w", err)
	}
	o := &origin{listener: l, small: body(1 << 10)}
	o.server = &http.Server{Handler: o, ReadHeaderTimeout: 10 * time.Second}
	o.served.Go(func() { o.server.Serve(l) })
	return o, nil
}

func (o *origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	o.count.Add(1)
	size, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/") // /N, /N/1, /N/2: as many objects of a size as are wanted
	n, err := strconv.Atoi(size)
	if err != nil || n < 0 || n > maxBody {
		http.NotFound(w, r)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/plain")
	h.Set("Content-Length", strconv.Itoa(n))
	h.Set("Cache-Control", "public, max-age=86400")
	h.Set("Etag", `"`+strconv.Itoa(n)+`"`)
	h.Set("Last-Modified", "Mon, 02 Nov 2026 00:00:00 GMT")
	if n == len(o.small) {
		w.Write(o.small)
		return
	}
	w.Write(body(n))
}

func (o *origin) asked() int64    { return o.count.Load() }
func (o *origin) address() string { return o.listener.Addr().String() }

func (o *origin) close() {
	o.server.Close()
	o.served.Wait()
}

// openPlain starts the fastest origin there is, on the load's cores: the loop, which every row finds alike on every machine.
func (r *run) openPlain(ctx context.Context) error {
	s := r.stage
	s.Dir = filepath.Join(r.dir, "plain")
	if err := os.Mkdir(s.Dir, 0o755); err != nil {
		return err
	}
	port, err := freePort(s.Host)
	if err != nil {
		return err
	}
	s.Plain = net.JoinHostPort(s.Host, strconv.Itoa(port))
	if r.plain, err = s.startOn(r.Loads, nil, s.Program, "bench", "loop", s.Plain, "1024"); err != nil {
		return err
	}
	r.stage.Plain = s.Plain
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	for {
		_, err := get(ctx, getting{address: s.Plain, url: "http://" + Name + "/1024", size: 1024})
		if err == nil {
			return nil
		}
		if failed := r.plain.Failed(); failed != nil {
			return failed
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(again):
		}
	}
}
