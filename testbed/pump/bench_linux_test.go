package pump

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"github.com/perigee-net/perigee/testbed/gate"
	"github.com/perigee-net/perigee/testbed/netns"
	"github.com/perigee-net/perigee/testbed/wan"
)

// alone gives the pump one core, and apart runs what makes the load on the other.
var alone = []string{"env", "GOMAXPROCS=1", "taskset", "-c", "0"}

const apart = "taskset -c 1 "

// BenchmarkTCP is one TCP connection by iperf3, packets of 1,500 bytes.
func BenchmarkTCP(b *testing.B) {
	if _, err := exec.LookPath("iperf3"); err != nil {
		gate.Lacks(b, "iperf3 is missing: apt-get install iperf3")
	}
	for _, delay := range []time.Duration{0, 5 * ms, 50 * ms} {
		b.Run("delay="+delay.String(), func(b *testing.B) {
			p := pumped(b, alone...)
			p.ask(b, wan.Path{Delay: delay}, wan.Path{Delay: delay})
			for _, n := range []*netns.Namespace{p.a, p.b} { // as a server for long paths has
				for key, value := range map[string]string{"net.ipv4.tcp_rmem": "4096 131072 33554432", "net.ipv4.tcp_wmem": "4096 131072 33554432"} {
					if err := n.Sysctl(key, value); err != nil {
						b.Fatal(err)
					}
				}
			}
			server := p.b.Command(b.Context(), strings.Fields(apart+"iperf3 -s -1 --forceflush -B "+labB)...)
			out, err := server.StdoutPipe()
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if server.Process != nil {
					b.Fatal("run it with -benchtime 1x")
				}
				if err := server.Start(); err != nil {
					b.Fatal(err)
				}
				for lines := bufio.NewScanner(out); lines.Scan() && !strings.Contains(lines.Text(), "listening"); {
				}
				cpu, began := p.cpu(b), time.Now()
				text, err := p.a.Command(b.Context(), strings.Fields(apart+"iperf3 -J -t 5 -O 1 -c "+labB)...).Output()
				if err != nil {
					b.Fatalf("%v: %s", err, text)
				}
				busy := (p.cpu(b) - cpu).Seconds() / time.Since(began).Seconds()
				var got struct {
					End struct {
						Received struct {
							Bits float64 `json:"bits_per_second"`
						} `json:"sum_received"`
						Sent struct {
							Retransmits float64
						} `json:"sum_sent"`
					}
				}
				if err := json.Unmarshal(text, &got); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(got.End.Received.Bits/1e6, "Mbit/s")
				b.ReportMetric(got.End.Sent.Retransmits, "retransmits")
				b.ReportMetric(busy, "cores")
				b.ReportMetric(0, "ns/op")
				_ = server.Wait()
			}
			b.Logf("%+v", p.stats().AB)
		})
	}
}

// BenchmarkPackets offers small UDP packets: as many as a core can, and 100,000 a second.
func BenchmarkPackets(b *testing.B) {
	for _, c := range []struct {
		name   string
		rate   int // packets a second; 0: as fast as it goes
		path   wan.Path
		random bool
	}{
		{"flood", 0, wan.Path{}, false},
		{"flood,delay=20ms", 0, wan.Path{Delay: 20 * ms}, false},
		{"100000,delay=20ms", 100_000, wan.Path{Delay: 20 * ms}, false},
		{"200000,delay=100ms,jitter=5ms,loss=1%", 200_000, wan.Path{Delay: 100 * ms, Jitter: 5 * ms, Loss: 0.01}, false},
	} {
		b.Run(c.name, func(b *testing.B) {
			p := pumped(b, alone...)
			p.ask(b, c.path, wan.Path{})
			for b.Loop() {
				cpu, before, began := p.cpu(b), p.stats().AB, time.Now()
				sent := blast(b, p.lab, c.rate, 5*time.Second)
				took := time.Since(began)
				busy := (p.cpu(b) - cpu).Seconds() / took.Seconds()
				time.Sleep(c.path.Delay + 100*ms)
				s := p.stats().AB
				passed := float64(s.Packets - before.Packets)
				b.ReportMetric(float64(sent)/took.Seconds(), "offered/s")
				b.ReportMetric(passed/took.Seconds(), "packets/s")
				b.ReportMetric(100*(1-(passed+float64(s.Lost-before.Lost))/float64(sent)), "%dropped")
				b.ReportMetric(float64(s.P99.Microseconds()), "late-p99-µs")
				b.ReportMetric(busy, "cores")
				b.ReportMetric(0, "ns/op")
			}
		})
	}
}

// BenchmarkAddedDelay is what the pump adds to a round trip, of both directions together, while the link carries so
// many packets a second besides.
func BenchmarkAddedDelay(b *testing.B) {
	for _, load := range []int{0, 1000, 10_000, 50_000} {
		b.Run(fmt.Sprintf("load=%d", load), func(b *testing.B) {
			p := pumped(b, alone...)
			const delay = 10 * ms
			p.ask(b, wan.Path{Delay: delay}, wan.Path{Delay: delay})
			for b.Loop() {
				var loaded sync.WaitGroup
				if load > 0 {
					loaded.Go(func() { blast(b, p.lab, load, 5*time.Second) })
				}
				trips := p.ping(b, 1000, 4*ms, 500*ms)
				loaded.Wait()
				for name, q := range map[string]float64{"p50": 0.5, "p90": 0.9, "p99": 0.99} {
					b.ReportMetric(float64((quantile(trips, q) - 2*delay).Microseconds()), name+"-added-µs")
				}
				b.ReportMetric(float64(1000-len(trips)), "lost")
				b.ReportMetric(float64(p.stats().AB.P99.Microseconds()), "late-p99-µs")
				b.ReportMetric(0, "ns/op")
			}
		})
	}
}

// BenchmarkLinks makes the full mesh of 20 sites, 190 links, as fast as they are asked for.
func BenchmarkLinks(b *testing.B) {
	const links = 190
	p := pumped(b, alone...)
	began := time.Now()
	for b.Loop() {
		for i := range links {
			name := fmt.Sprintf("m%d", i)
			if err := p.client.Add(name, Device{p.a.Name, name}, Device{p.b.Name, name}, wan.Path{}, wan.Path{}); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(time.Since(began).Milliseconds())/links, "ms/link")
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		b.Fatal(err)
	}
	for _, line := range strings.Split(string(status), "\n") {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "VmRSS:" {
			kib, _ := strconv.Atoi(fields[1])
			b.ReportMetric(float64(kib)/1024, "MiB")
		}
	}
	cpu := p.cpu(b)
	time.Sleep(time.Second)
	b.ReportMetric((p.cpu(b) - cpu).Seconds(), "idle-cores")
	b.ReportMetric(0, "ns/op")
}

// blast sends packets of 64 bytes from a to b on core 1, evenly where there is a rate, and returns how many. They end in
// a socket that nobody reads.
func blast(t testing.TB, l *lab, rate int, lasts time.Duration) int {
	t.Helper()
	sink, err := l.b.ListenPacket("udp4", labB+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	conn, err := l.a.ListenPacket("udp4", labA+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	done := make(chan int)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its affinity
		var core unix.CPUSet
		core.Set(1)
		_ = unix.SchedSetaffinity(0, &core)
		_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
		batch := make([]ipv4.Message, 32)
		for i := range batch {
			batch[i] = ipv4.Message{Buffers: [][]byte{make([]byte, 64-28)}, Addr: sink.LocalAddr()}
		}
		out := ipv4.NewPacketConn(conn)
		sent, began := 0, time.Now()
		for ; ; runtime.Gosched() {
			passed := time.Since(began)
			if passed > lasts {
				break
			}
			owed := len(batch)
			if rate > 0 {
				if owed = min(owed, int(passed.Seconds()*float64(rate))-sent); owed < 1 {
					gap := unix.NsecToTimespec(100_000)
					_ = unix.Nanosleep(&gap, nil)
					continue
				}
			}
			n, err := out.WriteBatch(batch[:owed], 0)
			if err != nil {
				if !isFull(err) {
					t.Error(err)
					break
				}
			}
			sent += n
		}
		done <- sent
	}()
	return <-done
}

func isFull(err error) bool {
	op, ok := err.(*net.OpError)
	return ok && strings.Contains(op.Error(), unix.ENOBUFS.Error())
}
