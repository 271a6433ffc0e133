//go:build linux && (amd64 || arm64)

package loop

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/perigee-net/perigee/origin/relay"
)

// desk is loops that carry what comes to an address to a target, as nobody's choice.
type desk struct {
	t        *testing.T
	group    *Group
	on       *Group // nil: one of its own
	listener *Listener
	address  string
	target   net.Listener
	within   time.Duration
	first    []byte
	idle     time.Duration
	before   func(*Flow)       // before it is started
	refused  chan error        // why a target did not take a flow
	started  chan *Flow        // those that were
	ended    chan relay.Result // what became of them
	close    func()            // of the listener; it waits
	panics   chan any
}

func newDesk(t *testing.T, change func(*desk)) *desk {
	d := &desk{t: t, within: time.Minute, refused: make(chan error, 100), started: make(chan *Flow, 1000), ended: make(chan relay.Result, 1000)}
	d.target = listen(t)
	if change != nil {
		change(d)
	}
	d.panics = make(chan any, 100)
	if d.group = d.on; d.group == nil {
		d.group = New(Config{Loops: 2, Panicked: func(v any) { d.panics <- v }})
	}
	l := listen(t)
	d.address = l.Addr().String()
	s, ok := d.group.Listen(l, d.accepted, func(err error) { t.Error(err) })
	if !ok {
		t.Fatal("nothing is accepted")
	}
	d.listener = s
	done := make(chan struct{})
	d.close = func() {
		s.Close(func() { close(done) })
		l.Close()
		<-done
		d.close = func() {}
	}
	t.Cleanup(func() {
		d.close()
		d.group.Close()
	})
	return d
}

func listen(t *testing.T) net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// deaf is an address at which nobody listens, and nobody else will: it is taken.
func deaf(t *testing.T) net.Listener {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	at, err := localOf(fd)
	if err != nil {
		t.Fatal(err)
	}
	return bound{at: net.TCPAddrFromAddrPort(at)}
}

type bound struct {
	net.Listener
	at net.Addr
}

func (b bound) Addr() net.Addr { return b.at }

func (d *desk) accepted(c *Conn) {
	c.Connect(relay.AddrPort(d.target.Addr()), d.within, d.first, func(far *Conn, err error) {
		if err != nil {
			d.refused <- err
			c.Abort()
			return
		}
		f := Carry(c, far, d.idle)
		if d.before != nil {
			d.before(f)
		}
		f.Start(func(r relay.Result) { d.ended <- r })
		d.started <- f
	})
}

// flow is a new flow: its two ends.
func (d *desk) flow() (client, target *net.TCPConn) {
	c, err := net.Dial("tcp", d.address)
	if err != nil {
		d.t.Fatal(err)
	}
	t, err := d.target.Accept()
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { c.Close(); t.Close() })
	return c.(*net.TCPConn), t.(*net.TCPConn)
}

func (d *desk) became(want relay.Result) {
	d.t.Helper()
	got := <-d.ended
	if got.AToB != want.AToB || got.BToA != want.BToA || !errors.Is(got.Err, want.Err) || want.Broke != relay.Unknown && got.Broke != want.Broke {
		d.t.Errorf("it became %+v, want %+v", got, want)
	}
}

// sends writes to one end, and reads from the other.
func sends(t *testing.T, from, to net.Conn, b []byte) {
	t.Helper()
	sent := make(chan error, 1)
	go func() {
		_, err := from.Write(b)
		sent <- err
	}()
	got := make([]byte, len(b))
	if _, err := io.ReadFull(to, got); err != nil || !bytes.Equal(got, b) {
		t.Errorf("other bytes came: %v", err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

// moved waits until so many bytes are said to have moved: that is after they were sent, or have arrived.
func moved(f *Flow, in, out int64) {
	for {
		if gotIn, gotOut := f.Moved(); gotIn == in && gotOut == out {
			return
		}
		runtime.Gosched()
	}
}

func wantEnd(t *testing.T, c net.Conn, want error) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n > 0 || !errors.Is(err, want) {
		t.Errorf("%d bytes came, %v; want %v", n, err, want)
	}
}

func TestAFlowIsCarriedBothWaysToItsEnd(t *testing.T) {
	d := newDesk(t, nil)
	client, target := d.flow()
	sends(t, client, target, []byte("a question"))
	sends(t, target, client, []byte("an answer"))
	f := <-d.started
	moved(f, 10, 9)
	client.CloseWrite()
	wantEnd(t, target, io.EOF)
	sends(t, target, client, []byte("more"))
	target.Close()
	wantEnd(t, client, io.EOF)
	d.became(relay.Result{AToB: 10, BToA: 13})
}

func TestATargetMaySpeakFirstAndEndFirst(t *testing.T) {
	d := newDesk(t, nil)
	client, target := d.flow()
	sends(t, target, client, []byte("220 hello"))
	target.CloseWrite()
	wantEnd(t, client, io.EOF)
	sends(t, client, target, bytes.Repeat([]byte("x"), 100_000))
	client.Close()
	wantEnd(t, target, io.EOF)
	d.became(relay.Result{AToB: 100_000, BToA: 9})
}

func TestAResetBreaksTheOtherEnd(t *testing.T) {
	d := newDesk(t, nil)
	client, target := d.flow()
	sends(t, client, target, []byte("x"))
	client.SetLinger(0)
	client.Close()
	wantEnd(t, target, syscall.ECONNRESET)
	d.became(relay.Result{AToB: 1, Err: syscall.ECONNRESET, Broke: relay.A})

	client, target = d.flow()
	sends(t, client, target, []byte("x"))
	target.SetLinger(0)
	target.Close()
	wantEnd(t, client, syscall.ECONNRESET)
	d.became(relay.Result{AToB: 1, Err: syscall.ECONNRESET, Broke: relay.B})
}

func TestAFlowOfManyBytesGoesOnElsewhere(t *testing.T) {
	d := newDesk(t, nil)
	many := bytes.Repeat([]byte("0123456789abcdef"), 64<<10) // 1 MiB
	client, target := d.flow()
	f := <-d.started
	sends(t, target, client, many)
	sends(t, client, target, []byte("seen"))
	if f.over.Load() == nil {
		t.Error("it is copied still")
	}
	moved(f, 4, int64(len(many)))
	if leg, ok := relay.LegOf(&f.ends[0]); !ok || leg.PacketsIn == 0 {
		t.Errorf("of the client's way is known %v, %v", leg, ok)
	}
	target.CloseWrite()
	wantEnd(t, client, io.EOF)
	sends(t, client, target, many)
	client.Close()
	wantEnd(t, target, io.EOF)
	d.became(relay.Result{AToB: int64(len(many)) + 4, BToA: int64(len(many))})
}

func TestAFlowThatHasEndedOneWayGoesOnElsewhere(t *testing.T) {
	d := newDesk(t, nil)
	many := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	for _, turned := range []bool{false, true} {
		asks, answers := d.flow()
		want := relay.Result{AToB: 3, BToA: int64(len(many))}
		if turned {
			asks, answers = answers, asks
			want.AToB, want.BToA = want.BToA, want.AToB
		}
		f := <-d.started
		sends(t, asks, answers, []byte("ask"))
		asks.CloseWrite()
		wantEnd(t, answers, io.EOF)
		sends(t, answers, asks, many)
		answers.Close()
		wantEnd(t, asks, io.EOF)
		d.became(want)
		if f.over.Load() == nil {
			t.Error("it was copied to its end")
		}
		if err := f.ends[0].Close(); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	}
}

func TestWhatHasNoRoomWaitsForIt(t *testing.T) {
	d := newDesk(t, func(d *desk) { d.before = func(f *Flow) { f.machine.stays = true } })
	many := bytes.Repeat([]byte("0123456789abcdef"), 1<<20) // 16 MiB: more than the system has room for
	client, target := d.flow()
	sent := make(chan error, 2)
	for _, c := range []*net.TCPConn{client, target} {
		go func() {
			_, err := c.Write(many)
			c.CloseWrite()
			sent <- err
		}()
	}
	f := <-d.started
	for last := int64(-1); ; { // until nothing moves any more
		in, out := f.Moved()
		if last == in+out && in > 0 && out > 0 {
			break
		}
		last = in + out
		runtime.Gosched()
	}
	for _, c := range []*net.TCPConn{client, target} {
		if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, many) {
			t.Errorf("%d bytes came: %v", len(got), err)
		}
	}
	for range 2 {
		if err := <-sent; err != nil {
			t.Error(err)
		}
	}
	d.became(relay.Result{AToB: int64(len(many)), BToA: int64(len(many))})
}

func TestAFlowIsBrokenOffFromOutside(t *testing.T) {
	why := errors.New("why")
	for name, breaks := range map[string]func(*Flow){
		"Break":  func(f *Flow) { f.Break(why); f.Break(io.EOF) },
		"client": func(f *Flow) { relay.Abort(&f.ends[0]) },
		"target": func(f *Flow) { relay.Abort(&f.ends[1]) },
	} {
		for _, over := range []bool{false, true} {
			d := newDesk(t, nil)
			client, target := d.flow()
			f := <-d.started
			size := 1
			if over {
				size = 1 << 20
			}
			sends(t, client, target, make([]byte, size))
			breaks(f)
			want := relay.Result{AToB: int64(size), Err: net.ErrClosed}
			if name == "Break" {
				want.Err = why
			}
			wantEnd(t, client, syscall.ECONNRESET)
			wantEnd(t, target, syscall.ECONNRESET)
			d.became(want)
			if got := f.over.Load() != nil; got != over {
				t.Errorf("%s: it went on elsewhere: %v", name, got)
			}
			if _, ok := relay.LegOf(&f.ends[0]); ok {
				t.Error("something is known of a connection that is closed")
			}
		}
	}
}

func TestWhoDoesNotTakeAFlowIsTold(t *testing.T) {
	d := newDesk(t, func(d *desk) { d.target = deaf(t) })
	if c, err := net.Dial("tcp", d.address); err == nil {
		wantEnd(t, c, syscall.ECONNRESET)
		c.Close()
	}
	if err := <-d.refused; !errors.Is(err, syscall.ECONNREFUSED) {
		t.Error(err)
	}
}

// A target is late if its socket says nothing as its time is up. What the loop was not told of in time, since it did something else, is no lateness.
func TestWhoIsLateIsTold(t *testing.T) {
	g, l, _, _ := shut(t)
	one := g.loops[0]
	connects := func(fd int) (err error) {
		f := &Flow{loop: one, state: connecting, due: time.Now().Add(-time.Hour)}
		near, far := &f.ends[client], &f.ends[target]
		near.flow, near.at, far.flow, far.at, far.fd = f, client, f, target, fd
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(pair[1])
		near.fd = pair[0]
		told := errors.New("nothing is told")
		f.taken = func(_ *Conn, e error) { told = e }
		one.connecting = append(one.connecting, f)
		one.giveUp()
		near.shut(false)
		far.shut(false)
		return told
	}
	on(one, func() {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(pair[1])
		for err == nil { // until it has no room, and so is as one that is not connected yet
			_, err = unix.Write(pair[0], make([]byte, 64<<10))
		}
		if err := connects(pair[0]); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("of one that is late is told %v", err)
		}
		fd, err := connect(relay.AddrPort(l.Addr()))
		if err != nil {
			t.Error(err)
			return
		}
		for is := false; !is; is, _ = writable(fd) {
			runtime.Gosched()
		}
		if err := connects(fd); err != nil {
			t.Errorf("of one that stands is told %v", err)
		}
	})
}

// A flow that its loop cannot be told of has not begun: whoever asked takes another way.
// What a target is told first is none of the client's bytes, and what comes after does not wait until it is acknowledged.
func TestATargetIsToldFirstWhatItIsToBe(t *testing.T) {
	const first = "from whom it is"
	d := newDesk(t, func(d *desk) { d.first = []byte(first) })
	client, target := d.flow()
	said := make([]byte, len(first))
	if _, err := io.ReadFull(target, said); err != nil || string(said) != first {
		t.Errorf("it is told %q, %v", said, err)
	}
	sends(t, client, target, []byte("question"))
	f := <-d.started
	if in, _ := f.Moved(); in > 8 {
		t.Errorf("%d bytes have moved", in)
	}
	client.Close()
	target.Close()
	d.became(relay.Result{AToB: 8})
	if !f.prompt { // the loop writes it until then
		t.Error("its socket waits for more")
	}
}

// A target that resets the connection before it was told has not taken the flow.
func TestATargetThatCannotBeToldHasNotTakenTheFlow(t *testing.T) {
	d := newDesk(t, func(d *desk) { d.target = deaf(t); d.first = []byte("x") })
	c, err := net.Dial("tcp", d.address)
	if err == nil {
		defer c.Close()
	}
	if err := <-d.refused; !errors.Is(err, syscall.ECONNREFUSED) {
		t.Error(err)
	}
	d = newDesk(t, func(d *desk) { d.first = make([]byte, 64<<20) }) // for which there is no room
	if c, err = net.Dial("tcp", d.address); err == nil {             // it may see the reset before
		defer c.Close()
	}
	target, err := d.target.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	if err := <-d.refused; !errors.Is(err, io.ErrShortWrite) {
		t.Error(err)
	}
	if _, err := io.Copy(io.Discard, target); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("it sees %v", err)
	}
}

func TestAClientOfWhomTheLoopIsNotToldIsGivenBack(t *testing.T) {
	group, l, target := New(Config{Loops: 1}), listen(t), listen(t)
	told := make(chan error, 2)
	s, ok := group.Listen(l, func(c *Conn) {
		p := c.flow.loop.poller
		if err := p.add(c.fd, 1, false); err != nil { // so that it is there already
			told <- err
		}
		c.Connect(relay.AddrPort(target.Addr()), time.Hour, nil, func(_ *Conn, err error) {
			told <- err
			p.remove(c.fd)
			tcp, err := c.Detach()
			told <- err
			if err == nil {
				tcp.Close()
			}
		})
	}, func(err error) { t.Error(err) })
	if !ok {
		t.Fatal("nothing is accepted")
	}
	defer group.Close()
	defer s.Close(func() {})
	isAccepted(t, l)
	if err := <-told; !errors.Is(err, syscall.EEXIST) {
		t.Error(err)
	}
	if err := <-told; err != nil {
		t.Error(err)
	}
}

func TestAConnectionIsTakenFromItsLoop(t *testing.T) {
	group := New(Config{Loops: 1})
	l := listen(t)
	came := make(chan net.Conn, 1)
	addresses := make(chan [2]string, 1)
	s, ok := group.Listen(l, func(c *Conn) {
		if _, err := c.Read(nil); !errors.Is(err, errHeld) {
			t.Error(err)
		}
		if _, err := c.Write(nil); !errors.Is(err, errHeld) {
			t.Error(err)
		}
		before := c.LocalAddr().String()
		tcp, err := c.Detach()
		if err != nil {
			t.Error(err)
		}
		if _, err := c.Detach(); err == nil {
			t.Error("it is taken twice")
		}
		if c.LocalAddr().String() != before || c.RemoteAddr().String() != tcp.RemoteAddr().String() {
			t.Error("it has other addresses than before")
		}
		addresses <- [2]string{c.LocalAddr().String(), c.RemoteAddr().String()}
		came <- tcp
	}, func(err error) { t.Error(err) })
	if !ok {
		t.Fatal("nothing is accepted")
	}
	defer group.Close()
	defer s.Close(func() {})
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	tcp := <-came
	defer tcp.Close()
	if want := [2]string{c.RemoteAddr().String(), c.LocalAddr().String()}; <-addresses != want {
		t.Error("it has other addresses")
	}
	sends(t, c, tcp, []byte("hello"))
	sends(t, tcp, c, []byte("hello"))
}

func TestWhatPanicsBreaksItsFlowOff(t *testing.T) {
	d := newDesk(t, func(d *desk) {
		d.before = func(f *Flow) { f.Last = func() { panic("at last") } }
	})
	client, target := d.flow()
	sends(t, client, target, []byte("x"))
	client.Close()
	target.Close()
	d.became(relay.Result{AToB: 1, Err: relay.ErrPanicked})
	if p := <-d.panics; p != "at last" {
		t.Error(p)
	}
	d = newDesk(t, func(d *desk) { d.before = func(*Flow) { panic("at first") } })
	if c, err := net.Dial("tcp", d.address); err == nil { // it may be reset before that returns
		wantEnd(t, c, syscall.ECONNRESET)
		c.Close()
	}
	if p := <-d.panics; p != "at first" {
		t.Error(p)
	}
}

func TestASilentFlowEnds(t *testing.T) {
	d := newDesk(t, func(d *desk) { d.idle = time.Hour })
	client, target := d.flow()
	f := <-d.started
	kernel := func() (n int64) {
		on(f.loop, func() { n = kernelCount(f.ends[0].fd) + kernelCount(f.ends[1].fd) })
		return n
	}
	before := kernel()
	arrived := func(bytes int64) { // and the system has heard of it, which counts as a move
		for kernel() != before+2*bytes {
			runtime.Gosched()
		}
	}
	sends(t, client, target, []byte("x"))
	arrived(1)
	look := func(later time.Duration) {
		on(f.loop, func() {
			f.since = f.since.Add(-later)
			f.loop.wheel.remove(&f.spoke)
			f.look()
		})
	}
	look(0)
	look(59 * time.Minute)
	sends(t, target, client, []byte("y"))
	arrived(2)
	look(59 * time.Minute) // something has moved
	look(59 * time.Minute)
	look(2 * time.Minute)
	d.became(relay.Result{AToB: 1, BToA: 1, Err: relay.ErrIdle})
	wantEnd(t, client, syscall.ECONNRESET)
	wantEnd(t, target, syscall.ECONNRESET)
}

func TestWhatIsCarriedAsLoopsCloseIsBrokenOff(t *testing.T) {
	d := newDesk(t, nil)
	client, target := d.flow()
	sends(t, client, target, []byte("x"))
	f := <-d.started
	d.close()
	if c, err := net.Dial("tcp", d.address); err == nil {
		c.Close()
		t.Error("somebody still accepts")
	}
	sends(t, target, client, []byte("x"))
	d.group.Close()
	wantEnd(t, client, syscall.ECONNRESET)
	wantEnd(t, target, syscall.ECONNRESET)
	d.became(relay.Result{AToB: 1, BToA: 1, Err: net.ErrClosed})
	f.Break(io.EOF) // nobody hears of it
	if _, ok := d.group.Listen(listen(t), nil, nil); ok {
		t.Error("a group that is closed accepts")
	}
}

func TestALoopAcceptsAgainAfterAPause(t *testing.T) {
	d := newDesk(t, nil)
	home := d.listener.home
	on(home, func() { home.pause(d.listener, d.listener.fd) }) // as where there are no descriptors
	client, target := d.flow()
	sends(t, client, target, []byte("x"))
}

// A loop that has accepted more than others hold passes connections on, and no other is troubled before.
func TestConnectionsAreSharedOutAmongLoops(t *testing.T) {
	d := newDesk(t, nil)
	other := d.group.loops[1]
	var flows []*Flow
	for i := range 2*slack + 6 {
		client, target := d.flow()
		sends(t, client, target, []byte{1})
		f := <-d.started
		flows = append(flows, f)
		if i <= slack && f.loop == other {
			t.Errorf("flow %d is held by another loop", i)
		}
	}
	home, there := d.listener.home.clients.Load(), other.clients.Load()
	if home+there != int64(len(flows)) || home-there < slack || home-there > slack+1 {
		t.Errorf("one holds %d, the other %d", home, there)
	}
	for _, f := range flows {
		f.Break(errors.New("over"))
		<-d.ended
	}
	if home, there := d.listener.home.clients.Load(), other.clients.Load(); home != 0 || there != 0 {
		t.Errorf("one still holds %d, the other %d", home, there)
	}
	if second := newDesk(t, func(next *desk) { next.on = d.group }); second.listener.home != other {
		t.Error("all listeners are at home on one loop")
	}
}

// What was passed on to a loop that ends, or has, is reset; and the listener is not left before.
func TestWhatIsPassedOnToALoopThatEndsIsReset(t *testing.T) {
	for _, ended := range []bool{false, true} {
		g, l, s, _ := shut(t)
		one := g.loops[0]
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fd, from, err := s.accept()
		if err != nil {
			t.Fatal(err)
		}
		if ended {
			g.Close()
			one.takeOver(s, fd, from)
		} else {
			on(one, func() {
				one.takeOver(s, fd, from)
				one.over = true
			})
		}
		wantEnd(t, c, syscall.ECONNRESET)
	}
}

func TestManyFlowsAtOnce(t *testing.T) {
	d := newDesk(t, nil)
	go func() {
		for {
			c, err := d.target.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	const workers, each = 8, 40
	failed := make(chan error, workers)
	for w := range workers {
		go func() {
			for i := range each {
				if err := echoed(d.address, 1+(w*each+i)*997%200_000); err != nil {
					failed <- err
					return
				}
			}
			failed <- nil
		}()
	}
	for range workers {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	for range workers * each {
		<-d.started
		if r := <-d.ended; r.Err != nil || r.AToB != r.BToA || r.AToB == 0 {
			t.Errorf("%+v", r)
		}
	}
}

func echoed(address string, size int) error {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	sent := make([]byte, size)
	for i := range sent {
		sent[i] = byte(i * 31 >> 3)
	}
	go func() {
		c.Write(sent)
		c.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err == nil && !bytes.Equal(got, sent) {
		err = errors.New("other bytes came back")
	}
	return err
}

func TestNothingIsConnectedToItself(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	at, err := localOf(fd)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: int(at.Port())}); err != nil {
		t.Fatal(err)
	}
	if err := standing(fd, at, false); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Error(err)
	}
}

// on has something be done on a loop, and waits for it.
func on(l *loop, do func()) {
	done := make(chan struct{})
	l.post(func() {
		do()
		close(done)
	})
	<-done
}

// shut is a listener of which a loop does not accept before it is told to.
func shut(t *testing.T) (g *Group, l net.Listener, s *Listener, failed chan error) {
	g, l, failed = New(Config{Loops: 1}), listen(t), make(chan error, 100)
	fd, ok := listening(l)
	if !ok || !g.run() {
		t.Fatal("nothing is accepted")
	}
	s = &Listener{
		group: g, home: g.loops[0], fd: fd, take: accept, failed: func(err error) { failed <- err },
		accepted: func(c *Conn) { c.Close() },
	}
	s.left.Store(1)
	t.Cleanup(func() {
		done := make(chan struct{})
		s.Close(func() { close(done) })
		l.Close()
		<-done
		g.Close()
	})
	return g, l, s, failed
}

// isAccepted connects, and waits until what is accepted is closed.
func isAccepted(t *testing.T, at net.Listener) {
	t.Helper()
	c, err := net.Dial("tcp", at.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	wantEnd(t, c, io.EOF)
}

func TestWhatCouldNotBeAcceptedIsLater(t *testing.T) {
	g, l, s, failed := shut(t)
	one := g.loops[0]
	lacking := true
	s.take = func(fd int) (int, netip.AddrPort, error) {
		if lacking { // of descriptors, for a moment
			return -1, netip.AddrPort{}, syscall.EMFILE
		}
		return accept(fd)
	}
	on(one, func() {
		one.listen(s)
		e := event{fd: s.fd, number: one.known[s.fd].number, readable: true}
		one.tell(e)
		one.tell(e) // the system may say it twice in one batch
		one.turns++
		one.tell(e) // or have said it before
		one.pause(s, s.fd)
		lacking = false
	})
	if err := <-failed; !errors.Is(err, syscall.EMFILE) {
		t.Error(err)
	}
	isAccepted(t, l)
	on(one, func() {
		if one.known[s.fd].paused {
			t.Error("nothing is accepted")
		}
	})
	select {
	case err := <-failed:
		t.Errorf("it failed again: %v", err)
	default:
	}
}

func TestAListenerIsToldOfOnceInATurn(t *testing.T) {
	g, _, s, failed := shut(t)
	one := g.loops[0]
	asked := 0
	s.take = func(int) (int, netip.AddrPort, error) {
		asked++
		return -1, netip.AddrPort{}, errAgain
	}
	on(one, func() {
		one.listen(s)
		e := event{fd: s.fd, number: one.known[s.fd].number, readable: true}
		one.tell(e)
		one.tell(e)
		if asked != 1 {
			t.Errorf("it is asked %d times", asked)
		}
	})
	if len(failed) > 0 {
		t.Error(<-failed)
	}
}

func TestAListenerThatTheSystemDoesNotTakeIsTriedAgain(t *testing.T) {
	g, l, s, failed := shut(t)
	one := g.loops[0]
	on(one, func() {
		if err := one.poller.addListener(s.fd, one.next()); err != nil { // so that it is there already
			t.Error(err)
		}
		one.listen(s)
		if !errors.Is(<-failed, syscall.EEXIST) {
			t.Error("it is taken twice")
		}
		one.poller.remove(s.fd)
	})
	isAccepted(t, l)
}

// lacks has this process have no descriptor of a number from most on, for as long as do runs.
func lacks(t *testing.T, most int, do func()) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Error(err)
		return
	}
	less := limit
	less.Cur = uint64(most)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &less); err != nil {
		t.Error(err)
		return
	}
	do()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Error(err)
	}
}

// To take a connection from its loop takes one descriptor more, for the moment. Where there is none it is reset, and one that was closed meanwhile is not taken.
func TestAConnectionIsTakenWithOneDescriptor(t *testing.T) {
	group, l := New(Config{Loops: 1}), listen(t)
	var way func(c *Conn)
	s, ok := group.Listen(l, func(c *Conn) { way(c) }, func(err error) { t.Error(err) })
	if !ok {
		t.Fatal("nothing is accepted")
	}
	defer group.Close()
	defer s.Close(func() {})
	for _, one := range []struct {
		way  func(c *Conn)
		want error
	}{
		{func(c *Conn) {
			free, err := unix.FcntlInt(uintptr(c.fd), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				t.Error(err)
			}
			unix.Close(free)
			lacks(t, free+1, func() {
				tcp, err := c.Detach()
				if err != nil {
					t.Error(err)
					return
				}
				tcp.Close()
			})
		}, io.EOF},
		{func(c *Conn) {
			lacks(t, 3, func() {
				if _, err := c.Detach(); !errors.Is(err, syscall.EMFILE) {
					t.Error(err)
				}
			})
			c.Close() // which is nothing any more
		}, syscall.ECONNRESET},
		{func(c *Conn) {
			c.Close()
			if _, err := c.Detach(); !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		}, io.EOF},
		{func(c *Conn) {
			c.Abort()
			if _, err := c.Detach(); !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		}, syscall.ECONNRESET},
	} {
		on(group.loops[0], func() { way = one.way })
		c, err := net.Dial("tcp", l.Addr().String())
		if err == nil { // a reset may come before that returns
			_, err = c.Read(make([]byte, 1))
			c.Close()
		}
		if !errors.Is(err, one.want) {
			t.Errorf("its client sees %v, want %v", err, one.want)
		}
	}
}

func TestALoopThatCannotWaitEnds(t *testing.T) {
	g, _, _, _ := shut(t)
	one := g.loops[0]
	on(one, func() { one.poller.file.Close() })
	g.wg.Wait()
	if one.post(func() {}) {
		t.Error("it has not ended")
	}
}
