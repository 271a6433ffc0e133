package lane

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestAReasonIsCutBetweenItsCharacters(t *testing.T) {
	for reason, want := range map[string]string{
		"no":                      "no",
		"":                        "it failed",
		strings.Repeat("ö", 200):  strings.Repeat("ö", 127),
		"\xff":                    "�",
		strings.Repeat("x", 1000): strings.Repeat("x", 255),
	} {
		r := bytes.NewReader(appendAck(nil, errors.New(reason)))
		got, err := readAck(r)
		if err != nil || got != want || r.Len() != 0 {
			t.Errorf("%.20q came as %.20q, %v, and %d bytes are left", reason, got, err, r.Len())
		}
	}
	if got, err := readAck(bytes.NewReader(appendAck(nil, nil))); got != "" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// FuzzMessage: what is read is what would be written, and nothing behind it is touched.
func FuzzMessage(f *testing.F) {
	good, _ := appendMessage(nil, "01J-abc", []byte(`{"kind":"purge"}`))
	f.Add(good)
	f.Add(good[:5])
	f.Add([]byte{1, 1, 'a', 255, 255, 255, 255})
	f.Add([]byte{1, 64})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		id, order, err := readMessage(r)
		if err != nil {
			if len(b) > 0 && errors.Is(err, io.EOF) {
				t.Fatal("a message that is cut short ended as if it were whole")
			}
			return
		}
		again, err := appendMessage(nil, id, order)
		if err != nil || !bytes.Equal(again, b[:len(b)-r.Len()]) {
			t.Fatalf("% x came from % x, %v", again, b, err)
		}
	})
}

// FuzzAck: whatever answers, its reason is short and can be shown.
func FuzzAck(f *testing.F) {
	f.Add([]byte{inEffect})
	f.Add(appendAck(nil, errors.New("the cache is on fire")))
	f.Add([]byte{failed, 0})
	f.Add([]byte{failed, 2, 0xff, 0xfe})
	f.Add([]byte{9})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		refusal, err := readAck(r)
		if err != nil {
			return
		}
		if !utf8.ValidString(refusal) || len(refusal) > 3*maxReason || (refusal == "") != (b[0] == inEffect) {
			t.Fatalf("%q of % x", refusal, b)
		}
	})
}
