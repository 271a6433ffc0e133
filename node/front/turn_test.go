package front

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// speakers are handlers that answer in each way that an answer can be framed in, and wrongly.
var speakers = map[string]http.HandlerFunc{
	"nothing":      func(http.ResponseWriter, *http.Request) {},
	"short":        func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>hello") },
	"pieces":       func(w http.ResponseWriter, _ *http.Request) { write(w, 700, 700, 648) },
	"more pieces":  func(w http.ResponseWriter, _ *http.Request) { write(w, 700, 700, 649) },
	"long":         func(w http.ResponseWriter, _ *http.Request) { write(w, 100_000) },
	"little, long": func(w http.ResponseWriter, _ *http.Request) { write(w, 3, 60_000, 5) },
	"length":       func(w http.ResponseWriter, _ *http.Request) { set(w, "Content-Length", "5000"); write(w, 5000) },
	"length, typed": func(w http.ResponseWriter, _ *http.Request) {
		set(w, "Content-Length", "70000", "Content-Type", "text/x")
		write(w, 30000, 40000)
	},
	"length only":                func(w http.ResponseWriter, _ *http.Request) { set(w, "Content-Length", "12") },
	"too short":                  func(w http.ResponseWriter, _ *http.Request) { set(w, "Content-Length", "12"); write(w, 5) },
	"too long":                   func(w http.ResponseWriter, _ *http.Request) { set(w, "Content-Length", "5"); write(w, 5, 3) },
	"length that is no number":   func(w http.ResponseWriter, _ *http.Request) { set(w, "Content-Length", "x"); write(w, 5) },
	"negative length, no number": func(w http.ResponseWriter, _ *http.Request) { set(w, "Content-Length", "-5"); write(w, 5) },
	"flushed": func(w http.ResponseWriter, _ *http.Request) {
		write(w, 5)
		http.NewResponseController(w).Flush()
		write(w, 7)
	},
	"flushed first": func(w http.ResponseWriter, _ *http.Request) { w.(http.Flusher).Flush(); write(w, 7) },
	"flushed, known": func(w http.ResponseWriter, _ *http.Request) {
		set(w, "Content-Length", "12")
		write(w, 5)
		w.(http.Flusher).Flush()
		write(w, 7)
	},
	"no content": func(w http.ResponseWriter, _ *http.Request) {
		set(w, "Content-Type", "a/b")
		w.WriteHeader(204)
		write(w, 5)
	},
	"not changed": func(w http.ResponseWriter, _ *http.Request) {
		set(w, "Content-Length", "5", "Content-Type", "a/b", "Etag", `"x"`)
		w.WriteHeader(304)
		write(w, 5)
	},
	"error":      func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", 404) },
	"odd status": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(799) },
	"twice": func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(201)
		w.WriteHeader(500)
		set(w, "X-Late", "1")
	},
	"hints": func(w http.ResponseWriter, _ *http.Request) {
		set(w, "Link", "</x>", "Content-Length", "3")
		w.WriteHeader(103)
		w.WriteHeader(103)
		write(w, 3)
	},
	"closes":     func(w http.ResponseWriter, _ *http.Request) { set(w, "Connection", "close"); write(w, 5) },
	"to the end": func(w http.ResponseWriter, _ *http.Request) { set(w, "Transfer-Encoding", "identity"); write(w, 5000) },
	"chunks":     func(w http.ResponseWriter, _ *http.Request) { set(w, "Transfer-Encoding", "chunked"); write(w, 5) },
	"both": func(w http.ResponseWriter, _ *http.Request) {
		set(w, "Transfer-Encoding", "chunked", "Content-Length", "5")
		write(w, 5)
	},
	"trailers": func(w http.ResponseWriter, _ *http.Request) {
		set(w, "Trailer", "X-A, x-b")
		write(w, 5)
		set(w, "X-A", "1", "X-B", "2", http.TrailerPrefix+"X-C", "3")
	},
	"prefixed trailer": func(w http.ResponseWriter, _ *http.Request) {
		write(w, 5000)
		set(w, http.TrailerPrefix+"X-C", "3")
	},
	"untyped": func(w http.ResponseWriter, _ *http.Request) { w.Header()["Content-Type"] = nil; write(w, 5) },
	"encoded": func(w http.ResponseWriter, _ *http.Request) { set(w, "Content-Encoding", "gzip"); write(w, 5) },
	"dated": func(w http.ResponseWriter, _ *http.Request) {
		set(w, "Date", "Mon, 02 Jan 2006 15:04:05 GMT")
		write(w, 5)
	},
	"undated": func(w http.ResponseWriter, _ *http.Request) { w.Header()["Date"] = nil; write(w, 5) },
	"split lines": func(w http.ResponseWriter, _ *http.Request) {
		set(w, "X-A", " a\r\nX-B: b\n", "Bad Name", "x", "", "y")
		write(w, 5)
	},
	"many lines": func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Set-Cookie"] = []string{"a=1", "b=2"}
		write(w, 5)
	},
	"large head": func(w http.ResponseWriter, _ *http.Request) {
		set(w, "X-Large", strings.Repeat("x", 50_000))
		write(w, 5)
	},
	"panics": func(w http.ResponseWriter, _ *http.Request) { write(w, 5); panic(http.ErrAbortHandler) },
	"panics late": func(w http.ResponseWriter, _ *http.Request) {
		write(w, 5)
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	},
	"writes no body": func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(304)
		if _, err := w.Write([]byte("x")); !errors.Is(err, http.ErrBodyNotAllowed) {
			panic("a body was taken")
		}
	},
	"wants more": func(w http.ResponseWriter, r *http.Request) {
		set(w, "Content-Length", "1")
		_, err := io.WriteString(w, "xx")
		if !errors.Is(err, http.ErrContentLength) {
			panic("more was taken")
		}
	},
	"tells": func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s %s %v %q %q %v %v %s %q %v %v", r.Method, r.RequestURI, r.URL, r.Host, r.Header, b, r.Proto, r.ProtoMajor, r.ContentLength, r.RemoteAddr,
			r.TransferEncoding, r.Close, err)
	},
}

func set(w http.ResponseWriter, fields ...string) {
	for i := 0; i < len(fields); i += 2 {
		w.Header()[fields[i]] = []string{fields[i+1]}
	}
}

func write(w http.ResponseWriter, sizes ...int) {
	for i, n := range sizes {
		w.Write(bytes.Repeat([]byte{'a' + byte(i)}, n))
	}
}

// heard is what a client reads of all answers: status lines, sorted fields, bodies, trailers, and whether that was all.
func heard(back []byte, method string) (all []string) {
	r := bufio.NewReaderSize(bytes.NewReader(back), len(back)+1)
	for {
		if _, err := r.Peek(1); err != nil {
			return all
		}
		raw := back[len(back)-r.Buffered():] // all of it is there
		res, err := http.ReadResponse(r, &http.Request{Method: method})
		if err != nil {
			return append(all, "no answer: "+err.Error())
		}
		if end := bytes.Index(raw, []byte("\r\n\r\n")); end > 0 {
			lines := strings.Split(string(raw[:end]), "\r\n")
			slices.Sort(lines[1:])
			all = append(all, strings.Join(lines, "\n"))
		}
		body, err := io.ReadAll(res.Body)
		all = append(all, fmt.Sprint(res.Status, res.Header, res.ContentLength, res.TransferEncoding, res.Close, len(body), string(body[:min(len(body), 500)]), res.Trailer, err))
	}
}

// byNetHTTP is what net/http's own server answers.
func byNetHTTP(t *testing.T, h http.Handler, sent string) (back []byte) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		conns := make(chan net.Conn, 1)
		l := oneConn{conns, sync.OnceFunc(func() { close(conns) })}
		conns <- from{far, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1}}
		s := &http.Server{Handler: h, ErrorLog: log.New(io.Discard, "", 0)}
		var wg sync.WaitGroup
		wg.Go(func() { s.Serve(l) })
		wg.Go(func() { back, _ = io.ReadAll(near) })
		wg.Go(func() { io.WriteString(near, sent) })
		synctest.Wait()
		near.Close()
		s.Close()
		wg.Wait()
		time.Sleep(time.Second)
	})
	return back
}

func TestATurnAnswersAsNetHTTPDoes(t *testing.T) {
	for name, h := range speakers {
		for _, method := range []string{"GET", "HEAD"} {
			for _, more := range []string{"", "Connection: close\r\n", "Pragma: no-cache\r\nAccept:\r\nx-a: 1\r\nX-A: 2\r\n"} {
				if method == "HEAD" && strings.HasSuffix(name, "no number") { // net/http passes that on
					continue
				}
				one := method + " /a%20b?c HTTP/1.1\r\nHost: x\r\n" + more + "\r\n"
				sent := one + one
				want := heard(byNetHTTP(t, h, sent), method)
				got := heard(through(t, Config{}, Door{Network: "tcp", Handler: h}, []byte(sent), len(sent)), method)
				if !slices.Equal(got, want) {
					t.Errorf("%s, %s %q:\ngot  %q\nwant %q", name, method, more, got, want)
				}
			}
		}
	}
}

// A handler that answers at once is not disturbed by a client that has said all it has to; one that takes its time hears of it.
func TestOnlyALongTurnWatchesItsClient(t *testing.T) {
	for takes, told := range map[time.Duration]bool{watchAfter / 2: false, 2 * watchAfter: true} {
		inWorld(t, Config{}, func(w *world) {
			ended := make(chan bool, 1)
			w.set(Door{Network: "tcp", Address: at(80), Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				select {
				case <-r.Context().Done():
					ended <- true
				case <-time.After(takes):
					ended <- false
				}
			})})
			c := w.dial(80)
			fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			c.Close()
			if got := <-ended; got != told {
				t.Errorf("a handler that takes %v: told %v, want %v", takes, got, told)
			}
		})
	}
}

// What comes while a turn is watched is the next request, and nothing of it is lost.
func TestARequestBehindALongTurnIsServed(t *testing.T) {
	inWorld(t, Config{}, func(w *world) {
		w.set(Door{Network: "tcp", Address: at(80), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Second)
			if r.Context().Err() != nil {
				t.Errorf("%s: %v", r.RequestURI, r.Context().Err())
			}
			body, _ := io.ReadAll(r.Body)
			fmt.Fprint(w, r.Method, r.RequestURI, string(body))
		})})
		c := w.dial(80)
		defer c.Close()
		r := bufio.NewReader(c)
		for range 3 {
			for _, piece := range []string{
				"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n", "GET /2 HTTP/1.1\r\nHo", "st: x\r\n\r\nPOST /3 HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi",
			} {
				io.WriteString(c, piece)
				time.Sleep(100 * time.Millisecond)
			}
			for _, want := range []string{"GET/1", "GET/2", "POST/3hi"} {
				res, err := http.ReadResponse(r, nil)
				if err != nil {
					t.Fatal(err)
				}
				if got, err := io.ReadAll(res.Body); err != nil || string(got) != want {
					t.Errorf("got %q, %v; want %q", got, err, want)
				}
			}
		}
	})
}

func TestDeadlinesOfATurnEndWithIt(t *testing.T) {
	inWorld(t, Config{}, func(w *world) {
		var late error
		var control *http.ResponseController
		w.set(Door{Network: "tcp", Address: at(80), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch control = http.NewResponseController(w); r.URL.Path {
			case "/read":
				control.SetReadDeadline(time.Now().Add(time.Second))
				start := time.Now()
				<-r.Context().Done()
				if took := time.Since(start); !near(took, time.Second) {
					t.Errorf("the client might be silent for %v", took)
				}
			case "/write":
				control.SetWriteDeadline(time.Now().Add(time.Second))
				time.Sleep(2 * time.Second)
				_, late = w.Write(make([]byte, 100_000))
			case "/ended":
				control.SetWriteDeadline(time.Now().Add(time.Second))
			}
		})})
		ask := func(path string) (closed bool) {
			c := w.dial(80)
			defer c.Close()
			r := bufio.NewReader(c)
			for range 2 {
				fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
				if _, err := http.ReadResponse(r, nil); err != nil {
					return true
				}
				time.Sleep(2 * time.Second)
			}
			return false
		}
		if !ask("/read") {
			t.Error("a connection whose deadline has passed goes on")
		}
		if !ask("/write") || !timedOut(late) {
			t.Errorf("a write after its deadline: %v", late)
		}
		if ask("/ended") {
			t.Error("a deadline outlives its request")
		}
		if err := control.SetWriteDeadline(time.Now()); err == nil {
			t.Error("a request that is over sets deadlines")
		}
	})
}

func TestATurnMayBeHijackedWithWhatIsBehindIt(t *testing.T) {
	inWorld(t, Config{}, func(w *world) {
		w.set(Door{Network: "tcp", Address: at(80), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Second) // it is watched
			c, b, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			if b.Reader.Buffered() == 0 {
				t.Error("what was read is not there")
			}
			if _, err := w.Write([]byte("x")); !errors.Is(err, http.ErrHijacked) {
				t.Errorf("a write to what is hijacked: %v", err)
			}
			line, _ := textproto.NewReader(b.Reader).ReadLine()
			fmt.Fprintf(b, "got %s", line)
			b.Flush()
		})})
		c := w.dial(80)
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\nhel")
		time.Sleep(2 * time.Second)
		fmt.Fprint(c, "lo\r\n")
		if got, err := io.ReadAll(c); err != nil || string(got) != "got hello" {
			t.Errorf("got %q, %v", got, err)
		}
		c.Close()
		synctest.Wait()
		if n := w.front.Counters()["front_connections"]; n != 0 {
			t.Errorf("%d connections are counted when all are gone", n)
		}
	})
}

func TestAContextEndsWithItsTurn(t *testing.T) {
	var ctx context.Context
	h := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { ctx = r.Context() })
	through(t, Config{}, Door{Network: "tcp", Handler: h}, []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), 100)
	if ctx == nil || ctx.Err() == nil {
		t.Error("it goes on")
	}
}
