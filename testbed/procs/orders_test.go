//go:build linux

package procs

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/perigee-net/perigee/node/api"
)

const (
	orderNodes  = 20
	orderVoters = 5
	orderRounds = 20
)

// BenchmarkClusterOrdersOverProcesses has twenty processes told orders, each time by another, and measures the time from the
// question to the last node's acknowledgement that it is in effect there, and to its being agreed.
func BenchmarkClusterOrdersOverProcesses(b *testing.B) {
	c := open(b)
	c.Env = []string{"GOMAXPROCS=1"}
	ctx := within(b, 10*time.Minute)
	if err := c.Found(ctx, orderNodes, orderVoters); err != nil {
		b.Fatal(err)
	}
	leader := c.Leader(ctx)
	if _, err := leader.Client().Apply(ctx, api.ApplyRequest{ID: "site", Files: []api.File{{Name: "site.yaml", Data: fmt.Sprintf(site, "http://127.0.0.1:9")}}}); err != nil {
		b.Fatal(err)
	}
	if err := c.Whole(ctx, orderVoters); err != nil {
		b.Fatal(err)
	}
	time.Sleep(5 * time.Second) // what founding them took has come to rest
	for b.Loop() {
		var each, all, agreed []time.Duration
		late := 0
		for i := range orderRounds {
			n := c.Nodes[i*7%orderNodes]
			res, err := give(ctx, n.Client(), i)
			if err != nil {
				b.Fatalf("order %d at %s: %v", i, n.Name, err)
			}
			last := time.Duration(0)
			for _, a := range res.Acks {
				if a.Error != "" {
					late++
					b.Logf("order %d at %s: %s: %s", i, n.Name, a.Node, a.Error)
					continue
				}
				each, last = append(each, a.After), max(last, a.After)
			}
			all, agreed = append(all, last), append(agreed, res.Agreed)
			time.Sleep(200 * time.Millisecond)
		}
		for _, m := range []struct {
			what string
			of   []time.Duration
		}{{"each", each}, {"all", all}, {"agreed", agreed}} {
			slices.Sort(m.of)
			ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
			b.ReportMetric(ms(m.of[len(m.of)/2]), "p50-ms/"+m.what)
			b.ReportMetric(ms(m.of[len(m.of)-1]), "worst-ms/"+m.what)
		}
		b.ReportMetric(float64(late), "late")
	}
}

// give gives the i-th order: purges, and drains that are undone.
func give(ctx context.Context, client *api.Client, i int) (api.OrderResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	drain := api.DrainRequest{ID: rand.Text(), Scope: api.ScopeNode, Name: "n20"}
	switch i % 4 {
	case 1:
		return client.Drain(ctx, drain)
	case 3:
		return client.Undrain(ctx, drain)
	}
	return client.Purge(ctx, api.PurgeRequest{ID: rand.Text(), Distribution: "site", Paths: []string{"/*"}})
}
