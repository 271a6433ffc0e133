package cache

import (
	"net/http"
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

// freshened is the kept response updated by a 304 (RFC 9111 §4.3.4, §3.2). Not ok: the 304 is about another
// response, by its validators.
func (o *Object) freshened(p *Policy, h http.Header, requested, received time.Time) (*Object, bool) {
	if tag := h.Get("Etag"); tag != "" {
		if !weakMatch(tag, o.Header.Get("Etag")) || !strings.HasPrefix(tag, "W/") && !strongMatch(tag, o.Header.Get("Etag")) {
			return nil, false
		}
	} else if modified := h.Get("Last-Modified"); modified != "" && modified != o.Header.Get("Last-Modified") {
		return nil, false
	}
	w := *o
	kept := o.Header.HTTP()
	kept["Date"] = []string{received.UTC().Format(http.TimeFormat)}
	for name, lines := range h {
		switch name {
		case "Content-Length", "Content-Encoding", "Content-Range": // they say what the kept body is (§3.2)
		case "Set-Cookie":
			if p.KeysCookies() {
				kept[name] = lines
			}
		default:
			kept[name] = lines
		}
	}
	w.live(p, ParseControl(kept), kept, requested, received)
	w.Header = NewHeader(kept).without(ownFields)
	return &w, true
}

// Answer is how a kept response, or one being filled, answers one request.
type Answer struct {
	// Status is the response's own, or 304, 206 or 416.
	Status int
	// Start and Length are the part of the body that is sent. Length −1 is to the end, wherever that comes.
	Start, Length int64
}

// Answer decides how the response answers a GET or HEAD by the viewer's conditions and range. Size is that of the body,
// −1 if it is not known yet: then a range is answered with the whole (RFC 9110 §14.2 allows it; a range of a HEAD is
// none). If-Match and If-Unmodified-Since are left to origins (RFC 9110 §13.1.1, §13.1.4).
func (o *Object) Answer(method string, h http.Header, size int64) Answer {
	whole := Answer{Status: o.Status, Length: size}
	if o.Status != http.StatusOK {
		return whole
	}
	if o.notModified(h) {
		return Answer{Status: http.StatusNotModified}
	}
	if ranges := h["Range"]; method == http.MethodGet && len(ranges) == 1 && size >= 0 && o.ifRange(h) {
		switch start, length, is := parseRange(ranges[0], size); is {
		case onePart:
			return Answer{Status: http.StatusPartialContent, Start: start, Length: length}
		case unsatisfiable:
			return Answer{Status: http.StatusRequestedRangeNotSatisfiable}
		}
	}
	return whole
}

// notModified weighs the viewer's conditions in their order of precedence (RFC 9110 §13.2.2).
func (o *Object) notModified(h http.Header) bool {
	if tags := h["If-None-Match"]; len(tags) > 0 {
		return matchesAny(tags, o.Header.Get("Etag"))
	}
	if since := h["If-Modified-Since"]; len(since) == 1 {
		at, err := http.ParseTime(since[0])
		modified, known := lastModified(o.Header)
		return err == nil && known && !modified.After(at)
	}
	return false
}

// ifRange says whether the viewer's If-Range lets its Range count (RFC 9110 §13.1.5): none, or a strong match.
func (o *Object) ifRange(h http.Header) bool {
	condition := h.Get("If-Range")
	if condition == "" {
		return true
	}
	if strings.HasPrefix(condition, `"`) || strings.HasPrefix(condition, "W/") {
		return strongMatch(condition, o.Header.Get("Etag"))
	}
	at, err := http.ParseTime(condition)
	modified, known := lastModified(o.Header)
	return err == nil && known && modified.Equal(at)
}

func lastModified(h Header) (time.Time, bool) {
	t, err := http.ParseTime(h.Get("Last-Modified"))
	return t, err == nil
}

// matchesAny says whether a list of entity tags, or *, names the tag (weak comparison, RFC 9110 §13.1.2).
func matchesAny(lines []string, tag string) bool {
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
			if weakMatch(line[:end], tag) {
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
