package cdn

import (
	"strings"
	"testing"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/trace"
)

func table(t testing.TB, text string) *Table {
	t.Helper()
	made, _, _, err := compile(build(t, text), &Table{spec: new(spec.Spec)}, func(*spec.Origin) (*upstream, error) { return nil, nil })
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func distribution(name, aliases, more string) string {
	return `
kind: Distribution
name: ` + name + `
aliases: [` + aliases + `]
origins: [{name: web, url: "http://origin.test"}]
` + more + `
---`
}

const toWeb = "defaultCacheBehavior: {targetOrigin: web}"

func TestTheDistributionIsTheOneOfTheHost(t *testing.T) {
	made := table(t, distribution("exact", "www.example.com, Example.com", toWeb)+distribution("wild", `"*.example.com"`, toWeb)+
		distribution("deeper", `"*.img.example.com"`, toWeb)+distribution("off", "off.test", "enabled: false\n"+toWeb))
	for host, want := range map[string]string{
		"www.example.com":       "exact",
		"WWW.Example.COM":       "exact",
		"www.example.com:8080":  "exact",
		"www.example.com.":      "exact",
		"example.com":           "exact",
		"a.example.com":         "wild",
		"a.b.example.com":       "wild",
		"a.img.example.com":     "deeper",
		"a.b.img.example.com:1": "deeper",
		"img.example.com":       "wild",
		"anexample.com":         "",
		"example.org":           "",
		"off.test":              "",
		"":                      "",
		".":                     "",
		"[::1]:80":              "",
	} {
		d := made.Route(Request{Method: "GET", Host: host, Path: "/"}, nil)
		got := ""
		if d.Distribution != nil {
			got = d.Distribution.Name
		}
		if got != want || (d.Status == 403) != (want == "") {
			t.Errorf("%q: got %q with status %d, want %q", host, got, d.Status, want)
		}
	}
}

func TestTheFirstBehaviourThatMatchesWins(t *testing.T) {
	made := table(t, distribution("d", "www.test", toWeb+`
cacheBehaviors:
  - {pathPattern: "images/*.jpg", targetOrigin: web}
  - {pathPattern: "/images/*", targetOrigin: web}
  - {pathPattern: "*.gif", targetOrigin: web}
  - {pathPattern: "/a?c", targetOrigin: web}
  - {pathPattern: "/private/*", targetOrigin: web}
`))
	for path, want := range map[string]string{
		"/images/a.jpg":              "/images/*.jpg",
		"/images/a/b.jpg":            "/images/*.jpg",
		"/images/a.JPG":              "/images/*",
		"/images/":                   "/images/*",
		"/images":                    "*",
		"/Images/a.jpg":              "*",
		"/a/b.gif":                   "*.gif",
		"/abc":                       "/a?c",
		"/ac":                        "*",
		"/abbc":                      "*",
		"/":                          "*",
		"/public/../private/x":       "/private/*",
		"/public/%2e%2E/private/x":   "/private/*",
		"//private//x":               "/private/*",
		"/./private/x":               "/private/*",
		"/%70rivate/x":               "/private/*",
		"/private%2fx":               "*",
		"/private/..":                "*",
		"/../../private/":            "/private/*",
		"/images/..%2fprivate/a.jpg": "/images/*.jpg",
	} {
		if d := made.Route(Request{Method: "GET", Host: "www.test", Path: path}, nil); d.Status != 0 || d.Behavior.Pattern != want || d.Path != path {
			t.Errorf("%s: got %s as %s, want %s", path, d.Behavior.Pattern, d.Path, want)
		}
	}
}

func FuzzPath(f *testing.F) {
	for _, s := range []string{"/", "/a/../b", "/%2e%2e/%", "//", "/%zz", "/a/./", "/.."} {
		f.Add(s, "/a*?b*")
	}
	f.Fuzz(func(t *testing.T, path, pattern string) {
		if !strings.HasPrefix(path, "/") {
			return
		}
		n := normal(path)
		if !strings.HasPrefix(n, "/") || strings.Contains(n, "//") || strings.Contains(n+"/", "/../") || strings.Contains(n+"/", "/./") || normal(n) != n && !strings.Contains(n, "%") {
			t.Fatalf("%q becomes %q", path, n)
		}
		if spec.Glob(pattern, n) && !spec.Glob("*"+pattern+"*", n) || !spec.Glob("*", n) || !spec.Glob("*"+n[1:], n) {
			t.Fatalf("%q does not match itself", n)
		}
	})
}

func TestWhatIsAnsweredAtOnce(t *testing.T) {
	made := table(t, distribution("d", "www.test", `
defaultRootObject: index.html
defaultCacheBehavior: {targetOrigin: web}
cacheBehaviors:
  - {pathPattern: /to-https/*, targetOrigin: web, viewerProtocolPolicy: redirect-to-https, allowedMethods: [GET, HEAD, OPTIONS, PUT, POST, PATCH, DELETE]}
  - {pathPattern: /https/*, targetOrigin: web, viewerProtocolPolicy: https-only}
  - {pathPattern: /api/*, targetOrigin: web, allowedMethods: [GET, HEAD, OPTIONS, PUT, POST, PATCH, DELETE]}
  - {pathPattern: /options, targetOrigin: web, allowedMethods: [GET, HEAD, OPTIONS]}
`))
	for _, c := range []struct {
		name     string
		request  Request
		status   int
		location string
	}{
		{"a page", Request{Path: "/a"}, 0, ""},
		{"a page over https", Request{Path: "/https/a", TLS: true}, 0, ""},
		{"https only", Request{Path: "/https/a"}, 403, ""},
		{"redirect", Request{Path: "/to-https/a%20b", Query: "x=1"}, 301, "https://www.test/to-https/a%20b?x=1"},
		{"redirect of a HEAD", Request{Method: "HEAD", Path: "/to-https/"}, 301, "https://www.test/to-https/"},
		{"redirect of what has a body keeps the method", Request{Method: "POST", Path: "/to-https/", Body: true}, 307, "https://www.test/to-https/"},
		{"redirect drops the port", Request{Host: "www.test:8080", Path: "/to-https/"}, 301, "https://www.test/to-https/"},
		{"no redirect over https", Request{Path: "/to-https/a", TLS: true}, 0, ""},
		{"a method that is not allowed", Request{Method: "POST", Path: "/a"}, 403, ""},
		{"OPTIONS that is not allowed", Request{Method: "OPTIONS", Path: "/a"}, 403, ""},
		{"OPTIONS", Request{Method: "OPTIONS", Path: "/options"}, 0, ""},
		{"POST", Request{Method: "POST", Path: "/api/x", Body: true}, 0, ""},
		{"TRACE is in no set", Request{Method: "TRACE", Path: "/api/x"}, 403, ""},
		{"a made-up method", Request{Method: "get", Path: "/api/x"}, 403, ""},
		{"GET with a body", Request{Path: "/a", Body: true}, 403, ""},
		{"the longest URL", Request{Path: "/" + strings.Repeat("a", 8191)}, 0, ""},
		{"a longer one", Request{Path: "/" + strings.Repeat("a", 8000), Query: strings.Repeat("b", 191)}, 414, ""},
		{"the largest request", Request{Path: "/", Bytes: 20480}, 0, ""},
		{"a larger one", Request{Path: "/", Bytes: 20481}, 413, ""},
		{"no path", Request{Method: "OPTIONS", Path: "*"}, 403, ""},
		{"WebSocket", Request{Path: "/a", WebSocket: true}, 501, ""},
		{"round once too often", Request{Path: "/a", Loops: 3}, 508, ""},
	} {
		if c.request.Method == "" {
			c.request.Method = "GET"
		}
		if c.request.Host == "" {
			c.request.Host = "www.test"
		}
		d := made.Route(c.request, nil)
		if d.Status != c.status || d.Location != c.location {
			t.Errorf("%s: got %d %s (%s), want %d %s", c.name, d.Status, d.Location, d.Reason, c.status, c.location)
		}
		tr := new(trace.Trace)
		if again := made.Route(c.request, tr); again.Status != d.Status || again.Behavior != d.Behavior || len(tr.Lines()) == 0 {
			t.Errorf("%s: traced it is another decision: %+v", c.name, again)
		}
	}
}

func TestTheDefaultRootObjectIsForTheRootOnly(t *testing.T) {
	made := table(t, distribution("d", "www.test", "defaultRootObject: index.html\n"+toWeb+`
cacheBehaviors: [{pathPattern: "*.html", targetOrigin: web}]
`))
	for path, want := range map[string]string{"/": "/index.html", "/sub/": "/sub/", "//": "//"} {
		d := made.Route(Request{Method: "GET", Host: "www.test", Path: path}, nil)
		if d.Path != want || (d.Behavior.Pattern == "*.html") != (want == "/index.html") {
			t.Errorf("%s: got %s by %s", path, d.Path, d.Behavior.Pattern)
		}
	}
}

func TestWhatASpecLacksIsAnErrorAndTheOldTableStays(t *testing.T) {
	p := New(Config{})
	defer p.Close()
	if err := p.Apply(build(t, distribution("d", "www.test", toWeb))); err != nil {
		t.Fatal(err)
	}
	broken := build(t, distribution("d", "other.test", toWeb))
	broken.Distributions["d"].DefaultCacheBehavior.CachePolicy = "none"
	broken.Distributions["d"].CacheBehaviors = []spec.CacheBehavior{{PathPattern: "/x", TargetOrigin: "nowhere", CachePolicy: "Managed-CachingDisabled"}}
	err := p.Apply(broken)
	if err == nil || !strings.Contains(err.Error(), `behaviour *: cache policy "none": not found`) || !strings.Contains(err.Error(), `behaviour /x: origin "nowhere": not found`) {
		t.Errorf("got %v", err)
	}
	if !p.Hosts("WWW.test.") || p.Hosts("other.test") {
		t.Error("the old table is gone")
	}
}
