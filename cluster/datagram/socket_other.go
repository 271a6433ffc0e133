//go:build !linux

package datagram

import "sync/atomic"

// kernel is not made here: datagrams are read and written one at a time, and answers of a socket of all addresses leave by the route back.
type kernel struct{}

func kernelOf(any, bool) (*kernel, error) { return nil, nil }

func (*kernel) serve(func([]Datagram), func(), *atomic.Bool) error { panic("not made here") }

func (*kernel) send(Way, [][]byte) (int, error) { panic("not made here") }
