package front

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/perigee-net/perigee/edge/http1"
)

const request = "GET /1k HTTP/1.1\r\nHost: bench.example\r\nUser-Agent: bench/1\r\nAccept: */*\r\nAccept-Encoding: gzip, br\r\n\r\n"

// bare is a loop that reads and writes, and does nothing else: no server in Go can be faster.
func bare(response []byte) func(net.Conn) {
	return func(c net.Conn) {
		defer c.Close()
		b := make([]byte, 4<<10)
		for {
			if _, err := c.Read(b); err != nil {
				return
			}
			if _, err := c.Write(response); err != nil {
				return
			}
		}
	}
}

// processorTime is what this process has used.
func processorTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkHit is the hot path beside a bare loop and beside a handler, each through a socket, with the same client.
func BenchmarkHit(b *testing.B) {
	for _, size := range []int{1 << 10, 100 << 10} {
		body := make([]byte, size)
		quick := ready(body)
		var a http1.Response
		quick(nil, &a)
		whole := append(a.Head, body...)
		for _, door := range []struct {
			name string
			Door
		}{
			{"bare", Door{Conn: bare(whole)}},
			{"quick", Door{Quick: quick, Handler: http.NotFoundHandler()}},
			{"turn", Door{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				h := w.Header()
				h["X-Cache"], h["Age"], h["Content-Type"] = []string{"Hit from perigee"}, []string{"1"}, []string{"text/plain"}
				h["Content-Length"] = []string{strconv.Itoa(size)}
				w.Write(body)
			})}},
		} {
			b.Run(strconv.Itoa(size>>10)+"K/"+door.name, func(b *testing.B) {
				c, err := net.Dial("tcp", onLoopback(b, Config{}, door.Door)[0])
				if err != nil {
					b.Fatal(err)
				}
				defer c.Close()
				buf := make([]byte, 2*len(whole))
				ask := func() int {
					if _, err := io.WriteString(c, request); err != nil {
						b.Fatal(err)
					}
					n, err := io.ReadAtLeast(c, buf, size)
					for err == nil && n < size+100 { // the head may have come alone
						var m int
						m, err = c.Read(buf[n:])
						n += m
					}
					if err != nil {
						b.Fatal(err)
					}
					return n
				}
				want, asked := ask(), []byte(request)
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				spent := processorTime(b)
				for b.Loop() {
					if _, err := c.Write(asked); err != nil {
						b.Fatal(err)
					}
					if _, err := io.ReadFull(c, buf[:want]); err != nil {
						b.Fatal(err)
					}
				}
				spent = processorTime(b) - spent
				runtime.ReadMemStats(&after)
				b.ReportMetric(float64(spent)/float64(b.N), "cpu-ns/request") // of client and server
				b.ReportMetric(float64(after.Mallocs-before.Mallocs)/float64(b.N), "allocs/request")
			})
		}
	}
}

// BenchmarkIdle is what an idle connection costs that was served once, plain and over net/http before. The clients are
// sockets without anything of Go around them.
func BenchmarkIdle(b *testing.B) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		b.Fatal(err)
	}
	people := min(10_000, int(limit.Cur-200)/2) // both ends are files of this process
	for _, path := range []string{"hit", "miss"} {
		b.Run(path, func(b *testing.B) {
			ok := ready(make([]byte, 1<<10))
			to := netip.MustParseAddrPort(onLoopback(b, Config{}, Door{Handler: http.NotFoundHandler(), Quick: func(q *http1.Request, a *http1.Response) bool {
				return string(q.Path) == "/hit" && ok(q, a)
			}})[0])
			for b.Loop() {
				measure := func() (memory, resident int64) {
					debug.FreeOSMemory()
					var m runtime.MemStats
					runtime.ReadMemStats(&m)
					statm, err := os.ReadFile("/proc/self/statm")
					if err != nil {
						b.Fatal(err)
					}
					var total, pages int64
					fmt.Sscan(string(statm), &total, &pages)
					return int64(m.HeapInuse + m.StackInuse), pages * int64(os.Getpagesize())
				}
				memory, resident := measure()
				asked, buf := []byte("GET /"+path+" HTTP/1.1\r\nHost: x\r\n\r\n"), make([]byte, 4<<10)
				fds := make([]int, people)
				for i := range fds {
					fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
					if err == nil {
						err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
					}
					if err == nil {
						_, err = unix.Write(fd, asked)
					}
					if err == nil {
						_, err = unix.Read(fd, buf)
					}
					if err != nil {
						b.Fatal(err)
					}
					fds[i] = fd
				}
				heap, rss := measure()
				b.ReportMetric(float64(heap-memory)/float64(people), "heap+stack-B/conn")
				b.ReportMetric(float64(rss-resident)/float64(people), "RSS-B/conn")
				for _, fd := range fds {
					unix.Close(fd)
				}
			}
		})
	}
}
