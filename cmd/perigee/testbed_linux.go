package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/perigee-net/perigee/testbed"
	"github.com/perigee-net/perigee/testbed/bed"
	"github.com/perigee-net/perigee/testbed/faulty"
	"github.com/perigee-net/perigee/testbed/wan"
)

// newTestbed is the laboratory: an internet on this machine.
func newTestbed() *cobra.Command {
	c := &cobra.Command{
		Use:   "testbed",
		Short: "Build an internet on this machine, run Perigee on it, break it and measure it",
		Long: "Build an internet on this machine: every host a network namespace, sites with routers that speak BGP and OSPF, links with delay, loss and rate,\n" +
			"resolvers, a root and a TLD, and Perigee's nodes as real processes. It needs root; what else is missing it says. Nothing of it touches the\n" +
			"machine's own network.",
		Example: "  perigee testbed up three\n  perigee testbed exec lagos curl -si http://www.demo.perigee.test/\n  perigee testbed fault kill fra1\n" +
			"  perigee testbed run nearest --html nearest.html\n  perigee testbed down",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("testbed %s: no such command; perigee testbed --help lists them", args[0])
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(testbedUp(), testbedList(), testbedStatus(), testbedExec(), testbedShell(), testbedFault(), testbedTrace(), testbedRun(), testbedTell(), testbedDown(), testbedPump(), testbedOrigin())
	return c
}

var errNoneUp = errors.New("no testbed is up: perigee testbed up three")

// chosen is which testbed a command is about.
type chosen struct{ name string }

func (ch *chosen) flags(c *cobra.Command) {
	c.Flags().StringVarP(&ch.name, "testbed", "t", "", "its name or folder, if more than one is up")
}

func (ch *chosen) open() (*bed.Bed, error) {
	if ch.name != "" {
		return bed.Open(ch.name)
	}
	all, err := bed.List()
	if err != nil {
		return nil, err
	}
	var up []string
	for _, i := range all {
		if i.State == "up" {
			up = append(up, i.Name)
		}
	}
	switch len(up) {
	case 0:
		return nil, errNoneUp
	case 1:
		return bed.Open(up[0])
	}
	return nil, usagef("%d testbeds are up: say which with --testbed (%s)", len(up), strings.Join(up, ", "))
}

// readWorld is a world that is built in, or that of a file.
func readWorld(name string) (*wan.World, error) {
	if !strings.ContainsAny(name, "./") {
		return wan.BuiltIn(name)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	return wan.Decode(name, data, func(other string) ([]byte, error) {
		if !filepath.IsAbs(other) {
			other = filepath.Join(filepath.Dir(name), other)
		}
		return os.ReadFile(other)
	})
}

// raising is how a testbed is brought up.
type raising struct {
	name, dir, kind string
	bare, keep      bool
}

func (r *raising) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&r.name, "name", "", "its name (default: the world's)")
	f.StringVar(&r.dir, "dir", "", "its folder (default: "+bed.Root+"/NAME)")
	f.StringVar(&r.kind, "wan", "", "what makes the links: netem, userspace (default: netem where the kernel has it)")
	f.BoolVar(&r.bare, "bare", false, "apply nothing: the nodes have no spec")
	f.BoolVar(&r.keep, "keep", false, "leave the folder with its logs when it goes down")
}

func (r *raising) up(ctx context.Context, name string, say func(string)) (*bed.Bed, error) {
	w, err := readWorld(name)
	if err != nil {
		return nil, err
	}
	if r.name != "" {
		w.Name = r.name
	}
	if missing := bed.Missing(w); len(missing) > 0 {
		var lines []string
		for _, m := range missing {
			lines = append(lines, fmt.Sprintf("%s is missing: %s; %s", m.What, m.Why, m.Get))
		}
		return nil, errors.New(strings.Join(lines, "\n"))
	}
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return bed.Up(ctx, bed.Config{World: w, Dir: r.dir, WAN: r.kind, Program: program, Say: say, Apply: !r.bare, Keep: r.keep})
}

// tellingTo prints a line for each thing that is done.
func tellingTo(w io.Writer) func(string) { return func(line string) { fmt.Fprintln(w, line) } }

func testbedUp() *cobra.Command {
	var r raising
	c := &cobra.Command{
		Use:     "up [WORLD]",
		Short:   "Build a world: " + strings.Join(wan.BuiltIns(), ", ") + ", or that of a FILE.yaml",
		Example: "  perigee testbed up\n  perigee testbed up six\n  perigee testbed up my-world.yaml --wan userspace",
		Args:    atMostOne,
		RunE: func(c *cobra.Command, args []string) error {
			name := "three"
			if len(args) == 1 {
				name = args[0]
			}
			b, err := r.up(c.Context(), name, tellingTo(c.ErrOrStderr()))
			if err != nil {
				return err
			}
			defer b.Close()
			i := b.Info()
			fmt.Fprintf(c.OutOrStdout(), "%s is up after %v: %d sites, %d hosts, links by %s, in %s\n\n"+
				"  perigee testbed status\n  perigee testbed exec seoul curl -si http://www.demo.perigee.test/\n  perigee testbed trace seoul www.demo.perigee.test\n"+
				"  perigee testbed fault kill %s\n  perigee testbed down\n",
				i.Name, i.Took.Round(100*time.Millisecond), i.Sites, i.Hosts, i.WAN, i.Dir, firstNode(b))
			return nil
		},
	}
	r.flags(c)
	return c
}

func atMostOne(c *cobra.Command, args []string) error {
	if len(args) > 1 {
		return usagef("usage: %s", c.UseLine())
	}
	return nil
}

func atLeast(n int) func(c *cobra.Command, args []string) error {
	return func(c *cobra.Command, args []string) error {
		if len(args) < n {
			return usagef("usage: %s", c.UseLine())
		}
		return nil
	}
}

func firstNode(b *bed.Bed) string {
	for _, h := range b.World().Hosts {
		if h.Kind == wan.Node {
			return h.Name
		}
	}
	return "NODE"
}

func testbedList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "The testbeds of this machine, also what is left of broken ones", Example: "  perigee testbed list", Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			all, err := bed.List()
			if err != nil {
				return err
			}
			t := newTable("NAME", "STATE", "SINCE", "SITES", "HOSTS", "LINKS BY", "FOLDER")
			for _, i := range all {
				t.row(i.Name, i.State, since(i.Began), fmt.Sprint(i.Sites), fmt.Sprint(i.Hosts), i.WAN, i.Dir)
			}
			return t.print(c.OutOrStdout())
		},
	}
}

func testbedStatus() *cobra.Command {
	var ch chosen
	c := &cobra.Command{
		Use: "status", Short: "The hosts, their addresses and processes", Example: "  perigee testbed status\n  perigee testbed status --testbed six", Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			b, err := ch.open()
			if err != nil {
				return err
			}
			defer b.Close()
			all, err := b.Status(c.Context())
			if err != nil {
				return err
			}
			t := newTable("HOST", "KIND", "SITE", "IPV4", "IPV6", "STATE", "PID", "MEMORY")
			for _, s := range all {
				state, kind := s.State, string(s.Host.Kind)
				if s.Router {
					kind = "router"
				}
				if !s.Up {
					state = "no namespace"
				}
				if len(s.Faults) > 0 {
					state += ": " + strings.Join(s.Faults, ", ")
				}
				t.row(s.Host.Name, kind, s.Host.Site, validIP(s.Host.V4.IsValid(), s.Host.V4.String()), validIP(s.Host.V6.IsValid(), s.Host.V6.String()),
					state, strings.Trim(fmt.Sprint(s.PIDs), "[]"), fmt.Sprintf("%d MB", (s.Memory+1<<19)>>20))
			}
			return t.print(c.OutOrStdout())
		},
	}
	ch.flags(c)
	return c
}

func validIP(valid bool, text string) string {
	if !valid {
		return ""
	}
	return text
}

// inside runs a command on a host, with the terminal that this one has.
func inside(c *cobra.Command, b *bed.Bed, host string, argv []string) error {
	if _, known := b.World().Host(host); !known && !strings.HasPrefix(host, "router-") {
		if _, err := b.Client(c.Context(), host); err != nil {
			return err
		}
	}
	run, err := b.Command(c.Context(), host, argv...)
	if err != nil {
		return err
	}
	if run.Env == nil {
		run.Env = os.Environ()
	}
	run.Env = append(run.Env, "HOST_DIR="+filepath.Join(b.Info().Dir, "hosts", host))
	run.Stdin, run.Stdout, run.Stderr = c.InOrStdin(), c.OutOrStdout(), c.ErrOrStderr()
	err = run.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exitError{code: exit.ExitCode()}
	}
	return err
}

func testbedExec() *cobra.Command {
	var ch chosen
	c := &cobra.Command{
		Use:   "exec HOST COMMAND…",
		Short: "Run a command on a host; HOST may be a place of the world, which then gets a client",
		Long: "Run a command on a host; HOST may be a place of the world, which then gets a client. Its status is that of the command. $HOST_DIR is the folder\n" +
			"with the host's files: configurations, logs, the control socket of a router's BIRD.",
		Example: "  perigee testbed exec lagos curl -si http://www.demo.perigee.test/\n  perigee testbed exec router-fra sh -c 'birdc -s $HOST_DIR/bird.ctl show route' \n  perigee testbed exec seoul ping -c 3 10.2.0.1",
		Args:    atLeast(2),
		RunE: func(c *cobra.Command, args []string) error {
			b, err := ch.open()
			if err != nil {
				return err
			}
			defer b.Close()
			return inside(c, b, args[0], args[1:])
		},
	}
	ch.flags(c)
	c.Flags().SetInterspersed(false)
	return c
}

func testbedShell() *cobra.Command {
	var ch chosen
	c := &cobra.Command{
		Use: "shell HOST", Short: "Open a shell on a host", Example: "  perigee testbed shell fra1", Args: atLeast(1),
		RunE: func(c *cobra.Command, args []string) error {
			b, err := ch.open()
			if err != nil {
				return err
			}
			defer b.Close()
			shell := os.Getenv("SHELL")
			if shell == "" {
				shell = "/bin/sh"
			}
			return inside(c, b, args[0], []string{shell})
		},
	}
	ch.flags(c)
	return c
}

func testbedFault() *cobra.Command {
	var ch chosen
	c := &cobra.Command{
		Use:   "fault VERB ARGUMENT…",
		Short: "Break something, or mend it: any step of a scenario",
		Long: "Break something, or mend it: any step of a scenario.\n\n" +
			"  kill | crash | start | stop HOST     a process dies, a machine falls silent, it comes back, it ends in order\n" +
			"  pause | resume HOST                  SIGSTOP, SIGCONT\n" +
			"  cut A B [oneway] | cut A | heal …    silence between two hosts or sites, or around one\n" +
			"  slow A B DELAY, lossy A B PERCENT [oneway]    what the link of two sites adds and loses",
		Example: "  perigee testbed fault crash fra1\n  perigee testbed fault lossy icn fra 20%\n  perigee testbed fault heal icn fra",
		Args:    atLeast(1),
		RunE: func(c *cobra.Command, args []string) error {
			b, err := ch.open()
			if err != nil {
				return err
			}
			defer b.Close()
			result, err := testbed.NewLaboratory(b, os.DirFS(".")).Do(c.Context(), args[0], args[1:])
			if err == nil && result != "" {
				fmt.Fprintln(c.OutOrStdout(), result)
			}
			return err
		},
	}
	ch.flags(c)
	c.Flags().SetInterspersed(false)
	return c
}

func testbedTrace() *cobra.Command {
	var ch chosen
	c := &cobra.Command{
		Use:     "trace CLIENT NAME [TYPE]",
		Short:   "Walk a lookup from a client: its resolver, the root, the TLD, Perigee",
		Example: "  perigee testbed trace saopaulo www.demo.perigee.test",
		Args:    atLeast(2),
		RunE: func(c *cobra.Command, args []string) error {
			b, err := ch.open()
			if err != nil {
				return err
			}
			defer b.Close()
			if _, known := b.World().Host(args[0]); !known {
				if _, err := b.Client(c.Context(), args[0]); err != nil {
					return err
				}
			}
			kind := "A"
			if len(args) > 2 {
				kind = args[2]
			}
			steps, err := b.Trace(c.Context(), args[0], args[1], kind)
			if err != nil {
				return err
			}
			t := newTable("SERVER", "ROLE", "ADDRESS", "TOOK", "SAYS")
			for _, s := range steps {
				t.row(s.Server, s.Role, s.Address.String(), s.Took.Round(100*time.Microsecond).String(), s.Answer)
			}
			return t.print(c.OutOrStdout())
		},
	}
	ch.flags(c)
	return c
}

func testbedRun() *cobra.Command {
	var ch chosen
	var r raising
	var world, jsonFile, htmlFile string
	c := &cobra.Command{
		Use:   "run SCENARIO",
		Short: "Run a scenario, built in or a FILE, and say what was measured",
		Long: "Run a scenario, built in or a FILE, and say what was measured: a table, and as asked JSON and a page.\n" +
			"It runs on the testbed that is up; where none is, or with --up, one is built for it and taken down afterwards.\n\nBuilt in: " + strings.Join(testbed.Scenarios(), ", "),
		Example: "  perigee testbed run nearest --html nearest.html\n  perigee testbed run my-scenario.txt --up six --json out.json",
		Args:    atLeast(1),
		RunE: func(c *cobra.Command, args []string) error {
			name, text, files, err := readScenario(args[0])
			if err != nil {
				return err
			}
			s, err := testbed.ParseScenario(name, text)
			if err != nil {
				return err
			}
			say := tellingTo(c.ErrOrStderr())
			var b *bed.Bed
			if !c.Flags().Changed("up") {
				b, err = ch.open()
			}
			if b == nil && (err == nil || errors.Is(err, errNoneUp)) {
				if b, err = r.up(c.Context(), world, say); err == nil {
					defer bed.Down(context.WithoutCancel(c.Context()), b.Info().Name, func(string) {})
				}
			}
			if err != nil {
				return err
			}
			defer b.Close()
			run, failed := testbed.NewLaboratory(b, files).Run(c.Context(), s, text, func(o testbed.Outcome) {
				verdict := "ok  "
				if o.Fault != "" {
					verdict = "FAIL"
				}
				say(fmt.Sprintf("%s %8v  %s", verdict, o.Took.Round(time.Millisecond), o.Step.Text))
			})
			for _, out := range []struct {
				file  string
				write func(io.Writer) error
			}{{jsonFile, run.WriteJSON}, {htmlFile, run.HTML}} {
				if out.file == "" {
					continue
				}
				if err := writeTo(out.file, out.write); err != nil {
					return errors.Join(failed, err)
				}
			}
			return errors.Join(run.Table(c.OutOrStdout(), 0), failed)
		},
	}
	ch.flags(c)
	r.flags(c)
	c.Flags().StringVar(&world, "up", "three", "build this world for it (default three, where no testbed is up)")
	c.Flags().StringVar(&jsonFile, "json", "", "write what was measured to this file")
	c.Flags().StringVar(&htmlFile, "html", "", "write a page of it to this file")
	return c
}

// readScenario is a scenario by the name that it has here, or of a file; its files are looked for beside it.
func readScenario(name string) (title, text string, files fs.FS, err error) {
	if !strings.ContainsAny(name, "./") {
		text, files, err = testbed.BuiltInScenario(name)
		return name, text, files, err
	}
	data, err := os.ReadFile(name)
	return filepath.Base(name), string(data), os.DirFS(filepath.Dir(name)), err
}

func writeTo(file string, write func(io.Writer) error) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}

func testbedDown() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:     "down [NAME]",
		Short:   "Take a testbed down, or what is left of one; nothing stays",
		Example: "  perigee testbed down\n  perigee testbed down --all",
		Args:    atMostOne,
		RunE: func(c *cobra.Command, args []string) error {
			names := args
			if len(names) == 0 {
				list, err := bed.List()
				if err != nil {
					return err
				}
				for _, i := range list {
					names = append(names, i.Name)
				}
				if len(names) > 1 && !all {
					return usagef("%d testbeds are here: say which, or --all (%s)", len(names), strings.Join(names, ", "))
				}
				if len(names) == 0 {
					fmt.Fprintln(c.OutOrStdout(), "no testbed is up")
				}
			}
			var errs []error
			for _, name := range names {
				err := bed.Down(c.Context(), name, tellingTo(c.ErrOrStderr()))
				if err == nil {
					fmt.Fprintf(c.OutOrStdout(), "%s is down\n", name)
				}
				errs = append(errs, err)
			}
			return errors.Join(errs...)
		},
	}
	c.Flags().BoolVar(&all, "all", false, "all of them")
	return c
}

func testbedTell() *cobra.Command {
	var ch chosen
	c := &cobra.Command{
		Use:     "tell HOST [ORDER…]",
		Short:   "Tell a faulty origin how to misbehave; without an order, ask what it does",
		Long:    "Tell a faulty origin how to misbehave; without an order, ask what it does.\n\n" + faulty.Grammar,
		Example: "  perigee testbed tell faulty status 503 share 20%\n  perigee testbed tell faulty slow head 3s\n  perigee testbed tell faulty well",
		Args:    atLeast(1),
		RunE: func(c *cobra.Command, args []string) error {
			b, err := ch.open()
			if err != nil {
				return err
			}
			defer b.Close()
			orders, err := faulty.Tell(c.Context(), b.Dial(args[0]), testbed.FaultyControl(), strings.Join(args[1:], " "))
			if err != nil {
				return fmt.Errorf("tell %s: %w", args[0], err)
			}
			fmt.Fprint(c.OutOrStdout(), orders)
			return nil
		},
	}
	ch.flags(c)
	c.Flags().SetInterspersed(false)
	return c
}

// testbedOrigin is a server that can be told to misbehave.
func testbedOrigin() *cobra.Command {
	var name, http, tcp string
	c := &cobra.Command{
		Use: "origin", Short: "Run an origin that can be told to misbehave", Hidden: true, Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			o, err := faulty.New(faulty.Config{Name: name, Listen: net.Listen, HTTP: http, TCP: tcp, Control: testbed.FaultyControl()})
			if err != nil {
				return err
			}
			return o.Run(endWith(c.Context(), c.InOrStdin()))
		},
	}
	c.Flags().StringVar(&name, "name", "", "its name")
	c.Flags().StringVar(&http, "http", "", "HOST:PORT of the web server")
	c.Flags().StringVar(&tcp, "tcp", "", "HOST:PORT of the TCP service")
	return c
}

// testbedPump is the process that carries the packets of the links where the kernel has no netem.
func testbedPump() *cobra.Command {
	var socket string
	c := &cobra.Command{
		Use: "pump", Short: "Carry the packets between the sites of a testbed", Hidden: true, Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error { return bed.Pump(c.Context(), socket) },
	}
	c.Flags().StringVar(&socket, "socket", "", "where it is told what to carry")
	return c
}
