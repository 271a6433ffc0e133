package cdn

import (
	"context"
	"io"
	"net/http"

	"github.com/perigee-net/perigee/edge/cache"
)

// resuming is the body of a whole response that a peer hands on. Where the peer fails halfway, the rest is asked of the next one, at
// last of the origin: as a range, on the condition that it is of the same version (RFC 9110 §13.1.5). So only a response with a
// strong validator goes on; another is cut short.
type resuming struct {
	io.ReadCloser // of who sends it now
	p             *Plane
	ctx           context.Context
	errand        errand
	rest          cache.Rest
	failed        error // of who sent it
}

// resuming has the body of a peer's response go on elsewhere where the peer fails.
func (p *Plane) resuming(ctx context.Context, e errand, response *http.Response) {
	rest, ok := cache.RestOf(response)
	lent, is := response.Body.(*cache.Lent)
	if !ok || !is {
		return
	}
	e.early = nil // that was for the head
	lent.ReadCloser = &resuming{ReadCloser: lent.ReadCloser, p: p, ctx: ctx, errand: e, rest: rest}
}

func (r *resuming) Read(b []byte) (int, error) {
	for {
		if r.failed != nil {
			if !r.resume() {
				return 0, r.failed
			}
			r.failed = nil
		}
		n, err := r.ReadCloser.Read(b)
		r.rest.Start += int64(n)
		if err == nil || err == io.EOF && r.rest.Ended() {
			return n, err
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if r.failed = err; n > 0 {
			return n, nil
		}
	}
}

// resume asks the next for the rest.
func (r *resuming) resume() bool {
	if r.ctx.Err() != nil {
		return false
	}
	for int(r.errand.turn.Load()) < len(r.errand.hops) {
		r.errand.turn.Add(1) // who sent, or was asked for the rest
		response, err := r.p.fetching(&r.errand)(r.ctx, r.rest.Conditions())
		if err != nil {
			return false
		}
		lent, is := response.Body.(*cache.Lent)
		if !r.rest.Is(response) {
			response.Body.Close()
			continue
		}
		r.ReadCloser.Close()
		r.p.peers.counts.resumed.Add(1)
		if r.ReadCloser = response.Body; is {
			r.ReadCloser = lent.ReadCloser
		}
		return true
	}
	return false // it was the origin that sent, and nobody is left
}
