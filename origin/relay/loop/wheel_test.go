package loop

import (
	"math/rand/v2"
	"testing"
	"time"
)

func TestAWheelLooksAtEachInItsTick(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var w wheel
	due := map[*Flow]int64{}
	add := func(f *Flow) {
		n := 1 + random.Int64N(300)
		w.add(&f.spoke, time.Duration(n)*tick-tick/2)
		due[f] = w.ticks + n
	}
	var all []*Flow
	for range 500 {
		f := &Flow{}
		f.spoke.flow = f
		all = append(all, f)
		add(f)
	}
	for range 1000 {
		w.turn(func(f *Flow) {
			if due[f] != w.ticks {
				t.Fatalf("looked at in tick %d, due in %d", w.ticks, due[f])
			}
			delete(due, f)
			switch other := all[random.IntN(len(all))]; random.IntN(3) {
			case 0:
				w.remove(&other.spoke)
				delete(due, other)
			case 1:
				add(f)
			case 2:
				if _, is := due[other]; !is && other != f {
					add(other)
				}
				add(f)
			}
		})
		for f, tick := range due {
			if tick <= w.ticks {
				t.Fatalf("%p was due in tick %d, and it is %d", f, tick, w.ticks)
			}
		}
		if w.count != len(due) {
			t.Fatalf("%d are counted of %d", w.count, len(due))
		}
	}
	for f := range due {
		w.remove(&f.spoke)
		w.remove(&f.spoke)
	}
	if w.count != 0 {
		t.Errorf("%d are left", w.count)
	}
}

// A flow ends at most a quarter of its idle time late, a tick aside, however short that is.
func TestASilentFlowEndsInTime(t *testing.T) {
	for _, idle := range []time.Duration{10 * time.Second, 11 * time.Second, 12500 * time.Millisecond, time.Minute, 340 * time.Second, 6000 * time.Second} {
		var w wheel
		s := &spoke{flow: &Flow{}}
		w.add(s, idle/looks)
		last := time.Duration(-1) // when it was looked at first after it moved, which is just after the one before
		over := false
		for !over {
			w.turn(func(*Flow) {
				now := time.Duration(w.ticks) * tick
				switch {
				case last < 0:
					last = now
				case now-last >= idle:
					over = true
					return
				}
				w.add(s, idle/looks)
			})
		}
		late := time.Duration(w.ticks)*tick - idle
		if most := idle/4 + 2*tick; late < 0 || late > most {
			t.Errorf("one of %v ends %v late, want %v at most", idle, late, most)
		}
	}
}
