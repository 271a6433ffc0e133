package identity

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Trust is whom a node believes: the certificates of these authorities, but not those of names revoked at their epoch or
// later. It must not be changed once it is given away.
type Trust struct {
	Authorities [][]byte // DER. None at all: those that came with the node's identity
	Revoked     map[string]uint64
}

// PEM is the authorities as a file that other programs take (curl --cacert).
func (t Trust) PEM() []byte {
	var out []byte
	for _, der := range t.Authorities {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return out
}

var (
	// ErrRevoked says that a node was shut out of the cluster.
	ErrRevoked = errors.New("node was revoked")
	// ErrRetired says that the authority of a certificate is trusted no more.
	ErrRetired = errors.New("authority is retired")
)

// Guard is a node's identity and its trust of now. The TLS configurations that it gives out look at both at each
// handshake, so what is set holds for the next one; connections that are open are for their owners to ask Refused about.
// Its methods may be called from any goroutine.
type Guard struct {
	now func() time.Time

	mu      sync.Mutex // held while changing current
	current atomic.Pointer[sight]

	revoked, retired atomic.Uint64
}

// sight is what a guard goes by at one moment.
type sight struct {
	node    *Node
	trust   Trust
	roots   *x509.CertPool
	trusted map[[sha256.Size]byte]bool
}

// NewGuard makes a guard. now is the clock that certificates are judged by; nil is the machine's.
func NewGuard(n *Node, t Trust, now func() time.Time) *Guard {
	if now == nil {
		now = time.Now
	}
	g := &Guard{now: now}
	g.current.Store(newSight(n, t))
	return g
}

// SetNode puts a renewed identity in place of the present one. It is shown from the next handshake on.
func (g *Guard) SetNode(n *Node) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.current.Store(newSight(n, g.Trust()))
}

// SetTrust puts another trust in place of the present one. Handshakes go by it at once.
func (g *Guard) SetTrust(t Trust) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.current.Store(newSight(g.Node(), t))
}

// Node is the identity of now.
func (g *Guard) Node() *Node { return g.current.Load().node }

// Trust is the trust of now, as it was set.
func (g *Guard) Trust() Trust { return g.current.Load().trust }

// Counters counts whom handshakes refused, and tells how long the node's own certificate lasts.
func (g *Guard) Counters() map[string]uint64 {
	return map[string]uint64{
		"identity_revoked_refused_total":    g.revoked.Load(),
		"identity_retired_refused_total":    g.retired.Load(),
		"identity_certificate_seconds_left": uint64(max(0, g.Node().Expires().Sub(g.now()).Seconds())),
	}
}

// newSight passes over authorities that cannot be read or are of another cluster: they can vouch for nobody.
func newSight(n *Node, t Trust) *sight {
	s := &sight{node: n, trust: t, roots: x509.NewCertPool(), trusted: map[[sha256.Size]byte]bool{}}
	authorities := n.authorities
	if len(t.Authorities) > 0 {
		authorities = nil
		for _, der := range t.Authorities {
			if ca, cluster, err := readAuthorityCertificate(der); err == nil && cluster == n.cluster {
				authorities = append(authorities, ca)
			}
		}
	}
	for _, ca := range authorities {
		s.roots.AddCert(ca)
		s.trusted[hashOf(ca)] = true
	}
	return s
}

// ServerTLS accepts nodes of the cluster for the given ALPN protocols (RFC 7301), over TLS 1.3 only. It serves QUIC too, and
// may be handed out by a GetConfigForClient: then it is as of its making.
func (g *Guard) ServerTLS(alpn ...string) *tls.Config {
	c := g.serverTLS(alpn)
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return g.serverTLS(alpn), nil }
	return c
}

func (g *Guard) serverTLS(alpn []string) *tls.Config {
	s := g.current.Load()
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             alpn,
		Certificates:           []tls.Certificate{s.node.chain()},
		ClientAuth:             tls.RequireAndVerifyClientCert,
		ClientCAs:              s.roots,
		VerifyConnection:       g.peerIs(""),
		SessionTicketsDisabled: true,
		Time:                   g.now,
	}
}

// ClientTLS dials the node called name, or any node of the cluster if name is empty, for the given ALPN protocols.
// It takes no other peer, whatever certificate that one holds. It is for dials made now: one that is kept shows the renewed
// certificate and knows the revoked, but never trusts an authority that was added later.
func (g *Guard) ClientTLS(name string, alpn ...string) *tls.Config {
	s := g.current.Load()
	server := name
	if server == "" {
		server = s.node.cluster
	}
	return &tls.Config{
		MinVersion:           tls.VersionTLS13,
		NextProtos:           alpn,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return g.shown() },
		RootCAs:              s.roots,
		ServerName:           server,
		VerifyConnection:     g.peerIs(name),
		Time:                 g.now,
	}
}

// JoinTLS accepts anyone for JoinProtocol and nothing else. The peer is a stranger until it shows the secret of a token.
func (g *Guard) JoinTLS() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{JoinProtocol},
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return g.shown() },
		SessionTicketsDisabled: true,
		Time:                   g.now,
	}
}

// PublicTLS serves HTTPS to anyone, by the node's certificate: it is good for the node's name, its addresses, localhost and the
// loopback addresses, for who trusts the cluster's authorities (Trust.PEM, PinnedTLS).
func (g *Guard) PublicTLS() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return g.shown() },
		Time:           g.now,
	}
}

func (g *Guard) shown() (*tls.Certificate, error) {
	chain := g.Node().chain()
	return &chain, nil
}

// Refused says what the trust of now has against the peer of an open connection: ErrRevoked or ErrRetired. Of a stranger's
// (joining, HTTPS) there is nothing to say: nil. That a certificate ended while the connection was open is nothing against it.
func (g *Guard) Refused(state tls.ConnectionState) error {
	if len(state.VerifiedChains) == 0 {
		return nil
	}
	return g.current.Load().refuses(state.VerifiedChains)
}

func (s *sight) refuses(chains [][]*x509.Certificate) error {
	leaf := chains[0][0]
	_, name, err := nodeOf(leaf)
	if err != nil {
		return err
	}
	if epoch, ok := s.trust.Revoked[name]; ok && epochOf(leaf) <= epoch {
		return fmt.Errorf("peer %s: %w", name, ErrRevoked)
	}
	for _, chain := range chains {
		if s.trusted[hashOf(chain[len(chain)-1])] {
			return nil
		}
	}
	return fmt.Errorf("peer %s: %w", name, ErrRetired)
}

// peerIs judges a peer in its handshake; want is its name, or empty for any node.
func (g *Guard) peerIs(want string) func(tls.ConnectionState) error {
	return func(state tls.ConnectionState) error {
		s := g.current.Load()
		cluster, name, err := peer(state)
		switch {
		case err != nil:
			return err
		case cluster != s.node.cluster:
			return fmt.Errorf("peer is of cluster %s, not %s", cluster, s.node.cluster)
		case want != "" && name != want:
			return fmt.Errorf("peer is node %s, not %s", name, want)
		}
		err = s.refuses(state.VerifiedChains)
		switch {
		case errors.Is(err, ErrRevoked):
			g.revoked.Add(1)
		case errors.Is(err, ErrRetired):
			g.retired.Add(1)
		}
		return err
	}
}

// PeerName returns the name of the node at the other end of a connection that was made by ServerTLS or ClientTLS.
func PeerName(state tls.ConnectionState) (string, error) {
	_, name, err := peer(state)
	return name, err
}

// PeerClaim returns what the certificate at the other end of such a connection says of its node; the roles are sorted.
func PeerClaim(state tls.ConnectionState) (Claim, error) {
	if _, _, err := peer(state); err != nil {
		return Claim{}, err
	}
	return claimOf(state.VerifiedChains[0][0]), nil
}

// peer trusts only what the handshake verified: a certificate that was merely shown proves nothing.
func peer(state tls.ConnectionState) (cluster, name string, err error) {
	if len(state.VerifiedChains) == 0 {
		return "", "", errors.New("peer has shown no certificate of the cluster")
	}
	return nodeOf(state.VerifiedChains[0][0])
}

// PinnedTLS dials any node of the cluster whose authority has this hash (Authority.Hash), by whatever host name or address: for
// clients that know a cluster by a token and nothing else. Any other server is ErrOtherCluster. now is the clock that
// certificates are judged by; nil is the machine's.
func PinnedTLS(authority [sha256.Size]byte, now func() time.Time) *tls.Config {
	if now == nil {
		now = time.Now
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// There is no root to verify by, and no name: VerifyConnection does it, by the hash.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			_, err := verifyPinned(authority, state.PeerCertificates, now())
			return err
		},
		Time: now,
	}
}

// verifyPinned finds the authority with this hash in what a server has shown, and verifies that it issued the server's
// certificate, to a node of its cluster.
func verifyPinned(authority [sha256.Size]byte, shown []*x509.Certificate, now time.Time) (*x509.Certificate, error) {
	var ca *x509.Certificate
	for _, cert := range shown[min(1, len(shown)):] {
		if hashOf(cert) == authority {
			ca = cert
		}
	}
	if ca == nil {
		return nil, ErrOtherCluster
	}
	cluster, err := clusterOf(ca)
	if err != nil {
		return nil, err
	}
	leaf := shown[0]
	if of, _, err := nodeOf(leaf); err != nil {
		return nil, err
	} else if of != cluster {
		return nil, ErrOtherCluster
	}
	if err := inTime(leaf, now); err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now}); err != nil {
		return nil, err
	}
	return ca, nil
}
