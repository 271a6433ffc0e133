package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/user"
	"strings"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/node/api"
	"github.com/spf13/cobra"
)

func newApply() *cobra.Command {
	var a addressed
	var files []string
	var dryRun, asJSON bool
	var expect uint64
	c := &cobra.Command{
		Use:   "apply -f FILE…",
		Short: "Change the network: all documents of all files, or nothing",
		Example: "  perigee apply -f network.yaml\n" +
			"  perigee apply -f - < network.yaml",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			req, err := request(c, files)
			if err != nil {
				return err
			}
			req.DryRun = dryRun
			if c.Flags().Changed("expect") {
				req.Expect = &expect
			}
			return change(c, a, req, asJSON)
		},
	}
	a.flags(c)
	c.Flags().StringArrayVarP(&files, "file", "f", nil, "a file of YAML documents; - is standard input")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "validate, and say what would change")
	c.Flags().Uint64Var(&expect, "expect", 0, "the revision this change must follow")
	outputFlag(c, &asJSON)
	return c
}

func newDelete() *cobra.Command {
	var a addressed
	var asJSON bool
	c := &cobra.Command{
		Use:   "delete KIND NAME",
		Short: "Delete a resource that nothing refers to",
		Args:  exactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			req := api.ApplyRequest{ID: rand.Text(), Author: author(), Delete: []api.Ref{{Kind: args[0], Name: args[1]}}}
			return change(c, a, req, asJSON)
		},
	}
	a.flags(c)
	outputFlag(c, &asJSON)
	return c
}

func newDiff() *cobra.Command {
	var a addressed
	var files []string
	var asJSON bool
	c := &cobra.Command{
		Use:   "diff -f FILE…",
		Short: "Say what apply would change",
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			req, err := request(c, files)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(c.Context(), answerTime)
			defer cancel()
			res, err := a.client().Diff(ctx, req)
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

func change(c *cobra.Command, a addressed, req api.ApplyRequest, asJSON bool) error {
	ctx, cancel := context.WithTimeout(c.Context(), answerTime)
	defer cancel()
	res, err := a.client().Apply(ctx, req)
	if err != nil {
		return err
	}
	at := "revision"
	if req.DryRun {
		at = "dry run: would be revision"
	}
	return printChanges(c.OutOrStdout(), res, asJSON, at)
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
	req := api.ApplyRequest{ID: rand.Text(), Author: author()}
	for _, name := range names {
		data, shown := []byte(nil), name
		var err error
		if name == "-" {
			shown = "stdin"
			data, err = io.ReadAll(io.LimitReader(c.InOrStdin(), api.MaxBody))
		} else {
			data, err = os.ReadFile(name)
		}
		if err != nil {
			return api.ApplyRequest{}, err
		}
		req.Files = append(req.Files, api.File{Name: shown, Data: string(data)})
	}
	return req, nil
}

// author is who is written beside a change.
func author() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return ""
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
			ctx, cancel := context.WithTimeout(c.Context(), answerTime)
			defer cancel()
			res, err := a.client().Resources(ctx, args[0], args[1])
			if err != nil {
				return err
			}
			w := c.OutOrStdout()
			switch {
			case output == "json":
				return printJSON(w, res)
			case output == "yaml" || args[1] != "":
				for i, r := range res.Resources {
					if i > 0 {
						fmt.Fprintln(w, "---")
					}
					fmt.Fprintln(w, strings.TrimRight(r.YAML, "\n"))
				}
				return nil
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

func newSchema() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of the resources, for editors",
		Args:  noArgs,
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
