//go:build !linux

package relay

import "net"

// kernelProgress is nil: there is no splice here, and all bytes are counted as they come by.
func kernelProgress(a, b net.Conn) func() uint64 { return nil }
