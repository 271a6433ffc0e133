// Package probe runs the checks that are this node's to run: of targets (ELB) in its own region, and of
// HealthCheck resources (Route 53) from a few nodes of every region. Which those are is a pure function of
// spec and view; what a probe found goes through a tracker of package health, and its verdict to whoever
// Report leads to.
//
// It decides nothing about traffic. When the node's own network is broken its probes fail and it says so: the
// merge of many nodes' views is what makes that harmless. What an endpoint answers is a stranger's:
// every probe has its time and its size, and what goes beyond them has failed.
package probe

import (
	"cmp"
	"hash/fnv"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/kept"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
)

const (
	// observers is how many nodes check one target, and how many of each region check one HealthCheck: an odd number, so
	// that one of them may be wrong, and few, so that probes stay a small part of an endpoint's load.
	observers = 3

	// Route 53's timeouts: to connect, then to answer; to connect where that is all.
	connectTimeout = 4 * time.Second
	answerTimeout  = 2 * time.Second
	tcpTimeout     = 10 * time.Second
	// checkMatcher is the statuses with which an endpoint passes a Route 53 health check.
	checkMatcher = "200-399"
)

// Check is one thing to be probed, and how. Two that are equal are the same check.
type Check struct {
	Key      health.Key
	Address  netip.AddrPort
	Protocol string // spec.HTTP, spec.HTTPS or spec.TCP; HTTPS is for encryption only, no certificate is judged
	Host     string // HTTP: Host, and the server name in TLS if it is one
	Path     string // HTTP: path and query
	Matcher  string // HTTP: statuses that pass: "200", "200,302", "200-299"
	// A probe may take ConnectTimeout to connect (with TLS), then AnswerTimeout to answer, and Timeout in all.
	ConnectTimeout, AnswerTimeout, Timeout time.Duration
	Thresholds                             health.Thresholds // with the interval
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

// Checks are the checks of this node, ordered by key. Each target is checked by up to three live nodes of its region that
// have the origin role, each HealthCheck by up to three live nodes of every region. Who that is depends on names
// only: when a node comes or goes, only checks that it has or had move. Where there is no such node, nobody looks.
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
	// As lists in order, each key once: a target may be in its group twice, and its group may name the same ones in another order.
	gone, come = inOrder(gone), inOrder(come)
	if slices.Equal(gone, come) {
		return false
	}
	c.checks = kept.List(c.checks, gone, come, byKey)
	return true
}

func byKey(a, b Check) int { return cmp.Compare(a.Key, b.Key) }

func inOrder(checks []Check) []Check {
	slices.SortFunc(checks, byKey)
	return slices.CompactFunc(checks, func(a, b Check) bool { return a.Key == b.Key })
}

// targets appends the checks of a target group that are this node's; the group may be nil.
func (e eyes) targets(to []Check, g *spec.TargetGroup) []Check {
	if g == nil || g.Region != e.region || !e.origin {
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
	if h == nil || h.Disabled || !chosen(health.CheckKey(h.Name), e.self, e.all) {
		return to
	}
	return append(to, healthCheck(h))
}

// chosen says whether self is among the observers that the key has of the nodes: those that score highest for
// it (rendezvous hashing).
func chosen(key health.Key, self string, nodes []string) bool {
	own := hash(self, string(key))
	above := 0
	for _, n := range nodes {
		if score := hash(n, string(key)); score > own || score == own && n < self {
			above++
		}
	}
	return above < observers
}

// hash is the same on all nodes and in all releases. FNV alone hardly spreads what differs in the last bytes,
// so its sum is mixed (the finalizer of MurmurHash3).
func hash(a, b string) uint64 {
	f := fnv.New64a()
	io.WriteString(f, a)
	f.Write([]byte{0})
	io.WriteString(f, b)
	h := f.Sum64()
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

func targetCheck(g *spec.TargetGroup, t spec.Target, key health.Key) Check {
	h := &g.HealthCheck
	port := cmp.Or(h.Port, t.Port)
	timeout := min(h.Timeout.Std(), h.Interval.Std())
	c := Check{
		Key:            key,
		Address:        netip.AddrPortFrom(t.Address, port),
		Protocol:       h.Protocol,
		ConnectTimeout: timeout, AnswerTimeout: timeout, Timeout: timeout,
		Thresholds: health.Thresholds{Healthy: h.HealthyThreshold, Unhealthy: h.UnhealthyThreshold, Interval: h.Interval.Std()},
	}
	if c.Protocol != spec.TCP {
		c.Host, c.Path, c.Matcher = c.Address.String(), h.Path, h.Matcher
	}
	return c
}

func healthCheck(h *spec.HealthCheck) Check {
	interval := h.RequestInterval.Std()
	c := Check{
		Key:            health.CheckKey(h.Name),
		Address:        netip.AddrPortFrom(h.IPAddress, h.Port),
		Protocol:       h.Type,
		ConnectTimeout: min(tcpTimeout, interval), Timeout: min(tcpTimeout, interval),
		Thresholds: health.Thresholds{
			Healthy: h.FailureThreshold, Unhealthy: h.FailureThreshold, Interval: interval, PresumedHealthy: true,
		},
	}
	if c.Protocol != spec.TCP {
		c.Host, c.Path, c.Matcher = host(h), h.ResourcePath, checkMatcher
		c.ConnectTimeout = min(connectTimeout, interval)
		c.AnswerTimeout = min(answerTimeout, interval)
		c.Timeout = min(connectTimeout+answerTimeout, interval)
	}
	return c
}

// host is what Route 53 sends as Host: the name or else the address, with the port where it is not the protocol's own.
func host(h *spec.HealthCheck) string {
	name := cmp.Or(h.FullyQualifiedDomainName, h.IPAddress.String())
	if h.Type == spec.HTTP && h.Port == 80 || h.Type == spec.HTTPS && h.Port == 443 {
		if h.FullyQualifiedDomainName == "" && h.IPAddress.Is6() {
			return "[" + name + "]"
		}
		return name
	}
	return net.JoinHostPort(name, strconv.Itoa(int(h.Port)))
}
