package distance

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"
)

const (
	// MaxMeasured is the most that EncodeMeasured gives, in bytes: what a value of a report may have.
	MaxMeasured = 4096
	// maxName is the longest name of a node, in bytes.
	maxName = 64
	// unit is in what round trips are told. One of less than a unit is told as one.
	unit = 100 * time.Microsecond
	// maxUnits is the longest that is told: 10 s.
	maxUnits = 100_000

	measuredVersion = 1
)

var errMeasured = errors.New("not as it is encoded")

// EncodeMeasured encodes round trips for a report, in units of 0.1 ms, at most MaxMeasured bytes. Names share what they begin
// with, so that some 300 to 500 names fit. If those that are given do not, they are put in order of their round trips and
// the nearest of each two are kept, or of each three, and so on: then some are left at every distance, and fewest are lost
// where many are equally far, as those of one region are. Names and round trips out of bounds are left out.
func EncodeMeasured(measured map[string]time.Duration) []byte {
	names := slices.SortedFunc(maps.Keys(measured), func(a, b string) int {
		return cmp.Or(cmp.Compare(measured[a], measured[b]), cmp.Compare(a, b))
	})
	names = slices.DeleteFunc(names, func(name string) bool {
		return name == "" || len(name) > maxName || measured[name] <= 0 || units(measured[name]) > maxUnits
	})
	for each := 1; ; each++ {
		var kept []string
		for i := 0; i < len(names); i += each {
			kept = append(kept, names[i])
		}
		if b := encodeMeasured(kept, measured); len(b) <= MaxMeasured {
			return b
		}
	}
}

// encodeMeasured writes each name as how many bytes it shares with the one before, how many follow, and those.
func encodeMeasured(names []string, measured map[string]time.Duration) []byte {
	slices.Sort(names)
	b := []byte{measuredVersion}
	before := ""
	for _, name := range names {
		same := shared(before, name)
		b = append(b, byte(same), byte(len(name)-same))
		b = append(b, name[same:]...)
		b = binary.AppendUvarint(b, units(measured[name]))
		before = name
	}
	return b
}

func units(d time.Duration) uint64 { return max(1, uint64(math.Round(float64(d)/float64(unit)))) }

// shared is how many bytes two names begin with in common.
func shared(a, b string) int {
	n := 0
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}

// DecodeMeasured reads what EncodeMeasured wrote, and nothing else.
func DecodeMeasured(b []byte) (map[string]time.Duration, error) {
	if len(b) == 0 || len(b) > MaxMeasured || b[0] != measuredVersion {
		return nil, fmt.Errorf("decode measured: %d bytes of no known version", len(b))
	}
	measured := map[string]time.Duration{}
	before := ""
	for b = b[1:]; len(b) > 0; {
		if len(b) < 2 || int(b[0]) > len(before) || len(b) < 2+int(b[1]) {
			return nil, fmt.Errorf("decode measured: %w", errMeasured)
		}
		same, rest := int(b[0]), 2+int(b[1])
		name := before[:same] + string(b[2:rest])
		n, size := binary.Uvarint(b[rest:])
		switch {
		case len(name) > maxName, name <= before, same != shared(before, name): // the empty name is never after another
			return nil, fmt.Errorf("decode measured: %w", errMeasured)
		case size <= 0, n == 0, n > maxUnits, size > 1 && b[rest+size-1] == 0: // a number with a useless end
			return nil, fmt.Errorf("decode measured: %w", errMeasured)
		}
		measured[name] = time.Duration(n) * unit
		before, b = name, b[rest+size:]
	}
	return measured, nil
}
