package cdn

import (
	"cmp"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/edge/cache"
)

// Explain says what would become of a request without cookies and headers, by the functions that serve, and does
// nothing. The reasons go to the trace, the outcome is returned.
func (p *Plane) Explain(method string, u *url.URL, tr *trace.Trace) (string, error) {
	if u.Host == "" {
		return "", fmt.Errorf("explain %s: a URL needs a host", u)
	}
	d := p.table.Load().Route(Request{
		Method: method, Host: u.Host, Path: cmp.Or(u.EscapedPath(), "/"), Query: u.RawQuery, TLS: u.Scheme == "https",
	}, tr)
	if d.Status != 0 {
		return fmt.Sprintf("%d %s: %s", d.Status, http.StatusText(d.Status), d.Reason), nil
	}
	b := d.Behavior
	tr.Add("cache policy %s: at least %s, %s where the origin says nothing, at most %s", b.PolicyName, b.Policy.MinTTL, b.Policy.DefaultTTL, b.Policy.MaxTTL)
	if !d.cacheable(method) {
		return "pass: nothing is kept; " + p.explainOrigin(d, tr), nil
	}
	now, none := time.Now(), http.Header{}
	found := p.cache.Find(b.Policy.Key(d.target(), none), b.Policy, none, now, tr)
	if o := found.Object; o != nil {
		reuse := found.Reuse(now, tr)
		if reuse == cache.Stale && p.reuse(d, cache.Demand{}, found, now) == cache.StaleIfError {
			tr.Add("its origin failed less than %s ago: used at once", knownDown)
			reuse = cache.StaleIfError
		}
		switch reuse {
		case cache.Fresh:
			return fmt.Sprintf("hit: status %d, fresh for another %s", o.Status, o.FreshFor(now).Round(time.Second)), nil
		case cache.StaleWhileRevalidate, cache.StaleIfError:
			return fmt.Sprintf("hit: status %d, stale for %s", o.Status, -o.FreshFor(now).Round(time.Second)), nil
		}
		if found.Fenced {
			return "fenced: " + p.explainOrigin(d, tr), nil
		}
		return "stale: " + p.explainOrigin(d, tr), nil
	}
	if found.Apart {
		return "pass: what the origin sent was not to be shared; " + p.explainOrigin(d, tr), nil
	}
	return "miss: " + p.explainOrigin(d, tr), nil
}

func (p *Plane) explainOrigin(d Decision, tr *trace.Trace) string {
	b := d.Behavior
	if b.Origin.URL != "" {
		tr.Add("origin %s: %s", b.Origin.Name, b.Origin.URL)
		return "asks " + b.Origin.URL
	}
	out := tr.In("origin %s: in which order are its load balancers asked?", b.Origin.Name)
	defer out()
	order := Order(d.table.spec, p.cfg.View(), b.Origin, tr)
	if len(order) == 0 {
		return errNowhere.Error()
	}
	return fmt.Sprintf("asks %s in %s at node %s", order[0].LoadBalancer, order[0].Region, order[0].Node)
}
