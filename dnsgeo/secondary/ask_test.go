package secondary

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/dnsgeo/tsig"
	"github.com/perigee-net/perigee/dnsgeo/zone"
)

var secret = []byte("the secret of these tests")

// scripted is a source whose connections are each served by f: what is to be sent for a query, or nil to close.
func scripted(t *testing.T, f func(conn, query int, q *dns.Msg, raw []byte) [][]byte) Source {
	conns := 0
	return Source{Dial: func(context.Context) (net.Conn, error) {
		here, there := net.Pipe()
		conn := conns
		conns++
		go func() {
			defer there.Close()
			for query := 0; ; query++ {
				var size [2]byte
				if _, err := io.ReadFull(there, size[:]); err != nil {
					return
				}
				raw := make([]byte, binary.BigEndian.Uint16(size[:]))
				if _, err := io.ReadFull(there, raw); err != nil {
					return
				}
				q := new(dns.Msg)
				if err := q.Unpack(raw); err != nil {
					t.Errorf("the query % x: %v", raw, err)
					return
				}
				out := f(conn, query, q, raw)
				if out == nil {
					return
				}
				if _, err := there.Write(framed(out)); err != nil {
					return
				}
			}
		}()
		return here, nil
	}}
}

// response is one to a query with the records of lines.
func response(t testing.TB, q *dns.Msg, lines string) []byte {
	t.Helper()
	r := new(dns.Msg).SetReply(q)
	r.Authoritative = true
	r.Answer = records(t, lines)
	return packed(t, r)
}

// asTold answers SOA and transfers with versions of a zone.
func asTold(t testing.TB, q *dns.Msg, soa string, transfer ...string) [][]byte {
	if q.Question[0].Qtype == dns.TypeSOA {
		return [][]byte{response(t, q, soa)}
	}
	var all [][]byte
	for _, lines := range transfer {
		all = append(all, response(t, q, lines))
	}
	return all
}

func TestPrimariesAreAskedAndBelievedAsTheRFCsSay(t *testing.T) {
	had := zoneOf(t, "SOA6\nNS")
	whole := "SOA7\nNS\nwww.example.com. 60 IN A 192.0.2.1\nSOA7"
	for _, test := range []struct {
		name   string
		had    *zone.Zone
		f      func(t *testing.T, conn, query int, q *dns.Msg) [][]byte
		want   string // part of the error; "": it is taken
		serial uint32
	}{
		{"a new zone", nil, func(t *testing.T, _, _ int, q *dns.Msg) [][]byte { return asTold(t, q, "SOA7", whole) }, "", 7},
		{"nothing newer", had, func(t *testing.T, _, _ int, q *dns.Msg) [][]byte { return asTold(t, q, "SOA6") }, "", 6},
		{"older", had, func(t *testing.T, _, _ int, q *dns.Msg) [][]byte { return asTold(t, q, "SOA5") }, "an older serial: 5, and here is 6", 5},
		{"newer than its SOA was", nil, func(t *testing.T, _, _ int, q *dns.Msg) [][]byte {
			return asTold(t, q, "SOA7", strings.ReplaceAll(whole, "SOA7", "SOA8"))
		}, "", 8},
		{"one query a connection", nil, func(t *testing.T, _, query int, q *dns.Msg) [][]byte {
			if query > 0 {
				return nil
			}
			return asTold(t, q, "SOA7", whole)
		}, "", 7},
		{"one query a connection, and there is a version", had, func(t *testing.T, _, query int, q *dns.Msg) [][]byte {
			if query > 0 {
				return nil
			}
			return asTold(t, q, "SOA7", whole)
		}, "", 7},
		{"it has no differences", had, func(t *testing.T, _, _ int, q *dns.Msg) [][]byte {
			if q.Question[0].Qtype == dns.TypeIXFR {
				return [][]byte{packed(t, new(dns.Msg).SetRcode(q, dns.RcodeNotImplemented))}
			}
			return asTold(t, q, "SOA7", whole)
		}, "", 7},
		{"older when it is whole", had, func(t *testing.T, _, _ int, q *dns.Msg) [][]byte {
			if q.Question[0].Qtype == dns.TypeIXFR {
				return [][]byte{packed(t, new(dns.Msg).SetRcode(q, dns.RcodeNotImplemented))}
			}
			return asTold(t, q, "SOA7", "SOA5\nNS\nSOA5")
		}, "an older serial: 5", 5},
		{"refused", nil, func(t *testing.T, _, _ int, q *dns.Msg) [][]byte {
			return [][]byte{packed(t, new(dns.Msg).SetRcode(q, dns.RcodeRefused))}
		}, "ask for the SOA: the answer is REFUSED", 0},
		{"no authority", nil, func(t *testing.T, _, _ int, q *dns.Msg) [][]byte {
			r := response(t, q, "SOA7")
			r[2] &^= 0x04
			return [][]byte{r}
		}, "no authority", 0},
		{"two SOAs", nil, func(t *testing.T, _, _ int, q *dns.Msg) [][]byte { return asTold(t, q, "SOA7\nSOA8") }, "2 SOA records", 0},
		{"another message's ID", nil, func(t *testing.T, _, _ int, q *dns.Msg) [][]byte {
			q.Id++
			return asTold(t, q, "SOA7")
		}, "answers something else", 0},
		{"another question", nil, func(t *testing.T, _, _ int, q *dns.Msg) [][]byte {
			q.Question[0].Name = "example.net."
			return asTold(t, q, "SOA7")
		}, "answers another question", 0},
		{"silence", nil, func(t *testing.T, _, _ int, q *dns.Msg) [][]byte { return [][]byte{} }, "i/o timeout", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := scripted(t, func(conn, query int, q *dns.Msg, _ []byte) [][]byte { return test.f(t, conn, query, q) })
				taken, err := Refresh(t.Context(), "example.com", test.had, source)
				if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
					t.Errorf("got %v", err)
				}
				if taken.Serial != test.serial || (taken.Zone != nil) != (err == nil && test.serial > 6) {
					t.Errorf("got %+v", taken)
				}
				if strings.Contains(test.want, "older") != errors.Is(err, ErrOlder) {
					t.Errorf("it is older: %v", errors.Is(err, ErrOlder))
				}
			})
		})
	}
}

// signedLate is a message signed together with those before it that were not, by hand (RFC 8945 §5.3.1).
func signedLate(mac []byte, unsigned [][]byte, m []byte, at time.Time) []byte {
	h := hmac.New(sha256.New, secret)
	h.Write(append([]byte{0, sha256.Size}, mac...))
	for _, u := range unsigned {
		h.Write(u)
	}
	h.Write(m)
	timers := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint32([]byte{0, 0}, uint32(at.Unix())), 300)
	h.Write(timers)
	out := append([]byte{}, m...)
	out[11]++
	data := append([]byte("\x0bhmac-sha256\x00"), timers...)
	data = append(data, 0, sha256.Size)
	data = append(h.Sum(data), m[0], m[1], 0, 0, 0, 0)
	out = append(out, "\x01k\x00\x00\xfa\x00\xff\x00\x00\x00\x00"...)
	return append(binary.BigEndian.AppendUint16(out, uint16(len(data))), data...)
}

func TestMessagesInBetweenNeedNoSignature(t *testing.T) {
	key := tsig.NewKey("k", []byte("\x01k\x00"), "hmac-sha256", secret)
	for _, test := range []struct {
		name     string
		unsigned int  // between the first message and the last
		first    bool // the first is signed
		last     bool
		want     string
	}{
		{"all are signed", 0, true, true, ""},
		{"those between are not", 3, true, true, ""},
		{"as many as may be", maxUnsigned, true, true, ""},
		{"one more", maxUnsigned + 1, true, true, "a message is not signed"},
		{"nor is the last", 3, true, false, "the last message is not signed"},
		{"the first is not", 0, false, true, "a message is not signed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := scripted(t, func(_, _ int, q *dns.Msg, raw []byte) [][]byte {
					query := tsig.Find(raw)
					if query == nil {
						t.Fatal("the query is not signed")
					}
					mac, wrong := key.Verify(raw, query, tsig.MAC{}, time.Now())
					if wrong != 0 {
						t.Fatal(wrong)
					}
					q.Extra = nil
					if q.Question[0].Qtype == dns.TypeSOA {
						m, _ := key.Sign(response(t, q, "SOA7"), mac, time.Now())
						return [][]byte{m}
					}
					all := [][]byte{response(t, q, "SOA7\nNS")}
					var last []byte
					if test.first {
						all[0], _ = key.Sign(all[0], mac, time.Now())
						last = all[0][len(all[0])-6-sha256.Size : len(all[0])-6]
					}
					for range test.unsigned {
						all = append(all, response(t, q, "www.example.com. 60 IN A 192.0.2.1"))
					}
					end := response(t, q, "SOA7")
					if test.last {
						end = signedLate(last, all[1:], end, time.Now())
					}
					return append(all, end)
				})
				source.Key = key
				taken, err := Refresh(t.Context(), "example.com", nil, source)
				if test.want == "" && (err != nil || taken.Zone == nil) || test.want != "" && (err == nil || err.Error() != test.want) {
					t.Errorf("got %+v, %v", taken, err)
				}
			})
		})
	}
}

func TestATransferWaitsForAPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := scripted(t, func(_, _ int, q *dns.Msg, _ []byte) [][]byte { return asTold(t, q, "SOA7", "SOA7\nNS\nSOA7") })
		source.Places = make(chan struct{}, 1)
		source.Places <- struct{}{}
		began := time.Now()
		go func() {
			time.Sleep(time.Second)
			<-source.Places
		}()
		if _, err := Refresh(t.Context(), "example.com", nil, source); err != nil || time.Since(began) != time.Second || len(source.Places) != 0 {
			t.Errorf("%v after %v, %d places taken", err, time.Since(began), len(source.Places))
		}
		source.Places <- struct{}{}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := Take(ctx, "example.com", nil, source); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}
