package spec

import (
	"net/netip"
	"time"
)

// Spec is all resources at one revision: what the network should do. It is immutable:
// it is built whole (Build), shared by pointer, and never changed.
type Spec struct {
	// Revision counts the agreed changes: 0 is the empty spec before the first.
	Revision uint64

	Regions       map[string]*Region
	TargetGroups  map[string]*TargetGroup
	LoadBalancers map[string]*LoadBalancer
	HealthChecks  map[string]*HealthCheck
	Distributions map[string]*Distribution
	CachePolicies map[string]*CachePolicy // the operator's and the managed ones
	Accelerators  map[string]*Accelerator
	HostedZones   map[string]*HostedZone
}

// Duration is written in YAML as AWS writes it, a number of seconds (`interval: 30`), or with
// a unit in Go's form (`interval: 500ms`).
type Duration time.Duration

// Std is the same length of time as the standard library's type.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// Region is a named part of the world with POPs and targets. Where the name is one of AWS's
// (ap-northeast-2), city, country and location have defaults.
type Region struct {
	Name     string    `yaml:"name"`
	City     string    `yaml:"city,omitempty"`
	Country  string    `yaml:"country,omitempty"` // ISO 3166-1 alpha-2
	Location *Location `yaml:"location,omitempty"`
	POPs     []POP     `yaml:"pops,omitempty"`
}

// POP is a named place with one or more nodes that share a cache. Its location is its region's
// unless it says its own.
type POP struct {
	Name     string    `yaml:"name"`
	Location *Location `yaml:"location,omitempty"`
}

// Location is a point on the earth in degrees: latitude −90…90, longitude −180…180.
type Location struct {
	Latitude  float64 `yaml:"latitude"`
	Longitude float64 `yaml:"longitude"`
}

// Protocols of target groups, listeners and health checks.
const (
	HTTP  = "HTTP"
	HTTPS = "HTTPS"
	TCP   = "TCP"
)

// TargetGroup is the targets of one region that serve one thing, and how they are checked
// (ELB target group).
type TargetGroup struct {
	Name     string   `yaml:"name"`
	Region   string   `yaml:"region"`
	Protocol string   `yaml:"protocol"`       // HTTP or TCP
	Port     uint16   `yaml:"port,omitempty"` // of targets that name none
	Targets  []Target `yaml:"targets,omitempty"`
	// HealthCheck has ELB's defaults for the protocol.
	HealthCheck TargetHealthCheck `yaml:"healthCheck,omitempty"`
	// LoadBalancingAlgorithm is round_robin (the default and, so far, the only one).
	LoadBalancingAlgorithm string `yaml:"loadBalancingAlgorithm,omitempty"`
	// DeregistrationDelay is how long flows to a target that has left the group may go on: 0–3600 s, default 300 s.
	DeregistrationDelay *Duration `yaml:"deregistrationDelay,omitempty"`
}

// Target is one server: an IP address and a port.
type Target struct {
	Address netip.Addr `yaml:"address"`
	Port    uint16     `yaml:"port,omitempty"` // 0: the group's, filled in by the defaults
}

// AddrPort is where the target listens.
func (t Target) AddrPort() netip.AddrPort { return netip.AddrPortFrom(t.Address, t.Port) }

// TargetHealthCheck is how the targets of a group are checked. Defaults are those of ELB's API model
// (interval 30 s; timeout 6 s for HTTP, 10 s for TCP; healthy 5, unhealthy 2; matcher 200, path /).
type TargetHealthCheck struct {
	Protocol string `yaml:"protocol,omitempty"` // HTTP or TCP; default the group's
	Port     uint16 `yaml:"port,omitempty"`     // 0: the target's own (traffic-port)
	Path     string `yaml:"path,omitempty"`
	Matcher  string `yaml:"matcher,omitempty"` // "200", "200,302", "200-299"
	// Interval is 1–300 s (ELB: 5–300 s).
	Interval           *Duration `yaml:"interval,omitempty"`
	Timeout            *Duration `yaml:"timeout,omitempty"`
	HealthyThreshold   int       `yaml:"healthyThreshold,omitempty"`   // 1–10
	UnhealthyThreshold int       `yaml:"unhealthyThreshold,omitempty"` // 1–10
}

// Load balancer types.
const (
	ApplicationLoadBalancer = "application"
	NetworkLoadBalancer     = "network"
)

// LoadBalancer is a regional load balancer: the nodes of its region with the origin role open its
// listeners (ALB for type application, NLB for type network).
type LoadBalancer struct {
	Name      string     `yaml:"name"`
	Region    string     `yaml:"region"`
	Type      string     `yaml:"type,omitempty"` // application (default) or network
	Listeners []Listener `yaml:"listeners"`
	// IdleTimeout ends a connection without traffic: default 60 s (application), 350 s (network).
	IdleTimeout *Duration `yaml:"idleTimeout,omitempty"`
}

// Listener is one port of a load balancer: HTTP for type application, TCP for type network.
type Listener struct {
	Protocol string         `yaml:"protocol"`
	Port     uint16         `yaml:"port"`
	Rules    []ListenerRule `yaml:"rules,omitempty"` // application only
	Default  Action         `yaml:"default"`
}

// ListenerRule is tried in the order of priority, lowest first; all its conditions must hold.
type ListenerRule struct {
	Priority   int         `yaml:"priority"` // 1–50000, unique in its listener
	Conditions []Condition `yaml:"conditions"`
	Action     Action      `yaml:"action"`
}

// Condition holds when one of the values of its one field matches. Patterns know * (any run) and
// ? (one character). Hosts compare without case; paths and methods with it (ALB).
type Condition struct {
	HostHeader        []string `yaml:"hostHeader,omitempty"`
	PathPattern       []string `yaml:"pathPattern,omitempty"`
	HTTPRequestMethod []string `yaml:"httpRequestMethod,omitempty"`
}

// Action is what becomes of a request or flow: exactly one field is set.
type Action struct {
	Forward       string         `yaml:"forward,omitempty"` // a target group
	FixedResponse *FixedResponse `yaml:"fixedResponse,omitempty"`
	Redirect      *Redirect      `yaml:"redirect,omitempty"`
}

// FixedResponse is an answer given without a target: status 2xx, 4xx or 5xx, body ≤ 1,024 bytes.
type FixedResponse struct {
	StatusCode  int    `yaml:"statusCode"`
	ContentType string `yaml:"contentType,omitempty"`
	MessageBody string `yaml:"messageBody,omitempty"`
}

// Redirect sends the client elsewhere. Empty fields keep the request's own; #{protocol}, #{host},
// #{port}, #{path} (without its leading slash) and #{query} stand for the request's (ALB).
type Redirect struct {
	StatusCode string `yaml:"statusCode"` // HTTP_301 or HTTP_302
	Protocol   string `yaml:"protocol,omitempty"`
	Host       string `yaml:"host,omitempty"`
	Port       string `yaml:"port,omitempty"`
	Path       string `yaml:"path,omitempty"`
	Query      string `yaml:"query,omitempty"`
}

// HealthCheck checks one endpoint from a few nodes of every region (Route 53 health check).
type HealthCheck struct {
	Name         string     `yaml:"name"`
	Type         string     `yaml:"type"` // HTTP, HTTPS or TCP
	IPAddress    netip.Addr `yaml:"ipAddress"`
	Port         uint16     `yaml:"port,omitempty"`         // default 80 for HTTP, 443 for HTTPS
	ResourcePath string     `yaml:"resourcePath,omitempty"` // default /
	// FullyQualifiedDomainName is sent as Host and SNI; the address is always IPAddress.
	FullyQualifiedDomainName string `yaml:"fullyQualifiedDomainName,omitempty"`
	// RequestInterval is 1–300 s, default 30 s (Route 53: 10 or 30 s).
	RequestInterval  *Duration `yaml:"requestInterval,omitempty"`
	FailureThreshold int       `yaml:"failureThreshold,omitempty"` // 1–10, default 3, both directions
	Inverted         bool      `yaml:"inverted,omitempty"`
	Disabled         bool      `yaml:"disabled,omitempty"` // counts as healthy
}

// Distribution is one site on the CDN (CloudFront distribution): its hosts, where its content comes
// from, and how each path is treated.
type Distribution struct {
	Name                 string          `yaml:"name"`
	Enabled              *bool           `yaml:"enabled,omitempty"` // default true
	Aliases              []string        `yaml:"aliases"`           // host names it answers for; *.example.com allowed
	DefaultRootObject    string          `yaml:"defaultRootObject,omitempty"`
	Origins              []Origin        `yaml:"origins"`
	DefaultCacheBehavior CacheBehavior   `yaml:"defaultCacheBehavior"`
	CacheBehaviors       []CacheBehavior `yaml:"cacheBehaviors,omitempty"` // the first that matches wins
	// ErrorCachingMinTTL is how long an error the origin sent is kept at least: default 10 s.
	ErrorCachingMinTTL *Duration `yaml:"errorCachingMinTTL,omitempty"`
}

// Origin is where content comes from: a URL, or load balancers of this network (exactly one of the two).
type Origin struct {
	Name string `yaml:"name"`
	// URL is the scheme and authority of an origin anywhere: http://origin.example.com:8080.
	URL string `yaml:"url,omitempty"`
	// LoadBalancers are asked nearest first; one that cannot be reached gives way to the next.
	// (CloudFront knows one domain name per origin, and pairs as origin groups.)
	LoadBalancers []string `yaml:"loadBalancers,omitempty"`
	// HostHeader is the Host that the origin is sent; default the URL's authority, or the viewer's Host for load balancers.
	HostHeader         string    `yaml:"hostHeader,omitempty"`
	ConnectionAttempts int       `yaml:"connectionAttempts,omitempty"` // 1–3, default 3
	ConnectionTimeout  *Duration `yaml:"connectionTimeout,omitempty"`  // 1–10 s, default 10 s
	ResponseTimeout    *Duration `yaml:"responseTimeout,omitempty"`    // 1–120 s, default 30 s
}

// Viewer protocol policies.
const (
	AllowAll        = "allow-all"
	RedirectToHTTPS = "redirect-to-https"
	HTTPSOnly       = "https-only"
)

// CacheBehavior is how the requests of one path pattern are treated.
type CacheBehavior struct {
	PathPattern          string   `yaml:"pathPattern,omitempty"` // empty in the default behaviour; * and ?
	TargetOrigin         string   `yaml:"targetOrigin"`
	ViewerProtocolPolicy string   `yaml:"viewerProtocolPolicy,omitempty"` // default allow-all
	AllowedMethods       []string `yaml:"allowedMethods,omitempty"`       // one of AWS's three sets; default GET, HEAD
	CachePolicy          string   `yaml:"cachePolicy,omitempty"`          // default Managed-CachingOptimized
}

// CachePolicy says what a cached response is keyed by and how long it may live (CloudFront cache policy).
type CachePolicy struct {
	Name         string    `yaml:"name"`
	MinTTL       *Duration `yaml:"minTTL,omitempty"`       // default 0
	DefaultTTL   *Duration `yaml:"defaultTTL,omitempty"`   // default 86,400 s
	MaxTTL       *Duration `yaml:"maxTTL,omitempty"`       // default 31,536,000 s
	Headers      KeyPart   `yaml:"headers,omitempty"`      // none (default), whitelist
	Cookies      KeyPart   `yaml:"cookies,omitempty"`      // none (default), whitelist, allExcept, all
	QueryStrings KeyPart   `yaml:"queryStrings,omitempty"` // none (default), whitelist, allExcept, all
}

// What of headers, cookies or query strings enters the cache key.
const (
	KeyNone      = "none"
	KeyWhitelist = "whitelist"
	KeyAllExcept = "allExcept"
	KeyAll       = "all"
)

// KeyPart is what of the headers, cookies or query strings enters the cache key, and so is forwarded.
type KeyPart struct {
	Behavior string   `yaml:"behavior,omitempty"`
	Items    []string `yaml:"items,omitempty"`
}

// Accelerator is a set of static addresses, announced at every POP, whose flows are carried to the
// nearest region with a healthy endpoint (Global Accelerator).
type Accelerator struct {
	Name        string                `yaml:"name"`
	Enabled     *bool                 `yaml:"enabled,omitempty"` // default true
	IPAddresses []netip.Addr          `yaml:"ipAddresses"`
	Listeners   []AcceleratorListener `yaml:"listeners"`
}

// Client affinities.
const (
	AffinityNone     = "NONE"      // 5-tuple
	AffinitySourceIP = "SOURCE_IP" // one client address, one endpoint
)

// AcceleratorListener takes the flows of some ports.
type AcceleratorListener struct {
	Protocol       string          `yaml:"protocol"`   // TCP
	PortRanges     []PortRange     `yaml:"portRanges"` // 1–10
	ClientAffinity string          `yaml:"clientAffinity,omitempty"`
	EndpointGroups []EndpointGroup `yaml:"endpointGroups"`
}

// PortRange is the ports from FromPort to ToPort, both included; ToPort 0 means FromPort alone.
type PortRange struct {
	FromPort uint16 `yaml:"fromPort"`
	ToPort   uint16 `yaml:"toPort,omitempty"`
}

// EndpointGroup is the endpoints of one region.
type EndpointGroup struct {
	Region string `yaml:"region"`
	// TrafficDial is the percentage, 0–100, of the flows already directed to the group that it takes; default 100.
	TrafficDial *float64   `yaml:"trafficDial,omitempty"`
	Endpoints   []Endpoint `yaml:"endpoints"`
}

// Endpoint is where flows end: a target group or a network load balancer of the group's region (exactly one).
type Endpoint struct {
	TargetGroup  string `yaml:"targetGroup,omitempty"`
	LoadBalancer string `yaml:"loadBalancer,omitempty"`
	Weight       *int   `yaml:"weight,omitempty"` // 0–255, default 128; 0 takes nothing
}

// HostedZone is a public zone; its name is the domain without a trailing dot (Route 53 hosted zone).
// It has an SOA and name servers of its own: ns-<pop> for each POP of the spec, unless NameServers says otherwise.
type HostedZone struct {
	Name        string   `yaml:"name"`
	NameServers []string `yaml:"nameServers,omitempty"` // fully qualified
	Records     []Record `yaml:"records,omitempty"`
}

// Record is one resource record set. Several of one name and type need SetIdentifier and one routing
// policy among them all.
type Record struct {
	Name   string    `yaml:"name"` // relative to the zone; @ is the apex; a trailing dot makes it absolute
	Type   string    `yaml:"type"` // A AAAA CAA CNAME MX NS PTR SRV TXT
	TTL    *Duration `yaml:"ttl,omitempty"`
	Values []string  `yaml:"values,omitempty"` // in zone-file form
	Alias  *Alias    `yaml:"alias,omitempty"`

	SetIdentifier    string       `yaml:"setIdentifier,omitempty"`
	Weight           *int         `yaml:"weight,omitempty"`           // weighted: 0–255
	Region           string       `yaml:"region,omitempty"`           // latency
	Failover         string       `yaml:"failover,omitempty"`         // PRIMARY or SECONDARY
	GeoLocation      *GeoLocation `yaml:"geoLocation,omitempty"`      // geolocation
	MultiValueAnswer bool         `yaml:"multiValueAnswer,omitempty"` // multivalue
	HealthCheck      string       `yaml:"healthCheck,omitempty"`
}

// Failover roles.
const (
	Primary   = "PRIMARY"
	Secondary = "SECONDARY"
)

// Alias answers with the addresses of a resource: exactly one of its targets is set.
type Alias struct {
	Distribution         string `yaml:"distribution,omitempty"` // the POP nearest to the client
	LoadBalancer         string `yaml:"loadBalancer,omitempty"` // the nodes of its region
	Accelerator          string `yaml:"accelerator,omitempty"`  // its static addresses
	Record               string `yaml:"record,omitempty"`       // another record of the zone, of the same type
	EvaluateTargetHealth bool   `yaml:"evaluateTargetHealth,omitempty"`
}

// GeoLocation names where clients are: one of continent (AF AN AS EU NA OC SA) or country (ISO 3166-1
// alpha-2); country * is the default, for all others.
type GeoLocation struct {
	Continent string `yaml:"continent,omitempty"`
	Country   string `yaml:"country,omitempty"`
}
