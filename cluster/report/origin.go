package report

import (
	"errors"
	"slices"
	"strings"
	"time"
)

const (
	// MaxKey and MaxValue are the most that a key and a value may have, in bytes.
	MaxKey   = 150
	MaxValue = 4096
	// MaxKeys is how many keys a node may hold.
	MaxKeys = 16_384
	// MaxBytes is how much the keys and values of a node may come to.
	MaxBytes = 4 << 20

	// removedFor is how long it is remembered that a key was removed. Who was away for longer is told all that is still said.
	removedFor = 10 * time.Minute
	// few is up to how many records are searched one by one: most nodes say little, and there are many nodes.
	few = 16
)

var (
	errKeys  = errors.New("too many keys")
	errBytes = errors.New("too many bytes in all values")
)

// origin is what one node has said, as far as this node knows it. It knows no network.
//
// What a node says in one life is numbered: seq counts its changes. A node knows everything up to `have` of it, but for what has
// been said anew since, or was removed so long ago that it is forgotten.
type origin struct {
	name  string
	life  uint64 // when it started, in ns of Unix time: what it says supersedes all it said in an earlier life
	have  uint64
	floor uint64 // removals up to here may be forgotten: who has something, but not all up to here, must begin anew

	log     []*record // by seq; some are superseded
	index   map[string]*record
	old     int // records of the log that are superseded
	removed int // and those that are removals
	bytes   int
	shown   map[string][]byte // the values; nil: to be made again

	// Its place among the others; Reports keep it.
	slot      int
	live      bool
	region    string
	goneAt    time.Time // since when it is not live
	forgotten bool
	asked     time.Time // when this node last asked somebody for what it lacks
}

// record is the newest that was said of one key.
type record struct {
	key     string
	seq     uint64
	value   []byte
	removed bool
	old     bool      // there is a newer one
	at      time.Time // of a removal: when it came to this node
}

// statement is all that an origin said in a life after one change and up to another, but for what it says anew later.
type statement struct {
	life, from, to uint64
	floor          uint64
	records        []record // by seq
}

func newOrigin(name string, life uint64) *origin {
	return &origin{name: strings.Clone(name), life: life}
}

// begin forgets all for another life.
func (o *origin) begin(life uint64) {
	o.life, o.have, o.floor = life, 0, 0
	o.clear()
}

func (o *origin) clear() {
	o.log, o.index, o.old, o.removed, o.bytes, o.shown = nil, nil, 0, 0, 0, nil
}

func (o *origin) len() int { return len(o.log) - o.old }

func (o *origin) find(key string) *record {
	if o.index != nil {
		return o.index[key]
	}
	for _, r := range o.log {
		if !r.old && r.key == key {
			return r
		}
	}
	return nil
}

// put takes in what is newer than all before. The key and the value are copied.
func (o *origin) put(r record, now time.Time) error {
	old := o.find(r.key)
	size := o.bytes + len(r.value)
	if old == nil {
		size += len(r.key)
	} else {
		size -= len(old.value)
	}
	if old == nil && o.len() >= MaxKeys {
		o.forgetRemoved(now) // which takes nothing away: all of it is below the new floor
	}
	switch {
	case old == nil && o.len() >= MaxKeys:
		return errKeys
	case size > MaxBytes && !r.removed:
		return errBytes
	}
	n := &record{seq: r.seq, removed: r.removed}
	if old != nil {
		n.key, old.old = old.key, true
		o.old++
		if old.removed {
			o.removed--
		}
	} else {
		n.key = strings.Clone(r.key)
	}
	if r.removed {
		n.at = now
		o.removed++
	} else {
		n.value = append(make([]byte, 0, len(r.value)), r.value...)
	}
	o.bytes, o.shown = size, nil
	o.log = append(o.log, n)
	o.compact()
	if o.index != nil {
		o.index[n.key] = n
	} else if o.len() > few {
		o.index = make(map[string]*record, 2*few)
		for _, r := range o.log {
			if !r.old {
				o.index[r.key] = r
			}
		}
	}
	return nil
}

// compact drops what is superseded once that is most of the log.
func (o *origin) compact() {
	if o.old > len(o.log)/2+few/2 {
		o.log = slices.DeleteFunc(o.log, func(r *record) bool { return r.old })
		o.old = 0
	}
}

// forgetRemoved forgets removals that came before a time.
func (o *origin) forgetRemoved(before time.Time) {
	if o.removed == 0 {
		return
	}
	for _, r := range o.log {
		if r.removed && !r.old && !r.at.After(before) {
			o.floor = max(o.floor, r.seq)
			o.bytes -= len(r.key)
			o.removed--
			delete(o.index, r.key)
			r.old = true
			o.old++
		}
	}
	o.compact()
}

// since is the part of the log after a change; those of it that are old are to be left out.
func (o *origin) since(seq uint64) []*record {
	i, _ := slices.BinarySearchFunc(o.log, seq+1, func(r *record, seq uint64) int {
		if r.seq < seq {
			return -1
		}
		return 1
	})
	return o.log[i:]
}

// What became of a statement.
type outcome int

const (
	known outcome = iota // all of it, or it is of an earlier life
	taken
	lacking // what was said before it is not known: it can't be taken
)

// take takes in a statement. Beyond a bound a record is dropped, and not asked for again.
func (o *origin) take(s statement, now time.Time) (what outcome, dropped int) {
	if s.life < o.life {
		return known, 0
	}
	if s.life > o.life {
		o.begin(s.life)
	}
	if s.floor > o.have && s.floor > o.floor && o.have > 0 {
		// What was removed meanwhile is not said any more. Of what is said from the beginning, this may be the first of many pieces.
		if s.from > 0 {
			return lacking, 0
		}
		o.begin(s.life)
	}
	if s.to <= o.have {
		return known, 0
	}
	if s.from > o.have {
		return lacking, 0
	}
	for _, r := range s.records {
		if r.seq > o.have && o.put(r, now) != nil {
			dropped++
		}
	}
	o.have, o.floor = s.to, max(o.floor, s.floor)
	return taken, dropped
}

// values are the values by key. They are shared until one changes.
func (o *origin) values() map[string][]byte {
	if o.shown == nil {
		o.shown = make(map[string][]byte, o.len()-o.removed)
		for _, r := range o.log {
			if !r.old && !r.removed {
				o.shown[r.key] = r.value
			}
		}
	}
	return o.shown
}
