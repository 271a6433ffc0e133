// Package spec is what is agreed: the resources an operator declares, as plain types, and how they are
// read, completed with defaults, validated, and compared. It knows no network, no clock and no disk; it
// imports the standard library and the YAML scanner.
//
// Split reads files into documents, which is what is replicated and kept; Build makes a Spec of documents, or says
// all that is wrong with them, each fault with its file, line and field. Both are pure: all nodes of one release make
// the same of the same documents. Their time and memory grow with what they are given, which is bounded.
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

// Spec is all resources at one revision: what the network should do. It is immutable:
// it is built whole (Build), shared by pointer, and never changed.
type Spec struct {
	// Revision counts the agreed changes: 0 is the empty spec before the first.
	Revision uint64

	Regions       map[string]*Region
	TargetGroups  map[string]*TargetGroup
	LoadBalancers map[string]*LoadBalancer
	HealthChecks  map[string]*HealthCheck
	Distributions map[string]*Distribution
	CachePolicies map[string]*CachePolicy // the operator's and the managed ones
	Accelerators  map[string]*Accelerator
	HostedZones   map[string]*HostedZone
}

// Kind is one kind of resource.
type Kind struct {
	Name   string // LoadBalancer, as documents write it
	Plural string // loadbalancers, as tools may write it

	resource reflect.Type
	make     func() any // *LoadBalancer, zero
	put      func(s *Spec, name string, resource any)
	get      func(s *Spec, name string) (any, bool)
	names    func(s *Spec) []string
}

// kindTable has every kind, what is referred to before what refers to it.
var kindTable = []Kind{
	kindOf("Region", "regions", func(s *Spec) *map[string]*Region { return &s.Regions }),
	kindOf("HealthCheck", "healthchecks", func(s *Spec) *map[string]*HealthCheck { return &s.HealthChecks }),
	kindOf("TargetGroup", "targetgroups", func(s *Spec) *map[string]*TargetGroup { return &s.TargetGroups }),
	kindOf("LoadBalancer", "loadbalancers", func(s *Spec) *map[string]*LoadBalancer { return &s.LoadBalancers }),
	kindOf("CachePolicy", "cachepolicies", func(s *Spec) *map[string]*CachePolicy { return &s.CachePolicies }),
	kindOf("Distribution", "distributions", func(s *Spec) *map[string]*Distribution { return &s.Distributions }),
	kindOf("Accelerator", "accelerators", func(s *Spec) *map[string]*Accelerator { return &s.Accelerators }),
	kindOf("HostedZone", "hostedzones", func(s *Spec) *map[string]*HostedZone { return &s.HostedZones }),
}

func kindOf[T any](name, plural string, table func(*Spec) *map[string]*T) Kind {
	return Kind{
		Name: name, Plural: plural,
		resource: reflect.TypeFor[T](),
		make:     func() any { return new(T) },
		put: func(s *Spec, name string, resource any) {
			t := table(s)
			if *t == nil {
				*t = map[string]*T{}
			}
			(*t)[name] = resource.(*T)
		},
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
