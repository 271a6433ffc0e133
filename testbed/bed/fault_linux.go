package bed

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/perigee-net/perigee/testbed/netns"
	"github.com/perigee-net/perigee/testbed/wan"
)

// faultTime bounds how long a fault waits for another change of the same bed.
const faultTime = 30 * time.Second

// Start starts the program of a host or router that has ended, and connects a machine that had crashed. It does not wait
// until the program serves.
func (b *Bed) Start(ctx context.Context, host string) error {
	h, err := b.machine(host)
	if err != nil {
		return err
	}
	list, err := programs(b.name, host)
	if err != nil {
		return err
	}
	if len(list) > 0 {
		return fmt.Errorf("start %s: it runs", host)
	}
	if err := b.Rejoin(host); err != nil {
		return err
	}
	if h.Kind == "" {
		s, _ := b.World().Site(h.Site)
		return b.startRouter(s)
	}
	if h.Kind == wan.Node {
		return b.runNode(ctx, h)
	}
	argv, err := b.program(h)
	if err != nil {
		return err
	}
	if argv == nil {
		return fmt.Errorf("start %s: it has no program", host)
	}
	return b.run(host, argv)
}

// Kill kills the program of a host or router (SIGKILL), and waits until it is gone. Its machine goes on: the kernel closes
// the program's connections.
func (b *Bed) Kill(host string) error {
	return b.finish(context.Background(), host, "kill", unix.SIGKILL, killTime)
}

// killTime is more than the kernel takes to end a process.
const killTime = 10 * time.Second

// Stop tells the program of a host or router to end (SIGTERM), and waits until it has. One that is paused goes on for it.
func (b *Bed) Stop(ctx context.Context, host string) error {
	if err := b.hear(host, "stop", unix.SIGTERM); err != nil {
		return err
	}
	if err := b.hear(host, "stop", unix.SIGCONT); err != nil && !errors.Is(err, errNoProgram) {
		return err
	}
	return awaitEnd(ctx, b.name, host)
}

// Crash loses a machine: from one moment to the next nothing comes from it any more, and then it is found dead by nobody.
// No connection is closed. Start brings it back.
func (b *Bed) Crash(host string) error {
	h, err := b.machine(host)
	if err != nil {
		return err
	}
	if h.Kind == "" {
		return fmt.Errorf("crash %s: it is a router: cut its site off", host)
	}
	if err := b.CutOff(host); err != nil {
		return err
	}
	// The router's rules let pass what is for the router itself, such as the end of a BGP session.
	n, err := b.space(host)
	if err != nil {
		return err
	}
	if err := n.Blackhole(netip.Addr{}, netip.Addr{}); err != nil {
		return err
	}
	if err := b.Kill(host); err != nil && !errors.Is(err, errNoProgram) {
		return err
	}
	return nil
}

// Pause stops the program of a host or router in its tracks (SIGSTOP); Resume lets it go on.
func (b *Bed) Pause(host string) error  { return b.hear(host, "pause", unix.SIGSTOP) }
func (b *Bed) Resume(host string) error { return b.hear(host, "resume", unix.SIGCONT) }

var errNoProgram = errors.New("no program runs on it")

// hear sends a signal to the program of a host.
func (b *Bed) hear(host, act string, s unix.Signal) error {
	if _, err := b.machine(host); err != nil {
		return err
	}
	heard, err := signal(b.name, host, s)
	if err == nil && heard == 0 {
		err = errNoProgram
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", act, host, err)
	}
	return nil
}

func (b *Bed) finish(ctx context.Context, host, act string, s unix.Signal, most time.Duration) error {
	if err := b.hear(host, act, s); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	return awaitEnd(ctx, b.name, host)
}

// Cut loses everything that two hosts send each other, or that goes by the link of two sites. In the first case anycast
// addresses are not cut: they are no host's. In the second, routing leads around the link when it has noticed.
func (b *Bed) Cut(one, other string) error {
	return b.breakIt(one, other, fault{one, other}, fault{other, one})
}

// CutOneWay is Cut of one direction.
func (b *Bed) CutOneWay(from, to string) error { return b.breakIt(from, to, fault{from, to}) }

// Heal takes back Cut and CutOneWay.
func (b *Bed) Heal(one, other string) error {
	if err := pair(b.World(), one, other); err != nil {
		return err
	}
	return b.setFaults(func(f faults) faults { return f.without(fault{one, other}, fault{other, one}) })
}

func (b *Bed) breakIt(one, other string, broken ...fault) error {
	if err := pair(b.World(), one, other); err != nil {
		return err
	}
	return b.setFaults(func(f faults) faults { return f.with(broken...) })
}

// CutOff loses everything that a host sends or is sent, or all links of a site; its programs run on.
func (b *Bed) CutOff(name string) error {
	w := b.World()
	_, host := w.Host(name)
	if _, site := w.Site(name); !host && !site {
		return unknown(w, name)
	}
	return b.setFaults(func(f faults) faults { return f.with(fault{A: name}) })
}

// Rejoin takes back CutOff. It is no error if there was none.
func (b *Bed) Rejoin(name string) error {
	if err := b.setFaults(func(f faults) faults { return f.without(fault{A: name}) }); err != nil {
		return err
	}
	if _, host := b.host(name); !host {
		return nil
	}
	n, err := b.space(name)
	if err != nil {
		return err
	}
	return n.Unblackhole(netip.Addr{}, netip.Addr{})
}

// HealAll takes back all cuts, those of links, hosts and sites. What was killed stays so.
func (b *Bed) HealAll() error {
	b.reload()
	broken := b.now().Faults
	for _, f := range broken {
		if f.B == "" {
			if err := b.Rejoin(f.A); err != nil {
				return err
			}
		}
	}
	return b.setFaults(func(faults) faults { return nil })
}

// setFaults changes what is broken, and makes it so: links by their silence, hosts by rules in the routers.
func (b *Bed) setFaults(to func(faults) faults) error {
	ctx, cancel := context.WithTimeout(context.Background(), faultTime)
	defer cancel()
	return b.change(ctx, func(s *state) error {
		was, is := s.Faults, to(s.Faults)
		for _, l := range s.World.Links {
			ab, ba := is.silent(l)
			if wasAB, wasBA := was.silent(l); ab != wasAB || ba != wasBA {
				if err := b.setSilence(l, ab, ba); err != nil {
					return err
				}
			}
		}
		before, after := was.holes(s.World), is.holes(s.World)
		for _, h := range before {
			if !slices.Contains(after, h) {
				if err := b.hole(h, false); err != nil {
					return err
				}
			}
		}
		for _, h := range after {
			if !slices.Contains(before, h) {
				if err := b.hole(h, true); err != nil {
					return err
				}
			}
		}
		s.Faults = is
		return nil
	})
}

func (b *Bed) hole(h hole, on bool) error {
	n, err := b.space("router-" + h.site)
	if err != nil {
		return err
	}
	if on {
		return n.Blackhole(h.from, h.to)
	}
	return n.Unblackhole(h.from, h.to)
}

// setSilence makes each direction of a link carry, or lose everything.
func (b *Bed) setSilence(l wan.Link, ab, ba bool) error {
	if b.now().WAN == Userspace {
		p, err := b.pumpClient()
		if err != nil {
			return err
		}
		return p.Down(linkName(l), ab, ba)
	}
	lossy := func(p wan.Path, silent bool) wan.Path {
		if silent {
			p.Loss = 1
		}
		return p
	}
	return b.netem("router-"+l.A, wanDevice+l.B, "router-"+l.B, wanDevice+l.A, lossy(l.AB, ab), lossy(l.BA, ba))
}

func (b *Bed) netem(hostA, deviceA, hostB, deviceB string, ab, ba wan.Path) error {
	a, err := b.space(hostA)
	if err != nil {
		return err
	}
	z, err := b.space(hostB)
	if err != nil {
		return err
	}
	return errors.Join(a.Netem(deviceA, ab), z.Netem(deviceB, ba))
}

// SetLink changes the link of two sites: ab is the direction from one to the other, ba the way back, nil leaves one as it is.
// What is under way keeps its time, and what follows waits behind it. Routing keeps to the cost that the link was built with.
func (b *Bed) SetLink(one, other string, ab, ba *wan.Path) error {
	for _, p := range []*wan.Path{ab, ba} {
		if p != nil {
			if err := p.Validate(); err != nil {
				return fmt.Errorf("link of %s and %s: %w", one, other, err)
			}
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), faultTime)
	defer cancel()
	return b.change(ctx, func(s *state) error {
		l, ok := s.World.Link(one, other)
		if !ok {
			return fmt.Errorf("%s and %s: want two sites", one, other)
		}
		if l.A != one {
			ab, ba = ba, ab
		}
		if !slices.ContainsFunc(s.Built, func(o wan.Link) bool { return o.Number == l.Number }) {
			s.Built = append(s.Built, *l)
		}
		if ab != nil {
			l.AB = *ab
		}
		if ba != nil {
			l.BA = *ba
		}
		if s.WAN == Userspace {
			p, err := b.pumpClient()
			if err != nil {
				return err
			}
			return p.Set(linkName(*l), ab, ba)
		}
		silentAB, silentBA := s.Faults.silent(*l)
		return b.setSilence(*l, silentAB, silentBA)
	})
}

// LinkPath is how the link of two sites is, from one to the other and back. Whether it is cut is not in it.
func (b *Bed) LinkPath(one, other string) (ab, ba wan.Path, err error) {
	return paths(b.World(), one, other)
}

// BuiltPath is how the link of two sites was built, whatever was made of it since.
func (b *Bed) BuiltPath(one, other string) (ab, ba wan.Path, err error) {
	w := b.World()
	for _, l := range b.now().Built {
		w.Links[l.Number-1] = l
	}
	return paths(w, one, other)
}

func paths(w *wan.World, one, other string) (ab, ba wan.Path, err error) {
	l, ok := w.Link(one, other)
	switch {
	case !ok:
		return ab, ba, fmt.Errorf("%s and %s: want two sites", one, other)
	case l.A == one:
		return l.AB, l.BA, nil
	}
	return l.BA, l.AB, nil
}

// Client is the client at a place, or the client of that name. It is made if it is not there; two that ask at once get the same.
func (b *Bed) Client(ctx context.Context, place string) (wan.Host, error) {
	if h, ok := b.host(place); ok {
		return h, nil
	}
	var h wan.Host
	err := b.change(ctx, func(s *state) error {
		var ok bool
		if h, ok = s.World.Host(place); ok {
			return nil // made while this one waited for the lock
		}
		var err error
		if h, err = s.World.Place(place); err != nil {
			return err
		}
		if h, err = s.World.Add(h); err != nil {
			return err
		}
		return b.addHost(ctx, h)
	})
	return h, err
}

// deleteHost deletes what there is of a host.
func (b *Bed) deleteHost(ctx context.Context, h wan.Host) error {
	b.drop(h.Name)
	if h.Access != nil && b.now().WAN == Userspace {
		p, err := b.pumpClient()
		if err != nil {
			return err
		}
		if stats, err := p.Stats(); err != nil {
			return err
		} else if _, there := stats[h.Name]; there {
			if err := p.Remove(h.Name); err != nil {
				return err
			}
		}
	}
	if err := netns.Remove(ctx, space(b.name, h.Name)); err != nil {
		return err
	}
	return os.RemoveAll(b.at(h.Name))
}
