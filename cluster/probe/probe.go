package probe

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/proxy"
	"github.com/perigee-net/perigee/cluster/rendezvous"
	"github.com/perigee-net/perigee/cluster/socket"
	"github.com/perigee-net/perigee/cluster/spec"
)

const (
	// maxHead is how many bytes of an answer are read before it must be decided, all heads of it together (Route 53).
	maxHead = 16_384
	// maxBody is how many bytes of a body are searched for a string (Route 53). No more of any body is kept.
	maxBody = 5_120
	// maxWire is how many bytes may carry that much of a body: in chunks of one byte each is six.
	maxWire = 8 * maxBody
	// maxAddresses is how many addresses of a name are considered.
	maxAddresses = 64
)

const userAgent = "Perigee-HealthChecker"

// looker makes single probes.
type looker struct {
	node    string
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
	resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	roots   *x509.CertPool // nil: the system's
}

// look is one probe.
type look struct {
	*looker
	lacks error // what this node lacked for it
}

// run probes once. When ctx ends it returns soon, and what it returns means nothing; nor does it where this node lacked something, which is no word on
// what is checked.
func (l *looker) run(ctx context.Context, c *Check) (r health.Result, lacks error) {
	once := look{looker: l}
	if reason := once.attempt(ctx, c); reason != "" {
		return health.Result{Reason: reason}, once.lacks
	}
	return health.Result{Passed: true}, nil
}

// attempt says why the probe failed; empty if it passed.
func (l *look) attempt(ctx context.Context, c *Check) string {
	end := time.Now().Add(c.Timeout)
	connecting, cancel := context.WithTimeout(ctx, c.ConnectTimeout)
	defer cancel()
	address, reason := l.address(connecting, c)
	if reason != "" {
		return reason
	}
	conn, reason := l.connect(connecting, c, address)
	if reason != "" {
		return reason
	}
	defer conn.raw.Close()
	if c.Protocol == spec.TCP {
		return ""
	}
	defer context.AfterFunc(ctx, func() { conn.raw.Close() })()

	patience := conn.wait(c.AnswerTimeout, c.Timeout, end)
	if c.Protocol == spec.GRPC {
		return call(ctx, conn, c, patience)
	}
	return get(conn, c, patience, end)
}

// wire is a connection to what is probed. Its raw one is what is closed: nobody waits for a farewell.
type wire struct {
	net.Conn
	raw net.Conn
}

// wait lets the next step take so long, but not past the end of the probe, which may take total. It returns which of the
// two it is, to be told of if it runs out.
func (w wire) wait(step, total time.Duration, end time.Time) (patience time.Duration) {
	deadline := time.Now().Add(step)
	if deadline.After(end) {
		deadline, step = end, total
	}
	w.SetDeadline(deadline)
	return step
}

// address is where the check looks this time. Of several addresses of a name a node always takes the same one while it is
// among them, so that its verdict does not flap where one of them is ill; other nodes take others.
func (l *look) address(ctx context.Context, c *Check) (address netip.AddrPort, reason string) {
	if c.Name == "" {
		return c.Address, ""
	}
	found, err := l.resolve(ctx, c.Name)
	var unknown *net.DNSError
	switch {
	case ctx.Err() != nil:
		return address, "resolve: " + cause(context.DeadlineExceeded, c.ConnectTimeout)
	case errors.As(err, &unknown) && unknown.IsNotFound:
		return address, "resolve: no such host"
	case errors.As(err, &unknown) && !unknown.IsTimeout:
		if lacking(unknown) {
			l.lacks = err
		}
		return address, "resolve: " + unknown.Err
	case err != nil:
		return address, "resolve: " + cause(err, c.ConnectTimeout)
	}
	var names []string
	for _, a := range found[:min(len(found), maxAddresses)] {
		if a = a.Unmap(); a.Is4() {
			names = append(names, a.String())
		}
	}
	if len(names) == 0 {
		return address, "resolve: no IPv4 address"
	}
	best := rendezvous.Highest(l.node+" "+string(c.Key), names, 1)[0]
	return netip.AddrPortFrom(netip.MustParseAddr(best), c.Address.Port()), ""
}

// lacking is socket.Lacking of a question to a name server: package net has kept the text of what failed alone.
func lacking(err *net.DNSError) bool {
	server, _ := netip.ParseAddrPort(err.Server) // or none, where it is not known
	return slices.ContainsFunc(socket.Lacks(), func(e syscall.Errno) bool { return strings.HasSuffix(err.Err, e.Error()) && socket.Lacking(e, server) })
}

// connect dials, with TLS where the check says so. A server that cannot shake hands for the name it is told is asked
// once more without one (Route 53); if that fails too, the first failure is the one to be told of.
func (l *look) connect(ctx context.Context, c *Check, to netip.AddrPort) (conn wire, reason string) {
	name := ""
	if c.SNI {
		name = serverName(c.Host)
	}
	conn, reason, again := l.connectOnce(ctx, c, to, name)
	if again && name != "" && ctx.Err() == nil {
		if conn, why, _ := l.connectOnce(ctx, c, to, ""); why == "" {
			return conn, ""
		}
	}
	return conn, reason
}

// connectOnce dials and tells a TLS server a name, if there is one; again says that it failed at shaking hands.
func (l *look) connectOnce(ctx context.Context, c *Check, to netip.AddrPort, name string) (conn wire, reason string, again bool) {
	raw, err := l.dial(ctx, "tcp", to.String())
	if err != nil {
		if socket.Lacking(err, to) {
			l.lacks = err
		}
		return wire{}, "connect: " + cause(err, c.ConnectTimeout), false
	}
	if c.Proxy {
		if _, err := raw.Write(proxy.Header(netip.AddrPort{}, to)); err != nil {
			raw.Close()
			return wire{}, "send: " + cause(err, c.ConnectTimeout), false
		}
	}
	if c.Protocol != spec.HTTPS {
		return wire{raw, raw}, "", false
	}
	fault := "" // in the certificate
	secure := tls.Client(raw, &tls.Config{ServerName: name, InsecureSkipVerify: true, VerifyConnection: func(s tls.ConnectionState) error {
		if !c.Validate {
			return nil
		}
		if fault = l.judge(s.PeerCertificates, bareHost(c.Host)); fault != "" {
			return errCertificate
		}
		return nil
	}})
	if err := secure.HandshakeContext(ctx); err != nil {
		raw.Close()
		if fault != "" {
			return wire{}, "certificate: " + fault, false
		}
		return wire{}, "TLS handshake: " + cause(err, c.ConnectTimeout), true
	}
	return wire{secure, raw}, "", false
}

var errCertificate = errors.New("certificate refused")

// judge says in words of our own what is wrong with a chain, leaf first: it is a stranger's.
func (l *looker) judge(chain []*x509.Certificate, host string) string {
	if len(chain) == 0 {
		return "none"
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: l.roots, Intermediates: between, DNSName: host, CurrentTime: time.Now()})
	var name x509.HostnameError
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &name):
		return "not for " + host
	case errors.As(err, &unknown):
		return "of an unknown authority"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "expired or not valid yet"
	}
	return "not valid"
}

// get sends one GET and judges the status of its answer and, where a string is wanted, the begin of its body.
func get(conn wire, c *Check, patience time.Duration, end time.Time) string {
	request, err := request(c)
	if err != nil {
		return "path: " + err.Error()
	}
	if _, err := conn.Write(request); err != nil {
		return "send: " + cause(err, patience)
	}
	limited := &io.LimitedReader{R: conn, N: maxHead}
	answer := bufio.NewReader(limited)
	for {
		r, err := http.ReadResponse(answer, nil)
		switch {
		case err != nil && limited.N <= 0:
			return fmt.Sprintf("response head over %d bytes", maxHead)
		case err != nil:
			return broken(err, patience, "closed without an answer", "malformed response")
		case r.StatusCode >= 100 && r.StatusCode < 200 && r.StatusCode != http.StatusSwitchingProtocols:
			continue // an interim answer
		case !matches(c.Matcher, r.StatusCode):
			return fmt.Sprintf("status %d, want %s", r.StatusCode, c.Matcher)
		case c.Search == "":
			return ""
		}
		limited.N = maxWire
		return search(r.Body, c.Search, conn.wait(c.BodyTimeout, c.Timeout, end))
	}
}

// search reads the begin of a body until it has found the string.
func search(body io.Reader, wanted string, patience time.Duration) string {
	var begin [maxBody]byte
	for n := 0; ; {
		more, err := body.Read(begin[n:])
		overlap := max(0, n-len(wanted)+1) // what is before has been searched
		n += more
		switch {
		case bytes.Contains(begin[overlap:n], []byte(wanted)):
			return ""
		case n == maxBody:
			return fmt.Sprintf("string not found in the first %d bytes", maxBody)
		case errors.Is(err, io.EOF):
			return "string not found in the body"
		case err != nil:
			return "body: " + broken(err, patience, "closed before its end", "malformed")
		}
	}
}

// broken is why an answer could not be read: a network error, an early end, or what it says.
func broken(err error, patience time.Duration, early, otherwise string) string {
	var network net.Error
	switch {
	case errors.As(err, &network), errors.Is(err, net.ErrClosed):
		return cause(err, patience)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return early
	}
	return otherwise
}

// request is the GET on the wire.
func request(c *Check) ([]byte, error) {
	u, err := url.ParseRequestURI(c.Path)
	if err != nil {
		return nil, err
	}
	r := &http.Request{
		Method: http.MethodGet, URL: u, Host: c.Host, Close: true,
		Header: http.Header{"User-Agent": {userAgent}, "Accept": {"*/*"}},
	}
	var b bytes.Buffer
	if err := r.Write(&b); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// serverName is the host as TLS may name it: an address is not sent.
func serverName(host string) string {
	host = bareHost(host)
	if _, err := netip.ParseAddr(host); err == nil {
		return ""
	}
	return host
}

// bareHost is a host without its port, or the brackets of an IPv6 address.
func bareHost(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return strings.Trim(host, "[]")
}

// cause is the innermost reason of a network error, for people.
func cause(err error, patience time.Duration) string {
	var network net.Error
	var errno syscall.Errno
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return fmt.Sprintf("timeout after %v", patience)
	case errors.As(err, &errno):
		return errno.Error()
	case errors.Is(err, io.EOF):
		return "closed by the far end"
	}
	return err.Error()
}

// matches says whether a status or gRPC code is among those of a matcher: codes and ranges with commas between them.
func matches(matcher string, status int) bool {
	return slices.ContainsFunc(strings.Split(matcher, ","), func(part string) bool {
		low, high, isRange := strings.Cut(part, "-")
		if !isRange {
			high = low
		}
		a, errA := strconv.Atoi(low)
		b, errB := strconv.Atoi(high)
		return errA == nil && errB == nil && a <= status && status <= b
	})
}
