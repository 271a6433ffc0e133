package node

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/perigee-net/perigee/cluster/distance"
	"github.com/perigee-net/perigee/cluster/gossip"
	"github.com/perigee-net/perigee/node/api"
)

// ping has gossip's probes carry coordinates, and measure by them.
func (n *Node) ping() gossip.Ping {
	return gossip.Ping{
		Payload: func() []byte { return n.distance.Coordinate().Append(nil) },
		Done: func(node string, rtt time.Duration, payload []byte) {
			if theirs, err := distance.Decode(payload); err == nil {
				n.distance.Observe(node, theirs, rtt)
			} else if len(payload) > 0 {
				n.malformed.Add(1)
			}
		},
	}
}

// measuredTime is how often a node looks whether what it says of its distances is to be said anew.
const measuredTime = 5 * time.Second

// tellDistances says where this node is in the network, and how far others are, until the context ends.
func (n *Node) tellDistances(ctx context.Context) {
	var told map[string]time.Duration
	var at []byte
	for sleep(ctx, measuredTime) {
		if now := n.view.Get().RTT; moved(told, now) {
			told = now
			n.publish(measuredKey, distance.EncodeMeasured(now))
		}
		if now := n.distance.Coordinate().Append(nil); !slices.Equal(at, now) {
			at = now
			n.publish(coordinateKey, now)
		}
	}
}

// moved says whether round trips are others than those that were told: by a tenth and a millisecond.
func moved(told, now map[string]time.Duration) bool {
	if len(told) != len(now) {
		return true
	}
	for node, rtt := range now {
		was, known := told[node]
		if away := (rtt - was).Abs(); !known || away > time.Millisecond && away > was/10 {
			return true
		}
	}
	return false
}

// mapTime is how old the map of distances may be before it is drawn anew.
const mapTime = time.Second

// drawMap draws the map of distances by what all nodes say.
func (n *Node) drawMap() {
	said, v := n.sayings(), n.view.Get()
	nodes := make([]distance.Node, 0, len(v.Members))
	for _, m := range v.Members {
		one := distance.Node{Name: m.Name, Region: m.Region, POP: m.POP}
		if c, err := distance.Decode(said[m.Name][coordinateKey]); err == nil {
			one.Coordinate = &c
		}
		if measured, err := distance.DecodeMeasured(said[m.Name][measuredKey]); err == nil {
			one.Measured = measured
		}
		if m.Name == n.cfg.Name {
			one.Measured = v.RTT
		}
		nodes = append(nodes, one)
	}
	n.distances.Store(distance.NewMap(nodes))
}

// away estimates the round trip between two nodes.
func (n *Node) away(a, b string) (time.Duration, bool) {
	e, ok := n.distances.Load().Between(a, b)
	return e.RTT, ok
}

// distancesFrom are the estimates from one node, for the API.
func (n *Node) distancesFrom(from string) (api.DistanceList, error) {
	if from == "" {
		from = n.cfg.Name
	}
	v, drawn := n.view.Get(), n.distances.Load()
	if _, lives := v.Member(from); !lives {
		return api.DistanceList{}, &api.Error{Status: http.StatusNotFound, Message: fmt.Sprintf("no live node is called %s", from)}
	}
	list := api.DistanceList{From: from, Distances: []api.Distance{}}
	for _, m := range v.Members {
		if e, ok := drawn.Between(from, m.Name); ok && m.Name != from {
			list.Distances = append(list.Distances, api.Distance{From: from, To: m.Name, RTT: e.RTT, By: e.From})
		}
	}
	slices.SortFunc(list.Distances, func(a, b api.Distance) int { return strings.Compare(a.To, b.To) })
	return list, nil
}

// sleep waits, and says whether the context goes on.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
