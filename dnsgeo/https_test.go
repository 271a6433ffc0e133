package dnsgeo

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"github.com/quic-go/quic-go/http3"
)

func get(query []byte) *http.Request {
	return httptest.NewRequest("GET", HTTPSPath+"?dns="+base64.RawURLEncoding.EncodeToString(query), nil)
}

func post(query []byte) *http.Request {
	r := httptest.NewRequest("POST", HTTPSPath, bytes.NewReader(query))
	r.Header.Set("Content-Type", messageType)
	return r
}

func TestQueriesAreAnsweredOverHTTPS(t *testing.T) {
	s := serverOf(t, "www 300 A 192.0.2.1\nmail 20 CNAME www.example.com.\nsub 50 NS ns1.sub.example.com.\nns1.sub 40 A 192.0.2.9")
	for _, test := range []struct{ name, rcode, cache string }{
		{"www.example.com.", "NOERROR", "300"},
		{"mail.example.com.", "NOERROR", "20"},
		{"none.example.com.", "NXDOMAIN", "900"},
		{"x.sub.example.com.", "NOERROR", "50"},
		{"other.test.", "REFUSED", "0"},
	} {
		query := packed(t, test.name, dns.TypeA)
		for _, r := range []*http.Request{get(query), post(query)} {
			w := httptest.NewRecorder()
			s.ServeHTTP(w, r)
			got := unpacked(t, w.Body.Bytes())
			if w.Code != 200 || dns.RcodeToString[got.Rcode] != test.rcode || w.Header().Get("Content-Type") != messageType {
				t.Errorf("%s %s: got %d %v", r.Method, test.name, w.Code, got)
			}
			if cache := w.Header().Get("Cache-Control"); cache != "private, max-age="+test.cache {
				t.Errorf("%s %s: %s, want %s", r.Method, test.name, cache, test.cache)
			}
		}
		// The quick way says the same.
		w := httptest.NewRecorder()
		s.ServeHTTP(w, get(query))
		fields, body := s.QuickHTTPS(nil, []byte(get(query).URL.RawQuery), netip.MustParseAddr("192.0.2.1"))
		want := "Content-Type: " + messageType + "\r\nContent-Length: " + w.Header().Get("Content-Length") + "\r\nCache-Control: " + w.Header().Get("Cache-Control") + "\r\n\r\n"
		if string(fields) != want || !bytes.Equal(body, w.Body.Bytes()) {
			t.Errorf("%s: quick\n%s% x\nslow\n%s% x", test.name, fields, body, want, w.Body.Bytes())
		}
	}
}

// By real clients over real connections: HTTP/2 and HTTP/3, whose frames the recorder of the others does not make.
func TestQueriesAreAnsweredOverRealHTTPS(t *testing.T) {
	s := serverOf(t, "www 300 A 192.0.2.1")
	web := httptest.NewUnstartedServer(s)
	web.EnableHTTP2 = true
	web.StartTLS()
	defer web.Close()
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer packets.Close()
	three := &http3.Server{Handler: s, TLSConfig: http3.ConfigureTLSConfig(&tls.Config{Certificates: []tls.Certificate{certified(t)}})}
	served := make(chan error, 1)
	go func() { served <- three.Serve(packets) }()
	transport := &http3.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	query := packed(t, "www.example.com.", dns.TypeA)
	for _, c := range []struct {
		proto, url string
		client     *http.Client
	}{
		{"HTTP/2.0", web.URL, web.Client()},
		{"HTTP/3.0", "https://" + packets.LocalAddr().String(), &http.Client{Transport: transport}},
	} {
		for _, method := range []string{"GET", "POST"} {
			target, body := c.url+HTTPSPath, io.Reader(nil)
			if method == "GET" {
				target += "?dns=" + base64.RawURLEncoding.EncodeToString(query)
			} else {
				body = bytes.NewReader(query)
			}
			r, err := http.NewRequestWithContext(t.Context(), method, target, body)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", messageType)
			res, err := c.client.Do(r)
			if err != nil {
				t.Fatal(c.proto, method, err)
			}
			b, err := io.ReadAll(res.Body)
			res.Body.Close()
			if err != nil || res.StatusCode != 200 || res.Proto != c.proto || res.Header.Get("Content-Type") != messageType {
				t.Fatalf("%s %s: %v, %v", c.proto, method, res, err)
			}
			if got := unpacked(t, b); len(got.Answer) != 1 || got.Answer[0].(*dns.A).A.String() != "192.0.2.1" {
				t.Errorf("%s %s: got %v", c.proto, method, got)
			}
		}
	}
	if n := s.Counters()["dns_queries_https_total"]; n != 4 {
		t.Errorf("%d are counted", n)
	}
	transport.Close()
	three.Close()
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
}

func TestWhatIsNoQueryOverHTTPSHasAStatus(t *testing.T) {
	s := serverOf(t, "www A 192.0.2.1")
	query := packed(t, "www.example.com.", dns.TypeA)
	encoded := base64.RawURLEncoding.EncodeToString(query)
	with := func(r *http.Request, name, value string) *http.Request { r.Header.Set(name, value); return r }
	for _, test := range []struct {
		name string
		r    *http.Request
		want int
	}{
		{"nothing", httptest.NewRequest("GET", HTTPSPath, nil), 400},
		{"an empty parameter", httptest.NewRequest("GET", HTTPSPath+"?dns=", nil), 400},
		{"two", httptest.NewRequest("GET", HTTPSPath+"?dns="+encoded+"&dns="+encoded, nil), 400},
		{"another beside it", httptest.NewRequest("GET", HTTPSPath+"?ct&dns="+encoded, nil), 200},
		{"in percents", httptest.NewRequest("GET", HTTPSPath+"?dns=%"+"41"+encoded[1:], nil), 200},
		{"with padding", httptest.NewRequest("GET", HTTPSPath+"?dns="+base64.URLEncoding.EncodeToString(query[:13]), nil), 400},
		{"not in base64url", httptest.NewRequest("GET", HTTPSPath+"?dns=+/+/", nil), 400},
		{"too little", get(query[:11]), 400},
		{"a response", get(append([]byte{0, 0, 0x80}, query[3:]...)), 400},
		{"a malformed query", get(query[:20]), 200}, // FORMERR
		{"too long to get", httptest.NewRequest("GET", HTTPSPath+"?dns="+strings.Repeat("A", maxEncoded+1), nil), 414},
		{"too long to post", post(make([]byte, maxQuerySize+1)), 413},
		{"the longest", post(append(append([]byte(nil), query...), make([]byte, maxQuerySize-len(query))...)), 200}, // FORMERR
		{"of another type", with(post(query), "Content-Type", "application/json"), 415},
		{"of none", with(post(query), "Content-Type", ""), 415},
		{"of the type, with a parameter", with(post(query), "Content-Type", messageType+"; q=1"), 200},
		{"another method", httptest.NewRequest("PUT", HTTPSPath, bytes.NewReader(query)), 405},
		{"a head", func() *http.Request { r := get(query); r.Method = "HEAD"; return r }(), 200},
	} {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, test.r)
		if w.Code != test.want {
			t.Errorf("%s: status %d, want %d: %s", test.name, w.Code, test.want, w.Body)
		}
		if test.r.Method != "GET" {
			continue
		}
		if _, body := s.QuickHTTPS(nil, []byte(test.r.URL.RawQuery), netip.Addr{}); body != nil && w.Code != 200 {
			t.Errorf("%s: it was answered the quick way", test.name)
		}
	}
}

func FuzzAnyResponseHasAFreshness(f *testing.F) {
	s := serverOf(f, "www A 192.0.2.1")
	f.Add(responseOf(f, s, "www.example.com.", dns.TypeA))
	f.Add(responseOf(f, s, "none.example.com.", dns.TypeA))
	f.Fuzz(func(t *testing.T, m []byte) {
		if len(m) >= headerSize {
			freshness(m)
		}
	})
}

func BenchmarkQuickHTTPS(b *testing.B) {
	s := serverOf(b, "www A 192.0.2.1")
	query, err := new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA).Pack()
	if err != nil {
		b.Fatal(err)
	}
	target, head := []byte(get(query).URL.RawQuery), make([]byte, 0, 1024)
	b.ReportAllocs()
	for b.Loop() {
		s.QuickHTTPS(head, target, netip.AddrFrom4([4]byte{192, 0, 2, 1}))
	}
}
