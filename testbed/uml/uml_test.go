package uml

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAllFaultsOfARunAreToldAtOnce(t *testing.T) {
	for _, c := range []struct {
		config Config
		want   []string // parts of the error, in order; none: no error
	}{
		{Config{Command: []string{"true"}}, nil},
		{Config{Command: []string{"true", "a b", "'"}, Env: []string{"A=b=c", "B="}, Dir: "/tmp/with space", Memory: 64, Modules: []string{"sch_netem", "nf-nat"}}, nil},
		{Config{}, []string{"command: there is none"}},
		{Config{Command: []string{""}}, []string{"command: there is none"}},
		{Config{Memory: 63, Timeout: -1, Dir: "tmp", Env: []string{"A", "=b", "A;b=c"}, Modules: []string{"-r", "../x", ""}, Command: []string{"a\x00b"}}, []string{
			"memory: 63 MiB are not within 64…8192", `"a\x00b" has a zero byte`, `environment: "A" is not`, `"=b" is not`, `"A;b=c" is not`,
			`modules: "-r"`, `modules: "../x"`, `modules: ""`, `dir: "tmp" is not`, "timeout: -1ns"}},
		{Config{Command: []string{"true"}, Memory: 8193, Dir: "/a,b"}, []string{"memory: 8193", `dir: "/a,b"`}},
		{Config{Command: []string{"true"}, Dir: "/"}, []string{`dir: "/"`}},
		{Config{Command: []string{"true"}, Dir: "/a/../b"}, []string{`dir: "/a/../b"`}},
		{Config{Command: make([]string, mostArguments+1)}, []string{"command: there is none", "more than 1000 words"}},
	} {
		err := c.config.check()
		if len(c.want) == 0 {
			if err != nil {
				t.Errorf("%v: %v", c.config.Command, err)
			}
			continue
		}
		if err == nil {
			t.Errorf("no error, want %q", c.want)
			continue
		}
		rest := err.Error()
		for _, part := range c.want {
			_, after, ok := strings.Cut(rest, part)
			if !ok {
				t.Errorf("%q is not where it belongs in\n%v", part, err)
				break
			}
			rest = after
		}
	}
}

func TestTheFirstProgramIsAsItWas(t *testing.T) {
	c := Config{Memory: 512, Command: []string{"/bin/it's", "-a", "b c", ""}, Env: []string{"X=$HOME `id`"}, Dir: "/tmp/a folder", Modules: []string{"sch_netem", "veth"}}
	got := strings.Join(c.arguments("/tmp/perigee-uml-1"), "\n") + "\n\n" + c.script("end mark ")
	const golden = "testdata/init.golden"
	want, err := os.ReadFile(golden)
	if os.Getenv("UPDATE") != "" {
		err = errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(golden, []byte(got), 0o644))
		want = []byte(got)
	}
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("other than %s (UPDATE=1 makes it anew):\n%s", golden, d)
	}
}

func TestTheExitCodeIsReadHoweverItComes(t *testing.T) {
	const end = "end 1234 "
	for _, c := range []struct {
		name, sent, out string
		code            int
		over, fault     bool
	}{
		{name: "nothing"},
		{name: "only output", sent: "hello\nend 12", out: "hello\nend 12"},
		{name: "exit 0", sent: "hello\nend 1234 0\n", out: "hello\n", over: true},
		{name: "exit 255, no newline before the mark", sent: "helloend 1234 255\nmore", out: "hello", code: 255, over: true},
		{name: "almost the mark, then the mark", sent: "end 123end 12end 1234 7\n", out: "end 123end 12", code: 7, over: true},
		{name: "what comes after is nobody's", sent: "aend 1234 7\nend 1234 8\nxx", out: "a", code: 7, over: true},
		{name: "the code is cut off", sent: "aend 1234 7", out: "a"},
		{name: "no code", sent: "aend 1234 \n", out: "a", fault: true},
		{name: "a word for a code", sent: "aend 1234 x\n", out: "a", fault: true},
		{name: "too great", sent: "aend 1234 256\n", out: "a", fault: true},
		{name: "too long", sent: "aend 1234 00000007\n", out: "a", fault: true},
	} {
		for _, size := range []int{1, 2, 3, 5, 1000} {
			var out bytes.Buffer
			l := &line{end: end, to: &out}
			_, err := io.CopyBuffer(struct{ io.Writer }{l}, struct{ io.Reader }{strings.NewReader(c.sent)}, make([]byte, size))
			if closed := l.Close(); closed != nil {
				t.Error(closed)
			}
			if out.String() != c.out || l.code != c.code || l.over != c.over || (err != nil) != c.fault {
				t.Errorf("%s, %d bytes at a time: %q, code %d, over %v, %v", c.name, size, out.String(), l.code, l.over, err)
			}
		}
	}
}

func TestOutputThatNobodyTakesIsAnError(t *testing.T) {
	l := &line{end: "end ", to: full{}}
	if _, err := l.Write([]byte("hello")); !errors.Is(err, io.ErrShortBuffer) {
		t.Error(err)
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, io.ErrShortBuffer }

func TestOnlyTheLastBootMessagesAreKept(t *testing.T) {
	b := &tail{most: 100}
	for range 10_000 {
		b.Write([]byte("boot\n\n"))
	}
	b.Write([]byte("a\n\n  b  \nc"))
	if len(b.kept) > 200 || cap(b.kept) > 1000 {
		t.Errorf("%d bytes are kept, of %d", len(b.kept), cap(b.kept))
	}
	if got := b.words(4); got != "boot; a; b; c" {
		t.Error(got)
	}
	b.Write([]byte("\nKernel panic - not syncing: x\nd\ne\nf\n"))
	if got := b.words(2); got != "Kernel panic - not syncing: x; d" {
		t.Error(got)
	}
}

// FuzzSerialLine: whatever the guest writes, no more is held back than mark and code are long, and what comes out is what went
// in before the mark.
func FuzzSerialLine(f *testing.F) {
	f.Add([]byte("hello\nend 7 1\n"), 3)
	f.Add([]byte("end end 7 end 7 255\n"), 1)
	f.Fuzz(func(t *testing.T, sent []byte, size int) {
		const end = "end 7 "
		size = max(1, min(size, 1000))
		var out bytes.Buffer
		l := &line{end: end, to: &out}
		for rest := sent; len(rest) > 0; {
			n := min(size, len(rest))
			if _, err := l.Write(rest[:n]); err != nil {
				break
			}
			rest = rest[n:]
			if len(l.held) > len(end)+mostCode+n {
				t.Fatalf("%d bytes are held back", len(l.held))
			}
		}
		l.Close()
		before, _, _ := bytes.Cut(sent, []byte(end))
		if !bytes.Equal(out.Bytes(), before) {
			t.Errorf("%q came of %q", out.Bytes(), sent)
		}
	})
}
