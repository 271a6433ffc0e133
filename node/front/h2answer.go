package front

import (
	"errors"
	"io"
	"net/http"
	"net/textproto"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
)

// handle is the life of a request that a handler answers.
func (c *h2) handle(s *stream, w *answer2, r *http.Request) {
	returned := false
	defer func() {
		if returned {
			w.finish()
		} else {
			recover() // it was counted
		}
		w.end()
		s.cancel()
		c.mu.Lock()
		defer c.mu.Unlock()
		c.running--
		if s.err == nil {
			c.reset(s.id, internalError)
			c.start()
		}
	}()
	c.door.ServeHTTP(w, r)
	returned = true
}

// body2 is a request's body.
type body2 struct {
	s        *stream
	trailer  http.Header // with the names that may be in it
	expected bool        // the client waits to be told to send it
	closed   bool
}

func (b *body2) Read(p []byte) (int, error) {
	s, c := b.s, b.s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if b.closed {
		return 0, http.ErrBodyReadAfterClose
	}
	if len(p) == 0 {
		return 0, nil
	}
	if b.expected {
		b.expected = false
		if !s.answered && s.err == nil {
			c.gatherHeader(s.id, 0, c.packStatus(nil, []byte("100")))
			c.start()
		}
	}
	for {
		if n := copy(p, s.in[s.inAt:]); n > 0 {
			if s.inAt += n; s.inAt == len(s.in) {
				s.inAt, s.in = 0, s.in[:0]
				if cap(s.in) > 8*frameBytes {
					s.in = nil
				}
			}
			s.took(int64(n))
			c.start()
			return n, nil
		}
		if s.inErr != nil {
			if s.inErr == io.EOF {
				for name := range b.trailer { // no others, as in net/http
					b.trailer[name] = s.trailers[name]
				}
				s.trailers = nil
				b.trailer = nil
			}
			return 0, s.inErr
		}
		s.wake.Wait()
	}
}

// Close takes no more of the body.
func (b *body2) Close() error {
	s, c := b.s, b.s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	b.closed = true
	if s.inErr == nil {
		s.inErr = http.ErrBodyReadAfterClose
	}
	s.took(int64(len(s.in) - s.inAt))
	s.in, s.inAt = nil, 0
	s.wake.Broadcast()
	c.start()
	return nil
}

// bufferBytes is how much of an answer is held until its handler flushes it or has returned. An answer that is not longer
// says how long it is.
const bufferBytes = 4 << 10

// answer2 is an http.ResponseWriter. It differs from net/http's in that an answer that is shorter than it says is reset.
type answer2 struct {
	s       *stream
	r       *http.Request
	header  http.Header
	status  int
	said    http.Header // header, as it was then
	buf     []byte
	pooled  *[bufferBytes]byte
	length  int64 // was said; -1: it was not
	written int64
	trailer []string // names that were declared
	ended   bool
	byRead  *time.Timer
	byWrite *time.Timer
}

var (
	errAfterHandler = errors.New("the handler has returned")
)

func (w *answer2) Header() http.Header { return w.header }

// WriteHeader sends an interim response at once, and another with the first of its body.
func (w *answer2) WriteHeader(status int) {
	switch {
	case w.ended || w.status != 0:
		return
	case status < 100 || status > 999:
		panic("invalid WriteHeader code " + strconv.Itoa(status))
	case status == http.StatusSwitchingProtocols: // there is none to switch to (RFC 9113, 8.6)
		return
	case status < 200:
		h := w.header.Clone()
		delete(h, "Content-Length")
		w.interim(status, h)
		return
	}
	w.status = status
	w.said = w.header.Clone()
	if said := w.said["Content-Length"]; len(said) > 0 {
		if n, err := strconv.ParseUint(said[0], 10, 63); err == nil {
			w.length = int64(n)
		} else {
			delete(w.said, "Content-Length")
		}
	}
}

func (w *answer2) interim(status int, h http.Header) {
	s, c := w.s, w.s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if w.waitForRoom(); s.err != nil {
		return
	}
	c.gatherHeader(s.id, 0, packFields(c.packStatus(nil, strconv.AppendInt(nil, int64(status), 10)), h))
	c.pump()
}

// waitForRoom holds up a handler while too much waits to be written.
func (w *answer2) waitForRoom() {
	for c := w.s.c; c.writing && len(c.out) > gatheredMost && w.s.err == nil; {
		c.room.Wait()
	}
}

// packFields appends what may be sent of a header (RFC 9113, 8.2.2).
func packFields(b []byte, h http.Header) []byte {
	for name, values := range h {
		if !httpguts.ValidHeaderFieldName(name) { // the trailer's are none
			continue
		}
		switch textproto.CanonicalMIMEHeaderKey(name) {
		case "Connection", "Proxy-Connection", "Keep-Alive", "Transfer-Encoding", "Upgrade":
			continue
		}
		for _, v := range values {
			if httpguts.ValidHeaderFieldValue(v) {
				b = packField(b, name, textproto.TrimString(v))
			}
		}
	}
	return b
}

func bodyAllowed(status int) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}

func (w *answer2) Write(p []byte) (int, error) { return w.write(len(p), p, "") }

func (w *answer2) WriteString(s string) (int, error) { return w.write(len(s), nil, s) }

func (w *answer2) write(n int, p []byte, s string) (int, error) {
	if w.ended {
		return 0, errAfterHandler
	}
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if !bodyAllowed(w.status) {
		return 0, http.ErrBodyNotAllowed
	}
	if w.written += int64(n); w.length >= 0 && w.written > w.length {
		return 0, http.ErrContentLength
	}
	if len(w.buf)+n > bufferBytes {
		if len(w.buf) > 0 {
			if err := w.send(w.buf, false); err != nil {
				return 0, err
			}
			w.buf = w.buf[:0]
		}
		if n > bufferBytes {
			if p == nil {
				p = []byte(s)
			}
			if err := w.send(p, false); err != nil {
				return 0, err
			}
			return n, nil
		}
	}
	if w.pooled == nil {
		bodies := &w.s.c.door.front.pools2.bodies
		if b, ok := bodies.Get().(*[bufferBytes]byte); ok {
			w.pooled = b
		} else {
			w.pooled = new([bufferBytes]byte)
		}
		w.buf = w.pooled[:0]
	}
	w.buf = append(append(w.buf, p...), s...)
	return n, nil
}

// FlushError sends what was written so far.
func (w *answer2) FlushError() error {
	if w.ended {
		return errAfterHandler
	}
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if len(w.buf) == 0 && w.s.answered {
		return w.s.broken()
	}
	err := w.send(w.buf, false)
	w.buf = w.buf[:0]
	return err
}

// Flush is FlushError for those who do not ask.
func (w *answer2) Flush() { w.FlushError() }

func (s *stream) broken() error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.err
}

// finish sends the rest, when the handler has returned.
func (w *answer2) finish() {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if w.length > w.written && bodyAllowed(w.status) && w.r.Method != http.MethodHead {
		if len(w.buf) > 0 {
			w.send(w.buf, false)
		}
		return // short of what it said: it is reset
	}
	w.send(w.buf, true)
}

// end lets go of what was held.
func (w *answer2) end() {
	s, c := w.s, w.s.c
	c.mu.Lock()
	w.ended = true
	if w.byRead != nil {
		w.byRead.Stop()
	}
	if w.byWrite != nil {
		w.byWrite.Stop()
	}
	c.took(int64(len(s.in) - s.inAt))
	s.in, s.inAt = nil, 0
	if s.inErr == nil {
		s.inErr = errAfterHandler
	}
	c.mu.Unlock()
	w.buf = nil
	if w.pooled != nil {
		c.door.front.pools2.bodies.Put(w.pooled)
		w.pooled = nil
	}
}

// send sends a piece of the body, with the header before it and the end behind it, and waits until it is on its way.
func (w *answer2) send(p []byte, last bool) error {
	s, c := w.s, w.s.c
	var block []byte
	first := !s.answered
	if first {
		block = w.block(p, last)
	}
	if w.r.Method == http.MethodHead {
		p = nil
	}
	var trailer []byte
	if last {
		trailer = w.trailerBlock()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if w.waitForRoom(); s.err != nil {
		return s.err
	}
	if first {
		s.answered = true
		var flags byte
		if last && len(p) == 0 && trailer == nil {
			flags = endOfStream
		}
		status := strconv.AppendInt(nil, int64(w.status), 10)
		c.gatherHeader(s.id, flags, append(c.packStatus(nil, status), block...))
		if flags != 0 {
			c.gatherEnd(s)
			c.pump()
			return nil
		}
	}
	s.body, s.ends, s.trailer, s.moved, s.since = p, last, trailer, false, 0
	switch {
	case len(p) > 0:
		c.enqueue(s)
	case last && trailer != nil:
		c.gatherHeader(s.id, endOfStream, trailer)
		c.gatherEnd(s)
	case last:
		c.gather(dataFrame, endOfStream, s.id, nil)
		c.gatherEnd(s)
	}
	c.pump()
	for len(s.body) > 0 && s.err == nil {
		s.wake.Wait()
	}
	if s.sent {
		return nil
	}
	return s.err
}

// block is the header, without the status.
func (w *answer2) block(p []byte, last bool) []byte {
	h := w.said
	var b []byte
	if w.length < 0 && last && bodyAllowed(w.status) && (len(p) > 0 || w.r.Method != http.MethodHead) {
		if _, said := h["Content-Length"]; !said {
			b = packField(b, "content-length", strconv.Itoa(len(p)))
		}
	}
	if _, said := h["Content-Type"]; !said && h.Get("Content-Encoding") == "" && bodyAllowed(w.status) && len(p) > 0 {
		b = packField(b, "content-type", http.DetectContentType(p))
	}
	if _, said := h["Date"]; !said {
		b = packField(b, "date", time.Now().UTC().Format(http.TimeFormat))
	}
	for _, list := range h["Trailer"] {
		for name := range strings.SplitSeq(list, ",") {
			name = textproto.CanonicalMIMEHeaderKey(textproto.TrimString(name))
			if httpguts.ValidTrailerHeader(name) && !slices.Contains(w.trailer, name) {
				w.trailer = append(w.trailer, name)
			}
		}
	}
	if h.Get("Connection") == "close" {
		c := w.s.c
		c.mu.Lock()
		c.goAway()
		c.mu.Unlock()
	}
	return packFields(b, h)
}

// trailerBlock is what follows the body; nil: nothing does.
func (w *answer2) trailerBlock() []byte {
	h := http.Header{}
	for _, name := range w.trailer {
		if values := w.header[name]; len(values) > 0 {
			h[name] = values
		}
	}
	for name, values := range w.header {
		if name, ok := strings.CutPrefix(name, http.TrailerPrefix); ok {
			if name = textproto.CanonicalMIMEHeaderKey(name); httpguts.ValidTrailerHeader(name) {
				h[name] = values
			}
		}
	}
	return packFields(nil, h)
}

// SetReadDeadline has reading the body fail from then on.
func (w *answer2) SetReadDeadline(t time.Time) error {
	s, c := w.s, w.s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	w.byRead = w.at(w.byRead, t, func() {
		if s.inErr == nil {
			s.inErr = os.ErrDeadlineExceeded
		}
		s.wake.Broadcast()
	})
	return nil
}

// SetWriteDeadline has the answer cut short then.
func (w *answer2) SetWriteDeadline(t time.Time) error {
	s, c := w.s, w.s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	w.byWrite = w.at(w.byWrite, t, func() {
		if s.err == nil {
			c.reset(s.id, internalError)
			c.start()
		}
	})
	return nil
}

// SetDeadline sets both.
func (w *answer2) SetDeadline(t time.Time) error {
	return errors.Join(w.SetReadDeadline(t), w.SetWriteDeadline(t))
}

// at has something done at a time, instead of what was to be done at another; both with the lock.
func (w *answer2) at(timer *time.Timer, t time.Time, do func()) *time.Timer {
	c := w.s.c
	if timer != nil {
		timer.Stop()
	}
	if t.IsZero() || w.ended {
		return nil
	}
	in := time.Until(t)
	if in <= 0 {
		do()
		return nil
	}
	var self *time.Timer
	self = time.AfterFunc(in, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if w.byRead == self || w.byWrite == self { // and not another instead of it
			do()
		}
	})
	return self
}

// EnableFullDuplex is so anyway.
func (w *answer2) EnableFullDuplex() error { return nil }
