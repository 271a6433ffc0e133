package page

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/html"
)

func htmlOf(t testing.TB, r Run) string {
	t.Helper()
	var b bytes.Buffer
	if err := r.HTML(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func tableOf(t testing.TB, r Run, width int) string {
	t.Helper()
	var b bytes.Buffer
	if err := r.Table(&b, width); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// hostile is a run whose every text is s.
func hostile(s string) Run {
	return Run{
		Title: s, Scenario: s + "\n" + s, Testbed: s, WAN: s, Machine: s, Took: second, Fault: s,
		Sites:   []Site{{Name: s, City: s, Lat: 1, Lon: 2, Hosts: []string{s}}, {Name: s + "2", City: s, Lat: 40, Lon: 90}},
		Links:   []Link{{s, s + "2", second}},
		Clients: []Client{{s, s, 30, 40, s}},
		Steps: []Step{{Line: 1, Text: s + " => " + s, Verb: s, Result: s, Note: s, Fault: true, At: second / 4},
			{Line: 2, Text: s, Verb: "heal", Result: s, Note: s, Failed: true, At: second / 2}},
		Series:  []Series{{Name: s, Client: s, Unit: s, Samples: []Sample{{0, 100, true, s, s}, {second / 3, 200, false, "", s}, {second / 2, 300, true, s + "3", s}}}},
		Events:  []Event{{second / 3, s, s, s, s, nil}, {second / 2, s, s, "", s + "2", []string{s, "none"}}},
		Figures: []Figure{{s, 1, s, s, true}},
	}
}

func TestARunIsReadTheSameFromItsJSON(t *testing.T) {
	want := sample()
	var b bytes.Buffer
	if err := want.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	var got Run
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, field := range []string{`"durations": "nanoseconds"`, `"letter": "A"`, `"effects": [`, `"summaries": [`} {
		if !strings.Contains(b.String(), field) {
			t.Errorf("the JSON has no %s", field)
		}
	}
}

func TestThePageIsTheSameEachTime(t *testing.T) {
	first := htmlOf(t, sample())
	for range 5 {
		if htmlOf(t, sample()) != first {
			t.Fatal("two pages of one run differ")
		}
	}
	if len(first) > 600_000 {
		t.Errorf("the page of a run of 20 s has %d bytes", len(first))
	}
}

func TestAnEmptyRunAndARunOfOddNumbersHavePages(t *testing.T) {
	nan, inf := math.NaN(), math.Inf(1)
	for name, r := range map[string]Run{
		"zero":    {},
		"passed":  {Passed: true},
		"odd":     {Took: -second, Sites: []Site{{Name: "a", Lat: nan, Lon: inf}, {Name: "a", Lat: -inf, Lon: 1e9}}, Clients: []Client{{Name: "c", Lat: nan}}, Links: []Link{{"a", "nowhere", -1}}, Figures: []Figure{{"f", nan, "s", "1", true}, {"g", inf, "s", "", true}}, Steps: []Step{{At: -second, Took: -1, Fault: true}, {Verb: "heal"}}, Series: []Series{{}, {Name: "x", Samples: []Sample{{-1, -1, true, "", ""}}}}, Events: []Event{{At: -1, Causes: []string{""}}}},
		"instant": {Series: []Series{{Name: "x", Samples: []Sample{{0, 0, true, "a", ""}, {0, 0, false, "", ""}}}}},
		"longest": {Took: math.MaxInt64 / 2, Series: []Series{{Name: "x", Samples: []Sample{{0, math.MaxInt64 / 4, true, "a", ""}, {math.MaxInt64 / 4, math.MaxInt64 / 4, false, "a", ""}}}}},
	} {
		page := htmlOf(t, r)
		if strings.Contains(page, "NaN") || strings.Contains(page, "Inf") {
			t.Errorf("%s: the page has numbers that are none", name)
		}
		var b bytes.Buffer
		if err := r.WriteJSON(&b); err != nil || !json.Valid(b.Bytes()) {
			t.Errorf("%s: JSON: %v", name, err)
		}
		tableOf(t, r, 80)
	}
}

// tags are the elements and the names of the attributes of a page, without what depends on a text being there or cut.
func tags(t testing.TB, page string) []string {
	t.Helper()
	var list []string
	z := html.NewTokenizer(strings.NewReader(page))
	for {
		switch z.Next() {
		case html.ErrorToken:
			return list
		case html.StartTagToken, html.SelfClosingTagToken:
			token := z.Token()
			names := token.Data
			for _, a := range token.Attr {
				names += " " + a.Key
			}
			list = append(list, names)
		}
	}
}

func TestNoTextOfARunBecomesMarkup(t *testing.T) {
	want := tags(t, htmlOf(t, hostile("plain")))
	for _, s := range []string{"</script>", "<!--", "]]>", "</title><b>", `"x" onload="y"`, "'", "{{.}}", "<bdi>", "&lt;", "\u202eevil", "\x00\x1b[2J", "\xff\xfe"} {
		if diff := cmp.Diff(want, tags(t, htmlOf(t, hostile("plain"+s)))); diff != "" {
			t.Errorf("%q changes the page: %s", s, diff)
		}
	}
}

func FuzzNoTextOfARunBecomesMarkup(f *testing.F) {
	for _, s := range []string{"a", "</script><script>", `"><svg onload=x>`, "\u202e\u2066", "日本"} {
		f.Add(s)
	}
	own := map[string]bool{}
	for _, r := range []Run{sample(), hostile("plain"), hostile("kill"), hostile(""), hostile(strings.Repeat("plain ", 500)), {}} {
		for _, tag := range tags(f, htmlOf(f, r)) {
			own[tag] = true
		}
	}
	f.Fuzz(func(t *testing.T, s string) {
		r := hostile(s)
		for _, tag := range tags(t, htmlOf(t, r)) {
			if !own[tag] {
				t.Errorf("%q makes <%s>", s, tag)
			}
		}
		for _, line := range strings.Split(tableOf(t, r, 72), "\n") {
			if columns(line) > 72 || strings.ContainsAny(line, "\x1b\r\x00\u202e\u202d") {
				t.Errorf("%q makes the line %q", s, line)
			}
		}
		var b bytes.Buffer
		if err := r.WriteJSON(&b); err != nil || !json.Valid(b.Bytes()) {
			t.Errorf("%q: JSON: %v", s, err)
		}
	})
}

func TestThePageAsksForNothing(t *testing.T) {
	page := htmlOf(t, sample())
	for _, s := range []string{"http-equiv=\"Content-Security-Policy\" content=\"default-src &#39;none&#39;", "script-src &#39;sha256-"} {
		if !strings.Contains(page, s) {
			t.Errorf("the page has no %s", s)
		}
	}
	z := html.NewTokenizer(strings.NewReader(page))
	for z.Next() != html.ErrorToken {
		for _, a := range z.Token().Attr {
			switch a.Key {
			case "src", "srcset", "action", "style", "xlink:href":
				t.Errorf("the page has %s=%q", a.Key, a.Val)
			case "href":
				if a.Val != "data:," && !strings.HasPrefix(a.Val, "#") {
					t.Errorf("the page leads to %s", a.Val)
				}
			}
		}
	}
}

func TestWhatIsTooMuchIsThinnedAndThePageSaysSo(t *testing.T) {
	r := large()
	whole := r.asked()
	page := htmlOf(t, r)
	for _, want := range []string{
		fmt.Sprintf("of %s samples; of so many after each other", grouped(float64(whole))),
		"The last 2 series have no plot",
		"are in the data of this page only",
		"for a page",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	if len(page) > 16_000_000 {
		t.Errorf("the page has %d bytes", len(page))
	}
	var b bytes.Buffer
	if err := r.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Run
		LeftOut   []string
		Summaries []struct{ N int }
	}
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, s := range got.Summaries {
		n += s.N
	}
	if kept := got.asked(); kept > maxSamples || kept < maxSamples/3 || len(got.LeftOut) != 1 || n != 2*whole-failures(r) {
		t.Errorf("of %d samples %d are kept, %d are counted; left out: %q", whole, kept, n, got.LeftOut)
	}
}

// failures are those of a run, whose numbers by POP have none: they say no POP.
func failures(r Run) int {
	n := 0
	for _, s := range r.Series {
		if len(summaries(s, pops(r))) == 1 {
			n += len(s.Samples)
		}
	}
	return n
}

func TestThinningKeepsTheRangeAndTheFailures(t *testing.T) {
	var all []Sample
	for i := range 10_000 {
		all = append(all, Sample{At: time.Duration(i), Took: time.Duration(1000 + i%97), OK: true})
	}
	all[1234].Took, all[7777].OK, all[42].Took = 1, false, 1<<40
	kept := thin(all, 300)
	if len(kept) > 310 {
		t.Errorf("kept %d", len(kept))
	}
	for _, i := range []int{1234, 7777, 42} {
		found := false
		for _, s := range kept {
			found = found || s == all[i]
		}
		if !found {
			t.Errorf("lost %v", all[i])
		}
	}
	for i := 1; i < len(kept); i++ {
		if kept[i].At <= kept[i-1].At {
			t.Fatal("not in order of time")
		}
	}
	if n := len(thin(all, 0)); n > 3 {
		t.Errorf("of nothing allowed %d are kept", n)
	}
}

// samples makes them of words, one every 100 ms: a POP that serves within 10 ms, or ! for a failure of 50 ms.
func samples(words string) []Sample {
	var list []Sample
	for i, w := range strings.Fields(words) {
		s := Sample{At: time.Duration(i) * 100 * time.Millisecond, Took: 10 * time.Millisecond, OK: true, By: w}
		if w == "!" {
			s.Took, s.OK, s.By = 50*time.Millisecond, false, ""
		}
		list = append(list, s)
	}
	return list
}

func TestAnEffectIsWhoServedFromWhenOnAndWhatFailed(t *testing.T) {
	for name, c := range map[string]struct {
		samples string // the change is at 400 ms
		want    effect
	}{
		"nothing moves":          {"a a a a a a a a", effect{From: "a", To: "a", Asked: 4}},
		"moves at once":          {"a a a a b b b b", effect{From: "a", To: "b", After: 10 * time.Millisecond, Asked: 4}},
		"moves after failures":   {"a a a a ! ! b b", effect{From: "a", To: "b", After: 210 * time.Millisecond, Asked: 4, Failed: 2, Dark: 210 * time.Millisecond}},
		"wavers, then moves":     {"a a a a b a b b b", effect{From: "a", To: "b", After: 210 * time.Millisecond, Asked: 5}},
		"fails to the end":       {"a a a a ! ! ! !", effect{From: "a", Asked: 4, Failed: 4, Dark: 400 * time.Millisecond, Open: true}},
		"fails, does not move":   {"a a a a ! a ! ! a", effect{From: "a", To: "a", Asked: 5, Failed: 3, Dark: 210 * time.Millisecond}},
		"two serve as before":    {"a b a b a b b b b", effect{From: "a", To: "a", Asked: 5}},
		"nobody served before":   {"! ! ! ! a a a", effect{To: "a", Asked: 3}},
		"the late one is one":    {"a a a a a a a b b", effect{From: "a", To: "b", After: 310 * time.Millisecond, Asked: 5}},
		"a third serves between": {"a a a a c b b b b", effect{From: "a", To: "b", After: 110 * time.Millisecond, Asked: 5}},
	} {
		all := samples(c.samples)
		end := time.Duration(len(all)) * 100 * time.Millisecond
		got := judge(all[:4], all[4:], 400*time.Millisecond, end)
		got.Before, got.Since = 0, 0
		if name == "two serve as before" {
			c.want.From, c.want.To = got.From, got.From // either will do
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestAFaultStandsUntilItIsTakenBack(t *testing.T) {
	r := Run{Took: 100 * second}
	for i, text := range []string{"kill icn1", "begin x cut fra iad", "start icn1", "slow fra icn 100ms", "heal iad", "heal"} {
		verb := strings.TrimPrefix(text, "begin x ")
		verb, _, _ = strings.Cut(verb, " ")
		r.Steps = append(r.Steps, Step{Text: text, Verb: verb, At: time.Duration(10*i+10) * second, Fault: verb == "kill" || verb == "cut" || verb == "slow"})
	}
	r.Steps = append(r.Steps, Step{Text: "kill fra1", Verb: "kill", At: 60*second + 50*time.Millisecond, Fault: true}, Step{Text: "get x", Verb: "get", At: 70 * second})
	var got []string
	for _, p := range phases(r, changes(r)) {
		standing := ""
		for _, c := range p.Standing {
			standing += c.Letter
		}
		got = append(got, fmt.Sprintf("%s %v-%v %s", p.letters(), p.From, p.To, standing))
	}
	want := []string{" 0s-10s ", "A 10s-20s A", "B 20s-30s AB", "C 30s-40s B", "D 40s-50s BD", "E 50s-1m0s D", "F G 1m0s-1m40s G"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestAStepNamesSitesByThemselvesOrByTheirHosts(t *testing.T) {
	r := sample()
	for text, want := range map[string][]int{"kill icn1": {0}, "cut fra iad": {1, 2}, "kill targets nowhere": nil, "drain pop/icn@fra1": {1}, "icn": nil, "cut iad-a, icn1": {2, 0}, "": nil} {
		if diff := cmp.Diff(want, names(r, text)); diff != "" {
			t.Errorf("%s: %s", text, diff)
		}
	}
}

func TestPercentilesAreNearestRanksAndToldOnlyOfEnough(t *testing.T) {
	var list []Sample
	for i := range 200 {
		list = append(list, Sample{Took: time.Duration(200-i) * time.Millisecond, OK: true, By: "a"})
	}
	for n, want := range map[int]summed{
		0:   {P50: -1, P90: -1, P99: -1, Max: -1},
		1:   {N: 1, P50: 200 * time.Millisecond, P90: -1, P99: -1, Max: 200 * time.Millisecond},
		10:  {N: 10, P50: 195 * time.Millisecond, P90: 199 * time.Millisecond, P99: -1, Max: 200 * time.Millisecond},
		200: {N: 200, P50: 100 * time.Millisecond, P90: 180 * time.Millisecond, P99: 198 * time.Millisecond, Max: 200 * time.Millisecond},
	} {
		if diff := cmp.Diff(want, summary(list[:n], "")); diff != "" {
			t.Errorf("%d: %s", n, diff)
		}
	}
}

func TestDurationsAndNumbersReadWell(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-1: "–", 0: "0 ms", 412 * time.Nanosecond: "0.41 µs", 250 * time.Microsecond: "0.25 ms", 4400 * time.Microsecond: "4.40 ms", 121 * time.Millisecond: "121 ms",
		1420 * time.Millisecond: "1.42 s", 61 * second: "61 s", 2 * time.Hour: "2h 00m", 125 * second: "2m 05s",
	} {
		if got := show(d, ""); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
	for v, want := range map[float64]string{0: "0", 14: "14", 0.5: "0.50", 1234567: "1,234,567", -2000: "−2,000", 0.00012: "0.00012", 99.95: "100.0", 1e20: "1e+20"} {
		if got := digits(v); got != want {
			t.Errorf("%v: %s, want %s", v, got, want)
		}
	}
	if got := show(1500*time.Microsecond, "µs") + show(time.Minute, "s"); got != "1,500 µs60 s" {
		t.Error(got)
	}
}

func TestPlacesLieOnTheLandTheyAreOn(t *testing.T) {
	path, err := landPath()
	if err != nil {
		t.Fatal(err)
	}
	if len(path) > 60_000 {
		t.Errorf("the land has %d bytes", len(path))
	}
	land := rings(t, path)
	for name, c := range map[string]struct {
		lat, lon float64
		dry      bool
	}{
		"Seoul": {37.2, 127.4, true}, "Frankfurt": {50.1, 8.7, true}, "Denver": {39.7, -105, true}, "São Paulo": {-23, -47.5, true}, "Alice Springs": {-23.7, 133.9, true},
		"Nome's hinterland": {65, -164, true}, "Chukotka": {67, 175, true}, "beyond 180°": {67, -178, true},
		"the Atlantic": {30, -40, false}, "the Pacific": {0, -150, false}, "the Pacific's middle": {0, 180, false}, "the Indian Ocean": {-20, 80, false}, "off Fiji": {-17, -175, false},
	} {
		x, y := project(c.lat, c.lon)
		if got := inside(land, x*10, y*10); got != c.dry {
			t.Errorf("%s at %.0f, %.0f: land is %v", name, x, y, got)
		}
	}
}

// rings reads the path of the land back.
func rings(t *testing.T, path string) [][]spot {
	var all [][]spot
	for _, ring := range strings.Split(strings.TrimSuffix(path, "z"), "z") {
		var one []spot
		x, y := 0, 0
		for _, step := range strings.Split(strings.TrimPrefix(ring, "M"), "l") {
			var dx, dy int
			if _, err := fmt.Sscanf(step, "%d %d", &dx, &dy); err != nil {
				t.Fatalf("read %q: %v", step, err)
			}
			x, y = x+dx, y+dy
			one = append(one, spot{float64(x), float64(y)})
		}
		all = append(all, one)
	}
	return all
}

func inside(land [][]spot, x, y float64) bool {
	in := false
	for _, ring := range land {
		for i, b := range ring {
			a := ring[(i+len(ring)-1)%len(ring)]
			if (a.y > y) != (b.y > y) && x < a.x+(b.x-a.x)*(y-a.y)/(b.y-a.y) {
				in = !in
			}
		}
	}
	return in
}

func TestTheTableFitsAnyWidth(t *testing.T) {
	r := sample()
	r.Title = strings.Repeat("긴 제목 ", 60) + "\x1b[31m"
	for _, width := range []int{0, 1, 40, 60, 80, 120, 10_000} {
		text := tableOf(t, r, width)
		most := max(leastWidth, min(width, mostWidth))
		if width == 0 {
			most = 80
		}
		for _, line := range strings.Split(text, "\n") {
			if columns(line) > most {
				t.Errorf("%d: a line of %d columns: %s", width, columns(line), line)
			}
			if !utf8.ValidString(line) || strings.ContainsRune(line, '\x1b') {
				t.Errorf("%d: %q", width, line)
			}
		}
	}
	wide := tableOf(t, sample(), 100)
	for _, want := range []string{"FAILED  Served by", "✗     2.30 s  ≤ 1 s", "A      get seoul     icn1 → fra1    1.70 s", "7/23  1.64 s", "by fra1", "did not come true"} {
		if !strings.Contains(wide, want) {
			t.Errorf("the table does not say %q:\n%s", want, wide)
		}
	}
}

func TestCausesLeadToTheirEvents(t *testing.T) {
	r := Run{Took: 10 * second, Events: []Event{
		{1 * second, "a", "", "first of a", "1", nil},
		{2 * second, "b", "", "first of b", "1", nil},
		{3 * second, "b", "", "of its own", "2", []string{"1"}},
		{4 * second, "b", "", "of another's", "3", []string{"a/1"}},
		{5 * second, "c", "", "of one that is gone", "9", []string{"77"}},
	}}
	var got []string
	for _, e := range timeline(r, nil) {
		for _, c := range e.Causes {
			got = append(got, c.Href+" "+c.Text+" "+c.Lag)
		}
	}
	want := []string{"#e2 first of b 1 s before", "#e1 a: first of a 3 s before", " an event that is not here (77) "}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errFull }

var errFull = errors.New("disk full")

func TestAWriterThatFailsIsTold(t *testing.T) {
	for name, write := range map[string]func() error{
		"HTML":  func() error { return sample().HTML(full{}) },
		"JSON":  func() error { return sample().WriteJSON(full{}) },
		"table": func() error { return sample().Table(full{}, 80) },
	} {
		if err := write(); !errors.Is(err, errFull) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
