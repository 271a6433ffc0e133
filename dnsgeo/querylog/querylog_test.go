package querylog

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// later waits, in virtual time, until what was added is written.
func later() {
	time.Sleep(2 * Pause)
	synctest.Wait()
}

func TestLinesAreWrittenSoonAndTheRestAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "dns.log")
		l, err := Open(Config{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		l.Add([]byte("one\n"))
		later()
		if got := read(t, path); got != "one\n" {
			t.Errorf("got %q", got)
		}
		l.Add([]byte("two\n"))
		l.Close()
		l.Add([]byte("too late\n"))
		l.Close()
		if got, c := read(t, path), l.Counters(); got != "one\ntwo\n" || c["dns_log_lines_total"] != 2 || c["dns_log_dropped_total"] != 1 {
			t.Errorf("got %q, %v", got, c)
		}
	})
}

func TestAFileIsAppendedToAndWhatACrashCutOffEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "dns.log")
		if err := os.WriteFile(path, []byte("one\ntw"), 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := Open(Config{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		l.Add([]byte("three\n"))
		l.Close()
		if got := read(t, path); got != "one\ntw\nthree\n" {
			t.Errorf("got %q", got)
		}
	})
}

func TestFilesAreRotatedBySizeAndTheOldestGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "dns.log")
		l, err := Open(Config{Path: path, Bytes: 10})
		if err != nil {
			t.Fatal(err)
		}
		for i := range Files + 3 {
			l.Add(fmt.Appendf(nil, "line %d\n", i))
			later()
		}
		l.Close()
		files, _ := filepath.Glob(path + "*")
		if len(files) != Files+1 || l.Counters()["dns_log_rotations_total"] != Files+2 {
			t.Errorf("got %v, %v", files, l.Counters())
		}
		for i, name := range append([]string{path}, files[1:]...) {
			if got, want := read(t, name), fmt.Sprintf("line %d\n", Files+2-i); got != want {
				t.Errorf("%s has %q, want %q", name, got, want)
			}
		}
	})
}

func TestADiskThatFailsCostsLinesAndIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		folder := filepath.Join(t.TempDir(), "logs")
		if err := os.Mkdir(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(folder, "dns.log")
		l, err := Open(Config{Path: path, Bytes: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		l.Add([]byte("one\n"))
		later()
		if err := os.Rename(folder, folder+".away"); err != nil {
			t.Fatal(err)
		}
		l.Add([]byte("two\n"))
		l.Add([]byte("three\n"))
		later()
		if err := os.Rename(folder+".away", folder); err != nil {
			t.Fatal(err)
		}
		l.Add([]byte("four\n"))
		later()
		if got, c := read(t, path), l.Counters(); got != "four\n" && got != "one\nfour\n" || c["dns_log_lost_total"] != 2 || c["dns_log_lines_total"] != 2 {
			t.Errorf("got %q, %v", got, c)
		}
	})
	if _, err := Open(Config{Path: filepath.Join(t.TempDir(), "none", "dns.log")}); err == nil {
		t.Error("a path that cannot be is no error of the start")
	}
}

// stuck is an output that takes nothing until it is let go.
type stuck struct {
	bytes.Buffer
	gate chan struct{}
}

func (s *stuck) Write(b []byte) (int, error) {
	<-s.gate
	return s.Buffer.Write(b)
}

func TestAnOutputThatIsStuckHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &stuck{gate: make(chan struct{})}
		l, err := Open(Config{Path: Stdout, Out: out})
		if err != nil {
			t.Fatal(err)
		}
		line := []byte(strings.Repeat("x", 1023) + "\n")
		began := time.Now()
		for range 4 * QueueBytes / len(line) {
			l.Add(line)
			synctest.Wait() // the writer takes the first queue when it is half full
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("to add took %v", took)
		}
		close(out.gate)
		l.Close()
		c := l.Counters()
		if wrote := bytes.Count(out.Bytes(), []byte("\n")); uint64(wrote) != c["dns_log_lines_total"] || wrote > 2*QueueBytes/len(line) ||
			c["dns_log_lines_total"]+c["dns_log_dropped_total"] != 4*QueueBytes/1024 || c["dns_log_dropped_total"] == 0 {
			t.Errorf("wrote %d, %v", wrote, c)
		}
	})
}

func TestManyMayAddAtOnceAndCloseMeanwhile(t *testing.T) {
	var out bytes.Buffer
	l, err := Open(Config{Path: Stdout, Out: &out})
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 1000 {
				l.Add([]byte("0123456789\n"))
			}
		})
	}
	all.Go(func() { l.Close() })
	all.Wait()
	c := l.Counters()
	if n := uint64(strings.Count(out.String(), "0123456789\n")); n != c["dns_log_lines_total"] || n+c["dns_log_dropped_total"] != 8000 || len(out.String()) != int(n)*11 {
		t.Errorf("%d lines, %v", n, c)
	}
}

// Whatever the octets of a name are, it stays in its field and its line.
func FuzzName(f *testing.F) {
	f.Add([]byte("\x03www\x07example\x03com\x00"))
	f.Add([]byte("\x04\"\n \\\x00"))
	f.Add([]byte("\x3f"))
	f.Fuzz(func(t *testing.T, name []byte) {
		e := Entry{Zone: "example.com", Name: name, POP: "icn1", Proto: "udp", Count: 2}
		e.Answer = func(int) (uint16, uint32, []byte) { return []uint16{2, 16}[len(name)%2], 1, name }
		line := string(e.AppendRoute53(nil))
		if strings.Count(line, " ") != 9 || strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "\n") {
			t.Errorf("%q", line)
		}
		var got struct{ Name, Type string }
		text := e.AppendJSON(nil)
		if err := json.Unmarshal(text, &got); err != nil || got.Name != strings.Fields(line)[3] || bytes.Count(text, []byte("\n")) != 1 {
			t.Errorf("%q: %v, %q", text, err, got.Name)
		}
	})
}
