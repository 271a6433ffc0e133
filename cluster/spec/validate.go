package spec

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// validate judges what the rules on the types cannot: fields that depend on each other, and on other resources.
func (b *builder) validate() {
	shared := b.standing()
	for i, resource := range b.resources {
		check{b, i}.resource(resource, &shared)
	}
	b.portClaims(shared.ports)
	b.loops()
}

// check judges one document's resource.
type check struct {
	*builder
	document int
}

func (c check) resource(resource any, shared *claims) {
	switch r := resource.(type) {
	case *Region:
		c.region(r, shared)
	case *HealthCheck:
		c.healthCheck(r)
	case *TargetGroup:
		c.targetGroup(r)
	case *SecurityGroup:
		c.securityGroup(r)
	case *LoadBalancer:
		c.loadBalancer(r, shared)
	case *CachePolicy:
		c.cachePolicy(r)
	case *Distribution:
		c.distribution(r, shared)
	case *Accelerator:
		c.accelerator(r, shared)
	case *CidrCollection:
		c.cidrCollection(r)
	case *ClientPlace:
		c.clientPlace(r)
	case *TsigKey:
		c.tsigKey(r)
	case *HostedZone:
		c.hostedZone(r)
	case *Certificate:
		c.certificate(r)
	case *Cluster:
		c.cluster(r)
	}
}

// fault tells a fault, unless the field, or one within or around it, could not be decoded: that was told already.
func (c check) fault(field, format string, args ...any) {
	if !c.told(field) {
		c.builder.fault(c.document, 0, field, fmt.Sprintf(format, args...))
	}
}

// told says whether a field, or one within or around it, could not be decoded.
func (c check) told(field string) bool {
	return slices.ContainsFunc(c.decodeFaults[c.document], func(told string) bool {
		return within(field, told) || within(told, field)
	})
}

// near is the candidate that a wrong word was meant to be, for the end of a message. Many faults cost no more than few.
func (c check) near(word string, candidates iter.Seq[string]) string {
	if c.found.full() {
		return ""
	}
	return near(word, slices.Collect(candidates))
}

// within says whether a path is another or lies below it.
func within(path, above string) bool {
	rest, ok := strings.CutPrefix(path, above)
	return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
}

// at is the path of a list's item.
func at(list string, i int) string { return list + "[" + strconv.Itoa(i) + "]" }

// find looks up what a field refers to, or tells that there is none such.
func find[T any](c check, field, kind string, table map[string]*T, name string) *T {
	if name == "" {
		return nil
	}
	if r, ok := table[name]; ok {
		return r
	}
	if _, ok := c.declared[Ref{kind, name}]; ok || c.o.Partial {
		return nil // it is declared, only not readable; or elsewhere
	}
	if c.document >= len(c.resources) && c.gone[Ref{kind, name}] {
		c.found.add(c.document, Fault{Kind: kind, Name: name, Message: fmt.Sprintf("is used by %s (%s)", c.docs[c.document].Ref(), field)})
		return nil
	}
	c.fault(field, "no %s %.80q%s", words[kind], name, c.near(name, maps.Keys(table)))
	return nil
}

// words are the kinds as sentences say them.
var words = map[string]string{
	"Region":        "region",
	"HealthCheck":   "health check",
	"TargetGroup":   "target group",
	"SecurityGroup": "security group",
	"LoadBalancer":  "load balancer",
	"CachePolicy":   "cache policy",
	"Distribution":  "distribution",
	"Accelerator":   "accelerator",

	"CidrCollection": "CIDR collection",
	"TsigKey":        "TSIG key",
}

func (c check) inRegion(field, region string) {
	find(c, field, "Region", c.spec.Regions, region)
}

// name judges the name of a resource that is not a domain.
func (c check) name(name string) {
	const longest = 128
	ok := name != "" && len(name) <= longest
	for i, r := range []byte(name) {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		ok = ok && (letter || i > 0 && strings.IndexByte("-_.", r) >= 0)
	}
	if !ok {
		c.fault("name", "must be 1–%d letters, digits, hyphens, underscores and dots, the first a letter or digit", longest)
	}
}

// label judges a name that becomes part of host names.
func (c check) label(field, name string) {
	const longest = 60 // with ns- before it, a DNS label
	ok := name != "" && len(name) <= longest && name[0] != '-' && name[len(name)-1] != '-'
	for _, r := range []byte(name) {
		ok = ok && (r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-')
	}
	if !ok {
		c.fault(field, "must be 1–%d small letters, digits and hyphens, a hyphen neither first nor last", longest)
	}
}

func (c check) country(field, code string) {
	if code != "" && !isCountry(code) {
		c.fault(field, "must be a country of ISO 3166-1 in two capitals, not %.10q", code)
	}
}

func (c check) region(r *Region, shared *claims) {
	c.label("name", r.Name)
	c.country("country", r.Country)
	if r.Location == nil {
		c.fault("location", "is required: %.40q is not a region of AWS%s", r.Name, c.near(r.Name, maps.Keys(awsRegions)))
	}
	for i, p := range r.POPs {
		field := at("pops", i) + ".name"
		c.label(field, p.Name)
		if first, taken := shared.pops[p.Name]; taken {
			c.fault(field, "POP %.80q is already in %s", p.Name, first)
			continue
		}
		shared.pops[p.Name] = Ref{"Region", r.Name}
	}
}

const noHost = "%s is not the address of a host"

// unicast judges what is to be opened or dialled. Earlier releases took the last two, which no socket takes.
func (c check) unicast(field string, a netip.Addr) {
	if a.IsUnspecified() || a.IsMulticast() {
		c.fault(field, noHost, a)
	} else {
		c.lateUnicast(field, a)
	}
}

// lateUnicast is unicast where earlier releases took any address.
func (c check) lateUnicast(field string, a netip.Addr) {
	if a.IsUnspecified() || a.IsMulticast() || a == broadcast || a.Is6() && a.IsLinkLocalUnicast() && a.Zone() == "" {
		c.late(field, a, noHost, a)
	}
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

func (c check) urlPath(field, path string) {
	switch {
	case path == "":
	case path[0] != '/':
		c.fault(field, "must begin with /")
	case strings.ContainsAny(path, " #") || strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r > '~' }):
		c.fault(field, "must be a path as a request line has it: no spaces, no fragment, only ASCII")
	}
}

// host judges a host name or address without a port.
func (c check) host(field, host string) {
	if _, err := netip.ParseAddr(host); err == nil {
		return
	}
	if problem := domainProblem(host); problem != "" {
		c.fault(field, "%.80q is not a host name: %s", host, problem)
	}
}

// authority judges host or host:port.
func (c check) authority(field, authority string) {
	host, port, hasPort := strings.Cut(authority, ":")
	if bracketed, rest, ok := strings.Cut(authority, "]"); ok {
		host, hasPort = strings.TrimPrefix(bracketed, "["), rest != ""
		port = strings.TrimPrefix(rest, ":")
	}
	if hasPort && !isPort(port) {
		c.fault(field, "port %.10q must be 1–65535", port)
	}
	c.host(field, host)
}

func isPort(text string) bool {
	n, err := strconv.ParseUint(text, 10, 16)
	return err == nil && n > 0 && text[0] != '0'
}

func (c check) targetGroup(g *TargetGroup) {
	c.name(g.Name)
	c.inRegion("region", g.Region)
	seen := map[netip.AddrPort]bool{}
	for i, t := range g.Targets {
		c.unicast(at("targets", i)+".address", t.Address)
		if t.Port == 0 && !c.told("port") {
			c.fault(at("targets", i)+".port", "is required where the target group has no port")
			continue
		}
		if t.Address.IsValid() && seen[t.AddrPort()] {
			c.fault(at("targets", i), "target %s is in the group twice", t.AddrPort())
		}
		seen[t.AddrPort()] = true
	}
	c.quicServers(g)
	if g.ProxyProtocolV2 && g.Protocol == HTTP {
		c.fault("proxyProtocolV2", "is for protocols TCP and UDP: requests say in X-Forwarded-For from whom they are")
	}
	c.targetHealthCheck("healthCheck", &g.HealthCheck)
}

// quicServers judges what servers of QUIC are called.
func (c check) quicServers(g *TargetGroup) {
	seen := map[[8]byte]bool{}
	for i, t := range g.Targets {
		if t.QUICServerID == "" {
			continue
		}
		field := at("targets", i) + ".quicServerID"
		id, ok := t.QUICServer()
		switch {
		case !ok:
			c.fault(field, "must be 0x and 16 lower-case hexadecimal digits, not %.40q", t.QUICServerID)
		case g.Protocol != "" && g.Protocol != UDP:
			c.fault(field, "is for protocol UDP")
		case seen[id]:
			c.fault(field, "%s is another target's", t.QUICServerID)
		default:
			seen[id] = true
		}
	}
}

func (c check) loadBalancer(lb *LoadBalancer, shared *claims) {
	c.name(lb.Name)
	c.inRegion("region", lb.Region)
	application := lb.Type == ApplicationLoadBalancer
	protocol, least, most := TCP, 60*time.Second, 6000*time.Second
	if application {
		protocol, least, most = HTTP, time.Second, 4000*time.Second
	}
	if lb.IdleTimeout != nil && (lb.IdleTimeout.Std() < least || lb.IdleTimeout.Std() > most) {
		c.fault("idleTimeout", "must be %s–%s for type %s, not %s", Duration(least), Duration(most), lb.Type, lb.IdleTimeout)
	}
	if lb.DesyncMitigationMode != "" && !application {
		c.fault("desyncMitigationMode", "is for type application only")
	}
	c.securityGroups("securityGroups", lb.SecurityGroups)
	ports := map[uint16]bool{}
	for i := range lb.Listeners {
		l, field := &lb.Listeners[i], at("listeners", i)
		if l.Protocol != "" && l.Protocol != protocol {
			c.fault(field+".protocol", "must be %s for type %s, not %s", protocol, lb.Type, l.Protocol)
		}
		if l.Port != 0 && ports[l.Port] {
			c.fault(field+".port", "port %d has a listener already", l.Port)
		}
		door := regionPort{lb.Region, l.Port}
		if first, taken := shared.doors[door]; taken && l.Port != 0 && !ports[l.Port] {
			c.fault(field+".port", "port %d of %s is %s's already", l.Port, lb.Region, first)
		} else {
			shared.doors[door] = Ref{"LoadBalancer", lb.Name}
		}
		ports[l.Port] = true
		if !application && len(l.Rules) > 0 {
			c.fault(field+".rules", "are only for type application")
			continue
		}
		c.rules(lb, protocol, field+".rules", l.Rules)
		c.action(lb, protocol, field+".default", l.Default)
	}
}

func (c check) rules(lb *LoadBalancer, protocol, list string, rules []ListenerRule) {
	priorities := map[int]bool{}
	for i := range rules {
		r, field := &rules[i], at(list, i)
		if r.Priority != 0 && priorities[r.Priority] {
			c.fault(field+".priority", "%d is taken by another rule of the listener", r.Priority)
		}
		priorities[r.Priority] = true
		c.conditions(field+".conditions", r.Conditions)
		c.action(lb, protocol, field+".action", r.Action)
	}
}

// conditions judges a rule's conditions by ALB's limits.
func (c check) conditions(list string, conditions []Condition) {
	const longest, mostValues, mostWildcards = 128, 5, 5
	seen := map[string]bool{}
	values, wildcards := 0, 0
	for i := range conditions {
		for _, part := range []struct {
			name   string
			values []string
		}{
			{"hostHeader", conditions[i].HostHeader},
			{"pathPattern", conditions[i].PathPattern},
			{"httpRequestMethod", conditions[i].HTTPRequestMethod},
		} {
			if part.values == nil {
				continue
			}
			field := at(list, i) + "." + part.name
			if seen[part.name] {
				c.fault(field, "may be in one condition of a rule only")
			}
			seen[part.name] = true
			for j, v := range part.values {
				values++
				switch {
				case v == "" || len(v) > longest:
					c.fault(at(field, j), "must be 1–%d bytes long", longest)
				case part.name != "httpRequestMethod":
					wildcards += strings.Count(v, "*") + strings.Count(v, "?")
				case len(v) > 40 || !isMethod(v):
					c.fault(at(field, j), "must be a method in capitals, not %.40q", v)
				}
			}
		}
	}
	if values > mostValues {
		c.fault(list, "have %d values: at most %d in a rule", values, mostValues)
	}
	if wildcards > mostWildcards {
		c.fault(list, "have %d wildcards: at most %d in a rule", wildcards, mostWildcards)
	}
}

func isMethod(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return (r < 'A' || r > 'Z') && r != '-' && r != '_' })
}

func (c check) action(lb *LoadBalancer, protocol, field string, a Action) {
	if protocol == TCP && (a.FixedResponse != nil || a.Redirect != nil) {
		c.fault(field, "must be forward for type network")
		return
	}
	if g := find(c, field+".forward", "TargetGroup", c.spec.TargetGroups, a.Forward); g != nil {
		switch {
		case g.Region != "" && lb.Region != "" && g.Region != lb.Region:
			c.fault(field+".forward", "target group %s is in %s, not in %s", g.Name, g.Region, lb.Region)
		case g.Protocol != "" && g.Protocol != protocol:
			c.fault(field+".forward", "target group %s is for %s, not for %s", g.Name, g.Protocol, protocol)
		}
	}
	if f := a.FixedResponse; f != nil && f.StatusCode >= 300 && f.StatusCode <= 399 {
		c.fault(field+".fixedResponse.statusCode", "must be 2xx, 4xx or 5xx, not %d", f.StatusCode)
	}
	if a.Redirect != nil {
		c.redirect(field+".redirect", a.Redirect)
	}
}

func (c check) redirect(field string, r *Redirect) {
	keeps := func(value, own string) bool { return value == "" || value == own }
	if keeps(r.Protocol, "#{protocol}") && keeps(r.Host, "#{host}") && keeps(r.Port, "#{port}") && keeps(r.Path, "/#{path}") {
		c.fault(field, "would go in a circle: at least one of protocol, host, port and path must differ from the request's")
	}
	if r.Port != "" && r.Port != "#{port}" && !isPort(r.Port) {
		c.fault(field+".port", "must be 1–65535 or #{port}, not %.20q", r.Port)
	}
	if r.Path != "" && r.Path[0] != '/' {
		c.fault(field+".path", "must begin with /")
	}
	if strings.HasPrefix(r.Query, "?") {
		c.fault(field+".query", "must not begin with ?")
	}
	for _, part := range []struct{ name, value string }{{"host", r.Host}, {"path", r.Path}, {"query", r.Query}} {
		rest := part.value
		for _, own := range []string{"#{protocol}", "#{host}", "#{port}", "#{path}", "#{query}"} {
			rest = strings.ReplaceAll(rest, own, "")
		}
		if strings.Contains(rest, "#{") {
			c.fault(field+"."+part.name, "knows only #{protocol}, #{host}, #{port}, #{path} and #{query}")
		}
		if strings.ContainsFunc(rest, func(r rune) bool { return r <= ' ' || r > '~' }) {
			c.fault(field+"."+part.name, "must be ASCII without spaces")
		}
	}
}

func (c check) cachePolicy(p *CachePolicy) {
	c.name(p.Name)
	for _, ttl := range []struct {
		field string
		value *Duration
	}{{"minTTL", p.MinTTL}, {"defaultTTL", p.DefaultTTL}, {"maxTTL", p.MaxTTL}} {
		c.wholeSeconds(ttl.field, ttl.value)
	}
	if p.MinTTL != nil && p.DefaultTTL != nil && p.MaxTTL != nil && *p.MaxTTL < max(*p.MinTTL, *p.DefaultTTL) {
		c.fault("maxTTL", "%s is below minTTL, %s, or defaultTTL, %s", p.MaxTTL, p.MinTTL, p.DefaultTTL)
	}
	c.keyPart("headers", p.Headers, true)
	c.keyPart("cookies", p.Cookies, false)
	c.keyPart("queryStrings", p.QueryStrings, false)
}

func (c check) wholeSeconds(field string, d *Duration) {
	if d != nil && d.Std()%time.Second != 0 {
		c.fault(field, "must be whole seconds, not %s", d)
	}
}

func (c check) keyPart(field string, k KeyPart, headers bool) {
	const longest = 1024 // bytes of all names
	if headers && k.Behavior != KeyNone && k.Behavior != KeyWhitelist && k.Behavior != "" {
		c.fault(field+".behavior", "must be none or whitelist for headers, not %q", k.Behavior)
	}
	switch needs := k.Behavior == KeyWhitelist || k.Behavior == KeyAllExcept; {
	case needs && len(k.Items) == 0:
		c.fault(field+".items", "are required for behavior %s", k.Behavior)
	case !needs && len(k.Items) > 0:
		c.fault(field+".items", "are only for behavior whitelist or allExcept, not %s", k.Behavior)
	}
	seen, total := map[string]bool{}, 0
	for i, item := range k.Items {
		key := item
		if headers {
			key = strings.ToLower(item)
		}
		if headers && !isToken(item) || item == "" {
			c.fault(at(field+".items", i), "%.40q is not a name", item)
		} else if seen[key] {
			c.fault(at(field+".items", i), "%.40q is in the list twice", item)
		}
		seen[key] = true
		total += len(item)
	}
	if total > longest {
		c.fault(field+".items", "take %d bytes: at most %d", total, longest)
	}
}

// isToken says whether text is a token of RFC 9110, section 5.6.2, as header names are.
func isToken(text string) bool {
	return text != "" && !strings.ContainsFunc(text, func(r rune) bool {
		return r <= ' ' || r > '~' || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	})
}

func (c check) distribution(d *Distribution, shared *claims) {
	c.name(d.Name)
	for i, alias := range d.Aliases {
		field := at("aliases", i)
		if problem := domainProblem(strings.TrimPrefix(alias, "*.")); problem != "" {
			c.fault(field, "%.80q is not a host name: %s", alias, problem)
			continue
		}
		if first, taken := shared.hosts[alias]; taken {
			c.fault(field, "%s is already an alias of %s", alias, first)
			continue
		}
		shared.hosts[alias] = Ref{"Distribution", d.Name}
	}
	if strings.HasPrefix(d.DefaultRootObject, "/") {
		c.fault("defaultRootObject", "must not begin with /")
	}
	c.wholeSeconds("errorCachingMinTTL", d.ErrorCachingMinTTL)
	if name := d.CacheTagConfig.HeaderName; name != "" && !isToken(name) {
		c.fault("cacheTagConfig.headerName", "%.80q is not a header name", name)
	}
	origins := map[string]bool{}
	for i := range d.Origins {
		c.origin(at("origins", i), &d.Origins[i], origins)
	}
	if d.DefaultCacheBehavior.PathPattern != "" {
		c.fault("defaultCacheBehavior.pathPattern", "has no meaning: the default behavior is for all other paths")
	}
	c.behavior("defaultCacheBehavior", &d.DefaultCacheBehavior, origins)
	patterns := map[string]bool{}
	for i := range d.CacheBehaviors {
		behavior, field := &d.CacheBehaviors[i], at("cacheBehaviors", i)
		switch {
		case behavior.PathPattern == "":
			c.fault(field+".pathPattern", "is required")
		case patterns[behavior.PathPattern]:
			c.fault(field+".pathPattern", "%.80q has a behavior already", behavior.PathPattern)
		}
		patterns[behavior.PathPattern] = true
		c.behavior(field, behavior, origins)
	}
}

func (c check) origin(field string, o *Origin, seen map[string]bool) {
	if o.Name != "" && seen[o.Name] {
		c.fault(field+".name", "origin %.80q is declared twice", o.Name)
	}
	seen[o.Name] = true
	if o.URL != "" {
		c.originURL(field+".url", o.URL)
	}
	asked := map[string]bool{}
	for i, name := range o.LoadBalancers {
		item := at(field+".loadBalancers", i)
		if asked[name] {
			c.fault(item, "load balancer %.80q is in the list twice", name)
		}
		asked[name] = true
		if lb := find(c, item, "LoadBalancer", c.spec.LoadBalancers, name); lb != nil && lb.Type == NetworkLoadBalancer {
			c.fault(item, "load balancer %s is of type network: an origin needs type application", name)
		}
	}
	if o.HostHeader != "" {
		c.authority(field+".hostHeader", o.HostHeader)
	}
	shield := field + ".originShield.originShieldRegion"
	switch {
	case o.OriginShield.OriginShieldRegion != "":
		c.inRegion(shield, o.OriginShield.OriginShieldRegion)
	case o.OriginShield.Enabled && !c.told(shield):
		c.fault(shield, "is required where the shield is enabled")
	}
}

func (c check) originURL(field, text string) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		c.fault(field, "must be like http://origin.example.com:8080, not %.80q", text)
	case u.User != nil || u.Path != "" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.HasSuffix(text, "#"):
		c.fault(field, "must be a scheme and an authority only: %s://%s", u.Scheme, u.Host)
	default:
		c.authority(field, u.Host)
		if a, err := netip.ParseAddr(u.Hostname()); err == nil {
			c.lateUnicast(field, a.Unmap())
		}
	}
}

func (c check) behavior(field string, b *CacheBehavior, origins map[string]bool) {
	if b.TargetOrigin != "" && !origins[b.TargetOrigin] {
		c.fault(field+".targetOrigin", "no origin %.80q%s", b.TargetOrigin, c.near(b.TargetOrigin, maps.Keys(origins)))
	}
	if !slices.ContainsFunc(methodSets(), func(set []string) bool { return slices.Equal(set, b.AllowedMethods) }) {
		c.fault(field+".allowedMethods", "must be [GET, HEAD], [GET, HEAD, OPTIONS] or [GET, HEAD, OPTIONS, PUT, POST, PATCH, DELETE]")
	}
	find(c, field+".cachePolicy", "CachePolicy", c.spec.CachePolicies, b.CachePolicy)
}

// MaxAcceleratorPorts bounds the ports of one accelerator that are opened, of custom routing AcceleratorListener.OpenPorts: each is a socket on every
// edge node, for each address.
const MaxAcceleratorPorts = 4096

// maxAcceleratorDoors bounds those ports times the addresses: all of them on four addresses, two of each family, as Global Accelerator has.
const maxAcceleratorDoors = 4 * MaxAcceleratorPorts

func (c check) accelerator(a *Accelerator, shared *claims) {
	const mostGroups = 42
	c.name(a.Name)
	seen := map[netip.Addr]bool{}
	for i, address := range a.IPAddresses {
		c.unicast(at("ipAddresses", i), address)
		if seen[address] {
			c.fault(at("ipAddresses", i), "%s is in the list twice", address)
		}
		seen[address] = true
	}
	a.claim(c.document, shared.ports)
	checks := map[regionAddress]*EndpointGroup{}
	groups, ports := 0, 0
	for i := range a.Listeners {
		l, field := &a.Listeners[i], at("listeners", i)
		if l.FastOpen && l.Protocol == UDP {
			c.fault(field+".fastOpen", "is for protocol TCP")
		}
		if l.LargeDatagrams != "" && l.Protocol == TCP {
			c.fault(field+".largeDatagrams", "is for protocol UDP")
		}
		for j, r := range l.PortRanges {
			item := at(field+".portRanges", j)
			if r.ToPort < r.FromPort {
				c.fault(item, "toPort %d is below fromPort %d", r.ToPort, r.FromPort)
				continue
			}
			if a.Type != CustomRoutingAccelerator {
				ports += int(r.ToPort) - int(r.FromPort) + 1
			}
		}
		regions := map[string]bool{}
		for j := range l.EndpointGroups {
			g, item := &l.EndpointGroups[j], at(field+".endpointGroups", j)
			if g.Region != "" && regions[g.Region] {
				c.fault(item+".region", "%.80q has an endpoint group already", g.Region)
			}
			regions[g.Region] = true
			c.endpointGroup(item, l.Protocol, g)
			c.preservation(item, a, g)
			c.portOverrides(item, a, l, g)
			c.endpointChecks(item, g, checks)
		}
		c.quicListener(field, l)
		c.customRouting(field, a, l)
		if a.Type == CustomRoutingAccelerator {
			ports += len(l.OpenPorts())
		}
		groups += len(l.EndpointGroups)
	}
	if ports > MaxAcceleratorPorts {
		c.fault("listeners", "open %d ports: at most %d in an accelerator", ports, MaxAcceleratorPorts)
	} else if n := ports * len(a.IPAddresses); n > maxAcceleratorDoors {
		c.late("listeners", n, "open %d ports on %d addresses: at most %d in all", ports, len(a.IPAddresses), maxAcceleratorDoors)
	}
	if groups > mostGroups {
		c.fault("listeners", "have %d endpoint groups: at most %d in an accelerator", groups, mostGroups)
	}
}

func (c check) endpointGroup(field, protocol string, g *EndpointGroup) {
	c.inRegion(field+".region", g.Region)
	type same struct {
		targetGroup, loadBalancer string
		address                   netip.Addr
		subnet                    netip.Prefix
	}
	seen := map[same]bool{}
	for i, e := range g.Endpoints {
		item := at(field+".endpoints", i)
		region, of := "", ""
		if t := find(c, item+".targetGroup", "TargetGroup", c.spec.TargetGroups, e.TargetGroup); t != nil {
			region, of = t.Region, ".targetGroup"
			if t.Protocol != "" && protocol != "" && (t.Protocol == UDP) != (protocol == UDP) {
				c.fault(item+of, "target group %s is for %s, not for %s", t.Name, t.Protocol, protocol)
			}
		}
		if lb := find(c, item+".loadBalancer", "LoadBalancer", c.spec.LoadBalancers, e.LoadBalancer); lb != nil {
			region, of = lb.Region, ".loadBalancer"
			if lb.Type == ApplicationLoadBalancer {
				c.fault(item+of, "load balancer %s is of type application: an endpoint needs type network", lb.Name)
			} else if protocol == UDP {
				c.fault(item+of, "load balancer %s has no listeners for UDP: name a target group or an address", lb.Name)
			}
		}
		if region != "" && g.Region != "" && region != g.Region {
			c.fault(item+of, "is in %s, not in the endpoint group's %s", region, g.Region)
		}
		c.unicast(item+".address", e.Address)
		if e.Subnet.IsValid() {
			c.lateUnicast(item+".subnet", e.Subnet.Addr())
			if e.Subnet.Contains(broadcast) {
				c.lateUnicast(item+".subnet", broadcast)
			}
		}
		one := same{e.TargetGroup, e.LoadBalancer, e.Address, e.Subnet}
		if seen[one] {
			c.fault(item, "is in the endpoint group twice")
		}
		seen[one] = true
	}
}

// quicListener judges that an ID of a server of QUIC is one target group's wherever a listener leads, as with NLB.
func (c check) quicListener(field string, l *AcceleratorListener) {
	of := map[[8]byte]string{}
	for j := range l.EndpointGroups {
		for i, e := range l.EndpointGroups[j].Endpoints {
			g := c.spec.TargetGroups[e.TargetGroup]
			if g == nil {
				continue
			}
			for _, t := range g.Targets {
				id, ok := t.QUICServer()
				switch other := of[id]; {
				case !ok:
				case other == "":
					of[id] = g.Name
				case other != g.Name:
					c.fault(at(at(field+".endpointGroups", j)+".endpoints", i)+".targetGroup", "quicServerID %s of target group %s is one of target group %s",
						t.QUICServerID, g.Name, other)
					of[id] = g.Name
				}
			}
		}
	}
}

// preservation judges where targets are to see the clients' addresses.
func (c check) preservation(field string, a *Accelerator, g *EndpointGroup) {
	for i, e := range g.Endpoints {
		if !e.ClientIPPreservation {
			continue
		}
		item, address := at(field+".endpoints", i)+".clientIPPreservationEnabled", e.Address
		if e.Subnet.IsValid() {
			address = e.Subnet.Addr()
		}
		t := c.spec.TargetGroups[e.TargetGroup]
		switch {
		case e.LoadBalancer != "":
			c.fault(item, "is for target groups, addresses and subnets: name the target group of load balancer %.80s", e.LoadBalancer)
		case t != nil && t.ProxyProtocolV2:
			c.fault(item, "target group %s is told the client's address by proxyProtocolV2: one of the two", t.Name)
		case address.IsValid():
			for _, own := range a.IPAddresses {
				if own.IsValid() && own.Unmap().Is4() != address.Unmap().Is4() {
					c.fault(item, "clients of %v cannot have their address toward %v: they are of two families", own, address)
					break
				}
			}
		}
	}
}

// portOverrides are judged as Global Accelerator does: a port of the listener goes to a port that no listener of the accelerator has, and no two go to
// one.
func (c check) portOverrides(field string, a *Accelerator, l *AcceleratorListener, g *EndpointGroup) {
	if len(g.PortOverrides) > 0 && !slices.ContainsFunc(g.Endpoints, func(e Endpoint) bool { return e.TargetGroup == "" }) {
		c.fault(field+".portOverrides", "lead nowhere: target groups have the ports of their targets")
	}
	from, to := map[uint16]bool{}, map[uint16]bool{}
	for i, o := range g.PortOverrides {
		item := at(field+".portOverrides", i)
		switch {
		case o.ListenerPort == 0 || o.EndpointPort == 0: // told
		case !l.Has(o.ListenerPort):
			c.fault(item+".listenerPort", "%d is no port of the listener", o.ListenerPort)
		case from[o.ListenerPort]:
			c.fault(item+".listenerPort", "%d is overridden already", o.ListenerPort)
		case to[o.EndpointPort]:
			c.fault(item+".endpointPort", "another port leads to %d already", o.EndpointPort)
		case slices.ContainsFunc(a.Listeners, func(l AcceleratorListener) bool { return l.Has(o.EndpointPort) }):
			c.fault(item+".endpointPort", "%d is a port of a listener of the accelerator", o.EndpointPort)
		}
		from[o.ListenerPort], to[o.EndpointPort] = true, true
	}
}

// claim adds the ports that an accelerator takes of its addresses.
func (a *Accelerator) claim(document int, ports map[protocolAddress][]portClaim) {
	for i, address := range a.IPAddresses {
		if !address.IsValid() || slices.Contains(a.IPAddresses[:i], address) {
			continue
		}
		for j := range a.Listeners {
			key := protocolAddress{address, a.Listeners[j].Protocol}
			for k, r := range a.Listeners[j].PortRanges {
				if r.ToPort >= r.FromPort {
					field := at(at("listeners", j)+".portRanges", k)
					ports[key] = append(ports[key], portClaim{r, document, len(ports[key]), field})
				}
			}
		}
	}
}

// portClaims tells where two listeners would take the same port of one address.
func (b *builder) portClaims(claims map[protocolAddress][]portClaim) {
	for _, key := range slices.SortedFunc(maps.Keys(claims), protocolAddress.compare) {
		sorted := claims[key]
		slices.SortStableFunc(sorted, func(x, y portClaim) int {
			return cmp.Or(cmp.Compare(x.FromPort, y.FromPort), cmp.Compare(x.order, y.order))
		})
		widest := sorted[0]
		for _, claim := range sorted[1:] {
			if claim.FromPort <= widest.ToPort {
				first, second := widest, claim
				if second.order < first.order {
					first, second = second, first
				}
				check{b, second.document}.fault(second.field, "port %d of %s is already taken by %s, %s",
					claim.FromPort, key.address, b.docs[first.document].Ref(), first.field)
			}
			if claim.ToPort > widest.ToPort {
				widest = claim
			}
		}
	}
}
