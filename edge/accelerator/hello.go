package accelerator

import "encoding/binary"

// A ClientHello of TLS that nobody answers does nothing: who has it has promised nothing by it, and its sender goes on only with who answers. So it may come to two endpoints of which one has the
// flow. Not so what is said with it as early data (RFC 8446, section 8).

// helloVerdict is what is known of how a client begins.
type helloVerdict int

const (
	undecided   helloVerdict = iota // more has to come
	harmless                        // it is a ClientHello that promises no early data, and nothing else
	significant                     // it is something else
)

const (
	tlsHandshake   = 22      // the type of a record (RFC 8446, section 5.1)
	tlsClientHello = 1       // the type of a message (section 4)
	tlsEarlyData   = 42      // the number of an extension (section 4.2)
	maxTLSRecord   = 1 << 14 // bytes of one
	// maxHelloRecords bounds the records of a ClientHello; one in more is not taken for one. Most have one.
	maxHelloRecords = 8
)

// judge says of all that a client has sent so far what it is.
func judge(b []byte) helloVerdict {
	var head []byte // of the message: its type and length, as far as it is there
	var room [4]byte
	first, have, whole := b, 0, 0 // of the message: bytes that have come, and all, once that is known
	for records := 0; ; records++ {
		switch {
		case whole > 0 && have == whole && len(b) == 0:
			return ofHello(message(first, whole))
		case whole > 0 && have == whole, records == maxHelloRecords,
			len(b) > 0 && b[0] != tlsHandshake, len(b) > 1 && b[1] != 3, len(b) > 2 && (b[2] < 1 || b[2] > 3):
			return significant
		case len(b) < 5:
			return undecided
		}
		length := int(binary.BigEndian.Uint16(b[3:]))
		if length == 0 || length > maxTLSRecord {
			return significant
		}
		body := b[5:min(5+length, len(b))]
		have += len(body)
		head = append(room[:len(head)], body[:min(len(room)-len(head), len(body))]...)
		if len(head) > 0 && head[0] != tlsClientHello {
			return significant
		}
		if len(head) == len(room) {
			whole = len(head) + int(binary.BigEndian.Uint32(head)&0xffffff)
			if rest := length - len(body); have+rest > whole || whole > maxEarly {
				return significant
			}
		}
		if len(body) < length {
			return undecided
		}
		b = b[5+length:]
	}
}

// message is that of some records, which are whole and have no more than it.
func message(records []byte, length int) []byte {
	if first := int(binary.BigEndian.Uint16(records[3:])); first == length {
		return records[5:]
	}
	m := make([]byte, 0, length)
	for len(records) > 0 {
		n := 5 + int(binary.BigEndian.Uint16(records[3:]))
		m = append(m, records[5:n]...)
		records = records[n:]
	}
	return m
}

// ofHello judges a ClientHello (RFC 8446, section 4.1.2), with its type and length. One before TLS 1.3 may be without extensions.
func ofHello(m []byte) helloVerdict {
	m = m[4:]
	if len(m) < 2+32 || m[0] != 3 {
		return significant
	}
	m = m[2+32:]
	session, m, ok := vector(m, 1)
	if !ok || len(session) > 32 {
		return significant
	}
	ciphers, m, ok := vector(m, 2)
	if !ok || len(ciphers) == 0 || len(ciphers)%2 != 0 {
		return significant
	}
	compressions, m, ok := vector(m, 1)
	if !ok || len(compressions) == 0 {
		return significant
	}
	if len(m) == 0 {
		return harmless
	}
	extensions, m, ok := vector(m, 2)
	if !ok || len(m) > 0 {
		return significant
	}
	for len(extensions) > 0 {
		if len(extensions) < 2 || binary.BigEndian.Uint16(extensions) == tlsEarlyData {
			return significant
		}
		if _, extensions, ok = vector(extensions[2:], 2); !ok {
			return significant
		}
	}
	return harmless
}

// vector cuts off what begins with its length, in so many bytes.
func vector(b []byte, size int) (v, rest []byte, ok bool) {
	if len(b) < size {
		return nil, nil, false
	}
	n := 0
	for _, one := range b[:size] {
		n = n<<8 | int(one)
	}
	if b = b[size:]; len(b) < n {
		return nil, nil, false
	}
	return b[:n], b[n:], true
}
