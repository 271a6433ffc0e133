package spec

import (
	"fmt"
	"strings"
	"testing"
)

func TestTheBoundsOfRoutingAreRoute53s(t *testing.T) {
	collection := func(blocks int) string {
		var b strings.Builder
		b.WriteString("kind: CidrCollection\nname: c\nlocations:\n")
		for i := range blocks {
			switch i % 500 {
			case 0:
				fmt.Fprintf(&b, "- {locationName: l%d, cidrList: [10.%d.%d.0/24", i/500, i/256, i%256)
			default:
				fmt.Fprintf(&b, ", 10.%d.%d.0/24", i/256, i%256)
			}
			if i%500 == 499 || i == blocks-1 {
				b.WriteString("]}\n")
			}
		}
		return b.String()
	}
	zone := func(sets int, policy string) string {
		var b strings.Builder
		b.WriteString("kind: HostedZone\nname: a.example\nrecords:\n")
		for i := range sets {
			fmt.Fprintf(&b, "- {name: a, type: A, values: [192.0.2.1], setIdentifier: s%d, "+policy+"}\n", i, i)
		}
		return b.String()
	}
	for _, test := range []struct{ name, text, want string }{
		{"1,000 blocks", collection(1000), ""},
		{"1,001 blocks", collection(1001), "x.yaml:6: CidrCollection c: locations[2].cidrList[0]: is block 1001 of the collection: at most 1000"},
		{"30 by geoproximity", zone(30, "geoProximityLocation: {coordinates: {latitude: 1, longitude: %d}}"), ""},
		{"31 by geoproximity", zone(31, "geoProximityLocation: {coordinates: {latitude: 1, longitude: %d}}"),
			"x.yaml:34: HostedZone a.example: records[30]: a.a.example. A has 31 record sets by geoproximity: at most 30"},
		{"100 by weight", zone(100, "weight: %d"), ""},
		{"101 by weight", zone(101, "weight: %d"), "x.yaml:104: HostedZone a.example: records[100]: a.a.example. A has 101 record sets: at most 100"},
	} {
		got := ""
		if _, err := build("x.yaml", test.text); err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}
