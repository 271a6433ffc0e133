package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// tokenPrefix marks a join token and its version, so that one can be told from other secrets when it is found lying about.
const tokenPrefix = "pgt1."

// Token is a join token read: who the cluster is, and the secret that opens it.
type Token struct {
	// Authority is the SHA-256 of the authority's public key (SubjectPublicKeyInfo, RFC 7469 section 2.4). By it the
	// joiner knows the cluster before it has any certificate.
	Authority [sha256.Size]byte
	Secret    [keySize]byte
}

// String is the token as it is given to people.
func (t Token) String() string {
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(append(t.Authority[:], t.Secret[:]...))
}

// ParseToken reads a token as Token.String writes it; blanks around it are forgiven.
func ParseToken(s string) (Token, error) {
	body, ok := strings.CutPrefix(strings.TrimSpace(s), tokenPrefix)
	if !ok {
		return Token{}, fmt.Errorf("parse join token: it does not begin with %q", tokenPrefix)
	}
	// Strict, and without line breaks, which the decoder would skip: one token has one spelling.
	raw, err := base64.RawURLEncoding.Strict().DecodeString(body)
	var t Token
	if err != nil || strings.ContainsAny(body, "\r\n") || len(raw) != len(t.Authority)+len(t.Secret) {
		return Token{}, errors.New("parse join token: it is cut off or mistyped")
	}
	copy(t.Authority[:], raw)
	copy(t.Secret[:], raw[len(t.Authority):])
	return t, nil
}

func fingerprint(cert *x509.Certificate) [sha256.Size]byte {
	return sha256.Sum256(cert.RawSubjectPublicKeyInfo)
}
