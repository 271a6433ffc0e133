package control

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/identity"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// network is a cluster's nodes, and strangers, on one in-memory internet.
type network struct {
	t         *testing.T
	in        *memnet.Internet
	authority *identity.Authority
	hosts     byte
}

func newNetwork(t *testing.T) *network {
	authority, err := identity.New(time.Now())
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

func (n *network) identity(name string) *identity.Node {
	n.t.Helper()
	id, err := n.authority.Node(identity.Claim{Name: name, Region: "r", POP: "p"})
	if err != nil {
		n.t.Fatal(err)
	}
	return id
}

type member struct {
	*Port
	host    *memnet.Host
	address string
}

func (n *network) node(name string) member {
	n.t.Helper()
	id := n.identity(name)
	return n.nodeWith(name, func() *identity.Node { return id })
}

func (n *network) nodeWith(name string, id func() *identity.Node) member {
	n.t.Helper()
	host := n.host(name)
	l, err := host.Listen("tcp", ":7947")
	if err != nil {
		n.t.Fatal(err)
	}
	p := Open(Config{Listener: l, Identity: id, Dial: host.Dial})
	n.t.Cleanup(func() { p.Close() })
	return member{p, host, netip.AddrPortFrom(host.Addr(), 7947).String()}
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
		for _, alpn := range []string{Raft, API, Join} {
			serve(nrt.Service(alpn), alpn)
		}
		other, err := identity.New(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		foreign, err := other.Node(identity.Claim{Name: "icn1-a", Region: "r", POP: "p"})
		if err != nil {
			t.Fatal(err)
		}
		stranger := n.host("stranger")
		for name, test := range map[string]struct {
			alpn        []string
			certificate *identity.Node
			want        string
		}{
			"join":                               {[]string{Join}, nil, Join + ` to ""`},
			"raft":                               {[]string{Raft}, nil, ""},
			"api":                                {[]string{API}, nil, ""},
			"api, else join":                     {[]string{API, Join}, nil, ""},
			"no service":                         {nil, nil, ""},
			"HTTP":                               {[]string{"h2", "http/1.1"}, nil, ""},
			"raft, with another cluster's paper": {[]string{Raft}, foreign, ""},
		} {
			cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: test.alpn}
			if test.certificate != nil {
				cfg.Certificates = test.certificate.ClientTLS("", test.alpn...).Certificates
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
		if c := nrt.Counters(); c["control_handshake_failed_total"] != 6 || c["control_connections"] != 0 {
			t.Errorf("counted %v", c)
		}
	})
}

func TestAMachineJoinsThroughThePort(t *testing.T) {
	inBubble(t, func(t *testing.T, n *network) {
		nrt := n.node("nrt1-a")
		joins := nrt.Service(Join)
		gate := identity.NewGate(n.authority, func(identity.Claim) error { return nil })
		go func() {
			for c, err := joins.Accept(); err == nil; c, err = joins.Accept() {
				gate.Admit(c)
			}
		}()
		serve(nrt.Service(API), "api")
		host := n.host("icn1-a")
		id, _, err := identity.Join(t.Context(), host.Dial, nrt.address, n.authority.Token(), identity.Claim{Name: "icn1-a", Region: "r", POP: "p"})
		if err != nil {
			t.Fatal(err)
		}
		l, err := host.Listen("tcp", ":7947")
		if err != nil {
			t.Fatal(err)
		}
		icn := member{Port: Open(Config{Listener: l, Identity: func() *identity.Node { return id }, Dial: host.Dial})}
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
		var id atomic.Pointer[identity.Node]
		id.Store(n.identity("icn1-a"))
		icn, nrt := n.nodeWith("icn1-a", id.Load), n.node("nrt1-a")
		serve(icn.Service(API), "api")
		time.Sleep(366 * 24 * time.Hour)
		fresh := n.identity("nrt1-a")
		late := member{Port: Open(Config{Listener: blocked{}, Identity: func() *identity.Node { return fresh }, Dial: nrt.host.Dial})}
		defer late.cancel()
		if _, err := late.ask(t.Context(), icn.address, "icn1-a", API); err == nil {
			t.Fatal("an ended certificate is accepted")
		}
		id.Store(n.identity("icn1-a"))
		if _, err := late.ask(t.Context(), icn.address, "icn1-a", API); err != nil {
			t.Fatalf("renewed: %v", err)
		}
	})
}

// blocked is a listener of a node that only dials.
type blocked struct{}

func (blocked) Accept() (net.Conn, error) { return nil, net.ErrClosed }
func (blocked) Close() error              { return nil }
func (blocked) Addr() net.Addr            { return &net.TCPAddr{} }

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
		id := n.identity("nrt1-a")
		p := Open(Config{Listener: f, Identity: func() *identity.Node { return id }, Dial: host.Dial})
		defer p.Close()
		serve(p.Service(API), "api")
		icn := n.node("icn1-a")
		if _, err := icn.ask(t.Context(), netip.AddrPortFrom(host.Addr(), 7947).String(), "nrt1-a", API); err != nil {
			t.Error(err)
		}
	})
}
