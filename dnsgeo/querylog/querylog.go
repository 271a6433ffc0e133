// Package querylog writes down queries and their answers, a line each: in the fields in which Route 53 writes them to CloudWatch, or as
// JSON with more of them. It decides not which queries are worth a line, and holds up nobody (cluster/lines).
package querylog

import (
	"io"
	"log/slog"

	"github.com/perigee-net/perigee/cluster/lines"
)

// Stdout is the path of the standard output, which is not rotated.
const Stdout = lines.Stdout

// Config is what a Log is given.
type Config struct {
	// Path is a file, to which is appended, or Stdout.
	Path string
	// JSON writes objects; otherwise lines are as Route 53's.
	JSON bool
	// Log is for what goes wrong; nil discards.
	Log *slog.Logger
	// Out is where Stdout leads; nil: the process's.
	Out io.Writer
}

// Log writes lines. It is safe for use by many.
type Log struct {
	*lines.Log
	json bool
}

// Open opens the file and begins.
func Open(c Config) (*Log, error) {
	l, err := lines.Open(lines.Config{Path: c.Path, What: "query log", Log: c.Log, Out: c.Out})
	if err != nil {
		return nil, err
	}
	return &Log{l, c.JSON}, nil
}

// JSON says which form the lines have.
func (l *Log) JSON() bool { return l.json }

// Counters are the numbers since the start, by name; of a nil log all are 0.
func (l *Log) Counters() map[string]uint64 {
	var c lines.Counts
	if l != nil {
		c = l.Log.Counts()
	}
	return map[string]uint64{
		"dns_log_lines_total":     c.Written,
		"dns_log_dropped_total":   c.Dropped,
		"dns_log_lost_total":      c.Lost,
		"dns_log_rotations_total": c.Rotated,
	}
}
