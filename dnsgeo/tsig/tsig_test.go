package tsig

import (
	"bytes"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

var (
	secret = []byte("sixteen bytes or more of it")
	now    = time.Unix(1_700_000_000, 0)
)

func key(t testing.TB, algorithm string) *Key {
	t.Helper()
	k := NewKey("k.example", wire(t, "k.example."), algorithm, secret)
	if k == nil {
		t.Fatal("there is no key")
	}
	return k
}

func wire(t testing.TB, name string) []byte {
	t.Helper()
	var b [255]byte
	n, err := dns.PackDomainName(name, b[:], 0, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

// theirs is a query that miekg/dns has signed, and its MAC.
func theirs(t testing.TB, algorithm string, at time.Time, fudge uint16) (m []byte, mac string) {
	t.Helper()
	q := new(dns.Msg).SetQuestion("Example.com.", dns.TypeAXFR)
	q.SetEdns0(1232, false)
	q.SetTsig("K.example.", algorithm+".", fudge, at.Unix())
	m, mac, err := dns.TsigGenerate(q, base64.StdEncoding.EncodeToString(secret), "", false)
	if err != nil {
		t.Fatal(err)
	}
	return m, mac
}

func find(t testing.TB, m []byte) *Signature {
	t.Helper()
	s := Find(m)
	if s == nil {
		t.Fatalf("%x: no signature", m)
	}
	return s
}

func TestWhatAnotherHasSignedIsVerifiedAndOursByIt(t *testing.T) {
	for _, algorithm := range []string{"hmac-sha256", "hmac-sha384", "hmac-sha512"} {
		k := key(t, algorithm)
		q, requestMAC := theirs(t, algorithm, now, 300)
		mac, wrong := k.Verify(q, find(t, q), MAC{}, now)
		if wrong != 0 {
			t.Fatalf("%s: %d", algorithm, wrong)
		}
		// Three messages of a response: the first is signed with the query's MAC, the others with the time alone.
		at := time.Now() // miekg/dns looks at the clock
		timers := false
		for range 3 {
			m, err := new(dns.Msg).SetQuestion("example.com.", dns.TypeAXFR).Pack()
			if err != nil {
				t.Fatal(err)
			}
			m, mac = k.Sign(m, mac, at)
			if err := dns.TsigVerify(bytes.Clone(m), base64.StdEncoding.EncodeToString(secret), requestMAC, timers); err != nil {
				t.Fatalf("%s, timers %v: %v", algorithm, timers, err)
			}
			back := new(dns.Msg)
			if err := back.Unpack(m); err != nil {
				t.Fatal(err)
			}
			requestMAC, timers = back.IsTsig().MAC, true
		}
	}
}

// A server may sign each hundredth message only (RFC 8945 §5.3.1).
func TestASignatureIsOfTheMessagesBeforeItThatHaveNone(t *testing.T) {
	k := key(t, "hmac-sha256")
	message := func() []byte { m, _ := new(dns.Msg).SetQuestion("a.", dns.TypeA).Pack(); return m }
	q, sent := k.Sign(message(), MAC{}, now)
	got, wrong := k.Verify(q, find(t, q), MAC{}, now)
	first, sent := k.Sign(message(), sent, now)
	got, wrong2 := k.Verify(first, find(t, first), got, now)
	middle := message()
	last, _ := k.Sign(message(), sent.With(middle), now)
	if _, wrong := k.Verify(last, find(t, last), got, now); wrong != BadSig {
		t.Errorf("what came between is not missed: %d", wrong)
	}
	if _, wrong3 := k.Verify(last, find(t, last), got.With(middle), now); wrong+wrong2+wrong3 != 0 {
		t.Errorf("%d %d %d", wrong, wrong2, wrong3)
	}
}

func TestEachRefusalHasItsReason(t *testing.T) {
	k := key(t, "hmac-sha256")
	cut := func(n int) []byte {
		q, _ := theirs(t, "hmac-sha256", now, 300)
		m := new(dns.Msg)
		if err := m.Unpack(q); err != nil {
			t.Fatal(err)
		}
		s := m.IsTsig()
		s.MAC, s.MACSize = s.MAC[:2*n], uint16(n)
		q, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return q
	}
	at := func(d time.Duration, fudge uint16) []byte {
		q, _ := theirs(t, "hmac-sha256", now.Add(d), fudge)
		return q
	}
	other := at(0, 300)
	other[len(other)-20] ^= 1 // of the MAC
	sha1, _ := theirs(t, "hmac-sha1", now, 300)
	for _, test := range []struct {
		name string
		key  *Key
		m    []byte
		want Error
	}{
		{"an unknown key", nil, at(0, 300), BadKey},
		{"another algorithm", k, sha1, BadKey},
		{"another key's name", NewKey("j", wire(t, "j."), "hmac-sha256", secret), at(0, 300), BadKey},
		{"another secret", NewKey("k.example", wire(t, "k.example."), "hmac-sha256", []byte("another")), at(0, 300), BadSig},
		{"a bit of the MAC", k, other, BadSig},
		{"300 s early", k, at(-300*time.Second, 300), 0},
		{"301 s early", k, at(-301*time.Second, 300), BadTime},
		{"301 s late, whatever it says", k, at(301*time.Second, 3600), BadTime},
		{"11 s late, and it says 10", k, at(11*time.Second, 10), BadTime},
		{"a MAC that is cut", k, cut(16), BadTrunc},
		{"a MAC that is cut too short", k, cut(15), Malformed},
	} {
		if _, got := test.key.Verify(test.m, find(t, test.m), MAC{}, now); got != test.want {
			t.Errorf("%s: got %d, want %d", test.name, got, test.want)
		}
	}
}

func TestWhatIsRefusedIsToldAndSignedWhereItCanBe(t *testing.T) {
	k := key(t, "hmac-sha256")
	q, requestMAC := theirs(t, "hmac-sha256", now.Add(-time.Hour), 300)
	s := find(t, q)
	mac, wrong := k.Verify(q, s, MAC{}, now)
	response, _ := new(dns.Msg).SetQuestion("example.com.", dns.TypeAXFR).Pack()
	told := k.Refuse(response, s, mac, wrong, now)
	err := dns.TsigVerify(bytes.Clone(told), base64.StdEncoding.EncodeToString(secret), requestMAC, false)
	if !errors.Is(err, dns.ErrTime) { // miekg/dns looks at the time of the signature, which is the query's, and last
		t.Error(err)
	}
	m := new(dns.Msg)
	if err := m.Unpack(told); err != nil || m.IsTsig().Error != dns.RcodeBadTime || m.IsTsig().OtherData != "00006553f100" {
		t.Errorf("%v\n%v", err, m)
	}
	told = (*Key)(nil).Refuse(response, s, MAC{}, BadKey, now)
	if err := m.Unpack(told); err != nil || m.IsTsig().Error != dns.RcodeBadKey || m.IsTsig().MAC != "" || !strings.EqualFold(m.IsTsig().Hdr.Name, "k.example.") {
		t.Errorf("%v\n%v", err, m)
	}
}

func TestThereAreNoKeysOfOldAlgorithms(t *testing.T) {
	for _, algorithm := range []string{"hmac-md5.sig-alg.reg.int", "hmac-sha1", "hmac-sha224", ""} {
		if NewKey("k", wire(t, "k."), algorithm, secret) != nil {
			t.Errorf("%s is one", algorithm)
		}
	}
}

// What is found is where miekg/dns finds it, in whatever it can read.
func FuzzFind(f *testing.F) {
	q, _ := theirs(f, "hmac-sha256", now, 300)
	f.Add(q)
	f.Add(q[:len(q)-1])
	plain, _ := new(dns.Msg).SetQuestion("a.", dns.TypeA).Pack()
	f.Add(plain)
	k := key(f, "hmac-sha256")
	f.Fuzz(func(t *testing.T, m []byte) {
		s := Find(m)
		if s == nil {
			return
		}
		k.Verify(m, s, MAC{}, now)
		if plain := Strip(m, s); len(plain) >= len(m) {
			t.Fatal("nothing is stripped")
		}
		theirs := new(dns.Msg)
		if theirs.Unpack(m) == nil {
			if last := theirs.IsTsig(); last != nil && last.TimeSigned != s.time {
				t.Fatalf("%d, not %d", s.time, last.TimeSigned)
			}
		}
	})
}
