//go:build linux

package netns

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"math"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"

	"github.com/perigee-net/perigee/testbed/wan"
)

func TestTwoHostsOfASiteReachEachOtherThroughTheRouter(t *testing.T) {
	lab(t)
	a, router, b := pair(t)
	for _, address := range []string{"10.1.0.11:80", "[fd00:0:1::b]:80"} {
		echo(t, b, address)
		ok(t, reaches(t, a, address, 5*time.Second))
	}
	hop, err := a.Lookup(addr4(1))
	ok(t, err)
	if want := (Hop{Link: "eth0", Via: netip.MustParseAddr("10.1.0.1")}); hop != want {
		t.Errorf("from the host: %+v", hop)
	}
	hop, err = router.Lookup(addr6(1))
	ok(t, err)
	if want := (Hop{Link: "h-1"}); hop != want {
		t.Errorf("from the router: %+v", hop)
	}
	hop, err = b.Lookup(addr6(1))
	ok(t, err)
	if !hop.Local {
		t.Errorf("at the end: %+v", hop)
	}
	if _, err := router.Lookup(netip.MustParseAddr("192.0.2.1")); err == nil || !strings.Contains(err.Error(), router.Name) {
		t.Errorf("no route: %v", err)
	}
}

func TestABlackholeIsSilentAndOfOneDirection(t *testing.T) {
	lab(t)
	a, router, b := pair(t)
	const soon = 150 * time.Millisecond
	for i, address := range []string{"10.1.0.11:80", "[fd00:0:1::b]:80"} {
		echo(t, b, address)
		from, to := addr4(0), addr4(1)
		if i == 1 {
			from, to = addr6(0), addr6(1)
		}
		none := netip.Addr{}
		for _, cut := range [][2]netip.Addr{{from, to}, {to, from}, {from, none}, {none, to}, {none, none}} {
			for range 2 { // the second changes nothing
				ok(t, router.Blackhole(cut[0], cut[1]))
			}
			if err := reaches(t, a, address, soon); !isTimeout(err) {
				t.Errorf("%v: want silence, got %v", cut, err)
			}
			for range 2 {
				ok(t, router.Unblackhole(cut[0], cut[1]))
			}
			ok(t, reaches(t, a, address, 5*time.Second))
		}
		// What is dropped one way only: the other direction's packets still come.
		seen, err := b.ListenPacket("udp", netip.AddrPortFrom(to, 99).String())
		ok(t, err)
		ok(t, router.Blackhole(to, from))
		c, err := a.Dial(context.Background(), "udp", netip.AddrPortFrom(to, 99).String())
		ok(t, err)
		c.Write([]byte("hello"))
		seen.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, _, err := seen.ReadFrom(make([]byte, 10)); err != nil {
			t.Errorf("the other direction: %v", err)
		}
		c.Close()
		seen.Close()
		ok(t, router.Unblackhole(none, none))
	}
	ok(t, router.Blackhole(addr4(0), addr4(1)))
	ok(t, router.Blackhole(netip.Addr{}, addr6(1)))
	output(t, router, "ip", "rule", "add", "from", "10.9.9.9", "blackhole", "pref", "100") // somebody else's
	ok(t, router.Unblackhole(netip.Addr{}, netip.Addr{}))
	rules := output(t, router, "ip", "rule") + output(t, router, "ip", "-6", "rule")
	if strings.Count(rules, "blackhole") != 1 || !strings.Contains(rules, "10.9.9.9") {
		t.Errorf("left: %s", rules)
	}
	if err := router.Blackhole(addr4(0), addr6(1)); err == nil {
		t.Error("took addresses of two families")
	}
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &e) && e.Timeout()
}

func TestAnAnycastPrefixIsLocalToItsHost(t *testing.T) {
	lab(t)
	a, router, b := pair(t)
	for i, text := range []string{"198.51.100.0/24", "2001:db8:100::/48"} {
		prefix := netip.MustParsePrefix(text)
		one := prefix.Addr().Next()
		via := addr4(1)
		if i == 1 {
			via = addr6(1)
		}
		address := netip.AddrPortFrom(one, 443).String()
		for range 2 {
			ok(t, b.AddRoute(Route{To: prefix, Local: true}))
			ok(t, router.AddRoute(Route{To: prefix, Via: via}))
		}
		echo(t, b, address)
		ok(t, reaches(t, a, address, 5*time.Second))
		for range 2 {
			ok(t, router.DelRoute(Route{To: prefix, Via: via}))
			ok(t, b.DelRoute(Route{To: prefix, Local: true}))
		}
		if hop, err := b.Lookup(one); err != nil || hop.Local {
			t.Errorf("after all was taken back: %+v, %v", hop, err)
		}
	}
}

func TestRoutesThatCannotBeAreRefusedWithTheirNames(t *testing.T) {
	lab(t)
	n := made(t, "routes")
	for _, r := range []Route{
		{},
		{To: netip.MustParsePrefix("10.0.0.1/24"), Link: "lo"},
		{To: netip.MustParsePrefix("10.0.0.0/24")},
		{To: netip.MustParsePrefix("10.0.0.0/24"), Via: netip.MustParseAddr("fd00::1")},
		{To: netip.MustParsePrefix("10.0.0.0/24"), Via: netip.MustParseAddr("10.9.0.1")},
		{To: netip.MustParsePrefix("10.0.0.0/24"), Link: "none"},
		{To: netip.MustParsePrefix("10.0.0.0/24"), Via: netip.MustParseAddr("10.9.0.1"), Local: true},
	} {
		if err := n.AddRoute(r); err == nil || !strings.Contains(err.Error(), n.Name) || !strings.Contains(err.Error(), r.String()) {
			t.Errorf("%v: %v", r, err)
		}
	}
	if err := n.Up("none"); !errors.Is(err, ErrNoLink) || !strings.Contains(err.Error(), "link none") {
		t.Errorf("no such link: %v", err)
	}
	ok(t, n.RemoveLink("none"))
}

// If the numbers were the same, IPv6 would begin up to a second after Up.
func TestTheTwoEndsOfALinkHaveDifferentNumbers(t *testing.T) {
	lab(t)
	a, b := made(t, "a"), made(t, "b")
	for _, name := range []string{"w-icn", "w-fra", "w-iad"} {
		ok(t, Veth(a, name, b, name))
	}
	numbers := func(n *Namespace) string {
		var list []string
		for line := range strings.Lines(output(t, n, "ip", "-o", "link", "show", "type", "veth")) {
			number, _, _ := strings.Cut(line, ":")
			list = append(list, number)
		}
		return strings.Join(list, " ")
	}
	for _, number := range strings.Fields(numbers(a)) {
		if strings.Contains(" "+numbers(b)+" ", " "+number+" ") {
			t.Errorf("%s and %s", numbers(a), numbers(b))
		}
	}
	if err := Veth(a, "one", b, "w-icn"); err == nil || !strings.Contains(err.Error(), "w-icn") {
		t.Errorf("the other end's name is taken: %v", err)
	}
}

func TestWithoutOffloadTheRouterSeesPacketsAndNotBundles(t *testing.T) {
	lab(t)
	a, router, b := pair(t)
	l, err := b.Listen("tcp", "10.1.0.11:80")
	ok(t, err)
	const size = 1 << 20
	got := make(chan int64)
	go func() {
		var k int64
		if c, err := l.Accept(); err == nil {
			k, _ = io.Copy(io.Discard, c)
			c.Close()
		}
		got <- k
	}()
	c, err := a.Dial(within(t, 5*time.Second), "tcp", "10.1.0.11:80")
	ok(t, err)
	_, err = c.Write(make([]byte, size))
	ok(t, err)
	c.Close()
	if k := <-got; k != size {
		t.Fatalf("%d bytes arrived", k)
	}
	l.Close()
	received := 0
	ok(t, router.onLink("count", "h-0", func(_ *netlink.Handle, l netlink.Link) error {
		received = int(l.Attrs().Statistics.RxPackets)
		return nil
	}))
	if received < size/1500 {
		t.Errorf("%d bytes in %d packets", size, received)
	}
}

func TestTheOtherEndsAreGoneWhenDeleteReturns(t *testing.T) {
	lab(t)
	hub := made(t, "hub")
	const links = 20
	leaf := made(t, "leaf")
	for i := range links {
		ok(t, Veth(leaf, "l"+strconv.Itoa(i), hub, "h"+strconv.Itoa(i)))
	}
	tun, err := Tun(leaf, "tun0")
	ok(t, err)
	defer tun.Close()
	ok(t, leaf.Delete(within(t, 10*time.Second)))
	names, err := hub.Links()
	ok(t, err)
	if d := cmp.Diff([]string{"lo"}, names); d != "" {
		t.Error(d)
	}
}

func TestLinksAreUpDownSizedAndRemoved(t *testing.T) {
	lab(t)
	n := made(t, "links")
	ok(t, Veth(n, "one", n, "two"))
	ok(t, n.SetMTU("one", 1400))
	ok(t, n.SetQueue("one", 77))
	ok(t, n.Up("one"))
	ok(t, n.Up("two"))
	show := output(t, n, "ip", "-d", "link", "show", "one")
	for _, want := range []string{"mtu 1400", "qlen 77", ",UP"} {
		if !strings.Contains(show, want) {
			t.Errorf("no %q in %s", want, show)
		}
	}
	ok(t, n.Down("one"))
	if show := output(t, n, "ip", "link", "show", "one"); strings.Contains(show, ",UP") {
		t.Errorf("down: %s", show)
	}
	if err := Veth(n, "one", n, "three"); err == nil || !strings.Contains(err.Error(), "one") {
		t.Errorf("a name that is taken: %v", err)
	}
	ok(t, n.RemoveLink("two"))
	ok(t, n.RemoveLink("one"))
	if names, err := n.Links(); err != nil || len(names) != 1 {
		t.Errorf("left: %v, %v", names, err)
	}
	for range 2 {
		ok(t, n.AddAddr("lo", netip.MustParsePrefix("10.1.0.1/24"), netip.Addr{}))
	}
	if err := n.AddAddr("lo", netip.MustParsePrefix("10.1.0.1/24"), netip.MustParseAddr("fd00::1")); err == nil {
		t.Error("took a peer of another family")
	}
}

func TestATUNDeviceCarriesPacketsAndWaitsWithoutAThread(t *testing.T) {
	lab(t)
	n := made(t, "tun")
	tun, err := Tun(n, "w-fra")
	ok(t, err)
	defer tun.Close()
	if _, err := Tun(n, "w-fra"); err == nil || !strings.Contains(err.Error(), "w-fra") {
		t.Errorf("a name that is taken: %v", err)
	}
	ok(t, n.Sysctl("net.ipv6.conf.w-fra.disable_ipv6", "1")) // it would speak first
	ok(t, n.AddAddr("w-fra", netip.MustParsePrefix("10.255.0.0/31"), netip.Addr{}))
	ok(t, n.Up("w-fra"))

	buf := make([]byte, 2000)
	tun.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if k, err := tun.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("nothing to read: %d, %v", k, err)
	}
	body, err := (&icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: 7, Seq: 1, Data: []byte("ping")}}).Marshal(nil)
	ok(t, err)
	header, err := (&ipv4.Header{Version: 4, Len: 20, TotalLen: 20 + len(body), TTL: 64, Protocol: 1, Src: net.IPv4(10, 255, 0, 1), Dst: net.IPv4(10, 255, 0, 0)}).Marshal()
	ok(t, err)
	packet := append(header, body...)
	packet[10], packet[11] = checksum(header)
	_, err = tun.Write(packet)
	ok(t, err)
	tun.SetReadDeadline(time.Now().Add(5 * time.Second))
	k, err := tun.Read(buf)
	ok(t, err)
	reply, err := icmp.ParseMessage(1, buf[20:k])
	ok(t, err)
	if reply.Type != ipv4.ICMPTypeEchoReply {
		t.Errorf("got %+v", reply)
	}
	tun.Close()
	if names, err := n.Links(); err != nil || len(names) != 1 {
		t.Errorf("closed, but there: %v, %v", names, err)
	}
}

// checksum is that of an IPv4 header (RFC 791 section 3.1).
func checksum(header []byte) (byte, byte) {
	sum := 0
	for i := 0; i < len(header); i += 2 {
		sum += int(header[i])<<8 | int(header[i+1])
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return byte(^sum >> 8), byte(^sum)
}

func TestASettingIsTheNamespacesAndNeverTheMachines(t *testing.T) {
	lab(t)
	n := made(t, "sysctl")
	const file = "/proc/sys/net/ipv4/ip_default_ttl"
	before, err := os.ReadFile(file)
	ok(t, err)
	ok(t, n.Sysctl("net.ipv4.ip_default_ttl", "33"))
	ok(t, n.Sysctl("net/ipv4/conf/lo/rp_filter", "0"))
	if got := output(t, n, "cat", file); got != "33\n" {
		t.Errorf("inside: %q", got)
	}
	if after, err := os.ReadFile(file); err != nil || string(after) != string(before) {
		t.Errorf("the machine's: %q, %v", after, err)
	}
	if err := n.Sysctl("net.ipv4.no_such", "1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no such setting: %v", err)
	}
	for _, key := range []string{"kernel.hostname", "net/../kernel/hostname", "", "/net/ipv4/ip_forward", "net", "net/"} {
		if err := n.Sysctl(key, "x"); err == nil || !strings.Contains(err.Error(), "not a network setting") {
			t.Errorf("%q: %v", key, err)
		}
	}
}

func TestAPathInNetemsWords(t *testing.T) {
	full := wan.Path{Delay: 100 * time.Millisecond, Jitter: 10 * time.Millisecond, Loss: 0.2, Reorder: 0.25, Rate: 8_000_000, Queue: 50}
	q := netem(7, full)
	if q.LinkIndex != 7 || q.Latency != 1_562_500 || q.Jitter != 156_250 || q.Limit != 50+1_719 || q.Rate64 != 1_000_000 || q.Gap != 1 {
		t.Errorf("got %+v", q)
	}
	if got := float64(q.Loss) / math.MaxUint32; math.Abs(got-0.2) > 1e-9 {
		t.Errorf("loss %v", got)
	}
	if got := float64(q.ReorderProb) / math.MaxUint32; math.Abs(got-0.25) > 1e-9 {
		t.Errorf("reorder %v", got)
	}
	if q := netem(7, wan.Path{Loss: 1}); q.Loss != math.MaxUint32 || q.Rate64 != 0 || q.Gap != 0 || q.Limit != anyLimit {
		t.Errorf("all lost: %+v", q)
	}
	if q := netem(7, wan.Path{Delay: time.Second, Jitter: time.Millisecond}); q.Rate64 != orderRate/8 {
		t.Errorf("jitter would reorder: %+v", q)
	}
	if q := netem(7, wan.Path{Delay: wan.MaxDelay, Jitter: wan.MaxDelay}); q.Latency != uint32(wan.MaxDelay/64) {
		t.Errorf("the longest delay: %+v", q)
	}
}

func TestNetemIsSetChangedAndAskedBackWhereTheKernelHasIt(t *testing.T) {
	lab(t)
	has, err := HasNetem()
	ok(t, err)
	n := made(t, "netem")
	ok(t, Veth(n, "one", n, "two"))
	path := wan.Path{Delay: 20 * time.Millisecond, Jitter: time.Millisecond, Loss: 0.2, Reorder: 0.1, Rate: 1_000_000, Queue: 77}
	if err := n.Netem("one", path); (err == nil) != has {
		t.Fatalf("the kernel has netem: %v; set: %v", has, err)
	}
	if err := n.Netem("one", wan.Path{Loss: 2}); err == nil || !strings.Contains(err.Error(), "one") {
		t.Errorf("a path that cannot be: %v", err)
	}
	if len(threadsAway(t)) != 0 {
		t.Errorf("away: %v", threadsAway(t))
	}
	if !has {
		t.Skip("the kernel has no sch_netem: setting it is tested in user-mode-linux")
	}
	if show := output(t, n, "tc", "qdisc", "show", "dev", "one"); !strings.Contains(show, "limit 119") || !strings.Contains(show, "delay 20") ||
		!strings.Contains(show, "loss 20%") || !strings.Contains(show, "reorder 10%") || !strings.Contains(show, "rate 1Mbit") {
		t.Errorf("tc shows %s", show)
	}
	ok(t, n.Netem("one", wan.Path{}))
	if show := output(t, n, "tc", "qdisc", "show", "dev", "one"); strings.Contains(show, "delay") || strings.Contains(show, "loss") {
		t.Errorf("of the path that is nothing tc shows %s", show)
	}
}
