package stray

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// The kinds of messages between two nodes, as the first byte has it.
const (
	kindAsk    = 1 // a flow: say whether it is yours
	kindCarry  = 2 // a packet of a flow that you have said is yours: take it
	kindHas    = 3 // a flow: it is mine
	kindHasNot = 4 // a flow: it is not
)

var errMessage = errors.New("malformed message")

// flowBytes is the length of a message that is a flow: the kind, the addresses with IPv4 mapped, the ports.
const flowBytes = 1 + 16 + 16 + 2 + 2

// appendFlow appends a message that is a flow. A question is no more than that, for it goes to many, and anybody can have it asked.
func appendFlow(b []byte, kind byte, f Flow) []byte {
	client, server := f.Client.Addr().As16(), f.Server.Addr().As16()
	b = append(append(append(b, kind), client[:]...), server[:]...)
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, f.Client.Port()), f.Server.Port())
}

// readFlow reads one, after its kind.
func readFlow(b []byte) (f Flow, err error) {
	if len(b) != flowBytes {
		return f, fmt.Errorf("%w: %d bytes, not %d", errMessage, len(b), flowBytes)
	}
	client, server := netip.AddrFrom16([16]byte(b[1:])).Unmap(), netip.AddrFrom16([16]byte(b[17:])).Unmap()
	if client.Is4() != server.Is4() {
		return f, fmt.Errorf("%w: of two families", errMessage)
	}
	f.Client = netip.AddrPortFrom(client, binary.BigEndian.Uint16(b[33:]))
	f.Server = netip.AddrPortFrom(server, binary.BigEndian.Uint16(b[35:]))
	return f, nil
}

// appendAnswer appends whether a flow is one's own.
func appendAnswer(b []byte, f Flow, has bool) []byte {
	if has {
		return appendFlow(b, kindHas, f)
	}
	return appendFlow(b, kindHasNot, f)
}

// readAnswer reads one.
func readAnswer(b []byte) (f Flow, has bool, err error) {
	if len(b) < 1 || b[0] != kindHas && b[0] != kindHasNot {
		return f, false, fmt.Errorf("%w: no answer", errMessage)
	}
	f, err = readFlow(b)
	return f, b[0] == kindHas, err
}
