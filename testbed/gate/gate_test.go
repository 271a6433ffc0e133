package gate

import (
	"runtime"
	"strings"
	"testing"
)

// recorder is a test that says how it was ended.
type recorder struct {
	testing.TB
	how string
}

func (r *recorder) Helper() {}

func (r *recorder) Skip(args ...any) { r.end("skipped: ", args) }

func (r *recorder) Fatal(args ...any) { r.end("failed: ", args) }

func (r *recorder) end(how string, args []any) {
	r.how = how + args[0].(string)
	runtime.Goexit()
}

func TestATestIsSkippedOrFailsAsIsAskedFor(t *testing.T) {
	programs := func(t testing.TB) { Programs(t, map[string]string{"go-or-else": "golang"}) }
	for _, c := range []struct {
		value string
		gate  func(testing.TB)
		how   string
	}{
		{"", Wanted, "skipped: make lab runs it"},
		{"1", Wanted, ""},
		{"required", Wanted, ""},
		{"1", programs, "skipped: needs go-or-else: apt-get install"},
		{"required", programs, "failed: needs go-or-else: apt-get install"},
		{"required", func(t testing.TB) { Programs(t, map[string]string{"sh": "dash"}) }, ""},
	} {
		t.Setenv(variable, c.value)
		r := &recorder{}
		over := make(chan struct{})
		go func() {
			defer close(over)
			c.gate(r)
		}()
		<-over
		if !strings.HasPrefix(r.how, c.how) || c.how == "" && r.how != "" {
			t.Errorf("with %q: %q, want %q", c.value, r.how, c.how)
		}
	}
}
