package dnsgeo

import (
	"bytes"
	"context"
	"encoding/hex"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/dnsgeo/crowd"
	"github.com/perigee-net/perigee/dnsgeo/tsig"
	"github.com/perigee-net/perigee/dnsgeo/update"
	"github.com/perigee-net/perigee/dnsgeo/zone"
)

const (
	// maxUpdates is how many updates of zones wait at once to be agreed, and maxUpdatesPerClient how many of one client: an IPv4 /24 or
	// IPv6 /48. Beyond it is SERVFAIL, and the client comes again.
	maxUpdates          = 64
	maxUpdatesPerClient = 16

	// updateTime bounds how long one is waited for; then it is SERVFAIL, and may be agreed all the same.
	updateTime = 10 * time.Second

	// maxUpdateSize is how long an update on a stream is at most: a datagram's are as long as queries.
	maxUpdateSize = streamSize - 2
)

// Update is an update of a zone (RFC 2136) that is signed by a key which may change something in the zone.
type Update struct {
	Message []byte // as it came, signature and all
	Client  netip.Addr
}

// UpdateAnswer is what became of one.
type UpdateAnswer struct {
	Rcode int    // SERVFAIL: nobody knows
	Why   string // more about a refusal, to people; may be empty
}

// UpdateID tells one update from all others, be it sent again by its client or by somebody who has recorded it; "" if it is not signed.
func UpdateID(signed []byte) string {
	signature := tsig.Find(signed)
	if signature == nil {
		return ""
	}
	id := signature.ID()
	return "update " + hex.EncodeToString(id[:16])
}

// JudgeUpdate judges a signed update over a spec, and says by which key it is signed. It is pure. The time of the signature was judged
// by the node that it came to.
func JudgeUpdate(s *spec.Spec, signed []byte) (v update.Verdict, key string) {
	signature := tsig.Find(signed)
	if signature == nil {
		return update.Verdict{Rcode: dns.RcodeFormatError}, ""
	}
	by := s.TsigKeys[strings.TrimSuffix(zone.Text(signature.Name), ".")]
	if by == nil {
		return update.Verdict{Rcode: dns.RcodeNotAuth, Why: "there is no such key any more"}, ""
	}
	_, k := keyOf(by)
	if _, wrong := k.Verify(signed, signature, tsig.MAC{}, time.Now()); wrong != 0 && wrong != tsig.BadTime {
		return update.Verdict{Rcode: dns.RcodeNotAuth, Why: "the key is another by now"}, ""
	}
	m, ok := update.Parse(tsig.Strip(signed, signature))
	if !ok {
		return update.Verdict{Rcode: dns.RcodeFormatError}, ""
	}
	return update.Judge(s, m, by.Name), by.Name
}

// isUpdate says whether a message that is no response changes a zone.
func isUpdate(m []byte) bool { return len(m) > 2 && m[2]&0xf8 == dns.OpcodeUpdate<<3 }

// pending is an update that has a place, and waits for its response.
type pending struct {
	update  Update
	request request
	plain   []byte // without the signature
	key     *tsig.Key
	mac     tsig.MAC
	by      Transport
}

// takeUpdate is the update that the last response was left open for, nil if it was none.
func (d *desk) takeUpdate() *pending {
	u := d.update
	d.update = nil
	return u
}

// admitUpdate gives an update a place, or refuses it; plain is the message without its signature, and the request has the key.
// What can be said without the leader is.
func (s *Server) admitUpdate(m, plain []byte, r *request, mac tsig.MAC, from netip.Addr, by Transport) (*pending, int) {
	if s.config.Update == nil || !by.Datagram() && !by.Stream() {
		return nil, dns.RcodeNotImplemented
	}
	if r.key == nil { // a stranger's is not even read
		s.counts.updatesRefused.Add(1)
		r.why = "an update must be signed"
		return nil, dns.RcodeRefused
	}
	message, ok := update.Parse(plain)
	if !ok {
		s.counts.updatesRefused.Add(1)
		return nil, dns.RcodeFormatError
	}
	if no := update.Admit(s.table.Load().spec, message, r.key.Name); no != nil {
		s.counts.updatesRefused.Add(1)
		r.why = no.Why
		return nil, no.Rcode
	}
	if !s.updates.enter(crowd.Client(from)) {
		s.counts.updatesOver.Add(1)
		r.why = "too many updates at once"
		return nil, dns.RcodeServerFailure
	}
	m = bytes.Clone(m)
	again, _, _ := parse(m) // what the request points to is not the next one's
	again.key = r.key
	return &pending{Update{m, from}, again, plain, r.key, mac, by}, 0
}

// waiting is a context that ends with the server.
type waiting struct{ cancel context.CancelFunc }

// Close implements io.Closer.
func (w *waiting) Close() error { w.cancel(); return nil }

// finish waits for what becomes of an update, and makes the response.
func (s *Server) finish(u *pending) []byte {
	ctx, cancel := context.WithTimeout(context.Background(), updateTime)
	end := &waiting{cancel}
	if !s.start(end, 0, nil) {
		s.updates.leave(crowd.Client(u.update.Client))
		return nil
	}
	defer s.release(end)
	return s.conclude(ctx, u)
}

// finishLater is finish beside others; send sends the response.
func (s *Server) finishLater(u *pending, send func([]byte) error) {
	ctx, cancel := context.WithTimeout(context.Background(), updateTime)
	end := &waiting{cancel}
	if !s.start(end, 1, func() {
		defer s.release(end)
		if response := s.conclude(ctx, u); response != nil && send(response) != nil {
			s.counts.unsent.Add(1)
		}
	}) {
		s.updates.leave(crowd.Client(u.update.Client))
	}
}

func (s *Server) conclude(ctx context.Context, u *pending) []byte {
	defer s.updates.leave(crowd.Client(u.update.Client))
	answer := s.config.Update(ctx, u.update)
	switch answer.Rcode {
	case dns.RcodeSuccess:
		s.counts.updates.Add(1)
	case dns.RcodeServerFailure:
		s.counts.updatesFailed.Add(1)
	case dns.RcodeNameError, dns.RcodeYXDomain, dns.RcodeYXRrset, dns.RcodeNXRrset:
		s.counts.updatesUnmet.Add(1)
	default:
		s.counts.updatesRefused.Add(1)
	}
	u.request.why = answer.Why
	d := s.desks.Get().(*desk)
	defer s.desks.Put(d)
	response := d.make(make([]byte, 0, payloadSize), u.plain, &u.request, answer.Rcode, u.update.Client, u.by)
	if response == nil {
		return nil
	}
	response, _ = u.key.Sign(response, u.mac, time.Now())
	return response
}
