package geo

import (
	"fmt"
	"net/netip"
	"sort"
	"unique"
	"unsafe"

	"github.com/oschwald/maxminddb-golang/v2"
	"github.com/phuslu/iploc"

	"github.com/perigee-net/perigee/cluster/spec"
)

// builtIn is the table of phuslu/iploc: sorted ranges of addresses, a country code each.
type builtIn struct{}

// nowhere is the code of ranges that belong to no country: private, reserved, not allocated.
const nowhere = "ZZ"

func openBuiltIn() builtIn {
	// The IPv6 half is unpacked by its first lookup: now, not while a client waits.
	iploc.IPCountry(netip.IPv6Unspecified())
	return builtIn{}
}

func (builtIn) place(addr netip.Addr) Place {
	if country := iploc.IPCountry(addr); country != nowhere {
		return Place{Country: country}
	}
	return Place{}
}

// bits finds the widest prefix whose first and last address are in the range of addr. iploc does not tell its
// ranges, but each code it returns is a piece of its table, at the place of the range: two addresses are in
// one range if and only if their codes stand at the same place in memory.
func (builtIn) bits(addr netip.Addr) int {
	in := unsafe.StringData(iploc.IPCountry(addr))
	return sort.Search(addr.BitLen(), func(n int) bool {
		first, last := ends(addr, n)
		return unsafe.StringData(iploc.IPCountry(first)) == in && unsafe.StringData(iploc.IPCountry(last)) == in
	})
}

func (builtIn) String() string {
	return "built-in country table, IP2Location LITE as in phuslu/iploc " + iploc.Version
}

// ends are the first and the last address of the prefix of n bits around addr.
func ends(addr netip.Addr, n int) (first, last netip.Addr) {
	prefix, _ := addr.Prefix(n)
	first = prefix.Addr()
	b := first.As16()
	host := addr.BitLen() - n // bits at the end to set
	for i := len(b) - 1; host > 0; i-- {
		b[i] |= byte(1<<min(host, 8) - 1)
		host -= 8
	}
	last = netip.AddrFrom16(b)
	if addr.Is4() {
		last = last.Unmap()
	}
	return first, last
}

// nothing knows no place.
type nothing struct{}

func (nothing) place(netip.Addr) Place { return Place{} }
func (nothing) bits(netip.Addr) int    { return 0 }
func (nothing) String() string         { return "no places known" }

// file is a database in MaxMind's format.
type file struct {
	reader *maxminddb.Reader
	path   string
}

// record is the part of a country or city record that matters here.
type record struct {
	Country struct {
		ISOCode string `maxminddb:"iso_code"`
	} `maxminddb:"country"`
	Continent struct {
		Code string `maxminddb:"code"`
	} `maxminddb:"continent"`
	Subdivisions []struct { // the largest first
		ISOCode string `maxminddb:"iso_code"`
	} `maxminddb:"subdivisions"`
	Location struct {
		Latitude  *float64 `maxminddb:"latitude"`
		Longitude *float64 `maxminddb:"longitude"`
	} `maxminddb:"location"`
}

func openFile(path string) (*file, error) {
	reader, err := maxminddb.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open places %s: %w", path, err)
	}
	return &file{reader: reader, path: path}, nil
}

// read reads every record once. (The library's Verify asks more: that of the metadata which nobody needs here.)
func (f *file) read() error {
	known := map[uintptr]bool{}
	for result := range f.reader.Networks() {
		if err := result.Err(); err != nil {
			return err
		}
		if known[result.Offset()] {
			continue
		}
		known[result.Offset()] = true
		var r any
		if err := result.Decode(&r); err != nil {
			return err
		}
	}
	return nil
}

// place is unknown where the file has no record, or one of another kind.
func (f *file) place(addr netip.Addr) Place {
	var r record
	if err := f.reader.Lookup(addr).Decode(&r); err != nil {
		return Place{}
	}
	// Codes that many places share stand in memory once, so that those of one are at hand when another is asked for.
	p := Place{Country: unique.Make(r.Country.ISOCode).Value(), Continent: unique.Make(r.Continent.Code).Value()}
	if len(r.Subdivisions) > 0 {
		p.Subdivision = unique.Make(r.Subdivisions[0].ISOCode).Value()
	}
	if latitude, longitude := r.Location.Latitude, r.Location.Longitude; latitude != nil && longitude != nil {
		p.Location, p.OK = spec.Location{Latitude: *latitude, Longitude: *longitude}, true
	}
	return p
}

func (f *file) bits(addr netip.Addr) int {
	result := f.reader.Lookup(addr)
	switch prefix := result.Prefix(); {
	case result.Err() != nil && addr.Is6() && f.reader.Metadata.IPVersion == 4:
		return 0 // the file knows no IPv6 at all
	case result.Err() != nil:
		return addr.BitLen()
	case addr.Is4() && prefix.Addr().Is6():
		return 0 // nothing is known of any IPv4
	default:
		return prefix.Bits()
	}
}

func (f *file) String() string {
	m := f.reader.Metadata
	return fmt.Sprintf("%s of %s, %s", m.DatabaseType, m.BuildTime().UTC().Format("2006-01-02"), f.path)
}
