package cache

import (
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"
)

func given(d time.Duration) Delta { return Delta{Given: true, Value: d} }

func TestCacheControlIsReadAsTheRFCSays(t *testing.T) {
	const s = time.Second
	for _, c := range []struct {
		lines []string
		want  Control
	}{
		{nil, Control{}},
		{[]string{"max-age=60"}, Control{MaxAge: given(60 * s)}},
		{[]string{"MAX-AGE=60, Public"}, Control{MaxAge: given(60 * s), Public: true}},
		{[]string{`max-age="60"`}, Control{MaxAge: given(60 * s)}},
		{[]string{`max-age="6\0"`}, Control{MaxAge: given(60 * s)}},
		{[]string{"max-age = 60 , no-store"}, Control{MaxAge: given(60 * s), NoStore: true}},
		{[]string{"max-age=60, max-age=10"}, Control{MaxAge: given(60 * s)}},
		{[]string{"max-age=60", "max-age=10, no-cache"}, Control{MaxAge: given(60 * s), NoCache: true}},
		{[]string{"max-age=ten"}, Control{MaxAge: given(0)}},
		{[]string{"max-age"}, Control{MaxAge: given(0)}},
		{[]string{"max-age=-1"}, Control{MaxAge: given(0)}},
		{[]string{"max-age=1.5"}, Control{MaxAge: given(0)}},
		{[]string{"max-age=99999999999999999999"}, Control{MaxAge: given(1 << 31 * s)}},
		{[]string{"s-maxage=5, proxy-revalidate, must-revalidate"}, Control{SMaxAge: given(5 * s), ProxyRevalidate: true, MustRevalidate: true}},
		{[]string{"stale-while-revalidate=1, stale-if-error=2"}, Control{StaleWhileRevalidate: given(s), StaleIfError: given(2 * s)}},
		{[]string{`private="Set-Cookie, X-A", max-age=1`}, Control{own: []string{"Set-Cookie", "X-A"}, MaxAge: given(s)}},
		{[]string{`no-cache="a, no-store, b"`, `private="A"`}, Control{own: []string{"A", "No-Store", "B"}}},
		{[]string{"no-cache=a"}, Control{own: []string{"A"}}},
		{[]string{`private="a"`, "private"}, Control{Private: true, own: []string{"A"}}},
		{[]string{`private=""`, `no-cache=", ,"`}, Control{Private: true, NoCache: true}},
		{[]string{`private="a b"`}, Control{Private: true}},
		{[]string{`private="a, Content-Type"`, `no-cache=Vary`}, Control{Private: true, NoCache: true}},
		{[]string{`private="` + strings.Repeat("a", 17) + `"`}, Control{own: []string{"A" + strings.Repeat("a", 16)}}},
		{[]string{`private="1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17"`}, Control{Private: true}},
		{[]string{`private="a, no-store`}, Control{Private: true, NoStore: true}},
		{[]string{`ext="max-age=1", ,, foo;bar, no-store`}, Control{NoStore: true}},
		{[]string{"must-understand, no-store, max-age=1"}, Control{MustUnderstand: true, MaxAge: given(s)}},
		{[]string{"max-age=1, immutable"}, Control{Immutable: true, MaxAge: given(s)}},
		{[]string{"no-storex, xmax-age=1"}, Control{}},
	} {
		if got := ParseControl(http.Header{"Cache-Control": c.lines}); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%q: got %+v, want %+v", c.lines, got, c.want)
		}
	}
}

func TestWhatIsSaidToCDNsComesFirst(t *testing.T) {
	const s = time.Second
	plain := Control{NoStore: true, MaxAge: given(9 * s)} // what Cache-Control says here
	for _, c := range []struct {
		lines []string
		want  Control
	}{
		{nil, plain},
		{[]string{"max-age=60"}, Control{Targeted: true, MaxAge: given(60 * s)}},
		{[]string{"max-age=60;because=1, must-revalidate"}, Control{Targeted: true, MaxAge: given(60 * s), MustRevalidate: true}},
		{[]string{"max-age=60", "s-maxage=5, foobar=(1 2)"}, Control{Targeted: true, MaxAge: given(60 * s), SMaxAge: given(5 * s)}},
		{[]string{"max-age=60, max-age=7"}, Control{Targeted: true, MaxAge: given(7 * s)}}, // of a dictionary the last counts
		{[]string{"max-age=99999999999"}, Control{Targeted: true, MaxAge: given(1 << 31 * s)}},
		{[]string{"max-age=-1"}, Control{Targeted: true, MaxAge: given(0)}},
		{[]string{"private, no-cache, no-store, public, immutable, proxy-revalidate"},
			Control{Targeted: true, Private: true, NoCache: true, NoStore: true, Public: true, Immutable: true, ProxyRevalidate: true}},
		{[]string{`private="X-A, x-b"`}, Control{Targeted: true, own: []string{"X-A", "X-B"}}},
		{[]string{"must-understand, no-store, stale-while-revalidate=1, stale-if-error=2"},
			Control{Targeted: true, MustUnderstand: true, StaleWhileRevalidate: given(s), StaleIfError: given(2 * s)}},

		{[]string{""}, plain},
		{[]string{"max-age=60, &&&"}, plain},
		{[]string{"max-age =60"}, plain},
		{[]string{"Max-Age=60"}, plain}, // keys are in lower case
		{[]string{`max-age="60"`}, plain},
		{[]string{"max-age=60.5"}, plain},
		{[]string{"max-age"}, plain},
		{[]string{"max-age=(60)"}, plain},
		{[]string{"max-age=1000000000000000"}, plain}, // no Integer has sixteen digits
		{[]string{"no-store=1, max-age=60"}, plain},
		{[]string{"no-store=?0, max-age=60"}, plain},
		{[]string{"private=1, max-age=60"}, plain},
		{[]string{"private=?0, max-age=60"}, plain},
	} {
		h := http.Header{"Cache-Control": {"no-store, max-age=9"}}
		if c.lines != nil {
			h["Cdn-Cache-Control"] = c.lines
		}
		if got := ParseControl(h); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%q: got %+v, want %+v", c.lines, got, c.want)
		}
	}
}

func TestFieldsOfOneRequestAreTakenOffTheRest(t *testing.T) {
	h := header(`Cache-Control: private="Set-Cookie, X-A", no-cache=x-b`, "Set-Cookie: s=1", "Set-Cookie: t=2", "X-B: 2", "X-C: 3")
	own := ParseControl(h).separate(h)
	if want := header("Set-Cookie: s=1", "Set-Cookie: t=2", "X-B: 2"); !reflect.DeepEqual(own, want) {
		t.Errorf("its own are %v, want %v", own, want)
	}
	if want := header(`Cache-Control: private="Set-Cookie, X-A", no-cache=x-b`, "X-C: 3"); !reflect.DeepEqual(h, want) {
		t.Errorf("left is %v, want %v", h, want)
	}
	if own := (Control{}).separate(h); own != nil {
		t.Errorf("of nothing named: %v", own)
	}
}

func FuzzTargetedCacheControl(f *testing.F) {
	for _, line := range []string{"max-age=60", `private="a, b", s-maxage=1`, "max-age=?1", "a=(1 2);b, no-store", "max-age=-99999", "&&&", ""} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		cc := ParseControl(http.Header{"Cdn-Cache-Control": {line}, "Cache-Control": {"private, no-store"}})
		if !cc.Targeted && (!cc.Private || !cc.NoStore) {
			t.Fatalf("%q is not followed, and hides Cache-Control: %+v", line, cc)
		}
		for _, d := range []Delta{cc.MaxAge, cc.SMaxAge, cc.StaleWhileRevalidate, cc.StaleIfError} {
			if d.Value < 0 || d.Value > 1<<31*time.Second || !d.Given && d.Value != 0 {
				t.Fatalf("%q: %+v", line, cc)
			}
		}
	})
}

func FuzzCacheControl(f *testing.F) {
	for _, line := range []string{
		"max-age=60", `private="a, b", s-maxage="1\0"`, "no-store,,=,\"", `a="`, `="x"=`, "max-age=99999999999999999999999", "must-understand, no-store",
	} {
		f.Add(line, "no-cache")
	}
	f.Fuzz(func(t *testing.T, one, two string) {
		h := http.Header{"Cache-Control": {one, two}}
		cc := ParseControl(h)
		for _, d := range []Delta{cc.MaxAge, cc.SMaxAge, cc.StaleWhileRevalidate, cc.StaleIfError} {
			if d.Value < 0 || d.Value > 1<<31*time.Second || !d.Given && d.Value != 0 {
				t.Fatalf("%q: %+v", h, d)
			}
		}
		// What is said in plain words is heard, whatever stands in the other line.
		h["Cache-Control"] = []string{one, "no-cache, private, must-revalidate", two}
		if cc := ParseControl(h); !cc.NoCache || !cc.Private || !cc.MustRevalidate {
			t.Fatalf("%q: %+v", h, cc)
		}
		// A directive after a line without quotes is heard also in that line.
		if !strings.ContainsAny(one, `"`) {
			h["Cache-Control"] = []string{one + ", private"}
			if !ParseControl(h).Private {
				t.Fatalf("%q hides what follows", h)
			}
		}
	})
}
