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

func (s script) Read(b []byte) (int, error)     { return s.Reader.Read(b) }
func (script) Write(b []byte) (int, error)      { return len(b), nil }
func (script) SetReadDeadline(time.Time) error  { return nil }
func (script) SetWriteDeadline(time.Time) error { return nil }
func (script) Close() error                     { return nil }
func (script) Pending() bool                    { return false } // what is kept is found out; what comes is kept for later

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
		"HTTP/1.1 103 Hints\r\nContent-Length: 5\r\n\r\n" + hello, "HTTP/1.1 100 Continue\r\nTransfer-Encoding: chunked\r\n\r\n" + hello,
		"HTTP/1.1 103 Hints\r\nConnection: close\r\n\r\n" + hello, "HTTP/1.0 103 Hints\n\n" + hello, "HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\nhello",
		"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "HTTP/1.1 304 No\r\nTransfer-Encoding: chunked\r\n\r\n",
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
		if !slowly {
			asAsked(t, q, sent, ours, body, oursErr)
		}
		kept := client.pool.take("origin.test:80") != nil
		in := bufio.NewReader(bytes.NewReader(sent))
		var theirs *http.Response
		for {
			if theirs, err = http.ReadResponse(in, q); err != nil {
				t.Fatalf("net/http: %v; ours: %v %v %q", err, ours.Status, ours.Header, body)
			}
			if n := theirs.StatusCode; kept && (n < 200 || n == http.StatusNoContent || n == http.StatusNotModified) && announces(theirs) {
				t.Errorf("%q: a connection is kept on which a body may come yet", sent)
			}
			if theirs.StatusCode >= 200 {
				break
			}
		}
		theirBody, theirErr := io.ReadAll(theirs.Body)
		if kept && (theirs.Close || in.Buffered() > 0 && !slowly) { // what comes slowly has not come when it is kept
			t.Errorf("%q: a connection is kept with %d bytes that came unasked; the last: %v", sent, in.Buffered(), theirs.Close)
		}
		delete(ours.Header, "Connection") // where it says close, net/http takes off what else it says, so that nobody knows of it
		delete(theirs.Header, "Connection")
		if len(ours.TransferEncoding) == 0 { // there can be none, and net/http leaves the field as it is
			delete(theirs.Header, "Trailer")
		}
		if len(ours.TransferEncoding) > 0 { // net/http says a length as well, where there is no body
			delete(theirs.Header, "Content-Length")
			if head {
				theirs.ContentLength = -1
			}
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

// announces says whether a head has it that a body follows, whatever its status is.
func announces(r *http.Response) bool {
	return len(r.TransferEncoding) > 0 || r.Header.Get("Transfer-Encoding") != "" || strings.Trim(r.Header.Get("Content-Length"), "0") != ""
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

// asAsked fails where a request that is bytes, on a connection that is kept, has another response than the same by RoundTrip.
func asAsked(t *testing.T, q *http.Request, sent []byte, want *http.Response, body []byte, ended error) {
	first := []byte(hello)
	if q.Method == http.MethodHead {
		first = first[:len(first)-len("hello")]
	}
	client := New(Config{
		Dial: func(context.Context, string, string) (net.Conn, error) {
			return script{Reader: io.MultiReader(bytes.NewReader(first), bytes.NewReader(sent))}, nil
		},
		MaxHead: 16 << 10, MaxIdle: 1, IdleTimeout: time.Second, Faults: new(atomic.Uint64),
	})
	res, err := client.RoundTrip(q)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, res.Body)
	asking := client.Asking(q.Method == http.MethodHead, time.Now())
	asking.Head = append(asking.Head, q.Method+" / HTTP/1.1\r\nHost: origin.test\r\n\r\n"...)
	if asking.Soon("origin.test:80") {
		h := http.Header{}
		for _, f := range asking.Reply.Fields {
			h.Add(string(f.Name), string(f.Value))
		}
		was := want.Header.Clone()
		for _, name := range []string{"Connection", "Keep-Alive", "Content-Length"} {
			was.Del(name)
		}
		if asking.Reply.Code != want.StatusCode || asking.Reply.Length != want.ContentLength || !reflect.DeepEqual(h, was) || !bytes.Equal(asking.Body, body) || ended != nil || want.Close {
			t.Errorf("%q:\nasked %d %v %q\nours  %v %v %q %v", sent, asking.Reply.Code, h, asking.Body, want.Status, want.Header, body, ended)
		}
		asking.Done()
		if client.pool.take("origin.test:80") == nil {
			t.Errorf("%q: the connection is not kept", sent)
		}
		return
	}
	res, err = asking.Call(q, nil).Soon()
	if err != nil {
		t.Errorf("%q: gone on with, it fails: %v", sent, err)
		return
	}
	again, err := io.ReadAll(res.Body)
	if res.StatusCode != want.StatusCode || !reflect.DeepEqual(res.Header, want.Header) || !bytes.Equal(again, body) || (err == nil) != (ended == nil) {
		t.Errorf("%q:\ngone on with %v %v %q %v\nours         %v %v %q %v", sent, res.Status, res.Header, again, err, want.Status, want.Header, body, ended)
	}
}
