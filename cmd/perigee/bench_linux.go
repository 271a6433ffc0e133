package main

import (
	"fmt"
	"os"
	"time"

	"github.com/perigee-net/perigee/testbed/bench"
	"github.com/spf13/cobra"
)

// newBench measures this binary beside other programs that are installed.
func newBench() *cobra.Command {
	var cfg bench.Config
	var list, quiet bool
	c := &cobra.Command{
		Use:   "bench [ROW…]",
		Short: "Measure this program beside others that are installed, as ratios",
		Example: "  perigee bench --json bench.json --html bench.html\n" +
			"  perigee bench 'hit-*' --peers nginx,varnish --rounds 11",
		RunE: func(c *cobra.Command, args []string) error {
			if list {
				for _, r := range bench.Rows() {
					fmt.Fprintf(c.OutOrStdout(), "%-12s %s\n", r.Name, r.Work)
				}
				return nil
			}
			var err error
			if cfg.Program, err = os.Executable(); err != nil {
				return err
			}
			cfg.Only = args
			cfg.Out = func(table string) { fmt.Fprint(c.OutOrStdout(), table) }
			if !quiet {
				cfg.Say = func(line string) { fmt.Fprintln(c.ErrOrStderr(), line) }
			}
			return bench.Run(c.Context(), cfg)
		},
	}
	f := c.Flags()
	f.BoolVar(&list, "list", false, "print the rows, and measure nothing")
	f.StringSliceVar(&cfg.Peers, "peers", nil, "whom to measure beside (default: all that are installed; none: nobody)")
	f.StringSliceVar(&cfg.Path, "path", []string{"bin/peers"}, "folders with programs that are not on PATH")
	f.IntVar(&cfg.Rounds, "rounds", 7, "samples of each")
	f.DurationVar(&cfg.Duration, "duration", 5*time.Second, "of one sample, whole seconds")
	f.IntSliceVar(&cfg.Servers, "server-cores", nil, "cores of the servers (default: the first)")
	f.IntSliceVar(&cfg.Loads, "load-cores", nil, "cores of the load (default: all others)")
	f.StringVar(&cfg.Micro, "micro", "", "what go test -bench printed, a file, for the same report")
	f.StringVar(&cfg.JSON, "json", "", "write all figures to this file")
	f.StringVar(&cfg.HTML, "html", "", "write a page to this file")
	f.BoolVarP(&quiet, "quiet", "q", false, "print the table alone")
	return c
}
