package front

import (
	"net"
	"net/netip"
	"sync/atomic"
	"time"
)

// looksPerSecond is of how many connections a second it is looked how far the client is, of all doors together: two system calls each.
const looksPerSecond = 1000

// looks counts those of a second.
type looks struct{ second, taken atomic.Int64 }

// may says whether one more may be taken. Where a second turns, a few more may.
func (l *looks) may(now time.Time) bool {
	if s := now.Unix(); l.second.Swap(s) != s {
		l.taken.Store(0)
	}
	return l.taken.Add(1) <= looksPerSecond
}

// seeConn tells how far the client of a connection is that is about to be closed. What comes by a load balancer in front of this
// node shows only how far that is.
func (f *Front) seeConn(c net.Conn) {
	if f.believes(c) || !f.mayLook() {
		return
	}
	if rtt, ok := f.config.RoundTrip(c); ok {
		f.see(addressOf(c.RemoteAddr()), rtt)
	}
}

// mayLook says whether it is to be looked how far a client is.
func (f *Front) mayLook() bool { return f.config.Seen != nil && f.looks.may(time.Now()) }

// see tells how far a client is, to who is told.
func (f *Front) see(from netip.Addr, rtt time.Duration) {
	if rtt <= 0 || !from.IsValid() {
		return
	}
	f.counters.seen.Add(1)
	f.config.Seen(from, rtt)
}
