package spec

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// pair is a new certificate of those names, with its key.
func pair(t testing.TB, names ...string) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, DNSNames: names,
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)} // one that has expired is taken
	if slices.Contains(names, "192.0.2.1") {
		template.DNSNames, template.IPAddresses = names[1:], []net.IP{net.ParseIP(names[0])}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
}

func indented(text string) string {
	return "  " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n  ") + "\n"
}

func certificateDocument(name, certificate, key string) string {
	return "kind: Certificate\nname: " + name + "\ncertificate: |\n" + indented(certificate) + "privateKey: |\n" + indented(key)
}

// rot is a seal of tests: it can be opened, and does not show what is sealed.
func rot(_ Ref, _ string, plain []byte) string {
	turned := bytes.Clone(plain)
	for i := range turned {
		turned[i] ^= 0x55
	}
	return SealedPrefix + base64.StdEncoding.EncodeToString(turned)
}

func unrot(_ Ref, _, sealed string) ([]byte, error) {
	turned, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(sealed, SealedPrefix))
	if err != nil {
		return nil, errors.New("it is damaged")
	}
	for i := range turned {
		turned[i] ^= 0x55
	}
	return turned, nil
}

func TestACertificateIsReadWithItsNames(t *testing.T) {
	certificate, key := pair(t, "192.0.2.1", "www.example.com", "*.example.com")
	s := mustBuild(t, certificateDocument("www", certificate, key))
	c := s.Certificates["www"]
	if got := c.Names(); !slices.Equal(got, []string{"www.example.com", "*.example.com", "192.0.2.1"}) {
		t.Errorf("names %q", got)
	}
	both, err := c.TLS()
	if err != nil || len(both.Certificate) != 1 {
		t.Errorf("%v, %v", both, err)
	}
	if string(c.PrivateKey.Reveal()) != key {
		t.Error("the key is not what was written")
	}
}

func TestACertificateThatCannotBeServedIsAFault(t *testing.T) {
	certificate, key := pair(t, "a.example.com")
	other, otherKey := pair(t, "b.example.com")
	nameless, namelessKey := pair(t)
	encrypted := string(pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")}))
	for _, c := range []struct{ name, certificate, key, want string }{
		{"another's key", certificate, otherKey, "privateKey: is not the key of the certificate, or of no kind that is known (RSA, ECDSA, Ed25519 in PKCS 8, PKCS 1 or SEC 1)"},
		{"the leaf is not first", other + certificate, key, "certificate: begins with another certificate: the key's, number 2, must be the first"},
		{"the key in the chain", certificate + key, key, "certificate: has a PRIVATE KEY in it: only certificates belong here"},
		{"no PEM", "hello", key, `certificate: must be PEM: "-----BEGIN CERTIFICATE-----" and so on`},
		{"a key that is none", certificate, "hunter2", `privateKey: must be PEM: "-----BEGIN PRIVATE KEY-----" and so on`},
		{"a key with a passphrase", certificate, encrypted, "privateKey: is encrypted with a passphrase: it must be given without, and is sealed with the cluster's key"},
		{"no names", nameless, namelessKey, "certificate: has no DNS name and no IP address (subjectAltName) that it could be served for"},
		{"a long chain", strings.Repeat(certificate, 11), key, "certificate: has more than 10 certificates"},
		{"a sealed key without the means", certificate, SealedPrefix + "abc", "privateKey: is sealed, and cannot be opened: there is no key for it here"},
	} {
		_, err := build("test.yaml", certificateDocument("www", c.certificate, c.key))
		if err == nil || !strings.HasSuffix(err.Error(), "Certificate www: "+c.want) {
			t.Errorf("%s: got %v, want %s", c.name, err, c.want)
		}
	}
}

func TestSealedSecretsAreOpened(t *testing.T) {
	certificate, key := pair(t, "a.example.com")
	docs, err := Seal(mustSplit(t, certificateDocument("www", certificate, key)), rot)
	if err != nil {
		t.Fatal(err)
	}
	var asked string
	s, err := Build(1, docs, Options{Open: func(ref Ref, field, sealed string) ([]byte, error) {
		asked = ref.String() + " " + field
		return unrot(ref, field, sealed)
	}})
	if err != nil {
		t.Fatal(err)
	}
	if asked != "Certificate/www privateKey" || string(s.Certificates["www"].PrivateKey.Reveal()) != key {
		t.Errorf("%s: %q", asked, s.Certificates["www"].PrivateKey.Reveal())
	}
	_, err = Build(1, docs, Options{Open: func(Ref, string, string) ([]byte, error) { return nil, errors.New("wrong key") }})
	if want := "privateKey: is sealed, and cannot be opened: wrong key"; err == nil || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestSealReplacesTheSecretAndNothingElse(t *testing.T) {
	for _, c := range []struct{ name, before, after, secret string }{
		{"a block", "kind: Certificate\nname: a\nprivateKey: | # mine\n  one\n  two\n\n# the end\ncertificate: b\n",
			"kind: Certificate\nname: a\nprivateKey: \"SEALED\" # mine\n\n# the end\ncertificate: b\n", "one\ntwo\n"},
		{"a block at the end", "kind: Certificate # c\nname: a\nprivateKey: |-\n    one\n\n    two\n   \n", "kind: Certificate # c\nname: a\nprivateKey: \"SEALED\"\n   \n", "one\n\ntwo"},
		{"a folded block", "name: a\nprivateKey: >+\n  one\n  two\nkind: Certificate", "name: a\nprivateKey: \"SEALED\"\nkind: Certificate", "one two\n"},
		{"carriage returns", "kind: Certificate\r\nname: a\r\nprivateKey: |\r\n  one\r\n  two\r\ncertificate: b\r\n", "kind: Certificate\r\nname: a\r\nprivateKey: \"SEALED\"\r\ncertificate: b\r\n", "one\ntwo\n"},
		{"JSON", `{"kind": "Certificate", "privateKey": "a\"b\nc", "name": "privateKey"}`, `{"kind": "Certificate", "privateKey": "SEALED", "name": "privateKey"}`, "a\"b\nc"},
		{"single quotes", "kind: Certificate\nname: a\nprivateKey: 'it''s' # c\n", "kind: Certificate\nname: a\nprivateKey: \"SEALED\" # c\n", "it's"},
		{"plain", "kind: Certificate\nname: a\nprivateKey: hunter2   # c\n", "kind: Certificate\nname: a\nprivateKey: \"SEALED\"   # c\n", "hunter2"},
		{"on the next line", "kind: Certificate\nname: a\nprivateKey: # c\n\n  \"x\n  y\"\ncertificate: b\n", "kind: Certificate\nname: a\nprivateKey: # c\n\n  \"SEALED\"\ncertificate: b\n", "x y"},
		{"in brackets, where the name stands elsewhere too", "{kind: Certificate, labels: {privateKey: privateKey}, name: a, privateKey: x}",
			"{kind: Certificate, labels: {privateKey: privateKey}, name: a, privateKey: \"SEALED\"}", "x"},
		{"behind a letter of several bytes", "{kind: Certificate, name: é, 'privateKey' : x}", "{kind: Certificate, name: é, 'privateKey' : \"SEALED\"}", "x"},
		{"sealed already", "kind: Certificate\nname: a\nprivateKey: sealed:v1:abc\n", "kind: Certificate\nname: a\nprivateKey: sealed:v1:abc\n", ""},
		{"no secret", "kind: Certificate\nname: a\nprivateKey:\n", "kind: Certificate\nname: a\nprivateKey:\n", ""},
		{"another kind", "kind: Region\nname: a\nprivateKey: x\n", "kind: Region\nname: a\nprivateKey: x\n", ""},
	} {
		docs := mustSplit(t, "# before\n---\n"+c.before)
		var plain string
		sealed, err := Seal(docs, func(_ Ref, _ string, text []byte) string {
			plain = string(text)
			return SealedPrefix + "SEALED"
		})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got, want := string(sealed[0].Bytes), strings.ReplaceAll(c.after, `"SEALED"`, `"`+SealedPrefix+`SEALED"`); got != want {
			t.Errorf("%s: got\n%s\nwant\n%s", c.name, got, want)
		}
		if plain != c.secret {
			t.Errorf("%s: sealed %q, want %q", c.name, plain, c.secret)
		}
		if string(docs[0].Bytes) != c.before {
			t.Errorf("%s: the document given was changed", c.name)
		}
	}
}

// Whatever can be read is sealed with its secret gone, or refused; the rest says what it said.
func FuzzSeal(f *testing.F) {
	for _, text := range []string{"privateKey: |\n  one\n  two\n", "privateKey: 'a' # b\n", "privateKey: \"a\\\"b\"\n", "labels: {privateKey: a}\nprivateKey: a\n", "privateKey: >2-\n    a\n"} {
		f.Add([]byte("kind: Certificate\nname: a\n" + text))
	}
	f.Add([]byte(`{"kind": "Certificate", "name": "a", "privateKey": "a\nb"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		docs, err := Split("a.yaml", data)
		if err != nil {
			return
		}
		sealed, err := Seal(docs, rot)
		if err != nil {
			return
		}
		kind, _ := exactKind("Certificate")
		for i, d := range sealed {
			if d.Kind != "Certificate" {
				continue
			}
			before, _ := read(docs[i].Bytes, 1)
			after, u := read(d.Bytes, 1)
			if u != nil {
				t.Fatalf("cannot be read any more: %v\n%s", u, d.Bytes)
			}
			if firstSecret(&after, kind.shape, &path{}) != nil {
				t.Fatalf("has a secret still:\n%s", d.Bytes)
			}
			if s := firstSecret(&before, kind.shape, &path{}); s != nil {
				s.value.text, s.value.form = rot(d.Ref(), "", []byte(s.value.text)), quoted
			}
			if !sameTree(&before, &after) {
				t.Fatalf("says something else:\n%s\nwas\n%s", d.Bytes, docs[i].Bytes)
			}
		}
	})
}

func TestASecretIsNeverShown(t *testing.T) {
	certificate, key := pair(t, "a.example.com")
	s := mustBuild(t, certificateDocument("www", certificate, key))
	c := s.Certificates["www"]
	r, _ := s.Resource("Certificate", "www")
	asJSON, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "secret", c.PrivateKey, "all", *c)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "secret", c.PrivateKey, "all", c)
	shown := []string{
		fmt.Sprint(c.PrivateKey), fmt.Sprintf("%s %q %x %d %#v", c.PrivateKey, c.PrivateKey, c.PrivateKey, c.PrivateKey, c.PrivateKey),
		fmt.Sprintf("%v %+v %#v", *c, *c, c), string(asJSON), log.String(),
	}
	middle := strings.Split(key, "\n")[1]
	for _, text := range shown {
		if strings.Contains(text, middle) || strings.Contains(text, fmt.Sprintf("%x", middle[:8])) || !strings.Contains(text, "(secret)") {
			t.Errorf("shown:\n%s", text)
		}
	}
}

func TestADiffTellsOnlyThatASecretIsAnother(t *testing.T) {
	certificate, key := pair(t, "a.example.com")
	old := mustSplit(t, certificateDocument("www", certificate, key))
	new := mustSplit(t, certificateDocument("www", certificate, "hunter2"))
	want := []string{"privateKey: (secret), another than before"}
	if changes := Diff(old, new); len(changes) != 1 || !slices.Equal(changes[0].Fields, want) {
		t.Errorf("got %v", changes)
	}
	sealed, err := Seal(old, rot)
	if err != nil {
		t.Fatal(err)
	}
	if changes := Diff(sealed, sealed); len(changes) != 0 {
		t.Errorf("sealed against itself: %v", changes)
	}
}

func TestNoFaultQuotesASecret(t *testing.T) {
	const secret = "MIGHAgEAMBMGByqGSM49hunter2"
	head := "kind: Certificate\nname: a\ncertificate: x\n"
	texts := []string{
		head + "privateKey: [" + secret + "]\n",
		head + "privateKey: {" + secret + ": " + secret + "}\n",
		head + "privateKey: {a: " + secret + "}\n",
		head + "privateKey:\n" + secret + "\n",
		head + "privateKey: |\n" + secret + "\n" + secret + "\n",
		head + "privateKey: a\n " + secret + "\n",
		head + "privateKey: " + secret + "\n  " + secret + "\n",
		head + "privateKey: \"" + secret + "\n",
		head + "privateKey: \"a\" " + secret + "\n",
		head + "privateKey: [a " + secret + " \"b\" c]\n",
		head + "privateKy: " + secret + "\n",
		head + "privateKey: " + secret + "\nprivateKey: " + secret + "\n",
		head + "privateKey: " + secret + "\n",
		head + "privateKey: " + SealedPrefix + secret + "\n",
		head + "privateKey: !x " + secret + "\n",
		head + "privateKey: @" + secret + "\n",
	}
	key := "kind: TsigKey\nname: k\n" // of the other kind that has one, the same
	for _, text := range texts {
		text = strings.Replace(text, head, key, 1)
		texts = append(texts, strings.ReplaceAll(strings.ReplaceAll(text, "privateKey", "secret"), "privateKy", "secrt"))
	}
	for _, text := range append(texts, `{"kind": "TsigKey", "name": "k", "secret": "`+secret+`" "`+secret+`"}`) {
		_, err := build("a.yaml", text)
		if err == nil || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), secret[:10]) {
			t.Errorf("%s: got %v", text, err)
		}
	}
}
