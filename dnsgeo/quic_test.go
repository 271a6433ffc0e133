package dnsgeo

import (
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
	"github.com/quic-go/quic-go"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/dnsgeo/doq"
	"github.com/perigee-net/perigee/testbed/memnet"
)

func TestQueriesAreAnsweredByQUIC(t *testing.T) {
	certificate := certified(t)
	synctest.Test(t, func(t *testing.T) {
		in := memnet.New(1)
		defer in.Close()
		server := in.Host("server", spec.Location{}, netip.MustParseAddr("203.0.113.1"))
		person := in.Host("client", spec.Location{}, netip.MustParseAddr("10.1.0.53"))
		in.Link("server", "client", memnet.Path{Delay: 10 * time.Millisecond})
		packets, err := server.ListenPacket("udp", ":853")
		if err != nil {
			t.Fatal(err)
		}
		s := serverOf(t, "www A 192.0.2.1")
		served := make(chan error, 1)
		go func() {
			served <- s.ServeQUIC(packets, &tls.Config{Certificates: []tls.Certificate{certificate}, NextProtos: []string{doq.ALPN}}, [32]byte{1}, [32]byte{2})
		}()
		own, err := person.ListenPacket("udp", ":0")
		if err != nil {
			t.Fatal(err)
		}
		client := &quic.Transport{Conn: own}
		conn, err := client.Dial(t.Context(), &net.UDPAddr{IP: net.IPv4(203, 0, 113, 1), Port: 853}, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{doq.ALPN}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		ask := func(m *dns.Msg) (response *dns.Msg, size int) {
			m.Id = 0 // RFC 9250 §4.2.1
			b, err := m.Pack()
			if err != nil {
				t.Fatal(err)
			}
			stream, err := conn.OpenStreamSync(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)); err != nil {
				t.Fatal(err)
			}
			stream.Close()
			got, err := io.ReadAll(stream)
			if err != nil || len(got) < 2 || int(binary.BigEndian.Uint16(got)) != len(got)-2 {
				t.Fatalf("got % x, %v", got, err)
			}
			return unpacked(t, got[2:]), len(got) - 2
		}
		if got, _ := ask(new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA)); len(got.Answer) != 1 || got.Answer[0].(*dns.A).A.String() != "192.0.2.1" || got.Truncated {
			t.Errorf("got %v", got)
		}
		padded := new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA)
		padded.SetEdns0(4096, false)
		padded.IsEdns0().Option = append(padded.IsEdns0().Option, &dns.EDNS0_PADDING{Padding: make([]byte, 10)})
		if got, size := ask(padded); len(got.Answer) != 1 || option(got, dns.EDNS0PADDING) == nil || size%468 != 0 { // RFC 8467 §4.1
			t.Errorf("%d bytes: %v", size, got)
		}
		if c := s.Counters(); c["dns_queries_quic_total"] != 2 || c["dns_answers_success_total"] != 2 {
			t.Errorf("counted %v", c)
		}
		conn.CloseWithError(0, "")
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
		client.Close()
		own.Close()
		time.Sleep(time.Minute)
	})
}

func TestWhatIsDoneOnceIsNotAnsweredEarly(t *testing.T) {
	zone := new(dns.Msg).SetUpdate("example.com.")
	status := new(dns.Msg).SetQuestion("example.com.", dns.TypeA)
	status.Opcode = dns.OpcodeStatus
	for _, c := range []struct {
		name string
		m    *dns.Msg
		once bool
	}{
		{"a query", new(dns.Msg).SetQuestion("example.com.", dns.TypeA), false},
		{"a NOTIFY", new(dns.Msg).SetNotify("example.com."), false},
		{"AXFR", new(dns.Msg).SetAxfr("example.com."), true},
		{"IXFR", new(dns.Msg).SetIxfr("example.com.", 1, "ns.example.com.", "host.example.com."), true},
		{"an update", zone, true},
		{"another opcode", status, true},
	} {
		b, err := c.m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		if once(b) != c.once {
			t.Errorf("%s: %v", c.name, !c.once)
		}
	}
}
