//go:build linux

package bed

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/perigee-net/perigee/testbed/wan"
)

func record(name string, t dnsmessage.Type, body dnsmessage.ResourceBody) dnsmessage.Resource {
	return dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name), Type: t, Class: dnsmessage.ClassINET, TTL: 30}, Body: body}
}

func TestAnAnswerIsToldInOneLine(t *testing.T) {
	a := record("www.test.", dnsmessage.TypeA, &dnsmessage.AResource{A: [4]byte{10, 1, 0, 2}})
	b := record("www.test.", dnsmessage.TypeA, &dnsmessage.AResource{A: [4]byte{10, 1, 0, 1}})
	ns := record("test.", dnsmessage.TypeNS, &dnsmessage.NSResource{NS: dnsmessage.MustNewName("a.nic.test.")})
	soa := record("test.", dnsmessage.TypeSOA, &dnsmessage.SOAResource{NS: dnsmessage.MustNewName("a."), MBox: dnsmessage.MustNewName("b."), Serial: 7})
	txt := record("x.test.", dnsmessage.TypeTXT, &dnsmessage.TXTResource{TXT: []string{"one\ntwo", "three"}})
	for _, c := range []struct {
		m    *dnsmessage.Message
		want string
	}{
		{nil, ""},
		{&dnsmessage.Message{Header: dnsmessage.Header{Authoritative: true}, Answers: []dnsmessage.Resource{a, b}}, "NOERROR aa www.test. 30 A 10.1.0.1, www.test. 30 A 10.1.0.2"},
		{&dnsmessage.Message{Authorities: []dnsmessage.Resource{ns}}, "NOERROR refers to test. 30 NS a.nic.test."},
		{&dnsmessage.Message{Header: dnsmessage.Header{Authoritative: true, RCode: dnsmessage.RCodeNameError}, Authorities: []dnsmessage.Resource{soa}}, "NXDOMAIN aa authority: test. 30 SOA a. b. 7"},
		{&dnsmessage.Message{Header: dnsmessage.Header{RCode: dnsmessage.RCodeServerFailure}}, "SERVFAIL"},
		{&dnsmessage.Message{Header: dnsmessage.Header{RCode: dnsmessage.RCodeRefused}}, "REFUSED"},
		{&dnsmessage.Message{Answers: []dnsmessage.Resource{txt}}, `NOERROR x.test. 30 TXT "one\ntwo" "three"`},
	} {
		if got := tellAnswer(c.m); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

func TestAReferralLeadsToTheNearestServerFirst(t *testing.T) {
	w := small(t)
	m := &dnsmessage.Message{}
	for _, name := range []string{"icn1", "lab1"} {
		h, _ := w.Host(name)
		server := "ns-" + name + "." + zone
		m.Authorities = append(m.Authorities, record(zone, dnsmessage.TypeNS, &dnsmessage.NSResource{NS: dnsmessage.MustNewName(server)}))
		m.Additionals = append(m.Additionals, record(strings.ToUpper(server), dnsmessage.TypeA, &dnsmessage.AResource{A: h.V4.As4()}))
	}
	for site, want := range map[string][]string{"icn": {"icn1", "lab1"}, "lab": {"lab1", "icn1"}} {
		var got []string
		for _, a := range referral(w, site, m) {
			got = append(got, hostAt(w, a))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", site, got, want)
		}
	}
	if got := referral(w, "icn", &dnsmessage.Message{}); len(got) != 0 {
		t.Errorf("%v", got)
	}
	roots := hostsOf(w, wan.Root)
	if role(w, roots[0].V4) != "root" || role(w, netip.MustParseAddr("192.0.2.1")) != "authority" {
		t.Error("roles")
	}
}

// TestAnAnswerThatDoesNotFitIsAskedForByTCP has an answer to another question come before it, too.
func TestAnAnswerThatDoesNotFitIsAskedForByTCP(t *testing.T) {
	question := dnsmessage.Question{Name: dnsmessage.MustNewName("www.test."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}
	var networks []string
	dial := func(_ context.Context, network, _ string) (net.Conn, error) {
		networks = append(networks, network)
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			data := make([]byte, 1000)
			n, err := theirs.Read(data)
			if err != nil {
				return
			}
			data = data[:n]
			if network == "tcp" {
				size := int(binary.BigEndian.Uint16(data))
				rest := make([]byte, size-(n-2))
				io.ReadFull(theirs, rest)
				data = append(data[2:], rest...)
			}
			var m dnsmessage.Message
			if m.Unpack(data) != nil || !m.RecursionDesired {
				return
			}
			m.Response, m.Additionals = true, nil
			if network == "udp" {
				other := m
				other.ID++
				packed, _ := other.Pack()
				theirs.Write(packed)
				m.Truncated = true
				packed, _ = m.Pack()
				theirs.Write(packed)
				return
			}
			m.Answers = []dnsmessage.Resource{record("www.test.", dnsmessage.TypeA, &dnsmessage.AResource{A: [4]byte{10, 1, 0, 2}})}
			packed, _ := m.Pack()
			theirs.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(packed))), packed...))
		}()
		return ours, nil
	}
	m, err := ask(t.Context(), dial, netip.MustParseAddrPort("192.0.2.1:53"), question, true)
	if err != nil || len(m.Answers) != 1 || !slices.Equal(networks, []string{"udp", "tcp"}) {
		t.Errorf("%v %v %v", m, err, networks)
	}
}
