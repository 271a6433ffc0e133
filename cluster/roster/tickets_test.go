package roster

import (
	"slices"
	"testing"
	"time"

	"github.com/perigee-net/perigee/cluster/identity"
)

// tickets are the keys that can be read now, the one in use first.
func (w *world) tickets() [][32]byte {
	w.t.Helper()
	keys, err := w.roster().Tickets(w.keys.Cluster)
	if err != nil {
		w.t.Fatal(err)
	}
	return keys
}

// rotateTickets has the step agreed that is due.
func (w *world) rotateTickets() {
	w.t.Helper()
	c, due, err := w.roster().RotateTickets(w.keys, w.now)
	if !due {
		w.t.Fatal("no step is due")
	}
	w.do(c, err)
}

func TestATicketKeyIsKnownBeforeItIsUsedAndReadAfterwards(t *testing.T) {
	w := found(t)
	mustHave(t, "the keys of a new cluster", stages(w.roster().TicketKeys), "[used introduced]")
	first := w.tickets()
	if _, due, _ := w.roster().RotateTickets(w.keys, w.now.Add(TicketKeyTime-1)); due {
		t.Error("a key is replaced too early")
	}
	w.now = w.now.Add(TicketKeyTime)
	w.rotateTickets()
	second := w.tickets()
	if len(second) != 3 || second[0] != first[1] || !slices.Contains(second, first[0]) {
		t.Errorf("after one rotation %v follows %v", stages(w.roster().TicketKeys), first)
	}
	w.now = w.now.Add(TicketKeyTime)
	w.rotateTickets()
	third := w.tickets()
	if len(third) != 3 || third[0] == first[1] || !slices.Contains(third, first[1]) || slices.Contains(third, first[0]) {
		t.Error("after two rotations the first key is read still, or the second no more")
	}
	if slices.Contains(first, third[0]) || !slices.Contains(second, third[0]) {
		t.Error("a key is in use that was not introduced before")
	}
	for i := range 8 { // numbers with two digits
		w.now = w.now.Add(TicketKeyTime)
		w.rotateTickets()
		if got := stages(w.roster().TicketKeys); len(w.tickets()) != 3 || w.roster().TicketKeys[0].Stage != Used {
			t.Fatalf("rotation %d leaves %s", i, got)
		}
	}
}

func TestAClusterThatHasNoTicketKeysGetsThem(t *testing.T) {
	w := found(t)
	c := w.roster().change("test", w.now, "an earlier release has led")
	for _, k := range w.roster().TicketKeys {
		drop(&c, kindTicketKey, k.Name)
	}
	w.do(c, nil)
	mustHave(t, "keys", len(w.tickets()), 0)
	w.rotateTickets()
	mustHave(t, "the keys", stages(w.roster().TicketKeys), "[used introduced]")
	mustHave(t, "keys", len(w.tickets()), 2)
}

func TestARevocationEndsAllTicketKeysAtOnceAndForgettingDoesNot(t *testing.T) {
	w := found(t)
	w.join("fra1-a")
	w.join("fra1-b")
	w.do(w.roster().Forget("fra1-b", "cluster", w.now))
	if _, due, _ := w.roster().RotateTickets(w.keys, w.now); due {
		t.Error("a node that was forgotten ends the keys")
	}
	before := w.tickets()
	w.do(w.roster().Revoke("fra1-a", "root@socket", w.now))
	w.rotateTickets()
	for _, k := range w.tickets() {
		if slices.Contains(before, k) {
			t.Error("a key is read still that the revoked node knew")
		}
	}
	mustHave(t, "the keys", stages(w.roster().TicketKeys), "[used introduced]")
	if _, due, _ := w.roster().RotateTickets(w.keys, w.now); due {
		t.Error("one revocation ends the keys twice")
	}
}

func TestATicketKeyOpensByTheClusterKeyAloneAndInItsPlaceAlone(t *testing.T) {
	w := found(t)
	if _, err := w.roster().Tickets(identity.NewKey()); err == nil {
		t.Error("another key opens it")
	}
	moved := *w.roster()
	moved.TicketKeys = slices.Clone(moved.TicketKeys)
	moved.TicketKeys[0].Key = moved.TicketKeys[1].Key
	if _, err := moved.Tickets(w.keys.Cluster); err == nil {
		t.Error("a key opens in the place of another")
	}
	if _, due, _ := w.roster().RotateTickets(w.keys, w.now.Add(-time.Hour)); due {
		t.Error("a clock that was set back rotates")
	}
}
