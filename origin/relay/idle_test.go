package relay

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestWhatIsIdleEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var all Idlers
		begun := time.Now()
		ends := map[string]time.Duration{}
		add := func(name string, idle time.Duration) *Idler {
			i := new(Idler)
			all.Add(i, idle, func() { ends[name] = time.Since(begun) })
			return i
		}
		add("short", 10*time.Second)
		add("long", 6000*time.Second)
		all.Remove(add("removed", 10*time.Second))
		busy := add("busy", 30*time.Second)
		time.Sleep(500 * time.Millisecond)
		add("later", 10*time.Second)
		for range 100 {
			time.Sleep(5 * time.Second)
			busy.Touch()
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		for name, want := range map[string]time.Duration{
			"short": 10 * time.Second, "long": 6000 * time.Second, "later": 10500 * time.Millisecond, "busy": 530*time.Second + 500*time.Millisecond,
		} {
			if got, ended := ends[name]; !ended || got < want || got > want+2*idleTick {
				t.Errorf("%s ended after %v, want %v", name, got, want)
			}
		}
		if len(ends) != 4 || all.count != 0 {
			t.Errorf("ended %v, %d are left", ends, all.count)
		}
		all.Remove(busy) // once more
		// When there are none nobody looks, and it goes on with the next.
		again := add("again", time.Second)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if ends["again"] == 0 {
			t.Error("the next one does not end")
		}
		all.Remove(again)
	})
}

func TestWhoEndsWaitsForWhatMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var all Idlers
		settles := func(most time.Duration) time.Duration {
			ctx, cancel := context.WithTimeout(t.Context(), most)
			defer cancel()
			begun := time.Now()
			all.Settle(ctx, 5*time.Second)
			return time.Since(begun)
		}
		if took := settles(time.Hour); took != 0 {
			t.Errorf("of none it takes %v", took)
		}
		quiet, busy := new(Idler), new(Idler)
		all.Add(quiet, time.Minute, func() {})
		if took := settles(time.Hour); took != 5*time.Second {
			t.Errorf("of one that has just moved it takes %v", took)
		}
		if took := settles(time.Hour); took != 0 {
			t.Errorf("of one that is silent it takes %v", took)
		}
		all.Add(busy, time.Minute, func() {})
		moves := time.AfterFunc(3*time.Second, busy.Touch)
		defer moves.Stop()
		if took := settles(time.Hour); took != 8*time.Second {
			t.Errorf("of one that moves once more it takes %v", took)
		}
		busy.Touch()
		if took := settles(2 * time.Second); took != 2*time.Second {
			t.Errorf("it takes %v, though there are 2s", took)
		}
		busy.Touch()
		time.AfterFunc(1500*time.Millisecond, func() { all.Remove(busy) })
		if took := settles(time.Hour); took < 1500*time.Millisecond || took > 3*time.Second {
			t.Errorf("of one that is removed it takes %v", took)
		}
		all.Remove(quiet)
	})
}
