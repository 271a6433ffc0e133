package front

import (
	"encoding/binary"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/perigee-net/perigee/edge/http1"
)

// appendFrame appends the head of a frame, whose payload follows.
func appendFrame(b []byte, kind, flags byte, id uint32, size int) []byte {
	return append(b, byte(size>>16), byte(size>>8), byte(size), kind, flags, byte(id>>24), byte(id>>16), byte(id>>8), byte(id))
}

// gather appends a frame to what is to be written. With the lock.
func (c *h2) gather(kind, flags byte, id uint32, p []byte) {
	c.sheet()
	c.out = append(appendFrame(c.out, kind, flags, id, len(p)), p...)
}

func (c *h2) gatherNumber(kind byte, id, n uint32) {
	c.sheet()
	c.out = binary.BigEndian.AppendUint32(appendFrame(c.out, kind, 0, id, 4), n)
}

func (c *h2) gatherGoAway(last uint32, why code) {
	c.sheet()
	c.out = binary.BigEndian.AppendUint32(appendFrame(c.out, goAwayFrame, 0, 0, 8), last)
	c.out = binary.BigEndian.AppendUint32(c.out, uint32(why))
}

// sheet has out be where there is room.
func (c *h2) sheet() {
	if c.outSheet == nil {
		c.outSheet = c.door.front.pools2.sheet()
		c.out = c.outSheet.b[:0]
	}
}

// rest gives the sheets back. With the lock, when nobody writes.
func (c *h2) rest() {
	p := &c.door.front.pools2.sheets
	if c.outSheet != nil {
		p.Put(c.outSheet)
		c.outSheet, c.out = nil, nil
	}
	if c.spare != nil {
		p.Put(c.spare)
		c.spare = nil
	}
}

// appendHeader appends a header, in as many frames as it takes. With the lock.
func (c *h2) appendHeader(b []byte, id uint32, flags byte, block []byte) []byte {
	kind := byte(headersFrame)
	for len(block) > frameBytes {
		b = append(appendFrame(b, kind, flags&^endOfHeaders, id, frameBytes), block[:frameBytes]...)
		kind, flags, block = continuationFrame, 0, block[frameBytes:]
	}
	return append(appendFrame(b, kind, flags|endOfHeaders, id, len(block)), block...)
}

// gatherHeader appends a header to what is to be written. With the lock.
func (c *h2) gatherHeader(id uint32, flags byte, block []byte) {
	c.sheet()
	c.out = c.appendHeader(c.out, id, flags, block)
}

// hasWork says whether there is something that may be written. With the lock.
func (c *h2) hasWork() bool {
	return !c.broken && (len(c.out) > 0 || c.window > 0 && len(c.queue) > 0)
}

// pump writes what waits, if nobody does so already. What is left then, others write: this does not hold up whoever calls for longer
// than one write takes. With the lock, which it gives up meanwhile.
func (c *h2) pump() {
	if c.writing || !c.hasWork() {
		return
	}
	c.writing = true
	c.write2()
	if c.hasWork() && !c.dead {
		c.wg.Go(c.pumpOn)
		return
	}
	c.written()
}

// start has what waits written by somebody else. With the lock.
func (c *h2) start() {
	if c.writing || c.dead || !c.hasWork() {
		return
	}
	c.writing = true
	c.wg.Go(c.pumpOn)
}

func (c *h2) pumpOn() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.hasWork() {
		c.write2()
	}
	c.written()
}

func (c *h2) written() {
	c.writing = false
	c.rest()
	c.room.Broadcast()
}

// write2 writes once: what was gathered, and then a frame of each stream in turn, as far as the windows allow.
func (c *h2) write2() {
	sheet, batch := c.outSheet, c.out
	if sheet == nil {
		sheet = c.door.front.pools2.sheet()
		batch = sheet.b[:0]
	}
	c.outSheet, c.spare = c.spare, nil
	if c.outSheet != nil {
		c.out = c.outSheet.b[:0]
	} else {
		c.out = nil
	}
	for len(batch) < batchBytes && c.window > 0 && len(c.queue) > 0 {
		s := c.queue[0]
		n := copy(c.queue, c.queue[1:])
		c.queue[n] = nil
		c.queue = c.queue[:n]
		s.queued = false
		batch = c.appendData(batch, s)
	}
	c.mu.Unlock()
	_, err := c.conn.Write(batch)
	c.mu.Lock()
	if c.spare == nil {
		c.spare = sheet
	} else {
		c.door.front.pools2.sheets.Put(sheet)
	}
	c.room.Broadcast()
	if err != nil {
		c.broken = true
		c.stop()
	}
}

// left is how much a stream has to send.
func (s *stream) left() int64 { return int64(len(s.body)) + s.fileLeft }

// enqueue has a stream wait for its turn, if it has something to send and may. With the lock.
func (c *h2) enqueue(s *stream) {
	if s.left() == 0 || s.err != nil {
		return
	}
	if s.window > 0 && !s.queued {
		s.queued = true
		c.queue = append(c.queue, s)
	}
	if !c.stalling && !c.dead {
		c.stalling = true
		if c.stall == nil {
			c.stall = time.AfterFunc(writeTimeout, c.stalled)
		} else {
			c.stall.Reset(writeTimeout)
		}
	}
}

// stalled ends the streams whose clients have taken nothing since it was last called.
func (c *h2) stalled() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stalling = false
	waits := false
	for _, s := range c.streams {
		switch {
		case s.left() == 0:
		case s.moved || s.since == 0:
			waits = true
		default:
			c.door.front.counters.slowReaders.Add(1)
			c.reset(s.id, cancelled)
		}
		s.moved, s.since = false, s.since+1
	}
	if waits && !c.dead {
		c.stalling = true
		c.stall.Reset(writeTimeout)
	}
	c.start()
}

// appendData appends a stream's next frame of data. With the lock, which it gives up while it reads a file.
func (c *h2) appendData(b []byte, s *stream) []byte {
	n := min(s.left(), s.window, c.window, frameBytes)
	c.earn(n)
	s.window -= n
	c.window -= n
	s.moved = true
	at := len(b)
	b = appendFrame(b, dataFrame, 0, s.id, int(n))
	if m := min(n, int64(len(s.body))); m > 0 {
		b = append(b, s.body[:m]...)
		s.body = s.body[m:]
		n -= m
	}
	if n > 0 {
		s.reading = true
		file, offset := s.file, s.offset
		s.offset, s.fileLeft = s.offset+n, s.fileLeft-n
		b = slices.Grow(b, int(n))
		c.mu.Unlock()
		m, err := file.ReadAt(b[len(b):len(b)+int(n)], offset)
		c.mu.Lock()
		s.reading = false
		b = b[:len(b)+m]
		if s.err != nil { // meanwhile
			s.letGo()
		}
		if int64(m) < n {
			c.window += n - int64(m)
			size := len(b) - at - frameHeader
			b[at], b[at+1], b[at+2] = byte(size>>16), byte(size>>8), byte(size)
			if s.err == nil && err != nil {
				c.reset(s.id, internalError)
			}
		}
	}
	switch {
	case s.err != nil:
	case s.left() > 0:
		c.enqueue(s)
	default:
		s.wake.Broadcast()
		if s.ends {
			if s.trailer != nil {
				b = c.appendHeader(b, s.id, endOfStream, s.trailer)
			} else {
				b[at+4] = endOfStream
			}
			b = c.sentAll(b, s)
		}
	}
	return b
}

// sentAll notes that a stream's answer is written. If the client has more to say, that is not wanted (RFC 9113, 8.1). With the lock.
func (c *h2) sentAll(b []byte, s *stream) []byte {
	s.sent = true
	c.earn(0)
	if s.received {
		c.close(s, errStreamReset, false)
		return b
	}
	b = binary.BigEndian.AppendUint32(appendFrame(b, resetFrame, 0, s.id, 4), uint32(noError))
	c.close(s, errStreamReset, true)
	return b
}

// gatherEnd is called when all of a stream's answer was gathered. With the lock.
func (c *h2) gatherEnd(s *stream) {
	b := c.sentAll(nil, s) // which may gather something itself
	c.sheet()
	c.out = append(c.out, b...)
}

// reset ends a stream by this side's will. With the lock.
func (c *h2) reset(id uint32, why code) {
	if s := c.streams[id]; s != nil {
		c.close(s, errStreamReset, true)
	} else {
		c.remember(id, true)
	}
	c.gatherNumber(resetFrame, id, uint32(why))
}

// close ends a stream: nothing more of it is sent or taken. With the lock.
func (c *h2) close(s *stream, why error, mine bool) {
	if s.err != nil {
		return
	}
	s.err = why
	delete(c.streams, s.id)
	c.remember(s.id, mine)
	if s.queued {
		for i, q := range c.queue {
			if q == s {
				c.queue = append(c.queue[:i], c.queue[i+1:]...)
				break
			}
		}
		s.queued = false
	}
	s.body, s.trailer = nil, nil
	if !s.reading {
		s.letGo()
	}
	c.took(int64(len(s.in) - s.inAt))
	s.in, s.inAt, s.inErr = nil, 0, why
	if s.cancel != nil && !s.sent {
		s.cancel()
	}
	s.wake.Broadcast()
	if c.over || c.dead {
		return
	}
	if c.door.leaving() {
		c.goAway()
	}
	if len(c.streams) == 0 {
		c.idleSince = time.Now()
		c.setDeadline()
		c.leaveIfDone()
	}
}

// letGo is called when what was lent to a stream is not read any more.
func (s *stream) letGo() {
	s.fileLeft = 0
	if s.done != nil {
		s.done()
		s.done = nil
	}
}

// hit gathers an answer that is there already.
func (c *h2) hit(id uint32, a *http1.Response, head, received bool) error {
	body, file := a.Body, a.Length
	if a.File == nil && a.Lent == nil || head {
		file = 0
	}
	lent := file > 0
	if head {
		body = nil
	}
	if a.Done != nil && !lent {
		a.Done()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.worked = true
	c.sheet()
	at := len(c.out)
	var flags byte = endOfHeaders
	if len(body) == 0 && file == 0 {
		flags |= endOfStream
	}
	c.out = appendFrame(c.out, headersFrame, flags, id, 0)
	c.out = c.appendAnswer(c.out, a.Head)
	if size := len(c.out) - at - frameHeader; size <= frameBytes {
		c.out[at], c.out[at+1], c.out[at+2] = byte(size>>16), byte(size>>8), byte(size)
	} else {
		block := append([]byte(nil), c.out[at+frameHeader:]...)
		c.out = c.appendHeader(c.out[:at], id, flags, block)
	}
	n := int64(len(body))
	if lent || n > min(c.window, c.initial, bodyCopied) || len(c.queue) > 0 && n > c.window/2 {
		s := c.open(id)
		s.received = received
		s.body, s.ends = body, true
		if lent {
			s.file, s.offset, s.fileLeft, s.done = a.File, a.Offset, file, a.Done
			if a.Lent != nil { // it is copied from there by this process in any case, so without a call of the system
				lease := a.Lent.Lease(0, c.counts())
				s.file, s.offset, s.done = lease, 0, lease.Close
			}
		}
		c.enqueue(s)
	} else {
		c.window -= n
		for len(body) > 0 {
			piece := body[:min(len(body), frameBytes)]
			body = body[len(piece):]
			var flags byte
			if len(body) == 0 {
				flags = endOfStream
			}
			c.out = append(appendFrame(c.out, dataFrame, flags, id, len(piece)), piece...)
		}
		c.earn(n)
		if received {
			c.remember(id, false)
		} else {
			c.reset(id, noError)
		}
	}
	if len(c.out) < batchBytes {
		return nil
	}
	c.pump()
	return c.waitForRoom()
}

// open adds a stream. With the lock.
func (c *h2) open(id uint32) *stream {
	s := &stream{c: c, id: id, window: c.initial, recv: bodyWindow, length: -1}
	s.wake.L = &c.mu
	c.streams[id] = s
	return s
}

// stream is a request that is not answered yet.
type stream struct {
	c  *h2
	id uint32

	// All of it with the connection's lock. What is to be sent:
	window   int64
	body     []byte
	file     io.ReaderAt // follows body
	offset   int64
	fileLeft int64
	reading  bool // the file is read just now
	done     func()
	ends     bool   // nothing comes after that, but trailer
	trailer  []byte // nil: there is none
	queued   bool
	moved    bool // something was sent since
	since    int  // that often it was looked
	sent     bool // all of it is written

	// What has come:
	received bool // all of it
	in       []byte
	inAt     int   // from there on it is unread
	inErr    error // what follows it
	recv     int64 // may still come
	unacked  int64
	length   int64 // was said; -1: it was not
	got      int64
	trailers http.Header // nil: none came
	answered bool        // its header is sent; of its handler

	err    error // it is over
	wake   sync.Cond
	cancel func()
}

// took gives the client room for so many bytes more. With the lock.
func (s *stream) took(n int64) {
	s.c.took(n)
	if s.unacked += n; s.unacked >= bodyWindow/4 && !s.received && s.err == nil {
		s.c.gatherNumber(windowFrame, s.id, uint32(s.unacked))
		s.recv += s.unacked
		s.unacked = 0
	}
}
