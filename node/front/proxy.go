package front

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/pires/go-proxyproto"
)

// proxyHeaderTimeout is how long a PROXY header may take; then the connection is closed.
const proxyHeaderTimeout = 5 * time.Second

// believes says whether the other end is a load balancer whose PROXY headers count.
func (f *Front) believes(c net.Conn) bool {
	if len(f.config.ProxyHeadersFrom) == 0 {
		return false
	}
	peer, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return false
	}
	addr := peer.AddrPort().Addr().Unmap()
	return slices.ContainsFunc(f.config.ProxyHeadersFrom, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// proxied is a connection from a load balancer; it comes from whom its PROXY header says. The header is read by the first
// who asks for an address or for bytes, not by who accepts.
type proxied struct {
	*proxyproto.Conn
	door   *door
	judge  sync.Once
	passed bool // set by judge
}

func (d *door) proxied(c net.Conn) *proxied {
	return &proxied{door: d, Conn: proxyproto.NewConn(c,
		proxyproto.WithPolicy(proxyproto.REQUIRE),
		proxyproto.SetReadHeaderTimeout(proxyHeaderTimeout),
		proxyproto.ValidateHeader(ofTCP),
	)}
}

// ofTCP refuses headers of datagrams and of Unix sockets: no such thing can have come here.
func ofTCP(h *proxyproto.Header) error {
	if h.SourceAddr == nil {
		return nil
	}
	if _, ok := h.SourceAddr.(*net.TCPAddr); !ok {
		return proxyproto.ErrUnsupportedAddressFamilyAndProtocol
	}
	return nil
}

// wait reads the header, and says whether it is one of a client that is not blocked.
func (p *proxied) wait() bool {
	p.judge.Do(func() {
		f := p.door.front
		if p.ProxyHeader() == nil {
			f.counters.proxyErrors.Add(1)
			return
		}
		f.guests.Lock()
		g := f.conns[p.Raw()]
		f.guests.Unlock()
		if g == nil {
			return // it is gone already
		}
		g.isFrom(p.RemoteAddr())
		switch {
		case !f.admit(p.Raw(), g):
		case !p.door.crowd.enter(g, f.config.ConnectionsPerClient):
			f.counters.crowded.Add(1)
			if behind := p.door.behind.Load(); behind.Flow != nil {
				p.door.turnAway(p.Raw(), p.RemoteAddr())
			}
		default:
			p.passed = true
		}
	})
	return p.passed
}

func (p *proxied) Read(b []byte) (int, error) {
	p.wait() // one that does not pass fails to be read
	return p.Conn.Read(b)
}

// CloseWrite ends one direction.
func (p *proxied) CloseWrite() error { return closeWrite(p.Raw()) }

// SetLinger lets the connection be reset.
func (p *proxied) SetLinger(seconds int) error {
	if l, ok := p.Raw().(interface{ SetLinger(int) error }); ok {
		return l.SetLinger(seconds)
	}
	return nil
}
