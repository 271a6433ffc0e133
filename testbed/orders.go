package testbed

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/perigee-net/perigee/node/api"
)

// orderAt reads NAME[@NODE]: what an order is about, and who is given it.
func (v *verbs) orderAt(text string) (name string, at *seat, err error) {
	name, node, chosen := strings.Cut(text, "@")
	if !chosen {
		node = v.entry
	}
	at, err = v.named(node)
	return name, at, err
}

// order gives one order: its subject is the first argument, what follows depends on the verb.
func (v *verbs) order(ctx context.Context, verb string, args []string) (string, error) {
	if len(args) == 0 {
		return "", fmt.Errorf("%s wants to know what", verb)
	}
	subject, at, err := v.orderAt(args[0])
	if err != nil {
		return "", err
	}
	ask := at.api
	var give func(context.Context) (api.OrderResponse, error)
	if verb == "purge" {
		give = func(ctx context.Context) (api.OrderResponse, error) {
			req := api.PurgeRequest{ID: rand.Text(), Distribution: subject}
			for _, arg := range args[1:] {
				if host, is := strings.CutPrefix(arg, "host="); is {
					req.Host = host
				} else if arg == "soft" {
					req.Soft = true
				} else {
					req.Paths = append(req.Paths, arg)
				}
			}
			return ask.Purge(ctx, req)
		}
	} else {
		if give, err = v.lasting(ctx, verb, subject, args[1:], ask); err != nil {
			return "", err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	res, err := give(ctx)
	if err != nil {
		return "refused: " + err.Error(), nil
	}
	return receipt(res), nil
}

// lasting makes an order that is in force for a time, or until it is undone.
func (v *verbs) lasting(ctx context.Context, verb, subject string, rest []string, ask *api.Client) (func(context.Context) (api.OrderResponse, error), error) {
	var lasts time.Duration
	if len(rest) > 0 {
		var err error
		if lasts, err = time.ParseDuration(rest[0]); err != nil || len(rest) > 1 {
			return nil, fmt.Errorf("%s: %q is not one duration", verb, rest)
		}
	}
	if strings.HasSuffix(verb, "block") {
		cidr, err := v.cidr(ctx, subject)
		if err != nil {
			return nil, err
		}
		req := api.BlockRequest{ID: rand.Text(), CIDRs: []netip.Prefix{cidr}, For: api.Duration(lasts)}
		if verb == "unblock" {
			return func(ctx context.Context) (api.OrderResponse, error) { return ask.Unblock(ctx, req) }, nil
		}
		return func(ctx context.Context) (api.OrderResponse, error) { return ask.Block(ctx, req) }, nil
	}
	scope, name, scoped := strings.Cut(subject, "/")
	if !scoped {
		return nil, fmt.Errorf("%s %s: want node/, pop/ or region/ before the name", verb, subject)
	}
	req := api.DrainRequest{ID: rand.Text(), Scope: scope, Name: name, For: api.Duration(lasts)}
	if verb == "undrain" {
		return func(ctx context.Context) (api.OrderResponse, error) { return ask.Undrain(ctx, req) }, nil
	}
	return func(ctx context.Context) (api.OrderResponse, error) { return ask.Drain(ctx, req) }, nil
}

// cidr is a range as it is written, or the address of a client.
func (v *verbs) cidr(ctx context.Context, subject string) (netip.Prefix, error) {
	if c, err := v.client(ctx, subject); err == nil {
		return c.addr.Prefix(c.addr.BitLen())
	}
	return netip.ParsePrefix(subject)
}

// receipt is what became of an order, in few words.
func receipt(res api.OrderResponse) string {
	done, text := 0, ""
	for _, a := range res.Acks {
		if a.Error == "" {
			done++
		} else {
			text += fmt.Sprintf(" late=%s", a.Node)
		}
	}
	text = fmt.Sprintf("done=%d/%d epoch=%d", done, len(res.Acks), res.Epoch) + text
	if res.Warning != "" {
		text += " warning: " + res.Warning
	}
	return text
}

// orders says what a node holds to be ordered.
func (v *verbs) orders(ctx context.Context, args []string) (string, error) {
	if len(args) != 1 {
		return "", errors.New("orders wants the name of a node")
	}
	at, err := v.named(args[0])
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	list, err := at.api.Orders(ctx)
	if err != nil {
		return "error: " + plain(err), nil
	}
	return ordersText(list), nil
}

func ordersText(list api.OrderList) string {
	text := fmt.Sprintf("epoch=%d purges=%d drains=[", list.Epoch, len(list.Purges))
	for i, d := range list.Drains {
		text += strings.Repeat(" ", min(i, 1)) + d.Scope + "/" + d.Name
	}
	text += "] blocks=["
	for i, b := range list.Blocks {
		text += strings.Repeat(" ", min(i, 1)) + b.CIDR.String()
	}
	if text += "]"; list.Fenced {
		text += " fenced"
	}
	return text
}

// health says what a node holds of one key, and why.
func (v *verbs) health(ctx context.Context, args []string) (string, error) {
	if len(args) != 2 {
		return "", errors.New("health wants the name of a node, and what of")
	}
	at, err := v.named(args[0])
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	entries, err := at.api.Health(ctx, api.HealthQuery{Name: args[1]})
	if err != nil {
		return "error: " + plain(err), nil
	}
	var text []string
	for _, e := range entries {
		text = append(text, healthText(e))
	}
	return strings.Join(text, "; "), nil
}

func healthText(e api.HealthEntry) string {
	state := "unhealthy"
	if e.Healthy {
		state = "healthy"
	}
	yes := 0
	for _, v := range e.Views {
		if v.Healthy {
			yes++
		}
	}
	text := fmt.Sprintf("%s %s %d/%d of %d needed", e.Key, state, yes, e.Observers, e.Needed)
	if e.Override != "" {
		text += " (" + e.Override + ")"
	}
	if e.Reason != "" {
		text += " " + e.Reason
	}
	return text
}

// events are the newest things that a node tells of, those whose text or kind has a word in them.
func (v *verbs) events(ctx context.Context, args []string) (string, error) {
	if len(args) != 2 {
		return "", errors.New("events wants the name of a node, and a word")
	}
	at, err := v.named(args[0])
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	list, err := at.api.Events(ctx, api.EventQuery{Limit: api.MaxEvents})
	if err != nil {
		return "error: " + plain(err), nil
	}
	text := ""
	for _, e := range list.Events {
		if strings.Contains(e.Kind+" "+e.Text, args[1]) {
			text += fmt.Sprintf("\n\t#%d %s %s ← %v", e.ID, e.Kind, e.Text, e.Causes)
		}
	}
	return text, nil
}
