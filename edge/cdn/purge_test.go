package cdn

import (
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/edge/cache"
)

// numbered answers with how often the origin was asked.
func numbered() http.HandlerFunc {
	var n atomic.Int32
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=3600, stale-while-revalidate=3600, stale-if-error=3600")
		w.Header().Set("Etag", `"always the same"`)
		if r.Header.Get("If-None-Match") != "" {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		w.Write([]byte{'0' + byte(n.Add(1))})
	}
}

func (w *world) explained(path, want string) *trace.Trace {
	w.t.Helper()
	tr := new(trace.Trace)
	got, err := w.Explain("GET", &url.URL{Scheme: "http", Host: "www.test", Path: path}, tr)
	if err != nil || !strings.HasPrefix(got, want) {
		w.t.Errorf("%s is explained as %q, %v; want %q", path, got, err, want)
	}
	return tr
}

func TestWhatIsPurgedIsAskedForAgain(t *testing.T) {
	inWorld(t, site(""), func(t *testing.T, w *world) {
		w.origin(numbered())
		w.must("/a", 200, "Miss", "1")
		w.must("/b/c", 200, "Miss", "2")
		w.must("/b/d", 200, "Miss", "3")
		w.Purge(cache.Purge{Distribution: "other", Items: []string{"/*"}})
		w.must("/a", 200, "Hit", "1")
		w.Purge(cache.Purge{Distribution: "site", Items: []string{"/a", "/b/*"}})
		w.must("/a", 200, "Miss", "4") // and not validated, though it would be
		w.must("/a", 200, "Hit", "4")
		w.explained("/b/c", "miss")
	})
}

func TestAPurgeOfTheRootIsOneOfTheDefaultRootObject(t *testing.T) {
	inWorld(t, site("")+"defaultRootObject: start.html\n", func(t *testing.T, w *world) {
		w.origin(numbered())
		w.must("/", 200, "Miss", "1")
		w.Purge(cache.Purge{Distribution: "site", Items: []string{"/"}})
		w.must("/", 200, "Miss", "2")
		w.Purge(cache.Purge{Distribution: "site", Items: []string{"/start.html"}}) // by its own name
		w.must("/", 200, "Miss", "3")
	})
}

func TestBehindAFenceNothingOldIsServedUnasked(t *testing.T) {
	inWorld(t, site(""), func(t *testing.T, w *world) {
		w.origin(numbered())
		w.must("/a", 200, "Miss", "1")
		w.must("/b", 200, "Miss", "2")
		w.SetFence(true)
		if tr := w.explained("/a", "fenced: asks"); !strings.Contains(tr.String(), "this node has missed purges") {
			t.Errorf("by\n%s", tr)
		}
		w.must("/a", 200, "RefreshHit", "1")
		w.must("/a", 200, "Hit", "1")
		time.Sleep(2 * time.Hour) // stale, too, and it would be served while it is asked for
		w.must("/b", 200, "RefreshHit", "2")
		w.SetFence(false)
		w.must("/b", 200, "Hit", "2")
		if n := w.Counters()["cache_fenced_total"]; n != 2 {
			t.Errorf("%d were fenced", n)
		}
	})
}

func TestAPurgeByTagGoesByTheHeaderOfTheDistribution(t *testing.T) {
	inWorld(t, site("")+"cacheTagConfig: {headerName: surrogate-tag}\n", func(t *testing.T, w *world) {
		served := numbered()
		w.origin(func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Add("Surrogate-Tag", "All, "+r.URL.Path[1:])
			rw.Header().Add("Cache-Tag", "none")
			served(rw, r)
		})
		w.must("/a", 200, "Miss", "1")
		w.must("/b", 200, "Miss", "2")
		w.Purge(cache.Purge{Distribution: "site", Items: []string{"#none", "#A"}})
		w.must("/b", 200, "Hit", "2")
		w.must("/a", 200, "Miss", "3")
		w.Purge(cache.Purge{Items: []string{"#all"}})
		w.explained("/a", "miss")
		w.explained("/b", "miss")
	})
}

func TestAPurgeOfAHostIsAlsoOfWhatItsDistributionKeepsForAllHosts(t *testing.T) {
	inWorld(t, site(""), func(t *testing.T, w *world) {
		w.origin(numbered())
		w.must("/", 200, "Miss", "1")
		w.Purge(cache.Purge{Host: "other.test"})
		w.must("/", 200, "Hit", "1")
		w.Purge(cache.Purge{Host: "WWW.test:80"})
		w.must("/", 200, "Miss", "2")
		w.Purge(cache.Purge{Distribution: "site", Host: "www.test", Items: []string{"/a"}})
		w.must("/", 200, "Hit", "2")
	})
}

func TestWhatIsPurgedSoftlyIsServedWhileItIsAskedFor(t *testing.T) {
	inWorld(t, site(""), func(t *testing.T, w *world) {
		w.origin(numbered())
		w.must("/a", 200, "Miss", "1")
		w.Purge(cache.Purge{Distribution: "site", Items: []string{"/*"}, Soft: true})
		if tr := w.explained("/a", "hit: status 200, stale"); !strings.Contains(tr.String(), "it was purged softly") {
			t.Errorf("by\n%s", tr)
		}
		if _, ok := quickly(t, w.Plane, "GET /a HTTP/1.1\r\nHost: www.test\r\n\r\n"); ok {
			t.Error("it is answered as if it were fresh")
		}
		w.must("/a", 200, "Hit", "1")
		time.Sleep(time.Second)
		w.explained("/a", "hit: status 200, fresh")
		if n := len(w.requests()); n != 2 {
			t.Errorf("the origin was asked %d times", n)
		}
	})
}

func TestExplainSaysWhatAPurgeDid(t *testing.T) {
	inWorld(t, site(""), func(t *testing.T, w *world) {
		w.origin(numbered())
		w.must("/a", 200, "Miss", "1")
		w.explained("/a", "hit")
		w.Purge(cache.Purge{Items: []string{"/*"}})
		w.explained("/a", "miss")
		if n := w.Counters(); n["cache_purges_total"] != 1 || n["cache_purged_total"] != 1 {
			t.Errorf("counted %v", n)
		}
	})
}
