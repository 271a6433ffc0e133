package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// asPerigee makes the test binary be perigee: dev starts its children from its own executable.
const asPerigee = "PERIGEE_TEST_AS_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asPerigee) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func perigee(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, os.Args[0], args...)
	c.Env = append(os.Environ(), asPerigee+"=1", "GORACE=atexit_sleep_ms=0")
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	c.WaitDelay = time.Minute
	return c
}

// tool runs a command of the tool and returns what it printed.
func tool(t *testing.T, args ...string) string {
	t.Helper()
	code, out, said := do(t, args...)
	if code != 0 {
		t.Fatalf("perigee %s: exit code %d\n%s%s", strings.Join(args, " "), code, out, said)
	}
	return out
}

// network is perigee dev as it runs.
type network struct {
	devFile
	dir string
	cmd *exec.Cmd
	out *bytes.Buffer // to be read after it ended
}

// startDev starts perigee dev and returns when dev.json is there. It ends with the test, as Ctrl-C would end it.
func startDev(t *testing.T, args ...string) *network {
	t.Helper()
	return startDevIn(t, t.TempDir(), args...)
}

func startDevIn(t *testing.T, dir string, args ...string) *network {
	t.Helper()
	n := &network{dir: dir, out: new(bytes.Buffer)}
	n.cmd = perigee(context.Background(), append([]string{"dev", "--dir", n.dir}, args...)...)
	n.cmd.Stdout, n.cmd.Stderr = n.out, n.out
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- n.cmd.Wait() }()
	t.Cleanup(func() {
		n.cmd.Process.Signal(os.Interrupt)
		if err := <-ended; err != nil {
			t.Errorf("perigee dev: %v\n%s", err, n.out)
		}
		for _, pid := range n.pids() {
			if syscall.Kill(pid, 0) == nil {
				t.Errorf("process %d was left behind", pid)
			}
		}
	})
	for {
		data, err := os.ReadFile(filepath.Join(n.dir, devFileName))
		if err == nil {
			if err := json.Unmarshal(data, &n.devFile); err != nil {
				t.Fatal(err)
			}
			return n
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("perigee dev ended: %v\n%s", err, n.out)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (n *network) pids() []int {
	var pids []int
	for _, r := range n.Regions {
		pids = append(pids, r.PID)
	}
	for _, t := range n.Targets {
		pids = append(pids, t.PID)
	}
	return pids
}

func (n *network) region(t *testing.T, pop string) devRegion {
	t.Helper()
	i := slices.IndexFunc(n.Regions, func(r devRegion) bool { return r.POP == pop })
	if i < 0 {
		t.Fatalf("no POP %s in %+v", pop, n.Regions)
	}
	return n.Regions[i]
}

// get asks a POP for a path of the distribution.
func (n *network) get(t *testing.T, r devRegion, path string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+r.HTTP+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = n.Distribution
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(body)
}

// nearest asks a POP's name server which POP is nearest to a subnet.
func (n *network) nearest(t *testing.T, at devRegion, subnet string) string {
	t.Helper()
	prefix := netip.MustParsePrefix(subnet)
	q := new(dns.Msg).SetQuestion(dns.Fqdn(n.Distribution), dns.TypeA)
	q.SetEdns0(1232, false)
	q.IsEdns0().Option = append(q.IsEdns0().Option, &dns.EDNS0_SUBNET{
		Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: uint8(prefix.Bits()), Address: prefix.Addr().AsSlice(),
	})
	res, err := dns.ExchangeContext(t.Context(), q, at.DNS)
	if err != nil || len(res.Answer) == 0 {
		return fmt.Sprintf("no answer: %v", err)
	}
	a := res.Answer[0].(*dns.A).A.String()
	for _, r := range n.Regions {
		if host, _, _ := net.SplitHostPort(r.HTTP); host == a {
			return r.POP
		}
	}
	return a
}

// flow opens a TCP connection, sends a line, half-closes, and returns the greeting and the echo.
func flow(t *testing.T, address string) (greeting, echo string, err error) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		return "", "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, "hello\n"); err != nil {
		return "", "", err
	}
	conn.(*net.TCPConn).CloseWrite()
	r := bufio.NewReader(conn)
	if greeting, err = r.ReadString('\n'); err != nil {
		return "", "", err
	}
	rest, err := io.ReadAll(r)
	return strings.TrimSpace(greeting), string(rest), err
}

// kill kills a process and returns when it is gone.
func kill(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, fmt.Sprintf("process %d is gone", pid), func() bool { return syscall.Kill(pid, 0) != nil })
}

// eventually asks until the claim holds; the bound is part of the claim.
func eventually(t *testing.T, within time.Duration, claim string, f func() bool) {
	t.Helper()
	began := time.Now()
	for !f() {
		if time.Since(began) > within {
			t.Fatalf("not within %v: %s", within, claim)
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Logf("%s, after %v", claim, time.Since(began).Round(10*time.Millisecond))
}

func TestThreeRegionsOfRealProcesses(t *testing.T) {
	n := startDev(t)
	icn, fra, iad := n.region(t, "icn1"), n.region(t, "fra1"), n.region(t, "iad1")

	t.Run("a page is missed once and then hit, at every POP", func(t *testing.T) {
		for _, r := range n.Regions {
			res, body := n.get(t, r, "/")
			if res.StatusCode != 200 || res.Header.Get("X-Cache") != "Miss from perigee" || !strings.Contains(body, "Perigee") {
				t.Fatalf("%s: %s, X-Cache %q", r.POP, res.Status, res.Header.Get("X-Cache"))
			}
			res, _ = n.get(t, r, "/")
			if res.Header.Get("X-Cache") != "Hit from perigee" || res.Header.Get("Age") == "" {
				t.Fatalf("%s: X-Cache %q, Age %q", r.POP, res.Header.Get("X-Cache"), res.Header.Get("Age"))
			}
		}
	})

	t.Run("the same over HTTPS", func(t *testing.T) {
		client := &http.Client{Transport: &http.Transport{
			TLSClientConfig:   &tls.Config{InsecureSkipVerify: true, ServerName: n.Distribution},
			ForceAttemptHTTP2: true,
		}}
		defer client.CloseIdleConnections()
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+fra.HTTPS+"/", nil)
		req.Host = n.Distribution
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != 200 || res.ProtoMajor != 2 {
			t.Fatalf("%s %s", res.Proto, res.Status)
		}
	})

	t.Run("every subnet is led to its nearest POP by every server", func(t *testing.T) {
		for subnet, want := range map[string]string{"1.208.0.0/16": "icn1", "84.128.0.0/16": "fra1", "200.147.0.0/16": "iad1"} {
			for _, r := range n.Regions {
				if got := n.nearest(t, r, subnet); got != want {
					t.Errorf("%s leads %s to %s, want %s", r.POP, subnet, got, want)
				}
			}
		}
	})

	t.Run("the load balancer's targets take turns", func(t *testing.T) {
		lb, seen := strings.Replace(icn.HTTP, ":8080", ":8081", 1), map[string]int{}
		for range 10 {
			res, err := http.Get("http://" + lb + "/region")
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			seen[res.Header.Get("X-Target")]++
		}
		if seen["icn-a"] != 5 || seen["icn-b"] != 5 {
			t.Errorf("got %v, want five each", seen)
		}
	})

	t.Run("all nodes say the same, and any takes a change", func(t *testing.T) {
		yaml := filepath.Join(t.TempDir(), "more.yaml")
		os.WriteFile(yaml, []byte("kind: HostedZone\nname: more.test\nrecords:\n  - {name: www, type: A, values: [192.0.2.7]}\n"), 0o600)
		tool(t, "apply", "-f", yaml, "--api", iad.Data)
		for _, r := range n.Regions {
			eventually(t, 10*time.Second, r.POP+" answers for the new zone", func() bool {
				res, err := dns.ExchangeContext(t.Context(), new(dns.Msg).SetQuestion("www.more.test.", dns.TypeA), r.DNS)
				return err == nil && len(res.Answer) == 1
			})
		}
		eventually(t, 10*time.Second, "status is the same at all", func() bool {
			first := tool(t, "status", "--api", icn.Data)
			return tool(t, "status", "--api", fra.Data) == first && tool(t, "status", "--api", iad.Data) == first
		})
		os.WriteFile(yaml, []byte("kind: LoadBalancer\nname: web-icn\nregion: ap-northeast-2\nlisteners:\n  - protocol: HTTP\n    port: 8081\n    default: {forward: wbe-icn}\n"), 0o600)
		out, err := perigee(t.Context(), "apply", "-f", yaml, "--api", fra.Data).CombinedOutput()
		want := `more.yaml:7: LoadBalancer web-icn: listeners[0].default.forward: no target group "wbe-icn"`
		if e, ok := err.(*exec.ExitError); !ok || e.ExitCode() != exitRefused || !strings.Contains(string(out), want) {
			t.Errorf("a wrong spec: %v\n%s\nwant exit code %d and %s", err, out, exitRefused, want)
		}
	})

	t.Run("explain says what is served", func(t *testing.T) {
		if out := tool(t, "explain", "dns", n.Distribution, "--from", "1.208.0.1", "--api", fra.Data); !strings.Contains(out, "icn1") {
			t.Errorf("explain dns:\n%s", out)
		}
		if out := tool(t, "explain", "dns", n.Distribution, "--subnet", "84.128.0.0/16", "--from", "1.208.0.1", "--api", fra.Data); !strings.Contains(out, "fra1") || strings.Contains(out, "chosen: icn1") {
			t.Errorf("explain dns of a subnet:\n%s", out)
		}
		if out := tool(t, "explain", "http", "http://"+n.Distribution+"/", "--api", icn.Data); !strings.Contains(out, "fresh") {
			t.Errorf("explain http:\n%s", out)
		}
		if out := tool(t, "explain", "tcp", n.Accelerator, "--api", iad.Data); !strings.Contains(out, "eu-central-1") {
			t.Errorf("explain tcp:\n%s", out)
		}
		own := strings.Replace(iad.HTTP, ":8080", ":7777", 1)
		if out := tool(t, "explain", "tcp", own, "--api", iad.Data); !strings.Contains(out, "leads where "+n.Accelerator+" does") || !strings.Contains(out, "eu-central-1") {
			t.Errorf("explain tcp of a node's own door:\n%s", out)
		}
		if out, err := perigee(t.Context(), "explain", "tcp", own, "--api", fra.Data).CombinedOutput(); err == nil || !strings.Contains(string(out), "no accelerator") {
			t.Errorf("explain tcp of another node's own door: %v\n%s", err, out)
		}
	})

	t.Run("with the clients a user has", func(t *testing.T) { realClients(t, n) })

	t.Run("orders are in effect everywhere when the command returns", func(t *testing.T) { orders(t, n) })

	t.Run("a killed region's targets hand over to another region at once", func(t *testing.T) {
		door := strings.Replace(iad.HTTP, ":8080", ":7777", 1)
		greeting, echo, err := flow(t, door)
		if err != nil || !strings.HasPrefix(greeting, "us-east-1 ") || echo != "hello\n" {
			t.Fatalf("through Virginia: %q %q %v", greeting, echo, err)
		}
		for _, target := range n.Targets {
			if target.Region == "us-east-1" {
				kill(t, target.PID)
			}
		}
		if greeting, echo, err = flow(t, door); err != nil || !strings.HasPrefix(greeting, "eu-central-1 ") || echo != "hello\n" {
			t.Fatalf("after the kill: %q %q %v", greeting, echo, err)
		}
		for range 10 { // whichever POP the kernel chooses
			if greeting, echo, err = flow(t, n.Accelerator); err != nil || strings.HasPrefix(greeting, "us-east-1 ") || echo != "hello\n" {
				t.Fatalf("after the kill, by anycast: %q %q %v", greeting, echo, err)
			}
		}
		if res, body := n.get(t, iad, "/region"); res.StatusCode != 200 || strings.HasPrefix(body, "us-east-1") {
			t.Errorf("a page at Virginia, whose targets are dead: %s %s", res.Status, body)
		}
	})

	t.Run("killing the leader costs no request, and changes go on", func(t *testing.T) {
		kill(t, icn.PID)
		for range 20 {
			if res, _ := n.get(t, iad, "/region"); res.StatusCode != 200 {
				t.Errorf("a page at Virginia: %s", res.Status)
			}
		}
		eventually(t, 10*time.Second, "Korea is led elsewhere", func() bool {
			at := n.nearest(t, fra, "1.208.0.0/16")
			return at == "fra1" || at == "iad1"
		})
		yaml := filepath.Join(t.TempDir(), "after.yaml")
		os.WriteFile(yaml, []byte("kind: HostedZone\nname: after.test\n"), 0o600)
		eventually(t, 15*time.Second, "a change is taken", func() bool {
			return perigee(t.Context(), "apply", "-f", yaml, "--api", iad.Data).Run() == nil
		})
		eventually(t, 10*time.Second, "a flow to the anycast address ends somewhere", func() bool {
			greeting, _, err := flow(t, n.Accelerator)
			return err == nil && greeting != ""
		})
	})
}

// orders gives orders from the command line, and looks at what they do at every node.
func orders(t *testing.T, n *network) {
	icn, fra := n.region(t, "icn1"), n.region(t, "fra1")
	at := []string{"--api", fra.Data}
	order := func(words string, args ...string) string {
		t.Helper()
		out := tool(t, append(args, at...)...)
		if !strings.Contains(out, words) {
			t.Errorf("perigee %s: %q is not in\n%s", strings.Join(args, " "), words, out)
		}
		return out
	}

	n.get(t, icn, "/")
	order("purged at 3 of 3 nodes", "purge", "site", "/*")
	if res, _ := n.get(t, icn, "/"); res.Header.Get("X-Cache") != "Miss from perigee" {
		t.Errorf("after the purge: X-Cache %q", res.Header.Get("X-Cache"))
	}
	n.get(t, icn, "/")
	order("done by all live nodes", "purge", "site", "/", "--soft", "--wait")
	if res, _ := n.get(t, icn, "/"); !strings.Contains(res.Header.Get("Cache-Status"), "fwd=stale") {
		t.Errorf("after the soft purge: Cache-Status %q", res.Header.Get("Cache-Status"))
	}
	order("purged at 3 of 3 nodes", "purge", "site", "/*", "--host", "elsewhere.example")
	order("purged at 3 of 3 nodes", "purge", "site", "--tag", "nothing-has-it")
	if res, _ := n.get(t, icn, "/"); res.Header.Get("X-Cache") != "Hit from perigee" {
		t.Errorf("after purges of other things: X-Cache %q", res.Header.Get("X-Cache"))
	}
	for _, args := range [][]string{{"purge", "site"}, {"purge"}} {
		if code, _, said := do(t, append(args, at...)...); code != exitUsage || !strings.Contains(said, "usage: ") {
			t.Errorf("%q: exit code %d, %s", args, code, said)
		}
	}
	if code, _, said := do(t, append([]string{"purge", "nosuch", "/*"}, at...)...); code != exitRefused || !strings.Contains(said, "there is no distribution nosuch") {
		t.Errorf("a purge of nothing: exit code %d, %s", code, said)
	}

	order("drained at 3 of 3 nodes", "drain", "ap-northeast-2", "--for", "10m", "--reason", "new kernel")
	for _, r := range n.Regions {
		if got := n.nearest(t, r, "1.208.0.0/16"); got == "icn1" {
			t.Errorf("%s leads Korea to the drained POP", r.POP)
		}
	}
	order("new kernel", "drain")
	order("drained: region ap-northeast-2", "members")
	order("icn1: drained", "explain", "dns", n.Distribution, "--from", "1.208.0.1")
	order("undrained at 3 of 3 nodes", "undrain", "ap-northeast-2")
	if got := n.nearest(t, fra, "1.208.0.0/16"); got != "icn1" {
		t.Errorf("after undrain Korea is led to %s", got)
	}
	if code, _, said := do(t, append([]string{"undrain", "ap-northeast-2"}, at...)...); code != exitUsage || !strings.Contains(said, "is not drained") {
		t.Errorf("undrain of what is not: exit code %d, %s", code, said)
	}

	order("blocked at 3 of 3 nodes", "block", "127.0.0.0/8")
	if res, err := http.Get("http://" + icn.HTTP + "/"); err == nil {
		res.Body.Close()
		t.Error("a blocked client is served")
	}
	order("127.0.0.0/8", "block")
	order("unblocked at 3 of 3 nodes", "unblock", "127.0.0.0/8")
	if res, _ := n.get(t, icn, "/"); res.StatusCode != 200 {
		t.Errorf("after unblock: %s", res.Status)
	}

	events := order("drain region ap-northeast-2", "events")
	if !strings.Contains(events, "POP icn1 answers no more  ← #") {
		t.Errorf("the events lack what followed from the drain, with its cause:\n%s", events)
	}
	one := order("observers", "health", "target/web-fra/"+strings.Replace(fra.HTTP, ":8080", ":9001", 1))
	if !strings.Contains(one, "local         healthy") || !strings.Contains(one, "healthy in 1 of 1 views") {
		t.Errorf("all that is known of one target:\n%s", one)
	}
	order("measured", "members", "--from", "iad1")
}

// realClients shows the same with curl, dig and nc.
func realClients(t *testing.T, n *network) {
	icn, fra := n.region(t, "icn1"), n.region(t, "fra1")
	host := func(address string) string { h, _, _ := net.SplitHostPort(address); return h }
	port := func(address string) string { _, p, _ := net.SplitHostPort(address); return p }
	for _, c := range []struct {
		claim string
		args  []string
		stdin string
		want  []string
	}{
		{"a hit", []string{"curl", "-sSi", "-H", "Host: " + n.Distribution, "http://" + icn.HTTP + "/"}, "", []string{"HTTP/1.1 200", "X-Cache: Hit from perigee", "Age: "}},
		{"a miss over HTTPS", []string{"curl", "-sSik", "--resolve", n.Distribution + ":" + port(icn.HTTPS) + ":" + host(icn.HTTPS), "https://" + n.Distribution + ":" + port(icn.HTTPS) + "/"}, "", []string{"200", "x-cache: Miss from perigee"}},
		{"a hit over HTTPS", []string{"curl", "-sSik", "--resolve", n.Distribution + ":" + port(icn.HTTPS) + ":" + host(icn.HTTPS), "https://" + n.Distribution + ":" + port(icn.HTTPS) + "/"}, "", []string{"200", "x-cache: Hit from perigee"}},
		{"a subnet", []string{"dig", "@" + host(fra.DNS), "-p", port(fra.DNS), n.Distribution, "A", "+subnet=1.208.0.0/16"}, "", []string{"status: NOERROR", "flags: qr aa", host(icn.HTTP), "CLIENT-SUBNET: 1.208.0.0/16/"}},
		{"SOA", []string{"dig", "@" + host(fra.DNS), "-p", port(fra.DNS), n.Zone, "SOA", "+short"}, "", []string{"ns-", "7200 900 1209600 86400"}},
		{"NS", []string{"dig", "@" + host(fra.DNS), "-p", port(fra.DNS), n.Zone, "NS", "+short"}, "", []string{"ns-icn1." + n.Zone + ".", "ns-fra1." + n.Zone + ".", "ns-iad1." + n.Zone + "."}},
		{"NXDOMAIN", []string{"dig", "@" + host(fra.DNS), "-p", port(fra.DNS), "no." + n.Zone, "A"}, "", []string{"status: NXDOMAIN", "flags: qr aa", "AUTHORITY: 1", "SOA"}},
		{"NODATA", []string{"dig", "@" + host(fra.DNS), "-p", port(fra.DNS), n.Distribution, "MX"}, "", []string{"status: NOERROR", "ANSWER: 0", "AUTHORITY: 1", "SOA"}},
		{"TCP", []string{"dig", "@" + host(fra.DNS), "-p", port(fra.DNS), n.Distribution, "A", "+tcp"}, "", []string{"status: NOERROR", "(TCP)"}},
		{"a flow", []string{"nc", "-N", host(n.Accelerator), port(n.Accelerator)}, "over the ocean\n", []string{"over the ocean\n"}},
	} {
		if _, err := exec.LookPath(c.args[0]); err != nil {
			if os.Getenv("PERIGEE_REAL_CLIENTS") == "required" {
				t.Errorf("%s: %v", c.claim, err)
			} else {
				t.Logf("%s: not shown with %s, which is not installed", c.claim, c.args[0])
			}
			continue
		}
		cmd := exec.CommandContext(t.Context(), c.args[0], c.args[1:]...)
		cmd.Stdin = strings.NewReader(c.stdin)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s: %q: %v\n%s", c.claim, c.args, err, out)
		}
		for _, want := range c.want {
			if !strings.Contains(strings.ReplaceAll(string(out), "; ", " "), want) && !strings.Contains(string(out), want) {
				t.Errorf("%s: %q lacks %q:\n%s", c.claim, c.args, want, out)
			}
		}
	}
}

func TestAHundredClientsAtOnceAreOneRequestToTheUsersOrigin(t *testing.T) {
	var requests atomic.Int32
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/big" {
			requests.Add(1)
			w.Header().Set("Cache-Control", "max-age=60")
		}
		for range 50 { // slowly enough that all clients are there before it ends
			w.Write(bytes.Repeat([]byte("x"), 4096))
			w.(http.Flusher).Flush()
			time.Sleep(time.Millisecond)
		}
	}))
	defer origin.Close()
	n := startDev(t, origin.URL)
	var all sync.WaitGroup
	for range 100 {
		all.Go(func() {
			if res, body := n.get(t, n.Regions[0], "/big"); res.StatusCode != 200 || len(body) != 50*4096 {
				t.Errorf("%s with %d bytes", res.Status, len(body))
			}
		})
	}
	all.Wait()
	if got := requests.Load(); got != 1 {
		t.Errorf("the origin saw %d requests, want 1", got)
	}
}

func TestAFolderIsServedAndTheNetworkComesBackFromItsData(t *testing.T) {
	site, dir := t.TempDir(), t.TempDir()
	os.WriteFile(filepath.Join(site, "hello.txt"), []byte("from a folder\n"), 0o600)
	yaml := filepath.Join(t.TempDir(), "kept.yaml")
	os.WriteFile(yaml, []byte("kind: HostedZone\nname: kept.test\n"), 0o600)
	t.Run("the first time", func(t *testing.T) {
		n := startDevIn(t, dir, site)
		if _, body := n.get(t, n.Regions[2], "/hello.txt"); body != "from a folder\n" {
			t.Errorf("got %q", body)
		}
		tool(t, "apply", "-f", yaml, "--api", n.Regions[1].Data)
	})
	t.Run("again, without the token that the nodes joined by", func(t *testing.T) {
		if err := os.Remove(filepath.Join(dir, "token")); err != nil {
			t.Fatal(err)
		}
		n := startDevIn(t, dir, site)
		for _, r := range n.Regions {
			if out := tool(t, "get", "hostedzones", "--api", r.Data); !strings.Contains(out, "kept.test") {
				t.Errorf("%s has lost what was agreed:\n%s", r.POP, out)
			}
		}
	})
}

func TestWhatANodeCannotDoItSaysInOneLine(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	free := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}
	file := filepath.Join(t.TempDir(), "file")
	os.WriteFile(file, nil, 0o600)
	base := func(extra ...string) []string {
		return append([]string{"node", "--region", "eu-central-1", "--pop", "fra1", "--gossip", free(), "--control", free(),
			"--api", free(), "--http", free(), "--https", "", "--dns", free()}, extra...)
	}
	for _, c := range []struct {
		claim string
		args  []string
		code  int
		want  string
	}{
		{"a wrong seed", base("--data", t.TempDir(), "--join", "127.0.0.1:1", "--token", "pgt1.AAAA"), exitFailed, "token"},
		{"no token", base("--data", t.TempDir(), "--join", "127.0.0.1:1"), exitFailed, "--token"},
		{"neither bootstrap nor join", base("--data", t.TempDir()), exitFailed, "--bootstrap"},
		{"a taken port", base("--data", t.TempDir(), "--bootstrap", "--http", taken.Addr().String()), exitFailed, "address already in use"},
		{"a taken control port", base("--data", t.TempDir(), "--bootstrap", "--control", taken.Addr().String()), exitFailed, "address already in use"},
		{"a data folder that is a file", base("--data", file, "--bootstrap"), exitFailed, file},
		{"a name that is none", base("--data", t.TempDir(), "--bootstrap", "--name", "Über"), exitFailed, "--name"},
		{"an address that is none", base("--data", filepath.Join(t.TempDir(), "new"), "--bootstrap", "--http", "foo"), exitFailed, "--http"},
		{"no such command of a node", []string{"node", "lsit"}, exitUsage, "list, revoke or forget"},
		{"an unknown flag", []string{"node", "--sideways"}, exitUsage, "--sideways"},
		{"an unknown command", []string{"fly"}, exitUsage, "fly"},
	} {
		out, err := perigee(t.Context(), c.args...).CombinedOutput()
		lines := strings.Count(string(out), "\n")
		e, ok := err.(*exec.ExitError)
		if !ok || e.ExitCode() != c.code || lines != 1 || !strings.Contains(string(out), c.want) {
			t.Errorf("%s: %v, want exit code %d and one line with %q:\n%s", c.claim, err, c.code, c.want, out)
		}
	}
}
