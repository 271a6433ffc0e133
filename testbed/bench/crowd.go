//go:build linux

package bench

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// crowd is load of many flows at once through a relay, beside one alone: the clients, and what is behind the relay, which sends on each flow as fast as it is
// taken.
type crowd struct {
	address string // of the relay
	target  string // behind it
	flows   int
	last    time.Duration // of each part
}

// crowdRoom is how many bytes an end of a flow of a crowd reads or writes at once.
const crowdRoom = 64 << 10

// crowdBuffer is how many bytes a target of a crowd has waiting in its socket (which Linux doubles). What Linux gives it else, 1.5 MB of each of a thousand, is more than the
// kernel has for TCP in all on a machine of 24 GB, so that it drops what has arrived; and a real target's are in another machine's memory.
const crowdBuffer = 128 << 10

// crowdFlows go through two nodes at once; silentFlows are as many as the files of this process allow, two for each.
const crowdFlows, silentFlows = 1000, 3000

// warmTime is how long flows are up before they are measured.
const warmTime = time.Second

// flowsOf has so many flows be carried, and says what each got in the time that is measured.
func (l crowd) flowsOf(ctx context.Context, flows int) (got []int64, took time.Duration, err error) {
	target, err := net.Listen("tcp", l.target)
	if err != nil {
		return nil, 0, fmt.Errorf("listen behind the relay: %w", err)
	}
	var all sync.WaitGroup
	defer all.Wait()
	defer target.Close()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	all.Go(func() {
		for {
			c, err := target.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
				err := c.(*net.TCPConn).SetWriteBuffer(crowdBuffer)
				for err == nil {
					_, err = c.Write(pattern[:crowdRoom])
				}
			})
		}
	})
	came := make([]atomic.Int64, flows)
	var failed atomic.Pointer[error]
	for i := range flows {
		c, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", l.address)
		if err != nil {
			return nil, 0, err
		}
		all.Go(func() {
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
			room := make([]byte, crowdRoom)
			for {
				n, err := c.Read(room)
				if at := came[i].Load() % int64(len(pattern)); n > 0 && room[0] != pattern[at] {
					err = errStreamed
				}
				came[i].Add(int64(n))
				if err == io.EOF {
					err = io.ErrUnexpectedEOF
				}
				if err != nil {
					if ctx.Err() == nil {
						failed.CompareAndSwap(nil, &err)
					}
					return
				}
			}
		})
	}
	wait := func(d time.Duration) error {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(d):
			return nil
		}
	}
	if err := wait(warmTime); err != nil {
		return nil, 0, err
	}
	got = make([]int64, flows)
	for i := range got {
		got[i] = -came[i].Load()
	}
	began := time.Now()
	if err := wait(l.last); err != nil {
		return nil, 0, err
	}
	took = time.Since(began)
	for i := range got {
		got[i] += came[i].Load()
	}
	if err := failed.Load(); err != nil {
		return nil, 0, fmt.Errorf("of %d flows one broke: %w", flows, *err)
	}
	return got, took, nil
}

// shared is how a crowd shares a relay.
type shared struct {
	bytes int64
	total float64 // of the throughput of one flow alone
	fair  float64 // Jain's index: 1 where all get the same, 1/n where one gets all
}

func (l crowd) run(ctx context.Context) (s shared, err error) {
	alone, tookAlone, err := l.flowsOf(ctx, 1)
	if err != nil {
		return s, err
	}
	many, took, err := l.flowsOf(ctx, l.flows)
	if err != nil {
		return s, err
	}
	for _, n := range many {
		s.bytes += n
	}
	if alone[0] == 0 || s.bytes == 0 {
		return s, fmt.Errorf("one flow got %d bytes, %d flows %d", alone[0], l.flows, s.bytes)
	}
	s.total = float64(s.bytes) / took.Seconds() / (float64(alone[0]) / tookAlone.Seconds())
	s.fair = jain(many)
	s.bytes += alone[0]
	return s, nil
}

// jain is the square of the sum of shares by the sum of their squares and how many they are.
func jain(shares []int64) float64 {
	var sum, squares float64
	for _, n := range shares {
		sum += float64(n)
		squares += float64(n) * float64(n)
	}
	if squares == 0 {
		return 0
	}
	return sum * sum / squares / float64(len(shares))
}

// silent opens flows through a relay that carry a few bytes each way and then none, and says what each takes of memory, at all nodes it goes through.
func silent(ctx context.Context, s Stage) (m Measured, err error) {
	target, err := net.Listen("tcp", s.at(s.TLS))
	if err != nil {
		return m, fmt.Errorf("listen behind the relay: %w", err)
	}
	var behind sync.WaitGroup
	defer behind.Wait()
	defer target.Close()
	behind.Go(func() {
		for {
			c, err := target.Accept()
			if err != nil {
				return
			}
			behind.Go(func() {
				defer c.Close()
				io.Copy(c, c)
			})
		}
	})
	before, err := s.proc.Memory()
	if err != nil {
		return m, err
	}
	var all []net.Conn
	defer func() {
		for _, c := range all {
			c.Close()
		}
	}()
	for range min(s.Idle, silentFlows) {
		c, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", s.at(s.Port))
		if err != nil {
			return m, err
		}
		all = append(all, c)
		room := make([]byte, shortBytes)
		if _, err = c.Write(pattern[:shortBytes]); err == nil {
			_, err = io.ReadFull(c, room)
		}
		if err != nil {
			m.Failed = fmt.Sprintf("flow %d: %v", len(all), err)
			return m, nil
		}
	}
	if err := settle(ctx, settleTime); err != nil {
		return m, err
	}
	after, err := s.proc.Memory()
	m.Count, m.Bytes = int64(len(all)), int64(len(all)*shortBytes)
	m.Value = float64(after-before) / float64(len(all))
	return m, err
}
