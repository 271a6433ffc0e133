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

// filePiece is how much of a file is sent by one call, so that others' turns come between.
const filePiece = 1 << 20

// sendFile sends so many bytes of a file, from an offset on. The file's own position stays as it is: many may send it at once.
// It says how many it has sent, in any case.
func (r raw) sendFile(f *os.File, offset, length int64) (sent int64, err error) {
	from, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failed error
	controlled := from.Control(func(in uintptr) {
		err = r.Write(func(out uintptr) bool {
			for sent < length {
				n, err := unix.Sendfile(int(out), int(in), &offset, int(min(length-sent, filePiece)))
				sent += int64(max(n, 0))
				switch {
				case err == unix.EINTR:
				case err == unix.EAGAIN:
					return false
				case err != nil:
					failed = os.NewSyscallError("sendfile", err)
					return true
				case n == 0:
					failed = io.ErrUnexpectedEOF // it is shorter than was said
					return true
				}
			}
			return true
		})
	})
	for _, e := range []error{controlled, err, failed} {
		if e != nil {
			return sent, e
		}
	}
	return sent, nil
}
