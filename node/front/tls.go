package front

import (
	"cmp"
	"crypto/tls"
	"slices"
)

// speech is how all doors speak TLS at one moment, but those that bring a TLSConfig: a configuration for each security
// policy, all with the ticket keys. It is immutable, made when the keys change, and chosen from at each handshake.
type speech struct {
	policies map[string]*tls.Config // with HTTP/2
	old      map[string]*tls.Config // those that take TLS before 1.2, for clients that speak no more: without HTTP/2 (RFC 9113, 9.2)
	http3    *tls.Config
}

func (f *Front) newSpeech(tickets [][32]byte) *speech {
	s := &speech{policies: map[string]*tls.Config{}, old: map[string]*tls.Config{}}
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
