package spec

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// managedPrefix begins the names of cache policies that are in every spec and that no document may declare.
const managedPrefix = "Managed-"

// managedCachePolicies are CloudFront's managed cache policies, with CloudFront's numbers.
func managedCachePolicies() []*CachePolicy {
	const day, year = 86400, 31536000 // s
	none := KeyPart{Behavior: KeyNone}
	all := KeyPart{Behavior: KeyAll}
	policy := func(name string, least, normal, most *Duration, headers, cookies KeyPart) *CachePolicy {
		return &CachePolicy{Name: name, MinTTL: least, DefaultTTL: normal, MaxTTL: most, Headers: headers, Cookies: cookies, QueryStrings: none}
	}
	return []*CachePolicy{
		policy("Managed-CachingOptimized", seconds(1), seconds(day), seconds(year), none, none),
		policy("Managed-CachingOptimizedForUncompressedObjects", seconds(1), seconds(day), seconds(year), none, none),
		policy("Managed-CachingDisabled", seconds(0), seconds(0), seconds(0), none, none),
		policy("Managed-UseOriginCacheControlHeaders", seconds(0), seconds(0), seconds(year), KeyPart{
			Behavior: KeyWhitelist,
			Items:    []string{"Host", "Origin", "X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"},
		}, all),
	}
}

func seconds(n int) *Duration {
	d := Duration(time.Duration(n) * time.Second)
	return &d
}

// complete fills in the defaults that depend on other fields; those that do not are on the types. It takes
// resources that are not valid.
func complete(resource any) {
	switch r := resource.(type) {
	case *Region:
		r.complete()
	case *HealthCheck:
		r.complete()
	case *TargetGroup:
		r.complete()
	case *SecurityGroup:
		r.complete()
	case *LoadBalancer:
		r.complete()
	case *CachePolicy:
		r.complete()
	case *Distribution:
		r.complete()
	case *Accelerator:
		r.complete()
	case *HostedZone:
		r.complete()
	}
}

func (r *Region) complete() {
	aws, ok := awsRegions[r.Name]
	if !ok {
		return
	}
	if r.City == "" {
		r.City = aws.city
	}
	if r.Country == "" {
		r.Country = aws.country
	}
	if r.Location == nil {
		r.Location = &Location{aws.latitude, aws.longitude}
	}
}

func (h *HealthCheck) complete() {
	switch h.Type {
	case Calculated:
		return // nothing is probed
	case HTTP, HTTPStringMatch:
		h.Port = cmp.Or(h.Port, 80)
		h.ResourcePath = cmp.Or(h.ResourcePath, "/")
	case HTTPS, HTTPSStringMatch:
		h.Port = cmp.Or(h.Port, 443)
		h.ResourcePath = cmp.Or(h.ResourcePath, "/")
		if h.EnableSNI == nil {
			yes := true
			h.EnableSNI = &yes
		}
	case GRPC:
		h.ResourcePath = cmp.Or(h.ResourcePath, GRPCHealthPath)
	}
	if h.RequestInterval == nil {
		h.RequestInterval = seconds(30)
	}
	h.FailureThreshold = cmp.Or(h.FailureThreshold, 3)
}

func (g *TargetGroup) complete() {
	for i := range g.Targets {
		if g.Targets[i].Port == 0 {
			g.Targets[i].Port = g.Port
		}
	}
	h := &g.HealthCheck
	if h.Protocol == "" {
		h.Protocol = g.Protocol
		if g.Protocol == UDP {
			h.Protocol = TCP // what hears no datagram says nothing
		}
	}
	switch h.Protocol {
	case HTTP, HTTPS:
		h.Path = cmp.Or(h.Path, "/")
		h.Matcher = cmp.Or(h.Matcher, "200")
	case GRPC:
		h.Path = cmp.Or(h.Path, GRPCHealthPath)
		h.Matcher = cmp.Or(h.Matcher, "12")
	}
	if h.Timeout == nil {
		h.Timeout = seconds(10)
		if h.Protocol == HTTP || h.Protocol == GRPC {
			h.Timeout = seconds(6)
		}
		if h.Interval != nil { // ELB's intervals are never below its timeouts; ours may be
			*h.Timeout = min(*h.Timeout, *h.Interval)
		}
	}
}

func (lb *LoadBalancer) complete() {
	if lb.IdleTimeout == nil {
		lb.IdleTimeout = seconds(60)
		if lb.Type == NetworkLoadBalancer {
			lb.IdleTimeout = seconds(350)
		}
	}
}

// complete follows CloudFront: a minimum above the default time to live raises that, and both raise the maximum
// where it is not given. (A maximum below the default day lowers the default where that is not given.)
func (p *CachePolicy) complete() {
	if p.MinTTL == nil {
		return // its own fault is told
	}
	const day, year = 86400, 31536000 // s
	if p.DefaultTTL == nil {
		p.DefaultTTL = seconds(day)
		if p.MaxTTL != nil {
			*p.DefaultTTL = min(*p.DefaultTTL, *p.MaxTTL)
		}
	}
	*p.DefaultTTL = max(*p.DefaultTTL, *p.MinTTL)
	if p.MaxTTL == nil {
		p.MaxTTL = seconds(year)
		*p.MaxTTL = max(*p.MaxTTL, *p.DefaultTTL)
	}
}

// methodSets are the sets of methods that CloudFront lets a behaviour allow.
func methodSets() [][]string {
	return [][]string{
		{"GET", "HEAD"},
		{"GET", "HEAD", "OPTIONS"},
		{"GET", "HEAD", "OPTIONS", "PUT", "POST", "PATCH", "DELETE"},
	}
}

func (d *Distribution) complete() {
	for i := range d.Aliases {
		d.Aliases[i] = strings.ToLower(d.Aliases[i])
	}
	d.DefaultCacheBehavior.complete()
	for i := range d.CacheBehaviors {
		d.CacheBehaviors[i].complete()
	}
}

// complete puts allowed methods in AWS's order.
func (b *CacheBehavior) complete() {
	if b.AllowedMethods == nil {
		b.AllowedMethods = methodSets()[0]
		return
	}
	written := slices.Sorted(slices.Values(b.AllowedMethods))
	for _, set := range methodSets() {
		if slices.Equal(written, slices.Sorted(slices.Values(set))) {
			b.AllowedMethods = set
		}
	}
}

func (a *Accelerator) complete() {
	for i := range a.Listeners {
		l := &a.Listeners[i]
		idle := 340
		if l.Protocol == UDP {
			idle = 30
			l.LargeDatagrams = cmp.Or(l.LargeDatagrams, LargeByStream)
		}
		if l.IdleTimeout == nil {
			l.IdleTimeout = seconds(idle)
		}
		for j := range l.PortRanges {
			if r := &l.PortRanges[j]; r.ToPort == 0 {
				r.ToPort = r.FromPort
			}
		}
		for j := range l.EndpointGroups {
			g := &l.EndpointGroups[j]
			if g.HealthCheckPort == 0 && len(l.PortRanges) > 0 {
				g.HealthCheckPort = l.PortRanges[0].FromPort
			}
			for k := range g.DestinationConfigurations {
				if r := &g.DestinationConfigurations[k]; r.ToPort == 0 {
					r.ToPort = r.FromPort
				}
			}
			if g.HealthCheckProtocol != TCP {
				g.HealthCheckPath = cmp.Or(g.HealthCheckPath, "/")
			}
		}
	}
}

// complete makes the names in records and name servers absolute: a domain name in a value is absolute with or
// without its trailing dot (Route 53).
func (z *HostedZone) complete() {
	for i := range z.NameServers {
		z.NameServers[i] = absolute(z.NameServers[i])
	}
}

// defaultTTL is that of a record that says none: the default of Route 53's console.
var defaultTTL = seconds(300)

// complete gives the record its TTL, and its values their canonical form.
func (r *Record) complete() {
	if r.TTL == nil && r.Alias == nil {
		r.TTL = defaultTTL
	}
	for j, value := range r.Values {
		r.Values[j] = completeValue(r.Type, value)
	}
}
