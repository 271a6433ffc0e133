package stray

import (
	"encoding/binary"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// Where the fields are in the kernel's structures (include/uapi/linux/bpf.h), which never change.
const (
	skbType     = 4  // __sk_buff.pkt_type
	skbProtocol = 16 // __sk_buff.protocol, as on the wire
	skbTagged   = 20 // __sk_buff.vlan_present
	sockState   = 72 // bpf_sock.state
	typeHost    = 0  // PACKET_HOST
	stateListen = 10 // TCP_LISTEN
	fromNetwork = 1  // BPF_HDR_START_NET
	nextProgram = -1 // TCX_NEXT: what else is attached is asked, then the kernel goes on
)

// The stack of the program, below its frame.
const (
	onKey    = -keyBytes // the flow as keyOf writes it: client's address, server's, ports
	onServer = onKey + 16
	onPorts  = onKey + 32
	onHeader = -56 // the beginning of the IP header
	onFlags  = -60 // of TCP
	onTuple  = -76 // bpf_sock_tuple of IPv4; that of IPv6 is the key
	onIndex  = -80
	onTime   = -88
	onDoor   = -112 // address and port
)

// doorBytes is the length of an address with a port as a key of the kernel's maps; doorOf is it.
const doorBytes = 18

func doorOf(d netip.AddrPort) (k [doorBytes]byte) {
	a := d.Addr().As16()
	copy(k[:], a[:])
	binary.BigEndian.PutUint16(k[16:], d.Port())
	return k
}

// The values of the program's map of addresses.
const (
	anyPort   = 1 // what comes to it is looked at, by whichever port
	doorsOnly = 2 // by those that are in the map of doors
)

// keyBytes is the length of a flow as a key of the kernel's maps; IPv4 is mapped (RFC 4291, section 2.5.5.2).
const keyBytes = 36

// keyOf is the flow as the program writes it.
func keyOf(f Flow) (k [keyBytes]byte) {
	client, server := f.Client.Addr().As16(), f.Server.Addr().As16()
	copy(k[0:], client[:])
	copy(k[16:], server[:])
	binary.BigEndian.PutUint16(k[32:], f.Client.Port())
	binary.BigEndian.PutUint16(k[34:], f.Server.Port())
	return k
}

// budget is the value of the one entry of the program's map of that name: how many segments of flows that are not known it takes in a window.
type budget struct {
	Window uint64 // of 2^30 ns; the newest that there was
	Taken  uint64 // in it
	Limit  uint64 // of a window
	Drop   uint64 // beyond it: 1 drops, that the client sends again; 0 lets pass, that the kernel answers
}

// The entries of the program's map of counts.
const (
	countTaken = iota // sent to the device
	countOver         // beyond the budget
	counts
)

const (
	// maxSyns bounds the flows that began here of which is known that they did: more SYN than that in a round trip have the ends of some handshakes by cookies looked for elsewhere.
	maxSyns = 65536
	// synShift is for how long such a flow is remembered, as a power of two of ns: 17 s. A client sends again for longer what ends a handshake, but it has got the answer to its SYN.
	synShift = 34
)

// shared is what the programs know and say.
type shared struct {
	Addresses *ebpf.Map // [16]byte: those whose segments are looked at; the value is anyPort or doorsOnly
	Doors     *ebpf.Map // [doorBytes]byte: the doors of the latter
	Flows     *ebpf.Map // [keyBytes]byte: those that are known to be another node's, for which there is no budget
	Syns      *ebpf.Map // [keyBytes]byte: those that began here; the value is when, by the kernel's clock
	Budget    *ebpf.Map // one budget
	Counts    *ebpf.Map // uint64
}

// hostWord is four bytes as they stand, as a number that the machine stores so.
func hostWord(b ...byte) int64 { return int64(int32(binary.NativeEndian.Uint32(b))) }

// hostHalf is the same of two.
func hostHalf(b ...byte) int32 { return int32(binary.NativeEndian.Uint16(b)) }

// quoting marks R9 for a packet that quotes one of a flow: the kind of IP is in the bits below.
const quoting = 16

// look is what both programs begin with: a jump to no unless the packet is a whole TCP segment to one of the doors (nil: to any), or says of one from there that it was too big (ICMP), and
// to syn if it begins a flow; to is where there is a socket that has the flow, and none where there is none at all. What follows is for where one listens. The flow's key is
// at onKey, the flags of a segment are at onFlags, and the packet is in R6, then.
func look(m *shared, no, syn, to string) asm.Instructions {
	load := func(at asm.Instruction, stack, bytes int32) asm.Instructions {
		return asm.Instructions{
			asm.Mov.Reg(asm.R1, asm.R6), at,
			asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, stack),
			asm.Mov.Imm(asm.R4, bytes), asm.Mov.Imm(asm.R5, fromNetwork),
			asm.FnSkbLoadBytesRelative.Call(),
			asm.JNE.Imm(asm.R0, 0, no),
		}
	}
	at := func(n int32) asm.Instruction { return asm.Mov.Imm(asm.R2, n) }
	past := func(n int32) asm.Instructions { // R8
		return asm.Instructions{asm.Mov.Reg(asm.R2, asm.R8), asm.Add.Imm(asm.R2, n)}
	}
	loadPast := func(n, stack, bytes int32) asm.Instructions {
		p := load(past(n)[0], stack, bytes)
		return append(asm.Instructions{p[0]}, append(past(n), p[2:]...)...)
	}
	mapped := func(stack int16) asm.Instructions {
		return asm.Instructions{
			asm.StoreImm(asm.RFP, stack, 0, asm.Word), asm.StoreImm(asm.RFP, stack+4, 0, asm.Word),
			asm.StoreImm(asm.RFP, stack+8, hostWord(0, 0, 0xff, 0xff), asm.Word),
		}
	}
	same := func(one, other int16, words int16) (p asm.Instructions) {
		for i := range words {
			p = append(p, asm.LoadMem(asm.R1, asm.RFP, one+4*i, asm.Word), asm.LoadMem(asm.R2, asm.RFP, other+4*i, asm.Word), asm.JNE.Reg(asm.R1, asm.R2, no))
		}
		return p
	}
	var p asm.Instructions
	add := func(more ...asm.Instruction) { p = append(p, more...) }

	add(asm.Mov.Reg(asm.R6, asm.R1), asm.LoadMem(asm.R2, asm.R6, skbProtocol, asm.Word),
		asm.JEq.Imm(asm.R2, hostHalf(0x08, 0x00), "v4"),
		asm.JEq.Imm(asm.R2, hostHalf(0x86, 0xdd), "v6"),
		asm.Ja.Label(no))

	// IPv4: no fragment, and R8 is where TCP begins.
	add(labelled("v4", load(at(0), onHeader, 12))...)
	length := asm.Instructions{asm.LoadMem(asm.R1, asm.RFP, onHeader, asm.Byte), asm.And.Imm(asm.R1, 0x0f), asm.LSh.Imm(asm.R1, 2)}
	add(asm.LoadMem(asm.R1, asm.RFP, onHeader+6, asm.Half), asm.And.Imm(asm.R1, hostHalf(0x3f, 0xff)), asm.JNE.Imm(asm.R1, 0, no))
	add(length...)
	add(asm.Mov.Reg(asm.R8, asm.R1))
	add(mapped(onKey)...)
	add(mapped(onServer)...)
	add(asm.LoadMem(asm.R1, asm.RFP, onHeader+9, asm.Byte))
	if m != nil {
		add(asm.JEq.Imm(asm.R1, protocolICMP, "icmp4"))
	}
	add(asm.JNE.Imm(asm.R1, protocolTCP, no))
	add(load(at(12), onKey+12, 4)...)
	add(load(at(16), onServer+12, 4)...)
	add(asm.Mov.Imm(asm.R9, 4), asm.Ja.Label("both"))

	// IPv6: TCP is right behind the header, or it is left alone.
	add(labelled("v6", load(at(0), onHeader, 8))...)
	add(asm.LoadMem(asm.R1, asm.RFP, onHeader+6, asm.Byte))
	if m != nil {
		add(asm.JEq.Imm(asm.R1, protocolICMP6, "icmp6"))
	}
	add(asm.JNE.Imm(asm.R1, protocolTCP, no))
	add(load(at(8), onKey, 32)...)
	add(asm.Mov.Imm(asm.R8, 40), asm.Mov.Imm(asm.R9, 6))
	if m != nil {
		add(asm.Ja.Label("both"))

		// What the message quotes was sent from here, to the client: R8 is where its TCP begins, and its ports are the other way round.
		add(labelled("icmp4", loadPast(0, onHeader, 2))...)
		add(asm.LoadMem(asm.R1, asm.RFP, onHeader, asm.Half), asm.JNE.Imm(asm.R1, hostHalf(3, 4), no))
		add(loadPast(8, onHeader, 12)...)
		add(asm.LoadMem(asm.R1, asm.RFP, onHeader+9, asm.Byte), asm.JNE.Imm(asm.R1, protocolTCP, no),
			asm.LoadMem(asm.R1, asm.RFP, onHeader+6, asm.Half), asm.And.Imm(asm.R1, hostHalf(0x1f, 0xff)), asm.JNE.Imm(asm.R1, 0, no),
			asm.LoadMem(asm.R1, asm.RFP, onHeader, asm.Byte), asm.RSh.Imm(asm.R1, 4), asm.JNE.Imm(asm.R1, 4, no))
		add(loadPast(8+12, onServer+12, 4)...)
		add(loadPast(8+16, onKey+12, 4)...)
		add(load(at(16), onDoor, 4)...)
		add(same(onDoor, onServer+12, 1)...)
		add(length...)
		add(asm.Add.Imm(asm.R1, 8), asm.Add.Reg(asm.R8, asm.R1), asm.Mov.Imm(asm.R9, 4|quoting), asm.Ja.Label("both"))

		add(labelled("icmp6", load(at(40), onHeader, 1))...)
		add(asm.LoadMem(asm.R1, asm.RFP, onHeader, asm.Byte), asm.JNE.Imm(asm.R1, tooBig6, no))
		add(load(at(48), onHeader, 8)...)
		add(asm.LoadMem(asm.R1, asm.RFP, onHeader+6, asm.Byte), asm.JNE.Imm(asm.R1, protocolTCP, no),
			asm.LoadMem(asm.R1, asm.RFP, onHeader, asm.Byte), asm.RSh.Imm(asm.R1, 4), asm.JNE.Imm(asm.R1, 6, no))
		add(load(at(48+8), onServer, 16)...)
		add(load(at(48+24), onKey, 16)...)
		add(load(at(24), onDoor, 16)...)
		add(same(onDoor, onServer, 4)...)
		add(asm.Mov.Imm(asm.R8, 48+40), asm.Mov.Imm(asm.R9, 6|quoting))
	}

	var both asm.Instructions
	if m != nil {
		both = append(both, asm.LoadMapPtr(asm.R1, m.Addresses.FD()), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, onServer),
			asm.FnMapLookupElem.Call(), asm.JEq.Imm(asm.R0, 0, no), asm.LoadMem(asm.R7, asm.R0, 0, asm.Byte))
	}
	both = append(both, load(asm.Mov.Reg(asm.R2, asm.R8), onPorts, 4)...)
	if m != nil {
		both = append(both, asm.JLT.Imm(asm.R9, quoting, "ports"),
			asm.LoadMem(asm.R1, asm.RFP, onPorts, asm.Half), asm.LoadMem(asm.R2, asm.RFP, onPorts+2, asm.Half),
			asm.StoreMem(asm.RFP, onPorts, asm.R2, asm.Half), asm.StoreMem(asm.RFP, onPorts+2, asm.R1, asm.Half),
			asm.JNE.Imm(asm.R7, doorsOnly, "door").WithSymbol("ports"))
		for i := range int16(4) {
			both = append(both, asm.LoadMem(asm.R1, asm.RFP, onServer+4*i, asm.Word), asm.StoreMem(asm.RFP, onDoor+4*i, asm.R1, asm.Word))
		}
		both = append(both, asm.LoadMem(asm.R1, asm.RFP, onPorts+2, asm.Half), asm.StoreMem(asm.RFP, onDoor+16, asm.R1, asm.Half),
			asm.LoadMapPtr(asm.R1, m.Doors.FD()), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, onDoor),
			asm.FnMapLookupElem.Call(), asm.JEq.Imm(asm.R0, 0, no))
	}
	both = append(both, asm.JGE.Imm(asm.R9, quoting, "whose").WithSymbol("door"), asm.Add.Imm(asm.R8, 13))
	both = append(both, load(asm.Mov.Reg(asm.R2, asm.R8), onFlags, 1)...)
	add(labelled("both", both)...)
	add(asm.LoadMem(asm.R1, asm.RFP, onFlags, asm.Byte), asm.And.Imm(asm.R1, flagSYN), asm.JNE.Imm(asm.R1, 0, syn),
		asm.And.Imm(asm.R9, quoting-1).WithSymbol("whose"), asm.JEq.Imm(asm.R9, 6, "tuple6"))
	for i, from := range []int16{onKey + 12, onServer + 12, onPorts} {
		add(asm.LoadMem(asm.R1, asm.RFP, from, asm.Word), asm.StoreMem(asm.RFP, onTuple+int16(4*i), asm.R1, asm.Word))
	}
	add(asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, onTuple), asm.Mov.Imm(asm.R3, 12), asm.Ja.Label("lookup"),
		asm.Mov.Reg(asm.R2, asm.RFP).WithSymbol("tuple6"), asm.Add.Imm(asm.R2, onKey), asm.Mov.Imm(asm.R3, 36),
		asm.Mov.Reg(asm.R1, asm.R6).WithSymbol("lookup"), asm.Mov.Imm(asm.R4, -1), asm.Mov.Imm(asm.R5, 0), // of the device's namespace
		asm.FnSkcLookupTcp.Call(),
		asm.JEq.Imm(asm.R0, 0, "none"),
		asm.LoadMem(asm.R7, asm.R0, sockState, asm.Word),
		asm.Mov.Reg(asm.R1, asm.R0), asm.FnSkRelease.Call(),
		asm.JNE.Imm(asm.R7, stateListen, to))
	return p
}

func labelled(label string, p asm.Instructions) asm.Instructions {
	p[0] = p[0].WithSymbol(label)
	return p
}

// finds is the program that is asked whether a socket of this machine has the flow of a packet: 1 or 0.
func finds() *ebpf.ProgramSpec {
	p := look(nil, "no", "no", "yes")
	p = append(p,
		asm.Mov.Imm(asm.R0, 0).WithSymbol("none"), asm.Return(),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("no"), asm.Return(),
		asm.Mov.Imm(asm.R0, 1).WithSymbol("yes"), asm.Return())
	return &ebpf.ProgramSpec{Name: "stray_finds", Type: ebpf.SchedCLS, Instructions: p, License: "Apache-2.0"}
}

// takes is the program at the interfaces: it sends strays to the device, within the budget, and lets everything else pass.
//
// A frame to another machine's address, as a port that is promiscuous gets it from a switch that floods, is that machine's. A tagged one is of a VLAN, and comes again at that one's device,
// without its tag, which the device of strays would put in front of the packet.
//
// That a packet was too big is said to whoever routing leads it to: where no socket here has the flow of that packet it goes the way of the flow's segments.
//
// SYN goes by: new flows are this node's. So does the acknowledgement that ends a handshake, for which there is a request. Where the listener has sent a cookie there is
// none, and it would be a stray: it is known by its SYN, which came here. To have the kernel check the cookie (bpf_tcp_check_syncookie) is for programs under the GPL alone.
func takes(m shared, device int) *ebpf.ProgramSpec {
	p := asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, skbType, asm.Word), asm.JNE.Imm(asm.R2, typeHost, "pass"),
		asm.LoadMem(asm.R2, asm.R1, skbTagged, asm.Word), asm.JNE.Imm(asm.R2, 0, "pass"),
	}
	p = append(p, look(&m, "pass", "syn", "pass")...)
	count := func(which int64) asm.Instructions {
		return asm.Instructions{
			asm.StoreImm(asm.RFP, onIndex, which, asm.Word),
			asm.LoadMapPtr(asm.R1, m.Counts.FD()), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, onIndex), asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "pass"),
			asm.Mov.Imm(asm.R1, 1), asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
		}
	}
	p = append(p,
		asm.LoadMapPtr(asm.R1, m.Syns.FD()), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, onKey), asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "none"),
		asm.LoadMem(asm.R7, asm.R0, 0, asm.DWord), asm.FnKtimeGetNs.Call(), asm.Sub.Reg(asm.R0, asm.R7), asm.RSh.Imm(asm.R0, synShift),
		asm.JEq.Imm(asm.R0, 0, "pass"),

		asm.LoadMapPtr(asm.R1, m.Flows.FD()).WithSymbol("none"), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, onKey), asm.FnMapLookupElem.Call(),
		asm.JNE.Imm(asm.R0, 0, "take"),

		// Processors may count beside each other as a window begins: the bound is one of some more, then.
		asm.StoreImm(asm.RFP, onIndex, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, m.Budget.FD()), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, onIndex), asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "pass"),
		asm.Mov.Reg(asm.R7, asm.R0), asm.FnKtimeGetNs.Call(), asm.RSh.Imm(asm.R0, 30),
		asm.LoadMem(asm.R1, asm.R7, 0, asm.DWord), asm.JEq.Reg(asm.R0, asm.R1, "counted"),
		asm.StoreMem(asm.R7, 0, asm.R0, asm.DWord), asm.Mov.Imm(asm.R1, 0), asm.StoreMem(asm.R7, 8, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R1, 1).WithSymbol("counted"), asm.Mov.Reg(asm.R2, asm.R7), asm.Add.Imm(asm.R2, 8), asm.StoreXAdd(asm.R2, asm.R1, asm.DWord),
		asm.LoadMem(asm.R1, asm.R7, 8, asm.DWord), asm.LoadMem(asm.R2, asm.R7, 16, asm.DWord),
		asm.JLE.Reg(asm.R1, asm.R2, "take"),
		asm.LoadMem(asm.R9, asm.R7, 24, asm.DWord))
	p = append(p, count(countOver)...)
	p = append(p,
		asm.JEq.Imm(asm.R9, 0, "pass"),
		asm.Mov.Imm(asm.R0, 2), asm.Return()) // TCX_DROP
	p = append(p, labelled("take", count(countTaken))...)
	p = append(p,
		asm.Mov.Imm(asm.R1, int32(device)), asm.Mov.Imm(asm.R2, 0), asm.FnRedirect.Call(), asm.Return(),

		asm.LoadMem(asm.R1, asm.RFP, onFlags, asm.Byte).WithSymbol("syn"), asm.And.Imm(asm.R1, flagACK), asm.JNE.Imm(asm.R1, 0, "pass"),
		asm.FnKtimeGetNs.Call(), asm.StoreMem(asm.RFP, onTime, asm.R0, asm.DWord),
		asm.LoadMapPtr(asm.R1, m.Syns.FD()), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, onKey),
		asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, onTime), asm.Mov.Imm(asm.R4, 0), asm.FnMapUpdateElem.Call(), // one that does not fit is not known
		asm.Mov.Imm(asm.R0, nextProgram).WithSymbol("pass"), asm.Return())
	return &ebpf.ProgramSpec{Name: "stray_takes", Type: ebpf.SchedCLS, AttachType: ebpf.AttachTCXIngress, Instructions: p, License: "Apache-2.0"}
}
