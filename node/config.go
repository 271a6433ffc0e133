// Package node is one process: it makes the parts, joins them, and ends them in order. It is the only room
// that knows the whole house; it decides nothing that a part can decide, and carries no traffic itself.
//
// When something breaks: a node that cannot open what it was told to open does not start, and says why in one
// line. A running node goes on with what it has: without a Raft leader it serves the spec it knows, alone it
// serves from its disk, and a revision it cannot run leaves it on the last good one, which it tells the others.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/perigee-net/perigee/cluster/file"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/dnsgeo"
	"github.com/perigee-net/perigee/edge/accelerator/flowlog"
	"github.com/perigee-net/perigee/node/front"
)

// Config is what a node is told: it changes at restart.
type Config struct {
	// Name is unique in the cluster; Region and POP say where the node stands. Lower-case letters, digits, hyphens.
	Name, Region, POP string
	// Roles are what it does; none means all.
	Roles []view.Role
	// Data is the node's own folder.
	Data string

	// Bootstrap makes a new cluster, Join (the control address of any node) with Token joins one, when Data holds no
	// identity yet. A restart needs neither.
	Bootstrap bool
	Join      string
	Token     string

	// Advertise is where the other nodes reach this one; the ports are those of Gossip and Control.
	Advertise netip.Addr
	Gossip    string // host:port, TCP and UDP
	Control   string // host:port, control by TCP and backbone by UDP
	API       string // host:port; "": only the unix socket in Data
	HTTP      string // host:port of the world's doors, and the host of load balancers' listeners; "": none
	HTTPS     string
	DNS       string // UDP and TCP
	DNSTLS    string
	DNSQUIC   string
	// DNSHTTPS are the hosts, names or IP addresses, on which the door of HTTPS answers DNS at /dns-query; none: it does not. A name in
	// a URL that clients are given is this node's or a name server's own, never a site's, whose paths are the site's.
	DNSHTTPS []string
	// DNSRate bounds the responses to one network by UDP (dnsgeo.Config.Rate); 0: nothing does.
	DNSRate int
	// QueryLog is a file, or "-" for the standard output, in which queries are written down of zones that want it; "": nowhere.
	// QueryLogFormat is QueryLogRoute53, which "" is too, or QueryLogJSON.
	QueryLog, QueryLogFormat string
	// FlowLog is a file, or "-" for the standard output, in which flows are written down of accelerators that want it; "": nowhere.
	// FlowLogFormat is FlowLogAWS, which "" is too, or FlowLogJSON.
	FlowLog, FlowLogFormat string
	// FlowsByTCP says when flows go to other nodes by a TCP connection each: TCPAuto, which "" is too, TCPNever, or TCPAlways.
	FlowsByTCP string
	// NoWarming leaves links to other nodes as they come up (backbone.Config). For tests of many nodes, which are not about how fast flows are.
	NoWarming bool
	// Connections is how many connections of TCP one port of one of the world's addresses holds, and as many of HTTP/3: more are closed as they come. 0: DefaultConnections.
	Connections int
	// ConnectionsPerClient is how many of these may be of one client, an IPv4 address or a /64 of IPv6; at most Connections. 0: a quarter of Connections, and 256 at least.
	ConnectionsPerClient int
	// TransparentMark marks the packets to targets that see the client's address (SO_MARK), for the machine's routing; 0: with nothing.
	TransparentMark uint32
	// Public are its addresses for the world, which DNS answers; none means Advertise.
	Public []netip.Addr
	// OwnDoors opens the accelerators' ports on the address of HTTP too, so that a client can choose the POP.
	OwnDoors bool

	// BGP has routers lead traffic to this node's anycast addresses; without an AS it announces nothing.
	BGP BGP

	// ProxyHeadersFrom are the balancers in front of this node, whose connections begin with a PROXY header.
	ProxyHeadersFrom []netip.Prefix

	// Drain is how long a node that ends serves on after the others have heard that it does: DrainTime, for clients that
	// were led here by DNS and may come for as long as they hold that answer. 0: not at all.
	Drain time.Duration

	GeoDB      string // path of a MaxMind-format file; "": the built-in countries
	CacheBytes int64  // memory for cached objects; 0: 256 MiB

	// CacheDiskBytes bounds what cached objects take on disk, in CacheDir; 0: there is no disk. CacheDir is a folder of its own, which
	// is the cache's alone; "": cache in Data.
	CacheDiskBytes int64
	CacheDir       string
	// CacheFiles is what its files are made, written and read with; the zero one is the machine's. For tests of disks that fail.
	CacheFiles file.System

	Log *slog.Logger

	// The network; nil means the real one.
	Listen        func(network, address string) (net.Listener, error)
	ListenAnycast func(network, address string) (net.Listener, error)
	ListenPacket  func(network, address string) (net.PacketConn, error)
	// ListenPacketAnycast is for UDP what ListenAnycast is for TCP; nil: ListenPacket, or of the real network what is for that.
	ListenPacketAnycast func(network, address string) (net.PacketConn, error)
	// ListenPackets opens up to n sockets on one address; nil: one by ListenPacket, or of the real network n.
	ListenPackets func(network, address string, n int) ([]net.PacketConn, error)
	Dial          func(ctx context.Context, network, address string) (net.Conn, error)
	maxDoors      int                                                                  // that the spec asks for; 0: by what the process may have open
	dialFlow      func(ctx context.Context, network, address string) (net.Conn, error) // nil: Dial
	// RoundTrip is the least round trip of an open connection from a client; nil: what the kernel says.
	RoundTrip func(net.Conn) (rtt time.Duration, ok bool)
	// Now is the wall clock, by which certificates and tokens are judged; nil means the machine's.
	Now    func() time.Time
	kernel bool // the network is the machine's own
	// NoSocket leaves out the unix socket, for networks that are not real.
	NoSocket bool
	// NoSync does not flush Raft's log to disk: a loss of power then loses what the cluster was promised. For tests.
	NoSync bool
}

const (
	defaultCacheBytes = 256 << 20
	// leastDiskBytes is the smallest store on disk: in less, little would be kept for long.
	leastDiskBytes = 16 << 20
)

// DrainTime is how long clients may come to a node that DNS answers no more, and a little.
const DrainTime = dnsgeo.AliasTTL + 5*time.Second

// DefaultConnections is the usual Config.Connections, and maxConnections the most: each takes a descriptor, or two where it is carried on.
const (
	DefaultConnections = front.DefaultConnections
	maxConnections     = 1 << 20
)

// DNSRate is the usual Config.DNSRate.
const DNSRate = dnsgeo.DefaultRate

// The forms of lines in which queries are written down.
const (
	QueryLogRoute53 = "route53"
	QueryLogJSON    = "json"
)

// The forms of lines in which flows are written down.
const (
	FlowLogAWS  = "aws"
	FlowLogJSON = "json"
)

// When flows go to other nodes by a TCP connection each. Whatever a node does, it takes those of others.
const (
	TCPAuto   = "auto"   // those of many bytes, where that is faster
	TCPNever  = "never"  // QUIC carries all
	TCPAlways = "always" // whenever there is one
)

var names = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

var hosts = regexp.MustCompile(`^([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?$`)

func allRoles() []view.Role { return []view.Role{view.Edge, view.DNS, view.Origin, view.Voter} }

// complete checks what was told and fills in the rest.
func (c *Config) complete() error {
	for _, field := range []struct{ flag, value string }{{"name", c.Name}, {"region", c.Region}, {"pop", c.POP}} {
		if field.value == "" {
			return fmt.Errorf("--%s is missing", field.flag)
		}
		if !names.MatchString(field.value) {
			return fmt.Errorf("--%s %q: want lower-case letters, digits and hyphens, at most 63", field.flag, field.value)
		}
	}
	if c.Data == "" {
		return errors.New("--data is missing")
	}
	if c.Bootstrap && c.Join != "" {
		return errors.New("--bootstrap makes a new cluster, --join joins one: not both")
	}
	all := allRoles()
	if len(c.Roles) == 0 {
		c.Roles = all
	}
	for _, r := range c.Roles {
		if !slices.Contains(all, r) {
			return fmt.Errorf("--roles: no role %q (edge, dns, origin, voter)", r)
		}
	}
	if len(c.Public) == 0 {
		c.Public = []netip.Addr{c.Advertise}
	}
	for _, a := range []struct{ flag, address string }{{"http", c.HTTP}, {"https", c.HTTPS}, {"dns", c.DNS}, {"dns-tls", c.DNSTLS}, {"dns-quic", c.DNSQUIC}, {"api", c.API}} {
		if a.address == "" {
			continue
		}
		if _, err := doorAddress(a.address); err != nil {
			return fmt.Errorf("--%s %q: want HOST:PORT with an IP address, or :PORT", a.flag, a.address)
		}
	}
	if len(c.DNSHTTPS) > 0 && c.HTTPS == "" {
		return errors.New("--dns-https needs --https")
	}
	c.DNSHTTPS = slices.Clone(c.DNSHTTPS) // it is the caller's
	for i, h := range c.DNSHTTPS {
		is := strings.ToLower(strings.TrimSuffix(h, "."))
		if _, err := netip.ParseAddr(is); err != nil && !hosts.MatchString(is) {
			return fmt.Errorf("--dns-https %q: want the name of a host, or an IP address, without a port", h)
		}
		c.DNSHTTPS[i] = is
	}
	if c.GeoDB != "" {
		if _, err := os.Stat(c.GeoDB); err != nil {
			return fmt.Errorf("--geo-db: %w", err)
		}
	}
	if c.QueryLogFormat != "" && c.QueryLogFormat != QueryLogRoute53 && c.QueryLogFormat != QueryLogJSON {
		return fmt.Errorf("--dns-query-log-format %q: want %s or %s", c.QueryLogFormat, QueryLogRoute53, QueryLogJSON)
	}
	if c.FlowLogFormat != "" && c.FlowLogFormat != FlowLogAWS && c.FlowLogFormat != FlowLogJSON {
		return fmt.Errorf("--flow-log-format %q: want %s or %s", c.FlowLogFormat, FlowLogAWS, FlowLogJSON)
	}
	if c.FlowsByTCP != "" && c.FlowsByTCP != TCPAuto && c.FlowsByTCP != TCPNever && c.FlowsByTCP != TCPAlways {
		return fmt.Errorf("--flows-by-tcp %q: want %s, %s or %s", c.FlowsByTCP, TCPAuto, TCPNever, TCPAlways)
	}
	if c.FlowLog != "" && c.FlowLog != flowlog.Stdout && c.FlowLog == c.QueryLog {
		return fmt.Errorf("--flow-log %s: is the file of --dns-query-log, which rotates it by itself", c.FlowLog)
	}
	if err := c.BGP.check(c.Advertise); err != nil {
		return err
	}
	if c.Connections < 0 || c.Connections > maxConnections {
		return fmt.Errorf("--connections %d: want 1 to %d", c.Connections, maxConnections)
	}
	if c.Connections == 0 {
		c.Connections = DefaultConnections
	}
	if c.ConnectionsPerClient < 0 || c.ConnectionsPerClient > c.Connections {
		return fmt.Errorf("--connections-per-client %d: want 1 to the %d of --connections, or 0 for a quarter of these", c.ConnectionsPerClient, c.Connections)
	}
	if c.DNSRate < 0 {
		return fmt.Errorf("--dns-rate %d: want 0 or more", c.DNSRate)
	}
	if c.Drain < 0 {
		return fmt.Errorf("--drain %v: want 0s or more", c.Drain)
	}
	if c.CacheBytes < 0 {
		return fmt.Errorf("--cache-bytes %d: want 0 or more", c.CacheBytes)
	}
	if c.CacheBytes == 0 {
		c.CacheBytes = defaultCacheBytes
	}
	if c.CacheDiskBytes < 0 || c.CacheDiskBytes > 0 && c.CacheDiskBytes < leastDiskBytes {
		return fmt.Errorf("--cache-disk-bytes %d: want 0 or at least %d", c.CacheDiskBytes, leastDiskBytes)
	}
	if c.CacheDir != "" && c.CacheDiskBytes == 0 {
		return errors.New("--cache-dir needs --cache-disk-bytes")
	}
	if c.CacheDir == "" {
		c.CacheDir = filepath.Join(c.Data, "cache")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.Log = c.Log.With("node", c.Name)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Listen == nil {
		c.kernel = true
		c.Listen = front.Listen
	}
	if c.ListenAnycast == nil {
		c.ListenAnycast = front.ListenAnycast
	}
	if c.ListenPacketAnycast == nil {
		if c.ListenPacketAnycast = c.ListenPacket; c.ListenPacket == nil {
			c.ListenPacketAnycast = front.ListenPacketAnycast
		}
	}
	if c.ListenPackets == nil {
		one := c.ListenPacket
		c.ListenPackets = func(network, address string, _ int) ([]net.PacketConn, error) {
			p, err := one(network, address)
			return []net.PacketConn{p}, err
		}
		if one == nil {
			c.ListenPackets = front.ListenPackets
		}
	}
	if c.ListenPacket == nil {
		c.ListenPacket = front.ListenPacket
	}
	if c.Dial == nil {
		c.Dial = new(net.Dialer).DialContext
		c.dialFlow = (&net.Dialer{KeepAlive: -1}).DialContext
	}
	return nil
}

// at is the address of one of this node's ports for the other nodes.
func (c *Config) at(listen string) (netip.AddrPort, error) {
	_, port, err := net.SplitHostPort(listen)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.ParseAddrPort(net.JoinHostPort(c.Advertise.String(), port))
}
