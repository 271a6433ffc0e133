// Command land makes land.txt, the outlines of the world's land that package page draws its map on, from Natural
// Earth's 1:110m land (public domain), as npm's world-atlas@2.0.2 carries it in TopoJSON:
//
//	npm pack world-atlas@2.0.2 && tar xzf world-atlas-2.0.2.tgz
//	go run ./testbed/page/land package/land-110m.json > testbed/page/land.txt
//
// It runs once in years. It leaves out Antarctica and moves the edge of the map from 180° to 169° west, where only
// water and a few islands are, so that Asia's last cape is not torn off. A line of land.txt is a ring: tenths of
// degrees east of 11° east and north, the first point as it is, each other one as the step from the point before.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math"
	"os"
)

const (
	centre  = 11.0  // the meridian in the middle of the map
	edge    = -169. // the one at its left and right
	south   = -60.  // rings that are wholly beyond it are left out
	minArea = 0.25  // square degrees: smaller islands are left out
)

type point struct{ lon, lat float64 }

type topology struct {
	Transform struct{ Scale, Translate [2]float64 }
	Arcs      [][][2]int
	Objects   struct {
		Land struct {
			Geometries []struct {
				Type string
				Arcs [][][]int
			}
		}
	}
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: land FILE, the land-110m.json of world-atlas")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "land:", err)
		os.Exit(1)
	}
}

func run(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var t topology
	if err := json.Unmarshal(data, &t); err != nil {
		return fmt.Errorf("decode %s: %w", file, err)
	}
	arcs := decode(t)
	out := bufio.NewWriter(os.Stdout)
	for _, g := range t.Objects.Land.Geometries {
		if g.Type != "MultiPolygon" {
			return fmt.Errorf("%s has a %s where a MultiPolygon is known", file, g.Type)
		}
		for _, polygon := range g.Arcs {
			for _, ring := range polygon {
				points := unwind(join(arcs, ring))
				for turn := -360.; turn <= 360; turn += 360 {
					part := clip(points, edge+turn, 1)
					part = clip(part, edge+turn+360, -1)
					write(out, shift(part, -centre-turn))
				}
			}
		}
	}
	return out.Flush()
}

// decode undoes the quantisation and the steps of TopoJSON's arcs (its specification, 2.1.3 and 2.1.4).
func decode(t topology) [][]point {
	arcs := make([][]point, len(t.Arcs))
	for i, arc := range t.Arcs {
		x, y := 0, 0
		for _, step := range arc {
			x, y = x+step[0], y+step[1]
			arcs[i] = append(arcs[i], point{
				float64(x)*t.Transform.Scale[0] + t.Transform.Translate[0],
				float64(y)*t.Transform.Scale[1] + t.Transform.Translate[1],
			})
		}
	}
	return arcs
}

// join makes a ring of arcs; a negative index is the arc ^index backwards, and each begins where the one before ended.
func join(arcs [][]point, ring []int) []point {
	var points []point
	for _, i := range ring {
		arc := arcs[max(i, ^i)]
		for n := range arc {
			if n == 0 && len(points) > 0 {
				continue
			}
			if i < 0 {
				points = append(points, arc[len(arc)-1-n])
			} else {
				points = append(points, arc[n])
			}
		}
	}
	return points
}

// unwind lets a ring's longitudes go on beyond 180° where they jump, for this source has no cut there.
func unwind(ring []point) []point {
	for i := 1; i < len(ring); i++ {
		ring[i].lon -= 360 * math.Round((ring[i].lon-ring[i-1].lon)/360)
	}
	return ring
}

// clip keeps the part of a ring that is east (side 1) or west (−1) of a meridian (Sutherland and Hodgman).
func clip(ring []point, meridian, side float64) []point {
	inside := func(p point) bool { return side*(p.lon-meridian) >= 0 }
	var kept []point
	for i, b := range ring {
		a := ring[(i+len(ring)-1)%len(ring)]
		if inside(a) != inside(b) {
			kept = append(kept, point{meridian, a.lat + (b.lat-a.lat)*(meridian-a.lon)/(b.lon-a.lon)})
		}
		if inside(b) {
			kept = append(kept, b)
		}
	}
	return kept
}

func shift(ring []point, by float64) []point {
	for i := range ring {
		ring[i].lon += by
	}
	return ring
}

func write(out *bufio.Writer, ring []point) {
	north, area := -90., 0.
	for i, b := range ring {
		a := ring[(i+len(ring)-1)%len(ring)]
		area += (a.lon*b.lat - b.lon*a.lat) / 2
		north = max(north, b.lat)
	}
	if len(ring) < 3 || north < south || math.Abs(area) < minArea {
		return
	}
	x, y := 0, 0
	for i, p := range ring {
		dx, dy := int(math.Round(p.lon*10))-x, int(math.Round(p.lat*10))-y
		if i > 0 && dx == 0 && dy == 0 {
			continue
		}
		if i > 0 {
			fmt.Fprint(out, " ")
		}
		fmt.Fprintf(out, "%d %d", dx, dy)
		x, y = x+dx, y+dy
	}
	fmt.Fprintln(out)
}
