package main

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/perigee-net/perigee/testbed/bench"
	"github.com/spf13/cobra"
)

// newBench measures this binary beside other programs that are installed.
func newBench() *cobra.Command {
	var cfg bench.Config
	var list, quiet, quick bool
	c := &cobra.Command{
		Use:   "bench [ROW…]",
		Short: "Measure this program beside others that are installed, as ratios",
		Example: "  perigee bench --json bench.json --html bench.html\n" +
			"  perigee bench 'hit-*' --peers nginx,varnish --rounds 11\n" +
			"  perigee bench --quick\n" +
			"  perigee bench hit-1k --peers none --profile profiles && go tool pprof -top profiles/hit-1k/cpu.pprof",
		RunE: func(c *cobra.Command, args []string) error {
			if list {
				for _, r := range bench.Rows() {
					fmt.Fprintf(c.OutOrStdout(), "%-18s %s\n", r.Name, r.Work)
				}
				return nil
			}
			var err error
			if cfg.Program, err = os.Executable(); err != nil {
				return err
			}
			cfg.Only = args
			if quick {
				// All that was not said is as little as shows that rows work.
				for name, set := range map[string]func(){
					"rounds": func() { cfg.Rounds = 1 }, "duration": func() { cfg.Duration = time.Second }, "warm": func() { cfg.Warm = -1 },
					"objects": func() { cfg.Objects = 20_000 }, "idle": func() { cfg.Idle = 1000 },
				} {
					if !c.Flags().Changed(name) {
						set()
					}
				}
			}
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
	f.DurationVar(&cfg.Duration, "duration", 3*time.Second, "of one sample, whole seconds")
	f.DurationVar(&cfg.Warm, "warm", 2*time.Second, "of load on each before its first sample, whole seconds; below 0: none")
	f.IntVar(&cfg.Objects, "objects", 1_000_000, "that memory-1k fills caches with, and names of dns-static and dns-records-…")
	f.IntVar(&cfg.Idle, "idle", 10_000, "connections that idle-conns keeps")
	f.BoolVar(&quick, "quick", false, "show that rows work: one round of a second, 20,000 objects, 1,000 connections; figures say nothing")
	f.StringVar(&cfg.Profile, "profile", "", "have ours write CPU and heap profiles into a folder of this for each row, which costs it some percent")
	f.IntSliceVar(&cfg.Servers, "server-cores", nil, "cores of the servers (default: the first)")
	f.IntSliceVar(&cfg.Loads, "load-cores", nil, "cores of the load (default: all others)")
	f.StringVar(&cfg.Micro, "micro", "", "what go test -bench printed, a file, for the same report")
	f.StringVar(&cfg.JSON, "json", "", "write all figures to this file")
	f.StringVar(&cfg.HTML, "html", "", "write a page to this file")
	c.AddCommand(newLoop(), newCarry(), newVend())
	f.BoolVarP(&quiet, "quiet", "q", false, "print the table alone")
	return c
}

// newLoop is the least that a server can do, which perigee bench starts as a process of its own.
func newLoop() *cobra.Command {
	return &cobra.Command{
		Use:    "loop HOST:PORT BYTES",
		Short:  "Answer all requests alike, as fast as Go can",
		Hidden: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usagef("bench loop: want HOST:PORT and the length of the body")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			size, err := strconv.Atoi(args[1])
			if err != nil {
				return usageError{fmt.Errorf("bench loop: %w", err)}
			}
			return bench.Loop(c.Context(), args[0], size)
		},
	}
}

// newCarry is the least that two nodes can do that carry flows between them, which perigee bench starts as a process of its own.
func newCarry() *cobra.Command {
	return &cobra.Command{
		Use:    "carry quic|tls HOST:PORT TARGET",
		Short:  "Carry flows of TCP by QUIC or TLS, as fast as Go can",
		Hidden: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 3 || args[0] != bench.ByQUIC && args[0] != bench.ByTLS {
				return usagef("bench carry: want quic or tls, HOST:PORT and the target")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			return bench.Carry(c.Context(), args[0], args[1], args[2])
		},
	}
}

// newVend is a target that sends what it is asked for, which perigee bench starts as a process of its own.
func newVend() *cobra.Command {
	return &cobra.Command{
		Use:    "vend HOST:PORT",
		Short:  "Send on each flow as many bytes as it asks for",
		Hidden: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("bench vend: want HOST:PORT")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error { return bench.Vend(c.Context(), args[0]) },
	}
}
