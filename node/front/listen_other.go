//go:build !linux

package front

import "syscall"

const spreads, inheritsKeepAlive = false, false

func shareAddress(string, string, syscall.RawConn) error { return nil }

func keepsAlive(string, string, syscall.RawConn) error { return nil }
