package front

import "crypto/tls"

// DefaultPolicy is the security policy of hosts for which Config.Policy names none.
const DefaultPolicy = "TLSv1.2_2021"

// Policy is what a client must at least speak: a security policy of CloudFront.
type Policy struct {
	MinVersion uint16 // tls.VersionTLS10 …
	// CipherSuites are those of TLS 1.2 and earlier that may be agreed on; the order says nothing. Those of TLS 1.3 are
	// crypto/tls's own, all three, which nobody can choose from.
	CipherSuites []uint16
}

// suites says of each cipher suite which policies have it: all up to one, in CloudFront's order ("Supported protocols and
// ciphers between viewers and CloudFront"). Of CloudFront's list crypto/tls lacks ECDHE-*-AES256-SHA384 and RC4-MD5.
var suites = []struct {
	id uint16
	to string
}{
	{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, "TLSv1.2_2025"},
	{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256, "TLSv1.2_2019"},
	{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, "TLSv1.1_2016"},
	{tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, "TLSv1.2_2025"},
	{tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, "TLSv1.2_2021"},
	{tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA, "TLSv1.1_2016"},
	{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, "TLSv1.2_2025"},
	{tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256, "TLSv1.2_2019"},
	{tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA, "TLSv1.1_2016"},
	{tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, "TLSv1.2_2025"},
	{tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, "TLSv1.2_2021"},
	{tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA, "TLSv1.1_2016"},
	{tls.TLS_RSA_WITH_AES_128_GCM_SHA256, "TLSv1.2_2018"},
	{tls.TLS_RSA_WITH_AES_256_GCM_SHA384, "TLSv1.2_2018"},
	{tls.TLS_RSA_WITH_AES_128_CBC_SHA256, "TLSv1.2_2018"},
	{tls.TLS_RSA_WITH_AES_256_CBC_SHA, "TLSv1.1_2016"},
	{tls.TLS_RSA_WITH_AES_128_CBC_SHA, "TLSv1.1_2016"},
	{tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA, "TLSv1"},
}

// policies are the names, the weakest first, and the oldest version of each. SSLv3 is not among them: nobody should speak
// it (RFC 7568), and crypto/tls does not.
var policies = []struct {
	name string
	min  uint16
}{
	{"TLSv1", tls.VersionTLS10},
	{"TLSv1_2016", tls.VersionTLS10},
	{"TLSv1.1_2016", tls.VersionTLS11},
	{"TLSv1.2_2018", tls.VersionTLS12},
	{"TLSv1.2_2019", tls.VersionTLS12},
	{"TLSv1.2_2021", tls.VersionTLS12},
	{"TLSv1.2_2025", tls.VersionTLS12},
	{"TLSv1.3_2025", tls.VersionTLS13},
}

// PolicyOf is the security policy of a name; false: there is none such.
func PolicyOf(name string) (Policy, bool) {
	rank := map[string]int{}
	for i, p := range policies {
		rank[p.name] = i
	}
	at, known := rank[name]
	if !known {
		return Policy{}, false
	}
	p := Policy{MinVersion: policies[at].min}
	for _, s := range suites {
		if at <= rank[s.to] {
			p.CipherSuites = append(p.CipherSuites, s.id)
		}
	}
	return p, true
}
