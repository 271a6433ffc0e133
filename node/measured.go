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
	"github.com/perigee-net/perigee/cluster/view"
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

const (
	// A node says anew where it is and how far others are after measuredTime at first, then less and less often up to
	// measuredMost, unless many of the others are elsewhere now.
	measuredTime = 5 * time.Second
	measuredMost = time.Minute
	// measuredOf is of how many nodes of each other region it says how far they are: the rest is estimated.
	measuredOf = 3
)

// tellDistances says where this node is in the network, and how far others are, until the context ends.
func (n *Node) tellDistances(ctx context.Context) {
	var told map[string]time.Duration
	var at []byte
	since, wait := measuredTime, measuredTime
	for sleep(ctx, measuredTime) {
		now := worthTelling(n.view.Get())
		if since += measuredTime; since < wait && !moved(told, now) {
			continue
		}
		if moved(told, now) {
			wait = measuredTime
		}
		since, wait = 0, min(2*wait, measuredMost)
		told = now
		n.publish(measuredKey, distance.EncodeMeasured(now))
		if now := n.distance.Coordinate().Append(nil); !slices.Equal(at, now) {
			at = now
			n.publish(coordinateKey, now)
		}
	}
}

// worthTelling are the measured round trips to the own region and to a few nodes of each other.
func worthTelling(v *view.View) map[string]time.Duration {
	self, _ := v.Member(v.Self)
	all, of := map[string]time.Duration{}, map[string]int{}
	for _, m := range v.Members {
		rtt, up := v.RTT[m.Name]
		if !up || m.Region != self.Region && of[m.Region] >= measuredOf {
			continue
		}
		of[m.Region]++
		all[m.Name] = rtt
	}
	return all
}

// moved says whether a quarter of the round trips are others than those that were told: by a tenth and a millisecond.
func moved(told, now map[string]time.Duration) bool {
	others := max(0, len(told)-len(now))
	for node, rtt := range now {
		was, known := told[node]
		if away := (rtt - was).Abs(); !known || away > time.Millisecond && away > was/10 {
			others++
		}
	}
	return others > 0 && 4*others >= len(now)
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

// measuredBetween is the round trip between two nodes where one of them measured it.
func (n *Node) measuredBetween(a, b string) (time.Duration, bool) {
	e, ok := n.distances.Load().Between(a, b)
	return e.RTT, ok && e.From == distance.FromMeasured
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
