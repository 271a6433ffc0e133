package relay

import (
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// overTCP is a client and a server on the loopback, in real time, and the relay's two ends between them.
func overTCP(t testing.TB) (client, a, b, server *net.TCPConn) {
	t.Helper()
	connect := func() (*net.TCPConn, *net.TCPConn) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			c.Close()
			s.Close()
		})
		return c.(*net.TCPConn), s.(*net.TCPConn)
	}
	client, a = connect()
	b, server = connect()
	return client, a, b, server
}

func TestTheKernelCarriesBothHalves(t *testing.T) {
	client, a, b, server := overTCP(t)
	carriesBothHalves(t, client, a, b, server)
}

// carriesBothHalves has a relay between a and b carry a question whole, and then the answer.
func carriesBothHalves(t *testing.T, client *net.TCPConn, a, b net.Conn, server *net.TCPConn) {
	t.Helper()
	done := make(chan Result, 1)
	New(a, b, time.Minute).Start(func(r Result) { done <- r })
	question, answer := strings.Repeat("question", 300_000), strings.Repeat("answer", 500_000)
	go func() {
		io.WriteString(client, question)
		client.CloseWrite()
	}()
	readAll(t, server, question)
	go func() {
		io.WriteString(server, answer)
		server.CloseWrite()
	}()
	readAll(t, client, answer)
	if r := <-done; r.AToB != int64(len(question)) || r.BToA != int64(len(answer)) || r.Err != nil {
		t.Errorf("got %+v", r)
	}
}

func TestTheKernelCarriesAReset(t *testing.T) {
	client, a, b, server := overTCP(t)
	done := make(chan Result, 1)
	go func() { done <- Pipe(a, b, time.Minute) }()
	write(t, server, "half an ans")
	if _, err := io.ReadFull(client, make([]byte, 11)); err != nil {
		t.Fatal(err)
	}
	reset(server)
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client read %v", err)
	}
	if r := <-done; !errors.Is(r.Err, syscall.ECONNRESET) || r.BToA != 11 {
		t.Errorf("got %+v", r)
	}
}

func TestASilentFlowInTheKernelIsBrokenOff(t *testing.T) {
	client, a, b, server := overTCP(t)
	done := make(chan Result, 1)
	go func() { done <- Pipe(a, b, 20*time.Millisecond) }()
	for _, c := range []net.Conn{client, server} {
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("an end read %v", err)
		}
	}
	if r := <-done; r.Err != ErrIdle {
		t.Errorf("got %+v", r)
	}
}

func TestTheKernelTellsWhatItMoves(t *testing.T) {
	if runtime.GOOS != "linux" {
		if _, a, b, _ := overTCP(t); spliced(a, b) {
			t.Fatal("there is no splice here")
		}
		return
	}
	client, a, b, server := overTCP(t)
	progress := New(a, b, 0).progress
	for range 3 {
		before := progress()
		write(t, client, "x")
		if _, err := io.ReadFull(a, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if progress() == before {
			t.Error("a received byte is no progress")
		}
		before = progress()
		write(t, server, "x")
		if _, err := io.ReadFull(b, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if progress() == before {
			t.Error("a received byte is no progress")
		}
	}
	if wrapped := (struct{ net.Conn }{a}); spliced(wrapped, b) || spliced(b, wrapped) {
		t.Error("a wrapped conn is not spliced")
	}
	a.Close()
	progress() // of a closed socket, harmless
}

func BenchmarkPipe(b *testing.B) {
	for name, wrap := range map[string]func(net.Conn) net.Conn{
		"spliced":  func(c net.Conn) net.Conn { return c },
		"buffered": func(c net.Conn) net.Conn { return struct{ net.Conn }{c} },
	} {
		b.Run(name, func(b *testing.B) {
			client, x, y, server := overTCP(b)
			done := make(chan Result, 1)
			go func() { done <- Pipe(wrap(x), wrap(y), time.Minute) }()
			go io.Copy(io.Discard, server)
			buf := make([]byte, 256<<10)
			b.SetBytes(int64(len(buf)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := client.Write(buf); err != nil {
					b.Fatal(err)
				}
			}
			client.Close()
			server.Close()
			<-done
		})
	}
}

// BenchmarkFlow is the cost of a flow's life, but for its sockets.
func BenchmarkFlow(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		a, client := net.Pipe()
		c, server := net.Pipe()
		done := make(chan Result, 1)
		go func() { done <- Pipe(a, c, time.Minute) }()
		client.Close()
		server.Close()
		<-done
	}
}

func TestTheEndThatBrokeBeforeAByteIsKnownFromTheKernelToo(t *testing.T) {
	for _, want := range []End{A, B} {
		client, a, b, server := overTCP(t)
		done := make(chan Result, 1)
		go func() { done <- Pipe(a, b, time.Minute) }()
		if want == A {
			Abort(client)
		} else {
			Abort(server)
		}
		if r := <-done; r.Broke != want || r.Err == nil {
			t.Errorf("%v broke, with %v; want %v", r.Broke, r.Err, want)
		}
	}
}
