package spec

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"
	"strings"
)

// setKey names the records of one name and type.
type setKey struct{ owner, typ string }

func (k setKey) String() string { return k.owner + " " + k.typ }

// zoneCheck judges the records of one zone.
type zoneCheck struct {
	check
	zone    *HostedZone
	records []Record         // those of the zone
	keys    []setKey         // of each record; empty where its name is not right
	sets    map[setKey][]int // records by name and type
	// moved says that some name has a DNAME.
	moved bool
}

func (c check) hostedZone(z *HostedZone) {
	name := strings.TrimSuffix(strings.ToLower(z.Name), ".")
	if problem := domainProblem(name); problem != "" {
		c.fault("name", "%.80q is not a domain name: %s", z.Name, problem)
	} else if name != z.Name {
		c.fault("name", "must be in small letters and without a trailing dot: %s", name)
	}
	servers := map[string]bool{}
	for i, server := range z.NameServers {
		field := at("nameServers", i)
		server = strings.ToLower(server)
		if problem := domainProblem(server); problem != "" {
			c.fault(field, "%.80q is not a host name: %s", server, problem)
		} else if strings.Count(server, ".") < 2 {
			c.fault(field, "must be a whole name, like ns1.%s", z.Name)
		} else if servers[server] {
			c.fault(field, "%s is in the list twice", server)
		}
		servers[server] = true
	}
	c.transfer(&z.Transfer)
	c.secondary(z)
	c.update(z)
	zc := zoneCheck{check: c, zone: z}
	before := c.before(z)
	var room textRoom
	for at := z.Records.from(0); at.ok(); at.next() {
		if before.same(at.place) && (at.whole == nil || at.whole.alone()) || at.right() {
			continue
		}
		r := at.record(&room)
		zc.record(atRecord(at.place), &r)
	}
	if before.sameSets || zc.sound() {
		return
	}
	zc.records = z.Records.List()
	zc.keys, zc.sets = make([]setKey, len(zc.records)), make(map[setKey][]int, len(zc.records))
	types := make(map[string]string, len(zc.records)) // of a name: CNAME if it has one
	for i := range zc.records {
		r, field := &zc.records[i], atRecord(i)
		if r.Type == "" || !zc.owner(field, r) {
			continue
		}
		key := setKey{z.Owner(r.Name), r.Type}
		zc.keys[i] = key
		zc.sets[key] = append(zc.sets[key], i)
		zc.moved = zc.moved || r.Type == "DNAME"
		if types[key.owner] != "CNAME" {
			types[key.owner] = r.Type
		}
	}
	for i, key := range zc.keys {
		if key.owner == "" {
			continue
		}
		zc.beside(atRecord(i), key)
		if key.typ != "CNAME" && types[key.owner] == "CNAME" {
			c.fault(atRecord(i), "%s has a CNAME, which must be alone at its name", key.owner)
		}
		if members := zc.sets[key]; members[0] == i && len(members) > 1 { // one alone has none to differ from
			zc.set(key, members)
		}
	}
	if slices.ContainsFunc(z.Records.Special(), func(r *Record) bool { return r.Alias != nil && r.Alias.Record != "" }) {
		zc.aliasLoops()
	}
}

func atRecord(i int) string { return at("records", i) }

// right says whether the record is one address, and by itself as it should be: as most are.
func (c *recordCursor) right() bool {
	if c.whole != nil {
		return false
	}
	typ := recordTypes[c.body[0]]
	if typ != "A" && typ != "AAAA" {
		return false
	}
	_, n := shortUvarint(c.body[1:])
	_, rest := cutText(c.body[1+n:])
	if rest == "" {
		return false
	}
	value, rest := cutText(rest)
	if rest != "" {
		return false
	}
	a, err := netip.ParseAddr(value)
	return err == nil && a.Zone() == "" && a.Is4() == (typ == "A")
}

// sound says that the records of the zone are nothing to each other, and stand where they may: each has a name that is like a host's and below the
// zone's, is alone with its type there, and is of none that would be judged by what else there is. It is false of many that are right, too.
func (c *zoneCheck) sound() bool {
	if len(c.zone.Records.whole) > 0 || c.told("name") {
		return false
	}
	types := make(map[string]uint32, c.zone.Records.count) // at a name
	for at := c.zone.Records.from(0); at.ok(); at.next() {
		switch recordTypes[at.body[0]] {
		case "CNAME", "DNAME", "DS", "NS":
			return false
		}
		name, typ := at.name(), uint32(1)<<at.body[0]
		was := types[name]
		if was&typ != 0 || was == 0 && !c.likeHost(name) {
			return false
		}
		types[name] = was | typ
	}
	return true
}

// likeHost says whether a name, as records have it, is some labels of small letters, digits, hyphens and underscores, in the zone and not too long.
func (c *zoneCheck) likeHost(name string) bool {
	if len(name)+1+len(c.zone.Name) > longestName || strings.HasSuffix(name, c.zone.Name) {
		return false
	}
	label := 0
	for i := range len(name) {
		switch b := name[i]; {
		case b == '.' && label > 0:
			label = 0
		case b >= 'a' && b <= 'z' || b >= '0' && b <= '9' || b == '-' || b == '_':
			if label++; label > longestLabel {
				return false
			}
		default:
			return false
		}
	}
	return label > 0
}

// judgedBefore is what of a zone is as in the one that stands, which has no faults: it is not judged again.
type judgedBefore struct {
	head, end int  // records before the one and from the other on are the same
	sameSets  bool // all names, types and policies are the same, so that nothing is new between records
}

func (c check) before(z *HostedZone) (b judgedBefore) {
	old := c.base.HostedZones[z.Name]
	if old == nil || old == z || c.o.Partial {
		return judgedBefore{0, z.Records.Len(), false}
	}
	head, tail := z.Records.Alike(old.Records)
	b.head, b.end = head, z.Records.Len()-tail
	b.sameSets = z.Records.Len() == old.Records.Len()
	for i := b.head; b.sameSets && i < b.end; i++ {
		r, was := z.Records.At(i), old.Records.At(i)
		b.sameSets = r.Name == was.Name && r.Type == was.Type && r.routedAs(&was)
	}
	return b
}

// same says whether record i stood in the zone before.
func (b *judgedBefore) same(i int) bool { return i < b.head || i >= b.end }

// owner judges where a record stands.
func (c *zoneCheck) owner(field string, r *Record) (ok bool) {
	field += ".name"
	if r.Name == "" || !c.within(field, r.Name) {
		return false
	}
	apex := c.zone.Name + "."
	owner := c.zone.Owner(r.Name)
	wild := strings.HasPrefix(owner, "*.")
	switch {
	case wild && (r.Type == "NS" || r.Type == "DS"):
		c.fault(field, "a wildcard cannot be delegated")
	case wild && r.Type == "DNAME":
		c.fault(field, "a wildcard cannot have a DNAME: it would be of names below a name that there is not")
	case owner == apex && r.Type == "DS":
		c.fault(field, "the apex has no DS: it stands in the zone above, beside the NS records there")
	case owner == apex && r.Type == "CNAME":
		c.fault(field, "the apex cannot have a CNAME: use an alias")
	case owner == apex && r.Type == "NS":
		c.fault(field, "the apex has the zone's nameServers: set those")
	}
	return true
}

// within says whether a name, as records have it, is one in the zone.
func (c *zoneCheck) within(field, name string) bool {
	owner, relative := c.zone.Owner(name), strings.ToLower(name)
	whole := owner
	if relative != "@" && !endsInDot(relative) {
		whole = relative + "." + c.zone.Name + "."
	} else if relative != "@" {
		whole = relative
	}
	if _, problem := parseDomain(whole); problem != "" {
		c.fault(field, "%.80q is not a domain name: %s", name, problem)
		return false
	}
	switch {
	case !c.zone.encloses(owner):
		c.fault(field, "%s is not in the zone %s", owner, c.zone.Name)
	case relative == c.zone.Name || strings.HasSuffix(relative, "."+c.zone.Name):
		c.fault(field, "would be %s: end it with a dot, or leave out the zone's name (@ is the apex)", owner)
	default:
		return true
	}
	return false
}

// beside judges a record by what else stands at its name and above it: a DNAME moves all that is below its name, and
// is neither a delegation nor a CNAME (RFC 6672, section 2.4); a DS stands beside the NS records of a delegation (RFC 4035, section 2.4).
func (c *zoneCheck) beside(field string, key setKey) {
	switch {
	case key.typ == "DNAME" && c.sets[setKey{key.owner, "NS"}] != nil:
		c.fault(field, "%s has NS records, beside which a DNAME cannot be", key.owner)
	case key.typ == "DS" && key.owner != c.zone.Name+"." && c.sets[setKey{key.owner, "NS"}] == nil:
		c.fault(field, "%s is not delegated: a DS stands beside NS records", key.owner)
	}
	if !c.moved {
		return
	}
	for above := parent(key.owner); len(above) >= len(c.zone.Name)+1; above = parent(above) {
		if c.sets[setKey{above, "DNAME"}] != nil {
			c.fault(field, "%s is below %s, whose DNAME moves all that is below it", key.owner, above)
			return
		}
	}
}

// parent is an absolute name without its first label.
func parent(name string) string {
	for i := 0; i < len(name); i++ {
		switch name[i] {
		case '\\':
			i++ // a dot that is escaped; digits end no label
		case '.':
			return name[i+1:]
		}
	}
	return ""
}

// record judges one record set by itself.
func (c *zoneCheck) record(field string, r *Record) {
	c.wholeSeconds(field+".ttl", r.TTL)
	c.values(field, r)
	if r.Alias != nil {
		c.alias(field, r)
	}
	policies := r.policies()
	switch {
	case c.told(field):
		// what is missing may be what was mistyped
	case len(policies) > 1:
		c.fault(field, "routes by %s: one only", list(policies, "and"))
	case len(policies) == 1 && r.SetIdentifier == "":
		c.fault(field+".setIdentifier", "is required for %s routing", policies[0])
	case len(policies) == 0 && r.SetIdentifier != "":
		c.fault(field+".setIdentifier", "needs a routing policy: weight, region, failover, geoLocation, geoProximityLocation, cidrRoutingConfig or multiValueAnswer")
	case len(policies) == 0 && r.HealthCheck != "":
		c.fault(field+".healthCheck", "needs a routing policy: a simple record is answered in any health")
	case len(policies) == 0 && r.OnAllUnhealthy != "":
		c.fault(field+".onAllUnhealthy", "needs a routing policy: a simple record is answered in any health")
	}
	if isOfParents(r.Type) && len(policies) > 0 {
		c.fault(field, "%s records have no routing policy", r.Type)
	}
	if r.MultiValueAnswer && (r.Alias != nil || r.Type == "CNAME" || r.Type == "NS") {
		c.fault(field+".multiValueAnswer", "is neither for aliases nor for CNAME and NS")
	}
	c.routing(field, r)
	c.inRegion(field+".region", r.Region)
	find(c.check, field+".healthCheck", "HealthCheck", c.spec.HealthChecks, r.HealthCheck)
}

func (c *zoneCheck) values(field string, r *Record) {
	const mostBytes = 32_000 // of one set, as Route 53 takes; a DNS message has 65,535
	seen, total := map[string]bool{}, 0
	for i, value := range r.Values {
		item := at(field+".values", i)
		canonical, problem := parseValue(r.Type, value)
		if problem != "" {
			c.fault(item, "%s", problem)
		} else if seen[canonical] {
			c.fault(item, "%.80s is in the list twice", canonical)
		}
		seen[canonical] = true
		total += len(value)
	}
	if (r.Type == "CNAME" || r.Type == "DNAME") && len(r.Values) > 1 {
		c.fault(field+".values", "a %s has one value, not %d", r.Type, len(r.Values))
	}
	if r.Type == "MX" && len(r.Values) > 1 && slices.ContainsFunc(r.Values, func(v string) bool { return strings.HasSuffix(v, " .") }) {
		c.fault(field+".values", "a host . says that there is no mail, so it must be alone") // RFC 7505, section 3
	}
	if total > mostBytes {
		c.fault(field+".values", "take %d bytes: at most %d", total, mostBytes)
	}
}

// isOfParents says whether records of a type say where other names are found, not what is at their own.
func isOfParents(typ string) bool { return typ == "NS" || typ == "DS" || typ == "DNAME" }

func (c *zoneCheck) alias(field string, r *Record) {
	if r.TTL != nil {
		c.fault(field+".ttl", "an alias has the TTL of its target")
	}
	field += ".alias"
	a := r.Alias
	if a.Record == "" && r.Type != "" && r.Type != "A" && r.Type != "AAAA" {
		c.fault(field, "of a resource must be of type A or AAAA, not %s", r.Type)
	}
	if a.Record != "" && isOfParents(r.Type) {
		c.fault(field, "cannot be of type %s", r.Type)
	}
	if a.Distribution != "" && a.EvaluateTargetHealth {
		c.fault(field+".evaluateTargetHealth", "has no meaning for a distribution")
	}
	find(c.check, field+".distribution", "Distribution", c.spec.Distributions, a.Distribution)
	find(c.check, field+".loadBalancer", "LoadBalancer", c.spec.LoadBalancers, a.LoadBalancer)
	find(c.check, field+".accelerator", "Accelerator", c.spec.Accelerators, a.Accelerator)
}

// policies are the routing policies that a record's fields ask for.
func (r *Record) policies() (names []string) {
	for _, policy := range []struct {
		name string
		is   bool
	}{
		{"weight", r.Weight != nil},
		{"latency", r.Region != ""},
		{"failover", r.Failover != ""},
		{"geolocation", r.GeoLocation != nil},
		{"multivalue", r.MultiValueAnswer},
		{"geoproximity", r.GeoProximityLocation != nil},
		{"CIDR", r.CidrRoutingConfig != nil},
	} {
		if policy.is {
			names = append(names, policy.name)
		}
	}
	return names
}

// set judges the records of one name and type against each other.
func (c *zoneCheck) set(key setKey, members []int) {
	const most, mostByProximity = 100, 30 // Route 53
	first := &c.records[members[0]]
	if len(members) > most {
		c.fault(at("records", members[most]), "%s has %d record sets: at most %d", key, len(members), most)
	} else if first.GeoProximityLocation != nil && len(members) > mostByProximity {
		c.fault(at("records", members[mostByProximity]), "%s has %d record sets by geoproximity: at most %d", key, len(members), mostByProximity)
	}
	policy := strings.Join(first.policies(), ", ")
	taken := map[string]int{}
	for _, i := range members {
		r, field := &c.records[i], atRecord(i)
		if i == members[0] {
			// nothing to compare with
		} else if p := strings.Join(r.policies(), ", "); p == "" && policy == "" {
			c.fault(field, "%s is declared twice, first in %s", key, at("records", members[0]))
			continue
		} else if p != policy {
			c.fault(field, "routes %s by %s, but %s by %s: one policy for all of a name and type",
				key, cmp.Or(p, "no policy"), at("records", members[0]), cmp.Or(policy, "no policy"))
			continue
		}
		c.agree(field, r, first, members[0])
		for _, unique := range []struct{ field, value string }{
			{"setIdentifier", r.SetIdentifier},
			{"region", r.Region},
			{"failover", r.Failover},
			{"geoLocation", r.place()},
			{"geoProximityLocation", r.point()},
			{"cidrRoutingConfig.locationName", r.block()},
		} {
			what := unique.field + " " + unique.value
			if other, again := taken[what]; again && unique.value != "" {
				c.fault(field+"."+unique.field, "%.80q is taken by %s", unique.value, at("records", other))
				continue
			}
			taken[what] = i
		}
	}
}

// aliasLoops tells aliases of records that lead nowhere, or back to themselves.
func (c *zoneCheck) aliasLoops() {
	const walking, done = 1, 2
	state := map[setKey]int{}
	var walk func(key setKey)
	walk = func(key setKey) {
		state[key] = walking
		for _, i := range c.sets[key] {
			r := &c.records[i]
			if r.Alias == nil || r.Alias.Record == "" {
				continue
			}
			field := at("records", i) + ".alias.record"
			target := setKey{c.zone.Owner(r.Alias.Record), key.typ}
			switch {
			case c.sets[target] == nil:
				c.fault(field, "no record %s in the zone%s", target, c.near(r.Alias.Record, c.names(key.typ)))
			case state[target] == walking:
				c.fault(field, "leads in a circle, back to %s", target)
			case state[target] != done:
				walk(target)
			}
		}
		state[key] = done
	}
	for _, key := range c.keys {
		if key.owner != "" && state[key] != done {
			walk(key)
		}
	}
}

// names are the names, as written, of the zone's records of a type.
func (c *zoneCheck) names(typ string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, r := range c.records {
			if r.Type == typ && !yield(r.Name) {
				return
			}
		}
	}
}
