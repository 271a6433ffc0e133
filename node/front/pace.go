package front

import (
	"net"
	"strings"
	"time"
)

// A system whose TCP sends by a model of the path (BBR) spaces out what it sends by timers of the kernel, where it has no queue that does. On a path as short
// as those within a data centre that takes three times as much as to send, and gains nothing: what such a path loses is sent again within a millisecond.
// So connections begin without, and have the system's way once their path is known to be longer. Their handshake has shown how long.

const (
	// shortPath is how long the round trip of a path is, less than which nothing is spaced out.
	shortPath = time.Millisecond
	// unpacedControl is the congestion control of connections over short paths: every Linux has it, and allows it to everybody.
	unpacedControl = "reno"
	// pacedControl is how the names of those begin that space out.
	pacedControl = "bbr"
)

// unpace has the connections that a socket accepts begin without what spaces out, and says what the system's way is that those over longer paths are to have;
// empty: that is as good for all.
func unpace(l net.Listener, paced string) (system string) {
	if system = controlOf(l); !strings.HasPrefix(system, paced) || !setControl(l, unpacedControl) {
		return ""
	}
	return system
}

// pace gives a connection the system's way if its path is not short.
func (d *door) pace(c net.Conn) {
	if d.paced == "" {
		return
	}
	if rtt, ok := d.front.config.RoundTrip(c); ok && rtt < shortPath {
		d.front.counters.unpaced.Add(1)
		return
	}
	setControl(c, d.paced)
}
