package backbone

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func anyClient(t *rapid.T) netip.AddrPort {
	port := rapid.Uint16().Draw(t, "port")
	switch n := rapid.SampledFrom([]int{0, 4, 16}).Draw(t, "family"); n {
	case 0:
		return netip.AddrPort{}
	default:
		addr, _ := netip.AddrFromSlice(rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "address"))
		return netip.AddrPortFrom(addr, port)
	}
}

func TestAHeaderArrivesAsItWasSent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sent := Header{
			Service:  string(rapid.SliceOfN(rapid.Byte(), 1, maxService).Draw(t, "service")),
			Resource: string(rapid.SliceOfN(rapid.Byte(), 0, maxResource).Draw(t, "resource")),
			Client:   anyClient(t),
			Left:     time.Duration(rapid.Uint16().Draw(t, "left")) * time.Millisecond,
		}
		if rapid.Bool().Draw(t, "lasting") {
			sent.Passage = Passage{ID: [16]byte{1}, Epoch: rapid.Uint32().Draw(t, "epoch"), Opener: rapid.StringN(0, 10, 20).Draw(t, "opener")}
		}
		wire, err := AppendHeader([]byte("before"), sent)
		if err != nil {
			t.Fatal(err)
		}
		r := bytes.NewBuffer(append(wire[len("before"):], "behind"...))
		got, err := ReadHeader(r)
		if err != nil || got != sent {
			t.Fatalf("sent %+v, got %+v, %v", sent, got, err)
		}
		if r.String() != "behind" {
			t.Fatalf("%q is left, want only what was behind the header", r)
		}
	})
}

func TestAHeaderThatEndsTooSoonIsAnError(t *testing.T) {
	wire, err := AppendHeader(nil, Header{Service: "flow", Resource: "targetGroup/db", Client: netip.MustParseAddrPort("[2001:db8::1]:1234")})
	if err != nil {
		t.Fatal(err)
	}
	for n := range wire {
		if h, err := ReadHeader(bytes.NewReader(wire[:n])); err == nil {
			t.Errorf("the first %d of %d bytes were taken for %+v", n, len(wire), h)
		}
	}
}

func TestHowLongWhoAsksWaitsIsSaidInWholeMilliseconds(t *testing.T) {
	for left, want := range map[time.Duration]time.Duration{
		1: time.Millisecond, 900*time.Millisecond + 7: 900 * time.Millisecond, time.Hour: MaxLeft, 0: 0, -time.Second: 0,
	} {
		wire, err := AppendHeader(nil, Header{Service: "flow", Left: left})
		if err != nil {
			t.Fatal(err)
		}
		h, err := ReadHeader(bytes.NewReader(wire))
		if err != nil || h.Left != want {
			t.Errorf("of %v came %v, %v", left, h.Left, err)
		}
		if first := wire[0]; (first == version) != (want == 0) {
			t.Errorf("with %v the version is %d", left, first)
		}
	}
}

func TestAHeaderBeyondItsBoundsIsNotSent(t *testing.T) {
	for _, h := range []Header{
		{},
		{Service: strings.Repeat("s", maxService+1)},
		{Service: "flow", Resource: strings.Repeat("r", maxResource+1)},
		{Service: "flow", Passage: Passage{ID: [16]byte{1}, Opener: strings.Repeat("o", maxResource+1)}},
	} {
		if wire, err := AppendHeader(nil, h); err == nil || len(wire) != 0 {
			t.Errorf("%d bytes, %v for %+v", len(wire), err, h)
		}
	}
}

func FuzzHeader(f *testing.F) {
	for _, h := range []Header{
		{Service: "http", Resource: "web-icn/80"},
		{Service: "flow", Resource: "targetGroup/db", Client: netip.MustParseAddrPort("203.0.113.7:40000")},
		{Service: "flow", Resource: strings.Repeat("r", maxResource), Client: netip.MustParseAddrPort("[2001:db8::7]:65535")},
		{Service: "flow", Client: netip.MustParseAddrPort("[::ffff:203.0.113.7]:1")},
		{Service: "flow", Resource: "targetGroup/db", Passage: Passage{ID: [16]byte{15: 1}}},
		{Service: "flow", Client: netip.MustParseAddrPort("203.0.113.7:1"), Passage: Passage{ID: [16]byte{1}, Epoch: 1 << 31, Opener: "iad1"}},
		{Service: "flow", Resource: "targetGroup/db", Left: time.Second},
		{Service: "flow", Passage: Passage{ID: [16]byte{1}, Epoch: 3, Opener: "iad1"}, Left: MaxLeft},
	} {
		wire, err := AppendHeader(nil, h)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire)
		f.Add(wire[:len(wire)-1])
	}
	f.Add([]byte{version, maxService + 1})
	f.Add([]byte{version, 1, 's', 0, 5, 1, 2, 3, 4, 5, 0, 0})
	f.Add([]byte{version + timed, 1, 's', 0, 0, 0, 0}) // nobody waits
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add(append([]byte{lastingVersion, 1, 's', 0, 0}, make([]byte, 21)...)) // without a name
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		h, err := ReadHeader(r)
		if err != nil {
			return
		}
		again, err := AppendHeader(nil, h)
		if err != nil {
			t.Fatalf("a header was read that cannot be sent: %+v: %v", h, err)
		}
		if read := data[:len(data)-r.Len()]; !bytes.Equal(again, read) {
			t.Fatalf("read %x, which is %+v, which is sent as %x", read, h, again)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte{accepted})
	f.Add([]byte{refused, 2, 'n', 'o'})
	f.Add([]byte{refused, 200, 'n', 'o'})
	f.Add([]byte{over, 2, 'n', 'o'})
	f.Add([]byte{7})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		err := readAnswer(bytes.NewReader(data))
		if errors.Is(err, io.EOF) {
			t.Fatal("a missing answer was taken for a clean end")
		}
		if no, ok := errors.AsType[*RefusedError](err); ok && len(no.Reason) > maxReason {
			t.Fatalf("a reason of %d bytes", len(no.Reason))
		}
	})
}

func TestALongReasonIsCutBetweenRunes(t *testing.T) {
	for _, reason := range []string{"", "no target answers", strings.Repeat("é", 200), "x" + strings.Repeat("語", 100)} {
		err := readAnswer(bytes.NewReader(appendAnswer(nil, false, reason)))
		no, ok := errors.AsType[*RefusedError](err)
		if !ok || !strings.HasPrefix(reason, no.Reason) || !utf8.ValidString(no.Reason) || len(no.Reason) < min(len(reason), maxReason-utf8.UTFMax) {
			t.Errorf("of %q came %v", reason, err)
		}
	}
}
