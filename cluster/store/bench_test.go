package store

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// benchCluster is three stores on real sockets and disks.
func benchCluster(b *testing.B, noSync bool) *Store {
	b.Helper()
	var all []*Store
	for i := range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		name := fmt.Sprint("n", i)
		s, err := Open(Config{
			Name: name, Dir: filepath.Join(b.TempDir(), name), Advertise: l.Addr().String(), Listener: l, Bootstrap: i == 0,
			NoSync: noSync, RoundTrip: 20 * time.Millisecond,
			Dial: func(ctx context.Context, _, address string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "tcp", address)
			},
		})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { s.Close() })
		all = append(all, s)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for version := uint64(0); all[0].Leader().Get().Name != "n0"; {
		_, next, err := all[0].Leader().Next(ctx, version)
		if err != nil {
			b.Fatal(err)
		}
		version = next
	}
	for _, s := range all[1:] {
		if err := all[0].AddVoter(ctx, s.cfg.Name, s.cfg.Advertise); err != nil {
			b.Fatal(err)
		}
	}
	return all[0]
}

// BenchmarkSubmit is of small changes, as many under way as are taken, by three stores over loopback.
func BenchmarkSubmit(b *testing.B) {
	for name, noSync := range map[string]bool{"flushed": false, "unflushed": true} {
		b.Run(name, func(b *testing.B) {
			s := benchCluster(b, noSync)
			var under []*Pending
			settle := func(left int) {
				for ; len(under) > left; under = under[1:] {
					if _, err := under[0].Wait(b.Context()); err != nil {
						b.Fatal(err)
					}
				}
			}
			for i := 0; b.Loop(); i++ {
				p, err := s.Submit(Change{Put: []Object{put("k", fmt.Sprint(i%1000), fmt.Sprint("content ", i))}})
				if err != nil {
					b.Fatal(err)
				}
				under = append(under, p)
				settle(maxPending / 2)
			}
			settle(0)
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "changes/s")
		})
	}
}

// BenchmarkApply is of small changes, one after the other.
func BenchmarkApply(b *testing.B) {
	s := benchCluster(b, false)
	for i := 0; b.Loop(); i++ {
		if _, err := s.Apply(b.Context(), Change{Put: []Object{put("k", "a", fmt.Sprint(i))}}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkVerify is of one who asks after the other.
func BenchmarkVerify(b *testing.B) {
	s := benchCluster(b, false)
	for b.Loop() {
		if err := s.Verify(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
