package health

import (
	"encoding/binary"
	"errors"
	"math"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	// encodingVersion is the first byte of an encoded verdict. A verdict of another version is refused:
	// nodes of different releases then go by those verdicts that they understand.
	encodingVersion = 1
	// maxReason is how much of a reason travels, in bytes; what is longer is cut.
	maxReason = 200

	// A moment outside the years 1 to 9999, in ms of Unix time, can't be written as JSON: it is refused.
	earliest = -62135596800_000
	latest   = 253402300799_999
)

var errMalformed = errors.New("decode verdict: malformed")

// EncodeVerdict is the verdict as it travels by gossip, at most 223 bytes: times to the millisecond, the
// reason cut at 200 bytes.
func EncodeVerdict(v Verdict) []byte {
	reason := cut(v.Reason)
	b := make([]byte, 0, 23+len(reason))
	b = append(b, encodingVersion, 0)
	if v.Healthy {
		b[1] = 1
	}
	b = binary.AppendVarint(b, v.Since.UnixMilli())
	b = binary.AppendUvarint(b, uint64(max(v.Stands, 0).Milliseconds()))
	b = append(b, byte(len(reason)))
	return append(b, reason...)
}

// DecodeVerdict reads what EncodeVerdict wrote, and nothing else.
func DecodeVerdict(b []byte) (Verdict, error) {
	if len(b) < 2 || b[0] != encodingVersion || b[1] > 1 {
		return Verdict{}, errMalformed
	}
	healthy := b[1] == 1
	b = b[2:]
	since, n := binary.Varint(b)
	if n <= 0 || since < earliest || since > latest {
		return Verdict{}, errMalformed
	}
	b = b[n:]
	stands, n := binary.Uvarint(b)
	if n <= 0 || stands > math.MaxInt64/uint64(time.Millisecond) {
		return Verdict{}, errMalformed
	}
	b = b[n:]
	if len(b) < 1 || int(b[0]) != len(b)-1 || len(b)-1 > maxReason || !utf8.Valid(b[1:]) {
		return Verdict{}, errMalformed
	}
	return Verdict{
		Healthy: healthy,
		Reason:  string(b[1:]),
		Since:   time.UnixMilli(since).UTC(),
		Stands:  time.Duration(stands) * time.Millisecond,
	}, nil
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
