package spec

import (
	"cmp"
	"slices"
)

func (g *SecurityGroup) complete() {
	for i := range g.Ingress {
		r := &g.Ingress[i]
		r.ToPort = cmp.Or(r.ToPort, r.FromPort)
	}
}

// Concerns says whether the rule is about a port of a protocol, tcp or udp.
func (r *IngressRule) Concerns(protocol string, port uint16) bool {
	return r.Protocol == AllProtocols || r.Protocol == protocol && r.FromPort <= port && port <= r.ToPort
}

func (c check) securityGroup(g *SecurityGroup) {
	c.name(g.Name)
	for i := range g.Ingress {
		r, field := &g.Ingress[i], at("ingress", i)
		switch {
		case r.Protocol == "" || c.told(field+".fromPort") || c.told(field+".toPort"):
		case r.Protocol == AllProtocols && (r.FromPort != 0 || r.ToPort != 0):
			c.fault(field+".fromPort", "has no meaning for protocol %s, which is all ports", AllProtocols)
		case r.Protocol == AllProtocols:
		case r.FromPort == 0:
			c.fault(field+".fromPort", "is required for %s", r.Protocol)
		case r.ToPort < r.FromPort:
			c.fault(field+".toPort", "%d is below fromPort, %d", r.ToPort, r.FromPort)
		}
	}
}

// securityGroups judges the groups that something names.
func (c check) securityGroups(list string, names []string) {
	seen := map[string]bool{}
	for i, name := range names {
		find(c, at(list, i), "SecurityGroup", c.spec.SecurityGroups, name)
		c.listed(at(list, i), name, seen)
	}
}

func (lb *LoadBalancer) guardedBy(groups *texts) bool {
	return groups != nil && slices.ContainsFunc(lb.SecurityGroups, groups.has)
}
