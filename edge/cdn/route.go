package cdn

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/perigee-net/perigee/cluster/kept"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/edge/cache"
)

// Bounds of a request (CloudFront). One beyond them is answered 414 or 413.
const (
	maxURL     = 8192  // bytes of path and query
	maxRequest = 20480 // bytes of the request line and header
)

// Table is the distributions of one spec, made ready. It is immutable, and shares what did not change with the table of
// the spec before.
type Table struct {
	spec      *spec.Spec
	all       *kept.Map[string, *Distribution] // by name
	exact     *kept.Map[string, *Distribution] // by host
	wildcards *kept.Map[string, *Distribution] // by what follows the asterisk: .example.com
	httpsPort string                           // of redirects: ":8443", or "" for the usual one
}

// Distribution is one distribution, made ready.
type Distribution struct {
	Name      string
	security  string // the security policy that viewers must speak
	root      string // the path that stands for /, or empty
	behaviors []*Behavior
}

// Behavior is how the requests of one path pattern are treated.
type Behavior struct {
	Pattern        string // * in the default behaviour, which is last
	ViewerProtocol string
	Methods        []string
	PolicyName     string
	Policy         *cache.Policy
	Origin         *spec.Origin
	upstream       *upstream
	down           down
}

// compile makes a spec ready, of the table of the one before (which stays as it is) and what changed; or it says all that
// the spec refers to and does not have. It returns the distributions that came and went, too.
func compile(s *spec.Spec, old *Table, connect func(*spec.Origin) (*upstream, error)) (t *Table, came, went []*Distribution, err error) {
	var faults []error
	c := compiler{spec: s, connect: connect, policies: map[policyKey]*cache.Policy{}}
	all, exact, wildcards := old.all.Edit(), old.exact.Edit(), old.wildcards.Edit()
	changed := distributions(old.spec, s)
	for _, change := range changed {
		if d, had := all.Lookup(change.Name); had {
			went = append(went, d)
			all.Delete(change.Name)
			for _, alias := range change.Old.Aliases {
				if suffix, wild := wildcard(alias); wild {
					wildcards.Delete(suffix)
				} else {
					exact.Delete(hostname(alias))
				}
			}
		}
	}
	for _, change := range changed {
		from := change.New
		if from == nil || from.Enabled != nil && !*from.Enabled {
			continue
		}
		d, err := c.distribution(from)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		came = append(came, d)
		all.Set(d.Name, d)
		for _, alias := range from.Aliases {
			table, host := exact, hostname(alias)
			if suffix, wild := wildcard(alias); wild {
				table, host = wildcards, suffix
			}
			if other, taken := table.Lookup(host); taken && other != d {
				faults = append(faults, fmt.Errorf("distribution %s: %s is an alias of %s", d.Name, alias, other.Name))
				continue
			}
			table.Set(host, d)
		}
	}
	if err := errors.Join(faults...); err != nil {
		return nil, nil, nil, err
	}
	return &Table{spec: s, all: all.Map(), exact: exact.Map(), wildcards: wildcards.Map(), httpsPort: old.httpsPort}, came, went, nil
}

// distributions are those that changed, by themselves or in the cache policies that they use.
func distributions(old, s *spec.Spec) []kept.Change[spec.Distribution] {
	changed := kept.Changes(old.Distributions, s.Distributions)
	policies := map[string]bool{}
	for _, c := range kept.Changes(old.CachePolicies, s.CachePolicies) {
		if c.Old != nil { // else nobody used it
			policies[c.Name] = true
		}
	}
	if len(policies) == 0 {
		return changed
	}
	for name, d := range s.Distributions {
		uses := policies[d.DefaultCacheBehavior.CachePolicy] ||
			slices.ContainsFunc(d.CacheBehaviors, func(b spec.CacheBehavior) bool { return policies[b.CachePolicy] })
		if uses && d == old.Distributions[name] {
			changed = append(changed, kept.Change[spec.Distribution]{Name: name, Old: d, New: d})
		}
	}
	return changed
}

// wildcard is what follows the asterisk of an alias, if it has one.
func wildcard(alias string) (suffix string, wild bool) {
	return strings.CutPrefix(strings.ToLower(alias), "*")
}

type compiler struct {
	spec     *spec.Spec
	connect  func(*spec.Origin) (*upstream, error)
	policies map[policyKey]*cache.Policy // that were made already
}

type policyKey struct {
	name      string
	errorTTL  time.Duration
	tagHeader string
}

func (c *compiler) distribution(from *spec.Distribution) (*Distribution, error) {
	d := &Distribution{Name: from.Name, security: from.ViewerCertificate.MinimumProtocolVersion, behaviors: make([]*Behavior, 0, len(from.CacheBehaviors)+1)}
	if from.DefaultRootObject != "" {
		d.root = "/" + strings.TrimPrefix(from.DefaultRootObject, "/")
	}
	var faults []error
	add := func(b *spec.CacheBehavior) {
		made, err := c.behavior(from, b)
		if err != nil {
			faults = append(faults, fmt.Errorf("distribution %s: behaviour %s: %w", from.Name, cmp.Or(b.PathPattern, "*"), err))
			return
		}
		d.behaviors = append(d.behaviors, made)
	}
	for i := range from.CacheBehaviors {
		add(&from.CacheBehaviors[i])
	}
	add(&from.DefaultCacheBehavior)
	return d, errors.Join(faults...)
}

func (c *compiler) behavior(d *spec.Distribution, b *spec.CacheBehavior) (*Behavior, error) {
	from := c.spec.CachePolicies[b.CachePolicy]
	if from == nil {
		return nil, fmt.Errorf("cache policy %q: %w", b.CachePolicy, errUnknown)
	}
	key := policyKey{b.CachePolicy, d.ErrorCachingMinTTL.Std(), http.CanonicalHeaderKey(d.CacheTagConfig.HeaderName)}
	policy := c.policies[key]
	if policy == nil {
		policy = cache.NewPolicy(from, key.errorTTL)
		policy.TagHeader = key.tagHeader
		c.policies[key] = policy
	}
	at := slices.IndexFunc(d.Origins, func(o spec.Origin) bool { return o.Name == b.TargetOrigin })
	if at < 0 {
		return nil, fmt.Errorf("origin %q: %w", b.TargetOrigin, errUnknown)
	}
	made := &Behavior{
		Pattern: cmp.Or(b.PathPattern, "*"), ViewerProtocol: b.ViewerProtocolPolicy, Methods: b.AllowedMethods,
		PolicyName: b.CachePolicy, Policy: policy, Origin: &d.Origins[at],
	}
	if !strings.HasPrefix(made.Pattern, "/") && !strings.HasPrefix(made.Pattern, "*") {
		made.Pattern = "/" + made.Pattern
	}
	var err error
	made.upstream, err = c.connect(made.Origin)
	return made, err
}

// Request is what routing looks at, and the key besides the header.
type Request struct {
	Method string
	Host   string // as the viewer wrote it
	Path   string // as the viewer wrote it, escaped
	Query  string
	TLS    bool
	Bytes  int  // of the request line and header
	Body   bool // there is one
	// WebSocket says that the viewer wants to upgrade to it.
	WebSocket bool
	// Loops is how many times the request has passed through Perigee (CDN-Loop).
	Loops int
}

// Decision is what routing comes to: a behaviour that serves the request, or an answer at once.
type Decision struct {
	Request      Request
	Distribution *Distribution
	Behavior     *Behavior
	Path         string // the request's, or the default root object's

	Status   int // of the answer at once; 0 if there is none
	Reason   string
	Location string // of a redirect

	table *Table
}

// Route finds the distribution and behaviour of a request.
func (t *Table) Route(q Request, tr *trace.Trace) Decision {
	d := Decision{Request: q, Path: q.Path, table: t}
	no := func(status int, reason string) Decision {
		d.Status, d.Reason = status, reason
		tr.Add("answered %d: %s", status, reason)
		return d
	}
	host := hostname(q.Host)
	if d.Distribution = t.distribution(host); d.Distribution == nil {
		return no(http.StatusForbidden, "no distribution answers for this host")
	}
	if tr.On() {
		tr.Add("distribution %s answers for %s", d.Distribution.Name, host)
	}
	switch {
	case len(q.Path)+min(len(q.Query), 1)+len(q.Query) > maxURL:
		return no(http.StatusRequestURITooLong, "the URL is over 8,192 bytes")
	case q.Bytes > maxRequest:
		return no(http.StatusRequestEntityTooLarge, "the request line and header are over 20,480 bytes")
	case q.Loops >= maxLoops:
		return no(http.StatusLoopDetected, "the request came round in a circle of origins")
	case !strings.HasPrefix(q.Path, "/"):
		return no(http.StatusForbidden, "the request is for no path")
	}
	if d.Distribution.root != "" && q.Path == "/" {
		d.Path = d.Distribution.root
		tr.Add("default root object: %s", d.Path)
	}
	d.Behavior = d.Distribution.behavior(d.Path, tr)
	b := d.Behavior
	switch {
	case !q.TLS && b.ViewerProtocol == spec.HTTPSOnly:
		return no(http.StatusForbidden, "only https is answered")
	case !q.TLS && b.ViewerProtocol == spec.RedirectToHTTPS:
		d.Location = "https://" + host + t.httpsPort + q.Path
		if q.Query != "" {
			d.Location += "?" + q.Query
		}
		if q.Method == http.MethodGet || q.Method == http.MethodHead {
			return no(http.StatusMovedPermanently, "moved to https")
		}
		return no(http.StatusTemporaryRedirect, "moved to https") // the method and body are to stay
	case !slices.Contains(b.Methods, q.Method):
		return no(http.StatusForbidden, "the method is not allowed here")
	case q.Body && (q.Method == http.MethodGet || q.Method == http.MethodHead):
		return no(http.StatusForbidden, "a GET with a body is not answered")
	case q.WebSocket:
		return no(http.StatusNotImplemented, "WebSocket is not served yet")
	}
	return d
}

// distribution finds the distribution of a host: by its name, or the wildcard that fits most of it.
func (t *Table) distribution(host string) *Distribution {
	if d := t.exact.Get(host); d != nil {
		return d
	}
	for dot := strings.IndexByte(host, '.'); dot >= 0; {
		if d := t.wildcards.Get(host[dot:]); d != nil {
			return d
		}
		next := strings.IndexByte(host[dot+1:], '.')
		if next < 0 {
			return nil
		}
		dot += 1 + next
	}
	return nil
}

// behavior is the first whose pattern matches the path.
func (d *Distribution) behavior(path string, tr *trace.Trace) *Behavior {
	at := normal(path)
	for _, b := range d.behaviors[:len(d.behaviors)-1] {
		if spec.Glob(b.Pattern, at) {
			if tr.On() {
				tr.Add("behaviour %s matches %s", b.Pattern, at)
			}
			return b
		}
		if tr.On() {
			tr.Add("behaviour %s does not match %s", b.Pattern, at)
		}
	}
	tr.Add("the default behaviour")
	return d.behaviors[len(d.behaviors)-1]
}

// hostname is a host in the form in which hosts are compared: lower case, without port and final dot.
func hostname(host string) string {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && i > strings.LastIndexByte(host, ']') {
		host = host[:i]
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// normal is the path that patterns are matched against (RFC 3986 §6.2.2, as CloudFront does): unreserved characters
// not escaped, hexadecimal in upper case, no empty, . or .. segments. The origin is sent the path as it came; without
// this /private/x could be had by the rules for /public as /public/../private/x.
func normal(path string) string {
	if !strings.Contains(path, "//") && !strings.Contains(path, "/.") && !strings.Contains(path, "%") {
		return path
	}
	path = unescapeUnreserved(path)
	var segments []string
	rest := strings.Split(path, "/")[1:]
	for i, s := range rest {
		last := i == len(rest)-1
		switch {
		case s == "..":
			segments = segments[:max(0, len(segments)-1)]
			fallthrough
		case s == ".", s == "":
			if last {
				segments = append(segments, "")
			}
		default:
			segments = append(segments, s)
		}
	}
	return "/" + strings.Join(segments, "/")
}

func unescapeUnreserved(path string) string {
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		if path[i] != '%' || i+2 >= len(path) || !isHex(path[i+1]) || !isHex(path[i+2]) {
			b.WriteByte(path[i])
			continue
		}
		c := unhex(path[i+1])<<4 | unhex(path[i+2])
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~", c) >= 0 {
			b.WriteByte(c)
		} else {
			b.WriteString(strings.ToUpper(path[i : i+3]))
		}
		i += 2
	}
	return b.String()
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func unhex(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c&^0x20 - 'A' + 10
}
