package dnsgeo

import (
	"crypto/subtle"
	"encoding/binary"
	"math/bits"
	"net/netip"
	"time"
)

// A cookie shows that a client receives what is sent to the address it asks from (RFC 7873). The client's half is 8 bytes of its own;
// ours is made from it, the client's address, the time, and a secret that all nodes share, in the form that RFC 9018 gives for
// servers of several makers to take each other's: version 1, three bytes of 0, the time in seconds, and SipHash-2-4 of it all.
const (
	clientCookieSize = 8
	serverCookieSize = 16
	cookieSize       = clientCookieSize + serverCookieSize

	// The bounds of other servers' cookies (RFC 7873 §4).
	minServerCookie, maxServerCookie = 8, 32

	cookieVersion = 1

	// cookieLife is how old a cookie may be, cookieAhead how far the clock of who made it may be before ours, and cookieRenewal from
	// which age on the client is given a new one (RFC 9018 §4.3).
	cookieLife    = time.Hour
	cookieAhead   = 5 * time.Minute
	cookieRenewal = 30 * time.Minute
)

// CookieSecret is what cookies are made with.
type CookieSecret [16]byte

// validCookie says whether the data of a cookie option has one of the lengths it may have (RFC 7873 §4); all else is malformed.
func validCookie(data []byte) bool {
	server := len(data) - clientCookieSize
	return server == 0 || server >= minServerCookie && server <= maxServerCookie
}

// checkCookie says whether the option of a client is one that we, or another node, gave it, and appends to b the one to send: the same,
// or a new one if it is not proven, of a secret that is not the first, or half an hour old. With no secret, nothing is proven and
// nothing sent. The data is as validCookie has it.
func checkCookie(b, data []byte, from netip.Addr, secrets []CookieSecret, now time.Time) (cookie []byte, proven bool) {
	if len(secrets) == 0 {
		return b, false
	}
	if len(data) == cookieSize && data[clientCookieSize] == cookieVersion {
		// The difference is of serial numbers (RFC 1982): it may pass the end of 32 bits.
		age := time.Duration(int32(uint32(now.Unix())-binary.BigEndian.Uint32(data[12:]))) * time.Second
		if age <= cookieLife && age >= -cookieAhead {
			for i := range secrets {
				var want [8]byte
				binary.LittleEndian.PutUint64(want[:], hashCookie(&secrets[i], data[:16], from))
				if subtle.ConstantTimeCompare(want[:], data[16:]) != 1 {
					continue
				}
				if i == 0 && age <= cookieRenewal {
					return append(b, data...), true
				}
				proven = true
				break
			}
		}
	}
	at := len(b)
	b = append(b, data[:clientCookieSize]...)
	b = append(b, cookieVersion, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(now.Unix()))
	return binary.LittleEndian.AppendUint64(b, hashCookie(&secrets[0], b[at:], from)), proven
}

// hashCookie is SipHash-2-4 of the first 16 bytes of a cookie and the address.
func hashCookie(secret *CookieSecret, head []byte, from netip.Addr) uint64 {
	var text [32]byte
	n := copy(text[:], head[:16])
	if from = from.Unmap(); from.Is4() {
		a := from.As4()
		n += copy(text[n:], a[:])
	} else {
		a := from.As16()
		n += copy(text[n:], a[:])
	}
	return sipHash(secret, text[:n])
}

// sipHash is SipHash-2-4 (Aumasson and Bernstein, 2012).
func sipHash(key *CookieSecret, text []byte) uint64 {
	k0, k1 := binary.LittleEndian.Uint64(key[:]), binary.LittleEndian.Uint64(key[8:])
	v0, v1, v2, v3 := k0^0x736f6d6570736575, k1^0x646f72616e646f6d, k0^0x6c7967656e657261, k1^0x7465646279746573
	last := uint64(len(text)) << 56
	for ; len(text) >= 8; text = text[8:] {
		m := binary.LittleEndian.Uint64(text)
		v0, v1, v2, v3 = sipRound(v0, v1, v2, v3^m)
		v0, v1, v2, v3 = sipRound(v0, v1, v2, v3)
		v0 ^= m
	}
	for i, c := range text {
		last |= uint64(c) << (8 * i)
	}
	v0, v1, v2, v3 = sipRound(v0, v1, v2, v3^last)
	v0, v1, v2, v3 = sipRound(v0, v1, v2, v3)
	v0, v2 = v0^last, v2^0xff
	for range 4 {
		v0, v1, v2, v3 = sipRound(v0, v1, v2, v3)
	}
	return v0 ^ v1 ^ v2 ^ v3
}

func sipRound(v0, v1, v2, v3 uint64) (uint64, uint64, uint64, uint64) {
	v0 += v1
	v1 = bits.RotateLeft64(v1, 13) ^ v0
	v0 = bits.RotateLeft64(v0, 32)
	v2 += v3
	v3 = bits.RotateLeft64(v3, 16) ^ v2
	v0 += v3
	v3 = bits.RotateLeft64(v3, 21) ^ v0
	v2 += v1
	v1 = bits.RotateLeft64(v1, 17) ^ v2
	v2 = bits.RotateLeft64(v2, 32)
	return v0, v1, v2, v3
}
