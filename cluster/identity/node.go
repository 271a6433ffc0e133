package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// maxAuthorities bounds the authorities of a cluster at one time: one, or two while they are changed, and room.
const maxAuthorities = 8

// Node is one node's identity. It is immutable; a renewed certificate makes a new Node.
type Node struct {
	name        string
	cluster     string
	key         *ecdsa.PrivateKey
	cert        *x509.Certificate
	authorities []*x509.Certificate // the one that issued the certificate first
	keys        Keys
}

// Name is the node's name.
func (n *Node) Name() string { return n.name }

// ClusterID is the id of the node's cluster, a label.
func (n *Node) ClusterID() string { return n.cluster }

// Claim is what the certificate says of the node; its roles are sorted.
func (n *Node) Claim() Claim { return claimOf(n.cert) }

// Epoch is that of the certificate: a revocation of the node's name at this epoch or later ends it.
func (n *Node) Epoch() uint64 { return epochOf(n.cert) }

// Issued is when the certificate was made, by the clock of who made it.
func (n *Node) Issued() time.Time { return n.cert.NotBefore.Add(backdated) }

// RenewAt is when the next certificate should be asked for: 60 days after this one was made.
func (n *Node) RenewAt() time.Time { return n.Issued().Add(renewAfter) }

// Expires is when the certificate ends: 90 days after it was made, or with its authority.
func (n *Node) Expires() time.Time { return n.cert.NotAfter }

// Valid says what a clock that shows now has against the certificate, if anything.
func (n *Node) Valid(now time.Time) error { return inTime(n.cert, now) }

// Authority is the hash (Authority.Hash) of the authority that issued the certificate.
func (n *Node) Authority() [sha256.Size]byte { return hashOf(n.authorities[0]) }

// Keys are the keys the node was given.
func (n *Node) Keys() Keys { return n.keys }

// Fingerprint is the SHA-256 of the certificate in hexadecimal, for people to compare.
func (n *Node) Fingerprint() string {
	sum := sha256.Sum256(n.cert.Raw)
	return hex.EncodeToString(sum[:])
}

// Format implements fmt.Formatter: the keys are not shown.
func (n *Node) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "node %s of cluster %s", n.name, n.cluster)
}

// chain is the certificate as it is shown, with the authority's behind it: who comes with a token knows only that one's hash.
func (n *Node) chain() tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{n.cert.Raw, n.authorities[0].Raw}, PrivateKey: n.key, Leaf: n.cert}
}

// Request is a new key that waits for its certificate.
type Request struct {
	key *ecdsa.PrivateKey
	csr []byte
}

// NewRequest makes a key and the request to certify it. The request carries only the key: the name is claimed beside it
// and written by the authority.
func NewRequest() (*Request, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("make certificate request: %w", err)
	}
	return &Request{key: key, csr: csr}, nil
}

// Format implements fmt.Formatter: the key is not shown.
func (r *Request) Format(f fmt.State, _ rune) { io.WriteString(f, "certificate request") }

// CSR is the request in DER (PKCS #10). It must not be changed.
func (r *Request) CSR() []byte { return r.csr }

// Accept makes an identity of the answer to the request: its certificate and the authorities of the cluster (DER), one of which
// issued it. Parts that do not belong to each other are refused. Times are not looked at (Node.Valid does that).
func (r *Request) Accept(certificate []byte, authorities [][]byte, keys Keys) (*Node, error) {
	return newNode(r.key, certificate, authorities, keys)
}

// newNode puts an identity together and refuses parts that do not belong to each other.
func newNode(key *ecdsa.PrivateKey, certificate []byte, authorities [][]byte, keys Keys) (*Node, error) {
	cert, err := x509.ParseCertificate(certificate)
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("certificate is not of this key")
	}
	cluster, name, err := nodeOf(cert)
	if err != nil {
		return nil, err
	}
	if len(authorities) > maxAuthorities {
		return nil, fmt.Errorf("%d authorities: at most %d", len(authorities), maxAuthorities)
	}
	n := &Node{name: name, cluster: cluster, key: key, cert: cert, keys: keys}
	for _, der := range authorities {
		ca, of, err := readAuthorityCertificate(der)
		if err != nil {
			return nil, err
		}
		if of != cluster {
			return nil, fmt.Errorf("certificate is of cluster %s, its authority of %s", cluster, of)
		}
		n.authorities = append(n.authorities, ca)
	}
	issuer := slices.IndexFunc(n.authorities, func(ca *x509.Certificate) bool { return cert.CheckSignatureFrom(ca) == nil })
	if issuer < 0 {
		return nil, errors.New("certificate is of no authority of this cluster")
	}
	n.authorities[0], n.authorities[issuer] = n.authorities[issuer], n.authorities[0]
	if keys.Authority != nil {
		copied := *keys.Authority
		n.keys.Authority = &copied
	}
	return n, nil
}

// inTime says what a clock that shows now has against a certificate, and that it may be the clock that is wrong.
func inTime(cert *x509.Certificate, now time.Time) error {
	switch at := now.UTC().Format(time.DateTime); {
	case now.After(cert.NotAfter):
		return fmt.Errorf("certificate ended on %s, and this machine's clock shows %s", cert.NotAfter.UTC().Format(time.DateTime), at)
	case now.Before(cert.NotBefore):
		return fmt.Errorf("certificate begins on %s, and this machine's clock shows %s", cert.NotBefore.UTC().Format(time.DateTime), at)
	}
	return nil
}
