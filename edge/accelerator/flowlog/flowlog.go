// Package flowlog writes down flows of accelerators, two lines for each minute of a flow, one a direction: in the fields in which Global Accelerator
// writes them to S3, or as JSON with more of them. It decides not which flows are worth a line, and holds up nobody (cluster/lines).
package flowlog

import (
	"io"
	"log/slog"
	"sync/atomic"

	"github.com/perigee-net/perigee/cluster/lines"
)

// Stdout is the path of the standard output, which is not rotated.
const Stdout = lines.Stdout

// Config is what a Log is given.
type Config struct {
	// Path is a file, to which is appended, or Stdout.
	Path string
	// JSON writes objects; otherwise lines are as Global Accelerator's.
	JSON bool
	// Log is for what goes wrong; nil discards.
	Log *slog.Logger
	// Out is where Stdout leads; nil: the process's.
	Out io.Writer
}

// Log writes lines. It is safe for use by many.
type Log struct {
	lines   *lines.Log
	json    bool
	skipped atomic.Uint64 // lines that had been dropped when the last one was made
}

// Open opens the file and begins.
func Open(c Config) (*Log, error) {
	l, err := lines.Open(lines.Config{Path: c.Path, What: "flow log", Log: c.Log, Out: c.Out})
	if err != nil {
		return nil, err
	}
	return &Log{lines: l, json: c.JSON}, nil
}

// Add takes an entry to be written soon; or drops it, which the next one's log status says.
func (l *Log) Add(e *Entry) {
	dropped := l.lines.Counts().Dropped
	e.Skipped = l.skipped.Swap(dropped) != dropped
	var room [512]byte
	if l.json {
		l.lines.Add(e.AppendJSON(room[:0]))
	} else {
		l.lines.Add(e.AppendAWS(room[:0]))
	}
}

// Close writes what waits, and closes the file.
func (l *Log) Close() error { return l.lines.Close() }

// Counters are the numbers since the start, by name; of a nil log all are 0.
func (l *Log) Counters() map[string]uint64 {
	var c lines.Counts
	if l != nil {
		c = l.lines.Counts()
	}
	return map[string]uint64{
		"accelerator_log_lines_total":     c.Written,
		"accelerator_log_dropped_total":   c.Dropped,
		"accelerator_log_lost_total":      c.Lost,
		"accelerator_log_rotations_total": c.Rotated,
	}
}
