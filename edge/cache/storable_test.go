package cache

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
)

func TestWhatMayBeKept(t *testing.T) {
	plain, strict := policy(), policy(ttls(60, 600, 3600))
	guessing := policy(func(p *spec.CachePolicy) { p.HeuristicTTL = true })
	noErrors := policy()
	noErrors.ErrorTTL = 0
	for _, c := range []struct {
		policy     *Policy
		status     int
		control    string
		more       string
		authorized bool
		want       string
	}{
		{policy: plain, status: 200},
		{policy: plain, status: 204},
		{policy: plain, status: 301},
		{policy: plain, status: 302},
		{policy: plain, status: 308},
		{policy: plain, status: 206, control: "max-age=60", want: "status"},
		{policy: plain, status: 304, want: "status"},
		{policy: plain, status: 416, control: "max-age=60", want: "status"},
		{policy: plain, status: 425, control: "max-age=60", want: "status"},
		{policy: strict, status: 425, control: "max-age=60", want: "status"},
		{policy: plain, status: 103, control: "max-age=60", want: "status"},
		{policy: plain, status: 999, control: "max-age=60", want: "status"},
		{policy: plain, status: 299, control: "max-age=60"},
		{policy: plain, status: 299, want: "status"},
		{policy: plain, status: 299, control: "public", want: "status"},
		{policy: guessing, status: 299, control: "public", more: "Last-Modified: " + at(-time.Hour)},
		{policy: guessing, status: 299, more: "Last-Modified: " + at(-time.Hour), want: "status"},
		{policy: guessing, status: 405, more: "Last-Modified: " + at(-time.Hour)},
		{policy: guessing, status: 405, want: "status"},
		{policy: plain, status: 299, control: "max-age=60, must-understand", want: "status"},
		{policy: plain, status: 201, control: "max-age=60, must-understand, no-store"},

		{policy: plain, status: 404},
		{policy: plain, status: 414},
		{policy: plain, status: 500},
		{policy: plain, status: 501},
		{policy: plain, status: 502},
		{policy: plain, status: 503},
		{policy: plain, status: 504},
		{policy: plain, status: 404, control: "no-store"},
		{policy: noErrors, status: 404, control: "no-store", want: "no-store"},
		{policy: plain, status: 505, control: "max-age=60"},
		{policy: plain, status: 401, control: "max-age=60"},
		{policy: plain, status: 401, want: "status"},
		{policy: plain, status: 410},
		{policy: plain, status: 400, want: "status"},
		{policy: plain, status: 403, want: "status"},
		{policy: plain, status: 405, want: "status"},
		{policy: plain, status: 412, want: "status"},
		{policy: plain, status: 415, want: "status"},
		{policy: plain, status: 403, more: "Expires: " + at(time.Hour)},
		{policy: plain, status: 403, more: "Expires: " + at(-time.Hour), want: "status"},
		{policy: plain, status: 403, control: "max-age=60"},
		{policy: plain, status: 415, control: "s-maxage=60"},
		{policy: plain, status: 403, control: "max-age=60, s-maxage=0", want: "status"},
		{policy: plain, status: 403, control: "no-store, max-age=60", want: "no-store"},
		{policy: plain, status: 403, control: "no-cache, max-age=60", want: "status"},
		{policy: strict, status: 403, want: "status"},

		{policy: plain, status: 200, control: "no-store", want: "no-store"},
		{policy: plain, status: 200, control: "private", want: "private"},
		{policy: plain, status: 200, control: "no-cache"},
		{policy: strict, status: 200, control: "no-store"},
		{policy: strict, status: 200, control: "private"},

		{policy: plain, status: 200, authorized: true, want: "authorization"},
		{policy: plain, status: 200, authorized: true, control: "max-age=60", want: "authorization"},
		{policy: plain, status: 200, authorized: true, control: "public"},
		{policy: plain, status: 200, authorized: true, control: "s-maxage=60"},
		{policy: plain, status: 200, authorized: true, control: "must-revalidate"},
		{policy: strict, status: 200, authorized: true, want: "authorization"},

		{policy: plain, status: 200, more: "Vary: Accept, *", want: "vary"},
		{policy: strict, status: 200, more: "Vary: *", want: "vary"},
		{policy: plain, status: 200, more: "Vary: Accept"},
	} {
		h := header("Cache-Control: "+c.control, c.more)
		ok, why := c.policy.Storable(c.status, ParseControl(h), h, c.authorized, noon)
		if why != c.want || ok != (c.want == "") {
			t.Errorf("%d %v authorized=%v: got %v %q, want %q", c.status, h, c.authorized, ok, why, c.want)
		}
	}
}

func TestSetCookieIsKeptOnlyWithCookiesInTheKey(t *testing.T) {
	for _, c := range []struct {
		policy *Policy
		want   string
	}{{policy(), ""}, {policy(keyed(none, only("s"), none)), "s=1"}} {
		h := header("Set-Cookie: s=1")
		if got := c.policy.head(200, Control{}, h, noon, noon).Header.Get("Set-Cookie"); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

func TestVaryNamesWhatSelected(t *testing.T) {
	for _, c := range []struct {
		lines []string
		want  []string
		any   bool
	}{
		{nil, nil, false},
		{[]string{"Vary: accept-language, Accept-Encoding", "Vary: Accept-Language"}, []string{"Accept-Encoding", "Accept-Language"}, false},
		{[]string{"Vary: , ,"}, nil, false},
		{[]string{"Vary: a", "Vary: *"}, nil, true},
		{[]string{"Content-Encoding: gzip"}, []string{"Accept-Encoding"}, false},
	} {
		if names, any := vary(header(c.lines...)); !slices.Equal(names, c.want) || any != c.any {
			t.Errorf("%q: got %q %v, want %q %v", c.lines, names, any, c.want, c.any)
		}
	}
}

func TestOnlyWhatTheOriginIsSentSelects(t *testing.T) {
	h := header("Vary: Origin, Cookie, X-Lang, Accept-Encoding, User-Agent")
	for _, c := range []struct {
		policy *Policy
		want   []string
	}{
		{policy(), []string{"Accept-Encoding"}},
		{policy(keyed(only("X-Lang"), none, none)), []string{"Accept-Encoding", "X-Lang"}},
		{policy(keyed(none, only("s"), none)), []string{"Accept-Encoding", "Cookie"}},
	} {
		if got := c.policy.selecting(h); !slices.Equal(got, c.want) {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

func TestVariantsAreToldApartByWhatTheOriginIsSent(t *testing.T) {
	p := policy(keyed(only("X-Lang"), only("s"), none))
	names := []string{"Accept-Encoding", "Cookie", "Origin", "X-Lang"}
	for _, c := range []struct {
		name string
		a, b []string
		same bool
	}{
		{"codings in another order and weight", []string{"Accept-Encoding: gzip, br"}, []string{"Accept-Encoding: br;q=0.9,deflate,gzip"}, true},
		{"another coding", []string{"Accept-Encoding: gzip"}, []string{"Accept-Encoding: br"}, false},
		{"a field that is not sent", []string{"Origin: https://a"}, []string{"Origin: https://b"}, true},
		{"a cookie that is not sent", []string{"Cookie: t=1"}, []string{"Cookie: t=2"}, true},
		{"a cookie that is", []string{"Cookie: s=1"}, []string{"Cookie: s=2"}, false},
		{"lines that mean the same", []string{"X-Lang: a", "X-Lang: b"}, []string{"X-Lang: a, b"}, true},
	} {
		if got := p.secondary(names, header(c.a...)) == p.secondary(names, header(c.b...)); got != c.same {
			t.Errorf("%s: the same: %v, want %v", c.name, got, c.same)
		}
	}
}

func TestAFieldIsKeyedAndSentInOneForm(t *testing.T) {
	for _, c := range []struct {
		name, want string
		lines      []string
	}{
		{"X-A", "", nil},
		{"X-A", "", []string{""}},
		{"X-A", "a", []string{"a"}},
		{"X-A", "1, 2", []string{"1,2"}},
		{"X-A", "1, , 2,", []string{" 1 ,, 2 ,"}},
		{"Accept-Language", "de, en", []string{",de,, en ,"}},
		{"X-A", "1, 2", []string{"1", "2"}},
		{"X-A", "2, 1", []string{"2", "1"}},
		{"X-A", `"a,b", C`, []string{`"a,b" ,C`}},
		{"X-A", `"a\",b", c`, []string{`"a\",b",c`}},
		{"X-A", `"a,b`, []string{`"a,b`}},
		{"Accept-Language", "en", []string{"EN"}},
		{"Accept-Language", "de, en", []string{"en, de"}},
		{"Accept-Language", "de, en", []string{" eN ,   De"}},
		{"Accept-Language", "de, en;q=0.5, fr;q=0.5, *;q=0.1", []string{"fr;q=0.50, *;Q=0.1,en; q=0.500", "de;q=1.0"}},
		{"Accept-Language", "en, de;q=high", []string{"en, de;q=high"}},
		{"Accept-Language", "b" + strings.Repeat(", a", 64), []string{"b" + strings.Repeat(",a", 64)}},
		{"Accept-Language", "fr;q=0", []string{"fr;q=0.000"}},
		{"Accept-Charset", "utf-8, x;q=0.001", []string{"x;q=0.001,UTF-8"}},
		{"Accept", "text/html, */*;q=0.1", []string{"text/html,*/*;q=0.1"}},
	} {
		if got := canonical(c.name, c.lines); got != c.want {
			t.Errorf("%s %q: got %q, want %q", c.name, c.lines, got, c.want)
		}
	}
}

func FuzzCanonical(f *testing.F) {
	for _, s := range []string{"en, de;q=0.5", `"a,b", c`, "fr;q=0.5;a, x", ",,\"", `\"`, "a;q=1.000,b;q=0.001"} {
		f.Add(s, "b")
	}
	f.Fuzz(func(t *testing.T, one, two string) {
		for _, name := range []string{"Accept-Language", "X-A"} {
			got := canonical(name, []string{one, two})
			if again := canonical(name, []string{got}); again != got {
				t.Fatalf("%s %q, %q: %q is canonical, and its canonical form is %q", name, one, two, got, again)
			}
		}
	})
}
