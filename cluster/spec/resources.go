package spec

import (
	"encoding/hex"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The fields' tags are what is read: json names the field in YAML and JSON alike, rule bounds it, default is what it
// means where it is absent (shape says how they are written). Defaults that depend on other fields are in complete.

// Region is a named part of the world with POPs and targets. Where the name is one of AWS's
// (ap-northeast-2), city, country and location have defaults.
type Region struct {
	Name     string            `json:"name" rule:"required"`
	Labels   map[string]string `json:"labels,omitempty" rule:"..32"` // for people and for pruning
	City     string            `json:"city,omitempty"`
	Country  string            `json:"country,omitempty"` // ISO 3166-1 alpha-2
	Location *Location         `json:"location,omitempty"`
	POPs     []POP             `json:"pops,omitempty" rule:"..256"`
}

// POP is a named place with one or more nodes. Its location is its region's
// unless it says its own.
type POP struct {
	Name     string    `json:"name" rule:"required"`
	Location *Location `json:"location,omitempty"`
}

// Location is a point on the earth in degrees: latitude −90…90, longitude −180…180.
type Location struct {
	Latitude  float64 `json:"latitude" rule:"required,-90..90"`
	Longitude float64 `json:"longitude" rule:"required,-180..180"`
}

// Protocols of target groups, listeners and health checks.
const (
	HTTP  = "HTTP"
	HTTPS = "HTTPS"
	TCP   = "TCP"
	UDP   = "UDP"
	GRPC  = "GRPC"
)

// Types of health checks that are no protocols.
const (
	HTTPStringMatch  = "HTTP_STR_MATCH"
	HTTPSStringMatch = "HTTPS_STR_MATCH"
	Calculated       = "CALCULATED"
)

// GRPCHealthPath is where a gRPC check asks unless told otherwise. No server knows the method, so each that
// works says so: UNIMPLEMENTED, 12 (ALB).
const GRPCHealthPath = "/AWS.ALB/healthcheck"

// TargetGroup is the targets of one region that serve one thing, and how they are checked
// (ELB target group).
type TargetGroup struct {
	Name     string            `json:"name" rule:"required"`
	Labels   map[string]string `json:"labels,omitempty" rule:"..32"` // for people and for pruning
	Region   string            `json:"region" rule:"required"`
	Protocol string            `json:"protocol" rule:"required,HTTP|TCP|UDP"`
	Port     uint16            `json:"port,omitempty" rule:"1..65535"` // of targets that name none
	Targets  []Target          `json:"targets,omitempty" rule:"..1000"`
	// HealthCheck has ELB's defaults for the protocol.
	HealthCheck TargetHealthCheck `json:"healthCheck,omitzero"`
	// LoadBalancingAlgorithm is, so far, round_robin alone.
	LoadBalancingAlgorithm string `json:"loadBalancingAlgorithm,omitempty" rule:"round_robin" default:"round_robin"`
	// ProxyProtocolV2 has each flow of TCP, and each datagram of UDP, begin with a header that says from which client it is (NLB,
	// proxy_protocol_v2.enabled).
	ProxyProtocolV2 bool `json:"proxyProtocolV2,omitempty"`
	// DeregistrationDelay is how long flows to a target that has left the group may go on.
	DeregistrationDelay *Duration `json:"deregistrationDelay,omitempty" rule:"0s..3600s" default:"300s"`
}

// Target is one server: an IP address and a port.
type Target struct {
	Address netip.Addr `json:"address" rule:"required"`
	Port    uint16     `json:"port,omitempty" rule:"1..65535"` // 0: the group's, filled in by the defaults
	// QUICServerID is what a server of QUIC puts behind the first byte of the connection IDs that it gives out, 0x and eight bytes in lower-case hexadecimal
	// digits, so that a client that moves is led to it (NLB, QuicServerId; draft-ietf-quic-load-balancers, plaintext); "": nothing.
	QUICServerID string `json:"quicServerID,omitempty"`
}

// QUICServer is the target's QUICServerID in bytes; not ok: it has none.
func (t Target) QUICServer() (id [8]byte, ok bool) {
	digits, ok := strings.CutPrefix(t.QUICServerID, "0x")
	if !ok || len(digits) != 2*len(id) || strings.ToLower(digits) != digits {
		return id, false
	}
	_, err := hex.Decode(id[:], []byte(digits))
	return id, err == nil
}

// AddrPort is where the target listens.
func (t Target) AddrPort() netip.AddrPort { return netip.AddrPortFrom(t.Address, t.Port) }

// TargetHealthCheck is how the targets of a group are checked. Defaults are those of ELB's API model (interval 30 s;
// timeout 6 s for HTTP and GRPC, 10 s for HTTPS and TCP, but never above the interval; healthy 5, unhealthy 2; matcher
// 200, path /; for GRPC 12 and /AWS.ALB/healthcheck).
type TargetHealthCheck struct {
	// Enabled says whether the targets are checked; those that are not all take traffic (ELB knows it of Lambda alone).
	Enabled  *bool  `json:"enabled,omitempty" default:"true"`
	Protocol string `json:"protocol,omitempty" rule:"HTTP|HTTPS|TCP|GRPC"` // default the group's, TCP for UDP
	Port     uint16 `json:"port,omitempty" rule:"1..65535"`                // 0: the target's own (traffic-port)
	Path     string `json:"path,omitempty" rule:"..1024"`
	// Matcher is the answers that pass: "200", "200,302" or "200-299" of HTTP's, 200–599; "12", "0,12" or "0-99" of gRPC's, 0–99.
	Matcher string `json:"matcher,omitempty"`
	// ValidateCertificate is for HTTPS: the target's certificate must be of a known authority and for its address (ELB never looks).
	ValidateCertificate bool `json:"validateCertificate,omitempty"`
	// Interval may be shorter than ELB's, 5–300 s.
	Interval           *Duration `json:"interval,omitempty" rule:"1s..300s" default:"30s"`
	Timeout            *Duration `json:"timeout,omitempty" rule:"100ms..120s"`
	HealthyThreshold   int       `json:"healthyThreshold,omitempty" rule:"1..10" default:"5"`
	UnhealthyThreshold int       `json:"unhealthyThreshold,omitempty" rule:"1..10" default:"2"`
}

// On says whether the targets are checked.
func (h *TargetHealthCheck) On() bool { return h.Enabled == nil || *h.Enabled }

// Load balancer types.
const (
	ApplicationLoadBalancer = "application"
	NetworkLoadBalancer     = "network"
)

// LoadBalancer is a regional load balancer: the nodes of its region with the origin role open its
// listeners (ALB for type application, NLB for type network).
type LoadBalancer struct {
	Name      string            `json:"name" rule:"required"`
	Labels    map[string]string `json:"labels,omitempty" rule:"..32"` // for people and for pruning
	Region    string            `json:"region" rule:"required"`
	Type      string            `json:"type,omitempty" rule:"application|network" default:"application"`
	Listeners []Listener        `json:"listeners" rule:"required,1..50"`
	// IdleTimeout ends a connection without traffic: 1–4,000 s, default 60 s (application); 60–6,000 s, default 350 s (network).
	IdleTimeout *Duration `json:"idleTimeout,omitempty" rule:"1s..6000s"`
	// DesyncMitigationMode is what becomes of HTTP/1 requests on whose end their readers might disagree (ALB's attribute
	// routing.http.desync_mitigation_mode): default defensive. Application only.
	DesyncMitigationMode string `json:"desyncMitigationMode,omitempty" rule:"monitor|defensive|strictest"`
	// SecurityGroups say who may connect: whom a rule of any of them lets in. None lets in everybody (AWS: the default group, nobody
	// from outside).
	SecurityGroups []string `json:"securityGroups,omitempty" rule:"1..5"`
}

// SecurityGroup says who may connect (EC2 security group, its inbound rules). What no rule lets in is closed as it comes.
type SecurityGroup struct {
	Name   string            `json:"name" rule:"required"`
	Labels map[string]string `json:"labels,omitempty" rule:"..32"` // for people and for pruning
	// Ingress are the rules; none lets in nobody.
	Ingress []IngressRule `json:"ingress,omitempty" rule:"..60"`
}

// AllProtocols is the protocol of a rule for all of them, and all ports.
const AllProtocols = "-1"

// IngressRule lets some clients come to some ports (IpPermission).
type IngressRule struct {
	// Protocol is tcp, udp or -1, which stands for all and has no ports.
	Protocol string `json:"protocol" rule:"required,tcp|udp|-1"`
	// FromPort to ToPort are the listeners' ports, both included. Default of ToPort: FromPort.
	FromPort uint16 `json:"fromPort,omitempty" rule:"1..65535"`
	ToPort   uint16 `json:"toPort,omitempty" rule:"1..65535"`
	// CIDRs are where clients come from (cidrIp and cidrIpv6 in one list).
	CIDRs []netip.Prefix `json:"cidrs" rule:"required,1..1000"`
}

// Listener is one port of a load balancer: HTTP for type application, TCP for type network.
type Listener struct {
	Protocol string         `json:"protocol" rule:"required,HTTP|TCP"`
	Port     uint16         `json:"port" rule:"required,1..65535"`
	Rules    []ListenerRule `json:"rules,omitempty" rule:"..100"` // application only
	Default  Action         `json:"default" rule:"required"`
}

// ListenerRule is tried in the order of priority, lowest first; all its conditions must hold.
type ListenerRule struct {
	Priority   int         `json:"priority" rule:"required,1..50000"` // unique in its listener
	Conditions []Condition `json:"conditions" rule:"required,1..10"`
	Action     Action      `json:"action" rule:"required"`
}

// Condition holds when one of the values of its one field matches. Patterns know * (any run) and
// ? (one character). Hosts compare without case; paths and methods with it (ALB).
type Condition struct {
	HostHeader        []string `json:"hostHeader,omitempty" rule:"1..5"`
	PathPattern       []string `json:"pathPattern,omitempty" rule:"1..5"`
	HTTPRequestMethod []string `json:"httpRequestMethod,omitempty" rule:"1..5"`
}

// Action is what becomes of a request or flow: exactly one field is set.
type Action struct {
	Forward       string         `json:"forward,omitempty"` // a target group
	FixedResponse *FixedResponse `json:"fixedResponse,omitempty"`
	Redirect      *Redirect      `json:"redirect,omitempty"`
}

// FixedResponse is an answer given without a target: status 2xx, 4xx or 5xx, body ≤ 1,024 bytes.
type FixedResponse struct {
	StatusCode  int    `json:"statusCode" rule:"required,200..599"`
	ContentType string `json:"contentType,omitempty" rule:"text/plain|text/css|text/html|application/javascript|application/json" default:"text/plain"`
	MessageBody string `json:"messageBody,omitempty" rule:"..1024"`
}

// Redirect sends the client elsewhere. Empty fields keep the request's own; #{protocol}, #{host},
// #{port}, #{path} (without its leading slash) and #{query} stand for the request's (ALB).
type Redirect struct {
	StatusCode string `json:"statusCode" rule:"required,HTTP_301|HTTP_302"`
	Protocol   string `json:"protocol,omitempty" rule:"HTTP|HTTPS|#{protocol}"`
	Host       string `json:"host,omitempty" rule:"..128"`
	Port       string `json:"port,omitempty"`
	Path       string `json:"path,omitempty" rule:"..128"`
	Query      string `json:"query,omitempty" rule:"..128"`
}

// HealthCheck checks one endpoint from a few nodes of every region, or is reckoned of other health checks
// (Route 53 health check; GRPC and validateCertificate are not Route 53's).
type HealthCheck struct {
	Name   string            `json:"name" rule:"required"`
	Labels map[string]string `json:"labels,omitempty" rule:"..32"` // for people and for pruning
	Type   string            `json:"type" rule:"required,HTTP|HTTPS|HTTP_STR_MATCH|HTTPS_STR_MATCH|TCP|GRPC|CALCULATED"`
	// IPAddress is where the endpoint is. Without it fullyQualifiedDomainName is looked up at each probe, its IPv4 addresses alone.
	IPAddress netip.Addr `json:"ipAddress,omitzero"`
	Port      uint16     `json:"port,omitempty" rule:"1..65535"` // default 80 for HTTP, 443 for HTTPS
	// ResourcePath has the default / for HTTP and HTTPS, /AWS.ALB/healthcheck for GRPC; where GRPC is answered by 0 (OK) or 12 (UNIMPLEMENTED), it passes.
	ResourcePath string `json:"resourcePath,omitempty" rule:"..255"`
	// FullyQualifiedDomainName is sent as Host and SNI, and is the endpoint where ipAddress is absent.
	FullyQualifiedDomainName string `json:"fullyQualifiedDomainName,omitempty" rule:"..255"`
	// SearchString must be in the first 5,120 bytes of the body, in this case: HTTP_STR_MATCH and HTTPS_STR_MATCH only.
	SearchString string `json:"searchString,omitempty" rule:"..255"`
	// EnableSNI sends the name in TLS; default true. HTTPS and HTTPS_STR_MATCH only.
	EnableSNI *bool `json:"enableSNI,omitempty"`
	// ValidateCertificate demands a certificate of a known authority for the name. HTTPS and HTTPS_STR_MATCH only.
	ValidateCertificate bool `json:"validateCertificate,omitempty"`
	// Regions are where it is checked from; default all. (Route 53 wants three at least.)
	Regions []string `json:"regions,omitempty" rule:"1..256"`
	// RequestInterval is how often each observer probes: default 30 s; it may be any, unlike Route 53's, 10 or 30 s.
	RequestInterval  *Duration `json:"requestInterval,omitempty" rule:"1s..300s"`
	FailureThreshold int       `json:"failureThreshold,omitempty" rule:"1..10"` // in both directions; default 3
	// ChildHealthChecks are those that a CALCULATED one is reckoned of; none of them is CALCULATED itself.
	ChildHealthChecks []string `json:"childHealthChecks,omitempty" rule:"1..255"`
	// HealthThreshold is how many children must be healthy: 0 is always healthy, more than there are never. CALCULATED only.
	HealthThreshold *int `json:"healthThreshold,omitempty" rule:"0..256"`
	Inverted        bool `json:"inverted,omitempty"`
	Disabled        bool `json:"disabled,omitempty"` // counts as healthy
}

// Distribution is one site on the CDN (CloudFront distribution): its hosts, where its content comes
// from, and how each path is treated.
type Distribution struct {
	Name                 string            `json:"name" rule:"required"`
	Labels               map[string]string `json:"labels,omitempty" rule:"..32"` // for people and for pruning
	Enabled              *bool             `json:"enabled,omitempty" default:"true"`
	Aliases              []string          `json:"aliases" rule:"required,1..100"` // host names it answers for; *.example.com allowed
	DefaultRootObject    string            `json:"defaultRootObject,omitempty" rule:"..255"`
	Origins              []Origin          `json:"origins" rule:"required,1..100"`
	DefaultCacheBehavior CacheBehavior     `json:"defaultCacheBehavior" rule:"required"`
	CacheBehaviors       []CacheBehavior   `json:"cacheBehaviors,omitempty" rule:"..75"` // the first that matches wins
	// ErrorCachingMinTTL is how long an error the origin sent is kept at least.
	ErrorCachingMinTTL *Duration `json:"errorCachingMinTTL,omitempty" rule:"0s..31536000s" default:"10s"`
	// CacheTagConfig says where origins tell the tags of a response, by which it can be purged.
	CacheTagConfig    CacheTagConfig    `json:"cacheTagConfig,omitzero"`
	ViewerCertificate ViewerCertificate `json:"viewerCertificate,omitzero"`
}

// CacheTagConfig names the response header whose list is the tags of a response.
type CacheTagConfig struct {
	HeaderName string `json:"headerName,omitempty" rule:"..256"` // empty: responses have no tags
}

// ViewerCertificate is how clients that name one of a distribution's hosts are spoken to. Which certificate they are shown follows
// from the names in those that there are (CloudFront names one).
type ViewerCertificate struct {
	// MinimumProtocolVersion is a security policy of CloudFront: the oldest TLS, and the cipher suites. Its SSLv3 is not spoken (RFC 7568).
	MinimumProtocolVersion string `json:"minimumProtocolVersion,omitempty" rule:"TLSv1|TLSv1_2016|TLSv1.1_2016|TLSv1.2_2018|TLSv1.2_2019|TLSv1.2_2021|TLSv1.2_2025|TLSv1.3_2025" default:"TLSv1.2_2021"`
}

// Origin is where content comes from: a URL, or load balancers of this network (exactly one of the two).
type Origin struct {
	Name string `json:"name" rule:"required"`
	// URL is the scheme and authority of an origin anywhere: http://origin.example.com:8080.
	URL string `json:"url,omitempty"`
	// LoadBalancers are asked nearest first; one that cannot be reached gives way to the next.
	// (CloudFront knows one domain name per origin, and pairs as origin groups.)
	LoadBalancers []string `json:"loadBalancers,omitempty" rule:"1..10"`
	// HostHeader is the Host that the origin is sent; default the URL's authority, or the viewer's Host for load balancers.
	HostHeader         string    `json:"hostHeader,omitempty"`
	ConnectionAttempts int       `json:"connectionAttempts,omitempty" rule:"1..3" default:"3"`
	ConnectionTimeout  *Duration `json:"connectionTimeout,omitempty" rule:"1s..10s" default:"10s"`
	ResponseTimeout    *Duration `json:"responseTimeout,omitempty" rule:"1s..120s" default:"30s"`
	// OriginShield is a region whose edge nodes ask the origin for all others.
	OriginShield OriginShield `json:"originShield,omitzero"`
}

// OriginShield is a layer of caches before an origin, all in one region: of what may be cached, it alone asks the origin.
type OriginShield struct {
	Enabled            bool   `json:"enabled,omitempty"`
	OriginShieldRegion string `json:"originShieldRegion,omitempty"` // required where it is enabled
}

// Viewer protocol policies.
const (
	AllowAll        = "allow-all"
	RedirectToHTTPS = "redirect-to-https"
	HTTPSOnly       = "https-only"
)

// CacheBehavior is how the requests of one path pattern are treated.
type CacheBehavior struct {
	PathPattern          string   `json:"pathPattern,omitempty" rule:"..255"` // empty in the default behaviour; * and ?
	TargetOrigin         string   `json:"targetOrigin" rule:"required"`
	ViewerProtocolPolicy string   `json:"viewerProtocolPolicy,omitempty" rule:"allow-all|redirect-to-https|https-only" default:"allow-all"`
	AllowedMethods       []string `json:"allowedMethods,omitempty" rule:"2..7"` // one of AWS's three sets; default GET, HEAD
	CachePolicy          string   `json:"cachePolicy,omitempty" default:"Managed-CachingOptimized"`
}

// CachePolicy says what a cached response is keyed by and how long it may live (CloudFront cache policy).
type CachePolicy struct {
	Name         string            `json:"name" rule:"required"`
	Labels       map[string]string `json:"labels,omitempty" rule:"..32"` // for people and for pruning
	MinTTL       *Duration         `json:"minTTL,omitempty" rule:"0s..3153600000s" default:"0s"`
	DefaultTTL   *Duration         `json:"defaultTTL,omitempty" rule:"0s..3153600000s"` // default 86,400 s
	MaxTTL       *Duration         `json:"maxTTL,omitempty" rule:"0s..3153600000s"`     // default 31,536,000 s
	Headers      KeyPart           `json:"headers,omitzero"`                            // none (default), whitelist
	Cookies      KeyPart           `json:"cookies,omitzero"`                            // none (default), whitelist, allExcept, all
	QueryStrings KeyPart           `json:"queryStrings,omitzero"`                       // none (default), whitelist, allExcept, all
	// HeuristicTTL has a response without a lifetime be fresh for a tenth of its age since it was last modified, at most a day
	// (RFC 9111 §4.2.2), where otherwise defaultTTL is. (CloudFront knows defaultTTL alone.)
	HeuristicTTL bool `json:"heuristicTTL,omitempty"`
	// RequestDirectives has the viewer's Cache-Control and Pragma followed (RFC 9111 §5.2.1): whoever may ask may have the
	// origin asked. (CloudFront ignores them.)
	RequestDirectives bool `json:"requestDirectives,omitempty"`
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
	Behavior string   `json:"behavior,omitempty" rule:"none|whitelist|allExcept|all" default:"none"`
	Items    []string `json:"items,omitempty" rule:"1..10"`
}

// Accelerator is a set of static addresses, announced at every POP, whose flows are carried to the
// nearest region with a healthy endpoint (Global Accelerator).
type Accelerator struct {
	Name    string            `json:"name" rule:"required"`
	Labels  map[string]string `json:"labels,omitempty" rule:"..32"` // for people and for pruning
	Enabled *bool             `json:"enabled,omitempty" default:"true"`
	// Type is whether flows go to the nearest region with a healthy endpoint, or where their port is mapped to.
	Type        string                `json:"type,omitempty" rule:"STANDARD|CUSTOM_ROUTING" default:"STANDARD"`
	IPAddresses []netip.Addr          `json:"ipAddresses" rule:"required,1..8"`
	Listeners   []AcceleratorListener `json:"listeners" rule:"required,1..10"`
	// DeregistrationDelay is how long established flows may go on whose endpoint has left its group (nil: to their own end), or whose
	// listener has gone or accelerator was disabled (nil: not at all).
	DeregistrationDelay *Duration `json:"deregistrationDelay,omitempty" rule:"0s..3600s"`
	// FlowLogs has flows written down by the nodes that were told where to; nil: none is.
	FlowLogs *Sampling `json:"flowLogs,omitempty"`
}

// NetworkZone is that of an address of the accelerator, 1 or 2: of those of one family the first is in zone 1, the next in zone 2, and so on (Global Accelerator has one
// in each). 0: it is the only one of its family, and in both.
func (a *Accelerator) NetworkZone(address netip.Addr) int {
	zone, of := 0, 0
	for _, one := range a.IPAddresses {
		if one.Is4() != address.Is4() {
			continue
		}
		if one == address {
			zone = 1 + of%2
		}
		of++
	}
	if of < 2 {
		return 0
	}
	return zone
}

// Client affinities.
const (
	AffinityNone     = "NONE"      // 5-tuple
	AffinitySourceIP = "SOURCE_IP" // one client address, one endpoint
)

// AcceleratorListener takes the flows of some ports.
type AcceleratorListener struct {
	Protocol       string          `json:"protocol" rule:"required,TCP|UDP"`
	PortRanges     []PortRange     `json:"portRanges" rule:"required,1..10"`
	ClientAffinity string          `json:"clientAffinity,omitempty" rule:"NONE|SOURCE_IP" default:"NONE"`
	EndpointGroups []EndpointGroup `json:"endpointGroups" rule:"required,1..42"`
	// IdleTimeout ends a flow in which nothing moves: default 340 s for TCP, 30 s for UDP (Global Accelerator has these, always).
	IdleTimeout *Duration `json:"idleTimeout,omitempty" rule:"10s..6000s"`
	// LargeDatagrams is what becomes of datagrams that are larger than the path between two nodes takes: they go by a stream, which is in
	// order and repeats what is lost, or are refused, so that a sender that looks for the size that a path takes finds it. UDP only; default STREAM.
	LargeDatagrams string `json:"largeDatagrams,omitempty" rule:"STREAM|REFUSE"`
	// FastOpen is as TCP Fast Open has it (RFC 7413, section 2.1): what a client says first travels with the opening of its flow, and where one endpoint is slow to take
	// that, others may be given the same, four at once at most, so that it is done more than once. It is for protocols that bear that. TCP only.
	FastOpen bool `json:"fastOpen,omitempty"`
	// FailoverScope is which groups take the flows of one that cannot: the three closest (Global Accelerator), or all, the nearest
	// first.
	FailoverScope string `json:"failoverScope,omitempty" rule:"CLOSEST|ALL" default:"CLOSEST"`
}

// Has says whether a listener is on a port.
func (l *AcceleratorListener) Has(port uint16) bool {
	return slices.ContainsFunc(l.PortRanges, func(r PortRange) bool { return r.has(int(port)) })
}

// Ports are the listener's in words: 80,443,8000-8080.
func (l *AcceleratorListener) Ports() string {
	words := make([]string, len(l.PortRanges))
	for i, r := range l.PortRanges {
		words[i] = strconv.Itoa(int(r.FromPort))
		if r.ToPort > r.FromPort {
			words[i] += "-" + strconv.Itoa(int(r.ToPort))
		}
	}
	return strings.Join(words, ",")
}

// What FailoverScope may be.
const (
	FailoverClosest = "CLOSEST"
	FailoverAll     = "ALL"
)

// What LargeDatagrams may be.
const (
	LargeByStream = "STREAM"
	LargeRefused  = "REFUSE"
)

// MaxAcceleratorIdle is the longest IdleTimeout of an accelerator's listener.
const MaxAcceleratorIdle = 6000 * time.Second

// PortRange is the ports from FromPort to ToPort, both included; ToPort 0 means FromPort alone.
type PortRange struct {
	FromPort uint16 `json:"fromPort" rule:"required,1..65535"`
	ToPort   uint16 `json:"toPort,omitempty" rule:"1..65535"`
}

// EndpointGroup is the endpoints of one region.
type EndpointGroup struct {
	Region string `json:"region" rule:"required"`
	// TrafficDial is the percentage of the flows already directed to the group that it takes.
	TrafficDial *float64   `json:"trafficDial,omitempty" rule:"0..100" default:"100"`
	Endpoints   []Endpoint `json:"endpoints" rule:"required,1..10"`
	// DestinationConfigurations are the ports at which each address of the group's subnets is reached, in custom routing accelerators.
	DestinationConfigurations []PortRange `json:"destinationConfigurations,omitempty" rule:"1..100"`
	// PortOverrides lead flows to other ports of endpoints given by address and of load balancers; targets have their own.
	PortOverrides []PortOverride `json:"portOverrides,omitempty" rule:"1..10"`
	// HealthCheckProtocol is how endpoints given by address are checked, and so are the fields below: other endpoints
	// have the health of their targets (Global Accelerator).
	HealthCheckProtocol string `json:"healthCheckProtocol,omitempty" rule:"TCP|HTTP|HTTPS" default:"TCP"`
	HealthCheckPort     uint16 `json:"healthCheckPort,omitempty" rule:"1..65535"` // default the listener's first port
	HealthCheckPath     string `json:"healthCheckPath,omitempty" rule:"..255"`    // default / for HTTP and HTTPS
	// HealthCheckInterval may be any, unlike Global Accelerator's, 10 or 30 s.
	HealthCheckInterval *Duration `json:"healthCheckInterval,omitempty" rule:"1s..300s" default:"30s"`
	ThresholdCount      int       `json:"thresholdCount,omitempty" rule:"1..10" default:"3"` // in both directions
	// UnhealthyConnectionTermination resets established flows when their endpoint turns unhealthy while another one takes new flows. (NLB,
	// target_health_state.unhealthy.connection_termination.enabled; Global Accelerator has them stay.)
	UnhealthyConnectionTermination bool `json:"unhealthyConnectionTermination,omitempty"`
}

// PortOverride has the flows that reach a port of the listener end at another one.
type PortOverride struct {
	ListenerPort uint16 `json:"listenerPort" rule:"required,1..65535"`
	EndpointPort uint16 `json:"endpointPort" rule:"required,1..65535"`
}

// EndpointPort is the port of the group's endpoints for flows that reach a port of the listener.
func (g *EndpointGroup) EndpointPort(listener uint16) uint16 {
	for _, o := range g.PortOverrides {
		if o.ListenerPort == listener {
			return o.EndpointPort
		}
	}
	return listener
}

// ListenerPort is a port of the listener whose flows end at a port of the group's endpoints; not ok: none do.
func (g *EndpointGroup) ListenerPort(l *AcceleratorListener, port uint16) (at uint16, ok bool) {
	if l.Has(port) && g.EndpointPort(port) == port {
		return port, true
	}
	i := slices.IndexFunc(g.PortOverrides, func(o PortOverride) bool { return o.EndpointPort == port })
	if i < 0 {
		return 0, false
	}
	return g.PortOverrides[i].ListenerPort, true
}

// Takes says whether flows of a listener may end at a port of the group's endpoints.
func (g *EndpointGroup) Takes(l *AcceleratorListener, port uint16) bool {
	_, ok := g.ListenerPort(l, port)
	return ok
}

// Reaches is a port of a listener whose flows can end at a listener of a load balancer that is an endpoint of the group; not ok: there is none.
func (g *EndpointGroup) Reaches(l *AcceleratorListener, lb *LoadBalancer) (from uint16, ok bool) {
	for _, at := range lb.Listeners {
		if from, ok = g.ListenerPort(l, at.Port); ok {
			return from, true
		}
	}
	return 0, false
}

// CheckAddr is where an endpoint of the group that is given by address is checked.
func (g *EndpointGroup) CheckAddr(e Endpoint) netip.AddrPort {
	return netip.AddrPortFrom(e.Address, g.HealthCheckPort)
}

// Endpoint is where flows end: a target group or a network load balancer of the group's region, or an address, at the
// port that the flow came to, or a subnet (exactly one).
type Endpoint struct {
	TargetGroup  string     `json:"targetGroup,omitempty"`
	LoadBalancer string     `json:"loadBalancer,omitempty"`
	Address      netip.Addr `json:"address,omitzero"`
	Weight       *int       `json:"weight,omitempty" rule:"0..255" default:"128"` // 0 takes nothing
	// ClientIPPreservation has a target see the client's address and port instead of those of the node that dials it. (Global Accelerator,
	// ClientIPPreservationEnabled; there it is the default of some endpoints.)
	ClientIPPreservation bool `json:"clientIPPreservationEnabled,omitempty"`
	// Subnet, in a custom routing accelerator, has each of its addresses reached at each of the group's destination ports by a port of the
	// listener of its own.
	Subnet netip.Prefix `json:"subnet,omitzero"`
	// ListenerPort is the first of those; default the one behind those of the endpoint before it.
	ListenerPort uint16 `json:"listenerPort,omitempty" rule:"1..65535"`
	// AllowAllTraffic and AllowedTraffic say which destinations have traffic: without them none has (Global Accelerator).
	AllowAllTraffic bool                   `json:"allowAllTraffic,omitempty"`
	AllowedTraffic  []CustomRoutingTraffic `json:"allowedTraffic,omitempty" rule:"1..100"`
}

// CustomRoutingTraffic is destinations of a subnet that may have traffic: each of the addresses at each of the ports.
type CustomRoutingTraffic struct {
	DestinationAddresses []netip.Addr `json:"destinationAddresses" rule:"required,1..100"`
	DestinationPorts     []int        `json:"destinationPorts" rule:"required,1..100"`
}

// HostedZone is a public zone; its name is the domain without a trailing dot (Route 53 hosted zone).
// It has an SOA and name servers of its own: ns-<pop> of four POPs, unless NameServers says otherwise.
type HostedZone struct {
	Name        string            `json:"name" rule:"required"`
	Labels      map[string]string `json:"labels,omitempty" rule:"..32"`       // for people and for pruning
	NameServers []string          `json:"nameServers,omitempty" rule:"1..16"` // absolute
	Records     Records           `json:"records,omitzero" rule:"..10000"`
	// QueryLogging has queries of the zone written down by the nodes that were told where to; nil: none is.
	QueryLogging *Sampling `json:"queryLogging,omitempty"`
	// Transfer lets others have the zone whole. (Route 53 does not.)
	Transfer ZoneTransfer `json:"transfer,omitzero"`
	// Update lets others change its records by messages of the DNS (RFC 2136). (Route 53 does not.)
	Update ZoneUpdate `json:"update,omitzero"`
	// Primaries make it a secondary zone: its records, SOA and name servers are those of the first of them that tells. (Route 53 has
	// none such.)
	Primaries []ZonePeer `json:"primaries,omitempty" rule:"1..4"`

	layout *layout // of its document; nil: it has none that is kept
}

// Sampling is how many of what happens are written down.
type Sampling struct {
	// SampleRate is the share of them, drawn by chance. (Route 53 and Global Accelerator write down each.)
	SampleRate *float64 `json:"sampleRate,omitempty" rule:"0..1" default:"1"`
}

// Rate is the share that is written down; 0 of nil.
func (q *Sampling) Rate() float64 {
	switch {
	case q == nil:
		return 0
	case q.SampleRate == nil:
		return 1
	}
	return *q.SampleRate
}

// Record is one resource record set. Several of one name and type need SetIdentifier and one routing
// policy among them all.
type Record struct {
	Name   string    `json:"name" rule:"required"` // relative to the zone; @ is the apex; a trailing dot makes it absolute
	Type   string    `json:"type" rule:"required,A|AAAA|CAA|CNAME|DNAME|DS|HTTPS|MX|NAPTR|NS|PTR|SPF|SRV|SSHFP|SVCB|TLSA|TXT"`
	TTL    *Duration `json:"ttl,omitempty" rule:"0s..2147483647s"`
	Values []string  `json:"values,omitempty" rule:"1..400"` // as in zone files, but their domain names are absolute, with or without a trailing dot
	Alias  *Alias    `json:"alias,omitempty"`

	SetIdentifier    string       `json:"setIdentifier,omitempty" rule:"..128"`
	Weight           *int         `json:"weight,omitempty" rule:"0..255"` // weighted; 0 only when the others are unhealthy
	Region           string       `json:"region,omitempty"`               // latency
	Failover         string       `json:"failover,omitempty" rule:"PRIMARY|SECONDARY"`
	GeoLocation      *GeoLocation `json:"geoLocation,omitempty"`      // geolocation
	MultiValueAnswer bool         `json:"multiValueAnswer,omitempty"` // multivalue
	HealthCheck      string       `json:"healthCheck,omitempty"`

	GeoProximityLocation *GeoProximityLocation `json:"geoProximityLocation,omitempty"` // geoproximity
	CidrRoutingConfig    *CidrRoutingConfig    `json:"cidrRoutingConfig,omitempty"`    // CIDR (IP-based)
	// OnAllUnhealthy is what is answered where no set of the name and type is healthy: as if all were (all, the default), nothing
	// (none), or those that were healthy last (lastGood). All sets say the same. (Route 53 knows all alone.)
	OnAllUnhealthy string `json:"onAllUnhealthy,omitempty" rule:"all|none|lastGood"`
}

// What is answered where no record set is healthy.
const (
	AsIfAllWereHealthy = "all"
	Nothing            = "none"
	LastGood           = "lastGood"
)

// Simple says whether the record set has no routing policy: it is answered in any health.
func (r *Record) Simple() bool {
	return r.Weight == nil && r.Region == "" && r.Failover == "" && r.GeoLocation == nil && !r.MultiValueAnswer &&
		r.GeoProximityLocation == nil && r.CidrRoutingConfig == nil
}

// Failover roles.
const (
	Primary   = "PRIMARY"
	Secondary = "SECONDARY"
)

// Alias answers with the addresses of a resource: exactly one of its targets is set.
type Alias struct {
	Distribution         string `json:"distribution,omitempty"` // the POP nearest to the client
	LoadBalancer         string `json:"loadBalancer,omitempty"` // the nodes of its region
	Accelerator          string `json:"accelerator,omitempty"`  // its static addresses
	Record               string `json:"record,omitempty"`       // another record of the zone, of the same type
	EvaluateTargetHealth bool   `json:"evaluateTargetHealth,omitempty"`
}

// GeoLocation names where clients are: one of continent (AF AN AS EU NA OC SA) or country (ISO 3166-1
// alpha-2), and of a country perhaps a subdivision; country * is the default, for all others.
type GeoLocation struct {
	Continent string `json:"continent,omitempty" rule:"AF|AN|AS|EU|NA|OC|SA"`
	Country   string `json:"country,omitempty"`
	// Subdivision is what ISO 3166-2 writes after the country and a hyphen: CA of US-CA. Any country may have one (Route 53: US and UA).
	Subdivision string `json:"subdivision,omitempty" rule:"1..3"`
}

// GeoProximityLocation is where what a record set leads to stands: a region, or coordinates (exactly one of the two).
type GeoProximityLocation struct {
	Region      string    `json:"region,omitempty"`
	Coordinates *Location `json:"coordinates,omitempty"`
	// Bias makes the area that the set serves larger (above 0) or smaller: a distance d counts as d × (1 − bias/100) from 0 on,
	// as d / (1 + bias/100) below.
	Bias int `json:"bias,omitempty" rule:"-99..99"`
}

// CidrRoutingConfig is the location of a CidrCollection that a record set is for.
type CidrRoutingConfig struct {
	Collection string `json:"collection" rule:"required"`
	// LocationName is one of the collection's; * is the default, for clients in none of its blocks.
	LocationName string `json:"locationName" rule:"required,..16"`
}

// CidrCollection is blocks of addresses under names of locations, by which records are chosen (Route 53 CIDR collection).
type CidrCollection struct {
	Name      string            `json:"name" rule:"required"`
	Labels    map[string]string `json:"labels,omitempty" rule:"..32"` // for people and for pruning
	Locations []CidrLocation    `json:"locations" rule:"required,1..1000"`
}

// CidrLocation is the blocks of one location.
type CidrLocation struct {
	LocationName string `json:"locationName" rule:"required,..16"` // letters, digits, hyphens and underscores
	// CidrList are its blocks: IPv4 /1 to /24, IPv6 /1 to /48. A collection has at most 1,000 of them.
	CidrList []netip.Prefix `json:"cidrList" rule:"required,1..1000"`
}

// ClientPlace is where the clients of some blocks of addresses are, whatever the database of places says. (AWS has none.)
type ClientPlace struct {
	Name   string            `json:"name" rule:"required"`
	Labels map[string]string `json:"labels,omitempty" rule:"..32"` // for people and for pruning
	// CidrList are the blocks. The longest that an address is in decides; of two that are the same, that of the resource that is first by name.
	CidrList []netip.Prefix `json:"cidrList" rule:"required,1..1000"`
	Country  string         `json:"country,omitempty"` // ISO 3166-1 alpha-2
	// Subdivision is what ISO 3166-2 writes after the country and a hyphen: CA of US-CA.
	Subdivision string `json:"subdivision,omitempty" rule:"1..3"`
	// Location is where distances are measured from; without, the point that stands for the country.
	Location *Location `json:"location,omitempty"`
}

// ZoneTransfer is who may have a zone whole, and who is told when it has changed.
type ZoneTransfer struct {
	Allow  []TransferAllow `json:"allow,omitempty" rule:"1..64"`
	Notify []ZonePeer      `json:"notify,omitempty" rule:"1..32"`
}

// TransferAllow lets in who asks from one of the networks, if any are named, and signs by the key, if one is named: at least
// one of the two is.
type TransferAllow struct {
	CIDRs []netip.Prefix `json:"cidrs,omitempty" rule:"1..64"`
	Key   string         `json:"key,omitempty"` // a TsigKey
}

// ZonePeer is another name server of a zone.
type ZonePeer struct {
	Address netip.Addr `json:"address" rule:"required"`
	Port    uint16     `json:"port,omitempty" rule:"1..65535" default:"53"`
	Key     string     `json:"key,omitempty"` // a TsigKey, by which is signed what is sent; then the response must be, too
}

// ZoneUpdate is who may change records of a zone by messages that he signs.
type ZoneUpdate struct {
	Allow []UpdateAllow `json:"allow,omitempty" rule:"1..64"`
}

// UpdateAllow lets who signs by the key change the records that have one of the names and one of the types. An address is not
// enough: that of a datagram is whatever its sender says. (BIND: grant, in update-policy.)
type UpdateAllow struct {
	Key string `json:"key" rule:"required"` // a TsigKey
	// Names are as those of records; *.NAME is all that is below NAME, however deep. None: all names of the zone.
	Names []string `json:"names,omitempty" rule:"1..64"`
	// Types are those of records. None: all but NS, DS and DNAME, by which a part of the zone is given away.
	Types []string `json:"types,omitempty" rule:"1..32"`
}

// TsigKey is a key by which the messages between two name servers are signed (RFC 8945). Both know it by its name.
// (AWS has none; BIND and Knot call it key.)
type TsigKey struct {
	Name   string            `json:"name" rule:"required"`         // a domain name in small letters, without a trailing dot
	Labels map[string]string `json:"labels,omitempty" rule:"..32"` // for people and for pruning
	// Algorithm leaves out MD5 and SHA-1, by which nothing new is to be signed (RFC 8945 §6).
	Algorithm string `json:"algorithm,omitempty" rule:"hmac-sha256|hmac-sha384|hmac-sha512" default:"hmac-sha256"`
	Secret    Secret `json:"secret" rule:"required,..1024"` // in base64, as tsig-keygen and keymgr print it
}

// Certificate is a TLS certificate with its key, for the doors that serve one of its names (ACM certificate, imported).
type Certificate struct {
	Name   string            `json:"name" rule:"required"`
	Labels map[string]string `json:"labels,omitempty" rule:"..32"` // for people and for pruning
	// Certificate is the chain in PEM, the leaf first, then those that lead to its issuer.
	Certificate string `json:"certificate" rule:"required,..65536"`
	PrivateKey  Secret `json:"privateKey" rule:"required,..16384"` // of the leaf, in PEM: PKCS 8, PKCS 1 or SEC 1, not encrypted
}

// ClusterName is the only name that a Cluster can have.
const ClusterName = "default"

// Cluster is how the cluster looks after itself. There is one, default; where none is declared the defaults hold.
type Cluster struct {
	Name   string            `json:"name" rule:"required"`
	Labels map[string]string `json:"labels,omitempty" rule:"..32"` // for people and for pruning
	// Voters is how many nodes agree on changes; fewer do while there are fewer nodes.
	Voters int `json:"voters,omitempty" rule:"1|3|5" default:"5"`
	// ReplaceVoterAfter is how long a voter may be dead before another node takes its place.
	ReplaceVoterAfter *Duration `json:"replaceVoterAfter,omitempty" rule:"5s..24h" default:"30s"`
	// RemoveNodeAfter is how long a node may be dead before the cluster forgets it.
	RemoveNodeAfter *Duration `json:"removeNodeAfter,omitempty" rule:"10m..8760h" default:"72h"`
	// HealthCheckQuorum is the percentage of its observers of which more must say that a HealthCheck is healthy for it to be so.
	HealthCheckQuorum *int `json:"healthCheckQuorum,omitempty" rule:"0..99" default:"18"`
}
