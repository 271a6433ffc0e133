package accelerator

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/view"
)

// long is a packet with a long header, of a size at least.
func long(version uint32, destination, source string, size int) string {
	p := []byte{0xc3, byte(version >> 24), byte(version >> 16), byte(version >> 8), byte(version)}
	p = append(append(p, byte(len(destination))), destination...)
	p = append(append(p, byte(len(source))), source...)
	return string(append(p, make([]byte, max(0, size-len(p)))...))
}

// short is a packet with a short header.
func short(destination string) string { return "\x41" + destination + strings.Repeat("p", 30) }

func TestLongHeadersAreRead(t *testing.T) {
	for _, c := range []struct {
		name, p             string
		destination, source string
		ok                  bool
	}{
		{"an initial", long(1, "abcdefgh", "wxyz", 1200), "abcdefgh", "wxyz", true},
		{"no IDs", long(1, "", "", 0), "", "", true},
		{"the longest", long(1, strings.Repeat("d", 20), strings.Repeat("s", 20), 0), strings.Repeat("d", 20), strings.Repeat("s", 20), true},
		{"longer", long(1, strings.Repeat("d", 21), "", 0), "", "", false},
		{"short", short("abcd"), "", "", false},
		{"cut", long(1, "abcdefgh", "wxyz", 0)[:17], "", "", false},
		{"empty", "", "", "", false},
	} {
		_, d, s, ok := longHeader([]byte(c.p))
		if ok != c.ok || string(d) != c.destination || string(s) != c.source {
			t.Errorf("%s: got %q, %q, %v", c.name, d, s, ok)
		}
	}
}

func FuzzQUIC(f *testing.F) {
	f.Add([]byte(long(1, "abcdefgh", "wxyz", 1200)))
	f.Add([]byte(short("abcd")))
	f.Fuzz(func(t *testing.T, p []byte) {
		version, d, s, ok := longHeader(p)
		if ok && !bytes.HasPrefix(p[5:], slices.Concat([]byte{byte(len(d))}, d, []byte{byte(len(s))}, s)) {
			t.Fatalf("%x: %x, %x", p, d, s)
		}
		if beginsQUIC(p) && (!ok || version == 0) {
			t.Fatal("it begins nothing")
		}
		table := newFlowTable(4, 4)
		known := flowOf("192.0.2.1:1")
		table.admit(known)
		if id := chosenID(p); id != nil {
			table.learn(known, id)
			if found, _ := table.before(local, append([]byte{0x40}, id...)); len(id) > 0 && found != nil && found != known {
				t.Fatal("it is another's")
			}
			if found, _ := table.before(local, append(append([]byte{0x40}, id...), 0)); found != known {
				t.Fatalf("%x is not found", id)
			}
		}
		table.before(local, p)
		table.remove(known)
		if len(table.ids) != 0 || table.lengths != [maxID + 1]int{} {
			t.Fatal("something is left of it")
		}
	})
}

func TestTheIDsOfAFlowAreBounded(t *testing.T) {
	table := newFlowTable(4, 4)
	f := flowOf("192.0.2.1:1")
	table.admit(f)
	for _, id := range []string{"aaaa", "bbbb", "cccc", "dddd", "eeee", "aaaa"} {
		table.learn(f, []byte(id))
	}
	if len(f.ids) != maxIDs || len(table.ids) != maxIDs {
		t.Errorf("%d, %d", len(f.ids), len(table.ids))
	}
	other := flowOf("192.0.2.2:1")
	table.admit(other)
	table.learn(other, []byte("aaaa"))
	if len(other.ids) != 0 {
		t.Error("an ID is two flows'")
	}
}

// A client of QUIC whose port changes is led to where it was, though the flow would be drawn elsewhere.
func TestAClientOfQUICMayMove(t *testing.T) {
	endpoints := make([]testEndpoint, 10)
	for i := range endpoints {
		endpoints[i] = testEndpoint{string(rune('a' + i)), 128, false}
	}
	onUDPBench(t, only(endpoints...), func(b *udpBench) {
		c := b.dial()
		b.send(c, long(1, "clientschoice", "", 1200))
		first := b.fars(1)[0]
		first.to.Receive([][]byte{[]byte(long(1, "", "serverschoice", 1200))})
		b.settle()
		before := c
		for i := range 5 {
			moved := b.dial()
			b.send(moved, short("serverschoice"))
			f := b.fars(2 + i)[1+i]
			want := strings.Replace(first.header.Resource, "30/", "30@"+before.LocalAddr().String()+"/", 1)
			if f.header.Resource != want || f.node != first.node {
				b.Errorf("move %d went to %s by %s, want %s", i, f.header.Resource, f.node, want)
			}
			before = moved
			f.to.Receive([][]byte{[]byte(short("clientschoice"))})
			b.settle()
		}
		b.counted(map[string]uint64{"datagram_flows_moved_total": 5})
		// What is not QUIC, or not known, is a flow like others.
		b.send(b.dial(), short("otherchoice"))
		b.send(b.dial(), "serverschoice")
		b.counted(map[string]uint64{"datagram_flows_moved_total": 5, "datagram_flows": 8})
	})
}

// A stranger who has seen an ID takes nothing away from the flow that it is of: that is known by it until the server answers the stranger, and then is what it was.
func TestAnIDIsOfTheFlowThatWasAnswered(t *testing.T) {
	onUDPBench(t, only(testEndpoint{"a", 128, false}), func(b *udpBench) {
		victim := b.dial()
		b.send(victim, long(1, "clientschoice", "", 1200))
		b.fars(1)[0].to.Receive([][]byte{[]byte(long(1, "", "serverschoice", 1200))})
		b.settle()
		after := func(n int, want net.Conn) {
			b.Helper()
			b.send(b.dial(), short("serverschoice"))
			if f := b.fars(n)[n-1]; !strings.HasPrefix(f.header.Resource, "30@"+want.LocalAddr().String()+"/") {
				b.Errorf("flow %d went to %s, want that of %v", n, f.header.Resource, want.LocalAddr())
			}
		}
		stranger := b.dial()
		b.send(stranger, short("serverschoice"))
		after(3, victim)
		all := b.fars(3)
		all[1].to.Receive([][]byte{[]byte(short("clientschoice"))})
		b.settle()
		after(4, stranger)
		all[2].to.Receive([][]byte{[]byte(short("clientschoice"))}) // who is answered last, whoever was before
		b.settle()
		table := b.plane.udp.table
		for _, f := range b.plane.datagramFlows(func(f *datagramFlow) bool { return f.key.client.String() == stranger.LocalAddr().String() }) {
			b.plane.endFlow(f, closed)
		}
		b.plane.udp.mu.Lock()
		if len(table.ids) != 1 {
			b.Errorf("%d IDs are known", len(table.ids))
		}
		b.plane.udp.mu.Unlock()
	})
}

// Where the flow that an ID was of is over when its successor is answered, it is that one's all the same.
func TestAnIDOutlivesItsFlow(t *testing.T) {
	table := newFlowTable(4, 4)
	first, second := flowOf("192.0.2.1:1"), flowOf("192.0.2.2:1")
	table.admit(first)
	table.learn(first, []byte("serverschoice"))
	_, second.came = table.before(local, []byte(short("serverschoice")))
	table.admit(second)
	table.remove(first)
	table.wasAnswered(second)
	if f, _ := table.before(local, []byte(short("serverschoice"))); f != second {
		t.Errorf("it is %v's", f)
	}
}

// What a server's shorter IDs look like, if those of its handshake were longer, is another ID with each packet: none of that is remembered, and what is known stays. The
// same goes for a client that calls its server by whatever it likes.
func TestIDsThatAreUsedOnceAreNotRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newFlowTable(4, 4)
		f := flowOf("192.0.2.1:1")
		table.admit(f)
		table.learn(f, []byte("handshake"))
		used := func(i int) { table.used(f, fmt.Appendf(nil, "A%09dand more", i)) }
		for i := range 1000 {
			used(i)
		}
		if len(f.ids) != 1 {
			t.Errorf("%d are remembered that were used once", len(f.ids))
		}
		for i := range 1000 {
			used(i)
			used(i)
		}
		if len(f.ids) != 1+maxLearned || len(table.ids) != 1+maxLearned {
			t.Errorf("%d are remembered of a second", len(f.ids))
		}
		time.Sleep(time.Second)
		used(5000)
		used(5000)
		if len(f.ids) != 2+maxLearned {
			t.Errorf("%d are remembered in the next", len(f.ids))
		}
	})
}

// A connection that stands goes on where it was also while the node ends, by a flow that is new; one that is new does not begin.
func TestAClientOfQUICMayMoveWhileItsNodeEnds(t *testing.T) {
	onUDPBench(t, only(testEndpoint{"a", 128, false}), func(b *udpBench) {
		b.send(b.dial(), long(1, "clientschoice", "", 1200))
		b.fars(1)[0].to.Receive([][]byte{[]byte(long(1, "", "serverschoice", 1200))})
		b.settle()
		ctx, cancel := context.WithTimeout(b.Context(), 10*time.Second)
		defer cancel()
		var over sync.WaitGroup
		over.Go(func() { b.plane.FinishDatagrams(ctx) })
		b.settle()
		b.send(b.dial(), short("serverschoice"))
		b.send(b.dial(), short("anotherchoice"))
		b.send(b.dial(), long(1, "clientschoice", "", 1200))
		b.fars(2)
		b.counted(map[string]uint64{"datagram_flows_moved_total": 1, "datagram_flows_refused_total": 2})
		over.Wait()
	})
}

// Only a flow that began as QUIC has IDs: others' bytes mean nothing.
func TestWhatDoesNotBeginAsQUICHasNoIDs(t *testing.T) {
	onUDPBench(t, only(testEndpoint{"a", 128, false}), func(b *udpBench) {
		b.send(b.dial(), "a question")
		b.fars(1)[0].to.Receive([][]byte{[]byte(long(1, "", "serverschoice", 1200))})
		b.settle()
		b.plane.udp.mu.Lock()
		defer b.plane.udp.mu.Unlock()
		if n := len(b.plane.udp.table.ids); n != 0 {
			b.Errorf("%d IDs", n)
		}
	})
}

// One that has moved is led away from where it was, when that is not to have it any more.
func TestAClientOfQUICThatMovedIsLedAwayFromWhatIsUnhealthy(t *testing.T) {
	n := terminating()
	n.idle = 5 * time.Minute
	onUDPBench(t, n, func(b *udpBench) {
		var now atomic.Pointer[view.View]
		now.Store(b.plane.config.View())
		b.plane.config.View = now.Load
		b.send(b.dial(), long(1, "clientschoice", "", 1200))
		b.fars(1)[0].to.Receive([][]byte{[]byte(long(1, "", "serverschoice", 1200))})
		b.settle()
		moved := b.dial()
		b.send(moved, short("serverschoice"))
		b.counted(map[string]uint64{"datagram_flows_moved_total": 1})
		n.groups[0].endpoints[0].sick = true
		_, v, _ := n.build()
		now.Store(v)
		b.plane.Review()
		b.send(moved, short("serverschoice"))
		if f := b.fars(3)[2]; f.node != "nrt1" {
			b.Errorf("it goes to %s", f.node)
		}
	})
}
