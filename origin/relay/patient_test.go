package relay

import (
	"bufio"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// peeking is a TCP connection that the kernel does not splice, and of which is heard that bytes have come.
type peeking struct {
	*net.TCPConn
	in *bufio.Reader
}

func newPeeking(c *net.TCPConn) *peeking { return &peeking{c, bufio.NewReaderSize(c, 16)} }

func (p *peeking) Read(b []byte) (int, error) { return p.in.Read(b) }

func (p *peeking) Peek(b []byte) (int, error) {
	got, err := p.in.Peek(len(b))
	return copy(b, got), err
}

func TestWhatIsReadPatientlyIsCarriedAsAllElse(t *testing.T) {
	t.Run("to the ends", func(t *testing.T) {
		client, a, b, server := overTCP(t)
		carriesBothHalves(t, client, a, newPeeking(b), server)
	})
	for name, broke := range map[End]string{A: "the client resets", B: "the server resets"} {
		t.Run(broke, func(t *testing.T) {
			client, a, b, server := overTCP(t)
			done := make(chan Result, 1)
			go func() { done <- Pipe(a, newPeeking(b), time.Minute) }()
			write(t, client, "half a question")
			if _, err := io.ReadFull(server, make([]byte, 15)); err != nil {
				t.Fatal(err)
			}
			who, other := client, server
			if name == B {
				who, other = server, client
			}
			reset(who)
			if _, err := other.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the other end read %v", err)
			}
			if r := <-done; !errors.Is(r.Err, syscall.ECONNRESET) || r.Broke != name || r.AToB != 15 {
				t.Errorf("got %+v", r)
			}
		})
	}
	t.Run("silence", func(t *testing.T) {
		_, a, b, _ := overTCP(t)
		if r := Pipe(a, newPeeking(b), 20*time.Millisecond); r.Err != ErrIdle {
			t.Errorf("got %+v", r)
		}
	})
}

// lending is a conn that lends what is to be written to it.
type lending struct {
	*peeking
	out     int  // that were lent and did not come back
	full    bool // the last one came back so
	awaited bool // … and has been waited for since
	waits   int
	wrong   int // times that something was lent without a wait before, though more was to be expected, or with one
}

func (l *lending) Lend() (any, []byte) {
	l.out++
	if l.awaited != l.full {
		l.wrong++
	}
	l.awaited = false
	room := make([]byte, 5000)
	return room, room
}

func (l *lending) AwaitTurn() {
	l.awaited = true
	l.waits++
}

func (l *lending) WriteLent(lent any, n int) (int, error) {
	l.out--
	l.full = n == len(lent.([]byte))
	if n == 0 {
		return 0, nil
	}
	return l.peeking.Write(lent.([]byte)[:n])
}

func TestWhatIsLentComesBack(t *testing.T) {
	client, a, b, server := overTCP(t)
	lends := &lending{peeking: newPeeking(b)}
	carriesBothHalves(t, client, a, lends, server)
	if lends.out != 0 {
		t.Errorf("%d are missing", lends.out)
	}
	if lends.waits == 0 || lends.wrong > 0 {
		t.Errorf("it was waited for %d times, and %d times not as it should", lends.waits, lends.wrong)
	}
	client, a, b, _ = overTCP(t)
	lends = &lending{peeking: newPeeking(b)}
	done := make(chan Result, 1)
	go func() { done <- Pipe(a, lends, time.Minute) }()
	reset(client)
	if r := <-done; !errors.Is(r.Err, syscall.ECONNRESET) || r.Broke != A || lends.out != 0 {
		t.Errorf("got %+v, and %d are missing", r, lends.out)
	}
}

func TestAFlowThatIsSilentHoldsNoBuffer(t *testing.T) {
	const flows, most = 50, 8 << 10 // bytes of a flow, without stacks
	var before, after runtime.MemStats
	heap := func(m *runtime.MemStats) {
		runtime.GC()
		runtime.GC() // the pool gives back what it kept at the first
		runtime.ReadMemStats(m)
	}
	type ends struct{ client, a, b, server *net.TCPConn }
	var all []ends
	for range flows {
		client, a, b, server := overTCP(t)
		all = append(all, ends{client, a, b, server})
	}
	heap(&before)
	var done sync.WaitGroup
	text := strings.Repeat("x", 20_000)
	for _, e := range all {
		done.Go(func() { Pipe(e.a, newPeeking(e.b), time.Minute) })
		write(t, e.client, text)
		if _, err := io.ReadFull(e.server, make([]byte, len(text))); err != nil {
			t.Fatal(err)
		}
		write(t, e.server, text)
		if _, err := io.ReadFull(e.client, make([]byte, len(text))); err != nil {
			t.Fatal(err)
		}
	}
	heap(&after)
	if took := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / flows; took > most {
		t.Errorf("a silent flow takes %d bytes", took)
	}
	for _, e := range all {
		e.client.Close()
		e.server.Close()
	}
	done.Wait()
}
