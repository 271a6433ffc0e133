package stray

import (
	"errors"
	"log/slog"
	"net/netip"
	"testing"
)

// fullKeys is a map of the kernel's that takes some keys, and gives none back where that is said.
type fullKeys struct {
	room  int
	stuck bool
}

var errFull = errors.New("no room")

func (f *fullKeys) Put(any, any) error {
	if f.room == 0 {
		return errFull
	}
	f.room--
	return nil
}

func (f *fullKeys) Delete(any) error {
	if f.stuck {
		return errFull
	}
	f.room++
	return nil
}

// A failure that stays is logged once: whichever keys there are, the one that is named is the same as long as nothing changes.
func TestAFailureOfTheKernelIsToldOnce(t *testing.T) {
	var addresses []netip.Addr
	var doors []netip.AddrPort
	for i := range 30 {
		a := netip.AddrFrom4([4]byte{198, 51, 100, byte(i)})
		addresses, doors = append(addresses, a), append(doors, netip.AddrPortFrom(a, 80), netip.AddrPortFrom(a, 443))
	}
	for _, c := range []struct {
		name             string
		addresses, doors fullKeys
		begin            bool // all is looked at before, and is to be forgotten
	}{
		{"addresses do not fit", fullKeys{room: 7}, fullKeys{room: 99}, false},
		{"doors do not fit", fullKeys{room: 99}, fullKeys{room: 7}, false},
		{"addresses are not forgotten", fullKeys{room: 99, stuck: true}, fullKeys{room: 99}, true},
		{"doors are not forgotten", fullKeys{room: 99}, fullKeys{room: 99, stuck: true}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := &kernel{looked: map[netip.Addr]byte{}, doors: map[netip.AddrPort]bool{}}
			look := func(of bool) error {
				wanted, open := map[netip.Addr]byte{}, map[netip.AddrPort]bool{}
				for _, a := range addresses {
					if of || c.doors.stuck {
						wanted[a] = doorsOnly
					}
				}
				for _, d := range doors {
					if of {
						open[d] = true
					}
				}
				return k.lookAt(wanted, open, &c.addresses, &c.doors)
			}
			if c.begin {
				if err := look(true); err != nil {
					t.Fatal(err)
				}
			}
			var lines logged
			h := &Hand{config: Config{Log: slog.New(slog.NewTextHandler(&lines, nil))}}
			for range 20 {
				err := look(!c.begin)
				if !errors.Is(err, errFull) {
					t.Fatalf("got %v", err)
				}
				h.report(&h.told.watch, err)
			}
			if n := lines.Load(); n != 1 {
				t.Errorf("%d lines", n)
			}
		})
	}
}
