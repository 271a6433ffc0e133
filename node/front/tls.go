package front

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"slices"
)

// speech is how all doors speak TLS at one moment, but those that bring a TLSConfig: a configuration for each security
// policy, all with the ticket keys. It is immutable, made when the keys change, and chosen from at each handshake.
type speech struct {
	policies map[string]*tls.Config // with HTTP/2
	old      map[string]*tls.Config // those that take TLS before 1.2, for clients that speak no more: without HTTP/2 (RFC 9113, 9.2)
	http3    *tls.Config
	others   map[string]*tls.Config // of what is served elsewhere, by ALPN (TLS)
}

// others are the protocols besides HTTP that clients speak with this node over TLS, with the oldest version of it that each takes: DNS
// over TLS (RFC 7858, RFC 8310 §9) and over QUIC (RFC 9250).
var others = []struct {
	alpn string
	min  uint16
}{{"dot", tls.VersionTLS12}, {"doq", tls.VersionTLS13}}

// TLS is how a protocol that has no door here, "dot" or "doq", speaks TLS on sockets of others: with the certificates, and with the
// ticket keys as they are at each handshake. Another name is a mistake in the program, and no handshake will end.
func (f *Front) TLS(alpn string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{alpn}, GetCertificate: f.config.Certificate,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			if c := f.speech.Load().others[alpn]; c != nil {
				return c, nil
			}
			return nil, fmt.Errorf("nobody speaks %s", alpn)
		},
	}
}

func (f *Front) newSpeech(tickets [][32]byte) *speech {
	s := &speech{policies: map[string]*tls.Config{}, old: map[string]*tls.Config{}, others: map[string]*tls.Config{}}
	config := func(p Policy, alpn ...string) *tls.Config {
		c := &tls.Config{
			MinVersion: p.MinVersion, CipherSuites: p.CipherSuites, NextProtos: alpn, GetCertificate: f.config.Certificate,
		}
		if len(tickets) > 0 {
			c.SetSessionTicketKeys(tickets)
		}
		return c
	}
	for _, named := range policies {
		p, _ := PolicyOf(named.name)
		s.policies[named.name] = config(p, "h2", "http/1.1")
		if p.MinVersion < tls.VersionTLS12 {
			s.old[named.name] = config(p, "http/1.1")
		}
	}
	s.http3 = config(Policy{MinVersion: tls.VersionTLS13}, http3ALPN)
	for _, o := range others {
		p, _ := PolicyOf(DefaultPolicy)
		p.MinVersion = max(p.MinVersion, o.min)
		s.others[o.alpn] = config(p, o.alpn)
	}
	return s
}

// choose is the configuration for a client.
func (s *speech) choose(policy string, hello *tls.ClientHelloInfo) *tls.Config {
	if s.policies[policy] == nil {
		policy = DefaultPolicy
	}
	modern := func(version uint16) bool { return version == tls.VersionTLS12 || version == tls.VersionTLS13 }
	if old := s.old[policy]; old != nil && !slices.ContainsFunc(hello.SupportedVersions, modern) {
		return old
	}
	return s.policies[policy]
}

// tlsConfig is how a door speaks TLS: what it says itself is only for clients of doors that bring a TLSConfig.
func (d *door) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: d.front.config.Certificate,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			return d.front.configFor(d.behind.Load(), hello)
		},
	}
}

// configFor is how a client is spoken to: as the policy of the host says that it names, or as who is behind the door
// says. In the latter case session tickets are the door's own.
func (f *Front) configFor(behind *Door, hello *tls.ClientHelloInfo) (*tls.Config, error) {
	own := behind.TLSConfig
	if own == nil {
		policy := DefaultPolicy
		if f.config.Policy != nil {
			policy = f.config.Policy(hello.ServerName)
		}
		return f.speech.Load().choose(policy, hello), nil
	}
	if own.GetConfigForClient != nil {
		theirs, err := own.GetConfigForClient(hello)
		if err != nil {
			return nil, err
		}
		own = cmp.Or(theirs, own)
	}
	own = own.Clone()
	own.NextProtos = []string{"h2", "http/1.1"}
	return own, nil
}
