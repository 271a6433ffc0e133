// Package probe runs the checks that are this node's to run: of targets (ELB) and of accelerators' endpoints (Global
// Accelerator) in its own region, and of HealthCheck resources (Route 53) from a few nodes of every region. Which those
// are is a pure function of spec and view; what a probe found goes through a tracker of package health, and so do failures
// that the data path saw, and the verdict goes to whoever Report leads to.
//
// It decides nothing about traffic. When the node's own network is broken its probes fail and it says so: the
// merge of many nodes' views is what makes that harmless. What an endpoint answers is a stranger's:
// every probe has its time and its size, and what goes beyond them has failed.
package probe

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/kept"
	"github.com/perigee-net/perigee/cluster/rendezvous"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
)

const (
	// observers is how many nodes check one target or endpoint, and how many of each region check one HealthCheck: an odd
	// number, so that one of them may be wrong, and few, so that probes stay a small part of an endpoint's load.
	observers = 3

	// Route 53's timeouts: to connect, then to answer, then for the string in the body; to connect where that is all.
	connectTimeout = 4 * time.Second
	answerTimeout  = 2 * time.Second
	bodyTimeout    = 2 * time.Second
	tcpTimeout     = 10 * time.Second
	// checkMatcher is the statuses with which an endpoint passes a check of Route 53's checkers, which are Global Accelerator's too.
	checkMatcher = "200-399"
	// callMatcher is the gRPC codes with which an endpoint passes: the method that is asked for may well not be there.
	callMatcher = "0,12"
)

// Check is one thing to be probed, and how. Two that are equal are the same check.
type Check struct {
	Key     health.Key
	Address netip.AddrPort // where Name is set, its port alone counts
	Name    string         // looked up at each probe, for an IPv4 address
	// Protocol is spec.TCP (to connect is enough), spec.HTTP, spec.HTTPS or spec.GRPC (by HTTP/2, without TLS).
	Protocol string
	Host     string // not TCP: the authority asked for, and what the certificate is to name
	Path     string // not TCP: path and query; for gRPC the method
	Matcher  string // not TCP: statuses that pass: "200", "200,302", "200-299"; for gRPC its codes
	Search   string // HTTP and HTTPS: what is to be in the first 5,120 bytes of the body; empty: the body is not read
	SNI      bool   // HTTPS: tell the server the host, if it is a name
	Validate bool   // HTTPS: judge the certificate; otherwise TLS is for encryption only
	Proxy    bool   // begin with a PROXY header that says that there is no client
	// A probe may take ConnectTimeout to look up and connect (with TLS), then AnswerTimeout to answer, then BodyTimeout
	// until the string is found, and Timeout in all.
	ConnectTimeout, AnswerTimeout, BodyTimeout, Timeout time.Duration

	Thresholds health.Thresholds // with the interval
}

// Chooser says which checks are this node's to run. It remembers what it said of the spec and view before, so that
// one change among very many resources costs little. It is for one goroutine; the zero Chooser knows nothing.
type Chooser struct {
	eyes   eyes
	spec   *spec.Spec
	checks []Check
}

// eyes are those who could look, as one of them sees it.
type eyes struct {
	self, region string   // self is empty if it does not live
	origin       bool     // self has the role
	all, origins []string // of the region, by name; those with the role
}

func eyesOf(v *view.View) (e eyes) {
	if v == nil {
		return e
	}
	self, live := v.Member(v.Self)
	if !live {
		return e
	}
	e.self, e.region, e.origin = v.Self, self.Region, self.Has(view.Origin)
	for _, m := range v.Members {
		if m.Region != e.region {
			continue
		}
		e.all = append(e.all, m.Name)
		if m.Has(view.Origin) {
			e.origins = append(e.origins, m.Name)
		}
	}
	return e
}

func (e eyes) equal(o eyes) bool {
	return e.self == o.self && e.region == o.region && e.origin == o.origin && slices.Equal(e.all, o.all) && slices.Equal(e.origins, o.origins)
}

// Checks are the checks of this node, ordered by key. Each target and endpoint is checked by up to three live nodes of its
// region that have the origin role, each HealthCheck by up to three live nodes of each of its regions. Who that is depends on
// names only: when a node comes or goes, only checks that it has or had move, and one that is drained or leaves goes on
// looking. Where there is no such node, nobody looks.
func Checks(s *spec.Spec, v *view.View) []Check {
	checks, _ := new(Chooser).Checks(s, v)
	return checks
}

// Checks are the checks of this node, and whether they are others than those before. The slice is shared and must not be changed.
func (c *Chooser) Checks(s *spec.Spec, v *view.View) (checks []Check, changed bool) {
	if s == nil {
		s = new(spec.Spec)
	}
	if now := eyesOf(v); !now.equal(c.eyes) {
		old := c.checks
		*c = Chooser{eyes: now}
		c.follow(s)
		return c.checks, !slices.Equal(old, c.checks)
	}
	return c.checks, c.follow(s)
}

// follow takes over a spec, and says whether the checks are others than before.
func (c *Chooser) follow(s *spec.Spec) (changed bool) {
	old := c.spec
	if c.spec = s; c.eyes.self == "" {
		return false
	}
	if old == nil {
		old = new(spec.Spec)
	}
	var gone, come []Check
	for _, g := range kept.Changes(old.TargetGroups, s.TargetGroups) {
		gone = c.eyes.targets(gone, g.Old)
		come = c.eyes.targets(come, g.New)
	}
	for _, h := range kept.Changes(old.HealthChecks, s.HealthChecks) {
		gone = c.eyes.health(gone, h.Old)
		come = c.eyes.health(come, h.New)
	}
	for _, a := range kept.Changes(old.Accelerators, s.Accelerators) {
		gone = c.eyes.endpoints(gone, a.Old)
		come = c.eyes.endpoints(come, a.New)
	}
	// As lists in order, each key once: a target may be in its group twice, and its group may name the same ones in another
	// order. Of two listeners that check one address at one port in two ways, the first one's way counts.
	gone, come = inOrder(gone), inOrder(come)
	if slices.Equal(gone, come) {
		return false
	}
	c.checks = kept.List(c.checks, gone, come, byKey)
	return true
}

func byKey(a, b Check) int { return cmp.Compare(a.Key, b.Key) }

func inOrder(checks []Check) []Check {
	slices.SortStableFunc(checks, byKey)
	return slices.CompactFunc(checks, func(a, b Check) bool { return a.Key == b.Key })
}

// targets appends the checks of a target group that are this node's; the group may be nil.
func (e eyes) targets(to []Check, g *spec.TargetGroup) []Check {
	if g == nil || !on(g.HealthCheck.Enabled) || g.Region != e.region || !e.origin {
		return to
	}
	for _, t := range g.Targets {
		if key := health.TargetKey(g.Name, t.AddrPort()); chosen(key, e.self, e.origins) {
			to = append(to, targetCheck(g, t, key))
		}
	}
	return to
}

// health appends the check of a HealthCheck if it is this node's; it may be nil.
func (e eyes) health(to []Check, h *spec.HealthCheck) []Check {
	if h == nil || !probed(h) || !from(h, e.region) || !chosen(health.CheckKey(h.Name), e.self, e.all) {
		return to
	}
	return append(to, healthCheck(h))
}

// endpoints appends the checks of an accelerator's endpoints that are this node's; it may be nil.
func (e eyes) endpoints(to []Check, a *spec.Accelerator) []Check {
	if !e.origin {
		return to
	}
	for g, end := range endpoints(a) {
		if g.Region != e.region {
			continue
		}
		if key := health.EndpointKey(a.Name, g.Region, g.CheckAddr(end)); chosen(key, e.self, e.origins) {
			to = append(to, endpointCheck(g, end, key))
		}
	}
	return to
}

// endpoints are the endpoints of an accelerator that have a check of their own, being given by address. It may be nil.
func endpoints(a *spec.Accelerator) iter.Seq2[*spec.EndpointGroup, spec.Endpoint] {
	return func(yield func(*spec.EndpointGroup, spec.Endpoint) bool) {
		if a == nil || !on(a.Enabled) {
			return
		}
		for i := range a.Listeners {
			for j := range a.Listeners[i].EndpointGroups {
				g := &a.Listeners[i].EndpointGroups[j]
				for _, end := range g.Endpoints {
					if end.Address.IsValid() && !yield(g, end) {
						return
					}
				}
			}
		}
	}
}

// on says whether a switch is on, as it is by default.
func on(b *bool) bool { return b == nil || *b }

// probed says whether a HealthCheck has an endpoint to look at, and is to.
func probed(h *spec.HealthCheck) bool { return !h.Disabled && h.Type != spec.Calculated }

// from says whether a HealthCheck is checked from a region.
func from(h *spec.HealthCheck, region string) bool {
	return len(h.Regions) == 0 || slices.Contains(h.Regions, region)
}

// chosen says whether self is among the observers that the key has of the nodes. It is rendezvous.Highest without its list.
func chosen(key health.Key, self string, nodes []string) bool {
	own := rendezvous.Score(self, string(key))
	above := 0
	for _, n := range nodes {
		if score := rendezvous.Score(n, string(key)); score > own || score == own && n < self {
			above++
		}
	}
	return above < observers
}

func targetCheck(g *spec.TargetGroup, t spec.Target, key health.Key) Check {
	h := &g.HealthCheck
	timeout := min(h.Timeout.Std(), h.Interval.Std())
	c := Check{
		Key:            key,
		Address:        netip.AddrPortFrom(t.Address, cmp.Or(h.Port, t.Port)),
		Protocol:       h.Protocol,
		Validate:       h.ValidateCertificate,
		Proxy:          g.ProxyProtocolV2 && g.Protocol != spec.UDP && (h.Port == 0 || h.Port == t.Port), // what is at another port, or speaks TCP beside UDP, is another service
		ConnectTimeout: timeout, AnswerTimeout: timeout, Timeout: timeout,
		Thresholds: health.Thresholds{Healthy: h.HealthyThreshold, Unhealthy: h.UnhealthyThreshold, Interval: h.Interval.Std()},
	}
	if c.Protocol != spec.TCP {
		c.Host, c.Path, c.Matcher = c.Address.String(), h.Path, h.Matcher
	}
	return c
}

func healthCheck(h *spec.HealthCheck) Check {
	c := byRoute53(Check{
		Key:        health.CheckKey(h.Name),
		Address:    netip.AddrPortFrom(h.IPAddress, h.Port),
		Protocol:   h.Type,
		Search:     h.SearchString,
		Validate:   h.ValidateCertificate,
		Thresholds: health.Thresholds{Healthy: h.FailureThreshold, Unhealthy: h.FailureThreshold, Interval: h.RequestInterval.Std(), PresumedHealthy: true},
	})
	if !h.IPAddress.IsValid() {
		c.Name = h.FullyQualifiedDomainName
	}
	if c.Protocol == spec.TCP {
		return c
	}
	c.Host, c.Path = host(cmp.Or(h.FullyQualifiedDomainName, literal(h.IPAddress)), h.Port, c.Protocol), h.ResourcePath
	c.SNI = c.Protocol == spec.HTTPS && h.FullyQualifiedDomainName != "" && on(h.EnableSNI)
	return c
}

// endpointCheck is as Route 53's checkers do it, who do it for Global Accelerator; but an endpoint is healthy no sooner
// than it has passed.
func endpointCheck(g *spec.EndpointGroup, e spec.Endpoint, key health.Key) Check {
	c := byRoute53(Check{
		Key:        key,
		Address:    g.CheckAddr(e),
		Protocol:   g.HealthCheckProtocol,
		Thresholds: health.Thresholds{Healthy: g.ThresholdCount, Unhealthy: g.ThresholdCount, Interval: g.HealthCheckInterval.Std()},
	})
	if c.Protocol != spec.TCP {
		c.Host, c.Path = host(literal(e.Address), c.Address.Port(), c.Protocol), g.HealthCheckPath
	}
	return c
}

// byRoute53 gives a check the protocol of its type, and what of Route 53's terms depends on that.
func byRoute53(c Check) Check {
	interval := c.Thresholds.Interval
	c.ConnectTimeout, c.AnswerTimeout = min(connectTimeout, interval), min(answerTimeout, interval)
	c.Timeout, c.Matcher = connectTimeout+answerTimeout, checkMatcher
	switch c.Protocol {
	case spec.TCP:
		c.ConnectTimeout, c.AnswerTimeout, c.Timeout, c.Matcher = min(tcpTimeout, interval), 0, tcpTimeout, ""
	case spec.GRPC:
		c.Matcher = callMatcher
	case spec.HTTPStringMatch:
		c.Protocol = spec.HTTP
	case spec.HTTPSStringMatch:
		c.Protocol = spec.HTTPS
	}
	if c.Search != "" {
		c.BodyTimeout = min(bodyTimeout, interval)
		c.Timeout += bodyTimeout
	}
	c.Timeout = min(c.Timeout, interval)
	return c
}

// literal is an address as a host names it in a URL.
func literal(a netip.Addr) string {
	if a.Is6() {
		return "[" + a.String() + "]"
	}
	return a.String()
}

// host is what Route 53 sends as Host: with the port where it is not the protocol's own.
func host(name string, port uint16, protocol string) string {
	if protocol == spec.HTTP && port == 80 || protocol == spec.HTTPS && port == 443 {
		return name
	}
	return name + ":" + strconv.Itoa(int(port))
}
