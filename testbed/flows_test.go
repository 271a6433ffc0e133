package testbed

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/node"
	"github.com/perigee-net/perigee/testbed/memnet"
)

const (
	flowsAtOnce = 12
	flowsTime   = 90 * time.Second // of mishaps
	flowsAbroad = 40 * time.Second // of these, in which the targets beside icn1 are not there yet
	flowsQuiet  = 8 * time.Second  // of these, in which nothing else is the matter yet: some flows cross the backbone whatever breaks then
	flowsMost   = 192 << 10        // bytes of a flow, each way
	flowsIdle   = 340 * time.Second
	flowHead    = 24
)

// flowsRun is flows that come and go while things break.
type flowsRun struct {
	w     *World
	began time.Time
	next  uint64
	dumb  bool // machines may fall silent: who waits for one is not told

	mu     sync.Mutex
	tally  map[string]int
	faults []string
	told   []string
}

func (r *flowsRun) say(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.told = append(r.told, fmt.Sprintf("%8v %s", time.Since(r.began).Round(time.Millisecond), fmt.Sprintf(format, args...)))
}

func (r *flowsRun) fault(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = append(r.faults, fmt.Sprintf("%8v %s", time.Since(r.began).Round(time.Millisecond), fmt.Sprintf(format, args...)))
}

func (r *flowsRun) count(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tally[what]++
}

// planned is what the two ends of a flow send, which both know by its head.
type planned struct {
	id        uint64
	up, down  int  // bytes to the target, and back
	downFirst bool // the target does not wait for the client's end
}

func (p planned) head() []byte {
	b := binary.BigEndian.AppendUint64(nil, p.id)
	b = binary.BigEndian.AppendUint32(b, uint32(p.up))
	b = binary.BigEndian.AppendUint32(b, uint32(p.down))
	first := uint64(0)
	if p.downFirst {
		first = 1
	}
	return binary.BigEndian.AppendUint64(b, first)
}

func planOf(b []byte) planned {
	return planned{
		binary.BigEndian.Uint64(b), int(binary.BigEndian.Uint32(b[8:])), int(binary.BigEndian.Uint32(b[12:])), binary.BigEndian.Uint64(b[16:]) == 1,
	}
}

// sends writes the bytes of one direction in pieces and with pauses, and ends it.
func (r *flowsRun) sends(conn net.Conn, id uint64, size int, chance *rand.Rand) error {
	bytes := rand.NewChaCha8(chaChaSeed(id))
	piece := make([]byte, 16<<10)
	for size > 0 {
		n := min(size, 1+chance.IntN(len(piece)))
		bytes.Read(piece[:n])
		if _, err := conn.Write(piece[:n]); err != nil {
			return err
		}
		if size -= n; chance.IntN(3) == 0 {
			time.Sleep(time.Duration(chance.Int64N(int64(2 * time.Second))))
		}
	}
	return conn.(interface{ CloseWrite() error }).CloseWrite()
}

// reads reads one direction to its end. What comes must be what was sent, and an end must be behind all of it.
func (r *flowsRun) reads(who string, conn net.Conn, id uint64, size int, chance *rand.Rand) (whole bool) {
	bytes := rand.NewChaCha8(chaChaSeed(id))
	got, want := make([]byte, 16<<10), make([]byte, 16<<10)
	at := 0
	for {
		n, err := conn.Read(got[:1+chance.IntN(len(got))])
		bytes.Read(want[:n])
		if string(got[:n]) != string(want[:n]) || at+n > size {
			r.fault("%s: flow %d: other bytes than were sent between %d and %d of %d", who, id, at, at+n, size)
			return false
		}
		at += n
		switch {
		case err == io.EOF && at < size:
			r.fault("%s: flow %d: a clean end after %d of %d bytes", who, id, at, size)
			return false
		case err == io.EOF:
			return true
		case errors.Is(err, os.ErrDeadlineExceeded) && r.dumb:
			r.count("never told")
			return false
		case errors.Is(err, os.ErrDeadlineExceeded):
			r.fault("%s: flow %d hangs after %d of %d bytes", who, id, at, size)
			return false
		case err != nil:
			return false
		}
		if chance.IntN(8) == 0 {
			time.Sleep(time.Duration(chance.Int64N(int64(500 * time.Millisecond))))
		}
	}
}

func chaChaSeed(id uint64) (seed [32]byte) {
	binary.BigEndian.PutUint64(seed[:], id)
	return seed
}

// serve has a target speak its part of each flow. Connections without a byte are health checks.
func (r *flowsRun) serve(name string, l net.Listener, all *sync.WaitGroup) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		all.Go(func() {
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(flowsTime + 2*flowsIdle)) // a machine that has crashed is told nothing
			head := make([]byte, flowHead)
			if n, err := io.ReadFull(conn, head); err != nil {
				if n > 0 && errors.Is(err, io.ErrUnexpectedEOF) {
					r.fault("%s: a clean end after %d bytes of a head", name, n)
				}
				return
			}
			p := planOf(head)
			chance := rand.New(rand.NewPCG(p.id, 3))
			var back sync.WaitGroup
			send := func() { r.sends(conn, ^p.id, p.down, chance) }
			if p.downFirst {
				back.Go(send)
			}
			if r.reads(name, conn, p.id, p.up, rand.New(rand.NewPCG(p.id, 4))) {
				r.count("whole at a target")
				if !p.downFirst {
					send()
				}
			}
			back.Wait()
		})
	}
}

// asks has a client open a flow and speak its part of it. Some leave in the middle: with a reset, for a close is an end.
func (r *flowsRun) asks(ctx context.Context, client string, chance *rand.Rand) {
	r.mu.Lock()
	r.next++
	p := planned{r.next, chance.IntN(flowsMost), chance.IntN(flowsMost), chance.IntN(2) == 0}
	r.mu.Unlock()
	dialling, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	conn, err := r.w.clients[client].Dial(dialling, "tcp", accelerated.String())
	if err != nil {
		r.count("not opened")
		return
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(flowsTime + 2*flowsIdle))
	if chance.IntN(8) == 0 {
		leaves := time.AfterFunc(time.Duration(chance.Int64N(int64(10*time.Second))), func() {
			conn.(interface{ SetLinger(int) error }).SetLinger(0)
			conn.Close()
		})
		defer leaves.Stop()
	}
	if _, err := conn.Write(p.head()); err != nil {
		r.count("broken")
		return
	}
	var send sync.WaitGroup
	sends, paces := rand.New(rand.NewPCG(p.id, 1)), rand.New(rand.NewPCG(p.id, 2))
	send.Go(func() { r.sends(conn, p.id, p.up, sends) })
	whole := r.reads(client, conn, ^p.id, p.down, paces)
	if !whole {
		conn.Close()
	}
	send.Wait()
	if whole {
		r.count("whole at a client")
		return
	}
	r.count("broken")
}

// mishaps breaks what flows need, until the context ends. One node and one target are left alone.
func (r *flowsRun) mishaps(ctx context.Context, targets map[string]func(), chance *rand.Rand) {
	w := r.w
	nodes, names := []string{"fra1", "iad1"}, []string{"fra-a", "fra-b", "iad-a", "iad-b", "icn-a"}
	all := slices.Concat(nodes, []string{"icn1"})
	do := func(verb string, args ...string) {
		r.say("%s %s", verb, strings.Join(args, " "))
		if out, err := w.Do(ctx, verb, args); err != nil && ctx.Err() == nil {
			r.say("!%s %v", out, err)
		}
	}
	abroad := true
	time.Sleep(flowsQuiet)
	for ctx.Err() == nil {
		if abroad && time.Since(r.began) >= flowsAbroad {
			abroad = false
			for _, name := range []string{"icn-a", "icn-b"} {
				r.say("%s is there", name)
				targets[name] = r.open(name)
			}
		}
		dies := "kill"
		if r.dumb && chance.IntN(2) == 0 {
			dies = "crash"
		}
		node, other, target := nodes[chance.IntN(2)], all[chance.IntN(3)], names[chance.IntN(len(names))]
		switch chance.IntN(9) {
		case 0, 1:
			if w.nodes[node].lives() {
				do(dies, node)
			} else {
				do("start", node)
			}
		case 2, 3:
			t := w.targets[target]
			if abroad && target == "icn-a" {
				break
			}
			if targets[target] == nil {
				r.say("start %s", target)
				t.host.Restart()
				targets[target] = r.open(target)
				break
			}
			r.say("%s %s", dies, target)
			if dies == "crash" {
				t.host.Crash()
			} else {
				t.host.Kill()
			}
			targets[target]()
			targets[target] = nil
		case 4, 5:
			if node != other {
				w.in.LinkOneWay(node, other, memnet.Path{Jitter: 20 * time.Millisecond, Loss: 0.02 * float64(chance.IntN(10))})
				r.say("lossy %s %s", node, other)
			}
		case 6:
			if node != other {
				do("cut", node, other)
			}
		default:
			for i, a := range all {
				for _, b := range all[:i] {
					w.in.Heal(a, b)
				}
			}
			r.say("heal")
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(chance.Int64N(int64(8 * time.Second)))):
		}
	}
}

// open has a target serve, and returns what ends that.
func (r *flowsRun) open(name string) (end func()) {
	t := r.w.targets[name]
	l, err := t.host.Listen("tcp", fmt.Sprintf(":%d", tcpPort))
	if err != nil {
		r.fault("%s: %v", name, err)
		return func() {}
	}
	var all sync.WaitGroup
	all.Go(func() { r.serve(name, l, &all) })
	return func() {
		l.Close()
		all.Wait()
	}
}

// Whatever breaks, on whatever way a flow takes: each byte arrives once and in its place, and who reads an end has read all that was sent.
func TestAFlowArrivesWholeOrIsReset(t *testing.T) {
	for _, byTCP := range []string{node.TCPAuto, node.TCPAlways} {
		t.Run(byTCP, func(t *testing.T) {
			t.Parallel()
			flowsArriveWholeOrAreReset(t, byTCP)
		})
	}
}

func flowsArriveWholeOrAreReset(t *testing.T, byTCP string) {
	tally := map[string]int{}
	for _, seed := range seeds(t, 2) {
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			w, err := NewWorld(t.Context(), WorldConfig{Dir: dir, Files: os.DirFS("labs"), Seed: seed, FlowsByTCP: byTCP})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			r := &flowsRun{w: w, began: time.Now(), tally: tally, dumb: seed%2 == 0}
			targets := map[string]func(){}
			for name, target := range w.targets {
				target.end()
				if beside := strings.HasPrefix(name, "icn"); !beside { // icn1 lives through it all, and sends its flows elsewhere until it has targets
					targets[name] = r.open(name)
				}
			}
			ctx, stop := context.WithTimeout(t.Context(), flowsTime)
			defer stop()
			var clientsDone, mishaps sync.WaitGroup
			for i := range flowsAtOnce {
				chance := rand.New(rand.NewPCG(seed, uint64(i)))
				clientsDone.Go(func() {
					for ctx.Err() == nil {
						from := clients[chance.IntN(len(clients))].name
						if i < flowsAtOnce/3 && time.Since(r.began) < flowsQuiet {
							from = "seoul"
						}
						r.asks(ctx, from, chance)
						time.Sleep(time.Duration(chance.Int64N(int64(time.Second))))
					}
				})
			}
			mishaps.Go(func() { r.mishaps(ctx, targets, rand.New(rand.NewPCG(seed, 99))) })
			mishaps.Wait()
			clientsDone.Wait()
			crossed := 0
			for node, n := range w.nodes {
				if n.lives() {
					for _, name := range []string{"backbone_tcp_flows_total", "backbone_tcp_flows_taken_total"} {
						crossed += int(w.metric(t.Context(), t, node, name))
					}
				}
			}
			tally["by TCP"] += crossed
			if byTCP == node.TCPAlways && crossed == 0 {
				t.Errorf("PERIGEE_SEED=%d: no flow went by TCP", seed)
			}
			for _, end := range targets {
				if end != nil {
					end()
				}
			}
			if len(r.faults) > 0 {
				t.Errorf("PERIGEE_SEED=%d: %d faults\n%s\n%s", seed, len(r.faults), strings.Join(r.faults[:min(len(r.faults), 10)], "\n"), strings.Join(r.told, "\n"))
			}
		})
		os.RemoveAll(dir)
	}
	for what, n := range tally {
		t.Logf("%6d %s", n, what)
	}
	if tally["whole at a client"] == 0 || tally["broken"] == 0 {
		t.Error("the flows show too little")
	}
}
