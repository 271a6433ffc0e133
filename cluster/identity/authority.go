package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	authorityLife = 10 * 365 * 24 * time.Hour

	// nodeLife is how long a node's certificate lasts, and renewAfter when it is time for the next.
	nodeLife   = 90 * 24 * time.Hour
	renewAfter = 60 * 24 * time.Hour

	// backdated is how long before it was made a certificate begins: a machine whose clock is that much behind still
	// takes it. Nothing is gained by refusing a certificate for being too new.
	backdated = 365 * 24 * time.Hour
)

// NewClusterID makes the id of a new cluster, a label.
func NewClusterID() string {
	id := make([]byte, 16)
	rand.Read(id)
	return hex.EncodeToString(id)
}

// Authority is one certificate authority of a cluster: a key and a certificate. Whoever holds it can make nodes. It is
// immutable.
type Authority struct {
	cluster string
	key     *ecdsa.PrivateKey
	pkcs8   []byte
	cert    *x509.Certificate
}

// NewAuthority makes an authority for a cluster, for ten years.
func NewAuthority(cluster string, now time.Time) (*Authority, error) {
	if !isLabel(cluster) {
		return nil, fmt.Errorf("make authority: cluster %q: want 1–63 of a–z, 0–9 and inner hyphens", cluster)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make authority's key: %w", err)
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "perigee cluster " + cluster},
		URIs:                  []*url.URL{clusterURI(cluster)},
		NotBefore:             now.Add(-backdated),
		NotAfter:              now.Add(authorityLife),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("make authority's certificate: %w", err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("make authority's key: %w", err)
	}
	return ReadAuthority(der, pkcs8)
}

// ReadAuthority puts an authority together from its certificate (DER) and key (PKCS #8), and refuses parts that do not
// belong to each other.
func ReadAuthority(certificate, pkcs8 []byte) (*Authority, error) {
	cert, cluster, err := readAuthorityCertificate(certificate)
	if err != nil {
		return nil, err
	}
	key, err := readPrivateKey(pkcs8)
	if err != nil {
		return nil, fmt.Errorf("read authority's key: %w", err)
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("authority's certificate is not of its key")
	}
	return &Authority{cluster: cluster, key: key, pkcs8: slices.Clone(pkcs8), cert: cert}, nil
}

// ClusterID is the id of the cluster, a label.
func (a *Authority) ClusterID() string { return a.cluster }

// Format implements fmt.Formatter: the key is not shown.
func (a *Authority) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "authority of cluster %s", a.cluster) }

// Certificate is the authority's certificate in DER. It must not be changed.
func (a *Authority) Certificate() []byte { return a.cert.Raw }

// PrivateKey is the authority's key in PKCS #8. It must not be changed, nor leave the node unsealed.
func (a *Authority) PrivateKey() []byte { return a.pkcs8 }

// Hash is the SHA-256 of the authority's public key (SubjectPublicKeyInfo, RFC 7469 section 2.4); tokens hold it.
func (a *Authority) Hash() [sha256.Size]byte { return hashOf(a.cert) }

// Expires is when the authority ends; no certificate of it lasts longer.
func (a *Authority) Expires() time.Time { return a.cert.NotAfter }

// AuthorityHash is Authority.Hash of a certificate (DER), without its key.
func AuthorityHash(certificate []byte) ([sha256.Size]byte, error) {
	cert, _, err := readAuthorityCertificate(certificate)
	if err != nil {
		return [sha256.Size]byte{}, err
	}
	return hashOf(cert), nil
}

// Issue certifies the key of a certificate request (PKCS #10, DER) for the node that the claim names, for 90 days or as
// long as the authority lasts. Nothing but the key is taken from the request. The epoch is written into the certificate:
// a revocation of that name at that epoch or later ends it. Whether the name is free is the caller's to know.
func (a *Authority) Issue(csr []byte, claim Claim, epoch uint64, now time.Time) (der []byte, err error) {
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
	ends := now.Add(nodeLife)
	if a.cert.NotAfter.Before(ends) {
		ends = a.cert.NotAfter
	}
	if !now.Before(ends) {
		return nil, fmt.Errorf("authority ended on %s", ends.UTC().Format(time.DateOnly))
	}
	der, err = x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serialNumber(epoch),
		Subject:      claim.subject(),
		URIs:         []*url.URL{nodeURI(a.cluster, claim.Name)},
		// The cluster's id is what a client asks for that will take any node.
		DNSNames:    []string{claim.Name, a.cluster, "localhost"},
		IPAddresses: claim.reachedAt(),
		NotBefore:   now.Add(-backdated),
		NotAfter:    ends,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, key, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	return der, nil
}

// Node makes an identity of an authority that is at hand: of the first node of a cluster.
func (a *Authority) Node(claim Claim, epoch uint64, keys Keys, now time.Time) (*Node, error) {
	r, err := NewRequest()
	if err != nil {
		return nil, err
	}
	der, err := a.Issue(r.CSR(), claim, epoch, now)
	if err != nil {
		return nil, err
	}
	return r.Accept(der, [][]byte{a.cert.Raw}, keys)
}

// serialNumber holds the epoch in its high 64 bits; the low ones are by chance, so that no two certificates share one.
func serialNumber(epoch uint64) *big.Int {
	b := make([]byte, 16)
	rand.Read(b)
	binary.BigEndian.PutUint64(b, epoch)
	b[15] |= 1 // never zero: RFC 5280 section 4.1.2.2
	return new(big.Int).SetBytes(b)
}

func epochOf(cert *x509.Certificate) uint64 {
	return new(big.Int).Rsh(cert.SerialNumber, 64).Uint64()
}

// subject tells people, and Node.Claim, what the node is; machines go by the URI.
func (c Claim) subject() pkix.Name {
	return pkix.Name{CommonName: c.Name, Province: []string{c.Region}, Locality: []string{c.POP}, OrganizationalUnit: c.Roles}
}

func (c Claim) reachedAt() []net.IP {
	addresses := loopback()
	for _, a := range c.Addresses {
		if !slices.Contains(addresses, a.Unmap()) {
			addresses = append(addresses, a.Unmap())
		}
	}
	ips := make([]net.IP, len(addresses))
	for i, a := range addresses {
		ips[i] = a.AsSlice()
	}
	return ips
}

func loopback() []netip.Addr {
	return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
}

// claimOf is the claim that a certificate was issued for.
func claimOf(cert *x509.Certificate) Claim {
	c := Claim{Name: cert.Subject.CommonName, Roles: slices.Sorted(slices.Values(cert.Subject.OrganizationalUnit))}
	if len(cert.Subject.Province) == 1 {
		c.Region = cert.Subject.Province[0]
	}
	if len(cert.Subject.Locality) == 1 {
		c.POP = cert.Subject.Locality[0]
	}
	for _, ip := range cert.IPAddresses {
		if a, ok := netip.AddrFromSlice(ip); ok && !slices.Contains(loopback(), a.Unmap()) {
			c.Addresses = append(c.Addresses, a.Unmap())
		}
	}
	return c
}

func clusterURI(cluster string) *url.URL { return &url.URL{Scheme: "spiffe", Host: cluster} }

func nodeURI(cluster, name string) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: cluster, Path: "/node/" + name}
}

func readAuthorityCertificate(der []byte) (cert *x509.Certificate, cluster string, err error) {
	if cert, err = x509.ParseCertificate(der); err != nil {
		return nil, "", fmt.Errorf("read authority's certificate: %w", err)
	}
	if cluster, err = clusterOf(cert); err != nil {
		return nil, "", err
	}
	return cert, cluster, nil
}

// clusterOf reads the cluster's id from its authority's certificate.
func clusterOf(ca *x509.Certificate) (string, error) {
	if !ca.IsCA || len(ca.URIs) != 1 || *ca.URIs[0] != *clusterURI(ca.URIs[0].Host) || !isLabel(ca.URIs[0].Host) {
		return "", errors.New("certificate is not of a cluster's authority")
	}
	return ca.URIs[0].Host, nil
}

// nodeOf reads the cluster and the name from a node's certificate.
func nodeOf(cert *x509.Certificate) (cluster, name string, err error) {
	if len(cert.URIs) == 1 {
		u := cert.URIs[0]
		if name, ok := strings.CutPrefix(u.Path, "/node/"); ok && isLabel(name) && *u == *nodeURI(u.Host, name) {
			return u.Host, name, nil
		}
	}
	return "", "", errors.New("certificate does not name a node")
}

func readPrivateKey(pkcs8 []byte) (*ecdsa.PrivateKey, error) {
	key, err := x509.ParsePKCS8PrivateKey(pkcs8)
	if err != nil {
		return nil, err
	}
	k, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("key is not ECDSA")
	}
	return k, nil
}

func hashOf(cert *x509.Certificate) [sha256.Size]byte {
	return sha256.Sum256(cert.RawSubjectPublicKeyInfo)
}
