package testbed

import (
	"context"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/perigee-net/perigee/testbed/demo"

	"github.com/perigee-net/perigee/node/api"
)

// do takes a step that can be taken.
func (w *World) do(t *testing.T, verb string, args ...string) string {
	t.Helper()
	result, err := w.Do(t.Context(), verb, args)
	if err != nil {
		t.Fatalf("%s %v: %v", verb, args, err)
	}
	return result
}

// explained is the answer of explain, without the reasons.
func (w *World) explained(t *testing.T, args ...string) string {
	t.Helper()
	answer, _, _ := strings.Cut(w.do(t, "explain", args...), "\n\t")
	return answer
}

// entry is the node that a client's flows enter at: the nearest that announces the accelerator.
func (w *World) entry(client string) string {
	var nearest string
	for name, n := range w.nodes {
		if n.lives() && (nearest == "" || w.in.RoundTrip(client, name) < w.in.RoundTrip(client, nearest)) {
			nearest = name
		}
	}
	return nearest
}

func TestWhatIsExplainedIsWhatIsServed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		w.agree(t, "all is well")
		w.do(t, "kill", "targets", "us-east-1")
		time.Sleep(10 * time.Second)
		w.agree(t, "Virginia's targets are dead")
		w.do(t, "slow", "iad1", "fra1", "400ms")
		time.Sleep(30 * time.Second)
		w.agree(t, "and the Atlantic is slow")
		w.do(t, "crash", "icn1")
		time.Sleep(10 * time.Second)
		w.agree(t, "and Seoul is lost")
		w.do(t, "kill", "targets", "eu-central-1")
		time.Sleep(10 * time.Second)
		w.agree(t, "and nobody has a target")
	})
}

// agree compares, for every client at the node that it enters at and at another one, what is explained with what is served.
func (w *World) agree(t *testing.T, when string) {
	t.Helper()
	var live []string
	none := map[string]bool{} // a node that holds no target healthy
	for _, name := range slices.Sorted(maps.Keys(w.nodes)) {
		if w.nodes[name].lives() {
			live = append(live, name)
			none[name] = w.healthyTargets(t, name) == 0
		}
	}
	for i, client := range slices.Sorted(maps.Keys(w.clients)) {
		other := slices.DeleteFunc(slices.Clone(live), func(node string) bool { return node == w.entry(client) })
		for _, node := range append(other[i%max(len(other), 1):][:min(len(other), 1)], w.entry(client)) {
			at := client + "@" + node
			for _, q := range [][2]string{
				{demo.Distribution, "A"}, {demo.Distribution, "AAAA"}, {demo.Accelerated, "A"}, {demo.Zone, "TXT"}, {demo.Zone, "NS"},
				{"nothing." + demo.Zone, "A"}, {"example.org", "A"},
			} {
				w.agreeOnName(t, when, at, q[0], q[1])
			}
			for _, path := range []string{"/", "/logo.svg", demo.RegionPath, "/nothing-here"} {
				w.agreeOnPage(t, when, at, "http://"+demo.Distribution+path, none[node])
			}
			w.agreeOnPage(t, when, at, "http://example.org/", none[node])
		}
		w.agreeOnFlow(t, when, client, none[w.entry(client)])
	}
}

// agreeOnName asks again where the two differ and chance has a part: of the answers to a client whose distance was seen, one in 32 leads to
// where it was not seen yet, and each of the two draws for itself. What they differ in for another reason, they differ in each time.
func (w *World) agreeOnName(t *testing.T, when, at, name, kind string) {
	t.Helper()
	const asks = 8
	for n := 1; ; n++ {
		explained, served := w.explained(t, at, "dns", name, kind), w.do(t, "dig", at, name, kind)
		if sameAnswer(explained, served) {
			return
		}
		if name != demo.Distribution || n == asks {
			t.Errorf("%s: %s %s %s: explained %q, served %q", when, at, name, kind, explained, served)
			return
		}
	}
}

// sameAnswer says whether what was served is what was explained: each of its records and no other, in whatever order, or its code.
func sameAnswer(explained, served string) bool {
	records := strings.Split(explained, "\n")
	if !strings.Contains(records[0], " ") { // a code: there is no answer
		if !strings.HasPrefix(served, records[0]) || strings.Contains(served, "answer:") {
			return false
		}
		records = records[1:]
	} else if strings.Count(served, "answer:") != len(records) {
		return false
	}
	return !slices.ContainsFunc(records, func(r string) bool { return !strings.Contains(served, strings.Join(strings.Fields(r), " ")) })
}

// agreeOnPage holds the outcome, the cache's part in it, and the region that is asked, unless none has a healthy target.
func (w *World) agreeOnPage(t *testing.T, when, at, url string, none bool) {
	t.Helper()
	explained := w.explained(t, at, "http", url)
	for _, soon := range []string{" 0s", " 1s"} { // or it ends between the question and the request
		if strings.HasSuffix(explained, "fresh for another"+soon) {
			time.Sleep(2 * time.Second)
			explained = w.explained(t, at, "http", url)
		}
	}
	served := w.do(t, "get", at, url)
	outcome, asks, _ := strings.Cut(explained, ": ")
	var as bool
	switch outcome {
	case "hit":
		as = strings.Contains(served, " age=")
	case "miss", "stale", "pass":
		as = !strings.Contains(served, " age=") && strings.HasPrefix(served, "50") == none
	default:
		as = strings.HasPrefix(served, strings.Fields(outcome)[0]+" ")
	}
	if !as {
		t.Errorf("%s: %s %s: explained %q, served %q", when, at, url, explained, served)
	}
	if _, region, ok := strings.Cut(asks, " in "); ok && !none {
		region, _, _ = strings.Cut(region, " ")
		if _, target, _ := strings.Cut(served, " target="); !strings.HasPrefix(target, w.shortOf(region)) {
			t.Errorf("%s: %s %s: explained %q, served %q", when, at, url, explained, served)
		}
	}
}

func (w *World) agreeOnFlow(t *testing.T, when, client string, none bool) {
	t.Helper()
	explained := w.explained(t, client+"@"+w.entry(client), "tcp", accelerated.String())
	served := w.do(t, "dial", client, net.JoinHostPort(demo.Accelerated, "7777"))
	_, region, _ := strings.Cut(explained, " in ")
	region, _, _ = strings.Cut(region, " ")
	if none {
		if !strings.Contains(served, "reset") {
			t.Errorf("%s: a flow of %s is served %q by nobody", when, client, served)
		}
		return
	}
	if region == "" || !strings.HasPrefix(served, region+" ") || !strings.Contains(served, "echoed") {
		t.Errorf("%s: a flow of %s: explained %q, served %q", when, client, explained, served)
	}
}

// healthyTargets is how many a node holds healthy.
func (w *World) healthyTargets(t *testing.T, node string) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	entries, err := w.apiOf(w.nodes[node]).Health(ctx, api.HealthQuery{})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range entries {
		if e.Healthy {
			n++
		}
	}
	return n
}

// shortOf is how the names of a region's targets begin.
func (w *World) shortOf(region string) string {
	for _, r := range w.layout.Regions {
		if r.Name == region {
			return r.Short
		}
	}
	return "?"
}
