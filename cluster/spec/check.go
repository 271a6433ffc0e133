package spec

import (
	"net/netip"
	"strconv"
	"strings"
)

// What decides which fields of a health check have a meaning.
const (
	overHTTP = 1 << iota
	overTLS
	overGRPC
	matchesText
)

// traits are what a type of health check is, for those that probe.
var traits = map[string]int{
	TCP:              0,
	HTTP:             overHTTP,
	HTTPS:            overHTTP | overTLS,
	HTTPStringMatch:  overHTTP | matchesText,
	HTTPSStringMatch: overHTTP | overTLS | matchesText,
	GRPC:             overGRPC,
}

func (c check) healthCheck(h *HealthCheck) {
	c.name(h.Name)
	if h.Type == "" {
		return // its own fault is told
	}
	is, probes := traits[h.Type], h.Type != Calculated
	for _, f := range []struct {
		name          string
		given, useful bool
	}{
		{"ipAddress", h.IPAddress.IsValid(), probes},
		{"port", h.Port != 0, probes},
		{"resourcePath", h.ResourcePath != "", is&(overHTTP|overGRPC) != 0},
		{"fullyQualifiedDomainName", h.FullyQualifiedDomainName != "", probes},
		{"searchString", h.SearchString != "", is&matchesText != 0},
		{"enableSNI", h.EnableSNI != nil, is&overTLS != 0},
		{"validateCertificate", h.ValidateCertificate, is&overTLS != 0},
		{"regions", h.Regions != nil, probes},
		{"requestInterval", h.RequestInterval != nil, probes},
		{"failureThreshold", h.FailureThreshold != 0, probes},
		{"childHealthChecks", h.ChildHealthChecks != nil, !probes},
		{"healthThreshold", h.HealthThreshold != nil, !probes},
	} {
		if f.given && !f.useful {
			c.fault(f.name, "has no meaning for %s", h.Type)
		}
	}
	if !probes {
		c.children(h)
		return
	}
	c.endpoint(h)
	if h.Port == 0 {
		c.fault("port", "is required for %s", h.Type)
	}
	c.urlPath("resourcePath", h.ResourcePath)
	if is&matchesText != 0 && h.SearchString == "" {
		c.fault("searchString", "is required for %s", h.Type)
	}
	seen := map[string]bool{}
	for i, region := range h.Regions {
		c.inRegion(at("regions", i), region)
		c.listed(at("regions", i), region, seen)
	}
}

// listed judges one name of a list of names.
func (c check) listed(field, name string, seen map[string]bool) {
	switch {
	case name == "":
		c.fault(field, "must not be empty")
	case seen[name]:
		c.fault(field, "%.80q is in the list twice", name)
	}
	seen[name] = true
}

// endpoint judges where a health check looks: an address, or a name that is looked up.
func (c check) endpoint(h *HealthCheck) {
	const name = "fullyQualifiedDomainName"
	c.unicast("ipAddress", h.IPAddress)
	switch _, err := netip.ParseAddr(h.FullyQualifiedDomainName); {
	case h.FullyQualifiedDomainName != "" && (err != nil || h.IPAddress.IsValid()):
		c.host(name, h.FullyQualifiedDomainName)
	case c.told(name) || c.told("ipAddress") || h.IPAddress.IsValid():
	case h.FullyQualifiedDomainName == "":
		c.fault("ipAddress", "is required where there is no %s", name)
	default:
		c.fault(name, "is an address: give it as ipAddress")
	}
}

// children judges what a calculated health check is reckoned of.
func (c check) children(h *HealthCheck) {
	if h.ChildHealthChecks == nil {
		c.fault("childHealthChecks", "is required for %s", h.Type)
	}
	if h.HealthThreshold == nil {
		c.fault("healthThreshold", "is required for %s", h.Type)
	}
	seen := map[string]bool{}
	for i, name := range h.ChildHealthChecks {
		field := at("childHealthChecks", i)
		if child := find(c, field, "HealthCheck", c.spec.HealthChecks, name); child != nil && child.Type == Calculated {
			c.fault(field, "%.80q is calculated itself", name)
		}
		c.listed(field, name, seen)
	}
}

// targetHealthCheck judges how the targets of a group are checked.
func (c check) targetHealthCheck(field string, h *TargetHealthCheck) {
	protocol := h.Protocol
	if c.told(field + ".protocol") {
		protocol = "" // it was not read, and a default stands in its place
	}
	switch protocol {
	case TCP:
		if h.Path != "" {
			c.fault(field+".path", "has no meaning for TCP")
		}
		if h.Matcher != "" {
			c.fault(field+".matcher", "has no meaning for TCP")
		}
	case HTTP, HTTPS:
		c.urlPath(field+".path", h.Path)
		c.matcher(field+".matcher", h.Matcher, 200, 599, `codes from 200 to 599 like "200", "200,302" or "200-299"`)
	case GRPC:
		c.urlPath(field+".path", h.Path)
		c.matcher(field+".matcher", h.Matcher, 0, 99, `gRPC's codes from 0 to 99 like "12", "0,12" or "0-99"`)
	}
	if h.ValidateCertificate && protocol != HTTPS && protocol != "" {
		c.fault(field+".validateCertificate", "has no meaning for %s", protocol)
	}
	if h.Timeout != nil && h.Interval != nil && *h.Timeout > *h.Interval {
		c.fault(field+".timeout", "%s is longer than the interval, %s", h.Timeout, h.Interval)
	}
}

// matcher judges the codes of a healthy answer: one, a list, a range, or a list of those.
func (c check) matcher(field, matcher string, least, most int, like string) {
	if matcher == "" {
		return
	}
	for part := range strings.SplitSeq(matcher, ",") {
		low, high, isRange := strings.Cut(part, "-")
		if !isRange {
			high = low
		}
		a, errA := strconv.Atoi(low)
		b, errB := strconv.Atoi(high)
		if errA != nil || errB != nil || a < least || b > most || a > b {
			c.fault(field, "must be %s, not %.40q", like, matcher)
			return
		}
	}
}

// regionAddress is what an accelerator's endpoint is told apart by when it is checked.
type regionAddress struct {
	region  string
	address netip.AddrPort
}

// endpointChecks judges how the endpoints of a group are checked. One endpoint of an accelerator, checked at one port, has
// one verdict: so its listeners must not want it checked in different ways.
func (c check) endpointChecks(field string, g *EndpointGroup, checks map[regionAddress]*EndpointGroup) {
	if g.HealthCheckProtocol == TCP && g.HealthCheckPath != "" {
		c.fault(field+".healthCheckPath", "has no meaning for TCP")
	}
	c.urlPath(field+".healthCheckPath", g.HealthCheckPath)
	for i, e := range g.Endpoints {
		if !e.Address.IsValid() {
			continue
		}
		key := regionAddress{g.Region, g.CheckAddr(e)}
		first := checks[key]
		if first == nil {
			checks[key] = g
			continue
		}
		if first != g && !first.checksAlike(g) {
			c.fault(at(field+".endpoints", i)+".address", "%s is checked at port %d in another way by another listener", e.Address, g.HealthCheckPort)
		}
	}
}

func (g *EndpointGroup) checksAlike(o *EndpointGroup) bool {
	return g.HealthCheckProtocol == o.HealthCheckProtocol && g.HealthCheckPath == o.HealthCheckPath && g.ThresholdCount == o.ThresholdCount &&
		(g.HealthCheckInterval == nil || o.HealthCheckInterval == nil || *g.HealthCheckInterval == *o.HealthCheckInterval)
}
