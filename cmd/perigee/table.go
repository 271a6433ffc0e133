package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

// table is rows for people.
type table struct{ rows [][]string }

func newTable(head ...string) *table { return &table{rows: [][]string{head}} }

func (t *table) row(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range t.rows {
		for i, c := range r {
			if c == "" {
				r[i] = "-"
			}
		}
		io.WriteString(tw, strings.Join(r, "\t")+"\n")
	}
	return tw.Flush()
}

func outputFlag(c *cobra.Command, asJSON *bool) {
	c.Flags().VarPF((*jsonFlag)(asJSON), "output", "o", "json: print it for machines")
}

// jsonFlag is -o json.
type jsonFlag bool

func (f *jsonFlag) String() string {
	if *f {
		return "json"
	}
	return "table"
}

func (f *jsonFlag) Set(s string) error {
	switch s {
	case "json":
		*f = true
	case "table":
		*f = false
	default:
		return usagef("%q is neither table nor json", s)
	}
	return nil
}

func (f *jsonFlag) Type() string { return "table|json" }

func exactArgs(n int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) != n {
			return usagef("want %s, got %d: %s", arguments(n), len(args), c.UseLine())
		}
		return nil
	}
}

func maxArgs(n int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) > n {
			return usagef("want at most %s, got %d: %s", arguments(n), len(args), c.UseLine())
		}
		return nil
	}
}

func arguments(n int) string {
	if n == 1 {
		return "1 argument"
	}
	return fmt.Sprintf("%d arguments", n)
}
