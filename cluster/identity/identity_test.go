package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cluster is what a test needs of one: an authority, and the keys of its nodes.
type cluster struct {
	*Authority
	keys Keys
}

func newCluster(t testing.TB) *cluster {
	t.Helper()
	a, err := NewAuthority(NewClusterID(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &cluster{a, Keys{Cluster: NewKey()}}
}

// next is the cluster with another authority, as after a rotation.
func (c *cluster) next(t testing.TB) *cluster {
	t.Helper()
	a, err := NewAuthority(c.ClusterID(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &cluster{a, c.keys}
}

func claim(name string) Claim {
	return Claim{Name: name, Region: "ap-northeast-2", POP: "icn1", Roles: []string{"dns", "edge"}}
}

func node(t testing.TB, c *cluster, name string) *Node {
	t.Helper()
	return nodeAt(t, c, claim(name), 1)
}

func nodeAt(t testing.TB, c *cluster, claim Claim, epoch uint64) *Node {
	t.Helper()
	n, err := c.Node(claim, epoch, c.keys, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// guard is one by what came with the node's identity.
func guard(n *Node) *Guard { return NewGuard(n, Trust{}, nil) }

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

// talk is shake for when only the outcome matters: nil if both ends are content.
func talk(client, server *Guard) error {
	_, _, clientErr, serverErr := shake(client.ClientTLS(server.Node().Name(), "x"), server.ServerTLS("x"))
	return errors.Join(serverErr, clientErr)
}

func TestNodesOfOneClusterKnowEachOther(t *testing.T) {
	c := newCluster(t)
	icn, nrt := guard(node(t, c, "icn1-a")), guard(node(t, c, "nrt1-a"))
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
	icn, nrt := guard(node(t, a, "icn1-a")), guard(node(t, a, "nrt1-a"))
	foreign := guard(node(t, other, "nrt1-a"))

	old := nrt.ServerTLS("x")
	old.MinVersion, old.MaxVersion, old.GetConfigForClient = tls.VersionTLS12, tls.VersionTLS12, nil
	bare := icn.ClientTLS("", "x")
	bare.GetClientCertificate = nil
	showing := func(chain tls.Certificate) *tls.Config {
		c := icn.ClientTLS("", "x")
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &chain, nil }
		return c
	}
	// A certificate of the name and the cluster, by an authority that only says it is the cluster's.
	forged := node(t, a.next(t), "icn1-a")
	// One of a cluster whose authority is trusted, for a node of another: the authority must not reach beyond its cluster.
	borrowed := forge(t, a, other.ClusterID())

	for name, test := range map[string]struct {
		client, server *tls.Config
	}{
		"another node than dialed":           {icn.ClientTLS("fra1-a", "x"), nrt.ServerTLS("x")},
		"a node of that name elsewhere":      {icn.ClientTLS("nrt1-a", "x"), foreign.ServerTLS("x")},
		"any node, of another cluster":       {icn.ClientTLS("", "x"), foreign.ServerTLS("x")},
		"a client of another cluster":        {showing(foreign.Node().chain()), nrt.ServerTLS("x")},
		"a client without a certificate":     {bare, nrt.ServerTLS("x")},
		"a client that shows the authority":  {showing(tls.Certificate{Certificate: [][]byte{a.cert.Raw}, PrivateKey: a.key}), nrt.ServerTLS("x")},
		"a forged certificate":               {showing(forged.chain()), nrt.ServerTLS("x")},
		"a name of another cluster":          {showing(borrowed), nrt.ServerTLS("x")},
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

// forge has an authority sign for a node of another cluster, as Issue never does.
func forge(t *testing.T, c *cluster, otherID string) tls.Certificate {
	t.Helper()
	liar := *c.Authority
	liar.cluster = otherID
	r, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	der, err := liar.Issue(r.CSR(), claim("icn1-a"), 1, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der, c.cert.Raw}, PrivateKey: r.key}
}

func TestAShownCertificateProvesNothing(t *testing.T) {
	n := node(t, newCluster(t), "icn1-a")
	if name, err := PeerName(tls.ConnectionState{PeerCertificates: []*x509.Certificate{n.cert}}); err == nil {
		t.Fatalf("an unverified peer is taken for %s", name)
	}
}

func TestACertificateLastsNinetyDays(t *testing.T) {
	const day = 24 * time.Hour
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		icn, nrt := node(t, c, "icn1-a"), node(t, c, "nrt1-a")
		if got := time.Until(icn.Expires()); got != 90*day {
			t.Fatalf("expires in %v", got)
		}
		if !icn.Issued().Equal(time.Now()) || time.Until(icn.RenewAt()) != 60*day {
			t.Fatalf("made at %v, to be renewed at %v", icn.Issued(), icn.RenewAt())
		}
		time.Sleep(89 * day)
		if err := talk(guard(icn), guard(nrt)); err != nil {
			t.Fatalf("on day 89: %v", err)
		}
		if err := icn.Valid(time.Now()); err != nil {
			t.Fatalf("on day 89: %v", err)
		}
		if left := guard(icn).Counters()["identity_certificate_seconds_left"]; left != 86400 {
			t.Errorf("on day 89 %d seconds are left", left)
		}
		time.Sleep(2 * day)
		if err := talk(guard(icn), guard(nrt)); err == nil {
			t.Fatal("an ended certificate is accepted")
		}
		if err := icn.Valid(time.Now()); err == nil || !strings.Contains(err.Error(), "clock") {
			t.Fatalf("on day 91: %v", err)
		}
		if left := guard(icn).Counters()["identity_certificate_seconds_left"]; left != 0 {
			t.Errorf("on day 91 %d seconds are left", left)
		}
		// Renewed, they know each other again.
		if err := talk(guard(node(t, c, "icn1-a")), guard(node(t, c, "nrt1-a"))); err != nil {
			t.Fatalf("renewed: %v", err)
		}
	})
}

func TestNoCertificateOutlivesItsAuthority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		time.Sleep(authorityLife - time.Hour)
		if n := node(t, c, "icn1-a"); !n.Expires().Equal(c.Expires()) {
			t.Errorf("the node's ends on %v, the authority's on %v", n.Expires(), c.Expires())
		}
		time.Sleep(time.Hour)
		if _, err := c.Node(claim("icn1-a"), 1, c.keys, time.Now()); err == nil || !strings.Contains(err.Error(), "authority ended") {
			t.Errorf("by an ended authority: %v", err)
		}
	})
}

// A node's clock is wrong; the others' are right. Behind, it goes on as if nothing were; ahead, it goes on until it believes that
// certificates have ended, refuses, and is back when its clock is.
func TestAWrongClock(t *testing.T) {
	const day = 24 * time.Hour
	c := newCluster(t)
	right := guard(node(t, c, "nrt1-a"))
	n := node(t, c, "icn1-a")
	for _, test := range []struct {
		wrong time.Duration
		ok    bool
	}{
		{-366 * day, false}, {-364 * day, true}, {-30 * day, true}, {-time.Hour, true}, {0, true}, {time.Hour, true}, {29 * day, true}, {89 * day, true}, {91 * day, false},
	} {
		offset := test.wrong
		wrong := NewGuard(n, Trust{}, func() time.Time { return time.Now().Add(offset) })
		if err := talk(wrong, right); (err == nil) != test.ok {
			t.Errorf("%v off, dialing: %v", test.wrong, err)
		}
		if err := talk(right, wrong); (err == nil) != test.ok {
			t.Errorf("%v off, dialed: %v", test.wrong, err)
		}
		if offset = 0; talk(wrong, right) != nil || talk(right, wrong) != nil {
			t.Errorf("%v off and set right: still refused", test.wrong)
		}
	}
}

func TestOnlyAKeyIsTakenFromARequest(t *testing.T) {
	c := newCluster(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"fra1-a"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := c.Issue(csr, claim("icn1-a"), 1, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if err := cert.VerifyHostname("fra1-a"); err == nil {
		t.Fatal("the certificate holds a name that the request slipped in")
	}
	for _, name := range []string{"icn1-a", "localhost", "127.0.0.1", "::1"} {
		if err := cert.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
}

func TestABadRequestIsNotCertified(t *testing.T) {
	c := newCluster(t)
	r, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	good := r.CSR()
	forged := slices.Clone(good)
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
		if _, err := c.Issue(csr, claim("icn1-a"), 1, time.Now()); err == nil {
			t.Errorf("%s: certified", name)
		}
	}
	if _, err := c.Issue(good, Claim{}, 1, time.Now()); err == nil {
		t.Error("an empty claim is certified")
	}
	if _, err := c.Issue(good, claim("icn1-a"), 1, time.Now()); err != nil {
		t.Errorf("a good one: %v", err)
	}
}

func TestACertificateTellsItsClaimAndEpoch(t *testing.T) {
	c := newCluster(t)
	full := claim("icn1-a")
	full.Roles = []string{"dns", "edge", Voter}
	full.Addresses = []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")}
	for _, epoch := range []uint64{0, 1, 1 << 40, math.MaxUint64} {
		n := nodeAt(t, c, full, epoch)
		if n.Epoch() != epoch {
			t.Errorf("epoch %d reads as %d", epoch, n.Epoch())
		}
		if got := n.Claim(); !reflect.DeepEqual(got, full) {
			t.Errorf("the claim reads as %+v", got)
		}
	}
	plain := Claim{Name: "n", Region: "r", POP: "p"}
	if got := nodeAt(t, c, plain, 1).Claim(); !reflect.DeepEqual(got, plain) {
		t.Errorf("a claim without roles reads as %+v", got)
	}
	twice := plain
	twice.Addresses = []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::ffff:192.0.2.7"), netip.MustParseAddr("192.0.2.7")}
	if got := nodeAt(t, c, twice, 1).Claim().Addresses; !slices.Equal(got, full.Addresses[:1]) {
		t.Errorf("addresses given twice read as %v", got)
	}
	if a, b := nodeAt(t, c, plain, 1), nodeAt(t, c, plain, 1); a.Fingerprint() == b.Fingerprint() || a.cert.SerialNumber.Cmp(b.cert.SerialNumber) == 0 {
		t.Error("two certificates are one")
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
		if _, err := NewAuthority(name, time.Now()); (err == nil) != ok {
			t.Errorf("cluster %q: got %v", name, err)
		}
	}
	many := Claim{Name: "n", Region: "r", POP: "p", Roles: strings.Split(strings.Repeat("x", maxRoles+1), "")}
	if many.Validate() == nil {
		t.Error("a claim with too many roles passes")
	}
}

func TestAddressesAreThoseOthersCanReach(t *testing.T) {
	for address, ok := range map[string]bool{
		"192.0.2.1": true, "2001:db8::1": true, "127.0.0.1": true, "fe80::1": true,
		"0.0.0.0": false, "::": false, "224.0.0.1": false, "ff02::1": false, "fe80::1%eth0": false,
	} {
		c := claim("n")
		c.Addresses = []netip.Addr{netip.MustParseAddr(address)}
		if err := c.Validate(); (err == nil) != ok {
			t.Errorf("%s: got %v", address, err)
		}
	}
	none, many := claim("n"), claim("n")
	none.Addresses = []netip.Addr{{}}
	many.Addresses = slices.Repeat([]netip.Addr{netip.MustParseAddr("192.0.2.1")}, maxAddresses+1)
	if none.Validate() == nil || many.Validate() == nil {
		t.Error("no address, or too many, pass")
	}
}

func TestAnIdentitySurvivesARestart(t *testing.T) {
	dir := t.TempDir()
	c := newCluster(t)
	second := c.next(t)
	key := NewKey()
	r, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	der, err := c.Issue(r.CSR(), claim("icn1-a"), 7, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	// The issuer need not come first.
	icn, err := r.Accept(der, [][]byte{second.Certificate(), c.Certificate()}, Keys{Cluster: c.keys.Cluster, Authority: &key})
	if err != nil {
		t.Fatal(err)
	}
	if err := icn.Save(dir); err != nil {
		t.Fatal(err)
	}
	loaded, err := LoadNode(dir)
	if err != nil {
		t.Fatal(err)
	}
	if loaded.Name() != "icn1-a" || loaded.ClusterID() != c.ClusterID() || loaded.Epoch() != 7 || loaded.Fingerprint() != icn.Fingerprint() || loaded.Authority() != c.Hash() {
		t.Error("the node is another after the restart")
	}
	if keys := loaded.Keys(); keys.Cluster != c.keys.Cluster || keys.Authority == nil || *keys.Authority != key {
		t.Error("the keys are others after the restart")
	}
	// Old and new hold together: it knows nodes of both authorities that it was given.
	for _, peer := range []*Node{node(t, c, "nrt1-a"), node(t, second, "nrt1-a")} {
		both := NewGuard(peer, Trust{Authorities: [][]byte{c.Certificate(), second.Certificate()}}, nil)
		if err := talk(both, guard(loaded)); err != nil {
			t.Error(err)
		}
	}

	if err := node(t, c, "icn1-a").Save(dir); err != nil {
		t.Fatal(err)
	}
	if loaded, err := LoadNode(dir); err != nil || loaded.Keys().Authority != nil {
		t.Errorf("a node without the authority key has one after the restart, %v", err)
	}
}

func TestKeysAreReadableByTheirOwnerAlone(t *testing.T) {
	dir := t.TempDir()
	if err := node(t, newCluster(t), "icn1-a").Save(dir); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 {
		t.Errorf("got %v, want one file and nothing left over", entries)
	}
	for _, e := range entries {
		if info, _ := e.Info(); info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o", e.Name(), info.Mode().Perm())
		}
	}
}

func TestADamagedFileIsRefusedByName(t *testing.T) {
	dir := t.TempDir()
	if err := node(t, newCluster(t), "icn1-a").Save(dir); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, nodeFile)
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
		flipped := slices.Clone(whole)
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
		if _, err := LoadNode(dir); err == nil || !strings.Contains(err.Error(), path) {
			t.Fatalf("%s: got %v, want a refusal that names the file", name, err)
		}
	}
}

// FuzzDecodeNode: whatever is in the file, it is an identity whose parts fit, or refused.
func FuzzDecodeNode(f *testing.F) {
	dir := f.TempDir()
	if err := node(f, newCluster(f), "icn1-a").Save(dir); err != nil {
		f.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(dir, nodeFile))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add([]byte(`{"sha256":"RBNvo1WzZ4oRRq0W9+hknpT7T8If536DEMBg9hyq/4o=","body":{}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if n, err := decodeNode(data); err == nil && (!isLabel(n.Name()) || len(n.authorities) == 0) {
			t.Fatalf("%q has authorities %v", n.Name(), n.authorities)
		}
	})
}

func TestAnUnfinishedWriteLeavesTheOldFile(t *testing.T) {
	dir := t.TempDir()
	c := newCluster(t)
	if err := node(t, c, "icn1-a").Save(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, nodeFile+".new"), []byte(`{"sha`), 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := LoadNode(dir); err != nil || n.Name() != "icn1-a" {
		t.Fatalf("got %v, %v", n, err)
	}
	if err := node(t, c, "icn1-b").Save(dir); err != nil {
		t.Fatal(err)
	}
	if n, err := LoadNode(dir); err != nil || n.Name() != "icn1-b" {
		t.Fatalf("after the next write: %v, %v", n, err)
	}
}

func TestAFolderWithoutAnIdentityIsNotExist(t *testing.T) {
	if _, err := LoadNode(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestPartsOfDifferentIdentitiesAreNotMixed(t *testing.T) {
	a, other := newCluster(t), newCluster(t)
	icn, nrt, foreign := node(t, a, "icn1-a"), node(t, a, "nrt1-a"), node(t, other, "icn1-a")
	ca := func(cs ...*cluster) (ders [][]byte) {
		for _, c := range cs {
			ders = append(ders, c.Certificate())
		}
		return ders
	}
	for name, err := range map[string]error{
		"another's key":           second(newNode(nrt.key, icn.cert.Raw, ca(a), icn.keys)),
		"another's authority":     second(newNode(icn.key, icn.cert.Raw, ca(other), icn.keys)),
		"one authority foreign":   second(newNode(icn.key, icn.cert.Raw, ca(a, other), icn.keys)),
		"not its own authority":   second(newNode(icn.key, icn.cert.Raw, ca(a.next(t)), icn.keys)),
		"no authority":            second(newNode(icn.key, icn.cert.Raw, nil, icn.keys)),
		"too many authorities":    second(newNode(icn.key, icn.cert.Raw, slices.Repeat(ca(a), maxAuthorities+1), icn.keys)),
		"garbage for a node's":    second(newNode(icn.key, []byte("garbage"), ca(a), icn.keys)),
		"garbage for authority's": second(newNode(icn.key, icn.cert.Raw, [][]byte{[]byte("garbage")}, icn.keys)),
		"authority's certificate": second(newNode(a.key, a.cert.Raw, ca(a), icn.keys)),
		"node's for authority's":  second(newNode(icn.key, icn.cert.Raw, [][]byte{icn.cert.Raw}, icn.keys)),
		"authority of other key":  second(ReadAuthority(a.Certificate(), other.PrivateKey())),
		"authority without key":   second(ReadAuthority(a.Certificate(), nil)),
		"authority that is none":  second(ReadAuthority(foreign.cert.Raw, other.PrivateKey())),
		"hash of a node's":        second(AuthorityHash(icn.cert.Raw)),
		"a short key":             second(ReadKey(make([]byte, 31))),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	again, err := ReadAuthority(a.Certificate(), a.PrivateKey())
	if err != nil || again.Hash() != a.Hash() || again.ClusterID() != a.ClusterID() {
		t.Errorf("an authority read again is another, %v", err)
	}
	if hash, err := AuthorityHash(a.Certificate()); err != nil || hash != a.Hash() {
		t.Errorf("its certificate alone has another hash, %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// What holds a secret is not shown by any verb, nor by a log, whoever wraps it.
func TestSecretsDoNotPrintThemselves(t *testing.T) {
	c := newCluster(t)
	key := Key{}
	for i := range key {
		key[i] = 0xAB
	}
	keys := Keys{Cluster: key, Authority: &key}
	n, err := c.Node(claim("icn1-a"), 1, keys, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	private := func(k *ecdsa.PrivateKey) []byte {
		raw, err := k.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	secrets := [][]byte{key[:], private(n.key), private(c.key), private(r.key)}
	for name, v := range map[string]any{
		"key": key, "pointer": &key, "keys": keys, "node": n, "authority": c.Authority, "request": r, "guard": guard(n),
		"ask": JoinRequest{Secret: key[:]}, "answer": JoinAnswer{ClusterKey: key[:], AuthorityKey: key[:]},
	} {
		var shown strings.Builder
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			fmt.Fprintf(&shown, verb+"\n", v)
			fmt.Fprintf(&shown, verb+"\n", []any{v})
		}
		slog.New(slog.NewTextHandler(&shown, nil)).Info("x", "v", v)
		if name != "ask" && name != "answer" { // those are made to be written as JSON
			slog.New(slog.NewJSONHandler(&shown, nil)).Info("x", "v", v)
			raw, _ := json.Marshal(v)
			shown.Write(raw)
		}
		for _, secret := range secrets {
			spaced := strings.Trim(fmt.Sprint(secret[:8]), "[]")
			for _, spelled := range []string{spaced, strings.ReplaceAll(spaced, " ", ","), fmt.Sprintf("%x", secret[:8]), fmt.Sprintf("%X", secret[:8]), "0xab, 0xab"} {
				if strings.Contains(shown.String(), spelled) {
					t.Errorf("%s shows %s in %s", name, spelled, shown.String())
				}
			}
		}
	}
}
