//go:build linux && (386 || arm)

package bench

import "errors"

// writePlaces writes the file of places in MaxMind's City format. What writes them has sizes that an int of 32 bits has no room for.
func writePlaces(string) error { return errors.New("the file of places takes a machine of 64 bits") }
