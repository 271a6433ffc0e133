package bed

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/perigee-net/perigee/testbed/wan"
)

// Autonomous systems of every bed (RFC 6996: for private use).
const (
	routersAS = 64500
	nodesAS   = 64512
)

// Ports of a bed's hosts.
const (
	lbPort      = 8081
	controlPort = 7947
	apiPort     = 7948
	webPort     = 9001
	tcpPort     = 9101
)

// Devices. The kernel takes 15 bytes for a name (IFNAMSIZ).
const (
	wanDevice  = "w-"   // and the site at the other end, in a router
	hostDevice = "h-"   // and the host's number, in its site's router
	ownDevice  = "eth0" // in a host
)

const maxDevice = 15

// silence is how a router notices that a link carries nothing: so many BFD packets in a row are missing (RFC 5880 §6.8.4).
// On a link that loses one packet in five, ten are missing in a row once in many days; seven once in hours.
type silence struct {
	every   time.Duration
	missing int
}

// fewLinks is up to how many links a router process can send ten BFD packets a second on each without being felt on two cores.
const fewLinks = 40

func silenceOf(w *wan.World) silence {
	if len(w.Links) <= fewLinks {
		return silence{100 * time.Millisecond, 10}
	}
	return silence{150 * time.Millisecond, 7}
}

// cost is what OSPF holds a link to cost: its round trip in tenths of a millisecond, 1–65,535.
func cost(l wan.Link) int {
	return int(min(max(l.RTT()/(100*time.Microsecond), 1), 65_535))
}

// holdTime is that of BGP sessions (RFC 4271 §4.2), between routers and to nodes: how long a machine that is lost without
// a word attracts what comes to its anycast addresses. A process that dies closes its connection, and is gone at once.
const holdTime = 9 * time.Second

// birdConfig is the configuration of a site's router (BIRD 2).
func birdConfig(w *wan.World, s wan.Site) string {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	own := s.Prefixes()
	say("# The router of %s in the world %s.", s.Name, w.Name)
	say("log stderr all;")
	say("router id %s;", s.V4)
	say("")
	say("protocol device { scan time 10; }")
	say("")
	say("# What the router itself sends comes from its one address, not from that of a link.")
	for _, f := range []struct {
		name string
		addr netip.Addr
	}{{"4", s.V4}, {"6", s.V6}} {
		say("filter to_kernel%s { krt_prefsrc = %s; accept; }", f.name, f.addr)
		say("protocol kernel kernel%s {", f.name)
		say("  scan time 60;")
		say("  merge paths on limit 16;")
		say("  ipv%s { import none; export filter to_kernel%s; };", f.name, f.name)
		say("}")
	}
	quiet := silenceOf(w)
	say("")
	say("protocol bfd { interface \"%s*\" { interval %d ms; multiplier %d; }; }", wanDevice, quiet.every.Milliseconds(), quiet.missing)
	for i, name := range []string{"4", "6"} {
		say("")
		say("protocol ospf %s wan%s {", [2]string{"v2", "v3"}[i], name)
		say("  ipv%s { import all; export none; };", name)
		say("  area 0 {")
		say("    stubnet %s;", own[i])
		for _, l := range w.Links {
			if l.A != s.Name && l.B != s.Name {
				continue
			}
			say("    interface \"%s%s\" { type ptp; cost %d; hello 1; dead 10; retransmit 2; bfd yes; };", wanDevice, otherEnd(l, s.Name), cost(l))
		}
		say("  };")
		say("}")
	}
	say("")
	say("template bgp inside {")
	say("  local %s as %d;", s.V4, routersAS)
	say("  hold time %d; connect delay time 1; connect retry time 3; error wait time 1, 3;", int(holdTime.Seconds()))
	say("  ipv4 { next hop self; import all; export where source = RTS_BGP; };")
	say("  ipv6 { next hop self; next hop address %s; import all; export where source = RTS_BGP; };", s.V6)
	say("}")
	for _, o := range w.Sites {
		if o.Name != s.Name {
			say("protocol bgp site%d from inside { neighbor %s as %d; } # %s", o.Number, o.V4, routersAS, o.Name)
		}
	}
	say("")
	say("# Nodes may announce the world's anycast addresses, each by itself; one that is being drained is the last to be chosen (RFC 8326).")
	for _, name := range []string{"4", "6"} {
		say("filter from_nodes%s {", name)
		if set := anycastSet(w, name); set == "" {
			say("  reject;")
		} else {
			say("  if net !~ [ %s ] then reject;", set)
			say("  if (65535, 0) ~ bgp_community then bgp_local_pref = 0;")
			say("  accept;")
		}
		say("}")
	}
	say("protocol bgp nodes {")
	say("  local %s as %d;", s.V4, routersAS)
	say("  neighbor range %s as %d;", own[0], nodesAS)
	say("  dynamic name \"node\";")
	say("  hold time %d; error wait time 1, 5; check link no; # a machine that is lost must not be noticed by its cable", int(holdTime.Seconds()))
	say("  ipv4 { import filter from_nodes4; export none; };")
	say("  ipv6 { import filter from_nodes6; export none; };")
	say("}")
	return b.String()
}

// anycastSet is the world's anycast prefixes of a family as BIRD's set of host routes; "": it has none.
func anycastSet(w *wan.World, family string) string {
	var set []string
	for _, p := range w.Anycast {
		if p.Addr().Is4() == (family == "4") {
			set = append(set, fmt.Sprintf("%s{%d,%d}", p, p.Addr().BitLen(), p.Addr().BitLen()))
		}
	}
	return strings.Join(set, ", ")
}

func otherEnd(l wan.Link, site string) string {
	if l.A == site {
		return l.B
	}
	return l.A
}

// zone is where the demo's names live; the TLD's server delegates it to the nodes.
const (
	tld  = "test."
	zone = "demo.perigee.test."
)

// Names of the name servers that are not Perigee's.
const (
	rootServer = "a.root-servers." + tld
	tldServer  = "a.nic." + tld
)

// delegationTTL is how long a resolver may hold what the root and the TLD said, in seconds.
const delegationTTL = 3600

// rootHints is what a resolver knows of the root before it asks.
func rootHints(w *wan.World) string {
	return fmt.Sprintf(". %d NS %s\n", delegationTTL, rootServer) + addresses(rootServer, hostsOf(w, wan.Root))
}

// rootZone is the root: it has nothing but the one TLD.
func rootZone(w *wan.World) string {
	return fmt.Sprintf("$TTL %d\n. SOA %s hostmaster.%s 1 3600 600 86400 60\n", delegationTTL, rootServer, tld) +
		rootHints(w) +
		fmt.Sprintf("%s NS %s\n", tld, tldServer) + addresses(tldServer, hostsOf(w, wan.TLD))
}

// tldZone is test.: it delegates the demo's zone to every node that answers DNS.
func tldZone(w *wan.World) string {
	var b strings.Builder
	fmt.Fprintf(&b, "$TTL %d\n%s SOA %s hostmaster.%s 1 3600 600 86400 60\n", delegationTTL, tld, tldServer, tld)
	fmt.Fprintf(&b, "%s NS %s\n%s", tld, tldServer, addresses(tldServer, hostsOf(w, wan.TLD)))
	b.WriteString(addresses(rootServer, hostsOf(w, wan.Root)))
	for _, h := range w.Hosts { // icn1.test., for people who say icn1
		b.WriteString(addresses(h.Name+"."+tld, []wan.Host{h}))
	}
	for _, h := range hostsOf(w, wan.Node) {
		if len(h.Roles) > 0 && !slices.Contains(h.Roles, "dns") {
			continue
		}
		server := "ns-" + h.Name + "." + zone
		fmt.Fprintf(&b, "%s NS %s\n%s", zone, server, addresses(server, []wan.Host{h}))
	}
	return b.String()
}

// addresses are the records by which a name leads to hosts.
func addresses(name string, hosts []wan.Host) string {
	var b strings.Builder
	for _, h := range hosts {
		fmt.Fprintf(&b, "%s A %s\n%s AAAA %s\n", name, h.V4, name, h.V6)
	}
	return b.String()
}

func hostsOf(w *wan.World, k wan.Kind) []wan.Host {
	var hosts []wan.Host
	for _, h := range w.Hosts {
		if h.Kind == k {
			hosts = append(hosts, h)
		}
	}
	return hosts
}

// nsdConfig is that of the root's or the TLD's name server (NSD 4), which has one zone in a file beside it.
func nsdConfig(h wan.Host, dir, zone, file string) string {
	return fmt.Sprintf(`server:
  ip-address: %s
  ip-address: %s
  server-count: 1
  username: ""
  zonesdir: %q
  database: ""
  pidfile: %q
  xfrdfile: %q
  zonelistfile: %q
  xfrdir: %q
  hide-version: yes
remote-control:
  control-enable: no
zone:
  name: %q
  zonefile: %q
`, h.V4, h.V6, dir, filepath.Join(dir, "nsd.pid"), filepath.Join(dir, "xfrd.state"), filepath.Join(dir, "zone.list"), dir, zone, file)
}

// unboundConfig is that of a site's resolver (Unbound). It validates nothing: the bed's root is not signed. It forgets as
// any resolver does, by the TTL alone.
func unboundConfig(h wan.Host, dir string) string {
	return fmt.Sprintf(`server:
  interface: %s
  interface: %s
  interface: 127.0.0.1
  access-control: 0.0.0.0/0 allow
  access-control: ::/0 allow
  directory: %q
  chroot: ""
  username: ""
  pidfile: ""
  use-syslog: no
  root-hints: %q
  module-config: "iterator"
  local-zone: "%s" nodefault
  num-threads: 1
  msg-cache-size: 4m
  rrset-cache-size: 8m
  outgoing-range: 512
  num-queries-per-thread: 256
  infra-keep-probing: yes
remote-control:
  control-enable: no
`, h.V4, h.V6, dir, filepath.Join(dir, "root.hints"), strings.TrimSuffix(tld, "."))
}

// nginxConfig is that of an origin: a folder of files at every address of the host, port 80.
func nginxConfig(dir, site string) string {
	return fmt.Sprintf(`daemon off;
user root;
worker_processes 1;
pid %[1]s/nginx.pid;
error_log stderr;
events { worker_connections 4096; }
http {
  access_log off;
  client_body_temp_path %[1]s/body;
  proxy_temp_path %[1]s/proxy;
  fastcgi_temp_path %[1]s/fastcgi;
  uwsgi_temp_path %[1]s/uwsgi;
  scgi_temp_path %[1]s/scgi;
  types { text/html html; image/svg+xml svg; text/plain txt; }
  keepalive_requests 100000;
  server {
    listen 80;
    listen [::]:80;
    root %[2]s;
    location = /healthz { default_type text/plain; return 200 "ok\n"; }
    location / { add_header Cache-Control "public, max-age=60"; }
  }
}
`, dir, site)
}

// resolvConf leads a host to the resolver of its site, and a name of one word to the host of that name; "": the site has no resolver.
func resolvConf(w *wan.World, site string) string {
	for _, h := range hostsOf(w, wan.Resolver) {
		if h.Site == site {
			return fmt.Sprintf("nameserver %s\nsearch %s\noptions timeout:2 attempts:2\n", h.V4, strings.TrimSuffix(tld, "."))
		}
	}
	return ""
}

// nodeArgs is the command line of a node, without how it comes into the cluster.
func nodeArgs(w *wan.World, h wan.Host, program, data, places string, drain string, bgp bool) []string {
	at := func(a netip.Addr, port int) string { return netip.AddrPortFrom(a, uint16(port)).String() }
	args := []string{
		program, "node", "--data", data, "--name", h.Name, "--region", h.Region, "--pop", h.POP,
		"--bind", h.V4.String(), "--api", at(h.V4, apiPort), "--public", h.V4.String(), "--public", h.V6.String(),
		"--geo-db", places, "--drain", drain,
	}
	if len(h.Roles) > 0 {
		args = append(args, "--roles", strings.Join(h.Roles, ","))
	}
	if s, ok := w.Site(h.Site); ok && bgp && (len(h.Roles) == 0 || slices.Contains(h.Roles, "edge")) {
		args = append(args, "--bgp-as", strconv.Itoa(nodesAS), "--bgp-neighbor", fmt.Sprintf("%s,%d", s.V4, routersAS), "--bgp-next-hop6", h.V6.String())
	}
	return args
}
