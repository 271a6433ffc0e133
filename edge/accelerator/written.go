package accelerator

import (
	"math/rand/v2"
	"sync"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/edge/accelerator/flowlog"
	"github.com/perigee-net/perigee/origin"
	"github.com/perigee-net/perigee/origin/relay"
)

// window is how long what a flow carries is added up until it is written down (Global Accelerator: up to a minute).
const window = time.Minute

// Why a flow is refused, as flow logs say it.
const (
	tooMany    = "TOO_MANY_FLOWS"
	noEndpoint = "NO_ENDPOINT"
)

// written is a flow that is written down, or nil where it is not.
type written struct {
	log  *flowlog.Log
	flow *live

	mu      sync.Mutex
	entry   flowlog.Entry
	in, out int64 // that entries tell of already
	known   bool  // the leg
	now     relay.Leg
	told    relay.Leg // that entries tell of already
	timer   *time.Timer
	over    bool
}

// drawn is whether a flow is written down, and the rate by which those of its accelerator are.
type drawn struct {
	written bool
	rate    float64
}

// sampled draws for a flow of an accelerator.
func (p *Plane) sampled(a *spec.Accelerator) drawn {
	rate := a.FlowLogs.Rate()
	return drawn{p.config.FlowLog != nil && rate > 0 && (rate >= 1 || rand.Float64() < rate), rate}
}

// write begins to write a flow down, if it was drawn.
func (p *Plane) write(a *spec.Accelerator, f *live) *written {
	if !f.drawn.written {
		return nil
	}
	w := &written{log: p.config.FlowLog, flow: f}
	w.entry = p.entry(Flow{f.client, f.local}, a, f.drawn.rate, f.began)
	w.entry.Protocol = f.protocol
	w.entry.Endpoint, w.entry.Region = origin.Unpreserved(f.resource), f.region
	w.entry.EndpointAddr = flowlog.EndpointAddr(w.entry.Endpoint)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer = time.AfterFunc(window, w.tick)
	return w
}

// rejected counts a flow that was refused, and writes it down, if its accelerator wants that and chance does.
func (p *Plane) rejected(a *spec.Accelerator, protocol string, f Flow, why string) {
	p.more.rejected.of(labels{a.Name, listenerOf(a, protocol, f.Local.Port()), why}, labels{Other, Other, Other}).flows.Add(1)
	drawn := p.sampled(a)
	if !drawn.written {
		return
	}
	e := p.entry(f, a, drawn.rate, time.Now())
	e.Protocol = protocol
	e.Rejected, e.Packets, e.Ended = why, -1, "refused"
	p.config.FlowLog.Add(&e)
}

// listenerOf is the listener of a protocol at a port, in words; only the protocol where there is none any more.
func listenerOf(a *spec.Accelerator, protocol string, port uint16) string {
	for i := range a.Listeners {
		if l := &a.Listeners[i]; l.Protocol == protocol && l.Has(port) {
			return protocol + " " + l.Ports()
		}
	}
	return protocol
}

func (p *Plane) entry(f Flow, a *spec.Accelerator, rate float64, began time.Time) flowlog.Entry {
	v := p.config.View()
	e := flowlog.Entry{Accelerator: a.Name, Client: f.Client, Local: f.Local, Protocol: spec.TCP, Start: began, End: began, Began: began, Rate: rate}
	if v != nil {
		me, _ := v.Member(v.Self)
		e.Node, e.POP = v.Self, me.POP
	}
	return e
}

func (w *written) tick() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return
	}
	w.now, w.known = w.flow.leg()
	w.add("")
	w.timer.Reset(window)
}

// last looks at the client's connection for the last time.
func (w *written) last() {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now, w.known = w.flow.leg()
}

// end writes down what was carried since the last window.
func (w *written) end(how string) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
	w.timer.Stop()
	if now, ok := w.flow.leg(); ok { // it is no connection that was closed
		w.now, w.known = now, true
	}
	w.add(how)
}

// add writes down a window, in both directions.
func (w *written) add(how string) {
	e := &w.entry
	if !e.EndpointAddr.IsValid() {
		e.EndpointAddr = w.flow.at()
	}
	now, _ := w.flow.now()
	e.To, e.By = now.Node, now.By
	in, out := w.flow.carried.Moved()
	in, out = max(in, w.in), max(out, w.out) // what a client had sent and its endpoint never took counts no more once they are closed
	e.End, e.Ended, e.Packets, e.RTT = time.Now(), how, -1, 0
	if w.known {
		e.RTT, e.Retransmitted, e.Packets = w.now.RTT, w.now.Retransmitted, int64(w.now.PacketsIn-w.told.PacketsIn)
	}
	e.Out, e.Bytes = false, in-w.in
	w.log.Add(e)
	if w.known {
		e.Packets = int64(w.now.PacketsOut - w.told.PacketsOut)
		w.told = w.now
	}
	e.Out, e.Bytes = true, out-w.out
	w.log.Add(e)
	w.in, w.out, e.Start = in, out, e.End
}
