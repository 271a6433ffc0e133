package stray

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
)

var (
	flow4 = Flow{netip.MustParseAddrPort("192.0.2.7:40112"), netip.MustParseAddrPort("198.51.100.1:443")}
	flow6 = Flow{netip.MustParseAddrPort("[2001:db8::7]:40112"), netip.MustParseAddrPort("[2001:db8:5::1]:443")}
)

// packet makes a packet of a flow, with options of IP (of IPv4) and TCP, whose lengths are multiples of four.
func packet(f Flow, flags byte, seq uint32, data []byte, ipOptions, tcpOptions int) []byte {
	length := 20 + tcpOptions + len(data)
	var b []byte
	if f.Client.Addr().Is4() {
		b = append(b, byte(0x45+ipOptions/4), 0, 0, 0, 0x12, 0x34, 0x40, 0, 61, protocolTCP, 0, 0)
		b = append(append(b, f.Client.Addr().AsSlice()...), f.Server.Addr().AsSlice()...)
		b = append(b, make([]byte, ipOptions)...)
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)+length))
		binary.BigEndian.PutUint16(b[10:], ^fold(sum(0, b)))
	} else {
		b = append(b, 0x60, 0, 0, 0, 0, 0, protocolTCP, 61)
		b = append(append(b, f.Client.Addr().AsSlice()...), f.Server.Addr().AsSlice()...)
		binary.BigEndian.PutUint16(b[4:], uint16(length))
	}
	at := len(b)
	b = binary.BigEndian.AppendUint16(b, f.Client.Port())
	b = binary.BigEndian.AppendUint16(b, f.Server.Port())
	b = binary.BigEndian.AppendUint32(b, seq)
	b = append(b, 0, 0, 0, 9, byte((20+tcpOptions)/4<<4), flags, 1, 0, 0, 0, 0, 0)
	b = append(b, bytes.Repeat([]byte{1}, tcpOptions)...) // NOP
	b = append(b, data...)
	binary.BigEndian.PutUint16(b[at+16:], ^fold(sum(pseudo(b, length), b[at:])))
	return b
}

// tooBig makes the ICMP message of a router that a packet of a flow, from the server to the client, was too big, and quotes as much of it as there is room for in most bytes.
func tooBig(f Flow, mtu, most int) []byte {
	whole := packet(Flow{f.Server, f.Client}, flagACK, 77, make([]byte, 1400), 0, 12)
	var b []byte
	if f.Client.Addr().Is4() {
		quote := whole[:min(len(whole), most-28)]
		b = append(b, 0x45, 0xc0, 0, 0, 0x12, 0x34, 0, 0, 61, protocolICMP, 0, 0, 203, 0, 113, 1)
		b = append(b, f.Server.Addr().AsSlice()...)
		binary.BigEndian.PutUint16(b[2:], uint16(28+len(quote)))
		binary.BigEndian.PutUint16(b[10:], ^fold(sum(0, b)))
		b = append(append(b, unreachable4, mustBeCut4, 0, 0, 0, 0, byte(mtu>>8), byte(mtu)), quote...)
		binary.BigEndian.PutUint16(b[22:], ^fold(sum(0, b[20:])))
		return b
	}
	quote := whole[:min(len(whole), most-48)]
	b = append(b, 0x60, 0, 0, 0, 0, 0, protocolICMP6, 61, 0x20, 1, 0x0d, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1)
	b = append(b, f.Server.Addr().AsSlice()...)
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(quote)))
	b = append(append(b, tooBig6, 0, 0, 0, 0, 0, byte(mtu>>8), byte(mtu)), quote...)
	binary.BigEndian.PutUint16(b[42:], ^fold(sum(segment{raw: b, tcp: 40}.icmpPseudo(), b[40:])))
	return b
}

// What a router says of a packet that was too big is the flow's to which that belongs, and stays that when less of it is quoted.
func TestAMessageThatAPacketWasTooBigIsReadAsItsFlows(t *testing.T) {
	for _, f := range []Flow{flow4, flow6} {
		for _, most := range []int{28 + 28 + 20, 576, 1280} {
			if f == flow6 {
				most += 40
			}
			b := tooBig(f, 1300, most)
			s, err := parse(append(bytes.Clone(b), 0, 0, 0)) // padding
			if err != nil || s.flow != f || !s.tooBig || !bytes.Equal(s.raw, b) {
				t.Fatalf("%d bytes: %+v, %v", most, s.flow, err)
			}
			all := s.cut(400)
			if len(all) != 1 || len(all[0]) != min(len(b), 400) {
				t.Fatalf("%d bytes were cut to %d messages", len(b), len(all))
			}
			less, err := parse(all[0])
			if err != nil || less.flow != f || !less.tooBig || !bytes.Equal(less.raw[less.tcp+4:], b[s.tcp+4:len(all[0])]) {
				t.Errorf("%d bytes, cut: %+v, %v", most, less.flow, err)
			}
			if all := s.cut(60); len(all) != 1 || len(all[0]) != len(b) {
				t.Error("it is cut to less than a flow can be told by")
			}
		}
	}
}

func TestWhatIsNoMessageThatASegmentWasTooBigIsRefused(t *testing.T) {
	change := func(f Flow, at int, to ...byte) []byte { // and the checksums are right
		b := tooBig(f, 1300, 576)
		copy(b[at:], to)
		s := segment{raw: b, tcp: 40}
		if f == flow4 {
			s.tcp = 20
			b[10], b[11] = 0, 0
			binary.BigEndian.PutUint16(b[10:], ^fold(sum(0, b[:20])))
		}
		b[s.tcp+2], b[s.tcp+3] = 0, 0
		binary.BigEndian.PutUint16(b[s.tcp+2:], ^fold(sum(s.icmpPseudo(), b[s.tcp:])))
		return b
	}
	short := func(f Flow, n int) []byte { return tooBig(f, 1300, n) }
	wrong := func(b []byte) []byte { b[len(b)-1]++; return b }
	for name, b := range map[string][]byte{
		"of an unreachable port":        change(flow4, 21, 3),
		"a ping":                        change(flow4, 20, 8, 0),
		"time exceeded, IPv6":           change(flow6, 40, 3),
		"to another address":            change(flow4, 19, 9),
		"to another address, IPv6":      change(flow6, 39, 9),
		"of UDP":                        change(flow4, 28+9, 17),
		"of UDP, IPv6":                  change(flow6, 48+6, 17),
		"of a later fragment":           change(flow4, 28+6, 0, 1),
		"of IP version 6":               change(flow4, 28, 0x65),
		"of IP version 4":               change(flow6, 48, 0x45),
		"of a header that is too short": change(flow4, 28, 0x41),
		"with a wrong checksum":         wrong(tooBig(flow4, 1300, 576)),
		"with a wrong checksum, IPv6":   wrong(tooBig(flow6, 1300, 576)),
		"without a packet":              short(flow4, 28),
		"without ports":                 short(flow4, 28+20+7),
		"without ports, IPv6":           short(flow6, 48+40+7),
		"of half a header, IPv6":        short(flow6, 48+39),
		"cut off":                       change(flow4, 2, 0, 27)[:27],
	} {
		if s, err := parse(b); err == nil {
			t.Errorf("%s: %+v", name, s.flow)
		}
	}
}

func TestASegmentIsReadAsItStands(t *testing.T) {
	for _, f := range []Flow{flow4, flow6} {
		b := packet(f, flagACK, 1, []byte("hello"), 0, 12)
		s, err := parse(append(bytes.Clone(b), 0, 0, 0)) // padding
		if err != nil || s.flow != f || !bytes.Equal(s.raw, b) || string(s.raw[s.data:]) != "hello" {
			t.Errorf("%+v, %v", s, err)
		}
	}
}

func TestWhatIsNoSegmentOfAnEstablishedFlowIsRefused(t *testing.T) {
	change := func(f Flow, at int, to ...byte) []byte {
		b := packet(f, flagACK, 1, []byte("hello"), 0, 0)
		copy(b[at:], to)
		return b
	}
	sound := func(b []byte) []byte { // the IPv4 header
		b[10], b[11] = 0, 0
		binary.BigEndian.PutUint16(b[10:], ^fold(sum(0, b[:20])))
		return b
	}
	for name, b := range map[string][]byte{
		"nothing":              nil,
		"IP version 5":         change(flow4, 0, 0x55),
		"SYN":                  packet(flow4, flagSYN, 1, nil, 0, 0),
		"SYN of IPv6":          packet(flow6, flagSYN|flagACK, 1, nil, 0, 0),
		"cut off":              packet(flow4, flagACK, 1, []byte("hello"), 0, 0)[:43],
		"cut off, IPv6":        packet(flow6, flagACK, 1, []byte("hello"), 0, 0)[:63],
		"shorter than headers": sound(change(flow4, 2, 0, 19)),
		"no TCP":               sound(change(flow4, 2, 0, 30)),
		"a fragment":           sound(change(flow4, 6, 0x20, 0)),
		"a later fragment":     sound(change(flow4, 6, 0, 1)),
		"UDP":                  sound(change(flow4, 9, 17)),
		"an extension header":  change(flow6, 6, 0),
		"a wrong header":       change(flow4, 8, 1),
		"wrong data":           change(flow4, 42, 'L'),
		"wrong data of IPv6":   change(flow6, 62, 'L'),
		"TCP's header beyond":  change(flow4, 32, 0xf0),
		"TCP's header short":   change(flow4, 32, 0x40),
	} {
		if s, err := parse(b); err == nil {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

// What a segment was cut to has the same bytes at the same places, the flags where they belong, and right checksums.
func TestCutSegmentsAreTheSegment(t *testing.T) {
	for range 500 {
		f, ip := flow4, 4*rand.IntN(11)
		if rand.IntN(2) == 0 {
			f, ip = flow6, 0
		}
		data := make([]byte, rand.IntN(20000))
		for i := range data {
			data[i] = byte(rand.Uint32())
		}
		seq, most := rand.Uint32(), 200+rand.IntN(2000)
		flags := flagACK | byte(rand.Uint32())&(flagFIN|flagPSH|flagCWR)
		whole, err := parse(packet(f, flags, seq, data, ip, 4*rand.IntN(11)))
		if err != nil {
			t.Fatal(err)
		}
		var got []byte
		all := whole.cut(most)
		for i, b := range all {
			s, err := parse(b)
			if err != nil || s.flow != f || len(b) > most {
				t.Fatalf("part %d of %d: %+v, %d bytes, %v", i, len(all), s.flow, len(b), err)
			}
			if at := binary.BigEndian.Uint32(b[s.tcp+4:]); at != seq+uint32(len(got)) {
				t.Fatalf("part %d begins at %d, not %d", i, at, seq+uint32(len(got)))
			}
			want := flags
			if i > 0 {
				want &^= flagCWR
			}
			if i < len(all)-1 {
				want &^= flagFIN | flagPSH
			}
			if b[s.tcp+13] != want || !bytes.Equal(b[s.tcp+14:s.tcp+16], whole.raw[whole.tcp+14:whole.tcp+16]) || !bytes.Equal(b[s.tcp+20:s.data], whole.raw[whole.tcp+20:whole.data]) {
				t.Fatalf("part %d of %d: flags %x, not %x, or another header", i, len(all), b[s.tcp+13], want)
			}
			got = append(got, b[s.data:]...)
		}
		if !bytes.Equal(got, data) {
			t.Fatal("other bytes")
		}
	}
}

func TestUrgentDataStayWhole(t *testing.T) {
	s, err := parse(packet(flow4, flagACK|flagURG, 1, make([]byte, 5000), 0, 0))
	if all := s.cut(1100); err != nil || len(all) != 1 || len(all[0]) != 5040 {
		t.Error(len(all), err)
	}
}

func FuzzSegment(f *testing.F) {
	for _, flow := range []Flow{flow4, flow6} {
		f.Add(packet(flow, flagACK, 1, []byte("hello"), 0, 12), 100)
		f.Add(tooBig(flow, 1300, 576), 200)
	}
	f.Fuzz(func(t *testing.T, b []byte, most int) {
		s, err := parse(b)
		if err != nil {
			return
		}
		var data []byte
		for _, part := range s.cut(most) {
			p, err := parse(part)
			if err != nil || p.flow != s.flow {
				t.Fatal(p, err)
			}
			data = append(data, p.raw[p.data:]...)
		}
		if !bytes.Equal(data, s.raw[s.data:]) && !(s.tooBig && bytes.HasPrefix(s.raw[s.data:], data)) {
			t.Fatal("other bytes")
		}
	})
}

func TestAnAnswerIsReadAsItWasWritten(t *testing.T) {
	for _, f := range []Flow{flow4, flow6} {
		for _, has := range []bool{true, false} {
			if got, is, err := readAnswer(appendAnswer(nil, f, has)); err != nil || got != f || is != has {
				t.Error(got, is, err)
			}
		}
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(appendAnswer(nil, flow4, true))
	f.Add(appendAnswer(nil, flow6, false))
	f.Fuzz(func(t *testing.T, b []byte) {
		flow, has, err := readAnswer(b)
		if err != nil {
			return
		}
		if again, is, err := readAnswer(appendAnswer(nil, flow, has)); err != nil || again != flow || is != has {
			t.Fatal(again, is, err)
		}
	})
}

func FuzzQuestion(f *testing.F) {
	f.Add(appendFlow(nil, kindAsk, flow4))
	f.Add(appendFlow(nil, kindAsk, flow6))
	f.Add([]byte{kindAsk})
	f.Fuzz(func(t *testing.T, b []byte) {
		flow, err := readFlow(b)
		if err != nil {
			return
		}
		if again, err := readFlow(appendFlow(nil, kindAsk, flow)); err != nil || again != flow {
			t.Fatal(again, err)
		}
	})
}
