package bed

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/perigee-net/perigee/testbed/demo"
	"github.com/perigee-net/perigee/testbed/wan"
)

const (
	// acceleratorPort is that of the demo's accelerator.
	acceleratorPort = 7777
	// maxServed is how many regions have load balancers in the demo: an origin of a distribution has at most so many.
	maxServed = 10
)

// demoSpec is the demo for this world: its regions with their places and all their POPs, and what the demo has in each
// region that has targets. The accelerator has an IPv6 address too, if the world has any to announce.
func demoSpec(w *wan.World) ([]byte, error) {
	layout := demo.Layout{Port: lbPort, Accelerator: netip.AddrPortFrom(anycast(w, netip.Addr.Is4), acceleratorPort), Regions: served(w)}
	text, err := layout.Spec()
	if err != nil {
		return nil, err
	}
	documents := strings.Split(string(text), "\n---\n")
	out := []string{documents[0]} // the comment
	for _, r := range regions(w) {
		out = append(out, regionDocument(w, r))
	}
	for _, d := range documents[1:] {
		if !strings.HasPrefix(d, "kind: Region\n") { // said above, with more
			out = append(out, d)
		}
	}
	whole := strings.Join(out, "\n---\n")
	if six := anycast(w, netip.Addr.Is6); six.IsValid() {
		four := fmt.Sprintf("ipAddresses: [%q", layout.Accelerator.Addr())
		whole = strings.Replace(whole, four, fmt.Sprintf("%s, %q", four, six), 1)
		record := "  - {name: tcp, type: A, alias: {accelerator: echo}}\n"
		whole = strings.Replace(whole, record, record+strings.Replace(record, "type: A,", "type: AAAA,", 1), 1)
	}
	return []byte(whole), nil
}

// regions are the world's, each by its first site.
func regions(w *wan.World) []wan.Site {
	var list []wan.Site
	for _, s := range w.Sites {
		if !slices.ContainsFunc(list, func(o wan.Site) bool { return o.Region == s.Region }) {
			list = append(list, s)
		}
	}
	return list
}

// regionDocument is a region with its place and the POPs of its nodes.
func regionDocument(w *wan.World, s wan.Site) string {
	text := fmt.Sprintf("kind: Region\nname: %s\nlocation: {latitude: %g, longitude: %g}", s.Region, s.At.Latitude, s.At.Longitude)
	var pops []string
	for _, h := range hostsOf(w, wan.Node) {
		if h.Region == s.Region && !slices.Contains(pops, h.POP) {
			pops = append(pops, h.POP)
		}
	}
	if len(pops) > 0 {
		text += "\npops:\n  - name: " + strings.Join(pops, "\n  - name: ")
	}
	return text
}

// served are the regions that have targets, or maxServed of them, evenly picked.
func served(w *wan.World) []demo.Region {
	var all []demo.Region
	for _, s := range regions(w) {
		r := demo.Region{Name: s.Region, City: s.City, POP: "none", Short: s.Name} // its POPs are another's to say
		for _, h := range hostsOf(w, wan.Target) {
			if h.Region == s.Region {
				r.Targets = append(r.Targets, demo.Endpoint{Name: h.Name, HTTP: netip.AddrPortFrom(h.V4, webPort), TCP: netip.AddrPortFrom(h.V4, tcpPort)})
			}
		}
		if len(r.Targets) > 0 {
			all = append(all, r)
		}
	}
	if len(all) <= maxServed {
		return all
	}
	var some []demo.Region
	for i := range maxServed {
		some = append(some, all[i*len(all)/maxServed])
	}
	return some
}

// anycast is the address of the demo's accelerator: the first of the world's first anycast prefix of a family. No such
// prefix: the zero address for IPv6, and one that is announced nowhere for IPv4, which the demo must have.
func anycast(w *wan.World, family func(netip.Addr) bool) netip.Addr {
	for _, p := range w.Anycast {
		switch {
		case !family(p.Addr()):
		case p.IsSingleIP():
			return p.Addr()
		default:
			return p.Masked().Addr().Next()
		}
	}
	if none := netip.MustParseAddr("198.51.100.1"); family(none) {
		return none
	}
	return netip.Addr{}
}
