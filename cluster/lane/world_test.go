package lane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// Twenty regions, so that packets take as long as they do.
var places = []spec.Location{
	{Latitude: 37.57, Longitude: 126.98}, {Latitude: 50.11, Longitude: 8.68}, {Latitude: 38.95, Longitude: -77.45},
	{Latitude: -23.5, Longitude: -46.6}, {Latitude: 35.68, Longitude: 139.77}, {Latitude: 1.35, Longitude: 103.8},
	{Latitude: 45.5, Longitude: -122.7}, {Latitude: -33.87, Longitude: 151.2}, {Latitude: 19.07, Longitude: 72.88},
	{Latitude: 51.5, Longitude: -0.13}, {Latitude: 53.35, Longitude: -6.26}, {Latitude: 48.86, Longitude: 2.35},
	{Latitude: 59.33, Longitude: 18.07}, {Latitude: 45.5, Longitude: -73.57}, {Latitude: -33.92, Longitude: 18.42},
	{Latitude: 25.2, Longitude: 55.27}, {Latitude: 22.32, Longitude: 114.17}, {Latitude: 34.69, Longitude: 135.5},
	{Latitude: 37.34, Longitude: -121.89}, {Latitude: 40.0, Longitude: -83.0},
}

const port = 7947

// world is nodes n000, n001, … each with a lane and a host of its own.
type world struct {
	t     *testing.T
	net   *memnet.Internet
	hosts []*memnet.Host
	nodes []*Lane
	byIP  map[netip.Addr]string
	wait  sync.WaitGroup

	// asks: a dial waits for the far end to say yes, one round trip, as a stream of the backbone does.
	asks bool

	mu     sync.Mutex
	warm   map[[2]string][]net.Conn // streams that stand already, by dialler and node
	did    map[string]map[string]time.Time
	times  map[string]int // how often an order was done, by node/id
	refuse func(node, id string) error
}

// inWorld runs f in a world of some nodes.
func inWorld(t *testing.T, size int, seed uint64, f func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{
			t: t, net: memnet.New(seed), byIP: map[netip.Addr]string{}, warm: map[[2]string][]net.Conn{},
			did: map[string]map[string]time.Time{}, times: map[string]int{},
		}
		for i := range size {
			addr := netip.AddrFrom4([4]byte{10, 0, byte(i / 250), byte(1 + i%250)})
			w.hosts = append(w.hosts, w.net.Host(name(i), places[i%len(places)], addr))
			w.byIP[addr] = name(i)
		}
		for i := range size {
			w.open(i)
		}
		defer w.end()
		f(t, w)
	})
}

func name(i int) string { return fmt.Sprintf("n%03d", i) }

func (w *world) names() (all []string) {
	for i := range w.hosts {
		all = append(all, name(i))
	}
	return all
}

// open gives a host its lane, and has it serve.
func (w *world) open(i int) {
	l := Open(Config{
		Self: name(i),
		Dial: func(ctx context.Context, node string) (net.Conn, error) { return w.dial(ctx, i, node) },
		Do:   func(id string, order []byte) error { return w.do(name(i), id) },
	})
	w.nodes = append(w.nodes, l)
	w.listen(i, func(conn net.Conn) { l.Serve(conn, w.from(conn)) })
}

// listen has a host answer streams.
func (w *world) listen(i int, serve func(net.Conn)) {
	ln, err := w.hosts[i].Listen("tcp", netip.AddrPortFrom(w.hosts[i].Addr(), port).String())
	if err != nil {
		w.t.Fatal(err)
	}
	w.wait.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			w.wait.Go(func() {
				var first [1]byte // tells a stream that stands ready from one that is in use
				if _, err := io.ReadFull(conn, first[:]); err != nil {
					conn.Close()
					return
				}
				if first[0] == 1 {
					conn.Write(first[:])
				}
				serve(conn)
			})
		}
	})
}

func (w *world) from(conn net.Conn) string {
	addr, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
	return w.byIP[addr.Addr()]
}

func (w *world) do(node, id string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.refuse != nil {
		if err := w.refuse(node, id); err != nil {
			return err
		}
	}
	if w.did[id] == nil {
		w.did[id] = map[string]time.Time{}
	}
	w.did[id][node] = time.Now()
	w.times[node+"/"+id]++
	return nil
}

// dial opens a stream: over a link that stands, as QUIC does it, where there is one.
func (w *world) dial(ctx context.Context, i int, node string) (net.Conn, error) {
	key := [2]string{name(i), node}
	w.mu.Lock()
	var conn net.Conn
	if ready := w.warm[key]; len(ready) > 0 {
		conn, w.warm[key] = ready[0], ready[1:]
	}
	w.mu.Unlock()
	if conn == nil {
		var err error
		if conn, err = w.connect(ctx, i, node); err != nil {
			return nil, err
		}
	}
	answer := []byte{0}
	if w.asks {
		answer[0] = 1
	}
	if _, err := conn.Write(answer); err != nil || !w.asks {
		return conn, err
	}
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := io.ReadFull(conn, answer); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func (w *world) connect(ctx context.Context, i int, node string) (net.Conn, error) {
	for j, h := range w.hosts {
		if name(j) == node {
			return w.hosts[i].Dial(ctx, "tcp", netip.AddrPortFrom(h.Addr(), port).String())
		}
	}
	return nil, errors.New("no such node")
}

// ready lets a stream from one node to each other stand ready.
func (w *world) ready(i int) {
	var wait sync.WaitGroup
	for j := range w.hosts {
		if j == i {
			continue
		}
		wait.Go(func() {
			conn, err := w.connect(w.t.Context(), i, name(j))
			if err != nil {
				w.t.Error(err)
				return
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			key := [2]string{name(i), name(j)}
			w.warm[key] = append(w.warm[key], conn)
		})
	}
	wait.Wait()
}

// lose has every path lose a share of its packets.
func (w *world) lose(share float64) {
	for i := range w.hosts {
		for j := range i {
			w.net.Link(name(i), name(j), memnet.Path{Loss: share})
		}
	}
}

// longest is the longest round trip there is.
func (w *world) longest() (most time.Duration) {
	for i := range w.hosts {
		for j := range i {
			most = max(most, w.net.RoundTrip(name(i), name(j)))
		}
	}
	return most
}

// tell tells all nodes something and waits for the end.
func (w *world) tell(limit time.Duration, i int, id string, order []byte) []Ack {
	ctx, cancel := context.WithTimeout(w.t.Context(), limit)
	defer cancel()
	t := w.nodes[i].Tell(ctx, id, order, w.names())
	<-t.Done()
	return t.Acks()
}

// mustAll fails unless all have acknowledged.
func (w *world) mustAll(acks []Ack) {
	w.t.Helper()
	if len(acks) != len(w.hosts) {
		w.t.Fatalf("%d acknowledgements, want %d", len(acks), len(w.hosts))
	}
	for _, a := range acks {
		if !a.Answered || a.Err != "" {
			w.t.Errorf("%+v", a)
		}
	}
}

func (w *world) count(node, id string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.times[node+"/"+id]
}

func (w *world) end() {
	for _, l := range w.nodes {
		l.Close()
	}
	w.net.Close()
	w.wait.Wait()
}
