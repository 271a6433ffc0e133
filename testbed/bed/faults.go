package bed

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/perigee-net/perigee/testbed/wan"
)

// fault is one thing that was broken: what A sends does not arrive at B; with no B, nothing from A arrives anywhere, and
// nothing arrives at A. Both are hosts, or both are sites.
type fault struct {
	A string
	B string `json:",omitempty"`
}

// faults are all that is broken, each once, in the order in which it broke.
type faults []fault

func (f faults) with(more ...fault) faults {
	f = slices.Clone(f)
	for _, m := range more {
		if !slices.Contains(f, m) {
			f = append(f, m)
		}
	}
	return f
}

func (f faults) without(some ...fault) faults {
	return slices.DeleteFunc(slices.Clone(f), func(x fault) bool { return slices.Contains(some, x) })
}

func (f faults) words() []string {
	var words []string
	for _, x := range f {
		switch {
		case x.B == "":
			words = append(words, x.A+" is cut off")
		case slices.Contains(f, fault{x.B, x.A}) && x.A < x.B:
			words = append(words, x.A+" and "+x.B+" are cut")
		case !slices.Contains(f, fault{x.B, x.A}):
			words = append(words, fmt.Sprintf("%s does not reach %s", x.A, x.B))
		}
	}
	return words
}

// silent says which directions of a link between two sites carry nothing.
func (f faults) silent(l wan.Link) (ab, ba bool) {
	off := slices.Contains(f, fault{A: l.A}) || slices.Contains(f, fault{A: l.B})
	return off || slices.Contains(f, fault{l.A, l.B}), off || slices.Contains(f, fault{l.B, l.A})
}

// hole is a rule in the router of a site: what is forwarded from one address to another vanishes. The zero address is any.
type hole struct {
	site     string
	from, to netip.Addr
}

// holes are the rules that faults between hosts come to, each once. What two hosts say to each other passes the router of
// the one that says it; what comes to a host that is cut off passes its own.
func (f faults) holes(w *wan.World) []hole {
	var all []hole
	add := func(h hole) {
		if !slices.Contains(all, h) {
			all = append(all, h)
		}
	}
	for _, x := range f {
		a, ok := w.Host(x.A)
		if !ok {
			continue
		}
		b, both := w.Host(x.B)
		for i, from := range []netip.Addr{a.V4, a.V6} {
			switch {
			case x.B == "":
				add(hole{site: a.Site, from: from})
				add(hole{site: a.Site, to: from})
			case both:
				add(hole{a.Site, from, []netip.Addr{b.V4, b.V6}[i]})
			}
		}
	}
	return all
}

// pair checks that a fault can be between two: hosts, or sites with a link.
func pair(w *wan.World, a, b string) error {
	_, hostA := w.Host(a)
	_, hostB := w.Host(b)
	_, siteA := w.Site(a)
	_, siteB := w.Site(b)
	switch {
	case a == b:
		return fmt.Errorf("%s is one, and two are wanted", a)
	case !hostA && !siteA:
		return unknown(w, a)
	case !hostB && !siteB:
		return unknown(w, b)
	case hostA && hostB || siteA && siteB:
		return nil
	}
	return fmt.Errorf("%s and %s: want two hosts, or two sites", a, b)
}

func unknown(w *wan.World, name string) error {
	return fmt.Errorf("testbed %s has no host or site %q", w.Name, name)
}
