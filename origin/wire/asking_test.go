package wire

import (
	"bufio"
	"context"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// asks makes ready to ask the origin of a world as bytes.
func (w *world) asks() *Asking {
	a := w.Asking(false, time.Now())
	a.Head = append(a.Head, "GET /a HTTP/1.1\r\nHost: 10.0.0.1\r\n\r\n"...)
	return a
}

// keeps has so many connections be kept at the same time.
func (w *world) keeps(n int) {
	for range n {
		res, err := w.RoundTrip(request(w.t.Context(), "GET", "/"))
		if err != nil {
			w.t.Fatal(err)
		}
		defer io.Copy(io.Discard, res.Body)
	}
}

func TestAnAskingGoesPastAConnectionThatHasEnded(t *testing.T) {
	var served atomic.Int64
	inWorld(t, Config{}, func(w *world, conn net.Conn, r *bufio.Reader) {
		n := served.Add(1)
		for w.hears(r) {
			if io.WriteString(conn, hello); n == 1 { // it is kept last, and so used first
				time.Sleep(time.Second)
				return
			}
		}
	}, func(t *testing.T, w *world) {
		w.keeps(2)
		time.Sleep(2 * time.Second)
		a := w.asks()
		if !a.Soon("10.0.0.1:80") || string(a.Body) != "hello" {
			t.Fatalf("%q", a.Body)
		}
		a.Done()
		synctest.Wait()
		if n := w.dials.Load(); n != 2 {
			t.Errorf("%d dials", n)
		}
		w.must("GET", "/", "200 hello")
	})
}

func TestAnAskingThatGoesOnIsSentOnceMoreAtMost(t *testing.T) {
	inWorld(t, Config{}, func(w *world, conn net.Conn, r *bufio.Reader) {
		w.hears(r)
		io.WriteString(conn, hello)
		w.hears(r) // and leaves
	}, func(t *testing.T, w *world) {
		w.keeps(3)
		for range len(w.heard) {
			<-w.heard
		}
		a := w.asks()
		if a.Soon("10.0.0.1:80") {
			t.Fatal("it is answered")
		}
		call := a.Call(request(t.Context(), "GET", "/a"), nil)
		res, err := call.Soon()
		if err == ErrLater {
			res, err = call.Wait(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if n := len(w.heard); n != 2 {
			t.Errorf("it was sent %d times", n)
		}
	})
}

func TestAnAskingThatWaitsForAConnectionHasItsTimeFromThen(t *testing.T) {
	inWorld(t, Config{HeadTimeout: 4 * time.Second}, func(w *world, conn net.Conn, r *bufio.Reader) {
		for w.hears(r) {
			time.Sleep(2 * time.Second)
			io.WriteString(conn, hello)
		}
	}, func(t *testing.T, w *world) {
		dial := w.Dial
		w.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			time.Sleep(5 * time.Second)
			return dial(ctx, network, address)
		}
		a := w.asks()
		if a.Soon("10.0.0.1:80") {
			t.Fatal("it is answered")
		}
		call := a.Call(request(t.Context(), "GET", "/a"), nil)
		if _, err := call.Soon(); err != ErrLater {
			t.Fatal(err)
		}
		res, err := call.Wait(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
	})
}
