package testbed

import (
	"slices"
	"strings"
	"testing"
)

// The owner of a key waits for a slow target when its machine dies: who waits for it gets what it asked for all the same, in the time
// in which a dead link is noticed and another fill.
func TestAnOwnerThatDiesWhileItFillsIsNoErrorOfItsPOP(t *testing.T) {
	pop := []string{"icn1", "icn1-b", "icn1-c"}
	inWorldWith(t, pop[1:], func(t *testing.T, w *World) {
		w.steps(t, `
apply kept.yaml                             => revision=2
within 5s status all                        => agree revision=2 !behind
publish cold "in stock"
`)
		owner := ""
		for _, node := range pop {
			answer := w.explained(t, "seoul@"+node, "http", "http://kept.demo.perigee.test/cold")
			_, asked, other := strings.Cut(answer, "asks node ")
			if !other {
				asked = node
			}
			asked, _, _ = strings.Cut(asked, ",")
			if owner != "" && owner != asked {
				t.Fatalf("%s holds %s for the owner, others %s", node, asked, owner)
			}
			owner = asked
		}
		for _, target := range []string{"icn-a", "icn-b"} {
			w.do(t, "slow", owner, target, "4s")
		}
		others := slices.DeleteFunc(slices.Clone(pop), func(node string) bool { return node == owner })
		w.steps(t, `
begin a get 20 seoul@`+others[0]+` http://kept.demo.perigee.test/cold
begin b get 20 tokyo@`+others[1]+` http://kept.demo.perigee.test/cold
after 1s
requests /cold                              => requests=0
crash `+owner+`
end a                                       => "20x 200 " "in stock"
end b                                       => "200 " "in stock" !error !502 !503 !504 !cut
`)
		// Two where the one who is next has not noticed yet when the other asks it: what a peer asks for does not wait for what that
		// may ask of it.
		if got := w.do(t, "requests", "/cold"); got != "requests=1" && got != "requests=2" {
			t.Errorf("the targets were asked: %s", got)
		}
	})
}
