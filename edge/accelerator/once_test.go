package accelerator

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/perigee-net/perigee/testbed/memnet"
)

// pathAtRandom loses, delays, doubles and so reorders packets as chance has it.
func pathAtRandom(chance *rand.Rand, delay time.Duration) memnet.Path {
	return memnet.Path{
		Delay: delay, Jitter: time.Duration(chance.Int64N(int64(30 * time.Millisecond))), Loss: 0.02 * float64(chance.IntN(4)), Duplicate: 0.1 * float64(1+chance.IntN(4)),
	}
}

// However packets overtake each other, are lost and come twice between the nodes, all bytes of flows of TCP come once and in order, both ways.
func TestFlowsOfTCPComeOnceWhateverComesTwice(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			chance := rand.New(rand.NewPCG(seed, 0))
			overBackbone(t, func(c net.Conn) {
				defer c.Close()
				io.Copy(c, c)
				c.(interface{ CloseWrite() error }).CloseWrite()
			}, func(b *bench, _ *memnet.Host) {
				b.in.LinkOneWay("edge", "icn1", pathAtRandom(chance, 20*time.Millisecond))
				b.in.LinkOneWay("icn1", "edge", pathAtRandom(chance, 20*time.Millisecond))
				var flows sync.WaitGroup
				for range 3 {
					sent := make([]byte, 1+chance.IntN(100_000))
					for i := range sent {
						sent[i] = byte(chance.Uint32())
					}
					flows.Go(func() {
						c := b.dial()
						defer c.Close()
						go func() {
							for rest := sent; len(rest) > 0; {
								n := min(len(rest), 30_000)
								c.Write(rest[:n])
								rest = rest[n:]
							}
							c.CloseWrite()
						}()
						if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, sent) {
							t.Errorf("%d of %d bytes came back, alike: %v; %v", len(got), len(sent), bytes.Equal(got, sent), err)
						}
					})
				}
				flows.Wait()
				if n := b.in.Counters()["datagrams_duplicated_total"]; n == 0 {
					t.Error("nothing came twice")
				}
			})
		})
	}
}

// Datagrams come as often as the network on either side has them come: between the nodes none is made more of, and where nothing is lost none is, but what QUIC takes for a copy.
func TestDatagramsComeAsOftenAsTheNetworkHasThem(t *testing.T) {
	for seed := range uint64(3) {
		for _, where := range []string{"between the nodes", "at the client"} {
			t.Run(fmt.Sprint(where, " ", seed), func(t *testing.T) {
				chance := rand.New(rand.NewPCG(seed, 1))
				overUDPBy(t, only(testEndpoint{"a", 128, false}), true, "", func(t *testing.T, c net.Conn, planes map[string]interface{ Counters() map[string]uint64 }) {
					before := planes["network"].Counters()["datagrams_duplicated_total"]
					comesAsOften(t, chance, c, func() int { return int(planes["network"].Counters()["datagrams_duplicated_total"] - before) }, where == "at the client")
				}, func(in *memnet.Internet) {
					p := pathAtRandom(chance, 5*time.Millisecond)
					p.Loss = 0
					if where == "at the client" {
						in.Link("client", "self", p)
					} else {
						in.Link("self", "icn1", p)
					}
				})
			})
		}
	}
}

// comesAsOften sends datagrams to who echoes them. Copies are those that the network has made, and counts are whether what comes to this end has any of them.
func comesAsOften(t *testing.T, chance *rand.Rand, c net.Conn, copies func() int, counts bool) {
	const sent = 100
	came := make([]int, sent)
	var reader sync.WaitGroup
	reader.Go(func() {
		buf := make([]byte, 2048)
		for {
			c.SetReadDeadline(time.Now().Add(5 * time.Second))
			n, err := c.Read(buf)
			if err != nil {
				if !os.IsTimeout(err) {
					t.Error(err)
				}
				return
			}
			i := int(binary.BigEndian.Uint32(buf))
			for _, b := range buf[4:n] {
				if b != byte(i) {
					t.Errorf("%d came as something else", i)
					break
				}
			}
			came[i]++
		}
	})
	for i := range sent {
		p := bytes.Repeat([]byte{byte(i)}, 4+chance.IntN(1400))
		binary.BigEndian.PutUint32(p, uint32(i))
		c.Write(p)
		time.Sleep(time.Duration(chance.Int64N(int64(10 * time.Millisecond))))
	}
	reader.Wait()
	all, missing := 0, 0
	for i, n := range came {
		if n == 0 {
			missing++
		}
		if !counts && n > 1 || n > 4 {
			t.Errorf("%d came %d times", i, n)
		}
		all += n
	}
	// QUIC throws away what is so late that it cannot tell it from a copy (RFC 9000, 12.3), once in some hundred times here; nobody else throws anything away.
	if missing > 5 || counts && missing > 0 {
		t.Errorf("%d did not come", missing)
	}
	switch n := copies(); {
	case n == 0:
		t.Error("nothing came twice")
	case counts && all != sent+n:
		t.Errorf("%d came, of %d and %d copies", all, sent, n)
	}
}
