// Package rule chooses what becomes of a request at a listener: the rules of an application load balancer
// (ELB listener rules), compiled, and the redirects they build. It is pure: it opens nothing, sends nothing
// and knows no target. A listener whose rules do not compile is refused whole; one that does always has an
// answer, its default action if nothing else.
package rule

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/trace"
)

// Rules are those of one listener, compiled. They are immutable.
type Rules struct {
	rules  []compiled // lowest priority first
	action spec.Action
}

type compiled struct {
	priority   int
	conditions []condition
	action     spec.Action
}

// condition holds when one of its patterns matches the field.
type condition struct {
	field    field
	patterns []string // hosts in lower case
}

type field int

const (
	hostHeader field = iota
	pathPattern
	httpRequestMethod
)

func (f field) String() string { return [...]string{"host", "path", "method"}[f] }

// Request is what rules look at, and what redirects are built of.
type Request struct {
	Method string
	// Protocol is http or https: what the client speaks to the listener.
	Protocol string
	// Host is the Host header as it was sent, with its port if it has one.
	Host string
	// Port is the listener's.
	Port uint16
	// Path is the URL's path as it was sent: escaped, with its leading slash.
	Path string
	// Query is what stands after the question mark, as it was sent.
	Query string
}

// Compile makes the rules of a listener. The errors are those that a validated spec does not have.
func Compile(l *spec.Listener) (*Rules, error) {
	r := &Rules{action: l.Default}
	if err := one(l.Default); err != nil {
		return nil, fmt.Errorf("default action: %w", err)
	}
	for _, sr := range l.Rules {
		c := compiled{priority: sr.Priority, action: sr.Action}
		if err := one(sr.Action); err != nil {
			return nil, fmt.Errorf("rule %d: %w", sr.Priority, err)
		}
		for _, sc := range sr.Conditions {
			c.add(hostHeader, sc.HostHeader)
			c.add(pathPattern, sc.PathPattern)
			c.add(httpRequestMethod, sc.HTTPRequestMethod)
		}
		if len(c.conditions) == 0 {
			return nil, fmt.Errorf("rule %d: no conditions", sr.Priority)
		}
		r.rules = append(r.rules, c)
	}
	slices.SortFunc(r.rules, func(a, b compiled) int { return cmp.Compare(a.priority, b.priority) })
	for i := 1; i < len(r.rules); i++ {
		if r.rules[i].priority == r.rules[i-1].priority {
			return nil, fmt.Errorf("rule %d: two rules of one priority", r.rules[i].priority)
		}
	}
	return r, nil
}

func (c *compiled) add(f field, patterns []string) {
	if len(patterns) == 0 {
		return
	}
	patterns = slices.Clone(patterns)
	if f == hostHeader {
		for i, p := range patterns {
			patterns[i] = strings.ToLower(p)
		}
	}
	c.conditions = append(c.conditions, condition{field: f, patterns: patterns})
}

// one says whether exactly one field of the action is set.
func one(a spec.Action) error {
	n := 0
	for _, set := range []bool{a.Forward != "", a.FixedResponse != nil, a.Redirect != nil} {
		if set {
			n++
		}
	}
	if n != 1 {
		return fmt.Errorf("an action is one of forward, fixedResponse, redirect: %d are set", n)
	}
	return nil
}

// Match returns the action of the first rule, by priority, whose conditions all hold, or else the default.
// Hosts compare without case and without their port; paths and methods with case (ALB).
func Match(r *Rules, req Request, t *trace.Trace) spec.Action {
	host := hostname(req.Host)
	for i := range r.rules {
		c := &r.rules[i]
		if c.holds(host, &req, t) {
			return c.action
		}
	}
	if t.On() {
		t.Add("default action: %s", Describe(r.action))
	}
	return r.action
}

func (c *compiled) holds(host string, req *Request, t *trace.Trace) bool {
	for i := range c.conditions {
		cond := &c.conditions[i]
		value := req.Path
		switch cond.field {
		case hostHeader:
			value = host
		case httpRequestMethod:
			value = req.Method
		}
		if !slices.ContainsFunc(cond.patterns, func(p string) bool { return spec.Glob(p, value) }) {
			if t.On() {
				t.Add("rule %d does not match: %s %q is not %s", c.priority, cond.field, value, strings.Join(cond.patterns, " or "))
			}
			return false
		}
	}
	if t.On() {
		t.Add("rule %d matches: %s", c.priority, Describe(c.action))
	}
	return true
}

// Describe is an action in words, for explain.
func Describe(a spec.Action) string {
	switch {
	case a.Forward != "":
		return "forward to " + a.Forward
	case a.FixedResponse != nil:
		return "answer " + strconv.Itoa(a.FixedResponse.StatusCode)
	case a.Redirect != nil:
		return "redirect"
	}
	return "nothing"
}

// hostname is a Host header's name in lower case: without port, IPv6 addresses in their brackets.
func hostname(host string) string {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && strings.IndexByte(host[i:], ']') < 0 {
		host = host[:i]
	}
	return strings.ToLower(host)
}

// Location is where a redirect sends the client. Its port is always written, as ALB does.
func Location(r *spec.Redirect, req Request) string {
	fill := strings.NewReplacer(
		"#{protocol}", req.Protocol,
		"#{host}", hostname(req.Host),
		"#{port}", strconv.Itoa(int(req.Port)),
		"#{path}", strings.TrimPrefix(req.Path, "/"),
		"#{query}", req.Query,
	)
	protocol := strings.ToLower(fill.Replace(cmp.Or(r.Protocol, "#{protocol}")))
	host := fill.Replace(cmp.Or(r.Host, "#{host}"))
	port := fill.Replace(cmp.Or(r.Port, "#{port}"))
	path := fill.Replace(cmp.Or(r.Path, "/#{path}"))
	query := fill.Replace(cmp.Or(r.Query, "#{query}"))

	location := protocol + "://" + join(host, port) + path
	if query != "" {
		location += "?" + query
	}
	return location
}

// join is host:port; the host may already stand in brackets.
func join(host, port string) string {
	if strings.HasPrefix(host, "[") {
		return host + ":" + port
	}
	return net.JoinHostPort(host, port)
}

// Status is the status code of a redirect: 301 for HTTP_301, 302 for HTTP_302.
func Status(r *spec.Redirect) int {
	if r.StatusCode == "HTTP_301" {
		return 301
	}
	return 302
}
