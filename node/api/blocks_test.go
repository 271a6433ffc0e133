package api

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

// shelf is resources, each of one text, and what it was asked.
type shelf struct {
	resources []Resource
	asked     []ApplyRequest
	refuse    func(ApplyRequest) error // nil: nothing
	got       ApplyRequest             // with its files whole
}

// server serves the API of it.
func (s *shelf) server() *Server {
	b := backendOf()
	b.Resources = func(_ context.Context, q ResourcesQuery) (ResourceList, error) {
		list := ResourceList{Revision: 9}
		for _, r := range s.resources {
			if r.Kind == q.Kind && r.Name == q.Name {
				list.Resources = append(list.Resources, r)
			}
		}
		if len(list.Resources) == 0 {
			return list, refuse(http.StatusNotFound, "no %s %q", q.Kind, q.Name)
		}
		return list, nil
	}
	b.Apply = func(_ context.Context, _ Principal, req ApplyRequest) (ApplyResponse, error) {
		s.asked = append(s.asked, req)
		if s.refuse != nil {
			if err := s.refuse(req); err != nil {
				return ApplyResponse{}, err
			}
		}
		req.Files = slices.Clone(req.Files)
		for i, f := range req.Files {
			var err error
			if req.Files[i], err = f.Whole(s.text); err != nil {
				return ApplyResponse{}, err
			}
		}
		s.got = req
		return ApplyResponse{Revision: 10}, nil
	}
	return serverOf(b)
}

func (s *shelf) text(p Part) ([]byte, bool) {
	i := slices.IndexFunc(s.resources, func(r Resource) bool { return r.Kind == p.Kind && r.Name == p.Name && r.Revision == p.Revision })
	if i < 0 {
		return nil, false
	}
	return []byte(s.resources[i].YAML), true
}

// apply applies a file by a client, of a token.
func (s *shelf) apply(t *testing.T, as string, files ...File) error {
	t.Helper()
	h := httptest.NewServer(s.server())
	defer h.Close()
	c, err := NewClient(h.URL, Options{Token: as})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Apply(t.Context(), ApplyRequest{ID: "1", Files: files, Note: "why", Expect: revision(9)})
	return err
}

// bigZone is the document of a zone of so many records.
func bigZone(name string, records int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "kind: HostedZone\nname: %s\nrecords:\n", name)
	for i := range records {
		fmt.Fprintf(&b, "  - {name: h%d, type: A, ttl: 300, values: [10.1.%d.%d]}\n", i, i/250, i%250)
	}
	return b.String()
}

func size(t *testing.T, req ApplyRequest) int {
	t.Helper()
	data, err := json.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	return len(data)
}

func TestOfALargeDocumentWhatStandsIsNotSent(t *testing.T) {
	zone := bigZone("a.example", 5000)
	s := &shelf{resources: []Resource{{Kind: "HostedZone", Name: "a.example", Revision: 4, YAML: zone}}}
	file := "# all of it\n---\nkind: Region\nname: r\n---\n" + strings.Replace(zone, "10.1.9.9]", "192.0.2.9]", 1) + "---\n" + bigZone("new.example", 2000)
	if err := s.apply(t, "operator", File{Name: "x.yaml", Data: file}); err != nil {
		t.Fatal(err)
	}
	if len(s.asked) != 1 || s.got.Files[0].Data != file {
		t.Fatalf("asked %d times, and the file has %d bytes of %d", len(s.asked), len(s.got.Files[0].Data), len(file))
	}
	if n := size(t, s.asked[0]); n > len(file)/2 {
		t.Errorf("%d bytes were sent for a file of %d", n, len(file))
	}
	if got := s.asked[0]; got.ID != "1" || got.Note != "why" || got.Expect == nil || *got.Expect != 9 {
		t.Errorf("asked %+v", got)
	}
}

func TestASmallDocumentIsSentAtOnce(t *testing.T) {
	s := &shelf{}
	if err := s.apply(t, "operator", File{Name: "x.yaml", Data: bigZone("a.example", 500)}); err != nil {
		t.Fatal(err)
	}
	if len(s.asked) != 1 || len(s.asked[0].Files[0].Parts) > 0 {
		t.Errorf("asked %+v", s.asked)
	}
}

func TestAFileGoesWholeWhereItsPartsDoNot(t *testing.T) {
	zone := bigZone("a.example", 5000)
	stands := []Resource{{Kind: "HostedZone", Name: "a.example", Revision: 4, YAML: zone}}
	changed := File{Name: "x.yaml", Data: strings.Replace(zone, "10.1.9.9]", "192.0.2.9]", 1)}
	inParts := func(req ApplyRequest) bool { return len(req.Files[0].Parts) > 0 }
	for name, test := range map[string]struct {
		refuse error // of what comes in parts
		asked  int
		fails  string
	}{
		"what stands has changed":       {refuse(http.StatusConflict, "it is not at revision 4"), 2, ""},
		"the leader is of before":       {refuse(http.StatusBadRequest, `decode the body: unknown field "parts"`), 2, ""},
		"it has faults":                 {refuse(http.StatusUnprocessableEntity, "x.yaml:7: so"), 1, "x.yaml:7: so"},
		"another change came before it": {Conflict(9, 10), 1, "expects revision 9"},
		"there is no leader":            {ErrNoLeader, 1, "no leader"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &shelf{resources: stands, refuse: func(req ApplyRequest) error {
				if inParts(req) {
					return test.refuse
				}
				return nil
			}}
			err := s.apply(t, "operator", changed)
			if (err == nil) != (test.fails == "") || err != nil && !strings.Contains(err.Error(), test.fails) {
				t.Errorf("got %v", err)
			}
			if len(s.asked) != test.asked || !inParts(s.asked[0]) || test.asked == 2 && (inParts(s.asked[1]) || s.got.Files[0].Data != changed.Data || s.asked[1].ID != s.asked[0].ID) {
				t.Errorf("asked %d times", len(s.asked))
			}
		})
	}
	t.Run("the node is of before", func(t *testing.T) {
		s := &shelf{resources: stands}
		server := s.server()
		h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/v1/blocks" {
				r.URL.Path = "/v1/what"
			}
			server.ServeHTTP(w, r)
		}))
		defer h.Close()
		c, err := NewClient(h.URL, Options{Token: "operator"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Apply(t.Context(), ApplyRequest{Files: []File{changed}}); err != nil || len(s.asked) != 1 || inParts(s.asked[0]) || s.got.Files[0].Data != changed.Data {
			t.Errorf("asked %d times, %v", len(s.asked), err)
		}
	})
	t.Run("it is not for him to see", func(t *testing.T) {
		s := &shelf{resources: stands}
		if err := s.apply(t, "team", changed); err != nil || len(s.asked) != 1 || inParts(s.asked[0]) {
			t.Errorf("asked %d times, %v", len(s.asked), err)
		}
	})
}

func TestPartsThatMakeNoFileAreRefused(t *testing.T) {
	zone := bigZone("a.example", 2000)
	s := &shelf{resources: []Resource{{Kind: "HostedZone", Name: "a.example", Revision: 4, YAML: zone}}}
	part := func(from, length int) Part {
		return Part{Kind: "HostedZone", Name: "a.example", Revision: 4, From: from, Length: length}
	}
	good := File{Name: "x.yaml", Parts: []Part{{Text: "# "}, part(0, len(zone))}, Length: len(zone) + 2, Sum: SumOf("# " + zone)}
	if f, err := good.Whole(s.text); err != nil || f.Data != "# "+zone {
		t.Fatal(err)
	}
	with := func(change func(*File)) File {
		f := good
		f.Parts = slices.Clone(f.Parts)
		change(&f)
		return f
	}
	for name, f := range map[string]File{
		"data too":             with(func(f *File) { f.Data = "x" }),
		"another sum":          with(func(f *File) { f.Sum++ }),
		"longer":               with(func(f *File) { f.Length-- }),
		"shorter":              with(func(f *File) { f.Length++ }),
		"of less than nothing": with(func(f *File) { f.Length = -1 }),
		"of too much":          with(func(f *File) { f.Length = MaxBody + 1 }),
		"from before":          with(func(f *File) { f.Parts[1].From = -1 }),
		"from behind":          with(func(f *File) { f.Parts[1].From = len(zone) + 1 }),
		"up to behind":         with(func(f *File) { f.Parts[1].From = 1 }),
		"a length below 0":     with(func(f *File) { f.Parts[1].Length = -1 }),
		"a length that wraps":  with(func(f *File) { f.Parts[1].From, f.Parts[1].Length = 1, math.MaxInt }),
		"of nobody":            with(func(f *File) { f.Parts[0].Length = 1 }),
		"of both":              with(func(f *File) { f.Parts[1].Text = "x" }),
		"too many":             with(func(f *File) { f.Parts = append(f.Parts, make([]Part, maxParts)...) }),
	} {
		if _, err := f.Whole(s.text); refusal(err).Status != http.StatusBadRequest {
			t.Errorf("%s: %v", name, err)
		}
	}
	other := with(func(f *File) { f.Parts[1].Revision = 5 })
	if _, err := other.Whole(s.text); refusal(err).Status != http.StatusConflict {
		t.Errorf("of another revision: %v", err)
	}
	if w := asked(s.server(), "operator", http.MethodPost, "/v1/diff", `{"files":[{"name":"x","data":"","parts":[{"text":"a"}],"length":1}]}`); w.Code != http.StatusBadRequest {
		t.Errorf("diff answers %d", w.Code)
	}
	for _, query := range []string{"", "?kind=HostedZone", "?kind=HostedZone&name=a.example&fresh=true"} {
		if w := asked(s.server(), "operator", http.MethodGet, "/v1/blocks"+query, ""); w.Code == http.StatusOK {
			t.Errorf("/v1/blocks%s answers %s", query, w.Body)
		}
	}
}

// TestPartsMakeTheFile holds for files and changes made by chance that what is sent in parts is the file.
func TestPartsMakeTheFile(t *testing.T) {
	for seed := range uint64(100) {
		dice := rand.New(rand.NewPCG(1, seed))
		stands := randomText(dice, 1+dice.IntN(300_000))
		text := edited(dice, stands)
		d := largeDocument{to: len(text)}
		of := Blocks{Kind: "K", Name: "n", Revision: 3}
		of.Lengths, of.Sums = blocksOf([]byte(stands))
		if total(of.Lengths) != len(stands) || len(of.Sums) != sumSize*len(of.Lengths) {
			t.Fatalf("seed %d: blocks of %d bytes for %d", seed, total(of.Lengths), len(stands))
		}
		lengths, sums := blocksOf([]byte(text))
		if d.parts = partsOf([]byte(text), lengths, sums, of); d.parts == nil {
			continue
		}
		f, err := File{Name: "x", Parts: d.parts, Length: len(text), Sum: SumOf(text)}.Whole(func(p Part) ([]byte, bool) { return []byte(stands), p.Revision == 3 })
		if err != nil || f.Data != text {
			t.Fatalf("seed %d: %v, %d bytes of %d", seed, err, len(f.Data), len(text))
		}
	}
}

func total(lengths []int) (sum int) {
	for _, n := range lengths {
		sum += n
	}
	return sum
}

// randomText is lines of some length, many of them the same; now and then one is very long.
func randomText(dice *rand.Rand, size int) string {
	var b strings.Builder
	for b.Len() < size {
		switch n := dice.IntN(1000); {
		case n == 0:
			b.WriteString(strings.Repeat("x", dice.IntN(40_000)))
		case n < 300:
			b.WriteString("the same\n")
		default:
			fmt.Fprintf(&b, "  - {name: h%d, values: [%d]}\n", dice.IntN(5000), dice.Uint32())
		}
	}
	return b.String()
}

// edited is a text with some of it cut, moved or replaced.
func edited(dice *rand.Rand, text string) string {
	for range dice.IntN(6) {
		from := dice.IntN(len(text) + 1)
		to := from + dice.IntN(min(len(text)-from, 5000)+1)
		switch dice.IntN(3) {
		case 0:
			text = text[:from] + text[to:]
		case 1:
			text = text[:from] + randomText(dice, dice.IntN(3000)) + text[to:]
		default:
			cut := text[from:to]
			text = text[:from] + text[to:]
			at := dice.IntN(len(text) + 1)
			text = text[:at] + cut + text[at:]
		}
	}
	return text
}
