package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// refused runs a command that must be refused with an exit code, and returns what it said.
func refused(t *testing.T, code int, want string, args ...string) {
	t.Helper()
	if got, _, said := do(t, args...); got != code || !strings.Contains(said, want) {
		t.Errorf("perigee %s: exit code %d, want %d and %q:\n%s", strings.Join(args, " "), got, code, want, said)
	}
}

// write makes a file of the test's own.
func write(t *testing.T, data string) string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(data); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

func zone(name string) string { return "kind: HostedZone\nname: " + name + "\nlabels: {app: test}\n" }

// process is a node that the test runs beside those of perigee dev.
type process struct {
	cmd   *exec.Cmd
	log   *os.File
	ended chan struct{}
}

// startNode runs a node at the address of a fourth region, or of another one.
func startNode(t *testing.T, data, pop, ip string, more ...string) *process {
	t.Helper()
	args := append([]string{"node", "--data", data, "--region", "eu-central-1", "--pop", pop, "--bind", ip, "--http", ip + ":8080",
		"--https", "", "--dns", ip + ":8053", "--api", ip + ":7948", "--drain", "0s"}, more...)
	log, err := os.CreateTemp(t.TempDir(), pop)
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: perigee(context.Background(), args...), log: log, ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		began := time.Now()
		p.stop()
		log.Close()
		if data, _ := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("%s", data)
		}
		t.Logf("%s ended after %v", pop, time.Since(began).Round(10*time.Millisecond))
	})
	return p
}

func (p *process) stop() {
	p.cmd.Process.Signal(os.Interrupt)
	<-p.ended
}

// runs says whether a command succeeds, and its output has all the words.
func runs(t *testing.T, words []string, args ...string) bool {
	code, out, _ := do(t, args...)
	return code == 0 && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(out, w) })
}

func TestAClusterThatOneCanTrust(t *testing.T) {
	n := startDev(t)
	icn, fra, iad := n.region(t, "icn1"), n.region(t, "fra1"), n.region(t, "iad1")
	token := func(args ...string) string {
		return write(t, tool(t, append(args, "--api", fra.Data)...))
	}
	host, _, _ := net.SplitHostPort(fra.HTTP)
	address := func(region int) string { // 127.B.2.1 → 127.B.region.1
		octets := strings.Split(host, ".")
		return fmt.Sprintf("127.%s.%d.1", octets[1], region)
	}

	t.Run("the API asks who it is, and what one may", func(t *testing.T) {
		reads := token("access", "create", "reader", "--role", "read")
		some := token("access", "create", "some", "--role", "operate", "--resource", "HostedZone/some-*")
		for _, made := range []string{reads, some} { // at one node, and good at another in a moment
			eventually(t, 2*time.Second, "a token is good everywhere", func() bool { return runs(t, nil, "status", "--api", iad.API, "--token", "@"+made) })
		}
		tool(t, "apply", "-f", write(t, zone("some-one.test")), "--api", iad.API, "--token", "@"+some)
		refused(t, exitFailed, "--token is missing", "status", "--api", iad.API)
		refused(t, exitRefused, "lacks the role operate", "apply", "-f", write(t, zone("no.test")), "--api", iad.API, "--token", "@"+reads)
		refused(t, exitRefused, "lacks the role admin", "token", "create", "--api", iad.API, "--token", "@"+some)
		refused(t, exitRefused, "may not change HostedZone/no.test", "apply", "-f", write(t, zone("no.test")), "--api", iad.API, "--token", "@"+some)
		tool(t, "access", "delete", "reader", "--api", iad.Data)
		eventually(t, time.Second, "a token that was taken back is refused everywhere", func() bool {
			for _, r := range n.Regions {
				if runs(t, nil, "status", "--api", r.API, "--token", "@"+reads) {
					return false
				}
			}
			return true
		})
		refused(t, exitRefused, "is refused", "status", "--api", icn.API, "--token", "@"+reads)
	})

	t.Run("the API speaks HTTPS only, with a certificate that curl can check", func(t *testing.T) {
		res, err := http.Get("http://" + fra.API + "/v1/status")
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != http.StatusBadRequest || bytes.Contains(body, []byte("fra1")) {
			t.Errorf("plain HTTP: %s %s", res.Status, body)
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM([]byte(tool(t, "keys", "--pem", "--api", fra.Data)))
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}}
		if res, err = client.Get("https://" + fra.API + "/v1/status"); err != nil {
			t.Fatal(err)
		}
		body, _ = io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != http.StatusUnauthorized || bytes.Contains(body, []byte("fra1")) {
			t.Errorf("without a token: %s %s", res.Status, body)
		}
	})

	t.Run("the examples for curl in docs/api.md work", func(t *testing.T) { curlAsInTheDocs(t, fra) })

	t.Run("changes, back and forth", func(t *testing.T) {
		both := write(t, zone("one.test")+"---\n"+zone("two.test"))
		if out := tool(t, "apply", "-f", both, "--wait", "-m", "two zones", "--api", iad.Data); !strings.Contains(out, "run by all 3 live nodes") {
			t.Errorf("apply --wait: %s", out)
		}
		if out := tool(t, "history", "--limit", "1", "--api", iad.Data); !strings.Contains(out, "two zones") || !strings.Contains(out, "@socket") {
			t.Errorf("history: %s", out)
		}
		revision := strings.Fields(strings.Split(tool(t, "history", "--limit", "1", "--api", iad.Data), "\n")[1])[0]
		refused(t, exitRefused, "the network is at "+revision, "delete", "HostedZone", "one.test", "--expect", "1", "--api", fra.Data)
		if out := tool(t, "apply", "-f", write(t, zone("one.test")), "--prune", "-l", "app=test", "--dry-run", "--api", fra.Data); !strings.Contains(out, "deleted HostedZone two.test") {
			t.Errorf("prune: %s", out)
		}
		saved := filepath.Join(t.TempDir(), "saved")
		tool(t, "snapshot", "save", saved, "--api", icn.Data)
		tool(t, "apply", "-f", write(t, zone("one.test")), "--prune", "-l", "app=test", "--api", fra.Data)
		tool(t, "delete", "HostedZone", "one.test", "--api", fra.Data)
		tool(t, "rollback", revision, "--wait", "--api", iad.Data)
		tool(t, "get", "HostedZone", "two.test", "--api", icn.Data)
		refused(t, exitIncomplete, "the zone has no nameServers", "export", "zone", "Two.test", "--api", icn.Data)
		refused(t, exitRefused, "no HostedZone", "export", "route53", "three.test", "--api", icn.Data)
		tool(t, "delete", "HostedZone", "two.test", "--api", fra.Data)
		tool(t, "snapshot", "restore", saved, "--api", iad.Data)
		eventually(t, 5*time.Second, "all is as it was saved", func() bool {
			return runs(t, []string{"nothing changes"}, "diff", "-f", both, "--api", iad.Data)
		})
		cut := write(t, "perigee snapshot 1\nnonsense")
		refused(t, exitRefused, "nothing has changed", "snapshot", "restore", cut, "--api", iad.Data)
	})

	data := filepath.Join(t.TempDir(), "fourth")
	t.Run("a fourth node joins by a token, once, comes back without it, and is revoked", func(t *testing.T) {
		once, ip := token("token", "create", "--roles", "edge,dns"), address(4)
		join := []string{"--join", address(1) + ":7947", "--token", "@" + once}
		refused(t, exitFailed, "does not allow the role", append([]string{"node", "--data", filepath.Join(t.TempDir(), "x"), "--region", "eu-central-1",
			"--pop", "fra4", "--bind", ip, "--http", "", "--https", "", "--dns", ""}, join...)...)
		fourth := startNode(t, data, "fra4", ip, append(join, "--roles", "edge,dns")...)
		eventually(t, 10*time.Second, "it follows, and all see it", func() bool {
			return runs(t, []string{"fra4", "follows "}, "status", "--api", iad.Data)
		})
		refused(t, exitFailed, "is used up", append([]string{"node", "--data", filepath.Join(t.TempDir(), "x"), "--region", "eu-central-1", "--pop", "fra5",
			"--roles", "edge", "--bind", address(5), "--http", "", "--https", "", "--dns", ""}, join...)...)
		refused(t, exitRefused, "may only read", "apply", "-f", write(t, zone("three.test")), "--api", data)
		fourth.stop()
		startNode(t, data, "fra4", ip, "--roles", "edge,dns")
		eventually(t, 10*time.Second, "it is back, without a token", func() bool {
			return runs(t, []string{"fra4", "follows "}, "status", "--api", data) && runs(t, []string{"fra4"}, "members", "--api", iad.Data)
		})
		tool(t, "node", "revoke", "fra4", "--api", icn.Data)
		eventually(t, time.Second, "it is shut out everywhere", func() bool {
			for _, r := range n.Regions {
				if runs(t, []string{"fra4"}, "members", "--api", r.Data) {
					return false
				}
			}
			return true
		})
		tool(t, "apply", "-f", write(t, zone("secret.test")), "--wait", "--api", iad.Data)
		time.Sleep(time.Second)
		refused(t, exitRefused, "no HostedZone", "get", "HostedZone", "secret.test", "--api", data)
	})

	t.Run("whoever is killed, no acknowledged change is lost", func(t *testing.T) {
		var made []string
		var all sync.WaitGroup
		stop := make(chan struct{})
		all.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				name := fmt.Sprintf("made-%d.test", i)
				if runs(t, nil, "apply", "-f", write(t, zone(name)), "--api", iad.Data) {
					made = append(made, name)
				}
			}
		})
		time.Sleep(500 * time.Millisecond)
		leads := icn
		if !runs(t, []string{"leader    icn1"}, "status", "--api", iad.Data) {
			leads = fra
		}
		kill(t, leads.PID)
		eventually(t, 15*time.Second, "changes are taken again", func() bool {
			return runs(t, nil, "apply", "-f", write(t, zone("again.test")), "--api", iad.Data)
		})
		time.Sleep(500 * time.Millisecond)
		rest := icn
		if leads.POP == icn.POP {
			rest = fra
		}
		close(stop)
		all.Wait()
		kill(t, rest.PID) // the majority is gone
		syscall.Kill(iad.PID, syscall.SIGTERM)
		eventually(t, 15*time.Second, "Virginia has ended", func() bool { return syscall.Kill(iad.PID, 0) != nil })

		control := address(3) + ":7947"
		if out := tool(t, "recover", "--data", iad.Data, "--advertise", control); !strings.Contains(out, "iad1 is the only voter now") {
			t.Errorf("recover: %s", out)
		}
		startNode(t, iad.Data, "iad1", address(3), "--region", "us-east-1")
		eventually(t, 15*time.Second, "the survivor goes on", func() bool {
			return runs(t, nil, "apply", "-f", write(t, zone("recovered.test")), "--api", iad.Data)
		})
		have := tool(t, "get", "hostedzones", "--api", iad.Data)
		for _, name := range append(made, "again.test") {
			if !strings.Contains(have, name) {
				t.Errorf("%s was acknowledged and is lost", name)
			}
		}
		t.Logf("%d changes were acknowledged", len(made))
		if len(made) == 0 {
			t.Error("no change was acknowledged")
		}
		once := write(t, tool(t, "token", "create", "--api", iad.Data))
		startNode(t, filepath.Join(t.TempDir(), "new"), "fra6", address(6), "--join", control, "--token", "@"+once)
		eventually(t, 15*time.Second, "it takes new nodes", func() bool {
			return runs(t, []string{"fra6"}, "status", "--api", iad.Data)
		})
	})
}

// curlAsInTheDocs runs the commands of docs/api.md that begin with curl, with the addresses of this network.
func curlAsInTheDocs(t *testing.T, at devRegion) {
	page, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, args := range map[string][]string{
		"ca.pem":   {"keys", "--pem"},
		"me.token": {"access", "create", "me", "--role", "admin"},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(tool(t, append(args, "--api", at.Data)...)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("curl is not installed")
	}
	commands := 0
	text := strings.ReplaceAll(string(page), "\\\n", "")
	for line := range strings.Lines(text) {
		command := strings.TrimSpace(line)
		if !strings.HasPrefix(line, "    curl ") || strings.Contains(line, "…") {
			continue
		}
		commands++
		command = strings.NewReplacer("10.0.0.1:7948", at.API, "/var/lib/perigee", at.Data, "curl ", "curl -sS --fail-with-body ").Replace(command)
		sh := exec.CommandContext(t.Context(), "sh", "-c", command)
		sh.Dir = dir
		if out, err := sh.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", command, err, out)
		}
	}
	if commands == 0 {
		t.Error("docs/api.md has no examples for curl")
	}
}

// shortTemp is a temporary folder whose path leaves room for that of a unix socket.
func shortTemp(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "dev")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestDevLeavesNothingBehindHoweverItEnds(t *testing.T) {
	// Under nohup these tests ignore SIGHUP, and what they start would inherit that; what is caught is not inherited.
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGHUP)
	defer signal.Stop(caught)
	for _, how := range []syscall.Signal{syscall.SIGHUP, syscall.SIGQUIT} {
		t.Run(how.String(), func(t *testing.T) {
			tmp := shortTemp(t)
			dev := perigee(t.Context(), "dev")
			dev.Env = append(dev.Env, "TMPDIR="+tmp)
			if err := dev.Start(); err != nil {
				t.Fatal(err)
			}
			eventually(t, 20*time.Second, "it has begun", func() bool {
				files, _ := filepath.Glob(filepath.Join(tmp, "*", layoutFileName))
				return len(files) > 0
			})
			dev.Process.Signal(how)
			defer time.AfterFunc(time.Minute, func() { dev.Process.Kill() }).Stop()
			if err := dev.Wait(); err != nil {
				t.Error(err)
			}
			if left, _ := os.ReadDir(tmp); len(left) > 0 {
				t.Errorf("it leaves %s behind", left)
			}
		})
	}
	t.Run("a reader of its output that leaves", func(t *testing.T) {
		tmp := shortTemp(t)
		dev := perigee(t.Context(), "dev")
		dev.Env = append(dev.Env, "TMPDIR="+tmp)
		out, err := dev.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := dev.Start(); err != nil {
			t.Fatal(err)
		}
		out.Close()
		defer time.AfterFunc(time.Minute, func() { dev.Process.Kill() }).Stop()
		if err := dev.Wait(); err != nil {
			t.Error(err)
		}
		if left, _ := os.ReadDir(tmp); len(left) > 0 {
			t.Errorf("it leaves %s behind", left)
		}
	})
}
