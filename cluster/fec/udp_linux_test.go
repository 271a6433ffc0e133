package fec

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// control is a control message.
func control(level, kind int32, data []byte) []byte {
	b := make([]byte, unix.CmsgSpace(len(data)))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(len(data)))
	copy(b[unix.CmsgLen(0):], data)
	return b
}

// segments is the control message that has the kernel cut.
func segments(length uint16) []byte {
	return control(unix.IPPROTO_UDP, unix.UDP_SEGMENT, binary.NativeEndian.AppendUint16(nil, length))
}

// congested is the control message that says so of a datagram to an address (ECN).
func congested(to netip.Addr) []byte {
	if to.Is6() {
		return control(unix.IPPROTO_IPV6, unix.IPV6_TCLASS, binary.NativeEndian.AppendUint32(nil, 3))
	}
	return control(unix.IPPROTO_IP, unix.IP_TOS, []byte{3})
}

const here = "127.0.0.1:0"

// openUDP is a socket at an address, by which nothing is waited for without end.
func openUDP(t *testing.T, address string) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(address)))
	if strings.HasPrefix(address, "[") && (errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT)) {
		t.Skip("this machine has no IPv6")
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	return c
}

// TestTheKernelCutsAndParityFollows sends by the real thing, through someone between who loses one datagram.
func TestTheKernelCutsAndParityFollows(t *testing.T) {
	at := func(c *net.UDPConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }
	nearUDP, farUDP, between := openUDP(t, here), openUDP(t, here), openUDP(t, here)
	near, nearPackets := New(nearUDP)
	far, farPackets := New(farUDP)
	sender, receiver := near.Join(at(between)), far.Join(at(between))
	sender.Use(receiver.Token())
	sender.Protect(1e-4, time.Millisecond) // one of parity
	receiver.Expect(true)

	r := rand.New(rand.NewPCG(1, 2))
	sent := someDatagram(r, 3*1000+500)
	if _, _, err := nearPackets.(*udpConn).WriteMsgUDP(sent, segments(1000), net.UDPAddrFromAddrPort(at(between))); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1500)
	for i := range 5 {
		n, err := between.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if i != 1 {
			between.WriteToUDPAddrPort(buf[:n], at(farUDP))
		}
	}
	want := map[string]bool{string(sent[:1000]): true, string(sent[1000:2000]): true, string(sent[2000:3000]): true, string(sent[3000:]): true}
	ms := make([]ipv4.Message, 3)
	for i := range ms {
		ms[i].Buffers, ms[i].OOB = [][]byte{make([]byte, 1500)}, make([]byte, 128)
	}
	for len(want) > 0 {
		n, err := farPackets.(*udpConn).ReadBatch(ms, 0)
		if err != nil {
			t.Fatalf("%v; %d are missing, %v", err, len(want), far.Counters())
		}
		for _, m := range ms[:n] {
			b := string(m.Buffers[0][:m.N])
			if !want[b] {
				t.Fatalf("%d bytes that were not sent", m.N)
			}
			delete(want, b)
			if from := m.Addr.(*net.UDPAddr).AddrPort(); from != at(between) {
				t.Errorf("from %v", from)
			}
		}
	}
	if n := far.count.repaired.Load(); n != 1 {
		t.Errorf("%d repaired", n)
	}
}

// TestWhatGoesWithoutParityIsCounted sends by the real thing, one by one and together: after a thousand the path is to be looked at.
func TestWhatGoesWithoutParityIsCounted(t *testing.T) {
	udp := openUDP(t, here)
	to := udp.LocalAddr().(*net.UDPAddr)
	c, packets := New(udp)
	out := packets.(*udpConn)
	peer := c.Join(to.AddrPort())
	due := func() bool {
		select {
		case <-c.Due():
			return true
		default:
			return false
		}
	}
	send := func(n, length int, oob []byte) {
		for range n {
			if _, _, err := out.WriteMsgUDP(make([]byte, length), oob, to); err != nil {
				t.Fatal(err)
			}
		}
	}
	send(dueCovered, 100, nil)
	if due() {
		t.Error("a path that is never to have parity is looked at")
	}
	peer.Limit()
	send(dueCovered-1, 100, nil)
	if due() {
		t.Error("it is looked at too soon")
	}
	if send(1, 100, nil); !due() {
		t.Error("it is not looked at after a thousand, one by one")
	}
	if send(dueCovered/10, 10*1000, segments(1000)); !due() {
		t.Error("it is not looked at after a thousand, ten together")
	}
}

// TestWhatWasSentTogetherComesTogetherAndIsTakenApart sends by the real thing: whoever reads has each datagram by itself, with what was said of it, in few reads.
func TestWhatWasSentTogetherComesTogetherAndIsTakenApart(t *testing.T) {
	for _, c := range []struct{ from, at string }{{"127.0.0.1:0", "127.0.0.1:0"}, {"127.0.0.1:0", "[::]:0"}, {"[::1]:0", "[::]:0"}, {"[::1]:0", "[::1]:0"}} {
		t.Run(c.from+" "+c.at, func(t *testing.T) {
			near, other, udp := openUDP(t, c.from), openUDP(t, c.from), openUDP(t, c.at)
			_, packets := New(udp)
			far := packets.(*udpConn)
			raw, err := udp.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			raw.Control(func(fd uintptr) {
				unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVTOS, 1)
				unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1)
			})
			from := near.LocalAddr().(*net.UDPAddr).AddrPort()
			to := netip.AddrPortFrom(from.Addr(), uint16(udp.LocalAddr().(*net.UDPAddr).Port))

			const size = 1000
			r := rand.New(rand.NewPCG(1, 2))
			var want [][]byte
			for _, sent := range []struct {
				by     *net.UDPConn
				length int
			}{{near, 12*size + 500}, {other, size}, {near, 10}, {near, 3 * size}} {
				b := someDatagram(r, sent.length)
				if _, _, err := sent.by.WriteMsgUDP(b, append(segments(size), congested(from.Addr())...), net.UDPAddrFromAddrPort(to)); err != nil {
					t.Fatal(err)
				}
				for ; len(b) > 0; b = b[min(size, len(b)):] {
					want = append(want, b[:min(size, len(b))])
				}
			}
			ms := make([]ipv4.Message, 8)
			for i := range ms {
				ms[i].Buffers, ms[i].OOB = [][]byte{make([]byte, 1452)}, make([]byte, 128)
			}
			most := 0
			for at := 0; at < len(want); {
				n, err := far.ReadBatch(ms, 0)
				if err != nil {
					t.Fatal(err)
				}
				most = max(most, far.in.came)
				for _, m := range ms[:n] {
					if got := m.Buffers[0][:m.N]; !bytes.Equal(got, want[at]) {
						t.Fatalf("datagram %d: %d bytes, want %d, or others", at, len(got), len(want[at]))
					}
					by := from
					if at == 13 {
						by = other.LocalAddr().(*net.UDPAddr).AddrPort()
					}
					if got := m.Addr.(*net.UDPAddr).AddrPort(); netip.AddrPortFrom(got.Addr().Unmap(), got.Port()) != by {
						t.Errorf("datagram %d: from %v, want %v", at, got, by)
					}
					if !bytes.Equal(m.OOB[:m.NN], congested(from.Addr())) {
						t.Errorf("datagram %d: %x was said of it", at, m.OOB[:m.NN])
					}
					at++
				}
			}
			if most != 4 {
				t.Errorf("the kernel had up to %d messages, want 4: what was sent together did not come together", most)
			}
		})
	}
}

// TestOneDatagramIsReadAtATime is of the ways of reading and writing that QUIC does not use: what came together is not given to them as one, and parity is made of what they send and
// makes good what they lack.
func TestOneDatagramIsReadAtATime(t *testing.T) {
	near, between, udp := openUDP(t, here), openUDP(t, here), openUDP(t, here)
	_, far := New(udp)
	to, from := udp.LocalAddr().(*net.UDPAddr), near.LocalAddr().(*net.UDPAddr)
	const size = 1000
	sent := someDatagram(rand.New(rand.NewPCG(1, 2)), 4*size+500)
	if _, _, err := near.WriteMsgUDP(sent, segments(size), to); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4*size)
	for i := range 5 {
		want, flags, n, by := sent[i*size:min((i+1)*size, len(sent))], 0, 0, net.Addr(nil)
		var err error
		if i%2 == 0 {
			n, by, err = far.ReadFrom(b)
		} else {
			room := b
			if i == 3 {
				room = b[:10] // the rest of it is lost, and nothing of the next
			}
			n, _, flags, by, err = far.(*udpConn).ReadMsgUDP(room, make([]byte, 64))
		}
		if err != nil {
			t.Fatal(err)
		}
		if i == 3 && (n != 10 || flags != unix.MSG_TRUNC) || i != 3 && (n != len(want) || flags != 0) || !bytes.Equal(b[:n], want[:n]) || by.String() != from.String() {
			t.Errorf("datagram %d: %d bytes of %d from %v, flags %#x", i, n, len(want), by, flags)
		}
	}

	sender, packets := New(near)
	p := sender.Join(between.LocalAddr().(*net.UDPAddr).AddrPort())
	p.Use(1)
	p.Protect(1e-4, time.Millisecond)
	if n, err := packets.WriteTo(sent[:size], between.LocalAddr()); n != size || err != nil {
		t.Errorf("wrote %d, %v", n, err)
	}
	for _, parity := range []bool{false, true} {
		if n, err := between.Read(b); err != nil || (n != size) != parity {
			t.Errorf("%d bytes, parity %t: %v", n, parity, err)
		}
	}
	if _, is := packets.(interface {
		ReadFromUDPAddrPort([]byte) (int, netip.AddrPort, error)
	}); is {
		t.Error("it can be read past what takes apart")
	}
	if _, is := packets.(net.Conn); is {
		t.Error("it can be read as a connection, past what takes apart")
	}
}

// TestWhatIsTogetherIsFoundAmongOthers is of what the kernel says, in either order.
func TestWhatIsTogetherIsFoundAmongOthers(t *testing.T) {
	together4 := func(size uint32) []byte {
		return control(unix.IPPROTO_UDP, unix.UDP_GRO, binary.NativeEndian.AppendUint32(nil, size))
	}
	tos := congested(netip.IPv4Unspecified())
	for _, c := range []struct {
		oob  []byte
		size int
		rest []byte
	}{
		{nil, 0, nil}, {tos, 0, tos}, {together4(1200), 1200, nil}, {append(together4(1200), tos...), 1200, tos}, {append(bytes.Clone(tos), together4(9)...), 9, tos},
		{together4(1200)[:5], 0, together4(1200)[:5]},
	} {
		if size, rest := together(bytes.Clone(c.oob)); size != c.size || !bytes.Equal(rest, c.rest) {
			t.Errorf("%x: %d and %x", c.oob, size, rest)
		}
	}
}

func TestSegmentationIsFoundAmongOthers(t *testing.T) {
	tos := congested(netip.IPv4Unspecified())
	for _, c := range []struct {
		oob    []byte
		length int
		rest   int
	}{
		{nil, 0, 0}, {tos, 0, len(tos)}, {segments(1200), 1200, 0}, {append(segments(1200), tos...), 1200, len(tos)}, {append(tos[:len(tos):len(tos)], segments(9)...), 9, len(tos)},
		{segments(1200)[:5], 0, 5},
	} {
		if length, rest := segmentation(c.oob); length != c.length || len(rest) != c.rest {
			t.Errorf("%x: %d and %d bytes of others", c.oob, length, len(rest))
		}
	}
}
