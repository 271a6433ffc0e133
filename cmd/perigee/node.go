package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/edge/anycast"
	"github.com/perigee-net/perigee/node"
	"github.com/perigee-net/perigee/testbed/demo"
	"github.com/spf13/cobra"
)

// stopTime bounds an orderly end after what --drain says: what is still in flight then is cut off.
const stopTime = 10 * time.Second

func newNode() *cobra.Command {
	var cfg node.Config
	var bind, advertise, roles string
	var public, proxies, neighbors, anycasts []string
	var hold time.Duration
	var routerID, nextHop6 string
	var withParent, verbose bool
	var profile string
	c := &cobra.Command{
		Use:   "node --data DIR --region R --pop P (--bootstrap | --join HOST:PORT --token T)",
		Short: "Run a node",
		Example: "  perigee node --data /var/lib/perigee --region eu-central-1 --pop fra1 --bind 10.0.0.1 --bootstrap\n" +
			"  perigee token create --api /var/lib/perigee\n" +
			"  perigee node --data /var/lib/perigee --region us-east-1 --pop iad1 --bind 10.1.0.1 --join 10.0.0.1:7947 --token pgt2.…",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("node %s: want list, revoke or forget; with flags alone it runs a node", args[0])
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error {
			ip, err := netip.ParseAddr(bind)
			if err != nil {
				return usageError{fmt.Errorf("--bind: %w", err)}
			}
			self := ip
			if advertise != "" {
				if self, err = netip.ParseAddr(advertise); err != nil {
					return usageError{fmt.Errorf("--advertise: %w", err)}
				}
			}
			if self.IsUnspecified() {
				return usagef("--bind %s: say with --advertise at which address the other nodes reach this one", bind)
			}
			cfg.Advertise = self
			for _, a := range []*string{&cfg.Gossip, &cfg.Control, &cfg.API} {
				if strings.HasPrefix(*a, ":") {
					*a = net.JoinHostPort(bind, (*a)[1:])
				}
			}
			for _, r := range strings.Split(roles, ",") {
				cfg.Roles = append(cfg.Roles, view.Role(r))
			}
			for _, p := range public {
				a, err := netip.ParseAddr(p)
				if err != nil {
					return usageError{fmt.Errorf("--public: %w", err)}
				}
				cfg.Public = append(cfg.Public, a)
			}
			for _, p := range proxies {
				prefix, err := netip.ParsePrefix(p)
				if err != nil {
					return usageError{fmt.Errorf("--proxy-headers-from: %w", err)}
				}
				cfg.ProxyHeadersFrom = append(cfg.ProxyHeadersFrom, prefix)
			}
			if err := readBGP(&cfg.BGP, neighbors, anycasts, routerID, nextHop6, hold); err != nil {
				return usageError{err}
			}
			if cfg.POP == "" {
				return usagef("--pop is missing")
			}
			if cfg.Name == "" {
				cfg.Name = cfg.POP
			}
			ctx := c.Context()
			if withParent {
				ctx = endWith(ctx, c.InOrStdin())
			}
			if verbose {
				cfg.Log = slog.New(slog.NewTextHandler(c.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelDebug}))
				return profiled(ctx, profile, func() error { return runNode(ctx, cfg, func() {}) })
			}
			log := &heldLog{to: c.ErrOrStderr()}
			late := time.AfterFunc(holdTime, log.release)
			defer late.Stop()
			cfg.Log = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelInfo}))
			return profiled(ctx, profile, func() error { return runNode(ctx, cfg, log.release) })
		},
	}
	f := c.Flags()
	f.StringVar(&cfg.Data, "data", "", "the folder of this node: its identity, Raft's log, the last spec")
	f.StringVar(&cfg.Name, "name", "", "its name, unique in the cluster (default: the POP's)")
	f.StringVar(&cfg.Region, "region", "", "the region it stands in")
	f.StringVar(&cfg.POP, "pop", "", "the POP it belongs to")
	f.StringVar(&roles, "roles", "edge,dns,origin,voter", "what it does")
	f.BoolVar(&cfg.Bootstrap, "bootstrap", false, "make a new cluster, if the folder has no identity yet")
	f.StringVar(&cfg.Join, "join", "", "control address of any node, if the folder has no identity yet")
	f.StringVar(&cfg.Token, "token", "", "what perigee token create prints; @FILE reads it from a file")
	f.StringVar(&bind, "bind", "127.0.0.1", "the address for node to node")
	f.StringVar(&advertise, "advertise", "", "where the other nodes reach it (default: --bind)")
	f.StringVar(&cfg.Gossip, "gossip", ":7946", "gossip, TCP and UDP")
	f.StringVar(&cfg.Control, "control", ":7947", "control (TCP) and backbone (UDP)")
	f.StringVar(&cfg.API, "api", "127.0.0.1:7948", "the API, by HTTPS with access tokens; empty: only the unix socket")
	f.StringVar(&cfg.HTTP, "http", ":80", "the world's door, HTTP; load balancers open theirs on the same address; empty: none")
	f.StringVar(&cfg.HTTPS, "https", ":443", "the world's door, HTTPS; empty: none")
	f.StringVar(&cfg.DNS, "dns", ":53", "the world's door, DNS over UDP and TCP; empty: none")
	f.StringVar(&cfg.DNSTLS, "dns-tls", "", "the world's door, DNS over TLS, as :853 (default: none)")
	f.StringVar(&cfg.DNSQUIC, "dns-quic", "", "the world's door, DNS over QUIC, as :853 (default: none)")
	f.StringSliceVar(&cfg.DNSHTTPS, "dns-https", nil, "hosts, names or IP addresses, on which the door of --https answers DNS at /dns-query (default: none)")
	f.IntVar(&cfg.DNSRate, "dns-rate", node.DNSRate, "DNS responses of a kind that one network gets by UDP in a second; 0: as many as it asks for")
	f.StringVar(&cfg.QueryLog, "dns-query-log", "", "write down queries of the zones that have queryLogging in this file; -: on standard output (default: none)")
	f.StringVar(&cfg.QueryLogFormat, "dns-query-log-format", node.QueryLogRoute53, "how: route53, its fields, or json, with more")
	f.StringVar(&cfg.FlowLog, "flow-log", "", "write down flows of the accelerators that have flowLogs in this file; -: on standard output (default: none)")
	f.StringVar(&cfg.FlowLogFormat, "flow-log-format", node.FlowLogAWS, "how: aws, Global Accelerator's fields, or json, with more")
	f.StringVar(&cfg.FlowsByTCP, "flows-by-tcp", node.TCPAuto, "when flows go to other nodes by a TCP connection each, not QUIC: auto (those of many bytes where that is faster), never, always")
	f.IntVar(&cfg.Connections, "connections", node.DefaultConnections, "connections that one port of an address for the world holds; more are closed")
	f.IntVar(&cfg.ConnectionsPerClient, "connections-per-client", 0, "how many of these one client may have, an IPv4 address or a /64 of IPv6; 0: a quarter of --connections, at least 256")
	f.Uint32Var(&cfg.TransparentMark, "transparent-mark", 0, "mark the packets to targets that see the client's address, for ip rule fwmark; 0: with nothing")
	f.StringSliceVar(&public, "public", nil, "its addresses for the world, which DNS answers (default: where the others reach it)")
	f.BoolVar(&cfg.OwnDoors, "own-doors", false, "open the accelerators' ports on the address of --http too, so that a client can choose the POP")
	f.StringSliceVar(&proxies, "proxy-headers-from", nil, "CIDRs of balancers in front, whose connections begin with a PROXY header")
	f.Uint32Var(&cfg.BGP.AS, "bgp-as", 0, "the nodes' autonomous system; 0: nothing is announced")
	f.StringArrayVar(&neighbors, "bgp-neighbor", nil, "ADDRESS[:PORT],AS of a router that is told the accelerators' addresses; again for more")
	f.DurationVar(&hold, "bgp-hold", anycast.DefaultHoldTime, "how long a router may take to notice that this machine is gone; 3s or more")
	f.StringVar(&routerID, "bgp-router-id", "", "this node's BGP identifier, an IPv4 address (default: where the others reach it)")
	f.StringVar(&nextHop6, "bgp-next-hop6", "", "where routers that are told over IPv4 send IPv6")
	f.IntVar(&cfg.BGP.NetworkZone, "bgp-network-zone", 0, "1 or 2: of accelerators with addresses in both network zones, announce those of this one alone; 0: all")
	f.StringSliceVar(&anycasts, "anycast", nil, "more addresses to announce while the node serves; its doors must be on all addresses")
	f.StringVar(&cfg.BGP.HandOver, "anycast-hand-over", node.HandOverAuto, "whether flows that other nodes have go on when routing leads them here: auto (where the kernel can hand them over), never (they are reset)")
	f.StringVar(&cfg.GeoDB, "geo-db", "", "a MaxMind-format file to use instead of the built-in country table")
	f.Int64Var(&cfg.CacheBytes, "cache-bytes", 256<<20, "memory for cached objects")
	f.Int64Var(&cfg.CacheDiskBytes, "cache-disk-bytes", 0, "disk for cached objects, which outlive a restart there; 0: none")
	f.StringVar(&cfg.CacheDir, "cache-dir", "", "the folder for that (default: cache in --data)")
	f.DurationVar(&cfg.Drain, "drain", node.DrainTime, "how long it serves on when it is told to end, for clients that DNS has sent here; 0: not at all")
	f.BoolVar(&withParent, "with-parent", false, "end when standard input does")
	f.StringVar(&profile, "profile", "", "write cpu.pprof, of its whole life, and heap.pprof, of when it is told to end, into this folder")
	f.BoolVarP(&verbose, "verbose", "v", false, "log more")
	f.MarkHidden("with-parent")
	f.MarkHidden("profile") // for perigee bench: what a node does is for nobody to see over a network
	c.AddCommand(nodeCommands()...)
	return c
}

// readBGP reads what the flags say of BGP.
func readBGP(b *node.BGP, neighbors, anycasts []string, routerID, nextHop6 string, hold time.Duration) error {
	for _, text := range neighbors {
		at, as, _ := strings.Cut(text, ",")
		n := anycast.Neighbor{HoldTime: hold}
		number, err := strconv.ParseUint(as, 10, 32)
		if whole, bad := netip.ParseAddrPort(at); bad == nil {
			n.Address, n.Port = whole.Addr(), whole.Port()
		} else if n.Address, bad = netip.ParseAddr(at); bad != nil {
			err = bad
		}
		if err != nil {
			return fmt.Errorf("--bgp-neighbor %q: want ADDRESS,AS or ADDRESS:PORT,AS", text)
		}
		n.AS = uint32(number)
		b.Neighbors = append(b.Neighbors, n)
	}
	for _, text := range anycasts {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return fmt.Errorf("--anycast: %w", err)
		}
		b.Anycast = append(b.Anycast, a)
	}
	for _, one := range []struct {
		flag, text string
		to         *netip.Addr
	}{{"bgp-router-id", routerID, &b.RouterID}, {"bgp-next-hop6", nextHop6, &b.NextHop6}} {
		if one.text == "" {
			continue
		}
		var err error
		if *one.to, err = netip.ParseAddr(one.text); err != nil {
			return fmt.Errorf("--%s: %w", one.flag, err)
		}
	}
	return nil
}

// heldLog keeps what a node says while it starts, so that one that cannot start says only why.
type heldLog struct {
	to       io.Writer
	mu       sync.Mutex
	held     bytes.Buffer
	released bool
}

// holdTime bounds how long a log is held: what takes longer is to be seen.
const holdTime = 5 * time.Second

func (l *heldLog) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.released {
		return l.to.Write(line)
	}
	return l.held.Write(line)
}

// release lets out what was held, and from now on holds nothing.
func (l *heldLog) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.released {
		l.released = true
		l.held.WriteTo(l.to)
	}
}

// runNode runs a node until the context ends; started is called when it serves.
func runNode(ctx context.Context, cfg node.Config, started func()) error {
	if os.Getenv("GOGC") == "" {
		defer boundGarbage(tidyTime)()
	}
	token, err := secret(cfg.Token)
	if _, gone := os.Stat(filepath.Join(cfg.Data, "node.json")); err != nil && gone != nil {
		return fmt.Errorf("--token: %w", err)
	}
	cfg.Token = token // a restart needs none, nor the file that it was in
	n, err := node.Start(ctx, cfg)
	if err != nil {
		if ctx.Err() != nil {
			return nil // told to end while it started
		}
		return err
	}
	started()
	select {
	case <-ctx.Done():
	case <-n.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), node.LeaveTime+cfg.Drain+stopTime)
	defer cancel()
	hurry, heard := signal.NotifyContext(stop, os.Interrupt, syscall.SIGTERM) // told a second time, it waits for nobody
	defer heard()
	stop = hurry
	return n.Close(stop)
}

// profiled runs f, and writes into the folder where the process spends its time until f ends, and what it has in memory when the context does. No
// folder: it only runs f.
func profiled(ctx context.Context, dir string, f func() error) (err error) {
	if dir == "" {
		return f()
	}
	cpu, err := os.Create(filepath.Join(dir, "cpu.pprof"))
	if err != nil {
		return fmt.Errorf("--profile: %w", err)
	}
	defer func() { err = errors.Join(err, cpu.Close()) }()
	if err := pprof.StartCPUProfile(cpu); err != nil {
		return fmt.Errorf("--profile: %w", err)
	}
	defer pprof.StopCPUProfile()
	written := make(chan error, 1)
	end := context.AfterFunc(ctx, func() { // a node that is closed has nothing left
		heap, err := os.Create(filepath.Join(dir, "heap.pprof"))
		if err == nil {
			err = errors.Join(pprof.Lookup("heap").WriteTo(heap, 0), heap.Close())
		}
		written <- err
	})
	err = f()
	if !end() {
		err = errors.Join(err, <-written)
	}
	return err
}

// endWith returns a context that ends when the reader does: a child whose parent is gone, in
// whatever way, must not stay behind.
func endWith(ctx context.Context, r io.Reader) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		io.Copy(io.Discard, r)
		cancel()
	}()
	return ctx
}

// newTarget is the server that perigee dev puts behind its load balancers.
func newTarget() *cobra.Command {
	var t demo.Target
	var web, tcp, dir string
	c := &cobra.Command{
		Use:    "target",
		Short:  "Run a demo target: a web server, and a service by TCP and UDP that says where it runs, then echoes",
		Hidden: true,
		Args:   noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			t.Site = demo.Site()
			if dir != "" {
				root, err := os.OpenRoot(dir)
				if err != nil {
					return err
				}
				defer root.Close()
				t.Site = root.FS()
			}
			webListener, err := net.Listen("tcp", web)
			if err != nil {
				return err
			}
			tcpListener, err := net.Listen("tcp", tcp)
			if err != nil {
				webListener.Close()
				return err
			}
			packets, err := net.ListenPacket("udp", tcpListener.Addr().String())
			if err != nil {
				webListener.Close()
				tcpListener.Close()
				return err
			}
			return t.Serve(endWith(c.Context(), c.InOrStdin()), webListener, tcpListener, packets)
		},
	}
	f := c.Flags()
	f.StringVar(&t.Name, "name", "", "its name")
	f.StringVar(&t.Region, "region", "", "its region")
	f.StringVar(&web, "http", "", "HOST:PORT of the web server")
	f.StringVar(&tcp, "tcp", "", "HOST:PORT of the service by TCP and UDP")
	f.StringVar(&dir, "site", "", "the folder to serve (default: a small site)")
	return c
}
