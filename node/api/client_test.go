package api

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/perigee-net/perigee/cluster/identity"
)

// cluster is an authority and a node's identity of it, good from now.
type cluster struct {
	authority *identity.Authority
	node      *identity.Node
	guard     *identity.Guard
}

func newCluster(t *testing.T, addresses ...netip.Addr) cluster {
	t.Helper()
	now := time.Now()
	a, err := identity.NewAuthority(identity.NewClusterID(), now)
	if err != nil {
		t.Fatal(err)
	}
	claim := identity.Claim{Name: "a", Region: "r", POP: "p", Roles: []string{"voter"}, Addresses: addresses}
	node, err := a.Node(claim, 1, identity.Keys{Cluster: identity.NewKey()}, now)
	if err != nil {
		t.Fatal(err)
	}
	trust := identity.Trust{Authorities: [][]byte{a.Certificate()}}
	return cluster{authority: a, node: node, guard: identity.NewGuard(node, trust, time.Now)}
}

// serveTLS serves the API by HTTPS on loopback.
func serveTLS(t *testing.T, handler http.Handler, config *tls.Config) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: handler, ErrorLog: quiet()}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		server.Serve(tls.NewListener(l, config))
	}()
	t.Cleanup(func() { server.Close(); <-ended })
	return l.Addr().String()
}

// known takes the one token that it is of.
func known(token string) Backend {
	b := backendOf()
	b.Authenticate = func(bearer string) (Principal, error) {
		if bearer != token {
			return Principal{}, errors.New("it is not known")
		}
		return principals["admin"], nil
	}
	return b
}

func TestATokenPinsTheCluster(t *testing.T) {
	ours, theirs := newCluster(t), newCluster(t)
	token := identity.NewAccessToken(ours.authority.Hash()).String()
	other := identity.NewAccessToken(theirs.authority.Hash()).String()
	wrong := identity.NewAccessToken(ours.authority.Hash()).String()
	s := serverOf(known(token))
	address := serveTLS(t, s, ours.guard.PublicTLS())
	for _, c := range []struct{ claim, address, token, want string }{
		{"its cluster", address, token, ""},
		{"by a URL", "https://" + address, token, ""},
		{"by a name", strings.Replace(address, "127.0.0.1", "localhost", 1), token, ""},
		{"another cluster's token", address, other, "not of the cluster"},
		{"a token that is wrong", address, wrong, "is refused"},
		{"no token", address, "", "authority that is not known here"},
		{"no TLS", "http://" + address, token, "HTTPS"},
	} {
		client, err := NewClient(c.address, Options{Token: c.token})
		if err != nil {
			t.Fatal(err)
		}
		before := s.Counters()["api_requests_total"]
		_, err = client.Status(t.Context())
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.claim, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), token) {
			t.Errorf("%s: the error has the token: %v", c.claim, err)
		}
		if asked := s.Counters()["api_requests_total"] - before; c.want != "" && c.want != "is refused" && asked > 0 {
			t.Errorf("%s: the server was asked all the same", c.claim)
		}
	}
	if _, err := NewClient(address, Options{Token: token[:20]}); err == nil || strings.Contains(err.Error(), token[8:20]) {
		t.Errorf("half a token: %v", err)
	}
}

func TestHTTP2IsServedToo(t *testing.T) {
	ours := newCluster(t)
	b := backendOf()
	b.Snapshot = func(_ context.Context, w io.Writer) error {
		w.Write(make([]byte, 1<<20))
		return errors.New("the disk is gone")
	}
	address := serveTLS(t, serverOf(b), ours.guard.PublicTLS())
	c, err := NewClient(address, Options{Token: identity.NewAccessToken(ours.authority.Hash()).String()})
	if err != nil {
		t.Fatal(err)
	}
	c.token = "admin"
	transport := c.http.Transport.(*http.Transport)
	transport.ForceAttemptHTTP2 = true
	for _, err := range walk(t, c) {
		if err != nil && !strings.Contains(err.Error(), "/v1/snapshot") {
			t.Error(err)
		}
	}
	if err := c.Snapshot(t.Context(), io.Discard); err == nil {
		t.Error("half a snapshot passes for a whole one")
	}
	if err := c.do(t.Context(), http.MethodGet, "/v1/status", nil, -1, "", func(res *http.Response) error {
		if res.ProtoMajor != 2 {
			t.Errorf("it is %s", res.Proto)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

func TestATokenIsNotShownToAnotherCluster(t *testing.T) {
	ours, theirs := newCluster(t), newCluster(t)
	shown := make(chan string, 1)
	address := serveTLS(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		shown <- r.Header.Get("Authorization")
	}), theirs.guard.PublicTLS())
	c, err := NewClient(address, Options{Token: identity.NewAccessToken(ours.authority.Hash()).String()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Status(t.Context()); !errors.Is(err, identity.ErrOtherCluster) {
		t.Errorf("got %v", err)
	}
	select {
	case s := <-shown:
		t.Errorf("it has seen %q", s)
	default:
	}
}

func TestAFileOfAuthoritiesChecksTheName(t *testing.T) {
	ours := newCluster(t)
	b := backendOf()
	address := serveTLS(t, serverOf(b), ours.guard.PublicTLS())
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ours.authority.Certificate()}), 0o600); err != nil {
		t.Fatal(err)
	}
	// The name that is dialed leads to the server, whatever it is.
	dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	for _, c := range []struct{ address, want string }{{address, ""}, {"localhost:7948", ""}, {"api.example.com:7948", "other names"}} {
		client, err := NewClient(c.address, Options{CAFile: file, Token: "reader", Dial: dial})
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.Status(t.Context())
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.address, err, c.want)
		}
	}
	os.WriteFile(file, []byte("nothing"), 0o600)
	for path, want := range map[string]string{file: "no certificate", file + "x": "no such file"} {
		if _, err := NewClient(address, Options{CAFile: path}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestACertificateThatEndedIsNamed(t *testing.T) {
	ours := newCluster(t)
	token := identity.NewAccessToken(ours.authority.Hash()).String()
	address := serveTLS(t, serverOf(known(token)), ours.guard.PublicTLS())
	c, err := NewClient(address, Options{Token: token, Now: func() time.Time { return time.Now().Add(365 * 24 * time.Hour) }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Status(t.Context()); err == nil {
		t.Error("it is taken")
	} else {
		t.Log(err)
	}
}

func TestWhatIsNoAPIIsSaidToBeNone(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/status":
			http.NotFound(w, r)
		case "/v1/health":
			io.WriteString(w, "<html>")
		default:
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		}
	}))
	defer web.Close()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	dir := t.TempDir()
	for _, c := range []struct {
		claim, address, want string
		ask                  func(*Client) error
	}{
		{"a web server", web.URL, "not the API", status},
		{"one that answers", web.URL, "not the API", func(c *Client) error { _, err := c.Health(t.Context(), HealthQuery{}); return err }},
		{"one that leads elsewhere", web.URL, "not the API", func(c *Client) error { _, err := c.Nodes(t.Context()); return err }},
		{"one without TLS", strings.TrimPrefix(web.URL, "http://"), "http://", status},
		{"nobody", free.Addr().String(), "nothing listens", status},
		{"an empty folder", dir, "no node has run", status},
		{"no folder", filepath.Join(dir, "x"), "no node has run", status},
	} {
		client, err := NewClient(c.address, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.ask(client); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.claim, err, c.want)
		}
	}
	for _, address := range []string{"", "ftp://a:1", "a:1?x", "https://a:1/path"} {
		if _, err := NewClient(address, Options{}); err == nil {
			t.Errorf("%q is taken for an address", address)
		}
	}
}

func status(c *Client) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err := c.Status(ctx)
	return err
}

func TestAnAnswerThatDoesNotComeIsGivenUp(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := NewClient("http://"+l.Addr().String(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Status(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "in time") {
		t.Errorf("got %v", err)
	}
}
