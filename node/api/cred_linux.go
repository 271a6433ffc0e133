package api

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// userOf is the user whose process dialed a unix socket, as the kernel knows it (SO_PEERCRED, unix(7)).
func userOf(conn *net.UnixConn) (string, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return "", err
	}
	var cred *unix.Ucred
	var failed error
	if err := raw.Control(func(fd uintptr) {
		cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return "", err
	}
	if failed != nil {
		return "", failed
	}
	return nameOf(cred.Uid), nil
}

// nameOf is what a local user is called.
func nameOf(uid uint32) string {
	if uid == 0 {
		return "root"
	}
	return fmt.Sprintf("uid %d", uid)
}
