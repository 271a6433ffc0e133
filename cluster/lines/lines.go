// Package lines writes lines through a queue with a bound to a file that is rotated by its size, or to the standard output. It knows not what
// is in them, and holds up nobody: what finds the queue full is dropped and counted, and a disk that fails costs lines, nothing else.
package lines

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// QueueBytes is how many bytes of lines wait to be written; a line that finds no room is dropped. There are two such queues: one is
	// filled while the other is written.
	QueueBytes = 1 << 20
	// FileBytes is the size from which on a file is put aside, and Files how many of those are kept: PATH.1 is the newest.
	FileBytes = 100 << 20
	Files     = 5
	// Pause is how long lines wait, so that many are written at once.
	Pause = 200 * time.Millisecond
)

// Stdout is the path of the standard output, which is not rotated.
const Stdout = "-"

// Config is what a Log is given.
type Config struct {
	// Path is a file, to which is appended, or Stdout.
	Path string
	// What is written, in words: "query log".
	What string
	// Log is for what goes wrong; nil discards.
	Log *slog.Logger

	// Out is where Stdout leads; nil: the process's.
	Out io.Writer
	// Bytes is the size of a file; 0: FileBytes.
	Bytes int64
}

// Log writes lines. It is safe for use by many.
type Log struct {
	config Config
	out    io.Writer // the file, or Stdout; the writer's own
	file   *os.File  // nil: Stdout, or not open now
	size   int64     // of the file
	failed bool      // the last write

	mu     sync.Mutex // held as long as a line is copied, never while one is written
	queue  []byte
	lines  uint64 // in the queue
	closed bool
	wake   chan struct{} // holds one when the queue is not empty any more
	half   chan struct{} // holds one when it is half full
	end    chan struct{} // closed by Close
	done   chan struct{}

	written, dropped, lost, rotated atomic.Uint64
}

// Open opens the file and begins.
func Open(c Config) (*Log, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Bytes == 0 {
		c.Bytes = FileBytes
	}
	l := &Log{
		config: c, queue: make([]byte, 0, QueueBytes),
		wake: make(chan struct{}, 1), half: make(chan struct{}, 1), end: make(chan struct{}), done: make(chan struct{}),
	}
	if c.Path == Stdout {
		if l.out = c.Out; l.out == nil {
			l.out = os.Stdout
		}
	} else if err := l.open(); err != nil {
		return nil, err
	}
	go l.write()
	return l, nil
}

// Add takes a line, with its newline, to be written soon; or drops it. It takes no memory.
func (l *Log) Add(line []byte) {
	l.mu.Lock()
	before := len(l.queue)
	after := before + len(line)
	if l.closed || after > cap(l.queue) {
		l.mu.Unlock()
		l.dropped.Add(1)
		return
	}
	l.queue = append(l.queue, line...)
	l.lines++
	l.mu.Unlock()
	if before == 0 {
		rouse(l.wake)
	}
	if before <= QueueBytes/2 && after > QueueBytes/2 {
		rouse(l.half)
	}
}

func rouse(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Close writes what waits, and closes the file. Lines that come later are dropped.
func (l *Log) Close() error {
	l.mu.Lock()
	again := l.closed
	l.closed = true
	l.mu.Unlock()
	if !again {
		close(l.end)
	}
	<-l.done
	return nil
}

// write writes queues until the log is closed.
func (l *Log) write() {
	defer close(l.done)
	other := make([]byte, 0, QueueBytes)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for open := true; open; {
		select {
		case <-l.wake:
			timer.Reset(Pause)
			select {
			case <-timer.C:
			case <-l.half:
			case <-l.end:
				open = false
			}
		case <-l.end:
			open = false
		}
		l.mu.Lock()
		l.queue, other = other[:0], l.queue
		lines := l.lines
		l.lines = 0
		l.mu.Unlock()
		if len(other) > 0 {
			l.put(other, lines)
		}
	}
	if l.file != nil {
		l.told(l.file.Close())
	}
}

// put writes lines, into another file if this one is full.
func (l *Log) put(lines []byte, n uint64) {
	if l.config.Path != Stdout {
		if err := l.ready(int64(len(lines))); err != nil {
			l.lost.Add(n)
			l.told(err)
			return
		}
	}
	wrote, err := l.out.Write(lines)
	l.size += int64(wrote)
	if err != nil {
		l.lost.Add(n)
		l.told(err)
		if l.file != nil { // a line may have been cut
			l.file.Close()
			l.file = nil
		}
		return
	}
	l.written.Add(n)
	l.failed = false
}

// told logs an error, but not again and again.
func (l *Log) told(err error) {
	if err != nil && !l.failed {
		l.failed = true
		l.config.Log.Error("write "+l.config.What+": lines are lost until it can be written again", "path", l.config.Path, "error", err)
	}
}

// ready sees to it that a file is open that has room, or is new.
func (l *Log) ready(more int64) error {
	if l.file != nil && l.size > 0 && l.size+more > l.config.Bytes {
		if err := l.file.Close(); err != nil {
			l.told(err)
		}
		l.file = nil
		if err := l.rotate(); err != nil {
			return err
		}
	}
	if l.file == nil {
		return l.open()
	}
	return nil
}

// rotate puts the file aside, and the oldest away.
func (l *Log) rotate() error {
	for i := Files; i > 0; i-- {
		from := l.config.Path
		if i > 1 {
			from += "." + strconv.Itoa(i-1)
		}
		if err := os.Rename(from, l.config.Path+"."+strconv.Itoa(i)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("rotate %s: %w", l.config.What, err)
		}
	}
	l.rotated.Add(1)
	return nil
}

func (l *Log) open() error {
	// Who asked for what, or came, is nobody's business but the operator's.
	file, err := os.OpenFile(l.config.Path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("open %s: %w", l.config.What, err)
	}
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return fmt.Errorf("open %s: %w", l.config.What, err)
	}
	if l.size = info.Size(); l.size > 0 && info.Mode().IsRegular() {
		// What a crash cut off ends there.
		if !endsALine(l.config.Path, l.size) {
			n, err := file.Write([]byte{'\n'})
			l.size += int64(n)
			l.told(err)
		}
	}
	l.file, l.out = file, file
	return nil
}

func endsALine(path string, size int64) bool {
	file, err := os.Open(path)
	if err != nil {
		return true
	}
	defer file.Close()
	var last [1]byte
	_, err = file.ReadAt(last[:], size-1)
	return err != nil || last[0] == '\n'
}

// Counts are the numbers since the start.
type Counts struct {
	Written uint64 // lines
	Dropped uint64 // lines that found the queue full
	Lost    uint64 // lines that could not be written
	Rotated uint64 // files that were put aside
}

// Counts are those of now; of a nil log all are 0.
func (l *Log) Counts() Counts {
	if l == nil {
		return Counts{}
	}
	return Counts{l.written.Load(), l.dropped.Load(), l.lost.Load(), l.rotated.Load()}
}
