package dnsgeo

import (
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/dnsgeo/geo"
)

// What is remembered is what the database says, of whatever lengths places are, and by whichever way they came to be remembered.
func TestTheAtlasSaysWhatTheDatabaseDoes(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	address := func() netip.Addr { // of a few networks, so that places lie within each other
		if random.IntN(2) == 0 {
			return netip.AddrFrom4([4]byte{10, byte(random.IntN(3)), byte(random.IntN(4) * 64), byte(random.IntN(4) * 64)})
		}
		return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0, byte(random.IntN(2)), byte(random.IntN(4) * 64), byte(random.IntN(4) * 64), 15: byte(random.IntN(3))})
	}
	for round := range 60 {
		var told []geo.Override
		for range random.IntN(30) {
			a := address()
			p, err := a.Prefix(random.IntN(a.BitLen() + 1))
			if err != nil {
				t.Fatal(err)
			}
			told = append(told, geo.Override{Prefix: p, Location: &spec.Location{Latitude: float64(len(told))}})
		}
		base := []*geo.DB{nil, geo.Default()}[round%2]
		places, err := base.With(told...)
		if err != nil {
			t.Fatal(err)
		}
		m := &atlas{places: places}
		asked := []netip.Addr{{}, netip.MustParseAddr("::"), netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("::ffff:10.0.0.1"), netip.MustParseAddr("fe80::1%eth0")}
		for range 500 {
			asked = append(asked, address())
		}
		var all sync.WaitGroup
		for range 2 {
			all.Go(func() {
				for range 2 {
					for _, a := range asked {
						s := m.find(a)
						if place, bits := places.Lookup(a), places.Bits(a); s.place != place || s.bits != bits {
							t.Errorf("round %d, %v: got %+v by %d bits, want %+v by %d", round, a, s.place, s.bits, place, bits)
							return
						}
					}
				}
			})
		}
		all.Wait()
	}
}

// Clients of many networks at one place are one thing to remember.
func TestTheAtlasRemembersNetworksAsLargeAsPlacesAre(t *testing.T) {
	places, err := (*geo.DB)(nil).With(
		geo.Override{Prefix: netip.MustParsePrefix("20.0.0.0/12"), Location: &spec.Location{Latitude: 1}},
		geo.Override{Prefix: netip.MustParsePrefix("20.1.16.0/20"), Location: &spec.Location{Latitude: 2}})
	if err != nil {
		t.Fatal(err)
	}
	m := &atlas{places: places}
	for i := range 1 << 16 {
		m.find(netip.AddrFrom4([4]byte{20, 1 + byte(i>>14), byte(i >> 6), byte(i << 2)}))
	}
	known := m.spots.Load()
	networks := 0
	for i := range known.four {
		for k := range known.four[i] {
			if known.four[i][k].Load() != 0 {
				networks++
			}
		}
	}
	// Of 20.1/16 one of each of 16 networks of /20, and one of what came before it was known that there are such; of 20.2/15 one for each area.
	if networks > 20 || len(known.numbers) > 8 { // those of one place that depend on other bits are others
		t.Errorf("65,536 addresses are in %d networks at %d spots", networks, len(known.numbers))
	}
}

// More places than there is room for are forgotten, and found again.
func TestTheAtlasIsBounded(t *testing.T) {
	m := &atlas{places: geo.Default()}
	first := m.find(netip.MustParseAddr("8.8.8.8"))
	known := m.spots.Load()
	for i := range maxSpots {
		known.number(spotName{bits: 1000 + i})
	}
	if _, more := known.number(spotName{bits: -1}); more || len(known.numbers) != maxSpots {
		t.Errorf("%d places are remembered, and room for more: %v", len(known.numbers), more)
	}
	next := m.find(netip.MustParseAddr("2001:4860:4860::8888"))
	if again := m.find(netip.MustParseAddr("8.8.8.8")); next.place.Country == "" || *again.site != *first.site || again == first || m.spots.Load() == known {
		t.Errorf("found %+v and %+v", next, again)
	}
}

func BenchmarkAtlas(b *testing.B) {
	m := &atlas{places: geo.Default()}
	var asked []netip.Addr
	random := rand.New(rand.NewPCG(1, 2))
	for range 50_000 {
		asked = append(asked, netip.AddrFrom4([4]byte{byte(11 + random.IntN(180)), byte(random.Uint32()), byte(random.Uint32()), 0}))
	}
	for i := 0; b.Loop(); i++ {
		m.find(asked[i%len(asked)])
	}
}
