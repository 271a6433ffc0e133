package control

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/perigee-net/perigee/cluster/identity"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/testbed/memnet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// network is a cluster's nodes, and strangers, on one in-memory internet.
type network struct {
	t         *testing.T
	in        *memnet.Internet
	authority *identity.Authority
	hosts     byte
}

func newNetwork(t *testing.T) *network {
	authority, err := identity.NewAuthority(identity.NewClusterID(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	n := &network{t: t, in: memnet.New(1), authority: authority}
	t.Cleanup(n.in.Close)
	return n
}

func (n *network) host(name string) *memnet.Host {
	n.hosts++
	return n.in.Host(name, spec.Location{}, netip.AddrFrom4([4]byte{192, 0, 2, n.hosts}))
}

// identity makes one with a certificate of epoch 1.
func (n *network) identity(name string) *identity.Node {
	n.t.Helper()
	return issue(n.t, n.authority, name, 1)
}

func issue(t *testing.T, by *identity.Authority, name string, epoch uint64) *identity.Node {
	t.Helper()
	return issueWith(t, by, name, epoch, "voter", "edge")
}

func issueWith(t *testing.T, by *identity.Authority, name string, epoch uint64, roles ...string) *identity.Node {
	t.Helper()
	id, err := by.Node(identity.Claim{Name: name, Region: "r", POP: "p", Roles: roles}, epoch, identity.Keys{Cluster: identity.NewKey()}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// trust is that of the network's authority, without those revoked at epoch 1.
func (n *network) trust(revoked ...string) identity.Trust {
	t := identity.Trust{Authorities: [][]byte{n.authority.Certificate()}, Revoked: map[string]uint64{}}
	for _, name := range revoked {
		t.Revoked[name] = 1
	}
	return t
}

func (n *network) guard(id *identity.Node) *identity.Guard {
	return identity.NewGuard(id, n.trust(), time.Now)
}

type member struct {
	*Port
	guard   *identity.Guard
	host    *memnet.Host
	address string
}

func (n *network) node(name string) member {
	n.t.Helper()
	return n.nodeAs(n.identity(name))
}

func (n *network) nodeAs(id *identity.Node) member {
	n.t.Helper()
	guard := n.guard(id)
	host := n.host(id.Name())
	l, err := host.Listen("tcp", ":7947")
	if err != nil {
		n.t.Fatal(err)
	}
	p := Open(Config{Listener: l, Guard: guard, Dial: host.Dial})
	n.t.Cleanup(func() { p.Close() })
	return member{p, guard, host, netip.AddrPortFrom(host.Addr(), 7947).String()}
}

// inBubble runs a test in virtual time.
func inBubble(t *testing.T, test func(t *testing.T, n *network)) {
	synctest.Test(t, func(t *testing.T) { test(t, newNetwork(t)) })
}

// serve accepts until the service closes, and answers each connection by the service's name and the peer's.
func serve(l net.Listener, service string) {
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				fmt.Fprintf(c, "%s to %q", service, c.(*Conn).Peer())
			}()
		}
	}()
}

func (m member) ask(ctx context.Context, address, name, alpn string) (string, error) {
	c, err := m.Dial(ctx, address, name, alpn)
	if err != nil {
		return "", err
	}
	defer c.Close()
	said, err := io.ReadAll(c)
	return string(said), err
}

func TestEachServiceGetsItsOwn(t *testing.T) {
	inBubble(t, func(t *testing.T, n *network) {
		icn, nrt := n.node("icn1-a"), n.node("nrt1-a")
		serve(nrt.Service(Raft), "raft")
		serve(nrt.Service(API), "api")
		for alpn, want := range map[string]string{Raft: `raft to "icn1-a"`, API: `api to "icn1-a"`} {
			for _, name := range []string{"nrt1-a", ""} {
				if got, err := icn.ask(t.Context(), nrt.address, name, alpn); got != want || err != nil {
					t.Errorf("%s of %q said %q, %v", alpn, name, got, err)
				}
			}
		}
		if got, err := nrt.ask(t.Context(), nrt.address, "nrt1-a", API); got != `api to "nrt1-a"` || err != nil {
			t.Errorf("a node that dials itself got %q, %v", got, err)
		}
		if c := nrt.Counters(); c["control_accepted_total"] != 5 || c["control_dialed_total"] != 1 || c["control_connections"] != 0 {
			t.Errorf("counted %v", c)
		}
	})
}

func TestDialReachesWhomItNamesOrNobody(t *testing.T) {
	inBubble(t, func(t *testing.T, n *network) {
		icn, nrt := n.node("icn1-a"), n.node("nrt1-a")
		serve(nrt.Service(API), "api")
		for name, dial := range map[string][2]string{
			"another node than is there": {"fra1-a", API},
			"a service that is not open": {"nrt1-a", Raft},
			"a service nobody has":       {"nrt1-a", "perigee-none/1"},
		} {
			if said, err := icn.ask(t.Context(), nrt.address, dial[0], dial[1]); err == nil {
				t.Errorf("%s: said %q", name, said)
			}
		}
		if _, err := icn.Dial(t.Context(), "192.0.2.99:7947", "nrt1-a", API); err == nil {
			t.Error("dialed where nobody is")
		}
		if c := icn.Counters(); c["control_connections"] != 0 || c["control_dialed_total"] != 0 {
			t.Errorf("counted %v", c)
		}
		if c := nrt.Counters(); c["control_unknown_service_total"] != 2 || c["control_accepted_total"] != 0 {
			t.Errorf("counted %v", c)
		}
	})
}

func TestAStrangerReachesOnlyJoin(t *testing.T) {
	inBubble(t, func(t *testing.T, n *network) {
		nrt := n.node("nrt1-a")
		for _, alpn := range []string{Raft, Watch, API, Join} {
			serve(nrt.Service(alpn), alpn)
		}
		other, err := identity.NewAuthority(identity.NewClusterID(), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		foreign := issue(t, other, "icn1-a", 1)
		stranger := n.host("stranger")
		for name, test := range map[string]struct {
			alpn        []string
			certificate *identity.Node
			want        string
		}{
			"join":                               {[]string{Join}, nil, Join + ` to ""`},
			"raft":                               {[]string{Raft}, nil, ""},
			"watch":                              {[]string{Watch}, nil, ""},
			"api":                                {[]string{API}, nil, ""},
			"api, else join":                     {[]string{API, Join}, nil, ""},
			"no service":                         {nil, nil, ""},
			"HTTP":                               {[]string{"h2", "http/1.1"}, nil, ""},
			"raft, with another cluster's paper": {[]string{Raft}, foreign, ""},
		} {
			cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: test.alpn}
			if test.certificate != nil {
				cfg.GetClientCertificate = n.guard(test.certificate).ClientTLS("", test.alpn...).GetClientCertificate
			}
			raw, err := stranger.Dial(t.Context(), "tcp", nrt.address)
			if err != nil {
				t.Fatal(err)
			}
			said, _ := io.ReadAll(tls.Client(raw, cfg))
			if string(said) != test.want {
				t.Errorf("%s: said %q, want %q", name, said, test.want)
			}
			raw.Close()
		}
		synctest.Wait()
		if c := nrt.Counters(); c["control_handshake_failed_total"] != 7 || c["control_connections"] != 0 {
			t.Errorf("counted %v", c)
		}
	})
}

func TestOnlyVotersSpeakRaft(t *testing.T) {
	inBubble(t, func(t *testing.T, n *network) {
		voters := []member{n.node("icn1-a"), n.node("nrt1-a")}
		edge := n.nodeAs(issueWith(t, n.authority, "iad1-a", 1, "edge", "dns", "origin"))
		for _, m := range append(voters, edge) {
			for _, alpn := range []string{Raft, Watch, API} {
				serve(m.Service(alpn), alpn)
			}
		}
		voter := voters[0]
		for _, alpn := range []string{Watch, API} {
			for _, way := range [][2]member{{edge, voter}, {voter, edge}} {
				if _, err := way[0].ask(t.Context(), way[1].address, "", alpn); err != nil {
					t.Errorf("%s: %v", alpn, err)
				}
			}
		}
		if got, err := voter.ask(t.Context(), voters[1].address, "nrt1-a", Raft); got != Raft+` to "icn1-a"` || err != nil {
			t.Errorf("between voters: %q, %v", got, err)
		}
		if said, err := edge.ask(t.Context(), voter.address, "icn1-a", Raft); err == nil {
			t.Errorf("it dials: %q", said)
		}
		if said, err := voter.ask(t.Context(), edge.address, "iad1-a", Raft); err == nil {
			t.Errorf("it is dialled: %q", said)
		}
		if c := edge.Counters(); c["control_unknown_service_total"] != 1 || c["control_accepted_total"] != 2 {
			t.Errorf("it counted %v", c)
		}

		// Nor does it help to have other software.
		raw, err := edge.host.Dial(t.Context(), "tcp", voter.address)
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		if said, err := io.ReadAll(tls.Client(raw, edge.guard.ClientTLS("icn1-a", Raft))); len(said) > 0 {
			t.Errorf("it was told %q, %v", said, err)
		}
		if c := voter.Counters(); c["control_role_refused_total"] != 1 || c["control_connections"] != 0 {
			t.Errorf("the voter counted %v", c)
		}
		edge.Close()
		l, err := edge.host.Listen("tcp", ":7947")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for raw, err := l.Accept(); err == nil; raw, err = l.Accept() {
				tls.Server(raw, edge.guard.ServerTLS(Raft)).Handshake()
				defer raw.Close()
			}
		}()
		if said, err := voter.ask(t.Context(), edge.address, "iad1-a", Raft); err == nil || !strings.Contains(err.Error(), "voter") {
			t.Errorf("it is dialled: %q, %v", said, err)
		}
		if c := voter.Counters(); c["control_role_refused_total"] != 2 || c["control_connections"] != 0 {
			t.Errorf("then the voter counted %v", c)
		}
	})
}

func TestAMachineJoinsThroughThePort(t *testing.T) {
	inBubble(t, func(t *testing.T, n *network) {
		nrt := n.node("nrt1-a")
		joins := nrt.Service(Join)
		key := identity.NewKey()
		gate := identity.NewGate(func(_ context.Context, r identity.JoinRequest) (identity.JoinAnswer, error) {
			certificate, err := n.authority.Issue(r.CSR, r.Claim, 1, time.Now())
			return identity.JoinAnswer{Certificate: certificate, Authorities: n.trust().Authorities, ClusterKey: key[:]}, err
		})
		go func() {
			for c, err := joins.Accept(); err == nil; c, err = joins.Accept() {
				gate.Admit(t.Context(), c)
			}
		}()
		serve(nrt.Service(API), "api")
		host := n.host("icn1-a")
		token := identity.NewToken(n.authority.Hash()).String()
		id, err := identity.Join(t.Context(), host.Dial, nrt.address, token, identity.Claim{Name: "icn1-a", Region: "r", POP: "p"}, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		l, err := host.Listen("tcp", ":7947")
		if err != nil {
			t.Fatal(err)
		}
		icn := member{Port: Open(Config{Listener: l, Guard: n.guard(id), Dial: host.Dial})}
		defer icn.Close()
		if got, err := icn.ask(t.Context(), nrt.address, "nrt1-a", API); got != `api to "icn1-a"` || err != nil {
			t.Errorf("after joining: %q, %v", got, err)
		}
	})
}

func TestGarbageIsCountedAndNotAnswered(t *testing.T) {
	inBubble(t, func(t *testing.T, n *network) {
		nrt := n.node("nrt1-a")
		serve(nrt.Service(API), "api")
		stranger := n.host("stranger")
		for i, garbage := range []string{"GET / HTTP/1.1\r\n\r\n", "SSH-2.0-x\r\n", "\x00\x00\x00\x00\x00\x00\x00\x00", ""} {
			c, err := stranger.Dial(t.Context(), "tcp", nrt.address)
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(c, garbage)
			begin := time.Now()
			said, _ := io.ReadAll(c)
			if len(said) > 0 {
				t.Errorf("%q is answered by %q", garbage, said)
			}
			if waited := time.Since(begin); garbage == "" && (waited < handshakeTimeout || waited > handshakeTimeout+time.Second) {
				t.Errorf("silence is cut after %v", waited)
			}
			c.Close()
			if got := nrt.Counters()["control_handshake_failed_total"]; got != uint64(i+1) {
				t.Errorf("counted %d after %q", got, garbage)
			}
		}
	})
}

func TestASlowHandshakeDelaysNobody(t *testing.T) {
	inBubble(t, func(t *testing.T, n *network) {
		icn, nrt := n.node("icn1-a"), n.node("nrt1-a")
		serve(nrt.Service(API), "api")
		stranger := n.host("stranger")
		for range 10 {
			if _, err := stranger.Dial(t.Context(), "tcp", nrt.address); err != nil {
				t.Fatal(err)
			}
		}
		begin := time.Now()
		if _, err := icn.ask(t.Context(), nrt.address, "nrt1-a", API); err != nil || time.Since(begin) > 100*time.Millisecond {
			t.Errorf("got %v after %v", err, time.Since(begin))
		}
	})
}

func TestHandshakesAreBounded(t *testing.T) {
	inBubble(t, func(t *testing.T, n *network) {
		icn, nrt := n.node("icn1-a"), n.node("nrt1-a")
		serve(nrt.Service(API), "api")
		stranger := n.host("stranger")
		var idle []net.Conn
		for range maxHandshakes {
			c, err := stranger.Dial(t.Context(), "tcp", nrt.address)
			if err != nil {
				t.Fatal(err)
			}
			idle = append(idle, c)
		}
		time.Sleep(time.Second)
		if _, err := icn.ask(t.Context(), nrt.address, "nrt1-a", API); err == nil {
			t.Fatal("one more handshake was let in")
		}
		c := nrt.Counters()
		if c["control_handshake_overflow_total"] != 1 || c["control_connections"] != maxHandshakes {
			t.Errorf("counted %v", c)
		}
		time.Sleep(handshakeTimeout)
		if _, err := icn.ask(t.Context(), nrt.address, "nrt1-a", API); err != nil {
			t.Errorf("after the silent ones were cut: %v", err)
		}
		if got := nrt.Counters()["control_connections"]; got != 0 {
			t.Errorf("%d connections are still held", got)
		}
		for _, c := range idle {
			c.Close()
		}
	})
}

func TestAServiceThatDoesNotAcceptLosesItsOwnAlone(t *testing.T) {
	inBubble(t, func(t *testing.T, n *network) {
		icn, nrt := n.node("icn1-a"), n.node("nrt1-a")
		stuck := nrt.Service(Raft)
		serve(nrt.Service(API), "api")
		var held []net.Conn
		for range queueLength + 1 {
			c, err := icn.Dial(t.Context(), nrt.address, "nrt1-a", Raft)
			if err != nil {
				t.Fatal(err)
			}
			held = append(held, c)
		}
		time.Sleep(time.Second)
		if c := nrt.Counters(); c["control_connections_dropped_total"] != 1 || c["control_accepted_total"] != queueLength {
			t.Errorf("counted %v", c)
		}
		if _, err := icn.ask(t.Context(), nrt.address, "nrt1-a", API); err != nil {
			t.Errorf("the other service: %v", err)
		}
		// Closed, it lets go of those that waited; opened again, it serves.
		stuck.Close()
		if _, err := stuck.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a closed service accepts: %v", err)
		}
		for _, c := range held {
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Fatal("a connection that waited is still served")
			}
			c.Close()
		}
		serve(nrt.Service(Raft), "raft")
		if got, err := icn.ask(t.Context(), nrt.address, "nrt1-a", Raft); got != `raft to "icn1-a"` || err != nil {
			t.Errorf("opened again: %q, %v", got, err)
		}
	})
}

func TestStrangersThatLingerAreBounded(t *testing.T) {
	inBubble(t, func(t *testing.T, n *network) {
		nrt := n.node("nrt1-a")
		joins := nrt.Service(Join)
		stranger := n.host("stranger")
		knock := func() *tls.Conn {
			raw, err := stranger.Dial(t.Context(), "tcp", nrt.address)
			if err != nil {
				t.Fatal(err)
			}
			c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{Join}})
			if err := c.Handshake(); err != nil {
				t.Fatal(err)
			}
			return c
		}
		var inside []net.Conn
		for range maxJoining {
			defer knock().Close()
			c, err := joins.Accept()
			if err != nil {
				t.Fatal(err)
			}
			inside = append(inside, c)
		}
		if _, err := knock().Read(make([]byte, 1)); err == nil {
			t.Fatal("one more is let in")
		}
		inside[0].Close()
		inside[0].Close() // counts once
		defer knock().Close()
		if _, err := joins.Accept(); err != nil {
			t.Fatal(err)
		}
		if _, err := knock().Read(make([]byte, 1)); err == nil {
			t.Fatal("two were let in for one that left")
		}
	})
}

func TestARenewedCertificateIsShownAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, n *network) {
		icn, nrt := n.node("icn1-a"), n.node("nrt1-a")
		serve(icn.Service(API), "api")
		echoes(icn.Service(Raft))
		old, err := nrt.Dial(t.Context(), icn.address, "icn1-a", Raft)
		if err != nil {
			t.Fatal(err)
		}
		defer old.Close()
		time.Sleep(91 * 24 * time.Hour)
		nrt.guard.SetNode(issue(t, n.authority, "nrt1-a", 2))
		if _, err := nrt.ask(t.Context(), icn.address, "icn1-a", API); err == nil {
			t.Fatal("an ended certificate is accepted")
		}
		icn.guard.SetNode(issue(t, n.authority, "icn1-a", 2))
		icn.Check()
		nrt.Check()
		if _, err := nrt.ask(t.Context(), icn.address, "icn1-a", API); err != nil {
			t.Fatalf("renewed: %v", err)
		}
		if err := says(old, "ping"); err != nil {
			t.Errorf("a connection made by the old certificates: %v", err)
		}
	})
}

// echoes accepts until the service closes, and sends back what each connection brings.
func echoes(l net.Listener) {
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
}

// says sends something through an echo.
func says(c net.Conn, text string) error {
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != text {
		return fmt.Errorf("%q came back as %q", text, got)
	}
	return nil
}

func TestARevokedPeerIsCutOffAndStaysOut(t *testing.T) {
	inBubble(t, func(t *testing.T, n *network) {
		icn, nrt, fra := n.node("icn1-a"), n.node("nrt1-a"), n.node("fra1-a")
		for _, m := range []member{icn, nrt, fra} {
			echoes(m.Service(Raft))
			echoes(m.Service(Watch))
		}
		dial := func(from, to member, name, alpn string) net.Conn {
			t.Helper()
			c, err := from.Dial(t.Context(), to.address, name, alpn)
			if err != nil {
				t.Fatal(err)
			}
			if err := says(c, "hello"); err != nil {
				t.Fatal(err)
			}
			return c
		}
		doomed := []net.Conn{
			dial(fra, icn, "icn1-a", Raft), dial(fra, icn, "icn1-a", Watch), dial(icn, fra, "fra1-a", Raft),
		}
		kept := []net.Conn{dial(nrt, icn, "icn1-a", Raft), dial(icn, nrt, "nrt1-a", Watch), dial(fra, nrt, "nrt1-a", Raft)}
		ended := make(chan time.Duration, len(doomed))
		begin := time.Now()
		for _, c := range doomed {
			go func() {
				_, err := c.Read(make([]byte, 1))
				if err == nil {
					t.Error("read something")
				}
				ended <- time.Since(begin)
			}()
		}
		synctest.Wait()

		icn.guard.SetTrust(n.trust("fra1-a"))
		icn.Check()
		for range doomed {
			if took := <-ended; took > time.Second {
				t.Errorf("a connection ended after %v", took)
			}
		}
		for _, c := range kept {
			if err := says(c, "still"); err != nil {
				t.Errorf("a connection that is no matter of it: %v", err)
			}
		}
		if got := icn.Counters()["control_connections_refused_total"]; got != 3 {
			t.Errorf("counted %d", got)
		}
		if c, err := icn.Dial(t.Context(), fra.address, "fra1-a", Raft); !errors.Is(err, identity.ErrRevoked) {
			t.Errorf("it was dialed: %v, %v", c, err)
		}
		if c, err := fra.Dial(t.Context(), icn.address, "icn1-a", Raft); err == nil && says(c, "hello") == nil {
			t.Error("it dialed in")
		}
		synctest.Wait()
		if got := icn.Counters()["control_connections"]; got != 2 {
			t.Errorf("%d connections are held", got)
		}

		// Checked again nothing happens, and who is admitted anew is a peer like any other.
		icn.Check()
		fra.guard.SetNode(issue(t, n.authority, "fra1-a", 2))
		dial(fra, icn, "icn1-a", Raft).Close()
		if got := icn.Counters()["control_connections_refused_total"]; got != 3 {
			t.Errorf("then counted %d", got)
		}
		for _, c := range append(doomed, kept...) {
			c.Close()
		}
	})
}

// The handshake judges by the trust of its moment; what is revoked between that and the connection's being known must not slip through.
func TestAPeerThatIsRevokedDuringItsHandshakeIsCutOff(t *testing.T) {
	inBubble(t, func(t *testing.T, n *network) {
		icn, fra := n.node("icn1-a"), n.node("fra1-a")
		raft := icn.Service(Raft)
		raw, err := fra.host.Dial(t.Context(), "tcp", icn.address)
		if err != nil {
			t.Fatal(err)
		}
		conn := tls.Client(raw, fra.guard.ClientTLS("icn1-a", Raft))
		if err := conn.Handshake(); err != nil {
			t.Fatal(err)
		}
		c, err := raft.Accept()
		if err != nil {
			t.Fatal(err)
		}
		icn.guard.SetTrust(n.trust("fra1-a"))
		// As if it had just come out of its handshake.
		if err := icn.opened(c.(*Conn).NetConn().(*below), c.(*Conn).Conn); !errors.Is(err, identity.ErrRevoked) {
			t.Errorf("opened: %v", err)
		}
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Error("it was not cut off")
		}
		raw.Close()
		c.Close()
	})
}

func TestConnectionsOfARetiredAuthorityAreCut(t *testing.T) {
	inBubble(t, func(t *testing.T, n *network) {
		icn, nrt := n.node("icn1-a"), n.node("nrt1-a")
		echoes(icn.Service(API))
		next, err := identity.NewAuthority(n.authority.ClusterID(), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		both := identity.Trust{Authorities: [][]byte{n.authority.Certificate(), next.Certificate()}}
		check := func() { icn.Check(); nrt.Check() }
		first, err := nrt.Dial(t.Context(), icn.address, "icn1-a", API)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range []member{icn, nrt} {
			m.guard.SetTrust(both)
		}
		check()
		nrt.guard.SetNode(issue(t, next, "nrt1-a", 2))
		second, err := nrt.Dial(t.Context(), icn.address, "icn1-a", API)
		if err != nil {
			t.Fatal(err)
		}
		icn.guard.SetNode(issue(t, next, "icn1-a", 3))
		third, err := nrt.Dial(t.Context(), icn.address, "icn1-a", API)
		if err != nil {
			t.Fatal(err)
		}
		for i, c := range []net.Conn{first, second, third} {
			if err := says(c, "hello"); err != nil {
				t.Errorf("connection %d before the old authority is retired: %v", i, err)
			}
		}
		for _, m := range []member{icn, nrt} {
			m.guard.SetTrust(identity.Trust{Authorities: [][]byte{next.Certificate()}})
		}
		check()
		for i, c := range []net.Conn{first, second, third} {
			if err := says(c, "hello"); (err == nil) != (i == 2) {
				t.Errorf("connection %d after that: %v", i, err)
			}
			c.Close()
		}
	})
}

func TestDialGivesUpOnASilentPeer(t *testing.T) {
	inBubble(t, func(t *testing.T, n *network) {
		icn := n.node("icn1-a")
		mute := n.host("mute")
		if _, err := mute.Listen("tcp", ":7947"); err != nil {
			t.Fatal(err)
		}
		address := netip.AddrPortFrom(mute.Addr(), 7947).String()
		begin := time.Now()
		if _, err := icn.Dial(t.Context(), address, "mute", API); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != handshakeTimeout {
			t.Errorf("got %v after %v", err, time.Since(begin))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin = time.Now()
		if _, err := icn.Dial(ctx, address, "mute", API); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != time.Second {
			t.Errorf("got %v after %v, with a context of 1 s", err, time.Since(begin))
		}
	})
}

func TestCloseEndsAll(t *testing.T) {
	inBubble(t, func(t *testing.T, n *network) {
		icn, nrt := n.node("icn1-a"), n.node("nrt1-a")
		l := nrt.Service(API)
		there, err := icn.Dial(t.Context(), nrt.address, "nrt1-a", API)
		if err != nil {
			t.Fatal(err)
		}
		here, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := icn.Dial(t.Context(), nrt.address, "nrt1-a", API); err != nil { // waits in the queue
			t.Fatal(err)
		}
		if _, err := n.host("stranger").Dial(t.Context(), "tcp", nrt.address); err != nil { // in its handshake
			t.Fatal(err)
		}
		ended := make(chan error, 2)
		go func() { _, err := here.Read(make([]byte, 1)); ended <- err }()
		go func() { _, err := there.Read(make([]byte, 1)); ended <- err }()
		synctest.Wait()
		begin := time.Now()
		if err := nrt.Close(); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took != 0 {
			t.Errorf("closing took %v", took)
		}
		if err1, err2 := <-ended, <-ended; err1 == nil || err2 == nil {
			t.Errorf("reads end with %v and %v", err1, err2)
		}
		// The connection in the queue may still come out; it is dead.
		var err2 error
		for err2 == nil {
			_, err2 = l.Accept()
		}
		if !errors.Is(err2, net.ErrClosed) {
			t.Errorf("accept ends with %v", err2)
		}
		if _, err := nrt.Service(Raft).Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a service of a closed port: %v", err)
		}
		if _, err := nrt.Dial(t.Context(), icn.address, "icn1-a", API); err == nil {
			t.Error("a closed port dials")
		}
		here.Close()
		there.Close()
	})
}

func TestAServiceIsOpenedOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, n *network) {
		nrt := n.node("nrt1-a")
		l := nrt.Service(API)
		func() {
			defer func() {
				if recover() == nil {
					t.Error("one service was given out twice")
				}
			}()
			nrt.Service(API)
		}()
		l.Close()
		again := nrt.Service(API)
		l.Close() // of the old one, which must not close the new
		icn := n.node("icn1-a")
		serve(again, "api")
		if _, err := icn.ask(t.Context(), nrt.address, "nrt1-a", API); err != nil {
			t.Error(err)
		}
	})
}

// failing is a listener that fails some times before it works.
type failing struct {
	net.Listener
	left atomic.Int32
}

func (f *failing) Accept() (net.Conn, error) {
	if f.left.Add(-1) >= 0 {
		return nil, errors.New("too many open files")
	}
	return f.Listener.Accept()
}

func TestThePortOutlivesAFailedAccept(t *testing.T) {
	inBubble(t, func(t *testing.T, n *network) {
		host := n.host("nrt1-a")
		l, err := host.Listen("tcp", ":7947")
		if err != nil {
			t.Fatal(err)
		}
		f := &failing{Listener: l}
		f.left.Store(3)
		p := Open(Config{Listener: f, Guard: n.guard(n.identity("nrt1-a")), Dial: host.Dial})
		defer p.Close()
		serve(p.Service(API), "api")
		icn := n.node("icn1-a")
		if _, err := icn.ask(t.Context(), netip.AddrPortFrom(host.Addr(), 7947).String(), "nrt1-a", API); err != nil {
			t.Error(err)
		}
	})
}

func TestAFlowGoesOnForAnHourWhenItsAuthorityIsRetired(t *testing.T) {
	inBubble(t, func(t *testing.T, n *network) {
		icn, nrt := n.node("icn1-a"), n.node("nrt1-a")
		echoes(icn.Service(Flow))
		next, err := identity.NewAuthority(n.authority.ClusterID(), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		c, err := nrt.Dial(t.Context(), icn.address, "icn1-a", Flow)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := says(c, "hello"); err != nil {
			t.Fatal(err)
		}
		for range 2 { // and the second time changes nothing
			for i, m := range []member{icn, nrt} {
				m.guard.SetTrust(identity.Trust{Authorities: [][]byte{next.Certificate()}})
				m.guard.SetNode(issue(t, next, []string{"icn1-a", "nrt1-a"}[i], 2))
				m.Check()
			}
			time.Sleep(drainTime/2 - time.Second)
			if err := says(c, "hello"); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(2 * time.Second)
		if err := says(c, "hello"); err == nil {
			t.Error("it goes on after an hour")
		}
		if got := icn.Counters()["control_connections_refused_total"]; got != 1 {
			t.Errorf("counted %d", got)
		}
		// Who is shut out has no such time.
		c, err = nrt.Dial(t.Context(), icn.address, "icn1-a", Flow)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := says(c, "hello"); err != nil {
			t.Fatal(err)
		}
		icn.guard.SetTrust(identity.Trust{Authorities: [][]byte{next.Certificate()}, Revoked: map[string]uint64{"nrt1-a": 2}})
		icn.Check()
		if err := says(c, "hello"); err == nil {
			t.Error("a revoked node's flow goes on")
		}
	})
}

func TestWhatIsCutDoesNotLookEnded(t *testing.T) {
	inBubble(t, func(t *testing.T, n *network) {
		icn, nrt := n.node("icn1-a"), n.node("nrt1-a")
		flows := icn.Service(Flow)
		for _, ends := range []bool{true, false} {
			c, err := nrt.Dial(t.Context(), icn.address, "icn1-a", Flow)
			if err != nil {
				t.Fatal(err)
			}
			far, err := flows.Accept()
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(c, "hello")
			if ends {
				c.(*Conn).CloseWrite()
			} else {
				c.(*Conn).NetConn().Close()
			}
			got, err := io.ReadAll(far)
			if string(got) != "hello" || err != nil || far.(*Conn).WasCut() == ends {
				t.Errorf("ended: %v; read %q, %v, cut: %v", ends, got, err, far.(*Conn).WasCut())
			}
			c.Close()
			far.Close()
		}
	})
}

func TestAnEndWaitsForASlowReader(t *testing.T) {
	inBubble(t, func(t *testing.T, n *network) {
		icn, nrt := n.node("icn1-a"), n.node("nrt1-a")
		flows := icn.Service(Flow)
		c, err := nrt.Dial(t.Context(), icn.address, "icn1-a", Flow)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		far, err := flows.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer far.Close()
		const size = 2 * memnet.Window
		go func() {
			c.Write(make([]byte, size))
			c.(*Conn).CloseWrite()
		}()
		total := 0
		for buf := make([]byte, 4<<10); ; time.Sleep(time.Second) {
			m, err := far.Read(buf)
			if total += m; err != nil {
				if err != io.EOF || far.(*Conn).WasCut() || total != size {
					t.Errorf("%d bytes of %d, then %v", total, size, err)
				}
				return
			}
		}
	})
}
