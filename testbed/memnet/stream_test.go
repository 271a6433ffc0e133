package memnet

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/nettest"
)

func TestHalfCloseLetsTheOtherHalfLive(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
		c, s := pair(t, here, far)
		start := time.Now()
		write(t, c, "question")
		if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(s)
		if string(got) != "question" || err != nil {
			t.Fatalf("got %q, %v", got, err)
		}
		took(t, "the FIN", start, oneWay(seoul, tokyo))
		if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
			t.Fatalf("write behind the FIN: got %v", err)
		}

		time.Sleep(time.Hour)
		write(t, s, "answer")
		s.Close()
		if got, err := io.ReadAll(c); string(got) != "answer" || err != nil {
			t.Fatalf("got %q, %v", got, err)
		}
	})
}

func TestCloseDeliversWhatWasWritten(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
		c, s := pair(t, here, far)
		write(t, c, "all of it")
		c.Close()
		time.Sleep(time.Hour)
		if got, err := io.ReadAll(s); string(got) != "all of it" || err != nil {
			t.Fatalf("got %q, %v", got, err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Fatalf("read from a closed end: got %v", err)
		}
		if err := c.Close(); !errors.Is(err, net.ErrClosed) {
			t.Fatalf("close again: got %v", err)
		}
	})
}

func TestWritingToAClosedEndIsAResetARoundTripLater(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
		c, s := pair(t, here, far)
		c.Close()
		if _, err := s.Read(make([]byte, 1)); err != io.EOF {
			t.Fatalf("got %v, want io.EOF", err)
		}
		write(t, s, "to nobody")
		time.Sleep(in.RoundTrip("seoul", "tokyo") - 1)
		write(t, s, "still unaware")
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if _, err := s.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("got %v", err)
		}
	})
}

func TestACloseThatIsAReset(t *testing.T) {
	tests := map[string]func(t *testing.T, c, s net.Conn){
		"by SetLinger(0)": func(t *testing.T, c, s net.Conn) {
			c.(interface{ SetLinger(int) error }).SetLinger(0)
		},
		"because data is unread": func(t *testing.T, c, s net.Conn) {
			write(t, s, "unread")
			time.Sleep(time.Second)
		},
	}
	for name, before := range tests {
		t.Run(name, func(t *testing.T) {
			world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
				c, s := pair(t, here, far)
				before(t, c, s)
				write(t, c, "written before")
				start := time.Now()
				c.Close()
				time.Sleep(time.Second)
				if got := read(t, s, 14); got != "written before" {
					t.Fatalf("got %q", got)
				}
				if _, err := s.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
					t.Fatalf("got %v", err)
				}
				took(t, "all", start, time.Second)
			})
		})
	}
}

func TestAListenerThatClosesResetsWhatNobodyAccepted(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
		l := listen(t, far, ":80")
		waiting := dial(t, here, "tcp", "192.0.2.2:80")
		time.Sleep(time.Second)
		arriving := dial(t, here, "tcp", "192.0.2.2:80") // its handshake ends after the close
		l.Close()
		for _, c := range []net.Conn{waiting, arriving} {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Fatalf("got %v", err)
			}
		}
	})
}

func TestAWriterWaitsAtTheWindow(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
		c, s := pair(t, here, far)
		start := time.Now()
		write(t, c, string(pattern(Window)))
		took(t, "a window", start, 0)

		written := make(chan struct{})
		go func() {
			write(t, c, "one more")
			close(written)
		}()
		time.Sleep(time.Hour)
		select {
		case <-written:
			t.Fatal("a full window took more")
		default:
		}
		start = time.Now()
		read(t, s, Window/4)
		<-written
		took(t, "the credit", start, oneWay(tokyo, seoul))
		if got := read(t, s, Window*3/4+8); got != string(pattern(Window)[Window/4:])+"one more" {
			t.Fatal("what arrived is not what was written")
		}
	})
}

func TestAWindowPassesInEachRoundTrip(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
		in.Link("seoul", "tokyo", Path{Delay: 50 * time.Millisecond})
		c, s := pair(t, here, far)
		start := time.Now()
		go func() {
			write(t, c, string(pattern(10*Window)))
			c.Close()
		}()
		for range 40 {
			read(t, s, Window/4) // what is credited at once
		}
		took(t, "ten windows", start, 9*100*time.Millisecond+50*time.Millisecond)
	})
}

func TestWritesDoNotMix(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
		c, s := pair(t, here, far)
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() { write(t, c, string(slices.Repeat([]byte{byte('a' + i)}, Window))) })
		}
		go func() {
			wg.Wait()
			c.Close()
		}()
		got, _ := io.ReadAll(s)
		if runs := len(slices.Compact(got)); runs != 4 {
			t.Fatalf("four writes arrived in %d pieces", runs)
		}
	})
}

func TestLossAndJitterDelayAStreamButKeepItsBytes(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
		in.Link("seoul", "tokyo", Path{Delay: 10 * time.Millisecond, Jitter: 50 * time.Millisecond, Loss: 0.05})
		l := listen(t, far, ":80")
		go func() {
			for {
				s, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					io.Copy(s, s)
					s.Close()
				}()
			}
		}()
		for range 10 {
			c := dial(t, here, "tcp", "192.0.2.2:80")
			go func() {
				for chunk := range slices.Chunk(pattern(200_000), 777) {
					c.Write(chunk)
				}
				c.(interface{ CloseWrite() error }).CloseWrite()
			}()
			got, err := io.ReadAll(c)
			if err != nil || !slices.Equal(got, pattern(200_000)) {
				t.Fatalf("got %d bytes, or others: %v", len(got), err)
			}
			c.Close()
		}
		if in.Counters()["stream_retransmits_total"] == 0 {
			t.Fatal("nothing was lost")
		}
	})
}

func TestALossCostsARetransmission(t *testing.T) {
	for _, delay := range []time.Duration{10 * time.Millisecond, 300 * time.Millisecond} {
		world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
			in.Link("seoul", "tokyo", Path{Delay: delay})
			c, s := pair(t, here, far)
			in.LinkOneWay("seoul", "tokyo", Path{Delay: delay, Loss: 0.5})
			for range 20 {
				before := in.Counters()["stream_retransmits_total"]
				start := time.Now()
				write(t, c, "x")
				lost := in.Counters()["stream_retransmits_total"] - before
				read(t, s, 1)
				took(t, "a byte", start, delay+time.Duration(lost)*max(Retransmit, 2*delay))
			}
		})
	}
}

func TestARateSpreadsBytesOverTime(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
		delay := 10 * time.Millisecond
		in.LinkOneWay("seoul", "tokyo", Path{Delay: delay, Rate: 8_000_000}) // a byte in a microsecond
		c, s := pair(t, here, far)
		start := time.Now()
		write(t, c, string(pattern(200_000)))
		read(t, s, Chunk)
		took(t, "the first chunk", start, delay+Chunk*time.Microsecond)
		read(t, s, 200_000-Chunk)
		took(t, "all chunks", start, delay+200_000*time.Microsecond)

		other, _ := pair(t, here, far)
		start = time.Now()
		write(t, c, string(pattern(100_000)))
		write(t, other, "behind them") // the link is shared
		took(t, "writing", start, 0)
		read(t, s, 100_000)
		took(t, "100 kB", start, delay+100_000*time.Microsecond)
	})
}

func TestDeadlines(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
		c, s := pair(t, here, far)
		socket := listenPacket(t, here, ":53")
		full, _ := pair(t, here, far)
		write(t, full, string(pattern(Window)))
		write(t, s, "here before the deadline")
		time.Sleep(time.Second)

		waits := []struct {
			name string
			set  func(time.Time) error
			wait func() error
		}{
			{"read", c.SetReadDeadline, func() error { _, err := c.Read(make([]byte, 1)); return err }},
			{"write", full.SetWriteDeadline, func() error { _, err := full.Write(make([]byte, 1)); return err }},
			{"readFrom", socket.SetReadDeadline, func() error { _, _, err := socket.ReadFrom(make([]byte, 1)); return err }},
			{"both, reading", s.SetDeadline, func() error { _, err := s.Read(make([]byte, 1)); return err }},
		}
		for _, w := range waits {
			late := func(when string, start time.Time, after time.Duration) {
				t.Helper()
				err := w.wait()
				ne, ok := errors.AsType[net.Error](err)
				if !errors.Is(err, os.ErrDeadlineExceeded) || !ok || !ne.Timeout() {
					t.Fatalf("%s, %s: got %v", w.name, when, err)
				}
				took(t, w.name+", "+when, start, after)
			}
			w.set(time.Unix(1, 0))
			late("a deadline long past", time.Now(), 0) // even where data waits to be read
			w.set(time.Time{})
			if w.name == "read" {
				read(t, c, len("here before the deadline"))
			}
			w.set(time.Now().Add(time.Minute))
			late("a deadline to come", time.Now(), time.Minute)
			late("a deadline passed", time.Now(), 0)

			w.set(time.Now().Add(time.Minute))
			start := time.Now()
			time.AfterFunc(time.Second, func() { w.set(time.Now().Add(time.Second)) })
			late("a deadline brought forward", start, 2*time.Second)

			w.set(time.Now().Add(time.Second))
			start = time.Now()
			time.AfterFunc(time.Second/2, func() { w.set(time.Now().Add(time.Minute)) })
			late("a deadline put off", start, time.Minute+time.Second/2)

			w.set(time.Time{})
			start = time.Now()
			time.AfterFunc(time.Hour, func() { w.set(time.Unix(1, 0)) })
			late("no deadline until one that is past", start, time.Hour)
			w.set(time.Time{})
		}

		socket.SetWriteDeadline(time.Unix(1, 0))
		if _, err := socket.WriteTo([]byte("x"), socket.LocalAddr()); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("writeTo: got %v", err)
		}
	})
}

func TestAWriteThatMeetsItsDeadlineSaysHowFarItCame(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
		c, _ := pair(t, here, far)
		c.SetWriteDeadline(time.Now().Add(time.Second))
		if n, err := c.Write(pattern(Window + 1)); n != Window || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("got %d, %v; want %d", n, err, Window)
		}
	})
}

func TestCloseWakesReadersAndWriters(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
		c, _ := pair(t, here, far)
		var wg sync.WaitGroup
		for _, wait := range []func() error{
			func() error { _, err := c.Read(make([]byte, 1)); return err },
			func() error { _, err := c.Write(pattern(2 * Window)); return err },
			func() error { _, err := c.Write(pattern(1)); return err }, // waits for its turn
		} {
			wg.Go(func() {
				if err := wait(); !errors.Is(err, net.ErrClosed) {
					t.Errorf("got %v", err)
				}
			})
			synctest.Wait()
		}
		c.Close()
		wg.Wait()
	})
}

func TestNothingIsKeptOfStreamsThatEnded(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, here, far, _ *Host) {
		l := listen(t, far, ":80")
		go func() {
			for {
				s, err := l.Accept()
				if err != nil {
					return
				}
				io.Copy(io.Discard, s)
				s.Close()
			}
		}()
		for range 100 {
			c := dial(t, here, "tcp", "192.0.2.2:80")
			write(t, c, "x")
			c.Close()
		}
		here.Dial(t.Context(), "tcp", "192.0.2.2:81") // refused
		in.CutOneWay("tokyo", "seoul")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		here.Dial(ctx, "tcp", "192.0.2.2:80") // given up when half open
		time.Sleep(time.Second)
		in.mu.Lock()
		defer in.mu.Unlock()
		if a, b, ports := len(here.streams), len(far.streams), len(here.dialled); a+b+ports != 0 {
			t.Fatalf("%d and %d streams and %d ports are kept", a, b, ports)
		}
	})
}

// The conformance test of net.Conn runs in real time: it starts subtests, which a bubble forbids.
func TestAStreamIsAConn(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		in := New(1)
		here, far := in.Host("seoul", seoul, seoulAddr), in.Host("tokyo", tokyo, tokyoAddr)
		in.Link("seoul", "tokyo", Path{Delay: 1})
		c1, c2 = pair(t, here, far)
		return c1, c2, in.Close, nil
	})
}

func BenchmarkStream(b *testing.B) {
	in := New(1)
	defer in.Close()
	here, far := in.Host("seoul", seoul, seoulAddr), in.Host("tokyo", tokyo, tokyoAddr)
	in.Link("seoul", "tokyo", Path{Delay: 1})
	l, err := far.Listen("tcp", ":80")
	if err != nil {
		b.Fatal(err)
	}
	go func() {
		s, err := l.Accept()
		if err != nil {
			return
		}
		io.Copy(io.Discard, s)
	}()
	c, err := here.Dial(b.Context(), "tcp", "192.0.2.2:80")
	if err != nil {
		b.Fatal(err)
	}
	chunk := make([]byte, Chunk)
	b.SetBytes(Chunk)
	b.ReportAllocs()
	for b.Loop() {
		c.Write(chunk)
	}
}
