// Package doorway puts an http1.Relay before a handler as node/front does, for tests whose requests come by net/http. It is no door: it ends
// no connection and bounds nothing.
//
// When things break: a test fails where an answer of the Relay's is no response.
package doorway

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/perigee-net/perigee/edge/http1"
)

// Doorway is a handler that asks the Relay first.
type Doorway struct {
	T       testing.TB
	Relay   http1.Relay
	Handler http.Handler
	// Relayed is how many requests the Relay has answered, Begun how many it has left to the handler when it had begun something.
	Relayed, Begun atomic.Int64
}

// ServeHTTP implements http.Handler.
func (d *Doorway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := plain(r)
	if q == nil {
		d.Handler.ServeHTTP(w, r)
		return
	}
	var a http1.Response
	answered, begun := d.Relay(q, &a, func() []byte { return make([]byte, 0, 32<<10) })
	if !answered {
		if begun != nil {
			d.Begun.Add(1)
			defer begun.Drop()
			r = r.WithContext(http1.Begin(r.Context(), begun))
		}
		d.Handler.ServeHTTP(w, r)
		return
	}
	d.Relayed.Add(1)
	if a.Done != nil {
		defer a.Done()
	}
	if q.Head {
		a.Body = nil
	}
	res, err := http.ReadResponse(bufio.NewReader(io.MultiReader(bytes.NewReader(a.Head), bytes.NewReader(a.Body))), r)
	if err != nil || res.StatusCode != a.Status {
		d.T.Errorf("%s %s is answered %d, %q: %v", r.Method, r.URL, a.Status, a.Head, err)
		panic(http.ErrAbortHandler)
	}
	maps.Copy(w.Header(), res.Header)
	w.WriteHeader(res.StatusCode)
	if _, err := io.Copy(w, res.Body); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// Allocations is how many allocations a Relay takes to answer a request, on average.
func Allocations(t testing.TB, relay http1.Relay, q *http1.Request) float64 {
	t.Helper()
	space := make([]byte, 0, 8<<10)
	room := func() []byte { return space }
	var a http1.Response
	return testing.AllocsPerRun(1000, func() {
		a = http1.Response{}
		if ok, _ := relay(q, &a, room); !ok {
			t.Fatal("it is not answered")
		}
		a.Done()
	})
}

// Canned is a connection whose far end has sent an answer as soon as it is read. It never waits, and allocates nothing.
type Canned struct {
	net.Conn
	Answer []byte
}

// Read implements net.Conn.
func (c Canned) Read(b []byte) (int, error) { return copy(b, c.Answer), nil }

// Write implements net.Conn.
func (Canned) Write(b []byte) (int, error) { return len(b), nil }

// SetReadDeadline implements net.Conn.
func (Canned) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline implements net.Conn.
func (Canned) SetWriteDeadline(time.Time) error { return nil }

// Close implements net.Conn.
func (Canned) Close() error { return nil }

// Pending says that nothing has come yet, so that package wire keeps it.
func (Canned) Pending() bool { return false }

// plain is a request as the front reads it; nil: it is not of the plain form.
func plain(r *http.Request) *http1.Request {
	if r.ProtoMajor != 1 || r.ProtoMinor != 1 || r.ContentLength != 0 {
		return nil
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n", r.Method, r.RequestURI, r.Host)
	for _, name := range slices.Sorted(maps.Keys(r.Header)) {
		for _, line := range r.Header[name] {
			fmt.Fprintf(&b, "%s: %s\r\n", name, line)
		}
	}
	b.WriteString("\r\n")
	q := &http1.Request{Now: time.Now()}
	if q.Parse(b.Bytes()) != http1.Plain {
		return nil
	}
	q.TLS = r.TLS != nil
	q.Remote, _ = netip.ParseAddrPort(r.RemoteAddr)
	return q
}
