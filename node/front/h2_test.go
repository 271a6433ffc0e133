package front

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/perigee-net/perigee/edge/http1"
)

// hear reads frames until the other end closes or says nothing for some seconds, and returns them in words, without what every connection
// begins with. The reader is another one than ours.
func hear(c net.Conn) (said []string, open bool) {
	f := http2.NewFramer(io.Discard, c)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	sum := map[uint32]int{}
	for {
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		frame, err := f.ReadFrame()
		if err != nil {
			return said, timedOut(err)
		}
		id := frame.Header().StreamID
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			what := "trailer"
			if s := frame.PseudoValue("status"); s != "" {
				what = s
			}
			said = append(said, fmt.Sprintf("%d:%s", id, what))
		case *http2.DataFrame:
			if sum[id] += len(frame.Data()); frame.StreamEnded() {
				said = append(said, fmt.Sprintf("%d:%d bytes", id, sum[id]))
			}
		case *http2.RSTStreamFrame:
			said = append(said, fmt.Sprintf("%d:%v", id, frame.ErrCode))
		case *http2.GoAwayFrame:
			said = append(said, fmt.Sprintf("go %v", frame.ErrCode))
		case *http2.PingFrame:
			if frame.IsAck() {
				said = append(said, "pong")
			}
		case *http2.SettingsFrame:
			if frame.IsAck() {
				said = append(said, "set")
			}
		}
	}
}

func setting(id uint16, value uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(nil, id), value)
}

func number(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

func join(frames ...[]byte) []byte { return bytes.Join(frames, nil) }

// post is a header block: POST https://x/.
var post = []byte{0x83, 0x87, 0x84, 0x41, 1, 'x'}

var certified = Config{Certificate: NewCertificates("node", func(string) bool { return false }).Get}

func TestHTTP2KeepsTheRulesOfItsRFC(t *testing.T) {
	const all = endOfStream | endOfHeaders
	ask := func(id uint32) []byte { return frame(headersFrame, all, id, get) }
	hit := func(id uint32) []byte {
		return frame(headersFrame, all, id, join([]byte{0x82, 0x87, 0x41, 1, 'x', 0x04, 4}, []byte("/hit")))
	}
	upload := func(id uint32) []byte { return frame(headersFrame, endOfHeaders, id, post) }
	long := strings.Repeat("v", 8<<10)
	var large []byte
	for range 10 {
		large = append(large, join([]byte{0, 1, 'x'}, []byte{0x7f, 0x81, 0x3f}, []byte(long))...) // 8192 = 127 + 1 + 63·128
	}
	for _, c := range []struct {
		name, want string
		sent       []byte
	}{
		{"a request", "set 1:200 1:2 bytes", ask(1)},
		{"a hit", "set 1:200 1:3 bytes", hit(1)},
		{"many at once", "set 1:200 1:3 bytes 3:200 3:3 bytes 5:200 5:3 bytes", join(hit(1), hit(3), hit(5))},
		{"a body", "set 1:200 1:5 bytes", join(upload(1), frame(dataFrame, endOfStream, 1, []byte("hello")))},
		{"a padded body", "set 1:200 1:5 bytes", join(upload(1), frame(dataFrame, endOfStream|padded, 1, []byte("\x03hello\x00\x00\x00")))},
		{"a body and a trailer", "set 1:200 1:5 bytes", join(upload(1), frame(dataFrame, 0, 1, []byte("hello")), frame(headersFrame, all, 1, literal("t", "1")))},
		{"a padded header with a priority", "set 1:200 1:2 bytes", frame(headersFrame, all|padded|prioritised, 1, join([]byte{1, 0, 0, 0, 0, 9}, get, []byte{0}))},
		{"a header in three pieces", "set 1:200 1:2 bytes", join(frame(headersFrame, endOfStream, 1, get[:2]), frame(continuationFrame, 0, 1, get[2:3]), frame(continuationFrame, endOfHeaders, 1, get[3:]))},
		{"a ping", "set pong", frame(pingFrame, 0, 0, make([]byte, 8))},
		{"a ping's answer", "set", frame(pingFrame, acknowledges, 0, make([]byte, 8))},
		{"frames nobody knows", "set 1:200 1:2 bytes", join(frame(0xbe, 0xff, 7, []byte("what")), ask(1))},
		{"a setting nobody knows", "set set", frame(settingsFrame, 0, 0, setting(0xaa, 1))},
		{"a priority", "set", frame(priorityFrame, 0, 9, make([]byte, 5))},
		{"no room in the table of fields", "set set 1:200 1:3 bytes", join(frame(settingsFrame, 0, 0, setting(1, 0)), hit(1))},

		{"a push", "set go PROTOCOL_ERROR", frame(pushFrame, endOfHeaders, 1, join(number(2), get))},
		{"data of no stream", "set go PROTOCOL_ERROR", frame(dataFrame, 0, 0, []byte("x"))},
		{"data of a stream that is idle", "set go PROTOCOL_ERROR", frame(dataFrame, 0, 1, []byte("x"))},
		{"a header of no stream", "set go PROTOCOL_ERROR", frame(headersFrame, all, 0, get)},
		{"a header of our streams", "set go PROTOCOL_ERROR", frame(headersFrame, all, 2, get)},
		{"a stream before another", "set 5:200 5:3 bytes go PROTOCOL_ERROR", join(hit(5), hit(3))},
		{"a stream twice", "set 1:200 1:3 bytes go STREAM_CLOSED", join(hit(1), hit(1))},
		{"more data behind the end", "set 1:200 1:3 bytes 1:STREAM_CLOSED", join(hit(1), frame(dataFrame, 0, 1, []byte("x")))},
		{"a trailer without an end", "set 1:PROTOCOL_ERROR", join(upload(1), frame(headersFrame, endOfHeaders, 1, literal("t", "1")))},
		{"a pseudo-field in a trailer", "set 1:PROTOCOL_ERROR", join(upload(1), frame(headersFrame, all, 1, []byte{0x82}))},
		{"too much padding", "set go PROTOCOL_ERROR", join(upload(1), frame(dataFrame, padded, 1, []byte{9, 0}))},
		{"too much padding of a header", "set go PROTOCOL_ERROR", frame(headersFrame, all|padded, 1, []byte{200, 0x82})},
		{"a header that is not continued", "set go PROTOCOL_ERROR", join(frame(headersFrame, endOfStream, 1, get), ask(3))},
		{"a header that another stream continues", "set go PROTOCOL_ERROR", join(frame(headersFrame, endOfStream, 1, get), frame(continuationFrame, endOfHeaders, 3, nil))},
		{"a continuation of nothing", "set go PROTOCOL_ERROR", frame(continuationFrame, endOfHeaders, 1, get)},
		{"a field that is in no table", "set go COMPRESSION_ERROR", frame(headersFrame, all, 1, []byte{0xff, 0xff, 0x01})},
		{"half a field", "set go COMPRESSION_ERROR", frame(headersFrame, all, 1, []byte{0x41, 9, 'x'})},
		{"too long a frame", "set go FRAME_SIZE_ERROR", frame(dataFrame, 0, 1, make([]byte, frameBytes+1))},
		{"a short ping", "set go FRAME_SIZE_ERROR", frame(pingFrame, 0, 0, make([]byte, 7))},
		{"a ping of a stream", "set go PROTOCOL_ERROR", frame(pingFrame, 0, 1, make([]byte, 8))},
		{"a short priority", "set 1:FRAME_SIZE_ERROR", frame(priorityFrame, 0, 1, make([]byte, 4))},
		{"a stream that waits for itself", "set 1:PROTOCOL_ERROR", frame(priorityFrame, 0, 1, join(number(1), []byte{0}))},
		{"a short reset", "set go FRAME_SIZE_ERROR", join(upload(1), frame(resetFrame, 0, 1, make([]byte, 3)))},
		{"a reset of an idle stream", "set go PROTOCOL_ERROR", frame(resetFrame, 0, 1, number(8))},
		{"a reset of the connection", "set go PROTOCOL_ERROR", frame(resetFrame, 0, 0, number(8))},
		{"half a setting", "set go FRAME_SIZE_ERROR", frame(settingsFrame, 0, 0, make([]byte, 5))},
		{"settings of a stream", "set go PROTOCOL_ERROR", frame(settingsFrame, 0, 1, nil)},
		{"an acknowledgement that says something", "set go FRAME_SIZE_ERROR", frame(settingsFrame, acknowledges, 0, setting(4, 1))},
		{"a strange push setting", "set go PROTOCOL_ERROR", frame(settingsFrame, 0, 0, setting(enablePush, 2))},
		{"too great a window", "set go FLOW_CONTROL_ERROR", frame(settingsFrame, 0, 0, setting(initialWindow, 1<<31))},
		{"too small frames", "set go PROTOCOL_ERROR", frame(settingsFrame, 0, 0, setting(maxFrameSize, 1<<14-1))},
		{"too great frames", "set go PROTOCOL_ERROR", frame(settingsFrame, 0, 0, setting(maxFrameSize, 1<<24))},
		{"a window that does not grow", "set go PROTOCOL_ERROR", frame(windowFrame, 0, 0, number(0))},
		{"a stream's window that does not grow", "set 1:PROTOCOL_ERROR", join(upload(1), frame(windowFrame, 0, 1, number(0)))},
		{"a window that overflows", "set go FLOW_CONTROL_ERROR", frame(windowFrame, 0, 0, number(maxWindow))},
		{"a stream's window that overflows", "set 1:FLOW_CONTROL_ERROR", join(upload(1), frame(windowFrame, 0, 1, number(maxWindow)))},
		{"a window of an idle stream", "set go PROTOCOL_ERROR", frame(windowFrame, 0, 1, number(1))},
		{"a short window", "set go FRAME_SIZE_ERROR", frame(windowFrame, 0, 0, make([]byte, 3))},
		{"a window of a closed stream", "set 1:200 1:3 bytes", join(hit(1), frame(windowFrame, 0, 1, number(1)))},
		{"less of a body than was said", "set 1:PROTOCOL_ERROR", join(frame(headersFrame, endOfHeaders, 1, join(post, literal("content-length", "6"))), frame(dataFrame, endOfStream, 1, []byte("hello")))},
		{"more of a body than was said", "set 1:PROTOCOL_ERROR", join(frame(headersFrame, endOfHeaders, 1, join(post, literal("content-length", "4"))), frame(dataFrame, 0, 1, []byte("hello")))},
		{"no body though it was said", "set 1:PROTOCOL_ERROR", frame(headersFrame, all, 1, join(post, literal("content-length", "4")))},
		{"the client goes", "set go NO_ERROR", frame(goAwayFrame, 0, 0, make([]byte, 8))},
		{"a short farewell", "set go FRAME_SIZE_ERROR", frame(goAwayFrame, 0, 0, make([]byte, 7))},
		{"too long a header", "set 1:431 1:35 bytes 3:200 3:3 bytes", join(frame(headersFrame, endOfStream, 1, get), frame(continuationFrame, 0, 1, large[:16000]), frame(continuationFrame, 0, 1, large[16000:32000]),
			frame(continuationFrame, 0, 1, large[32000:48000]), frame(continuationFrame, endOfHeaders, 1, bytes.Repeat([]byte{0x82 | 0x3c}, 2000)), hit(3))},
		{"a header without end", "set go ENHANCE_YOUR_CALM", join(frame(headersFrame, endOfStream, 1, get), bytes.Repeat(frame(continuationFrame, 0, 1, large[:16000]), 5))},

		// Requests that are none.
		{"no path", "set 1:PROTOCOL_ERROR", frame(headersFrame, all, 1, []byte{0x82, 0x87, 0x41, 1, 'x'})},
		{"no method", "set 1:PROTOCOL_ERROR", frame(headersFrame, all, 1, []byte{0x87, 0x84, 0x41, 1, 'x'})},
		{"two methods", "set 1:PROTOCOL_ERROR", frame(headersFrame, all, 1, join([]byte{0x83}, get))},
		{"an answer's field", "set 1:PROTOCOL_ERROR", frame(headersFrame, all, 1, join(get, []byte{0x88}))},
		{"TE", "set 1:PROTOCOL_ERROR", frame(headersFrame, all, 1, join(get, literal("te", "gzip")))},
		{"TE of trailers", "set 1:200 1:2 bytes", frame(headersFrame, all, 1, join(get, literal("te", "trailers")))},
		{"two hosts", "set 1:PROTOCOL_ERROR", frame(headersFrame, all, 1, join(get, literal("host", "y")))},
		{"the host twice", "set 1:200 1:2 bytes", frame(headersFrame, all, 1, join(get, literal("host", "x")))},
		{"a tunnel with a path", "set 1:PROTOCOL_ERROR", frame(headersFrame, all, 1, join(literal(":method", "CONNECT"), []byte{0x84, 0x41, 1, 'x'}))},
		{"all of the server", "set 1:200 1:2 bytes", frame(headersFrame, all, 1, join(literal(":method", "OPTIONS"), literal(":path", "*"), []byte{0x87, 0x41, 1, 'x'}))},
		{"a tunnel", "set 1:200 1:2 bytes", frame(headersFrame, all, 1, join(literal(":method", "CONNECT"), []byte{0x41, 1, 'x'}))},
	} {
		inWorld(t, certified, func(w *world) {
			d := new(diary)
			w.set(Door{Network: "tcp", Address: at(443), TLS: true, Quick: d.quick, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				if err != nil {
					panic(http.ErrAbortHandler)
				}
				rw.Write(append([]byte("ok")[min(len(body), 2):], body...))
			})})
			conn := raw2(w)
			defer conn.Close()
			conn.Write(c.sent)
			said, open := hear(conn)
			got := strings.ReplaceAll(strings.Join(said, " "), "1:INTERNAL_ERROR", "")
			if strings.HasPrefix(c.want, "set set") { // which is first does not matter
				got = strings.TrimSpace(got)
			}
			if got != c.want {
				t.Errorf("%s: heard %q, want %q", c.name, got, c.want)
			}
			if open == strings.Contains(c.want, "go ") {
				t.Errorf("%s: the connection is open: %v", c.name, open)
			}
		})
	}
}

func TestHTTP2BeginsAsItMustOrNotAtAll(t *testing.T) {
	for name, c := range map[string]struct {
		sent    string
		counter string
	}{
		"nothing":                  {"", "front_silent_total"},
		"half a preface":           {preface[:9], "front_slow_requests_total"},
		"another preface":          {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "front_http2_errors_total"},
		"no settings":              {preface + string(frame(pingFrame, 0, 0, make([]byte, 8))), "front_http2_errors_total"},
		"acknowledged settings":    {preface + string(frame(settingsFrame, acknowledges, 0, nil)), "front_http2_errors_total"},
		"a header that never ends": {preface + string(frame(settingsFrame, 0, 0, nil)) + string(frame(headersFrame, 0, 1, get)), "front_slow_requests_total"},
	} {
		inWorld(t, certified, func(w *world) {
			w.set(Door{Network: "tcp", Address: at(443), TLS: true, Handler: says("hello")})
			c2 := tls.Client(w.dial(443), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
			defer c2.Close()
			if err := c2.Handshake(); err != nil {
				t.Fatal(err)
			}
			io.WriteString(c2, c.sent)
			if took := ended(c2); took > headerTimeout+2*time.Second {
				t.Errorf("%s: it took %v", name, took)
			}
			w.counted(c.counter, 1)
			w.counted("front_connections", 0)
			w.counted("front_heads_bytes", 0)
		})
	}
}

func TestAnHTTP2ClientThatAcknowledgesNoSettingsIsEnded(t *testing.T) {
	hit := frame(headersFrame, endOfStream|endOfHeaders, 1, get)
	for what, c := range map[string]struct {
		sent []byte
		want string
	}{
		"idle":    {nil, "set go SETTINGS_TIMEOUT"},
		"waiting": {hit, "set go SETTINGS_TIMEOUT"}, // for an answer that does not come
	} {
		inWorld(t, certified, func(w *world) {
			w.set(Door{Network: "tcp", Address: at(443), TLS: true, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				<-r.Context().Done()
			})})
			conn := rude2(w)
			defer conn.Close()
			start := time.Now()
			conn.Write(c.sent)
			var heard []string
			for open := true; open && time.Since(start) < 2*settingsTimeout; {
				var said []string
				conn.Write(frame(pingFrame, acknowledges, 0, make([]byte, 8))) // it is busy, but not with that
				said, open = hear(conn)
				heard = append(heard, said...)
			}
			took := time.Since(start)
			if got := strings.Join(heard, " "); got != c.want || took < settingsTimeout || took > settingsTimeout+2*slack {
				t.Errorf("%s: heard %q after %v", what, got, took)
			}
			w.counted("front_http2_errors_total", 1)
		})
	}
}

func TestAnIdleHTTP2ConnectionIsToldToGo(t *testing.T) {
	inWorld(t, certified, func(w *world) {
		w.set(Door{Network: "tcp", Address: at(443), TLS: true, Handler: says("hello")})
		c := raw2(w)
		defer c.Close()
		for range 3 {
			time.Sleep(20 * time.Second)
			c.Write(frame(pingFrame, 0, 0, make([]byte, 8))) // which is no request
		}
		c.Write(frame(headersFrame, endOfStream|endOfHeaders, 1, get))
		start := time.Now()
		for time.Since(start) < 2*idleTimeout {
			if said, open := hear(c); !open {
				if took := time.Since(start); took < idleTimeout || took > idleTimeout+2*time.Second || strings.Join(said, " ") != "go NO_ERROR" {
					t.Errorf("after %v: %q", took, said)
				}
				return
			}
		}
		t.Error("it is kept for ever")
	})
}

// What handlers do over HTTP/2 looks to clients as net/http's server would have it.
func TestHTTP2HandlersAndClientsMeetAsInNetHTTP(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<17) // 2 MiB
	behind := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		switch r.URL.Path {
		case "/view":
			body, err := io.ReadAll(r.Body)
			r.Header.Del("User-Agent")
			fmt.Fprintf(w, "%s %s %s %s %d %q %v %d %v %v %v %v %v %v", r.Method, r.URL, r.RequestURI, r.Host, r.ContentLength, r.Header, r.Trailer,
				len(body), err, r.Proto, r.ProtoMajor, r.TransferEncoding, r.TLS != nil, r.Close)
		case "/empty":
		case "/status":
			w.WriteHeader(http.StatusTeapot)
		case "/204":
			w.WriteHeader(http.StatusNoContent)
			if _, err := io.WriteString(w, "x"); err != http.ErrBodyNotAllowed {
				panic("a body was taken")
			}
		case "/304":
			w.Header().Set("Etag", `"x"`)
			w.WriteHeader(http.StatusNotModified)
		case "/html":
			io.WriteString(w, "<html>")
		case "/nosniff":
			w.Header()["Content-Type"], w.Header()["Date"] = nil, nil
			io.WriteString(w, "<html>")
		case "/hop":
			w.Header().Set("Proxy-Connection", "x")
			w.Header().Set("X-Bad", "a\nb")
			w.Header().Set("Set-Cookie", "a=b")
			w.Header().Add("Set-Cookie", "c=d")
		case "/big":
			w.Write(big)
		case "/pieces":
			for i := range 100 {
				w.Write(big[:i*100])
				if i%7 == 0 {
					control.Flush()
				}
			}
		case "/length":
			w.Header().Set("Content-Length", "5")
			io.WriteString(w, "hello")
		case "/trailer":
			w.Header().Set("Trailer", "X-Sum, X-None")
			io.WriteString(w, "body")
			w.Header().Set("X-Sum", "1")
			w.Header().Set(http.TrailerPrefix+"X-Late", "2")
		case "/hints":
			w.Header().Set("Link", "</a.css>; rel=preload")
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(http.StatusProcessing)
			io.WriteString(w, "body")
		case "/panic":
			panic(http.ErrAbortHandler)
		case "/panic-late":
			io.WriteString(w, "some")
			control.Flush()
			panic(http.ErrAbortHandler)
		case "/echo":
			io.Copy(w, r.Body)
		case "/unread":
			io.WriteString(w, "no, thanks")
		case "/duplex":
			if control.EnableFullDuplex() != nil {
				panic("no full duplex")
			}
		case "/hijack":
			_, _, err := control.Hijack()
			fmt.Fprint(w, errors.Is(err, http.ErrNotSupported))
		}
	})
	type result struct{ status, header, body, trailer, end, hints string }
	ours := onLoopback(t, certified, Door{TLS: true, Handler: behind})[0]
	theirs := &http.Server{Handler: behind, ErrorLog: log.New(io.Discard, "", 0), TLSConfig: &tls.Config{GetCertificate: certified.Certificate, NextProtos: []string{"h2"}}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serves sync.WaitGroup
	serves.Go(func() { theirs.ServeTLS(l, "", "") })
	defer serves.Wait()
	defer theirs.Close()
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, Protocols: new(http.Protocols)}
	tr.Protocols.SetHTTP2(true)
	client := &http.Client{Transport: tr}
	defer client.CloseIdleConnections()
	do := func(at, method, path string, header http.Header, body func() io.Reader) (r result) {
		var in io.Reader
		if body != nil {
			in = body()
		}
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			r.hints += fmt.Sprint(code, h["Link"], " ")
			return nil
		}})
		q, err := http.NewRequestWithContext(ctx, method, "https://"+at+path, in)
		if err != nil {
			t.Fatal(err)
		}
		q.Host = "shop.example"
		if header != nil {
			q.Header = header.Clone()
			if header.Get("Trailer-Of") != "" {
				q.Header.Del("Trailer-Of")
				q.Trailer = http.Header{"X-Sum": {"1"}, "X-Two": {"a", "b"}}
				q.ContentLength = -1
			}
		}
		res, err := client.Do(q)
		if err != nil {
			r.end = "no answer"
			return r
		}
		defer res.Body.Close()
		read, err := io.ReadAll(res.Body)
		r.status, r.body, r.trailer = res.Status, string(read), fmt.Sprint(res.Trailer)
		if res.Header["Date"] != nil {
			res.Header.Set("Date", "some")
		}
		r.header = fmt.Sprint(res.Header, res.ContentLength)
		if err != nil {
			r.end = "cut short"
		}
		return r
	}
	text := func(s string) func() io.Reader { return func() io.Reader { return strings.NewReader(s) } }
	stream := func(s string) func() io.Reader {
		return func() io.Reader { return struct{ io.Reader }{strings.NewReader(s)} }
	}
	for _, c := range []struct {
		method, path string
		header       http.Header
		body         func() io.Reader
	}{
		{"GET", "/view?a=b&c=%20d", nil, nil},
		{"GET", "/view", http.Header{"Cookie": {"a=b; c=d", "e=f"}, "X-Two": {"1", "2"}, "Accept": {"*/*"}, "Te": {"trailers"}}, nil},
		{"HEAD", "/view", nil, nil},
		{"POST", "/view", nil, text("hello")},
		{"POST", "/view", nil, text("")},
		{"POST", "/view", nil, stream("hello")},
		{"POST", "/view", http.Header{"Expect": {"100-continue"}}, text("hello")},
		{"POST", "/view", http.Header{"Trailer-Of": {"x"}}, stream("hello")},
		{"DELETE", "/view", nil, nil},
		{"BREW", "/view//a/../b", nil, text("x")},
		{"GET", "/empty", nil, nil}, {"HEAD", "/empty", nil, nil},
		{"GET", "/status", nil, nil}, {"GET", "/204", nil, nil}, {"GET", "/304", nil, nil},
		{"GET", "/html", nil, nil}, {"HEAD", "/html", nil, nil}, {"GET", "/nosniff", nil, nil},
		{"GET", "/hop", nil, nil},
		{"GET", "/big", nil, nil}, {"HEAD", "/big", nil, nil}, {"GET", "/pieces", nil, nil},
		{"GET", "/length", nil, nil}, {"HEAD", "/length", nil, nil},
		{"GET", "/trailer", nil, nil}, {"HEAD", "/trailer", nil, nil},
		{"GET", "/hints", nil, nil},
		{"GET", "/panic", nil, nil}, {"GET", "/panic-late", nil, nil},
		{"POST", "/echo", nil, text(string(big))}, {"POST", "/echo", nil, stream(string(big[:70000]))},
		{"POST", "/unread", nil, text("small")}, {"POST", "/unread", nil, text(string(big))},
		{"GET", "/duplex", nil, nil}, {"GET", "/hijack", nil, nil},
	} {
		got := do(ours, c.method, c.path, c.header, c.body)
		want := do(l.Addr().String(), c.method, c.path, c.header, c.body)
		if c.path == "/hop" {
			want.header = strings.Replace(want.header, " Proxy-Connection:[x]", "", 1) // which may not be sent
		}
		if got != want {
			t.Errorf("%s %s:\n%.400q\nwant\n%.400q", c.method, c.path, got, want)
		}
	}
}

func TestAnHTTP2AnswerThatIsShorterThanItSaysIsReset(t *testing.T) {
	inWorld(t, certified, func(w *world) {
		w.set(Door{Network: "tcp", Address: at(443), TLS: true, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "10")
			io.WriteString(w, "hello")
		})})
		c := raw2(w)
		defer c.Close()
		c.Write(frame(headersFrame, endOfStream|endOfHeaders, 1, get))
		if said, open := hear(c); strings.Join(said, " ") != "set 1:200 1:INTERNAL_ERROR" || !open {
			t.Errorf("heard %q", said)
		}
	})
}

func TestAnHTTP2ClientThatTakesBackItsRequestIsNotAnsweredOn(t *testing.T) {
	inWorld(t, certified, func(w *world) {
		var why atomic.Value
		w.set(Door{Network: "tcp", Address: at(443), TLS: true, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			_, err := w.Write(make([]byte, 64<<10))
			_, readErr := r.Body.Read(make([]byte, 1))
			why.Store(fmt.Sprint(context.Cause(r.Context()), err != nil, readErr != nil))
		})})
		c := raw2(w)
		c.Write(frame(headersFrame, endOfHeaders, 1, post))
		time.Sleep(time.Second)
		c.Write(frame(resetFrame, 0, 1, number(8)))
		time.Sleep(time.Second)
		if got := why.Swap(""); got != "context canceled true true" {
			t.Errorf("after a reset: %v", got)
		}
		c.Write(frame(headersFrame, endOfHeaders, 3, post))
		time.Sleep(time.Second)
		c.Close()
		time.Sleep(time.Second)
		if got := why.Load(); got != "context canceled true true" {
			t.Errorf("after the end of the connection: %v", got)
		}
		w.counted("front_connections", 0)
	})
}

// Neither streams nor the connection are sent more than they have room for, small answers go before large ones are through, and these
// take turns.
func TestHTTP2KeepsWindowsAndTakesTurns(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "object"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	content := make([]byte, 300<<10)
	for i := range content {
		content[i] = byte(i * 7 >> 3)
	}
	if _, err := file.Write(content); err != nil {
		t.Fatal(err)
	}
	inWorld(t, certified, func(w *world) {
		var done atomic.Int64
		fromFile, memory := files(file, &done), append([]byte("file:"), content...)
		quick := func(q *http1.Request, a *http1.Response) bool {
			if string(q.Path) != "/memory" {
				return fromFile(q, a)
			}
			a.Head = fmt.Appendf(a.Head, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", len(memory))
			a.File, a.Offset, a.Length, a.Lent = file, 1<<30, int64(len(memory)), &lent{body: memory, done: &done} // the file is not looked at
			a.Done = func() { t.Error("it is under a lease") }
			return true
		}
		w.set(Door{Network: "tcp", Address: at(443), TLS: true, Quick: quick, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Write(append([]byte("file:"), content...))
		})})
		c := tls.Client(w.dial(443), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		defer c.Close()
		f := http2.NewFramer(c, c)
		io.WriteString(c, preface)
		const window, whole = 20 << 10, 40 << 10
		f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: window})
		f.WriteSettingsAck()
		path := fmt.Sprintf("/file/0/%d", len(content))
		for id := uint32(1); id <= 5; id += 2 {
			p := path
			switch id {
			case 3:
				p = "/memory"
			case 5:
				p = "/other"
			}
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndStream: true, EndHeaders: true,
				BlockFragment: join([]byte{0x82, 0x87, 0x41, 1, 'x'}, literal(":path", p))})
		}
		left := map[uint32]int{0: 65535, 1: window, 3: window, 5: window}
		got := map[uint32]*bytes.Buffer{1: {}, 3: {}, 5: {}}
		var order []uint32
		for ends := 0; ends < 3; {
			c.SetReadDeadline(time.Now().Add(time.Second))
			fr, err := f.ReadFrame()
			if timedOut(err) { // all is used up
				for id, n := range left {
					if id > 0 && n > 0 && left[0] > 0 && got[id].Len() < len(content)+5 {
						t.Fatalf("stream %d waits, and has room for %d", id, n)
					}
				}
				f.WriteWindowUpdate(0, whole)
				left[0] += whole
				for id := uint32(1); id <= 5; id += 2 {
					if got[id].Len() < len(content)+5 {
						f.WriteWindowUpdate(id, window)
						left[id] += window
					}
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			d, ok := fr.(*http2.DataFrame)
			if !ok {
				continue
			}
			id, n := d.StreamID, len(d.Data())
			left[0], left[id] = left[0]-n, left[id]-n
			if left[0] < 0 || left[id] < 0 {
				t.Fatalf("%d bytes of stream %d are too much", n, id)
			}
			order = append(order, id)
			if got[id].Write(d.Data()); d.StreamEnded() {
				ends++
			}
		}
		for id, b := range got {
			if !bytes.Equal(b.Bytes(), append([]byte("file:"), content...)) {
				t.Errorf("stream %d got %d bytes, and not what it should", id, b.Len())
			}
		}
		first := map[uint32]bool{}
		for _, id := range order[:6] {
			first[id] = true
		}
		if len(first) != 3 {
			t.Errorf("the first frames are of %v", order[:6])
		}
		if done.Load() != 2 {
			t.Errorf("files were let go %d times, want 2", done.Load())
		}
	})
}

func TestAnHTTP2AnswerIsNotLongerThanItSays(t *testing.T) {
	inWorld(t, certified, func(w *world) {
		w.set(Door{Network: "tcp", Address: at(443), TLS: true, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "5")
			io.WriteString(w, "hello")
			if _, err := io.WriteString(w, "!"); err != http.ErrContentLength {
				t.Error(err)
			}
		})})
		c := raw2(w)
		defer c.Close()
		c.Write(frame(headersFrame, endOfStream|endOfHeaders, 1, get))
		if said, _ := hear(c); strings.Join(said, " ") != "set 1:200 1:5 bytes" {
			t.Errorf("heard %q", said)
		}
	})
}

// A client that gives no room for what it asked for is not waited for, and one that gives some is.
func TestAnHTTP2ClientThatTakesNothingIsGivenUp(t *testing.T) {
	inWorld(t, certified, func(w *world) {
		var failed atomic.Bool
		w.set(Door{Network: "tcp", Address: at(443), TLS: true, Quick: ready(make([]byte, 1<<20)), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, err := w.Write(make([]byte, 1<<20))
			failed.Store(err != nil)
		})})
		c := raw2(w)
		defer c.Close()
		c.Write(join(frame(settingsFrame, 0, 0, setting(initialWindow, 10)), frame(headersFrame, endOfStream|endOfHeaders, 1, get), frame(headersFrame, endOfHeaders, 3, post)))
		start := time.Now()
		var heard []string
		for time.Since(start) < 4*writeTimeout {
			c.Write(frame(windowFrame, 0, 1, number(1)))
			said, open := hear(c)
			if heard = append(heard, said...); !open {
				break
			}
		}
		if got := strings.Join(heard, " "); got != "set set 1:200 3:200 3:CANCEL" || !failed.Load() {
			t.Errorf("heard %q, the handler failed: %v", got, failed.Load())
		}
		w.counted("front_slow_readers_total", 1)
	})
}

func TestNoMoreHTTP2RequestsAreServedAtOnceThanWasSaid(t *testing.T) {
	inWorld(t, certified, func(w *world) {
		w.set(Door{Network: "tcp", Address: at(443), TLS: true, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(2 * time.Second)
		})})
		c := raw2(w)
		defer c.Close()
		for i := range uint32(streams + 2) {
			c.Write(frame(headersFrame, endOfStream|endOfHeaders, 2*i+1, get))
		}
		said, _ := hear(c)
		got := strings.Join(said, " ")
		if !strings.HasPrefix(got, "set 257:REFUSED_STREAM 259:REFUSED_STREAM ") || strings.Count(got, ":200") != streams {
			t.Errorf("heard %q", got)
		}
		c.Write(frame(headersFrame, endOfStream|endOfHeaders, 2*streams+5, get))
		if said, _ := hear(c); strings.Join(said, " ") != "261:200 261:0 bytes" && strings.Join(said, " ") != "261:200" {
			t.Errorf("afterwards: %q", said)
		}
		w.counted("front_http2_refused_total", 2)
	})
}

// What the client sends before it hears that it shall go is served, what it sends later is not.
func TestHTTP2ConnectionsGoInTwoSteps(t *testing.T) {
	inWorld(t, certified, func(w *world) {
		d := new(diary)
		w.set(Door{Network: "tcp", Address: at(443), TLS: true, Quick: d.quick, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(10 * time.Second)
		})})
		c := raw2(w)
		defer c.Close()
		ask := func(id uint32) { c.Write(frame(headersFrame, endOfStream|endOfHeaders, id, get)) }
		ask(1)
		time.Sleep(time.Second)
		w.front.Retire()
		ask(3)
		time.Sleep(2 * drainTime)
		ask(5)
		said, _ := hear(c)
		more, open := hear(c)
		if got := strings.Join(append(said, more...), " "); got != "set go NO_ERROR go NO_ERROR 1:200 3:200" || open {
			t.Errorf("heard %q, open: %v", got, open)
		}
		second := raw2(w) // one that comes anyway is served, and then told
		defer second.Close()
		second.Write(frame(headersFrame, endOfStream|endOfHeaders, 1, get))
		time.Sleep(9 * time.Second)
		said, _ = hear(second)
		more, open = hear(second)
		if got := strings.Join(append(said, more...), " "); got != "set 1:200 go NO_ERROR go NO_ERROR" || open {
			t.Errorf("a later one heard %q, open: %v", got, open)
		}
		w.front.Resume()
		third := raw2(w)
		defer third.Close()
		third.Write(frame(headersFrame, endOfStream|endOfHeaders, 1, get))
		time.Sleep(11 * time.Second)
		if said, open = hear(third); strings.Join(said, " ") != "set 1:200" || !open {
			t.Errorf("when all is as before: %q, open: %v", said, open)
		}
	})
}

// Clients that are installed agree with us about what HTTP/2 is.
func TestRealClientsSpeakHTTP2WithTheFront(t *testing.T) {
	upload := bytes.Repeat([]byte("0123456789abcdef"), 20_000)
	quick := ready(make([]byte, 100<<10))
	at := onLoopback(t, certified, Door{TLS: true, Quick: func(q *http1.Request, a *http1.Response) bool {
		return string(q.Path) == "/hit" && quick(q, a)
	}, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(w, r.Body)
	})})[0]
	for _, c := range []struct {
		claim string
		args  []string
		want  string
	}{
		{"a hit", []string{"curl", "-sSk", "--http2", "-o", os.DevNull, "-w", "%{http_version} %{http_code} %{size_download}", "https://" + at + "/hit"}, "2 200 102400"},
		{"a head", []string{"curl", "-sSkI", "--http2", "https://" + at + "/hit"}, "content-length: 102400"},
		{"an upload that comes back", []string{"curl", "-sSk", "--http2", "--data-binary", "@-", "https://" + at + "/"}, string(upload)},
		{"an upload that waits to be wanted", []string{"curl", "-sSk", "--http2", "-H", "Expect: 100-continue", "--data-binary", "@-", "https://" + at + "/"}, string(upload)},
		{"many hits at once", []string{"h2load", "-n", "2000", "-c", "4", "-m", "32", "https://" + at + "/hit"}, "2000 succeeded, 0 failed, 0 errored"},
		{"many others at once", []string{"h2load", "-n", "2000", "-c", "4", "-m", "32", "https://" + at + "/"}, "2000 succeeded, 0 failed, 0 errored"},
	} {
		if _, err := exec.LookPath(c.args[0]); err != nil {
			if os.Getenv("PERIGEE_REAL_CLIENTS") == "required" && c.args[0] == "curl" {
				t.Errorf("%s: %v", c.claim, err)
			} else {
				t.Logf("%s: not shown with %s, which is not installed", c.claim, c.args[0])
			}
			continue
		}
		cmd := exec.CommandContext(t.Context(), c.args[0], c.args[1:]...)
		cmd.Stdin = bytes.NewReader(upload)
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), c.want) {
			t.Errorf("%s: %q: %v\n%.2000s", c.claim, c.args, err, out)
		}
	}
}

// What is served is what net/http's server would serve, as the same request; and what else that would serve is refused for a reason.
func TestHTTP2RequestsAreThoseOfNetHTTP(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	pick := func(from ...string) string { return from[random.IntN(len(from))] }
	inWorld(t, certified, func(w *world) {
		ours, theirs := new(diary), new(diary)
		view := func(d *diary) http.Handler {
			return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				delete(r.Header, "Host") // which net/http leaves there
				d.note(fmt.Sprintf("%s %q %q %q %q %d %v", r.Method, r.URL, r.RequestURI, r.Host, r.Header, r.ContentLength, r.Trailer))
			})
		}
		w.set(Door{Network: "tcp", Address: at(443), TLS: true, Handler: view(ours)})
		server := &http.Server{Handler: view(theirs), DisableGeneralOptionsHandler: true, ErrorLog: log.New(io.Discard, "", 0), TLSConfig: &tls.Config{GetCertificate: certified.Certificate, NextProtos: []string{"h2"}}}
		l, err := w.node.Listen("tcp", "203.0.113.1:444")
		if err != nil {
			t.Fatal(err)
		}
		var serves sync.WaitGroup
		serves.Go(func() { server.ServeTLS(l, "", "") })
		defer serves.Wait()
		defer server.Close()
		served, stricter := 0, 0
		hello := &tls.Config{ // most of what this costs is handshakes
			InsecureSkipVerify: true, NextProtos: []string{"h2"}, CurvePreferences: []tls.CurveID{tls.X25519},
		}
		for range 500 {
			var block []byte
			var fields []string
			add := func(name, value string) {
				block = append(block, literal(name, value)...)
				fields = append(fields, name+": "+value)
			}
			if random.IntN(30) > 0 {
				add(":method", pick("GET", "GET", "GET", "HEAD", "POST", "OPTIONS", "BREW", "G T", "CONNECT"))
			}
			if random.IntN(30) > 0 {
				add(":scheme", pick("https", "https", "https", "http", "ftp"))
			}
			if random.IntN(30) > 0 {
				add(":path", pick("/", "/", "/a?b=c", "/a/../b", "*", "a", "", "/%zz", "/a b", "/ä", "//x/y", "http://x/", "/a#b", "/a\x7f"))
			}
			if random.IntN(10) > 0 {
				add(":authority", pick("x", "x", "x", "x:1", "u@x", "x/y", "", "[::1]:1", "x y", "ä"))
			}
			for range random.IntN(4) {
				switch random.IntN(18) {
				case 0:
					add("host", pick("x", "x", "y", "x:1", ""))
				case 1, 2:
					add("cookie", pick("a=b", "c=d"))
				case 3:
					add("te", pick("trailers", "gzip", ""))
				case 4:
					add("content-length", pick("0", "5", "-1", "x", ""))
				case 5:
					add(pick("connection", "keep-alive", "upgrade", "transfer-encoding", "proxy-connection"), pick("close", "h2c", "chunked"))
				case 6:
					add(pick("X-Large", "x y", "", "x:y", "x\x00", "ä", ":path", ":status"), "1")
				case 7:
					add("x-value", pick("a\tb", "a\nb", "a\x00", " a ", "ä", "", "a\x7f"))
				case 8:
					add("expect", pick("100-continue", "x"))
				case 9:
					add("trailer", pick("x-sum", "content-length", "a, b", ""))
				default:
					add(pick("accept", "user-agent", "x-two", "accept-encoding", "range", "if-none-match"), pick("a", "b", "gzip, br"))
				}
			}
			var seen [2][]string
			for i, port := range []int{443, 444} {
				c := tls.Client(w.dial(port), hello)
				if err := c.Handshake(); err != nil {
					t.Fatal(err)
				}
				c.Write(join([]byte(preface), frame(settingsFrame, 0, 0, nil), frame(headersFrame, endOfStream|endOfHeaders, 1, block)))
				time.Sleep(100 * time.Millisecond)
				c.Close()
				d := []*diary{ours, theirs}[i]
				d.mu.Lock()
				seen[i], d.seen = d.seen, nil
				d.mu.Unlock()
			}
			said := strings.Join(fields, "\n") + "\n"
			switch {
			case slices.Equal(seen[0], seen[1]):
				served += len(seen[0])
			case len(seen[0]) == 0:
				stricter++
				if !slices.ContainsFunc([]string{
					"content-length: ", "host: ", ":authority: u@x", ":authority: x/y", ":authority: x y", ":authority: ä", ":method: G T", ":path: http://x/", "te: \n",
				}, func(reason string) bool { return strings.Contains(said, reason) }) {
					t.Errorf("%q: refused, and net/http would serve %q", fields, seen[1])
				}
			default:
				t.Errorf("%q: served as %q, and not as %q", fields, seen[0], seen[1])
			}
		}
		if served < 70 || stricter > 2*served {
			t.Errorf("%d were served, and %d refused that net/http would serve", served, stricter)
		}
	})
}

func TestHTTP2IsNotSpokenOverWeakTLS(t *testing.T) {
	for _, c := range []struct {
		version, suite uint16
		strong         bool
	}{
		{tls.VersionTLS13, tls.TLS_AES_128_GCM_SHA256, true},
		{tls.VersionTLS12, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, true},
		{tls.VersionTLS12, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, true},
		{tls.VersionTLS12, tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, false},
		{tls.VersionTLS12, tls.TLS_RSA_WITH_AES_128_GCM_SHA256, false},
		{tls.VersionTLS11, tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA, false},
	} {
		if got := isStrong(&tls.ConnectionState{Version: c.version, CipherSuite: c.suite}); got != c.strong {
			t.Errorf("%s by %s: %v", tls.CipherSuiteName(c.suite), tls.VersionName(c.version), got)
		}
	}
}

// Whoever is blocked meanwhile is cut off, whatever the connection is at.
func TestABlockedClientsHTTP2Ends(t *testing.T) {
	var blocked atomic.Bool
	c := certified
	c.Blocked = func(netip.Addr) bool { return blocked.Load() }
	inWorld(t, c, func(w *world) {
		var ended atomic.Int64
		w.set(Door{Network: "tcp", Address: at(443), TLS: true, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			ended.Add(1)
		})})
		idle, busy := raw2(w), raw2(w)
		defer idle.Close()
		defer busy.Close()
		busy.Write(frame(headersFrame, endOfStream|endOfHeaders, 1, get))
		time.Sleep(time.Second)
		w.front.Recheck()
		w.counted("front_connections", 2)
		blocked.Store(true)
		w.front.Recheck()
		w.counted("front_connections", 0)
		if ended.Load() != 1 {
			t.Error("the handler was not told")
		}
	})
}
