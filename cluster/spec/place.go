package spec

import (
	"math"
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
	h := math.Pow(math.Sin(dLat/2), 2) +
		math.Cos(a.Latitude*rad)*math.Cos(b.Latitude*rad)*math.Pow(math.Sin(dLon/2), 2)
	return 2 * earthRadius * math.Asin(math.Min(1, math.Sqrt(h)))
}

// Light is the round trip that light in fibre along the great circle takes: no packet is faster.
func (a Location) Light(b Location) time.Duration {
	return time.Duration(2 * a.Kilometres(b) / lightInGlass * float64(time.Millisecond))
}

// RoundTrip estimates the round trip between two places where nothing is measured.
func (a Location) RoundTrip(b Location) time.Duration {
	return time.Duration(detour * float64(a.Light(b)))
}

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
