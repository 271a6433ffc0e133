package store

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/perigee-net/perigee/cluster/file"
)

// tape is a System that writes down what it was asked, so that the loss of power after any byte of it can be played.
type tape struct {
	file.System
	ops   []op
	nodes map[string]int   // what a name stands for now; a node is a file whatever it is called
	open  map[*os.File]int // the node of an open file
	next  int
}

type op struct {
	what     string // create, write, truncate, sync, forget, rename, remove, syncdir, begin or end
	node     int
	path, to string
	at       int64 // of a write; the size of a truncate; the number of a Save
	data     []byte
}

func newTape() *tape {
	r := &tape{nodes: map[string]int{}, open: map[*os.File]int{}}
	real := quick()
	note := func(err error, o op) error {
		if err == nil {
			r.ops = append(r.ops, o)
		}
		return err
	}
	r.System = file.System{
		Open: func(path string, flag int) (*os.File, error) {
			f, err := real.Open(path, flag)
			if err != nil {
				return nil, err
			}
			if _, there := r.nodes[path]; !there {
				r.next++
				r.nodes[path] = r.next
				note(nil, op{what: "create", node: r.next, path: path})
			} else if flag&os.O_TRUNC != 0 {
				note(nil, op{what: "truncate", node: r.nodes[path]})
			}
			r.open[f] = r.nodes[path]
			return f, nil
		},
		WriteAt: func(f *os.File, data []byte, at int64) (int, error) {
			n, err := real.WriteAt(f, data, at)
			note(nil, op{what: "write", node: r.open[f], at: at, data: append([]byte{}, data[:n]...)})
			return n, err
		},
		Truncate: func(f *os.File, size int64) error {
			return note(real.Truncate(f, size), op{what: "truncate", node: r.open[f], at: size})
		},
		Sync: func(f *os.File) error { return note(real.Sync(f), op{what: "sync", node: r.open[f]}) },
		Rename: func(from, to string) error {
			r.nodes[to] = r.nodes[from]
			delete(r.nodes, from)
			return note(real.Rename(from, to), op{what: "rename", path: from, to: to})
		},
		Remove: func(path string) error {
			delete(r.nodes, path)
			return note(real.Remove(path), op{what: "remove", path: path})
		},
		SyncDir: func(path string) error { return note(real.SyncDir(path), op{what: "syncdir", path: path}) },
	}
	return r
}

// playedDisk is what a machine has while the tape is played: what its programs see, what is safe, and what was written between.
type playedDisk struct {
	nodes       map[int]*playedFile
	names, safe map[string]int
}

type playedFile struct {
	now, safe []byte
	pending   []op // not synced yet
	forgotten bool // a sync has failed: what was not safe then never will be, whatever later syncs say
}

// do makes an operation; of a write only the first bytes.
func (d *playedDisk) do(o op, bytes int) {
	f := d.nodes[o.node]
	switch o.what {
	case "create":
		d.nodes[o.node] = &playedFile{}
		d.names[o.path] = o.node
	case "write":
		o.data = o.data[:bytes]
		f.now = overwrite(f.now, o)
		f.pending = append(f.pending, o)
	case "truncate":
		f.now = overwrite(f.now, o)
		f.pending = append(f.pending, o)
	case "forget":
		f.forgotten = true
	case "sync":
		if !f.forgotten {
			f.safe, f.pending = f.now, nil
		}
	case "rename":
		d.names[o.to] = d.names[o.path]
		delete(d.names, o.path)
	case "remove":
		delete(d.names, o.path)
	case "syncdir":
		d.safe = maps.Clone(d.names)
	}
}

// overwrite is a copy of data after a write or a truncate.
func overwrite(data []byte, o op) []byte {
	size := int(o.at)
	if o.what == "write" {
		size = max(len(data), int(o.at)+len(o.data))
	}
	next := make([]byte, size)
	copy(next, data)
	if o.what == "write" {
		copy(next[o.at:], o.data)
	}
	return next
}

// loss is a way in which what is not synced may come through: whether the names do, and the content of a file.
type loss struct {
	names   bool
	content func(f *playedFile, r *rand.Rand) []byte
}

func losses() map[string]loss {
	now := func(f *playedFile, _ *rand.Rand) []byte { return f.now }
	safe := func(f *playedFile, _ *rand.Rand) []byte { return f.safe }
	sizes := func(f *playedFile, _ *rand.Rand) []byte {
		return overwrite(f.safe, op{what: "truncate", at: int64(len(f.now))})
	}
	return map[string]loss{
		"all kept": {true, now}, "all lost": {false, safe}, "content lost": {true, safe}, "names lost": {false, now},
		"sizes kept": {true, sizes}, "some kept": {true, someKept},
	}
}

// someKept loses pieces of what was written, as of sectors that did not reach the disk.
func someKept(f *playedFile, r *rand.Rand) []byte {
	const sector = 32 // so that even small frames have some
	data := f.safe
	for _, o := range f.pending {
		if o.what == "truncate" {
			if r.IntN(2) == 0 {
				data = overwrite(data, o)
			}
			continue
		}
		for from := 0; from < len(o.data); from += sector {
			piece := op{what: "write", at: o.at + int64(from), data: o.data[from:min(from+sector, len(o.data))]}
			if r.IntN(2) == 0 { // its place is there, with nothing in it
				piece.data = make([]byte, len(piece.data))
			}
			data = overwrite(data, piece)
		}
	}
	return data
}

// taped saves states on a tape, with writes and syncs that fail, and with restarts between.
func taped(t *testing.T, dir string, states []*State) []op {
	r := newTape()
	trouble := []string{"write", "sync", "rename", "syncdir", "write", "syncdir", "sync"} // one after the other
	fails := ""                                                                           // what is to fail once
	failing := func(what string) bool {
		now := fails == what
		if now {
			fails = ""
		}
		return now
	}
	system := r.System
	system.WriteAt = func(f *os.File, data []byte, at int64) (int, error) {
		if failing("write") {
			n, _ := r.WriteAt(f, data[:2*len(data)/3], at)
			return n, syscall.ENOSPC
		}
		return r.WriteAt(f, data, at)
	}
	system.Sync = func(f *os.File) error {
		if failing("sync") {
			r.ops = append(r.ops, op{what: "forget", node: r.open[f]})
			return syscall.EIO
		}
		return r.Sync(f)
	}
	system.Rename = func(from, to string) error {
		if failing("rename") {
			return syscall.ENOSPC
		}
		return r.Rename(from, to)
	}
	system.SyncDir = func(path string) error {
		if failing("syncdir") {
			return syscall.EIO
		}
		return r.SyncDir(path)
	}
	least := limits{600, 2}
	j, _ := open(t, dir, system, least)
	for i, s := range states {
		if i%5 == 4 {
			continue // the next goes two changes further
		}
		if i%2 == 1 && fails == "" && len(trouble) > 0 {
			fails, trouble = trouble[0], trouble[1:]
		}
		for {
			r.ops = append(r.ops, op{what: "begin", at: int64(i)})
			err := j.Save(s)
			if err == nil {
				break
			}
			if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EIO) {
				t.Fatal(err)
			}
		}
		r.ops = append(r.ops, op{what: "end", at: int64(i)})
		if i%9 == 8 {
			j.Close()
			j, _ = open(t, dir, system, least)
		}
	}
	if fails != "" || len(trouble) > 0 {
		t.Errorf("not all has failed: %s and %s are left", fails, trouble)
	}
	return r.ops
}

// TestNoSaveThatReturnedIsLostWhereverThePowerIsCut cuts the power after every third byte of what a journal writes, or with PERIGEE_LONG after
// each, and opens what may be left: always a state that was to be saved, and never one before the last Save that returned.
func TestNoSaveThatReturnedIsLostWhereverThePowerIsCut(t *testing.T) {
	states := lives(t, 24)
	for i, lines := 0, zone(30); i < 4; i++ { // of a document that is written as an edit
		lines[40+i] = fmt.Sprintf("  values: [203.0.113.%d]\n", i)
		states = append(states, must(t, states[len(states)-1], Change{Time: then, Put: []Object{put("HostedZone", "example.com", strings.Join(lines, ""))}}))
	}
	c := &crashes{t: t, dir: memory(t), states: states, at: map[Position]int{}, seen: map[[sha256.Size]byte]bool{}, begun: -1, ended: -1}
	for i, s := range states {
		c.at[s.Position()] = i
	}
	c.disk = &playedDisk{nodes: map[int]*playedFile{}, names: map[string]int{}, safe: map[string]int{}}
	ops := taped(t, t.TempDir(), states)
	step := 3
	if os.Getenv("PERIGEE_LONG") != "" {
		step = 1
	}
	for i, o := range ops {
		switch o.what {
		case "begin":
			c.begun = int(o.at)
		case "end":
			c.ended = int(o.at)
		}
		for bytes := 1 + i%step; bytes < len(o.data); bytes += step {
			f := c.disk.nodes[o.node]
			before := *f
			c.disk.do(o, bytes)
			c.cut(fmt.Sprintf("operation %d (%s), byte %d", i, o.what, bytes))
			*f = before
		}
		c.disk.do(o, len(o.data))
		c.cut(fmt.Sprintf("operation %d (%s)", i, o.what))
	}
	t.Logf("%d operations, %d crash points, %d different disks", len(ops), c.points, len(c.seen))
	if c.ended < len(states)-2 || c.points < 5000 {
		t.Errorf("the tape is too short: %d points, %d saved", c.points, c.ended)
	}
}

// memory is a folder that costs no disk, where there is one.
func memory(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "perigee-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// crashes cuts the power again and again.
type crashes struct {
	t            *testing.T
	dir          string
	states       []*State
	at           map[Position]int // which state it is
	disk         *playedDisk
	begun, ended int // the last Save that was called, and that returned
	seen         map[[sha256.Size]byte]bool
	points       int
}

// cut opens the journal of a machine that lost its power now, in each way that its disk may be left.
func (c *crashes) cut(when string) {
	c.points++
	for how, loss := range losses() {
		names := c.disk.safe
		if loss.names {
			names = c.disk.names
		}
		if (how == "some kept" || how == "sizes kept") && c.points%4 > 0 {
			continue // there are more ways than can be tried
		}
		left := map[string][]byte{}
		for name, node := range names {
			left[filepath.Base(name)] = loss.content(c.disk.nodes[node], rand.New(rand.NewPCG(uint64(c.points), uint64(node))))
		}
		if !c.known(left) {
			c.open(when+", "+how, left)
		}
	}
}

// known says whether the same was opened before.
func (c *crashes) known(left map[string][]byte) bool {
	h := sha256.New()
	fmt.Fprintln(h, c.begun, c.ended)
	for _, name := range slices.Sorted(maps.Keys(left)) {
		fmt.Fprintln(h, name, len(left[name]))
		h.Write(left[name])
	}
	id := [sha256.Size]byte(h.Sum(nil))
	known := c.seen[id]
	c.seen[id] = true
	return known
}

func (c *crashes) open(when string, left map[string][]byte) {
	for _, name := range []string{journalFile, journalFile + ".new"} {
		path := filepath.Join(c.dir, name)
		data, there := left[name]
		if !there {
			os.Remove(path)
		} else if err := os.WriteFile(path, data, 0o600); err != nil {
			c.t.Fatal(err)
		}
	}
	j, s, err := openJournal(c.dir, quick(), limits{600, 4})
	if err != nil {
		c.t.Fatalf("%s: %v", when, err)
	}
	defer j.Close()
	got := -1
	if s != nil {
		var known bool
		if got, known = c.at[s.Position()]; !known || s.sum != c.states[got].sum || s.Own.sum != c.states[got].Own.sum {
			c.t.Fatalf("%s: the state at %v was never saved", when, s.Position())
		}
	}
	if got < c.ended || got > c.begun {
		c.t.Fatalf("%s: state %d is read, but %d was saved, and at most %d begun", when, got, c.ended, c.begun)
	}
	if len(c.seen)%32 > 0 {
		return
	}
	// It is whole, and goes on from there.
	if s != nil {
		if diff := gocmp.Diff(bare(c.states[got]), bare(s), same); diff != "" {
			c.t.Fatalf("%s:\n%s", when, diff)
		}
	}
	last := c.states[len(c.states)-1]
	if err := j.Save(last); err != nil {
		c.t.Fatalf("%s: %v", when, err)
	}
	again, read, err := openJournal(c.dir, quick(), limits{600, 4})
	if err != nil || read.Position() != last.Position() {
		c.t.Fatalf("%s, and saved again: %v", when, err)
	}
	again.Close()
}
