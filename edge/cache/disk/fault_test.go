package disk

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/file"
)

// faulty is a disk that fails as it is told.
type faulty struct {
	writes, syncs, reads atomic.Pointer[error]
	room                 atomic.Int64 // of the segments, in bytes; 0: any
	dir                  string
}

func told(p *atomic.Pointer[error], err error) {
	if err == nil {
		p.Store(nil)
		return
	}
	p.Store(&err)
}

func says(p *atomic.Pointer[error]) error {
	if err := p.Load(); err != nil {
		return *err
	}
	return nil
}

func (f *faulty) knobs() knobs {
	k := small()
	real := k.system
	k.system.WriteAt = func(to *os.File, p []byte, at int64) (int, error) {
		if err := says(&f.writes); err != nil {
			n, _ := to.WriteAt(p[:len(p)/2], at)
			return n, err
		}
		if room := f.room.Load(); room > 0 && f.taken(to, at+int64(len(p))) > room {
			n, _ := to.WriteAt(p[:len(p)/3], at)
			return n, &os.PathError{Op: "write", Path: to.Name(), Err: syscall.ENOSPC}
		}
		return real.WriteAt(to, p, at)
	}
	k.system.Sync = func(to *os.File) error {
		if err := says(&f.syncs); err != nil {
			return err
		}
		return real.Sync(to)
	}
	k.system.ReadAt = func(from *os.File, p []byte, at int64) (int, error) {
		if err := says(&f.reads); err != nil {
			return 0, err
		}
		return real.ReadAt(from, p, at)
	}
	return k
}

// taken is the size of all files, where one of them is at least so long.
func (f *faulty) taken(to *os.File, end int64) (bytes int64) {
	names, _ := filepath.Glob(filepath.Join(f.dir, "*"))
	for _, name := range names {
		if info, err := os.Stat(name); err == nil && name != to.Name() {
			bytes += info.Size()
		} else if err == nil {
			bytes += max(info.Size(), end)
		}
	}
	return bytes
}

func TestAWriteThatFailsCostsItsObjectsAndASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &faulty{dir: t.TempDir()}
		cfg := Config{Dir: f.dir, Bytes: smallBytes}
		var gate atomic.Pointer[chan struct{}] // at which one write waits, behind which all fail
		k := f.knobs()
		write := k.system.WriteAt
		k.system.WriteAt = func(to *os.File, p []byte, at int64) (int, error) {
			if g := gate.Swap(nil); g != nil {
				<-*g
				defer told(&f.writes, syscall.EIO)
			}
			return write(to, p, at)
		}
		s, err := open(cfg, k)
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{"kept", "replaced", "deleted", "renewed"} {
			keep(t, s, key, "old", filled(100, 1))
		}
		flush(t, s)
		held := make(chan struct{})
		gate.Store(&held)
		keep(t, s, "before", "old", filled(100, 1))
		synctest.Wait() // the writer is at the gate with that, and what follows is written together
		keep(t, s, "replaced", "new", filled(100, 2))
		keep(t, s, "lost", "new", filled(100, 2))
		if err := s.Renew([]byte("renewed"), []byte("new")); err != nil {
			t.Fatal(err)
		}
		close(held)
		if err := s.Flush(); !errors.Is(err, ErrFailing) || !errors.Is(err, syscall.EIO) {
			t.Fatalf("flush: %v", err)
		}
		synctest.Wait() // the writer pauses
		began := time.Now()
		if err := s.Put([]byte("meanwhile"), nil); !errors.Is(err, ErrFailing) {
			t.Errorf("put: %v", err)
		}
		if err := s.SetState([]byte("x")); !errors.Is(err, ErrFailing) {
			t.Errorf("state: %v", err)
		}
		if !s.Delete([]byte("deleted")) {
			t.Error("it was there")
		}
		if _, _, ok := look(t, s, "kept"); !ok || s.Counters()["disk_failing"] != 1 {
			t.Error("what was kept is not read while writes fail")
		}
		if n := s.Counters()["disk_refused_total"]; n != 1 {
			t.Errorf("%d are refused", n)
		}
		told(&f.writes, nil)
		for s.Put([]byte("after"), []byte("new"), filled(100, 3)) != nil {
			time.Sleep(pause / 10)
		}
		if d := time.Since(began); d < pause || d > 2*pause {
			t.Errorf("it takes %v until it writes again", d)
		}
		flush(t, s)
		if c := s.Counters(); c["disk_failures_total"] != 3 || c["disk_failing"] != 0 {
			t.Errorf("counted %v", c)
		}
		for _, when := range []string{"at once", "after a restart"} {
			for key, want := range map[string]string{
				"kept": "old", "replaced": "", "deleted": "", "lost": "", "meanwhile": "", "renewed": "old", "after": "new",
			} {
				if meta, _, ok := look(t, s, key); meta != want || ok != (want != "") {
					t.Errorf("%s: %s is %q, %v", when, key, meta, ok)
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if s, err = open(cfg, f.knobs()); err != nil {
				t.Fatal(err)
			}
		}
		s.Close()
	})
}

// TestWhatIsDeletedWhileItIsWrittenStaysDeleted deletes in the midst of the write of a new object, of new meta, and of what is carried over.
func TestWhatIsDeletedWhileItIsWrittenStaysDeleted(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), Bytes: smallBytes, Objects: 10000}
	var s *Store
	var during atomic.Pointer[func(written []byte)]
	k := small()
	write := k.system.WriteAt
	k.system.WriteAt = func(f *os.File, p []byte, at int64) (int, error) {
		if do := during.Load(); do != nil {
			(*do)(p)
		}
		return write(f, p, at)
	}
	s = openStore(t, cfg, k)
	var deleted atomic.Int64
	deletes := func(mark string) {
		do := func(p []byte) {
			if bytes.Contains(p, []byte(mark)) && s.Delete([]byte("k")) {
				deleted.Add(1)
			}
		}
		during.Store(&do)
	}
	gone := func(what string, times int64) {
		t.Helper()
		flush(t, s)
		if _, _, ok := look(t, s, "k"); ok || deleted.Load() != times {
			t.Errorf("%s: it is there %v, and was deleted %d times", what, ok, deleted.Load())
		}
	}
	keep(t, s, "k", "old", nil)
	flush(t, s)
	deletes("renewed while")
	if err := s.Renew([]byte("k"), []byte("renewed while")); err != nil {
		t.Fatal(err)
	}
	gone("renewed", 1)

	deletes("put while") // what is being written counts as there
	keep(t, s, "k", "put while", nil)
	gone("put", 2)

	during.Store(nil)
	keep(t, s, "k", "carried while", filled(1000, 1))
	flush(t, s)
	look(t, s, "k")
	deletes("carried while")
	for i := range 1500 {
		keep(t, s, fmt.Sprint(i), "", filled(1000, 1))
	}
	gone("carried", 3)
	s.Close()
	during.Store(nil)
	s = openStore(t, cfg, small())
	gone("after a restart", 3)
}

func TestAStoreThatClosesWhileTheDiskFailsSaysSo(t *testing.T) {
	f := &faulty{dir: t.TempDir()}
	s := openStore(t, Config{Dir: f.dir, Bytes: smallBytes}, f.knobs())
	keep(t, s, "kept", "", filled(100, 1))
	flush(t, s)
	told(&f.writes, syscall.EIO)
	keep(t, s, "lost", "", filled(100, 1))
	if err := s.Flush(); !errors.Is(err, syscall.EIO) {
		t.Errorf("flush: %v", err)
	}
	s.Delete([]byte("kept")) // cannot be written, and waits
	if err := s.Close(); !errors.Is(err, syscall.EIO) {
		t.Errorf("close: %v", err)
	}
	if n := s.Counters()["disk_pending_bytes"]; n != 0 || len(s.queue)+len(s.queued) != 0 {
		t.Errorf("%d bytes wait for ever", n)
	}
	told(&f.writes, nil)
	s = openStore(t, Config{Dir: f.dir, Bytes: smallBytes}, f.knobs())
	_, _, kept := look(t, s, "kept") // it is back: nobody set a state that would have promised more
	if _, _, lost := look(t, s, "lost"); !kept || lost {
		t.Errorf("kept %v, lost %v", kept, lost)
	}
}

func TestReadsThatFailAreMissesAndErrors(t *testing.T) {
	f := &faulty{dir: t.TempDir()}
	s := openStore(t, Config{Dir: f.dir, Bytes: smallBytes}, f.knobs())
	keep(t, s, "head", "", filled(100, 1))
	keep(t, s, "body", "", filled(100, 1))
	flush(t, s)
	e, ok := s.Get([]byte("body"))
	if !ok {
		t.Fatal("it is not there")
	}
	defer e.Close()
	told(&f.reads, syscall.EIO)
	if _, ok := s.Get([]byte("head")); ok {
		t.Error("a head that cannot be read is found")
	}
	if n, err := e.ReadAt(make([]byte, 100), 0); n != 0 || !errors.Is(err, ErrDamaged) || !errors.Is(err, syscall.EIO) {
		t.Errorf("got %d bytes, %v", n, err)
	}
	if err := e.Check(); !errors.Is(err, ErrDamaged) {
		t.Errorf("check: %v", err)
	}
	told(&f.reads, nil)
	for range s.All() {
		t.Error("it is there still")
	}
}

// TestAFullDiskMakesTheStoreSmallerForAWhile: the disk has room for half of what the store may take.
func TestAFullDiskMakesTheStoreSmallerForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &faulty{dir: t.TempDir()}
		f.room.Store(600 << 10)
		s, err := open(Config{Dir: f.dir, Bytes: smallBytes, Objects: 10000}, f.knobs())
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		n := 0
		write := func(how time.Duration) (refused int) {
			for end := time.Now().Add(how); time.Now().Before(end); time.Sleep(250 * time.Millisecond) {
				n++
				if s.Put(fmt.Append(nil, n), nil, filled(4000, uint64(n))) != nil {
					refused++
				}
				s.Flush()
			}
			return refused
		}
		write(2 * time.Minute)
		failures := s.Counters()["disk_failures_total"]
		if failures == 0 || failures > 10 {
			t.Errorf("%d writes failed until it had become smaller", failures)
		}
		refused := write(5 * time.Minute)
		if c := s.Counters(); refused > 0 || c["disk_failures_total"] != failures || c["disk_objects"] < 80 {
			t.Errorf("it does not go on in the room there is: %d refused, %v", refused, c)
		}
		f.room.Store(0)
		write(narrowFor)
		if c := s.Counters(); c["disk_objects"] < 180 {
			t.Errorf("it does not grow again: %v", c)
		}
	})
}

func TestAStateIsNotBelievedToBeFlushedWhenItIsNot(t *testing.T) {
	f := &faulty{dir: t.TempDir()}
	s := openStore(t, Config{Dir: f.dir, Bytes: smallBytes, Objects: 10000}, f.knobs())
	if err := s.SetState([]byte("first")); err != nil {
		t.Fatal(err)
	}
	keep(t, s, "k", "", filled(100, 1))
	told(&f.syncs, syscall.EIO)
	if err := s.SetState([]byte("second")); !errors.Is(err, syscall.EIO) {
		t.Errorf("got %v", err)
	}
	told(&f.syncs, nil)
	// That a flush works now does not say that what the first was to write is on disk.
	if err := s.SetState([]byte("third")); !errors.Is(err, ErrFailing) || string(s.State()) != "first" {
		t.Errorf("got %v, the state is %q", err, s.State())
	}
	for i := range 1200 { // until that segment has gone
		keep(t, s, fmt.Sprint(i), "", filled(1000, 1))
	}
	if err := s.SetState([]byte("fourth")); err != nil || string(s.State()) != "fourth" {
		t.Errorf("got %v, the state is %q", err, s.State())
	}
}

// played is a disk that is written down: what is on it for certain if the power goes, and what may be.
type played struct {
	mu      sync.Mutex // one operation at a time
	dir     string
	t       *testing.T
	content map[string][]byte // by name, as flushed last
	names   map[string][]byte // what was there at the last flush of the folder, with its content then or as flushed later
	ops     int
	at      func() // called before each operation
}

func (p *played) knobs() knobs {
	k := small()
	real := k.system
	base := filepath.Base
	k.system = file.System{
		ReadAt: real.ReadAt,
		Open:   func(path string, flag int) (*os.File, error) { defer p.op()(); return real.Open(path, flag) },
		WriteAt: func(f *os.File, b []byte, at int64) (int, error) {
			defer p.op()()
			n, err := real.WriteAt(f, b[:len(b)/2], at)
			if err != nil {
				return n, err
			}
			p.next()
			m, err := real.WriteAt(f, b[n:], at+int64(n))
			return n + m, err
		},
		Truncate: func(f *os.File, size int64) error { defer p.op()(); return real.Truncate(f, size) },
		Sync: func(f *os.File) error {
			defer p.op()()
			data, err := os.ReadFile(f.Name())
			p.content[base(f.Name())] = data
			if _, ok := p.names[base(f.Name())]; ok {
				p.names[base(f.Name())] = data
			}
			return err
		},
		Rename: func(from, to string) error {
			defer p.op()()
			p.content[base(to)] = p.content[base(from)]
			delete(p.content, base(from))
			return real.Rename(from, to)
		},
		Remove: func(path string) error {
			defer p.op()()
			delete(p.content, base(path))
			return real.Remove(path)
		},
		SyncDir: func(path string) error {
			defer p.op()()
			p.names = map[string][]byte{}
			names, err := os.ReadDir(path)
			for _, n := range names {
				p.names[n.Name()] = p.content[n.Name()]
			}
			return err
		},
	}
	return k
}

// op begins an operation, at which the power may go; what it returns ends it.
func (p *played) op() (end func()) {
	p.mu.Lock()
	p.next()
	return p.mu.Unlock
}

func (p *played) next() {
	p.ops++
	p.at()
}

// crash writes into a folder what the power leaves: of what was not flushed some, none, or all.
func (p *played) crash(to string, r *rand.Rand) {
	if err := os.MkdirAll(to, 0o700); err != nil {
		p.t.Fatal(err)
	}
	how := r.IntN(4)
	left := map[string][]byte{}
	names, err := os.ReadDir(p.dir)
	if err != nil {
		p.t.Fatal(err)
	}
	for _, n := range names {
		now, err := os.ReadFile(filepath.Join(p.dir, n.Name()))
		if err != nil {
			p.t.Fatal(err)
		}
		safe, flushed := p.content[n.Name()]
		if !flushed && how == 1 {
			continue // nobody flushed that it is there
		}
		switch how {
		case 0: // the process was killed, and not the machine
		case 1:
			now = safe
		case 2: // some of the end is not there
			if len(now) > len(safe) {
				now = now[:len(safe)+r.IntN(len(now)-len(safe)+1)]
			}
		case 3: // some of the sectors are not there
			for at := 0; at < len(now); at += 512 {
				end := min(at+512, len(now))
				if r.IntN(3) == 0 && (end > len(safe) || !bytes.Equal(now[at:end], safe[at:end])) {
					clear(now[at:end])
					if at < len(safe) {
						copy(now[at:end], safe[at:])
					}
				}
			}
		}
		left[n.Name()] = now
	}
	if how == 1 && r.IntN(2) == 0 { // the folder is as it was flushed
		left = maps.Clone(p.names)
	}
	for name, data := range left {
		if err := os.WriteFile(filepath.Join(to, name), data, 0o600); err != nil {
			p.t.Fatal(err)
		}
	}
}

// TestWhereverThePowerGoes breaks off in the midst of operations. It opens; all that is there was put once; the state is the one that was
// set last, or the one that was being set; and nothing that was replaced or deleted before that is there.
func TestWhereverThePowerGoes(t *testing.T) {
	points := 0
	for seed := range uint64(4) {
		r, when := rand.New(rand.NewPCG(seed, 9)), rand.New(rand.NewPCG(seed, 10))
		dir := t.TempDir()
		p := &played{t: t, dir: filepath.Join(dir, "cache"), content: map[string][]byte{}, names: map[string][]byte{}}
		var begun, ended atomic.Int64
		type crash struct {
			dir                string
			op                 int
			least, most, state int64
		}
		var crashes []crash // looked at while nothing is written
		p.at = func() {
			if when.IntN(16) == 0 {
				c := crash{dir: filepath.Join(dir, fmt.Sprint("crashed", p.ops)), op: p.ops, least: ended.Load(), most: begun.Load()}
				p.crash(c.dir, when)
				crashes = append(crashes, c)
			}
		}
		cfg := Config{Dir: p.dir, Bytes: nameRoom + 448<<10, Objects: 10000}
		s := openStore(t, cfg, p.knobs())
		h := newHistory(30)
		clean := []map[string]int{{}} // at each state, by key: which version may be there; what came before is gone
		for step := range 300 {
			h.act(t, s, r)
			if step%10 == 5 { // which says no more of what is gone than the one before
				clean = append(clean, clean[len(clean)-1])
				if err := s.Restate(fmt.Append(nil, begun.Add(1))); err != nil {
					t.Fatal(err)
				}
				ended.Store(begun.Load())
			}
			if step%10 > 0 {
				continue
			}
			flush(t, s)
			now := map[string]int{}
			for key, versions := range h.metas {
				now[key] = len(versions)
				if meta, ok := h.now[key]; ok {
					now[key] = slices.Index(versions, meta)
				}
			}
			clean = append(clean, now)
			if err := s.SetState(fmt.Append(nil, begun.Add(1))); err != nil {
				t.Fatal(err)
			}
			ended.Store(begun.Load())
			for _, c := range crashes {
				points++
				crashed := cfg
				crashed.Dir = c.dir
				left, err := open(crashed, quick())
				if err != nil {
					t.Fatalf("seed %d, operation %d: %v", seed, c.op, err)
				}
				if got := string(left.State()); got != "" {
					if _, err := fmt.Sscan(got, &c.state); err != nil {
						t.Fatal(err)
					}
				}
				if c.state != c.least && c.state != c.most {
					t.Fatalf("seed %d, operation %d: the state is %d, %d was set, and %d begun", seed, c.op, c.state, c.least, c.most)
				}
				h.genuine(t, left, fmt.Sprintf("seed %d, operation %d", seed, c.op))
				for key, versions := range h.metas {
					if e, ok := left.Get([]byte(key)); ok {
						if version := slices.Index(versions, string(e.Meta)); version < clean[c.state][key] {
							t.Fatalf("seed %d, operation %d: %s is version %d, and at state %d all before %d were gone", seed, c.op, key, version,
								c.state, clean[c.state][key])
						}
						e.Close()
					}
				}
				left.Close()
				os.RemoveAll(c.dir)
			}
			crashes = nil
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if points < 100 {
		t.Errorf("%d points", points)
	}
	t.Logf("%d points", points)
}

// TestAKilledProcessLosesOnlyWhatItWasWriting kills a process in the midst of writing. All that it said was written is there, and nothing
// that it said was deleted.
func TestAKilledProcessLosesOnlyWhatItWasWriting(t *testing.T) {
	if dir := os.Getenv("PERIGEE_TEST_DISK"); dir != "" {
		writeForever(dir)
	}
	cfg := Config{Dir: filepath.Join(t.TempDir(), "cache"), Bytes: 64 << 20}
	promised := 0
	for round := range 4 {
		child := exec.Command(os.Args[0], "-test.run=^TestAKilledProcessLosesOnlyWhatItWasWriting$")
		child.Env = append(os.Environ(), "PERIGEE_TEST_DISK="+cfg.Dir)
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if _, err := fmt.Sscan(lines.Text(), &promised); err != nil {
				t.Error(lines.Text())
			}
			if promised > 30+round*57 {
				child.Process.Kill()
			}
		}
		child.Wait()
		began := time.Now()
		s := openStore(t, cfg, defaults())
		if d := time.Since(began); d > 10*time.Second {
			t.Errorf("it takes %v to open", d)
		}
		if promised == 0 || round > 0 && promised < round*57 {
			t.Fatalf("the child wrote %d", promised)
		}
		for i := 1; i <= promised; i++ {
			_, body, ok := look(t, s, fmt.Sprint(i))
			if gone := i%5 == 0; ok == gone || ok && !bytes.Equal(body, filled(i*331%9000, uint64(i))) {
				t.Fatalf("of %d, %d is there: %v", promised, i, ok)
			}
		}
		if c := s.Counters(); c["disk_damaged_segments_total"]+c["disk_damaged_total"] != 0 {
			t.Errorf("counted %v", c)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func writeForever(dir string) {
	s, err := Open(Config{Dir: dir, Bytes: 64 << 20})
	for i := 1; err == nil; i++ {
		if err = s.Put(fmt.Append(nil, i), nil, filled(i*331%9000, uint64(i))); err != nil {
			break
		}
		if i%5 == 0 {
			s.Flush()
			s.Delete(fmt.Append(nil, i))
		}
		if i%7 == 0 {
			err = s.Flush()
			fmt.Println(i)
		}
	}
	fmt.Println(err)
	os.Exit(1)
}
