package front

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"time"
)

const (
	// certificateLife is the longest that browsers accept (CA/Browser Forum, 398 days), less a day.
	certificateLife = 397 * 24 * time.Hour
	// certificateRenewal is how long before its end a certificate is replaced.
	certificateRenewal = 30 * 24 * time.Hour
	// certificateSkew is how far behind a client's clock may be.
	certificateSkew = time.Hour
	// certificates is for how many hosts one is kept; then some other host's is made anew when it is asked for again.
	certificates = 1024
)

// Certificates shows each host a self-signed certificate (ECDSA P-256, 397 days) that is made when the host is first asked
// for and kept in memory. Hosts that known does not know, and clients that name none, see the node's own. No client trusts
// these without being told to.
func Certificates(node string, known func(host string) bool) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s := &selfSigned{made: map[string]*tls.Certificate{}}
	return func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		host := strings.ToLower(hello.ServerName)
		if host == "" || !known(host) {
			host = node
		}
		return s.certificate(host, time.Now())
	}
}

type selfSigned struct {
	mu   sync.Mutex
	made map[string]*tls.Certificate
}

func (s *selfSigned) certificate(host string, now time.Time) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.made[host]; c != nil && now.Before(c.Leaf.NotAfter.Add(-certificateRenewal)) {
		return c, nil
	}
	c, err := sign(host, now)
	if err != nil {
		return nil, fmt.Errorf("make certificate for %s: %w", host, err)
	}
	if s.made[host] == nil && len(s.made) >= certificates {
		for other := range s.made {
			delete(s.made, other)
			break
		}
	}
	s.made[host] = c
	return c, nil
}

func sign(host string, now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: host},
		DNSNames:     []string{host},
		NotBefore:    now.Add(-certificateSkew),
		NotAfter:     now.Add(certificateLife - certificateSkew),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}
