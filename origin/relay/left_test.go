package relay

import (
	"bufio"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"testing/synctest"
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

// pipe is one end of a pipe of which is heard that bytes have come.
type pipe struct {
	net.Conn
	in *bufio.Reader
}

func (p pipe) Read(b []byte) (int, error) { return p.in.Read(b) }

func (p pipe) Peek(b []byte) (int, error) {
	got, err := p.in.Peek(len(b))
	return copy(b, got), err
}

// A flow of which one half had ended when it was taken up rests with the other, and is looked at no more.
func TestAHalfThatHadEndedBeforeRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var outer, inner [2]net.Conn
		for i := range outer {
			mine, theirs := net.Pipe()
			outer[i], inner[i] = mine, pipe{theirs, bufio.NewReaderSize(theirs, 16)}
		}
		done := make(chan Result, 1)
		f := Resume(inner[0], inner[1], 0, Carried{AEnded: true})
		f.Start(func(r Result) { done <- r })
		time.Sleep(4 * firstLook)
		synctest.Wait()
		f.mu.Lock()
		if left := f.untilLook(stamp()); left != 0 {
			t.Errorf("it is looked at in %v", left)
		}
		f.mu.Unlock()
		outer[1].Close()
		if r := <-done; r.Err != nil {
			t.Errorf("got %+v", r)
		}
	})
}
