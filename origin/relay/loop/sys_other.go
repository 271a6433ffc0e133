//go:build !linux || !(amd64 || arm64)

package loop

import (
	"errors"
	"net"
	"net/netip"
)

// Supported says that there are loops on this system.
const Supported = false

var errUnsupported = errors.ErrUnsupported

// poller is none: there are no loops here, so nothing of this is called.
type poller struct{}

type event struct {
	fd                 int
	number             uint32
	readable, writable bool
	behind             behind
}

func newPoller() (*poller, error) { return nil, errUnsupported }

func (p *poller) close()                         {}
func (p *poller) add(int, uint32, bool) error    { return errUnsupported }
func (p *poller) change(int, uint32, bool) error { return errUnsupported }
func (p *poller) addListener(int, uint32) error  { return errUnsupported }
func (p *poller) remove(int)                     {}
func (p *poller) look([]event) int               { return 0 }
func (p *poller) wait([]event) (int, error)      { return 0, errUnsupported }
func (p *poller) yield([]event) int              { return 0 }
func (p *poller) wake()                          {}

func listening(net.Listener) (int, bool)         { return -1, false }
func accept(int) (int, netip.AddrPort, error)    { return -1, netip.AddrPort{}, errUnsupported }
func connect(netip.AddrPort) (int, error)        { return -1, errUnsupported }
func standing(int, netip.AddrPort, bool) error   { return errUnsupported }
func writable(int) (is, hasty bool)              { return false, false }
func localOf(int) (netip.AddrPort, error)        { return netip.AddrPort{}, errUnsupported }
func readSocket(int, []byte) (int, error)        { return 0, errUnsupported }
func writeSocket(int, []byte, bool) (int, error) { return 0, errUnsupported }
func isConnected(int) bool                       { return false }
func endSocket(int) error                        { return errUnsupported }
func closeSocket(int, bool)                      {}
func noDelay(int)                                {}
func keepAlive(int)                              {}
func kernelCount(int) int64                      { return 0 }
func become(int, bool) (*net.TCPConn, error)     { return nil, errUnsupported }
func connOf(int) (*net.TCPConn, error)           { return nil, errUnsupported }
