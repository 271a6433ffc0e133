package backbone

import (
	"context"
	"io"
	"time"

	"github.com/quic-go/quic-go"
)

// A carrier's congestion window is 32 packets at first and doubles each round trip in which it is filled: what follows a flow of
// 1 MB finds one for a megabyte, since it is kept, and what follows a small one does not. So each carrier of a link to a far peer is
// warmed once: each end sends the other warmBytes, of nothing, where its window is smaller. It is done as soon as both ends may send parity, or else
// a loss would leave the window smaller than it was, and behind whatever else the carrier has to send, which so finds it wider with each round trip.
const (
	warmService = "warm"

	// warmRTT is the round trip from which on it is worth it.
	warmRTT = 20 * time.Millisecond

	// warmAge is how old a carrier has to be to be warmed whose other end knows of no parity.
	warmAge = 2 * time.Second

	// warmRate is how much the path may carry else, bits a second: where more is sent, that widens the window.
	warmRate = 1e6

	// warmBytes is what each end sends at most. It makes for a window of about as much.
	warmBytes = 400 << 10

	// warmSteps is in how many steps three quarters of the window are sent in each round trip. The rest is for what is asked meanwhile, or else that would
	// wait for acknowledgements, up to two thirds of a round trip; and where more than half of the window is under way QUIC widens it.
	warmSteps = 16

	// warmTime bounds how long it takes, once there is a turn, and the wait for that.
	warmTime = 10 * time.Second

	// warmAtOnce is how many carriers a node sends that much by at one time, of either end's dialling: a node that starts has all its links come up at once.
	warmAtOnce = 8

	// warmLinks is how many links a node may have that are warmed before anybody has used them. One with more warms those on which a flow was dialled.
	warmLinks = 64

	// warmUrgency is the priority of its streams: the last.
	warmUrgency = 7
)

// warm has both ends of a carrier send what widens their windows. A peer that knows nothing of it refuses.
func (l *link) warm(c *carrier) {
	ctx, cancel := context.WithTimeout(l.ctx, warmTime)
	defer cancel()
	asked, err := l.ask(ctx, c.conn, Header{Service: warmService})
	if err != nil {
		return
	}
	l.b.widen(asked.(*streamConn), c.conn)
}

// widen sends what the window lacks, and reads what the other end's lacks.
func (b *Backbone) widen(c *streamConn, conn *quic.Conn) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * warmTime))
	c.Stream.SetPriority(warmUrgency, true)
	sent := make(chan struct{})
	if !b.start(func() {
		defer close(sent)
		late := time.NewTimer(warmTime)
		defer late.Stop()
		select {
		case b.warming <- struct{}{}:
			defer func() { <-b.warming }()
		case <-c.Gone().Done():
			return
		case <-late.C: // it goes without
			c.CloseWrite()
			return
		}
		chunk := make([]byte, 32<<10)
		pause := time.NewTimer(0)
		defer pause.Stop()
		for sent := 0; sent < warmBytes; {
			stats := conn.ConnectionStats()
			if stats.CongestionWindow >= warmBytes {
				break
			}
			n, err := c.Write(chunk[:min(stats.CongestionWindow*3/4/warmSteps, uint64(len(chunk)))])
			sent += n
			b.count.warmBytes.Add(uint64(n))
			if err != nil {
				return
			}
			pause.Reset(stats.SmoothedRTT / warmSteps)
			select {
			case <-pause.C:
			case <-c.Gone().Done():
				return
			}
		}
		c.CloseWrite()
	}) {
		return
	}
	io.CopyN(io.Discard, c, warmBytes+1)
	<-sent // the other end may have had less to send
}
