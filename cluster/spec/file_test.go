package spec

import (
	"net/netip"
	"testing"
	"time"
)

type village struct {
	Name   string   `json:"name" rule:"required,..20"`
	Houses []house  `json:"houses" rule:"..3"`
	Walk   Duration `json:"walk" rule:"1s..1h" default:"5s"`
	Kind   string   `json:"kind" rule:"hamlet|town" default:"town"`
}

type house struct {
	Door netip.Addr `json:"door"`
	Open *bool      `json:"open" default:"true"`
}

func TestAFileThatIsNoResourceIsReadAsStrictly(t *testing.T) {
	var v village
	lineOf, err := DecodeFile("v.yaml", []byte("name: a\nhouses:\n  - {door: 10.0.0.1}\n  - door: ::1\n    open: false\n"), &v)
	if err != nil {
		t.Fatal(err)
	}
	if v.Name != "a" || len(v.Houses) != 2 || v.Houses[1].Door != netip.IPv6Loopback() || *v.Houses[1].Open || !*v.Houses[0].Open ||
		v.Walk != Duration(5*time.Second) || v.Kind != "town" {
		t.Errorf("got %+v", v)
	}
	if got := lineOf("houses[1].open"); got != 5 {
		t.Errorf("houses[1].open stands on line %d, want 5", got)
	}
	for _, c := range []struct{ text, want string }{
		{"houses: 3\nwalk: 2h\n", "v.yaml:1: name: is required\nv.yaml:1: houses: must be a list\nv.yaml:2: walk: must be 1s–1h, not \"2h\""},
		{"name: a\nkind: city\nhuoses: []\n", `v.yaml:2: kind: must be hamlet or town, not "city"` + "\n" + `v.yaml:3: huoses: no such field (did you mean "houses"?)`},
		{"name: [\n", "v.yaml:1: "},
		{"", "v.yaml:1: must have fields, name: value"},
	} {
		var v village
		if _, err := DecodeFile("v.yaml", []byte(c.text), &v); err == nil || len(err.Error()) < len(c.want) || err.Error()[:len(c.want)] != c.want {
			t.Errorf("%q: got\n%v\nwant\n%s", c.text, err, c.want)
		}
	}
}
