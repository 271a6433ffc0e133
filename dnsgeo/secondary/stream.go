package secondary

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/dnsgeo/zone"
)

const (
	// maxRecords and maxBytes bound a transfer: a primary that sends more is refused, and the copy stays as it was. A million records are
	// a hundred times what a zone of one's own may have; where each has a name of its own they take 300 MB while the zone is made, 53 MB
	// afterwards.
	maxRecords = 1 << 20
	maxBytes   = 256 << 20

	headerSize = 12
	maxName    = 255
)

// Stream reads the messages of a transfer in their order, and makes of them the version of the zone that they tell: the zone whole
// (RFC 5936), or what differs from the version that there was (RFC 1995). It knows neither sockets nor signatures.
type Stream struct {
	name string
	apex zone.Name
	had  *zone.Zone // what differences are of; nil: they were not asked for

	state  state
	edit   *zone.Edit
	first  []byte // data of the SOA that it begins with, and so ends with
	serial uint32 // of it
	from   uint32 // of differences, the version that is being left, or has been reached

	// Records and Bytes are how much has come, and Differences says that it was not the zone whole.
	Records, Bytes int
	Differences    bool

	owner zone.Name
	room  [maxName]byte
	data  []byte
}

type state uint8

const (
	beginning state = iota // nothing came yet
	begun                  // the first SOA
	whole                  // records of the zone
	leaving                // what a version has and the next has not
	reaching               // what the next has more
	ended
)

// NewStream begins a stream of the zone of a name; of what differs from had, if that is one.
func NewStream(name string, had *zone.Zone) (*Stream, error) {
	s := &Stream{name: name, had: had}
	if err := s.apex.Parse(name); err != nil {
		return nil, err
	}
	return s, nil
}

// Rcode is why a primary says no.
type Rcode int

func (r Rcode) Error() string { return "the answer is " + dns.RcodeToString[int(r)] }

// Take takes a message, without its signature. It says whether the transfer is at its end; after an error, it is nothing any more.
func (s *Stream) Take(m []byte) (done bool, err error) {
	if s.Bytes += len(m); s.Bytes > maxBytes {
		return false, fmt.Errorf("more than %d MiB", maxBytes>>20)
	}
	at, count, err := answersOf(m)
	if err != nil {
		return false, err
	}
	for range count {
		if at, err = s.record(m, at); err != nil {
			return false, err
		}
	}
	return s.state == ended, nil
}

// answersOf is where the records of the answer section begin, and how many there are.
func answersOf(m []byte) (at, count int, err error) {
	switch {
	case len(m) < headerSize || m[2]&0x80 == 0 || m[2]&0x78 != 0 || m[2]&0x02 != 0:
		return 0, 0, errors.New("a message is no response, or cut")
	case m[3]&0xf != 0:
		return 0, 0, Rcode(m[3] & 0xf)
	}
	at = headerSize
	for range binary.BigEndian.Uint16(m[4:]) {
		if at, err = skip(m, at); err != nil {
			return 0, 0, err
		}
		if at += 4; at > len(m) {
			return 0, 0, errShort
		}
	}
	if count = int(binary.BigEndian.Uint16(m[6:])); count == 0 {
		return 0, 0, errors.New("a message has no answer")
	}
	return at, count, nil
}

var errShort = errors.New("a message is shorter than it says")

// record takes the record that begins at an offset, and returns where the next does.
func (s *Stream) record(m []byte, at int) (next int, err error) {
	size, at, err := readName(m, at, s.room[:])
	if err != nil {
		return 0, err
	}
	if at+10 > len(m) {
		return 0, errShort
	}
	typ, class := binary.BigEndian.Uint16(m[at:]), binary.BigEndian.Uint16(m[at+2:])
	ttl, end := binary.BigEndian.Uint32(m[at+4:]), at+10+int(binary.BigEndian.Uint16(m[at+8:]))
	if end > len(m) {
		return 0, errShort
	}
	s.owner.Set(s.room[:size])
	apex := s.owner.Labels() - s.apex.Labels()
	if apex < 0 || string(s.owner.From(apex)) != string(s.apex.Wire()) {
		return 0, fmt.Errorf("%s is outside of the zone", &s.owner)
	}
	if class != dns.ClassINET || typ == 0 || typ == dns.TypeOPT || typ >= 128 && typ <= 255 {
		return 0, fmt.Errorf("%s: class %s, type %s is no data", &s.owner, dns.Class(class), dns.Type(typ))
	}
	if typ == dns.TypeSOA && apex > 0 {
		return 0, fmt.Errorf("%s: an SOA that is not at the zone's name", &s.owner)
	}
	if s.data, err = readData(m, at+10, end, typ, s.data[:0]); err != nil {
		return 0, fmt.Errorf("%s %s: %w", &s.owner, dns.Type(typ), err)
	}
	if s.Records++; s.Records > maxRecords {
		return 0, fmt.Errorf("more than %d records", maxRecords)
	}
	if ttl >= 1<<31 { // RFC 2181 §8
		ttl = 0
	}
	return end, s.take(zone.Row{Owner: s.owner.Wire(), Type: typ, TTL: ttl, Data: s.data})
}

// take does with a record what the ones before it make of it.
func (s *Stream) take(r zone.Row) error {
	soa := r.Type == dns.TypeSOA
	serial := uint32(0)
	if soa {
		serial = binary.BigEndian.Uint32(r.Data[len(r.Data)-20:])
	}
	switch s.state {
	case beginning:
		if !soa {
			return errors.New("it does not begin with the SOA")
		}
		s.first, s.serial, s.state = append(s.first, r.Data...), serial, begun
		if s.had != nil && !zone.Newer(serial, s.had.Serial()) {
			s.state = ended // there is nothing newer
		}
		return nil
	case begun:
		if soa && s.had != nil && serial != s.serial {
			if serial != s.had.Serial() {
				return fmt.Errorf("differences from serial %d were sent, not from %d", serial, s.had.Serial())
			}
			s.edit, s.state, s.from, s.Differences = s.had.Edit(), leaving, serial, true
			return nil
		}
		var err error
		if s.edit, err = zone.NewEdit(s.name, 0); err != nil {
			return err
		}
		s.state = whole
		fallthrough
	case whole:
		if !soa {
			_, err := s.edit.AddRow(r)
			return err
		}
		return s.end(r)
	case leaving:
		if !soa {
			return s.change(s.edit.DeleteRow, r, "is to be deleted and is not there")
		}
		if !zone.Newer(serial, s.from) {
			return fmt.Errorf("differences lead from serial %d back to %d", s.from, serial)
		}
		s.state, s.from = reaching, serial
		return nil
	case reaching:
		switch {
		case !soa:
			return s.change(s.edit.AddRow, r, "is to be added and is there")
		case s.from == s.serial:
			return s.end(r)
		case serial != s.from:
			return fmt.Errorf("differences reach serial %d and go on from %d", s.from, serial)
		}
		s.state = leaving
		return nil
	}
	return errors.New("there is more after its end")
}

// change makes a difference, which must be one.
func (s *Stream) change(change func(zone.Row) (bool, error), r zone.Row, wrong string) error {
	changed, err := change(r)
	if err == nil && !changed {
		err = fmt.Errorf("%s %s: a record %s", zone.Text(r.Owner), dns.Type(r.Type), wrong)
	}
	return err
}

// end takes the last SOA, which is the first again.
func (s *Stream) end(r zone.Row) error {
	if string(r.Data) != string(s.first) {
		return errors.New("it ends with another SOA than it began with")
	}
	if s.Differences {
		soa := s.had.SOA()
		data, _ := soa.Next()
		if _, err := s.edit.DeleteRow(zone.Row{Owner: r.Owner, Type: soa.Type, TTL: soa.TTL, Data: data}); err != nil {
			return err
		}
	}
	s.state = ended
	_, err := s.edit.AddRow(r)
	return err
}

// Zone is the version that the stream told; nil if it said that there is nothing newer. It is to be called once, at the end.
func (s *Stream) Zone() (*zone.Zone, error) {
	if s.state != ended {
		return nil, errors.New("the transfer is not at its end")
	}
	if s.edit == nil {
		return nil, nil
	}
	z, err := s.edit.Zone()
	if err != nil {
		return nil, err
	}
	if zone.NewTable(z).Apex(z, nil).NS.N == 0 {
		return nil, errors.New("the zone has no NS records at its name")
	}
	return z, nil
}

// skip returns where the name that begins at an offset ends.
func skip(m []byte, at int) (int, error) {
	var room [maxName]byte
	_, next, err := readName(m, at, room[:])
	return next, err
}

var errName = errors.New("a name is malformed")

// readName writes the name that begins at an offset into room, without pointers, and returns how long it is and where what follows it
// begins. A pointer leads to what is before it (RFC 1035 §4.1.4), so a name has an end.
func readName(m []byte, at int, room []byte) (size, next int, err error) {
	least := at
	for at < len(m) {
		n := int(m[at])
		switch {
		case n&0xc0 == 0xc0:
			if at+2 > len(m) {
				return 0, 0, errName
			}
			if next == 0 {
				next = at + 2
			}
			to := int(binary.BigEndian.Uint16(m[at:])) & 0x3fff
			if to >= least || to < headerSize {
				return 0, 0, errName
			}
			at, least = to, to
			continue
		case n&0xc0 != 0 || at+1+n > len(m) || size+1+n > maxName || n > 0 && size+1+n == maxName:
			return 0, 0, errName
		}
		size += copy(room[size:], m[at:at+1+n])
		if at += 1 + n; n == 0 {
			if next == 0 {
				next = at
			}
			return size, next, nil
		}
	}
	return 0, 0, errName
}

// layout is where in the data of a type names stand: so many one after the other, behind so many octets, and before so many more; any
// is as many as there are. It is of all types whose names may be shortened by who sends them (RFC 3597 §4).
type layout struct{ before, names, behind int }

const anyMore = -1

func layoutOf(t uint16) (l layout, ok bool) {
	switch t {
	case dns.TypeA:
		return layout{4, 0, 0}, true
	case dns.TypeAAAA:
		return layout{16, 0, 0}, true
	case dns.TypeSOA:
		return layout{0, 2, 20}, true
	case dns.TypeRP:
		return layout{0, 2, 0}, true
	case dns.TypeAFSDB, dns.TypeRT, dns.TypeKX:
		return layout{2, 1, 0}, true
	case dns.TypePX:
		return layout{2, 2, 0}, true
	case dns.TypeSIG:
		return layout{18, 1, anyMore}, true
	case dns.TypeNXT:
		return layout{0, 1, anyMore}, true
	}
	names, before := zone.Names(t)
	return layout{before, names, 0}, names > 0
}

var errData = errors.New("its data is malformed")

// readData appends the data between two offsets, with its names whole. What is of no type that is known here is taken as it is
// (RFC 3597).
func readData(m []byte, at, end int, typ uint16, to []byte) ([]byte, error) {
	l, ok := layoutOf(typ)
	if typ == dns.TypeNAPTR {
		before := 4
		for range 3 {
			if at+before >= end {
				return nil, errData
			}
			before += 1 + int(m[at+before])
		}
		l, ok = layout{before, 1, 0}, true
	}
	if !ok {
		return append(to, m[at:end]...), nil
	}
	if at+l.before > end {
		return nil, errData
	}
	to = append(to, m[at:at+l.before]...)
	at += l.before
	var room [maxName]byte
	for range l.names {
		size, next, err := readName(m[:end], at, room[:])
		if err != nil {
			return nil, err
		}
		to, at = append(to, room[:size]...), next
	}
	if l.behind != anyMore && end-at != l.behind {
		return nil, errData
	}
	return append(to, m[at:end]...), nil
}
