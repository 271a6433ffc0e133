package front

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/perigee-net/perigee/edge/http1"
)

func TestAHitTakesNoAllocation(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "object"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() }) // after the front has ended
	if err := file.Truncate(100 << 10); err != nil {
		t.Fatal(err)
	}
	done := func() {}
	for i, size := range []int{1 << 10, 100 << 10, 100 << 10} { // written in one piece, in two, and sent from a file
		quick := ready(make([]byte, size))
		if i == 2 {
			quick = func(q *http1.Request, a *http1.Response) bool {
				a.Head = append(a.Head, "HTTP/1.1 200 OK\r\nContent-Length: 102400\r\n\r\n"...)
				a.File, a.Length, a.Done = file, 100<<10, done
				return true
			}
		}
		c, err := net.Dial("tcp", onLoopback(t, Config{}, Door{Quick: quick, Handler: http.NotFoundHandler()})[0])
		if err != nil {
			t.Fatal(err)
		}
		asked := []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		c.Write(asked)
		first, err := http.ReadResponse(bufio.NewReaderSize(c, 1<<20), nil)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, first.Body)
		var a http1.Response
		quick(nil, &a)
		answer := make([]byte, len(a.Head)+size)
		if n := testing.AllocsPerRun(200, func() {
			if _, err := c.Write(asked); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, answer); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%d bytes: %v allocations a hit", size, n)
		}
		c.Close()
	}
}

// files is a Quick that answers with the target's length of a file, after a body.
func files(file *os.File, done *atomic.Int64) http1.Quick {
	return func(q *http1.Request, a *http1.Response) bool {
		var offset, length int64
		if n, _ := fmt.Sscanf(string(q.Path), "/file/%d/%d", &offset, &length); n != 2 {
			return false
		}
		a.Head = fmt.Appendf(a.Head, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", 5+length)
		a.Body, a.File, a.Offset, a.Length = []byte("file:"), file, offset, length
		a.Done = func() { done.Add(1) }
		return true
	}
}

// What is answered here and what net/http answers come in the order in which they were asked for, whatever is sent together,
// over sockets of the system with and without TLS.
func TestOneConnectionServesAllKinds(t *testing.T) {
	content := make([]byte, 3<<20)
	for i := range content {
		content[i] = byte(i * 7 >> 3)
	}
	file, err := os.Create(filepath.Join(t.TempDir(), "object"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() }) // after the front has ended
	if _, err := file.Write(content); err != nil {
		t.Fatal(err)
	}
	var done atomic.Int64
	quick := files(file, &done)
	large := ready(content[:1<<20])
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if (r.TLS != nil) != (r.Header.Get("X-TLS") == "1") {
			http.Error(w, "TLS is not what it is", 500)
		}
		fmt.Fprintf(w, "%s %d %.5s", r.Method, len(body), body)
	})
	door := Door{Handler: handler, Quick: func(q *http1.Request, a *http1.Response) bool {
		if string(q.Path) == "/large" {
			return large(q, a)
		}
		return quick(q, a)
	}}
	secure := door
	secure.TLS = true
	at := onLoopback(t, Config{Certificate: NewCertificates("node", func(string) bool { return false }).Get}, door, secure)
	for i, address := range at {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			s := tls.Client(c, &tls.Config{InsecureSkipVerify: true})
			if err := s.Handshake(); err != nil {
				t.Fatal(err)
			}
			c = s
		}
		var asks bytes.Buffer
		var want []string
		add := func(line, header, body, answer string) {
			fmt.Fprintf(&asks, "%s HTTP/1.1\r\nHost: x\r\nX-TLS: %d\r\n%s\r\n%s", line, i, header, body)
			want = append(want, answer)
		}
		upload := strings.Repeat("upload", 100_000)
		for range 3 {
			add("GET /file/100/200000", "", "", "file:"+string(content[100:200100]))
			add("GET /miss", "", "", "GET 0 ")
			add("GET /file/0/10", "", "", "file:"+string(content[:10]))
			add("GET /large", "", "", string(content[:1<<20]))
			add("POST /p", "Content-Length: 600000\r\n", upload, "POST 600000 uploa")
			add("GET /file/0/0", "", "", "file:")
			add("POST /p", "Transfer-Encoding: chunked\r\n", fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(upload), upload), "POST 600000 uploa")
			add(fmt.Sprintf("GET /file/1000/%d", len(content)-1000), "", "", "file:"+string(content[1000:]))
		}
		var sends sync.WaitGroup
		sends.Go(func() { c.Write(asks.Bytes()) })
		r := bufio.NewReader(c)
		for n, w := range want {
			res, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatalf("answer %d: %v", n, err)
			}
			got, err := io.ReadAll(res.Body)
			if err != nil || string(got) != w {
				t.Fatalf("answer %d: %d bytes %.40q, %v; want %d bytes %.40q", n, len(got), got, err, len(w), w)
			}
		}
		sends.Wait()
		io.WriteString(c, "HEAD /file/0/10 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		left, err := io.ReadAll(r)
		if string(left) != "HTTP/1.1 200 OK\r\nContent-Length: 15\r\nConnection: close\r\n\r\n" {
			t.Errorf("the last answer: %q, %v", left, err)
		}
		c.Close()
	}
	if done.Load() != 2*13 {
		t.Errorf("%d of 26 files were given back", done.Load())
	}
}

func TestInterimAnswersAndUpgradesPassThroughALoan(t *testing.T) {
	inWorld(t, Config{}, func(w *world) {
		d := new(diary)
		w.set(Door{Network: "tcp", Address: at(80), Quick: d.quick, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/early":
				rw.Header().Set("Link", "</a>")
				rw.WriteHeader(http.StatusEarlyHints)
			case "/upgrade":
				c, b, err := http.NewResponseController(rw).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
				io.Copy(c, b)
				return
			}
			body, _ := io.ReadAll(r.Body)
			rw.Write(body)
		})})
		c := w.dial(80)
		defer c.Close()
		r := bufio.NewReader(c)
		next := func(want string) {
			t.Helper()
			res, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			var body []byte
			if res.StatusCode != 101 {
				body, _ = io.ReadAll(res.Body)
			}
			if got := fmt.Sprintf("%d %s", res.StatusCode, body); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		}
		io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
		next("100 ")
		io.WriteString(c, "helloGET /hit HTTP/1.1\r\nHost: x\r\n\r\n")
		next("200 hello")
		next("200 hit")
		io.WriteString(c, "GET /early HTTP/1.1\r\nHost: x\r\n\r\nGET /hit HTTP/1.1\r\nHost: x\r\n\r\n")
		next("103 ")
		next("200 ")
		next("200 hit")
		io.WriteString(c, "GET /no HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nGET /hit HTTP/1.1\r\nHost: x\r\n\r\n")
		next("200 ")
		next("200 hit") // nobody took it
		io.WriteString(c, "GET /upgrade HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nGET /hit and so on")
		next("101 ")
		io.WriteString(c, ", and on")
		b := make([]byte, len("GET /hit and so on, and on"))
		if !full(r, b) || string(b) != "GET /hit and so on, and on" {
			t.Errorf("the other protocol carried %q", b)
		}
	})
}

func TestNetHTTPIsLentOneConnectionAgainAndAgain(t *testing.T) {
	inWorld(t, Config{}, func(w *world) {
		d := new(diary)
		w.set(Door{Network: "tcp", Address: at(80), Handler: d, Quick: d.quick})
		c := w.dial(80)
		defer c.Close()
		var want []string
		for _, rest := range []time.Duration{0, loanRest / 2, loanRest, 2 * loanRest, idleTimeout - time.Second} {
			time.Sleep(rest)
			for _, sent := range []string{"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab", "GET /hit HTTP/1.1\r\nHost: x\r\n\r\n", "GET /a HTTP/1.1\r\nHost: x\r\n\r\n"} {
				io.WriteString(c, sent)
				if got := answer(c); !strings.HasPrefix(got, "200 ") {
					t.Fatalf("after %v: %s", rest, got)
				}
			}
			want = append(want, "POST /p ab", "hit /hit", "GET /a")
		}
		if !slices.Equal(d.read(), want) {
			t.Errorf("seen %q", d.read())
		}
		w.counted("front_quick_total", 5)
		w.counted("front_requests_total", 15)
		w.counted("front_connections_total", 1)
	})
}

func TestAHandlerIsToldThatItsClientLeft(t *testing.T) {
	inWorld(t, Config{}, func(w *world) {
		d, told := new(diary), make(chan time.Duration, 2)
		w.set(Door{Network: "tcp", Address: at(80), Quick: d.quick, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			start := time.Now()
			select {
			case <-r.Context().Done():
			case <-time.After(time.Minute):
			}
			told <- time.Since(start)
		})})
		for _, body := range []string{"", "hello"} {
			c := w.dial(80)
			fmt.Fprintf(c, "GET /hit HTTP/1.1\r\nHost: x\r\n\r\nPOST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
			time.Sleep(time.Second)
			c.Close()
			took := <-told
			if body == "" && took > 2*time.Second {
				t.Errorf("told after %v", took)
			}
		}
	})
}

func TestPipelinedBytesWaitForTheirTurn(t *testing.T) {
	inWorld(t, Config{}, func(w *world) {
		d := new(diary)
		w.set(Door{Network: "tcp", Address: at(80), Quick: d.quick, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			time.Sleep(5 * time.Second)
			d.note(r.RequestURI)
		})})
		c := w.dial(80)
		defer c.Close()
		var want []string
		var asks strings.Builder
		for i := range 1000 { // far more than a connection holds while its handler runs
			p := fmt.Sprintf("/hit%d", i)
			want = append(want, "hit "+p)
			if i%250 == 0 {
				p = fmt.Sprintf("/slow%d", i)
				want[i] = p
			}
			fmt.Fprintf(&asks, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", p)
		}
		var sends sync.WaitGroup
		sends.Go(func() { io.WriteString(c, asks.String()) })
		r := bufio.NewReader(c)
		for range want {
			res, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, res.Body)
		}
		sends.Wait()
		if !slices.Equal(d.read(), want) {
			t.Errorf("seen %.300q", d.read())
		}
	})
}

// What a Relay answers, what is begun by it, hits and what is lent come in their order, whatever is sent together; what was begun is the
// handler's to go on with, and is dropped after it.
func TestARelayIsAskedBetweenQuickAndTheHandler(t *testing.T) {
	inWorld(t, Config{}, func(w *world) {
		d := new(diary)
		w.set(Door{Network: "tcp", Address: at(80), Handler: d, Quick: d.quick, Relay: d.relay})
		c := w.dial(80)
		defer c.Close()
		var sent strings.Builder
		var want []string
		for i := range 100 {
			for _, target := range []string{"/a0", "/hit", "/a1", "/a2?q", "/a4"} {
				fmt.Fprintf(&sent, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", target)
				want = append(want, map[bool]string{true: "hit ", false: "GET "}[target == "/hit"]+target)
			}
			if i%10 == 0 {
				sent.WriteString("POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab")
				want = append(want, "POST /p ab")
			}
		}
		sent.WriteString("GET /b0 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\nGET /c0 HTTP/1.1\r\nHost: x\r\n\r\n")
		want = append(want, "GET /b0")
		go io.WriteString(c, sent.String())
		answers, end := statuses(c)
		if len(answers) != len(want) || end != io.EOF || !slices.Equal(d.read(), want) {
			t.Errorf("%d answers, %v; want %d: %q", len(answers), end, len(want), d.read())
		}
		if d.done.Load() != 301 || d.begun.Load() != 100 || d.dropped.Load() != 100 {
			t.Errorf("%d were done, %d begun, %d dropped", d.done.Load(), d.begun.Load(), d.dropped.Load())
		}
		w.counted("front_relayed_total", 301)
	})
}

func TestAPanicInQuickCostsItsConnection(t *testing.T) {
	inWorld(t, Config{}, func(w *world) {
		w.set(Door{Network: "tcp", Address: at(80), Handler: says("fine"), Quick: func(q *http1.Request, _ *http1.Response) bool {
			if string(q.Path) == "/panic" {
				panic("at the disco")
			}
			return false
		}})
		c, other := w.dial(80), w.dial(80)
		defer other.Close()
		ask(other, "/")
		if got := ask(c, "/panic"); got != "unexpected EOF" {
			t.Errorf("got %s", got)
		}
		c.Close()
		if got := ask(other, "/"); got != "200 fine" {
			t.Errorf("another: %s", got)
		}
		w.counted("front_panics_total", 1)
		w.counted("front_connections", 1)
	})
}

func TestHotConnectionsLeaveWhenTheyAreToldTo(t *testing.T) {
	for name, leave := range map[string]func(*world){
		"retired": func(w *world) { w.front.Retire() },
		"closed":  func(w *world) { w.front.Set(nil) },
	} {
		inWorld(t, Config{Certificate: NewCertificates("node", func(string) bool { return false }).Get}, func(w *world) {
			d := new(diary)
			w.set(Door{Network: "tcp", Address: at(80), Handler: d, Quick: d.quick}, Door{Network: "tcp", Address: at(443), Handler: d, Quick: d.quick, TLS: true})
			idle, half, silent := w.dial(80), w.dial(80), w.dial(80)
			secure := tls.Client(w.dial(443), &tls.Config{InsecureSkipVerify: true})
			for _, c := range []net.Conn{idle, half, secure} {
				if got := ask(c, "/hit"); got != "200 hit" {
					t.Errorf("%s: before: %s", name, got)
				}
			}
			io.WriteString(half, "GET /hit HTTP/1.1\r\n")
			time.Sleep(time.Second)
			leave(w)
			for what, c := range map[string]net.Conn{"an idle one": idle, "an idle one with TLS": secure} {
				if took := ended(c); took > time.Second {
					t.Errorf("%s: %s ended after %v", name, what, took)
				}
			}
			for what, c := range map[string]net.Conn{"one in the midst of a head": half, "one that had not asked yet": silent} {
				rest := "GET /hit HTTP/1.1\r\nHost: x\r\n\r\n"
				if c == half {
					rest = "Host: x\r\n\r\n"
				}
				io.WriteString(c, rest)
				res, err := http.ReadResponse(bufio.NewReader(c), nil)
				if err != nil || res.StatusCode != 200 || !res.Close {
					t.Errorf("%s: %s: %v %v", name, what, res, err)
				}
				if took := ended(c); took > time.Second {
					t.Errorf("%s: %s ended after %v", name, what, took)
				}
				c.Close()
			}
			w.counted("front_connections", 0)
		})
	}
}

// Doors change, retire and close under load: each answer that begins is whole, and what was asked of a connection that the
// front said it would keep is answered.
func TestNoAnswerIsCutShortByADrain(t *testing.T) {
	d := new(diary)
	slow := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Write(make([]byte, 50<<10))
	})
	door := Door{Network: "tcp", Handler: slow, Quick: func(q *http1.Request, a *http1.Response) bool {
		return d.quick(q, a)
	}}
	var address string
	f := New(Config{Listen: func(network, _ string) (net.Listener, error) {
		l, err := Listen(network, "127.0.0.1:0")
		if err == nil {
			address = l.Addr().String()
		}
		return l, err
	}})
	door.Address = at(1)
	if err := f.Set([]Door{door}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var people sync.WaitGroup
	answered := make(chan struct{})
	for i := range 8 {
		people.Go(func() {
			for ctx.Err() == nil {
				c, err := net.Dial("tcp", address)
				if err != nil {
					return // it is closed
				}
				r := bufio.NewReader(c)
				for n := 0; ; n++ {
					ask := "GET /hit HTTP/1.1\r\nHost: x\r\n\r\n"
					if (n+i)%3 == 0 {
						ask = "POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
					}
					if _, err := io.WriteString(c, ask); err != nil {
						break
					}
					if _, err := r.Peek(1); err != nil {
						break // it was idle
					}
					res, err := http.ReadResponse(r, nil)
					if err == nil {
						_, err = io.Copy(io.Discard, res.Body)
					}
					if err != nil {
						t.Errorf("an answer was cut short: %v", err)
						break
					}
					select {
					case answered <- struct{}{}:
					case <-ctx.Done():
					}
					if res.Close {
						break
					}
				}
				c.Close()
			}
		})
	}
	for i := range 50 {
		for range 20 {
			<-answered
		}
		switch i % 3 {
		case 0:
			f.Retire()
		case 1:
			f.Resume()
		default:
			if err := f.Set([]Door{door}); err != nil {
				t.Error(err)
			}
		}
	}
	closed := make(chan error)
	people.Go(func() { closed <- f.Close(ctx) })
	for open := true; open; {
		select {
		case <-answered:
		case err := <-closed:
			if open = false; err != nil {
				t.Error(err)
			}
		}
	}
	cancel()
	people.Wait()
	c := f.Counters()
	if c["front_connections"] != 0 || c["front_bad_requests_total"] != 0 || c["front_panics_total"] != 0 {
		t.Errorf("counted %v", c)
	}
}

func TestTheModeDecidesWhatIsServed(t *testing.T) {
	const (
		compliant  = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
		acceptable = "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
		ambiguous  = "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx"
		severe     = "GET / HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n"
	)
	for _, c := range []struct {
		front, door http1.Mitigation
		want        string // of the four, each twice on one connection
	}{
		{http1.Unset, http1.Unset, "200 200, 200 200, 200, 400"},
		{http1.Monitor, http1.Unset, "200 200, 200 200, 200, 200"}, // no other request is looked for behind one whose end is in doubt
		{http1.Monitor, http1.Defensive, "200 200, 200 200, 200, 400"},
		{http1.Unset, http1.Strictest, "200 200, 400, 400, 400"},
	} {
		inWorld(t, Config{Desync: c.front}, func(w *world) {
			var alone []bool
			w.set(Door{Network: "tcp", Address: at(80), Desync: c.door, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				alone = append(alone, http1.IsAlone(r.Context()))
			})})
			var got []string
			for _, sent := range []string{compliant, acceptable, ambiguous, severe} {
				conn := w.dial(80)
				io.WriteString(conn, sent+sent)
				time.Sleep(time.Second)
				closeWrite(conn)
				answers, _ := statuses(conn)
				got = append(got, strings.Join(answers, " "))
				conn.Close()
			}
			if got := strings.Join(got, ", "); got != c.want {
				t.Errorf("front %d, door %d: got %s, want %s", c.front, c.door, got, c.want)
			}
			if served := c.want == "200 200, 200 200, 200, 400"; served != slices.Contains(alone, true) {
				t.Errorf("front %d, door %d: handlers were told %v", c.front, c.door, alone)
			}
			refused := uint64(strings.Count(c.want, "400"))
			w.counted("front_desync_refused_total", refused)
			w.counted("front_bad_requests_total", refused)
			w.counted("front_desync_acceptable_total", w.front.Counters()["front_desync_get_head_zero_content_length_total"])
			w.counted("front_desync_severe_total", w.front.Counters()["front_desync_bad_header_total"])
		})
	}
}
