package loop

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
)

var errReset = errors.New("reset by peer")

// peer is who is at the other end of one of a machine's sockets, and the system between: what he sends waits to be read, and what is written to him waits in a buffer with
// so much room until he takes it.
type peer struct {
	sent     int    // bytes, of the pattern
	unread   []byte // of which these were not read yet
	hasEnded bool
	wasTold  bool // that the machine's side has ended
	reset    bool
	then     error // what reading meets behind the bytes
	room     int
	short    bool // something was written for which there was no room: it is told when there is
	got      int  // bytes
	more     bool // the last of them are on their way only with what follows
	reads    int
	mark     int // how much more is read at most in one call, as urgent data makes it; 0: all
}

// pattern is what all peers send.
var pattern = func() []byte {
	b := make([]byte, 16<<20)
	for i := range b {
		b[i] = byte(i * 7 >> 2)
	}
	return b
}()

// world is a machine between two peers.
type world struct {
	t       testing.TB
	machine machine
	peers   [2]peer
	room    []byte
	what    outcome
	at      side
}

func (w *world) read(from side, b []byte) (int, error) {
	p := &w.peers[from]
	p.reads++
	switch {
	case p.reset:
		return 0, errReset
	case len(p.unread) == 0 && p.then != nil:
		return 0, p.then
	case len(p.unread) == 0 && p.hasEnded:
		return 0, io.EOF
	case len(p.unread) == 0:
		return 0, errAgain
	}
	n := min(len(b), len(p.unread))
	if p.mark > 0 {
		n = min(n, p.mark)
		p.mark = 0
	}
	copy(b, p.unread[:n])
	p.unread = p.unread[n:]
	return n, nil
}

func (w *world) write(to side, b []byte, more bool) (int, error) {
	p := &w.peers[to]
	if p.reset {
		return 0, errReset
	}
	if p.wasTold {
		w.t.Fatal("bytes are written behind the end")
	}
	n := min(p.room, len(b))
	p.room -= n
	if !bytes.Equal(b[:n], pattern[p.got:p.got+n]) {
		w.t.Fatalf("%d came other bytes than were sent", to)
	}
	p.got += n
	p.more = more && n == len(b)
	p.short = p.short || n < len(b)
	return n, nil
}

func (w *world) end(to side) error {
	p := &w.peers[to]
	if p.reset {
		return errReset
	}
	if p.wasTold {
		w.t.Fatal("an end is told twice")
	}
	p.wasTold, p.more = true, false
	return nil
}

// step has the machine go on as its loop would.
func (w *world) step() {
	for w.what == waits || w.what == again {
		if w.what, w.at, _ = w.machine.step(w, w.room); w.what == waits {
			return
		}
		if w.what == much {
			for at := range w.machine.ends {
				if w.machine.ends[at].rest != nil {
					w.t.Fatal("something is on its way as it is handed over")
				}
			}
			w.machine.stays = true
			w.what = again
		}
	}
}

// act is one thing that a peer does, and that the system tells of it: no more than it must.
func (w *world) act(what, size byte) {
	at := side(what & 1)
	p := &w.peers[at]
	if p.reset {
		return
	}
	many := int(size) + 1
	if what&2 != 0 {
		many *= 997
	}
	switch what >> 2 % 8 {
	case 0, 1, 2:
		if many = min(many, len(pattern)-p.sent); many == 0 || p.hasEnded {
			return
		}
		p.sent += many
		p.unread = pattern[p.sent-many-len(p.unread) : p.sent]
		then := nothing
		if what>>5 == 1 && many > 1 { // urgent data
			p.mark, then = many/2, anything
		}
		w.machine.told(at, true, false, then)
	case 3, 4, 5:
		p.room += many
		if p.short {
			p.short = false
			w.machine.told(at, false, true, nothing)
		}
	case 6:
		p.hasEnded = true
		w.machine.told(at, true, false, itsEnd)
	case 7:
		if size > 32 { // not too often
			return
		}
		p.reset = true
		w.machine.told(at, true, true, anything)
	}
	w.step()
}

// check looks whether what the machine came to is what the peers did.
func (w *world) check() {
	for at := range w.peers {
		to, from := &w.peers[at], &w.peers[1-at]
		if got := w.machine.sent[1-at].Load(); got != int64(to.got) {
			w.t.Fatalf("%d bytes are counted, and %d came", got, to.got)
		}
		if (to.wasTold || w.what == whole) && (!from.hasEnded || to.got < from.sent) {
			w.t.Fatalf("%d heard of an end that was none", at)
		}
		if to.more && w.what == waits {
			w.t.Fatalf("bytes to %d wait for what does not follow", at)
		}
		if w.what == waits && !to.reset && !from.reset {
			if to.got < from.sent && to.room > 0 {
				w.t.Fatalf("%d waits for %d bytes that there is room for", at, from.sent-to.got)
			}
			if from.hasEnded && to.got == from.sent && !to.wasTold {
				w.t.Fatalf("%d did not hear of the end", at)
			}
		}
	}
	both := w.peers[0].reset || w.peers[1].reset
	switch w.what {
	case broken:
		if !w.peers[w.at].reset {
			w.t.Fatalf("%d is said to have failed", w.at)
		}
	case whole:
		if both && w.peers[0].reset && w.peers[1].reset {
			w.t.Fatal("both were reset, and it ended whole")
		}
	case waits:
		for at := range w.peers {
			if p := &w.peers[at]; p.reset && w.machine.ends[1-at].rest == nil && !w.machine.ends[at].over {
				w.t.Fatalf("%d was reset, and nobody saw it", at)
			}
		}
	}
}

func run(t testing.TB, script []byte) *world {
	w := &world{t: t, room: make([]byte, 1000)}
	w.machine.told(client, true, true, nothing)
	w.machine.told(target, false, true, nothing)
	w.step()
	for i := 0; i+1 < len(script) && w.what == waits; i += 2 {
		w.act(script[i], script[i+1])
		w.check()
	}
	return w
}

func FuzzMachine(f *testing.F) {
	f.Add([]byte{0, 64, 12, 255, 1, 64, 13, 255, 25, 0, 24, 0})
	f.Add([]byte{2, 255, 12, 3, 14, 255, 2, 255, 14, 255, 24, 0, 14, 255, 25, 1})
	f.Add([]byte{34, 9, 14, 200, 28, 0})
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) > 400 {
			return
		}
		w := run(t, script)
		w.machine.release()
	})
}

func TestAMachineCarriesWhatPeersDo(t *testing.T) {
	came := map[outcome]int{}
	for seed := range uint64(300) {
		random := rand.New(rand.NewPCG(seed, 1))
		script := make([]byte, 200)
		for i := range script {
			script[i] = byte(random.Uint32())
			if i%2 == 0 && script[i]>>2%8 >= 6 && random.IntN(8) > 0 { // ends and resets are not the rule
				script[i] &^= 0x10
			}
		}
		came[run(t, script).what]++
	}
	for _, what := range []outcome{waits, whole, broken} {
		if came[what] < 10 {
			t.Errorf("%d came to %d: the test sees too little of that", came[what], what)
		}
	}
}

func TestAFlowOfManyBytesIsHandedOverWithNothingOnItsWay(t *testing.T) {
	w := &world{t: t, room: make([]byte, roomSize)}
	w.machine.told(client, false, true, nothing)
	w.machine.told(target, true, true, nothing)
	w.peers[target].room, w.peers[client].room = 1<<20, 10
	w.peers[target].unread = pattern[:20]
	w.machine.step(w, w.room)
	w.machine.told(client, true, false, nothing)
	w.peers[client].unread = pattern[:enough+5]
	for range 3 { // the client has no room for the target's bytes: it is copied on
		if what, _, _ := w.machine.step(w, w.room); what == much {
			t.Fatal("it is handed over with bytes on their way")
		}
	}
	if got := w.peers[target].got; got != enough+5 {
		t.Errorf("%d bytes came", got)
	}
	w.peers[client].room = 100
	w.machine.told(client, true, true, nothing)
	if what, _, _ := w.machine.step(w, w.room); what != waits { // nothing is there from which it were to be read
		t.Errorf("it came to %d", what)
	}
	w.machine.told(client, true, false, nothing)
	if what, _, _ := w.machine.step(w, w.room); what != much {
		t.Errorf("it came to %d", what)
	}
	if got := w.peers[client].got; got != 20 {
		t.Errorf("%d bytes came back", got)
	}
	w.machine.release()
}

// What is there together with the end travels with it, and nothing else waits.
func TestTheLastBytesTravelWithTheEnd(t *testing.T) {
	for _, c := range []struct {
		name            string
		ends, both      bool
		room, want, got int
	}{
		{"an end is there", true, false, 100, 30, 30},
		{"the other has ended before", true, true, 100, 30, 30},
		{"the system was hasty", false, false, 100, 30, 30},
		{"there is no room for all", true, false, 10, 10, 30},
	} {
		w := &world{t: t, room: make([]byte, roomSize)}
		far := &w.peers[target]
		w.machine.told(client, false, true, nothing)
		w.machine.told(target, true, true, anything)
		w.machine.ends[client].over = c.both
		w.peers[client].room, far.unread, far.hasEnded, far.sent = c.room, pattern[:30], c.ends, 30
		what, _, _ := w.machine.step(w, w.room)
		near := &w.peers[client]
		if near.got != c.want || near.more != c.both || near.wasTold != (c.ends && !c.both && c.room > 30) {
			t.Errorf("%s: %d came, more %v, told %v", c.name, near.got, near.more, near.wasTold)
		}
		if (what == whole) != c.both {
			t.Errorf("%s: it came to %d", c.name, what)
		}
		near.room = 100
		w.machine.told(client, false, true, nothing)
		if c.both {
			continue
		}
		w.machine.step(w, w.room)
		if near.got != c.got || near.wasTold != c.ends || near.more {
			t.Errorf("%s: then %d came, more %v, told %v", c.name, near.got, near.more, near.wasTold)
		}
	}
}

// Where the system has said that the end is there, and no more, it is not read for.
func TestAnEndThatIsThereIsNotReadFor(t *testing.T) {
	w := &world{t: t, room: make([]byte, roomSize)}
	near, far := &w.peers[client], &w.peers[target]
	w.machine.told(client, false, true, nothing)
	w.machine.told(target, true, true, itsEnd)
	near.room, far.unread, far.hasEnded, far.sent = 100, pattern[:30], true, 30
	if what, _, _ := w.machine.step(w, w.room); what != waits || near.got != 30 || !near.wasTold || far.reads != 1 {
		t.Errorf("it came to %d, %d bytes came, told %v, after %d reads", what, near.got, near.wasTold, far.reads)
	}
}

// What came before a reset has gone on before that is told.
func TestBytesBeforeAResetGoOn(t *testing.T) {
	w := &world{t: t, room: make([]byte, roomSize)}
	w.machine.told(client, false, true, nothing)
	w.machine.told(target, true, true, anything)
	w.peers[client].room = 100
	w.peers[target].unread, w.peers[target].then = pattern[:30], errReset
	what, at, err := w.machine.step(w, w.room)
	if what != broken || at != target || err != errReset || w.peers[client].got != 30 || w.peers[client].more {
		t.Errorf("it came to %d at %d, %v, after %d bytes", what, at, err, w.peers[client].got)
	}
}

func TestAMachineGivesOthersTheirTurn(t *testing.T) {
	w := &world{t: t, room: make([]byte, 10)}
	w.machine.told(client, true, true, anything)
	w.machine.told(target, false, true, nothing)
	w.peers[target].room = 1 << 20
	w.peers[client].unread = pattern[:1000]
	if what, _, _ := w.machine.step(w, w.room); what != again || w.peers[target].got != turns*len(w.room) {
		t.Errorf("it came to %d after %d bytes", what, w.peers[target].got)
	}
}
