package main

import (
	"os"
	"strings"
	"testing"
)

const zoneText = `$TTL 1h
@ SOA ns1 hostmaster 1 7200 900 1209600 86400
@ NS ns1.example.net.
www A 192.0.2.1
$GENERATE 1-2 h$ CNAME www
$INCLUDE mail.db
`

func writeFiles(t *testing.T, files map[string]string) {
	t.Helper()
	for name, text := range files {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAZoneFileBecomesAZoneAndAZoneFileAgain(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.Mkdir("inc", 0o700); err != nil {
		t.Fatal(err)
	}
	writeFiles(t, map[string]string{"zone.db": zoneText, "inc/mail.db": "@ MX 10 mail.example.net.\n", "out.db": "$INCLUDE ../zone.db\n"})
	code, out, said := do(t, "import", "zone", "zone.db", "--name", "Example.com.", "--include-dir", "inc")
	want := `kind: HostedZone
name: example.com
records:
  - {name: www, type: A, ttl: 3600, values: [192.0.2.1]}
  - {name: h1, type: CNAME, ttl: 3600, values: [www.example.com.]}
  - {name: h2, type: CNAME, ttl: 3600, values: [www.example.com.]}
  - {name: '@', type: MX, ttl: 3600, values: ['10 mail.example.net.']}
`
	if code != 0 || out != want {
		t.Fatalf("exit code %d, %s, %s", code, out, said)
	}
	for _, part := range []string{"note: zone.db:2: the SOA is left out", "note: zone.db:3: 1 NS records"} {
		if !strings.Contains(said, part) {
			t.Errorf("%s is not told in %s", part, said)
		}
	}
	writeFiles(t, map[string]string{"zone.yaml": out, "copied.yaml": "{kind: HostedZone, name: copied.example, primaries: [{address: 192.0.2.1}]}"})
	code, out, said = do(t, "export", "zone", "example.com", "-f", "zone.yaml", "--name-server", "ns1.example.net", "--serial", "9")
	if code != 0 || said != "" || !strings.Contains(out, "SOA ns1.example.net. hostmaster.example.com. 9 ") || !strings.Contains(out, "\nh2 3600 IN CNAME www.example.com.\n") {
		t.Errorf("exit code %d, %s, %s", code, out, said)
	}
	if code, out, said = do(t, "export", "zone", "example.com", "-f", "zone.yaml", "-o", "json"); code != exitIncomplete || said != "" || !strings.Contains(out, `"incomplete": [`) {
		t.Errorf("exit code %d, %s, %s", code, out, said)
	}
	for _, c := range []struct{ line, want string }{
		{"import zone zone.db --name example.com", "zone.db:6: $INCLUDE: other files are not read unless their directory is given"},
		{"import zone out.db --name example.com --include-dir inc", "out.db:1: $INCLUDE: openat ../zone.db: path escapes from parent"},
		{"import zone none.db --name example.com", "none.db"},
		{"export zone copied.example -f copied.yaml", "copied.example is a copy of its primaries': its records are to be had from them"},
		{"export route53 copied.example -f copied.yaml", "copied.example is a copy of its primaries': its records are to be had from them"},
		{"export zone example.net -f zone.yaml", "no HostedZone example.net"},
		{"import route53 zone.yaml --name example.com", "zone.yaml:1: invalid character"},
	} {
		if code, out, said := do(t, strings.Fields(c.line)...); code != exitFailed || out != "" || !strings.Contains(said, c.want) {
			t.Errorf("perigee %s: exit code %d, %q, %q; want %s", c.line, code, out, said, c.want)
		}
	}
}

func TestAListOfRoute53BecomesAZoneAndWhatItLacksIsExitCode4(t *testing.T) {
	t.Chdir(t.TempDir())
	writeFiles(t, map[string]string{
		"list.json": `{"ResourceRecordSets": [
{"Name": "example.com.", "Type": "SOA", "TTL": 900, "ResourceRecords": [{"Value": "a b 1 2 3 4 5"}]},
{"Name": "example.com.", "Type": "A", "AliasTarget": {"HostedZoneId": "Z2FDTNDATAQYW2", "DNSName": "d1.cloudfront.net.", "EvaluateTargetHealth": false}},
{"Name": "\\052.example.com.", "Type": "A", "TTL": 60, "ResourceRecords": [{"Value": "192.0.2.1"}]}]}`,
		"batch.json": `{"Changes": [{"Action": "DELETE", "ResourceRecordSet": {"Name": "\\052.example.com.", "Type": "A", "TTL": 60, "ResourceRecords": [{"Value": "192.0.2.1"}]}}]}`,
	})
	code, out, said := do(t, "import", "route53", "list.json")
	if code != exitIncomplete || !strings.HasPrefix(out, "# incomplete: list.json:3: example.com. A: is left out: its alias leads to d1.cloudfront.net") ||
		!strings.Contains(said, "incomplete: list.json:3:") || strings.Contains(out, "alias: {") {
		t.Errorf("exit code %d, %s, %s", code, out, said)
	}
	code, out, said = do(t, "import", "route53", "list.json", "--alias", "d1.cloudfront.net=distribution/site")
	want := `kind: HostedZone
name: example.com
records:
  - {name: '@', type: A, alias: {distribution: site}}
  - {name: '*', type: A, ttl: 60, values: [192.0.2.1]}
`
	if code != 0 || out != want {
		t.Errorf("exit code %d, %s, %s", code, out, said)
	}
	writeFiles(t, map[string]string{"zone.yaml": out})
	if code, out, said = do(t, "import", "route53", "batch.json", "--zone", "zone.yaml"); code != 0 || strings.Contains(out, "192.0.2.1") || !strings.Contains(out, "site") {
		t.Errorf("exit code %d, %s, %s", code, out, said)
	}
	if code, out, said = do(t, "export", "route53", "example.com", "-f", "zone.yaml", "--alias", "distribution/site=d1.cloudfront.net"); code != 0 ||
		!strings.Contains(out, `"\\052.example.com."`) || !strings.Contains(out, "Z2FDTNDATAQYW2") || said != "" {
		t.Errorf("exit code %d, %s, %s", code, out, said)
	}
	if code, out, said = do(t, "export", "route53", "example.com", "-f", "zone.yaml", "--changes"); code != exitIncomplete ||
		!strings.Contains(out, `"UPSERT"`) || !strings.Contains(said, "--alias distribution/site=DNSNAME") {
		t.Errorf("exit code %d, %s, %s", code, out, said)
	}
}
