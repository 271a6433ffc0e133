package accelerator

import (
	"context"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/backbone"
	"github.com/perigee-net/perigee/cluster/view"
)

// answers has nodes take flows after a time, though they were called off meanwhile.
func (b *bench) answers(after map[string]time.Duration) {
	dial := b.plane.config.Dial
	b.plane.config.Dial = func(_ context.Context, name string, h backbone.Header) (net.Conn, error) {
		time.Sleep(after[name])
		return dial(context.Background(), name, h)
	}
}

// serves has a flow carry a byte there and back, and returns how long that took.
func (b *bench) serves() time.Duration {
	b.Helper()
	c := b.dial()
	defer c.Close()
	began := time.Now()
	io.WriteString(c, "x")
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		b.Fatal(err)
	}
	took := time.Since(began)
	c.CloseWrite()
	io.ReadAll(c)
	return took
}

func TestWhoAnswersFirstHasTheFlowAndOthersAreCalledOff(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		name   string
		after  map[string]time.Duration
		tried  int
		within time.Duration
		counts map[string]uint64
	}{
		{"the first is slow", map[string]time.Duration{"icn1": 250 * ms, "icn2": 250 * ms}, 2, 250 * ms,
			map[string]uint64{"accelerator_attempts_called_off_total": 1}},
		{"the next region is quicker", map[string]time.Duration{"icn1": 900 * ms, "icn2": 900 * ms}, 3, 900 * ms, // this first one does not hear that it is called off
			map[string]uint64{"accelerator_attempts_failed_total": 0, "accelerator_failovers_total": 1, "accelerator_attempts_called_off_total": 2}},
	} {
		t.Run(c.name, func(t *testing.T) {
			onBench(t, threeRegions(), nil, func(b *bench) {
				b.answers(c.after)
				if took := b.serves(); took > c.within+100*ms {
					b.Errorf("it took %v", took)
				}
				time.Sleep(2 * attemptTimeout)
				if tried := b.dialled(); len(tried) != c.tried {
					b.Errorf("dialled %q", tried)
				}
				for name, want := range c.counts {
					if n := b.plane.Counters()[name]; n != want {
						b.Errorf("%s is %d, want %d", name, n, want)
					}
				}
				if n := b.plane.Counters()["accelerator_flows"]; n != 0 {
					b.Errorf("%d flows are left", n)
				}
			})
		})
	}
}

func TestADetourThatIsSilentIsNotWaitedForAlone(t *testing.T) {
	node := func(ctx context.Context, name string) error {
		if name == "sfo1" {
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}
	onBench(t, network{groups: []testGroup{up("iad", 90, 100)}}, node, func(b *bench) {
		b.plane.config.View().Detour = by(map[string]view.Detour{"iad1": {By: "sfo1", RTT: 60 * time.Millisecond, Direct: 90 * time.Millisecond}})
		if took := b.serves(); took > soonest+100*time.Millisecond {
			b.Errorf("it took %v", took)
		}
		synctest.Wait()
		b.count(map[string]uint64{
			"accelerator_flows_total": 1, "accelerator_detours_failed_total": 1, "accelerator_processed_bytes_in_total": 1, "accelerator_processed_bytes_out_total": 1,
		})
	})
}

func TestAnAttemptIsWaitedForByItsRoundTrip(t *testing.T) {
	const ms = time.Millisecond
	p := New(Config{View: func() *view.View {
		return &view.View{RTT: map[string]time.Duration{"near": 5 * ms, "far": 140 * ms, "farther": 300 * ms}}
	}})
	for node, want := range map[string]time.Duration{"near": soonest, "far": 280 * ms, "farther": latest, "unknown": soonest} {
		if got := p.patience(Candidate{Node: node}); got != want {
			t.Errorf("%s: %v, want %v", node, got, want)
		}
	}
}

func TestSilenceLeadsToOtherRegions(t *testing.T) {
	var r race
	for _, region := range []string{"a", "a", "a", "b", "b", "c"} {
		r.all = append(r.all, entrant{Candidate: Candidate{Region: region}})
	}
	for _, c := range []struct {
		silence bool
		want    []int
	}{{true, []int{0, 1, 3, 5, 2, 4, -1}}, {false, []int{0, 1, 2, 3, 4, 5, -1}}} {
		var got []int
		for i := range r.all {
			r.all[i].begun = 0
		}
		for range c.want {
			i := r.pick(c.silence)
			if got = append(got, i); i >= 0 {
				r.all[i].begun = 1
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("silence %v: %v, want %v", c.silence, got, c.want)
		}
	}
}

// Who is asked is told how long there is for the answer, if all on the way know of that.
func TestANodeIsToldHowLongItHas(t *testing.T) {
	v := &view.View{RTT: map[string]time.Duration{"far": 300 * time.Millisecond, "farthest": 2 * time.Second, "between": 100 * time.Millisecond}}
	v.Detour = by(map[string]view.Detour{"far": {By: "between", RTT: 200 * time.Millisecond, Direct: 300 * time.Millisecond}})
	v.Distance = func(a, b string) (time.Duration, bool) { return 300 * time.Millisecond, a == "between" && b == "lost" }
	for _, name := range []string{"near", "far", "farthest", "between", "lost"} {
		v.Members = append(v.Members, view.Member{Name: name, Timed: true})
	}
	v.Members = append(v.Members, view.Member{Name: "old"})
	for _, c := range []struct {
		to, by string
		want   time.Duration
	}{
		{"near", "", time.Second}, {"far", "", 700 * time.Millisecond}, {"farthest", "", leastLeft}, {"far", "near", 700 * time.Millisecond},
		{"far", "between", 800 * time.Millisecond}, {"lost", "between", 600 * time.Millisecond}, {"near", "between", 900 * time.Millisecond},
		{"old", "", 0}, {"far", "old", 0}, {"unknown", "", 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if got := waits(ctx, v, c.to, c.by); got != c.want {
				t.Errorf("%s by way of %q: %v, want %v", c.to, c.by, got, c.want)
			}
			if got := waits(context.Background(), v, c.to, c.by); got != 0 {
				t.Errorf("without a bound: %v", got)
			}
		})
	}
}

// started has a flow of b be started as a door does, which recovers; it returns what was recovered.
func (b *bench) started(client net.Conn) (recovered any) {
	defer func() { recovered = recover() }()
	b.plane.Start(client, local, func() {})
	return nil
}

// A panic of an attempt is one of who has the flow be started, wherever it was made, and leaves nothing behind.
func TestAPanicOfAnAttemptEndsItsFlowAlone(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		name      string
		faulty    int // which attempt it is, from 1
		after     time.Duration
		others    time.Duration
		recovered bool
	}{
		{"of the first, while the second is under way", 1, 300 * ms, 500 * ms, true},
		{"of the first, after the second has answered", 1, 500 * ms, 50 * ms, true},
		{"of the second", 2, 50 * ms, 900 * ms, true},
		{"of the second, after the first has answered", 2, 500 * ms, 300 * ms, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			onBench(t, threeRegions(), nil, func(b *bench) {
				var begun, open atomic.Int64
				dial := b.plane.config.Dial
				b.plane.config.Dial = func(_ context.Context, name string, h backbone.Header) (net.Conn, error) {
					if begun.Add(1) == int64(c.faulty) {
						time.Sleep(c.after)
						panic("a fault")
					}
					time.Sleep(c.others)
					far, err := dial(context.Background(), name, h)
					if err == nil {
						open.Add(1)
						far = &noted{Conn: far, closed: sync.OnceFunc(func() { open.Add(-1) })}
					}
					return far, err
				}
				near, client := net.Pipe()
				if got := b.started(near); (got != nil) != c.recovered {
					t.Errorf("recovered %v", got)
				}
				near.Close()
				client.Close()
				time.Sleep(2 * attemptTimeout)
				if n := b.plane.Counters()["accelerator_flows"]; n != 0 || open.Load() != 0 {
					t.Errorf("%d flows and %d streams are left", n, open.Load())
				}
			})
		})
	}
}

// noted is a connection that tells that it is closed.
type noted struct {
	net.Conn
	closed func()
}

func (n *noted) Close() error {
	n.closed()
	return n.Conn.Close()
}

// A timer that fires while a failure has the next attempt begin has none begin beside it.
func TestATimerThatCrossesAFailureBeginsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &race{plane: New(Config{}), ends: time.Now().Add(connectTimeout), won: -1, all: make([]entrant, 3)}
		r.mu.Lock()
		r.begin(0)
		r.mu.Unlock()
		if i, _ := r.following(); i >= 0 {
			t.Errorf("attempt %d is begun as well", i)
		}
		r.abandon()
	})
}
