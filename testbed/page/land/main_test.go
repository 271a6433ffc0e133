package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"slices"
	"testing"
)

// Two arcs that are one ring, the second of them backwards, with steps and a scale as TopoJSON has them.
func TestArcsBecomeARing(t *testing.T) {
	var of topology
	if err := json.Unmarshal([]byte(`{"transform": {"scale": [0.5, 2], "translate": [-10, 1]}, "arcs": [[[0, 0], [4, 0], [0, 3]], [[0, 0], [0, 3], [4, 0]]]}`), &of); err != nil {
		t.Fatal(err)
	}
	arcs := decode(of)
	if want := []point{{-10, 1}, {-8, 1}, {-8, 7}}; !slices.Equal(arcs[0], want) {
		t.Errorf("%v, want %v", arcs[0], want)
	}
	if got, want := join(arcs, []int{0, ^1}), []point{{-10, 1}, {-8, 1}, {-8, 7}, {-10, 7}, {-10, 1}}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestWhatCrossesADateLineGoesOnBeyondIt(t *testing.T) {
	got := unwind([]point{{170, 0}, {-170, 0}, {-170, 5}, {175, 5}})
	if want := []point{{170, 0}, {190, 0}, {190, 5}, {175, 5}}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestARingIsClippedAtAMeridian(t *testing.T) {
	square := []point{{0, 0}, {10, 0}, {10, 10}, {0, 10}}
	for _, c := range []struct {
		meridian, side float64
		want           []point
	}{
		{4, 1, []point{{4, 0}, {10, 0}, {10, 10}, {4, 10}}},
		{4, -1, []point{{0, 0}, {4, 0}, {4, 10}, {0, 10}}},
		{-1, 1, slices.Clone(square)},
		{20, 1, nil},
	} {
		got := clip(square, c.meridian, c.side)
		slices.SortFunc(got, inOrder)
		slices.SortFunc(c.want, inOrder)
		if !slices.Equal(got, c.want) {
			t.Errorf("at %v, side %v: %v, want %v", c.meridian, c.side, got, c.want)
		}
	}
}

func inOrder(a, b point) int {
	if a.lat != b.lat {
		return int(a.lat - b.lat)
	}
	return int(a.lon - b.lon)
}

// A line is the first point in tenths of degrees, and the steps from there; what is small, or wholly in the far south, is none.
func TestARingIsALine(t *testing.T) {
	for _, c := range []struct {
		name string
		ring []point
		want string
	}{
		{"a square", []point{{1, 2}, {3, 2}, {3, 4}, {1, 4}}, "10 20 20 0 0 20 -20 0\n"},
		{"an islet", []point{{1, 2}, {1.1, 2}, {1.1, 2.1}}, ""},
		{"the south", []point{{0, -80}, {40, -80}, {40, -61}, {0, -61}}, ""},
		{"nothing", nil, ""},
	} {
		var b bytes.Buffer
		out := bufio.NewWriter(&b)
		write(out, c.ring)
		if out.Flush(); b.String() != c.want {
			t.Errorf("%s is %q, want %q", c.name, b.String(), c.want)
		}
	}
}
