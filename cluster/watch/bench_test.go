package watch

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/perigee-net/perigee/cluster/latest"
	"github.com/perigee-net/perigee/cluster/store"
)

// real is a source and followers on the loopback of this machine.
type real struct {
	value     latest.Value[*store.State]
	server    *Server
	followers []*latest.Value[*store.State]
	end       func()
}

func newReal(b *testing.B, state *store.State, followers int) *real {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(b, err)
	r := &real{}
	r.value.Set(state)
	r.server = Serve(ServerConfig{Listener: listener, State: &r.value, Depth: func() int { return 0 }})
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	for i := range followers {
		v := &latest.Value[*store.State]{}
		v.Set(state)
		r.followers = append(r.followers, v)
		f := r.follower(fmt.Sprint("f", i), v)
		work.Go(func() { f.Run(ctx) })
	}
	r.end = func() {
		cancel()
		work.Wait()
		r.server.Close()
	}
	for r.server.Counters()["watch_streams"] < uint64(followers) {
		time.Sleep(10 * time.Millisecond)
	}
	return r
}

func (r *real) follower(name string, v *latest.Value[*store.State]) *Follower {
	address := r.server.cfg.Listener.Addr().String()
	return NewFollower(FollowerConfig{
		Self: name,
		Dial: func(ctx context.Context, _, address string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", address)
		},
		Sources: func() []Source { return []Source{{"voter", address}} },
		State:   v.Get,
		Take:    v.Set,
		Newest:  func() uint64 { return 0 },
	})
}

// BenchmarkAChangeToAll is one change after the other: from when the source has it until all followers do.
func BenchmarkAChangeToAll(b *testing.B) {
	for _, followers := range []int{1, 10, 50} {
		for _, objects := range []int{1000, 100_000} {
			b.Run(fmt.Sprintf("followers=%d/objects=%d", followers, objects), func(b *testing.B) {
				state := large(b, begin(b), objects)
				r := newReal(b, state, followers)
				defer r.end()
				sent := r.server.Counters()["watch_sent_bytes_total"]
				for i := 0; b.Loop(); i++ {
					b.StopTimer()
					time.Sleep(2 * pace)
					state = with(b, state, store.Change{Put: []store.Object{object("TargetGroup", "group-000007", fmt.Sprint(i))}})
					b.StartTimer()
					r.value.Set(state)
					for _, f := range r.followers {
						for version := uint64(0); f.Get().Revision < state.Revision; {
							_, version, _ = f.Next(b.Context(), version)
						}
					}
				}
				b.ReportMetric(float64(r.server.Counters()["watch_sent_bytes_total"]-sent)/float64(b.N)/float64(followers), "bytes/follower")
			})
		}
	}
}

// BenchmarkASnapshot is a node that has nothing, until it has all.
func BenchmarkASnapshot(b *testing.B) {
	for _, objects := range []int{1000, 100_000} {
		b.Run(fmt.Sprintf("objects=%d", objects), func(b *testing.B) {
			r := newReal(b, large(b, begin(b), objects), 0)
			defer r.end()
			for b.Loop() {
				v := &latest.Value[*store.State]{}
				must(b, r.follower("f", v).CatchUp(b.Context()))
				if v.Get().Revision != r.value.Get().Revision {
					b.Fatal("it has not all")
				}
			}
			b.ReportMetric(float64(r.server.Counters()["watch_sent_bytes_total"])/float64(b.N), "bytes/op")
		})
	}
}

// BenchmarkIdle is what a stream that has nothing to say costs, at both ends together.
func BenchmarkIdle(b *testing.B) {
	const streams = 200
	var before, after runtime.MemStats
	var cpu time.Duration
	for b.Loop() {
		runtime.GC()
		runtime.ReadMemStats(&before)
		r := newReal(b, begin(b), streams)
		began := used(b)
		time.Sleep(5 * time.Second)
		cpu = used(b) - began
		runtime.GC()
		runtime.ReadMemStats(&after)
		r.end()
	}
	b.ReportMetric(float64(after.HeapInuse+after.StackInuse-before.HeapInuse-before.StackInuse)/streams, "bytes/stream")
	b.ReportMetric(cpu.Seconds()/5*1e6/streams, "µs-cpu/s/stream")
}

// used is the processor time of this process so far.
func used(b *testing.B) time.Duration {
	var u syscall.Rusage
	must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkOrderOf10000Members(b *testing.B) {
	var members []Member
	for i := range 10_000 {
		members = append(members, Member{
			Name: fmt.Sprint("n", i), Region: fmt.Sprint("r", i%20), Voter: i < 5, RTT: time.Duration(i%300) * time.Millisecond,
		})
	}
	b.ReportAllocs()
	for b.Loop() {
		Order(members[9999], members)
	}
}
