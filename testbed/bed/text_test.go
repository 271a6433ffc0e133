//go:build linux

package bed

import (
	"flag"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/dnsgeo/geo"
	"github.com/perigee-net/perigee/testbed/wan"
)

var update = flag.Bool("update", false, "write the texts under testdata anew")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got); -update writes it anew:\n%s", name, diff)
	}
}

// small is two sites, one of them with a POP of two nodes of which one answers no DNS.
func small(t *testing.T) *wan.World {
	t.Helper()
	w, err := wan.Decode("small.yaml", []byte(`
name: small
sites:
  - {name: icn, region: ap-northeast-2}
  - {name: lab, region: nowhere-1, city: Ground, country: DE, at: {latitude: 50, longitude: 8}}
nodes:
  - {name: icn1, site: icn}
  - {name: lab1, site: lab}
  - {name: lab2, site: lab, roles: [edge, origin]}
targets:
  - {name: icn-a, site: icn}
origins:
  - {name: web, site: lab}
links:
  - {between: [icn, lab], rtt: 231ms}
`), nil)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func texts(w *wan.World) map[string]string {
	host := func(name string) wan.Host { h, _ := w.Host(name); return h }
	site, _ := w.Site("lab")
	return map[string]string{
		"bird.conf":    birdConfig(w, site),
		"unbound.conf": unboundConfig(host("resolver-lab"), "/bed/resolver-lab"),
		"root.hints":   rootHints(w),
		"nsd.conf":     nsdConfig(host("tld"), "/bed/tld", tld, "zone"),
		"root.zone":    rootZone(w),
		"tld.zone":     tldZone(w),
		"nginx.conf":   nginxConfig("/bed/web", "/bed/site"),
		"resolv.conf":  resolvConf(w, "lab"),
		"node.args":    strings.Join(nodeArgs(w, host("lab2"), "perigee", "/bed/lab2/data", "/bed/places.mmdb", "5s", true), "\n") + "\n",
	}
}

func TestConfigurationsAreAsTheyWere(t *testing.T) {
	w := small(t)
	for name, text := range texts(w) {
		golden(t, name, text)
	}
	demo, err := demoSpec(w)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "network.yaml", string(demo))
}

// TestConfigurationsAreUnderstood has the programs themselves read the texts.
func TestConfigurationsAreUnderstood(t *testing.T) {
	w := small(t)
	all := texts(w)
	dir := t.TempDir()
	for name, text := range all {
		text = strings.ReplaceAll(strings.ReplaceAll(text, "/bed/resolver-lab", dir), "/bed/tld", dir)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(dir, "tld.zone"), filepath.Join(dir, "zone")); err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, c := range [][]string{
		{"bird", "-p", "-c", at("bird.conf")},
		{"unbound-checkconf", at("unbound.conf")},
		{"nsd-checkconf", at("nsd.conf")},
		{"nsd-checkzone", ".", at("root.zone")},
		{"nsd-checkzone", tld, at("tld.zone")},
		{"nginx", "-t", "-q", "-p", dir, "-c", at("nginx.conf")},
	} {
		t.Run(c[0], func(t *testing.T) {
			path, err := find(c[0], systemFolders())
			if err != nil {
				if os.Getenv("PERIGEE_LAB") == "required" {
					t.Fatal(err)
				}
				t.Skip(err)
			}
			if c[0] == "nginx" {
				if os.Geteuid() != 0 {
					t.Skip("nginx checks what it opens, and port 80 is root's")
				}
				text := strings.ReplaceAll(strings.ReplaceAll(all["nginx.conf"], "/bed/web", dir), "listen 80;\n    listen [::]:80;", "listen unix:"+at("s")+";")
				if err := os.WriteFile(at("nginx.conf"), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if out, err := exec.Command(path, c[1:]...).CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

func TestTheDemoOfEveryBuiltInWorldIsASpec(t *testing.T) {
	for _, name := range wan.BuiltIns() {
		w, err := wan.BuiltIn(name)
		if err != nil {
			t.Fatal(err)
		}
		text, err := demoSpec(w)
		if err != nil {
			t.Fatal(err)
		}
		docs, err := spec.Split("network.yaml", text)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		s, err := spec.Build(1, docs, spec.Options{})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		regions := 0
		for _, r := range w.Sites {
			if s.Regions[r.Region] != nil {
				regions++
			}
		}
		served := map[string]bool{} // sites with targets
		for _, h := range w.Hosts {
			if h.Kind == wan.Target {
				served[h.Site] = true
			}
		}
		if regions != len(w.Sites) || len(s.LoadBalancers) != min(len(served), maxServed) {
			t.Errorf("%s: %d regions of %d sites, and %d load balancers of %d with targets", name, regions, len(w.Sites), len(s.LoadBalancers), len(served))
		}
	}
}

func TestEveryHostIsWhereTheWorldSaysItIs(t *testing.T) {
	w, err := wan.BuiltIn("three")
	if err != nil {
		t.Fatal(err)
	}
	data, err := places(w.GeoTable())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "places.mmdb")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := geo.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	lagos, err := w.Place("lagos")
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range append(w.Hosts, lagos) {
		for _, a := range []netip.Addr{h.V4, h.V6} {
			if p := db.Lookup(a); !p.OK || p.Location.Kilometres(h.At) > 1 || p.Country == "" || p.Continent == "" {
				t.Errorf("%s %s: %+v, want %+v", h.Name, a, p, h.At)
			}
		}
	}
	if p := db.Lookup(lagos.V4); p.Country != "NG" || p.Continent != "AF" {
		t.Errorf("lagos: %+v", p)
	}
	if p := db.Lookup(netip.MustParseAddr("192.0.2.1")); p.OK {
		t.Errorf("an address that is nobody's: %+v", p)
	}
}

func TestALinkCostsItsRoundTrip(t *testing.T) {
	for rtt, want := range map[time.Duration]int{0: 1, 100 * time.Microsecond: 1, 231 * time.Millisecond: 2310, 20 * time.Second: 65_535} {
		l := wan.Link{AB: wan.Path{Delay: rtt / 4}, BA: wan.Path{Delay: rtt - rtt/4}}
		if got := cost(l); got != want {
			t.Errorf("%v: %d, want %d", rtt, got, want)
		}
	}
}

func TestDevicesHaveNamesThatTheKernelTakes(t *testing.T) {
	w, err := wan.BuiltIn("aws")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range w.Sites {
		if name := wanDevice + s.Name; len(name) > maxDevice {
			t.Errorf("%s is too long", name)
		}
	}
}

func TestFaultsComeToSilentLinksAndRules(t *testing.T) {
	w := small(t)
	l, _ := w.Link("icn", "lab")
	icn1, _ := w.Host("icn1")
	lab1, _ := w.Host("lab1")
	none := netip.Addr{}
	for _, c := range []struct {
		name   string
		faults faults
		ab, ba bool
		holes  []hole
		words  []string
	}{
		{"none", nil, false, false, nil, nil},
		{"two sites", faults{{"icn", "lab"}, {"lab", "icn"}}, true, true, nil, []string{"icn and lab are cut"}},
		{"one way", faults{{"lab", "icn"}}, false, true, nil, []string{"lab does not reach icn"}},
		{"a site", faults{{A: "lab"}}, true, true, nil, []string{"lab is cut off"}},
		{"a site and a link of it", faults{{A: "lab"}, {"icn", "lab"}}, true, true, nil, []string{"lab is cut off", "icn does not reach lab"}},
		{"two hosts", faults{{"lab1", "icn1"}, {"icn1", "lab1"}}, false, false,
			[]hole{{"lab", lab1.V4, icn1.V4}, {"lab", lab1.V6, icn1.V6}, {"icn", icn1.V4, lab1.V4}, {"icn", icn1.V6, lab1.V6}}, []string{"icn1 and lab1 are cut"}},
		{"a host", faults{{A: "icn1"}}, false, false,
			[]hole{{"icn", icn1.V4, none}, {"icn", none, icn1.V4}, {"icn", icn1.V6, none}, {"icn", none, icn1.V6}}, []string{"icn1 is cut off"}},
		{"a host that is not there any more", faults{{A: "old"}, {"old", "icn1"}}, false, false, nil, []string{"old is cut off", "old does not reach icn1"}},
	} {
		ab, ba := c.faults.silent(*l)
		if ab != c.ab || ba != c.ba {
			t.Errorf("%s: silent %v %v", c.name, ab, ba)
		}
		if got := c.faults.holes(w); !slices.Equal(got, c.holes) {
			t.Errorf("%s: %v", c.name, got)
		}
		if got := c.faults.words(); !slices.Equal(got, c.words) {
			t.Errorf("%s: %q", c.name, got)
		}
	}
	f := faults(nil).with(fault{A: "a"}, fault{"a", "b"}).with(fault{A: "a"})
	if len(f) != 2 || len(f.without(fault{"a", "b"})) != 1 || len(f) != 2 {
		t.Errorf("%v", f)
	}
}

func TestFaultsAreBetweenTwoOfAKind(t *testing.T) {
	w := small(t)
	for _, c := range []struct {
		a, b string
		ok   bool
	}{{"icn1", "lab1", true}, {"icn", "lab", true}, {"icn", "lab1", false}, {"icn1", "icn1", false}, {"icn1", "x", false}, {"", "lab", false}} {
		if err := pair(w, c.a, c.b); (err == nil) != c.ok {
			t.Errorf("%q %q: %v", c.a, c.b, err)
		}
	}
}

func TestWhatIsMissingIsNamedWithItsPackage(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	w, err := wan.BuiltIn("three")
	if err != nil {
		t.Fatal(err)
	}
	lines := func(w *wan.World) string { return lack(missing(w, Userspace, nil)).Error() }
	all := lines(w)
	for _, want := range []string{"the program bird is missing", "bird2", "unbound", "nsd", "nginx-light", "the program ip is missing", "iproute2"} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is not in:\n%s", want, all)
		}
	}
	bare := *w
	bare.Hosts = nil
	if text := lines(&bare); strings.Contains(text, "unbound") || strings.Contains(text, "nsd") || strings.Contains(text, "nginx") {
		t.Errorf("a world without such hosts:\n%s", text)
	}
	for _, line := range strings.Split(all, "\n") {
		if !strings.Contains(line, ": ") || strings.HasSuffix(line, ": ") {
			t.Errorf("no way to get it: %s", line)
		}
	}
}
