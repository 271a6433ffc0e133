package dnsgeo

import (
	"sync/atomic"

	"github.com/miekg/dns"
)

// counters count what strangers send and what they get.
type counters struct {
	queries                                       [QUIC + 1]atomic.Uint64
	malformed, truncated, unsent                  atomic.Uint64
	success, nxdomain, refused, servfail, rejects atomic.Uint64
	scoped, conns, connsDisplaced                 atomic.Uint64
	tlsConns, tlsFailed                           atomic.Uint64
	cookies, cookiesGiven, slipped, held          atomic.Uint64
	transfers, transfersRefused, transfersOver    atomic.Uint64
	transfersFailed, signed, badKey, badSig       atomic.Uint64
	badTime, badTrunc, badForm                    atomic.Uint64
	notifies, notifiesAcknowledged                atomic.Uint64
	notifiesRefused, notifiesForged               atomic.Uint64
	notifiesUnanswered                            atomic.Uint64
}

func (c *counters) answered(y *reply, truncated bool) {
	switch y.Rcode {
	case dns.RcodeSuccess:
		c.success.Add(1)
	case dns.RcodeNameError:
		c.nxdomain.Add(1)
	case dns.RcodeRefused:
		c.refused.Add(1)
	case dns.RcodeServerFailure:
		c.servfail.Add(1)
	default:
		c.rejects.Add(1)
	}
	if truncated {
		c.truncated.Add(1)
	}
	if y.Scope > 0 {
		c.scoped.Add(1)
	}
}

// Counters are the numbers since the start, by name.
func (s *Server) Counters() map[string]uint64 {
	c := &s.counts
	all := map[string]uint64{
		"dns_queries_total":                   0, // messages that came, by any transport
		"dns_queries_udp_total":               c.queries[UDP].Load(),
		"dns_queries_tcp_total":               c.queries[TCP].Load(),
		"dns_queries_tls_total":               c.queries[TLS].Load(),
		"dns_queries_https_total":             c.queries[HTTPS].Load(),
		"dns_queries_quic_total":              c.queries[QUIC].Load(),
		"dns_malformed_total":                 c.malformed.Load(),            // of them, those that are no query: FORMERR or no response
		"dns_answers_success_total":           c.success.Load(),              // NOERROR
		"dns_answers_nxdomain_total":          c.nxdomain.Load(),             // no such name
		"dns_answers_refused_total":           c.refused.Load(),              // no zone of ours, or a transfer
		"dns_answers_servfail_total":          c.servfail.Load(),             // nobody alive to answer with
		"dns_answers_rejected_total":          c.rejects.Load(),              // FORMERR, NOTIMP, BADVERS, NOTAUTH, YXDOMAIN
		"dns_answers_truncated_total":         c.truncated.Load(),            // to be fetched by TCP
		"dns_answers_by_subnet_total":         c.scoped.Load(),               // that depended on the client subnet
		"dns_answers_unsent_total":            c.unsent.Load(),               // datagrams that the system did not take
		"dns_cookies_valid_total":             c.cookies.Load(),              // queries whose client is proven by them
		"dns_cookies_given_total":             c.cookiesGiven.Load(),         // queries with none of ours, or one that is too old
		"dns_responses_cut_total":             c.slipped.Load(),              // too many to a network: cut, with TC or BADCOOKIE
		"dns_responses_held_total":            c.held.Load(),                 // too many: not sent
		"dns_connections":                     uint64(s.crowd.size()),        // TCP and TLS, now
		"dns_connections_total":               c.conns.Load(),                // TCP and TLS
		"dns_connections_displaced_total":     c.connsDisplaced.Load(),       // closed for another one: too many
		"dns_tls_connections_total":           c.tlsConns.Load(),             // of the connections, those of TLS
		"dns_tls_handshake_errors_total":      c.tlsFailed.Load(),            // that ended in the handshake
		"dns_transfers_out_total":             c.transfers.Load(),            // zones that were sent, or begun to be
		"dns_transfers_out_failed_total":      c.transfersFailed.Load(),      // of them, those that were not taken to the end
		"dns_transfers_out_refused_total":     c.transfersRefused.Load(),     // to whom the zone does not allow it, or no such zone
		"dns_transfers_out_over_bounds_total": c.transfersOver.Load(),        // refused: too many at once
		"dns_notifies_out_total":              c.notifies.Load(),             // sent, repeated ones too
		"dns_notifies_acknowledged_total":     c.notifiesAcknowledged.Load(), // answered
		"dns_notifies_refused_total":          c.notifiesRefused.Load(),      // answered with an error
		"dns_notifies_forged_total":           c.notifiesForged.Load(),       // responses to them that are none, or not signed as they are to be
		"dns_notifies_unanswered_total":       c.notifiesUnanswered.Load(),   // secondaries that were given up
		"dns_tsig_verified_total":             c.signed.Load(),               // messages whose signature is right
		"dns_tsig_badkey_total":               c.badKey.Load(),               // by a key that nobody here has
		"dns_tsig_badsig_total":               c.badSig.Load(),               // with a wrong signature
		"dns_tsig_badtime_total":              c.badTime.Load(),              // of another time
		"dns_tsig_badtrunc_total":             c.badTrunc.Load(),             // with a MAC that is cut
		"dns_tsig_malformed_total":            c.badForm.Load(),              // out of place, or of no form
	}
	for by := range c.queries {
		all["dns_queries_total"] += c.queries[by].Load()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.quics {
		for name, n := range d.Counters() {
			all[name] += n
		}
	}
	return all
}
