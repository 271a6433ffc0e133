package relay

import (
	"cmp"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// spliced says whether the kernel can move bytes between two conns. A direction that is spliced holds a pipe, so two descriptors more.
func spliced(a, b net.Conn) bool {
	_, is := a.(*net.TCPConn)
	_, too := b.(*net.TCPConn)
	return is && too
}

// pipeSize is how many bytes are between two sockets at most, as package net has it: it is the most that anybody may have (pipe(7), pipe-max-size).
const pipeSize = 1 << 20

// move has the kernel move bytes to the end of src, in turns: a flow that waits for one of its sockets has none. Where there is no pipe, for descriptors are lacking, it copies.
func move(dst, src *net.TCPConn, turns *Turns) (n int64, err error) {
	if turns == nil {
		return dst.ReadFrom(src)
	}
	from, err := src.SyscallConn()
	if err != nil {
		return 0, err
	}
	to, err := dst.SyscallConn()
	if err != nil {
		return 0, err
	}
	m := &mover{turn: turn{of: turns}}
	if err := unix.Pipe2(m.pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return dst.ReadFrom(src)
	}
	defer unix.Close(m.pipe[0])
	defer unix.Close(m.pipe[1])
	unix.FcntlInt(uintptr(m.pipe[1]), unix.F_SETPIPE_SZ, pipeSize) // or it is smaller
	defer m.turn.end()
	fill, drain := m.fill, m.drain
	for {
		if err := from.Read(fill); err != nil || m.err != nil || m.held == 0 {
			return m.moved, cmp.Or(err, m.err)
		}
		for m.held > 0 {
			if err := to.Write(drain); err != nil || m.err != nil {
				return m.moved, cmp.Or(err, m.err)
			}
		}
		m.turn.used(m.moved)
	}
}

// mover is one direction whose bytes the kernel moves by a pipe (splice(2)).
type mover struct {
	turn  turn
	pipe  [2]int
	held  int // bytes in it
	moved int64
	err   error
}

// fill moves what a socket has into the pipe, which is empty; nothing: its other end has ended.
func (m *mover) fill(socket uintptr) (done bool) {
	n, again := m.splice(m.pipe[1], int(socket), pipeSize)
	m.held = n
	return !again
}

// drain moves what is in the pipe to a socket.
func (m *mover) drain(socket uintptr) (done bool) {
	n, again := m.splice(int(socket), m.pipe[0], m.held)
	m.held -= n
	m.moved += int64(n)
	return !again
}

func (m *mover) splice(to, from, most int) (n int, again bool) {
	m.turn.begin(m.moved)
	for {
		n, err := unix.Splice(from, nil, to, nil, most, unix.SPLICE_F_NONBLOCK)
		switch err {
		case nil:
			return int(n), false
		case unix.EINTR:
		case unix.EAGAIN:
			m.turn.end()
			return 0, true
		default:
			m.err = os.NewSyscallError("splice", err)
			return 0, false
		}
	}
}

// kernelCounts is how many bytes a socket has received and how many of those it sent have arrived. One that is closed already counts nothing more.
func kernelCounts(c net.Conn) (received, acked int64) {
	withInfo(c, func(info *unix.TCPInfo) { received, acked = int64(info.Bytes_received), int64(info.Bytes_acked) })
	return received, acked
}

// LegOf is what the kernel knows of the way to the other end of a TCP connection (tcp(7), TCP_INFO). Not ok: it is no socket of the kernel's, or
// closed.
func LegOf(c net.Conn) (l Leg, ok bool) {
	ok = withInfo(c, func(info *unix.TCPInfo) {
		l = Leg{
			RTT: time.Duration(info.Rtt) * time.Microsecond, Retransmitted: uint64(info.Total_retrans),
			PacketsIn: uint64(info.Segs_in), PacketsOut: uint64(info.Segs_out),
		}
	})
	return l, ok
}

// controlled is a connection whose socket can be asked, as is *net.TCPConn.
type controlled interface {
	Control(f func(fd uintptr)) error
}

func withInfo(c net.Conn, use func(*unix.TCPInfo)) (ok bool) {
	raw, is := c.(controlled)
	if tcp, isTCP := c.(*net.TCPConn); isTCP {
		var err error
		raw, err = tcp.SyscallConn()
		is = err == nil
	}
	if !is {
		return false
	}
	raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			use(info)
			ok = true
		}
	})
	return ok
}
