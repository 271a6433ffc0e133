//go:build linux

package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/node/api"
	"github.com/perigee-net/perigee/testbed/netns"
	"github.com/perigee-net/perigee/testbed/pump"
	"github.com/perigee-net/perigee/testbed/wan"
	"golang.org/x/sys/unix"
)

// The link of an ocean: what it carries, and how much waits before it.
const (
	oceanRate  = 300_000_000 // bits a second
	oceanQueue = 2500        // packets: 100 ms of them
	oceanMost  = 32 << 20    // bytes of a window of TCP, as a server for long paths has
	oceanLink  = "ocean"
	oceanStart = "perigee-bench-"
	oceanName  = oceanStart + "%d-%s" // of its namespaces: with the process, as folders are
)

var nearAt, farAt = netip.MustParsePrefix("10.98.0.1/24"), netip.MustParsePrefix("10.98.0.2/24")

// ocean is two network namespaces that a pump joins, which is a process of its own: nodes and clients on the near side, their targets on the far one.
type ocean struct {
	near, far *netns.Namespace
	pump      *Process
	link      *pump.Client
	rtt       time.Duration
}

// lacksOcean says why this machine can have none; "": it can.
func lacksOcean() string {
	var all []string
	for _, n := range netns.Missing() {
		all = append(all, n.String())
	}
	known, err := os.ReadFile("/proc/sys/net/ipv4/tcp_available_congestion_control")
	for _, name := range []string{"cubic", "bbr"} {
		if err == nil && !strings.Contains(" "+strings.TrimSpace(string(known))+" ", " "+name+" ") {
			all = append(all, "the kernel's TCP has no "+name+": modprobe tcp_"+name)
		}
	}
	return strings.Join(all, "; ")
}

// openOcean makes an ocean for a row: what the stage says of where servers stand is of it from then on.
func openOcean(ctx context.Context, s *Stage, rtt time.Duration, loss float64) (over func(), err error) {
	o := &ocean{rtt: rtt}
	over = func() {
		if o.link != nil {
			o.link.Close()
		}
		if o.pump != nil {
			o.pump.Stop()
		}
		for _, n := range []*netns.Namespace{o.near, o.far} {
			if n != nil {
				n.Delete(context.WithoutCancel(ctx))
			}
		}
	}
	defer func() {
		if err != nil {
			over()
		}
	}()
	if err := clearOceans(ctx); err != nil {
		return nil, err
	}
	if o.near, err = newShore("near"); err != nil {
		return nil, err
	}
	if o.far, err = newShore("far"); err != nil {
		return nil, err
	}
	// All in the folder of the row, whose end is the pump's, too.
	socket, here := filepath.Join(s.Row, "socket"), *s
	here.Dir = filepath.Join(s.Row, "pump")
	if err := os.Mkdir(here.Dir, 0o755); err != nil {
		return nil, err
	}
	if o.pump, err = here.startOn(s.run.Loads, nil, s.Program, "testbed", "pump", "--socket", socket); err != nil {
		return nil, err
	}
	late := time.After(startTime)
	for o.link == nil {
		if o.link, err = pump.Dial(socket); err == nil {
			break
		}
		if failed := o.pump.Failed(); failed != nil {
			return nil, failed
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-late:
			return nil, fmt.Errorf("the pump does not come up: %w", err)
		case <-time.After(again / 10):
		}
	}
	p := wan.Path{Delay: rtt / 2, Loss: loss, Rate: oceanRate, Queue: oceanQueue}
	if err := o.link.Add(oceanLink, pump.Device{Namespace: o.near.Name, Name: "w0"}, pump.Device{Namespace: o.far.Name, Name: "w0"}, p, p); err != nil {
		return nil, err
	}
	for _, shore := range []struct {
		n  *netns.Namespace
		at netip.Prefix
	}{{o.near, nearAt}, {o.far, farAt}} {
		if err := errors.Join(shore.n.AddAddr("w0", shore.at, netip.Addr{}), shore.n.SetQueue("w0", 10_000), shore.n.Up("w0")); err != nil {
			return nil, err
		}
	}
	s.Host, s.Behind, s.in, s.ocean = nearAt.Addr().String(), farAt.Addr().String(), o.near, o
	return over, nil
}

// newShore makes one side of an ocean.
func newShore(name string) (*netns.Namespace, error) {
	n, err := netns.New(fmt.Sprintf(oceanName, os.Getpid(), name))
	if err != nil {
		return nil, err
	}
	for key, value := range map[string]string{
		"net.ipv4.tcp_rmem": fmt.Sprint("4096 131072 ", oceanMost), "net.ipv4.tcp_wmem": fmt.Sprint("4096 131072 ", oceanMost),
		"net.ipv4.tcp_no_metrics_save": "1", // a flow is not to learn from the one before, of another kind
	} {
		err = errors.Join(err, n.Sysctl(key, value))
	}
	if err != nil {
		return nil, errors.Join(err, n.Delete(context.Background()))
	}
	return n, nil
}

// clearOceans removes the namespaces of runs that are no more.
func clearOceans(ctx context.Context) error {
	names, err := netns.Names(oceanStart)
	for _, name := range names {
		pid, side := 0, ""
		if n, _ := fmt.Sscanf(name, oceanName, &pid, &side); n != 2 {
			continue
		}
		if _, alive := stat(pid); !alive {
			err = errors.Join(err, netns.Remove(ctx, name))
		}
	}
	return err
}

// beyond is the stage of what stands on the other side of the ocean; without one, of what stands beside.
func (s Stage) beyond() Stage {
	if s.ocean != nil {
		s.Host, s.in = s.Behind, s.ocean.far
	}
	return s
}

// dial opens a connection of TCP from where the stage's servers are.
func (s Stage) dial(ctx context.Context, address string) (net.Conn, error) {
	if s.in != nil {
		return s.in.Dial(ctx, "tcp4", address)
	}
	return (&net.Dialer{}).DialContext(ctx, "tcp4", address)
}

// What a client of a Vend asks in: how it is to send, then how much.
const (
	vendAsItIs = iota
	vendCUBIC
	vendBBR
)

// vendRequest is what it asks.
func vendRequest(control byte, bytes int64) []byte {
	return binary.BigEndian.AppendUint64([]byte{control}, uint64(bytes))
}

// congestionOf names what TCP is told to send by.
func congestionOf(control byte) string { return []string{"", "cubic", "bbr"}[min(control, vendBBR)] }

// congest has a connection of TCP send by a congestion control; "": as it is.
func congest(c net.Conn, name string) error {
	if name == "" {
		return nil
	}
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) { set = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, name) })
	return errors.Join(err, set)
}

// Vend is a target of flows: it sends each as many bytes as it asks for, by the congestion control that it asks for, and ends it. It returns when the context
// ends.
func Vend(ctx context.Context, address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	return vend(ctx, l)
}

// vend is Vend where l listens, which it closes.
func vend(ctx context.Context, l net.Listener) error {
	return accepted(ctx, l, func(c net.Conn) {
		go func() {
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			request := make([]byte, len(vendRequest(0, 0)))
			if _, err := io.ReadFull(c, request); err != nil || congest(c, congestionOf(request[0])) != nil {
				return
			}
			for left := int64(binary.BigEndian.Uint64(request[1:])); left > 0; {
				n, err := c.Write(pattern[:min(left, int64(len(pattern)))])
				if err != nil {
					return
				}
				left -= int64(n)
			}
		}()
	})
}

// crossing is a way over an ocean.
type crossing struct {
	control byte                            // how the target is to send, and who asks it
	direct  bool                            // the target itself is asked
	renew   func(ctx context.Context) error // has the link be a new one; nil: each flow's connection is new
}

// Took is how long something took.
type Took struct {
	Seconds float64 `json:"seconds"`
	Over    bool    `json:"over,omitempty"` // longer: it was broken off
}

// ask has a flow carry so many bytes, and says how long it took to the first and to the last, from dialling on. The error is of what came, or of the context.
func (x *crossing) ask(ctx context.Context, s Stage, bytesOf int64, patience time.Duration) (first, last Took, err error) {
	address := s.at(s.Port)
	if x.direct {
		address = net.JoinHostPort(s.Behind, fmt.Sprint(s.TLS))
	}
	whole, began := ctx, time.Now()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	over := Took{patience.Seconds(), true}
	first = over
	c, err := s.dial(ctx, address)
	if err != nil {
		if whole.Err() == nil && ctx.Err() != nil {
			return over, over, nil
		}
		return first, over, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	if err := congest(c, congestionOf(x.control)); err != nil {
		return first, over, err
	}
	if _, err = c.Write(vendRequest(x.control, bytesOf)); err == nil {
		room := make([]byte, streamRoom)
		for came := int64(0); err == nil; {
			var n int
			n, err = c.Read(room)
			if n > 0 && came == 0 {
				first = Took{Seconds: time.Since(began).Seconds()}
			}
			if at := came % int64(len(pattern)); n > 0 && !bytes.Equal(room[:1], pattern[at:at+1]) {
				return first, over, errStreamed
			}
			if came += int64(n); err == io.EOF && came == bytesOf {
				return first, Took{Seconds: time.Since(began).Seconds()}, nil
			}
			if err == io.EOF {
				err = fmt.Errorf("%d of %d bytes came", came, bytesOf)
			}
		}
	}
	if whole.Err() == nil && errors.Is(err, os.ErrDeadlineExceeded) {
		c.(*net.TCPConn).SetLinger(0) // what is under way is of no use any more
		return first, over, nil
	}
	return first, over, err
}

// Sizes of the flows of an ocean, and what becomes of the last where samples are of a second, which shows that the row works: then the link is renewed once.
const (
	oceanSmall, oceanMiddle, oceanLarge = 100_000, 1_000_000, 50_000_000
	oceanQuick                          = 2_000_000

	// oceanPatience is how many times its duration a sample waits for one flow, but not longer than oceanLongest, and oceanTakes how long it may take in
	// all, renewing of links included.
	oceanPatience = 5
	oceanLongest  = time.Minute
	oceanTakes    = 10 * time.Minute

	// oceanWarm is how long a link is left alone that has carried something for the first time: then it is warmed.
	oceanWarm = 3 * time.Second
)

// cross takes a sample of a way: flows of all sizes by a link that has carried something, then each by a new one.
func cross(ctx context.Context, s Stage, d time.Duration) (m Measured, err error) {
	x, patience, large := s.proc.crosses, min(oceanPatience*d, oceanLongest), int64(oceanLarge)
	quick := d < 2*time.Second
	if quick {
		large = oceanQuick
	}
	flow := func(bytes int64, number uint64) (first, last Took, err error) {
		if err := pause(ctx, s.ocean.rtt+again); err != nil { // what is left of the flow before
			return first, last, err
		}
		if err := s.ocean.link.Seed(oceanLink, s.Seed+number); err != nil {
			return first, last, err
		}
		first, last, err = x.ask(ctx, s, bytes, patience)
		m.Count++
		m.Value += last.Seconds
		return first, last, err
	}
	course := func(number uint64, renew func(context.Context) error) (of []Took, err error) {
		for i, bytes := range []int64{oceanSmall, oceanMiddle, large} {
			if renew != nil && (i == 0 || !quick) {
				if err := renew(ctx); err != nil {
					return nil, err
				}
			}
			first, last, err := flow(bytes, number+uint64(i))
			if err != nil {
				link := "a link that has carried something"
				if renew != nil {
					link = "a new link"
				}
				return nil, fmt.Errorf("%d bytes by %s: %w", bytes, link, err)
			}
			if i == 0 {
				of = append(of, first)
			}
			of = append(of, last)
		}
		return of, nil
	}
	if x.renew != nil { // the last sample has left a new link
		if _, _, err = x.ask(ctx, s, oceanSmall, patience); err == nil {
			err = pause(ctx, oceanWarm+4*s.ocean.rtt)
		}
	}
	var used, fresh []Took
	if err == nil {
		used, err = course(0, nil)
	}
	if fresh = used; err == nil && x.renew != nil {
		fresh, err = course(3, x.renew)
	}
	if m.Parts = append(used, fresh...); err != nil && ctx.Err() == nil {
		m.Failed, err = err.Error(), nil
	}
	return m, err
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// vendor starts the target on the far side.
func vendor(s Stage) (*Process, error) {
	far := s.beyond()
	if err := os.MkdirAll(filepath.Join(s.Dir, "target"), 0o755); err != nil {
		return nil, err
	}
	far.Dir = filepath.Join(s.Dir, "target")
	return far.Start(nil, s.Program, "bench", "vend", far.at(s.TLS))
}

// direct is TCP without anybody in between.
func direct(control byte) Peer {
	name := congestionOf(control)
	return Peer{Name: "go-direct-" + name, Note: "no node: TCP from the client to the target, " + name + " at both ends, without TLS", Start: func(_ context.Context, s Stage) (*Process, error) {
		p, err := vendor(s)
		if err == nil {
			p.crosses = &crossing{control: control, direct: true}
		}
		return p, err
	}}
}

// oursOverOcean is two nodes, one on each side. Its link is a new one once the far node was started again.
func oursOverOcean() Peer {
	twice := oursTwice("TCP", "auto")
	return Peer{Name: oursName, Start: func(ctx context.Context, s Stage) (*Process, error) {
		p, err := twice.Start(ctx, s)
		if err != nil {
			return nil, err
		}
		target, err := vendor(s)
		if err != nil {
			p.Stop()
			return nil, err
		}
		p.beside = append(p.beside, target)
		p.crosses = &crossing{renew: func(ctx context.Context) error { return renewLink(ctx, s, p) }}
		return p, nil
	}}
}

// renewLink starts the far node again, and waits until the near one has a link to it, and it runs what it is to. No flow is dialled meanwhile, for a link that
// has carried one is no new one.
func renewLink(ctx context.Context, s Stage, p *Process) error {
	near, err := api.NewClient(filepath.Join(s.Dir, "data", api.Socket), api.Options{})
	if err != nil {
		return err
	}
	over, err := api.NewClient(filepath.Join(s.Dir, secondData, api.Socket), api.Options{})
	if err != nil {
		return err
	}
	status, err := near.Status(ctx)
	if err != nil {
		return err
	}
	before, err := linksOf(p)
	if err != nil {
		return err
	}
	far := p.beside[0]
	far.Stop()
	if p.beside[0], err = s.beyond().Start(nil, far.cmd.Args...); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startTime, errors.New("no new link came up"))
	defer cancel()
	for {
		now, err := linksOf(p)
		if err != nil {
			return err
		}
		// Until it is up it has no socket; and until the near node knows that it is back it is passed over, for it had said that it leaves.
		if is, err := over.Status(ctx); err == nil && now > before && is.Running >= status.Revision {
			if known, err := near.Status(ctx); err == nil && slices.ContainsFunc(known.Members, back) {
				return nil
			}
		}
		if err := pause(ctx, again/4); err != nil {
			return err
		}
	}
}

// back says that a member is the far node, and takes flows.
func back(m api.MemberStatus) bool {
	return m.Name == "bench2" && !m.Leaving && slices.Contains(m.Roles, view.Origin)
}

// linksOf is how often the near node said that its link came up. The far one has a link of its own, and the same log.
func linksOf(p *Process) (int, error) {
	log, err := os.ReadFile(p.log)
	return bytes.Count(log, []byte(`msg="link up" node=bench1`)), err
}
