package geo

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"
	"github.com/phuslu/iploc"

	"github.com/perigee-net/perigee/cluster/spec"
)

func TestTheBuiltInTableKnowsCountries(t *testing.T) {
	db := Default()
	for _, test := range []struct{ addr, country, continent string }{
		{"168.126.63.1", "KR", "AS"},
		{"8.8.8.8", "US", "NA"},
		{"2001:4860:4860::8888", "US", "NA"},
		{"::ffff:168.126.63.1", "KR", "AS"}, // IPv4 in IPv6
		{"200.160.2.3", "BR", "SA"},
		{"2400:3200::1", "CN", "AS"},
	} {
		p := db.Lookup(netip.MustParseAddr(test.addr))
		if p.Country != test.country || p.Continent != test.continent || !p.OK {
			t.Errorf("%s: got %+v, want %s in %s", test.addr, p, test.country, test.continent)
		}
	}
}

func TestPrivateAndReservedAddressesAreNowhere(t *testing.T) {
	db := Default()
	for _, addr := range []string{
		"0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "169.254.1.1", "172.16.0.1", "192.0.2.1", "192.168.1.1",
		"198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "255.255.255.255",
		"::", "::1", "2001:db8::1", "fd00::1", "fe80::1", "ff02::1", "::ffff:10.0.0.1", "fe80::1%eth0",
	} {
		if p := db.Lookup(netip.MustParseAddr(addr)); p != (Place{}) {
			t.Errorf("%s is at %+v, want nowhere", addr, p)
		}
	}
	if p := db.Lookup(netip.Addr{}); p != (Place{}) {
		t.Errorf("no address is at %+v", p)
	}
}

func TestADBThatIsNilKnowsNoPlace(t *testing.T) {
	var db *DB
	addr := netip.MustParseAddr("8.8.8.8")
	if db.Lookup(addr) != (Place{}) || db.Bits(addr) != 0 || db.String() == "" {
		t.Error("a nil DB knew something")
	}
}

// Every code that the built-in table can answer must have a place, or its clients would be nowhere.
func TestEveryCountryOfTheBuiltInTableHasAPlace(t *testing.T) {
	seen := map[string]bool{}
	add := func(addr netip.Addr) { seen[iploc.IPCountry(addr)] = true }
	for n := range uint32(1 << 18) { // every /18
		add(netip.AddrFrom4([4]byte{byte(n >> 10), byte(n >> 2), byte(n << 6)}))
	}
	for n := range uint32(1 << 18) { // every /28 of 2a00::/10
		add(netip.AddrFrom16([16]byte{0x2a, byte(n >> 12), byte(n >> 4), byte(n << 4)}))
	}
	delete(seen, nowhere)
	if len(seen) < 200 {
		t.Errorf("saw %d countries only", len(seen))
	}
	for code := range seen {
		if _, ok := countries[code]; !ok {
			t.Errorf("no place for %s", code)
		}
	}
}

func TestPlacesAreOnTheEarthAndOnAContinent(t *testing.T) {
	for code, c := range countries {
		if l := c.location; l.Latitude < -90 || l.Latitude > 90 || l.Longitude < -180 || l.Longitude > 180 || l == (spec.Location{}) {
			t.Errorf("%s is at %+v", code, l)
		}
		if !strings.Contains("AF AN AS EU NA OC SA", c.continent) || len(c.continent) != 2 {
			t.Errorf("%s is on %q", code, c.continent)
		}
		if len(code) != 2 || strings.ToUpper(code) != code {
			t.Errorf("%q is no country code", code)
		}
	}
	if len(countries) != 250 {
		t.Errorf("%d countries, want the 249 of ISO 3166-1 and XK", len(countries))
	}
}

func TestAClientOfTheUnitedStatesIsNearestToTheEast(t *testing.T) {
	us := countries["US"].location
	ohio, virginia, oregon := spec.Location{Latitude: 39.96, Longitude: -83}, spec.Location{Latitude: 38.95, Longitude: -77.45}, spec.Location{Latitude: 45.84, Longitude: -119.7}
	if us.Kilometres(ohio) > us.Kilometres(oregon) || us.Kilometres(virginia) > us.Kilometres(oregon) {
		t.Error("Oregon is nearer than Ohio or Virginia")
	}
}

// What Bits says is what resolvers cache by: an address with another place inside the prefix would be
// sent to the wrong one.
func TestAllAddressesOfThePrefixHaveThePlace(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	db, err := Default().With(
		Override{Prefix: netip.MustParsePrefix("8.8.8.0/24"), Country: "KR"},
		Override{Prefix: netip.MustParsePrefix("2001:4860::/48"), Country: "KR"},
	)
	if err != nil {
		t.Fatal(err)
	}
	for range 2000 {
		var addr netip.Addr
		if random.IntN(2) == 0 {
			addr = netip.AddrFrom4([4]byte{byte(random.IntN(224)), byte(random.Uint32()), byte(random.Uint32()), byte(random.Uint32())})
		} else {
			addr = netip.AddrFrom16([16]byte{0x20 | byte(random.IntN(16)), byte(random.Uint32()), byte(random.Uint32()), byte(random.Uint32()), byte(random.Uint32()), byte(random.Uint32()), 6: 1})
		}
		want, n := db.Lookup(addr), db.Bits(addr)
		first, last := ends(addr, n)
		for _, other := range []netip.Addr{first, last, inside(random, addr, n), inside(random, addr, n), inside(random, addr, n)} {
			if got := db.Lookup(other); got != want {
				t.Fatalf("%s is in %q and depends on %d bits, but %s is in %q", addr, want.Country, n, other, got.Country)
			}
		}
	}
	if n := db.Bits(netip.MustParseAddr("168.126.63.1")); n > 16 {
		t.Errorf("an address of a large Korean network depends on %d bits: the prefixes are not the widest", n)
	}
}

// inside is a random address with the first n bits of addr.
func inside(random *rand.Rand, addr netip.Addr, n int) netip.Addr {
	b := addr.AsSlice()
	for i := n; i < addr.BitLen(); i++ {
		b[i/8] ^= byte(random.IntN(2)) << (7 - i%8)
	}
	other, _ := netip.AddrFromSlice(b)
	return other
}

func TestEndsOfAPrefix(t *testing.T) {
	for _, test := range []struct {
		addr        string
		n           int
		first, last string
	}{
		{"10.1.2.3", 32, "10.1.2.3", "10.1.2.3"},
		{"10.1.2.3", 20, "10.1.0.0", "10.1.15.255"},
		{"10.1.2.3", 0, "0.0.0.0", "255.255.255.255"},
		{"2001:db8::1", 29, "2001:db8::", "2001:dbf:ffff:ffff:ffff:ffff:ffff:ffff"},
		{"2001:db8::1", 128, "2001:db8::1", "2001:db8::1"},
	} {
		first, last := ends(netip.MustParseAddr(test.addr), test.n)
		if first.String() != test.first || last.String() != test.last {
			t.Errorf("%s/%d: got %s to %s", test.addr, test.n, first, last)
		}
	}
}

func TestTheOperatorKnowsBetter(t *testing.T) {
	busan := spec.Location{Latitude: 35.18, Longitude: 129.08}
	db, err := Default().With(
		Override{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Country: "KR"},
		Override{Prefix: netip.MustParsePrefix("10.1.0.0/16"), Country: "KR", Location: &busan},
		Override{Prefix: netip.MustParsePrefix("8.8.8.8/31"), Country: "DE"},
		Override{Prefix: netip.MustParsePrefix("192.168.0.0/16"), Location: &busan},
		Override{Prefix: netip.MustParsePrefix("9.0.0.0/8")}, // nowhere, whatever the table says
	)
	if err != nil {
		t.Fatal(err)
	}
	seoul := countries["KR"].location
	for _, test := range []struct {
		addr string
		want Place
		bits int
	}{
		{"10.2.3.4", Place{"KR", "AS", seoul, true, "", true}, 15}, // 10.2.0.0/15 is the widest that leaves out 10.1
		{"10.200.3.4", Place{"KR", "AS", seoul, true, "", true}, 9},
		{"10.1.3.4", Place{"KR", "AS", busan, true, "", false}, 16},
		{"8.8.8.9", Place{"DE", "EU", countries["DE"].location, true, "", true}, 31},
		{"8.8.8.10", Place{"US", "NA", countries["US"].location, true, "", true}, 31},
		{"192.168.9.9", Place{Location: busan, OK: true}, 16},
		{"9.9.9.9", Place{}, 8},
	} {
		addr := netip.MustParseAddr(test.addr)
		if got := db.Lookup(addr); got != test.want {
			t.Errorf("%s: got %+v, want %+v", addr, got, test.want)
		}
		if got := db.Bits(addr); got != test.bits {
			t.Errorf("%s depends on %d bits, want %d", addr, got, test.bits)
		}
	}
	if Default().Lookup(netip.MustParseAddr("10.2.3.4")) != (Place{}) {
		t.Error("the overrides changed the DB they were laid over")
	}
	if _, err := db.With(Override{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Country: "XX"}); err == nil {
		t.Error("took a country that does not exist")
	}
	if _, err := db.With(Override{Country: "KR"}); err == nil {
		t.Error("took an override without a CIDR")
	}
}

func TestADatabaseOfTheOperatorIsRead(t *testing.T) {
	city := mmdbtype.Map{
		"country":   mmdbtype.Map{"iso_code": mmdbtype.String("KR")},
		"continent": mmdbtype.Map{"code": mmdbtype.String("AS")},
		"subdivisions": mmdbtype.Slice{
			mmdbtype.Map{"iso_code": mmdbtype.String("26")}, mmdbtype.Map{"iso_code": mmdbtype.String("smaller")},
		},
		"location": mmdbtype.Map{"latitude": mmdbtype.Float64(35.18), "longitude": mmdbtype.Float64(129.08)},
	}
	country := mmdbtype.Map{"country": mmdbtype.Map{"iso_code": mmdbtype.String("FR")}}
	other := mmdbtype.Map{"country": mmdbtype.String("a string where a map should be")}
	db := open(t, 6, map[string]mmdbtype.Map{"1.2.3.0/24": city, "1.2.4.0/22": country, "2400::/32": country, "5.0.0.0/8": other})
	for _, test := range []struct {
		addr string
		want Place
		bits int
	}{
		{"1.2.3.4", Place{"KR", "AS", spec.Location{Latitude: 35.18, Longitude: 129.08}, true, "26", false}, 24},
		{"1.2.5.4", Place{"FR", "EU", countries["FR"].location, true, "", true}, 22},
		{"2400::1", Place{"FR", "EU", countries["FR"].location, true, "", true}, 32},
		{"5.1.1.1", Place{}, 8},
		{"128.0.0.1", Place{}, 1},
		{"8000::1", Place{}, 1},
	} {
		addr := netip.MustParseAddr(test.addr)
		if got := db.Lookup(addr); got != test.want {
			t.Errorf("%s: got %+v, want %+v", addr, got, test.want)
		}
		if got := db.Bits(addr); got != test.bits {
			t.Errorf("%s depends on %d bits, want %d", addr, got, test.bits)
		}
	}
	if !strings.Contains(db.String(), "Test-City") {
		t.Errorf("it says it is %q", db)
	}
}

func TestADatabaseOfIPv4AloneKnowsNoIPv6(t *testing.T) {
	db := open(t, 4, map[string]mmdbtype.Map{"1.2.3.0/24": {"country": mmdbtype.Map{"iso_code": mmdbtype.String("KR")}}})
	if p := db.Lookup(netip.MustParseAddr("1.2.3.4")); p.Country != "KR" {
		t.Errorf("got %+v", p)
	}
	six := netip.MustParseAddr("2400::1")
	if p, n := db.Lookup(six), db.Bits(six); p != (Place{}) || n != 0 {
		t.Errorf("got %+v of %d bits, want nowhere of none", p, n)
	}
}

func TestAFileThatIsNoDatabaseIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bad.mmdb")
	if err := os.WriteFile(path, []byte("not a database"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{path, filepath.Join(t.TempDir(), "none.mmdb")} {
		if _, err := Open(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("got %v, want an error that names the file", err)
		}
	}
}

// open writes a database of the records and opens it.
func open(t *testing.T, version int, records map[string]mmdbtype.Map) *DB {
	tree, err := mmdbwriter.New(mmdbwriter.Options{DatabaseType: "Test-City", IPVersion: version, IncludeReservedNetworks: true})
	if err != nil {
		t.Fatal(err)
	}
	for cidr, record := range records {
		_, network, err := net.ParseCIDR(cidr)
		if err != nil {
			t.Fatal(err)
		}
		if err := tree.Insert(network, record); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "places.mmdb")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tree.WriteTo(f); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func BenchmarkLookup(b *testing.B) {
	db := Default()
	for name, addr := range map[string]netip.Addr{"IPv4": netip.MustParseAddr("168.126.63.1"), "IPv6": netip.MustParseAddr("2001:4860:4860::8888")} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				db.Lookup(addr)
			}
		})
	}
}

func BenchmarkBits(b *testing.B) {
	db := Default()
	for name, addr := range map[string]netip.Addr{"IPv4": netip.MustParseAddr("168.126.63.1"), "IPv6": netip.MustParseAddr("2001:4860:4860::8888")} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				db.Bits(addr)
			}
		})
	}
}
