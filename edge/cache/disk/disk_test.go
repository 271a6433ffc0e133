package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// small are knobs of a store in which everything happens soon.
func small() knobs {
	k := defaults()
	k.segment, k.least = 64<<10, 0
	return k
}

// quick are small ones of a disk that flushes nothing, for what does not look at that.
func quick() knobs {
	k := small()
	k.system.Sync = func(*os.File) error { return nil }
	k.system.SyncDir = func(string) error { return nil }
	return k
}

// smallBytes is a store of about 14 small segments.
const smallBytes = nameRoom + 1<<20

func openStore(t testing.TB, cfg Config, k knobs) *Store {
	t.Helper()
	s, err := open(cfg, k)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func keep(t testing.TB, s *Store, key, meta string, body ...[]byte) {
	t.Helper()
	if err := s.Put([]byte(key), []byte(meta), body...); err != nil {
		t.Fatalf("put %s: %v", key, err)
	}
}

func flush(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
}

// look is what is kept under a key: by ReadAt and by the file.
func look(t testing.TB, s *Store, key string) (meta string, body []byte, ok bool) {
	t.Helper()
	e, ok := s.Get([]byte(key))
	if !ok {
		return "", nil, false
	}
	defer e.Close()
	body = make([]byte, e.Size())
	if _, err := e.ReadAt(body, 0); err != nil {
		t.Fatalf("read %s: %v", key, err)
	}
	if err := e.Check(); err != nil {
		t.Fatalf("check %s: %v", key, err)
	}
	f, at, ok := e.File()
	byFile := make([]byte, e.Size())
	if _, err := f.ReadAt(byFile, at); err != nil || !ok || !bytes.Equal(body, byFile) {
		t.Fatalf("the file of %s holds something else, or cannot be told: %v, %v", key, ok, err)
	}
	return string(e.Meta), body, true
}

// filled is a body that is like no other.
func filled(size int, seed uint64) []byte {
	b := make([]byte, size)
	r := rand.New(rand.NewPCG(seed, uint64(size)))
	for i := 0; i < size; i += 8 {
		v := r.Uint64()
		for j := i; j < min(i+8, size); j++ {
			b[j] = byte(v >> (8 * (j - i)))
		}
	}
	return b
}

// taken is what the files of a folder take on the disk, with the folder.
func taken(t testing.TB, dir string) (bytes int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		var stat unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &stat)
		}
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		bytes += stat.Blocks * 512
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}

func TestWhatIsPutIsThereAlsoAfterARestart(t *testing.T) {
	cfg := Config{Dir: filepath.Join(t.TempDir(), "cache"), Bytes: 64 << 20}
	s := openStore(t, cfg, defaults())
	sizes := []int{0, 1, 1000, blockSize - 1, blockSize, blockSize + 1, 3*blockSize + 17, direct, 2 << 20}
	for _, size := range sizes {
		body := filled(size, 1)
		keep(t, s, fmt.Sprint(size), "meta of "+fmt.Sprint(size), body[:size/3], nil, body[size/3:])
	}
	check := func(when string) {
		t.Helper()
		for _, size := range sizes {
			meta, body, ok := look(t, s, fmt.Sprint(size))
			if !ok || meta != "meta of "+fmt.Sprint(size) || !bytes.Equal(body, filled(size, 1)) {
				t.Errorf("%s: %d bytes: there %v, meta %q", when, size, ok, meta)
			}
		}
		if c := s.Counters(); c["disk_objects"] != uint64(len(sizes)) || c["disk_damaged_total"] != 0 {
			t.Errorf("%s: counted %v", when, c)
		}
		if _, _, ok := look(t, s, "other"); ok {
			t.Errorf("%s: what was never put is there", when)
		}
	}
	flush(t, s)
	check("at once")
	for range 3 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = openStore(t, cfg, defaults())
		check("after a restart")
	}
	if names, _ := filepath.Glob(filepath.Join(cfg.Dir, "*"+segmentEnd)); len(names) > 2 {
		t.Errorf("each restart makes a segment: %v", names)
	}
}

func TestPartsOfABodyAreReadAndChecked(t *testing.T) {
	s := openStore(t, Config{Dir: t.TempDir(), Bytes: 64 << 20}, defaults())
	want := filled(3*blockSize+100, 1)
	keep(t, s, "k", "", want)
	flush(t, s)
	e, ok := s.Get([]byte("k"))
	if !ok {
		t.Fatal("it is not there")
	}
	defer e.Close()
	if _, _, ok := e.File(); ok {
		t.Error("its file is told before it was checked")
	}
	for _, c := range []struct{ off, n, got int }{
		{0, 1, 1}, {blockSize - 1, 2, 2}, {10, blockSize, blockSize}, {0, len(want), len(want)}, {len(want) - 5, 5, 5},
		{len(want) - 5, 10, 5}, {len(want), 1, 0}, {len(want) + 10, 1, 0}, {2*blockSize - 3, blockSize + 50, blockSize + 50}, {7, 0, 0},
	} {
		b := make([]byte, c.n)
		n, err := e.ReadAt(b, int64(c.off))
		if n != c.got || (err != nil) != (n < c.n) || n > 0 && !bytes.Equal(b[:n], want[c.off:c.off+n]) {
			t.Errorf("%d bytes at %d: got %d, %v", c.n, c.off, n, err)
		}
	}
	if _, err := e.ReadAt(make([]byte, 1), -1); err == nil {
		t.Error("a negative offset is read")
	}
	if err := e.Check(); err != nil {
		t.Fatal(err)
	}
	if f, at, ok := e.File(); !ok || at%aligned != 0 || f == nil {
		t.Errorf("its file: %d, %v", at, ok)
	}
	again, _ := s.Get([]byte("k"))
	defer again.Close()
	if _, _, ok := again.File(); !ok {
		t.Error("that it was checked is forgotten")
	}
}

func TestABodyIsSentByItsFileWhileItsSegmentGoes(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), Bytes: smallBytes, Objects: 10000}
	s := openStore(t, cfg, small())
	want := filled(30<<10, 1)
	keep(t, s, "k", "", want)
	flush(t, s)
	var all sync.WaitGroup
	for range 4 {
		e, ok := s.Get([]byte("k"))
		if !ok || e.Check() != nil {
			t.Fatal("it is not there")
		}
		all.Go(func() {
			ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			if err != nil {
				t.Error(err)
				return
			}
			out, in := os.NewFile(uintptr(ends[0]), "out"), os.NewFile(uintptr(ends[1]), "in")
			defer in.Close()
			all.Go(func() {
				defer out.Close()
				defer e.Close()
				f, at, _ := e.File()
				for left := int(e.Size()); left > 0; {
					n, err := unix.Sendfile(ends[0], int(f.Fd()), &at, min(left, 1000))
					if err != nil || n == 0 {
						t.Error("sendfile: ", n, err)
						return
					}
					left -= n
				}
			})
			got := make([]byte, len(want))
			if _, err := io.ReadFull(in, got); err != nil || !bytes.Equal(got, want) {
				t.Errorf("something else is sent: %v", err)
			}
		})
	}
	for i := range 1200 {
		keep(t, s, fmt.Sprint(i), "", filled(1000, 1))
	}
	all.Wait()
	flush(t, s)
	if c := s.Counters(); c["disk_bytes"] > uint64(cfg.Bytes) || s.zombies.Load() != 0 {
		t.Errorf("%d bytes are not given back: %v", s.zombies.Load(), c)
	}
}

func TestTheNewestIsFoundAndTheDeletedIsNot(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), Bytes: smallBytes, Objects: 10000}
	s := openStore(t, cfg, small())
	keep(t, s, "replaced", "1", []byte("one"))
	keep(t, s, "deleted", "1", []byte("one"))
	keep(t, s, "renewed", "1", filled(5000, 1))
	keep(t, s, "renewed twice", "1", filled(5000, 2))
	keep(t, s, "renewed and replaced", "1", filled(5000, 3))
	flush(t, s)
	keep(t, s, "replaced", "2", []byte("two"))
	if _, _, ok := look(t, s, "replaced"); ok {
		t.Log("it is written already") // but then it is the new one, as looked at below
	}
	if !s.Delete([]byte("deleted")) || s.Delete([]byte("deleted")) || s.Delete([]byte("never there")) {
		t.Error("delete does not say what was there")
	}
	if _, _, ok := look(t, s, "deleted"); ok {
		t.Error("it is found after it was deleted")
	}
	keep(t, s, "deleted at once", "1", []byte("one"))
	s.Delete([]byte("deleted at once"))
	for _, key := range []string{"renewed", "renewed twice", "renewed and replaced"} {
		if err := s.Renew([]byte(key), []byte("2")); err != nil {
			t.Fatal(err)
		}
	}
	flush(t, s)
	if err := s.Renew([]byte("renewed twice"), []byte("3")); err != nil {
		t.Fatal(err)
	}
	if err := s.Renew([]byte("deleted"), nil); !errors.Is(err, ErrMissing) {
		t.Errorf("what is deleted is renewed: %v", err)
	}
	keep(t, s, "renewed and replaced", "3", []byte("three"))
	flush(t, s)
	for _, when := range []string{"at once", "after a restart"} {
		for key, want := range map[string]struct {
			meta string
			body []byte
		}{
			"replaced": {"2", []byte("two")}, "renewed": {"2", filled(5000, 1)}, "renewed twice": {"3", filled(5000, 2)},
			"renewed and replaced": {"3", []byte("three")}, "deleted": {}, "deleted at once": {},
		} {
			meta, body, ok := look(t, s, key)
			if meta != want.meta || !bytes.Equal(body, want.body) || ok != (want.meta != "") {
				t.Errorf("%s: %s is %q, %d bytes, %v", when, key, meta, len(body), ok)
			}
		}
		s.Close()
		s = openStore(t, cfg, small())
	}
}

func TestTheOldestGoWhenItIsFullAndWhatWasReadStays(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), Bytes: smallBytes, Objects: 10000}
	s := openStore(t, cfg, small())
	keep(t, s, "read", "meta", filled(3000, 1))
	keep(t, s, "touched", "meta", filled(3000, 2))
	keep(t, s, "renewed", "old", filled(3000, 3))
	keep(t, s, "unread", "meta", filled(3000, 4))
	flush(t, s)
	if err := s.Renew([]byte("renewed"), []byte("new")); err != nil {
		t.Fatal(err)
	}
	for i := range 3000 {
		keep(t, s, fmt.Sprint(i), "", filled(1000, uint64(i)))
		if i%100 == 0 {
			flush(t, s)
			if used := taken(t, cfg.Dir); used > cfg.Bytes || s.Counters()["disk_bytes"] > uint64(cfg.Bytes) {
				t.Fatalf("after %d it takes %d bytes of %d", i, used, cfg.Bytes)
			}
			look(t, s, "read")
			look(t, s, "renewed")
			s.Touch([]byte("touched"))
		}
	}
	flush(t, s)
	for _, when := range []string{"at once", "after a restart"} {
		for key, want := range map[string]string{"read": "meta", "touched": "meta", "renewed": "new", "unread": "", "0": "", "1500": "", "2999": "there"} {
			meta, body, ok := look(t, s, key)
			if ok != (want != "") || ok && want != "there" && (meta != want || len(body) != 3000) {
				t.Errorf("%s: %s is %q, %d bytes, %v", when, key, meta, len(body), ok)
			}
		}
		c := s.Counters()
		if n := c["disk_objects"]; n < 500 || n > 1000 {
			t.Errorf("%s: %d objects", when, n)
		}
		if when == "at once" && (c["disk_evicted_total"] < 2000 || c["disk_carried_total"] < 6) {
			t.Errorf("counted %v", c)
		}
		s.Close()
		s = openStore(t, cfg, small())
	}
	// It opens with a smaller bound, too.
	s.Close()
	cfg.Bytes = smallBytes / 2
	s = openStore(t, cfg, small())
	if used := taken(t, cfg.Dir); used > cfg.Bytes {
		t.Errorf("with half the bytes it takes %d of %d", used, cfg.Bytes)
	}
	if _, _, ok := look(t, s, "2999"); !ok {
		t.Error("with half the bytes the newest are gone")
	}
}

func TestTinyObjectsDoNotTakeTheMemoryInstead(t *testing.T) {
	s := openStore(t, Config{Dir: t.TempDir(), Bytes: 8 << 20, Objects: 5000}, small())
	for i := range 20000 {
		for errors.Is(s.Put(fmt.Append(nil, i), nil), ErrBusy) {
			flush(t, s)
		}
	}
	flush(t, s)
	if n := s.Counters()["disk_objects"]; n > 5000 || n < 2000 {
		t.Errorf("%d objects are in the index, of 5000", n)
	}
}

func TestWhatIsBeingReadStaysAndItsBytesCount(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), Bytes: smallBytes, Objects: 10000}
	s := openStore(t, cfg, small())
	var slow []*Entry
	n := 0
	for i := 0; ; i++ {
		key := fmt.Sprint(i)
		keep(t, s, key, "", filled(30<<10, uint64(i)))
		flush(t, s)
		e, ok := s.Get([]byte(key))
		if !ok {
			break // it had no room
		}
		slow = append(slow, e)
		if n++; n > 100 {
			t.Fatal("what is read takes any room")
		}
		if c := s.Counters(); c["disk_bytes"] > uint64(cfg.Bytes) {
			t.Fatalf("it takes %d of %d", c["disk_bytes"], cfg.Bytes)
		}
	}
	if c := s.Counters(); c["disk_refused_total"] == 0 || c["disk_objects"] < 15 {
		t.Errorf("slow readers empty the store: %v", c)
	}
	for i, e := range slow {
		body := make([]byte, e.Size())
		if _, err := e.ReadAt(body, 0); err != nil || !bytes.Equal(body, filled(30<<10, uint64(i))) {
			t.Errorf("%d: what is read is not what was put: %v", i, err)
		}
		e.Close()
	}
	keep(t, s, "after", "", filled(30<<10, 1))
	flush(t, s)
	if _, _, ok := look(t, s, "after"); !ok {
		t.Error("there is no room when the readers have gone")
	}
}

func TestWhatIsTooLargeOrTooMuchIsRefused(t *testing.T) {
	s := openStore(t, Config{Dir: t.TempDir(), Bytes: 64 << 20, Pending: 1 << 20}, defaults())
	keep(t, s, "k", "", []byte("old"))
	flush(t, s)
	for name, err := range map[string]error{
		"body": s.Put([]byte("k"), nil, make([]byte, s.MaxBody()+1)),
		"meta": s.Put([]byte("other"), make([]byte, maxMeta+1)),
		"key":  s.Put(make([]byte, maxKey+1), nil),
	} {
		if !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := s.Put([]byte("k2"), nil, make([]byte, 1<<20)); !errors.Is(err, ErrBusy) {
		t.Errorf("more than may wait: %v", err)
	}
	if _, _, ok := look(t, s, "k"); ok {
		t.Error("the old object is found after the new one was refused")
	}
	if n := s.Counters()["disk_refused_total"]; n != 4 {
		t.Errorf("counted %d", n)
	}
	if err := s.Put([]byte("largest"), nil, make([]byte, 1<<19)); err != nil {
		t.Error(err)
	}
	s.Close()
	if err := s.Put([]byte("k"), nil); !errors.Is(err, ErrClosed) {
		t.Errorf("put after the close: %v", err)
	}
	if err := s.SetState(nil); !errors.Is(err, ErrClosed) {
		t.Errorf("state after the close: %v", err)
	}
	if _, ok := s.Get([]byte("largest")); ok || s.Delete([]byte("largest")) || s.Touch([]byte("largest")) {
		t.Error("something is found after the close")
	}
}

func TestAllYieldsWhatIsThere(t *testing.T) {
	s := openStore(t, Config{Dir: t.TempDir(), Bytes: smallBytes, Objects: 10000}, small())
	for i := range 600 {
		keep(t, s, fmt.Sprint(i), fmt.Sprint("meta ", i), filled(500, 1))
	}
	for i := range 100 {
		s.Delete(fmt.Append(nil, i))
	}
	flush(t, s)
	got := map[string]string{}
	for key, meta := range s.All() {
		got[string(key)] = string(meta)
		if len(got) == 10 { // what is deleted meanwhile is not yielded
			s.Delete([]byte("599"))
		}
	}
	if len(got) != 499 || got["599"] != "" || got["100"] != "meta 100" || got["598"] != "meta 598" {
		t.Errorf("%d are yielded", len(got))
	}
	n := 0
	for range s.All() {
		if n++; n == 3 {
			break
		}
	}
	if n != 3 {
		t.Error("it cannot be ended")
	}
}

func TestAFolderIsOneProcessesAndHoldsACacheAlone(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, Config{Dir: dir, Bytes: 64 << 20}, defaults())
	if _, err := Open(Config{Dir: dir}); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), dir) {
		t.Errorf("opened twice: %v", err)
	}
	s.Close()
	if err := os.Mkdir(filepath.Join(dir, "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, Config{Dir: dir}, defaults())
	s.Close()

	home := t.TempDir()
	if err := os.WriteFile(filepath.Join(home, "thesis.txt"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Dir: home}); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "thesis.txt") {
		t.Errorf("a folder of somebody's: %v", err)
	}
	if names, _ := os.ReadDir(home); len(names) != 1 {
		t.Errorf("it was touched: %v", names)
	}
}

func TestSegmentsOfAnotherVersionGo(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), Bytes: 64 << 20}
	later := filepath.Join(cfg.Dir, segmentName(7))
	if err := os.WriteFile(later, []byte("perigee\x02 and what that may mean"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, cfg, defaults())
	if _, err := os.Stat(later); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is there still: %v", err)
	}
	keep(t, s, "k", "", []byte("body"))
	flush(t, s)
	if _, err := os.Stat(filepath.Join(cfg.Dir, segmentName(8))); err != nil {
		t.Errorf("its number is used again: %v", err)
	}
}

func TestTheStateIsThereAfterARestart(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), Bytes: smallBytes, Objects: 10000}
	s := openStore(t, cfg, small())
	if s.State() != nil {
		t.Error("a new store has a state")
	}
	for i := range 5 {
		for j := range 300 { // segments come and go
			keep(t, s, fmt.Sprint(i, j), "", filled(1000, 1))
		}
		state := fmt.Appendf(nil, "epoch %d", i)
		if err := s.SetState(state); err != nil || !bytes.Equal(s.State(), state) {
			t.Fatalf("got %q, %v", s.State(), err)
		}
		s.Close()
		s = openStore(t, cfg, small())
		if !bytes.Equal(s.State(), state) {
			t.Fatalf("after a restart it is %q", s.State())
		}
	}
	if err := errors.Join(s.SetState(make([]byte, s.MaxState()+1)), s.Restate(make([]byte, s.MaxState()+1))); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a large one: %v", err)
	}
	large := filled(int(s.MaxState()), 1)
	if err := s.SetState(large); err != nil {
		t.Fatal(err)
	}
	for j := range 2000 {
		keep(t, s, fmt.Sprint(j), "", filled(1000, 1))
		if j%100 == 0 {
			flush(t, s)
			if used := taken(t, cfg.Dir) + s.MaxState(); used > cfg.Bytes { // as if it was being written anew
				t.Fatalf("with a large one it takes %d of %d", used, cfg.Bytes)
			}
		}
	}
	if err := s.Restate([]byte("later")); err != nil || string(s.State()) != "later" {
		t.Errorf("restated it is %q, %v", s.State(), err)
	}
	s.Close()
	s = openStore(t, cfg, small())
	if string(s.State()) != "later" {
		t.Errorf("after a restart it is %q", s.State())
	}
	empty := openStore(t, Config{Dir: t.TempDir(), Bytes: smallBytes}, small())
	if err := empty.Restate([]byte("first")); !errors.Is(err, ErrMissing) {
		t.Errorf("restated without one: %v", err)
	}
}

func TestManyAtATimeGetWhatWasPut(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), Bytes: smallBytes, Objects: 10000}
	s := openStore(t, cfg, small())
	var all sync.WaitGroup
	for who := range 6 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(who), 1))
			for range 1500 {
				key := fmt.Sprint(r.IntN(500))
				size := 100 + int(hashOf([]byte(key))%6000)
				switch r.IntN(10) {
				case 0, 1, 2:
					s.Put([]byte(key), []byte(key), filled(size, hashOf([]byte(key))))
				case 3:
					s.Delete([]byte(key))
				case 4:
					s.Renew([]byte(key), []byte(key))
				case 5:
					for k, m := range s.All() {
						if !bytes.Equal(k, m) {
							t.Errorf("%s has the meta of %s", k, m)
						}
						if r.IntN(20) == 0 {
							break
						}
					}
				case 6:
					if r.IntN(20) == 0 {
						s.SetState([]byte(key))
					}
					s.Touch([]byte(key))
					s.Counters()
				default:
					if meta, body, ok := look(t, s, key); ok && (meta != key || !bytes.Equal(body, filled(size, hashOf([]byte(key))))) {
						t.Errorf("%s has another's body", key)
					}
				}
			}
		})
	}
	all.Wait()
	flush(t, s)
	if c := s.Counters(); c["disk_damaged_total"] != 0 || c["disk_failures_total"] != 0 || c["disk_evicted_total"] == 0 {
		t.Errorf("counted %v", c)
	}
	var keys []string
	for key := range s.All() {
		keys = append(keys, string(key))
	}
	slices.Sort(keys)
	if uint64(len(keys)) != s.Counters()["disk_objects"] || len(slices.Compact(keys)) != len(keys) {
		t.Errorf("yielded %d, counted %d", len(keys), s.Counters()["disk_objects"])
	}
}

func TestAnObjectIsFoundAgainUntilItIsAnother(t *testing.T) {
	s := openStore(t, Config{Dir: t.TempDir(), Bytes: smallBytes}, quick())
	body := bytes.Repeat([]byte("0123456789abcdef"), 700)
	find := func() *Entry {
		t.Helper()
		e, ok := s.Get([]byte("a"))
		if !ok {
			t.Fatal("it is not there")
		}
		e.Trim()
		e.Close()
		return e
	}
	same := func(e *Entry) {
		t.Helper()
		again, ok := s.Again(e)
		if !ok {
			t.Fatal("it is not found again")
		}
		defer again.Close()
		got := make([]byte, again.Size())
		if _, err := again.ReadAt(got, 0); err != nil || !bytes.Equal(got, body) {
			t.Errorf("another body of %d bytes: %v", len(got), err)
		}
	}
	keep(t, s, "a", "meta", body)
	flush(t, s)
	first := find()
	same(first)
	e, _ := s.Again(first)
	if err := e.Check(); err != nil {
		t.Fatal(err)
	}
	e.Close()
	if e, _ = s.Again(first); !e.checked.Load() {
		t.Error("that it was checked is forgotten")
	}

	// Who found it again holds its file, whatever becomes of it.
	if !s.Delete([]byte("a")) {
		t.Error("it was not there")
	}
	flush(t, s)
	if _, ok := s.Again(first); ok {
		t.Error("what was deleted is found again")
	}
	got := make([]byte, e.Size())
	if _, err := e.ReadAt(got, 0); err != nil || !bytes.Equal(got, body) {
		t.Errorf("held, it is %d other bytes: %v", len(got), err)
	}
	e.Close()

	keep(t, s, "a", "meta", body)
	flush(t, s)
	second := find()
	if err := s.Renew([]byte("a"), []byte("other")); err != nil {
		t.Fatal(err)
	}
	flush(t, s)
	if _, ok := s.Again(second); ok {
		t.Error("what was renewed is found as it was")
	}
	third := find()
	same(third)
	for i := range 200 { // it goes with its segment
		keep(t, s, fmt.Sprint("other ", i), "meta", body)
		flush(t, s)
	}
	if _, there := s.Get([]byte("a")); there {
		t.Fatal("it is still there")
	}
	if _, ok := s.Again(third); ok {
		t.Error("what is gone is found again")
	}
}
