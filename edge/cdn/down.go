package cdn

import (
	"net/http"
	"sync/atomic"
	"time"
)

const (
	// knownDown is for how long after an origin failed a stale response that may stand in for it does so at once: nobody waits
	// for it again to find out that it is down still. It is asked meanwhile, and when it answers that is over.
	knownDown = 30 * time.Second
	// probeEvery is how often it is asked meanwhile, at most: an origin that is silent would else take up all fills.
	probeEvery = time.Second
)

// down is what a behaviour knows of its origin's failures. The zero value knows of none.
type down struct {
	failed atomic.Int64 // when it last did, in nanoseconds since 1970; 0: it has answered since
	probed atomic.Int64 // when it was last asked to find out
}

// note takes down how the origin answered. A 500 is about what was asked for, and not about the origin: one URL that fails must not have all
// others of the behaviour answered with what is stale. For that one it is a failure all the same (RFC 5861 §4).
func (d *down) note(response *http.Response, err error, now time.Time) {
	switch {
	case err != nil, response.StatusCode >= 502 && response.StatusCode <= 504:
		d.failed.Store(now.UnixNano())
	default:
		d.answered()
	}
}

// answered notes that it has answered.
func (d *down) answered() {
	if d.failed.Load() != 0 {
		d.failed.Store(0)
	}
}

// is says whether the origin failed so short a time ago that it counts as down.
func (d *down) is(now time.Time) bool {
	failed := d.failed.Load()
	return failed != 0 && now.UnixNano()-failed < int64(knownDown)
}

// probe says whether it is time to ask it again; to one asker only.
func (d *down) probe(now time.Time) bool {
	last := d.probed.Load()
	return now.UnixNano()-last >= int64(probeEvery) && d.probed.CompareAndSwap(last, now.UnixNano())
}
