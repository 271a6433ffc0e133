package secondary

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/dnsgeo/tsig"
	"github.com/perigee-net/perigee/dnsgeo/zone"
)

const (
	// askTime bounds the asking of one primary, with the transfer, dialTime what a connection takes, and messageTime what a message takes
	// to come.
	askTime     = 10 * time.Minute
	dialTime    = 5 * time.Second
	messageTime = 10 * time.Second

	// maxUnsigned is how many messages may follow a signed one without a signature of their own (RFC 8945 §5.3.1).
	maxUnsigned = 99
)

// Source is who is asked for a zone.
type Source struct {
	Key  *tsig.Key // nil: nothing is signed
	Dial func(context.Context) (net.Conn, error)
	// Places has one taken for as long as a zone is transferred; nil: there are enough.
	Places chan struct{}
}

// Taken is what a source gave.
type Taken struct {
	Zone           *zone.Zone // nil: it has nothing newer
	Serial         uint32     // that it has
	Records, Bytes int
	Differences    bool // it told what has changed, not the zone whole
	// Fallback is why the zone was asked for whole where what has changed had been asked for before; nil: it was not.
	Fallback error
}

// ErrOlder says that a primary has an older version than there is.
var ErrOlder = errors.New("it has an older serial")

// Refresh asks a primary for its SOA, and if that is newer than had for what has changed, and if that is of no use for the zone whole.
// Had may be nil: there is nothing yet. All goes by TCP, so that nobody else's answer is taken for the primary's.
func Refresh(ctx context.Context, name string, had *zone.Zone, from Source) (Taken, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	x, err := open(ctx, name, from)
	if err != nil {
		return Taken{}, err
	}
	defer x.close()
	serial, err := x.soa()
	if err != nil {
		return Taken{}, fmt.Errorf("ask for the SOA: %w", err)
	}
	switch {
	case had == nil || zone.Newer(serial, had.Serial()):
	case serial == had.Serial():
		return Taken{Serial: serial}, nil
	default:
		return Taken{Serial: serial}, fmt.Errorf("%w: %d, and here is %d", ErrOlder, serial, had.Serial())
	}
	leave, err := Enter(ctx, from.Places)
	if err != nil {
		return Taken{}, err
	}
	taken, err := x.transfer(had)
	leave()
	if err == nil && taken.Zone == nil {
		err = fmt.Errorf("its SOA has serial %d, and yet it sends nothing newer than %d", serial, had.Serial())
	}
	closed := x.messages == 0 // it takes one query a connection
	if err == nil || had == nil && !closed || ctx.Err() != nil || errors.As(err, new(signatureError)) {
		return taken, err
	}
	whole, again := take(ctx, name, nil, from)
	switch {
	case again != nil:
		return Taken{}, fmt.Errorf("%w (what has changed was of no use before: %w)", again, err)
	case had == nil:
		return whole, nil
	case !zone.Newer(whole.Serial, had.Serial()):
		return Taken{Serial: whole.Serial}, fmt.Errorf("%w: %d, and here is %d", ErrOlder, whole.Serial, had.Serial())
	}
	whole.Fallback = err
	return whole, nil
}

// Take asks a source that is known to have something newer than had for what has changed, or if had is nil for the zone whole.
func Take(ctx context.Context, name string, had *zone.Zone, from Source) (Taken, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	return take(ctx, name, had, from)
}

// Enter waits for a place, which leave gives back. Of no places there are enough.
func Enter(ctx context.Context, places chan struct{}) (leave func(), err error) {
	if places == nil {
		return func() {}, nil
	}
	select {
	case places <- struct{}{}:
		return func() { <-places }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func take(ctx context.Context, name string, had *zone.Zone, from Source) (Taken, error) {
	leave, err := Enter(ctx, from.Places)
	if err != nil {
		return Taken{}, err
	}
	defer leave()
	x, err := open(ctx, name, from)
	if err != nil {
		return Taken{}, err
	}
	defer x.close()
	return x.transfer(had)
}

// exchange is a connection to a source, and the query and responses that are on it.
type exchange struct {
	conn net.Conn
	from Source
	name string
	zone zone.Name
	stop func() bool // has nobody close the connection any more

	query    []byte
	mac      tsig.MAC
	messages int // that came in response
	unsigned int // of them, since the last that was signed
	buffer   []byte
}

func open(ctx context.Context, name string, from Source) (*exchange, error) {
	x := &exchange{from: from, name: name}
	if err := x.zone.Parse(name); err != nil {
		return nil, err
	}
	dialing, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	conn, err := from.Dial(dialing)
	if err != nil {
		return nil, err
	}
	x.conn = conn
	x.stop = context.AfterFunc(ctx, func() { _ = conn.Close() })
	return x, nil
}

func (x *exchange) close() {
	x.stop()
	_ = x.conn.Close()
}

// ask sends a query of a type, with a SOA in its authority section where one is given (RFC 1995 §3).
func (x *exchange) ask(typ uint16, soa []byte) error {
	m := binary.BigEndian.AppendUint16(make([]byte, 2, 512), uint16(rand.Uint32()))
	m = append(m, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0)
	m = append(append(m, x.zone.Wire()...), byte(typ>>8), byte(typ), 0, dns.ClassINET)
	if soa != nil {
		m[2+9] = 1
		m = append(m, 0xc0, headerSize, 0, byte(dns.TypeSOA), 0, dns.ClassINET, 0, 0, 0, 0)
		m = binary.BigEndian.AppendUint16(m, uint16(len(soa)))
		m = append(m, soa...)
	}
	x.query = m[2:]
	x.mac, x.messages, x.unsigned = tsig.MAC{}, 0, 0
	if x.from.Key != nil {
		x.query, x.mac = x.from.Key.Sign(x.query, x.mac, time.Now())
		m = append(m[:2], x.query...)
	}
	binary.BigEndian.PutUint16(m, uint16(len(x.query)))
	_ = x.conn.SetDeadline(time.Now().Add(messageTime))
	_, err := x.conn.Write(m)
	return err
}

// signatureError is why a response is not believed.
type signatureError struct{ text string }

func (e signatureError) Error() string { return e.text }

// read reads the next message of the response, without its signature.
func (x *exchange) read() ([]byte, error) {
	_ = x.conn.SetDeadline(time.Now().Add(messageTime))
	var size [2]byte
	if _, err := io.ReadFull(x.conn, size[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(size[:]))
	if cap(x.buffer) < n {
		x.buffer = make([]byte, max(n, 1<<14))
	}
	m := x.buffer[:n]
	if _, err := io.ReadFull(x.conn, m); err != nil {
		return nil, err
	}
	if n < headerSize || m[0] != x.query[0] || m[1] != x.query[1] || m[2]&0x80 == 0 {
		return nil, errors.New("it answers something else")
	}
	if err := x.asked(m); err != nil {
		return nil, err
	}
	x.messages++
	return x.verify(m)
}

// asked says whether a message repeats the question, if it has one: only the first of a transfer need to (RFC 5936 §2.2.1).
func (x *exchange) asked(m []byte) error {
	question := x.query[headerSize : headerSize+len(x.zone.Wire())+4]
	switch binary.BigEndian.Uint16(m[4:]) {
	case 0:
		return nil
	case 1:
		var room [maxName]byte
		size, next, err := readName(m, headerSize, room[:])
		if err != nil {
			return err
		}
		var name zone.Name
		name.Set(room[:size])
		if next+4 <= len(m) && string(append(name.Wire(), m[next:next+4]...)) == string(question) {
			return nil
		}
	}
	return errors.New("it answers another question")
}

// verify judges the signature of a message, and returns the message without it.
func (x *exchange) verify(m []byte) ([]byte, error) {
	signature := tsig.Find(m)
	switch {
	case x.from.Key == nil && signature == nil:
		return m, nil
	case x.from.Key == nil:
		return tsig.Strip(m, signature), nil
	case signature == nil && m[3]&0xf != 0:
		return nil, signatureError{"a message is not signed, and says " + dns.RcodeToString[int(m[3]&0xf)]}
	case signature == nil && (x.messages == 1 || x.unsigned == maxUnsigned):
		return nil, signatureError{"a message is not signed"}
	case signature == nil:
		x.unsigned++
		x.mac = x.mac.With(m)
		return m, nil
	case signature.Error != 0:
		return nil, signatureError{fmt.Sprintf("it refuses the signature by key %s: %s", x.from.Key.Name, dns.RcodeToString[int(signature.Error)])}
	}
	mac, wrong := x.from.Key.Verify(m, signature, x.mac, time.Now())
	if wrong != 0 {
		return nil, signatureError{fmt.Sprintf("the signature by key %s is wrong: %s", x.from.Key.Name, dns.RcodeToString[int(wrong)])}
	}
	x.mac, x.unsigned = mac, 0
	return tsig.Strip(m, signature), nil
}

// soa asks for the serial that the source has.
func (x *exchange) soa() (uint32, error) {
	if err := x.ask(dns.TypeSOA, nil); err != nil {
		return 0, err
	}
	m, err := x.read()
	if err != nil {
		return 0, err
	}
	at, count, err := answersOf(m)
	if err != nil {
		return 0, err
	}
	if m[2]&0x04 == 0 {
		return 0, errors.New("it is no authority for the zone")
	}
	s, err := NewStream(x.name, nil)
	if err != nil {
		return 0, err
	}
	if count != 1 {
		return 0, fmt.Errorf("it has %d SOA records", count)
	}
	if _, err := s.record(m, at); err != nil {
		return 0, err
	}
	return s.serial, nil
}

// transfer asks for what has changed, or for the zone whole.
func (x *exchange) transfer(had *zone.Zone) (Taken, error) {
	typ, soa := dns.TypeAXFR, []byte(nil)
	if had != nil {
		set := had.SOA()
		typ = dns.TypeIXFR
		soa, _ = set.Next()
	}
	if err := x.ask(typ, soa); err != nil {
		return Taken{}, err
	}
	s, err := NewStream(x.name, had)
	if err != nil {
		return Taken{}, err
	}
	for done := false; !done; {
		m, err := x.read()
		if err != nil {
			return Taken{}, err
		}
		if done, err = s.Take(m); err != nil {
			return Taken{}, err
		}
	}
	if x.unsigned > 0 {
		return Taken{}, signatureError{"the last message is not signed"}
	}
	z, err := s.Zone()
	return Taken{Zone: z, Serial: s.serial, Records: s.Records, Bytes: s.Bytes, Differences: s.Differences}, err
}
