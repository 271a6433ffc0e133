package accelerator

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/cluster/backbone"
	"github.com/perigee-net/perigee/origin"
	"github.com/perigee-net/perigee/origin/relay"
)

// maxCarriedDatagramFlows bounds the flows of datagrams that are carried on here for other nodes; more are refused.
const maxCarriedDatagramFlows = 16384

// askPause is how far apart a node is asked for others whether it knows a flow: as long as they do not hear that, each of their datagrams asks.
const askPause = 10 * time.Millisecond

// errEnds is why a node carries nothing on.
var errEnds = errors.New("this node ends")

// carriedFlow is a flow of datagrams of another node that goes on from here to a third.
type carriedFlow struct {
	plane *Plane
	back  Refusable
	idler relay.Idler
	done  atomic.Bool
	told  atomic.Bool // the other end has said that it knows the flow, and who has opened it here hears of it

	mu    sync.Mutex // guards what follows
	far   Datagrams  // nil: it is being opened
	asked time.Time  // it was asked last whether it knows the flow
}

// Refusable is the way back to who has opened a flow of datagrams.
type Refusable interface {
	Send(all [][]byte) error
	Close()
	// Refuse closes it so that it goes elsewhere.
	Refuse(reason string)
	// Tell passes on what the other end has told.
	Tell(text string)
}

// carriedFlows are those that there are.
type carriedFlows struct {
	mu     sync.Mutex
	all    map[*carriedFlow]struct{}
	closed bool
}

func (a *carriedFlows) enter(c *carriedFlow) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.closed:
		return errEnds
	case len(a.all) >= maxCarriedDatagramFlows:
		return errors.New("too many flows of datagrams are carried on here")
	case a.all == nil:
		a.all = map[*carriedFlow]struct{}{}
	}
	a.all[c] = struct{}{}
	return nil
}

func (a *carriedFlows) leave(c *carriedFlow) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.all, c)
}

func (a *carriedFlows) count() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return uint64(len(a.all))
}

// ServeDatagramDetour carries on a flow of datagrams of another node, to the node that the resource begins with. It waits for nothing: that the
// other end refuses it shows later, and is passed on. Nothing is carried on twice.
func (p *Plane) ServeDatagramDetour(a backbone.Arrival) (backbone.Receiver, error) {
	return p.carryOn(a.Header, a.Large, a.Back)
}

func (p *Plane) carryOn(h backbone.Header, large bool, back Refusable) (backbone.Receiver, error) {
	c := &carriedFlow{plane: p, back: back}
	if err := c.open(h, large); err != nil {
		p.count.detoursRefused.Add(1)
		return backbone.Receiver{}, err
	}
	p.count.carried.Add(1)
	return backbone.Receiver{Receive: c.on, End: func(error) { c.end("") }, Asked: c.ask}, nil
}

func (c *carriedFlow) open(h backbone.Header, large bool) error {
	p := c.plane
	node, resource, ok := strings.Cut(h.Resource, "/")
	idle, is := origin.DatagramIdle(resource)
	if !ok || node == "" || !is {
		return errors.New("a detour of datagrams names a node and what is asked of it")
	}
	if err := p.carriedFlows.enter(c); err != nil {
		return err
	}
	p.udp.idlers.Add(&c.idler, idle+carriedGrace, func() { c.end("it is idle") })
	to := backbone.Receiver{Receive: c.answer, End: c.ended, Told: c.tell}
	far, err := p.config.Open(node, backbone.Header{Service: datagramService, Resource: resource, Client: h.Client}, large, to)
	if err != nil {
		c.end("")
		return err
	}
	c.mu.Lock()
	c.far = far
	c.mu.Unlock()
	if c.done.Load() {
		far.Close()
		return errEnds
	}
	return nil
}

func (c *carriedFlow) way() Datagrams {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.far
}

// tell passes on what the other end has told: so it is heard that it knows the flow, too.
func (c *carriedFlow) tell(text string) {
	c.told.Store(true)
	c.back.Tell(text)
}

// ask passes on that who has opened the flow asks whether the other end knows it.
func (c *carriedFlow) ask() {
	if c.told.Load() || c.done.Load() {
		return
	}
	c.mu.Lock()
	far := c.far
	if time.Since(c.asked) < askPause {
		far = nil
	}
	if far != nil {
		c.asked = time.Now()
	}
	c.mu.Unlock()
	if far != nil {
		far.Ask()
	}
}

// on carries on what came from the client.
func (c *carriedFlow) on(all [][]byte) {
	count := &c.plane.count
	far := c.way()
	if far == nil || c.done.Load() {
		count.carriedDropped.Add(uint64(len(all)))
		return
	}
	c.idler.Touch()
	err := far.Send(all)
	if c.sent(all, err) {
		return
	}
	if !errors.Is(err, backbone.ErrBusy) {
		c.end(err.Error()) // who has opened it has another way, or none
	}
	count.carriedDropped.Add(uint64(len(all)))
}

// sent counts datagrams that were sent with an error; false: none of them goes.
func (c *carriedFlow) sent(all [][]byte, err error) bool {
	count, dropped := &c.plane.count, 0
	if e, some := errors.AsType[*backbone.TooLargeError](err); some {
		dropped = len(e.Which)
	} else if err != nil {
		return false
	}
	count.carriedDatagrams.Add(uint64(len(all) - dropped))
	count.carriedDropped.Add(uint64(dropped))
	return true
}

// answer carries back what the endpoint sent.
func (c *carriedFlow) answer(all [][]byte) {
	c.idler.Touch()
	if c.done.Load() || !c.sent(all, c.back.Send(all)) {
		c.plane.count.carriedDropped.Add(uint64(len(all)))
	}
}

// ended hears that the other end has refused the flow, or has ended it.
func (c *carriedFlow) ended(err error) {
	if err == nil {
		err = errors.New("the other end is done with it")
	}
	c.end(err.Error())
}

// end ends the flow at both ends. Who has opened it is told why, unless that is empty.
func (c *carriedFlow) end(why string) {
	if c.done.Swap(true) {
		return
	}
	c.plane.udp.idlers.Remove(&c.idler)
	c.plane.carriedFlows.leave(c)
	if far := c.way(); far != nil {
		far.Close()
	}
	if why != "" {
		c.back.Refuse(why)
	}
}

// CloseDatagramDetours ends the flows of datagrams that are carried on here, so that they go another way, and takes no more.
func (p *Plane) CloseDatagramDetours() {
	a := &p.carriedFlows
	a.mu.Lock()
	a.closed = true
	all := slices.Collect(maps.Keys(a.all))
	a.mu.Unlock()
	for _, c := range all {
		c.end(errEnds.Error())
	}
}
