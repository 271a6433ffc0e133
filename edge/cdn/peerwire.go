package cdn

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/perigee-net/perigee/cluster/rendezvous"
	"github.com/perigee-net/perigee/edge/cache"
)

// Peers speak HTTP/1.1 over the backbone. A request is the GET that a fill would send to the origin, with the path and Host
// that the viewer wrote and all that Forward made of its header: the owner sends that on as it is, so the origin hears of
// the viewer what it would have heard without peers. Besides, askField has what the owner cannot know, and validators and ranges go in
// fields of their own, since those of the request are the viewer's. POST forgets.
//
// A response is what the owner would answer a viewer, with the terms on which it hands it on in answerField; or that says
// why there is none. Before it come 102, by which the owner says that it is at it, and interim responses of the origin, of which answerField says
// that they are such: these are for the viewer.
const (
	askField      = "Perigee-Ask"
	answerField   = "Perigee-Answer"
	interimAnswer = "interim"
	ifPrefix      = "Perigee-" // before those that are conditional
)

// asking is what askField says.
type asking struct {
	Epoch   uint64 // up to which the asker has made all purges: nothing older may be handed to it
	TLS     bool   // the viewer came by https
	URI     uint64 // sum of the key's URI: who makes another of the request goes by another spec
	Variant string // of the key: from the viewer's header, of which the owner gets what the origin gets
}

func (a asking) String() string {
	scheme := "http"
	if a.TLS {
		scheme = "https"
	}
	return fmt.Sprintf("%d %s %x =%s", a.Epoch, scheme, a.URI, base64.RawURLEncoding.EncodeToString([]byte(a.Variant)))
}

var (
	errAsking    = errors.New("the request of a peer is malformed")
	errAnswering = errors.New("the answer of a peer is malformed")
)

func parseAsking(text string) (asking, error) {
	parts := strings.Split(text, " ")
	if len(parts) != 4 || parts[1] != "http" && parts[1] != "https" || !strings.HasPrefix(parts[3], "=") {
		return asking{}, errAsking
	}
	epoch, epochErr := strconv.ParseUint(parts[0], 10, 64)
	sum, sumErr := strconv.ParseUint(parts[2], 16, 64)
	variant, variantErr := base64.RawURLEncoding.Strict().DecodeString(parts[3][1:])
	if err := errors.Join(epochErr, sumErr, variantErr); err != nil {
		return asking{}, errAsking
	}
	return asking{epoch, parts[1] == "https", sum, string(variant)}, nil
}

func sumOf(uri string) uint64 { return rendezvous.Score("", uri) }

// refusal is why a peer hands nothing on. The origin is asked then, but for refusedSilent.
type refusal string

const (
	refusedEpoch     refusal = "epoch"     // it has made fewer purges than the asker
	refusedSpec      refusal = "spec"      // it does not serve that, or by another key
	refusedApart     refusal = "apart"     // the responses are not to be shared: each node asks on its own
	refusedBusy      refusal = "busy"      // it has too many fills, or askers
	refusedUnreached refusal = "unreached" // it cannot reach the origin: the asker perhaps can
	refusedStale     refusal = "stale"     // it was purged here longer ago than there: only whoever asks knows
	refusedSilent    refusal = "silent"    // the origin was asked, and does not answer in time: that is the viewer's 504
)

func (r refusal) Error() string { return "the peer refused: " + string(r) }

// Timeout is as net.Error has it.
func (r refusal) Timeout() bool { return r == refusedSilent }

// answering is what answerField says.
type answering struct {
	Kept, Shared bool
	Fresh        time.Duration // for how long yet; below zero: stale for so long
	Before       time.Duration // how long before it was asked here the origin was asked
	Soft         bool          // it was purged softly
}

// handed is the answer that hands on an object to who asked for it at a time.
func handed(o *cache.Object, shared bool, asked, now time.Time) answering {
	return answering{Kept: true, Shared: shared, Fresh: o.FreshFor(now), Before: min(max(asked.Sub(o.Asked()), 0), maxFresh), Soft: o.Soft()}
}

// terms are those of the answer, to what was asked then by the asker's clock: however long that took, the origin was not asked sooner.
func (a answering) terms(asked time.Time) cache.Terms {
	return cache.Terms{Kept: a.Kept, Shared: a.Shared, Fresh: a.Fresh, Soft: a.Soft, Asked: asked.Add(-a.Before)}
}

// String writes the durations in ms, and none better than it is.
func (a answering) String() string {
	if !a.Kept {
		return "alone"
	}
	word, soft := "kept", ""
	if a.Shared {
		word = "shared"
	}
	if a.Soft {
		soft = " soft"
	}
	return fmt.Sprintf("%s %d %d%s", word, floorMillis(a.Fresh), -floorMillis(-a.Before), soft)
}

func floorMillis(d time.Duration) int64 {
	ms := d.Milliseconds()
	if d < 0 && d%time.Millisecond != 0 {
		ms--
	}
	return ms
}

// maxFresh bounds what a peer says of a lifetime and an age: the longest that a policy allows, 100 years.
const maxFresh = 100 * 365 * 24 * time.Hour

// parseAnswering reads answerField: terms, or a refusal as its error.
func parseAnswering(text string) (a answering, err error) {
	word, rest, _ := strings.Cut(text, " ")
	switch word {
	case "alone":
		if rest == "" {
			return answering{}, nil
		}
	case "refused":
		switch r := refusal(rest); r {
		case refusedEpoch, refusedSpec, refusedApart, refusedBusy, refusedUnreached, refusedSilent:
			return answering{}, r
		}
	case "kept", "shared":
		rest, soft := strings.CutSuffix(rest, " soft")
		fresh, before, _ := strings.Cut(rest, " ")
		freshFor, freshErr := millis(fresh)
		askedBefore, beforeErr := millis(before)
		if freshErr == nil && beforeErr == nil && askedBefore >= 0 {
			return answering{true, word == "shared", freshFor, askedBefore, soft}, nil
		}
	}
	return answering{}, errAnswering
}

func millis(text string) (time.Duration, error) {
	ms, err := strconv.ParseInt(text, 10, 64)
	if limit := maxFresh.Milliseconds(); err != nil || ms > limit || ms < -limit {
		return 0, errAnswering
	}
	return time.Duration(ms) * time.Millisecond, nil
}

// conditional are the fields by which a fill asks whether what it has is still good, or for a slice of it.
var conditional = []string{"If-None-Match", "If-Modified-Since", "Range", "If-Range"}

// carried parts what a peer sent: the header for the origin, and by what the peer asks: validators of what it has, a range.
func carried(h http.Header) (forward, conditions http.Header) {
	forward, conditions = h.Clone(), http.Header{}
	for _, name := range conditional {
		if lines := forward[ifPrefix+name]; len(lines) > 0 {
			conditions[name] = lines
		}
		delete(forward, ifPrefix+name)
	}
	delete(forward, askField)
	return forward, conditions
}
