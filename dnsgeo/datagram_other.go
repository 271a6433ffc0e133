//go:build !linux

package dnsgeo

import "net"

// batches is nil: here one datagram is read and written at a time.
func (s *Server) batches(net.PacketConn) func() error { return nil }
