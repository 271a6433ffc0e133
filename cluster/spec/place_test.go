package spec

import (
	"math"
	"slices"
	"testing"
	"time"
)

func TestKilometresAreThoseOfTheGreatCircle(t *testing.T) {
	for _, c := range []struct {
		name     string
		from, to Location
		want     float64 // km
	}{
		{"nowhere", Location{37.57, 126.98}, Location{37.57, 126.98}, 0},
		{"a degree of the equator", Location{0, 0}, Location{0, 1}, 111.195},
		{"pole to pole", Location{90, 0}, Location{-90, 0}, 20015.115},
		{"the other side", Location{0, 0}, Location{0, 180}, 20015.115},
		{"over the date line", Location{0, 179.5}, Location{0, -179.5}, 111.195},
		{"London to New York", Location{51.5074, -0.1278}, Location{40.7128, -74.006}, 5570.2},
		{"Seoul to Tokyo", Location{37.5665, 126.978}, Location{35.6762, 139.6503}, 1150},
		{"Sydney to Santiago", Location{-33.8688, 151.2093}, Location{-33.4489, -70.6693}, 11340},
	} {
		got := c.from.Kilometres(c.to)
		if math.Abs(got-c.want) > 0.002*c.want {
			t.Errorf("%s: %.1f km, want %.1f", c.name, got, c.want)
		}
		if back := c.to.Kilometres(c.from); math.Abs(back-got) > 1e-6 {
			t.Errorf("%s: %.1f km there, %.1f back", c.name, got, back)
		}
		a, b := c.from.Site(), c.to.Site()
		if by := a.Kilometres(b); math.Abs(by-got) > 1e-3 || (a.RoundTrip(b)-c.from.RoundTrip(c.to)).Abs() > time.Microsecond || (a.Light(b)-c.from.Light(c.to)).Abs() > time.Microsecond {
			t.Errorf("%s: %.6f km between sites, %.6f between locations", c.name, by, got)
		}
	}
}

func TestNoEstimateIsFasterThanLight(t *testing.T) {
	for from, a := range awsRegions {
		for to, b := range awsRegions {
			x, y := Location{a.latitude, a.longitude}, Location{b.latitude, b.longitude}
			if x != y && x.RoundTrip(y) <= x.Light(y) {
				t.Errorf("%s to %s: %s, light takes %s", from, to, x.RoundTrip(y), x.Light(y))
			}
		}
	}
	// There and back over 1,000 km at 200 km a millisecond.
	if got := (Location{0, 0}).Light(Location{0, 8.9932}); got.Round(100*time.Microsecond) != 10*time.Millisecond {
		t.Errorf("light takes %s for 1000 km and back, want 10ms", got)
	}
}

func TestAPOPIsWhereItSaysOrElseWhereItsRegionIs(t *testing.T) {
	s := mustBuild(t, "kind: Region\nname: r\nlocation: {latitude: 1, longitude: 2}\npops: [{name: a}, {name: b, location: {latitude: 3, longitude: 4}}]\n")
	for _, c := range []struct {
		region, pop string
		want        Location
		ok          bool
	}{
		{"r", "", Location{1, 2}, true},
		{"r", "a", Location{1, 2}, true},
		{"r", "b", Location{3, 4}, true},
		{"r", "unknown", Location{1, 2}, true},
		{"unknown", "a", Location{}, false},
	} {
		if got, ok := s.Place(c.region, c.pop); got != c.want || ok != c.ok {
			t.Errorf("%s %s: got %v, %v", c.region, c.pop, got, ok)
		}
	}
	if _, ok := (&Spec{Regions: map[string]*Region{"r": {Name: "r"}}}).Place("r", ""); ok {
		t.Error("a region without a location has a place")
	}
}

func TestTargetGroupsAreNamedOnceInTheOrderOfTheListeners(t *testing.T) {
	forward := func(group string) Action { return Action{Forward: group} }
	lb := LoadBalancer{Listeners: []Listener{
		{Default: forward("c"), Rules: []ListenerRule{{Action: forward("b")}, {Action: Action{FixedResponse: &FixedResponse{}}}, {Action: forward("a")}}},
		{Default: forward("b"), Rules: []ListenerRule{{Action: forward("d")}}},
	}}
	if got, want := lb.TargetGroups(), []string{"b", "a", "c", "d"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
