package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/perigee-net/perigee/node/api"
	"github.com/spf13/cobra"
)

func newStatus() *cobra.Command {
	var a addressed
	var asJSON bool
	c := &cobra.Command{
		Use:     "status",
		Short:   "The network as one node sees it: leader, voters, revision, who runs and follows what",
		Example: "  perigee status --api /var/lib/perigee\n  perigee status --api 10.0.0.1:7948 --token @me.token -o json",
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			st, err := ask(c, a, func(ctx context.Context, n *api.Client) (api.Status, error) { return n.Status(ctx) })
			if err != nil {
				return err
			}
			w := c.OutOrStdout()
			if asJSON {
				return printJSON(w, st)
			}
			leader := st.Leader
			if leader == "" {
				leader = "none: changes are refused, the data plane goes on"
			}
			fmt.Fprintf(w, "cluster   %s\nleader    %s\nrevision  %d (of the cluster's own records: %d)\nvoters    %s\n",
				st.Cluster, leader, st.Revision, st.Own, voting(st))
			if st.Refused != "" {
				fmt.Fprintf(w, "refused   %s\n", st.Refused)
			}
			fmt.Fprintln(w)
			t := newTable("NODE", "REGION", "POP", "ROLES", "AGREES BY", "REVISION")
			for _, m := range st.Members {
				t.row(m.Name, m.Region, m.POP, roles(m), agreesBy(m), running(m))
			}
			if err := t.print(w); err != nil {
				return err
			}
			for _, m := range st.Members {
				if m.Refused != "" {
					fmt.Fprintf(w, "\n%s refuses newer revisions: %s\n", m.Name, m.Refused)
				}
				if m.Doors != "" {
					fmt.Fprintf(w, "\n%s keeps doors closed: %s\n", m.Name, m.Doors)
				}
			}
			for _, d := range st.AnswersDiffer {
				fmt.Fprintf(w, "\nnames are answered in %d ways at revision %d, by nodes that see the same:", len(d.Nodes), d.Revision)
				for i, nodes := range d.Nodes {
					if i > 0 {
						fmt.Fprint(w, " |")
					}
					fmt.Fprintf(w, " %s", strings.Join(nodes, ", "))
				}
				fmt.Fprintln(w)
			}
			return nil
		},
	}
	a.flags(c)
	outputFlag(c, &asJSON)
	c.AddCommand(newStatusAccelerator())
	return c
}

func newMembers() *cobra.Command {
	var from string
	c := &cobra.Command{
		Use:     "members",
		Short:   "The live nodes, their addresses, and how far they are from the node that is asked, or from another",
		Example: "  perigee members --api /var/lib/perigee\n  perigee members --from gru1-a",
		Args:    noArgs,
	}
	var asked, origin string
	question(c, func(ctx context.Context, n *api.Client, _ []string) ([]api.MemberStatus, error) {
		st, err := n.Status(ctx)
		if err != nil {
			return nil, err
		}
		asked, origin = st.Node, cmp.Or(from, st.Node)
		if origin == asked {
			return st.Members, nil
		}
		list, err := n.Distances(ctx, from)
		if err != nil {
			return nil, err
		}
		for i := range st.Members {
			at := slices.IndexFunc(list.Distances, func(d api.Distance) bool { return d.To == st.Members[i].Name })
			if st.Members[i].Distance, st.Members[i].By = 0, ""; at >= 0 {
				st.Members[i].Distance, st.Members[i].By = list.Distances[at].RTT, list.Distances[at].By
			}
		}
		return st.Members, nil
	}, func(w io.Writer, members []api.MemberStatus) error {
		t := newTable("NODE", "REGION", "POP", "STATE", "PUBLIC", "CONTROL", "API", "LINK FROM "+asked, "DISTANCE FROM "+origin, "BY")
		for _, m := range members {
			link, far := "down", ""
			switch {
			case m.Name == asked:
				link = "itself"
			case m.Up:
				link = rounded(m.RTT).String()
			}
			if m.By != "" {
				far = rounded(m.Distance).String()
			}
			t.row(m.Name, m.Region, m.POP, memberState(m), addresses(m.Public), m.Control.String(), validAddr(m.API), link, far, m.By)
		}
		return t.print(w)
	})
	c.Flags().StringVar(&from, "from", "", "estimate the distances from this node")
	return c
}

func newAnycast() *cobra.Command {
	c := &cobra.Command{
		Use:     "anycast",
		Short:   "Which addresses the node that is asked announces by BGP, why, and to which routers",
		Example: "  perigee anycast --api /var/lib/perigee",
		Args:    noArgs,
	}
	question(c, func(ctx context.Context, n *api.Client, _ []string) (api.AnycastList, error) {
		return n.Anycast(ctx)
	}, func(w io.Writer, list api.AnycastList) error {
		for _, line := range list.Lines {
			fmt.Fprintln(w, line)
		}
		if len(list.Sessions) == 0 {
			return nil
		}
		t := newTable("ROUTER", "AS", "STATE", "SINCE", "TOLD", "LAST ERROR")
		for _, s := range list.Sessions {
			t.row(s.Neighbor.String(), strconv.FormatUint(uint64(s.AS), 10), s.State, since(s.Since), strconv.Itoa(s.Sent), s.LastError)
		}
		return t.print(w)
	})
	return c
}

func newZones() *cobra.Command {
	c := &cobra.Command{
		Use:     "zones",
		Short:   "The secondary zones, which serial each node has of them, and what is wrong",
		Example: "  perigee zones --api /var/lib/perigee",
		Args:    noArgs,
	}
	return question(c, func(ctx context.Context, n *api.Client, _ []string) (api.ZoneList, error) {
		return n.Zones(ctx)
	}, func(w io.Writer, list api.ZoneList) error {
		t := newTable("ZONE", "NODE", "SERIAL", "CONFIRMED", "PROBLEM")
		for _, z := range list.Zones {
			for _, c := range z.Copies {
				serial, confirmed := "none", ""
				if c.Serial != nil {
					serial, confirmed = strconv.FormatUint(uint64(*c.Serial), 10), c.Confirmed.Local().Format(time.DateTime)
				}
				t.row(z.Name, c.Node, serial, confirmed, c.Problem)
			}
		}
		return t.print(w)
	})
}

// memberState is what there is to know of a live node before it is chosen for anything.
func memberState(m api.MemberStatus) string {
	switch {
	case m.Leaving:
		return "leaving"
	case m.Drained != "":
		return "drained: " + m.Drained
	case m.Fenced:
		return "behind"
	}
	return "live"
}

func newHealth() *cobra.Command {
	c := &cobra.Command{
		Use:     "health [NAME]",
		Short:   "The verdicts on targets, endpoints and health checks, and who says what; of one alone, all that is known",
		Example: "  perigee health\n  perigee health web-icn",
		Args:    maxArgs(1),
	}
	return question(c, func(ctx context.Context, n *api.Client, args []string) ([]api.HealthEntry, error) {
		q := api.HealthQuery{}
		if len(args) > 0 {
			q.Name = args[0]
		}
		all, err := n.Health(ctx, q)
		if err == nil && len(all) == 0 && q.Name != "" {
			err = fmt.Errorf("nothing is checked whose key begins with %q, or its name: perigee health lists all", q.Name)
		}
		return all, err
	}, func(w io.Writer, all []api.HealthEntry) error {
		if len(all) == 1 && len(all[0].Turns) > 0 {
			return printHealth(w, all[0])
		}
		t := newTable("KEY", "STATE", "SINCE", "SEEN BY", "REASON")
		for _, e := range all {
			t.row(e.Key, healthState(e.Healthy), clock(e.Since), seenBy(e), cmp.Or(e.Reason, e.Override))
		}
		return t.print(w)
	})
}

// printHealth is all that is known of one key.
func printHealth(w io.Writer, e api.HealthEntry) error {
	quorum := fmt.Sprintf("%s by %d of %d observers (%d must say healthy)", healthState(e.Quorum), saying(e.Views, e.Quorum), e.Observers, e.Needed)
	if e.Observers == 0 {
		quorum = "nobody has looked yet"
	}
	rows := [][2]string{
		{"key", e.Key}, {"state", healthState(e.Healthy) + since(e.Since)}, {"reason", e.Reason}, {"override", e.Override}, {"quorum", quorum},
		{"stands", ""}, {"local", ""}, {"last failure", ""},
	}
	if e.Stands > 0 {
		rows[5][1] = "at least " + e.Stands.String() + ": no DNS answer that rests on it lives longer"
	}
	if e.Local != nil {
		rows[6][1] = healthState(e.Local.Healthy) + since(e.Local.Since)
	}
	if e.LastFailure != "" {
		rows[7][1] = e.LastFailure + " at " + e.LastFailureAt.Local().Format(time.DateTime)
	}
	for _, r := range rows {
		if r[1] != "" {
			fmt.Fprintf(w, "%-13s %s\n", r[0], r[1])
		}
	}
	fmt.Fprintln(w)
	t := newTable("OBSERVER", "SAYS", "SINCE", "REASON")
	for _, v := range e.Views {
		t.row(v.Node, healthState(v.Healthy), clock(v.Since), v.Reason)
	}
	if err := t.print(w); err != nil || len(e.Turns) == 0 {
		return err
	}
	fmt.Fprintln(w)
	for _, turn := range e.Turns {
		fmt.Fprintln(w, eventText(turn))
	}
	return nil
}

func healthState(healthy bool) string {
	if healthy {
		return "healthy"
	}
	return "unhealthy"
}

func saying(views []api.HealthView, healthy bool) (n int) {
	for _, v := range views {
		if v.Healthy == healthy {
			n++
		}
	}
	return n
}

func since(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return " since " + t.Local().Format(time.DateTime)
}

func clock(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format(time.TimeOnly)
}

func seenBy(e api.HealthEntry) string {
	var by []string
	for _, v := range e.Views {
		mark := "+"
		if !v.Healthy {
			mark = "−"
		}
		by = append(by, mark+v.Node)
	}
	return strings.Join(by, " ")
}

func newExplain() *cobra.Command {
	explain := &cobra.Command{
		Use:   "explain",
		Short: "Say why a client is served as it is, by the same functions that serve it",
		RunE:  func(*cobra.Command, []string) error { return usagef("explain what? dns, http, tcp or udp") },
	}
	for _, e := range []struct{ what, use, short, example string }{
		{"dns", "dns NAME [TYPE]", "Why a name has the answer it has", "perigee explain dns www.demo.perigee.test --from 1.208.0.1"},
		{"http", "http URL", "Where a request goes and whether it is in the cache", "perigee explain http http://www.demo.perigee.test/"},
		{"tcp", "tcp ADDRESS:PORT", "Where a flow to an accelerator ends", "perigee explain tcp 127.77.0.1:7777"},
		{"udp", "udp ADDRESS:PORT", "Where datagrams to an accelerator end", "perigee explain udp 127.77.0.1:7777"},
	} {
		var a addressed
		var from, subnet string
		var asJSON bool
		c := &cobra.Command{
			Use: e.use, Short: e.short, Example: "  " + e.example,
			Args: func(c *cobra.Command, args []string) error {
				if len(args) < 1 || len(args) > 2 || len(args) == 2 && e.what != "dns" {
					return usagef("usage: %s", c.UseLine())
				}
				return nil
			},
			RunE: func(c *cobra.Command, args []string) error {
				if err := explainable(e.what, args[0]); err != nil {
					return err
				}
				req := api.ExplainRequest{What: e.what, Target: args[0], From: from, Subnet: subnet}
				if len(args) == 2 {
					req.Type = args[1]
				}
				if from != "" {
					if _, err := netip.ParseAddr(from); err != nil {
						return usagef("--from %q: want an IP address", from)
					}
				}
				if subnet != "" {
					if _, err := netip.ParsePrefix(subnet); err != nil {
						return usageError{fmt.Errorf("--subnet: %w", err)}
					}
				}
				res, err := ask(c, a, func(ctx context.Context, n *api.Client) (api.ExplainResponse, error) { return n.Explain(ctx, req) })
				if err != nil {
					return err
				}
				w := c.OutOrStdout()
				if asJSON {
					return printJSON(w, res)
				}
				fmt.Fprintf(w, "as %s sees it:\n", res.Node)
				for _, l := range res.Lines {
					fmt.Fprintf(w, "%s%s\n", strings.Repeat("  ", l.Depth+1), l.Text)
				}
				fmt.Fprintf(w, "→ %s\n", res.Answer)
				return nil
			},
		}
		a.flags(c)
		c.Flags().StringVar(&from, "from", "", "the client's address")
		if e.what == "dns" {
			c.Flags().StringVar(&subnet, "subnet", "", "the EDNS client subnet of the query, a CIDR; --from is the resolver's address then")
		}
		outputFlag(c, &asJSON)
		explain.AddCommand(c)
	}
	return explain
}

// explainable finds what cannot be asked before a node is.
func explainable(what, target string) error {
	switch what {
	case "http":
		if u, err := url.Parse(target); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return usagef("%q is no URL: want http://HOST/PATH", target)
		}
	case "tcp", "udp":
		if _, err := netip.ParseAddrPort(target); err != nil {
			return usagef("%q: want ADDRESS:PORT of an accelerator", target)
		}
	}
	return nil
}

// voting says who votes, who of them is not live, and how many more may go before changes are refused.
func voting(st api.Status) string {
	if st.Voters == 0 {
		return "not known here"
	}
	text, more, spare := fmt.Sprint(st.Voters), "", (st.Voters-1)/2-len(st.Missing)
	if len(st.Missing) > 0 {
		text, more = text+", not live: "+strings.Join(st.Missing, ", "), " more"
	}
	switch {
	case spare < 0:
		return text + "; too many are gone for changes"
	case spare == 0:
		return text + "; none" + more + " may go before changes stop"
	}
	return fmt.Sprintf("%s; %d%s may go before changes stop", text, spare, more)
}

// agreesBy is how a node learns what is agreed.
func agreesBy(m api.MemberStatus) string {
	switch {
	case m.Vote:
		return "vote"
	case m.Follows != "":
		return "follows " + m.Follows
	}
	return "-"
}

func roles(m api.MemberStatus) string {
	var names []string
	for _, r := range m.Roles {
		names = append(names, string(r))
	}
	return strings.Join(names, ",")
}

func running(m api.MemberStatus) string {
	if m.Refused != "" {
		return fmt.Sprintf("%d (refuses newer)", m.Running)
	}
	return fmt.Sprint(m.Running)
}

func addresses(list []netip.Addr) string {
	var text []string
	for _, a := range list {
		text = append(text, a.String())
	}
	return strings.Join(text, ",")
}

func validAddr(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
