//go:build linux

package netns

import (
	"context"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

func TestThreadsComeHome(t *testing.T) {
	lab(t)
	a, _, b := pair(t)
	echo(t, b, "10.1.0.11:80")
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 20 {
				if err := reaches(t, a, "10.1.0.11:80", 5*time.Second); err != nil {
					t.Error(err)
				}
				a.Dial(context.Background(), "tcp", "10.1.0.11:81") // refused
				a.Dial(context.Background(), "tcp", "no address")
			}
		})
	}
	all.Wait()
	if away := threadsAway(t); len(away) != 0 {
		t.Errorf("not home: %v", away)
	}
}

func TestAThreadThatCannotComeHomeIsEndedAndNotReused(t *testing.T) {
	lab(t)
	n := made(t, "lost")
	var tid int
	err := n.inside(func(th *thread) error {
		tid = unix.Gettid()
		unix.Close(th.home)
		th.home = 1 << 30 // not a namespace
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "come back") {
		t.Errorf("got %v", err)
	}
	await(t, "the thread is gone", func() bool { return unix.Tgkill(os.Getpid(), tid, 0) == syscall.ESRCH })
	if away := threadsAway(t); len(away) != 0 {
		t.Errorf("not home: %v", away)
	}
	ok(t, n.Up("lo"))
}

func TestTheMainThreadNeverGoesInside(t *testing.T) {
	lab(t)
	n := made(t, "main")
	var all sync.WaitGroup
	for range 200 {
		all.Go(func() {
			if err := n.inside(func(*thread) error {
				if unix.Gettid() == unix.Getpid() {
					t.Error("the main thread is inside")
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

func TestAThousandDialsThatHangHoldNoThreads(t *testing.T) {
	lab(t)
	a, router, _ := pair(t)
	ok(t, router.Blackhole(netip.Addr{}, addr4(1)))
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for range 1000 {
		all.Go(func() {
			if _, err := a.Dial(ctx, "tcp", "10.1.0.11:80"); err == nil {
				t.Error("a blackhole answered")
			}
		})
	}
	// As many connections are on their way as are in SYN-SENT.
	await(t, "1,000 are on their way", func() bool {
		return strings.Count(output(t, a, "cat", "/proc/net/tcp"), " 02 ") == 1000
	})
	threads, err := os.ReadDir("/proc/self/task")
	ok(t, err)
	cancel()
	all.Wait()
	if len(threads) > 200 {
		t.Errorf("%d threads", len(threads))
	}
	t.Logf("%d threads", len(threads))
}

func TestANameIsAskedOfTheNamespacesOwnServer(t *testing.T) {
	lab(t)
	a, _, b := pair(t)
	if _, err := a.Dial(context.Background(), "tcp", "www.example.test:80"); err == nil || !strings.Contains(err.Error(), a.Name) {
		t.Errorf("without a resolv.conf: %v", err)
	}
	server, err := b.ListenPacket("udp", "10.1.0.11:53")
	ok(t, err)
	var all sync.WaitGroup
	all.Go(func() { answer(t, server) })
	t.Cleanup(func() { server.Close(); all.Wait() })
	ok(t, a.WriteResolv("# the resolver of the site\nsearch example.test\nnameserver 10.1.0.11\n"))
	echo(t, b, "10.1.0.11:80")
	ok(t, reaches(t, a, "www.example.test:80", 5*time.Second))
	addrs, err := a.Resolver().LookupNetIP(within(t, 5*time.Second), "ip4", "www.example.test.")
	ok(t, err)
	if len(addrs) != 1 || addrs[0] != addr4(1) {
		t.Errorf("got %v", addrs)
	}
}

// answer is a name server that says 10.1.0.11 to every question for an A record, and nothing to others.
func answer(t *testing.T, c net.PacketConn) {
	buf := make([]byte, 1500)
	for {
		k, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if err := m.Unpack(buf[:k]); err != nil || len(m.Questions) != 1 {
			t.Errorf("question: %v", err)
			continue
		}
		q := m.Questions[0]
		r := dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true, RecursionAvailable: true}, Questions: m.Questions}
		if q.Type == dnsmessage.TypeA {
			r.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1}, Body: &dnsmessage.AResource{A: addr4(1).As4()}}}
		}
		packet, err := r.Pack()
		if err != nil {
			t.Error(err)
			continue
		}
		c.WriteTo(packet, from)
	}
}

func TestNameserversOfAResolvConf(t *testing.T) {
	got := nameservers("#c\nnameserver\nnameserver x\n nameserver 10.1.0.2 # a\nsearch a\nnameserver fd00::2\nnameserver 10.0.0.3\nnameserver 10.0.0.4\n")
	want := []netip.Addr{netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd00::2"), netip.MustParseAddr("10.0.0.3")}
	if len(got) != len(want) || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
		t.Errorf("got %v", got)
	}
}

func TestAListenerOnEveryAddressHearsBothFamilies(t *testing.T) {
	lab(t)
	a, _, b := pair(t)
	if _, err := net.Listen("tcp6", "[::1]:0"); err != nil {
		t.Skipf("this machine has no IPv6: %v", err)
	}
	echo(t, b, ":80")
	ok(t, reaches(t, a, "10.1.0.11:80", 5*time.Second))
	ok(t, reaches(t, a, "[fd00:0:1::b]:80", 5*time.Second))
}
