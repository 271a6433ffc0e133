// Package demo is the network that perigee dev starts and that the virtual worlds of testbed begin with:
// three regions, two targets in each, and a spec with one of everything. It is data and one small
// server; it starts nothing by itself.
package demo

import (
	"bytes"
	_ "embed"
	"net/netip"
	"text/template"
)

// Names in the demo's spec.
const (
	Zone         = "demo.perigee.test"
	Distribution = "www." + Zone
	Accelerated  = "tcp." + Zone
)

// Region is one region of the demo. The coordinates come with the spec.
type Region struct {
	Name    string // ap-northeast-2
	City    string
	POP     string // icn1, which also names its node
	Short   string // icn
	Targets []Endpoint
}

// Endpoint is where a target of the demo listens.
type Endpoint struct {
	Name string // icn-a
	HTTP netip.AddrPort
	TCP  netip.AddrPort
}

// Regions are the three regions, without targets.
func Regions() []Region {
	return []Region{
		{Name: "ap-northeast-2", City: "Seoul", POP: "icn1", Short: "icn"},
		{Name: "eu-central-1", City: "Frankfurt", POP: "fra1", Short: "fra"},
		{Name: "us-east-1", City: "Virginia", POP: "iad1", Short: "iad"},
	}
}

// Layout is what the demo's spec is made for.
type Layout struct {
	Regions []Region
	// OriginURL is an origin of the user's own; "": the load balancers of the three regions.
	OriginURL string
	// Port is the one that the load balancers open.
	Port uint16
	// Accelerator is the anycast address and port.
	Accelerator netip.AddrPort
}

//go:embed network.yaml.tmpl
var network string

// Spec is the demo's spec as YAML.
func (l Layout) Spec() ([]byte, error) {
	t, err := template.New("network.yaml").Parse(network)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = t.Execute(&out, map[string]any{
		"Layout": l, "Zone": Zone, "Distribution": Distribution, "Accelerated": Accelerated,
		"HealthPath": HealthPath, "RegionPath": RegionPath,
	})
	return out.Bytes(), err
}
