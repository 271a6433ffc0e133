package bed

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/perigee-net/perigee/node/api"
	"github.com/perigee-net/perigee/testbed/gate"
	"github.com/perigee-net/perigee/testbed/netns"
	"github.com/perigee-net/perigee/testbed/procs"
	"github.com/perigee-net/perigee/testbed/wan"
)

// perigee is the perigee binary that all tests of this package use, built once.
var perigee = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "perigee-bed-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "perigee")
	return path, procs.Build(context.Background(), path)
})

func TestMain(m *testing.M) {
	if name := os.Getenv("PERIGEE_BED_DOWN"); name != "" {
		fmt.Println(Down(context.Background(), name, nil))
		os.Exit(0)
	}
	if name := os.Getenv("PERIGEE_BED_UP"); name != "" { // the run that is killed
		w, err := world(name)
		if err == nil {
			_, err = Up(context.Background(), Config{World: w, Program: os.Getenv("PERIGEE_BED_PROGRAM"), Apply: true, WAN: Userspace})
		}
		fmt.Println(err)
		os.Exit(1)
	}
	flag.Parse()
	flag.Set("test.parallel", "8") // they do little but wait for routers
	code := m.Run()
	if os.Getenv("PERIGEE_BED_BUILT") != "" {
		os.RemoveAll(os.Getenv("PERIGEE_BED_BUILT"))
	}
	os.Exit(code)
}

// lab skips a test where nobody asked for a bed, or this machine cannot have one, and fails it where it must.
func lab(t *testing.T, w *wan.World) string {
	t.Helper()
	gate.Wanted(t)
	if lacks := Missing(w); len(lacks) > 0 {
		gate.Lacks(t, lack(lacks).Error())
	}
	path, err := perigee()
	if err != nil {
		t.Fatal(err)
	}
	os.Setenv("PERIGEE_BED_BUILT", filepath.Dir(path))
	return path
}

// mine is a name for a bed of this test run.
func mine(t *testing.T, word string) string {
	t.Helper()
	return fmt.Sprintf("pgt-bed-%d%s", os.Getpid(), word)
}

// world is three sites with a name of its own.
func world(name string) (*wan.World, error) {
	w, err := wan.BuiltIn("three")
	if err != nil {
		return nil, err
	}
	w.Name = name
	return w, nil
}

// empty is a world of two sites without nodes, quickly made.
func empty(t *testing.T, name string) *wan.World {
	t.Helper()
	w, err := wan.Decode("empty.yaml", []byte(`
name: empty
nodesPerSite: 0
targetsPerSite: 1
sites:
  - {name: icn, region: ap-northeast-2}
  - {name: fra, region: eu-central-1}
links:
  - {between: [icn, fra], rtt: 20ms}
`), nil)
	if err != nil {
		t.Fatal(err)
	}
	w.Name = name
	return w
}

func within(t *testing.T, most time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), most)
	t.Cleanup(cancel)
	return ctx
}

// up builds a bed that is gone after the test.
func up(t *testing.T, c Config) *Bed {
	t.Helper()
	c.Program = lab(t, c.World)
	c.Say = func(line string) { t.Log(line) }
	t.Cleanup(func() { gone(t, c.World.Name, c.Dir) })
	t.Cleanup(func() {
		if err := Down(context.Background(), c.World.Name, nil); err != nil {
			t.Error(err)
		}
	})
	b, err := Up(within(t, 2*time.Minute), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// gone checks that nothing of a bed is left.
func gone(t *testing.T, name, dir string) {
	t.Helper()
	if names, err := netns.Names(prefix(name)); err != nil || len(names) > 0 {
		t.Errorf("namespaces are left: %v %v", names, err)
	}
	for _, at := range []string{filepath.Join(Root, name), filepath.Join(Root, name+".lock"), dir} {
		if _, err := os.Lstat(at); at != "" && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", at, err)
		}
	}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		line, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if strings.Contains(string(line), "/"+name+"/") || strings.Contains(string(line), prefix(name)) {
			t.Errorf("process %s is left: %q", e.Name(), line)
		}
	}
}

// soon waits until something is so, and tells how long that took.
func soon(t *testing.T, most time.Duration, what string, is func() error) time.Duration {
	t.Helper()
	began := time.Now()
	for {
		err := is()
		took := time.Since(began)
		if err == nil {
			t.Logf("%s after %v", what, took.Round(10*time.Millisecond))
			return took
		}
		if took > most {
			t.Fatalf("%s: not within %v: %v", what, most, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// leads says that routing leads an address from one to another, or to one of several.
func leads(b *Bed, from string, to netip.Addr, want ...string) func() error {
	return func() error {
		got, err := b.Reaches(context.Background(), from, to)
		if err == nil && !slices.Contains(want, got) {
			err = fmt.Errorf("%s is led to %s, not %s", from, got, want)
		}
		return err
	}
}

// ping is a round trip from a host, of the quickest of n.
func ping(b *Bed, from string, to netip.Addr, n int) (time.Duration, error) {
	c, err := b.Command(context.Background(), from, "ping", "-n", "-q", "-i", "0.01", "-W", "1", "-c", fmt.Sprint(n), to.String())
	if err != nil {
		return 0, err
	}
	out, err := c.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("ping from %s to %s: %w: %s", from, to, err, out)
	}
	_, text, _ := strings.Cut(string(out), "mdev = ")
	text, _, _ = strings.Cut(text, "/")
	return time.ParseDuration(text + "ms")
}

func pings(b *Bed, from string, to netip.Addr) func() error {
	return func() error { _, err := ping(b, from, to, 1); return err }
}

func silent(b *Bed, from string, to netip.Addr) func() error {
	return func() error {
		if rtt, err := ping(b, from, to, 1); err == nil {
			return fmt.Errorf("%s reaches %s in %v", from, to, rtt)
		}
		return nil
	}
}

// TestNodesAndHostsBreakAndComeBack has one bed for all that is done to it, in order.
func TestNodesAndHostsBreakAndComeBack(t *testing.T) {
	t.Parallel()
	w, err := world(mine(t, ""))
	if err != nil {
		t.Fatal(err)
	}
	b := up(t, Config{World: w, Apply: true, Drain: time.Second})
	if b.Info().Took > 15*time.Second {
		t.Logf("it took %v to come up, more than 15 s", b.Info().Took)
	}
	echo, echo6 := anycast(w, netip.Addr.Is4), anycast(w, netip.Addr.Is6)
	host := func(name string) wan.Host { h, _ := w.Host(name); return h }
	client := func(place string) wan.Host {
		t.Helper()
		h, err := b.Client(within(t, 10*time.Second), place)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	do := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	t.Run("round trips are those of the matrix", func(t *testing.T) {
		client("lagos")
		for _, p := range [][2]string{{"icn1", "fra1"}, {"icn1", "iad-a"}, {"fra1", "iad1"}, {"icn1", "icn-a"}, {"lagos", "fra1"}, {"lagos", "icn1"}} {
			for _, family := range []func(wan.Host) netip.Addr{func(h wan.Host) netip.Addr { return h.V4 }, func(h wan.Host) netip.Addr { return h.V6 }} {
				got, err := ping(b, p[0], family(host(p[1])), 3)
				want := b.World().RTT(p[0], p[1])
				if err != nil || got < want || got > want+want/20+5*time.Millisecond {
					t.Errorf("%s to %s by %s: %v, want %v: %v", p[0], p[1], family(host(p[1])), got, want, err)
				}
			}
		}
	})

	t.Run("a client is made once, however many ask at once", func(t *testing.T) {
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				o, err := Open(b.Info().Name) // as another process does
				if err != nil {
					t.Error(err)
					return
				}
				defer o.Close()
				if h, err := o.Client(t.Context(), "tokyo"); err != nil || h.Site != "icn" {
					t.Errorf("%+v %v", h, err)
				}
			})
		}
		all.Wait()
		if _, err := b.Client(t.Context(), "atlantis"); err == nil {
			t.Error("a client at a place that is not known")
		}
	})

	t.Run("an anycast address leads to the nearest POP", func(t *testing.T) {
		for from, want := range map[string]string{"icn": "icn1", "fra": "fra1", "iad": "iad1", "lagos": "fra1", "tokyo": "icn1"} {
			soon(t, 10*time.Second, from+" is led to "+want, leads(b, from, echo, want))
			soon(t, 10*time.Second, from+" is led to "+want+" by IPv6", leads(b, from, echo6, want))
		}
	})

	t.Run("a flow to the anycast address ends in the region that is nearest", func(t *testing.T) {
		for _, a := range []netip.Addr{echo, echo6} {
			conn, err := b.Dial("lagos")(within(t, 5*time.Second), "tcp", netip.AddrPortFrom(a, acceleratorPort).String())
			if err != nil {
				t.Error(err)
				continue
			}
			conn.SetReadDeadline(time.Now().Add(5 * time.Second))
			data := make([]byte, 100)
			if n, err := conn.Read(data); !strings.HasPrefix(string(data[:n]), "eu-central-1 fra-") {
				t.Errorf("%s: %q %v", a, data[:n], err)
			}
			conn.Close()
		}
	})

	t.Run("a lookup walks resolver, root, TLD and authority", func(t *testing.T) {
		steps, err := b.Trace(t.Context(), "lagos", "www.demo.perigee.test", "A")
		do(t, err)
		var roles []string
		for _, s := range steps {
			t.Logf("%-12s %-9s %-9s %8s %s", s.Server, s.Role, s.Address, s.Took.Round(100*time.Microsecond), s.Answer)
			roles = append(roles, s.Role)
		}
		if !slices.Equal(roles, []string{"resolver", "root", "TLD", "authority"}) {
			t.Fatal(roles)
		}
		if want := "A " + host("fra1").V4.String(); !strings.Contains(steps[0].Answer, want) || !strings.Contains(steps[3].Answer, want) {
			t.Errorf("want %s", want)
		}
	})

	t.Run("what a killed node attracted goes to the next", func(t *testing.T) {
		do(t, b.Kill("fra1"))
		soon(t, 2*time.Second, "lagos is led to iad1", leads(b, "lagos", echo, "iad1"))
		if err := b.Kill("fra1"); err == nil {
			t.Error("killed twice")
		}
		do(t, b.Start(t.Context(), "fra1"))
		soon(t, 20*time.Second, "lagos is led to fra1 again", leads(b, "lagos", echo, "fra1"))
	})

	t.Run("what a machine attracted that is lost goes to the next when it has been silent for the hold time, and meanwhile a node joins", func(t *testing.T) {
		do(t, b.Crash("fra1"))
		joined := make(chan error, 1)
		go func() { joined <- b.AddNode(within(t, 30*time.Second), wan.Host{Name: "iad2", Site: "iad"}) }()
		took := soon(t, holdTime+3*time.Second, "lagos is led to Virginia", leads(b, "lagos", echo, "iad1", "iad2"))
		if took < holdTime/2 {
			t.Errorf("only %v: was the session closed?", took)
		}
		do(t, silent(b, "icn1", host("fra1").V4)())
		do(t, <-joined)
		soon(t, 10*time.Second, "iad2 shares what comes to its POP", func() error {
			c, err := b.Command(t.Context(), "router-iad", "ip", "route", "show", echo.String())
			if err != nil {
				return err
			}
			out, err := c.Output()
			if err == nil && strings.Count(string(out), "nexthop") != 2 {
				err = fmt.Errorf("%s", out)
			}
			return err
		})
		if err := b.AddNode(t.Context(), wan.Host{Name: "iad2", Site: "iad"}); err == nil {
			t.Error("it was added twice")
		}
		do(t, b.Start(t.Context(), "fra1"))
		soon(t, 20*time.Second, "lagos is led to fra1 again", leads(b, "lagos", echo, "fra1"))
		do(t, pings(b, "icn1", host("fra1").V4)())
	})

	t.Run("a drained POP is the last to be chosen", func(t *testing.T) {
		node := b.client("icn1")
		_, err := node.Drain(t.Context(), api.DrainRequest{Scope: "pop", Name: "fra1"})
		do(t, err)
		soon(t, 3*time.Second, "lagos is led to Virginia", leads(b, "lagos", echo, "iad1", "iad2"))
		soon(t, 3*time.Second, "so is Frankfurt itself", leads(b, "fra", echo, "iad1", "iad2"))
		_, err = node.Undrain(t.Context(), api.DrainRequest{Scope: "pop", Name: "fra1"})
		do(t, err)
		soon(t, 3*time.Second, "lagos is led to fra1", leads(b, "lagos", echo, "fra1"))
	})

	t.Run("two hosts that are cut do not reach each other, and nobody else is hurt", func(t *testing.T) {
		do(t, b.Cut("lagos", "iad1"))
		do(t, silent(b, "lagos", host("iad1").V4)())
		do(t, silent(b, "lagos", host("iad1").V6)())
		do(t, pings(b, "lagos", host("iad-a").V4)())
		do(t, pings(b, "fra1", host("iad1").V4)())
		if got := b.Info().Faults; !slices.Equal(got, []string{"iad1 and lagos are cut"}) {
			t.Errorf("%q", got)
		}
		do(t, b.Heal("iad1", "lagos"))
		do(t, pings(b, "lagos", host("iad1").V4)())
		do(t, pings(b, "lagos", host("iad1").V6)())
	})

	t.Run("every program can be paused, stopped, killed and started", func(t *testing.T) {
		state := func(host, want string) func() error {
			return func() error {
				all, err := b.Status(t.Context())
				if err != nil {
					return err
				}
				for _, s := range all {
					if s.Host.Name == host && s.State == want {
						return nil
					}
				}
				return fmt.Errorf("%s is not %q", host, want)
			}
		}
		for _, h := range []string{"iad-a", "origin", "faulty", "resolver-iad", "tld", "root", "router-iad", "iad1"} {
			do(t, state(h, "runs")())
			do(t, b.Pause(h))
			soon(t, time.Second, h+" is paused", state(h, "paused"))
			do(t, b.Resume(h))
			soon(t, time.Second, h+" runs", state(h, "runs"))
			do(t, b.Stop(within(t, 20*time.Second), h))
			do(t, state(h, "ended")())
			do(t, b.Start(t.Context(), h))
			do(t, state(h, "runs")())
			if err := b.Start(t.Context(), h); err == nil {
				t.Errorf("%s was started twice", h)
			}
		}
		if err := b.Start(t.Context(), "lagos"); err == nil {
			t.Error("a client has no program")
		}
		if err := b.Kill("lagos"); !errors.Is(err, errNoProgram) {
			t.Error(err)
		}
	})

	t.Run("names that are not there are errors", func(t *testing.T) {
		for what, err := range map[string]error{
			"Kill": b.Kill("nobody"), "Cut": b.Cut("icn1", "nobody"), "a host and a site": b.Cut("icn1", "fra"), "itself": b.Cut("fra", "fra"),
			"CutOff": b.CutOff("nobody"), "Crash of a router": b.Crash("router-icn"), "SetLink": b.SetLink("icn", "nobody", nil, nil), "Stop": b.Stop(t.Context(), "nobody"),
		} {
			if err == nil {
				t.Errorf("%s: no error", what)
			} else {
				t.Log(err)
			}
		}
	})

}

func TestLinksBreakAndHeal(t *testing.T) {
	t.Parallel()
	w, err := world(mine(t, "l"))
	if err != nil {
		t.Fatal(err)
	}
	w.Hosts = slices.DeleteFunc(w.Hosts, func(h wan.Host) bool { return h.Kind == wan.Node })
	b := up(t, Config{World: w})
	host := func(name string) wan.Host { h, _ := w.Host(name); return h }
	do := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	t.Run("a link of which one direction is lost is routed around", func(t *testing.T) {
		do(t, b.CutOneWay("fra", "icn"))
		// Silence is noticed in 1 s, but what changed is told only 5 s after the last change (RFC 2328, MinLSInterval).
		soon(t, 8*time.Second, "a ping goes by Virginia", pings(b, "icn-a", host("fra-a").V4))
		soon(t, 8*time.Second, "so does one by IPv6", pings(b, "icn-a", host("fra-a").V6))
		// Until Seoul has heard of it too, what it sends goes the old way, which is not lost.
		soon(t, 8*time.Second, "both directions go by Virginia", func() error {
			rtt, err := ping(b, "icn-a", host("fra-a").V4, 1)
			if least := w.RTT("icn", "iad") + w.RTT("iad", "fra"); err == nil && rtt < least {
				err = fmt.Errorf("%v, less than %v", rtt, least)
			}
			return err
		})
		do(t, b.Heal("icn", "fra"))
		soon(t, 20*time.Second, "the link is used again", func() error {
			rtt, err := ping(b, "icn-a", host("fra-a").V4, 1)
			if most := w.RTT("icn", "fra") + 20*time.Millisecond; err == nil && rtt > most {
				err = fmt.Errorf("%v, more than %v", rtt, most)
			}
			return err
		})
	})

	t.Run("a site that is cut off reaches itself and nobody else", func(t *testing.T) {
		do(t, b.CutOff("icn"))
		do(t, silent(b, "fra-a", host("icn-a").V4)())
		do(t, pings(b, "icn-b", host("icn-a").V4)())
		soon(t, 4*time.Second, "Virginia has no way to Seoul", func() error {
			if _, err := b.Reaches(t.Context(), "iad", host("icn-a").V4); err == nil {
				return errors.New("it has")
			}
			return nil
		})
		if got := b.Info().Faults; !slices.Equal(got, []string{"icn is cut off"}) {
			t.Errorf("%q", got)
		}
		do(t, b.HealAll())
		soon(t, 20*time.Second, "it is back", pings(b, "fra-a", host("icn-a").V4))
	})

	t.Run("a gray link stays in use", func(t *testing.T) {
		ab, ba, err := b.LinkPath("fra", "iad")
		do(t, err)
		gray, grayBack := ab, ba
		gray.Loss, grayBack.Loss = 0.2, 0.2
		do(t, b.SetLink("fra", "iad", &gray, &grayBack))
		for began := time.Now(); time.Since(began) < 4*time.Second; time.Sleep(50 * time.Millisecond) {
			do(t, leads(b, "fra", host("iad-a").V4, "iad-a")())
			n, err := b.space("router-fra")
			do(t, err)
			if hop, err := n.Lookup(host("iad-a").V4); err != nil || hop.Link != "w-iad" {
				t.Fatalf("%+v %v", hop, err)
			}
		}
		do(t, b.SetLink("fra", "iad", &ab, &ba))
	})

	t.Run("a link can be slow, and be as it was", func(t *testing.T) {
		ab, _, err := b.LinkPath("iad", "fra")
		do(t, err)
		slow := ab
		slow.Delay += 100 * time.Millisecond
		do(t, b.SetLink("iad", "fra", &slow, nil))
		want := w.RTT("iad", "fra")
		if rtt, err := ping(b, "iad-a", host("fra-a").V4, 2); err != nil || rtt < want+100*time.Millisecond {
			t.Errorf("%v, want %v more than %v: %v", rtt, 100*time.Millisecond, want, err)
		}
		if there, back, err := b.LinkPath("iad", "fra"); err != nil || there != slow || back.Delay != want-ab.Delay {
			t.Errorf("%v %v %v", there, back, err)
		}
		do(t, b.SetLink("iad", "fra", &ab, nil))
		soon(t, time.Second, "it is as it was", func() error { // behind what is under way
			rtt, err := ping(b, "iad-a", host("fra-a").V4, 2)
			if err == nil && rtt > want+20*time.Millisecond {
				err = fmt.Errorf("%v, want %v", rtt, want)
			}
			return err
		})
	})

}

func TestTwoBedsStandSideBySide(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "here")
	one, other := up(t, Config{World: empty(t, mine(t, "a"))}), up(t, Config{World: empty(t, mine(t, "b")), Dir: dir, Keep: true})
	for _, b := range []*Bed{one, other} {
		w := b.World()
		h, _ := w.Host("fra-a")
		if rtt, err := ping(b, "icn-a", h.V4, 2); err != nil || rtt < 20*time.Millisecond {
			t.Errorf("%v %v", rtt, err)
		}
	}
	if err := one.CutOff("icn"); err != nil {
		t.Fatal(err)
	}
	h, _ := other.World().Host("fra-a")
	if err := pings(other, "icn-a", h.V4)(); err != nil {
		t.Errorf("the other is hurt: %v", err)
	}
	all, err := List()
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, i := range all {
		if i.Name == one.Info().Name || i.Name == other.Info().Name && i.Dir == dir {
			found++
		}
	}
	if found != 2 {
		t.Errorf("%+v", all)
	}
	if o, err := Open(dir); err != nil || o.Info().Name != other.Info().Name {
		t.Errorf("open by its folder: %v", err)
	}
	if err := Down(t.Context(), dir, nil); err != nil {
		t.Error(err)
	}
	if _, err := Open(other.Info().Name); !errors.Is(err, ErrNone) {
		t.Errorf("it is down: %v", err)
	}
	if log, err := os.ReadFile(filepath.Join(dir, hostsDir, "router-icn", "log")); err != nil || len(log) == 0 {
		t.Errorf("its logs were to be kept: %v", err)
	}
	if err := Down(t.Context(), dir, nil); err != nil {
		t.Errorf("twice: %v", err)
	}
	gone(t, other.Info().Name, dir)
	if err := Down(t.Context(), dir, nil); err != nil {
		t.Errorf("three times: %v", err)
	}

	name := one.Info().Name
	if _, err := Up(t.Context(), Config{World: one.World(), Program: one.now().Program}); !errors.Is(err, ErrUp) {
		t.Errorf("a second one of its name: %v", err)
	}
	if _, err := signal(name, pumpHost, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	soon(t, 2*time.Second, "without its pump it is not whole", func() error {
		if _, err := Open(name); !errors.Is(err, ErrHalf) {
			return fmt.Errorf("%v", err)
		}
		return nil
	})
	release, err := claim(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if err := Down(t.Context(), name, nil); err == nil || !strings.Contains(err.Error(), "is being built or taken down") {
		t.Errorf("while another does: %v", err)
	}
	release()
	if _, err := Up(within(t, time.Minute), Config{World: one.World(), Program: one.now().Program}); err != nil {
		t.Errorf("anew, over what is not whole: %v", err)
	}
}

// TestWhatAKilledRunLeftIsDeleted kills a run that builds a bed at moments that differ, and takes down or builds anew.
func TestWhatAKilledRunLeftIsDeleted(t *testing.T) {
	t.Parallel()
	name := mine(t, "k")
	w := empty(t, name)
	program := lab(t, w)
	t.Cleanup(func() { gone(t, name, "") })
	t.Cleanup(func() { Down(context.Background(), name, nil) })
	killed := func(what string, after time.Duration) {
		t.Helper()
		c := exec.Command(os.Args[0])
		c.Env = append(os.Environ(), what+"="+name, "PERIGEE_BED_PROGRAM="+program)
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(after * time.Millisecond) // any moment will do
		c.Process.Kill()
		c.Wait()
	}
	for _, after := range []time.Duration{20, 60, 150, 400, 2000, 8500} {
		killed("PERIGEE_BED_UP", after)
		names, _ := netns.Names(prefix(name))
		if _, err := Open(name); err == nil {
			t.Errorf("after %d ms it is opened as if it were whole", after)
		}
		began := time.Now()
		if err := Down(t.Context(), name, nil); err != nil {
			t.Fatal(err)
		}
		t.Logf("killed after %d ms with %d namespaces: down in %v", after, len(names), time.Since(began).Round(time.Millisecond))
		gone(t, name, "")
	}
	killed("PERIGEE_BED_UP", 400)
	killed("PERIGEE_BED_DOWN", 60)
	killed("PERIGEE_BED_UP", 300)
	up(t, Config{World: w})
}

func TestABedThatCannotBeBuiltLeavesNothingAndSaysWhy(t *testing.T) {
	t.Parallel()
	name := mine(t, "x")
	w, err := world(name)
	if err != nil {
		t.Fatal(err)
	}
	real := lab(t, w)
	t.Cleanup(func() { gone(t, name, "") })
	broken := filepath.Join(t.TempDir(), "perigee")
	script := fmt.Sprintf("#!/bin/sh\ncase $1-$2 in\nnode---help) exec %[1]s \"$@\";;\nnode-*) echo the node is ill >&2; exit 1;;\nesac\nexec %[1]s \"$@\"\n", real)
	if err := os.WriteFile(broken, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err = Up(within(t, time.Minute), Config{World: w, Program: broken})
	if err == nil || !strings.Contains(err.Error(), "icn1 ended and said: the node is ill") {
		t.Errorf("%v", err)
	}
	gone(t, name, "")

	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "thesis"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Up(t.Context(), Config{World: w, Program: real, Dir: full}); err == nil || !strings.Contains(err.Error(), "is not empty") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(filepath.Join(full, "thesis")); err != nil {
		t.Error(err)
	}
	if _, err := Up(t.Context(), Config{World: w, Program: real, Dir: filepath.Join(full, strings.Repeat("long", 30))}); err == nil || !strings.Contains(err.Error(), "too long for a unix socket") {
		t.Errorf("%v", err)
	}
	if _, err := Up(t.Context(), Config{World: w, Program: "/nowhere/perigee"}); err == nil || !strings.Contains(err.Error(), "the perigee binary") {
		t.Errorf("%v", err)
	}
}
