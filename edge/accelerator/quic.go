package accelerator

import (
	"encoding/binary"
	"net/netip"
)

// A client of QUIC whose address changes under it (a NAT that has forgotten it, another access network) goes on with its connection, which servers know by
// the IDs that they chose (RFC 9000, 9). Here it is a new flow. So that it ends where the one before did, the IDs are read off the packets of
// the handshake, where they stand in the clear (RFC 8999), and a flow that begins with one of them is led to the endpoint and the target of the one that
// it was read from. The server sees the client's new port and finds out by itself whether that is the client (path validation), as without anybody
// between: a stranger who has seen an ID gains nothing by it. IDs that a server gives out later are encrypted and not known here: a client that
// moves on purpose uses such a one (RFC 9000, 9.5), and is a new flow like others.
const (
	// minID and maxID bound IDs, in bytes: shorter ones would be found in what is no QUIC, and longer ones there are not.
	minID, maxID = 4, 20
	// maxIDs bounds how many are known of a flow.
	maxIDs = 4
	// initialSize is what a client's first packet has at least.
	initialSize = 1200
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

// learn remembers an ID of a flow's server.
func (t *flowTable) learn(f *datagramFlow, id []byte) {
	c := connIDOf(f.key.at, id)
	if f.of == nil || len(f.ids) >= maxIDs || t.ids[c] != nil {
		return
	}
	t.ids[c] = f
	t.lengths[len(id)]++
	f.ids = append(f.ids, c)
}

// inherit has the IDs of a flow be another's, whose client is the same.
func (t *flowTable) inherit(f, from *datagramFlow) {
	f.ids, from.ids = from.ids, nil
	for _, c := range f.ids {
		t.ids[c] = f
	}
}

func (t *flowTable) unlearn(f *datagramFlow) {
	for _, c := range f.ids {
		delete(t.ids, c)
		t.lengths[c.length]--
	}
	f.ids = nil
}

// before is the flow whose server knows a packet's ID; nil: none is known. A short header does not say how long its ID is, so those lengths are tried that
// there are.
func (t *flowTable) before(at netip.AddrPort, p []byte) *datagramFlow {
	if len(t.ids) == 0 || len(p) == 0 {
		return nil
	}
	if _, id, _, ok := longHeader(p); ok {
		return t.ids[connIDOf(at, id)]
	}
	if p[0]&0xc0 != 0x40 {
		return nil
	}
	for n := minID; n <= maxID && n < len(p); n++ {
		if t.lengths[n] > 0 {
			if f := t.ids[connIDOf(at, p[1:1+n])]; f != nil {
				return f
			}
		}
	}
	return nil
}
