package watch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/perigee-net/perigee/cluster/latest"
	"github.com/perigee-net/perigee/cluster/store"
)

func TestAMessageOfAnyLengthIsReadAsItWasWritten(t *testing.T) {
	for _, size := range []int{0, 1, maxFrame - 1, maxFrame, maxFrame + 1, 3*maxFrame + 7} {
		for _, step := range []int{1 << 30, maxFrame, 1000} {
			body := random(size)
			m := newFramer(kindSnapshot, head{SpecSum: 7})
			for rest := body; len(rest) > 0; {
				n := min(step, len(rest))
				m.Write(rest[:n])
				rest = rest[n:]
			}
			fr := testFrames(&script{in: bytes.NewReader(m.end())})
			kind, payload, err := fr.read()
			must(t, err)
			if h, err := readHead(payload); kind != kindSnapshot || err != nil || h != (head{SpecSum: 7}) {
				t.Errorf("the head is %d %+v, %v", kind, h, err)
			}
			got, err := io.ReadAll(fr.parts(int64(size), func() {}))
			if err != nil || !bytes.Equal(got, body) {
				t.Errorf("%d bytes in steps of %d: %d bytes, %v", size, step, len(got), err)
			}
		}
	}
}

func TestAMessageThatIsTooLongOrCutOffIsRefused(t *testing.T) {
	whole := framed(kindDelta, head{}, random(1000))
	for n := range whole {
		fr := testFrames(&script{in: bytes.NewReader(whole[:n])})
		if _, _, err := fr.read(); err != nil {
			continue
		}
		if _, err := io.ReadAll(fr.parts(1000, func() {})); err == nil {
			t.Fatalf("it is whole after %d of %d bytes", n, len(whole))
		}
	}
	fr := testFrames(&script{in: bytes.NewReader(whole)})
	fr.read()
	if _, err := io.ReadAll(fr.parts(999, func() {})); !errors.Is(err, errNonsense) {
		t.Errorf("got %v", err)
	}
}

// script is a connection whose far end says what is written down, and hears nothing.
type script struct {
	net.Conn
	in *bytes.Reader
}

func (s *script) Read(b []byte) (int, error)       { return s.in.Read(b) }
func (s *script) Write(b []byte) (int, error)      { return len(b), nil }
func (s *script) Close() error                     { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

func FuzzAServerHearsAnything(f *testing.F) {
	state := with(f, begin(f), store.Change{Put: []store.Object{object("k", "a", "1")}})
	hello := appendFrame(nil, kindHello, []byte(`{"name":"x","position":{"spec":1,"own":1}}`))
	f.Add([]byte(nil))
	f.Add(hello)
	f.Add(appendFrame(hello, kindAck, make([]byte, 16)))
	f.Add(appendFrame(nil, kindHello, []byte(`{"fresh":true}`)))
	f.Add(appendFrame(nil, kindOptional, []byte("x")))
	f.Add([]byte{kindHello, 0, 1, 0, 1})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(f, err)
	value := &latest.Value[*store.State]{}
	value.Set(state)
	s := Serve(ServerConfig{Listener: listener, State: value, Depth: func() int { return 0 }})
	f.Cleanup(func() { s.Close() })
	f.Fuzz(func(t *testing.T, said []byte) {
		st := &outflow{conn: &script{in: bytes.NewReader(said)}}
		if !s.enter(st) {
			t.Fatal("it is full")
		}
		if err := s.serve(st); err == nil {
			t.Error("it ended without an error")
		}
		s.leave(st)
		if c := s.Counters(); c["watch_streams"] != 0 {
			t.Errorf("counted %v", c)
		}
	})
}

func FuzzAFollowerHearsAnything(f *testing.F) {
	first := begin(f)
	second := with(f, first, store.Change{Put: []store.Object{object("k", "a", "1")}})
	third := with(f, second, store.Change{Put: []store.Object{object("k", "b", fmt.Sprint(random(100)))}})
	d, _ := third.Since(second.Position())
	delta, err := store.EncodeDelta(d)
	must(f, err)
	var whole bytes.Buffer
	must(f, store.WriteState(&whole, third))
	b := appendFrame(nil, kindBeat, beat{Depth: 1, Position: third.Position()}.append(nil))
	f.Add(b, []byte(nil), false, false)
	f.Add(append(bytes.Clone(b), snapshotOf(f, third)...), []byte(nil), true, false)
	f.Add(append(bytes.Clone(b), snapshotOf(f, second)...), delta, true, true)
	f.Add(append(bytes.Clone(b), framed(kindDelta, headOf(third), delta)...), whole.Bytes(), false, true)
	f.Add(b, delta, true, true)
	f.Add(append(bytes.Clone(b), appendFrame(nil, kindOptional|1, []byte("x"))...), whole.Bytes(), false, false)
	// What it says is followed by a message that is well framed, so that the frames do not keep all from getting to the decoders.
	f.Fuzz(func(t *testing.T, said, body []byte, isDelta, begun bool) {
		kind := byte(kindSnapshot)
		if isDelta {
			kind = kindDelta
		}
		said = append(bytes.Clone(said), framed(kind, headOf(third), body)...)
		var had *store.State
		if begun {
			had = second
		}
		fl := NewFollower(FollowerConfig{
			Self: "x",
			Dial: func(context.Context, string, string) (net.Conn, error) {
				return &script{in: bytes.NewReader(said)}, nil
			},
			State: func() *store.State { return had },
			Take: func(s *store.State) {
				if had != nil && newer(had.Position(), s.Position()) {
					t.Errorf("had %v, takes %v", had.Position(), s.Position())
				}
				had = s
			},
		})
		s, err := fl.open(t.Context(), Source{Name: "y"})
		if err != nil {
			return
		}
		if err := fl.read(s, false); err == nil {
			t.Error("it ended without an error")
		}
	})
}
