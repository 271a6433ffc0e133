//go:build linux

package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// nameServer answers each query with what f makes of the right answer, until the test ends; nil: with nothing.
func nameServer(t *testing.T, f func(n int, m *dns.Msg) *dns.Msg) string {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		buf := make([]byte, maxQuery)
		for n := 0; ; n++ {
			size, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			var q dns.Msg
			if q.Unpack(buf[:size]) != nil {
				continue
			}
			m := new(dns.Msg).SetReply(&q)
			m.Authoritative, m.Compress = true, n%2 == 0
			var host int
			fmt.Sscanf(q.Question[0].Name, "h%d.", &host)
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 300}, A: addressOf(host).AsSlice()}}
			if m = f(n, m); m == nil {
				continue
			}
			if packed, err := m.Pack(); err == nil {
				c.WriteTo(packed, from)
			}
		}
	})
	t.Cleanup(func() { c.Close(); serving.Wait() })
	return c.LocalAddr().String()
}

// volleyNames is how many names are asked for.
const volleyNames = 50

func shot(t *testing.T, address string, last time.Duration) Measured {
	t.Helper()
	var q questions
	if err := q.ofNames(volleyNames); err != nil {
		t.Fatal(err)
	}
	m, err := (&volley{address: address, questions: &q, last: last}).run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestAVolleyAsksAllInTurnAndEachAnswerCounts(t *testing.T) {
	var mu sync.Mutex
	asked := map[string]int{}
	total := 0
	address := nameServer(t, func(_ int, m *dns.Msg) *dns.Msg {
		mu.Lock()
		defer mu.Unlock()
		asked[m.Question[0].Name]++
		total++
		return m
	})
	m := shot(t, address, 300*time.Millisecond)
	mu.Lock()
	defer mu.Unlock()
	if m.Failed != "" || m.Count != int64(total) || m.Count < volleyNames || m.Value <= 0 || m.P50 <= 0 || m.P99 < m.P50 || m.Bytes < 40*m.Count || m.Idle <= 0 {
		t.Errorf("%d queries came: %+v", total, m)
	}
	for name, n := range asked {
		if n < total/volleyNames || n > total/volleyNames+1 {
			t.Errorf("of %d queries %d are for %s", total, n, name)
		}
	}
	if len(asked) != volleyNames {
		t.Errorf("%d names are asked for", len(asked))
	}
}

func TestAVolleyThatFindsAFaultFails(t *testing.T) {
	for _, c := range []struct {
		want string
		f    func(m *dns.Msg) *dns.Msg
	}{
		{"answered with code 3", func(m *dns.Msg) *dns.Msg { m.Rcode = dns.RcodeNameError; return m }},
		{"not authoritative", func(m *dns.Msg) *dns.Msg { m.Authoritative = false; return m }},
		{"or truncated", func(m *dns.Msg) *dns.Msg { m.Truncated = true; return m }},
		{"no answer", func(m *dns.Msg) *dns.Msg { m.Response = false; return m }},
		{"1 questions and 0 answers", func(m *dns.Msg) *dns.Msg { m.Answer = nil; return m }},
		{"an answer to another question", func(m *dns.Msg) *dns.Msg { m.Question[0].Name = "i" + m.Question[0].Name[1:]; return m }},
		{"an answer without an address", func(m *dns.Msg) *dns.Msg {
			m.Answer[0] = &dns.TXT{Hdr: *m.Answer[0].Header(), Txt: []string{"x"}}
			m.Answer[0].Header().Rrtype = dns.TypeTXT
			return m
		}},
		{"answered 192.0.2.66, not 198.", func(m *dns.Msg) *dns.Msg { m.Answer[0].(*dns.A).A = net.IPv4(192, 0, 2, 66); return m }},
	} {
		m := shot(t, nameServer(t, func(n int, m *dns.Msg) *dns.Msg {
			if n < 100 {
				return m
			}
			return c.f(m)
		}), time.Minute)
		if !strings.Contains(m.Failed, c.want) || !strings.HasPrefix(m.Failed, "after ") {
			t.Errorf("%s: got %+v", c.want, m)
		}
	}
}

// What cuts an answer anywhere is a fault, not a crash.
func TestACutAnswerIsAFault(t *testing.T) {
	query, err := question(7, "h1.z0.bench.test.", netip.Prefix{})
	if err != nil {
		t.Fatal(err)
	}
	var q dns.Msg
	if err := q.Unpack(query); err != nil {
		t.Fatal(err)
	}
	for _, compress := range []bool{false, true} {
		m := new(dns.Msg).SetReply(&q)
		m.Authoritative, m.Compress = true, compress
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 300}, A: addressOf(1).AsSlice()}}
		whole, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		if err := judge(whole, query, addressOf(1).As4()); err != nil {
			t.Errorf("whole: %v", err)
		}
		for n := 12; n < len(whole); n++ {
			if judge(whole[:n:n], query, addressOf(1).As4()) == nil {
				t.Errorf("%d of %d bytes are taken", n, len(whole))
			}
		}
	}
}

// One in ten is never answered: that is more than may be lost.
func TestLostAnswersAreCountedAndTooManyAreAFault(t *testing.T) {
	m := shot(t, nameServer(t, func(n int, m *dns.Msg) *dns.Msg {
		if n%10 == 9 {
			return nil
		}
		return m
	}), 50*time.Millisecond)
	if !strings.HasSuffix(m.Failed, "queries lost") || m.Count == 0 {
		t.Errorf("got %+v", m)
	}
}

func TestAVolleyAtNobodyFails(t *testing.T) {
	loopback := net.IPv4(127, 0, 0, 1)
	c, err := net.DialUDP("udp", &net.UDPAddr{IP: loopback}, &net.UDPAddr{IP: loopback, Port: 9}) // which hears nobody else, and keeps the port from others
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if m := shot(t, c.LocalAddr().String(), time.Minute); !strings.Contains(m.Failed, "refused") {
		t.Errorf("got %+v", m)
	}
}

func TestACancelledVolleyEnds(t *testing.T) {
	address := nameServer(t, func(_ int, m *dns.Msg) *dns.Msg { return m })
	var q questions
	if err := q.ofNames(10); err != nil {
		t.Fatal(err)
	}
	over := errors.New("over")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(over)
	if _, err := (&volley{address: address, questions: &q, last: time.Minute}).run(ctx); !errors.Is(err, over) {
		t.Errorf("got %v", err)
	}
	if _, err := (&volley{address: address, questions: new(questions), last: time.Minute}).run(t.Context()); err == nil {
		t.Error("no questions are asked")
	}
}
