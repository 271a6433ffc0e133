//go:build linux && !386 && !arm

package bench

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"sync"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"
)

// writePlaces writes the file of places in MaxMind's City format, which all servers of the row read that can.
func writePlaces(file string) error {
	text, err := placesFile()
	if err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o666)
}

// placesFile is the same for each run of a process: to make it takes most of a second.
var placesFile = sync.OnceValues(func() ([]byte, error) {
	tree, err := mmdbwriter.New(mmdbwriter.Options{DatabaseType: "GeoLite2-City", RecordSize: 28, IncludeReservedNetworks: true, BuildEpoch: fileTime.Unix(),
		Description: map[string]string{"en": "places that are made up"}, Languages: []string{"en"}})
	if err != nil {
		return nil, err
	}
	for n := range places {
		prefix, in, country := place(n)
		r := regions[in]
		_, network, err := net.ParseCIDR(prefix.String())
		if err != nil {
			return nil, err
		}
		if err := tree.Insert(network, mmdbtype.Map{
			"continent": mmdbtype.Map{"code": mmdbtype.String(r.continent), "names": mmdbtype.Map{"en": mmdbtype.String(r.continent)}},
			"country":   mmdbtype.Map{"iso_code": mmdbtype.String(r.countries[country]), "names": mmdbtype.Map{"en": mmdbtype.String(r.countries[country])}},
			// Some hundred kilometres around the region, so that distances differ.
			"location": mmdbtype.Map{"latitude": mmdbtype.Float64(r.latitude + float64(n%7) - 3), "longitude": mmdbtype.Float64(r.longitude + float64(n%5) - 2)},
		}); err != nil {
			return nil, fmt.Errorf("insert %v: %w", prefix, err)
		}
	}
	var text bytes.Buffer
	_, err = tree.WriteTo(&text)
	return text.Bytes(), err
})
