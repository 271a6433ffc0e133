package spec

import (
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
)

// usual are documents as most are written, which readPlain is for.
var usual = []string{
	"kind: A\nname: b\n", "a:\n  b: c\n\n# d\n  e: f g\nh:\n- i\n- j: k\n  l: [m, \"n o\", 'p']\n",
	"a:\n  - {b: \"@\", c: 60s, d: [\"2001:db8::1\", 10 mail.example.com.]}\n  - {\"e\": true,\"f\":null}\ng: {}\nh: []\ni: 2001:db8::1\n",
	"{\n  \"a\": 1,\n  \"b\": [\n    \"c\"\n  ]\n}\n", "a: 0x1F\nb: 1e3\nc: 1.5\nd: 017\ne: 192.0.2.1\nf: 1_000\ng: https://h:8\n", "a:\nb:\n  c:\nd: NULL\n",
}

func TestWhatIsWrittenAsMostIsIsReadWithoutTheScanner(t *testing.T) {
	for _, text := range append(usual, zoneOf(3), tenThousand()[:200]) {
		text, _, _ = strings.Cut(text, "---\n")
		if _, ok := readPlain(text, 1); !ok {
			t.Errorf("not plain:\n%s", text)
		}
	}
}

// Texts of the pieces that YAML is made of, most of which are wrong.
func TestRandomPiecesAreReadAsByTheScanner(t *testing.T) {
	pieces := []string{"a: ", "b:\n", "c: d\n", "- ", "-\n", "\n", " ", "  ", "\n  ", "\n- ", "\n  - ", "{", "}", "[", "]", ", ", ",", "\"e\"", "'f'", "\"g\":", ":",
		": ", "h", "1", "0", "0x1", ".", "-", "1.5", "192.0.2.1", "#", " # i\n", "\n# j\n", "null", "true", "://", "::", "''", "\"\"", "é", "\"é: \"", "+", "_", "e5", "/", "*", "|\n  k\n", "~", "\t", "\\"}
	random := rand.New(rand.NewPCG(1, 2))
	count, ok := 20_000, 0
	if !testing.Short() {
		count = 100_000
	}
	for range count {
		var b strings.Builder
		for range 1 + random.IntN(12) {
			b.WriteString(pieces[random.IntN(len(pieces))])
		}
		if readAlike(t, []byte(b.String())) {
			ok++
		}
	}
	if ok < count/200 {
		t.Fatalf("of %d texts %d were read: too few say anything", count, ok)
	}
}

// What is read without the scanner is read as by it, on the same lines.
func FuzzReadPlain(f *testing.F) {
	for _, text := range append(usual, readable...) {
		f.Add([]byte(text))
	}
	f.Add([]byte(zoneOf(2)))
	f.Fuzz(func(t *testing.T, data []byte) { readAlike(t, data) })
}

// readAlike says whether a text is read without the scanner, and fails where it is read otherwise by it.
func readAlike(t *testing.T, data []byte) bool {
	t.Helper()
	text := string(data)
	if !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	if _, u := inspect([]byte(text)); u != nil {
		return false
	}
	plain, ok := readPlain(text, 7)
	if !ok {
		return false
	}
	any, u := readAny(text, []byte(text), 7)
	if u != nil {
		t.Fatalf("%q: the scanner refuses it: %s", text, u.problem)
	}
	if !reflect.DeepEqual(plain, any) {
		t.Fatalf("%q:\nplain %+v\nscanner %+v", text, plain, any)
	}
	return true
}
