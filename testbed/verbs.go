package testbed

import (
	"bytes"
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
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/node/api"
	"github.com/perigee-net/perigee/testbed/load"
)

// verbs are what a scenario can have done to any network, whatever it is made of, as it needs no more than its doors: what
// clients ask for, and what operators tell nodes.
type verbs struct {
	files fs.FS  // where apply finds its files
	entry string // the node that is told what names none
	// client finds, or makes, a client by its name.
	client func(ctx context.Context, name string) (visitor, error)
	// nodes are all nodes, those that do not run, too.
	nodes func() []*seat
	// servers are the name servers a client asks, nearest first; resolve is how it comes from a name to an address.
	servers func(from visitor) []netip.AddrPort
	resolve func(ctx context.Context, from visitor, name string) (string, error)
}

// visitor is a client somewhere, with a network of its own.
type visitor struct {
	name string
	addr netip.Addr
	dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// seat is a node as those see it who visit it.
type seat struct {
	name  string
	addr  netip.Addr  // of its doors
	lives func() bool // its process runs
	api   *api.Client
}

func (v *verbs) named(name string) (*seat, error) {
	for _, n := range v.nodes() {
		if n.name == name {
			return n, nil
		}
	}
	return nil, fmt.Errorf("no node %q", name)
}

// place comes from a name to an address: that of a node of this name, or what DNS says.
func (v *verbs) place(ctx context.Context, from visitor, name string) (string, error) {
	if n, err := v.named(name); err == nil {
		return n.addr.String(), nil
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return name, nil
	}
	return v.resolve(ctx, from, name)
}

// share reads a percentage below 100.
func share(text string) (float64, error) {
	percent, err := strconv.ParseFloat(strings.TrimSuffix(text, "%"), 64)
	if err != nil || percent < 0 || percent >= 100 {
		return 0, fmt.Errorf("%q is no share below 100%%", text)
	}
	return percent / 100, nil
}

// do takes a step by one of these verbs; known says whether there is such a verb here.
func (v *verbs) do(ctx context.Context, verb string, args []string) (result string, known bool, err error) {
	do := map[string]func(context.Context, []string) (string, error){
		"get": v.get, "download": v.download, "browse": v.browse, "flows": v.flows, "dig": v.dig, "dial": v.dial, "ask": v.ask, "explain": v.explain,
		"apply": v.apply, "status": v.status, "orders": v.orders, "health": v.health, "events": v.events,
	}[verb]
	switch verb {
	case "purge", "drain", "undrain", "block", "unblock":
		do = func(ctx context.Context, args []string) (string, error) { return v.order(ctx, verb, args) }
	}
	if do == nil {
		return "", false, nil
	}
	result, err = do(ctx, args)
	return result, true, err
}

// clientAt reads CLIENT[@NODE]; the node is nil where none is named.
func (v *verbs) clientAt(ctx context.Context, text string) (from visitor, at *seat, err error) {
	name, node, chosen := strings.Cut(text, "@")
	if from, err = v.client(ctx, name); err != nil || !chosen {
		return from, nil, err
	}
	at, err = v.named(node)
	return from, at, err
}

func (v *verbs) get(ctx context.Context, args []string) (string, error) {
	count := 1
	if len(args) == 3 {
		var err error
		if count, err = strconv.Atoi(args[0]); err != nil || count < 1 {
			return "", fmt.Errorf("get: %q is no count", args[0])
		}
		args = args[1:]
	}
	if len(args) != 2 {
		return "", errors.New("get wants a client and a URL")
	}
	from, at, err := v.clientAt(ctx, args[0])
	if err != nil {
		return "", err
	}
	u, err := url.Parse(args[1])
	if err != nil {
		return "", err
	}
	results := make([]string, count)
	var all sync.WaitGroup
	for i := range results {
		all.Go(func() { results[i] = v.getOne(ctx, from, at, u) })
	}
	all.Wait()
	if count == 1 {
		return results[0], nil
	}
	tally := map[string]int{}
	for _, r := range results {
		tally[r]++
	}
	var text []string
	for _, r := range slices.Sorted(maps.Keys(tally)) {
		text = append(text, fmt.Sprintf("%dx %s", tally[r], r))
	}
	return strings.Join(text, ", "), nil
}

// request asks for a URL, at the POP of a node or where its name leads. The response's body is to be closed.
func (v *verbs) request(ctx context.Context, from visitor, pop *seat, u *url.URL) (*http.Response, error) {
	transport := v.transport(from, pop)
	transport.DisableKeepAlives = true
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	return transport.RoundTrip(req)
}

func (v *verbs) getOne(ctx context.Context, from visitor, pop *seat, u *url.URL) string {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	res, err := v.request(ctx, from, pop, u)
	if err != nil {
		return "error: " + plain(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return fmt.Sprintf("%d cut off: %s", res.StatusCode, plain(err))
	}
	text := said(res)
	if target := res.Header.Get("X-Target"); target != "" {
		text += " target=" + target
	}
	line, _, _ := bytes.Cut(body, []byte("\n"))
	return fmt.Sprintf("%s %q", text, line)
}

// said is a response's head in few words: 200 Hit icn1 age=3.
func said(res *http.Response) string {
	cache, _, _ := strings.Cut(res.Header.Get("X-Cache"), " ")
	text := fmt.Sprintf("%d %s %s", res.StatusCode, cache, res.Header.Get("X-Perigee-Pop"))
	if age := res.Header.Get("Age"); age != "" {
		text += " age=" + age
	}
	return text
}

// visit reads the words of a verb: a client, a URL, and how long it takes.
func (v *verbs) visit(ctx context.Context, verb string, args []string) (from visitor, at *seat, u *url.URL, d time.Duration, err error) {
	if len(args) != 3 {
		return from, nil, nil, 0, fmt.Errorf("%s wants a client, a URL and a duration", verb)
	}
	if from, at, err = v.clientAt(ctx, args[0]); err == nil {
		u, err = url.Parse(args[1])
	}
	if err == nil {
		d, err = time.ParseDuration(args[2])
	}
	return from, at, u, d, err
}

// download reads a body evenly over a time.
func (v *verbs) download(ctx context.Context, args []string) (string, error) {
	from, at, u, d, err := v.visit(ctx, "download", args)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, d+patience)
	defer cancel()
	res, err := v.request(ctx, from, at, u)
	if err != nil {
		return "error: " + plain(err), nil
	}
	defer res.Body.Close()
	want := max(1, res.ContentLength)
	got := int64(0)
	for err == nil {
		var n int64
		n, err = io.CopyN(io.Discard, res.Body, (want+pieces-1)/pieces)
		got += n
		time.Sleep(d / pieces)
	}
	if err != io.EOF {
		return fmt.Sprintf("%s cut off after %d of %d bytes: %s", said(res), got, want, plain(err)), nil
	}
	return fmt.Sprintf("%s whole, %d bytes", said(res), got), nil
}

func (v *verbs) dig(ctx context.Context, args []string) (string, error) {
	network := "udp"
	if len(args) > 0 && args[len(args)-1] == "tcp" {
		network, args = "tcp", args[:len(args)-1]
	}
	if len(args) < 2 || len(args) > 3 {
		return "", errors.New("dig wants a client, a name, and perhaps a type")
	}
	from, at, err := v.clientAt(ctx, args[0])
	if err != nil {
		return "", err
	}
	servers := v.servers(from)
	if at != nil {
		servers = []netip.AddrPort{netip.AddrPortFrom(at.addr, dnsPort)}
	}
	return v.askAt(ctx, from, servers, args[1:], network)
}

// askAt asks servers for a name and perhaps a type, and says what the first that answers says.
func (v *verbs) askAt(ctx context.Context, from visitor, servers []netip.AddrPort, question []string, network string) (string, error) {
	kind := dns.TypeA
	if len(question) == 2 {
		var ok bool
		if kind, ok = dns.StringToType[strings.ToUpper(question[1])]; !ok {
			return "", fmt.Errorf("no type %q", question[1])
		}
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	res, err := ask(ctx, from, servers, question[0], kind, network)
	if err != nil {
		return "error: " + plain(err), nil
	}
	text := dns.RcodeToString[res.Rcode]
	if res.Authoritative {
		text += " aa"
	}
	for _, section := range []struct {
		name string
		rrs  []dns.RR
	}{{"answer", res.Answer}, {"authority", res.Ns}} {
		for _, rr := range section.rrs {
			text += fmt.Sprintf(" %s: %s", section.name, strings.Join(strings.Fields(rr.String()), " "))
			if a, ok := rr.(*dns.A); ok {
				text += v.nameOf(a.A.String())
			}
		}
	}
	return text, nil
}

// addressIn is the first address of an answer.
func addressIn(res *dns.Msg, name string) (string, error) {
	for _, rr := range res.Answer {
		if a, ok := rr.(*dns.A); ok {
			return a.A.String(), nil
		}
	}
	return "", fmt.Errorf("%s has no address: %s", name, dns.RcodeToString[res.Rcode])
}

// nameOf is the node at an address, in brackets.
func (v *verbs) nameOf(address string) string {
	for _, n := range v.nodes() {
		if n.addr.String() == address {
			return "(" + n.name + ")"
		}
	}
	return ""
}

func (v *verbs) dial(ctx context.Context, args []string) (string, error) {
	if len(args) < 2 || len(args) > 3 {
		return "", errors.New("dial wants a client, an address with a port, and perhaps a duration")
	}
	from, err := v.client(ctx, args[0])
	if err != nil {
		return "", err
	}
	host, port, err := net.SplitHostPort(args[1])
	if err != nil {
		return "", err
	}
	var long time.Duration
	if len(args) == 3 {
		if long, err = time.ParseDuration(args[2]); err != nil {
			return "", err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, long+patience)
	defer cancel()
	ip, err := v.place(ctx, from, host)
	if err != nil {
		return "error: " + plain(err), nil
	}
	conn, err := from.dial(ctx, "tcp", net.JoinHostPort(ip, port))
	if err != nil {
		return "error: " + plain(err), nil
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	const line = "echo this\n"
	sent := line
	_, err = io.WriteString(conn, line)
	for i := 0; i < pieces && long > 0 && err == nil; i++ {
		time.Sleep(long / pieces)
		sent += line
		_, err = io.WriteString(conn, line)
	}
	if err == nil {
		err = conn.(interface{ CloseWrite() error }).CloseWrite()
	}
	if err != nil {
		return "error: " + plain(err), nil
	}
	all, err := io.ReadAll(conn)
	greeting, echo, _ := strings.Cut(string(all), "\n")
	switch {
	case err != nil:
		return fmt.Sprintf("%s error: %s", greeting, plain(err)), nil
	case echo != sent:
		return fmt.Sprintf("%s echoed %q, closed", greeting, echo), nil
	}
	return greeting + " echoed, closed", nil
}

// ask sends a datagram, of a size at least, and says what answered. With a duration it goes on to ask from the same port, and says how many were not
// answered, or were by another.
func (v *verbs) ask(ctx context.Context, args []string) (string, error) {
	if len(args) < 2 || len(args) > 3 {
		return "", errors.New("ask wants a client, an address with a port, and perhaps how many bytes, or a duration")
	}
	from, err := v.client(ctx, args[0])
	if err != nil {
		return "", err
	}
	size, long := 0, time.Duration(0)
	if len(args) == 3 {
		if size, err = strconv.Atoi(args[2]); err != nil {
			if long, err = time.ParseDuration(args[2]); err != nil {
				return "", err
			}
		}
	}
	host, port, err := net.SplitHostPort(args[1])
	if err != nil {
		return "", err
	}
	finding, cancel := context.WithTimeout(ctx, echoTime)
	defer cancel()
	ip, err := v.place(finding, from, host)
	if err != nil {
		return "error: " + plain(err), nil
	}
	conn, err := from.dial(finding, "udp", net.JoinHostPort(ip, port))
	if err != nil {
		return "error: " + plain(err), nil
	}
	defer conn.Close()
	question := []byte("echo this" + strings.Repeat(".", max(0, size-len("echo this"))))
	said := asksOnce(conn, question)
	if long == 0 {
		return said, nil
	}
	others, last := 0, ""
	for until := time.Now().Add(long); time.Now().Before(until) && ctx.Err() == nil; {
		time.Sleep(echoPause)
		if one := asksOnce(conn, question); one != said {
			others++
			last = one
		}
	}
	if others > 0 {
		return fmt.Sprintf("%s, then %d times not, at last %s", said, others, last), nil
	}
	return said + ", always", nil
}

// asksOnce sends a datagram and says what answered.
func asksOnce(conn net.Conn, question []byte) string {
	conn.SetDeadline(time.Now().Add(echoTime))
	if _, err := conn.Write(question); err != nil {
		return "error: " + plain(err)
	}
	answer := make([]byte, 1<<16)
	n, err := conn.Read(answer)
	if err != nil {
		return "error: " + plain(err)
	}
	greeting, echo, _ := strings.Cut(string(answer[:n]), "\n")
	if echo != string(question) {
		return fmt.Sprintf("%s echoed %q", greeting, echo)
	}
	return greeting + " echoed"
}

// echoTime is how long an answer to a datagram is waited for.
const echoTime = time.Second

// echoPause is how long a flow of the verb ask is silent between two datagrams.
const echoPause = 500 * time.Millisecond

// Of each flow of the verb flows: messages a second, and bytes of each.
const (
	flowRate  = 10
	flowBytes = 200
	maxFlows  = 5000
)

// flows holds many flows to a service that greets and echoes, and says what became of them.
func (v *verbs) flows(ctx context.Context, args []string) (string, error) {
	if len(args) != 4 {
		return "", errors.New("flows wants a client, an address with a port, how many, and how long")
	}
	from, err := v.client(ctx, args[0])
	if err != nil {
		return "", err
	}
	host, port, err := net.SplitHostPort(args[1])
	if err != nil {
		return "", err
	}
	count, err := strconv.Atoi(args[2])
	if err != nil || count < 1 || count > maxFlows {
		return "", fmt.Errorf("flows: %q is no number of flows, 1–%d", args[2], maxFlows)
	}
	long, err := time.ParseDuration(args[3])
	if err != nil {
		return "", err
	}
	ip, err := v.place(ctx, from, host)
	if err != nil {
		return "error: " + plain(err), nil
	}
	res, err := load.Flows(ctx, load.FlowConfig{
		Dial: from.dial, Address: net.JoinHostPort(ip, port), Flows: count, Ramp: long / 10, Rate: flowRate, Bytes: flowBytes, Echo: true, Greeting: true, For: long,
	})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s by=%v", &res, res.By), nil
}

func (v *verbs) explain(ctx context.Context, args []string) (string, error) {
	if len(args) < 3 || len(args) > 4 {
		return "", errors.New("explain wants a client at a node, dns, tcp, udp or http, a target, and perhaps a type")
	}
	from, at, err := v.clientAt(ctx, args[0])
	if err != nil {
		return "", err
	}
	if at == nil {
		return "", fmt.Errorf("explain %s: which node is asked?", args[0])
	}
	req := api.ExplainRequest{What: args[1], Target: args[2], From: from.addr.String()}
	if len(args) == 4 {
		req.Type = args[3]
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	res, err := at.api.Explain(ctx, req)
	if err != nil {
		return "error: " + plain(err), nil
	}
	text := res.Answer
	for _, l := range res.Lines {
		text += "\n\t" + strings.Repeat("  ", l.Depth) + l.Text
	}
	return text, nil
}

func (v *verbs) apply(ctx context.Context, args []string) (string, error) {
	if len(args) < 1 || len(args) > 2 {
		return "", errors.New("apply wants a file, and perhaps a node")
	}
	at := v.entry
	if len(args) == 2 {
		at = args[1]
	}
	n, err := v.named(at)
	if err != nil {
		return "", err
	}
	data, err := fs.ReadFile(v.files, args[0])
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	res, err := n.api.Apply(ctx, api.ApplyRequest{ID: rand.Text(), Files: []api.File{{Name: args[0], Data: string(data)}}})
	if err != nil {
		return "refused: " + err.Error(), nil
	}
	text := fmt.Sprintf("revision=%d", res.Revision)
	for _, c := range res.Changes {
		text += fmt.Sprintf(" %s:%s/%s", c.Op, c.Kind, c.Name)
	}
	return text, nil
}

func (v *verbs) status(ctx context.Context, args []string) (string, error) {
	if len(args) != 1 {
		return "", errors.New("status wants a node, or all")
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if args[0] != "all" {
		n, err := v.named(args[0])
		if err != nil {
			return "", err
		}
		return statusOf(ctx, n), nil
	}
	said := map[string][]string{}
	for _, n := range v.nodes() {
		if n.lives() {
			st := statusOf(ctx, n)
			said[st] = append(said[st], n.name)
		}
	}
	if len(said) == 1 {
		for st := range said {
			return "agree " + st, nil
		}
	}
	return fmt.Sprintf("differ %v", said), nil
}

func statusOf(ctx context.Context, n *seat) string {
	st, err := n.api.Status(ctx)
	if err != nil {
		return "error: " + plain(err)
	}
	text := fmt.Sprintf("leader=%s revision=%d", st.Leader, st.Revision)
	for _, m := range st.Members {
		text += fmt.Sprintf(" %s/%s/%v@%d", m.Name, m.Region, m.Roles, m.Running)
		if m.Running != st.Revision {
			text += "(behind)"
		}
	}
	return text
}

// plain is an error in few words, the same wherever it comes from.
func plain(err error) string {
	var timeout interface{ Timeout() bool }
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.ECONNRESET):
		return "reset"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	}
	return err.Error()
}

// askTime is how long a resolver waits for one name server before it asks the next.
const askTime = time.Second

func ask(ctx context.Context, from visitor, servers []netip.AddrPort, name string, kind uint16, network string) (*dns.Msg, error) {
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), kind)
	err := errors.New("no name server")
	for _, s := range servers {
		var res *dns.Msg
		if res, err = exchange(ctx, from, s, q, network); err == nil {
			return res, nil
		}
	}
	return nil, err
}

func exchange(ctx context.Context, from visitor, server netip.AddrPort, q *dns.Msg, network string) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	conn, err := from.dial(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	c := &dns.Conn{Conn: conn}
	if err := c.WriteMsg(q); err != nil {
		return nil, err
	}
	return c.ReadMsg()
}

// browse asks for a URL again and again over connections that it keeps, as a browser does, and says who answered how often,
// and over how many connections.
func (v *verbs) browse(ctx context.Context, args []string) (string, error) {
	from, at, u, d, err := v.visit(ctx, "browse", args)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, d+patience)
	defer cancel()
	transport := v.transport(from, at)
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
func (v *verbs) transport(from visitor, pop *seat) *http.Transport {
	return &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		if pop != nil {
			return from.dial(ctx, network, net.JoinHostPort(pop.addr.String(), port))
		}
		ip, err := v.place(ctx, from, host)
		if err != nil {
			return nil, err
		}
		return from.dial(ctx, network, net.JoinHostPort(ip, port))
	}}
}
