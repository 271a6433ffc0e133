package probe

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// counted counts the bytes that are read of a connection.
type counted struct {
	net.Conn
	n *atomic.Int64
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// noise writes what nobody understands, for ever.
func noise(conn net.Conn) {
	go io.Copy(io.Discard, conn)
	io.Copy(conn, rand.Reader)
}

// frames reads what comes and lets f write frames of HTTP/2, until it can no more.
func frames(f func(w *http2.Framer, head []byte) error) func(net.Conn) {
	return func(conn net.Conn) {
		io.ReadFull(conn, make([]byte, len(http2.ClientPreface)))
		done := make(chan struct{})
		defer func() { conn.Close(); <-done }()
		go func() {
			defer close(done)
			io.Copy(io.Discard, conn)
		}()
		w := http2.NewFramer(conn, nil)
		w.AllowIllegalWrites = true
		time.Sleep(10 * time.Millisecond) // the call has been made
		w.WriteSettings()
		f(w, fields(":status", "200", "content-type", "application/grpc"))
	}
}

func fields(pairs ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for i := 0; i < len(pairs); i += 2 {
		e.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	return b.Bytes()
}

// forever does the same until it fails.
func forever(pause time.Duration, f func() error) error {
	for {
		if err := f(); err != nil {
			return err
		}
		time.Sleep(pause)
	}
}

func head(b []byte, end bool) http2.HeadersFrameParam {
	return http2.HeadersFrameParam{StreamID: 1, BlockFragment: b, EndHeaders: true, EndStream: end}
}

func TestAHostileEndpointCostsItsTimeAndItsBytesAndNoMore(t *testing.T) {
	secure, _ := tlsServer(t)
	const (
		handshake = 300_000 // the bounds of crypto/tls
		ok        = "HTTP/1.1 200 OK\r\n"
	)
	big := strings.Repeat("x", 10_000)
	for _, c := range []struct {
		name   string
		check  Check
		server func(net.Conn)
		want   string // one of these
		within time.Duration
		bytes  int64
	}{
		{"an endless head", checkTerms, repeat(ok, "X: "+big+"\r\n", 0), "response head over 16384 bytes", 0, maxHead},
		{"a byte of the head a second", checkTerms, repeat(ok+"X: ", "x", time.Second), "timeout after 2s", 2 * time.Second, 100},
		{"a body that never ends", checkTerms, repeat(ok+"\r\n", big, 0), "", 0, maxHead},
		{"a body that never ends, and a string", find("up"), repeat(ok+"\r\n", big, 0), "string not found in the first 5120 bytes", 0, maxHead + maxWire},
		{"a body a byte a second, and a string", find("up"), repeat(ok+"\r\n", "x", time.Second), "body: timeout after 2s", 2 * time.Second, 100},
		{"chunks of one byte", find("up"), repeat(ok+"Transfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n", 0), "string not found in the first 5120 bytes", 0, maxHead + maxWire},
		{"chunks with endless extensions", find("up"), repeat(ok+"Transfer-Encoding: chunked\r\n\r\n", "1;"+big[:2000]+"\r\nx\r\n", 0), "body: malformed|body: closed before its end", 0, maxHead + maxWire},
		{"endless trailers", find("up"), repeat(ok+"Transfer-Encoding: chunked\r\n\r\n0\r\n", "X: "+big[:1000]+"\r\n", 0), "body: malformed|body: closed before its end", 0, maxHead + maxWire},
		{"the head within the time, the body never", find("up"), func(conn net.Conn) { after(1900*time.Millisecond, ok+"\r\n")(conn); silence(conn) }, "body: timeout after 2s", 4 * time.Second, 100},

		{"noise for TLS", byTLS(checkTerms), noise, "TLS handshake: tls: first record does not look like a TLS handshake", 0, handshake},
		{"an endless head by TLS", byTLS(checkTerms), secure(repeat(ok, "X: "+big+"\r\n", 0)), "response head over 16384 bytes", 0, 2*maxHead + handshake},
		{"a TLS server that says nothing more", byTLS(checkTerms), secure(silence), "timeout after 2s", 2 * time.Second, handshake},

		{"noise for HTTP/2", byGRPC(checkTerms), noise, "malformed response|closed without an answer", 0, maxCall},
		{"endless settings", byGRPC(checkTerms), frames(func(w *http2.Framer, _ []byte) error {
			return forever(0, func() error { return w.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 20000}) })
		}), "answer over 57344 bytes|malformed response", 0, maxCall},
		{"endless pings", byGRPC(checkTerms), frames(func(w *http2.Framer, _ []byte) error {
			return forever(0, func() error { return w.WritePing(false, [8]byte{}) })
		}), "answer over 57344 bytes", 0, maxCall},
		{"a ping a second", byGRPC(checkTerms), frames(func(w *http2.Framer, _ []byte) error {
			return forever(time.Second, func() error { return w.WritePing(false, [8]byte{}) })
		}), "timeout after 2s", 2 * time.Second, 1000},
		{"an endless head by HTTP/2", byGRPC(checkTerms), frames(func(w *http2.Framer, b []byte) error {
			w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b})
			return forever(0, func() error { return w.WriteContinuation(1, false, fields("x", big)) })
		}), "answer over 57344 bytes|malformed response", 0, maxCall},
		{"a head that swells when unpacked", byGRPC(checkTerms), frames(func(w *http2.Framer, b []byte) error {
			b = append(b, fields("x", big[:3000])...)
			b = append(b, bytes.Repeat([]byte{0xbe}, 10_000)...) // that field again, from the table
			w.WriteHeaders(head(b, true))
			return forever(time.Second, func() error { return w.WritePing(false, [8]byte{}) })
		}), "HTTP/2 stream reset|malformed response", 0, maxCall},
		{"a message that never ends", byGRPC(checkTerms), frames(func(w *http2.Framer, b []byte) error {
			w.WriteHeaders(head(b, false))
			return forever(0, func() error { return w.WriteData(1, false, []byte(big)) })
		}), "message over 5120 bytes|answer over 57344 bytes", 0, maxCall},
		{"a message of a byte a second", byGRPC(checkTerms), frames(func(w *http2.Framer, b []byte) error {
			w.WriteHeaders(head(b, false))
			return forever(time.Second, func() error { return w.WriteData(1, false, []byte("x")) })
		}), "timeout after 2s", 2 * time.Second, 1000},
		{"huge trailers", byGRPC(checkTerms), frames(func(w *http2.Framer, b []byte) error {
			w.WriteHeaders(head(b, false))
			w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: fields("x", big), EndStream: true})
			return forever(0, func() error { return w.WriteContinuation(1, false, fields("x", big)) })
		}), "answer over 57344 bytes|malformed response", 0, maxCall},
		{"a stream that is reset", byGRPC(checkTerms), frames(func(w *http2.Framer, b []byte) error {
			w.WriteRSTStream(1, http2.ErrCodeRefusedStream)
			return forever(time.Second, func() error { return w.WritePing(false, [8]byte{}) })
		}), "HTTP/2 stream reset|HTTP/2 connection ended", 0, 1000},
		{"a connection that is ended with many words", byGRPC(checkTerms), frames(func(w *http2.Framer, b []byte) error {
			w.WriteGoAway(0, http2.ErrCodeEnhanceYourCalm, []byte(big))
			return nil
		}), "HTTP/2 connection ended|closed without an answer|malformed response", 0, maxCall},
		{"frames out of order", byGRPC(checkTerms), frames(func(w *http2.Framer, b []byte) error {
			w.WriteContinuation(1, true, b)
			return forever(time.Second, func() error { return w.WriteData(7, true, nil) })
		}), "malformed response|closed without an answer", 0, maxCall},
		{"a frame longer than is allowed", byGRPC(checkTerms), frames(func(w *http2.Framer, b []byte) error {
			return w.WriteRawFrame(http2.FrameData, 0, 1, make([]byte, 1<<20))
		}), "malformed response", 0, maxCall},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLAN(t)
				defer l.serve(c.server).Close()
				var n atomic.Int64
				looker := l.looker()
				looker.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
					conn, err := l.prober.Dial(ctx, network, address)
					if err != nil {
						return nil, err
					}
					return counted{conn, &n}, nil
				}
				start := time.Now()
				r, _ := looker.run(t.Context(), &c.check)
				if took := time.Since(start); took > c.within+100*time.Millisecond {
					t.Errorf("it took %v", took)
				}
				if n.Load() > c.bytes {
					t.Errorf("it read %d bytes, more than %d", n.Load(), c.bytes)
				}
				if r.Passed != (c.want == "") || !strings.Contains("|"+c.want+"|", "|"+r.Reason+"|") {
					t.Errorf("got %+v, want %q", r, c.want)
				}
			})
		})
	}
}

func FuzzCall(f *testing.F) {
	answer := func(write func(w *http2.Framer)) []byte {
		var b bytes.Buffer
		w := http2.NewFramer(&b, nil)
		w.WriteSettings()
		write(w)
		return b.Bytes()
	}
	f.Add([]byte{})
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	f.Add(answer(func(w *http2.Framer) {
		w.WriteHeaders(head(fields(":status", "200", "content-type", "application/grpc", "grpc-status", "12"), true))
	}))
	f.Add(answer(func(w *http2.Framer) {
		w.WriteHeaders(head(fields(":status", "200", "content-type", "application/grpc"), false))
		w.WriteData(1, false, []byte{0, 0, 0, 0, 0})
		w.WriteHeaders(head(fields("grpc-status", "0"), true))
	}))
	f.Add(answer(func(w *http2.Framer) { w.WriteGoAway(1, http2.ErrCodeNo, nil) }))
	f.Add(answer(func(w *http2.Framer) { w.WriteHeaders(head(fields(":status", "100"), false)) }))
	c := byGRPC(checkTerms)
	f.Fuzz(func(t *testing.T, b []byte) {
		near, far := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			go io.Copy(io.Discard, far)
			far.Write(b)
			far.Close()
		}()
		reason := call(t.Context(), wire{near, near}, &c, time.Second)
		near.Close()
		<-done
		if reason == "" && len(b) < 9+9+1 { // settings, a head
			t.Fatalf("%q passed", b)
		}
		if len(reason) > 100 {
			t.Fatalf("the reason quotes the answer: %q", reason)
		}
	})
}

// A server of net/http is what most gRPC servers in Go stand on.
func TestAGRPCServerOfTheStandardLibraryPasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t)
		listener, err := l.host.Listen("tcp", endpoint.String())
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: grpcAnswer("0"), Protocols: new(http.Protocols)}
		server.Protocols.SetUnencryptedHTTP2(true)
		go server.Serve(listener)
		defer server.Close()
		c := byGRPC(checkTerms)
		if r, _ := l.looker().run(t.Context(), &c); !r.Passed {
			t.Error(r)
		}
	})
}
