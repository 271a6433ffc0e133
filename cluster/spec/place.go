package spec

import (
	"math"
	"slices"
	"time"
)

const (
	earthRadius  = 6371.0088 // km, mean (IUGG)
	lightInGlass = 200.0     // km per ms, c divided by the refractive index of fibre, about 1.47
	// detour is how much longer real paths are than the great circle, in the median of published
	// region-to-region tables; an estimate, used only where nothing is measured.
	detour = 1.6
)

// Kilometres is the great-circle distance between two places.
func (a Location) Kilometres(b Location) float64 {
	rad := math.Pi / 180
	dLat, dLon := (b.Latitude-a.Latitude)*rad, (b.Longitude-a.Longitude)*rad
	sinLat, sinLon := math.Sin(dLat/2), math.Sin(dLon/2)
	h := sinLat*sinLat + math.Cos(a.Latitude*rad)*math.Cos(b.Latitude*rad)*sinLon*sinLon
	return 2 * earthRadius * math.Asin(math.Min(1, math.Sqrt(h)))
}

// Light is the round trip that light in fibre along the great circle takes: no packet is faster.
func (a Location) Light(b Location) time.Duration { return light(a.Kilometres(b)) }

// RoundTrip estimates the round trip between two places where nothing is measured.
func (a Location) RoundTrip(b Location) time.Duration { return RoundTrip(a.Light(b)) }

func light(kilometres float64) time.Duration {
	return time.Duration(2 * kilometres / lightInGlass * float64(time.Millisecond))
}

// RoundTrip estimates the round trip where light needs so long.
func RoundTrip(light time.Duration) time.Duration { return time.Duration(detour * float64(light)) }

// Site is a Location from which it is told at a fraction of the cost how far others are: it has its place on a globe of radius 1.
type Site struct {
	Location
	x, y, z float64
}

// Site makes a Site of a Location.
func (a Location) Site() *Site {
	latitude, longitude := a.Latitude*math.Pi/180, a.Longitude*math.Pi/180
	return &Site{a, math.Cos(latitude) * math.Cos(longitude), math.Cos(latitude) * math.Sin(longitude), math.Sin(latitude)}
}

// Chord grows with the distance: it is the square of the chord between two sites, on a globe of radius 1.
func (a *Site) Chord(b *Site) float64 {
	x, y, z := a.x-b.x, a.y-b.y, a.z-b.z
	return x*x + y*y + z*z
}

// Kilometres is Location.Kilometres.
func (a *Site) Kilometres(b *Site) float64 {
	return 2 * earthRadius * math.Asin(math.Min(1, math.Sqrt(a.Chord(b))/2))
}

// Light is Location.Light.
func (a *Site) Light(b *Site) time.Duration { return light(a.Kilometres(b)) }

// RoundTrip is Location.RoundTrip.
func (a *Site) RoundTrip(b *Site) time.Duration { return RoundTrip(a.Light(b)) }

// Place is where a POP of a region stands: its own location or else its region's. The POP may be "".
func (s *Spec) Place(region, pop string) (Location, bool) {
	r := s.Regions[region]
	if r == nil {
		return Location{}, false
	}
	for _, p := range r.POPs {
		if p.Name == pop && p.Location != nil {
			return *p.Location, true
		}
	}
	if r.Location == nil {
		return Location{}, false
	}
	return *r.Location, true
}

// Has says whether a listener is at a port.
func (lb *LoadBalancer) Has(port uint16) bool {
	return slices.ContainsFunc(lb.Listeners, func(l Listener) bool { return l.Port == port })
}

// TargetGroups are the names of the target groups the load balancer forwards to, each once, in the order
// of its listeners, rules first.
func (lb *LoadBalancer) TargetGroups() []string {
	var groups []string
	seen := map[string]bool{}
	add := func(a Action) {
		if a.Forward != "" && !seen[a.Forward] {
			seen[a.Forward] = true
			groups = append(groups, a.Forward)
		}
	}
	for _, l := range lb.Listeners {
		for _, r := range l.Rules {
			add(r.Action)
		}
		add(l.Default)
	}
	return groups
}
