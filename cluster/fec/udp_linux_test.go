package fec

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// segments is the control message that has the kernel cut.
func segments(length uint16) []byte {
	b := make([]byte, unix.CmsgSpace(2))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(b[unix.CmsgLen(0):], length)
	return b
}

// TestTheKernelCutsAndParityFollows sends by the real thing, through someone between who loses one datagram.
func TestTheKernelCutsAndParityFollows(t *testing.T) {
	open := func() *net.UDPConn {
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		return c
	}
	at := func(c *net.UDPConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }
	nearUDP, farUDP, between := open(), open(), open()
	near, nearPackets := New(nearUDP)
	far, farPackets := New(farUDP)
	sender, receiver := near.Join(at(between)), far.Join(at(between))
	sender.Use(receiver.Token())
	sender.Protect(1e-4, time.Millisecond) // one of parity
	receiver.Expect(true)

	r := rand.New(rand.NewPCG(1, 2))
	sent := datagram(r, 3*1000+500)
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

func TestSegmentationIsFoundAmongOthers(t *testing.T) {
	tos := make([]byte, unix.CmsgSpace(1))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&tos[0]))
	h.Level, h.Type = unix.IPPROTO_IP, unix.IP_TOS
	h.SetLen(unix.CmsgLen(1))
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
