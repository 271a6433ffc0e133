package identity

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"
)

func keys() *rapid.Generator[Key] {
	return rapid.Custom(func(t *rapid.T) Key { return Key(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "key")) })
}

func TestWhatIsSealedOpensByTheSameKeyAndContextOnly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key, other := keys().Draw(t, "key"), keys().Draw(t, "other")
		plain := rapid.SliceOf(rapid.Byte()).Draw(t, "plain")
		context, elsewhere := rapid.String().Draw(t, "context"), rapid.String().Draw(t, "elsewhere")
		sealed := key.Seal(plain, context)
		if len(sealed) != len(plain)+sealExtra {
			t.Fatalf("%d bytes are %d when sealed", len(plain), len(sealed))
		}
		if got, err := key.Open(sealed, context); err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("got %x, %v", got, err)
		}
		if _, err := other.Open(sealed, context); err == nil && other != key {
			t.Fatal("another key opens it")
		}
		if _, err := key.Open(sealed, elsewhere); err == nil && elsewhere != context {
			t.Fatal("it opens at another place")
		}
	})
}

func TestAChangedSealedTextDoesNotOpen(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := keys().Draw(t, "key")
		sealed := key.Seal(rapid.SliceOf(rapid.Byte()).Draw(t, "plain"), "x")
		if _, err := key.Open(sealed[:rapid.IntRange(0, len(sealed)-1).Draw(t, "cut")], "x"); err == nil {
			t.Fatal("cut off, it opens")
		}
		if _, err := key.Open(append(bytes.Clone(sealed), rapid.Byte().Draw(t, "more")), "x"); err == nil {
			t.Fatal("longer, it opens")
		}
		sealed[rapid.IntRange(0, len(sealed)-1).Draw(t, "at")] ^= byte(rapid.IntRange(1, 255).Draw(t, "flip"))
		if _, err := key.Open(sealed, "x"); err == nil {
			t.Fatal("flipped, it opens")
		}
	})
}

// The nonce is drawn from what is sealed: the same gives the same, and anything else has a nonce of its own.
func TestSealingTwiceGivesTheSame(t *testing.T) {
	type text struct{ plain, context string }
	rapid.Check(t, func(t *rapid.T) {
		key := keys().Draw(t, "key")
		one := text{rapid.String().Draw(t, "plain"), rapid.String().Draw(t, "context")}
		two := text{rapid.String().Draw(t, "plain"), rapid.String().Draw(t, "context")}
		// The two hardest to tell apart: a letter moved over the border between context and text.
		three := text{one.context + one.plain, ""}
		for _, other := range []text{one, two, three} {
			a, b := key.Seal([]byte(one.plain), one.context), key.Seal([]byte(other.plain), other.context)
			if bytes.Equal(a, b) != (one == other) {
				t.Fatalf("%q and %q: %x and %x", one, other, a, b)
			}
			if bytes.Equal(a[:1+nonceSize], b[:1+nonceSize]) != (one == other) {
				t.Fatalf("%q and %q share a nonce", one, other)
			}
		}
	})
}

func TestKeysAreMadeByChance(t *testing.T) {
	if a, b := NewKey(), NewKey(); a == b || a == (Key{}) {
		t.Fatal("two keys are one")
	}
	k := NewKey()
	if got, err := ReadKey(k[:]); err != nil || got != k {
		t.Fatalf("a key read again is another, %v", err)
	}
}

// FuzzOpen: only what the key sealed opens, and it opens to what gives the same when sealed again.
func FuzzOpen(f *testing.F) {
	key := Key{1, 2, 3}
	f.Add(key.Seal([]byte("text"), "x"), "x")
	f.Add(key.Seal(nil, ""), "")
	f.Add([]byte{sealFormat}, "x")
	f.Fuzz(func(t *testing.T, sealed []byte, context string) {
		plain, err := key.Open(sealed, context)
		if err == nil && !bytes.Equal(key.Seal(plain, context), sealed) {
			t.Fatalf("%x opens for %q", sealed, context)
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	key, plain := NewKey(), make([]byte, 1<<10)
	b.SetBytes(int64(len(plain)))
	for b.Loop() {
		key.Seal(plain, "Certificate/x privateKey")
	}
}

func BenchmarkOpen(b *testing.B) {
	key := NewKey()
	sealed := key.Seal(make([]byte, 1<<10), "Certificate/x privateKey")
	b.SetBytes(1 << 10)
	for b.Loop() {
		if _, err := key.Open(sealed, "Certificate/x privateKey"); err != nil {
			b.Fatal(err)
		}
	}
}
