//go:build linux

package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// zoneNames is how many names a zone of ours has: as many as a HostedZone may have. The others have all names in one zone.
const zoneNames = 10_000

// few is for rows that are not about many names.
func few(Stage) int { return zoneNames }

// manyTime is how long a server may take for many names: one that loads a million of them on a busy machine is slow, and not broken.
const manyTime = 10 * time.Minute

// many is as many names as objects are said.
func many(s Stage) int { return s.Objects }

func dnsRows() []Row {
	perf := func(mode, port, clients string, more ...string) Load {
		return Load{Tool: "dnsperf", Args: append([]string{"-s", "{host}", "-p", port, "-m", mode, "-d", "{row}/queries", "-l", "{seconds}", "-c", clients, "-T", "1", "-q", "100", "-t", "2"}, more...)}
	}
	static := func(name, work string, names func(Stage) int, peers ...Peer) Row {
		q := new(questions)
		return Row{Name: name, Work: work, Unit: "queries/s", Load: volleyOf(q), Prepare: func(s Stage) error { return errors.Join(writeZones(s, names(s)), q.ofNames(names(s))) },
			Check: checkNames(names, "udp"), Ours: ours(func(s Stage) (string, error) { return zonesSpec(names(s)), nil }, dnsArgs()...), Peers: peers}
	}
	big := static("dns-static", "an A record of --objects names (1,000,000), each in turn and in an order that is random, over UDP; ours has them in zones of 10,000, the others in one zone", many,
		knot(zoneAll), nsd(zoneAll, ""), gdnsd(zoneAll), bind(zoneAll, ""), pdns(zoneAll), coredns(zoneAll, ""))
	big.Starts = manyTime
	big.Goals = []Goal{{"knot", 1.3}, {"nsd", 1.3}, {"gdnsd", 1.3}, {"coredns", 4}}
	small := static("dns-static-10k", "the same of one zone with 10,000 names", few, big.Peers...)
	small.Goals = big.Goals
	// kept is a row of connections that are kept, by dnsperf.
	kept := func(name, work string, network string, load Load, own Peer, peers ...Peer) Row {
		r := Row{Name: name, Work: work, Unit: "queries/s", Load: load, Check: checkNames(few, network), Ours: own, Peers: peers,
			Prepare: func(s Stage) error { return errors.Join(writeZones(s, zoneNames), writeQueries(s, zoneNames)) }}
		if network == "dot" || network == "doh" {
			for _, p := range peers {
				r.Goals = append(r.Goals, Goal{p.Name, 1})
			}
		}
		return r
	}
	spec := func(Stage) (string, error) { return zonesSpec(zoneNames), nil }
	secure := func(s Stage) (string, error) {
		cert, err := certSpec(s)
		return zonesSpec(zoneNames) + "---\n" + cert, err
	}
	placed := func(name, work string, spec string, zone string, want func(n int) netip.Addr, peers ...Peer) Row {
		q := new(questions)
		return Row{Name: name, Unit: "queries/s", Load: volleyOf(q), Work: work, Prepare: func(Stage) error { return q.ofPlaces(zone, want) }, Check: checkPlaces(zone, want),
			Ours:  ours(func(Stage) (string, error) { return spec, nil }, append(dnsArgs(), "--geo-db", "{places}")...),
			Peers: peers, Goals: []Goal{{"gdnsd", 1.3}, {"pdns", 4}}}
	}
	return append([]Row{big, small,
		kept("dns-udp-dnsperf", "an A record of one zone with 10,000 names, at random, over UDP, asked by dnsperf, which other people wrote", "udp", perf("udp", "{port}", "8"),
			ours(spec, dnsArgs()...), big.Peers...),
		kept("dns-tcp", "the same over 16 TCP connections that are kept", "tcp", perf("tcp", "{port}", "16"),
			ours(spec, dnsArgs()...), big.Peers...),
		kept("dns-dot", "the same over 16 connections in TLS that are kept (DoT)", "dot", perf("dot", "{tls}", "16"),
			flagged("--dns-tls", ours(secure, append(dnsArgs(), "--dns-tls", "{host}:{tls}")...)),
			nsd(zoneAll, "dot"), bind(zoneAll, "dot"), coredns(zoneAll, "dot")),
		// By dnsperf 2.10 the connections to each of two servers in Go stood still after some forty queries.
		kept("dns-doh", "the same over 16 connections of HTTP/2 in TLS that are kept, of 8 streams each (DoH, GET)", "doh",
			Load{Tool: "h2load", Args: []string{"-t", "1", "-c", "16", "-m", "8", "-D", "{seconds}", "--connect-to={host}:{tls}", "-i", "{row}/uris"}},
			flagged("--dns-https", ours(secure, "--http", "", "--https", "{host}:{tls}", "--dns", "{host}:{port}", "--dns-https", Name)),
			bind(zoneAll, "doh"), coredns(zoneAll, "doh")),
		placed("dns-geo", "one of six addresses by country and continent for clients in 10,000 networks, told by EDNS client subnet, from a file of places in MaxMind's format",
			geoSpec(), geoZone, countryAddress, gdnsdGeo(), pdnsGeo(), knotGeo(), corednsGeo()),
		placed("dns-latency", "the nearest of three regions for the same clients", nearSpec(), nearZone, nearestAddress, gdnsdNear(), pdnsNear(), knotNear(), corednsNear()),
	}, recordRows()...)
}

// dohPath is where DNS over HTTPS is asked.
const dohPath = "/dns-query"

func dnsArgs() []string {
	return []string{"--http", "", "--https", "", "--dns", "{host}:{port}"}
}

func volleyOf(q *questions) Load {
	return Load{Tool: "own", Args: []string{"batched datagrams"}, Own: func(ctx context.Context, s Stage, d time.Duration) (Measured, error) {
		return (&volley{address: s.at(s.Port), questions: q, last: d}).run(ctx)
	}}
}

// flagged is ours where it has a flag.
func flagged(flag string, p Peer) Peer {
	start := p.Start
	p.Start = func(ctx context.Context, s Stage) (*Process, error) {
		help, _, err := s.run.starter.run(ctx, s.run.Loads, s.Dir, []string{s.Program, "node", "--help"})
		if err != nil {
			return nil, err
		}
		if !strings.Contains(help, flag+" ") {
			return nil, fmt.Errorf("%w: it has no %s", errLacks, flag)
		}
		return start(ctx, s)
	}
	return p
}

func zoneName(z int) string { return fmt.Sprintf("z%d.%s", z, Name) }

// nameOf is name n of all, absolute. It is in zone n/zoneNames of ours, and in the one zone of the others.
func nameOf(n int) string { return fmt.Sprintf("h%d.%s.", n%zoneNames, zoneName(n/zoneNames)) }

// addressOf is what name n leads to.
func addressOf(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{198, byte(18 + n>>16), byte(n >> 8), byte(n)})
}

// The files of zones, in the row's folder: with all names, and with none.
const (
	zoneAll  = "zone"
	zoneNone = "none"
)

const zoneHead = "$ORIGIN " + Name + ".\n$TTL 300\n@ SOA ns hostmaster 1 7200 900 1209600 60\n@ NS ns\nns A 192.0.2.53\n"

// writeZones writes a zone file as RFC 1035 has it, with so many names: the same for all who read such files; and one with none.
func writeZones(s Stage, names int) error {
	var b bytes.Buffer
	b.WriteString(zoneHead)
	for n := range names {
		fmt.Fprintf(&b, "h%d.z%d A %s\n", n%zoneNames, n/zoneNames, addressOf(n))
	}
	return errors.Join(os.WriteFile(filepath.Join(s.Row, zoneAll), b.Bytes(), 0o644), os.WriteFile(filepath.Join(s.Row, zoneNone), []byte(zoneHead), 0o644))
}

// dnsperfQueries is how many queries a file for dnsperf has, which reads it again when it ends.
const dnsperfQueries = 20_000

// writeQueries writes what dnsperf asks, and the same as URIs, in an order that is random and the same in each run.
func writeQueries(s Stage, names int) error {
	var b, uris bytes.Buffer
	dice := rand.New(rand.NewPCG(1, uint64(names)))
	for range dnsperfQueries {
		name := nameOf(dice.IntN(names))
		fmt.Fprintf(&b, "%s A\n", strings.TrimSuffix(name, "."))
		query, err := question(0, name, netip.Prefix{})
		if err != nil {
			return err
		}
		fmt.Fprintln(&uris, dohURI(query))
	}
	return errors.Join(os.WriteFile(filepath.Join(s.Row, "queries"), b.Bytes(), 0o644), os.WriteFile(filepath.Join(s.Row, "uris"), uris.Bytes(), 0o644))
}

// ofNames are questions for each of so many names, in an order that is random and the same in each run.
func (q *questions) ofNames(names int) error {
	*q = questions{}
	for _, n := range rand.New(rand.NewPCG(1, uint64(names))).Perm(names) {
		if err := q.add(nameOf(n), netip.Prefix{}, addressOf(n)); err != nil {
			return err
		}
	}
	return nil
}

// How many names are asked before a server is timed, the first and the last among them: fewer where each takes a handshake of TLS.
const (
	checkedNames  = 200
	checkedSecure = 20
)

func checkNames(names func(Stage) int, network string) func(context.Context, Stage) error {
	return func(ctx context.Context, s Stage) error {
		a, checked := asking{address: s.at(s.Port), network: network, cert: s.Cert}, checkedNames
		if network == "dot" || network == "doh" {
			a.address, checked = s.at(s.TLS), checkedSecure
		}
		for i := range checked {
			n := i * (names(s) - 1) / (checked - 1)
			a.name = nameOf(n)
			if err := answers(ctx, a, addressOf(n)); err != nil {
				return err
			}
		}
		a.name = "none." + zoneName(0) + "."
		return answers(ctx, a, netip.Addr{})
	}
}

// zonesSpec is ours with so many names.
func zonesSpec(names int) string {
	var b strings.Builder
	b.WriteString(region)
	for z := range (names + zoneNames - 1) / zoneNames {
		b.WriteString("---\n" + zoneSpec(z, names, addressOf))
	}
	return b.String()
}

// zoneSpec is zone z of those that so many names are in.
func zoneSpec(z, names int, address func(n int) netip.Addr) string {
	var b strings.Builder
	fmt.Fprintf(&b, "kind: HostedZone\nname: %s\nrecords:\n", zoneName(z))
	for n := z * zoneNames; n < min(names, (z+1)*zoneNames); n++ {
		fmt.Fprintf(&b, "  - {name: h%d, type: A, ttl: 300, values: [%s]}\n", n%zoneNames, address(n))
	}
	return b.String()
}

func dnsPeer(name, program, pkg string, version []string, note string, write func(s Stage) error, argv ...string) Peer {
	need := Need{Program: program, Package: pkg}
	if pkg == "" {
		need.Make = "make peers"
	}
	return Peer{Name: name, Needs: []Need{need}, Version: version, Note: note, Start: func(_ context.Context, s Stage) (*Process, error) {
		if err := write(s); err != nil {
			return nil, err
		}
		return s.Start(nil, argv...)
	}}
}

const knotHead = `server:
    rundir: {dir}/run
    pidfile: {dir}/run/pid
    listen: {host}@{port}
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
    tcp-idle-timeout: 300
database:
    storage: {dir}/db
log:
  - target: stderr
    any: warning
`

func knot(zone string) Peer {
	return dnsPeer("knot", "knotd", "knot", []string{"--version"}, "", func(s Stage) error {
		_, err1 := s.Write("run/none", "")
		_, err2 := s.Write("knot.conf", knotHead+"zone:\n  - domain: {name}\n    file: {row}/"+zone+"\n    zonefile-sync: -1\n    journal-content: none\n")
		return errors.Join(err1, err2)
	}, "knotd", "-c", "{dir}/knot.conf")
}

// nsd answers in TLS as well if how is dot.
func nsd(zone, how string) Peer {
	tls := ""
	if how == "dot" {
		tls = `    ip-address: {host}@{tls}
    tls-port: {tls}
    tls-service-key: "{key}"
    tls-service-pem: "{cert}"
`
	}
	return dnsPeer("nsd", "nsd", "nsd", []string{"-v"}, "", func(s Stage) error {
		_, err := s.Write("nsd.conf", `server:
    ip-address: {host}@{port}
`+tls+`    server-count: 1
    do-ip6: no
    username: ""
    chroot: ""
    database: ""
    zonesdir: "{dir}"
    zonelistfile: "{dir}/zone.list"
    pidfile: "{dir}/nsd.pid"
    xfrdfile: "{dir}/xfrd.state"
    xfrdir: "{dir}"
    logfile: "{dir}/log"
    tcp-count: 100
    tcp-timeout: 300
    minimal-responses: yes
    rrl-ratelimit: 0
remote-control:
    control-enable: no
zone:
    name: {name}
    zonefile: "{row}/`+zone+`"
`)
		return err
	}, "nsd", "-d", "-c", "{dir}/nsd.conf")
}

const gdnsdHead = `options => {
  listen => [ {host}:{port} ]
  run_dir => {dir}/run
  state_dir => {dir}/state
  udp_threads => 1
  tcp_threads => 1
  tcp_timeout => 300
  zones_strict_data => false
}
`

func gdnsd(zone string) Peer {
	return dnsPeer("gdnsd", "gdnsd", "gdnsd", []string{"-h"}, "", func(s Stage) error {
		_, err := s.Write("etc/config", gdnsdHead)
		if err == nil {
			err = os.Mkdir(filepath.Join(s.Dir, "etc/zones"), 0o755)
		}
		if err == nil { // it has its zones in a folder of its own
			err = os.Link(filepath.Join(s.Row, zone), filepath.Join(s.Dir, "etc/zones", Name))
		}
		return err
	}, "gdnsd", "-c", "{dir}/etc", "start")
}

const pdnsHead = `local-address={host}
local-port={port}
socket-dir={dir}
daemon=no
guardian=no
receiver-threads=1
distributor-threads=1
loglevel=3
log-dns-queries=no
log-dns-details=no
webserver=no
max-tcp-connections=100
max-tcp-connections-per-client=0
max-tcp-transactions-per-conn=0
tcp-idle-timeout=300
security-poll-suffix=
version-string=anonymous
`

func pdns(zone string) Peer {
	p := dnsPeer("pdns", "pdns_server", "pdns-server", []string{"--version"}, "zones in its bind backend; answers from its cache of packets, for 20 s each", func(s Stage) error {
		_, err1 := s.Write("pdns.conf", pdnsHead+"launch=bind\nbind-config={dir}/named.conf\n")
		_, err2 := s.Write("named.conf", "zone \"{name}\" { type master; file \"{row}/"+zone+"\"; };\n")
		return errors.Join(err1, err2)
	}, "pdns_server", "--config-dir={dir}")
	p.Needs = append(p.Needs, Need{File: "/usr/lib/*/pdns/libbindbackend.so", Package: "pdns-backend-bind"})
	return p
}

// bind answers in TLS as well if how is dot, and by HTTPS if it is doh.
func bind(zone, how string) Peer {
	listen := map[string]string{
		"dot": "  listen-on port {tls} tls own { {host}; };\n",
		"doh": "  listen-on port {tls} tls own http own { {host}; };\n  http-listener-clients 200;\n  http-streams-per-connection 1000;\n",
	}[how]
	secure := ""
	if how != "" {
		secure = "tls own { cert-file \"{cert}\"; key-file \"{key}\"; };\nhttp own { endpoints { \"" + dohPath + "\"; }; };\n"
	}
	return dnsPeer("bind9", "named", "bind9", []string{"-v"}, "", func(s Stage) error {
		_, err := s.Write("named.conf", secure+`options {
  directory "{dir}";
  pid-file "{dir}/pid";
  session-keyfile "{dir}/session.key";
  listen-on port {port} { {host}; };
`+listen+`  listen-on-v6 { none; };
  recursion no;
  minimal-responses yes;
  dnssec-validation no;
  tcp-clients 200;
  tcp-idle-timeout 1200;
  notify no;
};
controls { };
zone "{name}" { type primary; file "{row}/`+zone+`"; };
`)
		return err
	}, "named", "-g", "-n", "1", "-c", "{dir}/named.conf")
}

// coredns answers in TLS instead of UDP if how is dot, and by HTTPS if it is doh.
func coredns(zone, how string) Peer {
	head := map[string]string{"": "{name}:{port} {\n", "dot": "tls://{name}:{tls} {\n\ttls {cert} {key}\n", "doh": "https://{name}:{tls} {\n\ttls {cert} {key}\n"}[how]
	return dnsPeer("coredns", "coredns", "", []string{"-version"}, "", func(s Stage) error {
		_, err := s.Write("Corefile", head+"\tbind {host}\n\tfile {row}/"+zone+"\n\tminimal\n}\n")
		return err
	}, "coredns", "-conf", "{dir}/Corefile")
}
