package http1

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
	"testing"
)

const browser = "GET /static/app.js?v=3 HTTP/1.1\r\nHost: shop.example:8080\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101\r\n" +
	"Accept: */*\r\nAccept-Encoding: gzip, deflate, br\r\nAccept-Language: en-US,en;q=0.5\r\nConnection: keep-alive\r\n" +
	"Referer: https://shop.example/\r\nIf-None-Match: \"abc\"\r\nCookie: a=b; c=d\r\n\r\n"

func TestWhatIsPlain(t *testing.T) {
	const host = "Host: x\r\n"
	for _, c := range []struct {
		head string
		form Form
	}{
		{browser, Plain},
		{"HEAD /?a[]=%&b HTTP/1.1\r\n" + host + "\r\n", Plain},
		{"GET / HTTP/1.1\r\nhOST:x\r\nconnection: CLOSE\r\n\r\n", Plain},
		{"GET //x HTTP/1.1\r\nHost: [::1]:80\r\nX: \t\x80 \t\r\n\r\n", Plain},
		{"GET / HTTP/1.1\r\n" + host + strings.Repeat("X: y\r\n", MaxFields-1) + "\r\n", Plain},
		{"", Partial},
		{"GET / HTTP/1.1", Partial},
		{"GET / HTTP/1.1\r\n" + host, Partial},
		{"GET / HTTP/1.1\r\n" + host + "\r", Partial},
		{"GET / HTTP/1.1\r\n" + host + strings.Repeat("X: y\r\n", MaxFields) + "\r\n", Other},
		{"\r\nGET / HTTP/1.1\r\n" + host + "\r\n", Other},
		{"GET / HTTP/1.0\r\n" + host + "\r\n", Other},
		{"GET /\r\n", Other},
		{"GET  / HTTP/1.1\r\n" + host + "\r\n", Other},
		{"GET / HTTP/1.1 \r\n" + host + "\r\n", Other},
		{"get / HTTP/1.1\r\n" + host + "\r\n", Other},
		{"POST / HTTP/1.1\r\n" + host + "\r\n", Other},
		{"GET http://x/ HTTP/1.1\r\n" + host + "\r\n", Other},
		{"GET * HTTP/1.1\r\n" + host + "\r\n", Other},
		{"GET /#a HTTP/1.1\r\n" + host + "\r\n", Other},
		{"GET /%zz HTTP/1.1\r\n" + host + "\r\n", Other},
		{"GET /%a HTTP/1.1\r\n" + host + "\r\n", Other},
		{"GET /\x80 HTTP/1.1\r\n" + host + "\r\n", Other},
		{"GET /a b HTTP/1.1\r\n" + host + "\r\n", Other},
		{"GET / HTTP/1.1\n" + host + "\r\n", Other},
		{"GET / HTTP/1.1\r\nHost: x\n\r\n", Other},
		{"GET / HTTP/1.1\r\n" + host + "\n", Other},
		{"GET / HTTP/1.1\r\n\r\n", Other},
		{"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", Other},
		{"GET / HTTP/1.1\r\nHost:\r\n\r\n", Other},
		{"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", Other},
		{"GET / HTTP/1.1\r\nHost: x/y\r\n\r\n", Other},
		{"GET / HTTP/1.1\r\n" + host + "X : y\r\n\r\n", Other},
		{"GET / HTTP/1.1\r\n" + host + "X: y\r\n z\r\n\r\n", Other},
		{"GET / HTTP/1.1\r\n" + host + ": y\r\n\r\n", Other},
		{"GET / HTTP/1.1\r\n" + host + "X\r\n\r\n", Other},
		{"GET / HTTP/1.1\r\n" + host + "X: a\rb\r\n\r\n", Other},
		{"GET / HTTP/1.1\r\n" + host + "X: 0123456789\x00\r\n\r\n", Other},
		{"GET / HTTP/1.1\r\n" + host + "X: 0123456789\x7f0123456789\r\n\r\n", Other},
		{"GET / HTTP/1.1\r\n" + host + "Content-Length: 0\r\n\r\n", Other},
		{"GET / HTTP/1.1\r\n" + host + "Content_Length: 0\r\n\r\n", Other},
		{"GET / HTTP/1.1\r\n" + host + "contentlength: 0\r\n\r\n", Other},
		{"GET / HTTP/1.1\r\n" + host + "-Transfer-Encoding: chunked\r\n\r\n", Other},
		{"GET / HTTP/1.1\r\n" + host + "Upgrade: websocket\r\n\r\n", Other},
		{"GET / HTTP/1.1\r\n" + host + "Expect: 100-continue\r\n\r\n", Other},
		{"GET / HTTP/1.1\r\n" + host + "Connection: keep-alive, X\r\n\r\n", Other},
	} {
		var q Request
		if got := q.Parse([]byte(c.head)); got != c.form {
			t.Errorf("%q: got %d, want %d", c.head, got, c.form)
		}
		if c.form == Plain && q.Bytes != len(c.head) {
			t.Errorf("%q: %d bytes", c.head, q.Bytes)
		}
	}
}

func TestAPlainRequestIsReadWhole(t *testing.T) {
	var q Request
	if q.Parse([]byte(browser)) != Plain {
		t.Fatal("it is not plain")
	}
	if q.Head || string(q.Path) != "/static/app.js" || string(q.Query) != "v=3" || string(q.Host) != "shop.example:8080" || q.Close || len(q.Fields) != 9 {
		t.Errorf("got %+v", q)
	}
	if f := q.Fields[8]; string(f.Name) != "Cookie" || string(f.Value) != "a=b; c=d" {
		t.Errorf("the last field: %q: %q", f.Name, f.Value)
	}
	head := []byte(browser)
	if n := testing.AllocsPerRun(100, func() { q.Parse(head) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestEndIsFoundInPieces(t *testing.T) {
	for _, c := range []struct {
		b    string
		want int
	}{
		{"", -1}, {"\r", -1}, {"\n", 1}, {"\r\nx", 2}, {"a\r\n\r\nb", 5}, {"a\n\nb", 3}, {"a\n\r\nb", 4}, {"a\r\n\nb", 4}, {"a\r\n\r", -1}, {"a\r\nb\r\n\r\n", 8},
	} {
		if got := End([]byte(c.b), 0); got != c.want {
			t.Errorf("%q: got %d, want %d", c.b, got, c.want)
		}
		got := -1
		for n := 1; n <= len(c.b) && got < 0; n++ {
			got = End([]byte(c.b[:n]), n-1)
		}
		if got != c.want {
			t.Errorf("%q, byte by byte: got %d, want %d", c.b, got, c.want)
		}
	}
}

// FuzzParse holds the parser, the grades and the framing to what net/http reads.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		browser,
		"HEAD /a%20b?c%zz HTTP/1.1\r\nHost: [::1]:80\r\nX:\r\nY: \t a b \t\r\n\r\nrest",
		"GET / HTTP/1.1\r\nHost: x\r\nPragma: no-cache\r\nTrailer: T\r\nConnection: close\r\n\r\nGET /2 HTTP/1.1\r\nHost: y\r\n\r\n",
		"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhelloGET",
		"POST /p HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;e\r\nhello\r\n0\r\nT: 1\r\n\r\nGET",
		"POST /p HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
		"POST /p HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\nContent-Length: 1\r\n\r\nx",
		"PUT /p HTTP/1.0\r\nContent-Length: 0\r\nTransfer-Encoding : chunked\r\n\r\n",
		"GET / HTTP/1.1\nHost: x\n\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var q Request
		form := q.Parse(b)
		if form == Partial && End(b, 0) >= 0 {
			t.Fatalf("%q is partial, and ends", b)
		}
		if form != Plain {
			differFramed(t, b)
			return
		}
		if End(b, 0) != q.Bytes {
			t.Fatalf("%q: it ends at %d, not %d", b, End(b, 0), q.Bytes)
		}
		if h := Read(b[:q.Bytes]); h.Reason != NoReason || !h.Framed || h.Length != 0 || h.Chunked {
			t.Fatalf("%q is plain, and %+v", b, h)
		}
		for n := range q.Bytes {
			var part Request
			if got := part.Parse(b[:n]); got != Partial {
				t.Fatalf("%q is plain, but %d bytes of it are %d", b, n, got)
			}
		}
		rest := bytes.NewReader(b)
		r := bufio.NewReader(rest)
		theirs, err := http.ReadRequest(r)
		if err != nil {
			t.Fatalf("%q is plain, but net/http says %v", b, err)
		}
		if used := len(b) - rest.Len() - r.Buffered(); used != q.Bytes {
			t.Fatalf("%q: net/http read %d bytes, not %d", b, used, q.Bytes)
		}
		if (theirs.Method == "HEAD") != q.Head || theirs.RequestURI != string(q.Target) || theirs.Host != string(q.Host) || theirs.Close != q.Close ||
			theirs.URL.RawQuery != string(q.Query) || theirs.URL.Host != "" || theirs.ContentLength != 0 || theirs.Body != http.NoBody {
			t.Fatalf("%q: net/http read %+v", b, theirs)
		}
		ours := http.Header{}
		for _, f := range q.Fields {
			name := textproto.CanonicalMIMEHeaderKey(string(f.Name))
			ours[name] = append(ours[name], string(f.Value))
		}
		delete(ours, "Host")
		if _, ok := ours["Cache-Control"]; !ok {
			delete(theirs.Header, "Cache-Control") // net/http makes one out of Pragma
		}
		if len(ours) != len(theirs.Header) {
			t.Fatalf("%q: net/http has the fields %q", b, theirs.Header)
		}
		for name, values := range ours {
			if !slices.Equal(values, theirs.Header[name]) {
				t.Fatalf("%q: net/http has %s: %q", b, name, theirs.Header[name])
			}
		}
	})
}

// differFramed checks that where the end of a request is said to be sure, net/http finds it there.
func differFramed(t *testing.T, b []byte) {
	end := End(b, 0)
	if end < 0 {
		return
	}
	h := Read(b[:end])
	if !h.Framed {
		return
	}
	rest := bytes.NewReader(b)
	r := bufio.NewReader(rest)
	theirs, err := http.ReadRequest(r)
	if err != nil {
		return // and answers 400
	}
	if theirs.Close && theirs.ContentLength < 0 && !h.Chunked {
		t.Fatalf("%q: net/http reads on until the connection ends", b)
	}
	body, err := io.Copy(io.Discard, theirs.Body)
	used := len(b) - rest.Len() - r.Buffered()
	want := end + int(min(h.Length, int64(len(b))))
	if h.Chunked {
		var c Chunks
		n, ended, ok := c.Next(b[end:])
		if !ok || !ended {
			return // refused, or waited for
		}
		want = end + n
	} else if body != theirs.ContentLength && err == nil || theirs.ContentLength != h.Length {
		t.Fatalf("%q: net/http reads a body of %d bytes, not %d", b, theirs.ContentLength, h.Length)
	}
	if err == nil && used != want {
		t.Fatalf("%q: net/http read %d bytes, not %d", b, used, want)
	}
}

func BenchmarkParse(b *testing.B) {
	head := []byte(browser)
	var q Request
	b.SetBytes(int64(len(head)))
	b.ReportAllocs()
	for b.Loop() {
		if q.Parse(head) != Plain {
			b.Fatal("it is not plain")
		}
	}
}
