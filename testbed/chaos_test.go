package testbed

import (
	"context"
	"crypto/rand"
	"fmt"
	mrand "math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/perigee-net/perigee/node/api"
)

// mishaps is how many things happen to the world.
const mishaps = 25

// Whatever happens, in whatever order chance has it: when it is over the nodes agree, nothing that was acknowledged is
// lost, and everyone is served by the nearest.
func TestAWorldComesBackFromAnything(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		chance := mrand.New(mrand.NewPCG(seed(t), 0))
		nodes := []string{"icn1", "fra1", "iad1"}
		targets := []string{"icn-a", "icn-b", "fra-a", "fra-b", "iad-a", "iad-b"}
		pick := func(of []string) string { return of[chance.IntN(len(of))] }
		var story []string
		do := func(verb string, args ...string) {
			story = append(story, fmt.Sprintf("%v %s %s", time.Now().Format("04:05.000"), verb, strings.Join(args, " ")))
			w.do(t, verb, args...)
		}
		acknowledged := 0
		for i := range mishaps {
			node, other, target := pick(nodes), pick(nodes), pick(targets)
			switch n := chance.IntN(10); {
			case n < 2 && w.nodes[node].lives():
				do([]string{"kill", "crash", "stop"}[chance.IntN(3)], node)
			case n < 5 && !w.nodes[node].lives():
				do("start", node)
			case n == 5 && node != other && chance.IntN(2) == 0:
				do("cut", node, other)
			case n == 5 && node != other:
				story = append(story, "cut one way: "+node+" "+other)
				w.in.CutOneWay(node, other)
			case n == 6:
				do("heal", node)
			case n == 7 && node != other:
				do("lossy", node, other, []string{"5%", "15%", "30%"}[chance.IntN(3)])
			case n == 8 && w.targets[target].stop != nil:
				do("kill", target)
			case n == 8:
				do("start", target)
			case w.nodes[node].lives():
				story = append(story, fmt.Sprintf("apply %d at %s", i, node))
				if w.applyNumber(t, node, i) {
					acknowledged = i
				}
			}
			time.Sleep(time.Duration(chance.Int64N(int64(8 * time.Second))))
		}
		for i, a := range nodes {
			do("heal", a)
			for _, b := range nodes[:i] {
				do("lossy", a, b, "0%")
			}
		}
		for _, name := range nodes {
			if !w.nodes[name].lives() {
				do("start", name)
			}
		}
		for _, name := range targets {
			if w.targets[name].stop == nil {
				do("start", name)
			}
		}
		after, err := ParseScenario("after", `
within 60s status all => agree icn1/ fra1/ iad1/ !"leader= " !behind
for 10s status all    => agree icn1/ fra1/ iad1/ !"leader= " !behind
get seoul http://www.demo.perigee.test/region   => 200 icn1 "ap-northeast-2 icn-"
get london http://www.demo.perigee.test/region  => 200 fra1 "eu-central-1 fra-"
get newyork http://www.demo.perigee.test/region => 200 iad1 "us-east-1 iad-"
dial seoul tcp.demo.perigee.test:7777           => "ap-northeast-2 icn-" echoed
dial london tcp.demo.perigee.test:7777          => "eu-central-1 fra-" echoed
dial newyork tcp.demo.perigee.test:7777         => "us-east-1 iad-" echoed
get 10 seoul http://192.0.2.1:8081/region       => "5x 200" icn-a icn-b
get 10 london http://192.0.2.2:8081/region      => "5x 200" fra-a fra-b
get 10 newyork http://192.0.2.3:8081/region     => "5x 200" iad-a iad-b
`)
		if err != nil {
			t.Fatal(err)
		}
		if err := after.Run(t.Context(), w, nil); err != nil {
			t.Error(err)
		}
		if acknowledged > 0 {
			said := w.do(t, "dig", "seoul", "number.test", "TXT")
			var last int
			if _, err := fmt.Sscanf(said[strings.LastIndexByte(said[:len(said)-1], '"')+1:], "%d", &last); err != nil || last < acknowledged {
				t.Errorf("%d was acknowledged, and now it is %s", acknowledged, said)
			}
		}
		if t.Failed() {
			t.Log(strings.Join(story, "\n"))
		}
	})
}

// applyNumber asks a node to agree on a number, and says whether it was acknowledged.
func (w *World) applyNumber(t *testing.T, node string, i int) bool {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	yaml := fmt.Sprintf("kind: HostedZone\nname: number.test\nrecords:\n  - {name: \"@\", type: TXT, ttl: 60, values: ['\"%d\"']}\n", i)
	_, err := w.apiOf(w.nodes[node]).Apply(ctx, api.ApplyRequest{ID: rand.Text(), Files: []api.File{{Name: "number.yaml", Data: yaml}}})
	return err == nil
}
