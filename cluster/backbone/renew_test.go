package backbone

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/perigee-net/perigee/cluster/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// traffic is what uses one link while it is changed: a flow of numbers there and back that never pauses, and a new stream
// every 10 ms that is asked for something and must answer.
type traffic struct {
	*world
	from    *Backbone
	to      string
	flow    duplexConn
	ended   chan error // of the flow
	cancel  context.CancelFunc
	opened  atomic.Int64
	failed  atomic.Pointer[error]
	slowest atomic.Int64 // of all dials, in ns
	working sync.WaitGroup
}

func (w *world) load(from *Backbone, to string) *traffic {
	w.Helper()
	ctx, cancel := context.WithCancel(w.Context())
	t := &traffic{world: w, from: from, to: to, flow: w.mustDial(from, to, "echo"), ended: make(chan error, 1), cancel: cancel}
	sent := make(chan uint64, 1)
	t.working.Go(func() {
		defer t.flow.CloseWrite()
		block := make([]byte, 800)
		for n := uint64(0); ; {
			for i := 0; i < len(block); i += 8 {
				binary.BigEndian.PutUint64(block[i:], n)
				n++
			}
			if _, err := t.flow.Write(block); err != nil {
				sent <- n
				return
			}
			select {
			case <-time.After(5 * time.Millisecond):
			case <-ctx.Done():
				sent <- n
				return
			}
		}
	})
	t.working.Go(func() {
		defer t.flow.Close()
		var got [8]byte
		for n := uint64(0); ; n++ {
			if _, err := io.ReadFull(t.flow, got[:]); err != nil {
				if all := <-sent; err == io.EOF && n != all {
					err = fmt.Errorf("%d of %d numbers came back", n, all)
				}
				t.ended <- err
				return
			}
			if m := binary.BigEndian.Uint64(got[:]); m != n {
				t.ended <- fmt.Errorf("%d came back as %d", n, m)
				return
			}
		}
	})
	t.working.Go(func() {
		for ctx.Err() == nil {
			t.working.Go(func() {
				if err := t.once(); err != nil {
					t.failed.CompareAndSwap(nil, &err)
				}
			})
			time.Sleep(10 * time.Millisecond)
		}
	})
	return t
}

// once opens a stream and asks it for something.
func (t *traffic) once() error {
	begun := time.Now()
	c, err := t.from.Dial(context.Background(), t.to, Header{Service: "echo"})
	if err != nil {
		return err
	}
	defer c.Close()
	for took := int64(time.Since(begun)); ; {
		slowest := t.slowest.Load()
		if took <= slowest || t.slowest.CompareAndSwap(slowest, took) {
			break
		}
	}
	if err := says(c.(duplexConn), "hello"); err != nil {
		return err
	}
	t.opened.Add(1)
	c.(duplexConn).CloseWrite()
	if _, err := io.ReadAll(c); err != nil {
		return fmt.Errorf("at its end: %w", err)
	}
	return nil
}

// end ends the traffic and says what went wrong with it.
func (t *traffic) end(within time.Duration) {
	t.Helper()
	t.cancel()
	t.working.Wait()
	if err := <-t.ended; err != io.EOF {
		t.Errorf("the flow: %v", err)
	}
	if err := t.failed.Load(); err != nil {
		t.Errorf("a stream: %v", *err)
	}
	if slowest := time.Duration(t.slowest.Load()); slowest > within {
		t.Errorf("a dial took %v, want at most %v", slowest, within)
	}
}

// watch follows a link and says when it was ever down, until the context ends.
func (t *traffic) watch(ctx context.Context) {
	t.working.Go(func() {
		for version := uint64(0); ; {
			links, v, err := t.from.Links().Next(ctx, version)
			if err != nil {
				return
			}
			if version = v; !links[t.to].Up {
				t.Errorf("the link was down: %+v", links[t.to])
			}
		}
	})
}

func (w *world) renew(b *Backbone, by *identity.Authority, epoch uint64) {
	w.Helper()
	name := b.config.Self
	w.guards[name].SetNode(issue(w, by, name, epoch, w.now()))
	b.Renew()
}

// carriers are how many of a link take streams, and how many leave.
func carriers(b *Backbone, node string) (up, leaving int) {
	l := (*b.links.Load())[node]
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.carriers), len(l.leaving)
}

func (w *world) wantCarriers(b *Backbone, node string, up, leaving int) {
	w.Helper()
	if u, l := carriers(b, node); u != up || l != leaving {
		w.Errorf("%d carriers are up and %d leave, want %d and %d", u, l, up, leaving)
	}
}

func TestARenewalReplacesLinksUnderTheirStreams(t *testing.T) {
	for _, renewed := range []string{"the dialler", "the other"} {
		for _, carriersEach := range []int{1, 3} {
			t.Run(fmt.Sprintf("%s, %d carriers", renewed, carriersEach), func(t *testing.T) {
				inWorld(t, func(w *world) {
					var shown atomic.Uint64 // the epoch that the other was shown last
					there := w.config("iad", w.authority)
					there.PeerName = func(state tls.ConnectionState) (string, error) {
						shown.Store(epochOf(state))
						return identity.PeerName(state)
					}
					here := w.config("icn", w.authority)
					here.Carriers = carriersEach
					icn, iad := w.openWith(here), w.openWith(there)
					defer icn.Close()
					defer iad.Close()
					icn.Keep(peers("iad"))
					time.Sleep(2 * time.Second)
					since := icn.Links().Get()["iad"].Since
					load := w.load(icn, "iad")
					load.watch(load.flowContext())
					time.Sleep(time.Second)
					if renewed == "the dialler" {
						w.renew(icn, w.authority, 2)
					} else {
						w.renew(iad, w.authority, 2)
					}
					time.Sleep(replaceSpread + 10*roundTrip)
					w.wantCarriers(icn, "iad", carriersEach, 1) // the one with the long flow
					if renewed == "the dialler" && shown.Load() != 2 {
						w.Errorf("a certificate of epoch %d is shown, want 2", shown.Load())
					}
					if n := icn.Counters()["backbone_carriers_replaced_total"]; n != uint64(carriersEach) {
						w.Errorf("%d carriers were replaced, want %d", n, carriersEach)
					}
					time.Sleep(time.Second)
					load.end(roundTrip * 3 / 2)
					time.Sleep(2 * roundTrip) // the other end closes its end of the flow, and says so
					synctest.Wait()
					w.wantCarriers(icn, "iad", carriersEach, 0)
					if n := visitors(iad); n != carriersEach {
						w.Errorf("%d connections are left, want %d", n, carriersEach)
					}
					if c := icn.Counters(); c["backbone_carriers_lost_total"] != 0 || c["backbone_overdue_total"] != 0 || c["backbone_carriers_leaving"] != 0 {
						w.Errorf("counted %v", c)
					}
					if l := icn.Links().Get()["iad"]; l.Since != since {
						w.Errorf("the link is %+v, want it up since %v", l, since)
					}
				})
			})
		}
	}
}

// flowContext ends with the traffic.
func (t *traffic) flowContext() context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	before := t.cancel
	t.cancel = func() { cancel(); before() }
	return ctx
}

func TestAWholeRotationBreaksNothing(t *testing.T) {
	for name, test := range map[string]struct {
		apart  time.Duration // between what happens to the one end and to the other
		pause  time.Duration // between the steps
		within time.Duration // of a dial
	}{
		"with time between the steps":        {2 * time.Second, 3 * time.Second, roundTrip * 3 / 2},
		"while links are still replaced":     {100 * time.Millisecond, 300 * time.Millisecond, 6 * roundTrip},
		"at both ends at once":               {0, 4 * time.Second, roundTrip * 3 / 2},
		"at both ends at once, all in a row": {0, 0, 6 * roundTrip},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				next, err := identity.NewAuthority(w.authority.ClusterID(), time.Now())
				if err != nil {
					w.Fatal(err)
				}
				icn, iad := w.pair()
				defer icn.Close()
				defer iad.Close()
				iad.Keep(peers("icn"))
				w.until(iad, "icn", true)
				loads := []*traffic{w.load(icn, "iad"), w.load(iad, "icn")}
				for _, load := range loads {
					load.watch(load.flowContext())
				}
				epoch := uint64(1)
				for range 2 { // rotations
					step := func(what func(*Backbone)) {
						what(icn)
						time.Sleep(test.apart)
						what(iad)
						time.Sleep(test.pause)
					}
					trust := func(authorities ...*identity.Authority) func(*Backbone) {
						return func(b *Backbone) {
							var all [][]byte
							for _, a := range authorities {
								all = append(all, a.Certificate())
							}
							w.guards[b.config.Self].SetTrust(identity.Trust{Authorities: all})
							b.Check()
						}
					}
					step(trust(w.authority, next))
					epoch++
					step(func(b *Backbone) { w.renew(b, next, epoch) })
					step(trust(next))
					w.authority = next
					if next, err = identity.NewAuthority(w.authority.ClusterID(), time.Now()); err != nil {
						w.Fatal(err)
					}
				}
				time.Sleep(2 * time.Second)
				for _, load := range loads {
					load.end(test.within)
					w.Logf("%d streams were opened, the slowest in %v", load.opened.Load(), time.Duration(load.slowest.Load()))
				}
				time.Sleep(2 * time.Second)
				w.wantCarriers(icn, "iad", 1, 0)
				w.wantCarriers(iad, "icn", 1, 0)
				for _, b := range []*Backbone{icn, iad} {
					c := b.Counters()
					if visitors(b) != 1 || c["backbone_overdue_total"] != 0 || c["backbone_carriers_lost_total"] != 0 || c["backbone_peers_refused_total"] != 0 {
						w.Errorf("%s has %d connections, and counted %v", b.config.Self, visitors(b), c)
					}
					for _, l := range *b.links.Load() {
						for _, c := range l.carriers {
							if err := b.refuses(c.conn); err != nil {
								w.Errorf("%s uses what is refused: %v", b.config.Self, err)
							}
						}
					}
				}
			})
		})
	}
}

// What dials when the authority is retired before the other end could be renewed, or before this one knows of it, waits for
// the next connection.
func TestDialsWaitForTheSuccessorOfAnOutdatedConnection(t *testing.T) {
	for _, who := range []string{"icn", "iad"} { // who retires it first
		t.Run(who+" retires it", func(t *testing.T) {
			inWorld(t, func(w *world) {
				next, err := identity.NewAuthority(w.authority.ClusterID(), time.Now())
				if err != nil {
					w.Fatal(err)
				}
				icn, iad := w.pair()
				defer icn.Close()
				defer iad.Close()
				load := w.load(icn, "iad")
				load.watch(load.flowContext())
				for _, b := range []*Backbone{icn, iad} { // nobody tells the backbone
					w.guards[b.config.Self].SetTrust(identity.Trust{Authorities: [][]byte{w.authority.Certificate(), next.Certificate()}})
					w.guards[b.config.Self].SetNode(issue(w, next, b.config.Self, 2, w.now()))
				}
				time.Sleep(time.Second)
				w.guards[who].SetTrust(identity.Trust{Authorities: [][]byte{next.Certificate()}})
				map[string]*Backbone{"icn": icn, "iad": iad}[who].Check()
				time.Sleep(5 * time.Second)
				w.wantCarriers(icn, "iad", 1, 1)
				moved := iad.Counters()["backbone_streams_moved_total"]
				if (who == "iad") != (moved > 0) {
					w.Errorf("%d streams were turned away", moved)
				}
				load.end(7 * roundTrip)
			})
		})
	}
}

func TestAFlowIsCutWhenItsConnectionHasLeftForTooLong(t *testing.T) {
	for _, rotates := range []bool{false, true} {
		t.Run(fmt.Sprintf("outdated %t", rotates), func(t *testing.T) {
			inWorld(t, func(w *world) {
				c := w.config("icn", w.authority)
				var broken atomic.Bool
				c.ClientTLS = func(node string) *tls.Config {
					if broken.Load() {
						return &tls.Config{MaxVersion: tls.VersionTLS12} // no QUIC
					}
					return w.guards["icn"].ClientTLS(node, ALPN)
				}
				icn, iad := w.openWith(c), w.open("iad")
				defer icn.Close()
				defer iad.Close()
				icn.Keep(peers("iad"))
				w.until(icn, "iad", true)
				near, far := w.streams(icn, "iad", iad)
				defer near.Close()
				defer far.Close()
				begun := time.Now()
				if rotates { // and the one who dialled makes no other connection
					broken.Store(true)
					w.guards["iad"].SetTrust(identity.Trust{Authorities: [][]byte{w.otherAuthority().Certificate()}})
					iad.Check()
				} else {
					w.renew(icn, w.authority, 2)
				}
				_, err := near.Read(make([]byte, 1))
				if !errors.Is(err, ErrDown) {
					w.Errorf("it read %v", err)
				}
				if took := time.Since(begun); took < drainTime || took > drainTime+time.Minute {
					w.Errorf("it was cut after %v", took)
				}
				time.Sleep(roundTrip)
				if n := icn.Counters()["backbone_overdue_total"] + iad.Counters()["backbone_overdue_total"]; n != 1 {
					w.Errorf("%d were overdue, want 1", n)
				}
				if c := icn.Counters(); c["backbone_carriers_leaving"] != 0 || c["backbone_carriers_lost_total"] != 0 {
					w.Errorf("counted %v", c)
				}
			})
		})
	}
}

func (w *world) otherAuthority() *identity.Authority {
	w.Helper()
	a, err := identity.NewAuthority(w.authority.ClusterID(), time.Now())
	if err != nil {
		w.Fatal(err)
	}
	return a
}

func TestTheConnectionsThatLeaveAreBounded(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pair()
		defer icn.Close()
		defer iad.Close()
		var flows []duplexConn
		for i := range maxLeaving + 3 {
			flows = append(flows, w.mustDial(icn, "iad", "echo"))
			w.renew(icn, w.authority, uint64(i+2))
			time.Sleep(5 * roundTrip)
		}
		w.wantCarriers(icn, "iad", 1, maxLeaving)
		for i, c := range flows {
			if err := says(c, "hello"); (err != nil) != (i < 3) {
				w.Errorf("flow %d: %v", i, err)
			}
			c.Close()
		}
		time.Sleep(2 * time.Second)
		w.wantCarriers(icn, "iad", 1, 0)
		if n := icn.Counters()["backbone_overdue_total"]; n != 3 {
			w.Errorf("%d were overdue, want 3", n)
		}
	})
}

// A connection that leaves must not take with it what the other end has not read yet.
func TestAConnectionThatLeavesWaitsForTheFarReader(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pair()
		defer icn.Close()
		defer iad.Close()
		near, far := w.streams(icn, "iad", iad)
		text := strings.Repeat("what was sent before the end ", 5000)
		write(w, near, text)
		near.CloseWrite()
		near.Close()
		w.renew(icn, w.authority, 2)
		time.Sleep(10 * time.Minute)
		w.wantCarriers(icn, "iad", 1, 1)
		got, err := io.ReadAll(far)
		if err != nil || sha256.Sum256(got) != sha256.Sum256([]byte(text)) {
			w.Errorf("%d of %d bytes came, %v", len(got), len(text), err)
		}
		far.Close()
		time.Sleep(2 * roundTrip)
		w.wantCarriers(icn, "iad", 1, 0)
	})
}

func TestAPeerThatIsRevokedDuringAReplacementIsCutOff(t *testing.T) {
	for name, after := range map[string]time.Duration{
		"before it is dialled anew":   0,
		"in the handshake":            roundTrip / 2,
		"in the hello":                roundTrip * 3 / 2,
		"when the old one is leaving": roundTrip * 5,
	} {
		for _, who := range []string{"icn", "iad"} { // who revokes the other
			t.Run(name+", by "+who, func(t *testing.T) {
				inWorld(t, func(w *world) {
					icn, iad := w.pair()
					defer icn.Close()
					defer iad.Close()
					near, far := w.streams(icn, "iad", iad)
					defer near.Close()
					defer far.Close()
					w.renew(icn, w.authority, 1)
					time.Sleep(after)
					w.guards[who].SetTrust(w.trust(map[string]string{"icn": "iad", "iad": "icn"}[who]))
					map[string]*Backbone{"icn": icn, "iad": iad}[who].Check()
					begun := time.Now()
					if _, err := near.Read(make([]byte, 1)); err == nil || err == io.EOF || time.Since(begun) > roundTrip {
						w.Errorf("the flow read %v after %v", err, time.Since(begun))
					}
					for range 50 {
						time.Sleep(100 * time.Millisecond)
						if icn.Links().Get()["iad"].Up && time.Since(begun) > 5*roundTrip {
							w.Fatal("the link is up")
						}
					}
					if up, leaving := carriers(icn, "iad"); up+leaving != 0 || visitors(iad) != 0 {
						w.Errorf("%d carriers, %d leaving and %d visitors are left", up, leaving, visitors(iad))
					}
				})
			})
		}
	}
}

func TestCloseDuringAReplacement(t *testing.T) {
	for _, who := range []string{"icn", "iad", "the link"} {
		for _, after := range []time.Duration{0, roundTrip / 2, roundTrip * 3 / 2, roundTrip * 5} {
			t.Run(fmt.Sprint(who, " after ", after), func(t *testing.T) {
				inWorld(t, func(w *world) {
					icn, iad := w.pair()
					defer icn.Close()
					defer iad.Close()
					near, far := w.streams(icn, "iad", iad)
					defer near.Close()
					defer far.Close()
					w.renew(icn, w.authority, 2)
					time.Sleep(after)
					begun := time.Now()
					switch who {
					case "icn":
						icn.Close()
					case "iad":
						iad.Close()
					default:
						icn.Keep(nil)
					}
					if took := time.Since(begun); took > time.Second {
						w.Errorf("it took %v", took)
					}
					for _, c := range []duplexConn{near, far} {
						if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF || time.Since(begun) > roundTrip {
							w.Errorf("the flow read %v after %v", err, time.Since(begun))
						}
					}
				})
			})
		}
	}
}

// While the peer lets nobody in, what is there is used.
func TestALinkWhoseSuccessorDoesNotComeUpGoesOn(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pair()
		defer icn.Close()
		defer iad.Close()
		load := w.load(icn, "iad")
		load.watch(load.flowContext())
		other := w.otherAuthority() // not introduced: a mistake
		w.renew(icn, other, 2)
		time.Sleep(30 * time.Second)
		w.wantCarriers(icn, "iad", 1, 0)
		w.renew(icn, w.authority, 3)
		time.Sleep(lastBackoff + 5*roundTrip)
		w.wantCarriers(icn, "iad", 1, 1)
		load.end(roundTrip * 3 / 2)
	})
}

// Where no successor comes of an outdated connection the link is down, and the flows go on.
func TestAnOutdatedLinkWithoutASuccessorIsDown(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pair()
		defer icn.Close()
		defer iad.Close()
		c := w.mustDial(icn, "iad", "echo")
		defer c.Close()
		w.guards["icn"].SetTrust(identity.Trust{Authorities: [][]byte{w.otherAuthority().Certificate()}})
		icn.Check()
		begun := time.Now()
		if _, err := icn.Dial(w.Context(), "iad", Header{Service: "echo"}); !errors.Is(err, ErrDown) || time.Since(begun) > attemptTimeout {
			w.Errorf("dialled after %v: %v", time.Since(begun), err)
		}
		w.until(icn, "iad", false)
		if l := icn.Links().Get()["iad"]; l.Reason == "" {
			w.Errorf("the link is %+v", l)
		}
		time.Sleep(time.Minute)
		if err := says(c, "hello"); err != nil {
			w.Errorf("the flow: %v", err)
		}
		w.guards["icn"].SetTrust(w.trust())
		w.until(icn, "iad", true)
	})
}

// A peer that asks for a new connection again and again gets one about once a second, and no gap.
func TestAPeerThatAlwaysAsksIsDialledAtItsPace(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pair()
		defer icn.Close()
		defer iad.Close()
		load := w.load(icn, "iad")
		load.watch(load.flowContext())
		for range 1000 {
			iad.Renew()
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(2 * time.Second)
		if n := icn.Counters()["backbone_carriers_replaced_total"]; n < 5 || n > 30 {
			w.Errorf("in 10 s it was replaced %d times", n)
		}
		load.end(roundTrip * 3 / 2)
	})
}
