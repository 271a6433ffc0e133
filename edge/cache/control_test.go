package cache

import (
	"net/http"
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
		{[]string{`private="Set-Cookie, X-A", max-age=1`}, Control{Private: true, MaxAge: given(s)}},
		{[]string{`no-cache="a, no-store, b"`}, Control{NoCache: true}},
		{[]string{`private="a, no-store`}, Control{Private: true, NoStore: true}},
		{[]string{`ext="max-age=1", ,, foo;bar, no-store`}, Control{NoStore: true}},
		{[]string{"must-understand, no-store, max-age=1"}, Control{MaxAge: given(s)}},
		{[]string{"no-storex, xmax-age=1"}, Control{}},
	} {
		if got := ParseControl(http.Header{"Cache-Control": c.lines}); got != c.want {
			t.Errorf("%q: got %+v, want %+v", c.lines, got, c.want)
		}
	}
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
