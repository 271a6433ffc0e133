// Package tsig signs messages of the DNS and checks their signatures (RFC 8945), as bytes: it decides nothing but whether a
// signature is right, knows neither sockets nor zones, and takes the time from its caller.
package tsig

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"hash"
	"time"
)

const (
	// Fudge is how many seconds two clocks may differ (RFC 8945 §10), whatever a message says.
	Fudge = 300

	// Room is how many bytes a signature adds to a message at most: two names, the longest MAC, and the time in other data.
	Room = 255 + 10 + 16 + 16 + sha512.Size + 6

	typeTSIG   = 250
	classANY   = 255
	headerSize = 12
)

// Error is why a signature is refused, by its number in the TSIG record of the response (RFC 8945 §3). Zero refuses nothing.
type Error uint16

// The reasons.
const (
	BadSig   Error = 16 // made by another secret, or of another message
	BadKey   Error = 17 // nobody here has a key of that name and algorithm
	BadTime  Error = 18 // the clocks differ by more than Fudge, or it is an old message
	BadTrunc Error = 22 // the MAC is right as far as it goes, and is not whole

	// Malformed is of a MAC that no key makes: the response to it is FORMERR, without a TSIG record (RFC 8945 §5.2.2.1).
	Malformed Error = 1
)

// Key is a secret that two have in common.
type Key struct {
	name      []byte // in wire form and small letters
	algorithm []byte // the same
	hash      func() hash.Hash
	secret    []byte
	// Name is that of the spec.
	Name string
}

// NewKey makes a key of its name in wire form and small letters, and of an algorithm: hmac-sha256, hmac-sha384 or hmac-sha512.
// Of another one there is none: nil.
func NewKey(name string, wire []byte, algorithm string, secret []byte) *Key {
	hashes := map[string]func() hash.Hash{"hmac-sha256": sha256.New, "hmac-sha384": sha512.New384, "hmac-sha512": sha512.New}
	h := hashes[algorithm]
	if h == nil || len(secret) == 0 {
		return nil
	}
	label := append([]byte{byte(len(algorithm))}, algorithm...)
	return &Key{Name: name, name: bytes.Clone(wire), algorithm: append(label, 0), hash: h, secret: bytes.Clone(secret)}
}

// Signature is the TSIG record that a message ends with.
type Signature struct {
	Name  []byte // of the key, in wire form and small letters
	At    int    // where the record begins in the message
	Error Error

	algorithm []byte
	time      uint64 // seconds, of 48 bits
	fudge     uint16
	mac       []byte
	id        uint16 // that the message had when it was signed
	other     []byte
}

// Find finds the TSIG record of a message; nil: it has none, or one that is not its last record (RFC 8945 §5.1), or is malformed.
func Find(m []byte) (s *Signature) {
	if len(m) < headerSize {
		return nil
	}
	at := headerSize
	for range binary.BigEndian.Uint16(m[4:]) {
		if at = SkipName(m, at, true); at < 0 || len(m) < at+4 {
			return nil
		}
		at += 4
	}
	records := 0
	for i := 6; i < headerSize; i += 2 {
		records += int(binary.BigEndian.Uint16(m[i:]))
	}
	additional := int(binary.BigEndian.Uint16(m[10:]))
	for i := range records {
		begin := at
		if at = SkipName(m, at, true); at < 0 || len(m) < at+10 {
			return nil
		}
		typ, data := binary.BigEndian.Uint16(m[at:]), at+10
		end := data + int(binary.BigEndian.Uint16(m[at+8:]))
		if len(m) < end {
			return nil
		}
		if typ == typeTSIG {
			if i != records-1 || additional == 0 || binary.BigEndian.Uint16(m[at+2:]) != classANY || binary.BigEndian.Uint32(m[at+4:]) != 0 {
				return nil
			}
			if s = read(m[data:end]); s == nil {
				return nil
			}
			if s.Name = plainName(m[begin:at]); s.Name == nil {
				return nil
			}
			s.At = begin
		}
		at = end
	}
	if at != len(m) {
		return nil
	}
	return s
}

// ID tells the signature, with the message that it is of, from all others: its MAC, and whose it is.
func (s *Signature) ID() [sha256.Size]byte {
	return sha256.Sum256(append(bytes.Clone(s.Name), s.mac...))
}

// read reads the data of a TSIG record (RFC 8945 §4.2).
func read(data []byte) *Signature {
	end := SkipName(data, 0, true)
	if end < 0 {
		return nil
	}
	s := &Signature{algorithm: plainName(data[:end])}
	if data = data[end:]; s.algorithm == nil || len(data) < 10 {
		return nil
	}
	s.time = uint64(binary.BigEndian.Uint16(data))<<32 | uint64(binary.BigEndian.Uint32(data[2:]))
	s.fudge = binary.BigEndian.Uint16(data[6:])
	n := int(binary.BigEndian.Uint16(data[8:]))
	if data = data[10:]; len(data) < n+6 {
		return nil
	}
	s.mac, data = data[:n], data[n:]
	s.id, s.Error = binary.BigEndian.Uint16(data), Error(binary.BigEndian.Uint16(data[2:]))
	n = int(binary.BigEndian.Uint16(data[4:]))
	if data = data[6:]; len(data) != n {
		return nil
	}
	s.other = data
	return s
}

// plainName is a name in small letters; nil if a pointer is in it, which names of a TSIG record have not (RFC 8945 §4.2).
func plainName(wire []byte) []byte {
	for at := 0; wire[at] != 0; at += 1 + int(wire[at]) {
		if wire[at]&0xc0 != 0 {
			return nil
		}
	}
	return bytes.ToLower(wire)
}

// SkipName returns where the name ends that begins in a message at an offset, or −1 if there is none. A pointer is not followed; where
// there may be none, it is no name.
func SkipName(m []byte, at int, pointers bool) int {
	for length := 1; at < len(m); {
		n := int(m[at])
		switch {
		case n == 0:
			return at + 1
		case n&0xc0 == 0xc0 && pointers && at+2 <= len(m):
			return at + 2
		case n&0xc0 != 0:
			return -1
		}
		at += 1 + n
		if length += 1 + n; length > 255 {
			return -1
		}
	}
	return -1
}

// MAC is what ties the messages of an exchange together: each is signed with that of the one before. The zero MAC is that of
// which there is none before the first.
type MAC struct {
	bytes []byte
	timed bool   // what follows is signed with the time alone (RFC 8945 §5.3.1)
	more  []byte // messages without a signature, since
}

// With is the MAC after a message that is not signed itself: the next signature is of it, too (RFC 8945 §5.3.1).
func (m MAC) With(unsigned []byte) MAC {
	m.more = append(m.more, unsigned...)
	return m
}

// sum is the MAC of a message without its TSIG record.
func (k *Key) sum(m []byte, before MAC, s *Signature) []byte {
	h := hmac.New(k.hash, k.secret)
	var b []byte
	if before.bytes != nil {
		h.Write(binary.BigEndian.AppendUint16(b, uint16(len(before.bytes))))
		h.Write(before.bytes)
	}
	h.Write(before.more)
	h.Write(m)
	if before.timed {
		h.Write(appendTime(b, s))
		return h.Sum(nil)
	}
	b = append(b, k.name...)
	b = binary.BigEndian.AppendUint16(b, classANY)
	b = append(b, 0, 0, 0, 0) // TTL
	b = append(b, k.algorithm...)
	b = appendTime(b, s)
	b = binary.BigEndian.AppendUint16(b, uint16(s.Error))
	b = binary.BigEndian.AppendUint16(b, uint16(len(s.other)))
	h.Write(append(b, s.other...))
	return h.Sum(nil)
}

func appendTime(b []byte, s *Signature) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(s.time>>32))
	b = binary.BigEndian.AppendUint32(b, uint32(s.time))
	return binary.BigEndian.AppendUint16(b, s.fudge)
}

// Verify says what is wrong with the signature of a message by a key, nil if there is none such; before is the MAC of the message
// that it answers or follows. The MAC, for what follows, is right unless it is the key or the signature that is wrong.
func (k *Key) Verify(m []byte, s *Signature, before MAC, now time.Time) (MAC, Error) {
	if k == nil || !bytes.Equal(k.name, s.Name) || !bytes.Equal(k.algorithm, s.algorithm) {
		return MAC{}, BadKey
	}
	size := k.hash().Size()
	if len(s.mac) > size || len(s.mac) < max(10, size/2) {
		return MAC{}, Malformed
	}
	unsigned := Strip(m, s)
	binary.BigEndian.PutUint16(unsigned, s.id)
	sum := k.sum(unsigned, before, s)
	if !hmac.Equal(sum[:len(s.mac)], s.mac) {
		return MAC{}, BadSig
	}
	mac := MAC{bytes: bytes.Clone(s.mac), timed: before.bytes != nil}
	if apart := now.Unix() - int64(s.time); max(apart, -apart) > int64(min(s.fudge, Fudge)) {
		return mac, BadTime
	}
	if len(s.mac) < size {
		return mac, BadTrunc
	}
	return mac, 0
}

// Strip is the message without its signature. It takes new memory.
func Strip(m []byte, s *Signature) []byte {
	plain := bytes.Clone(m[:s.At])
	binary.BigEndian.PutUint16(plain[10:], binary.BigEndian.Uint16(m[10:])-1)
	return plain
}

// Sign appends the signature of a message to it.
func (k *Key) Sign(m []byte, before MAC, now time.Time) ([]byte, MAC) {
	return k.sign(m, before, &Signature{time: uint64(now.Unix())})
}

func (k *Key) sign(m []byte, before MAC, s *Signature) ([]byte, MAC) {
	s.fudge = Fudge
	s.mac = k.sum(m, before, s)
	return appendRecord(m, k.name, k.algorithm, s), MAC{bytes: s.mac, timed: before.bytes != nil}
}

// Refuse appends to a response the TSIG record that says why the signature of its query is refused: itself signed, by the MAC of the
// query, where the key and the signature are right and the time is not, or the length; else not (RFC 8945 §5.2).
func (k *Key) Refuse(response []byte, query *Signature, before MAC, why Error, now time.Time) []byte {
	s := &Signature{time: query.time, Error: why}
	if why == BadTime {
		server := uint64(now.Unix())
		s.other = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(nil, uint16(server>>32)), uint32(server))
	}
	if why == BadTime || why == BadTrunc {
		response, _ = k.sign(response, before, s)
		return response
	}
	s.fudge = Fudge
	return appendRecord(response, query.Name, query.algorithm, s)
}

// appendRecord appends a TSIG record and counts it.
func appendRecord(m, name, algorithm []byte, s *Signature) []byte {
	id := binary.BigEndian.Uint16(m)
	binary.BigEndian.PutUint16(m[10:], binary.BigEndian.Uint16(m[10:])+1)
	m = append(m, name...)
	m = append(m, 0, typeTSIG, 0, classANY, 0, 0, 0, 0)
	m = binary.BigEndian.AppendUint16(m, uint16(len(algorithm)+16+len(s.mac)+len(s.other)))
	m = append(m, algorithm...)
	m = appendTime(m, s)
	m = binary.BigEndian.AppendUint16(m, uint16(len(s.mac)))
	m = append(m, s.mac...)
	m = binary.BigEndian.AppendUint16(m, id)
	m = binary.BigEndian.AppendUint16(m, uint16(s.Error))
	m = binary.BigEndian.AppendUint16(m, uint16(len(s.other)))
	return append(m, s.other...)
}
