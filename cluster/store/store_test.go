package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// world is the stores of a cluster on an in-memory internet.
type world struct {
	t     *testing.T
	in    *memnet.Internet
	nodes map[string]*member
	tune  func(*Config)
}

type member struct {
	*Store
	name string
	host *memnet.Host
	cfg  Config
	open bool
}

// inWorld runs a test in virtual time and ends what it left open.
func inWorld(t *testing.T, test func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, in: memnet.New(1), nodes: map[string]*member{}}
		defer w.in.Close()
		defer func() {
			for _, m := range w.nodes {
				m.close()
			}
		}()
		test(t, w)
	})
}

// add makes a machine with an empty folder.
func (w *world) add(name string) *member {
	host := w.in.Host(name, spec.Location{}, netip.AddrFrom4([4]byte{192, 0, 2, byte(len(w.nodes) + 1)}))
	m := &member{name: name, host: host, cfg: Config{
		Name: name, Dir: filepath.Join(w.t.TempDir(), name), NoSync: true,
		Advertise: netip.AddrPortFrom(host.Addr(), 7947).String(),
		Dial: func(ctx context.Context, _, address string) (net.Conn, error) {
			return host.Dial(ctx, "tcp", address)
		},
	}}
	if w.tune != nil {
		w.tune(&m.cfg)
	}
	w.nodes[name] = m
	return m
}

// start opens the node's store with what its folder holds.
func (w *world) start(m *member) *member {
	w.t.Helper()
	if err := m.start(); err != nil {
		w.t.Fatal(err)
	}
	return m
}

func (m *member) start() (err error) {
	if m.cfg.Listener, err = m.host.Listen("tcp", ":7947"); err != nil {
		return err
	}
	if m.Store, err = Open(m.cfg); err != nil {
		return err
	}
	m.open = true
	return nil
}

func (m *member) close() {
	if m.open {
		m.open = false
		m.Close()
	}
}

// first makes a cluster of one node and waits until it leads.
func (w *world) first(name string) *member {
	w.t.Helper()
	m := w.add(name)
	m.cfg.Bootstrap = true
	w.start(m)
	w.leader(m)
	return m
}

// cluster makes a cluster of voters; the first leads.
func (w *world) cluster(names ...string) []*member {
	w.t.Helper()
	all := []*member{w.first(names[0])}
	for _, name := range names[1:] {
		m := w.start(w.add(name))
		if err := all[0].AddVoter(w.t.Context(), name, m.cfg.Advertise); err != nil {
			w.t.Fatal(err)
		}
		all = append(all, m)
	}
	return all
}

// patience is far more than anything here may take, in virtual time.
const patience = time.Minute

// leader waits until all these nodes agree on a leader among them that takes changes, and returns it.
func (w *world) leader(among ...*member) *member {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	for ctx.Err() == nil {
		now := among[0].Leader().Get()
		i := slices.IndexFunc(among, func(m *member) bool { return m.name == now.Name })
		agreed := !slices.ContainsFunc(among, func(m *member) bool { return m.Leader().Get() != now })
		if i >= 0 && agreed && among[i].Verify(ctx) == nil {
			return among[i]
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.t.Fatal("no leader")
	return nil
}

// at waits until a node has a revision.
func (w *world) at(m *member, revision uint64) *State {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	for version := uint64(0); ; {
		s, v, err := m.State().Next(ctx, version)
		if err != nil {
			w.t.Fatalf("%s does not come to revision %d: it is at %d", m.name, revision, m.State().Get().Revision)
		}
		if s.Revision >= revision {
			return s
		}
		version = v
	}
}

func (w *world) apply(m *member, c Change) uint64 {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	revision, err := m.Apply(ctx, c)
	if err != nil {
		w.t.Fatalf("%s: %v", m.name, err)
	}
	return revision
}

// write puts one object.
func (w *world) write(m *member, name, content string) uint64 {
	w.t.Helper()
	return w.apply(m, Change{Put: []Object{put("k", name, content)}})
}

func (w *world) same(members ...*member) {
	w.t.Helper()
	for _, m := range members[1:] {
		if diff := gocmp.Diff(members[0].State().Get(), m.State().Get(), same); diff != "" {
			w.t.Errorf("%s and %s differ:\n%s", members[0].name, m.name, diff)
		}
	}
}

// slow makes every way between the nodes take this long, there and back.
func (w *world) slow(roundTrip time.Duration) {
	for a := range w.nodes {
		for b := range w.nodes {
			if a != b {
				w.in.Link(a, b, memnet.Path{Delay: roundTrip / 2})
			}
		}
	}
}

func TestOneNodeIsACluster(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		m := w.first("icn1")
		if s := m.State().Get(); s == nil || s.Revision != 0 {
			t.Errorf("it begins with %+v", s)
		}
		if l := m.Leader().Get(); l.Name != "icn1" || l.Address != m.cfg.Advertise || l.Term == 0 {
			t.Errorf("the leader is %+v", l)
		}
		begin := time.Now()
		c := Change{Put: []Object{put("k", "a", "1")}, Author: "ada", Note: "why"}
		if revision := w.apply(m, c); revision != 1 {
			t.Errorf("at revision %d", revision)
		}
		// The change is in effect here when Apply returns.
		s := m.State().Get()
		if a, ok := s.Get("k", "a"); !ok || string(a.Bytes) != "1" {
			t.Errorf("got %+v", a)
		}
		if r := s.History[0]; r.Author != "ada" || r.Note != "why" || r.Time.Before(begin) || r.Time.After(time.Now()) {
			t.Errorf("the history says %+v", r)
		}
		if got := m.Servers(); !slices.Equal(got, []Server{{"icn1", m.cfg.Advertise, true}}) {
			t.Errorf("the members are %v", got)
		}
	})
}

func TestWhatTheLeaderAppliesReachesAll(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.cluster("icn1", "nrt1", "fra1")
		for i := range 20 {
			w.write(all[0], fmt.Sprint(i), "content")
		}
		for _, m := range all {
			if s := w.at(m, 20); len(s.Objects) != 20 {
				t.Errorf("%s has %d objects", m.name, len(s.Objects))
			}
			if got := m.Servers(); len(got) != 3 || slices.ContainsFunc(got, func(s Server) bool { return !s.Voter }) {
				t.Errorf("%s knows %v", m.name, got)
			}
			if c := m.Counters(); c["store_changes_total"] != 20 || c["store_revision"] != 20 || c["store_fault"] != 0 {
				t.Errorf("%s counted %v", m.name, c)
			}
		}
		w.same(all...)
	})
}

func TestOnlyTheLeaderTakesChangesAndTheOthersSayWho(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.cluster("icn1", "nrt1", "fra1")
		w.leader(all...)
		for what, err := range map[string]error{
			"apply":        second(all[1].Apply(t.Context(), Change{Put: []Object{put("k", "a", "1")}})),
			"verify":       all[1].Verify(t.Context()),
			"add voter":    all[1].AddVoter(t.Context(), "fra1", all[2].cfg.Advertise),
			"add nonvoter": all[1].AddNonvoter(t.Context(), "fra1", all[2].cfg.Advertise),
			"remove":       all[1].Remove(t.Context(), "fra1"),
			"transfer":     all[1].TransferLeadership(t.Context()),
		} {
			var elsewhere *NotLeaderError
			if !errors.As(err, &elsewhere) || elsewhere.Name != "icn1" || elsewhere.Address != all[0].cfg.Advertise {
				t.Errorf("%s: got %v", what, err)
			}
		}
		// One that was never added knows of no leader.
		lone := w.start(w.add("syd1"))
		_, err := lone.Apply(t.Context(), Change{Put: []Object{put("k", "a", "1")}})
		var nobody *NotLeaderError
		if !errors.As(err, &nobody) || nobody.Name != "" {
			t.Errorf("without a cluster: %v", err)
		}
	})
}

func second[T any](_ T, err error) error { return err }

func TestConflictsAndRepeatsAreTheSameOnAllNodes(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.cluster("icn1", "nrt1", "fra1")
		zero, one := uint64(0), uint64(1)
		first := Change{ID: "first", Expect: &zero, Put: []Object{put("k", "a", "1")}}
		if got := w.apply(all[0], first); got != 1 {
			t.Fatalf("at revision %d", got)
		}
		_, err := all[0].Apply(t.Context(), Change{Expect: &zero, Put: []Object{put("k", "a", "2")}})
		var conflict *ConflictError
		if !errors.As(err, &conflict) || conflict.Expected != 0 || conflict.Actual != 1 {
			t.Fatalf("got %v", err)
		}
		w.apply(all[0], Change{Expect: &one, Put: []Object{put("k", "a", "3")}})
		// The answer to the first was lost; meanwhile another leads.
		all[0].close()
		next := w.leader(all[1:]...)
		if got := w.apply(next, first); got != 1 {
			t.Errorf("the repeat is in effect at %d", got)
		}
		for _, m := range all[1:] {
			s := w.at(m, 2)
			if a, _ := s.Get("k", "a"); string(a.Bytes) != "3" || s.Revision != 2 {
				t.Errorf("%s is at revision %d with %q", m.name, s.Revision, a.Bytes)
			}
		}
		if c := next.Counters(); c["store_conflicts_total"] != 1 || c["store_changes_total"] != 2 || c["store_changes_unchanged_total"] != 1 {
			t.Errorf("counted %v", c)
		}
	})
}

// TestANewLeaderTakesOver ends the leader where all voters are 300 ms from each other. Usually the next change is taken after
// 4 s; votes that split, by chance, each add some seconds.
func TestANewLeaderTakesOver(t *testing.T) {
	for how, end := range map[string]func(w *world, m *member){
		"killed":  func(_ *world, m *member) { m.host.Kill() },
		"crashed": func(_ *world, m *member) { m.host.Crash() },
		"cut off": func(w *world, m *member) { w.in.CutOff(m.name) },
	} {
		t.Run(how, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				all := w.cluster("icn1", "fra1", "gru1")
				w.slow(300 * time.Millisecond)
				time.Sleep(10 * time.Second)
				if l := w.leader(all...); l != all[0] {
					t.Fatalf("%s leads: the distance has ended a leader's time", l.name)
				}
				w.write(all[0], "a", "1")
				begin := time.Now()
				end(w, all[0])
				w.write(w.leader(all[1:]...), "a", "2")
				if took := time.Since(begin); took > 30*time.Second {
					t.Errorf("a change was taken after %v", took)
				}
				for _, m := range all[1:] {
					w.at(m, 2)
				}
			})
		})
	}
}

func TestALeaderSurvivesLoss(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.cluster("icn1", "fra1", "gru1")
		for a := range w.nodes {
			for b := range w.nodes {
				if a != b {
					w.in.LinkOneWay(a, b, memnet.Path{Delay: 150 * time.Millisecond, Jitter: 10 * time.Millisecond, Loss: 0.01})
				}
			}
		}
		w.leader(all...)
		term := all[0].Leader().Get().Term
		time.Sleep(time.Minute)
		if l := all[0].Leader().Get(); l.Name != "icn1" || l.Term != term {
			t.Errorf("after a minute at 1 %% loss %s leads in term %d, it was icn1 in %d", l.Name, l.Term, term)
		}
	})
}

func TestAMinorityAgreesOnNothing(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.cluster("icn1", "nrt1", "fra1")
		w.write(all[0], "a", "before")
		w.at(all[1], 1)
		w.at(all[2], 1)
		w.in.CutOff("icn1")
		// The old leader does not know yet that it is alone.
		_, err := all[0].Apply(t.Context(), Change{ID: "lost", Put: []Object{put("k", "a", "lost")}})
		if !errors.Is(err, ErrUnknownOutcome) {
			t.Fatalf("got %v, want an unknown outcome", err)
		}
		_, err = all[0].Apply(t.Context(), Change{Put: []Object{put("k", "a", "lost")}})
		if !errors.As(err, new(*NotLeaderError)) {
			t.Fatalf("later: %v", err)
		}
		if err := all[0].Verify(t.Context()); err == nil {
			t.Error("the old leader says that its state is current")
		}
		synctest.Wait()
		if l := all[0].Leader().Get(); l.Name != "" {
			t.Errorf("alone it says that %s leads", l.Name)
		}
		next := w.leader(all[1:]...)
		w.write(next, "a", "after")
		if s := all[0].State().Get(); s.Revision != 1 {
			t.Errorf("the minority is at revision %d", s.Revision)
		}
		w.in.Rejoin("icn1")
		s := w.at(all[0], 2)
		if a, _ := s.Get("k", "a"); string(a.Bytes) != "after" {
			t.Errorf("healed, it has %q", a.Bytes)
		}
		w.leader(all...)
		w.same(all...)
	})
}

func TestAnIsolatedFollowerDoesNotUnseatTheLeader(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.cluster("icn1", "nrt1", "fra1")
		w.leader(all...)
		term := all[0].Leader().Get().Term
		w.in.CutOff("fra1")
		time.Sleep(20 * time.Second)
		w.write(all[0], "a", "1")
		w.in.Rejoin("fra1")
		w.at(all[2], 1)
		time.Sleep(5 * time.Second)
		if l := all[0].Leader().Get(); l.Name != "icn1" || l.Term != term {
			t.Errorf("%s leads in term %d, it was icn1 in %d: the pre-vote does not work", l.Name, l.Term, term)
		}
	})
}

func TestARestartKeepsEverything(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.cluster("icn1", "nrt1", "fra1")
		for i := range 5 {
			w.write(all[0], fmt.Sprint(i), "content")
		}
		for _, m := range all {
			w.at(m, 5)
		}
		want := all[0].State().Get()
		for _, m := range all {
			m.close()
		}
		time.Sleep(time.Hour)
		for _, m := range all { // the first with --bootstrap, as its unit file still says
			w.start(m)
		}
		leader := w.leader(all...)
		for _, m := range all {
			if diff := gocmp.Diff(want, w.at(m, 5), same); diff != "" {
				t.Errorf("%s has another state:\n%s", m.name, diff)
			}
			if len(m.Servers()) != 3 {
				t.Errorf("%s knows %v", m.name, m.Servers())
			}
		}
		if got := w.write(leader, "a", "after"); got != 6 {
			t.Errorf("it goes on at %d", got)
		}
	})
}

func TestASnapshotTakesThePlaceOfTheLog(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.tune = func(c *Config) { c.SnapshotAfter = 10 }
		m := w.first("icn1")
		for i := range 50 {
			w.apply(m, Change{ID: fmt.Sprint(i), Put: []Object{put("k", "a", fmt.Sprint(i))}})
		}
		time.Sleep(2 * snapshotInterval)
		first, err := m.files.disk.FirstIndex()
		if err != nil || first < 40 {
			t.Fatalf("the log begins at %d, %v", first, err)
		}
		want := m.State().Get()
		m.close()

		// A snapshot that was being written is cleared away.
		half := filepath.Join(m.cfg.Dir, snapshotsDir, "9-999-1.tmp")
		if err := os.MkdirAll(half, 0o700); err != nil {
			t.Fatal(err)
		}
		w.start(m)
		if s := m.State().Get(); s.Revision < 40 {
			t.Errorf("right after the start it is at revision %d", s.Revision)
		}
		w.leader(m)
		if diff := gocmp.Diff(want, w.at(m, 50), same); diff != "" {
			t.Errorf("another state:\n%s", diff)
		}
		if got := w.apply(m, Change{ID: "49", Put: []Object{put("k", "a", "x")}}); got != 50 {
			t.Errorf("an ID from before is answered by %d", got)
		}
		if _, err := os.Stat(half); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the unfinished snapshot: %v", err)
		}
	})
}

func TestALateNodeIsGivenTheSnapshot(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.tune = func(c *Config) { c.SnapshotAfter = 10 }
		all := w.cluster("icn1", "nrt1")
		for i := range 40 {
			w.apply(all[0], Change{ID: fmt.Sprint(i), Put: []Object{put("k", fmt.Sprint(i%7), fmt.Sprint(i))}})
		}
		time.Sleep(2 * snapshotInterval)
		late := w.start(w.add("fra1"))
		if err := all[0].AddVoter(t.Context(), "fra1", late.cfg.Advertise); err != nil {
			t.Fatal(err)
		}
		w.at(late, 40)
		w.same(all[0], late)
		w.write(all[0], "a", "1")
		w.at(late, 41)

		// And again after a restart, and after it was away for longer than the log is kept.
		late.close()
		for i := range 40 {
			w.write(all[0], "b", fmt.Sprint(i))
		}
		time.Sleep(2 * snapshotInterval)
		w.start(late)
		w.at(late, 81)
		w.same(all[0], late)
		late.close()
		w.start(late)
		w.at(late, 81)
		w.same(all[0], late)
	})
}

// TestASnapshotThatOvertookTheLogIsTaken is of a follower that was killed after it had received a snapshot and before it had
// dropped the log from before.
func TestASnapshotThatOvertookTheLogIsTaken(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.tune = func(c *Config) { c.SnapshotAfter = 5 }
		m := w.first("icn1")
		w.write(m, "a", "1")
		m.close()
		old, err := os.ReadFile(filepath.Join(m.cfg.Dir, raftFile))
		if err != nil {
			t.Fatal(err)
		}
		w.start(m)
		w.leader(m)
		for i := range 30 {
			w.write(m, "a", fmt.Sprint("later ", i))
		}
		time.Sleep(2 * snapshotInterval)
		m.close()
		if err := os.WriteFile(filepath.Join(m.cfg.Dir, raftFile), old, 0o600); err != nil {
			t.Fatal(err)
		}
		w.start(m)
		w.leader(m)
		before := m.State().Get().Revision
		if before < 25 || w.write(m, "b", "1") != before+1 {
			t.Errorf("it came back at revision %d", before)
		}
		m.close()
		w.start(m)
		w.leader(m)
		w.at(m, before+1)
	})
}

func TestADamagedFolderIsRefusedByName(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.tune = func(c *Config) { c.SnapshotAfter = 5 }
		m := w.first("icn1")
		for i := range 30 {
			w.write(m, "a", strings.Repeat(fmt.Sprint("content ", i), 500))
		}
		time.Sleep(2 * snapshotInterval)
		w.write(m, "a", "the last")
		m.close()

		log := filepath.Join(m.cfg.Dir, raftFile)
		snapshots, err := filepath.Glob(filepath.Join(m.cfg.Dir, snapshotsDir, "*"))
		if err != nil || len(snapshots) == 0 {
			t.Fatal(snapshots, err)
		}
		newest := snapshots[len(snapshots)-1]
		state, meta := filepath.Join(newest, "state.bin"), filepath.Join(newest, "meta.json")
		flip := func(data []byte) []byte { data[len(data)/2] ^= 1; return data }
		half := func(data []byte) []byte { return data[:len(data)/2] }
		for what, damage := range map[string]struct {
			path string
			do   func([]byte) []byte // nil: it is gone
			says string
		}{
			"log cut off":            {log, func(data []byte) []byte { return data[:3*os.Getpagesize()] }, log},
			"log empty":              {log, func([]byte) []byte { return nil }, log},
			"log of something else":  {log, func(data []byte) []byte { return bytes.Repeat([]byte("x"), len(data)) }, log},
			"log gone":               {log, nil, log},
			"snapshot changed":       {state, flip, newest},
			"snapshot cut off":       {state, half, newest},
			"snapshot gone":          {state, nil, newest},
			"description cut off":    {meta, half, newest},
			"description gone":       {meta, nil, newest},
			"description of another": {meta, func(d []byte) []byte { return bytes.Replace(d, []byte(`"Index":`), []byte(`"Index":9`), 1) }, newest},
		} {
			whole, err := os.ReadFile(damage.path)
			if err != nil {
				t.Fatal(err)
			}
			if damage.do == nil {
				err = os.Remove(damage.path)
			} else {
				err = os.WriteFile(damage.path, damage.do(bytes.Clone(whole)), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := m.start(); err == nil || !strings.Contains(err.Error(), damage.says) {
				t.Errorf("%s: got %v, want a refusal that names %s", what, err, damage.says)
			}
			m.close()
			if err := os.WriteFile(damage.path, whole, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		// All snapshots gone is noticed by the log, which begins behind them.
		if err := os.Rename(filepath.Join(m.cfg.Dir, snapshotsDir), filepath.Join(m.cfg.Dir, "elsewhere")); err != nil {
			t.Fatal(err)
		}
		if err := m.start(); err == nil || !strings.Contains(err.Error(), log) {
			t.Errorf("snapshots gone: got %v", err)
		}
		m.close()
		if err := errors.Join(os.RemoveAll(filepath.Join(m.cfg.Dir, snapshotsDir)),
			os.Rename(filepath.Join(m.cfg.Dir, "elsewhere"), filepath.Join(m.cfg.Dir, snapshotsDir))); err != nil {
			t.Fatal(err)
		}
		// Put right, it opens: no refusal has touched anything.
		w.start(m)
		w.leader(m)
		if a, _ := w.at(m, 31).Get("k", "a"); string(a.Bytes) != "the last" {
			t.Errorf("it has %q", a.Bytes)
		}
	})
}

func TestAFolderIsOpenedOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		m := w.first("icn1")
		other := w.add("icn1-again")
		other.cfg.Dir = m.cfg.Dir
		if err := other.start(); !errors.Is(err, ErrInUse) {
			t.Errorf("got %v", err)
		}
		// A store that failed to open has let go of its listener.
		if err := other.start(); !errors.Is(err, ErrInUse) {
			t.Errorf("the second time: %v", err)
		}
	})
}

func TestANodeThatIsNotThereIsNotMadeAVoter(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		m := w.first("icn1")
		absent := w.add("nrt1")
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := m.AddVoter(ctx, "nrt1", absent.cfg.Advertise); err == nil || len(m.Servers()) != 1 {
			t.Fatalf("got %v, members %v", err, m.Servers())
		}
		if got := w.write(m, "a", "1"); got != 1 {
			t.Errorf("at revision %d", got)
		}
		// Without a vote it may come later.
		if err := m.AddNonvoter(t.Context(), "nrt1", absent.cfg.Advertise); err != nil {
			t.Fatal(err)
		}
		w.write(m, "a", "2")
		w.start(absent)
		w.at(absent, 2)
	})
}

func TestOneWithoutAVoteFollowsAndNeverLeads(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		m := w.first("icn1")
		learner := w.start(w.add("nrt1"))
		if err := m.AddNonvoter(t.Context(), "nrt1", learner.cfg.Advertise); err != nil {
			t.Fatal(err)
		}
		w.write(m, "a", "1")
		w.at(learner, 1)
		if got := learner.Servers(); !slices.Contains(got, Server{"nrt1", learner.cfg.Advertise, false}) {
			t.Errorf("the members are %v", got)
		}
		m.close()
		time.Sleep(time.Minute)
		if l := learner.Leader().Get(); l.Name != "" {
			t.Errorf("%s leads", l.Name)
		}
		if s := learner.State().Get(); s.Revision != 1 {
			t.Errorf("it has lost what it knew: revision %d", s.Revision)
		}
		// Made a voter, it may.
		w.start(m)
		w.leader(m, learner)
		if err := m.AddVoter(t.Context(), "nrt1", learner.cfg.Advertise); err != nil {
			t.Fatal(err)
		}
		if err := m.TransferLeadership(t.Context()); err != nil {
			t.Fatal(err)
		}
		if l := w.leader(m, learner); l != learner {
			t.Errorf("%s leads after the transfer", l.name)
		}
		w.write(learner, "a", "2")
		w.at(m, 2)
	})
}

func TestARemovedNodeIsLeftAlone(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.cluster("icn1", "nrt1", "fra1")
		w.write(all[0], "a", "1")
		w.at(all[2], 1)
		if err := all[0].Remove(t.Context(), "fra1"); err != nil {
			t.Fatal(err)
		}
		w.write(all[0], "a", "2")
		w.at(all[1], 2)
		if got := all[0].Servers(); len(got) != 2 {
			t.Errorf("the members are %v", got)
		}
		time.Sleep(time.Minute)
		if s := all[2].State().Get(); s.Revision != 1 {
			t.Errorf("the removed one is at revision %d", s.Revision)
		}
		// A leader that is removed steps down; the other goes on.
		if err := all[0].Remove(t.Context(), "icn1"); err != nil {
			t.Fatal(err)
		}
		if l := w.leader(all[1]); l.name != "nrt1" {
			t.Errorf("%s leads", l.name)
		}
		if _, err := all[0].Apply(t.Context(), Change{Put: []Object{put("k", "a", "x")}}); err == nil {
			t.Error("the removed leader takes changes")
		}
		w.write(all[1], "a", "3")
	})
}

func TestANodeMayComeBackAtAnotherAddress(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.cluster("icn1", "nrt1", "fra1")
		w.leader(all...)
		all[2].close()
		moved := w.add("elsewhere")
		moved.cfg.Name, moved.name, moved.cfg.Dir = "fra1", "fra1", all[2].cfg.Dir
		w.start(moved)
		if err := all[0].AddVoter(t.Context(), "fra1", moved.cfg.Advertise); err != nil {
			t.Fatal(err)
		}
		w.write(all[0], "a", "1")
		w.at(moved, 1)
		if got := all[0].Servers(); len(got) != 3 || !slices.Contains(got, Server{"fra1", moved.cfg.Advertise, true}) {
			t.Errorf("the members are %v", got)
		}
	})
}

// TestAVerifiedStateHoldsAllThatWasAgreed reads at each new leader as soon as it says that it may be read.
func TestAVerifiedStateHoldsAllThatWasAgreed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.cluster("icn1", "nrt1", "fra1")
		w.slow(100 * time.Millisecond)
		leader := w.leader(all...)
		for i := range 4 {
			want := w.write(leader, "a", fmt.Sprint(i))
			if err := leader.TransferLeadership(t.Context()); err != nil {
				t.Fatal(err)
			}
			leader = w.leader(all...)
			if got := leader.State().Get().Revision; got < want {
				t.Errorf("%s says that its revision %d is current, %d was agreed", leader.name, got, want)
			}
		}
	})
}

func TestApplyEndsWithItsContext(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.cluster("icn1", "nrt1", "fra1")
		w.leader(all...)
		w.in.CutOff("icn1")
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		begin := time.Now()
		_, err := all[0].Apply(ctx, Change{Put: []Object{put("k", "a", "1")}})
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrUnknownOutcome) || time.Since(begin) != 100*time.Millisecond {
			t.Errorf("got %v after %v", err, time.Since(begin))
		}
		if _, err := all[0].Apply(ctx, Change{}); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrUnknownOutcome) {
			t.Errorf("after its end: %v", err)
		}
	})
}

func TestCloseWaitsForWhatWasAsked(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.cluster("icn1", "nrt1", "fra1")
		w.leader(all...)
		w.in.CutOff("icn1")
		answered := make(chan error, 1)
		go func() {
			_, err := all[0].Apply(t.Context(), Change{Put: []Object{put("k", "a", "1")}})
			answered <- err
		}()
		synctest.Wait()
		begin := time.Now()
		all[0].close()
		if took := time.Since(begin); took > 3*time.Second {
			t.Errorf("closing took %v", took)
		}
		if err := <-answered; !errors.Is(err, ErrUnknownOutcome) {
			t.Errorf("what was asked is answered by %v", err)
		}
		if _, err := all[0].Apply(t.Context(), Change{}); !errors.Is(err, ErrClosed) {
			t.Errorf("a closed store says %v", err)
		}
		if err := all[0].Close(); err != nil {
			t.Errorf("closed again: %v", err)
		}
		if l := all[0].Leader().Get(); l != (Leader{}) {
			t.Errorf("closed, it says that %+v leads", l)
		}
	})
}

// TestManyWritersLoseNothing lets many apply at once, conflicts and repeats among them.
func TestManyWritersLoseNothing(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.cluster("icn1", "nrt1", "fra1")
		const writers, changes = 8, 10
		done := make(chan error, writers)
		for i := range writers {
			go func() {
				for j := range changes {
					for {
						expect := all[0].State().Get().Revision
						c := Change{ID: fmt.Sprint(i, j), Expect: &expect, Put: []Object{put("k", fmt.Sprint(i), fmt.Sprint(j))}}
						revision, err := all[0].Apply(t.Context(), c)
						if errors.As(err, new(*ConflictError)) {
							continue
						}
						if again, twice := all[0].Apply(t.Context(), c); err == nil && (twice != nil || again != revision) {
							err = fmt.Errorf("%d, then %d, %v", revision, again, twice)
						}
						if err != nil {
							done <- err
							return
						}
						break
					}
				}
				done <- nil
			}()
		}
		for range writers {
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		for _, m := range all {
			s := w.at(m, writers*changes)
			if s.Revision != writers*changes || len(s.Objects) != writers {
				t.Errorf("%s is at revision %d with %d objects", m.name, s.Revision, len(s.Objects))
			}
		}
		w.same(all...)
	})
}

// TestANodeStopsAtWhatItCannotRead: to go on without one entry would be to differ from the others in silence.
func TestANodeStopsAtWhatItCannotRead(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.tune = func(c *Config) { c.SnapshotAfter = 5 }
		m := w.first("icn1")
		w.write(m, "a", "1")
		if err := m.raft.Apply([]byte{99, 1, 2, 3}, 0).Error(); err != nil { // as a newer release would
			t.Fatal(err)
		}
		var fault *FaultError
		for range 2 {
			if err := m.Fault(); !errors.As(err, &fault) || !errors.As(err, new(*FormatError)) {
				t.Fatalf("got %v", err)
			}
			if _, err := m.Apply(t.Context(), Change{Put: []Object{put("k", "a", "2")}}); !errors.As(err, &fault) {
				t.Fatalf("apply: %v", err)
			}
			if err := m.Verify(t.Context()); !errors.As(err, &fault) {
				t.Fatalf("verify: %v", err)
			}
			if c := m.Counters(); c["store_fault"] != 1 {
				t.Errorf("counted %v", c)
			}
			for range 20 {
				if err := m.raft.Apply([]byte{99}, 0).Error(); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(2 * snapshotInterval)
			if first, err := m.files.disk.FirstIndex(); first != 1 || err != nil {
				t.Fatalf("the log was cut at %d, %v: what was not applied is lost", first, err)
			}
			m.close()
			w.start(m) // nor does a restart pass over it
			for m.Fault() == nil {
				time.Sleep(10 * time.Millisecond)
			}
			if s := m.State().Get(); s.Revision != 1 {
				t.Errorf("it serves revision %d", s.Revision)
			}
		}
	})
}

func TestASnapshotOfANewerReleaseIsRefused(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		m := w.first("icn1")
		w.write(m, "a", "1")
		m.close()
		snapshots, _, err := openSnapshots(m.cfg.Dir, hclog.NewNullLogger())
		if err != nil {
			t.Fatal(err)
		}
		_, transport := raft.NewInmemTransport("icn1")
		sink, err := snapshots.Create(1, 2, 2, raft.Configuration{}, 1, transport)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sink.Write([]byte{99}); err != nil {
			t.Fatal(err)
		}
		if err := sink.Close(); err != nil {
			t.Fatal(err)
		}
		if err := m.start(); !errors.As(err, new(*FormatError)) || !strings.Contains(err.Error(), sink.ID()) {
			t.Errorf("got %v", err)
		}
	})
}
