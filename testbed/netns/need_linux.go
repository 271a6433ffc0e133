package netns

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// Need is something that the machine lacks.
type Need struct {
	What string // what is missing
	Why  string // what it is for
	Get  string // how to get it
}

// String is the need in one line.
func (n Need) String() string { return n.What + " is missing (" + n.Why + "): " + n.Get }

// Missing is what namespaces need and this machine lacks, found by trying; nothing is left of it.
func Missing() []Need {
	var list []Need
	if os.Geteuid() != 0 {
		list = append(list, Need{"root", "namespaces, links and routes are made", "run it with sudo"})
	} else if err := apart(func(t *thread) error { return t.fresh() }); err != nil {
		list = append(list, Need{"CAP_SYS_ADMIN", "network namespaces are made; the kernel says: " + err.Error(), "in a container: run it with --privileged; elsewhere: a kernel with CONFIG_NET_NS"})
	}
	if fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
		unix.Close(fd)
	} else if !errors.Is(err, fs.ErrPermission) || os.Geteuid() == 0 { // who is not root hears that already
		list = append(list, Need{tunPath, "links without netem are TUN devices; the kernel says: " + err.Error(), "modprobe tun; if it is not there then: mkdir -p /dev/net && mknod /dev/net/tun c 10 200; in a container: run it with --device /dev/net/tun"})
	}
	if _, err := exec.LookPath("ip"); err != nil {
		list = append(list, Need{"the program ip", "processes run in namespaces by it", "apt-get install -y --no-install-recommends iproute2"})
	}
	return list
}
