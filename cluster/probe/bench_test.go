package probe

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/spec"
)

const serveVariable = "PERIGEE_PROBE_SERVE"

// TestServeForBenchmark is no test: it is the targets of BenchmarkTargets, in a process of their own so that only the
// prober's work is measured. They serve until their standard input ends.
func TestServeForBenchmark(t *testing.T) {
	if os.Getenv(serveVariable) == "" {
		t.Skip("serves the benchmark only")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(crand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.ProtoMajor == 2 {
				grpcAnswer("0")(w, r)
				return
			}
			io.WriteString(w, "all is well\n")
		}),
		Protocols: new(http.Protocols),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}},
	}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("listens %v\n", l.Addr())
		return l
	}
	go server.Serve(listen())
	go server.ServeTLS(listen(), "", "")
	io.Copy(io.Discard, os.Stdin)
}

// targets starts the process of targets, and returns where they listen.
func targets(b *testing.B) (plain, secure netip.AddrPort) {
	command := exec.Command(os.Args[0], "-test.run=^TestServeForBenchmark$")
	command.Env = append(os.Environ(), serveVariable+"=1")
	command.Stderr = os.Stderr
	in, err := command.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := command.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := command.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		in.Close()
		command.Wait()
	})
	var at []netip.AddrPort
	for lines := bufio.NewScanner(out); len(at) < 2 && lines.Scan(); {
		if address, ok := strings.CutPrefix(lines.Text(), "listens "); ok {
			at = append(at, netip.MustParseAddrPort(address))
		}
	}
	if len(at) < 2 {
		b.Fatal("the targets do not listen")
	}
	return at[0], at[1]
}

// work is the CPU time this process has had.
func work() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// 10,000 targets, each looked at by three of 10 nodes each 30 s, are 100 probes a second on each. So many are made here
// for ten seconds by a Prober, over the loopback, and what they cost this process is told, per probe and of one core.
func BenchmarkTargets(b *testing.B) {
	plain, secure := targets(b)
	for _, protocol := range []string{spec.TCP, spec.HTTP, spec.HTTPS, spec.GRPC} {
		b.Run(protocol, func(b *testing.B) {
			checks := many(1000, 10*time.Second)
			for i := range checks {
				c := &checks[i]
				*c = targetTerms
				c.Key, c.Protocol, c.Address = health.TargetKey("web", netip.AddrPortFrom(endpoint.Addr(), uint16(i+1))), protocol, plain
				c.Thresholds.Interval = 10 * time.Second
				switch protocol {
				case spec.HTTPS:
					c.Address = secure
				case spec.GRPC:
					c.Path, c.Matcher = "/AWS.ALB/healthcheck", "0"
				}
			}
			for b.Loop() {
				p := New(Config{Node: "a", Report: func(health.Key, *health.Verdict) {}})
				p.Set(checks)
				time.Sleep(11 * time.Second) // the first probes come closer together
				before, probes, start := work(), p.probes.Load(), time.Now()
				time.Sleep(10 * time.Second)
				took, made, passed := work()-before, p.probes.Load()-probes, time.Since(start)
				b.ReportMetric(float64(took.Microseconds())/float64(made), "cpu-µs/probe")
				b.ReportMetric(float64(made)/passed.Seconds(), "probes/s")
				b.ReportMetric(100*took.Seconds()/passed.Seconds(), "%core")
				if failed := p.failed.Load(); failed > 0 {
					b.Errorf("%d probes failed", failed)
				}
				p.Close()
			}
		})
	}
}

// What a check costs that waits for its next probe; its Check is counted twice, once in the list that was set.
func BenchmarkMemoryOf20000Checks(b *testing.B) {
	memory := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	for b.Loop() {
		before := memory()
		p := New(Config{Node: "a", Report: func(health.Key, *health.Verdict) {}})
		checks := many(maxChecks, time.Hour)
		p.Set(checks)
		b.ReportMetric(float64(memory()-before)/maxChecks, "B/check")
		b.ReportMetric(float64(runtime.NumGoroutine()), "goroutines")
		runtime.KeepAlive(checks)
		p.Close()
	}
}
