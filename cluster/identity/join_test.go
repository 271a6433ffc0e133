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
	"net/netip"
	"reflect"
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
func admitting(guard *Guard, gate *Gate) func(net.Conn) {
	return func(raw net.Conn) {
		defer raw.Close()
		conn := tls.Server(raw, guard.JoinTLS())
		if conn.Handshake() == nil {
			gate.Admit(context.Background(), conn)
		}
	}
}

type judge = func(context.Context, JoinRequest) (JoinAnswer, error)

// admits is a judge who admits whoever has the token, by this authority, at this epoch.
func (c *cluster) admits(token Token, epoch uint64) judge {
	return func(_ context.Context, r JoinRequest) (JoinAnswer, error) {
		if !bytes.Equal(r.TokenID, token.ID[:]) || !bytes.Equal(r.Secret, token.Secret[:]) {
			return JoinAnswer{Refused: "wrong token"}, nil
		}
		der, err := c.Issue(r.CSR, r.Claim, epoch, time.Now())
		if err != nil {
			return JoinAnswer{Refused: err.Error()}, nil
		}
		answer := JoinAnswer{Certificate: der, Authorities: [][]byte{c.Certificate()}, ClusterKey: c.keys.Cluster[:]}
		if c.keys.Authority != nil {
			answer.AuthorityKey = c.keys.Authority[:]
		}
		return answer, nil
	}
}

func count(want string) map[string]uint64 {
	counts := map[string]uint64{"join_admitted_total": 0, "join_malformed_total": 0, "join_refused_total": 0, "join_undecided_total": 0}
	counts[want]++
	return counts
}

func TestAMachineJoinsByTheToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		first := guard(node(t, c, "icn1-a"))
		token := NewToken(c.Hash())
		var asked []JoinRequest
		gate := NewGate(func(ctx context.Context, r JoinRequest) (JoinAnswer, error) {
			asked = append(asked, r)
			return c.admits(token, 7)(ctx, r)
		})
		claim := claim("nrt1-a")
		claim.Addresses = []netip.Addr{netip.MustParseAddr("192.0.2.7")}
		joined, err := Join(t.Context(), dialTo(admitting(first, gate)), "first:7947", token.String(), claim, nil)
		if err != nil {
			t.Fatal(err)
		}
		if joined.Name() != "nrt1-a" || joined.ClusterID() != c.ClusterID() || joined.Epoch() != 7 || joined.Authority() != c.Hash() {
			t.Errorf("joined as %v at epoch %d", joined, joined.Epoch())
		}
		if keys := joined.Keys(); keys.Cluster != c.keys.Cluster || keys.Authority != nil {
			t.Error("it was given other keys")
		}
		if len(asked) != 1 || !reflect.DeepEqual(asked[0].Claim, claim) {
			t.Errorf("the judge was asked about %v", asked)
		}
		if err := talk(guard(joined), first); err != nil {
			t.Errorf("the joined node is not taken for one: %v", err)
		}
		if got := gate.Counters(); !maps.Equal(got, count("join_admitted_total")) {
			t.Errorf("counted %v", got)
		}
	})
}

func TestAVoterIsGivenTheAuthorityKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		key := NewKey()
		c.keys.Authority = &key
		token := NewToken(c.Hash())
		gate := NewGate(c.admits(token, 1))
		voter := claim("nrt1-a")
		voter.Roles = append(voter.Roles, Voter)
		joined, err := Join(t.Context(), dialTo(admitting(guard(node(t, c, "icn1-a")), gate)), "first:7947", token.String(), voter, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := joined.Keys().Authority; got == nil || *got != key {
			t.Fatal("a voter was not given the authority key")
		}
		if !joined.Claim().Votes() || claim("x").Votes() {
			t.Error("who votes is not told from who does not")
		}
	})
}

// While the authority is changed, a token of before is good for as long as the node that is asked shows the old one.
func TestAMachineJoinsDuringARotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := newCluster(t)
		second := old.next(t)
		token := NewToken(old.Hash())
		gate := NewGate(func(ctx context.Context, r JoinRequest) (JoinAnswer, error) {
			answer, err := second.admits(token, 3)(ctx, r)
			answer.Authorities = [][]byte{old.Certificate(), second.Certificate()}
			return answer, err
		})
		first := NewGuard(node(t, old, "icn1-a"), trust(nil, old, second), nil)
		joined, err := Join(t.Context(), dialTo(admitting(first, gate)), "first:7947", token.String(), claim("nrt1-a"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if joined.Authority() != second.Hash() {
			t.Error("it was not issued by the new authority")
		}
		if err := talk(guard(joined), first); err != nil {
			t.Error(err)
		}
		first.SetNode(node(t, second, "icn1-a"))
		if _, err := Join(t.Context(), dialTo(admitting(first, gate)), "first:7947", token.String(), claim("fra1-a"), nil); !errors.Is(err, ErrOtherCluster) {
			t.Errorf("by a token older than the authority: %v", err)
		}
	})
}

func TestWhoMayNotJoinIsToldWhy(t *testing.T) {
	for name, test := range map[string]struct {
		judge   judge
		is      func(error) bool
		counter string
	}{
		"refused": {
			func(context.Context, JoinRequest) (JoinAnswer, error) {
				return JoinAnswer{Refused: "name nrt1-a is taken", ClusterKey: make([]byte, 32)}, nil
			},
			func(err error) bool {
				var refused *RefusedError
				return errors.As(err, &refused) && refused.Reason == "name nrt1-a is taken"
			},
			"join_refused_total",
		},
		"undecided": {
			func(context.Context, JoinRequest) (JoinAnswer, error) {
				return JoinAnswer{}, errors.New("no leader; the last was at 192.0.2.1:7948")
			},
			func(err error) bool {
				return errors.Is(err, ErrUndecided) && !strings.Contains(err.Error(), "192.0.2.1")
			},
			"join_undecided_total",
		},
		"undecided elsewhere": {
			func(context.Context, JoinRequest) (JoinAnswer, error) { return JoinAnswer{Undecided: true}, nil },
			func(err error) bool { return errors.Is(err, ErrUndecided) },
			"join_undecided_total",
		},
		"undecided for long": {
			func(ctx context.Context, _ JoinRequest) (JoinAnswer, error) {
				<-ctx.Done()
				return JoinAnswer{}, ctx.Err()
			},
			func(err error) bool { return errors.Is(err, ErrUndecided) },
			"join_undecided_total",
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t)
				gate := NewGate(test.judge)
				_, err := Join(t.Context(), dialTo(admitting(guard(node(t, c, "icn1-a")), gate)), "first:7947", NewToken(c.Hash()).String(), claim("nrt1-a"), nil)
				if !test.is(err) {
					t.Fatalf("got %v", err)
				}
				if !strings.Contains(err.Error(), "first:7947") {
					t.Errorf("%q does not say where", err)
				}
				synctest.Wait()
				if got := gate.Counters(); !maps.Equal(got, count(test.counter)) {
					t.Errorf("counted %v", got)
				}
			})
		})
	}
}

func TestTheGateTellsItsCallerWhatBecameOfTheRequest(t *testing.T) {
	c := newCluster(t)
	r, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	token := NewToken(c.Hash())
	good := JoinRequest{TokenID: token.ID[:], Secret: token.Secret[:], Claim: claim("nrt1-a"), CSR: r.CSR()}
	noLeader := errors.New("no leader")
	for name, test := range map[string]struct {
		judge judge
		is    func(error) bool
	}{
		"admitted":  {c.admits(token, 1), func(err error) bool { return err == nil }},
		"refused":   {c.admits(Token{}, 1), func(err error) bool { return errors.As(err, new(*RefusedError)) }},
		"undecided": {func(context.Context, JoinRequest) (JoinAnswer, error) { return JoinAnswer{}, noLeader }, func(err error) bool { return errors.Is(err, noLeader) }},
		"too much to say": {func(context.Context, JoinRequest) (JoinAnswer, error) {
			return JoinAnswer{Certificate: make([]byte, maxAnswer)}, nil
		}, func(err error) bool { return err != nil && strings.Contains(err.Error(), "at most") }},
	} {
		synctest.Test(t, func(t *testing.T) {
			client, server := net.Pipe()
			go func() {
				writeMessage(client, maxRequest, good)
				io.Copy(io.Discard, client)
				client.Close()
			}()
			who, err := NewGate(test.judge).Admit(t.Context(), server)
			if who.Name != "nrt1-a" || !test.is(err) {
				t.Errorf("%s: got %v, %v", name, who, err)
			}
		})
	}
}

func TestTheSecretIsNotShownToAnotherCluster(t *testing.T) {
	for name, test := range map[string]struct {
		shown func(mimic *Node, wanted *cluster) [][]byte
		other bool
	}{
		"another cluster":      {func(m *Node, _ *cluster) [][]byte { return m.chain().Certificate }, true},
		"no authority shown":   {func(m *Node, _ *cluster) [][]byte { return [][]byte{m.cert.Raw} }, true},
		"a borrowed authority": {func(m *Node, c *cluster) [][]byte { return [][]byte{m.cert.Raw, c.cert.Raw} }, true},
		"both authorities":     {func(m *Node, c *cluster) [][]byte { return append(m.chain().Certificate, c.cert.Raw) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t)
				mimic := node(t, newCluster(t), "icn1-a")
				server := &tls.Config{
					NextProtos:   []string{JoinProtocol},
					Certificates: []tls.Certificate{{Certificate: test.shown(mimic, c), PrivateKey: mimic.key}},
				}
				heard := make(chan int, 1)
				serve := func(raw net.Conn) {
					defer raw.Close()
					conn := tls.Server(raw, server)
					conn.Handshake()
					n, _ := conn.Read(make([]byte, 1))
					heard <- n
				}
				_, err := Join(t.Context(), dialTo(serve), "first:7947", NewToken(c.Hash()).String(), claim("nrt1-a"), nil)
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
	c, other := newCluster(t), newCluster(t)
	token := NewToken(c.Hash())
	r, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	otherRequest, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	answer := func(by *cluster, csr []byte, change func(*JoinAnswer)) JoinAnswer {
		a, err := by.admits(token, 1)(t.Context(), JoinRequest{TokenID: token.ID[:], Secret: token.Secret[:], Claim: claim("nrt1-a"), CSR: csr})
		if err != nil || a.Refused != "" {
			t.Fatal(err, a.Refused)
		}
		change(&a)
		return a
	}
	good := answer(c, r.CSR(), func(*JoinAnswer) {})
	if _, err := token.accept(r, good, claim("nrt1-a"), time.Now()); err != nil {
		t.Fatal(err)
	}
	for name, answer := range map[string]JoinAnswer{
		"nothing":             {},
		"another key":         answer(c, otherRequest.CSR(), func(*JoinAnswer) {}),
		"another cluster":     answer(other, r.CSR(), func(*JoinAnswer) {}),
		"another authority":   answer(c.next(t), r.CSR(), func(*JoinAnswer) {}), // of the cluster's id, which anyone can write
		"no certificate":      answer(c, r.CSR(), func(a *JoinAnswer) { a.Certificate = nil }),
		"no authority":        answer(c, r.CSR(), func(a *JoinAnswer) { a.Authorities = nil }),
		"no cluster key":      answer(c, r.CSR(), func(a *JoinAnswer) { a.ClusterKey = nil }),
		"half a cluster key":  answer(c, r.CSR(), func(a *JoinAnswer) { a.ClusterKey = a.ClusterKey[:16] }),
		"half an authority's": answer(c, r.CSR(), func(a *JoinAnswer) { a.AuthorityKey = make([]byte, 16) }),
	} {
		if _, err := token.accept(r, answer, claim("nrt1-a"), time.Now()); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := token.accept(r, good, claim("fra1-a"), time.Now()); err == nil {
		t.Error("a certificate of another name is accepted")
	}
	for _, wrong := range []time.Duration{91 * 24 * time.Hour, -366 * 24 * time.Hour} {
		if _, err := token.accept(r, good, claim("nrt1-a"), time.Now().Add(wrong)); err == nil || !strings.Contains(err.Error(), "clock") {
			t.Errorf("by a clock %v off: %v", wrong, err)
		}
	}
}

// A renewal's answer, which comes by the API: the same message, without a token.
func TestARenewalIsAccepted(t *testing.T) {
	c := newCluster(t)
	r, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	answer, err := c.admits(Token{}, 9)(t.Context(), JoinRequest{TokenID: make([]byte, 8), Secret: make([]byte, 32), Claim: claim("icn1-a"), CSR: r.CSR()})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(answer)
	if err != nil {
		t.Fatal(err)
	}
	var got JoinAnswer
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	if n, err := got.Accept(r); err != nil || n.Epoch() != 9 {
		t.Errorf("got %v, %v", n, err)
	}
	if _, err := (JoinAnswer{Refused: "no"}).Accept(r); !errors.As(err, new(*RefusedError)) {
		t.Errorf("refused: %v", err)
	}
	if _, err := (JoinAnswer{Undecided: true}).Accept(r); !errors.Is(err, ErrUndecided) {
		t.Errorf("undecided: %v", err)
	}
}

func TestASilentPeerIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		token := NewToken(c.Hash()).String()
		g := guard(node(t, c, "icn1-a"))
		for name, test := range map[string]struct {
			serve func(net.Conn)
			after time.Duration
		}{
			"before the handshake": {func(c net.Conn) { io.Copy(io.Discard, c) }, askTimeout},
			"before the answer":    {func(c net.Conn) { io.Copy(io.Discard, tls.Server(c, g.JoinTLS())) }, joinTimeout},
		} {
			begin := time.Now()
			_, err := Join(t.Context(), dialTo(func(c net.Conn) {
				defer c.Close()
				test.serve(c)
			}), "first:7947", token, claim("nrt1-a"), nil)
			if !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != test.after {
				t.Errorf("joiner, %s: %v after %v", name, err, time.Since(begin))
			}
		}
	})
	synctest.Test(t, func(t *testing.T) {
		gate := NewGate(nil)
		client, server := net.Pipe()
		defer client.Close()
		begin := time.Now()
		if _, err := gate.Admit(t.Context(), server); err == nil || time.Since(begin) != askTimeout {
			t.Errorf("gate: %v after %v", err, time.Since(begin))
		}
		if got := gate.Counters(); !maps.Equal(got, count("join_malformed_total")) {
			t.Errorf("counted %v", got)
		}
	})
	// One that asks and does not hear the answer holds the gate for as long as a joining may take, and no longer.
	synctest.Test(t, func(t *testing.T) {
		gate := NewGate(func(context.Context, JoinRequest) (JoinAnswer, error) { return JoinAnswer{Refused: "no"}, nil })
		client, server := net.Pipe()
		defer client.Close()
		go writeMessage(client, maxRequest, JoinRequest{})
		begin := time.Now()
		if _, err := gate.Admit(t.Context(), server); err == nil || time.Since(begin) != joinTimeout {
			t.Errorf("gate, unheard: %v after %v", err, time.Since(begin))
		}
	})
}

func TestJoinEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		token := NewToken(c.Hash()).String()
		server := guard(node(t, c, "icn1-a")).JoinTLS()
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
			if _, err := Join(ctx, dial, "first:7947", token, claim("nrt1-a"), nil); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != time.Second {
				t.Errorf("%s: %v after %v", name, err, time.Since(begin))
			}
			cancel()
		}
	})
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		client, server := net.Pipe()
		defer client.Close()
		begin := time.Now()
		if _, err := NewGate(nil).Admit(ctx, server); err == nil || time.Since(begin) != time.Second {
			t.Errorf("gate: %v after %v", err, time.Since(begin))
		}
	})
}

func TestAJoinThatCannotWorkIsNotTried(t *testing.T) {
	dial := func(context.Context, string, string) (net.Conn, error) {
		t.Error("dialed")
		return nil, net.ErrClosed
	}
	token := NewToken([32]byte{}).String()
	if _, err := Join(t.Context(), dial, "first:7947", token, Claim{}, nil); err == nil {
		t.Error("an empty claim is taken")
	}
	if _, err := Join(t.Context(), dial, "first:7947", token[1:], claim("x"), nil); err == nil {
		t.Error("a mistyped token is taken")
	}
}

func TestGarbageAtTheGateIsCounted(t *testing.T) {
	framed := func(r JoinRequest) []byte {
		var b bytes.Buffer
		if err := writeMessage(&b, maxRequest, r); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	some := JoinRequest{TokenID: make([]byte, 8), Secret: make([]byte, 32), Claim: claim("x"), CSR: []byte{1}}
	change := func(f func(*JoinRequest)) []byte {
		r := some
		f(&r)
		return framed(r)
	}
	for name, message := range map[string][]byte{
		"nothing": nil, "half a length": {0, 0}, "too long": binary.BigEndian.AppendUint32(nil, maxRequest+1),
		"cut off": {0, 0, 0, 9, '{'}, "not JSON": {0, 0, 0, 1, '{'}, "another type": {0, 0, 0, 2, '[', ']'},
		"an empty request":       {0, 0, 0, 2, '{', '}'},
		"a short id":             change(func(r *JoinRequest) { r.TokenID = r.TokenID[1:] }),
		"a short secret":         change(func(r *JoinRequest) { r.Secret = r.Secret[1:] }),
		"no certificate request": change(func(r *JoinRequest) { r.CSR = nil }),
		"no claim":               change(func(r *JoinRequest) { r.Claim = Claim{} }),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gate := NewGate(func(context.Context, JoinRequest) (JoinAnswer, error) {
					t.Error("the judge was asked")
					return JoinAnswer{}, nil
				})
				client, server := net.Pipe()
				go func() {
					client.Write(message)
					if slices.Contains([]string{"nothing", "half a length", "cut off"}, name) {
						client.Close()
					}
					io.Copy(io.Discard, client)
					client.Close()
				}()
				if _, err := gate.Admit(t.Context(), server); err == nil {
					t.Error("admitted")
				}
				if got := gate.Counters(); !maps.Equal(got, count("join_malformed_total")) {
					t.Errorf("counted %v", got)
				}
			})
		})
	}
}

// FuzzJoinRequest: whatever a stranger sends, the gate answers or refuses, asks the judge only about what is in form, and
// admits none without the secret.
func FuzzJoinRequest(f *testing.F) {
	c := newCluster(f)
	r, err := NewRequest()
	if err != nil {
		f.Fatal(err)
	}
	token := NewToken(c.Hash())
	framed := func(r JoinRequest) []byte {
		var b bytes.Buffer
		if err := writeMessage(&b, maxRequest, r); err != nil {
			f.Fatal(err)
		}
		return b.Bytes()
	}
	f.Add(framed(JoinRequest{TokenID: make([]byte, 8), Secret: make([]byte, 32), Claim: claim("icn1-a"), CSR: r.CSR()}))
	f.Add(framed(JoinRequest{TokenID: token.ID[:], Secret: token.Secret[:], Claim: claim("icn1-a"), CSR: r.CSR()}))
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	f.Add([]byte{255, 255, 255, 255})
	gate := NewGate(func(ctx context.Context, r JoinRequest) (JoinAnswer, error) {
		if len(r.TokenID) != 8 || len(r.Secret) != 32 || r.Claim.Validate() != nil {
			raw, _ := json.Marshal(r)
			f.Fatalf("asked about %s", raw)
		}
		return c.admits(token, 1)(ctx, r)
	})
	f.Fuzz(func(t *testing.T, message []byte) {
		var r JoinRequest
		if err := readMessage(bytes.NewReader(message), maxRequest, &r); err != nil {
			return
		}
		if answer, err := gate.answer(t.Context(), r); err == nil && answer.Refused == "" && !bytes.Equal(r.Secret, token.Secret[:]) {
			raw, _ := json.Marshal(r)
			t.Fatalf("admitted by %s", raw)
		}
	})
}

// FuzzJoinAnswer: whatever a node answers, the machine that joins gets the identity it asked for, or an error.
func FuzzJoinAnswer(f *testing.F) {
	c := newCluster(f)
	r, err := NewRequest()
	if err != nil {
		f.Fatal(err)
	}
	token := NewToken(c.Hash())
	good, err := c.admits(token, 1)(f.Context(), JoinRequest{TokenID: token.ID[:], Secret: token.Secret[:], Claim: claim("icn1-a"), CSR: r.CSR()})
	if err != nil {
		f.Fatal(err)
	}
	for _, answer := range []JoinAnswer{good, {Refused: "no"}, {Undecided: true}, {}} {
		raw, err := json.Marshal(answer)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var answer JoinAnswer
		if json.Unmarshal(raw, &answer) != nil {
			return
		}
		n, err := token.accept(r, answer, claim("icn1-a"), time.Now())
		if err == nil && (n.Name() != "icn1-a" || n.ClusterID() != c.ClusterID() || n.Authority() != c.Hash()) {
			t.Fatalf("%s gives %v", raw, n)
		}
	})
}
