package route53

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
)

// Names say what the things of an AWS account are here.
type Names struct {
	Aliases      map[string]spec.Alias // by the DNS name of what an alias leads to, in small letters and without a trailing dot
	HealthChecks map[string]string     // by id
	Collections  map[string]string     // CIDR collections by id
}

// Zone is a zone that was imported, and what was not.
type Zone struct {
	*spec.HostedZone
	// Incomplete are record sets, or parts of them, that have no counterpart until Names say one. The zone is without them.
	Incomplete []spec.Fault
	// Notes are what is left out because a zone here has it made.
	Notes []spec.Fault
}

// Read makes a zone of a list of record sets (pages one after the other), or, of the zone before, what a batch of changes makes of it: all
// changes or none. zone is nil, or a zone that spec.Build made; name is the zone's, or "" for that of the zone before or of the SOA in the
// list. The error is spec.Faults.
func Read(file string, data []byte, name string, zone *spec.HostedZone, names Names) (*Zone, error) {
	f, err := parse(file, data)
	if err != nil {
		return nil, err
	}
	r := &reader{file: file, names: names, out: &Zone{HostedZone: &spec.HostedZone{}}}
	if zone != nil {
		*r.out.HostedZone = *zone
		r.records = zone.Records.List()
		name = cmp.Or(name, zone.Name)
	}
	for _, s := range f.sets {
		if s.Type == "SOA" && name == "" {
			name = s.Name
		}
	}
	r.out.Name = strings.ToLower(strings.TrimSuffix(name, "."))
	switch {
	case r.out.Name == "":
		return nil, spec.Faults{{File: file, Message: "the zone's name is in no SOA record there: say it"}}
	case len(f.changes) > 0 && len(f.sets) > 0:
		return nil, spec.Faults{{File: file, Message: "holds a list of record sets and changes too: one of the two"}}
	}
	for _, s := range f.sets {
		r.line = s.line
		if record, ok := r.record(&s.recordSet); ok {
			r.put(record)
		}
	}
	if f.more != "" {
		r.out.Incomplete = append(r.out.Incomplete, spec.Fault{File: file, Message: fmt.Sprintf("the last page of the list says %s: what follows it is not in the file", f.more)})
	}
	r.batch(f.changes)
	r.out.Records = spec.RecordsOf(r.records...)
	r.judge()
	if len(r.faults) > 0 {
		slices.SortStableFunc(r.faults, func(a, b spec.Fault) int { return cmp.Compare(a.Line, b.Line) })
		return nil, r.faults
	}
	return r.out, nil
}

type reader struct {
	file    string
	line    int // of the set that is being read
	names   Names
	out     *Zone
	records []spec.Record // that it is to have
	lines   []int         // of the records that were added, by their index; 0: they were there before
	faults  spec.Faults
}

func (r *reader) fault(what string, format string, args ...any) {
	if len(r.faults) < maxTold {
		r.faults = append(r.faults, spec.Fault{File: r.file, Line: r.line, Field: what, Message: fmt.Sprintf(format, args...)})
	}
}

func (r *reader) put(record spec.Record) {
	r.records = append(r.records, record)
	for len(r.lines) < len(r.records)-1 {
		r.lines = append(r.lines, 0)
	}
	r.lines = append(r.lines, r.line)
}

// key tells a record set from all others of its zone.
type key struct{ owner, typ, identifier string }

func (k key) String() string { return strings.TrimSpace(k.owner + " " + k.typ + " " + k.identifier) }

func (r *reader) key(record *spec.Record) key {
	return key{r.out.Owner(record.Name), record.Type, record.SetIdentifier}
}

// batch makes the changes, in their order, on the records (ChangeResourceRecordSets): CREATE must not find the set, DELETE must
// find exactly it, UPSERT does either.
func (r *reader) batch(changes []change) {
	if len(changes) == 0 {
		return
	}
	at := map[key]int{}
	for i := range r.records {
		at[r.key(&r.records[i])] = i
	}
	r.lines = make([]int, len(r.records), len(r.records)+len(changes))
	gone := map[int]bool{}
	for _, c := range changes {
		r.line = c.line
		record, ok := r.record(&c.ResourceRecordSet)
		if !ok {
			continue
		}
		k := r.key(&record)
		i, exists := at[k]
		switch {
		case c.Action == "CREATE" && exists:
			r.fault(k.String(), "CREATE: it exists already")
		case c.Action == "DELETE" && !exists:
			r.fault(k.String(), "DELETE: there is no such record set")
		case c.Action == "DELETE" && r.form(r.records[i]) != r.form(record):
			r.fault(k.String(), "DELETE: it exists, and is another: %s", spec.Flow(r.records[i]))
		case c.Action == "DELETE":
			gone[i] = true
			delete(at, k)
		case c.Action == "UPSERT" && exists:
			r.records[i], r.lines[i] = record, r.line
		case c.Action == "CREATE" || c.Action == "UPSERT":
			r.put(record)
			at[k] = len(r.records) - 1
		default:
			r.fault(k.String(), "the action must be CREATE, UPSERT or DELETE, not %.40q", c.Action)
		}
	}
	kept, lines := r.records[:0:0], r.lines[:0:0]
	for i, record := range r.records {
		if !gone[i] {
			kept = append(kept, record)
			lines = append(lines, r.lines[i])
		}
	}
	r.records, r.lines = kept, lines
}

// form is a record set as one text, the same for sets that are the same: values in any order, names relative or not.
func (r *reader) form(record spec.Record) string {
	record.Name = r.out.Owner(record.Name)
	record.Values = slices.Clone(record.Values)
	for i, value := range record.Values {
		if canonical, err := spec.ParseValue(record.Type, value); err == nil {
			record.Values[i] = canonical
		}
	}
	slices.Sort(record.Values)
	if a := record.Alias; a != nil && a.Record != "" {
		record.Alias = &spec.Alias{Record: r.out.Owner(a.Record), EvaluateTargetHealth: a.EvaluateTargetHealth}
	}
	return spec.Flow(record)
}

// record makes one record set; ok says that there is one here for it.
func (r *reader) record(s *recordSet) (record spec.Record, ok bool) {
	owner, err := spec.ParseDomain(strings.TrimSuffix(decimal(s.Name), ".") + ".")
	what := strings.TrimSpace(s.Name + " " + s.Type + " " + s.SetIdentifier)
	if err != nil {
		r.fault(what, "%.80q is not a domain name: %v", s.Name, err)
		return record, false
	}
	owner = strings.ToLower(owner)
	apex := r.out.Name + "."
	if owner != apex && !strings.HasSuffix(owner, "."+apex) {
		r.fault(what, "is not in the zone %s", r.out.Name)
		return record, false
	}
	if owner == apex && (s.Type == "SOA" || s.Type == "NS") {
		r.out.Notes = append(r.out.Notes, spec.Fault{File: r.file, Line: r.line, Field: what, Message: "is left out: a zone has it made for it"})
		return record, false
	}
	lacks := func(format string, args ...any) {
		r.out.Incomplete = append(r.out.Incomplete, spec.Fault{File: r.file, Line: r.line, Field: what, Message: fmt.Sprintf(format, args...)})
	}
	if s.TrafficPolicyInstanceID != "" {
		lacks("belongs to a traffic policy, and is taken as it is without it")
	}
	record = spec.Record{Name: r.out.Relative(owner), Type: s.Type, SetIdentifier: s.SetIdentifier, Weight: s.Weight, Region: s.Region, Failover: s.Failover}
	if s.MultiValueAnswer != nil {
		record.MultiValueAnswer = *s.MultiValueAnswer
	}
	if g := s.GeoLocation; g != nil {
		record.GeoLocation = &spec.GeoLocation{Continent: g.ContinentCode, Country: g.CountryCode, Subdivision: g.SubdivisionCode}
	}
	if p := s.GeoProximityLocation; p != nil && !r.proximity(what, p, &record, lacks) {
		return record, false
	}
	if c := s.CidrRoutingConfig; c != nil {
		collection, known := r.names.Collections[c.CollectionID]
		if !known {
			lacks("is left out: its CIDR collection %s is not named (--cidr-collection %s=NAME)", c.CollectionID, c.CollectionID)
			return record, false
		}
		record.CidrRoutingConfig = &spec.CidrRoutingConfig{Collection: collection, LocationName: c.LocationName}
	}
	if id := s.HealthCheckID; id != "" {
		if record.HealthCheck = r.names.HealthChecks[id]; record.HealthCheck == "" {
			lacks("is taken without its health check %s, which is not named (--health-check %s=NAME)", id, id)
		}
	}
	switch {
	case s.AliasTarget != nil && (s.TTL != nil || len(s.ResourceRecords) > 0):
		r.fault(what, "has AliasTarget, so it has neither TTL nor ResourceRecords")
		return record, false
	case s.AliasTarget != nil:
		return record, r.alias(s.AliasTarget, &record, lacks)
	case s.TTL == nil || len(s.ResourceRecords) == 0:
		r.fault(what, "must have TTL and ResourceRecords, or AliasTarget")
		return record, false
	case *s.TTL < 0 || *s.TTL > 1<<31-1:
		r.fault(what, "TTL must be 0–2147483647, not %d", *s.TTL)
		return record, false
	}
	ttl := spec.Duration(time.Duration(*s.TTL) * time.Second)
	record.TTL = &ttl
	good := true
	for _, value := range s.ResourceRecords {
		canonical, err := spec.ParseValue(s.Type, decimal(value.Value))
		if err != nil {
			r.fault(what, "%v", err)
			good = false
		}
		record.Values = append(record.Values, canonical)
	}
	return record, good
}

func (r *reader) proximity(what string, p *geoProximityLocation, record *spec.Record, lacks func(string, ...any)) bool {
	location := &spec.GeoProximityLocation{Region: p.AWSRegion}
	if p.Bias != nil {
		location.Bias = *p.Bias
	}
	if c := p.Coordinates; c != nil {
		latitude, err1 := strconv.ParseFloat(c.Latitude, 64)
		longitude, err2 := strconv.ParseFloat(c.Longitude, 64)
		if err1 != nil || err2 != nil {
			r.fault(what, "Coordinates must be two numbers, not %.20q and %.20q", c.Latitude, c.Longitude)
			return false
		}
		location.Coordinates = &spec.Location{Latitude: latitude, Longitude: longitude}
	}
	if p.LocalZoneGroup != "" {
		lacks("is left out: the local zone group %s is no place here (give it Coordinates)", p.LocalZoneGroup)
		return false
	}
	record.GeoProximityLocation = location
	return true
}

// alias says where an alias leads: as it is named, or to a record of the zone.
func (r *reader) alias(a *aliasTarget, record *spec.Record, lacks func(string, ...any)) bool {
	name := strings.ToLower(strings.TrimSuffix(a.DNSName, "."))
	alias, known := r.names.Aliases[name]
	if !known { // the API adds this to a load balancer's name
		alias, known = r.names.Aliases[strings.TrimPrefix(name, "dualstack.")]
	}
	if target, err := spec.ParseDomain(strings.ToLower(decimal(name)) + "."); !known && err == nil &&
		(target == r.out.Name+"." || strings.HasSuffix(target, "."+r.out.Name+".")) {
		alias, known = spec.Alias{Record: r.out.Relative(target)}, true
	}
	if !known {
		lacks("is left out: its alias leads to %s, which is not named (--alias %s=distribution/NAME, or loadBalancer/, accelerator/, record/)", name, name)
		return false
	}
	alias.EvaluateTargetHealth = a.EvaluateTargetHealth
	record.Alias = &alias
	return true
}

// judge has the zone looked at as a resource.
func (r *reader) judge() {
	_, err := spec.Resource{Ref: spec.Ref{Kind: "HostedZone", Name: r.out.Name}, Value: r.out.HostedZone}.Check()
	faults, _ := err.(spec.Faults)
	for _, f := range faults {
		var i int
		what := f.Field
		r.line = 0
		if n, _ := fmt.Sscanf(f.Field, "records[%d]", &i); n == 1 && i < len(r.lines) {
			r.line = r.lines[i]
			what = r.key(&r.records[i]).String()
		}
		if f.Kind == "" {
			what = ""
		}
		r.fault(what, "%s", f.Message)
	}
}
