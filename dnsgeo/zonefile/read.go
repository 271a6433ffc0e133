// Package zonefile reads zone files (RFC 1035, section 5) into hosted zones, and writes hosted zones as zone files that other
// name servers take. It tells all faults at once, each with its line, and every record that it leaves out. It opens no file.
//
// A zone file can say neither routing policies nor aliases. Writing keeps those as comments and names them; so a zone without them
// that is written and read is the same zone.
package zonefile

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/spec"
)

// Bounds of a zone file. What is beyond is a fault.
const (
	MaxBytes    = spec.MaxFileBytes // of a file and all that it includes
	maxRecords  = 100_000           // resource records, generated ones too
	maxIncludes = 8                 // files within one another
	maxTold     = 100               // faults, and as many notes; more are counted
)

// Options say how a zone file is read.
type Options struct {
	File string // its name, for faults and notes
	Zone string // the zone's name, which names are relative to at first; without a trailing dot
	// NameServers makes the NS records of the apex the zone's name servers; otherwise they are left out, with a note.
	NameServers bool
	// Include reads what $INCLUDE names; nil: $INCLUDE is a fault.
	Include func(name string) ([]byte, error)
}

// Read makes a hosted zone of a zone file. Notes are what was left out or changed, and is not wrong. The error is spec.Faults.
func Read(data []byte, o Options) (z *spec.HostedZone, notes []spec.Fault, err error) {
	r := newReader(o)
	if _, err := spec.ParseDomain(o.Zone); err != nil {
		return nil, nil, spec.Faults{{Field: "name", Message: fmt.Sprintf("%.80q is not a domain name: %v", o.Zone, err)}}
	}
	r.file(o.File, data, r.apex)
	r.judge()
	for _, typ := range slices.Sorted(maps.Keys(r.leftOut)) {
		note := *r.leftOut[typ]
		note.Message = fmt.Sprintf(note.Message, r.counts[typ])
		r.notes = append(r.notes, note)
	}
	slices.SortStableFunc(r.notes, byLine)
	if len(r.faults) > 0 {
		slices.SortStableFunc(r.faults, byLine)
		if r.more > 0 {
			r.faults = append(r.faults, spec.Fault{Message: fmt.Sprintf("and %d more", r.more)})
		}
		return nil, r.notes, spec.Faults(r.faults)
	}
	return r.zone, r.notes, nil
}

func byLine(a, b spec.Fault) int {
	return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line))
}

func newReader(o Options) *reader {
	return &reader{
		o: o, zone: &spec.HostedZone{Name: o.Zone}, apex: o.Zone + ".",
		sets: map[set]int{}, leftOut: map[string]*spec.Fault{}, counts: map[string]int{},
	}
}

// set names the records of one name and type.
type set struct{ owner, typ string }

// place is where something stands.
type place struct {
	file string
	line int
}

// reader makes one zone. Its names are absolute, as spec.ParseDomain writes them.
type reader struct {
	o    Options
	zone *spec.HostedZone
	// records are those that it is to have.
	records []spec.Record
	apex    string
	sets    map[set]int // the zone's records
	at      [][]place   // of each record, where its values stand
	total   int
	bytes   int
	depth   int

	place         // of the entry that is being read
	origin string // what names are relative to
	owner  string // of the entry before; "": there was none
	ttls   ttls
	soa    string // its data; "": there was none

	faults  []spec.Fault
	more    int
	notes   []spec.Fault
	leftOut map[string]*spec.Fault // by type, once each
	counts  map[string]int
}

// ttls are what a record without a TTL has: $TTL (RFC 2308, section 4), else that of the record before (RFC 1035), else
// the SOA's minimum, as BIND has it.
type ttls struct {
	told, last, minimum uint32
	has                 struct{ told, last, minimum bool }
}

func (t *ttls) implied() (uint32, bool) {
	switch {
	case t.has.told:
		return t.told, true
	case t.has.last:
		return t.last, true
	}
	return t.minimum, t.has.minimum
}

func (r *reader) fault(field, format string, args ...any) {
	r.faultAt(r.place, field, fmt.Sprintf(format, args...))
}

func (r *reader) faultAt(p place, field, message string) {
	if len(r.faults) == maxTold {
		r.more++
		return
	}
	r.faults = append(r.faults, spec.Fault{File: p.file, Line: p.line, Field: field, Message: message})
}

func (r *reader) note(field, format string, args ...any) {
	if len(r.notes) < maxTold {
		r.notes = append(r.notes, spec.Fault{File: r.place.file, Line: r.line, Field: field, Message: fmt.Sprintf(format, args...)})
	}
}

// leave counts a record that is left out, and notes the first of its type. The format takes the count.
func (r *reader) leave(typ, format string) {
	if r.counts[typ]++; r.counts[typ] == 1 {
		r.leftOut[typ] = &spec.Fault{File: r.place.file, Line: r.line, Message: format}
	}
}

// file reads one file, whose names are relative to origin at first.
func (r *reader) file(name string, data []byte, origin string) {
	if r.bytes += len(data); r.bytes > MaxBytes {
		r.faultAt(place{name, 0}, "", fmt.Sprintf("more than %d bytes in the file and what it includes", MaxBytes))
		return
	}
	around, above, owner := r.place, r.origin, r.owner
	r.origin = origin
	l := &lexer{text: strings.TrimPrefix(string(data), "\uFEFF"), line: 1}
	for e, ok := l.next(); ok && r.total <= maxRecords; e, ok = l.next() {
		r.place = place{name, e.line}
		switch {
		case e.problem != "":
			r.fault("", "%s", e.problem)
		case strings.HasPrefix(e.words[0], "$") && !e.blank:
			r.directive(e.words)
		default:
			r.entry(e)
		}
	}
	if r.total > maxRecords {
		r.fault("", "more than %d records", maxRecords)
	}
	r.place, r.origin, r.owner = around, above, owner
}

func (r *reader) directive(words []string) {
	name := strings.ToUpper(words[0])
	args := words[1:]
	switch {
	case name == "$ORIGIN" && len(args) == 1:
		if origin, problem := r.name(args[0]); problem != "" {
			r.fault(name, "%s", problem)
		} else {
			r.origin = origin
		}
	case name == "$TTL" && len(args) == 1:
		ttl, problem := parseTTL(args[0])
		if problem != "" {
			r.fault(name, "%s", problem)
			return
		}
		r.ttls.told, r.ttls.has.told = ttl, true
	case name == "$INCLUDE" && (len(args) == 1 || len(args) == 2):
		r.include(args)
	case name == "$GENERATE" && len(args) >= 4:
		r.generate(args)
	case name == "$ORIGIN" || name == "$TTL" || name == "$INCLUDE":
		r.fault(name, "takes a value, and nothing after it")
	case name == "$GENERATE":
		r.fault(name, "must be a range, a name, a type and a value, like $GENERATE 1-9 host-$ A 192.0.2.$")
	default:
		r.fault("", "%.40q is no directive: there are $ORIGIN, $TTL, $INCLUDE and $GENERATE", words[0])
	}
}

func (r *reader) include(args []string) {
	const field = "$INCLUDE"
	if r.o.Include == nil {
		r.fault(field, "other files are not read unless their directory is given")
		return
	}
	origin := r.origin
	if len(args) == 2 {
		var problem string
		if origin, problem = r.name(args[1]); problem != "" {
			r.fault(field, "%s", problem)
			return
		}
	}
	if r.depth == maxIncludes {
		r.fault(field, "more than %d files within one another", maxIncludes)
		return
	}
	name := strings.Trim(args[0], `"`)
	data, err := r.o.Include(name)
	if err != nil {
		r.fault(field, "%v", err)
		return
	}
	r.depth++
	r.file(name, data, origin)
	r.depth--
}

// entry reads a record: its owner, or white space for that of the entry before, then a TTL and a class in either order,
// a type and its data.
func (r *reader) entry(e entry) {
	words := e.words
	if !e.blank {
		owner, problem := r.name(words[0])
		if problem != "" {
			r.owner = ""
			r.fault("", "%.80q is not a domain name: %s", words[0], problem)
			return
		}
		r.owner = strings.ToLower(owner)
		words = words[1:]
	}
	if r.owner == "" {
		r.fault("", "begins with white space, and there is no name before it that it could be of")
		return
	}
	r.record(words)
}

// record reads what follows an owner.
func (r *reader) record(words []string) {
	var ttl uint32
	hasTTL, hasClass := false, false
	for len(words) > 0 {
		word := strings.ToUpper(words[0])
		if !hasClass && (slices.Contains([]string{"IN", "CH", "CHAOS", "HS", "CS"}, word) || isNumbered(word, "CLASS")) {
			if word != "IN" && word != "CLASS1" {
				r.fault("", "class %.40s: only IN is served", word)
				return
			}
			hasClass, words = true, words[1:]
			continue
		}
		if !hasTTL && word[0] >= '0' && word[0] <= '9' {
			n, problem := parseTTL(word)
			if problem != "" {
				r.fault("", "%s", problem)
				return
			}
			ttl, hasTTL, words = n, true, words[1:]
			continue
		}
		break
	}
	if len(words) == 0 {
		r.fault("", "has no type")
		return
	}
	typ := strings.ToUpper(words[0])
	if isNumbered(typ, "TYPE") {
		n, _ := strconv.ParseUint(typ[4:], 10, 16)
		typ = dns.Type(n).String()
	}
	if hasTTL {
		r.ttls.last, r.ttls.has.last = ttl, true
	} else if ttl, hasTTL = r.ttls.implied(); !hasTTL && typ != "SOA" {
		r.fault(r.label(typ), "has no TTL, and there is neither $TTL nor a record with one before it")
		return
	}
	if r.total++; r.total > maxRecords {
		return
	}
	if words, problem := r.data(typ, words[1:]); problem != "" {
		r.fault(r.label(typ), "%s", problem)
	} else {
		r.put(typ, ttl, words)
	}
}

// label is how faults name the record that is being read.
func (r *reader) label(typ string) string { return fmt.Sprintf("%.253s %.20s", r.owner, typ) }

// isNumbered says whether a word is TYPE or CLASS with a number (RFC 3597, section 5).
func isNumbered(word, prefix string) bool {
	digits, ok := strings.CutPrefix(word, prefix)
	_, err := strconv.ParseUint(digits, 10, 16)
	return ok && err == nil
}

// unsaid are the types that signing makes, whose records mean nothing without it.
var unsaid = []string{"RRSIG", "NSEC", "NSEC3", "NSEC3PARAM", "DNSKEY", "CDS", "CDNSKEY", "ZONEMD"}

// put adds a record to the zone.
func (r *reader) put(typ string, ttl uint32, words []string) {
	switch {
	case r.owner != r.apex && !strings.HasSuffix(r.owner, "."+r.apex):
		r.fault(r.label(typ), "is not in the zone %s", r.zone.Name)
		return
	case typ == "SOA":
		r.readSOA(ttl, words)
		return
	case slices.Contains(unsaid, typ):
		r.leave(typ, "%d "+typ+" records are left out: they are made when a zone is signed")
		return
	case !spec.IsRecordType(typ):
		r.fault(r.label(typ), "there is no such type of records here")
		return
	}
	value, err := spec.ParseValue(typ, strings.Join(words, " "))
	if err != nil {
		r.fault(r.label(typ), "%v", err)
		return
	}
	if typ == "NS" && r.owner == r.apex {
		if !r.o.NameServers {
			r.leave("NS", "%d NS records of the zone's own name are left out: its name servers are those of its nodes, or its nameServers")
		} else if !slices.Contains(r.zone.NameServers, strings.ToLower(value)) {
			r.zone.NameServers = append(r.zone.NameServers, strings.ToLower(value))
		}
		return
	}
	lasts := spec.Duration(time.Duration(ttl) * time.Second)
	i, again := r.sets[set{r.owner, typ}]
	if !again {
		i = len(r.records)
		r.sets[set{r.owner, typ}] = i
		r.records = append(r.records, spec.Record{Name: r.zone.Relative(r.owner), Type: typ, TTL: &lasts})
		r.at = append(r.at, nil)
	}
	record := &r.records[i]
	if slices.Contains(record.Values, value) {
		r.note(r.label(typ), "stands there twice")
		return
	}
	if *record.TTL != lasts {
		*record.TTL = min(*record.TTL, lasts)
		r.note(r.label(typ), "has another TTL than the records of the same name and type before it: the least holds (RFC 2181, section 5.2)")
	}
	record.Values = append(record.Values, value)
	r.at[i] = append(r.at[i], r.place)
}

// readSOA reads what a zone here does not keep, but for the minimum that records may have their TTL from.
func (r *reader) readSOA(ttl uint32, words []string) {
	if len(words) != 7 {
		r.fault(r.label("SOA"), "must be a name server, a mailbox and five numbers, not %d words", len(words))
		return
	}
	for i, word := range words {
		var problem string
		switch {
		case i == 2:
			if _, err := strconv.ParseUint(word, 10, 32); err != nil {
				problem = fmt.Sprintf("the serial must be a number of 32 bits, not %.40q", word)
			}
		case i > 2:
			r.ttls.minimum, problem = parseTTL(word)
		}
		if problem != "" {
			r.fault(r.label("SOA"), "%s", problem)
			return
		}
	}
	r.ttls.has.minimum = true
	soa := strings.Join(words, " ")
	switch {
	case r.owner != r.apex:
		r.fault(r.label("SOA"), "a SOA stands at the zone's own name, %s", r.apex)
	case r.soa == soa: // a transfer ends with it
	case r.soa != "":
		r.fault(r.label("SOA"), "there is another SOA already")
	default:
		r.note("", "the SOA is left out: a zone has one made for it, whose serial is the spec's revision")
	}
	r.soa = soa
}

// judge has the zone looked at as a resource, and tells what is wrong where the records stand.
func (r *reader) judge() {
	r.zone.Records = spec.RecordsOf(r.records...)
	if r.total > maxRecords {
		return
	}
	resource := spec.Resource{Ref: spec.Ref{Kind: "HostedZone", Name: r.zone.Name}, Value: r.zone}
	_, err := resource.Check()
	faults, _ := err.(spec.Faults)
	for _, f := range faults {
		at, field := place{r.o.File, 0}, f.Field
		var i, j int
		if n, _ := fmt.Sscanf(f.Field, "records[%d].values[%d]", &i, &j); n > 0 && i < len(r.at) {
			at = r.at[i][0]
			if n == 2 && j < len(r.at[i]) {
				at = r.at[i][j]
			}
			record := &r.records[i]
			field = r.zone.Owner(record.Name) + " " + record.Type
		}
		if f.Kind == "" {
			field = ""
		}
		r.faultAt(at, field, f.Message)
	}
}

// parseTTL reads a number of seconds, or numbers with BIND's units: 1h30m, 2W.
func parseTTL(word string) (ttl uint32, problem string) {
	units := map[byte]uint64{'S': 1, 'M': 60, 'H': 3600, 'D': 86400, 'W': 604800}
	wrong := fmt.Sprintf("a TTL must be 0–%d seconds, or like 1h30m, not %.40q", math.MaxInt32, word)
	rest, total := strings.ToUpper(word), uint64(0)
	for rest != "" {
		digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
		n, err := strconv.ParseUint(rest[:digits], 10, 32)
		if err != nil {
			return 0, wrong
		}
		unit := uint64(1)
		if rest = rest[digits:]; rest != "" {
			unit = units[rest[0]]
			rest = rest[1:]
		} else if digits < len(word) {
			return 0, wrong // a number without a unit after some with one
		}
		total += n * unit
		if unit == 0 || total > math.MaxInt32 { // RFC 2181, section 8
			return 0, wrong
		}
	}
	if word == "" {
		return 0, wrong
	}
	return uint32(total), ""
}

// name makes a word an absolute name.
func (r *reader) name(word string) (absolute, problem string) {
	switch {
	case quoted(word):
		return "", "it is in double quotes"
	case word == ".":
		return ".", ""
	case word == "@":
		return r.origin, ""
	}
	absolute = spell(word)
	if !strings.HasSuffix(absolute, ".") || strings.HasSuffix(absolute, `\.`) {
		absolute += "." + strings.TrimPrefix(r.origin, ".")
	}
	absolute, err := spec.ParseDomain(absolute)
	if err != nil {
		return "", err.Error()
	}
	return absolute, ""
}

// spell writes the bytes that names of records have escaped, and zone files need not, as \ddd; an escape stays what it is.
func spell(name string) string {
	var b strings.Builder
	for i := 0; i < len(name); i++ {
		c := name[i]
		switch {
		case c == '\\' && i+3 < len(name) && name[i+1] >= '0' && name[i+1] <= '9':
			b.WriteString(name[i : i+4])
			i += 3
		case c == '\\' && i+1 < len(name) && (name[i+1] < '0' || name[i+1] > '9'):
			fmt.Fprintf(&b, `\%03d`, name[i+1])
			i++
		case c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte(`-_/.\`, c) >= 0,
			c == '*' && i == 0 && (len(name) == 1 || name[1] == '.'):
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, `\%03d`, c)
		}
	}
	return b.String()
}

// Where data has domain names, which may be relative, and texts, which need not be in quotes. A type that is not listed has
// neither; allTexts has nothing else.
var (
	names = map[string][]int{
		"CNAME": {0}, "DNAME": {0}, "NS": {0}, "PTR": {0}, "MX": {1}, "SRV": {3}, "NAPTR": {5}, "SVCB": {1}, "HTTPS": {1}, "SOA": {0, 1},
	}
	textsAt  = map[string][]int{"CAA": {2}, "NAPTR": {2, 3, 4}}
	allTexts = []string{"TXT", "SPF"}
)

// data makes the data of a record one of absolute names and quoted texts.
func (r *reader) data(typ string, words []string) (complete []string, problem string) {
	if len(words) > 0 && words[0] == `\#` {
		if words, problem = generic(typ, words[1:]); problem != "" {
			return nil, problem
		}
	}
	complete = slices.Clone(words)
	for i, word := range words {
		switch {
		case slices.Contains(names[typ], i):
			if complete[i], problem = r.name(word); problem != "" {
				return nil, fmt.Sprintf("%.80q is not a domain name: %s", word, problem)
			}
		case slices.Contains(allTexts, typ) || slices.Contains(textsAt[typ], i):
			if !quoted(word) && strings.Contains(strings.ReplaceAll(strings.ReplaceAll(word, `\\`, ""), `\"`, ""), `"`) {
				return nil, fmt.Sprintf("%.80q has a double quote in the middle", word)
			}
			if !quoted(word) {
				complete[i] = `"` + word + `"`
			}
		}
	}
	return complete, ""
}

// generic reads data that is written as its length and its bytes (RFC 3597, section 5), for types that have a form of their own.
func generic(typ string, words []string) (complete []string, problem string) {
	if len(words) == 0 {
		return nil, `\# must be followed by a length and bytes in hexadecimal digits`
	}
	length, err := strconv.ParseUint(words[0], 10, 16)
	bytes, err2 := hex.DecodeString(strings.Join(words[1:], ""))
	if err != nil || err2 != nil || int(length) != len(bytes) {
		return nil, fmt.Sprintf(`\# must be followed by a length and as many bytes in hexadecimal digits, not %.80q`, strings.Join(words, " "))
	}
	number, known := dns.StringToType[typ]
	if !known {
		return nil, "there is no such type of records here"
	}
	message := []byte{0, byte(number >> 8), byte(number), 0, 1, 0, 0, 0, 0, byte(length >> 8), byte(length)}
	rr, end, err := dns.UnpackRR(append(message, bytes...), 0)
	if err != nil || end != len(message)+len(bytes) || length == 0 {
		return nil, `\#: the bytes are not data of this type`
	}
	text := strings.TrimPrefix(rr.String(), rr.Header().String())
	e, _ := (&lexer{text: text, line: 1}).next()
	return e.words, e.problem
}
