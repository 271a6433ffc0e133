package wan

import (
	_ "embed"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
)

// Matrix is measured round trips between regions. Its text, in files and in JSON, is comma-separated:
//
//	# source: who measured
//	# date: when
//	,us-east-1,us-east-2,us-west-1
//	us-east-1,,15.07,64.16
//	us-east-2,,,53.22
//
// in milliseconds. What is empty was not measured; of a pair that has both directions the mean counts.
type Matrix struct {
	Source, Date string
	Regions      []Place                     // in the text's order; those that are not AWS's have but a name
	RTT          map[[2]string]time.Duration // by two regions' names, the lesser first
}

//go:embed aws.csv
var awsText string

// AWS is the matrix of 20 of AWS's regions, of one direction of each pair. The figures include name lookups and the ends' own time, 2–5 ms.
func AWS() *Matrix {
	m, err := decodeMatrix("aws.csv", awsText)
	if err != nil {
		panic(err) // the file is embedded above
	}
	return m
}

// Between is the round trip of two regions, in either order.
func (m *Matrix) Between(a, b string) (time.Duration, bool) {
	d, ok := m.RTT[pair(a, b)]
	return d, ok
}

func pair(a, b string) [2]string { return [2]string{min(a, b), max(a, b)} }

// Bounds of a matrix.
const (
	maxRegions = 100
	maxRTT     = 2 * MaxDelay
)

// decodeMatrix reads a matrix. The error is spec.Faults.
func decodeMatrix(file, text string) (*Matrix, error) {
	m := &Matrix{RTT: map[[2]string]time.Duration{}}
	f := faults{file: file}
	var header []string
	for i, line := range strings.Split(strings.TrimRight(text, "\r\n"), "\n") {
		line = strings.TrimRight(line, "\r")
		f.line = i + 1
		if comment, ok := strings.CutPrefix(line, "#"); ok {
			name, value, _ := strings.Cut(strings.TrimSpace(comment), ":")
			switch name {
			case "source":
				m.Source = strings.TrimSpace(value)
			case "date":
				m.Date = strings.TrimSpace(value)
			}
			continue
		}
		if strings.TrimSpace(line) == "" {
			continue
		}
		cells := strings.Split(line, ",")
		for j := range cells {
			cells[j] = strings.TrimSpace(cells[j])
		}
		if header == nil {
			if header = cells[1:]; !m.header(header, &f) {
				break
			}
			continue
		}
		m.row(header, cells, &f)
	}
	if header == nil {
		f.line = 0
		f.add("", "is no matrix: it has no line of regions")
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *Matrix) header(names []string, f *faults) (ok bool) {
	if len(names) < 2 || len(names) > maxRegions {
		f.add("", "must have 2–%d regions, not %d", maxRegions, len(names))
		return false
	}
	ok = true
	for i, name := range names {
		problem := labelProblem(name, maxName)
		if problem == "" && slices.Contains(names[:i], name) {
			problem = "is here twice"
		}
		if problem != "" {
			f.add("", "region %.40q %s", name, problem)
			ok = false
			continue
		}
		p, _ := regionPlace(name)
		p.Name = name
		m.Regions = append(m.Regions, p)
	}
	return ok
}

func (m *Matrix) row(header, cells []string, f *faults) {
	from := cells[0]
	if !slices.Contains(header, from) {
		f.add("", "region %.40q is not among those of the first line", from)
		return
	}
	if len(cells)-1 > len(header) {
		f.add("", "has %d figures for %d regions", len(cells)-1, len(header))
		return
	}
	for i, cell := range cells[1:] {
		if cell == "" || header[i] == from {
			continue
		}
		ms, err := strconv.ParseFloat(cell, 64)
		if err != nil || !(ms > 0 && ms <= float64(maxRTT/time.Millisecond)) {
			f.add("", "%s to %s must be a number of milliseconds above 0, at most %d, not %.40q", from, header[i], maxRTT/time.Millisecond, cell)
			continue
		}
		d := time.Duration(math.Round(ms * float64(time.Millisecond)))
		if other, ok := m.Between(from, header[i]); ok {
			d = (d + other) / 2
		}
		m.RTT[pair(from, header[i])] = d
	}
}

// MarshalText writes the matrix as decodeMatrix reads it.
func (m *Matrix) MarshalText() ([]byte, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "# source: %s\n# date: %s\n", m.Source, m.Date)
	for _, r := range m.Regions {
		b.WriteString("," + r.Name)
	}
	b.WriteString("\n")
	for i, from := range m.Regions {
		b.WriteString(from.Name + strings.Repeat(",", i+1))
		for _, to := range m.Regions[i+1:] {
			b.WriteString(",")
			if d, ok := m.Between(from.Name, to.Name); ok {
				b.WriteString(strconv.FormatFloat(float64(d)/float64(time.Millisecond), 'f', -1, 64))
			}
		}
		b.WriteString("\n")
	}
	return []byte(b.String()), nil
}

// UnmarshalText reads the matrix's text.
func (m *Matrix) UnmarshalText(text []byte) error {
	read, err := decodeMatrix("matrix", string(text))
	if err != nil {
		return err
	}
	*m = *read
	return nil
}

// regionPlace is where one of AWS's regions is.
func regionPlace(name string) (Place, bool) {
	docs, err := spec.Split("region", []byte("kind: Region\nname: \""+name+"\"\n"))
	if err != nil {
		return Place{}, false
	}
	s, err := spec.Build(1, docs, spec.Options{})
	if err != nil || s.Regions[name] == nil || s.Regions[name].Location == nil {
		return Place{}, false
	}
	r := s.Regions[name]
	return Place{Name: name, City: r.City, Country: r.Country, Continent: continent(r.Country, *r.Location), At: *r.Location}, true
}
