//go:build linux

package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// exchanged is load of one datagram at a time that goes through a relay to what is behind it, and back: the client and what is behind are one thread. Between
// any two there is one that goes there and back without the relay. It looks for what comes without sleeping, so that nobody has to wake it.
type exchanged struct {
	address  string // of the relay
	target   string // behind it
	size     int
	passages int // of nodes, there and back
	last     time.Duration
}

// exchangePause is how long nothing is sent after an exchange, so that whoever waits has gone to sleep: flows that are asked now and then find their way so.
const exchangePause = 50 * time.Microsecond

// errLost says that a datagram did not come in lostTime.
var errLost = errors.New("lost")

// run makes the load. Value is what a passage adds at the 99th percentile, in µs, were all alike: p99 through the relay, less the median without it, by passages.
func (l *exchanged) run(ctx context.Context) (m Measured, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	relay, behind, err := bothInet4(l.address, l.target)
	if err != nil {
		return m, err
	}
	var fds [3]int
	for i := range fds {
		if fds[i], err = newDatagramSocket(); err != nil {
			return m, err
		}
		defer unix.Close(fds[i])
	}
	target, through, direct := fds[0], fds[1], fds[2]
	if err := unix.Bind(target, behind); err != nil {
		return m, fmt.Errorf("listen on %s: %w", l.target, err)
	}
	if err := errors.Join(unix.Connect(through, relay), unix.Connect(direct, behind)); err != nil {
		return m, fmt.Errorf("connect to %s: %w", l.address, err)
	}
	var all, bare latencies
	var sent, lost int64
	out, room := bytes.Repeat([]byte{'x'}, l.size), make([]byte, maxRelayed)
	began := time.Now()
	for time.Since(began) < l.last {
		if sent%256 == 0 && ctx.Err() != nil {
			return m, context.Cause(ctx)
		}
		for _, c := range []struct {
			fd    int
			times *latencies
		}{{direct, &bare}, {through, &all}} {
			for paused := time.Now(); time.Since(paused) < exchangePause; {
			}
			sent++
			binary.BigEndian.PutUint64(out, uint64(sent))
			took, err := exchange(c.fd, target, out, room)
			switch {
			case errors.Is(err, errLost):
				lost++
			case err != nil:
				m.Failed = fmt.Sprintf("after %d: %v", sent, err)
				return m, nil
			default:
				c.times.add(took)
			}
		}
	}
	m.Count = sent/2 - lost
	m.Bytes = m.Count * int64(l.size)
	if float64(lost) > maxLost*float64(sent) {
		m.Failed = fmt.Sprintf("%d of %d datagrams lost", lost, sent)
		return m, nil
	}
	m.Mean, m.P50, m.P99 = all.mean(), all.quantile(0.5), all.quantile(0.99)
	m.Value = float64(m.P99-bare.quantile(0.5)) / float64(l.passages) / float64(time.Microsecond)
	return m, nil
}

// exchange sends a datagram, whose first eight bytes no other has, to what is behind, and back, and says how long it took.
func exchange(client, target int, out, room []byte) (time.Duration, error) {
	began := time.Now()
	if err := unix.Send(client, out, 0); err != nil {
		return 0, fmt.Errorf("send: %w", err)
	}
	await := func(fd int) (unix.Sockaddr, error) {
		for turn := 0; ; turn++ {
			n, from, err := unix.Recvfrom(fd, room, 0)
			switch {
			case err == nil && n == len(out) && bytes.Equal(room[:n], out):
				return from, nil
			case err == nil && (n != len(out) || !bytes.Equal(room[8:n], out[8:])):
				return nil, fmt.Errorf("what came, of %d bytes, was not sent", n)
			case err == nil: // an earlier one that was given up
			case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR):
				return nil, fmt.Errorf("receive: %w", err)
			case turn%64 == 0 && time.Since(began) > lostTime:
				return nil, errLost
			}
		}
	}
	from, err := await(target)
	if err != nil {
		return 0, err
	}
	if err := unix.Sendto(target, out, 0, from); err != nil {
		return 0, fmt.Errorf("send back: %w", err)
	}
	if _, err := await(client); err != nil {
		return 0, err
	}
	return time.Since(began), nil
}
