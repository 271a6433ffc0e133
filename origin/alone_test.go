package origin

import (
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/perigee-net/perigee/edge/http1"
)

func TestAnAmbiguousRequestHasItsConnectionToTheTargetAlone(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		w.serve(w.targets[0], ":80", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { fmt.Fprint(rw, r.Close) }))
		h := w.plane.Handler("web", 80)
		w.serve(w.node, ":81", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			h.ServeHTTP(rw, r.WithContext(http1.Alone(r.Context())))
		}))
		inside, ok := w.plane.HTTP("web/80")
		if !ok {
			t.Fatal("no such listener")
		}
		w.serve(w.node, ":82", inside)
		for _, c := range []struct {
			port  string
			close bool // said by whom the request is from
			want  string
		}{
			{"80", false, "false"},
			{"80", true, "false"}, // a client that wants its own connection closed is no reason
			{"81", false, "true"},
			{"82", false, "false"},
			{"82", true, "true"}, // an edge node says so for its viewer
		} {
			q := w.request("GET", "")
			q.URL.Host, q.Close = "10.0.0.100:"+c.port, c.close
			res, err := w.client.Do(q)
			if err != nil {
				t.Fatal(err)
			}
			got, _ := io.ReadAll(res.Body)
			res.Body.Close()
			if string(got) != c.want {
				t.Errorf("port %s, close=%v: the target's connection is closed: %s, want %s", c.port, c.close, got, c.want)
			}
		}
	})
}
