package accelerator

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/perigee-net/perigee/cluster/backbone"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// quicTargets is how many servers of QUIC there are behind the listener: a client that is not led to its own comes to another, as targets take turns.
const quicTargets = 5

// quicWorld is servers of QUIC behind an accelerator, each of which says who it is, and a client with two addresses.
type quicWorld struct {
	*testing.T
	plane  *Plane
	client *memnet.Host
	tls    *tls.Config
}

var quicClient = [2]netip.Addr{netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("198.51.100.9")}

// inQUICWorld runs a test in one. Generator, if it is not nil, makes the IDs of a server.
func inQUICWorld(t *testing.T, change func(*spec.Spec), generator func(server int) quic.ConnectionIDGenerator, test func(w *quicWorld)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		in := memnet.New(1)
		defer in.Close()
		edge := in.Host("edge", spec.Location{}, local.Addr(), netip.MustParseAddr("127.0.0.1"))
		client := in.Host("client", spec.Location{}, quicClient[0], quicClient[1])
		in.Link("client", "edge", memnet.Path{Delay: 10 * time.Millisecond})
		server, ca := quicTLS(t)
		n := only(testEndpoint{"a", 128, false})
		n.protocol, n.idle, n.groups[0].nodes = spec.UDP, 30*time.Second, []string{"self"}
		s, v, _ := n.build()
		s.TargetGroups["a"].Targets = nil
		var wait sync.WaitGroup
		defer wait.Wait()
		for i := range quicTargets {
			at := netip.MustParseAddr(fmt.Sprintf("10.0.0.%d", 1+i))
			conn, err := in.Host(fmt.Sprint("target", i), spec.Location{}, at).ListenPacket("udp", netip.AddrPortFrom(at, 443).String())
			if err != nil {
				t.Fatal(err)
			}
			tr := &quic.Transport{Conn: conn, ConnectionIDLength: 8}
			if generator != nil {
				tr.ConnectionIDLength, tr.ConnectionIDGenerator = 0, generator(i)
			}
			l, err := tr.Listen(server, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			defer tr.Close()
			wait.Go(func() { says(l, fmt.Sprint("target ", i), &wait) })
			s.TargetGroups["a"].Targets = append(s.TargetGroups["a"].Targets, spec.Target{Address: at, Port: 443})
		}
		if change != nil {
			change(s)
		}
		p, _, end := onNodes(t, edge, nil, s, v, nil)
		defer end()
		roots := x509.NewCertPool()
		roots.AddCert(ca)
		test(&quicWorld{T: t, plane: p, client: client, tls: &tls.Config{RootCAs: roots, ServerName: "target.test", NextProtos: []string{"says"}}})
	})
}

// quicTLS is a server's configuration, and the certificate that its clients trust.
func quicTLS(t *testing.T) (*tls.Config, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"target.test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, NextProtos: []string{"says"}}, cert
}

// says answers each stream by the server's name.
func says(l *quic.Listener, name string, wait *sync.WaitGroup) {
	for {
		c, err := l.Accept(context.Background())
		if err != nil {
			return
		}
		wait.Go(func() {
			for {
				s, err := c.AcceptStream(context.Background())
				if err != nil {
					return
				}
				io.WriteString(s, name)
				s.Close()
			}
		})
	}
}

// socket is one of the client, at one of its addresses.
func (w *quicWorld) socket(address int) net.PacketConn {
	w.Helper()
	conn, err := w.client.ListenPacket("udp", netip.AddrPortFrom(quicClient[address], 0).String())
	if err != nil {
		w.Fatal(err)
	}
	return conn
}

// natted is a client's socket behind what gives it another address whenever it likes.
type natted struct {
	mu  sync.Mutex
	now net.PacketConn
	all []net.PacketConn
	in  chan quicPacket
	wg  sync.WaitGroup

	woken chan struct{}
	net.PacketConn
}

type quicPacket struct {
	data []byte
	from net.Addr
}

func (c *natted) moves(to net.PacketConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.now != nil {
		c.now.Close()
	}
	c.now = to
	c.all = append(c.all, to)
	c.wg.Go(func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := to.ReadFrom(buf)
			if err != nil {
				return
			}
			select {
			case c.in <- quicPacket{append([]byte(nil), buf[:n]...), from}:
			default:
			}
		}
	})
}

func (c *natted) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case p := <-c.in:
		return copy(b, p.data), p.from, nil
	case <-c.woken:
		return 0, nil, os.ErrDeadlineExceeded
	}
}

func (c *natted) WriteTo(b []byte, to net.Addr) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now.WriteTo(b, to)
}

func (c *natted) LocalAddr() net.Addr { return &net.UDPAddr{IP: net.IPv4zero, Port: 9} }

// SetReadDeadline is called by a transport that ends.
func (c *natted) SetReadDeadline(at time.Time) error {
	if !at.IsZero() {
		close(c.woken)
	}
	return nil
}

func (c *natted) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now.Close()
	return nil
}

// end closes all, after the transport has.
func (c *natted) end() {
	c.Close()
	c.wg.Wait()
}

// dials has a client connect by a socket.
func (w *quicWorld) dials(tr *quic.Transport) *quic.Conn {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), 5*time.Second)
	defer cancel()
	c, err := tr.Dial(ctx, net.UDPAddrFromAddrPort(local), w.tls, &quic.Config{MaxIdleTimeout: 20 * time.Second})
	if err != nil {
		w.Fatal(err)
	}
	return c
}

// asks is who answers on a connection.
func (w *quicWorld) asks(c *quic.Conn) (string, error) {
	ctx, cancel := context.WithTimeout(w.Context(), 5*time.Second)
	defer cancel()
	s, err := c.OpenStreamSync(ctx)
	if err != nil {
		return "", err
	}
	s.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := s.Write([]byte("who?")); err != nil {
		return "", err
	}
	s.Close()
	b, err := io.ReadAll(s)
	return string(b), err
}

// A client that a NAT forgets goes on with its connection, any number of times and at any time: also after it has taken IDs that its server has given out later,
// as quic-go does when the handshake is over.
func TestAConnectionOfQUICOutlivesItsNAT(t *testing.T) {
	for _, c := range []struct {
		name string
		to   int
	}{{"another port", 0}, {"another address", 1}} {
		t.Run(c.name, func(t *testing.T) {
			inQUICWorld(t, nil, nil, func(w *quicWorld) {
				nat := &natted{in: make(chan quicPacket, 1024), woken: make(chan struct{})}
				nat.moves(w.socket(0))
				tr := &quic.Transport{Conn: nat}
				conn := w.dials(tr)
				first, err := w.asks(conn)
				if err != nil {
					t.Fatal(err)
				}
				for i := range 4 {
					time.Sleep(2 * time.Second)
					for range 3 {
						w.asks(conn)
					}
					nat.moves(w.socket(c.to * ((i + 1) % 2)))
					if who, err := w.asks(conn); who != first || err != nil {
						t.Fatalf("move %d: %q answers, not %q: %v", i, who, first, err)
					}
				}
				if n := w.plane.Counters()["accelerator_datagram_flows_moved_total"]; n != 4 {
					t.Errorf("%d have moved", n)
				}
				conn.CloseWithError(0, "")
				tr.Close()
				nat.end()
			})
		})
	}
}

// A client that goes to another port on purpose, as one that is about to change its socket, uses an ID that nobody has seen: it is known by its address.
func TestAConnectionOfQUICMayChangeItsSocket(t *testing.T) {
	inQUICWorld(t, nil, nil, func(w *quicWorld) {
		tr := &quic.Transport{Conn: w.socket(0)}
		conn := w.dials(tr)
		first, err := w.asks(conn)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			time.Sleep(time.Second)
			next := &quic.Transport{Conn: w.socket(0)}
			if err := w.migrates(conn, next); err != nil {
				t.Fatalf("move %d: %v", i, err)
			}
			if who, err := w.asks(conn); who != first || err != nil {
				t.Fatalf("move %d: %q answers, not %q: %v", i, who, first, err)
			}
			defer closes(next)
		}
		conn.CloseWithError(0, "")
		closes(tr)
	})
}

func closes(tr *quic.Transport) {
	tr.Close()
	tr.Conn.Close()
}

// migrates has a connection probe another socket and go over to it.
func (w *quicWorld) migrates(c *quic.Conn, to *quic.Transport) error {
	path, err := c.AddPath(to)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(w.Context(), 3*time.Second, errors.New("the path is not validated"))
	defer cancel()
	if err := path.Probe(ctx); err != nil {
		return err
	}
	return path.Switch()
}

// routable makes IDs that say which server they are of, as draft-ietf-quic-load-balancers has it (4.1, plaintext).
type routable byte

func (s routable) GenerateConnectionID() (quic.ConnectionID, error) {
	id := make([]byte, s.ConnectionIDLen())
	rand.Read(id)
	id[0] &= 0x1f // of the first configuration
	copy(id[1:], []byte{0, 0, 0, 0, 0, 0, 0xab, byte(s)})
	return quic.ConnectionIDFromBytes(id), nil
}

func (routable) ConnectionIDLen() int { return 1 + 8 + 6 }

// A client that goes to another network on purpose is led to its server by the ID that it takes for it, if that says whose it is; at a POP, too, that has not
// seen its connection before.
func TestAConnectionOfQUICMayChangeItsNetwork(t *testing.T) {
	inQUICWorld(t, func(s *spec.Spec) {
		for i := range s.TargetGroups["a"].Targets {
			s.TargetGroups["a"].Targets[i].QUICServerID = fmt.Sprintf("0x000000000000ab%02x", i)
		}
	}, func(server int) quic.ConnectionIDGenerator { return routable(server) }, func(w *quicWorld) {
		tr := &quic.Transport{Conn: w.socket(0)}
		conn := w.dials(tr)
		first, err := w.asks(conn)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			time.Sleep(time.Second)
			for _, f := range w.plane.datagramFlows(func(*datagramFlow) bool { return i == 2 }) {
				w.plane.endFlow(f, closed) // as if it had come to another POP
			}
			next := &quic.Transport{Conn: w.socket((i + 1) % 2)}
			if err := w.migrates(conn, next); err != nil {
				t.Fatalf("move %d: %v", i, err)
			}
			if who, err := w.asks(conn); who != first || err != nil {
				t.Fatalf("move %d: %q answers, not %q: %v", i, who, first, err)
			}
			defer closes(next)
		}
		if n := w.plane.Counters()["accelerator_datagram_flows_named_total"]; n < 3 {
			t.Errorf("%d were led by their ID", n)
		}
		conn.CloseWithError(0, "")
		closes(tr)
	})
}

// What servers call themselves leads to their endpoint, whatever its weight and its region's dial, and from there to others; what names nobody leads where it is drawn.
func TestTheIDOfAServerLeadsToItsEndpoint(t *testing.T) {
	n := threeRegions()
	id := "\x00\x00\x00\x00\x00\x00\xab\x01"
	onUDPBench(t, n, func(b *udpBench) {
		b.send(b.dial(), "\x41\x00"+id+"nonce and more") // nobody is called that yet
		n.protocol, n.idle = spec.UDP, 30*time.Second
		s, _, _ := n.build()
		l := &s.Accelerators["game"].Listeners[0]
		far := &l.EndpointGroups[len(l.EndpointGroups)-1]
		far.TrafficDial, far.Endpoints[0].Weight = new(0.0), new(0)
		target := &s.TargetGroups[far.Endpoints[0].TargetGroup].Targets[0]
		target.QUICServerID = "0x000000000000ab01"
		if err := b.plane.Apply(s); err != nil {
			b.Fatal(err)
		}
		for _, p := range []string{"\x41\x00" + id + "nonce and more", "\x41\xe0" + id + "of no configuration", "\x01\x00" + id + "no QUIC", "\x41\x00" + id[:7]} {
			b.send(b.dial(), p)
		}
		all := b.fars(5)
		want := "30@" + target.AddrPort().String() + "/targetGroup/" + far.Endpoints[0].TargetGroup
		for i, f := range all {
			if led := f.header.Resource == want; led != (i == 1) {
				b.Errorf("%d: went to %s by %s", i, f.header.Resource, f.node)
			}
		}
		all[1].to.End(&backbone.RefusedError{Reason: "no"})
		b.settle()
		b.counted(map[string]uint64{"datagram_flows_named_total": 2, "datagrams_dropped_total": 0})
		// A listener that led to nobody of that name leads there when it is applied, and the table of names is of the newest spec.
		if got := b.plane.table.Load().server(l, serverID([]byte(id))); got == nil || got.target != target.AddrPort() || *far.Endpoints[0].Weight != 0 {
			b.Errorf("found %+v", got)
		}
	})
}

// A flow that was led by its server's ID, and from there led away, is to have that target no more.
func TestWhatIsLedAwayFromAServerIsNotLedThereByOthers(t *testing.T) {
	n := terminating()
	onUDPBench(t, n, func(b *udpBench) {
		n.protocol, n.idle = spec.UDP, 5*time.Minute
		build := func() (*spec.Spec, *view.View) {
			s, v, _ := n.build()
			s.TargetGroups[s.Accelerators["game"].Listeners[0].EndpointGroups[0].Endpoints[0].TargetGroup].Targets[0].QUICServerID = "0x000000000000ab01"
			return s, v
		}
		s, v := build()
		if err := b.plane.Apply(s); err != nil {
			b.Fatal(err)
		}
		var now atomic.Pointer[view.View]
		now.Store(v)
		b.plane.config.View = now.Load
		c := b.dial()
		p := "\x41\x00\x00\x00\x00\x00\x00\x00\xab\x01nonce and more"
		b.send(c, p)
		if f := b.fars(1)[0]; !strings.Contains(f.header.Resource, "@") {
			b.Errorf("it went to %s", f.header.Resource)
		}
		n.groups[0].endpoints[0].sick = true
		_, v = build()
		now.Store(v)
		b.plane.Review()
		b.send(c, p)
		if f := b.fars(2)[1]; strings.Contains(f.header.Resource, "@") || f.node != "nrt1" {
			b.Errorf("then it went to %s by %s", f.header.Resource, f.node)
		}
	})
}
