// Package secondary keeps copies of zones that are other name servers' (RFC 1034 §4.3.5): when a primary is asked, and how long a copy
// stands (Copy, pure); what a primary sends, read strictly and with bounds (Stream, pure); how it is asked (Refresh, Take); how a copy
// is kept on disk. What is taken is a zone of dnsgeo/zone, which others serve.
//
// A primary is held for a stranger: whatever it sends, a copy is either what one of its versions is, whole, or stays as it was. One
// that no primary confirms ends when its SOA says so.
package secondary

import (
	"encoding/binary"
	"time"

	"github.com/perigee-net/perigee/dnsgeo/zone"
)

const (
	// minRefresh and maxRefresh bound how often a primary is asked whether a zone has changed, whatever its SOA says, and minRetry and
	// maxRetry how soon again after a failure. NOTIFY comes before all of them.
	minRefresh, maxRefresh = 30 * time.Second, 24 * time.Hour
	minRetry, maxRetry     = 15 * time.Second, 2 * time.Hour

	// maxExpire bounds for how long a copy stands that nobody confirms. It is never shorter than a refresh and two retries.
	maxExpire = 28 * 24 * time.Hour

	// firstRetry is the pause after the first failure to take a zone of which there is nothing yet, lastRetry the longest: each is twice
	// the one before.
	firstRetry, lastRetry = 5 * time.Second, 10 * time.Minute

	// notifyPause is how long after primaries were asked a NOTIFY has them asked again: strangers may send many.
	notifyPause = 5 * time.Second

	// standby is how much later than others a node asks that is not chosen to: time for those that are, and for their word.
	standby = 10 * time.Second

	// startTime is within what time after a start a copy from disk is compared with its primary: what was told meanwhile was missed.
	startTime = 5 * time.Second
)

// Timers are the numbers of an SOA by which a copy is kept, within bounds.
type Timers struct{ Refresh, Retry, Expire time.Duration }

// TimersOf are those of the data of an SOA.
func TimersOf(soa []byte) Timers {
	number := func(i int) time.Duration {
		return time.Duration(binary.BigEndian.Uint32(soa[len(soa)-20+4*i:])) * time.Second
	}
	t := Timers{
		Refresh: min(max(number(1), minRefresh), maxRefresh),
		Retry:   min(max(number(2), minRetry), maxRetry),
	}
	t.Expire = min(max(number(3), t.Refresh+2*t.Retry), maxExpire)
	return t
}

// Copy is what there is to know of a copy in order to keep it. Its methods take the time, and chance where it is drawn (0 to 1, 1 left
// out), from their caller.
type Copy struct {
	Has    bool // there is one
	Serial uint32
	Timers Timers
	// Confirmed is when a primary was last known to have nothing newer.
	Confirmed time.Time
	// Problem is why it was not when it was asked last; "" if it was.
	Problem string

	tried    time.Time // when primaries were asked last, or it began
	failures int       // since it was confirmed
	notified time.Time // zero: nobody said since that it has changed
	restored time.Time // from disk, and not asked since
	chance   float64   // of the next pause
}

// Begin is when it began to be kept.
func (c *Copy) Begin(now time.Time) { c.tried = now }

// Take takes note of a version, of its SOA, that a primary had at a time.
func (c *Copy) Take(soa []byte, at time.Time, chance float64) {
	c.Has, c.Serial, c.Timers = true, binary.BigEndian.Uint32(soa[len(soa)-20:]), TimersOf(soa)
	c.Confirmed, c.restored = time.Time{}, time.Time{}
	c.Confirm(at, chance)
}

// Restore is Take of what a disk had.
func (c *Copy) Restore(soa []byte, confirmed, now time.Time, chance float64) {
	c.Take(soa, confirmed, chance)
	c.restored = now
}

// Confirm takes note that a primary has nothing newer.
func (c *Copy) Confirm(at time.Time, chance float64) {
	if !at.After(c.Confirmed) {
		return
	}
	c.Confirmed = at
	c.failures, c.chance, c.Problem = 0, chance, ""
}

// Ask takes note that primaries are asked from now on: what was told before is looked after by that.
func (c *Copy) Ask(now time.Time) { c.tried, c.notified, c.restored = now, time.Time{}, time.Time{} }

// Fail takes note that no primary gave an answer of use.
func (c *Copy) Fail(now time.Time, why string, chance float64) {
	c.tried, c.Problem, c.chance = now, why, chance
	c.failures++
}

// Notify takes note that a primary says that the zone has changed.
func (c *Copy) Notify(now time.Time) {
	if c.notified.IsZero() {
		c.notified = now
	}
}

// Told says whether primaries are to be asked as the zone is said to have changed.
func (c *Copy) Told() bool { return !c.notified.IsZero() }

// Expire forgets the copy.
func (c *Copy) Expire() {
	*c = Copy{Problem: c.Problem, tried: c.tried, failures: c.failures, notified: c.notified, chance: c.chance}
}

// Expires is when the copy has no value any more.
func (c *Copy) Expires() time.Time { return c.Confirmed.Add(c.Timers.Expire) }

// Next is when primaries are to be asked. A pause is up to a tenth shorter by chance, so that those who began together do not go on so.
// Who is not chosen to ask hears it from those that are, and asks where they say nothing for long.
func (c *Copy) Next(chosen bool) time.Time {
	short := func(d time.Duration) time.Duration { return d - time.Duration(c.chance*float64(d)/10) }
	var at time.Time
	switch {
	case !c.Has && c.failures == 0:
		at = c.tried // at once
	case !c.Has:
		at = c.tried.Add(short(min(firstRetry<<min(c.failures-1, 10), lastRetry)))
	case !c.restored.IsZero():
		at = c.restored.Add(time.Duration(c.chance * float64(startTime)))
	case c.failures > 0:
		at = c.tried.Add(short(c.Timers.Retry))
	default:
		at = c.Confirmed.Add(short(c.Timers.Refresh))
	}
	if !chosen {
		at = at.Add(standby)
		if c.Has {
			at = at.Add(c.Timers.Retry)
		}
	}
	if told := c.notified; chosen && !told.IsZero() {
		if pause := c.tried.Add(notifyPause); pause.After(told) {
			told = pause
		}
		if told.Before(at) {
			at = told
		}
	}
	return at
}

// Wants says whether another node's version is to be taken in the place of this one.
func (c *Copy) Wants(serial uint32) bool { return !c.Has || zone.Newer(serial, c.Serial) }
