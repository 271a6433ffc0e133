// Command perigee is the one binary: a node of the network, and the tool that talks to one.
//
// Exit codes: 0 done; 1 it failed; 2 the command line is wrong; 3 the cluster refused it
// (a spec with faults, a conflict, no leader).
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/perigee-net/perigee/dnsgeo/geo"
	"github.com/perigee-net/perigee/node/api"
	"github.com/spf13/cobra"
)

// Exit codes.
const (
	exitFailed  = 1
	exitUsage   = 2
	exitRefused = 3
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is the whole program but for the process around it.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "perigee: %v\n", err)
	var usage usageError
	var refusal *api.Error
	switch {
	case errors.As(err, &usage), strings.HasPrefix(err.Error(), "unknown command"):
		return exitUsage
	case errors.As(err, &refusal):
		return exitRefused
	}
	return exitFailed
}

// usageError is a command line that makes no sense.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "perigee",
		Short:         "An edge network on your own machines: CDN, accelerator, DNS and load balancers in one binary",
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version(),
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(
		newDev(), newNode(), newTarget(),
		newApply(), newDiff(), newDelete(), newGet(),
		newStatus(), newMembers(), newHealth(), newExplain(),
		newToken(), newSchema(), newVersion(),
	)
	return root
}

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "devel"
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version and whose data is built in",
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			fmt.Fprintf(c.OutOrStdout(), "perigee %s\n%s\n", version(), geo.Attribution)
			return nil
		},
	}
}

func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("unexpected argument %q", args[0])
	}
	return nil
}

// addressed is what every command has that talks to a node.
type addressed struct{ api string }

func (a *addressed) flags(c *cobra.Command) {
	address := os.Getenv("PERIGEE_API")
	if address == "" {
		address = "127.0.0.1:7948"
	}
	c.Flags().StringVar(&a.api, "api", address, "the node: HOST:PORT, or a data folder with its unix socket (or PERIGEE_API)")
}

func (a *addressed) client() *api.Client { return api.NewClient(a.api, nil) }

// answerTime bounds how long a command waits for its answer: a change may have to wait for a new leader.
const answerTime = 30 * time.Second
