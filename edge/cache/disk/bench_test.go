package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"testing"
)

// benchStore is a store that b.N bodies do not fill.
func benchStore(b *testing.B) *Store {
	b.Helper()
	return openStore(b, Config{Dir: b.TempDir(), Bytes: 1 << 30}, defaults())
}

func BenchmarkPut(b *testing.B) {
	for _, size := range []int{1 << 10, 100 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			s := benchStore(b)
			body, meta := filled(size, 1), filled(300, 2)
			b.SetBytes(int64(size))
			for i := 0; b.Loop(); i++ {
				for errors.Is(s.Put(fmt.Append(nil, "key ", i), meta, body), ErrBusy) {
					if err := s.Flush(); err != nil {
						b.Fatal(err)
					}
				}
			}
			if err := s.Flush(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkGet finds an object, reads and checks its body, or tells its file where that was checked before.
func BenchmarkGet(b *testing.B) {
	for _, size := range []int{1 << 10, 100 << 10, 10 << 20} {
		s := benchStore(b)
		key := []byte("https://www.example.com/some/where")
		if err := s.Put(key, filled(300, 2), filled(size, 1)); err != nil {
			b.Fatal(err)
		}
		flush(b, s)
		room := make([]byte, size)
		b.Run(fmt.Sprint("read/", size), func(b *testing.B) {
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				e, _ := s.Get(key)
				if _, err := e.ReadAt(room, 0); err != nil && err != io.EOF {
					b.Fatal(err)
				}
				e.Close()
			}
		})
		b.Run(fmt.Sprint("file/", size), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				e, _ := s.Get(key)
				if err := e.Check(); err != nil {
					b.Fatal(err)
				}
				if _, _, ok := e.File(); !ok {
					b.Fatal("it is not told")
				}
				e.Close()
			}
		})
		s.Close()
	}
}

// BenchmarkAgain finds an object again and tells its file.
func BenchmarkAgain(b *testing.B) {
	s := benchStore(b)
	key := []byte("https://www.example.com/some/where")
	if err := s.Put(key, filled(300, 2), filled(100<<10, 1)); err != nil {
		b.Fatal(err)
	}
	flush(b, s)
	e, _ := s.Get(key)
	e.Trim()
	if err := e.Check(); err != nil {
		b.Fatal(err)
	}
	e.Close()
	b.ReportAllocs()
	for b.Loop() {
		again, ok := s.Again(e)
		if _, _, checked := again.File(); !ok || !checked {
			b.Fatal("it is not there")
		}
		again.Close()
	}
}

// BenchmarkOpen opens a store of a million small objects, closed in order or killed, and says what memory they take.
func BenchmarkOpen(b *testing.B) {
	const objects = 1_000_000
	closed, killed := Config{Dir: b.TempDir(), Bytes: 4 << 30, Objects: 2 * objects}, b.TempDir()
	s := openStore(b, closed, defaults())
	body, meta := filled(1<<10, 1), filled(300, 2)
	for i := range objects {
		for errors.Is(s.Put(fmt.Append(nil, "https://www.example.com/", i), meta, body), ErrBusy) {
			if err := s.Flush(); err != nil {
				b.Fatal(err)
			}
		}
	}
	flush(b, s)
	if err := os.CopyFS(killed, os.DirFS(closed.Dir)); err != nil { // what is there when it is killed
		b.Fatal(err)
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	s = nil
	opens := func(b *testing.B, cfg Config) {
		before := heap()
		b.StartTimer()
		s, err := Open(cfg)
		b.StopTimer()
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(heap()-before)/objects, "B/object")
		if n := s.Counters()["disk_objects"]; n != objects {
			b.Fatalf("%d objects", n)
		}
		s.Close()
	}
	b.Run("closed", func(b *testing.B) {
		b.StopTimer()
		for range b.N {
			opens(b, closed)
		}
	})
	b.Run("killed", func(b *testing.B) {
		b.StopTimer()
		for range b.N {
			cfg := closed
			cfg.Dir = b.TempDir()
			if err := os.CopyFS(cfg.Dir, os.DirFS(killed)); err != nil {
				b.Fatal(err)
			}
			opens(b, cfg)
			os.RemoveAll(cfg.Dir)
		}
	})
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestAnObjectTakesAHundredBytesOfMemoryAtMost fills the index to where its tables have just grown, which is when they are emptiest.
func TestAnObjectTakesAHundredBytesOfMemoryAtMost(t *testing.T) {
	const objects = 256*1024*7/8 + 10_000
	before := heap()
	index := map[uint64]slot{}
	var key [8]byte
	for i := range objects {
		key[0], key[1], key[2] = byte(i), byte(i>>8), byte(i>>16)
		index[hashOf(key[:])] = slot{segment: uint32(i)}
	}
	// Of the segment that is being written, the index of the file is in memory, too.
	each := float64(heap()-before)/objects + entrySize
	if t.Logf("%.0f bytes", each); each > 100 {
		t.Errorf("an object takes %.0f bytes", each)
	}
	runtime.KeepAlive(index)
}
