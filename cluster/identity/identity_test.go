package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func newCluster(t testing.TB) *Authority {
	t.Helper()
	a, err := New(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func claim(name string) Claim {
	return Claim{Name: name, Region: "ap-northeast-2", POP: "icn1", Roles: []string{"edge", "dns"}}
}

func node(t testing.TB, a *Authority, name string) *Node {
	t.Helper()
	n, err := a.Node(claim(name))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// shake runs a handshake between two configurations and returns what each end thinks of it. Both ends exchange a byte, since
// in TLS 1.3 a client learns only by reading that the server declined its certificate.
func shake(client, server *tls.Config) (clientEnd, serverEnd tls.ConnectionState, clientErr, serverErr error) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	c, s := tls.Client(a, client), tls.Server(b, server)
	done := make(chan error, 1)
	go func() {
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte{1})
		}
		b.Close()
		done <- err
	}()
	clientErr = c.Handshake()
	if clientErr == nil {
		_, clientErr = c.Read(make([]byte, 1))
	}
	a.Close()
	serverErr = <-done
	return c.ConnectionState(), s.ConnectionState(), clientErr, serverErr
}

func TestNodesOfOneClusterKnowEachOther(t *testing.T) {
	a := newCluster(t)
	icn, nrt := node(t, a, "icn1-a"), node(t, a, "nrt1-a")
	for _, want := range []string{"nrt1-a", ""} {
		c, s, clientErr, serverErr := shake(icn.ClientTLS(want, "perigee-test/1"), nrt.ServerTLS("other/1", "perigee-test/1"))
		if clientErr != nil || serverErr != nil {
			t.Fatalf("dialing %q: %v, %v", want, clientErr, serverErr)
		}
		if name, err := PeerName(c); name != "nrt1-a" || err != nil {
			t.Errorf("client sees %q, %v", name, err)
		}
		if name, err := PeerName(s); name != "icn1-a" || err != nil {
			t.Errorf("server sees %q, %v", name, err)
		}
		if c.NegotiatedProtocol != "perigee-test/1" || c.Version != tls.VersionTLS13 {
			t.Errorf("agreed on %q, version %x", c.NegotiatedProtocol, c.Version)
		}
	}
}

func TestWhoIsNotTheNodeIsRefused(t *testing.T) {
	a, other := newCluster(t), newCluster(t)
	icn, nrt := node(t, a, "icn1-a"), node(t, a, "nrt1-a")
	foreign := node(t, other, "nrt1-a")

	old := nrt.ServerTLS("x")
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	bare := icn.ClientTLS("", "x")
	bare.Certificates = nil
	unchecking := foreign.ClientTLS("", "x")
	unchecking.InsecureSkipVerify, unchecking.VerifyConnection = true, nil
	// The authority's own certificate is not a node's, though it chains.
	root := icn.ClientTLS("", "x")
	root.Certificates = []tls.Certificate{{Certificate: [][]byte{a.cert.Raw}, PrivateKey: a.key}}

	for name, test := range map[string]struct {
		client, server *tls.Config
	}{
		"another node than dialed":           {icn.ClientTLS("fra1-a", "x"), nrt.ServerTLS("x")},
		"a node of that name elsewhere":      {icn.ClientTLS("nrt1-a", "x"), foreign.ServerTLS("x")},
		"any node, of another cluster":       {icn.ClientTLS("", "x"), foreign.ServerTLS("x")},
		"a client of another cluster":        {unchecking, nrt.ServerTLS("x")},
		"a client without a certificate":     {bare, nrt.ServerTLS("x")},
		"a client that shows the authority":  {root, nrt.ServerTLS("x")},
		"a server that speaks only TLS 1.2":  {icn.ClientTLS("", "x"), old},
		"a server without a common protocol": {icn.ClientTLS("", "x"), nrt.ServerTLS("y")},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, clientErr, serverErr := shake(test.client, test.server)
			if clientErr == nil || serverErr == nil {
				t.Fatalf("got %v at the client and %v at the server, want both refused", clientErr, serverErr)
			}
		})
	}
}

func TestAShownCertificateProvesNothing(t *testing.T) {
	n := node(t, newCluster(t), "icn1-a")
	if name, err := PeerName(tls.ConnectionState{PeerCertificates: []*x509.Certificate{n.cert}}); err == nil {
		t.Fatalf("an unverified peer is taken for %s", name)
	}
}

func TestACertificateLastsAYear(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newCluster(t)
		icn, nrt := node(t, a, "icn1-a"), node(t, a, "nrt1-a")
		if got := time.Until(icn.Expires()); got != 365*24*time.Hour {
			t.Fatalf("expires in %v", got)
		}
		time.Sleep(364 * 24 * time.Hour)
		if _, _, err, _ := shake(icn.ClientTLS("nrt1-a", "x"), nrt.ServerTLS("x")); err != nil {
			t.Fatalf("on day 364: %v", err)
		}
		time.Sleep(2 * 24 * time.Hour)
		if _, _, err, _ := shake(icn.ClientTLS("nrt1-a", "x"), nrt.ServerTLS("x")); err == nil {
			t.Fatal("an ended certificate is accepted")
		}
	})
}

func TestAClockMayBeAnHourBehind(t *testing.T) {
	a := newCluster(t)
	icn, nrt := node(t, a, "icn1-a"), node(t, a, "nrt1-a")
	for behind, ok := range map[time.Duration]bool{59 * time.Minute: true, 61 * time.Minute: false} {
		slow := icn.ClientTLS("nrt1-a", "x")
		slow.Time = func() time.Time { return time.Now().Add(-behind) }
		if _, _, err, _ := shake(slow, nrt.ServerTLS("x")); (err == nil) != ok {
			t.Errorf("%v behind: %v", behind, err)
		}
	}
}

func TestOnlyAKeyIsTakenFromARequest(t *testing.T) {
	a := newCluster(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"fra1-a"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := a.Issue(csr, claim("icn1-a"))
	if err != nil {
		t.Fatal(err)
	}
	if err := cert.VerifyHostname("fra1-a"); err == nil {
		t.Fatal("the certificate holds a name that the request slipped in")
	}
	if err := cert.VerifyHostname("icn1-a"); err != nil {
		t.Fatal(err)
	}
}

func TestABadRequestIsNotCertified(t *testing.T) {
	a := newCluster(t)
	_, good, err := request()
	if err != nil {
		t.Fatal(err)
	}
	forged := append([]byte(nil), good...)
	forged[len(forged)-1] ^= 1 // within the signature
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	otherCurve, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, p384)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	otherKind, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, rsaKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, csr := range map[string][]byte{
		"empty": nil, "garbage": []byte("garbage"), "cut off": good[:len(good)/2],
		"wrong signature": forged, "P-384": otherCurve, "RSA": otherKind,
	} {
		if _, err := a.Issue(csr, claim("icn1-a")); err == nil {
			t.Errorf("%s: certified", name)
		}
	}
	if _, err := a.Issue(good, claim("icn1-a")); err != nil {
		t.Errorf("a good one: %v", err)
	}
}

func TestNamesAreLabels(t *testing.T) {
	for name, ok := range map[string]bool{
		"a": true, "icn1-a": true, "0": true, strings.Repeat("x", 63): true,
		"": false, strings.Repeat("x", 64): false, "ICN": false, "a.b": false, "a/b": false, "a b": false,
		"-a": false, "a-": false, "é": false, "a\x00": false,
	} {
		for field, c := range map[string]Claim{
			"name":   {Name: name, Region: "r", POP: "p"},
			"region": {Name: "n", Region: name, POP: "p"},
			"pop":    {Name: "n", Region: "r", POP: name},
			"role":   {Name: "n", Region: "r", POP: "p", Roles: []string{"edge", name}},
		} {
			err := c.Validate()
			if (err == nil) != ok {
				t.Errorf("%s %q: got %v", field, name, err)
			}
			if err != nil && !strings.Contains(err.Error(), field) {
				t.Errorf("%q does not name the field %s", err, field)
			}
		}
	}
	many := Claim{Name: "n", Region: "r", POP: "p", Roles: strings.Split(strings.Repeat("x", maxRoles+1), "")}
	if many.Validate() == nil {
		t.Error("a claim with too many roles passes")
	}
}

func TestAnIdentitySurvivesARestart(t *testing.T) {
	dir := t.TempDir()
	a := newCluster(t)
	icn := node(t, a, "icn1-a")
	if err := icn.Save(dir); err != nil {
		t.Fatal(err)
	}
	if err := a.Save(dir); err != nil {
		t.Fatal(err)
	}
	loaded, err := LoadNode(dir)
	if err != nil {
		t.Fatal(err)
	}
	authority, err := LoadAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	if authority.Token() != a.Token() || authority.ClusterID() != a.ClusterID() {
		t.Error("the authority is another after the restart")
	}
	if string(loaded.GossipKey()) != string(icn.GossipKey()) || loaded.ClusterID() != a.ClusterID() {
		t.Error("the node is another after the restart")
	}
	// Old and new hold together: a node admitted after the restart talks to the one from before.
	late := node(t, authority, "nrt1-a")
	c, _, clientErr, serverErr := shake(late.ClientTLS("icn1-a", "x"), loaded.ServerTLS("x"))
	if clientErr != nil || serverErr != nil {
		t.Fatal(clientErr, serverErr)
	}
	if name, _ := PeerName(c); name != "icn1-a" {
		t.Errorf("the peer is %q", name)
	}
}

func TestKeysAreReadableByTheirOwnerAlone(t *testing.T) {
	dir := t.TempDir()
	a := newCluster(t)
	if err := errors.Join(node(t, a, "icn1-a").Save(dir), a.Save(dir)); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 2 {
		t.Errorf("got %v, want two files and nothing left over", entries)
	}
	for _, e := range entries {
		if info, _ := e.Info(); info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o", e.Name(), info.Mode().Perm())
		}
	}
}

func TestADamagedFileIsRefusedByName(t *testing.T) {
	dir := t.TempDir()
	a := newCluster(t)
	if err := errors.Join(node(t, a, "icn1-a").Save(dir), a.Save(dir)); err != nil {
		t.Fatal(err)
	}
	loaders := map[string]func() error{
		nodeFile:      func() error { _, err := LoadNode(dir); return err },
		authorityFile: func() error { _, err := LoadAuthority(dir); return err },
	}
	for file, load := range loaders {
		path := filepath.Join(dir, file)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		damaged := map[string][]byte{
			"empty":   {},
			"too big": append(whole[:len(whole):len(whole)], make([]byte, maxFile)...),
			"swapped": []byte(`{"sha256":"RBNvo1WzZ4oRRq0W9+hknpT7T8If536DEMBg9hyq/4o=","body":{}}`), // sound, but empty
		}
		for i := range whole {
			flipped := append([]byte(nil), whole...)
			flipped[i] ^= 0x10
			damaged[fmt.Sprintf("flipped at byte %d", i)] = flipped
			if i%16 == 0 {
				damaged[fmt.Sprintf("cut at byte %d", i)] = whole[:i]
			}
		}
		for name, data := range damaged {
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := load(); err == nil || !strings.Contains(err.Error(), path) {
				t.Fatalf("%s, %s: got %v, want a refusal that names the file", file, name, err)
			}
		}
	}
}

func TestAnUnfinishedWriteLeavesTheOldFile(t *testing.T) {
	dir := t.TempDir()
	a := newCluster(t)
	if err := node(t, a, "icn1-a").Save(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, nodeFile+".new"), []byte(`{"sha`), 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := LoadNode(dir); err != nil || n.Name() != "icn1-a" {
		t.Fatalf("got %v, %v", n, err)
	}
	if err := node(t, a, "icn1-b").Save(dir); err != nil {
		t.Fatal(err)
	}
	if n, err := LoadNode(dir); err != nil || n.Name() != "icn1-b" {
		t.Fatalf("after the next write: %v, %v", n, err)
	}
}

func TestAFolderWithoutAnIdentityIsNotExist(t *testing.T) {
	if _, err := LoadNode(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("node: %v", err)
	}
	if _, err := LoadAuthority(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("authority: %v", err)
	}
}

func TestPartsOfDifferentIdentitiesAreNotMixed(t *testing.T) {
	a, other := newCluster(t), newCluster(t)
	icn, nrt, foreign := node(t, a, "icn1-a"), node(t, a, "nrt1-a"), node(t, other, "icn1-a")
	for name, err := range map[string]error{
		"another's key":           second(newNode(nrt.key, icn.cert, icn.ca, icn.GossipKey())),
		"another's authority":     second(newNode(icn.key, icn.cert, foreign.ca, icn.GossipKey())),
		"authority's certificate": second(newNode(a.key, a.cert, a.cert, icn.GossipKey())),
		"node's for authority's":  second(newNode(icn.key, icn.cert, icn.cert, icn.GossipKey())),
		"a short gossip key":      second(newNode(icn.key, icn.cert, icn.ca, icn.GossipKey()[1:])),
		"authority of other key":  second(newAuthority(other.key, a.cert, a.gossipKey, a.secret)),
		"authority, short secret": second(newAuthority(a.key, a.cert, a.gossipKey, nil)),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func second[T any](_ T, err error) error { return err }
