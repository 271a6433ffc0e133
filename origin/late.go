package origin

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// lateFor is how long a target that did not take a flow at once is left to those that may wait.
	lateFor = time.Minute
	// maxLate bounds the targets that are known to be late; of more, each flow finds it out.
	maxLate = 1024
)

// late are targets that were asked by a loop and were late: far away, or overloaded. Each flow to them would be asked twice, and wait in vain before.
type late struct {
	some  atomic.Bool
	mu    sync.Mutex
	until map[netip.AddrPort]time.Time
}

// is says whether one was late not long ago.
func (l *late) is(at netip.AddrPort) bool {
	if !l.some.Load() {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	until, was := l.until[at]
	if was && time.Now().After(until) {
		delete(l.until, at)
		was = false
	}
	l.some.Store(len(l.until) > 0)
	return was
}

// was takes note that one was late.
func (l *late) was(at netip.AddrPort) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if len(l.until) >= maxLate {
		for one, until := range l.until {
			if now.After(until) {
				delete(l.until, one)
			}
		}
	}
	if l.until == nil {
		l.until = map[netip.AddrPort]time.Time{}
	}
	if len(l.until) < maxLate {
		l.until[at] = now.Add(lateFor)
	}
	l.some.Store(true)
}
