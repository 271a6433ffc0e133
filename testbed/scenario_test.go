package testbed

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestAScenarioIsReadAsWritten(t *testing.T) {
	s, err := ParseScenario("a.txt", `
# a comment
get seoul http://www.test/  => 200 Miss "from icn1" # another
within 10s dig seoul www.test A => fra1 !icn1
kill icn1
`)
	if err != nil {
		t.Fatal(err)
	}
	var got string
	for _, step := range s.Steps {
		got += fmt.Sprintf("%q %q %q\n", step.Verb, step.Args, step.Want)
	}
	for _, want := range []string{`"get" ["seoul" "http://www.test/"] ["200" "Miss" "from icn1"]`, `"dig" ["seoul" "www.test" "A"] ["fra1" "!icn1"]`, `"kill" ["icn1"] []`} {
		if !strings.Contains(got, want) {
			t.Errorf("%s\nlacks %s", got, want)
		}
	}
	if s.Steps[1].Within != 10*time.Second || s.Steps[1].Line != 4 {
		t.Errorf("within %v at line %d, want 10s at 4", s.Steps[1].Within, s.Steps[1].Line)
	}
}

func TestFaultsOfAScenarioAreNamedByLine(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"get a =>", "x:1: nothing is wanted after =>"},
		{"\n=> 200", "x:2: a step begins with a verb"},
		{"within 10s kill a", "x:1: within wants a duration, a step, and what must come true after =>"},
		{"within soon get a => 200", "x:1: within soon: not a duration above zero"},
		{`get "a => 200`, "x:1: a quote is not closed"},
		{"for 10s kill a", "x:1: for wants a duration, a step, and what must come true after =>"},
		{"for -1s get a => 200", "x:1: for -1s: not a duration above zero"},
		{"begin a", "x:1: begin wants a name and a step"},
		{"within 1s end a => 200", "x:1: end wants the name of a step that was begun, and nothing before it"},
	} {
		if _, err := ParseScenario("x", c.text); err == nil || err.Error() != c.want {
			t.Errorf("%q: got %v, want %s", c.text, err, c.want)
		}
	}
}

// ticking is a ground whose one verb says how many seconds have passed.
type ticking struct{ began time.Time }

func (g ticking) Do(_ context.Context, verb string, _ []string) (string, error) {
	if verb != "tick" {
		return "", fmt.Errorf("no verb %q", verb)
	}
	return fmt.Sprintf("%ds", int(time.Since(g.began).Seconds())), nil
}

func (g ticking) Sleep(d time.Duration) { time.Sleep(d) }

func TestWithinWaitsUntilAStepComesTrueAndNoLonger(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"tick => 0s\nafter 2s\ntick => 2s", ""},
		{"within 5s tick => 4s", ""},
		{"within 3s tick => 4s", `x:1: within 3s tick => 4s
	got: 3s
	but "4s" is not there`},
		{"tick => !0s", `x:1: tick => !0s
	got: 0s
	but "0s" must not be there`},
		{"tock => 1", `x:1: tock => 1
	no verb "tock"`},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, err := ParseScenario("x", c.text)
			if err != nil {
				t.Fatal(err)
			}
			err = s.Run(t.Context(), ticking{time.Now()}, nil)
			if got := fmt.Sprint(err); (err == nil) != (c.want == "") || err != nil && got != c.want {
				t.Errorf("%q: got\n%v\nwant\n%s", c.text, err, c.want)
			}
		})
	}
}

func TestWatchCountsHowOftenAStepComesTrueAndSaysTheLongestGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := ParseScenario("x", "begin a watch 9s tick => !3s !4s !7s\nafter 1s\nend a => longest=2s")
		if err != nil {
			t.Fatal(err)
		}
		var last Outcome
		if err := s.Run(t.Context(), ticking{time.Now()}, func(o Outcome) { last = o }); err != nil {
			t.Fatal(err)
		}
		if last.Result != "true=61/91 longest=2s" || len(last.Tries) != 91 || last.Step.Begun == nil || last.Step.Begun.Line != 1 {
			t.Errorf("got %q after %d tries, of %+v", last.Result, len(last.Tries), last.Step.Begun)
		}
	})
}

func TestForHoldsAStepToItAllTheTimeAndBeginLetsOthersGoOnMeanwhile(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"for 3s tick => !4s\ntick => 3s", ""},
		{"for 5s tick => !2s", `x:1: for 5s tick => !2s
	got: 2s
	but "2s" must not be there, at time 21, after 2s`},
		{"begin a for 5s tick => s\nafter 2s\ntick => 2s\nend a => 5s\ntick => 5s", ""},
		{"begin a for 5s tick => !2s\nafter 9s\nend a", `x:3: end a
	of line 1: got: 2s
	but "2s" must not be there, at time 21, after 2s`},
		{"begin a for 5s tick => s\nend a => 4s", `x:2: end a => 4s
	got: 5s
	but "4s" is not there`},
		{"begin a tick\nbegin a tick", `x:2: begin a tick
	"a" has not ended`},
		{"end a", `x:1: end a
	nothing was begun as "a"`},
		{"begin a for 99h tick => s\ntock", `x:2: tock
	no verb "tock"`},
		{"begin a for 99h tick => s", `x: "a" was begun and never ended`},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, err := ParseScenario("x", c.text)
			if err != nil {
				t.Fatal(err)
			}
			err = s.Run(t.Context(), ticking{time.Now()}, nil)
			if got := fmt.Sprint(err); (err == nil) != (c.want == "") || err != nil && got != c.want {
				t.Errorf("%q: got\n%v\nwant\n%s", c.text, err, c.want)
			}
		})
	}
}
