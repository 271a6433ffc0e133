package front

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

func TestAHostHasOneCertificateUntilItsEndIsNear(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		get := NewCertificates("node", func(host string) bool { return host == "a.example" || host == "b.example" }).Get
		shown := func(host string) *tls.Certificate {
			t.Helper()
			c, err := get(&tls.ClientHelloInfo{ServerName: host})
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		a := shown("a.example")
		if a != shown("A.Example") || a == shown("b.example") || a == shown("") || shown("") != shown("stranger.example") {
			t.Error("one host has two certificates, or two hosts have one")
		}
		if key, ok := a.PrivateKey.(*ecdsa.PrivateKey); !ok || key.Curve != elliptic.P256() {
			t.Errorf("key %T", a.PrivateKey)
		}
		if life := a.Leaf.NotAfter.Sub(a.Leaf.NotBefore); life != 397*24*time.Hour {
			t.Errorf("valid for %v", life)
		}
		roots := x509.NewCertPool()
		roots.AddCert(a.Leaf)
		if _, err := a.Leaf.Verify(x509.VerifyOptions{DNSName: "a.example", Roots: roots}); err != nil {
			t.Errorf("a client that trusts it: %v", err)
		}
		time.Sleep(366 * 24 * time.Hour)
		if a != shown("a.example") {
			t.Error("replaced after 366 days")
		}
		time.Sleep(2 * 24 * time.Hour)
		if a == shown("a.example") {
			t.Error("not replaced after 368 days")
		}
	})
}

func TestCertificatesAreKeptForABoundedNumberOfHosts(t *testing.T) {
	s := &selfSigned{made: map[string]*tls.Certificate{}}
	far := &tls.Certificate{Leaf: &x509.Certificate{NotAfter: time.Now().Add(certificateLife)}}
	for i := range certificates {
		s.made[fmt.Sprint(i)] = far
	}
	for i := range 10 {
		if _, err := s.certificate(fmt.Sprintf("new-%d", i), time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.made) != certificates {
		t.Errorf("%d are kept", len(s.made))
	}
}

func BenchmarkMakeCertificate(b *testing.B) {
	for b.Loop() {
		if _, err := sign("shop.example", time.Now()); err != nil {
			b.Fatal(err)
		}
	}
}
