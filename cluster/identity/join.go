package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"time"
)

// JoinProtocol is the ALPN name of joining. Client and server exchange one message each: a length (4 bytes, big endian)
// and that much JSON.
const JoinProtocol = "perigee-join/1"

const (
	// maxMessage bounds a join message; a longer one is refused unread. The longest real one is about 3 KiB.
	maxMessage = 64 << 10

	// joinTimeout bounds one joining from the first byte to the last, on either side; then it is given up.
	joinTimeout = 10 * time.Second
)

// ErrOtherCluster says that the node that was asked is not of the cluster that the token is for.
var ErrOtherCluster = errors.New("node is not of the cluster this token is for")

// RefusedError says why a cluster did not admit a node.
type RefusedError struct {
	Reason string
}

func (e *RefusedError) Error() string { return "join refused: " + e.Reason }

type joinRequest struct {
	Secret []byte `json:"secret"`
	Claim  Claim  `json:"claim"`
	CSR    []byte `json:"csr"`
}

type joinAnswer struct {
	Refused     string           `json:"refused,omitempty"`
	Certificate []byte           `json:"certificate,omitempty"`
	GossipKey   []byte           `json:"gossipKey,omitempty"`
	Authority   *authoritySecret `json:"authority,omitempty"` // only for one that may vote
}

type authoritySecret struct {
	Key    []byte `json:"key"` // PKCS #8
	Secret []byte `json:"secret"`
}

// Join asks the node at address to admit this machine by the token, and returns its identity; and the authority if
// the claim has the role Voter. The cluster is known by the token: any other is ErrOtherCluster, before the secret
// is shown. A cluster that declines is a *RefusedError.
func Join(
	ctx context.Context,
	dial func(ctx context.Context, network, address string) (net.Conn, error),
	address, token string,
	claim Claim,
) (*Node, *Authority, error) {
	if err := claim.Validate(); err != nil {
		return nil, nil, err
	}
	t, err := ParseToken(token)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	node, authority, err := join(ctx, dial, address, t, claim)
	if err != nil {
		if ctx.Err() != nil { // the connection was cut for it: say that, not how the cut was felt
			err = ctx.Err()
		}
		return nil, nil, fmt.Errorf("join at %s: %w", address, err)
	}
	return node, authority, nil
}

func join(
	ctx context.Context,
	dial func(ctx context.Context, network, address string) (net.Conn, error),
	address string,
	t Token,
	claim Claim,
) (*Node, *Authority, error) {
	key, csr, err := request()
	if err != nil {
		return nil, nil, err
	}
	raw, err := dial(ctx, "tcp", address)
	if err != nil {
		return nil, nil, err
	}
	defer raw.Close()
	defer context.AfterFunc(ctx, func() { raw.Close() })()

	var ca *x509.Certificate
	conn := tls.Client(raw, &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{JoinProtocol},
		// There is no root to verify by yet: VerifyConnection does it, by the token's hash.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) (err error) {
			ca, err = t.verify(state.PeerCertificates)
			return err
		},
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, nil, err
	}
	if err := writeMessage(conn, joinRequest{Secret: t.Secret[:], Claim: claim, CSR: csr}); err != nil {
		return nil, nil, err
	}
	var answer joinAnswer
	if err := readMessage(conn, &answer); err != nil {
		return nil, nil, err
	}
	return answer.accept(key, ca, claim)
}

// verify finds the cluster's authority at the end of the chain by the token's hash, and that it signed the leaf.
func (t Token) verify(chain []*x509.Certificate) (*x509.Certificate, error) {
	if len(chain) < 2 {
		return nil, ErrOtherCluster
	}
	leaf, ca := chain[0], chain[len(chain)-1]
	if fingerprint(ca) != t.Authority {
		return nil, ErrOtherCluster
	}
	cluster, err := clusterOf(ca)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: cluster}); err != nil {
		return nil, err
	}
	return ca, nil
}

// accept makes the identity of an answer, having checked that it is the one that was asked for.
func (a joinAnswer) accept(key *ecdsa.PrivateKey, ca *x509.Certificate, claim Claim) (*Node, *Authority, error) {
	if a.Refused != "" {
		return nil, nil, &RefusedError{Reason: a.Refused}
	}
	cert, err := x509.ParseCertificate(a.Certificate)
	if err != nil {
		return nil, nil, fmt.Errorf("read certificate: %w", err)
	}
	node, err := newNode(key, cert, ca, a.GossipKey)
	if err != nil {
		return nil, nil, err
	}
	if node.name != claim.Name {
		return nil, nil, fmt.Errorf("certificate is for node %s, not %s", node.name, claim.Name)
	}
	if a.Authority == nil {
		return node, nil, nil
	}
	caKey, err := parseKey(a.Authority.Key)
	if err != nil {
		return nil, nil, fmt.Errorf("read authority's key: %w", err)
	}
	authority, err := newAuthority(caKey, ca, a.GossipKey, a.Authority.Secret)
	if err != nil {
		return nil, nil, err
	}
	return node, authority, nil
}

// Gate admits machines to the cluster, one connection each. It owns no goroutine: the caller accepts, and bounds how many
// it serves at once.
type Gate struct {
	authority *Authority
	allow     func(Claim) error

	admitted, malformed, wrongToken, refused atomic.Uint64
}

// NewGate makes a gate. allow is asked about each claim whose token was right; its error, if any, is told
// to the machine as the reason (a name is taken, say).
func NewGate(authority *Authority, allow func(Claim) error) *Gate {
	return &Gate{authority: authority, allow: allow}
}

// Counters counts what became of those who asked.
func (g *Gate) Counters() map[string]uint64 {
	return map[string]uint64{
		"join_admitted_total":    g.admitted.Load(),
		"join_malformed_total":   g.malformed.Load(),
		"join_wrong_token_total": g.wrongToken.Load(),
		"join_refused_total":     g.refused.Load(),
	}
}

// Admit serves one machine that asks to join, over a connection whose handshake by Node.JoinTLS is done, and closes it.
// It returns whom it admitted, or why it did not.
func (g *Gate) Admit(conn net.Conn) (Claim, error) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(joinTimeout))
	var request joinRequest
	if err := readMessage(conn, &request); err != nil {
		g.malformed.Add(1)
		return Claim{}, fmt.Errorf("read join request: %w", err)
	}
	answer := g.judge(request)
	if err := writeMessage(conn, answer); err != nil {
		return request.Claim, fmt.Errorf("answer join request: %w", err)
	}
	if answer.Refused != "" {
		return request.Claim, &RefusedError{Reason: answer.Refused}
	}
	g.admitted.Add(1)
	return request.Claim, nil
}

// judge decides on one request. The secret comes first: who lacks it learns nothing of the cluster.
func (g *Gate) judge(request joinRequest) joinAnswer {
	a := g.authority
	if subtle.ConstantTimeCompare(request.Secret, a.secret) != 1 {
		g.wrongToken.Add(1)
		return joinAnswer{Refused: "wrong token"}
	}
	if err := request.Claim.Validate(); err != nil {
		g.refused.Add(1)
		return joinAnswer{Refused: err.Error()}
	}
	if err := g.allow(request.Claim); err != nil {
		g.refused.Add(1)
		return joinAnswer{Refused: err.Error()}
	}
	cert, err := a.Issue(request.CSR, request.Claim)
	if err != nil {
		g.malformed.Add(1)
		return joinAnswer{Refused: err.Error()}
	}
	answer := joinAnswer{Certificate: cert.Raw, GossipKey: a.gossipKey}
	if slices.Contains(request.Claim.Roles, Voter) {
		key, err := x509.MarshalPKCS8PrivateKey(a.key)
		if err != nil {
			g.refused.Add(1)
			return joinAnswer{Refused: "authority's key cannot be handed over"}
		}
		answer.Authority = &authoritySecret{Key: key, Secret: a.secret}
	}
	return answer
}

func writeMessage(w io.Writer, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
	return err
}

func readMessage(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > maxMessage {
		return fmt.Errorf("message of %d bytes: at most %d", size, maxMessage)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(r, body); err != nil {
		return err
	}
	return json.Unmarshal(body, v)
}
