package relay

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"
)

// What was read of a client before there was an end to carry it to comes first, and then what the client said behind it.
func TestWhatWasReadBeforeIsCarriedFirst(t *testing.T) {
	for _, kernel := range []bool{true, false} {
		for _, c := range []struct {
			name  string
			left  string
			err   error // behind that
			more  string
			whole bool
		}{
			{"more is to come", "left ", nil, "more", true},
			{"nothing is left", "", nil, "more", true},
			{"the client has ended", "left", io.EOF, "", true},
			{"it has ended, and nothing is left", "", io.EOF, "", true},
			{"it has gone", "left", syscall.ECONNRESET, "", false},
		} {
			t.Run(c.name, func(t *testing.T) {
				client, a, b, server := overTCP(t)
				var to net.Conn = b
				if !kernel {
					to = newPeeking(b)
				}
				done := make(chan Result, 1)
				write(t, client, c.more)
				if c.err == nil {
					client.CloseWrite()
				}
				Resume(a, to, time.Minute, Carried{AToB: 7, Unwritten: []byte(c.left), AErr: c.err}).Start(func(r Result) { done <- r })
				got, err := io.ReadAll(server)
				if c.whole {
					if err != nil || string(got) != c.left+c.more {
						t.Errorf("the endpoint read %q, %v", got, err)
					}
					server.CloseWrite()
					if _, err := io.ReadAll(client); err != nil {
						t.Errorf("the client read %v", err)
					}
				} else if !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("the endpoint read %q, %v", got, err)
				}
				r := <-done
				if r.AToB != int64(7+len(c.left)+len(c.more)) || (r.Err == nil) != c.whole || !c.whole && r.Broke != A {
					t.Errorf("got %+v", r)
				}
			})
		}
	}
}
