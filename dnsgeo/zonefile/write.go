package zonefile

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/perigee-net/perigee/cluster/spec"
)

// The SOA that is written: Route 53's numbers, which every zone here has.
const soaNumbers = "7200 900 1209600 86400"

// WriteOptions are what a zone file needs and a hosted zone does not say.
type WriteOptions struct {
	Serial uint32 // of the SOA; default 1
	// NameServers are the zone's; default its own nameServers.
	NameServers []string
}

// Write writes a zone, which spec.Build made, as a zone file. Warnings are what the file cannot say: records with a routing policy
// or an alias are comments in it, in the form of the resource.
func Write(w io.Writer, z *spec.HostedZone, o WriteOptions) (warnings []string, err error) {
	b := bufio.NewWriter(w)
	warn := func(format string, args ...any) { warnings = append(warnings, fmt.Sprintf(format, args...)) }
	servers := slices.Clone(o.NameServers)
	if len(servers) == 0 {
		servers = slices.Clone(z.NameServers)
	}
	if len(servers) == 0 {
		servers = []string{"ns.invalid."}
		warn("the zone has no nameServers, and a zone file must have one: ns.invalid. stands in its place")
	}
	for i, server := range servers {
		servers[i] = strings.TrimSuffix(server, ".") + "."
	}
	fmt.Fprintf(b, "$ORIGIN %s.\n", z.Name)
	fmt.Fprintf(b, "@ 900 IN SOA %s hostmaster.%s. %d %s\n", servers[0], z.Name, cmp.Or(o.Serial, 1), soaNumbers)
	for _, server := range servers {
		fmt.Fprintf(b, "@ 172800 IN NS %s\n", server)
	}
	if len(z.Labels) > 0 {
		comment(b, "labels", z.Labels)
		warn("the labels are comments in the file")
	}
	for _, r := range z.Records.All() {
		if what := unsayable(&r); what != "" {
			comment(b, what, r)
			warn("%s %s is a comment in the file: a zone file has no %s", z.Owner(r.Name), r.Type, what)
			continue
		}
		name, err := spec.ParseDomain(r.Name)
		if r.Name == "@" || r.Name == "*" {
			name, err = r.Name, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", r.Name, err)
		}
		for _, value := range r.Values {
			fmt.Fprintf(b, "%s %d IN %s %s\n", strings.ToLower(name), int64(r.TTL.Std().Seconds()), r.Type, value)
		}
	}
	return warnings, b.Flush()
}

// comment writes a part of the resource in a way that can be copied into one.
func comment(w io.Writer, what string, part any) { fmt.Fprintf(w, "; %s: %s\n", what, spec.Flow(part)) }

// unsayable is what of a record a zone file has no words for, or "".
func unsayable(r *spec.Record) string {
	switch {
	case r.Alias != nil:
		return "alias"
	case r.SetIdentifier != "":
		return "routing policy"
	}
	return ""
}
