package backbone

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/perigee-net/perigee/cluster/control"
	"github.com/perigee-net/perigee/cluster/identity"
	"github.com/perigee-net/perigee/testbed/netns"
	"github.com/perigee-net/perigee/testbed/pump"
	"github.com/perigee-net/perigee/testbed/wan"
)

// patience is how long the kernel's matrix waits for one flow.
const patience = 15 * time.Second

// TestOcean measures flows over an ocean between two kernels' sockets, with TCP and with the backbone, when PERIGEE_OCEAN says how
// often each. It has to be root. The columns are median and spread of the seconds to the first byte and to the last; PERIGEE_OCEAN_SIZE is the
// flow's bytes (1000000), PERIGEE_OCEAN_ONLY names the ways that are measured, with commas.
func TestOcean(t *testing.T) {
	runs, _ := strconv.Atoi(os.Getenv("PERIGEE_OCEAN"))
	if runs == 0 {
		return
	}
	size, _ := strconv.Atoi(os.Getenv("PERIGEE_OCEAN_SIZE"))
	if size == 0 {
		size = 1_000_000
	}
	near, far, link := ocean(t)
	cubic, bbr := tcpServer(t, far, "cubic"), tcpServer(t, far, "bbr")
	const rate, queue = 300_000_000, 2500
	fmt.Printf("%d bytes, %d Mbit/s; median [least–most] of %d\n", size, rate/1_000_000, runs)
	only := strings.Split(os.Getenv("PERIGEE_OCEAN_ONLY"), ",")
	for _, rtt := range []time.Duration{20 * ms, 80 * ms, 150 * ms, 250 * ms} {
		for _, loss := range []float64{0, 0.001, 0.01} {
			p := wan.Path{Delay: rtt / 2, Loss: loss, Rate: rate, Queue: queue}
			if err := link.Set("ocean", &p, &p); err != nil {
				t.Fatal(err)
			}
			for _, way := range []struct {
				name  string
				fetch func() []taken
			}{
				{"tcp-cubic", func() []taken { return tcpFetches(t, near, cubic, "cubic", size, runs) }},
				{"tcp-bbr", func() []taken { return tcpFetches(t, near, bbr, "bbr", size, runs) }},
				{"plain first", func() []taken { return linkFetches(t, near, far, true, size, runs, false) }},
				{"parity first", func() []taken { return linkFetches(t, near, far, false, size, runs, false) }},
				{"parity second", func() []taken { return linkFetches(t, near, far, false, size, runs, true) }},
				{"carrier of TCP", func() []taken { return bulkFetches(t, near, far, size, runs) }},
			} {
				if only[0] != "" && !slices.Contains(only, way.name) {
					continue
				}
				got := way.fetch()
				fmt.Printf("%v\t%.1f %%\t%s\t%s\t%s\n", rtt, 100*loss, way.name, summary(got, func(x taken) float64 { return x.first }), summary(got, func(x taken) float64 { return x.last }))
			}
		}
	}
}

type taken struct{ first, last float64 } // seconds

func summary(all []taken, which func(taken) float64) string {
	var values []float64
	for _, x := range all {
		values = append(values, which(x))
	}
	slices.Sort(values)
	return fmt.Sprintf("%.3f [%.3f–%.3f]", values[len(values)/2], values[0], values[len(values)-1])
}

var nearAt, farAt = netip.MustParsePrefix("10.98.0.1/24"), netip.MustParsePrefix("10.98.0.2/24")

// ocean is two network namespaces that a pump joins.
func ocean(t *testing.T) (near, far *netns.Namespace, link *pump.Pump) {
	t.Helper()
	link, err := pump.Start(pump.Config{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { link.Close() })
	end := func(name string, at netip.Prefix) (*netns.Namespace, *os.File) {
		n, err := netns.New(fmt.Sprintf("pgt-ocean%d-%s", os.Getpid(), name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.Delete(context.Background()) })
		device, err := netns.Tun(n, "w0")
		if err == nil {
			err = errors.Join(n.AddAddr("w0", at, netip.Addr{}), n.SetQueue("w0", 10000), n.Up("w0"))
		}
		for key, value := range map[string]string{"net.ipv4.tcp_rmem": "4096 131072 33554432", "net.ipv4.tcp_wmem": "4096 131072 33554432", "net.ipv4.tcp_no_metrics_save": "1"} {
			err = errors.Join(err, n.Sysctl(key, value)) // as a server for long paths has
		}
		if err != nil {
			t.Fatal(err)
		}
		return n, device
	}
	near, a := end("near", nearAt)
	far, b := end("far", farAt)
	if err := link.Add(pump.LinkSpec{Name: "ocean", A: a, B: b}); err != nil {
		t.Fatal(err)
	}
	return near, far, link
}

// congestion sets the congestion control of a TCP connection.
func congestion(c net.Conn, name string) error {
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) { set = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, name) })
	return errors.Join(err, set)
}

// tcpServer answers a number of eight bytes with as many.
func tcpServer(t *testing.T, n *netns.Namespace, control string) string {
	t.Helper()
	l, err := n.Listen("tcp4", farAt.Addr().String()+":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				var size [8]byte
				if congestion(c, control) != nil {
					return
				}
				if _, err := io.ReadFull(c, size[:]); err == nil {
					c.Write(make([]byte, binary.BigEndian.Uint64(size[:])))
				}
			}()
		}
	}()
	return l.Addr().String()
}

func tcpFetches(t *testing.T, n *netns.Namespace, at, control string, size, runs int) (all []taken) {
	for range runs {
		begun := time.Now()
		c, err := n.Dial(t.Context(), "tcp4", at)
		if err != nil {
			t.Fatal(err)
		}
		if err := congestion(c, control); err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(begun.Add(patience))
		c.Write(binary.BigEndian.AppendUint64(nil, uint64(size)))
		all = append(all, drained(c, begun))
		c.Close()
	}
	return all
}

// drained reads to the end.
func drained(c io.Reader, begun time.Time) taken {
	var one [1]byte
	io.ReadFull(c, one[:])
	first := time.Since(begun)
	io.Copy(io.Discard, c)
	return taken{first.Seconds(), time.Since(begun).Seconds()}
}

// linkFetches fetches by a stream of a link each, which has carried a flow of one byte before where it is the second.
func linkFetches(t *testing.T, near, far *netns.Namespace, plain bool, size, runs int, second bool) (all []taken) {
	t.Helper()
	authority, err := identity.NewAuthority(identity.NewClusterID(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for range runs {
		open := func(name string, n *netns.Namespace, at netip.Addr) (*Backbone, netip.AddrPort) {
			conn, err := n.ListenPacket("udp4", at.String()+":0")
			if err != nil {
				t.Fatal(err)
			}
			c, _ := overKernel(t, authority, name, conn)
			c.NoParity = plain
			b, err := Open(c)
			if err != nil {
				t.Fatal(err)
			}
			return b, conn.LocalAddr().(*net.UDPAddr).AddrPort()
		}
		client, _ := open("near", near, nearAt.Addr())
		server, at := open("far", far, farAt.Addr())
		serveBlobs(server)
		if !second {
			unwarmed(client, server)
		}
		client.Keep(map[string]netip.AddrPort{"far": at})
		fetch := func(size int) taken {
			begun := time.Now()
			c, err := client.DialEarly(t.Context(), "far", Header{Service: "blob", Resource: strconv.Itoa(size)})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(begun.Add(patience))
			return drained(c, begun)
		}
		fetch(1)
		if second {
			c, err := client.Dial(t.Context(), "far", Header{Service: "blob", Resource: "1"})
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
			time.Sleep(2 * time.Second) // it is warmed
		}
		time.Sleep(time.Second)
		all = append(all, fetch(size))
		client.Close()
		server.Close()
	}
	return all
}

// bulkFetches fetches by a warm connection of TCP each, of a link of its own.
func bulkFetches(t *testing.T, near, far *netns.Namespace, size, runs int) (all []taken) {
	t.Helper()
	authority, err := identity.NewAuthority(identity.NewClusterID(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for range runs {
		open := func(name string, n *netns.Namespace, at netip.Addr) (*Backbone, *control.Port, netip.AddrPort) {
			conn, err := n.ListenPacket("udp4", at.String()+":0")
			if err != nil {
				t.Fatal(err)
			}
			listener, err := n.Listen("tcp4", conn.LocalAddr().String())
			if err != nil {
				t.Fatal(err)
			}
			c, guard := overKernel(t, authority, name, conn)
			port := control.Open(control.Config{Listener: listener, Guard: guard, Dial: n.Dial})
			c.Bulk = bulkOver(port)
			b, err := Open(c)
			if err != nil {
				t.Fatal(err)
			}
			return b, port, conn.LocalAddr().(*net.UDPAddr).AddrPort()
		}
		client, clientPort, _ := open("near", near, nearAt.Addr())
		server, serverPort, at := open("far", far, farAt.Addr())
		serveBlobs(server)
		client.Keep(map[string]netip.AddrPort{"far": at})
		l := (*client.links.Load())["far"]
		<-l.judged.Done()
		l.pool.expect()
		time.Sleep(2 * time.Second)
		h := Header{Service: "blob", Resource: strconv.Itoa(size)}
		begun := time.Now()
		c, err := l.openBulk(t.Context(), &h, nil)
		if err != nil || c == nil {
			t.Fatalf("no connection of TCP: %v, %v", err, client.Counters())
		}
		c.SetDeadline(begun.Add(patience))
		all = append(all, drained(c, begun))
		c.Close()
		client.Close()
		server.Close()
		clientPort.Close()
		serverPort.Close()
	}
	return all
}
