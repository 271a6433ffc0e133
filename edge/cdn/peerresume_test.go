package cdn

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// A body of twenty bytes comes in halves, ten seconds apart. The owner, who has handed on the first, dies between them.
func TestABodyWhosePeerDiesGoesOnElsewhere(t *testing.T) {
	const body, half = "0123456789abcdefghij", 10
	for what, c := range map[string]struct {
		fields   func(asked int32) []string // of the origin
		ranges   bool                       // the origin answers them
		nextGone bool                       // so that the origin is asked
		unsized  bool
		want     string
		asked    int32
	}{
		"from the next peer":                       {fields: fixed(`Etag: "1"`), want: body, asked: 2},
		"from the origin":                          {fields: fixed(`Etag: "1"`), ranges: true, nextGone: true, want: body, asked: 2},
		"by a date that is strong":                 {fields: fixed("Last-Modified: Fri, 31 Dec 1999 00:00:00 GMT"), ranges: true, nextGone: true, want: body, asked: 2},
		"from the origin, though its size was not": {fields: fixed(`Etag: "1"`), ranges: true, nextGone: true, unsized: true, want: body, asked: 2},
		"not with a weak tag":                      {fields: fixed(`Etag: W/"1"`), ranges: true, want: body[:half], asked: 1},
		"not without one":                          {fields: fixed(), ranges: true, want: body[:half], asked: 1},
		"not of an origin that answers no ranges":  {fields: fixed(`Etag: "1"`), nextGone: true, want: body[:half], asked: 2},
		"not what has changed": {fields: func(n int32) []string { return []string{`Etag: "` + strconv.Itoa(int(n)) + `"`} }, ranges: true, nextGone: true,
			want: body[:half], asked: 2},
	} {
		var asked atomic.Int32
		origin := func(w http.ResponseWriter, r *http.Request) {
			n := asked.Add(1)
			for _, line := range append(c.fields(n), "Cache-Control: max-age=60") {
				name, value, _ := strings.Cut(line, ": ")
				w.Header()[name] = []string{value}
			}
			if r.Header.Get("Range") != "" && c.ranges {
				modified, _ := http.ParseTime(w.Header().Get("Last-Modified"))
				http.ServeContent(w, r, "", modified, strings.NewReader(body))
				return
			}
			if !c.unsized {
				w.Header().Set("Content-Length", strconv.Itoa(len(body)))
			}
			io.WriteString(w, body[:half])
			http.NewResponseController(w).Flush()
			select {
			case <-time.After(10 * time.Second):
				io.WriteString(w, body[half:])
			case <-r.Context().Done():
			}
		}
		t.Run(what, func(t *testing.T) {
			inFleet(t, site(""), three(), origin, func(t *testing.T, f *fleet) {
				owners := f.owners("/a", inSeoul)
				got := make(chan answer)
				go func() {
					a, _ := f.ask(owners[2], "GET", "/a", nil)
					got <- a
				}()
				time.Sleep(3 * time.Second)
				f.nodes[owners[1]].refuses.Store(c.nextGone)
				f.nodes[owners[0]].host.Kill()
				a := <-got
				whole := c.want == body
				if a.StatusCode != 200 || a.body != c.want || (a.err == nil) != whole || asked.Load() != c.asked {
					t.Errorf("%d %q, %v; the origin was asked %d times, want %d", a.StatusCode, a.body, a.err, asked.Load(), c.asked)
				}
				if n := f.nodes[owners[2]].Counters()["cdn_peer_resumed_total"]; n > 0 != whole {
					t.Errorf("%d went on", n)
				}
			})
		})
	}
}

func fixed(lines ...string) func(int32) []string { return func(int32) []string { return lines } }

func TestAnOriginThatWaitsBehindItsHeadIsNoSilentPeer(t *testing.T) {
	inFleet(t, site(""), three(), func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "5")
		http.NewResponseController(w).Flush()
		time.Sleep(10 * time.Second)
		io.WriteString(w, "hello")
	}, func(t *testing.T, f *fleet) {
		f.must(f.owners("/a", inSeoul)[2], "/a", 200, "Miss", "hello")
		if f.requests() != 1 {
			t.Errorf("the origin was asked %d times", f.requests())
		}
	})
}
