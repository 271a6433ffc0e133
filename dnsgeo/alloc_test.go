//go:build unix && !race

package dnsgeo

import (
	"net/netip"
	"testing"

	"github.com/miekg/dns"
)

// Memory that a query takes is what the collector makes all other queries wait for. (The race detector takes some itself.)
func TestAnAnswerTakesNoMemory(t *testing.T) {
	s := serverOf(t, site+hot)
	d := s.newDesk()
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
