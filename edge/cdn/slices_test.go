package cdn

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/edge/cache"
)

// film is an object whose bytes follow from their places and its version, so that of any size it takes no memory.
type film struct {
	size, version, at int64
}

// word is a number that follows from two (splitmix64).
func word(version, n int64) uint64 {
	z := uint64(n)*0x9e3779b97f4a7c15 + uint64(version)*0xd1342543de82ef95
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// frame is how many bytes of a film begin with a word of their own.
const frame = 512

func (f *film) Read(b []byte) (int, error) {
	if f.at >= f.size {
		return 0, io.EOF
	}
	b = b[:min(int64(len(b)), f.size-f.at)]
	n := copy(b, reel(f.version, f.at, int64(len(b))))
	f.at += int64(n)
	return n, nil
}

func (f *film) Seek(offset int64, from int) (int64, error) {
	switch from {
	case io.SeekCurrent:
		offset += f.at
	case io.SeekEnd:
		offset += f.size
	}
	f.at = offset
	return offset, nil
}

// reel are bytes of a film.
func reel(version, start, length int64) []byte {
	b := make([]byte, 0, length+2*frame)
	for n := start / frame; int64(len(b)) < length+start%frame; n++ {
		sum := word(version, n)
		b = binary.LittleEndian.AppendUint64(b, sum)
		b = append(b, grain[sum%frame:][:frame-8]...)
	}
	return b[start%frame:][:length]
}

// grain is what frames are cut from.
var grain = func() string {
	var b []byte
	for n := range int64(2 * frame / 8) {
		b = binary.LittleEndian.AppendUint64(b, word(0, n))
	}
	return string(b)
}()

// tag is the film's strong validator.
func (f *film) tag() string { return fmt.Sprintf(`"film-%d"`, f.version) }

// cinema is an origin with one film, which a test may change.
type cinema struct {
	mu      sync.Mutex
	film    film
	heard   []string // of each request: its Range, or "whole"
	changes func(w http.ResponseWriter, r *http.Request) http.ResponseWriter
}

func (c *cinema) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	now, changes := c.film, c.changes
	if asked := r.Header.Get("Range"); asked != "" {
		c.heard = append(c.heard, asked)
	} else {
		c.heard = append(c.heard, "whole")
	}
	c.mu.Unlock()
	h := w.Header()
	h.Set("Cache-Control", "max-age=60")
	h.Set("Content-Type", "video/mp4")
	h.Set("Etag", now.tag())
	if changes != nil {
		if w = changes(w, r); w == nil {
			return
		}
	}
	http.ServeContent(w, r, "", time.Unix(1e9, 0), &now)
}

// shows changes the film.
func (c *cinema) shows(version, size int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.film = film{size: size, version: version}
}

// asked are the requests since the last call.
func (c *cinema) asked() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.heard
	c.heard = nil
	slices.Sort(all) // what is asked for ahead comes in any order
	return all
}

// status is what Cache-Status says, whatever the rest of its time.
func status(r *http.Response) string {
	return regexp.MustCompile(`ttl=\d+`).ReplaceAllString(r.Header.Get("Cache-Status"), "ttl=N")
}

// ranges are what the origin hears of the film's slices.
func ranges(size int64, numbers ...int64) (all []string) {
	for _, n := range numbers {
		all = append(all, fmt.Sprintf("bytes=%d-%d", n*cache.SliceSize, min((n+1)*cache.SliceSize, size)-1))
	}
	return all
}

const mega = 1 << 20

// alone is a POP of one node, whose cache keeps whole what is at most 8 MiB.
func alone() []view.Member { return three()[:1] }

func inCinema(t *testing.T, text string, members []view.Member, size int64, test func(t *testing.T, f *fleet, c *cinema)) {
	c := &cinema{film: film{size: size, version: 1}}
	inFleet(t, text, members, c.ServeHTTP, func(t *testing.T, f *fleet) { test(t, f, c) })
}

// watch asks a node for a part of the film, and has it be those bytes of that version.
func (f *fleet) watch(node string, version, start, length, size int64) *http.Response {
	f.t.Helper()
	a, err := f.ask(node, "GET", "/film", http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", start, start+length-1)}})
	if err != nil || a.StatusCode != 206 || a.Header.Get("Content-Range") != fmt.Sprintf("bytes %d-%d/%d", start, start+length-1, size) {
		f.t.Fatalf("bytes %d-%d: %v, %d, %v", start, start+length-1, err, a.StatusCode, a.Header)
	}
	if a.body != string(reel(version, start, length)) {
		f.t.Fatalf("bytes %d-%d are not those of version %d", start, start+length-1, version)
	}
	return a.Response
}

func TestALargeObjectThatIsReadToItsEndIsOneRequestAndThenKept(t *testing.T) {
	const size = 20*mega + 4711
	inCinema(t, site(""), alone(), size, func(t *testing.T, f *fleet, c *cinema) {
		for _, want := range []string{"perigee; fwd=uri-miss; fwd-status=200; stored; ttl=N; detail=slices", "perigee; hit; ttl=N; detail=slices"} {
			a, err := f.ask("icn-a", "GET", "/film", nil)
			if err != nil || a.StatusCode != 200 || a.Header.Get("Content-Length") != fmt.Sprint(size) || !bytes.Equal([]byte(a.body), reel(1, 0, size)) {
				t.Fatalf("%v, %d, %d bytes, %v", err, a.StatusCode, len(a.body), a.Header)
			}
			if got := status(a.Response); got != want {
				t.Errorf("%s, want %s", got, want)
			}
		}
		if asked := c.asked(); !slices.Equal(asked, []string{"whole"}) {
			t.Errorf("the origin was asked for %q", asked)
		}
		f.watch("icn-a", 1, 5*mega-3, 6, size)
		f.watch("icn-a", 1, size-1, 1, size)
		if asked := c.asked(); len(asked) != 0 {
			t.Errorf("for what is kept the origin was asked for %q", asked)
		}
	})
}

func TestARangeOfALargeObjectAsksForItsSlicesOnly(t *testing.T) {
	const size = 50 << 30
	inCinema(t, site(""), alone(), size, func(t *testing.T, f *fleet, c *cinema) {
		a := f.watch("icn-a", 1, 30<<30+17, 2*mega, size)
		if got := status(a); got != "perigee; fwd=uri-miss; fwd-status=206; stored; ttl=N; detail=slices" {
			t.Error(got)
		}
		if asked := c.asked(); !slices.Equal(asked, []string{fmt.Sprintf("bytes=%d-%d", 30<<30, 30<<30+3*mega-1)}) {
			t.Errorf("the origin was asked for %q", asked)
		}
		if a = f.watch("icn-a", 1, size-10, 10, size); status(a) != "perigee; fwd=partial; fwd-status=206; stored; ttl=N; detail=slices" || a.Header.Get("X-Cache") != "Miss from perigee" {
			t.Error(a.Header)
		}
		time.Sleep(time.Second) // till the slice is there whole
		if a = f.watch("icn-a", 1, size-20, 15, size); a.Header.Get("X-Cache") != "Hit from perigee" || a.Header.Get("Content-Type") != "video/mp4" {
			t.Error(a.Header)
		}
		if asked := c.asked(); !slices.Equal(asked, ranges(size, size/mega-1)) {
			t.Errorf("the origin was asked for %q", asked)
		}
		time.Sleep(2 * time.Second)
		if n := f.nodes["icn-a"].Counters()["cache_slice_streams"]; n != 0 {
			t.Errorf("%d streams are open that nobody reads", n)
		}
		if n := f.nodes["icn-a"].Counters()["cache_bytes"]; n > 6*mega {
			t.Errorf("%d bytes are held", n)
		}
	})
}

func TestAnObjectThatChangesIsNeverMixed(t *testing.T) {
	const size = 30 * mega
	inCinema(t, site(""), alone(), size, func(t *testing.T, f *fleet, c *cinema) {
		f.watch("icn-a", 1, 3*mega, 10, size)
		c.shows(2, size) // of the same length, and the head is fresh still
		f.watch("icn-a", 1, 3*mega+5, 10, size)
		f.watch("icn-a", 2, 20*mega, 10, size) // nothing is sent yet: it begins anew
		f.watch("icn-a", 2, 3*mega, 10, size)
		c.shows(3, size+1)
		a, err := f.ask("icn-a", "GET", "/film", http.Header{"Range": {fmt.Sprintf("bytes=%d-", 20*mega)}})
		if err == nil || a.body != string(reel(2, 20*mega, int64(len(a.body)))) || len(a.body) < mega {
			t.Errorf("%v after %d bytes", err, len(a.body))
		}
		f.watch("icn-a", 3, 20*mega, 10, size+1)
		if n := f.nodes["icn-a"].Counters()["cache_slices_changed_total"]; n < 2 {
			t.Errorf("%d changes are counted", n)
		}
	})
}

// screen is a viewer's end of an answer: it takes so many bytes at most, each so slowly, and then leaves.
type screen struct {
	*httptest.ResponseRecorder
	leave func()
	takes int
	pause time.Duration // for each write
}

func (s *screen) Write(b []byte) (int, error) {
	time.Sleep(s.pause)
	if s.takes -= len(b); s.takes < 0 {
		s.leave()
		return 0, io.ErrClosedPipe
	}
	return s.ResponseRecorder.Write(b)
}

// show has a viewer ask a node, who takes the answer as a screen does. Broken says that his connection was ended.
func (f *fleet) show(node, path string, s screen, header http.Header) (response *http.Response, body []byte, broken bool) {
	ctx, cancel := context.WithCancel(f.t.Context())
	defer cancel()
	r := httptest.NewRequest("GET", "http://www.test"+path, nil).WithContext(ctx)
	maps.Copy(r.Header, header)
	s.ResponseRecorder, s.leave = httptest.NewRecorder(), cancel
	func() {
		defer func() { broken = recover() != nil }()
		f.nodes[node].ServeHTTP(&s, r)
	}()
	return s.Result(), s.Body.Bytes(), broken
}

const patient = math.MaxInt

func TestManyViewersOfALargeObjectAreOneRequestASlice(t *testing.T) {
	const size, viewers = 24 * mega, 40
	inCinema(t, site(""), alone(), size, func(t *testing.T, f *fleet, c *cinema) {
		var all sync.WaitGroup
		for i := range viewers {
			all.Go(func() {
				rng := rand.New(rand.NewPCG(1, uint64(i)))
				for range 4 {
					start := rng.Int64N(size - mega)
					f.watch("icn-a", 1, start, 1+rng.Int64N(mega), size)
				}
			})
		}
		all.Wait()
		asked := c.asked()
		if n := len(asked); n > size/mega+1 || len(slices.Compact(asked)) != n {
			t.Errorf("the origin was asked %d times: %q", n, asked)
		}
	})
}

func TestAViewerWhoLeavesStopsNothingThatOthersWaitForAndNothingFollows(t *testing.T) {
	const size = 40 * mega
	inCinema(t, site(""), alone(), size, func(t *testing.T, f *fleet, c *cinema) {
		var all sync.WaitGroup
		all.Go(func() { f.show("icn-a", "/film", screen{takes: 100_000}, nil) })
		all.Go(func() {
			time.Sleep(time.Millisecond)
			f.watch("icn-a", 1, 10, mega-20, size)
		})
		all.Wait()
		if asked := c.asked(); !slices.Equal(asked, []string{"whole"}) {
			t.Errorf("the origin was asked for %q", asked)
		}
		time.Sleep(time.Minute)
		n := f.nodes["icn-a"].Counters()
		if n["cache_slices_cut_total"] > 1+slicesAhead || n["cache_fills"] != 0 || n["cache_slice_streams"] != 0 {
			t.Errorf("%d slices were cut for who reads one, %d fills and %d streams are left", n["cache_slices_cut_total"], n["cache_fills"], n["cache_slice_streams"])
		}
	})
}

func TestAnOriginIsHeldToThePaceOfWhoReads(t *testing.T) {
	const size = 40 * mega
	for _, c := range []struct {
		name  string
		pause time.Duration // between pieces
		most  int           // requests
	}{
		{"who takes a slice in some seconds reads one response", 100 * time.Millisecond, 1},
		{"who takes minutes is served by ranges", 40 * time.Second, 40},
	} {
		t.Run(c.name, func(t *testing.T) {
			inCinema(t, site("defaultTTL: 86400"), alone(), size, func(t *testing.T, f *fleet, o *cinema) {
				var all sync.WaitGroup
				all.Go(func() {
					_, body, broken := f.show("icn-a", "/film", screen{takes: patient, pause: c.pause}, nil)
					if broken || !bytes.Equal(body, reel(1, 0, size)) {
						t.Errorf("%d bytes came, broken off: %v", len(body), broken)
					}
				})
				time.Sleep(2 * c.pause)
				if n := f.nodes["icn-a"].Counters()["cache_stored_total"]; n > 2+slicesAhead {
					t.Errorf("%d entries are kept for who has read a piece", n)
				}
				all.Wait()
				if asked := o.asked(); len(asked) > c.most {
					t.Errorf("the origin was asked %d times", len(asked))
				}
			})
		})
	}
}

func TestASliceThatBreaksOffIsAskedForOnceMore(t *testing.T) {
	const size = 20 * mega
	inCinema(t, site(""), alone(), size, func(t *testing.T, f *fleet, c *cinema) {
		var asked atomic.Int32
		c.changes = func(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			switch asked.Add(1) {
			case 1: // the whole
				return &cutShort{ResponseWriter: w, left: 5 * mega / 2}
			case 7: // a range
				return &cutShort{ResponseWriter: w, left: mega / 3}
			}
			return w
		}
		a, err := f.ask("icn-a", "GET", "/film", nil)
		if err != nil || a.body != string(reel(1, 0, size)) {
			t.Errorf("%v after %d bytes", err, len(a.body))
		}
		if n := f.nodes["icn-a"].Counters()["cache_truncated_total"]; n != 2 {
			t.Errorf("%d slices were truncated", n)
		}
	})
}

// cutShort breaks off after so many bytes.
type cutShort struct {
	http.ResponseWriter
	left int
}

func (c *cutShort) Write(b []byte) (int, error) {
	if c.left -= len(b); c.left < 0 {
		http.NewResponseController(c.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	return c.ResponseWriter.Write(b)
}

func TestWhoSeeksInWhatIsNotKnownWaitsForWhatHeWantsAlone(t *testing.T) {
	const size = 5*mega + 77 // it would be kept whole
	for name, members := range map[string][]view.Member{"one node": alone(), "a POP of three": three()} {
		t.Run(name, func(t *testing.T) {
			inCinema(t, site(""), members, size, func(t *testing.T, f *fleet, c *cinema) {
				heard := func(want ...string) {
					t.Helper()
					slices.Sort(want)
					if asked := c.asked(); !slices.Equal(asked, want) {
						t.Errorf("the origin was asked for %q, want %q", asked, want)
					}
				}
				f.watch("icn-a", 1, 3*mega+100, 50, size)
				heard(ranges(size, 3)...)
				time.Sleep(time.Second) // till the slice is there whole
				f.watch("icn-a", 1, 3*mega, mega, size)
				heard()
				a, err := f.ask("icn-a", "GET", "/film", http.Header{"Range": {fmt.Sprintf("bytes=%d-", 4*mega+9)}})
				if err != nil || a.StatusCode != 206 || a.body != string(reel(1, 4*mega+9, size-4*mega-9)) {
					t.Errorf("%v, %d, %d bytes", err, a.StatusCode, len(a.body))
				}
				heard(ranges(size, 4, 5)...)
				time.Sleep(time.Second)
				// What is missing is asked for, and all that has come is one object.
				for range 2 {
					if a, err = f.ask("icn-a", "GET", "/film", nil); err != nil || a.StatusCode != 200 || a.body != string(reel(1, 0, size)) || a.Header.Get("Content-Range") != "" ||
						a.Header.Get("Content-Length") != fmt.Sprint(size) || a.Header.Get("Content-Type") != "video/mp4" {
						t.Errorf("%v, %d, %d bytes, %v", err, a.StatusCode, len(a.body), a.Header)
					}
				}
				heard(ranges(size, 0, 1, 2)...)
				n := f.sum("cache_slices_sought_total")
				if want := uint64(len(members)+1) / 2; n == 0 || n > want {
					t.Errorf("%d sought", n)
				}
			})
		})
	}
}

// What is not too large to be kept whole is one body again, as if nobody had sought in it, as soon as all of it is there.
func TestWhatWasSoughtInIsOneBodyOnceAllOfItIsThere(t *testing.T) {
	const size = 3*mega + 77
	for name, members := range map[string][]view.Member{"one node": alone(), "a POP of three": three()} {
		t.Run(name, func(t *testing.T) {
			inCinema(t, site(""), members, size, func(t *testing.T, f *fleet, c *cinema) {
				f.watch("icn-a", 1, mega+100, 50, size)
				time.Sleep(time.Second)
				if n := f.sum("cache_slices_joined_total"); n != 0 {
					t.Errorf("%d joined of which one slice is there", n)
				}
				all := func() string {
					a, err := f.ask("icn-a", "GET", "/film", nil)
					if err != nil || a.StatusCode != 200 || a.body != string(reel(1, 0, size)) || len(a.Header["Content-Length"]) != 1 {
						t.Errorf("%v, %d, %d bytes, %v", err, a.StatusCode, len(a.body), a.Header)
					}
					time.Sleep(time.Second) // till the slices are there whole, or are one body
					return status(a.Response)
				}
				for i := range 4 {
					if said := all(); len(members) == 1 && i == 3 && said != "perigee; hit; ttl=N" {
						t.Errorf("the object is kept as %s", said)
					}
				}
				f.watch("icn-a", 1, 2*mega-5, 50, size)
				if asked, want := c.asked(), ranges(size, 0, 1, 2, 3); !slices.Equal(asked, want) {
					t.Errorf("the origin was asked for %q, want %q", asked, want)
				}
				if n := f.sum("cache_slices_joined_total"); n == 0 || len(members) == 1 && n != 1 {
					t.Errorf("%d joined", n)
				}
				if n := f.sum("cache_objects"); len(members) == 1 && n != 1 {
					t.Errorf("%d objects", n)
				}
			})
		})
	}
}

func TestTheRestOfWhatIsNotKnownIsOneRequestForWhoReadsIt(t *testing.T) {
	const size = 40*mega + 5
	inCinema(t, site(""), alone(), size, func(t *testing.T, f *fleet, c *cinema) {
		a, err := f.ask("icn-a", "GET", "/film", http.Header{"Range": {fmt.Sprintf("bytes=%d-", 7*mega+9)}, "If-Range": {`"film-1"`}})
		if err != nil || a.StatusCode != 206 || a.body != string(reel(1, 7*mega+9, size-7*mega-9)) {
			t.Errorf("%v, %d, %d bytes", err, a.StatusCode, len(a.body))
		}
		if asked := c.asked(); !slices.Equal(asked, []string{fmt.Sprintf("bytes=%d-", 7*mega)}) {
			t.Errorf("the origin was asked for %q", asked)
		}
	})
}

// Whatever the origin makes of it: the viewer gets what he asked for, and of one version.
func TestWhereNothingCanBeSoughtTheWholeIsAskedFor(t *testing.T) {
	const size = 5 * mega
	sought := ranges(size, 3)[0]
	wide := fmt.Sprintf("bytes=%d-%d", 3*mega+10, 3*mega+19)
	for _, c := range []struct {
		name   string
		does   func(w http.ResponseWriter, r *http.Request) http.ResponseWriter // to what is sought
		asks   []string
		asking string // Range; "": wide
		stored bool
	}{
		{"no ranges", func(w http.ResponseWriter, r *http.Request) http.ResponseWriter { r.Header.Del("Range"); return w }, []string{sought}, "", true},
		{"no validator", func(w http.ResponseWriter, r *http.Request) http.ResponseWriter { w.Header().Del("Etag"); return w }, []string{sought, "whole"}, "", true},
		{"a weak validator", func(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			w.Header().Set("Etag", `W/"film-1"`)
			return w
		}, []string{sought, "whole"}, "", true},
		{"another part", func(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			r.Header.Set("Range", "bytes=0-9")
			return w
		}, []string{sought, "whole"}, "", true},
		{"nothing is there", nil, []string{fmt.Sprintf("bytes=%d-%d", 7*mega, 8*mega-1), "whole"}, fmt.Sprintf("bytes=%d-%d", 7*mega, 7*mega+9), true},
		{"not to be kept", func(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			w.Header().Set("Cache-Control", "no-store")
			return w
		}, []string{sought, sought, wide, wide}, "", false},
		{"the last bytes", nil, []string{"whole"}, "bytes=-10", true},
		{"several parts", nil, []string{"whole"}, fmt.Sprintf("bytes=%d-%d,%d-", 2*mega, 2*mega+9, 4*mega), true},
		{"the beginning", nil, []string{"whole"}, "bytes=0-", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			inCinema(t, site("minTTL: 0"), alone(), size, func(t *testing.T, f *fleet, o *cinema) {
				o.changes = func(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
					if asked := r.Header.Get("Range"); c.does != nil && (asked == sought || !c.stored) {
						return c.does(w, r)
					}
					return w
				}
				asking := cmp.Or(c.asking, wide)
				for try := range 2 {
					a, err := f.ask("icn-a", "GET", "/film", http.Header{"Range": {asking}})
					switch {
					case err != nil:
						t.Fatal(err)
					case c.name == "nothing is there":
						if a.StatusCode != 416 {
							t.Error(a.StatusCode, a.Header)
						}
					case c.asking == "" && (a.StatusCode != 206 || a.body != string(reel(1, 3*mega+10, 10))), a.StatusCode != 206:
						t.Errorf("%d, %d bytes, %v", a.StatusCode, len(a.body), a.Header)
					}
					if hit := a.Header.Get("X-Cache") == "Hit from perigee"; c.stored && a.StatusCode < 400 && hit != (try == 1) {
						t.Error(a.Header)
					}
					time.Sleep(time.Second) // till all is there
				}
				if asked := o.asked(); !slices.Equal(asked, c.asks) {
					t.Errorf("the origin was asked for %q", asked)
				}
				if n := f.sum("cache_slices_sought_total"); n != 0 {
					t.Errorf("%d sought", n)
				}
			})
		})
	}
}

// As nginx has it: Accept-Ranges is said of the whole alone, and digests of what is sent.
func TestWhatIsSaidOfAPartIsNotSaidOfTheWhole(t *testing.T) {
	const size = 3*mega + 5
	inCinema(t, site(""), alone(), size, func(t *testing.T, f *fleet, c *cinema) {
		c.changes = func(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			of := "whole"
			if r.Header.Get("Range") != "" {
				of = "part"
				w = &headless{w}
			}
			for _, name := range []string{"Content-Digest", "Content-Md5"} {
				w.Header().Set(name, of)
			}
			w.Header().Set("Repr-Digest", "whole")
			return w
		}
		sent := func(asked string, code int, digest string) {
			t.Helper()
			a, err := f.ask("icn-a", "GET", "/film", http.Header{"Range": {asked}})
			if err != nil || a.StatusCode != code {
				t.Fatalf("%q: %v, %d", asked, err, a.StatusCode)
			}
			for name, want := range map[string]string{"Content-Digest": digest, "Content-Md5": digest, "Repr-Digest": "whole", "Accept-Ranges": "bytes"} {
				if got := a.Header.Get(name); got != want {
					t.Errorf("%q, %s: %q, want %q", asked, name, got, want)
				}
			}
		}
		sent(fmt.Sprintf("bytes=%d-", 2*mega), 206, "")
		sent("bytes=0-9", 206, "")
		sent("", 200, "")
	})
	inCinema(t, site(""), alone(), 100, func(t *testing.T, f *fleet, c *cinema) {
		c.changes = func(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			w.Header().Set("Content-Digest", "whole")
			return w
		}
		for _, part := range []string{"bytes=0-9", "bytes=0-9,20-29", ""} {
			a, err := f.ask("icn-a", "GET", "/film", http.Header{"Range": {part}})
			if got := a.Header.Get("Content-Digest"); err != nil || (got != "") != (part == "") {
				t.Errorf("%q: %v, %d, %q", part, err, a.StatusCode, got)
			}
		}
	})
}

// headless is an answer without Accept-Ranges.
type headless struct{ http.ResponseWriter }

func (h *headless) WriteHeader(code int) {
	h.Header().Del("Accept-Ranges")
	h.ResponseWriter.WriteHeader(code)
}

func TestWhatIsTooLargeForItsValidatorIsPassedOnWhereItIsSought(t *testing.T) {
	const size = 40 * mega
	inCinema(t, site(""), alone(), size, func(t *testing.T, f *fleet, c *cinema) {
		c.changes = func(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			w.Header().Set("Etag", `W/"film-1"`)
			return w
		}
		asked := func(n int64) string { return fmt.Sprintf("bytes=%d-%d", n*mega+10, n*mega+19) }
		for n := int64(3); n < 6; n++ {
			f.watch("icn-a", 1, n*mega+10, 10, size)
		}
		if got, want := c.asked(), []string{ranges(size, 3)[0], asked(3), asked(4), asked(5)}; !slices.Equal(got, want) {
			t.Errorf("the origin was asked for %q, want %q", got, want)
		}
	})
}

// An origin, or what stands before it, may refuse ranges alone: what it says of one that we have made is no word on the whole.
func TestWhatIsSaidToARangeIsNotTakenForWhatIsSaidOfTheWhole(t *testing.T) {
	const size = 5 * mega
	for _, code := range []int{204, 301, 403, 404, 410, 429, 500, 501, 503} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			inCinema(t, site(""), alone(), size, func(t *testing.T, f *fleet, c *cinema) {
				c.changes = func(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
					if r.Header.Get("Range") == "" {
						return w
					}
					w.WriteHeader(code)
					return nil
				}
				f.watch("icn-a", 1, 3*mega+10, 10, size)
				time.Sleep(time.Second) // till all is there
				for _, asks := range []http.Header{nil, {"Range": {"bytes=0-"}}} {
					if a, err := f.ask("icn-a", "GET", "/film", asks); err != nil || a.StatusCode >= 300 || a.body != string(reel(1, 0, size)) ||
						a.Header.Get("X-Cache") != "Hit from perigee" {
						t.Errorf("%v, %d, %d bytes, %v", err, a.StatusCode, len(a.body), a.Header)
					}
				}
				if asked, want := c.asked(), []string{ranges(size, 3)[0], "whole"}; !slices.Equal(asked, want) {
					t.Errorf("the origin was asked for %q, want %q", asked, want)
				}
			})
		})
	}
}

func TestAnOriginThatLiesAboutRangesIsNotBelieved(t *testing.T) {
	const size = 20 * mega
	part := func(w http.ResponseWriter, says string, start, length int64) {
		w.Header().Set("Content-Range", says)
		w.Header().Set("Content-Length", fmt.Sprint(length))
		w.WriteHeader(206)
		w.Write(reel(1, start, length))
	}
	for name, lie := range map[string]func(w http.ResponseWriter){
		"another part": func(w http.ResponseWriter) { part(w, fmt.Sprintf("bytes 0-%d/%d", mega-1, size), 0, mega) },
		"another total": func(w http.ResponseWriter) {
			part(w, fmt.Sprintf("bytes %d-%d/%d", 7*mega, 8*mega-1, size+1), 7*mega, mega)
		},
		"no total": func(w http.ResponseWriter) {
			part(w, fmt.Sprintf("bytes %d-%d/*", 7*mega, 8*mega-1), 7*mega, mega)
		},
		"a shorter part": func(w http.ResponseWriter) {
			part(w, fmt.Sprintf("bytes %d-%d/%d", 7*mega, 8*mega-2, size), 7*mega, mega-1)
		},
		"another length than it says": func(w http.ResponseWriter) {
			part(w, fmt.Sprintf("bytes %d-%d/%d", 7*mega, 8*mega-1, size), 7*mega, mega-1)
		},
		"numbers without end": func(w http.ResponseWriter) {
			part(w, "bytes 7340032-99999999999999999999999/999999999999999999999999999", 7*mega, mega)
		},
		"no validator": func(w http.ResponseWriter) {
			w.Header().Del("Etag")
			part(w, fmt.Sprintf("bytes %d-%d/%d", 7*mega, 8*mega-1, size), 7*mega, mega)
		},
		"the whole": func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", fmt.Sprint(size))
			w.Write(reel(1, 0, size))
		},
	} {
		t.Run(name, func(t *testing.T) {
			inCinema(t, site(""), alone(), size, func(t *testing.T, f *fleet, c *cinema) {
				served := 0 // bytes
				c.changes = func(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
					if r.Header.Get("If-Range") == "" {
						return w
					}
					lie(w)
					served++
					return nil
				}
				f.watch("icn-a", 1, 0, 10, size)
				f.watch("icn-a", 1, 7*mega, 10, size) // as it is asked by who passes it on, the origin tells the truth
				f.watch("icn-a", 1, 9*mega, 10, size)
				n := f.nodes["icn-a"].Counters()
				if n["cache_slices_refused_total"] != 1 || served != 1 || n["cdn_passes_total"] != 2 {
					t.Errorf("%d refused, %d lies, %d passed", n["cache_slices_refused_total"], served, n["cdn_passes_total"])
				}
				if n["cdn_bytes_total"] != 30 {
					t.Errorf("%d bytes", n["cdn_bytes_total"])
				}
			})
		})
	}
}

func TestWhatSlicesNeedAndLackStreamsAsItComes(t *testing.T) {
	const size = 9 * mega
	for name, change := range map[string]func(http.Header){
		"no ranges":        func(h http.Header) { h.Set("Accept-Ranges", "none") },
		"a weak validator": func(h http.Header) { h.Set("Etag", `W/"a"`) },
		"a date too young": func(h http.Header) { h.Del("Etag"); h.Set("Last-Modified", h.Get("Date")) },
		"no date":          func(h http.Header) { h.Del("Etag"); h["Date"] = nil },
		"not to be kept":   func(h http.Header) { h.Set("Cache-Control", "no-store") },
	} {
		t.Run(name, func(t *testing.T) {
			inFleet(t, site("minTTL: 0"), alone(), func(w http.ResponseWriter, r *http.Request) {
				h := w.Header()
				h.Set("Date", time.Now().UTC().Format(http.TimeFormat))
				h.Set("Accept-Ranges", "bytes")
				h.Set("Etag", `"a"`)
				h.Set("Last-Modified", time.Unix(1e8, 0).UTC().Format(http.TimeFormat))
				h.Set("Content-Length", fmt.Sprint(size))
				change(h)
				w.Write(reel(1, 0, size))
			}, func(t *testing.T, f *fleet) {
				for range 2 {
					if a := f.must("icn-a", "/film", 200, "Miss", "*"); a.body != string(reel(1, 0, size)) {
						t.Error("another body")
					}
				}
				if n := f.nodes["icn-a"].Counters(); n["cache_sliced_total"] != 0 || f.requests() != 2 {
					t.Errorf("%d in slices, asked %d times", n["cache_sliced_total"], f.requests())
				}
			})
		})
	}
}

// sum is a counter of all nodes together.
func (f *fleet) sum(counter string) (n uint64) {
	for _, node := range f.nodes {
		n += node.Counters()[counter]
	}
	return n
}

func TestTheHeadDecidesForItsSlices(t *testing.T) {
	const size = 12 * mega
	tagged := site("") + "cacheTagConfig: {headerName: surrogate-key}\n"
	for name, forget := range map[string]struct {
		does     func(f *fleet, c *cinema)
		asks     []string // of the origin, for what was kept before
		validate bool     // its answer is 304
	}{
		"it is stale": {func(f *fleet, c *cinema) { time.Sleep(2 * time.Minute) }, []string{"whole"}, true},
		"it was purged softly": {func(f *fleet, c *cinema) {
			f.nodes["icn-a"].Purge(cache.Purge{Distribution: "site", Items: []string{"/f*"}, Soft: true})
		}, []string{"whole"}, true},
		"purges were missed": {func(f *fleet, c *cinema) { f.nodes["icn-a"].SetFence(true) }, []string{"whole"}, true},
		"its path was purged": {func(f *fleet, c *cinema) {
			f.nodes["icn-a"].Purge(cache.Purge{Distribution: "site", Items: []string{"/film"}})
		}, ranges(size, 5), false},
		"its tag was purged": {func(f *fleet, c *cinema) {
			f.nodes["icn-a"].Purge(cache.Purge{Distribution: "site", Items: []string{"#cult"}})
		}, ranges(size, 5), false},
		"it was changed by an unsafe method": {func(f *fleet, c *cinema) {
			f.ask("icn-a", "DELETE", "/film", nil)
			c.asked()
		}, ranges(size, 5), false},
	} {
		t.Run(name, func(t *testing.T) {
			inCinema(t, tagged, alone(), size, func(t *testing.T, f *fleet, c *cinema) {
				c.changes = func(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
					w.Header().Set("Surrogate-Key", "cult")
					return w
				}
				f.watch("icn-a", 1, 5*mega, 10, size)
				time.Sleep(time.Second) // till the slice is there whole
				c.asked()
				forget.does(f, c)
				a := f.watch("icn-a", 1, 5*mega, 10, size)
				if asked := c.asked(); !slices.Equal(asked, forget.asks) {
					t.Errorf("the origin was asked for %q", asked)
				}
				if is := a.Header.Get("X-Cache") == "RefreshHit from perigee"; is != forget.validate {
					t.Error(a.Header)
				}
				f.watch("icn-a", 1, 5*mega+100, 10, size)
				if asked := c.asked(); len(asked) > 0 && name != "purges were missed" {
					t.Errorf("then the origin was asked for %q", asked)
				}
			})
		})
	}
}

func TestSlicesAnswerAsTheWholeWould(t *testing.T) {
	const size = 12*mega + 5
	inCinema(t, site("requestDirectives: true"), alone(), size, func(t *testing.T, f *fleet, c *cinema) {
		whole := string(reel(1, 0, size))
		for round, cache := range []string{"Miss", "Hit", "Hit"} {
			a := f.must("icn-a", "/film", 200, cache, whole)
			if a.Header.Get("Accept-Ranges") != "bytes" || a.Header.Get("Etag") != `"film-1"` {
				t.Error(round, a.Header)
			}
			f.must("icn-a", "/film", 304, "Hit", "", `If-None-Match: "film-1"`)
			f.must("icn-a", "/film", 412, "Error", "", `If-Match: "film-2"`)
			f.must("icn-a", "/film", 206, "Hit", whole[mega-1:mega+1], "Range: bytes=1048575-1048576", `If-Range: "film-1"`)
			f.must("icn-a", "/film", 200, "Hit", whole, "Range: bytes=1048575-1048576", `If-Range: "film-0"`)
			f.must("icn-a", "/film", 206, "Hit", whole[size-7:], "Range: bytes=-7")
			f.must("icn-a", "/film", 416, "Error", "", fmt.Sprintf("Range: bytes=%d-", size))
			f.must("icn-a", "/film", 200, "Hit", whole, "Range: bytes=5-6,1-2")
			a = f.must("icn-a", "/film", 206, "Hit", "*", fmt.Sprintf("Range: bytes=0-1,1048570-3145730,%d-", size-1))
			_, boundary, _ := strings.Cut(a.Header.Get("Content-Type"), "boundary=")
			parts := multipart.NewReader(strings.NewReader(a.body), boundary)
			for _, want := range []string{whole[:2], whole[1048570:3145731], whole[size-1:]} {
				p, err := parts.NextPart()
				if err != nil {
					t.Fatal(err)
				}
				if got, err := io.ReadAll(p); err != nil || string(got) != want {
					t.Errorf("a part of %d bytes, %v; want %d", len(got), err, len(want))
				}
			}
			if a.Header.Get("Content-Length") != fmt.Sprint(len(a.body)) {
				t.Errorf("Content-Length %s of %d bytes", a.Header.Get("Content-Length"), len(a.body))
			}
			h, err := f.ask("icn-a", "HEAD", "/film", nil)
			if err != nil || h.StatusCode != 200 || h.Header.Get("Content-Length") != fmt.Sprint(size) || h.body != "" {
				t.Error(err, h.StatusCode, h.Header)
			}
			f.must("icn-a", "/film", 504, "Error", "*", "Cache-Control: only-if-cached")
		}
		if asked := c.asked(); !slices.Equal(asked, []string{"whole"}) {
			t.Errorf("the origin was asked for %q", asked)
		}
	})
}

func TestAHeadOfALargeObjectAsksForNoSlice(t *testing.T) {
	inCinema(t, site(""), alone(), 50<<30, func(t *testing.T, f *fleet, c *cinema) {
		h, err := f.ask("icn-a", "HEAD", "/film", nil)
		if err != nil || h.StatusCode != 200 || h.Header.Get("Content-Length") != fmt.Sprint(int64(50<<30)) {
			t.Error(err, h.StatusCode, h.Header)
		}
		time.Sleep(streamsEnd)
		if n := f.nodes["icn-a"].Counters(); n["cache_slices_cut_total"]+n["cache_slices_ranged_total"]+n["cache_slice_streams"] != 0 {
			t.Error(n)
		}
	})
}

// streamsEnd is when a response that nobody reads is closed.
const streamsEnd = 2 * time.Second

func TestTheNodesOfAPOPAskTheOriginOnceForEachSlice(t *testing.T) {
	const size = 12*mega + 77
	for _, c := range []struct {
		name, text string
		members    []view.Member
	}{
		{"one POP", site(""), three()},
		{"two regions, one of which is the shield", shielded, places()},
	} {
		t.Run(c.name, func(t *testing.T) {
			inCinema(t, c.text, c.members, size, func(t *testing.T, f *fleet, o *cinema) {
				var all sync.WaitGroup
				for name := range f.nodes {
					for i := range 3 {
						all.Go(func() {
							if i == 0 {
								time.Sleep(20 * time.Millisecond)
								if a, err := f.ask(name, "GET", "/film", nil); err != nil || a.body != string(reel(1, 0, size)) {
									t.Errorf("%s: %v after %d bytes", name, err, len(a.body))
								}
								return
							}
							f.watch(name, 1, int64(i)*5*mega-10, 20, size)
						})
					}
				}
				all.Wait()
				asked := o.asked()
				if n := len(asked); n > size/mega+2 || len(slices.Compact(asked)) != n {
					t.Errorf("the origin was asked %d times: %q", n, asked)
				}
			})
		})
	}
}

func TestWhatIsNotOwnedIsSlicedThroughAndKeptWhereItIsHot(t *testing.T) {
	const size = 12 * mega
	inCinema(t, site(""), three(), size, func(t *testing.T, f *fleet, c *cinema) {
		order := f.owners("/film", everywhere)
		owner, other := order[0], order[2]
		f.watch(owner, 1, 3*mega, mega, size)
		a := f.watch(other, 1, 3*mega, mega, size)
		if a.Header.Get("X-Cache") != "Hit from perigee" {
			t.Errorf("what the owner keeps: %v", a.Header)
		}
		before := f.nodes[other].Counters()["cdn_peer_requests_total"]
		for range hotRequests {
			f.watch(other, 1, 3*mega, mega, size)
		}
		mid := f.nodes[other].Counters()["cdn_peer_requests_total"]
		for range 10 {
			f.watch(other, 1, 3*mega, mega, size)
		}
		after := f.nodes[other].Counters()["cdn_peer_requests_total"]
		if mid-before < hotRequests-1 || after != mid {
			t.Errorf("the owner was asked %d times before the slice was hot, %d times after", mid-before, after-mid)
		}
		if asked := c.asked(); len(asked) > 2+slicesAhead {
			t.Errorf("the origin was asked for %q", asked)
		}
	})
}

func TestAnOwnerThatDiesAmidALargeObjectIsNotNoticed(t *testing.T) {
	const size = 20 * mega
	inCinema(t, site(""), three(), size, func(t *testing.T, f *fleet, c *cinema) {
		order := f.owners("/film", everywhere)
		owner, other := order[0], order[2]
		var all sync.WaitGroup
		all.Go(func() {
			_, body, broken := f.show(other, "/film", screen{takes: patient, pause: 10 * time.Millisecond}, nil)
			if broken || !bytes.Equal(body, reel(1, 0, size)) {
				t.Errorf("%d bytes came, broken off: %v", len(body), broken)
			}
		})
		time.Sleep(time.Second)
		f.nodes[owner].host.Kill()
		all.Wait()
	})
}

// TestAnyAnswerHasTheBytesOfOneVersion has viewers ask for anything of a large object that is more than the cache holds, while it changes, is
// purged and forgotten, its origin fails, breaks off and slows down, viewers leave and nodes are fenced.
func TestAnyAnswerHasTheBytesOfOneVersion(t *testing.T) {
	for seed := range uint64(2) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			members := alone()
			if seed%2 == 1 {
				members = three()
			}
			size := 60*mega + int64(seed)*77_777
			inCinema(t, site("defaultTTL: 5"), members, size+1, func(t *testing.T, f *fleet, c *cinema) {
				var version atomic.Int64
				version.Store(1)
				faults := newFaults(seed)
				c.changes = faults.change
				var viewers sync.WaitGroup
				var whole, cut atomic.Int64
				for i := range 5 {
					viewers.Go(func() {
						rng := rand.New(rand.NewPCG(seed, uint64(i)))
						for range 12 {
							time.Sleep(time.Duration(rng.Int64N(int64(3 * time.Second))))
							before := version.Load()
							node := members[rng.IntN(len(members))].Name
							start := rng.Int64N(size)
							h := http.Header{}
							switch rng.IntN(5) {
							case 0:
								h.Set("Range", fmt.Sprintf("bytes=%d-", start))
							case 1:
								h.Set("Range", fmt.Sprintf("bytes=-%d", 1+start%(3*mega)))
							case 2:
								h.Set("Range", fmt.Sprintf("bytes=%d-%d", start, start+rng.Int64N(3*mega)))
								h.Set("If-Range", (&film{version: before}).tag())
							default:
								h.Set("Range", fmt.Sprintf("bytes=%d-%d", start, start+rng.Int64N(3*mega)))
							}
							r, body, broken := f.show(node, "/film", screen{takes: 1 + rng.IntN(3*mega), pause: time.Duration(rng.Int64N(int64(20 * time.Millisecond)))}, h)
							var of, at, end, total int64
							switch fmt.Sscanf(r.Header.Get("Etag"), `"film-%d"`, &of); r.StatusCode {
							case 200:
								total = r.ContentLength
							case 206:
								fmt.Sscanf(r.Header.Get("Content-Range"), "bytes %d-%d/%d", &at, &end, &total)
							case 416, 502, 503, 504:
								continue
							default:
								t.Errorf("status %d", r.StatusCode)
								continue
							}
							if of < before-1 || of > version.Load() || total != size+of {
								t.Errorf("version %d of %d bytes, when it was %d of %d", of, total, before, size+before)
							}
							if !bytes.Equal(body, reel(of, at, int64(len(body)))) {
								t.Errorf("%d bytes from %d are not those of version %d", len(body), at, of)
							}
							if broken {
								cut.Add(1)
							} else {
								whole.Add(1)
							}
						}
					})
				}
				over := make(chan struct{})
				var disturbers sync.WaitGroup
				disturbers.Go(func() {
					rng := rand.New(rand.NewPCG(seed, 99))
					for {
						select {
						case <-over:
							return
						case <-time.After(time.Duration(rng.Int64N(int64(time.Second)))):
						}
						n := f.nodes[members[rng.IntN(len(members))].Name]
						switch rng.IntN(9) {
						case 0:
							c.shows(version.Load()+1, size+version.Load()+1)
							version.Add(1)
							time.Sleep(7 * time.Second) // what is fresh may be of the version before
						case 1:
							n.Purge(cache.Purge{Distribution: "site", Items: []string{"/film"}, Soft: rng.IntN(2) == 0})
						case 2:
							n.SetFence(true)
							time.Sleep(time.Second)
							n.SetFence(false)
						case 3:
							f.ask(n.name, "DELETE", "/film", nil)
						default:
							faults.next(rng)
						}
					}
				})
				viewers.Wait()
				close(over)
				disturbers.Wait()
				faults.none()
				time.Sleep(2 * time.Minute)
				t.Logf("%d answers came to their end or the viewer left, %d were cut off", whole.Load(), cut.Load())
				if whole.Load() < 30 {
					t.Errorf("only %d answers were good", whole.Load())
				}
				for _, m := range members {
					n := f.nodes[m.Name]
					if k := n.Counters(); n.ahead.Load() != 0 || k["cache_fills"] != 0 || k["cache_slice_streams"] != 0 || k["cache_bytes"] > 64*mega {
						t.Errorf("%s: %d held ahead, %d fills, %d streams, %d bytes are left", m.Name, n.ahead.Load(), k["cache_fills"], k["cache_slice_streams"], k["cache_bytes"])
					}
				}
				f.watch(members[0].Name, version.Load(), 7*mega, 10, size+version.Load())
			})
		})
	}
}

// faults are what an origin does wrong, one after the other.
type faults struct {
	mu  sync.Mutex
	do  int
	rng *rand.Rand
}

func newFaults(seed uint64) *faults { return &faults{rng: rand.New(rand.NewPCG(seed, 7))} }

func (f *faults) next(rng *rand.Rand) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.do = rng.IntN(4)
}

func (f *faults) none() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.do = 0
}

func (f *faults) change(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
	f.mu.Lock()
	do, one, some := f.do, f.rng.IntN(2) == 0, f.rng.IntN(2*mega)
	f.mu.Unlock()
	w.Header().Set("Cache-Control", "max-age=5")
	switch {
	case !one:
	case do == 1:
		return &cutShort{ResponseWriter: w, left: some}
	case do == 2 && r.Header.Get("Range") != "": // of the head it would be kept for a while
		w.Header().Del("Etag")
		w.WriteHeader(503)
		return nil
	case do == 3:
		time.Sleep(time.Duration(some) * time.Microsecond)
	}
	return w
}

// theater is who takes an answer without keeping it: he compares it with the film as it comes, and watches the memory.
type theater struct {
	header  http.Header
	t       *testing.T
	at      int64
	want    []byte // some of the film, from a place on
	from    int64
	highest uint64 // bytes of the heap that are in use
}

func (v *theater) Header() http.Header { return v.header }

func (v *theater) WriteHeader(int) {}

func (v *theater) Flush() {}

func (v *theater) Write(b []byte) (int, error) {
	for n := int64(len(b)); n > 0; {
		if v.at < v.from || v.at >= v.from+int64(len(v.want)) {
			v.from, v.want = v.at, reel(1, v.at, mega)
			if v.at%(64*mega) == 0 {
				runtime.GC()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				v.highest = max(v.highest, m.HeapAlloc)
			}
		}
		one := b[:min(n, v.from+int64(len(v.want))-v.at)]
		if !bytes.Equal(one, v.want[v.at-v.from:][:len(one)]) {
			v.t.Fatalf("the bytes at %d are others", v.at)
		}
		b, n, v.at = b[len(one):], n-int64(len(one)), v.at+int64(len(one))
	}
	return len(b), nil
}

func TestAnObjectOfAnySizePassesInBoundedMemory(t *testing.T) {
	const size = 128 * mega
	inCinema(t, site("defaultTTL: 86400"), alone(), size, func(t *testing.T, f *fleet, c *cinema) {
		for round := range 2 { // of what the first left, the second finds some: what stays is by chance (18 to 55 slices were seen)
			v := &theater{header: http.Header{}, t: t}
			r := httptest.NewRequest("GET", "http://www.test/film", nil).WithContext(t.Context())
			f.nodes["icn-a"].ServeHTTP(v, r)
			if v.at != size {
				t.Errorf("%d bytes came", v.at)
			}
			if bound := uint64(64+16) << 20; v.highest > bound { // the cache, and all else that there is
				t.Errorf("the heap had %d bytes, of which %d are allowed", v.highest, bound)
			}
			asked := c.asked()
			t.Logf("round %d: the heap had %d MiB, the origin was asked %d times", round, v.highest>>20, len(asked))
			if most := [...]int{1, size/mega - 8}; len(asked) > most[round] {
				t.Errorf("the origin was asked %d times", len(asked))
			}
		}
	})
}

func TestWhereThereIsNoRoomForSlicesTheyPassThrough(t *testing.T) {
	const size, viewers = 60 * mega, 30
	inCinema(t, site(""), alone(), size, func(t *testing.T, f *fleet, c *cinema) {
		c.changes = func(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			time.Sleep(time.Second)
			return w
		}
		f.ask("icn-a", "GET", "/other", nil) // fills the cache but for the part that is for fills
		f.watch("icn-a", 1, 0, 1, size)
		time.Sleep(streamsEnd)
		var all sync.WaitGroup
		for i := range int64(viewers) {
			all.Go(func() { f.watch("icn-a", 1, (i*2+1)*mega+100, mega/2, size) })
			all.Go(func() { f.watch("icn-a", 1, (i*2+1)*mega+200, mega/2, size) })
		}
		time.Sleep(1500 * time.Millisecond) // the origin sends now
		for range 100 {
			if n := f.nodes["icn-a"].Counters()["cache_bytes"]; n > 64*mega {
				t.Errorf("%d bytes are held", n)
			}
			time.Sleep(10 * time.Millisecond)
		}
		all.Wait()
		if n := f.nodes["icn-a"].Counters(); n["cache_slices_ranged_total"] <= viewers {
			t.Errorf("%d slices were asked for: there was room for all", n["cache_slices_ranged_total"])
		}
	})
}

// read has a viewer ask a node for a part of the film.
func (f *fleet) read(t *testing.T, node string, h http.Header) string {
	a, err := f.ask(node, "GET", "/film", h)
	if err != nil || a.StatusCode != 206 {
		t.Fatal(err, a.StatusCode, a.Header)
	}
	return a.body
}

func TestSlicesOfVariantsAreApart(t *testing.T) {
	const size = 12 * mega
	serve := func(w http.ResponseWriter, r *http.Request) {
		version := int64(1)
		if r.Header.Get("X-Lang") == "ko" {
			version = 2
		}
		w.Header().Set("Vary", "X-Lang")
		w.Header().Set("Last-Modified", time.Unix(1e8, 0).UTC().Format(http.TimeFormat)) // of both: a validator that tells nothing of variants
		http.ServeContent(w, r, "", time.Unix(1e8, 0), &film{size: size, version: version})
	}
	for _, members := range [][]view.Member{alone(), three()} {
		inFleet(t, site("headers: {behavior: whitelist, items: [X-Lang]}"), members, serve, func(t *testing.T, f *fleet) {
			for range 2 {
				for version, lang := range map[int64]string{1: "en", 2: "ko"} {
					for _, m := range members {
						a := f.read(t, m.Name, header("X-Lang: "+lang, "Range: bytes=1048570-5000000"))
						if a != string(reel(version, 1048570, 5000000-1048570+1)) {
							t.Errorf("%s gets another film", lang)
						}
					}
				}
			}
			if n := f.nodes["icn-a"].Counters(); n["cache_sliced_total"] != 2 {
				t.Errorf("%d objects in slices", n["cache_sliced_total"])
			}
		})
	}
}

func TestItIsExplainedThatAnObjectIsInSlices(t *testing.T) {
	inCinema(t, site(""), alone(), 12*mega, func(t *testing.T, f *fleet, c *cinema) {
		f.watch("icn-a", 1, 5, 5, 12*mega)
		at, _ := url.Parse("http://www.test/film")
		tr := new(trace.Trace)
		was, err := f.nodes["icn-a"].Explain("GET", at, tr)
		if err != nil || was != "hit: status 200, fresh for another 1m0s" || !strings.Contains(tr.String(), "12582912 bytes") || !strings.Contains(tr.String(), "in slices of 1048576 bytes") {
			t.Errorf("%v, %s\n%s", err, was, tr)
		}
	})
}

// Whatever an origin makes of ranges, and whatever ranges viewers ask for: no body is of two versions, none is taken for another part than it is, and
// nothing is kept that was said to a Range alone but the part that was asked for.
func TestNoOriginAndNoRangeMixVersions(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 7))
			size := []int64{2*mega + 77, 4 * mega, 9*mega + 5}[r.IntN(3)]
			members := alone()
			if seed%4 == 3 {
				members = three()
			}
			var mu sync.Mutex // guards
			chance := rand.New(rand.NewPCG(seed, 8))
			lies := chance.Float64() * 0.7
			inCinema(t, site(""), members, size, func(t *testing.T, f *fleet, c *cinema) {
				c.changes = func(w http.ResponseWriter, q *http.Request) http.ResponseWriter {
					mu.Lock()
					defer mu.Unlock()
					switch chance.IntN(16) {
					case 0:
						w.Header().Set("Etag", "W/"+w.Header().Get("Etag"))
					case 1:
						w.Header().Del("Etag")
					}
					w = &digested{w}
					if q.Header.Get("Range") == "" || chance.Float64() > lies {
						return w
					}
					if n := chance.IntN(9); n < 6 {
						w.Header().Set("Content-Length", "0")
						w.WriteHeader([]int{204, 403, 404, 416, 500, 503}[n])
						return nil
					}
					c.mu.Lock()
					version, of := c.film.version, c.film.size
					c.mu.Unlock()
					switch chance.IntN(3) {
					case 0:
						q.Header.Del("Range")
						return w
					case 1:
						of += mega
					}
					start := chance.Int64N(mega)
					w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, start+99, of))
					w.Header().Set("Content-Length", "100")
					w.WriteHeader(206)
					w.Write(reel(version, start, 100))
					return nil
				}
				version := int64(1)
				for range 12 {
					switch r.IntN(10) {
					case 0:
						version++
						c.shows(version, size)
					case 1:
						time.Sleep(61 * time.Second)
					case 2:
						time.Sleep(time.Second)
					}
					var viewers sync.WaitGroup
					for range 1 + r.IntN(3) {
						start, path := r.Int64N(size), fmt.Sprint("/films/", r.IntN(4))
						part := fmt.Sprintf("bytes=%d-%d", start, start+r.Int64N(mega))
						asked := [...]string{"", fmt.Sprintf("bytes=%d-", start), part, part, part, part, "bytes=-99", "bytes=1048576-1048576"}[r.IntN(8)]
						viewers.Go(func() {
							header := http.Header{}
							if asked != "" {
								header.Set("Range", asked)
							}
							a, err := f.ask("icn-a", "GET", path, header)
							if err != nil {
								return // cut off, as is due to who has begun to read what has changed
							}
							hit, digest := a.Header.Get("X-Cache") == "Hit from perigee", a.Header.Get("Content-Digest")
							at, total := int64(0), size
							switch a.StatusCode {
							case 200:
							case 206:
								var last int64
								if _, err := fmt.Sscanf(a.Header.Get("Content-Range"), "bytes %d-%d/%d", &at, &last, &total); err != nil || int64(len(a.body)) != last-at+1 {
									t.Errorf("%q: %v", asked, a.Header)
								}
							default:
								// Of who asks for no range, the first slice may be missing, and not come from the origin in any try.
								if hit || asked == "" && a.StatusCode != http.StatusBadGateway {
									t.Errorf("%q: %d, %v", asked, a.StatusCode, a.Header)
								}
								return
							}
							if (a.StatusCode == 200 || hit) && (digest == "part" || total != size) || a.StatusCode == 206 && digest == "whole" {
								t.Errorf("%q: %d, %v", asked, a.StatusCode, a.Header)
							}
							for v := version; v > 0; v-- {
								is := func(length int64) bool { return a.body[:length] == string(reel(v, at, length)) }
								if n := int64(len(a.body)); is(min(n, frame)) && is(n) && (a.StatusCode == 206 || n == size) {
									return
								}
							}
							t.Errorf("%q: %d, %d bytes of no version, %v", asked, a.StatusCode, len(a.body), a.Header)
						})
					}
					viewers.Wait()
				}
				n := f.sum
				t.Logf("%d bytes: sought %d, joined %d, cut %d, ranged %d, changed %d, refused %d", size, n("cache_slices_sought_total"), n("cache_slices_joined_total"),
					n("cache_slices_cut_total"), n("cache_slices_ranged_total"), n("cache_slices_changed_total"), n("cache_slices_refused_total"))
			})
		})
	}
}

// digested is an answer whose part has a digest of its own, and that has no date, which would be the same for all versions.
type digested struct{ http.ResponseWriter }

func (d *digested) WriteHeader(code int) {
	d.Header().Del("Last-Modified")
	switch code {
	case 200:
		d.Header().Set("Content-Digest", "whole")
	case 206:
		d.Header().Set("Content-Digest", "part")
	}
	d.ResponseWriter.WriteHeader(code)
}
