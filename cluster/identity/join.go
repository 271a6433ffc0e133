package identity

import (
	"context"
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
// and that much JSON. Fields that one end does not know it passes over.
const JoinProtocol = "perigee-join/1"

const (
	// maxRequest and maxAnswer bound the messages; a longer one is refused unread. A real request has about 1 KiB, an answer
	// 3 KiB and the state that comes with it.
	maxRequest = 64 << 10
	maxAnswer  = 16 << 20

	// askTimeout bounds the handshake at the machine that joins, and the reading of its request at the gate.
	askTimeout = 10 * time.Second

	// judgeTimeout bounds what the cluster may take to decide: an election, and a way around the world.
	judgeTimeout = 20 * time.Second

	// joinTimeout bounds one joining from the first byte to the last, on either side; then it is given up.
	joinTimeout = 30 * time.Second
)

var (
	// ErrOtherCluster says that the node that was asked is not of the cluster that a token is for, or that the cluster's
	// authority was changed since the token was made.
	ErrOtherCluster = errors.New("node is not of the cluster this token is for, or the token is older than the cluster's authority")
	// ErrUndecided says that the cluster could not decide whether to admit a machine, for want of a leader, say. It may be asked
	// again.
	ErrUndecided = errors.New("the cluster cannot decide now, try again")
)

// RefusedError says why a cluster did not admit a node.
type RefusedError struct {
	Reason string
}

func (e *RefusedError) Error() string { return "join refused: " + e.Reason }

// JoinRequest is what a machine sends that wants to join.
type JoinRequest struct {
	TokenID []byte `json:"tokenId"` // Token.ID
	Secret  []byte `json:"secret"`  // Token.Secret
	Claim   Claim  `json:"claim"`
	CSR     []byte `json:"csr"` // PKCS #10, DER
}

// Format implements fmt.Formatter: the secret is not shown.
func (r JoinRequest) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "request of %s to join", r.Claim.Name)
}

// JoinAnswer is what the cluster says to it, or to a node that renews its certificate.
type JoinAnswer struct {
	Refused      string   `json:"refused,omitempty"`     // why; then all else is empty
	Undecided    bool     `json:"undecided,omitempty"`   // ErrUndecided; then all else is empty
	Certificate  []byte   `json:"certificate,omitempty"` // DER
	Authorities  [][]byte `json:"authorities,omitempty"` // DER
	ClusterKey   []byte   `json:"clusterKey,omitempty"`
	AuthorityKey []byte   `json:"authorityKey,omitempty"` // only for one that may vote
}

// Format implements fmt.Formatter: the keys are not shown.
func (a JoinAnswer) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "answer to a request to join: refused %q, undecided %v", a.Refused, a.Undecided)
}

// Accept makes the identity that the answer gives to the request, or says why there is none.
func (a JoinAnswer) Accept(r *Request) (*Node, error) {
	switch {
	case a.Refused != "":
		return nil, &RefusedError{Reason: a.Refused}
	case a.Undecided:
		return nil, ErrUndecided
	}
	keys, err := readKeys(a.ClusterKey, a.AuthorityKey)
	if err != nil {
		return nil, err
	}
	return r.Accept(a.Certificate, a.Authorities, keys)
}

// Join asks the node at address to admit this machine by the token, and returns its identity. The cluster is known by
// the token: any other is ErrOtherCluster, before the secret is shown. A cluster that declines is a *RefusedError, one
// that cannot say is ErrUndecided. now is the clock that certificates are judged by; nil is the machine's.
func Join(
	ctx context.Context,
	dial func(ctx context.Context, network, address string) (net.Conn, error),
	address, token string,
	claim Claim,
	now func() time.Time,
) (*Node, error) {
	if err := claim.Validate(); err != nil {
		return nil, err
	}
	t, err := ParseToken(token)
	if err != nil {
		return nil, err
	}
	if now == nil {
		now = time.Now
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	node, err := join(ctx, dial, address, t, claim, now)
	if err != nil {
		if ctx.Err() != nil { // the connection was cut for it: say that, not how the cut was felt
			err = ctx.Err()
		}
		return nil, fmt.Errorf("join at %s: %w", address, err)
	}
	return node, nil
}

func join(
	ctx context.Context,
	dial func(ctx context.Context, network, address string) (net.Conn, error),
	address string,
	t Token,
	claim Claim,
	now func() time.Time,
) (*Node, error) {
	r, err := NewRequest()
	if err != nil {
		return nil, err
	}
	raw, err := dial(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	defer context.AfterFunc(ctx, func() { raw.Close() })()

	config := PinnedTLS(t.Authority, now)
	config.NextProtos = []string{JoinProtocol}
	conn := tls.Client(raw, config)
	if err := shakeHands(ctx, conn); err != nil {
		return nil, err
	}
	request := JoinRequest{TokenID: t.ID[:], Secret: t.Secret[:], Claim: claim, CSR: r.CSR()}
	if err := writeMessage(conn, maxRequest, request); err != nil {
		return nil, err
	}
	var answer JoinAnswer
	if err := readMessage(conn, maxAnswer, &answer); err != nil {
		return nil, err
	}
	return t.accept(r, answer, claim, now())
}

func shakeHands(ctx context.Context, conn *tls.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return conn.HandshakeContext(ctx)
}

// accept makes the identity of an answer, having checked that it is the one that was asked for: for this name, in the
// cluster of the token, and good by this machine's clock.
func (t Token) accept(r *Request, answer JoinAnswer, claim Claim, now time.Time) (*Node, error) {
	node, err := answer.Accept(r)
	if err != nil {
		return nil, err
	}
	if node.name != claim.Name {
		return nil, fmt.Errorf("certificate is for node %s, not %s", node.name, claim.Name)
	}
	if !slices.ContainsFunc(node.authorities, func(ca *x509.Certificate) bool { return hashOf(ca) == t.Authority }) {
		return nil, ErrOtherCluster
	}
	if err := node.Valid(now); err != nil {
		return nil, err
	}
	return node, nil
}

// Gate is the cluster's end of joining, one connection at a time. It owns no goroutine: the caller accepts, and bounds how many
// it serves at once.
type Gate struct {
	judge func(context.Context, JoinRequest) (JoinAnswer, error)

	admitted, malformed, refused, undecided atomic.Uint64
}

// NewGate makes a gate. judge decides on requests that are in form. An error of it means that nothing was decided:
// the machine is told ErrUndecided and not the error, since it is a stranger as yet.
func NewGate(judge func(context.Context, JoinRequest) (JoinAnswer, error)) *Gate {
	return &Gate{judge: judge}
}

// Counters counts what became of those who asked.
func (g *Gate) Counters() map[string]uint64 {
	return map[string]uint64{
		"join_admitted_total":  g.admitted.Load(),
		"join_malformed_total": g.malformed.Load(),
		"join_refused_total":   g.refused.Load(),
		"join_undecided_total": g.undecided.Load(),
	}
}

// Admit serves one machine that asks to join, over a connection whose handshake by Guard.JoinTLS is done, and closes it.
// It ends when ctx does. It returns whom it admitted, or why it did not.
func (g *Gate) Admit(ctx context.Context, conn net.Conn) (Claim, error) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	begin := time.Now()
	conn.SetDeadline(begin.Add(askTimeout))
	var request JoinRequest
	if err := readMessage(conn, maxRequest, &request); err != nil {
		g.malformed.Add(1)
		return Claim{}, fmt.Errorf("read join request: %w", err)
	}
	conn.SetDeadline(begin.Add(joinTimeout))
	answer, undecided := g.answer(ctx, request)
	if err := writeMessage(conn, maxAnswer, answer); err != nil {
		return request.Claim, fmt.Errorf("answer join request: %w", err)
	}
	switch {
	case undecided != nil:
		return request.Claim, undecided
	case answer.Refused != "":
		return request.Claim, &RefusedError{Reason: answer.Refused}
	}
	g.admitted.Add(1)
	return request.Claim, nil
}

// answer has a request judged, if it is in form; the error says why nothing was decided.
func (g *Gate) answer(ctx context.Context, request JoinRequest) (JoinAnswer, error) {
	if err := request.inForm(); err != nil {
		g.malformed.Add(1)
		return JoinAnswer{Refused: err.Error()}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, judgeTimeout)
	defer cancel()
	answer, err := g.judge(ctx, request)
	if err == nil && answer.Undecided {
		err = ErrUndecided
	}
	switch {
	case err != nil:
		g.undecided.Add(1)
		return JoinAnswer{Undecided: true}, fmt.Errorf("judge join request: %w", err)
	case answer.Refused != "":
		g.refused.Add(1)
		return JoinAnswer{Refused: answer.Refused}, nil // and nothing that should not be with it
	}
	return answer, nil
}

// inForm says what is wrong with a request before anything is known of who sent it, so it tells nothing of the cluster.
func (r JoinRequest) inForm() error {
	var t Token
	switch {
	case len(r.TokenID) != len(t.ID) || len(r.Secret) != len(t.Secret):
		return errors.New("no token")
	case len(r.CSR) == 0:
		return errors.New("no certificate request")
	}
	return r.Claim.Validate()
}

func writeMessage(w io.Writer, most int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(body) > most {
		return fmt.Errorf("message of %d bytes: at most %d", len(body), most)
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
	return err
}

func readMessage(r io.Reader, most int, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(head[:])
	if uint64(size) > uint64(most) {
		return fmt.Errorf("message of %d bytes: at most %d", size, most)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(r, body); err != nil {
		return err
	}
	return json.Unmarshal(body, v)
}
