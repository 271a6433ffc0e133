package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/perigee-net/perigee/testbed/bed"
	"github.com/perigee-net/perigee/testbed/gate"
	"github.com/perigee-net/perigee/testbed/page"
	"github.com/perigee-net/perigee/testbed/procs"
	"github.com/perigee-net/perigee/testbed/wan"
)

// laboratory is the binary as users have it, and a name for what it brings up, which is down at the end.
type laboratory struct {
	program, name string
}

func needsLaboratory(t *testing.T) laboratory {
	t.Helper()
	gate.Wanted(t)
	w, err := wan.BuiltIn("three")
	if err != nil {
		t.Fatal(err)
	}
	if missing := bed.Missing(w); len(missing) > 0 {
		t.Fatal(missing)
	}
	l := laboratory{program: filepath.Join(t.TempDir(), "perigee")}
	if err := procs.Build(t.Context(), l.program); err != nil {
		t.Fatal(err)
	}
	return l.named(t, fmt.Sprintf("t%d", os.Getpid()))
}

// named is the same binary with another name.
func (l laboratory) named(t *testing.T, name string) laboratory {
	l.name = name
	t.Cleanup(func() { exec.Command(l.program, "testbed", "down", name).Run() })
	return l
}

// do runs one command and returns what it printed, and its exit code.
func (l laboratory) do(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, said bytes.Buffer
	c := exec.CommandContext(t.Context(), l.program, append([]string{"testbed"}, args...)...)
	c.Stdout, c.Stderr = &out, &said
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), said.String(), c.ProcessState.ExitCode()
}

func (l laboratory) must(t *testing.T, args ...string) string {
	t.Helper()
	out, said, code := l.do(t, args...)
	if code != 0 {
		t.Fatalf("perigee testbed %s: exit code %d\n%s%s", strings.Join(args, " "), code, out, said)
	}
	return out
}

// remains are the namespaces of a testbed.
func remains(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "ip", "netns").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var mine []string
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "pg."+name+".") {
			mine = append(mine, strings.TrimSpace(line))
		}
	}
	return strings.Join(mine, " ")
}

// What docs/testbed.md has a newcomer type.
func TestTheTestbedIsWhatANewcomerTypes(t *testing.T) {
	l := needsLaboratory(t)
	if out := l.must(t, "up", "three", "--name", l.name); !strings.Contains(out, "is up after") {
		t.Errorf("up: %s", out)
	}
	at := []string{"--testbed", l.name}
	if out := l.must(t, append([]string{"exec"}, append(at, "lagos", "curl", "-si", "http://www.demo.perigee.test/")...)...); !strings.Contains(out, "200 OK") || !strings.Contains(out, "X-Perigee-Pop: fra1") {
		t.Errorf("a page in Lagos: %s", out)
	}
	if _, _, code := l.do(t, append([]string{"exec"}, append(at, "lagos", "sh", "-c", "exit 7")...)...); code != 7 {
		t.Errorf("exec's exit code is %d", code)
	}
	for _, family := range []string{"-4", "-6"} {
		if out := l.must(t, append([]string{"exec"}, append(at, "lagos", "ping", family, "-q", "-c", "2", "-W", "5", "icn1")...)...); !strings.Contains(out, " 0% packet loss") {
			t.Errorf("ping %s: %s", family, out)
		}
	}
	traced := l.must(t, append([]string{"trace", "saopaulo", "www.demo.perigee.test"}, at...)...)
	last := 0
	for _, role := range []string{"resolver", "root", "TLD", "authority"} {
		i := strings.Index(traced, role)
		if i < last {
			t.Errorf("trace: %s does not come after the one before it:\n%s", role, traced)
		}
		last = i
	}
	if out := l.must(t, append([]string{"status"}, at...)...); strings.Count(out, " runs ") != 19 {
		t.Errorf("not all run:\n%s", out)
	}
	if out := l.must(t, append([]string{"tell"}, append(at, "faulty", "status", "503")...)...); !strings.Contains(out, "status 503") {
		t.Errorf("tell: %s", out)
	}
	if out := l.must(t, append([]string{"fault"}, append(at, "get", "seoul", "http://faulty/")...)...); !strings.Contains(out, "503") {
		t.Errorf("it misbehaves not: %s", out)
	}
	if out := l.must(t, append([]string{"exec"}, append(at, "router-fra", "sh", "-c", "birdc -s $HOST_DIR/bird.ctl show protocols")...)...); !strings.Contains(out, "Established") {
		t.Errorf("BIRD: %s", out)
	}

	// What makes no sense is said in a line, by the exit code, too.
	for _, c := range []struct {
		args []string
		want string
		code int
	}{
		{[]string{"up", "three", "--name", l.name}, "is up", exitFailed},
		{[]string{"up", "nowhere"}, "nowhere", exitFailed},
		{[]string{"up", "./nothing.yaml"}, "nothing.yaml", exitFailed},
		{[]string{"up", "three", "--wan", "string", "--name", "other"}, "string", exitFailed},
		{[]string{"exec", "--testbed", l.name, "atlantis", "true"}, "atlantis", exitFailed},
		{[]string{"fault", "--testbed", l.name, "melt", "fra1"}, `no verb "melt"`, exitFailed},
		{[]string{"fault", "--testbed", l.name, "kill", "fra9"}, "fra9", exitFailed},
		{[]string{"run", "--testbed", l.name, "nothing"}, `no scenario "nothing"`, exitFailed},
		{[]string{"status", "--testbed", "nobody"}, "nobody", exitFailed},
		{[]string{"unmake"}, "unmake", exitUsage},
	} {
		out, said, code := l.do(t, c.args...)
		if code != c.code || !strings.Contains(said, c.want) || strings.Contains(said, "goroutine") {
			t.Errorf("%v: exit code %d, want %d\n%s%s", c.args, code, c.code, out, said)
		}
	}
	l.must(t, "down", l.name)
	if left := remains(t, l.name); left != "" {
		t.Errorf("left: %s", left)
	}
	if _, err := os.Stat(filepath.Join(bed.Root, l.name)); err == nil {
		t.Error("its folder is left")
	}
	l.must(t, "down", l.name) // twice is fine
}

// The scenarios come true on a kernel: those that need one, and some of those that run in virtual time. Each has a world of its own, and what it
// takes is waiting, so they run beside each other: make lab says how many at a time (-parallel).
func TestScenariosComeTrueOnATestbed(t *testing.T) {
	l := needsLaboratory(t)
	for i, c := range []struct{ scenario, world string }{ // the longest first
		{"gray", "three"}, {"nearest", "three"}, {"drained", "three"}, {"cutoff", "three"}, {"oneway", "three"}, {"established", "three"}, {"loadbalancer", "three"}, {"measure", "six"},
		{"join", "six"}, {"spread", "testdata/spread.yaml"}, {"accelerator", "three"}, {"preserved", "three"}, {"dns", "three"},
	} {
		t.Run(c.scenario, func(t *testing.T) {
			t.Parallel()
			l := l.named(t, fmt.Sprintf("%sn%d", l.name, i))
			dir := t.TempDir()
			into, drawn := filepath.Join(dir, "run.json"), filepath.Join(dir, "run.html")
			out, said, code := l.do(t, "run", c.scenario, "--up", c.world, "--name", l.name, "--json", into, "--html", drawn)
			t.Logf("%s%s", said, out)
			if code != 0 {
				t.Fatalf("exit code %d", code)
			}
			data, err := os.ReadFile(into)
			if err != nil {
				t.Fatal(err)
			}
			var run page.Run
			if err := json.Unmarshal(data, &run); err != nil || !run.Passed || len(run.Steps) == 0 || len(run.Sites) == 0 || len(run.Links) == 0 {
				t.Errorf("%v: passed %v, %d steps, %d sites", err, run.Passed, len(run.Steps), len(run.Sites))
			}
			if html, err := os.ReadFile(drawn); err != nil || !bytes.Contains(html, []byte("</html>")) {
				t.Errorf("the page: %v, %d bytes", err, len(html))
			}
			if left := remains(t, l.name); left != "" {
				t.Errorf("left: %s", left)
			}
		})
	}
}
