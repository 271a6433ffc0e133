package stray

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// The kinds of messages between two nodes, as the first byte has it.
const (
	kindAsk    = 1 // a packet: take it if its flow is yours, and say whether it is
	kindCarry  = 2 // a packet of a flow that you have said is yours
	kindHas    = 3 // a flow: it is mine
	kindHasNot = 4 // a flow: it is not
)

var errMessage = errors.New("malformed message")

// appendAnswer appends whether a flow is one's own: the kind, the addresses with IPv4 mapped, the ports.
func appendAnswer(b []byte, f Flow, has bool) []byte {
	kind := byte(kindHasNot)
	if has {
		kind = kindHas
	}
	client, server := f.Client.Addr().As16(), f.Server.Addr().As16()
	b = append(append(append(b, kind), client[:]...), server[:]...)
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, f.Client.Port()), f.Server.Port())
}

// readAnswer reads one.
func readAnswer(b []byte) (f Flow, has bool, err error) {
	if len(b) != 37 || b[0] != kindHas && b[0] != kindHasNot {
		return f, false, fmt.Errorf("%w: no answer", errMessage)
	}
	client, server := netip.AddrFrom16([16]byte(b[1:])).Unmap(), netip.AddrFrom16([16]byte(b[17:])).Unmap()
	if client.Is4() != server.Is4() {
		return f, false, fmt.Errorf("%w: of two families", errMessage)
	}
	f.Client = netip.AddrPortFrom(client, binary.BigEndian.Uint16(b[33:]))
	f.Server = netip.AddrPortFrom(server, binary.BigEndian.Uint16(b[35:]))
	return f, b[0] == kindHas, nil
}
