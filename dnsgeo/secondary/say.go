package secondary

import (
	"encoding/binary"
	"errors"
	"time"
	"unicode/utf8"
)

// Saying is what a node tells the others of its copy of a zone.
type Saying struct {
	Has    bool
	Serial uint32
	// Confirmed is when a primary was last known to have nothing newer, to the second.
	Confirmed time.Time
	// Notified counts up with each NOTIFY that was told to this node.
	Notified uint32
	// Problem is why no primary confirmed it when it was asked last; "" if one did. It is cut to maxProblem bytes.
	Problem string
}

// maxProblem is how much of a problem is told.
const maxProblem = 200

const saidSize = 1 + 4 + 8 + 4

// Encode is the saying as bytes.
func (s Saying) Encode() []byte {
	b := []byte{0}
	if s.Has {
		b[0] = 1
	}
	b = binary.BigEndian.AppendUint32(b, s.Serial)
	seconds := int64(0)
	if !s.Confirmed.IsZero() {
		seconds = s.Confirmed.Unix()
	}
	b = binary.BigEndian.AppendUint64(b, uint64(seconds))
	b = binary.BigEndian.AppendUint32(b, s.Notified)
	return append(b, s.Problem[:min(len(s.Problem), maxProblem)]...)
}

// DecodeSaying reads what Encode wrote.
func DecodeSaying(b []byte) (Saying, error) {
	if len(b) < saidSize || len(b) > saidSize+maxProblem || b[0] > 1 {
		return Saying{}, errors.New("no saying about a copy of a zone")
	}
	s := Saying{Has: b[0] == 1, Serial: binary.BigEndian.Uint32(b[1:]), Notified: binary.BigEndian.Uint32(b[13:])}
	if seconds := int64(binary.BigEndian.Uint64(b[5:])); seconds > 0 {
		s.Confirmed = time.Unix(seconds, 0)
	}
	for text := b[saidSize:]; len(text) > 0; {
		r, n := utf8.DecodeRune(text)
		if r >= ' ' && r != utf8.RuneError {
			s.Problem += string(r)
		}
		text = text[n:]
	}
	return s, nil
}
