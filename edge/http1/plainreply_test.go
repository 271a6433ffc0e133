package http1

import (
	"fmt"
	"net/textproto"
	"reflect"
	"strings"
	"testing"
)

func TestAReplyOfThePlainFormIsReadInPlace(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	for _, c := range []struct{ head, want string }{
		{ok + "Content-Length: 5\r\nx-a:  b\t \r\nX-B:\r\n\r\nhello", "plain 200 5 [x-a:b X-B:]"},
		{"HTTP/1.1 404\r\nContent-Length: 0\r\nConnection: Keep-Alive\r\nKeep-Alive: timeout=5\r\n\r\n", "plain 404 0 []"},
		{ok + "Content-Length: 5\r\nPragma: no-cache\r\nCache-Control: no-store\r\n\r\n", "plain 200 5 [Pragma:no-cache Cache-Control:no-store]"},
		{"HTTP/1.1 20", "partial"},
		{ok + "Content-Length: 5\r\n", "partial"},
		{ok + "\r\n", "other"},
		{ok + "Content-Length: 5\r\nPragma: no-cache\r\n\r\n", "other"},
		{"HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\n", "other"},
		{"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", "other"},
		{"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", "other"},
		{"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", "other"},
		{"HTTP/1.1 2000 OK\r\nContent-Length: 5\r\n\r\n", "other"},
		{"HTTP/1.1 200 O\rK\r\nContent-Length: 5\r\n\r\n", "other"},
		{ok + "Content-Length: 5\r\nContent-Length: 5\r\n\r\n", "other"},
		{ok + "Content-Length: 5, 5\r\n\r\n", "other"},
		{ok + "Content-Length: +5\r\n\r\n", "other"},
		{ok + "Content-Length: 5\r\nConnection: close\r\n\r\n", "other"},
		{ok + "Content-Length: 5\r\nConnection: x-a, keep-alive\r\n\r\n", "other"},
		{ok + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "other"},
		{ok + "Content-Length: 5\r\nTrailer: a\r\n\r\n", "other"},
		{ok + "Content-Length: 5\r\nProxy-Authenticate: a\r\n\r\n", "other"},
		{ok + "Content-Length: 5\nA: b\r\n\r\n", "other"},
		{ok + "Content-Length: 5\r\nA : b\r\n\r\n", "other"},
		{ok + "Content-Length: 5\r\nA: b\r\n c\r\n\r\n", "other"},
		{ok + "Content-Length: 5\r\nA: b\x00\r\n\r\n", "other"},
		{ok + "Content-Length: 5\r\n" + strings.Repeat("A: b\r\n", MaxFields+1) + "\r\n", "other"},
	} {
		var r PlainReply
		got := "other"
		switch r.Parse([]byte(c.head)) {
		case Plain:
			var fields []string
			for _, f := range r.Fields {
				fields = append(fields, string(f.Name)+":"+string(f.Value))
			}
			got = fmt.Sprint("plain ", r.Code, " ", r.Length, " ", fields)
		case Partial:
			got = "partial"
		}
		if got != c.want {
			t.Errorf("%q: %s, want %s", c.head, got, c.want)
		}
	}
}

// What is of the plain form is the same response to ReadReply, of a connection that stays, and its head ends where End says.
func FuzzPlainReply(f *testing.F) {
	for _, text := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nx-a: b\r\nX-A: c\r\n\r\nhello", "HTTP/1.1 404\r\nConnection: keep-alive\r\nKeep-Alive: x\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nPragma: no-cache\r\nCache-Control: private\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nPragma: no-cache\r\n\r\n",
		"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n", "HTTP/1.1 200 OK\r\nTE: a\r\nContent-Length: 1\r\n\r\n",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r PlainReply
		form := r.Parse(b)
		end := End(b, 0)
		if form != Plain {
			if form == Partial && end >= 0 {
				t.Fatalf("%q: partial, and ends at %d", b, end)
			}
			return
		}
		if r.Bytes != end {
			t.Fatalf("%q: ends at %d, and not at %d", b, end, r.Bytes)
		}
		want, err := ReadReply(b[:end])
		if err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		if want.Last || want.Chunked || want.Minor != 1 || want.Trailer != nil || !want.HasBody("GET") || want.Code != r.Code || want.Length != r.Length {
			t.Fatalf("%q: %+v, want %+v", b, r, want)
		}
		got := map[string][]string{}
		for _, f := range r.Fields {
			name := string(AppendName(nil, f.Name))
			if name != textproto.CanonicalMIMEHeaderKey(string(f.Name)) {
				t.Fatalf("%q: a field is called %s", b, name)
			}
			got[name] = append(got[name], string(f.Value))
		}
		for _, name := range []string{"Connection", "Keep-Alive", "Content-Length"} {
			delete(want.Header, name)
		}
		if !reflect.DeepEqual(got, map[string][]string(want.Header)) {
			t.Fatalf("%q: %v, want %v", b, got, want.Header)
		}
	})
}
