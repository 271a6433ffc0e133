package node

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/identity"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/node/api"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// alone runs a cluster of one node.
func alone(t *testing.T, f func(t *testing.T, n *Node)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		in := memnet.New(1)
		defer in.Close()
		cfg := configOf(in, "a", dir, netip.MustParseAddr("192.0.2.1"))
		cfg.Bootstrap, cfg.NoSync = true, true
		life(t, cfg, func(n *Node) {
			applied(t, n, region)
			f(t, n)
		})
	})
}

func put(n *Node, ctx context.Context, yaml string, expect *uint64) (api.ApplyResponse, error) {
	return n.Client().Apply(ctx, api.ApplyRequest{Files: []api.File{{Name: "x.yaml", Data: yaml}}, Expect: expect})
}

func TestChangesAtOnceAreAllTaken(t *testing.T) {
	alone(t, func(t *testing.T, n *Node) {
		const many = 200
		var all sync.WaitGroup
		revisions := make([]uint64, many)
		for i := range many {
			all.Go(func() {
				res, err := put(n, t.Context(), group(fmt.Sprintf("g%d", i)), nil)
				if err != nil {
					t.Errorf("g%d: %v", i, err)
				}
				revisions[i] = res.Revision
			})
		}
		all.Wait()
		seen := map[uint64]bool{}
		for i, r := range revisions {
			if r < 2 || r > many+1 || seen[r] {
				t.Errorf("g%d is at revision %d, which is not its own", i, r)
			}
			seen[r] = true
		}
		list, err := n.Client().Resources(t.Context(), api.ResourcesQuery{Kind: "TargetGroup", Fresh: true})
		if err != nil || len(list.Resources) != many || list.Revision != many+1 {
			t.Errorf("%d are there at revision %d: %v", len(list.Resources), list.Revision, err)
		}
	})
}

func TestOfChangesForOneRevisionOneIsTaken(t *testing.T) {
	alone(t, func(t *testing.T, n *Node) {
		var all sync.WaitGroup
		var mu sync.Mutex
		taken, refused := 0, 0
		for i := range 50 {
			one := uint64(1)
			all.Go(func() {
				_, err := put(n, t.Context(), group(fmt.Sprintf("g%d", i)), &one)
				mu.Lock()
				defer mu.Unlock()
				var e *api.Error
				switch {
				case err == nil:
					taken++
				case errors.As(err, &e) && e.Status == http.StatusPreconditionFailed:
					refused++
				default:
					t.Error(err)
				}
			})
		}
		all.Wait()
		if taken != 1 || refused != 49 {
			t.Errorf("%d taken, %d refused", taken, refused)
		}
	})
}

func TestARefusalRestsOnWhatIsAgreed(t *testing.T) {
	alone(t, func(t *testing.T, n *Node) {
		// The second rests on the first, which is on its way into the log when it is judged.
		var all sync.WaitGroup
		all.Go(func() {
			if _, err := put(n, t.Context(), group("a")+"---\n"+balancer("a"), nil); err != nil {
				t.Error(err)
			}
		})
		all.Go(func() {
			_, err := put(n, t.Context(), strings.Replace(balancer("a"), "name: lb", "name: other", 1), nil)
			if err == nil {
				return // it came first and... there is no group a then
			}
			if !strings.Contains(err.Error(), "port 90") && !strings.Contains(err.Error(), `no target group "a"`) {
				t.Error(err)
			}
		})
		all.Wait()
	})
}

// certificateOf is a self-signed certificate and its key, in PEM.
func certificateOf(t *testing.T, host string) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
}

func indented(text string) string {
	return "  " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n  ") + "\n"
}

func TestASecretIsServedAndNeverShown(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		in := memnet.New(1)
		defer in.Close()
		cfg := configOf(in, "a", dir, netip.MustParseAddr("192.0.2.1"))
		cfg.Bootstrap, cfg.HTTPS = true, "192.0.2.1:443"
		life(t, cfg, func(n *Node) {
			applied(t, n, region)
			cert, key := certificateOf(t, "shop.example")
			yaml := "kind: Certificate\nname: shop # whose\ncertificate: |\n" + indented(cert) + "privateKey: |\n" + indented(key)
			res, err := put(n, t.Context(), yaml, nil)
			if err != nil {
				t.Fatal(err)
			}
			if again, err := put(n, t.Context(), yaml, nil); err != nil || again.Revision != res.Revision || len(again.Changes) != 0 {
				t.Errorf("the same again: %+v, %v", again, err)
			}
			_, other := certificateOf(t, "shop.example")
			_, err = put(n, t.Context(), strings.Replace(yaml, indented(key), indented(other), 1), nil)
			if err == nil {
				t.Error("a key of another certificate is taken")
			}
			var shown bytes.Buffer
			fmt.Fprint(&shown, err)
			for _, ask := range []func() (any, error){
				func() (any, error) { return n.Client().Resources(t.Context(), api.ResourcesQuery{}) },
				func() (any, error) { return n.Client().History(t.Context(), api.HistoryQuery{Limit: 100}) },
				func() (any, error) { return n.Client().Revision(t.Context(), res.Revision) },
				func() (any, error) { return n.Client().ResourcesAt(t.Context(), res.Revision) },
				func() (any, error) { return nil, n.Client().Snapshot(t.Context(), &shown) },
			} {
				answer, err := ask()
				if err != nil {
					t.Error(err)
				}
				fmt.Fprintf(&shown, "%+v %s", answer, fmt.Sprint(res))
			}
			for _, secret := range []string{key, other} {
				for line := range strings.Lines(secret) {
					if line = strings.TrimSpace(line); !strings.HasPrefix(line, "-") && strings.Contains(shown.String(), line) {
						t.Fatalf("a line of a key is shown: %s", shown.String())
					}
				}
			}
			time.Sleep(time.Second)
			raw, err := in.Host("client", spec.Location{}, netip.MustParseAddr("192.0.2.9")).Dial(t.Context(), "tcp", cfg.HTTPS)
			if err != nil {
				t.Fatal(err)
			}
			conn := tls.Client(raw, &tls.Config{ServerName: "shop.example", InsecureSkipVerify: true})
			if err := conn.Handshake(); err != nil {
				t.Fatal(err)
			}
			if leaf := conn.ConnectionState().PeerCertificates[0]; leaf.DNSNames[0] != "shop.example" || leaf.Subject.CommonName != "shop.example" {
				t.Errorf("the door shows %v", leaf.Subject)
			}
			conn.Close()
		})
	})
}

func TestASnapshotBringsAllBack(t *testing.T) {
	alone(t, func(t *testing.T, n *Node) {
		big := "# " + strings.Repeat("x", 900_000) + "\n"
		for i := range 12 { // more than one change may have
			if _, err := put(n, t.Context(), big+group(fmt.Sprintf("g%d", i)), nil); err != nil {
				t.Fatal(err)
			}
		}
		var saved bytes.Buffer
		if err := n.Client().Snapshot(t.Context(), &saved); err != nil {
			t.Fatal(err)
		}
		small := func() { // one change's worth is gone
			if _, err := n.Client().Apply(t.Context(), api.ApplyRequest{Delete: []api.Ref{{Kind: "TargetGroup", Name: "g3"}}}); err != nil {
				t.Fatal(err)
			}
		}
		large := func() {
			var all []api.Ref
			for i := range 12 {
				all = append(all, api.Ref{Kind: "TargetGroup", Name: fmt.Sprintf("g%d", i)})
			}
			if _, err := n.Client().Apply(t.Context(), api.ApplyRequest{Delete: all}); err != nil {
				t.Fatal(err)
			}
		}
		for what, lose := range map[string]func(){"little": small, "much": large} {
			before := n.agreed.Get()
			lose()
			res, err := n.Client().Restore(t.Context(), bytes.NewReader(saved.Bytes()), int64(saved.Len()))
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			time.Sleep(time.Second)
			now := n.agreed.Get()
			if res.Revision != now.Revision || now.Revision <= before.Revision || len(now.Objects) != 13 || now.Own.Sum() != before.Own.Sum() {
				t.Errorf("%s: revision %d answered, %d is agreed with %d resources", what, res.Revision, now.Revision, len(now.Objects))
			}
			if run := n.running.Get(); run.spec.Revision != now.Revision || len(run.spec.TargetGroups) != 12 {
				t.Errorf("%s: it runs revision %d with %d groups", what, run.spec.Revision, len(run.spec.TargetGroups))
			}
			h, err := n.Client().History(t.Context(), api.HistoryQuery{Limit: 1})
			if err != nil || !strings.Contains(h.Records[0].Note, "restore of a snapshot") {
				t.Errorf("%s: the history says %+v, %v", what, h, err)
			}
		}
		for i := range saved.Len() / 100 { // damaged anywhere
			bad := bytes.Clone(saved.Bytes())
			bad[i*100] ^= 1
			if _, err := readSnapshot(bytes.NewReader(bad)); err == nil {
				t.Fatalf("a snapshot that is damaged at byte %d is taken", i*100)
			}
		}
		if _, err := n.Client().Restore(t.Context(), strings.NewReader("nonsense"), 8); err == nil || !strings.Contains(err.Error(), "none of Perigee's") {
			t.Errorf("nonsense: %v", err)
		}
	})
}

func TestAnotherClustersSecretsAreNotRestored(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		in := memnet.New(1)
		defer in.Close()
		first := configOf(in, "a", filepath.Join(dir, "a"), netip.MustParseAddr("192.0.2.1")).bootstrapped()
		second := configOf(in, "b", filepath.Join(dir, "b"), netip.MustParseAddr("192.0.2.2")).bootstrapped()
		life(t, first, func(a *Node) {
			life(t, second, func(b *Node) {
				applied(t, a, region)
				applied(t, b, region)
				cert, key := certificateOf(t, "shop.example")
				if _, err := put(a, t.Context(), "kind: Certificate\nname: shop\ncertificate: |\n"+indented(cert)+"privateKey: |\n"+indented(key), nil); err != nil {
					t.Fatal(err)
				}
				var saved bytes.Buffer
				if err := a.Client().Snapshot(t.Context(), &saved); err != nil {
					t.Fatal(err)
				}
				_, err := b.Client().Restore(t.Context(), &saved, int64(saved.Len()))
				if err == nil || !strings.Contains(err.Error(), "Certificate shop") || !strings.Contains(err.Error(), "sealed") {
					t.Errorf("got %v", err)
				}
				if now := b.known(); now.Revision != 1 {
					t.Errorf("b is at revision %d", now.Revision)
				}
			})
		})
	})
}

// A voter that is behind would certify by an authority that has been replaced, and the rotation would wait for that node for ever.
func TestAVoterThatIsBehindCertifiesNobody(t *testing.T) {
	alone(t, func(t *testing.T, n *Node) {
		request, err := identity.NewRequest()
		if err != nil {
			t.Fatal(err)
		}
		req := api.RenewRequest{CSR: request.CSR(), Claim: n.claim(), Own: n.roster.Get().Revision}
		if _, err := n.renewal(t.Context(), "a", req); err != nil {
			t.Errorf("one that has got as far: %v", err)
		}
		req.Own++
		if _, err := n.renewal(t.Context(), "a", req); !unavailable(err) {
			t.Errorf("one that is behind: %v, want a refusal by which another is asked", err)
		}
	})
}
