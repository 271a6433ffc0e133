package node

import (
	"context"
	"os"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/cluster/event"
	"github.com/perigee-net/perigee/dnsgeo/geo"
)

// placesTime is how often it is looked whether another file stands in the place of --geo-db.
const placesTime = 10 * time.Second

// places counts what became of new files.
type places struct{ taken, refused atomic.Uint64 }

func (p *places) Counters() map[string]uint64 {
	return map[string]uint64{"places_reloads_total": p.taken.Load(), "places_refused_total": p.refused.Load()}
}

// followPlaces takes another file as it comes, until the context ends. One that cannot be read whole is refused, and the one before stays;
// it is tried again when it changes. Where there is none, as between two names, the one before stays too.
func (n *Node) followPlaces(ctx context.Context, had os.FileInfo) {
	for sleep(ctx, placesTime) {
		is, err := os.Stat(n.cfg.GeoDB)
		if err != nil || os.SameFile(had, is) && had.ModTime().Equal(is.ModTime()) && had.Size() == is.Size() {
			continue
		}
		had = is
		n.takePlaces()
	}
}

// takePlaces opens the file of places and has names answered by it.
func (n *Node) takePlaces() {
	db, err := geo.OpenWhole(n.cfg.GeoDB)
	if err == nil {
		err = n.names.SetPlaces(db)
	}
	if err != nil {
		n.places.refused.Add(1)
		n.cfg.Log.Error("the new file of places is refused, the one before stays", "error", err)
		n.events.Add(event.Places, n.cfg.GeoDB, "the new file is refused, the one before stays: "+err.Error())
		return
	}
	n.places.taken.Add(1)
	n.cfg.Log.Info("clients are where another file says", "places", db.String())
	n.events.Add(event.Places, n.cfg.GeoDB, "clients are where another file says: "+db.String())
}
