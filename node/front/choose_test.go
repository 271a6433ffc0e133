package front

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"sync"
	"testing"
	"time"
)

var rsaKey = sync.OnceValue(func() crypto.Signer {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

// given is a certificate such as an operator declares. Its common name tells it apart.
func given(t *testing.T, label string, ecdsaKey bool, from, to time.Time, names ...string) *tls.Certificate {
	t.Helper()
	key := rsaKey()
	if ecdsaKey {
		var err error
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: label}, DNSNames: names, NotBefore: from, NotAfter: to,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// shown is the common name of the certificate by which a door shakes hands.
func (w *world) shown(port int, c *tls.Config) string {
	w.Helper()
	raw := w.dial(port)
	defer raw.Close()
	c.InsecureSkipVerify = true
	conn := tls.Client(raw, c)
	if err := conn.HandshakeContext(w.Context()); err != nil {
		return "error: " + err.Error()
	}
	return conn.ConnectionState().PeerCertificates[0].Subject.CommonName
}

// onlyRSA is a client that does not know ECDSA.
func onlyRSA(host string) *tls.Config {
	return &tls.Config{ServerName: host, MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}}
}

func TestTheBestCertificateForTheHostIsShown(t *testing.T) {
	certificates := NewCertificates("node", func(host string) bool { return host == "known.example" })
	inWorld(t, Config{Certificate: certificates.Get}, func(w *world) {
		w.set(Door{Network: "tcp", Address: at(443), TLS: true, Handler: says("hello")})
		now := time.Now()
		past, soon, later := now.Add(-time.Hour), now.Add(time.Hour), now.Add(48*time.Hour)
		certificates.Set([]*tls.Certificate{
			{}, // without a leaf: passed over
			given(t, "rsa", false, past, later, "shop.example"),
			given(t, "ecdsa", true, past, soon, "shop.example"),
			given(t, "star", true, past, later, "*.shop.example", "*."),
			given(t, "exact", true, past, soon, "www.shop.example"),
			given(t, "ended", true, past, now.Add(-time.Minute), "old.shop.example", "alone.example"),
			given(t, "renewed", true, past, later, "many.example", "Upper.Example"),
			given(t, "before", true, past, soon, "many.example"),
			given(t, "not yet", true, soon, later, "many.example"),
			given(t, "ecdsa only", true, past, soon, "modern.example"),
			given(t, "rsa star", false, past, soon, "*.both.example"),
			given(t, "ecdsa exact", true, past, soon, "www.both.example"),
		})
		for _, c := range []struct{ host, want string }{
			{"shop.example", "ecdsa"},
			{"SHOP.example", "ecdsa"},
			{"www.shop.example", "exact"},
			{"any.shop.example", "star"},
			{"two.labels.shop.example", "node"},
			{"old.shop.example", "star"}, // the exact one has expired
			{"alone.example", "ended"},   // better than one that nobody knows: the client can say why
			{"many.example", "renewed"},
			{"upper.example", "renewed"},
			{"known.example", "known.example"},
			{"stranger.example", "node"},
			{"nolabel", "node"},
			{"", "node"},
		} {
			if got := w.shown(443, &tls.Config{ServerName: c.host}); got != c.want {
				t.Errorf("%q is shown %q, want %q", c.host, got, c.want)
			}
		}
		if got := w.shown(443, onlyRSA("shop.example")); got != "rsa" {
			t.Errorf("a client without ECDSA is shown %q", got)
		}
		if got := w.shown(443, onlyRSA("www.both.example")); got != "rsa star" {
			t.Errorf("a client without ECDSA is shown %q for the wildcard", got)
		}
		if got := w.shown(443, onlyRSA("modern.example")); got[:6] != "error:" {
			t.Errorf("a client that can use none is shown %q", got)
		}

		time.Sleep(90 * time.Minute)
		for host, want := range map[string]string{"shop.example": "rsa", "www.shop.example": "star", "modern.example": "ecdsa only"} {
			if got := w.shown(443, &tls.Config{ServerName: host}); got != want {
				t.Errorf("later %q is shown %q, want %q", host, got, want)
			}
		}
		certificates.Set(nil)
		if got := w.shown(443, &tls.Config{ServerName: "shop.example"}); got != "node" {
			t.Errorf("without certificates it is shown %q", got)
		}
	})
}

func TestCertificatesChangeUnderOpenConnections(t *testing.T) {
	certificates := NewCertificates("node", func(string) bool { return false })
	inWorld(t, Config{Certificate: certificates.Get}, func(w *world) {
		w.set(Door{Network: "tcp", Address: at(443), TLS: true, Handler: says("hello")})
		certificates.Set([]*tls.Certificate{given(t, "first", true, time.Now(), time.Now().Add(time.Hour), "a.example")})
		c := tls.Client(w.dial(443), &tls.Config{ServerName: "a.example", InsecureSkipVerify: true})
		defer c.Close()
		if got := ask(c, "/"); got != "200 hello" {
			t.Fatal(got)
		}
		certificates.Set([]*tls.Certificate{given(t, "second", true, time.Now(), time.Now().Add(time.Hour), "a.example")})
		if got := ask(c, "/"); got != "200 hello" {
			t.Errorf("on the open connection: %s", got)
		}
		if got := w.shown(443, &tls.Config{ServerName: "a.example"}); got != "second" {
			t.Errorf("the next is shown %q", got)
		}
	})
}

func TestADoorMayBringItsOwnTLS(t *testing.T) {
	inWorld(t, Config{}, func(w *world) {
		soon := time.Now().Add(time.Hour)
		fixed := &tls.Config{Certificates: []tls.Certificate{*given(t, "fixed", true, time.Now(), soon, "a.example")}}
		renewed := given(t, "asked 1", true, time.Now(), soon, "a.example")
		asked := &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			return &tls.Config{Certificates: []tls.Certificate{*renewed}, NextProtos: []string{"other/1"}, ClientAuth: tls.RequestClientCert}, nil
		}}
		door := func(a int, c *tls.Config) Door {
			return Door{Network: "tcp", Address: at(uint16(a)), TLS: true, TLSConfig: c, Handler: says("hello")}
		}
		w.set(door(443, fixed), door(8443, asked))
		if got := w.shown(443, &tls.Config{}); got != "fixed" {
			t.Errorf("shown %q", got)
		}
		if got := w.shown(8443, &tls.Config{}); got != "asked 1" {
			t.Errorf("shown %q", got)
		}
		renewed = given(t, "asked 2", true, time.Now(), soon, "a.example")
		if got := w.shown(8443, &tls.Config{}); got != "asked 2" {
			t.Errorf("after a renewal it is shown %q", got)
		}
		for _, http2 := range []bool{true, false} {
			for _, port := range []int{443, 8443} {
				tr := &http.Transport{DialContext: w.person.Dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, Protocols: new(http.Protocols)}
				tr.Protocols.SetHTTP1(!http2)
				tr.Protocols.SetHTTP2(http2)
				res, err := (&http.Client{Transport: tr}).Get(fmt.Sprintf("https://203.0.113.1:%d/", port))
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(res.Body)
				res.Body.Close()
				tr.CloseIdleConnections()
				if string(body) != "hello" || (res.ProtoMajor == 2) != http2 {
					t.Errorf("port %d by %s: %q", port, res.Proto, body)
				}
			}
		}

		// The TLS of an open door is changed in place, and connections go on.
		c := tls.Client(w.dial(443), &tls.Config{InsecureSkipVerify: true})
		defer c.Close()
		ask(c, "/")
		w.set(door(443, asked), door(8443, asked))
		if got := w.shown(443, &tls.Config{}); got != "asked 2" {
			t.Errorf("after a change of the door it is shown %q", got)
		}
		if got := ask(c, "/"); got != "200 hello" {
			t.Errorf("on the open connection: %s", got)
		}
		if n := w.listens.Load(); n != 2 {
			t.Errorf("%d sockets were opened", n)
		}
	})
}

func BenchmarkChooseOf10000(b *testing.B) {
	leaf := func(i int) *tls.Certificate {
		return &tls.Certificate{Leaf: &x509.Certificate{
			DNSNames: []string{fmt.Sprintf("h%d.example", i), fmt.Sprintf("*.h%d.example", i)},
			NotAfter: time.Now().Add(time.Hour), PublicKeyAlgorithm: x509.ECDSA,
		}}
	}
	var all []*tls.Certificate
	for i := range 10000 {
		all = append(all, leaf(i))
	}
	g := index(all)
	usable := func(*tls.Certificate) error { return nil }
	b.ReportAllocs()
	for b.Loop() {
		g.choose("www.h777.example", usable, time.Now())
	}
}
