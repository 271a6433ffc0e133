package front

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/perigee-net/perigee/edge/http1"
)

// diary is what was asked of those behind a door, in its order.
type diary struct {
	mu   sync.Mutex
	seen []string

	done, dropped, begun atomic.Int64 // of relay
}

func (d *diary) note(what string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seen = append(d.seen, what)
}

func (d *diary) read() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.seen)
}

// ServeHTTP notes method, target and body, with "!" where that could not be read to its end.
func (d *diary) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if begun, is := http1.BegunFor(r.Context()).(*noted); is && begun.diary == d {
		d.begun.Add(1)
	}
	body, err := io.ReadAll(r.Body)
	what := strings.TrimSpace(fmt.Sprintf("%s %s %s", r.Method, r.RequestURI, body))
	if err != nil {
		what += "!"
	}
	d.note(what)
	io.WriteString(w, "ok")
}

// quick answers what is under /hit.
func (d *diary) quick(q *http1.Request, a *http1.Response) bool {
	if !strings.HasPrefix(string(q.Path), "/hit") {
		return false
	}
	d.note("hit " + string(q.Target))
	a.Status = 200
	a.Head = append(a.Head, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"...)
	a.Body = []byte("hit")
	return true
}

// relay answers after a moment what is plain, but for every second target, for which it begins something that the diary has to know of.
func (d *diary) relay(q *http1.Request, a *http1.Response, room func() []byte) (bool, http1.Begun) {
	if string(q.Path)[len(q.Path)-1]%2 == 1 {
		return false, &noted{d}
	}
	time.Sleep(time.Millisecond)
	method := "GET "
	if q.Head {
		method = "HEAD "
	}
	d.note(method + string(q.Target))
	a.Status, a.Body, a.Done = 200, []byte("ok"), func() { d.done.Add(1) }
	a.Head = append(room(), "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"...)
	return true, nil
}

// noted is what was begun for a request.
type noted struct{ *diary }

func (n *noted) Drop() { n.dropped.Add(1) }

// statuses reads answers, and says what ended them.
func statuses(c net.Conn) (got []string, end error) {
	r := bufio.NewReader(c)
	for {
		if _, err := r.Peek(1); err != nil {
			return got, err
		}
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			return got, err
		}
		if _, err := io.Copy(io.Discard, res.Body); err != nil {
			return got, err
		}
		got = append(got, fmt.Sprint(res.StatusCode))
	}
}

func TestNobodySmugglesARequest(t *testing.T) {
	const (
		host = " HTTP/1.1\r\nHost: x\r\n"
		next = "GET /next" + host + "\r\n"
		hit  = "GET /hit" + host + "\r\n"
	)
	long := strings.Repeat("a", 100<<10)
	many := make([]string, 200)
	for i := range many {
		many[i] = fmt.Sprintf("GET /%d", i)
		if i%3 == 0 {
			many[i] = fmt.Sprintf("hit /hit%d", i)
		}
	}
	pipeline := ""
	for _, m := range many {
		pipeline += "GET " + m[4:] + host + "\r\n"
	}
	for _, c := range []struct {
		name, sent string
		seen       []string // by those behind the door
		answers    string   // "" for none
		open       bool     // the connection is, after that
	}{
		// Where a request ends is beyond doubt.
		{"one after the other", next + hit + next, []string{"GET /next", "hit /hit", "GET /next"}, "200 200 200", true},
		{"many at once", pipeline, many, strings.TrimSpace(strings.Repeat("200 ", len(many))), true},
		{"a length", "POST /p" + host + "Content-Length: 5\r\n\r\nhello" + hit, []string{"POST /p hello", "hit /hit"}, "200 200", true},
		{"a body that looks like a request", "POST /p" + host + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(hit)) + hit + next, []string{"POST /p " + strings.TrimSpace(hit), "GET /next"}, "200 200", true},
		{"a length of none", "POST /p" + host + "Content-Length: 0\r\n\r\n" + hit, []string{"POST /p", "hit /hit"}, "200 200", true},
		{"chunks", "POST /p" + host + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + hit, []string{"POST /p hello", "hit /hit"}, "200 200", true},
		{"chunks with extensions and trailers", "POST /p" + host + "Transfer-Encoding:\tChunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nT: 1\r\n\r\n" + next, []string{"POST /p hello", "GET /next"}, "200 200", true},
		{"an empty line before", "\r\n" + hit + "\r\n" + next, []string{"hit /hit", "GET /next"}, "200 200", true},
		{"an absolute target", "GET http://x/hit" + host + "\r\n" + hit, []string{"GET http://x/hit", "hit /hit"}, "200 200", true},
		{"HTTP/1.0 kept alive", "GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + hit, []string{"GET /a", "hit /hit"}, "200 200", true},
		{"HTTP/1.0", "GET /a HTTP/1.0\r\n\r\n" + hit, []string{"GET /a"}, "200", false},
		{"the last one", "GET /hit" + host + "Connection: close\r\n\r\n" + next, []string{"hit /hit"}, "200", false},
		{"the last one, elsewhere", "GET /a" + host + "Connection: close\r\n\r\n" + next, []string{"GET /a"}, "200", false},
		{"a length of none in a GET", "GET /hit" + host + "Content-Length: 0\r\n\r\n" + next, []string{"GET /hit", "GET /next"}, "200 200", true},

		// Lengths that conflict.
		{"two lengths", "POST /p" + host + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello" + next, nil, "400", false},
		{"two lengths, the first hidden", "POST /p HTTP/1.1\r\n Content-Length: 5\r\nHost: x\r\nContent-Length: 6\r\n\r\nhello" + next, nil, "400", false},
		{"the same length twice", "POST /p" + host + "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello" + next, []string{"POST /p hello"}, "200", false},
		{"a list of lengths", "POST /p" + host + "Content-Length: 5, 5\r\n\r\nhello" + next, nil, "400", false},
		{"a signed length", "POST /p" + host + "Content-Length: +5\r\n\r\nhello" + next, nil, "400", false},
		{"a negative length", "POST /p" + host + "Content-Length: -5\r\n\r\nhello" + next, nil, "400", false},
		{"a hexadecimal length", "POST /p" + host + "Content-Length: 0x5\r\n\r\nhello" + next, nil, "400", false},
		{"too great a length", "POST /p" + host + "Content-Length: 18446744073709551621\r\n\r\nhello" + next, nil, "400", false},
		{"no length", "POST /p" + host + "Content-Length: \r\n\r\n" + next, nil, "400", false},
		{"a GET with a body", "GET /hit" + host + "Content-Length: 5\r\n\r\nhello" + next, []string{"GET /hit hello"}, "200", false},
		{"a GET whose body is a request", "GET /p" + host + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(hit)) + hit + next, []string{"GET /p " + strings.TrimSpace(hit)}, "200", false},
		{"a name that looks like the length's", "POST /p" + host + "Content_Length: 5\r\n\r\nhello" + next, []string{"POST /p"}, "200", false},
		{"a length's name with a space", "POST /p" + host + "Content-Length : 5\r\n\r\nhello" + next, nil, "400", false},

		// Both ways to say it, and ways to hide one.
		{"CL.TE", "POST /p" + host + "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG" + next, []string{"POST /p"}, "200", false},
		{"TE.CL", "POST /p" + host + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + next, []string{"POST /p hello"}, "200", false},
		{"TE with a space before the colon", "POST /p" + host + "Transfer-Encoding : chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + next, nil, "400", false},
		{"TE of a line's second half", "POST /p" + host + "X: a\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + next, []string{"POST /p"}, "200", false},
		{"TE behind a bare LF", "POST /p" + host + "X: a\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + next, nil, "400", false},
		{"TE behind a bare CR", "POST /p" + host + "X: a\rTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + next, nil, "400", false},
		{"TE folded", "POST /p" + host + "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + next, nil, "400", false},
		{"TE misspelt", "POST /p" + host + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + next, nil, "400", false},
		{"TE with a control character", "POST /p" + host + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + next, nil, "400", false},
		{"TE in quotes", "POST /p" + host + "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n" + next, nil, "400", false},
		{"TE twice", "POST /p" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + next, nil, "400", false},
		{"TE and another", "POST /p" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n" + next, nil, "400", false},
		{"TE not last", "POST /p" + host + "Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n" + next, nil, "400", false},
		{"TE identity", "POST /p" + host + "Transfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello" + next, nil, "501", false},
		{"TE in a GET", "GET /hit" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + next, []string{"GET /hit"}, "200", false},
		{"TE in HTTP/1.0", "POST /p HTTP/1.0\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n0\r\n\r\n" + next, []string{"POST /p"}, "200", false},
		{"TE with another alphabet's letter", "POST /p" + host + "Tran\u017ffer-Encoding: chunked\r\n\r\n0\r\n\r\n" + next, nil, "400", false},

		// Chunks that readers differ on.
		{"a chunk's size with a space", "POST /p" + host + "Transfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\n" + next, []string{"POST /p!"}, "200", false},
		{"a chunk's size and a bare LF", "POST /p" + host + "Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n" + next, []string{"POST /p!"}, "200", false},
		{"a chunk's extension and a bare LF", "POST /p" + host + "Transfer-Encoding: chunked\r\n\r\n5;\nx\r\nhello\r\n0\r\n\r\n" + next, []string{"POST /p!"}, "200", false},
		{"a chunk's size with 0x", "POST /p" + host + "Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n" + next, []string{"POST /p!"}, "200", false},
		{"a negative chunk", "POST /p" + host + "Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n" + next, []string{"POST /p!"}, "200", false},
		{"too great a chunk", "POST /p" + host + "Transfer-Encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\n" + next, []string{"POST /p!"}, "200", false},
		{"a chunk that is longer than it says", "POST /p" + host + "Transfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n" + next, []string{"POST /p hel!"}, "200", false},
		{"the last chunk and a bare LF", "POST /p" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n\n" + next, []string{"POST /p!"}, "200", false},
		{"a trailer that is folded", "POST /p" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\nT: a\r\n b\r\n\r\n" + next, []string{"POST /p!"}, "200", false},

		// Heads that readers differ on.
		{"a folded line", "GET /hit" + host + "X: a\r\n b\r\n\r\n" + next, nil, "400", false},
		{"bare LFs", "GET /hit HTTP/1.1\nHost: x\n\n" + next, nil, "400", false},
		{"NUL in a field", "GET /hit" + host + "X: a\x00b\r\n\r\n" + next, nil, "400", false},
		{"NUL in the target", "GET /hit\x00" + host + "\r\n" + next, nil, "400", false},
		{"a field without a colon", "GET /hit" + host + "X\r\n\r\n" + next, nil, "400", false},
		{"a field without a name", "GET /hit" + host + ": x\r\n\r\n" + next, nil, "400", false},
		{"a space in a field's name", "GET /hit" + host + "X Y: x\r\n\r\n" + next, nil, "400", false},
		{"two Hosts", "GET /hit" + host + "Host: y\r\n\r\n" + next, nil, "400", false},
		{"no Host", "GET /hit HTTP/1.1\r\n\r\n" + next, nil, "400", false},
		{"a Host of two", "GET /hit HTTP/1.1\r\nHost: x y\r\n\r\n" + next, nil, "400", false},
		{"a space in the target", "GET /hit a" + host + "\r\n" + next, nil, "400", false},
		{"two versions", "GET /hit HTTP/1.1 HTTP/1.1\r\nHost: x\r\n\r\n" + next, nil, "400", false},
		{"HTTP/0.9", "GET /hit\r\n\r\n" + next, nil, "400", false},
		{"a version of the future", "GET /hit HTTP/3.0\r\nHost: x\r\n\r\n" + next, nil, "505", false},
		{"a small version", "GET /hit http/1.1\r\nHost: x\r\n\r\n" + next, nil, "400", false},
		{"a method with a control character", "G\x01ET /hit" + host + "\r\n" + next, nil, "400", false},
		{"two empty lines before", "\r\n\r\n" + hit, nil, "400", false},
		{"a percent sign too many", "GET /hit%zz" + host + "\r\n" + next, nil, "400", false},
		{"a tunnel", "CONNECT x:1" + host + "\r\n" + next, []string{"CONNECT x:1"}, "200", false},
		{"a long field", "GET /hit" + host + "X: " + long + "\r\n\r\n" + next, nil, "431", false},
		{"a long target", "GET /hit" + long + host + "\r\n" + next, nil, "431", false},
		{"endless fields", "GET /hit" + host + strings.Repeat("X: y\r\n", 20<<10), nil, "431", false},
		{"TLS at the wrong door", "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n", nil, "400", false},
	} {
		for _, step := range []int{1 << 20, 1} {
			if step == 1 && len(c.sent) > 1<<10 {
				continue
			}
			inWorld(t, Config{Certificate: NewCertificates("node", func(string) bool { return false }).Get}, func(w *world) {
				for _, port := range []int{80, 443}[:min(2, step)] {
					d := new(diary)
					w.set(Door{Network: "tcp", Address: at(80), Handler: d, Quick: d.quick}, Door{Network: "tcp", Address: at(443), Handler: d, Quick: d.quick, Relay: d.relay, TLS: true})
					conn := w.dial(port)
					if port == 443 {
						secure := tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
						if err := secure.Handshake(); err != nil {
							t.Fatal(err)
						}
						conn = secure
					}
					var answers []string
					var end error
					var reads sync.WaitGroup
					reads.Go(func() { answers, end = statuses(conn) })
					for b := c.sent; b != ""; {
						n := min(step, len(b))
						if _, err := io.WriteString(conn, b[:n]); err != nil {
							break // refused already
						}
						if b = b[n:]; step == 1 {
							time.Sleep(time.Millisecond)
						}
					}
					time.Sleep(5 * time.Second)
					conn.SetReadDeadline(time.Now())
					reads.Wait()
					open := timedOut(end)
					if got := strings.Join(answers, " "); got != c.answers || open != c.open || !slices.Equal(d.read(), c.seen) {
						t.Errorf("%s, port %d, %d at a time: answered %s, open %v, seen %.200q; want %s, %v, %.200q",
							c.name, port, step, got, open, d.read(), c.answers, c.open, c.seen)
					}
					conn.Close()
				}
			})
		}
	}
}
