package wan

import (
	"net/netip"

	"github.com/perigee-net/perigee/cluster/spec"
)

// GeoRow is where a prefix is.
type GeoRow struct {
	Prefix                          netip.Prefix
	Country, Subdivision, Continent string // codes as MaxMind's files have them; "" where not known
	At                              spec.Location
}

// GeoTable is where the world's addresses are, for a MaxMind file: each site's prefixes, and inside them, after them, the
// addresses of hosts that are elsewhere. Clients at places have theirs before they are made.
func (w *World) GeoTable() []GeoRow {
	var rows []GeoRow
	for _, s := range w.Sites {
		for _, p := range s.Prefixes() {
			rows = append(rows, GeoRow{Prefix: p, Country: s.Country, Continent: continent(s.Country, s.At), At: s.At})
		}
	}
	single := func(h Host, p Place) {
		for _, a := range []netip.Addr{h.V4, h.V6} {
			rows = append(rows, GeoRow{netip.PrefixFrom(a, a.BitLen()), p.Country, p.Subdivision, p.Continent, p.At})
		}
	}
	for _, p := range places {
		if h, err := w.Place(p.Name); err == nil {
			single(h, p)
		}
	}
	for _, h := range w.Hosts {
		s, _ := w.Site(h.Site)
		if h.Number < firstPlace && h.At != s.At {
			single(h, Place{Country: s.Country, Continent: continent(s.Country, s.At), At: h.At})
		}
	}
	return rows
}
