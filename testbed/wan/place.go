package wan

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
)

// Place is a city, or the city where a region is.
type Place struct {
	Name          string // seoul
	City, Country string // Seoul, KR
	Subdivision   string // of the US, Canada and Australia: ISO 3166-2 without the country
	Continent     string // AF AN AS EU NA OC SA
	At            spec.Location
}

// Places are where clients may be. Their order is part of their clients' addresses: new ones come at the end.
func Places() []Place { return slices.Clone(places) }

var places = []Place{
	{"seoul", "Seoul", "KR", "", "AS", spec.Location{Latitude: 37.57, Longitude: 126.98}},
	{"tokyo", "Tokyo", "JP", "", "AS", spec.Location{Latitude: 35.68, Longitude: 139.69}},
	{"frankfurt", "Frankfurt", "DE", "", "EU", spec.Location{Latitude: 50.11, Longitude: 8.68}},
	{"london", "London", "GB", "", "EU", spec.Location{Latitude: 51.51, Longitude: -0.13}},
	{"newyork", "New York", "US", "NY", "NA", spec.Location{Latitude: 40.71, Longitude: -74.01}},
	{"saopaulo", "São Paulo", "BR", "", "SA", spec.Location{Latitude: -23.55, Longitude: -46.63}},
	{"lagos", "Lagos", "NG", "", "AF", spec.Location{Latitude: 6.52, Longitude: 3.38}},
	{"mumbai", "Mumbai", "IN", "", "AS", spec.Location{Latitude: 19.08, Longitude: 72.88}},
	{"sydney", "Sydney", "AU", "NSW", "OC", spec.Location{Latitude: -33.87, Longitude: 151.21}},
	{"singapore", "Singapore", "SG", "", "AS", spec.Location{Latitude: 1.35, Longitude: 103.82}},
	{"hongkong", "Hong Kong", "HK", "", "AS", spec.Location{Latitude: 22.32, Longitude: 114.17}},
	{"taipei", "Taipei", "TW", "", "AS", spec.Location{Latitude: 25.03, Longitude: 121.57}},
	{"shanghai", "Shanghai", "CN", "", "AS", spec.Location{Latitude: 31.23, Longitude: 121.47}},
	{"osaka", "Osaka", "JP", "", "AS", spec.Location{Latitude: 34.69, Longitude: 135.50}},
	{"manila", "Manila", "PH", "", "AS", spec.Location{Latitude: 14.60, Longitude: 120.98}},
	{"jakarta", "Jakarta", "ID", "", "AS", spec.Location{Latitude: -6.21, Longitude: 106.85}},
	{"bangkok", "Bangkok", "TH", "", "AS", spec.Location{Latitude: 13.76, Longitude: 100.50}},
	{"hanoi", "Hanoi", "VN", "", "AS", spec.Location{Latitude: 21.03, Longitude: 105.85}},
	{"dhaka", "Dhaka", "BD", "", "AS", spec.Location{Latitude: 23.81, Longitude: 90.41}},
	{"delhi", "Delhi", "IN", "", "AS", spec.Location{Latitude: 28.61, Longitude: 77.21}},
	{"karachi", "Karachi", "PK", "", "AS", spec.Location{Latitude: 24.86, Longitude: 67.01}},
	{"almaty", "Almaty", "KZ", "", "AS", spec.Location{Latitude: 43.24, Longitude: 76.89}},
	{"dubai", "Dubai", "AE", "", "AS", spec.Location{Latitude: 25.20, Longitude: 55.27}},
	{"riyadh", "Riyadh", "SA", "", "AS", spec.Location{Latitude: 24.71, Longitude: 46.68}},
	{"telaviv", "Tel Aviv", "IL", "", "AS", spec.Location{Latitude: 32.09, Longitude: 34.78}},
	{"istanbul", "Istanbul", "TR", "", "AS", spec.Location{Latitude: 41.01, Longitude: 28.98}},
	{"kyiv", "Kyiv", "UA", "", "EU", spec.Location{Latitude: 50.45, Longitude: 30.52}},
	{"warsaw", "Warsaw", "PL", "", "EU", spec.Location{Latitude: 52.23, Longitude: 21.01}},
	{"helsinki", "Helsinki", "FI", "", "EU", spec.Location{Latitude: 60.17, Longitude: 24.94}},
	{"stockholm", "Stockholm", "SE", "", "EU", spec.Location{Latitude: 59.33, Longitude: 18.07}},
	{"amsterdam", "Amsterdam", "NL", "", "EU", spec.Location{Latitude: 52.37, Longitude: 4.90}},
	{"paris", "Paris", "FR", "", "EU", spec.Location{Latitude: 48.86, Longitude: 2.35}},
	{"zurich", "Zurich", "CH", "", "EU", spec.Location{Latitude: 47.38, Longitude: 8.54}},
	{"milan", "Milan", "IT", "", "EU", spec.Location{Latitude: 45.46, Longitude: 9.19}},
	{"madrid", "Madrid", "ES", "", "EU", spec.Location{Latitude: 40.42, Longitude: -3.70}},
	{"dublin", "Dublin", "IE", "", "EU", spec.Location{Latitude: 53.35, Longitude: -6.26}},
	{"reykjavik", "Reykjavík", "IS", "", "EU", spec.Location{Latitude: 64.15, Longitude: -21.94}},
	{"cairo", "Cairo", "EG", "", "AF", spec.Location{Latitude: 30.04, Longitude: 31.24}},
	{"nairobi", "Nairobi", "KE", "", "AF", spec.Location{Latitude: -1.29, Longitude: 36.82}},
	{"johannesburg", "Johannesburg", "ZA", "", "AF", spec.Location{Latitude: -26.20, Longitude: 28.05}},
	{"toronto", "Toronto", "CA", "ON", "NA", spec.Location{Latitude: 43.65, Longitude: -79.38}},
	{"chicago", "Chicago", "US", "IL", "NA", spec.Location{Latitude: 41.88, Longitude: -87.63}},
	{"dallas", "Dallas", "US", "TX", "NA", spec.Location{Latitude: 32.78, Longitude: -96.80}},
	{"miami", "Miami", "US", "FL", "NA", spec.Location{Latitude: 25.76, Longitude: -80.19}},
	{"losangeles", "Los Angeles", "US", "CA", "NA", spec.Location{Latitude: 34.05, Longitude: -118.24}},
	{"seattle", "Seattle", "US", "WA", "NA", spec.Location{Latitude: 47.61, Longitude: -122.33}},
	{"honolulu", "Honolulu", "US", "HI", "NA", spec.Location{Latitude: 21.31, Longitude: -157.86}},
	{"mexicocity", "Mexico City", "MX", "", "NA", spec.Location{Latitude: 19.43, Longitude: -99.13}},
	{"bogota", "Bogotá", "CO", "", "SA", spec.Location{Latitude: 4.71, Longitude: -74.07}},
	{"lima", "Lima", "PE", "", "SA", spec.Location{Latitude: -12.05, Longitude: -77.04}},
	{"santiago", "Santiago", "CL", "", "SA", spec.Location{Latitude: -33.45, Longitude: -70.67}},
	{"buenosaires", "Buenos Aires", "AR", "", "SA", spec.Location{Latitude: -34.60, Longitude: -58.38}},
	{"perth", "Perth", "AU", "WA", "OC", spec.Location{Latitude: -31.95, Longitude: 115.86}},
	{"auckland", "Auckland", "NZ", "", "OC", spec.Location{Latitude: -36.85, Longitude: 174.76}},
}

// firstPlace is the number of the client at the first place, whichever its site is. Below it are the numbers of all others.
const firstPlace = 1001

// A client's way to its site: cables are longer than the great circle, light in glass takes 1 ms for 200 km, and the last
// mile its own time.
const (
	cable        = 1.4
	lightInGlass = 200.0 // km per ms
	lastMile     = 4 * time.Millisecond
)

// Place is a client at a place, by its name: it is connected to the site that is nearest by the great circle, and its
// addresses are always the same in a world of these sites. The world is not changed; Add takes the client into it.
func (w *World) Place(name string) (Host, error) {
	i := slices.IndexFunc(places, func(p Place) bool { return p.Name == name })
	if i < 0 {
		var names []string
		for _, p := range places {
			names = append(names, p.Name)
		}
		return Host{}, fmt.Errorf("no place %.40q: there are %s", name, strings.Join(names, " "))
	}
	if len(w.Sites) == 0 {
		return Host{}, fmt.Errorf("place %s: the world has no sites", name)
	}
	p := places[i]
	s := slices.MinFunc(w.Sites, func(a, b Site) int {
		return int(math.Round(p.At.Kilometres(a.At) - p.At.Kilometres(b.At)))
	})
	way := time.Duration(p.At.Kilometres(s.At) * cable / lightInGlass * float64(time.Millisecond))
	h := Host{
		Name: name, Kind: Client, Site: s.Name, At: p.At, Number: firstPlace + i,
		Access: &Path{Delay: (way + lastMile/2).Round(time.Microsecond)},
	}
	return s.settle(h), nil
}

// continent is that of a country where a place of ours is, or else that of the nearest place.
func continent(country string, at spec.Location) string {
	for _, p := range places {
		if p.Country == country {
			return p.Continent
		}
	}
	return slices.MinFunc(places, func(a, b Place) int {
		return int(math.Round(at.Kilometres(a.At) - at.Kilometres(b.At)))
	}).Continent
}
