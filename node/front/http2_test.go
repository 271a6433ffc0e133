package front

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// frame is one of HTTP/2 (RFC 9113, 4.1).
func frame(kind, flags byte, stream uint32, payload []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(payload))<<8|uint32(kind))
	b = append(b, flags)
	b = binary.BigEndian.AppendUint32(b, stream)
	return append(b, payload...)
}

// get is a request's header block: GET https://x/.
var get = []byte{0x82, 0x87, 0x84, 0x41, 1, 'x'}

// raw2 begins an HTTP/2 connection by hand, and acknowledges what it is about to be told.
func raw2(w *world) net.Conn {
	w.Helper()
	c := rude2(w)
	c.Write(frame(settingsFrame, acknowledges, 0, nil))
	return c
}

// rude2 acknowledges nothing.
func rude2(w *world) net.Conn {
	w.Helper()
	c := tls.Client(w.dial(443), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err := c.Handshake(); err != nil {
		w.Fatal(err)
	}
	io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	c.Write(frame(settingsFrame, 0, 0, nil))
	return c
}

func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestHTTP2FloodsAreBounded(t *testing.T) {
	const frames, memory = 60_000, 16 << 20
	for name, flood := range map[string]func(c net.Conn, i uint32) error{
		"streams that are reset at once": func(c net.Conn, i uint32) error {
			_, err := c.Write(append(frame(headersFrame, endOfStream|endOfHeaders, 2*i+1, get), frame(resetFrame, 0, 2*i+1, []byte{0, 0, 0, 8})...))
			return err
		},
		"settings without end": func(c net.Conn, _ uint32) error {
			_, err := c.Write(frame(settingsFrame, 0, 0, nil))
			return err
		},
		"data without anything in it": func(c net.Conn, i uint32) error {
			if i == 0 {
				c.Write(frame(headersFrame, endOfHeaders, 1, post))
			}
			_, err := c.Write(frame(dataFrame, 0, 1, nil))
			return err
		},
		"padding alone": func(c net.Conn, i uint32) error {
			if i == 0 {
				c.Write(frame(headersFrame, endOfHeaders, 1, post))
			}
			_, err := c.Write(frame(dataFrame, padded, 1, []byte{1, 0}))
			return err
		},
		"windows that grow by one": func(c net.Conn, _ uint32) error {
			_, err := c.Write(frame(windowFrame, 0, 0, number(1)))
			return err
		},
		"continuations without anything in them": func(c net.Conn, i uint32) error {
			if i == 0 {
				c.Write(frame(headersFrame, 0, 1, get))
			}
			_, err := c.Write(frame(continuationFrame, 0, 1, nil))
			return err
		},
		"streams that break a rule": func(c net.Conn, i uint32) error {
			_, err := c.Write(join(frame(headersFrame, endOfHeaders, 2*i+1, post), frame(windowFrame, 0, 2*i+1, number(0))))
			return err
		},
		"requests that are none": func(c net.Conn, i uint32) error {
			_, err := c.Write(frame(headersFrame, endOfHeaders|endOfStream, 2*i+1, get[:1]))
			return err
		},
		"priorities": func(c net.Conn, i uint32) error {
			_, err := c.Write(frame(priorityFrame, 0, 1, make([]byte, 5)))
			return err
		},
		"pings without end": func(c net.Conn, _ uint32) error {
			_, err := c.Write(frame(pingFrame, 0, 0, make([]byte, 8)))
			return err
		},
	} {
		inWorld(t, Config{Certificate: NewCertificates("node", func(string) bool { return false }).Get}, func(w *world) {
			var running, most atomic.Int64
			w.set(Door{Network: "tcp", Address: at(443), TLS: true, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				n := running.Add(1)
				defer running.Add(-1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				time.Sleep(20 * time.Second) // it does not hear that nobody waits
			})})
			c := raw2(w)
			before, sent := heap(), 0
			for ; sent < frames && flood(c, uint32(sent)) == nil; sent++ { // nothing is read of what comes back
				if sent%100 == 0 {
					time.Sleep(10 * time.Millisecond)
				}
			}
			if sent == frames {
				t.Errorf("%s: all %d frames were taken", name, frames)
			}
			if grown := heap() - before; grown > memory {
				t.Errorf("%s: %d bytes are held", name, grown)
			}
			if most.Load() > streams {
				t.Errorf("%s: %d handlers ran at once, of %d streams that a connection may have", name, most.Load(), streams)
			}
			w.counted("front_http2_floods_total", 1)
			c.Close()
			time.Sleep(2 * time.Minute)
			w.counted("front_connections", 0)
			w.counted("front_panics_total", 0)
		})
	}
}

func TestHTTP2IsToldToGoWhenItsDoorCloses(t *testing.T) {
	inWorld(t, Config{Certificate: NewCertificates("node", func(string) bool { return false }).Get}, func(w *world) {
		w.set(Door{Network: "tcp", Address: at(443), TLS: true, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(10 * time.Second)
			io.WriteString(w, r.Proto)
		})})
		tr := &http.Transport{DialContext: w.person.Dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
		defer tr.CloseIdleConnections()
		var people sync.WaitGroup
		people.Go(func() {
			res, err := (&http.Client{Transport: tr}).Get("https://203.0.113.1/")
			if err != nil {
				t.Error(err)
				return
			}
			defer res.Body.Close()
			if body, err := io.ReadAll(res.Body); err != nil || string(body) != "HTTP/2.0" {
				t.Errorf("the request in flight: %q, %v", body, err)
			}
		})
		time.Sleep(5 * time.Second)
		start := time.Now()
		w.set()
		people.Wait()
		for w.front.Counters()["front_connections"] > 0 {
			time.Sleep(100 * time.Millisecond)
		}
		if took := time.Since(start); took > 8*time.Second {
			t.Errorf("its connection ended after %v", took)
		}
	})
}

// A connection that always carries something is told to go when the front is retired, and what is in flight finishes; who comes yet is
// told by the first answer.
func TestARetiredFrontHasHTTP2GoThatIsNeverIdle(t *testing.T) {
	inWorld(t, Config{Certificate: NewCertificates("node", anyHost).Get}, func(w *world) {
		let := make(chan struct{})
		w.set(Door{Network: "tcp", Address: at(443), TLS: true, Handler: slow(&let)})
		var dials atomic.Int64
		tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true, DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			dials.Add(1)
			return w.person.Dial(ctx, network, address)
		}}
		defer tr.CloseIdleConnections()
		ask := func(url string) string {
			res, err := (&http.Client{Transport: tr}).Get(url)
			if err != nil {
				return err.Error()
			}
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			return fmt.Sprint(res.Proto, " ", string(body), " ", err)
		}
		answered := make(chan string)
		go func() { answered <- ask(site + "slow") }()
		time.Sleep(time.Second)
		w.front.Retire()
		for range 2 {
			time.Sleep(time.Second)
			if got := ask(site); got != "HTTP/2.0 done <nil>" {
				t.Errorf("who comes yet: %s", got)
			}
		}
		if n := dials.Load(); n != 3 {
			t.Errorf("after two answers it has come by %d connections: it was not told to go", n)
		}
		close(let)
		if got := <-answered; got != "HTTP/2.0 done <nil>" {
			t.Errorf("what was in flight: %s", got)
		}
		time.Sleep(2 * time.Second)
		if n := w.front.Counters()["front_connections"]; n != 0 {
			t.Errorf("%d connections are kept", n)
		}
	})
}

// literal is a field of a header block that no table knows (RFC 7541, 6.2.2).
func literal(name, value string) []byte {
	b := append([]byte{0, byte(len(name))}, name...)
	return append(append(b, byte(len(value))), value...)
}

// What would be two requests if it were written down as HTTP/1 gets to nobody behind the door.
func TestNobodySmugglesARequestByHTTP2(t *testing.T) {
	block := func(fields ...[]byte) []byte { return slices.Concat(fields...) }
	method, scheme, path, authority := []byte{0x83}, []byte{0x87}, []byte{0x84}, []byte{0x41, 1, 'x'} // POST
	for name, c := range map[string]struct {
		header []byte
		body   string
		seen   bool
	}{
		"a good one":                    {block(method, scheme, path, authority, literal("content-length", "5")), "hello", true},
		"a value with line ends":        {block(method, scheme, path, authority, literal("x", "a\r\ny: b")), "hello", false},
		"a value with a bare LF":        {block(method, scheme, path, authority, literal("x", "a\ny: b")), "hello", false},
		"a value with NUL":              {block(method, scheme, path, authority, literal("x", "a\x00b")), "hello", false},
		"a name with line ends":         {block(method, scheme, path, authority, literal("x\r\ny", "b")), "hello", false},
		"a name with a colon":           {block(method, scheme, path, authority, literal("x: a", "b")), "hello", false},
		"a name with a space":           {block(method, scheme, path, authority, literal("content-length ", "5")), "hello", false},
		"a name in capitals":            {block(method, scheme, path, authority, literal("Content-Length", "5")), "hello", false},
		"a Transfer-Encoding":           {block(method, scheme, path, authority, literal("transfer-encoding", "chunked")), "0\r\n\r\n", false},
		"a Connection":                  {block(method, scheme, path, authority, literal("connection", "keep-alive")), "hello", false},
		"a path with a request in it":   {block(method, scheme, literal(":path", "/ HTTP/1.1\r\nHost: y\r\n\r\nGET /"), authority), "hello", false},
		"a path with a space":           {block(method, scheme, literal(":path", "/ HTTP/1.1"), authority), "hello", true}, // it is escaped where it is passed on
		"a method with a request in it": {block(literal(":method", "GET / HTTP/1.1\r\nHost: y\r\n\r\nGET"), scheme, path, authority), "hello", false},
		"a method with a space":         {block(literal(":method", "GET /"), scheme, path, authority), "hello", false},
		"a host with line ends":         {block(method, scheme, path, literal(":authority", "x\r\ny: b")), "hello", false},
		"a host with a path":            {block(method, scheme, path, literal(":authority", "x/y")), "hello", false},
		"two lengths":                   {block(method, scheme, path, authority, literal("content-length", "5"), literal("content-length", "6")), "hello", false},
		"no such length":                {block(method, scheme, path, authority, literal("content-length", "+5")), "hello", false},
		"a pseudo-field at the end":     {block(method, scheme, path, literal("x", "y"), literal(":authority", "x")), "hello", false},
	} {
		inWorld(t, Config{Certificate: NewCertificates("node", func(string) bool { return false }).Get}, func(w *world) {
			d := new(diary)
			w.set(Door{Network: "tcp", Address: at(443), TLS: true, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				d.note(fmt.Sprintf("%s %q %q %v %q %v", r.Method, r.RequestURI, r.Host, r.Header, body, err))
			})})
			conn := raw2(w)
			defer conn.Close()
			conn.Write(frame(headersFrame, endOfHeaders, 1, c.header))
			conn.Write(frame(dataFrame, endOfStream, 1, []byte(c.body)))
			time.Sleep(time.Second)
			if seen := d.read(); (len(seen) > 0) != c.seen {
				t.Errorf("%s: seen %s", name, seen)
			}
		})
	}
}
