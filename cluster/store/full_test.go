package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/perigee-net/perigee/testbed/tmpfs"
)

// fill makes a node's disk full, for all that is not there already, or gives it room again.
func (m *member) fillDisk(full bool) {
	d := m.files.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail = func() error { return nil }
	if full {
		d.fail = func() error { return &os.PathError{Op: "write", Path: raftFile, Err: syscall.ENOSPC} }
	}
}

// nearlyFull makes a node's disk say how much room it has.
func (m *member) nearlyFull(free uint64) {
	m.files.disk.room = func() (uint64, error) { return free, nil }
}

func TestALeaderRefusesChangesBeforeItsDiskIsFull(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.cluster("icn1", "nrt1", "fra1")
		w.write(all[0], "a", "1")
		all[0].nearlyFull(keptRoom)
		_, err := all[0].Apply(t.Context(), Change{Put: []Object{put("k", "a", "2")}})
		if !errors.Is(err, ErrNoRoom) || errors.Is(err, ErrUnknownOutcome) {
			t.Errorf("apply: got %v", err)
		}
		if err := all[0].Demote(t.Context(), "fra1"); err != nil {
			t.Errorf("a change of the members has room: %v", err)
		}
		all[0].nearlyFull(membersRoom - 1)
		if err := all[0].Remove(t.Context(), "fra1"); !errors.Is(err, ErrNoRoom) {
			t.Errorf("a change of the members: got %v", err)
		}
		if err := all[0].Verify(t.Context()); err != nil || all[0].State().Get().Revision != 1 {
			t.Errorf("it does not serve: %v", err)
		}
		all[0].nearlyFull(2 * keptRoom)
		w.write(all[0], "a", "2")
		w.at(all[2], 2)
	})
}

// TestAFullDiskStopsNothingButItsNode: writes fail at the leader, then at a follower, then everywhere, and then there is room again.
func TestAFullDiskStopsNothingButItsNode(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.cluster("icn1", "nrt1", "fra1")
		w.write(all[0], "a", "1")
		w.at(all[1], 1)
		w.at(all[2], 1)
		all[0].fillDisk(true)
		_, err := all[0].Apply(t.Context(), Change{ID: "refused", Put: []Object{put("k", "a", "refused")}})
		if !errors.Is(err, ErrNoRoom) || errors.Is(err, ErrUnknownOutcome) {
			t.Fatalf("got %v", err)
		}
		var leader *member
		for range 100 { // it may be elected again, and steps down again
			time.Sleep(time.Second)
			if l := all[1].Leader().Get(); l.Name != "" && l.Name != "icn1" {
				if m := w.nodes[l.Name]; m.Verify(t.Context()) == nil {
					leader = m
					break
				}
			}
		}
		if leader == nil {
			t.Fatal("no node with room comes to lead")
		}
		for i := range 3 {
			w.write(leader, "a", fmt.Sprint("later ", i))
		}
		if s := all[0].State().Get(); s.Revision == 0 {
			t.Error("it has lost what it knew")
		}
		if c := all[0].Counters(); c["store_disk_failing"] != 1 || c["store_disk_failures_total"] == 0 {
			t.Errorf("counted %v", c)
		}
		// There is room again: it takes what it missed, without being started again.
		all[0].fillDisk(false)
		w.at(all[0], 4)

		for _, m := range all {
			m.fillDisk(true)
		}
		time.Sleep(time.Minute) // elections, which need no room
		for _, m := range all {
			if a, _ := m.State().Get().Get("k", "a"); string(a.Bytes) != "later 2" {
				t.Errorf("%s serves %q", m.name, a.Bytes)
			}
			m.fillDisk(false)
		}
		leader = w.leader(all...)
		if got := w.write(leader, "a", "after"); got != 5 {
			t.Errorf("it goes on at %d", got)
		}
		for _, m := range all {
			if a, _ := w.at(m, 5).Get("k", "a"); string(a.Bytes) != "after" {
				t.Errorf("%s has %q", m.name, a.Bytes)
			}
			m.close()
			w.start(m)
		}
		w.leader(all...)
		for _, m := range all {
			w.at(m, 5)
		}
		w.same(all...)
	})
}

// TestAFollowerThatCouldNotReplaceEntriesIsNotStuck: the entries of a former leader are to be replaced, and there is no room for it.
func TestAFollowerThatCouldNotReplaceEntriesIsNotStuck(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.cluster("icn1", "nrt1", "fra1")
		w.write(all[0], "a", "1")
		w.in.CutOff("icn1")
		for i := range 5 { // these come into its log, and are never agreed on
			all[0].Submit(Change{Put: []Object{put("k", "lost", fmt.Sprint(i))}})
		}
		next := w.leader(all[1:]...)
		w.write(next, "a", "2")
		all[0].fillDisk(true)
		w.in.Rejoin("icn1")
		time.Sleep(10 * time.Second)
		all[0].fillDisk(false)
		s := w.at(all[0], 2)
		if _, found := s.Get("k", "lost"); found {
			t.Error("what was never agreed is there")
		}
		w.write(w.leader(all...), "a", "3")
		for _, m := range all {
			w.at(m, 3)
		}
		w.same(all...)
	})
}

// TestARealFullDisk fills a file system of 4 MiB, and makes room again.
func TestARealFullDisk(t *testing.T) {
	dir := t.TempDir()
	tmpfs.Mount(t, dir, 4<<20)
	path := filepath.Join(dir, raftFile)
	d, err := openDisk(path, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := makeVotes(filepath.Join(dir, voteFile)); err != nil {
		t.Fatal(err)
	}
	v, err := openVotes(filepath.Join(dir, voteFile), false)
	if err != nil {
		t.Fatal(err)
	}
	defer v.close()
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.roomFor(keptRoom); !errors.Is(err, ErrNoRoom) {
		t.Errorf("room: %v", err)
	}
	large := strings.Repeat("full ", 10_000)
	stored, refused := uint64(0), 0
	for refused < 3 {
		if err := d.StoreLog(entry(stored+1, large)); err == nil {
			stored++
		} else if !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("entry %d: %v", stored+1, err)
		} else {
			refused++
		}
		if stored > 1000 {
			t.Fatal("it is never full")
		}
	}
	for term := uint64(1); term < 20; term++ { // what must be written has its place
		if err := errors.Join(v.SetUint64(keyTerm, term), vote(v, term, "192.0.2.1:7947")); err != nil {
			t.Fatal(err)
		}
	}
	before := content(t, d)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if err := d.StoreLog(entry(stored+1, large)); err != nil {
			t.Fatalf("with room: %v", err)
		}
		stored++
	}
	after := content(t, d)
	if err := d.close(); err != nil {
		t.Fatal(err)
	}
	if d, err = openDisk(path, false); err != nil {
		t.Fatal(err)
	}
	defer d.close()
	if got := content(t, d); got != after || !strings.Contains(got, before[strings.Index(before, "\n"):]) {
		t.Error("opened again it holds something else")
	}
}

// TestALogThatCouldNotBeDroppedIsDroppedWithTheNextEntries is of a snapshot that took the log's place while there was no room.
func TestALogThatCouldNotBeDroppedIsDroppedWithTheNextEntries(t *testing.T) {
	path := filepath.Join(t.TempDir(), raftFile)
	d := newDisk(t, path)
	fill(t, d, 1, 9)
	works := d.fail
	d.fail = func() error { return syscall.ENOSPC }
	if err := d.DeleteRange(1, 9); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	d.fail = works
	first, _ := d.FirstIndex()
	last, _ := d.LastIndex()
	if first != 0 || last != 0 {
		t.Errorf("it holds %d to %d", first, last)
	}
	if err := d.StoreLog(entry(50, "behind")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := content(t, d); got != "50 50\n50 6 behind\n" {
			t.Errorf("it holds %q", got)
		}
		d.close()
		d = newDisk(t, path)
	}
}
