package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/perigee-net/perigee/node/api"
	"github.com/spf13/cobra"
)

// question makes a command that asks a node one thing and prints the answer, for people by show.
func question[T any](c *cobra.Command, f func(ctx context.Context, n *api.Client, args []string) (T, error), show func(w io.Writer, res T) error) *cobra.Command {
	var a addressed
	var asJSON bool
	c.RunE = func(c *cobra.Command, args []string) error {
		res, err := ask(c, a, func(ctx context.Context, n *api.Client) (T, error) { return f(ctx, n, args) })
		if err != nil || asJSON {
			return orPrint(c.OutOrStdout(), res, err)
		}
		return show(c.OutOrStdout(), res)
	}
	a.flags(c)
	outputFlag(c, &asJSON)
	return c
}

func newPurge() *cobra.Command {
	var tags []string
	var wait bool
	var timeout time.Duration
	req := api.PurgeRequest{}
	c := &cobra.Command{
		Use:   "purge DISTRIBUTION [PATH…]",
		Short: "Have all caches forget objects, at once",
		Long: "Have all caches forget objects, at once. A path begins with / and may end with *, which stands for any text. All variants of an object go\n" +
			"with it; its query string is part of the path where the cache keys it. A tag is what the origin gave an object in the field that the\n" +
			"distribution's cacheTagConfig names. What it did is printed: who has done it, after how long.",
		Example: "  perigee purge shop /index.html '/img/*'\n  perigee purge shop '/*' --host fr.shop.example --soft\n  perigee purge shop --tag product-7 --wait",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 || len(args) < 2 && len(tags) == 0 {
				return usagef("usage: %s", c.UseLine())
			}
			return nil
		},
	}
	var a addressed
	var asJSON bool
	c.RunE = func(c *cobra.Command, args []string) error {
		req.ID, req.Distribution, req.Paths = rand.Text(), args[0], args[1:]
		for _, tag := range tags {
			req.Paths = append(req.Paths, "#"+tag)
		}
		res, err := ask(c, a, func(ctx context.Context, n *api.Client) (api.OrderResponse, error) { return n.Purge(ctx, req) })
		if err != nil || asJSON {
			err = orPrint(c.OutOrStdout(), res, err)
		} else {
			err = receipt("purged")(c.OutOrStdout(), res)
		}
		if err != nil || !wait {
			return err
		}
		client, err := a.client()
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(c.Context(), timeout)
		defer cancel()
		return doneByAll(ctx, c.OutOrStdout(), client, res.Epoch, asJSON)
	}
	a.flags(c)
	outputFlag(c, &asJSON)
	c.Flags().StringSliceVar(&tags, "tag", nil, "objects with this cache tag; may be given again")
	c.Flags().StringVar(&req.Host, "host", "", "only what is kept for this host")
	c.Flags().BoolVar(&req.Soft, "soft", false, "what is kept is stale from now on: it may be validated, or stand in where the origin allows that")
	c.Flags().BoolVar(&wait, "wait", false, "return when every live node has done it, and say who has not")
	c.Flags().DurationVar(&timeout, "timeout", time.Minute, "how long --wait waits")
	return c
}

// doneByAll waits until all live nodes have an order. That not all have is an error.
func doneByAll(ctx context.Context, w io.Writer, n *api.Client, epoch uint64, quiet bool) error {
	start := time.Now()
	behind, err := n.WaitOrder(ctx, epoch)
	if err != nil {
		var names []string
		for _, b := range behind {
			names = append(names, b.Node)
		}
		if len(names) == 0 {
			return fmt.Errorf("epoch %d is agreed, but who has it is not known: %w", epoch, err)
		}
		return fmt.Errorf("epoch %d is agreed, but not done by all: %s: %w", epoch, strings.Join(names, ", "), err)
	}
	if !quiet {
		fmt.Fprintf(w, "done by all live nodes, %s later\n", rounded(time.Since(start)))
	}
	return nil
}

func newBlock() *cobra.Command {
	var lasts time.Duration
	req := api.BlockRequest{}
	c := &cobra.Command{
		Use:     "block CIDR…",
		Short:   "Refuse clients at every door, at once; without CIDR, who is refused now",
		Example: "  perigee block 198.51.100.0/24 2001:db8::/48 --for 1h --reason flood\n  perigee block",
	}
	question(c, func(ctx context.Context, n *api.Client, args []string) (res any, err error) {
		if len(args) == 0 {
			return n.Orders(ctx)
		}
		if req.CIDRs, err = prefixes(args); err != nil {
			return nil, err
		}
		req.ID, req.For = rand.Text(), api.Duration(lasts)
		return n.Block(ctx, req)
	}, receiptOr("blocked", printBlocks))
	c.Flags().DurationVar(&lasts, "for", 0, "how long; default until perigee unblock")
	c.Flags().StringVar(&req.Reason, "reason", "", "why, for people")
	c.Flags().BoolVar(&req.Force, "force", false, "also everybody: 0.0.0.0/0 or ::/0")
	return c
}

// receiptOr prints what an order did or, where none was given, what is ordered.
func receiptOr(done string, list func(io.Writer, api.OrderList) error) func(io.Writer, any) error {
	return func(w io.Writer, res any) error {
		if orders, asked := res.(api.OrderList); asked {
			return list(w, orders)
		}
		return receipt(done)(w, res.(api.OrderResponse))
	}
}

func newUnblock() *cobra.Command {
	return question(&cobra.Command{
		Use: "unblock CIDR…", Short: "Take clients again that were refused", Example: "  perigee unblock 198.51.100.0/24", Args: cobra.MinimumNArgs(1),
	}, func(ctx context.Context, n *api.Client, args []string) (api.OrderResponse, error) {
		cidrs, err := prefixes(args)
		if err != nil {
			return api.OrderResponse{}, err
		}
		return n.Unblock(ctx, api.BlockRequest{ID: rand.Text(), CIDRs: cidrs})
	}, receipt("unblocked"))
}

// prefixes reads ranges, or single addresses.
func prefixes(args []string) ([]netip.Prefix, error) {
	var all []netip.Prefix
	for _, arg := range args {
		p, err := netip.ParsePrefix(arg)
		if a, single := netip.ParseAddr(arg); single == nil {
			p, err = a.Prefix(a.BitLen())
		}
		if err != nil {
			return nil, usagef("%q is neither an address nor a range such as 198.51.100.0/24", arg)
		}
		all = append(all, p.Masked())
	}
	return all, nil
}

func newDrain() *cobra.Command {
	var lasts time.Duration
	req := api.DrainRequest{}
	c := &cobra.Command{
		Use:   "drain [NODE|POP|REGION]",
		Short: "Send nothing new to a node, a POP or a region, at once; without a name, what is drained now",
		Long: "Send nothing new to a node, a POP or a region, at once: DNS, accelerators and the CDN choose others, and what is in flight finishes.\n" +
			"A name that is both a node's and a POP's needs its scope before it: node/icn1, pop/icn1, region/ap-northeast-2.",
		Example: "  perigee drain icn1-a --for 10m --reason 'new kernel'\n  perigee drain region/ap-northeast-2\n  perigee drain",
		Args:    maxArgs(1),
	}
	question(c, func(ctx context.Context, n *api.Client, args []string) (res any, err error) {
		if len(args) == 0 {
			return n.Orders(ctx)
		}
		if req.Scope, req.Name, err = drained(ctx, n, args[0]); err != nil {
			return nil, err
		}
		req.ID, req.For = rand.Text(), api.Duration(lasts)
		return n.Drain(ctx, req)
	}, receiptOr("drained", printDrains))
	c.Flags().DurationVar(&lasts, "for", 0, "how long; default until perigee undrain")
	c.Flags().StringVar(&req.Reason, "reason", "", "why, for people")
	return c
}

func newUndrain() *cobra.Command {
	return question(&cobra.Command{
		Use: "undrain NODE|POP|REGION", Short: "Take a drain back", Example: "  perigee undrain icn1-a", Args: exactArgs(1),
	}, func(ctx context.Context, n *api.Client, args []string) (res api.OrderResponse, err error) {
		req := api.DrainRequest{ID: rand.Text()}
		orders, err := n.Orders(ctx)
		if err != nil {
			return res, err
		}
		var found []api.DrainInfo
		for _, d := range orders.Drains {
			if d.Name == args[0] || d.Scope+"/"+d.Name == args[0] {
				found = append(found, d)
			}
		}
		switch len(found) {
		case 0:
			return res, usagef("%s is not drained: perigee drain shows what is", args[0])
		case 1:
			req.Scope, req.Name = found[0].Scope, found[0].Name
		default:
			return res, usagef("%s is drained as %s and as %s: say which, as SCOPE/NAME", args[0], found[0].Scope, found[1].Scope)
		}
		return n.Undrain(ctx, req)
	}, receipt("undrained"))
}

// drained says what a name stands for: the scope that it names, or else the only one in which there is such a thing.
func drained(ctx context.Context, n *api.Client, given string) (scope, name string, err error) {
	scopes := []string{api.ScopeNode, api.ScopePOP, api.ScopeRegion}
	if scope, name, said := strings.Cut(given, "/"); said {
		if !slices.Contains(scopes, scope) {
			return "", "", usagef("%q: the scope is node, pop or region", given)
		}
		return scope, name, nil
	}
	list, err := n.Nodes(ctx)
	if err != nil {
		return "", "", err
	}
	known := map[string]bool{}
	for _, node := range list.Nodes {
		known[api.ScopeNode] = known[api.ScopeNode] || node.Name == given
		known[api.ScopePOP] = known[api.ScopePOP] || node.POP == given
		known[api.ScopeRegion] = known[api.ScopeRegion] || node.Region == given
	}
	var found []string
	for _, scope := range scopes {
		if known[scope] {
			found = append(found, scope)
		}
	}
	switch len(found) {
	case 0:
		return "", "", usagef("no node, POP or region is called %s: perigee node list shows all", given)
	case 1:
		return found[0], given, nil
	}
	return "", "", usagef("%s is a %s and a %s: say which, as %s/%s", given, found[0], found[1], found[0], given)
}

// receipt prints what an order did, and who has done it.
func receipt(done string) func(io.Writer, api.OrderResponse) error {
	return func(w io.Writer, res api.OrderResponse) error {
		var late []string
		var took []time.Duration
		for _, a := range res.Acks {
			if a.Error != "" {
				late = append(late, a.Node+": "+a.Error)
			} else {
				took = append(took, a.After)
			}
		}
		slices.Sort(took)
		if len(took) > 0 {
			fmt.Fprintf(w, "%s at %d of %d nodes: half of them within %s, the last after %s; agreed after %s (epoch %d)\n", done, len(took), len(res.Acks),
				rounded(took[len(took)/2]), rounded(took[len(took)-1]), rounded(res.Agreed), res.Epoch)
		}
		for _, l := range late {
			fmt.Fprintf(w, "not yet %s\n", l)
		}
		if res.Warning != "" {
			fmt.Fprintln(w, res.Warning)
		}
		return nil
	}
}

func rounded(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }

func printDrains(w io.Writer, list api.OrderList) error {
	if len(list.Drains) == 0 {
		fmt.Fprintln(w, "nothing is drained")
		return nil
	}
	t := newTable("SCOPE", "NAME", "SINCE", "UNTIL", "BY", "REASON")
	for _, d := range list.Drains {
		t.row(d.Scope, d.Name, d.Since.Local().Format(time.DateTime), untilText(d.Until), d.Author, d.Reason)
	}
	return t.print(w)
}

func printBlocks(w io.Writer, list api.OrderList) error {
	if len(list.Blocks) == 0 {
		fmt.Fprintln(w, "nobody is blocked")
		return nil
	}
	t := newTable("CIDR", "SINCE", "UNTIL", "BY", "REASON")
	for _, b := range list.Blocks {
		t.row(b.CIDR.String(), b.Since.Local().Format(time.DateTime), untilText(b.Until), b.Author, b.Reason)
	}
	return t.print(w)
}

func untilText(t time.Time) string {
	if t.IsZero() {
		return "undone"
	}
	return t.Local().Format(time.DateTime)
}

// followTime is how long one question of perigee events -f waits for an event.
const followTime = 20 * time.Second

func newEvents() *cobra.Command {
	var a addressed
	var asJSON, follow bool
	q := api.EventQuery{}
	c := &cobra.Command{
		Use:     "events [SUBJECT]",
		Short:   "What turned, as one node sees it, and by what; of one thing alone, with all that is below it",
		Example: "  perigee events --limit 50\n  perigee events -f\n  perigee events accelerator/echo",
		Args:    maxArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				q.Subject = args[0]
			}
			if q.Limit < 1 || q.Limit > api.MaxEvents {
				return usagef("--limit %d: want 1 to %d", q.Limit, api.MaxEvents)
			}
			w := c.OutOrStdout()
			for first := true; first || follow; first = false {
				list, err := ask(c, a, func(ctx context.Context, n *api.Client) (api.EventList, error) { return n.Events(ctx, q) })
				if c.Context().Err() != nil && !first {
					return nil
				}
				if err != nil {
					return err
				}
				if list.Lost > 0 && q.After > 0 {
					fmt.Fprintf(w, "%d events before these are kept no more\n", list.Lost)
				}
				for _, e := range list.Events {
					if asJSON {
						if err := json.NewEncoder(w).Encode(e); err != nil {
							return err
						}
					} else {
						fmt.Fprintln(w, eventText(e))
					}
					q.After = e.ID
				}
				q.Wait = followTime
			}
			return nil
		},
	}
	a.flags(c)
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what comes")
	c.Flags().IntVar(&q.Limit, "limit", 200, "how many at most: the newest, or with --after the next")
	c.Flags().Uint64Var(&q.After, "after", 0, "only those after the one with this number")
	outputFlag(c, &asJSON)
	return c
}

// eventText is an event on one line, with the numbers of its causes.
func eventText(e api.Event) string {
	text := fmt.Sprintf("%s  #%d  %-7s %s", e.Time.Local().Format("2006-01-02 15:04:05.000"), e.ID, e.Kind, e.Text)
	for i, cause := range e.Causes {
		if i == 0 {
			text += "  ← "
		} else {
			text += ", "
		}
		text += fmt.Sprint("#", cause)
	}
	return text
}
