package testbed

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing/fstest"
	"time"

	"github.com/perigee-net/perigee/node/api"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// changing is a site whose pages may change while it is served.
type changing struct {
	mu    sync.Mutex
	pages fstest.MapFS
}

// Open opens a page as it is now.
func (c *changing) Open(name string) (fs.File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pages.Open(name)
}

// publish makes a page of the site, at all targets.
func (w *World) publish(args []string) error {
	if len(args) != 2 {
		return errors.New("publish wants a page and its text")
	}
	w.site.mu.Lock()
	defer w.site.mu.Unlock()
	w.site.pages[strings.TrimPrefix(args[0], "/")] = &fstest.MapFile{Data: []byte(args[1] + "\n")}
	return nil
}

// orderAt reads NAME[@NODE]: what an order is about, and who is given it.
func (w *World) orderAt(text string) (name string, at *worldNode, err error) {
	name, node, chosen := strings.Cut(text, "@")
	if !chosen {
		node = "icn1"
	}
	if at = w.nodes[node]; at == nil {
		return "", nil, fmt.Errorf("no node %q", node)
	}
	return name, at, nil
}

// order gives one order: its subject is the first argument, what follows depends on the verb.
func (w *World) order(ctx context.Context, verb string, args []string) (string, error) {
	if len(args) == 0 {
		return "", fmt.Errorf("%s wants to know what", verb)
	}
	subject, at, err := w.orderAt(args[0])
	if err != nil {
		return "", err
	}
	ask := w.apiOf(at)
	var give func(context.Context) (api.OrderResponse, error)
	if verb == "purge" {
		give = func(ctx context.Context) (api.OrderResponse, error) {
			return ask.Purge(ctx, api.PurgeRequest{ID: rand.Text(), Distribution: subject, Paths: args[1:]})
		}
	} else {
		if give, err = w.lasting(verb, subject, args[1:], ask); err != nil {
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
func (w *World) lasting(verb, subject string, rest []string, ask *api.Client) (func(context.Context) (api.OrderResponse, error), error) {
	var lasts time.Duration
	if len(rest) > 0 {
		var err error
		if lasts, err = time.ParseDuration(rest[0]); err != nil || len(rest) > 1 {
			return nil, fmt.Errorf("%s: %q is not one duration", verb, rest)
		}
	}
	if strings.HasSuffix(verb, "block") {
		cidr, err := w.cidr(subject)
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
func (w *World) cidr(subject string) (netip.Prefix, error) {
	if h, known := w.clients[subject]; known {
		return h.Addr().Prefix(h.Addr().BitLen())
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
func (w *World) orders(ctx context.Context, args []string) (string, error) {
	if len(args) != 1 || w.nodes[args[0]] == nil {
		return "", errors.New("orders wants the name of a node")
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	list, err := w.apiOf(w.nodes[args[0]]).Orders(ctx)
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
func (w *World) health(ctx context.Context, args []string) (string, error) {
	if len(args) != 2 || w.nodes[args[0]] == nil {
		return "", errors.New("health wants the name of a node, and what of")
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	entries, err := w.apiOf(w.nodes[args[0]]).Health(ctx, api.HealthQuery{Name: args[1]})
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
func (w *World) events(ctx context.Context, args []string) (string, error) {
	if len(args) != 2 || w.nodes[args[0]] == nil {
		return "", errors.New("events wants the name of a node, and a word")
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	list, err := w.apiOf(w.nodes[args[0]]).Events(ctx, api.EventQuery{Limit: api.MaxEvents})
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

// browse asks for a URL again and again over connections that it keeps, as a browser does, and says who answered how often,
// and over how many connections.
func (w *World) browse(ctx context.Context, args []string) (string, error) {
	from, at, u, d, err := w.visit("browse", args)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, d+patience)
	defer cancel()
	transport := w.transport(from, at)
	defer transport.CloseIdleConnections()
	tally, connections := map[string]int{}, 0
	trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		if !info.Reused {
			connections++
		}
	}}
	for range pieces {
		tally[browseOnce(httptrace.WithClientTrace(ctx, trace), transport, u)]++
		time.Sleep(d / pieces)
	}
	text := fmt.Sprintf("connections=%d", connections)
	for _, answer := range slices.Sorted(maps.Keys(tally)) {
		text += fmt.Sprintf(", %dx %s", tally[answer], answer)
	}
	return text, nil
}

func browseOnce(ctx context.Context, transport *http.Transport, u *url.URL) string {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err.Error()
	}
	res, err := transport.RoundTrip(req)
	if err != nil {
		return "error: " + plain(err)
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return "cut off: " + plain(err)
	}
	return fmt.Sprintf("%d %s", res.StatusCode, res.Header.Get("X-Perigee-Pop"))
}

// transport dials the POP of a node, or where a name leads.
func (w *World) transport(from *memnet.Host, pop *worldNode) *http.Transport {
	return &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		if pop != nil {
			return from.Dial(ctx, network, net.JoinHostPort(pop.cfg.Advertise.String(), port))
		}
		ip, err := w.resolve(ctx, from, host)
		if err != nil {
			return nil, err
		}
		return from.Dial(ctx, network, net.JoinHostPort(ip, port))
	}}
}
