package route53

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/perigee-net/perigee/cluster/spec"
)

func names() Names {
	return Names{
		Aliases: map[string]spec.Alias{
			"d111111abcdef8.cloudfront.net":                    {Distribution: "site"},
			"web-1234.eu-central-1.elb.amazonaws.com":          {LoadBalancer: "web"},
			"a1234567890abcdef.awsglobalaccelerator.com":       {Accelerator: "app"},
			"web-5678.ap-northeast-2.elb.amazonaws.com-unused": {LoadBalancer: "other"},
		},
		HealthChecks: map[string]string{"11111111-2222-3333-4444-555555555555": "fra"},
		Collections:  map[string]string{"c8c02a84-aaaa-bbbb-e0d2-d833a2f80106": "offices"},
	}
}

func awsNames() AWSNames {
	return AWSNames{
		Aliases: map[string]AliasTarget{
			"distribution/site": {DNSName: "d111111abcdef8.cloudfront.net"},
			"loadBalancer/web":  {DNSName: "dualstack.web-1234.eu-central-1.elb.amazonaws.com", HostedZoneID: "Z215JYRZR1TBD5"},
			"accelerator/app":   {DNSName: "a1234567890abcdef.awsglobalaccelerator.com"},
		},
		HealthChecks: map[string]string{"fra": "11111111-2222-3333-4444-555555555555"},
		Collections:  map[string]string{"offices": "c8c02a84-aaaa-bbbb-e0d2-d833a2f80106"},
		HostedZoneID: "Z0000000EXAMPLE",
	}
}

func contents(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func yamlOf(t *testing.T, z *spec.HostedZone) string {
	t.Helper()
	data, err := spec.Resource{Ref: spec.Ref{Kind: "HostedZone", Name: z.Name}, Value: z}.YAML()
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func built(t *testing.T, text string) *spec.HostedZone {
	t.Helper()
	documents, err := spec.Split("zone.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	s, err := spec.Build(0, documents, spec.Options{Partial: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, z := range s.HostedZones {
		return z
	}
	return nil
}

func TestAListIsReadPageByPage(t *testing.T) {
	z, err := Read("list.json", contents(t, "testdata/list.json"), "", nil, names())
	if err != nil {
		t.Fatal(err)
	}
	got := yamlOf(t, z.HostedZone)
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile("testdata/list.yaml", []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff(string(contents(t, "testdata/list.yaml")), got); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	if len(z.Incomplete) > 0 {
		t.Error(spec.Faults(z.Incomplete).Error())
	}
	if len(z.Notes) != 2 { // SOA, NS
		t.Error(z.Notes)
	}
}

func TestAZoneThatGoesThereAndBackIsTheSame(t *testing.T) {
	z := built(t, string(contents(t, "testdata/list.yaml")))
	for _, changes := range []bool{false, true} {
		var b bytes.Buffer
		if incomplete, err := Write(&b, z, changes, awsNames()); err != nil || len(incomplete) > 0 {
			t.Fatal(incomplete, err)
		}
		back, err := Read("out.json", b.Bytes(), z.Name, nil, names())
		if err != nil || len(back.Incomplete) > 0 {
			t.Fatal(err, back)
		}
		sorted := func(z *spec.HostedZone) string { return yamlOf(t, &spec.HostedZone{Name: z.Name, Records: z.Records}) }
		want, got := sorted(z), sorted(back.HostedZone)
		if changes { // aliases come last
			want, got = sortLines(want), sortLines(got)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("changes %v: -want +got\n%s", changes, d)
		}
		if d := cmp.Diff(true, strings.Contains(b.String(), `"\\052.dev.example.com."`)); d != "" {
			t.Errorf("the wildcard is not as Route 53 writes it: %s", b.String())
		}
	}
}

func sortLines(text string) string {
	lines := strings.Split(text, "\n")
	for i := range lines {
		for j := i + 1; j < len(lines); j++ {
			if lines[j] < lines[i] {
				lines[i], lines[j] = lines[j], lines[i]
			}
		}
	}
	return strings.Join(lines, "\n")
}

func TestWhatHasNoCounterpartIsTold(t *testing.T) {
	z, err := Read("list.json", contents(t, "testdata/list.json"), "", nil, Names{})
	if err != nil {
		t.Fatal(err)
	}
	want := `list.json:27: example.com. A: is left out: its alias leads to d111111abcdef8.cloudfront.net, which is not named (--alias d111111abcdef8.cloudfront.net=distribution/NAME, or loadBalancer/, accelerator/, record/)
list.json:36: app.example.com. A first: is taken without its health check 11111111-2222-3333-4444-555555555555, which is not named (--health-check 11111111-2222-3333-4444-555555555555=NAME)
list.json:36: app.example.com. A first: is left out: its alias leads to dualstack.web-1234.eu-central-1.elb.amazonaws.com, which is not named (--alias dualstack.web-1234.eu-central-1.elb.amazonaws.com=distribution/NAME, or loadBalancer/, accelerator/, record/)
list.json:126: office.example.com. A seoul: is left out: its CIDR collection c8c02a84-aaaa-bbbb-e0d2-d833a2f80106 is not named (--cidr-collection c8c02a84-aaaa-bbbb-e0d2-d833a2f80106=NAME)
list.json:137: tcp.example.com. A: is left out: its alias leads to a1234567890abcdef.awsglobalaccelerator.com, which is not named (--alias a1234567890abcdef.awsglobalaccelerator.com=distribution/NAME, or loadBalancer/, accelerator/, record/)`
	if d := cmp.Diff(want, spec.Faults(z.Incomplete).Error()); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	incomplete, err := Write(&bytes.Buffer{}, built(t, string(contents(t, "testdata/list.yaml"))+`  - {name: moved, type: DNAME, values: [example.net]}
  - {name: z, type: A, setIdentifier: z, weight: 1, onAllUnhealthy: none, values: [192.0.2.1]}
`), false, AWSNames{})
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"--alias distribution/site=", "--hosted-zone-id", "--health-check fra=", "--cidr-collection offices=", "no DNAME", "onAllUnhealthy"} {
		if !strings.Contains(strings.Join(incomplete, "\n"), part) {
			t.Errorf("nothing is told of %s: %s", part, incomplete)
		}
	}
}

const before = `kind: HostedZone
name: example.com
records:
  - {name: www, type: A, ttl: 60, values: [192.0.2.1, 192.0.2.2]}
  - {name: a, type: TXT, ttl: 60, values: ['"x"']}
`

func TestABatchIsDoneWholeOrNotAtAll(t *testing.T) {
	one := func(action, name, typ, rest string) string {
		return `{"Action": "` + action + `", "ResourceRecordSet": {"Name": "` + name + `", "Type": "` + typ + `", ` + rest + `}}`
	}
	const www21 = `"TTL": 60, "ResourceRecords": [{"Value": "192.0.2.2"}, {"Value": "192.0.2.1"}]`
	for _, c := range []struct {
		claim, changes, want, fault string
	}{
		{"CREATE makes what is not there", one("CREATE", "b.example.com", "A", www21), "www A, a TXT, b A", ""},
		{"CREATE fails where it is", one("CREATE", "WWW.example.com.", "A", www21), "", "b.json:1: www.example.com. A: CREATE: it exists already"},
		{"DELETE of exactly what is there, values in any order", one("DELETE", "www.example.com", "A", www21), "a TXT", ""},
		{"DELETE of another TTL fails", one("DELETE", "www.example.com", "A", strings.Replace(www21, "60", "61", 1)), "",
			"b.json:1: www.example.com. A: DELETE: it exists, and is another: {name: www, type: A, ttl: 60, values: [192.0.2.1, 192.0.2.2]}"},
		{"DELETE of what is not there fails", one("DELETE", "b.example.com", "A", www21), "", "b.json:1: b.example.com. A: DELETE: there is no such record set"},
		{"UPSERT does either", one("UPSERT", "www.example.com", "A", `"TTL": 5, "ResourceRecords": [{"Value": "192.0.2.9"}]`) + "," + one("UPSERT", "c.example.com", "A", www21), "www A 5, a TXT, c A", ""},
		{"DELETE and CREATE of one name", one("DELETE", "www.example.com", "A", www21) + "," + one("CREATE", "www.example.com", "CNAME", `"TTL": 5, "ResourceRecords": [{"Value": "a.example.net"}]`), "a TXT, www CNAME 5", ""},
		{"what comes of it must be a zone", one("CREATE", "a.example.com", "CNAME", `"TTL": 5, "ResourceRecords": [{"Value": "a.example.net"}]`), "",
			"b.json: a.example.com. TXT: a.example.com. has a CNAME, which must be alone at its name"},
		{"all faults are told", one("MOVE", "b.example.com", "A", www21) + ",\n" + one("CREATE", "b.example.org", "A", www21), "",
			"b.json:1: b.example.com. A: the action must be CREATE, UPSERT or DELETE, not \"MOVE\"\nb.json:2: b.example.org A: is not in the zone example.com"},
	} {
		z, err := Read("b.json", []byte(`{"ChangeBatch": {"Comment": "x", "Changes": [`+c.changes+`]}}`), "", built(t, before), Names{})
		if c.fault != "" {
			if err == nil || err.Error() != c.fault {
				t.Errorf("%s: got %v, want %s", c.claim, err, c.fault)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.claim, err)
			continue
		}
		var got []string
		for _, r := range z.Records {
			text := r.Name + " " + r.Type
			if r.TTL.Std().Seconds() != 60 {
				text += " " + strings.TrimSuffix(r.TTL.String(), "s")
			}
			got = append(got, text)
		}
		if strings.Join(got, ", ") != c.want {
			t.Errorf("%s: got %s, want %s", c.claim, strings.Join(got, ", "), c.want)
		}
	}
}

func TestWhatIsNoListIsAFaultWithItsLine(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", "r.json: holds neither ResourceRecordSets nor Changes"},
		{"{\n\"Foo\": 1}", "r.json:2: \"Foo\" is nothing of a list of record sets or a batch of changes"},
		{"{\"ResourceRecordSets\": [\n{\"Name\": \"a.example.com\", \"Colour\": 1},\n{\"Name\": 1}]}", "r.json:2: unknown field \"Colour\"\nr.json:3: cannot unmarshal number into Go struct field recordSet.Name of type string"},
		{"{\"ResourceRecordSets\": [\n{\"Name\": \"a.example.com\"", "r.json:2: unexpected EOF"},
		{"[]", "r.json:1: must be an object, not ["},
		{"{\"ResourceRecordSets\": {}}", "r.json:1: must be a list"},
		{"{\"ResourceRecordSets\": [{\"Name\": \"a.example.com\", \"Type\": \"A\", \"TTL\": -1, \"ResourceRecords\": [{\"Value\": \"192.0.2.1\"}]},\n{\"Name\": \"b.example.com\", \"Type\": \"A\", \"TTL\": 1, \"ResourceRecords\": [{\"Value\": \"x\"}]}]}",
			"r.json:1: a.example.com A: TTL must be 0–2147483647, not -1\nr.json:2: b.example.com A: must be an IPv4 address, not \"x\""},
	} {
		_, err := Read("r.json", []byte(c.text), "example.com", nil, Names{})
		var faults spec.Faults
		if !errors.As(err, &faults) || faults.Error() != c.want {
			t.Errorf("%s:\ngot  %v\nwant %s", c.text, err, c.want)
		}
	}
}

func TestBatchesAreNoLargerThanRoute53Takes(t *testing.T) {
	ttl := spec.Duration(60e9)
	z := &spec.HostedZone{Name: "example.com"}
	for i := range 1200 {
		z.Records = append(z.Records, spec.Record{Name: "h" + strings.Repeat("a", i%50) + string(rune('a'+i/50)), Type: "TXT", TTL: &ttl, Values: []string{`"` + strings.Repeat("x", 40) + `"`}})
	}
	var b bytes.Buffer
	if _, err := Write(&b, z, true, AWSNames{}); err != nil {
		t.Fatal(err)
	}
	batches := strings.Split(strings.TrimSpace(b.String()), "\n}\n{")
	total := 0
	for _, batch := range batches {
		records := 2 * strings.Count(batch, `"Value"`)
		total += records
		if characters := records * 42; records > batchRecords || characters > batchCharacters {
			t.Errorf("a batch of %d records and %d characters", records, characters)
		}
	}
	if total != 2400 || len(batches) != 4 {
		t.Errorf("%d records in %d batches", total, len(batches))
	}
}

// Whatever is read can be written and is read back the same.
func FuzzRead(f *testing.F) {
	data, err := os.ReadFile("testdata/list.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(data))
	f.Add(`{"Changes":[{"Action":"CREATE","ResourceRecordSet":{"Name":"\\052.example.com.","Type":"TXT","TTL":1,"ResourceRecords":[{"Value":"\"\\303\\\"\""}]}}]}`)
	f.Fuzz(func(t *testing.T, text string) {
		z, err := Read("f", []byte(text), "example.com", nil, names())
		if err != nil || len(z.Incomplete) > 0 {
			return
		}
		z.HostedZone = built(t, yamlOf(t, z.HostedZone))
		var b bytes.Buffer
		incomplete, err := Write(&b, z.HostedZone, false, awsNames())
		if err != nil {
			t.Fatal(err)
		}
		if len(incomplete) > 0 || len(z.Records) == 0 {
			return
		}
		back, err := Read("f", b.Bytes(), "example.com", nil, names())
		if err != nil {
			t.Fatalf("%v\n%s", err, b.String())
		}
		if d := cmp.Diff(yamlOf(t, z.HostedZone), yamlOf(t, built(t, yamlOf(t, back.HostedZone)))); d != "" {
			t.Fatalf("-want +got\n%s", d)
		}
	})
}
