package zone

import (
	"maps"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/spec"
)

// servers are the name servers that all hosted zones have that name none: ns-<pop> for each POP of the spec. There is one
// for all zones, as each of very many zones would have the same names for each of many POPs. Its addresses are those of the
// live name servers there, unless the operator has put records at that name.
type servers struct {
	labels []string            // ns-<pop>, by region
	at     map[string][]Choice // of each label: A and AAAA
}

const serverPrefix = "ns-"

func serversOf(s *spec.Spec) *servers {
	all := &servers{at: map[string][]Choice{}}
	for _, region := range slices.Sorted(maps.Keys(s.Regions)) {
		for _, pop := range s.Regions[region].POPs {
			label := serverPrefix + strings.ToLower(pop.Name)
			records := []Record{{Alias: &Alias{To: ToNameServer, Name: pop.Name, Region: region}}}
			all.labels = append(all.labels, label)
			all.at[label] = []Choice{{Type: dns.TypeA, Records: records}, {Type: dns.TypeAAAA, Records: records}}
		}
	}
	return all
}

// of are the names of a hosted zone's name servers.
func (s *servers) of(z *Zone) []string {
	var names []string
	if len(z.hosted.NameServers) > 0 {
		for _, name := range z.hosted.NameServers {
			names = append(names, dns.CanonicalName(name))
		}
		return names
	}
	for _, label := range s.labels {
		names = append(names, z.hosted.Owner(label))
	}
	return names
}

// first is the primary of a hosted zone: itself where it has no name server.
func (s *servers) first(z *Zone) string {
	switch {
	case len(z.hosted.NameServers) > 0:
		return dns.CanonicalName(z.hosted.NameServers[0])
	case len(s.labels) > 0:
		return z.hosted.Owner(s.labels[0])
	}
	return z.Name
}

// node is the node of a zone at a name, which may be that of a name server at a POP.
func (s *servers) node(z *Zone, name string, n *Node) *Node {
	if !strings.HasPrefix(name, serverPrefix) || z.hosted == nil || len(z.hosted.NameServers) > 0 || n != nil && len(n.Choices) > 0 {
		return n
	}
	at := s.at[strings.TrimSuffix(strings.TrimSuffix(name, z.Name), ".")]
	if at == nil {
		return n
	}
	server := &Node{Name: name, Choices: at}
	if n != nil { // there are names below it
		server.wild = n.wild
	}
	return server
}
