//go:build linux

package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of a drive.
const (
	maxConnections = 20_000
	maxHead        = 16 << 10         // of an answer; a longer one fails the sample
	sinkBytes      = 1 << 20          // of a body that are dropped at a time
	connectTime    = 10 * time.Second // for one connection
	lateTime       = 2 * time.Second  // in which what was due must be answered after the end of a paced drive, or it fails
)

// drive is load by HTTP/1.1 without TLS, over connections that are kept, from one thread: plain system calls and epoll, so that the load's
// core can do more than the server's. It is for what wrk cannot do: a pace, bodies that cost the client nothing (it has the kernel drop
// them: tcp(7), MSG_TRUNC), many URLs, a number of requests. Each answer must be 200 and have the right length, else the drive ends as failed.
type drive struct {
	address     string // HOST:PORT
	connections int
	path        func(n int64) string // of request n, from 0
	size        int64                // of each body
	// pace is how many requests are due each second, whether those before are answered or not; the latency of one is counted from when it
	// was due, so that a server that stops for a while is not spared the requests that it kept waiting. 0: each connection asks again as
	// soon as it is answered.
	pace  float64
	count int64         // ends after so many; 0: by time
	last  time.Duration // how long it lasts; 0: by count
	// linger is called with all connections open and idle, before they are closed; nil: nothing.
	linger func() error
}

// caller is one connection of a drive.
type caller struct {
	fd   int
	due  time.Duration // when the request that it waits for was due, since the drive began
	head []byte        // the beginning of an answer's head, where it came in parts
	left int64         // bytes of the body that are still to come
	busy bool
}

// run drives. The error is of this machine or the context; what is wrong with the server is Measured.Failed.
func (d *drive) run(ctx context.Context) (m Measured, err error) {
	if d.connections < 1 || d.connections > maxConnections {
		return m, fmt.Errorf("%d connections: want 1 to %d", d.connections, maxConnections)
	}
	// System calls go straight to the thread's own queue of the scheduler, and no other goroutine moves it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return m, fmt.Errorf("make an epoll: %w", err)
	}
	defer unix.Close(poll)
	callers := make([]*caller, 0, d.connections)
	defer func() {
		for _, c := range callers {
			unix.Close(c.fd)
		}
	}()
	for i := range d.connections {
		if ctx.Err() != nil {
			return m, context.Cause(ctx)
		}
		fd, err := dialRaw(d.address)
		if err != nil {
			return Measured{Failed: fmt.Sprintf("connection %d of %d: %v", i+1, d.connections, err)}, nil
		}
		callers = append(callers, &caller{fd: fd})
		if err := unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)}); err != nil {
			return m, fmt.Errorf("watch a connection: %w", err)
		}
	}
	m, err = d.loop(ctx, poll, callers)
	if err == nil && m.Failed == "" && d.linger != nil {
		err = d.linger()
	}
	return m, err
}

// loop asks and reads until the end.
func (d *drive) loop(ctx context.Context, poll int, callers []*caller) (m Measured, err error) {
	var times latencies
	idle := make([]*caller, 0, len(callers))
	for i := len(callers) - 1; i >= 0; i-- {
		idle = append(idle, callers[i])
	}
	events := make([]unix.EpollEvent, 256)
	buf, sink := make([]byte, 64<<10), make([]byte, sinkBytes)
	request := make([]byte, 0, 512)
	var sent int64
	began := time.Now()
	wait := 50 // milliseconds: how often the end is looked for
	if d.pace > 0 {
		wait = 0 // to be on time, it turns without sleeping
	}
	due := func() time.Duration { return time.Duration(float64(sent) / d.pace * float64(time.Second)) }
	over := func(now time.Duration) bool { // no more is asked
		return d.count > 0 && sent == d.count || d.last > 0 && (d.pace == 0 && now >= d.last || d.pace > 0 && due() >= d.last)
	}
	for turn := 0; ; turn++ {
		now := time.Since(began)
		for len(idle) > 0 && !over(now) {
			at := now
			if d.pace > 0 {
				if at = due(); at > now {
					break
				}
			}
			c := idle[len(idle)-1]
			idle = idle[:len(idle)-1]
			request = append(append(append(request[:0], "GET "...), d.path(sent)...), " HTTP/1.1\r\nHost: "+Name+"\r\n\r\n"...)
			if n, err := unix.Write(c.fd, request); err != nil || n < len(request) {
				m.Failed = fmt.Sprintf("request %d: %d of %d bytes are written: %v", sent+1, n, len(request), err)
				return m, nil
			}
			c.busy, c.due = true, at
			sent++
		}
		if over(now) && (d.pace == 0 && d.count == 0 || m.Count == sent) {
			m.Mean, m.P50, m.P99 = times.mean(), times.quantile(0.5), times.quantile(0.99)
			m.Value = float64(m.Count) / time.Since(began).Seconds()
			return m, nil
		}
		if d.pace > 0 && now > d.last+lateTime {
			m.Failed = fmt.Sprintf("%d requests are answered %v after %v: it does not keep up with %.0f each second", m.Count, lateTime, d.last, d.pace)
			return m, nil
		}
		if turn%1024 == 0 || wait > 0 {
			if ctx.Err() != nil {
				return m, context.Cause(ctx)
			}
		}
		n, err := unix.EpollWait(poll, events, wait)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return m, fmt.Errorf("wait for answers: %w", err)
		}
		for i := range max(n, 0) {
			c := callers[events[i].Fd]
			done, got, err := c.read(buf, sink, d.size)
			m.Bytes += got
			if err != nil {
				m.Failed = fmt.Sprintf("after %d answers: %v", m.Count, err)
				return m, nil
			}
			if done {
				times.add(time.Since(began) - c.due)
				m.Count++
				c.busy = false
				idle = append(idle, c)
			}
		}
	}
}

// read takes what has come, and says whether the answer is whole.
func (c *caller) read(buf, sink []byte, size int64) (done bool, got int64, err error) {
	if !c.busy {
		n, err := unix.Read(c.fd, buf)
		if n == 0 {
			err = errors.New("the server closes")
		}
		return false, 0, fmt.Errorf("nothing is asked, and %d bytes come: %w", max(n, 0), err)
	}
	if c.left > 0 {
		n, _, err := unix.Recvfrom(c.fd, sink[:min(c.left, int64(len(sink)))], unix.MSG_TRUNC)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			return false, 0, nil
		case err != nil:
			return false, 0, err
		case n == 0:
			return false, 0, fmt.Errorf("the server closes %d bytes before the end", c.left)
		}
		c.left -= int64(n)
		return c.left == 0, int64(n), nil
	}
	n, err := unix.Read(c.fd, buf)
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		return false, 0, nil
	case err != nil:
		return false, 0, err
	case n == 0:
		return false, 0, errors.New("the server closes instead of an answer")
	}
	data := buf[:n]
	if len(c.head) > 0 {
		c.head = append(c.head, data...)
		data = c.head
	}
	length, head, err := parseHead(data)
	switch {
	case err != nil:
		return false, int64(n), err
	case head == 0:
		if len(c.head) == 0 {
			c.head = append(c.head, data...)
		}
		return false, int64(n), nil
	case length != size:
		return false, int64(n), fmt.Errorf("an answer has a body of %d bytes, not %d", length, size)
	}
	body := int64(len(data) - head)
	c.head = c.head[:0]
	if body > length {
		return false, int64(n), fmt.Errorf("%d bytes more come than an answer has", body-length)
	}
	c.left = length - body
	return c.left == 0, int64(n), nil
}

// parseHead reads the head of an answer, which is to be 200 with a Content-Length: the length of the body, and that of the head with the empty
// line. A head of 0 bytes: more must come.
func parseHead(data []byte) (length int64, head int, err error) {
	end := bytes.Index(data, []byte("\r\n\r\n"))
	if end < 0 {
		if len(data) > maxHead {
			return 0, 0, fmt.Errorf("the head of an answer has no end in %d bytes", len(data))
		}
		return 0, 0, nil
	}
	lines := data[:end+2]
	first, rest, _ := bytes.Cut(lines, []byte("\r\n"))
	const right = "HTTP/1.1 200"
	if !bytes.HasPrefix(first, []byte(right)) || len(first) > len(right) && first[len(right)] != ' ' {
		return 0, 0, fmt.Errorf("the answer is %q", first[:min(len(first), 100)])
	}
	const name = "content-length:"
	length = -1
	for len(rest) > 0 {
		var line []byte
		line, rest, _ = bytes.Cut(rest, []byte("\r\n"))
		if len(line) < len(name) || !bytes.EqualFold(line[:len(name)], []byte(name)) {
			continue
		}
		n, err := strconv.ParseUint(string(bytes.TrimSpace(line[len(name):])), 10, 62)
		if err != nil || length >= 0 {
			return 0, 0, fmt.Errorf("the length of an answer is said by %q", line[:min(len(line), 100)])
		}
		length = int64(n)
	}
	if length < 0 {
		return 0, 0, errors.New("an answer has no Content-Length")
	}
	return length, end + 4, nil
}

// dialRaw connects, and returns a socket that does not block.
func dialRaw(address string) (fd int, err error) {
	a, err := netip.ParseAddrPort(address)
	if err != nil || !a.Addr().Is4() {
		return -1, fmt.Errorf("connect to %q: want an IPv4 address and a port: %w", address, err)
	}
	if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, fmt.Errorf("make a socket: %w", err)
	}
	limit := unix.NsecToTimeval(connectTime.Nanoseconds()) // bounds connect too (socket(7))
	err = errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit), unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1))
	for err == nil {
		if err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}); !errors.Is(err, unix.EINTR) {
			break
		}
		err = nil
	}
	if errors.Is(err, unix.EISCONN) || errors.Is(err, unix.EALREADY) { // a signal came between
		err = nil
	}
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("connect to %s: %w", address, err)
	}
	return fd, nil
}

// latencies are times in buckets that are a 64th of them wide: bounded, however many there are. The zero value is ready.
type latencies struct {
	counts [58 * 64]int64
	n      int64
	sum    time.Duration
}

// add takes one; what is below zero counts as zero.
func (l *latencies) add(d time.Duration) {
	d = max(d, 0)
	l.counts[bucket(d)]++
	l.n++
	l.sum += d
}

func bucket(d time.Duration) int {
	if d < 64 {
		return int(d)
	}
	shift := bits.Len64(uint64(d)) - 7
	return (shift+1)*64 + int(d>>shift) - 64
}

// within is the middle of a bucket.
func within(bucket int) time.Duration {
	if bucket < 128 {
		return time.Duration(bucket)
	}
	shift := bucket/64 - 1
	return time.Duration(bucket%64+64)<<shift + time.Duration(1)<<(shift-1)
}

func (l *latencies) mean() time.Duration {
	if l.n == 0 {
		return 0
	}
	return l.sum / time.Duration(l.n)
}

// quantile is the time that a share of all did not exceed.
func (l *latencies) quantile(share float64) time.Duration {
	rank := int64(share*float64(l.n) + 0.5)
	for i, n := range l.counts {
		if rank -= n; rank <= 0 && n > 0 {
			return within(i)
		}
	}
	return 0
}
