package gossip

import (
	"context"
	"net"
	"sync"
)

// gate stops what goes through it, as SIGSTOP stops a process: it reads nothing and sends nothing, and what others sent waits for
// it. Its timers run on, which is worse than a stop: a probe under way fails.
type gate struct {
	mu   sync.Mutex
	open chan struct{} // closed: it is
}

func newGate() *gate {
	g := &gate{open: make(chan struct{})}
	close(g.open)
	return g
}

func (g *gate) stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = make(chan struct{})
}

func (g *gate) goOn() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.open)
}

func (g *gate) pass() {
	g.mu.Lock()
	open := g.open
	g.mu.Unlock()
	<-open
}

// on has all that a node sends and receives go through the gate.
func (g *gate) on(c Config) Config {
	listen, listenPacket, dial := c.Listen, c.ListenPacket, c.Dial
	c.Listen = func(network, address string) (net.Listener, error) {
		l, err := listen(network, address)
		return gatedListener{l, g}, err
	}
	c.ListenPacket = func(network, address string) (net.PacketConn, error) {
		p, err := listenPacket(network, address)
		return gatedPackets{p, g}, err
	}
	c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		g.pass()
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return gatedConn{conn, g}, nil
	}
	return c
}

type gatedListener struct {
	net.Listener
	g *gate
}

func (l gatedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	l.g.pass()
	if err != nil {
		return nil, err
	}
	return gatedConn{conn, l.g}, nil
}

type gatedPackets struct {
	net.PacketConn
	g *gate
}

func (p gatedPackets) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := p.PacketConn.ReadFrom(b)
	p.g.pass()
	return n, from, err
}

func (p gatedPackets) WriteTo(b []byte, to net.Addr) (int, error) {
	p.g.pass()
	return p.PacketConn.WriteTo(b, to)
}

type gatedConn struct {
	net.Conn
	g *gate
}

func (c gatedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.g.pass()
	return n, err
}

func (c gatedConn) Write(b []byte) (int, error) {
	c.g.pass()
	return c.Conn.Write(b)
}
