package lines

import (
	"bytes"
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
		path := filepath.Join(t.TempDir(), "some.log")
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
		if got, c := read(t, path), l.Counts(); got != "one\ntwo\n" || c.Written != 2 || c.Dropped != 1 {
			t.Errorf("got %q, %v", got, c)
		}
	})
}

func TestAFileIsAppendedToAndWhatACrashCutOffEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "some.log")
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
		path := filepath.Join(t.TempDir(), "some.log")
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
		if len(files) != Files+1 || l.Counts().Rotated != Files+2 {
			t.Errorf("got %v, %v", files, l.Counts())
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
		path := filepath.Join(folder, "some.log")
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
		if got, c := read(t, path), l.Counts(); got != "four\n" && got != "one\nfour\n" || c.Lost != 2 || c.Written != 2 {
			t.Errorf("got %q, %v", got, c)
		}
	})
	if _, err := Open(Config{Path: filepath.Join(t.TempDir(), "none", "some.log")}); err == nil {
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
		c := l.Counts()
		if wrote := bytes.Count(out.Bytes(), []byte("\n")); uint64(wrote) != c.Written || wrote > 2*QueueBytes/len(line) ||
			c.Written+c.Dropped != 4*QueueBytes/1024 || c.Dropped == 0 {
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
	c := l.Counts()
	if n := uint64(strings.Count(out.String(), "0123456789\n")); n != c.Written || n+c.Dropped != 8000 || len(out.String()) != int(n)*11 {
		t.Errorf("%d lines, %v", n, c)
	}
}
