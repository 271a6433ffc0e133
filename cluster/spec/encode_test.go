package spec

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestResourcesAsYAMLAreReadBackTheSame(t *testing.T) {
	s := mustBuild(t, valid(t))
	var text strings.Builder
	for r := range s.Each("") {
		if isManaged(r.Ref) || r.Kind == "Certificate" { // a key is never written
			continue
		}
		data, err := r.YAML()
		if err != nil {
			t.Fatal(err)
		}
		text.WriteString("---\n" + string(data))
	}
	back := mustBuild(t, text.String())
	for r := range s.Each("") {
		if r.Kind == "Certificate" {
			continue
		}
		got, _ := back.Resource(r.Kind, r.Name)
		if d := cmp.Diff(Flow(r.Value), Flow(got.Value)); d != "" || got.Value == nil {
			t.Errorf("%s: -want +got\n%s", r, d)
		}
	}
}

func TestAnyTextIsReadBackFromYAML(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(rapid.String(), rapid.StringMatching(`[ -~]{0,20}`), rapid.SampledFrom([]string{"no", "1e3", "0x1", "~", "- a", "a: b", "#", "''", `"`, "=", "<<"})).Draw(t, "text")
		root, u := read([]byte("a: ["+spelled(text)+"]\n"), 1)
		if u != nil {
			t.Fatalf("%q is %s: %s", text, spelled(text), u.problem)
		}
		if got := root.field("a").items[0]; got.text != text || !got.isText() {
			t.Fatalf("%q is %s, and comes back as %q (text: %v)", text, spelled(text), got.text, got.isText())
		}
	})
}
