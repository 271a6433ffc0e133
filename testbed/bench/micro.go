//go:build linux

package bench

import (
	"cmp"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Micro is one Go benchmark, over its runs.
type Micro struct {
	Package string            `json:"package"`
	Name    string            `json:"name"`
	Values  map[string]Figure `json:"values"` // by unit: ns/op, B/op, allocs/op, MB/s and those that a benchmark reports
}

// maxMicros bounds how many benchmarks are read.
const maxMicros = 10000

// behindName is what the testing package puts behind a benchmark's name.
var behindName = regexp.MustCompile(`-\d+$`)

// parseMicro reads what go test -bench prints: lines of a name, how often it ran, and pairs of a value and its unit. What is no such line is
// passed over.
func parseMicro(text string) []Micro {
	type key struct{ pkg, name string }
	var order []key
	samples := map[key]map[string][]float64{}
	pkg := ""
	for line := range strings.Lines(text) {
		if p, ok := strings.CutPrefix(line, "pkg: "); ok {
			pkg = strings.TrimSpace(p)
			continue
		}
		fields := strings.Fields(line)
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		if _, err := strconv.ParseInt(fields[1], 10, 64); err != nil {
			continue
		}
		k := key{pkg, behindName.ReplaceAllString(strings.TrimPrefix(fields[0], "Benchmark"), "")}
		if samples[k] == nil {
			if len(order) == maxMicros {
				break
			}
			order = append(order, k)
			samples[k] = map[string][]float64{}
		}
		for i := 2; i+1 < len(fields); i += 2 {
			if v, err := strconv.ParseFloat(fields[i], 64); err == nil {
				samples[k][fields[i+1]] = append(samples[k][fields[i+1]], v)
			}
		}
	}
	slices.SortStableFunc(order, func(a, b key) int { return cmp.Compare(a.pkg, b.pkg) })
	var micros []Micro
	for _, k := range order {
		m := Micro{Package: k.pkg, Name: k.name, Values: map[string]Figure{}}
		for unit, s := range samples[k] {
			m.Values[unit] = figureOf(s)
		}
		micros = append(micros, m)
	}
	return micros
}
