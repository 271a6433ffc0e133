package node

import (
	"context"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/node/api"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// configOf is a node on a host of its own.
func configOf(in *memnet.Internet, name, dir string, ip netip.Addr) Config {
	h := in.Host(name, spec.Location{Latitude: 50}, ip)
	at := func(port uint16) string { return netip.AddrPortFrom(ip, port).String() }
	return Config{
		Name: name, Region: "eu-central-1", POP: "fra1", Data: dir, Advertise: ip,
		Gossip: at(7946), Control: at(7947), API: at(7948), HTTP: at(80), DNS: at(53), NoSocket: true, CacheBytes: 1 << 20,
		Listen: h.Listen, ListenAnycast: h.Listen, ListenPacket: h.ListenPacket, Dial: h.Dial,
	}
}

// life starts a node, lets it live, and ends it.
func life(t *testing.T, cfg Config, live func(*Node)) {
	t.Helper()
	n, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	live(n)
	if err := n.Close(context.WithoutCancel(t.Context())); err != nil {
		t.Errorf("close: %v", err)
	}
}

func applied(t *testing.T, n *Node, yaml string) {
	t.Helper()
	for range 100 { // until it leads
		if _, err := n.apply(t.Context(), operator, api.ApplyRequest{Files: []api.File{{Name: "x.yaml", Data: yaml}}}); err == nil {
			return
		} else if err != api.ErrNotLeader {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatal("it does not lead")
}

func TestARestartNeedsNeitherFlagNorNeighbour(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		in := memnet.New(1)
		defer in.Close()
		cfg := configOf(in, "a", dir, netip.MustParseAddr("192.0.2.1"))
		cfg.Bootstrap = true
		life(t, cfg, func(n *Node) {
			applied(t, n, region)
			time.Sleep(time.Second)
		})
		cfg.Bootstrap = false
		life(t, cfg, func(n *Node) {
			if s := n.running.Get().spec; s.Revision != 1 || s.Regions["eu-central-1"] == nil {
				t.Errorf("it runs revision %d at once, want 1", s.Revision)
			}
		})
		cfg.Name = "b"
		if _, err := Start(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "is the data folder of node a, not of b") {
			t.Errorf("another node's folder: %v", err)
		}
	})
}

func TestADamagedFileIsRefusedByName(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		in := memnet.New(1)
		defer in.Close()
		cfg := configOf(in, "a", dir, netip.MustParseAddr("192.0.2.1"))
		cfg.Bootstrap = true
		life(t, cfg, func(n *Node) {
			applied(t, n, region)
			time.Sleep(time.Second)
		})
		var files []string
		filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if !d.IsDir() {
				files = append(files, path)
			}
			return err
		})
		if len(files) < 4 {
			t.Fatalf("the folder holds %v", files)
		}
		for _, path := range files {
			whole, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			os.WriteFile(path, whole[:len(whole)/2], 0o600)
			n, err := Start(t.Context(), cfg)
			if err == nil {
				n.Close(t.Context())
				t.Errorf("half of %s was taken for all of it", path)
			} else if !strings.Contains(err.Error(), path) {
				t.Errorf("half of %s: %v does not name it", path, err)
			}
			os.WriteFile(path, whole, 0o600)
		}
		life(t, cfg, func(*Node) {}) // whole again, it starts
	})
}

func TestAWrongTokenAndATakenNameAreRefused(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		in := memnet.New(1)
		defer in.Close()
		cfg := configOf(in, "a", dir, netip.MustParseAddr("192.0.2.1"))
		cfg.Bootstrap = true
		stranger := configOf(in, "b", filepath.Join(other, "b"), netip.MustParseAddr("192.0.2.2"))
		life(t, stranger.bootstrapped(), func(b *Node) {
			life(t, cfg, func(a *Node) {
				newcomer := configOf(in, "c", filepath.Join(other, "c"), netip.MustParseAddr("192.0.2.3"))
				newcomer.Join = cfg.Control
				for _, c := range []struct{ token, name, want string }{
					{"", "c", "--token is missing"},
					{"nonsense", "c", "token"},
					{tokenOf(t, b), "c", "not of the cluster"},
					{tokenOf(t, a), "a", "name"},
				} {
					newcomer.Token, newcomer.Name = c.token, c.name
					if _, err := Start(t.Context(), newcomer); err == nil || !strings.Contains(err.Error(), c.want) {
						t.Errorf("token %.12q, name %s: got %v, want %s", c.token, c.name, err, c.want)
					}
				}
				newcomer.Token, newcomer.Name = tokenOf(t, a), "c"
				life(t, newcomer, func(n *Node) {
					time.Sleep(20 * time.Second)
					if st := n.status(); len(st.Members) != 2 || st.Voters != 1 || st.Leader != "a" || st.Source != "a" {
						t.Errorf("with the right one: %+v", st)
					}
				})
			})
		})
	})
}

// tokenOf makes a join token.
func tokenOf(t *testing.T, n *Node) string {
	t.Helper()
	for range 100 { // until it leads
		if made, err := n.Client().CreateToken(t.Context(), api.TokenRequest{}); err == nil {
			return made.Token
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatal("it makes no token")
	return ""
}

func (c Config) bootstrapped() Config {
	c.Bootstrap = true
	return c
}

func TestWhatIsToldWrongIsSaid(t *testing.T) {
	good := Config{Name: "a", Region: "eu-central-1", POP: "fra1", Data: "x", Advertise: netip.MustParseAddr("192.0.2.1")}
	for _, c := range []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.Name = "" }, "--name is missing"},
		{func(c *Config) { c.Region = "EU" }, "--region"},
		{func(c *Config) { c.POP = "-x" }, "--pop"},
		{func(c *Config) { c.Data = "" }, "--data is missing"},
		{func(c *Config) { c.Bootstrap, c.Join = true, "192.0.2.1:7947" }, "not both"},
		{func(c *Config) { c.Roles = []view.Role{"king"} }, `no role "king"`},
		{func(c *Config) { c.DNS = "ns1:53" }, "--dns "},
		{func(c *Config) { c.DNSHTTPS = []string{"ns1.example.com"} }, "--dns-https needs --https"},
		{func(c *Config) { c.HTTPS, c.DNSHTTPS = ":443", []string{"ns1.example.com:443"} }, "without a port"},
		{func(c *Config) { c.QueryLogFormat = "xml" }, "--dns-query-log-format"},
		{func(c *Config) { c.FlowLogFormat = "xml" }, "--flow-log-format"},
		{func(c *Config) { c.FlowsByTCP = "sometimes" }, "--flows-by-tcp"},
		{func(c *Config) { c.FlowLog, c.QueryLog = "/tmp/one.log", "/tmp/one.log" }, "--flow-log /tmp/one.log"},
		{func(c *Config) { c.DNSRate = -1 }, "--dns-rate"},
		{func(c *Config) { c.Connections = -1 }, "--connections -1"},
		{func(c *Config) { c.Connections = 1<<20 + 1 }, "--connections 1048577"},
		{func(c *Config) { c.ConnectionsPerClient = -1 }, "--connections-per-client -1"},
		{func(c *Config) { c.ConnectionsPerClient = 16385 }, "want 1 to the 16384"},
		{func(c *Config) { c.Connections, c.ConnectionsPerClient = 100, 101 }, "want 1 to the 100"},
		{func(c *Config) { c.Drain = -time.Second }, "--drain"},
		{func(c *Config) { c.CacheBytes = -1 }, "--cache-bytes"},
		{func(c *Config) { c.CacheDiskBytes = 1 }, "--cache-disk-bytes"},
		{func(c *Config) { c.CacheDir = "x" }, "--cache-dir needs"},
	} {
		cfg := good
		c.change(&cfg)
		if err := cfg.complete(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
	told := []string{"NS1.example.com.", "2001:DB8::1"}
	good.HTTPS, good.DNSHTTPS = ":443", told
	if err := good.complete(); err != nil || len(good.Roles) != 4 || good.Public[0] != good.Advertise ||
		!slices.Equal(good.DNSHTTPS, []string{"ns1.example.com", "2001:db8::1"}) {
		t.Errorf("%v, %+v", err, good)
	}
	if told[0] != "NS1.example.com." {
		t.Errorf("the caller's list is now %q", told)
	}
}
