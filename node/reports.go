package node

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/perigee-net/perigee/cluster/control"
	"github.com/perigee-net/perigee/cluster/report"
	"github.com/perigee-net/perigee/cluster/view"
)

// Keys of what a node says of itself, besides its verdicts and the orders that it was given.
const (
	runningKey    = "running" // the revision, and the newest that was tried
	refusedKey    = "refused"
	doorsKey      = "doors"      // which stay closed, and why
	leavingKey    = "leaving"    // it ends: nothing new is sent there while there is anybody else
	fencedKey     = "fenced"     // it has missed orders
	publicKey     = "public"     // its addresses, where they do not fit its description in gossip
	coordinateKey = "coordinate" // in the network
	answersKey    = "answers"    // what it answers to a sample of questions, in short
	measuredKey   = "measured"   // its round trips to others
	clientsKey    = "clients/"   // and the shard: how far clients are
	copyKey       = "zone/"      // and the zone's ID: what it has of a secondary zone
	verdictKey    = "h/"         // and the health key
	orderKey      = "order/"     // and the order's ID: for those who could not be told directly
)

// peersAt is where the live nodes' control ports are.
type peersAt struct {
	now atomic.Pointer[map[string]netip.AddrPort]
}

func (p *peersAt) set(members []view.Member) {
	at := make(map[string]netip.AddrPort, len(members))
	for _, m := range members {
		at[m.Name] = m.Control
	}
	p.now.Store(&at)
}

func (p *peersAt) get(node string) (at netip.AddrPort, ok bool) {
	if all := p.now.Load(); all != nil {
		at, ok = (*all)[node]
	}
	return at, ok
}

// openReports opens the streams by which nodes say what they have to say.
func (n *Node) openReports() error {
	var err error
	n.reports, err = report.Open(report.Config{
		Self: n.cfg.Name, Region: n.cfg.Region, Refuse: n.isRevoked, Log: n.cfg.Log,
		Dial: func(ctx context.Context, node string) (net.Conn, error) {
			at, known := n.controls.get(node)
			if !known {
				return nil, fmt.Errorf("%s does not live", node)
			}
			return n.port.Dial(ctx, at.String(), node, control.Report)
		},
	})
	if err != nil {
		return err
	}
	n.counted = append(n.counted, n.reports)
	l := n.port.Service(control.Report)
	n.goes(func() { n.serveReports(l) })
	n.onClose("reports", func(context.Context) error {
		l.Close()
		return n.reports.Close()
	})
	return nil
}

func (n *Node) serveReports(l net.Listener) {
	var streams sync.WaitGroup
	defer streams.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		streams.Go(func() { n.reports.Serve(conn, conn.(*control.Conn).Peer()) })
	}
}

// publish makes value what this node says under a key; nil takes it back.
func (n *Node) publish(key string, value []byte) {
	if n.reports == nil {
		return // it starts; what it runs is said as soon as it can be
	}
	if err := n.reports.Publish(key, value); err != nil {
		n.cfg.Log.Error("publish", "key", key, "error", err)
	}
}

// sayings are what the live nodes say.
func (n *Node) sayings() report.Entries {
	if n.reports == nil {
		return nil
	}
	return n.reports.Entries().Get()
}
