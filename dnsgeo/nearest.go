package dnsgeo

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/clients"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
)

const (
	// tryOneIn is of how many answers to a network that is known one leads to a POP that has not seen it, if that may be nearer by more than
	// tryGain than the nearest known: without, a POP that was estimated to be far would never show that it is near.
	tryOneIn = 32
	tryGain  = 5 * time.Millisecond
)

// pop is a POP on the way to a choice of the nearest.
type pop struct {
	*group
	last int // 1 if this node cannot reach it
	away float64
	tie  uint64
	seen clients.Away // of a client whose network is known
}

func (p *pop) compare(q *pop) int {
	return cmp.Or(cmp.Compare(p.last, q.last), cmp.Compare(p.away, q.away), cmp.Compare(p.tie, q.tie))
}

// nearest returns the POP that is nearest to the client; nil if none takes viewers. Those that this
// node cannot reach itself come last. How far one is is what it measured, or is joined of what others did, or if none has seen the
// client's network, estimated: a client without a place is then served here, or as if it were here.
//
// Who asks for A gets a POP that has one, as there may be no other way to reach it. Who asks for AAAA gets none if
// the nearest POP has none, and so goes there by IPv4, rather than far away by IPv6.
func (a *asker) nearest(t uint16) *group {
	from, known := a.locate(), a.lookUp()
	a.scope = max(a.scope, from.bits, known.Bits)
	placed, site := from.place.OK, from.site
	if !placed {
		site = a.scene.here
	}
	var all []pop // for people
	var best, try pop
	for _, g := range a.scene.edges {
		p := pop{group: g, away: nowhere, tie: a.draw()}
		if t == dns.TypeA && g.a.N == 0 {
			continue
		}
		if !g.reachable {
			p.last = 1
		}
		switch {
		case known.Known():
			if p.seen = a.away(known, from, g.number, g.site); p.seen.How != clients.Unknown {
				p.away = float64(p.seen.RTT)
			}
			if p.seen.How != clients.Measured && (try.group == nil || p.compare(&try) < 0) {
				try = p
			}
		case !placed && g.popKey == a.scene.self:
			p.away, p.tie = 0, 0
		case site != nil && g.site != nil:
			p.away = site.Chord(g.site)
		}
		if best.group == nil || p.compare(&best) < 0 {
			best = p
		}
		if a.trace.On() {
			all = append(all, p)
		}
	}
	if a.trace.On() && len(all) > 0 {
		a.tellNearest(all, placed)
	}
	switch {
	case best.group == nil && len(a.scene.edges) > 0:
		return a.scene.edges[0] // alive, but with no address of the family
	case try.group != nil && a.tries(&best, &try):
		if a.trace.On() {
			a.trace.Add("chosen: %s, to see how far it is: one answer in %d is for that", try.pop, tryOneIn)
		}
		return try.group
	}
	if a.trace.On() && best.group != nil {
		a.trace.Add("chosen: %s", best.pop)
	}
	return best.group
}

// tries says whether a POP that has not seen the client's network is worth a try, and it is its turn. Which one that is goes by how far
// it is held to be; whether it is worth it by how near it may be.
func (a *asker) tries(best, p *pop) bool {
	return best.seen.How == clients.Measured && p.last <= best.last && p.seen.How != clients.Unknown &&
		p.seen.Least+tryGain < best.seen.RTT && a.draw()>>33%tryOneIn == 0
}

// away is how far a client whose network is known is from a place: a POP's by number, or −1.
func (a *asker) away(known *clients.Client, from *spot, number int, to *spec.Site) clients.Away {
	estimated, light := clients.Unplaced, clients.Unplaced
	if from.site != nil && to != nil {
		way := from.site.Light(to)
		estimated = spec.RoundTrip(way)
		if !from.place.Stand {
			light = way
		}
	}
	return known.From(number, estimated, light)
}

// lookUp returns what POPs saw of the client's network.
func (a *asker) lookUp() *clients.Client {
	if a.looked {
		return &a.seen
	}
	a.looked, a.seen = true, clients.Client{}
	if m := a.scene.clients; m != nil {
		addr, _ := a.asks()
		network := clients.Of(addr)
		if a.query.ECS.IsValid() && a.query.ECS.Bits() > 0 {
			network = clients.OfPrefix(a.query.ECS)
		}
		a.seen = m.Find(network, addr.Unmap().Is4())
	}
	return &a.seen
}

// asks is the address by which the client is known, and whose it is.
func (a *asker) asks() (addr netip.Addr, whose string) {
	if a.query.ECS.IsValid() && a.query.ECS.Bits() > 0 {
		return a.query.ECS.Addr(), "client"
	}
	return a.query.Client, "resolver"
}

// toRegion is the round trip to the nearest POP of a region, where one of the region's has seen the client's network or it can be
// joined of what others saw.
func (a *asker) toRegion(region string) (time.Duration, bool) {
	best, _ := a.region(region)
	return best.RTT, best.How == clients.Joined || best.How == clients.Measured
}

// region is the least that is known of the POPs of a region; what one measured goes before what is joined.
func (a *asker) region(region string) (best clients.Away, pop int) {
	known := a.lookUp()
	if !known.Known() {
		return best, -1
	}
	from := a.locate()
	begin, end := a.scene.clients.Of(region)
	for i := begin; i < end; i++ {
		d := a.away(known, from, i, a.scene.sites[i])
		if i == begin || d.How > best.How || d.How == best.How && d.RTT < best.RTT {
			best, pop = d, i
		}
	}
	return best, pop
}

// tellRegion says how toRegion knows.
func (a *asker) tellRegion(region string) string {
	best, pop := a.region(region)
	return a.how(&best, a.scene.clients.POP(pop).Name)
}

// how tells people how it is known how far a POP is.
func (a *asker) how(d *clients.Away, pop string) string {
	switch {
	case d.How == clients.Measured && d.Samples == 0:
		return "measured by " + pop
	case d.How == clients.Measured:
		return "measured by " + pop + ", " + strconv.Itoa(d.Samples) + " samples"
	case d.How == clients.Joined && d.Over >= 0:
		return "joined of what " + a.scene.clients.POP(d.Over).Name + " measured, " + strconv.Itoa(d.Samples) + " samples" + ", and how far that is from " + pop
	case d.How == clients.Joined:
		return "estimated, and within what others measured"
	}
	return "estimated"
}

// tellNearest tells people in what order POPs come.
func (a *asker) tellNearest(all []pop, placed bool) {
	slices.SortFunc(all, func(p, q pop) int { return p.compare(&q) })
	for _, g := range a.scene.passed {
		a.trace.Add("%s: %s", g.pop, g.why())
	}
	if all[0].standing != view.Taking {
		a.trace.Add("no POP has others: those are answered with all the same whose nodes are drained or leave")
	}
	from := a.scene.here
	if placed {
		from = a.spot.site
	}
	for i := range all {
		p := &all[i]
		switch {
		case !p.reachable:
			a.trace.Add("%s: this node cannot reach it", p.pop)
		case p.away == nowhere:
			a.trace.Add("%s: nobody knows how far", p.pop)
		case p.seen.How > clients.Unknown:
			a.trace.Add("%s: %v away, %s", p.pop, p.seen.RTT.Round(time.Millisecond/10), a.how(&p.seen, p.pop))
		case !placed && p.popKey == a.scene.self:
			a.trace.Add("%s: about %v away", p.pop, time.Duration(0))
		default:
			a.trace.Add("%s: about %v away", p.pop, from.RoundTrip(p.site).Round(time.Millisecond))
		}
	}
}
