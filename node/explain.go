package node

import (
	"cmp"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/node/api"
	"github.com/perigee-net/perigee/node/front"
)

// explain calls the functions that serve, with a trace.
func (n *Node) explain(req api.ExplainRequest) (api.ExplainResponse, error) {
	var from netip.Addr
	if req.From != "" {
		var err error
		if from, err = netip.ParseAddr(req.From); err != nil {
			return api.ExplainResponse{}, badRequest("from: %v", err)
		}
	}
	var subnet netip.Prefix
	if req.Subnet != "" {
		var err error
		if subnet, err = netip.ParsePrefix(req.Subnet); err != nil {
			return api.ExplainResponse{}, badRequest("subnet: %v", err)
		}
		if req.What != "dns" {
			return api.ExplainResponse{}, badRequest("subnet: only a DNS query has one")
		}
	}
	tr := new(trace.Trace)
	var answer string
	var err error
	switch req.What {
	case "dns":
		answer, err = n.explainDNS(req.Target, cmp.Or(req.Type, "A"), from, subnet, tr)
	case "http":
		answer, err = n.explainHTTP(req, from, tr)
	case "tcp", "udp":
		var address netip.AddrPort
		if address, err = netip.ParseAddrPort(req.Target); err == nil {
			at := n.behindOwnDoor(req.What, address, tr)
			answer, err = n.accelerator.Explain(strings.ToUpper(req.What), at, from, tr)
			n.explainReturns(strings.ToUpper(req.What), at, tr)
			if why := n.whyClosed(req.What, address); err == nil && why != "" {
				tr.Add("the door %s %v of %s is closed: %s", req.What, address, n.cfg.Name, why)
				if answer = fmt.Sprintf("nowhere: the door of %s is closed (where it is open: %s)", n.cfg.Name, answer); why == neverOpened {
					answer = "nowhere: " + neverOpened
				}
			}
		}
	default:
		err = fmt.Errorf("what is explained is dns, http, tcp or udp, not %q", req.What)
	}
	if err != nil {
		return api.ExplainResponse{}, badRequest("%v", err)
	}
	return api.ExplainResponse{Node: n.cfg.Name, Lines: tr.Lines(), Answer: answer}, nil
}

// behindOwnDoor is the accelerator's address and port that a door of this node's own leads to (see [Config.OwnDoors]); the address itself where that is none.
func (n *Node) behindOwnDoor(network string, at netip.AddrPort, tr *trace.Trace) netip.AddrPort {
	if !n.cfg.OwnDoors || n.doorHost.IsValid() && !n.doorHost.IsUnspecified() && at.Addr() != n.doorHost {
		return at
	}
	r := n.returning.Load()
	if r == nil {
		return at
	}
	if _, is := r.accelerators[doorPlace{network, at}]; is {
		return at
	}
	behind, is := r.behind[doorPort{network, at.Port()}]
	if !is {
		return at
	}
	tr.Add("%v is a door of %s's own: it leads where %v does", at, n.cfg.Name, behind)
	return behind
}

// neverOpened is why a port of a custom routing accelerator is closed at every node.
const neverOpened = "no node opens a port that leads nowhere traffic may go"

// whyClosed is why this node, which takes flows, does not listen where an accelerator does; empty: it does, or takes none.
func (n *Node) whyClosed(network string, at netip.AddrPort) string {
	if !n.has(view.Edge) || n.front.IsOpen(network, at) || n.front.IsOpen(network, netip.AddrPortFrom(n.doorHost, at.Port())) && n.isDoorHost(at.Addr()) {
		return ""
	}
	if closed := n.shut.Load(); closed != nil {
		if why := closed.why[doorPlace{network, at}]; why != "" {
			return why
		}
	}
	if n.leadsNowhere(strings.ToUpper(network), at) {
		return neverOpened
	}
	return "it is not opened yet"
}

// leadsNowhere says whether a port is one that custom routing accelerators do not open ([spec.AcceleratorListener.OpenPorts]).
func (n *Node) leadsNowhere(protocol string, at netip.AddrPort) bool {
	for _, a := range n.running.Get().spec.Accelerators {
		if a.Type != spec.CustomRoutingAccelerator || !slices.Contains(a.IPAddresses, at.Addr()) {
			continue
		}
		for i := range a.Listeners {
			if l := &a.Listeners[i]; l.Protocol == protocol && l.Has(at.Port()) {
				return !slices.Contains(l.OpenPorts(), at.Port())
			}
		}
	}
	return false
}

// explainReturns says which of the addresses where flows of an accelerator's address and port end are not dialled, as they would come back.
func (n *Node) explainReturns(protocol string, at netip.AddrPort, tr *trace.Trace) {
	s := n.running.Get().spec
	told := map[netip.AddrPort]bool{}
	tell := func(to netip.AddrPort) {
		if !told[to] && n.returns(protocol, to) {
			told[to] = true
			tr.Add("%v is a door of this network itself: it is not dialled, for what is sent there would come back without end", to)
		}
	}
	for _, l := range n.accelerator.Listeners() {
		if l.Address != at || l.Protocol != protocol {
			continue
		}
		a := s.Accelerators[l.Accelerator]
		if a == nil {
			return
		}
		for i := range a.Listeners {
			if is := &a.Listeners[i]; is.Protocol == protocol && is.Has(at.Port()) {
				n.eachTarget(s, is, at.Port(), tell)
			}
		}
	}
}

// eachTarget calls tell with each address and port where flows of a listener's port may end, by the spec alone.
func (n *Node) eachTarget(s *spec.Spec, l *spec.AcceleratorListener, port uint16, tell func(netip.AddrPort)) {
	targets := func(name string) {
		if g := s.TargetGroups[name]; g != nil {
			for _, t := range g.Targets {
				tell(t.AddrPort())
			}
		}
	}
	for i := range l.EndpointGroups {
		g := &l.EndpointGroups[i]
		for _, e := range g.Endpoints {
			switch {
			case e.Address.IsValid():
				tell(netip.AddrPortFrom(e.Address, g.EndpointPort(port)))
			case e.TargetGroup != "":
				targets(e.TargetGroup)
			case e.LoadBalancer != "" && s.LoadBalancers[e.LoadBalancer] != nil:
				for _, of := range s.LoadBalancers[e.LoadBalancer].Listeners {
					if of.Port == g.EndpointPort(port) {
						targets(of.Default.Forward)
					}
				}
			}
		}
	}
}

func (n *Node) explainDNS(name, kind string, from netip.Addr, subnet netip.Prefix, tr *trace.Trace) (string, error) {
	e, err := n.names.Explain(name, kind, from, subnet)
	tr.Take(e.Lines)
	return e.String(), err
}

// explainHTTP first says which POP the client's name service would lead to, then what this node would do.
func (n *Node) explainHTTP(req api.ExplainRequest, from netip.Addr, tr *trace.Trace) (string, error) {
	u, err := url.Parse(req.Target)
	if err != nil {
		return "", err
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return "", fmt.Errorf("%q is no http or https URL", req.Target)
	}
	if from.IsValid() {
		out := tr.In("which POP does the name lead %v to?", from)
		lead, err := n.explainDNS(u.Hostname(), "A", from, netip.Prefix{}, tr)
		if err != nil {
			tr.Add("%v", err)
		} else {
			tr.Add("%s", lead)
		}
		out()
	}
	method := strings.ToUpper(req.Method)
	if method == "" {
		method = http.MethodGet
	}
	defer tr.In("what does %s do with it?", n.cfg.Name)()
	if u.Scheme == "https" {
		tr.Add("TLS is spoken by the security policy %s", cmp.Or(n.cdn.SecurityPolicy(u.Host), front.DefaultPolicy))
	}
	return n.cdn.Explain(method, u, tr)
}

func badRequest(format string, args ...any) error {
	return &api.Error{Status: http.StatusBadRequest, Message: fmt.Sprintf(format, args...)}
}
