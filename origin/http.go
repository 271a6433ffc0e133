package origin

import (
	"cmp"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/origin/rule"
)

// Handler answers the requests that clients bring to a listener of this node. What the listener does is looked up
// for each request, so a Handler stays good from one spec to the next.
func (p *Plane) Handler(loadBalancer string, port uint16) http.Handler {
	k := listenerKey{loadBalancer, port}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.serve(w, r, k, false) })
}

// HTTP answers the requests that edge nodes bring over the backbone to the service "http"; the resource is
// "<load balancer>/<listener port>". Not ok: there is no such HTTP listener in this region.
//
// An edge node stands in front of the client as the listener itself would, so what it says of the client stands: the
// X-Forwarded headers and the Host it sends are passed on as they are, and filled in where it sends none.
func (p *Plane) HTTP(resource string) (h http.Handler, ok bool) {
	k, ok := parseListener(resource)
	if l := p.table.Load().listener(k); !ok || l == nil || !l.local || l.protocol == spec.TCP {
		return nil, false
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.serve(w, r, k, true) }), true
}

// parseListener reads "<load balancer>/<port>".
func parseListener(s string) (listenerKey, bool) {
	name, port, ok := strings.Cut(s, "/")
	n, err := strconv.ParseUint(port, 10, 16)
	return listenerKey{name, uint16(n)}, ok && err == nil
}

// serve answers one request; inside says that it came over the backbone.
func (p *Plane) serve(w http.ResponseWriter, r *http.Request, k listenerKey, inside bool) {
	p.counters.requests.Add(1)
	table := p.table.Load()
	l := table.listener(k)
	switch {
	case l == nil || !l.local || l.protocol == spec.TCP:
		p.answer(w, http.StatusServiceUnavailable)
		return
	case r.Method == http.MethodTrace || r.Method == http.MethodConnect: // ALB
		p.answer(w, http.StatusMethodNotAllowed)
		return
	case r.URL.Opaque != "": // GET mailto:x has no path to go by
		p.answer(w, http.StatusBadRequest)
		return
	}

	req := request(r, k.port)
	switch action, g := table.decide(l, req, nil); {
	case g != nil:
		p.forward(w, r, l, g, inside)
	case action.Redirect != nil:
		p.counters.redirected.Add(1)
		w.Header().Set("Location", rule.Location(action.Redirect, req))
		p.respond(w, rule.Status(action.Redirect), "")
	default:
		p.counters.fixed.Add(1)
		f := action.FixedResponse
		if f.MessageBody != "" {
			w.Header().Set("Content-Type", cmp.Or(f.ContentType, "text/plain"))
		}
		p.respond(w, f.StatusCode, f.MessageBody)
	}
}

// request is what rules look at.
func request(r *http.Request, port uint16) rule.Request {
	return rule.Request{
		Method:   r.Method,
		Protocol: protocol(r),
		Host:     r.Host,
		Port:     port,
		Path:     cmp.Or(r.URL.EscapedPath(), "/"),
		Query:    r.URL.RawQuery,
	}
}

func protocol(r *http.Request) string {
	if r.TLS != nil {
		return "https"
	}
	return "http"
}

// answer gives an error of the load balancer's own.
func (p *Plane) answer(w http.ResponseWriter, status int) {
	w.Header().Set("Content-Type", "text/plain")
	p.respond(w, status, fmt.Sprintf("%d %s\n", status, http.StatusText(status)))
}

// respond gives a response of the load balancer's own.
func (p *Plane) respond(w http.ResponseWriter, status int, body string) {
	p.counters.fromLoadBalancer[class(status)].Add(1)
	w.WriteHeader(status)
	io.WriteString(w, body)
}
