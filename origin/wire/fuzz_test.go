package wire

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"maps"
	"net"
	"net/http"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"
)

// script is a connection on which the far end has sent all that it ever will.
type script struct {
	io.Reader
	net.Conn
}

func (s script) Read(b []byte) (int, error)      { return s.Reader.Read(b) }
func (script) Write(b []byte) (int, error)       { return len(b), nil }
func (script) SetReadDeadline(_ time.Time) error { return nil }
func (script) Close() error                      { return nil }

// What is taken for a response net/http takes for the same response: status, fields, body, trailers, and whether it ended well.
// So nobody is told by this client what he would not have been told by that one; the other way around this one is stricter.
func FuzzResponse(f *testing.F) {
	for _, text := range []string{
		hello, "HTTP/1.0 200 OK\r\n\r\nhello", "HTTP/1.1 204 No\r\nA: b\r\n\r\n", "HTTP/1.1 304 No\r\nContent-Length: 5\r\nEtag: \"x\"\r\n\r\n",
		"HTTP/1.1 200 OK\nContent-Length: 2\nX: y\n\nhi", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: A\r\n\r\n3;x\r\nabc\r\n0\r\nA: b\r\nC: d\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nConnection: close, x\r\nPragma: no-cache\r\n\r\nrest", "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\ncontent-length: 5\r\n\r\nhello", "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
	} {
		f.Add([]byte(text), false, false)
		f.Add([]byte(text), true, true)
	}
	f.Fuzz(func(t *testing.T, sent []byte, head, slowly bool) {
		method := "GET"
		if head {
			method = "HEAD"
		}
		q, _ := http.NewRequest(method, "http://origin.test/", nil)
		var faults atomic.Uint64
		client := New(Config{
			Dial: func(context.Context, string, string) (net.Conn, error) {
				r := io.Reader(bytes.NewReader(sent))
				if slowly {
					r = iotest.OneByteReader(r)
				}
				return script{Reader: r}, nil
			},
			MaxHead: 16 << 10, MaxIdle: 1, IdleTimeout: time.Second, Faults: &faults,
		})
		ours, err := client.RoundTrip(q)
		if err != nil {
			return
		}
		body, oursErr := io.ReadAll(ours.Body)
		in := bufio.NewReader(bytes.NewReader(sent))
		var theirs *http.Response
		for {
			if theirs, err = http.ReadResponse(in, q); err != nil {
				t.Fatalf("net/http: %v; ours: %v %v %q", err, ours.Status, ours.Header, body)
			}
			if theirs.StatusCode >= 200 {
				break
			}
		}
		theirBody, theirErr := io.ReadAll(theirs.Body)
		delete(ours.Header, "Connection") // where it says close, net/http takes off what else it says, so that nobody knows of it
		delete(theirs.Header, "Connection")
		if len(ours.TransferEncoding) == 0 { // there can be none, and net/http leaves the field as it is
			delete(theirs.Header, "Trailer")
		}
		if head && len(ours.TransferEncoding) > 0 { // net/http says a length as well
			delete(theirs.Header, "Content-Length")
			theirs.ContentLength = -1
		}
		if ours.StatusCode != theirs.StatusCode || strings.TrimSpace(ours.Status) != strings.TrimSpace(theirs.Status) || ours.Proto != theirs.Proto ||
			ours.ProtoMinor != theirs.ProtoMinor || !reflect.DeepEqual(ours.Header, theirs.Header) || ours.ContentLength != theirs.ContentLength {
			t.Errorf("%q:\nours   %v %v %v\ntheirs %v %v %v", sent, ours.Status, ours.Header, ours.ContentLength, theirs.Status, theirs.Header, theirs.ContentLength)
		}
		if theirs.Close && !ours.Close {
			t.Errorf("%q: it is the last response of its connection", sent)
		}
		if oursErr != nil {
			return
		}
		if theirErr != nil || !bytes.Equal(body, theirBody) || !maps.EqualFunc(filled(ours.Trailer), filled(theirs.Trailer), func(a, b []string) bool { return reflect.DeepEqual(a, b) }) {
			t.Errorf("%q:\nours   %q %v\ntheirs %q %v %v", sent, body, ours.Trailer, theirBody, theirs.Trailer, theirErr)
		}
	})
}

// filled are the trailers that came.
func filled(h http.Header) http.Header {
	came := http.Header{}
	for name, lines := range h {
		if lines != nil {
			came[name] = lines
		}
	}
	return came
}
