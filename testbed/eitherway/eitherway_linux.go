//go:build amd64 || arm64

package eitherway

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/perigee-net/perigee/origin/relay"
	"github.com/perigee-net/perigee/origin/relay/loop"
)

// Door is a door on a real socket, of a test by one of the two ways.
type Door struct {
	*testing.T
	Soon    bool           // flows are held by a loop
	Flows   sync.WaitGroup // that were dialled and have not ended
	Lacking atomic.Bool    // nothing that a loop holds is taken from it
	// InNoOrder says that notes may come in another order by the one way than by the other, and Leaves that a client may be gone before its flow is given back.
	InNoOrder, Leaves bool

	listener net.Listener
	group    *loop.Group
	backs    atomic.Int64

	mu     sync.Mutex
	notes  []string
	panics int
}

// New is a door of a test by one way.
func New(t *testing.T, soon bool) *Door {
	d := &Door{T: t, Soon: soon}
	d.group = loop.New(loop.Config{Loops: 1, Panicked: d.Panicked})
	t.Cleanup(d.group.Close)
	d.listener = d.Listen()
	return d
}

// Run runs a test by the one way and the other, and compares what is told of them: what was noted, how much panicked, the counters, and what else run returns. Those of loops,
// which begin with what, are no part of that; so many flows are to be given back.
func Run(t *testing.T, what string, wantBacks int, run func(d *Door) (counters map[string]uint64, more string)) {
	t.Helper()
	ofLoops := []string{what + "_flows_looped_total", what + "_flows_given_back_total", what + "_flows_handed_over_total"}
	var told [2]string
	for i, soon := range []bool{false, true} {
		d := New(t, soon)
		counters, more := run(d)
		if got := counters[ofLoops[1]]; soon && (d.backs.Load() != int64(wantBacks) || got != uint64(wantBacks)) {
			t.Errorf("%d flows were given back, and %d counted, want %d", d.backs.Load(), got, wantBacks)
		}
		for _, name := range ofLoops {
			if !soon && counters[name] > 0 {
				t.Errorf("%s is %d without a loop", name, counters[name])
			}
			delete(counters, name)
		}
		told[i] = d.told(counters) + more
	}
	if told[0] != told[1] {
		t.Errorf("by goroutines:\n%sby a loop:\n%s", told[0], told[1])
	}
}

func (d *Door) told(counters map[string]uint64) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.InNoOrder {
		slices.Sort(d.notes)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d panics\n%s\n", d.panics, strings.Join(d.notes, "\n"))
	for _, name := range slices.Sorted(maps.Keys(counters)) {
		if counters[name] > 0 {
			fmt.Fprintln(&b, name, counters[name])
		}
	}
	return b.String()
}

// Open has connections be served, by start or, held by a loop, by soon, which may give one back; each calls ended. The door is shut by what it returns.
func (d *Door) Open(start func(c net.Conn, ended func()), soon func(c *loop.Conn, ended func(), back func() error)) (shut func()) {
	started := func(c net.Conn) {
		defer func() {
			if v := recover(); v != nil {
				d.Panicked(v)
				relay.Abort(c)
				d.Flows.Done()
			}
		}()
		start(c, d.Flows.Done)
	}
	if !d.Soon {
		go func() {
			for {
				c, err := d.listener.Accept()
				if err != nil {
					return
				}
				go started(c)
			}
		}()
		return func() { d.listener.Close() }
	}
	s, ok := d.group.Listen(d.listener, func(c *loop.Conn) {
		soon(c, d.Flows.Done, func() error {
			d.backs.Add(1)
			if d.Lacking.Load() {
				relay.Abort(c)
				d.Flows.Done()
				return syscall.EMFILE
			}
			tcp, err := c.Detach()
			if err != nil {
				if !d.Leaves {
					d.Error(err)
				}
				d.Flows.Done()
				return err
			}
			go started(tcp)
			return nil
		})
	}, func(err error) { d.Error(err) })
	if !ok {
		d.Fatal("nothing is accepted")
	}
	return func() {
		s.Close(func() {})
		d.listener.Close()
	}
}

// Note adds to what is told.
func (d *Door) Note(format string, values ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.notes = append(d.notes, fmt.Sprintf(format, values...))
}

// Notes is what was noted.
func (d *Door) Notes() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.notes)
}

// Panicked is told of a panic.
func (d *Door) Panicked(any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.panics++
}

// Panics is how many were told.
func (d *Door) Panics() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.panics
}

// Backs is how many flows loops have given back.
func (d *Door) Backs() int64 { return d.backs.Load() }

// Addr is where the door is.
func (d *Door) Addr() net.Addr { return d.listener.Addr() }

// Listen is a listener on the loopback, until the test ends.
func (d *Door) Listen() net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		d.Fatal(err)
	}
	d.Cleanup(func() { l.Close() })
	return l
}

// Deaf is an address at which nobody listens, and nobody else will: it is taken.
func (d *Door) Deaf() netip.AddrPort {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		d.Fatal(err)
	}
	d.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		d.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		d.Fatal(err)
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(at.(*unix.SockaddrInet4).Port))
}

// Dial is a client of a new flow.
func (d *Door) Dial() *net.TCPConn {
	d.Flows.Add(1)
	c, err := net.Dial("tcp", d.listener.Addr().String())
	if err != nil {
		d.Fatal(err)
	}
	d.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

// Refused is a flow that is reset, which its client may see before it is connected.
func (d *Door) Refused() {
	d.Helper()
	d.Flows.Add(1)
	c, err := net.Dial("tcp", d.listener.Addr().String())
	if err == nil {
		_, err = c.Read(make([]byte, 1))
		c.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		d.Errorf("its client sees %v", err)
	}
	d.Flows.Wait()
}

// Passes sends bytes one way.
func (d *Door) Passes(from, to net.Conn, n int) {
	d.Helper()
	go from.Write(make([]byte, n))
	if _, err := io.ReadFull(to, make([]byte, n)); err != nil {
		d.Error(err)
	}
}

// Sees reads nothing but an error.
func (d *Door) Sees(c net.Conn, want error) {
	d.Helper()
	if n, err := c.Read(make([]byte, 1)); n > 0 || !errors.Is(err, want) {
		d.Errorf("it reads %d bytes, %v, want %v", n, err, want)
	}
}

// Whole has a flow come to its end, of which these are the two ends.
func (d *Door) Whole(client, target *net.TCPConn, in, out int) {
	d.Helper()
	d.Passes(client, target, in)
	d.Passes(target, client, out)
	client.CloseWrite()
	d.Sees(target, io.EOF)
	target.Close()
	d.Sees(client, io.EOF)
	d.Flows.Wait()
}
