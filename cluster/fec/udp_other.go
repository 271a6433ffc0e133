//go:build !linux

package fec

import "net"

// wrapUDP is nil: without Linux's control messages, datagrams go one by one.
func (c *Conn) wrapUDP() net.PacketConn { return nil }
