package spec

import (
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// A second opinion on patterns: the standard library's regular expressions.
func TestPatternsMatchAsTheirRegularExpressionsDo(t *testing.T) {
	letters := rapid.StringOfN(rapid.SampledFrom([]rune("ab/")), 0, 12, -1)
	patterns := rapid.StringOfN(rapid.SampledFrom([]rune("ab/*?")), 0, 8, -1)
	rapid.Check(t, func(t *rapid.T) {
		pattern, s := patterns.Draw(t, "pattern"), letters.Draw(t, "s")
		expr := strings.NewReplacer(`\*`, ".*", `\?`, ".").Replace(regexp.QuoteMeta(pattern))
		if want := regexp.MustCompile("^" + expr + "$").MatchString(s); Glob(pattern, s) != want {
			t.Fatalf("%q matches %q: got %v, want %v", pattern, s, !want, want)
		}
	})
}
