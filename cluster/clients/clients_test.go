package clients

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

const ms = time.Millisecond

var (
	start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	icn   = POP{"ap-northeast-2", "icn1"}
	nrt   = POP{"ap-northeast-1", "nrt1"}
	fra   = POP{"eu-central-1", "fra1"}
)

func addr(text string) netip.Addr { return netip.MustParseAddr(text) }

func observe(s *Seen, from string, now time.Time, rtts ...time.Duration) {
	for _, rtt := range rtts {
		s.Observe(addr(from), rtt, now)
	}
}

func rtt(t *testing.T, s *Seen, network string, now time.Time) (time.Duration, int) {
	t.Helper()
	for _, r := range s.Rows(now) {
		if r.Network.Prefix() == netip.MustParsePrefix(network) {
			return r.RTT, r.Samples
		}
	}
	return 0, 0
}

func TestANetworkIsAPrefixAndSortsAsAddressesDo(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.77": "192.0.2.0/24", "::ffff:192.0.2.77": "192.0.2.0/24", "223.255.255.255": "223.255.255.0/24",
		"2001:db8:1:2::3": "2001:db8:1::/48", "3fff:ffff:ffff::1": "3fff:ffff:ffff::/48", "10.1.2.3": "10.1.2.0/24",
		"127.0.0.1": "", "::1": "", "169.254.1.1": "", "224.0.0.1": "", "0.0.0.0": "", "fe80::1": "",
	} {
		n := Of(addr(in))
		if want == "" {
			if n != 0 {
				t.Errorf("%s is of %v", in, n.Prefix())
			}
			continue
		}
		if n.Prefix().String() != want || networkOf(n.number()) != n || n.number() > maxNumber {
			t.Errorf("%s is of %v, by number of %v, want %s", in, n.Prefix(), networkOf(n.number()).Prefix(), want)
		}
	}
	a, b, c := Of(addr("2001:db8::1")), Of(addr("10.0.0.1")), Of(addr("10.0.1.1"))
	if a >= b || b >= c || a.number() >= b.number() || b.number() >= c.number() {
		t.Error("they are not in order")
	}
	if n := OfPrefix(netip.MustParsePrefix("10.0.0.0/23")); n != 0 {
		t.Errorf("a /23 is in %v", n.Prefix())
	}
	if b.common(c) != 23 || a.common(b) != -1 {
		t.Errorf("%d and %d bits in common", b.common(c), a.common(b))
	}
}

func TestNobodyGoesByLessThanThreeSamples(t *testing.T) {
	s := New(start)
	observe(s, "192.0.2.1", start, 20*ms, 20*ms)
	if len(s.Rows(start)) != 0 {
		t.Error("two are enough")
	}
	observe(s, "192.0.2.200", start, 20*ms)
	if d, n := rtt(t, s, "192.0.2.0/24", start); d != 20*ms || n != 3 {
		t.Errorf("%v by %d samples", d, n)
	}
}

func TestTheEstimateStaysNearTheLeast(t *testing.T) {
	s, random := New(start), rand.New(rand.NewPCG(1, 2))
	for range 2000 { // one in four waits in a queue, or for a radio to wake
		sample := 30*ms + time.Duration(random.ExpFloat64()*float64(ms))
		if random.IntN(4) == 0 {
			sample += time.Duration(random.IntN(500)) * ms
		}
		s.Observe(addr("192.0.2.1"), sample, start)
	}
	if d, _ := rtt(t, s, "192.0.2.0/24", start); d < 30*ms || d > 35*ms {
		t.Errorf("%v, where the path has 30ms", d)
	}
	for range 60 { // the path becomes longer
		observe(s, "192.0.2.1", start, 90*ms)
	}
	if d, _ := rtt(t, s, "192.0.2.0/24", start); d < 80*ms {
		t.Errorf("%v after 60 samples of a path of 90ms", d)
	}
	observe(s, "192.0.2.1", start, 30*ms, 30*ms, 30*ms, 30*ms)
	if d, _ := rtt(t, s, "192.0.2.0/24", start); d > 35*ms {
		t.Errorf("%v after 4 samples of the short path again", d)
	}
}

func TestSamplesCountForHalfAfterADay(t *testing.T) {
	s := New(start)
	for range 40 {
		observe(s, "192.0.2.1", start, 20*ms)
	}
	observe(s, "198.51.100.1", start, 20*ms, 20*ms, 20*ms)
	if _, n := rtt(t, s, "192.0.2.0/24", start.Add(HalfLife)); n != 20 {
		t.Errorf("%d of 40 after a day", n)
	}
	s.Say(start.Add(3*HalfLife), maxTold)
	if _, n := rtt(t, s, "198.51.100.0/24", start.Add(3*HalfLife)); n != 0 || len(s.known) != 1 {
		t.Errorf("three samples are %d after three days, and %d networks are known", n, len(s.known))
	}
}

func TestWhatCannotBeIsRefusedAndCounted(t *testing.T) {
	s := New(start)
	for _, bad := range []struct {
		from netip.Addr
		rtt  time.Duration
	}{{netip.Addr{}, ms}, {addr("127.0.0.1"), ms}, {addr("192.0.2.1"), 0}, {addr("192.0.2.1"), -ms}, {addr("192.0.2.1"), 11 * time.Second}} {
		s.Observe(bad.from, bad.rtt, start)
	}
	if c := s.Counters(); c["clients_refused_total"] != 5 || c["clients_samples_total"] != 0 || c["clients_networks_young"] != 0 {
		t.Errorf("counted %v", c)
	}
}

// Who has a /32 of IPv6 has 65,536 networks.
func TestAFloodCostsNoKnownNetworkItsPlaceAndNoMemory(t *testing.T) {
	s := New(start)
	for i := range 1000 {
		for range 20 {
			s.Observe(netip.AddrFrom4([4]byte{11, byte(i >> 8), byte(i), 1}), 20*ms, start)
		}
	}
	stranger := func(i int) netip.Addr {
		return netip.AddrFrom16([16]byte{0x20, 1, 0xd, byte(i >> 16), byte(i >> 8), byte(i), 9: 1})
	}
	for i := range 30_000 {
		s.Observe(stranger(i), ms, start)
	}
	if len(s.rows) != 1000 || len(s.young) > maxYoung || len(s.ring) > maxYoung {
		t.Errorf("%d are known and %d young after strangers that came once", len(s.rows), len(s.young))
	}
	for i := range MaxNetworks + MaxNetworks/8 { // the persistent ones get in, and push each other out
		for range Enough {
			s.Observe(stranger(100_000+i), ms, start)
		}
	}
	if len(s.rows) > MaxNetworks || len(s.known) != len(s.rows) {
		t.Errorf("%d networks are held, %d by name", len(s.rows), len(s.known))
	}
	kept := 0
	for i := range 1000 {
		if _, ok := s.known[Of(netip.AddrFrom4([4]byte{11, byte(i >> 8), byte(i), 1}))]; ok {
			kept++
		}
	}
	t.Logf("of 1,000 networks with 20 samples %d are left after %d evictions", kept, s.evicted.Load())
	if kept < 995 {
		t.Errorf("%d of 1,000 are left", kept)
	}
}

// heard says all that it can until nothing is left, and returns what others then hold.
func heard(t *testing.T, s *Seen, now time.Time, most int, held map[int][]byte) (rounds, size int) {
	t.Helper()
	for {
		values := s.Say(now, most)
		if len(values) == 0 {
			return rounds, size
		}
		rounds++
		round := 0
		for _, v := range values {
			held[v.Shard] = v.Bytes
			round += len(v.Bytes)
		}
		if size += round; round > SayBytes {
			t.Fatalf("%d bytes at once", round)
		}
		if rounds > 1000 {
			t.Fatal("it never ends")
		}
	}
}

func decodeAll(t *testing.T, held map[int][]byte) (rows []Row) {
	t.Helper()
	for _, b := range held {
		if b == nil {
			continue
		}
		some, err := Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		rows = append(rows, some...)
	}
	return rows
}

func TestWhatIsSaidIsWhatWasSeenInBoundedPieces(t *testing.T) {
	s, random := New(start), rand.New(rand.NewPCG(1, 2))
	want := map[Network]time.Duration{}
	for i := range 20_000 {
		from := netip.AddrFrom4([4]byte{byte(11 + random.IntN(180)), byte(random.Uint32()), byte(random.Uint32()), 1})
		if i%4 == 0 {
			from = netip.AddrFrom16([16]byte{0x20, byte(random.IntN(16)), byte(random.Uint32()), byte(random.Uint32()), byte(random.Uint32()), byte(random.Uint32()), 9: 1})
		}
		if Of(from) == 0 || want[Of(from)] != 0 {
			continue
		}
		d := time.Duration(1+random.IntN(3000)) * unit
		for range 3 + random.IntN(40) {
			s.Observe(from, d, start)
		}
		want[Of(from)] = d
	}
	held := map[int][]byte{}
	rounds, size := heard(t, s, start, maxTold, held)
	rows := decodeAll(t, held)
	t.Logf("%d networks in %d bytes, %.1f each, %d times %v", len(rows), size, float64(size)/float64(len(rows)), rounds, SayEvery)
	if len(rows) != maxTold {
		t.Errorf("%d are told", len(rows))
	}
	for _, r := range rows {
		if want[r.Network] != r.RTT || r.Samples < 2 || r.Samples > 64 {
			t.Fatalf("%v is %v away by %d samples, want %v", r.Network.Prefix(), r.RTT, r.Samples, want[r.Network])
		}
	}
	// What hardly changes is not said again, nor what others push out by a little.
	for _, r := range rows[:1000] {
		s.Observe(r.Network.Prefix().Addr().Next(), r.RTT+r.RTT/20, start)
	}
	if again, _ := heard(t, s, start, maxTold, held); again != 0 {
		t.Errorf("it takes %d times more", again)
	}
	// What does costs its shard.
	for range 40 {
		s.Observe(rows[0].Network.Prefix().Addr().Next(), rows[0].RTT+500*ms, start)
	}
	if _, size := heard(t, s, start, maxTold, held); size == 0 || size > MaxValue {
		t.Errorf("one network costs %d bytes", size)
	}
	// And in a larger cluster each says less.
	heard(t, s, start, 100, held)
	if rows := decodeAll(t, held); len(rows) != 100 || MostTold(1000) != 524 || MostTold(3) != maxTold {
		t.Errorf("%d are told of 100", len(rows))
	}
}

func FuzzDecode(f *testing.F) {
	s := New(start)
	for i := range 200 {
		for range 4 {
			s.Observe(netip.AddrFrom4([4]byte{11, byte(i), byte(i * 3), 1}), time.Duration(i+1)*ms, start)
			s.Observe(netip.AddrFrom16([16]byte{0x20, 1, byte(i), byte(i), 9: 1}), time.Duration(i+1)*ms, start)
		}
	}
	for _, v := range s.Say(start, maxTold) {
		f.Add(v.Bytes)
	}
	f.Add([]byte{sayVersion, 1, 0x11})
	f.Fuzz(func(t *testing.T, b []byte) {
		rows, err := Decode(b)
		if err != nil {
			return
		}
		var list []*row
		for _, r := range rows {
			n := row{network: r.Network, toldRTT: uint32(r.RTT / unit)}
			for n.toldLog2 = 0; 1<<n.toldLog2>>1 != r.Samples; n.toldLog2++ {
			}
			n.rtt, n.weight = float32(r.RTT/time.Microsecond), float32(r.Samples)
			list = append(list, &n)
		}
		if again := New(start).encode(list, 0); !bytes.Equal(again, b) {
			t.Errorf("% x was read, % x written", b, again)
		}
		NewMap([]Node{{icn, rows}, {nrt, rows}}, between).Find(Of(addr("11.1.3.1")), true)
	})
}

func between(a, b POP) (time.Duration, bool) {
	switch [2]POP{a, b} {
	case [2]POP{icn, nrt}, [2]POP{nrt, icn}:
		return 30 * ms, true
	case [2]POP{icn, fra}, [2]POP{fra, icn}:
		return 250 * ms, true
	}
	return 0, false
}

func row1(network string, d time.Duration, samples int) Row {
	return Row{Of(netip.MustParsePrefix(network).Addr().Next()), d, samples}
}

func TestTheMapJoinsWhatNodesOfAPOPSaw(t *testing.T) {
	m := NewMap([]Node{
		{icn, []Row{row1("192.0.2.0/24", 10*ms, 30)}}, {icn, []Row{row1("192.0.2.0/24", 20*ms, 10), row1("2001:db8::/48", 5*ms, 4)}},
		{nrt, []Row{row1("192.0.2.0/24", 50*ms, 3)}}, {fra, nil},
	}, between)
	c := m.Find(Of(addr("192.0.2.9")), true)
	got := c.From(m.Index(icn.Region, icn.Name), Unplaced, Unplaced)
	if got.RTT != 12500*time.Microsecond || got.How != Measured || got.Samples != 40 || m.Len() != 2 {
		t.Errorf("%+v in a map of %d", got, m.Len())
	}
	if m := NewMap([]Node{{icn, nil}}, between); m != nil || m.Index("a", "b") != -1 || m.Len() != 0 {
		t.Error("a map of nothing is something")
	}
	if c := (*Map)(nil).Find(Of(addr("192.0.2.9")), true); c.Known() || c.Bits != 0 {
		t.Errorf("nobody's map knows %+v", c)
	}
}

func TestHowFarAPOPIs(t *testing.T) {
	m := NewMap([]Node{{icn, []Row{row1("192.0.2.0/24", 40*ms, 9)}}, {nrt, nil}, {fra, nil}, {POP{"x", "x1"}, nil}}, between)
	c := m.Find(Of(addr("192.0.2.9")), true)
	at := func(p POP) int { return m.Index(p.Region, p.Name) }
	over := at(icn)
	for _, test := range []struct {
		what             string
		pop              int
		estimated, light time.Duration
		want             Away
	}{
		{"what it measured", over, 10 * ms, 5 * ms, Away{40 * ms, Measured, 40 * ms, 9, over}},
		{"never below light", over, 100 * ms, 60 * ms, Away{60 * ms, Measured, 60 * ms, 9, over}},
		{"no farther than over the other", at(nrt), 200 * ms, 20 * ms, Away{70 * ms, Joined, 20 * ms, 9, over}},
		{"nor nearer than the other lets it be", at(fra), 20 * ms, 10 * ms, Away{210 * ms, Joined, 210 * ms, 9, over}},
		{"within both as it is estimated", at(nrt), 50 * ms, 30 * ms, Away{50 * ms, Joined, 30 * ms, 0, -1}},
		{"over the other where nobody knows the place", at(nrt), Unplaced, Unplaced, Away{70 * ms, Joined, 0, 9, over}},
		{"estimated where the way between is not known", 3, 50 * ms, 30 * ms, Away{50 * ms, Estimated, 30 * ms, 0, -1}},
		{"light over the other", at(nrt), 200 * ms, 90 * ms, Away{90 * ms, Joined, 90 * ms, 9, over}},
		{"not in the map", -1, 50 * ms, 30 * ms, Away{50 * ms, Estimated, 30 * ms, 0, -1}},
		{"unknown", -1, Unplaced, Unplaced, Away{Unplaced, Unknown, 0, 0, -1}},
	} {
		if got := c.From(test.pop, test.estimated, test.light); got != test.want {
			t.Errorf("%s: got %+v, want %+v", test.what, got, test.want)
		}
	}
}

// The scope of an answer must not lead a resolver to give it to a network that is known otherwise.
func TestWhoSharesTheBitsIsKnownAsLittle(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var rows []Row
	for range 200 {
		rows = append(rows, Row{of(netip.AddrFrom4([4]byte{10, byte(random.IntN(4)), byte(random.Uint32()), 1})), ms, 3})
	}
	slices.SortFunc(rows, func(a, b Row) int { return int(int64(a.Network>>1) - int64(b.Network>>1)) })
	rows = slices.CompactFunc(rows, func(a, b Row) bool { return a.Network == b.Network })
	m := NewMap([]Node{{icn, rows}}, between)
	for range 2000 {
		a := netip.AddrFrom4([4]byte{10, byte(random.IntN(8)), byte(random.Uint32()), byte(random.Uint32())})
		c := m.Find(Of(a), true)
		shared, _ := a.Prefix(c.Bits)
		for _, r := range rows {
			if inside := shared.Contains(r.Network.Prefix().Addr()); inside && (!c.Known() || r.Network != Of(a)) {
				t.Fatalf("%s depends on %d bits, but %s is known", a, c.Bits, r.Network.Prefix())
			}
		}
	}
	if c := m.Find(0, true); c.Bits != 24 {
		t.Errorf("a client told by less than its network depends on %d bits", c.Bits)
	}
	if c := m.Find(Of(addr("2001:db8::1")), false); c.Bits != 0 {
		t.Errorf("where no IPv6 is known, %d bits matter", c.Bits)
	}
}

func BenchmarkObserve(b *testing.B) {
	s := New(start)
	for i := 0; b.Loop(); i++ {
		s.Observe(netip.AddrFrom4([4]byte{11, byte(i >> 9), byte(i), 1}), 20*ms, start)
	}
}

func BenchmarkMap(b *testing.B) {
	var nodes []Node
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 64 {
		var rows []Row
		for range maxTold {
			rows = append(rows, Row{of(netip.AddrFrom4([4]byte{byte(11 + random.IntN(180)), byte(random.Uint32()), byte(random.Uint32()), 1})), ms, 3})
		}
		nodes = append(nodes, Node{POP{"r", fmt.Sprint("p", i)}, rows})
	}
	var m *Map
	b.Run("new of a million rows, twice what is shared", func(b *testing.B) {
		for b.Loop() {
			m = NewMap(nodes, between)
		}
	})
	b.Run("find", func(b *testing.B) {
		for b.Loop() {
			c := m.Find(of(netip.AddrFrom4([4]byte{byte(11 + random.IntN(180)), byte(random.Uint32()), byte(random.Uint32()), 1})), true)
			c.From(3, 10*ms, 5*ms)
		}
	})
}
