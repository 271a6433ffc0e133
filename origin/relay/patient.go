package relay

import (
	"errors"
	"io"
	"net"
	"syscall"

	"github.com/perigee-net/perigee/cluster/socket"
)

// chunk is bytes of a direction on their way, in a buffer of the pool, or in what the conn has lent that they are to be written to.
type chunk struct {
	room *[largeBuffer]byte
	lent any
	n    int
}

// lender is a conn that gives out room for what is to be written to it next, because it would copy that else, as flows over the backbone do that outlive
// their path.
type lender interface {
	Lend() (lent any, room []byte)
	// AwaitTurn waits until what is lent next would be sent as soon as it is written. It is called before much is to be read for that, which waits where it is. Others may
	// have to wait until WriteLent is called.
	AwaitTurn()
	// WriteLent writes the first n bytes of what was lent, and has it back.
	WriteLent(lent any, n int) (int, error)
}

// peeker is a conn of which is heard that bytes have come before there is room for them, as streams of the backbone are. Peek is as Read, and
// takes nothing: an error but that of a deadline stays.
type peeker interface {
	io.Reader
	Peek(b []byte) (int, error)
}

// patient reads from a conn so that it has a buffer only for what has come: a flow that is silent holds none.
type patient interface{ next(q *quiet) (chunk, error) }

// patiently is a conn as it is read so; nil: it cannot be. What that takes is made anew, so that a flow that rests does not hold it.
func patiently(src io.Reader) patient {
	if p, ok := src.(peeker); ok {
		return peekedSource{p}
	}
	if c, ok := src.(net.Conn); ok {
		if raw, ok := socket.Of(c); ok {
			s := &kernelSource{raw: raw}
			s.taking = s.take
			return s
		}
	}
	return nil
}

// peekedSource takes a buffer when it is heard that bytes have come.
type peekedSource struct{ peeker }

func (p peekedSource) next(q *quiet) (chunk, error) {
	var one [1]byte
	q.reads()
	n, err := p.Peek(one[:])
	if q.hasRead(); n == 0 && err != nil {
		return chunk{}, err
	}
	c := chunk{room: buffers.Get().(*[largeBuffer]byte)}
	c.n, err = p.Read(c.room[:])
	return c, err
}

// kernelSource takes a buffer when the kernel may have bytes, and gives it back where it has none after all.
type kernelSource struct {
	raw    syscall.RawConn
	taking func(fd uintptr) bool // take
	from   lender                // of the buffers; nil: they are of the pool
	came   chunk
	err    error
	more   bool // is there, most likely
}

func (s *kernelSource) next(q *quiet) (c chunk, err error) {
	awaits := s.more && !q.calledOut()
	if awaits {
		s.from.AwaitTurn()
	}
	q.reads()
	err = s.raw.Read(s.taking) // or it is closed, or beyond its deadline
	q.hasRead()
	if awaits && err != nil { // nothing is written in the turn
		lent, _ := s.from.Lend()
		s.from.WriteLent(lent, 0)
	}
	c, s.came = s.came, chunk{}
	if err == nil {
		err = s.err
	}
	return c, err
}

func (s *kernelSource) take(fd uintptr) (done bool) {
	if s.from != nil {
		lent, room := s.from.Lend()
		n, again, err := socket.Read(fd, room)
		s.more = n == len(room)
		if again {
			s.from.WriteLent(lent, 0)
			return false
		}
		s.came, s.err = chunk{lent: lent, n: n}, err
		return true
	}
	room := buffers.Get().(*[largeBuffer]byte)
	n, again, err := socket.Read(fd, room[:])
	if again {
		buffers.Put(room)
		return false
	}
	s.came, s.err = chunk{room: room, n: n}, err
	return true
}

// kernelSink writes to a socket as net does, for less.
type kernelSink struct {
	raw     syscall.RawConn
	putting func(fd uintptr) bool // put
	left    []byte
	err     error
}

// atOnce is a conn as it is written to for less, where it can be.
func atOnce(dst io.Writer) io.Writer {
	if c, ok := dst.(net.Conn); ok {
		if raw, ok := socket.Of(c); ok {
			s := &kernelSink{raw: raw}
			s.putting = s.put
			return s
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
	lends, _ := dst.(lender)
	if kernel, is := src.(*kernelSource); is {
		kernel.from = lends
	}
	dst = atOnce(dst)
	for d.written.Load() < enough {
		c, readErr := src.next(&d.quiet)
		var w int
		switch {
		case c.lent != nil:
			d.read.Add(int64(c.n))
			w, err = lends.WriteLent(c.lent, c.n)
		case c.n > 0:
			d.read.Add(int64(c.n))
			w, err = dst.Write(c.room[:c.n])
		}
		d.written.Add(int64(w))
		if c.room != nil {
			buffers.Put(c.room)
		}
		switch {
		case err != nil:
			return true, err
		case readErr == io.EOF:
			return false, nil
		case readErr != nil && d.quiet.isNudge(readErr):
			return false, errRests
		case readErr != nil:
			return false, readErr
		}
	}
	return false, errMore
}
