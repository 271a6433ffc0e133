package identity

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// dialTo answers every dial by a pipe whose far end is given to serve.
func dialTo(serve func(net.Conn)) func(context.Context, string, string) (net.Conn, error) {
	return func(context.Context, string, string) (net.Conn, error) {
		a, b := net.Pipe()
		go serve(b)
		return a, nil
	}
}

// admitting serves a gate behind a node's join handshake.
func admitting(n *Node, g *Gate) func(net.Conn) {
	return func(raw net.Conn) {
		defer raw.Close()
		conn := tls.Server(raw, n.JoinTLS())
		if conn.Handshake() == nil {
			g.Admit(conn)
		}
	}
}

func anyone(Claim) error { return nil }

func voter(name string) Claim {
	c := claim(name)
	c.Roles = append(c.Roles, Voter)
	return c
}

func TestAMachineJoinsByTheToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newCluster(t)
		first := node(t, a, "icn1-a")
		var asked []Claim
		gate := NewGate(a, func(c Claim) error { asked = append(asked, c); return nil })
		joined, authority, err := Join(t.Context(), dialTo(admitting(first, gate)), "first:7947", a.Token(), claim("nrt1-a"))
		if err != nil {
			t.Fatal(err)
		}
		if authority != nil {
			t.Error("a node that may not vote was given the authority")
		}
		if joined.Name() != "nrt1-a" || joined.ClusterID() != a.ClusterID() || !bytes.Equal(joined.GossipKey(), first.GossipKey()) {
			t.Errorf("joined as %s of %s", joined.Name(), joined.ClusterID())
		}
		if len(asked) != 1 || asked[0].POP != "icn1" || asked[0].Region != "ap-northeast-2" || !slices.Equal(asked[0].Roles, []string{"edge", "dns"}) {
			t.Errorf("the gate was asked about %v", asked)
		}
		if _, _, clientErr, serverErr := shake(joined.ClientTLS("icn1-a", "x"), first.ServerTLS("x")); clientErr != nil || serverErr != nil {
			t.Errorf("the joined node is not taken for one: %v, %v", clientErr, serverErr)
		}
		if got := gate.Counters()["join_admitted_total"]; got != 1 {
			t.Errorf("counted %d", got)
		}
	})
}

func TestAVoterCanAdmitOthersInItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newCluster(t)
		second, authority, err := Join(t.Context(), dialTo(admitting(node(t, a, "icn1-a"), NewGate(a, anyone))), "first:7947", a.Token(), voter("nrt1-a"))
		if err != nil {
			t.Fatal(err)
		}
		if authority == nil || authority.Token() != a.Token() {
			t.Fatal("a voter was not given the authority")
		}
		third, _, err := Join(t.Context(), dialTo(admitting(second, NewGate(authority, anyone))), "second:7947", a.Token(), claim("fra1-a"))
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err, _ := shake(third.ClientTLS("icn1-a", "x"), node(t, a, "icn1-a").ServerTLS("x")); err != nil {
			t.Errorf("the first does not know whom the second admitted: %v", err)
		}
	})
}

func TestWhoMayNotJoinIsToldWhy(t *testing.T) {
	for name, test := range map[string]struct {
		forget                bool // the secret
		name, reason, counter string
	}{
		"wrong secret": {true, "nrt1-a", "wrong token", "join_wrong_token_total"},
		"taken name":   {false, "icn1-a", "name icn1-a is taken", "join_refused_total"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newCluster(t)
				token := a.Token()
				if test.forget {
					token = Token{Authority: fingerprint(a.cert)}.String()
				}
				gate := NewGate(a, func(c Claim) error {
					if c.Name == "icn1-a" {
						return errors.New("name icn1-a is taken")
					}
					return nil
				})
				_, _, err := Join(t.Context(), dialTo(admitting(node(t, a, "icn1-a"), gate)), "first:7947", token, claim(test.name))
				var refused *RefusedError
				if !errors.As(err, &refused) || refused.Reason != test.reason {
					t.Fatalf("got %v, want refused: %s", err, test.reason)
				}
				if !strings.Contains(err.Error(), "first:7947") {
					t.Errorf("%q does not say where", err)
				}
				want := map[string]uint64{"join_admitted_total": 0, "join_malformed_total": 0, "join_wrong_token_total": 0, "join_refused_total": 0}
				want[test.counter] = 1
				if got := gate.Counters(); !maps.Equal(got, want) {
					t.Errorf("counted %v", got)
				}
			})
		})
	}
}

func TestTheSecretIsNotShownToAnotherCluster(t *testing.T) {
	for name, test := range map[string]struct {
		shown func(mimic *Node, wanted *Authority) [][]byte
		other bool
	}{
		"another cluster":      {func(m *Node, _ *Authority) [][]byte { return [][]byte{m.cert.Raw, m.ca.Raw} }, true},
		"no authority shown":   {func(m *Node, _ *Authority) [][]byte { return [][]byte{m.cert.Raw} }, true},
		"a borrowed authority": {func(m *Node, a *Authority) [][]byte { return [][]byte{m.cert.Raw, a.cert.Raw} }, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newCluster(t)
				mimic := node(t, newCluster(t), "icn1-a")
				server := mimic.JoinTLS()
				server.Certificates[0].Certificate = test.shown(mimic, a)
				heard := make(chan int, 1)
				serve := func(raw net.Conn) {
					defer raw.Close()
					conn := tls.Server(raw, server)
					conn.Handshake()
					n, _ := conn.Read(make([]byte, 1))
					heard <- n
				}
				_, _, err := Join(t.Context(), dialTo(serve), "first:7947", a.Token(), claim("nrt1-a"))
				if err == nil || errors.Is(err, ErrOtherCluster) != test.other {
					t.Errorf("got %v", err)
				}
				if n := <-heard; n != 0 {
					t.Error("the other cluster was told something")
				}
			})
		})
	}
}

func TestAnAnswerForAnotherIsNotAccepted(t *testing.T) {
	a := newCluster(t)
	key, csr, err := request()
	if err != nil {
		t.Fatal(err)
	}
	good := NewGate(a, anyone).judge(joinRequest{Secret: a.secret, Claim: voter("nrt1-a"), CSR: csr})
	if _, _, err := good.accept(key, a.cert, voter("nrt1-a")); err != nil {
		t.Fatal(err)
	}
	_, otherCSR, err := request()
	if err != nil {
		t.Fatal(err)
	}
	otherKey := NewGate(a, anyone).judge(joinRequest{Secret: a.secret, Claim: voter("nrt1-a"), CSR: otherCSR})
	b := newCluster(t)
	otherCluster := NewGate(b, anyone).judge(joinRequest{Secret: b.secret, Claim: voter("nrt1-a"), CSR: csr})
	otherAuthority := good
	otherAuthority.Authority = otherCluster.Authority
	noCertificate := good
	noCertificate.Certificate = nil
	for name, answer := range map[string]joinAnswer{
		"another key": otherKey, "another cluster": otherCluster, "another authority": otherAuthority, "no certificate": noCertificate,
	} {
		if _, _, err := answer.accept(key, a.cert, voter("nrt1-a")); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, _, err := good.accept(key, a.cert, voter("fra1-a")); err == nil {
		t.Error("a certificate of another name is accepted")
	}
}

func TestASilentPeerIsGivenUpAfterTenSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newCluster(t)
		begin := time.Now()
		_, _, err := Join(t.Context(), dialTo(func(c net.Conn) {
			defer c.Close()
			io.Copy(io.Discard, c)
		}), "first:7947", a.Token(), claim("nrt1-a"))
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != joinTimeout {
			t.Errorf("joiner: %v after %v", err, time.Since(begin))
		}
	})
	synctest.Test(t, func(t *testing.T) {
		gate := NewGate(newCluster(t), anyone)
		client, server := net.Pipe()
		defer client.Close()
		begin := time.Now()
		if _, err := gate.Admit(server); err == nil || time.Since(begin) != joinTimeout {
			t.Errorf("gate: %v after %v", err, time.Since(begin))
		}
		if gate.Counters()["join_malformed_total"] != 1 {
			t.Error("it was not counted")
		}
	})
}

func TestJoinEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newCluster(t)
		server := node(t, a, "icn1-a").JoinTLS()
		for name, dial := range map[string]func(context.Context, string, string) (net.Conn, error){
			"while dialing": func(ctx context.Context, _, _ string) (net.Conn, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			},
			"in the handshake": dialTo(func(c net.Conn) {
				defer c.Close()
				io.Copy(io.Discard, c)
			}),
			"before the answer": dialTo(func(c net.Conn) {
				defer c.Close()
				io.Copy(io.Discard, tls.Server(c, server))
			}),
		} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			begin := time.Now()
			if _, _, err := Join(ctx, dial, "first:7947", a.Token(), claim("nrt1-a")); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != time.Second {
				t.Errorf("%s: %v after %v", name, err, time.Since(begin))
			}
			cancel()
		}
	})
}

func TestGarbageAtTheGateIsCounted(t *testing.T) {
	a := newCluster(t)
	long := binary.BigEndian.AppendUint32(nil, maxMessage+1)
	for name, message := range map[string][]byte{
		"nothing": nil, "half a length": {0, 0}, "too long": long,
		"cut off": {0, 0, 0, 9, '{'}, "not JSON": {0, 0, 0, 1, '{'}, "another type": {0, 0, 0, 2, '[', ']'},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gate := NewGate(a, anyone)
				client, server := net.Pipe()
				go func() {
					client.Write(message)
					client.Close()
				}()
				if _, err := gate.Admit(server); err == nil {
					t.Error("admitted")
				}
				if got := gate.Counters(); got["join_malformed_total"] != 1 || got["join_admitted_total"] != 0 {
					t.Errorf("counted %v", got)
				}
			})
		})
	}
}

// FuzzJoinRequest: whatever a stranger sends, the gate answers or refuses, and admits none without the secret.
func FuzzJoinRequest(f *testing.F) {
	a := newCluster(f)
	_, csr, err := request()
	if err != nil {
		f.Fatal(err)
	}
	framed := func(r joinRequest) []byte {
		var b bytes.Buffer
		if err := writeMessage(&b, r); err != nil {
			f.Fatal(err)
		}
		return b.Bytes()
	}
	f.Add(framed(joinRequest{Secret: make([]byte, keySize), Claim: claim("icn1-a"), CSR: csr}))
	f.Add(framed(joinRequest{Secret: a.secret, Claim: voter("icn1-a"), CSR: csr}))
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	f.Add([]byte{255, 255, 255, 255})
	gate := NewGate(a, anyone)
	f.Fuzz(func(t *testing.T, message []byte) {
		var r joinRequest
		if err := readMessage(bytes.NewReader(message), &r); err != nil {
			return
		}
		if answer := gate.judge(r); answer.Refused == "" {
			if !bytes.Equal(r.Secret, a.secret) || r.Claim.Validate() != nil {
				raw, _ := json.Marshal(r)
				t.Fatalf("admitted by %s", raw)
			}
		}
	})
}
