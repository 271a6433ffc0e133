// Package wire asks origins and targets by HTTP/1.1, on the goroutine that asks: a request is written and its response read where
// RoundTrip is called, and the body where it is read. A connection has no goroutine, so nothing is handed over, and nothing is
// read that is not there yet.
//
// It takes requests without a body by plain HTTP (Speaks). All others (bodies that are sent while a response may come, upgrades,
// TLS) are another round tripper's, net/http's Transport, with connections of its own. A GET or HEAD may also be asked as bytes, and its
// response be had as bytes (Asking), as long as both are plain.
//
// When things break: whatever is wrong with a response (http1.Fault, a body that ends early, silence, a head that is too long) is an
// error of RoundTrip or of the body's Read, and ends the connection. A kept connection is looked at before it is used: bytes that
// came unasked, or its end, make it unusable, so that no response is ever taken for another request's. If it ends just then, without
// a byte of a response, a request that does no harm when it is carried out twice is sent once more, on a new connection.
package wire

import (
	"context"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/edge/http1"
)

// Config is how a Client asks.
type Config struct {
	// Dial opens a connection to "host:port". What it returns is kept for later requests only if it can be looked at without
	// waiting: it is a syscall.Conn of a socket, or has Pending() bool, which says whether a Read would return at once; or it
	// has NetConn() net.Conn, and that is such a one.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Rest takes the requests that are not spoken here.
	Rest http.RoundTripper
	// HeadTimeout is how long the head of a response may take, interim ones before it included; 0: for ever.
	HeadTimeout time.Duration
	// Patience is how long a body may pause while it is read, or up to bodyLate longer; 0: for ever.
	Patience time.Duration
	// MaxHead is how many bytes the head of a response may have, interim ones before it included.
	MaxHead int
	// MaxIdle is how many connections are kept to one address; one more is closed after its request.
	MaxIdle int
	// IdleTimeout is how long a connection is kept.
	IdleTimeout time.Duration
	// Faults counts responses that were refused: malformed, too long, or of a protocol that nobody asked for.
	Faults *atomic.Uint64
}

// Client is an http.RoundTripper. Its methods may be called at any time.
type Client struct {
	Config
	pool pool
}

// New makes a client.
func New(c Config) *Client {
	return &Client{Config: c, pool: pool{max: c.MaxIdle, life: c.IdleTimeout}}
}

// CloseIdleConnections closes what is kept; what is in use is not kept any more, until there is another request.
func (c *Client) CloseIdleConnections() {
	c.pool.close()
	if rest, ok := c.Rest.(interface{ CloseIdleConnections() }); ok {
		rest.CloseIdleConnections()
	}
}

// RoundTrip implements http.RoundTripper, as Send does, of which nobody is told.
func (c *Client) RoundTrip(q *http.Request) (*http.Response, error) {
	if Speaks(q) {
		return c.Send(q.Context(), q, nil)
	}
	return c.Rest.RoundTrip(q)
}

// Speaks says whether a request is spoken here: HTTP to an authority of ASCII, without a body, an upgrade, or anything that says how
// a body is sent.
func Speaks(q *http.Request) bool {
	if q.URL == nil || q.URL.Scheme != "http" || q.URL.User != nil || q.URL.Opaque != "" {
		return false
	}
	if q.Body != nil && q.Body != http.NoBody || q.ContentLength != 0 || len(q.TransferEncoding) > 0 || len(q.Trailer) > 0 {
		return false
	}
	for _, name := range [...]string{"Connection", "Upgrade", "Expect", "Transfer-Encoding", "Content-Length", "Trailer"} {
		if _, has := q.Header[name]; has {
			return false
		}
	}
	return q.Method != http.MethodConnect && http1.IsToken(method(q)) && http1.IsHost(authority(q)) && http1.IsHost(q.URL.Host)
}

func method(q *http.Request) string {
	if q.Method == "" {
		return http.MethodGet
	}
	return q.Method
}

func authority(q *http.Request) string {
	if q.Host == "" {
		return q.URL.Host
	}
	return q.Host
}

// Address is where requests for a URL go: its authority, with a port.
func Address(u *url.URL) string {
	if u.Port() != "" {
		return u.Host
	}
	return net.JoinHostPort(u.Hostname(), "80")
}

// repeatable says whether a request that was carried out may be sent again (RFC 9110, 9.2.2), or says so itself, as for net/http.
func repeatable(q *http.Request) bool {
	switch method(q) {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return true
	}
	_, has := q.Header["Idempotency-Key"]
	return has
}
