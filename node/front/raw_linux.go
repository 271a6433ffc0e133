package front

import (
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// raw reads and writes a TCP connection below package net: it waits for bytes without a buffer to put them in, and sends files from
// an offset of its own.
type raw struct{ syscall.RawConn }

func rawOf(c syscall.Conn) (raw, bool) {
	r, err := c.SyscallConn()
	return raw{r}, err == nil
}

// readNow reads what is there. If nothing is, again is true.
func readNow(fd uintptr, b []byte) (n int, again bool, err error) {
	for {
		n, err = syscall.Read(int(fd), b)
		switch {
		case err == syscall.EINTR:
		case err == syscall.EAGAIN:
			return 0, true, nil
		case err != nil:
			return 0, false, os.NewSyscallError("read", err)
		case n == 0:
			return 0, false, io.EOF
		default:
			return n, false, nil
		}
	}
}

// transfer is an answer that is being sent whose body is in a file: what of it is still to be sent, how much was, and what came in the
// way.
type transfer struct {
	head         []byte
	file         *os.File
	offset, left int64
	sent         int64
	err          error
}

// filePiece is how much of a file is sent by one call, so that others' turns come between.
const filePiece = 1 << 20

// some sends as much as the connection takes, and says whether that is all there is to do. The file's own position stays as it is: many
// may send it at once. The head waits for the first of the file: a packet for it alone costs a tenth of what 100 KiB take.
func (t *transfer) some(connection uintptr) bool {
	for len(t.head) > 0 {
		n, err := unix.SendmsgN(int(connection), t.head, nil, nil, unix.MSG_MORE|unix.MSG_NOSIGNAL)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return false
		case err != nil:
			t.err = os.NewSyscallError("sendmsg", err)
			return true
		}
		t.head = t.head[max(n, 0):]
		t.sent += int64(max(n, 0))
	}
	in := int(t.file.Fd())
	for t.left > 0 {
		n, err := unix.Sendfile(int(connection), in, &t.offset, int(min(t.left, filePiece)))
		t.sent += int64(max(n, 0))
		t.left -= int64(max(n, 0))
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return false
		case err != nil:
			t.err = os.NewSyscallError("sendfile", err)
			return true
		case n == 0:
			t.err = io.ErrUnexpectedEOF // it is shorter than was said
			return true
		}
	}
	return true
}
