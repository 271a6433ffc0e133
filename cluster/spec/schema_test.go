package spec

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

func compileSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(Schema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("perigee.json", document); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile("perigee.json")
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

// decoded is a document as another program would read it.
func decoded(t *testing.T, d []byte) any {
	t.Helper()
	asJSON, err := yaml.YAMLToJSON(d)
	if err != nil {
		t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(asJSON))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestTheSchemaTakesWhatBuildTakes(t *testing.T) {
	schema := compileSchema(t)
	for _, text := range []string{valid(t), sparse} {
		for _, d := range mustSplit(t, text) {
			if err := schema.Validate(decoded(t, d.Bytes)); err != nil {
				t.Errorf("%s: %v", d.Ref(), err)
			}
		}
		for r := range mustBuild(t, text).Each("") {
			data, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			if err := schema.Validate(decoded(t, data)); err != nil {
				t.Errorf("%s as JSON: %v", r, err)
			}
		}
	}
}

func TestTheSchemaTakesACertificate(t *testing.T) {
	certificate, key := pair(t, "a.example.com")
	if err := compileSchema(t).Validate(decoded(t, []byte(certificateDocument("a", certificate, key)))); err != nil {
		t.Error(err)
	}
}

func TestTheSchemaRefusesWhatItCanKnowToBeWrong(t *testing.T) {
	schema := compileSchema(t)
	region := "kind: Region\nname: a\n"
	target := "kind: TargetGroup\nname: a\nregion: b\nprotocol: HTTP\n"
	zone := "kind: HostedZone\nname: a\nrecords: "
	for _, text := range []string{
		"kind: Martian\nname: a\n",
		"name: a\n",
		"kind: Region\n",
		region + "nmae: b\n",
		region + "location: {latitude: 91, longitude: 0}\n",
		region + "location: {latitude: 90}\n",
		region + "pops: icn1\n",
		strings.Replace(target, "HTTP", "http", 1),
		target + "port: 0\n",
		target + "port: \"80\"\n",
		target + "targets: [{address: here}]\n",
		target + "deregistrationDelay: soon\n",
		target + "deregistrationDelay: 3601\n",
		target + "healthCheck: {healthyThreshold: 11}\n",
		region + "labels: {-a: b}\n",
		region + "labels: {a: b c}\n",
		region + "labels: [a]\n",
		"kind: Cluster\nname: default\nvoters: 4\n",
		"kind: Certificate\nname: a\ncertificate: b\n",
		zone + "[{name: a, type: A}]\n",
		zone + "[{name: a, type: A, values: []}]\n",
		zone + "[{name: a, type: A, values: [192.0.2.1], alias: {record: b}}]\n",
		zone + "[{name: a, type: SOA, values: [b]}]\n",
		zone + "[{name: a, type: A, alias: {}}]\n",
		zone + "[{name: a, type: A, values: [b], geoProximityLocation: {bias: 1}}]\n",
		zone + "[{name: a, type: A, values: [b], geoProximityLocation: {region: r, bias: 100}}]\n",
		zone + "[{name: a, type: A, values: [b], cidrRoutingConfig: {collection: c}}]\n",
		zone + "[{name: a, type: A, values: [b], onAllUnhealthy: some}]\n",
		"kind: CidrCollection\nname: a\nlocations: [{locationName: a, cidrList: []}]\n",
	} {
		if err := schema.Validate(decoded(t, []byte(text))); err == nil {
			t.Errorf("took\n%s", text)
		}
	}
}

func TestTheSchemaDescribesFieldsAndTheirDefaults(t *testing.T) {
	var schema struct {
		Defs map[string]struct {
			Description string
			Properties  map[string]struct {
				Description string
				Default     any
			}
		} `json:"$defs"`
	}
	if err := json.Unmarshal(Schema(), &schema); err != nil {
		t.Fatal(err)
	}
	for name, def := range schema.Defs {
		if def.Description == "" {
			t.Errorf("%s has no description", name)
		}
	}
	weight := schema.Defs["Endpoint"].Properties["weight"]
	if weight.Default != 128.0 || !strings.Contains(weight.Description, "0 takes nothing") {
		t.Errorf("an endpoint's weight: %+v", weight)
	}
	for field, want := range map[string]any{"enabled": true, "errorCachingMinTTL": 10.0} {
		if got := schema.Defs["Distribution"].Properties[field].Default; got != want {
			t.Errorf("%s: default %v, want %v", field, got, want)
		}
	}
}
