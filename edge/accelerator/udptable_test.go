package accelerator

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/perigee-net/perigee/origin/relay"
)

func flowOf(client string) *datagramFlow {
	return &datagramFlow{key: tuple{client: netip.MustParseAddrPort(client), at: local}}
}

// settle has a flow be one that goes both ways.
func (t *flowTable) settle(f *datagramFlow) {
	t.wasAnswered(f)
	t.heard(f.key)
}

func TestAFloodTakesNoPlaceOfFlowsThatGoBothWays(t *testing.T) {
	table := newFlowTable(100, 100)
	var stand []*datagramFlow
	for i := range 40 {
		f := flowOf(fmt.Sprintf("192.0.2.%d:1", i))
		if goes, v := table.admit(f); goes != nil || v != admitted {
			t.Fatal(goes, v)
		}
		table.settle(f)
		stand = append(stand, f)
	}
	gone := 0
	for i := range 10_000 {
		f := flowOf(fmt.Sprintf("203.0.%d.%d:7", i/256, i%256))
		goes, v := table.admit(f)
		if v != admitted {
			t.Fatal(v)
		}
		if goes != nil {
			gone++
			if goes.standing == settled {
				t.Fatalf("%v had to go", goes.key)
			}
		}
		if len(table.flows) > 100 {
			t.Fatalf("%d flows", len(table.flows))
		}
	}
	if gone != 10_000-60 {
		t.Errorf("%d went", gone)
	}
	for _, f := range stand {
		if table.heard(f.key) != f {
			t.Errorf("%v is gone", f.key)
		}
	}
	// Where all go both ways, who is new is refused.
	for f := table.lists.first(); f != nil; f = table.lists.first() {
		table.settle(f)
	}
	if goes, v := table.admit(flowOf("198.51.100.1:1")); goes != nil || v != full {
		t.Errorf("got %v, %v", goes, v)
	}
}

// The longest silent goes first, and one that was answered after those that were not.
func TestWhoGoesIsTheLongestSilent(t *testing.T) {
	table := newFlowTable(3, 3)
	a, b, c := flowOf("192.0.2.1:1"), flowOf("192.0.2.2:1"), flowOf("192.0.2.3:1")
	for _, f := range []*datagramFlow{a, b, c} {
		table.admit(f)
	}
	table.wasAnswered(a)
	table.heard(b.key)
	for i, want := range []*datagramFlow{c, b} {
		if goes, _ := table.admit(flowOf(fmt.Sprintf("198.51.100.%d:1", i))); goes != want {
			t.Errorf("%v went, want %v", goes.key, want.key)
		}
	}
}

func TestOneClientHasItsBound(t *testing.T) {
	for _, c := range []struct{ name, one, same, other string }{
		{"IPv4", "192.0.2.1:%d", "192.0.2.1:99", "192.0.2.2:1"},
		{"IPv6", "[2001:db8::1]:%d", "[2001:db8::2]:99", "[2001:db8:0:1::1]:1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			table := newFlowTable(100, 4)
			var moves relay.Idlers
			busy := func(f *datagramFlow) {
				moves.Add(&f.idler, time.Hour, func() {})
				t.Cleanup(func() { moves.Remove(&f.idler) })
			}
			for i := range 4 {
				f := flowOf(fmt.Sprintf(c.one, i+1))
				table.admit(f)
				busy(f)
				if i > 0 {
					table.settle(f)
				}
			}
			if goes, v := table.admit(flowOf(c.same)); v != admitted || goes == nil || goes.key.client.Port() != 1 {
				t.Errorf("got %v, %v", goes, v)
			}
			same := table.flows[flowOf(c.same).key]
			busy(same)
			table.settle(same)
			if _, v := table.admit(flowOf(fmt.Sprintf(c.one, 50))); v != crowded {
				t.Errorf("got %v", v)
			}
			if _, v := table.admit(flowOf(c.other)); v != admitted {
				t.Errorf("another client: %v", v)
			}
			moves.Remove(&same.idler) // and what is quiet goes
			same.idler = relay.Idler{}
			for table.clients[clientOf(same.key.client.Addr())].flows[settled].first != same {
				table.heard(table.clients[clientOf(same.key.client.Addr())].flows[settled].first.key)
			}
			if goes, v := table.admit(flowOf(fmt.Sprintf(c.one, 50))); v != admitted || goes != same {
				t.Errorf("got %v, %v", goes, v)
			}
		})
	}
}

// Whoever fills the table with flows that go both ways, be it one network with as many clients as it likes or few clients that are large, leaves others as many
// as it has.
func TestWhoHasMostYields(t *testing.T) {
	const most, ofClient = 1024, 64
	for _, c := range []struct {
		name    string
		attacks func(i int) string
	}{
		{"a /48 of one flow a /64", func(i int) string { return fmt.Sprintf("[2001:db8:bad:%x::1]:7", i) }},
		{"one of many in a /64", func(i int) string { return fmt.Sprintf("[2001:db8:bad:%x::1]:%d", i/60, 1+i%60) }},
		{"twenty addresses of IPv4", func(i int) string { return fmt.Sprintf("203.0.113.%d:%d", i%20, 1+i/20) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			table := newFlowTable(most, ofClient)
			for i := range most {
				f := flowOf(c.attacks(i))
				if _, v := table.admit(f); v == admitted {
					table.settle(f)
				}
			}
			if len(table.flows) < most {
				t.Fatalf("only %d flows", len(table.flows))
			}
			// The attacker goes on with as many new ones, and keeps all its flows busy; who is honest settles one of his now and then.
			var honest []*datagramFlow
			next := most
			for i := range 40 {
				f := flowOf(fmt.Sprintf("198.51.100.%d:%d", i%8, 1+i/8))
				if i%2 == 1 {
					f = flowOf(fmt.Sprintf("[2001:db8:%x::1]:9", i))
				}
				goes, v := table.admit(f)
				if v != admitted || goes == nil {
					t.Fatalf("%d: got %v, %v", i, goes, v)
				}
				honest = append(honest, f)
				for range 50 {
					bad := flowOf(c.attacks(next))
					next++
					if table.flows[bad.key] != nil {
						continue
					}
					if goes, v := table.admit(bad); v == admitted && goes != nil && slices.Contains(honest, goes) {
						t.Fatalf("%d: %v had to go for %v", i, goes.key, bad.key)
					}
				}
				table.settle(f)
			}
			for _, f := range honest {
				if table.heard(f.key) != f {
					t.Errorf("%v is gone", f.key)
				}
			}
		})
	}
}

// What a client of many has is taken of it until it has no more than the new one.
func TestNobodyYieldsToWhoHasAsMuch(t *testing.T) {
	table := newFlowTable(8, 8)
	for i := range 8 {
		f := flowOf(fmt.Sprintf("192.0.2.1:%d", i+1))
		table.admit(f)
		table.settle(f)
	}
	for i := range 3 {
		f := flowOf(fmt.Sprintf("192.0.2.2:%d", i+1))
		if goes, v := table.admit(f); v != admitted || goes.key.client != netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(i+1)) {
			t.Fatalf("%d: got %v, %v", i, goes, v)
		}
		table.settle(f)
	}
	f := flowOf("192.0.2.2:4") // now five to three
	if goes, v := table.admit(f); v != admitted || goes.key.client.Addr() != netip.MustParseAddr("192.0.2.1") {
		t.Fatalf("got %v, %v", goes, v)
	}
	table.settle(f)
	f = flowOf("192.0.2.2:5") // four to four: it is its own that goes, as it is quiet
	if goes, v := table.admit(f); v != admitted || goes.key.client != netip.MustParseAddrPort("192.0.2.2:1") {
		t.Fatalf("got %v, %v", goes, v)
	}
}

// Who begins flows without end leaves others some of each second.
func TestAQuarterOfASecondIsForOthers(t *testing.T) {
	table := newFlowTable(1<<16, 1<<16)
	all, loud := 0, 0
	one := func(client string, port int) bool {
		a := netip.MustParseAddr(client)
		if !table.begins(clientOf(a), 1, &all, 1000) {
			return false
		}
		table.admit(&datagramFlow{key: tuple{client: netip.AddrPortFrom(a, uint16(port)), at: local}})
		return true
	}
	for i := range 5000 {
		if one(fmt.Sprintf("2001:db8:0:%x::1", i), 1) {
			loud++
		}
	}
	if loud != 750 {
		t.Errorf("the loud one has begun %d", loud)
	}
	for i := range 250 {
		if !one(fmt.Sprintf("192.0.2.%d", i), 1) {
			t.Fatalf("%d: another may not", i)
		}
	}
	if one("198.51.100.1", 1) {
		t.Error("more than all")
	}
}

// Whatever happens, the table is what a slow one would be.
func TestTheTableIsWhole(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table := newFlowTable(8, 4)
		known := map[tuple]*datagramFlow{}
		drawn := func(t *rapid.T) *datagramFlow {
			if rapid.Bool().Draw(t, "IPv6") {
				return flowOf(fmt.Sprintf("[2001:db8:%d:%d::1]:%d", rapid.IntRange(1, 2).Draw(t, "network"), rapid.IntRange(1, 3).Draw(t, "client"), rapid.IntRange(1, 4).Draw(t, "port")))
			}
			return flowOf(fmt.Sprintf("192.0.2.%d:%d", rapid.IntRange(1, 3).Draw(t, "client"), rapid.IntRange(1, 6).Draw(t, "port")))
		}
		t.Repeat(map[string]func(*rapid.T){
			"hear": func(t *rapid.T) {
				f := drawn(t)
				if had := table.heard(f.key); had != known[f.key] {
					t.Fatalf("%v is %p, want %p", f.key, had, known[f.key])
				} else if had != nil {
					return
				}
				goes, v := table.admit(f)
				if goes != nil {
					delete(known, goes.key)
				}
				if v == admitted {
					known[f.key] = f
				}
			},
			"answer": func(t *rapid.T) {
				if f := known[drawn(t).key]; f != nil {
					table.wasAnswered(f)
				}
			},
			"remove": func(t *rapid.T) {
				if f := known[drawn(t).key]; f != nil {
					table.remove(f)
					table.remove(f)
					table.wasAnswered(f)
					delete(known, f.key)
				}
			},
			"": func(t *rapid.T) {
				if len(table.flows) != len(known) || len(known) > 8 {
					t.Fatalf("%d flows, want %d", len(table.flows), len(known))
				}
				linked, counts := 0, 0
				for i := range table.lists {
					for f := table.lists[i].first; f != nil; f = f.links[byAll].next {
						if linked++; f.standing != standing(i) || known[f.key] != f {
							t.Fatalf("%v stands with %d", f.key, i)
						}
					}
				}
				byNetwork := map[*share]int{}
				for _, c := range table.clients {
					if counts += c.count; c.count > 4 || c.count == 0 {
						t.Fatalf("a client has %d", c.count)
					}
					byNetwork[c.top()] += c.count
					held := 0
					for i := range c.flows {
						for f := c.flows[i].first; f != nil; f = f.links[byClient].next {
							if held++; f.standing != standing(i) || f.of != c || known[f.key] != f {
								t.Fatalf("%v stands with %d of its client", f.key, i)
							}
						}
					}
					if held != c.count {
						t.Fatalf("a client has %d, and counts %d", held, c.count)
					}
				}
				largest := 0
				for s, n := range byNetwork {
					if largest = max(largest, n); s.count != n || s.clients != nil && (s.clients.most() == nil || s.clients.most().count > n) {
						t.Fatalf("a network has %d, and counts %d", n, s.count)
					}
				}
				if most := table.ranks.most(); most == nil && largest > 0 || most != nil && most.count != largest {
					t.Fatalf("the largest has %d, want %d", most.count, largest)
				}
				mayGo := 0
				for _, f := range known {
					if f.standing < settled {
						mayGo++
					}
				}
				if linked != mayGo || linked != table.young || counts != len(known) {
					t.Fatalf("%d linked, want %d; %d counted, want %d", linked, mayGo, counts, len(known))
				}
			},
		})
	})
}
