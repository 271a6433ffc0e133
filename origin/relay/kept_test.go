package relay

import (
	"testing"
	"testing/synctest"
	"time"
)

// What is kept is let go when it is too old, though nothing is sent any more.
func TestWhatIsKeptIsLetGoInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var k Keeper
		all := make([]Kept, 3)
		for i := range all {
			k.Keep(&all[i], [][]byte{make([]byte, 100)})
			time.Sleep(KeptTime / 2)
		}
		if n := k.Size(); n != 200 { // it is the third half now
			t.Errorf("%d bytes are kept", n)
		}
		time.Sleep(KeptTime)
		if n := k.Size(); n != 0 {
			t.Errorf("%d bytes are left", n)
		}
	})
}

// All flows together keep no more than a bound, and let go what is oldest.
func TestWhatIsKeptIsBounded(t *testing.T) {
	synctest.Test(t, keepsABound)
}

func keepsABound(t *testing.T) {
	var k Keeper
	large := [][]byte{make([]byte, MaxKeptBytes)}
	all := make([]Kept, 2+MaxKeptOfAll/MaxKeptBytes)
	for i := range all {
		k.Keep(&all[i], large)
		if k.size > MaxKeptOfAll {
			t.Fatalf("%d bytes", k.size)
		}
	}
	if k.Drop(&all[0]) != nil || k.Drop(&all[len(all)-1]) == nil {
		t.Error("it is not the oldest that is let go")
	}
	for i := range all {
		k.Drop(&all[i])
	}
	if k.size != 0 {
		t.Errorf("%d bytes are left", k.size)
	}
}
