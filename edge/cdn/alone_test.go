package cdn

import (
	"net/http"
	"testing"

	"github.com/perigee-net/perigee/edge/http1"
)

func TestAnAmbiguousRequestHasItsConnectionToTheOriginAlone(t *testing.T) {
	inWorld(t, site(""), func(t *testing.T, w *world) {
		w.origin(says(0, "done"))
		w.serve(w.edge, ":81", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			w.ServeHTTP(rw, r.WithContext(http1.Alone(r.Context())))
		}))
		for i, u := range []string{"http://www.test/", "http://www.test:81/"} {
			if _, err := w.ask(t.Context(), "POST", u, "x"); err != nil {
				t.Fatal(err)
			}
			if got := w.requests()[i].Close; got != (i == 1) {
				t.Errorf("%s: the origin's connection is closed: %v", u, got)
			}
		}
	})
}
