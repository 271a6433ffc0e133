package accelerator

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/backbone"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/edge/accelerator/flowlog"
	"github.com/perigee-net/perigee/origin/relay"
)

// onLogged runs a test whose flows are written down at a rate, and checks what was: the fields from packets on, one line each.
func onLogged(t *testing.T, n network, rate float64, test func(b *turning), want ...string) {
	t.Helper()
	var out bytes.Buffer
	onTurning(t, n, func(b *turning) {
		log, err := flowlog.Open(flowlog.Config{Path: flowlog.Stdout, Out: &out})
		if err != nil {
			b.Fatal(err)
		}
		b.plane.config.FlowLog = log
		b.turn(n, func(s *spec.Spec) { s.Accelerators["game"].FlowLogs = &spec.Sampling{SampleRate: &rate} })
		test(b)
		b.end()
		synctest.Wait()
		log.Close()
	})
	var got []string
	for line := range strings.Lines(out.String()) {
		f := strings.Fields(line)
		if f[3] != "203.0.113.9" || f[5] != "198.51.100.1" || f[2] != "game" {
			t.Errorf("got %q", line)
		}
		got = append(got, strings.Join(append(slices.Clone(f[11:13]), f[15], f[19], f[21], f[23]), " "))
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

// Of each flow it is asked at which target it ends, of nodes that know how to say it.
func TestWhereAFlowEndsIsToldAndWrittenDown(t *testing.T) {
	for _, c := range []struct {
		name          string
		tells, logged bool
		told          string
		endpoint      testEndpoint
		asked, want   string
	}{
		{"it is told", true, true, "10.0.0.1:8080", testEndpoint{"a", 128, false}, "icn1 flow targetGroup/a/told", "10.0.0.1 8080"},
		{"of IPv6", true, true, "[fd00::1]:8080", testEndpoint{"a", 128, false}, "icn1 flow targetGroup/a/told", "fd00::1 8080"},
		{"its node does not know how", false, true, "", testEndpoint{"a", 128, false}, "icn1 flow targetGroup/a", "- -"},
		{"it is not written down", true, false, "10.0.0.1:8080", testEndpoint{"a", 128, false}, "icn1 flow targetGroup/a/told", ""},
		{"the spec says it", true, true, "", testEndpoint{"10.1.0.1", 128, false}, "icn1 flow endpoint/game/10.1.0.1:443", "10.1.0.1 443"},
		{"what is told is nothing", true, true, "nowhere", testEndpoint{"a", 128, false}, "icn1 flow targetGroup/a/told", "- -"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := only(c.endpoint)
			n.tells = c.tells
			var out bytes.Buffer
			onTurning(t, n, func(b *turning) {
				log, err := flowlog.Open(flowlog.Config{Path: flowlog.Stdout, Out: &out})
				if err != nil {
					b.Fatal(err)
				}
				b.plane.config.FlowLog = log
				b.turn(n, func(s *spec.Spec) {
					if c.logged {
						s.Accelerators["game"].FlowLogs = &spec.Sampling{}
					}
				})
				dial := b.plane.config.Dial
				b.plane.config.Dial = func(ctx context.Context, node string, h backbone.Header) (net.Conn, error) {
					far, err := dial(ctx, node, h)
					if err == nil && strings.HasSuffix(h.Resource, "/told") { // the other end says again what it hears
						far.Write(append([]byte{byte(len(c.told))}, c.told...))
					}
					return far, err
				}
				conn := b.dial()
				io.WriteString(conn, "hello")
				if c.told != "nowhere" {
					if _, err := io.ReadFull(conn, make([]byte, 5)); err != nil {
						b.Error(err)
					}
					want := c.told
					if strings.HasPrefix(c.asked, "icn1 flow endpoint/") {
						want = "10.1.0.1:443"
					}
					at, _ := netip.ParseAddrPort(want)
					if s, _ := b.plane.Status("game", 1); len(s.Top) != 1 || s.Top[0].Target != at { // whether it is written down or not
						b.Errorf("the status is %+v, want %v", s.Top, at)
					}
				} else if got, _ := io.ReadAll(conn); len(got) > 0 {
					b.Errorf("got %q", got)
				}
				conn.Close()
				b.end()
				synctest.Wait()
				log.Close()
				if len(b.tried) == 0 || !strings.HasPrefix(b.tried[0], c.asked+" ") {
					b.Errorf("asked %q", b.tried)
				}
			})
			got := ""
			for line := range strings.Lines(out.String()) {
				f := strings.Fields(line)
				got = f[7] + " " + f[8]
			}
			if got != c.want {
				t.Errorf("got %q in %q", got, out.String())
			}
		})
	}
}

func TestFlowsAreWrittenDownEachMinuteAndAtTheirEnd(t *testing.T) {
	var packets atomic.Uint64
	onLogged(t, up2(), 1, func(b *turning) {
		b.plane.config.Leg = func(net.Conn) (relay.Leg, bool) {
			n := packets.Load()
			return relay.Leg{RTT: time.Millisecond, PacketsIn: n, PacketsOut: 2 * n}, n > 0
		}
		c := b.flow()
		time.Sleep(61 * time.Second)
		packets.Store(10)
		time.Sleep(60 * time.Second)
		io.WriteString(c, "hello")
		packets.Store(13)
		c.CloseWrite()
		if all, err := io.ReadAll(c); string(all) != "hello" || err != nil {
			b.Fatalf("got %q, %v", all, err)
		}
	},
		"- 1 ACCEPT icn INGRESS -", "- 1 ACCEPT icn EGRESS -",
		"10 0 ACCEPT icn INGRESS -", "20 0 ACCEPT icn EGRESS -",
		"3 5 ACCEPT icn INGRESS -", "6 5 ACCEPT icn EGRESS -",
	)
}

func up2() network { return network{groups: []testGroup{up("icn", 5, 100), up("nrt", 30, 100)}} }

func TestFlowsThatNobodyTookAreWrittenDown(t *testing.T) {
	n := up2()
	n.groups[0].nodes, n.groups[1].nodes = nil, nil
	onLogged(t, n, 1, func(b *turning) { b.isReset(b.dial()) }, "- 0 REJECT - INGRESS NO_ENDPOINT")
}

func TestFlowsOfWhichNoneIsWantedAreNotWrittenDown(t *testing.T) {
	onLogged(t, up2(), 0, func(b *turning) {
		c := b.flow()
		defer c.Close()
		time.Sleep(3 * window)
		b.echoes(c)
	})
}

// What the kernel had received and could not hand on is moved no more when the flow has ended: no line takes back what one before it said.
func TestALineOfAFlowHasNoFewerBytesThanNone(t *testing.T) {
	var out bytes.Buffer
	log, err := flowlog.Open(flowlog.Config{Path: flowlog.Stdout, Out: &out})
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		p := New(Config{FlowLog: log})
		in := int64(1000)
		w := p.write(&spec.Accelerator{Name: "game", FlowLogs: &spec.Sampling{}}, &live{
			lane: lane{protocol: spec.TCP}, began: time.Now(), drawn: drawn{true, 1}, plane: p, carried: carriedBy{moved: func() (int64, int64) { return in, 0 }},
		})
		time.Sleep(window)
		synctest.Wait()
		in = 300
		w.end(broken)
	})
	log.Close()
	var got []string
	for line := range strings.Lines(out.String()) {
		got = append(got, strings.Fields(line)[12])
	}
	if want := []string{"1000", "0", "0", "0"}; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}
