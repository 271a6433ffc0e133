package trace

import "testing"

func TestReasonsNestBelowTheirQuestion(t *testing.T) {
	tr := new(Trace)
	out := tr.In("which POP for %s", "192.0.2.1")
	tr.Add("icn1: 31 ms")
	tr.Take([]Line{{0, "measured"}, {1, "by QUIC"}})
	out()
	tr.Add("answer: icn1")
	want := "which POP for 192.0.2.1\n  icn1: 31 ms\n  measured\n    by QUIC\nanswer: icn1\n"
	if got := tr.String(); got != want {
		t.Fatalf("got\n%swant\n%s", got, want)
	}
}

func TestANilTraceRecordsNothing(t *testing.T) {
	var tr *Trace
	tr.In("question")()
	tr.Add("reason")
	if tr.On() || tr.Lines() != nil || tr.String() != "" {
		t.Fatal("a nil trace recorded something")
	}
}
