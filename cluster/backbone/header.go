package backbone

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
)

// Bounds of what is sent to open a stream. A header beyond them is not sent, and one that claims to be is
// malformed; a longer reason is cut.
const (
	maxService  = 16
	maxResource = 255
	maxReason   = 255
)

// version is the first byte of a header. A header with another one is malformed: both ends of a link speak the
// versions their ALPN names, so this only catches a stream that was opened by mistake.
const version = 1

// The first byte of the answer to a header; a refusal is followed by its reason: a length byte and text.
const (
	accepted = 0
	refused  = 1
)

// Header says what a stream is for. It is sent first on each.
type Header struct {
	// Service names who answers: "http", "flow". 1–16 bytes.
	Service string
	// Resource is what is asked of the service, in its own words. At most 255 bytes.
	Resource string
	// Client is who asked, out in the world; invalid if nobody did. An IPv6 zone is not sent.
	Client netip.AddrPort
}

// AppendHeader appends h as it is sent: version, service and resource each after a length byte, then the length
// of the client's address (0, 4 or 16), the address, and its port in two bytes.
func AppendHeader(b []byte, h Header) ([]byte, error) {
	if len(h.Service) == 0 || len(h.Service) > maxService {
		return b, fmt.Errorf("service %q: must be 1–%d bytes", h.Service, maxService)
	}
	if len(h.Resource) > maxResource {
		return b, fmt.Errorf("resource %q: must be at most %d bytes", h.Resource, maxResource)
	}
	b = append(b, version, byte(len(h.Service)))
	b = append(b, h.Service...)
	b = append(b, byte(len(h.Resource)))
	b = append(b, h.Resource...)
	address := h.Client.Addr().AsSlice()
	b = append(b, byte(len(address)))
	if len(address) > 0 {
		b = append(b, address...)
		b = append(b, byte(h.Client.Port()>>8), byte(h.Client.Port()))
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
	if b[0] != version {
		return h, fmt.Errorf("header version %d, want %d", b[0], version)
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
		return h, nil
	case 4, 16:
	default:
		return h, fmt.Errorf("client address of %d bytes", length)
	}
	if b, err = next(length + 2); err != nil {
		return h, err
	}
	address, _ := netip.AddrFromSlice(b[:length])
	h.Client = netip.AddrPortFrom(address, uint16(b[length])<<8|uint16(b[length+1]))
	return h, nil
}

// appendAnswer appends the answer to a header: accepted, or refused with a reason.
func appendAnswer(b []byte, ok bool, reason string) []byte {
	if ok {
		return append(b, accepted)
	}
	if len(reason) > maxReason {
		reason = strings.ToValidUTF8(reason[:maxReason], "") // no half of a rune at the cut
	}
	b = append(b, refused, byte(len(reason)))
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
	case refused:
	default:
		return fmt.Errorf("answer %d is neither accepted nor refused", buf[0])
	}
	if _, err := io.ReadFull(r, buf[:1]); err != nil {
		return unexpected(err)
	}
	reason := buf[:buf[0]]
	if _, err := io.ReadFull(r, reason); err != nil {
		return unexpected(err)
	}
	return &RefusedError{Reason: string(reason)}
}

// unexpected makes of a clean end in the wrong place an error that nobody takes for the end of a stream.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
