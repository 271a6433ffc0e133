package dnsgeo

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Real sockets: what goes together, and what comes of it, is the kernel's.
func TestResponsesOfOneLengthToOnePortGoTogether(t *testing.T) {
	for _, test := range []struct {
		name, network, address, to string
		fails                      bool // the kernel takes none that are to be cut
	}{
		{"IPv4", "udp4", "127.0.0.1:0", "127.0.0.1", false},
		{"IPv6", "udp6", "[::1]:0", "::1", false},
		{"all addresses of IPv4", "udp4", ":0", "127.0.0.2", false},
		{"all addresses", "udp", ":0", "127.0.0.2", false},
		{"a system that takes them one by one", "udp4", "127.0.0.1:0", "127.0.0.1", true},
		{"such a one, all addresses", "udp", ":0", "127.0.0.2", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			conn, err := net.ListenPacket(test.network, test.address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			b, err := newBatch(conn.(*net.UDPConn))
			if err != nil {
				t.Fatal(err)
			}
			if !b.cuts {
				t.Skip("this kernel cuts no datagrams")
			}
			if test.fails {
				// It cuts none without checksums (udp_send_skb).
				if err := b.raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_NO_CHECK, 1) }); err != nil {
					t.Fatal(err)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			to := netip.AddrPortFrom(netip.MustParseAddr(test.to), uint16(conn.LocalAddr().(*net.UDPAddr).Port))
			one, two := dialled(t, to), dialled(t, to)
			// What is answered is the query itself, so its length is the response's.
			short, long := strings.Repeat("s", 60), strings.Repeat("l", 1000)
			var want [2][]string
			for i := range batchSize / 4 {
				for k, client := range []*net.UDPConn{one, two} {
					for _, text := range []string{short, long} {
						text = fmt.Sprintf("%04d%s", i, text)
						send(t, client, []byte(text))
						want[k] = append(want[k], text)
					}
				}
			}
			for came := 0; came < batchSize; {
				n, err := b.next()
				if err != nil {
					t.Fatal(err)
				}
				came += n
				for i := range n {
					query, room, _ := b.query(i)
					b.answer(i, append(room, query...))
				}
				if b.parcels > 4 { // one of each length to each
					t.Errorf("%d responses in %d parcels", n, b.parcels)
				}
				if failed, err := b.flush(); failed > 0 || err != nil {
					t.Errorf("%d failed: %v", failed, err)
				}
			}
			for k, client := range []*net.UDPConn{one, two} {
				var got []string
				for range want[k] {
					room := make([]byte, 2*payloadSize)
					n, err := client.Read(room)
					if err != nil {
						t.Fatalf("after %d of %d: %v", len(got), len(want[k]), err)
					}
					got = append(got, string(room[:n]))
				}
				slices.Sort(got) // those of a length come together
				slices.Sort(want[k])
				if !slices.Equal(got, want[k]) {
					t.Errorf("client %d got %.8q", k, got)
				}
			}
		})
	}
}

// Whose parcels would stand at one place do not put each other out.
func TestAskersOfOnePlaceGoTogetherEach(t *testing.T) {
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	b, err := newBatch(conn.(*net.UDPConn))
	if err != nil {
		t.Fatal(err)
	}
	b.cuts = true
	const size = 100
	name := func(port uint16) unix.RawSockaddrInet6 {
		return unix.RawSockaddrInet6{Family: unix.AF_INET, Port: port}
	}
	b.names[0] = name(1)
	place := b.hash(0, size)
	ports := []uint16{1}
	for port := uint16(2); len(ports) < 4; port++ {
		b.names[0] = name(port)
		if b.hash(0, size) == place {
			ports = append(ports, port)
		}
	}
	for i := range batchSize {
		b.names[i] = name(ports[i%len(ports)])
		b.answer(i, b.responses[i][:size])
	}
	if b.parcels != len(ports) {
		t.Errorf("%d responses to %d askers in %d parcels", batchSize, len(ports), b.parcels)
	}
}

// A response to nobody costs those that go with it nothing.
func TestWhatTheSystemDoesNotTakeIsCountedByResponse(t *testing.T) {
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	b, err := newBatch(conn.(*net.UDPConn))
	if err != nil {
		t.Fatal(err)
	}
	client := dialled(t, conn.LocalAddr().(*net.UDPAddr).AddrPort())
	for range 6 {
		send(t, client, []byte("query"))
	}
	came := 0
	for came < 6 {
		n, err := b.next()
		if err != nil {
			t.Fatal(err)
		}
		came += n
		for i := range n {
			_, room, _ := b.query(i)
			if i%2 == 0 {
				b.names[i].Port = 0 // which the kernel sends nothing to
			}
			b.answer(i, append(room, "answer"...))
		}
		if failed, err := b.flush(); failed != (n+1)/2 || err != nil {
			t.Errorf("%d of %d failed: %v", failed, n, err)
		}
		for range n / 2 {
			if _, err := client.Read(make([]byte, 64)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func dialled(t *testing.T, to netip.AddrPort) *net.UDPConn {
	t.Helper()
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err == nil {
		err = c.SetDeadline(time.Now().Add(10 * time.Second))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
