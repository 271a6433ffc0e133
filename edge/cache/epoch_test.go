package cache

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// tagged is a world whose policy knows tags.
func inTaggedWorld(t *testing.T, test func(t *testing.T, w *world)) {
	inWorld(t, func(t *testing.T, w *world) {
		w.policy.TagHeader = "Cache-Tag"
		test(t, w)
	})
}

func TestAPurgeByTagTakesWhatHasTheTag(t *testing.T) {
	inTaggedWorld(t, func(t *testing.T, w *world) {
		w.answer = soon("shoes", "Cache-Tag: Shoes, sale", "Vary: Accept-Encoding")
		w.mustGet("/shoes", "filled", "shoes")
		w.mustGet("/shoes", "filled", "shoes", "Accept-Encoding: br")
		w.answer = soon("hats", "Cache-Tag: hats", "Cache-Tag: SALE")
		w.mustGet("/hats", "filled", "hats")
		w.answer = soon("plain")
		w.mustGet("/plain", "filled", "plain")
		w.Purge(Purge{Distribution: "shop", Items: []string{"#sho", "#shoes*", "#", "#a,b", "#" + strings.Repeat("x", 257)}})
		w.Purge(Purge{Distribution: "other", Items: []string{"#shoes"}})
		w.mustGet("/shoes", "hit", "shoes")

		w.Purge(Purge{Distribution: "shop", Items: []string{"#sHOES"}})
		w.mustGet("/hats", "hit", "hats")
		w.answer = soon("boots", "Cache-Tag: boots", "Vary: Accept-Encoding")
		w.mustGet("/shoes", "filled", "boots")
		w.mustGet("/shoes", "filled", "boots", "Accept-Encoding: br")

		w.Purge(Purge{Items: []string{"#sale"}})
		w.mustGet("/shoes", "hit", "boots")
		w.mustGet("/plain", "hit", "plain")
		if w.find(w.want("/hats")).Object != nil {
			t.Error("hats are kept")
		}
		if n := w.Counters()["cache_purged_total"]; n != 3 {
			t.Errorf("%d are counted", n)
		}
	})
}

func TestAValidationBringsNewTags(t *testing.T) {
	inTaggedWorld(t, func(t *testing.T, w *world) {
		w.answer = soon("v", "Cache-Tag: old", `Etag: "1"`, "Cache-Control: max-age=1")
		w.mustGet("/", "filled", "v")
		time.Sleep(time.Minute)
		w.answer = func(context.Context, http.Header) (*http.Response, error) {
			return response(304, 0, http.NoBody, `Etag: "1"`, "Cache-Tag: new", "Cache-Control: max-age=3600"), nil
		}
		w.mustGet("/", "validated", "v")
		w.Purge(Purge{Items: []string{"#old"}})
		w.mustGet("/", "hit", "v")
		w.Purge(Purge{Items: []string{"#new"}})
		if w.find(w.want("/")).Object != nil {
			t.Error("it is kept")
		}
	})
}

func TestTagsBeyondTheirBoundsAreCountedAndDoNotTag(t *testing.T) {
	inTaggedWorld(t, func(t *testing.T, w *world) {
		var many []string
		for i := range maxTags {
			many = append(many, fmt.Sprint("t", i))
		}
		long := strings.Repeat("l", maxTag)
		w.answer = soon("v", "Cache-Tag: "+long+"l, a b,é,,"+strings.Join(many, ",")+", T0, over")
		w.mustGet("/", "filled", "v")
		w.Purge(Purge{Items: []string{"#over", "#a", "#b", "#" + long}})
		w.mustGet("/", "hit", "v")
		if n := w.Counters()["cache_bad_tags_total"]; n != 4 {
			t.Errorf("%d are counted", n)
		}
		w.Purge(Purge{Items: []string{"#t49"}})
		if w.find(w.want("/")).Object != nil {
			t.Error("it is kept")
		}
	})
}

func TestWhatIsOnItsWayMayHaveAnyTagUntilItsHeadIsThere(t *testing.T) {
	for _, headed := range []bool{false, true} {
		inTaggedWorld(t, func(t *testing.T, w *world) {
			w.answer = func(context.Context, http.Header) (*http.Response, error) {
				if !headed {
					time.Sleep(time.Second)
				}
				return response(200, -1, dripping("old"), "Cache-Tag: a"), nil
			}
			var wg sync.WaitGroup
			wg.Go(func() { w.mustGet("/", "filled", "old") })
			defer wg.Wait()
			synctest.Wait()
			w.Purge(Purge{Items: []string{"#b"}})
			w.answer = soon("new", "Cache-Tag: c")
			if headed { // it has not the tag
				w.mustGet("/", "filled", "old")
			} else {
				w.mustGet("/", "filled", "new")
			}
			w.Purge(Purge{Items: []string{"#a"}})
			w.answer = soon("newer")
			if headed {
				w.mustGet("/", "filled", "newer")
			} else {
				w.mustGet("/", "hit", "new")
			}
		})
	}
}

func TestAPurgeOfAHostTakesWhatThatHostIsServed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.answer = soon("v")
		of := func(distribution, host, path string) Want {
			return Want{Key: w.policy.Key(Target{Distribution: distribution, Scheme: "http", Host: host, Path: path}, nil), Policy: w.policy, Fetch: w.fetch}
		}
		all := []Want{of("d", "a.test", "/x"), of("d", "a.test:8080", "/y"), of("d", "b.test", "/x"), of("d", "", "/x"), of("e", "a.test", "/x"), of("e", "", "/x")}
		for _, c := range []struct {
			purge Purge
			gone  []int
		}{
			{Purge{Host: "A.test."}, []int{0, 1, 4}},
			{Purge{Distribution: "d", Host: "a.test:443"}, []int{0, 1, 3}},
			{Purge{Distribution: "d", Host: "a.test", Items: []string{"/x"}}, []int{0, 3}},
			{Purge{Distribution: "d", Host: "c.test", Items: []string{"/*"}}, []int{3}},
			{Purge{Host: "b.test", Items: []string{"/x", "/y*"}}, []int{2}},
		} {
			for _, want := range all {
				if _, _, err := w.get(t.Context(), want); err != nil {
					t.Fatal(err)
				}
			}
			w.Purge(c.purge)
			var gone []int
			for i, want := range all {
				if w.find(want).Object == nil {
					gone = append(gone, i)
				}
			}
			if !slices.Equal(gone, c.gone) {
				t.Errorf("%+v: gone are %v, want %v", c.purge, gone, c.gone)
			}
		}
	})
}

func TestASoftPurgeMakesStale(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		const swr = "Cache-Control: max-age=3600, stale-while-revalidate=60, stale-if-error=600"
		w.answer = soon("old", swr, `Etag: "1"`)
		for _, path := range []string{"/a", "/late", "/failing", "/hard", "/other"} {
			w.mustGet(path, "filled", "old")
		}
		w.answer = soon("strict", "Cache-Control: max-age=3600", `Etag: "1"`)
		w.mustGet("/strict", "filled", "strict")
		time.Sleep(time.Minute)
		w.Purge(Purge{Items: []string{"/a", "/late", "/failing", "/hard", "/strict"}, Soft: true})

		w.answer = func(_ context.Context, c http.Header) (*http.Response, error) {
			return response(304, 0, http.NoBody, `Etag: "1"`), nil
		}
		w.mustGet("/a", "stale", "old") // and is asked for meanwhile
		synctest.Wait()
		w.mustGet("/a", "hit", "old")
		w.mustGet("/strict", "validated", "strict")
		w.mustGet("/strict", "hit", "strict")
		w.mustGet("/other", "hit", "old")

		w.Purge(Purge{Items: []string{"/hard"}})
		if w.find(w.want("/hard")).Object != nil {
			t.Error("hard after soft is kept")
		}
		time.Sleep(70 * time.Second) // after the time it may be used unasked, though nobody has looked at it since the purge
		w.answer = soon("new", swr)
		w.mustGet("/late", "filled", "new")
		w.answer = func(context.Context, http.Header) (*http.Response, error) { return nil, io.ErrUnexpectedEOF }
		w.mustGet("/failing", "covered", "old")
		if n := w.Counters(); n["cache_softened_total"] != 4 || n["cache_purged_total"] != 1 {
			t.Errorf("counted %v", n)
		}
	})
}

func TestTheSweepGivesBackWhatWasPurgedAndForgets(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.answer = soon("v", "Vary: Accept-Encoding")
		const n = 3 * sweepPiece
		for i := range n {
			w.mustGet(fmt.Sprint("/", i%2, "/", i), "filled", "v")
		}
		held, kept := w.bytes.Load(), w.stored.EstimatedSize()
		w.Purge(Purge{Items: []string{"/1/*"}})
		if w.bytes.Load() != held || w.Counters()["cache_purge_rules"] != 1 {
			t.Error("it was done at once")
		}
		time.Sleep(10 * time.Second)
		if now := w.bytes.Load(); now < held*45/100 || now > held*55/100 || w.stored.EstimatedSize() != kept/2 {
			t.Errorf("%d bytes of %d, %d entries of %d", now, held, w.stored.EstimatedSize(), kept)
		}
		if c := w.Counters(); c["cache_purge_rules"] != 0 || c["cache_purged_total"] != n/2 {
			t.Errorf("counted %v", c)
		}
		w.mustGet("/0/0", "hit", "v")
		w.mustGet("/1/1", "filled", "v")
		w.mustGet("/1/1", "hit", "v")
		w.Purge(Purge{Items: []string{"/0/*"}})
		w.Close() // does not wait for the sweep
		w.running.Wait()
	})
}

// purged is what one rule after the other says, without any of what makes Purges quick, and how often the one thing was purged softly that was
// so most often.
func purged(rules []Rule, distribution, host, path string, tags []string, seen uint64) (v Verdict, newest time.Time, often int) {
	times := map[Rule]int{}
	for _, r := range rules {
		here := (r.Distribution == "" || r.Distribution == distribution) && (r.Host == "" || r.Host == host || host == "" && r.Host == noHost)
		switch r.Kind {
		case RulePath:
			here = here && path == r.Text
		case RulePrefix:
			here = here && strings.HasPrefix(path, r.Text)
		case RuleTag:
			here = here && slices.Contains(tags, r.Text)
		}
		if here && r.Soft {
			times[Rule{Distribution: r.Distribution, Host: r.Host, Kind: r.Kind, Text: r.Text}]++
		}
		switch {
		case !here || r.Seq <= seen:
		case !r.Soft:
			v.Hard = true
		case v.Soft:
			newest = r.At
		default:
			v.Soft, v.At, newest = true, r.At, r.At
		}
	}
	for _, n := range times {
		often = max(often, n)
	}
	return v, newest, often
}

func TestPurgesJudgeAsOneRuleAfterTheOther(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	pick := func(from ...string) string { return from[r.IntN(len(from))] }
	path := func() string { return "/" + pick("a", "b") + pick("", "/", "/x", "/y") + pick("", "?q=1") }
	verdicts := map[string]int{}
	for range 300 {
		var p Purges
		var rules []Rule
		for range r.IntN(30) {
			what := Purge{Distribution: pick("", "d", "e"), Host: pick("", "", "h.test"), Soft: r.IntN(2) == 0}
			for range r.IntN(3) {
				what.Items = append(what.Items, pick(path(), path(), path()+"*", "#t"+pick("1", "2", "3"), "/*"))
			}
			if r.IntN(2) == 0 && len(what.Items) > 0 && what.Items[0] == "/*" {
				what.Items[0] = "/a"
			}
			at := time.Unix(int64(len(rules)), 0)
			seq := p.Purge(what, at)
			for _, rule := range what.rules() {
				rule.Seq, rule.At = seq, at
				rules = append(rules, rule)
			}
			if r.IntN(10) == 0 {
				var again Purges // as another process would that was told the rules
				for _, rule := range p.Rules() {
					again.Add(rule)
				}
				again.newest, again.floor = p.newest, p.floor
				p = again
			}
			if r.IntN(10) == 0 {
				p.Forget(p.Newest() / 2)
			}
		}
		for range 50 {
			distribution, host, at := pick("d", "e", "f"), pick("", "h.test", "i.test"), path()
			tags := []string{"t" + pick("1", "2"), "t" + pick("3", "4")}
			file, query, _ := strings.Cut(at, "?")
			uri := policy(keyed(none, none, all)).Key(Target{Distribution: distribution, Host: host, Path: file, Query: query}, nil).URI
			seen := p.floor + r.Uint64N(p.newest-p.floor+1)
			got := p.Judge(uri, strings.Join(tags, ","), seen)
			want, newest, often := purged(rules, distribution, host, at, tags, seen)
			switch {
			case want.Hard || got.Hard: // then it does not matter whether it is soft, too
				got.Soft, got.At, want.Soft, want.At = false, time.Time{}, false, time.Time{}
			case often > 2 && !got.At.Before(want.At) && !got.At.After(newest): // of many only the oldest and the newest are known
				got.At = want.At
			}
			if got != want {
				t.Fatalf("%s %s%s %v since %d: %+v, want %+v, of %+v", distribution, host, at, tags, seen, got, want, rules)
			}
			verdicts[fmt.Sprint(got.Hard, got.Soft)]++
		}
	}
	if len(verdicts) != 3 {
		t.Errorf("verdicts %v", verdicts)
	}
}

func TestPurgesBeyondTheirBoundPurgeMoreNeverLess(t *testing.T) {
	uri := func(distribution, path string) string {
		return policy().Key(Target{Distribution: distribution, Path: path}, nil).URI
	}
	for name, item := range map[string]func(i int) Purge{
		"paths of one distribution": func(i int) Purge { return Purge{Distribution: "d0", Items: []string{fmt.Sprint("/", i)}} },
		"distributions":             func(i int) Purge { return Purge{Distribution: fmt.Sprint("d", i), Items: []string{fmt.Sprint("/", i)}} },
		"long paths": func(i int) Purge {
			return Purge{Distribution: "d0", Items: []string{fmt.Sprint("/", i, strings.Repeat("x", 3000), "*")}}
		},
		"hosts":               func(i int) Purge { return Purge{Distribution: "d0", Host: fmt.Sprint("h", i), Soft: i%2 == 0} },
		"whole distributions": func(i int) Purge { return Purge{Distribution: fmt.Sprint("d", i), Items: []string{"/*"}} },
		"an order of many": func(i int) Purge {
			p := Purge{Distribution: "d0"}
			for j := range 3000 {
				p.Items = append(p.Items, fmt.Sprint("/", i, "/", j))
			}
			return p
		},
	} {
		t.Run(name, func(t *testing.T) {
			var p Purges
			purges := 2 * maxMarks
			switch name {
			case "an order of many":
				purges = 30
			case "long paths":
				purges = 3000
			}
			for i := range purges {
				what := item(i)
				seq := p.Purge(what, time.Unix(int64(i), 0))
				if p.Len() > maxMarks || p.bytes > maxMarkBytes {
					t.Fatalf("%d rules of %d bytes", p.Len(), p.bytes)
				}
				if seq != uint64(i+1) || p.Newest() != seq {
					t.Fatalf("purge %d is number %d, the newest %d", i, seq, p.Newest())
				}
				if i%997 != 0 {
					continue
				}
				for _, j := range []int{0, i / 2, i} { // what was kept before each, whether that is long ago or not
					first := item(j)
					path := "/"
					if len(first.Items) > 0 {
						path = strings.TrimSuffix(first.Items[0], "*")
					}
					if v := p.Judge(uri(first.Distribution, path), "", uint64(j)); v.Hard == false && v.Soft == false {
						t.Fatalf("purge %d is forgotten after %d", j, i)
					}
				}
				if v := p.Judge(uri(what.Distribution, "/none"), "", seq); v != (Verdict{}) {
					t.Fatalf("what came after purge %d is purged: %v", i, v)
				}
			}
			if name == "paths of one distribution" && p.Judge(uri("d1", "/0"), "", 0) != (Verdict{}) {
				t.Error("another distribution is purged")
			}
		})
	}
}

// FuzzTags: what is read of a header is tags within bounds, and each of them purges.
func FuzzTags(f *testing.F) {
	f.Add("a, B,c", "")
	f.Add("a b,\x00,é", "a")
	f.Fuzz(func(t *testing.T, one, two string) {
		tags, _ := parseTags([]string{one, two})
		if tags == "" {
			return
		}
		all := strings.Split(tags, ",")
		if len(all) > maxTags {
			t.Fatalf("%d tags", len(all))
		}
		for _, tag := range all {
			var p Purges
			p.Purge(Purge{Items: []string{"#" + strings.ToUpper(tag)}}, time.Unix(1, 0))
			if !validTag(tag) || !p.Judge(policy().Key(Target{Path: "/"}, nil).URI, tags, 0).Hard {
				t.Errorf("%q of %q", tag, tags)
			}
		}
		if again, refused := parseTags([]string{tags}); again != tags || refused != 0 {
			t.Errorf("%q is read again as %q", tags, again)
		}
	})
}

// BenchmarkJudge is of a response that was last looked at before as many purges as are held.
func BenchmarkJudge(b *testing.B) {
	var p Purges
	for i := range maxMarks / 2 {
		p.Purge(Purge{Distribution: "shop", Items: []string{fmt.Sprintf("/other/%d", i), fmt.Sprintf("/wild%04d/*", i%1000)}}, time.Unix(1, 0))
	}
	uri := policy().Key(Target{Distribution: "shop", Path: "/some/folder/of/things/1.jpg"}, nil).URI
	b.ReportAllocs()
	for b.Loop() {
		if p.Judge(uri, "one,two,three", 0).Hard {
			b.Fatal("purged")
		}
	}
}

func TestWhatAPeerHandsOnIsJudgedByThePurgesMadeHere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(Config{})
		defer c.Close()
		opened := time.Now()
		after := func(s int) time.Time { return opened.Add(time.Duration(s) * time.Second) }
		purge := func(s int, soft bool, items ...string) {
			time.Sleep(time.Until(after(s)))
			c.Purge(Purge{Distribution: "site", Items: items, Soft: soft})
		}
		purge(10, true, "/a", "/once")
		purge(20, true, "/a", "#tag")
		purge(25, false, "/once")
		purge(30, true, "/a")
		now := after(40)
		policy := &Policy{}
		key := func(path string) Key {
			return policy.Key(Target{Distribution: "site", Host: "h.test", Path: path}, nil)
		}
		for _, test := range []struct {
			name, path, control string
			terms               Terms
			fresh               int
			used                bool
		}{
			{"fresh there", "/a", "", Terms{Kept: true, Fresh: 5 * time.Second, Asked: after(-5)}, 5, true},
			{"stale there by age alone", "/a", "", Terms{Kept: true, Fresh: -5 * time.Second, Asked: after(-5)}, -5, true},
			{"kept from before this process", "/a", "stale-while-revalidate=99", Terms{Kept: true, Soft: true, Fresh: -1, Asked: after(-1)}, 0, false},
			{"before all", "/a", "stale-while-revalidate=31", Terms{Kept: true, Soft: true, Fresh: -time.Second, Asked: after(5)}, -30, true},
			{"before all, for too long", "/a", "stale-while-revalidate=30", Terms{Kept: true, Soft: true, Fresh: -time.Second, Asked: after(5)}, -30, false},
			{"between two", "/a", "stale-while-revalidate=30", Terms{Kept: true, Soft: true, Fresh: -time.Second, Asked: after(25)}, -15, true},
			{"after all here", "/a", "stale-while-revalidate=30", Terms{Kept: true, Soft: true, Fresh: -time.Second, Asked: after(35)}, -1, true},
			{"longer ago there", "/a", "stale-while-revalidate=60", Terms{Kept: true, Soft: true, Fresh: -50 * time.Second, Asked: after(5)}, -50, true},
			{"what may have the tag", "/tagged", "stale-while-revalidate=30", Terms{Kept: true, Soft: true, Fresh: -time.Second, Asked: after(15)}, -20, true},
			{"softly, and then for good", "/once", "stale-while-revalidate=99", Terms{Kept: true, Soft: true, Fresh: -time.Second, Asked: after(24)}, -1, true},
			{"the origin fails there", "/a", "stale-while-revalidate=1, stale-if-error=40", Terms{Kept: true, Soft: true, Fresh: -2 * time.Second, Asked: after(5)}, -30, true},
			{"the origin does not fail there", "/a", "stale-while-revalidate=3, stale-if-error=40", Terms{Kept: true, Soft: true, Fresh: -2 * time.Second, Asked: after(5)}, -30, false},
		} {
			terms := test.terms
			used := c.Lends(key(test.path), http.Header{"Cache-Control": {test.control}}, &terms, now)
			if fresh := int(terms.Fresh / time.Second); used != test.used || fresh != test.fresh {
				t.Errorf("%s: fresh for %d s, used %v", test.name, fresh, used)
			}
		}
	})
}
