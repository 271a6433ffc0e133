package node

import (
	"context"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/perigee-net/perigee/cluster/backbone"
	"github.com/perigee-net/perigee/cluster/event"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/dnsgeo"
	"github.com/perigee-net/perigee/dnsgeo/secondary"
	"github.com/perigee-net/perigee/node/api"
)

const (
	// copiesDir is the folder of secondary zones, in the data folder.
	copiesDir = "zones"

	// hearPause is how often at most what other nodes say of their secondary zones is heard, and hearTime how often at least: who asks
	// the primaries depends on who lives.
	hearPause = 250 * time.Millisecond
	hearTime  = 2 * time.Second
)

// copies is what secondary zones are kept by: on disk, and with the other nodes.
func (n *Node) copies() dnsgeo.Copies {
	return dnsgeo.Copies{
		Dir: filepath.Join(n.cfg.Data, copiesDir),
		DialNode: func(ctx context.Context, node string) (net.Conn, error) {
			return n.backbone.Dial(ctx, node, backbone.Header{Service: zoneService})
		},
		Say:    func(id string, what []byte) { n.publish(copyKey+id, what) },
		Turned: func(zone, what string) { n.events.Add(event.Zone, "zone/"+zone, what) },
	}
}

// hearCopies takes in what the other nodes say of their secondary zones, until the context ends.
func (n *Node) hearCopies(ctx context.Context) {
	for version := uint64(0); sleep(ctx, hearPause); {
		bounded, cancel := context.WithTimeout(ctx, hearTime)
		if _, next, err := n.reports.Entries().Next(bounded, version); err == nil {
			version = next
		}
		cancel()
		said := n.sayings()
		n.malformed.Add(n.names.Hear(func(node, id string) []byte { return said[node][copyKey+id] }))
	}
}

// zones are the secondary zones, and what each live node has of them.
func (n *Node) zones() api.ZoneList {
	list := api.ZoneList{Node: n.cfg.Name, Zones: []api.Zone{}}
	s, v, said := n.running.Get().spec, n.view.Get(), n.sayings()
	own := map[string]dnsgeo.CopyState{}
	for _, c := range n.names.CopyStates() {
		own[c.Zone] = c
	}
	for _, hosted := range s.HostedZones {
		if !hosted.Secondary() {
			continue
		}
		z := api.Zone{Name: hosted.Name, Copies: []api.ZoneCopy{}}
		for i := range hosted.Primaries {
			z.Primaries = append(z.Primaries, hosted.Primaries[i].AddrPort())
		}
		id := secondary.ID(hosted.Name)
		for _, m := range v.Members {
			if !m.Has(view.DNS) {
				continue
			}
			of := api.ZoneCopy{Node: m.Name}
			what, err := secondary.DecodeSaying(said[m.Name][copyKey+id])
			if c, here := own[hosted.Name]; here && m.Name == n.cfg.Name {
				what, err = c.Saying, nil
				of.Asks, of.Expires, of.Next = c.Asks, c.Expires, c.Next
			}
			if err == nil && what.Has {
				of.Serial, of.Confirmed = &what.Serial, what.Confirmed
			}
			of.Problem = what.Problem
			z.Copies = append(z.Copies, of)
		}
		// Who confirms a serial says so, and those that have the same hear it and say no more.
		for i := range z.Copies {
			for _, other := range z.Copies {
				if a, b := z.Copies[i].Serial, other.Serial; a != nil && b != nil && *a == *b && other.Confirmed.After(z.Copies[i].Confirmed) {
					z.Copies[i].Confirmed = other.Confirmed
				}
			}
		}
		list.Zones = append(list.Zones, z)
	}
	slices.SortFunc(list.Zones, func(a, b api.Zone) int { return strings.Compare(a.Name, b.Name) })
	return list
}
