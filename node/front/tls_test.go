package front

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/perigee-net/perigee/cluster/spec"
)

// policyOf has the name of a host be its policy: tlsv1.3_2025.test.
func policyOf(host string) string {
	for _, p := range policies {
		if canonicalHost(p.name) == host {
			return p.name
		}
	}
	return "none"
}

func canonicalHost(policy string) string { return policy + ".test" }

func anyHost(string) bool { return true }

// secured is a world whose node has a TLS door at 443 and knows a policy by the host.
func secured(t *testing.T, f func(w *world)) {
	c := Config{Certificate: NewCertificates("node", anyHost).Get, Policy: policyOf}
	inWorld(t, c, func(w *world) {
		w.set(Door{Network: "tcp", Address: at(443), TLS: true, Handler: says("x")})
		f(w)
	})
}

// greet makes a handshake and one request, after which a TLS 1.3 client has its ticket.
func greet(c net.Conn, config *tls.Config) (tls.ConnectionState, error) {
	config = config.Clone()
	config.InsecureSkipVerify = true
	client := tls.Client(c, config)
	defer client.Close()
	if err := client.Handshake(); err != nil {
		return tls.ConnectionState{}, err
	}
	if client.ConnectionState().NegotiatedProtocol != "h2" {
		fmt.Fprint(client, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		if _, err := io.ReadAll(client); err != nil {
			return tls.ConnectionState{}, err
		}
	}
	return client.ConnectionState(), nil
}

func TestTheHostDecidesWhatTLSIsSpoken(t *testing.T) {
	const chacha, cbc = tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA
	secured(t, func(w *world) {
		for _, c := range []struct {
			policy string
			most   uint16
			suites []uint16
			want   uint16 // 0: none
		}{
			{"TLSv1", tls.VersionTLS10, nil, tls.VersionTLS10},
			{"TLSv1_2016", tls.VersionTLS10, nil, tls.VersionTLS10},
			{"TLSv1.1_2016", tls.VersionTLS10, nil, 0},
			{"TLSv1.1_2016", tls.VersionTLS11, nil, tls.VersionTLS11},
			{"TLSv1.2_2018", tls.VersionTLS11, nil, 0},
			{"TLSv1.2_2018", tls.VersionTLS12, nil, tls.VersionTLS12},
			{"TLSv1.1_2016", tls.VersionTLS12, []uint16{cbc}, tls.VersionTLS12},
			{"TLSv1.2_2018", tls.VersionTLS12, []uint16{cbc}, 0},
			{"TLSv1.2_2021", tls.VersionTLS12, []uint16{chacha}, tls.VersionTLS12},
			{"TLSv1.2_2025", tls.VersionTLS12, []uint16{chacha}, 0},
			{"TLSv1.2_2025", tls.VersionTLS13, nil, tls.VersionTLS13},
			{"TLSv1.3_2025", tls.VersionTLS12, nil, 0},
			{"TLSv1.3_2025", tls.VersionTLS13, nil, tls.VersionTLS13},
			{"TLSv1", tls.VersionTLS13, nil, tls.VersionTLS13},
			{"unheard of", tls.VersionTLS11, nil, 0},
			{"unheard of", tls.VersionTLS12, nil, tls.VersionTLS12},
		} {
			state, err := greet(w.dial(443), &tls.Config{
				ServerName: canonicalHost(c.policy), MinVersion: tls.VersionTLS10, MaxVersion: c.most, CipherSuites: c.suites,
			})
			if state.Version != c.want || (err == nil) != (c.want != 0) {
				t.Errorf("%s of a client up to %x: got %x, %v", c.policy, c.most, state.Version, err)
			}
		}
	})
}

func TestHTTP2IsNotAgreedOnWithTLSThatIsTooOldForIt(t *testing.T) {
	secured(t, func(w *world) {
		for most, want := range map[uint16]string{tls.VersionTLS11: "http/1.1", tls.VersionTLS12: "h2", tls.VersionTLS13: "h2"} {
			state, err := greet(w.dial(443), &tls.Config{
				ServerName: canonicalHost("TLSv1"), MinVersion: tls.VersionTLS10, MaxVersion: most, NextProtos: []string{"h2", "http/1.1"},
			})
			if err != nil || state.NegotiatedProtocol != want {
				t.Errorf("up to %x: got %q, %v", most, state.NegotiatedProtocol, err)
			}
		}
	})
}

func TestAClientThatKnowsNoVersionWeKnowIsRefused(t *testing.T) {
	f := New(Config{Certificate: NewCertificates("node", anyHost).Get})
	for _, versions := range [][]uint16{nil, {0x0300}, {0x7a7a}} { // none, SSLv3, one that is made up so that nobody trips over it (RFC 8701)
		if got := f.speech.Load().choose("TLSv1", &tls.ClientHelloInfo{SupportedVersions: versions}); got == nil || slices.Contains(got.NextProtos, "h2") {
			t.Errorf("%x: got %v", versions, got)
		}
	}
	if got := f.speech.Load().choose("TLSv1", &tls.ClientHelloInfo{SupportedVersions: []uint16{0x7a7a, tls.VersionTLS12}}); !slices.Contains(got.NextProtos, "h2") {
		t.Error("a client of today is not offered HTTP/2")
	}
}

// place is where everybody is.
func (w *world) place() spec.Location { return spec.Location{} }

// second opens a Front at another node of the world, which is to be closed.
func (w *world) second(c Config) *Front {
	w.Helper()
	other := w.net.Host("other", w.place(), netip.MustParseAddr("203.0.113.2"))
	c.Listen, c.ListenPacket = other.Listen, other.ListenPacket
	f := New(c)
	if err := f.Set([]Door{{Network: "tcp", Address: at(443), TLS: true, HTTP3: true, Handler: says("y")}}); err != nil {
		w.Fatal(err)
	}
	return f
}

// resumes says whether a client that has been at one node is known at another, and what is spoken there.
func (w *world) resumes(address string, config *tls.Config) (bool, uint16) {
	w.Helper()
	c, err := w.person.Dial(w.Context(), "tcp", address)
	if err != nil {
		w.Fatal(err)
	}
	state, err := greet(c, config)
	if err != nil {
		w.Fatal(err)
	}
	return state.DidResume, state.Version
}

func key(b byte) (k [32]byte) {
	for i := range k {
		k[i] = b
	}
	return k
}

func TestTicketsResumeAtAnyNodeUntilTheirKeyIsGone(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		secured(t, func(w *world) {
			other := w.second(Config{Certificate: NewCertificates("other", anyHost).Get, Policy: policyOf})
			defer other.Close(context.Background())
			set := func(keys ...[32]byte) {
				w.front.SetTicketKeys(keys)
				other.SetTicketKeys(keys)
			}
			client := &tls.Config{ServerName: "x.test", MaxVersion: version}
			fresh := func() {
				client.ClientSessionCache = tls.NewLRUClientSessionCache(1)
				if again, _ := w.resumes("203.0.113.1:443", client); again {
					t.Error("a new client is known")
				}
			}
			knows := func(address string, want bool, when string) {
				t.Helper()
				// What a client is given in place of its ticket is not to count.
				once := client.Clone()
				ticket, _ := client.ClientSessionCache.Get("x.test")
				once.ClientSessionCache = tls.NewLRUClientSessionCache(1)
				once.ClientSessionCache.Put("x.test", ticket)
				if got, _ := w.resumes(address, once); got != want {
					t.Errorf("%x: %s: got %t", version, when, got)
				}
			}
			set(key(1), key(2))
			fresh()
			knows("203.0.113.2:443", true, "at another node")
			knows("203.0.113.1:443", true, "at the same")
			w.set(Door{Network: "tcp", Address: at(443), TLS: true, Handler: says("z")})
			knows("203.0.113.1:443", true, "after a change of the doors")
			w.front.SetTicketKeys([][32]byte{key(2), key(1), key(3)}) // the other has not heard of it yet
			knows("203.0.113.1:443", true, "after a rotation")
			fresh()
			knows("203.0.113.2:443", true, "at a node that a rotation has not reached")
			set(key(3), key(2), key(4))
			knows("203.0.113.2:443", true, "after the rotation that follows")
			set(key(4), key(3), key(5))
			knows("203.0.113.2:443", false, "when the key is gone")
		})
	}
}

func TestResumingIsNoWayRoundAPolicy(t *testing.T) {
	for strict, suites := range map[string][]uint16{"TLSv1.3_2025": nil, "TLSv1.2_2021": {tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}} {
		certificates := NewCertificates("node", anyHost)
		inWorld(t, Config{Certificate: certificates.Get, Policy: func(string) string { return strict }}, func(w *world) {
			w.set(Door{Network: "tcp", Address: at(443), TLS: true, Handler: says("x")})
			lax := w.second(Config{Certificate: certificates.Get, Policy: func(string) string { return "TLSv1" }})
			defer lax.Close(context.Background())
			w.front.SetTicketKeys([][32]byte{key(1)})
			lax.SetTicketKeys([][32]byte{key(1)})
			client := &tls.Config{
				ServerName: "x.test", MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS12, CipherSuites: suites,
				ClientSessionCache: tls.NewLRUClientSessionCache(1),
			}
			if _, v := w.resumes("203.0.113.2:443", client); v != tls.VersionTLS12 {
				t.Fatalf("the first visit: %x", v)
			}
			if again, _ := w.resumes("203.0.113.2:443", client); !again {
				t.Error("the node that gave the ticket does not take it")
			}
			if state, err := greet(w.dial(443), client); err == nil {
				t.Errorf("%s took a ticket of %x, %s", strict, state.Version, tls.CipherSuiteName(state.CipherSuite))
			}
			client.MaxVersion, client.CipherSuites = tls.VersionTLS13, nil // it can do better, and has the old ticket
			if again, v := w.resumes("203.0.113.1:443", client); again || v != tls.VersionTLS13 {
				t.Errorf("%s: got %t, %x", strict, again, v)
			}
		})
	}
}

func TestADoorsOwnTLSKeepsItsTicketsToItself(t *testing.T) {
	certificates := NewCertificates("node", anyHost)
	own := &tls.Config{GetCertificate: certificates.Get}
	inWorld(t, Config{Certificate: certificates.Get}, func(w *world) {
		w.front.SetTicketKeys([][32]byte{key(1)})
		w.set(
			Door{Network: "tcp", Address: at(443), TLS: true, Handler: says("world")},
			Door{Network: "tcp", Address: at(7948), TLS: true, TLSConfig: own, Handler: says("own")},
		)
		client := &tls.Config{ServerName: "x.test", ClientSessionCache: tls.NewLRUClientSessionCache(1)}
		w.resumes("203.0.113.1:443", client)
		if again, _ := w.resumes("203.0.113.1:7948", client); again {
			t.Error("a ticket of the world's door is taken at another")
		}
		if again, _ := w.resumes("203.0.113.1:7948", client); !again {
			t.Error("it takes its own neither")
		}
	})
}

func TestOtherProtocolsSpeakTLSByTheTicketKeys(t *testing.T) {
	f := New(Config{Certificate: NewCertificates("node", func(string) bool { return false }).Get})
	defer f.Close(t.Context())
	keys := [][32]byte{{1}, {2}}
	f.SetTicketKeys(keys)
	other := New(Config{Certificate: NewCertificates("node", func(string) bool { return false }).Get})
	defer other.Close(t.Context())
	other.SetTicketKeys(keys[1:])
	cache := tls.NewLRUClientSessionCache(1)
	for _, test := range []struct {
		f       *Front
		resumes bool
		keys    [][32]byte
	}{{f, false, nil}, {f, true, keys}, {other, false, nil}, {f, false, [][32]byte{{3}}}} {
		if test.keys != nil {
			test.f.SetTicketKeys(test.keys)
		}
		here, there := net.Pipe()
		served := make(chan error, 1)
		go func() {
			c := tls.Server(there, test.f.TLS("dot"))
			_, err := c.Write([]byte("x")) // after the handshake, so the ticket has come before it
			served <- err
		}()
		c := tls.Client(here, &tls.Config{InsecureSkipVerify: true, ServerName: "ns1.test", NextProtos: []string{"dot"}, ClientSessionCache: cache})
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if err := <-served; err != nil {
			t.Fatal(err)
		}
		if got := c.ConnectionState(); got.DidResume != test.resumes || got.NegotiatedProtocol != "dot" {
			t.Errorf("resumed %v, want %v; spoke %q", got.DidResume, test.resumes, got.NegotiatedProtocol)
		}
		here.Close()
	}
}
