//go:build !linux

package backbone

import (
	"net"
	"time"
)

// tune leaves a connection as it is: there is no BBR that could be asked for.
func tune(net.Conn) (bbr bool) { return false }

// isReset is not asked: who reads or writes finds out.
func isReset(net.Conn) bool { return false }

// kernelSilence is not known.
func kernelSilence(net.Conn) (since time.Duration, unanswered bool) { return 0, false }

// kernelAcked is not known.
func kernelAcked(net.Conn) uint64 { return 0 }
