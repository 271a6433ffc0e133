package node

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/perigee-net/perigee/node/api"
)

// zoneOf is the document of a zone, with values that the dice make.
func zoneOf(dice *rand.Rand, records int) []string {
	lines := []string{"kind: HostedZone\n", "name: example.com\n", "records:\n"}
	for i := range records {
		lines = append(lines, fmt.Sprintf("  - {name: h%d, type: A, ttl: 300, values: [10.%d.%d.%d]}\n", i, dice.IntN(256), dice.IntN(256), dice.IntN(256)))
	}
	return lines
}

// changedBy is what the dice make of lines: records that are others, more, fewer, in another place, and now and then wrong.
func changedBy(dice *rand.Rand, lines []string) []string {
	lines = slices.Clone(lines)
	for range 1 + dice.IntN(4) {
		at := 3 + dice.IntN(len(lines)-3)
		switch dice.IntN(8) {
		case 0, 1, 2:
			lines[at] = fmt.Sprintf("  - {name: n%d, type: A, ttl: 60, values: [192.0.2.%d]}\n", dice.IntN(1000), dice.IntN(256))
		case 3:
			lines = slices.Insert(lines, at, fmt.Sprintf("  - {name: m%d, type: TXT, ttl: 60, values: ['\"%d\"']}\n", dice.IntN(1000), dice.Uint64()), "# and a note\n")
		case 4:
			lines = slices.Delete(lines, at, min(at+1+dice.IntN(20), len(lines)))
		case 5:
			moved := lines[at]
			lines = append(slices.Delete(lines, at, at+1), moved)
		case 6:
			lines[at] = fmt.Sprintf("  - {name: bad, type: A, ttl: 300, values: [10.1.%d]}\n", dice.IntN(256))
		default:
			lines[at] = "  - {name: [\n"
		}
	}
	return lines
}

// TestAChangeInPartsIsTheChange holds for changes made by chance that sent in parts they have the answers, the faults, the revisions and the
// documents that they have when they are sent whole, others' changes in between included.
func TestAChangeInPartsIsTheChange(t *testing.T) {
	alone(t, func(t *testing.T, n *Node) {
		dice := rand.New(rand.NewPCG(1, 2))
		lines := zoneOf(dice, 1400)
		applied(t, n, strings.Join(lines, ""))
		client, taken, refused := n.Client(), 0, 0
		for i := range 60 {
			next := changedBy(dice, lines)
			req := api.ApplyRequest{ID: fmt.Sprint(i), Files: []api.File{{Name: "zone.yaml", Data: "# zones\n---\n" + strings.Join(next, "") + "---\n" + group("g")}}, Note: "why"}
			switch dice.IntN(6) {
			case 0:
				applied(t, n, group(fmt.Sprintf("other%d", i)))
			case 1:
				at := n.known().Revision - uint64(dice.IntN(2))
				req.Expect = &at
			}
			want, wrong := client.Diff(t.Context(), req)
			if req.Expect != nil && *req.Expect != n.known().Revision {
				wrong = api.Conflict(*req.Expect, n.known().Revision)
			}
			before := n.known()
			got, err := client.Apply(t.Context(), req)
			if fmt.Sprint(err) != fmt.Sprint(wrong) {
				t.Fatalf("change %d: got %v\nwant %v", i, err, wrong)
			}
			if err != nil {
				if refused++; n.known().Revision != before.Revision {
					t.Fatalf("change %d: it was refused, and something has changed", i)
				}
				continue
			}
			taken++
			o, _ := n.known().Get("HostedZone", "example.com")
			if !reflect.DeepEqual(got, want) || string(o.Bytes) != strings.Join(next, "") {
				t.Fatalf("change %d: got %+v\nwant %+v", i, got, want)
			}
			lines = next
		}
		if parts := n.counters()["api_files_in_parts_total"]; taken < 10 || refused < 10 || parts < 50 {
			t.Errorf("%d were taken, %d refused; %d files came in parts", taken, refused, parts)
		}
	})
}

// TestPartsAreOfWhatOneMayTouch: what is put together from a resource that one may not touch would tell what is in it.
func TestPartsAreOfWhatOneMayTouch(t *testing.T) {
	over := stateOf(t, region, group("g"))
	stands, _ := over.state.Get("TargetGroup", "g")
	text := string(stands.Bytes)
	req := api.ApplyRequest{Files: []api.File{{
		Name: "x.yaml", Parts: []api.Part{{Kind: "TargetGroup", Name: "g", Revision: stands.Revision, Length: len(text)}, {Text: "# so\n"}},
		Length: len(text) + 5, Sum: api.SumOf(text + "# so\n"),
	}}}
	if p, err := testPlanner().apply(over, operator, req); err != nil || string(p.change.Put[0].Bytes) != text+"# so\n" {
		t.Fatal(err)
	}
	limited := operator
	limited.Resources = []string{"Distribution/*"}
	_, err := testPlanner().apply(over, limited, req)
	if e, ok := err.(*api.Error); !ok || e.Status != 409 {
		t.Errorf("got %v", err)
	}
	req.Files = slices.Repeat(req.Files, 40)
	for i := range req.Files {
		req.Files[i].Length = 1 << 20
	}
	_, err = testPlanner().apply(over, operator, req)
	if e, ok := err.(*api.Error); !ok || e.Status != 400 && e.Status != 413 {
		t.Errorf("got %v", err)
	}
}
