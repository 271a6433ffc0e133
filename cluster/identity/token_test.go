package identity

import (
	"crypto/sha256"
	"encoding/base64"
	"strings"
	"testing"
)

func TestATokenSurvivesBeingPrinted(t *testing.T) {
	c := newCluster(t)
	token, access := NewToken(c.Hash()), NewAccessToken(c.Hash())
	got, err := ParseToken("  " + token.String() + "\n")
	if err != nil || got != token {
		t.Fatalf("got %v, %v", got, err)
	}
	gotAccess, err := ParseAccessToken("  " + access.String() + "\n")
	if err != nil || gotAccess != access {
		t.Fatalf("got %v, %v", gotAccess, err)
	}
	if token.Authority != c.Hash() || access.Authority != c.Hash() {
		t.Error("the token is of another authority")
	}
	if token.Hash() != sha256.Sum256(token.Secret[:]) || access.Hash() != sha256.Sum256(access.Secret[:]) {
		t.Error("the hash is not of the secret")
	}
	if other := NewToken(c.Hash()); other.ID == token.ID || other.Secret == token.Secret {
		t.Error("two tokens are one")
	}
	for _, s := range []string{token.String(), access.String()} {
		if strings.ContainsAny(s, " +/=\n") {
			t.Errorf("%q is not one plain word", s)
		}
	}
}

func TestAMistypedTokenIsRefused(t *testing.T) {
	token := NewToken(newCluster(t).Hash())
	join, access := token.String(), AccessToken(token).String()
	body := join[len(joinPrefix):]
	for name, test := range map[string]struct{ s, says string }{
		"empty":               {"", "begin with"},
		"without prefix":      {body, "begin with"},
		"another version":     {"pgt3." + body, "begin with"},
		"an older version":    {"pgt1." + body, "older release"},
		"the other kind":      {access, "it is an access token"},
		"prefix alone":        {joinPrefix, "cut off"},
		"cut off":             {join[:len(join)-1], "cut off"},
		"longer":              {join + "A", "cut off"},
		"broken line":         {join[:40] + "\n" + join[40:], "mistyped"},
		"not base64":          {join[:40] + "!" + join[41:], "mistyped"},
		"not url-safe base64": {join[:40] + "+" + join[41:], "mistyped"},
		"padded":              {join + "==", "mistyped"},
	} {
		_, err := ParseToken(test.s)
		if err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: got %v", name, err)
			continue
		}
		if strings.Contains(err.Error(), body[:20]) {
			t.Errorf("%s: the error gives the token away: %v", name, err)
		}
	}
	if _, err := ParseAccessToken(join); err == nil || !strings.Contains(err.Error(), "it is a join token") {
		t.Errorf("a join token as access token: %v", err)
	}
	if _, err := ParseAccessToken(access[:len(access)-2]); err == nil {
		t.Error("an access token that is cut off is accepted")
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(Token{}.String())
	f.Add(AccessToken{}.String())
	f.Add("pgt2.")
	f.Add("pga1." + strings.Repeat("_-", 48))
	f.Add("pgt2." + base64.RawURLEncoding.EncodeToString(make([]byte, 72)))
	f.Fuzz(func(t *testing.T, s string) {
		if token, err := ParseToken(s); err == nil && token.String() != strings.TrimSpace(s) {
			t.Fatalf("%q reads as %q", s, token)
		}
		if token, err := ParseAccessToken(s); err == nil && token.String() != strings.TrimSpace(s) {
			t.Fatalf("%q reads as %q", s, token)
		}
	})
}
