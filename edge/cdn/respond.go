package cdn

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/perigee-net/perigee/edge/cache"
)

// fields are the header lines that are the same for many responses. They are shared and never changed.
type fields struct {
	pop                                     []string
	hit, miss, refreshHit, failed, redirect []string // X-Cache
	hitLines, failedLines                   string   // of Quick's answers, below 400 and else
	missLines                               string   // of Relay's
}

func newFields(pop string) fields {
	return fields{
		pop: []string{pop},
		hit: []string{"Hit from perigee"}, miss: []string{"Miss from perigee"}, refreshHit: []string{"RefreshHit from perigee"},
		failed: []string{"Error from perigee"}, redirect: []string{"Redirect from perigee"},
		hitLines:    "X-Perigee-Pop: " + pop + "\r\nX-Cache: Hit from perigee\r\n\r\n",
		missLines:   "X-Perigee-Pop: " + pop + "\r\nX-Cache: Miss from perigee\r\n\r\n",
		failedLines: "X-Perigee-Pop: " + pop + "\r\nX-Cache: Error from perigee\r\n\r\n",
	}
}

// notFromCache is the age of what the origin has just sent: no Age is said but the origin's own.
const notFromCache = time.Duration(-1)

// notModifiedFields are what a 304 carries (RFC 9110 §15.4.5), and Via.
var notModifiedFields = []string{"Cache-Control", "Content-Location", "Date", "Etag", "Expires", "Vary", "Via"}

// head writes the status and header of an answer of the cache. Size is that of the whole body, −1 if not known. It returns
// what the body is made of where that has several parts, else nil.
func (p *Plane) head(w http.ResponseWriter, o *cache.Object, a cache.Answer, size int64, from []string, s cache.Status, age time.Duration, id string) (parts *byteranges) {
	h := w.Header()
	switch a.Status {
	case o.Status:
		add(h, o)
		if _, known := h["Content-Length"]; !known && size >= 0 && hasBody(a.Status) {
			h["Content-Length"] = []string{strconv.FormatInt(size, 10)}
		}
	case http.StatusNotModified:
		kept := o.Header.HTTP()
		for _, name := range notModifiedFields {
			if lines := kept[name]; lines != nil {
				h[name] = lines
			}
		}
		if modified := o.Header.Get("Last-Modified"); modified != "" && o.Header.Get("Etag") == "" { // all that the viewer's copy is known by
			h["Last-Modified"] = []string{modified}
		}
	case http.StatusPartialContent:
		add(h, o)
		delete(h, "Content-Digest") // of the content, which is another one (RFC 9530 §2)
		delete(h, "Content-Md5")
		if a.Parts != nil {
			parts = newByteranges(h, a, o.Header.Get("Content-Type"), size)
			break
		}
		h["Content-Range"] = []string{fmt.Sprintf("bytes %d-%d/%d", a.Start, a.Start+a.Length-1, size)}
		h["Content-Length"] = []string{strconv.FormatInt(a.Length, 10)}
	case http.StatusRequestedRangeNotSatisfiable:
		h["Content-Range"] = []string{fmt.Sprintf("bytes */%d", size)}
		h["Content-Length"] = []string{"0"}
	case http.StatusPreconditionFailed:
		h["Content-Length"] = []string{"0"}
	}
	p.say(h, a.Status, from, s, age, id)
	w.WriteHeader(a.Status)
	return parts
}

// add adds what is sent on of the object's header. A type that the origin did not say is not guessed by net/http either.
func add(h http.Header, o *cache.Object) {
	o.Header.AddTo(h)
	if _, said := h["Content-Type"]; !said {
		h["Content-Type"] = nil
	}
}

func hasBody(status int) bool {
	return status != http.StatusNoContent && status != http.StatusNotModified
}

// say adds what Perigee says of a response. An empty id is a new one.
func (p *Plane) say(h http.Header, status int, from []string, s cache.Status, age time.Duration, id string) {
	// Three lines in one string and one array: this is on the path of every hit.
	var space [192]byte
	b := space[:0]
	if age != notFromCache {
		b = strconv.AppendInt(b, int64(age/time.Second), 10)
	}
	ageEnd := len(b)
	b = s.Append(b)
	statusEnd := len(b)
	if id == "" {
		b = appendID(b)
	} else {
		b = append(b, id...)
	}
	text := string(b)
	lines := &[3]string{text[:ageEnd], text[ageEnd:statusEnd], text[statusEnd:]}
	if ageEnd > 0 {
		h["Age"] = lines[0:1:1]
	}
	if upstream := h["Cache-Status"]; len(upstream) > 0 {
		h["Cache-Status"] = append(slices.Clip(upstream), lines[1])
	} else {
		h["Cache-Status"] = lines[1:2:2]
	}
	h["X-Perigee-Id"] = lines[2:3:3]
	h["X-Perigee-Pop"] = p.fields.pop
	if status >= 400 {
		from = p.fields.failed
	}
	h["X-Cache"] = from
}

// own is why Perigee answers a request itself.
type own int

const (
	redirected   own = iota
	forbidden        // by the distribution, or there is none
	tooLong          // the URL, or the head
	looped           // it has come round in a circle
	unserved         // WebSocket
	onlyIfCached     // the viewer wants nothing else, and nothing is kept
	busy             // too many fills, or askers
	unreached        // the origin gives no answer
	late             // nor says so in time
	owns
)

// details are as Cache-Status says it.
var details = [owns]string{"redirect", "forbidden", "too-long", "loop", "unserved", "only-if-cached", "busy", "unreached", "timeout"}

// own is why a request is answered that is not routed.
func (d Decision) own() own {
	switch d.Status {
	case http.StatusMovedPermanently, http.StatusTemporaryRedirect:
		return redirected
	case http.StatusRequestURITooLong, http.StatusRequestEntityTooLarge:
		return tooLong
	case http.StatusLoopDetected:
		return looped
	case http.StatusNotImplemented:
		return unserved
	}
	return forbidden
}

// refuse answers on Perigee's own behalf. Forward is why the origin was asked; empty: it was not.
func (p *Plane) refuse(w http.ResponseWriter, r *http.Request, status int, why own, forward, reason, location string) {
	p.counts.own[why].Add(1)
	h := w.Header()
	from := p.fields.failed
	h["Cache-Status"] = []string{string(cache.Status{Forward: forward, Detail: details[why]}.Append(nil))}
	if location != "" {
		h.Set("Location", location)
		from = p.fields.redirect
	}
	text := fmt.Sprintf("%d %s: %s\n", status, http.StatusText(status), reason)
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(text)))
	h["X-Cache"], h["X-Perigee-Pop"] = from, p.fields.pop
	h.Set("X-Perigee-Id", newID())
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		w.Write([]byte(text))
	}
}
