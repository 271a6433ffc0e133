package backbone

import (
	"context"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/perigee-net/perigee/origin/relay"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// legs is a path on which a node in between carries the flow on: each leg is a share of the direct round trip, and has as large a part of the loss as of the way.
// Without a second one there is no such node.
type legs struct {
	name          string
	first, second float64
}

func (p legs) between() bool { return p.second > 0 }

// lay makes the path from icn to iad, of 300 Mbit/s, and opens the nodes on it, whose links are up when it returns. Up waits until they are again, for a link may be given up by chance; ends closes the nodes.
// Without warm none of the links is warmed.
func (w *world) lay(p legs, rtt time.Duration, loss float64, plain, warm bool) (icn *Backbone, up, ends func()) {
	w.Helper()
	open := func(name string) *Backbone {
		c := w.config(name, w.authority)
		c.NoParity = plain
		b := w.openWith(c)
		b.HandleThrough("detour", func(in *Incoming) { w.carryOn(b, in) })
		b.Handle("asked", func(in *Incoming) { // as a target that is spoken to once it has taken the flow
			c := in.Accept()
			var request [1]byte
			if _, err := io.ReadFull(c, request[:]); err != nil {
				c.Close()
				return
			}
			sendBlob(c, in.Resource)
		})
		serveBlobs(b)
		if !warm {
			unwarmed(b)
		}
		return b
	}
	join := func(a *Backbone, node string, share float64) {
		part := share / (p.first + p.second)
		w.in.Link(a.config.Self, node, memnet.Path{Delay: time.Duration(share * float64(rtt) / 2), Loss: part * loss, Rate: 300e6})
		a.Keep(peers(node))
		w.until(a, node, true)
	}
	icn = open("icn")
	iad := open("iad")
	ends = func() { icn.Close(); iad.Close() }
	if !p.between() {
		join(icn, "iad", p.first)
		return icn, func() { w.until(icn, "iad", true) }, ends
	}
	fra := open("fra")
	join(icn, "fra", p.first)
	join(fra, "iad", p.second)
	return icn, func() { w.until(fra, "iad", true); w.until(icn, "fra", true) }, func() { icn.Close(); fra.Close(); iad.Close() }
}

// carryOn carries a flow on to the node that its resource begins with, as accelerator.StartDetour does; next comes the service.
func (w *world) carryOn(b *Backbone, in *Incoming) {
	node, rest, _ := strings.Cut(in.Resource, "/")
	service, resource, _ := strings.Cut(rest, "/")
	far, err := b.Dial(in.Context(), node, Header{Service: service, Resource: resource, Passage: in.Passage})
	if err != nil {
		in.RefuseFor(err)
		return
	}
	near := in.Accept()
	if in.Passage != (Passage{}) {
		near, far = Join(near, far)
	}
	relay.Pipe(near, far, time.Hour)
}

// fetchEarly fetches a blob whose request travels with the opening.
func fetchEarly(w *world, b *Backbone, p legs, size int) time.Duration {
	h, node := Header{Service: "blob", Resource: strconv.Itoa(size)}, "iad"
	if p.between() {
		h, node = Header{Service: "detour", Resource: "iad/blob/" + h.Resource}, "fra"
	}
	begun := time.Now()
	c, err := b.DialEarly(w.Context(), node, h)
	if err != nil {
		w.Fatal(err)
	}
	return w.drain(c, size, begun)
}

// fetchLasting fetches a blob as a client of an accelerator does: its request goes when the far end has taken the flow, which outlives its streams.
func fetchLasting(w *world, b *Backbone, p legs, size int) time.Duration {
	way := Way{Node: "iad", Header: Header{Service: "asked", Resource: strconv.Itoa(size)}}
	if p.between() {
		way = Way{Node: "fra", To: "iad", Header: Header{Service: "detour", Resource: "iad/asked/" + way.Header.Resource}}
	}
	begun := time.Now()
	ctx, cancel := context.WithTimeout(w.Context(), 10*time.Second)
	defer cancel()
	c, err := b.DialLasting(ctx, way, func() []Way { return []Way{way} })
	if err != nil {
		w.Fatal(err)
	}
	if _, err := c.Write([]byte{1}); err != nil {
		w.Fatal(err)
	}
	return w.drain(c, size, begun)
}

func (w *world) drain(c io.ReadCloser, size int, begun time.Time) time.Duration {
	w.Helper()
	defer c.Close()
	if n, err := io.Copy(io.Discard, c); err != nil || n != int64(size) {
		w.Fatalf("%d of %d bytes: %v", n, size, err)
	}
	return time.Since(begun)
}

// TestMiddle measures what it brings that a node in between carries a flow on, in virtual time, when PERIGEE_MIDDLE says how often each: the same path of 300 Mbit/s
// directly and as two legs. Flows are the first on their links, which are not warmed, but where it says used, where one of a byte went before and links are warm, or after 10 MB. Of each path
// it prints the median, the least and the most seconds to the last byte, and what per cent the median is more than directly. Five times take some five minutes.
// PERIGEE_MIDDLE_ONLY is a regular expression of what is measured, as the lines begin.
func TestMiddle(t *testing.T) {
	runs, _ := strconv.Atoi(os.Getenv("PERIGEE_MIDDLE"))
	if runs == 0 {
		return
	}
	only := regexp.MustCompile(os.Getenv("PERIGEE_MIDDLE_ONLY"))
	paths := []legs{{"direct", 1, 0}, {"halves", 0.5, 0.5}, {"a fifth first", 0.2, 0.8}, {"a fifth longer", 0.6, 0.6}}
	ways := []struct {
		name   string
		plain  bool
		before int // bytes of the flow that went before; 0: none did
		fetch  func(*world, *Backbone, legs, int) time.Duration
		paths  []legs
	}{
		{"alone", true, 0, fetchEarly, paths[:2]},
		{"parity", false, 0, fetchEarly, paths[:2]},
		{"default new", false, 0, fetchLasting, paths},
		{"default used", false, 1, fetchLasting, paths},
		{"default after 10 MB", false, 10_000_000, fetchLasting, paths[:2]},
	}
	for _, rtt := range []time.Duration{80 * time.Millisecond, 150 * time.Millisecond, 250 * time.Millisecond} {
		for _, loss := range []float64{0, 0.001, 0.01} {
			for _, size := range []int{100_000, 1_000_000, 10_000_000} {
				for _, way := range ways {
					line := fmt.Sprintf("%v %.1f %% %d KB %s", rtt, loss*100, size/1000, way.name)
					if !only.MatchString(line) {
						continue
					}
					var direct time.Duration
					for _, p := range way.paths {
						var took []time.Duration
						for run := range runs {
							inWorldSeeded(t, uint64(run+1), func(w *world) {
								icn, up, ends := w.lay(p, rtt, loss, way.plain, way.before > 0)
								defer ends()
								time.Sleep(3*time.Second + time.Duration(run)*time.Second/time.Duration(runs)) // what is done each second falls anywhere
								if way.before > 0 {
									up()
									way.fetch(w, icn, p, way.before)
									time.Sleep(5 * time.Second)
								}
								up()
								took = append(took, way.fetch(w, icn, p, size))
							})
						}
						slices.Sort(took)
						middle := took[runs/2]
						line += fmt.Sprintf("\t%s %.2f (%.2f–%.2f)", p.name, middle.Seconds(), took[0].Seconds(), took[runs-1].Seconds())
						if !p.between() {
							direct = middle
						} else {
							line += fmt.Sprintf(" %+.0f %%", 100*(middle.Seconds()/direct.Seconds()-1))
						}
					}
					fmt.Println(line)
				}
			}
		}
	}
}
