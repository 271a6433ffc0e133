package cache

import (
	"net/http"
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
		{"conditions for origins", []string{`If-Match: "b"`, "If-Unmodified-Since: " + at(-2*time.Hour)}, whole},

		{"from the start", []string{"Range: bytes=0-9"}, Answer{206, 0, 10}},
		{"one byte", []string{"Range: bytes=0-0"}, Answer{206, 0, 1}},
		{"to the end", []string{"Range: bytes=90-"}, Answer{206, 90, 10}},
		{"beyond the end", []string{"Range: bytes=90-1000"}, Answer{206, 90, 10}},
		{"the last", []string{"Range: bytes=-10"}, Answer{206, 90, 10}},
		{"more than all of the last", []string{"Range: bytes=-1000"}, Answer{206, 0, 100}},
		{"all", []string{"Range: BYTES = 0-99"}, Answer{206, 0, 100}},
		{"from beyond the end", []string{"Range: bytes=100-"}, Answer{Status: 416}},
		{"nothing of the last", []string{"Range: bytes=-0"}, Answer{Status: 416}},
		{"a number beyond all", []string{"Range: bytes=99999999999999999999999-"}, Answer{Status: 416}},
		{"several", []string{"Range: bytes=0-1,5-6"}, whole},
		{"backwards", []string{"Range: bytes=9-0"}, whole},
		{"another unit", []string{"Range: lines=0-1"}, whole},
		{"nonsense", []string{"Range: bytes=a-b"}, whole},
		{"signs", []string{"Range: bytes=+1-2"}, whole},
		{"a dash", []string{"Range: bytes=-"}, whole},
		{"two Range lines", []string{"Range: bytes=0-1", "Range: bytes=2-3"}, whole},
		{"if the tag is the same", []string{"Range: bytes=0-9", `If-Range: "a"`}, Answer{206, 0, 10}},
		{"if the tag is weak", []string{"Range: bytes=0-9", `If-Range: W/"a"`}, whole},
		{"if the tag is another", []string{"Range: bytes=0-9", `If-Range: "b"`}, whole},
		{"if the date is the same", []string{"Range: bytes=0-9", "If-Range: " + modified}, Answer{206, 0, 10}},
		{"if the date is another", []string{"Range: bytes=0-9", "If-Range: " + at(0)}, whole},
		{"not modified is stronger than a range", []string{"Range: bytes=0-9", `If-None-Match: "a"`}, Answer{Status: 304}},
	} {
		o := &Object{Status: 200, Header: NewHeader(header(`Etag: "a"`, "Last-Modified: "+modified))}
		if got := o.Answer("GET", header(c.request...), size); got != c.want {
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
		if got := o.Answer("GET", request, c.size); got != c.want {
			t.Errorf("%d: got %+v, want %+v", c.status, got, c.want)
		}
	}
	o := &Object{Status: 200, Header: NewHeader(header())}
	if got, want := o.Answer("HEAD", header("Range: bytes=0-0"), 10), (Answer{Status: 200, Length: 10}); got != want {
		t.Errorf("a range of a HEAD: got %+v, want %+v", got, want)
	}
	if got, want := o.Answer("GET", header("Range: bytes=0-0"), -1), (Answer{Status: 200, Length: -1}); got != want {
		t.Errorf("while its size is not known: got %+v, want %+v", got, want)
	}
}

func FuzzRange(f *testing.F) {
	for _, s := range []string{"bytes=0-9", "bytes=-5", "bytes=5-", "bytes=0-1,3-4", "bytes=99999999999999999999-", "=", "-"} {
		f.Add(s, int64(10))
	}
	f.Fuzz(func(t *testing.T, s string, size int64) {
		if size < 0 {
			return
		}
		start, length, kind := parseRange(s, size)
		if kind == onePart && (start < 0 || length < 1 || start+length > size) || kind != onePart && start+length != 0 {
			t.Fatalf("%q of %d bytes: %d+%d, %v", s, size, start, length, kind)
		}
	})
}

func FuzzIfNoneMatch(f *testing.F) {
	for _, s := range []string{`"a"`, `W/"a", "b"`, `*`, `"`, `W/`, `a"a"`, `,,"a"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if !strings.Contains(s, `"`) && !strings.Contains(s, "*") && matchesAny([]string{s}, `"a"`) {
			t.Fatalf("%q matches", s)
		}
		if !matchesAny([]string{s, `"a"`}, `"a"`) {
			t.Fatalf("%q hides the line below it", s)
		}
	})
}

func TestA304RefreshesWhatIsKept(t *testing.T) {
	p := policy()
	first := header("Date: "+at(-time.Hour), "Cache-Control: max-age=10", `Etag: "a"`, "Content-Type: text/css", "X-Old: 1", "Age: 7", "Content-Encoding: br")
	o := p.head(200, ParseControl(first), first, noon.Add(-time.Hour), noon.Add(-time.Hour)).whole([]byte("body"))
	fresh, ok := o.freshened(p, header("Date: "+at(0), "Cache-Control: max-age=60", `Etag: "a"`, "X-New: 2", "Content-Length: 0", "Content-Encoding: gzip", "Set-Cookie: s=1"), noon, noon)
	if !ok {
		t.Fatal("refused")
	}
	want := header("Date: "+at(0), "Cache-Control: max-age=60", `Etag: "a"`, "Content-Type: text/css", "X-Old: 1", "X-New: 2", "Content-Encoding: br",
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
		if _, ok := o.freshened(policy(), header(c.sent...), noon, noon); ok != c.want {
			t.Errorf("kept %q, 304 with %q: got %v, want %v", c.kept, c.sent, ok, c.want)
		}
	}
}
