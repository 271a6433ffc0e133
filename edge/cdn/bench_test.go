package cdn

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// discard is a ResponseWriter that keeps nothing.
type discard struct{ header http.Header }

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) WriteHeader(int)             {}
func (d *discard) Write(b []byte) (int, error) { return len(b), nil }

// filled is a plane that keeps a response of so many bytes for www.test/.
func filled(b *testing.B, size int, lines ...string) *Plane {
	body := strings.Repeat("x", size)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	origin := &http.Server{Handler: says(0, body, append(lines, "Cache-Control: max-age=86400", "Content-Type: text/css", `Etag: "1"`, "Last-Modified: Mon, 02 Nov 2026 00:00:00 GMT", "Server: nginx")...)}
	var served sync.WaitGroup
	served.Go(func() { origin.Serve(l) })
	p := New(Config{CacheBytes: 64 << 20, POP: "icn1", Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, l.Addr().String())
	}})
	b.Cleanup(func() {
		p.Close()
		origin.Close()
		served.Wait()
	})
	if err := p.Apply(build(b, site(""))); err != nil {
		b.Fatal(err)
	}
	if got := record(p, "GET", "http://www.test/", nil); got.StatusCode != 200 {
		b.Fatal(got.Status)
	}
	return p
}

func request(b *testing.B) *http.Request {
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader("GET / HTTP/1.1\r\nHost: www.test\r\nUser-Agent: curl/8\r\nAccept: */*\r\nAccept-Encoding: gzip, br\r\nConnection: keep-alive\r\n\r\n")))
	if err != nil {
		b.Fatal(err)
	}
	r.RemoteAddr = "203.0.113.9:1234"
	return r
}

func BenchmarkHit(b *testing.B) {
	p := filled(b, 1<<10)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		r := request(b)
		w := &discard{http.Header{}}
		for pb.Next() {
			clear(w.header)
			p.ServeHTTP(w, r)
		}
	})
	if w := record(p, "GET", "http://www.test/", nil); w.Header.Get("X-Cache") != "Hit from perigee" {
		b.Fatal(w.Header)
	}
}

func BenchmarkHitThroughASocket(b *testing.B) {
	for _, size := range []int{1 << 10, 64 << 10} {
		b.Run(fmt.Sprintf("%dKB", size>>10), func(b *testing.B) {
			p := filled(b, size)
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			server := &http.Server{Handler: p}
			var served sync.WaitGroup
			served.Go(func() { server.Serve(l) })
			defer served.Wait()
			defer server.Close()
			b.SetBytes(int64(size))
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				conn, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					b.Error(err)
					return
				}
				defer conn.Close()
				in := bufio.NewReaderSize(conn, 64<<10)
				ask := []byte("GET / HTTP/1.1\r\nHost: www.test\r\nUser-Agent: bench\r\nAccept-Encoding: gzip, br\r\n\r\n")
				for pb.Next() {
					conn.Write(ask)
					left := -1
					for { // to the end of the header
						line, err := in.ReadSlice('\n')
						if err != nil {
							b.Error(err)
							return
						}
						if len(line) == 2 {
							break
						}
						if n, found := bytes.CutPrefix(line, []byte("Content-Length: ")); found {
							left, _ = strconv.Atoi(string(n[:len(n)-2]))
						}
					}
					if left != size {
						b.Errorf("a body of %d bytes", left)
						return
					}
					if _, err := in.Discard(left); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

func BenchmarkRoute(b *testing.B) {
	t := table(b, distribution("d", "www.test", toWeb+`
cacheBehaviors:
  - {pathPattern: "images/*.jpg", targetOrigin: web}
  - {pathPattern: "/api/*", targetOrigin: web}
  - {pathPattern: "*.gif", targetOrigin: web}
`))
	q := Request{Method: "GET", Host: "www.test", Path: "/static/app.css"}
	b.ReportAllocs()
	for b.Loop() {
		t.Route(q, nil)
	}
}
