package identity

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/testbed/memnet"
)

func trust(revoked map[string]uint64, clusters ...*cluster) Trust {
	t := Trust{Revoked: revoked}
	for _, c := range clusters {
		t.Authorities = append(t.Authorities, c.Certificate())
	}
	return t
}

func TestAPeerIsKnownByWhatWasVerifiedOnly(t *testing.T) {
	ca, err := NewAuthority(NewClusterID(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	n := nodeOfRoles(t, ca, "voter", "edge")
	if c, err := PeerClaim(tls.ConnectionState{PeerCertificates: []*x509.Certificate{n.cert}}); err == nil {
		t.Errorf("what was merely shown is taken: %+v", c)
	}
	c, err := PeerClaim(tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{n.cert, n.authorities[0]}}})
	if err != nil || c.Name != "icn1-a" || !slices.Equal(c.Roles, []string{"edge", "voter"}) || !c.Votes() {
		t.Errorf("got %+v, %v", c, err)
	}
	n = nodeOfRoles(t, ca, "edge", "dns", "origin")
	if c, err := PeerClaim(tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{n.cert, n.authorities[0]}}}); err != nil || c.Votes() {
		t.Errorf("without the role: %+v, %v", c, err)
	}
	if c, err := PeerClaim(tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{n.authorities[0]}}}); err == nil {
		t.Errorf("an authority passes for a node: %+v", c)
	}
}

func nodeOfRoles(t *testing.T, ca *Authority, roles ...string) *Node {
	t.Helper()
	n, err := ca.Node(Claim{Name: "icn1-a", Region: "r", POP: "p", Roles: roles}, 1, Keys{Cluster: NewKey()}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestARevokedNodeIsShutOut(t *testing.T) {
	c := newCluster(t)
	icn := guard(nodeAt(t, c, claim("icn1-a"), 5))
	for _, test := range []struct {
		revoked map[string]uint64
		out     bool
	}{
		{nil, false},
		{map[string]uint64{"icn1-a": 4}, false}, // an earlier bearer of the name
		{map[string]uint64{"icn1-a": 5}, true},
		{map[string]uint64{"icn1-a": 6}, true},
		{map[string]uint64{"icn1-b": 9}, false},
	} {
		nrt := NewGuard(node(t, c, "nrt1-a"), trust(nil, c), nil)
		// Configurations that were made before know of it too.
		kept, keptClient := nrt.ServerTLS("x"), nrt.ClientTLS("icn1-a", "x")
		nrt.SetTrust(trust(test.revoked, c))
		_, _, clientErr, serverErr := shake(icn.ClientTLS("nrt1-a", "x"), kept)
		if (clientErr != nil) != test.out || errors.Is(serverErr, ErrRevoked) != test.out {
			t.Errorf("%v, it dials: %v at the client, %v at the server", test.revoked, clientErr, serverErr)
		}
		_, _, clientErr, serverErr = shake(keptClient, icn.ServerTLS("x"))
		if (serverErr != nil) != test.out || errors.Is(clientErr, ErrRevoked) != test.out {
			t.Errorf("%v, it is dialed: %v at the client, %v at the server", test.revoked, clientErr, serverErr)
		}
		want := uint64(0)
		if test.out {
			want = 2
		}
		if got := nrt.Counters()["identity_revoked_refused_total"]; got != want {
			t.Errorf("%v: counted %d", test.revoked, got)
		}
		// A machine admitted anew under the name has a later epoch.
		if err := talk(guard(nodeAt(t, c, claim("icn1-a"), 7)), nrt); err != nil {
			t.Errorf("%v, admitted anew: %v", test.revoked, err)
		}
	}
}

func TestAnOpenConnectionOfARevokedNodeIsRefused(t *testing.T) {
	c := newCluster(t)
	second := c.next(t)
	icn, nrt := guard(node(t, c, "icn1-a")), guard(node(t, c, "nrt1-a"))
	client, server, clientErr, serverErr := shake(icn.ClientTLS("nrt1-a", "x"), nrt.ServerTLS("x"))
	if clientErr != nil || serverErr != nil {
		t.Fatal(clientErr, serverErr)
	}
	for name, test := range map[string]struct {
		trust  Trust
		client error // what icn1-a says of nrt1-a
		server error // what nrt1-a says of icn1-a
	}{
		"by what came with the identity": {Trust{}, nil, nil},
		"trusted":                        {trust(nil, c), nil, nil},
		"revoked":                        {trust(map[string]uint64{"icn1-a": 1}, c), nil, ErrRevoked},
		"the other revoked":              {trust(map[string]uint64{"nrt1-a": 1}, c), ErrRevoked, nil},
		"a rotation begun":               {trust(nil, c, second), nil, nil},
		"a rotation ended":               {trust(nil, second), ErrRetired, ErrRetired},
	} {
		icn.SetTrust(test.trust)
		nrt.SetTrust(test.trust)
		if err := icn.Refused(client); !errors.Is(err, test.client) {
			t.Errorf("%s: the client says %v", name, err)
		}
		if err := nrt.Refused(server); !errors.Is(err, test.server) {
			t.Errorf("%s: the server says %v", name, err)
		}
	}
	if err := icn.Refused(tls.ConnectionState{}); err != nil {
		t.Errorf("a stranger who joins is refused: %v", err)
	}
}

// A rotation of the authority goes node by node. At no step do two nodes lose each other whose steps are at most one apart.
func TestTwoAuthoritiesAreTrustedDuringARotation(t *testing.T) {
	first := newCluster(t)
	second := first.next(t)
	both := trust(nil, first, second)
	steps := []struct {
		name   string
		issuer *cluster
		trust  Trust
	}{
		{"before", first, trust(nil, first)},
		{"introduced", first, both},
		{"used", second, both},
		{"retired", second, trust(nil, second)},
	}
	guards := map[int][2]*Guard{}
	for i, step := range steps {
		guards[i] = [2]*Guard{
			NewGuard(node(t, step.issuer, "icn1-a"), step.trust, nil),
			NewGuard(node(t, step.issuer, "nrt1-a"), step.trust, nil),
		}
	}
	for i := range steps {
		for j := range steps {
			err := talk(guards[i][0], guards[j][1])
			if near := max(i-j, j-i) <= 1; near && err != nil {
				t.Errorf("%s and %s: %v", steps[i].name, steps[j].name, err)
			}
			if far := max(i-j, j-i) == 3; far && err == nil {
				t.Errorf("%s and %s know each other", steps[i].name, steps[j].name)
			}
		}
	}
}

func TestAnAuthorityOfAnotherClusterVouchesForNobody(t *testing.T) {
	c, other := newCluster(t), newCluster(t)
	lax := NewGuard(node(t, c, "nrt1-a"), trust(nil, c, other), nil)
	lax.SetTrust(Trust{Authorities: [][]byte{other.Certificate(), []byte("garbage"), c.Certificate()}})
	if talk(guard(node(t, other, "icn1-a")), lax) == nil {
		t.Error("a node of another cluster is taken in")
	}
	if err := talk(guard(node(t, c, "icn1-a")), lax); err != nil {
		t.Error(err)
	}
	lax.SetTrust(Trust{Authorities: [][]byte{[]byte("garbage")}})
	if talk(guard(node(t, c, "icn1-a")), lax) == nil {
		t.Error("who trusts nobody that can be read trusts somebody")
	}
}

func TestARenewedIdentityIsShownByTheNextHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		icn, nrt := guard(node(t, c, "icn1-a")), guard(node(t, c, "nrt1-a"))
		// All made before the renewal, and kept.
		server, join, public, client := icn.ServerTLS("x"), icn.JoinTLS(), icn.PublicTLS(), icn.ClientTLS("nrt1-a", "x")
		time.Sleep(60 * 24 * time.Hour)
		old := icn.Node()
		renewed := nodeAt(t, c, claim("icn1-a"), 9)
		icn.SetNode(renewed)
		nrt.SetNode(node(t, c, "nrt1-a"))
		time.Sleep(31 * 24 * time.Hour)
		if old.Valid(time.Now()) == nil {
			t.Fatal("the old certificate should have ended")
		}

		dial := PinnedTLS(c.Hash(), nil)
		dial.NextProtos = []string{JoinProtocol, "h2"}
		for name, test := range map[string]struct{ client, server *tls.Config }{
			"to nodes": {nrt.ClientTLS("icn1-a", "x"), server}, "to a joiner": {dial, join}, "to the public": {dial, public},
		} {
			state, _, clientErr, serverErr := shake(test.client, test.server)
			if clientErr != nil || serverErr != nil {
				t.Errorf("%s: %v, %v", name, clientErr, serverErr)
			} else if !state.PeerCertificates[0].Equal(renewed.cert) {
				t.Errorf("%s the old certificate is shown", name)
			}
		}
		_, state, clientErr, serverErr := shake(client, nrt.ServerTLS("x"))
		if clientErr != nil || serverErr != nil {
			t.Errorf("dialing: %v, %v", clientErr, serverErr)
		} else if !state.PeerCertificates[0].Equal(renewed.cert) {
			t.Error("dialing, the old certificate is shown")
		}
	})
}

// A port that serves many protocols has a GetConfigForClient of its own, which hands out the guard's configurations.
func TestAConfigurationMayBeHandedOut(t *testing.T) {
	c := newCluster(t)
	icn, nrt := guard(node(t, c, "icn1-a")), guard(node(t, c, "nrt1-a"))
	port := &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return nrt.ServerTLS("x"), nil }}
	_, state, clientErr, serverErr := shake(icn.ClientTLS("nrt1-a", "x"), port)
	if clientErr != nil || serverErr != nil {
		t.Fatal(clientErr, serverErr)
	}
	if name, err := PeerName(state); name != "icn1-a" || err != nil {
		t.Errorf("the server sees %q, %v", name, err)
	}
	nrt.SetTrust(trust(map[string]uint64{"icn1-a": 1}, c))
	if _, _, _, err := shake(icn.ClientTLS("nrt1-a", "x"), port); !errors.Is(err, ErrRevoked) {
		t.Errorf("revoked: %v", err)
	}
}

// The backbone's links are QUIC, and its listener is made once: it must go by the guard at each handshake too.
func TestAGuardServesQUIC(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := memnet.New(1)
		t.Cleanup(in.Close)
		c := newCluster(t)
		second := c.next(t)
		icn, nrt := guard(node(t, c, "icn1-a")), guard(node(t, c, "nrt1-a"))
		transport := func(name, addr string) *quic.Transport {
			conn, err := in.Host(name, spec.Location{}, netip.MustParseAddr(addr)).ListenPacket("udp", addr+":7947")
			if err != nil {
				t.Fatal(err)
			}
			return &quic.Transport{Conn: conn}
		}
		from, to := transport("icn", "192.0.2.1"), transport("nrt", "192.0.2.2")
		defer to.Conn.Close()
		defer from.Conn.Close()
		defer to.Close()
		defer from.Close()
		listener, err := to.Listen(nrt.ServerTLS("x"), nil)
		if err != nil {
			t.Fatal(err)
		}
		// dial returns what the server sees of the client, and what the client sees of the server.
		dial := func() (server, client tls.ConnectionState, err error) {
			conn, err := from.Dial(t.Context(), to.Conn.LocalAddr(), icn.ClientTLS("nrt1-a", "x"), nil)
			if err != nil {
				return server, client, err
			}
			defer conn.CloseWithError(0, "")
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			accepted, err := listener.Accept(ctx)
			if err != nil {
				return server, client, err
			}
			return accepted.ConnectionState().TLS, conn.ConnectionState().TLS, nil
		}
		sees := func(state tls.ConnectionState, want *Node) {
			t.Helper()
			if name, err := PeerName(state); err != nil || name != want.Name() || !state.PeerCertificates[0].Equal(want.cert) {
				t.Errorf("it sees %s, %v, want %v", name, err, want)
			}
		}

		server, client, err := dial()
		if err != nil {
			t.Fatal(err)
		}
		sees(server, icn.Node())
		sees(client, nrt.Node())

		both := trust(nil, c, second)
		icn.SetTrust(both)
		nrt.SetTrust(both)
		icn.SetNode(nodeAt(t, second, claim("icn1-a"), 2))
		nrt.SetNode(nodeAt(t, second, claim("nrt1-a"), 2))
		if server, client, err = dial(); err != nil {
			t.Fatal(err)
		}
		sees(server, icn.Node())
		sees(client, nrt.Node())

		nrt.SetTrust(trust(map[string]uint64{"icn1-a": 2}, c, second))
		if _, _, err := dial(); err == nil {
			t.Error("a revoked node is let in")
		}
		if err := nrt.Refused(server); !errors.Is(err, ErrRevoked) {
			t.Errorf("its open link: %v", err)
		}
	})
}

// For the race detector: what is set and what handshakes read are whole at every moment.
func TestAGuardMayBeChangedWhileItServes(t *testing.T) {
	c := newCluster(t)
	second := c.next(t)
	// Both trust both authorities from the start: a guard that was given no trust believes only the authorities of its own
	// node, and would refuse the peer between the identity of the second and the trust that follows.
	both := trust(nil, c, second)
	g, peer := NewGuard(node(t, c, "icn1-a"), both, nil), NewGuard(node(t, c, "nrt1-a"), both, nil)
	nodes := []*Node{node(t, c, "icn1-a"), node(t, second, "icn1-a")}
	var work sync.WaitGroup
	for i := range 4 {
		work.Go(func() {
			for range 20 {
				if i%2 == 0 {
					g.SetNode(nodes[i/2])
					g.SetTrust(trust(map[string]uint64{"fra1-a": uint64(i)}, c, second))
				} else if err := talk(g, peer); err != nil {
					t.Error(err)
				}
				g.Counters()
			}
		})
	}
	work.Wait()
	if node, revoked := g.Node(), g.Trust().Revoked["fra1-a"]; !slices.Contains(nodes, node) || revoked != 0 && revoked != 2 {
		t.Errorf("ended with %v, %d", node, revoked)
	}
}

// serveHTTPS serves the API by a guard at port 7948 of these addresses, and returns a machine to ask from.
func serveHTTPS(t *testing.T, in *memnet.Internet, g *Guard, addresses ...netip.Addr) *memnet.Host {
	t.Helper()
	host := in.Host("server", spec.Location{}, addresses...)
	client := in.Host("client", spec.Location{}, netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8:1::1"))
	listener, err := host.Listen("tcp", ":7948")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{
		TLSConfig: g.PublicTLS(),
		ErrorLog:  log.New(io.Discard, "", 0),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s, %d client certificates", r.Proto, len(r.TLS.PeerCertificates))
		}),
	}
	done := make(chan error, 1)
	go func() { done <- server.ServeTLS(listener, "", "") }()
	t.Cleanup(func() {
		server.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return client
}

// get asks as a program does that was given a TLS configuration and nothing else.
func get(client *memnet.Host, config *tls.Config, url string) (string, error) {
	transport := &http.Transport{DialContext: client.Dial, TLSClientConfig: config, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	answer, err := (&http.Client{Transport: transport}).Get(url)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	return string(body), err
}

func TestTheAPIIsServedByHTTPS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := memnet.New(1)
		t.Cleanup(in.Close)
		c, other := newCluster(t), newCluster(t)
		v4, v6, unnamed := netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7"), netip.MustParseAddr("192.0.2.8")
		named := claim("icn1-a")
		named.Addresses = []netip.Addr{v4, v6}
		g := NewGuard(nodeAt(t, c, named, 1), trust(nil, c), nil)
		client := serveHTTPS(t, in, g, v4, v6, unnamed)
		in.Name("icn1-a", v4)
		in.Name("any.example", v4)

		// As with a file of authorities: curl --cacert.
		byFile := func(pem []byte) *tls.Config {
			pool := x509.NewCertPool()
			if !pool.AppendCertsFromPEM(pem) {
				t.Fatalf("no certificate in %s", pem)
			}
			return &tls.Config{RootCAs: pool}
		}
		ahead := func() time.Time { return time.Now().Add(91 * 24 * time.Hour) }
		for name, test := range map[string]struct {
			config *tls.Config
			host   string
			says   string // "" if all is well
		}{
			"by file, at an address":             {byFile(g.Trust().PEM()), "192.0.2.7", ""},
			"by file, at an IPv6 address":        {byFile(g.Trust().PEM()), "[2001:db8::7]", ""},
			"by file, by the node's name":        {byFile(g.Trust().PEM()), "icn1-a", ""},
			"by file, by another name":           {byFile(g.Trust().PEM()), "any.example", "not any.example"},
			"by file, at an address not claimed": {byFile(g.Trust().PEM()), "192.0.2.8", "not 192.0.2.8"},
			"by the file of another cluster":     {byFile(trust(nil, other).PEM()), "192.0.2.7", "unknown authority"},
			"by two files of a rotation":         {byFile(trust(nil, other, c).PEM()), "192.0.2.7", ""},
			"pinned, by any name":                {PinnedTLS(c.Hash(), nil), "any.example", ""},
			"pinned, at any address":             {PinnedTLS(c.Hash(), nil), "192.0.2.8", ""},
			"pinned to another cluster":          {PinnedTLS(other.Hash(), nil), "192.0.2.7", ErrOtherCluster.Error()},
			"pinned, by a clock far ahead":       {PinnedTLS(c.Hash(), ahead), "192.0.2.7", "this machine's clock shows"},
		} {
			body, err := get(client, test.config, "https://"+test.host+":7948/")
			switch {
			case test.says == "" && (err != nil || body != "HTTP/2.0, 0 client certificates"):
				t.Errorf("%s: %q, %v", name, body, err)
			case test.says != "" && (err == nil || !strings.Contains(err.Error(), test.says)):
				t.Errorf("%s: %q, %v, want %q", name, body, err, test.says)
			}
		}
		if _, err := get(client, PinnedTLS(other.Hash(), nil), "https://192.0.2.7:7948/"); !errors.Is(err, ErrOtherCluster) {
			t.Errorf("%v is not ErrOtherCluster", err)
		}

		// Renewed by another authority in a rotation: the file with both goes on, a pin to the old one ends.
		second := c.next(t)
		g.SetTrust(trust(nil, c, second))
		g.SetNode(nodeAt(t, second, named, 2))
		if _, err := get(client, byFile(g.Trust().PEM()), "https://192.0.2.7:7948/"); err != nil {
			t.Errorf("by the file of both: %v", err)
		}
		if _, err := get(client, PinnedTLS(second.Hash(), nil), "https://192.0.2.7:7948/"); err != nil {
			t.Errorf("pinned to the new one: %v", err)
		}
		if _, err := get(client, PinnedTLS(c.Hash(), nil), "https://192.0.2.7:7948/"); !errors.Is(err, ErrOtherCluster) {
			t.Errorf("pinned to the old one: %v", err)
		}
	})
}

func TestAPinIsNotFooled(t *testing.T) {
	c, other := newCluster(t), newCluster(t)
	good, mimic := node(t, c, "icn1-a"), node(t, other, "icn1-a")
	borrowed := forge(t, c, other.ClusterID())
	for name, test := range map[string]struct {
		chain tls.Certificate
		other bool
	}{
		"another cluster":              {mimic.chain(), true},
		"no authority shown":           {tls.Certificate{Certificate: [][]byte{good.cert.Raw}, PrivateKey: good.key}, true},
		"a borrowed authority":         {tls.Certificate{Certificate: [][]byte{mimic.cert.Raw, c.cert.Raw}, PrivateKey: mimic.key}, true},
		"a forged node of the cluster": {tls.Certificate{Certificate: [][]byte{node(t, c.next(t), "icn1-a").cert.Raw, c.cert.Raw}}, false},
		"the authority itself":         {tls.Certificate{Certificate: [][]byte{c.cert.Raw, c.cert.Raw}, PrivateKey: c.key}, false},
		"a node of another cluster":    {borrowed, true},
	} {
		var shown []*x509.Certificate
		for _, der := range test.chain.Certificate {
			cert, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			shown = append(shown, cert)
		}
		if _, err := verifyPinned(c.Hash(), shown, time.Now()); err == nil || errors.Is(err, ErrOtherCluster) != test.other {
			t.Errorf("%s: %v", name, err)
		}
		if test.chain.PrivateKey == nil {
			continue
		}
		server := &tls.Config{Certificates: []tls.Certificate{test.chain}}
		if _, _, err, _ := shake(PinnedTLS(c.Hash(), nil), server); err == nil || errors.Is(err, ErrOtherCluster) != test.other {
			t.Errorf("%s, in a handshake: %v", name, err)
		}
	}
	if _, err := verifyPinned(c.Hash(), nil, time.Now()); !errors.Is(err, ErrOtherCluster) {
		t.Errorf("nothing shown: %v", err)
	}
	// A key that the true node holds is not had by showing its certificate.
	_, _, err, _ := shake(PinnedTLS(c.Hash(), nil), &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		return &tls.Certificate{Certificate: good.chain().Certificate, PrivateKey: mimic.key}, nil
	}})
	if err == nil {
		t.Error("a shown certificate without its key passes")
	}
}

func TestATrustIsAFileForOtherPrograms(t *testing.T) {
	c := newCluster(t)
	pem := trust(nil, c, c.next(t)).PEM()
	if got := bytes.Count(pem, []byte("-----BEGIN CERTIFICATE-----\n")); got != 2 {
		t.Errorf("%d certificates in\n%s", got, pem)
	}
	if bytes.Contains(pem, []byte("PRIVATE")) {
		t.Error("it holds a private key")
	}
}

func BenchmarkHandshake(b *testing.B) {
	c := newCluster(b)
	icn, nrt := guard(node(b, c, "icn1-a")), guard(node(b, c, "nrt1-a"))
	for b.Loop() {
		if err := talk(icn, nrt); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRefused(b *testing.B) {
	c := newCluster(b)
	icn, nrt := guard(node(b, c, "icn1-a")), guard(node(b, c, "nrt1-a"))
	_, state, _, err := shake(icn.ClientTLS("nrt1-a", "x"), nrt.ServerTLS("x"))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := nrt.Refused(state); err != nil {
			b.Fatal(err)
		}
	}
}
