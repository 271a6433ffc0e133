package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/perigee-net/perigee/cluster/identity"
	"github.com/perigee-net/perigee/cluster/store"
	"github.com/perigee-net/perigee/node/api"
	"github.com/spf13/cobra"
)

// orPrint is the error, or else prints what was asked for as JSON.
func orPrint(w io.Writer, v any, err error) error {
	if err != nil {
		return err
	}
	return printJSON(w, v)
}

// group is a command that only holds others.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	var names []string
	for _, c := range commands {
		names = append(names, c.Name())
	}
	g := &cobra.Command{Use: use, Short: short, RunE: func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usagef("%s %s: want %s", c.CommandPath(), args[0], strings.Join(names, ", "))
		}
		return usagef("%s what? %s", c.CommandPath(), strings.Join(names, ", "))
	}}
	g.AddCommand(commands...)
	return g
}

// recordedBy is a command that changes the cluster's own records by one name.
func recordedBy(use, short, example string, f func(ctx context.Context, n *api.Client, name string) (api.Recorded, error)) *cobra.Command {
	var a addressed
	var asJSON bool
	c := &cobra.Command{
		Use: use, Short: short, Example: "  " + example, Args: exactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			res, err := ask(c, a, func(ctx context.Context, n *api.Client) (api.Recorded, error) { return f(ctx, n, args[0]) })
			if err != nil || asJSON {
				return orPrint(c.OutOrStdout(), res, err)
			}
			fmt.Fprintln(c.OutOrStdout(), res.Message)
			return nil
		},
	}
	a.flags(c)
	outputFlag(c, &asJSON)
	return c
}

// nodeCommands are what can be done about nodes from outside.
func nodeCommands() []*cobra.Command {
	return []*cobra.Command{
		newNodeList(),
		recordedBy("revoke NAME", "Shut a node out: its certificate is refused everywhere from now on",
			"perigee node revoke iad1 --api /var/lib/perigee",
			func(ctx context.Context, n *api.Client, name string) (api.Recorded, error) {
				return n.Revoke(ctx, name)
			}),
		recordedBy("forget NAME", "Free the name of a node that is gone for good",
			"perigee node forget iad1 --api /var/lib/perigee",
			func(ctx context.Context, n *api.Client, name string) (api.Recorded, error) {
				return n.Forget(ctx, name)
			}),
	}
}

// newNodes is the list by the name that one tries first.
func newNodes() *cobra.Command {
	c := newNodeList()
	c.Use, c.Short = "nodes", "The same as perigee node list"
	return c
}

func newNodeList() *cobra.Command {
	var a addressed
	var asJSON bool
	c := &cobra.Command{
		Use:     "list",
		Short:   "All nodes that were admitted, live or not",
		Example: "  perigee node list --api /var/lib/perigee",
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			list, err := ask(c, a, func(ctx context.Context, n *api.Client) (api.NodeList, error) { return n.Nodes(ctx) })
			if err != nil || asJSON {
				return orPrint(c.OutOrStdout(), list, err)
			}
			t := newTable("NODE", "REGION", "POP", "ROLES", "LIVE", "VOTES", "ADMITTED")
			for _, n := range list.Nodes {
				t.row(n.Name, n.Region, n.POP, strings.Join(n.Roles, ","), yes(n.Live), yes(n.Vote), n.Admitted.Local().Format(time.DateTime))
			}
			if err := t.print(c.OutOrStdout()); err != nil {
				return err
			}
			for _, r := range list.Revoked {
				fmt.Fprintf(c.OutOrStdout(), "%s was revoked or forgotten: certificates up to record %d are refused\n", r.Name, r.Epoch)
			}
			return nil
		},
	}
	a.flags(c)
	outputFlag(c, &asJSON)
	return c
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func newToken() *cobra.Command {
	return group("token", "Tokens by which machines join the cluster", newTokenCreate(), newTokenList(),
		recordedBy("delete ID", "Make a join token worth nothing", "perigee token delete 68aa31bc546528f4",
			func(ctx context.Context, n *api.Client, id string) (api.Recorded, error) {
				return n.DeleteToken(ctx, id)
			}))
}

func newTokenCreate() *cobra.Command {
	var a addressed
	var req api.TokenRequest
	var ttl time.Duration
	var asJSON bool
	c := &cobra.Command{
		Use:     "create",
		Short:   "Print a new token by which machines join",
		Example: "  perigee token create --api /var/lib/perigee\n  perigee token create --roles edge,dns --ttl 24h --uses 20",
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			req.TTL = api.Duration(ttl)
			res, err := ask(c, a, func(ctx context.Context, n *api.Client) (api.TokenResponse, error) { return n.CreateToken(ctx, req) })
			if err != nil || asJSON {
				return orPrint(c.OutOrStdout(), res, err)
			}
			fmt.Fprintln(c.OutOrStdout(), res.Token)
			return nil
		},
	}
	a.flags(c)
	c.Flags().StringSliceVar(&req.Roles, "roles", nil, "what a node may be that joins by it (default: edge,dns,origin,voter)")
	c.Flags().DurationVar(&ttl, "ttl", time.Hour, "how long it is good for: 1m to 720h")
	c.Flags().IntVar(&req.Uses, "uses", 1, "how many nodes may join by it: 1 to 1000")
	outputFlag(c, &asJSON)
	return c
}

func newTokenList() *cobra.Command {
	var a addressed
	var asJSON bool
	c := &cobra.Command{
		Use:     "list",
		Short:   "The join tokens that are still good",
		Example: "  perigee token list --api /var/lib/perigee",
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			list, err := ask(c, a, func(ctx context.Context, n *api.Client) (api.TokenList, error) { return n.Tokens(ctx) })
			if err != nil || asJSON {
				return orPrint(c.OutOrStdout(), list, err)
			}
			t := newTable("ID", "ROLES", "USED", "EXPIRES", "BY")
			for _, one := range list.Tokens {
				roles := strings.Join(one.Roles, ",")
				if roles == "" {
					roles = "any"
				}
				t.row(one.ID, roles, fmt.Sprintf("%d of %d", one.Used, one.Uses), one.Expires.Local().Format(time.DateTime), one.Author)
			}
			return t.print(c.OutOrStdout())
		},
	}
	a.flags(c)
	outputFlag(c, &asJSON)
	return c
}

func newAccess() *cobra.Command {
	return group("access", "Tokens by which people and programs use the API", newAccessCreate(), newAccessList(),
		recordedBy("delete NAME", "Make an access token worth nothing", "perigee access delete ci",
			func(ctx context.Context, n *api.Client, name string) (api.Recorded, error) {
				return n.DeleteAccess(ctx, name)
			}))
}

func newAccessCreate() *cobra.Command {
	var a addressed
	var req api.AccessRequest
	var ttl time.Duration
	var asJSON bool
	c := &cobra.Command{
		Use:   "create NAME --role ROLE",
		Short: "Print a new token for the API",
		Long: "Print a new token for the API. Roles: read sees all but secrets; operate changes the spec; purge removes what is cached;\n" +
			"admin changes the cluster: nodes, tokens, keys, snapshots. The history calls its holder NAME.",
		Example: "  perigee access create ci --role operate --resource 'Distribution/shop-*' --resource HostedZone/shop.example\n" +
			"  perigee access create prometheus --role read",
		Args: exactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			req.Name, req.TTL = args[0], api.Duration(ttl)
			if len(req.Roles) == 0 {
				return usagef("--role is missing: read, operate, purge or admin")
			}
			res, err := ask(c, a, func(ctx context.Context, n *api.Client) (api.AccessResponse, error) { return n.CreateAccess(ctx, req) })
			if err != nil || asJSON {
				return orPrint(c.OutOrStdout(), res, err)
			}
			fmt.Fprintln(c.OutOrStdout(), res.Token)
			return nil
		},
	}
	a.flags(c)
	c.Flags().StringSliceVar(&req.Roles, "role", nil, "read, operate, purge or admin; may be given more than once")
	c.Flags().StringSliceVar(&req.Resources, "resource", nil, "KIND/NAME with * that it is limited to; may be given more than once (default: all)")
	c.Flags().DurationVar(&ttl, "ttl", 0, "how long it is good for: 1m to 8760h (default: until it is deleted)")
	outputFlag(c, &asJSON)
	return c
}

func newAccessList() *cobra.Command {
	var a addressed
	var asJSON bool
	c := &cobra.Command{
		Use:     "list",
		Short:   "The access tokens that are good",
		Example: "  perigee access list --api /var/lib/perigee",
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			list, err := ask(c, a, func(ctx context.Context, n *api.Client) (api.AccessList, error) { return n.Access(ctx) })
			if err != nil || asJSON {
				return orPrint(c.OutOrStdout(), list, err)
			}
			t := newTable("NAME", "ROLES", "RESOURCES", "EXPIRES", "BY")
			for _, one := range list.Access {
				ends, resources := "never", "all"
				if !one.Expires.IsZero() {
					ends = one.Expires.Local().Format(time.DateTime)
				}
				if len(one.Resources) > 0 {
					resources = strings.Join(one.Resources, " ")
				}
				t.row(one.Name, strings.Join(one.Roles, ","), resources, ends, one.Author)
			}
			return t.print(c.OutOrStdout())
		},
	}
	a.flags(c)
	outputFlag(c, &asJSON)
	return c
}

func newKeys() *cobra.Command {
	var a addressed
	var asJSON, pem bool
	c := &cobra.Command{
		Use:     "keys",
		Short:   "The cluster's authorities and gossip keys, and how far a rotation is",
		Example: "  perigee keys\n  perigee keys --pem > ca.pem; curl --cacert ca.pem -H \"Authorization: Bearer $TOKEN\" https://10.0.0.1:7948/v1/status",
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			keys, err := ask(c, a, func(ctx context.Context, n *api.Client) (api.Keys, error) { return n.Keys(ctx) })
			if err != nil || asJSON {
				return orPrint(c.OutOrStdout(), keys, err)
			}
			if pem {
				for _, k := range keys.Authorities {
					fmt.Fprint(c.OutOrStdout(), k.PEM)
				}
				return nil
			}
			t := newTable("KEY", "ID", "STAGE", "SINCE", "EXPIRES")
			row := func(what string, k api.KeyInfo) {
				ends := ""
				if !k.Expires.IsZero() {
					ends = k.Expires.Local().Format(time.DateOnly)
				}
				t.row(what, k.ID[:min(len(k.ID), 16)], k.Stage, k.Created.Local().Format(time.DateTime), ends)
			}
			for _, k := range keys.Authorities {
				row("authority", k)
			}
			for _, k := range keys.Gossip {
				row("gossip", k)
			}
			for _, k := range keys.Tickets {
				row("tickets", k)
			}
			if err := t.print(c.OutOrStdout()); err != nil {
				return err
			}
			if keys.Waiting != "" {
				fmt.Fprintln(c.OutOrStdout(), keys.Waiting)
			}
			return nil
		},
	}
	a.flags(c)
	c.Flags().BoolVar(&pem, "pem", false, "print the authorities' certificates, by which curl and browsers know the nodes")
	outputFlag(c, &asJSON)
	return c
}

func newRotate() *cobra.Command {
	c := recordedBy("rotate authority|gossip", "Change the cluster's authority or its gossip key, with both good meanwhile", "perigee rotate gossip",
		func(ctx context.Context, n *api.Client, what string) (api.Recorded, error) {
			return n.Rotate(ctx, what)
		})
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) != 1 || args[0] != "authority" && args[0] != "gossip" {
			return usagef("rotate what? authority or gossip")
		}
		return nil
	}
	return c
}

func newSnapshot() *cobra.Command {
	return group("snapshot", "All that is agreed, in one file", newSnapshotSave(), newSnapshotRestore())
}

// snapshotTime bounds how long a snapshot travels.
const snapshotTime = 10 * time.Minute

func newSnapshotSave() *cobra.Command {
	var a addressed
	var asJSON bool
	c := &cobra.Command{
		Use:     "save FILE",
		Short:   "Write all that is agreed to a file; secrets in it stay sealed",
		Example: "  perigee snapshot save perigee-$(date +%F).snapshot",
		Args:    exactArgs(1),
		RunE: func(c *cobra.Command, args []string) (err error) {
			client, err := a.client()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(c.Context(), snapshotTime)
			defer cancel()
			aside, err := os.CreateTemp(filepath.Dir(args[0]), ".snapshot-")
			if err != nil {
				return err
			}
			defer os.Remove(aside.Name())
			defer aside.Close()
			if err := a.hint(client.Snapshot(ctx, aside)); err != nil {
				return err
			}
			size, err := aside.Seek(0, io.SeekEnd)
			if err != nil {
				return err
			}
			if err := aside.Sync(); err != nil {
				return err
			}
			if err := os.Rename(aside.Name(), args[0]); err != nil {
				return err
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), map[string]any{"file": args[0], "bytes": size})
			}
			fmt.Fprintf(c.OutOrStdout(), "%s: %d bytes\n", args[0], size)
			return nil
		},
	}
	a.flags(c)
	outputFlag(c, &asJSON)
	return c
}

func newSnapshotRestore() *cobra.Command {
	var a addressed
	var asJSON bool
	c := &cobra.Command{
		Use:     "restore FILE",
		Short:   "Make the spec what a snapshot holds, by a new revision; nodes, tokens and keys stay this cluster's",
		Example: "  perigee snapshot restore perigee-2026-03-01.snapshot",
		Args:    exactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			info, err := f.Stat()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(c.Context(), snapshotTime)
			defer cancel()
			res, err := client.Restore(ctx, f, info.Size())
			if err != nil || asJSON {
				return orPrint(c.OutOrStdout(), res, a.hint(err))
			}
			fmt.Fprintf(c.OutOrStdout(), "the spec is as it was saved, at revision %d\n", res.Revision)
			return nil
		},
	}
	a.flags(c)
	outputFlag(c, &asJSON)
	return c
}

func newRecover() *cobra.Command {
	var data, advertise string
	c := &cobra.Command{
		Use:   "recover --data DIR --advertise HOST:PORT",
		Short: "Make a cluster that lost its majority go on from one node, which must be stopped",
		Long: "Make a cluster that lost its majority for good go on from one node, which must be stopped: it becomes the only voter,\n" +
			"with all that it knows. What was agreed in its last moments by others alone is lost. Start it afterwards; it makes\n" +
			"voters of the other live nodes by itself. Nodes that are lost must not come back with their old data folders.",
		Example: "  systemctl stop perigee\n  perigee recover --data /var/lib/perigee --advertise 10.0.0.1:7947\n  systemctl start perigee",
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if data == "" {
				return usagef("--data is missing")
			}
			at, err := netip.ParseAddrPort(advertise)
			if err != nil {
				return usagef("--advertise %q: want the node's control address, HOST:PORT, as perigee members showed it", advertise)
			}
			me, err := identity.LoadNode(data)
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("%s is no node's data folder: %w", data, err)
			}
			if err != nil {
				return err
			}
			if me.Keys().Authority == nil {
				return fmt.Errorf("%s does not have the role voter: it cannot admit other nodes; recover one that has", me.Name())
			}
			log := slog.New(slog.NewTextHandler(c.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
			if err := store.Recover(data, me.Name(), net.JoinHostPort(at.Addr().String(), fmt.Sprint(at.Port())), log); err != nil {
				return err
			}
			if err := keepOwner(data); err != nil {
				return fmt.Errorf("give the files to the folder's owner: %w", err)
			}
			fmt.Fprintf(c.OutOrStdout(), "%s is the only voter now: start it\n", me.Name())
			return nil
		},
	}
	c.Flags().StringVar(&data, "data", "", "the data folder of the node")
	c.Flags().StringVar(&advertise, "advertise", "", "the node's control address, HOST:PORT")
	return c
}

// keepOwner gives what root has written in a data folder to the folder's owner, who is the node's user.
func keepOwner(dir string) error {
	info, err := os.Stat(dir)
	if err != nil || os.Geteuid() != 0 {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(owner.Uid), int(owner.Gid))
	})
}
