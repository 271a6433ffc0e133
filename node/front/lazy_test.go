package front

import (
	"context"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
)

// A lazy context ends as one of context.WithCancel does, whoever asks first, and whether it was asked before or after.
func TestALazyContextIsAContext(t *testing.T) {
	type key struct{}
	ways := map[string]func(end, endParent func()){
		"it goes on":      func(_, _ func()) {},
		"it is ended":     func(end, _ func()) { end() },
		"its parent ends": func(_, endParent func()) { endParent() },
	}
	looks := map[string]func(context.Context) any{
		"Err":   func(c context.Context) any { return c.Err() },
		"Value": func(c context.Context) any { return c.Value(key{}) },
		"Cause": func(c context.Context) any { return context.Cause(c) },
		"Done": func(c context.Context) any {
			select {
			case <-c.Done():
				return true
			default:
				return false
			}
		},
		"a child": func(c context.Context) any {
			child, cancel := context.WithTimeout(c, time.Hour)
			defer cancel()
			return child.Err()
		},
	}
	for way, do := range ways {
		for first, ask := range looks {
			for last, look := range looks {
				run := func(make func(parent context.Context) (context.Context, func())) any {
					parent, endParent := context.WithCancel(context.WithValue(t.Context(), key{}, "v"))
					defer endParent()
					c, end := make(parent)
					defer end()
					ask(c)
					do(end, endParent)
					return look(c)
				}
				ours := run(func(parent context.Context) (context.Context, func()) { c := &lazy{parent: parent}; return c, c.end })
				theirs := run(func(parent context.Context) (context.Context, func()) { return context.WithCancel(parent) })
				if ours != theirs {
					t.Errorf("%s, %s then %s: %v, want %v", way, first, last, ours, theirs)
				}
			}
		}
	}
}

func TestALazyContextTellsItsChildren(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &lazy{parent: t.Context()}
		before := runtime.NumGoroutine()
		child, cancel := context.WithCancel(c)
		defer cancel()
		told := false
		context.AfterFunc(c, func() { told = true })
		if n := runtime.NumGoroutine(); n != before {
			t.Errorf("%d goroutines wait for it", n-before)
		}
		c.end()
		synctest.Wait()
		if child.Err() != context.Canceled || !told {
			t.Errorf("the child: %v; told: %v", child.Err(), told)
		}
	})
}
