package accelerator

import (
	"bytes"
	"crypto/tls"
	"fmt"
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
)

// Real sockets: a client, a node, and a target, on one machine. What the kernel puts together and takes apart on the way is all there, and the
// answers leave from the address that was asked, of a socket of one address and of all.
func TestDatagramsThroughRealSockets(t *testing.T) {
	for _, c := range []struct{ listen, ask string }{{"127.0.0.1:0", "127.0.0.1"}, {":0", "127.0.0.2"}, {"[::1]:0", "::1"}} {
		t.Run(c.listen, func(t *testing.T) {
			target, err := net.ListenPacket("udp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var all sync.WaitGroup
			all.Go(func() { // echoes
				buf := make([]byte, 65536)
				for {
					n, from, err := target.ReadFrom(buf)
					if err != nil {
						return
					}
					target.WriteTo(buf[:n], from)
				}
			})
			n := only(testEndpoint{"a", 128, false})
			n.protocol, n.idle, n.groups[0].nodes = spec.UDP, 30*time.Second, []string{"self"}
			s, v, _ := n.build()
			at := target.LocalAddr().(*net.UDPAddr).AddrPort()
			s.TargetGroups["a"].Targets = []spec.Target{{Address: at.Addr(), Port: at.Port()}}
			looks := func() *view.View { return v }
			o := origin.New(origin.Config{Region: "icn", View: looks})
			if err := o.Apply(s); err != nil {
				t.Fatal(err)
			}
			node := alone(t)
			node.HandleDatagrams("udp", o.ServeDatagrams)
			p := New(Config{View: looks, Open: func(name string, h backbone.Header, large bool, to backbone.Receiver) (Datagrams, error) {
				return node.OpenDatagrams(name, h, large, to)
			}})
			if err := p.Apply(s); err != nil {
				t.Fatal(err)
			}
			door, err := net.ListenPacket("udp", c.listen)
			if err != nil {
				t.Fatal(err)
			}
			all.Go(func() { p.ServePackets(p.Listeners()[0], door) })

			client, err := net.Dial("udp", net.JoinHostPort(c.ask, fmt.Sprint(door.LocalAddr().(*net.UDPAddr).Port)))
			if err != nil {
				t.Fatal(err)
			}
			client.SetDeadline(time.Now().Add(20 * time.Second))
			buf := make([]byte, 65536)
			for round := range 20 {
				var sent [][]byte
				for i := range 8 {
					size := []int{64, 64, 64, 64, 1200, 1200, 0, 9000}[i]
					sent = append(sent, bytes.Repeat([]byte{byte('a' + i + round)}, size))
				}
				for _, one := range sent {
					if _, err := client.Write(one); err != nil {
						t.Fatal(err)
					}
				}
				for i, want := range sent { // a flow's are in order here
					n, err := client.Read(buf)
					if err != nil {
						t.Fatalf("round %d: %d of %d came back: %v", round, i, len(sent), err)
					}
					if !bytes.Equal(buf[:n], want) {
						t.Fatalf("round %d: %d bytes came back in the place of %d", round, n, len(want))
					}
				}
			}
			client.Close()
			door.Close()
			target.Close()
			o.CloseDatagrams()
			all.Wait()
			for name, count := range p.Counters() {
				if (name == "accelerator_datagrams_dropped_total" || name == "accelerator_datagrams_unsent_total") && count > 0 {
					t.Errorf("%s is %d", name, count)
				}
			}
		})
	}
}

// alone is the backbone of a node without peers, named self.
func alone(t *testing.T) *backbone.Backbone {
	t.Helper()
	authority, err := identity.NewAuthority(identity.NewClusterID(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	id, err := authority.Node(identity.Claim{Name: "self", Region: "r", POP: "p"}, 1, identity.Keys{Cluster: identity.NewKey()}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	guard := identity.NewGuard(id, identity.Trust{Authorities: [][]byte{authority.Certificate()}}, time.Now)
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	b, err := backbone.Open(backbone.Config{
		Self: "self", PacketConn: conn, PeerName: identity.PeerName,
		ServerTLS: func() *tls.Config { return guard.ServerTLS(backbone.ALPN) },
		ClientTLS: func(node string) *tls.Config { return guard.ClientTLS(node, backbone.ALPN) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}
