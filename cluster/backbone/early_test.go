package backbone

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

func TestWhatIsDialledEarlyIsThereARoundTripSooner(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pair()
		defer iad.Close()
		defer icn.Close()
		came := make(chan time.Time, 1)
		iad.Handle("lane", func(in *Incoming) {
			c := in.Accept()
			defer c.Close()
			if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
				w.Error(err)
			}
			came <- time.Now()
			io.WriteString(c, "done")
		})
		took := func(dial func() (net.Conn, error)) (there, back time.Duration) {
			began := time.Now()
			c, err := dial()
			if err != nil {
				w.Fatal(err)
			}
			defer c.Close()
			io.WriteString(c, "order")
			answer := make([]byte, 4)
			if _, err := io.ReadFull(c, answer); err != nil || string(answer) != "done" {
				w.Fatalf("got %q, %v", answer, err)
			}
			return (<-came).Sub(began), time.Since(began)
		}
		h := Header{Service: "lane"}
		early, earlyBack := took(func() (net.Conn, error) { return icn.DialEarly(w.Context(), "iad", h) })
		late, lateBack := took(func() (net.Conn, error) { return icn.Dial(w.Context(), "iad", h) })
		if early >= earlyBack || late < 2*early || late-early < earlyBack-early || lateBack <= earlyBack {
			w.Errorf("early it is there after %v and answered after %v, else after %v and %v", early, earlyBack, late, lateBack)
		}
	})
}

func TestARefusalOfAnEarlyDialIsRead(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pair()
		defer iad.Close()
		defer icn.Close()
		iad.Handle("full", func(in *Incoming) { in.Refuse("too many orders") })
		c, err := icn.DialEarly(w.Context(), "iad", Header{Service: "full"})
		if err != nil {
			w.Fatal(err)
		}
		defer c.Close()
		for range 2 {
			_, err := c.Read(make([]byte, 1))
			if no, ok := errors.AsType[*RefusedError](err); !ok || no.Reason != "too many orders" {
				w.Errorf("got %v", err)
			}
		}
		if _, err := icn.DialEarly(w.Context(), "gru", Header{Service: "full"}); !errors.Is(err, ErrDown) {
			w.Errorf("to a node that is no peer: %v", err)
		}
	})
}
