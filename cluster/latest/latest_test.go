package latest

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
)

func TestTheZeroValueIsReady(t *testing.T) {
	var v Value[int]
	if v.Get() != 0 || v.Version() != 0 {
		t.Fatalf("got %d at version %d, want 0 at 0", v.Get(), v.Version())
	}
}

func TestNextWakesForANewerSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var v Value[string]
		got := make(chan string)
		go func() {
			s, _, _ := v.Next(t.Context(), 0)
			got <- s
		}()
		synctest.Wait() // the waiter waits: nothing was published
		v.Set("first")
		if s := <-got; s != "first" {
			t.Fatalf("got %q", s)
		}
		v.Set("second")
		v.Set("third")
		if s, version, _ := v.Next(t.Context(), 1); s != "third" || version != 3 {
			t.Fatalf("a slow waiter got %q at %d, want the last, third at 3", s, version)
		}
	})
}

func TestNextEndsWithItsContext(t *testing.T) {
	var v Value[int]
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := v.Next(ctx, 0); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
}

func TestUpdatesDoNotOverwriteEachOther(t *testing.T) {
	var v Value[int]
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				v.Update(func(n int) int { return n + 1 })
			}
		})
	}
	wg.Wait()
	if v.Get() != 800 || v.Version() != 800 {
		t.Fatalf("got %d at version %d, want 800 at 800", v.Get(), v.Version())
	}
}
