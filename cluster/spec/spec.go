// Package spec is what is agreed: the resources an operator declares, as plain types, and how they are
// read, completed with defaults, validated, and compared. It knows no network, no clock and no disk; it
// imports the standard library and the YAML scanner.
//
// Split reads files into documents, Seal takes the secrets out of them, and what then is replicated and kept is their
// bytes. Build makes a Spec of all documents, and With of the spec before and what changed; either says all that is
// wrong, each fault with its file, line and field. All are pure: all nodes of one release make the same of the same
// documents. Their time and memory grow with what they are given, which is bounded; With's grow with what changed, but
// for copies of tables and scans of them. What this release does not know is a fault in what is being put, and is passed
// over and listed in what is agreed already. A secret is shown by nothing here: no fault, no diff, no print, no JSON.
package spec

import (
	"bytes"
	"encoding/json"
	"iter"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Spec is all resources at one revision: what the network should do. It is immutable: it is built whole (Build), or of
// the one before it and what changed (With), shared by pointer, and never changed.
type Spec struct {
	// Revision counts the agreed changes: 0 is the empty spec before the first.
	Revision uint64

	Regions        map[string]*Region
	TargetGroups   map[string]*TargetGroup
	SecurityGroups map[string]*SecurityGroup
	LoadBalancers  map[string]*LoadBalancer
	HealthChecks   map[string]*HealthCheck
	Distributions  map[string]*Distribution
	CachePolicies  map[string]*CachePolicy // the operator's and the managed ones
	Accelerators   map[string]*Accelerator
	HostedZones    map[string]*HostedZone

	CidrCollections map[string]*CidrCollection
	ClientPlaces    map[string]*ClientPlace

	TsigKeys     map[string]*TsigKey
	Certificates map[string]*Certificate
	Clusters     map[string]*Cluster // default, or none: Settings

	// Unknown is what agreed documents say and this release does not know, in the order of Ref.Compare.
	Unknown []Unknown
}

// Unknown is a part of the agreed documents that this release does not know: it is kept, and not done.
type Unknown struct {
	Ref
	// Fields are paths like listeners[0].alpnPolicy, in the order of the alphabet, at most 100; none: the kind itself is not known.
	Fields []string `json:"fields,omitempty"`
}

// Settings are the cluster's, with their defaults where none are declared.
func (s *Spec) Settings() Cluster {
	if c := s.Clusters[ClusterName]; c != nil {
		return *c
	}
	c := Cluster{Name: ClusterName}
	kind, _ := exactKind("Cluster")
	d := decoder{fault: func(int, string, string) {}}
	d.structure(nil, kind.shape, reflect.ValueOf(&c).Elem(), &path{})
	return c
}

// Kind is one kind of resource.
type Kind struct {
	Name   string // LoadBalancer, as documents write it
	Plural string // loadbalancers, as tools may write it

	shape *shape
	make  func() any    // *LoadBalancer, zero
	own   func(s *Spec) // gives the spec a table of its own, which may be changed
	put   func(s *Spec, name string, resource any)
	drop  func(s *Spec, name string)
	get   func(s *Spec, name string) (any, bool)
	names func(s *Spec) []string
}

// kindTable has every kind, what is referred to before what refers to it.
var kindTable = []Kind{
	kindOf("Region", "regions", func(s *Spec) *map[string]*Region { return &s.Regions }),
	kindOf("HealthCheck", "healthchecks", func(s *Spec) *map[string]*HealthCheck { return &s.HealthChecks }),
	kindOf("TargetGroup", "targetgroups", func(s *Spec) *map[string]*TargetGroup { return &s.TargetGroups }),
	kindOf("SecurityGroup", "securitygroups", func(s *Spec) *map[string]*SecurityGroup { return &s.SecurityGroups }),
	kindOf("LoadBalancer", "loadbalancers", func(s *Spec) *map[string]*LoadBalancer { return &s.LoadBalancers }),
	kindOf("CachePolicy", "cachepolicies", func(s *Spec) *map[string]*CachePolicy { return &s.CachePolicies }),
	kindOf("Distribution", "distributions", func(s *Spec) *map[string]*Distribution { return &s.Distributions }),
	kindOf("Accelerator", "accelerators", func(s *Spec) *map[string]*Accelerator { return &s.Accelerators }),
	kindOf("CidrCollection", "cidrcollections", func(s *Spec) *map[string]*CidrCollection { return &s.CidrCollections }),
	kindOf("ClientPlace", "clientplaces", func(s *Spec) *map[string]*ClientPlace { return &s.ClientPlaces }),
	kindOf("TsigKey", "tsigkeys", func(s *Spec) *map[string]*TsigKey { return &s.TsigKeys }),
	kindOf("HostedZone", "hostedzones", func(s *Spec) *map[string]*HostedZone { return &s.HostedZones }),
	kindOf("Certificate", "certificates", func(s *Spec) *map[string]*Certificate { return &s.Certificates }),
	kindOf("Cluster", "clusters", func(s *Spec) *map[string]*Cluster { return &s.Clusters }),
}

func kindOf[T any](name, plural string, table func(*Spec) *map[string]*T) Kind {
	return Kind{
		Name: name, Plural: plural,
		shape: shapeOf(reflect.TypeFor[T]()),
		make:  func() any { return new(T) },
		own: func(s *Spec) {
			t := table(s)
			if *t = maps.Clone(*t); *t == nil {
				*t = map[string]*T{}
			}
		},
		put:  func(s *Spec, name string, resource any) { (*table(s))[name] = resource.(*T) },
		drop: func(s *Spec, name string) { delete(*table(s), name) },
		get: func(s *Spec, name string) (any, bool) {
			r, ok := (*table(s))[name]
			return r, ok
		},
		names: func(s *Spec) []string { return slices.Sorted(maps.Keys(*table(s))) },
	}
}

// Kinds are all kinds, what is referred to before what refers to it.
func Kinds() []Kind { return slices.Clone(kindTable) }

// LookupKind finds a kind by its name or plural, in any case and with or without hyphens; zones are hosted zones.
func LookupKind(text string) (Kind, bool) {
	word := strings.ReplaceAll(strings.ToLower(text), "-", "")
	if word == "zone" || word == "zones" {
		word = "hostedzones"
	}
	for _, k := range kindTable {
		if word == k.Plural || word == strings.ToLower(k.Name) {
			return k, true
		}
	}
	return Kind{}, false
}

// exactKind finds a kind by its name as documents write it.
func exactKind(name string) (Kind, bool) {
	if i := rank(name); i < len(kindTable) {
		return kindTable[i], true
	}
	return Kind{}, false
}

func kindNames() []string {
	names := make([]string, len(kindTable))
	for i := range kindTable {
		names[i] = kindTable[i].Name
	}
	return names
}

// rank is the place of a kind among the kinds; unknown ones are last.
func rank(kind string) int {
	for i := range kindTable {
		if kindTable[i].Name == kind {
			return i
		}
	}
	return len(kindTable)
}

// Resource is any resource of a spec, for tools that treat all kinds alike.
type Resource struct {
	Ref
	Value any // *LoadBalancer, …
}

// Labels are the resource's labels; they are shared, and not to be changed.
func (r Resource) Labels() map[string]string {
	v := reflect.ValueOf(r.Value)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		return nil
	}
	labels, _ := v.Elem().FieldByName("Labels").Interface().(map[string]string)
	return labels
}

// MarshalJSON is the resource as a document could write it: its kind, and its fields by their names.
func (r Resource) MarshalJSON() ([]byte, error) {
	fields, err := json.Marshal(r.Value)
	if err != nil {
		return nil, err
	}
	kind, err := json.Marshal(r.Kind)
	if err != nil {
		return nil, err
	}
	return slices.Concat([]byte(`{"kind":`), kind, []byte(","), bytes.TrimPrefix(fields, []byte("{"))), nil
}

// Resource finds a resource; the kind as LookupKind takes it.
func (s *Spec) Resource(kind, name string) (Resource, bool) {
	k, ok := LookupKind(kind)
	if !ok {
		return Resource{}, false
	}
	value, ok := k.get(s, name)
	return Resource{Ref{k.Name, name}, value}, ok
}

// Each yields the resources of a kind (as LookupKind takes it) by name, or with "" those of all kinds.
func (s *Spec) Each(kind string) iter.Seq[Resource] {
	return func(yield func(Resource) bool) {
		only, _ := LookupKind(kind)
		for _, k := range kindTable {
			if kind != "" && k.Name != only.Name {
				continue
			}
			for _, name := range k.names(s) {
				value, _ := k.get(s, name)
				if !yield(Resource{Ref{k.Name, name}, value}) {
					return
				}
			}
		}
	}
}
