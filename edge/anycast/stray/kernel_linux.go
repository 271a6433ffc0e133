package stray

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

const (
	// maxAddresses bounds the addresses whose segments are looked at, as anycast.MaxPrefixes does those that are announced; what comes to more is as if there were no
	// other node.
	maxAddresses = 1000
	// maxDoors bounds the doors of which only the segments are looked at; where there are more, what comes to their addresses is, by all ports.
	maxDoors = 65536
	// maxInterfaces bounds those that are listened at; what comes by more is the kernel's alone.
	maxInterfaces = 64
	// deviceQueue is how many segments wait for this process; what comes beyond is dropped, and sent again by clients.
	deviceQueue = 4096
	// devicePattern is how the device is named that brings strays to this process.
	devicePattern = "perigee%d"
)

// kernel is what the machine's kernel does here: it hands over segments that have no socket, says whether there is one, and takes segments as if they had come by
// the network. All of it ends with the process, however that ends.
type kernel struct {
	maps         shared
	finds, takes *ebpf.Program
	device       *os.File
	name         string // the device's
	index        int    // its number: the name may be changed
	raw          struct{ four, six int }

	attaching sync.Mutex // orders attach; it is taken before mu

	mu     sync.RWMutex // guards what follows, and that nothing is closed that is used
	closed bool
	links  map[int]link.Link // by the number of the interface
	failed map[int]bool
	looked map[netip.Addr]byte // anyPort or doorsOnly
	doors  map[netip.AddrPort]bool
}

// openKernel makes it, at no interface and for no address yet. The error says what the machine lacks.
func openKernel() (_ kernelDoor, err error) {
	k := &kernel{links: map[int]link.Link{}, failed: map[int]bool{}, looked: map[netip.Addr]byte{}, doors: map[netip.AddrPort]bool{}}
	k.raw.four, k.raw.six = -1, -1
	defer func() {
		if err != nil {
			k.close()
		}
	}()
	if k.raw.four, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err != nil {
		return nil, fmt.Errorf("open a raw socket: %w", err)
	}
	// A machine without IPv6 has no segments of it.
	if k.raw.six, err = unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, fmt.Errorf("open a raw socket of IPv6: %w", err)
	}
	if err := k.openDevice(); err != nil {
		return nil, err
	}
	for _, m := range []struct {
		to   **ebpf.Map
		spec ebpf.MapSpec
	}{
		{&k.maps.Addresses, ebpf.MapSpec{Name: "stray_addresses", Type: ebpf.Hash, KeySize: 16, ValueSize: 1, MaxEntries: maxAddresses}},
		{&k.maps.Doors, ebpf.MapSpec{Name: "stray_doors", Type: ebpf.Hash, KeySize: doorBytes, ValueSize: 1, MaxEntries: maxDoors, Flags: unix.BPF_F_NO_PREALLOC}},
		{&k.maps.Flows, ebpf.MapSpec{Name: "stray_flows", Type: ebpf.Hash, KeySize: keyBytes, ValueSize: 1, MaxEntries: maxKnown, Flags: unix.BPF_F_NO_PREALLOC}},
		{&k.maps.Syns, ebpf.MapSpec{Name: "stray_syns", Type: ebpf.LRUHash, KeySize: keyBytes, ValueSize: 8, MaxEntries: maxSyns}},
		{&k.maps.Budget, ebpf.MapSpec{Name: "stray_budget", Type: ebpf.Array, KeySize: 4, ValueSize: 32, MaxEntries: 1}},
		{&k.maps.Counts, ebpf.MapSpec{Name: "stray_counts", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: counts}},
	} {
		if *m.to, err = ebpf.NewMap(&m.spec); err != nil {
			return nil, fmt.Errorf("make a map of eBPF: %w", err)
		}
	}
	if k.finds, err = ebpf.NewProgram(finds()); err != nil {
		return nil, fmt.Errorf("load a program of eBPF: %w", err)
	}
	if k.takes, err = ebpf.NewProgram(takes(k.maps, k.index)); err != nil {
		return nil, fmt.Errorf("load a program of eBPF: %w", err)
	}
	if err := k.limit(false); err != nil {
		return nil, err
	}
	if err := k.attach(); err != nil && len(k.links) == 0 {
		return nil, err
	}
	return k, nil
}

// openDevice makes the device that strays are sent to, from which this process reads whole packets: the kernel has cut them to the client's own segments, and has
// filled in their checksums, as for a network card that can do neither.
func (k *kernel) openDevice() error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq(devicePattern)
	if err == nil {
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		unix.Close(fd)
		return fmt.Errorf("make a TUN device: %w", err)
	}
	k.device, k.name = os.NewFile(uintptr(fd), "/dev/net/tun"), req.Name() // only now: the poller wants a file that has its device
	// It needs no address of its own, and says nothing; where that cannot be set, what the kernel says by it is passed over.
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+k.name+"/disable_ipv6", []byte("1"), 0)
	if err = setLink(k.name, unix.SIOCSIFTXQLEN, deviceQueue); err == nil {
		err = setLink(k.name, unix.SIOCSIFFLAGS, unix.IFF_UP)
	}
	if err != nil {
		return fmt.Errorf("bring %s up: %w", k.name, err)
	}
	i, err := net.InterfaceByName(k.name)
	if err != nil {
		return fmt.Errorf("find %s: %w", k.name, err)
	}
	k.index = i.Index
	return nil
}

// setLink sets something of an interface: its flags or the length of its queue.
func setLink(name string, what uint, value uint32) error {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket: %w", err)
	}
	defer unix.Close(socket)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if what == unix.SIOCSIFFLAGS { // half of a word
		req.SetUint16(uint16(value))
	} else {
		req.SetUint32(value)
	}
	return unix.IoctlIfreq(socket, what, req)
}

// limit sets what becomes of strays beyond the budget: they are dropped, that clients send them again, or the kernel answers them.
func (k *kernel) limit(drop bool) error {
	b := budget{Limit: maxAsks}
	if drop {
		b.Drop = 1
	}
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.closed {
		return nil
	}
	if err := k.maps.Budget.Put(uint32(0), b); err != nil {
		return fmt.Errorf("set the budget of strays: %w", err)
	}
	return nil
}

// attach listens at the interfaces that there are, and that it does not listen at yet. One that takes no program is an error once. Where somebody has set the device down it is set up again,
// which is an error, too; if that cannot be, or it is gone, all ends, for what is sent to it is lost.
func (k *kernel) attach() error {
	k.attaching.Lock()
	defer k.attaching.Unlock()
	all, err := net.Interfaces()
	if err != nil {
		return fmt.Errorf("list the interfaces: %w", err)
	}
	there := map[int]bool{}
	for _, i := range all {
		there[i.Index] = true
		if i.Index != k.index || i.Flags&net.FlagUp != 0 {
			continue
		}
		if err := setLink(i.Name, unix.SIOCSIFFLAGS, unix.IFF_UP); err != nil {
			return k.lost(fmt.Errorf("the device %s, by which segments come, was set down: %w", i.Name, err))
		}
		err = fmt.Errorf("the device %s, by which segments come, was set down: it is up again", i.Name)
	}
	if !there[k.index] {
		return k.lost(fmt.Errorf("the device %s, by which segments come, was taken away", k.name))
	}

	// The kernel has one lock for all that is done to its interfaces, and others may have it for long: what is asked of it goes without k.mu.
	k.mu.Lock()
	if k.closed {
		k.mu.Unlock()
		return nil
	}
	takes, cloneErr := k.takes.Clone() // this one is not closed meanwhile
	links := len(k.links)
	var fresh []net.Interface
	for _, i := range all {
		if i.Flags&net.FlagLoopback == 0 && i.Index != k.index && k.links[i.Index] == nil && !k.failed[i.Index] && links+len(fresh) < maxInterfaces {
			fresh = append(fresh, i)
		}
	}
	var gone []link.Link
	for index, l := range k.links {
		if !there[index] {
			gone = append(gone, l)
			delete(k.links, index)
		}
	}
	maps.DeleteFunc(k.failed, func(index int, _ bool) bool { return !there[index] })
	k.mu.Unlock()

	for _, l := range gone {
		l.Close()
	}
	if cloneErr != nil {
		return fmt.Errorf("hold the program of eBPF: %w", cloneErr)
	}
	defer takes.Close()
	for _, i := range fresh {
		l, attachErr := link.AttachTCX(link.TCXOptions{Interface: i.Index, Program: takes, Attach: ebpf.AttachTCXIngress})
		if attachErr != nil {
			err = fmt.Errorf("attach to %s: %w", i.Name, attachErr)
		}
		if !k.attached(i.Index, l) {
			return nil
		}
	}
	return err
}

// lost ends all for a reason, unless it has been ended, which is the reason then.
func (k *kernel) lost(err error) error {
	k.mu.RLock()
	closed := k.closed
	k.mu.RUnlock()
	if closed {
		return nil
	}
	k.close()
	return err
}

// attached takes note of the link to an interface, or that it takes none (nil), unless it is too late.
func (k *kernel) attached(index int, l link.Link) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.closed && l != nil:
		l.Close()
	case l == nil:
		k.failed[index] = true
	default:
		k.links[index] = l
	}
	return !k.closed
}

// watch sets the addresses whose segments are looked at, and the doors: of an address that has some, what comes by other ports is not.
func (k *kernel) watch(addresses []netip.Addr, doors []netip.AddrPort) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil
	}
	open := map[netip.AddrPort]bool{}
	if len(doors) <= maxDoors {
		for _, d := range doors {
			open[d] = true
		}
	}
	wanted := map[netip.Addr]byte{}
	for _, a := range addresses[:min(len(addresses), maxAddresses)] {
		wanted[a] = anyPort
	}
	for d := range open {
		if a := d.Addr(); wanted[a] != 0 {
			wanted[a] = doorsOnly
		} else {
			delete(open, d)
		}
	}
	return k.lookAt(wanted, open, k.maps.Addresses, k.maps.Doors)
}

// keys are a map of the kernel's.
type keys interface {
	Put(key, value any) error
	Delete(key any) error
}

// lookAt has the kernel's maps be what is wanted. What it does not do is named in order, so that the same failure is told with the same words.
func (k *kernel) lookAt(wanted map[netip.Addr]byte, open map[netip.AddrPort]bool, addresses, doors keys) error {
	// First goes what leaves room. Doors change while no address that stays depends on it: before one has doors only, and after one has not.
	for _, a := range inOrder(k.looked, netip.Addr.Compare, func(a netip.Addr) bool { return wanted[a] == 0 }) {
		b := a.As16()
		if err := addresses.Delete(b[:]); err != nil {
			return fmt.Errorf("forget %v: %w", a, err)
		}
		delete(k.looked, a)
	}
	put := func(by byte) error {
		for _, a := range inOrder(wanted, netip.Addr.Compare, func(a netip.Addr) bool { return wanted[a] == by && k.looked[a] != by }) {
			b := a.As16()
			if err := addresses.Put(b[:], []byte{by}); err != nil {
				return fmt.Errorf("look at what comes to %v: %w", a, err)
			}
			k.looked[a] = by
		}
		return nil
	}
	if err := put(anyPort); err != nil {
		return err
	}
	for _, d := range inOrder(k.doors, netip.AddrPort.Compare, func(d netip.AddrPort) bool { return !open[d] }) {
		key := doorOf(d)
		if err := doors.Delete(key[:]); err != nil {
			return fmt.Errorf("forget %v: %w", d, err)
		}
		delete(k.doors, d)
	}
	for _, d := range inOrder(open, netip.AddrPort.Compare, func(d netip.AddrPort) bool { return !k.doors[d] }) {
		key := doorOf(d)
		if err := doors.Put(key[:], []byte{1}); err != nil {
			return fmt.Errorf("look at what comes to %v: %w", d, err)
		}
		k.doors[d] = true
	}
	return put(doorsOnly)
}

// inOrder are those keys of a map that are asked for.
func inOrder[K comparable, V any](of map[K]V, compare func(K, K) int, asked func(K) bool) (all []K) {
	for key := range of {
		if asked(key) {
			all = append(all, key)
		}
	}
	slices.SortFunc(all, compare)
	return all
}

// read reads one packet that has no socket here.
func (k *kernel) read(b []byte) (int, error) { return k.device.Read(b) }

// know says whether a flow is known to be another node's, whose segments come without a bound.
func (k *kernel) know(f Flow, known bool) {
	key := keyOf(f)
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.closed {
		return
	}
	if known {
		_ = k.maps.Flows.Put(key[:], []byte{1}) // a flow that does not fit goes within the budget
		return
	}
	_ = k.maps.Flows.Delete(key[:])
}

// has says whether a socket of this machine has the flow: the program that is at the interfaces looks, so both mean the same.
func (k *kernel) has(f Flow) bool {
	client, server := f.Client.Addr(), f.Server.Addr()
	b := make([]byte, 14, 14+40+20) // Ethernet
	if client.Is4() {
		b[12], b[13] = 0x08, 0x00
		b = append(b, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, protocolTCP, 0, 0)
	} else {
		b[12], b[13] = 0x86, 0xdd
		b = append(b, 0x60, 0, 0, 0, 0, 20, protocolTCP, 64)
	}
	b = append(append(b, client.AsSlice()...), server.AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, f.Client.Port())
	b = binary.BigEndian.AppendUint16(b, f.Server.Port())
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 0, 0, 0, 0, 0, 0) // ACK
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.closed {
		return false
	}
	found, err := k.finds.Run(&ebpf.RunOptions{Data: b})
	return err == nil && found == 1
}

// inject has the kernel take a packet as one that has come. It is sent to an address that is this machine's: so it goes by the loopback device, and no filter asks for the
// way back to its source. Its hops are over: where the address is no more this machine's the packet ends at the next router, and cannot go round.
func (k *kernel) inject(s segment) error {
	fd := k.raw.four
	var to unix.Sockaddr
	if server := s.flow.Server.Addr(); server.Is4() {
		s.raw[8] = 1 // the kernel makes the checksum anew
		to = &unix.SockaddrInet4{Addr: server.As4()}
	} else {
		s.raw[7] = 1
		fd, to = k.raw.six, &unix.SockaddrInet6{Addr: server.As16()}
	}
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.closed {
		return net.ErrClosed
	}
	if err := unix.Sendto(fd, s.raw, unix.MSG_DONTWAIT, to); err != nil {
		return fmt.Errorf("send to %v: %w", s.flow.Server.Addr(), err)
	}
	return nil
}

// taken is how many strays were sent to the device, and over how many came beyond the budget.
func (k *kernel) taken() (taken, over uint64) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.closed {
		return 0, 0
	}
	var values [counts]uint64
	for i := range values {
		_ = k.maps.Counts.Lookup(uint32(i), &values[i]) // there is one
	}
	return values[countTaken], values[countOver]
}

func (k *kernel) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return
	}
	k.closed = true
	for _, l := range k.links {
		l.Close()
	}
	for _, p := range []*ebpf.Program{k.takes, k.finds} {
		if p != nil {
			p.Close()
		}
	}
	for _, m := range []*ebpf.Map{k.maps.Addresses, k.maps.Doors, k.maps.Flows, k.maps.Syns, k.maps.Budget, k.maps.Counts} {
		if m != nil {
			m.Close()
		}
	}
	if k.device != nil {
		k.device.Close()
	}
	for _, fd := range []int{k.raw.four, k.raw.six} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}
