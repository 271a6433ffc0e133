package cdn

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"sync"
)

// maxInterim is how many interim responses an origin may send before its response. With one more it counts as having
// sent none: it may send them for ever.
const maxInterim = 16

var errInterim = errors.New("the origin sends interim responses without end")

// interim passes an origin's interim responses (103 Early Hints above all) on to the viewer whose request they answer, as
// RFC 9110 §15.2 asks. They are never kept, and who joins another's fill gets none. They come on the origin's goroutine while the
// viewer's waits, so the viewer's must call over before it writes or leaves.
type interim struct {
	mu   sync.Mutex
	w    http.ResponseWriter // nil: not passed on, only counted
	sent int
}

// interimTo is for the viewer of a request. Of HTTP/1.0 none knows interim responses.
func interimTo(w http.ResponseWriter, r *http.Request) *interim {
	if !r.ProtoAtLeast(1, 1) {
		w = nil
	}
	return &interim{w: w}
}

// over ends the passing on.
func (i *interim) over() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.w = nil
}

// watch has a request's interim responses passed on.
func (i *interim) watch(ctx context.Context) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got1xxResponse: i.pass})
}

func (i *interim) pass(status int, from textproto.MIMEHeader) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.sent++; i.sent > maxInterim {
		return errInterim
	}
	if i.w == nil || status <= http.StatusSwitchingProtocols { // 100 is between us and the origin
		return nil
	}
	h := i.w.Header()
	was := h.Clone()
	clear(h)
	for name, lines := range from {
		if !slices.Contains(hopByHop, name) && name != "Set-Cookie" {
			h[name] = lines
		}
	}
	for _, name := range nominated(http.Header(from)) {
		delete(h, name)
	}
	i.w.WriteHeader(status)
	clear(h)
	for name, lines := range was {
		h[name] = lines
	}
	return nil
}
