package backbone

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"runtime/pprof"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/origin/relay"
)

// readsByAwait has an end be read by one who waits for each piece with Await, as a relay does at rest, and returns all that came.
func readsByAwait(c *lastingConn) func() (string, error) {
	type read struct {
		text string
		err  error
	}
	done := make(chan read, 1)
	go func() {
		var all []byte
		var b [64]byte
		for {
			c.Await()
			n, err := c.Read(b[:])
			if all = append(all, b[:n]...); err != nil {
				done <- read{string(all), err}
				return
			}
		}
	}()
	return func() (string, error) {
		r := <-done
		return r.text, r.err
	}
}

// One direction may be silent beside the other, of which it hears what has arrived.
func TestAcknowledgementsWakeNobodyWhoWaits(t *testing.T) {
	byEach(t, func(w *flowWorld) {
		near, far := w.flow("iad", "iad")
		go io.Copy(io.Discard, far)
		woke := make(chan struct{})
		go func() {
			near.Await()
			close(woke)
		}()
		for _, size := range []int{100, 10_000, 500_000} {
			near.Write(make([]byte, size))
			time.Sleep(time.Second)
			near.mu.Lock()
			if kept := near.out.Kept(); kept > 0 {
				w.Errorf("of %d bytes %d are kept", size, kept)
			}
			near.mu.Unlock()
		}
		select {
		case <-woke:
			w.Fatal("there is something to be read")
		default:
		}
		io.WriteString(far, "x")
		<-woke
		if n, err := near.Read(make([]byte, 2)); n != 1 || err != nil {
			w.Errorf("%d bytes were read: %v", n, err)
		}
		near.Abort()
		far.Abort()
		w.settled()
	})
}

func TestWhoWaitsForAFlowHearsWhatBecomesOfIt(t *testing.T) {
	cases := map[string]struct {
		happens func(w *flowWorld, near, far *lastingConn)
		text    string
		err     error
	}{
		"bytes come, and the end": {func(w *flowWorld, near, far *lastingConn) {
			near.Write([]byte("he"))
			time.Sleep(5 * time.Second)
			near.Write([]byte("llo"))
			time.Sleep(5 * time.Second)
			near.CloseWrite()
		}, "hello", io.EOF},
		"the way is lost, and there is another": {func(w *flowWorld, near, far *lastingConn) {
			for range 3 {
				w.kill("icn", near.Way())
				time.Sleep(5 * time.Second)
				near.Write([]byte("x"))
				time.Sleep(5 * time.Second)
			}
			if near.Moves() == 0 {
				w.Error("the way was not lost")
			}
			near.CloseWrite()
		}, "xxx", io.EOF},
		"the way is lost for good": {func(w *flowWorld, near, far *lastingConn) {
			w.in.CutOff("iad")
			time.Sleep(2 * meetTime)
			w.in.Rejoin("iad")
			w.until(w.icn, "iad", true)
		}, "", ErrParted},
		"the other end resets it": {func(w *flowWorld, near, far *lastingConn) { near.Abort() }, "", ErrReset},
		"its user resets it":      {func(w *flowWorld, near, far *lastingConn) { far.Abort() }, "", net.ErrClosed},
		"its user closes it":      {func(w *flowWorld, near, far *lastingConn) { far.CloseWrite(); far.Close() }, "", net.ErrClosed},
		"its deadline passes": {func(w *flowWorld, near, far *lastingConn) {
			far.SetReadDeadline(time.Now().Add(time.Second))
		}, "", os.ErrDeadlineExceeded},
	}
	byEach(t, func(w *flowWorld) {
		for name, one := range cases {
			near, far := w.flow("iad", "iad", "fra")
			got := readsByAwait(far)
			time.Sleep(5 * time.Second)
			one.happens(w, near, far)
			if text, err := got(); text != one.text || !errors.Is(err, one.err) {
				w.Errorf("%s: %q came, and %v", name, text, err)
			}
			near.Abort()
			far.Abort()
		}
		w.settled()
	})
}

// peekedPipe is a conn of which is heard that bytes have come.
type peekedPipe struct {
	net.Conn
	in *bufio.Reader
}

func (p *peekedPipe) Read(b []byte) (int, error) { return p.in.Read(b) }

func (p *peekedPipe) Peek(b []byte) (int, error) {
	got, err := p.in.Peek(len(b))
	return copy(b, got), err
}

// pipedOver carries a flow between two pipes, one at either node, over a way, and says something each way; ended is told when either node is done with it.
func (w *flowWorld) pipedOver(way string, ended func(relay.Result)) (a, b net.Conn) {
	near, far := w.flow(way, way)
	ends := [2]net.Conn{}
	for i, c := range []*lastingConn{near, far} {
		mine, theirs := net.Pipe()
		relay.New(&peekedPipe{theirs, bufio.NewReaderSize(theirs, 16)}, c, time.Hour).Start(ended)
		ends[i] = mine
	}
	for i, c := range ends {
		c.Write([]byte("word"))
		var word [4]byte
		if _, err := io.ReadFull(ends[1-i], word[:]); err != nil {
			w.Error(err)
		}
	}
	return ends[0], ends[1]
}

func TestAFlowThatIsSilentHoldsLittleAtItsNodes(t *testing.T) {
	// Measured: 22 KB, and 30 with the race detector; without rest 8 more. What stands for its sockets takes 7 of it, with goroutines that wait for them: of sockets the system
	// tells. Twice that is allowed, for a new goroutine has a stack as large as the last collection found them to be on average.
	const flows, most = 200, 44 << 10 // bytes of a flow at both nodes
	newWarmFlowWorld(t, 1, false, func(w *flowWorld) {
		var stats runtime.MemStats
		measure := func() int64 {
			synctest.Wait()
			runtime.GC()
			runtime.GC() // pools give back what they kept at the first
			runtime.ReadMemStats(&stats)
			return int64(stats.HeapAlloc + stats.StackInuse)
		}
		before := measure()
		var outer []net.Conn
		ended := make(chan relay.Result, 2*flows)
		for range flows { // one after the other, so that most are at rest before the last is opened
			a, b := w.pipedOver("iad", func(r relay.Result) { ended <- r })
			outer = append(outer, a, b)
		}
		time.Sleep(5 * time.Second)
		took := (measure() - before) / flows
		var stacks bytes.Buffer
		pprof.Lookup("goroutine").WriteTo(&stacks, 2)
		if n := strings.Count(stacks.String(), "relay.copyPatiently("); n > 0 {
			t.Errorf("%d directions do not rest", n)
		}
		if n := strings.Count(stacks.String(), "relay.(*Flow).await("); n != 4*flows {
			t.Errorf("%d directions are waited for, want %d", n, 4*flows)
		}
		t.Logf("a silent flow takes %d bytes", took)
		if took > most {
			t.Errorf("a silent flow takes %d bytes", took)
		}
		for _, c := range outer {
			c.Close()
		}
		for range 2 * flows {
			<-ended
		}
		w.settled()
	})
}
