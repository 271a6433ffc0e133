package front

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
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

// Certificates picks what a client is shown: the best of those that were Set for the host it names, or else a self-signed
// one (ECDSA P-256, 397 days) that is made when the host is first asked for and kept in memory. Hosts that are not
// known, and clients that name none, see the node's own self-signed one. No client trusts these without being told to.
type Certificates struct {
	node  string
	known func(host string) bool
	given atomic.Pointer[givenCertificates]
	own   selfSigned
}

// NewCertificates makes Certificates of which none is Set yet.
func NewCertificates(node string, known func(host string) bool) *Certificates {
	c := &Certificates{node: node, known: known, own: selfSigned{made: map[string]*tls.Certificate{}}}
	c.Set(nil)
	return c
}

// Set makes these the certificates to pick from, from the next handshake on. Each needs its Leaf, as tls.X509KeyPair sets
// it: one without, and names of a leaf that no client can ask for, are passed over.
func (c *Certificates) Set(certificates []*tls.Certificate) {
	c.given.Store(index(certificates))
}

// Get is for Config.Certificate.
func (c *Certificates) Get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	now := time.Now()
	host := strings.ToLower(hello.ServerName)
	if found := c.given.Load().choose(host, hello.SupportsCertificate, now); found != nil {
		return found, nil
	}
	if host == "" || !c.known(host) {
		host = c.node
	}
	return c.own.certificate(host, now)
}

// givenCertificates are certificates by the names in their leaves, in lower case. Each list has the best first: ECDSA, which costs
// a tenth of RSA to sign by, then who lasts longest, then who was given first.
type givenCertificates struct {
	exact    map[string][]*tls.Certificate
	wildcard map[string][]*tls.Certificate // by what follows "*."
}

func index(certificates []*tls.Certificate) *givenCertificates {
	g := &givenCertificates{exact: map[string][]*tls.Certificate{}, wildcard: map[string][]*tls.Certificate{}}
	for _, c := range certificates {
		if c.Leaf == nil {
			continue
		}
		for _, name := range c.Leaf.DNSNames {
			name = strings.ToLower(name)
			if parent, ok := strings.CutPrefix(name, "*."); ok && parent != "" {
				g.wildcard[parent] = append(g.wildcard[parent], c)
			} else {
				g.exact[name] = append(g.exact[name], c)
			}
		}
	}
	for _, lists := range []map[string][]*tls.Certificate{g.exact, g.wildcard} {
		for _, list := range lists {
			slices.SortStableFunc(list, func(a, b *tls.Certificate) int {
				return cmp.Or(-compareBool(isECDSA(a), isECDSA(b)), b.Leaf.NotAfter.Compare(a.Leaf.NotAfter))
			})
		}
	}
	return g
}

// choose picks for a host. A certificate that the client can use comes before one that it cannot, one that is valid now before
// one that has expired, one with the very name before a wildcard, which stands for one label (RFC 9525, 6.3). Nil: none
// has the name.
func (g *givenCertificates) choose(host string, usable func(*tls.Certificate) error, now time.Time) *tls.Certificate {
	_, parent, _ := strings.Cut(host, ".")
	var best *tls.Certificate
	most := -1
	for _, list := range [][]*tls.Certificate{g.exact[host], g.wildcard[parent]} {
		for _, c := range list {
			score := 0
			if usable(c) == nil {
				score += 2
			}
			if !now.Before(c.Leaf.NotBefore) && !now.After(c.Leaf.NotAfter) {
				score++
			}
			if score == 3 {
				return c
			}
			if score > most {
				best, most = c, score
			}
		}
	}
	return best
}

func isECDSA(c *tls.Certificate) bool { return c.Leaf.PublicKeyAlgorithm == x509.ECDSA }

// compareBool is -1, 0 or 1: false comes before true.
func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
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
