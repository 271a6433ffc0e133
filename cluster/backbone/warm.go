package backbone

import (
	"context"
	"io"
	"time"

	"github.com/quic-go/quic-go"
)

// A carrier's congestion window is 32 packets at first and doubles each round trip in which it is filled: what follows a flow of
// 1 MB finds one for a megabyte, since it is kept, and what follows a small one does not. So each carrier of a link to a
// far peer on which a flow was dialled, ever, is warmed once: each end sends the other warmBytes, of nothing, where its window is smaller.
const (
	warmService = "warm"

	// warmRTT is the round trip from which on it is worth it.
	warmRTT = 20 * time.Millisecond

	// What is dialled meanwhile may have to wait for some ms, so it is done when the carrier is this old, and the path this quiet, bits a
	// second: where more is sent, that widens the window.
	warmAge  = 2 * time.Second
	warmRate = 1e6

	// warmBytes is what each end sends at most. It makes for a window of about as much.
	warmBytes = 400 << 10

	// warmTime bounds how long it takes.
	warmTime = 10 * time.Second
)

// warm has both ends of a carrier send what widens their windows. A peer that knows nothing of it refuses.
func (l *link) warm(c *carrier) {
	ctx, cancel := context.WithTimeout(l.ctx, warmTime)
	defer cancel()
	asked, err := l.ask(ctx, c.conn, Header{Service: warmService})
	if err != nil {
		return
	}
	l.b.widen(asked.(duplexConn), c.conn)
}

// widen sends what the window lacks, and reads what the other end's lacks.
func (b *Backbone) widen(c duplexConn, conn *quic.Conn) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(warmTime))
	sent := make(chan struct{})
	if !b.start(func() {
		defer close(sent)
		chunk := make([]byte, 16<<10)
		for sent := 0; sent < warmBytes && conn.ConnectionStats().CongestionWindow < warmBytes; sent += len(chunk) {
			if _, err := c.Write(chunk); err != nil {
				return
			}
			b.count.warmBytes.Add(uint64(len(chunk)))
		}
		c.CloseWrite()
	}) {
		return
	}
	io.CopyN(io.Discard, c, warmBytes+1)
	<-sent // the other end may have had less to send
}
