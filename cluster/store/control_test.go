package store_test

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/control"
	"github.com/perigee-net/perigee/cluster/identity"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/store"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// TestThreeNodesAgreeOverTheControlPort is the store as a node runs it: over mutual TLS, each peer asked for by its name.
func TestThreeNodesAgreeOverTheControlPort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		authority, err := identity.NewAuthority(identity.NewClusterID(), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		in := memnet.New(1)
		defer in.Close()
		var log strings.Builder
		logger := slog.New(slog.NewTextHandler(&log, nil)) // one for all: it lets one write at a time
		type node struct {
			*store.Store
			port    *control.Port
			address string
		}
		open := func(i int, name, certified string) node {
			host := in.Host(name, spec.Location{}, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
			id, err := authority.Node(identity.Claim{Name: certified, Region: "r", POP: "p", Roles: []string{identity.Voter}}, 1, identity.Keys{}, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			l, err := host.Listen("tcp", ":7947")
			if err != nil {
				t.Fatal(err)
			}
			n := node{address: netip.AddrPortFrom(host.Addr(), 7947).String()}
			n.port = control.Open(control.Config{Listener: l, Guard: identity.NewGuard(id, identity.Trust{}, nil), Dial: host.Dial})
			n.Store, err = store.Open(store.Config{
				Name: name, Dir: filepath.Join(t.TempDir(), name), Advertise: n.address, Bootstrap: i == 1, NoSync: true,
				Listener: n.port.Service(control.Raft),
				Dial: func(ctx context.Context, name, address string) (net.Conn, error) {
					return n.port.Dial(ctx, address, name, control.Raft)
				},
				Log: logger,
			})
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		var nodes []node
		closeAll := func() {
			for _, n := range nodes {
				n.Close()
				n.port.Close()
			}
		}
		defer closeAll()
		for i, name := range []string{"icn1", "nrt1", "fra1"} {
			nodes = append(nodes, open(i+1, name, name))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		until := func(done func() bool) {
			t.Helper()
			for !done() {
				if ctx.Err() != nil {
					t.Fatal("it does not come to it")
				}
				time.Sleep(10 * time.Millisecond)
			}
		}
		leader := nodes[0]
		until(func() bool { return leader.Verify(ctx) == nil })
		for i, n := range nodes[1:] {
			if err := leader.AddVoter(ctx, []string{"nrt1", "fra1"}[i], n.address); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := leader.Apply(ctx, store.Change{Put: []store.Object{{Kind: "k", Name: "a", Bytes: []byte("1")}}}); err != nil {
			t.Fatal(err)
		}
		for _, n := range nodes {
			until(func() bool { return n.State().Get().Revision == 1 })
		}

		// A node of the cluster that answers for another is not taken for that one.
		mimic := open(4, "gru1", "other")
		nodes = append(nodes, mimic)
		if err := leader.AddVoter(ctx, "gru1", mimic.address); err == nil {
			t.Error("a node with another's certificate is made a voter")
		}

		// The leader dies, and another takes its place.
		leader.Close()
		leader.port.Close()
		until(func() bool { return nodes[1].Verify(ctx) == nil || nodes[2].Verify(ctx) == nil })
		closeAll()
		if !strings.Contains(log.String(), "raft: entering leader state") || strings.Contains(log.String(), "%+v") {
			t.Errorf("the log says:\n%s", log.String())
		}
	})
}
