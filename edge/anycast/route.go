package anycast

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// GracefulShutdown is the community by which a route asks that others be preferred to it, 65535:0 (RFC 8326).
const GracefulShutdown uint32 = 0xffff0000

// Route is one prefix that is announced.
type Route struct {
	Prefix           netip.Prefix // mostly one address: /32 or /128; bits beyond its length do not matter
	NextHop          netip.Addr   // of the prefix's family; zero: the address this node's session comes from, or Config.NextHop4 or 6
	GracefulShutdown bool         // adds the community GracefulShutdown; on internal sessions LOCAL_PREF is 0 as well
	Communities      []uint32     // RFC 1997: AS in the upper 16 bits; at most MaxCommunities, in any order
	MED              *uint32      // MULTI_EXIT_DISC (RFC 4271, section 5.1.4): less is preferred among this AS's routes; nil: none
}

// path is what is said of a prefix, before a session's own is added. Paths that say the same are equal by ==.
type path struct {
	nextHop     netip.Addr // invalid: the session's
	communities string     // 4 bytes each, big endian, sorted, each once
	med         uint32
	hasMED      bool
	graceful    bool
}

// table is what is announced. It is immutable.
type table struct {
	paths   map[netip.Prefix]path
	refused []string // what cannot be announced, and why
}

func (t *table) equal(o *table) bool {
	return maps.Equal(t.paths, o.paths) && slices.Equal(t.refused, o.refused)
}

func compile(routes []Route) *table {
	var refused []string
	paths := make(map[netip.Prefix]path, len(routes))
	for _, r := range routes {
		prefix, p, err := r.compile()
		if err != nil {
			refused = append(refused, fmt.Sprintf("%v: %v", r.Prefix, err))
			continue
		}
		if _, twice := paths[prefix]; !twice {
			paths[prefix] = p
		}
	}
	if len(paths) > MaxPrefixes {
		for _, prefix := range sorted(paths)[MaxPrefixes:] {
			delete(paths, prefix)
			refused = append(refused, fmt.Sprintf("%v: more than %d prefixes", prefix, MaxPrefixes))
		}
	}
	return &table{paths, refused}
}

func (r Route) compile() (netip.Prefix, path, error) {
	prefix := r.Prefix.Masked()
	next := r.NextHop.Unmap()
	switch {
	case !prefix.IsValid() || prefix.Addr().Is4In6():
		return prefix, path{}, fmt.Errorf("not a prefix")
	case next.IsValid() && (next.Is4() != prefix.Addr().Is4() || next.Zone() != "" || !routable(next)):
		return prefix, path{}, fmt.Errorf("%v cannot be its next hop", r.NextHop)
	case len(r.Communities) > MaxCommunities:
		return prefix, path{}, fmt.Errorf("%d communities: at most %d", len(r.Communities), MaxCommunities)
	}
	p := path{nextHop: next, graceful: r.GracefulShutdown}
	if r.MED != nil {
		p.med, p.hasMED = *r.MED, true
	}
	communities := slices.Clone(r.Communities)
	if r.GracefulShutdown {
		communities = append(communities, GracefulShutdown)
	}
	slices.Sort(communities)
	var wire []byte
	for _, c := range slices.Compact(communities) {
		wire = binary.BigEndian.AppendUint32(wire, c)
	}
	p.communities = string(wire)
	return prefix, p, nil
}

// group is prefixes of one family of which the same is said, sorted.
type group struct {
	path
	prefixes []netip.Prefix
}

// diff says what a neighbour that knows sent must be told to know want: what is gone, and what is new or other. Both are
// in the order of prefixes, so that one change is one sequence of messages. Every path of want has its next hop, so no
// group has prefixes of both families.
func diff(sent, want map[netip.Prefix]path) (gone []netip.Prefix, fresh []group) {
	for _, prefix := range sorted(sent) {
		if _, stays := want[prefix]; !stays {
			gone = append(gone, prefix)
		}
	}
	at := map[path]int{} // in fresh
	for _, prefix := range sorted(want) {
		p := want[prefix]
		if had, ok := sent[prefix]; ok && had == p {
			continue
		}
		i, ok := at[p]
		if !ok {
			i = len(fresh)
			at[p] = i
			fresh = append(fresh, group{path: p})
		}
		fresh[i].prefixes = append(fresh[i].prefixes, prefix)
	}
	return gone, fresh
}

func sorted(paths map[netip.Prefix]path) []netip.Prefix {
	return slices.SortedFunc(maps.Keys(paths), func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
}
