package cdn

import (
	"fmt"
	"maps"
	"net/url"
	"reflect"
	"runtime"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/cluster/view"
)

func seconds(n int) *spec.Duration {
	d := spec.Duration(time.Duration(n) * time.Second)
	return &d
}

func anOrigin(name, url string) spec.Origin {
	return spec.Origin{Name: name, URL: url, ConnectionAttempts: 3, ConnectionTimeout: seconds(10), ResponseTimeout: seconds(30)}
}

func aPolicy(name string, most int) *spec.CachePolicy {
	return &spec.CachePolicy{Name: name, MinTTL: seconds(0), DefaultTTL: seconds(most), MaxTTL: seconds(most)}
}

var (
	hosts     = []string{"a.test", "b.test", "*.test", "*.a.test", "C.test"}
	originURL = []string{"http://one.test", "https://two.test", "http://three.test:81", "ftp://four.test"}
)

// edited draws a spec that differs from another in a few resources; it may be one that is to be refused.
func edited(t *rapid.T, s *spec.Spec) *spec.Spec {
	next := &spec.Spec{Revision: s.Revision + 1, Distributions: s.Distributions, CachePolicies: s.CachePolicies}
	policy := rapid.SampledFrom([]string{"p", "p", "p", "q"})
	if rapid.IntRange(0, 2).Draw(t, "policies") == 0 {
		next.CachePolicies = maps.Clone(s.CachePolicies)
		if name := policy.Draw(t, "policy"); rapid.IntRange(0, 4).Draw(t, "delete") == 0 {
			delete(next.CachePolicies, name)
		} else {
			next.CachePolicies[name] = aPolicy(name, rapid.IntRange(0, 2).Draw(t, "ttl"))
		}
	}
	if rapid.IntRange(0, 3).Draw(t, "distributions") == 0 {
		return next
	}
	next.Distributions = maps.Clone(s.Distributions)
	for range rapid.IntRange(1, 3).Draw(t, "edits") {
		name := rapid.StringMatching(`[a-c]`).Draw(t, "name")
		if rapid.IntRange(0, 3).Draw(t, "delete") == 0 {
			delete(next.Distributions, name)
			continue
		}
		enabled := rapid.IntRange(0, 4).Draw(t, "enabled") > 0
		d := &spec.Distribution{
			Name: name, Enabled: &enabled, ErrorCachingMinTTL: seconds(10), DefaultRootObject: rapid.SampledFrom([]string{"", "index.html"}).Draw(t, "root"),
			Origins:              []spec.Origin{anOrigin("o", rapid.SampledFrom(originURL).Draw(t, "url")), anOrigin("u", rapid.SampledFrom(originURL[:3]).Draw(t, "url"))},
			DefaultCacheBehavior: spec.CacheBehavior{TargetOrigin: "u", ViewerProtocolPolicy: spec.AllowAll, AllowedMethods: []string{"GET", "HEAD"}, CachePolicy: policy.Draw(t, "policy")},
		}
		for range rapid.IntRange(1, 2).Draw(t, "aliases") {
			d.Aliases = append(d.Aliases, rapid.SampledFrom(hosts).Draw(t, "alias"))
		}
		if rapid.Bool().Draw(t, "behaviour") {
			d.CacheBehaviors = []spec.CacheBehavior{{
				PathPattern: "/x*", TargetOrigin: rapid.SampledFrom([]string{"o", "o", "u", "none"}).Draw(t, "target"),
				ViewerProtocolPolicy: spec.RedirectToHTTPS, AllowedMethods: []string{"GET", "HEAD"}, CachePolicy: policy.Draw(t, "policy"),
			}}
		}
		next.Distributions[name] = d
	}
	return next
}

// told is all that a plane says of what it would do, and how it would reach its origins.
func told(t *rapid.T, p *Plane) (lines []trace.Line, upstreams map[upstreamKey]int) {
	tr := new(trace.Trace)
	for _, host := range []string{"a.test", "b.test", "c.test", "x.a.test", "other"} {
		for _, at := range []string{"http://" + host + "/", "https://" + host + "/x"} {
			u, err := url.Parse(at)
			if err != nil {
				t.Fatal(err)
			}
			outcome, err := p.Explain("GET", u, tr)
			tr.Add("%s %v", outcome, err)
			d := p.table.Load().Route(Request{Method: "GET", Host: host, Path: u.Path, TLS: u.Scheme == "https"}, nil)
			if d.Behavior != nil {
				tr.Add("%v %+v", d.Behavior.Policy, d.Behavior.upstream.key)
			}
		}
	}
	upstreams = map[upstreamKey]int{}
	for key, u := range p.upstreams {
		upstreams[key] = u.users
	}
	return tr.Lines(), upstreams
}

func TestAPlaneThatWasChangedIsAsOneThatWasMadeAnew(t *testing.T) {
	plane := func() *Plane { return New(Config{CacheBytes: 1 << 20, View: func() *view.View { return nil }}) }
	rapid.Check(t, func(t *rapid.T) {
		p := plane()
		defer p.Close()
		s := &spec.Spec{Distributions: map[string]*spec.Distribution{}, CachePolicies: map[string]*spec.CachePolicy{"p": aPolicy("p", 9)}}
		good := new(spec.Spec)
		for range rapid.IntRange(1, 8).Draw(t, "revisions") {
			s = edited(t, s)
			before := p.table.Load()
			err := p.Apply(s)
			fresh := plane()
			defer fresh.Close()
			freshErr := fresh.Apply(s)
			if (err == nil) != (freshErr == nil) {
				t.Fatalf("changed: %v, anew: %v", err, freshErr)
			}
			if err == nil {
				good = s
			} else if p.table.Load() != before || fresh.Apply(good) != nil {
				t.Fatal("the one before does not stand")
			}
			got, gotUp := told(t, p)
			want, wantUp := told(t, fresh)
			if !reflect.DeepEqual(got, want) || !maps.Equal(gotUp, wantUp) {
				t.Fatalf("got\n%v\n%v\nwant\n%v\n%v", got, gotUp, want, wantUp)
			}
			if err != nil && rapid.Bool().Draw(t, "go back") {
				s = &spec.Spec{Distributions: maps.Clone(good.Distributions), CachePolicies: maps.Clone(good.CachePolicies)}
				if s.Distributions == nil {
					s.Distributions, s.CachePolicies = map[string]*spec.Distribution{}, map[string]*spec.CachePolicy{"p": aPolicy("p", 9)}
				}
			}
		}
	})
}

func TestTwoDistributionsOfOneHostAreRefused(t *testing.T) {
	s := build(t, distribution("a", "www.test", toWeb)+distribution("b", "img.test", toWeb))
	p := New(Config{CacheBytes: 1 << 20})
	defer p.Close()
	if err := p.Apply(s); err != nil {
		t.Fatal(err)
	}
	next := *s
	next.Distributions = maps.Clone(s.Distributions)
	b := *s.Distributions["b"]
	b.Aliases = []string{"www.test"}
	next.Distributions["b"] = &b
	if err := p.Apply(&next); err == nil || !p.Hosts("img.test") {
		t.Errorf("%v", err)
	}
	a := *s.Distributions["a"]
	a.Aliases = []string{"img.test"}
	next.Distributions["a"] = &a
	if err := p.Apply(&next); err != nil { // they have changed places
		t.Fatal(err)
	}
	if d := p.table.Load().distribution("img.test"); d == nil || d.Name != "a" {
		t.Errorf("img.test is %v", d)
	}
}

func BenchmarkApplyOneOf100000(b *testing.B) {
	const n = 100_000
	s := &spec.Spec{Distributions: map[string]*spec.Distribution{}, CachePolicies: map[string]*spec.CachePolicy{"p": aPolicy("p", 9), "q": aPolicy("q", 9)}}
	for i := range n {
		d := &spec.Distribution{
			Name: fmt.Sprintf("web-%d", i), Aliases: []string{fmt.Sprintf("www%d.example.com", i)}, ErrorCachingMinTTL: seconds(10),
			DefaultCacheBehavior: spec.CacheBehavior{TargetOrigin: "web", ViewerProtocolPolicy: spec.AllowAll, CachePolicy: "p"},
		}
		if i%2 == 0 {
			d.Origins = []spec.Origin{anOrigin("web", fmt.Sprintf("http://web%d.example.net", i))}
		} else {
			o := anOrigin("web", "")
			o.LoadBalancers = []string{"web"}
			d.Origins = []spec.Origin{o}
		}
		s.Distributions[d.Name] = d
	}
	changed := *s.Distributions["web-40"]
	changed.DefaultRootObject = "index.html"
	one := *s
	one.Distributions = maps.Clone(s.Distributions)
	one.Distributions["web-40"] = &changed
	gone := *s
	gone.Distributions = maps.Clone(s.Distributions)
	delete(gone.Distributions, "web-40")
	policy := *s
	policy.CachePolicies = map[string]*spec.CachePolicy{"p": s.CachePolicies["p"], "q": aPolicy("q", 8)}
	for _, c := range []struct {
		name string
		next *spec.Spec
	}{{"distribution", &one}, {"deleted", &gone}, {"policy that nobody uses", &policy}, {"nothing of this plane's", &spec.Spec{Distributions: s.Distributions, CachePolicies: s.CachePolicies}}} {
		b.Run(c.name, func(b *testing.B) {
			before := heap()
			p := New(Config{CacheBytes: 1 << 20})
			defer p.Close()
			if err := p.Apply(s); err != nil {
				b.Fatal(err)
			}
			kept := heap() - before
			b.ReportAllocs()
			specs := []*spec.Spec{c.next, s}
			for i := 0; b.Loop(); i++ {
				if err := p.Apply(specs[i%2]); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(kept)/n, "B/resource")
		})
	}
	runtime.KeepAlive(s)
}

func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
