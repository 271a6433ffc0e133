//go:build !unix

package wire

import (
	"errors"
	"net"
	"syscall"
)

// rawOf: elsewhere sockets are not looked at, and so are not kept.
func rawOf(net.Conn) (syscall.RawConn, bool) { return nil, false }

func somethingCame(uintptr) bool { return true }

func writeNow(uintptr, []byte) (int, error) { return 0, errors.ErrUnsupported }

func readNow(uintptr, []byte) (int, bool, error) { return 0, false, errors.ErrUnsupported }
