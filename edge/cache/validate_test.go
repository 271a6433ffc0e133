package cache

import (
	"cmp"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestAKeptResponseAnswersByConditionAndRange(t *testing.T) {
	const size = 100
	modified := at(-time.Hour)
	whole := Answer{Status: 200, Length: size}
	for _, c := range []struct {
		name    string
		request []string
		want    Answer
	}{
		{"no conditions", nil, whole},
		{"the same tag", []string{`If-None-Match: "a"`}, Answer{Status: 304}},
		{"the same tag, weakly", []string{`If-None-Match: W/"a"`}, Answer{Status: 304}},
		{"one of many tags", []string{`If-None-Match: "x,y", "b" , "a"`}, Answer{Status: 304}},
		{"in the second line", []string{`If-None-Match: "x"`, `If-None-Match: "a"`}, Answer{Status: 304}},
		{"any tag", []string{"If-None-Match: *"}, Answer{Status: 304}},
		{"another tag", []string{`If-None-Match: "b"`}, whole},
		{"a tag within a tag", []string{`If-None-Match: "b,"a""`}, whole},
		{"no tag at all", []string{"If-None-Match: a"}, whole},
		{"a tag that does not end", []string{`If-None-Match: "a`}, whole},
		{"not modified since", []string{"If-Modified-Since: " + modified}, Answer{Status: 304}},
		{"not modified since later", []string{"If-Modified-Since: " + at(0)}, Answer{Status: 304}},
		{"modified since", []string{"If-Modified-Since: " + at(-2*time.Hour)}, whole},
		{"since no date", []string{"If-Modified-Since: 2026"}, whole},
		{"the tag is stronger than the date", []string{`If-None-Match: "b"`, "If-Modified-Since: " + at(0)}, whole},
		{"the date given twice is none", []string{"If-Modified-Since: " + at(0), "If-Modified-Since: " + at(0)}, whole},
		{"the date in a form of old", []string{"If-Modified-Since: " + noon.Add(-time.Hour).Format("Monday, 02-Jan-06 15:04:05 GMT")}, Answer{Status: 304}},

		{"only if it is the same", []string{`If-Match: "a"`}, whole},
		{"only if it is one of them", []string{`If-Match: "b", "a"`}, whole},
		{"only if there is any", []string{"If-Match: *"}, whole},
		{"only if it is another", []string{`If-Match: "b"`}, Answer{Status: 412}},
		{"only if it is the same, weakly", []string{`If-Match: W/"a"`}, Answer{Status: 412}},
		{"only if it was not modified since", []string{"If-Unmodified-Since: " + modified}, whole},
		{"only if it was not modified since, and it was", []string{"If-Unmodified-Since: " + at(-2*time.Hour)}, Answer{Status: 412}},
		{"only if not modified since no date", []string{"If-Unmodified-Since: then"}, whole},
		{"the tag is stronger than the date there, too", []string{`If-Match: "a"`, "If-Unmodified-Since: " + at(-2*time.Hour)}, whole},
		{"what must hold comes before what need not", []string{`If-Match: "b"`, `If-None-Match: "a"`}, Answer{Status: 412}},
		{"both hold", []string{`If-Match: "a"`, `If-None-Match: "a"`}, Answer{Status: 304}},
		{"what must hold comes before a range", []string{`If-Match: "b"`, "Range: bytes=0-9"}, Answer{Status: 412}},

		{"from the start", []string{"Range: bytes=0-9"}, Answer{Status: 206, Start: 0, Length: 10}},
		{"one byte", []string{"Range: bytes=0-0"}, Answer{Status: 206, Start: 0, Length: 1}},
		{"to the end", []string{"Range: bytes=90-"}, Answer{Status: 206, Start: 90, Length: 10}},
		{"beyond the end", []string{"Range: bytes=90-1000"}, Answer{Status: 206, Start: 90, Length: 10}},
		{"the last", []string{"Range: bytes=-10"}, Answer{Status: 206, Start: 90, Length: 10}},
		{"more than all of the last", []string{"Range: bytes=-1000"}, Answer{Status: 206, Start: 0, Length: 100}},
		{"all", []string{"Range: BYTES = 0-99"}, Answer{Status: 206, Start: 0, Length: 100}},
		{"from beyond the end", []string{"Range: bytes=100-"}, Answer{Status: 416}},
		{"nothing of the last", []string{"Range: bytes=-0"}, Answer{Status: 416}},
		{"a number beyond all", []string{"Range: bytes=99999999999999999999999-"}, Answer{Status: 416}},
		{"several", []string{"Range: bytes=0-1, 5-6,-10"}, Answer{Status: 206, Parts: []Part{{0, 2}, {5, 2}, {90, 10}}}},
		{"several, some beyond the end", []string{"Range: bytes=0-1,100-,200-300"}, Answer{Status: 206, Start: 0, Length: 2}},
		{"several, all beyond the end", []string{"Range: bytes=100-,-0"}, Answer{Status: 416}},
		{"several, one of them nonsense", []string{"Range: bytes=0-1,x"}, whole},
		{"several that touch", []string{"Range: bytes=0-1,2-3"}, Answer{Status: 206, Parts: []Part{{0, 2}, {2, 2}}}},
		{"several that overlap", []string{"Range: bytes=0-5,5-6"}, whole},
		{"several that go backwards", []string{"Range: bytes=5-6,0-1"}, whole},
		{"the same a thousand times", []string{"Range: bytes=0-0" + strings.Repeat(",0-0", 999)}, whole},
		{"as many as may be", []string{"Range: bytes=" + every(16)}, Answer{Status: 206, Parts: everyPart(16)}},
		{"one more", []string{"Range: bytes=" + every(17)}, whole},
		{"empty members", []string{"Range: bytes=,0-1,"}, Answer{Status: 206, Start: 0, Length: 2}},
		{"nothing but empty members", []string{"Range: bytes=,"}, whole},
		{"backwards", []string{"Range: bytes=9-0"}, whole},
		{"another unit", []string{"Range: lines=0-1"}, whole},
		{"nonsense", []string{"Range: bytes=a-b"}, whole},
		{"signs", []string{"Range: bytes=+1-2"}, whole},
		{"a dash", []string{"Range: bytes=-"}, whole},
		{"two Range lines", []string{"Range: bytes=0-1", "Range: bytes=2-3"}, whole},
		{"if the tag is the same", []string{"Range: bytes=0-9", `If-Range: "a"`}, Answer{Status: 206, Start: 0, Length: 10}},
		{"if the tag is weak", []string{"Range: bytes=0-9", `If-Range: W/"a"`}, whole},
		{"if the tag is another", []string{"Range: bytes=0-9", `If-Range: "b"`}, whole},
		{"if the date is the same", []string{"Range: bytes=0-9", "If-Range: " + modified}, Answer{Status: 206, Start: 0, Length: 10}},
		{"if the date is another", []string{"Range: bytes=0-9", "If-Range: " + at(0)}, whole},
		{"if the date is weak", []string{"Range: bytes=0-9", "If-Range: " + at(0), "X-Modified: " + at(0)}, whole},
		{"if there are two", []string{"Range: bytes=0-9", `If-Range: "a"`, `If-Range: "a"`}, whole},
		{"not modified is stronger than a range", []string{"Range: bytes=0-9", `If-None-Match: "a"`}, Answer{Status: 304}},
	} {
		h := header(c.request...)
		o := &Object{Status: 200, Header: NewHeader(header(`Etag: "a"`, "Date: "+at(0), "Last-Modified: "+cmp.Or(h.Get("X-Modified"), modified))), received: noon}
		if got := o.Answer("GET", h, size); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %q: got %+v, want %+v", c.name, c.request, got, c.want)
		}
	}
}

func TestOnlyAWholeResponseAnswersConditions(t *testing.T) {
	request := header(`If-None-Match: "a"`, "Range: bytes=0-0")
	for _, c := range []struct {
		status int
		size   int64
		want   Answer
	}{
		{404, 10, Answer{Status: 404, Length: 10}},
		{301, 0, Answer{Status: 301}},
	} {
		o := &Object{Status: c.status, Header: NewHeader(header(`Etag: "a"`))}
		if got := o.Answer("GET", request, c.size); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%d: got %+v, want %+v", c.status, got, c.want)
		}
	}
	o := &Object{Status: 200, Header: NewHeader(header())}
	if got, want := o.Answer("HEAD", header("Range: bytes=0-0"), 10), (Answer{Status: 200, Length: 10}); !reflect.DeepEqual(got, want) {
		t.Errorf("a range of a HEAD: got %+v, want %+v", got, want)
	}
	if got, want := o.Answer("GET", header("Range: bytes=0-0"), -1), (Answer{Status: 200, Length: -1}); !reflect.DeepEqual(got, want) {
		t.Errorf("while its size is not known: got %+v, want %+v", got, want)
	}
}

// every is a Range of every other byte, n times.
func every(n int) string {
	var parts []string
	for i := range n {
		parts = append(parts, fmt.Sprintf("%d-%d", 2*i, 2*i))
	}
	return strings.Join(parts, ",")
}

func everyPart(n int) (parts []Part) {
	for i := range n {
		parts = append(parts, Part{int64(2 * i), 1})
	}
	return parts
}

func TestWithoutLastModifiedTheDateStandsIn(t *testing.T) {
	o := &Object{Status: 200, Header: NewHeader(header("Date: " + at(0))), received: noon}
	for _, c := range []struct {
		since time.Duration
		want  int
	}{{-time.Second, 200}, {0, 304}, {time.Hour, 304}} {
		if got := o.Answer("GET", header("If-Modified-Since: "+at(c.since)), 1).Status; got != c.want {
			t.Errorf("since %v: got %d, want %d", c.since, got, c.want)
		}
	}
	if got := o.Answer("GET", header("If-Unmodified-Since: "+at(-time.Hour)), 1).Status; got != 200 {
		t.Errorf("unmodified since, without a date of modification: got %d, want 200", got)
	}
}

func FuzzRange(f *testing.F) {
	for _, s := range []string{"bytes=0-9", "bytes=-5", "bytes=5-", "bytes=0-1,3-4", "bytes=99999999999999999999-", "=", "-", "bytes=,0-0,,-1", "bytes=1048576-", "bytes=3145738-3145747", "BYTES = 1048575-1048576"} {
		f.Add(s, int64(10))
	}
	f.Fuzz(func(t *testing.T, s string, size int64) {
		if size < 0 {
			return
		}
		parts, kind := parseRange(s, size)
		end := int64(0)
		for _, p := range parts {
			if p.Start < end || p.Length < 1 || p.Start+p.Length > size {
				t.Fatalf("%q of %d bytes: %v", s, size, parts)
			}
			end = p.Start + p.Length
		}
		if (kind == parts206) != (len(parts) > 0) || len(parts) > maxParts {
			t.Fatalf("%q of %d bytes: %v, %v", s, size, parts, kind)
		}
		// The slices that are asked for are whole ones, and have what is wanted of any body.
		start, last, ok := slicesOf(s)
		if !ok {
			return
		}
		if start < SliceSize || start%SliceSize != 0 || last%SliceSize != SliceSize-1 || last < start || last >= maxSliced {
			t.Fatalf("%q: slices from %d to %d", s, start, last)
		}
		if asked, is := parseRange(rangeFrom(start, last), maxSliced); is != parts206 || len(asked) != 1 || asked[0] != (Part{start, last + 1 - start}) {
			t.Fatalf("%q: %s", s, rangeFrom(start, last))
		}
		if wanted, is := parseRange(s, maxSliced); is != parts206 || len(wanted) != 1 || wanted[0].Start < start || wanted[0].Start+wanted[0].Length-1 > last {
			t.Fatalf("%q: slices from %d to %d", s, start, last)
		}
	})
}

func FuzzIfNoneMatch(f *testing.F) {
	for _, s := range []string{`"a"`, `W/"a", "b"`, `*`, `"`, `W/`, `a"a"`, `,,"a"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if !strings.Contains(s, `"`) && !strings.Contains(s, "*") && matchesAny([]string{s}, `"a"`, weakMatch) {
			t.Fatalf("%q matches", s)
		}
		if !matchesAny([]string{s, `"a"`}, `"a"`, strongMatch) {
			t.Fatalf("%q hides the line below it", s)
		}
	})
}

func TestA304RefreshesWhatIsKept(t *testing.T) {
	p := policy()
	first := header("Date: "+at(-time.Hour), "Cache-Control: max-age=10", `Etag: "a"`, "Content-Type: text/css", "X-Old: 1", "Age: 7", "Content-Encoding: br")
	o := p.head(200, ParseControl(first), first, noon.Add(-time.Hour), noon.Add(-time.Hour)).whole([]byte("body"))
	fresh, own, ok := o.freshened(p, header("Date: "+at(0), `Cache-Control: max-age=60, private="X-Mine"`, `Etag: W/"a"`, "X-New: 2", "Content-Length: 0",
		"Content-Encoding: gzip", "Content-Range: bytes 0-0/9", "Content-MD5: x", "Content-Digest: y", "Set-Cookie: s=1", "X-Mine: 1"), noon, noon)
	if len(own) != 1 || own.Get("X-Mine") != "1" {
		t.Errorf("for the one who asked: %v", own)
	}
	if !ok {
		t.Fatal("refused")
	}
	want := header("Date: "+at(0), `Cache-Control: max-age=60, private="X-Mine"`, `Etag: "a"`, "Content-Type: text/css", "X-Old: 1", "X-New: 2", "Content-Encoding: br",
		"Content-Length: 4", "Accept-Ranges: bytes")
	for name := range http.Header(want) {
		if fresh.Header.Get(name) != want.Get(name) {
			t.Errorf("%s: got %q, want %q", name, fresh.Header.Get(name), want.Get(name))
		}
	}
	if len(fresh.Header.HTTP()) != len(want) {
		t.Errorf("got %v, want %v", fresh.Header, want)
	}
	if string(fresh.Body) != "body" || fresh.FreshFor(noon) != time.Minute || fresh.Age(noon) != 0 {
		t.Errorf("body %q, fresh for %v at age %v", fresh.Body, fresh.FreshFor(noon), fresh.Age(noon))
	}
	if o.Header.Get("X-New") != "" || o.FreshFor(noon) > 0 {
		t.Error("what was kept has changed under its readers")
	}
}

func TestA304AboutAnotherResponseRefreshesNothing(t *testing.T) {
	for _, c := range []struct {
		kept, sent []string
		want       bool
	}{
		{[]string{`Etag: "a"`}, []string{`Etag: "a"`}, true},
		{[]string{`Etag: "a"`}, []string{`Etag: "b"`}, false},
		{[]string{`Etag: W/"a"`}, []string{`Etag: W/"a"`}, true},
		{[]string{`Etag: W/"a"`}, []string{`Etag: "a"`}, false},
		{[]string{`Etag: "a"`}, nil, true},
		{[]string{"Last-Modified: x"}, []string{"Last-Modified: y"}, false},
		{[]string{"Last-Modified: x"}, []string{`Etag: "a"`}, false},
	} {
		o := &Object{Status: 200, Header: NewHeader(header(c.kept...))}
		if _, _, ok := o.freshened(policy(), header(c.sent...), noon, noon); ok != c.want {
			t.Errorf("kept %q, 304 with %q: got %v, want %v", c.kept, c.sent, ok, c.want)
		}
	}
}

func TestAHEADRefreshesWhatIsKeptIfItIsTheSame(t *testing.T) {
	p := policy()
	first := header("Date: "+at(-time.Hour), "Cache-Control: max-age=10", `Etag: "a"`, "Last-Modified: "+at(-2*time.Hour), "X-Old: 1", "X-Both: 1")
	o := p.head(200, ParseControl(first), first, noon.Add(-time.Hour), noon.Add(-time.Hour)).whole([]byte("body"))
	for _, c := range []struct {
		name  string
		sent  []string
		want  bool
		other bool
	}{
		{"the same by all it says", []string{`Etag: "a"`, "Last-Modified: " + at(-2*time.Hour), "Content-Length: 4"}, true, false},
		{"the same by its length", []string{"Content-Length: 4"}, true, false},
		{"the same by its tag", []string{`Etag: "a"`}, true, false},
		{"nothing to tell by", nil, false, false},
		{"another tag", []string{`Etag: "b"`}, false, true},
		{"a weaker tag", []string{`Etag: W/"a"`}, false, true},
		{"modified", []string{`Etag: "a"`, "Last-Modified: " + at(-time.Hour)}, false, true},
		{"of another length", []string{`Etag: "a"`, "Content-Length: 5"}, false, true},
	} {
		got, other := o.headed(p, header(append(c.sent, "Cache-Control: max-age=60", "X-Both: 2")...), 4, noon, noon)
		if (got != nil) != c.want || other != c.other {
			t.Errorf("%s: got %v, another: %v", c.name, got, other)
			continue
		}
		if got != nil && (got.FreshFor(noon) != time.Minute || got.Header.Get("X-Old") != "1" || got.Header.Get("X-Both") != "2" || string(got.Body) != "body") {
			t.Errorf("%s: fresh for %v, %v", c.name, got.FreshFor(noon), got.Header)
		}
	}
}
