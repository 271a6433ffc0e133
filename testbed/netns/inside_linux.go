package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// thread is the operating system's thread of the goroutine that has it, away from home or not.
type thread struct {
	home int  // the namespace it came from; -1: it is there
	held bool // the goroutine is locked to it
	lost bool // it cannot come home
}

// apart runs f on a thread that f may take to another namespace, and waits for it. The thread is brought home after f;
// one that cannot come is left locked to a goroutine that ends, and so is ended by the runtime with it. It is never the
// main thread: that one cannot be ended, and the process would be seen inside, and be killed with what is there.
func apart(f func(*thread) error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			err := apart(f) // on another thread, for this one is held
			runtime.UnlockOSThread()
			done <- err
			return
		}
		t := &thread{home: -1, held: true}
		err := f(t)
		if e := t.goHome(); err == nil {
			err = e
		}
		done <- err
	}()
	return <-done
}

func (t *thread) leave() error {
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the way home: %w", err)
	}
	t.home = home
	return nil
}

// enter takes the thread into the namespace of fd.
func (t *thread) enter(fd int) error {
	if err := t.leave(); err != nil {
		return err
	}
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		unix.Close(t.home)
		t.home = -1
		return fmt.Errorf("enter: %w", err)
	}
	return nil
}

// fresh takes the thread into a new namespace without a name.
func (t *thread) fresh() error {
	if err := t.leave(); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		unix.Close(t.home)
		t.home = -1
		return fmt.Errorf("unshare: %w", err)
	}
	return nil
}

// goHome takes the thread back to where it came from and lets the goroutine go. Home already is fine.
func (t *thread) goHome() error {
	if t.lost || !t.held {
		return nil
	}
	if t.home >= 0 {
		err := unix.Setns(t.home, unix.CLONE_NEWNET)
		unix.Close(t.home)
		t.home = -1
		if err != nil {
			t.lost = true
			return fmt.Errorf("come back from a namespace: %w", err)
		}
	}
	t.held = false
	runtime.UnlockOSThread()
	return nil
}

// inside runs f on a thread in the namespace. f must not start goroutines that are to be inside too.
func (n *Namespace) inside(f func(*thread) error) error {
	return apart(func(t *thread) error {
		n.mu.RLock()
		if n.fd < 0 {
			n.mu.RUnlock()
			return os.ErrClosed
		}
		err := t.enter(n.fd)
		n.mu.RUnlock()
		if err != nil {
			return err
		}
		return f(t)
	})
}

// Dial opens a connection from inside, to be used by this process. Only the socket is made inside; the thread is back
// before the connection is, so that a thousand slow ones hold no threads. A name is looked up by Resolver, and its
// addresses are tried one after the other.
func (n *Namespace) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil || strings.HasPrefix(network, "unix") {
		return n.dial(ctx, network, address)
	}
	if _, err := netip.ParseAddr(host); err == nil || host == "" {
		return n.dial(ctx, network, address)
	}
	kind := "ip"
	if last := network[len(network)-1]; last == '4' || last == '6' {
		kind += string(last)
	}
	addrs, err := n.Resolver().LookupNetIP(ctx, kind, rooted(host))
	if err != nil {
		return nil, n.fault("dial %s: %w", address, err)
	}
	err = errors.New("the name has no address")
	for _, a := range addrs {
		var conn net.Conn
		if conn, err = n.dial(ctx, network, net.JoinHostPort(a.Unmap().String(), port)); err == nil {
			return conn, nil
		}
	}
	return nil, err
}

// rooted keeps the machine's search list away from a name of the testbed.
func rooted(name string) string {
	if strings.HasSuffix(name, ".") {
		return name
	}
	return name + "."
}

// dialTries bounds how often a dial is begun anew because package net made a second socket: it does so after a
// connection with itself and after EADDRNOTAVAIL, both matters of ports that were picked in the same moment.
const dialTries = 3

var errAnew = errors.New("a second socket was made, outside")

func (n *Namespace) dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	for range dialTries {
		err = n.inside(func(t *thread) error {
			sockets := 0
			d := net.Dialer{Control: func(string, string, syscall.RawConn) error {
				if sockets++; sockets > 1 {
					return errAnew
				}
				return t.goHome()
			}}
			conn, err = d.DialContext(ctx, network, address)
			return err
		})
		if !errors.Is(err, errAnew) {
			break
		}
	}
	if err != nil {
		return nil, n.fault("%w", err)
	}
	return conn, nil
}

// Listen opens a listener inside, to be used by this process. "tcp" with an empty host hears IPv6 too if this machine has it.
func (n *Namespace) Listen(network, address string) (l net.Listener, err error) {
	primeNet()
	err = n.inside(func(*thread) (err error) {
		l, err = net.Listen(network, address)
		return err
	})
	if err != nil {
		return nil, n.fault("%w", err)
	}
	return l, nil
}

// ListenPacket is Listen for datagrams.
func (n *Namespace) ListenPacket(network, address string) (c net.PacketConn, err error) {
	primeNet()
	err = n.inside(func(*thread) (err error) {
		c, err = net.ListenPacket(network, address)
		return err
	})
	if err != nil {
		return nil, n.fault("%w", err)
	}
	return c, nil
}

// primeNet makes package net find out here whether there is IPv6, which it does once a process, when somebody
// listens on every address: a namespace whose loopback is down would tell it that there is none, for good.
func primeNet() {
	if c, err := net.ListenPacket("udp", ":0"); err == nil {
		c.Close()
	}
}

// Resolver asks the name servers of /etc/netns/NAME/resolv.conf, from inside. Names that /etc/hosts of the machine has are taken from there.
func (n *Namespace) Resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		text, err := os.ReadFile(filepath.Join(filesDir, n.Name, "resolv.conf"))
		if err != nil {
			return nil, n.fault("it has no resolv.conf: %w", err)
		}
		servers := nameservers(string(text))
		err = n.fault("its resolv.conf names no server")
		for _, s := range servers {
			var conn net.Conn
			if conn, err = n.dial(ctx, network, netip.AddrPortFrom(s, 53).String()); err == nil {
				return conn, nil
			}
		}
		return nil, err
	}}
}

// maxServers is how many name servers are taken from a resolv.conf: MAXNS of resolver(3).
const maxServers = 3

// nameservers are those of a resolv.conf(5).
func nameservers(text string) []netip.Addr {
	var list []netip.Addr
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "nameserver" || len(list) == maxServers {
			continue
		}
		if a, err := netip.ParseAddr(words[1]); err == nil {
			list = append(list, a)
		}
	}
	return list
}
