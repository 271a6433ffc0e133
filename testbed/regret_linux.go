package testbed

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/testbed/wan"
)

// led is where a client was led, and how much farther that is than the nearest node; or why it was led nowhere.
type led struct {
	place, node string
	regret      time.Duration
	err         error
}

// regret has a client of each place ask for a name and visit where it is led, at the same time.
func (l *Laboratory) regret(ctx context.Context, args []string) (string, error) {
	if len(args) != 3 {
		return "", errors.New("regret wants a name, a duration, and a share")
	}
	bound, err := time.ParseDuration(args[1])
	if err != nil {
		return "", err
	}
	least, err := share(args[2])
	if err != nil {
		return "", err
	}
	v, places := l.verbs(), wan.Places()
	all := make([]led, len(places))
	var visits sync.WaitGroup
	for i, p := range places {
		from, err := l.client(ctx, p.Name)
		if err != nil {
			return "", err
		}
		visits.Go(func() { all[i] = l.visits(ctx, v, from, args[0]) })
	}
	visits.Wait()
	return saidOfRegret(all, bound, least), nil
}

// visits asks for a name and gets a page twice: by two connections, so that the POP sees how far the client is.
func (l *Laboratory) visits(ctx context.Context, v *verbs, from visitor, name string) (is led) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	is.place = from.name
	res, err := ask(ctx, from, v.servers(from), name, dns.TypeA, "udp")
	if err != nil {
		is.err = err
		return is
	}
	address, err := addressIn(res, name)
	if err != nil {
		is.err = err
		return is
	}
	var pop *seat
	nearest := time.Duration(-1)
	for _, n := range v.nodes() {
		d := l.bed.World().RTT(from.name, n.name)
		if n.addr.String() == address {
			pop, is.node, is.regret = n, n.name, d
		}
		if nearest < 0 || d < nearest {
			nearest = d
		}
	}
	if pop == nil {
		is.err = fmt.Errorf("led to %s, which is no node", address)
		return is
	}
	is.regret -= nearest
	for range 2 {
		v.getOne(ctx, from, pop, &url.URL{Scheme: "http", Host: name, Path: "/"})
	}
	return is
}

// maxTold is how many of the worst are told by name.
const maxTold = 5

// saidOfRegret says whether at least a share of clients are led at most so much farther than need be, how much those are that are
// led, and which most. Who is led nowhere is not within the bound.
func saidOfRegret(all []led, bound time.Duration, least float64) string {
	var regrets []time.Duration
	var failed []string
	near, sum := 0, time.Duration(0)
	for _, is := range all {
		if is.err != nil {
			failed = append(failed, fmt.Sprintf("%s: %s", is.place, plain(is.err)))
			continue
		}
		regrets = append(regrets, is.regret)
		sum += is.regret
		if is.regret <= bound {
			near++
		}
	}
	verdict := "missed"
	if float64(near) >= least*float64(len(all)) {
		verdict = "kept"
	}
	text := fmt.Sprintf("%s: %d of %d within %v", verdict, near, len(all), bound)
	if n := len(regrets); n > 0 {
		slices.Sort(regrets)
		round := func(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }
		text += fmt.Sprintf(", mean %v, p95 %v, max %v", round(sum/time.Duration(n)), round(regrets[n*95/100]), round(regrets[n-1]))
	}
	slices.SortStableFunc(all, func(a, b led) int { return cmp.Compare(b.regret, a.regret) })
	for _, is := range all[:min(maxTold, len(all))] {
		if is.regret > bound {
			text += fmt.Sprintf("; %s→%s +%v", is.place, is.node, is.regret.Round(time.Millisecond))
		}
	}
	for _, f := range failed[:min(maxTold, len(failed))] {
		text += "; " + f
	}
	return text
}
