package cdn

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"sync"

	"github.com/perigee-net/perigee/origin/wire"
)

// maxInterim is how many interim responses an origin may send before its response. With one more it counts as having
// sent none: it may send them for ever.
const maxInterim = 16

var errInterim = errors.New("the origin sends interim responses without end")

// interim passes an origin's interim responses (103 Early Hints above all) on to the viewer whose request they answer, as
// RFC 9110 §15.2 asks, or to the peer that asks for it. They are never kept, and who joins another's fill gets none. They come on the origin's goroutine, which many
// viewers may wait for, and are written on one of their own, which this viewer alone waits for: in over, which is to be called
// before anything else is written, and before the viewer is left.
type interim struct {
	w http.ResponseWriter // nil: they are only counted
	// peer says that it is not the viewer who is told, but a peer, beside whose signs of life they are written: with lock.
	peer bool
	lock *sync.Mutex

	mu      sync.Mutex
	sent    int
	ended   bool
	waiting chan hint // of maxInterim; nil until there is one
	written sync.WaitGroup
}

type hint struct {
	status int
	header http.Header
}

// interimTo is for the viewer of a request. Of HTTP/1.0 none knows interim responses.
func interimTo(w http.ResponseWriter, r *http.Request) *interim {
	if !r.ProtoAtLeast(1, 1) {
		w = nil
	}
	return &interim{w: w, lock: new(sync.Mutex)}
}

// interim is for the peer that is lent to.
func (l *lending) interim() *interim {
	return &interim{w: l.ResponseWriter, peer: true, lock: &l.interims}
}

// over ends the passing on, when all that has come is written.
func (i *interim) over() {
	i.mu.Lock()
	if !i.ended && i.waiting != nil {
		close(i.waiting)
	}
	i.ended = true
	i.mu.Unlock()
	i.written.Wait()
}

// watch has a request's interim responses passed on that net/http sends; nil: they are lost.
func (i *interim) watch(ctx context.Context) context.Context {
	if i == nil {
		return ctx
	}
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		Got1xxResponse: func(status int, h textproto.MIMEHeader) error { return i.Interim(status, http.Header(h)) },
	})
}

// watcher is who is told of interim responses that package wire reads; nil: nobody.
func (i *interim) watcher() wire.Watch {
	if i == nil {
		return nil
	}
	return i
}

// Sending and Answered are for wire.Watch.
func (i *interim) Sending(bool) {}
func (i *interim) Answered()    {}

// Interim passes one on.
func (i *interim) Interim(status int, h http.Header) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.sent++; i.sent > maxInterim {
		return errInterim
	}
	if i.w == nil || i.ended || status <= http.StatusSwitchingProtocols { // 100 is between us and the origin
		return nil
	}
	if i.waiting == nil {
		i.waiting = make(chan hint, maxInterim)
		i.written.Go(i.write)
	}
	for _, name := range slices.Concat(nominated(h), hopByHop) {
		h.Del(name)
	}
	h.Del("Set-Cookie")
	h.Del(answerField)
	if i.peer {
		h.Set(answerField, interimAnswer)
	}
	i.waiting <- hint{status, h}
	return nil
}

func (i *interim) write() {
	h := i.w.Header()
	for one := range i.waiting {
		i.lock.Lock()
		was := maps.Clone(h)
		clear(h)
		maps.Copy(h, one.header)
		i.w.WriteHeader(one.status)
		clear(h)
		maps.Copy(h, was)
		i.lock.Unlock()
	}
}
