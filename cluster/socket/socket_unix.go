//go:build unix && (!linux || race || 386)

package socket

import "syscall"

const (
	supported = true
	peek      = syscall.MSG_PEEK
	more      = 0
)

// receive and send are package syscall's, which the race detector knows.
func receive(fd uintptr, b []byte, flags int) (n int, errno syscall.Errno) {
	var err error
	if flags == 0 {
		n, err = syscall.Read(int(fd), b)
	} else {
		n, _, err = syscall.Recvfrom(int(fd), b, flags)
	}
	errno, _ = err.(syscall.Errno)
	return n, errno
}

func send(fd uintptr, b []byte, _ int) (n int, errno syscall.Errno) {
	n, err := syscall.Write(int(fd), b)
	errno, _ = err.(syscall.Errno)
	return n, errno
}
