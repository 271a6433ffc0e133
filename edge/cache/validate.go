package cache

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// conditions are the fields that ask the origin whether a kept response is still good (RFC 9111 §4.3.1); nil if
// the response carries no validator.
func conditions(o *Object) http.Header {
	var c http.Header
	add := func(name, value string) {
		if value != "" {
			if c == nil {
				c = http.Header{}
			}
			c.Set(name, value)
		}
	}
	add("If-None-Match", o.Header.Get("Etag"))
	add("If-Modified-Since", o.Header.Get("Last-Modified"))
	return c
}

// freshened is the kept response updated by a 304 (RFC 9111 §4.3.4, §3.2), and the fields that are for this request
// alone. Not ok: the 304 is about another response, by its validators.
func (o *Object) freshened(p *Policy, h http.Header, requested, received time.Time) (fresh *Object, own http.Header, ok bool) {
	if tag := h.Get("Etag"); tag != "" {
		if !weakMatch(tag, o.Header.Get("Etag")) || !strings.HasPrefix(tag, "W/") && !strongMatch(tag, o.Header.Get("Etag")) {
			return nil, nil, false
		}
	} else if modified := h.Get("Last-Modified"); modified != "" && modified != o.Header.Get("Last-Modified") {
		return nil, nil, false
	}
	fresh, own = o.updated(p, h, requested, received)
	return fresh, own, true
}

// headed is the kept response updated by the 200 to a HEAD (§4.3.5), or nil. Other says that the header is about another
// response, by its validators or its length; where it says nothing of these, it is about neither. Size is that of the body that
// is kept.
func (o *Object) headed(p *Policy, h http.Header, size int64, requested, received time.Time) (fresh *Object, other bool) {
	same := false
	for _, c := range []struct{ got, want string }{
		{h.Get("Etag"), o.Header.Get("Etag")},
		{h.Get("Last-Modified"), o.Header.Get("Last-Modified")},
		{h.Get("Content-Length"), strconv.FormatInt(size, 10)},
	} {
		switch c.got {
		case "":
		case c.want:
			same = true
		default:
			return nil, true
		}
	}
	if same {
		fresh, _ = o.updated(p, h, requested, received)
	}
	return fresh, false
}

// updated is the kept response with the fields of a newer one about the same body.
func (o *Object) updated(p *Policy, h http.Header, requested, received time.Time) (fresh *Object, own http.Header) {
	w := *o
	kept := o.Header.HTTP()
	kept["Date"] = []string{received.UTC().Format(http.TimeFormat)}
	for name, lines := range h {
		switch {
		case describes(name): // what the kept body is (§3.2)
		case name == "Etag" && o.Header.Get("Etag") != "": // it matches, and is not made weaker
		case name == "Set-Cookie" && !p.KeysCookies():
		default:
			kept[name] = lines
		}
	}
	cc := ParseControl(kept)
	own = cc.separate(kept)
	w.live(p, cc, kept, requested, received)
	vary := p.selecting(kept)
	w.amend(func(r *rare) { r.vary = vary })
	w.Header = NewHeader(kept).without(ownFields)
	return &w, own
}

// describes says whether a field says what the bytes of the body are, so that one of a response without that body is not
// about it.
func describes(name string) bool {
	switch name {
	case "Content-Digest", "Content-Encoding", "Content-Length", "Content-Md5", "Content-Range":
		return true
	}
	return false
}

// Answer is how a kept response, or one being filled, answers one request.
type Answer struct {
	// Status is the response's own, or 206, 304, 412 or 416.
	Status int
	// Start and Length are the part of the body that is sent. Length −1 is to the end, wherever that comes.
	Start, Length int64
	// Parts are those of a 206 of several, ascending, none of which overlap; else nil.
	Parts []Part
}

// Answer decides how the response answers a GET or HEAD by the viewer's conditions and range, in their order of precedence
// (RFC 9110 §13.2.2). Size is that of the body, −1 if it is not known yet: then a range is answered with the whole
// (RFC 9110 §14.2 allows it; a range of a HEAD is none).
func (o *Object) Answer(method string, h http.Header, size int64) Answer {
	whole := Answer{Status: o.Status, Length: size}
	if o.Status != http.StatusOK {
		return whole
	}
	if status := o.condition(h); status != 0 {
		return Answer{Status: status}
	}
	if ranges := h["Range"]; method == http.MethodGet && len(ranges) == 1 && size >= 0 && o.ifRange(h) {
		switch parts, is := parseRange(ranges[0], size); {
		case is == unsatisfiable:
			return Answer{Status: http.StatusRequestedRangeNotSatisfiable}
		case is == parts206 && len(parts) == 1:
			return Answer{Status: http.StatusPartialContent, Start: parts[0].Start, Length: parts[0].Length}
		case is == parts206:
			return Answer{Status: http.StatusPartialContent, Parts: parts}
		}
	}
	return whole
}

// condition weighs the viewer's conditions: 304, 412, or 0 if they do not stand against the whole. One that is
// malformed, and a date given twice, is none.
func (o *Object) condition(h http.Header) (status int) {
	if len(h["If-Match"])+len(h["If-Unmodified-Since"])+len(h["If-None-Match"])+len(h["If-Modified-Since"]) == 0 {
		return 0
	}
	tag := o.Header.Get("Etag")
	if tags := h["If-Match"]; len(tags) > 0 {
		if !matchesAny(tags, tag, strongMatch) {
			return http.StatusPreconditionFailed
		}
	} else if at, ok := o.since(h, "If-Unmodified-Since"); ok {
		if modified, known := o.lastModified(); known && modified.After(at) {
			return http.StatusPreconditionFailed
		}
	}
	if tags := h["If-None-Match"]; len(tags) > 0 {
		if matchesAny(tags, tag, weakMatch) {
			return http.StatusNotModified
		}
	} else if at, ok := o.since(h, "If-Modified-Since"); ok {
		modified, known := o.lastModified()
		if !known { // it was not modified since it was made (RFC 9111 §4.3.2)
			modified, known = httpDate(o.Header.Get("Date"), o.received)
		}
		if !known {
			modified = o.received
		}
		if !modified.After(at) {
			return http.StatusNotModified
		}
	}
	return 0
}

func (o *Object) since(h http.Header, name string) (time.Time, bool) {
	lines := h[name]
	if len(lines) != 1 {
		return time.Time{}, false
	}
	return httpDate(lines[0], o.received)
}

// ifRange says whether the viewer's If-Range lets its Range count (RFC 9110 §13.1.5): none, or a strong match. A date is
// strong if the response was made a second later at least, so that nothing can have changed within it (§8.8.2.2).
func (o *Object) ifRange(h http.Header) bool {
	lines := h["If-Range"]
	if len(lines) == 0 {
		return true
	}
	if len(lines) > 1 {
		return false
	}
	condition := lines[0]
	if strings.HasPrefix(condition, `"`) || strings.HasPrefix(condition, "W/") {
		return strongMatch(condition, o.Header.Get("Etag"))
	}
	at, ok := httpDate(condition, o.received)
	modified, known := o.lastModified()
	made, dated := httpDate(o.Header.Get("Date"), o.received)
	return ok && known && dated && modified.Equal(at) && made.Sub(modified) >= time.Second
}

func (o *Object) lastModified() (time.Time, bool) {
	return httpDate(o.Header.Get("Last-Modified"), o.received)
}

// matchesAny says whether a list of entity tags, or *, names the tag by a comparison (RFC 9110 §13.1.1, §13.1.2).
func matchesAny(lines []string, tag string, match func(a, b string) bool) bool {
	for _, line := range lines {
		for {
			line = strings.TrimLeft(line, " \t,")
			if line == "" {
				break
			}
			if line[0] == '*' {
				return true
			}
			open := strings.IndexByte(line, '"')
			if open != 0 && !(open == 2 && line[:2] == "W/") {
				break // what is no entity tag matches nothing, and what follows it neither
			}
			end := strings.IndexByte(line[open+1:], '"')
			if end < 0 {
				break
			}
			end += open + 2
			if match(line[:end], tag) {
				return true
			}
			line = line[end:]
		}
	}
	return false
}

func weakMatch(a, b string) bool {
	return a != "" && strings.TrimPrefix(a, "W/") == strings.TrimPrefix(b, "W/")
}

func strongMatch(a, b string) bool {
	return a != "" && a == b && !strings.HasPrefix(a, "W/")
}
