// Command perigee is the one binary: a node of the network, and the tool that talks to one.
//
// Exit codes: 0 done; 1 it failed; 2 the command line is wrong; 3 the cluster refused it
// (a spec with faults, a conflict, no leader).
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/signal"
	"runtime"
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
	// exitIncomplete: what is printed is right and lacks what was told.
	exitIncomplete = 4
)

func main() {
	ends := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as it is under nohup
		ends = append(ends, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), ends...)
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
	if status, ended := err.(exitError); ended {
		return status.code
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

// exitError is the status of a command that was run for somebody, who has seen what it said.
type exitError struct{ code int }

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", e.code) }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "perigee",
		Short:         "An edge network on your own machines: CDN, accelerator, DNS and load balancers in one binary",
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version(),
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(
		newDev(), newNode(), newTarget(), newTestbed(), newBench(),
		newApply(), newDiff(), newDelete(), newGet(), newHistory(), newShow(), newRollback(),
		newStatus(), newMembers(), newAnycast(), newZones(), newNodes(), newHealth(), newExplain(), newEvents(), newPortMappings(),
		newDrain(), newUndrain(), newBlock(), newUnblock(), newPurge(),
		newImport(), newExport(),
		newToken(), newAccess(), newKeys(), newRotate(), newSnapshot(), newRecover(), newSchema(), newVersion(),
	)
	return root
}

// version is that of a release, or of the commit that it was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "devel"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	said := map[string]string{}
	for _, s := range info.Settings {
		said[s.Key] = s.Value
	}
	revision := said["vcs.revision"]
	if revision == "" {
		return "devel"
	}
	text := "devel " + revision[:min(len(revision), 12)] + " of " + said["vcs.time"]
	if said["vcs.modified"] == "true" {
		text += ", modified"
	}
	return text
}

func newVersion() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "version",
		Short: "Print the version, what built it, and whose data is built in",
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			built := runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH
			if asJSON {
				return printJSON(c.OutOrStdout(), map[string]string{"version": version(), "go": built, "data": geo.Attribution})
			}
			fmt.Fprintf(c.OutOrStdout(), "perigee %s\n%s\n%s\n", version(), built, geo.Attribution)
			return nil
		},
	}
	outputFlag(c, &asJSON)
	return c
}

func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("unexpected argument %q", args[0])
	}
	return nil
}

// addressed is what every command has that talks to a node.
type addressed struct{ api, token, ca string }

func (a *addressed) flags(c *cobra.Command) {
	address := os.Getenv("PERIGEE_API")
	if address == "" {
		address = "127.0.0.1:7948"
	}
	c.Flags().StringVar(&a.api, "api", address, "the node: HOST:PORT, or a data folder with its unix socket (or PERIGEE_API)")
	c.Flags().StringVar(&a.token, "token", os.Getenv("PERIGEE_TOKEN"), "an access token, for HOST:PORT; @FILE reads it from a file (or PERIGEE_TOKEN)")
	c.Flags().Lookup("token").DefValue = ""
	c.Flags().StringVar(&a.ca, "ca", os.Getenv("PERIGEE_CA"), "certificates in PEM to know the node by, in place of the token (or PERIGEE_CA)")
}

func (a *addressed) client() (*api.Client, error) {
	if !strings.ContainsAny(a.api, `:/\`) {
		if info, err := os.Stat(a.api); err == nil && info.IsDir() {
			return nil, usagef("--api %s: a folder is written with a slash: ./%s", a.api, a.api)
		}
		return nil, usagef("--api %s: want HOST:PORT, or the path of a node's data folder", a.api)
	}
	token, err := secret(a.token)
	if err != nil {
		return nil, fmt.Errorf("--token: %w", err)
	}
	client, err := api.NewClient(a.api, api.Options{Token: token, CAFile: a.ca})
	if errors.As(err, new(*fs.PathError)) {
		return nil, fmt.Errorf("--ca: %w", err)
	}
	if err != nil {
		return nil, usageError{err}
	}
	return client, nil
}

// hint adds to an error what the command line lacks, where that can be told.
func (a *addressed) hint(err error) error {
	var said *api.Error
	refused := errors.As(err, &said)
	local := strings.Contains(a.api, "/") && !strings.Contains(a.api, "://")
	switch {
	case err == nil:
	case refused && said.Status == http.StatusForbidden && local && strings.HasSuffix(said.Message, "lacks the role "+string(api.Operate)),
		refused && said.Status == http.StatusForbidden && local && strings.HasSuffix(said.Message, "lacks the role "+string(api.Admin)):
		return fmt.Errorf("%w (the socket of a node without the role voter may only read: ask a voter, or show an access token at HOST:PORT)", err)
	case !refused && !local && a.token == "" && a.ca == "" && errors.As(err, new(*tls.CertificateVerificationError)):
		return fmt.Errorf("%s: --token is missing: perigee access create makes one at a voter (without one, --api is a data folder)", a.api)
	}
	return err
}

// secret is a secret of the command line, or with @FILE of a file: a command line can be read by all.
func secret(text string) (string, error) {
	path, fromFile := strings.CutPrefix(text, "@")
	if !fromFile {
		return text, nil
	}
	data, err := os.ReadFile(path)
	return strings.TrimSpace(string(data)), err
}

// ask asks a node once, within answerTime.
func ask[T any](c *cobra.Command, a addressed, f func(context.Context, *api.Client) (T, error)) (res T, err error) {
	client, err := a.client()
	if err != nil {
		return res, err
	}
	ctx, cancel := context.WithTimeout(c.Context(), answerTime)
	defer cancel()
	res, err = f(ctx, client)
	return res, a.hint(err)
}

// answerTime bounds how long a command waits for its answer: a change may have to wait for a new leader.
const answerTime = 30 * time.Second
