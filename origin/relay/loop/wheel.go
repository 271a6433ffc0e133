package loop

import "time"

const (
	// tick is how often silent flows are looked at whose time it is: a fifth of how often a flow is that may be silent for 10 s, the least that listeners of accelerators have.
	tick = 250 * time.Millisecond
	// slots is how many ticks ahead a wheel knows whom to look at; who has longer is looked at in between.
	slots = 64
)

// wheel is when flows are to be looked at, without a timer for each: those of one tick stand in one ring. It is the loop's alone.
type wheel struct {
	heads [slots]spoke
	ticks int64 // looked at so far
	count int
}

// spoke is a flow's place in a wheel; the zero one is in none.
type spoke struct {
	prev, next *spoke
	flow       *Flow
	due        int64 // tick
}

// add has a flow be looked at in a time.
func (w *wheel) add(s *spoke, in time.Duration) {
	s.due = w.ticks + max(int64((in+tick-1)/tick), 1)
	w.count++
	w.place(s)
}

func (w *wheel) place(s *spoke) {
	head := &w.heads[min(s.due, w.ticks+slots-1)%slots]
	if head.next == nil {
		head.prev, head.next = head, head
	}
	s.prev, s.next = head.prev, head
	s.prev.next, s.next.prev = s, s
}

// remove has a flow not be looked at. It may be called at any time.
func (w *wheel) remove(s *spoke) {
	if s.next != nil {
		w.count--
		s.unlink()
	}
}

func (s *spoke) unlink() {
	s.prev.next, s.next.prev = s.next, s.prev
	s.prev, s.next = nil, nil
}

// turn takes out those whose tick it is, and has each be looked at.
func (w *wheel) turn(look func(*Flow)) {
	w.ticks++
	head := &w.heads[w.ticks%slots]
	if head.next == nil {
		return
	}
	var due spoke // theirs: what is looked at may be added or removed meanwhile
	due.prev, due.next = &due, &due
	for head.next != head {
		s := head.next
		s.unlink()
		if s.due > w.ticks {
			w.place(s)
			continue
		}
		s.prev, s.next = due.prev, &due
		s.prev.next, s.next.prev = s, s
	}
	for due.next != &due {
		s := due.next
		w.count--
		s.unlink()
		look(s.flow)
	}
}
