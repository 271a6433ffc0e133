package distance

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/hashicorp/serf/coordinate"
)

// Coordinate is a node's place in a space in which distances are round trips (Vivaldi, with a height for the way from
// the node to the net). It is a value; the zero Coordinate is the origin, of which nobody is sure.
type Coordinate struct {
	vec        [dimensions]float64 // s
	doubt      float64             // the relative error that the node expects of its estimates: 0 is sure, maxDoubt knows nothing
	adjustment float64             // s
	height     float64             // s
}

const (
	dimensions = 8
	// maxDoubt is what a node begins with that has measured nothing.
	maxDoubt = 1.5
	// reach bounds every part of a coordinate, in seconds. What lies farther out is nowhere on earth.
	reach = 10

	// coordinateVersion begins an encoded coordinate. The parts follow, as float32.
	coordinateVersion = 1
	coordinateSize    = 1 + 4*(dimensions+3)
)

var errOutOfReach = errors.New("part out of bounds")

// Append encodes the coordinate: 45 bytes.
func (c Coordinate) Append(b []byte) []byte {
	b = append(b, coordinateVersion)
	for _, part := range c.parts() {
		b = binary.BigEndian.AppendUint32(b, math.Float32bits(float32(part)))
	}
	return b
}

// Decode reads what Append wrote, and nothing else.
func Decode(b []byte) (Coordinate, error) {
	if len(b) != coordinateSize || b[0] != coordinateVersion {
		return Coordinate{}, fmt.Errorf("decode coordinate: %d bytes of no known version", len(b))
	}
	var parts [dimensions + 3]float64
	for i := range parts {
		parts[i] = float64(math.Float32frombits(binary.BigEndian.Uint32(b[1+4*i:])))
	}
	c := Coordinate{vec: [dimensions]float64(parts[:dimensions]), doubt: parts[dimensions], adjustment: parts[dimensions+1], height: parts[dimensions+2]}
	if !c.valid() {
		return Coordinate{}, fmt.Errorf("decode coordinate: %w", errOutOfReach)
	}
	return c, nil
}

func (c Coordinate) parts() [dimensions + 3]float64 {
	var parts [dimensions + 3]float64
	copy(parts[:], c.vec[:])
	parts[dimensions], parts[dimensions+1], parts[dimensions+2] = c.doubt, c.adjustment, c.height
	return parts
}

// valid says whether each part is a number, and none that could carry others away.
func (c Coordinate) valid() bool {
	for _, part := range c.parts() {
		if !(math.Abs(part) <= reach) { // not a number is in no order
			return false
		}
	}
	return c.doubt >= 0 && c.height >= 0
}

// to is the round trip that two coordinates make likely.
func (c Coordinate) to(o Coordinate) time.Duration {
	return c.library().DistanceTo(o.library())
}

func (c Coordinate) library() *coordinate.Coordinate {
	return &coordinate.Coordinate{Vec: c.vec[:], Error: c.doubt, Adjustment: c.adjustment, Height: c.height}
}

func ours(l *coordinate.Coordinate) Coordinate {
	return Coordinate{vec: [dimensions]float64(l.Vec), doubt: l.Error, adjustment: l.Adjustment, height: l.Height}
}
