package load

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// rtt is the round trip between the two machines of these tests.
const rtt = 200 * time.Millisecond

// pair runs a test in a world of a client and a server, with an echo at port 7 of both kinds.
func pair(t *testing.T, test func(t *testing.T, in *memnet.Internet, client, server *memnet.Host)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		in := memnet.New(7)
		t.Cleanup(in.Close)
		at := spec.Location{}
		client := in.Host("client", at, netip.MustParseAddr("192.0.2.1"))
		server := in.Host("server", at, netip.MustParseAddr("192.0.2.2"))
		in.Link("client", "server", memnet.Path{Delay: rtt / 2})
		test(t, in, client, server)
	})
}

func serve(t *testing.T, server *memnet.Host, service func(ctx context.Context, l net.Listener)) (stop func()) {
	t.Helper()
	l, err := server.Listen("tcp", ":7")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { service(ctx, l) })
	stop = func() { cancel(); wg.Wait() }
	t.Cleanup(stop)
	return stop
}

func echo(greeting string) func(context.Context, net.Listener) {
	return func(ctx context.Context, l net.Listener) { Echo(ctx, l, greeting) }
}

// each serves every connection by itself, and waits for all.
func each(handle func(conn net.Conn)) func(context.Context, net.Listener) {
	return func(ctx context.Context, l net.Listener) {
		defer context.AfterFunc(ctx, func() { l.Close() })()
		var wg sync.WaitGroup
		defer wg.Wait()
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				defer context.AfterFunc(ctx, func() { conn.Close() })()
				handle(conn)
			})
		}
	}
}

// flows runs a load of 10 flows with 10 messages a second each.
func flows(t *testing.T, client *memnet.Host, change func(*FlowConfig)) Result {
	t.Helper()
	c := FlowConfig{Dial: client.Dial, Address: "192.0.2.2:7", Flows: 10, Rate: 10, Bytes: 100, Echo: true, For: 10 * time.Second}
	if change != nil {
		change(&c)
	}
	r, err := Flows(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(&r)
	return r
}

func TestEveryMessageComesBackAfterARoundTrip(t *testing.T) {
	pair(t, func(t *testing.T, in *memnet.Internet, client, server *memnet.Host) {
		serve(t, server, echo("icn icn-a"))
		r := flows(t, client, func(c *FlowConfig) { c.Greeting = true })
		// 9.8 s are left after the dial.
		if r.Opened != 10 || r.Sent < 970 || r.Sent > 985 || r.Echoed != r.Sent || r.Bytes != int64(r.Sent)*100 || r.By["icn icn-a"] != 10 || r.Took != 10*time.Second {
			t.Errorf("%s", &r)
		}
		if r.Latency.Min() != rtt || r.Latency.Max() != rtt || r.Dial.Max() != rtt || r.Behind != 0 || r.Stalls != 0 {
			t.Errorf("latency %s, dial %s", &r.Latency, &r.Dial)
		}
		// Nothing can come back before a dial and a message.
		if r.Silence != 2*rtt {
			t.Errorf("silence of %v", r.Silence)
		}
	})
}

func TestWithoutARateEachMessageWaitsForTheOneBefore(t *testing.T) {
	pair(t, func(t *testing.T, in *memnet.Internet, client, server *memnet.Host) {
		serve(t, server, echo(""))
		r := flows(t, client, func(c *FlowConfig) { c.Rate, c.Flows = 0, 1 })
		if r.Sent < 48 || r.Sent > 50 || r.Echoed != r.Sent || r.Latency.Max() != rtt {
			t.Errorf("in 9.8 s: %s", &r)
		}
	})
}

func TestAServerThatIsKilledResetsItsFlowsAndRefusesMore(t *testing.T) {
	pair(t, func(t *testing.T, in *memnet.Internet, client, server *memnet.Host) {
		stop := serve(t, server, echo(""))
		go func() {
			time.Sleep(3 * time.Second)
			server.Kill()
			stop()
			time.Sleep(2 * time.Second)
			server.Restart()
			serve(t, server, echo(""))
		}()
		r := flows(t, client, nil)
		// The last echo leaves at 3 s; the first dial after 5 s arrives within 0.3 s, and the first echo 1.5 round trips later.
		if r.Reset != 10 || r.Opened != 20 || r.Failed["refused"] < 50 || r.Lost != 0 || r.Silence < 2*time.Second || r.Silence > 2900*time.Millisecond {
			t.Errorf("%s", &r)
		}
	})
}

func TestACutIsAStallForThoseWhoOutlastIt(t *testing.T) {
	pair(t, func(t *testing.T, in *memnet.Internet, client, server *memnet.Host) {
		serve(t, server, echo(""))
		cut := func(d time.Duration) {
			time.Sleep(3 * time.Second)
			in.Cut("client", "server")
			time.Sleep(d)
			in.Heal("client", "server")
		}
		go cut(3 * time.Second)
		r := flows(t, client, nil)
		if r.Opened != 10 || r.Stalls != 10 || r.Echoed != r.Sent || r.Latency.Max() < 3*time.Second || r.Silence < 3*time.Second {
			t.Errorf("healed after 3 s: %s", &r)
		}
		go cut(9 * time.Second)
		r = flows(t, client, func(c *FlowConfig) { c.GiveUp, c.For = 5*time.Second, 20*time.Second })
		if r.Opened != 20 || r.Lost != 10 || r.Stalls != 10 || r.Reset+r.Closed != 0 {
			t.Errorf("given up after 5 s of 9: %s", &r)
		}
	})
}

func TestEndsBeforeTheirTimeAreToldApart(t *testing.T) {
	for name, c := range map[string]struct {
		handle func(net.Conn)
		is     func(r *Result) bool
	}{
		"closed after three messages": {func(c net.Conn) { io.CopyN(c, c, 300) }, func(r *Result) bool { return r.Closed > 10 && r.Reset+r.Wrong+r.Lost == 0 }},
		"reset after three messages": {func(c net.Conn) {
			io.CopyN(c, c, 300)
			c.(interface{ SetLinger(int) error }).SetLinger(0)
		}, func(r *Result) bool { return r.Reset > 10 && r.Closed+r.Wrong+r.Lost == 0 }},
		"another's bytes": {func(c net.Conn) {
			for {
				b := make([]byte, 100)
				if _, err := io.ReadFull(c, b); err != nil {
					return
				}
				b[50] ^= 1
				c.Write(b)
			}
		}, func(r *Result) bool { return r.Wrong > 10 && r.Echoed == 0 && r.Reset+r.Closed+r.Lost == 0 }},
		"nothing ever": {func(c net.Conn) { io.Copy(io.Discard, c) }, func(r *Result) bool { return r.Lost == 0 && r.Echoed == 0 && r.Sent > 900 }},
	} {
		t.Run(name, func(t *testing.T) {
			pair(t, func(t *testing.T, in *memnet.Internet, client, server *memnet.Host) {
				serve(t, server, each(c.handle))
				if r := flows(t, client, nil); !c.is(&r) || len(r.Broken) > 0 {
					t.Errorf("%s", &r)
				}
			})
		})
	}
}

func TestWithoutEchoItOnlySends(t *testing.T) {
	pair(t, func(t *testing.T, in *memnet.Internet, client, server *memnet.Host) {
		var mu sync.Mutex
		got := int64(0)
		serve(t, server, each(func(c net.Conn) {
			n, _ := io.Copy(io.Discard, c)
			mu.Lock()
			got += n
			mu.Unlock()
		}))
		r := flows(t, client, func(c *FlowConfig) { c.Echo = false })
		time.Sleep(time.Second)
		mu.Lock()
		defer mu.Unlock()
		if r.Sent < 970 || got != r.Bytes || r.Echoed != 0 || r.Silence != 0 || r.Closed+r.Reset+r.Lost != 0 || r.Opened != 10 {
			t.Errorf("arrived %d of %s", got, &r)
		}
	})
}

func TestFlowsThatLastAShortTimeAreFollowedByOthers(t *testing.T) {
	pair(t, func(t *testing.T, in *memnet.Internet, client, server *memnet.Host) {
		serve(t, server, echo(""))
		// Each takes a dial, a second, and a round trip for what is on its way.
		r := flows(t, client, func(c *FlowConfig) { c.Lasts, c.Ramp = time.Second, time.Second })
		if r.Opened < 65 || r.Opened > 80 || r.Echoed != r.Sent || r.Reset+r.Closed+r.Lost != 0 {
			t.Errorf("%s", &r)
		}
	})
}

func TestALoadEndsWithItsContext(t *testing.T) {
	pair(t, func(t *testing.T, in *memnet.Internet, client, server *memnet.Host) {
		serve(t, server, echo(""))
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		r, err := Flows(ctx, FlowConfig{Dial: client.Dial, Address: "192.0.2.2:7", Flows: 3, Rate: 5, Bytes: 1, Echo: true, For: time.Hour})
		if err != nil || r.Took != 2*time.Second || r.Echoed != r.Sent || r.Sent < 25 {
			t.Errorf("%s, %v", &r, err)
		}
		// Nobody answers dials, either.
		in.Cut("client", "server")
		began := time.Now()
		r, err = Flows(t.Context(), FlowConfig{Dial: client.Dial, Address: "192.0.2.2:7", Flows: 3, Rate: 5, Bytes: 1, Echo: true, For: 5 * time.Second, GiveUp: 2 * time.Second})
		if err != nil || time.Since(began) != 5*time.Second || r.Failed["timeout"] != 6 || r.Opened != 0 || r.Silence != 5*time.Second {
			t.Errorf("%s, %v", &r, err)
		}
	})
}

func TestAFullWindowIsToldAsBehind(t *testing.T) {
	pair(t, func(t *testing.T, in *memnet.Internet, client, server *memnet.Host) {
		serve(t, server, each(func(c net.Conn) { // reads nothing for 5 s
			time.Sleep(5 * time.Second)
			io.Copy(c, c)
		}))
		r := flows(t, client, func(c *FlowConfig) { c.Flows, c.Rate = 1, 1000 })
		if r.Behind < 3*time.Second || r.Echoed == 0 || r.Stalls == 0 {
			t.Errorf("%s", &r)
		}
	})
}

func TestLoadsThatMakeNoSenseAreRefused(t *testing.T) {
	good := FlowConfig{Dial: (&net.Dialer{}).DialContext, Address: "x", Flows: 1, Bytes: 1, For: time.Second}
	for name, change := range map[string]func(*FlowConfig){
		"no dial": func(c *FlowConfig) { c.Dial = nil }, "no address": func(c *FlowConfig) { c.Address = "" },
		"no flows": func(c *FlowConfig) { c.Flows = 0 }, "many flows": func(c *FlowConfig) { c.Flows = MaxFlows + 1 },
		"no bytes": func(c *FlowConfig) { c.Bytes = 0 }, "many bytes": func(c *FlowConfig) { c.Bytes = MaxBytes + 1 },
		"NaN": func(c *FlowConfig) { c.Rate = math.NaN() }, "rate": func(c *FlowConfig) { c.Rate = MaxRate + 1 },
		"no time": func(c *FlowConfig) { c.For = 0 }, "long": func(c *FlowConfig) { c.For = MaxFor + 1 },
		"ramp": func(c *FlowConfig) { c.Ramp = 2 * time.Second }, "before": func(c *FlowConfig) { c.Stall = -1 },
	} {
		c := good
		change(&c)
		if _, err := Flows(t.Context(), c); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	goodUDP := UDPConfig{Dial: good.Dial, Address: "x", Flows: 1, Bytes: 16, Rate: 1, For: time.Second}
	for name, change := range map[string]func(*UDPConfig){
		"no dial": func(c *UDPConfig) { c.Dial = nil }, "no flows": func(c *UDPConfig) { c.Flows = 0 },
		"few bytes": func(c *UDPConfig) { c.Bytes = 15 }, "many bytes": func(c *UDPConfig) { c.Bytes = maxPacket + 1 },
		"no rate": func(c *UDPConfig) { c.Rate = 0 }, "NaN": func(c *UDPConfig) { c.Rate = math.NaN() }, "no time": func(c *UDPConfig) { c.For = 0 },
		"too many to await": func(c *UDPConfig) { c.Rate, c.Wait = MaxRate, 2*time.Second },
	} {
		c := goodUDP
		change(&c)
		if _, err := UDP(t.Context(), c); err == nil {
			t.Errorf("UDP: %s was taken", name)
		}
	}
}

func packets(t *testing.T, client *memnet.Host, change func(*UDPConfig)) UDPResult {
	t.Helper()
	c := UDPConfig{Dial: client.Dial, Address: "192.0.2.2:7", Flows: 10, Rate: 100, Bytes: 100, Echo: true, For: 10 * time.Second}
	if change != nil {
		change(&c)
	}
	r, err := UDP(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(&r)
	return r
}

func serveUDP(t *testing.T, server *memnet.Host) {
	t.Helper()
	conn, err := server.ListenPacket("udp", ":7")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { EchoUDP(ctx, conn) })
	t.Cleanup(func() { cancel(); wg.Wait() })
}

func TestPacketsAreCounted(t *testing.T) {
	for _, c := range []struct {
		name string
		path memnet.Path
		is   func(r *UDPResult) bool
	}{
		{"all well", memnet.Path{}, func(r *UDPResult) bool {
			return r.Sent >= 9990 && r.Behind == 0 && r.Back == r.Sent && r.Latency.Max() == rtt && r.Reordered+r.Late+r.Twice+r.Wrong == 0 && r.Silence < 2*rtt
		}},
		{"a tenth lost each way", memnet.Path{Loss: 0.1}, func(r *UDPResult) bool {
			return r.Lost == r.Sent-r.Back && math.Abs(float64(r.Lost)/float64(r.Sent)-0.19) < 0.02
		}},
		{"jitter", memnet.Path{Jitter: 40 * time.Millisecond}, func(r *UDPResult) bool {
			return r.Lost == 0 && r.Reordered > 1000 && r.Latency.Max() > rtt+40*time.Millisecond
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			pair(t, func(t *testing.T, in *memnet.Internet, client, server *memnet.Host) {
				c.path.Delay = rtt / 2
				in.Link("client", "server", c.path)
				serveUDP(t, server)
				if r := packets(t, client, nil); !c.is(&r) || len(r.Failed) > 0 {
					t.Errorf("%s", &r)
				}
			})
		})
	}
}

func TestPacketsThatComeLateAreLost(t *testing.T) {
	pair(t, func(t *testing.T, in *memnet.Internet, client, server *memnet.Host) {
		serveUDP(t, server)
		r := packets(t, client, func(c *UDPConfig) { c.Wait = rtt - time.Millisecond })
		if r.Back != 0 || r.Lost != r.Sent || r.Late < r.Sent*9/10 {
			t.Errorf("%s", &r)
		}
	})
}

func TestPacketsToNobodyAreLost(t *testing.T) {
	pair(t, func(t *testing.T, in *memnet.Internet, client, server *memnet.Host) {
		if r := packets(t, client, nil); r.Lost != r.Sent || r.Silence != 10*time.Second {
			t.Errorf("%s", &r)
		}
		if r := packets(t, client, func(c *UDPConfig) { c.Echo = false }); r.Lost != 0 || r.Sent < 9990 {
			t.Errorf("%s", &r)
		}
	})
}

func TestPacketsThatAreNotOursAreTold(t *testing.T) {
	at := time.Now()
	a := &awaited{ring: make([]sending, 4), next: 10, highest: 7}
	for n := 6; n < 10; n++ {
		a.ring[n%4] = sending{n: n, at: at}
	}
	want := make([]byte, 32)
	of := func(i, n int) []byte { b := make([]byte, 32); packet(b, i, n); return b }
	torn := of(3, 8)
	torn[20] ^= 1
	for _, c := range []struct {
		name string
		b    []byte
		what arrival
	}{
		{"short", of(3, 8)[:31], wrong}, {"empty", nil, wrong}, {"torn", torn, wrong}, {"another socket's", of(4, 8), wrong},
		{"not sent yet", of(3, 10), wrong}, {"below nought", of(3, -1), wrong}, {"of old", of(3, 5), late},
		{"the next", of(3, 8), back}, {"again", of(3, 8), twice}, {"one before", of(3, 6), overtaken},
	} {
		if got, _ := a.came(c.b, want, 3, at.Add(time.Millisecond), time.Second); got != c.what {
			t.Errorf("%s: %v, want %v", c.name, got, c.what)
		}
	}
	if got, _ := a.came(of(3, 9), want, 3, at.Add(2*time.Second), time.Second); got != late {
		t.Errorf("after its time: %v", got)
	}
}

func FuzzCame(f *testing.F) {
	b := make([]byte, 32)
	packet(b, 3, 8)
	f.Add(b)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		a := &awaited{ring: make([]sending, 4), next: 9, highest: -1}
		a.ring[0] = sending{n: 8, at: time.Now()}
		want := make([]byte, 32)
		what, _ := a.came(b, want, 3, time.Now(), time.Second)
		if packet(want, 3, 8); (what == back) != bytes.Equal(b, want) {
			t.Fatalf("%x: %v", b, what)
		}
	})
}

func TestQuantilesAreRightToOnePartIn32(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, scale := range []time.Duration{10 * time.Microsecond, 5 * time.Millisecond, time.Second, 200 * time.Second} {
		var one, other, sum Histogram
		var all []time.Duration
		for i := range 10_000 {
			d := time.Duration(random.ExpFloat64() * float64(scale))
			all = append(all, d)
			if i%2 == 0 {
				one.Add(d)
			} else {
				other.Add(d)
			}
		}
		sum.Merge(&Histogram{})
		sum.Merge(&one)
		sum.Merge(&other)
		slices.Sort(all)
		if sum.Count() != 10_000 || sum.Min() != all[0] || sum.Max() != all[len(all)-1] {
			t.Errorf("%v: %s", scale, &sum)
		}
		for _, q := range []float64{0, .01, .5, .9, .99, .999, 1} {
			want := all[max(int(math.Ceil(q*10_000)), 1)-1]
			got := sum.Quantile(q)
			if want < longest && (got < want-time.Microsecond || float64(got) > float64(want)*33/32+float64(time.Microsecond)) {
				t.Errorf("%v: q%v is %v, want %v", scale, q, got, want)
			}
		}
	}
	for d := time.Duration(0); d < 2*longest; d = d*9/8 + time.Microsecond {
		if b := bucketOf(d); b < 0 || b >= buckets || d < longest && (upper(b) < d.Truncate(time.Microsecond) || b > 0 && upper(b-1) >= d) {
			t.Fatalf("%v is in %d, up to %v", d, b, upper(b))
		}
	}
	var none Histogram
	if none.Quantile(.5) != 0 || none.Mean() != 0 || none.String() != "none" {
		t.Error("none is not nothing")
	}
	none.Add(1500 * time.Microsecond)
	text, err := json.Marshal(&none)
	if err != nil || !strings.Contains(string(text), `"p50":1.5,`) {
		t.Errorf("%s, %v", text, err)
	}
}

func TestTextsOfStrangersAreBounded(t *testing.T) {
	var m map[string]int
	for i := range 10_000 {
		m = count(m, strings.Repeat("x", i%1000), 1)
	}
	if len(m) > maxTexts+1 || m["other"] == 0 {
		t.Errorf("%d texts", len(m))
	}
}

func TestItWorksOverTheKernelsSockets(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { Echo(ctx, l, "here") })
	wg.Go(func() { EchoUDP(ctx, conn) })
	defer wg.Wait()
	defer cancel()
	dialer := &net.Dialer{}
	r, err := Flows(ctx, FlowConfig{Dial: dialer.DialContext, Address: l.Addr().String(), Flows: 20, Bytes: 1000, Echo: true, Greeting: true, For: 300 * time.Millisecond, Lasts: 100 * time.Millisecond})
	if err != nil || r.Opened < 20 || r.Echoed != r.Sent || r.Sent == 0 || r.Reset+r.Closed+r.Lost+r.Wrong != 0 || r.By["here"] != r.Opened {
		t.Errorf("%s, %v", &r, err)
	}
	u, err := UDP(ctx, UDPConfig{Dial: dialer.DialContext, Address: conn.LocalAddr().String(), Flows: 2, Rate: 500, Bytes: 64, Echo: true, For: 300 * time.Millisecond})
	if err != nil || u.Back == 0 || u.Wrong+u.Twice != 0 {
		t.Errorf("%s, %v", &u, err)
	}
	conn.Close()
	u, err = UDP(ctx, UDPConfig{Dial: dialer.DialContext, Address: conn.LocalAddr().String(), Flows: 1, Rate: 100, Bytes: 64, Echo: true, For: 100 * time.Millisecond, Wait: 50 * time.Millisecond})
	if err != nil || u.Back != 0 || u.Lost != u.Sent {
		t.Errorf("to a closed port: %s, %v", &u, err)
	}
}

// BenchmarkOverLoopback says what the generator itself can do: both ends are in this process.
func BenchmarkOverLoopback(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	wg.Go(func() { Echo(ctx, l, "") })
	wg.Go(func() { EchoUDP(ctx, conn) })
	defer wg.Wait()
	defer cancel()
	dialer := &net.Dialer{}
	b.Run("100 flows", func(b *testing.B) {
		for b.Loop() {
			r, _ := Flows(ctx, FlowConfig{Dial: dialer.DialContext, Address: l.Addr().String(), Flows: 100, Bytes: 100, Echo: true, For: time.Second})
			b.ReportMetric(float64(r.Echoed)/r.Took.Seconds(), "echoes/s")
		}
	})
	b.Run("3,000 flows at 1/s", func(b *testing.B) {
		for b.Loop() {
			r, _ := Flows(ctx, FlowConfig{Dial: dialer.DialContext, Address: l.Addr().String(), Flows: 3000, Ramp: time.Second, Rate: 1, Bytes: 100, Echo: true, For: 4 * time.Second})
			b.ReportMetric(float64(r.Opened), "flows")
			b.ReportMetric(float64(r.Latency.Quantile(.99).Microseconds()), "p99-µs")
			b.ReportMetric(float64(r.Behind.Microseconds()), "behind-µs")
		}
	})
	b.Run("40,000 packets/s", func(b *testing.B) {
		for b.Loop() {
			r, _ := UDP(ctx, UDPConfig{Dial: dialer.DialContext, Address: conn.LocalAddr().String(), Flows: 2, Rate: 20_000, Bytes: 64, Echo: true, For: time.Second})
			b.ReportMetric(float64(r.Sent)/r.Took.Seconds(), "sent/s")
			b.ReportMetric(float64(r.Lost), "lost")
		}
	})
}
