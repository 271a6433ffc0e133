package front

import (
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// frame is one of HTTP/2 (RFC 9113, 4.1).
func frame(kind, flags byte, stream uint32, payload []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(payload))<<8|uint32(kind))
	b = append(b, flags)
	b = binary.BigEndian.AppendUint32(b, stream)
	return append(b, payload...)
}

const (
	headersFrame, resetFrame, settingsFrame, pingFrame = 1, 3, 4, 6 // RFC 9113, 6
	endStreamAndHeaders                                = 0x5
)

// get is a request's header block: GET https://x/.
var get = []byte{0x82, 0x87, 0x84, 0x41, 1, 'x'}

// raw2 begins an HTTP/2 connection by hand.
func raw2(w *world) net.Conn {
	w.Helper()
	c := tls.Client(w.dial(443), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err := c.Handshake(); err != nil {
		w.Fatal(err)
	}
	io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	c.Write(frame(settingsFrame, 0, 0, nil))
	return c
}

func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestHTTP2FloodsAreBounded(t *testing.T) {
	const frames, memory = 60_000, 16 << 20
	for name, flood := range map[string]func(c net.Conn, i uint32) error{
		"streams that are reset at once": func(c net.Conn, i uint32) error {
			_, err := c.Write(append(frame(headersFrame, endStreamAndHeaders, 2*i+1, get), frame(resetFrame, 0, 2*i+1, []byte{0, 0, 0, 8})...))
			return err
		},
		"settings without end": func(c net.Conn, _ uint32) error {
			_, err := c.Write(frame(settingsFrame, 0, 0, nil))
			return err
		},
		"pings without end": func(c net.Conn, _ uint32) error {
			_, err := c.Write(frame(pingFrame, 0, 0, make([]byte, 8)))
			return err
		},
	} {
		inWorld(t, Config{Certificate: NewCertificates("node", func(string) bool { return false }).Get}, func(w *world) {
			var running, most atomic.Int64
			w.set(Door{Network: "tcp", Address: at(443), TLS: true, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				n := running.Add(1)
				defer running.Add(-1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				time.Sleep(20 * time.Second) // it does not hear that nobody waits
			})})
			c := raw2(w)
			before, sent := heap(), 0
			for ; sent < frames && flood(c, uint32(sent)) == nil; sent++ { // nothing is read of what comes back
				if sent%100 == 0 {
					time.Sleep(10 * time.Millisecond)
				}
			}
			if ended := sent < frames; ended == (name == "settings without end") { // of those one acknowledgement is owed, however many come
				t.Errorf("%s: %d of %d frames were taken", name, sent, frames)
			}
			if grown := heap() - before; grown > memory {
				t.Errorf("%s: %d bytes are held", name, grown)
			}
			if most.Load() > streams {
				t.Errorf("%s: %d handlers ran at once, of %d streams that a connection may have", name, most.Load(), streams)
			}
			c.Close()
			time.Sleep(2 * time.Minute)
			w.counted("front_connections", 0)
			w.counted("front_panics_total", 0)
		})
	}
}

func TestHTTP2IsToldToGoWhenItsDoorCloses(t *testing.T) {
	inWorld(t, Config{Certificate: NewCertificates("node", func(string) bool { return false }).Get}, func(w *world) {
		w.set(Door{Network: "tcp", Address: at(443), TLS: true, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(10 * time.Second)
			io.WriteString(w, r.Proto)
		})})
		tr := &http.Transport{DialContext: w.person.Dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
		defer tr.CloseIdleConnections()
		var people sync.WaitGroup
		people.Go(func() {
			res, err := (&http.Client{Transport: tr}).Get("https://203.0.113.1/")
			if err != nil {
				t.Error(err)
				return
			}
			defer res.Body.Close()
			if body, err := io.ReadAll(res.Body); err != nil || string(body) != "HTTP/2.0" {
				t.Errorf("the request in flight: %q, %v", body, err)
			}
		})
		time.Sleep(5 * time.Second)
		start := time.Now()
		w.set()
		people.Wait()
		for w.front.Counters()["front_connections"] > 0 {
			time.Sleep(100 * time.Millisecond)
		}
		if took := time.Since(start); took > 8*time.Second {
			t.Errorf("its connection ended after %v", took)
		}
	})
}
