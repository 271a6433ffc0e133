package cache

import (
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/perigee-net/perigee/cluster/spec"
)

func TestTheKeyIsWhatThePolicyNamesAndNothingElse(t *testing.T) {
	at := func(query string) Target { return Target{Distribution: "shop", Path: "/a", Query: query} }
	for _, c := range []struct {
		name   string
		policy *Policy
		a, b   Target
		ha, hb http.Header
		same   bool
	}{
		{"by default neither query, header nor cookie count", policy(), at("x=1"), at("y"), header("Accept: a", "Cookie: c=1"), header(), true},
		{"the path counts, with case", policy(), Target{Path: "/a"}, Target{Path: "/A"}, nil, nil, false},
		{"the distribution counts", policy(), Target{Distribution: "a"}, Target{Distribution: "b"}, nil, nil, false},
		{"the host counts where the origin is sent it", policy(), Target{Host: "a"}, Target{Host: "b"}, nil, nil, false},
		{"the scheme counts where the origin is told it", policy(), Target{Scheme: "http"}, Target{Scheme: "https"}, nil, nil, false},
		{"parts do not run into each other", policy(), Target{Distribution: "ab", Path: "/c"}, Target{Distribution: "a", Path: "b/c"}, nil, nil, false},

		{"all queries: the order counts", policy(keyed(none, none, all)), at("a=1&b=2"), at("b=2&a=1"), nil, nil, false},
		{"all queries: no query is the same as an empty one", policy(keyed(none, none, all)), at(""), at(""), nil, nil, true},
		{"some queries: the others do not count", policy(keyed(none, none, only("a"))), at("a=1&b=2"), at("b=3&a=1&c"), nil, nil, true},
		{"some queries: their order does", policy(keyed(none, none, only("a", "b"))), at("a=1&b=2"), at("b=2&a=1"), nil, nil, false},
		{"some queries: with case", policy(keyed(none, none, only("a"))), at("a=1"), at("A=1"), nil, nil, false},
		{"some queries: given twice is not given once", policy(keyed(none, none, only("a"))), at("a=1&a=2"), at("a=1"), nil, nil, false},
		{"all but some queries", policy(keyed(none, none, spec.KeyPart{Behavior: spec.KeyAllExcept, Items: []string{"utm"}})), at("a=1&utm=x"), at("utm=y&a=1"), nil, nil, true},

		{"a header of the policy counts", policy(keyed(only("x-lang"), none, none)), at(""), at(""), header("X-Lang: ko"), header("X-Lang: en"), false},
		{"an empty header is not an absent one", policy(keyed(only("X-Lang"), none, none)), at(""), at(""), header("X-Lang:"), header(), false},
		{"two lines are as one", policy(keyed(only("X-Lang"), none, none)), at(""), at(""), header("X-Lang: a", "X-Lang: b"), header("X-Lang: a, b"), true},
		{"the order counts", policy(keyed(only("X-Lang"), none, none)), at(""), at(""), header("X-Lang: a, b"), header("X-Lang: b, a"), false},
		{"but not of languages of one weight", policy(keyed(only("Accept-Language"), none, none)), at(""), at(""), header("Accept-Language: en, DE"), header("Accept-Language: de,en"), true},
		{"one header is not another with its value", policy(keyed(only("A", "B"), none, none)), at(""), at(""), header("A: 1"), header("B: 1"), false},

		{"a cookie of the policy counts", policy(keyed(none, only("s"), none)), at(""), at(""), header("Cookie: s=1; t=2"), header("Cookie: t=2; s=3"), false},
		{"other cookies do not", policy(keyed(none, only("s"), none)), at(""), at(""), header("Cookie: s=1; t=2"), header("Cookie: t=3;s=1"), true},
		{"cookies in two lines are those in one", policy(keyed(none, all, none)), at(""), at(""), header("Cookie: s=1", "Cookie: t=2"), header("Cookie: s=1; t=2"), true},
		{"a cookie is not a header with its value", policy(keyed(only("X"), only("s"), none)), at(""), at(""), header("X: s=1"), header("Cookie: s=1"), false},
	} {
		a, b := c.policy.Key(c.a, c.ha), c.policy.Key(c.b, c.hb)
		if (a == b) != c.same {
			t.Errorf("%s: %v and %v", c.name, a, b)
		}
	}
}

func TestKeysOfDifferentPoliciesDoNotMeet(t *testing.T) {
	h := header("A: 1", "B: 1")
	a := policy(keyed(only("A"), none, none)).Key(Target{Path: "/"}, h)
	b := policy(keyed(only("B"), none, none)).Key(Target{Path: "/"}, h)
	if a == b {
		t.Fatalf("%v is both", a)
	}
}

func TestAKeyReadsAsARequest(t *testing.T) {
	p := policy(keyed(only("X-Lang"), only("s"), all))
	k := p.Key(Target{Distribution: "shop", Scheme: "https", Host: "www.test", Path: "/a", Query: "x=1"}, header("X-Lang: ko", "X-Lang: en", "Cookie: s=1"))
	if got, want := k.String(), "GET shop https://www.test/a?x=1 [X-Lang: ko, en] [Cookie: s=1]"; got != want {
		t.Fatalf("got %s, want %s", got, want)
	}
}

// No two inputs have one key: the key can be read back to what was put in.
func FuzzKey(f *testing.F) {
	f.Add("shop", "https", "www.test", "/a.css", "a=1&b=2", "ko", "en", "s=1", true)
	f.Add("", "", "", "", "", "", "", "", false)
	f.Add("3:abc", "1:", ":", "0:", "5:4:3:2:1:", "2", "1:2", "\x00", true)
	f.Fuzz(func(t *testing.T, distribution, scheme, host, path, query, one, two, cookie string, both bool) {
		p := policy(keyed(only("X-One", "X-Two"), all, all))
		h := http.Header{"X-One": {one}}
		if both {
			h["X-One"] = append(h["X-One"], two)
			h["X-Two"] = []string{two}
		}
		if cookie != "" {
			h["Cookie"] = []string{cookie}
		}
		k := p.Key(Target{distribution, scheme, host, path, query}, h)
		if got, want := parts(k.URI), []string{distribution, path, query, scheme, host, "GET"}; !reflect.DeepEqual(got, want) {
			t.Fatalf("%q reads back as %q, not %q", k.URI, got, want)
		}
		var want []string
		for _, name := range []string{"X-One", "X-Two"} {
			if lines := h[name]; lines != nil {
				want = append(want, name, canonical(name, lines))
			}
		}
		if chosen := p.Cookie(h); chosen != "" {
			want = append(want, "Cookie", chosen)
		}
		if want == nil {
			want = []string{""}
		}
		if got := parts(k.Variant); !reflect.DeepEqual(got, want) {
			t.Fatalf("%q reads back as %q, not %q", k.Variant, got, want)
		}
		_ = fmt.Sprint(k, Key{URI: path, Variant: query}) // reads whatever it is given
	})
}

func TestAcceptEncodingIsNormalised(t *testing.T) {
	for in, want := range map[string]string{
		"gzip, deflate, br, zstd": "br,gzip",
		"br":                      "br",
		"GZIP;q=0.5":              "gzip",
		"gzip;q=0, br;q=0.000":    "",
		"identity, *":             "",
		"x-gzip":                  "gzip",
		"":                        "",
	} {
		if got := AcceptEncoding(header("Accept-Encoding: " + in)); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// FuzzHeader: what is kept of a header is what net/http would write, and it is found again under its names.
func FuzzHeader(f *testing.F) {
	f.Add("Content-Type", "text/css", "a\r\nb", "X")
	f.Add("a b", "x", " y\t", "")
	f.Fuzz(func(t *testing.T, name, one, two, other string) {
		h := http.Header{}
		h.Add(name, one)
		h.Add(name, two)
		h.Add(other, "v")
		kept := NewHeader(h)
		var written strings.Builder
		if err := h.Write(&written); err != nil {
			t.Fatal(err)
		}
		if string(kept) != written.String() {
			t.Errorf("%q is kept as %q, net/http writes %q", h, kept, written.String())
		}
		again := kept.HTTP()
		if NewHeader(again) != kept {
			t.Errorf("%q is %q again", kept, again)
		}
		for name, lines := range again {
			if kept.Get(strings.ToLower(name)) != lines[0] {
				t.Errorf("%q of %q is %q", name, kept, kept.Get(name))
			}
		}
		n := 0
		for range kept.All() {
			n++
		}
		if n != strings.Count(written.String(), "\r\n") {
			t.Errorf("%d lines of %q", n, kept)
		}
		if kept.without([]string{http.CanonicalHeaderKey(name)}).Get(name) != "" {
			t.Errorf("%q has %q without it", kept, name)
		}
	})
}
