//go:build !linux

package front

import (
	"errors"
	"os"
	"syscall"
)

// raw is for Linux alone: elsewhere package net reads and writes.
type raw struct{ syscall.RawConn }

func rawOf(syscall.Conn) (raw, bool) { return raw{}, false }

func readNow(uintptr, []byte) (int, bool, error) { return 0, false, errors.ErrUnsupported }

// transfer is never made: files are read and written.
type transfer struct {
	head         []byte
	file         *os.File
	offset, left int64
	sent         int64
	err          error
}

func (*transfer) some(uintptr) bool { return true }
