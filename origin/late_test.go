package origin

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

func TestWhoWasLateIsLeftAloneForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l late
		at := func(i int) netip.AddrPort {
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 80)
		}
		if l.is(at(0)) {
			t.Error("nobody was late")
		}
		l.was(at(0))
		if !l.is(at(0)) || l.is(at(1)) {
			t.Error("it was another")
		}
		time.Sleep(lateFor + 1)
		if l.is(at(0)) || l.some.Load() {
			t.Error("it is late for ever")
		}
		for i := range maxLate {
			l.was(at(i))
		}
		l.was(at(maxLate))
		if l.is(at(maxLate)) || !l.is(at(0)) || len(l.until) != maxLate {
			t.Errorf("%d are known", len(l.until))
		}
		time.Sleep(lateFor + 1)
		l.was(at(maxLate))
		if !l.is(at(maxLate)) || len(l.until) != 1 {
			t.Errorf("%d are known of those that were late long ago", len(l.until))
		}
	})
}
