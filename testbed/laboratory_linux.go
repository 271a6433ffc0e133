package testbed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/node/api"
	"github.com/perigee-net/perigee/testbed/bed"
	"github.com/perigee-net/perigee/testbed/demo"
	"github.com/perigee-net/perigee/testbed/faulty"
	"github.com/perigee-net/perigee/testbed/wan"
)

// Laboratory lets scenarios run on a bed: real kernels, real processes, the time of the machine. Its steps are those of a
// World, and what only a kernel has. It changes the bed, and leaves it as the steps do.
type Laboratory struct {
	bed   *bed.Bed
	files fs.FS
}

// NewLaboratory is a bed as scenarios know it; files is where apply finds its files.
func NewLaboratory(b *bed.Bed, files fs.FS) *Laboratory {
	return &Laboratory{bed: b, files: files}
}

// Sleep lets time pass.
func (l *Laboratory) Sleep(d time.Duration) { time.Sleep(d) }

// Do takes one step of a scenario. Its verbs are those of a World, where get, download, browse and dial find addresses by the
// resolver of the client's site; clients are the world's places, made when they are asked for first. Besides:
//
//	lookup CLIENT NAME [TYPE]     what the resolver of the client's site answers, from its cache or by the four kinds of servers
//	trace CLIENT NAME [TYPE]      who is asked on the way, and what each says
//	reach HOST ADDRESS            to which host routing leads an address
//	regret NAME DURATION SHARE%   how much farther than the nearest POP clients of all places are led: kept, if it is at most the
//	                              duration for at least the share of them. Each asks a name server and gets / twice
//	exec HOST COMMAND…            its exit status, and what it prints; it runs in the folder of the host's files
//	join NODE SITE                one more node joins, at a site
//	tell HOST ORDER…              a faulty origin misbehaves so: status 503 share 20%, slow head 3s, well
//	pause | resume NAME           a process is stopped and goes on: SIGSTOP, SIGCONT
//
// What is between two hosts is the link of their sites, for slow and lossy; cut and heal are between the two hosts, or sites,
// alone.
func (l *Laboratory) Do(ctx context.Context, verb string, args []string) (string, error) {
	if result, known, err := l.verbs().do(ctx, verb, args); known {
		return result, err
	}
	switch verb {
	case "requests":
		return l.requests(ctx, args)
	case "publish":
		return "", l.publish(args)
	case "kill", "crash", "start", "pause", "resume":
		return "", l.process(ctx, verb, args)
	case "stop":
		return l.stop(ctx, args)
	case "cut", "heal":
		return "", l.cut(verb, args)
	case "slow", "lossy":
		return "", l.impair(verb, args)
	case "lookup":
		return l.lookup(ctx, args)
	case "trace":
		return l.trace(ctx, args)
	case "reach":
		return l.reach(ctx, args)
	case "regret":
		return l.regret(ctx, args)
	case "exec":
		return l.exec(ctx, args)
	case "join":
		return l.join(ctx, args)
	case "tell":
		return l.tell(ctx, args)
	}
	return "", fmt.Errorf("no verb %q", verb)
}

// verbs are those of any network.
func (l *Laboratory) verbs() *verbs {
	nodes := l.nodes()
	v := &verbs{files: l.files, client: l.client, nodes: func() []*seat { return nodes }, resolve: l.resolve}
	if len(nodes) > 0 {
		v.entry = nodes[0].name
	}
	v.servers = func(from visitor) (list []netip.AddrPort) {
		near := slices.Clone(nodes)
		slices.SortStableFunc(near, func(a, b *seat) int {
			return int(l.bed.World().RTT(from.name, a.name) - l.bed.World().RTT(from.name, b.name))
		})
		for _, n := range near {
			list = append(list, netip.AddrPortFrom(n.addr, dnsPort))
		}
		return list
	}
	return v
}

func (l *Laboratory) nodes() (all []*seat) {
	for _, h := range l.bed.World().Hosts {
		if h.Kind != wan.Node {
			continue
		}
		ask, err := api.NewClient(l.bed.API(h.Name), api.Options{Token: l.bed.Access(), Dial: l.bed.Dial(h.Name)})
		if err != nil {
			continue // it has no API
		}
		all = append(all, &seat{h.Name, h.V4, func() bool { return l.runs(h.Name) }, ask})
	}
	return all
}

func (l *Laboratory) runs(host string) bool {
	all, err := l.bed.Status(context.Background())
	return err == nil && slices.ContainsFunc(all, func(s bed.HostStatus) bool { return s.Host.Name == host && len(s.PIDs) > 0 })
}

// client is any host of the bed, or a place of the world.
func (l *Laboratory) client(ctx context.Context, name string) (visitor, error) {
	h, known := l.bed.World().Host(name)
	if !known {
		var err error
		if h, err = l.bed.Client(ctx, name); err != nil {
			return visitor{}, err
		}
	}
	return visitor{h.Name, h.V4, l.bed.Dial(h.Name)}, nil
}

// resolverOf is the resolver of a host's site.
func (l *Laboratory) resolverOf(host string) (netip.AddrPort, error) {
	w := l.bed.World()
	if h, ok := w.Host(host); ok {
		for _, r := range w.Hosts {
			if r.Kind == wan.Resolver && r.Site == h.Site {
				return netip.AddrPortFrom(r.V4, dnsPort), nil
			}
		}
	}
	return netip.AddrPort{}, fmt.Errorf("%s has no resolver", host)
}

// stubTries is how often a client asks its resolver, a second each: the first lookup of a name walks the world.
const stubTries = 5

// resolve is what a client's stub resolver does. A name of one word is that of a host, as its search list has it.
func (l *Laboratory) resolve(ctx context.Context, from visitor, name string) (string, error) {
	if h, known := l.bed.World().Host(name); known {
		return h.V4.String(), nil
	}
	at, err := l.resolverOf(from.name)
	if err != nil {
		return "", err
	}
	res, err := ask(ctx, from, slices.Repeat([]netip.AddrPort{at}, stubTries), name, dns.TypeA, "udp")
	if err != nil {
		return "", err
	}
	return addressIn(res, name)
}

func (l *Laboratory) lookup(ctx context.Context, args []string) (string, error) {
	if len(args) < 2 || len(args) > 3 {
		return "", errors.New("lookup wants a client, a name, and perhaps a type")
	}
	from, err := l.client(ctx, args[0])
	if err != nil {
		return "", err
	}
	at, err := l.resolverOf(from.name)
	if err != nil {
		return "", err
	}
	return l.verbs().askAt(ctx, from, slices.Repeat([]netip.AddrPort{at}, stubTries), args[1:], "udp")
}

func (l *Laboratory) trace(ctx context.Context, args []string) (string, error) {
	if len(args) < 2 || len(args) > 3 {
		return "", errors.New("trace wants a client, a name, and perhaps a type")
	}
	if _, err := l.client(ctx, args[0]); err != nil {
		return "", err
	}
	kind := "A"
	if len(args) == 3 {
		kind = args[2]
	}
	steps, err := l.bed.Trace(ctx, args[0], args[1], kind)
	if err != nil {
		return "error: " + plain(err), nil
	}
	var text []string
	for _, s := range steps {
		text = append(text, fmt.Sprintf("%s %s (%v): %s", s.Role, s.Server, s.Took.Round(100*time.Microsecond), s.Answer))
	}
	return strings.Join(text, "\n\t"), nil
}

func (l *Laboratory) reach(ctx context.Context, args []string) (string, error) {
	if len(args) != 2 {
		return "", errors.New("reach wants a host and an address")
	}
	addr, err := netip.ParseAddr(args[1])
	if err != nil {
		return "", err
	}
	from, err := l.client(ctx, args[0])
	if err != nil {
		return "", err
	}
	host, err := l.bed.Reaches(ctx, from.name, addr)
	if err != nil {
		return "error: " + plain(err), nil
	}
	return host, nil
}

func (l *Laboratory) isRouter(name string) bool {
	return slices.ContainsFunc(l.bed.World().Sites, func(s wan.Site) bool { return s.Router() == name })
}

// maxPrinted bounds what is kept of what a command prints.
const maxPrinted = 64 << 10

func (l *Laboratory) exec(ctx context.Context, args []string) (string, error) {
	if len(args) < 2 {
		return "", errors.New("exec wants a host and a command")
	}
	if !l.isRouter(args[0]) {
		if _, err := l.client(ctx, args[0]); err != nil {
			return "", err
		}
	}
	c, err := l.bed.Command(ctx, args[0], args[1:]...)
	if err != nil {
		return "", err
	}
	c.Dir = filepath.Join(l.bed.Info().Dir, "hosts", args[0])
	out, err := c.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return "", fmt.Errorf("exec %s: %w", args[0], err)
	}
	out = out[:min(len(out), maxPrinted)]
	return fmt.Sprintf("exit=%d %s", c.ProcessState.ExitCode(), bytes.TrimSpace(out)), nil
}

// join has one more node join, far or near. What its name does not say of it is the site's.
func (l *Laboratory) join(ctx context.Context, args []string) (string, error) {
	if len(args) != 2 {
		return "", errors.New("join wants the name of a node and a site")
	}
	site, ok := l.bed.World().Site(args[1])
	if !ok {
		return "", fmt.Errorf("no site %q", args[1])
	}
	err := l.bed.AddNode(ctx, wan.Host{Name: args[0], Kind: wan.Node, Site: site.Name, Region: site.Region, At: site.At})
	if err != nil {
		return "refused: " + plain(err), nil
	}
	return args[0] + " joined", nil
}

// FaultyControl is where an origin that can be told to misbehave is told so, on its host.
func FaultyControl() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(faulty.ControlPort)) }

func (l *Laboratory) tell(ctx context.Context, args []string) (string, error) {
	if len(args) < 2 {
		return "", errors.New("tell wants a host and an order")
	}
	return faulty.Tell(ctx, l.bed.Dial(args[0]), FaultyControl(), strings.Join(args[1:], " "))
}

// requests asks every target how often it was asked.
func (l *Laboratory) requests(ctx context.Context, args []string) (string, error) {
	if len(args) != 1 {
		return "", errors.New("requests wants a path")
	}
	sum := 0
	for _, h := range l.bed.World().Hosts {
		if h.Kind != wan.Target || !l.runs(h.Name) {
			continue
		}
		transport := &http.Transport{DialContext: l.bed.Dial(h.Name), DisableKeepAlives: true}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s%s", netip.AddrPortFrom(h.V4, webPort), demo.CountPath), nil)
		if err != nil {
			return "", err
		}
		req.URL.RawQuery = "path=" + args[0]
		res, err := transport.RoundTrip(req)
		if err != nil {
			return "", fmt.Errorf("ask %s: %w", h.Name, err)
		}
		var n int
		_, err = fmt.Fscan(io.LimitReader(res.Body, 100), &n)
		res.Body.Close()
		if err != nil {
			return "", fmt.Errorf("ask %s: %w", h.Name, err)
		}
		sum += n
	}
	return fmt.Sprintf("requests=%d", sum), nil
}

// publish makes a page of the site of all targets, which serve one folder.
func (l *Laboratory) publish(args []string) error {
	if len(args) != 2 {
		return errors.New("publish wants a page and its text")
	}
	root, err := os.OpenRoot(filepath.Join(l.bed.Info().Dir, "site"))
	if err != nil {
		return err
	}
	defer root.Close()
	page := strings.TrimPrefix(args[0], "/")
	if dir := filepath.Dir(page); dir != "." {
		if err := root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return root.WriteFile(page, []byte(args[1]+"\n"), 0o644)
}

func (l *Laboratory) process(ctx context.Context, verb string, args []string) error {
	if verb == "kill" && len(args) == 2 && args[0] == "targets" {
		some := false
		for _, h := range l.bed.World().Hosts {
			if h.Kind == wan.Target && h.Region == args[1] && l.runs(h.Name) {
				some = true
				if err := l.bed.Kill(h.Name); err != nil {
					return err
				}
			}
		}
		if !some {
			return fmt.Errorf("no targets in %q", args[1])
		}
		return nil
	}
	if len(args) != 1 {
		return fmt.Errorf("%s wants one name", verb)
	}
	switch verb {
	case "kill":
		return l.bed.Kill(args[0])
	case "crash":
		return l.bed.Crash(args[0])
	case "pause":
		return l.bed.Pause(args[0])
	case "resume":
		return l.bed.Resume(args[0])
	}
	return l.bed.Start(ctx, args[0])
}

func (l *Laboratory) stop(ctx context.Context, args []string) (string, error) {
	if len(args) != 1 {
		return "", errors.New("stop wants the name of a host")
	}
	began := time.Now()
	if err := l.bed.Stop(ctx, args[0]); err != nil {
		return "", err
	}
	return fmt.Sprintf("stopped after %v", time.Since(began).Round(time.Second)), nil
}

func (l *Laboratory) cut(verb string, args []string) error {
	if len(args) == 3 && args[2] == "oneway" && verb == "cut" {
		return l.bed.CutOneWay(args[0], args[1])
	}
	switch {
	case len(args) == 1 && verb == "cut":
		return l.bed.CutOff(args[0])
	case len(args) == 1:
		return l.bed.Rejoin(args[0])
	case len(args) == 2 && verb == "cut":
		return l.bed.Cut(args[0], args[1])
	case len(args) == 2:
		return l.bed.Heal(args[0], args[1])
	}
	return fmt.Errorf("%s: wrong number of arguments", verb)
}

// siteOf is a site by its name or that of a host there.
func (l *Laboratory) siteOf(name string) (string, error) {
	if s, ok := l.bed.World().Site(name); ok {
		return s.Name, nil
	}
	if h, ok := l.bed.World().Host(name); ok {
		return h.Site, nil
	}
	return "", fmt.Errorf("no host or site %q", name)
}

// impair changes the link between two sites; slow from what it was when it was built.
func (l *Laboratory) impair(verb string, args []string) error {
	oneWay := len(args) == 4 && args[3] == "oneway"
	if len(args) != 3 && !oneWay {
		return fmt.Errorf("%s wants two hosts or sites, and how much", verb)
	}
	a, err := l.siteOf(args[0])
	if err != nil {
		return err
	}
	b, err := l.siteOf(args[1])
	if err != nil {
		return err
	}
	if a == b {
		return fmt.Errorf("%s: %s and %s stand at one site: there is no link between them", verb, args[0], args[1])
	}
	there, back, err := l.bed.LinkPath(a, b)
	if err != nil {
		return err
	}
	firstThere, firstBack, err := l.bed.BuiltPath(a, b)
	if err != nil {
		return err
	}
	if verb == "slow" {
		d, err := time.ParseDuration(args[2])
		if err != nil {
			return err
		}
		there.Delay, back.Delay = firstThere.Delay+d, firstBack.Delay+d
	} else {
		lost, err := share(args[2])
		if err != nil {
			return err
		}
		there.Loss, back.Loss = lost, lost
	}
	if oneWay {
		return l.bed.SetLink(a, b, &there, nil)
	}
	return l.bed.SetLink(a, b, &there, &back)
}
