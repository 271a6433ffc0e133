package backbone

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/perigee-net/perigee/cluster/identity"
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

// dialsWith dials with some bytes before the answer, and says how many were taken and on how many streams.
func dialsWith(ctx context.Context, b *Backbone, service string, lasts bool, text string) (c net.Conn, taken, streams int, late io.Writer, err error) {
	ctx = WithEarly(ctx, func(w io.Writer) {
		streams++
		late = w
		taken, _ = io.WriteString(w, text)
	})
	h := Header{Service: service}
	if !lasts {
		c, err = b.Dial(ctx, "iad", h)
	} else {
		way := Way{Node: "iad", Header: h}
		c, err = b.DialLasting(ctx, way, func() []Way { return []Way{way} })
	}
	return c, taken, streams, late, err
}

func TestWhatIsSaidBeforeTheAnswerComesFirst(t *testing.T) {
	for name, lasts := range map[string]bool{"a flow": true, "a stream": false} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				icn, iad := w.pair()
				defer iad.Close()
				defer icn.Close()
				iad.Handle("echo", func(in *Incoming) {
					time.Sleep(time.Second) // what has come lies in the stream
					c := in.Accept()
					defer c.Close()
					io.Copy(c, c)
					c.(interface{ CloseWrite() error }).CloseWrite()
				})
				iad.Handle("full", func(in *Incoming) { in.Refuse("too many flows") })
				iad.Handle("silent", func(in *Incoming) { <-in.Context().Done() })
				c, taken, streams, late, err := dialsWith(w.Context(), icn, "echo", lasts, "order ")
				if err != nil || taken != 6 || streams != 1 {
					w.Fatalf("%d bytes on %d streams, %v", taken, streams, err)
				}
				if n, err := io.WriteString(late, "late"); n != 0 || !errors.Is(err, errAnswered) {
					w.Errorf("after the answer %d bytes were taken, %v", n, err)
				}
				io.WriteString(c, "and more")
				c.(interface{ CloseWrite() error }).CloseWrite()
				if got, err := io.ReadAll(c); string(got) != "order and more" || err != nil {
					w.Errorf("got %q, %v", got, err)
				}
				c.Close()
				if _, taken, _, _, err := dialsWith(w.Context(), icn, "full", lasts, "order"); taken != 5 || err == nil || err.Error() != "dial iad over the backbone: refused: too many flows" {
					w.Errorf("%d bytes, %v", taken, err)
				}
				ctx, cancel := context.WithTimeout(w.Context(), time.Second)
				defer cancel()
				if _, _, _, late, err = dialsWith(ctx, icn, "silent", lasts, "order"); !errors.Is(err, context.DeadlineExceeded) {
					w.Errorf("who is silent: %v", err)
				}
				if n, err := io.WriteString(late, "late"); n != 0 || !errors.Is(err, errAnswered) {
					w.Errorf("after it was given up %d bytes were taken, %v", n, err)
				}
				time.Sleep(time.Second)
				for _, counter := range []string{"backbone_lasting_flows", "backbone_lasting_kept_bytes"} {
					if n := icn.Counters()[counter]; n != 0 {
						w.Errorf("%s is %d when all is over", counter, n)
					}
				}
			})
		})
	}
}

// Where the peer takes no new streams on a connection, nothing was done with what was said on it, and all is said again.
func TestWhatIsSaidOnAStreamThatIsMovedIsSaidAgain(t *testing.T) {
	inWorld(t, func(w *world) {
		next, err := identity.NewAuthority(w.authority.ClusterID(), time.Now())
		if err != nil {
			w.Fatal(err)
		}
		icn, iad := w.pair()
		defer icn.Close()
		defer iad.Close()
		iad.Handle("echo", func(in *Incoming) {
			c := in.Accept()
			defer c.Close()
			io.Copy(c, c)
			c.(interface{ CloseWrite() error }).CloseWrite()
		})
		for _, b := range []*Backbone{icn, iad} {
			w.guards[b.config.Self].SetTrust(identity.Trust{Authorities: [][]byte{w.authority.Certificate(), next.Certificate()}})
			w.guards[b.config.Self].SetNode(issue(w, next, b.config.Self, 2, w.now()))
		}
		w.guards["iad"].SetTrust(identity.Trust{Authorities: [][]byte{next.Certificate()}})
		iad.Check()
		c, taken, streams, _, err := dialsWith(w.Context(), icn, "echo", true, "order")
		if err != nil || taken != 5 || streams < 2 {
			w.Fatalf("%d bytes on %d streams, %v", taken, streams, err)
		}
		c.(interface{ CloseWrite() error }).CloseWrite()
		if got, err := io.ReadAll(c); string(got) != "order" || err != nil {
			w.Errorf("got %q, %v", got, err)
		}
		c.Close()
	})
}
