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
