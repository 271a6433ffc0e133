//go:build unix

package node

import (
	"math"

	"golang.org/x/sys/unix"
)

// maxDoors is how many doors that the spec asks for this node opens.
func maxDoors() int {
	var files unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &files) != nil {
		return math.MaxInt
	}
	return int(min(uint64(files.Cur)/doorShare, math.MaxInt32))
}
