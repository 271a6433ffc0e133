package http1

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

func TestAReplyIsReadStrictly(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	for _, c := range []struct{ head, want string }{
		{ok + "\r\n", "200 OK 1 map[] -1"},
		{ok + "Content-Length: 5\r\nX-A:  b\t \r\nx-a: c\r\nX-B:\r\n\r\n", "200 OK 1 map[Content-Length:[5] X-A:[b c] X-B:[]] 5"},
		{"HTTP/1.1 404 \r\n\r\n", "404  1 map[] -1"},
		{"HTTP/1.1 404\r\n\r\n", "404 1 map[] -1"},
		{"HTTP/1.0 200 OK\r\n\r\n", "200 OK 0 map[] -1 last"},
		{"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n\r\n", "200 OK 0 map[Connection:[Keep-Alive]] -1"},
		{ok + "Connection: x, Close\r\n\r\n", "200 OK 1 map[Connection:[x, Close]] -1 last"},
		{ok + "Transfer-Encoding: Chunked\r\nTrailer: a, B\r\n\r\n", "200 OK 1 map[] -1 chunked A B"},
		{ok + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", "200 OK 1 map[] -1 chunked last"},
		{ok + "Content-Length: 5\r\nContent-Length: 5\r\n\r\n", "200 OK 1 map[Content-Length:[5]] 5"},
		{"HTTP/1.1 200 OK\n\n", "200 OK 1 map[] -1 last"},
		{ok + "A: b\n\r\n", "200 OK 1 map[A:[b]] -1 last"},

		{ok + "Content-Length: 5\r\nContent-Length: 6\r\n\r\n", string(LengthsDiffer)},
		{ok + "Content-Length: 5, 5\r\n\r\n", string(BadLength)},
		{ok + "Content-Length: +5\r\n\r\n", string(BadLength)},
		{ok + "Content-Length: -5\r\n\r\n", string(BadLength)},
		{ok + "Content-Length: \r\n\r\n", string(BadLength)},
		{ok + "Content-Length: 99999999999999999999\r\n\r\n", string(BadLength)},
		{ok + "Content-Length: five\r\nTransfer-Encoding: chunked\r\n\r\n", string(BadLength)},
		{ok + "Transfer-Encoding: gzip, chunked\r\n\r\n", string(BadCoding)},
		{ok + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", string(BadCoding)},
		{ok + "Transfer-Encoding: \r\n\r\n", string(BadCoding)},
		{"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", string(CodingTooOld)},
		{ok + "Transfer-Encoding: chunked\r\nTrailer: content-length\r\n\r\n", string(BadTrailerName)},
		{ok + "A : b\r\n\r\n", string(BadFieldLine)},
		{ok + " A: b\r\n\r\n", string(BadFieldLine)},
		{ok + "A: b\r\n c\r\n\r\n", string(BadFieldLine)},
		{ok + ": b\r\n\r\n", string(BadFieldLine)},
		{ok + "A\r\n\r\n", string(BadFieldLine)},
		{ok + "A: b\rc\r\n\r\n", string(BadFieldLine)},
		{ok + "A: b\x00c\r\n\r\n", string(BadFieldLine)},
		{ok + "A: b", string(BadFieldLine)},
		{"HTTP/1.1 99 No\r\n\r\n", string(BadStatusLine)},
		{"HTTP/1.1 099 No\r\n\r\n", string(BadStatusLine)},
		{"HTTP/1.1 1000 No\r\n\r\n", string(BadStatusLine)},
		{"HTTP/1.1  200 OK\r\n\r\n", string(BadStatusLine)},
		{"HTTP/1.2 200 OK\r\n\r\n", string(BadStatusLine)},
		{"HTTP/2.0 200 OK\r\n\r\n", string(BadStatusLine)},
		{"http/1.1 200 OK\r\n\r\n", string(BadStatusLine)},
		{"HTTP/1.1 200 O\rK\r\n\r\n", string(BadStatusLine)},
		{"\r\n", string(BadStatusLine)},
		{"", string(BadStatusLine)},
	} {
		r, err := ReadReply([]byte(c.head))
		got := ""
		if fault, is := err.(Fault); is {
			got = string(fault)
		} else {
			got = fmt.Sprint(r.Status, " ", r.Minor, " ", r.Header, " ", r.Length)
			if r.Chunked {
				got += " chunked"
			}
			if r.Last {
				got += " last"
			}
			if len(r.Trailer) > 0 {
				got += " " + strings.Join(r.Trailer, " ")
			}
		}
		if got != c.want {
			t.Errorf("%q: %s, want %s", c.head, got, c.want)
		}
	}
}

// However a chunked body is cut, and whatever the room, its data and trailers are the same, and it ends where Next says.
func FuzzChunksData(f *testing.F) {
	f.Add([]byte("5\r\nhello\r\n0\r\n\r\nrest"), uint8(3), uint8(2))
	f.Add([]byte("a;x=y\r\n0123456789\r\n1\r\nx\r\n0\r\nA: b\r\n\r\n"), uint8(1), uint8(1))
	f.Add([]byte("0\r\nA: b\r\nB: c\r\n\r\n"), uint8(4), uint8(9))
	f.Add([]byte("5\r\nhelloX"), uint8(7), uint8(3))
	f.Fuzz(func(t *testing.T, body []byte, cut, room uint8) {
		var whole Chunks
		n, end, ok := whole.Next(body)

		data := func(cut, room int) (all []byte, tail string, read int, end, ok bool) {
			var c Chunks
			var b bytes.Buffer
			space := make([]byte, room)
			ok = true
			for at := 0; at < len(body) && ok && !end; {
				piece := body[at:min(at+cut, len(body))]
				for len(piece) > 0 && ok && !end {
					var r, filled int
					r, filled, end, ok = c.Data(space, piece, &b)
					all, piece, at = append(all, space[:filled]...), piece[r:], at+r
					if r == 0 && filled == 0 && ok && !end {
						t.Fatal("it stands still")
					}
				}
			}
			return all, b.String(), len(all), end, ok
		}
		all, tail, _, end1, ok1 := data(len(body)+1, len(body)+1)
		again, tailAgain, _, end2, ok2 := data(int(cut)+1, int(room)+1)
		if end1 != end || ok1 != ok || end2 != end || ok2 != ok || !bytes.Equal(all, again) || tail != tailAgain {
			t.Errorf("%q: %d %v %v; %q %q %v %v; %q %q %v %v", body, n, end, ok, all, tail, end1, ok1, again, tailAgain, end2, ok2)
		}
	})
}
