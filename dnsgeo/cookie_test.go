package dnsgeo

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func secretOf(t testing.TB, hexadecimal string) CookieSecret {
	t.Helper()
	return CookieSecret(bytesOf(t, hexadecimal))
}

// The examples of RFC 9018, appendix A.
func TestCookiesAreThoseOfOtherServers(t *testing.T) {
	first := "e5e973e5a6b2a43f48e7dc849e37bfcf"
	for _, test := range []struct {
		name, from string
		secrets    []string
		sent       string
		proven     bool
		at         int64
		want       string
	}{
		{"A.1: a new client", "198.51.100.100", []string{first}, "2464c4abcf10c957", false, 1559731985, "2464c4abcf10c957010000005cf79f111f8130c3eee29480"},
		{"A.2: renewed", "198.51.100.100", []string{first}, "2464c4abcf10c957010000005cf79f111f8130c3eee29480", true, 1559734385, "2464c4abcf10c957010000005cf7a871d4a564a1442aca77"},
		{"A.3: of another server, which used the reserved bytes", "203.0.113.203", []string{first}, "fc93fc62807ddb8601abcdef5cf78f71a314227b6679ebf5", false, 1559734700, "fc93fc62807ddb86010000005cf7a9acf73a7810aca2381e"},
		{"A.4: of the secret before, by IPv6", "2001:db8:220:1:59de:d0f4:8769:82b8", []string{"445536bcd2513298075a5d379663c962", "dd3bdf9344b678b185a6f5cb60fca715"}, "22681ab97d52c298010000005cf7c57926556bd0934c72f8", true, 1559741961, "22681ab97d52c298010000005cf7c609a6bb79d16625507a"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var secrets []CookieSecret
			for _, s := range test.secrets {
				secrets = append(secrets, secretOf(t, s))
			}
			got, proven := checkCookie(nil, bytesOf(t, test.sent), netip.MustParseAddr(test.from), secrets, time.Unix(test.at, 0))
			if hex.EncodeToString(got) != test.want {
				t.Errorf("got %x, want %s", got, test.want)
			}
			if proven != test.proven {
				t.Errorf("proven: %v", proven)
			}
		})
	}
}

// The example of SipHash's authors: 15 bytes of 0, 1, 2 … by a key of 0, 1, 2 ….
func TestSipHashIsThatOfItsAuthors(t *testing.T) {
	var key CookieSecret
	for i := range key {
		key[i] = byte(i)
	}
	if got := sipHash(&key, key[:15]); got != 0xa129ca6149be45e5 {
		t.Errorf("got %x", got)
	}
}

func TestACookieIsProvenForAnHourAtItsAddressOnly(t *testing.T) {
	secrets := []CookieSecret{{1}}
	from, now := netip.MustParseAddr("192.0.2.1"), time.Unix(1<<32-600, 0) // the time passes 32 bits ten minutes later
	given, proven := checkCookie(nil, make([]byte, clientCookieSize), from, secrets, now)
	if proven || len(given) != cookieSize {
		t.Fatalf("got %x, %v", given, proven)
	}
	for _, test := range []struct {
		name         string
		change       func(c []byte) []byte
		from         string
		secrets      []CookieSecret
		after        time.Duration
		proven, same bool
	}{
		{"at once", nil, "192.0.2.1", secrets, 0, true, true},
		{"at the address as IPv6 has it", nil, "::ffff:192.0.2.1", secrets, 0, true, true},
		{"after half an hour", nil, "192.0.2.1", secrets, 30 * time.Minute, true, true},
		{"then it is renewed", nil, "192.0.2.1", secrets, 30*time.Minute + time.Second, true, false},
		{"after an hour", nil, "192.0.2.1", secrets, time.Hour, true, false},
		{"later", nil, "192.0.2.1", secrets, time.Hour + time.Second, false, false},
		{"by a node whose clock is behind", nil, "192.0.2.1", secrets, -5 * time.Minute, true, true},
		{"by one whose clock is too far behind", nil, "192.0.2.1", secrets, -5*time.Minute - time.Second, false, false},
		{"at another address", nil, "192.0.2.2", secrets, 0, false, false},
		{"of another secret", nil, "192.0.2.1", []CookieSecret{{2}}, 0, false, false},
		{"of one that is not in use any more", nil, "192.0.2.1", []CookieSecret{{2}, {1}}, 0, true, false},
		{"of another client", func(c []byte) []byte { c[0]++; return c }, "192.0.2.1", secrets, 0, false, false},
		{"of another version", func(c []byte) []byte { c[8]++; return c }, "192.0.2.1", secrets, 0, false, false},
		{"forged", func(c []byte) []byte { c[23]++; return c }, "192.0.2.1", secrets, 0, false, false},
		{"cut", func(c []byte) []byte { return c[:20] }, "192.0.2.1", secrets, 0, false, false},
		{"longer", func(c []byte) []byte { return append(c, 0) }, "192.0.2.1", secrets, 0, false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			sent := bytes.Clone(given)
			if test.change != nil {
				sent = test.change(sent)
			}
			got, proven := checkCookie(nil, sent, netip.MustParseAddr(test.from), test.secrets, now.Add(test.after))
			if proven != test.proven || bytes.Equal(got, sent) != test.same || len(got) != cookieSize || !bytes.Equal(got[:8], sent[:8]) {
				t.Errorf("got %x for %x, proven %v", got, sent, proven)
			}
		})
	}
	if got, proven := checkCookie(nil, given, from, nil, now); proven || got != nil {
		t.Errorf("without a secret: %x, %v", got, proven)
	}
}

func TestCookiesHaveTheLengthsOfTheRFC(t *testing.T) {
	for n := range 50 {
		want := n == 8 || n >= 16 && n <= 40
		if validCookie(make([]byte, n)) != want {
			t.Errorf("%d bytes: want %v", n, want)
		}
	}
}

func TestPaddingMakesBlocks(t *testing.T) {
	for _, test := range []struct{ size, limit, want int }{
		{100, 65535, 468}, {464, 65535, 468}, {465, 65535, 936}, {468, 65535, 936}, {900, 65535, 936},
		{1200, 1232, 1232}, {1228, 1232, 1232}, {1229, 1232, 1229}, {65531, 65535, 65535}, {65535, 65535, 65535},
	} {
		if got := test.size + len(appendPadding(nil, test.size, test.limit)); got != test.want {
			t.Errorf("%d bytes of %d became %d, want %d", test.size, test.limit, got, test.want)
		}
	}
}

func TestOptionsAreReadByOthers(t *testing.T) {
	opt := []byte{0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0}
	opt = appendEDE(opt, dns.ExtendedErrorCodeNotReady, "soon")
	opt = appendKeepalive(opt)
	opt = appendPadding(opt, len(opt), 65535)
	opt[9], opt[10] = byte((len(opt)-11)>>8), byte(len(opt)-11)
	rr, _, err := dns.UnpackRR(opt, 0)
	if err != nil {
		t.Fatal(err)
	}
	options := rr.(*dns.OPT).Option
	ede, ok1 := options[0].(*dns.EDNS0_EDE)
	keepalive, ok2 := options[1].(*dns.EDNS0_TCP_KEEPALIVE)
	_, ok3 := options[2].(*dns.EDNS0_PADDING)
	if !ok1 || !ok2 || !ok3 || ede.InfoCode != 14 || ede.ExtraText != "soon" || keepalive.Timeout != 100 || len(opt) != 468 {
		t.Errorf("got %v, %d bytes", rr, len(opt))
	}
}

func BenchmarkCookie(b *testing.B) {
	secrets := []CookieSecret{{1}, {2}, {3}}
	from, now := netip.MustParseAddr("192.0.2.1"), time.Unix(1e9, 0)
	given, _ := checkCookie(nil, make([]byte, clientCookieSize), from, secrets, now)
	room := make([]byte, 0, 64)
	b.ReportAllocs()
	for b.Loop() {
		if _, proven := checkCookie(room, given, from, secrets, now); !proven {
			b.Fatal("not proven")
		}
	}
}
