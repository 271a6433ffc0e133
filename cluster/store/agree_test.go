package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

func TestSubmittedChangesAreAppliedInTheirOrder(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.cluster("icn1", "nrt1", "fra1")
		var pending []*Pending
		for i := range uint64(300) { // each one needs the one before
			p, err := all[0].Submit(Change{Expect: &i, Put: []Object{put("k", "a", fmt.Sprint(i))}})
			if err != nil {
				t.Fatal(err)
			}
			pending = append(pending, p)
		}
		for i, p := range pending {
			if revision, err := p.Wait(t.Context()); err != nil || revision != uint64(i+1) {
				t.Fatalf("change %d: revision %d, %v", i, revision, err)
			}
			if revision, err := p.Wait(t.Context()); err != nil || revision != uint64(i+1) {
				t.Fatalf("change %d, asked again: revision %d, %v", i, revision, err)
			}
		}
		for _, m := range all {
			w.at(m, 300)
		}
		w.same(all...)
		if c := all[0].Counters(); c["store_pending"] != 0 {
			t.Errorf("counted %v", c)
		}
	})
}

func TestMoreThanIsUnderWayIsRefused(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.cluster("icn1", "nrt1", "fra1")
		w.leader(all...)
		w.in.CutOff("icn1")
		var pending []*Pending
		for {
			p, err := all[0].Submit(Change{Put: []Object{put("k", "a", fmt.Sprint(len(pending)))}})
			if errors.Is(err, ErrBusy) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			pending = append(pending, p)
		}
		if len(pending) != maxPending {
			t.Errorf("%d are under way", len(pending))
		}
		for _, p := range pending {
			if _, err := p.Wait(t.Context()); err == nil {
				t.Fatal("a change of a minority is applied")
			}
		}
		if _, err := all[0].Submit(Change{}); err != nil {
			t.Errorf("when they are answered: %v", err)
		}
	})
}

func TestAMinorityNamesTheLastLeader(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.cluster("icn1", "nrt1", "fra1")
		w.leader(all...)
		w.in.CutOff("fra1")
		time.Sleep(10 * time.Second)
		_, err := all[2].Apply(t.Context(), Change{Put: []Object{put("k", "a", "1")}})
		var nobody *NotLeaderError
		if !errors.As(err, &nobody) || nobody.Name != "" || nobody.Last.Name != "icn1" || !strings.Contains(err.Error(), all[0].cfg.Advertise) {
			t.Errorf("got %v", err)
		}
	})
}

// TestVerifyCostsNoEntry: but for the first of a term.
func TestVerifyCostsNoEntry(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.cluster("icn1", "nrt1", "fra1")
		w.leader(all...)
		w.write(all[0], "a", "1")
		before := all[0].raft.LastIndex()
		var asking sync.WaitGroup
		for range 50 {
			asking.Go(func() {
				if err := all[0].Verify(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		asking.Wait()
		if after := all[0].raft.LastIndex(); after != before {
			t.Errorf("the log grew from %d to %d", before, after)
		}
		// One of three that is silent makes no difference, two do.
		w.in.CutOff("fra1")
		begin := time.Now()
		if err := all[0].Verify(t.Context()); err != nil || time.Since(begin) > time.Second {
			t.Errorf("without one: %v after %v", err, time.Since(begin))
		}
		w.in.CutOff("nrt1")
		if err := all[0].Verify(t.Context()); !errors.Is(err, ErrNoMajority) && !errors.As(err, new(*NotLeaderError)) {
			t.Errorf("alone: %v", err)
		}
	})
}

// TestAnAnswerFromBeforeDoesNotMakeALeader: one that was cut off, while another was elected, has the answers to its
// old requests, and does not say that it leads.
func TestAnAnswerFromBeforeDoesNotMakeALeader(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.tune = func(c *Config) { c.RoundTrip = 50 * time.Millisecond }
		all := w.cluster("icn1", "nrt1", "fra1")
		w.slow(40 * time.Millisecond)
		for range 20 {
			leader := w.leader(all...)
			var others []*member
			for _, m := range all {
				if m != leader {
					others = append(others, m)
				}
			}
			before := leader.State().Get().Revision
			w.in.CutOff(leader.name)
			stale := make(chan error, 1)
			agreed := make(chan struct{})
			go func() {
				<-agreed
				stale <- leader.Verify(t.Context())
			}()
			next := w.leader(others...)
			w.write(next, "a", fmt.Sprint(before))
			close(agreed)
			if err := <-stale; err == nil {
				t.Fatal("a former leader says that it leads")
			}
			w.in.Rejoin(leader.name)
			w.at(leader, before+1)
		}
	})
}

// TestAStateIsRestoredOnAllNodes also on one that was away, and one that comes later.
func TestAStateIsRestoredOnAllNodes(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.cluster("icn1", "nrt1", "fra1")
		for i := range 10 {
			w.write(all[0], "old", fmt.Sprint(i))
		}
		old := all[0].State().Get()
		if err := all[0].Restore(t.Context(), old); err == nil {
			t.Error("a state that is not newer is restored")
		}
		saved, _, err := (&State{Table: Table{Revision: 40}}).With(Change{Put: []Object{put("k", "restored", "1")}})
		if err != nil {
			t.Fatal(err)
		}
		var elsewhere *NotLeaderError
		if err := all[1].Restore(t.Context(), saved); !errors.As(err, &elsewhere) {
			t.Errorf("at a follower: %v", err)
		}
		w.in.CutOff("fra1")
		if err := all[0].Restore(t.Context(), saved); err != nil {
			t.Fatal(err)
		}
		if got := w.write(all[0], "after", "1"); got != 42 {
			t.Errorf("it goes on at %d", got)
		}
		w.in.Rejoin("fra1")
		late := w.start(w.add("syd1"))
		if err := all[0].AddNonvoter(t.Context(), "syd1", late.cfg.Advertise); err != nil {
			t.Fatal(err)
		}
		all = append(all, late)
		for range 2 {
			for _, m := range all {
				s := w.at(m, 42)
				if _, found := s.Get("k", "old"); found {
					t.Errorf("%s has what was there before", m.name)
				}
				if _, found := s.Get("k", "restored"); !found {
					t.Errorf("%s has not what was restored", m.name)
				}
			}
			w.same(all...)
			for _, m := range all {
				m.close()
				w.start(m)
			}
			w.leader(all[:3]...)
		}
		if left, _ := filepath.Glob(filepath.Join(all[0].cfg.Dir, "restore-*")); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
}

func TestOneSurvivorRecoversItsCluster(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.cluster("icn1", "nrt1", "fra1")
		for i := range 5 {
			w.write(all[0], "a", fmt.Sprint(i))
		}
		w.at(all[2], 5)
		m := all[2]
		recoverIt := func() error { return Recover(m.cfg.Dir, "fra1", m.cfg.Advertise, nil) }
		if err := recoverIt(); !errors.Is(err, ErrInUse) {
			t.Errorf("while it runs: %v", err)
		}
		for _, m := range all {
			m.close()
		}
		if err := Recover(t.TempDir(), "fra1", m.cfg.Advertise, nil); err == nil || !strings.Contains(err.Error(), raftFile) {
			t.Errorf("an empty folder: %v", err)
		}
		if err := Recover(m.cfg.Dir, "gru1", m.cfg.Advertise, nil); err == nil || !strings.Contains(err.Error(), "gru1") {
			t.Errorf("another node: %v", err)
		}
		for range 2 { // and if it is asked for twice
			time.Sleep(time.Second)
			if err := recoverIt(); err != nil {
				t.Fatal(err)
			}
		}
		w.start(m)
		if l := w.leader(m); l != m {
			t.Fatalf("%s leads", l.name)
		}
		if got := m.Servers(); len(got) != 1 || got[0] != (Server{"fra1", m.cfg.Advertise, true}) {
			t.Errorf("the members are %v", got)
		}
		w.at(m, 2*leapTo)
		if got := w.write(m, "a", "after"); got != 2*leapTo+1 {
			t.Errorf("it goes on at %d", got)
		}
		fresh := w.start(w.add("gru1"))
		if err := m.AddVoter(t.Context(), "gru1", fresh.cfg.Advertise); err != nil {
			t.Fatal(err)
		}
		w.at(fresh, 2*leapTo+1)
		w.same(m, fresh)
	})
}

func TestANodeThatOnlyFollowedRecoversItsCluster(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		m := w.add("fra1")
		w.start(m)
		journal, _, err := OpenJournal(m.cfg.Dir)
		if err != nil {
			t.Fatal(err)
		}
		known := new(State)
		for i := range 3 {
			if known, _, err = known.With(Change{Put: []Object{{Kind: "k", Name: "a", Bytes: fmt.Append(nil, i)}}}); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(journal.Save(known), journal.Close()); err != nil {
			t.Fatal(err)
		}
		m.close()
		if err := Recover(m.cfg.Dir, "fra1", m.cfg.Advertise, nil); err != nil {
			t.Fatal(err)
		}
		w.start(m)
		w.leader(m)
		w.at(m, leapTo)
		if o, _ := m.State().Get().Get("k", "a"); string(o.Bytes) != "2" {
			t.Errorf("it has %q", o.Bytes)
		}
	})
}

func TestADamagedFolderIsNotRecovered(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		m := w.first("icn1")
		w.write(m, "a", "1")
		m.close()
		path := filepath.Join(m.cfg.Dir, voteFile)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for what, damage := range map[string]func() error{
			"vote damaged": func() error { return os.WriteFile(path, make([]byte, len(whole)), 0o600) },
			"vote gone":    func() error { return os.Remove(path) },
		} {
			if err := damage(); err != nil {
				t.Fatal(err)
			}
			if err := Recover(m.cfg.Dir, "icn1", m.cfg.Advertise, nil); err == nil || !strings.Contains(err.Error(), path) {
				t.Errorf("%s: got %v", what, err)
			}
			if err := m.start(); err == nil || !strings.Contains(err.Error(), path) {
				t.Errorf("%s: it opens: %v", what, err)
			}
			m.close()
		}
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		w.start(m)
		w.leader(m)
		w.at(m, 1)
	})
}

func TestALeadGoesToWhomItIsGiven(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.cluster("icn1", "nrt1", "fra1")
		w.leader(all...)
		if err := all[0].TransferTo(t.Context(), "fra1"); err != nil {
			t.Fatal(err)
		}
		if l := w.leader(all...); l != all[2] {
			t.Fatalf("%s leads", l.name)
		}
		if err := all[2].Demote(t.Context(), "icn1"); err != nil {
			t.Fatal(err)
		}
		w.write(all[2], "a", "1")
		w.at(all[0], 1)
		if err := all[2].TransferTo(t.Context(), "icn1"); err == nil {
			t.Error("the lead goes to one without a vote")
		}
		last, err := all[2].Progress(t.Context(), "icn1")
		if err != nil || last+closeEnough < all[2].Applied() {
			t.Errorf("it follows to %d, %v; the leader is at %d", last, err, all[2].Applied())
		}
		if _, err := all[2].Progress(t.Context(), "syd1"); err == nil {
			t.Error("one that is no member follows")
		}
		if _, err := all[1].Progress(t.Context(), "icn1"); !errors.As(err, new(*NotLeaderError)) {
			t.Errorf("a follower says %v", err)
		}
	})
}

// syncBuffer is a log that many write.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) lines(with ...string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
lines:
	for line := range strings.Lines(s.b.String()) {
		for _, text := range with {
			if !strings.Contains(line, text) {
				continue lines
			}
		}
		n++
	}
	return n
}

func TestAPeerThatIsAwayIsToldOfOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		logs := map[string]*syncBuffer{}
		w.tune = func(c *Config) {
			logs[c.Name] = &syncBuffer{}
			c.Log = slog.New(slog.NewTextHandler(logs[c.Name], nil))
		}
		all := w.cluster("icn1", "nrt1", "fra1")
		w.leader(all...)
		before := map[string]int{}
		for name, log := range logs {
			before[name] = log.lines()
		}
		w.in.CutOff("fra1")
		time.Sleep(10 * time.Minute)
		if n := all[0].Counters()["store_peers_unreachable"]; n != 1 {
			t.Errorf("%d peers are unreachable", n)
		}
		w.in.Rejoin("fra1")
		w.write(all[0], "a", "1")
		w.at(all[2], 1)
		time.Sleep(time.Minute)
		if down, up := logs["icn1"].lines("WARN", "peer is unreachable", "peer=fra1"), logs["icn1"].lines("INFO", "peer is reachable again", "peer=fra1"); down != 1 || up != 1 {
			t.Errorf("told %d times that it is away, %d times that it is back", down, up)
		}
		if more := logs["icn1"].lines() - before["icn1"]; more > 4 {
			t.Errorf("the leader has %d lines:\n%s", more, logs["icn1"].b.String())
		}
		if more := logs["fra1"].lines() - before["fra1"]; more > 16 {
			t.Errorf("the other has %d lines:\n%s", more, logs["fra1"].b.String())
		}
	})
}

func TestARequestIsBoundedByBytes(t *testing.T) {
	for _, test := range []struct {
		sizes []int
		sent  int
	}{
		{nil, 0}, {[]int{1, 2, 3}, 3}, {[]int{maxRequest, 1}, 1}, {[]int{maxRequest + 1, 1}, 1}, {[]int{1, maxRequest, 1}, 1}, {[]int{maxRequest / 2, maxRequest / 2, 0}, 3},
	} {
		var req raft.AppendEntriesRequest
		for _, size := range test.sizes {
			req.Entries = append(req.Entries, &raft.Log{Data: make([]byte, size)})
		}
		if shorten(&req); len(req.Entries) != test.sent {
			t.Errorf("of %v it sends %d, want %d", test.sizes, len(req.Entries), test.sent)
		}
	}
	// And those that were not sent come with the next request.
	inWorld(t, func(t *testing.T, w *world) {
		all := w.cluster("icn1", "nrt1", "fra1")
		w.in.CutOff("fra1")
		noise := make([]byte, MaxObject)
		seed := uint32(1)
		for i := range noise {
			seed = seed*1664525 + 1013904223
			noise[i] = byte(seed >> 24)
		}
		for i := range 12 {
			w.apply(all[0], Change{Put: []Object{{Kind: "k", Name: fmt.Sprint(i), Bytes: noise}}})
		}
		w.in.Rejoin("fra1")
		if w.at(all[2], 12).Sum() != all[0].State().Get().Sum() {
			t.Error("it has something else")
		}
	})
}

func TestCloseEndsWhoVerifies(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.cluster("icn1", "nrt1", "fra1")
		w.leader(all...)
		w.in.CutOff("icn1")
		asked := make(chan error, 1)
		go func() { asked <- all[0].Verify(context.Background()) }()
		synctest.Wait()
		begin := time.Now()
		all[0].close()
		if err := <-asked; err == nil || time.Since(begin) > 3*time.Second {
			t.Errorf("got %v after %v", err, time.Since(begin))
		}
		if err := all[0].Verify(context.Background()); !errors.Is(err, ErrClosed) {
			t.Errorf("closed: %v", err)
		}
	})
}
