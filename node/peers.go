package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/perigee-net/perigee/cluster/file"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/cluster/watch"
)

// peers are the nodes that this one has met, on disk: where it looks for the cluster after a restart, and whom it
// tries to reach again after a partition, in which both sides held the other for dead.
type peers struct {
	self string
	path string
	now  []string // the live ones, of the last view

	mu    sync.Mutex
	known map[string]peer
}

type peer struct {
	Gossip  netip.AddrPort `json:"gossip"`
	Control netip.AddrPort `json:"control"`
	Seen    time.Time      `json:"seen"`
}

const (
	peersFile = "peers.json"
	// forgetAfter is when a node that was not seen since, nor since the start, is no longer looked for.
	forgetAfter = 72 * time.Hour
	// maxPeers bounds the nodes that are remembered; those met beyond it are found by gossip alone.
	maxPeers = 4096
	// rejoinTime is how often the missing are looked for.
	rejoinTime = 5 * time.Second
)

func loadPeers(dir, self string, now time.Time) (*peers, error) {
	p := &peers{self: self, path: filepath.Join(dir, peersFile), known: map[string]peer{}}
	data, err := os.ReadFile(p.path)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, &p.known); err != nil {
		return nil, fmt.Errorf("read %s: %w (it may be deleted: the node then needs --join to find the others)", p.path, err)
	}
	// Their times count from now: the file is of the last change, and the whole cluster may have been down since.
	for name, old := range p.known {
		p.known[name] = peer{Gossip: old.Gossip, Control: old.Control, Seen: now}
	}
	return p, nil
}

// seen takes note of the live members; where one is new or has moved, the file is written.
func (p *peers) seen(live []view.Member, now time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now = p.now[:0]
	changed := false
	for _, m := range live {
		p.now = append(p.now, m.Name)
		before, known := p.known[m.Name]
		if m.Name == p.self || !known && len(p.known) >= maxPeers {
			continue
		}
		changed = changed || before.Gossip != m.Gossip || before.Control != m.Control
		p.known[m.Name] = peer{Gossip: m.Gossip, Control: m.Control, Seen: now}
	}
	for name, old := range p.known {
		if now.Sub(old.Seen) > forgetAfter {
			delete(p.known, name)
			changed = true
		}
	}
	if !changed {
		return nil
	}
	return p.save()
}

func (p *peers) save() error {
	data, err := json.Marshal(p.known)
	if err != nil {
		return err
	}
	return file.ReplaceBytes(p.path, data)
}

// missing are the addresses of the nodes that were met and are not live now.
func (p *peers) missing() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	live := map[string]bool{}
	for _, name := range p.now {
		live[name] = true
	}
	var at []string
	for name, peer := range p.known {
		if !live[name] {
			at = append(at, peer.Gossip.String())
		}
	}
	return at
}

// controls are the control ports of the nodes that were met, in the order of their names.
func (p *peers) controls() []watch.Source {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []watch.Source
	for _, name := range slices.Sorted(maps.Keys(p.known)) {
		if at := p.known[name].Control; at.IsValid() {
			all = append(all, watch.Source{Name: name, Address: at.String()})
		}
	}
	return all
}

// firstMeeting asks the node that admitted this one where the others gossip.
func (n *Node) firstMeeting(ctx context.Context) error {
	status, err := n.peerAPI("", n.cfg.Join).Status(ctx)
	if err != nil {
		return fmt.Errorf("ask %s for the members: %w", n.cfg.Join, err)
	}
	var at []string
	for _, m := range status.Members {
		if m.Gossip.IsValid() && m.Name != n.cfg.Name {
			at = append(at, m.Gossip.String())
		}
	}
	return n.gossip.Join(ctx, few(at))
}

// few are some of many addresses: gossip leads from one node to all, and each that is joined costs an exchange of all there is.
func few(at []string) []string {
	const enough = 3
	rand.Shuffle(len(at), func(i, j int) { at[i], at[j] = at[j], at[i] })
	return at[:min(len(at), enough)]
}

// keepJoined looks for the nodes that are missing, until the context ends.
func (n *Node) keepJoined(ctx context.Context) {
	for {
		if at := n.peers.missing(); len(at) > 0 {
			attempt, cancel := context.WithTimeout(ctx, rejoinTime)
			if err := n.gossip.Join(attempt, few(at)); err != nil {
				n.cfg.Log.Debug("look for missing nodes", "at", at, "error", err)
			}
			cancel()
		}
		if !sleep(ctx, rejoinTime) {
			return
		}
	}
}
