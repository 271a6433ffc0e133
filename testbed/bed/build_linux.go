package bed

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/perigee-net/perigee/cluster/file"
	"github.com/perigee-net/perigee/testbed/netns"
	"github.com/perigee-net/perigee/testbed/pump"
	"github.com/perigee-net/perigee/testbed/wan"
)

// madeAtOnce is how many namespaces are made or filled at a time.
const madeAtOnce = 8

// each calls f for all, some at a time, and stops at the first error.
func each[T any](ctx context.Context, all []T, atOnce int, f func(T) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	places := make(chan struct{}, atOnce)
	var busy sync.WaitGroup
	for _, x := range all {
		places <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		busy.Go(func() {
			defer func() { <-places }()
			if err := f(x); err != nil {
				cancel(err)
			}
		})
	}
	busy.Wait()
	return context.Cause(ctx)
}

// setting is a sysctl of a namespace.
type setting struct{ key, value string }

// routerSettings make a namespace a router: packets pass, flows are spread over equal ways by their ports too, and what
// comes by another way than it would go back is no forgery here.
func routerSettings() []setting {
	return []setting{
		{"net.ipv4.ip_forward", "1"}, {"net.ipv6.conf.all.forwarding", "1"},
		{"net.ipv4.fib_multipath_hash_policy", "1"}, {"net.ipv6.fib_multipath_hash_policy", "1"},
		{"net.ipv4.conf.all.rp_filter", "0"}, {"net.ipv4.conf.default.rp_filter", "0"},
		{"net.ipv4.conf.all.send_redirects", "0"}, {"net.ipv4.conf.default.send_redirects", "0"},
	}
}

// hostSettings: a node may listen on an IPv6 anycast address, which is local by a route and no link's own.
func hostSettings() []setting {
	return []setting{
		{"net.ipv4.conf.all.rp_filter", "0"}, {"net.ipv4.conf.default.rp_filter", "0"},
		{"net.ipv6.ip_nonlocal_bind", "1"},
	}
}

// make makes a namespace of the bed.
func (b *Bed) make(name string, settings []setting) (*netns.Namespace, error) {
	n, err := netns.New(space(b.name, name))
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	b.spaces[name] = n
	b.mu.Unlock()
	if err := os.MkdirAll(b.at(name), 0o700); err != nil {
		return nil, err
	}
	for _, s := range settings {
		if err := n.Sysctl(s.key, s.value); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return n, nil
}

// at is a host's folder.
func (b *Bed) at(host string) string { return filepath.Join(b.dir, hostsDir, host) }

// single is an address as a prefix.
func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func everything(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// makeRouter makes a site's router, without links.
func (b *Bed) makeRouter(s wan.Site) error {
	n, err := b.make(s.Router(), routerSettings())
	if err != nil {
		return err
	}
	return errors.Join(n.AddAddr("lo", single(s.V4), netip.Addr{}), n.AddAddr("lo", single(s.V6), netip.Addr{}))
}

// makeHost makes a host and its link to the router of its site, which must be there. The link is point to point: each end
// knows the other's address and nothing else, so all that the host says goes by the router.
func (b *Bed) makeHost(h wan.Host) error {
	s, ok := b.now().World.Site(h.Site)
	if !ok {
		return fmt.Errorf("%s: no site %q", h.Name, h.Site)
	}
	r, err := b.space(s.Router())
	if err != nil {
		return err
	}
	n, err := b.make(h.Name, hostSettings())
	if err != nil {
		return err
	}
	device := hostDevice + strconv.Itoa(h.Number)
	if h.Access == nil {
		if err := netns.Veth(n, ownDevice, r, device); err != nil {
			return err
		}
	} else if err := b.join(h.Name, h.Name, ownDevice, s.Router(), device, *h.Access, *h.Access); err != nil {
		return err
	}
	if err := n.NoOffload(ownDevice); err != nil {
		return err
	}
	// Up first: of an address that a link gets before, the kernel makes no route to an IPv6 peer.
	if err := errors.Join(n.Up(ownDevice), r.Up(device)); err != nil {
		return err
	}
	for _, a := range [][2]netip.Addr{{h.V4, s.V4}, {h.V6, s.V6}} {
		if err := errors.Join(n.AddAddr(ownDevice, single(a[0]), a[1]), r.AddAddr(device, single(a[1]), a[0])); err != nil {
			return err
		}
	}
	for _, via := range []netip.Addr{s.V4, s.V6} {
		if err := n.AddRoute(netns.Route{To: everything(via), Via: via, Link: ownDevice}); err != nil {
			return err
		}
	}
	if h.Kind == wan.Node {
		for _, p := range b.now().World.Anycast {
			if err := n.AddRoute(netns.Route{To: p, Link: "lo", Local: true}); err != nil {
				return err
			}
		}
	}
	return n.WriteResolv(resolvConf(b.now().World, h.Site))
}

// join makes a link with latency between two namespaces of the bed. Both ends are down, without addresses.
func (b *Bed) join(link, hostA, deviceA, hostB, deviceB string, ab, ba wan.Path) error {
	if b.now().WAN == Userspace {
		p, err := b.pumpClient()
		if err != nil {
			return err
		}
		return p.Add(link, pump.Device{Namespace: space(b.name, hostA), Name: deviceA}, pump.Device{Namespace: space(b.name, hostB), Name: deviceB}, ab, ba)
	}
	a, err := b.space(hostA)
	if err != nil {
		return err
	}
	z, err := b.space(hostB)
	if err != nil {
		return err
	}
	if err := netns.Veth(a, deviceA, z, deviceB); err != nil {
		return err
	}
	return errors.Join(a.NoOffload(deviceA), z.NoOffload(deviceB), a.Netem(deviceA, ab), z.Netem(deviceB, ba))
}

// tunQueue is how many packets wait in a TUN device while the pump is away from its processor: 50 ms of 100,000 a second.
const tunQueue = 5000

// tun makes a TUN device for the pump.
func tun(namespace, device string) (*os.File, error) {
	n, err := netns.Open(namespace)
	if err != nil {
		return nil, err
	}
	defer n.Close()
	f, err := netns.Tun(n, device)
	if err != nil {
		return nil, err
	}
	if err := n.SetQueue(device, tunQueue); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// makeLink makes the link of two sites. The routers' IPv6 addresses on it are those that the kernel gives (fe80::).
func (b *Bed) makeLink(l wan.Link) error {
	atA, atB := "router-"+l.A, "router-"+l.B
	toB, toA := wanDevice+l.B, wanDevice+l.A
	if err := b.join(linkName(l), atA, toB, atB, toA, l.AB, l.BA); err != nil {
		return err
	}
	a, err := b.space(atA)
	if err != nil {
		return err
	}
	z, err := b.space(atB)
	if err != nil {
		return err
	}
	return errors.Join(
		a.Up(toB), z.Up(toA),
		a.AddAddr(toB, netip.PrefixFrom(l.V4A, 31), netip.Addr{}), z.AddAddr(toA, netip.PrefixFrom(l.V4B, 31), netip.Addr{}),
	)
}

// linkName is what the pump knows a link of two sites by.
func linkName(l wan.Link) string { return l.A + "+" + l.B }

// Memory that programs of a bed take, in MiB, to say beforehand that it will not fit: in an idle world of 20 nodes and 22
// other hosts a node had 29 and another 6. A node's cache may grow by 256.
const (
	nodeMemory  = 60
	otherMemory = 10
)

// program is what runs on a host, with its configuration written; nil if nothing does.
func (b *Bed) program(h wan.Host) ([]string, error) {
	dir := b.at(h.Name)
	write := func(name, text string) error { return os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600) }
	w := b.now().World
	switch h.Kind {
	case wan.Resolver:
		err := errors.Join(write("unbound.conf", unboundConfig(h, dir)), write("root.hints", rootHints(w)))
		return []string{"unbound", "-d", "-p", "-c", filepath.Join(dir, "unbound.conf")}, err
	case wan.Root:
		err := errors.Join(write("nsd.conf", nsdConfig(h, dir, ".", "zone")), write("zone", rootZone(w)))
		return []string{"nsd", "-d", "-c", filepath.Join(dir, "nsd.conf")}, err
	case wan.TLD:
		err := errors.Join(write("nsd.conf", nsdConfig(h, dir, tld, "zone")), write("zone", tldZone(w)))
		return []string{"nsd", "-d", "-c", filepath.Join(dir, "nsd.conf")}, err
	case wan.Origin:
		if h.Program != wan.Nginx {
			return b.endless(dir, []string{b.now().Program, "testbed", "origin", "--name", h.Name, "--http", ":80", "--tcp", ":9"})
		}
		return []string{"nginx", "-p", dir, "-c", filepath.Join(dir, "nginx.conf")}, write("nginx.conf", nginxConfig(dir, b.Site()))
	case wan.Target:
		return b.endless(dir, []string{
			b.now().Program, "target", "--name", h.Name, "--region", h.Region,
			"--http", ":" + strconv.Itoa(webPort), "--tcp", ":" + strconv.Itoa(tcpPort), "--site", b.Site(),
		})
	}
	return nil, nil
}

// endless gives a program an input that neither ends nor says anything, for those that end with their input: a pipe
// with a name that the program itself could write to.
func (b *Bed) endless(dir string, argv []string) ([]string, error) {
	pipe := filepath.Join(dir, "input")
	if err := unix.Mkfifo(pipe, 0o600); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("make %s: %w", pipe, err)
	}
	return append([]string{"sh", "-c", `exec "$@" <>"$0"`, pipe}, argv...), nil
}

// run starts a program as that of a host or router.
func (b *Bed) run(host string, argv []string) error {
	n, err := b.space(host)
	if err != nil {
		return err
	}
	if path, err := where(argv[0]); err == nil {
		argv = append([]string{path}, argv[1:]...)
	}
	pid, err := n.Start(argv, netns.Start{Dir: b.at(host), Log: b.Log(host)})
	if err != nil {
		return err
	}
	return file.ReplaceBytes(filepath.Join(b.at(host), sessionFile), fmt.Appendln(nil, pid)) // it leads its session
}

// where finds a program, also where the search path of an ordinary user does not lead.
func where(name string) (string, error) { return find(name, systemFolders()) }

func systemFolders() []string { return []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} }

// ahead is what BIRD is run by: a second without it is a link that is lost, so it goes before what the bed is there for. Where
// that is not allowed, it runs like all others (nice(1)).
func ahead() []string { return []string{"nice", "-n", "-15"} }

// startRouter starts the router's BIRD.
func (b *Bed) startRouter(s wan.Site) error {
	dir := b.at(s.Router())
	conf := filepath.Join(dir, "bird.conf")
	if err := os.WriteFile(conf, []byte(birdConfig(b.now().World, s)), 0o600); err != nil {
		return err
	}
	bird, err := where("bird")
	if err != nil {
		return err
	}
	return b.run(s.Router(), append(ahead(), bird, "-f", "-c", conf, "-s", filepath.Join(dir, "bird.ctl")))
}

// startPump starts the pump and waits until it hears.
func (b *Bed) startPump(ctx context.Context) error {
	if _, err := b.make(pumpHost, nil); err != nil {
		return err
	}
	socket := filepath.Join(b.dir, pumpSocket)
	if err := b.run(pumpHost, []string{b.now().Program, "testbed", "pump", "--socket", socket}); err != nil {
		return err
	}
	return b.await(ctx, pumpHost, "the pump to hear", func(context.Context) error {
		_, err := b.pumpClient()
		return err
	})
}

// startOthers starts what runs on the hosts of the world that are no nodes.
func (b *Bed) startOthers() error {
	for _, h := range b.now().World.Hosts {
		argv, err := b.program(h)
		if err != nil {
			return err
		}
		if argv == nil {
			continue
		}
		if err := b.run(h.Name, argv); err != nil {
			return err
		}
	}
	return nil
}
