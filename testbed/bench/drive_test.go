//go:build linux

package bench

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// serves listens, and hands each connection to f, until the test ends.
func serves(t *testing.T, f func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { f(c); c.Close() })
		}
	})
	t.Cleanup(func() { l.Close(); serving.Wait() })
	return l.Addr().String()
}

// answering answers each request with the same.
func answering(text string) func(net.Conn) {
	return func(c net.Conn) {
		r := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			req.Body.Close()
			io.WriteString(c, text)
		}
	}
}

func answer(size int) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", size, body(size))
}

func TestADriveAsksSoOftenAndEachAnswerCounts(t *testing.T) {
	for _, size := range []int{0, 1, 1 << 10, 70_000, 3 << 20} {
		address := serves(t, answering(answer(size)))
		m, err := (&drive{address: address, connections: 3, size: int64(size), path: one(int64(size)), count: 50}).run(t.Context())
		if err != nil || m.Failed != "" || m.Count != 50 || m.Bytes != int64(50*len(answer(size))) || m.Value <= 0 || m.P99 < m.P50 || m.Mean <= 0 {
			t.Errorf("%d bytes: got %+v, %v", size, m, err)
		}
	}
}

func TestADriveAsksForAllObjectsInTurn(t *testing.T) {
	var mu sync.Mutex
	var paths []string
	address := serves(t, func(c net.Conn) {
		r := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			mu.Lock()
			paths = append(paths, req.Host+req.URL.Path)
			mu.Unlock()
			io.WriteString(c, answer(7))
		}
	})
	if m, err := (&drive{address: address, connections: 1, size: 7, path: distinct(7, 3), count: 4}).run(t.Context()); err != nil || m.Failed != "" {
		t.Fatalf("got %+v, %v", m, err)
	}
	mu.Lock()
	defer mu.Unlock()
	if want := []string{Name + "/7/0", Name + "/7/1", Name + "/7/2", Name + "/7/0"}; !slices.Equal(paths, want) {
		t.Errorf("got %v, want %v", paths, want)
	}
}

func TestADriveThatFindsAFaultFails(t *testing.T) {
	for _, test := range []struct{ want, text string }{
		{"503", "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 7\r\n\r\n1234567"},
		{"has a body of 8 bytes, not 7", answer(8)},
		{"no Content-Length", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
		{"1 bytes more come", answer(7) + "8"},
		{"the length of an answer is said by", "HTTP/1.1 200 OK\r\nContent-Length: 7\r\nContent-Length: 7\r\n\r\n1234567"},
		{"no end in", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 2*maxHead)},
	} {
		address := serves(t, answering(test.text))
		m, err := (&drive{address: address, connections: 1, size: 7, path: one(7), last: time.Second}).run(t.Context())
		if err != nil || !strings.Contains(m.Failed, test.want) {
			t.Errorf("got %+v, %v, want %q", m, err, test.want)
		}
	}
	for want, f := range map[string]func(net.Conn){
		"closes instead of an answer": func(c net.Conn) { http.ReadRequest(bufio.NewReader(c)) },
		"closes 3 bytes before the end": func(c net.Conn) {
			http.ReadRequest(bufio.NewReader(c))
			io.WriteString(c, answer(7)[:len(answer(7))-3])
		},
		"nothing is asked, and 10 bytes":   func(c net.Conn) { io.WriteString(c, "HTTP/1.1 2"); io.Copy(io.Discard, c) },
		"nothing is asked, and 0 bytes co": func(net.Conn) {},
	} {
		d := &drive{address: serves(t, f), connections: 1, size: 7, path: one(7), count: 1}
		if strings.HasPrefix(want, "nothing") {
			d.connections = 2 // the second is not used
		}
		m, err := d.run(t.Context())
		if err != nil || !strings.Contains(m.Failed, want) && !strings.HasPrefix(want, "nothing is asked, and 0") || m.Failed == "" {
			t.Errorf("got %+v, %v, want %q", m, err, want)
		}
	}
	if m, err := (&drive{address: "127.0.0.1:1", connections: 1, size: 7, path: one(7), count: 1}).run(t.Context()); err != nil || !strings.Contains(m.Failed, "connection 1 of 1: connect to 127.0.0.1:1: connection refused") {
		t.Errorf("nobody listens: got %+v, %v", m, err)
	}
}

func TestWhatWaitsCountsFromWhenItWasDue(t *testing.T) {
	var stalled atomic.Bool
	address := serves(t, func(c net.Conn) {
		r := bufio.NewReader(c)
		for {
			if _, err := http.ReadRequest(r); err != nil {
				return
			}
			if !stalled.Swap(true) {
				<-time.After(400 * time.Millisecond) // once: 80 requests become due meanwhile
			}
			io.WriteString(c, answer(7))
		}
	})
	m, err := (&drive{address: address, connections: 1, size: 7, path: one(7), pace: 200, last: time.Second}).run(t.Context())
	if err != nil || m.Failed != "" || m.Count != 200 {
		t.Fatalf("got %+v, %v, want 200 answers", m, err)
	}
	// A load that waits for an answer before it asks again would have one of 200 that is slow, and none in its p99.
	if m.P99 < 380*time.Millisecond || m.Mean < 70*time.Millisecond {
		t.Errorf("got p99 %v, mean %v", m.P99, m.Mean)
	}
}

func TestWhoDoesNotKeepUpFails(t *testing.T) {
	address := serves(t, func(c net.Conn) {
		r := bufio.NewReader(c)
		for {
			if _, err := http.ReadRequest(r); err != nil {
				return
			}
			<-time.After(50 * time.Millisecond)
			io.WriteString(c, answer(7))
		}
	})
	m, err := (&drive{address: address, connections: 1, size: 7, path: one(7), pace: 500, last: time.Second}).run(t.Context())
	if err != nil || !strings.Contains(m.Failed, "does not keep up with 500 each second") || m.Count > 60 { // by 3 s, not when all are asked
		t.Errorf("got %+v, %v", m, err)
	}
}

func TestACancelledDriveEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	address := serves(t, func(c net.Conn) { http.ReadRequest(bufio.NewReader(c)); cancel(); io.Copy(io.Discard, c) })
	if _, err := (&drive{address: address, connections: 1, size: 7, path: one(7), last: time.Minute}).run(ctx); err != context.Canceled {
		t.Errorf("got %v", err)
	}
}

func TestQuantilesAreWithinASixtyFourth(t *testing.T) {
	dice := rand.New(rand.NewPCG(1, 2))
	var l latencies
	var all []time.Duration
	for range 10_000 {
		d := time.Duration(math.Exp2(40 * dice.Float64()))
		all = append(all, d)
		l.add(d)
	}
	slices.Sort(all)
	for _, share := range []float64{0.001, 0.5, 0.99, 1} {
		want := all[max(0, int(share*10_000+0.5)-1)]
		if got := l.quantile(share); got < want-want/64-1 || got > want+want/64+1 {
			t.Errorf("%v: got %v, want %v", share, got, want)
		}
	}
	var none latencies
	none.add(-time.Second)
	if none.quantile(0.99) != 0 || none.mean() != 0 || (&latencies{}).quantile(0.5) != 0 {
		t.Error("no time takes some")
	}
	if last := bucket(1<<63 - 1); last != len(l.counts)-1 {
		t.Errorf("the longest time has bucket %d of %d", last, len(l.counts))
	}
}

func TestTheLoopAnswersEachRequestOnce(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	s := Stage{Host: "127.0.0.1", Port: port}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- loopAt(ctx, l, 1024) }()
	c, err := net.Dial("tcp", s.at(port))
	if err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(c)
	for _, part := range []string{"GET / HTTP/1.1\r\nHost: a\r\n", "X: 1\r\n\r\n"} {
		io.WriteString(c, part)
	}
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(res.Body); err != nil || !bytes.Equal(got, body(1024)) || r.Buffered() > 0 {
		t.Errorf("got %d bytes and %d more, %v", len(got), r.Buffered(), err)
	}
	if m, err := (&drive{address: s.at(port), connections: 4, size: 1024, path: one(1024), count: 100}).run(ctx); err != nil || m.Failed != "" || m.Count != 100 {
		t.Errorf("got %+v, %v", m, err)
	}
	io.WriteString(c, strings.Repeat("x", maxRequest))
	if _, err := r.ReadByte(); err == nil {
		t.Error("a request without an end is answered")
	}
	c.Close()
	if c, err = net.Dial("tcp", s.at(port)); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("the loop ends with %v", err)
	}
	if err := Loop(t.Context(), s.at(port), maxBody+1); err == nil {
		t.Error("a body of any length")
	}
}

func FuzzHead(f *testing.F) {
	for _, text := range []string{answer(7), "HTTP/1.1 200 OK\r\ncontent-length:  12\t\r\nX:\r\n\r\n", "HTTP/1.1 404\r\n\r\n", "HTTP/1.1 200\r\n\r\n", "\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		length, head, err := parseHead(data)
		if head < 0 || head > len(data) || length < 0 || err != nil && (head != 0 || length != 0) || err == nil && head == 0 && len(data) > maxHead {
			t.Fatalf("%q: %d, %d, %v", data, length, head, err)
		}
		if head == 0 {
			return
		}
		// What is taken, net/http takes alike.
		if res, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(data[:head])), nil); err == nil {
			res.Body.Close()
			if res.StatusCode != 200 || res.ContentLength >= 0 && res.ContentLength != length {
				t.Fatalf("%q: 200 of %d bytes, net/http: %d of %d", data, length, res.StatusCode, res.ContentLength)
			}
		}
	})
}
