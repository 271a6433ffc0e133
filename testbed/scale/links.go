package scale

import (
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"sync"
	"time"

	"github.com/perigee-net/perigee/cluster/backbone"
	"github.com/perigee-net/perigee/cluster/identity"
)

// maxLinked is up to how many nodes all have links with all: the process holds both ends of each, of about 80 KiB.
const maxLinked = 100

const linksPort = 7443

// links has all nodes hold a link of the backbone to each other, which is what they do, and watches what that costs at rest. Certificates
// and all else of it are real.
func (s *story) links() error {
	const (
		up     = "links of the backbone, each with each: all are up"
		sends  = "… at rest a node sends"
		sent   = "… packets"
		work   = "… CPU of a node, network included"
		memory = "… memory of a node"
	)
	nodes := s.live()
	if len(nodes) > maxLinked {
		for _, f := range []Figure{one(up, seconds, 0), one(sends, bytesPerSecond, 0), one(sent, perSecond, 0), one(work, percent, 0), one(memory, kilobytes, 0)} {
			f.Usual, f.Worst = math.NaN(), math.NaN()
			s.note(f)
		}
		return nil
	}
	alone, had := s.restFor(10*time.Second), remembered()
	authority, err := identity.NewAuthority(identity.NewClusterID(), time.Now())
	if err != nil {
		return err
	}
	linked := map[*node]*backbone.Backbone{}
	closeAll := sync.OnceFunc(func() {
		var all sync.WaitGroup
		for _, b := range linked {
			all.Go(func() { b.Close() })
		}
		all.Wait()
	})
	defer closeAll()
	at := map[string]netip.AddrPort{}
	for _, n := range nodes {
		at[n.name] = netip.AddrPortFrom(n.host.Addr(), linksPort)
		if linked[n], err = n.openBackbone(authority); err != nil {
			return err
		}
	}
	for n, b := range linked {
		others := map[string]netip.AddrPort{}
		for name, addr := range at {
			if name != n.name {
				others[name] = addr
			}
		}
		b.Keep(others)
	}
	took, err := s.until("all links are up", nodes, func(n *node) bool {
		standing := 0
		for _, l := range linked[n].Links().Get() {
			if l.Up {
				standing++
			}
		}
		return standing == len(nodes)-1
	})
	if err != nil {
		return err
	}
	time.Sleep(10 * time.Second)
	spent, has := s.restFor(s.Rest), remembered()
	each := func(v uint64) float64 { return float64(v) / float64(s.Nodes) / s.Rest.Seconds() }
	cpu := spent.cpu.Seconds()/spent.took.Seconds() - alone.cpu.Seconds()/alone.took.Seconds()
	s.note(one(up, seconds, took.worst().Seconds()))
	s.note(one(sends, bytesPerSecond, each(spent.each[byLinks].sent)))
	s.note(one(sent, perSecond, each(spent.each[byLinks].packets)))
	s.note(one(work, percent, 100*cpu/float64(s.Nodes)))
	s.note(one(memory, kilobytes, (has.rest+has.stacks-had.rest-had.stacks)/float64(s.Nodes)/1e3))
	closeAll()
	return nil
}

// restFor is what is spent in a while in which nothing happens.
func (s *story) restFor(d time.Duration) spent {
	before := s.moment()
	time.Sleep(d)
	return s.since(before)
}

func (n *node) openBackbone(authority *identity.Authority) (*backbone.Backbone, error) {
	id, err := authority.Node(identity.Claim{Name: n.name, Region: n.region, POP: n.region}, 1, identity.Keys{Cluster: identity.NewKey()}, time.Now())
	if err != nil {
		return nil, err
	}
	guard := identity.NewGuard(id, identity.Trust{Authorities: [][]byte{authority.Certificate()}}, time.Now)
	conn, err := n.traffic[byLinks].listenPacket(n.host.ListenPacket)("udp", netip.AddrPortFrom(n.host.Addr(), linksPort).String())
	if err != nil {
		return nil, err
	}
	return backbone.Open(backbone.Config{
		Self: n.name, PacketConn: conn, PeerName: identity.PeerName,
		ServerTLS: func() *tls.Config { return guard.ServerTLS(backbone.ALPN) },
		ClientTLS: func(node string) *tls.Config { return guard.ClientTLS(node, backbone.ALPN) },
		Refused: func(state tls.ConnectionState) error {
			err := guard.Refused(state)
			if errors.Is(err, identity.ErrRetired) {
				return fmt.Errorf("%w: %w", backbone.ErrOutdated, err)
			}
			return err
		},
	})
}
