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
		if !bytes.Equal(data, s.raw[s.data:]) {
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
