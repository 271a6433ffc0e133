package dnsgeo

import (
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// responseOf is a response to a question, as it is sent.
func responseOf(t testing.TB, s *Server, name string, typ uint16) []byte {
	t.Helper()
	m := new(dns.Msg).SetQuestion(name, typ)
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return append([]byte(nil), s.respond(make([]byte, roomSize), b, netip.MustParseAddr("127.0.0.1"), UDP)...)
}

// passed counts which of responses are sent, cut, held, where one comes each so often.
func passed(l *limiter, from netip.Addr, start, every time.Duration, n int, response func(i int) []byte) (got [3]int) {
	for i := range n {
		got[l.judge(from, response(i), start+time.Duration(i)*every)]++
	}
	return got
}

func TestResponsesOfAClassAreLimited(t *testing.T) {
	s := serverOf(t, "www A 192.0.2.1\nmail A 192.0.2.2\nsub NS ns1.elsewhere.test.")
	www := func(int) []byte { return responseOf(t, s, "www.example.com.", dns.TypeA) }
	cased := func(int) []byte { return responseOf(t, s, "wWw.exAmple.com.", dns.TypeA) }
	answer := www(0)
	same := func(int) []byte { return answer }
	from := netip.MustParseAddr("192.0.2.1")
	for _, test := range []struct {
		name     string
		then     func(int) []byte
		from     string
		isLimits bool
	}{
		{"the same", same, "192.0.2.1", true},
		{"by another of its network", same, "192.0.2.254", true},
		{"in capitals", cased, "192.0.2.1", true},
		{"another name", func(int) []byte { return responseOf(t, s, "mail.example.com.", dns.TypeA) }, "192.0.2.1", false},
		{"no such name", func(int) []byte { return responseOf(t, s, "none.example.com.", dns.TypeA) }, "192.0.2.1", false},
		{"by another network", same, "192.0.3.1", false},
		{"by IPv6", same, "2001:db8::1", false},
		{"by this machine", same, "127.0.0.1", false},
	} {
		l := newLimiter(100)
		if got := passed(l, from, 0, time.Millisecond, 1000, same); got[pass] < 195 || got[pass] > 205 || got[slip] < 395 || got[hold] < 395 {
			t.Fatalf("of 1,000 in a second %v were sent, cut, held; want 200, the second's and its burst", got)
		}
		if got := l.judge(netip.MustParseAddr(test.from), test.then(0), 999*time.Millisecond) != pass; got != test.isLimits {
			t.Errorf("%s: limited %v", test.name, got)
		}
	}
}

func TestNothingAndErrorsAreLimitedByZone(t *testing.T) {
	s := serverOf(t, "www A 192.0.2.1\nsub NS ns1.elsewhere.test.")
	for name, of := range map[string]func(i int) []byte{
		"no such name": func(i int) []byte { return responseOf(t, s, names(i)+".example.com.", dns.TypeA) },
		"delegated":    func(i int) []byte { return responseOf(t, s, names(i)+".sub.example.com.", dns.TypeA) },
		"refused":      func(i int) []byte { return responseOf(t, s, names(i)+".other.test.", dns.TypeA) },
	} {
		l := newLimiter(10)
		got := passed(l, netip.MustParseAddr("2001:db8::1"), 0, time.Millisecond, 100, of)
		if got[pass] != 10 && got[pass] != 11 {
			t.Errorf("%s: of 100 names in 100 ms %v were sent, cut, held", name, got)
		}
	}
}

func names(i int) string { return string([]byte{'a' + byte(i/26), 'a' + byte(i%26)}) }

// A wildcard has an answer for each of many names: each is a class of its own, and they are limited together.
func TestAllResponsesToANetworkAreLimitedTogether(t *testing.T) {
	s := serverOf(t, "* TXT x")
	l := newLimiter(10)
	got := passed(l, netip.MustParseAddr("192.0.2.1"), 0, time.Millisecond, 600, func(i int) []byte {
		return responseOf(t, s, names(i)+".example.com.", dns.TypeTXT)
	})
	if got[pass] < 155 || got[pass] > 165 { // a burst of 100, and 60 in 600 ms
		t.Errorf("of 600 names %v were sent, cut, held", got)
	}
}

func TestASteadyRateIsNotLimited(t *testing.T) {
	s := serverOf(t, "www A 192.0.2.1")
	answer := responseOf(t, s, "www.example.com.", dns.TypeA)
	l := newLimiter(DefaultRate)
	if got := passed(l, netip.MustParseAddr("192.0.2.1"), time.Hour, time.Second/DefaultRate, 10_000, func(int) []byte { return answer }); got[pass] != 10_000 {
		t.Errorf("%v were sent, cut, held", got)
	}
	if l := newLimiter(0); l.judge(netip.MustParseAddr("192.0.2.1"), answer, 0) != pass {
		t.Error("without a limit one was limited")
	}
}

// A flood in the names of a twenty thousand networks neither grows what is remembered nor hides the one that is flooded.
func TestWhatIsRememberedIsBounded(t *testing.T) {
	s := serverOf(t, "www A 192.0.2.1")
	answer := responseOf(t, s, "www.example.com.", dns.TypeA)
	l := newLimiter(100)
	victim, sent := netip.MustParseAddr("192.0.2.1"), 0
	for i := range 20_000 {
		at := time.Duration(i) * 50 * time.Microsecond
		l.judge(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), byte(i >> 16)}), answer, at)
		if i%10 == 0 && l.judge(victim, answer, at) == pass {
			sent++
		}
	}
	if sent > 220 {
		t.Errorf("%d of 2,000 were sent in a second, want 200", sent)
	}
	if got := testing.AllocsPerRun(100, func() { l.judge(victim, answer, time.Second) }); got > 0 {
		t.Errorf("%v allocations", got)
	}
}

func FuzzAnyResponseHasAClass(f *testing.F) {
	l := newLimiter(1)
	s := serverOf(f, "www A 192.0.2.1")
	f.Add(responseOf(f, s, "www.example.com.", dns.TypeA))
	f.Add(responseOf(f, s, "none.example.com.", dns.TypeA))
	f.Fuzz(func(t *testing.T, m []byte) {
		if len(m) >= headerSize {
			l.judge(netip.MustParseAddr("192.0.2.1"), m, 0)
		}
	})
}

func BenchmarkLimit(b *testing.B) {
	s := serverOf(b, "www A 192.0.2.1")
	answer := responseOf(b, s, "www.example.com.", dns.TypeA)
	l := newLimiter(DefaultRate)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		l.judge(netip.AddrFrom4([4]byte{byte(i), byte(i >> 8), byte(i >> 16), 1}), answer, time.Duration(i)*time.Microsecond)
	}
}
