package secondary

import (
	"encoding/binary"
	"strings"
	"testing"
	"time"
)

// soaOf is the data of an SOA with numbers.
func soaOf(serial, refresh, retry, expire uint32) []byte {
	data := []byte("\x02ns\x00\x02me\x00")
	for _, n := range []uint32{serial, refresh, retry, expire, 60} {
		data = binary.BigEndian.AppendUint32(data, n)
	}
	return data
}

func TestTimersAreThoseOfTheSOAWithinBounds(t *testing.T) {
	for _, test := range []struct {
		refresh, retry, expire uint32
		want                   Timers
	}{
		{7200, 900, 1209600, Timers{2 * time.Hour, 15 * time.Minute, 14 * 24 * time.Hour}},
		{0, 0, 0, Timers{minRefresh, minRetry, minRefresh + 2*minRetry}},
		{1 << 31, 1 << 31, 1 << 31, Timers{maxRefresh, maxRetry, maxExpire}},
		{3600, 600, 60, Timers{time.Hour, 10 * time.Minute, 80 * time.Minute}}, // it would expire before it is refreshed
	} {
		if got := TimersOf(soaOf(1, test.refresh, test.retry, test.expire)); got != test.want {
			t.Errorf("%+v: %v", test, got)
		}
	}
}

func TestPrimariesAreAskedWhenItIsTimeTo(t *testing.T) {
	const refresh, retry, expire = 3600 * time.Second, 600 * time.Second, 86400 * time.Second
	begin := time.Unix(1_800_000_000, 0)
	soa := soaOf(7, 3600, 600, 86400)
	taken := func(c *Copy) { c.Take(soa, begin, 0) }
	at := func(d time.Duration) time.Time { return begin.Add(d) }
	for _, test := range []struct {
		name   string
		so     func(c *Copy)
		chosen time.Time // when one asks that is chosen to
		other  time.Time // and one that is not
	}{
		{"confirmed", taken, at(refresh), at(refresh + retry + standby)},
		{"confirmed again", func(c *Copy) { taken(c); c.Confirm(at(time.Minute), 0) }, at(refresh + time.Minute), at(refresh + retry + standby + time.Minute)},
		{"confirmed before that", func(c *Copy) { taken(c); c.Confirm(at(-time.Minute), 0) }, at(refresh), at(refresh + retry + standby)},
		{"by chance a tenth sooner", func(c *Copy) { c.Take(soa, begin, 0.5) }, at(refresh * 95 / 100), at(refresh*95/100 + retry + standby)},
		{"failed", func(c *Copy) { taken(c); c.Ask(at(refresh)); c.Fail(at(refresh+time.Second), "", 0) }, at(refresh + time.Second + retry), at(refresh + time.Second + 2*retry + standby)},
		{"told", func(c *Copy) { taken(c); c.Notify(at(time.Minute)) }, at(time.Minute), at(refresh + retry + standby)},
		{"told soon after it was asked", func(c *Copy) { taken(c); c.Ask(begin); c.Notify(at(time.Second)) }, at(notifyPause), at(refresh + retry + standby)},
		{"told twice", func(c *Copy) { taken(c); c.Notify(at(time.Second)); c.Notify(at(time.Minute)) }, at(time.Second), at(refresh + retry + standby)},
		{"told and asked", func(c *Copy) { taken(c); c.Notify(at(time.Second)); c.Ask(at(time.Minute)) }, at(refresh), at(refresh + retry + standby)},
		{"told when it was due anyway", func(c *Copy) { taken(c); c.Notify(at(2 * refresh)) }, at(refresh), at(refresh + retry + standby)},
		{"from disk", func(c *Copy) { c.Restore(soa, at(-refresh), begin, 0.5) }, at(startTime / 2), at(startTime/2 + retry + standby)},
		{"nothing yet", func(c *Copy) { c.Begin(begin) }, begin, at(standby)},
		{"nothing yet, and failed", func(c *Copy) { c.Fail(begin, "", 0) }, at(firstRetry), at(firstRetry + standby)},
		{"nothing yet, and failed thrice", func(c *Copy) { c.Fail(begin, "", 0); c.Fail(begin, "", 0); c.Fail(begin, "", 0) }, at(4 * firstRetry), at(4*firstRetry + standby)},
		{"nothing yet, and failed often", func(c *Copy) {
			for range 100 {
				c.Fail(begin, "", 0)
			}
		}, at(lastRetry), at(lastRetry + standby)},
		{"expired", func(c *Copy) { taken(c); c.Fail(at(expire), "", 0); c.Expire() }, at(expire + firstRetry), at(expire + firstRetry + standby)},
	} {
		var c Copy
		test.so(&c)
		if got := c.Next(true); !got.Equal(test.chosen) {
			t.Errorf("%s: it asks after %v, want %v", test.name, got.Sub(begin), test.chosen.Sub(begin))
		}
		if got := c.Next(false); !got.Equal(test.other) {
			t.Errorf("%s: another asks after %v, want %v", test.name, got.Sub(begin), test.other.Sub(begin))
		}
	}
}

func TestACopyStandsUntilItExpires(t *testing.T) {
	begin := time.Unix(1_800_000_000, 0)
	var c Copy
	c.Take(soaOf(7, 3600, 600, 86400), begin, 0)
	c.Fail(begin.Add(time.Hour), "silent", 0)
	if got := c.Expires().Sub(begin); got != 24*time.Hour || c.Problem != "silent" {
		t.Errorf("it expires after %v, %q", got, c.Problem)
	}
	c.Confirm(begin.Add(2*time.Hour), 0)
	if got := c.Expires().Sub(begin); got != 26*time.Hour || c.Problem != "" {
		t.Errorf("confirmed, it expires after %v, %q", got, c.Problem)
	}
	for serial, want := range map[uint32]bool{6: false, 7: false, 8: true, 7 + 1<<31: false, 7 + 1<<30: true} {
		if c.Wants(serial) != want {
			t.Errorf("wants %d: %v", serial, !want)
		}
	}
	if c.Expire(); c.Has || !c.Wants(6) {
		t.Errorf("expired, it is %+v", c)
	}
}

func TestSayingsAreReadAsTheyWereSaid(t *testing.T) {
	for _, s := range []Saying{
		{}, {Has: true, Serial: 1<<32 - 1, Confirmed: time.Unix(1_800_000_000, 0), Notified: 7}, {Problem: "192.0.2.1:53: the answer is REFUSED"},
	} {
		if got, err := DecodeSaying(s.Encode()); err != nil || got != s {
			t.Errorf("%+v became %+v, %v", s, got, err)
		}
	}
	long := Saying{Problem: strings.Repeat("é\n", 200)}
	if got, err := DecodeSaying(long.Encode()); err != nil || got.Problem != strings.Repeat("é", 67) {
		t.Errorf("%q, %v", got.Problem, err)
	}
	for _, b := range [][]byte{nil, make([]byte, saidSize-1), make([]byte, saidSize+maxProblem+1), append([]byte{2}, make([]byte, saidSize)...)} {
		if got, err := DecodeSaying(b); err == nil {
			t.Errorf("% x: %+v", b, got)
		}
	}
}
