package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/node/api"
	"github.com/spf13/cobra"
)

// changing is what every command has that changes the spec.
type changing struct {
	addressed
	note    string
	expect  uint64
	dryRun  bool
	wait    bool
	timeout time.Duration
	asJSON  bool
}

func (ch *changing) flags(c *cobra.Command) {
	ch.addressed.flags(c)
	f := c.Flags()
	f.StringVarP(&ch.note, "note", "m", "", "why, for the history")
	f.Uint64Var(&ch.expect, "expect", 0, "the revision this change must follow")
	f.BoolVar(&ch.dryRun, "dry-run", false, "validate, and say what would change")
	f.BoolVar(&ch.wait, "wait", false, "return when every live node runs the revision, and say who refused it")
	f.DurationVar(&ch.timeout, "timeout", time.Minute, "how long --wait waits")
	outputFlag(c, &ch.asJSON)
}

func (ch *changing) expected(c *cobra.Command) *uint64 {
	if c.Flags().Changed("expect") {
		return &ch.expect
	}
	return nil
}

// make makes the change, prints what it did, and waits for the nodes if that is wanted.
func (ch *changing) make(c *cobra.Command, f func(context.Context, *api.Client) (api.ApplyResponse, error)) error {
	res, err := ask(c, ch.addressed, f)
	if err != nil {
		return err
	}
	at := "revision"
	if ch.dryRun {
		at = "dry run: would be revision"
	}
	if !ch.wait || ch.dryRun {
		return printChanges(c.OutOrStdout(), res, ch.asJSON, at)
	}
	client, err := ch.client()
	if err != nil {
		return err
	}
	waited, err := client.Wait(c.Context(), res.Revision, ch.timeout)
	if err != nil {
		return fmt.Errorf("revision %d is agreed, but who runs it is not known: %w", res.Revision, err)
	}
	if ch.asJSON {
		if err := printJSON(c.OutOrStdout(), struct {
			api.ApplyResponse
			Nodes    []api.NodeRunning `json:"nodes"`
			Complete bool              `json:"complete"`
		}{res, waited.Nodes, waited.Complete}); err != nil {
			return err
		}
	} else if err := printChanges(c.OutOrStdout(), res, false, at); err != nil {
		return err
	}
	return runByAll(c.OutOrStdout(), waited, ch.asJSON)
}

// runByAll says which nodes run a revision. That not all do is an error.
func runByAll(w io.Writer, res api.WaitResponse, quiet bool) error {
	var not []string
	for _, n := range res.Nodes {
		switch {
		case n.Running >= res.Revision:
			continue
		case n.Refused != "":
			not = append(not, fmt.Sprintf("%s refused it and runs %d: %s", n.Name, n.Running, n.Refused))
		default:
			not = append(not, fmt.Sprintf("%s runs %d still", n.Name, n.Running))
		}
	}
	if len(not) > 0 {
		return fmt.Errorf("revision %d is agreed, but not run by all:\n%s", res.Revision, strings.Join(not, "\n"))
	}
	if !quiet {
		fmt.Fprintf(w, "run by all %d live nodes\n", len(res.Nodes))
	}
	return nil
}

func newApply() *cobra.Command {
	var ch changing
	var files, labels []string
	var prune bool
	c := &cobra.Command{
		Use:   "apply -f FILE…",
		Short: "Change the network: all documents of all files, or nothing",
		Example: "  perigee apply -f network.yaml --wait -m 'a second target'\n" +
			"  perigee apply -f shop.yaml --prune -l app=shop\n" +
			"  perigee apply -f - < network.yaml",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if prune != (len(labels) > 0) {
				return usagef("--prune needs -l KEY=VALUE, and -l needs --prune: what has the labels and is in no file is deleted")
			}
			req, err := request(c, files)
			if err != nil {
				return err
			}
			req.DryRun, req.Note, req.Expect = ch.dryRun, ch.note, ch.expected(c)
			if prune {
				if req.Prune, err = selector(labels); err != nil {
					return err
				}
			}
			return ch.make(c, func(ctx context.Context, n *api.Client) (api.ApplyResponse, error) { return n.Apply(ctx, req) })
		},
	}
	ch.flags(c)
	c.Flags().StringArrayVarP(&files, "file", "f", nil, "a file of YAML documents; - is standard input")
	c.Flags().BoolVar(&prune, "prune", false, "delete what has the labels of -l and is in no file")
	c.Flags().StringArrayVarP(&labels, "label", "l", nil, "KEY=VALUE, for --prune; more than one: all of them")
	return c
}

func selector(labels []string) (*api.Prune, error) {
	p := &api.Prune{Labels: map[string]string{}}
	for _, l := range labels {
		key, value, ok := strings.Cut(l, "=")
		if !ok || key == "" {
			return nil, usagef("-l %s: want KEY=VALUE", l)
		}
		p.Labels[key] = value
	}
	return p, nil
}

func newDelete() *cobra.Command {
	var ch changing
	c := &cobra.Command{
		Use:     "delete KIND NAME",
		Short:   "Delete a resource that nothing refers to",
		Example: "  perigee delete HostedZone old.example -m 'moved'",
		Args:    exactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			req := api.ApplyRequest{ID: rand.Text(), Delete: []api.Ref{{Kind: args[0], Name: args[1]}}, DryRun: ch.dryRun, Note: ch.note, Expect: ch.expected(c)}
			return ch.make(c, func(ctx context.Context, n *api.Client) (api.ApplyResponse, error) { return n.Apply(ctx, req) })
		},
	}
	ch.flags(c)
	return c
}

func newDiff() *cobra.Command {
	var a addressed
	var files []string
	var asJSON bool
	c := &cobra.Command{
		Use:     "diff -f FILE…",
		Short:   "Say what apply would change",
		Example: "  perigee diff -f network.yaml",
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			req, err := request(c, files)
			if err != nil {
				return err
			}
			res, err := ask(c, a, func(ctx context.Context, n *api.Client) (api.ApplyResponse, error) { return n.Diff(ctx, req) })
			if err != nil {
				return err
			}
			return printChanges(c.OutOrStdout(), res, asJSON, "would be at")
		},
	}
	a.flags(c)
	c.Flags().StringArrayVarP(&files, "file", "f", nil, "a file of YAML documents; - is standard input")
	outputFlag(c, &asJSON)
	return c
}

func printChanges(w io.Writer, res api.ApplyResponse, asJSON bool, at string) error {
	if asJSON {
		return printJSON(w, res)
	}
	for _, ch := range res.Changes {
		fmt.Fprintf(w, "%s %s %s\n", ch.Op, ch.Kind, ch.Name)
		for _, f := range ch.Fields {
			fmt.Fprintf(w, "    %s\n", f)
		}
	}
	if len(res.Changes) == 0 {
		fmt.Fprintln(w, "nothing changes")
	}
	fmt.Fprintf(w, "%s %d\n", at, res.Revision)
	return nil
}

// request reads the files of a change.
func request(c *cobra.Command, names []string) (api.ApplyRequest, error) {
	if len(names) == 0 {
		return api.ApplyRequest{}, usagef("give at least one file with -f")
	}
	req := api.ApplyRequest{ID: rand.Text()}
	for _, name := range names {
		data, shown, err := input(c, name, api.MaxBody)
		if err != nil {
			return api.ApplyRequest{}, err
		}
		req.Files = append(req.Files, api.File{Name: shown, Data: string(data)})
	}
	return req, nil
}

func newGet() *cobra.Command {
	var a addressed
	var output string
	c := &cobra.Command{
		Use:   "get [KIND [NAME]]",
		Short: "Print resources as they were written",
		Example: "  perigee get\n" +
			"  perigee get loadbalancers\n" +
			"  perigee get distribution site -o json",
		Args: maxArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			args = append(args, "", "")
			if output != "" && output != "yaml" && output != "json" {
				return usagef("-o %s: want yaml or json", output)
			}
			res, err := ask(c, a, func(ctx context.Context, n *api.Client) (api.ResourceList, error) {
				return n.Resources(ctx, api.ResourcesQuery{Kind: args[0], Name: args[1]})
			})
			if err != nil {
				return err
			}
			w := c.OutOrStdout()
			switch {
			case output == "json":
				return printJSON(w, res)
			case output == "yaml" || args[1] != "":
				return printYAML(w, res)
			}
			t := newTable("KIND", "NAME", "REVISION")
			for _, r := range res.Resources {
				t.row(r.Kind, r.Name, fmt.Sprint(r.Revision))
			}
			return t.print(w)
		},
	}
	a.flags(c)
	c.Flags().StringVarP(&output, "output", "o", "", "yaml or json")
	return c
}

func printYAML(w io.Writer, list api.ResourceList) error {
	for i, r := range list.Resources {
		if i > 0 {
			fmt.Fprintln(w, "---")
		}
		fmt.Fprintln(w, strings.TrimRight(r.YAML, "\n"))
	}
	return nil
}

func newSchema() *cobra.Command {
	return &cobra.Command{
		Use:     "schema",
		Short:   "Print the JSON Schema of the resources, for editors",
		Example: "  perigee schema > perigee.schema.json",
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := c.OutOrStdout().Write(spec.Schema())
			return err
		},
	}
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
