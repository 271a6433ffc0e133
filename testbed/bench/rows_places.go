//go:build linux

package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"
)

// The rows of places: clients in three continents, each of which has one region and four countries.
var regions = [...]struct {
	name, continent     string
	countries           [4]string // to the first one a set of its own leads
	latitude, longitude float64
	address             netip.Addr // of the region, and of the first country
	rest                netip.Addr // of the other countries
}{
	{"ap-northeast-2", "AS", [4]string{"KR", "JP", "SG", "IN"}, 37.56, 126.98, netip.AddrFrom4([4]byte{192, 0, 2, 1}), netip.AddrFrom4([4]byte{192, 0, 2, 11})},
	{"eu-central-1", "EU", [4]string{"DE", "FR", "PL", "SE"}, 50.11, 8.68, netip.AddrFrom4([4]byte{192, 0, 2, 2}), netip.AddrFrom4([4]byte{192, 0, 2, 12})},
	{"us-east-1", "NA", [4]string{"US", "CA", "MX", "CR"}, 38.95, -77.45, netip.AddrFrom4([4]byte{192, 0, 2, 3}), netip.AddrFrom4([4]byte{192, 0, 2, 13})},
}

// elsewhere is the address for clients of no place, which the load has none of.
const elsewhere = "192.0.2.99"

// The zones of those rows, whose only interesting name is www.
const (
	nearZone = "near." + Name
	geoZone  = "geo." + Name
)

// places is how many networks the file of places has.
const places = 10_000

// place is network n of the file of places, in which region it is, and in which of its countries: networks of /20, one at a place of 32 that
// looks random, from 20.0.0.0 on.
func place(n int) (network netip.Prefix, nearest, country int) {
	at := uint32(20)<<24 + uint32(n*32+n*n*7%32)<<12
	return netip.PrefixFrom(netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, at))), 20), n % len(regions), n / len(regions) % len(regions[0].countries)
}

// nearestAddress is the right answer for a client in network n where the region counts.
func nearestAddress(n int) netip.Addr {
	_, nearest, _ := place(n)
	return regions[nearest].address
}

// countryAddress is the right answer where the country and then the continent count.
func countryAddress(n int) netip.Addr {
	_, in, country := place(n)
	if country == 0 {
		return regions[in].address
	}
	return regions[in].rest
}

// regionsSpec are the regions, and the one that the node is in.
func regionsSpec() string {
	var b strings.Builder
	for _, r := range regions {
		fmt.Fprintf(&b, "kind: Region\nname: %s\nlocation: {latitude: %g, longitude: %g}\n---\n", r.name, r.latitude, r.longitude)
	}
	return b.String() + region
}

func nearSpec() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s---\nkind: HostedZone\nname: %s\nrecords:\n", regionsSpec(), nearZone)
	for _, r := range regions {
		fmt.Fprintf(&b, "  - {name: www, type: A, setIdentifier: %s, region: %s, ttl: 300, values: [%s]}\n", r.name, r.name, r.address)
	}
	return b.String()
}

func geoSpec() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s---\nkind: HostedZone\nname: %s\nrecords:\n", region, geoZone)
	for _, r := range regions {
		fmt.Fprintf(&b, "  - {name: www, type: A, setIdentifier: %s, geoLocation: {country: %s}, ttl: 300, values: [%s]}\n", r.countries[0], r.countries[0], r.address)
		fmt.Fprintf(&b, "  - {name: www, type: A, setIdentifier: %s, geoLocation: {continent: %s}, ttl: 300, values: [%s]}\n", r.continent, r.continent, r.rest)
	}
	fmt.Fprintf(&b, "  - {name: www, type: A, setIdentifier: all, geoLocation: {country: \"*\"}, ttl: 300, values: [%s]}\n", elsewhere)
	return b.String()
}

// placeQueries is how many queries there are for places: several of each, from networks of /24 in it.
const placeQueries = 50_000

// ofPlaces are questions for www of a zone from clients in all places, in an order that is random and the same in each run.
func (q *questions) ofPlaces(zone string, want func(n int) netip.Addr) error {
	*q = questions{}
	dice := rand.New(rand.NewPCG(1, 1))
	for i := range placeQueries {
		n := dice.IntN(places)
		if i < places { // each once at least
			n = i
		}
		if err := q.add("www."+zone+".", clientIn(n, byte(dice.IntN(16))), want(n)); err != nil {
			return err
		}
	}
	return nil
}

// clientIn is the network of /24 of that number in place n.
func clientIn(n int, number byte) netip.Prefix {
	network, _, _ := place(n)
	client := network.Addr().As4()
	client[2] |= number
	return netip.PrefixFrom(netip.AddrFrom4(client), 24)
}

func checkPlaces(zone string, want func(n int) netip.Addr) func(context.Context, Stage) error {
	return func(ctx context.Context, s Stage) error {
		for n := 0; n < places; n += 97 { // every region and country
			if err := answers(ctx, asking{address: s.at(s.Port), network: "udp", name: "www." + zone + ".", subnet: clientIn(n, 7)}, want(n)); err != nil {
				return err
			}
		}
		return nil
	}
}

// chosen is one answer that peers give by place: in a country, in a continent where country is "", or nearest to a region.
type chosen struct {
	label              string // unique, of small letters and digits
	continent, country string
	address            netip.Addr
}

// byCountry is what they choose among where the country and then the continent count, countries first.
func byCountry() (all []chosen) {
	for _, r := range regions {
		all = append(all, chosen{"c" + strings.ToLower(r.countries[0]), r.continent, r.countries[0], r.address})
	}
	for _, r := range regions {
		all = append(all, chosen{"p" + strings.ToLower(r.continent), r.continent, "", r.rest})
	}
	return all
}

// byContinent is what they choose among who know no distances: the place of a region is that of its continent.
func byContinent() (all []chosen) {
	for _, r := range regions {
		all = append(all, chosen{"p" + strings.ToLower(r.continent), r.continent, "", r.address})
	}
	return all
}

// placeZone is a zone as those have it that read files, with what www is.
func placeZone(www string) string {
	return "@ 300 SOA ns hostmaster 1 7200 900 1209600 60\n@ 300 NS ns\nns 300 A 192.0.2.53\nwww 300 " + www + "\n"
}

func gdnsdNear() Peer {
	var coords strings.Builder
	for i, c := range byContinent() {
		fmt.Fprintf(&coords, "          %s => [ %g, %g ]\n", c.label, regions[i].latitude, regions[i].longitude)
	}
	return gdnsdPlaces(nearZone, "distances from the file's coordinates, all worked out when it starts", byContinent(), "auto_dc_coords => {\n"+coords.String()+"        }")
}

func gdnsdGeo() Peer {
	var all strings.Builder
	for _, r := range regions {
		fmt.Fprintf(&all, "          %s => { %s => [c%s], default => [p%s] }\n", r.continent, r.countries[0], strings.ToLower(r.countries[0]), strings.ToLower(r.continent))
	}
	return gdnsdPlaces(geoZone, "all of the file worked out when it starts", append(byCountry(), chosen{label: "all", address: netip.MustParseAddr(elsewhere)}),
		"map => {\n"+all.String()+"          default => [all]\n        }")
}

func gdnsdPlaces(zone, note string, among []chosen, how string) Peer {
	return dnsPeer("gdnsd", "gdnsd", "gdnsd", []string{"-h"}, note, func(s Stage) error {
		var labels []string
		var addresses strings.Builder
		for _, c := range among {
			labels = append(labels, c.label)
			fmt.Fprintf(&addresses, "          %s => %s\n", c.label, c.address)
		}
		_, err1 := s.Write("etc/config", gdnsdHead+`plugins => {
  geoip => {
    maps => {
      places => {
        geoip2_db => {places}
        datacenters => [ `+strings.Join(labels, ", ")+` ]
        `+how+`
      }
    }
    resources => {
      www => {
        map => places
        dcmap => {
`+addresses.String()+`        }
      }
    }
  }
}
`)
		_, err2 := s.Write("etc/zones/"+zone, placeZone("DYNA geoip!www"))
		return errors.Join(err1, err2)
	}, "gdnsd", "-c", "{dir}/etc", "start")
}

func pdnsNear() Peer {
	return pdnsPlaces(nearZone, "by continent, from its geoip backend; answers for client subnets are in no cache", byContinent())
}

func pdnsGeo() Peer {
	return pdnsPlaces(geoZone, "from its geoip backend; answers for client subnets are in no cache", byCountry())
}

func pdnsPlaces(zone, note string, among []chosen) Peer {
	p := dnsPeer("pdns", "pdns_server", "pdns-server", []string{"--version"}, note, func(s Stage) error {
		var records strings.Builder
		services := []string{"'p%cn." + zone + "'"} // looked for in this order
		for _, c := range among {
			if c.country != "" && len(services) == 1 {
				services = append([]string{"'c%cc." + zone + "'"}, services...)
			}
			fmt.Fprintf(&records, "      %s.%s:\n        - a: {content: %s, ttl: 300}\n", c.label, zone, c.address)
		}
		_, err1 := s.Write("pdns.conf", pdnsHead+"launch=geoip\ngeoip-database-files=mmdb:{places}\ngeoip-zones-file={dir}/zones.yaml\nedns-subnet-processing=yes\n")
		_, err2 := s.Write("zones.yaml", `domains:
  - domain: `+zone+`
    ttl: 300
    records:
      `+zone+`:
        - soa: ns.`+zone+` hostmaster.`+zone+` 1 7200 900 1209600 60
        - ns: ns.`+zone+`
`+records.String()+`    services:
      www.`+zone+`: [`+strings.Join(services, ", ")+`]
`)
		return errors.Join(err1, err2)
	}, "pdns_server", "--config-dir={dir}")
	p.Needs = append(p.Needs, Need{File: "/usr/lib/*/pdns/libgeoipbackend.so", Package: "pdns-backend-geoip"})
	return p
}

func knotNear() Peer { return knotPlaces(nearZone, nearestAddress) }
func knotGeo() Peer  { return knotPlaces(geoZone, countryAddress) }

// knotPlaces says each country by itself.
func knotPlaces(zone string, want func(n int) netip.Addr) Peer {
	p := dnsPeer("knot", "knotd", "knot", []string{"--version"}, "by country, from its module geoip", func(s Stage) error {
		var geo strings.Builder
		fmt.Fprintf(&geo, "www.%s:\n", zone)
		for n := range len(regions) * len(regions[0].countries) { // one place of each country
			_, in, country := place(n)
			fmt.Fprintf(&geo, "  - geo: \"%s;%s\"\n    A: %s\n", regions[in].continent, regions[in].countries[country], want(n))
		}
		_, err1 := s.Write("run/none", "")
		_, err2 := s.Write("geo.conf", geo.String())
		_, err3 := s.Write("zone", "$ORIGIN "+zone+".\n"+placeZone("A "+elsewhere))
		// The module comes after the server section, whose subnet option it needs.
		_, err4 := s.Write("knot.conf", strings.Replace(knotHead, "    udp-workers", "    edns-client-subnet: on\n    udp-workers", 1)+`mod-geoip:
  - id: places
    config-file: {dir}/geo.conf
    ttl: 300
    mode: geodb
    geodb-file: {places}
    geodb-key: [ continent/code, country/iso_code ]
zone:
  - domain: `+zone+`
    file: {dir}/zone
    zonefile-sync: -1
    journal-content: none
    module: mod-geoip/places
`)
		return errors.Join(err1, err2, err3, err4)
	}, "knotd", "-c", "{dir}/knot.conf")
	p.Needs = append(p.Needs, Need{File: "/usr/lib/*/knot/modules*/geoip.so", Package: "knot-module-geoip"})
	return p
}

func corednsNear() Peer { return corednsPlaces(nearZone, "by continent", byContinent()) }
func corednsGeo() Peer  { return corednsPlaces(geoZone, "by country and continent", byCountry()) }

func corednsPlaces(zone, note string, among []chosen) Peer {
	return dnsPeer("coredns", "coredns", "", []string{"-version"}, note+", a view for each; its geoip plugin", func(s Stage) error {
		var b strings.Builder
		for _, c := range among {
			which := fmt.Sprintf("metadata('geoip/continent/code') == '%s'", c.continent)
			if c.country != "" {
				which = fmt.Sprintf("metadata('geoip/country/code') == '%s'", c.country)
			}
			fmt.Fprintf(&b, "%s:{port} {\n\tbind {host}\n\tmetadata\n\tgeoip {places} {\n\t\tedns-subnet\n\t}\n\tview %s {\n\t\texpr %s\n\t}\n\tfile {dir}/%s\n\tminimal\n}\n", zone, c.label, which, c.label)
			if _, err := s.Write(c.label, "$ORIGIN "+zone+".\n"+placeZone("A "+c.address.String())); err != nil {
				return err
			}
		}
		_, err := s.Write("Corefile", b.String())
		return err
	}, "coredns", "-conf", "{dir}/Corefile")
}

// fileTime is the time that the file of places says it was made at: it is the same in each run.
var fileTime = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
