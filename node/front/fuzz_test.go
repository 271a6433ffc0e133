package front

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/edge/http1"
)

// oneConn is a listener that has one connection to give.
type oneConn struct {
	conns chan net.Conn
	close func()
}

func (l oneConn) Accept() (net.Conn, error) {
	c, ok := <-l.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (l oneConn) Close() error   { l.close(); return nil }
func (l oneConn) Addr() net.Addr { return &net.TCPAddr{} }

// from is a connection that comes from an address.
type from struct {
	net.Conn
	addr *net.TCPAddr
}

func (c from) RemoteAddr() net.Addr { return c.addr }

// through sends bytes through a door, so many at a time, and returns what comes back until it has come to rest.
func through(t *testing.T, c Config, d Door, sent []byte, step int) (back []byte) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		conns := make(chan net.Conn, 1)
		l := oneConn{conns, sync.OnceFunc(func() { close(conns) })}
		conns <- from{far, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1}}
		c.Listen = func(string, string) (net.Listener, error) { return l, nil }
		f := New(c)
		if err := f.Set([]Door{d}); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() { back, _ = io.ReadAll(near) })
		wg.Go(func() {
			for left := sent; len(left) > 0; {
				n, err := near.Write(left[:min(max(step, 1), len(left))])
				if left = left[n:]; err != nil {
					return
				}
			}
		})
		synctest.Wait()
		near.Close()
		wg.Wait()
		if err := f.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := f.Counters()["front_panics_total"]; n > 0 {
			t.Fatalf("%d panics", n)
		}
		time.Sleep(time.Second) // net/http lingers when it closes with a body unread
	})
	return back
}

func FuzzHTTP1Request(f *testing.F) {
	for _, seed := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"HEAD /a%20b?c#d HTTP/1.0\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhelloGET /next HTTP/1.1\r\nHost: y\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: T\r\n\r\n5;ext\r\nhello\r\n0\r\nT: 1\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nzz\r\n",
		"PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nok",
		"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: a\r\n b\r\n\r\n",
		"OPTIONS * HTTP/1.1\nHost: x\n\n",
		"CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"GET http://[::1]:80/ HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
		"\r\n\r\nGET / HTTP/9.9\r\n\r\n",
		"\x16\x03\x01\x02\x00\x01\x00",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		var asked []string // the methods that were understood, in their order
		back := through(t, Config{}, Door{Network: "tcp", Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked = append(asked, r.Method)
			io.Copy(w, r.Body)
		})}, sent, len(sent))
		responses := bufio.NewReader(bytes.NewReader(back))
		for {
			if _, err := responses.Peek(1); err == io.EOF {
				return
			}
			var to *http.Request
			if len(asked) > 0 {
				to = &http.Request{Method: asked[0]}
			}
			res, err := http.ReadResponse(responses, to)
			if err != nil {
				t.Fatalf("%q was answered %q: %v", sent, back, err)
			}
			if _, err := io.Copy(io.Discard, res.Body); err != nil && err != io.ErrUnexpectedEOF { // a body that was cut short is answered so
				t.Fatalf("%q was answered %q: %v", sent, back, err)
			}
			if res.StatusCode >= 200 && len(asked) > 0 {
				asked = asked[1:]
			}
		}
	})
}

// FuzzHotPath holds that it makes no difference to those behind a door which requests are answered before net/http: they
// see the same ones, in the same order, however the bytes are cut, and the answers have the same statuses.
func FuzzHotPath(f *testing.F) {
	for _, seed := range []string{
		"GET /hit HTTP/1.1\r\nHost: x\r\n\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\nHEAD /hit HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST /hit HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhelloGET /hit HTTP/1.1\r\nHost: y\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;ext\r\nhello\r\n0\r\nT: 1\r\n\r\nGET /hit HTTP/1.1\r\nHost: y\r\n\r\n",
		"GET /hit HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcGET /hit HTTP/1.1\r\nHost: y\r\n\r\n",
		"\r\nGET /hit?a=%zz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"GET /hit HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n",
		"GET /hit HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /hit HTTP/1.0\r\n\r\n",
	} {
		f.Add([]byte(seed), uint8(3))
	}
	f.Fuzz(func(t *testing.T, sent []byte, step uint8) {
		var want, got []string // what was seen, then the statuses
		for i, seen := range []*[]string{&want, &got, &got} {
			d := new(diary)
			door := Door{Network: "tcp", Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				d.note(r.Method + " " + r.RequestURI)
				io.Copy(io.Discard, r.Body)
				w.Header().Set("Content-Length", "0")
			})}
			if i > 0 {
				door.Quick = func(q *http1.Request, a *http1.Response) bool {
					if !bytes.HasPrefix(q.Path, []byte("/hit")) {
						return false
					}
					method := "GET "
					if q.Head {
						method = "HEAD "
					}
					d.note(method + string(q.Target))
					a.Head = append(a.Head, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"...)
					return true
				}
			}
			cut := len(sent)
			if i == 2 {
				cut = int(step)
			}
			back := through(t, Config{}, door, sent, cut)
			*seen = d.read()
			for r := bufio.NewReader(bytes.NewReader(back)); ; {
				res, err := http.ReadResponse(r, &http.Request{Method: "HEAD"}) // none but net/http's own errors has a body
				if err != nil {
					break
				}
				*seen = append(*seen, res.Status)
			}
			if i > 0 && !slices.Equal(got, want) {
				t.Fatalf("%q, %d bytes at a time: got %q, want %q", sent, cut, got, want)
			}
		}
	})
}

func FuzzProxyHeader(f *testing.F) {
	for _, version := range []byte{1, 2} {
		b, err := header(version).Format()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(append(b, "hello"...))
	}
	for _, seed := range []string{
		"hello",
		"PROXY UNKNOWN ffff::1 ::1 1 2\r\nhello",
		"PROXY TCP6 2001:db8::1 2001:db8::2 1 65536\r\n",
		"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00hello",
		"\r\n\r\n\x00\r\nQUIT\n\x21\x11\xff\xff",
		"\r\n\r\n\x00\r\nQUIT\n\x21\x31\x00\xd8",
		"\r\n\r\n\x00\r\nQUIT\n\x21\x12\x00\x0c\x01\x02\x03\x04\x05\x06\x07\x08\x00\x01\x00\x02",
	} {
		f.Add([]byte(seed))
	}
	trusted := Config{ProxyHeadersFrom: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}}
	f.Fuzz(func(t *testing.T, sent []byte) {
		through(t, trusted, Door{Network: "tcp", Conn: func(c net.Conn) {
			client, ok := c.RemoteAddr().(*net.TCPAddr)
			if !ok || !client.AddrPort().IsValid() {
				t.Errorf("a flow comes from %v", c.RemoteAddr())
			}
			rest, _ := io.ReadAll(c)
			if !bytes.HasSuffix(sent, rest) || len(rest) == len(sent) {
				t.Errorf("of %q, %q was passed on", sent, rest)
			}
		}}, sent, len(sent))
	})
}
