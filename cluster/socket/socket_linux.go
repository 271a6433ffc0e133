//go:build linux && !race && !386

package socket

import (
	"syscall"
	"unsafe"
)

const (
	supported = true
	peek      = syscall.MSG_PEEK
	more      = 0x8000 // MSG_MORE
)

// receive and send do not tell the scheduler: they return at once, and to be taken for a call that waits costs more than what is waited
// for. Where the system gives the core to another process meanwhile, so would it in the midst of any code.
func receive(fd uintptr, b []byte, flags int) (int, syscall.Errno) {
	n, _, err := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), uintptr(flags|syscall.MSG_DONTWAIT), 0, 0)
	return int(n), err
}

func send(fd uintptr, b []byte, flags int) (int, syscall.Errno) {
	n, _, err := syscall.RawSyscall6(syscall.SYS_SENDTO, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), uintptr(flags|syscall.MSG_NOSIGNAL|syscall.MSG_DONTWAIT), 0, 0)
	return int(n), err
}
