package front

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/perigee-net/perigee/edge/http1"
)

// serve2 speaks HTTP/2 on a connection, without TLS, until it ends.
func serve2(f *Front, socket net.Conn, behind *Door) {
	d := &door{front: f, crowd: newCrowd(), visits: map[*visit]struct{}{}}
	d.behind.Store(behind)
	d.holds.Add(1)
	f.enter(socket, behind)
	c := d.client(socket)
	v := &visit{client: c, conn: c, born: time.Now()}
	v.visit2(&tls.ConnectionState{Version: tls.VersionTLS13})
	v.end()
}

// script is a connection of which all that comes is known.
type script struct {
	net.Conn
	in  *bytes.Reader
	mu  sync.Mutex
	out bytes.Buffer
}

func (s *script) Read(p []byte) (int, error) { return s.in.Read(p) }

func (s *script) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.Write(p)
}

func (s *script) Close() error                     { return nil }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }
func (s *script) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (s *script) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1} }

// Whatever frames come, the connection ends when they do, nobody panics, nothing is held afterwards, and what was answered is HTTP/2.
func FuzzHTTP2(f *testing.F) {
	// Each frame is made of a kind, flags, a stream, a length, and so many bytes.
	packed := func(kind, flags, id byte, p []byte) []byte {
		return append([]byte{kind, flags, id, byte(len(p))}, p...)
	}
	const all = endOfStream | endOfHeaders
	hit := join([]byte{0x82, 0x87, 0x41, 1, 'x', 0x04, 4}, []byte("/hit"))
	f.Add(join(packed(headersFrame, all, 1, get), packed(headersFrame, all, 3, hit)))
	f.Add(join(packed(headersFrame, endOfHeaders, 1, post), packed(dataFrame, 0, 1, []byte("hello")), packed(dataFrame, endOfStream|padded, 1, []byte("\x01hello\x00"))))
	f.Add(join(packed(settingsFrame, 0, 0, setting(initialWindow, 3)), packed(headersFrame, all, 1, hit), packed(windowFrame, 0, 1, number(1)), packed(windowFrame, 0, 0, number(9)), packed(resetFrame, 0, 1, number(8))))
	f.Add(join(packed(headersFrame, endOfStream, 1, get[:2]), packed(continuationFrame, endOfHeaders, 1, get[2:]), packed(pingFrame, 0, 0, make([]byte, 8)), packed(goAwayFrame, 0, 0, make([]byte, 8))))
	f.Add(join(packed(headersFrame, endOfHeaders, 1, join(post, literal("trailer", "t"), literal("expect", "100-continue"))), packed(headersFrame, all, 1, literal("t", "1")), packed(priorityFrame, 0, 1, make([]byte, 5))))
	body := bytes.Repeat([]byte("b"), 40<<10)
	f.Fuzz(func(t *testing.T, b []byte) {
		in := append([]byte(preface), frame(settingsFrame, 0, 0, nil)...)
		for len(b) >= 4 {
			n := min(int(b[3]), len(b)-4)
			in = append(in, frame(b[0], b[1], uint32(b[2]), b[4:4+n])...)
			b = b[4+n:]
		}
		front := New(Config{})
		s := &script{in: bytes.NewReader(in)}
		serve2(front, s, &Door{
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Trailer", "T")
				w.WriteHeader(http.StatusEarlyHints)
				n, _ := io.Copy(w, r.Body)
				w.Header().Set("T", "1")
				if n == 3 {
					panic(http.ErrAbortHandler)
				}
			}),
			Quick: func(q *http1.Request, a *http1.Response) bool {
				if http1.IsToken(string(q.Path)) || len(q.Path) < 2 {
					return false
				}
				a.Head = append(a.Head, "HTTP/1.1 200 OK\r\nX-Cache: Hit\r\n\r\n"...)
				a.Body = body[:len(q.Target)*1000%len(body)]
				return true
			},
		})
		front.wg.Wait()
		counters := front.Counters()
		for _, name := range []string{"front_panics_total", "front_heads_bytes", "front_connections"} {
			if counters[name] != 0 {
				t.Errorf("%s: %d", name, counters[name])
			}
		}
		fr := http2.NewFramer(io.Discard, &s.out)
		fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		ended := map[uint32]bool{}
		for {
			frame, err := fr.ReadFrame()
			if err == io.EOF {
				return
			}
			if err != nil {
				t.Fatalf("what was answered is no HTTP/2: %v", err)
			}
			id := frame.Header().StreamID
			switch frame := frame.(type) {
			case *http2.DataFrame:
				if ended[id] {
					t.Errorf("stream %d goes on behind its end", id)
				}
				ended[id] = frame.StreamEnded()
			case *http2.MetaHeadersFrame:
				if ended[id] {
					t.Errorf("stream %d goes on behind its end", id)
				}
				ended[id] = frame.StreamEnded()
			}
		}
	})
}

// conversation is an HTTP/2 connection over a socket of this system, on which requests for one thing are asked again and again.
type conversation struct {
	tb     testing.TB
	c      net.Conn
	id     uint32
	asks   []byte
	answer []byte
}

// converse begins one, with so many requests at a time whose answers have so many bytes, of frames and all.
func converse(tb testing.TB, c net.Conn, requests, answer int) *conversation {
	k := &conversation{tb: tb, c: c, id: 1, answer: make([]byte, requests*answer)}
	for range requests {
		k.asks = append(k.asks, frame(headersFrame, endOfStream|endOfHeaders, 0, []byte{0x82, 0x87, 0x84, 0xbf, 0xbe})...) // both fields are known by then
	}
	k.asks = append(k.asks, frame(windowFrame, 0, 0, number(uint32(requests*answer)))...)
	first := join([]byte{0x82, 0x87, 0x84}, []byte{0x41, 1, 'x'}, append([]byte{0x40, 10}, "user-agent\x07bench/1"...))
	c.Write(join([]byte(preface), frame(settingsFrame, 0, 0, nil), frame(headersFrame, endOfStream|endOfHeaders, 1, first)))
	fr := http2.NewFramer(io.Discard, c)
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			tb.Fatal(err)
		}
		if d, ok := f.(*http2.DataFrame); ok && d.StreamEnded() {
			return k
		}
	}
}

// ask asks once more, and waits for all answers.
func (k *conversation) ask() {
	for at := 0; at+frameHeader+5 < len(k.asks); at += frameHeader + 5 {
		if k.asks[at+3] == headersFrame {
			k.id += 2
			binary.BigEndian.PutUint32(k.asks[at+5:], k.id)
		}
	}
	if _, err := k.c.Write(k.asks); err != nil {
		k.tb.Fatal(err)
	}
	if _, err := io.ReadFull(k.c, k.answer); err != nil {
		k.tb.Fatal(err)
	}
}

// answerBytes2 is how long the answer of ready is as frames.
func answerBytes2(quick http1.Quick) int {
	var a http1.Response
	quick(nil, &a)
	c := &h2{resized: true}
	return len(c.appendAnswer(nil, a.Head)) + len(a.Body) + 2*frameHeader
}

func TestAnHTTP2HitTakesNoAllocation(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	quick := ready(make([]byte, 1<<10))
	f := New(Config{})
	var serves sync.WaitGroup
	defer serves.Wait()
	serves.Go(func() {
		c, err := l.Accept()
		if err == nil {
			serve2(f, c, &Door{Quick: quick, Handler: http.NotFoundHandler()})
		}
	})
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	k := converse(t, c, 8, answerBytes2(quick))
	if n := testing.AllocsPerRun(200, k.ask); n > 1 { // under the race detector pools forget some of what they are given; without it, it is 0
		t.Errorf("%v allocations for 8 hits", n)
	}
	if got := f.Counters()["front_quick_total"]; got != 1+8*201 {
		t.Errorf("%d were hits", got)
	}
}

// BenchmarkHit2 is a hit over HTTP/2 in TLS, 32 at a time, beside net/http, with the same client; an operation is one request.
func BenchmarkHit2(b *testing.B) {
	body := make([]byte, 1<<10)
	quick := ready(body)
	theirs := &http.Server{TLSConfig: &tls.Config{GetCertificate: certified.Certificate, NextProtos: []string{"h2"}},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			h := w.Header()
			h["X-Cache"], h["Age"], h["Content-Type"], h["Content-Length"] = []string{"Hit from perigee"}, []string{"1"}, []string{"text/plain"}, []string{"1024"}
			w.Write(body)
		})}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var serves sync.WaitGroup
	serves.Go(func() { theirs.ServeTLS(l, "", "") })
	defer serves.Wait()
	defer theirs.Close()
	for _, at := range []struct{ name, address string }{
		{"quick", onLoopback(b, certified, Door{TLS: true, Quick: quick, Handler: http.NotFoundHandler()})[0]},
		{"net-http", l.Addr().String()},
	} {
		b.Run(at.name, func(b *testing.B) {
			c, err := tls.Dial("tcp", at.address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			const requests = 32
			k := converse(b, c, requests, 0)
			k.asks = append(k.asks[:len(k.asks)-13], frame(windowFrame, 0, 0, number(requests*uint32(len(body))))...)
			fr := http2.NewFramer(io.Discard, c)
			fr.SetReuseFrames()
			b.ReportAllocs()
			for i := 0; i < b.N; i += requests {
				k.ask()
				for n := 0; n < requests; {
					f, err := fr.ReadFrame()
					if err != nil {
						b.Fatal(err)
					}
					switch d := f.(type) {
					case *http2.DataFrame:
						if d.StreamEnded() {
							n++
						}
					case *http2.GoAwayFrame:
						b.Fatal(errors.New(d.ErrCode.String()))
					}
				}
			}
		})
	}
}

// ready is a Quick that has one body for everything.
func ready(body []byte) http1.Quick {
	head := []byte("HTTP/1.1 200 OK\r\nDate: Mon, 02 Jan 2006 15:04:05 GMT\r\nContent-Type: text/plain\r\nX-Cache: Hit from perigee\r\nAge: 1\r\nContent-Length: " +
		strconv.Itoa(len(body)) + "\r\n\r\n")
	return func(_ *http1.Request, a *http1.Response) bool {
		a.Status = http.StatusOK
		a.Head = append(a.Head, head...)
		a.Body = body
		return true
	}
}
