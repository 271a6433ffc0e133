package cache

import (
	"strconv"
	"time"
)

// Why the origin was asked (RFC 9211 §2.2).
const (
	ByPolicy    = "bypass"    // nothing is kept under the policy
	ByMethod    = "method"    // the method's responses are not kept
	URIMiss     = "uri-miss"  // nothing is kept of the URI
	VaryMiss    = "vary-miss" // what is kept of it was selected by other requests
	ByRequest   = "request"   // the viewer's directives
	StaleObject = "stale"     // what is kept is not fresh any more
	Partial     = "partial"   // what is kept is fresh, and only a part of what is asked for
)

// Status is what Cache-Status says of one response (RFC 9211).
type Status struct {
	Hit       bool
	Forward   string // why the origin was asked; empty on a hit
	Code      int    // what the origin answered; 0 if nothing
	Stored    bool
	Collapsed bool
	TTL       time.Duration // below zero: stale for so long
	HasTTL    bool
	Detail    string // a token
}

// Append appends the member of the list, as Perigee's: an Item of structured fields, whose parameters are in the order of
// RFC 9211.
func (s Status) Append(b []byte) []byte {
	b = append(b, "perigee"...)
	if s.Hit {
		b = append(b, "; hit"...)
	}
	if s.Forward != "" {
		b = append(b, "; fwd="...)
		b = append(b, s.Forward...)
	}
	if s.Code != 0 {
		b = append(b, "; fwd-status="...)
		b = strconv.AppendInt(b, int64(s.Code), 10)
	}
	if s.Stored {
		b = append(b, "; stored"...)
	}
	if s.Collapsed {
		b = append(b, "; collapsed"...)
	}
	if s.HasTTL {
		b = append(b, "; ttl="...)
		b = strconv.AppendInt(b, int64(s.TTL/time.Second), 10)
	}
	if s.Detail != "" {
		b = append(b, "; detail="...)
		b = append(b, s.Detail...)
	}
	return b
}
