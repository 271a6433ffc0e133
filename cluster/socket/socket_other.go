//go:build !unix

package socket

import "syscall"

const (
	supported = false
	peek      = 0
	more      = 0
)

func receive(uintptr, []byte, int) (int, syscall.Errno) { return 0, syscall.ENOSYS }

func send(uintptr, []byte, int) (int, syscall.Errno) { return 0, syscall.ENOSYS }
