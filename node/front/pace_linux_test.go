package front

import (
	"net"
	"testing"
	"time"
)

// A connection has the system's way where its path is long, or nobody knows how long it is, and else none that spaces out.
func TestOnlyLongPathsAreSpacedOut(t *testing.T) {
	for _, c := range []struct {
		name     string
		rtt      time.Duration
		known    bool
		isSystem bool
	}{
		{"short", shortPath - time.Microsecond, true, false}, {"long", shortPath, true, true}, {"unknown", 0, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, err := Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			system := controlOf(l)
			if system == "" {
				t.Fatal("the system names no congestion control")
			}
			f := New(Config{RoundTrip: func(net.Conn) (time.Duration, bool) { return c.rtt, c.known }})
			d := &door{front: f, paced: unpace(l, system)} // whatever it is
			if d.paced != system || controlOf(l) != unpacedControl {
				t.Fatalf("%q is %q, and now %q", system, d.paced, controlOf(l))
			}
			client, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			conn, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			want, counted := unpacedControl, uint64(1)
			if c.isSystem {
				want, counted = system, 0
			}
			if d.pace(conn); controlOf(conn) != want || f.counters.unpaced.Load() != counted {
				t.Errorf("it has %q, want %q; %d are counted", controlOf(conn), want, f.counters.unpaced.Load())
			}
		})
	}
}

// What the system does for other reasons stays, and the kernel knows of a path on this machine, when it is accepted, that it is short.
func TestPathsOnThisMachineAreShort(t *testing.T) {
	l, err := Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if system := controlOf(l); unpace(l, "none of "+system) != "" || controlOf(l) != system {
		t.Errorf("%q has become %q", system, controlOf(l))
	}
	if unpace(nil, "") != "" {
		t.Error("what is no socket has a congestion control")
	}
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, ok := roundTrip(conn); !ok {
		t.Error("nothing is known of its round trip")
	}

}
