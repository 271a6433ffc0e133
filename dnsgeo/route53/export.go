package route53

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/perigee-net/perigee/cluster/spec"
)

// AWSNames say what the things of a zone are in an AWS account.
type AWSNames struct {
	Aliases      map[string]AliasTarget // by distribution/NAME, loadBalancer/NAME, accelerator/NAME
	HealthChecks map[string]string      // ids by name
	Collections  map[string]string      // ids by name
	HostedZoneID string                 // of the zone itself, for aliases of its own records
}

// AliasTarget is what an alias leads to in AWS.
type AliasTarget struct {
	DNSName      string
	HostedZoneID string // of AWS, for that kind of thing; "": that of CloudFront or Global Accelerator
}

// The hosted zones of CloudFront and Global Accelerator, which are the same for everybody (AWS General Reference).
const (
	cloudFrontZone        = "Z2FDTNDATAQYW2"
	globalAcceleratorZone = "Z2BJ6XQ5FK7U4H"
)

// Bounds of one batch (ChangeResourceRecordSets): records, and characters of their values; UPSERT counts twice.
const (
	batchRecords    = 1000
	batchCharacters = 32_000
)

// Write writes a zone that spec.Build made as Route 53 lists it, or, with changes, as batches of UPSERTs that it takes, one after the other. Incomplete
// is what Route 53 cannot have, or is not named: those record sets are not written.
func Write(w io.Writer, z *spec.HostedZone, changes bool, names AWSNames) (incomplete []string, err error) {
	var sets []recordSet
	for _, r := range z.Records.All() {
		s, problems := exported(z, &r, names)
		what := strings.TrimSpace(z.Owner(r.Name) + " " + r.Type + " " + r.SetIdentifier)
		for _, problem := range problems {
			incomplete = append(incomplete, what+": "+problem)
		}
		if s != nil {
			sets = append(sets, *s)
		}
	}
	out := json.NewEncoder(w)
	out.SetEscapeHTML(false)
	out.SetIndent("", "    ")
	if !changes {
		if sets == nil {
			sets = []recordSet{}
		}
		return incomplete, out.Encode(map[string]any{"ResourceRecordSets": sets})
	}
	type batched struct {
		Action            string
		ResourceRecordSet recordSet
	}
	var batch []batched
	records, characters := 0, 0
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		err := out.Encode(map[string]any{"Changes": batch})
		batch, records, characters = nil, 0, 0
		return err
	}
	for _, s := range aliasesLast(sets) {
		n, size := 2*max(1, len(s.ResourceRecords)), 0
		for _, value := range s.ResourceRecords {
			size += 2 * len(value.Value)
		}
		if records+n > batchRecords || characters+size > batchCharacters {
			if err := flush(); err != nil {
				return nil, err
			}
		}
		if size > batchCharacters {
			incomplete = append(incomplete, fmt.Sprintf("%s %s: its values are too long for one UPSERT of Route 53, %d characters of %d", s.Name, s.Type, size/2, batchCharacters/2))
			continue
		}
		batch = append(batch, batched{"UPSERT", s})
		records, characters = records+n, characters+size
	}
	return incomplete, flush()
}

// aliasesLast has what aliases lead to before them, where they are of the same zone; among aliases the order stays.
func aliasesLast(sets []recordSet) []recordSet {
	var first, last []recordSet
	for _, s := range sets {
		if s.AliasTarget == nil {
			first = append(first, s)
		} else {
			last = append(last, s)
		}
	}
	return append(first, last...)
}

// exported is a record set in Route 53's words, nil if it has none; problems are what is lost.
func exported(z *spec.HostedZone, r *spec.Record, names AWSNames) (s *recordSet, problems []string) {
	if r.Type == "DNAME" {
		return nil, []string{"is not written: Route 53 has no DNAME"}
	}
	s = &recordSet{
		Name: octalName(z, r.Name), Type: r.Type, SetIdentifier: r.SetIdentifier,
		Weight: r.Weight, Region: r.Region, Failover: r.Failover,
	}
	if r.MultiValueAnswer {
		s.MultiValueAnswer = &r.MultiValueAnswer
	}
	if g := r.GeoLocation; g != nil {
		s.GeoLocation = &geoLocation{ContinentCode: g.Continent, CountryCode: g.Country, SubdivisionCode: g.Subdivision}
	}
	if p := r.GeoProximityLocation; p != nil {
		s.GeoProximityLocation = &geoProximityLocation{AWSRegion: p.Region}
		if p.Bias != 0 {
			s.GeoProximityLocation.Bias = &p.Bias
		}
		if c := p.Coordinates; c != nil {
			rounded := false
			text := func(degrees float64) string {
				short := strconv.FormatFloat(degrees, 'f', 2, 64)
				same, _ := strconv.ParseFloat(short, 64)
				rounded = rounded || same != degrees
				return short
			}
			s.GeoProximityLocation.Coordinates = &coordinates{text(c.Latitude), text(c.Longitude)}
			if rounded {
				problems = append(problems, "is written with its coordinates rounded: Route 53 takes hundredths of a degree")
			}
		}
	}
	if c := r.CidrRoutingConfig; c != nil {
		id := names.Collections[c.Collection]
		if id == "" {
			return nil, []string{fmt.Sprintf("is not written: the CIDR collection %s has no id (--cidr-collection %s=ID)", c.Collection, c.Collection)}
		}
		s.CidrRoutingConfig = &cidrRoutingConfig{id, c.LocationName}
	}
	if r.HealthCheck != "" {
		if s.HealthCheckID = names.HealthChecks[r.HealthCheck]; s.HealthCheckID == "" {
			problems = append(problems, fmt.Sprintf("is written without its health check %s, which has no id (--health-check %s=ID)", r.HealthCheck, r.HealthCheck))
		}
	}
	if r.OnAllUnhealthy != "" && r.OnAllUnhealthy != spec.AsIfAllWereHealthy {
		problems = append(problems, "is written without onAllUnhealthy: Route 53 answers as if all were healthy")
	}
	if r.Alias != nil {
		target, problem := aliasOf(z, r.Alias, names)
		if problem != "" {
			return nil, append(problems, problem)
		}
		s.AliasTarget = &target
		return s, problems
	}
	seconds := int64(r.TTL.Std().Seconds())
	s.TTL = &seconds
	for _, value := range r.Values {
		s.ResourceRecords = append(s.ResourceRecords, resourceRecord{octal(value)})
	}
	return s, problems
}

// octalName is the owner as Route 53 writes it: absolute, and an asterisk as \052.
func octalName(z *spec.HostedZone, name string) string {
	if canonical, err := spec.ParseDomain(name); err == nil {
		name = canonical
	}
	switch {
	case name == "@":
		return z.Name + "."
	case !strings.HasSuffix(name, "."):
		name += "." + z.Name + "."
	}
	name = octal(strings.ToLower(name))
	if rest, wild := strings.CutPrefix(name, "*."); wild {
		name = `\052.` + rest
	}
	return name
}

func aliasOf(z *spec.HostedZone, a *spec.Alias, names AWSNames) (target aliasTarget, problem string) {
	if a.Record != "" {
		if names.HostedZoneID == "" {
			return target, "is not written: it is an alias of the zone's own, whose id must be said (--hosted-zone-id ID)"
		}
		return aliasTarget{bareID(names.HostedZoneID), octalName(z, a.Record), a.EvaluateTargetHealth}, ""
	}
	what, usual := "loadBalancer/"+a.LoadBalancer, ""
	switch {
	case a.Distribution != "":
		what, usual = "distribution/"+a.Distribution, cloudFrontZone
	case a.Accelerator != "":
		what, usual = "accelerator/"+a.Accelerator, globalAcceleratorZone
	}
	known, ok := names.Aliases[what]
	id := bareID(cmp.Or(known.HostedZoneID, usual))
	switch {
	case !ok:
		return target, fmt.Sprintf("is not written: what %s is in AWS is not said (--alias %s=DNSNAME)", what, what)
	case id == "":
		return target, fmt.Sprintf("is not written: the hosted zone of its load balancer is not said (--alias %s=DNSNAME,HOSTEDZONEID)", what)
	}
	return aliasTarget{id, strings.TrimSuffix(known.DNSName, ".") + ".", a.EvaluateTargetHealth}, ""
}

// bareID is a hosted zone's id as record sets have it; `aws route53 list-hosted-zones` prints it as a path.
func bareID(id string) string { return strings.TrimPrefix(id, "/hostedzone/") }
