//go:build linux

package procs

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/perigee-net/perigee/node"
	"github.com/perigee-net/perigee/node/api"
)

// nextRelease builds the binary as a later release may be: with a kind (Banner) and a field (comment of target groups) that
// this one does not know.
func nextRelease(ctx context.Context, t *testing.T) (path string) {
	t.Helper()
	return otherRelease(ctx, t, map[string][][2]string{
		"cluster/spec/spec.go": {
			{"	// Unknown is what agreed documents say", "	Banners map[string]*Banner\n\n	// Unknown is what agreed documents say"},
			{"	kindOf(\"Cluster\",", "	kindOf(\"Banner\", \"banners\", func(s *Spec) *map[string]*Banner { return &s.Banners }),\n	kindOf(\"Cluster\","},
		},
		"cluster/spec/resources.go": {
			{"type TargetGroup struct {\n", "type Banner struct {\n	Name string `json:\"name\" rule:\"required\"`\n	Labels map[string]string `json:\"labels,omitempty\" rule:\"..32\"`\n	Text string `json:\"text\" rule:\"required\"`\n}\n\ntype TargetGroup struct {\n	Comment string `json:\"comment,omitempty\"`\n"},
		},
	})
}

// formerRelease builds the binary as it was when the log had whole objects only: it says of no format that it reads it, and stops at an
// edit.
func formerRelease(ctx context.Context, t *testing.T) (path string) {
	t.Helper()
	return otherRelease(ctx, t, map[string][][2]string{
		"node/observed.go": {{"memberMeta{Reads: store.Format, ", "memberMeta{"}},
		"cluster/store/codec.go": {
			{"const Format = formatEdited", "const Format = formatDeflated"},
			{"edits := len(data) > 0 && data[0] == formatEdited // of a change", "edits := false"},
			{"edits := len(data) > 0 && data[0] == formatEdited // of a delta", "edits := false"},
		},
	})
}

// otherRelease builds the binary with edits to some sources. They are made under the compiler's eyes only (go help build, -overlay).
func otherRelease(ctx context.Context, t *testing.T, sources map[string][][2]string) (path string) {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	overlay := map[string]map[string]string{"Replace": {}}
	for name, edits := range sources {
		source := filepath.Join(root, filepath.FromSlash(name))
		data, err := os.ReadFile(source)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range edits {
			if bytes.Count(data, []byte(e[0])) != 1 {
				t.Fatalf("%s has no single %q any more: this test makes another release of it", source, e[0])
			}
			data = bytes.Replace(data, []byte(e[0]), []byte(e[1]), 1)
		}
		edited := filepath.Join(dir, strings.ReplaceAll(name, "/", "-"))
		if err := os.WriteFile(edited, data, 0o600); err != nil {
			t.Fatal(err)
		}
		overlay["Replace"][source] = edited
	}
	data, err := json.Marshal(overlay)
	if err != nil {
		t.Fatal(err)
	}
	list := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(list, data, 0o600); err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, "perigee")
	if err := Build(ctx, path, "-overlay", list); err != nil {
		t.Fatal(err)
	}
	return path
}

// What only the next release knows.
const (
	banner    = "kind: Banner\nname: b\ntext: hello # of the next release\n"
	commented = "kind: TargetGroup\nname: commented\ncomment: of the next release\nregion: eu-central-1\nprotocol: HTTP\nport: 80\n"
)

// TestAnOldAndANewReleaseLiveInOneCluster goes the way of an upgrade: node by node, with the lead where it is hardest.
func TestAnOldAndANewReleaseLiveInOneCluster(t *testing.T) {
	t.Parallel()
	c := open(t)
	ctx := within(t, comeUp+4*time.Minute)
	next := nextRelease(ctx, t)
	if err := c.Found(ctx, 3, 3); err != nil {
		t.Fatal(err)
	}
	serveSite(ctx, t, c)
	apply := func(n *Node, yaml ...string) error {
		var files []api.File
		for i, data := range yaml {
			files = append(files, api.File{Name: fmt.Sprintf("%d.yaml", i), Data: data})
		}
		_, err := n.Client().Apply(ctx, api.ApplyRequest{Files: files})
		return err
	}

	for _, n := range c.Nodes[1:] {
		n.Binary = next
		restart(ctx, t, c, n)
	}
	old := c.Nodes[0]
	lead(ctx, t, c, c.Nodes[1])
	if err := apply(old, banner, commented); err != nil { // asked there, judged by the new leader
		t.Fatal(err)
	}
	if err := c.Whole(ctx, 3); err != nil {
		t.Fatalf("with what the old one does not know: %v", err)
	}
	kept := func(what string) {
		t.Helper()
		for _, n := range c.Nodes {
			for ref, want := range map[api.Ref]string{{Kind: "Banner", Name: "b"}: banner, {Kind: "TargetGroup", Name: "commented"}: commented} {
				list, err := n.Client().Resources(ctx, api.ResourcesQuery{Fresh: true})
				if err != nil {
					t.Fatal(err)
				}
				i := slices.IndexFunc(list.Resources, func(r api.Resource) bool { return r.Kind == ref.Kind && r.Name == ref.Name })
				if i < 0 || strings.TrimSpace(list.Resources[i].YAML) != strings.TrimSpace(want) {
					t.Errorf("%s: %s has not kept %v", what, n.Name, ref)
				}
			}
		}
	}
	kept("applied by the new leader")
	with, err := old.Client().Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var snapshot bytes.Buffer
	if err := old.Client().Snapshot(ctx, &snapshot); err != nil {
		t.Fatal(err)
	}

	lead(ctx, t, c, old)
	for what, yaml := range map[string]string{
		"an unknown kind":  strings.Replace(banner, "name: b", "name: another", 1),
		"an unknown field": strings.Replace(commented, "port: 80", "port: 81", 1),
	} {
		err := apply(c.Nodes[1], yaml)
		t.Logf("the old leader, of %s: %v", what, err)
		if err == nil || !strings.Contains(err.Error(), "no such") || !strings.Contains(err.Error(), "release") {
			t.Errorf("the old leader took %s, or does not say what to do: %v", what, err)
		}
	}
	for i := range 10 {
		if err := apply(c.Nodes[i%3], fmt.Sprintf("kind: TargetGroup\nname: plain\nregion: eu-central-1\nprotocol: HTTP\nport: %d\n", 1000+i), commented); err != nil {
			t.Fatal(err)
		}
	}
	kept("other changes by the old leader")
	if _, err := old.Client().Rollback(ctx, api.RollbackRequest{Revision: with.Revision - 1}); err != nil {
		t.Fatal(err)
	}
	if list, err := old.Client().Resources(ctx, api.ResourcesQuery{Fresh: true}); err != nil || slices.ContainsFunc(list.Resources, func(r api.Resource) bool { return r.Kind == "Banner" }) {
		t.Errorf("rolled back to before, the old leader still has it: %v", err)
	}
	if _, err := old.Client().Rollback(ctx, api.RollbackRequest{Revision: with.Revision}); err != nil {
		t.Fatal(err)
	}
	kept("rolled back and forth by the old leader")
	if _, err := old.Client().Rollback(ctx, api.RollbackRequest{Revision: with.Revision - 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := old.Client().Restore(ctx, bytes.NewReader(snapshot.Bytes()), int64(snapshot.Len())); err != nil {
		t.Fatal(err)
	}
	kept("restored from a snapshot by the old leader")
	if detail, err := old.Client().Revision(ctx, with.Revision); err != nil || !slices.ContainsFunc(detail.Changes, func(c api.Change) bool { return c.Kind == "Banner" && c.Op == "created" }) {
		t.Errorf("the history of the old leader: %+v, %v", detail, err)
	}
	old.Kill()
	if err := old.Start(); err != nil {
		t.Fatal(err)
	}
	if err := c.Whole(ctx, 3); err != nil {
		t.Fatal(err)
	}
	kept("the old one started again")

	old.Binary = next
	restart(ctx, t, c, old)
	lead(ctx, t, c, old)
	if err := apply(old, strings.Replace(banner, "name: b", "name: another", 1)); err != nil {
		t.Errorf("all are upgraded: %v", err)
	}
	kept("all are upgraded")
}

// TestTheReleaseBeforeIsSentWhatItReads goes the way of the upgrade to the release from which on little that changes in a large document is
// written as an edit.
func TestTheReleaseBeforeIsSentWhatItReads(t *testing.T) {
	t.Parallel()
	c := open(t)
	ctx := within(t, comeUp+4*time.Minute)
	now := c.Binary
	former := formerRelease(ctx, t)
	c.Binary = former
	if err := c.Found(ctx, 3, 3); err != nil {
		t.Fatal(err)
	}
	serveSite(ctx, t, c)
	values := make([]int, 500)
	change := func(i int) (edited bool) {
		t.Helper()
		values[i]++
		var zone strings.Builder
		zone.WriteString("kind: HostedZone\nname: large.test\nrecords:\n")
		for i, v := range values {
			fmt.Fprintf(&zone, "  - {name: host-%d, type: A, ttl: 300, values: [192.0.2.%d]}\n", i, v)
		}
		if _, err := c.Nodes[0].Client().Apply(ctx, api.ApplyRequest{Files: []api.File{{Name: "zone.yaml", Data: zone.String()}}}); err != nil {
			t.Fatal(err)
		}
		if err := c.Whole(ctx, 3); err != nil {
			t.Fatal(err)
		}
		for _, n := range c.Nodes {
			got, err := n.Client().Resources(ctx, api.ResourcesQuery{Fresh: true})
			if err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(got.Resources, func(r api.Resource) bool { return r.Kind == "HostedZone" && r.Name == "large.test" })
			if i < 0 || strings.TrimSpace(got.Resources[i].YAML) != strings.TrimSpace(zone.String()) {
				t.Errorf("%s has the zone otherwise", n.Name)
			}
			metrics, err := n.Client().Metrics(ctx)
			if err != nil {
				t.Fatal(err)
			}
			edited = edited || regexp.MustCompile(`(?m)^perigee_store_changes_edited_total [1-9]`).MatchString(metrics)
			if !strings.Contains(metrics, "perigee_store_fault 0\n") {
				t.Errorf("%s has stopped", n.Name)
			}
		}
		return edited
	}
	change(0)
	for i, n := range c.Nodes {
		n.Binary = now
		restart(ctx, t, c, n)
		lead(ctx, t, c, n)
		edited := change(1 + i)
		if all := i == len(c.Nodes)-1; all != edited {
			t.Errorf("%d of %d are upgraded: edits are written: %v", i+1, len(c.Nodes), edited)
		}
		if i == 0 { // it is put back, reads what it has, and is upgraded again
			for _, binary := range []string{former, now} {
				n.Binary = binary
				restart(ctx, t, c, n)
				change(5)
			}
		}
	}
	c.Nodes[1].Kill() // what it has is on its disk
	if err := c.Nodes[1].Start(); err != nil {
		t.Fatal(err)
	}
	if err := c.Whole(ctx, 3); err != nil {
		t.Fatal(err)
	}
	change(4)
}

// restart ends a node in order and starts it again, of its binary of now.
func restart(ctx context.Context, t *testing.T, c *Cluster, n *Node) {
	t.Helper()
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	if err := n.Await(ctx, "serves again", func(context.Context, *api.Client) error { return serves(n) }); err != nil {
		t.Fatal(err)
	}
	if err := c.Whole(ctx, len(c.Nodes)); err != nil {
		t.Fatal(err)
	}
}

// TestARollingUpgradeLosesNoRequest takes minutes, for every node serves on as long as DNS may have sent somebody to it: make
// verify.
func TestARollingUpgradeLosesNoRequest(t *testing.T) {
	if !*upgrades {
		t.Skip("it takes two minutes: make verify")
	}
	c := open(t)
	c.Drain = node.DrainTime
	ctx := within(t, comeUp+5*time.Minute)
	next := nextRelease(ctx, t)
	if err := c.Found(ctx, 3, 3); err != nil {
		t.Fatal(err)
	}
	serveSite(ctx, t, c)
	load := startViewers(ctx, t, c)
	for _, n := range c.Nodes {
		n.Binary = next
		restart(ctx, t, c, n)
	}
	load.end(t, "all nodes are upgraded")
}

var upgrades = flag.Bool("upgrades", false, "upgrade under load, which takes minutes")

// lead makes a node of three the leader: the other one that could be is kept from it by what it has missed.
func lead(ctx context.Context, t *testing.T, c *Cluster, n *Node) {
	t.Helper()
	for {
		now := c.Leader(ctx)
		switch {
		case now == n:
			return
		case ctx.Err() != nil:
			t.Fatalf("%s does not come to lead", n.Name)
		case now == nil:
			time.Sleep(again)
			continue
		}
		third := c.Nodes[slices.IndexFunc(c.Nodes, func(o *Node) bool { return o != n && o != now })]
		third.Pause()
		now.Client().Apply(ctx, api.ApplyRequest{Files: []api.File{{Name: "lead.yaml", Data: fmt.Sprintf(
			"kind: TargetGroup\nname: lead\nregion: eu-central-1\nprotocol: HTTP\nport: %d\n", 1+rand.IntN(60000))}}})
		if err := now.Stop(); err != nil {
			t.Fatal(err)
		}
		third.Resume()
		if err := now.Start(); err != nil {
			t.Fatal(err)
		}
		if err := c.Whole(ctx, 3); err != nil {
			t.Fatal(err)
		}
	}
}

// viewers ask for pages all the time: each knows the site's addresses by DNS, holds them as long as it may, and keeps its
// connection open. As browsers do, one tries the site's other addresses where no connection can be made to the first, and asks
// again where a connection that it kept was closed before a byte of the answer came.
type viewers struct {
	c    *Cluster
	stop context.CancelFunc
	all  sync.WaitGroup

	mu    sync.Mutex
	asked int
	lost  []string
}

const viewerCount = 6

func startViewers(ctx context.Context, t *testing.T, c *Cluster) *viewers {
	t.Helper()
	ctx, stop := context.WithCancel(ctx)
	v := &viewers{c: c, stop: stop}
	for i := range viewerCount {
		v.all.Go(func() { v.watch(ctx, i) })
	}
	time.Sleep(2 * time.Second)
	return v
}

// watch is one viewer. Its resolver knows all nodes as the zone's name servers.
func (v *viewers) watch(ctx context.Context, i int) {
	var mu sync.Mutex
	var addresses []string
	var until time.Time
	site := func() []string {
		mu.Lock()
		defer mu.Unlock()
		for try := 0; time.Now().After(until) && try < len(v.c.Nodes); try++ {
			if found, ttl, err := resolve(v.c.Nodes[(i+try)%len(v.c.Nodes)]); err == nil {
				addresses, until = found, time.Now().Add(ttl)
			}
		}
		return addresses
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, network, _ string) (conn net.Conn, err error) {
		for _, a := range site() {
			if conn, err = new(net.Dialer).DialContext(ctx, network, fmt.Sprintf("%s:%d", a, HTTPPort)); err == nil {
				return conn, nil
			}
		}
		return nil, err
	}}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport, Timeout: patience}
	for n := 0; ctx.Err() == nil; n++ {
		path := fmt.Sprintf("/fresh/%d/%d", i, n)
		if n%2 == 0 {
			path = fmt.Sprintf("/page/%d", n%20)
		}
		err := func() error {
			res, err := client.Get("http://www.procs.test" + path)
			if err != nil {
				return err
			}
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			if err == nil && (res.StatusCode != http.StatusOK || string(body) != "page "+path+"\n") {
				err = fmt.Errorf("%s %q", res.Status, body)
			}
			return err
		}()
		v.mu.Lock()
		v.asked++
		if err != nil {
			v.lost = append(v.lost, fmt.Sprintf("%s viewer %d: %v", time.Now().UTC().Format("15:04:05.000"), i, err))
		}
		v.mu.Unlock()
		time.Sleep(10 * time.Millisecond)
	}
}

func (v *viewers) end(t *testing.T, while string) {
	t.Helper()
	v.stop()
	v.all.Wait()
	t.Logf("while %s: %d requests, %d lost", while, v.asked, len(v.lost))
	for _, l := range v.lost[:min(len(v.lost), 10)] {
		t.Errorf("while %s: %s", while, l)
	}
}
