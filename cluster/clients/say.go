package clients

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"time"
)

const (
	// Shards is in how many values a node tells what it saw, so that one network costs a value and not all of it.
	Shards = 64
	// MaxValue is the most bytes of one; what does not fit is not told.
	MaxValue = 4096
	// SayEvery is how often a node says what is new, and SayBytes how much of it at most: 273 B/s. What is left is said next time.
	SayEvery = 30 * time.Second
	SayBytes = 8 << 10
	// maxTold is how many networks a node tells others of, the hottest; and of all nodes together maxShared are told.
	maxTold   = 16_384
	maxShared = 1 << 19

	// unit is in what round trips are told: one is told anew where it is others by more than a millisecond and a tenth.
	unit     = 100 * time.Microsecond
	maxUnits = uint64(maxRoundTrip / unit)
	// maxLog2 is of the samples, which are told as a power of two.
	maxLog2 = 15

	sayVersion = 1
)

// shard is one value, as it was said last.
type shard struct{ said []byte }

// Value is one of the values that tell what a node saw, by its shard. No bytes: nothing is to be told in it any more.
type Value struct {
	Shard int
	Bytes []byte
}

// MostTold is how many networks each of so many nodes tells of.
func MostTold(nodes int) int { return max(1, min(maxTold, maxShared/max(nodes, 1))) }

// Say returns the values that are other than they were said last, as many as come to SayBytes. It takes them to be said.
func (s *Seen) Say(now time.Time, most int) (values []Value) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.seconds(now)
	s.sweep(at)
	of := s.byShard(at, most)
	size := 0
	for i := range Shards {
		k := (s.cursor + i) % Shards
		b := s.encode(of[k], at)
		if bytes.Equal(b, s.shards[k].said) {
			continue
		}
		if size += len(b); size > SayBytes {
			s.cursor = k
			s.unsaid.Add(1)
			return values
		}
		s.shards[k].said = b
		s.told.Add(uint64(len(b)))
		values = append(values, Value{k, b})
	}
	return values
}

// byShard are the hottest networks, by shard and network.
func (s *Seen) byShard(at int32, most int) (of [Shards][]*row) {
	rows := make([]*row, len(s.rows))
	for i := range s.rows {
		rows[i] = &s.rows[i]
	}
	if len(rows) > most {
		// Those that are told already count for twice as much, so that they do not take turns with others as hot.
		heat := func(r *row) float32 {
			if r.toldRTT > 0 {
				return 2 * r.counts(at)
			}
			return r.counts(at)
		}
		slices.SortFunc(rows, func(a, b *row) int {
			return cmp.Or(cmp.Compare(heat(b), heat(a)), cmp.Compare(a.network, b.network))
		})
		for _, r := range rows[most:] {
			r.toldRTT = 0
		}
		rows = rows[:most]
	}
	slices.SortFunc(rows, func(a, b *row) int { return cmp.Compare(a.network, b.network) })
	for _, r := range rows {
		k := shardOf(r.network)
		of[k] = append(of[k], r)
	}
	return of
}

// shardOf spreads networks (Fibonacci hashing).
func shardOf(n Network) int { return int(uint64(n) * 0x9e3779b97f4a7c15 >> 58) }

// encode writes the rows of a shard: of each how much its number is above the one before, and round trip and samples as one number.
func (s *Seen) encode(rows []*row, at int32) []byte {
	if len(rows) == 0 {
		return nil
	}
	b, before := []byte{sayVersion}, uint64(0)
	for _, r := range rows {
		r.settleTold(at)
		n := r.network.number()
		size := len(b)
		b = binary.AppendUvarint(b, n-before)
		b = binary.AppendUvarint(b, uint64(r.toldRTT)<<4|uint64(r.toldLog2))
		if len(b) > MaxValue {
			return b[:size]
		}
		before = n
	}
	return b
}

// settleTold sets what is told of it, unless that is near enough to what was.
func (r *row) settleTold(at int32) {
	now := max(1, uint32(r.rtt/float32(unit/time.Microsecond)+0.5))
	log2 := uint8(min(maxLog2, bits.Len32(uint32(r.counts(at)+0.5))))
	apart := max(now, r.toldRTT) - min(now, r.toldRTT)
	if r.toldRTT == 0 || apart > 10 && apart > r.toldRTT/10 || max(log2, r.toldLog2)-min(log2, r.toldLog2) > 1 {
		r.toldRTT, r.toldLog2 = now, log2
	}
}

var errMalformed = errors.New("not as it is encoded")

// Decode reads a value, and nothing else than what Say returns.
func Decode(b []byte) ([]Row, error) {
	if len(b) < 2 || len(b) > MaxValue || b[0] != sayVersion {
		return nil, fmt.Errorf("decode clients: %d bytes of no known version", len(b))
	}
	var rows []Row
	before := uint64(0)
	for b = b[1:]; len(b) > 0; {
		more, rest, ok := uvarint(b)
		if !ok || more == 0 || more > maxNumber-before {
			return nil, fmt.Errorf("decode clients: %w", errMalformed)
		}
		what, rest, ok := uvarint(rest)
		if !ok || what>>4 == 0 || what>>4 > maxUnits {
			return nil, fmt.Errorf("decode clients: %w", errMalformed)
		}
		before += more
		if before>>Bits6 != 0 && before&(1<<Bits6-1)>>Bits4 != 0 {
			return nil, fmt.Errorf("decode clients: %w", errMalformed)
		}
		rows = append(rows, Row{networkOf(before), time.Duration(what>>4) * unit, 1 << (what & 15) >> 1})
		b = rest
	}
	return rows, nil
}

// uvarint reads a number that is written as short as it can be.
func uvarint(b []byte) (n uint64, rest []byte, ok bool) {
	n, size := binary.Uvarint(b)
	if size <= 0 || size > 1 && b[size-1] == 0 {
		return 0, nil, false
	}
	return n, b[size:], true
}
