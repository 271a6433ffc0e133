package datagram

import (
	"net/netip"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ControlSize is what is kept for the control messages of a datagram: which address was asked, and where it is to be cut.
const ControlSize = 64

// Control is room for control messages, as the kernel wants it to lie.
type Control [ControlSize / 8]uint64

// Bytes is the room as bytes.
func (c *Control) Bytes() *[ControlSize]byte { return (*[ControlSize]byte)(unsafe.Pointer(c)) }

// Message is struct mmsghdr.
type Message struct {
	Header unix.Msghdr
	N      uint32 // bytes that were read, or written
}

// Receive reads as many datagrams as are there. It waits for nothing, so the scheduler is not told of it: to hand the processor over and back was a
// tenth of a DNS query. What has to stop all goroutines waits at most for so many datagrams on their way through the kernel.
func Receive(fd uintptr, in []Message) (n int, err syscall.Errno) {
	r, _, err := unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&in[0])), uintptr(len(in)), unix.MSG_DONTWAIT, 0, 0)
	return int(r), err
}

// Send writes as many datagrams as the system takes, in the manner of Receive.
func Send(fd uintptr, out []Message) (n int, err syscall.Errno) {
	r, _, err := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&out[0])), uintptr(len(out)), unix.MSG_DONTWAIT, 0, 0)
	return int(r), err
}

// Tell has the kernel tell which address was asked: a socket of all addresses would answer from the address of the route back, which need not be that
// one; an anycast address is never the first of a machine. On a socket of both families those of IPv4 are told as mapped into IPv6.
func Tell(fd uintptr) error {
	domain, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
	switch {
	case err != nil:
		return err
	case domain == unix.AF_INET:
		return unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_PKTINFO, 1)
	default:
		return unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1)
	}
}

// Cuts says whether the kernel cuts datagrams of this socket (UDP_SEGMENT, udp(7)).
func Cuts(fd uintptr) bool {
	_, err := unix.GetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT)
	return err == nil
}

// Turn makes of the control message that tells where a datagram came the one by which another is sent from there.
func Turn(control *Control) {
	header := (*unix.Cmsghdr)(unsafe.Pointer(control))
	data := control.Bytes()[unix.CmsgLen(0):]
	switch {
	case header.Level == unix.SOL_IP && header.Type == unix.IP_PKTINFO:
		clear(data[:4])           // the interface: by the route
		copy(data[4:8], data[8:]) // from the address it was sent to
	case header.Level == unix.SOL_IPV6 && header.Type == unix.IPV6_PKTINFO:
		if !(data[0] == 0xfe && data[1]&0xc0 == 0x80) { // a link-local address is one of an interface
			clear(data[16:20])
		}
	}
}

// Cut appends to n bytes of control messages that what is sent is to be cut into datagrams of a size, and returns how many bytes they are now.
func Cut(control *Control, n, size int) int {
	message := (*unix.Cmsghdr)(unsafe.Pointer(&control[n/8]))
	message.Level, message.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	message.SetLen(unix.CmsgLen(2))
	*(*uint16)(unsafe.Add(unsafe.Pointer(message), unix.CmsgLen(0))) = uint16(size)
	return n + unix.CmsgSpace(2)
}

// From is who sent a datagram, as the kernel names him, not mapped into IPv6.
func From(name *unix.RawSockaddrInet6) netip.AddrPort {
	port := (*[2]byte)(unsafe.Pointer(&name.Port)) // of either family it stands there, as in messages
	var from netip.Addr
	if name.Family == unix.AF_INET {
		from = netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(name)).Addr)
	} else if from = netip.AddrFrom16(name.Addr).Unmap(); from.Is6() && name.Scope_id != 0 {
		from = from.WithZone(strconv.FormatUint(uint64(name.Scope_id), 10))
	}
	return netip.AddrPortFrom(from, uint16(port[0])<<8|uint16(port[1]))
}
