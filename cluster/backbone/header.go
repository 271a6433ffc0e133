package backbone

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"strings"
	"time"
)

// Bounds of what is sent to open a stream. A header beyond them is not sent, and one that claims to be is
// malformed; a longer reason is cut.
const (
	maxService  = 16
	maxResource = 255
	maxReason   = 255
)

// The first byte of a header: a version, or one of a stream that a flow is on which outlives it (Passage). With another one it is malformed: both ends
// of a link speak the versions their ALPN names, so this only catches a stream that was opened by mistake. Releases that know the first alone
// are not sent others: who dials knows them from what nodes say of themselves.
const (
	version        = 1
	lastingVersion = 2
	// timed is added to either where it is said how long who asks waits.
	timed = 2
)

// The first byte of the answer to a header; a refusal is followed by its reason: a length byte and text. over is a refusal of a stream for a flow that
// is not known here, or is known to be over: no other stream will do.
const (
	accepted = 0
	refused  = 1
	over     = 2
)

// Header says what a stream is for. It is sent first on each.
type Header struct {
	// Service names who answers: "http", "flow". 1–16 bytes.
	Service string
	// Resource is what is asked of the service, in its own words. At most 255 bytes.
	Resource string
	// Client is who asked, out in the world; invalid if nobody did. An IPv6 zone is not sent.
	Client netip.AddrPort
	// Passage is of a stream that a flow is on which outlives it; the zero one is of any other.
	Passage Passage
	// Left is how long who asks waits for the answer from when it is sent, a duration since clocks differ: from 1 ms to MaxLeft, in whole ms; 0: it
	// is not said. More is sent as that, and less as 1 ms.
	Left time.Duration
}

// MaxLeft is the most that a header says of how long who asks waits.
const MaxLeft = math.MaxUint16 * time.Millisecond

// Passage is a flow's on one of the streams that carry it, one after the other.
type Passage struct {
	// ID names the flow, and is known to its ends only, and those that carry it.
	ID [16]byte
	// Epoch is 0 for the stream that opens it, and greater for each that follows.
	Epoch uint32
	// Opener is the node that opened it, where another carries it on: that says it, of who dialled it. At most 255 bytes.
	Opener string
}

func (p Passage) lasts() bool { return p.ID != [16]byte{} }

// fixed says that both ends know already that the flow outlives its streams, so that it can be on none by which it would not.
func (p Passage) fixed() bool { return p.lasts() && (p.Epoch > 0 || p.Opener != "") }

// rename gives a flow another name that nobody but its opener has heard of yet.
func (p *Passage) rename() {
	if p.lasts() && !p.fixed() {
		rand.Read(p.ID[:])
	}
}

// AppendHeader appends h as it is sent: version, service and resource each after a length byte, then the length
// of the client's address (0, 4 or 16), the address, and its port in two bytes. Then, of a passage, its ID, its epoch in four bytes, and its opener after
// a length byte. Then, where it is said, how long who asks waits, in two bytes of milliseconds.
func AppendHeader(b []byte, h Header) ([]byte, error) {
	if len(h.Service) == 0 || len(h.Service) > maxService {
		return b, fmt.Errorf("service %q: must be 1–%d bytes", h.Service, maxService)
	}
	if len(h.Resource) > maxResource {
		return b, fmt.Errorf("resource %q: must be at most %d bytes", h.Resource, maxResource)
	}
	kind := byte(version)
	if h.Passage.lasts() {
		kind = lastingVersion
	}
	if h.Left > 0 {
		kind += timed
	}
	if len(h.Passage.Opener) > maxResource {
		return b, fmt.Errorf("opener %q: must be at most %d bytes", h.Passage.Opener, maxResource)
	}
	b = append(b, kind, byte(len(h.Service)))
	b = append(b, h.Service...)
	b = append(b, byte(len(h.Resource)))
	b = append(b, h.Resource...)
	address := h.Client.Addr().AsSlice()
	b = append(b, byte(len(address)))
	if len(address) > 0 {
		b = append(b, address...)
		b = append(b, byte(h.Client.Port()>>8), byte(h.Client.Port()))
	}
	if h.Passage.lasts() {
		b = append(b, h.Passage.ID[:]...)
		b = binary.BigEndian.AppendUint32(b, h.Passage.Epoch)
		b = append(b, byte(len(h.Passage.Opener)))
		b = append(b, h.Passage.Opener...)
	}
	if h.Left > 0 {
		b = binary.BigEndian.AppendUint16(b, uint16(max(min(h.Left, MaxLeft)/time.Millisecond, 1)))
	}
	return b, nil
}

// ReadHeader reads one header and not a byte more.
func ReadHeader(r io.Reader) (Header, error) {
	var h Header
	var buf [maxResource]byte
	next := func(n int) ([]byte, error) {
		_, err := io.ReadFull(r, buf[:n])
		return buf[:n], err
	}
	b, err := next(2)
	if err != nil {
		return h, err
	}
	kind := b[0]
	if kind < version || kind > lastingVersion+timed {
		return h, fmt.Errorf("header version %d, want %d to %d", kind, version, lastingVersion+timed)
	}
	length := int(b[1])
	if length == 0 || length > maxService {
		return h, fmt.Errorf("service of %d bytes", length)
	}
	if b, err = next(length); err != nil {
		return h, err
	}
	h.Service = string(b)
	if b, err = next(1); err != nil {
		return h, err
	}
	if b, err = next(int(b[0])); err != nil {
		return h, err
	}
	h.Resource = string(b)
	if b, err = next(1); err != nil {
		return h, err
	}
	switch length = int(b[0]); length {
	case 0:
	case 4, 16:
		if b, err = next(length + 2); err != nil {
			return h, err
		}
		address, _ := netip.AddrFromSlice(b[:length])
		h.Client = netip.AddrPortFrom(address, binary.BigEndian.Uint16(b[length:]))
	default:
		return h, fmt.Errorf("client address of %d bytes", length)
	}
	if kind == lastingVersion || kind == lastingVersion+timed {
		p := &h.Passage
		if b, err = next(len(p.ID) + 4 + 1); err != nil {
			return h, err
		}
		p.ID, p.Epoch = [16]byte(b), binary.BigEndian.Uint32(b[len(p.ID):])
		if !p.lasts() {
			return h, errors.New("a flow without a name")
		}
		if b, err = next(int(b[len(b)-1])); err != nil {
			return h, err
		}
		p.Opener = string(b)
	}
	if kind > timed {
		if b, err = next(2); err != nil {
			return h, err
		}
		if h.Left = time.Duration(binary.BigEndian.Uint16(b)) * time.Millisecond; h.Left == 0 {
			return h, errors.New("nobody waits for the answer")
		}
	}
	return h, nil
}

// appendAnswer appends the answer to a header: accepted, or refused with a reason.
func appendAnswer(b []byte, ok bool, reason string) []byte {
	if ok {
		return append(b, accepted)
	}
	return appendRefusal(b, refused, reason)
}

// appendRefusal appends an answer that refuses: refused or over.
func appendRefusal(b []byte, as byte, reason string) []byte {
	if len(reason) > maxReason {
		reason = strings.ToValidUTF8(reason[:maxReason], "") // no half of a rune at the cut
	}
	b = append(b, as, byte(len(reason)))
	return append(b, reason...)
}

// readAnswer reads one answer and not a byte more: nil where it accepts, *RefusedError where it refuses.
func readAnswer(r io.Reader) error {
	var buf [maxReason]byte
	if _, err := io.ReadFull(r, buf[:1]); err != nil {
		return unexpected(err)
	}
	switch buf[0] {
	case accepted:
		return nil
	case refused, over:
	default:
		return fmt.Errorf("answer %d is neither accepted nor refused", buf[0])
	}
	no := &RefusedError{Over: buf[0] == over}
	if _, err := io.ReadFull(r, buf[:1]); err != nil {
		return unexpected(err)
	}
	reason := buf[:buf[0]]
	if _, err := io.ReadFull(r, reason); err != nil {
		return unexpected(err)
	}
	no.Reason = string(reason)
	return no
}

// unexpected makes of a clean end in the wrong place an error that nobody takes for the end of a stream.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
