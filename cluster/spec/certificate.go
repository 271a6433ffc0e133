package spec

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// maxChain bounds the certificates of a chain.
const maxChain = 10

// TLS is the certificate with its key, ready to be served. The error never quotes the key.
func (c *Certificate) TLS() (tls.Certificate, error) {
	both, err := tls.X509KeyPair([]byte(c.Certificate), c.PrivateKey.Reveal())
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("read certificate %s: %w", c.Name, err)
	}
	return both, nil
}

// Names are the DNS names and IP addresses that the leaf is for, as it has them: *.example.com covers one label. It has
// none where the certificate cannot be read, which Build does not let pass.
func (c *Certificate) Names() []string {
	chain, err := parseChain(c.Certificate)
	if err != nil {
		return nil
	}
	return names(chain[0])
}

func names(leaf *x509.Certificate) []string {
	all := append([]string(nil), leaf.DNSNames...)
	for _, a := range leaf.IPAddresses {
		all = append(all, a.String())
	}
	return all
}

// parseChain reads the certificates of a PEM text.
func parseChain(text string) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("has a %.40s in it: only certificates belong here", block.Type)
		}
		if len(chain) == maxChain {
			return nil, fmt.Errorf("has more than %d certificates", maxChain)
		}
		one, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("its certificate %d cannot be read: %w", len(chain)+1, err)
		}
		chain = append(chain, one)
	}
	if len(chain) == 0 {
		return nil, errors.New(`must be PEM: "-----BEGIN CERTIFICATE-----" and so on`)
	}
	return chain, nil
}

func (c check) certificate(r *Certificate) {
	c.name(r.Name)
	if c.told("certificate") || r.Certificate == "" {
		return
	}
	chain, err := parseChain(r.Certificate)
	if err != nil {
		c.fault("certificate", "%v", err)
		return
	}
	if len(names(chain[0])) == 0 {
		c.fault("certificate", "has no DNS name and no IP address (subjectAltName) that it could be served for")
	}
	if c.told("privateKey") || r.PrivateKey == (Secret{}) {
		return
	}
	c.privateKey(chain, r.PrivateKey)
}

// privateKey judges whether a key is one, and the leaf's. Nothing that it says is from the key.
func (c check) privateKey(chain []*x509.Certificate, key Secret) {
	plain := key.Reveal()
	block, _ := pem.Decode(plain)
	switch {
	case block == nil:
		c.fault("privateKey", `must be PEM: "-----BEGIN PRIVATE KEY-----" and so on`)
		return
	case block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "":
		c.fault("privateKey", "is encrypted with a passphrase: it must be given without, and is sealed with the cluster's key")
		return
	}
	belongs := func(one *x509.Certificate) error {
		_, err := tls.X509KeyPair(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: one.Raw}), plain)
		return err
	}
	if belongs(chain[0]) == nil {
		return
	}
	for i, one := range chain[1:] {
		if belongs(one) == nil {
			c.fault("certificate", "begins with another certificate: the key's, number %d, must be the first", i+2)
			return
		}
	}
	c.fault("privateKey", "is not the key of the certificate, or of no kind that is known (RSA, ECDSA, Ed25519 in PKCS 8, PKCS 1 or SEC 1)")
}

func (c check) cluster(r *Cluster) {
	if r.Name != ClusterName {
		c.fault("name", "must be %s: there is one cluster", ClusterName)
	}
}
