package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
)

// ServerTLS accepts nodes of the cluster for the given ALPN protocols (RFC 7301), over TLS 1.3 only. It serves QUIC too.
func (n *Node) ServerTLS(alpn ...string) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             alpn,
		Certificates:           []tls.Certificate{n.chain()},
		ClientAuth:             tls.RequireAndVerifyClientCert,
		ClientCAs:              n.roots(),
		VerifyConnection:       n.peerIs(""),
		SessionTicketsDisabled: true,
	}
}

// ClientTLS dials the node called name, or any node of the cluster if name is empty, for the given ALPN protocols.
// It takes no other peer, whatever certificate that one holds.
func (n *Node) ClientTLS(name string, alpn ...string) *tls.Config {
	server := name
	if server == "" {
		server = n.cluster
	}
	return &tls.Config{
		MinVersion:       tls.VersionTLS13,
		NextProtos:       alpn,
		Certificates:     []tls.Certificate{n.chain()},
		RootCAs:          n.roots(),
		ServerName:       server,
		VerifyConnection: n.peerIs(name),
	}
}

// JoinTLS accepts anyone for JoinProtocol and nothing else. The peer is a stranger until it shows the join secret.
func (n *Node) JoinTLS() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{JoinProtocol},
		Certificates:           []tls.Certificate{n.chain()},
		SessionTicketsDisabled: true,
	}
}

// PeerName returns the name of the node at the other end of a connection that was made by ServerTLS or ClientTLS.
func PeerName(state tls.ConnectionState) (string, error) {
	_, name, err := peer(state)
	return name, err
}

// peer trusts only what the handshake verified: a certificate that was merely shown proves nothing.
func peer(state tls.ConnectionState) (cluster, name string, err error) {
	if len(state.VerifiedChains) == 0 {
		return "", "", errors.New("peer has shown no certificate of the cluster")
	}
	return nodeOf(state.VerifiedChains[0][0])
}

func (n *Node) peerIs(want string) func(tls.ConnectionState) error {
	return func(state tls.ConnectionState) error {
		cluster, name, err := peer(state)
		switch {
		case err != nil:
			return err
		case cluster != n.cluster:
			return fmt.Errorf("peer is of cluster %s, not %s", cluster, n.cluster)
		case want != "" && name != want:
			return fmt.Errorf("peer is node %s, not %s", name, want)
		}
		return nil
	}
}

// chain is the certificate as it is shown, with the authority's behind it: a joiner knows only that one's hash.
func (n *Node) chain() tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{n.cert.Raw, n.ca.Raw}, PrivateKey: n.key, Leaf: n.cert}
}

func (n *Node) roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(n.ca)
	return pool
}
