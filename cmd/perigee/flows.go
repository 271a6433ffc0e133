package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/perigee-net/perigee/node/api"
	"github.com/spf13/cobra"
)

func newStatusAccelerator() *cobra.Command {
	q := api.AcceleratorQuery{}
	c := &cobra.Command{
		Use:   "accelerator NAME",
		Short: "What goes on at an accelerator: live flows by node, endpoint and path, and those that carry most",
		Long: "What goes on at an accelerator: its live flows by node, by endpoint and by path, and those that have carried most. All live nodes that take\n" +
			"flows are asked, or one with --node; what is healthy, and the round trips of paths, are as their nodes see them.",
		Example: "  perigee status accelerator echo\n  perigee status accelerator echo --node fra1-a --top 100 -o json",
	}
	top := 10
	c.Flags().StringVar(&q.Node, "node", "", "only the flows that this node took (default: those of all nodes)")
	c.Flags().IntVar(&top, "top", top, "so many flows, those that have carried most")
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) != 1 {
			return usagef("usage: %s", c.UseLine())
		}
		if top < 0 || top > api.MaxTopFlows {
			return usagef("--top %d: want 0 to %d", top, api.MaxTopFlows)
		}
		return nil
	}
	return question(c, func(ctx context.Context, n *api.Client, args []string) (api.AcceleratorStatus, error) {
		q.Name, q.Top = args[0], top
		return n.Accelerator(ctx, q)
	}, printAccelerator)
}

func printAccelerator(w io.Writer, s api.AcceleratorStatus) error {
	state := "enabled"
	if !s.Enabled {
		state = "disabled"
	}
	fmt.Fprintf(w, "accelerator  %s, %s\nflows        %d, in %s, out %s\nhealth       as node %s sees it\n\n", s.Name, state, s.Flows, size(s.BytesIn), size(s.BytesOut), s.Node)
	t := newTable("NODE", "POP", "FLOWS", "IN", "OUT", "ERROR")
	for _, n := range s.Nodes {
		t.row(n.Name, n.POP, strconv.Itoa(n.Flows), size(n.BytesIn), size(n.BytesOut), n.Error)
	}
	if err := t.print(w); err != nil {
		return err
	}
	for _, n := range s.Nodes {
		if n.Doors != "" {
			fmt.Fprintf(w, "%s keeps doors of it closed: %s\n", n.Name, n.Doors)
		}
	}
	fmt.Fprintln(w)
	t = newTable("LISTENER", "REGION", "ENDPOINT", "DIAL", "WEIGHT", "STATE", "FLOWS", "IN", "OUT", "REASON")
	for _, e := range s.Endpoints {
		dial, weight, is := strconv.FormatFloat(e.TrafficDial, 'g', 4, 64)+" %", strconv.Itoa(e.Weight), cmp.Or(e.State, healthState(e.Healthy))
		if e.Gone {
			dial, weight, is = "", "", "removed"
		}
		t.row(e.Protocol+" "+e.Ports, e.Region, e.Endpoint, dial, weight, is, strconv.Itoa(e.Flows), size(e.BytesIn), size(e.BytesOut), e.Reason)
	}
	if err := t.print(w); err != nil || len(s.Paths) == 0 {
		return err
	}
	fmt.Fprintln(w)
	t = newTable("FROM", "TO", "REGION", "BY WAY OF", "ROUND TRIP", "LOSS", "CARRIED", "FLOWS", "IN", "OUT")
	for _, p := range s.Paths {
		t.row(p.From, p.To, p.Region, orDirect(p.By), roundTrip(p.RTT), loss(p), carried(p.Carried), strconv.Itoa(p.Flows), size(p.BytesIn), size(p.BytesOut))
	}
	if err := t.print(w); err != nil || len(s.Top) == 0 {
		return err
	}
	fmt.Fprintln(w)
	t = newTable("CLIENT", "ARRIVED AT", "ON", "ENDPOINT", "TARGET", "AT", "BY WAY OF", "MOVED", "SINCE", "IN", "OUT", "ROUND TRIP", "RETRANSMITTED")
	for _, f := range s.Top {
		again := ""
		if f.Retransmitted != nil {
			again = strconv.FormatUint(*f.Retransmitted, 10)
		}
		t.row(validAddr(f.Client), f.Local.String(), f.Node, f.Endpoint, validAddr(f.Target), f.To, orDirect(f.By), strconv.Itoa(f.Moves), f.Began.Local().Format(time.DateTime),
			size(f.BytesIn), size(f.BytesOut), roundTrip(f.RTT), again)
	}
	return t.print(w)
}

func orDirect(by string) string {
	if by == "" {
		return "direct"
	}
	return by
}

// loss is what is lost on the first leg of a path, where its round trip is known.
func loss(p api.AcceleratorPath) string {
	switch {
	case p.RTT == 0:
		return ""
	case p.Loss > 0 && p.Repaired:
		return fmt.Sprintf("%.2g %%, repaired", 100*p.Loss)
	}
	return fmt.Sprintf("%.2g %%", 100*p.Loss)
}

// carried is the most that a path has carried of late.
func carried(bits float64) string {
	if bits < 1e6 {
		return ""
	}
	return fmt.Sprintf("%.3g Mbit/s", bits/1e6)
}

func roundTrip(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return rounded(d).String()
}

// size is bytes in words.
func size(n int64) string {
	for i, unit := range []string{"B", "KiB", "MiB", "GiB"} {
		if step := int64(1) << (10 * i); n < step<<10 {
			if i == 0 {
				return strconv.FormatInt(n, 10) + " B"
			}
			return strconv.FormatFloat(float64(n)/float64(step), 'f', 1, 64) + " " + unit
		}
	}
	return strconv.FormatFloat(float64(n)/(1<<40), 'f', 1, 64) + " TiB"
}

func newPortMappings() *cobra.Command {
	q := api.PortMappingsQuery{}
	c := &cobra.Command{
		Use:     "port-mappings ACCELERATOR",
		Short:   "Where the ports of a custom routing accelerator lead, and whether traffic may go there",
		Example: "  perigee port-mappings rooms\n  perigee port-mappings rooms --destination 10.0.1.7",
	}
	c.Flags().StringVar(&q.Destination, "destination", "", "only what leads to this address, or address and port (default: all)")
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) != 1 {
			return usagef("usage: %s", c.UseLine())
		}
		return nil
	}
	return question(c, func(ctx context.Context, n *api.Client, args []string) (api.PortMappingList, error) {
		q.Name = args[0]
		return n.PortMappings(ctx, q)
	}, func(w io.Writer, list api.PortMappingList) error {
		t := newTable("PORT", "PROTOCOL", "REGION", "SUBNET", "DESTINATION", "TRAFFIC")
		for _, m := range list.Mappings {
			t.row(strconv.Itoa(m.AcceleratorPort), m.Protocol, m.EndpointGroupRegion, m.Subnet.String(), m.DestinationSocketAddress.String(), m.DestinationTrafficState)
		}
		return t.print(w)
	})
}
