package bed

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/perigee-net/perigee/node/api"
	"github.com/perigee-net/perigee/testbed/wan"
)

// found makes one cluster of the nodes: the first has made it, the others join, and what was asked for is applied.
func (b *Bed) found(ctx context.Context, apply bool, tell func(string, ...any)) error {
	nodes := hostsOf(b.now().World, wan.Node)
	if len(nodes) == 0 {
		return nil
	}
	first := nodes[0]
	if err := b.await(ctx, first.Name, "the first node to make tokens", func(ctx context.Context) error {
		made, err := b.client(first.Name).CreateAccess(ctx, api.AccessRequest{Name: "testbed", Roles: []string{"admin"}})
		if err == nil {
			b.state.Access = made.Token
		}
		return err
	}); err != nil {
		return err
	}
	token, err := b.token(ctx, first.Name, len(nodes))
	if err != nil {
		return err
	}
	if err := each(ctx, nodes[1:], joinsAtOnce, func(h wan.Host) error {
		if err := b.runNode(ctx, h, "--join", netip.AddrPortFrom(first.V4, controlPort).String(), "--token", "@"+token); err != nil {
			return err
		}
		return b.await(ctx, h.Name, h.Name+" to join", func(ctx context.Context) error {
			_, err := b.client(h.Name).Status(ctx)
			return err
		})
	}); err != nil {
		return err
	}
	tell("%d nodes run", len(nodes))
	var revision uint64
	if apply {
		if revision, err = b.apply(ctx, first.Name); err != nil {
			return err
		}
	}
	for _, h := range nodes {
		if err := b.await(ctx, h.Name, h.Name+" to see all", func(ctx context.Context) error {
			return b.whole(ctx, h.Name, nodes, revision, apply && b.now().World.Spec == "")
		}); err != nil {
			return err
		}
	}
	tell("every node sees all others and runs revision %d", revision)
	return nil
}

// startFirst starts the node that makes the cluster: it needs no other, so it does so while routers find their ways.
func (b *Bed) startFirst(ctx context.Context) error {
	nodes := hostsOf(b.now().World, wan.Node)
	if len(nodes) == 0 {
		return nil
	}
	return b.runNode(ctx, nodes[0], "--bootstrap")
}

// client talks to a node at the socket in its folder, from outside the bed.
func (b *Bed) client(host string) *api.Client {
	c, err := api.NewClient(filepath.Join(b.Data(host), api.Socket), api.Options{})
	if err != nil {
		panic(err) // the path is ours
	}
	return c
}

// token writes a join token for so many nodes to a file: a command line can be read by all.
func (b *Bed) token(ctx context.Context, at string, uses int) (path string, err error) {
	path = filepath.Join(b.dir, tokenFile)
	err = b.await(ctx, at, at+" to make a join token", func(ctx context.Context) error {
		made, err := b.client(at).CreateToken(ctx, api.TokenRequest{Uses: uses, TTL: api.Duration(time.Hour)})
		if err != nil {
			return err
		}
		return os.WriteFile(path, []byte(made.Token), 0o600)
	})
	return path, err
}

// runNode starts a node's program. Without more words it must have been in the cluster before.
func (b *Bed) runNode(ctx context.Context, h wan.Host, how ...string) error {
	bgp, err := b.speaksBGP(ctx)
	if err != nil {
		return err
	}
	args := nodeArgs(b.now().World, h, b.now().Program, b.Data(h.Name), filepath.Join(b.dir, geoFile), b.now().Drain.String(), bgp)
	return b.run(h.Name, append(args, how...))
}

// speaksBGP says whether the binary can announce addresses: one of an earlier release cannot.
func (b *Bed) speaksBGP(ctx context.Context) (bool, error) {
	out, err := exec.CommandContext(ctx, b.now().Program, "node", "--help").CombinedOutput()
	if err != nil {
		return false, fmt.Errorf("%s node --help: %w: %s", b.now().Program, err, strings.TrimSpace(string(out)))
	}
	return strings.Contains(string(out), "--bgp-as"), nil
}

// apply applies the world's spec, or the demo.
func (b *Bed) apply(ctx context.Context, at string) (revision uint64, err error) {
	var text []byte
	if path := b.now().World.Spec; path != "" {
		text, err = os.ReadFile(path)
	} else {
		text, err = demoSpec(b.now().World)
	}
	if err != nil {
		return 0, err
	}
	if err := os.WriteFile(filepath.Join(b.dir, specFile), text, 0o600); err != nil {
		return 0, err
	}
	err = b.await(ctx, at, "the spec to be applied", func(ctx context.Context) error {
		done, err := b.client(at).Apply(ctx, api.ApplyRequest{Files: []api.File{{Name: specFile, Data: string(text)}}, Note: "testbed " + b.name})
		revision = done.Revision
		var refusal *api.Error
		if errors.As(err, &refusal) && len(refusal.Faults) > 0 {
			return permanent{err}
		}
		return err
	})
	return revision, err
}

// whole says what a node still lacks: members, a majority, the revision, links to the others, and, of the demo, health.
func (b *Bed) whole(ctx context.Context, host string, nodes []wan.Host, revision uint64, healthy bool) error {
	st, err := b.client(host).Status(ctx)
	if err != nil {
		return err
	}
	switch {
	case len(st.Members) != len(nodes):
		return fmt.Errorf("it sees %d members of %d", len(st.Members), len(nodes))
	case st.Leader == "":
		return errors.New("it knows no leader")
	case st.Running < revision || st.Refused != "":
		return fmt.Errorf("it runs revision %d %s", st.Running, st.Refused)
	case st.Voters < voters(nodes):
		return fmt.Errorf("%d nodes vote, of %d that are to", st.Voters, voters(nodes))
	}
	for _, m := range st.Members {
		if !m.Up && m.Name != st.Node {
			return fmt.Errorf("it has no link to %s yet", m.Name)
		}
	}
	if !healthy {
		return nil
	}
	all, err := b.client(host).Health(ctx, api.HealthQuery{})
	if err != nil {
		return err
	}
	well := 0
	for _, e := range all {
		if e.Healthy {
			well++
		}
	}
	want := 0
	for _, r := range served(b.now().World) {
		want += 2 * len(r.Targets)
	}
	if well < want {
		return fmt.Errorf("%d of %d targets' ports are healthy", well, want)
	}
	return nil
}

// voters is how many nodes vote before a bed is called up: so many that one may be lost, if there are so many.
func voters(nodes []wan.Host) int {
	may := 0
	for _, h := range nodes {
		if len(h.Roles) == 0 || slices.Contains(h.Roles, "voter") {
			may++
		}
	}
	if may < 3 {
		return 1
	}
	return 3
}

// AddNode adds a node to a bed that is up: its machine, with a name, a site and what else wan.World.Add wants, and its
// program, which joins. It returns when a node that was there before sees it among its members.
func (b *Bed) AddNode(ctx context.Context, h wan.Host) error {
	h.Kind = wan.Node
	var seed wan.Host
	if err := b.change(ctx, func(s *state) error {
		i := slices.IndexFunc(hostsOf(s.World, wan.Node), func(o wan.Host) bool {
			list, err := programs(b.name, o.Name)
			return err == nil && len(list) > 0
		})
		if i < 0 {
			return errors.New("no node runs that it could join")
		}
		seed = hostsOf(s.World, wan.Node)[i]
		var err error
		if h, err = s.World.Add(h); err != nil {
			return err
		}
		return b.addHost(ctx, h)
	}); err != nil {
		return fmt.Errorf("add node %s: %w", h.Name, err)
	}
	token, err := b.token(ctx, seed.Name, 1)
	if err != nil {
		return fmt.Errorf("add node %s: %w", h.Name, err)
	}
	defer os.Remove(token)
	if err := b.runNode(ctx, h, "--join", netip.AddrPortFrom(seed.V4, controlPort).String(), "--token", "@"+token); err != nil {
		return fmt.Errorf("add node %s: %w", h.Name, err)
	}
	if err := b.await(ctx, h.Name, h.Name+" to be a member", func(ctx context.Context) error {
		st, err := b.client(seed.Name).Status(ctx)
		if err != nil {
			return err
		}
		for _, m := range st.Members {
			if m.Name == h.Name {
				_, err := b.client(h.Name).Status(ctx)
				return err
			}
		}
		return fmt.Errorf("%s does not see it", seed.Name)
	}); err != nil {
		return fmt.Errorf("add node %s: %w; it said last: %s", h.Name, err, b.last(h.Name))
	}
	return nil
}

// addHost makes one more host; what a run left of it that was killed here before is deleted.
func (b *Bed) addHost(ctx context.Context, h wan.Host) error {
	if err := b.deleteHost(ctx, h); err != nil {
		return err
	}
	if err := b.makeHost(h); err != nil {
		return errors.Join(err, b.deleteHost(context.WithoutCancel(ctx), h))
	}
	return nil
}
