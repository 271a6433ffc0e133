package socket

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"github.com/perigee-net/perigee/testbed/gate"
)

// TestWhatThisMachineLacksIsToldFromWhereItHasNoWay asks the kernel, in a network of the test's own: one without IPv6, and with two ports to go from.
func TestWhatThisMachineLacksIsToldFromWhereItHasNoWay(t *testing.T) {
	gate.Wanted(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread ends with what is done on it, and the network with that
		if err := alone(); err != nil {
			if os.Getenv("PERIGEE_LAB") == "required" {
				t.Error(err)
			} else {
				t.Log(err)
			}
			return
		}
		for _, to := range []string{"[::1]:80", "[2001:db8::1]:80"} {
			_, err := net.Dial("tcp", to)
			if !errors.Is(err, syscall.EADDRNOTAVAIL) || Lacking(err, netip.MustParseAddrPort(to)) {
				t.Errorf("%v: it is taken for a lack", err)
			}
		}
		l, err := net.Listen("tcp", "127.0.0.1:80")
		if err != nil {
			t.Error(err)
			return
		}
		defer l.Close()
		for range 2 {
			c, err := net.Dial("tcp", "127.0.0.1:80")
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
		}
		if _, err = net.Dial("tcp", "127.0.0.1:80"); !errors.Is(err, syscall.EADDRNOTAVAIL) || !Lacking(err, netip.MustParseAddrPort("127.0.0.1:80")) {
			t.Errorf("%v: it is not taken for a lack", err)
		}
	}()
	<-done
}

// alone gives the thread that network.
func alone() error {
	if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	if err := exec.Command("ip", "link", "set", "lo", "up").Run(); err != nil {
		return err
	}
	for key, value := range map[string]string{"ipv6/conf/all/disable_ipv6": "1", "ipv4/ip_local_port_range": "40000 40001"} {
		if err := os.WriteFile("/proc/sys/net/"+key, []byte(value), 0); err != nil {
			return err
		}
	}
	return nil
}
