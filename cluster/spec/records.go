package spec

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"sort"
	"time"
)

// Records are the record sets of a zone, in their order. They are never changed. There may be millions of them in memory, most of which
// have a name, a type, a TTL and values alone, and such a one is a few bytes more than its texts. The zero Records are none.
type Records struct {
	// packed has of each record the length of what follows (uvarint), its type's place in recordTypes, one more than the seconds of its TTL or 0
	// (uvarint), its name, and its values, each text with its length before it (uvarint). A length of 0: it is the next of whole.
	packed string
	whole  []*Record
	marks  []recordMark // where each of so many begins
	count  int
}

// recordMark is where a record begins: in packed, and of whole.
type recordMark struct{ at, whole uint32 }

// markEach is how many records are passed over at most to find one.
const markEach = 16

// RecordsOf are some, in their order.
func RecordsOf(records ...Record) Records {
	var p packing
	for i := range records {
		p.put(&records[i])
	}
	return p.records()
}

// Len is how many there are.
func (r Records) Len() int { return r.count }

// IsZero says whether there are none.
func (r Records) IsZero() bool { return r.count == 0 }

// At is one of them. What it points to must not be changed.
func (r Records) At(i int) Record {
	return r.from(i).record(&textRoom{texts: make([]string, 0, 1)})
}

// All yields them with their places. What they point to must not be changed.
func (r Records) All() iter.Seq2[int, Record] { return r.Where(nil) }

// Where yields those whose names are wanted, with their places; the others take little time. nil: all are wanted.
func (r Records) Where(wanted func(name string) bool) iter.Seq2[int, Record] {
	return func(yield func(int, Record) bool) {
		var room textRoom
		for c := r.from(0); c.ok(); c.next() {
			if (wanted == nil || wanted(c.name())) && !yield(c.place, c.record(&room)) {
				return
			}
		}
	}
}

// Special are those, in their order, that have more than a name, a type, a TTL in whole seconds and values. They are not to be changed. All that
// have an alias, a routing policy or a health check are among them.
func (r Records) Special() []*Record { return r.whole }

// List has a copy of each, which may be changed, but not what it points to.
func (r Records) List() []Record {
	list := make([]Record, 0, r.count)
	for _, one := range r.All() {
		list = append(list, one)
	}
	return list
}

// Equal says whether all are the same.
func (r Records) Equal(o Records) bool {
	return r.packed == o.packed && slices.EqualFunc(r.whole, o.whole, func(a, b *Record) bool { return a == b || a.Equal(b) })
}

// Alike is how many at the beginning of two are the same, and how many of the rest at the end.
func (r Records) Alike(o Records) (head, tail int) {
	if len(r.whole)+len(o.whole) == 0 { // as far as the bytes are the same, so is all
		common, _ := alike(r.packed, o.packed)
		head = max(0, sort.Search(len(r.marks), func(i int) bool { return int(r.marks[i].at) > common })-1) * markEach
		head = min(head, r.count, o.count)
	}
	a, b := r.from(head), o.from(head)
	for ; a.ok() && b.ok() && a.same(b); a.next() {
		b.next()
		head++
	}
	// From the end nothing can be read, so it is read from where both may begin to be the same.
	least := min(r.count, o.count) - head
	a, b = r.from(r.count-least), o.from(o.count-least)
	for ; a.ok(); a.next() {
		if tail++; !a.same(b) {
			tail = 0
		}
		b.next()
	}
	return head, tail
}

// Splice has others in the place of the records from first to last, which is left out.
func (r Records) Splice(first, last int, others Records) Records {
	from, to := r.from(first), r.from(last)
	joined := Records{
		packed: r.packed[:from.begin] + others.packed + r.packed[to.begin:],
		count:  first + others.count + r.count - last,
	}
	if joined.count == 0 {
		return Records{}
	}
	if len(r.whole)+len(others.whole) > 0 {
		joined.whole = slices.Concat(r.whole[:from.passed], others.whole, r.whole[to.passed:])
	}
	joined.mark()
	return joined
}

// With has others in the place of some, by their places (nil: none), and more at the end.
func (r Records) With(others map[int]*Record, more ...Record) Records {
	p := packing{data: make([]byte, 0, len(r.packed)+64*len(more)), whole: make([]*Record, 0, len(r.whole))}
	from := r.from(0)
	keep := func(to *recordCursor) {
		p.data = append(p.data, r.packed[from.begin:to.begin]...)
		p.whole = append(p.whole, r.whole[from.passed:to.passed]...)
		p.count += to.place - from.place
	}
	for _, place := range slices.Sorted(maps.Keys(others)) {
		keep(r.from(place))
		if one := others[place]; one != nil {
			p.put(one)
		}
		from = r.from(place + 1)
	}
	keep(r.from(r.count))
	for i := range more {
		p.put(&more[i])
	}
	return p.records()
}

// mark writes down where records begin.
func (r *Records) mark() {
	r.marks = make([]recordMark, 0, (r.count+markEach-1)/markEach)
	for c := (recordCursor{of: r}); c.place < r.count; c.place++ {
		if c.place%markEach == 0 {
			r.marks = append(r.marks, recordMark{uint32(c.begin), uint32(c.passed)})
		}
		size, n := shortUvarint(r.packed[c.begin:])
		if c.begin += n + size; size == 0 {
			c.passed++
		}
	}
}

// MarshalJSON is a list.
func (r Records) MarshalJSON() ([]byte, error) { return json.Marshal(r.List()) }

// UnmarshalJSON reads a list.
func (r *Records) UnmarshalJSON(data []byte) error {
	var list []Record
	if err := json.Unmarshal(data, &list); err != nil {
		return err
	}
	*r = RecordsOf(list...)
	return nil
}

// recordCursor is at one of the records, or behind the last.
type recordCursor struct {
	of     *Records
	place  int
	begin  int    // of it in packed
	passed int    // of whole, those before it
	body   string // of it; empty: it is whole
	whole  *Record
	end    int
}

// from is at a record.
func (r *Records) from(i int) *recordCursor {
	c := &recordCursor{of: r, place: r.count, begin: len(r.packed), passed: len(r.whole)}
	if i >= r.count {
		return c
	}
	m := r.marks[i/markEach]
	c.place, c.begin, c.passed = i/markEach*markEach, int(m.at), int(m.whole)
	for c.read(); c.place < i; {
		c.next()
	}
	return c
}

func (c *recordCursor) ok() bool { return c.place < c.of.count }

func (c *recordCursor) next() {
	if c.whole != nil {
		c.passed++
	}
	c.place, c.begin = c.place+1, c.end
	c.read()
}

func (c *recordCursor) read() {
	c.whole, c.body = nil, ""
	if !c.ok() {
		return
	}
	size, n := shortUvarint(c.of.packed[c.begin:])
	c.end = c.begin + n + size
	if c.body = c.of.packed[c.begin+n : c.end]; size == 0 {
		c.whole = c.of.whole[c.passed]
	}
}

// same says whether two are at the same record.
func (c *recordCursor) same(o *recordCursor) bool {
	return c.body == o.body && (c.whole == nil || c.whole == o.whole || c.whole.Equal(o.whole))
}

func (c *recordCursor) name() string {
	if c.whole != nil {
		return c.whole.Name
	}
	_, n := shortUvarint(c.body[1:])
	name, _ := cutText(c.body[1+n:])
	return name
}

// textRoom is what values of many records are put into, and the TTL that the last of them had.
type textRoom struct {
	texts []string
	ttl   *Duration
}

// record is the record, with its values in a room.
func (c *recordCursor) record(room *textRoom) Record {
	if c.whole != nil {
		return *c.whole
	}
	r := Record{Type: recordTypes[c.body[0]]}
	ttl, n := shortUvarint(c.body[1:])
	if ttl > 0 {
		if d := Duration(ttl-1) * Duration(time.Second); room.ttl == nil || *room.ttl != d {
			room.ttl = &d
		}
		r.TTL = room.ttl
	}
	name, rest := cutText(c.body[1+n:])
	r.Name = name
	const many = 64
	if len(room.texts) == cap(room.texts) {
		room.texts = make([]string, 0, min(many, c.of.count-c.place))
	}
	from := len(room.texts)
	for rest != "" {
		var value string
		if value, rest = cutText(rest); len(room.texts) == cap(room.texts) {
			room.texts = append(make([]string, 0, many+2*(len(room.texts)-from)), room.texts[from:]...)
			from = 0
		}
		room.texts = append(room.texts, value)
	}
	if end := len(room.texts); end > from {
		r.Values = room.texts[from:end:end]
	}
	return r
}

// shortUvarint reads a number that is mostly one byte, as binary.PutUvarint writes it.
func shortUvarint(text string) (value, size int) {
	if text[0] < 0x80 {
		return int(text[0]), 1
	}
	for shift := 0; ; shift += 7 {
		b := text[size]
		size++
		if value |= int(b&0x7f) << shift; b < 0x80 {
			return value, size
		}
	}
}

func cutText(packed string) (text, rest string) {
	size, n := shortUvarint(packed)
	return packed[n : n+size], packed[n+size:]
}

func uvarintSize(v int) int {
	n := 1
	for ; v >= 0x80; v >>= 7 {
		n++
	}
	return n
}

// packing is Records in the making.
type packing struct {
	data   []byte
	whole  []*Record
	count  int
	others []otherItem
	values []string // of the record at hand
	room   [48]byte
}

// otherItem is an item of a document that was not packed as it was read. Its place in whole is kept for it.
type otherItem struct {
	place, whole int
	node         node
}

// plain says that the record has nothing but what is packed.
func (r *Record) plain() (typ byte, ok bool) {
	i := slices.Index(recordTypes, r.Type)
	if i < 0 || r.Alias != nil || !r.Simple() || r.SetIdentifier != "" || r.HealthCheck != "" || r.OnAllUnhealthy != "" {
		return 0, false
	}
	if r.TTL == nil {
		return byte(i), true
	}
	seconds, whole := r.TTL.seconds()
	return byte(i), whole && seconds >= 0 && seconds < longestTTL
}

// longestTTL is above all that a record may have, in seconds.
const longestTTL = 1 << 32

func (p *packing) put(r *Record) {
	typ, ok := r.plain()
	if !ok {
		one := *r
		p.special(&one)
		return
	}
	ttl := 0
	if r.TTL != nil {
		seconds, _ := r.TTL.seconds()
		ttl = int(seconds) + 1
	}
	p.pack(typ, ttl, r.Name, r.Values)
}

// special puts a record that is not packed.
func (p *packing) special(r *Record) {
	p.data = append(p.data, 0)
	p.whole = append(p.whole, r)
	p.count++
}

func (p *packing) pack(typ byte, ttl int, name string, values []string) {
	size := 1 + uvarintSize(ttl) + uvarintSize(len(name)) + len(name)
	for _, v := range values {
		size += uvarintSize(len(v)) + len(v)
	}
	data := binary.AppendUvarint(p.data, uint64(size))
	data = binary.AppendUvarint(append(data, typ), uint64(ttl))
	data = append(binary.AppendUvarint(data, uint64(len(name))), name...)
	for _, v := range values {
		data = append(binary.AppendUvarint(data, uint64(len(v))), v...)
	}
	p.data = data
	p.count++
}

// records are those that were put.
func (p *packing) records() Records {
	if p.count == 0 {
		return Records{}
	}
	r := Records{packed: string(p.data), count: p.count}
	if len(p.whole) > 0 {
		r.whole = slices.Clip(p.whole)
	}
	r.mark()
	return r
}

// The fields of a record that is packed as it is read, with their rules.
var recordTTL, recordValues = recordField("ttl"), recordField("values")

func recordField(name string) *field {
	s := shapeOf(reflect.TypeFor[Record]())
	return &s.fields[slices.IndexFunc(s.fields, func(f field) bool { return f.name == name })]
}

// item takes an item of the field records: most are packed at once, and what they are made of is not needed any more. The others are
// kept to be decoded like all else. It says whether the item was packed.
func (p *packing) item(n *node) bool {
	if p.take(n) {
		return true
	}
	p.others = append(p.others, otherItem{p.count, len(p.whole), *n})
	p.special(new(Record))
	return false
}

// take packs an item that has nothing but what is packed, all of it right by the fields' rules, with its defaults: as decoding it would make it.
func (p *packing) take(n *node) bool {
	var name, typ, lasts, values *node
	if n.form != mapping {
		return false
	}
	for i := range n.fields {
		switch e := &n.fields[i]; e.name {
		case "name":
			name = &e.value
		case "type":
			typ = &e.value
		case "ttl":
			lasts = &e.value
		case "values":
			values = &e.value
		default:
			return false
		}
	}
	if name == nil || !name.isText() || name.text == "" || typ == nil || !typ.isText() || values == nil || values.form != sequence {
		return false
	}
	kind := slices.Index(recordTypes, typ.text)
	if kind < 0 || float64(len(values.items)) < recordValues.min || float64(len(values.items)) > recordValues.max {
		return false
	}
	ttl := int64(defaultTTL.Std() / time.Second)
	if lasts != nil {
		if lasts.form == null || lasts.form == boolean || lasts.form == mapping || lasts.form == sequence {
			return false
		}
		length, err := parseDuration(lasts.text)
		seconds, whole := length.seconds()
		if x := length.Std().Seconds(); err != nil || !whole || x < recordTTL.min || x > recordTTL.max || seconds < 0 || seconds >= longestTTL {
			return false
		}
		ttl = seconds
	}
	p.values = p.values[:0]
	for i := range values.items {
		v := &values.items[i]
		if !v.isText() {
			return false
		}
		p.values = append(p.values, p.complete(typ.text, v.text))
	}
	p.pack(byte(kind), int(ttl)+1, name.text, p.values)
	return true
}

// complete is completeValue, which takes no memory where an address is as it should be.
func (p *packing) complete(typ, value string) string {
	if typ == "A" || typ == "AAAA" {
		if a, err := netip.ParseAddr(value); err == nil && a.Zone() == "" && a.Is4() == (typ == "A") && string(a.AppendTo(p.room[:0])) == value {
			return value
		}
	}
	return completeValue(typ, value)
}

// records decodes the records of a zone; those that were packed as the document was read are not among the items.
func (d *decoder) records(n *node, f *field, v reflect.Value, at *path) {
	if n.form != sequence {
		d.fault(n.line, at.String(), "must be a list")
		return
	}
	p := d.packing
	if p == nil {
		p = new(packing)
		for i := range n.items {
			p.item(&n.items[i])
		}
	}
	if count := float64(p.count); count < f.min || count > f.max {
		d.fault(n.line, at.String(), fmt.Sprintf("must have %s items, not %d", f.bounds(), p.count))
		return
	}
	item := field{shape: f.shape.item, min: math.Inf(-1), max: math.Inf(1)}
	plain := false
	for i := range p.others {
		o := &p.others[i]
		here, r := at.item(o.place), p.whole[o.whole]
		if o.node.form == null {
			d.fault(o.node.line, here.String(), "is empty")
			continue
		}
		d.value(&o.node, &item, reflect.ValueOf(r).Elem(), &here)
		r.complete()
		if _, ok := r.plain(); ok {
			plain = true
		}
	}
	records := p.records()
	if plain { // what is the same is to be held in the same way
		records = RecordsOf(records.List()...)
	}
	v.Set(reflect.ValueOf(records))
}
