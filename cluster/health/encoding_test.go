package health

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestAVerdictTravels(t *testing.T) {
	for _, v := range []Verdict{
		{},
		{Healthy: true, Since: start, Stands: time.Minute},
		{Reason: "connect: connection refused", Since: start.Add(7 * time.Millisecond), Stands: 150 * time.Second},
		{Reason: strings.Repeat("x", 200), Since: start},
		{Healthy: true, Since: start, Stands: time.Minute, LastFailure: "status 503, want 200", LastFailureAt: start.Add(time.Hour)},
		{Reason: "timeout", Since: start, Stands: time.Minute, LastFailure: "timeout", LastFailureAt: start},
		{Reason: "timeout", Since: start, LastFailure: "status 503", LastFailureAt: start.Add(time.Hour)},
		{Healthy: true, Since: start, LastFailureAt: start},
		{Reason: strings.Repeat("x", 200), LastFailure: strings.Repeat("y", 200), Since: start, LastFailureAt: start, Stands: math.MaxInt64 / time.Millisecond * time.Millisecond},
	} {
		b := EncodeVerdict(v)
		got, err := DecodeVerdict(b)
		if err != nil || got != v || len(b) > 434 {
			t.Errorf("%+v arrived as %+v, %v, in %d bytes", v, got, err, len(b))
		}
	}
}

// The bytes are those that the release before last failures were known sent.
func TestAVerdictOfTheReleaseBeforeIsRead(t *testing.T) {
	old := slices.Concat([]byte{1, 0}, binary.AppendVarint(nil, start.UnixMilli()), binary.AppendUvarint(nil, 60_000), []byte{7}, []byte("timeout"))
	got, err := DecodeVerdict(old)
	if want := (Verdict{Reason: "timeout", Since: start, Stands: time.Minute}); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

func TestALongReasonIsCutBetweenCharacters(t *testing.T) {
	for sent, want := range map[string]string{
		strings.Repeat("x", 300):               strings.Repeat("x", 200),
		strings.Repeat("x", 199) + "é":         strings.Repeat("x", 199),
		strings.Repeat("x", 198) + "é and so":  strings.Repeat("x", 198) + "é",
		"not text: \xff\xfe.":                  "not text: \uFFFD.",
		strings.Repeat("x", 199) + "\xff\xfe.": strings.Repeat("x", 199),
	} {
		got, err := DecodeVerdict(EncodeVerdict(Verdict{Reason: sent}))
		if err != nil || got.Reason != want {
			t.Errorf("%q arrived as %q, %v", sent, got.Reason, err)
		}
	}
}

func TestWhatIsNoVerdictIsRefused(t *testing.T) {
	good := EncodeVerdict(Verdict{Reason: "timeout", Since: start, Stands: time.Minute, LastFailure: "refused", LastFailureAt: start})
	for n := range good {
		if _, err := DecodeVerdict(good[:n]); err == nil {
			t.Errorf("the first %d bytes of a verdict were taken for one", n)
		}
	}
	for name, b := range map[string][]byte{
		"trailing bytes":  append(bytes.Clone(good), 0),
		"another version": append([]byte{3}, good[1:]...),
		"unknown flags":   append([]byte{2, 8}, good[2:]...),
		"the same words as a reason, but no failure":  append([]byte{2, 4}, good[2:]...),
		"a last failure in the version that has none": append([]byte{1, 2}, good[2:]...),
		"the year 10000":              EncodeVerdict(Verdict{Since: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)}),
		"a failure in the year 10000": EncodeVerdict(Verdict{Since: start, LastFailureAt: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)}),
		"not text":                    append(bytes.Clone(good[:len(good)-1]), 0xff),
	} {
		if v, err := DecodeVerdict(b); err == nil {
			t.Errorf("%s: taken for %+v", name, v)
		}
	}
}

func FuzzVerdict(f *testing.F) {
	f.Add([]byte{})
	f.Add(EncodeVerdict(Verdict{}))
	f.Add(EncodeVerdict(Verdict{Healthy: true, Since: start, Stands: time.Minute}))
	f.Add(EncodeVerdict(Verdict{Reason: "connect: connection refused", Since: start}))
	f.Add(EncodeVerdict(Verdict{Healthy: true, Since: start, LastFailure: "connect: connection refused", LastFailureAt: start}))
	f.Add(EncodeVerdict(Verdict{Reason: "timeout", Since: start, LastFailure: "timeout", LastFailureAt: start}))
	f.Add([]byte{1, 1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := DecodeVerdict(b)
		if err != nil {
			return
		}
		again, err := DecodeVerdict(EncodeVerdict(v))
		if err != nil || again != v {
			t.Fatalf("%+v was encoded and decoded to %+v, %v", v, again, err)
		}
		if _, err := json.Marshal(v); err != nil {
			t.Fatalf("%+v has no JSON: %v", v, err)
		}
	})
}
