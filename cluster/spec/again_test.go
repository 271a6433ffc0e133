package spec

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// A zone that takes the place of another is judged as one that is new, whatever stood before.
func TestAChangedZoneIsJudgedAsANewOne(t *testing.T) {
	lines := []string{"{name: a, type: A, values: [192.0.2.1]}", "{name: a, type: A, values: [192.0.2.2]}", "{name: a, type: CNAME, values: [b.example.net]}",
		"{name: b, type: A, values: [192.0.2.1], setIdentifier: x, weight: 1}", "{name: b, type: A, values: [192.0.2.1], setIdentifier: y, weight: 2}",
		"{name: b, type: A, values: [192.0.2.1], setIdentifier: y, weight: 2, healthCheck: none}", "{name: c, type: A, alias: {record: a}}", "{name: d, type: A, values: [x]}",
		"{name: e, type: A, ttl: 5s, values: [192.0.2.1]}", "{name: e, type: AAAA, values: ['2001:db8::1']}", "{name: '@', type: CNAME, values: [a.b]}", "{name: g, type: A, values: [192.0.2.1], wight: 1}",
		"{name: d.h, type: A, values: [192.0.2.1]}", "{name: h, type: DNAME, values: [example.net]}", "{name: b, type: A, values: [192.0.2.1], setIdentifier: z, region: nowhere}"}
	random := rand.New(rand.NewPCG(1, 2))
	draw := func() []Document {
		var b strings.Builder
		b.WriteString("kind: HostedZone\nname: example.com\nrecords:\n")
		for _, i := range random.Perm(len(lines))[:1+random.IntN(4)] {
			fmt.Fprintf(&b, "  - %s\n", lines[i])
		}
		return mustSplit(t, b.String())
	}
	good := []Document(nil)
	stands, err := Build(1, good, Options{})
	if err != nil {
		t.Fatal(err)
	}
	right := 0
	for range 3000 {
		docs := draw()
		got, gotErr := stands.With(2, docs, nil, Options{})
		want, wantErr := Build(2, docs, Options{})
		if fmt.Sprint(gotErr) != fmt.Sprint(wantErr) {
			t.Fatalf("%s\nafter %v\n%v\nanew: %v", docs[0].Bytes, good, gotErr, wantErr)
		}
		if gotErr != nil {
			continue
		}
		if !reflect.DeepEqual(got.HostedZones, want.HostedZones) {
			t.Fatalf("%s: not the same", docs[0].Bytes)
		}
		if good != nil && !slices.EqualFunc(Diff(good, docs), DiffOf(good, docs, stands, got), func(a, b Change) bool { return reflect.DeepEqual(a, b) }) {
			t.Fatalf("%s: %v, read: %v", docs[0].Bytes, DiffOf(good, docs, stands, got), Diff(good, docs))
		}
		right++
		good, stands = docs, got
	}
	if right < 100 {
		t.Fatalf("%d zones were right", right)
	}
}

// Every field of a record counts.
func TestRecordsThatDifferInOneFieldAreNotEqual(t *testing.T) {
	full := func() *Record {
		r := &Record{TTL: new(Duration), Values: []string{"a"}, Alias: &Alias{}, Weight: new(int), GeoLocation: &GeoLocation{}, GeoProximityLocation: &GeoProximityLocation{Coordinates: &Location{}}, CidrRoutingConfig: &CidrRoutingConfig{}}
		return r
	}
	if !full().Equal(full()) {
		t.Fatal("not equal to itself")
	}
	var change func(v reflect.Value, path string, r *Record)
	change = func(v reflect.Value, path string, r *Record) {
		was := reflect.New(v.Type()).Elem()
		was.Set(v)
		switch v.Kind() {
		case reflect.Struct:
			for i := range v.NumField() {
				change(v.Field(i), path+"."+v.Type().Field(i).Name, r)
			}
			return
		case reflect.Pointer:
			if !v.IsNil() {
				change(v.Elem(), path, r)
				v.SetZero()
			} else {
				v.Set(reflect.New(v.Type().Elem()))
			}
		case reflect.String:
			v.SetString("other")
		case reflect.Int, reflect.Int64:
			v.SetInt(7)
		case reflect.Float64:
			v.SetFloat(7)
		case reflect.Bool:
			v.SetBool(true)
		case reflect.Slice:
			v.Set(reflect.ValueOf([]string{"b"}))
		default:
			t.Fatalf("%s: no case for %v", path, v.Kind())
		}
		if r.Equal(full()) || full().Equal(r) {
			t.Errorf("%s: a difference is not seen", path)
		}
		v.Set(was)
	}
	r := full()
	change(reflect.ValueOf(r).Elem(), "", r)
}
