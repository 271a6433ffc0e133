package testbed

import (
	"bytes"
	"io"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/perigee-net/perigee/node"
	"github.com/perigee-net/perigee/node/api"
)

// Viewers of all kinds take nothing of what is purged meanwhile. As long as there is room for what they have still to read they get it, to the last
// byte. Where there is not, who began first loses it, and sees that he has; new viewers are served as ever.
func TestSlowViewersOfAllKindsGetAllOrSeeThatTheyDoNot(t *testing.T) {
	const size = 8 << 20 // more than any kind takes before the viewer reads
	body := make([]byte, size)
	for i := range body {
		body[i] = byte(i * 7 >> 3)
	}
	for _, c := range []struct {
		name  string
		cache int64
		ended int
	}{
		{"with room for all", 512 << 20, 0}, {"with room for half", 128 << 20, len(guestKinds) / 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			tune := func(n *node.Config) {
				openDoors(n)
				n.CacheBytes = c.cache
			}
			inFleet(t, FleetConfig{Nodes: 1, Regions: 1, Tune: tune}, func(t *testing.T, f *Fleet) {
				stop, err := f.originHost(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Cache-Control", "max-age=3600")
					w.Write(body)
				}))
				if err != nil {
					t.Fatal(err)
				}
				defer stop()
				f.applies(t, "kind: Region\nname: ap-northeast-2\n---\nkind: Distribution\nname: site\naliases: [www.site.test]\n"+
					"origins: [{name: own, url: \"http://"+originAddr.String()+"\"}]\ndefaultCacheBehavior: {targetOrigin: own, viewerProtocolPolicy: allow-all}\n")
				name := f.Names[0]
				n := f.nodes[name]
				host := f.in.Host("viewers", f.places[0].at, netip.AddrFrom4([4]byte{10, 100, 0, 1}))
				var slow []*http.Response
				for _, kind := range guestKinds {
					g, err := guestAt(host, n.cfg.Advertise, kind, "www.site.test")
					if err != nil {
						t.Fatal(err)
					}
					defer g.leave()
					path := "/" + string('a'+rune(len(slow)))
					for range 2 {
						if _, whole, err := g.get(t.Context(), path); err != nil || whole != string(body) {
							t.Fatalf("%s: %d bytes, %v", kind, len(whole), err)
						}
					}
					res, err := g.open(t.Context(), path)
					if err != nil {
						t.Fatal(err)
					}
					defer res.Body.Close()
					slow = append(slow, res)
					time.Sleep(2 * time.Second)
				}
				if now := f.counter(t, name, "cache_slow_readers"); now != uint64(len(slow)) {
					t.Errorf("%d are slow, want %d", now, len(slow))
				}
				if _, err := f.Inside(name).Purge(t.Context(), api.PurgeRequest{ID: "all", Distribution: "site", Paths: []string{"/*"}}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(20 * time.Second) // what was purged is swept
				if held := f.counter(t, name, "cache_slow_reader_bytes"); held != uint64((len(slow)-c.ended)*size) {
					t.Errorf("%d bytes are held", held)
				}
				if now := f.counter(t, name, "cache_slow_readers_ended_total"); now != uint64(c.ended) {
					t.Errorf("%d were ended, want %d", now, c.ended)
				}
				g, err := guestAt(host, n.cfg.Advertise, guestKinds[0], "www.site.test")
				if err != nil {
					t.Fatal(err)
				}
				defer g.leave()
				if _, whole, err := g.get(t.Context(), "/new"); err != nil || whole != string(body) {
					t.Errorf("a new viewer has %d bytes: %v", len(whole), err)
				}
				for i, res := range slow {
					got, err := io.ReadAll(res.Body)
					if cut := i < c.ended; cut != (err != nil) || !bytes.Equal(got, body[:len(got)]) || !cut && len(got) < size {
						t.Errorf("%s: %d bytes came: %v", guestKinds[i], len(got), err)
					}
				}
				if held := f.counter(t, name, "cache_slow_reader_bytes"); held != 0 {
					t.Errorf("with none left %d bytes are held", held)
				}
			})
		})
	}
}
