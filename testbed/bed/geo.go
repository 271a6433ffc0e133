//go:build !386 && !arm

package bed

import (
	"bytes"
	"fmt"
	"net"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"

	"github.com/perigee-net/perigee/testbed/wan"
)

// places is a file in MaxMind's format, of cities, that knows where the world's addresses are and nothing else.
func places(rows []wan.GeoRow) ([]byte, error) {
	tree, err := mmdbwriter.New(mmdbwriter.Options{
		DatabaseType: "Perigee-Testbed-City", Description: map[string]string{"en": "the places of a testbed"},
		RecordSize: 24, IncludeReservedNetworks: true, DisableIPv4Aliasing: true,
	})
	if err != nil {
		return nil, fmt.Errorf("make the file of places: %w", err)
	}
	for _, r := range rows {
		_, network, err := net.ParseCIDR(r.Prefix.String())
		if err != nil {
			return nil, fmt.Errorf("make the file of places: %w", err)
		}
		record := mmdbtype.Map{"location": mmdbtype.Map{
			"latitude": mmdbtype.Float64(r.At.Latitude), "longitude": mmdbtype.Float64(r.At.Longitude),
		}}
		if r.Country != "" {
			record["country"] = mmdbtype.Map{"iso_code": mmdbtype.String(r.Country)}
		}
		if r.Continent != "" {
			record["continent"] = mmdbtype.Map{"code": mmdbtype.String(r.Continent)}
		}
		if r.Subdivision != "" {
			record["subdivisions"] = mmdbtype.Slice{mmdbtype.Map{"iso_code": mmdbtype.String(r.Subdivision)}}
		}
		if err := tree.Insert(network, record); err != nil {
			return nil, fmt.Errorf("make the file of places: %s: %w", r.Prefix, err)
		}
	}
	var out bytes.Buffer
	if _, err := tree.WriteTo(&out); err != nil {
		return nil, fmt.Errorf("make the file of places: %w", err)
	}
	return out.Bytes(), nil
}
