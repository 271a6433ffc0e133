package spec

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// someRecord is one of those that a zone may have, and of those that it may have before it is judged.
func someRecord(random *rand.Rand) Record {
	r := Record{Name: fmt.Sprintf("h%d", random.IntN(30)), Type: recordTypes[random.IntN(len(recordTypes))]}
	if random.IntN(5) > 0 {
		r.TTL = seconds([]int{0, 60, 300, 2147483647}[random.IntN(4)])
	}
	for range random.IntN(4) {
		r.Values = append(r.Values, strings.Repeat("v", random.IntN(3)*random.IntN(200)))
	}
	switch random.IntN(12) {
	case 0:
		r.Values, r.Alias = nil, &Alias{Record: "www"}
	case 1:
		weight := random.IntN(3)
		r.SetIdentifier, r.Weight = "a", &weight
	case 2:
		half := Duration(time.Second / 2)
		r.TTL = &half
	case 3:
		r.Type = "NONE"
	case 4:
		r.HealthCheck = "check"
	case 5:
		r.Values = slices.Repeat([]string{"192.0.2.1"}, 100+random.IntN(100))
	case 6:
		r.Name = strings.Repeat("long.", 40)
	}
	return r
}

func TestRecordsAreWhatTheyWereMadeOf(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 100 {
		var list []Record
		for range random.IntN(80) {
			list = append(list, someRecord(random))
		}
		r := RecordsOf(list...)
		if got := r.List(); r.Len() != len(list) || r.IsZero() != (len(list) == 0) || len(list) > 0 && !reflect.DeepEqual(got, list) {
			t.Fatalf("got %+v, not %+v", got, list)
		}
		for i := range list {
			if got := r.At(i); !reflect.DeepEqual(got, list[i]) {
				t.Fatalf("%d is %+v, not %+v", i, got, list[i])
			}
		}
		for i, one := range r.Where(func(name string) bool { return name < "h2" }) {
			if one.Name >= "h2" || !one.Equal(&list[i]) {
				t.Fatalf("%d is %+v", i, one)
			}
		}
		special := slices.DeleteFunc(slices.Clone(list), func(r Record) bool { _, plain := r.plain(); return plain })
		if !slices.EqualFunc(special, r.Special(), func(a Record, b *Record) bool { return a.Equal(b) }) {
			t.Fatalf("%d are special, not %d", len(r.Special()), len(special))
		}
		// Another list that was made of it by some changes is told from it by just those.
		other := slices.Clone(list)
		for range random.IntN(3) {
			at := random.IntN(len(other) + 1)
			end := min(len(other), at+random.IntN(3))
			other = slices.Replace(other, at, end, slices.Repeat([]Record{someRecord(random)}, random.IntN(3))...)
		}
		o := RecordsOf(other...)
		if r.Equal(o) != slices.EqualFunc(list, other, func(a, b Record) bool { return a.Equal(&b) }) {
			t.Fatalf("%+v and %+v: equal: %t", list, other, r.Equal(o))
		}
		least, head, tail := min(len(list), len(other)), 0, 0
		for head < least && list[head].Equal(&other[head]) {
			head++
		}
		for tail < least-head && list[len(list)-1-tail].Equal(&other[len(other)-1-tail]) {
			tail++
		}
		if h, l := r.Alike(o); h != head || l != tail {
			t.Fatalf("%d and %d are alike, not %d and %d", h, l, head, tail)
		}
		others, with, more := map[int]*Record{}, slices.Clone(list), []Record{}
		for range min(len(list), random.IntN(3)) {
			one := someRecord(random)
			i := random.IntN(len(list))
			others[i], with[i] = &one, one
		}
		for range min(len(list), random.IntN(2)) {
			i := random.IntN(len(list))
			others[i], with[i] = nil, Record{Name: "gone"}
		}
		for range random.IntN(3) {
			more = append(more, someRecord(random))
		}
		with = append(slices.DeleteFunc(with, func(r Record) bool { return r.Name == "gone" }), more...)
		if got := r.With(others, more...); !reflect.DeepEqual(got, RecordsOf(with...)) {
			t.Fatalf("got %+v, not %+v", got.List(), with)
		}
		if spliced := r.Splice(head, len(list)-tail, RecordsOf(other[head:len(other)-tail]...)); !reflect.DeepEqual(spliced, o) {
			t.Fatalf("spliced: %+v, not %+v", spliced, o)
		}
	}
}

// Records that are packed as they are read are those that the decoder makes of the scanner's tree, with the same faults.
func TestPackedRecordsAreThoseOfTheDecoder(t *testing.T) {
	items := []string{
		"{name: a%d, type: A, ttl: 60, values: [192.0.2.1]}", "{name: a%d, type: A, values: [192.0.2.1, 192.0.2.2]}",
		"{name: b%d, type: AAAA, ttl: 1m, values: ['2001:DB8::0:1']}", "{name: c%d, type: TXT, values: ['\"a\"', b]}",
		"{name: d%d, type: MX, values: [10 mail.example.net]}", "{name: e%d, type: A, alias: {record: a0}}",
		"{name: f%d, type: A, values: [192.0.2.1], setIdentifier: x, weight: 1}", "name: g%d\n  type: A\n  values:\n  - 192.0.2.1",
		"{name: %d, type: A, ttl: null, values: [192.0.2.7]}", "{name: 'h%d', type: \"A\", ttl: '60', values: [192.0.2.7]}",
		"{name: i%d, type: A, ttl: 500ms, values: [192.0.2.1]}", "{name: j%d, type: A, ttl: -1, values: [192.0.2.1]}",
		"{name: k%d, type: a, values: [192.0.2.1]}", "{name: l%d, type: A, values: []}", "{name: m%d, type: A, values: 192.0.2.1}",
		"{name: n%d, type: A, values: [192.0.2.1], tll: 5}", "{name: o%d, type: A, values: [true]}", "{name: true, type: A, values: [192.0.2.%d]}",
		"{name: p%d, type: CNAME, values: [a, b]}", "null # %d", "{name: a0, type: A, values: [192.0.2.%d]}", "{name: q%d, type: A, ttl: 1h, values: [null]}",
	}
	random := rand.New(rand.NewPCG(5, 6))
	right := 0
	for round := range 400 {
		kinds := items[:8+random.IntN(2)*random.IntN(len(items)-8)]
		text := "kind: HostedZone\nname: example.com\nrecords:\n- {name: a0, type: A, values: [192.0.2.1]}\n"
		for i := range random.IntN(6) {
			text += "- " + fmt.Sprintf(kinds[random.IntN(len(kinds))], i+1) + "\n"
		}
		other := strings.Replace(text, "name: example.com", `name: "example\u002ecom"`, 1) // which the plain reader leaves to the scanner
		one, err := Build(1, mustSplit(t, text), Options{})
		two, otherErr := Build(1, mustSplit(t, other), Options{})
		if fmt.Sprint(err) != fmt.Sprint(otherErr) {
			t.Fatalf("%s%v\nbut\n%v", text, err, otherErr)
		}
		if err != nil {
			continue
		}
		right++
		if z := one.HostedZones["example.com"]; !reflect.DeepEqual(z.Records, two.HostedZones["example.com"].Records) {
			t.Fatalf("round %d\n%s%+v\n%+v", round, text, z.Records.List(), two.HostedZones["example.com"].Records.List())
		}
	}
	if right < 100 {
		t.Errorf("only %d were right", right)
	}
}
