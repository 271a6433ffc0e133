// Package geo says where a client's address is held to be: its country, its continent, and a point on the
// earth to measure distances from. It is a table, not a service: it asks nobody, and without better
// knowledge it has the country table that is built in. It does not say how far two places are from each
// other (cluster/spec does), and an address it does not know has no place: it never guesses.
package geo

import (
	"fmt"
	"net/netip"
	"sort"
	"strings"

	"github.com/gaissmai/bart"

	"github.com/perigee-net/perigee/cluster/spec"
)

// Attribution is the text that the licence of the built-in table asks for, in the words of its owner.
const Attribution = "This site or product includes IP2Location LITE data available from http://www.ip2location.com."

// Place is where a client is held to be. The zero Place is nowhere: unknown.
type Place struct {
	Country   string // ISO 3166-1 alpha-2, or "" if that is not known
	Continent string // AF AN AS EU NA OC SA, or "" if that is not known
	// Location is the client's own where a database has it, or else the point that stands for the country.
	Location spec.Location
	OK       bool // Location is known
	// Subdivision of the country, the largest: what ISO 3166-2 writes after the hyphen; "" if that is not known. Only city databases know it.
	Subdivision string
	Stand       bool // Location is the country's, which the client may be far from
}

// DB knows the places of addresses. It is immutable and safe for use by many; a nil DB knows none.
type DB struct {
	source source
	told   *bart.Table[Place] // by the operator: goes before the source
}

// source is where a DB has its knowledge from. Where it knows no more than the country, the DB adds the rest.
type source interface {
	place(addr netip.Addr) Place
	// bits is the length of the widest prefix around addr that is known to be all one place.
	bits(addr netip.Addr) int
	String() string
}

// Default is the DB that is built in: countries by IP2Location LITE (see Attribution), a month or more old.
func Default() *DB { return &DB{source: openBuiltIn(), told: new(bart.Table[Place])} }

// Open reads the operator's own database in MaxMind's format, of countries or cities. The file is mapped,
// not read: put a new one in its place, do not write into it. Until nobody uses the DB any more it has what was in the file.
func Open(path string) (*DB, error) {
	f, err := openFile(path)
	if err != nil {
		return nil, err
	}
	for _, other := range []string{"-ASN", "-ISP", "-Domain", "-Connection-Type", "-Anonymous-IP"} { // MaxMind's, in which are no places
		if kind := f.reader.Metadata.DatabaseType; strings.HasSuffix(kind, other) {
			return nil, fmt.Errorf("open places %s: it is of type %s, and knows no places", path, kind)
		}
	}
	return &DB{source: f, told: new(bart.Table[Place])}, nil
}

// OpenWhole opens a file as Open does, and reads all of it, which takes seconds for cities: a file that is cut off or damaged is
// refused.
func OpenWhole(path string) (*DB, error) {
	d, err := Open(path)
	if err != nil {
		return nil, err
	}
	if err := d.source.(*file).read(); err != nil {
		return nil, fmt.Errorf("open places %s: %w", path, err)
	}
	return d, nil
}

// Override is what the operator knows better: the place of a CIDR, by country or by location or both.
type Override struct {
	Prefix   netip.Prefix
	Country  string // ISO 3166-1 alpha-2
	Location *spec.Location
	// Subdivision is that of the country; "" if it is not known.
	Subdivision string
}

// With returns a DB that holds the overrides to be true, the longest prefix first, and else knows what d knows.
func (d *DB) With(overrides ...Override) (*DB, error) {
	w := &DB{source: nothing{}, told: new(bart.Table[Place])}
	if d != nil {
		w.source, w.told = d.source, d.told.Clone()
	}
	for _, o := range overrides {
		if !o.Prefix.IsValid() {
			return nil, fmt.Errorf("override the place of %v: not a CIDR", o.Prefix)
		}
		if _, known := countries[o.Country]; !known && o.Country != "" {
			return nil, fmt.Errorf("override the place of %v: no country has the code %q", o.Prefix, o.Country)
		}
		p := Place{Country: o.Country, Subdivision: o.Subdivision}
		if o.Location != nil {
			p.Location, p.OK = *o.Location, true
		}
		w.told.Insert(o.Prefix.Masked(), complete(p))
	}
	return w, nil
}

// String says what the DB is made of.
func (d *DB) String() string {
	if d == nil {
		return "no places known"
	}
	text := d.source.String()
	if n := d.told.Size(); n > 0 {
		text += fmt.Sprintf(", %d overrides", n)
	}
	return text
}

// Lookup returns the place of an address; the zero Place if nobody knows, as of private addresses.
func (d *DB) Lookup(addr netip.Addr) Place {
	if d == nil || !addr.IsValid() {
		return Place{}
	}
	addr = plain(addr)
	if p, ok := d.told.Lookup(addr); ok {
		return p
	}
	return complete(d.source.place(addr))
}

// Bits returns how many leading bits of addr its place depended on: every address that begins with them
// has the same place. It is what an answer by place may be cached for (RFC 7871, SCOPE PREFIX-LENGTH).
func (d *DB) Bits(addr netip.Addr) int {
	if d == nil || !addr.IsValid() {
		return 0
	}
	addr = plain(addr)
	whole := netip.PrefixFrom(addr, addr.BitLen())
	matched, _, ok := d.told.LookupPrefixLPM(whole)
	least := matched.Bits()
	if !ok {
		least = d.source.bits(addr)
	}
	// A longer override beside addr, inside that prefix, is another place.
	return least + sort.Search(addr.BitLen()-least, func(more int) bool {
		p, _ := addr.Prefix(least + more)
		for inside := range d.told.Subnets(p) {
			if inside != matched {
				return false
			}
		}
		return true
	})
}

// complete fills in what follows from the country.
func complete(p Place) Place {
	c, known := countries[p.Country]
	if !known {
		return p
	}
	if p.Continent == "" {
		p.Continent = c.continent
	}
	if !p.OK {
		p.Location, p.OK, p.Stand = c.location, true, true
	}
	return p
}

// plain is the address without a zone, and as IPv4 if it is IPv4 in IPv6.
func plain(addr netip.Addr) netip.Addr { return addr.Unmap().WithZone("") }
