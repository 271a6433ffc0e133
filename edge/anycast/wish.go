package anycast

import (
	"net/netip"
	"slices"

	"github.com/perigee-net/perigee/cluster/trace"
)

// Wish is what Wanted decides by.
type Wish struct {
	Addresses []netip.Addr // of accelerators that are enabled, and whose doors are open on this node; in any order
	Elsewhere []netip.Addr // such of them as are for nodes of the other network zone to announce
	Serving   bool         // this node can take traffic: it has a spec, and its doors are open
	Drained   bool         // an order drains this node, its POP or its region
	Leaving   bool         // this node stops
	Trace     *trace.Trace // hears why; nil: nobody asks
}

// Wanted says which routes a node announces: each address as a prefix of its own, in the order of addresses. A node that
// does not serve announces none. One that is drained or leaves goes on announcing, but asks by GRACEFUL_SHUTDOWN that
// others be preferred (RFC 8326): routers move new traffic away without ever having no route, and where nobody else
// announces an address, or all are drained, it goes on leading here. It does not depend on what was announced before.
func Wanted(w Wish) []Route {
	tr := w.Trace
	if !w.Serving {
		tr.Add("no anycast address is announced: this node does not serve")
		return nil
	}
	why := ""
	switch {
	case w.Leaving:
		why = "this node leaves"
	case w.Drained:
		why = "this node is drained"
	}
	addresses, elsewhere := unmapped(w.Addresses), unmapped(w.Elsewhere)
	slices.SortFunc(addresses, netip.Addr.Compare)
	var routes []Route
	for _, a := range slices.Compact(addresses) {
		switch {
		case !routable(a):
			tr.Add("%v is not announced: no router leads to such an address", a)
			continue
		case slices.Contains(elsewhere, a):
			tr.Add("%v is not announced: it is of the other network zone", a)
			continue
		case why != "":
			tr.Add("%v is announced with GRACEFUL_SHUTDOWN, so that others are preferred: %s", a, why)
		default:
			tr.Add("%v is announced: this node serves it", a)
		}
		routes = append(routes, Route{Prefix: netip.PrefixFrom(a, a.BitLen()), GracefulShutdown: why != ""})
	}
	if len(routes) == 0 {
		tr.Add("no anycast address is announced: no enabled accelerator has one that routers lead to")
	}
	return routes
}

// unmapped has each address written in one way.
func unmapped(addresses []netip.Addr) []netip.Addr {
	addresses = slices.Clone(addresses)
	for i, a := range addresses {
		addresses[i] = a.Unmap().WithZone("")
	}
	return addresses
}

// routable says whether an address means the same beyond this machine and its links.
func routable(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() && !a.IsLinkLocalUnicast() &&
		a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}
