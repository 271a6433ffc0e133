package lane

import (
	"slices"
	"time"
)

// Fence says whether a node has missed orders that others have, and since when. Until it has caught up, it does nothing that such an
// order may have forbidden: it serves nothing stored before without asking. The zero Fence is down. It is pure: whoever has it tells
// it the time, and orders who speaks to it.
type Fence struct {
	heard, have uint64
	missing     []missing // the oldest first
}

// missing is an epoch that others have and this node has not.
type missing struct {
	epoch uint64
	since time.Time // when it was heard of
}

// maxMissing bounds of how many epochs it is known when they were heard of. One more counts as heard of when the newest of them was.
const maxMissing = 64

// Heard takes note that the newest orders that anybody has are of that epoch. What was said of newer ones counts no more: what one
// said that is gone, or was wrong, holds nobody up for ever.
func (f *Fence) Heard(epoch uint64, now time.Time) {
	f.heard = epoch
	f.look(now)
}

// Have takes note that this node has the orders up to an epoch.
func (f *Fence) Have(epoch uint64, now time.Time) {
	f.have = epoch
	f.missing = slices.DeleteFunc(f.missing, func(m missing) bool { return m.epoch <= epoch })
	f.look(now)
}

func (f *Fence) look(now time.Time) {
	for n := len(f.missing); n > 0 && f.missing[n-1].epoch > f.heard; n-- { // somebody was wrong, or is gone
		now, f.missing = f.missing[n-1].since, f.missing[:n-1]
	}
	switch n := len(f.missing); {
	case f.heard <= f.have || n > 0 && f.heard == f.missing[n-1].epoch:
	case n == maxMissing:
		f.missing[n-1].epoch = f.heard
	default:
		f.missing = append(f.missing, missing{f.heard, now})
	}
}

// Fenced says whether this node is behind.
func (f *Fence) Fenced() bool { return len(f.missing) > 0 }

// Since is when the oldest of what is missing was heard of; zero: nothing is missing.
func (f *Fence) Since() time.Time {
	if len(f.missing) == 0 {
		return time.Time{}
	}
	return f.missing[0].since
}

// Missed is the newest epoch that is missing of those that were heard of by a time, 0 if there is none, and when the next one was heard of;
// zero: there is no other.
func (f *Fence) Missed(by time.Time) (epoch uint64, next time.Time) {
	for _, m := range f.missing {
		if m.since.After(by) {
			return epoch, m.since
		}
		epoch = m.epoch
	}
	return epoch, time.Time{}
}
