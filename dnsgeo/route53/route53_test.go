package route53

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"unicode/utf16"

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

// TestWhatTheCommandPrintsIsRead is of how `aws route53` prints things now and then, or has been asked to.
func TestWhatTheCommandPrintsIsRead(t *testing.T) {
	const www = `{"Name": "www.example.com.", "Type": "A", "TTL": 60, "ResourceRecords": [{"Value": "192.0.2.1"}]}`
	utf16le := func(text string) string {
		b := []byte{0xff, 0xfe}
		for _, u := range utf16.Encode([]rune(text)) {
			b = append(b, byte(u), byte(u>>8))
		}
		return string(b)
	}
	utf16be := func(text string) string {
		b := []byte{0xfe, 0xff}
		for _, u := range utf16.Encode([]rune(text)) {
			b = append(b, byte(u>>8), byte(u))
		}
		return string(b)
	}
	const whole = "www A"
	for _, c := range []struct{ claim, text, want, incomplete string }{
		{"a page of the API, the last", `{"ResourceRecordSets": [` + www + `], "IsTruncated": false, "MaxItems": "300"}`, whole, ""},
		{"one with more behind it", `{"ResourceRecordSets": [` + www + `], "IsTruncated": true, "NextRecordName": "x.example.com.", "NextRecordType": "A", "NextRecordIdentifier": "1", "MaxItems": "1"}`,
			whole, "the last page of the list says NextRecordName: what follows it is not in the file"},
		{"one of the command, with --max-items", `{"ResourceRecordSets": [` + www + `], "NextToken": "eyJTdGFydCI6ICJ4In0="}`,
			whole, "the last page of the list says NextToken: what follows it is not in the file"},
		{"two pages", `{"ResourceRecordSets": [], "IsTruncated": true, "NextRecordName": "w"}{"MaxItems": "1", "IsTruncated": false, "ResourceRecordSets": [` + www + `]}`, whole, ""},
		{"an alias with no records, as earlier ones printed it", `{"ResourceRecordSets": [` + www + `,
			{"Name": "a.example.com.", "Type": "A", "ResourceRecords": [], "AliasTarget": {"HostedZoneId": "Z1", "DNSName": "www.example.com.", "EvaluateTargetHealth": true}}]}`, "www A, a A alias www health", ""},
		{"a traffic policy's", `{"ResourceRecordSets": [{"TrafficPolicyInstanceId": "7a92150e", ` + www[1:] + `]}`, whole, "www.example.com. A: belongs to a traffic policy, and is taken as it is without it"},
		{"escapes: an asterisk, an at, a byte of a text", `{"ResourceRecordSets": [
			{"Name": "\\052.x\\100y.example.com.", "Type": "TXT", "TTL": 1, "ResourceRecords": [{"Value": "\"\\303\\274 \\\"q\\\"\""}]}]}`, `*.x\064y TXT`, ""},
		{"PowerShell's redirection", utf16le(`{"ResourceRecordSets": [` + www + `]}`), whole, ""},
		{"the other order", utf16be(`{"ResourceRecordSets": [` + www + `]}`), whole, ""},
		{"a mark before UTF-8", "\uFEFF" + `{"ResourceRecordSets": [` + www + `]}`, whole, ""},
		{"a request as --generate-cli-skeleton has it", `{"HostedZoneId": "Z1", "ChangeBatch": {"Comment": "", "Changes": [{"Action": "CREATE", "ResourceRecordSet": ` + www + `}]}}`, whole, ""},
	} {
		z, err := Read("l.json", []byte(c.text), "example.com", nil, Names{})
		if err != nil {
			t.Errorf("%s: %v", c.claim, err)
			continue
		}
		var got []string
		for _, r := range z.Records.All() {
			what := r.Name + " " + r.Type
			if r.Alias != nil {
				what += " alias " + r.Alias.Record
				if r.Alias.EvaluateTargetHealth {
					what += " health"
				}
			}
			got = append(got, what)
		}
		if strings.Join(got, ", ") != c.want {
			t.Errorf("%s: got %s, want %s", c.claim, strings.Join(got, ", "), c.want)
		}
		told := ""
		for _, f := range z.Incomplete {
			told += f.String()
		}
		if !strings.HasSuffix(told, c.incomplete) || (told == "") != (c.incomplete == "") {
			t.Errorf("%s: is told %q, want %q", c.claim, told, c.incomplete)
		}
	}
}

func TestWhatRoute53TakesIsWritten(t *testing.T) {
	z := built(t, `kind: HostedZone
name: example.com
records:
  - {name: www, type: A, ttl: 60, values: [192.0.2.1]}
  - {name: alias, type: A, alias: {record: www, evaluateTargetHealth: true}}
  - {name: near, type: A, ttl: 60, setIdentifier: a, geoProximityLocation: {coordinates: {latitude: 50.1109, longitude: 8.68}, bias: -5}, values: [192.0.2.1]}
  - {name: near, type: A, ttl: 60, setIdentifier: b, geoProximityLocation: {coordinates: {latitude: 37.57, longitude: 126.98}}, values: [192.0.2.2]}
`)
	var b bytes.Buffer
	incomplete, err := Write(&b, z, true, AWSNames{HostedZoneID: "/hostedzone/Z1EXAMPLE"})
	if err != nil {
		t.Fatal(err)
	}
	if want := "near.example.com. A a: is written with its coordinates rounded: Route 53 takes hundredths of a degree"; strings.Join(incomplete, "\n") != want {
		t.Errorf("is told %q, want %q", incomplete, want)
	}
	for _, want := range []string{`"HostedZoneId": "Z1EXAMPLE"`, `"Latitude": "50.11"`, `"Bias": -5`, `"EvaluateTargetHealth": true`} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("there is no %s in %s", want, b.String())
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
		for _, r := range z.Records.All() {
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
	var records []spec.Record
	for i := range 1200 {
		records = append(records, spec.Record{Name: "h" + strings.Repeat("a", i%50) + string(rune('a'+i/50)), Type: "TXT", TTL: &ttl, Values: []string{`"` + strings.Repeat("x", 40) + `"`}})
	}
	z.Records = spec.RecordsOf(records...)
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
		if len(incomplete) > 0 || z.Records.Len() == 0 {
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
