package spec

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"strconv"
	"strings"
)

// Owner is the absolute name of a record's name in the zone, in small letters and with its trailing dot.
func (z *HostedZone) Owner(name string) string {
	name = strings.ToLower(name)
	switch {
	case name == "@":
		return z.Name + "."
	case strings.HasSuffix(name, "."):
		return name
	}
	return name + "." + z.Name + "."
}

// absolute gives a domain name its trailing dot.
func absolute(name string) string {
	if name == "" || strings.HasSuffix(name, ".") {
		return name
	}
	return name + "."
}

// domainProblem is why a name is not a domain name, or "". It may have a trailing dot. Names of services begin labels
// with underscores.
func domainProblem(name string) string {
	const longestName, longestLabel = 253, 63 // RFC 1035, section 2.3.4, as text
	name = strings.TrimSuffix(name, ".")
	if len(name) > longestName {
		return fmt.Sprintf("it is longer than %d bytes", longestName)
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" {
			return "a label is empty"
		}
		if len(label) > longestLabel {
			return fmt.Sprintf("a label is longer than %d bytes", longestLabel)
		}
		if i := strings.IndexFunc(label, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
		}); i >= 0 {
			return fmt.Sprintf("%q is neither letter, digit, hyphen nor underscore", []rune(label[i:])[0])
		}
	}
	return ""
}

// setKey names the records of one name and type.
type setKey struct{ owner, typ string }

func (k setKey) String() string { return k.owner + " " + k.typ }

// zoneCheck judges the records of one zone.
type zoneCheck struct {
	check
	zone *HostedZone
	keys []setKey         // of each record; empty where its name is not right
	sets map[setKey][]int // records by name and type
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
	zc := zoneCheck{c, z, make([]setKey, len(z.Records)), map[setKey][]int{}}
	types := map[string]string{} // of a name: CNAME if it has one
	for i := range z.Records {
		r, field := &z.Records[i], at("records", i)
		zc.record(field, r)
		if r.Type == "" || !zc.owner(field, r) {
			continue
		}
		key := setKey{z.Owner(r.Name), r.Type}
		zc.keys[i] = key
		zc.sets[key] = append(zc.sets[key], i)
		if types[key.owner] != "CNAME" {
			types[key.owner] = r.Type
		}
	}
	for i, key := range zc.keys {
		if key.owner == "" {
			continue
		}
		if key.typ != "CNAME" && types[key.owner] == "CNAME" {
			c.fault(at("records", i), "%s has a CNAME, which must be alone at its name", key.owner)
		}
		if members := zc.sets[key]; members[0] == i {
			zc.set(key, members)
		}
	}
	zc.aliasLoops()
}

// owner judges where a record stands.
func (c *zoneCheck) owner(field string, r *Record) (ok bool) {
	field += ".name"
	if r.Name == "" {
		return false
	}
	apex := c.zone.Name + "."
	owner := c.zone.Owner(r.Name)
	name, wild := strings.CutPrefix(owner, "*.")
	relative := strings.ToLower(r.Name)
	if problem := domainProblem(name); problem != "" {
		c.fault(field, "%.80q is not a domain name: %s", r.Name, problem)
		return false
	}
	switch {
	case owner != apex && !strings.HasSuffix(owner, "."+apex):
		c.fault(field, "%s is not in the zone %s", owner, c.zone.Name)
		return false
	case relative == c.zone.Name || strings.HasSuffix(relative, "."+c.zone.Name):
		c.fault(field, "would be %s: end it with a dot, or leave out the zone's name (@ is the apex)", owner)
		return false
	case wild && r.Type == "NS":
		c.fault(field, "a wildcard cannot be delegated")
	case owner == apex && r.Type == "CNAME":
		c.fault(field, "the apex cannot have a CNAME: use an alias")
	case owner == apex && r.Type == "NS":
		c.fault(field, "the apex has the zone's nameServers: set those")
	}
	return true
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
	if r.Type == "NS" && len(policies) > 0 {
		c.fault(field, "NS records have no routing policy")
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
	if r.Type == "CNAME" && len(r.Values) > 1 {
		c.fault(field+".values", "a CNAME has one value, not %d", len(r.Values))
	}
	if total > mostBytes {
		c.fault(field+".values", "take %d bytes: at most %d", total, mostBytes)
	}
}

func (c *zoneCheck) alias(field string, r *Record) {
	if r.TTL != nil {
		c.fault(field+".ttl", "an alias has the TTL of its target")
	}
	field += ".alias"
	a := r.Alias
	if a.Record == "" && r.Type != "" && r.Type != "A" && r.Type != "AAAA" {
		c.fault(field, "of a resource must be of type A or AAAA, not %s", r.Type)
	}
	if a.Record != "" && r.Type == "NS" {
		c.fault(field, "cannot be of type NS")
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
	first := &c.zone.Records[members[0]]
	if len(members) > most {
		c.fault(at("records", members[most]), "%s has %d record sets: at most %d", key, len(members), most)
	} else if first.GeoProximityLocation != nil && len(members) > mostByProximity {
		c.fault(at("records", members[mostByProximity]), "%s has %d record sets by geoproximity: at most %d", key, len(members), mostByProximity)
	}
	policy := strings.Join(first.policies(), ", ")
	taken := map[string]int{}
	for _, i := range members {
		r, field := &c.zone.Records[i], at("records", i)
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
			r := &c.zone.Records[i]
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
		for _, r := range c.zone.Records {
			if r.Type == typ && !yield(r.Name) {
				return
			}
		}
	}
}

// completeValue is a value as parseValue has it, or as it is where it is not right.
func completeValue(typ, value string) string {
	if canonical, problem := parseValue(typ, value); problem == "" {
		return canonical
	}
	return value
}

// parseValue reads one value of a record, in the form of zone files; canonical has its domain name absolute.
func parseValue(typ, value string) (canonical, problem string) {
	words := strings.Fields(value)
	switch typ {
	case "A", "AAAA":
		a, err := netip.ParseAddr(value)
		if err != nil || a.Is4() != (typ == "A") || a.Zone() != "" {
			return "", fmt.Sprintf("must be an %s address, not %.80q", map[string]string{"A": "IPv4", "AAAA": "IPv6"}[typ], value)
		}
		return a.String(), ""
	case "CNAME", "NS", "PTR":
		if len(words) != 1 {
			return "", fmt.Sprintf("must be one domain name, not %.80q", value)
		}
		return target(words[0], false)
	case "MX":
		if len(words) != 2 || !isNumber(words[0], 16) {
			return "", fmt.Sprintf("must be a preference and a host, like 10 mail.example.com., not %.80q", value)
		}
		return lastName(words)
	case "SRV":
		if len(words) != 4 || !isNumber(words[0], 16) || !isNumber(words[1], 16) || !isNumber(words[2], 16) {
			return "", fmt.Sprintf("must be a priority, a weight, a port and a host, like 0 5 443 www.example.com., not %.80q", value)
		}
		return lastName(words)
	case "CAA":
		return caa(value)
	case "TXT":
		return txt(value)
	}
	return value, "" // the type's own fault is told
}

func isNumber(text string, bits int) bool {
	_, err := strconv.ParseUint(text, 10, bits)
	return err == nil
}

// lastName makes the last word an absolute domain name. The root means that there is no such service.
func lastName(words []string) (canonical, problem string) {
	last := len(words) - 1
	words[last], problem = target(words[last], true)
	return strings.Join(words, " "), problem
}

// target reads a domain name in a value: it is absolute, with or without its trailing dot. One word alone would be
// relative to the zone elsewhere, so it is refused.
func target(name string, root bool) (canonical, problem string) {
	if name == "." && root {
		return name, ""
	}
	if problem := domainProblem(name); problem != "" {
		return "", fmt.Sprintf("%.80q is not a domain name: %s", name, problem)
	}
	if !strings.Contains(name, ".") {
		return "", fmt.Sprintf("%.80q must be a whole name, like www.example.com (names in values are not relative to the zone)", name)
	}
	return absolute(name), ""
}

func caa(value string) (canonical, problem string) {
	flags, rest, _ := strings.Cut(strings.TrimSpace(value), " ")
	tag, rest, _ := strings.Cut(strings.TrimSpace(rest), " ")
	rest = strings.TrimSpace(rest)
	word := tag != "" && len(tag) <= 15 && !strings.ContainsFunc(tag, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9')
	})
	if n, problem := quotedStrings(rest); !isNumber(flags, 8) || !word || n != 1 || problem != "" {
		return "", fmt.Sprintf(`must be flags, a tag and a value in double quotes, like 0 issue "ca.example.net", not %.80q`, value)
	}
	return flags + " " + tag + " " + rest, ""
}

func txt(value string) (canonical, problem string) {
	const longest = 4000 // bytes of one value, as Route 53 takes
	if len(value) > longest {
		return "", fmt.Sprintf("is %d bytes long: at most %d", len(value), longest)
	}
	if _, problem := quotedStrings(value); problem != "" {
		return "", problem
	}
	return strings.TrimSpace(value), ""
}

// quotedStrings counts the strings in double quotes that make up text, with the escapes of zone files: \" and
// \ddd, three decimal digits.
func quotedStrings(text string) (count int, problem string) {
	const longest = 255 // bytes: RFC 1035, section 3.3
	rest := strings.TrimSpace(text)
	for rest != "" || count == 0 {
		if !strings.HasPrefix(rest, `"`) {
			return 0, fmt.Sprintf(`must be in double quotes within quotes, like '"v=spf1 -all"', not %.80q`, text)
		}
		i, size := 1, 0
		for ; i < len(rest) && rest[i] != '"'; i++ {
			size++
			if rest[i] != '\\' {
				continue
			}
			i++
			if i < len(rest) && rest[i] >= '0' && rest[i] <= '9' {
				if i+3 > len(rest) || !isNumber(rest[i:i+3], 8) {
					return 0, `has a \ that is not followed by three decimal digits up to 255`
				}
				i += 2
			}
		}
		if i >= len(rest) {
			return 0, "has a double quote that is never closed"
		}
		if size > longest {
			return 0, fmt.Sprintf("has a string of %d bytes: at most %d each, several in quotes of their own", size, longest)
		}
		count++
		rest = strings.TrimSpace(rest[i+1:])
	}
	return count, ""
}
