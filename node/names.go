package node

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"time"

	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/dnsgeo"
	"github.com/perigee-net/perigee/dnsgeo/querylog"
	"github.com/perigee-net/perigee/edge/http1"
	"github.com/perigee-net/perigee/node/front"
)

// openQueryLog opens where queries are written down; nil: nowhere.
func (n *Node) openQueryLog() (*querylog.Log, error) {
	if n.cfg.QueryLog == "" || !n.has(view.DNS) {
		return nil, nil
	}
	l, err := querylog.Open(querylog.Config{Path: n.cfg.QueryLog, JSON: n.cfg.QueryLogFormat == QueryLogJSON, Log: n.cfg.Log})
	if err != nil {
		return nil, fmt.Errorf("--dns-query-log: %w", err)
	}
	n.onClose("query log", func(context.Context) error { return l.Close() })
	return l, nil
}

// openNames opens the doors of the name service that are its own. They end with it.
func (n *Node) openNames() error {
	if !n.has(view.DNS) {
		return nil
	}
	for _, d := range []struct {
		network, address, what string
		tls                    bool
	}{
		{"udp", n.cfg.DNS, "DNS", false}, {"tcp", n.cfg.DNS, "DNS", false},
		{"tcp", n.cfg.DNSTLS, "DNS over TLS", true}, {"udp", n.cfg.DNSQUIC, "DNS over QUIC", true},
	} {
		var err error
		switch {
		case d.address == "":
		case d.network == "tcp":
			err = n.openNameStreams(d.address, d.tls)
		default:
			err = n.openNamePackets(d.address, d.tls)
		}
		if err != nil {
			return fmt.Errorf("open %s: %w", d.what, err)
		}
	}
	return nil
}

func (n *Node) openNameStreams(address string, tls bool) error {
	streams, err := n.cfg.Listen("tcp", address)
	if err != nil {
		return err
	}
	if at, err := netip.ParseAddrPort(streams.Addr().String()); err == nil {
		n.nameDoors = append(n.nameDoors, at)
	}
	n.goes(func() {
		if tls {
			n.names.ServeTLS(streams, n.front.TLS("dot"))
		} else {
			n.names.ServeStream(streams)
		}
	})
	return nil
}

func (n *Node) openNamePackets(address string, quic bool) error {
	if !quic {
		packets, err := n.cfg.ListenPackets("udp", address, runtime.GOMAXPROCS(0))
		if err != nil {
			return err
		}
		n.goes(func() { n.names.ServePackets(packets) })
		return nil
	}
	packets, err := n.cfg.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	n.goes(func() {
		cluster := n.guard.Node().Keys().Cluster
		err := n.names.ServeQUIC(packets, n.front.TLS("doq"), cluster.Derive("quic tokens"), cluster.Derive("quic resets of DNS at "+n.cfg.Name))
		if err != nil {
			n.cfg.Log.Error("DNS over QUIC has ended", "error", err)
		}
	})
	return nil
}

// namesAt answers DNS at one path of some hosts, and has the rest answered as it was.
type namesAt struct {
	hosts map[string]bool
	names *dnsgeo.Server
	next  http.Handler
	quick http1.Quick
	relay http1.Relay
}

// withNames has a door answer DNS over HTTPS, on the hosts that this node was told.
func (n *Node) withNames(d *front.Door) {
	at := &namesAt{hosts: map[string]bool{}, names: n.names, next: d.Handler, quick: d.Quick, relay: d.Relay}
	for _, h := range n.cfg.DNSHTTPS {
		at.hosts[h] = true
	}
	d.Handler, d.Quick = at, at.Quick
	if d.Relay != nil {
		d.Relay = at.Relay
	}
}

// ServeHTTP implements http.Handler.
func (a *namesAt) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == dnsgeo.HTTPSPath && a.hosts[hostOf(r.Host)] {
		a.names.ServeHTTP(w, r)
		return
	}
	a.next.ServeHTTP(w, r)
}

// Quick is an http1.Quick. It has one allocation, for the response.
func (a *namesAt) Quick(q *http1.Request, w *http1.Response) bool {
	if !a.asks(q) {
		return a.quick != nil && a.quick(q, w)
	}
	if q.Head {
		return false
	}
	before := len(w.Head)
	head, body := a.names.QuickHTTPS(appendOK(w.Head), q.Query, q.Remote.Addr())
	if body == nil {
		w.Head = head[:before]
		return false
	}
	w.Status, w.Head, w.Body = http.StatusOK, head, body
	return true
}

// asks says whether a request is for DNS.
func (a *namesAt) asks(q *http1.Request) bool {
	return string(q.Path) == dnsgeo.HTTPSPath && a.hosts[hostOf(string(q.Host))]
}

// Relay is an http1.Relay.
func (a *namesAt) Relay(q *http1.Request, w *http1.Response, room func() []byte) (bool, http1.Begun) {
	if a.asks(q) {
		return false, nil
	}
	return a.relay(q, w, room)
}

// noSite answers where there is nothing but DNS.
func noSite(w http.ResponseWriter, _ *http.Request) {
	http.Error(w, "421 Misdirected Request", http.StatusMisdirectedRequest)
}

// hostOf is the host of an authority, as hosts are compared: without the port, a dot at its end, the brackets of IPv6, and in small
// letters.
func hostOf(authority string) string {
	host := authority
	if end := strings.IndexByte(host, ']'); strings.HasPrefix(host, "[") && end > 0 {
		host = host[1:end]
	} else if at := strings.IndexByte(host, ':'); at >= 0 && strings.IndexByte(host[at+1:], ':') < 0 {
		host = host[:at]
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// appendOK begins the head of an answer.
func appendOK(b []byte) []byte {
	b = append(b, "HTTP/1.1 200 OK\r\nDate: "...)
	return append(time.Now().UTC().AppendFormat(b, http.TimeFormat), "\r\n"...)
}
