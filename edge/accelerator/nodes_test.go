package accelerator

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/perigee-net/perigee/cluster/backbone"
	"github.com/perigee-net/perigee/cluster/identity"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/origin"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// onNodes has the node self take flows of clients, and carry them to the targets of a spec: itself, or, if there is a host far, by the node icn1 there. It returns the plane
// behind its first listener, that of the targets, and what ends all.
func onNodes(t *testing.T, edge, far *memnet.Host, s *spec.Spec, v *view.View, change func(*Config, *origin.Config)) (p *Plane, o *origin.Plane, end func()) {
	t.Helper()
	looks := func() *view.View { return v }
	at := edge
	if far != nil {
		at = far
	}
	here, there := Config{View: looks}, origin.Config{Region: "icn", View: looks, Dial: at.Dial}
	if change != nil {
		change(&here, &there)
	}
	o = origin.New(there)
	if err := o.Apply(s); err != nil {
		t.Fatal(err)
	}
	authority, err := identity.NewAuthority(identity.NewClusterID(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	open := func(name string, h *memnet.Host) (b *backbone.Backbone, at netip.AddrPort) {
		id, err := authority.Node(identity.Claim{Name: name, Region: "r", POP: "p"}, 1, identity.Keys{Cluster: identity.NewKey()}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		guard := identity.NewGuard(id, identity.Trust{Authorities: [][]byte{authority.Certificate()}}, time.Now)
		at = netip.AddrPortFrom(h.Addr(), 7947)
		packets, err := h.ListenPacket("udp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		b, err = backbone.Open(backbone.Config{
			Self: name, PacketConn: packets, PeerName: identity.PeerName,
			ServerTLS: func() *tls.Config { return guard.ServerTLS(backbone.ALPN) },
			ClientTLS: func(node string) *tls.Config { return guard.ClientTLS(node, backbone.ALPN) },
		})
		if err != nil {
			t.Fatal(err)
		}
		return b, at
	}
	self, selfAt := open("self", edge)
	ends := []func() error{self.Close}
	carries := self
	if far != nil {
		icn1, icnAt := open("icn1", far)
		ends = append(ends, icn1.Close)
		carries = icn1
		peers := map[string]netip.AddrPort{"self": selfAt, "icn1": icnAt}
		icn1.Keep(peers)
		self.Keep(peers)
		self.Links().Next(t.Context(), 0)
		icn1.Links().Next(t.Context(), 0)
		time.Sleep(time.Second)
	} else {
		here.Take = func(ctx context.Context, resource string, client netip.AddrPort) (net.Conn, error) {
			taken, err := o.TakeFlow(ctx, resource, client)
			if err != nil {
				return nil, err
			}
			return taken, nil
		}
	}
	carries.HandleDatagrams("udp", o.ServeDatagrams)
	carries.Handle("flow", func(in *backbone.Incoming) { o.StartFlow(in, in.Outlast()) })
	here.Dial, here.DialLasting = self.Dial, self.DialLasting
	here.Open = func(name string, h backbone.Header, large bool, to backbone.Receiver) (Datagrams, error) {
		return self.OpenDatagrams(name, h, large, to)
	}
	p = New(here)
	if err := p.Apply(s); err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	var door io.Closer
	if one := p.Listeners()[0]; one.Protocol == spec.UDP {
		conn, err := edge.ListenPacket("udp", local.String())
		if err != nil {
			t.Fatal(err)
		}
		door = conn
		wait.Go(func() { p.ServePackets(one, conn) })
	} else {
		l, err := edge.Listen("tcp", local.String())
		if err != nil {
			t.Fatal(err)
		}
		door = l
		wait.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				wait.Add(1)
				go p.ConnHandler(one)(c, wait.Done)
			}
		})
	}
	return p, o, func() {
		door.Close()
		wait.Wait()
		o.CloseDatagrams()
		for _, end := range ends {
			end()
		}
	}
}
