//go:build !linux

package api

import "net"

// userOf does not ask who dialed: only the node's own user and root may open the socket.
func userOf(*net.UnixConn) (string, error) { return "user", nil }
