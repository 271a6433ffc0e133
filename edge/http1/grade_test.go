package http1

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// casesOfOthers stands beside the checkout, see the README there: requests and the grades that AWS's own library gives them.
const casesOfOthers = "../../../shared/data/http-desync"

// Every request of the data set has the grade and the reason that its authors gave it.
func TestGradesAgreeWithOthers(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(casesOfOthers, "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(casesOfOthers); errors.Is(err, fs.ErrNotExist) {
		t.Logf("%s is not there: nothing to compare with", casesOfOthers)
		return
	}
	n := 0
	for _, file := range files {
		for _, c := range readCases(t, file) {
			n++
			h := Read([]byte(c.head))
			if h.Reason.Grade().String() != c.grade || h.Reason.String() != c.reason {
				t.Errorf("%s: %s\n%q\ngot %s %s, want %s %s", filepath.Base(file), c.name, c.head, h.Reason.Grade(), h.Reason, c.grade, c.reason)
			}
		}
	}
	if n != 82 {
		t.Errorf("%d cases were read, want 82", n)
	}
}

type gradeCase struct{ name, head, grade, reason string }

// readCases reads the few forms of YAML that the data set has.
func readCases(t *testing.T, file string) (cases []gradeCase) {
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	text := func(s string) string {
		s = strings.TrimSpace(s)
		switch {
		case strings.HasPrefix(s, `"`):
			u, err := strconv.Unquote(s)
			if err != nil {
				t.Fatalf("%s: %s: %v", file, s, err)
			}
			return u
		case strings.HasPrefix(s, "'"):
			return strings.Trim(s, "'")
		}
		return s
	}
	var target, method, version string
	var c gradeCase
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line := lines.Text()
		key, value, _ := strings.Cut(strings.TrimLeft(line, " -"), ":")
		deep := strings.HasPrefix(line, "    ")
		switch {
		case strings.HasPrefix(line, "- name:"):
			c = gradeCase{name: text(value)}
		case key == "uri":
			target = text(value)
		case key == "method":
			method = text(value)
		case key == "version":
			version = text(value)
		case key == "headers":
			c.head = method + " " + target
			if version != "" {
				c.head += " " + version
			}
			c.head += "\r\n"
		case deep && strings.HasPrefix(line, "    - name:"):
			c.head += text(value) + ":"
		case deep && key == "value":
			c.head += text(value) + "\r\n"
		case line == "  expected:":
			c.head += "\r\n"
		case key == "tier":
			c.grade = text(value) // of the last one: that of the whole
		case key == "reason":
			c.reason = text(value)
			cases = append(cases, c)
		}
	}
	return cases
}

func TestEachReasonHasItsGradeAndIsGiven(t *testing.T) {
	seen := map[Reason]bool{}
	for _, c := range []struct {
		head   string
		reason Reason
		grade  Grade
		framed bool
	}{
		{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", NoReason, Compliant, true},
		{"GET / HTTP/1.0\r\n\r\n", NoReason, Compliant, true},
		{"POST / HTTP/1.1\r\nContent-Length: 12\r\n\r\n", NoReason, Compliant, true},
		{"POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n", NoReason, Compliant, true},
		{"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", NoReason, Compliant, false},
		{"POST / HTTP/1.1\r\nTransfer-Encoding: chunked;x=y\r\n\r\n", NoReason, Compliant, false},
		{"CONNECT x:1 HTTP/1.1\r\n\r\n", NoReason, Compliant, false},
		{"HEAD / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", GetHeadZeroContentLength, Acceptable, true},
		{"GET / HTTP/1.2\r\n\r\n", NonCompliantVersion, Acceptable, false},
		{"GET /\r\n\r\n", NonCompliantVersion, Acceptable, false},
		{"GET /a b HTTP/1.1\r\n\r\n", SpaceInUri, Acceptable, false},
		{"GET / HTTP/1.1\r\nX: \x01\r\n\r\n", NonCompliantHeader, Acceptable, true},
		{"GET / HTTP/1.1\r\nX : a\r\n\r\n", NonCompliantHeader, Acceptable, false},
		{"GET / HTTP/1.1\r\nX: a\r\n y: b\r\n\r\n", NonCompliantHeader, Acceptable, false},
		{"GET /\x7f HTTP/1.1\r\n\r\n", AmbiguousUri, Ambiguous, false},
		{"GET / HTTP/1.1\r\nContent-Length: 1\r\n\r\n", UndefinedContentLengthSemantics, Ambiguous, false},
		{"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", UndefinedTransferEncodingSemantics, Ambiguous, false},
		{"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", UndefinedTransferEncodingSemantics, Ambiguous, false},
		{"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n", BothTeClPresent, Ambiguous, false},
		{"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", DuplicateContentLength, Ambiguous, false},
		{"GET / HTTP/1.1\r\n: x\r\n\r\n", EmptyHeader, Ambiguous, false},
		{"POST / HTTP/1.1\r\nContent_Length: 1\r\n\r\n", SuspiciousHeader, Ambiguous, false},
		{"POST / HTTP/1.1\r\nX: a\r\n Transfer-Encoding: chunked\r\n\r\n", SuspiciousHeader, Ambiguous, false},
		{"GET / http/1.1\r\n\r\n", BadVersion, Severe, false},
		{"GET / HTTP/1.1 HTTP/1.1\r\n\r\n", BadVersion, Severe, false},
		{"GET / HTTP/1.1\nHost: x\n\n", BadVersion, Severe, false},
		{"GET /\x00 HTTP/1.1\r\n\r\n", BadUri, Severe, false},
		{"GET\r\n\r\n", BadUri, Severe, false},
		{"G\x01T / HTTP/1.1\r\n\r\n", BadMethod, Severe, false},
		{"POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", BadContentLength, Severe, false},
		{"POST / HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\n", BadContentLength, Severe, false},
		{"POST / HTTP/1.1\r\nContent-Length:\r\n\r\n", BadContentLength, Severe, false},
		{"POST / HTTP/1.1\r\nContent-Length: 9223372036854775808\r\n\r\n", BadContentLength, Severe, false},
		{"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", MultipleContentLength, Severe, false},
		{"POST / HTTP/1.1\r\nTransfer-Encoding: chunked, gzip\r\n\r\n", BadTransferEncoding, Severe, false},
		{"POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n", BadTransferEncoding, Severe, false},
		{"POST / HTTP/1.1\r\nTransfer-Encoding: chunked, chunked\r\n\r\n", MultipleTransferEncodingChunked, Severe, false},
		{"GET / HTTP/1.1\r\nX: a\r\n b\r\n\r\n", BadHeader, Severe, false},
		{"GET / HTTP/1.1\r\nX: a\rb\r\n\r\n", BadHeader, Severe, false},
		{"GET / HTTP/1.1\r\nX: a\nY: b\r\n\r\n", BadHeader, Severe, false},
		{"GET / HTTP/1.1\r\nX: \x00\r\n\r\n", BadHeader, Severe, false},
		{"GET / HTTP/1.1\r\nX\r\n\r\n", BadHeader, Severe, false},
		{"GET / HTTP/1.1\r\nX: a\r\n\n", BadHeader, Severe, false},
	} {
		h := Read([]byte(c.head))
		seen[h.Reason] = true
		if h.Reason != c.reason || h.Reason.Grade() != c.grade || h.Framed != c.framed {
			t.Errorf("%q: got %s %s framed=%v, want %s %s framed=%v", c.head, h.Reason.Grade(), h.Reason, h.Framed, c.grade, c.reason, c.framed)
		}
	}
	for r := range Reasons {
		if !seen[r] {
			t.Errorf("no head has %s", r)
		}
	}
}

func TestMitigationDecidesByGrade(t *testing.T) {
	type decision struct{ serve, last bool }
	yes, last, no := decision{true, false}, decision{true, true}, decision{}
	for mode, want := range map[Mitigation][Grades]decision{
		Unset:     {yes, yes, last, no},
		Monitor:   {yes, yes, yes, yes},
		Defensive: {yes, yes, last, no},
		Strictest: {yes, no, no, no},
	} {
		for g := range Grades {
			if serve, last := mode.Decide(g); (decision{serve, last}) != want[g] {
				t.Errorf("mode %d, %s: serve %v, last %v", mode, g, serve, last)
			}
		}
	}
}

func TestAModeIsKnownByItsName(t *testing.T) {
	for name, want := range map[string]Mitigation{"monitor": Monitor, "defensive": Defensive, "strictest": Strictest, "": Unset, "Strictest": Unset} {
		if got := MitigationOf(name); got != want {
			t.Errorf("%q is mode %d, want %d", name, got, want)
		}
	}
}

func TestChunksEndWhereTheyEnd(t *testing.T) {
	for _, c := range []struct {
		sent    string
		n       int // bytes that are well
		end, ok bool
	}{
		{"0\r\n\r\nGET", 5, true, true},
		{"5\r\nhello\r\n0\r\n\r\nGET", 15, true, true},
		{"a;x=\"y\"\r\n0123456789\r\n00\r\nT: 1\r\n\r\n", 33, true, true},
		{"5\r\nhel", 6, false, true},
		{"5\nhello", 1, false, false},
		{"5 \r\nhello", 1, false, false},
		{" 5\r\n", 0, false, false},
		{"0x5\r\n", 1, false, false},
		{"+5\r\n", 0, false, false},
		{"\r\n", 0, false, false},
		{"1\r\nab\r\n", 4, false, false},
		{"1\r\na\n", 4, false, false},
		{"0\r\n X: folded\r\n\r\n", 3, false, false},
		{"0\r\n\n", 3, false, false},
		{"0\r\nT: \x00\r\n\r\n", 6, false, false},
		{"1000000000000000\r\n", 15, false, false},
		{"1;" + strings.Repeat("x", maxChunkLine), maxChunkLine, false, false},
		{"0\r\n" + strings.Repeat("T: x\r\n", maxTrailers), 3 + maxTrailers, false, false},
	} {
		for _, step := range []int{len(c.sent), 1} {
			var chunks Chunks
			n, end, ok := 0, false, true
			for n < len(c.sent) && !end && ok {
				var m int
				m, end, ok = chunks.Next([]byte(c.sent[n:min(n+step, len(c.sent))]))
				n += m
			}
			if m, _, again := chunks.Next([]byte("\r\n0\r\n\r\n")); !ok && (m != 0 || again) {
				t.Errorf("%.40q is malformed, and then well", c.sent)
			}
			if n != c.n || end != c.end || ok != c.ok {
				t.Errorf("%.40q, %d at a time: got %d %v %v, want %d %v %v", c.sent, step, n, end, ok, c.n, c.end, c.ok)
			}
		}
	}
}
