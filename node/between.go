package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/cluster/backbone"
	"github.com/perigee-net/perigee/cluster/control"
	"github.com/perigee-net/perigee/cluster/store"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/edge/accelerator"
	"github.com/perigee-net/perigee/edge/cdn"
	"github.com/perigee-net/perigee/node/api"
	"github.com/perigee-net/perigee/node/front"
	"github.com/perigee-net/perigee/origin"
	"github.com/perigee-net/perigee/origin/relay"
	"github.com/perigee-net/perigee/origin/relay/loop"
)

// peerAPI is the API of another node, over the control port. name may be "", for whatever node of the cluster is there.
func (n *Node) peerAPI(name, address string) *api.Client {
	return api.NewNodeClient(func(ctx context.Context) (net.Conn, error) { return n.port.Dial(ctx, address, name, control.API) })
}

// forward sends a request that needs the leader to it, and copies the answer. Told to wait, it asks again while the
// leader it knows does not answer, for its successor is not long in coming; requests have an ID that makes that harmless.
func (n *Node) forward(w http.ResponseWriter, r *http.Request, body []byte, wait bool) error {
	ctx, cancel := context.WithTimeout(r.Context(), applyTimeout)
	defer cancel()
	for {
		leader, err := n.leader(ctx, wait)
		if err != nil {
			return err
		}
		res, err := n.askLeader(ctx, leader, r, body)
		if err == nil {
			defer res.Body.Close()
			if own, err := strconv.ParseUint(res.Header.Get(ownHeader), 10, 64); err == nil {
				n.holdOwn(ctx, own)
			}
			api.CopyAnswer(w, res)
			return nil
		}
		err = fmt.Errorf("%w: %s at %s: %w", api.ErrNoLeader, leader.Name, leader.Address, err)
		if !wait || body == nil || !pause(ctx) {
			return err
		}
	}
}

// ownHeader is the revision of the cluster's own records that the leader has when it answers another node.
const ownHeader = "Perigee-Own"

// telling is the answer to another node, with ownHeader.
type telling struct {
	http.ResponseWriter
	node *Node
	told bool
}

func (t *telling) WriteHeader(status int) {
	if state := t.node.store.State().Get(); !t.told && state != nil {
		t.told = true
		t.Header().Set(ownHeader, strconv.FormatUint(state.Own.Revision, 10))
	}
	t.ResponseWriter.WriteHeader(status)
}

func (t *telling) Write(data []byte) (int, error) {
	if !t.told {
		t.WriteHeader(http.StatusOK)
	}
	return t.ResponseWriter.Write(data)
}

// Unwrap lets http.ResponseController through.
func (t *telling) Unwrap() http.ResponseWriter { return t.ResponseWriter }

// holdTime bounds how long the answer to a change of the cluster's own records waits for this node to know of it.
const holdTime = time.Second

// holdOwn waits until this node goes by a revision of the cluster's own records: a token that it prints must be good here.
func (n *Node) holdOwn(ctx context.Context, revision uint64) {
	ctx, cancel := context.WithTimeout(ctx, holdTime)
	defer cancel()
	for version := uint64(0); ; {
		r, v, err := n.roster.Next(ctx, version)
		if err != nil || r != nil && r.Revision >= revision {
			return
		}
		version = v
	}
}

// errSteppedDown is the answer of a node that leads no more.
var errSteppedDown = errors.New("it leads no more")

func (n *Node) askLeader(ctx context.Context, leader store.Leader, r *http.Request, body []byte) (*http.Response, error) {
	req, err := api.ForwardRequest(ctx, n.cfg.Name, leader.Address, r, body)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return n.port.Dial(ctx, leader.Address, leader.Name, control.API)
	}}
	res, err := transport.RoundTrip(req)
	if err == nil && res.StatusCode == http.StatusServiceUnavailable {
		res.Body.Close()
		return nil, errSteppedDown
	}
	return res, err
}

// followLeader remembers who led last, until the context ends.
func (n *Node) followLeader(ctx context.Context) {
	for version := uint64(0); ; {
		leader, v, err := n.store.Leader().Next(ctx, version)
		if err != nil {
			return
		}
		if version = v; leader.Name != "" {
			n.lastLeader.Store(&leader)
		}
		n.tellLead(leader.Name)
	}
}

// streams is a listener of the backbone's HTTP streams: what is pushed is accepted.
type streams struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newStreams() *streams {
	return &streams{conns: make(chan net.Conn), done: make(chan struct{})}
}

// push hands a stream to the server, unless it has ended.
func (s *streams) push(c net.Conn) bool {
	select {
	case s.conns <- c:
		return true
	case <-s.done:
		return false
	}
}

func (s *streams) closed() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

func (s *streams) Accept() (net.Conn, error) {
	select {
	case c := <-s.conns:
		return c, nil
	case <-s.done:
		return nil, net.ErrClosed
	}
}

func (s *streams) Close() error {
	s.once.Do(func() { close(s.done) })
	return nil
}

func (s *streams) Addr() net.Addr { return backbone.Addr("backbone") }

// resourceConn is a stream for one resource.
type resourceConn struct {
	net.Conn
	handler http.Handler
}

type handlerKey struct{}

// openHTTPStreams serves the HTTP that other nodes send over the backbone: edge nodes to load balancers of this region, and peers
// to this edge node.
func (n *Node) openHTTPStreams() {
	n.serveStreams("HTTP over the backbone", httpService, func(resource string) (http.Handler, string) {
		handler, ok := n.origin.HTTP(resource)
		if !ok {
			return nil, "no load balancer " + resource + " in " + n.cfg.Region
		}
		return handler, ""
	})
	n.serveStreams("peers of the cache", cdn.PeerService, func(resource string) (http.Handler, string) {
		handler, ok := n.cdn.Peers(resource)
		if !ok || !n.has(view.Edge) {
			return nil, "no " + resource + " is asked here"
		}
		return handler, ""
	})
}

// serveStreams serves HTTP on the streams of a service, by the handler of each stream's resource, or says why there is none.
func (n *Node) serveStreams(name, service string, of func(resource string) (h http.Handler, refusal string)) {
	list := newStreams()
	server := &http.Server{
		ReadHeaderTimeout: apiHeaderTime, IdleTimeout: apiIdleTime, ErrorLog: n.quiet(),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, handlerKey{}, c.(*resourceConn).handler)
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.Context().Value(handlerKey{}).(http.Handler).ServeHTTP(w, r)
		}),
	}
	n.goes(func() { server.Serve(list) })
	n.onDrain(name, func(ctx context.Context) error {
		if err := server.Shutdown(ctx); err != nil {
			return errors.Join(server.Close(), list.Close())
		}
		return list.Close()
	})
	n.backbone.Handle(service, func(in *backbone.Incoming) {
		handler, refusal := of(in.Header.Resource)
		if handler == nil {
			in.Refuse(refusal)
			return
		}
		if list.closed() {
			in.Refuse(leavingReason) // and the one who dials takes the next node
			return
		}
		conn := in.Accept()
		if !list.push(&resourceConn{conn, handler}) {
			conn.Close()
		}
	})
}

// leavingReason is why a node that ends takes nothing more.
const leavingReason = "this node ends"

// flows are those that other nodes have sent here.
type flows struct {
	mu     sync.Mutex
	open   int
	closed bool
	ended  chan struct{} // closed when they are closed and none is open
}

// enter takes one more, unless they are closed.
func (f *flows) enter() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return false
	}
	f.open++
	return true
}

func (f *flows) leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open--; f.closed && f.open == 0 {
		close(f.ended)
	}
}

// close takes no more and waits for those that are open; what is left when the context ends breaks with the backbone.
func (f *flows) close(ctx context.Context) error {
	f.mu.Lock()
	if f.closed = true; f.open == 0 {
		close(f.ended)
	}
	f.mu.Unlock()
	select {
	case <-f.ended:
		return nil
	case <-ctx.Done():
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.open == 0 {
			return nil
		}
		return fmt.Errorf("cut off %d: %w", f.open, ctx.Err())
	}
}

// openFlowStreams carries the flows that edge nodes send to endpoints of this region over the backbone, and those that go on from here to other
// nodes.
func (n *Node) openFlowStreams() {
	all := &n.flows
	all.ended = make(chan struct{})
	n.onDrain("flows over the backbone", all.close)
	n.backbone.Handle(flowService, func(in *backbone.Incoming) {
		if !all.enter() {
			in.Refuse(leavingReason)
			return
		}
		over := in.Outlast()
		n.origin.StartFlow(in, func() { all.leave(); over() })
	})
	n.backbone.HandleThrough(detourService, func(in *backbone.Incoming) {
		if !all.enter() {
			in.Refuse(leavingReason)
			return
		}
		over := in.Outlast()
		n.accelerator.StartDetour(in, func() { all.leave(); over() })
	})
}

// takeFlow has the accelerator of this node carry a flow to an endpoint of this region by itself.
func (n *Node) takeFlow(ctx context.Context, resource string, client netip.AddrPort) (net.Conn, error) {
	if !n.flows.enter() {
		return nil, errors.New(leavingReason)
	}
	leave := sync.OnceFunc(n.flows.leave)
	taken := false
	defer func() { // also where it panics
		if !taken {
			leave()
		}
	}()
	flow, err := n.origin.TakeFlow(ctx, resource, client)
	if err != nil {
		return nil, err
	}
	taken = true
	return &takenFlow{flow, leave}, nil
}

// prospect is what takeFlow would dial first.
func (n *Node) prospect(resource string, client netip.AddrPort) (wanted accelerator.Prospect, ok bool) {
	if !n.flows.enter() {
		return wanted, false
	}
	defer func() { // also where it panics
		if !ok {
			n.flows.leave()
		}
	}()
	one, is := n.origin.Prospect(resource, client)
	if !is {
		return wanted, false
	}
	return accelerator.Prospect{
		Target: one.Target, Within: one.Within, First: one.First,
		Took: func(far net.Conn) accelerator.Taken { return &takenFlow{one.Took(far), n.flows.leave} },
		Left: func(err error) {
			defer n.flows.leave()
			one.Left(err)
		},
	}, true
}

// eventLoops has the front's doors be accepted of by loops.
type eventLoops struct{ *loop.Group }

func (l eventLoops) Listen(of net.Listener, accepted func(front.Held), failed func(error)) (end func(done func()), ok bool) {
	listener, ok := l.Group.Listen(of, func(c *loop.Conn) { accepted(c) }, failed)
	if !ok {
		return nil, false
	}
	return listener.Close, true
}

// soon serves what a loop accepts for a listener of an accelerator; nil: that has no endpoints in this region, or this node dials none, so all is for others to carry.
func (n *Node) soon(l accelerator.Listener) func(c front.Held, ended func(), back func() error) {
	if n.cfg.dialFlow == nil || !n.accelerator.EndsIn(l, n.cfg.Region) || !n.has(view.Origin) {
		return nil
	}
	return looped(n.accelerator.SoonHandler(l))
}

// balancedSoon is soon for a listener of a load balancer.
func (n *Node) balancedSoon(l origin.Listener) func(c front.Held, ended func(), back func() error) {
	if n.cfg.dialFlow == nil {
		return nil
	}
	return looped(n.origin.SoonHandler(l.LoadBalancer, l.Port))
}

// looped serves what eventLoops hold.
func looped(serve func(c *loop.Conn, ended func(), back func() error)) func(c front.Held, ended func(), back func() error) {
	return func(c front.Held, ended func(), back func() error) { serve(c.(*loop.Conn), ended, back) }
}

// takenFlow is a flow of this node's accelerator that counts among the flows of this region until it has ended.
type takenFlow struct {
	*origin.Taken
	leave func() // may be called more than once
}

// Abort ends one that is not to be carried after all, as another node has the flow: its target sees a reset.
func (t *takenFlow) Abort() {
	relay.Abort(t.Taken.Conn)
	t.leave()
}

// Hold is as accelerator.Taken has it.
func (t *takenFlow) Hold(client net.Conn) (endpoint net.Conn, ended func(relay.Result)) {
	endpoint, over := t.Taken.Hold(client)
	return endpoint, func(r relay.Result) {
		over(r)
		t.leave()
	}
}

// openDatagrams is the backbone's, for the accelerator.
func (n *Node) openDatagrams(node string, h backbone.Header, large bool, to backbone.Receiver) (accelerator.Datagrams, error) {
	d, err := n.backbone.OpenDatagrams(node, h, large, to)
	if err != nil {
		return nil, err
	}
	return d, nil
}

// openDatagramFlows carries the flows of datagrams that edge nodes send to endpoints of this region, and those that go on from here to other nodes.
func (n *Node) openDatagramFlows() {
	var closed atomic.Bool
	n.onDrain("flows of datagrams", func(ctx context.Context) error {
		closed.Store(true)
		n.origin.FinishDatagrams(ctx)
		n.accelerator.FinishDatagrams(ctx)
		return nil
	})
	n.onClose("flows of datagrams", func(context.Context) error { n.origin.CloseDatagrams(); return nil })
	n.backbone.HandleDatagrams(udpService, func(a backbone.Arrival) (backbone.Receiver, error) {
		if closed.Load() {
			return backbone.Receiver{}, errors.New(leavingReason)
		}
		return n.origin.ServeDatagrams(a)
	})
	n.onClose("detours of datagrams", func(context.Context) error { n.accelerator.CloseDatagramDetours(); return nil })
	n.backbone.HandleDatagrams(detourService, func(a backbone.Arrival) (backbone.Receiver, error) {
		if closed.Load() {
			return backbone.Receiver{}, errors.New(leavingReason)
		}
		return n.accelerator.ServeDatagramDetour(a)
	})
}

// quiet is for servers that log what strangers do, which is counted elsewhere.
func (n *Node) quiet() *log.Logger { return log.New(io.Discard, "", 0) }
