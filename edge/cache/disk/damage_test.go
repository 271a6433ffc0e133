package disk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// history is all that was ever put under each key. The meta of a version begins with the key, and all its bodies follow from
// its number, so what is read is known to be one that was put, or not.
type history struct {
	metas  map[string][]string          // by key, in their order
	bodies map[string]map[string]uint64 // by key and meta, the seed
	now    map[string]string            // the meta of what is there; none: deleted
	n      uint64
	keys   int // how many there are
}

func newHistory(keys int) *history {
	return &history{keys: keys, metas: map[string][]string{}, bodies: map[string]map[string]uint64{}, now: map[string]string{}}
}

func (h *history) version(key string) (meta string) {
	h.n++
	meta = fmt.Sprint(key, " version ", h.n)
	h.metas[key] = append(h.metas[key], meta)
	if h.bodies[key] == nil {
		h.bodies[key] = map[string]uint64{}
	}
	return meta
}

func bodyOf(seed uint64) []byte { return filled(int(seed*2654435761%9000), seed) }

// act does something to the store, and to the history the same.
func (h *history) act(t testing.TB, s *Store, r *rand.Rand) {
	key := fmt.Sprint("key ", r.IntN(h.keys))
	switch n := r.IntN(20); {
	case n < 12:
		meta := h.version(key)
		h.bodies[key][meta] = h.n
		delete(h.now, key)
		if err := s.Put([]byte(key), []byte(meta), bodyOf(h.n)); err != nil {
			return // it may be refused, where the disk fails
		}
		h.now[key] = meta
	case n < 15:
		s.Delete([]byte(key))
		delete(h.now, key)
	case n < 18:
		s.Flush()
		if old, ok := h.now[key]; ok {
			meta := h.version(key)
			h.bodies[key][meta] = h.bodies[key][old]
			if s.Renew([]byte(key), []byte(meta)) == nil && s.Flush() == nil {
				if e, ok := s.Get([]byte(key)); ok { // it may be moved or evicted meanwhile
					h.now[key] = string(e.Meta)
					e.Close()
				}
				if h.now[key] != meta && h.now[key] != old {
					t.Fatalf("%s is %q, and neither renewed nor as before", key, h.now[key])
				}
			}
		}
	default:
		if e, ok := s.Get([]byte(key)); ok {
			e.Close()
		}
	}
}

// genuine fails unless what is there of each key is a version that was put, with its body; it says how many there are, and how many of them
// are the newest.
func (h *history) genuine(t testing.TB, s *Store, when string) (there, newest int) {
	t.Helper()
	for key := range h.metas {
		e, ok := s.Get([]byte(key))
		if !ok {
			continue
		}
		there++
		seed, known := h.bodies[key][string(e.Meta)]
		if !known {
			t.Fatalf("%s: %s has the meta %q, which it never had", when, key, e.Meta)
		}
		body := make([]byte, e.Size())
		if _, err := e.ReadAt(body, 0); err == nil && !bytes.Equal(body, bodyOf(seed)) {
			t.Fatalf("%s: %s has a body that it never had", when, key)
		} else if err == nil && h.now[key] == string(e.Meta) {
			newest++
		}
		e.Close()
	}
	return there, newest
}

// exact fails unless of each key there is the newest or nothing: nothing that was replaced or deleted.
func (h *history) exact(t testing.TB, s *Store, when string) {
	t.Helper()
	for key, metas := range h.metas {
		e, ok := s.Get([]byte(key))
		if !ok {
			continue
		}
		if string(e.Meta) != h.now[key] {
			t.Fatalf("%s: %s is %q, and should be %q; its history is %q", when, key, e.Meta, h.now[key], metas)
		}
		e.Close()
	}
}

func copyFolder(t testing.TB, from, to string) {
	t.Helper()
	names, err := os.ReadDir(from)
	if err == nil {
		err = os.MkdirAll(to, 0o700)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		data, err := os.ReadFile(filepath.Join(from, n.Name()))
		if err == nil {
			err = os.WriteFile(filepath.Join(to, n.Name()), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestTheStoreIsLikeAMap puts, deletes, renews and reads at random, with restarts and copies of the folder that are opened beside it, as if the
// process had been killed then: what is there is the newest, and nothing of it is missing but what was evicted.
func TestTheStoreIsLikeAMap(t *testing.T) {
	for seed := range uint64(6) {
		r := rand.New(rand.NewPCG(seed, 1))
		dir := t.TempDir()
		cfg := Config{Dir: filepath.Join(dir, "cache"), Bytes: nameRoom + 512<<10 + int64(seed%3)<<20, Objects: 10000}
		s := openStore(t, cfg, small())
		h := newHistory(40)
		for step := range 600 {
			h.act(t, s, r)
			switch r.IntN(40) {
			case 0:
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				s = openStore(t, cfg, small())
			case 1:
				flush(t, s)
				killed := cfg
				killed.Dir = filepath.Join(dir, fmt.Sprint("killed", step))
				copyFolder(t, cfg.Dir, killed.Dir)
				k := openStore(t, killed, small())
				h.exact(t, k, "killed")
				h.genuine(t, k, "killed")
				if a, b := len(s.index), len(k.index); a != b {
					t.Fatalf("%d objects, and %d when killed", a, b)
				}
				k.Close()
			}
			if step%50 == 0 {
				flush(t, s)
				h.exact(t, s, "running")
				there, newest := h.genuine(t, s, "running")
				if c := s.Counters(); seed%3 > 0 && (there != newest || there != len(h.now) && c["disk_evicted_total"] == 0) {
					t.Fatalf("seed %d: %d of %d are there, and nothing was evicted", seed, there, len(h.now))
				}
				if used := taken(t, cfg.Dir); used > cfg.Bytes {
					t.Fatalf("it takes %d of %d", used, cfg.Bytes)
				}
			}
		}
		if c := s.Counters(); c["disk_damaged_total"]+c["disk_damaged_segments_total"]+c["disk_failures_total"] != 0 {
			t.Errorf("counted %v", c)
		}
	}
}

// TestDamageIsNeverRead cuts files off and turns bits in them at random, and removes some. It opens each time; what is there is what was
// put once; and if the state is there nothing is there that was replaced or deleted before it was set.
func TestDamageIsNeverRead(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 5))
	whole := filepath.Join(t.TempDir(), "whole")
	cfg := Config{Dir: whole, Bytes: nameRoom + 640<<10, Objects: 10000}
	s := openStore(t, cfg, quick())
	h := newHistory(150)
	for range 900 {
		h.act(t, s, r)
	}
	if err := s.SetState([]byte("clean")); err != nil {
		t.Fatal(err)
	}
	there, _ := h.genuine(t, s, "whole")
	killed := filepath.Join(t.TempDir(), "killed")
	copyFolder(t, whole, killed) // its last segment has no index
	s.Close()
	states, lost, served := 0, 0, 0
	for round := range 100 {
		damaged := cfg
		damaged.Dir = filepath.Join(t.TempDir(), "damaged")
		copyFolder(t, []string{whole, killed}[round%2], damaged.Dir)
		names, err := os.ReadDir(damaged.Dir)
		if err != nil {
			t.Fatal(err)
		}
		what := ""
		for range 1 + r.IntN(3) {
			name := names[r.IntN(len(names))].Name()
			path := filepath.Join(damaged.Dir, name)
			data, err := os.ReadFile(path)
			if err != nil {
				continue
			}
			switch n := r.IntN(10); {
			case n == 0:
				what += " no " + name
				os.Remove(path)
				continue
			case len(data) == 0:
				continue
			case n < 5:
				at := r.IntN(len(data))
				what += fmt.Sprint(" ", name, " cut at ", at)
				data = data[:at]
			case n < 8:
				bit := r.IntN(8 * len(data))
				what += fmt.Sprint(" ", name, " bit ", bit)
				data[bit/8] ^= 1 << (bit % 8)
			default: // what a file system leaves of blocks that it did not write
				from := r.IntN(len(data)) &^ 511
				to := min(len(data), from+512*(1+r.IntN(16)))
				what += fmt.Sprint(" ", name, " zeros ", from, "-", to)
				clear(data[from:to])
			}
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		d, err := open(damaged, quick())
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if string(d.State()) == "clean" {
			states++
			h.exact(t, d, what)
		} else {
			lost++
		}
		n, _ := h.genuine(t, d, what)
		served += n
		// It goes on, and comes back.
		keep(t, d, "after", "meta", filled(100, 1))
		if err := d.SetState([]byte("again")); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		d.Close()
		if d, err = open(damaged, quick()); err != nil {
			t.Fatalf("%s: again: %v", what, err)
		}
		if string(d.State()) != "again" {
			t.Fatalf("%s: the state that was set after is %q", what, d.State())
		}
		if _, _, ok := look(t, d, "after"); !ok {
			t.Fatalf("%s: what was put after is gone", what)
		}
		h.genuine(t, d, what)
		if used := taken(t, damaged.Dir); used > cfg.Bytes {
			t.Fatalf("%s: it takes %d of %d", what, used, cfg.Bytes)
		}
		d.Close()
	}
	t.Logf("of %d objects %d are there on average; the state stood %d times, and was lost %d times", there, served/100, states, lost)
	if states < 10 || lost < 10 || served/100 < there/4 {
		t.Error("the test does not reach both, or hardly anything is left")
	}
}

// TestATornTailCostsOnlyWhatWasBeingWritten cuts the last segment off at each place around its records.
func TestATornTailCostsOnlyWhatWasBeingWritten(t *testing.T) {
	cfg := Config{Dir: filepath.Join(t.TempDir(), "cache"), Bytes: 64 << 20}
	s := openStore(t, cfg, defaults())
	var ends []int64
	for i := range 20 {
		keep(t, s, fmt.Sprint(i), "", filled(i*37, uint64(i)))
		flush(t, s)
		info, err := os.Stat(filepath.Join(cfg.Dir, segmentName(1)))
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, info.Size())
	}
	data, err := os.ReadFile(filepath.Join(cfg.Dir, segmentName(1)))
	if err != nil {
		t.Fatal(err)
	}
	for cut := len(data); cut >= headerSize; cut -= 7 {
		found := scan(bytes.NewReader(data), int64(cut), s.active.seal)
		want := 0
		for _, end := range ends {
			if end <= int64(cut) {
				want++
			}
		}
		// Zeros behind the last body need not be there.
		if n := len(found.entries); n != want && n != want+1 || found.end != found.whole || int64(found.end) > roundUp(int64(cut), grain) {
			t.Fatalf("cut at %d, %d of %d records are found, up to %d, %d", cut, n, want, found.end, found.whole)
		}
	}
}

func TestWhatFailsItsCheckIsForgotten(t *testing.T) {
	cfg := Config{Dir: filepath.Join(t.TempDir(), "cache"), Bytes: 64 << 20}
	s := openStore(t, cfg, defaults())
	turn := func(at int64) {
		t.Helper()
		f, err := os.OpenFile(filepath.Join(cfg.Dir, segmentName(1)), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var b [1]byte
		if _, err := f.ReadAt(b[:], at); err != nil {
			t.Fatal(err)
		}
		b[0] ^= 4
		if _, err := f.WriteAt(b[:], at); err != nil {
			t.Fatal(err)
		}
	}
	body := filled(3*blockSize, 1)
	for _, key := range []string{"by block", "by check", "head"} {
		keep(t, s, key, "meta", body)
	}
	flush(t, s)
	where := func(key string) int64 {
		e, _ := s.Get([]byte(key))
		defer e.Close()
		return e.offset
	}
	turn(where("by block") + blockSize + 5)
	turn(where("by check") + 2*blockSize + 5)
	turn(int64(s.index[hashOf([]byte("head"))].offset()) + fixedSize + 5)

	e, _ := s.Get([]byte("by block"))
	b := make([]byte, len(body))
	n, err := e.ReadAt(b, 0)
	if n != blockSize || err == nil || !bytes.Equal(b[:n], body[:n]) || !bytes.Equal(b[n:2*blockSize], make([]byte, blockSize)) {
		t.Errorf("got %d bytes, %v", n, err)
	}
	e.Close()
	e, _ = s.Get([]byte("by check"))
	if err := e.Check(); err == nil {
		t.Error("the check says nothing")
	}
	if _, _, ok := e.File(); ok {
		t.Error("its file is told")
	}
	e.Close()
	for range 2 {
		for _, key := range []string{"by block", "by check", "head"} {
			if _, ok := s.Get([]byte(key)); ok {
				t.Errorf("%s is there still", key)
			}
		}
		if n := s.Counters()["disk_damaged_total"]; n != 3 && n != 0 {
			t.Errorf("counted %d", n)
		}
		s.Close()
		s = openStore(t, cfg, defaults())
	}
}

// FuzzSegment opens any bytes as a segment, as they are and with the sums put right where the fuzzer leaves a header: nothing panics, and
// nothing reaches beyond the file.
func FuzzSegment(f *testing.F) {
	sl := seal{7, 1}
	r := record{hash: 5, kind: keptRecord, key: []byte("key"), meta: []byte("meta"), bodySize: 10, sums: sumBody([][]byte{filled(10, 1)}), bodySegment: 1}
	r.bodyOffset = headerSize + uint32(r.headSize())
	whole := r.appendTo(header{seal: sl}.bytes(), sl, headerSize)
	whole = append(whole, filled(10, 1)...)
	whole = append(whole, make([]byte, roundUp(int64(len(whole)), grain)-int64(len(whole)))...)
	at := uint32(len(whole))
	whole = (&record{hash: 6, kind: deletedRecord}).appendTo(whole, sl, at)
	f.Add(bytes.Clone(whole), false)
	whole = append(whole, footer([]entry{{5, headerSize, uint32(r.headSize()), 1, r.bodyOffset}, {6, at, 0, 0, 0}}, sl, uint32(len(whole)))...)
	f.Add(bytes.Clone(whole), false)
	f.Add(bytes.Clone(whole), true)
	f.Add([]byte{}, true)
	f.Fuzz(func(t *testing.T, data []byte, mend bool) {
		if len(data) > 1<<20 {
			return
		}
		if mend {
			data = bytes.Clone(data)
			for at := headerSize; at+fixedSize <= len(data); at += grain {
				h := data[at:]
				binary.LittleEndian.PutUint32(h[4:], sl.sum(uint32(at), h[8:fixedSize]))
			}
			if n := len(data); n >= headerSize+trailerSize {
				if end := binary.LittleEndian.Uint32(data[n-8:]); int64(end) < int64(n-4) {
					binary.LittleEndian.PutUint32(data[n-4:], sl.sum(end, data[end:n-4]))
				}
			}
		}
		size := int64(len(data))
		found := scan(bytes.NewReader(data), size, sl)
		if int64(found.end) > roundUp(max(size, headerSize), grain) || found.whole > found.end {
			t.Fatalf("found %d bytes, %d whole, in %d", found.end, found.whole, size)
		}
		last := uint32(0)
		for _, e := range found.entries {
			if e.offset <= last || int64(e.offset)+int64(e.head) > size || e.bodySegment > 1 {
				t.Fatalf("found %+v in %d bytes", e, size)
			}
			if last = e.offset; e.head == 0 {
				continue
			}
			if r, err := parseHead(data[e.offset:e.offset+e.head], sl, e.offset); err != nil || r.hash != e.hash {
				t.Fatalf("what is found cannot be read: %v", err)
			}
		}
		if entries, end, err := readFooter(bytes.NewReader(data), size, sl); err == nil {
			for _, e := range entries {
				if int64(e.offset)+int64(e.head) > int64(end) || int64(end) > size {
					t.Fatalf("the index tells of %+v in %d bytes", e, end)
				}
			}
		}
		if len(data) >= headerSize {
			parseHeader(data[:headerSize], 1)
		}
	})
}

// TestAnIndexThatIsLostWhileItRunsDoesNotMatter spoils the index of a segment that is sealed. What is in it is yielded still, and goes
// when it is its turn.
func TestAnIndexThatIsLostWhileItRunsDoesNotMatter(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), Bytes: smallBytes, Objects: 10000}
	s := openStore(t, cfg, small())
	for i := range 100 {
		keep(t, s, fmt.Sprint(i), "", filled(1000, uint64(i)))
	}
	flush(t, s)
	first := filepath.Join(cfg.Dir, segmentName(1))
	info, err := os.Stat(first)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(first, info.Size()-1); err != nil {
		t.Fatal(err)
	}
	n := 0
	for range s.All() {
		n++
	}
	if n != 100 {
		t.Errorf("%d of 100 are yielded", n)
	}
	look(t, s, "0")
	for i := 100; i < 1100; i++ {
		keep(t, s, fmt.Sprint(i), "", filled(1000, uint64(i)))
	}
	flush(t, s)
	if _, err := os.Stat(first); err == nil {
		t.Error("it does not go")
	}
	if _, _, ok := look(t, s, "0"); !ok {
		t.Error("what was read of it was not carried over")
	}
	if _, _, ok := look(t, s, "1"); ok {
		t.Error("what was not read of it is there")
	}
	n = 0
	for range s.All() {
		n++
	}
	if c := s.Counters(); uint64(n) != c["disk_objects"] || c["disk_damaged_total"] != 0 {
		t.Errorf("%d are yielded: %v", n, c)
	}
}
