package gossip

import (
	"bytes"
	"context"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/perigee-net/perigee/testbed/memnet"
)

// insider is a node that has the key and is not of this release: memberlist as it is, with a delegate that says what it likes.
type insider struct {
	meta, state, message, ack []byte
}

func (i insider) NodeMeta(int) []byte { return i.meta }
func (i insider) NotifyMsg([]byte)    {}
func (i insider) GetBroadcasts(_, limit int) [][]byte {
	if len(i.message) > limit {
		return nil
	}
	return [][]byte{i.message}
}
func (i insider) LocalState(bool) []byte                                     { return i.state }
func (i insider) MergeRemoteState([]byte, bool)                              {}
func (i insider) AckPayload() []byte                                         { return i.ack }
func (i insider) NotifyPingComplete(*memberlist.Node, time.Duration, []byte) {}

func (i insider) join(w *world, h *memnet.Host, name string) *memberlist.Memberlist {
	w.t.Helper()
	at := netip.AddrPortFrom(h.Addr(), port)
	transport, err := openTransport(Config{
		Label: "cluster", Bind: at.String(), Listen: h.Listen, ListenPacket: h.ListenPacket, Dial: h.Dial,
	}, func(string) bool { return false }, new(counters))
	if err != nil {
		w.t.Fatal(err)
	}
	c := memberlist.DefaultWANConfig()
	c.Name, c.Label, c.SecretKey, c.Transport, c.Delegate, c.Ping = name, "cluster", key, transport, i, i
	c.Logger = log.New(io.Discard, "", 0)
	list, err := memberlist.Create(c)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := list.Join([]string{w.addr(0)}); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		list.Shutdown()
		transport.wait()
		time.Sleep(time.Minute) // its probe under way
	})
	return list
}

func TestANodeOfAnOlderReleaseIsAMemberAndWhatItSpreadsIsIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := joined(t, 4)
		older := insider{meta: []byte("older"), state: bytes.Repeat([]byte("state"), 1000), message: []byte("a value")}
		list := older.join(w, w.net.Host("older", places[5], netip.MustParseAddr("10.1.0.1")), "older")
		w.within(5*time.Second, "it is a member", func() bool {
			return !slices.ContainsFunc(w.nodes, func(g *Gossip) bool { return !slices.Contains(names(g), "older") })
		})
		before := w.versions()
		time.Sleep(2 * time.Minute)
		if n := w.turns(before); n != 0 || list.NumMembers() != 5 {
			t.Errorf("members changed %d times, it knows %d", n, list.NumMembers())
		}
		if n := w.nodes[0].Counters()["gossip_ignored_total"]; n == 0 {
			t.Error("nothing was ignored")
		}
	})
}

func TestWhatIsOutOfBoundsIsNotTakenFromOneWhoHasTheKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := joined(t, 4)
		before := w.versions()
		loud := insider{ack: make([]byte, MaxPayload+1), message: make([]byte, 1200), state: make([]byte, 1<<20)}
		loud.join(w, w.net.Host("loud", places[5], netip.MustParseAddr("10.1.0.1")), strings.Repeat("n", MaxName+1))
		time.Sleep(time.Minute)
		if n := w.turns(before); n != 0 {
			t.Errorf("members changed %d times, to %v", n, names(w.nodes[0]))
		}
		if n := w.nodes[0].Counters()["gossip_malformed_total"]; n == 0 {
			t.Error("nothing was counted")
		}
	})
}

// tamper changes the version of the encryption in what is read from a stream.
type tamper struct {
	net.Conn
	at int
}

func (c *tamper) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.at >= 0 && c.at < n {
		b[c.at] = 0
	}
	c.at -= n
	return n, err
}

func TestAnEncryptionThatIsSaidToBeAnotherEndsNobody(t *testing.T) {
	for _, answers := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 2)
			c := w.config(0)
			listen := c.Listen
			c.Listen = func(network, address string) (net.Listener, error) {
				l, err := listen(network, address)
				if answers {
					return l, err
				}
				return tampering{l}, err
			}
			g, err := Open(c)
			if err != nil {
				t.Fatal(err)
			}
			w.nodes[0] = g
			c = w.config(1)
			dial := c.Dial
			c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
				conn, err := dial(ctx, network, address)
				if err != nil || !answers {
					return conn, err
				}
				return &tamper{conn, beforeEncryption}, nil
			}
			if w.nodes[1], err = Open(c); err != nil {
				t.Fatal(err)
			}
			if err := w.nodes[1].Join(t.Context(), []string{w.addr(0)}); err == nil {
				t.Error("it joined")
			}
			if n := w.nodes[0].Counters()["gossip_malformed_total"] + w.nodes[1].Counters()["gossip_malformed_total"]; n == 0 {
				t.Error("nothing was counted")
			}
		})
	}
}

type tampering struct{ net.Listener }

func (l tampering) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &tamper{conn, 2 + len("cluster") + beforeEncryption}, nil
}

// tape is a network that records the packets that come to a node.
type tape struct {
	net.PacketConn
	mu      sync.Mutex
	packets [][]byte
}

func (r *tape) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := r.PacketConn.ReadFrom(b)
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.packets) < 5000 {
		r.packets = append(r.packets, bytes.Clone(b[:n]))
	}
	return n, from, err
}

func TestPacketsReplayedInAnyOrderChangeNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 5)
		recorded := &tape{}
		for i := range w.nodes {
			c := w.config(i)
			if i == 0 {
				listen := c.ListenPacket
				c.ListenPacket = func(network, address string) (net.PacketConn, error) {
					var err error
					recorded.PacketConn, err = listen(network, address)
					return recorded, err
				}
			}
			g, err := Open(c)
			if err != nil {
				t.Fatal(err)
			}
			w.nodes[i] = g
			if i > 0 {
				w.join(i, 0)
			}
		}
		all := func() bool {
			return !slices.ContainsFunc(w.nodes, func(g *Gossip) bool { return len(names(g)) != 5 })
		}
		// Recorded are joins, suspicions, a death, a leave, and that both are back.
		w.within(time.Minute, "all know each other", all)
		for i, leave := range []bool{2: false, 3: true} {
			if i < 2 {
				continue
			}
			if leave {
				w.nodes[i].Leave(time.Second)
			}
			w.hosts[i].Crash()
			w.within(time.Minute, "it is gone", func() bool { return lost(w.others(i), name(i)) })
			w.close(i)
			w.hosts[i].Restart()
			w.open(i)
			w.join(i, 0)
			w.within(time.Minute, "it is back", all)
		}
		time.Sleep(time.Minute)

		recorded.mu.Lock()
		packets := slices.Clone(recorded.packets)
		recorded.mu.Unlock()
		before := w.versions()
		stranger := w.net.Host("stranger", places[1], netip.MustParseAddr("192.0.2.1"))
		udp, err := stranger.ListenPacket("udp", "192.0.2.1:1000")
		if err != nil {
			t.Fatal(err)
		}
		defer udp.Close()
		random := rand.New(rand.NewPCG(1, 2))
		for i := range 5000 {
			packet := bytes.Clone(packets[random.IntN(len(packets))])
			if random.IntN(10) == 0 {
				packet[random.IntN(len(packet))] ^= 1 // and forged
			} else if i%10 == 1 {
				packet[2+len("cluster")] = 0 // as by an encryption that is used no more
			}
			to := netip.MustParseAddrPort(w.addr(random.IntN(5)))
			if _, err := udp.WriteTo(packet, net.UDPAddrFromAddrPort(to)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Millisecond)
		}
		time.Sleep(10 * time.Second)
		if n := w.turns(before); n != 0 {
			t.Errorf("members changed %d times", n)
		}
	})
}
