//go:build linux

package netns

import (
	"context"
	"strconv"
	"sync"
	"testing"
	"time"
)

// What a laboratory costs: go test -run '^$' -bench . ./testbed/netns

// benchHosts is the most hosts that a world has.
const benchHosts = 500

func BenchmarkFiveHundredHostsAreMadeAndDeleted(b *testing.B) {
	lab(b)
	for b.Loop() {
		all := make([]*Namespace, benchHosts)
		began := time.Now()
		for i := range all {
			all[i] = made(b, "many-"+strconv.Itoa(i))
		}
		b.ReportMetric(float64(time.Since(began).Milliseconds())/benchHosts, "ms/new")
		began = time.Now()
		for i, n := range all[1:] {
			ok(b, Veth(all[0], "h-"+strconv.Itoa(i), n, "eth0"))
		}
		b.ReportMetric(float64(time.Since(began).Milliseconds())/benchHosts, "ms/veth")
		began = time.Now()
		work := make(chan *Namespace)
		var workers sync.WaitGroup
		for range 8 {
			workers.Go(func() {
				for n := range work {
					if err := n.Delete(context.Background()); err != nil {
						b.Error(err)
					}
				}
			})
		}
		for _, n := range all {
			work <- n
		}
		close(work)
		workers.Wait()
		b.ReportMetric(float64(time.Since(began).Milliseconds())/benchHosts, "ms/delete")
	}
}

func BenchmarkInside(b *testing.B) {
	lab(b)
	n := made(b, "inside")
	for b.Loop() {
		ok(b, n.inside(func(*thread) error { return nil }))
	}
}

func BenchmarkDial(b *testing.B) {
	lab(b)
	n := made(b, "dial")
	l := echo(b, n, "127.0.0.1:80")
	for b.Loop() {
		c, err := n.Dial(context.Background(), "udp", l.Addr().String())
		ok(b, err)
		c.Close()
	}
}

func BenchmarkDialTCP(b *testing.B) {
	lab(b)
	n := made(b, "dialtcp")
	l := echo(b, n, "127.0.0.1:80")
	for b.Loop() {
		c, err := n.Dial(context.Background(), "tcp", l.Addr().String())
		ok(b, err)
		c.Close()
	}
}

func BenchmarkCommand(b *testing.B) {
	lab(b)
	n := made(b, "command")
	for b.Loop() {
		ok(b, n.Command(context.Background(), "true").Run())
	}
}
