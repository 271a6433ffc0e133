package crowd

import (
	"net/netip"
	"testing"
	"time"
)

func TestAtTheBoundTheGreediestGoesFirst(t *testing.T) {
	var w Crowd
	from := func(network, host int) netip.Addr {
		return netip.AddrFrom4([4]byte{10, byte(network >> 8), byte(network), byte(host)})
	}
	enter := func(a netip.Addr, heard int64) (*Place, *Place) {
		p := new(Place)
		p.Heard(time.Duration(heard))
		return p, w.enter(p, a)
	}
	for i := range 100 { // of one client, asking all the time
		enter(from(0, i), int64(1000+i))
	}
	for i := range Max - 100 { // of many, silent
		enter(from(1+i, 0), int64(i))
	}
	for i := range 98 {
		_, gone := enter(from(5000+i, 0), 2000)
		if gone == nil || gone.heard.Load() != int64(1000+i) {
			t.Fatalf("%d: %v went", i, gone)
		}
	}
	if w.Size() != Max || len(w.clients) != Max-1 {
		t.Errorf("%d connections of %d clients", w.Size(), len(w.clients))
	}
	p, _ := enter(from(9999, 0), 3000)
	w.Leave(p)
	w.Leave(p) // twice is once
	if w.Size() != Max-1 {
		t.Errorf("%d connections", w.Size())
	}
}

func TestThisMachineMayHoldManyConnections(t *testing.T) {
	var w Crowd
	for range 2 * MaxPerClient {
		if w.enter(new(Place), netip.MustParseAddr("127.0.0.1")) != nil {
			t.Fatal("one went")
		}
	}
}

// A client is served in any order of coming and going, and what the crowd knows is what there is.
func TestTheCrowdKeepsCount(t *testing.T) {
	var w Crowd
	var all []*Place
	at := uint64(1)
	draw := func(n int) int { at = at*6364136223846793005 + 1442695040888963407; return int(at>>33) % n }
	for range 30_000 {
		if len(all) > 0 && draw(5) == 0 {
			i := draw(len(all))
			w.Leave(all[i])
			all[i] = all[len(all)-1]
			all = all[:len(all)-1]
			continue
		}
		p := new(Place)
		all = append(all, p)
		w.enter(p, netip.AddrFrom4([4]byte{10, 0, byte(draw(draw(256) + 1)), 1}))
	}
	n, clients := 0, map[*client]bool{}
	for _, p := range all {
		if p.client != nil {
			n++
			clients[p.client] = true
			if p.client.places[p.at] != p || w.with[len(p.client.places)][p.client.at] != p.client {
				t.Fatal("a connection is not where it is looked for")
			}
		}
	}
	if n != w.Size() || len(clients) != len(w.clients) || n > Max {
		t.Errorf("%d connections of %d clients, the crowd has %d of %d", n, len(clients), w.Size(), len(w.clients))
	}
}

// Who asks now and then stays, however many silent ones come meanwhile, whether each is of a network of its own or all are of this machine.
func TestWhoAsksStays(t *testing.T) {
	for name, from := range map[string]func(i int) netip.Addr{
		"networks":     func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}) },
		"this machine": func(int) netip.Addr { return netip.MustParseAddr("127.0.0.1") },
	} {
		t.Run(name, func(t *testing.T) {
			var w Crowd
			honest := new(Place)
			w.enter(honest, from(1<<16-1))
			for i := range 6_000 {
				if i%500 == 0 {
					honest.Heard(time.Duration(i))
				}
				p := new(Place)
				p.Heard(time.Duration(i))
				if w.enter(p, from(i)) == honest {
					t.Fatalf("it went for the silent one %d", i)
				}
			}
		})
	}
}
