package cache

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// tagged answers with a body, whose tag is itself; or with 304 if that was offered.
func tagged(body string, lines ...string) func(context.Context, http.Header) (*http.Response, error) {
	return func(_ context.Context, check http.Header) (*http.Response, error) {
		tag := fmt.Sprintf("%q", body)
		lines := append([]string{"Etag: " + tag, "Cache-Control: max-age=10"}, lines...)
		if matchesAny(check["If-None-Match"], tag, weakMatch) {
			return response(304, 0, strings.NewReader(""), lines...), nil
		}
		return response(200, int64(len(body)), strings.NewReader(body), lines...), nil
	}
}

// check is the If-None-Match that the origin was asked with last.
func (w *world) check() string { return w.last.Load().Get("If-None-Match") }

func TestAMissingVariantIsAskedForByTheTagsOfTheOthers(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.policy = policy(keyed(only("X-Lang"), none, none))
		w.answer = tagged("western")
		w.mustGet("/", "filled", "western", "X-Lang: en")
		w.answer = tagged("eastern")
		w.mustGet("/", "filled", "eastern", "X-Lang: ko")
		if got := w.check(); got != `"western"` {
			t.Errorf("offered %s", got)
		}
		time.Sleep(5 * time.Second)
		w.answer = tagged("western")
		w.mustGet("/", "validated", "western", "X-Lang: de")
		if got := w.check(); got != `"eastern", "western"` {
			t.Errorf("offered %s", got)
		}
		w.mustGet("/", "hit", "western", "X-Lang: de")
		time.Sleep(6 * time.Second)
		w.mustGet("/", "hit", "western", "X-Lang: de")
		w.mustGet("/", "hit", "western", "X-Lang: en")    // which is fresh anew, too (RFC 9111 §4.3.4)
		w.mustGet("/", "filled", "western", "X-Lang: ko") // by its own tag, which is another now
		if got := w.check(); got != `"eastern"` {
			t.Errorf("asked with %s", got)
		}
	})
}

func TestA304OfNoVariantThatWasOfferedIsAskedAgain(t *testing.T) {
	for what, tag := range map[string]string{"another": `Etag: "other"`, "none": "X-None: 1"} {
		inWorld(t, func(t *testing.T, w *world) {
			w.policy = policy(keyed(only("X-Lang"), none, none))
			w.answer = tagged("a")
			w.mustGet("/", "filled", "a", "X-Lang: en")
			w.answer = func(ctx context.Context, check http.Header) (*http.Response, error) {
				if check != nil {
					return response(304, 0, strings.NewReader(""), tag), nil
				}
				return tagged("b")(ctx, nil)
			}
			w.mustGet("/", "filled", "b", "X-Lang: ko")
			if w.asked.Load() != 3 {
				t.Errorf("%s: asked %d times", what, w.asked.Load())
			}
		})
	}
}

// An origin that gives all codings of a response one tag must not have a viewer sent one that it cannot read.
func TestNoCodingIsOfferedThatTheRequestDoesNotTake(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		coded := func(coding string) func(context.Context, http.Header) (*http.Response, error) {
			return soon("in "+coding, `Etag: "same"`, "Vary: Accept-Encoding", "Content-Encoding: "+coding)
		}
		w.answer = coded("br")
		w.mustGet("/", "filled", "in br", "Accept-Encoding: br")
		w.answer = coded("gzip")
		w.mustGet("/", "filled", "in gzip", "Accept-Encoding: gzip")
		if got := w.check(); got != "" {
			t.Errorf("one who takes gzip is offered %s", got)
		}
		w.mustGet("/", "filled", "in gzip", "Accept-Encoding: br, gzip")
		if got := w.check(); got != `"same"` {
			t.Errorf("one who takes both is offered %s", got)
		}
	})
}

func TestWhatWasPurgedIsNotOffered(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.policy = policy(keyed(only("X-Lang"), none, none))
		w.policy.TagHeader = "Cache-Tag"
		w.answer = tagged("a", "Cache-Tag: a")
		w.mustGet("/", "filled", "a", "X-Lang: en")
		w.answer = tagged("b", "Cache-Tag: b")
		w.mustGet("/", "filled", "b", "X-Lang: ko")
		w.Purge(Purge{Items: []string{"#a"}})
		w.answer = tagged("a")
		w.mustGet("/", "filled", "a", "X-Lang: de")
		if got := w.check(); got != `"b"` {
			t.Errorf("offered %s", got)
		}
		// Purged on the way: it is not what the 304 is about any more.
		w.answer = func(ctx context.Context, check http.Header) (*http.Response, error) {
			w.Purge(Purge{Items: []string{"/*"}})
			return tagged("b")(ctx, check)
		}
		w.mustGet("/", "filled", "b", "X-Lang: fr")
	})
}

func TestOnlySoManyVariantsAreOfferedAndTheirTagsCount(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.policy = policy(keyed(only("X-Lang"), none, none))
		for i := range 2 * maxOffers {
			w.answer = tagged(fmt.Sprint(i))
			w.mustGet("/", "filled", fmt.Sprint(i), fmt.Sprint("X-Lang: ", i))
		}
		w.answer = tagged("x")
		w.mustGet("/", "filled", "x", "X-Lang: x")
		if got := w.check(); strings.Count(got, ",") != maxOffers-1 || !strings.HasPrefix(got, `"15", "14", `) {
			t.Errorf("offered %s", got)
		}
		kept := int64(0)
		for _, e := range w.stored.All() {
			kept += int64(e.weight)
		}
		if counted := w.bytes.Load(); counted != kept {
			t.Errorf("%d bytes are counted, %d kept", counted, kept)
		}
		long := strings.Repeat("y", maxOfferTag)
		w.answer = tagged(long)
		w.mustGet("/long", "filled", long, "X-Lang: a")
		w.mustGet("/long", "filled", long, "X-Lang: b")
	})
}

func TestA304ThatChangesWhatSelectsTheResponseMovesIt(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.answer = tagged("plain")
		w.mustGet("/", "filled", "plain", "Accept-Encoding: gzip")
		w.mustGet("/", "hit", "plain", "Accept-Encoding: br")
		time.Sleep(10 * time.Second)
		w.answer = tagged("plain", "Vary: Accept-Encoding")
		w.mustGet("/", "validated", "plain", "Accept-Encoding: gzip")
		w.mustGet("/", "hit", "plain", "Accept-Encoding: gzip")
		w.answer = tagged("in br", "Vary: Accept-Encoding")
		w.mustGet("/", "filled", "in br", "Accept-Encoding: br")
		w.mustGet("/", "hit", "plain", "Accept-Encoding: gzip")
	})
}

func TestAHEADThatChangesWhatSelectsTheResponseForgetsIt(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.answer = tagged("plain")
		w.mustGet("/", "filled", "plain", "Accept-Encoding: gzip")
		want := w.want("/", "Accept-Encoding: gzip")
		w.Headed(want, w.find(want), header(`Etag: "plain"`, "Cache-Control: max-age=60", "Vary: Accept-Encoding"), time.Now())
		w.mustGet("/", "filled", "plain", "Accept-Encoding: gzip")
	})
}

func TestWhatA304SelectsOrMovesIsOnDiskWhereItIsLookedFor(t *testing.T) {
	for _, size := range []int{100, promoted + 1} {
		inShelvedWorld(t, func(t *testing.T, w *shelved) {
			w.policy = policy(keyed(only("X-Lang"), none, none))
			body := sized(size, 1)
			origin := func(lines ...string) func(context.Context, http.Header) (*http.Response, error) {
				return func(_ context.Context, check http.Header) (*http.Response, error) {
					lines := append([]string{`Etag: "1"`, "Cache-Control: max-age=10"}, lines...)
					if check.Get("If-None-Match") == `"1"` {
						return response(304, 0, strings.NewReader(""), lines...), nil
					}
					return response(200, int64(size), strings.NewReader(body), lines...), nil
				}
			}
			w.answer = origin()
			w.mustGet("/", "filled", body, "X-Lang: en")
			w.mustGet("/", "validated", body, "X-Lang: ko")
			w.restart()
			w.mustGet("/", "hit", body, "X-Lang: en")
			w.mustGet("/", "hit", body, "X-Lang: ko")

			w.policy = policy()
			w.mustGet("/moved", "filled", body)
			w.restart()
			w.mustGet("/moved", "hit", body)
			time.Sleep(10 * time.Second)
			w.answer = origin("Vary: Accept-Encoding")
			if _, got, err := w.get(t.Context(), w.want("/moved")); got != body && err != ErrLost { // look again: it is lost
				t.Errorf("%d bytes, %v", len(got), err)
			}
			w.mustGet("/moved", map[bool]string{true: "hit", false: "filled"}[size <= promoted], body)
			w.restart()
			w.mustGet("/moved", "hit", body)
		})
	}
}
