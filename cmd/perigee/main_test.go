package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

// do runs the tool in this process.
func do(t *testing.T, args ...string) (code int, out, said string) {
	t.Helper()
	began := time.Now()
	var stdout, stderr bytes.Buffer
	code = run(t.Context(), args, strings.NewReader(""), &stdout, &stderr)
	if took := time.Since(began); took > 2*time.Second {
		t.Logf("perigee %s took %v", strings.Join(args, " "), took.Round(10*time.Millisecond))
	}
	return code, stdout.String(), stderr.String()
}

func TestWrongCommandLinesAreExitCode2AndSayWhatIsWanted(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	for _, c := range []struct {
		line, want string
	}{
		{"fly", "fly"},
		{"completion bash", "completion"},
		{"token", "create, list, delete"},
		{"token fly", "create, list, delete"},
		{"access create ci", "--role is missing"},
		{"access create", "want 1 argument"},
		{"node fly", "list, revoke or forget"},
		{"rotate", "authority or gossip"},
		{"rotate keys", "authority or gossip"},
		{"explain", "dns, http, tcp or udp"},
		{"explain udp", "usage: perigee explain udp"},
		{"explain dns", "NAME"},
		{"explain http foo", "http://HOST/PATH"},
		{"explain tcp 127.77.0.1", "ADDRESS:PORT"},
		{"explain dns example.com --from here", "--from"},
		{"explain dns example.com --subnet 192.0.2.1", "--subnet"},
		{"show now", "perigee history"},
		{"rollback now", "perigee history"},
		{"apply", "-f"},
		{"apply -f x --prune", "-l KEY=VALUE"},
		{"history --limit 0", "--limit"},
		{"get -o xml", "yaml or json"},
		{"token list -o yaml", "table nor json"},
		{"dev localhost:3000", "http://localhost:3000"},
		{"dev http://localhost:3000/path", "paths come from the viewers"},
		{"import", "zone, route53"},
		{"export fly", "zone, route53"},
		{"import zone x", "--name"},
		{"import route53 x --alias a=b", "KIND/NAME"},
		{"import route53 x --health-check a", "ID=NAME"},
		{"export route53 x --alias record/a=b", "KIND/NAME=DNSNAME"},
		{"recover", "--data"},
		{"recover --data d --advertise 10.0.0.1", "HOST:PORT"},
		{"status --api d", "./d"},
		{"status --api nothing", "HOST:PORT"},
		{"status --api 127.0.0.1:1 --token pga9.x", "pga1."},
	} {
		code, out, said := do(t, strings.Fields(c.line)...)
		if code != exitUsage || out != "" || strings.Count(said, "\n") != 1 || !strings.Contains(said, c.want) {
			t.Errorf("perigee %s: exit code %d, %q, %q; want %d and a line with %q", c.line, code, out, said, exitUsage, c.want)
		}
	}
}

func TestWhatCannotBeReachedIsExitCode1(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, c := range []struct{ line, want string }{
		{"status --api 127.0.0.1:1", "nothing listens"},
		{"status --api ./nothing", "data folder"},
		{"status --api 127.0.0.1:1 --token @nothing", "--token"},
		{"status --api 127.0.0.1:1 --ca nothing", "--ca"},
		{"recover --data nothing --advertise 10.0.0.1:7947", "no node's data folder"},
		{"snapshot restore nothing --api ./nothing", "nothing"},
		{"apply -f nothing --api ./nothing", "nothing"},
	} {
		code, out, said := do(t, strings.Fields(c.line)...)
		if code != exitFailed || out != "" || strings.Count(said, "\n") != 1 || !strings.Contains(said, c.want) {
			t.Errorf("perigee %s: exit code %d, %q, %q; want %d and a line with %q", c.line, code, out, said, exitFailed, c.want)
		}
	}
}

func TestEveryCommandExplainsItself(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			walk(sub)
		}
		if c.HasSubCommands() && c.Name() != "node" && c.Name() != "bench" || c.Hidden || c.Name() == "help" {
			return
		}
		if c.Short == "" {
			t.Errorf("%s says nothing of itself", c.CommandPath())
		}
		if c.Example == "" && c.Name() != "version" {
			t.Errorf("%s has no example", c.CommandPath())
		}
		if c.Flags().Lookup("api") != nil && c.Name() != "node" && c.Flags().Lookup("output") == nil {
			t.Errorf("%s asks a node and has no -o json", c.CommandPath())
		}
	}
	walk(newRoot())
}

func TestVersionSaysWhatBuiltIt(t *testing.T) {
	code, out, said := do(t, "version")
	if code != 0 || !strings.HasPrefix(out, "perigee ") || !strings.Contains(out, "go1.") {
		t.Errorf("exit code %d, %q, %q", code, out, said)
	}
}
