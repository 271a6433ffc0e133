package identity

import (
	"encoding/base64"
	"strings"
	"testing"
)

func TestATokenSurvivesBeingPrinted(t *testing.T) {
	a := newCluster(t)
	got, err := ParseToken("  " + a.Token() + "\n")
	if err != nil {
		t.Fatal(err)
	}
	if got.Authority != fingerprint(a.cert) || string(got.Secret[:]) != string(a.secret) {
		t.Fatal("the token carries something else than the authority's hash and the secret")
	}
	if strings.ContainsAny(a.Token(), " +/=\n") {
		t.Fatalf("%q is not one plain word", a.Token())
	}
}

func TestAMistypedTokenIsRefused(t *testing.T) {
	token := newCluster(t).Token()
	for name, s := range map[string]string{
		"empty": "", "prefix alone": tokenPrefix, "without prefix": token[len(tokenPrefix):],
		"another version": "pgt2." + token[len(tokenPrefix):], "cut off": token[:len(token)-1],
		"longer": token + "A", "broken line": token[:40] + "\n" + token[40:], "not base64": token[:40] + "!" + token[41:],
		"stray bits": tokenPrefix + base64.RawURLEncoding.EncodeToString(make([]byte, 64))[:85] + "B",
	} {
		if _, err := ParseToken(s); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(Token{}.String())
	f.Add("pgt1.")
	f.Add("pgt1." + strings.Repeat("_-", 43))
	f.Fuzz(func(t *testing.T, s string) {
		token, err := ParseToken(s)
		if err == nil && token.String() != strings.TrimSpace(s) {
			t.Fatalf("%q reads as %q", s, token)
		}
	})
}
