package cache

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/perigee-net/perigee/cluster/wire"
)

// What stands with a body on disk, and under the URI of a crossroads without one. It begins with a version, what it is, and the
// number of the body (8 bytes, little endian; a crossroads has its generation there); then come numbers as varints, and texts
// with their length before them. The head of an object in slices ends with their size, version and validator. One of another version is nobody's: it is a miss, and deleted.
const (
	metaVersion = 3

	metaObject     = 1
	metaCrossroads = 2

	metaFixed = 10
	// maxVary is how many fields a response on disk may vary by. There are no more than the policy sends to the origin.
	maxVary = 256
)

var errMeta = errors.New("not the meta of what is kept")

// meta is the entry as it stands on disk. It is what was compared with the purges up to seen; nil if it is nothing to keep.
func (e *entry) meta(seen uint64) []byte {
	if x := e.crossroads; x != nil {
		b := binary.LittleEndian.AppendUint64([]byte{metaVersion, metaCrossroads}, x.generation)
		return appendNames(binary.AppendUvarint(b, seen), x.vary)
	}
	o := e.object
	if soft := e.soft.Load(); soft != nil { // if seen tells of a soft purge, it is here: see alive
		o = soft
	}
	if o == nil {
		return nil
	}
	b := make([]byte, 0, metaFixed+len(o.Header)+len(o.more().tags)+128)
	b = binary.LittleEndian.AppendUint64(append(b, metaVersion, metaObject), o.body)
	b = binary.AppendUvarint(b, seen)
	b = binary.AppendUvarint(b, uint64(o.Status))
	b = binary.AppendVarint(b, o.received.UnixNano())
	for _, d := range []time.Duration{o.initialAge, o.ttl, o.more().staleWhileRevalidate, o.more().staleIfError} {
		b = binary.AppendVarint(b, int64(d))
	}
	lag := uint64(o.lag) << 1
	if o.more().soft {
		lag |= softLag
	}
	b = binary.AppendUvarint(b, lag)
	b = wire.Append(b, o.more().tags)
	b = appendNames(b, o.more().vary)
	b = wire.Append(b, string(o.Header))
	if s := o.more().sliced; s != nil {
		b = binary.AppendUvarint(binary.AppendUvarint(b, uint64(s.size)), s.version)
		b = wire.Append(b, s.validator)
	}
	return b
}

// bodyOf is the number of the body that a meta is about.
func bodyOf(meta []byte) uint64 {
	if len(meta) < metaFixed || meta[0] != metaVersion || meta[1] != metaObject {
		return 0
	}
	return binary.LittleEndian.Uint64(meta[2:])
}

// parseMeta reads a meta. The object is without its body.
func parseMeta(meta []byte) (e *entry, seen uint64, err error) {
	if len(meta) < metaFixed || meta[0] != metaVersion {
		return nil, 0, errMeta
	}
	r := wire.Reader{Rest: meta[metaFixed:]}
	number := binary.LittleEndian.Uint64(meta[2:])
	seen = r.Uvarint()
	switch meta[1] {
	case metaCrossroads:
		e = &entry{crossroads: &crossroads{generation: number, vary: names(&r)}}
	case metaObject:
		o := &Object{body: number, Status: int(min(r.Uvarint(), 1<<16))}
		o.received = time.Unix(0, r.Varint())
		var few rare
		for _, d := range []*time.Duration{&o.initialAge, &o.ttl, &few.staleWhileRevalidate, &few.staleIfError} {
			*d = time.Duration(r.Varint())
		}
		lag := r.Uvarint()
		o.lag, few.soft = uint32(min(lag>>1, maxLag)), lag&softLag != 0
		few.tags, few.vary, o.Header = r.Text(), names(&r), Header(r.Text())
		if o.Status < 200 || o.Status > 999 || o.body == 0 || !o.Header.wellFormed() {
			return nil, 0, errMeta
		}
		if !r.Failed && len(r.Rest) > 0 {
			s := &sliced{size: int64(r.Uvarint()), version: r.Uvarint(), validator: r.Text()}
			if s.size <= 0 || s.size > maxSliced || s.validator == "" {
				return nil, 0, errMeta
			}
			few.sliced = s
		}
		o.amend(func(r *rare) { *r = few })
		e = &entry{object: o}
	default:
		return nil, 0, errMeta
	}
	if r.Failed || len(r.Rest) > 0 || seen == dead {
		return nil, 0, errMeta
	}
	return e, seen, nil
}

// wellFormed says whether a header is what NewHeader makes.
func (h Header) wellFormed() bool {
	for h != "" {
		name, value, rest := h.cut()
		if !isToken(name) || len(h)-len(rest) != len(name)+len(": ")+len(value)+len("\r\n") || lineBreaks.Replace(value) != value {
			return false
		}
		h = rest
	}
	return true
}

// noted is what the disk knows of purges, as its state: what was purged, and to where that was looked for.
type noted struct {
	run   uint64 // which opening of this folder it is: the upper half of all numbers that are given out meanwhile
	since uint64 // what was kept in a run before this one is not to be used
	swept uint64 // all that is on disk was compared with the purges up to here
	epoch uint64 // the node's: up to which it has made all purges
	rules []Rule
}

const stateVersion = 1

// How a rule is written: its kind, and whether it is soft.
var (
	ruleKinds = []string{RuleWhole, RulePath, RulePrefix, RuleTag}
	errState  = errors.New("not the state of a cache")
)

const softRule = 0x80

// softLag is the bit beside an object's lag that says that it was purged softly.
const softLag = 1

func (n *noted) bytes() []byte {
	b := []byte{stateVersion}
	for _, number := range []uint64{n.run, n.since, n.swept, n.epoch, uint64(len(n.rules))} {
		b = binary.AppendUvarint(b, number)
	}
	for _, r := range n.rules {
		b = r.append(b)
	}
	return b
}

func (r Rule) append(b []byte) []byte {
	kind := byte(0)
	for i, k := range ruleKinds {
		if k == r.Kind {
			kind = byte(i)
		}
	}
	if r.Soft {
		kind |= softRule
	}
	b = binary.AppendUvarint(append(b, kind), r.Seq)
	b = binary.AppendVarint(b, r.At.UnixNano())
	return wire.Append(wire.Append(wire.Append(b, r.Distribution), r.Host), r.Text)
}

// parseState reads a state.
func parseState(b []byte) (n noted, err error) {
	if len(b) == 0 || b[0] != stateVersion {
		return n, errState
	}
	r := wire.Reader{Rest: b[1:]}
	n = noted{run: r.Uvarint(), since: r.Uvarint(), swept: r.Uvarint(), epoch: r.Uvarint()}
	for left := r.Uvarint(); left > 0 && !r.Failed; left-- {
		kind := r.Byte()
		if int(kind&^softRule) >= len(ruleKinds) {
			return noted{}, errState
		}
		n.rules = append(n.rules, Rule{
			Kind: ruleKinds[kind&^softRule], Soft: kind&softRule != 0, Seq: r.Uvarint(), At: time.Unix(0, r.Varint()),
			Distribution: r.Text(), Host: r.Text(), Text: r.Text(),
		})
	}
	if r.Failed || len(r.Rest) > 0 || n.run == 0 || n.run >= 1<<32-1 || n.since > n.run {
		return noted{}, errState
	}
	return n, nil
}

func appendNames(b []byte, names []string) []byte {
	b = binary.AppendUvarint(b, uint64(len(names)))
	for _, name := range names {
		b = wire.Append(b, name)
	}
	return b
}

// names reads what appendNames wrote.
func names(r *wire.Reader) []string {
	n := r.Uvarint()
	if n > maxVary {
		r.Fail()
	}
	var all []string
	for ; n > 0 && !r.Failed; n-- {
		all = append(all, r.Text())
	}
	return all
}
