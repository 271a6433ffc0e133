package demo

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"sync"
	"time"
)

//go:embed site
var site embed.FS

// Site is the small site that the demo serves when it is given none.
func Site() fs.FS {
	sub, err := fs.Sub(site, "site")
	if err != nil {
		panic(err) // the folder is embedded above
	}
	return sub
}

// Target is one server of the demo: an HTTP server with a site, a TCP service that says where it runs and then echoes, and a UDP service
// that does so with each datagram. It is the same code as a process (perigee target) and in a World.
type Target struct {
	Name   string
	Region string
	Site   fs.FS

	mu       sync.Mutex
	requests map[string]int
}

// Requests is how often a path was asked for, health checks apart.
func (t *Target) Requests(path string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.requests[path]
}

// Paths of the demo's HTTP service besides its site.
const (
	HealthPath = "/healthz"  // 200 as long as the target runs
	RegionPath = "/region"   // says region and target; no-store
	CountPath  = "/requests" // says how often the path in ?path= was asked for
)

// maxCounted bounds the paths that Requests counts; those beyond are served and not counted.
const maxCounted = 10_000

// ServeHTTP serves the site with Cache-Control: max-age=60 and the target's name.
func (t *Target) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Target", t.Name)
	switch r.URL.Path {
	case HealthPath:
		io.WriteString(w, "ok\n")
		return
	case RegionPath:
		w.Header().Set("Cache-Control", "no-store")
		fmt.Fprintf(w, "%s %s\n", t.Region, t.Name)
		return
	case CountPath:
		w.Header().Set("Cache-Control", "no-store")
		fmt.Fprintf(w, "%d\n", t.Requests(r.URL.Query().Get("path")))
		return
	}
	t.mu.Lock()
	if t.requests == nil {
		t.requests = map[string]int{}
	}
	if _, known := t.requests[r.URL.Path]; known || len(t.requests) < maxCounted {
		t.requests[r.URL.Path]++
	}
	t.mu.Unlock()
	w.Header().Set("Cache-Control", "public, max-age=60")
	http.FileServerFS(t.Site).ServeHTTP(w, r)
}

// maxFlows bounds the TCP connections one target serves at once; those beyond are closed.
const maxFlows = 4096

// Serve runs the target on its listeners and its socket until the context ends, and closes them.
func (t *Target) Serve(ctx context.Context, web, tcp net.Listener, udp net.PacketConn) error {
	server := &http.Server{Handler: t, ReadHeaderTimeout: 10 * time.Second}
	var wg sync.WaitGroup
	flows, stop := context.WithCancel(ctx)
	slots := make(chan struct{}, maxFlows)
	wg.Go(func() {
		for {
			conn, err := tcp.Accept()
			if err != nil {
				return
			}
			select {
			case slots <- struct{}{}:
			default:
				conn.Close()
				continue
			}
			wg.Go(func() {
				defer func() { <-slots }()
				t.echo(flows, conn)
			})
		}
	})
	wg.Go(func() { t.answer(udp) })
	wg.Go(func() {
		<-flows.Done()
		tcp.Close()
		udp.Close()
		server.Close()
	})
	err := server.Serve(web)
	stop()
	wg.Wait()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// echo greets with region and name, then sends back what it is sent until the other end is done.
func (t *Target) echo(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err := fmt.Fprintf(conn, "%s %s\n", t.Region, t.Name); err != nil {
		return
	}
	io.Copy(conn, conn)
}

// answer sends each datagram back after region and name, until the socket is closed.
func (t *Target) answer(conn net.PacketConn) {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		conn.WriteTo(fmt.Appendf(nil, "%s %s\n%s", t.Region, t.Name, buf[:n]), from)
	}
}
