package distance

import (
	"sync"
	"time"

	"github.com/hashicorp/serf/coordinate"
)

const (
	// maxRoundTrip is the longest that is believed: no path on earth takes it, a process that stood still does.
	maxRoundTrip = 2 * time.Second
	// maxPeers bounds the nodes whose last measurements are held to smooth the next. Beyond it all begin anew.
	maxPeers = 10_000
)

// Client finds this node's coordinate from what it measures. It may be used by many goroutines.
type Client struct {
	self   string
	config *coordinate.Config

	mu                         sync.Mutex // guards what follows
	client                     *coordinate.Client
	peers                      map[string]bool // that the library holds measurements of
	samples, refused, restarts uint64
}

// New is a client at the origin, unsure of it.
func New(self string) *Client {
	config := coordinate.DefaultConfig()
	config.Dimensionality, config.VivaldiErrorMax = dimensions, maxDoubt
	client, err := coordinate.NewClient(config)
	if err != nil {
		panic("distance: the library refuses its own defaults: " + err.Error())
	}
	return &Client{self: self, config: config, client: client, peers: map[string]bool{}}
}

// Observe takes a measured round trip to a node that says to be at a coordinate. Measurements of this node itself, those
// not above 0 or above 2 s, and coordinates out of bounds are counted and change nothing.
func (c *Client) Observe(node string, theirs Coordinate, rtt time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if node == c.self || rtt <= 0 || rtt > maxRoundTrip || !theirs.valid() {
		c.refused++
		return
	}
	if !c.peers[node] && len(c.peers) >= maxPeers {
		for peer := range c.peers {
			c.client.ForgetNode(peer)
		}
		clear(c.peers)
	}
	c.peers[node] = true
	l, err := c.client.Update(node, theirs.library(), rtt)
	if err != nil {
		c.refused++
		return
	}
	c.samples++
	if !ours(l).valid() {
		c.restarts++
		_ = c.client.SetCoordinate(coordinate.NewCoordinate(c.config)) // of its own dimensions
	}
}

// Coordinate is where this node is, so far as it knows.
func (c *Client) Coordinate() Coordinate {
	c.mu.Lock()
	defer c.mu.Unlock()
	return ours(c.client.GetCoordinate())
}

// Counters counts since New:
//
//	distance_samples_total    round trips that moved the coordinate
//	distance_refused_total    round trips or coordinates that nobody can have, not used
//	distance_restarts_total   times the coordinate had left all bounds and began anew
func (c *Client) Counters() map[string]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return map[string]uint64{
		"distance_samples_total":  c.samples,
		"distance_refused_total":  c.refused,
		"distance_restarts_total": c.restarts + uint64(c.client.Stats().Resets),
	}
}
