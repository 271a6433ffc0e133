// Package identity says who is a node of this cluster and who is not: certificate authorities, the certificates of nodes, the
// keys that seal what must not be read, tokens, the wire form of joining, and the TLS configurations made of all that.
//
// It decides nothing about who may join, renew or stay: it is told (Trust, the judge of a Gate). It opens no port and dials only
// when told to (Join). A node's certificate names it by the URI spiffe://<cluster>/node/<name>; whoever holds one signed
// by an authority that is trusted now, and not revoked, is a node; whoever does not is a stranger. What it keeps on disk is
// written whole or not at all; a file that is damaged is refused by name, never guessed at. A clock that is behind
// shuts nobody out; one that is ahead takes certificates for ended that are not.
package identity

import (
	"fmt"
	"net/netip"
	"slices"
)

// Claim is what a machine says of itself when it asks for a certificate.
type Claim struct {
	Name   string   `json:"name"`
	Region string   `json:"region"`
	POP    string   `json:"pop"`
	Roles  []string `json:"roles"`
	// Addresses are those at which its API is reached; its certificate is good for them beside the loopback ones.
	Addresses []netip.Addr `json:"addresses,omitempty"`
}

// Voter is the role of nodes that may hold the authority key: they can issue certificates.
const Voter = "voter"

const (
	// maxRoles and maxAddresses bound a claim; one with more is refused.
	maxRoles     = 8
	maxAddresses = 8
)

// Validate says what is wrong with a claim. Name, region, POP and roles are labels: 1–63 of a–z, 0–9 and
// inner hyphens (RFC 1123 section 2.1), so that each can stand in a certificate and a DNS name.
func (c Claim) Validate() error {
	for _, field := range []struct{ name, value string }{{"name", c.Name}, {"region", c.Region}, {"pop", c.POP}} {
		if !isLabel(field.value) {
			return fmt.Errorf("%s %q: want 1–63 of a–z, 0–9 and inner hyphens", field.name, field.value)
		}
	}
	if len(c.Roles) > maxRoles {
		return fmt.Errorf("%d roles: at most %d", len(c.Roles), maxRoles)
	}
	for _, role := range c.Roles {
		if !isLabel(role) {
			return fmt.Errorf("role %q: want 1–63 of a–z, 0–9 and inner hyphens", role)
		}
	}
	if len(c.Addresses) > maxAddresses {
		return fmt.Errorf("%d addresses: at most %d", len(c.Addresses), maxAddresses)
	}
	for _, a := range c.Addresses {
		if !a.IsValid() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
			return fmt.Errorf("address %q: want one that others can reach", a)
		}
	}
	return nil
}

// Votes says whether the claim has the role Voter.
func (c Claim) Votes() bool { return slices.Contains(c.Roles, Voter) }

func isLabel(s string) bool {
	if len(s) < 1 || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}
