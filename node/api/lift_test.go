package api

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// undivided decodes without taking anything out.
func undivided(body []byte, into *ApplyRequest) error {
	type same ApplyRequest
	return decode(body, (*same)(into), true)
}

func TestLongTextsAreDecodedAsOthers(t *testing.T) {
	long := strings.Repeat(`a line: "x" \ / 	`+"\n"+"é\u2028\u0001<&", 400)
	quoted, _ := json.Marshal(long)
	plain := strings.Repeat("x", longText)
	for _, body := range []string{
		fmt.Sprintf(`{"id":"1","files":[{"name":"a","data":%s},{"name":%[1]s,"data":"short"},{"name":"c","data":%[1]s}],"note":%[1]s}`, quoted),
		fmt.Sprintf(`{"delete":[{"kind":%q,"name":"x"}],"prune":{"labels":{%[1]q:%[1]q,"b":%[2]q}}}`, plain, plain+"y"),
		fmt.Sprintf(`{"note":"%s\ud83d\ude00"}`, plain), fmt.Sprintf(`{"note":"%s\ud83d"}`, plain), fmt.Sprintf(`{"note":"%s\b\f\u0041\/"}`, plain),
		"{\"note\":\"" + plain + "\xff\"}", "{\"note\":\"" + plain + "\n\"}", fmt.Sprintf(`{"note":"%s\x"}`, plain), fmt.Sprintf(`{"note":"%s\u00g0"}`, plain),
		fmt.Sprintf(`{"note":"%s`, plain), fmt.Sprintf(`{"note":"%s\"}`, plain), fmt.Sprintf(`{"note":"%s\\"}`, plain), fmt.Sprintf(`{"note":"%s" "x"}`, plain),
		fmt.Sprintf(`{"nose":"%s"}`, plain), fmt.Sprintf(`{"files":"%s"}`, plain), fmt.Sprintf(`{"dryRun":"%s"}`, plain), fmt.Sprintf(`{} "%s"`, plain), plain,
	} {
		var got, want ApplyRequest
		err, wrong := decode([]byte(body), &got, true), undivided([]byte(body), &want)
		if (err == nil) != (wrong == nil) || err != nil && err.Error() != strings.ReplaceAll(wrong.Error(), " same.", " ApplyRequest.") {
			t.Errorf("%.40s…%s: %v, not %v", body, body[len(body)-20:], err, wrong)
		}
		if err == nil && !reflect.DeepEqual(got, want) {
			t.Errorf("%.40s…: got %.200v", body, got)
		}
	}
}

func TestLongTextsAreWrittenAsOthers(t *testing.T) {
	for _, text := range []string{
		strings.Repeat("a line\n", 2000), strings.Repeat(`"\`, 3000), strings.Repeat("\x00\x1f\x7f\t\r <&>é\u2028😀", 500), strings.Repeat("x", longText), strings.Repeat("x", longText-1) + "\xff",
	} {
		for n := range 9 {
			req := ApplyRequest{ID: "1", Files: []File{{Name: text, Data: text[n:]}, {Name: "b", Data: "b"}, {Name: "c", Data: text}}, Note: text}
			var got, want ApplyRequest
			body, err := marshal(req)
			if err != nil {
				t.Fatal(err)
			}
			whole, _ := json.Marshal(req)
			if err, wrong := json.Unmarshal(body, &got), json.Unmarshal(whole, &want); err != nil || wrong != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%.20q: %v, %v", text, err, wrong)
			}
			if err := decode(body, &got, true); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%.20q: %v", text, err)
			}
		}
	}
}

// FuzzQuoted: a text that is written here is read as the same there, and here.
func FuzzQuoted(f *testing.F) {
	f.Add("a \"line\"\n\x00\\é")
	f.Fuzz(func(t *testing.T, text string) {
		text = strings.ToValidUTF8(text, "?")
		quoted := appendQuoted(nil, []byte(text))
		var got string
		if err := json.Unmarshal(quoted, &got); err != nil || got != text {
			t.Fatalf("%q is written %s: %q, %v", text, quoted, got, err)
		}
		if got, ok := unquoted(quoted[1 : len(quoted)-1]); !ok || got != text {
			t.Fatalf("%q is written %s: %q", text, quoted, got)
		}
	})
}

func BenchmarkEncodeLargeZone(b *testing.B) {
	req := ApplyRequest{Files: []File{{Name: "zone.yaml", Data: strings.Repeat("  - {name: h1234, type: A, ttl: 300, values: [192.0.2.1]}\n", 10_000)}}}
	b.SetBytes(int64(len(req.Files[0].Data)))
	for b.Loop() {
		if _, err := marshal(req); err != nil {
			b.Fatal(err)
		}
	}
}

// FuzzLift: with texts of any length taken out, what is decoded is the same, and so is what is refused.
func FuzzLift(f *testing.F) {
	for _, body := range []string{`{"note":"x\n\u0041"}`, `{"files":[{"name":"a","data":"b\\"}]}`, `{"prune":{"labels":{"a":"b"}}}`, `{"note":"\ud800"}`} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		pad := strings.Repeat("z", longText)
		long := []byte(strings.ReplaceAll(string(body), "x", pad))
		var got, want ApplyRequest
		err, wrong := decode(long, &got, true), undivided(long, &want)
		if (err == nil) != (wrong == nil) || err == nil && !reflect.DeepEqual(got, want) {
			t.Fatalf("%q: %v, not %v", body, err, wrong)
		}
	})
}

func BenchmarkDecodeLargeZone(b *testing.B) {
	text := strings.Repeat("  - {name: h1234, type: A, ttl: 300, values: [192.0.2.1]}\n", 10_000)
	body, err := json.Marshal(ApplyRequest{Files: []File{{Name: "zone.yaml", Data: text}}})
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		var req ApplyRequest
		if err := decode(body, &req, true); err != nil || len(req.Files[0].Data) != len(text) {
			b.Fatal(err)
		}
	}
}
