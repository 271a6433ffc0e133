package relay

import (
	"errors"
	"io"
	"net"
	"syscall"

	"github.com/perigee-net/perigee/cluster/socket"
)

// chunk is bytes of a direction on their way, in a buffer of the pool.
type chunk struct {
	room *[largeBuffer]byte
	n    int
}

// peeker is a conn of which is heard that bytes have come before there is room for them, as streams of the backbone are. Peek is as Read, and
// takes nothing.
type peeker interface {
	io.Reader
	Peek(b []byte) (int, error)
}

// patient reads from a conn so that it has a buffer only for what has come: a flow that is silent holds none.
type patient interface{ next() (chunk, error) }

// patiently is a conn as it is read so; room is for what that takes. Nil: it cannot be.
func patiently(src io.Reader, room *kernelSource) patient {
	if p, ok := src.(peeker); ok {
		return peekedSource{p}
	}
	if c, ok := src.(net.Conn); ok {
		if raw, ok := socket.Of(c); ok {
			room.raw, room.taking = raw, room.take
			return room
		}
	}
	return nil
}

// peekedSource takes a buffer when it is heard that bytes have come.
type peekedSource struct{ peeker }

func (p peekedSource) next() (chunk, error) {
	var one [1]byte
	if n, err := p.Peek(one[:]); n == 0 && err != nil {
		return chunk{}, err
	}
	c := chunk{room: buffers.Get().(*[largeBuffer]byte)}
	var err error
	c.n, err = p.Read(c.room[:])
	return c, err
}

// kernelSource takes a buffer when the kernel may have bytes, and gives it back where it has none after all.
type kernelSource struct {
	raw    syscall.RawConn
	taking func(fd uintptr) bool // take
	came   chunk
	err    error
}

func (s *kernelSource) next() (c chunk, err error) {
	err = s.raw.Read(s.taking) // or it is closed, or beyond its deadline
	c, s.came = s.came, chunk{}
	if err == nil {
		err = s.err
	}
	return c, err
}

func (s *kernelSource) take(fd uintptr) (done bool) {
	room := buffers.Get().(*[largeBuffer]byte)
	n, again, err := socket.Read(fd, room[:])
	if again {
		buffers.Put(room)
		return false
	}
	s.came, s.err = chunk{room, n}, err
	return true
}

// kernelSink writes to a socket as net does, for less.
type kernelSink struct {
	raw     syscall.RawConn
	putting func(fd uintptr) bool // put
	left    []byte
	err     error
}

// atOnce is a conn as it is written to for less, where it can be; room is for what that takes.
func atOnce(dst io.Writer, room *kernelSink) io.Writer {
	if c, ok := dst.(net.Conn); ok {
		if raw, ok := socket.Of(c); ok {
			room.raw, room.putting = raw, room.put
			return room
		}
	}
	return dst
}

func (s *kernelSink) Write(b []byte) (int, error) {
	s.left = b
	err := s.raw.Write(s.putting)
	n := len(b) - len(s.left)
	s.left = nil
	if err == nil {
		err = s.err
	}
	return n, err
}

func (s *kernelSink) put(fd uintptr) (done bool) {
	n, err := socket.Write(fd, s.left)
	s.left, s.err = s.left[n:], err
	return err != nil || len(s.left) == 0
}

// errMore is that there is more than was to be copied.
var errMore = errors.New("more is to come")

// copyPatiently copies to the end of what is read patiently, as copyAll does, or until it has copied enough bytes, and then the error is errMore.
func copyPatiently(dst io.Writer, src patient, d *direction, enough int64) (writing bool, err error) {
	dst = atOnce(dst, &d.sink)
	for d.written.Load() < enough {
		c, readErr := src.next()
		if c.n > 0 {
			d.read.Add(int64(c.n))
			var w int
			w, err = dst.Write(c.room[:c.n])
			d.written.Add(int64(w))
		}
		if c.room != nil {
			buffers.Put(c.room)
		}
		switch {
		case err != nil:
			return true, err
		case readErr == io.EOF:
			return false, nil
		case readErr != nil:
			return false, readErr
		}
	}
	return false, errMore
}
