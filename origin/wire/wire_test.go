package wire

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// world is a client and one origin, which is a function for each connection. It must return.
type world struct {
	*Client
	t      *testing.T
	faults atomic.Uint64
	dials  atomic.Int64
	heard  chan string // request lines, as far as there is room
}

func inWorld(t *testing.T, c Config, serve func(w *world, conn net.Conn, r *bufio.Reader), f func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) {
		in := memnet.New(1)
		origin := in.Host("origin", spec.Location{}, netip.MustParseAddr("10.0.0.1"))
		edge := in.Host("edge", spec.Location{}, netip.MustParseAddr("10.0.0.2"))
		w := &world{t: t, heard: make(chan string, 100)}
		if c.MaxHead == 0 {
			c.MaxHead = 16 << 10
		}
		if c.MaxIdle == 0 {
			c.MaxIdle = 8
		}
		c.IdleTimeout, c.Faults = 5*time.Second, &w.faults
		c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			w.dials.Add(1)
			return edge.Dial(ctx, network, address)
		}
		w.Client = New(c)
		l, err := origin.Listen("tcp", ":80")
		if err != nil {
			t.Fatal(err)
		}
		var serving sync.WaitGroup
		serving.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				serving.Go(func() {
					defer conn.Close()
					serve(w, conn, bufio.NewReader(conn))
				})
			}
		})
		f(t, w)
		w.CloseIdleConnections()
		l.Close()
		serving.Wait()
		in.Close()
	})
}

// hears reads the head of a request.
func (w *world) hears(r *bufio.Reader) bool {
	q, err := http.ReadRequest(r)
	if err != nil {
		return false
	}
	select {
	case w.heard <- q.Method + " " + q.URL.String():
	default:
	}
	return true
}

// answers has each request of a connection answered alike.
func answers(text string) func(*world, net.Conn, *bufio.Reader) {
	return func(w *world, conn net.Conn, r *bufio.Reader) {
		for w.hears(r) {
			io.WriteString(conn, text)
		}
	}
}

func request(ctx context.Context, method, path string) *http.Request {
	q, err := http.NewRequestWithContext(ctx, method, "http://10.0.0.1"+path, nil)
	if err != nil {
		panic(err)
	}
	return q
}

// ask asks and reads all; what went wrong is the text.
func (w *world) ask(ctx context.Context, method, path string) string {
	res, err := w.RoundTrip(request(ctx, method, path))
	if err != nil {
		return "error: " + err.Error()
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	text := fmt.Sprint(res.StatusCode, " ", string(b))
	if len(res.Trailer) > 0 {
		text += fmt.Sprint(" ", res.Trailer)
	}
	if err != nil {
		text += "… " + err.Error()
	}
	return text
}

func (w *world) must(method, path, want string) {
	w.t.Helper()
	if got := w.ask(w.t.Context(), method, path); got != want {
		w.t.Errorf("%s %s: %q, want %q", method, path, got, want)
	}
}

const hello = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"

func TestAConnectionIsKeptWhenTheResponseHasEnded(t *testing.T) {
	for _, c := range []struct {
		name, method, sends, want string
		kept                      bool
	}{
		{"a length", "GET", hello, "200 hello", true},
		{"chunks", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n", "200 hello", true},
		{"trailers", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: A\r\n\r\n5\r\nhello\r\n0\r\nA: b\r\nB: c\r\n\r\n", "200 hello map[A:[b] B:[c]]", true},
		{"HEAD", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "200 ", true},
		{"204", "GET", "HTTP/1.1 204 No Content\r\n\r\n", "204 ", true},
		{"304", "GET", "HTTP/1.1 304 Not Modified\r\nEtag: \"a\"\r\n\r\n", "304 ", true},
		{"204 of no bytes", "GET", "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", "204 ", true},
		{"interim of no bytes", "GET", "HTTP/1.1 103 Early Hints\r\nContent-Length: 0\r\n\r\n" + hello, "200 hello", true},
		{"no bytes", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "200 ", true},
		{"interim", "GET", "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + hello, "200 hello", true},
		{"1.0 that keeps", "GET", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello", "200 hello", true},
		{"a method of which a body is expected", "POST", hello, "200 hello", true},

		{"the origin closes", "GET", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello", "200 hello", false},
		{"1.0", "GET", "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", "200 hello", false},
		{"both a length and chunks", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "200 hello", false},
		{"LF alone", "GET", "HTTP/1.1 200 OK\nContent-Length: 5\n\nhello", "200 hello", false},
		{"more than was said", "GET", hello + "!", "200 hello", false},
		{"another response", "GET", hello + hello, "200 hello", false},
		{"a body of HEAD", "HEAD", hello, "200 ", false},
		{"a body of 304", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello", "304 ", false},
		{"204 with a length", "GET", "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", "204 ", false},
		{"204 in chunks", "GET", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", "204 ", false},
		{"304 with a length", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", "304 ", false},
		{"304 in chunks", "GET", "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", "304 ", false},
		{"interim with a length", "GET", "HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\n" + hello, "200 hello", false},
		{"interim in chunks", "GET", "HTTP/1.1 100 Continue\r\nTransfer-Encoding: chunked\r\n\r\n" + hello, "200 hello", false},
		{"interim that says it is the last", "GET", "HTTP/1.1 103 Early Hints\r\nConnection: close\r\n\r\n" + hello, "200 hello", false},
		{"interim of 1.0", "GET", "HTTP/1.0 103 Early Hints\r\n\r\n" + hello, "200 hello", false},
		{"interim by LF alone", "GET", "HTTP/1.1 103 Early Hints\n\n" + hello, "200 hello", false},
		{"more than the chunks", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nx", "200 hello", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, Config{}, answers(c.sends), func(t *testing.T, w *world) {
				for range 3 {
					w.must(c.method, "/", c.want)
					time.Sleep(time.Second)
				}
				if n := w.dials.Load(); n != 1 && c.kept || n != 3 && !c.kept {
					t.Errorf("%d dials", n)
				}
			})
		})
	}
}

// An origin that sends on its own must not answer another request with it.
func TestWhatComesUnaskedAnswersNobody(t *testing.T) {
	inWorld(t, Config{}, func(w *world, conn net.Conn, r *bufio.Reader) {
		for w.hears(r) {
			io.WriteString(conn, hello)
			time.Sleep(100 * time.Millisecond)
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
		}
	}, func(t *testing.T, w *world) {
		for range 3 {
			w.must("GET", "/", "200 hello")
			time.Sleep(time.Second)
		}
		if n := w.dials.Load(); n != 3 {
			t.Errorf("%d dials", n)
		}
	})
}

// A body that comes late after a response that may have none is written when the next request is: nobody looks at the connection by
// then, so it must have been given up.
func TestALateBodyOfAResponseWithoutOneAnswersNobody(t *testing.T) {
	const poison = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
	length := fmt.Sprintf("Content-Length: %d\r\n\r\n", len(poison))
	chunk := fmt.Sprintf("%x\r\n", len(poison))
	for _, c := range []struct{ first, late, want string }{
		{"HTTP/1.1 204 No Content\r\n" + length, poison, "204 "},
		{"HTTP/1.1 304 Not Modified\r\n" + length, poison, "304 "},
		{"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", poison, "304 "},
		{"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk, poison, "204 "},
		{"HTTP/1.1 103 Early Hints\r\n" + length + hello, poison, "200 hello"},
	} {
		inWorld(t, Config{}, func(w *world, conn net.Conn, r *bufio.Reader) {
			if w.hears(r) {
				io.WriteString(conn, c.first)
			}
			if w.hears(r) {
				io.WriteString(conn, c.late+hello)
			}
		}, func(t *testing.T, w *world) {
			for range 3 {
				if w.must("GET", "/", c.want); t.Failed() {
					t.Fatalf("%q", c.first)
				}
				time.Sleep(time.Second)
			}
		})
	}
}

func TestAKeptConnectionThatHasEndedIsNoErrorForAnyMethod(t *testing.T) {
	inWorld(t, Config{}, func(w *world, conn net.Conn, r *bufio.Reader) {
		if w.hears(r) {
			io.WriteString(conn, hello)
		}
	}, func(t *testing.T, w *world) {
		for range 3 {
			w.must("POST", "/", "200 hello")
			time.Sleep(time.Second)
		}
		if len(w.heard) != 3 {
			t.Errorf("the origin heard %d requests", len(w.heard))
		}
	})
}

// A connection that ends just when a request is written: it is sent again, once, if that does no harm.
func TestAnUnansweredRequestIsSentOnceMoreIfItDoesNoHarm(t *testing.T) {
	for method, want := range map[string]int{"GET": 2, "HEAD": 2, "PUT": 2, "POST": 1, "PATCH": 1} {
		inWorld(t, Config{}, func(w *world, conn net.Conn, r *bufio.Reader) {
			if first := w.dials.Load() == 1; first && w.hears(r) {
				io.WriteString(conn, "HTTP/1.1 204 No Content\r\n\r\n")
			}
			w.hears(r) // and no answer
		}, func(t *testing.T, w *world) {
			w.must("GET", "/", "204 ")
			w.must(method, "/again", "error: "+errUnanswered.Error())
			if len(w.heard) != 1+want {
				t.Errorf("%s was sent %d times", method, len(w.heard)-1)
			}
		})
	}
}

func TestNothingIsSentAgainThatWasAnsweredInPart(t *testing.T) {
	inWorld(t, Config{}, func(w *world, conn net.Conn, r *bufio.Reader) {
		w.hears(r)
		io.WriteString(conn, hello)
		w.hears(r)
		io.WriteString(conn, "H")
	}, func(t *testing.T, w *world) {
		w.must("GET", "/", "200 hello")
		w.must("GET", "/", "error: the head of the response: unexpected EOF")
		if len(w.heard) != 2 {
			t.Errorf("the origin heard %d requests", len(w.heard))
		}
	})
}

func TestWhatIsWrongWithAResponseIsAnError(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	for _, c := range []struct {
		sends, want string
		faults      uint64
	}{
		{ok + "Content-Length: 9\r\n\r\nhello", "200 hello… unexpected EOF", 0},
		{ok + "Content-Length: 9\r\n\r\n", "200 … unexpected EOF", 0},
		{ok + "Transfer-Encoding: chunked\r\n\r\n9\r\nhello", "200 hello… unexpected EOF", 0},
		{ok + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "200 hello… unexpected EOF", 0},
		{ok + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nx", "200 hello… malformed chunks", 1},
		{ok + "Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n", "200 … malformed response: trailer that says where a message ends", 1},
		{ok + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", "error: malformed response: lengths that differ", 1},
		{"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "error: " + errProtocol.Error(), 1},
		{ok + strings.Repeat("A: b\r\n", 10000), "error: " + errHeadTooLong.Error(), 1},
		{ok + "A: " + strings.Repeat("b", 20000) + "\r\n\r\n", "error: " + errHeadTooLong.Error(), 1},
		{strings.Repeat("HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n", 10000), "error: " + errHeadTooLong.Error(), 1},
		{ok + "A: " + strings.Repeat("b", 15000) + "\r\n\r\nrest", "200 rest", 0},
		{"", "error: " + errUnanswered.Error(), 0},
	} {
		inWorld(t, Config{}, func(w *world, conn net.Conn, r *bufio.Reader) {
			w.hears(r)
			io.WriteString(conn, c.sends)
		}, func(t *testing.T, w *world) {
			w.must("GET", "/", c.want)
			if n := w.faults.Load(); n != c.faults {
				t.Errorf("%.60q: %d faults", c.sends, n)
			}
		})
	}
}

func TestEverythingHasItsTime(t *testing.T) {
	drip := func(text string, every time.Duration) func(*world, net.Conn, *bufio.Reader) {
		return func(w *world, conn net.Conn, r *bufio.Reader) {
			for _, c := range []byte(text) {
				if _, err := conn.Write([]byte{c}); err != nil {
					return
				}
				time.Sleep(every)
			}
		}
	}
	limits := Config{HeadTimeout: 30 * time.Second, Patience: 10 * time.Second}
	for _, c := range []struct {
		name  string
		serve func(*world, net.Conn, *bufio.Reader)
		fails bool
		took  time.Duration
	}{
		{"a head, a byte a second", drip(hello, time.Second), true, 30 * time.Second},
		{"silence", func(w *world, _ net.Conn, r *bufio.Reader) { w.hears(r); w.hears(r) }, true, 30 * time.Second},
		{"interim responses for ever", drip(strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 1000), time.Second), true, 30 * time.Second},
		{"a body, a byte each 9 s", func(w *world, conn net.Conn, r *bufio.Reader) {
			io.WriteString(conn, hello[:len(hello)-5])
			drip("hello", 9*time.Second)(w, conn, r)
		}, false, 36 * time.Second},
		{"a body that stops", func(w *world, conn net.Conn, r *bufio.Reader) {
			w.hears(r)
			io.WriteString(conn, hello[:len(hello)-1])
			w.hears(r)
		}, true, 10 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, limits, c.serve, func(t *testing.T, w *world) {
				began := time.Now()
				res, err := w.RoundTrip(request(t.Context(), "GET", "/"))
				if err == nil {
					_, err = io.ReadAll(res.Body)
				}
				if took := time.Since(began).Round(time.Second); took != c.took || (err != nil) != c.fails || c.fails && !timedOut(err) {
					t.Errorf("%v after %v", err, took)
				}
			})
		})
	}
}

func TestTheContextEndsTheRequestAndTheBody(t *testing.T) {
	left := errors.New("left")
	for _, sends := range []string{"", hello[:len(hello)-2]} {
		inWorld(t, Config{}, func(w *world, conn net.Conn, r *bufio.Reader) {
			w.hears(r)
			io.WriteString(conn, sends)
			w.hears(r)
		}, func(t *testing.T, w *world) {
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(time.Minute, func() { cancel(left) })
			began := time.Now()
			res, err := w.RoundTrip(request(ctx, "GET", "/"))
			if err == nil {
				_, err = io.ReadAll(res.Body)
			}
			if err != left || time.Since(began) != time.Minute {
				t.Errorf("%v after %v", err, time.Since(began))
			}
			if _, err := w.RoundTrip(request(ctx, "GET", "/")); err != left || w.dials.Load() != 1 {
				t.Errorf("%v, %d dials", err, w.dials.Load())
			}
		})
	}
}

// The context of a request whose response has ended has no power over the connection, which is another's by now.
func TestAContextThatEndsLaterEndsNobodyElse(t *testing.T) {
	inWorld(t, Config{}, func(w *world, conn net.Conn, r *bufio.Reader) {
		for w.hears(r) {
			time.Sleep(time.Second)
			io.WriteString(conn, hello)
		}
	}, func(t *testing.T, w *world) {
		ctx, cancel := context.WithCancel(t.Context())
		if got := w.ask(ctx, "GET", "/"); got != "200 hello" {
			t.Error(got)
		}
		time.AfterFunc(500*time.Millisecond, cancel)
		w.must("GET", "/", "200 hello")
		if n := w.dials.Load(); n != 1 {
			t.Errorf("%d dials", n)
		}
	})
}

func TestABodyThatIsClosedEarlyEndsItsConnection(t *testing.T) {
	inWorld(t, Config{}, answers(hello), func(t *testing.T, w *world) {
		res, err := w.RoundTrip(request(t.Context(), "GET", "/"))
		if err != nil {
			t.Fatal(err)
		}
		io.ReadFull(res.Body, make([]byte, 2))
		res.Body.Close()
		if _, err := res.Body.Read(make([]byte, 2)); err != http.ErrBodyReadAfterClose {
			t.Error(err)
		}
		w.must("GET", "/", "200 hello")
		if n := w.dials.Load(); n != 2 {
			t.Errorf("%d dials", n)
		}
	})
}

func TestOnlySoManyConnectionsAreKeptAndOnlySoLong(t *testing.T) {
	var open atomic.Int64
	inWorld(t, Config{MaxIdle: 3}, func(w *world, conn net.Conn, r *bufio.Reader) {
		open.Add(1)
		defer open.Add(-1)
		for w.hears(r) {
			time.Sleep(time.Second)
			io.WriteString(conn, hello)
		}
	}, func(t *testing.T, w *world) {
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() { w.must("GET", "/", "200 hello") })
		}
		all.Wait()
		time.Sleep(time.Second)
		if n := open.Load(); n != 3 {
			t.Errorf("%d are kept", n)
		}
		time.Sleep(3 * time.Second)
		w.must("GET", "/", "200 hello") // takes the last one
		time.Sleep(time.Second)
		if n := open.Load(); n != 1 {
			t.Errorf("%d are kept after 5 s", n)
		}
		time.Sleep(5 * time.Second)
		if n := open.Load(); n != 0 || w.dials.Load() != 10 {
			t.Errorf("%d are kept of %d", n, w.dials.Load())
		}
		w.must("GET", "/", "200 hello")
		w.CloseIdleConnections()
		time.Sleep(time.Second)
		if n := open.Load(); n != 0 {
			t.Errorf("%d are kept", n)
		}
	})
}

func TestWhatIsToBeTheLastIs(t *testing.T) {
	inWorld(t, Config{}, answers(hello), func(t *testing.T, w *world) {
		for range 2 {
			q := request(t.Context(), "GET", "/")
			q.Close = true
			res, err := w.RoundTrip(q)
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, res.Body)
		}
		if n := w.dials.Load(); n != 2 {
			t.Errorf("%d dials", n)
		}
	})
}

// told is who watches, and is told of all in one line.
type told struct {
	t    []string
	stop error // what Interim says
}

func (w *told) Sending(reused bool) { w.t = append(w.t, fmt.Sprint(reused)) }
func (w *told) Answered()           { w.t = append(w.t, "first") }
func (w *told) Interim(status int, h http.Header) error {
	w.t = append(w.t, fmt.Sprint(status, h))
	return w.stop
}

func TestWhoWatchesIsTold(t *testing.T) {
	inWorld(t, Config{}, answers("HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n"+hello), func(t *testing.T, w *world) {
		var who told
		for range 2 {
			res, err := w.Send(t.Context(), request(t.Context(), "GET", "/"), &who)
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, res.Body)
		}
		if got := strings.Join(who.t, " "); got != "false first 103 map[A:[b]] true first 103 map[A:[b]]" {
			t.Error(got)
		}
		no := errors.New("no")
		if _, err := w.Send(t.Context(), request(t.Context(), "GET", "/"), &told{stop: no}); err != no {
			t.Error(err)
		}
	})
}

// What does not come in a moment is waited for by whoever is told to, where it was left: after a part of a head, too.
func TestACallIsWaitedForLater(t *testing.T) {
	for _, c := range []struct {
		name  string
		kept  bool
		pause time.Duration
		soon  error
	}{
		{"nothing is kept", false, 0, ErrLater},
		{"at once", true, 0, nil},
		{"in time", true, 400 * time.Millisecond, nil},
		{"late", true, 5 * time.Second, ErrLater},
	} {
		for _, cut := range []int{0, 5, len(hello) - 7} {
			inWorld(t, Config{HeadTimeout: 30 * time.Second}, func(w *world, conn net.Conn, r *bufio.Reader) {
				for n := 0; w.hears(r); n++ {
					if n == 0 && c.kept {
						io.WriteString(conn, hello)
						continue
					}
					io.WriteString(conn, hello[:cut])
					time.Sleep(c.pause)
					io.WriteString(conn, hello[cut:])
				}
			}, func(t *testing.T, w *world) {
				if c.kept {
					w.must("GET", "/first", "200 hello")
				}
				call, err := w.Call(request(t.Context(), "GET", "/"), nil)
				if err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				res, err := call.Soon()
				if err != c.soon || time.Since(began) > time.Second {
					t.Fatalf("%s: %v after %v", c.name, err, time.Since(began))
				}
				if err == ErrLater {
					if res, err = call.Wait(t.Context()); err != nil {
						t.Fatal(c.name, err)
					}
				}
				if b, err := io.ReadAll(res.Body); string(b) != "hello" || err != nil {
					t.Errorf("%s: %q, %v", c.name, b, err)
				}
				if w.must("GET", "/last", "200 hello"); w.dials.Load() != 1 {
					t.Errorf("%s: %d dials", c.name, w.dials.Load())
				}
			})
		}
	}
}

func TestACallThatIsWaitedForFailsAsOthersDo(t *testing.T) {
	inWorld(t, Config{HeadTimeout: 30 * time.Second}, func(w *world, conn net.Conn, r *bufio.Reader) {
		if w.hears(r) {
			io.WriteString(conn, hello)
		}
		w.hears(r)
		w.hears(r) // and no answer
	}, func(t *testing.T, w *world) {
		left := errors.New("left")
		for _, c := range []struct {
			wait func() (context.Context, context.CancelCauseFunc)
			took time.Duration
			want error
		}{
			{func() (context.Context, context.CancelCauseFunc) { return context.WithCancelCause(t.Context()) }, 30 * time.Second, os.ErrDeadlineExceeded},
			{func() (context.Context, context.CancelCauseFunc) {
				ctx, cancel := context.WithCancelCause(t.Context())
				time.AfterFunc(5*time.Second, func() { cancel(left) })
				return ctx, cancel
			}, 6 * time.Second, left},
			{func() (context.Context, context.CancelCauseFunc) {
				ctx, cancel := context.WithCancelCause(t.Context())
				cancel(left)
				return ctx, cancel
			}, time.Second, left},
		} {
			w.must("GET", "/first", "200 hello")
			call, err := w.Call(request(t.Context(), "GET", "/"), nil)
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			if _, err := call.Soon(); err != ErrLater {
				t.Fatal(err)
			}
			ctx, cancel := c.wait()
			if _, err = call.Wait(ctx); !errors.Is(err, c.want) || time.Since(began).Round(time.Millisecond) != c.took {
				t.Errorf("%v after %v", err, time.Since(began))
			}
			cancel(nil)
		}
	})
}

// A request's head is what net/http would have written, in another order, and no field or target makes two of it.
func TestARequestIsWrittenAsOne(t *testing.T) {
	q := request(t.Context(), "POST", "/a%20b?c=d")
	q.Host = "www.test"
	q.Header = http.Header{"A": {"b", "c"}, "User-Agent": {""}, "Host": {"other"}}
	q.Close = true
	head, err := appendHead(nil, q)
	if err != nil || string(head) != "POST /a%20b?c=d HTTP/1.1\r\nHost: www.test\r\nContent-Length: 0\r\nConnection: close\r\nA: b\r\nA: c\r\n\r\n" {
		t.Errorf("%q, %v", head, err)
	}
	for _, spoil := range []func(q *http.Request){
		func(q *http.Request) { q.Header["A"] = []string{"b\r\nC: d"} },
		func(q *http.Request) { q.Header["A"] = []string{"b\nC: d"} },
		func(q *http.Request) { q.Header["A"] = []string{"b\x00"} },
		func(q *http.Request) { q.Header["A: b\r\nC"] = []string{"d"} },
		func(q *http.Request) { q.Header["A "] = []string{"d"} },
		func(q *http.Request) { q.URL.RawQuery = "a b" },
		func(q *http.Request) { q.URL.RawQuery = "a\r\nB: c" },
	} {
		q := request(t.Context(), "GET", "/")
		spoil(q)
		if head, err := appendHead(nil, q); err == nil {
			t.Errorf("%q is written", head)
		}
	}
	for _, other := range []func(q *http.Request){
		func(q *http.Request) { q.Method = "CONNECT" },
		func(q *http.Request) { q.Method = "GET /x HTTP/1.1\r\nA: b\r\n\r\nGET" },
		func(q *http.Request) { q.Host = "a\r\nb" },
		func(q *http.Request) { q.URL.Host = "node/web:80" },
		func(q *http.Request) { q.URL.Scheme = "https" },
		func(q *http.Request) { q.Body = io.NopCloser(strings.NewReader("x")) },
		func(q *http.Request) { q.ContentLength = -1 },
		func(q *http.Request) { q.Header["Connection"] = []string{"Upgrade"} },
		func(q *http.Request) { q.Header["Transfer-Encoding"] = []string{"chunked"} },
		func(q *http.Request) { q.Header["Content-Length"] = []string{"5"} },
		func(q *http.Request) { q.Trailer = http.Header{"A": nil} },
	} {
		q := request(t.Context(), "GET", "/")
		if other(q); Speaks(q) {
			t.Errorf("%v is spoken", q)
		}
	}
}

// Sockets of the kernel are read and written below package net: the same holds there.
func TestASocketIsKeptAndLookedAt(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	sent := make(chan struct{})
	go func() {
		for n := 0; ; n++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if n == 2 { // it speaks before it is asked
					io.WriteString(conn, hello)
					conn.(*net.TCPConn).CloseWrite()
					sent <- struct{}{}
				}
				r := bufio.NewReader(conn)
				for {
					q, err := http.ReadRequest(r)
					if err != nil {
						return
					}
					switch q.URL.Path {
					case "/unasked":
						io.WriteString(conn, hello)
						io.WriteString(conn, hello)
						sent <- struct{}{}
					case "/end":
						io.WriteString(conn, hello)
						conn.Close()
						sent <- struct{}{}
					case "/silent":
					default:
						fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(q.Header.Get("A")), q.Header.Get("A"))
					}
				}
			}()
		}
	}()
	var dials atomic.Int64
	var count atomic.Uint64
	client := New(Config{
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, address)
			if dials.Add(1) == 3 {
				<-sent
			}
			return conn, err
		},
		MaxHead: 16 << 10, MaxIdle: 4, IdleTimeout: time.Minute, Faults: &count,
	})
	defer client.CloseIdleConnections()
	ask := func(path, a string) string {
		q, _ := http.NewRequest("GET", "http://"+l.Addr().String()+path, nil)
		if a != "" {
			q.Header["A"] = []string{a}
		}
		res, err := client.RoundTrip(q)
		if err != nil {
			return err.Error()
		}
		b, err := io.ReadAll(res.Body)
		if err != nil {
			return err.Error()
		}
		return string(b)
	}
	large := strings.Repeat("a", 900<<10) // more than a socket takes at once
	for i, c := range []struct{ path, a, want string }{
		{"/", "", ""}, {"/", "hi", "hi"}, {"/", large, large}, {"/", "hi", "hi"},
		{"/unasked", "", "hello"}, {"/", "ha", "ha"}, // the second hello is nobody's
		{"/end", "", "hello"}, {"/early", "", "hello"},
	} {
		if got := ask(c.path, c.a); got != c.want {
			t.Errorf("%d: %.100q", i, got)
		}
		if c.path == "/unasked" || c.path == "/end" {
			<-sent
		}
	}
	if n := dials.Load(); n != 3 {
		t.Errorf("%d dials", n)
	}
	client.HeadTimeout = 20 * time.Millisecond
	q, _ := http.NewRequest("GET", "http://"+l.Addr().String()+"/silent", nil)
	if _, err := client.RoundTrip(q); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
	client.HeadTimeout = 0
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := client.RoundTrip(q.WithContext(ctx)); err != context.Canceled {
		t.Error(err)
	}
}
