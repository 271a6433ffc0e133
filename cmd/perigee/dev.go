package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/perigee-net/perigee/cluster/file"
	"github.com/perigee-net/perigee/node/api"
	"github.com/perigee-net/perigee/testbed/demo"
	"github.com/spf13/cobra"
)

// dev.json: what runs where, for scripts.
type devFile struct {
	Regions      []devRegion `json:"regions"`
	Targets      []devTarget `json:"targets"`
	Distribution string      `json:"distribution"` // host name
	Zone         string      `json:"zone"`
	Accelerator  string      `json:"accelerator"` // host:port
}

type devRegion struct {
	Name  string `json:"name"`
	POP   string `json:"pop"`
	Node  string `json:"node"`
	PID   int    `json:"pid"`
	HTTP  string `json:"http"`
	HTTPS string `json:"https"`
	DNS   string `json:"dns"`
	API   string `json:"api"`  // HTTPS, with an access token
	Data  string `json:"data"` // the data folder, with the API's unix socket
}

type devTarget struct {
	Name    string `json:"name"`
	Region  string `json:"region"`
	Address string `json:"address"` // of the web server
	TCP     string `json:"tcp"`     // of the service behind the accelerator
	PID     int    `json:"pid"`
}

const devFileName = "dev.json"

// Ports of perigee dev: the same on the address of every region.
const (
	devHTTP        = 8080
	devHTTPS       = 8443
	devDNS         = 8053
	devLB          = 8081
	devAccelerator = 7777
	devTargetHTTP  = 9001 // and the next, for the second target
	devTargetTCP   = 9101
	devGossip      = 7946
	devControl     = 7947
	devAPI         = 7948
)

// maxSocketPath is how long the path of a unix socket may be, in bytes, where it may be shortest.
const maxSocketPath = 103

// devReady bounds the time from start to serving, devSteps how it is looked for.
const (
	devReady = 60 * time.Second
	devSteps = 50 * time.Millisecond
)

func newDev() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "dev [DIR|URL]",
		Short: "Start three regions on this machine, with a demo to try",
		Long: "Start three regions on this machine: Seoul, Frankfurt and Virginia, one POP and one node each, with two\n" +
			"targets behind a load balancer in every region. Each node and each target is a process of its own: kill one\n" +
			"and see what happens. DIR is a folder to serve, URL an origin of your own; with neither, a small site is\n" +
			"served. Ctrl-C ends all of it.",
		Example: "  perigee dev\n  perigee dev ./public --dir /tmp/perigee\n  perigee dev http://localhost:3000",
		Args:    maxArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			d := dev{stdout: c.OutOrStdout(), dir: dir}
			if len(args) == 1 {
				if err := d.origin(args[0]); err != nil {
					return err
				}
			}
			return d.run(c.Context())
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "keep the data in this folder, and write dev.json there when ready")
	return c
}

// dev is one run of perigee dev.
type dev struct {
	stdout io.Writer
	dir    string // of the data
	site   string // a folder to serve
	url    string // an origin of the user's own

	base     int // the second octet of the addresses: 127.base.region.1
	layout   demo.Layout
	file     devFile
	mu       sync.Mutex // children, stopping
	children []*child
	stopping bool
}

// child is one process that dev started.
type child struct {
	name  string
	cmd   *exec.Cmd
	stdin io.Closer
	log   *os.File
	ended chan struct{}
}

// origin takes the argument of the command: a folder or a URL.
func (d *dev) origin(arg string) error {
	if strings.Contains(arg, "://") {
		u, err := url.Parse(arg)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return usagef("%q is no http or https URL", arg)
		}
		if strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
			return usagef("%s: an origin is a scheme and a host; paths come from the viewers", arg)
		}
		d.url = u.Scheme + "://" + u.Host
		return nil
	}
	info, err := os.Stat(arg)
	if _, port, isAddress := strings.Cut(arg, ":"); err != nil && isAddress && port != "" {
		return usagef("%s is no folder; for an origin say http://%s", arg, arg)
	}
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return usagef("%s is not a folder", arg)
	}
	d.site, err = filepath.Abs(arg)
	return err
}

func (d *dev) run(ctx context.Context) (err error) {
	// Whatever ends it (a terminal that closes, a reader of its output that leaves), the processes and the folder go too.
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGQUIT, syscall.SIGPIPE)
	defer stop()
	again := false
	if d.dir == "" {
		if d.dir, err = os.MkdirTemp("", "perigee-dev-"); err != nil {
			return err
		}
		defer os.RemoveAll(d.dir)
	} else {
		if d.dir, err = filepath.Abs(d.dir); err != nil {
			return err
		}
		if err := os.MkdirAll(d.dir, 0o700); err != nil {
			return err
		}
		if again, err = d.remembered(); err != nil {
			return err
		}
	}
	if err := d.place(again); err != nil {
		return err
	}
	if socket := filepath.Join(d.file.Regions[0].Data, api.Socket); len(socket) > maxSocketPath {
		return fmt.Errorf("%s is too long for a unix socket: choose a shorter folder with --dir", socket)
	}
	// The addresses are ours, so no other run is in this folder; what it left says nothing true any more.
	ready := filepath.Join(d.dir, devFileName)
	if err := os.Remove(ready); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	defer os.Remove(ready)
	defer d.stop()
	started := time.Now()
	bounded, cancel := context.WithTimeout(ctx, devReady)
	defer cancel()
	err = d.start(bounded)
	if err == nil {
		err = d.awaitReady(bounded)
	}
	if ctx.Err() != nil {
		return nil // Ctrl-C while it came up
	}
	if err != nil {
		return d.blame(err)
	}
	if err := writeJSON(ready, d.file); err != nil {
		return err
	}
	d.tell(time.Since(started))
	<-ctx.Done()
	fmt.Fprintln(d.stdout, "\nending all of it …")
	return nil
}

// layoutFileName keeps the addresses over restarts in one folder: Raft remembers them.
const layoutFileName = "addresses"

// remembered reads the addresses of an earlier run in this folder.
func (d *dev) remembered() (bool, error) {
	path := filepath.Join(d.dir, layoutFileName)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if d.base, err = strconv.Atoi(strings.TrimSpace(string(data))); err != nil || d.base < 1 || d.base > 254 {
		return false, fmt.Errorf("%s: %q is no number of a loopback network", path, data)
	}
	return true, nil
}

// place finds addresses on the loopback that are free: 127.B.R.1 for region R, 127.B.0.1 for the accelerator.
func (d *dev) place(again bool) error {
	if again {
		if err := d.free(); err != nil {
			return fmt.Errorf("%s was run at 127.%d.0.0 before: %w (does it still run?)", d.dir, d.base, err)
		}
	} else {
		const first, last = 77, 99
		var taken error
		for d.base = first; d.base <= last; d.base++ {
			if taken = d.free(); taken == nil {
				break
			}
		}
		if taken != nil {
			return fmt.Errorf("no free loopback network from 127.%d.0.0 to 127.%d.0.0: %w", first, last, taken)
		}
		if err := os.WriteFile(filepath.Join(d.dir, layoutFileName), fmt.Appendln(nil, d.base), 0o600); err != nil {
			return err
		}
	}
	d.layout = demo.Layout{OriginURL: d.url, Port: devLB, Accelerator: netip.AddrPortFrom(d.address(-1), devAccelerator)}
	d.file = devFile{Distribution: demo.Distribution, Zone: demo.Zone, Accelerator: d.layout.Accelerator.String()}
	for i, r := range demo.Regions() {
		at := func(port int) string { return netip.AddrPortFrom(d.address(i), uint16(port)).String() }
		for j, letter := range []string{"a", "b"} {
			e := demo.Endpoint{
				Name: r.Short + "-" + letter,
				HTTP: netip.AddrPortFrom(d.address(i), uint16(devTargetHTTP+j)),
				TCP:  netip.AddrPortFrom(d.address(i), uint16(devTargetTCP+j)),
			}
			r.Targets = append(r.Targets, e)
			d.file.Targets = append(d.file.Targets, devTarget{Name: e.Name, Region: r.Name, Address: e.HTTP.String(), TCP: e.TCP.String()})
		}
		d.layout.Regions = append(d.layout.Regions, r)
		d.file.Regions = append(d.file.Regions, devRegion{
			Name: r.Name, POP: r.POP, Node: r.POP,
			HTTP: at(devHTTP), HTTPS: at(devHTTPS), DNS: at(devDNS), API: at(devAPI), Data: filepath.Join(d.dir, r.POP),
		})
	}
	return nil
}

// address is that of a region; −1 is the accelerator's.
func (d *dev) address(region int) netip.Addr {
	return netip.AddrFrom4([4]byte{127, byte(d.base), byte(region + 1), 1})
}

// free says whether all ports can be had.
func (d *dev) free() error {
	var held []io.Closer
	defer func() {
		for _, h := range held {
			h.Close()
		}
	}()
	take := func(region, port int, udp bool) error {
		at := netip.AddrPortFrom(d.address(region), uint16(port)).String()
		l, err := net.Listen("tcp", at)
		if err != nil {
			return err
		}
		held = append(held, l)
		if udp {
			p, err := net.ListenPacket("udp", at)
			if err != nil {
				return err
			}
			held = append(held, p)
		}
		return nil
	}
	for region := range demo.Regions() {
		for _, port := range []int{devHTTP, devHTTPS, devLB, devAPI, devTargetHTTP, devTargetHTTP + 1, devTargetTCP, devTargetTCP + 1, devAccelerator} {
			if err := take(region, port, false); err != nil {
				return err
			}
		}
		for _, port := range []int{devDNS, devGossip, devControl} {
			if err := take(region, port, true); err != nil {
				return err
			}
		}
	}
	return take(-1, devAccelerator, false)
}

// start starts the targets and the nodes; the first node makes the cluster, the others join it.
func (d *dev) start(ctx context.Context) error {
	for i, t := range d.file.Targets {
		args := []string{"target", "--name", t.Name, "--region", t.Region, "--http", t.Address, "--tcp", t.TCP}
		if d.site != "" {
			args = append(args, "--site", d.site)
		}
		c, err := d.spawn(t.Name, args)
		if err != nil {
			return err
		}
		d.file.Targets[i].PID = c.cmd.Process.Pid
	}
	token := filepath.Join(d.dir, "token")
	for i, r := range d.file.Regions {
		ip := d.address(i).String()
		args := []string{"node", "--with-parent", "--data", r.Data, "--name", r.Node, "--region", r.Name, "--pop", r.POP,
			"--bind", ip, "--http", r.HTTP, "--https", r.HTTPS, "--dns", r.DNS, "--api", r.API, "--own-doors", "--drain", "0s"}
		switch {
		case i == 0:
			args = append(args, "--bootstrap")
		case !d.joined(i):
			args = append(args, "--join", netip.AddrPortFrom(d.address(0), devControl).String(), "--token", "@"+token)
		}
		c, err := d.spawn(r.Node, args)
		if err != nil {
			return err
		}
		d.file.Regions[i].PID = c.cmd.Process.Pid
		if i > 0 || d.joined(1) && d.joined(2) {
			continue // these nodes know each other: the first has no leader without the others
		}
		if err := d.await(ctx, "the first node to make a token for the others", func(ctx context.Context) error {
			return d.writeToken(ctx, r, token)
		}); err != nil {
			return err
		}
	}
	return nil
}

// joined says whether the node of a region has been in the cluster before.
func (d *dev) joined(region int) bool {
	_, err := os.Stat(filepath.Join(d.file.Regions[region].Data, "node.json"))
	return err == nil
}

// writeToken keeps a join token for the other nodes in a file: a command line can be read by all.
func (d *dev) writeToken(ctx context.Context, first devRegion, path string) error {
	client, err := api.NewClient(first.Data, api.Options{})
	if err != nil {
		return err
	}
	made, err := client.CreateToken(ctx, api.TokenRequest{Uses: len(d.file.Regions) - 1})
	if err != nil {
		return err
	}
	return os.WriteFile(path, []byte(made.Token), 0o600)
}

// spawn starts a child that ends with us: its standard input is a pipe that closes when we are gone.
func (d *dev) spawn(name string, args []string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(d.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	c := &child{name: name, cmd: exec.Command(self, args...), log: log, ended: make(chan struct{})}
	c.cmd.Stdout, c.cmd.Stderr = log, log
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for us; we end them in order
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		log.Close()
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		log.Close()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	d.mu.Lock()
	d.children = append(d.children, c)
	d.mu.Unlock()
	go d.watch(c)
	return c, nil
}

// watch waits for a child, and says so when it ends by itself.
func (d *dev) watch(c *child) {
	err := c.cmd.Wait()
	c.log.Close()
	close(c.ended)
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.stopping {
		fmt.Fprintf(d.stdout, "%s (pid %d) is gone: %v\n", c.name, c.cmd.Process.Pid, cmpErr(err, "it ended"))
	}
}

func cmpErr(err error, none string) any {
	if err == nil {
		return none
	}
	return err
}

// stop ends all children: nodes first, the last one first, so that each can say that it leaves.
func (d *dev) stop() {
	d.mu.Lock()
	d.stopping = true
	children := slices.Clone(d.children)
	d.mu.Unlock()
	slices.Reverse(children)
	for _, c := range children {
		c.cmd.Process.Signal(syscall.SIGTERM)
	}
	late := time.After(stopTime + 5*time.Second)
	for _, c := range children {
		select {
		case <-c.ended:
		case <-late:
			c.cmd.Process.Kill()
			<-c.ended
			late = time.After(0)
		}
		c.stdin.Close()
	}
}

// awaitReady applies the demo and waits until every node runs and sees all of it.
func (d *dev) awaitReady(ctx context.Context) error {
	yaml, err := d.layout.Spec()
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(d.dir, "network.yaml"), yaml, 0o600); err != nil {
		return err
	}
	first, err := api.NewClient(d.file.Regions[0].Data, api.Options{})
	if err != nil {
		return err
	}
	var revision uint64
	if err := d.await(ctx, "the demo to be applied", func(ctx context.Context) error {
		res, err := first.Apply(ctx, api.ApplyRequest{Files: []api.File{{Name: "network.yaml", Data: string(yaml)}}, Note: "perigee dev"})
		revision = res.Revision
		var refusal *api.Error
		if errors.As(err, &refusal) && len(refusal.Faults) > 0 {
			return permanent{err}
		}
		return err
	}); err != nil {
		return err
	}
	for _, r := range d.file.Regions {
		c, err := api.NewClient(r.Data, api.Options{})
		if err != nil {
			return err
		}
		if err := d.await(ctx, r.Node+" to see three members, all targets healthy, at revision "+fmt.Sprint(revision), func(ctx context.Context) error {
			return d.complete(ctx, c, revision)
		}); err != nil {
			return err
		}
	}
	return nil
}

// complete says what one node still lacks.
func (d *dev) complete(ctx context.Context, c *api.Client, revision uint64) error {
	st, err := c.Status(ctx)
	if err != nil {
		return err
	}
	if len(st.Members) != len(d.file.Regions) {
		return fmt.Errorf("it sees %d members", len(st.Members))
	}
	for _, m := range st.Members {
		if m.Running < revision || m.Refused != "" {
			return fmt.Errorf("%s runs revision %d %s", m.Name, m.Running, m.Refused)
		}
		if !m.Vote {
			return fmt.Errorf("%s does not vote yet", m.Name)
		}
		if !m.Up && m.Name != st.Node {
			return fmt.Errorf("no link to %s yet", m.Name)
		}
	}
	all, err := c.Health(ctx, api.HealthQuery{})
	if err != nil {
		return err
	}
	healthy := 0
	for _, e := range all {
		if e.Healthy {
			healthy++
		}
	}
	if want := 2 * len(d.file.Targets); healthy < want {
		return fmt.Errorf("%d of %d targets' ports are healthy", healthy, want)
	}
	return nil
}

// permanent is an error that waiting does not mend.
type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// await asks again until f has no error, the context ends, or a child is gone.
func (d *dev) await(ctx context.Context, what string, f func(context.Context) error) error {
	for {
		once, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := f(once)
		cancel()
		if err == nil || errors.As(err, new(permanent)) {
			return err
		}
		for _, c := range d.children {
			select {
			case <-c.ended:
				return fmt.Errorf("%s ended while it came up", c.name)
			default:
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited for %s: %w", what, err)
		case <-time.After(devSteps):
		}
	}
}

// blame adds the last line of the logs of children that ended by themselves.
func (d *dev) blame(err error) error {
	for _, c := range d.children {
		select {
		case <-c.ended:
		default:
			continue
		}
		data, _ := os.ReadFile(c.log.Name())
		lines := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
		err = fmt.Errorf("%w\n%s: %s", err, c.name, lines[len(lines)-1])
	}
	return err
}

// tell prints what runs where and what to try.
func (d *dev) tell(took time.Duration) {
	w := d.stdout
	fmt.Fprintf(w, "three regions are up after %.1f s\n\n", took.Seconds())
	t := newTable("REGION", "CITY", "POP", "PID", "HTTP", "HTTPS", "DNS", "API", "TARGETS (PID)")
	for i, r := range d.file.Regions {
		var targets []string
		for _, e := range d.file.Targets {
			if e.Region == r.Name {
				targets = append(targets, fmt.Sprintf("%s (%d)", e.Name, e.PID))
			}
		}
		t.row(r.Name, d.layout.Regions[i].City, r.POP, strconv.Itoa(r.PID), r.HTTP, r.HTTPS, r.DNS, r.API, strings.Join(targets, ", "))
	}
	t.print(w)
	var killable []string
	for _, e := range d.file.Targets {
		if e.Region == d.file.Regions[2].Name {
			killable = append(killable, strconv.Itoa(e.PID))
		}
	}
	icn, fra, iad := d.file.Regions[0], d.file.Regions[1], d.file.Regions[2]
	dig := func(at devRegion) string {
		return "dig @" + strings.Replace(at.DNS, ":", " -p ", 1) + " " + d.file.Distribution + " A +short"
	}
	_, port, _ := net.SplitHostPort(icn.HTTP)
	host := func(r devRegion) string { h, _, _ := net.SplitHostPort(r.HTTP); return h }
	fmt.Fprintf(w, `
a page, twice: first a Miss, then a Hit with its Age
  curl -si --resolve %[1]s:%[2]s:%[3]s http://%[1]s:%[2]s/ | grep -iE '^(HTTP|x-cache|age|x-perigee-pop)'
who is nearest? Korea, Germany, Brazil
  %[4]s +subnet=1.208.0.0/16
  %[4]s +subnet=84.128.0.0/16
  %[4]s +subnet=200.147.0.0/16
a flow that enters at a POP and ends in the nearest region with a healthy endpoint
  nc %[5]s
the same through Virginia's door; then kill Virginia's targets and try again: the flow crosses the backbone
  nc %[6]s %[7]d
  kill -9 %[14]s
the network, and why
  %[15]s status --api %[8]s
  %[15]s nodes --api %[8]s
  %[15]s explain dns %[1]s --from 1.208.0.1 --api %[8]s
  %[15]s explain tcp %[9]s --api %[10]s
kill Seoul, and ask the others again: who is nearest to Korea now?
  kill -9 %[11]d; sleep 10; %[12]s +subnet=1.208.0.0/16

the API, for curl and others: a token, the authority to know the nodes by, and a question
  %[15]s access create me --role admin --api %[8]s > me.token
  %[15]s keys --pem --api %[8]s > ca.pem
  curl --cacert ca.pem -H "Authorization: Bearer $(cat me.token)" https://%[16]s/v1/status

network.yaml, the logs and the data are in %[13]s; Ctrl-C ends all of it
`, d.file.Distribution, port, host(icn), dig(fra), strings.Replace(d.file.Accelerator, ":", " ", 1), host(iad), devAccelerator,
		fra.Data, d.file.Accelerator, iad.Data, icn.PID, dig(fra), d.dir, strings.Join(killable, " "), os.Args[0], fra.API)
}

// writeJSON writes the file whole or not at all.
func writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return file.ReplaceBytes(path, append(data, '\n'))
}
