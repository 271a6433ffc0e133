package origin

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/socket"
	"github.com/perigee-net/perigee/origin/relay"
)

// What requests and flows meet at a target is evidence of its health (NLB and ALB call it passive checks and anomaly
// detection). Against a target are: a dial that failed, a new connection that it broke before a byte of an answer, a
// 5xx. For it are any other answer, and a flow that stands. Nothing at all is what may be the client's doing: that it
// left, sent half a request, or asked for what takes long; or a connection that was kept too long; or what this node
// has ended itself. What follows from evidence is not decided here.

const (
	// patience is how long a dial must have lasted for its running out of time to count against the target: edge nodes wait so long, at least, until they
	// ask another.
	patience = 200 * time.Millisecond
	// longPatience is that for a dial that was called off: as another had answered first, which says nothing of a target that is merely far, or as who
	// asked had waited for all of a second, less the way here (edge nodes that do not say how long there is).
	longPatience = 800 * time.Millisecond
	// settled is how long a flow must stand to count for its target.
	settled = time.Second
)

func (p *Plane) evidence(key health.Key, client netip.Addr, failed bool, reason string) {
	if p.config.Evidence == nil {
		return
	}
	if failed {
		p.counters.evidenceFailed.Add(1)
	} else {
		p.counters.evidencePassed.Add(1)
	}
	p.config.Evidence(key, client, failed, reason)
}

// reason is why traffic failed, for people, without the addresses, which the key has.
func reason(what string, err error) string {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Err != nil {
		err = op.Err
	} else if dial, ok := errors.AsType[*dialError](err); ok {
		err = dial.err
	}
	return "traffic: " + what + ": " + err.Error()
}

// settling are flows that have not stood for long enough to count for their target, the oldest first, with one timer for all.
type settling struct {
	held
	runs bool // the timer does
}

// settle begins to watch a flow: settled tells how it has ended.
func (f *flow) settle() {
	p := f.plane
	if p.config.Evidence == nil {
		return
	}
	s := &p.settling
	s.mu.Lock()
	defer s.mu.Unlock()
	f.settles = time.Now().Add(settled)
	s.push(&f.settling, f)
	if !s.runs {
		s.runs = true
		time.AfterFunc(settled, p.settled)
	}
}

// settled has the flows count that have stood for long enough.
func (p *Plane) settled() {
	s := &p.settling
	var stand []*flow
	s.mu.Lock()
	now := time.Now()
	for one := s.first(); one != nil && !now.Before(one.flow.settles); one = s.first() {
		s.drop(one)
		stand = append(stand, one.flow)
	}
	next := s.first()
	if s.runs = next != nil; s.runs {
		time.AfterFunc(next.flow.settles.Sub(now), p.settled)
	}
	s.mu.Unlock()
	for _, f := range stand {
		p.evidence(f.key, f.client, false, "")
	}
}

// settled tells how a flow has ended, if it was not told that it stands.
func (f *flow) settled(r relay.Result) {
	p := f.plane
	switch {
	case p.config.Evidence == nil || !p.settling.remove(&f.settling):
	case r.Err == nil || r.BToA > 0:
		p.evidence(f.key, f.client, false, "")
	case r.Broke == relay.B && !errors.Is(r.Err, net.ErrClosed): // else this node has ended it, as its target is to be left
		p.evidence(f.key, f.client, true, reason("broke off before it sent a byte", r.Err))
	}
}

// answered tells that a target has answered.
func (p *Plane) answered(key health.Key, client netip.Addr, status int) {
	if p.config.Evidence == nil {
		return
	}
	why := ""
	if status >= 500 {
		why = fmt.Sprintf("traffic: answered %d", status)
	}
	p.evidence(key, client, why != "", why)
}

// witness tells what an attempt met at a target.
func (x *exchange) witness(addr netip.AddrPort, a *attempt, res *http.Response, err error) {
	if x.plane.config.Evidence == nil {
		return
	}
	failed, why := false, ""
	dial, unsent := errors.AsType[*dialError](err)
	switch {
	case err == nil:
		x.plane.answered(health.TargetKey(x.group.spec.Name, addr), x.viewer(), res.StatusCode)
		return
	case x.ended():
		return
	case unsent:
		if errors.Is(dial.err, errLeft) || errors.Is(dial.err, ErrReturns) || socket.Lacking(dial.err, dial.target) {
			return
		}
		failed, why = true, reason("dial", err)
	case a.reused.Load(), a.answered.Load(), a.upload != nil && a.upload.failed() != nil:
		return
	default:
		failed, why = true, reason("broke off before it answered", err)
	}
	x.plane.evidence(health.TargetKey(x.group.spec.Name, addr), x.viewer(), failed, why)
}

// viewer is whose request it is: who connected, or whom the edge node names, last in its X-Forwarded-For. Invalid if
// that is nobody.
func (x *exchange) viewer() netip.Addr {
	if x.inside {
		if lines := x.in.Header[forwardedFor]; len(lines) > 0 {
			last := lines[len(lines)-1]
			addr, _ := netip.ParseAddr(strings.TrimSpace(last[strings.LastIndexByte(last, ',')+1:]))
			return addr.Unmap().WithZone("")
		}
		return netip.Addr{}
	}
	return x.peer
}
