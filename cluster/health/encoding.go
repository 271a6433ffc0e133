package health

import (
	"encoding/binary"
	"errors"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/perigee-net/perigee/cluster/wire"
)

const (
	// The first byte of an encoded verdict is its version. Version 1 has no last failure. A verdict of another version is
	// refused: nodes of different releases then go by those verdicts that they understand.
	encodingVersion      = 2
	encodingVersionPlain = 1

	// Flags of version 2; version 1 has the first alone.
	flagHealthy = 1 << 0
	flagFailed  = 1 << 1 // there is a last failure
	flagSame    = 1 << 2 // and its words are the reason's
	allFlags    = flagHealthy | flagFailed | flagSame

	// maxReason is how much of a reason travels, in bytes; what is longer is cut.
	maxReason = 200

	// A moment outside the years 1 to 9999, in ms of Unix time, can't be written as JSON: it is refused.
	earliest = -62135596800_000
	latest   = 253402300799_999
)

var errMalformed = errors.New("decode verdict: malformed")

// EncodeVerdict is the verdict as it travels, at most 434 bytes: times to the millisecond, the reasons cut at 200 bytes.
func EncodeVerdict(v Verdict) []byte {
	reason, failure := cut(v.Reason), cut(v.LastFailure)
	flags := byte(0)
	if v.Healthy {
		flags |= flagHealthy
	}
	if failure != "" || !v.LastFailureAt.IsZero() {
		flags |= flagFailed
		if failure == reason {
			flags |= flagSame
		}
	}
	b := make([]byte, 0, 34+len(reason)+len(failure))
	b = append(b, encodingVersion, flags)
	b = binary.AppendVarint(b, v.Since.UnixMilli())
	b = binary.AppendUvarint(b, uint64(max(v.Stands, 0).Milliseconds()))
	b = append(b, byte(len(reason)))
	b = append(b, reason...)
	if flags&flagFailed != 0 {
		b = binary.AppendVarint(b, v.LastFailureAt.UnixMilli())
		if flags&flagSame == 0 {
			b = append(b, byte(len(failure)))
			b = append(b, failure...)
		}
	}
	return b
}

// DecodeVerdict reads what EncodeVerdict wrote, in this release or one that knew no last failure, and nothing else.
func DecodeVerdict(b []byte) (Verdict, error) {
	if len(b) < 2 {
		return Verdict{}, errMalformed
	}
	version, flags := b[0], b[1]
	switch {
	case version == encodingVersion && flags&^allFlags == 0 && flags&(flagFailed|flagSame) != flagSame:
	case version == encodingVersionPlain && flags&^flagHealthy == 0:
	default:
		return Verdict{}, errMalformed
	}
	d := decoder{wire.Reader{Rest: b[2:]}}
	v := Verdict{
		Healthy: flags&flagHealthy != 0,
		Since:   d.time(),
		Stands:  d.duration(),
		Reason:  d.text(),
	}
	if flags&flagFailed != 0 {
		v.LastFailureAt = d.time()
		v.LastFailure = v.Reason
		if flags&flagSame == 0 {
			v.LastFailure = d.text()
		}
	}
	if d.Failed || len(d.Rest) > 0 {
		return Verdict{}, errMalformed
	}
	return v, nil
}

// decoder reads the parts of a verdict, within their bounds.
type decoder struct{ wire.Reader }

func (d *decoder) time() time.Time {
	ms := d.Varint()
	if ms < earliest || ms > latest {
		d.Fail()
	}
	if d.Failed {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

func (d *decoder) duration() time.Duration {
	ms := d.Uvarint()
	if ms > math.MaxInt64/uint64(time.Millisecond) {
		d.Fail()
		return 0
	}
	return time.Duration(ms) * time.Millisecond
}

// text has one byte before it that says how long it is.
func (d *decoder) text() string {
	n := int(d.Byte())
	if n > maxReason || n > len(d.Rest) || !utf8.Valid(d.Rest[:n]) {
		d.Fail()
		return ""
	}
	text := string(d.Rest[:n])
	d.Rest = d.Rest[n:]
	return text
}

// cut makes the reason valid UTF-8 of at most maxReason bytes, and cuts no character in two.
func cut(reason string) string {
	reason = strings.ToValidUTF8(reason, "\uFFFD")
	if len(reason) <= maxReason {
		return reason
	}
	end := maxReason
	for !utf8.RuneStart(reason[end]) {
		end--
	}
	return reason[:end]
}
