package netns

import (
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/perigee-net/perigee/testbed/wan"
)

// ErrNoLink is in the error of what needs a link that is not there.
var ErrNoLink = errors.New("there is no such link")

func checkLink(name string) error {
	if name == "" || len(name) >= unix.IFNAMSIZ || name == "." || name == ".." ||
		strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == '/' || r == ':' || r == '%' || r == 0x7f }) {
		return fmt.Errorf("link %q: not the name of a link (1 to %d bytes, no spaces, /, : or %%)", name, unix.IFNAMSIZ-1)
	}
	return nil
}

// netlink runs f with the namespace's netlink socket.
func (n *Namespace) netlink(f func(*netlink.Handle) error) error {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.fd < 0 {
		return os.ErrClosed
	}
	return f(n.netlnk)
}

// onLink runs f with a link of the namespace.
func (n *Namespace) onLink(act, name string, f func(*netlink.Handle, netlink.Link) error) error {
	err := n.netlink(func(h *netlink.Handle) error {
		link, err := find(h, name)
		if err != nil {
			return err
		}
		return f(h, link)
	})
	if err != nil {
		return n.fault("link %s: %s: %w", name, act, err)
	}
	return nil
}

func find(h *netlink.Handle, name string) (netlink.Link, error) {
	link, err := h.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) || errors.Is(err, unix.ENODEV) {
		return nil, ErrNoLink
	}
	return link, err
}

// dumpTries bounds how often a list is asked for anew because it changed while the kernel wrote it.
const dumpTries = 100

// list asks until the kernel's answer is whole.
func list[T any](ask func() ([]T, error)) (all []T, err error) {
	for range dumpTries {
		if all, err = ask(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// Veth joins two namespaces, or one with itself, by a pair of links with 1,500 bytes of MTU. Both are down.
func Veth(a *Namespace, nameA string, b *Namespace, nameB string) error {
	for _, name := range []string{nameA, nameB} {
		if err := checkLink(name); err != nil {
			return a.fault("%w", err)
		}
	}
	err := a.netlink(func(h *netlink.Handle) error {
		if a != b { // a lock for reading must not be taken twice by one goroutine
			b.mu.RLock()
			defer b.mu.RUnlock()
		}
		if b.fd < 0 {
			return os.ErrClosed
		}
		err := error(unix.EEXIST)
		for try := 0; try < indexTries && errors.Is(err, unix.EEXIST); try++ {
			if _, taken := find(h, nameA); !errors.Is(taken, ErrNoLink) {
				break
			}
			link := netlink.NewVeth(netlink.NewLinkAttrs())
			link.Name, link.MTU, link.Index = nameA, 1500, vethIndex(nameA)+try
			link.PeerName, link.PeerMTU, link.PeerNamespace = nameB, 1500, netlink.NsFd(b.fd)
			err = h.LinkAdd(link)
		}
		return err
	})
	if err != nil {
		return a.fault("link %s: join with %s of %s: %w", nameA, nameB, b.Name, err)
	}
	return nil
}

// vethIndex is the number of the first link of a pair. The kernel numbers from 1 in each namespace, and takes a link whose
// other end has its own number for one without another end: that it can carry is then noticed up to a second late
// (linkwatch_urgent_event), and so IPv6 begins late. So it is given one that the other end does not get by itself.
func vethIndex(name string) int {
	sum := fnv.New32a()
	sum.Write([]byte(name))
	return firstIndex + int(sum.Sum32()%indexes)
}

const (
	firstIndex = 1 << 16
	indexes    = 1 << 20
	indexTries = 16 // names of one namespace whose numbers collide, or a name that the other end has already
)

// Tun makes a TUN device inside and opens it: each read is one packet that is sent into the device, each write one that
// comes out of it, without a header (IFF_NO_PI). The file is not blocking; the device is gone when it is closed. The device is down.
func Tun(n *Namespace, name string) (*os.File, error) {
	if err := checkLink(name); err != nil {
		return nil, n.fault("%w", err)
	}
	fd := -1
	err := n.inside(func(*thread) (err error) {
		// The device belongs to where the file was opened (tun_chr_open of the kernel), so both are done inside.
		if fd, err = unix.Open(tunPath, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
			return fmt.Errorf("open %s: %w", tunPath, err)
		}
		req, err := unix.NewIfreq(name)
		if err == nil {
			req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_TUN_EXCL)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		}
		if err != nil {
			unix.Close(fd)
		}
		return err
	})
	if err != nil {
		return nil, n.fault("link %s: make a TUN device: %w", name, err)
	}
	// Only now: a file that is given to the poller before it has a device reports errors for ever.
	return os.NewFile(uintptr(fd), tunPath), nil
}

const tunPath = "/dev/net/tun"

// Up brings a link up.
func (n *Namespace) Up(link string) error {
	return n.onLink("up", link, func(h *netlink.Handle, l netlink.Link) error {
		if err := h.LinkSetUp(l); err != nil {
			return err
		}
		addrs, err := list(func() ([]netlink.Addr, error) { return h.AddrList(l, unix.AF_INET6) })
		if err != nil {
			return err
		}
		for _, a := range addrs {
			if a.Peer != nil && !a.Peer.IP.Equal(a.IP) {
				if err := peerRoute(h, l, a.Peer); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// peerRoute makes the route to the IPv6 address at the other end of a link that is up. The kernel makes it too, but
// later, by its worker for duplicate addresses, and never if that one comes by while the link is still down.
func peerRoute(h *netlink.Handle, l netlink.Link, peer *net.IPNet) error {
	return h.RouteReplace(&netlink.Route{Dst: peer, LinkIndex: l.Attrs().Index, Scope: unix.RT_SCOPE_LINK,
		Table: unix.RT_TABLE_MAIN, Protocol: unix.RTPROT_KERNEL, Priority: kernelMetric})
}

// kernelMetric is that of the kernel's own IPv6 routes (IP6_RT_PRIO_ADDRCONF).
const kernelMetric = 256

// Down takes a link down; the routes by it are gone with that, and for IPv6 its addresses too.
func (n *Namespace) Down(link string) error {
	return n.onLink("down", link, func(h *netlink.Handle, l netlink.Link) error { return h.LinkSetDown(l) })
}

// SetMTU sets the largest packet of a link, in bytes.
func (n *Namespace) SetMTU(link string, bytes int) error {
	return n.onLink("set its MTU", link, func(h *netlink.Handle, l netlink.Link) error { return h.LinkSetMTU(l, bytes) })
}

// SetQueue sets how many packets wait in a link's own queue; those in a TUN device wait there for who reads it.
func (n *Namespace) SetQueue(link string, packets int) error {
	return n.onLink("set its queue", link, func(h *netlink.Handle, l netlink.Link) error { return h.LinkSetTxQLen(l, packets) })
}

// NoOffload makes the kernel send real packets into a link instead of bundles of up to 64 kB that it would cut later, or
// never. A host's link must have it, or a router's loss, rate and queue meet bundles: one lost is forty packets lost.
func (n *Namespace) NoOffload(link string) error {
	return n.onLink("offload nothing", link, func(h *netlink.Handle, l netlink.Link) error { return h.LinkSetGSOMaxSegs(l, 1) })
}

// RemoveLink removes a link, and its other end. Not there is fine.
func (n *Namespace) RemoveLink(name string) error {
	err := n.onLink("remove", name, func(h *netlink.Handle, l netlink.Link) error { return h.LinkDel(l) })
	if errors.Is(err, ErrNoLink) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// Links are the names of the links inside, `lo` among them.
func (n *Namespace) Links() ([]string, error) {
	var names []string
	err := n.netlink(func(h *netlink.Handle) error {
		links, err := list(h.LinkList)
		for _, l := range links {
			names = append(names, l.Attrs().Name)
		}
		return err
	})
	if err != nil {
		return nil, n.fault("list the links: %w", err)
	}
	return names, nil
}

// AddAddr gives a link an address. With a peer the link is point to point: the peer is what is at the other end, and
// nothing else. The address is usable at once. There already is fine.
func (n *Namespace) AddAddr(link string, addr netip.Prefix, peer netip.Addr) error {
	if !addr.IsValid() || peer.IsValid() && peer.Is4() != addr.Addr().Is4() {
		return n.fault("link %s: add address %v, peer %v: not addresses of one family", link, addr, peer)
	}
	return n.onLink("add address "+addr.String(), link, func(h *netlink.Handle, l netlink.Link) error {
		a := &netlink.Addr{IPNet: ipNet(addr)}
		if peer.IsValid() {
			a.Peer = ipNet(netip.PrefixFrom(peer, peer.BitLen()))
		}
		if addr.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := h.AddrAdd(l, a); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		if addr.Addr().Is6() && peer.IsValid() && l.Attrs().Flags&net.FlagUp != 0 {
			return peerRoute(h, l, a.Peer)
		}
		return nil
	})
}

// ipNet keeps the address whole: that of an interface has bits after its prefix.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Route is one way of the main table, or with Local one of the table local.
type Route struct {
	To    netip.Prefix // 0.0.0.0/0 and ::/0: all the rest
	Via   netip.Addr   // the next router, taken to be at the other end of Link if both are given; zero: To is on Link
	Link  string       // may be left out if Via is
	Local bool         // To are addresses of this host (anycast), free to be bound to; Link is "lo" if left out
}

func (r Route) String() string {
	text := r.To.String()
	if r.Local {
		text = "local " + text
	}
	if r.Via.IsValid() {
		text += " via " + r.Via.String()
	}
	if r.Link != "" {
		text += " dev " + r.Link
	}
	return text
}

// AddRoute adds a route, or replaces that to the same prefix.
func (n *Namespace) AddRoute(r Route) error {
	if r.Local && r.To.IsValid() && r.To.Addr().Is6() {
		// IPv4 lets programs bind to what a local route has, and answer from it; IPv6 only if it may be any address.
		if err := n.Sysctl("net.ipv6.ip_nonlocal_bind", "1"); err != nil {
			return err
		}
	}
	return n.route("add", r, func(h *netlink.Handle, k *netlink.Route) error { return h.RouteReplace(k) })
}

// DelRoute takes a route away. Not there is fine.
func (n *Namespace) DelRoute(r Route) error {
	return n.route("remove", r, func(h *netlink.Handle, k *netlink.Route) error {
		if err := h.RouteDel(k); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
		return nil
	})
}

func (n *Namespace) route(act string, r Route, do func(*netlink.Handle, *netlink.Route) error) error {
	err := n.netlink(func(h *netlink.Handle) error {
		k, err := r.kernel(h)
		if err != nil {
			return err
		}
		return do(h, k)
	})
	if err != nil {
		return n.fault("%s route %v: %w", act, r, err)
	}
	return nil
}

// kernel is the route as netlink has it.
func (r Route) kernel(h *netlink.Handle) (*netlink.Route, error) {
	if !r.To.IsValid() || r.To != r.To.Masked() {
		return nil, errors.New("not to a prefix")
	}
	if r.Via.IsValid() && r.Via.Is4() != r.To.Addr().Is4() {
		return nil, errors.New("the next router is of another family")
	}
	link := r.Link
	k := &netlink.Route{Dst: ipNet(r.To), Table: unix.RT_TABLE_MAIN, Protocol: unix.RTPROT_STATIC}
	switch {
	case r.Local && r.Via.IsValid():
		return nil, errors.New("a local route has no next router")
	case r.Local:
		k.Table, k.Type, k.Scope = unix.RT_TABLE_LOCAL, unix.RTN_LOCAL, unix.RT_SCOPE_HOST
		if link == "" {
			link = "lo"
		}
	case r.Via.IsValid():
		k.Gw = r.Via.AsSlice()
		if link != "" {
			k.Flags = int(netlink.FLAG_ONLINK)
		}
	case link == "":
		return nil, errors.New("neither a link nor a next router")
	default:
		k.Scope = unix.RT_SCOPE_LINK
	}
	if link != "" {
		l, err := find(h, link)
		if err != nil {
			return nil, fmt.Errorf("link %s: %w", link, err)
		}
		k.LinkIndex = l.Attrs().Index
	}
	return k, nil
}

// Hop is where a namespace sends a packet next.
type Hop struct {
	Local bool       // it is for this host
	Link  string     // the link it leaves by
	Via   netip.Addr // the next router; zero: the address itself is on the link
}

// Lookup asks the kernel where a packet of this host to an address goes. One that is dropped or has no route is an error.
// Of several equal ways it says one.
func (n *Namespace) Lookup(to netip.Addr) (Hop, error) {
	var hop Hop
	err := n.netlink(func(h *netlink.Handle) error {
		routes, err := h.RouteGet(to.AsSlice())
		if err != nil {
			return err
		}
		if len(routes) == 0 {
			return errors.New("no answer")
		}
		r := routes[0]
		if r.Type != unix.RTN_LOCAL && r.Type != unix.RTN_UNICAST {
			return fmt.Errorf("a route of type %d", r.Type)
		}
		hop.Local = r.Type == unix.RTN_LOCAL
		if via, ok := netip.AddrFromSlice(r.Gw); ok {
			hop.Via = via.Unmap()
		} else if via, ok := r.Via.(*netlink.Via); ok { // IPv4 by an IPv6 router (RFC 8950)
			hop.Via, _ = netip.AddrFromSlice(via.Addr)
		}
		l, err := h.LinkByIndex(r.LinkIndex)
		if err != nil {
			return err
		}
		hop.Link = l.Attrs().Name
		return nil
	})
	if err != nil {
		return Hop{}, n.fault("route to %v: %w", to, err)
	}
	return hop, nil
}

// Sysctl sets a network setting of the namespace: net.ipv4.ip_forward, or with slashes where a link's name has dots.
// fs.ErrNotExist is in the error if the kernel has none of that name.
func (n *Namespace) Sysctl(key, value string) error {
	path := key
	if !strings.Contains(key, "/") {
		path = strings.ReplaceAll(key, ".", "/")
	}
	if !strings.HasPrefix(path, "net/") || path != strings.TrimPrefix(filepath.Clean("/"+path), "/") {
		return n.fault("sysctl %s: not a network setting", key) // any other would be the machine's
	}
	err := n.inside(func(*thread) error {
		// Whose settings /proc/sys/net shows is a matter of the thread that opens it.
		f, err := os.OpenFile("/proc/sys/"+path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteString(value)
		return err
	})
	if err != nil {
		return n.fault("sysctl %s = %s: %w", key, value, err)
	}
	return nil
}

// Policy rules of Blackhole: their place between the table local (0) and all the others (32,766), and who made them,
// a number that rtnetlink(7) leaves to its users.
const (
	dropPriority = 100
	dropProtocol = 217
)

// Blackhole drops without a word what is forwarded from → to; a zero address is any, both zero is all. What is for this
// host itself still comes; what it sends itself is dropped with an error to the sender. There already is fine.
func (n *Namespace) Blackhole(from, to netip.Addr) error {
	return n.drop("blackhole", from, to, func(h *netlink.Handle, r *netlink.Rule) error {
		if err := h.RuleAdd(r); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		return nil
	})
}

// Unblackhole takes back what Blackhole did with the same addresses; with both zero it takes back everything. Not there is fine.
func (n *Namespace) Unblackhole(from, to netip.Addr) error {
	del := func(h *netlink.Handle, r *netlink.Rule) error {
		if err := h.RuleDel(r); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
		return nil
	}
	if from.IsValid() || to.IsValid() {
		return n.drop("unblackhole", from, to, del)
	}
	err := n.netlink(func(h *netlink.Handle) error {
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			rules, err := list(func() ([]netlink.Rule, error) {
				return h.RuleListFiltered(family, &netlink.Rule{Priority: dropPriority}, netlink.RT_FILTER_PRIORITY)
			})
			if err != nil {
				return err
			}
			for _, r := range rules {
				if r.Protocol != dropProtocol {
					continue
				}
				own := dropRule(family)
				own.Src, own.Dst = r.Src, r.Dst
				if err := del(h, own); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return n.fault("unblackhole all: %w", err)
	}
	return nil
}

func (n *Namespace) drop(act string, from, to netip.Addr, do func(*netlink.Handle, *netlink.Rule) error) error {
	err := n.netlink(func(h *netlink.Handle) error {
		for _, r := range dropRules(from, to) {
			if err := do(h, r); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && from.IsValid() && to.IsValid() && from.Is4() != to.Is4() {
		err = errors.New("the addresses are of two families")
	}
	if err != nil {
		return n.fault("%s %s → %s: %w", act, anyOr(from), anyOr(to), err)
	}
	return nil
}

func anyOr(a netip.Addr) string {
	if !a.IsValid() {
		return "any"
	}
	return a.String()
}

// dropRules are the rules that drop from → to: one, or one for each family if both are any, or none if they are of two families.
func dropRules(from, to netip.Addr) []*netlink.Rule {
	families := []int{unix.AF_INET, unix.AF_INET6}
	switch {
	case from.IsValid() && to.IsValid() && from.Is4() != to.Is4():
		return nil
	case from.Is4() || to.Is4():
		families = families[:1]
	case from.IsValid() || to.IsValid():
		families = families[1:]
	}
	var rules []*netlink.Rule
	for _, family := range families {
		r := dropRule(family)
		if from.IsValid() {
			r.Src = ipNet(netip.PrefixFrom(from, from.BitLen()))
		}
		if to.IsValid() {
			r.Dst = ipNet(netip.PrefixFrom(to, to.BitLen()))
		}
		rules = append(rules, r)
	}
	return rules
}

func dropRule(family int) *netlink.Rule {
	r := netlink.NewRule()
	r.Family, r.Priority, r.Protocol, r.Type = family, dropPriority, dropProtocol, unix.RTN_BLACKHOLE
	return r
}

// Netem makes a link send as the path says, by the kernel's netem (tc-netem(8)): set, or changed while it carries.
// The zero path is a link without delay, with netem.
func (n *Namespace) Netem(link string, p wan.Path) error {
	if err := p.Validate(); err != nil {
		return n.fault("link %s: netem: %w", link, err)
	}
	return n.onLink("netem", link, func(h *netlink.Handle, l netlink.Link) error {
		return h.QdiscReplace(netem(l.Attrs().Index, p))
	})
}

// orderRate keeps the packets of a path with jitter in their order: netem sends them by time, and so lets them overtake,
// unless it has a rate, when each is at least its own length behind the last. So much that it is nothing else, in bit/s.
const orderRate = 100_000_000_000

// netem is a path in the kernel's words.
func netem(link int, p wan.Path) *netlink.Netem {
	rate := p.Rate
	if rate == 0 && p.Jitter > 0 {
		rate = orderRate
	}
	q := &netlink.Netem{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Latency:    ticks(p.Delay),
		Jitter:     ticks(p.Jitter),
		Limit:      limit(p),
		Loss:       chance(p.Loss),
		Rate64:     uint64(rate / 8), // bytes
	}
	if p.Reorder > 0 {
		q.Gap, q.ReorderProb = 1, chance(p.Reorder) // 1: any packet may be the one that overtakes
	}
	return q
}

const (
	smallest = 64      // bytes: more packets of a rate than of these are not on their way at once
	anyLimit = 100_000 // packets, of a link without a rate, where none wait
)

// limit is netem's, which counts the packets on their way, too, and not only those that wait for the rate.
func limit(p wan.Path) uint32 {
	if p.Rate == 0 {
		return anyLimit
	}
	way := float64(p.Rate) / 8 / smallest * (p.Delay + p.Jitter).Seconds()
	return uint32(min(p.Limit()+int(math.Ceil(way)), math.MaxInt32))
}

// ticks is a time in the packet scheduler's unit, 64 ns (PSCHED_SHIFT of the kernel).
func ticks(d time.Duration) uint32 { return uint32(d.Nanoseconds() >> 6) }

// chance is a share as netem has it: of all 32-bit numbers.
func chance(share float64) uint32 { return uint32(math.Round(share * math.MaxUint32)) }

// HasNetem says whether the kernel has netem, or could load it: tried in a namespace of its own that is gone after it.
func HasNetem() (bool, error) {
	has := false
	err := apart(func(t *thread) error {
		if err := t.fresh(); err != nil {
			return err
		}
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		lo, err := h.LinkByName("lo")
		if err != nil {
			return err
		}
		err = h.QdiscReplace(netem(lo.Attrs().Index, wan.Path{Delay: time.Millisecond}))
		has = err == nil
		if errors.Is(err, unix.ENOENT) { // "qdisc kind is unknown"
			err = nil
		}
		return err
	})
	if err != nil {
		return false, fmt.Errorf("try netem: %w", err)
	}
	return has, nil
}

// removeGroup is the group that the links of a namespace are put into to be removed all at once.
const removeGroup = 0x70676470

// removeLinks removes all links but those that the kernel makes itself (lo; sit0 and the like, if their modules are
// loaded). One by one each would cost a grace period of the kernel; a group costs one.
func (n *Namespace) removeLinks() error {
	some := false
	err := n.netlink(func(h *netlink.Handle) error {
		links, err := list(h.LinkList)
		if err != nil {
			return err
		}
		for _, l := range links {
			switch l.Type() {
			case "veth", "tuntap", "bridge", "dummy":
			default:
				continue
			}
			if err := h.LinkSetGroup(l, removeGroup); err != nil && !errors.Is(err, unix.ENODEV) {
				return fmt.Errorf("link %s: %w", l.Attrs().Name, err)
			}
			some = true
		}
		return nil
	})
	if err == nil && some {
		err = n.inside(func(*thread) error {
			req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
			req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
			req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(removeGroup)))
			_, err := req.Execute(unix.NETLINK_ROUTE, 0)
			return err
		})
	}
	if err != nil && !errors.Is(err, unix.ENODEV) { // none left: their other ends were removed meanwhile
		return n.fault("remove its links: %w", err)
	}
	return nil
}
