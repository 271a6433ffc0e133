package node

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/perigee-net/perigee/cluster/view"
)

func TestPeersOutliveTheProcessAndAreForgottenAfterDays(t *testing.T) {
	dir, now := t.TempDir(), time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	member := func(name, at string) view.Member {
		return view.Member{Name: name, Gossip: netip.MustParseAddrPort(at)}
	}
	self, b, c := member("a", "192.0.2.1:7946"), member("b", "192.0.2.2:7946"), member("c", "192.0.2.3:7946")
	p, err := loadPeers(dir, "a", now)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.seen([]view.Member{self, b, c}, now); err != nil {
		t.Fatal(err)
	}
	if got := p.missing(); len(got) != 0 {
		t.Errorf("all are live, and %v are missing", got)
	}
	if p, err = loadPeers(dir, "a", now); err != nil {
		t.Fatal(err)
	}
	got := p.missing()
	slices.Sort(got)
	if !slices.Equal(got, []string{"192.0.2.2:7946", "192.0.2.3:7946"}) {
		t.Errorf("after a restart %v are missing", got)
	}
	p.seen([]view.Member{self, b}, now.Add(forgetAfter))
	if got := p.missing(); !slices.Equal(got, []string{"192.0.2.3:7946"}) {
		t.Errorf("just before its time %v are missing", got)
	}
	p.seen([]view.Member{self, b}, now.Add(forgetAfter+time.Second))
	if got := p.missing(); len(got) != 0 {
		t.Errorf("%v are still looked for", got)
	}
}

func TestAClusterThatChangedNothingForDaysIsStillFoundAfterARestart(t *testing.T) {
	dir, now := t.TempDir(), time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	self := view.Member{Name: "a", Gossip: netip.MustParseAddrPort("192.0.2.1:7946")}
	other := view.Member{Name: "b", Gossip: netip.MustParseAddrPort("192.0.2.2:7946")}
	p, err := loadPeers(dir, "a", now)
	if err != nil {
		t.Fatal(err)
	}
	for range 100 { // hours
		p.seen([]view.Member{self, other}, now)
		now = now.Add(time.Hour)
	}
	if p, err = loadPeers(dir, "a", now); err != nil {
		t.Fatal(err)
	}
	p.seen([]view.Member{self}, now.Add(time.Second))
	if got := p.missing(); !slices.Equal(got, []string{"192.0.2.2:7946"}) {
		t.Errorf("after a restart %v are missing", got)
	}
}

func TestADamagedPeersFileIsNamed(t *testing.T) {
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, peersFile), []byte(`{"b":`), 0o600)
	if _, err := loadPeers(dir, "a", time.Now()); err == nil || !strings.Contains(err.Error(), filepath.Join(dir, peersFile)) {
		t.Errorf("got %v", err)
	}
}
