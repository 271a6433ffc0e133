package dnsgeo

import (
	"context"
	"maps"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
)

// secondaries are those that a server tells: what each was told, when, and how it answers.
type secondaries struct {
	t      *testing.T
	mu     sync.Mutex
	began  time.Time
	told   []string
	answer func(m *dns.Msg, mac string) []byte
}

func (s *secondaries) dial(_ context.Context, network, address string) (net.Conn, error) {
	here, there := net.Pipe()
	go func() {
		defer there.Close()
		b := make([]byte, 4096)
		n, err := there.Read(b)
		if err != nil {
			return
		}
		m := new(dns.Msg)
		if err := m.Unpack(b[:n]); err != nil {
			s.t.Error(err)
			return
		}
		mac := ""
		if signature := m.IsTsig(); signature != nil {
			mac = signature.MAC
			if err := dns.TsigVerify(b[:n], tsigSecret, "", false); err != nil {
				s.t.Error(err)
			}
		}
		soa, _ := m.Answer[0].(*dns.SOA)
		if m.Opcode != dns.OpcodeNotify || !m.Authoritative || m.Question[0].Qtype != dns.TypeSOA || soa == nil || soa.Hdr.Name != m.Question[0].Name || network != "udp" {
			s.t.Errorf("by %s: %v", network, m)
		}
		s.mu.Lock()
		s.told = append(s.told, time.Since(s.began).String()+" "+address+" "+m.Question[0].Name)
		s.mu.Unlock()
		if response := s.answer(m, mac); response != nil {
			_, _ = there.Write(response)
		}
		_, _ = there.Read(b) // until the other side closes
	}()
	return here, nil
}

// responseTo is the response of miekg/dns, signed if the message is.
func responseTo(m *dns.Msg, mac string, rcode int) []byte {
	r := new(dns.Msg).SetRcode(m, rcode)
	if mac == "" {
		return must(r.Pack())
	}
	r.SetTsig("k.", dns.HmacSHA256, 300, time.Now().Unix())
	b, _, err := dns.TsigGenerate(r, tsigSecret, mac, false)
	return must(b, err)
}

// revised is the next revision of a spec, with other records of the zone, and whom to tell.
func revised(t *testing.T, s *spec.Spec, records string, peers ...spec.ZonePeer) *spec.Spec {
	next := *s
	next.Revision++
	next.HostedZones = maps.Clone(s.HostedZones)
	z := *s.HostedZones["example.com"]
	z.Records = recordsOf(t, records)
	z.Transfer.Notify = peers
	next.HostedZones["example.com"] = &z
	return &next
}

func peer(address, key string) spec.ZonePeer {
	return spec.ZonePeer{Address: netip.MustParseAddr(address), Port: 53, Key: key}
}

// telling runs f with a server of a view that has applied a first spec, and closes it.
func telling(t *testing.T, v *view.View, f func(t *testing.T, s *Server, others *secondaries, first *spec.Spec)) {
	synctest.Test(t, func(t *testing.T) {
		others := &secondaries{t: t, began: time.Now()}
		others.answer = func(m *dns.Msg, mac string) []byte { return responseTo(m, mac, dns.RcodeSuccess) }
		s := New(Config{View: func() *view.View { return v }, Dial: others.dial})
		first := revised(t, allowing(t, ""), "www A 192.0.2.1", peer("192.0.2.53", "k"), peer("192.0.2.54", ""))
		if err := s.Apply(first); err != nil {
			t.Fatal(err)
		}
		f(t, s, others, first)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

func applyAndWait(t *testing.T, s *Server, to *spec.Spec, d time.Duration) {
	t.Helper()
	if err := s.Apply(to); err != nil {
		t.Fatal(err)
	}
	time.Sleep(d)
	synctest.Wait()
}

func TestSecondariesAreToldOfWhatHasChangedInAZone(t *testing.T) {
	telling(t, nil, func(t *testing.T, s *Server, others *secondaries, first *spec.Spec) {
		peers := first.HostedZones["example.com"].Transfer.Notify
		time.Sleep(time.Minute)
		if len(others.told) != 0 {
			t.Errorf("at the start: %q", others.told)
		}
		same := revised(t, first, "www A 192.0.2.1", peers...)
		if applyAndWait(t, s, same, time.Minute); len(others.told) != 0 {
			t.Errorf("where nothing has changed: %q", others.told)
		}
		second := revised(t, same, "www A 192.0.2.2", peers...)
		applyAndWait(t, s, second, time.Second)
		third := revised(t, second, "www A 192.0.2.3", peers...) // told together with the one before
		applyAndWait(t, s, third, 10*time.Minute)
		c := s.Counters()
		if len(others.told) != 2 || c["dns_notifies_out_total"] != 2 || c["dns_notifies_acknowledged_total"] != 2 || c["dns_notifies_unanswered_total"] != 0 {
			t.Errorf("told %q, counted %v", others.told, c)
		}
		for _, line := range others.told {
			if !strings.HasPrefix(line, "2m3s ") || !strings.HasSuffix(line, " example.com.") {
				t.Error(line)
			}
		}
	})
}

func TestSecondariesAreToldAgainUntilTheyAnswerAndNotForEver(t *testing.T) {
	for _, test := range []struct {
		name                          string
		answer                        func(m *dns.Msg, mac string) []byte
		sent                          uint64 // to both
		acked, refused, forged, given uint64
	}{
		{"silent", func(*dns.Msg, string) []byte { return nil }, 14, 0, 0, 0, 2},
		{"it says no", func(m *dns.Msg, mac string) []byte { return responseTo(m, mac, dns.RcodeRefused) }, 2, 0, 2, 0, 0},
		{"not signed where the message is", func(m *dns.Msg, _ string) []byte { return responseTo(m, "", dns.RcodeSuccess) }, 8, 1, 0, 7, 1},
		{"another message's", func(m *dns.Msg, mac string) []byte { m.Id++; return responseTo(m, mac, dns.RcodeSuccess) }, 14, 0, 0, 14, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			telling(t, nil, func(t *testing.T, s *Server, others *secondaries, first *spec.Spec) {
				others.answer = test.answer
				applyAndWait(t, s, revised(t, first, "www A 192.0.2.2", first.HostedZones["example.com"].Transfer.Notify...), time.Hour)
				c := s.Counters()
				for counter, want := range map[string]uint64{"dns_notifies_out_total": test.sent, "dns_notifies_acknowledged_total": test.acked,
					"dns_notifies_refused_total": test.refused, "dns_notifies_forged_total": test.forged, "dns_notifies_unanswered_total": test.given} {
					if c[counter] != want {
						t.Errorf("%s is %d, want %d", counter, c[counter], want)
					}
				}
			})
		})
	}
}

// All nodes would tell, and one does: another one where that dies.
func TestOneNodeTells(t *testing.T) {
	who := func(members []view.Member) (names []string) {
		for _, m := range members {
			v := worldView()
			v.Self, v.Members = m.Name, members
			if chosen(v, "example.com", 1) {
				names = append(names, m.Name)
			}
		}
		return names
	}
	all := worldView().Members
	first := who(all)
	if len(first) != 1 {
		t.Fatalf("all: %q", first)
	}
	var others []view.Member
	for _, m := range all {
		if m.Name != first[0] {
			others = append(others, m)
		}
	}
	if next := who(others); len(next) != 1 {
		t.Errorf("without it: %q", next)
	}
}

func TestAServerThatIsClosedTellsNobody(t *testing.T) {
	telling(t, nil, func(t *testing.T, s *Server, others *secondaries, first *spec.Spec) {
		applyAndWait(t, s, revised(t, first, "www A 192.0.2.2", first.HostedZones["example.com"].Transfer.Notify...), time.Second)
		s.Close()
		time.Sleep(time.Hour)
		if len(others.told) != 0 || len(s.notices.pending) != 0 {
			t.Errorf("told %q", others.told)
		}
	})
}
