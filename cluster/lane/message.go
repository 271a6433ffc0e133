package lane

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Bounds of what travels. What is beyond them is not sent, and is malformed where it claims to come; a longer reason is cut.
const (
	MaxOrder  = 64 << 10 // bytes
	maxID     = 64       // bytes
	maxReason = 255      // bytes
)

// version is the first byte of a message.
const version = 1

// The first byte of an acknowledgement; behind failed stands the reason: a length byte and text.
const (
	inEffect = 0
	failed   = 1
)

// appendMessage appends an order as it is sent: version, a length byte and the ID, the length of the order in four bytes, big end
// first, and the order.
func appendMessage(b []byte, id string, order []byte) ([]byte, error) {
	if len(id) == 0 || len(id) > maxID {
		return b, fmt.Errorf("id of %d bytes: want 1–%d", len(id), maxID)
	}
	if len(order) > MaxOrder {
		return b, fmt.Errorf("order of %d bytes: want at most %d", len(order), MaxOrder)
	}
	b = append(b, version, byte(len(id)))
	b = append(b, id...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(order)))
	return append(b, order...), nil
}

// readMessage reads one message and not a byte more.
func readMessage(r io.Reader) (id string, order []byte, err error) {
	var head [2 + maxID + 4]byte
	if _, err := io.ReadFull(r, head[:2]); err != nil {
		return "", nil, err
	}
	n := int(head[1])
	switch {
	case head[0] != version:
		return "", nil, fmt.Errorf("version %d, want %d", head[0], version)
	case n == 0 || n > maxID:
		return "", nil, fmt.Errorf("id of %d bytes", n)
	}
	if _, err := io.ReadFull(r, head[2:2+n+4]); err != nil {
		return "", nil, unexpected(err)
	}
	id = string(head[2 : 2+n])
	size := binary.BigEndian.Uint32(head[2+n:])
	if size > MaxOrder {
		return "", nil, fmt.Errorf("order of %d bytes", size)
	}
	order = make([]byte, size)
	if _, err := io.ReadFull(r, order); err != nil {
		return "", nil, unexpected(err)
	}
	return id, order, nil
}

// appendAck appends an acknowledgement: the order is in effect, or err is why it is not.
func appendAck(b []byte, err error) []byte {
	if err == nil {
		return append(b, inEffect)
	}
	reason := strings.ToValidUTF8(err.Error(), "�")
	if len(reason) > maxReason {
		reason = strings.ToValidUTF8(reason[:maxReason], "") // no half of a rune at the cut
	}
	b = append(b, failed, byte(len(reason)))
	return append(b, reason...)
}

// readAck reads one acknowledgement and not a byte more: empty, or why the order is not in effect.
func readAck(r io.Reader) (refusal string, err error) {
	var buf [maxReason]byte
	if _, err := io.ReadFull(r, buf[:1]); err != nil {
		return "", unexpected(err)
	}
	switch buf[0] {
	case inEffect:
		return "", nil
	case failed:
	default:
		return "", fmt.Errorf("%d is no acknowledgement", buf[0])
	}
	if _, err := io.ReadFull(r, buf[:1]); err != nil {
		return "", unexpected(err)
	}
	reason := buf[:buf[0]]
	if _, err := io.ReadFull(r, reason); err != nil {
		return "", unexpected(err)
	}
	if len(reason) == 0 {
		return "it failed", nil
	}
	return strings.ToValidUTF8(string(reason), "�"), nil
}

// unexpected makes of a clean end in the wrong place an error that nobody takes for the end of a stream.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
