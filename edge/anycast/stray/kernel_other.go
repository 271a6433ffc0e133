//go:build !linux

package stray

import "errors"

// openKernel says that this system has none of it.
func openKernel() (kernelDoor, error) { return nil, errors.New("it needs Linux") }
