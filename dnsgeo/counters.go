package dnsgeo

import (
	"sync/atomic"

	"github.com/miekg/dns"
)

// counters count what strangers send and what they get.
type counters struct {
	queries, malformed, truncated, unsent         atomic.Uint64
	success, nxdomain, refused, servfail, rejects atomic.Uint64
	scoped, conns, connsRefused                   atomic.Uint64
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
	return map[string]uint64{
		"dns_queries_total":                 c.queries.Load(),      // messages that came
		"dns_malformed_total":               c.malformed.Load(),    // of them, those that are no query: FORMERR or no response
		"dns_answers_success_total":         c.success.Load(),      // NOERROR
		"dns_answers_nxdomain_total":        c.nxdomain.Load(),     // no such name
		"dns_answers_refused_total":         c.refused.Load(),      // no zone of ours, or a transfer
		"dns_answers_servfail_total":        c.servfail.Load(),     // nobody alive to answer with
		"dns_answers_rejected_total":        c.rejects.Load(),      // FORMERR, NOTIMP, BADVERS
		"dns_answers_truncated_total":       c.truncated.Load(),    // to be fetched by TCP
		"dns_answers_by_subnet_total":       c.scoped.Load(),       // that depended on the client subnet
		"dns_answers_unsent_total":          c.unsent.Load(),       // datagrams that the system did not take
		"dns_connections_total":             c.conns.Load(),        // TCP
		"dns_connections_over_bounds_total": c.connsRefused.Load(), // closed at once: too many
	}
}
