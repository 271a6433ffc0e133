// Package wan is the world of a laboratory as data: sites, hosts, the links between sites, a matrix of measured round
// trips, places where clients live, and the addresses that all of them have. It reads world files and knows some worlds
// of its own.
//
// It is pure. It makes no namespace, link or process, and does not know which of them there are.
//
// A world is the same each time it is made: no address depends on chance, on time, or on the order of what is added later.
package wan

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
)

// Bounds of a world.
const (
	MaxSites = 60  // 1,770 links
	MaxHosts = 500 // clients at places and hosts added later included
)

// World is a laboratory's network. Sites, hosts and links are in the order of their numbers.
type World struct {
	Name    string
	Sites   []Site
	Hosts   []Host // without the routers
	Links   []Link // a full mesh of the sites
	Matrix  *Matrix
	Anycast []netip.Prefix // what nodes may announce
	Spec    string         // path of a spec to apply; "": the demo
}

// Site is a place with a router, to which its hosts are connected without delay.
type Site struct {
	Name    string // icn
	Region  string // ap-northeast-2
	City    string
	Country string // ISO 3166-1 alpha-2; "" where nobody said it
	At      spec.Location
	Number  int        // 1…MaxSites
	V4, V6  netip.Addr // of its router: 10.NUMBER.0.1 and fd00:0:NUMBER::1
}

// Router is the name of the site's router among hosts: router-icn.
func (s Site) Router() string { return "router-" + s.Name }

// Prefixes are those that the addresses of the site's router and hosts are in: a /16 and a /48.
func (s Site) Prefixes() [2]netip.Prefix {
	return [2]netip.Prefix{netip.PrefixFrom(s.V4, 16).Masked(), netip.PrefixFrom(s.V6, 48).Masked()}
}

// Kind is what a host is for.
type Kind string

// Kinds of hosts.
const (
	Node     Kind = "node"     // perigee node
	Target   Kind = "target"   // perigee target: a server of the demo
	Origin   Kind = "origin"   // an HTTP server apart from the demo: see Host.Program
	Resolver Kind = "resolver" // a recursive resolver, one a site
	Root     Kind = "root"     // the name server of the root
	TLD      Kind = "tld"      // the name server of test.
	Client   Kind = "client"
)

// Programs of origins.
const (
	Nginx  = "nginx"
	Faulty = "faulty" // testbed/faulty: it can be told to misbehave
)

// Host is a machine with one interface.
type Host struct {
	Name    string // icn1
	Kind    Kind
	Site    string
	Region  string   // its site's, unless a node says another
	POP     string   // of a node: SITE1 unless it says another, so that all nodes of a site are one POP
	Roles   []string // of a node; none: all
	Program string   // of an origin: Nginx or Faulty
	At      spec.Location
	Number  int        // in its site, from 1; clients at places have the numbers from firstPlace on
	V4, V6  netip.Addr // 10.SITE.x.y and fd00:0:SITE::NUMBER+1
	Access  *Path      // the link to the router, each direction alike; nil: no delay
}

// Link joins the routers of two sites.
type Link struct {
	A, B     string // sites, A before B
	AB, BA   Path
	Number   int        // from 1
	V4A, V4B netip.Addr // a /31 of 10.255.0.0/16
}

// RTT is the link's round trip, without jitter and queues.
func (l Link) RTT() time.Duration { return l.AB.Delay + l.BA.Delay }

// Path is one direction of a link.
type Path struct {
	Delay   time.Duration `json:",omitempty"` // 0…MaxDelay
	Jitter  time.Duration `json:",omitempty"` // each packet's delay is Delay ± at most this much, evenly spread; at most Delay
	Loss    float64       `json:",omitempty"` // share of packets that are lost, each by its own chance, 0…1
	Reorder float64       `json:",omitempty"` // share of packets that are not delayed at all and so overtake, 0…1
	Rate    int64         `json:",omitempty"` // bit/s; 0: no bound
	Queue   int           `json:",omitempty"` // packets that may wait to be sent at Rate, not those on their way; without a Rate none wait; 0: DefaultQueue
}

// Bounds of a path.
const (
	MaxDelay     = 10 * time.Second
	MinRate      = 8_000           // 1 kB/s: below it a packet of 1,500 bytes takes longer than a second and a half
	MaxRate      = 100_000_000_000 // 100 Gbit/s
	DefaultQueue = 1000            // as netem's limit
	MaxQueue     = 100_000
)

// Validate says what of the path cannot be.
func (p Path) Validate() error {
	share := func(x float64) bool { return x >= 0 && x <= 1 } // false for NaN
	switch {
	case p.Delay < 0 || p.Delay > MaxDelay:
		return fmt.Errorf("delay must be 0s–%v, not %v", MaxDelay, p.Delay)
	case p.Jitter < 0 || p.Jitter > p.Delay:
		return fmt.Errorf("jitter must be at most the delay, %v, not %v", p.Delay, p.Jitter)
	case !share(p.Loss):
		return fmt.Errorf("loss must be 0–1, not %v", p.Loss)
	case !share(p.Reorder):
		return fmt.Errorf("reorder must be 0–1, not %v", p.Reorder)
	case p.Rate != 0 && (p.Rate < MinRate || p.Rate > MaxRate):
		return fmt.Errorf("rate must be 8kbit–100gbit, or 0 for no bound, not %d bit/s", p.Rate)
	case p.Queue < 0 || p.Queue > MaxQueue:
		return fmt.Errorf("queue must be 0–%d packets, not %d", MaxQueue, p.Queue)
	}
	return nil
}

// Limit is the queue's length in packets, never 0.
func (p Path) Limit() int {
	if p.Queue == 0 {
		return DefaultQueue
	}
	return p.Queue
}

// Host is the host of a name, routers apart.
func (w *World) Host(name string) (Host, bool) {
	for _, h := range w.Hosts {
		if h.Name == name {
			return h, true
		}
	}
	return Host{}, false
}

// Site is the site of a name.
func (w *World) Site(name string) (Site, bool) {
	for _, s := range w.Sites {
		if s.Name == name {
			return s, true
		}
	}
	return Site{}, false
}

// Link is the link of two sites, named in either order. It is the world's own: its paths may be changed.
func (w *World) Link(a, b string) (*Link, bool) {
	for i := range w.Links {
		if l := &w.Links[i]; l.A == a && l.B == b || l.A == b && l.B == a {
			return l, true
		}
	}
	return nil, false
}

// RTT is the round trip between two hosts or sites by the fastest way over the links, which is the one that routing takes:
// measured matrices have pairs that are faster by a third site. Access links count; within one site it is 0, and between
// names that are not known too.
func (w *World) RTT(a, b string) time.Duration {
	from, near := w.at(a)
	to, far := w.at(b)
	if a == b || from == 0 || to == 0 {
		return 0
	}
	return near + far + w.between(from)[to]
}

// at is the number of the site of a host or site, and the round trip of the host's access link. No such: 0.
func (w *World) at(name string) (site int, access time.Duration) {
	if h, ok := w.Host(name); ok {
		name = h.Site
		if h.Access != nil {
			access = 2 * h.Access.Delay
		}
	}
	s, _ := w.Site(name)
	return s.Number, access
}

// between is the fastest round trip from a site to each site, by number (Dijkstra's).
func (w *World) between(from int) []time.Duration {
	const far = math.MaxInt64 / 2
	direct := make([][]time.Duration, len(w.Sites)+1)
	for i := range direct {
		direct[i] = slices.Repeat([]time.Duration{far}, len(w.Sites)+1)
	}
	number := map[string]int{}
	for _, s := range w.Sites {
		number[s.Name] = s.Number
	}
	for _, l := range w.Links {
		a, b := number[l.A], number[l.B]
		direct[a][b], direct[b][a] = l.RTT(), l.RTT()
	}
	best := slices.Repeat([]time.Duration{far}, len(w.Sites)+1)
	best[from] = 0
	done := make([]bool, len(w.Sites)+1)
	for range w.Sites {
		next := 0
		for n := 1; n <= len(w.Sites); n++ {
			if !done[n] && (next == 0 || best[n] < best[next]) {
				next = n
			}
		}
		done[next] = true
		for n := 1; n <= len(w.Sites); n++ {
			best[n] = min(best[n], best[next]+direct[next][n])
		}
	}
	return best
}

// Add takes one more host into the world: a client that Place made, whose addresses stay, or one with a name, kind and
// site, which gets the next number of its site. It returns the host as it is now.
func (w *World) Add(h Host) (Host, error) {
	s, ok := w.Site(h.Site)
	switch {
	case !ok:
		return Host{}, fmt.Errorf("add %s: no site %q", h.Name, h.Site)
	case len(w.Hosts) >= MaxHosts:
		return Host{}, fmt.Errorf("add %s: there are %d hosts, more cannot be", h.Name, MaxHosts)
	}
	if problem := w.nameProblem(h); problem != "" {
		return Host{}, fmt.Errorf("add %s: %s", h.Name, problem)
	}
	if h.Access != nil {
		if err := h.Access.Validate(); err != nil {
			return Host{}, fmt.Errorf("add %s: access: %w", h.Name, err)
		}
	}
	if !h.V4.IsValid() {
		h.Number = w.nextNumber(s.Name)
	}
	h = s.settle(h)
	w.Hosts = append(w.Hosts, h)
	return h, nil
}

// nextNumber is the first number of a site after those in use; numbers of places are nobody else's.
func (w *World) nextNumber(site string) int {
	last := 0
	for _, h := range w.Hosts {
		if h.Site == site && h.Number < firstPlace {
			last = max(last, h.Number)
		}
	}
	return last + 1
}

// settle fills in what a host has from its site and number.
func (s Site) settle(h Host) Host {
	h.V4, h.V6 = hostAddrs(s.Number, h.Number)
	if h.Region == "" {
		h.Region = s.Region
	}
	if h.At == (spec.Location{}) {
		h.At = s.At
	}
	if h.POP == "" && h.Kind == Node {
		h.POP = s.Name + "1"
	}
	if h.Program == "" && h.Kind == Origin {
		h.Program = Nginx
	}
	return h
}

// perThird is how many hosts share the third byte of an IPv4 address: 10.SITE.x.2–10.SITE.x.251.
const perThird = 250

func hostAddrs(site, host int) (v4, v6 netip.Addr) {
	i := host - 1
	v4 = netip.AddrFrom4([4]byte{10, byte(site), byte(i / perThird), byte(2 + i%perThird)})
	return v4, siteV6(site, host+1)
}

func routerAddrs(site int) (v4, v6 netip.Addr) {
	return netip.AddrFrom4([4]byte{10, byte(site), 0, 1}), siteV6(site, 1)
}

// siteV6 is fd00:0:SITE::LAST.
func siteV6(site, last int) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfd, 4: byte(site >> 8), 5: byte(site), 14: byte(last >> 8), 15: byte(last)})
}

// linkAddrs are the two ends of a link: the NUMBERth /31 of 10.255.0.0/16, the first of which is nobody's.
func linkAddrs(number int) (a, b netip.Addr) {
	at := func(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 255, byte(n >> 8), byte(n)}) }
	return at(2 * number), at(2*number + 1)
}
