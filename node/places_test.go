package node

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"

	"github.com/perigee-net/perigee/cluster/event"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/dnsgeo"
)

// placesFile is a database in which all of 10.0.0.0/8 is in a country.
func placesFile(t *testing.T, country string) []byte {
	w, err := mmdbwriter.New(mmdbwriter.Options{DatabaseType: "Test-City", IncludeReservedNetworks: true, RecordSize: 24})
	if err != nil {
		t.Fatal(err)
	}
	record := mmdbtype.Map{"country": mmdbtype.Map{"iso_code": mmdbtype.String(country)}}
	if err := w.Insert(&net.IPNet{IP: net.IPv4(10, 0, 0, 0), Mask: net.CIDRMask(8, 32)}, record); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if _, err := w.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return []byte(b.String())
}

func TestAnotherFileOfPlacesIsTakenAndABrokenOneIsNot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "places.mmdb")
	whole := placesFile(t, "JP")
	s, err := spec.Build(1, mustSplit(t, `
kind: HostedZone
name: example.com
records:
  - {name: x, type: TXT, setIdentifier: a, geoLocation: {country: JP}, values: ['"JP"']}
  - {name: x, type: TXT, setIdentifier: b, geoLocation: {country: KR}, values: ['"KR"']}
`), spec.Options{})
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		put := func(b []byte) { // as rename(2) has it, and at another time
			if err := os.WriteFile(path+".new", b, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(path+".new", path); err != nil {
				t.Fatal(err)
			}
		}
		put(placesFile(t, "KR"))
		n := &Node{cfg: Config{GeoDB: path, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}, events: event.New("n", 0), names: dnsgeo.New(dnsgeo.Config{})}
		if err := n.names.Apply(s); err != nil {
			t.Fatal(err)
		}
		is := func(want string, taken, refused uint64) {
			t.Helper()
			time.Sleep(placesTime + time.Second)
			e, err := n.names.Explain("x.example.com", "TXT", netip.MustParseAddr("10.1.2.3"), netip.Prefix{})
			if c := n.places.Counters(); err != nil || !strings.Contains(e.String(), want) || c["places_reloads_total"] != taken || c["places_refused_total"] != refused {
				t.Errorf("got %s, %v, counted %v, want %s", e, err, c, want)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		n.takePlaces()
		had, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		go n.followPlaces(ctx, had)
		is(`"KR"`, 1, 0)
		put(whole)
		is(`"JP"`, 2, 0)
		put(whole[:len(whole)/2])
		is(`"JP"`, 2, 1)
		broken := append([]byte(nil), whole...)
		for i := range 40 {
			broken[i] = 0xff // the tree leads nowhere
		}
		put(broken)
		is(`"JP"`, 2, 2)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		is(`"JP"`, 2, 2)
		put(placesFile(t, "KR"))
		is(`"KR"`, 3, 2)
		if last := n.events.Last(path, 1); len(last) != 1 || last[0].Kind != event.Places {
			t.Errorf("told %v", last)
		}
		cancel()
		synctest.Wait()
	})
}
