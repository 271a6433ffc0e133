package dnsgeo

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

// optSize is how long an OPT record without options is: its last two bytes say how long those are.
const optSize = 11

// SetCookieSecrets makes these the secrets of cookies: the first makes them, all are believed. Nodes that have the same take each
// other's. Without any, nobody gets a cookie.
func (s *Server) SetCookieSecrets(secrets []CookieSecret) { s.cookies.Store(&secrets) }

// appendMore appends to an OPT record the options that depend on who asks and by what: a cookie, keepalive, why an answer is no better
// than it is. It says whether the client is proven to be where it says: it has a cookie, or its transport showed that. A query that is
// not understood gets none of these.
func (s *Server) appendMore(opt []byte, r *request, y *reply, from netip.Addr, by Transport) (_ []byte, proven bool) {
	proven = !by.Datagram()
	if len(opt) == 0 || y.Rcode == dns.RcodeFormatError || y.Rcode == dns.RcodeBadVers {
		return opt, proven
	}
	if secrets := s.cookies.Load(); r.cookie != nil && secrets != nil && len(*secrets) > 0 {
		var valid bool
		opt = append(opt, 0, dns.EDNS0COOKIE, 0, cookieSize)
		r.given = true
		if opt, valid = checkCookie(opt, r.cookie, from, *secrets, time.Now()); valid {
			s.counts.cookies.Add(1)
			proven = true
		} else {
			s.counts.cookiesGiven.Add(1)
		}
	}
	if r.keepalive && by.Stream() {
		opt = appendKeepalive(opt)
	}
	if r.opcode == dns.OpcodeUpdate {
		opt = appendWhy(opt, y.Rcode, r.why)
	} else if code, ok := extendedError(y, r.typ, r.class, s.table.Load() != nil); ok {
		opt = appendEDE(opt, code, "")
	}
	binary.BigEndian.PutUint16(opt[optSize-2:], uint16(len(opt)-optSize))
	return opt, proven
}

// pad adds padding to a response that ends with an OPT record of so many bytes.
func pad(response []byte, opt int) []byte {
	at := len(response) - opt + optSize - 2
	response = appendPadding(response, len(response), dns.MaxMsgSize)
	binary.BigEndian.PutUint16(response[at:], uint16(len(response)-at-2))
	return response
}

// limited is what is sent in the place of a response to a client that may be another: it, or where there are too many a shorter one or
// nothing.
func (d *desk) limited(response []byte, r *request, opt []byte, from netip.Addr) []byte {
	s := d.server
	if s.limit == nil {
		return response
	}
	at := d.came
	if at == 0 {
		at = time.Since(s.began)
	}
	switch s.limit.judge(from, response, at) {
	case slip:
		s.counts.slipped.Add(1)
		return cut(response, r, opt)
	case hold:
		s.counts.held.Add(1)
		return nil
	}
	return response
}

// cut takes all but the question and the OPT record from a response. A client that is given a cookie is told to come again with it
// (RFC 7873 §5.2.3); others, to come by TCP.
func cut(response []byte, r *request, opt []byte) []byte {
	response = append(response[:r.question], opt...)
	clear(response[6:headerSize])
	if len(opt) > 0 {
		response[11] = 1
	}
	if !r.given {
		response[2] |= 2
		return response
	}
	const badCookie = dns.RcodeBadCookie
	response[3] = response[3]&0xf0 | badCookie&0xf
	response[r.question+5] = badCookie >> 4
	return response
}
