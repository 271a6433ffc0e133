package lasting

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"testing"
)

// tape is the bytes of a stream in one direction that were not read yet.
type tape struct{ bytes.Buffer }

// end is one end of a flow without a network.
type end struct {
	out        Out
	in         In
	wrote, got []byte
	heads      Heads
}

func (e *end) send(to *tape) {
	first, second := e.out.Next(e.in.Tell(), &e.heads)
	to.Write(first)
	to.Write(second)
	e.out.Written()
}

// receive reads what there is, at most n bytes at a time.
func (e *end) receive(from *tape, n int) error {
	for from.Len() > 0 {
		if left := e.in.Left(); left > 0 {
			p := make([]byte, min(n, left))
			k, _ := from.Read(p)
			e.got = append(e.got, p[:k]...)
			e.in.Took(k)
			continue
		}
		room := e.in.Head()
		k, _ := from.Read(room[:min(n, len(room))])
		f, whole, err := e.in.Read(k)
		if err != nil {
			return err
		}
		if whole && f.Kind == Ack {
			if err := e.out.Acked(f.N); err != nil {
				return err
			}
		}
	}
	return nil
}

func resume(o *Out, has uint64) error {
	_, err := o.Resume(has)
	return err
}

// goOn has two ends write, read and lose their stream, by chance: what one has written, the other gets.
func goOn(t *testing.T, chance *rand.Rand, steps int) {
	t.Helper()
	var held atomic.Int64
	ends := [2]*end{{out: Out{Held: &held}}, {out: Out{Held: &held}}}
	stream := [2]*tape{{}, {}} // by who writes it
	check := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(e *end) {
		p := make([]byte, chance.IntN(1+[]int{10, 5000, 100_000}[chance.IntN(3)]))
		for i := range p {
			p[i] = byte(len(e.wrote) + i*i)
		}
		e.wrote = append(e.wrote, p...)
		if chance.IntN(3) == 0 {
			piece := Lend()
			n := copy(piece.Room(), p)
			e.out.Take(piece, n)
			p = p[n:]
		}
		for len(p) > 0 {
			p = p[e.out.Add(p):]
		}
	}
	for range steps {
		i := chance.IntN(2)
		e, other := ends[i], ends[1-i]
		switch chance.IntN(12) {
		case 0, 1, 2:
			if !e.out.Ended() {
				write(e)
			}
		case 3:
			if chance.IntN(10) == 0 {
				e.out.End()
			}
		case 4, 5, 6, 7:
			e.send(stream[i])
		case 8, 9, 10:
			check(e.receive(stream[1-i], 1+chance.IntN(50_000)))
		case 11: // what was on its way is lost, but for a part of it
			if n := stream[i].Len(); n > 0 {
				stream[i].Truncate(chance.IntN(n))
				check(other.receive(stream[i], 1000))
			}
			stream = [2]*tape{{}, {}}
			check(resume(&e.out, other.in.Received()))
			check(resume(&other.out, e.in.Received()))
			e.in.Resume()
			other.in.Resume()
		}
	}
	for _, e := range ends {
		e.out.End()
	}
	for range 3 {
		for i, e := range ends {
			for e.out.Unsent() || e.in.Due() > 0 {
				e.send(stream[i])
			}
			check(ends[1-i].receive(stream[i], 1<<20))
		}
	}
	for i, e := range ends {
		if other := ends[1-i]; !bytes.Equal(e.wrote, other.got) || !other.in.Ended() || !e.out.Done() {
			t.Fatalf("wrote %d bytes, and %d came, ended %t, done %t", len(e.wrote), len(other.got), other.in.Ended(), e.out.Done())
		}
	}
	if n := held.Load(); n != 0 {
		t.Fatalf("%d bytes are held when all is done", n)
	}
}

func TestWhatIsWrittenArrivesOverManyStreams(t *testing.T) {
	for seed := range uint64(12) {
		goOn(t, rand.New(rand.NewPCG(seed, 1)), 300)
	}
}

func FuzzAFlowGoesOn(f *testing.F) {
	f.Add(uint64(1), uint64(2), uint16(100))
	f.Fuzz(func(t *testing.T, a, b uint64, steps uint16) { goOn(t, rand.New(rand.NewPCG(a, b)), int(steps%1000)) })
}

// What a peer sends cannot have more read or acknowledged than there is.
func FuzzFrames(f *testing.F) {
	f.Add([]byte{Data, 0, 0, 2, 'h', 'i', Ack, 0, 0, 3, End, 0, 0, 0, Ack, 0, 0, 1})
	f.Add([]byte{Data, 0, 0, 0})
	f.Add([]byte{Data, 255, 255, 255})
	f.Add([]byte{Forgo, 0, 0, 0, End, 0, 0, 0, End, 0, 0, 0})
	f.Add([]byte{Ack, 255, 255, 255})
	f.Add([]byte{9, 0, 0, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		var held atomic.Int64
		e := &end{out: Out{Held: &held}}
		e.out.Add([]byte("four"))
		e.out.End()
		var sent, from tape
		for e.out.Unsent() {
			e.send(&sent)
		}
		from.Write(data)
		if err := e.receive(&from, 7); err != nil && !errors.Is(err, ErrUnlikely) {
			t.Fatal(err)
		}
		if len(e.got) > len(data) || e.out.Kept() > 5 || e.in.Received() > uint64(len(e.got))+1 {
			t.Fatalf("got %d of %d, %d kept, received %d", len(e.got), len(data), e.out.Kept(), e.in.Received())
		}
	})
}

func TestWhoForgoesKeepsNothing(t *testing.T) {
	var held atomic.Int64
	o := Out{Held: &held}
	o.Forgo()
	for range 100 {
		o.Add(make([]byte, 64<<10))
		o.Next(0, new(Heads))
		if held.Load() != largePiece {
			t.Fatalf("%d bytes are held while one piece is written", held.Load())
		}
		if o.Written(); held.Load() != 0 {
			t.Fatalf("%d bytes are kept", held.Load())
		}
	}
	if resume(&o, 0) == nil {
		t.Error("it goes on all the same")
	}
}

func TestWhatIsSentAgainIsCountedOnce(t *testing.T) {
	o := Out{Held: new(atomic.Int64)}
	o.Add(make([]byte, 100))
	o.Next(0, new(Heads))
	o.Written()
	for i, c := range []struct{ has, again uint64 }{{40, 60}, {40, 0}, {100, 0}} { // lost on one stream; the next is lost before anything was sent; it had come
		if again, err := o.Resume(c.has); again != c.again || err != nil {
			t.Errorf("%d: %d bytes are sent again, want %d: %v", i, again, c.again, err)
		}
	}
}

func TestWhatIsBeingWrittenIsNotFreed(t *testing.T) {
	var held atomic.Int64
	o := Out{Held: &held}
	o.Add([]byte("x"))
	o.Next(0, new(Heads))
	if err := o.Acked(1); err != nil || held.Load() == 0 {
		t.Fatalf("%v, %d bytes held", err, held.Load())
	}
	if o.Written(); held.Load() != 0 {
		t.Errorf("%d bytes held", held.Load())
	}
}

func TestWhatCannotBeIsRefused(t *testing.T) {
	fresh := func() *Out {
		o := &Out{Held: new(atomic.Int64)}
		o.Add([]byte("four"))
		o.Next(0, new(Heads))
		o.Written()
		return o
	}
	if o := fresh(); o.Acked(5) == nil || o.Acked(0) == nil || o.Acked(4) != nil || o.Acked(1) == nil {
		t.Error("more is acknowledged than was sent")
	}
	if o := fresh(); resume(o, 5) == nil || o.Acked(2) != nil || resume(o, 1) == nil || resume(o, 3) != nil || o.sent != 3 {
		t.Error("it goes on from where it cannot")
	}
	o := fresh()
	if o.Add([]byte("more")); resume(o, 8) == nil {
		t.Error("the other end has what was never sent")
	}
	o = fresh()
	o.Add([]byte("more"))
	o.Next(0, new(Heads))
	o.Written()
	if err := errors.Join(resume(o, 0), resume(o, 8)); err != nil { // it had arrived, and was not yet sent anew
		t.Error(err)
	}
}

func TestSmallWritesShareAPieceAndBecomeOneFrameEach(t *testing.T) {
	var held atomic.Int64
	o := Out{Held: &held}
	var all tape
	for i := range 100 {
		o.Add([]byte("message"))
		first, second := o.Next(0, new(Heads))
		if apart := len(first) > 0; apart != (i%2 == 1) {
			t.Fatalf("message %d is written in two parts: %t", i, apart)
		}
		all.Write(first)
		all.Write(second)
		if i%2 == 1 {
			if err := o.Acked(14); err != nil {
				t.Fatal(err)
			}
		}
		o.Written()
		if held.Load() > smallPiece {
			t.Fatalf("%d bytes are held", held.Load())
		}
	}
	e := end{out: Out{Held: &held}}
	if err := e.receive(&all, 1<<20); err != nil || !bytes.Equal(e.got, bytes.Repeat([]byte("message"), 100)) {
		t.Errorf("%d bytes came: %v", len(e.got), err)
	}
}

func TestTooMuchIsKept(t *testing.T) {
	var held, others atomic.Int64
	o := Out{Held: &held}
	for !o.Full() {
		o.Add(make([]byte, 64<<10))
	}
	if o.Kept() != MaxKept+64<<10 {
		t.Errorf("full at %d", o.Kept())
	}
	o.Drop()
	if held.Load() != 0 {
		t.Errorf("%d are held", held.Load())
	}
	for _, c := range []struct {
		others       int64
		pieces, size int
		full         bool
	}{
		{MaxKeptByAll + 1, 0, 0, false},
		{MaxKeptByAll + 1, 1, 64 << 10, false},
		{MaxKeptByAll - 1, 2, 64 << 10, true}, // with its own
		{MaxKeptByAll - 3*largePiece, 2, 64 << 10, false},
		{MaxKeptByAll + 1, 15, 4 << 10, false},
		{2*MaxKeptByAll + 1, 0, 0, false},
		{2*MaxKeptByAll + 1, 1, 100, false},
		{2*MaxKeptByAll + 1, 1, 64 << 10, true},
		{2*MaxKeptByAll + 1, 2, 3 << 10, true},
	} {
		others.Store(c.others)
		o = Out{Held: &others}
		for range c.pieces {
			o.Add(make([]byte, c.size))
		}
		if o.Full() != c.full {
			t.Errorf("others keep %d, and it keeps %d of %d each: full is %t", c.others, c.pieces, c.size, o.Full())
		}
	}
}
