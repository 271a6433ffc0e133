package health

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// viewer is one of many clients, each in a network of its own.
func viewer(n int) netip.Addr { return netip.AddrFrom4([4]byte{198, byte(n >> 8), byte(n), 7}) }

func TestOneClientCannotCondemnATarget(t *testing.T) {
	for _, c := range []struct {
		name   string
		client func(i int) netip.Addr
	}{
		{"one address", func(int) netip.Addr { return viewer(1) }},
		{"all addresses of a /24", func(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}) }},
		{"those, mapped", func(i int) netip.Addr { return netip.AddrFrom16(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}).As16()) }},
		{"the addresses of a /56", func(i int) netip.Addr {
			return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0, 0, 1, byte(i), byte(i), 15: byte(i)})
		}},
		{"nobody knows who", func(int) netip.Addr { return netip.Addr{} }},
		{"two clients", func(i int) netip.Addr { return viewer(i % 2) }},
	} {
		w := NewWitness()
		for i := range 10_000 {
			if w.Failed(target, c.client(i), start.Add(time.Duration(i)*time.Millisecond)) {
				t.Errorf("%s: enough after %d failures", c.name, i+1)
				break
			}
		}
	}
}

func TestFiveFailuresInARowOfThreeClientsWithinTenSecondsAreEnough(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		name  string
		every time.Duration
		steps string // a letter is a failure of that client, + a success
		want  string // ! where it was enough
	}{
		{"three clients", 100 * ms, "abcab", "....!"},
		{"three clients, the last of them last", 100 * ms, "aaaabc", ".....!"},
		{"four failures", 100 * ms, "abcd", "...."},
		{"a success between", 100 * ms, "abca+babcab", ".........!."},
		{"slowly", 2500 * ms, "abcab", "....!"},
		{"too slowly", 2501 * ms, "abcabcabc", "........."},
		{"it begins anew", 100 * ms, "abcababcab", "....!....!"},
		{"a client of long ago does not count", 2 * time.Second, "abcccccccccc", "....!......."},
	} {
		w := NewWitness()
		got := ""
		for i, step := range c.steps {
			now := start.Add(time.Duration(i) * c.every)
			if step == '+' {
				w.Passed(target, now)
			} else if w.Failed(target, viewer(int(step)), now) {
				got += "!"
				continue
			}
			got += "."
		}
		if got != c.want {
			t.Errorf("%s: %s gave %s, want %s", c.name, c.steps, got, c.want)
		}
	}
}

func TestAWitnessForgetsWhatIsOldAndIsBounded(t *testing.T) {
	w := NewWitness()
	key := func(i int) Key { return Key(fmt.Sprintf("target/web/%d", i)) }
	for i := range 10 * maxWitnessed {
		w.Failed(key(i), viewer(i), start)
	}
	if len(w.keys) != maxWitnessed {
		t.Errorf("%d keys are held", len(w.keys))
	}
	for i := range 1000 {
		w.Failed(key(0), viewer(i), start)
	}
	if a := w.keys[key(0)]; a != nil && len(a.accusers) > maxAccusers {
		t.Errorf("%d clients of a key are held", len(a.accusers))
	}
	enough := false
	for i := range 5 {
		enough = w.Failed("target/new/1", viewer(i), start.Add(enoughWithin+time.Second))
	}
	if !enough || len(w.keys) > 1 {
		t.Errorf("after a while: enough %v, %d keys are held", enough, len(w.keys))
	}
}

func FuzzWitness(f *testing.F) {
	f.Add([]byte("abcab+abc"))
	f.Fuzz(func(t *testing.T, steps []byte) {
		w := NewWitness()
		row, clients := 0, map[byte]bool{}
		for i, step := range steps {
			if step == '+' {
				w.Passed(target, start)
				row, clients = 0, map[byte]bool{}
				continue
			}
			row++
			clients[step] = true
			enough := w.Failed(target, viewer(int(step)), start.Add(time.Duration(i)))
			if want := row >= enoughFailures && len(clients) >= enoughClients; enough != want {
				t.Fatalf("step %d of %q: got %v", i, steps, enough)
			}
			if enough {
				row, clients = 0, map[byte]bool{}
			}
		}
	})
}

func BenchmarkWitness(b *testing.B) {
	w := NewWitness()
	for i := range b.N {
		w.Failed(target, viewer(i%8), start.Add(time.Duration(i)*time.Millisecond))
	}
}
