package node

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/perigee-net/perigee/cluster/roster"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/node/api"
	"github.com/perigee-net/perigee/testbed/memnet"
)

func securityGroup(name string, rules string) string {
	return "kind: SecurityGroup\nname: " + name + "\ningress: [" + rules + "]\n"
}

func TestASecurityGroupsRulesAddUp(t *testing.T) {
	s, err := spec.Build(1, mustSplit(t, region+"---\n"+
		securityGroup("office", "{protocol: tcp, fromPort: 80, toPort: 90, cidrs: [192.0.2.0/24, '2001:db8::/32']}")+"---\n"+
		securityGroup("vpn", "{protocol: -1, cidrs: [198.51.100.7/32]}, {protocol: udp, fromPort: 80, cidrs: [0.0.0.0/0]}")+"---\n"+
		securityGroup("nobody", "")+`---
{kind: LoadBalancer, name: open, region: eu-central-1, listeners: [{protocol: HTTP, port: 80, default: {fixedResponse: {statusCode: 200}}}]}
---
{kind: LoadBalancer, name: both, region: eu-central-1, securityGroups: [office, vpn], listeners: [{protocol: HTTP, port: 81, default: {fixedResponse: {statusCode: 200}}}]}
---
{kind: LoadBalancer, name: shut, region: eu-central-1, securityGroups: [nobody], listeners: [{protocol: HTTP, port: 82, default: {fixedResponse: {statusCode: 200}}}]}
`), spec.Options{})
	if err != nil {
		t.Fatal(err)
	}
	next := guards{}
	for _, c := range []struct {
		at   door
		from string
		want bool
	}{
		{door{"both", 81}, "192.0.2.9", true}, {door{"both", 81}, "2001:db8::1", true}, {door{"both", 81}, "198.51.100.7", true},
		{door{"both", 81}, "198.51.100.8", false}, {door{"both", 79}, "192.0.2.9", false}, {door{"both", 79}, "198.51.100.7", true},
		{door{"both", 91}, "2001:db8::1", false}, {door{"shut", 82}, "192.0.2.9", false},
	} {
		if got := (guards{}).allowed(s, c.at, next)(netip.MustParseAddr(c.from)); got != c.want {
			t.Errorf("%v from %s: got %t", c.at, c.from, got)
		}
	}
	if (guards{}).allowed(s, door{"open", 80}, next) != nil || (guards{}).allowed(s, door{"gone", 80}, next) != nil {
		t.Error("what no group guards is guarded")
	}
	again := guards{}
	if next.allowed(s, door{"both", 81}, again); again[door{"both", 81}].admits != next[door{"both", 81}].admits {
		t.Error("a table is made anew of groups that have not changed")
	}
}

func mustSplit(t *testing.T, text string) []spec.Document {
	t.Helper()
	docs, err := spec.Split("x.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return docs
}

func TestSecurityGroupsDecideWhoConnectsToALoadBalancer(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		in := memnet.New(1)
		defer in.Close()
		client := in.Host("client", spec.Location{}, netip.MustParseAddr("198.51.100.1"))
		life(t, configOf(in, "a", dir, netip.MustParseAddr("192.0.2.1")).bootstrapped(), func(n *Node) {
			const web = "---\n{kind: LoadBalancer, name: web, region: eu-central-1, securityGroups: [web], listeners: [{protocol: HTTP, port: 8000, default: {fixedResponse: {statusCode: 200}}}]}\n"
			lets := func(cidr string) string {
				return securityGroup("web", "{protocol: tcp, fromPort: 8000, cidrs: ["+cidr+"]}")
			}
			applied(t, n, region)
			applied(t, n, lets("198.51.100.0/24")+web)
			time.Sleep(time.Second)
			ask := func(c net.Conn) bool {
				fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
				res, err := http.ReadResponse(bufio.NewReader(c), nil)
				return err == nil && res.StatusCode == http.StatusOK
			}
			open := func() net.Conn {
				c, err := client.Dial(t.Context(), "tcp", "192.0.2.1:8000")
				if err != nil {
					t.Fatal(err)
				}
				return c
			}
			first := open()
			defer first.Close()
			if !ask(first) {
				t.Fatal("a client that a rule lets in is turned away")
			}
			applied(t, n, lets("203.0.113.0/24"))
			time.Sleep(time.Second)
			if !ask(first) {
				t.Error("a connection that was let in is ended")
			}
			second := open()
			defer second.Close()
			if ask(second) {
				t.Error("a client that no rule lets in any more is served")
			}
			if got := n.front.Counters()["front_not_allowed_total"]; got != 1 {
				t.Errorf("%d are counted", got)
			}
		})
	})
}

func TestALoadBalancerGradesRequestsAsItsModeSays(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		in := memnet.New(1)
		defer in.Close()
		client := in.Host("client", spec.Location{}, netip.MustParseAddr("198.51.100.1"))
		life(t, configOf(in, "a", dir, netip.MustParseAddr("192.0.2.1")).bootstrapped(), func(n *Node) {
			applied(t, n, region)
			for _, c := range []struct {
				mode string
				want int
			}{{"", 200}, {"desyncMitigationMode: strictest, ", 400}, {"desyncMitigationMode: monitor, ", 200}} {
				applied(t, n, "---\n{kind: LoadBalancer, name: web, region: eu-central-1, "+c.mode+
					"listeners: [{protocol: HTTP, port: 8000, default: {fixedResponse: {statusCode: 200}}}]}\n")
				time.Sleep(time.Second)
				conn, err := client.Dial(t.Context(), "tcp", "192.0.2.1:8000")
				if err != nil {
					t.Fatal(err)
				}
				fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n") // acceptable
				if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || res.StatusCode != c.want {
					t.Errorf("%q: %v, %v, want %d", c.mode, res, err, c.want)
				}
				conn.Close()
			}
		})
	})
}

const shop = `---
kind: Distribution
name: shop
aliases: [shop.example]
origins: [{name: own, url: "http://192.0.2.200"}]
defaultCacheBehavior: {targetOrigin: own}
viewerCertificate: {minimumProtocolVersion: TLSv1.3_2025}
`

func TestADistributionsPolicyHoldsForItsHosts(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		in := memnet.New(1)
		defer in.Close()
		cfg := configOf(in, "a", dir, netip.MustParseAddr("192.0.2.1")).bootstrapped()
		cfg.HTTPS = "192.0.2.1:443"
		life(t, cfg, func(n *Node) {
			applied(t, n, region+shop)
			time.Sleep(time.Second)
			client := in.Host("client", spec.Location{}, netip.MustParseAddr("198.51.100.1"))
			for host, want := range map[string]bool{"shop.example": false, "other.example": true} {
				c, err := client.Dial(t.Context(), "tcp", cfg.HTTPS)
				if err != nil {
					t.Fatal(err)
				}
				err = tls.Client(c, &tls.Config{ServerName: host, MaxVersion: tls.VersionTLS12, InsecureSkipVerify: true}).Handshake()
				if (err == nil) != want {
					t.Errorf("TLS 1.2 with %s: %v", host, err)
				}
				c.Close()
			}
		})
	})
}

// A client of one node resumes at another with its first flight, after keys were rotated by the leader, and not when they were all replaced.
func TestTheNodesOfAClusterReadEachOthersTickets(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		in := memnet.New(1)
		defer in.Close()
		first := configOf(in, "a", filepath.Join(dir, "a"), netip.MustParseAddr("192.0.2.1")).bootstrapped()
		first.HTTPS = "192.0.2.1:443"
		var later atomic.Int64 // the wall clock's, by which keys are rotated: two days of the rest would take long
		pass := func(d time.Duration) {
			later.Add(int64(d))
			time.Sleep(3 * time.Second)
		}
		first.Now = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
		life(t, first, func(a *Node) {
			applied(t, a, region+shop)
			made, err := a.Client().CreateToken(t.Context(), api.TokenRequest{})
			if err != nil {
				t.Fatal(err)
			}
			second := configOf(in, "b", filepath.Join(dir, "b"), netip.MustParseAddr("192.0.2.2"))
			second.Now = first.Now
			second.HTTPS, second.Join, second.Token = "192.0.2.2:443", first.Control, made.Token
			life(t, second, func(b *Node) {
				client := in.Host("client", spec.Location{}, netip.MustParseAddr("198.51.100.1"))
				config := &tls.Config{ServerName: "shop.example", InsecureSkipVerify: true, ClientSessionCache: tls.NewLRUClientSessionCache(10)}
				visit := func(node string) (resumed, early bool) {
					t.Helper()
					packets, err := client.ListenPacket("udp", ":0")
					if err != nil {
						t.Fatal(err)
					}
					defer packets.Close()
					transport := &quic.Transport{Conn: packets}
					defer transport.Close()
					var conn *quic.Conn
					tr := &http3.Transport{TLSClientConfig: config, Dial: func(ctx context.Context, _ string, c *tls.Config, q *quic.Config) (*quic.Conn, error) {
						conn, err = transport.DialEarly(ctx, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(node)), c, q)
						return conn, err
					}}
					defer tr.Close()
					r, err := http.NewRequestWithContext(t.Context(), http3.MethodGet0RTT, "https://shop.example/", nil)
					if err != nil {
						t.Fatal(err)
					}
					res, err := tr.RoundTrip(r)
					if errors.Is(err, quic.Err0RTTRejected) {
						return false, false
					} else if err != nil {
						t.Fatal(err)
					}
					io.Copy(io.Discard, res.Body)
					res.Body.Close()
					state := conn.ConnectionState()
					return state.TLS.DidResume, state.Used0RTT
				}
				if resumed, _ := visit("192.0.2.1:443"); resumed {
					t.Error("a new client is known")
				}
				if resumed, early := visit("192.0.2.2:443"); !resumed || !early {
					t.Errorf("at another node: resumed %t, early %t", resumed, early)
				}
				stages := len(a.roster.Get().TicketKeys)
				pass(roster.TicketKeyTime)
				if now := len(a.roster.Get().TicketKeys); stages != 2 || now != 3 || !b.roster.Get().TicketKeys[0].Since.Equal(a.roster.Get().TicketKeys[0].Since) {
					t.Errorf("%d keys, and then %d", stages, now)
				}
				if resumed, _ := visit("192.0.2.1:443"); !resumed {
					t.Error("a ticket of before a rotation is not taken")
				}
				for range 3 {
					pass(roster.TicketKeyTime)
				}
				if resumed, _ := visit("192.0.2.2:443"); resumed {
					t.Error("a ticket is taken whose key is gone")
				}
			})
		})
	})
}
