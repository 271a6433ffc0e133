//go:build 386 || arm

package bed

import (
	"errors"

	"github.com/perigee-net/perigee/testbed/wan"
)

// places is a file in MaxMind's format. What writes them has sizes that an int of 32 bits has no room for.
func places([]wan.GeoRow) ([]byte, error) {
	return nil, errors.New("make the file of places: that takes a machine of 64 bits")
}
