package backbone

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// breaking is a stream that breaks when it has taken so many bytes.
type breaking struct {
	duplexConn
	after int
}

func (c *breaking) Write(p []byte) (int, error) {
	n, err := c.duplexConn.Write(p[:min(len(p), c.after)])
	if err == nil && n < len(p) {
		err = errors.New("it broke")
	}
	return n, err
}

// Abort lets arrive what was written.
func (c *breaking) Abort() { c.duplexConn.Close() }

// Of the messages that were given to a stream which then broke, none goes again: it may have arrived.
func TestWhatMayHaveArrivedByAStreamDoesNotGoAgain(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad, there, flow, _ := w.both(true)
		defer iad.Close()
		defer icn.Close()
		w.send(flow, "opens it")
		there.take()
		all := []string{strings.Repeat("a", 5000), strings.Repeat("b", 5000), strings.Repeat("c", 5000), strings.Repeat("d", 5000)}
		s := &flow.peer.large
		s.conn = &breaking{w.mustDial(icn, "iad", datagramService), 12_000} // within the third
		w.send(flow, all...)
		time.Sleep(10 * roundTrip)
		got := there.take()
		slices.Sort(got)
		w.wants("each once", got, all...)
		if n := icn.Counters()["backbone_datagrams_unsent_total"]; n != 2 { // whether those have arrived is not known
			w.Errorf("%d are counted as unsent", n)
		}
	})
}

// A stream that has ended while nothing was to be sent costs nothing.
func TestAStreamThatHasEndedIsNotWrittenTo(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad, there, flow, _ := w.both(true)
		defer iad.Close()
		defer icn.Close()
		large := strings.Repeat("a", 5000)
		w.send(flow, large)
		time.Sleep(5 * roundTrip)
		w.wants("the first", there.take(), large)
		flow.peer.large.mu.Lock()
		flow.peer.large.conn.Close()
		flow.peer.large.mu.Unlock()
		w.send(flow, large)
		time.Sleep(5 * roundTrip)
		w.wants("the second", there.take(), large)
		if n := icn.Counters()["backbone_datagrams_unsent_total"]; n != 0 {
			w.Errorf("%d are counted as unsent", n)
		}
	})
}

// A first datagram that goes by a stream has its flow opened by that, whatever becomes of the frame that opens it, too.
func TestAFirstDatagramThatIsLargeOpensItsFlow(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad, there, flow, _ := w.both(true)
		defer iad.Close()
		defer icn.Close()
		large := strings.Repeat("a", 5000)
		m := appendMessage(nil, kindThere, flow.flow, nil, []byte(large))
		flow.peer.overflow(m, end{at: len(m), large: true, data: true, opens: flow}) // no frame goes
		time.Sleep(5 * roundTrip)
		w.wants("it", there.take(), large)
		if !flow.known.Load() {
			w.Error("it is not known that the flow is open")
		}
	})
}

// The stream of large datagrams is only written, and that is not the fault of a reader.
func TestTheStreamOfLargeDatagramsIsNotThatOfASlowReader(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad, there, flow, _ := w.both(true)
		defer iad.Close()
		defer icn.Close()
		large := strings.Repeat("a", 5000)
		w.send(flow, large)
		time.Sleep(5 * roundTrip)
		w.wants("one", there.take(), large)
		full := defaultWindows
		full.slow = 0 // whoever is slow is too much
		l := (*icn.links.Load())["iad"]
		for range slowLooks + 1 {
			for _, c := range l.carriers {
				if wide, narrow := c.unread.look(full); len(wide)+len(narrow) > 0 {
					w.Error("its reader counts as slow")
				}
			}
		}
	})
}

func TestMessagesAreCutBehindTheLastThatIsWhole(t *testing.T) {
	one := []byte{0, 0, 0, 2, 'a', 'b'}
	queue := slices.Concat(one, one, one)
	for n, want := range map[int]int{0: 0, 3: 0, 5: 0, 6: 6, 7: 6, 11: 6, 12: 12, 17: 12, 18: 18} {
		if whole, rest := cutMessages(queue, n); len(whole) != want || len(rest) != len(queue)-want {
			t.Errorf("of %d bytes %d are whole, want %d", n, len(whole), want)
		}
	}
}

// One node can take no more than its share of what there is for all.
func TestAPeerHasAShareOfFlowsAndConnections(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad, there, flow, here := w.both(true)
		defer iad.Close()
		defer icn.Close()
		p := iad.peer("icn")
		p.mu.Lock()
		for n := range uint32(maxPeerFlows) {
			p.flows[n+flow.flow+1] = nil
		}
		p.mu.Unlock()
		w.send(flow, "a")
		if ends := here.ends(); len(ends) != 1 || !strings.Contains(ends[0].Error(), "of one node") {
			w.Errorf("ended %v", ends)
		}
		w.wants("what came", there.take())
		if n := iad.Counters()["backbone_datagram_flows_crowded_total"]; n != 1 {
			w.Errorf("%d are counted", n)
		}
		p.mu.Lock()
		clear(p.flows)
		p.mu.Unlock()

		iad.visiting.Lock()
		of := iad.shares["icn"]
		had := of.connections
		of.connections = maxPeerConnections + 1 // with the one that goes now
		iad.visiting.Unlock()
		icn.Keep(nil)
		icn.Keep(peers("iad"))
		time.Sleep(5 * time.Second)
		if icn.Links().Get()["iad"].Up || iad.Counters()["backbone_peers_crowded_total"] == 0 || had != 1 {
			w.Errorf("had %d, link %+v", had, icn.Links().Get()["iad"])
		}
		iad.visiting.Lock()
		of.connections = 0
		iad.visiting.Unlock()
		w.until(icn, "iad", true)
	})
}
