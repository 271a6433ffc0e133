// Package identity says who is a node of this cluster and who is not: the cluster's certificate authority, the
// token that lets a machine join, and each node's certificate with the TLS configurations made of it.
//
// It opens no port and dials only when told to (Join). A node's certificate names it by the URI
// spiffe://<cluster>/node/<name>; whoever holds one signed by the cluster's authority is a node, whoever does not is a
// stranger. Nodes that may vote also hold the authority itself, so that any of them can admit others. What
// it keeps on disk is written whole or not at all; a file that is damaged is refused by name, never guessed at.
package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// Claim is what a machine says of itself when it asks to join.
type Claim struct {
	Name   string   `json:"name"`
	Region string   `json:"region"`
	POP    string   `json:"pop"`
	Roles  []string `json:"roles"`
}

// Voter is the role that brings a node the authority: it may admit others.
const Voter = "voter"

// maxRoles bounds the roles of a claim; one with more is refused.
const maxRoles = 8

// Validate says what is wrong with a claim. Name, region, POP and roles are labels: 1–63 of a–z, 0–9 and
// inner hyphens (RFC 1123 section 2.1), so that each can stand in a certificate and a DNS name.
func (c Claim) Validate() error {
	for _, field := range []struct{ name, value string }{{"name", c.Name}, {"region", c.Region}, {"pop", c.POP}} {
		if !isLabel(field.value) {
			return fmt.Errorf("%s %q: want 1–63 of a–z, 0–9 and inner hyphens", field.name, field.value)
		}
	}
	if len(c.Roles) > maxRoles {
		return fmt.Errorf("%d roles: at most %d", len(c.Roles), maxRoles)
	}
	for _, role := range c.Roles {
		if !isLabel(role) {
			return fmt.Errorf("role %q: want 1–63 of a–z, 0–9 and inner hyphens", role)
		}
	}
	return nil
}

func isLabel(s string) bool {
	if len(s) < 1 || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// Node is one node's identity. It is immutable; a renewed certificate makes a new Node.
type Node struct {
	name      string
	cluster   string
	gossipKey []byte
	key       *ecdsa.PrivateKey
	cert      *x509.Certificate
	ca        *x509.Certificate
}

// Name is the node's name.
func (n *Node) Name() string { return n.name }

// ClusterID is the id of the node's cluster, a label.
func (n *Node) ClusterID() string { return n.cluster }

// GossipKey is the key of the cluster's gossip, 32 bytes. It must not be changed.
func (n *Node) GossipKey() []byte { return n.gossipKey }

// Expires is when the node's certificate ends.
func (n *Node) Expires() time.Time { return n.cert.NotAfter }

// newNode puts an identity together and refuses parts that do not belong to each other.
func newNode(key *ecdsa.PrivateKey, cert, ca *x509.Certificate, gossipKey []byte) (*Node, error) {
	cluster, err := clusterOf(ca)
	if err != nil {
		return nil, err
	}
	if err := cert.CheckSignatureFrom(ca); err != nil {
		return nil, fmt.Errorf("certificate is not of this cluster: %w", err)
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("certificate is not of this key")
	}
	of, name, err := nodeOf(cert)
	if err != nil {
		return nil, err
	}
	if of != cluster {
		return nil, fmt.Errorf("certificate is of cluster %s, its authority of %s", of, cluster)
	}
	if len(gossipKey) != keySize {
		return nil, fmt.Errorf("gossip key has %d bytes, want %d", len(gossipKey), keySize)
	}
	return &Node{name: name, cluster: cluster, gossipKey: gossipKey, key: key, cert: cert, ca: ca}, nil
}

// request makes a node's key and its request to be certified. The request carries only the key: the name is claimed
// beside it and written by the authority.
func request() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make certificate request: %w", err)
	}
	return key, csr, nil
}

func clusterURI(cluster string) *url.URL { return &url.URL{Scheme: "spiffe", Host: cluster} }

func nodeURI(cluster, name string) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: cluster, Path: "/node/" + name}
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
