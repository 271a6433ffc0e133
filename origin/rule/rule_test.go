package rule

import (
	"fmt"
	"testing"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/trace"
)

func forward(group string) spec.Action { return spec.Action{Forward: group} }

func hosts(p ...string) spec.Condition   { return spec.Condition{HostHeader: p} }
func paths(p ...string) spec.Condition   { return spec.Condition{PathPattern: p} }
func methods(p ...string) spec.Condition { return spec.Condition{HTTPRequestMethod: p} }

func compile(t testing.TB, rules ...spec.ListenerRule) *Rules {
	t.Helper()
	r, err := Compile(&spec.Listener{Rules: rules, Default: forward("default")})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestTheLowestPriorityThatMatchesWins(t *testing.T) {
	r := compile(t,
		spec.ListenerRule{Priority: 30, Conditions: []spec.Condition{paths("/*")}, Action: forward("any path")},
		spec.ListenerRule{Priority: 10, Conditions: []spec.Condition{hosts("api.example.com"), paths("/v1/*")}, Action: forward("v1")},
		spec.ListenerRule{Priority: 20, Conditions: []spec.Condition{hosts("*.example.com", "example.org"), methods("GET", "HEAD")}, Action: forward("reads")},
		spec.ListenerRule{Priority: 25, Conditions: []spec.Condition{paths("/img/?.png")}, Action: forward("images")},
	)
	for _, c := range []struct {
		method, host, path, want string
	}{
		{"GET", "api.example.com", "/v1/users", "v1"},
		{"GET", "API.Example.COM", "/v1/users", "v1"},      // hosts compare without case
		{"GET", "api.example.com:8080", "/v1/users", "v1"}, // and without the port
		{"GET", "api.example.com", "/V1/users", "reads"},   // paths with case
		{"POST", "api.example.com", "/V1/users", "any path"},
		{"GET", "api.example.com", "/v1", "reads"}, // * needs its slash
		{"GET", "example.org", "/", "reads"},
		{"GET", "www.example.org", "/", "any path"},
		{"GET", "example.com", "/", "any path"}, // *.example.com is not example.com
		{"get", "example.org", "/", "any path"}, // methods with case
		{"GET", "[2001:db8::1]:80", "/img/a.png", "images"},
		{"GET", "x", "/img/ab.png", "any path"}, // ? is exactly one
		{"GET", "x", "/img/.png", "any path"},
		{"OPTIONS", "x", "*", "default"},
	} {
		got := Match(r, Request{Method: c.method, Host: c.host, Path: c.path}, nil)
		if got.Forward != c.want {
			t.Errorf("%s %s%s: forwarded to %q, want %q", c.method, c.host, c.path, got.Forward, c.want)
		}
	}
}

func TestWhatIsExplainedIsWhatIsChosen(t *testing.T) {
	r := compile(t,
		spec.ListenerRule{Priority: 1, Conditions: []spec.Condition{hosts("a.example")}, Action: forward("a")},
		spec.ListenerRule{Priority: 2, Conditions: []spec.Condition{paths("/b", "/b/*")}, Action: spec.Action{FixedResponse: &spec.FixedResponse{StatusCode: 404}}},
	)
	for path, want := range map[string]string{
		"/b/c": "rule 1 does not match: host \"b.example\" is not a.example\nrule 2 matches: answer 404\n",
		"/c":   "rule 1 does not match: host \"b.example\" is not a.example\nrule 2 does not match: path \"/c\" is not /b or /b/*\ndefault action: forward to default\n",
	} {
		tr := new(trace.Trace)
		req := Request{Method: "GET", Host: "b.example:80", Path: path}
		explained, chosen := Match(r, req, tr), Match(r, req, nil)
		if explained != chosen {
			t.Errorf("%s: explained %v, chosen %v", path, explained, chosen)
		}
		if tr.String() != want {
			t.Errorf("%s: got\n%swant\n%s", path, tr, want)
		}
	}
}

func TestRulesThatAreNotRulesAreRefused(t *testing.T) {
	some := []spec.Condition{paths("/")}
	for name, l := range map[string]spec.Listener{
		"no default":        {},
		"two defaults":      {Default: spec.Action{Forward: "a", Redirect: &spec.Redirect{}}},
		"no action":         {Default: forward("a"), Rules: []spec.ListenerRule{{Priority: 1, Conditions: some}}},
		"no conditions":     {Default: forward("a"), Rules: []spec.ListenerRule{{Priority: 1, Action: forward("a")}}},
		"an empty one":      {Default: forward("a"), Rules: []spec.ListenerRule{{Priority: 1, Conditions: make([]spec.Condition, 1), Action: forward("a")}}},
		"priorities repeat": {Default: forward("a"), Rules: []spec.ListenerRule{{Priority: 1, Conditions: some, Action: forward("a")}, {Priority: 1, Conditions: some, Action: forward("b")}}},
	} {
		if _, err := Compile(&l); err == nil {
			t.Errorf("%s: compiled", name)
		}
	}
}

func TestARedirectKeepsWhatItDoesNotName(t *testing.T) {
	req := Request{Protocol: "http", Host: "Shop.example:8080", Port: 8080, Path: "/a%20b/c", Query: "q=1&r=%2F"}
	for _, c := range []struct {
		redirect spec.Redirect
		want     string
	}{
		{spec.Redirect{Protocol: "HTTPS", Port: "443"}, "https://shop.example:443/a%20b/c?q=1&r=%2F"},
		{spec.Redirect{Host: "www.#{host}"}, "http://www.shop.example:8080/a%20b/c?q=1&r=%2F"},
		{spec.Redirect{Path: "/new/#{path}"}, "http://shop.example:8080/new/a%20b/c?q=1&r=%2F"}, // #{path} has no leading slash
		{spec.Redirect{Path: "/", Query: "from=#{path}&#{query}"}, "http://shop.example:8080/?from=a%20b/c&q=1&r=%2F"},
		{spec.Redirect{Path: "/#{host}/#{port}/#{protocol}"}, "http://shop.example:8080/shop.example/8080/http?q=1&r=%2F"},
		{spec.Redirect{Host: "[2001:db8::1]"}, "http://[2001:db8::1]:8080/a%20b/c?q=1&r=%2F"},
	} {
		if got := Location(&c.redirect, req); got != c.want {
			t.Errorf("%+v: got %s, want %s", c.redirect, got, c.want)
		}
	}
	plain := Request{Protocol: "http", Host: "h", Port: 80, Path: "/#{host}"}
	if got := Location(&spec.Redirect{Protocol: "#{protocol}s"}, plain); got != "https://h:80/#{host}" {
		t.Errorf("what a client sent was filled in again, or an empty query left a mark: %s", got)
	}
}

func TestRedirectsAre301Or302(t *testing.T) {
	if got := Status(&spec.Redirect{StatusCode: "HTTP_301"}); got != 301 {
		t.Error(got)
	}
	if got := Status(&spec.Redirect{StatusCode: "HTTP_302"}); got != 302 {
		t.Error(got)
	}
}

// The worst listener: a hundred rules, as many as ALB takes, of which the last matches.
func BenchmarkMatchTheLastOfAHundredRules(b *testing.B) {
	var rules []spec.ListenerRule
	for i := range 100 {
		rules = append(rules, spec.ListenerRule{
			Priority:   i + 1,
			Conditions: []spec.Condition{hosts("*.example.com"), paths(fmt.Sprintf("/service-%02d/*", i))},
			Action:     forward("g"),
		})
	}
	r := compile(b, rules...)
	req := Request{Method: "GET", Host: "www.example.com", Path: "/service-99/index.html"}
	b.ReportAllocs()
	for b.Loop() {
		Match(r, req, nil)
	}
}
