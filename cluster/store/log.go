package store

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// logAgain is how long Raft's log does not repeat a warning or an error; in between it is told at the debug level.
const logAgain = time.Minute

// maxRemembered bounds the messages that are remembered for that. Raft has fewer: they are its constants.
const maxRemembered = 256

// routine is what Raft says again and again of a node that does not answer, of an election that goes on, or of a disk that
// is full. The transport, the store's leader and the disk tell of these once.
var routine = map[string]bool{
	"failed to heartbeat to":                                     true,
	"failed to appendEntries to":                                 true,
	"failed to pipeline appendEntries":                           true,
	"failed to start pipeline replication to":                    true,
	"failed to make requestVote RPC":                             true,
	"failed to contact":                                          true,
	"failed to send snapshot to":                                 true,
	"failed to install snapshot":                                 true,
	"failed to append to logs":                                   true,
	"failed to commit logs":                                      true,
	"appendEntries rejected, sending older logs":                 true,
	"pipelining replication":                                     true,
	"aborting pipeline replication":                              true,
	"entering candidate state":                                   true,
	"Election timeout reached, restarting election":              true,
	"pre-vote successful, starting election":                     true,
	"pre-vote campaign failed, waiting for election timeout":     true,
	"rejecting pre-vote request since we have a leader":          true,
	"rejecting vote request since we have a leader":              true,
	"rejecting pre-vote request since our last index is greater": true,
	"rejecting vote request since our last index is greater":     true,
	"rejecting pre-vote request since our last term is greater":  true,
	"rejecting vote request since our last term is greater":      true,
	"duplicate requestVote for same term":                        true,
	"no known peers, aborting election":                          true, // a node that is not in Raft
}

// bridge makes the logger that Raft wants of the one we have; what it says is lowered to most.
func bridge(log *slog.Logger, most slog.Level) hclog.Logger {
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Level: hclog.Off})
	l.RegisterSink(&sink{log: log, most: most, said: map[string]time.Time{}})
	return l
}

// sink takes what Raft logs (hclog.SinkAdapter).
type sink struct {
	log  *slog.Logger
	most slog.Level

	mu   sync.Mutex
	said map[string]time.Time // when a warning or an error was told
}

// Accept implements hclog.SinkAdapter.
func (s *sink) Accept(_ string, level hclog.Level, msg string, args ...any) {
	to := slog.LevelDebug
	switch level {
	case hclog.Info:
		to = slog.LevelInfo
	case hclog.Warn:
		to = slog.LevelWarn
	case hclog.Error:
		to = slog.LevelError
	}
	to = min(to, s.most)
	if routine[msg] || to >= slog.LevelWarn && !s.first(msg, time.Now()) {
		to = slog.LevelDebug
	}
	if !s.log.Enabled(context.Background(), to) {
		return
	}
	for i, arg := range args {
		if f, ok := arg.(hclog.Format); ok {
			args[i] = fmt.Sprintf(fmt.Sprint(f[0]), f[1:]...)
		}
	}
	s.log.Log(context.Background(), to, "raft: "+msg, args...)
}

// first says whether a message was not told of late, and takes it for told.
func (s *sink) first(msg string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, told := s.said[msg]
	if told && now.Sub(at) < logAgain {
		return false
	}
	if told || len(s.said) < maxRemembered {
		s.said[msg] = now
	}
	return true
}
