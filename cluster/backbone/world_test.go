package backbone

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/control"
	"github.com/perigee-net/perigee/cluster/identity"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// world is nodes of one cluster on an in-memory internet: icn and iad with a round trip of 200 ms between them.
type world struct {
	*testing.T
	in        *memnet.Internet
	authority *identity.Authority
	hosts     map[string]*memnet.Host
	guards    map[string]*identity.Guard // of each node that was configured last
	closers   []io.Closer
	ahead     atomic.Int64 // how far the clocks by which certificates are judged go before virtual time, in ns
}

const roundTrip = 200 * time.Millisecond

var addresses = map[string]netip.AddrPort{
	"icn":      netip.MustParseAddrPort("192.0.2.1:7947"),
	"iad":      netip.MustParseAddrPort("192.0.2.2:7947"),
	"stranger": netip.MustParseAddrPort("192.0.2.3:7947"),
	"fra":      netip.MustParseAddrPort("192.0.2.4:7947"),
	"nrt":      netip.MustParseAddrPort("192.0.2.5:7947"),
}

// inWorld runs a test in virtual time.
func inWorld(t *testing.T, f func(w *world)) {
	t.Helper()
	inWorldSeeded(t, 1, f)
}

// inWorldSeeded is inWorld with another course of chance.
func inWorldSeeded(t *testing.T, seed uint64, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		authority, err := identity.NewAuthority(identity.NewClusterID(), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		w := &world{T: t, in: memnet.New(seed), authority: authority, hosts: map[string]*memnet.Host{}, guards: map[string]*identity.Guard{}}
		defer w.in.Close()
		for name, addr := range addresses {
			w.hosts[name] = w.in.Host(name, spec.Location{}, addr.Addr())
		}
		w.in.Link("icn", "iad", memnet.Path{Delay: roundTrip / 2})
		defer func() {
			for _, c := range w.closers {
				c.Close()
			}
		}()
		f(w)
	})
}

func (w *world) now() time.Time { return time.Now().Add(time.Duration(w.ahead.Load())) }

func (w *world) config(name string, authority *identity.Authority) Config {
	w.Helper()
	guard := identity.NewGuard(issue(w, authority, name, 1, w.now()), identity.Trust{Authorities: [][]byte{authority.Certificate()}}, w.now)
	w.guards[name] = guard
	conn, err := w.hosts[name].ListenPacket("udp", addresses[name].String())
	if err != nil {
		w.Fatal(err)
	}
	return Config{
		Self:       name,
		PacketConn: conn,
		ServerTLS:  func() *tls.Config { return guard.ServerTLS(ALPN) },
		ClientTLS:  func(node string) *tls.Config { return guard.ClientTLS(node, ALPN) },
		PeerName:   identity.PeerName,
		Refused:    refusals(guard),
		Log:        slog.New(slog.DiscardHandler),
	}
}

// bulkOver has flows of "blob" and "echo" carried over a control port, too.
func bulkOver(port *control.Port) Bulk {
	return Bulk{
		Listener: port.Service(control.Flow), Services: []string{"blob", "echo"},
		Dial: func(ctx context.Context, node string, at netip.AddrPort) (BulkConn, error) {
			c, err := port.Dial(ctx, at.String(), node, control.Flow)
			if err != nil {
				return nil, err
			}
			return c.(*control.Conn), nil
		},
	}
}

// refusals are those of a guard as the node tells them.
func refusals(guard *identity.Guard) func(tls.ConnectionState) error {
	return func(state tls.ConnectionState) error {
		err := guard.Refused(state)
		if errors.Is(err, identity.ErrRetired) {
			return fmt.Errorf("%w: %w", ErrOutdated, err)
		}
		return err
	}
}

// issue makes an identity whose certificate has the epoch.
func issue(t testing.TB, by *identity.Authority, name string, epoch uint64, now time.Time) *identity.Node {
	t.Helper()
	id, err := by.Node(identity.Claim{Name: name, Region: "r", POP: "p"}, epoch, identity.Keys{Cluster: identity.NewKey()}, now)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// open starts a node of the world's cluster that echoes what it is sent on the service "echo".
func (w *world) open(name string) *Backbone {
	w.Helper()
	return w.openWith(w.config(name, w.authority))
}

func (w *world) openWith(c Config) *Backbone {
	w.Helper()
	b, err := Open(c)
	if err != nil {
		w.Fatal(err)
	}
	b.Handle("echo", echo)
	return b
}

func echo(in *Incoming) {
	c := in.Accept().(duplexConn)
	defer c.Close()
	if _, err := io.Copy(c, c); err != nil {
		c.Abort()
		return
	}
	c.CloseWrite()
}

// pair opens icn and iad, and returns when the link from icn to iad is up. The caller closes both.
func (w *world) pair() (icn, iad *Backbone) {
	w.Helper()
	icn, iad = w.open("icn"), w.open("iad")
	icn.Keep(peers("iad"))
	w.until(icn, "iad", true)
	return icn, iad
}

func peers(names ...string) map[string]netip.AddrPort {
	m := map[string]netip.AddrPort{}
	for _, name := range names {
		m[name] = addresses[name]
	}
	return m
}

// until waits for a link to be up or down, and returns how long that took.
func (w *world) until(b *Backbone, node string, up bool) time.Duration {
	w.Helper()
	begun := time.Now()
	ctx, cancel := context.WithTimeout(w.Context(), time.Minute)
	defer cancel()
	for version := uint64(0); ; {
		links, v, err := b.Links().Next(ctx, version)
		if err != nil {
			w.Fatalf("the link to %s is still %+v", node, b.Links().Get()[node])
		}
		if l, ok := links[node]; ok && !l.Since.IsZero() && l.Up == up {
			return time.Since(begun)
		}
		version = v
	}
}

// streams is a pair of ends of one stream, of the given kind.
func (w *world) streams(b *Backbone, node string, far *Backbone) (near, end duplexConn) {
	w.Helper()
	accepted := make(chan net.Conn, 1)
	far.Handle("pair", func(in *Incoming) { accepted <- in.Accept() })
	c, err := b.Dial(w.Context(), node, Header{Service: "pair"})
	if err != nil {
		w.Fatal(err)
	}
	return c.(duplexConn), (<-accepted).(duplexConn)
}

func (w *world) mustDial(b *Backbone, node, service string) duplexConn {
	w.Helper()
	c, err := b.Dial(w.Context(), node, Header{Service: service})
	if err != nil {
		w.Fatal(err)
	}
	return c.(duplexConn)
}
