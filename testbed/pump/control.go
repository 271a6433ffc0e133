package pump

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/perigee-net/perigee/testbed/wan"
)

// The pump process is told what to do over a unix socket: one JSON object a line is asked, one is answered.
const (
	// maxAsked is the longest line that is asked, bytes.
	maxAsked = 16 << 10
	// maxAnswer is the longest that is answered: the stats of MaxLinks links.
	maxAnswer = 8 << 20
	// maxName bounds the names of links, namespaces and devices, bytes.
	maxName = 255
)

// Device names a TUN device in a network namespace.
type Device struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

// What can be asked.
const (
	askAdd    = "add"
	askRemove = "remove"
	askSet    = "set"
	askDown   = "down"
	askSeed   = "seed"
	askPaths  = "paths"
	askStats  = "stats"
	askQuit   = "quit"
)

// ask is one line to the pump process.
type ask struct {
	Do   string    `json:"do"`
	Link string    `json:"link,omitempty"` // all but stats and quit
	A    *Device   `json:"a,omitempty"`    // add
	B    *Device   `json:"b,omitempty"`
	AB   *wan.Path `json:"ab,omitempty"` // add, set
	BA   *wan.Path `json:"ba,omitempty"`
	// down: which directions are to be silent
	SilentAB bool `json:"silentAB,omitempty"`
	SilentBA bool `json:"silentBA,omitempty"`
	// seed: how the dice are to fall
	Seed uint64 `json:"seed,omitempty"`
}

// answer is one line from it.
type answer struct {
	Error   string           `json:"error,omitempty"`
	AB      *wan.Path        `json:"ab,omitempty"` // paths
	BA      *wan.Path        `json:"ba,omitempty"`
	Stats   map[string]Stats `json:"stats,omitempty"`
	Urgency Urgency          `json:"urgency,omitempty"` // stats
}

// decodeAsk reads one line that is asked, and checks everything that does not need the links.
func decodeAsk(line []byte) (ask, error) {
	var a ask
	if err := strict(line, &a); err != nil {
		return ask{}, err
	}
	named := a.Link != "" && len(a.Link) <= maxName
	switch a.Do {
	case askAdd:
		if a.A == nil || a.B == nil || a.AB == nil || a.BA == nil {
			return ask{}, errors.New("add: a, b, ab and ba are needed")
		}
		for _, name := range []string{a.A.Namespace, a.A.Name, a.B.Namespace, a.B.Name} {
			if name == "" || len(name) > maxName {
				return ask{}, fmt.Errorf("add: namespaces and devices have names of 1 to %d bytes", maxName)
			}
		}
	case askRemove, askSet, askDown, askSeed, askPaths:
		if a.A != nil || a.B != nil {
			return ask{}, fmt.Errorf("%s: it has no a and b", a.Do)
		}
	case askStats, askQuit:
		if a != (ask{Do: a.Do}) {
			return ask{}, fmt.Errorf("%s: it has no fields", a.Do)
		}
		named = true
	default:
		return ask{}, fmt.Errorf("do %.40q: must be add, remove, set, down, seed, paths, stats or quit", a.Do)
	}
	if !named {
		return ask{}, fmt.Errorf("%s: the link's name must have 1 to %d bytes", a.Do, maxName)
	}
	for _, p := range []*wan.Path{a.AB, a.BA} {
		if p != nil {
			if err := p.Validate(); err != nil {
				return ask{}, fmt.Errorf("%s: %w", a.Do, err)
			}
		}
	}
	return a, nil
}

// strict decodes one JSON object with no fields but ours and nothing behind it.
func strict(line []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("decode: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("decode: something follows the object")
	}
	return nil
}
