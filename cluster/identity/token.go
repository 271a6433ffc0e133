package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
)

// The prefixes mark a token with what it is for and its version, so that one is known when it is found lying about.
const (
	joinPrefix   = "pgt2."
	accessPrefix = "pga1."
)

// Token lets machines join: who the cluster is, which token it is, and the secret. String gives it out whole.
type Token struct {
	Authority [sha256.Size]byte // Authority.Hash; by it the holder knows the cluster before it has any certificate
	ID        [8]byte           // not secret
	Secret    [32]byte          // the cluster keeps only its hash
}

// AccessToken lets people and programs use the API; otherwise as Token.
type AccessToken struct {
	Authority [sha256.Size]byte
	ID        [8]byte
	Secret    [32]byte
}

// NewToken makes a join token, by chance but for the authority (Authority.Hash).
func NewToken(authority [sha256.Size]byte) Token {
	t := Token{Authority: authority}
	rand.Read(t.ID[:])
	rand.Read(t.Secret[:])
	return t
}

// NewAccessToken makes an access token, by chance but for the authority (Authority.Hash).
func NewAccessToken(authority [sha256.Size]byte) AccessToken { return AccessToken(NewToken(authority)) }

// String is the token as it is given to people.
func (t Token) String() string { return t.print(joinPrefix) }

// String is the token as it is given to people, and as the bearer token of requests (RFC 6750).
func (t AccessToken) String() string { return Token(t).print(accessPrefix) }

// Hash is the SHA-256 of the secret: what is kept to know it again. The secret is 256 bits of chance, so it
// cannot be guessed from its hash.
func (t Token) Hash() [sha256.Size]byte { return sha256.Sum256(t.Secret[:]) }

// Hash is as Token.Hash.
func (t AccessToken) Hash() [sha256.Size]byte { return sha256.Sum256(t.Secret[:]) }

// ParseToken reads a token as Token.String writes it; blanks around it are forgiven.
func ParseToken(s string) (Token, error) { return parseToken("join token", joinPrefix, s) }

// ParseAccessToken reads a token as AccessToken.String writes it; blanks around it are forgiven.
func ParseAccessToken(s string) (AccessToken, error) {
	t, err := parseToken("access token", accessPrefix, s)
	return AccessToken(t), err
}

func (t Token) print(prefix string) string {
	raw := append(append(t.Authority[:], t.ID[:]...), t.Secret[:]...)
	return prefix + base64.RawURLEncoding.EncodeToString(raw)
}

// parseToken never quotes what it was given: a mistyped secret is a secret.
func parseToken(what, prefix, s string) (Token, error) {
	s = strings.TrimSpace(s)
	body, ok := strings.CutPrefix(s, prefix)
	if !ok {
		for other, is := range map[string]string{
			joinPrefix: "a join token", accessPrefix: "an access token", "pgt1.": "a join token of an older release",
		} {
			if strings.HasPrefix(s, other) {
				return Token{}, fmt.Errorf("parse %s: it is %s", what, is)
			}
		}
		return Token{}, fmt.Errorf("parse %s: it does not begin with %q", what, prefix)
	}
	// Strict, and without line breaks, which the decoder would skip: one token has one spelling.
	raw, err := base64.RawURLEncoding.Strict().DecodeString(body)
	var t Token
	if err != nil || strings.ContainsAny(body, "\r\n") || len(raw) != len(t.Authority)+len(t.ID)+len(t.Secret) {
		return Token{}, fmt.Errorf("parse %s: it is cut off or mistyped", what)
	}
	raw = raw[copy(t.Authority[:], raw):]
	raw = raw[copy(t.ID[:], raw):]
	copy(t.Secret[:], raw)
	return t, nil
}
