//go:build linux && (amd64 || arm64)

package loop

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Supported says that there are loops on this system.
const Supported = true

// What is called here by RawSyscall waits for nothing, so the scheduler is not told of it, as package socket has it: that costs more than some of it does.

// poller is what the system tells of sockets (epoll(7)). It is in the poller of the runtime itself, so no thread waits for it.
type poller struct {
	file   *os.File // the descriptor
	raw    syscall.RawConn
	fd     int
	woken  int // an eventfd
	events []unix.EpollEvent
}

// event is what the system says of a descriptor.
type event struct {
	fd                 int
	number             uint32 // given when it was added
	readable, writable bool
	behind             behind
}

func newPoller() (p *poller, err error) {
	p = &poller{fd: -1, woken: -1, events: make([]unix.EpollEvent, events)}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if p.fd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err = unix.SetNonblock(p.fd, true); err != nil { // so that the runtime waits for it
		return nil, os.NewSyscallError("setnonblock", err)
	}
	if p.woken, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	if err = p.ctl(unix.EPOLL_CTL_ADD, p.woken, 0, unix.EPOLLIN); err != nil {
		return nil, err
	}
	p.file = os.NewFile(uintptr(p.fd), "epoll")
	if err = p.file.SetDeadline(time.Time{}); err != nil { // the runtime does not wait for it, which NewFile does not say
		return nil, fmt.Errorf("wait for epoll: %w", err)
	}
	p.raw, err = p.file.SyscallConn()
	return p, err
}

func (p *poller) close() {
	if p.file != nil {
		p.file.Close()
	} else if p.fd >= 0 {
		unix.Close(p.fd)
	}
	if p.woken >= 0 {
		unix.Close(p.woken)
	}
}

func (p *poller) ctl(op, fd int, number, on uint32) error {
	e := unix.EpollEvent{Events: on, Fd: int32(fd), Pad: int32(number)}
	if _, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(p.fd), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(&e)), 0, 0); errno != 0 {
		return os.NewSyscallError("epoll_ctl", errno)
	}
	return nil
}

// (RawSyscall here too, though the kernel has one lock for all who add to a poller that is in another, epnested_mutex: it is held for a walk from the one to the other. By
// Syscall a flow took 3 to 5 µs more, of 50 to 55.)

// add has everything be told of a connection, each time that it changes; that it can be written to only if room says so: it would be told of each at once.
func (p *poller) add(fd int, number uint32, room bool) error {
	return p.ctl(unix.EPOLL_CTL_ADD, fd, number, ofConn(room))
}

// change is add for one that was added. What there is now is told again.
func (p *poller) change(fd int, number uint32, room bool) error {
	return p.ctl(unix.EPOLL_CTL_MOD, fd, number, ofConn(room))
}

func ofConn(room bool) uint32 {
	on := uint32(unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLPRI | unix.EPOLLET)
	if room {
		on |= unix.EPOLLOUT
	}
	return on
}

// addListener has be told that there is something to be accepted. It is for one poller of each listener: these the runtime's poller waits for and no thread, so of many that wait
// for the same all would be woken (EPOLLEXCLUSIVE spares threads), and all but one find nothing.
func (p *poller) addListener(fd int, number uint32) error {
	return p.ctl(unix.EPOLL_CTL_ADD, fd, number, unix.EPOLLIN)
}

func (p *poller) remove(fd int) { p.ctl(unix.EPOLL_CTL_DEL, fd, 0, 0) }

// look is what the system has to say now.
func (p *poller) look(told []event) int {
	most := min(len(told), len(p.events))
	if most == 0 {
		return 0
	}
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.fd), uintptr(unsafe.Pointer(unsafe.SliceData(p.events))), uintptr(most), 0, 0, 0)
	if errno != 0 {
		return 0
	}
	for i, e := range p.events[:n] {
		if int(e.Fd) == p.woken {
			var count [8]byte
			unix.RawSyscall(unix.SYS_READ, uintptr(p.woken), uintptr(unsafe.Pointer(&count)), uintptr(len(count)))
			told[i] = event{fd: -1}
			continue
		}
		told[i] = event{
			fd: int(e.Fd), number: uint32(e.Pad),
			readable: e.Events&(unix.EPOLLIN|unix.EPOLLPRI|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0,
			writable: e.Events&(unix.EPOLLOUT|unix.EPOLLHUP|unix.EPOLLERR) != 0,
			behind:   behindOf(e.Events),
		}
	}
	return int(n)
}

// behindOf is what events say of what is behind what can be read. Where the other end has ended (EPOLLRDHUP), all that it sent before is there.
func behindOf(events uint32) behind {
	switch {
	case events&(unix.EPOLLPRI|unix.EPOLLHUP|unix.EPOLLERR) != 0:
		return anything
	case events&unix.EPOLLRDHUP != 0:
		return itsEnd
	}
	return nothing
}

// wait is look that waits until the system has something to say. With an error nothing can be waited for any more.
func (p *poller) wait(told []event) (n int, err error) {
	err = p.raw.Read(func(uintptr) bool {
		n = p.look(told)
		return n > 0
	})
	return n, err
}

// yield is look, after others have had the processor and what the runtime waits for has come up.
func (p *poller) yield(told []event) (n int) {
	first := true
	p.raw.Read(func(uintptr) bool {
		if first {
			first = false
			p.wake() // from now on: what came before tells the runtime nothing
			return false
		}
		n = p.look(told)
		return true
	})
	return n
}

// wake ends a wait. It may be called on any goroutine.
func (p *poller) wake() {
	one := [8]byte{}
	binary.NativeEndian.PutUint64(one[:], 1)
	unix.RawSyscall(unix.SYS_WRITE, uintptr(p.woken), uintptr(unsafe.Pointer(&one)), uintptr(len(one)))
}

// listening is a listener's socket; not ok: it is none.
func listening(l net.Listener) (fd int, ok bool) {
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return -1, false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return -1, false
	}
	err2 := raw.Control(func(own uintptr) {
		// What is accepted has it too: what is sent does not wait for more.
		err = unix.SetsockoptInt(int(own), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		fd = int(own)
	})
	return fd, err == nil && err2 == nil
}

// accept takes a connection; errAgain: there is none.
func accept(listener int) (fd int, from netip.AddrPort, err error) {
	var at unix.RawSockaddrAny
	for {
		size := uint32(unix.SizeofSockaddrAny)
		n, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(listener), uintptr(unsafe.Pointer(&at)), uintptr(unsafe.Pointer(&size)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
		switch errno {
		case 0:
			return int(n), addrPort(&at), nil
		case unix.EINTR, unix.ECONNABORTED:
		case unix.EAGAIN:
			return -1, from, errAgain
		default:
			return -1, from, os.NewSyscallError("accept4", errno)
		}
	}
}

func addrPort(at *unix.RawSockaddrAny) netip.AddrPort {
	switch at.Addr.Family {
	case unix.AF_INET:
		four := (*unix.RawSockaddrInet4)(unsafe.Pointer(at))
		return netip.AddrPortFrom(netip.AddrFrom4(four.Addr), swapped(four.Port))
	case unix.AF_INET6:
		six := (*unix.RawSockaddrInet6)(unsafe.Pointer(at))
		return netip.AddrPortFrom(netip.AddrFrom16(six.Addr).Unmap(), swapped(six.Port))
	}
	return netip.AddrPort{}
}

// swapped is a port between the network's order and the machine's.
func swapped(port uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], port)
	return binary.BigEndian.Uint16(b[:])
}

// connect begins to connect.
func connect(to netip.AddrPort) (fd int, err error) {
	addr := to.Addr().Unmap()
	family := unix.AF_INET
	if addr.Is6() {
		family = unix.AF_INET6
	}
	n, _, errno := unix.RawSyscall(unix.SYS_SOCKET, uintptr(family), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if errno != 0 {
		return -1, os.NewSyscallError("socket", errno)
	}
	fd = int(n)
	if addr.Is4() {
		at := unix.RawSockaddrInet4{Family: unix.AF_INET, Port: swapped(to.Port()), Addr: addr.As4()}
		_, _, errno = unix.RawSyscall(unix.SYS_CONNECT, n, uintptr(unsafe.Pointer(&at)), unsafe.Sizeof(at))
	} else {
		at := unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: swapped(to.Port()), Addr: addr.As16()}
		_, _, errno = unix.RawSyscall(unix.SYS_CONNECT, n, uintptr(unsafe.Pointer(&at)), unsafe.Sizeof(at))
	}
	if errno != 0 && errno != unix.EINPROGRESS && errno != unix.EINTR {
		closeSocket(fd, false)
		return -1, os.NewSyscallError("connect", errno)
	}
	return fd, nil
}

// isConnected says whether a socket that is connecting stands already; not so: that is not known, or it has failed.
func isConnected(fd int) bool {
	_, err := nameOf(unix.SYS_GETPEERNAME, fd)
	return err == nil
}

// writable says what the poller will, of one socket, if it has not yet.
func writable(fd int) (is, hasty bool) {
	one, now := unix.PollFd{Fd: int32(fd), Events: unix.POLLOUT | unix.POLLRDHUP}, unix.Timespec{}
	n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&one)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0)
	return errno == 0 && n > 0, one.Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
}

// standing says why a socket that was connecting is not connected; hasty: there may be an error. One to itself is not: where a port of this machine that nobody listens
// on is connected to from that very port, TCP takes it (RFC 9293, 3.5, figure 7), and package net does not either.
func standing(fd int, to netip.AddrPort, hasty bool) error {
	if hasty {
		if errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || errno != 0 {
			if err == nil {
				err = syscall.Errno(errno)
			}
			return os.NewSyscallError("connect", err)
		}
	}
	local, err := nameOf(unix.SYS_GETSOCKNAME, fd)
	if err != nil || local.Port() != to.Port() {
		return err
	}
	remote, err := nameOf(unix.SYS_GETPEERNAME, fd)
	if err == nil && local == remote {
		err = os.NewSyscallError("connect", unix.ECONNREFUSED)
	}
	return err
}

func localOf(fd int) (netip.AddrPort, error) { return nameOf(unix.SYS_GETSOCKNAME, fd) }

func nameOf(call uintptr, fd int) (netip.AddrPort, error) {
	var at unix.RawSockaddrAny
	size := uint32(unix.SizeofSockaddrAny)
	if _, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(&at)), uintptr(unsafe.Pointer(&size))); errno != 0 {
		return netip.AddrPort{}, os.NewSyscallError("getsockname", errno)
	}
	return addrPort(&at), nil
}

func readSocket(fd int, b []byte) (int, error) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_DONTWAIT, 0, 0)
		switch {
		case errno == unix.EINTR:
		case errno == unix.EAGAIN:
			return 0, errAgain
		case errno != 0:
			return 0, os.NewSyscallError("read", errno)
		case n == 0:
			return 0, io.EOF
		default:
			return int(n), nil
		}
	}
}

// writeSocket writes what there is room for; more has a part of a packet wait for what follows, or for the end.
func writeSocket(fd int, b []byte, more bool) (int, error) {
	flags := uintptr(unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL)
	if more {
		flags |= unix.MSG_MORE
	}
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), flags, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, nil
		default:
			return 0, os.NewSyscallError("write", errno)
		}
	}
}

func endSocket(fd int) error {
	if _, _, errno := unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0); errno != 0 {
		return os.NewSyscallError("shutdown", errno)
	}
	return nil
}

// closeSocket closes one, so that the other end sees a reset if it is to.
func closeSocket(fd int, reset bool) {
	if reset {
		unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
	unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0)
}

func noDelay(fd int) { unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) }

// keepAlive has the kernel ask whether the other end is still there, as package net has it.
func keepAlive(fd int) {
	for _, option := range [...][3]int{
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1}, {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15}, {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15}, {unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 9},
	} {
		unix.SetsockoptInt(fd, option[0], option[1], option[2])
	}
}

// kernelCount is how many bytes a socket has received, and of those it sent how many have arrived.
func kernelCount(fd int) int64 {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0
	}
	return int64(info.Bytes_received + info.Bytes_acked)
}

// connOf is a connection of package net with a copy of a socket.
func connOf(fd int) (*net.TCPConn, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return become(dup, false)
}

// become is a connection of package net in the place of a socket, which is closed where that cannot be, so that the other end sees a reset if it is to. One descriptor
// more is needed for the moment.
func become(fd int, reset bool) (*net.TCPConn, error) {
	file := os.NewFile(uintptr(fd), "tcp")
	defer file.Close()
	c, err := net.FileConn(file)
	if err != nil {
		if reset {
			unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		}
		return nil, err
	}
	return c.(*net.TCPConn), nil
}
