package probe

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/spec"
)

// maxHeader is how many bytes of an answer are read, all heads of it together: it must be decided by then (Route 53). The
// body is not looked at.
const maxHeader = 16384

const userAgent = "Perigee-HealthChecker"

type dialer = func(ctx context.Context, network, address string) (net.Conn, error)

// run probes once. When ctx ends it returns soon, and what it returns means nothing.
func run(ctx context.Context, dial dialer, c Check) health.Result {
	if reason := attempt(ctx, dial, c); reason != "" {
		return health.Result{Reason: reason}
	}
	return health.Result{Passed: true}
}

// attempt says why the probe failed; empty if it passed.
func attempt(ctx context.Context, dial dialer, c Check) string {
	start := time.Now()
	connecting, cancel := context.WithTimeout(ctx, c.ConnectTimeout)
	defer cancel()
	raw, err := dial(connecting, "tcp", c.Address.String())
	if err != nil {
		return "connect: " + cause(err, c.ConnectTimeout)
	}
	defer raw.Close()
	if c.Protocol == spec.TCP {
		return ""
	}
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	conn := raw
	if c.Protocol == spec.HTTPS {
		secure := tls.Client(raw, &tls.Config{ServerName: serverName(c.Host), InsecureSkipVerify: true})
		if err := secure.HandshakeContext(connecting); err != nil {
			return "TLS handshake: " + cause(err, c.ConnectTimeout)
		}
		conn = secure
	}

	left, patience := c.Timeout-time.Since(start), c.Timeout
	if c.AnswerTimeout < left {
		left, patience = c.AnswerTimeout, c.AnswerTimeout
	}
	conn.SetDeadline(time.Now().Add(left))
	if ctx.Err() != nil {
		return ctx.Err().Error() // the deadline above took the place of the one that ends the probe at once
	}
	return ask(conn, c, patience)
}

// ask sends one GET and judges the status of its answer.
func ask(conn net.Conn, c Check, patience time.Duration) string {
	request, err := get(c)
	if err != nil {
		return "path: " + err.Error()
	}
	if _, err := conn.Write(request); err != nil {
		return "send: " + cause(err, patience)
	}
	limited := &io.LimitedReader{R: conn, N: maxHeader}
	answer := bufio.NewReader(limited)
	for {
		r, err := http.ReadResponse(answer, nil)
		var network net.Error
		switch {
		case err == nil && r.StatusCode >= 100 && r.StatusCode < 200 && r.StatusCode != http.StatusSwitchingProtocols:
			continue // an interim answer
		case err == nil && matches(c.Matcher, r.StatusCode):
			return ""
		case err == nil:
			return fmt.Sprintf("status %d, want %s", r.StatusCode, c.Matcher)
		case limited.N <= 0:
			return fmt.Sprintf("response head over %d bytes", maxHeader)
		case errors.As(err, &network):
			return cause(err, patience)
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return "closed without an answer"
		}
		return "malformed response"
	}
}

// get is the request on the wire.
func get(c Check) ([]byte, error) {
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
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return ""
	}
	return host
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

// matches says whether a status is among those of a matcher: codes and ranges with commas between them.
func matches(matcher string, status int) bool {
	for part := range strings.SplitSeq(matcher, ",") {
		low, high, isRange := strings.Cut(part, "-")
		if !isRange {
			high = low
		}
		a, errA := strconv.Atoi(low)
		b, errB := strconv.Atoi(high)
		if errA == nil && errB == nil && a <= status && status <= b {
			return true
		}
	}
	return false
}
