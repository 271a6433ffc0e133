package relay

import (
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
