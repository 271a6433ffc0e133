package testbed

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/perigee-net/perigee/node"
	"github.com/perigee-net/perigee/node/api"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// Ways in which guests come.
var guestKinds = []string{"HTTP/1.1", "HTTP/1.1 over TLS", "HTTP/2", "HTTP/3"}

const httpsPort = 443

// guest is a client that keeps its connections, and counts those that it had to open.
type guest struct {
	kind  string
	base  string // of URLs: scheme and host
	rt    http.RoundTripper
	dials atomic.Int64
	leave func()
}

// guestAt has a guest come from a host to a node, who asks for names below a host.
func guestAt(from *memnet.Host, node netip.Addr, kind, host string) (*guest, error) {
	g := &guest{kind: kind, base: "https://" + host}
	port := httpsPort
	if kind == "HTTP/1.1" {
		g.base, port = "http://"+host, httpPort
	}
	at := netip.AddrPortFrom(node, uint16(port))
	config := &tls.Config{InsecureSkipVerify: true} // certificates are no matter of these tests
	if kind == "HTTP/3" {
		packets, err := from.ListenPacket("udp", ":0")
		if err != nil {
			return nil, err
		}
		sockets := &quic.Transport{Conn: packets}
		three := &http3.Transport{TLSClientConfig: config, Dial: func(ctx context.Context, _ string, c *tls.Config, q *quic.Config) (*quic.Conn, error) {
			g.dials.Add(1)
			return sockets.DialEarly(ctx, net.UDPAddrFromAddrPort(at), c, q)
		}}
		g.rt = three
		g.leave = func() {
			three.Close()
			sockets.Close()
			packets.Close()
		}
		return g, nil
	}
	one := &http.Transport{TLSClientConfig: config, Protocols: new(http.Protocols), DisableCompression: true}
	one.Protocols.SetHTTP1(kind != "HTTP/2")
	one.Protocols.SetHTTP2(kind == "HTTP/2")
	one.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		g.dials.Add(1)
		return from.Dial(ctx, network, at.String())
	}
	g.rt, g.leave = one, one.CloseIdleConnections
	return g, nil
}

// get asks for a path. It returns the response, whose body is closed, and what it held.
func (g *guest) get(ctx context.Context, path string) (*http.Response, string, error) {
	res, err := g.open(ctx, path)
	if err != nil {
		return nil, "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res, string(body), err
}

func (g *guest) open(ctx context.Context, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.base+path, nil)
	if err != nil {
		return nil, err
	}
	return g.rt.RoundTrip(req)
}

// openDoors has a node open its doors to the world.
func openDoors(c *node.Config) {
	c.HTTP = netip.AddrPortFrom(c.Advertise, httpPort).String()
	c.HTTPS = netip.AddrPortFrom(c.Advertise, httpsPort).String()
}

var originAddr = netip.AddrFrom4([4]byte{10, 201, 0, 1})

// originHost serves a handler at a machine of its own, which the nodes reach at originAddr, until stop is called.
func (f *Fleet) originHost(h http.Handler) (stop func(), err error) {
	host := f.in.Host("origin", f.places[0].at, originAddr)
	l, err := host.Listen("tcp", ":80")
	if err != nil {
		return nil, err
	}
	server := &http.Server{Handler: h}
	var serving sync.WaitGroup
	serving.Go(func() { server.Serve(l) })
	return func() {
		server.Close()
		serving.Wait()
	}, nil
}

// applies agrees on a spec, and waits until all nodes run it.
func (f *Fleet) applies(t *testing.T, yaml string) {
	t.Helper()
	if _, err := f.Inside(f.Names[0]).Apply(t.Context(), api.ApplyRequest{Files: []api.File{{Name: "spec.yaml", Data: yaml}}}); err != nil {
		t.Fatal(err)
	}
	if err := f.Agree(t.Context(), settled); err != nil {
		t.Fatal(err)
	}
}

// One cold key is asked for at three nodes at once by all kinds of clients, each with a connection of its own: the origin is asked once. (The
// scheme is in the key where a behaviour allows both, so they all come by https.)
func TestHundredsOfClientsOfAllKindsMakeOneRequest(t *testing.T) {
	const each = 99 // at a node
	kinds := guestKinds[1:]
	for _, c := range []struct {
		name, shield string
		regions      int
		pop          string
	}{
		{"three nodes of a POP", "", 1, "icn"},
		{"three POPs and an origin shield", ", originShield: {enabled: true, originShieldRegion: ap-northeast-2}", 3, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			tune := func(n *node.Config) {
				openDoors(n)
				if c.pop != "" {
					n.POP = c.pop
				}
			}
			inFleet(t, FleetConfig{Nodes: 3, Regions: c.regions, Tune: tune}, func(t *testing.T, f *Fleet) {
				var asked atomic.Int64
				stop, err := f.originHost(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					asked.Add(1)
					time.Sleep(2 * time.Second)
					w.Header().Set("Cache-Control", "max-age=60")
					io.WriteString(w, strings.Repeat("cold ", 1000))
				}))
				if err != nil {
					t.Fatal(err)
				}
				defer stop()
				f.applies(t, "kind: Region\nname: ap-northeast-2\n---\nkind: Distribution\nname: site\naliases: [www.site.test]\n"+
					"origins: [{name: own, url: \"http://"+originAddr.String()+"\""+c.shield+"}]\ndefaultCacheBehavior: {targetOrigin: own}\n")
				var all sync.WaitGroup
				var came [3]atomic.Int64
				for i, name := range f.Names {
					n := f.nodes[name]
					for j := range each {
						host := f.in.Host(fmt.Sprintf("guest-%s-%d", name, j), f.places[i%c.regions].at, netip.AddrFrom4([4]byte{10, 100, byte(i), byte(j + 1)}))
						all.Go(func() {
							g, err := guestAt(host, n.cfg.Advertise, kinds[j%3], "www.site.test")
							if err != nil {
								t.Error(err)
								return
							}
							defer g.leave()
							res, body, err := g.get(t.Context(), "/cold")
							if err != nil || res.StatusCode != http.StatusOK || body != strings.Repeat("cold ", 1000) {
								t.Errorf("%s at %s: %d bytes, %v", g.kind, name, len(body), err)
								return
							}
							if want, _, _ := strings.Cut(g.kind, " "); res.Proto != want && res.Proto != want+".0" {
								t.Errorf("%s came by %s", g.kind, res.Proto)
							}
							came[j%3].Add(1)
						})
					}
				}
				all.Wait()
				if n := asked.Load(); n != 1 {
					t.Errorf("the origin was asked %d times by %d clients", n, each*len(f.Names))
				}
				for i, kind := range kinds {
					if n := came[i].Load(); n != int64(each*len(f.Names)/len(kinds)) {
						t.Errorf("%d came by %s", n, kind)
					}
				}
			})
		})
	}
}

// certificatePEM makes a certificate for a host, which nobody trusts.
func certificatePEM(t *testing.T, host string, number int64) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(number), DNSNames: []string{host}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs}))
}

func indented(text string) string {
	return "  " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n  ") + "\n"
}

// trickle serves pages at once, and /long in many pieces with pauses between them.
type trickle struct {
	pieces int
	pause  time.Duration
}

const piece = "a piece of what takes its time\n"

func (s trickle) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "max-age=1")
	if !strings.HasPrefix(r.URL.Path, "/long") {
		io.WriteString(w, "page")
		return
	}
	for range s.pieces {
		io.WriteString(w, piece)
		w.(http.Flusher).Flush()
		time.Sleep(s.pause)
	}
}

// Twenty changes of all that doors go by, under connections of all kinds that are asked by all the time, to a distribution and to a load
// balancer, each with a long download: no connection is closed, and no request fails.
func TestAChangeOfTheSpecClosesNoConnection(t *testing.T) {
	const changes, pause = 20, 2 * time.Second
	inFleet(t, FleetConfig{Nodes: 3, Regions: 3, Tune: openDoors}, func(t *testing.T, f *Fleet) {
		slow := trickle{pieces: 2*changes + 4, pause: time.Second}
		stop, err := f.originHost(slow)
		if err != nil {
			t.Fatal(err)
		}
		defer stop()
		specAt := func(i int) string {
			certificate, key := certificatePEM(t, "www.site.test", int64(i+1))
			text := fmt.Sprintf(`
kind: Region
name: ap-northeast-2
---
kind: TargetGroup
name: web
region: ap-northeast-2
protocol: HTTP
port: 80
healthCheck: {path: /}
targets: [{address: %s}]
---
kind: SecurityGroup
name: all
ingress: [{protocol: tcp, fromPort: 8081, cidrs: [0.0.0.0/0]}, {protocol: tcp, fromPort: %d, cidrs: [10.0.0.0/8]}]
---
kind: LoadBalancer
name: web
region: ap-northeast-2
securityGroups: [all]
idleTimeout: %d
listeners:
  - {protocol: HTTP, port: 8081, default: {forward: web}}
`, originAddr, 9000+i, 60+i)
			if i%3 == 1 {
				text += "  - {protocol: HTTP, port: 8082, default: {forward: web}}\n"
			}
			text += fmt.Sprintf(`---
kind: CachePolicy
name: pages
minTTL: %d
---
kind: Certificate
name: www
certificate: |
%sprivateKey: |
%s---
kind: Distribution
name: site
aliases: [www.site.test%s]
origins: [{name: own, url: "http://%s", responseTimeout: %d}]
viewerCertificate: {minimumProtocolVersion: %s}
defaultCacheBehavior: {targetOrigin: own, cachePolicy: pages}
`, i%2, indented(certificate), indented(key), []string{"", ", more.site.test"}[i%2], originAddr, 20+i%5, []string{"TLSv1.2_2021", "TLSv1.2_2025"}[i/2%2])
			if i%4 == 2 {
				text += "cacheBehaviors: [{pathPattern: /other/*, targetOrigin: own}]\n"
			}
			return text
		}
		f.applies(t, specAt(0))
		until(t, settled, "the targets are healthy", func() bool {
			list, err := f.Inside("icn1").Health(t.Context(), api.HealthQuery{Name: "web"})
			healthy := err == nil && len(list) > 0
			for _, e := range list {
				healthy = healthy && e.Healthy
			}
			return healthy
		})
		n := f.nodes["icn1"]
		var guests []*guest
		var requests atomic.Int64
		asking, quiet := context.WithCancel(t.Context())
		defer quiet()
		var pages, downloads sync.WaitGroup
		come := func(kind, host string, port int) {
			from := f.clients["ap-northeast-2"]
			g, err := guestAt(from, n.cfg.Advertise, kind, host)
			if err != nil {
				t.Fatal(err)
			}
			if port != 0 {
				g.kind = "the load balancer"
				one := g.rt.(*http.Transport)
				one.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
					g.dials.Add(1)
					return from.Dial(ctx, network, netip.AddrPortFrom(n.cfg.Advertise, uint16(port)).String())
				}
			}
			guests = append(guests, g)
			pages.Go(func() {
				for i := 0; asking.Err() == nil; i++ {
					res, body, err := g.get(t.Context(), fmt.Sprint("/page/", i%7))
					if err != nil || res.StatusCode != http.StatusOK || body != "page" {
						t.Errorf("%s: %q, %v", g.kind, body, err)
					}
					requests.Add(1)
					time.Sleep(70 * time.Millisecond)
				}
			})
			time.Sleep(500 * time.Millisecond) // what asks for pages has its connection
			downloads.Go(func() {
				_, body, err := g.get(t.Context(), "/long/"+strings.ReplaceAll(g.kind, " ", ""))
				if want := strings.Repeat(piece, slow.pieces); err != nil || body != want {
					t.Errorf("%s: the download has %d bytes of %d, %v", g.kind, len(body), len(want), err)
				}
			})
		}
		for _, kind := range guestKinds {
			come(kind, "www.site.test", 0)
		}
		come("HTTP/1.1", "www.site.test", 8081)
		time.Sleep(time.Second)
		before := make([]int64, len(guests))
		for i, g := range guests {
			before[i] = g.dials.Load()
			if most := map[string]int64{"HTTP/2": 1, "HTTP/3": 1}[g.kind]; most > 0 && before[i] != most {
				t.Errorf("%s came by %d connections", g.kind, before[i])
			}
		}
		for i := range changes {
			f.applies(t, specAt(i+1))
			time.Sleep(pause)
		}
		quiet()
		pages.Wait()
		downloads.Wait()
		for i, g := range guests {
			if now := g.dials.Load(); now != before[i] {
				t.Errorf("%s opened %d more connections", g.kind, now-before[i])
			}
			g.leave()
		}
		if n := requests.Load(); n < 1000 {
			t.Errorf("there were %d requests: too few to show anything", n)
		}
		conn, err := f.clients["ap-northeast-2"].Dial(t.Context(), "tcp", n.cfg.HTTPS)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		anew := tls.Client(conn, &tls.Config{ServerName: "www.site.test", InsecureSkipVerify: true})
		if err := anew.HandshakeContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		if shown := anew.ConnectionState().PeerCertificates[0]; shown.SerialNumber.Int64() != changes+1 {
			t.Errorf("who comes anew is shown certificate %v", shown.SerialNumber)
		}
	})
}

// A node is drained, or stopped, under connections of all kinds: idle ones are told to go, or closed, downloads in flight finish, and whoever
// comes to a node that is only drained is served, and told to go.
func TestADrainTellsClientsOfAllKindsToGoAndCutsNothingOff(t *testing.T) {
	for _, way := range []string{"drain", "stop"} {
		t.Run(way, func(t *testing.T) {
			inFleet(t, FleetConfig{Nodes: 3, Regions: 3, Tune: openDoors}, func(t *testing.T, f *Fleet) {
				slow := trickle{pieces: 20, pause: time.Second}
				stop, err := f.originHost(slow)
				if err != nil {
					t.Fatal(err)
				}
				defer stop()
				f.applies(t, "kind: Distribution\nname: site\naliases: [www.site.test]\norigins: [{name: own, url: \"http://"+originAddr.String()+"\"}]\n"+
					"defaultCacheBehavior: {targetOrigin: own}\n")
				n := f.nodes["fra1"]
				var guests []*guest
				var downloads sync.WaitGroup
				for _, kind := range guestKinds {
					g, err := guestAt(f.clients["eu-central-1"], n.cfg.Advertise, kind, "www.site.test")
					if err != nil {
						t.Fatal(err)
					}
					defer g.leave()
					guests = append(guests, g)
					if _, body, err := g.get(t.Context(), "/"); err != nil || body != "page" {
						t.Fatalf("%s: %q, %v", kind, body, err)
					}
					downloads.Go(func() {
						_, body, err := g.get(t.Context(), "/long/"+strings.ReplaceAll(kind, " ", ""))
						if want := strings.Repeat(piece, slow.pieces); err != nil || body != want {
							t.Errorf("%s: the download has %d bytes of %d, %v", kind, len(body), len(want), err)
						}
					})
				}
				time.Sleep(2 * time.Second)
				ended := make(chan error, 1)
				if way == "drain" {
					if _, err := f.drain(t.Context(), "icn1", "node", "fra1", 0); err != nil {
						t.Fatal(err)
					}
					ended <- nil
				} else {
					go func() { ended <- f.Stop("fra1") }()
				}
				time.Sleep(3 * time.Second)
				for _, g := range guests {
					before := g.dials.Load()
					res, body, err := g.get(t.Context(), "/")
					if way == "drain" && g.kind == "HTTP/2" { // net/http's client shows no GOAWAY: its next request shows it
						res, body, err = g.get(t.Context(), "/")
					}
					switch {
					case way == "stop" && err == nil:
						t.Errorf("%s: a node that stops answers %d %q to who comes anew", g.kind, res.StatusCode, body)
					case way == "stop":
					case err != nil || body != "page":
						t.Errorf("%s: %q, %v", g.kind, body, err)
					case g.dials.Load() == before:
						t.Errorf("%s was not told to go", g.kind)
					case strings.HasPrefix(g.kind, "HTTP/1.1") && !res.Close:
						t.Errorf("%s: the answer does not say Connection: close", g.kind)
					}
				}
				downloads.Wait()
				if err := <-ended; err != nil {
					t.Errorf("the end of the node: %v", err)
				}
				if way == "stop" {
					return
				}
				if _, err := f.undrain(t.Context(), "icn1", "node", "fra1"); err != nil {
					t.Fatal(err)
				}
				time.Sleep(3 * time.Second)
				for _, g := range guests {
					for range 3 {
						if res, body, err := g.get(t.Context(), "/"); err != nil || body != "page" || res.Close {
							t.Errorf("%s, after the drain: %q, %v", g.kind, body, err)
						}
					}
					before := g.dials.Load()
					if _, body, err := g.get(t.Context(), "/"); err != nil || body != "page" || g.dials.Load() != before {
						t.Errorf("%s, after the drain, does not keep its connection: %q, %v", g.kind, body, err)
					}
				}
			})
		})
	}
}
