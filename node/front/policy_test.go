package front

import (
	"crypto/tls"
	"slices"
	"testing"
)

// The numbers are how many of the suites of CloudFront's table each policy has, less those that crypto/tls lacks.
func TestPoliciesAreCloudFronts(t *testing.T) {
	for _, c := range []struct {
		name   string
		min    uint16
		suites int
		has    []uint16
		lacks  []uint16
	}{
		{"TLSv1", tls.VersionTLS10, 18, []uint16{tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA}, nil},
		{"TLSv1_2016", tls.VersionTLS10, 17, []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA}, []uint16{tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA}},
		{"TLSv1.1_2016", tls.VersionTLS11, 17, []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA}, []uint16{tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA}},
		{"TLSv1.2_2018", tls.VersionTLS12, 11, []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}, []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA}},
		{"TLSv1.2_2019", tls.VersionTLS12, 8, []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256}, []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}},
		{"TLSv1.2_2021", tls.VersionTLS12, 6, []uint16{tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256}, []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256}},
		{"TLSv1.2_2025", tls.VersionTLS12, 4, []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}, []uint16{tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256}},
		{"TLSv1.3_2025", tls.VersionTLS13, 0, nil, []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}},
	} {
		p, known := PolicyOf(c.name)
		if !known || p.MinVersion != c.min || len(p.CipherSuites) != c.suites {
			t.Errorf("%s: got %t, from %x, %d suites", c.name, known, p.MinVersion, len(p.CipherSuites))
		}
		for _, id := range c.has {
			if !slices.Contains(p.CipherSuites, id) {
				t.Errorf("%s lacks %s", c.name, tls.CipherSuiteName(id))
			}
		}
		for _, id := range c.lacks {
			if slices.Contains(p.CipherSuites, id) {
				t.Errorf("%s has %s", c.name, tls.CipherSuiteName(id))
			}
		}
	}
	for _, name := range []string{"", "SSLv3", "tlsv1", "TLSv1.2"} {
		if _, known := PolicyOf(name); known {
			t.Errorf("%q is a policy", name)
		}
	}
}

func TestEachPolicyTakesNothingThatTheOneBeforeDoesNot(t *testing.T) {
	before, _ := PolicyOf(policies[0].name)
	for _, named := range policies[1:] {
		p, _ := PolicyOf(named.name)
		if p.MinVersion < before.MinVersion {
			t.Errorf("%s speaks older TLS", named.name)
		}
		for _, id := range p.CipherSuites {
			if !slices.Contains(before.CipherSuites, id) {
				t.Errorf("%s has %s, which the one before has not", named.name, tls.CipherSuiteName(id))
			}
		}
		before = p
	}
}
