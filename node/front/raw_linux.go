package front

import (
	"errors"
	"io"
	"math"
	"net"
	"os"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/perigee-net/perigee/cluster/socket"
)

// raw reads and writes a TCP connection below package net: it waits for bytes without a buffer to put them in, and sends files from
// an offset of its own.
type raw struct{ syscall.RawConn }

func rawOf(c *net.TCPConn) (raw, bool) {
	r, ok := socket.Of(c)
	return raw{r}, ok
}

// filePiece is how much of a file is sent by one call, so that others' turns come between.
const filePiece = 1 << 20

// some sends as much as the connection takes, and says whether that is all there is to do. The file's own position stays as it is: many
// may send it at once. The head waits for the first of the file, for a packet for it alone costs up to a fifth of what 100 KiB take; then
// the kernel is told at the end that this was all: see limited. Before a file on disk it goes by itself where the connection is paced.
func (t *transfer) some(connection uintptr) bool {
	if t.paced == unknownPace {
		t.paced = notPaced
		if by, err := unix.GetsockoptString(int(connection), unix.IPPROTO_TCP, unix.TCP_CONGESTION); err == nil && strings.HasPrefix(by, "bbr") {
			t.paced = isPaced
		}
	}
	write := socket.WriteMore
	if t.paced == isPaced && !t.atOnce {
		write = socket.Write
	}
	for len(t.head) > 0 {
		n, err := write(connection, t.head)
		if err != nil {
			t.err = err
			return true
		}
		if n == 0 {
			return t.waits()
		}
		t.head = t.head[n:]
		t.sent += int64(n)
	}
	if t.lease == nil {
		return t.fromFile(connection)
	}
	rest, file, ok := t.lease.Hold(t.offset - t.start)
	if !ok {
		t.err = errTakenBack
		return true
	}
	defer func() { t.lease.Release(t.offset - t.start) }()
	if file {
		return t.fromFile(connection)
	}
	for len(rest) > 0 {
		n, err := socket.Write(connection, rest)
		if t.err = err; n == 0 {
			return err != nil
		}
		rest = rest[n:]
		t.sent, t.offset, t.left = t.sent+int64(n), t.offset+int64(n), t.left-int64(n)
	}
	return true
}

var errTakenBack = errors.New("the client was too slow for how much there was of such")

// waits is for when the connection takes no more: from then on the body is under a lease. It says that not all is done.
func (t *transfer) waits() bool {
	if t.lent != nil && t.lease == nil {
		t.lease = t.lent.Lease(t.offset-t.start, t.visit.counts())
	}
	return false
}

// fromFile sends of the file as some does.
func (t *transfer) fromFile(connection uintptr) bool {
	in := int(t.file.Fd())
	for t.left > 0 {
		n, err := t.sendFile(int(connection), in, int(min(t.left, filePiece)))
		t.sent += int64(max(n, 0))
		t.left -= int64(max(n, 0))
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return t.waits()
		case err != nil:
			t.err = os.NewSyscallError("sendfile", err)
			return true
		case n == 0:
			t.err = io.ErrUnexpectedEOF // it is shorter than was said
			return true
		}
	}
	if t.paced == isPaced && t.atOnce {
		limited(connection)
	}
	return true
}

// limited tells the kernel that there is nothing else to be sent for now, by sending nothing: it looks then whether what was sent is limited
// by that, and not by the path. Else it does so only when the next answer is sent. On a short path the beginning of an answer is acknowledged while
// the rest is being sent, so its rate would be taken for what the path can carry, and each answer from then on be spaced out by a timer,
// which in a virtual machine costs up to as much as all else.
func limited(connection uintptr) { socket.Write(connection, nil) }

// shortPiece is up to how much of a file in memory is sent by a call that the scheduler is not told of (see package socket). That takes
// about as long as the scheduler waits for a call before it gives others the thread's place, which costs more.
const shortPiece = 128 << 10

// sendFile is unix.Sendfile.
func (t *transfer) sendFile(to, from, n int) (int, error) {
	if n > shortPiece || !t.atOnce || math.MaxUint>>32 == 0 { // there the call takes another offset
		return unix.Sendfile(to, from, &t.offset, n)
	}
	sent, _, err := unix.RawSyscall6(unix.SYS_SENDFILE, uintptr(to), uintptr(from), uintptr(unsafe.Pointer(&t.offset)), uintptr(n), 0, 0)
	if err != 0 {
		return -1, err
	}
	return int(sent), nil
}
