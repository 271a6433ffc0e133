package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func newVotes(t testing.TB, path string) *votes {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		if err := makeVotes(path); err != nil {
			t.Fatal(err)
		}
	}
	v, err := openVotes(path, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.close() })
	return v
}

func vote(v *votes, term uint64, for_ string) error {
	return errors.Join(v.SetUint64(keyVoteTerm, term), v.Set(keyVote, []byte(for_)))
}

// promised is all that is kept, as text.
func promised(v *votes) string {
	term, _ := v.GetUint64(keyTerm)
	voteTerm, _ := v.GetUint64(keyVoteTerm)
	for_, _ := v.Get(keyVote)
	return fmt.Sprintf("%d %d %s %v", term, voteTerm, for_, for_ == nil)
}

func TestTermAndVoteAreKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), voteFile)
	v := newVotes(t, path)
	if got := promised(v); got != "0 0  true" {
		t.Errorf("it begins with %s", got)
	}
	for term := uint64(1); term < 5; term++ {
		if err := errors.Join(v.SetUint64(keyTerm, term), vote(v, term, fmt.Sprint("icn1:", term))); err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("%d %d icn1:%d false", term, term, term)
		if got := promised(v); got != want {
			t.Errorf("it says %s, want %s", got, want)
		}
		v.close()
		v = newVotes(t, path)
		if got := promised(v); got != want {
			t.Errorf("opened again it says %s, want %s", got, want)
		}
	}
	if err := v.SetUint64(keyTerm, 2); err != nil || v.now.term != 4 {
		t.Errorf("the term goes back to %d, %v", v.now.term, err)
	}
	if err := vote(v, 5, strings.Repeat("x", maxVote+1)); err == nil {
		t.Error("a vote that is too long is taken")
	}
	for what, err := range map[string]error{
		"set": v.Set([]byte("x"), nil), "set number": v.SetUint64([]byte("x"), 1), "get": second(v.Get([]byte("x"))), "get number": second(v.GetUint64([]byte("x"))),
	} {
		if err == nil {
			t.Errorf("%s: a name that is not known is taken", what)
		}
	}
}

// TestAVoteSurvivesACrashAtAnyByte cuts each write off at each byte, and of what was not flushed keeps all or nothing.
func TestAVoteSurvivesACrashAtAnyByte(t *testing.T) {
	path := filepath.Join(t.TempDir(), voteFile)
	v := newVotes(t, path)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	type write struct {
		at   int64
		data []byte
	}
	var writes []write
	really := v.write
	v.write = func(data []byte, at int64) error {
		writes = append(writes, write{at, bytes.Clone(data)})
		return really(data, at)
	}
	cases := 0
	for term := uint64(1); term <= 6; term++ {
		old := promised(v)
		writes = nil
		do := func() error { return vote(v, term, fmt.Sprint("192.0.2.", term, ":7947")) }
		if term%2 == 0 {
			do = func() error { return v.SetUint64(keyTerm, term*1000) }
		}
		if err := do(); err != nil {
			t.Fatal(err)
		}
		now := promised(v)
		if len(writes) != 2 || writes[0].at == writes[1].at {
			t.Fatalf("it wrote %d times", len(writes))
		}
		image := bytes.Clone(before)
		for i, w := range writes { // one is flushed before the other begins
			for n := range len(w.data) + 1 {
				cases++
				torn := bytes.Clone(image)
				copy(torn[w.at:], w.data[:n])
				p, _, err := decodeVotes(torn)
				if err != nil {
					t.Fatalf("write %d cut off at %d: %v", i, n, err)
				}
				if got := promised(&votes{now: p}); got != old && got != now || i == 1 && got != now {
					t.Fatalf("write %d cut off at %d: it says %s; before %s, after %s", i, n, got, old, now)
				}
			}
			copy(image[w.at:], w.data)
		}
		before = image
	}
	t.Logf("%d crashes", cases)
}

func TestADamagedVoteIsNotForgotten(t *testing.T) {
	path := filepath.Join(t.TempDir(), voteFile)
	v := newVotes(t, path)
	if err := errors.Join(v.SetUint64(keyTerm, 7), vote(v, 7, "192.0.2.1:7947")); err != nil {
		t.Fatal(err)
	}
	want := promised(v)
	v.close()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for at := range len(whole) {
		data := bytes.Clone(whole)
		data[at] ^= 0x10
		p, _, err := decodeVotes(data)
		if got := promised(&votes{now: p}); err != nil || got != want {
			t.Fatalf("byte %d: %s, %v", at, got, err)
		}
	}
	for what, data := range map[string][]byte{
		"both copies": func() []byte { d := bytes.Clone(whole); d[20] ^= 1; d[voteSlot+20] ^= 1; return d }(),
		"cut off":     whole[:len(whole)-1], "longer": append(bytes.Clone(whole), 0), "empty": nil, "zeros": make([]byte, len(whole)),
	} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := openVotes(path, true); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v, want a refusal that names the file", what, err)
		}
	}
	// One copy is mended by the other.
	data := bytes.Clone(whole)
	clear(data[:voteSlot])
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	v = newVotes(t, path)
	if got, _ := os.ReadFile(path); promised(v) != want || !bytes.Equal(got[:8], voteMagic[:]) {
		t.Errorf("it says %s, and the copy begins with %q", promised(v), got[:8])
	}
}

func FuzzDecodeVotes(f *testing.F) {
	for _, p := range []promise{{}, {number: 3, term: 9, voteTerm: 9, vote: []byte("192.0.2.1:7947")}, {number: 1, vote: []byte{}}} {
		f.Add(append(p.encode(), p.encode()...))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < 2*voteSlot {
			return
		}
		p, _, err := decodeVotes(data)
		if err != nil {
			return
		}
		again, whole, err := decodeVotes(append(p.encode(), p.encode()...))
		if err != nil || !whole || promised(&votes{now: again}) != promised(&votes{now: p}) {
			t.Fatalf("%+v comes back as %+v, %v", p, again, err)
		}
	})
}

// TestATermThatCannotBeWrittenIsWaitedFor: Raft would panic, and take the data plane with it.
func TestATermThatCannotBeWrittenIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVotes(t, filepath.Join(t.TempDir(), voteFile))
		var told atomic.Int64
		v.failed = func(error) { told.Add(1) }
		var full atomic.Bool
		full.Store(true)
		really := v.write
		v.write = func(data []byte, at int64) error {
			if full.Load() {
				return errors.New("no")
			}
			return really(data, at)
		}
		if err := vote(v, 1, "a"); err == nil {
			t.Error("a vote that is not written is given")
		}
		done := make(chan error, 1)
		go func() { done <- v.SetUint64(keyTerm, 2) }()
		time.Sleep(3500 * time.Millisecond)
		synctest.Wait()
		if len(done) > 0 || told.Load() != 4 {
			t.Fatalf("%d answers, %d tries", len(done), told.Load())
		}
		full.Store(false)
		if err := <-done; err != nil || promised(v) != "2 0  true" {
			t.Errorf("got %v, %s", err, promised(v))
		}
		full.Store(true)
		ending := make(chan struct{})
		v.ending = ending
		go func() { done <- v.SetUint64(keyTerm, 3) }()
		time.Sleep(time.Second)
		close(ending)
		if <-done; promised(v) != "2 0  true" {
			t.Errorf("it says %s", promised(v))
		}
	})
}
