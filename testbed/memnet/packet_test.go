package memnet

import (
	"cmp"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestLossIsTheShareThatWasSet(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
		in.Link("seoul", "tokyo", Path{Loss: 0.1})
		listenPacket(t, far, ":53")
		u := dial(t, here, "udp", "192.0.2.2:53")
		const n = 10_000
		for range n {
			write(t, u, "x")
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Second)
		counts := in.Counters()
		lost := counts["datagrams_lost_total"]
		if share := float64(lost) / n; math.Abs(share-0.1) > 0.01 {
			t.Fatalf("%.3f were lost, want 0.1", share)
		}
		if got := counts["datagrams_delivered_total"] + counts["datagrams_socket_queue_full_total"]; got+lost != n {
			t.Fatalf("%d arrived and %d were lost of %d", got, lost, n)
		}
	})
}

func TestCopiesAreTheShareThatWasSet(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
		in.Link("seoul", "tokyo", Path{Duplicate: 0.1, Delay: 10 * time.Millisecond})
		socket := listenPacket(t, far, ":53")
		u := dial(t, here, "udp", "192.0.2.2:53")
		const n = 10_000
		copies, b := 0, make([]byte, 2)
		for i := range n {
			before := in.Counters()["datagrams_duplicated_total"]
			u.Write([]byte{byte(i >> 8), byte(i)})
			twice := int(in.Counters()["datagrams_duplicated_total"] - before)
			for range 1 + twice {
				if _, _, err := socket.ReadFrom(b); err != nil || int(b[0])<<8+int(b[1]) != i {
					t.Fatalf("%d: %v, %v", i, b, err)
				}
			}
			copies += twice
		}
		if share := float64(copies) / n; math.Abs(share-0.1) > 0.01 {
			t.Fatalf("%.3f came twice, want 0.1", share)
		}
		if got := in.Counters()["datagrams_delivered_total"]; got != n+uint64(copies) {
			t.Fatalf("%d arrived of %d and %d copies", got, n, copies)
		}
	})
}

func TestJitterLetsDatagramsOvertakeEachOther(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
		in.Link("seoul", "tokyo", Path{Delay: 10 * time.Millisecond, Jitter: 10 * time.Millisecond})
		socket := listenPacket(t, far, ":53")
		u := dial(t, here, "udp", "192.0.2.2:53")
		start := time.Now()
		for i := range 100 {
			u.Write([]byte{byte(i)})
		}
		var got []byte
		b := make([]byte, 1)
		for range 100 {
			socket.ReadFrom(b)
			if d := time.Since(start); d < 10*time.Millisecond || d > 20*time.Millisecond {
				t.Fatalf("a datagram took %v", d)
			}
			got = append(got, b[0])
		}
		if slices.IsSorted(got) {
			t.Fatal("all came in order")
		}
		if slices.Sort(got); len(slices.Compact(got)) != 100 {
			t.Fatal("some came twice")
		}
	})
}

func TestDatagramsOfOneInstantArriveInTheOrderOfTheirSending(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, near, _ *Host) {
		neighbour := in.Host("neighbour", seoul, netip.MustParseAddr("192.0.2.9"))
		socket := listenPacket(t, near, ":53")
		u, v := dial(t, here, "udp", "192.0.2.2:53"), dial(t, neighbour, "udp", "192.0.2.2:53")
		var want, got []byte
		for i := range 100 {
			want = append(want, byte(i))
			[]net.Conn{u, v}[i*i%3%2].Write(want[i:])
		}
		b := make([]byte, 1)
		for range 100 {
			socket.ReadFrom(b)
			got = append(got, b[0])
		}
		if !slices.Equal(got, want) {
			t.Fatalf("got %v", got)
		}
	})
}

func TestADatagramLargerThanTheMTUIsDropped(t *testing.T) {
	six := []netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")}
	tests := []struct {
		to   string
		size int
		pass bool
	}{
		{"192.0.2.2:53", 1472, true},
		{"192.0.2.2:53", 1473, false},
		{"[2001:db8::2]:53", 1452, true},
		{"[2001:db8::2]:53", 1453, false},
		{"192.0.2.1:53", 65000, true},
		{"127.0.0.1:53", 65000, true},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.to, " ", tt.size), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				in := New(1)
				defer in.Close()
				here, far := in.Host("seoul", seoul, seoulAddr, six[0]), in.Host("tokyo", tokyo, tokyoAddr, six[1])
				listenPacket(t, here, ":53")
				listenPacket(t, far, ":53")
				write(t, dial(t, here, "udp", tt.to), strings.Repeat("x", tt.size))
				time.Sleep(time.Second)
				counts := in.Counters()
				if got := counts["datagrams_delivered_total"] == 1; got != tt.pass {
					t.Fatalf("delivered: %v, want %v", got, tt.pass)
				}
				if got := counts["datagrams_too_large_total"] == 1; got == tt.pass {
					t.Fatalf("too large: %v, want %v", got, !tt.pass)
				}
			})
		})
	}
}

func TestTheMTUOfAPathChangesUnderWay(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
		listenPacket(t, far, ":53")
		u := dial(t, here, "udp", "192.0.2.2:53")
		passes := func(size int) bool {
			before := in.Counters()["datagrams_delivered_total"]
			write(t, u, strings.Repeat("x", size))
			time.Sleep(time.Second)
			return in.Counters()["datagrams_delivered_total"] > before
		}
		for _, mtu := range []int{0, 1280, 9000, 0} {
			in.LinkOneWay("seoul", "tokyo", Path{MTU: mtu})
			most := cmp.Or(mtu, MTU) - headers4
			if !passes(most) || passes(most+1) {
				t.Errorf("MTU %d: %d bytes pass: %v, one more: %v", mtu, most, passes(most), passes(most+1))
			}
		}
	})
}

func TestAFullSocketDropsDatagrams(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
		socket := listenPacket(t, far, ":53")
		u := dial(t, here, "udp", "192.0.2.2:53")
		for i := range SocketQueue + 10 {
			write(t, u, fmt.Sprintf("%04d", i))
		}
		time.Sleep(time.Second)
		if n := in.Counters()["datagrams_socket_queue_full_total"]; n != 10 {
			t.Fatalf("%d were dropped, want 10", n)
		}
		b := make([]byte, 4)
		for i := range SocketQueue {
			if socket.ReadFrom(b); string(b) != fmt.Sprintf("%04d", i) {
				t.Fatalf("datagram %d is %s", i, b)
			}
		}
	})
}

func TestASlowLinkQueuesDatagramsAndDropsThemAtItsBound(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
		delay := 10 * time.Millisecond
		in.LinkOneWay("seoul", "tokyo", Path{Delay: delay, Rate: 8_000_000}) // a byte in a microsecond
		socket := listenPacket(t, far, ":53")
		u := dial(t, here, "udp", "192.0.2.2:53")
		start := time.Now()
		for range 300 {
			write(t, u, strings.Repeat("x", 1000))
		}
		queued := int(LinkQueue/time.Millisecond) + 1
		for i := range queued {
			socket.ReadFrom(make([]byte, 1))
			took(t, fmt.Sprint("datagram ", i), start, delay+time.Duration(i+1)*time.Millisecond)
		}
		if n := in.Counters()["datagrams_link_queue_full_total"]; int(n) != 300-queued {
			t.Fatalf("%d were dropped, want %d", n, 300-queued)
		}
		start = time.Now()
		write(t, u, "the link is free again")
		socket.ReadFrom(make([]byte, 1))
		took(t, "a datagram", start, delay+22*time.Microsecond)
	})
}

func TestADialledSocketHearsOnlyItsPeer(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, stranger *Host) {
		peer := listenPacket(t, far, ":53")
		u := dial(t, here, "udp", "192.0.2.2:53")
		if _, err := u.(net.PacketConn).WriteTo([]byte("x"), peer.LocalAddr()); err == nil {
			t.Fatal("WriteTo on a dialled socket")
		}
		listenPacket(t, stranger, ":53").WriteTo([]byte("stranger"), u.LocalAddr())
		time.Sleep(time.Second)
		peer.WriteTo([]byte("peer"), u.LocalAddr())
		if got := read(t, u, 4); got != "peer" {
			t.Fatalf("got %q", got)
		}
	})
}

func TestWhatNobodyTakesIsCounted(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
		socket := listenPacket(t, here, ":53")
		for _, to := range []string{"192.0.2.2:53", "198.51.100.1:53"} {
			if n, err := socket.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to))); n != 1 || err != nil {
				t.Fatalf("%s: got %d, %v", to, n, err)
			}
		}
		time.Sleep(time.Second)
		counts := in.Counters()
		if counts["datagrams_nobody_listens_total"] != 1 || counts["datagrams_unroutable_total"] != 1 {
			t.Fatalf("got %v", counts)
		}
	})
}

func TestReadFromTruncatesLikeTheKernel(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, _, _ *Host) {
		socket := listenPacket(t, here, "192.0.2.1:53")
		u := dial(t, here, "udp", "192.0.2.1:53")
		write(t, u, "a long one")
		write(t, u, "next")
		b := make([]byte, 4)
		for _, want := range []string{"a lo", "next"} {
			if n, _, err := socket.ReadFrom(b); string(b[:n]) != want || err != nil {
				t.Fatalf("got %q, %v, want %q", b[:n], err, want)
			}
		}
	})
}

// trace runs three senders at once over bad paths and returns what arrived where and when.
func trace(t *testing.T, seed uint64) (lines []string) {
	synctest.Test(t, func(t *testing.T) {
		in := New(seed)
		target := in.Host("seoul", seoul, seoulAddr)
		socket := listenPacket(t, target, ":53")
		l := listen(t, target, ":80")
		start := time.Now()
		var mu sync.Mutex
		note := func(from net.Addr, b []byte) {
			mu.Lock()
			defer mu.Unlock()
			lines = append(lines, fmt.Sprintf("%v %v %s", time.Since(start), from, b))
		}
		var readers sync.WaitGroup
		readers.Go(func() {
			b := make([]byte, 100)
			for {
				n, from, err := socket.ReadFrom(b)
				if err != nil {
					return
				}
				note(from, b[:n])
			}
		})
		readers.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				readers.Go(func() {
					b := make([]byte, 100)
					for {
						n, err := c.Read(b)
						if err != nil {
							return
						}
						note(c.RemoteAddr(), b[:n])
					}
				})
			}
		})
		var senders sync.WaitGroup
		for i := range 3 {
			name := fmt.Sprint("sender", i)
			h := in.Host(name, virginia, netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}))
			in.Link(name, "seoul", Path{Jitter: 20 * time.Millisecond, Loss: 0.2})
			u := dial(t, h, "udp", "192.0.2.1:53")
			c := dial(t, h, "tcp", "192.0.2.1:80")
			senders.Go(func() {
				for j := range 200 {
					fmt.Fprint(u, j)
					fmt.Fprint(c, j)
					time.Sleep(time.Millisecond)
				}
			})
		}
		senders.Wait()
		time.Sleep(time.Minute)
		in.Close()
		readers.Wait()
	})
	slices.Sort(lines) // of one instant, the readers' turn is the scheduler's
	return lines
}

func TestOneSeedIsOneRun(t *testing.T) {
	once := trace(t, 1)
	if again := trace(t, 1); !slices.Equal(once, again) {
		t.Fatalf("%d arrivals, then %d others", len(once), len(again))
	}
	if other := trace(t, 2); slices.Equal(once, other) {
		t.Fatal("another seed gave the same run")
	}
}

func BenchmarkDatagram(b *testing.B) {
	in := New(1)
	defer in.Close()
	here, far := in.Host("seoul", seoul, seoulAddr), in.Host("tokyo", tokyo, tokyoAddr)
	in.Link("seoul", "tokyo", Path{Delay: 1})
	socket, err := far.ListenPacket("udp", ":53")
	if err != nil {
		b.Fatal(err)
	}
	go func() {
		buf := make([]byte, MTU)
		for {
			if _, _, err := socket.ReadFrom(buf); err != nil {
				return
			}
		}
	}()
	u, err := here.Dial(b.Context(), "udp", "192.0.2.2:53")
	if err != nil {
		b.Fatal(err)
	}
	packet := make([]byte, 1200)
	b.ReportAllocs()
	for b.Loop() {
		u.Write(packet)
	}
}
