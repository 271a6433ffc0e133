package cache

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// leaver is the context of who leaves when end is called. What is to run then runs when the test says.
type leaver struct {
	context.Context
	mu   sync.Mutex
	err  error
	runs func()
}

func (l *leaver) AfterFunc(f func()) (stop func() bool) {
	l.runs = f
	return func() bool { return false } // it has begun
}

func (l *leaver) Done() <-chan struct{} { return make(chan struct{}) }

func (l *leaver) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

func (l *leaver) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = context.Canceled
}

// Who has joined a lead and left may still be about to wake those who wait for it.
func TestALeadThatWasJoinedIsNotUsedAgain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		want := w.want("/a")
		lead := w.Lead(want.Key, w.policy, nil, nil, time.Now(), nil)
		if lead == nil {
			t.Fatal("there is none")
		}
		who := &leaver{Context: t.Context()}
		ask, err := w.Ask(who, want, w.find(want))
		if err != nil || !ask.joined {
			t.Fatal(err)
		}
		left := make(chan struct{})
		go func() {
			defer close(left)
			if _, err := ask.Wait(); err != context.Canceled {
				t.Error(err)
			}
			ask.Close()
		}()
		synctest.Wait()
		who.end()
		lead.fill.wake()
		<-left
		if !lead.Alone() {
			t.Fatal("somebody waits for it")
		}
		if lead.fill.cache == nil {
			t.Error("it is another's already, while somebody may wake it")
		}
		who.runs()
	})
}

// What was purged while a lead was under way is neither kept nor joined by who asks later.
func TestALeadThatIsPurgedIsNotKept(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.answer = soon("x", "Cache-Control: max-age=60")
		want := w.want("/a")
		w.beginHere(&want)
		lead := w.Lead(want.Key, w.policy, nil, nil, time.Now(), nil)
		w.Purge(Purge{Distribution: "shop", Items: []string{"/a"}})
		ask := lead.Ask(t.Context(), want)
		go func() {
			time.Sleep(100 * time.Millisecond)
			other, err := w.Ask(t.Context(), w.want("/a"), w.find(want))
			if err != nil || other.joined {
				t.Errorf("joined %v: %v", other != nil && other.joined, err)
			}
			other.Close()
		}()
		if r, err := ask.Wait(); err != nil || r.How != Filled {
			t.Fatal(r, err)
		}
		if w.find(want).Object != nil {
			t.Error("it is kept")
		}
		ask.Close()
	})
}
