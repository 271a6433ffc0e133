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

func (raw) sendFile(*os.File, int64, int64) (int64, error) { return 0, errors.ErrUnsupported }
