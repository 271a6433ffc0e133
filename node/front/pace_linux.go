package front

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// controlOf is the name of a TCP socket's congestion control; empty: it has none.
func controlOf(socket any) (name string) {
	onSocket(socket, func(fd int) (err error) {
		name, err = unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
		return err
	})
	return name
}

// setControl gives a TCP socket another, and says whether it has it.
func setControl(socket any, name string) bool {
	return onSocket(socket, func(fd int) error { return unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, name) })
}

func onSocket(socket any, do func(fd int) error) bool {
	s, ok := socket.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return false
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = do(int(fd)) })
	return err == nil && failed == nil
}
