package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// maxCall is how many bytes are read of an answer to a call, frames of all kinds together.
const maxCall = maxHead + maxWire

// call makes one gRPC call, with an empty message, by HTTP/2 without asking first (prior knowledge), and judges the code of
// its answer, in the trailers or, where there is no message, in the head (gRPC over HTTP/2, Responses). An HTTP answer that
// has no code has failed: it is no gRPC server.
func call(ctx context.Context, conn wire, c *Check, patience time.Duration) string {
	bounded := &bounded{Conn: conn}
	bounded.left.Store(maxCall)
	transport := &http.Transport{
		Protocols: new(http.Protocols), HTTP2: &http.HTTP2Config{MaxReadFrameSize: maxHead}, MaxResponseHeaderBytes: maxHead,
		DisableCompression: true, DisableKeepAlives: true, DialContext: bounded.once,
	}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	defer bounded.Close() // the transport's goroutines end with it
	u, err := url.ParseRequestURI(c.Path)
	if err != nil {
		return "path: " + err.Error()
	}
	u.Scheme, u.Host = "http", c.Host
	ask := &http.Request{
		Method: http.MethodPost, URL: u, Host: c.Host, ContentLength: 5,
		Header: http.Header{"User-Agent": {userAgent}, "Content-Type": {"application/grpc"}, "Te": {"trailers"}},
		Body:   io.NopCloser(bytes.NewReader(make([]byte, 5))), // not compressed, of length 0
	}
	r, err := transport.RoundTrip(ask.WithContext(ctx))
	if err != nil {
		return bounded.why(err, patience)
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		return fmt.Sprintf("status %d, want 200", r.StatusCode)
	}
	if kind := r.Header.Get("Content-Type"); !strings.HasPrefix(kind, "application/grpc") {
		return "not gRPC"
	}
	n, err := io.Copy(io.Discard, io.LimitReader(r.Body, maxBody+1))
	switch {
	case err != nil:
		return bounded.why(err, patience)
	case n > maxBody:
		return fmt.Sprintf("message over %d bytes", maxBody)
	}
	const field = "Grpc-Status"
	code, err := strconv.Atoi(r.Trailer.Get(field))
	if err != nil {
		code, err = strconv.Atoi(r.Header.Get(field))
	}
	switch {
	case err != nil:
		return "no gRPC status"
	case !matches(c.Matcher, code):
		return fmt.Sprintf("gRPC status %d, want %s", code, c.Matcher)
	}
	return ""
}

// bounded is a connection of which no more than so many bytes are read.
type bounded struct {
	net.Conn
	left   atomic.Int64
	dialed atomic.Bool
}

var (
	errTooLong = errors.New("answer too long")
	errAgain   = errors.New("a probe connects once")
)

// once gives the connection to whoever dials first: a probe is not repeated behind its back.
func (b *bounded) once(context.Context, string, string) (net.Conn, error) {
	if b.dialed.Swap(true) {
		return nil, errAgain
	}
	return b, nil
}

func (b *bounded) Read(p []byte) (int, error) {
	left := b.left.Load()
	if left <= 0 {
		return 0, errTooLong
	}
	n, err := b.Conn.Read(p[:min(int64(len(p)), left)])
	b.left.Add(-int64(n))
	return n, err
}

// why says why a call failed, in words that are not the far end's.
func (b *bounded) why(err error, patience time.Duration) string {
	// The library's errors have no types for these, and hold words of the far end.
	text := err.Error()
	switch {
	case b.left.Load() <= 0:
		return fmt.Sprintf("answer over %d bytes", maxCall)
	case errors.Is(err, errAgain), strings.Contains(text, "GOAWAY"):
		return "HTTP/2 connection ended"
	case strings.Contains(text, "stream error: "):
		return "HTTP/2 stream reset"
	}
	return broken(err, patience, "closed without an answer", "malformed response")
}
