package probe

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/spec"
)

// named is a check of an endpoint that has only a name.
func named() Check {
	c := checkTerms
	c.Name, c.Address = "www.example.com", netip.AddrPortFrom(netip.Addr{}, 80)
	return c
}

func TestANameIsLookedUpAtEachProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t)
		defer l.serve(answer("HTTP/1.1 200 OK\r\n\r\n")).Close()
		elsewhere := netip.MustParseAddr("10.0.0.3") // nobody is there
		var asked []string
		var found []netip.Addr
		var failure error
		looker := l.looker()
		looker.resolve = func(_ context.Context, host string) ([]netip.Addr, error) {
			asked = append(asked, host)
			return found, failure
		}
		for _, c := range []struct {
			name    string
			found   []netip.Addr
			failure error
			want    string // the begin of it
		}{
			{"an address", []netip.Addr{endpoint.Addr()}, nil, ""},
			{"another address now", []netip.Addr{elsewhere}, nil, "connect: "},
			{"an address among those of IPv6", []netip.Addr{netip.MustParseAddr("2001:db8::1"), endpoint.Addr()}, nil, ""},
			{"an address in the form of IPv6", []netip.Addr{netip.MustParseAddr("::ffff:10.0.0.1")}, nil, ""},
			{"IPv6 alone", []netip.Addr{netip.MustParseAddr("2001:db8::1")}, nil, "resolve: no IPv4 address"},
			{"none", nil, nil, "resolve: no IPv4 address"},
			{"no such name", nil, &net.DNSError{Err: "no such host", Name: "www.example.com", IsNotFound: true}, "resolve: no such host"},
			{"a server in trouble", nil, &net.DNSError{Err: "server misbehaving", Name: "www.example.com", Server: "10.9.9.9:53"}, "resolve: server misbehaving"},
			{"a server that is silent", nil, &net.DNSError{Err: "i/o timeout", IsTimeout: true}, "resolve: timeout after 4s"},
			{"another failure", nil, errors.New("no network"), "resolve: no network"},
		} {
			found, failure = c.found, c.failure
			check := named()
			r, _ := looker.run(t.Context(), &check)
			if r.Passed != (c.want == "") || !strings.HasPrefix(r.Reason, c.want) {
				t.Errorf("%s: got %+v, want %q", c.name, r, c.want)
			}
		}
		if len(asked) != 10 || asked[0] != "www.example.com" {
			t.Errorf("asked for %v", asked)
		}
	})
}

func TestALookUpEndsInTheTimeToConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		looker := newLAN(t).looker()
		looker.resolve = func(ctx context.Context, _ string) ([]netip.Addr, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		start, c := time.Now(), named()
		r, _ := looker.run(t.Context(), &c)
		if took := time.Since(start); r.Reason != "resolve: timeout after 4s" || took != 4*time.Second {
			t.Errorf("got %+v after %v", r, took)
		}
	})
}

func TestANodeStaysWithOneAddressOfANameAndNodesDiffer(t *testing.T) {
	var all []netip.Addr
	for i := range 4 {
		all = append(all, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
	}
	c := named()
	by := map[netip.AddrPort]int{}
	for i := range 100 {
		l := look{looker: &looker{node: fmt.Sprintf("node-%d", i), resolve: func(context.Context, string) ([]netip.Addr, error) { return all, nil }}}
		first, reason := l.address(t.Context(), &c)
		all[0], all[1], all[2], all[3] = all[3], all[0], all[1], all[2] // as name servers do
		if again, _ := l.address(t.Context(), &c); again != first || reason != "" {
			t.Fatalf("%v, then %v (%s)", first, again, reason)
		}
		by[first]++
	}
	for a, n := range by {
		if n < 10 || n > 40 {
			t.Errorf("%v is taken by %d of 100", a, n)
		}
	}
	if len(by) != 4 {
		t.Errorf("taken are %v", by)
	}
}

// authority certifies servers.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{t: t, key: key}
	a.cert = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	a.cert = a.sign(a.cert, key)
	return a
}

func (a *authority) sign(template *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	der, err := x509.CreateCertificate(crand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

// server answers by TLS with a certificate that the authority signs.
func (a *authority) server(template x509.Certificate, f func(net.Conn)) func(net.Conn) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template.SerialNumber, template.NotBefore = big.NewInt(2), time.Now().Add(-time.Hour)
	if template.NotAfter.IsZero() {
		template.NotAfter = time.Now().Add(time.Hour)
	}
	cert := a.sign(&template, key)
	config := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}}
	return func(conn net.Conn) { f(tls.Server(conn, config)) }
}

func TestACertificateIsJudgedWhereTheCheckSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		known, other := newAuthority(t), newAuthority(t)
		ok := answer("HTTP/1.1 200 OK\r\n\r\n")
		www := x509.Certificate{DNSNames: []string{"www.example.com"}}
		old := x509.Certificate{DNSNames: []string{"www.example.com"}, NotAfter: time.Now().Add(-time.Minute)}
		byName := byTLS(checkTerms)
		byName.Validate = true
		byAddress := byTLS(targetTerms)
		byAddress.Validate = true
		silentName := nameless(byName)
		trusting := byTLS(checkTerms)
		for _, c := range []struct {
			name   string
			check  Check
			server func(net.Conn)
			want   string
		}{
			{"its name, a known authority", byName, known.server(www, ok), ""},
			{"its name, not told to the server", silentName, known.server(www, ok), ""},
			{"its address", byAddress, known.server(x509.Certificate{IPAddresses: []net.IP{{10, 0, 0, 1}}}, ok), ""},
			{"another address", byAddress, known.server(x509.Certificate{IPAddresses: []net.IP{{10, 0, 0, 2}}}, ok), "certificate: not for 10.0.0.1"},
			{"another name", byName, known.server(x509.Certificate{DNSNames: []string{"\x1b[2Jexample.net"}}, ok), "certificate: not for www.example.com"},
			{"another authority", byName, other.server(www, ok), "certificate: of an unknown authority"},
			{"expired", byName, known.server(old, ok), "certificate: expired or not valid yet"},
			{"expired, and nobody asks", trusting, known.server(old, ok), ""},
			{"another authority, and nobody asks", trusting, other.server(www, ok), ""},
		} {
			l := newLAN(t)
			listener := l.serve(c.server)
			looker := l.looker()
			looker.roots = x509.NewCertPool()
			looker.roots.AddCert(known.cert)
			r, _ := looker.run(t.Context(), &c.check)
			if r.Passed != (c.want == "") || r.Reason != c.want {
				t.Errorf("%s: got %+v, want %q", c.name, r, c.want)
			}
			if l.asked.Load() != 1 {
				t.Errorf("%s: dialled %d times", c.name, l.asked.Load())
			}
			listener.Close()
		}
	})
}

func TestAServerThatCannotShakeHandsIsAskedTwiceAndNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t)
		defer l.serve(func(conn net.Conn) {
			io.ReadFull(conn, make([]byte, 5))
			io.WriteString(conn, "nonsense")
			silence(conn)
		}).Close()
		for sni, want := range map[bool]int64{true: 2, false: 1} {
			l.asked.Store(0)
			c := byTLS(checkTerms)
			c.SNI = sni
			if r, _ := l.looker().run(t.Context(), &c); !strings.HasPrefix(r.Reason, "TLS handshake: ") || l.asked.Load() != want {
				t.Errorf("telling the name: %v: got %+v of %d connections, want %d", sni, r, l.asked.Load(), want)
			}
		}
	})
}

func TestAPrivateAddressIsProbed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // as all of these tests do: 10.0.0.1
		l := newLAN(t)
		defer l.serve(silence).Close()
		c := byTCP(checkTerms)
		if r, _ := l.looker().run(t.Context(), &c); r != (health.Result{Passed: true}) {
			t.Error(r)
		}
	})
}

// A server that wants to be told from whom connections are is told so by probes, too: from the prober itself.
func TestAProbeBeginsWithAProxyHeader(t *testing.T) {
	for _, protocol := range []string{spec.HTTP, spec.TCP} {
		synctest.Test(t, func(t *testing.T) {
			l := newLAN(t)
			got := make(chan string, 1)
			defer l.serve(func(c net.Conn) {
				head := make([]byte, 16)
				_, _ = io.ReadFull(c, head)
				got <- string(head)
				answer("HTTP/1.1 200 OK\r\n\r\n")(c)
			}).Close()
			c := checkTerms
			c.Protocol, c.Proxy = protocol, true
			if r, _ := l.looker().run(t.Context(), &c); !r.Passed {
				t.Errorf("%s: %+v", protocol, r)
			}
			if head := <-got; head != "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00" {
				t.Errorf("%s: it began with %q", protocol, head)
			}
		})
	}
}
