package gossip

import (
	"bytes"
	"context"
	"log/slog"
	"sync/atomic"
)

type counters struct {
	packetsReceived, packetsSent atomic.Uint64
	strangers                    atomic.Uint64
	streamsRefused               atomic.Uint64
	exchanges, ignored           atomic.Uint64
	malformed, dropped           atomic.Uint64
	conflicts, refused           atomic.Uint64
	packetsShunned               atomic.Uint64
	libraryErrors                atomic.Uint64
	suspected                    atomic.Uint64
}

// Counters counts since Open:
//
//	gossip_packets_received_total   packets with the cluster's label
//	gossip_packets_sent_total
//	gossip_strangers_total          packets without it, dropped
//	gossip_streams_refused_total    streams closed because too many, or too much of them, were open
//	gossip_exchanges_total          exchanges of full state
//	gossip_ignored_total            messages that only releases before this one read, ignored
//	gossip_malformed_total          names, descriptions and payloads out of bounds, and packets and streams of another encryption, dropped
//	gossip_dropped_total            times a node beyond the bound was heard of
//	gossip_refused_total            times a refused node was said to live
//	gossip_packets_shunned_total    packets from the address of a refused node, or for it, dropped
//	gossip_conflicts_total          times a second node of one name was heard of
//	gossip_library_errors_total     errors and warnings of memberlist: undecryptable packets, failed exchanges, refuted suspicions
//	gossip_suspected_total          times others suspected this node, and it contradicted
func (g *Gossip) Counters() map[string]uint64 {
	c := &g.counters
	return map[string]uint64{
		"gossip_packets_received_total": c.packetsReceived.Load(),
		"gossip_packets_sent_total":     c.packetsSent.Load(),
		"gossip_strangers_total":        c.strangers.Load(),
		"gossip_streams_refused_total":  c.streamsRefused.Load(),
		"gossip_exchanges_total":        c.exchanges.Load(),
		"gossip_ignored_total":          c.ignored.Load(),
		"gossip_malformed_total":        c.malformed.Load(),
		"gossip_dropped_total":          c.dropped.Load(),
		"gossip_refused_total":          c.refused.Load(),
		"gossip_packets_shunned_total":  c.packetsShunned.Load(),
		"gossip_conflicts_total":        c.conflicts.Load(),
		"gossip_library_errors_total":   c.libraryErrors.Load(),
		"gossip_suspected_total":        c.suspected.Load(),
	}
}

// libraryLog takes memberlist's log. Much of it is about what strangers send, so all of it is for those who
// debug; errors and warnings are counted.
type libraryLog struct{ g *Gossip }

func (l libraryLog) Write(line []byte) (int, error) {
	if bytes.Contains(line, []byte("Refuting a suspect message")) {
		l.g.counters.suspected.Add(1)
	}
	if bytes.HasPrefix(line, []byte("[ERR")) || bytes.HasPrefix(line, []byte("[WARN]")) {
		l.g.counters.libraryErrors.Add(1)
	}
	if l.g.log.Enabled(context.Background(), slog.LevelDebug) {
		l.g.log.Debug(string(bytes.TrimSpace(line)))
	}
	return len(line), nil
}
