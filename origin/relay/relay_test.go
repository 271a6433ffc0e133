package relay

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/testbed/memnet"
)

const testIdle = 80 * time.Second

// tcpConn is what both memnet's streams and *net.TCPConn can do.
type tcpConn interface {
	net.Conn
	CloseWrite() error
	SetLinger(int) error
}

// relayed runs a test in virtual time with a client and a server that speak through a relay between them, a round trip
// of 20 ms from each; result waits for the relay to have ended.
func relayed(t *testing.T, test func(t *testing.T, client, server tcpConn, result func() Result)) {
	t.Helper()
	relayedFlow(t, func(t *testing.T, client, server tcpConn, result func() Result, _ *Flow) {
		test(t, client, server, result)
	})
}

func relayedFlow(t *testing.T, test func(t *testing.T, client, server tcpConn, result func() Result, f *Flow)) {
	t.Helper()
	relayedOver(t, func(c tcpConn) net.Conn { return c }, nil, test)
}

// relayedOver is relayedFlow with the relay's ends as they are made of its conns, and who is told of panics.
func relayedOver(t *testing.T, end func(c tcpConn) net.Conn, panicked func(any), test func(t *testing.T, client, server tcpConn, result func() Result, f *Flow)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		in := memnet.New(1)
		defer in.Close()
		hosts := map[string]*memnet.Host{}
		for i, name := range []string{"client", "relay", "server"} {
			hosts[name] = in.Host(name, spec.Location{}, netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}))
		}
		in.Link("client", "relay", memnet.Path{Delay: 10 * time.Millisecond})
		in.Link("relay", "server", memnet.Path{Delay: 10 * time.Millisecond})

		connect := func(from, to string) (dialled, accepted tcpConn) {
			l, err := hosts[to].Listen("tcp", ":80")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			c, err := hosts[from].Dial(t.Context(), "tcp", net.JoinHostPort(hosts[to].Addr().String(), "80"))
			if err != nil {
				t.Fatal(err)
			}
			a, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			return c.(tcpConn), a.(tcpConn)
		}
		client, a := connect("client", "relay")
		b, server := connect("relay", "server")
		defer client.Close()
		defer server.Close()
		done := make(chan Result, 1)
		f := New(end(a), end(b), testIdle)
		f.Panicked = panicked
		f.Start(func(r Result) { done <- r })
		result := sync.OnceValue(func() Result { return <-done })
		defer result()
		test(t, client, server, result, f)
		client.Close()
		server.Close()
	})
}

func write(t *testing.T, c io.Writer, text string) {
	t.Helper()
	if n, err := io.WriteString(c, text); n != len(text) || err != nil {
		t.Fatalf("wrote %d of %d bytes: %v", n, len(text), err)
	}
}

func readAll(t *testing.T, c io.Reader, want string) {
	t.Helper()
	if got, err := io.ReadAll(c); string(got) != want || err != nil {
		t.Fatalf("read %d bytes %.40q, %v; want %d bytes and the end", len(got), got, err, len(want))
	}
}

func reset(c tcpConn) {
	c.SetLinger(0)
	c.Close()
}

func TestTheEndOfADirectionTravelsAndLeavesTheOtherOpen(t *testing.T) {
	relayed(t, func(t *testing.T, client, server tcpConn, result func() Result) {
		question, answer := strings.Repeat("q", 100_000), strings.Repeat("a", 300_000)
		write(t, client, question)
		client.CloseWrite()
		readAll(t, server, question)
		time.Sleep(testIdle / 2)
		go func() {
			io.WriteString(server, answer)
			server.CloseWrite()
		}()
		readAll(t, client, answer)
		if r := result(); r.AToB != int64(len(question)) || r.BToA != int64(len(answer)) || r.Err != nil {
			t.Errorf("got %+v", r)
		}
	})
}

func TestAServerMaySpeakFirstAndEndFirst(t *testing.T) {
	relayed(t, func(t *testing.T, client, server tcpConn, result func() Result) {
		write(t, server, "220 ready\r\n")
		server.CloseWrite()
		readAll(t, client, "220 ready\r\n")
		write(t, client, "QUIT\r\n")
		client.CloseWrite()
		readAll(t, server, "QUIT\r\n")
		if r := result(); r.Err != nil {
			t.Errorf("got %+v", r)
		}
	})
}

func TestAResetTravels(t *testing.T) {
	for name, half := range map[string]bool{"before any end": false, "after the other direction has ended": true} {
		for _, fromClient := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, from the client %v", name, fromClient), func(t *testing.T) {
				relayed(t, func(t *testing.T, client, server tcpConn, result func() Result) {
					broken, other := client, server
					if !fromClient {
						broken, other = server, client
					}
					write(t, broken, "half an ans")
					if half {
						other.CloseWrite()
					}
					time.Sleep(time.Second)
					reset(broken)
					if _, err := io.ReadAll(other); !errors.Is(err, syscall.ECONNRESET) {
						t.Errorf("the other end read %v", err)
					}
					if r := result(); !errors.Is(r.Err, syscall.ECONNRESET) {
						t.Errorf("got %+v", r)
					}
				})
			})
		}
	}
}

func TestAFlowIsSilentNoLongerThanItsIdleTime(t *testing.T) {
	t.Run("silence", func(t *testing.T) {
		relayed(t, func(t *testing.T, client, server tcpConn, result func() Result) {
			write(t, client, "hello")
			begun := time.Now()
			for _, c := range []net.Conn{client, server} {
				if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("an end read %v", err)
				}
			}
			if took := time.Since(begun); took < testIdle || took > testIdle*9/8+time.Second {
				t.Errorf("it took %v", took)
			}
			if r := result(); r.Err != ErrIdle || r.AToB != 5 {
				t.Errorf("got %+v", r)
			}
		})
	})
	t.Run("a byte in either direction keeps it alive", func(t *testing.T) {
		relayed(t, func(t *testing.T, client, server tcpConn, result func() Result) {
			for i := range 20 {
				from, to := client, server
				if i > 10 {
					from, to = server, client
				}
				write(t, from, "x")
				if _, err := io.ReadFull(to, make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(testIdle * 7 / 8)
			}
			client.CloseWrite()
			server.CloseWrite()
			if r := result(); r.Err != nil {
				t.Errorf("got %+v", r)
			}
		})
	})
	t.Run("nor does an end that takes nothing keep it", func(t *testing.T) {
		relayed(t, func(t *testing.T, client, server tcpConn, result func() Result) {
			server.CloseWrite()
			if _, err := client.Write(make([]byte, 10<<20)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the client wrote %v", err)
			}
			if r := result(); r.Err != ErrIdle {
				t.Errorf("got %+v", r)
			}
		})
	})
	t.Run("an end that takes little is not silent", func(t *testing.T) {
		relayed(t, func(t *testing.T, client, server tcpConn, result func() Result) {
			const size = 4 << 20
			go func() {
				client.Write(make([]byte, size))
				client.CloseWrite()
			}()
			server.CloseWrite()
			buf, got := make([]byte, 200_000), 0
			for {
				n, err := io.ReadFull(server, buf)
				got += n
				if err != nil {
					break
				}
				time.Sleep(testIdle / 2)
			}
			if r := result(); got != size || r.Err != nil {
				t.Errorf("%d bytes came, %+v", got, r)
			}
		})
	})
}

func TestAFlowThatIsBrokenOffIsResetAtBothEndsAndSaysWhatItMoved(t *testing.T) {
	relayedFlow(t, func(t *testing.T, client, server tcpConn, result func() Result, f *Flow) {
		write(t, client, "hello")
		write(t, server, "you")
		time.Sleep(time.Second)
		if in, out := f.Moved(); in != 5 || out != 3 {
			t.Errorf("moved %d and %d", in, out)
		}
		why := errors.New("why")
		f.Break(why)
		f.Break(errors.New("another"))
		for _, c := range []net.Conn{client, server} {
			if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("an end read %v", err)
			}
		}
		if r := result(); r.Err != why || r.AToB != 5 || r.BToA != 3 {
			t.Errorf("got %+v", r)
		}
		f.Break(errors.New("too late"))
	})
}

func TestAnIdleTimeOfNothingIsForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, client := net.Pipe()
		b, server := net.Pipe()
		done := make(chan Result, 1)
		go func() { done <- Pipe(a, b, 0) }()
		time.Sleep(24 * time.Hour)
		go client.Write([]byte("x"))
		if _, err := io.ReadFull(server, make([]byte, 1)); err != nil {
			t.Error(err)
		}
		client.Close()
		server.Close()
		<-done
	})
}

func TestAConnWithoutHalvesEndsWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, client := net.Pipe()
		b, server := net.Pipe()
		done := make(chan Result, 1)
		go func() { done <- Pipe(a, b, time.Minute) }()
		go func() {
			io.WriteString(client, "bye")
			client.Close()
		}()
		readAll(t, server, "bye")
		if _, err := server.Write([]byte("x")); err == nil {
			t.Error("the other end can still write")
		}
		if r := <-done; r.AToB != 3 {
			t.Errorf("got %+v", r)
		}
	})
}

// script is what one end does with what it has to say.
type script struct {
	Chunks []int           // bytes written at once
	Pauses []time.Duration // before each
	Reads  int             // bytes at once; 0: it never reads
	Ends   string          // "end", "reset", or "stay" and wait for the other
}

func anyScript(t *rapid.T, name string) script {
	s := script{
		Chunks: rapid.SliceOfN(rapid.IntRange(1, 80_000), 0, 6).Draw(t, name+" chunks"),
		Reads:  rapid.SampledFrom([]int{0, 3000, 100_000}).Draw(t, name+" reads"),
		Ends:   rapid.SampledFrom([]string{"end", "end", "end", "reset", "stay"}).Draw(t, name+" ends"),
	}
	for range s.Chunks {
		s.Pauses = append(s.Pauses, time.Duration(rapid.IntRange(0, 100).Draw(t, name+" pause"))*time.Millisecond)
	}
	return s
}

// end is what came of a script.
type end struct {
	sent, got []byte
	ended     bool  // all was sent, and then the end
	read      error // what ended the reading
}

func (s script) play(c tcpConn, seed uint64) end {
	var e end
	random := rand.NewChaCha8([32]byte{byte(seed)})
	var wg sync.WaitGroup
	if s.Reads > 0 {
		wg.Go(func() {
			buf := make([]byte, s.Reads)
			for e.read == nil {
				var n int
				n, e.read = c.Read(buf)
				e.got = append(e.got, buf[:n]...)
			}
		})
	}
	wg.Go(func() {
		for i, n := range s.Chunks {
			time.Sleep(s.Pauses[i])
			chunk := make([]byte, n)
			random.Read(chunk)
			w, err := c.Write(chunk)
			e.sent = append(e.sent, chunk[:w]...)
			if err != nil {
				return
			}
		}
		switch s.Ends {
		case "end":
			e.ended = c.CloseWrite() == nil
		case "reset":
			reset(c)
		}
	})
	wg.Wait()
	return e
}

func TestAFlowIsToldOnceWhenBothEndsAreClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, breaks := range []bool{false, true} {
			client, a := net.Pipe()
			server, b := net.Pipe()
			f := New(a, b, time.Minute)
			told, last := 0, 0
			f.Last = func() { last++ }
			f.Start(func(Result) {
				told++
				if _, err := a.Write([]byte("x")); err != io.ErrClosedPipe {
					t.Errorf("breaks %v: an end is open still: %v", breaks, err)
				}
			})
			synctest.Wait()
			if told != 0 {
				t.Errorf("breaks %v: told before its end", breaks)
			}
			if breaks {
				f.Break(ErrIdle)
			}
			client.Close()
			server.Close()
			synctest.Wait()
			f.Break(ErrIdle)
			if told != 1 || last != 1 {
				t.Errorf("breaks %v: told %d times, looked at %d times", breaks, told, last)
			}
		}
	})
}

// TestEveryByteArrivesOnceAndInOrderOrTheEndIsAnError is the promise of the package: who reads an end has all.
func TestEveryByteArrivesOnceAndInOrderOrTheEndIsAnError(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		scripts := [2]script{anyScript(rt, "client"), anyScript(rt, "server")}
		var ends [2]end
		var r Result
		relayed(t, func(t *testing.T, client, server tcpConn, result func() Result) {
			var wg sync.WaitGroup
			wg.Go(func() { ends[0] = scripts[0].play(client, 1) })
			wg.Go(func() { ends[1] = scripts[1].play(server, 2) })
			wg.Wait()
			client.Close()
			server.Close()
			r = result()
		})
		quiet := true // nothing happened but orderly ends
		for i, s := range scripts {
			quiet = quiet && s.Ends == "end" && s.Reads > 0
			got, sent, name := ends[i], ends[1-i], []string{"client", "server"}[i]
			if !bytes.HasPrefix(sent.sent, got.got) {
				rt.Fatalf("the %s read %d bytes that are not those sent (%d)", name, len(got.got), len(sent.sent))
			}
			if got.read == io.EOF && (!sent.ended || len(got.got) != len(sent.sent)) {
				rt.Fatalf("the %s read an end after %d bytes of %d", name, len(got.got), len(sent.sent))
			}
		}
		if quiet {
			for i := range ends {
				if ends[i].read != io.EOF {
					rt.Fatalf("end %d read %v", i, ends[i].read)
				}
			}
			if r.Err != nil || r.AToB != int64(len(ends[0].sent)) || r.BToA != int64(len(ends[1].sent)) {
				rt.Fatalf("got %+v of %d and %d bytes", r, len(ends[0].sent), len(ends[1].sent))
			}
		}
	})
}

func TestTheEndThatBrokeIsKnown(t *testing.T) {
	for _, c := range []struct {
		name  string
		doing func(client, server tcpConn)
		want  End
	}{
		{"the client", func(client, _ tcpConn) { Abort(client) }, A},
		{"the server", func(_, server tcpConn) { Abort(server) }, B},
		{"the client after it was sent something", func(client, server tcpConn) {
			io.WriteString(server, "x")
			io.ReadFull(client, make([]byte, 1))
			Abort(client)
		}, A},
		{"nobody", func(client, server tcpConn) { client.CloseWrite(); server.CloseWrite() }, Unknown},
		{"nobody, they are silent", func(client, server tcpConn) { time.Sleep(2 * testIdle) }, Unknown},
	} {
		relayed(t, func(t *testing.T, client, server tcpConn, result func() Result) {
			time.Sleep(time.Second)
			c.doing(client, server)
			if r := result(); r.Broke != c.want {
				t.Errorf("%s: %v broke, with %v", c.name, r.Broke, r.Err)
			}
		})
	}
}

// What panics while a flow is carried breaks off that flow alone, and who began it hears of its end.
func TestAPanicBreaksItsFlowAlone(t *testing.T) {
	for _, where := range []string{"reading", "looking", "last", "ended"} {
		t.Run(where, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, client := net.Pipe()
				b, target := net.Pipe()
				panicked, done := 0, make(chan Result, 1)
				var near net.Conn = a
				if where == "reading" {
					near = faulty{a}
				}
				f := New(near, b, time.Minute)
				f.Panicked = func(any) { panicked++ }
				if where == "looking" || where == "last" {
					f.Last = func() { panic("a fault") }
				}
				f.Start(func(r Result) {
					done <- r
					if where == "ended" {
						panic("a fault")
					}
				})
				if where == "looking" {
					time.Sleep(2 * time.Minute)
				} else {
					client.Close()
				}
				io.Copy(io.Discard, target) // to its end
				target.Close()
				client.Close()
				r := <-done
				synctest.Wait()
				if where != "ended" && r.Err == nil || where == "reading" && r.Err != ErrPanicked || panicked == 0 {
					t.Errorf("ended with %v, %d panics", r.Err, panicked)
				}
			})
		})
	}
}

type faulty struct{ net.Conn }

func (faulty) Read([]byte) (int, error) { panic("a fault") }
