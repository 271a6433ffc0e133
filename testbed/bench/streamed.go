//go:build linux

package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// streamed is load through a relay of TCP: the clients, and what is behind the relay.
type streamed struct {
	address string // of the relay
	target  string // behind it
	flows   int    // at once
	// short has each flow be a question and an answer of shortBytes each, which the target ends, and another follow; else the target sends
	// for as long as there is load.
	short bool
	last  time.Duration
}

const (
	shortBytes = 64
	streamRoom = 256 << 10 // bytes that an end reads or writes at once
	countedMiB = 1 << 20
	maxFirst   = 10 * time.Second // until the first bytes of a flow come, even where it lasts shorter
)

// pattern is what the target sends, over and over.
var pattern = bytes.Repeat([]byte("0123456789abcdef"), streamRoom/16)

// run makes the load. Counted are MiB, or flows that were short.
func (l *streamed) run(ctx context.Context) (m Measured, err error) {
	target, err := net.Listen("tcp", l.target)
	if err != nil {
		return m, fmt.Errorf("listen behind the relay: %w", err)
	}
	ctx, stop := context.WithTimeout(ctx, l.last)
	defer stop()
	var behind, clients sync.WaitGroup
	behind.Go(func() {
		for {
			c, err := target.Accept()
			if err != nil {
				return
			}
			behind.Go(func() { l.serve(ctx, c) })
		}
	})
	var count, came atomic.Int64
	var failed atomic.Pointer[error]
	began := time.Now()
	for range l.flows {
		clients.Go(func() {
			for ctx.Err() == nil {
				n, err := l.ask(ctx)
				came.Add(n)
				if err != nil {
					failed.CompareAndSwap(nil, &err)
					return
				}
				if l.short {
					count.Add(1)
				}
			}
		})
	}
	clients.Wait()
	took := time.Since(began)
	target.Close()
	behind.Wait()
	if m.Bytes = came.Load(); l.short {
		m.Count = count.Load()
	} else {
		m.Count = m.Bytes / countedMiB
	}
	if err := failed.Load(); err != nil {
		m.Failed = fmt.Sprintf("after %d: %v", m.Count, *err)
	}
	if m.Value = float64(m.Count) / took.Seconds(); !l.short {
		m.Value = float64(m.Bytes) / countedMiB / took.Seconds()
	}
	return m, nil
}

// serve is what the target does with a flow.
func (l *streamed) serve(ctx context.Context, c net.Conn) {
	defer c.Close()
	if l.short {
		room := make([]byte, shortBytes)
		if _, err := io.ReadFull(c, room); err == nil {
			c.Write(room)
		}
		return
	}
	// The first bytes go whatever the time is: a flow is never ended before something of it came.
	if _, err := c.Write(pattern); err != nil {
		return
	}
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	for {
		if _, err := c.Write(pattern); err != nil {
			return
		}
	}
}

var errStreamed = errors.New("other bytes came than were sent")

// ask is one flow of a client, and how much came by it.
func (l *streamed) ask(ctx context.Context) (n int64, err error) {
	c, err := (&net.Dialer{Timeout: time.Second}).Dial("tcp", l.address)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if l.short {
		if _, err := c.Write(pattern[:shortBytes]); err != nil {
			return 0, err
		}
		got, err := io.ReadAll(io.LimitReader(c, 2*shortBytes))
		if err == nil && !bytes.Equal(got, pattern[:shortBytes]) {
			err = errStreamed
		}
		return int64(len(got)), err
	}
	c.SetReadDeadline(time.Now().Add(maxFirst))
	ends := func() bool { return true }
	defer func() { ends() }()
	room := make([]byte, streamRoom)
	for {
		k, err := c.Read(room)
		if at := int(n % int64(len(pattern))); k > 0 && room[0] != pattern[at] { // to look at all of it would cost more than to relay it
			return n, errStreamed
		}
		if n == 0 && k > 0 { // from now on it ends with the load
			c.SetReadDeadline(time.Time{})
			ends = context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
		}
		switch n += int64(k); {
		case n > 0 && ctx.Err() != nil:
			return n, nil
		case err != nil:
			return n, err
		}
	}
}
