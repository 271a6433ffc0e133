package spec

import (
	"fmt"
	"iter"
	"net/netip"
	"reflect"
	"slices"
	"strings"
)

// routing judges what a record set's routing policy goes by.
func (c *zoneCheck) routing(field string, r *Record) {
	if g := r.GeoLocation; g != nil {
		c.geoLocation(field+".geoLocation", g)
	}
	if g := r.GeoProximityLocation; g != nil {
		c.inRegion(field+".geoProximityLocation.region", g.Region)
	}
	if g := r.CidrRoutingConfig; g != nil {
		field += ".cidrRoutingConfig"
		collection := find(c.check, field+".collection", "CidrCollection", c.spec.CidrCollections, g.Collection)
		if collection != nil && g.LocationName != "" && g.LocationName != EveryBlock && !collection.has(g.LocationName) {
			c.fault(field+".locationName", "CIDR collection %s has no location %.20q%s", g.Collection, g.LocationName, c.near(g.LocationName, collection.names()))
		}
	}
}

func (c *zoneCheck) geoLocation(field string, g *GeoLocation) {
	if g.Country != "*" {
		c.country(field+".country", g.Country)
	}
	c.subdivision(field+".subdivision", g.Country, g.Subdivision)
}

func (c check) subdivision(field, country, subdivision string) {
	switch {
	case subdivision == "":
	case country == "" || country == "*":
		c.fault(field, "needs its country")
	case strings.ContainsFunc(subdivision, func(r rune) bool { return (r < 'A' || r > 'Z') && (r < '0' || r > '9') }):
		c.fault(field, "must be 1–3 capitals and digits, as ISO 3166-2 writes it after %s-, not %q", country, subdivision)
	}
}

func (c check) clientPlace(p *ClientPlace) {
	c.name(p.Name)
	blocks := map[netip.Prefix]string{}
	for i, block := range p.CidrList {
		if !block.IsValid() {
			continue // its own fault is told
		}
		field := at("cidrList", i)
		if first, taken := blocks[block]; taken {
			c.fault(field, "%s is in %s already", block, first)
		}
		blocks[block] = field
	}
	if p.Country == "" && p.Location == nil {
		c.fault("country", "is required where there is no location")
	}
	c.country("country", p.Country)
	c.subdivision("subdivision", p.Country, p.Subdivision)
}

// agree judges what all record sets of a name and type must say alike.
func (c *zoneCheck) agree(field string, r, first *Record, index int) {
	if one, other := r.onAllUnhealthy(), first.onAllUnhealthy(); one != other {
		c.fault(field+".onAllUnhealthy", "is %s, but that of %s is %s: one for all of a name and type", one, at("records", index), other)
	}
	if r.CidrRoutingConfig == nil || first.CidrRoutingConfig == nil {
		return
	}
	if one, other := r.CidrRoutingConfig.Collection, first.CidrRoutingConfig.Collection; one != other {
		c.fault(field+".cidrRoutingConfig.collection", "is %.80s, but that of %s is %.80s: one for all of a name and type", one, at("records", index), other)
	}
}

func (r *Record) onAllUnhealthy() string {
	if r.OnAllUnhealthy == "" {
		return AsIfAllWereHealthy
	}
	return r.OnAllUnhealthy
}

// place is the geolocation as one word, or "".
func (r *Record) place() string {
	if r.GeoLocation == nil {
		return ""
	}
	return r.GeoLocation.String()
}

// String is the geolocation as one word: AS, KR, US-CA, *.
func (g GeoLocation) String() string {
	if g.Subdivision != "" {
		return g.Country + "-" + g.Subdivision
	}
	return g.Continent + g.Country
}

// point is where a record set by geoproximity stands, as one word, or "".
func (r *Record) point() string {
	switch g := r.GeoProximityLocation; {
	case g == nil:
		return ""
	case g.Coordinates != nil:
		return fmt.Sprintf("%v,%v", g.Coordinates.Latitude, g.Coordinates.Longitude)
	default:
		return g.Region
	}
}

// block is the location of a record set by CIDR, or "".
func (r *Record) block() string {
	if r.CidrRoutingConfig == nil {
		return ""
	}
	return r.CidrRoutingConfig.LocationName
}

// EveryBlock is the location of a record set that is for clients in no block of the collection.
const EveryBlock = "*"

func (l *CidrCollection) names() iter.Seq[string] {
	return func(yield func(string) bool) {
		for i := range l.Locations {
			if !yield(l.Locations[i].LocationName) {
				return
			}
		}
	}
}

func (l *CidrCollection) has(location string) bool {
	for name := range l.names() {
		if name == location {
			return true
		}
	}
	return false
}

func (c check) cidrCollection(l *CidrCollection) {
	const most, longest4, longest6 = 1000, 24, 48 // Route 53
	c.name(l.Name)
	blocks, names := map[netip.Prefix]string{}, map[string]bool{}
	count := 0
	for i := range l.Locations {
		of, field := &l.Locations[i], at("locations", i)
		switch name := of.LocationName; {
		case name == EveryBlock:
			c.fault(field+".locationName", "%s stands for clients in no block: it has none", EveryBlock)
		case strings.ContainsFunc(name, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
		}):
			c.fault(field+".locationName", "must be 1–16 letters, digits, hyphens and underscores, not %q", name)
		case name != "" && names[name]:
			c.fault(field+".locationName", "%s is in the list twice", name)
		}
		names[of.LocationName] = true
		for j, p := range of.CidrList {
			field := at(field+".cidrList", j)
			if !p.IsValid() {
				continue // its own fault is told
			}
			longest := longest6
			if p.Addr().Is4() {
				longest = longest4
			}
			if p.Bits() < 1 || p.Bits() > longest {
				c.fault(field, "must be /1 to /%d, not %s", longest, p)
			} else if first, taken := blocks[p]; taken {
				c.fault(field, "%s is in %s already", p, first)
			} else {
				blocks[p] = field
			}
			if count++; count == most+1 {
				c.fault(field, "is block %d of the collection: at most %d", count, most)
			}
		}
	}
}

// Equal says whether two record sets say the same.
func (r *Record) Equal(o *Record) bool {
	return r.Name == o.Name && r.Type == o.Type && sameValue(r.TTL, o.TTL) && slices.Equal(r.Values, o.Values) && r.routedAs(o) && r.HealthCheck == o.HealthCheck
}

// Equal says whether two zones mean the same, however their documents are written.
func (z *HostedZone) Equal(o *HostedZone) bool {
	one, other := *z, *o
	one.Records, other.Records, one.layout, other.layout = Records{}, Records{}, nil, nil
	return reflect.DeepEqual(one, other) && z.Records.Equal(o.Records)
}

// routedAs says whether two are chosen by the same, but for health, and have the same alias.
func (r *Record) routedAs(o *Record) bool {
	return sameValue(r.Alias, o.Alias) && r.SetIdentifier == o.SetIdentifier && sameValue(r.Weight, o.Weight) && r.Region == o.Region &&
		r.Failover == o.Failover && sameValue(r.GeoLocation, o.GeoLocation) && r.MultiValueAnswer == o.MultiValueAnswer &&
		r.GeoProximityLocation.equal(o.GeoProximityLocation) && sameValue(r.CidrRoutingConfig, o.CidrRoutingConfig) && r.OnAllUnhealthy == o.OnAllUnhealthy
}

func (g *GeoProximityLocation) equal(o *GeoProximityLocation) bool {
	if g == nil || o == nil {
		return g == o
	}
	one, other := *g, *o
	one.Coordinates, other.Coordinates = nil, nil
	return one == other && sameValue(g.Coordinates, o.Coordinates)
}

// sameValue says whether two pointers point to the same value, or are both nil.
func sameValue[T comparable](a, b *T) bool {
	return a == b || a != nil && b != nil && *a == *b
}

// alone says that the record set refers to nothing outside of its zone.
func (r *Record) alone() bool {
	return r.Alias == nil && r.Region == "" && r.HealthCheck == "" && r.GeoProximityLocation == nil && r.CidrRoutingConfig == nil
}
