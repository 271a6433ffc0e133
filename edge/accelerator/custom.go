package accelerator

import (
	"net/netip"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/origin"
)

// notAllowed is why a flow is refused whose destination may have no traffic, as flow logs say it.
const notAllowed = "NOT_ALLOWED"

// isCustom says whether flows go where their port is mapped to (Global Accelerator, custom routing).
func isCustom(a *spec.Accelerator) bool { return a.Type == spec.CustomRoutingAccelerator }

// endpointResource is an endpoint given by address and port, as origin knows it.
func endpointResource(accelerator string, at netip.AddrPort) string {
	return "endpoint/" + accelerator + "/" + at.String()
}

// destinationResource is where a port of a custom routing accelerator is mapped to.
func destinationResource(accelerator string, m spec.PortMapping) string {
	return origin.Preserved(endpointResource(accelerator, m.Destination), m.ClientIPPreservation)
}

// route orders the ways for a flow of a custom routing accelerator: its port says where it ends, and only which node of that region dials it is
// chosen. Nothing there is checked, and nothing else takes the flow.
func (at site) route(l *spec.AcceleratorListener, tr *trace.Trace) []Candidate {
	m, mapped := l.PortMapping(at.flow.Local.Port())
	switch {
	case !mapped:
		tr.Add("port %d is mapped to nothing", at.flow.Local.Port())
		return nil
	case !m.Allowed:
		tr.Add("port %d is mapped to %v of %v in %s, which may have no traffic: neither allowAllTraffic nor allowedTraffic of the endpoint says so",
			m.ListenerPort, m.Destination, m.Subnet, m.Region)
		return nil
	}
	if tr.On() {
		tr.Add("port %d is mapped to %v of %v in %s, which may have traffic", m.ListenerPort, m.Destination, m.Subnet, m.Region)
	}
	standing, ok := at.view.Best(m.Region, view.Origin)
	if !ok {
		tr.Add("no node of %s has the role origin", m.Region)
		return nil
	}
	tellStanding(standing, m.Region, tr)
	g := &group{spec: &spec.EndpointGroup{Region: m.Region}}
	g.rankNodes(at, standing, tr)
	candidates := make([]Candidate, 0, attemptsPerGroup)
	for _, node := range g.nodes[:min(attemptsPerGroup, len(g.nodes))] {
		c := Candidate{Region: m.Region, Resource: destinationResource(at.accelerator.Name, m), Node: node}
		at.detour(&c, tr)
		candidates = append(candidates, c)
	}
	return candidates
}

// standsCustom judges a lane of a custom routing accelerator: no flow goes on where traffic may go no more.
func (l lane) standsCustom(a *spec.Accelerator, listener *spec.AcceleratorListener, is stance) stance {
	m, mapped := listener.PortMapping(l.local.Port())
	switch {
	case !mapped || m.Region != l.region || destinationResource(a.Name, m) != l.resource:
		return is
	case !m.Allowed:
		is.gone, is.stays = NotAllowed, false
		return is
	}
	return stance{healthy: true}
}

// subnetOf is the endpoint of a custom routing accelerator that an address is of, in words; "": none.
func subnetOf(a *spec.Accelerator, region string, at netip.AddrPort) string {
	for _, l := range a.Listeners {
		for _, g := range l.EndpointGroups {
			for _, e := range g.Endpoints {
				if g.Region == region && e.Subnet.IsValid() && e.Subnet.Contains(at.Addr()) {
					return e.Subnet.String()
				}
			}
		}
	}
	return ""
}

// refuses is why no endpoint took a flow to a port, as flow logs say it.
func (e entry) refuses(port uint16) string {
	if m, _ := e.listener.PortMapping(port); isCustom(e.accelerator) && !m.Allowed {
		return notAllowed
	}
	return noEndpoint
}
