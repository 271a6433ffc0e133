package accelerator

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
)

// A client of QUIC whose address changes under it (a NAT that has forgotten it, another access network) goes on with its connection, which servers know by
// the IDs that they chose (RFC 9000, 9). Here it is a new flow, which is to end where the one before did. Three things say which that is:
//
//   - The IDs that were seen. A server's first one stands in the clear in the packets of its handshake (RFC 8999). Those that it gives out later are encrypted,
//     but not where the client uses them: a packet of a flow that is known names one, as long as those of the handshake. So a NAT may forget a client at any time.
//   - The client's address. Who moves on purpose takes an ID that was not used before (RFC 9000, 9.5), and probes the new path while it has the old one. A
//     packet that can begin no connection, from an address that has one, so is taken to be of that.
//   - The ID itself, where servers have put into it who they are (QUIC-LB).
//
// The server sees the client's new address and port and finds out by itself whether that is the client (path validation), as without anybody between. A stranger
// who has seen an ID is led to the server that it is of, and takes nothing away: the ID is of the flow before until the server has answered the new one. From then on it
// leads to the new one, which goes where the other does. A client that goes to another network on purpose, to servers whose IDs say nothing, is a new flow like others.
const (
	// minID and maxID bound IDs, in bytes: shorter ones would be found in what is no QUIC, and longer ones there are not.
	minID, maxID = 4, 20
	// maxIDs bounds how many are known of a flow; the oldest goes for one more.
	maxIDs = 4
	// maxLearned bounds how many IDs of those that a client uses are remembered in a second, of a flow: no client changes it that often.
	maxLearned = 2
	// initialSize is what a client's first packet has at least.
	initialSize = 1200
	// maxBeside bounds how many flows of a client are looked at for one that has a connection of QUIC.
	maxBeside = 16
)

// connID is an ID as servers at an address and port have chosen it.
type connID struct {
	at     netip.AddrPort
	length uint8
	id     [maxID]byte
}

func connIDOf(at netip.AddrPort, id []byte) (c connID) {
	c.at, c.length = at, uint8(len(id))
	copy(c.id[:], id)
	return c
}

// longHeader reads a packet with a long header (RFC 8999, 5.1).
func longHeader(p []byte) (version uint32, destination, source []byte, ok bool) {
	if len(p) < 7 || p[0]&0x80 == 0 {
		return 0, nil, nil, false
	}
	version, p = binary.BigEndian.Uint32(p[1:]), p[5:]
	if destination, p, ok = cutID(p); !ok {
		return 0, nil, nil, false
	}
	if source, _, ok = cutID(p); !ok {
		return 0, nil, nil, false
	}
	return version, destination, source, true
}

// cutID reads an ID after its length. QUIC's versions of now have 20 bytes at most.
func cutID(p []byte) (id, rest []byte, ok bool) {
	if len(p) == 0 || p[0] > maxID || int(p[0]) > len(p)-1 {
		return nil, nil, false
	}
	n := int(p[0])
	return p[1 : 1+n], p[1+n:], true
}

// isShort says whether a datagram may be a packet with a short header (RFC 9000, 17.3): one of a connection that stands.
func isShort(p []byte) bool { return len(p) > 0 && p[0]&0xc0 == 0x40 }

// beginsQUIC says whether a datagram may begin a connection of QUIC.
func beginsQUIC(p []byte) bool {
	version, _, _, ok := longHeader(p)
	return ok && version != 0 && len(p) >= initialSize
}

// chosenID is the ID that a server has chosen, in a packet of its handshake; nil: there is none.
func chosenID(p []byte) []byte {
	version, _, source, ok := longHeader(p)
	if !ok || version == 0 || len(source) < minID { // 0: it negotiates, and echoes what the client chose
		return nil
	}
	return source
}

// learn remembers an ID that a flow's server has chosen.
func (t *flowTable) learn(f *datagramFlow, id []byte) {
	if f.of == nil {
		return
	}
	f.idLength = len(id)
	t.remember(f, id)
}

// usage is what a flow's client calls its server.
type usage struct {
	last   [maxID]byte // by its last packet, as long as IDs of its server were
	second time.Time   // in which IDs are counted that were remembered of that
	number int
}

// used remembers the ID by which a flow's client calls its server, if that has chosen one before: those of one server are of one length, mostly. Of one that
// makes them of several, or a client that likes to change, what would be taken for an ID is another with each packet. So it takes two packets that have it.
func (t *flowTable) used(f *datagramFlow, p []byte) {
	n := f.idLength
	if n == 0 || len(p) <= n || !isShort(p) {
		return
	}
	id, u := p[1:1+n], &f.usage
	if !bytes.Equal(u.last[:n], id) {
		copy(u.last[:], id)
		return
	}
	if f.knows(id) {
		return
	}
	if now := time.Now(); now.Sub(u.second) >= time.Second {
		u.second, u.number = now, 0
	}
	if u.number < maxLearned {
		u.number++
		t.remember(f, id)
	}
}

// knows says whether an ID is one of a flow's.
func (f *datagramFlow) knows(id []byte) bool {
	for i := len(f.ids) - 1; i >= 0; i-- {
		if c := &f.ids[i]; bytes.Equal(c.id[:c.length], id) {
			return true
		}
	}
	return false
}

// remember has an ID be a flow's, unless it is another's.
func (t *flowTable) remember(f *datagramFlow, id []byte) {
	if f.knows(id) {
		return
	}
	c := connIDOf(f.key.at, id)
	if t.ids[c] != nil {
		return
	}
	if len(f.ids) >= maxIDs {
		t.forget(f.ids[0])
		f.ids = slices.Delete(f.ids, 0, 1)
	}
	t.ids[c] = f
	t.lengths[len(id)]++
	f.ids = append(f.ids, c)
}

// inherit has a flow have the IDs of the one that has the ID it came by, as its server has answered it: its client is the same.
func (t *flowTable) inherit(f *datagramFlow) {
	came := f.came
	if f.came = (connID{}); came.length == 0 {
		return
	}
	from := t.ids[came]
	switch from {
	case nil: // it is over already
		t.remember(f, came.id[:came.length])
		return
	case f:
		return
	}
	f.ids, from.ids = slices.Concat(from.ids, f.ids), nil
	for len(f.ids) > maxIDs {
		t.forget(f.ids[0])
		f.ids = slices.Delete(f.ids, 0, 1)
	}
	for _, c := range f.ids {
		t.ids[c] = f
	}
}

func (t *flowTable) unlearn(f *datagramFlow) {
	for _, c := range f.ids {
		t.forget(c)
	}
	f.ids = nil
}

func (t *flowTable) forget(c connID) {
	delete(t.ids, c)
	t.lengths[c.length]--
}

// before is the flow whose server knows a packet's ID, and that; nil: none is known. A short header does not say how long its ID is, so those lengths are tried that
// there are.
func (t *flowTable) before(at netip.AddrPort, p []byte) (*datagramFlow, connID) {
	if len(t.ids) == 0 || len(p) == 0 {
		return nil, connID{}
	}
	if _, id, _, ok := longHeader(p); ok {
		c := connIDOf(at, id)
		return t.ids[c], c
	}
	if p[0]&0x80 != 0 {
		return nil, connID{}
	}
	for n := minID; n <= maxID && n < len(p); n++ {
		if t.lengths[n] > 0 {
			c := connIDOf(at, p[1:1+n])
			if f := t.ids[c]; f != nil {
				return f, c
			}
		}
	}
	return nil, connID{}
}

// beside is a flow that may be of the connection whose packet came from another port of its client, or from another of its addresses; nil: none is known.
// It is the one of which the client was heard last.
func (t *flowTable) beside(key tuple, p []byte) *datagramFlow {
	client := t.clients[clientOf(key.client.Addr())]
	if client == nil || !isShort(p) {
		return nil
	}
	f := client.flows[settled].last
	for range maxBeside {
		if f == nil || f.idLength > 0 && f.key.at == key.at {
			return f
		}
		f = f.links[byClient].prev
	}
	return nil
}

// predecessor is the flow of whose connection a packet is that begins another; nil: none is known. Came is the ID that says so, if one does.
func (t *flowTable) predecessor(key tuple, p []byte) (f *datagramFlow, came connID) {
	if f, came = t.before(key.at, p); f == nil {
		f, came = t.beside(key, p), connID{}
	}
	return f, came
}

// quicServer is a server of QUIC behind a listener.
type quicServer struct {
	listener *spec.AcceleratorListener // with its endpoint alone, whatever its weight and dial
	target   netip.AddrPort
}

// serverID is what a server of QUIC calls itself in the connection IDs that it gives out (QUIC-LB: draft-ietf-quic-load-balancers, 4.1, plaintext), as NLB has it: eight
// bytes behind the first, whose three highest bits say by which configuration, all ones by none.
type serverID [8]byte

// serverOf reads that off a packet with a short header; not ok: there is none.
func serverOf(p []byte) (id serverID, ok bool) {
	if len(p) < 2+len(id) || !isShort(p) || p[1]>>5 == 7 {
		return id, false
	}
	return serverID(p[2:]), true
}

// server is the one of an ID behind a listener of the table; nil: there is none.
func (t *table) server(l *spec.AcceleratorListener, id serverID) *quicServer {
	of, known := t.servers.Load(l)
	if !known {
		of, _ = t.servers.LoadOrStore(l, sync.OnceValue(func() map[serverID]*quicServer { return serversOf(t.spec, l) }))
	}
	return of.(func() map[serverID]*quicServer)()[id]
}

func serversOf(s *spec.Spec, l *spec.AcceleratorListener) map[serverID]*quicServer {
	all := map[serverID]*quicServer{}
	for _, g := range l.EndpointGroups {
		for _, e := range g.Endpoints {
			t := s.TargetGroups[e.TargetGroup]
			if t == nil {
				continue
			}
			var alone *spec.AcceleratorListener
			for _, one := range t.Targets {
				id, ok := one.QUICServer()
				if !ok {
					continue
				}
				if alone == nil {
					e, g, l := e, g, *l
					e.Weight, g.TrafficDial = new(1), new(100.0)
					g.Endpoints = []spec.Endpoint{e}
					l.EndpointGroups = []spec.EndpointGroup{g}
					alone = &l
				}
				all[id] = &quicServer{alone, one.AddrPort()}
			}
		}
	}
	return all
}
