package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/perigee-net/perigee/node/api"
	"github.com/spf13/cobra"
)

func newHistory() *cobra.Command {
	var a addressed
	var q api.HistoryQuery
	var asJSON bool
	c := &cobra.Command{
		Use:     "history",
		Short:   "The last changes: who, when, what, why",
		Example: "  perigee history --limit 5\n  perigee history --own",
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if q.Limit < 1 || q.Limit > api.MaxHistory {
				return usagef("--limit %d: want 1 to %d", q.Limit, api.MaxHistory)
			}
			h, err := ask(c, a, func(ctx context.Context, n *api.Client) (api.History, error) { return n.History(ctx, q) })
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), h)
			}
			t := newTable("REVISION", "TIME", "AUTHOR", "CHANGED", "NOTE")
			for _, r := range h.Records {
				t.row(fmt.Sprint(r.Revision), r.Time.Local().Format(time.DateTime), r.Author, changed(r), r.Note)
			}
			return t.print(c.OutOrStdout())
		},
	}
	a.flags(c)
	c.Flags().IntVar(&q.Limit, "limit", 20, "how many, the newest first")
	c.Flags().BoolVar(&q.Own, "own", false, "of the cluster's own records (nodes, tokens, keys) instead of the spec")
	outputFlag(c, &asJSON)
	return c
}

// changed names a few of the resources of a change.
func changed(r api.Record) string {
	const most = 3
	var words []string
	for _, ref := range r.Put {
		words = append(words, ref.Kind+"/"+short(ref.Name))
	}
	for _, ref := range r.Delete {
		words = append(words, "−"+ref.Kind+"/"+short(ref.Name))
	}
	if more := len(words) - most; more > 0 {
		words = append(words[:most], fmt.Sprintf("and %d more", more))
	}
	return strings.Join(words, " ")
}

// short is a name that a table has room for: those of authorities are hashes.
func short(name string) string {
	const most = 40
	if len(name) <= most {
		return name
	}
	return name[:most/2] + "…"
}

// revisionArg reads the number of a revision.
func revisionArg(text string) (uint64, error) {
	revision, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, usagef("%q is no revision: perigee history lists them", text)
	}
	return revision, nil
}

func newShow() *cobra.Command {
	var a addressed
	var asJSON, whole bool
	c := &cobra.Command{
		Use:     "show REVISION",
		Short:   "What one change changed, or with --resources all that was agreed then",
		Example: "  perigee show 41\n  perigee show 41 --resources > network.yaml",
		Args:    exactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			revision, err := revisionArg(args[0])
			if err != nil {
				return err
			}
			w := c.OutOrStdout()
			if whole {
				list, err := ask(c, a, func(ctx context.Context, n *api.Client) (api.ResourceList, error) {
					return n.ResourcesAt(ctx, revision)
				})
				if err != nil || asJSON {
					return orPrint(w, list, err)
				}
				return printYAML(w, list)
			}
			r, err := ask(c, a, func(ctx context.Context, n *api.Client) (api.RevisionDetail, error) { return n.Revision(ctx, revision) })
			if err != nil || asJSON {
				return orPrint(w, r, err)
			}
			fmt.Fprintf(w, "%s by %s\n", r.Time.Local().Format(time.DateTime), r.Author)
			if r.Note != "" {
				fmt.Fprintf(w, "    %s\n", r.Note)
			}
			return printChanges(w, api.ApplyResponse{Revision: r.Revision, Changes: r.Changes}, false, "revision")
		},
	}
	a.flags(c)
	c.Flags().BoolVar(&whole, "resources", false, "all resources as they were at that revision")
	outputFlag(c, &asJSON)
	return c
}

func newRollback() *cobra.Command {
	var ch changing
	c := &cobra.Command{
		Use:     "rollback REVISION",
		Short:   "Make the spec again what it was at a revision, by a new revision",
		Example: "  perigee rollback 41 --dry-run\n  perigee rollback 41 --wait -m 'the new origin fails'",
		Args:    exactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			revision, err := revisionArg(args[0])
			if err != nil {
				return err
			}
			req := api.RollbackRequest{ID: rand.Text(), Revision: revision, DryRun: ch.dryRun, Note: ch.note, Expect: ch.expected(c)}
			return ch.make(c, func(ctx context.Context, n *api.Client) (api.ApplyResponse, error) { return n.Rollback(ctx, req) })
		},
	}
	ch.flags(c)
	return c
}
