package pump

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/perigee-net/perigee/testbed/gate"
	"github.com/perigee-net/perigee/testbed/netns"
	"github.com/perigee-net/perigee/testbed/wan"
)

// lab is two network namespaces that a link joins, of either kind.
type lab struct {
	a, b  *netns.Namespace
	set   func(ab, ba wan.Path) error
	stats func() Stats // nil: the kernel's link has none
}

const (
	labDevice = "w0"
	labA      = "10.99.0.1"
	labB      = "10.99.0.2"
)

// needLab skips what needs namespaces where there can be none; with PERIGEE_LAB=required it fails.
func needLab(t testing.TB) {
	t.Helper()
	gate.Wanted(t)
	for _, n := range netns.Missing() {
		gate.Lacks(t, n.String())
	}
}

// pair makes the two namespaces.
func pair(t testing.TB) *lab {
	t.Helper()
	var l lab
	for end, n := range map[string]**netns.Namespace{"a": &l.a, "b": &l.b} {
		made, err := netns.New(fmt.Sprintf("pgt-pump%d-%s", os.Getpid(), end))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := made.Delete(context.Background()); err != nil {
				t.Error(err)
			}
		})
		*n = made
	}
	return &l
}

// address gives both ends of the link their addresses and brings them up.
func (l *lab) address(t testing.TB) *lab {
	t.Helper()
	for _, end := range []struct {
		n    *netns.Namespace
		addr string
	}{{l.a, labA}, {l.b, labB}} {
		if err := end.n.AddAddr(labDevice, netip.MustParsePrefix(end.addr+"/24"), netip.Addr{}); err != nil {
			t.Fatal(err)
		}
		if err := end.n.Up(labDevice); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// userspace is a lab whose link is carried by a pump process.
func userspace(t testing.TB) *lab { return pumped(t).lab }

// netem is a lab whose link is a veth pair with the kernel's netem at both ends.
func netem(t testing.TB) *lab {
	t.Helper()
	needLab(t)
	if has, err := netns.HasNetem(); err != nil {
		t.Fatal(err)
	} else if !has {
		// Not a failure even where a lab is required: kernels without it are what the pump is for.
		t.Skip("the kernel has no netem (sch_netem)")
	}
	l := pair(t)
	if err := netns.Veth(l.a, labDevice, l.b, labDevice); err != nil {
		t.Fatal(err)
	}
	l.set = func(ab, ba wan.Path) error {
		if err := l.a.Netem(labDevice, ab); err != nil {
			return err
		}
		return l.b.Netem(labDevice, ba)
	}
	l.address(t)
	return l
}

// arrival is a packet that arrived.
type arrival struct {
	number int
	took   time.Duration // from just before it was sent until the kernel of the far end had it
	at     time.Duration // when, since the first was sent
}

// flight is a number of packets one way.
type flight struct {
	back   bool // from b to a
	n      int
	size   int           // with IP and UDP header, bytes
	gap    time.Duration // at least so long from one burst to the next
	burst  int           // packets together; 0: 1
	settle time.Duration // so long after the last has been sent, what has not arrived never will
}

// fly sends packets and returns those that arrived, in the order they did.
func (l *lab) fly(t testing.TB, f flight) []arrival {
	t.Helper()
	from, to, address := l.a, l.b, labB
	if f.back {
		from, to, address = l.b, l.a, labA
	}
	pc, err := to.ListenPacket("udp4", address+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	in := pc.(*net.UDPConn)
	raw, err := in.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if e := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
	}); e != nil || err != nil {
		t.Fatal(e, err)
	}
	out, err := from.Dial(t.Context(), "udp4", in.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()

	arrivals := make([]arrival, 0, f.n)
	var reader sync.WaitGroup
	reader.Go(func() {
		buf, oob := make([]byte, PacketSize), make([]byte, 64)
		var first int64
		for len(arrivals) < f.n {
			n, m, _, _, err := in.ReadMsgUDP(buf, oob)
			if err != nil {
				return // the time is up
			}
			control, err := unix.ParseSocketControlMessage(oob[:m])
			if err != nil || len(control) == 0 || n < 16 {
				t.Errorf("received %d bytes, control %d bytes: %v", n, m, err)
				return
			}
			sec, nsec := binary.NativeEndian.Uint64(control[0].Data), binary.NativeEndian.Uint64(control[0].Data[8:])
			got := int64(sec)*1e9 + int64(nsec)
			sent := int64(binary.BigEndian.Uint64(buf[8:]))
			if first == 0 {
				first = sent
			}
			arrivals = append(arrivals, arrival{number: int(binary.BigEndian.Uint64(buf)), took: time.Duration(got - sent), at: time.Duration(got - first)})
		}
	})
	packet := make([]byte, max(16, f.size-28))
	for i := range f.n {
		if i > 0 && i%max(1, f.burst) == 0 && f.gap > 0 {
			time.Sleep(f.gap)
		}
		binary.BigEndian.PutUint64(packet, uint64(i))
		binary.BigEndian.PutUint64(packet[8:], uint64(time.Now().UnixNano()))
		if _, err := out.Write(packet); err != nil {
			t.Fatal(err)
		}
	}
	if err := in.SetReadDeadline(time.Now().Add(f.settle)); err != nil {
		t.Fatal(err)
	}
	reader.Wait()
	return arrivals
}

// ping asks the kernel at the far end n times and returns the round trips of those it answered, sorted.
func (l *lab) ping(t testing.TB, n int, gap, settle time.Duration) []time.Duration {
	t.Helper()
	pc, err := l.a.ListenPacket("ip4:icmp", labA)
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	conn := pc.(*net.IPConn)
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1) }); e != nil || err != nil {
		t.Fatal(e, err)
	}
	var trips []time.Duration
	var reader sync.WaitGroup
	reader.Go(func() {
		buf, oob := make([]byte, 128), make([]byte, 64)
		for len(trips) < n {
			_, m, _, _, err := conn.ReadMsgIP(buf, oob)
			if err != nil {
				return
			}
			control, err := unix.ParseSocketControlMessage(oob[:m])
			reply := buf[20:] // ReadMsgIP leaves the IP header in place
			if err != nil || len(control) == 0 || reply[0] != 0 {
				continue
			}
			got := int64(binary.NativeEndian.Uint64(control[0].Data))*1e9 + int64(binary.NativeEndian.Uint64(control[0].Data[8:]))
			trips = append(trips, time.Duration(got-int64(binary.BigEndian.Uint64(reply[8:]))))
		}
	})
	to := &net.IPAddr{IP: net.ParseIP(labB)}
	for i := range n {
		echo := make([]byte, 16)
		echo[0] = 8 // echo request, RFC 792
		binary.BigEndian.PutUint16(echo[6:], uint16(i))
		binary.BigEndian.PutUint64(echo[8:], uint64(time.Now().UnixNano()))
		binary.BigEndian.PutUint16(echo[2:], checksum(echo))
		if _, err := conn.WriteTo(echo, to); err != nil {
			t.Fatal(err)
		}
		time.Sleep(gap)
	}
	if err := conn.SetReadDeadline(time.Now().Add(settle)); err != nil {
		t.Fatal(err)
	}
	reader.Wait()
	slices.Sort(trips)
	return trips
}

// checksum is that of RFC 1071, of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// quantile of sorted durations.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}
