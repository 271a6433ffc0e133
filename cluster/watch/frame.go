package watch

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"net"
	"time"

	"github.com/perigee-net/perigee/cluster/store"
)

// What travels are frames: a byte that says what it is, the length of what follows (4 bytes, big-endian), and that. A source speaks
// first, by a beat, so that who is there may leave before it costs anything. A follower that stays says hello, and
// gets messages from then on: a snapshot or deltas, each as a head, parts, and an end that holds their checksum. Between
// messages the source beats; the follower answers with acks. A frame whose kind has the high bit set is passed
// over by who does not know it; any other must be known.
const (
	kindBeat     = 1 // source: depth, position
	kindHello    = 2 // follower: JSON
	kindAck      = 3 // follower: position
	kindSnapshot = 4 // source: head of a message
	kindDelta    = 5 // source: head of a message
	kindPart     = 6 // source: bytes of the message
	kindEnd      = 7 // source: CRC-32C of the message's bytes

	kindOptional = 0x80

	frameHead = 5 // bytes before the payload
)

const (
	// maxFrame bounds the payload of a frame, in bytes; a longer one ends the stream.
	maxFrame = 64 << 10

	// maxHello bounds a hello, in bytes; a longer one ends the stream.
	maxHello = 4 << 10

	// maxDelta bounds a delta, in bytes, as it is held in memory at both ends; where it would be longer a snapshot is sent.
	maxDelta = 64 << 20

	// maxSnapshot bounds an encoded snapshot, in bytes; a longer one ends the stream. The store's own bounds keep it far smaller.
	maxSnapshot = 1 << 30
)

const (
	// beatEvery is how often a source that has nothing new says that it lives.
	beatEvery = time.Second

	// silence is how long a follower hears nothing, not even a byte, before it leaves.
	silence = 4 * time.Second

	// ackSilence is how long a source hears no ack before it ends the stream. A follower that takes a large state says nothing.
	ackSilence = 30 * time.Second

	// writeTimeout bounds the write of 64 KiB. So a stream of less than 6 KiB/s is ended.
	writeTimeout = 10 * time.Second

	// helloTimeout bounds how long a stream may take from its beginning to the hello.
	helloTimeout = 5 * time.Second

	// messageTimeout bounds one message, from head to end.
	messageTimeout = 15 * time.Minute
)

// errNonsense is under every error that says that the far end does not speak the protocol.
var errNonsense = errors.New("nonsense")

func nonsense(format string, a ...any) error {
	return fmt.Errorf("%w: %w", errNonsense, fmt.Errorf(format, a...))
}

// hello is what a follower says of itself.
type hello struct {
	Name string `json:"name"`
	// Fresh: it has nothing, or nothing that it trusts, and wants all.
	Fresh    bool           `json:"fresh,omitempty"`
	Position store.Position `json:"position"`
	SpecSum  uint64         `json:"specSum"`
	OwnSum   uint64         `json:"ownSum"`
	// Reads is the newest format of deltas that it reads (store.Format).
	Reads int `json:"reads,omitempty"`
}

// beat is what a source says of itself.
type beat struct {
	Depth    int
	Position store.Position
}

// head begins a message: where it leads.
type head struct {
	Position        store.Position
	SpecSum, OwnSum uint64
}

// sameAs says whether a state is what the head says.
func (h head) sameAs(s *store.State) bool { return h == headOf(s) }

func headOf(s *store.State) head {
	return head{Position: s.Position(), SpecSum: s.Sum(), OwnSum: s.Own.Sum()}
}

func (b beat) append(to []byte) []byte {
	return appendPosition(append(to, byte(min(max(b.Depth, 0), MaxDepth))), b.Position)
}

func readBeat(p []byte) (beat, error) {
	if len(p) < 17 {
		return beat{}, nonsense("beat of %d bytes", len(p))
	}
	return beat{Depth: min(int(p[0]), MaxDepth), Position: readPosition(p[1:])}, nil
}

func (h head) append(to []byte) []byte {
	to = appendPosition(to, h.Position)
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(to, h.SpecSum), h.OwnSum)
}

func readHead(p []byte) (head, error) {
	if len(p) < 32 {
		return head{}, nonsense("head of %d bytes", len(p))
	}
	return head{
		Position: readPosition(p),
		SpecSum:  binary.BigEndian.Uint64(p[16:]),
		OwnSum:   binary.BigEndian.Uint64(p[24:]),
	}, nil
}

func readHello(p []byte) (hello, error) {
	if len(p) > maxHello {
		return hello{}, nonsense("hello of %d bytes", len(p))
	}
	var h hello
	if err := json.Unmarshal(p, &h); err != nil {
		return hello{}, nonsense("hello: %w", err)
	}
	return h, nil
}

func appendPosition(to []byte, p store.Position) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(to, p.Spec), p.Own)
}

func readPosition(p []byte) store.Position {
	return store.Position{Spec: binary.BigEndian.Uint64(p), Own: binary.BigEndian.Uint64(p[8:])}
}

// frames reads and writes frames on a connection. One goroutine may read while another writes.
type frames struct {
	conn    net.Conn
	in      *bufio.Reader
	silence time.Duration // how long a read may wait for a byte
	payload []byte        // of the frame that was read last
	count   func(read, written int)
}

func newFrames(conn net.Conn, silence time.Duration, count func(read, written int)) *frames {
	f := &frames{conn: conn, silence: silence, count: count}
	f.in = bufio.NewReaderSize(heard{f}, 4<<10)
	return f
}

// heard reads from the connection; each byte that comes is a sign of life.
type heard struct{ *frames }

func (h heard) Read(p []byte) (int, error) {
	h.conn.SetReadDeadline(time.Now().Add(h.silence))
	n, err := h.conn.Read(p)
	h.count(n, 0)
	return n, err
}

// read returns the next frame that must be known; its payload stands until the next read.
func (f *frames) read() (kind byte, payload []byte, err error) {
	for {
		var h [frameHead]byte
		if _, err := io.ReadFull(f.in, h[:]); err != nil {
			return 0, nil, err
		}
		size := binary.BigEndian.Uint32(h[1:])
		if size > maxFrame {
			return 0, nil, nonsense("frame of %d bytes", size)
		}
		if cap(f.payload) < int(size) {
			f.payload = make([]byte, size)
		}
		payload = f.payload[:size]
		if _, err := io.ReadFull(f.in, payload); err != nil {
			return 0, nil, err
		}
		switch kind := h[0]; {
		case kind&kindOptional != 0:
		case kind < kindBeat || kind > kindEnd:
			return 0, nil, nonsense("frame of kind %d", kind)
		default:
			return kind, payload, nil
		}
	}
}

// write writes one frame of a source's or a follower's own; messages are framed already.
func (f *frames) write(kind byte, payload []byte) error {
	return f.send(appendFrame(nil, kind, payload))
}

// send writes frames, each piece of them within writeTimeout, and all within messageTimeout.
func (f *frames) send(framed []byte) error {
	for deadline := time.Now().Add(messageTimeout); len(framed) > 0; {
		if time.Now().After(deadline) {
			return fmt.Errorf("message took longer than %v", messageTimeout)
		}
		f.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		n, err := f.conn.Write(framed[:min(len(framed), maxFrame)])
		f.count(0, n)
		if err != nil {
			return err
		}
		framed = framed[n:]
	}
	return nil
}

func appendFrame(to []byte, kind byte, payload []byte) []byte {
	to = binary.BigEndian.AppendUint32(append(to, kind), uint32(len(payload)))
	return append(to, payload...)
}

// framer frames a message, so that it is encoded once for all who get it.
type framer struct {
	framed []byte
	part   int // where the part that is being filled begins; 0: none is
	sum    hash.Hash32
}

func newFramer(kind byte, h head) *framer {
	return &framer{framed: appendFrame(nil, kind, h.append(nil)), sum: crc32.New(castagnoli())}
}

// Write implements io.Writer.
func (m *framer) Write(b []byte) (int, error) {
	size := len(b)
	m.sum.Write(b)
	for len(b) > 0 {
		if m.part == 0 {
			m.part = len(m.framed)
			m.framed = appendFrame(m.framed, kindPart, nil)
		}
		n := min(len(b), maxFrame-(len(m.framed)-m.part-frameHead))
		m.framed = append(m.framed, b[:n]...)
		if b = b[n:]; len(m.framed)-m.part-frameHead == maxFrame {
			m.flush()
		}
	}
	if len(m.framed) > maxSnapshot {
		return 0, fmt.Errorf("message is longer than %d bytes", maxSnapshot)
	}
	return size, nil
}

func (m *framer) flush() {
	if m.part > 0 {
		binary.BigEndian.PutUint32(m.framed[m.part+1:], uint32(len(m.framed)-m.part-frameHead))
		m.part = 0
	}
}

// end returns the message as it travels.
func (m *framer) end() []byte {
	m.flush()
	return appendFrame(m.framed, kindEnd, binary.BigEndian.AppendUint32(nil, m.sum.Sum32()))
}

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) } // the library makes it once

// parts is the body of a message that is being read, behind its head: io.EOF comes only where the checksum is right.
type parts struct {
	frames   *frames
	limit    int64
	deadline time.Time
	heard    func() // at each frame
	sum      hash.Hash32
	rest     []byte
	ended    bool
}

func (f *frames) parts(limit int64, heard func()) *parts {
	return &parts{frames: f, limit: limit, heard: heard, deadline: time.Now().Add(messageTimeout), sum: crc32.New(castagnoli())}
}

// Read implements io.Reader.
func (p *parts) Read(b []byte) (int, error) {
	for len(p.rest) == 0 {
		if p.ended {
			return 0, io.EOF
		}
		if err := p.next(); err != nil {
			return 0, err
		}
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

func (p *parts) next() error {
	kind, payload, err := p.frames.read()
	if err != nil {
		return unexpected(err)
	}
	if time.Now().After(p.deadline) {
		return fmt.Errorf("message took longer than %v", messageTimeout)
	}
	p.heard()
	switch kind {
	case kindPart:
		if p.limit -= int64(len(payload)); p.limit < 0 {
			return nonsense("message is too long")
		}
		p.sum.Write(payload)
		p.rest = payload
		return nil
	case kindEnd:
		if len(payload) < 4 || binary.BigEndian.Uint32(payload) != p.sum.Sum32() {
			return nonsense("message has another checksum")
		}
		p.ended, p.frames.payload = true, nil // an idle stream keeps no large buffer
		return nil
	default:
		return nonsense("frame of kind %d in a message", kind)
	}
}

// drain reads what is left of the message, so that its checksum is looked at too.
func (p *parts) drain() error {
	_, err := io.Copy(io.Discard, p)
	return err
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
