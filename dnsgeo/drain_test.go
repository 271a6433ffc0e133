package dnsgeo

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/cluster/view"
)

func TestNobodyIsLedToWhatIsDrainedOrLeavesWhileThereIsElse(t *testing.T) {
	s := worldSpec(t, site+`
		one   A   ; alias=loadBalancer:web-icn
		other A   ; alias=loadBalancer:web-iad
		trees A   ; id=first failover=PRIMARY alias=record:one evaluate
		trees A   ; id=second failover=SECONDARY alias=record:other evaluate
		ill A 192.0.2.99 ; id=ill failover=PRIMARY check=c1
		ill A     ; id=drained failover=SECONDARY alias=loadBalancer:web-iad
		nothing A ; id=seoul otherwise=none region=ap-northeast-2 alias=loadBalancer:web-icn
		nothing A ; id=virginia otherwise=none region=us-east-1 alias=loadBalancer:web-iad
	`)
	table := compile(t, s)
	node, pop, region := view.ScopeNode, view.ScopePOP, view.ScopeRegion
	const everybody = "dub1-a iad1-a icn1-a icn1-b nrt1-a"
	for _, test := range []struct {
		name, question, client string
		drains                 []view.DrainRule
		leaving                string // those that do
		want                   string // addresses, in order; or the code
		why                    string // in the explanation
	}{
		{"a node", "example.com. A", "10.1.0.1", []view.DrainRule{{Scope: node, Name: "icn1-b"}}, "", "192.0.2.10", ""},
		{"a POP: the next", "example.com. A", "10.1.0.1", []view.DrainRule{{Scope: pop, Name: "icn1", Text: "until noon"}}, "", "192.0.2.20", "icn1: drained (until noon)"},
		{"two regions: the next after", "example.com. A", "10.1.0.1", []view.DrainRule{{Scope: region, Name: "ap-northeast-2"}, {Scope: region, Name: "ap-northeast-1"}}, "", "192.0.2.40", "icn1: drained"},
		{"the POP of who answers, and nobody knows where the client is", "example.com. A", "10.9.0.1",
			[]view.DrainRule{{Scope: pop, Name: "icn1"}, {Scope: pop, Name: "nrt1"}, {Scope: pop, Name: "iad1"}}, "", "192.0.2.40", ""},
		{"everybody: as if nobody were", "example.com. A", "10.2.0.1",
			[]view.DrainRule{{Scope: pop, Name: "icn1"}, {Scope: pop, Name: "nrt1"}, {Scope: pop, Name: "iad1"}, {Scope: pop, Name: "dub1"}}, "", "192.0.2.20", ""},
		{"a node that leaves", "example.com. A", "10.1.0.1", nil, "icn1-a", "192.0.2.11", ""},
		{"a POP that leaves: the next", "example.com. A", "10.1.0.1", nil, "icn1-a icn1-b", "192.0.2.20", "icn1: leaves"},
		{"one POP is drained, all others leave", "example.com. A", "10.1.0.1", []view.DrainRule{{Scope: pop, Name: "iad1"}}, "icn1-a icn1-b nrt1-a dub1-a", "192.0.2.30", "icn1: leaves"},
		{"everybody leaves: the nearest all the same", "example.com. A", "10.2.0.1", nil, everybody, "192.0.2.20", "all the same whose nodes are drained or leave"},

		{"a load balancer at one node", "lb.example.com. A", "", []view.DrainRule{{Scope: node, Name: "icn1-a"}}, "", "192.0.2.11", ""},
		{"a load balancer that is nowhere else", "lb.example.com. A", "", []view.DrainRule{{Scope: pop, Name: "icn1"}}, "", "192.0.2.10 192.0.2.11", ""},
		{"a load balancer that is elsewhere too", "near.example.com. A", "10.1.0.1", []view.DrainRule{{Scope: pop, Name: "icn1", Text: "until noon"}}, "", "192.0.2.30", "web-icn: all of its nodes are drained (until noon)"},
		{"also where its health is not evaluated", "blind.example.com. A", "10.1.0.1", []view.DrainRule{{Scope: pop, Name: "icn1"}}, "", "192.0.2.30", ""},
		{"load balancers that are all drained: the nearest", "near.example.com. A", "10.1.0.1", []view.DrainRule{{Scope: pop, Name: "icn1"}, {Scope: pop, Name: "iad1"}}, "", "192.0.2.10 192.0.2.11", ""},

		{"everybody leaves, and there is another record", "away.example.com. A", "10.1.0.1", nil, everybody, "192.0.2.99", "site: all that is left of the nodes leaves"},
		{"everybody is drained, and there is another record", "away.example.com. A", "10.1.0.1",
			[]view.DrainRule{{Scope: pop, Name: "icn1"}, {Scope: pop, Name: "nrt1"}, {Scope: pop, Name: "iad1"}, {Scope: pop, Name: "dub1"}}, "", "192.0.2.10 192.0.2.11", ""},

		{"a load balancer that leaves, and is nowhere else", "lb.example.com. A", "", nil, "icn1-a icn1-b", "192.0.2.10 192.0.2.11", ""},
		{"one that leaves with one node, and is drained at the other", "lb.example.com. A", "", []view.DrainRule{{Scope: node, Name: "icn1-b"}}, "icn1-a", "192.0.2.11", ""},
		{"one that leaves, and is elsewhere too", "near.example.com. A", "10.1.0.1", nil, "icn1-a icn1-b", "192.0.2.30", "web-icn: all that is left of its nodes leaves"},
		{"one leaves, and the other is drained", "near.example.com. A", "10.1.0.1", []view.DrainRule{{Scope: pop, Name: "iad1"}}, "icn1-a icn1-b", "192.0.2.30",
			"none is healthy but what has all of its nodes drained"},
		{"one is drained, and the other leaves", "near.example.com. A", "10.3.0.1", []view.DrainRule{{Scope: pop, Name: "icn1"}}, "iad1-a", "192.0.2.10 192.0.2.11", ""},
		{"also where its health is not evaluated", "blind.example.com. A", "10.1.0.1", []view.DrainRule{{Scope: pop, Name: "iad1"}}, "icn1-a icn1-b", "192.0.2.30", ""},
		{"load balancers that all leave: the nearest", "near.example.com. A", "10.1.0.1", nil, "icn1-a icn1-b iad1-a", "192.0.2.10 192.0.2.11", "none is healthy but what leaves with all of its nodes"},
		{"branches, one of which leaves and the other is drained", "trees.example.com. A", "10.1.0.1", []view.DrainRule{{Scope: pop, Name: "iad1"}}, "icn1-a icn1-b", "192.0.2.30", ""},
		{"the healthy drained one goes before one that is not healthy", "ill.example.com. A", "10.1.0.1", []view.DrainRule{{Scope: pop, Name: "iad1"}}, "icn1-a icn1-b", "192.0.2.30", ""},
		{"and before an answer with nothing", "nothing.example.com. A", "10.1.0.1", []view.DrainRule{{Scope: pop, Name: "iad1"}}, "icn1-a icn1-b", "192.0.2.30", ""},

		{"a name server", "ns-icn1.example.com. A", "", []view.DrainRule{{Scope: node, Name: "icn1-a"}}, "", "192.0.2.11", ""},
		{"a POP of name servers", "ns-icn1.example.com. A", "", []view.DrainRule{{Scope: pop, Name: "icn1"}}, "", "", ""},
		{"a POP of name servers that leaves", "ns-icn1.example.com. A", "", nil, "icn1-a icn1-b", "", ""},
		{"all name servers leave", "ns-icn1.example.com. A", "", nil, everybody, "192.0.2.10 192.0.2.11", ""},
		{"an accelerator is led to all the same", "tcp.example.com. A", "", []view.DrainRule{{Scope: pop, Name: "icn1"}}, "", "203.0.113.1 203.0.113.2", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := worldView("c1")
			v.Members = view.Drain(v.Members, test.drains)
			for i := range v.Members {
				v.Members[i].Leaving = slices.Contains(strings.Fields(test.leaving), v.Members[i].Name)
			}
			q := from(t, test.question, test.client)
			tr := new(trace.Trace)
			a := table.Answer(v, q, tr)
			var addresses []string
			for _, line := range strings.Split(strings.TrimSpace(shown(a)), "\n")[1:] {
				if fields := strings.Fields(line); len(fields) > 3 && fields[2] == "A" {
					addresses = append(addresses, fields[3])
				}
			}
			if got := strings.Join(addresses, " "); got != test.want {
				t.Errorf("got %q, want %q\n%s", got, test.want, tr)
			}
			if !strings.Contains(tr.String(), test.why) {
				t.Errorf("it is explained by\n%s", tr)
			}
		})
	}
}

func TestACalculatedCheckDecidesAndItsChildrensVerdictsBoundTheTTL(t *testing.T) {
	s := worldSpec(t, `
		fail 300 A 192.0.2.1 ; id=first failover=PRIMARY check=c1
		fail 300 A 192.0.2.2 ; id=second failover=SECONDARY
	`)
	two := 2
	s.HealthChecks["c1"] = &spec.HealthCheck{Name: "c1", Type: spec.Calculated, ChildHealthChecks: []string{"c2", "c3"}, HealthThreshold: &two}
	table := compile(t, s)
	for _, test := range []struct {
		c2, c3  bool
		stands  time.Duration
		address string
		ttl     string
	}{
		{true, true, 40 * time.Second, "192.0.2.1", "40"},
		{true, false, 50 * time.Second, "192.0.2.2", "50"},
		{true, true, time.Hour, "192.0.2.1", "90"}, // the other child's
	} {
		v := worldView()
		v.Health = health.NewTable(map[health.Key]health.Verdict{
			health.CheckKey("c1"): {Healthy: false, Stands: time.Second}, // of before it was calculated
			health.CheckKey("c2"): {Healthy: test.c2, Stands: 90 * time.Second},
			health.CheckKey("c3"): {Healthy: test.c3, Stands: test.stands},
		})
		a := table.Answer(v, from(t, "fail.example.com. A", ""), nil)
		if got, want := shown(a), "fail.example.com. "+test.ttl+" A "+test.address+"\n"; !strings.HasSuffix(got, want) {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
