package report

import (
	"github.com/perigee-net/perigee/cluster/rendezvous"
)

const (
	// headsOfRegion is how many nodes of a region speak for it: with one of them gone, nothing stands still.
	headsOfRegion = 2
	// meshed is up to how many nodes in all everyone has a stream with everyone.
	meshed = 8
)

// wish is what a node asks a peer to tell it without being asked, beside the peer's own words, which are always told.
type wish byte

const (
	own        wish = iota // nothing else
	region                 // what the nodes of the peer's region said
	everything             // what all said
)

// topology is with whom a node has streams, and what it asks of them: pure, so that nodes that know the same members agree on it.
//
// A member has a stream with each head of its region, and asks for everything; a head has one with each node of its region and with
// each head of the others, of which it asks for what their regions say; of the other head of its region it asks for everything too. In a small cluster all have streams with all. A node that
// is not heard over these, as its way there is cut, is heard over others: see stream.tell and stream.ask.
func topology(self Peer, live []Peer) map[string]wish {
	wishes := map[string]wish{}
	if len(live) <= meshed {
		for _, p := range live {
			if p.Name != self.Name {
				wishes[p.Name] = own
			}
		}
		return wishes
	}
	members := map[string][]string{}
	for _, p := range live {
		members[p.Region] = append(members[p.Region], p.Name)
	}
	heads := rendezvous.Highest(self.Region, members[self.Region], headsOfRegion)
	if !contains(heads, self.Name) {
		for _, h := range heads {
			wishes[h] = everything
		}
		return wishes
	}
	for r, names := range members {
		if r == self.Region {
			for _, n := range names {
				wishes[n] = own
			}
			for _, h := range heads {
				wishes[h] = everything // there are few, and what one of them misses it has at once
			}
			continue
		}
		for _, h := range rendezvous.Highest(r, names, headsOfRegion) {
			wishes[h] = region
		}
	}
	delete(wishes, self.Name)
	return wishes
}

// reserves are whom a member asks for everything that reaches no head of its region: two others of its region, and two of the rest.
func reserves(self Peer, live []Peer) []string {
	var near, far []string
	for _, p := range live {
		switch {
		case p.Name == self.Name:
		case p.Region == self.Region:
			near = append(near, p.Name)
		default:
			far = append(far, p.Name)
		}
	}
	near = rendezvous.Highest(self.Region, near, headsOfRegion+2)
	return append(near[min(headsOfRegion, len(near)):], rendezvous.Highest(self.Name, far, 2)...)
}

func contains(names []string, name string) bool {
	for _, n := range names {
		if n == name {
			return true
		}
	}
	return false
}
