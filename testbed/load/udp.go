package load

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// UDPConfig is a load of numbered datagrams.
type UDPConfig struct {
	Dial    func(ctx context.Context, network, address string) (net.Conn, error)
	Address string
	Flows   int     // sockets, 1…MaxFlows
	Rate    float64 // packets a second on each, above 0
	Bytes   int     // of a packet, 16…65,000
	Echo    bool    // the other end sends all back
	For     time.Duration
	Wait    time.Duration // a packet that is not back after this is lost; 0: 1 s
}

// Bounds of packets.
const (
	minPacket = 16 // the socket's and the packet's number
	maxPacket = 65_000
	// maxWindow is how many packets of a socket may be awaited.
	maxWindow = 1 << 20
)

func (c *UDPConfig) complete() error {
	if c.Wait == 0 {
		c.Wait = time.Second
	}
	switch {
	case c.Dial == nil || c.Address == "":
		return errors.New("load: no dial or no address")
	case c.Flows < 1 || c.Flows > MaxFlows:
		return fmt.Errorf("load: flows must be 1–%d, not %d", MaxFlows, c.Flows)
	case c.Bytes < minPacket || c.Bytes > maxPacket:
		return fmt.Errorf("load: bytes must be %d–%d, not %d", minPacket, maxPacket, c.Bytes)
	case !(c.Rate > 0 && c.Rate <= MaxRate):
		return fmt.Errorf("load: rate must be above 0, at most %d a second, not %v", MaxRate, c.Rate)
	case c.For <= 0 || c.For > MaxFor || c.Wait < 0:
		return fmt.Errorf("load: it must last up to %v, not %v", MaxFor, c.For)
	case c.Rate*c.Wait.Seconds() > maxWindow:
		return fmt.Errorf("load: %v a second for %v are more than %d packets to await", c.Rate, c.Wait, maxWindow)
	}
	return nil
}

// UDPResult is what became of a load of datagrams.
type UDPResult struct {
	Took      time.Duration
	Failed    map[string]int `json:",omitempty"` // sockets that could not be made, and writes that failed (a port that is closed)
	Sent      int
	Back      int           // each once
	Lost      int           // not back within Wait
	Late      int           // of those lost: came after Wait
	Twice     int           // came again
	Reordered int           // came after one that was sent later
	Wrong     int           // not what was sent
	Silence   time.Duration // the longest time in which nothing came back on any socket; only with Echo
	Behind    time.Duration // the latest that a packet was sent after it was due: the generator's own fault
	Latency   Histogram
}

// String is the result in one line.
func (r *UDPResult) String() string {
	return fmt.Sprintf("sent=%d back=%d lost=%d late=%d twice=%d reordered=%d wrong=%d failed=%v silence=%v behind=%v latency: %s",
		r.Sent, r.Back, r.Lost, r.Late, r.Twice, r.Reordered, r.Wrong, r.Failed, r.Silence, r.Behind, &r.Latency)
}

func (r *UDPResult) add(o *UDPResult) {
	r.Sent += o.Sent
	r.Back += o.Back
	r.Lost += o.Lost
	r.Late += o.Late
	r.Twice += o.Twice
	r.Reordered += o.Reordered
	r.Wrong += o.Wrong
	r.Behind = max(r.Behind, o.Behind)
	r.Latency.Merge(&o.Latency)
	for k, n := range o.Failed {
		r.Failed = count(r.Failed, k, n)
	}
}

// UDP sends datagrams for a time, or until the context ends, waits for the last to come back, and says what became of
// them. The error is of the config alone.
func UDP(ctx context.Context, c UDPConfig) (UDPResult, error) {
	if err := c.complete(); err != nil {
		return UDPResult{}, err
	}
	start := time.Now()
	l := &udpLoad{UDPConfig: c}
	l.quiet.last = start
	ctx, cancel := context.WithTimeout(ctx, c.For)
	defer cancel()
	var wg sync.WaitGroup
	for i := range c.Flows {
		wg.Go(func() { l.socket(ctx, i) })
	}
	<-ctx.Done()
	took := time.Since(start)
	l.quiet.note(time.Now())
	wg.Wait()
	var sum UDPResult
	for i := range l.tallies {
		sum.add(&l.tallies[i].tally)
	}
	sum.Took = took
	if c.Echo {
		sum.Lost = sum.Sent - sum.Back
		sum.Silence = l.quiet.longest
	}
	return sum, nil
}

type udpLoad struct {
	UDPConfig
	tallies sharded[UDPResult]
	quiet   quiet
}

// awaited is when the packets of one socket were sent: the last ones, in a ring by their number.
type awaited struct {
	sync.Mutex
	ring    []sending
	next    int // number of the next packet
	highest int // number that came back; -1: none
}

type sending struct {
	n    int
	at   time.Time
	back bool
}

func (l *udpLoad) socket(ctx context.Context, i int) {
	conn, err := l.Dial(ctx, "udp", l.Address)
	if err != nil {
		if ctx.Err() == nil {
			l.tallies.on(i, func(r *UDPResult) { r.Failed = count(r.Failed, plain(err), 1) })
		}
		return
	}
	defer conn.Close()
	size := 1
	for float64(size) < 2*l.Rate*l.Wait.Seconds()+1 {
		size *= 2
	}
	a := &awaited{ring: make([]sending, size), highest: -1}
	var wg sync.WaitGroup
	if l.Echo {
		wg.Go(func() { l.receive(conn, i, a) })
	}
	l.send(ctx, conn, i, a)
	conn.SetReadDeadline(time.Now().Add(l.Wait))
	wg.Wait()
}

func (l *udpLoad) send(ctx context.Context, conn net.Conn, i int, a *awaited) {
	pace := newPace(time.Now(), l.Rate, i, l.Flows)
	b := make([]byte, l.Bytes)
	for n := 0; ; n++ {
		if !sleep(ctx, time.Until(pace.due(n))) {
			return
		}
		packet(b, i, n)
		now := time.Now()
		a.Lock()
		a.ring[n%len(a.ring)] = sending{n: n, at: now}
		a.next = n + 1
		a.Unlock()
		_, err := conn.Write(b)
		l.tallies.on(i, func(r *UDPResult) {
			r.Sent++
			r.Behind = max(r.Behind, now.Sub(pace.due(n)))
			if err != nil {
				r.Failed = count(r.Failed, plain(err), 1)
			}
		})
	}
}

// packet writes packet number n of a socket.
func packet(b []byte, i, n int) {
	fill(b, i, n)
	binary.BigEndian.PutUint64(b, uint64(i))
	binary.BigEndian.PutUint64(b[8:], uint64(n))
}

// receive takes what comes back until the deadline that the end of sending sets.
func (l *udpLoad) receive(conn net.Conn, i int, a *awaited) {
	b, want := make([]byte, l.Bytes+1), make([]byte, l.Bytes)
	for {
		n, err := conn.Read(b)
		if err != nil {
			if plain(err) == "refused" {
				continue // said of a packet before, which is lost
			}
			return
		}
		now := time.Now()
		what, took := a.came(b[:n], want, i, now, l.Wait)
		if what == back || what == overtaken {
			l.quiet.note(now)
		}
		l.tallies.on(i, func(r *UDPResult) { r.came(what, took) })
	}
}

// arrival is what a packet that came is.
type arrival int

const (
	back arrival = iota
	overtaken
	late
	twice
	wrong
)

func (r *UDPResult) came(what arrival, took time.Duration) {
	switch what {
	case back, overtaken:
		r.Back++
		r.Latency.Add(took)
		if what == overtaken {
			r.Reordered++
		}
	case late:
		r.Late++
	case twice:
		r.Twice++
	case wrong:
		r.Wrong++
	}
}

// came judges a packet that came on socket i, and says how long it took.
func (a *awaited) came(b, want []byte, i int, now time.Time, wait time.Duration) (arrival, time.Duration) {
	if len(b) != len(want) {
		return wrong, 0
	}
	n := int(binary.BigEndian.Uint64(b[8:]))
	if packet(want, i, n); !bytes.Equal(b, want) {
		return wrong, 0
	}
	a.Lock()
	defer a.Unlock()
	if n < 0 || n >= a.next {
		return wrong, 0
	}
	s := &a.ring[n%len(a.ring)]
	took := now.Sub(s.at)
	switch {
	case s.n != n:
		return late, 0 // two rings ago
	case s.back:
		return twice, 0
	}
	s.back = true
	if took > wait {
		return late, 0
	}
	if n < a.highest {
		return overtaken, took
	}
	a.highest = n
	return back, took
}
