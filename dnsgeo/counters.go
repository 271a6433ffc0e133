package dnsgeo

import (
	"maps"
	"sync/atomic"

	"github.com/miekg/dns"
)

// counters count what strangers send and what they get.
type counters struct {
	queries                                                     [QUIC + 1]atomic.Uint64
	malformed, truncated, unsent, panics                        atomic.Uint64
	success, nxdomain, refused, servfail, rejects               atomic.Uint64
	scoped, conns, connsDisplaced                               atomic.Uint64
	tlsConns, tlsFailed                                         atomic.Uint64
	cookies, cookiesGiven, slipped, held                        atomic.Uint64
	transfers, transfersRefused, transfersOver                  atomic.Uint64
	transfersOfChanges, transfersFailed, signed, badKey, badSig atomic.Uint64
	badTime, badTrunc, badForm                                  atomic.Uint64
	notifies, notifiesAcknowledged                              atomic.Uint64
	notifiesRefused, notifiesForged                             atomic.Uint64
	notifiesUnanswered                                          atomic.Uint64
	updates, updatesRefused, updatesUnmet                       atomic.Uint64
	updatesFailed, updatesOver                                  atomic.Uint64
	notifiesIn, notifiesStray, notifiesStrange                  atomic.Uint64
	primariesAsked, primariesFailed                             atomic.Uint64
	primariesOlder, copiesTaken, copiesChanged                  atomic.Uint64
	copiesFallback, copiesExpired, copiesDamaged                atomic.Uint64
	copiesRestored, copiesUnshared, copiesGiven                 atomic.Uint64
	copiesOver                                                  atomic.Uint64
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
		"dns_panics_total":                    c.panics.Load(),               // messages that met a fault of this node: no response
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
		"dns_connections":                     uint64(s.crowd.Size()),        // TCP and TLS, now
		"dns_connections_total":               c.conns.Load(),                // TCP and TLS
		"dns_connections_displaced_total":     c.connsDisplaced.Load(),       // closed for another one: too many
		"dns_tls_connections_total":           c.tlsConns.Load(),             // of the connections, those of TLS
		"dns_tls_handshake_errors_total":      c.tlsFailed.Load(),            // that ended in the handshake
		"dns_transfers_out_total":             c.transfers.Load(),            // zones that were sent, or begun to be
		"dns_transfers_out_failed_total":      c.transfersFailed.Load(),      // of them, those that were not taken to the end
		"dns_transfers_out_changes_total":     c.transfersOfChanges.Load(),   // IXFRs that were answered with what has changed
		"dns_transfers_out_refused_total":     c.transfersRefused.Load(),     // to whom the zone does not allow it, or no such zone
		"dns_transfers_out_over_bounds_total": c.transfersOver.Load(),        // refused: too many at once
		"dns_notifies_out_total":              c.notifies.Load(),             // sent, repeated ones too
		"dns_notifies_acknowledged_total":     c.notifiesAcknowledged.Load(), // answered
		"dns_notifies_refused_total":          c.notifiesRefused.Load(),      // answered with an error
		"dns_notifies_forged_total":           c.notifiesForged.Load(),       // responses to them that are none, or not signed as they are to be
		"dns_notifies_unanswered_total":       c.notifiesUnanswered.Load(),   // secondaries that were given up
		"dns_updates_total":                   c.updates.Load(),              // changes of zones that were agreed, or change nothing
		"dns_updates_refused_total":           c.updatesRefused.Load(),       // not signed, not allowed, or of no form
		"dns_updates_unmet_total":             c.updatesUnmet.Load(),         // whose prerequisites did not hold
		"dns_updates_failed_total":            c.updatesFailed.Load(),        // of which it is not known that they were agreed: SERVFAIL
		"dns_updates_over_bounds_total":       c.updatesOver.Load(),          // too many at once: SERVFAIL
		"dns_tsig_verified_total":             c.signed.Load(),               // messages whose signature is right
		"dns_tsig_badkey_total":               c.badKey.Load(),               // by a key that nobody here has
		"dns_tsig_badsig_total":               c.badSig.Load(),               // with a wrong signature
		"dns_tsig_badtime_total":              c.badTime.Load(),              // of another time
		"dns_tsig_badtrunc_total":             c.badTrunc.Load(),             // with a MAC that is cut
		"dns_tsig_malformed_total":            c.badForm.Load(),              // out of place, or of no form
	}
	maps.Copy(all, map[string]uint64{
		"dns_notifies_in_total":                 c.notifiesIn.Load(),      // of primaries
		"dns_notifies_in_refused_total":         c.notifiesStrange.Load(), // of others, or not signed as they are to be
		"dns_notifies_in_stray_total":           c.notifiesStray.Load(),   // for a zone that is no secondary one
		"dns_secondary_asked_total":             c.primariesAsked.Load(),  // primaries that were asked
		"dns_secondary_failed_total":            c.primariesFailed.Load(), // of them, those of no use: silent, or what they sent was refused
		"dns_secondary_older_total":             c.primariesOlder.Load(),  // of those, ones with an older serial than there is
		"dns_secondary_taken_total":             c.copiesTaken.Load(),     // versions, of primaries and nodes
		"dns_secondary_taken_changes_total":     c.copiesChanged.Load(),   // of them, by what had changed (IXFR)
		"dns_secondary_fallbacks_total":         c.copiesFallback.Load(),  // of them, whole as what had changed was of no use
		"dns_secondary_expired_total":           c.copiesExpired.Load(),   // copies that nobody confirmed for too long
		"dns_secondary_restored_total":          c.copiesRestored.Load(),  // copies from disk
		"dns_secondary_damaged_total":           c.copiesDamaged.Load(),   // files that were refused
		"dns_secondary_given_total":             c.copiesGiven.Load(),     // to other nodes
		"dns_secondary_given_over_bounds_total": c.copiesOver.Load(),      // refused: too many at once
		"dns_secondary_not_given_total":         c.copiesUnshared.Load(),  // other nodes' that could not be taken from them
	})
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
