package origin

import (
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/edge/http1"
	"github.com/perigee-net/perigee/origin/rule"
	"github.com/perigee-net/perigee/origin/wire"
)

// Relay is an http1.Relay beside Handler: what is plain on both sides goes from the client to the target and back as bytes, by the same
// rules, targets and fields. All else, and what takes longer or fails, is Handler's, which goes on with what was begun.
func (p *Plane) Relay(loadBalancer string, port uint16) http1.Relay {
	k := listenerKey{loadBalancer, port}
	return func(q *http1.Request, a *http1.Response, room func() []byte) (bool, http1.Begun) {
		return p.relay(q, a, room, k)
	}
}

// begun is what relay has begun for a request: it was the group's turn, and that target was asked.
type begun struct {
	traffic *traffic
	turn    uint64
	addr    netip.AddrPort
	asking  *wire.Asking
	since   time.Time // when it was
	over    bool      // somebody goes on with it, or nobody will
}

// Drop implements http1.Begun.
func (b *begun) Drop() {
	if !b.over {
		b.over = true
		b.asking.Drop()
	}
}

func (p *Plane) relay(q *http1.Request, a *http1.Response, room func() []byte, k listenerKey) (bool, http1.Begun) {
	if !http1.PlainPath(q.Path) || !http1.PlainQuery(q.Query) || !q.Remote.IsValid() || !relayed(q) {
		return false, nil
	}
	table := p.table.Load()
	l := table.listener(k)
	if l == nil || !l.local || l.protocol == spec.TCP {
		return false, nil
	}
	req := rule.Request{
		Method: http.MethodGet, Protocol: "http", Host: http1.Text(q.Host), Port: k.port, Path: http1.Text(q.Path), Query: http1.Text(q.Query),
	}
	if q.Head {
		req.Method = http.MethodHead
	}
	if q.TLS {
		req.Protocol = "https"
	}
	_, g := table.decide(l, req, nil)
	if g == nil {
		return false, nil
	}
	turn := g.turn()
	split := g.splitBy(p.config.View())
	addr, ok := split.pool.At(turn, 0)
	if !ok {
		return false, nil
	}
	texts := split.texts[addr]
	client := q.Remote.Addr().Unmap().WithZone("")
	asking, over := g.traffic.transport().Asking(q.Head, q.Now), false
	defer func() {
		if !over { // a panic
			asking.Drop()
		}
	}()
	asking.Head = appendOutgoing(asking.Head, q, &req, client)
	if !asking.Soon(texts.address) || !passable(&asking.Reply, q.Head) {
		over = true
		return false, &begun{traffic: g.traffic, turn: turn, addr: addr, asking: asking, since: q.Now}
	}
	p.counters.requests.Add(1)
	p.counters.fromTarget[class(asking.Reply.Code)].Add(1)
	p.answered(texts.key, client, asking.Reply.Code)
	a.Head = appendPassed(room(), &asking.Reply)
	a.Status, a.Body, a.Done = asking.Reply.Code, asking.Body, asking.End
	over = true
	return true, nil
}

// relayed says whether the fields of a plain request are sent on as they came, or left out for what they are called.
func relayed(q *http1.Request) bool {
	for i := range q.Fields {
		switch name := q.Fields[i].Name; len(name) {
		case len("Te"):
			if http1.Is(name, "te") {
				return false
			}
		case len("Close"):
			if http1.Is(name, "close") { // a Connection may name it
				return false
			}
		case len("Pragma"): // says what Cache-Control does where there is none
			if http1.Is(name, "pragma") {
				return false
			}
		case len(traceID): // and X-Forwarded-For
			if http1.Is(name, "x-amzn-trace-id") || http1.Is(name, "x-forwarded-for") {
				return false
			}
		}
	}
	return true
}

// appendOutgoing is outgoing for a plain request whose fields are relayed.
func appendOutgoing(b []byte, q *http1.Request, req *rule.Request, client netip.Addr) []byte {
	b = append(append(b, req.Method...), ' ')
	b = append(append(b, q.Target...), " HTTP/1.1\r\nHost: "...)
	b = append(b, req.Host...)
	if needsPort(req.Host, req.Port) {
		b = strconv.AppendUint(append(b, ':'), uint64(req.Port), 10)
	}
	b = append(b, "\r\n"...)
	for _, f := range q.Fields {
		switch len(f.Name) {
		case len("host"):
			if http1.Is(f.Name, "host") {
				continue
			}
		case len("trailer"):
			if http1.Is(f.Name, "trailer") {
				continue
			}
		case len("user-agent"): // and connection, keep-alive
			if http1.Is(f.Name, "connection") || http1.Is(f.Name, "keep-alive") || len(f.Value) == 0 && http1.Is(f.Name, "user-agent") {
				continue
			}
		case len("proxy-connection"): // and x-forwarded-port
			if http1.Is(f.Name, "proxy-connection") || http1.Is(f.Name, "x-forwarded-port") {
				continue
			}
		case len("x-forwarded-proto"):
			if http1.Is(f.Name, "x-forwarded-proto") {
				continue
			}
		case len("proxy-authenticate"):
			if http1.Is(f.Name, "proxy-authenticate") {
				continue
			}
		case len("proxy-authorization"):
			if http1.Is(f.Name, "proxy-authorization") {
				continue
			}
		}
		b = http1.AppendField(b, f)
	}
	b = client.AppendTo(append(b, forwardedFor+": "...))
	b = append(append(b, "\r\n"+forwardedProto+": "...), req.Protocol...)
	b = strconv.AppendUint(append(b, "\r\n"+forwardedPort+": "...), uint64(req.Port), 10)
	b = appendTraced(append(b, "\r\n"+traceID+": "...), "", q.Now)
	return append(b, "\r\n\r\n"...)
}

// passable says whether a target's response may be passed on as it is, but for fields that concern the connection: it has a type that is
// not to be guessed, and says nothing that is the node's to say.
func passable(r *http1.PlainReply, isHead bool) bool {
	typed := isHead || r.Length == 0
	for i := range r.Fields {
		switch name := r.Fields[i].Name; len(name) {
		case len("Alt-Svc"):
			if http1.Is(name, "alt-svc") {
				return false
			}
		case len("Content-Type"):
			typed = typed || http1.Is(name, "content-type")
		case len(Unreached):
			if http1.Is(name, "perigee-unreached") {
				return false
			}
		}
	}
	return typed
}

// appendPassed appends the head of such a response.
func appendPassed(b []byte, r *http1.PlainReply) []byte {
	b = http1.AppendStatus(b, r.Code)
	dated := false
	for _, f := range r.Fields {
		dated = dated || len(f.Name) == len("date") && http1.Is(f.Name, "date")
		b = http1.AppendField(b, f)
	}
	if !dated {
		b = http1.AppendDate(b, time.Now())
	}
	return append(strconv.AppendInt(append(b, "Content-Length: "...), r.Length, 10), "\r\n\r\n"...)
}
