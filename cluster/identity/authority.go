package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"time"
)

const (
	keySize = 32 // bytes of the gossip key and of the join secret

	authorityLife = 10 * 365 * 24 * time.Hour
	nodeLife      = 365 * 24 * time.Hour

	// clockSlack is how far behind a machine's clock may be and still accept a certificate made now.
	clockSlack = time.Hour
)

// Authority makes nodes: the cluster's certificate authority, and the secrets a node is given. Whoever holds it
// can admit anyone, so it stays on the nodes that may vote. It is immutable.
type Authority struct {
	cluster   string
	key       *ecdsa.PrivateKey
	cert      *x509.Certificate
	gossipKey []byte
	secret    []byte
}

// ClusterID is the id of the cluster, a label.
func (a *Authority) ClusterID() string { return a.cluster }

// New makes a cluster: its id, its authority, its gossip key and its join secret.
func New(now time.Time) (*Authority, error) {
	id := make([]byte, 16)
	gossipKey, secret := make([]byte, keySize), make([]byte, keySize)
	for _, b := range [][]byte{id, gossipKey, secret} {
		rand.Read(b)
	}
	cluster := hex.EncodeToString(id)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make authority's key: %w", err)
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "perigee cluster " + cluster},
		URIs:                  []*url.URL{clusterURI(cluster)},
		NotBefore:             now.Add(-clockSlack),
		NotAfter:              now.Add(authorityLife),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	cert, err := sign(template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("make authority's certificate: %w", err)
	}
	return newAuthority(key, cert, gossipKey, secret)
}

// newAuthority puts an authority together and refuses parts that do not belong to each other.
func newAuthority(key *ecdsa.PrivateKey, cert *x509.Certificate, gossipKey, secret []byte) (*Authority, error) {
	cluster, err := clusterOf(cert)
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("authority's certificate is not of its key")
	}
	if len(gossipKey) != keySize || len(secret) != keySize {
		return nil, fmt.Errorf("gossip key has %d bytes and join secret %d, want %d", len(gossipKey), len(secret), keySize)
	}
	return &Authority{cluster: cluster, key: key, cert: cert, gossipKey: gossipKey, secret: secret}, nil
}

// Token is what a machine needs to join: printable, secret, one word.
func (a *Authority) Token() string {
	t := Token{Authority: fingerprint(a.cert)}
	copy(t.Secret[:], a.secret)
	return t.String()
}

// Issue certifies the key of a certificate request (PKCS #10, DER) for the node that the claim names, for one year.
// Nothing but the key is taken from the request. Whether the name is free is the caller's to know.
func (a *Authority) Issue(csr []byte, claim Claim) (*x509.Certificate, error) {
	if err := claim.Validate(); err != nil {
		return nil, err
	}
	request, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, fmt.Errorf("read certificate request: %w", err)
	}
	if err := request.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate request is not signed by its key: %w", err)
	}
	key, ok := request.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("certificate request: want an ECDSA P-256 key")
	}
	now := time.Now()
	return sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: claim.Name},
		URIs:    []*url.URL{nodeURI(a.cluster, claim.Name)},
		// The cluster's id is what a client asks for that will take any node.
		DNSNames:    []string{claim.Name, a.cluster},
		NotBefore:   now.Add(-clockSlack),
		NotAfter:    now.Add(nodeLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, key, a.key)
}

// Node makes the identity of the node that holds the authority: the first of a cluster.
func (a *Authority) Node(claim Claim) (*Node, error) {
	key, csr, err := request()
	if err != nil {
		return nil, err
	}
	cert, err := a.Issue(csr, claim)
	if err != nil {
		return nil, err
	}
	return newNode(key, cert, a.cert, a.gossipKey)
}

func sign(template, parent *x509.Certificate, public *ecdsa.PublicKey, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}
