package http1

// Chunks finds the end of a chunked body (RFC 9112, 7.1) in pieces of it, however they are cut. The zero value is before
// the first chunk. It is strict: lines end by CRLF, a size is hexadecimal digits alone, with extensions behind a semicolon.
type Chunks struct {
	state chunkState
	left  int64 // of the chunk's data
	line  int   // bytes of the size's line, or of all trailers
}

type chunkState uint8

const (
	size chunkState = iota
	extension
	sizeEnd // after the CR
	data
	dataCR
	dataLF
	trailer // at the beginning of a line
	trailerLine
	trailerEnd // after the CR of a line
	lastEnd    // after the CR of the empty line
	ended
	malformed // for good
)

const (
	// maxChunkLine is how long a chunk's size and extensions may be; more is malformed.
	maxChunkLine = 256
	// maxTrailers is how long the fields behind the last chunk may be, together; more is malformed.
	maxTrailers = 16 << 10
)

// Next says how many of these bytes belong to the body, and whether it ends behind them. What is malformed is not ok:
// n bytes before it were well, and nothing behind it is.
func (c *Chunks) Next(b []byte) (n int, end, ok bool) {
	for n < len(b) && c.state != ended {
		if c.state == data {
			skip := min(c.left, int64(len(b)-n))
			c.Skip(int(skip))
			n += int(skip)
			continue
		}
		if c.state == malformed || !c.next(b[n]) {
			c.state = malformed
			return n, false, false
		}
		n++
	}
	return n, c.state == ended, true
}

func (c *Chunks) next(b byte) bool {
	c.line++
	limit := maxChunkLine
	if c.state >= trailer {
		limit = maxTrailers
	}
	if c.line > limit {
		return false
	}
	switch c.state {
	case size:
		switch {
		case class[b]&isHex != 0:
			if c.line > 15 { // an int64 holds so many
				return false
			}
			c.left = c.left<<4 | int64(hex(b))
			return true
		case c.line == 1:
			return false
		case b == ';':
			c.state = extension
			return true
		}
		c.state = sizeEnd
		return b == '\r'
	case extension:
		if b == '\r' {
			c.state = sizeEnd
			return true
		}
		return b == '\t' || b >= ' ' && b != 0x7f
	case sizeEnd:
		if c.line, c.state = 0, data; c.left == 0 {
			c.state = trailer
		}
		return b == '\n'
	case dataCR:
		c.state = dataLF
		return b == '\r'
	case dataLF:
		c.state, c.line = size, 0
		return b == '\n'
	case trailer:
		switch {
		case b == '\r':
			c.state = lastEnd
		case class[b]&inToken != 0:
			c.state = trailerLine
		default: // a line that continues the one before, among others
			return false
		}
		return true
	case trailerLine:
		if b == '\r' {
			c.state = trailerEnd
			return true
		}
		return b == '\t' || b >= ' ' && b != 0x7f
	case trailerEnd:
		c.state = trailer
		return b == '\n'
	}
	c.state = ended
	return b == '\n'
}

func hex(b byte) byte {
	if b <= '9' {
		return b - '0'
	}
	return b | 0x20 - 'a' + 10
}
