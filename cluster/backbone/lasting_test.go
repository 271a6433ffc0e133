package backbone

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/perigee-net/perigee/cluster/backbone/lasting"
	"github.com/perigee-net/perigee/cluster/control"
	"github.com/perigee-net/perigee/origin/relay"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// flowWorld is a world in which icn opens flows to iad, directly or by way of fra or nrt.
type flowWorld struct {
	*world
	byTCP  bool // flows are opened by TCP where there is a connection
	warmed bool
	nodes  map[string]*Backbone
	ports  map[string]*control.Port
	icn    *Backbone

	mu      sync.Mutex
	arrived map[[16]byte][]*lastingConn // at iad, and nobody has them; one that was asked for again may be there twice
}

// takes is the end at iad of a flow; nil: there is none.
func (w *flowWorld) takes(id [16]byte) *lastingConn {
	for range 1000 {
		w.mu.Lock()
		for i, c := range slices.Backward(w.arrived[id]) {
			c.mu.Lock()
			lives := c.stream != nil && c.stream.Gone().Err() == nil
			c.mu.Unlock()
			if lives {
				w.arrived[id] = slices.Delete(w.arrived[id], i, i+1)
				w.mu.Unlock()
				return c
			}
		}
		w.mu.Unlock()
		time.Sleep(10 * time.Millisecond)
	}
	return nil
}

// flowWays are the ways from icn to iad.
func flowWays(by ...string) (ways []Way) {
	for _, node := range by {
		if node == "iad" {
			ways = append(ways, Way{Node: "iad", Header: Header{Service: "flow", Resource: "x"}})
		} else {
			ways = append(ways, Way{Node: node, Header: Header{Service: "detour", Resource: "iad/x"}, To: "iad"})
		}
	}
	return ways
}

// inFlowWorld runs a test where QUIC alone carries.
func inFlowWorld(t *testing.T, seed uint64, f func(w *flowWorld)) {
	t.Helper()
	newFlowWorld(t, seed, false, f)
}

// byEach runs a test where flows are opened by QUIC, and where they are opened by TCP.
func byEach(t *testing.T, f func(w *flowWorld)) {
	t.Helper()
	t.Run("QUIC", func(t *testing.T) { newFlowWorld(t, 1, false, f) })
	t.Run("TCP", func(t *testing.T) { newFlowWorld(t, 1, true, f) })
}

// newFlowWorld has links that are not warmed: of what a world takes, that is the most.
func newFlowWorld(t *testing.T, seed uint64, byTCP bool, f func(w *flowWorld)) {
	t.Helper()
	flowWorldOf(t, seed, byTCP, false, f)
}

// newWarmFlowWorld has links that are warmed, as a node's.
func newWarmFlowWorld(t *testing.T, seed uint64, byTCP bool, f func(w *flowWorld)) {
	t.Helper()
	flowWorldOf(t, seed, byTCP, true, f)
}

func flowWorldOf(t *testing.T, seed uint64, byTCP, warmed bool, f func(w *flowWorld)) {
	t.Helper()
	inWorldSeeded(t, seed, func(w *world) {
		fw := &flowWorld{world: w, byTCP: byTCP, warmed: warmed, nodes: map[string]*Backbone{}, ports: map[string]*control.Port{}, arrived: map[[16]byte][]*lastingConn{}}
		all := []string{"icn", "iad", "fra", "nrt"}
		for i, a := range all {
			for _, b := range all[:i] {
				w.in.Link(a, b, fw.path(a, b))
			}
		}
		for _, name := range all {
			fw.start(name)
		}
		fw.icn = fw.nodes["icn"]
		for _, to := range all[1:] {
			w.until(fw.nodes["icn"], to, true)
		}
		f(fw)
		for _, name := range all {
			fw.stop(name)
		}
	})
}

// warm has all links have connections for flows, where they go by TCP.
func (w *flowWorld) warm() {
	if !w.byTCP {
		return
	}
	for _, b := range w.nodes {
		for _, l := range *b.links.Load() {
			l.pool.expect()
		}
	}
	time.Sleep(10 * roundTrip)
}

func (w *flowWorld) path(a, b string) memnet.Path {
	if (a == "icn" || b == "icn") && (a == "iad" || b == "iad") {
		return memnet.Path{Delay: roundTrip / 2}
	}
	return memnet.Path{Delay: roundTrip / 5}
}

func (w *flowWorld) start(name string) {
	c := w.config(name, w.authority)
	c.NoWarming = !w.warmed
	if w.byTCP {
		port := w.port(name)
		w.ports[name] = port
		c.Bulk = bulkOver(port)
		c.Bulk.Services, c.Bulk.Always = []string{"flow", "detour"}, true
	}
	b := w.openWith(c)
	w.nodes[name] = b
	b.Keep(peers("icn", "iad", "fra", "nrt"))
	b.Handle("flow", func(in *Incoming) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.arrived[in.Passage.ID] = append(w.arrived[in.Passage.ID], in.Accept().(*lastingConn))
	})
	b.HandleThrough("detour", func(in *Incoming) {
		node, resource, _ := strings.Cut(in.Resource, "/")
		var on onEarly
		far, err := b.Dial(WithEarly(in.Context(), func(to io.Writer) { on.begin(in.Early(), to) }), node, Header{Service: "flow", Resource: resource, Client: in.Client, Passage: in.Passage})
		left := on.end()
		if err != nil {
			in.RefuseFor(err)
			return
		}
		x, y := Join(in.Accept(), far)
		relay.Resume(x, y, time.Hour, relay.Carried{Unwritten: left}).Run()
	})
}

// onEarly carries on what is said of a flow before it is taken. Nil readers say nothing.
type onEarly struct {
	from   EarlyReader
	speaks sync.WaitGroup
	all    []byte
	n      int // of all, that were taken
}

func (o *onEarly) begin(from EarlyReader, to io.Writer) {
	if o.end(); from == nil {
		return
	}
	o.from, o.n = from, 0
	o.speaks.Go(func() {
		for err := error(nil); err == nil; {
			var n int
			if n, err = to.Write(o.all[o.n:]); err != nil {
				return
			}
			o.n += n
			room := make([]byte, 1000)
			n, err = from.Read(room)
			o.all = append(o.all, room[:n]...)
		}
	})
}

// end returns what was said and not taken.
func (o *onEarly) end() []byte {
	if o.from != nil {
		o.from.SetReadDeadline(time.Unix(1, 0))
		o.speaks.Wait()
		o.from.SetReadDeadline(time.Time{})
	}
	return o.all[o.n:]
}

// stop ends a node.
func (w *flowWorld) stop(name string) {
	w.nodes[name].Close()
	if port := w.ports[name]; port != nil {
		port.Close()
	}
}

// flow opens a flow by a way, and returns both ends. When it has to go on it goes by others.
func (w *flowWorld) flow(first string, others ...string) (near, far *lastingConn) {
	w.Helper()
	w.warm()
	c, err := w.nodes["icn"].DialLasting(w.Context(), flowWays(first)[0], func() []Way { return flowWays(others...) })
	if err != nil {
		w.Fatal(err)
	}
	near = c.(*lastingConn)
	if w.byTCP != isMute(near.stream) {
		w.Fatal("it goes the wrong way")
	}
	return near, w.takes(near.key.id)
}

// kill has every connection between two nodes end, as if something on the path had ended it.
func (w *flowWorld) kill(from, to string) {
	l := (*w.nodes[from].links.Load())[to]
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.carriers {
		c.conn.CloseWithError(codeReplaced, "killed")
	}
	w.reset(from, to)
}

// reset has every connection of TCP that one node has to another be reset, as if something on the path had done it.
func (w *flowWorld) reset(from, to string) {
	for _, c := range w.nodes[from].bulk.those(func(_ *bulkConn, of bulkEnd) bool { return of.peer == to }) {
		raw := below(c.conn)
		raw.(interface{ SetLinger(int) error }).SetLinger(0)
		raw.Close()
	}
}

// carries has both ends send, by chance, and says what is wrong with what came.
func carries(a, b net.Conn, up, down int, chance *rand.Rand) error {
	return carriesAs(chance.Uint64(), a, b, up, down, chance)
}

// carriesAs is carries of bytes that a number says.
func carriesAs(id uint64, a, b net.Conn, up, down int, chance *rand.Rand) error {
	var wg sync.WaitGroup
	faults := make(chan error, 4)
	send := func(c net.Conn, id uint64, size int, chance *rand.Rand) {
		if err := sendBytes(c, id, size, chance); err != nil {
			faults <- err
		}
	}
	read := func(c net.Conn, id uint64, size int, chance *rand.Rand) {
		if err := readBytes(c, id, size, chance); err != nil {
			faults <- err
		}
	}
	chances := func() *rand.Rand { return rand.New(rand.NewPCG(chance.Uint64(), 7)) }
	for _, f := range []func(){
		func(r *rand.Rand) func() { return func() { send(a, id, up, r) } }(chances()),
		func(r *rand.Rand) func() { return func() { send(b, ^id, down, r) } }(chances()),
		func(r *rand.Rand) func() { return func() { read(b, id, up, r) } }(chances()),
		func(r *rand.Rand) func() { return func() { read(a, ^id, down, r) } }(chances()),
	} {
		wg.Go(f)
	}
	wg.Wait()
	a.Close()
	b.Close()
	close(faults)
	var all error
	for err := range faults {
		all = errors.Join(all, err)
	}
	return all
}

func chaCha(id uint64) *rand.ChaCha8 {
	var seed [32]byte
	binary.BigEndian.PutUint64(seed[:], id)
	return rand.NewChaCha8(seed)
}

func sendBytes(c net.Conn, id uint64, size int, chance *rand.Rand) error {
	text := chaCha(id)
	piece := make([]byte, 100<<10)
	for left := size; left > 0; {
		n := min(left, 1+chance.IntN([]int{50, 5000, len(piece)}[chance.IntN(3)]))
		text.Read(piece[:n])
		if m, err := c.Write(piece[:n]); err != nil || m != n {
			return fmt.Errorf("write after %d of %d: %d, %w", size-left, size, m, err)
		}
		if left -= n; chance.IntN(3) == 0 {
			time.Sleep(time.Duration(chance.Int64N(int64(2 * time.Second))))
		}
	}
	return c.(interface{ CloseWrite() error }).CloseWrite()
}

var errCleanCut = errors.New("a clean end before all has come, or other bytes than were sent")

func readBytes(c net.Conn, id uint64, size int, chance *rand.Rand) error {
	text := chaCha(id)
	got, want := make([]byte, 100<<10), make([]byte, 100<<10)
	for at := 0; ; {
		if l, lasts := c.(*lastingConn); lasts && chance.IntN(3) == 0 {
			l.Await()
		}
		n, err := c.Read(got[:1+chance.IntN(len(got))])
		text.Read(want[:n])
		if at += n; !bytes.Equal(got[:n], want[:n]) || at > size {
			return fmt.Errorf("%w: at %d of %d", errCleanCut, at, size)
		}
		switch {
		case err == io.EOF && at < size:
			return fmt.Errorf("%w: %d of %d", errCleanCut, at, size)
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("read after %d of %d: %w", at, size, err)
		}
		if chance.IntN(8) == 0 {
			time.Sleep(time.Duration(chance.Int64N(int64(time.Second))))
		}
	}
}

// settled fails if a node still knows of a flow, or keeps some of its bytes.
func (w *flowWorld) settled() {
	w.Helper()
	for range 2 { // what was on its way comes until the second time
		w.mu.Lock()
		for _, all := range w.arrived { // whose openers gave up before they heard that it was accepted, or asked again
			for _, c := range all {
				c.Abort()
			}
		}
		w.mu.Unlock()
		time.Sleep(meetTime + 5*time.Second)
	}
	for name, b := range w.nodes {
		for _, counter := range []string{"backbone_lasting_flows", "backbone_lasting_kept_bytes", "backbone_lasting_flows_suspended", "backbone_lasting_malformed_total"} {
			if n := b.Counters()[counter]; n != 0 {
				w.Errorf("%s: %s is %d when all is over", name, counter, n)
			}
		}
	}
}

func (w *flowWorld) counts(name string, want map[string]uint64) {
	w.Helper()
	got := w.nodes[name].Counters()
	for counter, n := range want {
		if got["backbone_lasting_"+counter] != n {
			w.Errorf("%s: %s is %d, want %d", name, counter, got["backbone_lasting_"+counter], n)
		}
	}
}

func TestAFlowGoesOnWhenItsPathDies(t *testing.T) {
	for _, c := range []struct {
		name   string
		first  string
		others []string
		breaks func(w *flowWorld)
		way    string
	}{
		{"nothing breaks", "iad", []string{"iad"}, func(*flowWorld) {}, "iad"},
		{"nothing breaks on a detour", "fra", []string{"iad"}, func(*flowWorld) {}, "fra"},
		{"its connection", "iad", []string{"iad"}, func(w *flowWorld) { w.kill("icn", "iad") }, "iad"},
		{"its path, and there is another", "iad", []string{"iad", "nrt"}, func(w *flowWorld) { w.in.Cut("icn", "iad") }, "nrt"},
		{"its path one way", "iad", []string{"iad", "nrt"}, func(w *flowWorld) { w.in.CutOneWay("iad", "icn") }, "nrt"},
		{"its path the other way", "iad", []string{"iad", "nrt"}, func(w *flowWorld) { w.in.CutOneWay("icn", "iad") }, "nrt"},
		{"its path for a time", "iad", []string{"iad"}, func(w *flowWorld) {
			w.in.Cut("icn", "iad")
			time.AfterFunc(5*time.Second, func() { w.in.Heal("icn", "iad") })
		}, "iad"},
		{"the first leg of its detour", "fra", []string{"fra", "iad"}, func(w *flowWorld) { w.in.Cut("icn", "fra") }, "iad"},
		{"the second leg of its detour", "fra", []string{"fra", "iad"}, func(w *flowWorld) { w.in.Cut("iad", "fra") }, "iad"},
		{"the node between dies", "fra", []string{"fra", "iad"}, func(w *flowWorld) { w.hosts["fra"].Crash() }, "iad"},
		{"the node between ends", "fra", []string{"fra", "iad"}, func(w *flowWorld) { w.stop("fra") }, "iad"},
		{"it is moved", "iad", []string{"iad"}, func(w *flowWorld) {}, "nrt"},
	} {
		t.Run(c.name, func(t *testing.T) {
			byEach(t, func(w *flowWorld) {
				near, far := w.flow(c.first, c.others...)
				time.AfterFunc(1500*time.Millisecond, func() { c.breaks(w) })
				if strings.Contains(c.name, "moved") {
					time.AfterFunc(3*time.Second, func() {
						if err := near.Move(w.Context(), flowWays("nrt")[0]); err != nil {
							w.Error(err)
						}
					})
				}
				if err := carries(near, far, 300_000, 200_000, rand.New(rand.NewPCG(1, 1))); err != nil {
					w.Error(err)
				}
				moves := uint64(1)
				if strings.HasPrefix(c.name, "nothing") {
					moves = 0
				}
				if near.Way() != c.way || near.Moves() != int(moves) {
					w.Errorf("it went by %s at last, after %d moves", near.Way(), near.Moves())
				}
				w.settled()
				w.counts("icn", map[string]uint64{"streams_resumed_total": moves, "flows_opened_total": 1, "flows_forgone_total": 0, "flows_parted_total": 0})
				w.counts("iad", map[string]uint64{"streams_resumed_total": moves, "flows_accepted_total": 1, "flows_forgone_total": 0, "flows_parted_total": 0})
			})
		})
	}
}

func TestAFlowWhoseEndsDoNotMeetIsReset(t *testing.T) {
	for name, breaks := range map[string]func(w *flowWorld){
		"cut":       func(w *flowWorld) { w.in.Cut("icn", "iad") },
		"it dies":   func(w *flowWorld) { w.hosts["iad"].Crash() },
		"the other": func(w *flowWorld) { w.hosts["icn"].Crash() },
	} {
		t.Run(name, func(t *testing.T) {
			byEach(t, func(w *flowWorld) {
				near, far := w.flow("iad", "iad")
				io.WriteString(near, "half")
				if _, err := io.ReadFull(far, make([]byte, 4)); err != nil {
					w.Fatal(err)
				}
				breaks(w)
				begun := time.Now()
				var wg sync.WaitGroup
				for _, c := range []net.Conn{near, far} {
					wg.Go(func() {
						_, err := c.Read(make([]byte, 1))
						took := time.Since(begun)
						least := meetTime
						if !errors.Is(err, ErrParted) || took < least || took > least+4*time.Second {
							w.Errorf("read %v after %v", err, took)
						}
						if _, err := c.Write([]byte("x")); !errors.Is(err, ErrDown) {
							w.Errorf("wrote: %v", err)
						}
						c.Close()
					})
				}
				wg.Wait()
				w.settled()
			})
		})
	}
}

// A node that dies says nothing; when the others know, and say so by gossip, its flows are over, but not where this node may be the one that is cut off.
func TestFlowsOfADeadNodeAreOverWhenThatIsKnown(t *testing.T) {
	for name, c := range map[string]struct {
		dies, lives string
		others      []string // that are kept then
		over        bool
	}{
		"the other end":        {"iad", "icn", []string{"fra", "nrt"}, true},
		"the opener":           {"icn", "iad", []string{"fra", "nrt"}, true},
		"and all others":       {"iad", "icn", nil, false},
		"another":              {"iad", "icn", []string{"iad", "nrt"}, false},
		"nobody that is alive": {"iad", "icn", []string{"stranger"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			byEach(t, func(w *flowWorld) {
				near, far := w.flow("iad", "iad", "fra", "nrt")
				stays := near
				if c.lives == "iad" {
					stays = far
				}
				w.hosts[c.dies].Crash()
				begun := time.Now()
				time.AfterFunc(6*time.Second, func() { w.nodes[c.lives].Keep(peers(c.others...)) })
				_, err := stays.Read(make([]byte, 1))
				took := time.Since(begun)
				if at := 6 * time.Second; !errors.Is(err, ErrDown) || c.over != (took == at) || !c.over && took < meetTime {
					w.Errorf("read %v after %v", err, took)
				}
				stays.Close()
			})
		})
	}
}

// What an end says of the flow is not taken for something of the path, directly and through another node.
func TestAnEndIsHeardAtOnce(t *testing.T) {
	for _, by := range []string{"iad", "fra"} {
		for name, c := range map[string]struct {
			end  func(w *flowWorld, near, far *lastingConn)
			read error
		}{
			"abort":          {func(_ *flowWorld, _, far *lastingConn) { far.Abort() }, ErrReset},
			"close":          {func(_ *flowWorld, _, far *lastingConn) { far.Close() }, ErrReset},
			"the node stops": {func(w *flowWorld, _, _ *lastingConn) { w.stop("iad") }, ErrDown},
		} {
			t.Run(by+" "+name, func(t *testing.T) {
				byEach(t, func(w *flowWorld) {
					near, far := w.flow(by, "fra", "iad", "nrt")
					c.end(w, near, far)
					begun := time.Now()
					_, err := near.Read(make([]byte, 1))
					if took := time.Since(begun); !errors.Is(err, c.read) && !errors.Is(err, ErrReset) || took > 2*roundTrip {
						w.Errorf("read %v after %v", err, took)
					}
					near.Close()
					w.settled()
				})
			})
		}
		t.Run(by+" the opener stops", func(t *testing.T) {
			byEach(t, func(w *flowWorld) {
				_, far := w.flow(by, "fra", "iad", "nrt")
				w.stop("icn")
				begun := time.Now()
				_, err := far.Read(make([]byte, 1))
				if took := time.Since(begun); !errors.Is(err, ErrDown) && !errors.Is(err, ErrReset) || took > 2*roundTrip {
					w.Errorf("read %v after %v", err, took)
				}
				far.Close()
			})
		})
	}
}

func TestWhoDidNotOpenAFlowDoesNotGetIt(t *testing.T) {
	inFlowWorld(t, 1, func(w *flowWorld) {
		near, far := w.flow("iad", "iad")
		ask := func(from, opener string, id [16]byte) error {
			h := Header{Service: "flow", Resource: "x", Passage: Passage{ID: id, Epoch: 7, Opener: opener}}
			_, err := w.nodes[from].dial(w.Context(), "iad", &h, make([]byte, offsetLength), false)
			return err
		}
		for name, err := range map[string]error{
			"another node":    ask("fra", "", near.key.id),
			"for another":     ask("fra", "nrt", near.key.id),
			"by another name": ask("icn", "fra", near.key.id),
			"an unknown flow": ask("icn", "", [16]byte{1}),
			"through, as another": func() error { // fra says who has asked it, whatever that says itself
				h := Header{Service: "detour", Resource: "iad/x", Passage: Passage{ID: near.key.id, Epoch: 7, Opener: "icn"}}
				_, err := w.nodes["nrt"].dial(w.Context(), "fra", &h, make([]byte, offsetLength), false)
				return err
			}(),
		} {
			if no, ok := errors.AsType[*RefusedError](err); !ok || !no.Over {
				w.Errorf("%s: %v", name, err)
			}
		}
		w.counts("iad", map[string]uint64{"streams_unknown_total": 5, "streams_resumed_total": 0})
		if err := carries(near, far, 1000, 1000, rand.New(rand.NewPCG(1, 1))); err != nil {
			w.Error(err)
		}
		w.settled()
	})
}

func TestAFlowThatTheOtherEndHasForgottenIsReset(t *testing.T) {
	byEach(t, func(w *flowWorld) {
		near, far := w.flow("iad", "iad")
		w.in.Cut("icn", "iad")
		time.Sleep(3 * time.Second)
		far.Abort()
		w.in.Heal("icn", "iad")
		begun := time.Now()
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, ErrReset) || time.Since(begun) > 5*time.Second {
			w.Errorf("read %v after %v", err, time.Since(begun))
		}
		near.Close()
		w.settled()
	})
}

func TestAStreamThatComesLateChangesNothing(t *testing.T) {
	inFlowWorld(t, 1, func(w *flowWorld) {
		near, far := w.flow("iad", "iad")
		if err := near.Move(w.Context(), flowWays("fra")[0]); err != nil {
			w.Fatal(err)
		}
		h := Header{Service: "flow", Passage: Passage{ID: near.key.id, Epoch: 1}}
		late, err := w.nodes["icn"].dial(w.Context(), "iad", &h, make([]byte, offsetLength), false)
		if err == nil {
			_, err = late.Read(make([]byte, 1))
		}
		if !errors.Is(err, errLost) {
			w.Errorf("it read %v", err)
		}
		w.counts("iad", map[string]uint64{"streams_stale_total": 1, "streams_resumed_total": 1})
		if err := carries(near, far, 1000, 1000, rand.New(rand.NewPCG(1, 1))); err != nil {
			w.Error(err)
		}
		w.settled()
	})
}

// What has carried much on a stream goes on by a connection of its own, where TCP is the better way.
func TestAFlowOfManyBytesIsMovedToTCP(t *testing.T) {
	for name, c := range map[string]struct {
		delay   time.Duration
		always  bool
		carries int
		moves   int
	}{
		"near":             {farRTT / 4, false, 2 * shiftBytes, 1},
		"near, less":       {farRTT / 4, false, shiftBytes / 2, 0},
		"far, without BBR": {farRTT, false, 2 * shiftBytes, 0},
		"far, always":      {farRTT, true, 2 * shiftBytes, 1},
	} {
		t.Run(name, func(t *testing.T) {
			newFlowWorld(t, 1, true, func(w *flowWorld) {
				w.in.Link("icn", "iad", memnet.Path{Delay: c.delay})
				w.icn.config.Bulk.Always = false
				l := (*w.icn.links.Load())["iad"]
				l.pool.expect()
				time.Sleep(20 * time.Second) // the round trip is smoothed
				conn, err := w.icn.DialLasting(w.Context(), flowWays("iad")[0], func() []Way { return flowWays("iad", "fra") })
				if err != nil {
					w.Fatal(err)
				}
				near := conn.(*lastingConn)
				if isMute(near.stream) {
					w.Error("it is expected to be of many bytes")
				}
				w.icn.config.Bulk.Always = c.always
				text := make([]byte, c.carries)
				chaCha(1).Read(text)
				far := w.takes(near.key.id)
				go func() {
					far.Write(text[:len(text)*3/4])
					time.Sleep(5 * time.Second) // on a path without a bound the rest would come while the move is on its way
					far.Write(text[len(text)*3/4:])
					far.CloseWrite()
				}()
				got, err := io.ReadAll(near)
				if err != nil || !bytes.Equal(got, text) {
					w.Errorf("%d bytes of %d came: %v", len(got), len(text), err)
				}
				near.mu.Lock()
				if int(near.moves) != c.moves || near.stream != nil && isMute(near.stream) != (c.moves > 0) {
					w.Errorf("it was moved %d times, and is on a %T", near.moves, near.stream)
				}
				near.mu.Unlock()
				near.CloseWrite()
				near.Close()
				io.ReadAll(far)
				far.Close()
				w.settled()
				w.counts("icn", map[string]uint64{"flows_shifted_total": uint64(c.moves), "streams_lost_total": 0})
				l.pool.mu.Lock()
				if l.pool.quic.count > 0 && c.moves > 0 {
					w.Error("a part of it counts for how fast QUIC is")
				}
				l.pool.mu.Unlock()
			})
		})
	}
}

// A flow that had to leave the direct way goes back when that has been well for a while, later each time that it is driven off again, and not where it comes
// and goes.
func TestAFlowGoesBackToTheDirectWay(t *testing.T) {
	inFlowWorld(t, 1, func(w *flowWorld) {
		near, far := w.flow("iad", "iad", "nrt")
		until := func(way string, most time.Duration) time.Duration {
			begun := time.Now()
			for near.Way() != way && time.Since(begun) < most {
				time.Sleep(time.Second)
			}
			return time.Since(begun)
		}
		for i, patience := range []time.Duration{wellTime, 2 * wellTime} {
			w.in.Cut("icn", "iad")
			if took := until("nrt", 10*time.Second); took >= 10*time.Second {
				w.Fatalf("time %d: it is still on its way after %v", i, took)
			}
			for range 9 { // it comes and goes
				w.in.Heal("icn", "iad")
				time.Sleep(5 * time.Second)
				w.in.Cut("icn", "iad")
				time.Sleep(5 * time.Second)
			}
			if near.Way() != "nrt" || near.Moves() != 2*i+1 {
				w.Errorf("time %d: it goes by %s after %d moves", i, near.Way(), near.Moves())
			}
			w.in.Heal("icn", "iad")
			if took := until("iad", time.Hour); took < patience || took > patience*5/4+10*time.Second {
				w.Errorf("time %d: it went back after %v, want %v", i, took, patience)
			}
		}
		if err := carries(near, far, 1000, 1000, rand.New(rand.NewPCG(1, 1))); err != nil {
			w.Error(err)
		}
		w.settled()
		w.counts("icn", map[string]uint64{"flows_returned_total": 2, "streams_lost_total": 2})
	})
}

// A flow that was opened by way of another node has chosen that.
func TestAFlowThatTookADetourStaysThere(t *testing.T) {
	inFlowWorld(t, 1, func(w *flowWorld) {
		near, far := w.flow("fra", "nrt", "iad")
		w.kill("icn", "fra")
		time.Sleep(10 * wellTime)
		if near.Way() != "nrt" || near.Moves() != 1 {
			w.Errorf("it goes by %s after %d moves", near.Way(), near.Moves())
		}
		near.Abort()
		far.Close()
		w.settled()
	})
}

// Who gives up asking for another stream while the answer is on its way says nothing of the flow by that.
func TestAFlowOutlivesAQuestionThatIsGivenUp(t *testing.T) {
	for _, by := range []string{"iad", "fra"} {
		for wait := roundTrip / 5; wait < 2*roundTrip; wait += 2 * roundTrip / 5 {
			inFlowWorld(t, 1, func(w *flowWorld) {
				var others atomic.Value
				others.Store("nowhere")
				c, err := w.icn.DialLasting(w.Context(), flowWays("nrt")[0], func() []Way { return flowWays(others.Load().(string)) })
				if err != nil {
					w.Fatal(err)
				}
				near := c.(*lastingConn)
				far := w.takes(near.key.id)
				w.kill("icn", "nrt")
				time.Sleep(time.Second)
				ctx, cancel := context.WithTimeout(w.Context(), wait+time.Millisecond)
				defer cancel()
				near.goBy(ctx, flowWays(by)[0], 0)
				others.Store("iad")
				if err := carries(near, far, 1000, 1000, rand.New(rand.NewPCG(1, 1))); err != nil {
					w.Errorf("by %s, given up after %v: %v", by, wait, err)
				}
				w.settled()
			})
		}
	}
}

// Who is called off while the answer is on its way tells the other end, by TCP too, where that would wait for him otherwise.
func TestAFlowThatWasAcceptedWhenItWasCalledOffIsOver(t *testing.T) {
	for _, by := range []string{"iad", "fra"} {
		newFlowWorld(t, 1, true, func(w *flowWorld) {
			w.warm()
			ctx, callOff := context.WithCancel(w.Context())
			defer callOff()
			accepted := make(chan net.Conn, 1)
			w.nodes["iad"].Handle("flow", func(in *Incoming) {
				time.Sleep(3 * roundTrip) // it has been heard of
				accepted <- in.Accept()
				callOff()
			})
			if _, err := w.icn.DialLasting(ctx, flowWays(by)[0], func() []Way { return flowWays(by) }); !errors.Is(err, context.Canceled) {
				w.Errorf("by %s: %v", by, err)
			}
			far := <-accepted
			far.SetReadDeadline(time.Now().Add(5 * roundTrip))
			if _, err := far.Read(make([]byte, 1)); !errors.Is(err, ErrReset) {
				w.Errorf("by %s the other end reads %v", by, err)
			}
			far.Close()
			w.settled()
		})
	}
}

// Where it was not heard in time by TCP that a flow has arrived, it is asked for by QUIC under another name. What waits at the other end for the first stream
// is not taken for it, nor has it any place that the second needs to outlive its own.
func TestAFlowThatIsAskedForAgainOutlivesItsPath(t *testing.T) {
	for _, by := range []string{"iad", "fra"} {
		newFlowWorld(t, 1, true, func(w *flowWorld) {
			w.warm()
			w.in.CutOneWay(by, "icn")
			time.AfterFunc(900*time.Millisecond, func() { w.in.Heal(by, "icn") })
			ctx, cancel := context.WithTimeout(w.Context(), 1500*time.Millisecond) // half of it is for TCP
			defer cancel()
			c, err := w.icn.DialLasting(ctx, flowWays(by)[0], func() []Way { return flowWays("nrt") })
			if err != nil {
				w.Fatalf("by %s: %v", by, err)
			}
			near := c.(*lastingConn)
			if isMute(near.stream) || w.icn.Counters()["backbone_tcp_fallbacks_total"] != 1 {
				w.Fatalf("by %s: it was heard of by TCP", by)
			}
			far := w.takes(near.key.id)
			if all := slices.Concat(slices.Collect(maps.Values(w.arrived))...); len(all) != 1 {
				w.Fatalf("by %s: %d have arrived beside it", by, len(all))
			}
			w.in.Cut("icn", by)
			if err := carries(near, far, 100_000, 100_000, rand.New(rand.NewPCG(1, 1))); err != nil {
				w.Errorf("by %s: %v", by, err)
			}
			if near.Moves() != 1 || near.Way() != "nrt" {
				w.Errorf("by %s: it went on %d times, by %s at last", by, near.Moves(), near.Way())
			}
			w.settled()
			w.counts("iad", map[string]uint64{"flows_accepted_total": 2, "flows_forgone_total": 0})
		})
	}
}

// A node in between that asks again does so under the same name. The other end goes by what it has asked last.
func TestAFlowThatANodeInBetweenAsksForAgainOutlivesItsPath(t *testing.T) {
	newFlowWorld(t, 1, true, func(w *flowWorld) {
		w.warm()
		var first sync.Once
		w.nodes["iad"].Handle("flow", func(in *Incoming) {
			first.Do(func() { w.reset("fra", "iad") }) // before it is heard of there
			w.mu.Lock()
			defer w.mu.Unlock()
			w.arrived[in.Passage.ID] = append(w.arrived[in.Passage.ID], in.Accept().(*lastingConn))
		})
		c, err := w.icn.DialLasting(w.Context(), flowWays("fra")[0], func() []Way { return flowWays("nrt") })
		if err != nil {
			w.Fatal(err)
		}
		near := c.(*lastingConn)
		if n := w.nodes["fra"].Counters()["backbone_tcp_fallbacks_total"]; n != 1 {
			w.Fatalf("it was asked again %d times", n)
		}
		far := w.takes(near.key.id)
		if left := w.arrived[near.key.id]; len(left) != 1 {
			w.Fatalf("%d have arrived beside it", len(left))
		} else if _, err := left[0].Read(make([]byte, 1)); !errors.Is(err, ErrReset) {
			w.Errorf("who was asked for first reads %v", err)
		}
		w.in.Cut("icn", "fra")
		if err := carries(near, far, 100_000, 100_000, rand.New(rand.NewPCG(1, 1))); err != nil {
			w.Error(err)
		}
		if near.Moves() != 1 || near.Way() != "nrt" {
			w.Errorf("it went on %d times, by %s at last", near.Moves(), near.Way())
		}
		w.settled()
		w.counts("iad", map[string]uint64{"flows_accepted_total": 2, "flows_forgone_total": 0})
	})
}

// Two who ask for a stream at once know the same of what has come. When the first brings one, which is lost again, what the second knows is old.
func TestAFlowIsLostTwiceInARowAndNothingComesTwice(t *testing.T) {
	inFlowWorld(t, 1, func(w *flowWorld) {
		var by atomic.Value
		by.Store("nowhere")
		c, err := w.icn.DialLasting(w.Context(), flowWays("iad")[0], func() []Way { return flowWays(by.Load().(string)) })
		if err != nil {
			w.Fatal(err)
		}
		near := c.(*lastingConn)
		far := w.takes(near.key.id)
		text := make([]byte, 300)
		chaCha(1).Read(text)
		got := make(chan []byte)
		go func() {
			all, err := io.ReadAll(near)
			if err != nil {
				w.Error(err)
			}
			got <- all
		}()
		far.Write(text[:100])
		time.Sleep(time.Second)
		w.kill("icn", "iad")
		time.Sleep(50 * time.Millisecond)
		go far.Write(text[100:200])
		time.Sleep(time.Second)
		w.in.Slow("nrt", "iad", 300*time.Millisecond)
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := near.goBy(w.Context(), flowWays("fra")[0], 0); err != nil {
				w.Errorf("the first way: %v", err)
			}
		})
		time.Sleep(time.Millisecond)
		wg.Go(func() {
			if err := near.goBy(w.Context(), flowWays("nrt")[0], 0); !errors.Is(err, errMidway) {
				w.Errorf("what it had is no longer so, and it went on from there: %v", err)
			}
		})
		for near.Moves() == 0 {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(10 * time.Millisecond) // it has read all, and has not said so
		w.kill("icn", "fra")
		wg.Wait()
		by.Store("iad")
		far.Write(text[200:])
		far.CloseWrite()
		if all := <-got; !bytes.Equal(all, text) {
			w.Errorf("%d bytes came, of %d", len(all), len(text))
		}
		if near.Moves() != 2 {
			w.Errorf("it went on %d times", near.Moves())
		}
		near.CloseWrite()
		near.Close()
		io.ReadAll(far)
		far.Close()
		w.settled()
	})
}

// Nobody is at the stream when its path dies: the opener's relay waits for its client, who has paused, and the client has nothing to say.
func TestAFlowWhoseClientPausesOutlivesItsPath(t *testing.T) {
	for _, c := range []struct {
		name   string
		first  string
		breaks func(w *flowWorld)
	}{
		{"its path", "iad", func(w *flowWorld) { w.in.Cut("icn", "iad") }},
		{"its path, which it is told", "iad", func(w *flowWorld) { w.kill("icn", "iad") }},
		{"the first leg of its detour", "fra", func(w *flowWorld) { w.in.Cut("icn", "fra") }},
		{"the second leg of its detour", "fra", func(w *flowWorld) { w.in.Cut("iad", "fra") }},
		{"the node between dies", "fra", func(w *flowWorld) { w.hosts["fra"].Crash() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			byEach(t, func(w *flowWorld) {
				near, far := w.flow(c.first, "nrt")
				text := make([]byte, 7<<20)
				chaCha(1).Read(text)
				sent := make(chan error, 1)
				go func() {
					_, err := far.Write(text)
					sent <- errors.Join(err, far.CloseWrite())
				}()
				got := make([]byte, len(text))
				if _, err := io.ReadFull(near, got[:100_000]); err != nil {
					w.Fatal(err)
				}
				time.Sleep(3 * time.Second) // all that fits is on its way
				c.breaks(w)
				time.Sleep(meetTime + 5*time.Second)
				if near.Moves() != 1 || far.Moves() != 1 {
					w.Errorf("while its client paused it has gone on %d times at one end, %d at the other", near.Moves(), far.Moves())
				}
				if _, err := io.ReadFull(near, got[100_000:]); err != nil || !bytes.Equal(got, text) {
					w.Errorf("not all has come: %v", err)
				}
				if n, err := near.Read(make([]byte, 1)); n != 0 || err != io.EOF {
					w.Errorf("behind the end: %v", err)
				}
				if err := <-sent; err != nil {
					w.Error(err)
				}
				if n := w.nodes["iad"].Counters()["backbone_lasting_resent_bytes_total"]; n < 100_000 || n > uint64(len(text)) {
					w.Errorf("%d bytes are counted as sent again", n)
				}
				near.CloseWrite()
				near.Close()
				io.ReadAll(far)
				far.Close()
				w.settled()
				w.counts("icn", map[string]uint64{"streams_lost_total": 1, "flows_parted_total": 0})
			})
		})
	}
}

// An end that says what cannot be has the flow reset.
func TestALyingEndHasItsFlowReset(t *testing.T) {
	inFlowWorld(t, 1, func(w *flowWorld) {
		for i, lie := range [][]byte{
			{9, 0, 0, 0},                  // no such frame
			{0, 0, 0, 0},                  // no bytes
			{1, 0, 0, 5},                  // what was not sent
			{2, 0, 0, 0, 2, 0, 0, 0},      // two ends
			{2, 0, 0, 0, 0, 0, 0, 1, 'x'}, // bytes behind the end
			{0, 255, 255, 255, 'x', 'x'},  // too many
		} {
			h := Header{Service: "flow", Passage: Passage{ID: [16]byte{1}}}
			c, err := w.nodes["icn"].Dial(w.Context(), "iad", h)
			if err != nil {
				w.Fatal(err)
			}
			far := w.takes(h.Passage.ID)
			c.Write(lie)
			if _, err := io.Copy(io.Discard, far); err != nil && !errors.Is(err, ErrReset) {
				w.Errorf("lie %d: read %v", i, err)
			}
			if _, err := io.Copy(io.Discard, c); !errors.Is(err, ErrReset) {
				w.Errorf("lie %d: the liar read %v", i, err)
			}
			w.counts("iad", map[string]uint64{"malformed_total": uint64(i + 1), "flows": 0})
		}
	})
}

func TestDeadlinesAreKeptOverStreams(t *testing.T) {
	byEach(t, func(w *flowWorld) {
		near, far := w.flow("iad", "iad", "fra")
		expired := func(what string, do func() error) {
			begun := time.Now()
			if err := do(); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begun) != time.Second {
				w.Errorf("%s: %v after %v", what, err, time.Since(begun))
			}
			near.SetDeadline(time.Time{})
		}
		read := func() error { _, err := near.Read(make([]byte, 1)); return err }
		near.SetReadDeadline(time.Now().Add(time.Second))
		expired("read", read)
		big := make([]byte, 10<<20)
		chaCha(1).Read(big)
		wrote := 0
		near.SetWriteDeadline(time.Now().Add(time.Second))
		expired("write, which nobody reads", func() (err error) { wrote, err = near.Write(big); return err })
		w.in.CutOff("icn")
		time.Sleep(4 * time.Second)
		near.SetReadDeadline(time.Now().Add(time.Second))
		expired("read without a stream", read)
		w.in.Rejoin("icn")
		var all bytes.Buffer
		done := make(chan error)
		go func() { _, err := io.Copy(&all, far); done <- err }()
		if _, err := near.Write(big[wrote:]); err != nil {
			w.Error(err)
		}
		near.CloseWrite()
		if err := <-done; err != nil || !bytes.Equal(all.Bytes(), big) {
			w.Errorf("%d of %d bytes came: %v", all.Len(), len(big), err)
		}
		far.Abort()
		near.Close()
		w.settled()
	})
}

// Who goes while there is no stream has the other end told as soon as there can be one, whichever of them it is.
func TestWhoGoesBetweenTwoStreamsIsToldOf(t *testing.T) {
	for name, ends := range map[string]func(near, far *lastingConn) (goes, stays *lastingConn){
		"the opener": func(near, far *lastingConn) (*lastingConn, *lastingConn) { return near, far },
		"the other":  func(near, far *lastingConn) (*lastingConn, *lastingConn) { return far, near },
	} {
		for _, wait := range []time.Duration{time.Millisecond, 3 * time.Second} { // it goes while the answer is on its way, or before there is a way
			t.Run(fmt.Sprintf("%s after %v", name, wait), func(t *testing.T) {
				byEach(t, func(w *flowWorld) {
					if w.byTCP && wait < time.Second {
						return // it may be asked for twice
					}
					near, far := w.flow("iad", "iad", "fra")
					goes, stays := ends(near, far)
					var begun time.Time
					if wait < time.Second {
						w.kill("icn", "iad")
						for near.Moves() == 0 && begun.IsZero() {
							if near.mu.Lock(); near.dialled > 0 { // by fra: there is no link to iad, so that way takes no time, where it is asked for at all
								begun = time.Now()
							}
							near.mu.Unlock()
							time.Sleep(time.Millisecond)
						}
					} else {
						w.in.CutOff("icn")
						time.Sleep(wait)
						begun = time.Now()
					}
					goes.Abort()
					time.Sleep(time.Second)
					if wait > time.Second {
						w.in.Rejoin("icn")
					}
					_, err := stays.Read(make([]byte, 1))
					if took := time.Since(begun); !errors.Is(err, ErrReset) || took > 5*time.Second {
						w.Errorf("read %v after %v", err, took)
					}
					stays.Close()
					w.settled()
					w.counts("icn", map[string]uint64{"flows_parted_total": 0})
					w.counts("iad", map[string]uint64{"flows_parted_total": 0})
				})
			})
		}
	}
}

// What a deadline has left half written is not kept when the flow ends.
func TestNothingIsKeptOfWhatADeadlineHasLeft(t *testing.T) {
	for name, end := range map[string]func(near, far *lastingConn){
		"aborted":          func(near, far *lastingConn) { near.Abort() },
		"the other aborts": func(near, far *lastingConn) { far.Abort() },
	} {
		t.Run(name, func(t *testing.T) {
			byEach(t, func(w *flowWorld) {
				near, far := w.flow("iad", "iad")
				near.SetWriteDeadline(time.Now().Add(time.Second))
				if _, err := near.Write(make([]byte, 10<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
					w.Fatal(err)
				}
				near.mu.Lock()
				left := near.rest.left()
				near.mu.Unlock()
				if !left && !w.byTCP { // whose stream is lost with that
					w.Fatal("nothing is half written")
				}
				end(near, far)
				time.Sleep(time.Second)
				near.SetDeadline(time.Time{})
				near.Read(make([]byte, 1))
				near.Close()
				far.Close()
				w.settled()
			})
		})
	}
}

// What a deadline has left still arrives when the flow is closed.
func TestWhatADeadlineHasLeftArrives(t *testing.T) {
	byEach(t, func(w *flowWorld) {
		near, far := w.flow("iad", "iad")
		near.SetWriteDeadline(time.Now().Add(time.Second))
		big := make([]byte, 10<<20)
		chaCha(1).Read(big)
		wrote, err := near.Write(big)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			w.Fatal(err)
		}
		if err := near.CloseWrite(); !errors.Is(err, os.ErrDeadlineExceeded) && !w.byTCP { // which has no stream now
			w.Fatal(err)
		}
		near.Close()
		begun := time.Now()
		far.SetReadDeadline(begun.Add(time.Minute))
		got, err := io.ReadAll(far)
		if err != nil || !bytes.Equal(got, big[:len(got)]) || len(got) < wrote || time.Since(begun) > 5*time.Second {
			w.Errorf("%d bytes came, of %d and some, in %v: %v", len(got), wrote, time.Since(begun), err)
		}
		far.Close()
		w.settled()
		w.counts("icn", map[string]uint64{"flows_parted_total": 0})
	})
}

// Who reads on for what the other end still says has no deadline, least of all that of a user who is content.
func TestAnEndThatIsReadOnHasNoDeadline(t *testing.T) {
	byEach(t, func(w *flowWorld) {
		near, far := w.flow("iad", "iad")
		near.SetReadDeadline(time.Now().Add(2 * time.Second))
		far.CloseWrite()
		if _, err := io.ReadAll(near); err != nil {
			w.Fatal(err)
		}
		w.in.Cut("icn", "iad")
		time.Sleep(5 * time.Second) // the deadline passes while there is no stream
		w.in.Heal("icn", "iad")
		io.WriteString(near, "text")
		near.CloseWrite()
		near.Close()
		begun := time.Now()
		far.SetReadDeadline(begun.Add(time.Minute))
		if got, err := io.ReadAll(far); string(got) != "text" || err != nil {
			w.Errorf("%q came: %v", got, err)
		}
		far.Close()
		for w.icn.Counters()["backbone_lasting_flows"] > 0 && time.Since(begun) < time.Minute {
			time.Sleep(10 * time.Millisecond)
		}
		if took := time.Since(begun); took > 5*time.Second {
			w.Errorf("it lingers for %v", took)
		}
		w.settled()
	})
}

// Half of a flow that has ended does not keep the other from being acknowledged.
func TestAFlowIsAcknowledgedThatIsNotReadAnyMore(t *testing.T) {
	byEach(t, func(w *flowWorld) {
		near, far := w.flow("iad", "iad")
		near.CloseWrite()
		if _, err := io.ReadAll(far); err != nil {
			w.Fatal(err)
		}
		const size = lasting.MaxKept + 4<<20
		go func() {
			far.Write(make([]byte, size))
			far.CloseWrite()
			far.Close()
		}()
		if n, err := io.Copy(io.Discard, near); n != size || err != nil {
			w.Errorf("%d of %d bytes came: %v", n, size, err)
		}
		near.Close()
		w.settled()
		w.counts("iad", map[string]uint64{"flows_forgone_total": 0})
	})
}

// What little has come is acknowledged soon, for it is kept until then, and all of it at once.
func TestWhatLittleHasComeIsAcknowledgedSoonAndAtOnce(t *testing.T) {
	byEach(t, func(w *flowWorld) {
		near, far := w.flow("iad", "iad")
		go io.Copy(io.Discard, far)
		go io.Copy(io.Discard, near) // so that it hears what is acknowledged
		kept := func() uint64 {
			near.mu.Lock()
			defer near.mu.Unlock()
			return near.out.Kept()
		}
		said := func() uint64 {
			far.mu.Lock()
			defer far.mu.Unlock()
			return far.in.Received() - far.in.Due()
		}
		const some, moment = 5000, 10 * time.Millisecond
		for pieces := range 3 {
			left := roundTrip + ackDelay - moment
			for range pieces {
				near.Write(make([]byte, some))
				time.Sleep(ackDelay / 4)
				left -= ackDelay / 4
			}
			near.Write(make([]byte, some))
			if time.Sleep(left); kept() == 0 {
				w.Error("it was acknowledged though more might have come")
			}
			if time.Sleep(2 * moment); kept() > 0 {
				w.Errorf("%d bytes are kept after %v", kept(), roundTrip+ackDelay+moment)
			}
		}
		acknowledged, before := 0, said()
		for range 10 * ackDelay / moment {
			near.Write(make([]byte, 100))
			time.Sleep(moment)
			if now := said(); now != before {
				acknowledged, before = acknowledged+1, now
			}
		}
		if acknowledged < 8 || acknowledged > 11 { // it may be looked for a reader in between, and what has come goes along
			w.Errorf("in %v it was acknowledged %d times", 10*ackDelay, acknowledged)
		}
		near.Abort()
		far.Abort()
		w.settled()
	})
}

// One direction that is not read stalls the other no more than it would without acknowledgements: the flow forgoes another stream.
func TestAcknowledgementsThatAreStuckStallNothing(t *testing.T) {
	byEach(t, func(w *flowWorld) {
		near, far := w.flow("iad", "iad")
		go near.Write(make([]byte, 10<<20)) // which nobody reads
		time.Sleep(10 * time.Second)
		const size = lasting.MaxKept + 4<<20
		go func() {
			far.Write(make([]byte, size))
			far.CloseWrite()
		}()
		if n, err := io.Copy(io.Discard, near); n != size || err != nil {
			w.Errorf("%d of %d bytes came: %v", n, size, err)
		}
		w.counts("iad", map[string]uint64{"flows_forgone_total": 1})
		if n, err := io.CopyN(io.Discard, far, 10<<20); err != nil {
			w.Errorf("%d bytes came the other way: %v", n, err)
		}
		w.kill("icn", "iad")
		if _, err := near.Write([]byte("x")); err == nil {
			time.Sleep(time.Second)
			_, err = near.Write([]byte("x"))
			if !errors.Is(err, ErrDown) {
				w.Errorf("wrote after its only stream was lost: %v", err)
			}
		}
		if _, err := far.Read(make([]byte, 1)); !errors.Is(err, ErrDown) {
			w.Errorf("read after its only stream was lost: %v", err)
		}
		near.Close()
		far.Close()
		w.settled()
	})
}

// A flow that forgoes another stream while its ends meet on one is over, and nobody has said what cannot be.
func TestAFlowThatForgoesWhileItsEndsMeetIsOver(t *testing.T) {
	for name, meet := range map[string]func(w *flowWorld, near, far *lastingConn) *lastingConn{
		"the opener": func(w *flowWorld, near, far *lastingConn) *lastingConn {
			w.kill("icn", "iad")
			for far.Moves() == 0 { // its answer is on its way
				time.Sleep(time.Millisecond)
			}
			return near
		},
		"the other": func(w *flowWorld, near, far *lastingConn) *lastingConn {
			go near.Move(w.Context(), flowWays("iad")[0])
			time.Sleep(roundTrip + roundTrip/4) // it has answered, and is to be told what has come
			return far
		},
	} {
		t.Run(name, func(t *testing.T) {
			byEach(t, func(w *flowWorld) {
				near, far := w.flow("iad", "iad")
				at := meet(w, near, far)
				at.mu.Lock()
				at.forgoes()
				at.mu.Unlock()
				for _, c := range []*lastingConn{near, far} {
					if _, err := c.Read(make([]byte, 1)); !errors.Is(err, ErrDown) && !errors.Is(err, ErrReset) {
						w.Errorf("read %v", err)
					}
					c.Close()
				}
				w.settled()
			})
		})
	}
}

// Where too much is kept by all, those pay that keep much, and neither who is silent nor who sends little.
func TestOneFlowDoesNotPayForTheSlowReadersOfOthers(t *testing.T) {
	byEach(t, func(w *flowWorld) {
		silent, silentFar := w.flow("iad", "fra")
		slow, slowFar := w.flow("iad", "fra")
		for _, b := range w.nodes {
			b.lasting.held.Add(2*lasting.MaxKeptByAll + 1) // by many others
		}
		talks, talksFar := w.flow("iad", "fra")
		says := func(a, b net.Conn) {
			for i := range 20 {
				io.WriteString(a, "message")
				if got := make([]byte, 7); true {
					if _, err := io.ReadFull(b, got); err != nil || string(got) != "message" {
						w.Fatalf("message %d came as %q: %v", i, got, err)
					}
				}
				a, b = b, a
			}
		}
		says(talks, talksFar)
		go slowFar.Write(make([]byte, 10<<20)) // which nobody reads
		time.Sleep(time.Second)
		w.kill("icn", "iad")
		time.Sleep(3 * time.Second)
		says(silent, silentFar)
		says(talks, talksFar)
		if silent.Moves() != 1 || talks.Moves() != 1 {
			w.Errorf("the silent one has gone on %d times, the other %d", silent.Moves(), talks.Moves())
		}
		if _, err := slow.Read(make([]byte, 1)); !errors.Is(err, ErrDown) && !errors.Is(err, ErrReset) {
			w.Errorf("who keeps much has read %v", err)
		}
		w.counts("icn", map[string]uint64{"flows_opened_total": 3, "flows_forgone_total": 0})
		w.counts("iad", map[string]uint64{"flows_forgone_total": 1})
		for _, c := range []*lastingConn{silent, silentFar, slow, slowFar, talks, talksFar} {
			c.Abort()
		}
		for _, b := range w.nodes {
			b.lasting.held.Add(-2*lasting.MaxKeptByAll - 1)
		}
		w.settled()
	})
}

// What was closed still arrives, on whatever stream.
func TestWhatWasClosedArrives(t *testing.T) {
	byEach(t, func(w *flowWorld) {
		near, far := w.flow("iad", "iad")
		far.CloseWrite()
		if _, err := io.ReadAll(near); err != nil {
			w.Fatal(err)
		}
		text := strings.Repeat("x", 200_000)
		io.WriteString(near, text)
		w.kill("icn", "iad")
		near.CloseWrite()
		near.Close()
		if got, err := io.ReadAll(far); string(got) != text || err != nil {
			w.Errorf("%d of %d bytes came: %v", len(got), len(text), err)
		}
		far.Close()
		w.settled()
	})
}

func TestASilentFlowTakesLittle(t *testing.T) {
	if size := unsafe.Sizeof(lastingConn{}); size > 416 { // which is one of the sizes in which memory is given out, and so is the other
		t.Errorf("an end takes %d bytes", size)
	}
	if size := unsafe.Sizeof(streamConn{}); size > 208 {
		t.Errorf("a stream takes %d bytes", size)
	}
}

// What it takes to watch a stream is kept for as long as the stream is open, so a flow that is read does without.
func TestAStreamIsWatchedOnceNobodyReadsIt(t *testing.T) {
	inFlowWorld(t, 1, func(w *flowWorld) {
		near, far := w.flow("iad", "iad")
		watched := func() bool {
			near.mu.Lock()
			defer near.mu.Unlock()
			return near.unwatch != nil
		}
		for range 2 {
			read := make(chan error, 1)
			go func() {
				_, err := io.ReadFull(near, make([]byte, 1))
				read <- err
			}()
			time.Sleep(10 * ackDelay)
			if watched() {
				w.Error("it is watched, though somebody waits for what comes")
			}
			if _, err := io.WriteString(far, "x"); err != nil {
				w.Fatal(err)
			}
			if err := <-read; err != nil {
				w.Fatal(err)
			}
		}
		time.Sleep(3 * ackDelay)
		if !watched() {
			w.Error("it is not watched, though nobody reads")
		}
		w.kill("icn", "iad")
		time.Sleep(time.Second)
		if n := near.Moves(); n != 1 {
			w.Errorf("it went on over %d streams", n)
		}
		time.Sleep(3 * ackDelay)
		if !watched() {
			w.Error("the next stream is not watched")
		}
		near.Abort()
		far.Abort()
		w.settled()
	})
}

// meetings is how many runs of chance there are; PERIGEE_MEETINGS has others.
func meetings(t *testing.T) int {
	if n, err := strconv.Atoi(os.Getenv("PERIGEE_MEETINGS")); err == nil {
		return n
	}
	if testing.Short() {
		return 2
	}
	return 3
}

// Whatever happens on the way, as long as both ends live and can meet now and then: not a byte is lost, and none comes twice.
func TestAFlowOutlivesItsPaths(t *testing.T) {
	t.Run("QUIC", func(t *testing.T) { outlives(t, false) })
	t.Run("TCP", func(t *testing.T) { outlives(t, true) })
}

func outlives(t *testing.T, byTCP bool) {
	moves, flows, opened, early, lost := 0, 0, 0, 0, uint64(0)
	for seed := range uint64(meetings(t)) {
		flowWorldOf(t, seed, byTCP, seed%3 == 0, func(w *flowWorld) { // a link is warmed again each time it comes up
			w.warm()
			ctx, stop := context.WithTimeout(w.Context(), time.Minute)
			defer stop()
			var mu sync.Mutex
			var told []string
			begun := time.Now()
			say := func(format string, args ...any) {
				mu.Lock()
				defer mu.Unlock()
				told = append(told, fmt.Sprintf("%8v ", time.Since(begun).Round(time.Millisecond))+fmt.Sprintf(format, args...))
			}
			var wg sync.WaitGroup
			wg.Go(func() { w.mishaps(ctx, rand.New(rand.NewPCG(seed, 2)), say) })
			for i := range 8 {
				chance := rand.New(rand.NewPCG(seed, uint64(10+i)))
				wg.Go(func() {
					for ctx.Err() == nil {
						said := &saidEarly{text: make([]byte, chance.IntN(2)*chance.IntN(20_000)), pieces: 1 + chance.IntN(5), pause: time.Duration(chance.Int64N(int64(2 * roundTrip)))}
						id := chance.Uint64()
						chaCha(id).Read(said.text)
						near, far := w.opens(ctx, said, chance)
						if near == nil {
							continue
						}
						if chance.IntN(3) == 0 {
							time.AfterFunc(time.Duration(chance.Int64N(int64(10*time.Second))), func() {
								way := flowWays([]string{"iad", "fra", "nrt"}[near.key.id[1]%3])[0]
								way.byTCP = near.key.id[2]%2 == 0 // where there is a connection
								near.Move(w.Context(), way)
							})
						}
						near.mu.Lock()
						mute := near.stream != nil && isMute(near.stream)
						near.mu.Unlock()
						say("flow %x, by TCP: %v", near.key.id[:2], mute)
						given := said.n
						err := carriesAs(id, &begunEarly{near, given}, far, given+chance.IntN(500_000), chance.IntN(500_000), chance)
						mu.Lock()
						flows++
						if given > 0 {
							early++
						}
						if mute {
							opened++
						}
						moves += near.Moves()
						mu.Unlock()
						if err != nil {
							say("flow %x: %v", near.key.id[:2], err)
							w.Errorf("seed %d: flow %x, %d moves, %d: %v", seed, near.key.id[:2], near.Moves(), far.Moves(), err)
						}
					}
				})
			}
			wg.Wait()
			w.settled()
			for _, b := range w.nodes {
				lost += b.Counters()["backbone_lasting_streams_lost_total"]
			}
			if w.Failed() {
				w.Log(strings.Join(told, "\n"))
			}
		})
		if t.Failed() {
			break
		}
	}
	t.Logf("%d flows, of which %d were opened by TCP and %d began before they were taken, moved %d times; %d ends lost their stream", flows, opened, early, moves, lost)
	if moves < flows/4 || (opened > flows/4) != byTCP || (early > flows/8) == byTCP {
		t.Error("too little has happened")
	}
}

// opens opens a flow by a way of chance; nil: there is none now.
func (w *flowWorld) opens(ctx context.Context, said *saidEarly, chance *rand.Rand) (near, far *lastingConn) {
	all := []string{"iad", "fra", "nrt"}
	chance.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	c, err := w.icn.DialLasting(WithEarly(ctx, said.begin), flowWays(all[0])[0], func() []Way { return flowWays(all...) })
	said.speaks.Wait()
	if err != nil {
		time.Sleep(100 * time.Millisecond)
		return nil, nil
	}
	near = c.(*lastingConn)
	if far = w.takes(near.key.id); far == nil {
		near.Abort()
		return nil, nil
	}
	return near, far
}

// saidEarly is what is said of a flow before it is taken, in pieces.
type saidEarly struct {
	text   []byte
	pieces int
	pause  time.Duration // between them
	speaks sync.WaitGroup
	n      int // bytes that were taken
}

func (s *saidEarly) begin(w io.Writer) {
	s.speaks.Wait() // who spoke to the stream before
	s.n = 0
	s.speaks.Go(func() {
		for size := (len(s.text) + s.pieces - 1) / s.pieces; s.n < len(s.text); time.Sleep(s.pause) {
			n, err := w.Write(s.text[s.n:min(s.n+size, len(s.text))])
			if s.n += n; err != nil {
				return
			}
		}
	})
}

// begunEarly is an end of a flow of which some was said before it was taken.
type begunEarly struct {
	net.Conn
	said int // of what is to be written
}

func (b *begunEarly) Write(p []byte) (int, error) {
	said := min(b.said, len(p))
	b.said -= said
	n, err := b.Conn.Write(p[said:])
	return said + n, err
}

func (b *begunEarly) CloseWrite() error { return b.Conn.(*lastingConn).CloseWrite() }

// mishaps breaks the paths, and what carries flows on, until the context ends; never for as long that the ends cannot meet.
func (w *flowWorld) mishaps(ctx context.Context, chance *rand.Rand, say func(string, ...any)) {
	all := []string{"icn", "iad", "fra", "nrt"}
	pause := func(most time.Duration) {
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(chance.Int64N(int64(most)))):
		}
	}
	for ctx.Err() == nil {
		for range 1 + chance.IntN(4) {
			a, b := all[chance.IntN(4)], all[chance.IntN(4)]
			if a == b {
				continue
			}
			switch chance.IntN(8) {
			case 0, 1:
				say("cut %s %s", a, b)
				w.in.Cut(a, b)
			case 2:
				say("cut %s to %s", a, b)
				w.in.CutOneWay(a, b)
			case 3:
				say("kill %s to %s", a, b)
				w.kill(a, b)
			case 4:
				say("lossy %s %s", a, b)
				p := w.path(a, b)
				p.Loss, p.Jitter = 0.02*float64(chance.IntN(8)), time.Duration(chance.Int64N(int64(50*time.Millisecond)))
				w.in.Link(a, b, p)
			case 5:
				say("slow %s %s", a, b)
				w.in.Slow(a, b, time.Duration(chance.Int64N(int64(300*time.Millisecond))))
			case 6:
				say("reset %s to %s", a, b)
				w.reset(a, b)
			case 7:
				if a = []string{"fra", "nrt"}[chance.IntN(2)]; chance.IntN(2) == 0 {
					say("%s ends", a)
					w.stop(a)
				} else {
					say("%s dies", a)
					w.hosts[a].Crash()
					w.stop(a)
					w.hosts[a].Restart()
				}
				w.start(a)
			}
			pause(time.Second)
		}
		pause(2 * time.Second)
		say("heal")
		for i, a := range all {
			for _, b := range all[:i] {
				w.in.Heal(a, b)
				w.in.Slow(a, b, 0)
				w.in.Link(a, b, w.path(a, b))
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(4*time.Second + time.Duration(chance.Int64N(int64(2*time.Second)))):
		}
	}
}

// held is a stream whose writes wait until they are let go.
type held struct {
	stream
	free chan struct{}
}

func (h held) Write(p []byte) (int, error) {
	<-h.free
	return h.stream.Write(p)
}

// An end that is closed while it writes its last acknowledgement leaves the stream after that, or the other end would hear a stream end of which it still
// awaits something.
func TestTheLastAcknowledgementIsWrittenBeforeAFlowIsLeft(t *testing.T) {
	byEach(t, func(w *flowWorld) {
		near, far := w.flow("fra")
		near.CloseWrite()
		if _, err := far.Read(make([]byte, 1)); err != io.EOF {
			w.Fatalf("read: %v", err)
		}
		time.Sleep(time.Second) // it is acknowledged
		slow := make(chan struct{})
		near.mu.Lock()
		near.stream = held{near.stream, slow}
		near.mu.Unlock()
		far.CloseWrite()
		if _, err := near.Read(make([]byte, 1)); err != io.EOF {
			w.Fatalf("read: %v", err)
		}
		time.Sleep(time.Second) // it is being acknowledged
		near.Close()
		time.Sleep(time.Second)
		near.mu.Lock()
		if near.over != nil || !near.using[writer] {
			w.Errorf("it is over before it has acknowledged all: %v", near.over)
		}
		near.mu.Unlock()
		close(slow)
		far.Close()
		w.settled()
	})
}
