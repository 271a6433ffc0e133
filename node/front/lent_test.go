package front

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/perigee-net/perigee/edge/http1"
)

// lent is a body that is lent: an http1.Lent, and the one lease of it.
type lent struct {
	body   []byte
	done   *atomic.Int64 // how many leases have ended
	leased chan struct{} // closed when there is one; nil: nobody waits for that

	mu     sync.Mutex
	copied bool  // the file is not good any more
	goes   int64 // from there on it is gone; 0: nothing is
}

func (l *lent) Lease(int64, netip.Addr) http1.Lease {
	if l.leased != nil {
		close(l.leased)
	}
	return l
}

func (l *lent) ReadAt(p []byte, off int64) (int, error) {
	if _, _, ok := l.Hold(off); !ok {
		return 0, errors.New("it is gone")
	}
	defer l.Release(off)
	if n := copy(p, l.body[off:]); n < len(p) {
		return n, io.EOF
	}
	return len(p), nil
}

func (l *lent) Hold(at int64) (rest []byte, file, ok bool) {
	l.mu.Lock()
	switch {
	case l.goes > 0 && at >= l.goes:
		l.mu.Unlock()
		return nil, false, false
	case !l.copied:
		return nil, true, true
	}
	return l.body[at:], false, true
}

func (l *lent) Release(int64) { l.mu.Unlock() }

func (l *lent) Close() { l.done.Add(1) }

// lends is a Quick that answers with what is lent.
func lends(t *testing.T, file *os.File, l *lent) http1.Quick {
	return func(_ *http1.Request, a *http1.Response) bool {
		a.Head = fmt.Appendf(a.Head, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", len(l.body))
		a.File, a.Length, a.Lent = file, int64(len(l.body)), l
		a.Done = func() {
			if l.leased != nil {
				t.Error("it is under a lease, and is let go of besides")
			}
		}
		return true
	}
}

func counting(size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(i * 7 >> 3)
	}
	return b
}

// What is lent comes whole, by all ways in which it is copied, and where it is gone halfway the answer does not end as if it were whole.
func TestWhatIsLentComesWholeOrIsCutShort(t *testing.T) {
	for _, size := range []int{1, bodyCopied - 50, bodyCopied, 300_001} {
		for _, protocol := range []string{"", "http/1.1", "h2"} {
			for _, goes := range []int{0, size / 2} {
				inWorld(t, certified, func(w *world) {
					l := &lent{body: counting(size), done: new(atomic.Int64), goes: int64(goes)}
					w.set(Door{Network: "tcp", Address: at(443), TLS: protocol != "", Quick: lends(t, nil, l), Handler: http.NotFoundHandler()})
					var rt http.RoundTripper
					switch c := w.dial(443); protocol {
					case "h2":
						two := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, Protocols: new(http.Protocols),
							DialContext: func(context.Context, string, string) (net.Conn, error) { return c, nil }}
						two.Protocols.SetHTTP2(true)
						rt = two
						defer two.CloseIdleConnections()
					default:
						if protocol != "" {
							c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
						}
						defer c.Close()
						rt = overOne{c}
					}
					req, _ := http.NewRequest("GET", "https://x/", nil)
					res, err := rt.RoundTrip(req)
					if err != nil {
						t.Fatal(err)
					}
					got, err := io.ReadAll(res.Body)
					// what was copied at once before it was gone may be all
					if cut := goes > 0 && len(got) < size; (err != nil) != cut || !bytes.Equal(got, l.body[:len(got)]) || goes == 0 && len(got) < size {
						t.Errorf("%q: of %d bytes, gone from %d on, %d came: %v", protocol, size, goes, len(got), err)
					}
					if goes > 0 && size > 2*bodyCopied && len(got) == size {
						t.Errorf("%q: what was gone came", protocol)
					}
					synctest.Wait()
					if n := l.done.Load(); n != 1 {
						t.Errorf("%q: %d leases have ended", protocol, n)
					}
				})
			}
		}
	}
}

// overOne asks over one connection.
type overOne struct{ net.Conn }

func (c overOne) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Write(c); err != nil {
		return nil, err
	}
	return http.ReadResponse(bufio.NewReader(c), r)
}

// A client over a socket of the system takes nothing until what he is sent is under a lease. What comes of it then reaches him as it is.
func TestAFileIsUnderALeaseWhileTheClientIsWaitedFor(t *testing.T) {
	body := counting(24 << 20)
	file, err := os.Create(filepath.Join(t.TempDir(), "object"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() }) // after the front has ended
	if _, err := file.Write(body); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name         string
		copied, gone bool
	}{
		{"it stays", false, false}, {"it is copied", true, false}, {"it is gone", false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := &lent{body: body, done: new(atomic.Int64), leased: make(chan struct{})}
			at := onLoopback(t, Config{}, Door{Quick: lends(t, file, l), Handler: http.NotFoundHandler()})[0]
			conn, err := net.Dial("tcp", at)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			<-l.leased
			l.mu.Lock()
			if l.copied = c.copied; c.gone {
				l.goes = 1
			}
			l.mu.Unlock()
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(res.Body)
			if (err != nil) != c.gone || !bytes.Equal(got, body[:len(got)]) || !c.gone && len(got) < len(body) {
				t.Errorf("%d bytes came: %v", len(got), err)
			}
			if c.gone {
				return // the connection has ended, maybe not yet its visit
			}
			if _, err := io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil { // when it is answered, the one before has ended
				t.Fatal(err)
			}
			if _, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || l.done.Load() != 1 {
				t.Errorf("%d leases have ended: %v", l.done.Load(), err)
			}
		})
	}
}
