package origin

import (
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestTheTargetIsToldOfTheClient(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for name, c := range map[string]struct {
		hop  hop
		in   http.Header
		want http.Header
	}{
		"a client": {
			hop{client: v4, protocol: "http", port: 8080}, nil,
			http.Header{"X-Forwarded-For": {"192.0.2.1"}, "X-Forwarded-Proto": {"http"}, "X-Forwarded-Port": {"8080"}},
		},
		"by IPv6, without brackets": {
			hop{client: v6, protocol: "https", port: 443}, nil,
			http.Header{"X-Forwarded-For": {"2001:db8::1"}, "X-Forwarded-Proto": {"https"}, "X-Forwarded-Port": {"443"}},
		},
		"what the client says is appended to or replaced": {
			hop{client: v4, protocol: "http", port: 80},
			http.Header{"X-Forwarded-For": {"a, b", "c"}, "X-Forwarded-Proto": {"https"}, "X-Forwarded-Port": {"1"}},
			http.Header{"X-Forwarded-For": {"a, b, c, 192.0.2.1"}, "X-Forwarded-Proto": {"http"}, "X-Forwarded-Port": {"80"}},
		},
		"what an edge node says stands": {
			hop{client: v4, protocol: "http", port: 80, inside: true},
			http.Header{"X-Forwarded-For": {"198.51.100.1, 192.0.2.1"}, "X-Forwarded-Proto": {"https"}, "X-Forwarded-Port": {"443"}},
			http.Header{"X-Forwarded-For": {"198.51.100.1, 192.0.2.1"}, "X-Forwarded-Proto": {"https"}, "X-Forwarded-Port": {"443"}},
		},
		"what an edge node leaves out is filled in": {
			hop{client: v4, protocol: "http", port: 80, inside: true},
			http.Header{"X-Forwarded-Proto": {"gopher"}},
			http.Header{"X-Forwarded-For": {"192.0.2.1"}, "X-Forwarded-Proto": {"http"}, "X-Forwarded-Port": {"80"}},
		},
		"a client that is not known": {
			hop{protocol: "http", port: 80}, http.Header{"X-Forwarded-For": {"a"}},
			http.Header{"X-Forwarded-For": {"a"}, "X-Forwarded-Proto": {"http"}, "X-Forwarded-Port": {"80"}},
		},
		"nobody": {
			hop{protocol: "http", port: 80}, nil,
			http.Header{"X-Forwarded-Proto": {"http"}, "X-Forwarded-Port": {"80"}},
		},
	} {
		out := http.Header{}
		c.hop.forward(c.in, out)
		if diff := cmp.Diff(c.want, out); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
}

func TestThePortOfAnUnusualListenerJoinsTheHost(t *testing.T) {
	for _, c := range []struct {
		host string
		port uint16
		want string
	}{
		{"a.example", 80, "a.example"},
		{"a.example", 443, "a.example"},
		{"a.example", 8080, "a.example:8080"},
		{"a.example:9", 8080, "a.example:9"},
		{"[2001:db8::1]", 8080, "[2001:db8::1]:8080"},
		{"[2001:db8::1]:9", 8080, "[2001:db8::1]:9"},
		{"", 8080, ""},
	} {
		if got := hostWithPort(c.host, c.port); got != c.want {
			t.Errorf("%s at port %d: got %s, want %s", c.host, c.port, got, c.want)
		}
	}
}

var traceForm = regexp.MustCompile(`^Root=1-[0-9a-f]{8}-[0-9a-f]{24}$`)

func TestATraceKeepsItsRoot(t *testing.T) {
	now := time.Unix(0x5f000000, 0)
	id := regexp.MustCompile(`1-5f000000-[0-9a-f]{24}`)
	for came, want := range map[string]string{
		"":                             "Root=NEW",
		"Root=1-2-3":                   "Self=NEW;Root=1-2-3",
		"Root=1-2-3;CalledFrom=app":    "Self=NEW;Root=1-2-3;CalledFrom=app",
		"Self=1-9-9;Root=1-2-3; a=b ;": "Self=NEW;Root=1-2-3;a=b",
		"CalledFrom=app":               "Root=NEW;CalledFrom=app",
		"Self=1-9-9":                   "Root=NEW",
	} {
		got := traced(came, now)
		if fresh := id.FindString(got); strings.Replace(got, fresh, "NEW", 1) != want {
			t.Errorf("%q: got %q, want %q", came, got, want)
		}
	}
	if one, other := traced("", now), traced("", now); one == other {
		t.Errorf("two requests have one trace, %s", one)
	}
}
