//go:build unix && !race

package dnsgeo

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/view"
)

// Memory that a query takes is what the collector makes all other queries wait for. (The race detector takes some itself.)
func TestAnAnswerTakesNoMemory(t *testing.T) {
	s := serverOf(t, site+hot)
	takesNoMemory(t, s)
	seen := seenView(nil, toldRow{"icn1", "10.1.2.0/24", 40, 9}, toldRow{"nrt1", "10.2.3.0/24", 40, 9})
	s.config.View = func() *view.View { return seen }
	takesNoMemory(t, s)
}

func TestAnAnswerThatIsWrittenDownTakesNoMemory(t *testing.T) {
	for _, json := range []bool{false, true} {
		s, wrote := logged(t, json, site+hot, nil)
		takesNoMemory(t, s)
		if lines := strings.Count(wrote(), "\n"); lines < 200*(len(hotQueries)-1) {
			t.Errorf("%d lines were written", lines)
		}
	}
}

func takesNoMemory(t *testing.T, s *Server) {
	t.Helper()
	d := s.newDesk()
	d.asker.recents = new(recents)
	room := make([]byte, 0, payloadSize)
	for _, q := range hotQueries {
		m := question0(t, q.name, q.typ, q.subnet)
		client := netip.MustParseAddr("10.9.0.53")
		var response []byte
		took := testing.AllocsPerRun(200, func() { response = d.respond(room, m, client, UDP) })
		var got dns.Msg
		if err := got.Unpack(response); err != nil {
			t.Fatal(err)
		}
		if took != 0 || got.Rcode != q.rcode {
			t.Errorf("%s: %v allocations, %s", q.kind, took, dns.RcodeToString[got.Rcode])
		}
	}
}

func TestAnAnswerByNetworkOrBiasTakesNoMemory(t *testing.T) {
	v := failing(nil)
	s := New(Config{View: func() *view.View { return v }, Geo: places(t)})
	if err := s.Apply(routed(t, `
		name: cidr, setIdentifier: a, cidrRoutingConfig: {collection: offices, locationName: korea}, values: [192.0.2.1], healthCheck: c1
		name: cidr, setIdentifier: b, cidrRoutingConfig: {collection: offices, locationName: "*"}, values: [192.0.2.3]
		name: near, setIdentifier: a, geoProximityLocation: {region: ap-northeast-2}, values: [192.0.2.1]
		name: near, setIdentifier: b, geoProximityLocation: {region: us-east-1, bias: -99}, values: [192.0.2.3]`, offices)); err != nil {
		t.Fatal(err)
	}
	d := s.newDesk()
	d.asker.recents = new(recents)
	room := make([]byte, 0, payloadSize)
	for _, name := range []string{"cidr.example.com.", "near.example.com."} {
		m := question0(t, name, dns.TypeA, "10.1.2.0/24")
		var response []byte
		took := testing.AllocsPerRun(200, func() { response = d.respond(room, m, netip.MustParseAddr("10.9.0.53"), UDP) })
		var got dns.Msg
		if err := got.Unpack(response); err != nil {
			t.Fatal(err)
		}
		if took != 0 || len(got.Answer) != 1 {
			t.Errorf("%s: %v allocations, %v", name, took, got.Answer)
		}
	}
}
