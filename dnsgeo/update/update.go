package update

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/dnsgeo/zone"
)

// Verdict is what becomes of an update.
type Verdict struct {
	// Rcode is that of the response (RFC 2136 §2.2).
	Rcode int
	// Why says more about a refusal, to people; "" where the rcode says all.
	Why string
	// Zone is what the zone becomes; nil if it stays as it is. It shares what did not change with the one before.
	Zone *spec.HostedZone
	// From is where each record of Zone was before: what spec.Rewritten takes.
	From []int
}

func refused(format string, args ...any) *Verdict {
	return &Verdict{Rcode: dns.RcodeRefused, Why: fmt.Sprintf(format, args...)}
}

// Admit says whether there is a zone that who signs by a key may change in some way: nil, or the refusal. "" has not signed.
func Admit(s *spec.Spec, m *Message, key string) *Verdict {
	z := s.HostedZones[m.Zone]
	switch {
	case z == nil || m.class != dns.ClassINET:
		return &Verdict{Rcode: dns.RcodeNotAuth}
	case key == "":
		return refused("an update must be signed")
	case !z.MayUpdateSome(key, ""):
		return refused("key %s may not update %s", key, z.Name)
	}
	return nil
}

// Judge judges an update that is signed by a key, whole: prerequisites, what is asked for, and who asks, in this order (RFC 2136
// §3.2–3.4). What the spec's own rules say of the zone that it leads to is not judged.
func Judge(s *spec.Spec, m *Message, key string) Verdict {
	if v := Admit(s, m, key); v != nil {
		return *v
	}
	j := judge{spec: s, zone: s.HostedZones[m.Zone], key: key}
	j.load(m)
	if v := j.prerequisites(m.prerequisites); v != nil {
		return *v
	}
	if v := j.scan(m.updates); v != nil {
		return *v
	}
	for i := range m.updates {
		if v := j.apply(&m.updates[i]); v != nil {
			return *v
		}
	}
	return j.end()
}

// judge is one update on its way over one zone.
type judge struct {
	spec  *spec.Spec
	zone  *spec.HostedZone
	key   string
	names map[string]*name // by owner: those of the message
	sets  []*set           // of those names, as they stand in the zone, and then as they come
}

// name is what stands at one name.
type name struct {
	owner    string // as HostedZone.Owner makes it
	relative string // as a record of the zone has it
	outside  bool   // it is none of the zone's: sets are none
	sets     []*set
}

// set is the records of one name and type. Without values there is none.
type set struct {
	name   string
	typ    string
	at     []int // where in the zone it stands
	was    *spec.Record
	ttl    spec.Duration
	values []string
	fixed  string // why it is not for updates; "": it is
}

func (s *set) there() bool { return s.fixed != "" || len(s.values) > 0 }

// load finds what stands at the names of the message.
func (j *judge) load(m *Message) {
	j.names = map[string]*name{}
	byOwner := map[string]*name{}
	for _, list := range [][]record{m.prerequisites, m.updates} {
		for i := range list {
			absolute := list[i].name
			n := &name{owner: j.zone.Owner(absolute), outside: !j.has(absolute)}
			if !n.outside {
				n.relative = j.zone.Relative(absolute)
				byOwner[n.owner] = n
			}
			j.names[absolute] = n
		}
	}
	for i, r := range j.zone.Records.Where(j.wanted(byOwner)) {
		n := byOwner[j.zone.Owner(r.Name)]
		st := n.find(r.Type)
		if st == nil {
			st = &set{name: r.Name, typ: r.Type, was: &r, values: r.Values}
			if r.TTL != nil {
				st.ttl = *r.TTL
			}
			n.sets, j.sets = append(n.sets, st), append(j.sets, st)
		}
		st.at = append(st.at, i)
		switch {
		case r.Alias != nil:
			st.fixed = "is an alias"
		case r.SetIdentifier != "" || len(st.at) > 1:
			st.fixed = "has a routing policy"
		}
	}
}

// wanted says of which names records are.
func (j *judge) wanted(names map[string]*name) func(string) bool {
	const few = 8 // comparing with these takes less than making an owner
	if len(names) > few {
		return func(name string) bool { return names[j.zone.Owner(name)] != nil }
	}
	owners := slices.Collect(maps.Keys(names))
	return func(name string) bool {
		return slices.ContainsFunc(owners, func(owner string) bool { return j.zone.Owns(name, owner) })
	}
}

// has says whether a name is the zone's or below it, and of no zone within it.
func (j *judge) has(absolute string) bool {
	for rest := absolute; rest != ""; {
		if z := j.spec.HostedZones[strings.TrimSuffix(rest, ".")]; z != nil {
			return z == j.zone
		}
		_, rest, _ = strings.Cut(rest, ".")
	}
	return false
}

func (n *name) find(typ string) *set {
	for _, s := range n.sets {
		if s.typ == typ {
			return s
		}
	}
	return nil
}

func (j *judge) apex(n *name) bool { return n.owner == j.zone.Name+"." }

// made are the types of what stands at a name without a record of the zone.
func (j *judge) made(n *name) []string {
	if j.apex(n) {
		if len(j.zone.NameServers) > 0 || slices.ContainsFunc(j.pops(), func(string) bool { return true }) {
			return []string{"SOA", "NS"}
		}
		return []string{"SOA"}
	}
	if label, ok := strings.CutSuffix(n.owner, "."+j.zone.Name+"."); ok && len(j.zone.NameServers) == 0 && len(n.sets) == 0 && slices.Contains(j.pops(), label) {
		return []string{"A", "AAAA"}
	}
	return nil
}

// pops are the labels of the name servers that a zone has without being told.
func (j *judge) pops() (labels []string) {
	for _, region := range j.spec.Regions {
		for _, pop := range region.POPs {
			labels = append(labels, zone.ServerLabel(pop.Name))
		}
	}
	return labels
}

// stands says whether there is anything at a name, and with a type whether there is anything of it.
func (j *judge) stands(n *name, typ string) bool {
	made := j.made(n)
	if typ == "" {
		return len(made) > 0 || slices.ContainsFunc(n.sets, (*set).there)
	}
	s := n.find(typ)
	return s != nil && s.there() || slices.Contains(made, typ)
}

// prerequisites judges what must stand before anything is done (RFC 2136 §3.2).
func (j *judge) prerequisites(list []record) *Verdict {
	type key struct {
		name string
		typ  uint16
	}
	var order []key
	wanted := map[key][]*record{}
	for i := range list {
		r := &list[i]
		n := j.names[r.name]
		unmet := func(rcode int) *Verdict {
			return &Verdict{Rcode: rcode, Why: "prerequisite: " + n.owner + " " + r.typeName()}
		}
		typ := r.typeName()
		if r.typ == dns.TypeANY {
			typ = ""
		}
		switch {
		case r.ttl != 0 || r.typ == dns.TypeOPT || meta(r.typ) && (r.typ != dns.TypeANY || r.class == dns.ClassINET):
			return &Verdict{Rcode: dns.RcodeFormatError}
		case n.outside:
			return &Verdict{Rcode: dns.RcodeNotZone, Why: n.owner + " is outside of " + j.zone.Name}
		case r.class == dns.ClassINET:
			if r.size == 0 {
				return &Verdict{Rcode: dns.RcodeFormatError}
			}
			k := key{r.name, r.typ}
			if wanted[k] == nil {
				order = append(order, k)
			}
			wanted[k] = append(wanted[k], r)
		case r.class != dns.ClassANY && r.class != dns.ClassNONE || r.size != 0:
			return &Verdict{Rcode: dns.RcodeFormatError}
		case r.class == dns.ClassANY && !j.stands(n, typ):
			if typ == "" {
				return unmet(dns.RcodeNameError)
			}
			return unmet(dns.RcodeNXRrset)
		case r.class == dns.ClassNONE && j.stands(n, typ):
			if typ == "" {
				return unmet(dns.RcodeYXDomain)
			}
			return unmet(dns.RcodeYXRrset)
		}
	}
	for _, k := range order {
		if n := j.names[k.name]; !j.equal(n, wanted[k]) {
			return &Verdict{Rcode: dns.RcodeNXRrset, Why: "prerequisite: " + n.owner + " " + dns.Type(k.typ).String()}
		}
	}
	return nil
}

// equal says whether a set is of exactly these data. What is made, or chosen by a policy, is equal to none.
func (j *judge) equal(n *name, to []*record) bool {
	typ := to[0].typeName()
	have := []string(nil)
	if s := n.find(typ); s != nil && s.fixed == "" {
		have = s.values
	} else if j.apex(n) && typ == "NS" {
		have = j.zone.NameServers
	}
	found := 0
	for i, r := range to {
		if r.wrong != "" || index(typ, have, r.value) < 0 {
			return false
		}
		if !slices.ContainsFunc(to[:i], func(other *record) bool { return same(typ, other.value, r.value) }) {
			found++
		}
	}
	return found == len(have)
}

// index is where among values of a type one stands, or −1.
func index(typ string, values []string, one string) int {
	return slices.IndexFunc(values, func(v string) bool { return same(typ, v, one) })
}

// same says whether two values are: but for the case of letters in names (RFC 4034 §6.2, of RFC 6840 §5.1's types).
func same(typ, a, b string) bool {
	switch typ {
	case "CNAME", "DNAME", "MX", "NS", "PTR", "SRV":
		return strings.EqualFold(a, b)
	}
	return a == b
}

// scan judges the form of what is asked for, and whether who asks may (RFC 2136 §3.4.1, §3.3).
func (j *judge) scan(list []record) *Verdict {
	for i := range list {
		r := &list[i]
		if n := j.names[r.name]; n.outside {
			return &Verdict{Rcode: dns.RcodeNotZone, Why: n.owner + " is outside of " + j.zone.Name}
		}
		bad := r.typ == dns.TypeOPT || meta(r.typ)
		switch r.class {
		case dns.ClassINET:
			bad = bad || r.size == 0
		case dns.ClassANY:
			bad = bad && r.typ != dns.TypeANY || r.ttl != 0 || r.size != 0
		case dns.ClassNONE:
			bad = bad || r.ttl != 0 || r.size == 0
		default:
			bad = true
		}
		if bad {
			return &Verdict{Rcode: dns.RcodeFormatError}
		}
	}
	for i := range list {
		r := &list[i]
		n := j.names[r.name]
		if r.typ != dns.TypeANY {
			if typ := r.typeName(); !j.zone.MayUpdate(j.key, n.owner, typ) {
				return refused("key %s may not update %s %s", j.key, n.owner, typ)
			}
			continue
		}
		if !j.zone.MayUpdateSome(j.key, n.owner) {
			return refused("key %s may not update %s", j.key, n.owner)
		}
		for _, s := range n.sets { // as it stands: what the update itself has added it may take away
			if !j.zone.MayUpdate(j.key, n.owner, s.typ) {
				return refused("key %s may not update %s %s", j.key, n.owner, s.typ)
			}
		}
	}
	return nil
}

// apply does what one record of the update section asks for (RFC 2136 §3.4.2).
func (j *judge) apply(r *record) *Verdict {
	n := j.names[r.name]
	switch r.class {
	case dns.ClassINET:
		return j.add(n, r)
	case dns.ClassANY:
		for _, s := range n.sets {
			if r.typ != dns.TypeANY && s.typ != r.typeName() {
				continue
			}
			if s.fixed != "" {
				return s.refuse(n)
			}
			s.values = nil
		}
		return nil // what is made at the apex, SOA and NS, stays
	}
	typ := r.typeName()
	if j.apex(n) && typ == "NS" {
		return j.servers(n, r)
	}
	s := n.find(typ)
	switch {
	case s == nil:
		return nil
	case s.fixed != "":
		return s.refuse(n)
	case r.wrong != "":
		return nil // there is no such record
	}
	if i := index(typ, s.values, r.value); i >= 0 {
		s.values = slices.Delete(slices.Clone(s.values), i, i+1)
	}
	return nil
}

func (s *set) refuse(n *name) *Verdict {
	return refused("%s %s %s, which no update changes", n.owner, s.typ, s.fixed)
}

// add adds a record, or puts it in the place of another.
func (j *judge) add(n *name, r *record) *Verdict {
	typ := r.typeName()
	switch {
	case r.typ == dns.TypeSOA:
		return j.soa(n, r)
	case typ == "CNAME":
		if j.apex(n) || slices.ContainsFunc(n.sets, func(s *set) bool { return s.typ != typ && s.there() }) {
			return nil
		}
	default:
		if s := n.find("CNAME"); s != nil && s.there() {
			return nil
		}
	}
	if j.apex(n) && typ == "NS" {
		return j.servers(n, r)
	}
	if r.wrong != "" {
		return refused("%s: %s", n.owner, r.wrong)
	}
	s := n.find(typ)
	if s == nil {
		s = &set{name: n.relative, typ: typ}
		n.sets, j.sets = append(n.sets, s), append(j.sets, s)
	}
	if s.fixed != "" {
		return s.refuse(n)
	}
	// All records of a set have one TTL, that of the newest (RFC 2181 §5.2). One with the first bit set is zero (§8).
	s.ttl = spec.Duration(time.Duration(r.ttl) * time.Second)
	if r.ttl >= 1<<31 {
		s.ttl = 0
	}
	switch i := index(typ, s.values, r.value); {
	case i >= 0 && s.values[i] != r.value || typ == "CNAME" || typ == "DNAME":
		s.values = slices.Clone(s.values)
		if i < 0 {
			s.values, i = []string{""}, 0
		}
		s.values[i] = r.value
	case i < 0:
		s.values = append(slices.Clip(s.values), r.value)
	}
	return nil
}

// soa passes over an SOA record that would change nothing (RFC 2136 §3.4.2.2). The zone's own is made, so that others are refused.
func (j *judge) soa(n *name, r *record) *Verdict {
	serial, err := strconv.ParseUint(r.value, 10, 32)
	if now := uint32(j.spec.Revision); !j.apex(n) || err == nil && (uint32(serial) == now || uint32(serial)-now >= 1<<31) {
		return nil
	}
	return refused("the SOA of %s is made: its serial is the revision", j.zone.Name)
}

// servers refuses a change of the zone's name servers, which its records do not have.
func (j *judge) servers(n *name, r *record) *Verdict {
	there := r.wrong == "" && index("NS", j.zone.NameServers, r.value) >= 0
	switch adds := r.class == dns.ClassINET; {
	case len(j.zone.NameServers) > 0 && there == adds, there && len(j.zone.NameServers) == 1:
		return nil // it changes nothing, or would leave none (RFC 2136 §3.4.2.4)
	}
	return refused("%s NS: the name servers of a zone are its nameServers, which no update changes", n.owner)
}

// end is the zone that all this leads to.
func (j *judge) end() Verdict {
	place := map[int]*spec.Record{} // what comes there; nil: nothing
	changes := false
	for _, s := range j.sets {
		if s.fixed != "" {
			continue
		}
		if s.was == nil {
			changes = changes || len(s.values) > 0
			continue
		}
		if s.ttl != *s.was.TTL && len(s.values) > 0 || !slices.Equal(s.values, s.was.Values) {
			changes = true
			place[s.at[0]] = nil
			if len(s.values) > 0 {
				r := *s.was
				r.Values, r.TTL = s.values, &s.ttl
				place[s.at[0]] = &r
			}
		}
	}
	if !changes {
		return Verdict{Rcode: dns.RcodeSuccess}
	}
	next := *j.zone
	v := Verdict{Rcode: dns.RcodeSuccess, Zone: &next, From: make([]int, 0, j.zone.Records.Len()+len(j.sets))}
	for i := range j.zone.Records.Len() {
		if r, changed := place[i]; !changed || r != nil {
			v.From = append(v.From, i)
		}
	}
	var more []spec.Record
	for _, s := range j.sets {
		if s.was == nil && len(s.values) > 0 {
			more, v.From = append(more, spec.Record{Name: s.name, Type: s.typ, TTL: &s.ttl, Values: s.values}), append(v.From, -1)
		}
	}
	next.Records = j.zone.Records.With(place, more...)
	return v
}
