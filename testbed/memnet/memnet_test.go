package memnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
)

var (
	seoul    = spec.Location{Latitude: 37.57, Longitude: 126.98}
	tokyo    = spec.Location{Latitude: 35.68, Longitude: 139.69}
	virginia = spec.Location{Latitude: 38.95, Longitude: -77.45}

	seoulAddr    = netip.MustParseAddr("192.0.2.1")
	tokyoAddr    = netip.MustParseAddr("192.0.2.2")
	virginiaAddr = netip.MustParseAddr("192.0.2.3")
	anycastAddr  = netip.MustParseAddr("203.0.113.1")
)

// world runs a test in a bubble, on an internet with hosts in Seoul, Tokyo and Virginia.
func world(t *testing.T, test func(t *testing.T, in *Internet, seoul, tokyo, virginia *Host)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		in := New(1)
		t.Cleanup(in.Close)
		test(t, in,
			in.Host("seoul", seoul, seoulAddr),
			in.Host("tokyo", tokyo, tokyoAddr),
			in.Host("virginia", virginia, virginiaAddr))
	})
}

// oneWay is what a packet takes between the places of two hosts.
func oneWay(a, b spec.Location) time.Duration { return a.RoundTrip(b) / 2 }

func listen(t *testing.T, h *Host, address string) net.Listener {
	t.Helper()
	l, err := h.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func listenPacket(t *testing.T, h *Host, address string) net.PacketConn {
	t.Helper()
	c, err := h.ListenPacket("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func dial(t *testing.T, h *Host, network, address string) net.Conn {
	t.Helper()
	c, err := h.Dial(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// pair is the two ends of a stream between two hosts.
func pair(t *testing.T, from, to *Host) (dialled, accepted net.Conn) {
	t.Helper()
	l := listen(t, to, netip.AddrPortFrom(to.Addr(), 80).String())
	defer l.Close()
	dialled = dial(t, from, "tcp", l.Addr().String())
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return dialled, accepted
}

func write(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, c net.Conn, n int) string {
	t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// took fails the test unless exactly that much time has passed since start.
func took(t *testing.T, what string, start time.Time, want time.Duration) {
	t.Helper()
	if got := time.Since(start); got != want {
		t.Fatalf("%s took %v, want %v", what, got, want)
	}
}

func TestDelaysAreExact(t *testing.T) {
	there, back := 7*time.Millisecond, 11*time.Millisecond
	tests := []struct {
		name        string
		set         func(in *Internet)
		to          string
		there, back time.Duration
	}{
		{"by the places", nil, "tokyo", oneWay(seoul, tokyo), oneWay(seoul, tokyo)},
		{"far away", nil, "virginia", oneWay(seoul, virginia), oneWay(seoul, virginia)},
		{"at one place the floor", nil, "neighbour", Floor, Floor},
		{"within a host", nil, "seoul", Loopback, Loopback},
		{"by a link", func(in *Internet) { in.Link("seoul", "tokyo", Path{Delay: there}) }, "tokyo", there, there},
		{"by a link each way", func(in *Internet) {
			in.LinkOneWay("seoul", "tokyo", Path{Delay: there})
			in.LinkOneWay("tokyo", "seoul", Path{Delay: back})
		}, "tokyo", there, back},
		{"slowed", func(in *Internet) { in.Slow("tokyo", "seoul", time.Second) }, "tokyo",
			oneWay(seoul, tokyo) + time.Second, oneWay(seoul, tokyo) + time.Second},
		{"slowed no more", func(in *Internet) {
			in.Slow("tokyo", "seoul", time.Second)
			in.Slow("tokyo", "seoul", 0)
		}, "tokyo", oneWay(seoul, tokyo), oneWay(seoul, tokyo)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			world(t, func(t *testing.T, in *Internet, here, _, _ *Host) {
				in.Host("neighbour", seoul, netip.MustParseAddr("192.0.2.9"))
				if tt.set != nil {
					tt.set(in)
				}
				if got := in.RoundTrip("seoul", tt.to); got != tt.there+tt.back {
					t.Fatalf("RoundTrip is %v, want %v", got, tt.there+tt.back)
				}
				far := in.named[tt.to]
				at := netip.AddrPortFrom(far.Addr(), 80).String()
				l, datagrams := listen(t, far, at), listenPacket(t, far, at)
				start := time.Now()

				accepted := make(chan net.Conn, 1)
				go func() {
					c, _ := l.Accept()
					took(t, "accept", start, tt.there+tt.back+tt.there)
					accepted <- c
				}()
				c := dial(t, here, "tcp", at)
				took(t, "dial", start, tt.there+tt.back)
				s := <-accepted

				start = time.Now()
				write(t, c, "x")
				took(t, "write", start, 0)
				read(t, s, 1)
				took(t, "a byte there", start, tt.there)
				start = time.Now()
				write(t, s, "x")
				read(t, c, 1)
				took(t, "a byte back", start, tt.back)

				start = time.Now()
				u := dial(t, here, "udp", at)
				write(t, u, "x")
				_, from, err := datagrams.ReadFrom(make([]byte, 1))
				if err != nil {
					t.Fatal(err)
				}
				took(t, "a datagram there", start, tt.there)
				start = time.Now()
				datagrams.WriteTo([]byte("x"), from)
				read(t, u, 1)
				took(t, "a datagram back", start, tt.back)
			})
		})
	}
}

func TestADialToNobodyIsRefusedAfterARoundTrip(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
		start := time.Now()
		_, err := here.Dial(t.Context(), "tcp", "192.0.2.2:80")
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("got %v", err)
		}
		if want := "dial tcp 192.0.2.2:80: connect: connection refused"; err.Error() != want {
			t.Fatalf("got %q, want %q", err, want)
		}
		took(t, "refusal", start, in.RoundTrip("seoul", "tokyo"))

		l := listen(t, far, ":80")
		dial(t, here, "tcp", "192.0.2.2:80")
		l.Close()
		if _, err := here.Dial(t.Context(), "tcp", "192.0.2.2:80"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("a closed listener: got %v", err)
		}
	})
}

func TestADialIntoSilenceWaitsForItsContext(t *testing.T) {
	silence := map[string]func(in *Internet, far *Host){
		"crashed":     func(in *Internet, far *Host) { far.Crash() },
		"cut":         func(in *Internet, far *Host) { in.Cut("seoul", "tokyo") },
		"cut there":   func(in *Internet, far *Host) { in.CutOneWay("seoul", "tokyo") },
		"cut back":    func(in *Internet, far *Host) { in.CutOneWay("tokyo", "seoul") },
		"it cut off":  func(in *Internet, far *Host) { in.CutOff("tokyo") },
		"we cut off":  func(in *Internet, far *Host) { in.CutOff("seoul") },
		"we, crashed": func(in *Internet, far *Host) { in.named["seoul"].Crash() },
	}
	for name, silent := range silence {
		t.Run(name, func(t *testing.T) {
			world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
				listen(t, far, ":80")
				silent(in, far)
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				start := time.Now()
				_, err := here.Dial(ctx, "tcp", "192.0.2.2:80")
				if ne, ok := errors.AsType[net.Error](err); !errors.Is(err, context.DeadlineExceeded) || !ok || !ne.Timeout() {
					t.Fatalf("got %v", err)
				}
				took(t, "dial", start, 5*time.Second)

				start = time.Now()
				if _, err = here.Dial(t.Context(), "tcp", "192.0.2.2:80"); !errors.Is(err, syscall.ETIMEDOUT) {
					t.Fatalf("without a deadline: got %v", err)
				}
				took(t, "dial", start, 127*time.Second)
			})
		})
	}
}

func TestADialGoesOnWhenTheCutHeals(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
		listen(t, far, ":80")
		in.CutOff("tokyo")
		time.AfterFunc(2*time.Second, func() { in.Rejoin("tokyo") })
		start := time.Now()
		dial(t, here, "tcp", "192.0.2.2:80")
		took(t, "dial", start, 3*time.Second+in.RoundTrip("seoul", "tokyo")) // by the SYN of the third second
	})
}

func TestADialWithAContextThatHasEndedFailsAtOnce(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
		listen(t, far, ":80")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := here.Dial(ctx, "tcp", "192.0.2.2:80"); !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v", err)
		}
	})
}

func TestAFullBacklogDropsSYNs(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
		l := listen(t, far, ":80")
		for range Backlog {
			dial(t, here, "tcp", "192.0.2.2:80")
		}
		synctest.Wait()
		time.Sleep(time.Second) // the last handshake ends
		start := time.Now()
		time.AfterFunc(500*time.Millisecond, func() { l.Accept() })
		dial(t, here, "tcp", "192.0.2.2:80")
		took(t, "dial", start, time.Second+in.RoundTrip("seoul", "tokyo"))
		if n := in.Counters()["dials_backlog_full_total"]; n != 1 {
			t.Fatalf("%d SYNs were dropped, want 1", n)
		}
	})
}

func TestWhoMayListenWhere(t *testing.T) {
	type socket struct{ network, address string }
	tests := []struct {
		first, second socket
		want          error
	}{
		{socket{"tcp", ":80"}, socket{"tcp", ":80"}, syscall.EADDRINUSE},
		{socket{"tcp", ":80"}, socket{"tcp", "192.0.2.1:80"}, syscall.EADDRINUSE},
		{socket{"tcp", "192.0.2.1:80"}, socket{"tcp", ":80"}, syscall.EADDRINUSE},
		{socket{"tcp", "192.0.2.1:80"}, socket{"tcp", "192.0.2.1:80"}, syscall.EADDRINUSE},
		{socket{"tcp4", ":80"}, socket{"tcp", "0.0.0.0:80"}, syscall.EADDRINUSE},
		{socket{"tcp4", ":80"}, socket{"tcp6", ":80"}, nil},
		{socket{"tcp4", ":80"}, socket{"tcp", "[::1]:80"}, nil},
		{socket{"tcp", "192.0.2.1:80"}, socket{"tcp", "127.0.0.1:80"}, nil},
		{socket{"tcp", "192.0.2.1:80"}, socket{"tcp", "192.0.2.1:81"}, nil},
		{socket{"tcp", ":53"}, socket{"udp", ":53"}, nil},
		{socket{"udp", ":53"}, socket{"udp", ":53"}, syscall.EADDRINUSE},
		{socket{"udp", ":53"}, socket{"udp", "192.0.2.1:53"}, syscall.EADDRINUSE},
		{socket{"tcp", ":80"}, socket{"tcp", "192.0.2.2:80"}, syscall.EADDRNOTAVAIL},
		{socket{"udp", ":80"}, socket{"udp", "192.0.2.2:53"}, syscall.EADDRNOTAVAIL},
		{socket{"tcp", "192.0.2.1:80"}, socket{"tcp", "203.0.113.1:80"}, nil}, // nobody's own: anycast, announced or not yet
	}
	open := func(h *Host, s socket) (io.Closer, error) {
		if s.network[:3] == "udp" {
			return h.ListenPacket(s.network, s.address)
		}
		return h.Listen(s.network, s.address)
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.first, tt.second), func(t *testing.T) {
			world(t, func(t *testing.T, in *Internet, here, _, _ *Host) {
				first, err := open(here, tt.first)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := open(here, tt.second); !errors.Is(err, tt.want) {
					t.Fatalf("got %v, want %v", err, tt.want)
				}
				if tt.want != syscall.EADDRINUSE {
					return
				}
				first.Close()
				if _, err := open(here, tt.second); err != nil {
					t.Fatalf("after the first has closed: %v", err)
				}
			})
		})
	}
}

func TestPortsArePickedOneAfterTheOther(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
		listen(t, far, ":80")
		addrs := []string{
			listen(t, here, "192.0.2.1:0").Addr().String(),
			listen(t, here, ":0").Addr().String(),
			listenPacket(t, here, "127.0.0.1:0").LocalAddr().String(),
			dial(t, here, "tcp", "192.0.2.2:80").LocalAddr().String(),
			dial(t, here, "udp", "192.0.2.2:53").LocalAddr().String(),
		}
		want := []string{"192.0.2.1:32768", "[::]:32769", "127.0.0.1:32770", "192.0.2.1:32771", "192.0.2.1:32772"}
		if !slices.Equal(addrs, want) {
			t.Fatalf("got %v, want %v", addrs, want)
		}
	})
}

func TestEveryHostHasALoopbackOfItsOwn(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
		listen(t, here, "127.0.0.1:80")
		listenPacket(t, here, "127.0.0.1:53")
		for _, address := range []string{"127.0.0.1:80", "localhost:80", ":80", "0.0.0.0:80"} {
			if c := dial(t, here, "tcp", address); c.LocalAddr().(*net.TCPAddr).IP.String() != "127.0.0.1" {
				t.Fatalf("%s is dialled from %v", address, c.LocalAddr())
			}
			if _, err := far.Dial(t.Context(), "tcp", address); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Fatalf("%s on another host: got %v", address, err)
			}
		}
		inside := listenPacket(t, here, "127.0.0.1:0")
		if _, err := inside.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(tokyoAddr, 53))); !errors.Is(err, syscall.EINVAL) {
			t.Fatalf("out of the loopback: got %v", err)
		}
	})
}

func TestNamesAreThoseThatWereGiven(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
		six := netip.MustParseAddr("2001:db8::1")
		in.Host("six", tokyo, six)
		in.Name("Origin.test", six, tokyoAddr)
		listen(t, far, ":80")
		if c := dial(t, here, "tcp4", "origin.TEST.:80"); c.RemoteAddr().String() != "192.0.2.2:80" {
			t.Fatalf("reached %v", c.RemoteAddr())
		}
		if _, err := here.Dial(t.Context(), "tcp", "origin.test:80"); !errors.Is(err, syscall.ENETUNREACH) {
			t.Fatalf("from a host without IPv6: got %v", err)
		}
		_, err := here.Dial(t.Context(), "tcp", "other.test:80")
		if notFound, ok := errors.AsType[*net.DNSError](err); !ok || !notFound.IsNotFound {
			t.Fatalf("a name that was not given: got %v", err)
		}
	})
}

func TestWhatCannotBeDialledOrListenedOn(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, _, _ *Host) {
		for _, tt := range []struct{ network, address string }{
			{"unix", "/tmp/x"}, {"tcp", "192.0.2.2"}, {"tcp", "192.0.2.2:http"}, {"tcp", "192.0.2.2:65536"},
			{"tcp6", "192.0.2.1:80"}, {"udp4", "[::1]:80"}, {"tcp", "nowhere.test:80"},
		} {
			if _, err := here.Dial(t.Context(), tt.network, tt.address); err == nil {
				t.Errorf("dialled %s %s", tt.network, tt.address)
			}
			if _, err := here.Listen(tt.network, tt.address); err == nil {
				t.Errorf("listens on %s %s", tt.network, tt.address)
			}
			if _, err := here.ListenPacket(tt.network, tt.address); err == nil {
				t.Errorf("listens for packets on %s %s", tt.network, tt.address)
			}
		}
		if _, err := here.Listen("udp", ":80"); err == nil {
			t.Error("listens for streams on udp")
		}
		if _, err := here.ListenPacket("tcp", ":80"); err == nil {
			t.Error("listens for packets on tcp")
		}
		start := time.Now()
		if _, err := here.Dial(t.Context(), "tcp", "198.51.100.1:80"); !errors.Is(err, syscall.EHOSTUNREACH) {
			t.Errorf("an address that no host has: got %v", err)
		}
		took(t, "unreachable", start, 0)
	})
}

// The kernel shows IPv4 peers of a dual-stack socket in 16 bytes: who forgets to unmap them is found out here.
func TestADualStackWildcardSeesIPv4In16Bytes(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
		for _, tt := range []struct {
			network, address string
			mapped           bool
		}{{"tcp", ":80", true}, {"tcp4", ":81", false}, {"tcp", "192.0.2.2:82", false}} {
			l, err := far.Listen(tt.network, tt.address)
			if err != nil {
				t.Fatal(err)
			}
			c := dial(t, here, "tcp", fmt.Sprintf("192.0.2.2:%d", l.Addr().(*net.TCPAddr).Port))
			s, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if s.RemoteAddr().String() != c.LocalAddr().String() || s.LocalAddr().String() != c.RemoteAddr().String() {
				t.Errorf("%s %s: the ends are %v %v and %v %v", tt.network, tt.address, c.LocalAddr(), c.RemoteAddr(), s.RemoteAddr(), s.LocalAddr())
			}
			if got := s.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Is4In6(); got != tt.mapped {
				t.Errorf("%s %s: mapped: %v, want %v", tt.network, tt.address, got, tt.mapped)
			}
		}
		socket := listenPacket(t, far, ":53")
		u := dial(t, here, "udp", "192.0.2.2:53")
		write(t, u, "x")
		_, from, _ := socket.ReadFrom(make([]byte, 1))
		if !from.(*net.UDPAddr).AddrPort().Addr().Is4In6() {
			t.Errorf("a datagram is from %v, in 4 bytes", from)
		}
		socket.WriteTo([]byte("y"), from) // and it can be answered
		read(t, u, 1)
	})
}

func TestAnycastReachesTheNearestThatAnnounces(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, client, near, far *Host) {
		hosts := []*Host{near, far}
		for _, h := range hosts {
			l := listen(t, h, "203.0.113.1:80")
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					io.WriteString(c, h.Name())
				}
			}()
			socket := listenPacket(t, h, "203.0.113.1:53")
			go func() {
				for {
					_, from, err := socket.ReadFrom(make([]byte, 1))
					if err != nil {
						return
					}
					socket.WriteTo([]byte(h.Name()), from)
				}
			}()
		}
		reaches := func(when, want string) {
			t.Helper()
			c := dial(t, client, "tcp", "203.0.113.1:80")
			if got := read(t, c, len(want)); got != want || c.RemoteAddr().String() != "203.0.113.1:80" {
				t.Fatalf("%s: a dial reached %s at %v, want %s", when, got, c.RemoteAddr(), want)
			}
			c.Close()
			u := dial(t, client, "udp", "203.0.113.1:53")
			write(t, u, "?")
			b := make([]byte, 16)
			if n, _ := u.Read(b); string(b[:n]) != want {
				t.Fatalf("%s: a datagram reached %s, want %s", when, b[:n], want)
			}
			u.Close()
		}

		if _, err := client.Dial(t.Context(), "tcp", "203.0.113.1:80"); !errors.Is(err, syscall.EHOSTUNREACH) {
			t.Fatalf("nobody announces it: got %v", err)
		}
		far.Announce(anycastAddr)
		reaches("only the far one announces", "virginia")
		near.Announce(anycastAddr)
		near.Announce(anycastAddr)
		reaches("both announce", "tokyo")
		in.Slow("seoul", "tokyo", time.Second)
		reaches("the near one is slowed", "tokyo")
		in.Link("seoul", "virginia", Path{Delay: time.Millisecond})
		reaches("the far one comes near", "virginia")
		in.Link("seoul", "virginia", Path{})

		held := dial(t, client, "tcp", "203.0.113.1:80")
		near.Withdraw(anycastAddr)
		reaches("the near one has withdrawn", "virginia")
		if got := read(t, held, 5); got != "tokyo" {
			t.Fatalf("an open stream went to %s", got)
		}
		near.Announce(anycastAddr)
		near.Crash()
		reaches("the near one has crashed", "virginia")
		near.Restart()
		reaches("it is back, but announces nothing", "virginia")
		near.Announce(anycastAddr)
		if _, err := client.Dial(t.Context(), "tcp", "203.0.113.1:80"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("it announces, but does not listen: got %v", err)
		}
		near.Kill()
		near.Announce(anycastAddr)
		reaches("its process was killed", "virginia")
	})
}

func TestOfEquallyNearHostsTheFirstAddedTakesAnycast(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, client, _, _ *Host) {
		first := in.Host("first", tokyo, netip.MustParseAddr("192.0.2.10"))
		second := in.Host("second", tokyo, netip.MustParseAddr("192.0.2.11"))
		second.Announce(anycastAddr)
		first.Announce(anycastAddr)
		listen(t, first, ":80")
		dial(t, client, "tcp", "203.0.113.1:80")
	})
}

func TestKillResetsStreamsAndRefusesDials(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
		c, s := pair(t, here, far)
		write(t, s, "last words")
		l := listen(t, far, ":81")
		socket := listenPacket(t, far, ":53")
		accepting := make(chan error, 1)
		go func() {
			_, err := l.Accept()
			accepting <- err
		}()
		synctest.Wait()

		start := time.Now()
		far.Kill()
		if err := <-accepting; !errors.Is(err, net.ErrClosed) {
			t.Fatalf("its listener: got %v", err)
		}
		if _, err := s.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Fatalf("its end of the stream: got %v", err)
		}
		if _, _, err := socket.ReadFrom(nil); !errors.Is(err, net.ErrClosed) {
			t.Fatalf("its socket: got %v", err)
		}
		if _, err := far.Listen("tcp", ":82"); !errors.Is(err, syscall.ENETDOWN) {
			t.Fatalf("it listens again: got %v", err)
		}
		if _, err := far.Dial(t.Context(), "tcp", "192.0.2.1:80"); !errors.Is(err, syscall.ENETDOWN) {
			t.Fatalf("it dials: got %v", err)
		}
		took(t, "all that", start, 0)

		if got := read(t, c, 10); got != "last words" {
			t.Fatalf("read %q", got)
		}
		_, err := c.Read(make([]byte, 1))
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("read from the far end: got %v", err)
		}
		took(t, "the reset", start, oneWay(seoul, tokyo))
		if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("write to it: got %v", err)
		}
		if _, err := here.Dial(t.Context(), "tcp", "192.0.2.2:81"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("dial to it: got %v", err)
		}

		far.Restart()
		listen(t, far, ":81")
		dial(t, here, "tcp", "192.0.2.2:81")
	})
}

func TestKillEndsDialsOfTheProcess(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
		in.Cut("seoul", "tokyo")
		time.AfterFunc(time.Second/2, here.Kill)
		start := time.Now()
		if _, err := here.Dial(t.Context(), "tcp", "192.0.2.2:80"); !errors.Is(err, net.ErrClosed) {
			t.Fatalf("got %v", err)
		}
		took(t, "dial", start, time.Second/2)
	})
}

func TestACrashIsSilenceAndARestartAReset(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
		idle, _ := pair(t, here, far)
		busy, s := pair(t, here, far)
		write(t, s, "never arrives")
		far.Crash()

		for _, c := range []net.Conn{idle, busy} {
			c.SetReadDeadline(time.Now().Add(time.Hour))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("read from a crashed host: got %v", err)
			}
			c.SetReadDeadline(time.Time{})
		}
		write(t, busy, "into the void")

		start := time.Now()
		far.Restart()
		rtt := in.RoundTrip("seoul", "tokyo")
		for _, tt := range []struct {
			c    net.Conn
			want time.Duration
		}{{busy, max(Retransmit, rtt) + oneWay(tokyo, seoul)}, {idle, KeepAlive + rtt}} {
			if _, err := tt.c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Fatalf("read after the restart: got %v", err)
			}
			took(t, "the reset", start, tt.want)
		}
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Fatalf("its end of the stream: got %v", err)
		}
	})
}

func TestTheResetOfARestartWaitsForACutToHeal(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
		c, _ := pair(t, here, far)
		far.Crash()
		in.CutOneWay("tokyo", "seoul")
		far.Restart()
		write(t, c, "is anybody there?")
		time.Sleep(time.Hour)
		start := time.Now()
		in.Heal("seoul", "tokyo")
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("got %v", err)
		}
		took(t, "the reset", start, Retransmit)
	})
}

func TestACrashedProcessFindsSilenceUntilItIsKilled(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
		c, s := pair(t, here, far)
		far.Crash()
		write(t, s, "into the void")
		s.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("got %v", err)
		}
		far.Kill()
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Fatalf("got %v", err)
		}
		c.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("the far end heard of it: %v", err)
		}
	})
}

func TestStreamsGoOnWhenACutHeals(t *testing.T) {
	cuts := map[string]struct{ cut, heal func(in *Internet) }{
		"cut":      {func(in *Internet) { in.Cut("seoul", "tokyo") }, func(in *Internet) { in.Heal("tokyo", "seoul") }},
		"one way":  {func(in *Internet) { in.CutOneWay("seoul", "tokyo") }, func(in *Internet) { in.Heal("seoul", "tokyo") }},
		"cut off":  {func(in *Internet) { in.CutOff("tokyo") }, func(in *Internet) { in.Rejoin("tokyo") }},
		"both off": {func(in *Internet) { in.CutOff("tokyo"); in.CutOff("seoul") }, func(in *Internet) { in.Rejoin("tokyo"); in.Rejoin("seoul") }},
	}
	for name, tt := range cuts {
		t.Run(name, func(t *testing.T) {
			world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
				c, s := pair(t, here, far)
				sent := pattern(3 * Window)
				go func() {
					for chunk := range slices.Chunk(sent, 1000) {
						if _, err := c.Write(chunk); err != nil {
							t.Error(err)
						}
						time.Sleep(time.Millisecond)
					}
					c.Close()
				}()
				time.AfterFunc(100*time.Millisecond, func() { tt.cut(in) })
				time.AfterFunc(10*time.Minute, func() { tt.heal(in) })

				start := time.Now()
				got, err := io.ReadAll(s)
				if err != nil || !slices.Equal(got, sent) {
					t.Fatalf("got %d bytes of %d, or others: %v", len(got), len(sent), err)
				}
				if d := time.Since(start); d < 10*time.Minute {
					t.Fatalf("the cut did not hold: all was there after %v", d)
				}
			})
		})
	}
}

func TestAfterACutTheBytesComeByRetransmission(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
		c, s := pair(t, here, far)
		write(t, c, "on its way ")
		in.Cut("seoul", "tokyo")
		write(t, c, "into the cut")
		time.Sleep(time.Hour)
		start := time.Now()
		in.Heal("seoul", "tokyo")
		if got := read(t, s, 23); got != "on its way into the cut" {
			t.Fatalf("got %q", got)
		}
		took(t, "the rest", start, Retransmit)
	})
}

func TestACutOffHostStillReachesItself(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, _, _ *Host) {
		in.CutOff("seoul")
		listen(t, here, ":80")
		dial(t, here, "tcp", "192.0.2.1:80")
	})
}

func TestADatagramMeetsACutOnItsWay(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
		socket := listenPacket(t, far, ":53")
		u := dial(t, here, "udp", "192.0.2.2:53")
		write(t, u, "1") // arrives after the cut
		time.Sleep(time.Microsecond)
		in.Cut("seoul", "tokyo")
		write(t, u, "2") // is sent into it
		time.Sleep(time.Second)
		in.Heal("seoul", "tokyo")
		write(t, u, "3")
		b := make([]byte, 1)
		if socket.ReadFrom(b); string(b) != "3" {
			t.Fatalf("datagram %s arrived", b)
		}
		if n := in.Counters()["datagrams_cut_total"]; n != 2 {
			t.Fatalf("%d were cut, want 2", n)
		}
	})
}

func TestCloseEndsAllThatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := New(1)
		here := in.Host("seoul", seoul, seoulAddr)
		far := in.Host("tokyo", tokyo, tokyoAddr)
		in.Host("virginia", virginia, virginiaAddr)
		in.CutOff("virginia")
		c, s := pair(t, here, far)
		l, socket := listen(t, far, ":80"), listenPacket(t, far, ":53")

		var wg sync.WaitGroup
		waits := map[string]func() error{
			"read":     func() error { _, err := s.Read(make([]byte, 1)); return err },
			"write":    func() error { _, err := s.Write(make([]byte, 2*Window)); return err },
			"accept":   func() error { _, err := l.Accept(); return err },
			"readFrom": func() error { _, _, err := socket.ReadFrom(make([]byte, 1)); return err },
			"dial":     func() error { _, err := here.Dial(context.Background(), "tcp", "192.0.2.3:80"); return err },
		}
		for name, wait := range waits {
			wg.Go(func() {
				if err := wait(); !errors.Is(err, net.ErrClosed) {
					t.Errorf("%s: got %v", name, err)
				}
			})
		}
		time.Sleep(2 * time.Second)
		in.Close()
		in.Close()
		wg.Wait()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read: got %v", err)
		}
		if _, err := here.Dial(t.Context(), "tcp", "192.0.2.2:80"); !errors.Is(err, net.ErrClosed) {
			t.Errorf("dial: got %v", err)
		}
		if _, err := here.Listen("tcp", ":80"); !errors.Is(err, net.ErrClosed) {
			t.Errorf("listen: got %v", err)
		}
	})
}

func TestMistakesOfATestPanic(t *testing.T) {
	mistakes := map[string]func(in *Internet, h *Host){
		"a host twice":              func(in *Internet, h *Host) { in.Host("seoul", seoul) },
		"an address twice":          func(in *Internet, h *Host) { in.Host("busan", seoul, seoulAddr) },
		"a link to nowhere":         func(in *Internet, h *Host) { in.Link("seoul", "atlantis", Path{}) },
		"a cut to nowhere":          func(in *Internet, h *Host) { in.Cut("seoul", "atlantis") },
		"a path that loses all":     func(in *Internet, h *Host) { in.Link("seoul", "tokyo", Path{Loss: 1}) },
		"an own address as anycast": func(in *Internet, h *Host) { h.Announce(tokyoAddr) },
	}
	for name, mistake := range mistakes {
		t.Run(name, func(t *testing.T) {
			world(t, func(t *testing.T, in *Internet, here, _, _ *Host) {
				defer func() {
					if recover() == nil {
						t.Error("no panic")
					}
				}()
				mistake(in, here)
			})
		})
	}
}

// pattern is bytes of which no stretch is like another nearby.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*i>>7 ^ i)
	}
	return b
}
