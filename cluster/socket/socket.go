// Package socket does with a TCP socket what can be done at once, below package net: it waits for nothing, and who calls it waits by package
// net, which knows when there is more to be done. It holds nothing.
//
// When things break: what the system says is the error, and the end of a stream io.EOF; an interrupted call is made again.
package socket

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
)

// Of is the socket of a TCP connection; not ok: it has none, or the system none that can be asked at once.
func Of(c net.Conn) (raw syscall.RawConn, ok bool) {
	tcp, ok := c.(*net.TCPConn)
	if !ok || !supported {
		return nil, false
	}
	raw, err := tcp.SyscallConn()
	return raw, err == nil
}

// Lacks is what a call of a socket fails with for what this machine lacks, and not for anything of the other end: no port is left toward it (but see Lacking), no file
// descriptor, no memory of the kernel's.
func Lacks() []syscall.Errno {
	return []syscall.Errno{syscall.EADDRNOTAVAIL, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ENOSPC} // the last is of epoll's watches
}

// Lacking says that an error of what was to reach an address is one of those: nothing follows from it for whom that is. EADDRNOTAVAIL is said of ports and of the address
// to go from alike, which a machine without IPv6 has not for one of those: it has no way there then, which is no lack, as with ENETUNREACH. So that is asked of it.
func Lacking(err error, to netip.AddrPort) bool {
	return lacking(err, func() error { return reach(to) })
}

func lacking(err error, reach func() error) bool {
	errno, is := errors.AsType[syscall.Errno](err)
	return is && slices.Contains(Lacks(), errno) && (errno != syscall.EADDRNOTAVAIL || !errors.Is(reach(), errno))
}

// reach says why there is no way from here to an address, as far as this machine knows: nothing is sent. The ports are others than those of TCP, and where none of them is left
// that is EAGAIN.
func reach(to netip.AddrPort) error {
	if !to.IsValid() {
		return nil
	}
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err == nil {
		conn.Close()
	}
	return err
}

// Came says whether a read would return at once, with bytes, an end or an error.
func Came(fd uintptr) bool {
	var one [1]byte
	for {
		switch _, err := receive(fd, one[:], peek); err {
		case syscall.EINTR:
		case syscall.EAGAIN:
			return false
		default:
			return true
		}
	}
}

// Write writes as much as there is room for.
func Write(fd uintptr, b []byte) (int, error) { return write(fd, b, 0) }

// WriteMore is Write where more is to follow at once, which this may wait for.
func WriteMore(fd uintptr, b []byte) (int, error) { return write(fd, b, more) }

func write(fd uintptr, b []byte, flags int) (int, error) {
	for {
		switch n, err := send(fd, b, flags); err {
		case 0:
			return n, nil
		case syscall.EINTR:
		case syscall.EAGAIN:
			return 0, nil
		default:
			return 0, os.NewSyscallError("write", err)
		}
	}
}

// Read reads what is there. If nothing is, again is true.
func Read(fd uintptr, b []byte) (n int, again bool, err error) {
	for {
		n, errno := receive(fd, b, 0)
		switch {
		case errno == syscall.EINTR:
		case errno == syscall.EAGAIN:
			return 0, true, nil
		case errno != 0:
			return 0, false, os.NewSyscallError("read", errno)
		case n == 0 && len(b) > 0:
			return 0, false, io.EOF
		default:
			return n, false, nil
		}
	}
}
