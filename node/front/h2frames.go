package front

import (
	"encoding/binary"
	"io"
	"slices"
	"time"
)

// Kinds and flags of frames, and settings (RFC 9113, 6; RFC 9218, 2.1).
const (
	dataFrame         = 0x0
	headersFrame      = 0x1
	priorityFrame     = 0x2
	resetFrame        = 0x3
	settingsFrame     = 0x4
	pushFrame         = 0x5
	pingFrame         = 0x6
	goAwayFrame       = 0x7
	windowFrame       = 0x8
	continuationFrame = 0x9

	endOfStream  = 0x1
	acknowledges = 0x1
	endOfHeaders = 0x4
	padded       = 0x8
	prioritised  = 0x20

	enablePush    = 0x2
	maxStreams    = 0x3
	initialWindow = 0x4
	maxFrameSize  = 0x5
	maxHeaderList = 0x6
	noPriorities  = 0x9

	frameHeader = 9
	maxWindow   = 1<<31 - 1
)

// frame takes a frame. The error is a breach, or what ends the connection.
func (c *h2) frame(kind, flags byte, id uint32, p []byte) error {
	if !c.greeted {
		if kind != settingsFrame || flags&acknowledges != 0 {
			return breach{code: protocolError}
		}
		c.greeted = true
		c.mu.Lock()
		c.settleBy = time.Now().Add(settingsTimeout)
		c.mu.Unlock()
	}
	if c.blockOf != 0 && (kind != continuationFrame || id != c.blockOf) {
		return breach{code: protocolError}
	}
	switch kind {
	case dataFrame:
		return c.data(flags, id, p)
	case headersFrame:
		return c.headers(flags, id, p)
	case continuationFrame:
		return c.continuation(flags, p)
	case pushFrame:
		return breach{code: protocolError}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.control(kind, flags, id, p); err != nil {
		return err
	}
	if !c.spend() {
		return breach{code: enhanceYourCalm}
	}
	return nil
}

// control takes a frame of the kinds that carry no request. With the lock.
func (c *h2) control(kind, flags byte, id uint32, p []byte) error {
	switch kind {
	case priorityFrame:
		switch {
		case id == 0:
			return breach{code: protocolError}
		case len(p) != 5:
			return breach{id, frameSizeError}
		case binary.BigEndian.Uint32(p)&^(1<<31) == id:
			return breach{id, protocolError}
		}
	case resetFrame:
		switch {
		case len(p) != 4:
			return breach{code: frameSizeError}
		case c.isIdle(id):
			return breach{code: protocolError}
		}
		if s := c.streams[id]; s != nil {
			c.close(s, errStreamReset, false)
		}
	case settingsFrame:
		return c.settings(flags, id, p)
	case pingFrame:
		switch {
		case len(p) != 8:
			return breach{code: frameSizeError}
		case id != 0:
			return breach{code: protocolError}
		case flags&acknowledges == 0:
			c.gather(pingFrame, acknowledges, 0, p)
		case string(p) == string(drainPing):
			c.goAwayForGood()
		}
	case goAwayFrame:
		switch {
		case id != 0:
			return breach{code: protocolError}
		case len(p) < 8:
			return breach{code: frameSizeError}
		}
		c.goAwayForGood() // nothing more will come
	case windowFrame:
		return c.windowUpdate(id, p)
	}
	return nil // what nobody knows is nothing (RFC 9113, 4.1)
}

// isIdle says whether a stream has not been opened by its client. With the lock.
func (c *h2) isIdle(id uint32) bool {
	return id == 0 || id%2 == 0 || id > c.maxID && c.away != awayForGood
}

func (c *h2) settings(flags byte, id uint32, p []byte) error {
	switch {
	case id != 0:
		return breach{code: protocolError}
	case flags&acknowledges != 0:
		if len(p) != 0 {
			return breach{code: frameSizeError}
		}
		c.settleBy = time.Time{}
		return nil
	case len(p)%6 != 0:
		return breach{code: frameSizeError}
	}
	for ; len(p) > 0; p = p[6:] {
		value := binary.BigEndian.Uint32(p[2:])
		switch binary.BigEndian.Uint16(p) {
		case enablePush:
			if value > 1 {
				return breach{code: protocolError}
			}
		case initialWindow:
			if value > maxWindow {
				return breach{code: flowError}
			}
			more := int64(value) - c.initial
			c.initial = int64(value)
			for _, s := range c.streams {
				if s.window += more; s.window > maxWindow {
					return breach{code: flowError}
				}
				c.enqueue(s)
			}
		case maxFrameSize:
			if value < frameBytes || value > 1<<24-1 {
				return breach{code: protocolError}
			}
		}
	}
	c.gather(settingsFrame, acknowledges, 0, nil)
	return nil
}

func (c *h2) windowUpdate(id uint32, p []byte) error {
	if len(p) != 4 {
		return breach{code: frameSizeError}
	}
	more := int64(binary.BigEndian.Uint32(p) &^ (1 << 31))
	if id == 0 {
		if more == 0 {
			return breach{code: protocolError}
		}
		if c.window += more; c.window > maxWindow {
			return breach{code: flowError}
		}
		return nil
	}
	if c.isIdle(id) {
		return breach{code: protocolError}
	}
	s := c.streams[id]
	if s == nil {
		return nil // it was under way
	}
	if more == 0 {
		return breach{id, protocolError}
	}
	if s.window += more; s.window > maxWindow {
		return breach{id, flowError}
	}
	c.enqueue(s)
	return nil
}

// unpad takes padding away.
func unpad(flags byte, p []byte) ([]byte, bool) {
	if flags&padded == 0 {
		return p, true
	}
	if len(p) == 0 || int(p[0]) > len(p)-1 {
		return nil, false
	}
	return p[1 : len(p)-int(p[0])], true
}

func (c *h2) data(flags byte, id uint32, p []byte) error {
	body, ok := unpad(flags, p)
	if !ok {
		return breach{code: protocolError}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isIdle(id) {
		return breach{code: protocolError}
	}
	n := int64(len(p))
	if c.recv -= n; c.recv < 0 {
		return breach{code: flowError}
	}
	if c.away == awayForGood && id > c.lastID { // the client was told
		c.took(n)
		return nil
	}
	s := c.streams[id]
	if s == nil || s.received {
		c.took(n)
		if !c.spend() {
			return breach{code: enhanceYourCalm}
		}
		if s == nil && c.wasReset(id) {
			return nil
		}
		return breach{id, closedError}
	}
	if s.recv -= n; s.recv < 0 {
		c.took(n)
		return breach{id, flowError}
	}
	s.got += int64(len(body))
	ends := flags&endOfStream != 0
	if s.length >= 0 && (s.got > s.length || ends && s.got < s.length) {
		c.took(n)
		return breach{id, protocolError}
	}
	if len(body) == 0 && !ends && !c.spend() {
		return breach{code: enhanceYourCalm}
	}
	if s.inErr == nil {
		s.in = append(s.in, body...)
	} else { // nobody reads it: no more of the stream is wanted
		c.took(int64(len(body)))
	}
	s.took(n - int64(len(body)))
	if ends {
		c.receive(s, io.EOF)
	}
	s.wake.Broadcast()
	return nil
}

// receive notes that a stream's client says no more. With the lock.
func (c *h2) receive(s *stream, end error) {
	s.received = true
	if s.inErr == nil {
		s.inErr = end
	}
	s.wake.Broadcast()
	if s.sent {
		c.close(s, errStreamReset, false)
	}
}

// took gives the client room for so many bytes more. With the lock.
func (c *h2) took(n int64) {
	if c.unacked += n; c.unacked >= bodiesWindow/4 {
		c.gatherNumber(windowFrame, 0, uint32(c.unacked))
		c.recv += c.unacked
		c.unacked = 0
	}
}

// wasReset says whether what comes of a closed stream was under way when this side reset it. With the lock.
func (c *h2) wasReset(id uint32) bool {
	return slices.Contains(c.resets[:], id)
}

// wasOpen says whether a stream is known to have been there. With the lock.
func (c *h2) wasOpen(id uint32) bool {
	return slices.Contains(c.ends[:], id)
}

// remember notes how a stream ended. With the lock.
func (c *h2) remember(id uint32, mine bool) {
	if mine {
		c.resets[c.resetsAt%remembered] = id
		c.resetsAt++
	} else {
		c.ends[c.endsAt%remembered] = id
		c.endsAt++
	}
}

// headers takes the first piece of a header.
func (c *h2) headers(flags byte, id uint32, p []byte) error {
	if id%2 == 0 {
		return breach{code: protocolError}
	}
	p, ok := unpad(flags, p)
	if !ok {
		return breach{code: protocolError}
	}
	depends := false // on itself
	if flags&prioritised != 0 {
		if len(p) < 5 {
			return breach{code: frameSizeError}
		}
		depends = binary.BigEndian.Uint32(p)&^(1<<31) == id
		p = p[5:]
	}
	if flags&endOfHeaders == 0 {
		c.blockOf, c.blockIs = id, flags
		c.headBy = time.Now().Add(headerTimeout)
		return c.keep(p)
	}
	err := c.header(id, flags&endOfStream != 0, p)
	if err == nil && depends {
		return breach{id, protocolError}
	}
	return err
}

// keep holds a piece of a header.
func (c *h2) keep(p []byte) error {
	f := c.door.front
	if len(c.block)+len(p) > headerBytes {
		f.counters.http2.floods.Add(1)
		return breach{code: enhanceYourCalm}
	}
	if !f.heads.take(c.counts(), int64(len(p))) { // what is not read of it is missed by all that follow: it is the connection's end (RFC 9113, 4.3)
		f.counters.headsRefused.Add(1)
		return breach{code: enhanceYourCalm}
	}
	c.held += int64(len(p))
	c.block = append(c.block, p...)
	return nil
}

func (c *h2) endBlock() {
	c.door.front.heads.give(c.counts(), c.held)
	c.block, c.held, c.blockOf = nil, 0, 0
}

// continuation takes another piece.
func (c *h2) continuation(flags byte, p []byte) error {
	if c.blockOf == 0 {
		return breach{code: protocolError}
	}
	if err := c.keep(p); err != nil {
		return err
	}
	if flags&endOfHeaders == 0 {
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.spend() {
			return breach{code: enhanceYourCalm}
		}
		return nil
	}
	block, id := c.block, c.blockOf
	ends := c.blockIs&endOfStream != 0
	c.endBlock()
	return c.header(id, ends, block)
}
