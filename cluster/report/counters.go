package report

import "sync/atomic"

type counters struct {
	streams, streamsRefused, superseded, silent, stalled, malformed atomic.Uint64
	dials, dialsFailed                                              atomic.Uint64
	frames, sentBytes, receivedBytes                                atomic.Uint64
	statements, heard, taken, known                                 atomic.Uint64
	wants, gaps, dropped, refused, rebirths                         atomic.Uint64
}

// Counters counts since Open, those without _total what is now:
//
//	report_nodes                     nodes known, those that went lately included
//	report_streams                   streams open
//	report_streams_total             streams opened, by either side
//	report_streams_refused_total     streams of refused nodes, or too many, closed at once
//	report_streams_superseded_total  streams ended because their node opened another
//	report_streams_silent_total      streams ended because nothing came
//	report_streams_stalled_total     streams ended because the peer took nothing
//	report_malformed_total           streams ended because of what was sent on them
//	report_dials_total               dials
//	report_dials_failed_total        dials that failed
//	report_frames_sent_total         frames sent, beats included
//	report_sent_bytes_total          bytes of them
//	report_received_bytes_total      bytes of frames that came
//	report_statements_sent_total     statements sent: what one node said in one while, at least one value
//	report_values_received_total     values that came
//	report_values_taken_total        of them those that were new
//	report_values_known_total        of them those that were known
//	report_values_dropped_total      of them, and of nodes, those beyond a bound
//	report_wants_total               times a peer was asked for what it had more
//	report_gaps_total                times a peer said what followed on something that is not known here
//	report_refused_total             times a refused node was heard of
//	report_rebirths_total            times this node superseded what others held to be its words
func (r *Reports) Counters() map[string]uint64 {
	r.mu.Lock()
	nodes, streams := len(r.origins), len(r.streams)
	r.mu.Unlock()
	c := &r.counts
	return map[string]uint64{
		"report_nodes":                    uint64(nodes),
		"report_streams":                  uint64(streams),
		"report_streams_total":            c.streams.Load(),
		"report_streams_refused_total":    c.streamsRefused.Load(),
		"report_streams_superseded_total": c.superseded.Load(),
		"report_streams_silent_total":     c.silent.Load(),
		"report_streams_stalled_total":    c.stalled.Load(),
		"report_malformed_total":          c.malformed.Load(),
		"report_dials_total":              c.dials.Load(),
		"report_dials_failed_total":       c.dialsFailed.Load(),
		"report_frames_sent_total":        c.frames.Load(),
		"report_sent_bytes_total":         c.sentBytes.Load(),
		"report_received_bytes_total":     c.receivedBytes.Load(),
		"report_statements_sent_total":    c.statements.Load(),
		"report_values_received_total":    c.heard.Load(),
		"report_values_taken_total":       c.taken.Load(),
		"report_values_known_total":       c.known.Load(),
		"report_values_dropped_total":     c.dropped.Load(),
		"report_wants_total":              c.wants.Load(),
		"report_gaps_total":               c.gaps.Load(),
		"report_refused_total":            c.refused.Load(),
		"report_rebirths_total":           c.rebirths.Load(),
	}
}
